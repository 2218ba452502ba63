"""Decode requests; encode responses, refusals and our requests (PS3.7 9.3, 10.3, C)."""

import re
from typing import Any

from minris import log
from minris.access.context import Context
from minris.config.ini import Device
from minris.dataset.elements import ElementIndex, Malformed, TooManyElements
from minris.dataset.recode import Limits, Recoded, recode_noting
from minris.dataset.search import to_syntax
from minris.dataset.text import ASCII, SPECIFIC_CHARACTER_SET, character_set
from minris.standard.dictionary import attribute_name
from minris.standard.status import Message, Problem, Refusal, Status, is_failure
from minris.standard.ups import TRANSACTION_UID
from minris.upper_layer.messages import Request
from minris.upper_layer.pdus import NAMED, NO_DATA_SET, NUMBERS, OPERATIONS, encode_command


def decode_request(ctx: Context, request: Request, device: Device | None) -> None:
    """Decode a request's data set into `index`, stored form. Refuses 0110, 0213."""
    limits = ctx.config.dicom
    charset = character_set(device.character_set) if device else ASCII
    most = Limits(limits.maximum_nesting, limits.maximum_elements)
    try:
        recoded = recode_noting(request.data or b"", request.context.explicit, charset, most)
    except Malformed as error:
        many = isinstance(error, TooManyElements)
        status = Status.RESOURCE_LIMITATION if many else Status.PROCESSING_FAILURE
        raise Refusal(status, f"Cannot decode the data set: {error}") from None
    if recoded.recovered or recoded.guessed or recoded.damaged:
        _note_texts(ctx, request, recoded)
    request.asked = recoded.asked
    request.index = ElementIndex(recoded.data)


def _note_texts(ctx: Context, request: Request, recoded: Recoded) -> None:
    """Log texts that contradict their character set. Refuse (0106, 0115) what would be kept wrong.

    Refuses  0106 for an N-service with an unknown set and bytes that are not UTF-8: they would be
             stored wrong for good (PS3.5 6.1.2.3). A query is answered as well as possible.
    """
    found = (*recoded.recovered, *recoded.guessed, *recoded.damaged)
    words = ", ".join(map(attribute_name, found))
    how = "guessed" if recoded.guessed or recoded.damaged else "recovered"
    log.warning("%s from %s: %s, %s", request.operation, ctx.actor, words, how)
    unknown = recoded.asked and character_set(recoded.asked) is None
    if recoded.damaged and unknown and request.operation != "C-FIND":
        words = Message("is in a character set that is not known here")
        problems = [Problem(SPECIFIC_CHARACTER_SET, words)]
        of_list = request.operation in WITH_LIST  # PS3.7 10.1.4.1.10 has no 0106
        status = Status.INVALID_ATTRIBUTE_VALUE if of_list else Status.INVALID_ARGUMENT_VALUE
        raise Refusal(status, problems=problems)
    if request.operation != "C-FIND":
        request.raw = request.data


def response_command(request: Request, data: bytes | None, **fields: Any) -> bytes:
    """Return the command set of a response (PS3.7 9.3, 10.3)."""
    command, status = request.command, fields["Status"]
    number = NUMBERS.get(request.operation)
    if number and (not is_failure(status) or status in OF_A_TYPE):
        fields[number] = command.get(number)
    if request.operation.startswith("N-"):
        uid = command.get("AffectedSOPInstanceUID") or command.get("RequestedSOPInstanceUID")
        fields.setdefault("AffectedSOPInstanceUID", uid or None)
    return encode_command(
        AffectedSOPClassUID=command.get("AffectedSOPClassUID")
        or command.get("RequestedSOPClassUID"),
        CommandField=command["CommandField"] | 0x8000,
        MessageIDBeingRespondedTo=request.message_id,
        CommandDataSetType=1 if data else NO_DATA_SET,
        **fields,
    )


def request_command(
    operation: str, sop_class: str, uid: str, has_data: bool, message_id: int, number: int
) -> bytes:
    """Return the command set of a request of ours (PS3.7 10.3).

    number  Event Type ID or Action Type ID, if the operation has one
    """
    named, kind = NAMED.get(operation, "Requested"), 1 if has_data else NO_DATA_SET
    fields = {f"{named}SOPClassUID": sop_class, f"{named}SOPInstanceUID": uid}
    fields |= {NUMBERS[operation]: number} if operation in NUMBERS else {}
    (field,) = (code for code, name in OPERATIONS.items() if name == operation)
    return encode_command(
        CommandField=field, MessageID=message_id, CommandDataSetType=kind, **fields
    )


OF_A_TYPE = (Status.NO_SUCH_EVENT_TYPE, Status.INVALID_ARGUMENT_VALUE, Status.NO_SUCH_ACTION)
SENT_BACK = (Status.INVALID_ATTRIBUTE_VALUE, Status.MISSING_ATTRIBUTE_VALUE)
WITH_LIST = ("N-CREATE", "N-SET")
# What a C-FIND may fail with (PS3.4 C.4.1.1.4, K.4.1.1.4, CC.2.8.4); 0211 is of any operation.
FIND_FAILURES = frozenset({Status.OUT_OF_RESOURCES, Status.IDENTIFIER_DOES_NOT_MATCH,
                           Status.SOP_CLASS_NOT_SUPPORTED, Status.UNRECOGNIZED_OPERATION,
                           Status.UNABLE_TO_PROCESS})  # fmt: skip


def answered_status(request: Request, status: Status) -> Status:
    """Return the status that the operation has for a failure: a C-FIND has some of its own."""
    if request.operation != "C-FIND" or status in FIND_FAILURES:
        return status
    full = status is Status.RESOURCE_LIMITATION
    return Status.OUT_OF_RESOURCES if full else Status.UNABLE_TO_PROCESS


def refused_fields(request: Request, refusal: Refusal) -> tuple[dict[str, Any], bytes | None]:
    """Return the command fields of a failure, and a data set of its attributes if allowed.

    Only N-CREATE and N-SET have an attribute list. Only a failure of OF_A_TYPE has the type of
    an event or action. Source: PS3.7 C.5, 10.1.4.1.5
    """
    fields: dict[str, Any] = {
        "Status": answered_status(request, refusal.status),
        "ErrorComment": error_comment(refusal),
        "ErrorID": refusal.error_id,
    }
    data = None
    if request.operation == "C-FIND":
        fields["OffendingElement"] = refusal.tags or None
    elif refusal.status in (Status.NO_SUCH_ATTRIBUTE, Status.MISSING_ATTRIBUTE):
        fields["AttributeIdentifierList"] = refusal.tags or None
    elif request.index and refusal.status in SENT_BACK and request.operation in WITH_LIST:
        tags = (tag for tag in refusal.tags if tag != TRANSACTION_UID)  # secret
        data = to_syntax(bytes(request.index.only(tags)), request.context.explicit) or None
    return fields, data


def error_comment(refusal: Refusal) -> str:
    """Return Error Comment (0000,0902): printable ASCII, 64 characters at most, with the tag."""
    words = refusal.detail
    if refusal.problems and words == str(refusal.problems[0]) and refusal.problems[0].tag:
        tag, words = refusal.problems[0]
        words = f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {words}"
    return re.sub(r"[^ -\[\]-~]", "?", words)[:64]
