"""The store thread, which does all the writing."""

import concurrent.futures
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import peewee

from minris import log
from minris.standard.status import Refusal
from minris.store.models import StoreError, database

Core = Callable[..., Any]


class _Job(NamedTuple):
    function: Core
    arguments: tuple[Any, ...]
    future: concurrent.futures.Future[Any]


class Writer:
    """The store thread: runs all calls that change the database, and commits them in batches.

    submit(function, …) returns a future, which is resolved after the commit. Waiting calls are
    committed together; each runs in a savepoint of its own, so that a Refusal rolls back only its
    own call. If the database fails, the calls of the batch are retried one by one.
    """

    BATCH = 256

    def __init__(self, on_commit: Callable[[], None] = lambda: None) -> None:
        self.on_commit = on_commit
        self.commits = 0  # counted before the futures are resolved
        self.closed, self.closing = False, threading.Lock()
        self.queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="store", daemon=True)
        self.thread.start()

    def submit(self, function: Core, *arguments: Any) -> concurrent.futures.Future[Any]:
        """Queue a core call to be run and committed; the future holds its result or exception."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()  # it cannot be canceled
        with self.closing:
            if self.closed:
                future.set_exception(StoreError("the database is closed"))
            else:
                self.queue.put(_Job(function, arguments, future))
        return future

    def close(self) -> None:
        """Finish the submitted calls, then end the thread."""
        with self.closing:
            self.closed = True
            self.queue.put(None)
        self.thread.join()

    def _run(self) -> None:
        with database.connection_context():
            going = True
            while going:
                batch = [self.queue.get()]
                while len(batch) < self.BATCH and not self.queue.empty():
                    batch.append(self.queue.get())
                going = None not in batch
                if jobs := [job for job in batch if job]:
                    self._commit(jobs)

    def _commit(self, jobs: list[_Job]) -> None:
        try:
            with database.atomic():
                outcomes = [self._attempt(job) for job in jobs]
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._commit([job])
            else:
                log.error("database: %s failed", jobs[0].function, exc_info=error)
                jobs[0].future.set_exception(error)
            return
        self.commits += 1
        for job, (result, failure) in zip(jobs, outcomes, strict=True):
            if failure:
                job.future.set_exception(failure)
            else:
                job.future.set_result(result)
        try:
            self.on_commit()
        except Exception:
            log.exception("callback after a commit failed")

    @staticmethod
    def _attempt(job: _Job) -> tuple[Any, Exception | None]:
        """Run a call in its savepoint; what a refusal leaves is written after its rollback."""
        try:
            with database.atomic():
                return job.function(*job.arguments), None
        except Refusal as refusal:
            if refusal.afterwards:
                refusal.afterwards()
            return None, refusal
        except peewee.DatabaseError:
            raise
        except Exception as error:
            log.exception("%s failed", job.function)
            return None, error
