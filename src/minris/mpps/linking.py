"""Links from performed steps to scheduled steps, and the states that follow."""

from collections.abc import Iterable
from typing import Any

from minris.access.context import Context, audit, device_of, needs_reason
from minris.dataset.elements import ElementIndex
from minris.orders.lookup import NO_STEP, step_row
from minris.orders.steps import enter_state
from minris.standard.mpps import INCORRECT_WORKLIST_ENTRY, STEP_STATUS_AFTER
from minris.standard.status import Message
from minris.store.models import PerformedProcedureStep, ScheduledProcedureStep, database
from minris.store.rows import fetch_rows, first_row, known_row, update_row


def link_step(performed_id: int, item: ElementIndex, patient_id: str) -> bool:
    """Link a performed step to the scheduled step that an item names; False if there is none.

    It is found by study with procedure and step ID, else by accession number, else by step ID if
    only one step has it; never by the patient's name (PS3.4 F.7.2.1.2).
    """
    step, found_by = find_scheduled(item, patient_id)
    if step:
        insert_link(performed_id, step.id, found_by, step.status)
    return step is not None


def insert_link(performed_id: int, step_id: int, found_by: str, before: str) -> None:
    """Link a performed step to a scheduled one; `before` is the latter's state until then."""
    database.execute_sql(
        "INSERT INTO performed_scheduled_step (performed_id, scheduled_id, found_by, status_before)"
        " VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (performed_id, step_id, found_by, before),
    )


# The attempts to find a scheduled step, in order: each needs a value for its first column and uses
# the other columns that have values. Only the study may link a step of another patient.
STEP_ATTEMPTS = (
    ("study", "study_instance_uid", "requested_procedure_id", "scheduled_procedure_step_id"),
    ("accession number", "accession_number", "scheduled_procedure_step_id", "patient_id"),
    ("accession number", "accession_number", "patient_id"),
    ("step ID", "scheduled_procedure_step_id", "patient_id"),
)


def find_scheduled(item: ElementIndex, patient_id: str) -> tuple[Any | None, str]:
    """The scheduled step that a Scheduled Step Attributes item names, and how it was found."""
    known = {
        "study_instance_uid": item.get("StudyInstanceUID"),
        "requested_procedure_id": item.get("RequestedProcedureID"),
        "scheduled_procedure_step_id": item.get("ScheduledProcedureStepID"),
        "accession_number": item.get("AccessionNumber"),
        "patient_id": patient_id,
    }
    for found_by, *columns in STEP_ATTEMPTS:
        if known[columns[0]]:
            given = [column for column in columns if known[column]]
            where = " AND ".join(f"{column} = ?" for column in given) + " LIMIT 2"
            values = [known[column] for column in given]
            steps = fetch_rows(ScheduledProcedureStep, where, *values)
            if len(steps) == 1:
                return steps[0], found_by
    return None, ""


def settle_steps(ctx: Context, performed_id: int) -> None:
    """Update the state of every scheduled step that is linked to a performed step."""
    cursor = database.execute_sql(
        "SELECT scheduled_id FROM performed_scheduled_step WHERE performed_id = ?", (performed_id,)
    )
    for (step_id,) in cursor.fetchall():
        settle_step(ctx, step_id)


def settle_step(ctx: Context, step_id: int, before: str = "") -> None:
    """Set a scheduled step's state from all its performed steps, as STEP_STATUS_AFTER says.

    If none counts, as the wrong entry was chosen, it returns to its state before.

    before  that state, if the link that kept it has been deleted
    """
    links = database.execute_sql(
        "SELECT l.status_before, p.status, p.data FROM performed_scheduled_step l"
        " JOIN performed_procedure_step p ON p.id = l.performed_id"
        " WHERE l.scheduled_id = ? ORDER BY p.id",
        (step_id,),
    ).fetchall()
    counted = {status for _, status, data in links if not is_wrong_entry(status, bytes(data))}
    state = next((after for status, after in STEP_STATUS_AFTER if status in counted), None)
    if not state:
        state = links[0][0] if links else before
        if state in ("", *(after for _, after in STEP_STATUS_AFTER)):
            state = "SCHEDULED"
    enter_state(ctx, step_row(step_id), state, "performed step")


def reporting_stations() -> set[str]:
    """The AE titles that have reported a performed step."""
    title = "SELECT min(performed_station_ae_title) FROM performed_procedure_step"
    cursor = database.execute_sql(  # a skip scan of the index
        f"WITH RECURSIVE t (title) AS ({title} UNION ALL SELECT ({title} WHERE"
        " performed_station_ae_title > t.title) FROM t WHERE t.title IS NOT NULL)"
        " SELECT title FROM t WHERE title IS NOT NULL"
    )
    return {title for (title,) in cursor}


def does_report(ctx: Context, stations: Iterable[str], reporting: set[str]) -> bool:
    """Whether a machine reports performed steps: by its device's setting, else by past reports.

    stations   AE titles that a step is scheduled for
    reporting  the result of reporting_stations
    """
    titles: set[str] = set()
    for station in stations:
        device = device_of(ctx, station)
        if device and device.mpps != "auto":
            return device.mpps == "yes"
        titles |= {station, *(device.ae_titles if device else ())}
    return bool(titles & reporting)


def unscheduled_steps(limit: int = 200) -> list[Any]:
    """Performed steps without a scheduled step that nobody has settled, newest first."""
    return fetch_rows(
        PerformedProcedureStep,
        "settled = '' AND NOT EXISTS (SELECT 1 FROM performed_scheduled_step l"
        " WHERE l.performed_id = performed_procedure_step.id) ORDER BY id DESC LIMIT ?",
        limit,
    )


def _performed_row(performed_id: int) -> Any:
    """A performed step by its row id. Refuses 0112."""
    return known_row(first_row(PerformedProcedureStep, "id = ?", performed_id), NO_STEP)


def link_by_hand(ctx: Context, performed_id: int, step_id: int) -> None:
    """Link a performed step to the scheduled step that a person chose. Refuses 0112."""
    with database.atomic():
        performed, step = _performed_row(performed_id), step_row(step_id)
        insert_link(performed_id, step_id, "by hand", step.status)
        settle_step(ctx, step_id)
        uid = performed.sop_instance_uid
        audit(ctx, "performed step matched", uid, step.scheduled_procedure_step_id)


def unlink_step(ctx: Context, performed_id: int, step_id: int) -> None:
    """Delete a link; the scheduled step returns to its state before. Refuses 0112."""
    with database.atomic():
        link = database.execute_sql(
            "DELETE FROM performed_scheduled_step WHERE performed_id = ? AND scheduled_id = ?"
            " RETURNING status_before",
            (performed_id, step_id),
        ).fetchone()
        settle_step(ctx, step_id, known_row(link, Message("There is no such match"))[0])
        audit(ctx, "performed step unmatched", str(performed_id), str(step_id))


def settle_unscheduled(ctx: Context, performed_id: int, reason: str) -> None:
    """Accept a performed step without an order, with a reason. Refuses 0106 without one; 0112."""
    needs_reason(reason)
    _performed_row(performed_id)  # there is one
    update_row(PerformedProcedureStep, performed_id, settled=reason.strip()[:1024])
    audit(ctx, "performed step settled", str(performed_id), reason.strip()[:1024])


def is_wrong_entry(status: str, data: bytes) -> bool:
    """Whether a step was discontinued because of a wrong worklist entry (110514, DCM)."""
    keyword = "PerformedProcedureStepDiscontinuationReasonCodeSequence"
    reason = ElementIndex(data).item(keyword)
    code = reason.get("CodeValue") if reason.get("CodingSchemeDesignator") in ("DCM", "") else ""
    return status == "DISCONTINUED" and code == INCORRECT_WORKLIST_ENTRY
