"""Check workitems against the tables of PS3.4 CC.2.5."""

import datetime
import re
from collections.abc import Iterator

from pydicom import datadict

from minris.access.context import Context
from minris.dataset.checks import check_attributes, check_unchanged
from minris.dataset.elements import (
    ElementIndex,
    encode_element,
    encode_items,
    encoded,
    every_element,
)
from minris.dataset.names import name_key
from minris.dataset.times import datetime_bounds, split_datetime_range, utc_stamp
from minris.standard.attributes import Attribute
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.ups import (
    MODIFIED_AT,
    PERFORMED_PROCEDURE,
    PROGRESS_INFORMATION,
    TIMEZONE_OFFSET,
    TRANSACTION_UID,
    UPS_ATTRIBUTES,
    UPS_ENUMERATIONS,
    UPS_STATE,
)

UPS_NOT_SETTABLE = frozenset(
    attribute.tag for attribute in UPS_ATTRIBUTES.children() if attribute.cells["set"] == "NA"
) - {TRANSACTION_UID, UPS_STATE}
UPS_IDENTITY = frozenset({tag_of("SOPClassUID"), tag_of("SOPInstanceUID")})


def workitem_columns(ctx: Context, index: ElementIndex) -> dict[str, str]:
    """Return the columns of a workitem, all taken from its data set; times are UTC."""
    requests = index.items(tag_of("ReferencedRequestSequence"))
    numbers = {item.get("AccessionNumber") for item in requests} - {""}

    def instant(keyword: str, which: int = 0) -> str:
        try:
            at = datetime_bounds(index.get(keyword), ctx.config.zone)[which]
        except (ValueError, OverflowError):
            return ""
        return utc_stamp(at.replace(microsecond=0) if which else at)

    return {
        "state": index.text(UPS_STATE),
        "worklist_label": index.get("WorklistLabel"),
        "priority": index.get("ScheduledProcedureStepPriority"),
        "readiness": index.get("InputReadinessState"),
        "start_at": instant("ScheduledProcedureStepStartDateTime"),
        "expires_at": instant("ScheduledProcedureStepExpirationDateTime", 1),
        "patient_id": index.get("PatientID"),
        "accession_number": "*" if len(numbers) > 1 else "".join(numbers),
        "name_key": name_key(index.get("PatientName")),
        "label": index.get("ProcedureStepLabel"),
    }


def datetime_with_offset(text: str, offset: str) -> str:
    """Return a DT value or range with this offset added where it has none."""
    low, dash, high = split_datetime_range(text)
    low, high = (
        end if not end or re.search(r"[+-]\d{4}$", end) else end + offset for end in (low, high)
    )
    return low + dash + high


def with_offsets(index: ElementIndex, offset: str) -> ElementIndex:
    """Return a data set with the offset added to every DT without one (PS3.3 C.12.1.1.8)."""
    elements = {}
    for tag in index:
        if index.vr(tag) == b"SQ":
            elements[tag] = encode_items(tag, [with_offsets(i, offset) for i in index.items(tag)])
        elif index.vr(tag) == b"DT" and index.has_value(tag):
            texts = [datetime_with_offset(text, offset) for text in index.values(tag)]
            elements[tag] = encode_element(tag, b"DT", "\\".join(texts).encode())
        elif tag != TIMEZONE_OFFSET:
            elements[tag] = index.element(tag)
    return ElementIndex(encoded(elements))


def in_own_zone(index: ElementIndex) -> ElementIndex:
    """Return a data set without (0008,0201), its offset in every DT. Refuses 0106 if invalid."""
    offset = index.text(TIMEZONE_OFFSET)
    if TIMEZONE_OFFSET not in index:
        return index
    if offset and not re.fullmatch(r"[+-](0\d|1[0-4])[0-5]\d", offset):
        problem = Problem(TIMEZONE_OFFSET, Message("is not an offset"))
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[problem])
    return with_offsets(index, offset)


def workitem_problems(ctx: Context, index: ElementIndex) -> list[Problem]:
    """Return what is wrong with the values of a workitem, or of an update of one."""
    problems, locks = [], []
    for keyword, allowed in UPS_ENUMERATIONS.items():
        value, choices = index.get(keyword), ", ".join(allowed)
        if value and value not in allowed:  # empty values are checked elsewhere
            words = Message("{value} is not one of {choices}", value=value, choices=choices)
            problems.append(Problem(tag_of(keyword), words))
    for holder, tag in every_element(index):
        if holder.vr(tag) == b"DT":
            problems += _datetime_problems(holder, tag, ctx.config.zone)
        elif tag == TRANSACTION_UID and holder is not index and holder.has_value(tag):
            locks.append(Problem(tag, Message("must be empty")))  # N-GET would return it
    words = Message("has more than one item")  # PS3.4 Table CC.2.5-3
    only_one = (PROGRESS_INFORMATION, PERFORMED_PROCEDURE)
    return problems + locks + [Problem(t, words) for t in only_one if len(index.items(t)) > 1]


def _datetime_problems(
    index: ElementIndex, tag: int, zone: datetime.tzinfo | None
) -> Iterator[Problem]:
    one_value = not datadict.dictionary_has_tag(tag) or datadict.dictionary_VM(tag) == "1"
    for text in filter(None, [index.text(tag)] if one_value else index.values(tag)):
        try:
            datetime_bounds(text, zone)
        except (ValueError, OverflowError):
            yield Problem(tag, Message("{value} is not a date and time", value=text[:64]))


def check_created(ctx: Context, index: ElementIndex) -> list[Problem]:
    """Check a new workitem against the table; return the problems that leniency accepts.

    Refuses  C309 unless the state is SCHEDULED; 0106 for a Transaction UID, progress or performed
             procedure with a value, and for an invalid value; 0120, 0121
    """
    state = index.text(UPS_STATE)
    if state and state != "SCHEDULED":
        raise Refusal(
            Status.NOT_CREATED_SCHEDULED,
            Message("A workitem cannot be created {state}", state=Message(state)),
        )
    forgiven = check_attributes(index, UPS_ATTRIBUTES, "create", not ctx.config.ups.strict)
    empty = (TRANSACTION_UID, PROGRESS_INFORMATION, PERFORMED_PROCEDURE)
    given = [Problem(tag, Message("must be empty")) for tag in empty if index.has_value(tag)]
    if problems := given + workitem_problems(ctx, index):
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
    return forgiven


def check_ups_settable(index: ElementIndex, stored: ElementIndex) -> None:
    """Check an N-SET. Refuses C303, 0105 for a state, 0105 for a fixed value, 0121 if emptied."""
    if state := index.text(UPS_STATE):
        if state == "SCHEDULED":
            raise Refusal(
                Status.SCHEDULED_ONLY_BY_CREATE, Message("The state is changed by N-ACTION")
            )
        words = Message("is changed by N-ACTION")
        raise Refusal(Status.NO_SUCH_ATTRIBUTE, problems=[Problem(UPS_STATE, words)])
    check_unchanged(index, stored, UPS_NOT_SETTABLE | UPS_IDENTITY)
    emptied = [
        Problem(attribute.tag, Message("has no value"))
        for attribute in UPS_ATTRIBUTES.children()
        if (attribute.cells["final"] == "R" or attribute.cells["create"] in ("1/1", "2/1"))
        and attribute.tag in index and not index.has_value(attribute.tag)
        and attribute.tag != MODIFIED_AT
    ]  # fmt: skip
    if emptied:
        raise Refusal(Status.MISSING_ATTRIBUTE_VALUE, problems=emptied)


def check_items(index: ElementIndex, lenient: bool) -> None:
    """Check the items in a modification list against their types in N-SET. Refuses 0120, 0121."""
    for attribute in UPS_ATTRIBUTES.children():
        if attribute.vr == "SQ" and attribute.tag in index:
            for item in index.items(attribute.tag):
                check_attributes(item, UPS_ATTRIBUTES, "set", lenient, attribute.path)


def check_final(index: ElementIndex, state: str) -> None:
    """Refuse (C304) a final state unless its requirements are met (PS3.4 Table CC.2.5-1)."""
    needed = {"R", "P", "P2"} if state == "COMPLETED" else {"R", "X"}
    problems = list(_final_problems(index, needed, ()))
    if problems:
        tags = " ".join(f"({p.tag >> 16:04X},{p.tag & 0xFFFF:04X})" for p in problems)
        words = Message("Missing: {attributes}", attributes=tags)
        raise Refusal(Status.FINAL_STATE_REQUIREMENTS_NOT_MET, words, problems)


def _final_problems(
    index: ElementIndex, needed: set[str], path: tuple[int, ...]
) -> Iterator[Problem]:
    for attribute in UPS_ATTRIBUTES.children(path):
        code = attribute.cells["final"]
        if code not in needed:
            continue
        met = attribute.tag in index if code == "P2" else has_content(index, attribute)
        if not met:
            yield Problem(attribute.tag, Message("has no value"))
        for item in index.items(attribute.tag):
            yield from _final_problems(item, needed, attribute.path)


def has_content(index: ElementIndex, attribute: Attribute) -> bool:
    """Tell whether an attribute has a value; in a code sequence, whether every item has a code."""
    if not attribute.keyword.endswith("CodeSequence"):
        return index.has_value(attribute.tag)
    items = index.items(attribute.tag)
    codes = ("CodeValue", "LongCodeValue", "URNCodeValue")
    return bool(items) and all(any(item.get(code) for code in codes) for item in items)
