"""The patient that a simulated machine examines: made for it, and erased after it."""

import secrets

from minris.access.context import Context
from minris.dataset.elements import sequence_elements, text_elements
from minris.housekeeping.erasing import erase_patient
from minris.orders.lookup import NO_PATIENT, steps_of
from minris.orders.scheduling import schedule
from minris.orders.steps import change_step
from minris.store.models import Patient, database
from minris.store.rows import fetch_rows, first_row, known_row

SIMULATED = "SIMULATED"
WHY = "simulated"


def make_simulated(ctx: Context, ae_title: str, modality: str) -> str:
    """Put a patient who is none on a machine's worklist; return the Patient ID. Refuses 0106.

    Those that a simulation left behind, as it was killed, are erased after an hour.
    """
    with database.atomic():
        left = "patient_id >= ? AND patient_id < ? AND created_at < ?"
        for old in fetch_rows(Patient, left, f"{SIMULATED}-", f"{SIMULATED}.", ctx.stamp(hours=-1)):
            _erase(ctx, old.id)
        patient_id = f"{SIMULATED}-{secrets.token_hex(4).upper()}"
        step = text_elements(ScheduledStationAETitle=ae_title, Modality=modality)
        texts = text_elements(
            PatientName="SIMULATED^NOT A PATIENT",
            PatientID=patient_id,
            RequestedProcedureDescription="Simulation, no patient",
        )
        sequence = sequence_elements(ScheduledProcedureStepSequence=[step])
        schedule(ctx, bytes(texts.merged(sequence)))
    return patient_id


def erase_simulated(ctx: Context, patient_id: str) -> str:
    """Erase such a patient with exam and reports; an exam that has begun is ended. Refuses 0112."""
    made = patient_id if patient_id.startswith(f"{SIMULATED}-") else ""
    patient = known_row(first_row(Patient, "patient_id = ?", made), NO_PATIENT)
    with database.atomic():
        _erase(ctx, patient.id)
    return f"{patient_id} erased"


def _erase(ctx: Context, row_id: int) -> None:
    for step in steps_of(row_id):
        if step.status == "STARTED":
            change_step(ctx, "stop", step.study_instance_uid, step.scheduled_procedure_step_id, WHY)
    erase_patient(ctx, row_id, WHY)
