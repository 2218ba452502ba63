"""The one thread that writes."""

import concurrent.futures
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import peewee

from minris import log
from minris.standard.status import Refusal
from minris.store.models import StoreError, database


class _Job(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: concurrent.futures.Future[Any]


class Writer:
    """The one thread that changes the store.

    submit(function, …) gives a future; its result is set after the commit that made it last.
    What has gathered is committed together; each call runs in a savepoint of its own, so that a
    Refusal undoes its call alone. An error of the database fails the batch, whose calls are then
    tried one by one.
    """

    BATCH = 256

    def __init__(self, on_commit: Callable[[], None] = lambda: None) -> None:
        self.on_commit = on_commit
        self.commits = 0  # counted before anybody hears of the commit
        self.closed, self.closing = False, threading.Lock()
        self.queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="store", daemon=True)
        self.thread.start()

    def submit(
        self, function: Callable[..., Any], *arguments: Any
    ) -> concurrent.futures.Future[Any]:
        """Have a core call run and committed; its future holds the result or the exception."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()  # a caller that goes away cannot take it back
        with self.closing:
            if self.closed:
                future.set_exception(StoreError("the store is closed"))
            else:
                self.queue.put(_Job(function, arguments, future))
        return future

    def close(self) -> None:
        """Finish what has been submitted, and end the thread."""
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
                log.error("store: %s failed", jobs[0].function, exc_info=error)
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
            log.exception("a watcher of commits failed")

    @staticmethod
    def _attempt(job: _Job) -> tuple[Any, Exception | None]:
        """Run a call in its savepoint; what a refusal leaves behind is written after its undoing."""
        try:
            with database.atomic():
                return job.function(*job.arguments), None
        except Refusal as refusal:
            if after := getattr(refusal, "afterwards", None):
                after()
            return None, refusal
        except peewee.DatabaseError:
            raise
        except Exception as error:
            log.exception("%s failed", job.function)
            return None, error


Core = Callable[..., Any]
