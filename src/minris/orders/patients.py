"""Patients: found, created, corrected, merged."""

import datetime
import itertools
import re
from typing import Any

from minris import log
from minris.access.context import Context, audit, needs_reason
from minris.dataset.checks import implausible, value_problems
from minris.dataset.elements import ElementIndex, text_elements
from minris.dataset.names import name_key, shown_name
from minris.dataset.resident import OTHER_IDS, identity_elements, identity_number
from minris.dataset.spelling import plain_signs, tidy_code
from minris.dataset.times import date_of, typed_dates
from minris.orders.identities import move_identities
from minris.orders.items import patient_columns, tidy_names
from minris.orders.lookup import NO_PATIENT, next_identifier
from minris.orders.notes import Place, can_be_undone, note_change
from minris.orders.steps import refold_open, update_patient, write_patient
from minris.orders.views import move_views
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Problem, Refusal, Status
from minris.store.models import Patient, RequestedProcedure, database
from minris.store.rows import erase, fetch_rows, first_row, known_row


def same_person(index: ElementIndex, patient: Patient) -> bool:
    """Whether name and birth date match those of a patient.

    If both names have an ideographic group, it decides, as many names sound alike; else any group,
    whichever group the other name has it in.
    """
    ours, theirs = patient.name_key.split("="), name_key(index.get("PatientName")).split("=")
    if all(len(groups) > 1 and groups[1] for groups in (ours, theirs)):
        ours, theirs = ours[1:2], theirs[1:2]
    birth_dates = {patient.patient_birth_date, index.get("PatientBirthDate")} - {""}
    return bool({*ours} & {*theirs} - {""}) and len(birth_dates) < 2


SAME_ID = "{value} belongs to {name}, born {birth_date}"
SAME_NAME = "A patient of this name, born {birth_date}, has the ID {value}"
NOT_TOLD = "is missing: ask for it, or register anyway"
SAME_PERSON = "A patient of this name and birth date has the ID {value}"


def find_patient(index: ElementIndex, same_id: str) -> Patient | None:
    """The patient that an item belongs to, or None for a new one.

    same_id  if the Patient ID belongs to another name: `refuse`, `update` that patient, or keep
             both as `separate` patients
    """
    patient_id = index.get("PatientID")
    if not patient_id:
        return None
    known = Patient.select().where(Patient.patient_id == patient_id).order_by(Patient.id)
    if issuer := index.get("IssuerOfPatientID"):
        known = known.where(Patient.issuer_of_patient_id.in_([issuer, ""]))
    candidates = list(known)
    if same := next((one for one in candidates if same_person(index, one)), None):
        return same
    if not candidates:
        return None
    if same_id == "separate":
        log.warning("a Patient ID is now used by another patient too (of row %d)", candidates[0].id)
        return None
    if same_id == "update":
        return candidates[0]
    other = candidates[0]
    words = Message(SAME_ID, value=patient_id, name=shown_name(other.patient_name),
                    birth_date=date_of(other.patient_birth_date) or "?")  # fmt: skip
    raise Refusal(Status.DUPLICATE_SOP_INSTANCE, problems=[Problem(tag_of("PatientID"), words)])


def save_patient(ctx: Context, given: ElementIndex, same_id: str) -> Patient:
    """Find or create the patient of an item; a known patient is updated from it."""
    patient = find_patient(given, same_id)
    if patient:
        if same_person(given, patient):  # a missing group keeps its value
            told = given.get("PatientName").split("=")
            known = patient.patient_name.split("=")
            groups = itertools.zip_longest(told, known, fillvalue="")
            name = "=".join(new or old for new, old in groups)
            given = given.merged(text_elements(PatientName=name))
        update_patient(ctx, patient, given)
        return patient
    if not given.get("PatientID"):
        pattern = ctx.config.clinic.patient_id_format
        made = next_identifier(ctx, pattern, Patient, "patient_id")
        given = given.merged(text_elements(PatientID=made))
    now = ctx.stamp()
    return Patient.create(**patient_columns(given), created_at=now, updated_at=now)


def similar_patients(index: ElementIndex) -> list[Any]:
    """Patients of the same name but another Patient ID, whose birth date is the same or not known."""
    born, given, key = (
        index.get("PatientBirthDate"),
        index.get("PatientID"),
        name_key(index.get("PatientName")),
    )
    first = key.partition("=")[0]
    found = fetch_rows(
        Patient,
        "patient_birth_date = ? AND patient_birth_date <> '' AND patient_id <> ?",
        born,
        given,
    )
    found += fetch_rows(
        Patient,
        "(name_key = ? OR (name_key > ? AND name_key < ?)) AND patient_id <> ?"
        " AND (patient_birth_date = '' OR ? = '') ORDER BY updated_at DESC LIMIT 20",
        *(key, f"{first}=", f"{first}=\uffff" if first else "", given, born),
    )
    number = identity_number(index)
    return [
        patient for patient in found
        if same_person(index, patient) or (number and number in numbers_of(patient))
    ]  # fmt: skip


def numbers_of(patient: Any) -> set[str]:
    """By what a patient may be known as the same person: identity number and Patient ID."""
    return {identity_number(ElementIndex(patient.data)), patient.patient_id}


def same_name_problem(index: ElementIndex, patient: Any) -> Problem:
    """The words that a patient may be the one of an order."""
    born, value = patient.patient_birth_date, patient.patient_id
    words = Message(SAME_PERSON, value=value)
    if not (born and index.get("PatientBirthDate")):
        words = Message(SAME_NAME, value=value, birth_date=date_of(born) or "?")
    return Problem(tag_of("PatientName"), words)


def not_told(index: ElementIndex) -> list[Problem]:
    """Birth date and sex, if neither a new order nor the patient whom it is for has them."""
    known = find_patient(index, "separate") if index.get("PatientID") else None
    both = ElementIndex(known.data).merged(index.with_values()) if known else index
    return [
        Problem(tag_of(keyword), Message(NOT_TOLD))
        for keyword in ("PatientBirthDate", "PatientSex")
        if not both.get(keyword)
    ]


def find_patients(text: str, today: datetime.date, limit: int = 50) -> list[Any]:
    """Patients by what people type; the best match first.

    text   parts of a name in any order and spelling, initials, ID, accession number, phone or identity
           number, or a birth date in any form
    today  tells the century of a birth date whose year has two digits
    """
    text = tidy_code(text).strip()
    words = [key for word in re.split(r"[\s,^=·]+", plain_signs(text)) if (key := name_key(word))][
        :8
    ]
    digits = re.sub(r"[\s()+-]", "", text)
    letters = text.casefold() if re.fullmatch("[A-Za-z]{2,6}", text) else ""
    phone = digits.upper() if re.fullmatch("[0-9]{5,}[Xx]?", digits) else ""
    born = [*typed_dates(text, today), "", ""][:2]
    named = " AND ".join(f"instr(name_key, ?{7 + number})" for number in range(len(words)))
    where = (
        "patient_id = ?1 OR (patient_birth_date IN (?2, ?3) AND patient_birth_date <> '')"
        f" OR ({named or 0}) OR (?4 <> '' AND initials BETWEEN ?4 AND ?4 || '{{')"
        " OR id IN (SELECT patient_id FROM requested_procedure WHERE accession_number = ?1 AND ?1 <> '')"
        " OR (?5 <> '' AND (patient_id LIKE ?5 || '%' OR instr(data, CAST(?5 AS BLOB))))"
        " ORDER BY patient_id = ?1 DESC, ?4 <> '' AND initials = ?4 DESC,"
        f" {'instr(name_key, ?7) = 1' if words else 'NULL'} DESC, updated_at DESC LIMIT ?6"
    )
    return fetch_rows(Patient, where, text, *born, letters, phone, limit, *words)


def known_with_zeros(index: ElementIndex) -> str:
    """The Patient ID of a patient of this name that has zeros in front of the one given, or ""."""
    given, key = index.get("PatientID"), name_key(index.get("PatientName"))
    if not re.fullmatch("[1-9][0-9]{0,15}", given):
        return ""
    longer = [given.rjust(digits, "0") for digits in range(len(given) + 1, 17)]
    marks = ", ".join("?" * len(longer))
    found = fetch_rows(Patient, f"patient_id IN ({marks})", *longer) if longer else []
    return next((one.patient_id for one in found if one.name_key == key), "")


def rows_of(*patients: Any) -> list[Place]:
    """The rows of patients, of their orders and of their former identities."""
    ids = ", ".join(str(patient.id) for patient in patients)
    theirs = database.execute_sql(
        f"SELECT 'requested_procedure', id FROM requested_procedure WHERE patient_id IN ({ids})"
        f" UNION ALL SELECT 'former_identity', id FROM former_identity WHERE patient_id IN ({ids})"
    )
    return [*(("patient", patient.id) for patient in patients), *theirs]


def move_changes(ctx: Context, patient: Patient, target: Patient) -> None:
    """Tell at a record what was changed of another one of the same person, and that it was merged."""
    sql = "UPDATE value_change SET about = ? WHERE about = ?"
    database.execute_sql(sql, (f"patient {target.id}", f"patient {patient.id}"))
    ids = (text_elements(PatientID=one.patient_id) for one in (patient, target))
    note_change(ctx, f"patient {target.id}", Message("Patients merged"), *ids)


def _move_orders(patient: Patient, target: Patient) -> None:
    orders = RequestedProcedure.update(patient=target)
    orders.where(RequestedProcedure.patient == patient).execute()


def merge_patients(ctx: Context, row_id: int, into: str, why: str) -> int:
    """Merge a patient into another record of the same person; return that record's row id.

    into     Patient ID to keep; it takes over the orders, and attributes that it lacks
    Refuses  0106 without a reason or for the same record; 0112; 0110 if several have the ID
    """
    needs_reason(why)
    with database.atomic():
        patient = known_row(Patient.get_or_none(Patient.id == row_id), NO_PATIENT)
        known = list(Patient.select().where(Patient.patient_id == into.strip()))
        target = known_row(known and known[0], NO_PATIENT)
        if len(known) > 1:
            raise Refusal(Status.PROCESSING_FAILURE, Message("Several patients have this ID"))
        if target.id == patient.id:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("That is the same patient"))
        what, places = Message("Patients merged"), rows_of(patient, target)
        with can_be_undone(ctx, what, f"patient {target.id}", places):
            _move_orders(patient, target)
            own, have = ElementIndex(patient.data), ElementIndex(target.data)
            move_identities(patient.id, target.id, own, ctx.stamp())
            update_patient(ctx, target, own.without(have.with_values()))
            refold_open(target)
            move_views(patient.id, target.id)
            erase("patient WHERE id = ?", patient.id)
            move_changes(ctx, patient, target)
        detail = f"{patient.patient_id} -> {target.patient_id}: {why.strip()[:500]}"
        audit(ctx, "patients merged", target.patient_id, detail)
    return target.id


def with_phonetic(given: ElementIndex, known: str) -> ElementIndex:
    """A change of a name whose ideographic group stays: so does the phonetic one, if not given."""
    told, old = f"{given.get('PatientName')}==".split("="), f"{known}==".split("=")
    if not told[1] or told[1] != old[1] or told[2] or not old[2]:
        return given
    return given.merged(text_elements(PatientName="=".join([*told[:2], old[2]])))


def correct_patient(ctx: Context, row_id: int, given: bytes) -> None:
    """Correct a patient's attributes; open steps follow. An attribute given empty is emptied.

    The Patient ID may change too. If it belongs to a record of the same person, by name and birth
    date, the orders move to that record (an emergency patient who has been identified).
    Refuses  0112, 0106; 0111 for somebody else's ID
    """
    with database.atomic():
        patient = known_row(Patient.get_or_none(Patient.id == row_id), NO_PATIENT)
        told = with_phonetic(tidy_names(ElementIndex(given)), patient.patient_name)
        if OTHER_IDS in told:
            own = identity_elements(ElementIndex(patient.data), identity_number(told))
            told = told.merged(own)
        old = ElementIndex(patient.data)
        new = old.merged(told)
        problems = [*value_problems(new), *implausible(told, ctx.today())]
        for keyword in ("PatientName", "PatientID"):
            if not new.get(keyword).strip("^= "):
                problems.append(Problem(tag_of(keyword), Message("is missing")))
        if problems:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
        known = find_patient(new, "refuse") if new.get("PatientID") != patient.patient_id else None
        target = known or patient
        if known:
            old = ElementIndex(known.data)
            new = old.merged(told.with_values())
        what, about, old_id = (
            Message("Patient corrected"),
            f"patient {target.id}",
            patient.patient_id,
        )
        places = rows_of(patient, target) if known else [("patient", patient.id)]
        with can_be_undone(ctx, what, about, places):
            if known:
                _move_orders(patient, known)
                move_identities(patient.id, known.id, ElementIndex(patient.data), ctx.stamp())
                move_changes(ctx, patient, known)
                audit(ctx, "orders moved", known.patient_id, f"from {patient.patient_id}")
            write_patient(target, new, ctx.stamp())
        note_change(ctx, about, what, old, new)
        moved = f"{old_id} -> {target.patient_id}" if old_id != target.patient_id else ""
        audit(ctx, "patient corrected", target.patient_id, moved)


def get_patient(row_id: int) -> bytes:
    """The data set of a patient by its row id. Refuses 0112."""
    return bytes(known_row(first_row(Patient, "id = ?", row_id), NO_PATIENT).data)
