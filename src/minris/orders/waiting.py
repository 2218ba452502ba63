"""The waiting room: a number for each patient of a day, and who was called."""

import datetime
from typing import NamedTuple

from minris.access.context import Context, audit
from minris.orders.lookup import NO_STEP
from minris.standard.status import Message, Refusal, Status
from minris.store.models import ScheduledProcedureStep, database
from minris.store.rows import erase, first_row, insert_rows, known_row

IN_WAITING_ROOM = ("ARRIVED", "READY")


class Waits(NamedTuple):
    """The number of a patient, and when this exam was called, "" if it was not."""

    number: int
    called_at: str


def _day_and_patient(step_id: int) -> tuple[str, int]:
    found = database.execute_sql(
        "SELECT s.start_date, r.patient_id FROM scheduled_procedure_step s"
        " JOIN requested_procedure r ON r.id = s.procedure_id WHERE s.id = ?",
        (step_id,),
    ).fetchone()
    return known_row(found, NO_STEP)


def known_number(step_id: int) -> int:
    """Return the number of an exam's patient on its day, 0 if there is none yet. Refuses 0112."""
    sql = "SELECT number FROM waiting_number WHERE day = ? AND patient_id = ?"
    found = database.execute_sql(sql, _day_and_patient(step_id)).fetchone()
    return found[0] if found else 0


def number_of(ctx: Context, step_id: int) -> int:
    """Return the number of an exam's patient on its day, given now if there is none. Refuses 0112.

    A patient has one for all exams of a day; those of days before yesterday are dropped.
    """
    if known := known_number(step_id):
        return known
    day, patient_id = _day_and_patient(step_id)
    yesterday = ctx.local_now().date() - datetime.timedelta(days=1)
    erase("waiting_number WHERE day < ?", f"{yesterday:%Y%m%d}")
    sql = "SELECT coalesce(max(number), 0) + 1 FROM waiting_number WHERE day = ?"
    (number,) = database.execute_sql(sql, (day,)).fetchone()
    insert_rows("waiting_number (day, patient_id, number) VALUES", [(day, patient_id, number)])
    return int(number)


def call_patient(ctx: Context, step_id: int) -> int:
    """Call a waiting patient to the device; return the number. Refuses 0112, 0110."""
    step = known_row(first_row(ScheduledProcedureStep, "id = ?", step_id), NO_STEP)
    if step.status not in IN_WAITING_ROOM:
        words = Message("Only who has checked in and waits can be called")
        raise Refusal(Status.PROCESSING_FAILURE, words)
    number = number_of(ctx, step_id)
    database.execute_sql(
        "UPDATE waiting_number SET called_step = ?, called_at = ? WHERE day = ? AND number = ?",
        (step_id, ctx.stamp(), step.start_date, number),
    )
    audit(ctx, "patient called", step.study_instance_uid, step.scheduled_procedure_step_id)
    return number


def waiting_on(day: str) -> dict[int, Waits]:
    """Return the numbers of a day, by the row of each exam."""
    cursor = database.execute_sql(
        "SELECT s.id, w.number, CASE w.called_step WHEN s.id THEN w.called_at ELSE '' END"
        " FROM waiting_number w JOIN requested_procedure r ON r.patient_id = w.patient_id"
        " JOIN scheduled_procedure_step s ON s.procedure_id = r.id AND s.start_date = w.day"
        " WHERE w.day = ?",
        (day,),
    )
    return {step_id: Waits(number, called_at) for step_id, number, called_at in cursor}
