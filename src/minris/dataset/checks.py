"""Checks of a data set: against the VRs, against an attribute table, against the stored one."""

import contextlib
from collections.abc import Container, Iterable, Iterator

from pydicom import datadict

from minris.dataset.elements import ElementIndex, encode_element, encoded, every_element
from minris.dataset.text import SPECIFIC_CHARACTER_SET
from minris.dataset.times import shown_date
from minris.standard.attributes import AttributeTable
from minris.standard.dictionary import (
    BINARY_VRS,
    ONE_VALUE_VRS,
    attribute_name,
    is_date,
    tag_of,
    value_problem,
)
from minris.standard.status import Message, Problem, Refusal, Status


def well_formed(index: ElementIndex) -> ElementIndex:
    """Return a data set made from a form. Refuses 0106 if a value is not valid for its VR."""
    if problems := list(value_problems(index)):
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
    return index


def value_problems(index: ElementIndex) -> Iterator[Problem]:
    """A problem for each value that its VR does not allow, at any depth."""
    for holder, tag in every_element(index):
        vr = holder.vr(tag)
        if vr == b"SQ" or vr in BINARY_VRS:
            continue
        texts = [holder.text(tag)] if vr in ONE_VALUE_VRS else holder.values(tag)
        several = len(texts) > 1 and datadict.dictionary_has_tag(tag)
        if several and datadict.dictionary_VM(tag) == "1":
            yield Problem(tag, Message("has more than one value"))
        for text in filter(None, texts):
            if words := value_problem(vr.decode(), text):
                yield Problem(tag, words)


# The weight (kg) and height (m) that a person can have: from, to, unit.
MEASURES = {"PatientWeight": (0.2, 650, "kg"), "PatientSize": (0.2, 2.75, "m")}
FIRST_BIRTH_DATE = "18500101"


def implausible(index: ElementIndex, today: str) -> list[Problem]:
    """What cannot be true of a patient who is registered: birth date, weight, height.

    today  date at the clinic, DA
    """
    problems = []
    born = index.get("PatientBirthDate")
    if is_date(born) and not FIRST_BIRTH_DATE <= born <= today:
        words = Message("{value} is not a birth date", value=shown_date(born))
        problems.append(Problem(tag_of("PatientBirthDate"), words))
    for keyword, (low, high, unit) in MEASURES.items():
        with contextlib.suppress(ValueError):  # value_problems says so
            if not low <= float(index.get(keyword) or low) <= high:
                words = Message("{value} {unit} cannot be", value=index.get(keyword), unit=unit)
                problems.append(Problem(tag_of(keyword), words))
    return problems


def check_attributes(
    index: ElementIndex,
    table: AttributeTable,
    column: str,
    lenient: bool = False,
    path: tuple[int, ...] = (),
) -> list[Problem]:
    """Check a data set against a column of an attribute table; return what was tolerated.

    column   its cells are types: `1/1`, `2/2`, `1`, `2`; other cells require nothing (PS3.4 5.4.2)
    lenient  tolerate an absent type 2 attribute
    Refuses  0120 for a missing attribute, 0121 for a missing value
    """
    absent, empty, forgiven = [], [], []
    for attribute in table.children(path):
        kind = attribute.cells[column].partition("/")[0]
        if attribute.tag not in index:
            if kind == "1" or (kind == "2" and not lenient):
                absent.append(Problem(attribute.tag, Message("is missing")))
            elif kind == "2":
                forgiven.append(Problem(attribute.tag, Message("is missing")))
        elif kind == "1" and not index.has_value(attribute.tag):
            empty.append(Problem(attribute.tag, Message("has no value")))
        elif attribute.vr == "SQ":
            for item in index.items(attribute.tag):
                forgiven += check_attributes(item, table, column, lenient, attribute.path)
    if absent:
        raise Refusal(Status.MISSING_ATTRIBUTE, problems=absent)
    if empty:
        raise Refusal(Status.MISSING_ATTRIBUTE_VALUE, problems=empty)
    return forgiven


def with_empty(index: ElementIndex, table: AttributeTable, column: str) -> ElementIndex:
    """The data set, with the missing type 2 attributes of a column added empty."""
    absent = {
        attribute.tag: encode_element(attribute.tag, attribute.vr.encode(), b"")
        for attribute in table.children()
        if attribute.cells[column].startswith("2/") and attribute.tag not in index
    }
    return index.merged(ElementIndex(encoded(absent)))


def selected_attributes(
    index: ElementIndex, tags: Iterable[int], table: AttributeTable
) -> tuple[Status, bytes]:
    """The answer to N-GET: status, and the requested attributes; 0001 if one is not supported.

    tags  Attribute Identifier List (0000,1005), top level; empty: all attributes
    """
    tags = list(tags)
    wanted = [tag for tag in tags if tag & 0xFFFF and tag != SPECIFIC_CHARACTER_SET]
    if not tags:
        return Status.SUCCESS, bytes(index)
    parts, missing = {}, False
    for tag in wanted:
        attribute = table.get((tag,))
        if tag in index:
            parts[tag] = index.element(tag)
        elif attribute and attribute.cells["get"] == "3/2":
            parts[tag] = encode_element(tag, attribute.vr.encode(), b"")
        else:
            missing = True
    status = Status.OPTIONAL_ATTRIBUTES_NOT_SUPPORTED if missing else Status.SUCCESS
    return status, encoded(parts)


def check_uid(uid: str) -> None:
    """Refuse (0117) a text that is not a UID."""
    if value_problem("UI", uid) or not uid:
        raise Refusal(Status.INVALID_SOP_INSTANCE, Message("{value} is not a UID", value=uid[:64]))


def exists_already(uid: str) -> Refusal:
    """The refusal (0111) of a new instance whose UID is in use."""
    return Refusal(Status.DUPLICATE_SOP_INSTANCE, Message("{uid} already exists", uid=uid))


def check_instance(index: ElementIndex, sop_class: str, uid: str) -> None:
    """Refuse (0106) a data set whose SOP class or instance differs from the command set (local)."""
    known = {"SOPClassUID": sop_class, "SOPInstanceUID": uid}
    problems = [
        Problem(tag_of(keyword), Message("is not that of the command set"))
        for keyword, value in known.items()
        if index.get(keyword) not in ("", value)
    ]
    if problems:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)


def noted_problems(problems: Iterable[Problem]) -> str:
    """The names of tolerated attributes, for the log and the step's page."""
    return ", ".join(dict.fromkeys(attribute_name(problem.tag) for problem in problems))


def _comparable(index: ElementIndex, tag: int) -> str:
    """A value for comparison: a name loses its trailing empty components and groups (PS3.5 6.2)."""
    text = index.text(tag)
    if tag not in index or index.vr(tag) != b"PN":
        return text
    return "=".join(group.rstrip("^ ") for group in text.split("=")).rstrip("=")


def _same_value(index: ElementIndex, stored: ElementIndex, tag: int) -> bool:
    """Whether an attribute has the stored value."""
    if index.vr(tag) != b"SQ":
        return _comparable(index, tag) == _comparable(stored, tag)
    empty = not index.has_value(tag) and not stored.has_value(tag)
    return empty or index.element(tag) == stored.element(tag)


def check_unchanged(index: ElementIndex, stored: ElementIndex, tags: Container[int]) -> None:
    """Refuse (0105) attributes that may not be set and differ from the stored ones."""
    problems = [
        Problem(tag, Message("may not be set"))
        for tag in index
        if tag in tags and not _same_value(index, stored, tag)
    ]
    if problems:
        raise Refusal(Status.NO_SUCH_ATTRIBUTE, problems=problems)
