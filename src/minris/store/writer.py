"""The store thread, which does all the writing."""

import concurrent.futures
import contextlib
import dataclasses
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import peewee

from minris import log
from minris.standard.status import HttpRefusal, Message, Refusal, Status
from minris.store.condition import Condition, StoreTrouble, Trouble
from minris.store.models import database
from minris.store.rows import set_mark

Core = Callable[..., Any]


class NotSaved(HttpRefusal):
    """A call was not done and never will be: it may be repeated (0213; HTTP 503)."""

    def __init__(self, words: Message) -> None:
        super().__init__(503, words, Status.RESOURCE_LIMITATION)


BUSY_WRITING = Message("The database is busy: not saved. Try again")
STOPPING = Message("minris is stopping: not saved. Try again")


@dataclasses.dataclass
class _Job:
    """A call and its future; it has begun, or it was withdrawn before that."""

    function: Core
    arguments: tuple[Any, ...]
    future: concurrent.futures.Future[Any]
    begun: bool = False
    withdrawn: bool = False

    def settle(self, result: Any, failure: Exception | None = None) -> None:
        """Answer whoever waits, once."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            if failure:
                self.future.set_exception(failure)
            else:
                self.future.set_result(result)


class Writer:
    """The store thread: runs all calls that change the database, and commits them in batches.

    submit(function, …) returns a future, which is resolved after the commit. Waiting calls are
    committed together; each runs in a savepoint of its own, so that a Refusal rolls back only its
    own call. If the database fails, the calls of the batch are retried one by one.

    While disk or store are in trouble, a call is refused with StoreTrouble; the first write that
    succeeds ends that, be it of a call or the writer's own each second.
    """

    BATCH = 256
    PATIENCE = 60.0  # seconds that a call waits for its turn
    TRY_AGAIN = 1.0  # seconds

    def __init__(self, on_commit: Callable[[], None] = lambda: None) -> None:
        self.on_commit = on_commit
        self.commits = 0  # counted before the futures are resolved
        self.closed, self.closing = False, threading.Lock()
        self.abandoned = False
        self.try_at = 0.0  # by the monotonic clock: when a store that is only looked at is tried
        self.turn = threading.Lock()  # who holds it decides whether a call is done
        self.batch: list[_Job] = []
        self.queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="store", daemon=True)
        self.thread.start()

    def submit(self, function: Core, *arguments: Any) -> concurrent.futures.Future[Any]:
        """Queue a core call to be run and committed; the future holds its result or exception."""
        return self._enter(function, *arguments).future

    def call(self, function: Core, *arguments: Any) -> Any:
        """Run a core call and return its result after the commit.

        Refuses  0213 (HTTP 503) a call that has not begun within PATIENCE seconds: it is withdrawn.
                 One that has begun is waited for, since it may well be committed.
        """
        job = self._enter(function, *arguments)
        concurrent.futures.wait([job.future], self.PATIENCE)
        with self.turn:
            if not job.begun and not job.future.done():
                job.withdrawn = True
                raise NotSaved(BUSY_WRITING)
        return job.future.result()

    def _enter(self, function: Core, *arguments: Any) -> _Job:
        job = _Job(function, arguments, concurrent.futures.Future())
        job.future.set_running_or_notify_cancel()  # it cannot be canceled
        with self.closing:
            if self.closed:
                job.settle(None, NotSaved(STOPPING))
            else:
                self.queue.put(job)
        return job

    def close(self, seconds: float | None = None) -> bool:
        """Finish the submitted calls, and end the thread; return whether all were finished.

        What is not committed within `seconds` never will be, and is answered so.
        """
        with self.closing:
            self.closed = True
            self.queue.put(None)
        self.thread.join(seconds)
        if not self.thread.is_alive():
            return True
        with self.turn:  # a commit that has begun is waited for
            self.abandoned = True
        left: list[_Job | None] = [*self.batch]
        with contextlib.suppress(queue.Empty):
            while True:
                left.append(self.queue.get_nowait())
        for job in filter(None, left):
            job.settle(None, NotSaved(STOPPING))
        self.queue.put(None)
        return False

    def _run(self) -> None:
        going = True
        while going:
            batch = [self._next()]
            while len(batch) < self.BATCH and not self.queue.empty():
                batch.append(self.queue.get())
            going = None not in batch
            with self.turn:
                self.batch = [job for job in batch if job and not job.withdrawn]
                for job in self.batch:
                    job.begun = True
            if self.batch:
                self._commit(self.batch)
        database.close()

    def _next(self) -> _Job | None:
        """The next call; while the store is in trouble, a write of our own that tries it.

        Calls that keep coming, and are refused, do not keep the store from being opened anew.
        """
        while True:
            trouble = database.condition.trouble
            if trouble and trouble.lasts and time.monotonic() >= self.try_at:
                self.try_at = time.monotonic() + self.TRY_AGAIN
                database.condition.try_to_reopen()
            try:
                return self.queue.get(timeout=self.TRY_AGAIN)
            except queue.Empty:
                if trouble and not trouble.lasts:
                    tried: concurrent.futures.Future[Any] = concurrent.futures.Future()
                    return _Job(set_mark, ("tried", f"{time.time():.0f}"), tried)

    def _commit(self, jobs: list[_Job]) -> None:
        condition = database.condition
        try:
            if self.abandoned:
                raise NotSaved(STOPPING)
            if condition.trouble and condition.trouble.lasts:
                raise condition.trouble.refusal()
            database.connect(reuse_if_open=True)
            before = database.connection().total_changes
            with contextlib.ExitStack() as held, database.atomic():
                outcomes = [self._attempt(job) for job in jobs]
                held.enter_context(self.turn)  # until it is committed
                if self.abandoned:
                    raise NotSaved(STOPPING)
        except Exception as error:
            if len(jobs) > 1 and not self.abandoned:
                for job in jobs:
                    self._commit([job])
                return
            known = isinstance(error, NotSaved | StoreTrouble)
            failure = error if known else condition.suffers(error)
            if not failure:
                log.error("database: %s failed", jobs[0].function, exc_info=error)
            for job in jobs:
                job.settle(None, failure or error)
            return
        if database.connection().total_changes > before:
            condition.works()
            if lost := self._lost():
                for job in jobs:
                    job.settle(None, lost)
                return
        self.commits += 1
        for job, (result, failure) in zip(jobs, outcomes, strict=True):
            job.settle(result, failure)
        try:
            self.on_commit()
        except Exception:
            log.exception("callback after a commit failed")

    @staticmethod
    def _lost() -> StoreTrouble | None:
        """The refusal of what was committed to files that nobody finds; None if all is in place.

        A write-ahead log that somebody has deleted is folded into the store, which is opened anew.
        """
        condition: Condition = database.condition
        here, log_here = condition.files_in_place()
        if here and log_here:
            return None
        if here:
            row = database.execute_sql("PRAGMA wal_checkpoint(FULL)").fetchone()
            if row and row[0] == 0 and row[1] == row[2]:
                log.error("store: its write-ahead log was deleted; all was folded in")
                condition.on_reopen()
                return None
        return condition.begin(Trouble("gone", lasts=True), f"{condition.path} is another file")

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
        except (peewee.DatabaseError, sqlite3.DatabaseError):
            raise
        except Exception as error:
            log.exception("%s failed", job.function)
            return None, error
