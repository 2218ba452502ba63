"""Ask the archive: judge storage commitments, look for images."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from minris import log
from minris.access.context import Context, archive_of
from minris.config.ini import Device
from minris.delivery.receivers import Lane, Rounds
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
    due_commitments,
    due_request,
    due_result,
    follow_requests,
    follow_results,
    open_references,
    pass_request_on,
    record_evidence,
    request_state,
    written_references,
)
from minris.images.references import Evidence, Reference, notified_instances
from minris.outbox import REQUEST_LANE, RESULT_LANE, RETRY_AFTER
from minris.standard.status import Refusal
from minris.upper_layer.caller import DeliveryError


class Reached(NamedTuple):
    """How an archive has answered of late.

    problem  of the last request, empty if it answered
    since    of the first request of a row that went the same way
    at       of the last request; all times in seconds since 1970, 0.0 for none
    """

    archive: str = ""
    problem: str = ""
    since: float = 0.0
    at: float = 0.0


class ArchiveLine:
    """Remembers how the archive answers, whoever asks it, and logs when that changes."""

    def __init__(self) -> None:
        self.reached = Reached()

    def of(self, archive: Device | None) -> Reached:
        """Return what is known of an archive: nothing of another one, or of another address."""
        return self.reached if self.reached.archive == self._known_by(archive) else Reached()

    @staticmethod
    def _known_by(archive: Device | None) -> str:
        return f"{archive.ae_title} {archive.host}:{archive.port}" if archive else ""

    async def watched(self, archive: Device | None, asking: Awaitable[Any]) -> Any:
        """Return the archive's answer and remember how it went. Raises DeliveryError."""
        try:
            answer = await asking
        except DeliveryError as error:
            self._note(archive, str(error))
            raise
        self._note(archive, "")
        return answer

    def _note(self, archive: Device | None, problem: str) -> None:
        before, now, name = self.of(archive), time.time(), archive.ae_title if archive else ""
        same = before.at and bool(before.problem) == bool(problem)
        since = before.since if same else now
        self.reached = Reached(self._known_by(archive), problem, since, now)
        if problem and problem != before.problem:
            log.warning("archive %s: %s", name, problem)
        elif before.problem and not problem:
            log.info("archive %s answers again", name)


class CommitmentDesk(Rounds):
    """Judges storage commitment requests, AT_ONCE at a time.

    ask  coroutine function (archive, references) returning Evidence; raises DeliveryError
    how  as for Rounds
    """

    NAME = "storage commitment"
    AT_ONCE = 4

    def __init__(self, ask: Callable[..., Any], *how: Callable[..., Any]) -> None:
        super().__init__(*how)
        self.ask, self.line = ask, ArchiveLine()

    async def work(self, wait: bool = False) -> None:
        """Start what is due, as far as there is room; with `wait`, until it has ended."""
        busy = set(self.tasks)  # what ends meanwhile is no longer due
        for commitment in await self.read(due_commitments, self.context()):
            if commitment.id not in self.tasks.keys() | busy and len(self.tasks) < self.AT_ONCE:
                self.start(commitment.id, self._guarded(commitment))
        if wait and self.tasks:
            await asyncio.wait(list(self.tasks.values()))

    async def _guarded(self, commitment: Any) -> None:
        try:
            await self._judge(commitment)
        except Exception:
            log.exception("commitment %s failed", commitment.transaction_uid)
            await asyncio.sleep(RETRY_AFTER[0])
        self.on_change()

    def lanes(self, send: Callable[..., Any]) -> dict[str, Lane]:
        """Return its outbox lanes: results for requesters, requests for the archive."""

        async def ask(*message: Any) -> None:
            await self.line.watched(archive_of(self.context()), send(*message))

        return {
            RESULT_LANE: Lane(send, due_result, 1, follow_results),
            REQUEST_LANE: Lane(ask, due_request, 1, follow_requests),
        }

    async def _judge(self, commitment: Any) -> None:
        ctx = self.context()
        references = await self.read(open_references, commitment.id)
        archive, found, problem = archive_of(ctx), {}, ""
        places: dict[str, tuple[str, ...]] = {}
        absent: set[str] = set()  # the archive says it does not have them
        unseen = {one.sop_instance_uid for one in references}  # no evidence either way
        unchecked: frozenset[str] = frozenset()
        waiting: set[str] = set()  # the archive may still report on them
        for kind in ctx.config.commitment.evidence:
            open_ = [one for one in references
                     if one.sop_instance_uid not in found.keys() | absent]  # fmt: skip
            try:
                evidence = await self._evidence(kind, commitment, archive, open_)
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
        if problem or waiting:  # the unseen may be where we could not look
            kept = frozenset(absent - found.keys() - waiting)  # the archive says so
            evidence = Evidence(found, kept, problem=problem, places=places)
        await self.write(record_evidence, ctx, commitment.id, evidence)

    async def _evidence(
        self, kind: str, commitment: Any, archive: Device | None, references: list[Reference]
    ) -> Evidence:
        """Return what one kind of evidence says of some instances. Raises DeliveryError."""
        uids = frozenset(one.sop_instance_uid for one in references)
        if not archive or not references:
            return Evidence({}, unchecked=uids)
        if kind == "availability":
            known = await self.read(notified_instances, references, archive.ae_title)
            found = {uid: (sop_class, archive.ae_title) for uid, sop_class in known.items()}
            return Evidence(found, uids - found.keys())
        if kind == "archive":
            return await self.line.watched(archive, self.ask(archive, references))
        ctx = self.context()
        waits, problem = await self.read(request_state, ctx, commitment.id, archive.ae_title)
        if not waits:
            data = await self.read(written_references, references)
            await self.write(pass_request_on, ctx, commitment.id, archive.ae_title, data)
        if problem:
            raise DeliveryError(problem)
        return Evidence({})


class ArchiveWatch(Rounds):
    """Watches which images have arrived: of ended exams, and of exams without MPPS.

    ask    coroutine function (archive, references) returning Evidence; raises DeliveryError
    count  coroutine function (archive, studies) returning image counts; raises DeliveryError
    how    as for Rounds
    """

    NAME, PAUSE, CALM = "archive watch", 30.0, 1.0
    AGAIN = 60.0  # unit: seconds; from a failure to the next look

    def __init__(
        self, ask: Callable[..., Any], count: Callable[..., Any], *how: Callable[..., Any]
    ) -> None:
        super().__init__(*how)
        self.ask, self.count, self.line = ask, count, ArchiveLine()
        self.look_at = self.long_look_at = 0.0  # on the loop's clock

    async def work(self, wait: bool = True) -> None:
        """Query the archive if it is time, then update exams and workitems.

        wait  for the archive's answer; else only start the query
        """
        ctx, loop = self.context(), asyncio.get_running_loop()
        minutes, archive = ctx.config.commitment.look_minutes, archive_of(ctx)
        if minutes and archive and archive.host and loop.time() >= self.look_at and not self.tasks:
            self.look_at = loop.time() + minutes * 60
            self.start("look", self._look(ctx, archive))
        if wait and self.tasks:
            await asyncio.wait(list(self.tasks.values()))
        if await self.read(quiet_studies, ctx):
            await self.write(end_quiet_exams, ctx)
        for uid in await self.read(ready_workitems):
            try:
                await self.write(make_ready, ctx, uid)
            except Refusal as refusal:
                log.warning("cannot make workitem %s ready: %s", uid, refusal.reason)
            else:
                self.on_change()

    async def _look(self, ctx: Context, archive: Device) -> None:
        try:
            await self.line.watched(archive, self.look(ctx, archive))
        except DeliveryError:  # the line has logged it
            self.look_at = min(self.look_at, asyncio.get_running_loop().time() + self.AGAIN)
        except Exception:
            log.exception("archive check failed")
        finally:
            self.on_change()

    async def look(self, ctx: Context, archive: Device) -> None:
        """Ask the archive for missing images, or only whether it answers. Raises DeliveryError."""
        now, hours = asyncio.get_running_loop().time(), 2
        if now >= self.long_look_at:  # for older ones, once an hour
            self.long_look_at, hours = now + 3600, 48
        arrivals = await self.read(incomplete_arrivals, ctx, hours)
        references = [one for arrival in arrivals for one in arrival.missing]
        references += await self.read(awaited_inputs)
        studies = await self.read(unreported_studies, ctx)
        if references or not studies:
            found = await self.ask(archive, references)
            if references:
                await self.write(record_found, ctx, archive.ae_title, found)
        if studies:
            counts = await self.count(archive, studies)
            await self.write(note_images, ctx, counts, "archive")
