"""Encode and decode PDUs, command sets and messages (PS3.8 9, PS3.7 6.3)."""

import functools
import struct
from typing import Any, NamedTuple

from pydicom import datadict

from minris.dataset.elements import TAG, TAG_AND_LENGTH, encoded, pad
from minris.standard.dictionary import tag_of, vr_of

A_ASSOCIATE_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ, P_DATA_TF = 1, 2, 3, 4
A_RELEASE_RQ, A_RELEASE_RP, A_ABORT = 5, 6, 7
PDU_EVENTS = dict(enumerate(
    ("ASSOCIATE-RQ", "ASSOCIATE-AC", "ASSOCIATE-RJ", "P-DATA", "RELEASE-RQ", "RELEASE-RP", "ABORT"), 1
))  # fmt: skip
PDU_HEADER = struct.Struct(">BBI")
PDV_HEADER = struct.Struct(">IBB")
NO_DATA_SET = 0x0101
C_CANCEL_RQ, N_EVENT_REPORT_RSP = 0x0FFF, 0x8100
OPERATIONS = {
    0x0001: "C-STORE", 0x0010: "C-GET", 0x0020: "C-FIND", 0x0021: "C-MOVE", 0x0030: "C-ECHO",
    0x0100: "N-EVENT-REPORT", 0x0110: "N-GET", 0x0120: "N-SET", 0x0130: "N-ACTION",
    0x0140: "N-CREATE", 0x0150: "N-DELETE",
}  # fmt: skip
# PS3.7 10.1: the field with the type of an event or action; operations that name an Affected UID.
NUMBERS = {"N-EVENT-REPORT": "EventTypeID", "N-ACTION": "ActionTypeID"}
NAMED = {"N-EVENT-REPORT": "Affected", "N-CREATE": "Affected"}  # else "Requested"


class ProtocolError(Exception):
    """A peer broke a rule of the upper layer or exceeded a limit; the association is aborted.

    reason  of A-ABORT: 1 unrecognized PDU, 2 unexpected PDU, 6 invalid parameter (PS3.8 9.3.8)
    """

    def __init__(self, words: str, reason: int = 6) -> None:
        super().__init__("".join(c if c.isprintable() else "?" for c in words))
        self.reason = reason


class AcceptedContext(NamedTuple):
    """A presentation context both sides agreed on."""

    id: int
    abstract_syntax: str
    explicit: bool


def abort_pdu(source: int, reason: int = 0) -> bytes:
    """Return an A-ABORT PDU; source 0 is the service user, 2 the provider (PS3.8 9.3.8)."""
    return PDU_HEADER.pack(A_ABORT, 0, 4) + bytes((0, 0, source, reason))


RELEASE_RQ_PDU = PDU_HEADER.pack(A_RELEASE_RQ, 0, 4) + bytes(4)
RELEASE_RP_PDU = PDU_HEADER.pack(A_RELEASE_RP, 0, 4) + bytes(4)


@functools.lru_cache(maxsize=256)
def command_element(element: int) -> tuple[str, str]:
    """Return keyword and VR of an element of group 0000. Raises KeyError."""
    return datadict.keyword_for_tag(element), datadict.dictionary_VR(element)


def decode_command(data: bytes) -> dict[str, Any]:
    """Return a command set (implicit little endian) by keyword. Raises ProtocolError."""
    fields: dict[str, Any] = {}
    pos = 0
    while pos < len(data):
        if pos + 8 > len(data):
            raise ProtocolError("a command set is truncated")
        group, element, length = TAG_AND_LENGTH.unpack_from(data, pos)
        pos += 8 + length
        if group or pos > len(data):
            raise ProtocolError("a command set has an element outside group 0000")
        try:
            keyword, vr = command_element(element)
        except KeyError:
            continue
        value = data[pos - length : pos]
        if vr == "US":
            fields[keyword] = int.from_bytes(value[:2], "little")
        elif vr == "AT":
            count = length // 4
            words = struct.unpack_from(f"<{count * 2}H", value)
            fields[keyword] = [g << 16 | e for g, e in zip(words[::2], words[1::2], strict=True)]
        else:
            fields[keyword] = value.decode("ascii", "replace").strip(" \0")
    if not {"CommandField", "CommandDataSetType"} <= fields.keys():
        raise ProtocolError("a command set has no Command Field or Command Data Set Type")
    return fields


def encode_command(**fields: Any) -> bytes:
    """Return a command set from keywords; None is left out. Source: PS3.7 6.3.1, annex E."""
    elements = {}
    for keyword, value in fields.items():
        if value is None:
            continue
        tag = tag_of(keyword)
        vr = vr_of(tag)
        if vr == "US":
            raw = int(value).to_bytes(2, "little")
        elif vr == "AT":
            raw = b"".join(TAG.pack(one >> 16, one & 0xFFFF) for one in value)
        else:
            raw = pad(str(value).encode("ascii", "backslashreplace"), vr.encode())
        elements[tag] = TAG_AND_LENGTH.pack(0, tag, len(raw)) + raw
    body = encoded(elements)
    return TAG_AND_LENGTH.pack(0, 0, 4) + len(body).to_bytes(4, "little") + body


def message_pdus(
    context: AcceptedContext,
    command: bytes,
    data: bytes | None,
    longest: int,
    combined: bool = True,
) -> bytes:
    """Return a message as P-DATA-TF PDUs; `combined`: command and data set may share one."""
    room = longest - 6
    parts = [(command[i : i + room], 1) for i in range(0, len(command), room)]
    last = {len(parts) - 1}
    if data:
        parts += [(data[i : i + room], 0) for i in range(0, len(data), room)]
        last.add(len(parts) - 1)
    pdus, together = [], b""
    for number, (part, kind) in enumerate(parts):
        control = kind | (2 if number in last else 0)
        value = PDV_HEADER.pack(len(part) + 2, context.id, control) + part
        if together and (len(together) + len(value) > longest or not combined):
            pdus.append(PDU_HEADER.pack(P_DATA_TF, 0, len(together)) + together)
            together = b""
        together += value
    return b"".join(pdus) + PDU_HEADER.pack(P_DATA_TF, 0, len(together)) + together
