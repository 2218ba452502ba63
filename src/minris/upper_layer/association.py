"""Associations that peers open, from first byte to last (PS3.8 9.2)."""

import asyncio
import collections
import contextlib
import socket
import time
import types
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from minris import log
from minris.access.devices import AccessRules
from minris.intake import Intake
from minris.standard.status import Message
from minris.upper_layer.messages import Assembler, MessageLimits, Request
from minris.upper_layer.negotiation import Negotiated, Negotiator, Rejection, calling_ae_title
from minris.upper_layer.pdus import (
    A_ASSOCIATE_AC,
    C_CANCEL_RQ,
    N_EVENT_REPORT_RSP,
    P_DATA_TF,
    PDU_EVENTS,
    PDU_HEADER,
    PDV_HEADER,
    RELEASE_RP_PDU,
    RELEASE_RQ_PDU,
    AcceptedContext,
    ProtocolError,
    abort_pdu,
    message_pdus,
)
from minris.upper_layer.states import ASSOCIATION_STATES


class AssociationHost(Protocol):
    """What an association needs of its server."""

    limits: types.SimpleNamespace
    message_limits: MessageLimits
    intake: Intake
    loop: asyncio.AbstractEventLoop
    own: set[tuple[str, int]]
    negotiator: Negotiator
    access: Callable[[], AccessRules]
    dispatch: Callable[["Association", Request], Any]

    def enter(self, association: "Association", kind: str) -> str: ...
    def leave(self, association: "Association") -> None: ...
    def note_accepted(self, association: "Association") -> None: ...
    def note_ended(self, association: "Association") -> None: ...
    def note_rejected(self, address: str, pdu: bytes, words: str) -> None: ...
    def complain(self, address: str, words: str, *values: object) -> None: ...
    async def addresses_of(self, host: str) -> frozenset[str]: ...


class Association(asyncio.Protocol):
    """One connection of a peer, from first byte to last.

    ASSOCIATION_STATES says what a PDU or event does; methods like `_aa_8` are the actions of
    PS3.8 Tables 9-6 to 9-9.
    """

    QUEUE, QUEUED = 16, 1 << 20  # waiting messages, and their bytes, before reading pauses
    ASKED_ID = 1  # Message ID of our requests, one at a time

    def __init__(self, server: AssociationHost) -> None:
        self.server, self.limits = server, server.limits
        self.loop = server.loop
        self.state = "Sta1"
        self.buffer = bytearray()
        self.assembler = Assembler(server.message_limits, server.intake)
        self.waiting: collections.deque[Request] = collections.deque()
        self.current: Request | None = None
        self.asked: asyncio.Future[int] | None = None  # status of our request to the peer
        self.task: asyncio.Task | None = None
        self.look_up: asyncio.Task | None = None
        self.artim: asyncio.TimerHandle | None = None
        self.pdu_timer: asyncio.TimerHandle | None = None
        self.idle_timer: asyncio.TimerHandle | None = None
        self.send_timer: asyncio.TimerHandle | None = None
        self.writable = asyncio.Event()
        self.writable.set()
        self.peer: Negotiated | None = None
        self.address, self.counted, self.calling = "", "", ""
        self.refused = self.ours = self.deaf = False
        self.active = self.pdu_began = 0.0
        self.began = time.time()
        self.done: collections.Counter[tuple[str, int]] = collections.Counter()
        self.ending = ("lost", "")
        self.exams = 0  # that began on it and go on
        self.paused = self.pdu_sized = False
        self.combined = True  # command and data set in one PDU, as nearly all peers accept

    # Events of the transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        peer = transport.get_extra_info("peername") or ("", 0)
        self.address, self.ours = peer[0], peer[:2] in self.server.own
        self.assembler.address = self.address
        self.socket = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=256 << 10)
        self._quick_ack()
        self.happens("connected")
        if words := self.server.enter(self, "pending"):
            self.refuse(words)
            transport.close()  # do not wait for a flood

    def connection_lost(self, error: Exception | None) -> None:
        self.happens("closed")
        for timer in (self.artim, self.pdu_timer, self.idle_timer, self.send_timer):
            if timer:
                timer.cancel()
        self.assembler.forget()
        self._drop_waiting()
        self.server.leave(self)
        self.server.note_ended(self)
        self.writable.set()
        if self.asked and not self.asked.done():
            self.asked.set_result(None)
        if self.task:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()
        self.send_timer = self.loop.call_later(self.limits.send_timeout, self._send_timed_out)

    def resume_writing(self) -> None:
        self.writable.set()
        if self.send_timer:
            self.send_timer.cancel()

    def _send_timed_out(self) -> None:
        self.server.complain(self.address, "%s does not read our answers", self)
        self.transport.abort()

    def _quick_ack(self) -> None:
        if quick := getattr(socket, "TCP_QUICKACK", None):
            with contextlib.suppress(OSError, AttributeError):
                self.socket.setsockopt(socket.IPPROTO_TCP, quick, 1)

    def data_received(self, data: bytes) -> None:
        self.active = self.loop.time()
        self._quick_ack()
        buffer = self.buffer
        buffer += data
        pos, have = 0, len(buffer)
        try:
            while have - pos >= 6 and self.state != "Sta1":
                kind, _, length = PDU_HEADER.unpack_from(buffer, pos)
                if kind not in PDU_EVENTS:
                    raise ProtocolError(
                        Message("PDU type {kind} is not known", kind=f"{kind:02X}"), 1
                    )
                if length > self._longest(kind):
                    raise ProtocolError(
                        Message("a PDU of {length} bytes exceeds the limit", length=length)
                    )
                if have - pos < 6 + length:
                    break
                end = pos + 6 + length
                self._stop_pdu_timer()
                self.happens(PDU_EVENTS[kind], bytes(memoryview(buffer)[pos:end]))
                pos = end
        except ProtocolError as error:
            self.server.complain(self.address, "%s: %s", self, error)
            self.ending = ("refused", error.args[0])
            self.happens("invalid", error.reason)
            pos = have
        if pos:
            del buffer[:pos]
        self._time_pdu()

    def _longest(self, kind: int) -> int:
        if kind == P_DATA_TF:
            return self.limits.maximum_pdu_length
        return max(65536, self.limits.maximum_pdu_length) if kind <= A_ASSOCIATE_AC else 4

    def _time_pdu(self) -> None:
        """Time an incomplete PDU from its first byte, while we read."""
        whole_header = len(self.buffer) >= 6
        if not self.buffer or self.paused or self.state in ("Sta1", "Sta13"):
            self._stop_pdu_timer()
        elif not self.pdu_timer or whole_header != self.pdu_sized:
            if not self.pdu_timer:
                self.pdu_began = self.loop.time()
            self._stop_pdu_timer()
            self.pdu_sized = whole_header
            length = int.from_bytes(self.buffer[2:6], "big") if whole_header else 0
            until = self.pdu_began + self.limits.pdu_timeout + length / 16384
            self.pdu_timer = self.loop.call_at(until, self._pdu_timed_out)

    def _stop_pdu_timer(self) -> None:
        if self.pdu_timer:
            self.pdu_timer.cancel()
            self.pdu_timer = None

    def _pdu_timed_out(self) -> None:
        self.server.complain(self.address, "%s: a PDU was not completed in time", self)
        self.pdu_timer = None
        self.happens("invalid")

    # The state machine

    def happens(self, event: str, *arguments: Any) -> None:
        """Do the action of ASSOCIATION_STATES for an event, and enter the next state."""
        if cell := ASSOCIATION_STATES.get((event, self.state)):
            action, self.state = cell
            getattr(self, "_" + action.lower().replace("-", "_"))(*arguments)

    def _start_artim(self, seconds: float) -> None:
        self._stop_artim()
        self.artim = self.loop.call_later(seconds, self.happens, "ARTIM")

    def _stop_artim(self) -> None:
        if self.artim:
            self.artim.cancel()

    def _write_last(self, pdu: bytes) -> None:
        """Write the last PDU of the association, and wait for the peer to close."""
        self._stop_work()
        self.refused = True
        self.transport.write(pdu)
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError):  # the peer has just left
                self.transport.write_eof()
        self._start_artim(min(2.0, self.limits.associate_timeout))

    def _stop_work(self) -> None:
        self.assembler.forget()
        self._drop_waiting()
        if self.current:
            self.current.cancelled = True
        self.writable.set()

    def _drop_waiting(self) -> None:
        for request in self.waiting:
            request.end()
        self.waiting.clear()

    def _close(self, pdu: bytes = b"") -> None:
        self._stop_artim()
        self._stop_work()
        self.transport.abort()  # unsent data is dropped

    def _ae_5(self) -> None:
        self._start_artim(self.limits.associate_timeout)

    def _ae_6(self, pdu: bytes) -> None:
        self._stop_artim()
        rules = None if self.ours else self.server.access()
        host = rules.host_to_look_up(calling_ae_title(pdu), self.address) if rules else ""
        if host:  # a name server may be slow, and nothing may block the loop
            self.look_up = self.loop.create_task(self._decide_later(pdu, rules, host))
        else:
            self._decide(pdu, rules)

    async def _decide_later(self, pdu: bytes, rules: AccessRules | None, host: str) -> None:
        self._decide(pdu, rules, await self.server.addresses_of(host))

    def _decide(
        self, pdu: bytes, rules: AccessRules | None, addresses: Collection[str] = ()
    ) -> None:
        """Accept or reject by rules for callers, if the peer is still connected."""
        if self.state != "Sta3":
            return
        server = self.server
        try:
            negotiated = server.negotiator.decide(pdu, self.address, rules, addresses)
            if words := server.enter(self, "associated"):
                raise Rejection(2, 3, 2, words)
        except Rejection as rejection:
            server.complain(self.address, "%s rejected: %s", self, rejection)
            server.note_rejected(self.address, pdu, rejection.args[0])
            self.ending = ("rejected", rejection.args[0])
            self.calling = calling_ae_title(pdu)
            self.happens("reject", rejection.pdu)
        except ProtocolError as error:
            server.complain(self.address, "%s: %s", self, error)
            self.happens("invalid", error.reason)
        else:
            self.peer, self.calling = negotiated, negotiated.calling
            server.note_accepted(self)
            device = server.access().device(negotiated.calling)
            self.combined = device.combined_pdvs if device else True
            self.happens("accept", negotiated.answer)

    def _ae_7(self, answer: bytes) -> None:
        log.debug("%s associated", self)
        self.transport.write(answer)
        self.active = self.loop.time()
        self._watch_idle()

    _ae_8 = _write_last

    def _dt_1(self, pdus: bytes) -> None:
        self.transport.write(pdus)

    def _dt_2(self, pdu: bytes) -> None:
        for request in self.assembler.take(pdu, self.peer.contexts):
            self._complete(request)

    _ar_6, _ar_7 = _dt_2, _dt_1

    def _ar_1(self) -> None:
        self.transport.write(RELEASE_RQ_PDU)

    def _ar_2(self, pdu: bytes) -> None:
        self.ending = ("released", "")
        if self.task:  # finish the requests before it, but cancel a search
            if self.current:
                self.current.cancelled = True
        else:
            self.happens("released")

    _ar_3 = _close

    def _ar_4(self) -> None:
        self._write_last(RELEASE_RP_PDU)

    def _ar_10(self, pdu: bytes) -> None:
        self.happens("released")

    def _aa_1(self, cause: bytes | int = b"") -> None:
        self._write_last(abort_pdu(0))

    def _aa_2(self, pdu: bytes = b"") -> None:
        if not self.peer and not self.refused and not pdu:
            self.server.complain(self.address, "%s sent no association request in time", self)
        self._close()

    def _aa_3(self, pdu: bytes) -> None:
        log.debug("%s aborted by the peer", self)
        self.ending = ("aborted", "")
        self._close()

    _aa_4 = _stop_work
    _aa_5 = _ar_5 = _stop_artim

    def _do_nothing(self, cause: bytes | int = b"") -> None:
        pass

    _ar_8 = _do_nothing  # release collision: the acceptor waits for the peer's answer first
    _aa_6 = _do_nothing  # PDUs after our last one are ignored
    _aa_7 = _do_nothing  # PS3.8 asks for another A-ABORT, but our half is closed already

    def _aa_8(self, cause: bytes | int = 6) -> None:
        self._write_last(abort_pdu(2, cause if isinstance(cause, int) else 2))

    # Limits of time

    def hear_no_more(self) -> None:
        """Take no further request; the one that is being worked at is answered."""
        self.waiting.clear()
        self.deaf = True

    def _watch_idle(self) -> None:
        if self.state in ("Sta1", "Sta13"):
            return
        idle = self.loop.time() - self.active
        most = self.limits.exam_timeout if self.exams else self.limits.idle_timeout
        left = most - (0 if self.current else idle)
        if left <= 0:
            self.refuse(Message("idle for {seconds} s", seconds=round(idle)))
        else:
            soon = min(left, self.limits.idle_timeout)  # its exam may end meanwhile
            self.idle_timer = self.loop.call_later(soon, self._watch_idle)

    def refuse(self, words: str) -> None:
        """Log that a limit is reached, and abort."""
        self.server.complain(self.address, "%s refused: %s", self, words)
        self.ending = ("refused", words)
        self.happens("abort")

    # Messages

    def _complete(self, request: Request) -> None:
        """Handle a complete message: a C-CANCEL at once, a request when its turn comes."""
        command = request.command
        field, message_id = command["CommandField"], command.get("MessageIDBeingRespondedTo")
        if field == C_CANCEL_RQ or field & 0x8000:
            request.end()
        if field == C_CANCEL_RQ:
            for one in (self.current, *self.waiting):
                if one and one.message_id == message_id:
                    one.cancelled = True
            return
        if field & 0x8000:
            right = (field, message_id) == (N_EVENT_REPORT_RSP, self.ASKED_ID)
            if not right or not self.asked or self.asked.done():
                raise ProtocolError("a response came without a request")
            self.asked.set_result(command.get("Status"))
            return
        if self.deaf:
            return
        self.waiting.append(request)
        if not self.task:
            self.task = self.loop.create_task(self._serve())
        elif self._is_full() and not self.paused:
            self.paused = True
            self.transport.pause_reading()
            self._stop_pdu_timer()

    def _is_full(self) -> bool:
        size = sum(len(request.data or b"") for request in self.waiting)
        return len(self.waiting) >= self.QUEUE or size > self.QUEUED

    async def _serve(self) -> None:
        """Answer waiting messages one by one, then a release request that came meanwhile."""
        try:
            while self.waiting and self.state in ("Sta6", "Sta7", "Sta8"):
                self.current = self.waiting.popleft()
                try:
                    await self.server.dispatch(self, self.current)
                finally:
                    self.current.end()
                self.active = self.loop.time()
                if self.paused and not self._is_full():
                    self.paused = False
                    if not self.transport.is_closing():
                        self.transport.resume_reading()
                    self._time_pdu()
        except Exception:
            log.exception("%s: cannot answer a message", self)
            self.happens("abort")
        finally:
            self.task = self.current = None
        if self.state == "Sta8":
            self.happens("released")

    async def ask(
        self, context: AcceptedContext, command: bytes, data: bytes, timeout: float = 10.0
    ) -> int | None:
        """Send an N-EVENT-REPORT, one at a time; return its status, None without a response.

        timeout  unit: seconds
        """
        if self.asked or self.state != "Sta6":
            return None
        self.asked = self.loop.create_future()
        try:
            async with asyncio.timeout(timeout):
                while self.task:  # answer its own requests first
                    await asyncio.sleep(0.005)
                if not await self.send((context, command, data)):
                    return None
                return await asyncio.shield(self.asked)
        except TimeoutError:
            return None
        finally:
            if self.asked.done():
                self.asked = None  # else a late response would answer the next request

    async def send(self, *messages: tuple[AcceptedContext, bytes, bytes | None]) -> bool:
        """Write messages at once, wait until the peer reads; return whether it is still there."""
        return await self._write([self._pdus(*message) for message in messages])

    async def _write(self, pdus: list[bytes]) -> bool:
        self.happens("send data", b"".join(pdus))
        await self.writable.wait()
        return self.state in ("Sta6", "Sta8")

    async def send_answers(
        self, context: AcceptedContext, command: bytes, answers: Iterable[bytes]
    ) -> bool:
        """Write messages with the same command set, 64 KiB or more at a time; return as send."""
        pdus, size = [], 0
        prefix = PDV_HEADER.pack(len(command) + 2, context.id, 3) + command
        extra, longest = len(prefix) + 6, self.peer.maximum_length or self.limits.maximum_pdu_length
        for data in answers:
            length = extra + len(data)
            if length <= longest and self.combined:
                head = PDU_HEADER.pack(P_DATA_TF, 0, length)
                pdus += head, prefix, PDV_HEADER.pack(len(data) + 2, context.id, 2), data
            else:
                pdus.append(self._pdus(context, command, data))
            size += length
            if size > 65536:
                if not await self._write(pdus):
                    return False
                pdus, size = [], 0
        return not pdus or await self._write(pdus)

    def _pdus(self, context: AcceptedContext, command: bytes, data: bytes | None) -> bytes:
        longest = self.peer.maximum_length or self.limits.maximum_pdu_length
        return message_pdus(context, command, data, longest, self.combined)

    def __str__(self) -> str:
        name = f"{self.peer.calling}@" if self.peer else ""
        return f"{name}{self.address}"
