"""Who a patient is and was, and whether performed steps name the patient of their orders."""

from typing import Any

from minris.dataset.elements import ElementIndex, text_elements
from minris.dataset.identity import contradictions, identity_of
from minris.store.models import (
    FormerIdentity,
    Patient,
    RequestedProcedure,
    ScheduledProcedureStep,
    database,
)
from minris.store.rows import erase, fetch_rows, first_row, insert_row

MOST_FORMER = 50  # identities kept of a patient, the newest


def note_identity(patient_row: int, old: ElementIndex, at: str, merged: bool = False) -> None:
    """Keep an identity that a patient had until now.

    merged  it is that of another record, whose orders go to this patient
    """
    data, former_id = bytes(identity_of(old)), old.get("PatientID")
    erase(
        "former_identity WHERE patient_id = ? AND data = ? AND merged <= ?",
        patient_row,
        data,
        merged,
    )
    insert_row(FormerIdentity, patient_id=patient_row, former_id=former_id, data=data, at=at,
               merged=int(merged))  # fmt: skip
    erase(
        "former_identity WHERE patient_id = ?1 AND id <= (SELECT id FROM former_identity"
        " WHERE patient_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        patient_row,
        MOST_FORMER,
    )


def move_identities(patient_row: int, target_row: int, old: ElementIndex, at: str) -> None:
    """Let a record take over the identities of another one that is merged into it."""
    sql = "UPDATE former_identity SET patient_id = ?, merged = 1 WHERE patient_id = ?"
    database.execute_sql(sql, (target_row, patient_row))
    note_identity(target_row, old, at, merged=True)


def forget_undone(patient_rows: set[int]) -> None:
    """Erase former identities that patients have again, as a change of them was undone."""
    rows = ", ".join(map(str, patient_rows)) or "NULL"
    for patient in fetch_rows(Patient, f"id IN ({rows})"):
        data = bytes(identity_of(ElementIndex(patient.data)))
        erase(f"former_identity WHERE patient_id IN ({rows}) AND data = ?", data)


def identities_of(step: Any) -> list[ElementIndex]:
    """The identities under which a machine may know the patient of a scheduled step.

    The present one and that of the step; merged ones; those that were corrected since the step was
    made; and any former Patient ID, unless another patient with orders has it now
    """
    procedure = first_row(RequestedProcedure, "id = ?", step.procedure_id)
    patient = first_row(Patient, "id = ?", procedure.patient_id)
    found = [identity_of(ElementIndex(data)) for data in (patient.data, step.data)]
    former = fetch_rows(
        FormerIdentity,
        "patient_id = ? AND NOT EXISTS (SELECT 1 FROM patient p JOIN requested_procedure r"
        " ON r.patient_id = p.id WHERE p.patient_id = former_identity.former_id"
        " AND p.id <> former_identity.patient_id)",
        patient.id,
    )
    for one in former:
        counts = one.merged or one.at >= step.created_at
        whole = ElementIndex(one.data if counts else b"")
        found.append(text_elements(PatientID=one.former_id).merged(whole))
    return found


def differs(told: ElementIndex, step: Any) -> list[str]:
    """In which attributes a performed step's patient contradicts that of a scheduled step."""
    return contradictions(identity_of(told), identities_of(step))


def compare_again(patient_row: int) -> None:
    """Compare again, after a change of a patient, the performed steps that named another one."""
    links = database.execute_sql(
        "SELECT l.performed_id, l.scheduled_id, l.patient, l.told, p.data"
        " FROM requested_procedure r JOIN scheduled_procedure_step s ON s.procedure_id = r.id"
        " JOIN performed_scheduled_step l ON l.scheduled_id = s.id"
        " JOIN performed_procedure_step p ON p.id = l.performed_id"
        " WHERE r.patient_id = ? AND l.patient IN ('differs', 'agrees')",
        (patient_row,),
    ).fetchall()
    for performed_id, step_id, was, told, data in links:
        step = first_row(ScheduledProcedureStep, "id = ?", step_id)
        now = "differs" if differs(ElementIndex(told or data), step) else "agrees"
        if now != was:
            mark_patient(performed_id, step_id, now)


def mark_patient(performed_id: int, step_id: int, verdict: str, told: bytes = b"") -> int:
    """Write a verdict, as PerformedScheduledStep has it, about a link; return the number of links."""
    count: int = database.execute_sql(
        "UPDATE performed_scheduled_step SET patient = ?1,"
        " told = CASE ?2 WHEN x'' THEN told ELSE ?2 END"
        " WHERE performed_id = ?3 AND scheduled_id = ?4",
        (verdict, told, performed_id, step_id),
    ).rowcount
    return count
