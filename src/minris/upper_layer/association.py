"""An association that a peer has opened, from its first byte to its last (PS3.8 9.2)."""

import asyncio
import collections
import contextlib
import re
import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from minris import log
from minris.access.devices import host_addresses, this_minute
from minris.dataset.elements import ElementIndex
from minris.standard.status import Message
from minris.standard.tables import grid_table
from minris.upper_layer.negotiation import Negotiated, Rejection, calling_ae_title
from minris.upper_layer.pdus import (
    A_ABORT,
    A_ASSOCIATE_AC,
    A_ASSOCIATE_RJ,
    A_ASSOCIATE_RQ,
    A_RELEASE_RP,
    A_RELEASE_RQ,
    C_CANCEL_RQ,
    NO_DATA_SET,
    OPERATIONS,
    P_DATA_TF,
    PDU_HEADER,
    PDV_HEADER,
    RELEASE_RP_PDU,
    RELEASE_RQ_PDU,
    AcceptedContext,
    ProtocolError,
    abort_pdu,
    decode_command,
    message_pdus,
)

if TYPE_CHECKING:
    from minris.upper_layer.server import AssociationServer


# The acceptor's half of the state machine: what happens, and the state after it.
ASSOCIATION_STATES: dict[tuple[str, str], list[str]] = {
    place: cell
    for place, cell in grid_table(
        "PS3.8 Table 9-10",
        """
    event      | Sta1       | Sta2       | Sta3       | Sta6       | Sta7        | Sta8       | Sta10       | Sta11      | Sta12      | Sta13
    connected  | AE-5 Sta2  |            |            |            |             |            |             |            |            |
    ASSOCIATE-AC |          | AA-1 Sta13 | AA-8 Sta13 | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-6 Sta13
    ASSOCIATE-RJ |          | AA-1 Sta13 | AA-8 Sta13 | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-6 Sta13
    ASSOCIATE-RQ |          | AE-6 Sta3  | AA-8 Sta13 | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-7 Sta13
    accept     |            |            | AE-7 Sta6  |            |             |            |             |            |            |
    reject     |            |            | AE-8 Sta13 |            |             |            |             |            |            |
    send data  |            |            |            | DT-1 Sta6  |             | AR-7 Sta8  |             |            |            |
    P-DATA     |            | AA-1 Sta13 | AA-8 Sta13 | DT-2 Sta6  | AR-6 Sta7   | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-6 Sta13
    release    |            |            |            | AR-1 Sta7  |             |            |             |            |            |
    RELEASE-RQ |            | AA-1 Sta13 | AA-8 Sta13 | AR-2 Sta8  | AR-8 Sta10  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-6 Sta13
    RELEASE-RP |            | AA-1 Sta13 | AA-8 Sta13 | AA-8 Sta13 | AR-3 Sta1   | AA-8 Sta13 | AR-10 Sta12 | AR-3 Sta1  | AA-8 Sta13 | AA-6 Sta13
    released   |            |            |            |            |             | AR-4 Sta13 |             |            | AR-4 Sta13 |
    abort      |            | AA-1 Sta13 | AA-1 Sta13 | AA-1 Sta13 | AA-1 Sta13  | AA-1 Sta13 | AA-1 Sta13  | AA-1 Sta13 | AA-1 Sta13 |
    ABORT      |            | AA-2 Sta1  | AA-3 Sta1  | AA-3 Sta1  | AA-3 Sta1   | AA-3 Sta1  | AA-3 Sta1   | AA-3 Sta1  | AA-3 Sta1  | AA-2 Sta1
    closed     |            | AA-5 Sta1  | AA-4 Sta1  | AA-4 Sta1  | AA-4 Sta1   | AA-4 Sta1  | AA-4 Sta1   | AA-4 Sta1  | AA-4 Sta1  | AR-5 Sta1
    ARTIM      |            | AA-2 Sta1  |            |            |             |            |             |            |            | AA-2 Sta1
    invalid    |            | AA-1 Sta13 | AA-8 Sta13 | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-7 Sta13
    """,
        str.split,
    ).items()
    if cell
}  # local: "abort" in Sta2 is ours, for a connection past a limit
PDU_EVENTS = {
    A_ASSOCIATE_RQ: "ASSOCIATE-RQ",
    A_ASSOCIATE_AC: "ASSOCIATE-AC",
    A_ASSOCIATE_RJ: "ASSOCIATE-RJ",
    P_DATA_TF: "P-DATA",
    A_RELEASE_RQ: "RELEASE-RQ",
    A_RELEASE_RP: "RELEASE-RP",
    A_ABORT: "ABORT",
}


class Request:
    """One DIMSE message of a peer: its command set, and its data set if it has one."""

    def __init__(
        self, context: AcceptedContext, command: dict[str, Any], data: bytes | None
    ) -> None:
        self.context, self.command, self.data = context, command, data
        self.too_large = False
        self.cancelled = False
        self.index: ElementIndex | None = None
        self.asked: tuple[str, ...] | None = None  # the terms of its (0008,0005)
        self.raw: bytes | None = None  # kept where texts had to be recovered

    @property
    def operation(self) -> str:
        """C-FIND, N-SET …; the number of a command that is none of them."""
        field = self.command["CommandField"]
        return OPERATIONS.get(field, f"{field:04X}")

    @property
    def message_id(self) -> int:
        """Message ID (0000,0110)."""
        return self.command.get("MessageID", 0)


class Call(NamedTuple):
    """An association that was accepted: when (seconds since 1970), from where, which SOP classes."""

    at: float
    address: str
    classes: tuple[str, ...]


class Ended(NamedTuple):
    """An association that is over, for people.

    at       when it began, in seconds since 1970; for how many seconds
    done     how many messages of an operation had a status
    ending   a key of ENDINGS; words  what was said of it
    """

    at: float
    seconds: float
    calling: str
    address: str
    done: tuple[tuple[tuple[str, int], int], ...]
    ending: str
    words: str


ENDINGS = {
    "released": Message("ended in order"),
    "aborted": Message("broken off by the device"),
    "lost": Message("the connection was lost"),
    "refused": Message("broken off by us: {words}"),
    "rejected": Message("turned away: {words}"),
}


def alike(words: str, others: str) -> bool:
    """Whether two sentences say the same, but for the numbers in them."""
    return re.sub("[0-9]+", "#", words) == re.sub("[0-9]+", "#", others)


class Association(asyncio.Protocol):
    """One connection of a peer, from the first byte to the last.

    The state machine decides what a PDU or an event means; `_aa_8` and its like are the actions
    of PS3.8 Tables 9-6 to 9-9 by their names.
    """

    QUEUE = 16  # messages waiting before reading is paused
    ASKED_ID = 1  # Message ID of what we ask the peer, one at a time
    EMPTY = 1024  # fragments of one association that carry nothing

    def __init__(self, server: "AssociationServer") -> None:
        self.server, self.limits = server, server.limits
        self.loop = server.loop
        self.state = "Sta1"
        self.buffer = bytearray()
        self.command, self.data, self.received, self.empty = bytearray(), bytearray(), 0, 0
        self.request: Request | None = None
        self.waiting: collections.deque[Request] = collections.deque()
        self.current: Request | None = None
        self.asked: asyncio.Future[int] | None = None  # the status of what we ask the peer
        self.task: asyncio.Task | None = None
        self.artim: asyncio.TimerHandle | None = None
        self.pdu_timer: asyncio.TimerHandle | None = None
        self.idle_timer: asyncio.TimerHandle | None = None
        self.send_timer: asyncio.TimerHandle | None = None
        self.writable = asyncio.Event()
        self.writable.set()
        self.peer: Negotiated | None = None
        self.address, self.counted, self.calling = "", "", ""
        self.refused = False
        self.active = self.pdu_began = 0.0
        self.began = time.time()
        self.done: collections.Counter[tuple[str, int]] = collections.Counter()
        self.ending = ("lost", "")
        self.paused = self.pdu_sized = False
        self.combined = True  # command and data set in one PDU, as nearly all peers take it

    # Events of the transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.address = (transport.get_extra_info("peername") or ("", 0))[0]
        self.socket = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=256 << 10)
        self._quick_ack()
        self.happens("connected")
        if words := self.server.enter(self, "pending"):
            self.refuse(words)
            transport.close()  # none of a flood is waited for

    def connection_lost(self, error: Exception | None) -> None:
        self.happens("closed")
        for timer in (self.artim, self.pdu_timer, self.idle_timer, self.send_timer):
            if timer:
                timer.cancel()
        self._forget_data()
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
        self.server.complain(self.address, "%s does not take what it asked for", self)
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
                    raise ProtocolError(f"PDU type {kind:02X} is not known", 1)
                if length > self._longest(kind):
                    raise ProtocolError(f"a PDU of {length} bytes is past the limit")
                if have - pos < 6 + length:
                    break
                end = pos + 6 + length
                self._pdu(kind, bytes(memoryview(buffer)[pos:end]))
                pos = end
        except ProtocolError as error:
            self.server.complain(self.address, "%s: %s", self, error)
            self.ending = ("refused", str(error))
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
        """A PDU that has begun must end: its timer runs from its first byte, while we read."""
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
        self.server.complain(self.address, "%s: a PDU that has begun does not end", self)
        self.pdu_timer = None
        self.happens("invalid")

    # The state machine

    def happens(self, event: str, *arguments: Any) -> None:
        """Let an event happen: the action of the table, and the state after it."""
        cell = ASSOCIATION_STATES.get((event, self.state))
        if cell:
            action, self.state = cell
            getattr(self, "_" + action.lower().replace("-", "_"))(*arguments)

    def _pdu(self, kind: int, pdu: bytes) -> None:
        self._stop_pdu_timer()
        self.happens(PDU_EVENTS[kind], pdu)

    def _start_artim(self, seconds: float) -> None:
        if self.artim:
            self.artim.cancel()
        self.artim = self.loop.call_later(seconds, self.happens, "ARTIM")

    def _stop_artim(self) -> None:
        if self.artim:
            self.artim.cancel()

    def _write_last(self, pdu: bytes) -> None:
        """Write what ends the association; the peer is to close, for so long we wait."""
        self._stop_work()
        self.refused = True
        self.transport.write(pdu)
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError):  # the peer has left a moment ago
                self.transport.write_eof()
        self._start_artim(min(2.0, self.limits.associate_timeout))

    def _stop_work(self) -> None:
        self._forget_data()
        self.waiting.clear()
        if self.current:
            self.current.cancelled = True
        self.writable.set()

    def _close(self) -> None:
        self._stop_artim()
        self._stop_work()
        self.transport.abort()  # what has not been read by now is not wanted

    def _ae_5(self) -> None:
        self._start_artim(self.limits.associate_timeout)

    def _ae_6(self, pdu: bytes) -> None:
        self._stop_artim()
        host = self.server.access().host_to_look_up(calling_ae_title(pdu))
        if host:  # a name server may be slow, and nothing blocks in the loop
            run = self.loop.run_in_executor(None, host_addresses, host, this_minute())
            run.add_done_callback(lambda _: self._decide(pdu))
        else:
            self._decide(pdu)

    def _decide(self, pdu: bytes) -> None:
        """Accept or reject, if the peer is still there."""
        if self.state != "Sta3":
            return
        server = self.server
        try:
            negotiated = server.negotiator.decide(pdu, self.address, server.access())
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
            server.accepted += 1
            server.note_accepted(self)
            device = server.access().device(negotiated.calling)
            self.combined = device.combined_pdvs if device else True
            self.happens("accept", negotiated.answer)

    def _ae_7(self, answer: bytes) -> None:
        log.debug("%s associated", self)
        self.transport.write(answer)
        self.active = self.loop.time()
        self._watch_idle()

    def _ae_8(self, rejection: bytes) -> None:
        self._write_last(rejection)

    def _dt_1(self, pdus: bytes) -> None:
        self.transport.write(pdus)

    _ar_7 = _dt_1

    def _dt_2(self, pdu: bytes) -> None:
        self._fragments(pdu)

    _ar_6 = _dt_2

    def _ar_1(self) -> None:
        self.transport.write(RELEASE_RQ_PDU)

    def _ar_2(self, pdu: bytes) -> None:
        self.ending = ("released", "")
        if self.task:  # what came before it is still done; a search has nobody to hear it
            if self.current:
                self.current.cancelled = True
        else:
            self.happens("released")

    def _ar_3(self, pdu: bytes) -> None:
        self._close()

    def _ar_4(self) -> None:
        self._write_last(RELEASE_RP_PDU)

    def _ar_5(self) -> None:
        self._stop_artim()

    def _ar_8(self, pdu: bytes) -> None:
        """A release collision; as the acceptor we wait for the peer's answer first."""

    def _ar_10(self, pdu: bytes) -> None:
        self.happens("released")

    def _aa_1(self, cause: bytes | int = b"") -> None:
        self._write_last(abort_pdu(0))

    def _aa_2(self, pdu: bytes = b"") -> None:
        if not self.peer and not self.refused and not pdu:
            self.server.complain(self.address, "%s asked for no association in time", self)
        self._close()

    def _aa_3(self, pdu: bytes) -> None:
        log.debug("%s aborted by the peer", self)
        self.ending = ("aborted", "")
        self._close()

    def _aa_4(self) -> None:
        self._stop_work()

    def _aa_5(self) -> None:
        self._stop_artim()

    def _aa_6(self, pdu: bytes) -> None:
        """What comes after our last PDU is ignored."""

    def _aa_7(self, cause: bytes | int = b"") -> None:
        """PS3.8 wants another A-ABORT here; our half is closed already, so nothing can follow."""

    def _aa_8(self, cause: bytes | int = 6) -> None:
        self._write_last(abort_pdu(2, cause if isinstance(cause, int) else 2))

    # Limits of time

    def _watch_idle(self) -> None:
        if self.state in ("Sta1", "Sta13"):
            return
        idle = self.loop.time() - self.active
        left = self.limits.idle_timeout - (0 if self.current else idle)
        if left <= 0:
            self.refuse(Message("idle for {seconds} s", seconds=round(idle)))
        else:
            self.idle_timer = self.loop.call_later(left, self._watch_idle)

    def refuse(self, words: str) -> None:
        """Abort since a limit is reached, with a line in the log."""
        self.server.complain(self.address, "%s refused: %s", self, words)
        self.ending = ("refused", words)
        self.happens("abort")

    # Messages

    def _fragments(self, pdu: bytes) -> None:
        """Take the presentation data values of a P-DATA-TF PDU (PS3.8 9.3.5, annex E)."""
        pos, end = 6, len(pdu)
        if pos == end:
            raise ProtocolError("a P-DATA PDU is empty")
        while pos < end:
            if pos + 6 > end:
                raise ProtocolError("a presentation data value is cut short")
            length, context_id, control = PDV_HEADER.unpack_from(pdu, pos)
            if length < 2 or pos + 4 + length > end:
                raise ProtocolError("a presentation data value has a wrong length")
            fragment = pdu[pos + 6 : pos + 4 + length]
            pos += 4 + length
            context = self.peer.contexts.get(context_id)
            if not context:
                raise ProtocolError(f"presentation context {context_id} was not accepted")
            if not fragment and not control & 2:
                self.empty += 1
                if self.empty > self.EMPTY:
                    raise ProtocolError("fragments without end carry nothing")
            if control & 1:
                self._command_fragment(context, fragment, bool(control & 2))
            else:
                self._data_fragment(context, fragment, bool(control & 2))

    def _command_fragment(self, context: AcceptedContext, fragment: bytes, last: bool) -> None:
        if self.request:
            raise ProtocolError("a command comes before the data set of the one before")
        self.command += fragment
        if len(self.command) > self.limits.maximum_command_length:
            raise ProtocolError("a command set is past the limit")
        if last:
            fields = decode_command(bytes(self.command))
            self.command.clear()
            request = Request(context, fields, None)
            if fields["CommandDataSetType"] == NO_DATA_SET:
                self._complete(request)
            else:
                self.request = request

    def _data_fragment(self, context: AcceptedContext, fragment: bytes, last: bool) -> None:
        request = self.request
        if not request or request.context.id != context.id:
            raise ProtocolError("a data set comes without its command")
        self.received += len(fragment)
        if not request.too_large:
            self.data += fragment
            self.server.receiving += len(fragment)
            if (
                self.received > self.limits.maximum_dataset_length
                or self.server.receiving > self.server.RECEIVING
            ):
                request.too_large = True
                self._drop_data()
        if self.received > self.limits.maximum_drained_length:
            raise ProtocolError(f"a data set of {self.received} bytes and more")
        if last:
            request.data = None if request.too_large else bytes(self.data)
            self._forget_data()
            self._complete(request)

    def _drop_data(self) -> None:
        self.server.receiving -= len(self.data)
        self.data = bytearray()

    def _forget_data(self) -> None:
        self._drop_data()
        self.request, self.received = None, 0

    def _complete(self, request: Request) -> None:
        """A message is whole: a C-CANCEL acts at once, others wait for their turn."""
        if request.command["CommandField"] == C_CANCEL_RQ:
            wanted = request.command.get("MessageIDBeingRespondedTo")
            for one in (self.current, *self.waiting):
                if one and one.message_id == wanted:
                    one.cancelled = True
            return
        if request.command["CommandField"] & 0x8000:
            command = request.command
            right = (command["CommandField"], command.get("MessageIDBeingRespondedTo")) == (
                0x8000 | 0x0100, Association.ASKED_ID
            )  # fmt: skip
            if not right or not self.asked or self.asked.done():
                raise ProtocolError("a response came to nothing that was asked")
            self.asked.set_result(command.get("Status"))
            return
        self.waiting.append(request)
        if not self.task:
            self.task = self.loop.create_task(self._serve())
        elif len(self.waiting) >= self.QUEUE and not self.paused:
            self.paused = True
            self.transport.pause_reading()
            self._stop_pdu_timer()

    async def _serve(self) -> None:
        """Answer what waits, one after the other; a release that came meanwhile is answered last."""
        try:
            while self.waiting and self.state in ("Sta6", "Sta7", "Sta8"):
                self.current = self.waiting.popleft()
                await self.server.dispatch(self, self.current)
                self.active = self.loop.time()
                if self.paused and len(self.waiting) < self.QUEUE:
                    self._resume_reading()
        except Exception:
            log.exception("%s: a message could not be served", self)
            self.happens("abort")
        finally:
            self.task = self.current = None
        if self.state == "Sta8":
            self.happens("released")

    def _resume_reading(self) -> None:
        self.paused = False
        if not self.transport.is_closing():
            self.transport.resume_reading()
        self._time_pdu()

    async def ask(
        self, context: AcceptedContext, command: bytes, data: bytes, timeout: float = 10.0
    ) -> int | None:
        """Send the peer an N-EVENT-REPORT, one at a time: its status, None where it gives none."""
        if self.asked or self.state != "Sta6":
            return None
        self.asked = self.loop.create_future()
        try:
            async with asyncio.timeout(timeout):
                while self.task:  # what it waits for itself comes first
                    await asyncio.sleep(0.005)
                if not await self.send((context, command, data)):
                    return None
                return await asyncio.shield(self.asked)
        except TimeoutError:
            return None
        finally:
            if self.asked.done():
                self.asked = None  # else what comes late is no answer to what follows

    async def send(self, *messages: tuple[AcceptedContext, bytes, bytes | None]) -> bool:
        """Write messages in one go and wait while the peer does not read; whether it is there."""
        self.happens("send data", b"".join(self._pdus(*message) for message in messages))
        await self.writable.wait()
        return self.state in ("Sta6", "Sta8")

    async def send_answers(
        self, context: AcceptedContext, command: bytes, answers: Iterable[bytes]
    ) -> bool:
        """Write many messages with the same command set, 64 KiB and more at a time."""
        pdus, size = [], 0
        prefix = PDV_HEADER.pack(len(command) + 2, context.id, 3) + command
        extra, longest = len(prefix) + 6, self.peer.maximum_length or self.limits.maximum_pdu_length
        for data in answers:
            length = extra + len(data)
            if length <= longest and self.combined:
                pdus.append(
                    b"%b%b%b%b"
                    % (
                        PDU_HEADER.pack(P_DATA_TF, 0, length),
                        prefix,
                        PDV_HEADER.pack(len(data) + 2, context.id, 2),
                        data,
                    )
                )
            else:
                pdus.append(self._pdus(context, command, data))
            size += length
            if size > 65536:
                self.happens("send data", b"".join(pdus))
                pdus, size = [], 0
                await self.writable.wait()
                if self.state not in ("Sta6", "Sta8"):
                    return False
        if pdus:
            self.happens("send data", b"".join(pdus))
            await self.writable.wait()
        return self.state in ("Sta6", "Sta8")

    def _pdus(self, context: AcceptedContext, command: bytes, data: bytes | None) -> bytes:
        longest = self.peer.maximum_length or self.limits.maximum_pdu_length
        return message_pdus(context, command, data, longest, self.combined)

    def __str__(self) -> str:
        name = f"{self.peer.calling}@" if self.peer else ""
        return f"{name}{self.address}"
