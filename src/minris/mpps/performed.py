"""Performed procedure steps: N-CREATE, N-SET, N-GET (PS3.4 F.7, F.8)."""

import functools
from collections.abc import Iterable
from typing import Any

import peewee

from minris import log
from minris.access.context import Context, audit
from minris.dataset.checks import (
    check_attributes,
    check_instance,
    check_uid,
    check_unchanged,
    exists_already,
    noted_problems,
    selected_attributes,
)
from minris.dataset.elements import ElementIndex
from minris.mpps.linking import doubt_patient, link_step, settle_steps
from minris.outbox import pass_on
from minris.standard.dictionary import tag_of
from minris.standard.mpps import (
    FINAL_MPPS_STATES,
    MAY_NO_LONGER_BE_UPDATED,
    MPPS_ATTRIBUTES,
    MPPS_EVENTS,
    MPPS_STATUS,
    MPPS_TRANSITIONS,
    SERIES,
    STEP_ATTRIBUTES,
)
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.uids import MPPS
from minris.store.models import PerformedProcedureStep, database
from minris.store.rows import first_row, insert_row, known_row, update_row

NOT_SETTABLE = frozenset(
    attribute.tag for attribute in MPPS_ATTRIBUTES.children() if attribute.cells["set"] == "NA"
)


def create_mpps(ctx: Context, uid: str, data: bytes, raw: bytes | None = None) -> str:
    """Create a performed procedure step; return its SOP Instance UID.

    uid      Affected SOP Instance UID (0000,1000); if empty, one is assigned
    data     the attribute list, stored form
    raw      the bytes as received, if texts had to be recovered
    Refuses  0111, 0117, 0120, 0121; 0106 for a status other than IN PROGRESS
    Source   PS3.4 F.7.2.1, PS3.7 10.1.5
    """
    uid = uid or ctx.new_uid()
    check_uid(uid)
    index = ElementIndex(data)
    check_instance(index, MPPS, uid)
    strict = ctx.config.dicom.strict_mpps
    forgiven = check_attributes(index, MPPS_ATTRIBUTES, "create", lenient=not strict)
    if index.text(MPPS_STATUS) != "IN PROGRESS":
        words = Message("{value} is not IN PROGRESS", value=index.text(MPPS_STATUS))
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(MPPS_STATUS, words)])
    with database.atomic():
        try:
            performed_id = insert_row(
                PerformedProcedureStep,
                sop_instance_uid=uid,
                status=MPPS_TRANSITIONS["create", "none"],
                performed_station_ae_title=index.get("PerformedStationAETitle"),
                data=data,
                created_at=ctx.stamp(),
                updated_at=ctx.stamp(),
                remark=noted_problems(forgiven),
                raw=raw,
                patient_id=index.get("PatientID"),
            )
        except peewee.IntegrityError:
            raise exists_already(uid) from None
        items = index.items(STEP_ATTRIBUTES)
        links = [link_step(performed_id, item, index) for item in items]
        settle_steps(ctx, performed_id)
        pass_on(ctx, "mpps", "N-CREATE", uid, data)
        notify_of_mpps(ctx, uid, "IN PROGRESS")
        audit(
            ctx,
            "performed step created",
            uid,
            Message("{number} of {count} steps found", number=sum(links), count=len(links)),
        )
    if forgiven:
        log.warning(
            "performed step %s from %s without %s", uid, ctx.actor, noted_problems(forgiven)
        )
    log.info("performed step %s: IN PROGRESS by %s; linked steps: %d", uid, ctx.actor, sum(links))
    return uid


def has_gone_round(ctx: Context, performed: Any, told: bytes) -> bool:
    """Whether a change was forwarded before and does not come from the machine itself.

    Otherwise two systems that forward to each other would never stop
    """
    if ctx.actor.name == performed.performed_station_ae_title:
        return False
    where = "sop_instance_uid = ? AND operation = 'N-SET' AND data = ? LIMIT 1"
    found = database.execute_sql(
        f"SELECT 1 FROM outbox WHERE {where}", (performed.sop_instance_uid, told)
    )
    return bool(found.fetchone())


def notify_of_mpps(ctx: Context, uid: str, entered: str) -> None:
    """Send an MPPS Notification; `entered`, a key of MPPS_EVENTS, is the state or what happened."""
    pass_on(ctx, "mpps_notification", "N-EVENT-REPORT", uid, event_type=MPPS_EVENTS[entered])


def _kept_raw(ctx: Context, known: bytes | None, raw: bytes | None) -> bytes | None:
    """The bytes as received, appended to those kept; without these if the sum is too long."""
    if not (known and raw):
        return raw or known
    kept = bytes(known) + raw
    return kept if len(kept) <= ctx.config.dicom.maximum_dataset_length else raw


def set_mpps(ctx: Context, uid: str, data: bytes, raw: bytes | None = None) -> None:
    """Update a performed procedure step that is IN PROGRESS.

    uid      Requested SOP Instance UID (0000,1001)
    data     the modification list, stored form; a sequence replaces the stored one
    Refuses  0112; 0110 with A710 after the end; 0105 for a change of what may not be set;
             0106 for an unknown status; 0120, 0121 for what the final state requires
    Source   PS3.4 F.7.2.2
    """
    index = ElementIndex(data)
    with database.atomic():
        row = first_row(PerformedProcedureStep, "sop_instance_uid = ?", uid)
        performed = known_row(row, Message("{uid} is not known", uid=uid))
        status = index.text(MPPS_STATUS)
        state = mpps_outcome(performed, status)
        check_instance(index, MPPS, uid)
        stored = ElementIndex(performed.data)
        try:
            check_unchanged(index, stored, NOT_SETTABLE)  # PS3.4 Table F.7.2-1
        except Refusal as refusal:  # another patient is for people to see all the same
            refusal.afterwards = functools.partial(doubt_patient, performed.id, index)
            raise
        blank = {MPPS_STATUS} if not status else set()
        told = index.without(NOT_SETTABLE | blank)
        merged = stored.merged(told)
        remark = check_mpps(ctx, merged, state)
        update_row(
            PerformedProcedureStep,
            performed.id,
            data=bytes(merged),
            status=state,
            updated_at=ctx.stamp(),
            remark=", ".join(dict.fromkeys(filter(None, (performed.remark, remark)))),
            raw=_kept_raw(ctx, performed.raw, raw),
        )
        if state != performed.status:
            settle_steps(ctx, performed.id)
        changes = bytes(merged) != bytes(stored)
        if changes and not has_gone_round(ctx, performed, bytes(told)):
            pass_on(ctx, "mpps", "N-SET", uid, bytes(told))
        notify_of_mpps(ctx, uid, "" if state == performed.status else state)
        audit(ctx, "performed step set", uid, f"{performed.status} -> {state}")
    log.info("performed step %s: %s -> %s by %s", uid, performed.status, state, ctx.actor)
    if remark:
        log.warning("performed step %s from %s without %s", uid, ctx.actor, remark)


def get_mpps(uid: str, tags: Iterable[int] = ()) -> tuple[Status, bytes]:
    """The status and the data set of a performed procedure step, or some of its attributes.

    uid      Requested SOP Instance UID (0000,1001)
    tags     Attribute Identifier List (0000,1005), top level; all if empty
    Returns  0001 if a requested attribute is not supported, else 0000
    Refuses  0112
    Source   PS3.4 F.8.2.1, Table F.8.2-1
    """
    row = first_row(PerformedProcedureStep, "sop_instance_uid = ?", uid)
    performed = known_row(row, Message("{uid} is not known", uid=uid))
    return selected_attributes(ElementIndex(performed.data), tags, MPPS_ATTRIBUTES)


def mpps_outcome(performed: Any, status: str) -> str:
    """The state that an N-SET leads to. Refuses as MPPS_TRANSITIONS says; 0106."""
    outcome = MPPS_TRANSITIONS.get((f"set {status}".strip(), performed.status))
    if performed.status in FINAL_MPPS_STATES:
        raise Refusal(
            Status.PROCESSING_FAILURE,
            Message("Performed Procedure Step Object may no longer be updated"),
            error_id=MAY_NO_LONGER_BE_UPDATED,
        )
    if outcome is None:
        words = Message("{value} is not a state", value=status)
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(MPPS_STATUS, words)])
    return outcome


def check_mpps(ctx: Context, index: ElementIndex, state: str) -> str:
    """Check a performed step against the table for its state; return tolerated problems as text.

    DISCONTINUED without a series is common: tolerated unless [dicom] strict_mpps is set.
    Source  PS3.4 F.7.2.2.2
    """
    lenient = not ctx.config.dicom.strict_mpps
    final = state in FINAL_MPPS_STATES
    forgiven: list[Problem] = []
    if final and lenient and state == "DISCONTINUED":
        ends = ("PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime")
        for tag in (*map(tag_of, ends), SERIES):
            if not index.has_value(tag):
                forgiven.append(Problem(tag, Message("has no value")))
        index = index.without(problem.tag for problem in forgiven)
    series = index.items(SERIES)
    column = "final" if final else "create"
    for item in series:
        forgiven += check_attributes(item, MPPS_ATTRIBUTES, column, lenient, (SERIES,))
    if final:
        wanted = [tag for tag in FINAL_TAGS if tag not in {problem.tag for problem in forgiven}]
        for status, words, holds in (
            (Status.MISSING_ATTRIBUTE, Message("is missing"), index.__contains__),
            (Status.MISSING_ATTRIBUTE_VALUE, Message("has no value"), index.has_value),
        ):
            if problems := [Problem(tag, words) for tag in wanted if not holds(tag)]:
                raise Refusal(status, problems=problems)
    return noted_problems(forgiven)


FINAL_TAGS = tuple(
    attribute.tag for attribute in MPPS_ATTRIBUTES.children() if attribute.cells["final"] == "1"
)


def performed_of(step_id: int) -> list[tuple[int, bytes, str, str, str, bytes]]:
    """Row id, data set, remark and link of each performed step of a scheduled step.

    Of the link: how it was found, the verdict on the patient, and who that is
    """
    return database.execute_sql(
        "SELECT p.id, p.data, p.remark, l.found_by, l.patient,"
        " CASE l.told WHEN x'' THEN p.data ELSE l.told END FROM performed_procedure_step p"
        " JOIN performed_scheduled_step l ON l.performed_id = p.id"
        " WHERE l.scheduled_id = ? ORDER BY p.id",
        (step_id,),
    ).fetchall()
