"""Undo: what a person changed can be undone for a day."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from minris import log
from minris.access.context import Context, audit
from minris.dataset.elements import EMPTY, ElementIndex, text_elements
from minris.orders.identities import forget_undone
from minris.orders.lookup import belongs_to_another, check_accession
from minris.orders.notes import UNDO_HOURS, note_change, row_as_noted
from minris.orders.steps import enter_state, refold, refold_open
from minris.standard.status import Message, Refusal, Status
from minris.store.models import (
    FormerIdentity,
    Patient,
    RequestedProcedure,
    ScheduledProcedureStep,
    UndoNote,
    database,
)
from minris.store.rows import erase, first_row, insert_row, update_row

_EXAMS_GONE_ON = {  # exams that started or ended since, by the table of the changed row
    table: "SELECT 1 FROM scheduled_procedure_step s JOIN requested_procedure r"
    f" ON r.id = s.procedure_id WHERE {column} = ? AND max(s.started_at, s.ended_at) >= ?"
    for table, column in (
        ("patient", "r.patient_id"),
        ("requested_procedure", "r.id"),
        ("scheduled_procedure_step", "s.id"),
    )
}


def undoable(ctx: Context, about: str) -> tuple[Any, Message | None]:
    """The last change of `patient 3` or `step 7` within a day, and why it cannot be undone.

    None and the reason if there is no such change
    """
    where = "about = ? AND at >= ? ORDER BY id DESC LIMIT 1"
    note = first_row(UndoNote, where, about, ctx.stamp(hours=-UNDO_HOURS))
    if not note:
        return None, Message("There is nothing to undo")
    for table, row_id, old, new in json.loads(note.images):
        now, was_removed = row_as_noted((table, row_id)), bool(old and not new)
        if now | new != now or was_removed == bool(now):
            return note, Message("It was changed again since then and cannot be undone")
        changed = old.keys() - {"state"} and table in _EXAMS_GONE_ON
        if changed and database.execute_sql(_EXAMS_GONE_ON[table], (row_id, note.at)).fetchone():
            return note, Message("An exam has progressed since then: this cannot be undone")
    return note, None


def undo(ctx: Context, about: str) -> None:
    """Undo the last change of a patient or an exam within a day; open exams follow.

    Refuses  0110 if there is none, or if the rows have changed since or the exam has gone on;
             0111 if another patient now has the identifier
    """
    with database.atomic():
        note, problem = undoable(ctx, about)
        if problem:
            raise Refusal(Status.PROCESSING_FAILURE, problem)
        patients = set()
        before, after = EMPTY, EMPTY
        for table, row_id, old, new in json.loads(note.images):
            if "data" in old:
                old["data"] = base64.b64decode(old["data"])
                before = before.merged(ElementIndex(base64.b64decode(new.get("data", ""))))
                after = after.merged(ElementIndex(old["data"]))
            if table == "patient":
                _put_back_patient(ctx, row_id, old, bool(new))
                patients.add(row_id)
            elif table == "requested_procedure":
                _put_back_procedure(row_id, old)
            elif table == "former_identity":
                _put_back_identity(row_id, old, bool(new))
            else:
                patients.add(_put_back_step(ctx, row_id, old))
        forget_undone(patients)
        for patient in Patient.select().where(Patient.id.in_(patients)):
            refold_open(patient)
        erase("undo_note WHERE id = ?", note.id)
        note_change(ctx, about, f"Undone: {note.what}", before, after)
        log.info("%s: %s undone by %s", about, note.what, ctx.actor)
        audit(ctx, "change taken back", about, note.what)


def _put_back_patient(ctx: Context, row_id: int, old: Mapping[str, Any], there: bool) -> None:
    """Restore a patient's columns, or the whole row. Refuses 0111 for another patient's ID."""
    if there:
        update_row(Patient, row_id, **old, updated_at=ctx.stamp())
    elif old:
        insert_row(Patient, id=row_id, **old, updated_at=ctx.stamp())
    if "patient_id" in old or "issuer_of_patient_id" in old:
        patient = Patient.get_by_id(row_id)
        where = "patient_id = ? AND issuer_of_patient_id = ? AND id <> ?"
        if first_row(Patient, where, patient.patient_id, patient.issuer_of_patient_id, row_id):
            raise belongs_to_another("PatientID", patient.patient_id)


def _put_back_identity(row_id: int, old: Mapping[str, Any], there: bool) -> None:
    """Give a former identity back to the patient who had it."""
    if old and there:
        update_row(FormerIdentity, row_id, **old)
    elif old:
        insert_row(FormerIdentity, id=row_id, **old)


def _put_back_procedure(row_id: int, old: Mapping[str, Any]) -> None:
    """Restore an order's columns. Refuses 0111 for another patient's accession number."""
    if old:
        update_row(RequestedProcedure, row_id, **old)
    if "accession_number" in old:
        patient_row = RequestedProcedure.get_by_id(row_id).patient_id
        check_accession(old["accession_number"], patient_row)


def _put_back_step(ctx: Context, row_id: int, old: Mapping[str, Any]) -> int:
    """Restore an exam's state, times and item; return the row id of its patient."""
    step = ScheduledProcedureStep.get_by_id(row_id)
    procedure = step.procedure
    if "state" in old:
        enter_state(ctx, step, old["state"]["status"])
        update_row(ScheduledProcedureStep, row_id, **old["state"])
    if "data" in old:
        status = text_elements(ScheduledProcedureStepStatus=step.status)
        refold(step, procedure.patient, procedure, ElementIndex(old["data"]).merged(status))
    return procedure.patient_id
