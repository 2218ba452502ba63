"""The threads that work at imports."""

import concurrent.futures
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import peewee

from minris import log
from minris.access.context import Actor, Context
from minris.interchange.imports import NO_IMPORT, Importer, known_import, open_imports
from minris.standard.status import HttpRefusal, Message, Refusal, Status
from minris.store.rows import known_row
from minris.store.sqlite import reading
from minris.store.writer import NotSaved, Writer


class ImportDesk(Importer):
    """Works at imports in threads of its own; others write between their slices.

    after  called when one has ended
    """

    AGAIN_S = 5.0  # seconds until it goes on after the store could not be written

    def __init__(
        self, context: Callable[[Actor], Context], writer: Writer, after: Callable[[], None]
    ) -> None:
        super().__init__(context, writer.call)
        self.after, self.closed = after, threading.Event()
        self.running: dict[int, concurrent.futures.Future[None]] = {}
        self.threads = concurrent.futures.ThreadPoolExecutor(2, "import")

    def go_on(self) -> None:
        """Go on with what was interrupted by the last stop."""
        try:
            with reading():
                found = open_imports()
        except (HttpRefusal, peewee.DatabaseError, sqlite3.DatabaseError):
            return  # a damaged store
        for row_id in found:
            log.warning("import %d was interrupted and goes on", row_id)
            self.start(row_id)

    def start(self, row_id: int) -> None:
        """Work at an import, if nobody does."""
        with self.lock:
            if row_id in self.running:
                return
            future = self.running[row_id] = self.threads.submit(self._run, row_id)
        future.add_done_callback(lambda _: self.running.pop(row_id, None))

    def wait(self, row_id: int, seconds: float) -> Any:
        """Wait for the end of an import, so long at most; return its row. Refuses 0112."""
        if future := self.running.get(row_id):
            concurrent.futures.wait([future], seconds)
        with reading():
            return known_row(known_import(row_id), NO_IMPORT)

    def close(self) -> None:
        """Stop between two slices; it goes on at the next start."""
        self.closed.set()
        self.threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, row_id: int) -> None:
        while not self.closed.is_set():
            try:
                with reading():
                    self.work(row_id)
                self.after()
                return
            except NotSaved:
                pass
            except (HttpRefusal, peewee.DatabaseError, sqlite3.DatabaseError) as error:
                log.warning("import %d is interrupted and goes on: %s", row_id, error)
            except Exception:
                log.exception("import %d failed", row_id)
                words = Message("Internal error, see the log")
                self.fail(row_id, Refusal(Status.PROCESSING_FAILURE, words))
                return
            self.closed.wait(self.AGAIN_S)
