"""The end of the audit log, kept outside the store, so that one that was cut off shows."""

import contextlib
import datetime
import os
from pathlib import Path

from minris.access.context import Context, audit, clinic_time
from minris.standard.status import Message
from minris.store.files import beside, open_private
from minris.store.models import database
from minris.store.rows import erase, get_mark, set_mark

_CUT_OFF = "audit cut off"  # the mark with the time of the last line that is missing


class AuditEnd:
    """A file of one line beside the store: number, time and digest of the last audit line.

    It is written after the commit and never ahead of the store: what it names was there.

    store  the file of the store
    """

    WIDTH = 128  # of a line: written in place, in one piece

    def __init__(self, store: Path) -> None:
        self.store, self.path = store, beside(store, ".audit")
        self.kept = ""

    def keep(self) -> None:
        """Note the last line if it is a new one; in the store thread, after a commit."""
        sql = "SELECT id, at, digest FROM audit ORDER BY id DESC LIMIT 1"
        last = database.execute_sql(sql).fetchone() or (0, "-", "-")
        text = " ".join(map(str, last))
        if text == self.kept:
            return
        with contextlib.suppress(OSError):  # a full disk: an older end is true as well
            if not self.path.exists():
                os.close(open_private(self.path, self.store))
            with self.path.open("r+b", 0) as file:
                file.write(text.ljust(self.WIDTH - 1).encode() + b"\n")
            self.kept = text

    def missing(self) -> str:
        """The time of the line that it names if the store has lost that; else empty."""
        try:
            text, at, digest = self.path.read_text().split()
            number = int(text)
            datetime.datetime.fromisoformat(at)  # or no line of ours
        except (OSError, ValueError):
            return ""
        sql = "SELECT min(id), sum(id = ? AND digest = ?) FROM audit"
        first, found = database.execute_sql(sql, (number, digest)).fetchone()
        purged = first is not None and first > number
        restored = get_mark("started") == "restored"  # the gap is told by the restore
        return "" if found or purged or restored else at


def note_cut_off(ctx: Context, at: str) -> None:
    """Note that the audit log ends before a line of this time that was in it."""
    set_mark(_CUT_OFF, at)
    audit(ctx, "audit log was cut off", "audit log", at)


def words_of_cut_off(ctx: Context) -> list[Message]:
    """The notice of an audit log that was cut off, until an administrator confirms it."""
    at = get_mark(_CUT_OFF)
    words = Message(
        "The database has lost its last changes: an audit entry of {at} is missing. An "
        "administrator must confirm this at /restored.",
        at=clinic_time(ctx, at),
    )
    return [words] if at else []


def confirm_cut_off(ctx: Context) -> None:
    """Confirm that it is known."""
    if erase("mark WHERE name = ?", _CUT_OFF):
        audit(ctx, "cut off audit log confirmed", "audit log")
