"""Links from performed steps to scheduled steps, and the states that follow."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from minris.access.context import Context, audit, device_of, needs_reason
from minris.dataset.elements import ElementIndex
from minris.dataset.identity import identity_of
from minris.dataset.names import name_key
from minris.orders.diary import minute_of_day
from minris.orders.identities import differs, mark_patient
from minris.orders.items import step_item
from minris.orders.lookup import NO_STEP, step_row
from minris.orders.notes import note_change
from minris.orders.steps import enter_state
from minris.standard.dictionary import tag_of
from minris.standard.mpps import INCORRECT_WORKLIST_ENTRY, STEP_ATTRIBUTES, STEP_STATUS_AFTER
from minris.standard.status import Message
from minris.store.models import PerformedProcedureStep, ScheduledProcedureStep, database
from minris.store.rows import fetch_rows, first_row, known_row, update_row

NO_MATCH = Message("There is no such match")


def link_step(performed_id: int, item: ElementIndex, performed: ElementIndex) -> bool:
    """Link a performed step to the scheduled step that an item names; False if there is none.

    It is found by study with procedure and step ID, else by accession number, else by step ID if
    only one step has it; never by the patient's name (PS3.4 F.7.2.1.2). A patient who contradicts
    that of the order, as an operator typed another one, is left to a person to decide.
    """
    step, found_by = find_scheduled(item, performed.get("PatientID"))
    if step:
        patient = "differs" if differs(performed, step) else ""
        insert_link(performed_id, step.id, found_by, step.status, patient)
    return step is not None


def insert_link(
    performed_id: int,
    step_id: int,
    found_by: str,
    before: str,
    patient: str = "",
    told: bytes = b"",
) -> None:
    """Link a performed step to a scheduled one; `before` is the latter's state until then."""
    database.execute_sql(
        "INSERT INTO performed_scheduled_step (performed_id, scheduled_id, found_by, status_before,"
        " patient, told) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (performed_id, step_id, found_by, before, patient, told),
    )


# The attempts to find a scheduled step, in order: each needs a value for its first column and uses
# the other columns that have values. Only the study may link a step of another patient; a former
# Patient ID of a patient is the patient's.
STEP_ATTEMPTS = (
    ("study", "study_instance_uid", "requested_procedure_id", "scheduled_procedure_step_id"),
    ("accession number", "accession_number", "scheduled_procedure_step_id", "patient_id"),
    ("accession number", "accession_number", "patient_id"),
    ("step ID", "scheduled_procedure_step_id", "patient_id"),
)


_OF_PATIENT = (
    "? IN (SELECT scheduled_procedure_step.patient_id UNION ALL SELECT f.former_id"
    " FROM former_identity f JOIN requested_procedure r ON r.patient_id = f.patient_id"
    " WHERE r.id = scheduled_procedure_step.procedure_id)"
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
            conditions = (_OF_PATIENT if c == "patient_id" else f"{c} = ?" for c in given)
            where = " AND ".join(conditions) + " LIMIT 2"
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


def performed_row(performed_id: int) -> Any:
    """A performed step by its row id. Refuses 0112."""
    return known_row(first_row(PerformedProcedureStep, "id = ?", performed_id), NO_STEP)


def exams_to_match(
    ctx: Context, performed_id: int, wrong: int = 0
) -> list[tuple[Any, list[Message]]]:
    """The steps that a performed step may belong to, each with why, the likeliest first.

    They are those of its day and of today, and those of its Patient ID or accession number.

    wrong    the step that was chosen by mistake at the machine: it is left out, and as the report
             carries its patient, those of the same device within two hours come first
    Refuses  0112
    """
    index = ElementIndex(performed_row(performed_id).data)
    told = [index, *index.items(STEP_ATTRIBUTES)]
    accessions = {one.get("AccessionNumber") for one in told} - {""}
    day = index.get("PerformedProcedureStepStartDate")
    marks = ", ".join("?" * len(accessions))
    steps = fetch_rows(
        ScheduledProcedureStep,
        "start_date IN (?, ?) OR (? <> '' AND patient_id = ?)"
        f" OR accession_number IN ({marks}) ORDER BY start_date DESC, start_time, id LIMIT 300",
        day, ctx.today(), index.get("PatientID"), index.get("PatientID"), *accessions,
    )  # fmt: skip
    device = device_of(ctx, index.get("PerformedStationAETitle"))
    titles = set(device.ae_titles) if device else {index.get("PerformedStationAETitle")}
    begin = day, index.get("PerformedProcedureStepStartTime")
    found = []
    for step in [one for one in steps if one.id != wrong]:
        of = ElementIndex(step.data)
        stations = set(step_item(step).values(tag_of("ScheduledStationAETitle")))
        holds = {
            "Patient ID": index.get("PatientID") not in ("", "?")
            and step.patient_id == index.get("PatientID"),
            "accession number": step.accession_number in accessions,
            "name": names_share_group(index.get("PatientName"), of.get("PatientName")),
            "birth date": index.get("PatientBirthDate") == of.get("PatientBirthDate") != "",
            "device": bool(titles & stations),
            "time": are_near(begin, (step.start_date, step.start_time)),
        }
        likely = sum(weight for weight, why, _ in LIKELY if holds[why])
        likely += 64 if wrong and holds["device"] and holds["time"] else 0
        found.append((likely, step, [words for _, why, words in LIKELY if holds[why]]))
    return [one[1:] for one in sorted(found, key=lambda one: -one[0])]


# What makes a performed step likely to belong to a scheduled one; the weights add up.
LIKELY = (
    (16, "accession number", Message("same accession number")),
    (8, "Patient ID", Message("same Patient ID")),
    (6, "name", Message("same name")),
    (4, "birth date", Message("same birth date")),
    (2, "device", Message("same device")),
    (1, "time", Message("within two hours")),
)
NEAR_MINUTES = 120


def names_share_group(one: str, other: str) -> bool:
    """Whether two names have a group of components in common, as they are searched."""
    groups = [{group for group in name_key(name).split("=") if group} for name in (one, other)]
    return bool(groups[0] & groups[1])


def are_near(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether two times, date (DA) and time (TM), are of one day and within two hours."""
    if one[0] != other[0] or not one[1] or not other[1]:
        return False
    return abs(minute_of_day(one[1]) - minute_of_day(other[1])) <= NEAR_MINUTES


def link_by_hand(ctx: Context, performed_id: int, step_id: int) -> None:
    """Link a performed step to the scheduled step that a person chose. Refuses 0112."""
    with database.atomic():
        performed, step = performed_row(performed_id), step_row(step_id)
        patient = "accepted" if differs(ElementIndex(performed.data), step) else ""
        insert_link(performed_id, step_id, "by hand", step.status, patient)
        settle_step(ctx, step_id)
        uid = performed.sop_instance_uid
        note_change(ctx, f"step {step_id}", Message("Report of the machine matched by hand"))
        audit(ctx, "performed step matched", uid, step.scheduled_procedure_step_id)


class DoubtfulLink(NamedTuple):
    """A link whose performed step names another patient than the order; nobody has decided.

    told, ours  the patient's data set as the machine told it, and as the step has it
    """

    performed_id: int
    step_id: int
    station: str
    data: bytes
    told: bytes
    ours: bytes


def doubtful_links(limit: int = 200) -> list[DoubtfulLink]:
    """The links that wait for a person to decide who the patient is, newest first."""
    cursor = database.execute_sql(
        "SELECT l.performed_id, l.scheduled_id, p.performed_station_ae_title, p.data,"
        " CASE l.told WHEN x'' THEN p.data ELSE l.told END, s.data FROM performed_scheduled_step l"
        " JOIN performed_procedure_step p ON p.id = l.performed_id"
        " JOIN scheduled_procedure_step s ON s.id = l.scheduled_id"
        " WHERE l.patient = 'differs' ORDER BY l.performed_id DESC LIMIT ?",
        (limit,),
    )
    return [DoubtfulLink(*row) for row in cursor]


def doubtful_steps() -> set[int]:
    """The row ids of the scheduled steps with such a link."""
    sql = "SELECT scheduled_id FROM performed_scheduled_step WHERE patient = 'differs'"
    return {row_id for (row_id,) in database.execute_sql(sql)}


def accept_patient(ctx: Context, performed_id: int, step_id: int) -> None:
    """Settle that a performed step is of the order's patient after all. Refuses 0112."""
    with database.atomic():
        count = mark_patient(performed_id, step_id, "accepted")
        known_row(count, NO_MATCH)
        note_change(ctx, f"step {step_id}", Message("Patient at the machine accepted"))
        audit(ctx, "patient accepted", performed_row(performed_id).sop_instance_uid, str(step_id))


def doubt_patient(performed_id: int, told: ElementIndex) -> None:
    """Mark the links of a performed step whose N-SET, refused, names another patient."""
    links = database.execute_sql(
        "SELECT scheduled_id FROM performed_scheduled_step WHERE performed_id = ?", (performed_id,)
    ).fetchall()
    for (step_id,) in links:
        if differs(told, step_row(step_id)):
            mark_patient(performed_id, step_id, "differs", bytes(identity_of(told)))


def unlink_step(ctx: Context, performed_id: int, step_id: int) -> None:
    """Delete a link; the scheduled step returns to its state before. Refuses 0112."""
    with database.atomic():
        link = database.execute_sql(
            "DELETE FROM performed_scheduled_step WHERE performed_id = ? AND scheduled_id = ?"
            " RETURNING status_before",
            (performed_id, step_id),
        ).fetchone()
        settle_step(ctx, step_id, known_row(link, NO_MATCH)[0])
        note_change(ctx, f"step {step_id}", Message("Report of the machine removed"))
        audit(ctx, "performed step unmatched", str(performed_id), str(step_id))


def settle_unscheduled(ctx: Context, performed_id: int, reason: str) -> None:
    """Accept a performed step without an order, with a reason. Refuses 0106 without one; 0112."""
    needs_reason(reason)
    performed_row(performed_id)  # there is one
    update_row(PerformedProcedureStep, performed_id, settled=reason.strip()[:1024])
    audit(ctx, "performed step settled", str(performed_id), reason.strip()[:1024])


def is_wrong_entry(status: str, data: bytes) -> bool:
    """Whether a step was discontinued because of a wrong worklist entry (110514, DCM)."""
    keyword = "PerformedProcedureStepDiscontinuationReasonCodeSequence"
    reason = ElementIndex(data).item(keyword)
    code = reason.get("CodeValue") if reason.get("CodingSchemeDesignator") in ("DCM", "") else ""
    return status == "DISCONTINUED" and code == INCORRECT_WORKLIST_ENTRY
