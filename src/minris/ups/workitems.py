"""Create, update, claim, end and get workitems (PS3.4 CC.2)."""

import hmac
from collections.abc import Iterable
from typing import Any

from minris import log
from minris.access.context import Context, audit
from minris.dataset.checks import check_instance, check_uid, noted_problems, selected_attributes
from minris.dataset.elements import EMPTY, ElementIndex, sequence_elements, text_elements
from minris.dataset.items import cancellation_reason
from minris.standard.dictionary import tag_of, value_problem
from minris.standard.status import STATUS_WORDS, Message, Problem, Refusal, Status
from minris.standard.uids import UPS_PUSH, WELL_KNOWN_UPS
from minris.standard.ups import (
    CANCELLATION_REASON,
    FINAL_UPS_STATES,
    MODIFIED_AT,
    TRANSACTION_UID,
    UPS_ATTRIBUTES,
    UPS_STATE,
    UPS_STATES,
    UPS_TRANSITIONS,
)
from minris.store.models import PurgedWorkitem, Workitem, database
from minris.store.rows import (
    erase,
    fetch_rows,
    first_version,
    insert_row,
    insert_rows,
    row_exists,
    update_row,
)
from minris.ups.checks import (
    UPS_IDENTITY,
    UPS_NOT_SETTABLE,
    check_created,
    check_final,
    check_items,
    check_ups_settable,
    in_own_zone,
    workitem_columns,
    workitem_problems,
)
from minris.ups.events import assigned_reports, can_be_told, record_event, state_report, subscribers
from minris.ups.search import find_workitem, stored_workitem
from minris.ups.subscriptions import enter_subscriptions, subscribe_created


def dicom_now(ctx: Context) -> str:
    """Return the current time as a DT value with its offset."""
    return f"{ctx.local_now():%Y%m%d%H%M%S%z}"


_EMPTY_AT_FIRST = ("transaction_uid", "performer", "declined", "claimed_at", "ended_at")


def create_workitem(ctx: Context, uid: str, data: bytes) -> tuple[str, Status]:
    """Create a workitem; return its UID, a new one if none is given, and the status.

    data     the attribute list, stored form
    Refuses  as check_created; 0111, 0117
    Source   PS3.4 CC.2.5
    """
    uid = uid or ctx.new_uid()
    check_uid(uid)
    index, known = in_own_zone(ElementIndex(data)), stored_workitem(uid)
    check_instance(index, UPS_PUSH, uid)
    if known or is_purged(uid):
        state = known.state if known else "COMPLETED"
        raise Refusal(UPS_TRANSITIONS["create", state], Message("{uid} already exists", uid=uid))
    forgiven = check_created(ctx, index)
    made = text_elements(
        SOPClassUID=UPS_PUSH,
        SOPInstanceUID=uid,
        ProcedureStepState=UPS_TRANSITIONS["create", "none"],
        ScheduledProcedureStepModificationDateTime=dicom_now(ctx),
        WorklistLabel=index.get("WorklistLabel") or ctx.config.ups.worklist_label,
    )
    stored = index.without([TRANSACTION_UID]).merged(made)
    with database.atomic():
        row_id = insert_row(
            Workitem,
            sop_instance_uid=uid,
            by_person=0,
            data=bytes(stored),
            version=first_version(),
            created_at=ctx.stamp(),
            updated_at=ctx.stamp(),
            **dict.fromkeys(_EMPTY_AT_FIRST, ""),
            **workitem_columns(ctx, stored),
        )
        told = subscribe_created(ctx, row_id, stored)
        auto = ctx.config.ups.auto_subscribe_creator and can_be_told(ctx, ctx.actor.name)
        if auto and ctx.actor.name not in told:
            enter_subscriptions([(row_id, ctx.actor.name, 0, ctx.stamp())])
            told.append(ctx.actor.name)
        record_event(ctx, "UPS State Report", uid, state_report(stored), told)
        for report in assigned_reports(stored):
            record_event(ctx, "UPS Assigned", uid, report, told)
        audit(ctx, "workitem created", uid)
    if forgiven:
        log.info(
            "workitem %s from %s is without type 2 attributes: %s",
            uid,
            ctx.actor,
            noted_problems(forgiven),
        )
    log.info("workitem %s: SCHEDULED by %s", uid, ctx.actor)
    return uid, Status.SUCCESS


def key_state(workitem: Any, transaction_uid: str) -> str:
    """Return "right UID" or "wrong UID"; compared in constant time.

    workitem  None if it does not exist: any valid UID is right, as before a claim
    """
    if not workitem or workitem.state == "SCHEDULED":
        well_formed = transaction_uid and not value_problem("UI", transaction_uid)
        return "right UID" if well_formed else "wrong UID"
    right = hmac.compare_digest(workitem.transaction_uid.encode(), transaction_uid.encode())
    return "right UID" if right and transaction_uid else "wrong UID"


def ups_outcome(event: str, workitem: Any | None) -> str | Status:
    """Return the new state or the warning in UPS_TRANSITIONS. Refuses a failure."""
    outcome = UPS_TRANSITIONS[event, workitem.state if workitem else "none"]
    if isinstance(outcome, Status) and outcome >> 12 != 0xB:
        raise Refusal(outcome, STATUS_WORDS[outcome][0])
    return outcome


def update_workitem(ctx: Context, uid: str, data: bytes) -> Status:
    """Update a workitem; one in progress needs its Transaction UID in the data.

    data     modification list, stored form; a sequence replaces the stored one
    Refuses  C307, C300, C301, C310; C303 for SCHEDULED; 0105 for another state, and for a changed
             value that may not be set; 0106, 0121
    Source   PS3.4 CC.2.6
    """
    index = in_own_zone(ElementIndex(data))
    with database.atomic():
        workitem, key = stored_workitem(uid), index.text(TRANSACTION_UID)
        ups_outcome(f"set, {key_state(workitem, key) if key else 'no UID'}", workitem)
        stored = ElementIndex(workitem.data)
        check_ups_settable(index, stored)
        leave = UPS_NOT_SETTABLE | UPS_IDENTITY | {TRANSACTION_UID, UPS_STATE, MODIFIED_AT}
        told = index.without(leave)
        if problems := workitem_problems(ctx, told):
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
        check_items(told, not ctx.config.ups.strict)
        merged = stored.merged(told)
        save_workitem(ctx, workitem, merged)
        report_changes(ctx, workitem, stored, merged)
        audit(ctx, "workitem set", uid)
    return Status.SUCCESS


def save_workitem(ctx: Context, workitem: Any, index: ElementIndex, **columns: Any) -> ElementIndex:
    """Write a workitem's data set with a new modification time and version; return it."""
    now = text_elements(ScheduledProcedureStepModificationDateTime=dicom_now(ctx))
    index = index.merged(now)
    update_row(
        Workitem,
        workitem.id,
        data=bytes(index),
        version=workitem.version + 1,
        updated_at=ctx.stamp(),
        **workitem_columns(ctx, index) | columns,
    )
    workitem.data, workitem.version = bytes(index), workitem.version + 1
    return index


PROGRESS_TOLD = tuple(map(tag_of, (
    "ProcedureStepProgress", "ProcedureStepProgressDescription",
    "ProcedureStepCommunicationsURISequence",
)))  # fmt: skip


def report_changes(ctx: Context, workitem: Any, old: ElementIndex, new: ElementIndex) -> None:
    """Tell subscribers about a change, as far as an event is defined for it (PS3.4 CC.2.4.3)."""
    uid, told = workitem.sop_instance_uid, subscribers(workitem.id)

    def changed(*keywords: str) -> bool:
        return any(old.element(tag_of(k)) != new.element(tag_of(k)) for k in keywords)

    if changed("InputReadinessState"):
        record_event(ctx, "UPS State Report", uid, state_report(new), told)
    before = old.item("ProcedureStepProgressInformationSequence")
    after = new.item("ProcedureStepProgressInformationSequence")
    if any(before.element(tag) != after.element(tag) for tag in PROGRESS_TOLD):
        parameters = tag_of("ProcedureStepProgressParametersSequence")
        told_of = after.only((*PROGRESS_TOLD, parameters))
        report = sequence_elements(ProcedureStepProgressInformationSequence=[told_of])
        record_event(ctx, "UPS Progress Report", uid, report, told)
    if changed("ScheduledStationNameCodeSequence", "ScheduledHumanPerformersSequence"):
        for report in assigned_reports(new) or [EMPTY]:
            record_event(ctx, "UPS Assigned", uid, report, told)


def check_is_workitem(uid: str) -> None:
    """Refuse (C314) the UIDs of global subscriptions (PS3.4 Table CC.2.3-3)."""
    if uid in WELL_KNOWN_UPS:
        words = Message("This UID is for subscriptions, not a workitem")
        raise Refusal(Status.ACTION_NOT_APPROPRIATE, words)


def change_state(ctx: Context, uid: str, state: str | None, transaction_uid: str) -> Status:
    """Move a workitem to `state` and tell its subscribers; SUCCESS, or a warning if already there.

    state            Procedure Step State (0074,1000); None if absent
    transaction_uid  Transaction UID (0008,1195), the lock of the performer
    Refuses          C300, C301, C302, C303, C304, C307, C310 as UPS_TRANSITIONS says; C314; 0120,
                     0121, 0115 for a state that is absent, empty or invalid
    Source           PS3.4 CC.2.1
    """
    check_is_workitem(uid)
    with database.atomic():
        workitem = stored_workitem(uid)
        key = key_state(workitem, transaction_uid)
        if workitem and state not in UPS_STATES:
            _refuse_state(state, key)
        outcome = ups_outcome(f"{state if workitem else 'SCHEDULED'}, {key}", workitem)
        if isinstance(outcome, Status):
            return outcome
        index = ElementIndex(workitem.data)
        columns = {}
        if outcome == "IN PROGRESS":
            by_person = int(bool(ctx.actor.role))
            columns = {"performer": ctx.actor.name, "by_person": by_person,
                       "transaction_uid": transaction_uid, "claimed_at": ctx.stamp()}  # fmt: skip
        else:
            if outcome == "CANCELED":
                index = with_cancellation(ctx, index)
            check_final(index, outcome)
        enter_ups_state(ctx, workitem, index, outcome, **columns)
    return Status.SUCCESS


def _refuse_state(state: str | None, key: str) -> None:
    """Refuse a state that is absent (0120), empty (0121) or invalid (0115); first a wrong lock."""
    if key == "wrong UID":
        raise Refusal(
            Status.TRANSACTION_UID_INCORRECT, Message("The Transaction UID is incorrect.")
        )
    if state is None:
        status, words = Status.MISSING_ATTRIBUTE, Message("is missing")
    elif not state:
        status, words = Status.MISSING_ATTRIBUTE_VALUE, Message("has no value")
    else:
        status = Status.INVALID_ARGUMENT_VALUE
        words = Message("{value} is not a state", value=state[:64])
    raise Refusal(status, problems=[Problem(UPS_STATE, words)])


def enter_ups_state(
    ctx: Context, workitem: Any, index: ElementIndex, state: str, **columns: Any
) -> None:
    """Write a new state and report it to the subscribers."""
    changed = index.merged(text_elements(ProcedureStepState=state))
    if state in FINAL_UPS_STATES:
        columns["ended_at"] = ctx.stamp()
    saved = save_workitem(ctx, workitem, changed, **columns)
    uid, old = workitem.sop_instance_uid, workitem.state
    workitem.state = state
    record_event(ctx, "UPS State Report", uid, state_report(saved), subscribers(workitem.id))
    audit(ctx, "workitem", uid, f"{old} -> {state}")
    log.info("workitem %s: %s -> %s by %s", uid, old, state, ctx.actor)


def with_cancellation(
    ctx: Context, index: ElementIndex, info: ElementIndex = EMPTY
) -> ElementIndex:
    """Return a workitem with the time and reason that CANCELED needs (PS3.4 CC.2.5.1.3.2).

    info   data of the request to cancel
    Local  a missing reason becomes (110513, DCM), so that no cancellation fails for it
    """
    progress = index.item("ProcedureStepProgressInformationSequence")
    progress = progress.merged(info.only(CANCELLATION_REASON))
    if not progress.get("ProcedureStepCancellationDateTime"):
        now = text_elements(ProcedureStepCancellationDateTime=dicom_now(ctx))
        progress = progress.merged(now)
    if not progress.items(CANCELLATION_REASON[1]):
        progress = progress.merged(cancellation_reason("", "110513"))
    return index.merged(sequence_elements(ProcedureStepProgressInformationSequence=[progress]))


def request_cancel(ctx: Context, uid: str, data: bytes = b"") -> Status:
    """Request cancellation: a SCHEDULED workitem is canceled, else its subscribers are told.

    data     reason, reason code and contact, stored form; all optional
    Returns  B304 if it is CANCELED already, else SUCCESS
    Refuses  C307, C311, C314; C312 if neither a subscriber nor a user here can be told;
             C313 if that user has declined
    Source   PS3.4 CC.2.2
    """
    check_is_workitem(uid)
    info = ElementIndex(data)
    with database.atomic():
        workitem = stored_workitem(uid)
        outcome = ups_outcome("request cancel", workitem)
        if isinstance(outcome, Status):
            return outcome
        told = subscribers(workitem.id)
        if outcome == "IN PROGRESS" and workitem.declined:
            words = Message("The performer has declined: {reason}", reason=workitem.declined)
            raise Refusal(Status.PERFORMER_CHOOSES_NOT_TO_CANCEL, words)
        if outcome == "IN PROGRESS" and not told and not workitem.by_person:
            words = Message("{performer} has not subscribed to it and cannot be notified",
                            performer=workitem.performer)  # fmt: skip
            raise Refusal(Status.PERFORMER_CANNOT_BE_CONTACTED, words)
        contact = tag_of("ContactURI"), tag_of("ContactDisplayName")
        asked = info.only(CANCELLATION_REASON + contact).with_values()
        calls = ctx.actor.address and not ctx.actor.role  # else a user or job of ours
        ae_title = ctx.actor.name if calls else ctx.config.dicom.ae_title
        requester = text_elements(RequestingAE=ae_title)
        record_event(ctx, "UPS Cancel Requested", uid, requester.merged(asked), told)
        audit(ctx, "workitem cancel requested", uid, info.get("ReasonForCancellation")[:200])
        if outcome == "CANCELED":
            cancel_workitem(ctx, workitem, info)
    return Status.SUCCESS


def get_workitem(uid: str, tags: Iterable[int] = ()) -> tuple[Status, bytes]:
    """Return status and data set of a workitem, all or some attributes, no Transaction UID.

    Returns  0001 if a requested attribute is not kept, else 0000
    Refuses  C307. Source: PS3.4 CC.2.7
    """
    index = ElementIndex(find_workitem(uid).data).without(UPS_IDENTITY)
    return selected_attributes(index, tags, UPS_ATTRIBUTES)


def purge_workitems(ctx: Context, most: int = 200) -> int:
    """Delete up to `most` workitems past [housekeeping] keep_workitems_days; return how many.

    Deletion locks and undelivered events keep a workitem; its events stay as history.
    """
    gone = fetch_rows(
        Workitem,
        "ended_at <> '' AND ended_at < ? AND NOT EXISTS (SELECT 1 FROM subscription s"
        " WHERE s.workitem_id = workitem.id AND s.deletion_lock = 1)"
        " AND NOT EXISTS (SELECT 1 FROM workitem_event e JOIN outbox o ON o.event_id = e.id"
        " WHERE e.sop_instance_uid = workitem.sop_instance_uid"
        " AND o.sent_at = '' AND o.given_up_at = '') ORDER BY ended_at LIMIT ?",
        ctx.stamp(days=-ctx.config.housekeeping.keep_workitems_days),
        most,
    )
    now = ctx.stamp()
    with database.atomic():
        for workitem in gone:
            erase("subscription WHERE workitem_id = ?", workitem.id)
            erase("workitem WHERE id = ?", workitem.id)
            audit(ctx, "workitem purged", workitem.sop_instance_uid)
        insert_rows(
            "purged_workitem (sop_instance_uid, purged_at)",
            ((workitem.sop_instance_uid, now) for workitem in gone),
        )
    return len(gone)


def is_purged(uid: str) -> bool:
    """Tell whether a workitem with this UID has been deleted."""
    return row_exists(PurgedWorkitem, "sop_instance_uid", uid)


def cancel_workitem(ctx: Context, workitem: Any, info: ElementIndex) -> None:
    """Cancel a workitem; a SCHEDULED one passes through IN PROGRESS."""
    index = ElementIndex(workitem.data)
    if workitem.state == "SCHEDULED":  # PS3.4 CC.2.2.3
        enter_ups_state(ctx, workitem, index, "IN PROGRESS", transaction_uid=ctx.new_uid())
        index = ElementIndex(workitem.data)
    enter_ups_state(ctx, workitem, with_cancellation(ctx, index, info), "CANCELED")
