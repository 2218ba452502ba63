"""Associations that we open."""

import asyncio
import collections
import contextlib
import errno
import functools
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

from minris.intake import Intake
from minris.recent import cached
from minris.standard.status import Message, Status
from minris.standard.uids import (
    APPLICATION_CONTEXT,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from minris.upper_layer.messages import Assembler, MessageLimits, Request
from minris.upper_layer.negotiation import IMPLEMENTATION_CLASS_UID, check_associate_ac
from minris.upper_layer.pdus import (
    A_ASSOCIATE_AC,
    A_ASSOCIATE_RJ,
    P_DATA_TF,
    PDU_HEADER,
    RELEASE_RQ_PDU,
    AcceptedContext,
    ProtocolError,
    decode_command,
    encode_command,
    message_pdus,
)

NO_SUCH_HOST = Message("its host name is not known")
NETWORK_ERRORS = {
    errno.ECONNREFUSED: Message("connection refused"),
    errno.ECONNRESET: Message("connection reset by peer"),
    errno.EHOSTUNREACH: Message("no route to host"),
    errno.ENETUNREACH: Message("network is unreachable"),
    errno.ETIMEDOUT: Message("connection timed out"),
    errno.EPIPE: Message("broken pipe"),
}


class DeliveryError(Exception):
    """A message could not be delivered."""


class NotSecured(DeliveryError):
    """A receiver and we do not agree on TLS."""


class AssociationRejected(DeliveryError):
    """A receiver rejected our association."""


# Abstract syntaxes that we propose, each with (SCU, SCP) roles; None: the default.
Proposed = tuple[tuple[str, tuple[bool, bool] | None], ...]


@functools.lru_cache(maxsize=512)
def associate_request(ours: str, theirs: str, proposed: Proposed) -> bytes:
    """Return an A-ASSOCIATE-RQ PDU from our AE title to theirs."""
    from pynetdicom import pdu as pdus
    from pynetdicom import pdu_primitives as items
    from pynetdicom.presentation import build_context

    primitive = items.A_ASSOCIATE()
    primitive.application_context_name = APPLICATION_CONTEXT
    primitive.calling_ae_title, primitive.called_ae_title = ours, theirs
    contexts, information = [], [items.MaximumLengthNotification()]
    information[0].maximum_length_received = Caller.LONGEST
    implementation = items.ImplementationClassUIDNotification()
    implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    information.append(implementation)
    for number, (uid, roles) in enumerate(proposed):
        context = build_context(uid, [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN])
        context.context_id = 2 * number + 1
        contexts.append(context)
        if roles:
            item = items.SCP_SCU_RoleSelectionNegotiation()
            item.sop_class_uid = uid
            item.scu_role, item.scp_role = roles
            information.append(item)
    primitive.presentation_context_definition_list = contexts
    primitive.user_information = information
    pdu = pdus.A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return pdu.encode()


class Accepted(NamedTuple):
    """What a peer accepted: longest PDU; contexts and (SCU, SCP) roles by abstract syntax."""

    maximum_length: int
    contexts: Mapping[str, AcceptedContext]
    roles: Mapping[str, tuple[bool, bool]]


@cached(128, 8192)
def associate_answer(pdu: bytes, proposed: Proposed) -> Accepted:
    """Decode an A-ASSOCIATE-AC. Raises any exception of pynetdicom for an invalid PDU."""
    from pynetdicom import pdu as pdus
    from pynetdicom import pdu_primitives as items

    answer = pdus.A_ASSOCIATE_AC()
    answer.decode(check_associate_ac(pdu, frozenset(uid for uid, _ in proposed)))
    primitive = answer.to_primitive()
    longest, roles, contexts = 16384, {}, {}
    for item in primitive.user_information:
        if isinstance(item, items.MaximumLengthNotification):
            longest = item.maximum_length_received or 1 << 20
        elif isinstance(item, items.SCP_SCU_RoleSelectionNegotiation):
            roles[str(item.sop_class_uid)] = bool(item.scu_role), bool(item.scp_role)
    for context in primitive.presentation_context_definition_results_list:
        if context.result == 0:
            uid, _ = proposed[(context.context_id - 1) // 2]
            explicit = str(context.transfer_syntax[0]) == EXPLICIT_VR_LITTLE_ENDIAN
            contexts[uid] = AcceptedContext(context.context_id, uid, explicit)
    return Accepted(max(longest, 64), contexts, roles)


def response_to(command: bytes) -> tuple[int, int | None]:
    """Return Command Field and message ID of the response to a request (PS3.7 9.3, 10.3)."""
    asked = decode_command(command)
    return asked["CommandField"] | 0x8000, asked.get("MessageID")


class Caller:
    """An association that we open, in the event loop (the requestor's half).

    Every failure raises DeliveryError and closes the connection.
    """

    LONGEST = 65536  # maximum PDU length that we announce
    MOST = MessageLimits(command=16384, data=4 << 20, drained=4 << 20)
    MOST_ANSWERS, LONGEST_ANSWERS = 200_000, 64 << 20  # maximum of a C-FIND, and its bytes

    def __init__(self, timeout: float = 10.0) -> None:
        self.timeout = timeout
        self.assembler = Assembler(self.MOST, Intake())
        self.messages: collections.deque[Request] = collections.deque()
        self.accepted = Accepted(16384, {}, {})
        self.contexts: Mapping[int, AcceptedContext] = {}
        self.writer: asyncio.StreamWriter | None = None

    async def open(
        self,
        address: tuple[str, int] | tuple[()],
        ours: str,
        theirs: str,
        proposed: Proposed,
        **how: Any,
    ) -> None:
        """Associate; `accepted` then holds what the peer accepts.

        ours, theirs  calling and called AE title
        how           for asyncio.open_connection, such as a socket in place of an address
        """
        request = associate_request(ours, theirs, proposed)
        async with self._bounded("cannot connect"):
            self.reader, self.writer = await asyncio.open_connection(*address, **how)
            self.writer.write(request)
            kind, pdu = await self._pdu()
        if kind != A_ASSOCIATE_AC:
            self.close()
            if kind == A_ASSOCIATE_RJ:
                raise AssociationRejected("it rejects our association")
            raise DeliveryError("it aborts")
        try:
            self.accepted = associate_answer(pdu, proposed)
        except Exception as error:
            self.close()
            raise DeliveryError(Message("cannot decode its answer: {error}", error=error)) from None
        self.contexts = {context.id: context for context in self.accepted.contexts.values()}

    @contextlib.asynccontextmanager
    async def _bounded(self, words: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.timeout):
                yield
        except (OSError, EOFError, UnicodeError, ProtocolError, struct.error) as error:
            self.close()
            if isinstance(error, ssl.SSLError):
                why = getattr(error, "verify_message", "") or error.reason or str(error)
                raise NotSecured(f"{words}: TLS: {why.replace('_', ' ').lower()}") from None
            number = getattr(error, "errno", None)
            if isinstance(error, socket.gaierror):
                reason = NO_SUCH_HOST
            elif isinstance(error, TimeoutError) and not number:
                reason = Message("no answer")
            else:
                of_system = os.strerror(number).lower() if number and number > 0 else str(error)
                reason = NETWORK_ERRORS.get(number, of_system)
            raise DeliveryError(f"{words}: {reason}") from None
        except BaseException:
            self.close()
            raise

    async def _pdu(self) -> tuple[int, bytes]:
        header = await self.reader.readexactly(6)
        kind, _, length = PDU_HEADER.unpack(header)
        if length > self.LONGEST:
            raise ProtocolError("its PDU exceeds the limit")
        return kind, header + await self.reader.readexactly(length)

    async def ask(
        self, context: AcceptedContext, command: bytes, data: bytes | None, combined: bool = True
    ) -> dict[str, Any]:
        """Send a message; return the command set of its response, with a status."""
        pdus = message_pdus(context, command, data, self.accepted.maximum_length, combined)
        async with self._bounded("no response"):
            self.writer.write(pdus)
            await self.writer.drain()
            fields, _ = await self._answer(response_to(command))
        return {"Status": Status.PROCESSING_FAILURE, **fields}

    async def find(self, context: AcceptedContext, sop_class: str, keys: bytes) -> list[bytes]:
        """Return the answers of a C-FIND. Raises DeliveryError unless it ends with success."""
        command = encode_command(AffectedSOPClassUID=sop_class, CommandField=0x0020, MessageID=1,
                                 Priority=0, CommandDataSetType=1)  # fmt: skip
        pdus = message_pdus(context, command, keys, self.accepted.maximum_length, True)
        self.writer.write(pdus)
        found: list[bytes] = []
        size, wanted = 0, response_to(command)
        while True:
            async with self._bounded("no response"):
                fields, data = await self._answer(wanted)
            status = fields.get("Status", Status.PROCESSING_FAILURE)
            if status == Status.SUCCESS:
                return found
            if status not in (Status.PENDING, Status.PENDING_OPTIONAL_KEYS_UNSUPPORTED):
                raise DeliveryError(
                    Message("it answers {status} to our query", status=f"{status:04X}")
                )
            found.append(data)
            size += len(data)
            if len(found) > self.MOST_ANSWERS or size > self.LONGEST_ANSWERS:
                self.close()
                raise DeliveryError("it answers more than we accept")

    async def _answer(self, wanted: tuple[int, int | None]) -> tuple[dict[str, Any], bytes]:
        """Return the next message, which must be the response we want. Raises ProtocolError."""
        while not self.messages:
            kind, pdu = await self._pdu()
            if kind != P_DATA_TF:
                raise ProtocolError("it ended the association")
            self.messages.extend(self.assembler.take(pdu, self.contexts))
        message = self.messages.popleft()
        message.end()
        fields = message.command
        if (fields["CommandField"], fields.get("MessageIDBeingRespondedTo")) != wanted:
            raise ProtocolError("it sent a response to no request of ours")
        return fields, message.data or b""

    @property
    def is_open(self) -> bool:
        """Tell whether the connection is open, as far as known."""
        return bool(self.writer) and not self.writer.is_closing() and not self.reader.at_eof()

    async def release(self) -> None:
        """Release and close; never raises."""
        self.timeout = 2.0
        with contextlib.suppress(DeliveryError):
            async with self._bounded("no release"):
                self.writer.write(RELEASE_RQ_PDU)
                await self._pdu()
        self.close()

    def close(self) -> None:
        """Close the connection at once; unsent data is dropped."""
        if self.writer:
            self.writer.transport.abort()
