"""Instance Availability Notification, received and forwarded (PS3.4 R)."""

import itertools
from collections.abc import Iterable

import peewee

from minris import log
from minris.access.context import Context, audit
from minris.dataset.checks import check_attributes, check_instance, check_uid, exists_already
from minris.dataset.elements import ElementIndex, sequence_elements, text_elements
from minris.dataset.items import availability_data
from minris.images.arrivals import note_images
from minris.images.references import Evidence, available_of, available_uids, uid_problems
from minris.outbox import pass_on
from minris.standard.commitment import (
    AVAILABILITY_ATTRIBUTES,
    INSTANCE_AVAILABILITIES,
    REFERENCED_SOP,
)
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.uids import INSTANCE_AVAILABILITY, MPPS
from minris.store.models import AvailabilityNotice, database
from minris.store.rows import insert_row, insert_rows

ENTER_AVAILABILITY = (
    "availability (sop_instance_uid, retrieve_ae_title, sop_class_uid, study_instance_uid,"
    " series_instance_uid, availability, who, at) VALUES"
    " ON CONFLICT (sop_instance_uid, retrieve_ae_title) DO UPDATE SET"
    " sop_class_uid = excluded.sop_class_uid, availability = excluded.availability,"
    " study_instance_uid = excluded.study_instance_uid,"
    " series_instance_uid = excluded.series_instance_uid, who = excluded.who, at = excluded.at"
)


def notify_availability(ctx: Context, uid: str, data: bytes) -> str:
    """Store an Instance Availability Notification; return its UID, assigned if empty.

    The newest notification of an instance at a Retrieve AE counts.
    Refuses  0106, 0111, 0117, 0120, 0121
    Source   PS3.4 R.3.2.1
    """
    uid = uid or ctx.new_uid()
    check_uid(uid)
    index = ElementIndex(data)
    check_instance(index, INSTANCE_AVAILABILITY, uid)
    check_attributes(index, AVAILABILITY_ATTRIBUTES, "create", lenient=True)
    _check_availability(index)
    study = index.get("StudyInstanceUID")
    rows_ = [
        (one.get("ReferencedSOPInstanceUID"), one.get("RetrieveAETitle"),
         one.get("ReferencedSOPClassUID"), study, series.get("SeriesInstanceUID"),
         one.get("InstanceAvailability"), ctx.actor.name, ctx.stamp())
        for series in index.items(tag_of("ReferencedSeriesSequence"))
        for one in series.items(REFERENCED_SOP)
    ]  # fmt: skip
    with database.atomic():
        try:
            insert_row(AvailabilityNotice, sop_instance_uid=uid, who=ctx.actor.name, data=data,
                       created_at=ctx.stamp())  # fmt: skip
        except peewee.IntegrityError:
            raise exists_already(uid) from None
        insert_rows(ENTER_AVAILABILITY, rows_)
        look_again({row[0] for row in rows_})
        note_images(ctx, {study: available_of(study)}, "availability")
        pass_on(ctx, "availability", "N-CREATE", uid, data)
        audit(ctx, "availability notified", study, Message("{count} images", count=len(rows_)))
    log.info("availability notified by %s; instances: %d", ctx.actor, len(rows_))
    return uid


def look_again(uids: Iterable[str]) -> None:
    """Make commitment requests that wait for these instances due now."""
    database.connection().executemany(
        "UPDATE commitment SET try_at = '' WHERE state = 'asked' AND id IN (SELECT commitment_id"
        " FROM commitment_instance WHERE sop_instance_uid = ? AND verdict = '')",
        [(uid,) for uid in uids],
    )


def _check_availability(index: ElementIndex) -> None:
    """Refuse (0106) two performed steps, an unknown availability, a duplicate instance."""
    problems, seen = [], set()
    performed = tag_of("ReferencedPerformedProcedureStepSequence")
    if len(index.items(performed)) > 1:
        problems.append(Problem(performed, Message("has more than one item")))
    word, instance = tag_of("InstanceAvailability"), tag_of("ReferencedSOPInstanceUID")
    for series in index.items(tag_of("ReferencedSeriesSequence")):
        for one in series.items(REFERENCED_SOP):
            if one.text(word) not in INSTANCE_AVAILABILITIES:
                choices = ", ".join(sorted(INSTANCE_AVAILABILITIES))
                problems.append(Problem(word, Message("is not one of {choices}", choices=choices)))
            place = one.text(instance), one.get("RetrieveAETitle")
            if place in seen:
                problems.append(Problem(instance, Message("is there twice")))
            seen.add(place)
    problems += uid_problems(index)
    if problems:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems[:20])


def record_found(ctx: Context, archive: str, evidence: Evidence) -> None:
    """Store which images were found in the archive, and forward new ones.

    archive  its AE title; its own notification of an available image outranks our query
    """
    seen = evidence.places.keys() & evidence.found.keys()
    new = seen - available_uids(evidence.places, [archive])
    if not new:
        return
    unknown = new - available_uids(new)
    rows_ = [
        (uid, archive, evidence.found[uid][0], *evidence.places[uid], "", ctx.stamp())
        for uid in sorted(new)
    ]
    with database.atomic():
        insert_rows(ENTER_AVAILABILITY, rows_)
        look_again(new)
        told = sorted((row for row in rows_ if row[0] in unknown), key=lambda row: row[3:5])
        for study, of_study in itertools.groupby(told, key=lambda row: row[3]):
            data = availability_notice(study, list(of_study))
            pass_on(ctx, "availability", "N-CREATE", ctx.new_uid(), data)


def availability_notice(study: str, rows_: list[tuple[str, ...]]) -> bytes:
    """An Instance Availability Notification of a study, with its performed step if it has one.

    rows_  as for availability_data
    """
    performed = database.execute_sql(
        "SELECT p.sop_instance_uid FROM performed_procedure_step p JOIN performed_scheduled_step l"
        " ON l.performed_id = p.id JOIN scheduled_procedure_step s ON s.id = l.scheduled_id"
        " WHERE s.study_instance_uid = ? LIMIT 2",
        (study,),
    ).fetchall()
    of = [
        text_elements(ReferencedSOPClassUID=MPPS, ReferencedSOPInstanceUID=uid).merged(
            sequence_elements(PerformedWorkitemCodeSequence=[])
        )
        for (uid,) in performed[:1] if len(performed) == 1
    ]  # fmt: skip
    return bytes(availability_data(study, rows_, of))
