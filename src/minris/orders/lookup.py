"""Orders and steps, found by row id, ID or name; new identifiers and their owners."""

import datetime
import re
from typing import Any

from minris.access.context import Context
from minris.config.values import format_identifier
from minris.dataset.names import name_key
from minris.dataset.spelling import tidy_code
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.worklist import OPEN_STEP_STATES
from minris.store.models import (
    LostIdentifier,
    Patient,
    RequestedProcedure,
    ScheduledProcedureStep,
    Stored,
    database,
)
from minris.store.rows import fetch_rows, first_row, known_row, row_exists

NO_STEP, NO_PATIENT = Message("There is no such step"), Message("There is no such patient")


def next_identifier(ctx: Context, pattern: str, model: type[Stored], column: str) -> str:
    """The next unused identifier by its pattern; numbering restarts when a date in it changes."""
    now = ctx.local_now()
    while True:
        number = leap(counter_name(pattern, now), 1)
        identifier = format_identifier(pattern, now, number)
        lost = first_row(LostIdentifier, "kind = ? AND value = ?", column, identifier)
        if not lost and not row_exists(model, column, identifier):
            return identifier


def counter_name(pattern: str, now: datetime.datetime) -> str:
    """The name of the counter of a pattern: another one when a date in it changes."""
    day = re.sub(r"\{number[^}]*\}", "#", pattern)
    return f"{pattern} {format_identifier(day, now, 0)}"


def leap(counter: str, by: int) -> int:
    """Let a counter go on by so many; return its last number."""
    last: int = database.execute_sql(
        "INSERT INTO counter (name, last) VALUES (?1, ?2)"
        " ON CONFLICT (name) DO UPDATE SET last = last + ?2 RETURNING last",
        (counter, by),
    ).fetchone()[0]
    return last


def last_number(counter: str) -> int:
    """The last number of a counter, 0 if it has not begun."""
    row = database.execute_sql("SELECT last FROM counter WHERE name = ?", (counter,)).fetchone()
    return row[0] if row else 0


def leap_to(counter: str, number: int) -> None:
    """Let a counter go on after a number, unless it is past that."""
    leap(counter, max(0, number - last_number(counter)))


def belongs_to_another(keyword: str, value: str) -> Refusal:
    """The refusal (0111) of another patient's identifier."""
    words = Message("{value} belongs to another patient", value=value)
    return Refusal(Status.DUPLICATE_SOP_INSTANCE, problems=[Problem(tag_of(keyword), words)])


def check_accession(accession: str, patient_row: int) -> None:
    """Refuse (0111) another patient's accession number."""
    sql = "SELECT 1 FROM requested_procedure WHERE accession_number = ? AND patient_id <> ?"
    if accession and database.execute_sql(sql, (accession, patient_row)).fetchone():
        raise belongs_to_another("AccessionNumber", accession)


def find_step(study_instance_uid: str, step_id: str) -> ScheduledProcedureStep:
    """The scheduled procedure step of a study with this ID. Refuses 0112."""
    keys = {"study_instance_uid": study_instance_uid, "scheduled_procedure_step_id": step_id}
    step: ScheduledProcedureStep = known_row(ScheduledProcedureStep.get_or_none(**keys), NO_STEP)
    return step


def step_data(study_instance_uid: str, step_id: str) -> bytes:
    """The complete data set of a step. Refuses 0112."""
    return bytes(find_step(study_instance_uid, step_id).data)


def step_key(row_id: int) -> tuple[str, str]:
    """Study Instance UID and step ID of a step by its row id. Refuses 0112."""
    row = step_row(row_id)
    return row.study_instance_uid, row.scheduled_procedure_step_id


def leftovers(today: str) -> list[Any]:
    """The steps from earlier days that are still open, oldest first."""
    where = f"status IN {tuple(sorted(OPEN_STEP_STATES))} AND start_date < ?"
    return fetch_rows(
        ScheduledProcedureStep, f"{where} ORDER BY start_date, start_time LIMIT 500", today
    )


def find_steps(text: str, limit: int = 50) -> list[Any]:
    """The steps that match a Patient ID, accession number or part of a name in any spelling."""
    where = (
        "patient_id = ?1 OR accession_number = ?1 OR (?2 <> '' AND instr(name_key, ?2))"
        " ORDER BY start_date DESC, start_time DESC LIMIT ?3"
    )
    key = name_key(text)
    return fetch_rows(ScheduledProcedureStep, where, tidy_code(text).strip(), key, limit)


def data_of_day(date: str) -> list[bytes]:
    """The complete data sets of a day's steps, by start time."""
    cursor = database.execute_sql(
        "SELECT data FROM scheduled_procedure_step WHERE start_date = ? ORDER BY start_time, id",
        (date,),
    )
    return [bytes(row[0]) for row in cursor]


def steps_of_day(date: str) -> list[tuple[Any, ...]]:
    """The columns that the board shows of a day's steps, with one station each and the study."""
    return database.execute_sql(
        "SELECT s.id, s.status, s.start_time, s.data, s.arrived_at, s.started_at, s.ended_at,"
        " (SELECT t.ae_title FROM scheduled_station t WHERE t.step_id = s.id LIMIT 1),"
        " s.study_instance_uid"
        " FROM scheduled_procedure_step s WHERE s.start_date = ? ORDER BY s.start_time, s.id",
        (date,),
    ).fetchall()


def step_row(row_id: int) -> Any:
    """A step by its row id. Refuses 0112."""
    return known_row(first_row(ScheduledProcedureStep, "id = ?", row_id), NO_STEP)


def get_step(row_id: int) -> bytes:
    """Complete data set of a step by its row id. Refuses 0112."""
    return bytes(step_row(row_id).data)


def patient_id_known(patient_id: str) -> bool:
    """Whether a patient has this ID."""
    return row_exists(Patient, "patient_id", patient_id)


def step_known(study: str) -> int | None:
    """The row id of the first step of a study, or None."""
    row = first_row(ScheduledProcedureStep, "study_instance_uid = ? ORDER BY id LIMIT 1", study)
    return row.id if row else None


def patient_of_step(row_id: int) -> int:
    """The row id of a step's patient. Refuses 0112."""
    return first_row(RequestedProcedure, "id = ?", step_row(row_id).procedure_id).patient_id


def steps_of(patient_row: int) -> list[Any]:
    """The steps of a patient, newest first."""
    return fetch_rows(
        ScheduledProcedureStep,
        "procedure_id IN (SELECT id FROM requested_procedure WHERE patient_id = ?)"
        " ORDER BY start_date DESC, start_time DESC LIMIT 100",
        patient_row,
    )


def step_of_day(patient_row: int, date: str) -> Any:
    """The step of a patient on this day (DA), else the next one, else the last one; None without."""
    where = (
        "procedure_id IN (SELECT id FROM requested_procedure WHERE patient_id = ?1)"
        " ORDER BY start_date = ?2 DESC, start_date > ?2 DESC,"
        " CASE WHEN start_date > ?2 THEN start_date END, start_date DESC, start_time LIMIT 1"
    )
    return first_row(ScheduledProcedureStep, where, patient_row, date)
