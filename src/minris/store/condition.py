"""The condition of the store: why it cannot be written or read now, for all who ask."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from minris import log
from minris.standard.status import HttpRefusal, Message, Status
from minris.store.files import beside, takes_writes, why_not

# What the store may suffer from, for people. The first 64 characters are told to devices.
TROUBLES = {
    "full": Message(
        "The disk is full: nothing can be saved. What was saved before is shown. Free space "
        "on the disk of this computer; saving then resumes by itself."
    ),
    "read-only": Message(
        "The database is read-only: nothing can be saved. What was saved before is shown. "
        "Saving resumes by itself once the database can be written."
    ),
    "failing": Message(
        "The disk is failing: nothing can be saved now. What can be read is shown. Make a "
        "backup, and have the disk of this computer checked."
    ),
    "gone": Message(
        "The database was moved or replaced: nothing more is saved. Stop minris, put the "
        "database back and start again."
    ),
    "damaged": Message(
        "The database is damaged: nothing more is saved in it. What can be read is shown. "
        "Restore a backup."
    ),
}


class StoreTrouble(HttpRefusal):
    """The refusal of what the store cannot keep or tell now: 0213, of a C-FIND A700; HTTP 507."""

    own_words = True

    def __init__(self, words: Message) -> None:
        super().__init__(507, words, Status.RESOURCE_LIMITATION)


class Trouble(NamedTuple):
    """What the store suffers from: a key of TROUBLES.

    lasts  until the next start: nothing is tried before
    until  the time of the monotonic clock before which no success proves that it is over
    """

    kind: str
    lasts: bool = False
    until: float = 0.0

    @property
    def words(self) -> Message:
        """It, for people."""
        return TROUBLES[self.kind]

    def refusal(self) -> StoreTrouble:
        """The refusal of whatever it prevents."""
        return StoreTrouble(self.words)


def _causes(error: BaseException | None) -> Iterator[Exception]:
    """The errors of SQLite behind an error: a rollback that fails as well hides the first."""
    if isinstance(error, OSError):
        yield error
    while error:
        cause = getattr(error, "orig", error)  # peewee wraps SQLite's own
        if isinstance(cause, sqlite3.Error):
            yield cause
        error = error.__context__


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
        return found.st_dev, found.st_ino
    except OSError:
        return 0, 0


class Condition:
    """What a store suffers from, if anything.

    path          of the store
    is_looked_at  the store was opened to be read alone: it is written after a new start at best
    on_change     called in any thread when a trouble begins or is over
    on_reopen     called in the store thread when a new start would end the trouble
    """

    SAY_AGAIN = 60.0  # seconds between two lines of the log about the same
    LOOK_AGAIN = 60.0  # seconds for which what cannot be read stays in the memory

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: Trouble | None = None
        self.is_looked_at = False
        self.files: list[tuple[int, int]] = []
        self.on_change: Callable[[], None] = lambda: None
        self.on_reopen: Callable[[], None] = lambda: None
        self.said: dict[str, float] = {}

    def suffers(self, error: BaseException, reading: bool = False) -> StoreTrouble | None:
        """The refusal for whoever met an error; None if neither disk nor store is to blame."""
        for cause in _causes(error):
            if kind := why_not(self.path, cause).kind:
                until = time.monotonic() + self.LOOK_AGAIN if reading else 0.0
                return self.begin(Trouble(kind, kind == "damaged", until), str(cause))
        return None

    def begin(self, trouble: Trouble, cause: str) -> StoreTrouble:
        """Note a trouble and its cause, for the log; the refusal of what it prevents."""
        before = self.trouble
        if not (before and before.lasts):
            self.trouble = trouble
        if self._is_new(trouble.kind):
            log.error("store: %s (%s)", trouble.words, cause)
        if before is None:
            self.on_change()
        return (self.trouble or trouble).refusal()

    def works(self) -> None:
        """Note that the store was written: a trouble that does not last is over."""
        trouble = self.trouble
        if trouble and not trouble.lasts and time.monotonic() >= trouble.until:
            self.trouble = None
            if self._is_new("works"):
                log.info("store: it can be written again")
            self.on_change()

    @property
    def is_damaged(self) -> bool:
        """Whether something stored cannot be trusted."""
        return bool(self.trouble and self.trouble.kind == "damaged")

    def files_in_place(self) -> tuple[bool, bool]:
        """Whether store and write-ahead log are those that were seen first, under their names."""
        found = [_identity(beside(self.path, suffix)) for suffix in ("", "-wal")]
        self.files = self.files or found
        return found[0] == self.files[0], found[1] == self.files[1]

    def try_to_reopen(self) -> None:
        """See whether a store that is only looked at can be written by now."""
        trouble = self.trouble
        if not (self.is_looked_at and trouble) or trouble.kind == "damaged":
            return
        # where writing fails though there is room, a new start may end here again
        calm = trouble.kind != "failing" or self._is_new("reopened")
        if calm and takes_writes(self.path):
            self.on_reopen()

    def _is_new(self, what: str) -> bool:
        now = time.monotonic()
        if now < self.said.get(what, 0.0):
            return False
        self.said[what] = now + self.SAY_AGAIN
        return True
