"""Lines of the log: bounded, one of a kind a minute, and nothing of a patient."""

import datetime
import json
import logging
import re
import sqlite3
import traceback
from typing import Any

import peewee

from minris import log
from minris.recent import Repeats
from minris.store.models import StoreError

LINE, TRACE = 1000, 8000  # characters of a message, and of a traceback
# Errors whose words are about this program and its machine, not about what others sent.
OF_THE_MACHINE = (OSError, sqlite3.Error, peewee.PeeweeException, StoreError, TypeError,
                  AttributeError, NameError, ImportError, RuntimeError, MemoryError)  # fmt: skip


def one_line(text: str, most: int = LINE) -> str:
    """A text as one line: control and other unprintable characters escaped, cut to a length."""
    shown = text[:most]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)[:most]
    return shown if len(text) <= most else f"{shown}… ({len(text)} characters)"


def error_line(error: BaseException) -> str:
    """An exception as one line: its words may be those of a peer, and are then left to DEBUG."""
    name = type(error).__qualname__
    shown = isinstance(error, OF_THE_MACHINE) or log.isEnabledFor(logging.DEBUG)
    return one_line(
        f"{name}: {error}" if shown else f"{name} (its words: [log] level = DEBUG)", 300
    )


def error_lines(error: BaseException) -> str:
    """The traceback of an exception and of what led to it, without values."""
    found, cause = [], error
    while cause and len(found) < 4:
        lines = traceback.format_tb(cause.__traceback__, -20)
        found.append("".join([*lines, error_line(cause)]))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    text = "\nthen came:\n".join(reversed(found))
    return text if len(text) <= TRACE else f"{text[: TRACE // 4]}\n…\n{text[-TRACE * 3 // 4 :]}"


class TextLines(logging.Formatter):
    """A log line as text; a traceback follows on lines of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's name
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, info: Any) -> str:
        return error_lines(info[1]) if info[1] else ""


class JsonLines(logging.Formatter):
    """A log line as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": one_line(record.getMessage()),
        }
        if record.exc_info and record.exc_info[1]:
            line["exception"] = error_lines(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


class OneOfAKind(logging.Filter):
    """Lets one line of a kind through a minute, of what others or we did wrong.

    Two lines are of a kind if they differ in long numbers alone, such as UIDs. What happened to an
    order (INFO) is always told, unless its record is marked `repeats`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.repeats = Repeats()

    def filter(self, record: logging.LogRecord) -> bool:
        may_repeat = record.levelno >= logging.WARNING or hasattr(record, "repeats")
        if not may_repeat or hasattr(record, "withheld"):
            return True
        kind = re.sub(r"[0-9]{4,}|[0-9]+(\.[0-9]+){4,}", "#", record.getMessage()[:LINE])
        return self.repeats.lets_through((record.levelno, kind), str(record.msg))

    def tell(self, at_once: bool = False) -> None:
        """Log how many lines were held back."""
        for group, kind, count in self.repeats.ended(at_once):
            level, words = kind or (logging.WARNING, group or "other lines")
            log.log(level, "%d more: %s", count, words, extra={"withheld": True})


def tell_withheld(at_once: bool = False) -> None:
    """Log how many lines of each kind were held back, in every log there is."""
    for handler in logging.root.handlers:
        for one in handler.filters:
            if isinstance(one, OneOfAKind):
                one.tell(at_once)
