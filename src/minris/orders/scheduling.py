"""Orders: created, changed, moved."""

from collections.abc import Iterable

import peewee

from minris import log
from minris.access.context import Context, audit, device_of
from minris.dataset.checks import implausible
from minris.dataset.elements import (
    EMPTY,
    ElementIndex,
    encode_items,
    encode_text,
    encoded,
    text_elements,
)
from minris.orders.catalogue import note_referrer
from minris.orders.items import (
    fold,
    item_problems,
    split_item,
    step_columns,
    step_item,
    step_with_defaults,
)
from minris.orders.lookup import (
    belongs_to_another,
    check_accession,
    find_step,
    next_identifier,
    step_data,
    step_key,
    step_known,
    step_row,
)
from minris.orders.notes import can_be_undone, note_change
from minris.orders.patients import not_told, same_name_problem, save_patient, similar_patients
from minris.orders.steps import (
    change_step,
    enter_state,
    refold,
    save_stations,
    step_outcome,
    update_patient,
)
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.worklist import (
    OPEN_STEP_STATES,
    STEP_SEQUENCE,
    STEP_STATES,
    STEP_STATUS,
    WAITING_STEP_STATES,
)
from minris.store.models import Patient, RequestedProcedure, ScheduledProcedureStep, database
from minris.store.rows import first_version, insert_row


def _save_procedure(
    ctx: Context, patient: Patient, index: ElementIndex, same_id: str = "refuse"
) -> RequestedProcedure:
    """Find or create the requested procedure of an item. Refuses 0111 for another patient's."""
    uid = index.get("StudyInstanceUID")
    known = uid and RequestedProcedure.get_or_none(RequestedProcedure.study_instance_uid == uid)
    if known:
        if known.patient_id != patient.id:
            raise belongs_to_another("StudyInstanceUID", uid)
        stored = ElementIndex(known.data)
        problems = [
            Problem(tag_of(k), Message("is {value} already", value=stored.get(k)))
            for k in ("AccessionNumber", "RequestedProcedureID")
            if index.get(k) not in ("", stored.get(k))
        ]
        if problems:
            raise Refusal(Status.DUPLICATE_SOP_INSTANCE, problems=problems)
        return known
    accession, procedure_id = index.get("AccessionNumber"), index.get("RequestedProcedureID")
    if same_id != "separate":
        check_accession(accession, patient.id)
    uid = uid or ctx.new_uid()
    clinic = ctx.config.clinic
    accession = accession or next_identifier(
        ctx, clinic.accession_number_format, RequestedProcedure, "accession_number"
    )
    procedure_id = procedure_id or next_identifier(
        ctx, clinic.requested_procedure_id_format, RequestedProcedure, "requested_procedure_id"
    )
    made = text_elements(
        StudyInstanceUID=uid, AccessionNumber=accession, RequestedProcedureID=procedure_id
    )
    note_referrer(ctx, index.get("ReferringPhysicianName"))
    return RequestedProcedure.create(
        patient=patient,
        study_instance_uid=uid,
        requested_procedure_id=procedure_id,
        accession_number=accession,
        data=bytes(index.merged(made)),
        created_at=ctx.stamp(),
    )


def _save_step(
    ctx: Context, patient: Patient, procedure: RequestedProcedure, step: ElementIndex
) -> bytes:
    """Create a scheduled procedure step; return its complete data set. Refuses 0111."""
    pattern = ctx.config.clinic.scheduled_procedure_step_id_format
    step_id = step.get("ScheduledProcedureStepID") or next_identifier(
        ctx, pattern, ScheduledProcedureStep, "scheduled_procedure_step_id"
    )
    item = step.merged(text_elements(ScheduledProcedureStepID=step_id))
    folded = fold(ElementIndex(patient.data), ElementIndex(procedure.data), item)
    data, columns = bytes(folded), step_columns(folded)
    arrived = ctx.stamp() if columns["status"] in ("ARRIVED", "READY") else ""
    ended = "" if columns["status"] in OPEN_STEP_STATES else ctx.stamp()
    try:
        row_id = insert_row(
            ScheduledProcedureStep,
            procedure_id=procedure.id,
            data=data,
            version=first_version(),
            created_at=ctx.stamp(),
            arrived_at=arrived,
            started_at="",
            ended_at=ended,
            remark="",
            **columns,
        )
    except peewee.IntegrityError:
        words = Message("{value} is on the worklist already", value=step_id)
        problem = Problem(tag_of("ScheduledProcedureStepID"), words)
        raise Refusal(Status.DUPLICATE_SOP_INSTANCE, problems=[problem]) from None
    save_stations(row_id, step.values(tag_of("ScheduledStationAETitle")), columns["start_date"])
    return data


def schedule(
    ctx: Context, data: bytes, same_id: str = "refuse", trial: bool = False, kept: bool = False
) -> list[bytes]:
    """Put an item on the worklist; return the complete data set of each of its steps.

    data      patient, request and Scheduled Procedure Step Sequence, stored form; missing
              identifiers are assigned
    same_id   `refuse`, `update` or `separate`, if the Patient ID belongs to another name
    trial     it will be rolled back: do not log it
    kept      it was on a worklist before: what it says of the patient is not judged anew
    Refuses   0106 with all wrong or missing attributes; 0111 for what already exists
    Source    PS3.4 Table K.6-1 (return types)
    """
    index = ElementIndex(data)
    of_patient, of_procedure, steps = split_item(index)
    steps = [step_with_defaults(ctx, step, of_procedure) for step in steps]
    problems = item_problems(index, steps)
    if problems := problems + ([] if kept else implausible(index, ctx.today())):
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
    with database.atomic():
        patient = save_patient(ctx, of_patient, same_id)
        procedure = _save_procedure(ctx, patient, of_procedure, same_id)
        stored = [_save_step(ctx, patient, procedure, step) for step in steps]
        audit(ctx, "scheduled", procedure.study_instance_uid, procedure.accession_number)
    if not trial:
        accession, count = procedure.accession_number, len(stored)
        log.info("accession %s: scheduled by %s; steps: %d", accession, ctx.actor, count)
    return stored


def reschedule(ctx: Context, study_instance_uid: str, step_id: str, data: bytes) -> bytes:
    """Change a step, its procedure and its patient; return the new data set.

    data     attributes to change, as for `schedule`; an empty attribute is emptied
    Refuses  0112; 0110 for a step that has started or ended; 0106; 0105 for another Study
             Instance UID, step ID or Patient ID
    """
    index = ElementIndex(data)
    of_patient, of_procedure, items = split_item(index)
    with database.atomic():
        step = find_step(study_instance_uid, step_id)
        state = step_outcome("reschedule", step)
        given = items[0] if items else EMPTY
        check_identity(index, given, step)
        identifiers = ("StudyInstanceUID", "PatientID", "RequestedProcedureID")
        problems = [
            Problem(tag_of(k), Message("is missing"))
            for k, where in (
                *((k, index) for k in identifiers),
                ("ScheduledProcedureStepID", given),
            )
            if tag_of(k) in where and not where.get(k)
        ]
        if len(items) > 1:
            problems.append(Problem(STEP_SEQUENCE, Message("has more than one item")))
        wanted = given.text(STEP_STATUS)
        if wanted in STEP_STATES and wanted not in WAITING_STEP_STATES | {step.status}:
            problems.append(Problem(STEP_STATUS, Message("cannot be changed here")))
        if problems:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
        procedure = step.procedure
        new_state = given.text(STEP_STATUS) or state
        status = text_elements(ScheduledProcedureStepStatus=new_state)
        changed = step_item(step).merged(given, status)
        patient = ElementIndex(procedure.patient.data).merged(of_patient)
        everything = fold(patient, of_procedure, changed)
        problems = item_problems(everything, [changed])
        if problems := problems + implausible_changes(ctx, of_patient, procedure.patient):
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
        places = (("patient", procedure.patient_id), ("requested_procedure", procedure.id),
                  ("scheduled_procedure_step", step.id))  # fmt: skip
        with can_be_undone(ctx, Message("Exam changed"), f"step {step.id}", places):
            if new_state in STEP_STATES:
                enter_state(ctx, step, new_state)
            _change(ctx, step, changed, of_patient, of_procedure)
        audit(ctx, "rescheduled", study_instance_uid, step_id)
    return step_data(study_instance_uid, step_id)


def implausible_changes(ctx: Context, given: ElementIndex, patient: Patient) -> list[Problem]:
    """What cannot be true of a patient, of attributes that are not kept as they were."""
    stored, found = ElementIndex(patient.data), implausible(given, ctx.today())
    return [one for one in found if given.text(one.tag) != stored.text(one.tag)]


def _change(
    ctx: Context,
    step: ScheduledProcedureStep,
    item: ElementIndex,
    of_patient: ElementIndex,
    of_procedure: ElementIndex,
) -> None:
    """Write the changes of a step, its procedure and its patient; sibling steps follow."""
    procedure = step.procedure
    told = ElementIndex(procedure.data).merged(of_procedure)
    exams = ElementIndex(procedure.data).merged(step_item(step)), told.merged(item)
    note_change(ctx, f"step {step.id}", Message("Changed"), *exams)
    procedure.data = bytes(told)
    note_referrer(ctx, of_procedure.get("ReferringPhysicianName"))
    if told.get("AccessionNumber") != procedure.accession_number:
        check_accession(told.get("AccessionNumber"), procedure.patient_id)
    procedure.accession_number = told.get("AccessionNumber")
    procedure.requested_procedure_id = told.get("RequestedProcedureID")
    procedure.save()
    update_patient(ctx, procedure.patient, of_patient, empty=True)
    siblings = ScheduledProcedureStep.select().where(
        (ScheduledProcedureStep.procedure == procedure)
        & ScheduledProcedureStep.status.in_(OPEN_STEP_STATES | {step.status})
    )
    for sibling in siblings:
        its = item if sibling.id == step.id else step_item(sibling)
        refold(sibling, procedure.patient, procedure, its)


def check_identity(index: ElementIndex, item: ElementIndex, step: ScheduledProcedureStep) -> None:
    """Refuse (0105) to change what identifies a step."""
    known = {
        "StudyInstanceUID": (index, step.study_instance_uid),
        "PatientID": (index, step.patient_id),
        "ScheduledProcedureStepID": (item, step.scheduled_procedure_step_id),
    }
    problems = [
        Problem(tag_of(keyword), Message("cannot be changed here"))
        for keyword, (where, stored) in known.items()
        if where.get(keyword) not in ("", stored)
    ]
    if problems:
        raise Refusal(Status.NO_SUCH_ATTRIBUTE, problems=problems)


def change_rows(ctx: Context, event: str, row_ids: Iterable[int], remark: str = "") -> int:
    """Apply an event to all steps or none; `today` moves them to today. Return their number."""
    count = 0
    with database.atomic():
        for count, row_id in enumerate(row_ids, 1):  # noqa: B007
            study, step_id = step_key(row_id)
            if event == "today":
                move_step(ctx, row_id, ScheduledProcedureStepStartDate=ctx.today())
            else:
                change_step(ctx, event, study, step_id, remark)
    return count


def move_step(ctx: Context, row_id: int, **texts: str) -> bytes:
    """Change date, time, station or modality of a step, by keyword."""
    if device := device_of(ctx, texts.get("ScheduledStationAETitle", "")):
        texts.setdefault("Modality", device.modality)
        texts["ScheduledStationName"] = device.station_name
        texts["ScheduledProcedureStepLocation"] = device.location
    elements = {tag_of(k): encode_text(k, v) for k, v in texts.items() if v or k != "Modality"}
    sequence = encode_items(STEP_SEQUENCE, [encoded(elements)])
    return reschedule(ctx, *step_key(row_id), sequence)


def move_to(ctx: Context, row_id: int, ae_title: str, date: str, time: str) -> None:
    """Move a step to a day (DA), a time (TM) and a device of its modality.

    Refuses 0106 if the device is not registered or does another modality; as reschedule
    """
    step, device = step_row(row_id), device_of(ctx, ae_title)
    if not device:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("Choose a device and a time"))
    if step.modality != device.modality:
        words = Message("{device} does {its}, and the exam is {modality}", device=device.name,
                        its=device.modality, modality=step.modality)  # fmt: skip
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words)
    here = device.ae_title in step_item(step).values(tag_of("ScheduledStationAETitle"))
    move_step(
        ctx, row_id, ScheduledProcedureStepStartDate=date, ScheduledProcedureStepStartTime=time,
        **({} if here else {"ScheduledStationAETitle": device.ae_title}),
    )  # fmt: skip


def register_once(ctx: Context, item: bytes, same_id: str, ask: bool, anyway: bool = True) -> None:
    """Schedule an item unless its study is known, as when a form is submitted twice.

    ask     refuse (0111) if a patient of this name has another ID, and the birth date is the same
            or not known
    anyway  take it without birth date or sex; else refuse (0106)
    """
    index = ElementIndex(item)
    if step_known(index.get("StudyInstanceUID")):
        return
    similar = [
        same_name_problem(index, patient) for patient in (similar_patients(index) if ask else ())
    ]
    missing = [] if anyway else not_told(index)
    if similar or missing:
        status = Status.DUPLICATE_SOP_INSTANCE if similar else Status.INVALID_ATTRIBUTE_VALUE
        raise Refusal(status, problems=similar + missing)
    schedule(ctx, item, same_id)
