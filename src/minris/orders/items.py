"""Worklist items: split, completed, checked, and folded into one data set per step."""

from typing import Any

from minris.access.context import Context, device_of
from minris.config.ini import Device
from minris.dataset.checks import value_problems
from minris.dataset.elements import (
    ElementIndex,
    encode_element,
    encoded,
    sequence_elements,
    text_elements,
)
from minris.dataset.names import initials, name_key
from minris.dataset.resident import without_identity_number
from minris.dataset.spelling import tidy
from minris.dataset.text import SPECIFIC_CHARACTER_SET
from minris.dataset.times import time_start
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Problem
from minris.standard.worklist import MWL_ATTRIBUTES, STEP_SEQUENCE, STEP_STATES, STEP_STATUS
from minris.store.models import ScheduledProcedureStep


def is_of_patient(tag: int) -> bool:
    """Whether an attribute belongs to the patient; by its group if the table does not list it."""
    row = MWL_ATTRIBUTES.get((tag,))
    return row.cells["entity"] == "patient" if row else tag >> 16 == 0x0010


def tidy_names(index: ElementIndex) -> ElementIndex:
    """A worklist item with its names as they are meant: letters composed, spaces plain."""
    found = {}
    for tag in index:
        if index.vr(tag) == b"PN" and not index.value(tag).isascii():
            found[tag] = encode_element(tag, b"PN", tidy(index.text(tag)).encode())
    return index.merged(ElementIndex(encoded(found))) if found else index


def split_item(index: ElementIndex) -> tuple[ElementIndex, ElementIndex, list[ElementIndex]]:
    """A worklist item split into the patient's attributes, the procedure's, and the steps."""
    index = tidy_names(index)
    patient = [tag for tag in index if is_of_patient(tag)]
    procedure = index.without((*patient, STEP_SEQUENCE, SPECIFIC_CHARACTER_SET))
    return index.only(patient), procedure, index.items(STEP_SEQUENCE)


def fold(patient: ElementIndex, procedure: ElementIndex, step: ElementIndex) -> ElementIndex:
    """The complete worklist data set of one scheduled procedure step."""
    patient = without_identity_number(patient)
    return patient.merged(procedure, sequence_elements(ScheduledProcedureStepSequence=[step]))


def step_columns(index: ElementIndex) -> dict[str, str]:
    """The columns of a scheduled procedure step, normalised, from its data set."""
    step = index.item("ScheduledProcedureStepSequence")
    return {
        "scheduled_procedure_step_id": step.get("ScheduledProcedureStepID"),
        "study_instance_uid": index.get("StudyInstanceUID"),
        "requested_procedure_id": index.get("RequestedProcedureID"),
        "accession_number": index.get("AccessionNumber"),
        "patient_id": index.get("PatientID"),
        "name_key": name_key(index.get("PatientName")),
        "modality": step.get("Modality"),
        "start_date": step.get("ScheduledProcedureStepStartDate"),
        "start_time": time_start(step.get("ScheduledProcedureStepStartTime")),
        "status": step.get("ScheduledProcedureStepStatus"),
    }


def step_with_defaults(ctx: Context, step: ElementIndex, procedure: ElementIndex) -> ElementIndex:
    """A step completed with defaults for device, modality, time and state."""
    title = next(iter(step.values(tag_of("ScheduledStationAETitle"))), "")
    modality = step.get("Modality")
    named = [device_of(ctx, title)] if title else []
    devices = named or [d for d in ctx.devices if modality and d.modality == modality]
    device = (devices[0] if len(devices) == 1 else None) or Device("", ("",))
    now = ctx.local_now()
    known = text_elements(
        ScheduledStationAETitle=device.ae_title,
        Modality=device.modality,
        ScheduledStationName=device.station_name,
        ScheduledProcedureStepLocation=device.location,
        ScheduledProcedureStepStartDate=f"{now:%Y%m%d}",
        ScheduledProcedureStepStartTime=f"{now:%H%M%S}",
        ScheduledProcedureStepDescription=procedure.get("RequestedProcedureDescription"),
    )
    status = text_elements(ScheduledProcedureStepStatus=step.text(STEP_STATUS) or "SCHEDULED")
    return step.merged(known, step.with_values(), status)


REQUIRED_STEP_KEYWORDS = ("ScheduledStationAETitle", "Modality", "ScheduledProcedureStepStartDate",
                          "ScheduledProcedureStepStartTime")  # fmt: skip


def item_problems(index: ElementIndex, steps: list[ElementIndex]) -> list[Problem]:
    """All problems for which a worklist item is refused."""
    problems = list(value_problems(index))
    if not name_key(index.get("PatientName")).replace("=", ""):
        problems.append(Problem(tag_of("PatientName"), Message("is missing")))
    if not steps:
        problems.append(Problem(STEP_SEQUENCE, Message("is missing")))
    for step in steps:
        problems += [
            Problem(tag_of(keyword), Message("is missing"))
            for keyword in REQUIRED_STEP_KEYWORDS
            if not step.get(keyword)
        ]
        if (status := step.text(STEP_STATUS)) not in STEP_STATES:
            problems.append(Problem(STEP_STATUS, Message("{value} is not a state", value=status)))
    return problems


def patient_columns(index: ElementIndex) -> dict[str, Any]:
    """The columns of a patient, from its data set."""
    return {
        "patient_id": index.get("PatientID"),
        "issuer_of_patient_id": index.get("IssuerOfPatientID"),
        "patient_name": index.get("PatientName"),
        "name_key": name_key(index.get("PatientName")),
        "initials": initials(index.get("PatientName")),
        "patient_birth_date": index.get("PatientBirthDate"),
        "data": bytes(index),
    }


def step_item(step: ScheduledProcedureStep) -> ElementIndex:
    """The one item of a stored step's Scheduled Procedure Step Sequence."""
    return ElementIndex(step.data).item("ScheduledProcedureStepSequence")


def exam_name(index: ElementIndex) -> str:
    """What people call the exam of a worklist item: its step's description, else its procedure's."""
    step = index.item("ScheduledProcedureStepSequence").get("ScheduledProcedureStepDescription")
    return step or index.get("RequestedProcedureDescription")
