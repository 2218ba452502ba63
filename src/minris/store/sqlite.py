"""The SQLite file: open, migrate, lock, back up, restore."""

import contextlib
import datetime
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import peewee

from minris import log
from minris.store.migrations import BASELINE, MIGRATIONS, newest_schema
from minris.store.models import APPLICATION_ID, StoreError, database
from minris.store.schema import new_schema


def _private_file(path: Path) -> None:
    """Create an empty file that only its owner can read, replacing any other."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def _create_store(path: Path) -> None:
    """Create a database; it gets its name last, so that an interruption leaves none."""
    new = path.with_name(path.name + ".new")
    _private_file(new)
    with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        script = f"BEGIN;{new_schema()}PRAGMA user_version={newest_schema()};COMMIT"
        connection.executescript(script)
    os.replace(new, path)


def _check_version(connection: sqlite3.Connection) -> int:
    """The schema number of a database. Raises StoreError if this version does not support it."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > newest_schema():
        raise StoreError(f"the database is from a newer minris (schema {version})")
    if version < BASELINE:
        raise StoreError(f"the database is from before the first release (schema {version})")
    return int(version)


def _migrate(connection: sqlite3.Connection) -> None:
    """Migrate a database to the newest schema, one transaction per migration."""
    version = _check_version(connection)
    for number, what, sql in MIGRATIONS:
        if number > version:
            log.info("database migrated to schema %d: %s", number, what)
            script = f"BEGIN IMMEDIATE;{sql};PRAGMA user_version={number};COMMIT"
            connection.executescript(script)


def _check_store(path: Path) -> None:
    """Refuse a file that is not a minris database, without changing it."""
    if path.stat().st_size == 0:
        raise StoreError(f"{path} is empty, not a minris database; move it away to start anew")
    # through SQLite: closing the file ourselves would drop this process's locks on it
    # (sqlite.org/howtocorrupt.html 2.2); immutable creates no -wal and no -shm
    url = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(url, uri=True)) as connection:
            (found,) = connection.execute("PRAGMA application_id").fetchone()
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} is not a minris database ({error})") from None
    if found != APPLICATION_ID:
        raise StoreError(f"{path} is not a minris database")


def open_store(path: Path) -> None:
    """Bind `database` to a file, created if absent, and migrate it to the newest schema.

    path    the SQLite file
    Raises  StoreError for a foreign or empty file, or a schema that is too new or too old
    """
    if not path.exists():
        _create_store(path)
    _check_store(path)
    store = peewee.SqliteDatabase(
        str(path),
        lock_type="IMMEDIATE",
        autoconnect=False,
        timeout=10,
        pragmas={
            "journal_mode": "wal",
            "synchronous": "full",
            "foreign_keys": 1,
            "journal_size_limit": 64 << 20,
            "cache_size": -4096,
        },
    )
    database.initialize(store)
    try:
        with database.connection_context():
            _migrate(database.connection())
    except (sqlite3.DatabaseError, peewee.DatabaseError) as error:
        raise StoreError(f"cannot open {path}: {error}") from None


def backup_store(path: Path, to: Path) -> None:
    """Copy a database consistently, even while in use; the copy is checked before it gets its name.

    Raises StoreError if the copy is damaged, OSError if it cannot be written
    """
    _check_store(path)
    part, url = to.with_name(to.name + ".part"), f"{path.absolute().as_uri()}?mode=ro"
    _private_file(part)
    try:
        with (
            contextlib.closing(sqlite3.connect(url, uri=True)) as source,
            contextlib.closing(sqlite3.connect(part)) as copy,
        ):
            source.backup(copy)  # in one step: a snapshot that no write delays
            copy.execute("PRAGMA journal_mode=DELETE")
            (answer,) = copy.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.DatabaseError as error:
        answer = str(error)
    if answer != "ok":
        part.unlink()
        raise StoreError(f"the copy of {path} is damaged: {answer}")
    os.replace(part, to)


def restore_store(path: Path, backup: Path) -> Path | None:
    """Replace the database by a checked backup; return where the old one is kept, if any.

    The caller holds the StoreLock. Raises StoreError if the file is not a backup of minris
    """
    if not backup.is_file():
        raise StoreError(f"no such file: {backup}")
    new = path.with_name(path.name + ".restored")
    backup_store(backup, new)
    try:
        with contextlib.closing(sqlite3.connect(new)) as connection:
            _check_version(connection)
    except StoreError:
        new.unlink()
        raise
    kept = None
    if path.exists():
        kept = path.with_name(f"{path.name}.before-{datetime.datetime.now():%Y%m%d-%H%M%S}")
        try:
            backup_store(path, kept)  # including its journal
        except StoreError:
            os.replace(path, kept)  # not a valid database: kept as it is
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.replace(new, path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT OR REPLACE INTO mark VALUES ('started', 'restored')")
    return kept


class StoreLock:
    """The lock of the only process that may change a database; released by the system on exit.

    It is an SQLite file beside the database in an exclusive transaction, since that works the
    same on every platform.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot create {self.path}: {error}") from None
        try:
            self.connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            self.connection.close()
            raise StoreError(f"{path} is in use. Stop the running minris first") from None

    def release(self) -> None:
        """Release the lock."""
        self.connection.close()

    def __enter__(self) -> "StoreLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Connect this thread for reading; the connection is kept."""
    database.connect(reuse_if_open=True)
    yield
