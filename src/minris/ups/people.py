"""Workitems on the pages: what users do with them, and what is shown."""

import datetime
import re
from typing import Any, NamedTuple

from minris import log
from minris.access.context import Context, audit, needs_reason
from minris.dataset.checks import well_formed
from minris.dataset.elements import ElementIndex, sequence_elements, text_elements
from minris.dataset.items import cancellation_reason, code_item, workitem_code
from minris.outbox import WAITING
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Refusal, Status
from minris.standard.ups import EVENT_TYPES, FINAL_UPS_STATES, LOCAL_SCHEME, UPS_STATES
from minris.store.models import Workitem, database
from minris.store.rows import fetch_rows, update_row
from minris.ups.events import record_event
from minris.ups.search import find_workitem
from minris.ups.workitems import (
    cancel_workitem,
    change_state,
    dicom_now,
    report_changes,
    save_workitem,
    with_cancellation,
)


def claim_by_person(ctx: Context, uid: str) -> None:
    """Claim a workitem for a user; we keep the Transaction UID. Refuses as change_state."""
    workitem = find_workitem(uid)
    if workitem.state == "IN PROGRESS":
        words = Message("{performer} has claimed it already", performer=workitem.performer)
        raise Refusal(Status.TRANSACTION_UID_INCORRECT, words)
    change_state(ctx, uid, "IN PROGRESS", ctx.new_uid())


def _not_ended(uid: str) -> Any:
    """Return a workitem that has not ended. Refuses C307, C300."""
    workitem = find_workitem(uid)
    if workitem.state in FINAL_UPS_STATES:
        raise Refusal(Status.MAY_NO_LONGER_BE_UPDATED, Message("It has ended already"))
    return workitem


def claimed_by(ctx: Context, uid: str) -> Any:
    """Return a workitem that this user has claimed. Refuses C307, C301, C310, C300."""
    workitem = _not_ended(uid)
    if workitem.state == "SCHEDULED":
        raise Refusal(Status.NOT_YET_IN_PROGRESS, Message("Nobody has claimed it yet"))
    if not workitem.by_person or workitem.performer != ctx.actor.name:
        words = Message("Claimed by {performer}", performer=workitem.performer)
        raise Refusal(Status.TRANSACTION_UID_INCORRECT, words)
    return workitem


def finish_by_person(ctx: Context, uid: str, remark: str = "") -> None:
    """Complete a workitem for the user who claimed it. Refuses as claimed_by, change_state."""
    with database.atomic():
        workitem = claimed_by(ctx, uid)
        performed = [performed_by_person(ctx, workitem, remark)]
        told = sequence_elements(UnifiedProcedureStepPerformedProcedureSequence=performed)
        save_workitem(ctx, workitem, ElementIndex(workitem.data).merged(told))
        change_state(ctx, uid, "COMPLETED", workitem.transaction_uid)


def performed_by_person(ctx: Context, workitem: Any, remark: str) -> ElementIndex:
    """Return the performed procedure item that COMPLETED needs, for a user."""
    began = datetime.datetime.fromisoformat(workitem.claimed_at).astimezone(ctx.config.zone)
    codes = ElementIndex(workitem.data).items(tag_of("ScheduledWorkitemCodeSequence"))
    person = text_elements(HumanPerformerName=re.sub(r"[\\^=]", " ", ctx.actor.name)[:64])
    sequences = sequence_elements(
        PerformedStationNameCodeSequence=[code_item("DESK", "Desk", LOCAL_SCHEME)],
        PerformedWorkitemCodeSequence=codes or [workitem_code("110005")],
        ActualHumanPerformersSequence=[person],
        OutputInformationSequence=[],
    )
    texts = text_elements(
        PerformedProcedureStepStartDateTime=f"{began:%Y%m%d%H%M%S%z}",
        PerformedProcedureStepEndDateTime=dicom_now(ctx),
        CommentsOnThePerformedProcedureStep=remark,
    )
    return well_formed(texts.merged(sequences))


def give_up_by_person(ctx: Context, uid: str, remark: str, code: str = "110513") -> None:
    """Cancel a workitem for the user who claimed it. Refuses as claimed_by, change_state.

    code  a key of UPS_CANCELLATION_REASONS
    """
    with database.atomic():
        workitem = claimed_by(ctx, uid)
        why = cancellation_reason(remark, code)
        save_workitem(ctx, workitem, with_cancellation(ctx, ElementIndex(workitem.data), why))
        change_state(ctx, uid, "CANCELED", workitem.transaction_uid)


def decline_cancellation(ctx: Context, uid: str, remark: str) -> None:
    """Decline a cancellation request; further requests get C313.

    Refuses  0106, C314, and as claimed_by. Source: PS3.4 CC.2.2.3
    """
    needs_reason(remark)
    workitem = claimed_by(ctx, uid)
    asked = EVENT_TYPES["UPS Cancel Requested"]
    if not any(one.event_type == asked for one in history_of(uid)):
        words = Message("No cancellation has been requested")
        raise Refusal(Status.ACTION_NOT_APPROPRIATE, words)
    update_row(Workitem, workitem.id, declined=remark.strip()[:500])
    said = well_formed(text_elements(ReasonForCancellation=remark.strip()))
    record_event(ctx, "Cancellation declined", uid, said, [])
    audit(ctx, "workitem cancellation declined", uid, remark.strip()[:500])


def assign_workitem(ctx: Context, uid: str, station: str = "", performer: str = "") -> None:
    """Assign a workitem to a station or a person, and tell its subscribers.

    station    AE title of a device; empty: unchanged
    performer  name of a person; empty: unchanged
    Refuses    C307, C300 after its end, 0106
    """
    if not station and not performer:
        words = Message("Choose a station or name a person")
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words)
    with database.atomic():
        workitem = _not_ended(uid)
        new = old = ElementIndex(workitem.data)
        if station:
            code = code_item(station, station, LOCAL_SCHEME)
            new = new.merged(sequence_elements(ScheduledStationNameCodeSequence=[code]))
        if performer:
            organization = ctx.config.clinic.name or ctx.config.dicom.ae_title
            texts = text_elements(
                HumanPerformerName=performer, HumanPerformerOrganization=organization[:64]
            )
            code = code_item(performer, performer, LOCAL_SCHEME)
            item = texts.merged(sequence_elements(HumanPerformerCodeSequence=[code]))
            new = new.merged(sequence_elements(ScheduledHumanPerformersSequence=[item]))
        save_workitem(ctx, workitem, well_formed(new))
        report_changes(ctx, workitem, old, new)
        audit(ctx, "workitem assigned", uid, f"{station} {performer}".strip())


def relationship_of_step(step: bytes) -> ElementIndex:
    """Return patient and request of a scheduled procedure step in the form of a workitem.

    Source: PS3.3 C.30.4
    """
    index = ElementIndex(step)
    patient = index.only(map(tag_of, (
        "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
        "AdmissionID", "MedicalAlerts", "SpecialNeeds", "StudyInstanceUID",
    )))  # fmt: skip
    request = index.only(map(tag_of, (
        "StudyInstanceUID", "AccessionNumber", "RequestedProcedureID",
        "RequestedProcedureDescription", "RequestedProcedureCodeSequence",
        "ReasonForTheRequestedProcedure", "RequestedProcedureComments", "RequestingPhysician",
        "ReferringPhysicianName",
    )))  # fmt: skip
    return patient.merged(sequence_elements(ReferencedRequestSequence=[request]))


def workitems_of_request(accession_number: str) -> list[tuple[str, str, str]]:
    """Return UID, label and state of the workitems of a request, 20 at most."""
    return database.execute_sql(
        "SELECT sop_instance_uid, label, state FROM workitem"
        " WHERE accession_number = ? AND accession_number <> '' ORDER BY start_at LIMIT 20",
        (accession_number,),
    ).fetchall()


MOST_LISTED = 200


def workitems_of(state: str, label: str) -> tuple[list[Any], int]:
    """Return MOST_LISTED workitems of a state and worklist label, and how many there are.

    state  empty: the open ones. Open ones are sorted by start, ended ones by end, newest first
    """
    states = [state] if state in UPS_STATES else ["SCHEDULED", "IN PROGRESS"]
    where = f"state IN ({', '.join('?' * len(states))}) AND (? = '' OR worklist_label = ?)"
    order = "ended_at DESC" if state in FINAL_UPS_STATES else "start_at"
    found = fetch_rows(
        Workitem, f"{where} ORDER BY {order} LIMIT {MOST_LISTED}", *states, label, label
    )
    cursor = database.execute_sql(
        f"SELECT count(*) FROM workitem WHERE {where}", (*states, label, label)
    )
    return found, cursor.fetchone()[0]


def worklist_labels() -> list[str]:
    """Return the worklist labels in use."""
    cursor = database.execute_sql("SELECT DISTINCT worklist_label FROM workitem ORDER BY 1")
    return [label for (label,) in cursor]


class Happening(NamedTuple):
    """An event in the history of a workitem; `heard` of its `receivers` have acknowledged it."""

    at: str
    who: str
    event_type: int
    data: bytes
    receivers: int
    heard: int


MOST_HAPPENINGS = 500


def history_of(uid: str) -> list[Happening]:
    """Return the last MOST_HAPPENINGS events of a workitem, purged ones included, oldest first."""
    cursor = database.execute_sql(
        "SELECT e.created_at, e.who, e.event_type, e.data, count(DISTINCT o.receiver),"
        " count(DISTINCT CASE WHEN o.sent_at <> '' THEN o.receiver END) FROM workitem_event e LEFT JOIN outbox o ON o.event_id = e.id"
        " WHERE e.sop_instance_uid = ? AND e.initial = 0 GROUP BY e.id ORDER BY e.id DESC LIMIT ?",
        (uid, MOST_HAPPENINGS),
    )
    found = [Happening(at, who, kind, bytes(data), n, m) for at, who, kind, data, n, m in cursor]
    return found[::-1]


def watchers_of(uid: str) -> list[tuple[str, int]]:
    """Return the AE titles subscribed to a workitem, with their deletion locks."""
    return database.execute_sql(
        "SELECT s.ae_title, s.deletion_lock FROM subscription s JOIN workitem w"
        " ON w.id = s.workitem_id WHERE w.sop_instance_uid = ? ORDER BY s.ae_title",
        (uid,),
    ).fetchall()


class Watcher(NamedTuple):
    """A subscriber and the state of its deliveries."""

    ae_title: str
    uid: str
    deletion_lock: int
    single: int
    waiting: int
    heard_at: str
    problem: str
    channels: str


def watchers() -> list[Watcher]:
    """Return global subscriptions, single subscribers and receivers of events, by AE title."""
    cursor = database.execute_sql(
        "SELECT a.ae_title, coalesce(g.uid, ''), coalesce(g.deletion_lock, 0),"
        " (SELECT count(*) FROM subscription s WHERE s.ae_title = a.ae_title),"
        " (SELECT count(*) FROM outbox o WHERE o.lane IN ('events', 'websocket')"
        f" AND o.receiver = a.ae_title AND {WAITING}),"
        " coalesce(r.heard_at, ''), coalesce(r.problem, ''),"
        " (SELECT coalesce(group_concat(c.channel, ' '), '') FROM event_channel c"
        " WHERE c.ae_title = a.ae_title) FROM"
        " (SELECT ae_title FROM global_subscription UNION SELECT ae_title FROM receiver WHERE lane = 'events'"
        " UNION SELECT ae_title FROM subscription) a"
        " LEFT JOIN global_subscription g ON g.ae_title = a.ae_title"
        " LEFT JOIN receiver r ON r.lane = 'events' AND r.ae_title = a.ae_title ORDER BY a.ae_title, g.uid"
    )
    return [Watcher(*row) for row in cursor]


def release_lock(ctx: Context, uid: str, ae_title: str, why: str) -> None:
    """End a deletion lock for its subscriber, which stays subscribed. Refuses 0106, C307, C314."""
    needs_reason(why)
    workitem = find_workitem(uid)
    cursor = database.execute_sql(
        "UPDATE subscription SET deletion_lock = 0"
        " WHERE workitem_id = ? AND ae_title = ? AND deletion_lock = 1",
        (workitem.id, ae_title),
    )
    if not cursor.rowcount:
        words = Message("{ae} holds no lock on it", ae=ae_title)
        raise Refusal(Status.ACTION_NOT_APPROPRIATE, words)
    audit(ctx, "lock released", uid, f"{ae_title}: {why.strip()[:500]}")
    log.info("workitem %s: deletion lock of %s released by %s", uid, ae_title, ctx.actor)


def end_workitem(
    ctx: Context, uid: str, why: str, code: str = "110513", state: str = "", before: str = ""
) -> None:
    """Cancel a stuck workitem, whoever has claimed it. Refuses 0106, C307, C300.

    code           a key of UPS_CANCELLATION_REASONS
    state, before  if given, C300 unless it is in this state and unchanged since this time
    """
    needs_reason(why)
    with database.atomic():
        workitem = _not_ended(uid)
        if (state and workitem.state != state) or (before and workitem.updated_at >= before):
            words = Message("It no longer needs attention")
            raise Refusal(Status.MAY_NO_LONGER_BE_UPDATED, words)
        cancel_workitem(ctx, workitem, cancellation_reason(why, code))
        audit(ctx, "workitem ended", uid, why.strip()[:500])
