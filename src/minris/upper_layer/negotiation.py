"""Accept or reject association requests (PS3.8 7.1, PS3.7 D.3)."""

import collections
import logging
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pydicom.uid import UID

from minris import __version__
from minris.access.devices import AccessRules
from minris.recent import Recent
from minris.standard.status import Message
from minris.standard.uids import (
    APPLICATION_CONTEXT,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from minris.upper_layer.pdus import (
    A_ASSOCIATE_AC,
    A_ASSOCIATE_RJ,
    A_ASSOCIATE_RQ,
    PDU_HEADER,
    AcceptedContext,
    ProtocolError,
)


def calling_ae_title(pdu: bytes) -> str:
    """Return the calling AE title of an A-ASSOCIATE-RQ, without padding."""
    return pdu[26:42].decode("ascii", "replace").strip(" \0")


class Rejection(Exception):
    """An association is rejected with this result, source and reason (PS3.8 9.3.4)."""

    def __init__(self, result: int, source: int, reason: int, words: str) -> None:
        super().__init__(words)
        self.pdu = PDU_HEADER.pack(A_ASSOCIATE_RJ, 0, 4) + bytes((0, result, source, reason))


class Negotiated(NamedTuple):
    """An accepted A-ASSOCIATE-RQ.

    of_providers  abstract syntaxes for which the peer is SCP only, and we are SCU
    not_served    names of proposed abstract syntaxes that were not accepted, and why
    """

    answer: bytes
    contexts: Mapping[int, AcceptedContext]
    maximum_length: int
    called: str
    calling: str
    of_providers: frozenset[str] = frozenset()
    not_served: tuple[str, ...] = ()


NO_TRANSFER_SYNTAX, MOST_NOT_SERVED = 4, 6  # PS3.8 Table 9-18


def not_served_names(contexts: Iterable[Any]) -> tuple[str, ...]:
    """The names of the contexts that were not accepted, each once, of many the first."""
    names = []
    for context in contexts:
        if context.result:
            uid = UID(str(context.abstract_syntax))
            name = uid.name if re.fullmatch(r"[0-9.]{3,64}", uid) else "an invalid UID"
            why = " (no transfer syntax of ours)" if context.result == NO_TRANSFER_SYNTAX else ""
            names.append(f"{name}{why}")
    names = list(dict.fromkeys(names))
    more = len(names) - MOST_NOT_SERVED
    return (*names[:MOST_NOT_SERVED], *([f"and {more} more"] if more > 0 else ()))


def _items(data: bytes, pos: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield type, start and end of each item of an A-ASSOCIATE PDU. Raises ProtocolError."""
    while pos < end:
        if pos + 4 > end:
            raise ProtocolError("an item of A-ASSOCIATE-RQ is truncated")
        length = int.from_bytes(data[pos + 2 : pos + 4], "big")
        if pos + 4 + length > end:
            raise ProtocolError("an item of A-ASSOCIATE-RQ is longer than the PDU")
        yield data[pos], pos + 4, pos + 4 + length
        pos += 4 + length


MAXIMUM_LENGTH, ROLE_SELECTION, EXTENDED = 0x51, 0x54, 0x56  # PS3.8 annex D, PS3.7 annex D


def deciding_items(pdu: bytes, start: int, end: int, classes: Collection[str]) -> bytes:
    """The user information that has a say in the negotiation of some SOP classes.

    What only informs (who made the peer, its window, its user, other classes) is left out, so that
    it ends no association, whatever is wrong with it. Raises ProtocolError past the end
    """
    kept = []
    for kind, first, last in _items(pdu, start, end):
        length = int.from_bytes(pdu[first : first + 2], "big")
        named = pdu[first + 2 : min(first + 2 + length, last)].decode("latin-1").strip(" \0")
        of_class = kind in (ROLE_SELECTION, EXTENDED) and named in classes
        if kind == MAXIMUM_LENGTH or of_class:
            kept.append(pdu[first - 4 : last])
    return b"".join(kept)


def _readable_uids(pdu: bytes, start: int, end: int) -> bytes:
    """The syntaxes of a presentation context; one that cannot be read is `0`, which nobody has."""
    parts = []
    for kind, first, last in _items(pdu, start, end):
        uid = pdu[first:last].strip(b" \0")
        content = pdu[first:last] if 0 < len(uid) <= 64 and uid.isascii() else b"0"
        parts.append(bytes((kind, 0)) + len(content).to_bytes(2, "big") + content)
    return b"".join(parts)


def check_associate_rq(pdu: bytes, classes: Collection[str]) -> tuple[bytes, dict[int, int]]:
    """Check an A-ASSOCIATE-RQ before it is decoded, and renumber even context IDs.

    Returns  the PDU, and {new odd ID: even ID}: dcm4che's stgcmtscu sends 2
    Raises   ProtocolError for more than 128 contexts, IDs used twice, no transfer syntax
    """
    numbers, kinds, parts = [], collections.Counter(), []
    for kind, start, end in _items(pdu, 74, len(pdu)):
        kinds[kind] += 1
        content = pdu[start:end]
        if kind == 0x20:
            if end - start < 4 or content[0] in numbers or not content[0]:
                raise ProtocolError("a presentation context has no unique ID")
            inner = collections.Counter(t for t, _, _ in _items(pdu, start + 4, end))
            if inner[0x30] != 1 or not inner[0x40]:
                raise ProtocolError("a presentation context lacks its syntaxes")
            numbers.append(content[0])
            content = content[:4] + _readable_uids(pdu, start + 4, end)
        elif kind == 0x50:
            content = deciding_items(pdu, start, end, classes)
        if kind in (0x10, 0x20, 0x50):  # PS3.8 9.3.1: others are ignored
            parts.append(bytearray((kind, 0)) + len(content).to_bytes(2, "big") + content)
    if not numbers or len(numbers) > 128 or kinds[0x10] != 1 or kinds[0x50] != 1:
        raise ProtocolError(
            Message("A-ASSOCIATE-RQ has {number} presentation contexts", number=len(numbers))
        )
    free, renumbered = (number for number in range(255, 0, -2) if number not in numbers), {}
    for part in parts:
        if part[0] == 0x20 and part[4] % 2 == 0:
            number, part[4] = part[4], next(free)
            renumbered[part[4]] = number
    titles = b"".join(pdu[at : at + 16].strip(b" \0").ljust(16) for at in (10, 26))
    body = pdu[6:10] + titles + pdu[42:74] + b"".join(parts)
    return PDU_HEADER.pack(A_ASSOCIATE_RQ, 0, len(body)) + body, renumbered


def check_associate_ac(pdu: bytes, classes: Collection[str]) -> bytes:
    """An A-ASSOCIATE-AC without what only informs. Raises ProtocolError past the end"""
    parts = [pdu[6:74]]
    for kind, start, end in _items(pdu, 74, len(pdu)):
        content = pdu[start:end]
        if kind == 0x50:
            content = deciding_items(pdu, start, end, classes)
        parts.append(bytes((kind, 0)) + len(content).to_bytes(2, "big") + content)
    body = b"".join(parts)
    return PDU_HEADER.pack(A_ASSOCIATE_AC, 0, len(body)) + body


class Negotiator:
    """Accepts or rejects A-ASSOCIATE-RQs with pynetdicom's classes, and caches its answers.

    contexts        abstract syntaxes we serve, with the (SCU, SCP) roles we accept if proposed
    extended        service class application information of our answer, by SOP class
    maximum_length  maximum PDU length that we announce
    """

    REMEMBERED, LONGEST = 1 << 20, 8192  # bytes of all, and of one

    def __init__(
        self,
        contexts: Mapping[str, tuple[bool, bool] | None],
        extended: Mapping[str, bytes],
        maximum_length: int,
    ) -> None:
        from pynetdicom.presentation import build_context

        for library in ("pynetdicom", "pydicom"):  # we log a peer's invalid bytes ourselves
            logging.getLogger(library).setLevel(logging.CRITICAL)
            warnings.filterwarnings("ignore", module=library)
        self.extended, self.maximum_length = extended, maximum_length
        syntaxes = [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN]
        self.classes = frozenset(contexts)
        self.supported = [build_context(uid, syntaxes) for uid in contexts]
        for context, roles in zip(self.supported, contexts.values(), strict=True):
            context.scu_role, context.scp_role = roles or (None, None)
        self.known: Recent[object, Negotiated] = Recent(self.REMEMBERED)

    def decide(
        self,
        pdu: bytes,
        address: str,
        access: AccessRules | None,
        addresses: Collection[str] = (),
    ) -> Negotiated:
        """Return the answer to an A-ASSOCIATE-RQ. Raises Rejection, ProtocolError.

        access     who may call; None for ourselves
        addresses  those of the host that the rules name for the caller
        """
        if len(pdu) < 74:
            raise ProtocolError("A-ASSOCIATE-RQ is truncated")
        called = pdu[10:26].decode("ascii", "replace").strip(" \0")
        calling = calling_ae_title(pdu)
        if access:
            self._check_titles(called, calling, address, access, addresses)
        key = pdu, address, access and access.version
        negotiated = self.known.get(key)
        if negotiated is None:
            negotiated = self._negotiate(pdu, called, calling)
            if len(pdu) <= self.LONGEST and not self._has_user_identity(pdu):
                size = len(pdu) + len(negotiated.answer) + 250 * len(negotiated.contexts)
                self.known.keep(key, negotiated, 1000 + size)
        return negotiated

    @staticmethod
    def _check_titles(
        called: str, calling: str, address: str, access: AccessRules, addresses: Collection[str]
    ) -> None:
        """Reject a caller without access; never cached (PS3.8 Table 9-21)."""
        if not calling:
            raise Rejection(1, 1, 3, Message("the calling AE title is empty"))
        for reason, title in ((3, calling), (7, called)):
            if not re.fullmatch(r"[ -\[\]-~]{1,16}", title):
                words = Message("{title} is not an AE title", title=ascii(title))
                raise Rejection(1, 1, reason, words)
        if refusal := access.refusal(called, calling, address, addresses):
            raise Rejection(1, 1, *refusal)

    @staticmethod
    def _has_user_identity(pdu: bytes) -> bool:
        return any(
            kind == 0x58
            for outer, start, end in _items(pdu, 74, len(pdu))
            if outer == 0x50
            for kind, _, _ in _items(pdu, start, end)
        )

    def _negotiate(self, pdu: bytes, called: str, calling: str) -> Negotiated:
        from pynetdicom import pdu as pdus

        pdu, renumbered = check_associate_rq(pdu, self.classes)
        if not int.from_bytes(pdu[6:8], "big") & 1:
            raise Rejection(1, 2, 2, Message("protocol version 1 is not proposed"))
        request = pdus.A_ASSOCIATE_RQ()
        try:
            request.decode(pdu)
            primitive = request.to_primitive()
        except Exception as error:  # any exception of pynetdicom for invalid bytes
            raise ProtocolError(
                Message("cannot decode A-ASSOCIATE-RQ: {error}", error=error)
            ) from None
        if str(primitive.application_context_name) != APPLICATION_CONTEXT:
            raise Rejection(1, 1, 2, Message("the application context is not DICOM's"))
        return self._accept(primitive, called, calling, renumbered)

    def _accept(
        self, primitive: Any, called: str, calling: str, renumbered: Mapping[int, int]
    ) -> Negotiated:
        from pynetdicom import pdu as pdus
        from pynetdicom import pdu_primitives as items
        from pynetdicom.presentation import negotiate_as_acceptor

        roles, extended, maximum = {}, [], 0
        for item in primitive.user_information:
            if isinstance(item, items.MaximumLengthNotification):
                maximum = item.maximum_length_received
            elif isinstance(item, items.SCP_SCU_RoleSelectionNegotiation):
                roles[item.sop_class_uid] = item.scu_role, item.scp_role
            elif isinstance(item, items.SOPClassExtendedNegotiation):
                extended += self._extended(item)
        if 0 < maximum < 1024:
            words = Message("a maximum PDU length of {maximum} bytes is too small", maximum=maximum)
            raise Rejection(1, 2, 1, words)
        results, role_items = negotiate_as_acceptor(
            primitive.presentation_context_definition_list, self.supported, roles
        )
        length = items.MaximumLengthNotification()
        length.maximum_length_received = self.maximum_length
        implementation = items.ImplementationClassUIDNotification()
        implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        version = items.ImplementationVersionNameNotification()
        version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        answer = items.A_ASSOCIATE()
        answer.application_context_name = primitive.application_context_name
        answer.calling_ae_title = primitive.calling_ae_title
        answer.called_ae_title = primitive.called_ae_title
        answer.result, answer.result_source = 0, 1
        answer.presentation_context_definition_results_list = results
        answer.user_information = [length, implementation, version, *role_items, *extended]
        pdu = pdus.A_ASSOCIATE_AC()
        pdu.from_primitive(answer)
        contexts = {}
        for context in results:
            number = renumbered.get(context.context_id, context.context_id)
            if context.result == 0:
                explicit = str(context.transfer_syntax[0]) == EXPLICIT_VR_LITTLE_ENDIAN
                contexts[number] = AcceptedContext(number, str(context.abstract_syntax), explicit)
        encoded = bytearray(pdu.encode())
        for kind, start, _ in _items(encoded, 74, len(encoded)):
            if kind == 0x21:
                encoded[start] = renumbered.get(encoded[start], encoded[start])
        providers = frozenset(str(uid) for uid, (scu, scp) in roles.items() if scp and not scu)
        refused = not_served_names(results)
        return Negotiated(bytes(encoded), contexts, maximum, called, calling, providers, refused)

    def _extended(self, item: Any) -> list[Any]:
        """Answer an extended negotiation item with as many bytes as proposed, 3 at least."""
        ours = self.extended.get(str(item.sop_class_uid))
        if ours is None:
            return []
        asked = len(item.service_class_application_information)
        answer = type(item)()
        answer.sop_class_uid = item.sop_class_uid
        answer.service_class_application_information = ours[: max(3, asked)]
        return [answer]


IMPLEMENTATION_CLASS_UID = "2.25.86392480563837162905117359046021397318"
IMPLEMENTATION_VERSION_NAME = f"MINRIS_{__version__.replace('.', '')}"[:16]
