"""How many one-row transactions a second the disk makes durable: SQLite, WAL, synchronous FULL.

python tests/bench/fsync_rate.py [FOLDER] [SECONDS]
"""

import contextlib
import sqlite3
import sys
import tempfile
import time
from pathlib import Path


def commits_per_second(folder, seconds=2.0):
    """The rate of one-row commits in a database of its own below `folder`."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        path = Path(own) / "rate.db"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = wal")
            database.execute("PRAGMA synchronous = full")
            database.execute("CREATE TABLE step (uid TEXT PRIMARY KEY, body BLOB)")
            return insert_for(database, seconds)


def insert_for(database, seconds):
    """Insert rows of 600 bytes one by one; the rate."""
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        database.execute("INSERT INTO step VALUES (?, ?)", (f"2.25.{count}", bytes(600)))
        count += 1
    return count / (time.perf_counter() - begin)


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "."
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
    print(f"{commits_per_second(folder, seconds):.0f} one-row commits a second")
