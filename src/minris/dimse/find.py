"""Answer C-FIND, from the cache or slice by slice (PS3.4 C.4.1)."""

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from minris.access.context import Context
from minris.access.devices import AccessRules, style_of
from minris.config.ini import Device
from minris.dataset.elements import ElementIndex, encode_element
from minris.dataset.search import Search, to_syntax
from minris.dataset.text import SPECIFIC_CHARACTER_SET, UTF_8, character_set
from minris.dimse.encoding import answered_status, decode_request, response_command
from minris.dimse.services import SEARCHED
from minris.orders.trace import QueryLog
from minris.orders.worklist import WorklistView, find_worklist
from minris.recent import Recent
from minris.standard.attributes import AttributeTable
from minris.standard.status import Refusal, Status
from minris.standard.ups import TIMEZONE_OFFSET
from minris.store.rows import SLICE, AnswerCache
from minris.store.sqlite import reading
from minris.store.writer import Core, Writer
from minris.upper_layer.association import Association
from minris.upper_layer.messages import Request


class KeptAnswers(NamedTuple):
    """A small result, valid for one commit and day."""

    commits: int
    day: str
    status: Status
    answers: list[bytes]
    keys: bytes


class Finder:
    """Answers C-FIND; a small result is cached until the next commit or the next day.

    access   returns the current AccessRules
    writer   whose commits invalidate the cache
    readers  threads that search
    """

    RECENT, LONGEST = 1 << 20, 65536  # bytes of kept answers; of an identifier that is remembered

    def __init__(
        self,
        access: Callable[[], AccessRules],
        writer: Writer,
        readers: concurrent.futures.Executor,
    ) -> None:
        self.access, self.writer, self.readers = access, writer, readers
        self.cache, self.queries = AnswerCache(), QueryLog()
        self.recent: Recent[object, KeptAnswers] = Recent(self.RECENT)
        self.recent_of = 0  # the commits of these

    async def answer(
        self, ctx: Context, association: Association, request: Request, core: Core
    ) -> None:
        """Answer a C-FIND, from the cache or slice by slice, and add it to the query log."""
        key = core, request.data, request.context.explicit, ctx.actor, self.access().version
        commits, day = self.writer.commits, f"{ctx.local_now():%Y%m%d%z}"
        if commits != self.recent_of:
            self.recent, self.recent_of = Recent(self.RECENT), commits
        kept = self.recent.get(key)
        if kept and kept.commits == commits and kept.day == day:
            await self._send_slice(association, request, kept.status, kept.answers)
            if core is find_worklist:
                self.queries.note(ctx, kept.keys, request.data, len(kept.answers), Status.SUCCESS)
            await self._end_find(association, request, Status.SUCCESS)
            return
        slices = self._slices(ctx, request, core)
        count, last, status = 0, None, Status.UNABLE_TO_PROCESS
        run = asyncio.get_running_loop().run_in_executor
        try:
            while found := await run(self.readers, self._next, slices):
                if request.cancelled:
                    status = Status.CANCEL
                    break
                last, count = found, count + len(found[1])
                if not await self._send_slice(association, request, *found):
                    return
            else:
                status = Status.SUCCESS
        except Refusal as refusal:
            status = answered_status(request, refusal.status)
            raise
        finally:
            # closed in a reader thread, where it cannot run at the same time
            self.readers.submit(slices.close)
            if request.index and core is find_worklist and not association.ours:
                self.queries.note(ctx, bytes(request.index), request.data, count, status)
        if last and count == len(last[1]) and count < SLICE and status is Status.SUCCESS:
            kept = KeptAnswers(commits, day, *last, bytes(request.index))
            size = len(request.data) + len(kept.keys) + sum(map(len, kept.answers))
            if size <= self.LONGEST:
                self.recent.keep(key, kept, 1000 + size)
        await self._end_find(association, request, status)

    async def _send_slice(
        self, association: Association, request: Request, status: Status, answers: list[bytes]
    ) -> bool:
        if not answers:
            return True
        pending = response_command(request, b"-", Status=status)
        return await association.send_answers(request.context, pending, answers)

    async def _end_find(self, association: Association, request: Request, status: Status) -> None:
        association.done[request.counted, int(status)] += 1
        final = response_command(request, None, Status=status)
        await association.send((request.context, final, None))

    @staticmethod
    def _next(slices: Iterator[tuple[Status, list[bytes]]]) -> tuple[Status, list[bytes]] | None:
        with reading():  # each reader thread has its own connection
            return next(slices, None)

    def _slices(
        self, ctx: Context, request: Request, core: Core
    ) -> Iterator[tuple[Status, list[bytes]]]:
        """Yield slices of answers, each with their status; in a reader thread."""
        rules = self.access()
        device = rules.device(ctx.actor.name)
        search = compiled(ctx, request, SEARCHED[core], device)
        zone = f"{ctx.local_now():%z}"
        key = core, request.data, search.explicit, device and device.name, rules.version, zone
        shown: tuple[Any, ...] = ()
        if core is find_worklist:
            view = WorklistView.of(ctx, device)
            shown = (view, functools.partial(self.queries.show, ctx))
        cache = self.cache if len(request.data or b"") <= self.LONGEST else None
        for answers in core(ctx, search, cache, key, *shown):
            yield search.status, answers


def compiled(
    ctx: Context, request: Request, table: AttributeTable, device: Device | None
) -> Search:
    """Return the search for the identifier of a C-FIND. Refuses A900."""
    if not request.data:
        raise Refusal(Status.IDENTIFIER_DOES_NOT_MATCH, "There is no identifier")
    try:
        decode_request(ctx, request, device)
    except Refusal as refusal:
        raise Refusal(Status.IDENTIFIER_DOES_NOT_MATCH, refusal.detail) from None
    explicit, index = request.context.explicit, request.index
    # the device's set, else the request's if we know it, else ours
    sets = device and device.character_set, request.asked, ctx.config.dicom.character_set
    style = style_of(device, next(filter(None, map(character_set, filter(None, sets))), UTF_8))
    if request.asked is not None:
        asked = ElementIndex(encode_element(SPECIFIC_CHARACTER_SET, b"CS", b""))
        index = asked.merged(index)
    zone = encode_element(TIMEZONE_OFFSET, b"SH", f"{ctx.local_now():%z}".encode()[:5])
    extra = {TIMEZONE_OFFSET: to_syntax(zone, explicit)}
    return Search(index, table, explicit, style._replace(zone=ctx.config.zone), extra)
