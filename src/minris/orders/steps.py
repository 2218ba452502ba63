"""Scheduled steps: refolded with their patient and order, moved from state to state."""

from collections.abc import Iterable

from minris import log
from minris.access.context import Context, audit
from minris.dataset.elements import ElementIndex, sequence_elements, text_elements
from minris.dataset.identity import identity_of
from minris.dataset.resident import keep_identity_number
from minris.orders.identities import compare_again, note_identity
from minris.orders.items import fold, patient_columns, step_columns, step_item
from minris.orders.lookup import find_step
from minris.orders.notes import can_be_undone, note_change
from minris.orders.waiting import number_of
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Refusal, Status
from minris.standard.worklist import OPEN_STEP_STATES, STEP_TRANSITIONS, WAITING_STEP_STATES
from minris.store.models import Patient, RequestedProcedure, ScheduledProcedureStep, database
from minris.store.rows import erase, update_row


def update_patient(
    ctx: Context, patient: Patient, given: ElementIndex, empty: bool = False
) -> None:
    """Update a patient from what is given; open steps follow.

    empty  an attribute given empty is emptied; else it is ignored
    """
    old = ElementIndex(patient.data)
    given = keep_identity_number(old, given if empty else given.with_values())
    new = old.merged(given)
    if bytes(new) == bytes(old):
        return
    write_patient(patient, new, ctx.stamp())
    note_change(ctx, f"patient {patient.id}", Message("Patient corrected"), old, new)
    audit(ctx, "patient updated", patient.patient_id)


def write_patient(patient: Patient, index: ElementIndex, updated_at: str) -> None:
    """Write a patient's data set and columns; open steps follow. The identity until now is kept."""
    old = ElementIndex(patient.data)
    if bytes(identity_of(old)) != bytes(identity_of(index)):
        note_identity(patient.id, old, updated_at)
    for column, value in patient_columns(index).items():
        setattr(patient, column, value)
    patient.updated_at = updated_at
    patient.save()
    refold_open(patient)


def refold_open(patient: Patient) -> None:
    """Refold the open steps of a patient with the present data; compare performed steps again."""
    steps = (
        ScheduledProcedureStep.select(ScheduledProcedureStep, RequestedProcedure)
        .join(RequestedProcedure)
        .where(
            (RequestedProcedure.patient == patient)
            & ScheduledProcedureStep.status.in_(OPEN_STEP_STATES | {"DEPARTED", "NO SHOW"})
        )
    )
    for step in steps:
        refold(step, patient, step.procedure, step_item(step))
    compare_again(patient.id)


def refold(
    step: ScheduledProcedureStep,
    patient: Patient,
    procedure: RequestedProcedure,
    item: ElementIndex,
) -> None:
    """Rebuild a step's data set and write it with a new version."""
    folded = fold(ElementIndex(patient.data), ElementIndex(procedure.data), item)
    columns = step_columns(folded)
    if columns["status"] in OPEN_STEP_STATES:
        columns["ended_at"] = ""
    version = ScheduledProcedureStep.version + 1
    changed = ScheduledProcedureStep.update(data=bytes(folded), version=version, **columns)
    changed.where(ScheduledProcedureStep.id == step.id).execute()
    station = tag_of("ScheduledStationAETitle")
    stations, before = item.values(station), step_item(step).values(station)
    if (stations, columns["start_date"]) != (before, step.start_date):
        erase("scheduled_station WHERE step_id = ?", step.id)
        save_stations(step.id, stations, columns["start_date"])
    step.data, step.status = bytes(folded), columns["status"]


def save_stations(step_id: int, stations: Iterable[str], start_date: str) -> None:
    """Write the stations of a step, each once."""
    sql = "INSERT INTO scheduled_station (ae_title, start_date, step_id) VALUES (?, ?, ?)"
    for title in dict.fromkeys(stations):
        database.execute_sql(sql, (title, start_date, step_id))


def step_outcome(event: str, step: ScheduledProcedureStep) -> str:
    """The state that an event leads to. Refuses 0110 where STEP_TRANSITIONS does not allow it."""
    outcome = STEP_TRANSITIONS[event, step.status]
    if isinstance(outcome, Status):
        raise Refusal(outcome, Message("The step is {state}", state=Message(step.status)))
    return outcome


STAMP_OF_STATE = {"ARRIVED": "arrived_at", "STARTED": "started_at"}


def enter_state(ctx: Context, step: ScheduledProcedureStep, state: str, told_by: str = "") -> None:
    """Move a step to a state, in its data set and columns, with the time of the change.

    told_by  a key of TOLD_BY; by default the actor
    """
    if step.status == state:
        return
    old, step_id = step.status, step.scheduled_procedure_step_id
    changed = step_item(step).merged(text_elements(ScheduledProcedureStepStatus=state))
    sequence = sequence_elements(ScheduledProcedureStepSequence=[changed])
    data = bytes(ElementIndex(step.data).merged(sequence))
    ended = state not in OPEN_STEP_STATES
    stamps = {
        "ended_at": ctx.stamp() if ended else "",
        "told_by": (told_by or ctx.actor.name) if ended else "",
    }
    if state in STAMP_OF_STATE:
        stamps[STAMP_OF_STATE[state]] = ctx.stamp()
    if state in WAITING_STEP_STATES and old not in OPEN_STEP_STATES:
        stamps["remark"] = ""  # why it was off the list; the audit log keeps it
    if state == "READY" and not step.arrived_at:
        stamps["arrived_at"] = ctx.stamp()
    step.data, step.status, step.version = data, state, step.version + 1
    update_row(
        ScheduledProcedureStep, step.id, data=data, status=state, version=step.version, **stamps
    )
    accession = step.accession_number
    log.info("step %s of %s: %s -> %s by %s", step_id, accession, old, state, ctx.actor)
    audit(ctx, "step", step.study_instance_uid, f"{step_id} {state}")


# What the pages offer for an exam in each state; "finish" of a waiting one is in person_events.
EVENTS_OF_STATE = {
    "SCHEDULED": ("arrive", "no show", "cancel"),
    "ARRIVED": ("finish", "cancel"),
    "READY": ("finish", "cancel"),
    "STARTED": ("finish", "stop"),
    "DEPARTED": ("arrive", "cancel"),
    "CANCELED": ("reschedule",),
    "NO SHOW": ("arrive", "reschedule"),
    "DISCONTINUED": ("reschedule",),
}


def person_events(state: str, reports: bool) -> list[str]:
    """Return the events of an exam in a state that a person may choose from.

    reports  whether its machine reports performed steps; else a person also says it is done
    """
    events = list(EVENTS_OF_STATE.get(state, ()))
    if state == "SCHEDULED" and not reports:
        events.insert(1, "finish")
    return events


def change_step(
    ctx: Context, event: str, study_instance_uid: str, step_id: str, remark: str = ""
) -> bytes:
    """Apply a person's event to a step; return its new data set. Refuses 0112, 0110.

    event   arrive, ready, depart, cancel, no show; finish and stop for an exam whose machine does
            not report or has gone silent (PS3.4 F.7.2.2.3 note 2): its later reports still count
    remark  a reason, kept with the step
    """
    with database.atomic():
        step = find_step(study_instance_uid, step_id)
        state, about = step_outcome(event, step), f"step {step.id}"
        if state != step.status:  # only the last event can be undone
            erase("undo_note WHERE about = ? AND what = ?", about, step.status)
        with can_be_undone(ctx, state, about, [("scheduled_procedure_step", step.id)], always=True):
            enter_state(ctx, step, state)
            if event == "arrive":
                number_of(ctx, step.id)
            if remark:
                update_row(ScheduledProcedureStep, step.id, remark=remark[:1024])
        if remark:
            audit(ctx, "reason", study_instance_uid, f"{step_id}: {remark.strip()[:500]}")
    return bytes(step.data)
