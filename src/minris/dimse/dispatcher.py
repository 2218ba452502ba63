"""Door 1: answer the messages of associations."""

import asyncio
import collections
import concurrent.futures
from collections.abc import Callable
from typing import Any

from minris import log
from minris.access.context import Actor, Context
from minris.access.devices import AccessRules, written_for
from minris.config.ini import Device
from minris.dimse.encoding import decode_request, refused_fields, response_command
from minris.dimse.find import Finder
from minris.dimse.services import ACTIONS, SERVICES, WATCHED_CLASSES, Service
from minris.standard.mpps import FINAL_MPPS_STATES
from minris.standard.status import Refusal, Status
from minris.standard.uids import MPPS, UPS_CLASSES
from minris.store.sqlite import reading
from minris.store.writer import Writer
from minris.upper_layer.association import Association
from minris.upper_layer.messages import Request


def exam_change(request: Request) -> int:
    """1 if a message has begun an exam, -1 if it has ended one.

    Some modalities keep one association for N-CREATE and the final N-SET, and say nothing between.
    """
    if request.context.abstract_syntax != MPPS or not request.index:
        return 0
    ended = request.index.get("PerformedProcedureStepStatus") in FINAL_MPPS_STATES
    return {("N-CREATE", False): 1, ("N-SET", True): -1}.get((request.operation, ended), 0)


class Dimse:
    """Door 1: answers the messages of associations.

    context  returns a Context for an Actor
    access   returns the current AccessRules
    writer   the store's writer
    readers  threads that search
    """

    def __init__(
        self,
        context: Callable[[Actor], Context],
        access: Callable[[], AccessRules],
        writer: Writer,
        readers: concurrent.futures.Executor,
    ) -> None:
        self.context, self.access = context, access
        self.writer, self.readers = writer, readers
        self.finder = Finder(access, writer, readers)
        self.queries = self.finder.queries
        self.counts: collections.Counter[str] = collections.Counter()
        self.on_events: Callable[[], None] = lambda: None
        self.on_caller: Callable[[str], None] = lambda ae_title: None
        self.services = {(s.sop_class, s.operation): s for s in SERVICES}

    async def dispatch(self, association: Association, request: Request) -> None:
        """Answer one message; every failure is answered with a status."""
        peer = association.peer
        actor = Actor(peer.calling, association.address, called=peer.called)
        ctx = self.context(actor)
        if not association.ours:
            self.counts[request.counted] += 1
            self.on_caller(actor.name)
        changed = False
        try:
            service = self._service(request)
            if request.too_large:
                words = "The data set is larger than this system accepts"
                raise Refusal(Status.RESOURCE_LIMITATION, words)
            if service.access == "find":
                await self.finder.answer(ctx, association, request, service.core)
                return
            fields, data = await self._call(ctx, service, request)
            if change := exam_change(request):
                association.exams = max(association.exams + change, 0)
            changed = service.access == "write" and service.sop_class in WATCHED_CLASSES
        except Refusal as refusal:
            fields, data = refused_fields(request, refusal)
        except Exception:
            log.exception("%s from %s failed", request.operation, association)
            refusal = Refusal(Status.PROCESSING_FAILURE, "Internal error, see the log")
            fields, data = refused_fields(request, refusal)
        association.done[request.counted, int(fields.get("Status", 0))] += 1
        await association.send((request.context, response_command(request, data, **fields), data))
        if changed:  # after the answer
            self.on_events()

    def _service(self, request: Request) -> Service:
        """Return the service of a message. Refuses 0118, 0122, 0211, 0123 (PS3.7 10.1)."""
        command, syntax = request.command, request.context.abstract_syntax
        named = command.get("AffectedSOPClassUID") or command.get("RequestedSOPClassUID")
        c_service = request.operation.startswith("C-")
        # PS3.4 CC.3.1.1: the Push UID in any UPS context; C-FIND names the class of its context
        any_ups = syntax in UPS_CLASSES and named in UPS_CLASSES and not c_service
        if named != syntax and not any_ups:  # PS3.7 9.1: 0122 for C-services
            raise Refusal(
                Status.SOP_CLASS_NOT_SUPPORTED if c_service else Status.NO_SUCH_SOP_CLASS,
                f"{named or 'nothing'} is not the SOP class of its context",
            )
        service = self.services.get((syntax, request.operation))
        if service and (actions := ACTIONS.get(service.core)):
            if request.number not in actions:
                raise Refusal(Status.NO_SUCH_ACTION, f"There is no action type {request.number}")
            if syntax not in actions[request.number][1]:
                service = None
        if not service:
            raise Refusal(
                Status.UNRECOGNIZED_OPERATION, f"{request.operation} is not part of this SOP class"
            )
        return service

    async def _call(
        self, ctx: Context, service: Service, request: Request
    ) -> tuple[dict[str, Any], bytes | None]:
        if not service.core:
            return {"Status": Status.SUCCESS}, None
        run = asyncio.get_running_loop().run_in_executor
        device = self.access().device(ctx.actor.name)
        if len(request.data or b"") > 65536:
            await run(self.readers, decode_request, ctx, request, device)
        if service.access == "read":
            result = await run(self.readers, self._read, service, request)
        else:
            future = self.writer.submit(self._write, ctx, service, request, device)
            result = await asyncio.wrap_future(future)
        results = result if isinstance(result, tuple) else (result,)
        fields = {k: v for k, v in zip(service.answer, results, strict=False) if v is not None}
        fields.setdefault("Status", Status.SUCCESS)
        data = fields.pop("data", None)
        return fields, written_for(device, data, request.context.explicit) if data else None

    @staticmethod
    def _read(service: Service, request: Request) -> Any:
        with reading():
            return service.core(*service.read(request))

    @staticmethod
    def _write(ctx: Context, service: Service, request: Request, device: Device | None) -> Any:
        if request.index is None:
            decode_request(ctx, request, device)
        return service.core(ctx, *service.read(request))
