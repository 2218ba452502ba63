"""Door 1: the messages of associations, answered."""

import asyncio
import collections
import concurrent.futures
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from minris import log
from minris.access.context import Actor, Context
from minris.access.devices import AccessRules, style_of, written_for
from minris.config.ini import Device
from minris.dataset.elements import ElementIndex, Malformed, TooManyElements, encode_element
from minris.dataset.recode import Limits, Recoded, recode_noting
from minris.dataset.search import Search, to_syntax
from minris.dataset.text import ASCII, SPECIFIC_CHARACTER_SET, CharacterSet, character_set
from minris.dimse.services import ACTIONS, SEARCHED, SERVICES, WATCHED_CLASSES, Service
from minris.orders.trace import QueryLog
from minris.orders.worklist import WorklistView, find_worklist
from minris.standard.attributes import AttributeTable
from minris.standard.dictionary import attribute_name
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.uids import UPS_CLASSES
from minris.standard.ups import TRANSACTION_UID
from minris.store.rows import SLICE, AnswerCache
from minris.store.sqlite import reading
from minris.store.writer import Core, Writer
from minris.upper_layer.association import Association
from minris.upper_layer.messages import Request
from minris.upper_layer.pdus import NO_DATA_SET, encode_command


class KeptAnswers(NamedTuple):
    """A small result as it was at a commit, on a day."""

    commits: int
    day: str
    status: Status
    answers: list[bytes]
    keys: bytes


def error_comment(refusal: Refusal) -> str:
    """Error Comment (0000,0902): printable ASCII, at most 64 characters, a tag for its name."""
    words = refusal.detail
    if refusal.problems and words == str(refusal.problems[0]) and refusal.problems[0].tag:
        tag, words = refusal.problems[0]
        words = f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {words}"
    return re.sub(r"[^ -\[\]-~]", "?", words)[:64]


class Dimse:
    """Door 1: answers the messages of associations.

    context  gives a Context for an Actor
    access   gives the AccessRules of the moment
    writer   the store's one writer
    readers  threads that search
    """

    RECENT = 128

    def __init__(
        self,
        context: Callable[[Actor], Context],
        access: Callable[[], AccessRules],
        writer: Writer,
        readers: concurrent.futures.Executor,
    ) -> None:
        self.context, self.access = context, access
        self.writer, self.readers = writer, readers
        self.cache = AnswerCache()
        self.recent: collections.OrderedDict[object, KeptAnswers] = collections.OrderedDict()
        self.queries = QueryLog()
        self.counts: collections.Counter[str] = collections.Counter()
        self.on_events: Callable[[], None] = lambda: None
        self.on_caller: Callable[[str], None] = lambda ae_title: None
        self.services = {(s.sop_class, s.operation): s for s in SERVICES}
        self.classes = {s.sop_class for s in SERVICES}

    async def dispatch(self, association: Association, request: Request) -> None:
        """Answer one message; every failure is a status, never silence."""
        peer = association.peer
        actor = Actor(peer.calling, association.address, called=peer.called)
        ctx = self.context(actor)
        self.counts[request.operation] += 1
        self.on_caller(actor.name)
        changed = False
        try:
            service = self._service(request)
            if request.too_large:
                find = request.operation == "C-FIND"
                status = Status.OUT_OF_RESOURCES if find else Status.RESOURCE_LIMITATION
                raise Refusal(status, "The data set is larger than this system takes")
            if service.access == "find":
                await self._find(ctx, association, request, service.core)
                return
            fields, data = await self._call(ctx, service, request)
            changed = service.access == "write" and service.sop_class in WATCHED_CLASSES
        except Refusal as refusal:
            fields, data = self._refused(request, refusal)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception:
            log.exception("%s from %s failed", request.operation, association)
            fields, data = self._refused(
                request, Refusal(Status.PROCESSING_FAILURE, "Internal error, see the log")
            )
        association.done[request.operation, int(fields.get("Status", 0))] += 1
        await association.send((request.context, self._response(request, data, **fields), data))
        if changed:  # once it is answered
            self.on_events()

    def _service(self, request: Request) -> Service:
        """What a message calls. Refuses 0118, 0211, 0123 (PS3.7 10.1; PS3.4 CC.3.1.1)."""
        command, syntax = request.command, request.context.abstract_syntax
        named = command.get("AffectedSOPClassUID") or command.get("RequestedSOPClassUID")
        c_service = request.operation.startswith("C-")
        # PS3.4 CC.3.1.1: the Push UID in any of them; C-FIND names the class of its context
        any_ups = syntax in UPS_CLASSES and named in UPS_CLASSES and not c_service
        if named != syntax and not any_ups:  # PS3.7 9.1: for C-services it is 0122
            raise Refusal(
                Status.SOP_CLASS_NOT_SUPPORTED if c_service else Status.NO_SUCH_SOP_CLASS,
                f"{named or 'nothing'} is not the SOP class of its context",
            )
        service = self.services.get((syntax, request.operation))
        if service and (actions := ACTIONS.get(service.core)):
            kind = command.get("ActionTypeID", 0)
            if kind not in actions:
                raise Refusal(Status.NO_SUCH_ACTION, f"There is no action type {kind}")
            if syntax not in actions[kind][1]:
                service = None
        if not service:
            raise Refusal(
                Status.UNRECOGNIZED_OPERATION,
                f"{request.operation} is not part of this SOP class",
            )
        return service

    async def _call(
        self, ctx: Context, service: Service, request: Request
    ) -> tuple[dict[str, Any], bytes | None]:
        if not service.core:
            return {"Status": Status.SUCCESS}, None
        if len(request.data or b"") > 65536:
            await asyncio.get_running_loop().run_in_executor(
                self.readers, self.decode, ctx, request
            )
        if service.access == "read":
            run = asyncio.get_running_loop().run_in_executor
            result = await run(self.readers, self._read, service, request)
        else:
            future = self.writer.submit(self._run, ctx, service, request)
            result = await asyncio.wrap_future(future)
        fields = {"Status": Status.SUCCESS, **service.answer(result)}
        data = fields.pop("data", None)
        device = self.access().device(ctx.actor.name)
        return fields, written_for(device, data, request.context.explicit) if data else None

    @staticmethod
    def _read(service: Service, request: Request) -> Any:
        with reading():
            return service.core(*service.read(request))

    def _run(self, ctx: Context, service: Service, request: Request) -> Any:
        if request.index is None:
            self.decode(ctx, request)
        return service.core(ctx, *service.read(request))

    def decode(self, ctx: Context, request: Request) -> None:
        """Read a request's data set into the stored form. Refuses 0110 for one that is none."""
        limits = ctx.config.dicom
        device = self.access().device(ctx.actor.name)
        charset = character_set(device.character_set) if device else ASCII
        try:
            recoded = recode_noting(
                request.data or b"",
                request.context.explicit,
                charset,
                Limits(limits.maximum_nesting, limits.maximum_elements),
            )
        except Malformed as error:
            many = isinstance(error, TooManyElements)
            status = Status.RESOURCE_LIMITATION if many else Status.PROCESSING_FAILURE
            raise Refusal(status, f"The data set cannot be read: {error}") from None
        if recoded.recovered or recoded.damaged:
            self._note_texts(ctx, request, recoded)
        request.asked = recoded.asked
        request.index = ElementIndex(recoded.data)

    @staticmethod
    def _note_texts(ctx: Context, request: Request, recoded: Recoded) -> None:
        """Log texts that contradict their set. Refuses 0106 where keeping them would harm.

        A set that is not known, and bytes that are not UTF-8: what an N-service stored would be
        wrong for good (PS3.5 6.1.2.3). A query is answered as far as it is understood.
        """
        words = ", ".join(map(attribute_name, (*recoded.recovered, *recoded.damaged)))
        how = "guessed at" if recoded.damaged else "recovered"
        log.warning("%s from %s: %s, %s", request.operation, ctx.actor, words, how)
        unknown = recoded.asked and character_set(recoded.asked) is None
        if recoded.damaged and unknown and request.operation != "C-FIND":
            words = Message("is in a character set that is not known here")
            problems = [Problem(SPECIFIC_CHARACTER_SET, words)]
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
        if request.operation != "C-FIND":
            request.raw = request.data

    def _refused(self, request: Request, refusal: Refusal) -> tuple[dict[str, Any], bytes | None]:
        """The fields of a failure, and the attributes to blame where the status has them."""
        fields: dict[str, Any] = {
            "Status": refusal.status,
            "ErrorComment": error_comment(refusal),
            "ErrorID": refusal.error_id,
        }
        data = None
        if request.operation == "C-FIND":
            fields["OffendingElement"] = refusal.tags or None
        elif refusal.status in (Status.NO_SUCH_ATTRIBUTE, Status.MISSING_ATTRIBUTE):
            fields["AttributeIdentifierList"] = refusal.tags or None
        elif request.index and refusal.status in (
            Status.INVALID_ATTRIBUTE_VALUE,
            Status.MISSING_ATTRIBUTE_VALUE,
        ):
            tags = (tag for tag in refusal.tags if tag != TRANSACTION_UID)  # told to nobody
            data = to_syntax(bytes(request.index.only(tags)), request.context.explicit) or None
        return fields, data

    @staticmethod
    def _response(request: Request, data: bytes | None, **fields: Any) -> bytes:
        """The command set of a response (PS3.7 9.3, 10.3)."""
        command = request.command
        if request.operation == "N-ACTION":
            fields.setdefault("ActionTypeID", command.get("ActionTypeID"))
        if request.operation == "N-EVENT-REPORT":
            fields.setdefault("EventTypeID", command.get("EventTypeID"))
        uid = command.get("AffectedSOPInstanceUID") or command.get("RequestedSOPInstanceUID")
        if request.operation.startswith("N-"):
            fields.setdefault("AffectedSOPInstanceUID", uid or None)
        return encode_command(
            AffectedSOPClassUID=command.get("AffectedSOPClassUID")
            or command.get("RequestedSOPClassUID"),
            CommandField=command["CommandField"] | 0x8000,
            MessageIDBeingRespondedTo=request.message_id,
            CommandDataSetType=1 if data else NO_DATA_SET,
            **fields,
        )

    async def _find(
        self, ctx: Context, association: Association, request: Request, core: Core
    ) -> None:
        """Answer a C-FIND, from what was kept or slice by slice, and note it in the query log."""
        key = core, request.data, request.context.explicit, ctx.actor, self.access().version
        commits, day = self.writer.commits, f"{ctx.local_now():%Y%m%d%z}"
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
            status = refusal.status
            raise
        finally:
            # closed in a reader's thread, where it never runs at the same time
            self.readers.submit(slices.close)
            if request.index and core is find_worklist:
                self.queries.note(ctx, bytes(request.index), request.data, count, status)
        if last and count == len(last[1]) and count < SLICE and status is Status.SUCCESS:
            self._remember(key, KeptAnswers(commits, day, *last, bytes(request.index)))
        await self._end_find(association, request, status)

    async def _send_slice(
        self, association: Association, request: Request, status: Status, answers: list[bytes]
    ) -> bool:
        if not answers:
            return True
        pending = self._response(request, b"-", Status=status)
        return await association.send_answers(request.context, pending, answers)

    async def _end_find(self, association: Association, request: Request, status: Status) -> None:
        association.done[request.operation, int(status)] += 1
        final = self._response(request, None, Status=status)
        await association.send((request.context, final, None))

    def _remember(self, key: object, found: "KeptAnswers") -> None:
        """Keep a small result whole: it holds until the next commit, or the next day."""
        self.recent[key] = found
        self.recent.move_to_end(key)
        if len(self.recent) > self.RECENT:
            self.recent.popitem(last=False)

    @staticmethod
    def _next(
        slices: Iterator[tuple[Status, list[bytes]]],
    ) -> tuple[Status, list[bytes]] | None:
        with reading():  # any of the threads may come next, each has its own connection
            return next(slices, None)

    def _slices(
        self, ctx: Context, request: Request, core: Core
    ) -> Iterator[tuple[Status, list[bytes]]]:
        """The status of all answers with each slice of them; in a reader's thread."""
        rules = self.access()
        device = rules.device(ctx.actor.name)
        search = self.search(ctx, request, SEARCHED[core])
        zone = f"{ctx.local_now():%z}"
        key = core, request.data, search.explicit, device and device.name, rules.version, zone
        shown: tuple[Any, ...] = ()
        if core is find_worklist:
            view = WorklistView.of(ctx, device)
            shown = (view, functools.partial(self.queries.show, ctx))
        for answers in core(ctx, search, self.cache, key, *shown):
            yield search.status, answers

    def search(self, ctx: Context, request: Request, table: AttributeTable) -> Search:
        """Compile the identifier of a C-FIND. Refuses A900."""
        device = self.access().device(ctx.actor.name)
        if not request.data:
            raise Refusal(Status.IDENTIFIER_DOES_NOT_MATCH, "There is no identifier")
        try:
            self.decode(ctx, request)
        except Refusal as refusal:
            raise Refusal(Status.IDENTIFIER_DOES_NOT_MATCH, refusal.detail) from None
        explicit, index = request.context.explicit, request.index
        style = style_of(device, self._answer_set(ctx, device, request.asked))
        if request.asked is not None:
            asked = ElementIndex(encode_element(SPECIFIC_CHARACTER_SET, b"CS", b""))
            index = asked.merged(index)
        extra = {0x00080201: self._timezone(ctx, explicit)}
        return Search(index, table, explicit, style._replace(zone=ctx.config.zone), extra)

    @staticmethod
    def _answer_set(
        ctx: Context, device: Device | None, asked: tuple[str, ...] | None
    ) -> CharacterSet:
        """The set of an answer: the device's, else the request's, else the default (UTF-8)."""
        if device and device.character_set:
            return character_set(device.character_set)
        if asked and (known := character_set(asked)):
            return known
        return character_set(ctx.config.dicom.character_set or ("ISO_IR 192",))

    @staticmethod
    def _timezone(ctx: Context, explicit: bool) -> bytes:
        value = f"{ctx.local_now():%z}".encode()[:5]
        return to_syntax(encode_element(0x00080201, b"SH", value), explicit)
