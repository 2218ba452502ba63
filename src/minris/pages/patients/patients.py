"""Patients: find, correct, merge, erase."""

import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from minris.dataset.elements import ElementIndex
from minris.dataset.names import initials
from minris.housekeeping.erasing import erase_patient, forget_erased
from minris.orders.history import changes_of
from minris.orders.items import exam_name
from minris.orders.lookup import steps_of
from minris.orders.patients import correct_patient, find_patients, get_patient, merge_patients
from minris.orders.undo import undo
from minris.orders.views import views_of
from minris.pages.asking import ask_if_sure, is_sure
from minris.pages.day.board import tags_of
from minris.pages.forms import (
    Field,
    encoded_form,
    first_problem,
    post_changes,
    problem_words,
    show_fields,
    show_form,
)
from minris.pages.frame import PageRequest, Row, row_number
from minris.pages.language import shown_time, who_is
from minris.pages.patients.register import found_part
from minris.pages.reception import (
    PATIENT_FIELDS,
    form_of,
    in_order,
    patient_from_form,
    patient_title,
    reception_choices,
    shown_history,
)
from minris.pages.template import template
from minris.seen import ChangedMeanwhile
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Problem, Refusal, Status

PATIENT_PAGE = template("patients/patient.html")
MERGE_PAGE = template("patients/merge.html")


def patient_index(p: PageRequest, row_id: int) -> ElementIndex:
    """Return the data set of a patient. Refuses 0112."""
    return ElementIndex(p.read(get_patient, row_id))


def who_it_is(p: PageRequest, index: ElementIndex) -> str:
    """Return name and ID of a patient."""
    return f"{p.t.name(index.get('PatientName'))} {index.get('PatientID')}"


def merge_page(p: PageRequest, row_id: int, problems: Sequence[Problem] = ()) -> str:
    """GET /patient/…/merge: find the record that this patient is merged into."""
    t, mark, index = p.t, p.mark(("patient", row_id)), patient_index(p, row_id)
    text = p.form("q")
    likely = namesakes(p, row_id, index) if not text else None
    return p.show(
        MERGE_PAGE, t("Merge {who} into", who=who_it_is(p, index)), row_id=row_id, mark=mark,
        problems=[t(problem.words) for problem in problems], query=text,
        reason=p.form("reason") or t("Identified as the same person"),
        found=found_part(p, text, people=likely),
    )  # fmt: skip


def post_merge(p: PageRequest, row_id: int) -> str:
    """POST /patient/…/merge: merge this patient into the chosen record, once a person is sure.

    A program may name that by its Patient ID, `into`, and is not asked.
    """
    kept = p.form("into").strip()
    if not kept:
        if p.form("event") == "look" or not p.form("choose"):
            return merge_page(p, row_id)
        into, index = patient_index(p, row_number(p.form("choose"))), patient_index(p, row_id)
        kept = into.get("PatientID")
        if not is_sure(p):
            words = p.t("Merge {who} into {into}? All exams go there.", who=who_it_is(p, index),
                        into=who_is(p.t, into))  # fmt: skip
            return ask_if_sure(p, Message("Merge records"), words, p.t("Merge"))
    try:
        merging = merge_patients, row_id, kept, p.form("reason")
        stays = p.write_seen(("patient", row_id), "", *merging)
    except ChangedMeanwhile:
        raise
    except Refusal as refusal:
        return merge_page(p, row_id, p.again(refusal))
    told = p.t("Saved. Open exams were updated too.")
    return p.tell(f"/patient/{stays}", told, f"patient {stays}")


def namesakes(p: PageRequest, row_id: int, index: ElementIndex) -> list[Any]:
    """Return the patients who may be the same person."""
    initials_, born = initials(index.get("PatientName")), index.get("PatientBirthDate")
    today = p.ctx.local_now().date()
    found = [
        one for text in (initials_, born) if text for one in p.read(find_patients, text, today, 10)
    ]
    return list({one.id: one for one in found if one.id != row_id}.values())


def erase_page(p: PageRequest, row_id: int, problems: Sequence[Problem] = ()) -> str:
    """GET /patient/…/erase: the form to erase all data of a patient."""
    t, mark, index = p.t, p.mark(("patient", row_id)), patient_index(p, row_id)
    fields = [
        Field("patient_id", t("Type the Patient ID to confirm"), required=True),
        Field("reason", t("Reason"), "text", p.form("reason"), True),
    ]
    words = t(
        "This permanently erases the patient and all exams, machine reports, workitems and "
        "logged queries. The audit log keeps the ID and accession numbers; images stay in the "
        "archive, and existing backups keep their copy until they expire. This cannot be "
        "undone."
    )
    return show_form(
        p, "Erase a patient", [(who_it_is(p, index), fields)], problems, submit=t("Erase"),
        intro=words, hidden=[mark],
        after=[(f"/patient/{row_id}", t("Back"))],
    )  # fmt: skip


def post_erase(p: PageRequest, row_id: int) -> str:
    """POST /patient/…/erase: erase the patient if the Patient ID is typed again."""
    known = patient_index(p, row_id).get("PatientID")
    try:
        if p.form("patient_id").strip() != known:
            words = Message("This is not the ID of the patient")
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(0, words)])
        p.write_seen(("patient", row_id), "", erase_patient, row_id, p.form("reason"))
        p.read(forget_erased)
    except ChangedMeanwhile:
        raise
    except Refusal as refusal:
        return erase_page(p, row_id, p.again(refusal))
    return p.tell("/patients", p.t("Erased."))


def patients_page(p: PageRequest) -> str:
    """GET /patients: search for patients."""
    t, query = p.t, p.query("q")
    found = [
        Row((t.name(one.patient_name), one.patient_id, t.date(one.patient_birth_date)),
            f"/patient/{one.id}")
        for one in (
            p.read(find_patients, query, p.ctx.local_now().date()) if query.strip() else ()
        )
    ]  # fmt: skip
    part = p.listed("Patient | Patient ID | Birth date", found,
                    "No patient found." if query else "")  # fmt: skip
    return p.listing("Patients", [part], search=t("Name, ID or birth date"), query=query)


def patient_page(
    p: PageRequest, row_id: int, form: Mapping[str, str] | None = None,
    problems: Sequence[Problem] = (),
) -> str:  # fmt: skip
    """GET /patient/…: the patient to be corrected, all exams, and who changed what."""
    t, index = p.t, patient_index(p, row_id)
    shown = form_of(PATIENT_FIELDS, index)
    rows = in_order(t, PATIENT_FIELDS)
    fields, others = show_fields(p, rows, form or shown, problems, reception_choices(p))
    fields = [one._replace(label=t("Patient ID")) if one.name == "patient_id" else one
              for one in fields]  # fmt: skip
    exams = [
        (f"/step/{step.id}", f"{t.date(step.start_date)} {shown_time(step.start_time)}",
         exam_name(ElementIndex(bytes(step.data))), step.status)
        for step in p.read(steps_of, row_id)
    ]  # fmt: skip
    return p.show(
        PATIENT_PAGE, patient_title(p, index), row_id=row_id, fields=fields, exams=exams,
        problems=problem_words(p, fields, others), focus=first_problem(fields),
        hidden=[("seen", encoded_form(shown))], undoing=p.undo_of(f"patient {row_id}"),
        tags=tags_of(t, index), erase=t("Erase this patient's data") if p.may("admin") else "",
        viewed=t("Who has viewed this patient") if p.may("admin") else "",
        history=shown_history(p, p.read(changes_of, f"patient {row_id}")),
    )  # fmt: skip


def post_patient(p: PageRequest, row_id: int) -> str:
    """POST /patient/…: correct a patient, or undo the last change."""
    where = f"/patient/{row_id}"
    if p.form("event") == "undo":
        about = f"patient {row_id}"
        p.write_seen(("undo", about), "", undo, about)
        return p.tell(where, p.t("Undone."))

    def stored() -> dict[str, str]:
        return form_of(PATIENT_FIELDS, ElementIndex(get_patient(row_id)))

    def change(form: dict[str, str], shown: dict[str, str]) -> tuple[Any, ...]:
        given, problems = patient_from_form(form, shown)
        if problems:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
        if all(form[name] == shown[name] for name in ("family_name", "given_name", "chinese_name")):
            # the form does not show the whole name: middle names, the phonetic group
            name = ElementIndex(patient_index(p, row_id).only([tag_of("PatientName")]))
            given = ElementIndex(given).merged(name)
        return correct_patient, row_id, given

    form, shown, problems = post_changes(p, PATIENT_FIELDS, stored, change)
    if problems:
        return patient_page(p, row_id, form, problems)
    if form["patient_id"].strip() != shown["patient_id"]:  # the orders may have moved
        where = f"/patients?q={urllib.parse.quote(form['patient_id'].strip())}"
    return p.tell(where, p.t("Saved. Open exams were updated too."))


VIEWED_WORDS = {
    "/patient/*": Message("Patient"), "/step/*": Message("Exam"), "/step/*/edit": Message("Change exam"),
    "/step/*/label": Message("Print label"), "/step/*/slip": Message("Appointment slip"),
}  # fmt: skip


def views_page(p: PageRequest, row_id: int) -> str:
    """GET /patient/…/views: who has opened pages about a patient."""
    t, index = p.t, ElementIndex(p.read(get_patient, row_id))
    rows = [Row((p.at(one.at), one.who, one.address, t(VIEWED_WORDS.get(one.what, one.what))))
            for one in p.read(views_of, row_id)]  # fmt: skip
    intro = "" if p.web.config.web.access_log else t("Views are not noted: set [web] access_log.")
    part = p.listed("Time | Who | Address | Page", rows, "Nobody has viewed this patient.")
    title = t("Who has viewed {name}", name=t.name(index.get("PatientName")))
    return p.listing(title, [part], intro=intro, links=[(f"/patient/{row_id}", t("Back"))])
