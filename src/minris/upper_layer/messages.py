"""Assemble the messages of an association from their fragments (PS3.8 9.3.5, annex E)."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from minris.dataset.elements import ElementIndex
from minris.intake import Intake, Share
from minris.standard.status import Message
from minris.upper_layer.pdus import (
    NAMED,
    NO_DATA_SET,
    NUMBERS,
    OPERATIONS,
    PDV_HEADER,
    AcceptedContext,
    ProtocolError,
    decode_command,
)


class Request:
    """A DIMSE message of a peer: its command set, and its data set if it has one."""

    def __init__(self, context: AcceptedContext, command: dict[str, Any]) -> None:
        self.context, self.command = context, command
        self.data: bytes | None = None
        self.too_large = self.cancelled = False
        self.index: ElementIndex | None = None
        self.asked: tuple[str, ...] | None = None  # the terms of its (0008,0005)
        self.raw: bytes | None = None  # kept if texts had to be recovered
        self.share: Share | None = None  # the room of its data set, until it is answered

    @property
    def operation(self) -> str:
        """C-FIND, N-SET …; the number of an unknown command."""
        field = self.command["CommandField"]
        return OPERATIONS.get(field, f"{field:04X}")

    def end(self) -> None:
        """Give the room of its data set back."""
        if self.share:
            self.share.give_back()

    @property
    def counted(self) -> str:
        """The operation, for figures: all unknown ones are one."""
        return OPERATIONS.get(self.command["CommandField"], "unknown")

    @property
    def message_id(self) -> int:
        """Message ID (0000,0110)."""
        return self.command.get("MessageID", 0)

    @property
    def uid(self) -> str:
        """SOP Instance UID of an N-service, requested or affected; empty if absent."""
        return self.command.get(f"{NAMED.get(self.operation, 'Requested')}SOPInstanceUID", "")

    @property
    def number(self) -> int:
        """Event Type ID or Action Type ID; 0 if absent."""
        return self.command.get(NUMBERS.get(self.operation), 0)


class MessageLimits(NamedTuple):
    """Maximum bytes of a command set, of a data set, and of a data set that is read but dropped."""

    command: int
    data: int
    drained: int


class Assembler:
    """Assembles the messages of one association.

    A data set that exceeds a limit is read to its end and dropped, so that it can be answered. A
    whole one counts in the intake until its request ends.

    address  whose bytes they are
    """

    EMPTY = 1024  # maximum of empty fragments per association

    def __init__(self, limits: MessageLimits, intake: Intake) -> None:
        self.limits, self.intake, self.address = limits, intake, ""
        self.share = Share(intake, "")
        self.command, self.data, self.received, self.empty = bytearray(), bytearray(), 0, 0
        self.request: Request | None = None  # whose data set is incomplete

    def take(self, pdu: bytes, contexts: Mapping[int, AcceptedContext]) -> Iterator[Request]:
        """Yield the messages that a P-DATA-TF PDU completes. Raises ProtocolError."""
        pos, end = 6, len(pdu)
        if pos == end:
            raise ProtocolError("a P-DATA PDU is empty")
        while pos < end:
            if pos + 6 > end:
                raise ProtocolError("a presentation data value is truncated")
            length, context_id, control = PDV_HEADER.unpack_from(pdu, pos)
            if length < 2 or pos + 4 + length > end:
                raise ProtocolError("a presentation data value has a wrong length")
            fragment = pdu[pos + 6 : pos + 4 + length]
            pos += 4 + length
            context = contexts.get(context_id)
            if not context:
                raise ProtocolError(
                    Message("presentation context {number} was not accepted", number=context_id)
                )
            if not fragment and not control & 2:
                self.empty += 1
                if self.empty > self.EMPTY:
                    raise ProtocolError("too many empty fragments")
            add = self._add_command if control & 1 else self._add_data
            if request := add(context, fragment, bool(control & 2)):
                yield request

    def _add_command(self, context: AcceptedContext, fragment: bytes, last: bool) -> Request | None:
        if self.request:
            raise ProtocolError("a command came before the data set of the previous one")
        self.command += fragment
        if len(self.command) > self.limits.command:
            raise ProtocolError("a command set exceeds the limit")
        if not last:
            return None
        request = Request(context, decode_command(bytes(self.command)))
        self.command.clear()
        if request.command["CommandDataSetType"] == NO_DATA_SET:
            return request
        self.request, self.share = request, Share(self.intake, self.address)
        return None

    def _add_data(self, context: AcceptedContext, fragment: bytes, last: bool) -> Request | None:
        request = self.request
        if not request or request.context.id != context.id:
            raise ProtocolError("a data set came without its command")
        self.received += len(fragment)
        if not request.too_large:
            if self.received <= self.limits.data and self.share.take(len(fragment)):
                self.data += fragment
            else:
                request.too_large = True
                self._drop_data()
        if self.received > self.limits.drained:
            raise ProtocolError(
                Message("a data set of {length} bytes exceeds the limit", length=self.received)
            )
        if not last:
            return None
        if not request.too_large:
            request.data, request.share = bytes(self.data), self.share
            self.share = Share(self.intake, self.address)
        self.forget()
        return request

    def _drop_data(self) -> None:
        self.share.give_back()
        self.data = bytearray()

    def forget(self) -> None:
        """Drop an incomplete message."""
        self._drop_data()
        self.request, self.received = None, 0
