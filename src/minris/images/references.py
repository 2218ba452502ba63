"""References to instances, and where these are known to be."""

import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from minris.access.context import Context
from minris.dataset.checks import check_attributes
from minris.dataset.elements import ElementIndex, encode_text, every_element
from minris.standard.commitment import (
    COMMITMENT_ATTRIBUTES,
    COMMITMENT_BY_STUDY,
    REFERENCED_SOP,
    RETRIEVABLE,
)
from minris.standard.dictionary import tag_of, value_problem
from minris.standard.mpps import STEP_ATTRIBUTES
from minris.standard.status import Message, Problem, Refusal, Status
from minris.store.models import database


class Reference(NamedTuple):
    """A reference to an instance, with study and series if known."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str = ""
    series_instance_uid: str = ""


class Evidence(NamedTuple):
    """Evidence of instances, by SOP Instance UID.

    found      class of each instance found, empty if unknown, and the AE title of the source
    missing    instances that were searched and not found
    unchecked  instances that could not be searched
    problem    why the others could not be checked
    reasons    the archive's failure reasons of missing ones; else 0112
    places     study, series and Instance Availability of instances found, if known
    """

    found: Mapping[str, tuple[str, str]]
    missing: frozenset[str] = frozenset()
    unchecked: frozenset[str] = frozenset()
    problem: str = ""
    reasons: Mapping[str, str] = types.MappingProxyType({})
    places: Mapping[str, tuple[str, ...]] = types.MappingProxyType({})


def uid_problems(index: ElementIndex) -> Iterator[Problem]:
    """Invalid or multiple UIDs at any depth."""
    for item, tag in every_element(index):
        if item.vr(tag) == b"UI" and (text := item.text(tag)) and value_problem("UI", text):
            yield Problem(tag, Message("{value} is not a UID", value=text[:64]))


def is_by_study(index: ElementIndex) -> bool:
    """Whether a commitment request lists its instances by study. Refuses 0106 for both forms."""
    flat, studies = REFERENCED_SOP, tag_of("ReferencedStudySequence")
    if flat in index and studies in index:
        problem = Problem(studies, Message("is there beside (0008,1199)"))
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[problem])
    return studies in index


def references_of(index: ElementIndex, by_study: bool) -> list[Reference]:
    """The instances of a commitment request."""
    if not by_study:
        items = index.items(REFERENCED_SOP)
        return [Reference(one.get("ReferencedSOPClassUID"), one.get("ReferencedSOPInstanceUID"))
                for one in items]  # fmt: skip
    return [
        Reference(kind.get("ReferencedSOPClassUID"), one.get("ReferencedSOPInstanceUID"),
                  study.get("StudyInstanceUID"), series.get("SeriesInstanceUID"))
        for study in index.items(tag_of("ReferencedStudySequence"))
        for series in study.items(tag_of("ReferencedSeriesSequence"))
        for kind in series.items(tag_of("ReferencedInstancesBySOPClassSequence"))
        for one in kind.items(tag_of("ReferencedInstanceSequence"))
    ]  # fmt: skip


def checked_references(ctx: Context, index: ElementIndex, by_study: bool) -> list[Reference]:
    """The instances of a commitment request, checked. Refuses 0115, 0120, 0121, 0213."""
    check_attributes(index, COMMITMENT_BY_STUDY if by_study else COMMITMENT_ATTRIBUTES, "action")
    references = references_of(index, by_study)
    most = ctx.config.commitment.maximum_instances
    if len(references) > most:
        words = Message("{count} images are more than the {most} of one request",
                        count=len(references), most=most)  # fmt: skip
        raise Refusal(Status.RESOURCE_LIMITATION, words)
    uids = [one.sop_instance_uid for one in references]
    tag = tag_of("ReferencedSOPInstanceUID")
    wrong = [uid for one in references for uid in one if uid and value_problem("UI", uid)]
    problem = None
    if len(set(uids)) < len(uids):
        problem = Problem(tag, Message("is there twice"))
    elif wrong:
        problem = Problem(tag, Message("{value} is not a UID", value=wrong[0][:64]))
    if problem:
        raise Refusal(Status.INVALID_ARGUMENT_VALUE, problems=[problem])
    return references


MOST_PERFORMED = 3000  # newest performed steps that are searched for an instance


def _availability_of(
    uids: Iterable[str], columns: str, where: str = "1 = 1", *values: str
) -> Iterator[tuple[Any, ...]]:
    """Columns of the availability of some instances under a condition, read by 500."""
    wanted = list(uids)
    for start in range(0, len(wanted), 500):
        some = wanted[start : start + 500]
        yield from database.execute_sql(
            f"SELECT {columns} FROM availability WHERE {where}"
            f" AND sop_instance_uid IN ({', '.join('?' * len(some))})",
            (*values, *some),
        )


def places_of(uids: set[str]) -> dict[str, tuple[str, str]]:
    """Study and series of instances, known from availability or performed steps."""
    columns = "sop_instance_uid, study_instance_uid, series_instance_uid"
    found = {uid: tuple(place) for uid, *place in _availability_of(sorted(uids), columns)}
    open_ = uids - found.keys()
    while open_:
        row = database.execute_sql(
            "SELECT data FROM (SELECT id, data FROM performed_procedure_step ORDER BY id DESC"
            f" LIMIT {MOST_PERFORMED}) WHERE instr(data, ?) ORDER BY id DESC LIMIT 1",
            (encode_text("ReferencedSOPInstanceUID", min(open_)),),
        ).fetchone()
        told = produced_by(ElementIndex(row[0])) if row else {}
        found |= {uid: told[uid][:2] for uid in open_ & told.keys()}
        open_ = (open_ - told.keys()) if told.keys() & open_ else open_ - {min(open_)}
        if not row and len(open_) > 20:
            break  # the machine does not report: the others are unknown too
    return found


def produced_by(performed: ElementIndex) -> dict[str, tuple[str, str, str]]:
    """Study, series and class of each instance that a performed step references."""
    studies = {one.get("StudyInstanceUID") for one in performed.items(STEP_ATTRIBUTES)} - {""}
    if len(studies) != 1:
        return {}
    (study,), found = studies, {}
    for series in performed.items(tag_of("PerformedSeriesSequence")):
        for keyword in ("ReferencedImageSequence",
                        "ReferencedNonImageCompositeSOPInstanceSequence"):  # fmt: skip
            for one in series.items(tag_of(keyword)):
                found[one.get("ReferencedSOPInstanceUID")] = (
                    study, series.get("SeriesInstanceUID"), one.get("ReferencedSOPClassUID")
                )  # fmt: skip
    return found


def notified_instances(references: Iterable[Reference], archive: str) -> dict[str, str]:
    """The class of each instance that the archive has notified as available there."""
    uids = (one.sop_instance_uid for one in references)
    where = f"retrieve_ae_title = ? AND who = ? AND availability IN {RETRIEVABLE}"
    columns = "sop_instance_uid, sop_class_uid"
    return dict(_availability_of(uids, columns, where, archive, archive))


def available_of(study: str) -> int:
    """The number of a study's images that are known to be available."""
    where = f"study_instance_uid = ? AND availability IN {RETRIEVABLE}"
    sql = f"SELECT count(DISTINCT sop_instance_uid) FROM availability WHERE {where}"
    return database.execute_sql(sql, (study,)).fetchone()[0]


def available_uids(uids: Iterable[str], at: Iterable[str] = ()) -> set[str]:
    """The instances among these that are known to be available.

    at  accepted Retrieve AE Titles; any if empty
    """
    places, where = list(at), f"availability IN {RETRIEVABLE}"
    if places:
        where += f" AND retrieve_ae_title IN ({', '.join('?' * len(places))})"
    return {uid for (uid,) in _availability_of(uids, "sop_instance_uid", where, *places)}
