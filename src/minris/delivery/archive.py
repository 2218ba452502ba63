"""The archive asked: commitments judged and told, images looked for."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

from minris import log
from minris.access.context import Context, archive_of
from minris.config.ini import Device
from minris.delivery.receivers import Rounds
from minris.images.arrivals import (
    awaited_inputs,
    end_quiet_exams,
    incomplete_arrivals,
    make_ready,
    note_images,
    quiet_studies,
    ready_workitems,
    unreported_studies,
)
from minris.images.availability import record_found
from minris.images.commitment import (
    commitment_result,
    due_commitments,
    is_still,
    note_not_told,
    note_relay_taken,
    note_told,
    open_references,
    open_relay,
    record_evidence,
    relay_waits,
    tell_again,
)
from minris.images.references import Evidence, Reference, notified_instances
from minris.outbox import RETRY_AFTER
from minris.standard.status import Refusal
from minris.upper_layer.caller import DeliveryError

# Storage commitment: the archive is asked, and who asked us is told.


class CommitmentDesk(Rounds):
    """Has requests for storage commitment judged, and their results told; a few at once.

    ask      coroutine function (archive, references) giving Evidence; raises DeliveryError
    pass_on  coroutine function (archive, Transaction UID, references): asks the archive for its own
             commitment; raises DeliveryError
    tell     coroutine function (commitment, result); raises DeliveryError
    read     runs a function in a reader's thread; `write` runs a core function in the store thread
    """

    NAME = "storage commitment"
    AT_ONCE = 4  # that are judged
    TOLD_AT_ONCE = 32  # each to another requester

    def __init__(
        self,
        context: Callable[[], Context],
        ask: Callable[..., Any],
        pass_on: Callable[..., Any],
        tell: Callable[..., Any],
        read: Callable[..., Any],
        write: Callable[..., Any],
    ) -> None:
        super().__init__()
        self.context, self.read, self.write = context, read, write
        self.ask, self.pass_on, self.tell = ask, pass_on, tell
        self.busy: dict[int | str, asyncio.Task] = {}  # by id, and by who is told
        self.failing: dict[str, float] = {}  # requesters not reached, and when one last called
        self.archive_problem, self.archive_at = "", 0.0  # of the last time that it was asked

    def heard_from(self, ae_title: str) -> None:
        """An AE has called: if it could not be told, it is tried now, at most twice a minute."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self.failing.get(ae_title, math.inf) and ae_title not in self.busy:
            self.failing[ae_title] = loop.time() + 30
            self.busy[ae_title] = loop.create_task(self._try_now(ae_title))

    async def _try_now(self, ae_title: str) -> None:
        try:
            await self.write(tell_again, ae_title)
        except Exception as error:  # a full disk: it is tried later
            log.warning("commitments of %s: %s", ae_title, error)
        finally:
            del self.busy[ae_title]
            self.wake()

    async def work(self, wait: bool = False) -> None:
        """Begin what is due, as far as there is room; with `wait`, until it has ended."""
        for commitment in await self.read(due_commitments, self.context(), "judged"):
            if sum(isinstance(key, str) for key in self.busy) < self.TOLD_AT_ONCE:
                self._start(commitment.requester, self._tell, commitment)
        for commitment in await self.read(due_commitments, self.context(), "asked"):
            if sum(isinstance(key, int) for key in self.busy) < self.AT_ONCE:
                self._start(commitment.id, self._judge, commitment)
        if wait and self.busy:
            await asyncio.wait(list(self.busy.values()))

    def _start(self, key: int | str, step: Callable[..., Any], commitment: Any) -> None:
        if key not in self.busy:
            task = asyncio.get_running_loop().create_task(self._guarded(key, step, commitment))
            self.busy[key] = task

    async def _guarded(self, key: int | str, step: Callable[..., Any], commitment: Any) -> None:
        try:
            if await self.read(is_still, commitment):  # it may have been read long before
                await step(commitment)
        except Exception:
            log.exception("commitment %s failed", commitment.transaction_uid)
            await asyncio.sleep(RETRY_AFTER[0])
        finally:
            del self.busy[key]
            self.wake()

    async def _judge(self, commitment: Any) -> None:
        ctx = self.context()
        references = await self.read(open_references, commitment.id)
        archive, found, problem = archive_of(ctx), {}, ""
        places: dict[str, tuple[str, ...]] = {}
        absent: set[str] = set()  # the archive itself says that it does not have them
        unseen = {one.sop_instance_uid for one in references}  # nothing was said of them
        unchecked: frozenset[str] = frozenset()
        waiting: set[str] = set()  # the archive may still report on them
        for kind in ctx.config.commitment.evidence:
            open_ = [one for one in references
                     if one.sop_instance_uid not in found.keys() | absent]  # fmt: skip
            try:
                evidence = await self._evidence(ctx, kind, commitment, archive, open_)
            except DeliveryError as error:
                problem = str(error)
                log.warning("commitment %s: %s", commitment.transaction_uid, error)
                continue
            if kind == "commitment":
                waiting = {one.sop_instance_uid for one in open_}
            found |= evidence.found
            places |= evidence.places
            unchecked |= evidence.unchecked
            unseen &= evidence.missing
            absent |= evidence.missing if kind == "archive" else set()
        missing = (absent | unseen) - unchecked - found.keys()
        evidence = Evidence(found, frozenset(missing), unchecked - found.keys(), places=places)
        if problem or waiting:  # what was not seen may be where nobody could look
            kept = frozenset(absent - found.keys() - waiting)  # the archive has said so itself
            evidence = Evidence(found, kept, problem=problem, places=places)
        await self.write(record_evidence, ctx, commitment.id, evidence)

    async def _evidence(
        self,
        ctx: Context,
        kind: str,
        commitment: Any,
        archive: Device | None,
        references: list[Reference],
    ) -> Evidence:
        """What one kind of evidence says of some instances. Raises DeliveryError"""
        uids = frozenset(one.sop_instance_uid for one in references)
        if not archive or not references:
            return Evidence({}, unchecked=uids)
        if kind == "availability":
            known = await self.read(notified_instances, references, archive.ae_title)
            found = {uid: (sop_class, archive.ae_title) for uid, sop_class in known.items()}
            return Evidence(found, uids - found.keys())
        if kind == "commitment" and await self.read(relay_waits, ctx, commitment.id):
            return Evidence({})
        try:
            evidence = await self._ask(ctx, kind, commitment, archive, references)
        except DeliveryError as error:
            self.archive_problem, self.archive_at = str(error), time.time()
            raise
        self.archive_problem, self.archive_at = "", time.time()
        return evidence

    async def _ask(
        self,
        ctx: Context,
        kind: str,
        commitment: Any,
        archive: Device,
        references: list[Reference],
    ) -> Evidence:
        if kind == "archive":
            return await self.ask(archive, references)
        # kept before it is sent: the report may come at once
        uid = await self.write(open_relay, ctx, commitment.id, archive.ae_title)
        if uid:
            await self.pass_on(archive, uid, references)
            await self.write(note_relay_taken, ctx, uid)
        return Evidence({})

    async def _tell(self, commitment: Any) -> None:
        result = await self.read(commitment_result, commitment)
        try:
            await self.tell(commitment, result)
        except DeliveryError as error:
            self.failing.setdefault(commitment.requester, 0.0)
            await self.write(note_not_told, self.context(), commitment.id, str(error))
        else:
            self.failing.pop(commitment.requester, None)
            await self.write(note_told, self.context(), commitment.id)

    async def close(self) -> None:
        """Leave what is being done where it is: it is done after the next start."""
        for task in list(self.busy.values()):
            task.cancel()
        await asyncio.gather(*self.busy.values(), return_exceptions=True)


class ArchiveWatch(Rounds):
    """Sees what has come to the archive: images of exams that have ended, and of unreported ones.

    ask    coroutine function (archive, references) giving Evidence; raises DeliveryError
    count  coroutine function (archive, studies) giving their numbers of images; likewise
    read   runs a function in a reader's thread; `write` runs a core function in the store thread
    """

    NAME, PAUSE, CALM = "the watch over the archive", 30.0, 1.0

    def __init__(
        self,
        context: Callable[[], Context],
        ask: Callable[..., Any],
        count: Callable[..., Any],
        read: Callable[..., Any],
        write: Callable[..., Any],
    ) -> None:
        super().__init__()
        self.context, self.read, self.write = context, read, write
        self.ask, self.count = ask, count
        self.on_change: Callable[[], None] = lambda: None  # somebody may be to be told
        self.look_at = self.long_look_at = 0.0  # on the loop's clock
        self.looking: asyncio.Task | None = None

    async def work(self, wait: bool = True) -> None:
        """Look once: in the archive if it is time, then at what follows in the store.

        wait  until the archive has answered; else others do not wait for it
        """
        ctx, loop = self.context(), asyncio.get_running_loop()
        minutes, archive = ctx.config.commitment.look_minutes, archive_of(ctx)
        if (
            minutes
            and archive
            and archive.host
            and loop.time() >= self.look_at
            and not self.looking
        ):
            self.look_at = loop.time() + minutes * 60
            self.looking = loop.create_task(self._look(ctx, archive))
        if wait and self.looking:
            await self.looking
        if await self.read(quiet_studies, ctx):
            await self.write(end_quiet_exams, ctx)
        for uid in await self.read(ready_workitems):
            try:
                await self.write(make_ready, ctx, uid)
            except Refusal as refusal:
                log.warning("workitem %s cannot be made ready: %s", uid, refusal)
            else:
                self.on_change()

    async def _look(self, ctx: Context, archive: Device) -> None:
        try:
            await self.look(ctx, archive)
        except DeliveryError as error:
            log.warning("archive %s: %s", archive.ae_title, error)
        except Exception:
            log.exception("the look into the archive failed")
        finally:
            self.looking = None
            self.on_change()
            self.wake()

    async def close(self) -> None:
        """Look no longer."""
        if self.looking:
            self.looking.cancel()
            await asyncio.gather(self.looking, return_exceptions=True)

    async def look(self, ctx: Context, archive: Device) -> None:
        """Ask the archive for what has not come yet. Raises DeliveryError"""
        now, hours = asyncio.get_running_loop().time(), 2
        if now >= self.long_look_at:  # for what has not come for long, it is asked each hour
            self.long_look_at, hours = now + 3600, 48
        arrivals = await self.read(incomplete_arrivals, ctx, hours)
        references = [one for arrival in arrivals for one in arrival.missing]
        references += await self.read(awaited_inputs)
        if references:
            found = await self.ask(archive, references)
            await self.write(record_found, ctx, archive.ae_title, found)
        if studies := await self.read(unreported_studies, ctx):
            counts = await self.count(archive, studies)
            await self.write(note_images, ctx, counts, "archive")
