"""Whether a store is whole: table by table, on connections of their own."""

import contextlib
import re
import sqlite3
import threading
from pathlib import Path

from minris import log
from minris.store.condition import Trouble
from minris.store.models import database
from minris.store.sqlite import source_of
from minris.store.writer import Writer

# What a table alone can mend: an index is made anew from it.
_OF_AN_INDEX = re.compile(r"(row \d+ missing from|wrong # of entries in) index ")
START_SECONDS = 10.0  # that a start waits for the check; what is not done then follows in slices


def damage_of(path: Path, table: str = "", seconds: float | None = None) -> list[str]:
    """What is wrong with a table and its indexes, or with the whole store, as SQLite says it.

    seconds  the check is given up after so long
    Raises   sqlite3.Error for what cannot be read
    """
    with contextlib.closing(
        sqlite3.connect(source_of(path), uri=True, check_same_thread=False)
    ) as connection:
        connection.execute("PRAGMA cache_size=-1024")
        late = threading.Timer(seconds or 0, connection.interrupt)
        if seconds:
            late.start()
        try:
            what = f'("{table}")' if table else ""
            found = [line for (line,) in connection.execute(f"PRAGMA integrity_check{what}")]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                return []
            raise
        finally:
            late.cancel()
    return [line for line in found if line != "ok"]


def is_mendable(damage: list[str]) -> bool:
    """Whether indexes alone are wrong."""
    return all(map(_OF_AN_INDEX.match, damage))


def check_after_sudden_end(path: Path) -> None:
    """Check a store that was not closed, before anything is written to it."""
    condition = database.condition
    if not condition.trouble:
        try:
            found = damage_of(path, seconds=START_SECONDS)
        except sqlite3.Error as error:
            condition.suffers(error, reading=True)
        else:
            if not is_mendable(found):
                condition.begin(Trouble("damaged", lasts=True), found[0])


class Checker:
    """Checks a store in slices: each call one table with its indexes, the smallest load there is.

    path  of the store
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left: list[str] = []

    def check_next(self, writer: Writer) -> None:
        """Check the next table; make its indexes anew where they alone are wrong."""
        condition = database.condition
        if condition.trouble:
            return
        try:
            table = self._next()
            found = damage_of(self.path, table)
            if found and is_mendable(found):
                log.warning("store: the indexes of %s are made anew: %s", table, found[0])
                writer.call(database.execute_sql, f'REINDEX "{table}"')
                found = damage_of(self.path, table)
        except sqlite3.Error as error:
            condition.suffers(error, reading=True)
            return
        if found:
            condition.begin(Trouble("damaged", lasts=True), found[0])

    def _next(self) -> str:
        if not self.left:
            with contextlib.closing(sqlite3.connect(source_of(self.path), uri=True)) as connection:
                rows = connection.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name DESC"
                )
                self.left = [name for (name,) in rows if not name.startswith("sqlite_stat")]
        return self.left.pop()
