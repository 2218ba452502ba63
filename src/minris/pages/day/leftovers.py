"""Unfinished exams of earlier days, and performed steps without an order."""

import re
from collections.abc import Sequence
from typing import Any

from minris.dataset.elements import ElementIndex
from minris.mpps.linking import (
    accept_patient,
    doubtful_links,
    exams_to_match,
    link_by_hand,
    performed_row,
    settle_unscheduled,
    unlink_step,
    unscheduled_steps,
)
from minris.orders.identities import differs
from minris.orders.items import exam_name, step_item
from minris.orders.lookup import leftovers, step_row
from minris.orders.scheduling import change_rows
from minris.pages.asking import PERSON_EVENTS, changed_words, exam_words
from minris.pages.frame import Action, PageRequest, Part, Row, no_such_action, row_number
from minris.pages.language import Translator, device_names, shown_time, who_is
from minris.pages.reception import exam_of
from minris.pages.template import template
from minris.seen import ChangedMeanwhile, as_seen, mark_of
from minris.standard.dictionary import tag_of
from minris.standard.status import Message

IMAGES_CARRY = Message(
    "The images in the archive still carry the patient of the machine: if that is wrong, correct"
    " them in the archive or at the machine."
)
LEFTOVERS_PAGE = template("day/leftovers.html")


def leftovers_page(p: PageRequest, problems: Sequence[str] = ()) -> str:
    """GET /leftovers: exams of earlier days that are still open."""
    steps = [
        (step.id, mark_of(step.status, step.study_instance_uid), p.t.name(ElementIndex(bytes(step.data)).get("PatientName")), step.patient_id,
         step_item(step).get("ScheduledProcedureStepDescription"), p.t.date(step.start_date),
         step.status)
        for step in p.read(leftovers, p.ctx.today())
    ]  # fmt: skip
    return p.show(LEFTOVERS_PAGE, "Unfinished exams", steps=steps, problems=problems)


def post_leftovers(p: PageRequest) -> str:
    """POST /leftovers: apply an event to the chosen exams, or move them to today; all or none."""
    event = p.form("event")
    if event not in ("no show", "finish", "cancel", "today"):
        raise no_such_action()
    chosen = [row_number(row) for row in p.request.forms.getall("row")]
    seen = dict(pair.split(" ", 1) for pair in p.request.forms.getall("step_state") if " " in pair)
    told = "reschedule" if event == "today" else event
    decided = [(("step", row), seen.get(str(row), ""), told) for row in chosen]
    try:
        count = p.write(as_seen, decided, change_rows, event, chosen)
    except ChangedMeanwhile as changed:
        p.response.status = 409
        return leftovers_page(p, [changed_words(p, changed)])
    words = p.t("Move to today") if event == "today" else p.t(PERSON_EVENTS[event])
    exams = p.t("{count} exams", count=count)
    return p.tell("/leftovers", f"{words}: {exams}")


def unscheduled_page(p: PageRequest) -> str:
    """GET /unscheduled: performed steps without an order, to be matched by hand."""
    t, found = p.t, []
    for row in p.read(unscheduled_steps):
        mark, fields = p.mark(("performed", row.id)), ("performed", str(row.id))
        match = Action("/unscheduled/match", t("Choose the exam"), (fields,), get=True)
        leave = Action(
            "/unscheduled/settle", t("Accept without order"), (fields, mark), "reason", t("Reason")
        )
        found.append(Row((*reported_cells(t, row), t(row.status)), "", (match, leave)))
    intro = t("These exams were reported by devices without a matching order.")
    part = p.listed("Patient | Patient ID | Birth date | Device | Start | Exam | State", found,
                    "No unmatched exams. What a device reports without an order appears here.")  # fmt: skip
    return p.listing("Unmatched exams", [*other_patients(p), part], intro=intro)


def begin_of(t: Translator, performed: ElementIndex) -> str:
    """Return when a performed step began."""
    day, time = (performed.get(f"PerformedProcedureStepStart{part}") for part in ("Date", "Time"))
    return f"{t.date(day)} {shown_time(time)}"


def other_patients(p: PageRequest) -> list[Part]:
    """Return the exams that machines reported for another patient than ordered, if there are any."""
    t, rows = p.t, []
    for link in p.read(doubtful_links):
        fields = (("performed", str(link.performed_id)), ("step", str(link.step_id)),
                  p.mark(("performed", link.performed_id)))  # fmt: skip
        cells = (*(who_is(t, ElementIndex(one)) for one in (link.ours, link.told)), link.station,
                 begin_of(t, ElementIndex(link.data)))  # fmt: skip
        actions = (Action("/unscheduled/accept", t("It is the patient of the order"), fields),
                   Action("/unmatch", t("It was another exam"), fields))  # fmt: skip
        rows.append(Row(cells, f"/step/{link.step_id}", actions, "warning"))
    part = p.listed("Patient of the order | Patient at the machine | Device | Start", rows,
                    heading=t("Reported for another patient"))  # fmt: skip
    return [part] if rows else []


def post_accept(p: PageRequest) -> str:
    """POST /unscheduled/accept: settle that a performed step is of the order's patient."""
    step, performed = p.number("step"), p.number("performed")
    p.write_seen(("performed", performed), "", accept_patient, performed, step)
    return p.tell(f"/step/{step}", p.t("Saved.") + " " + p.t(IMAGES_CARRY))


def reported_cells(t: Translator, performed: Any) -> tuple[str, ...]:
    """Return what a machine reported: patient, ID, birth date, device, begin and exam."""
    index = ElementIndex(bytes(performed.data))
    return (t.name(index.get("PatientName")) or "?", index.get("PatientID"),
            t.date(index.get("PatientBirthDate")), performed.performed_station_ae_title,
            begin_of(t, index), index.get("PerformedProcedureStepDescription"))  # fmt: skip


def match_page(p: PageRequest) -> str:
    """GET /unscheduled/match: the exams that a performed step may belong to; none is preselected."""
    t, number = p.t, p.query("performed")
    if not re.fullmatch("[0-9]{1,18}", number):
        raise no_such_action()
    mark, names, found = p.mark(("performed", int(number))), device_names(p.web), []
    performed = p.read(performed_row, int(number))
    wrong = row_number(p.query("wrong"))
    for step, why in p.read(exams_to_match, p.ctx, int(number), wrong):
        index = ElementIndex(bytes(step.data))
        item = step_item(step)
        stations = item.values(tag_of("ScheduledStationAETitle"))
        cells = (t.listed(map(t, why)), t.name(index.get("PatientName")), step.patient_id,
                 t.date(index.get("PatientBirthDate")),
                 exam_name(index),
                 t.listed(names.get(one, one) for one in stations),
                 f"{t.date(step.start_date)} {shown_time(step.start_time)}",
                 step.accession_number, t(step.status))  # fmt: skip
        seen = "step_state", mark_of(step.status, step.study_instance_uid)
        fields = ("performed", number), mark, ("step", str(step.id)), seen
        found.append(Row(cells, "", (Action("/unscheduled/match", t("This exam"), fields),)))
    reported = p.listed("Patient | Patient ID | Birth date | Device | Start | Exam",
                        [Row(reported_cells(t, performed))], "", t("The report of the machine"))  # fmt: skip
    exams = p.listed("Why likely | Patient | Patient ID | Birth date | Exam | Device | Time"
                     " | Accession number | State", found, "No likely exam was found.",
                     t("Which exam was it?"))  # fmt: skip
    return p.listing("Choose the exam", [reported, exams], intro=t(IMAGES_STAY),
                     links=[("/unscheduled", t("Back"))])  # fmt: skip


IMAGES_STAY = Message(
    "Choosing an exam corrects the list here, not the images: they keep the patient that the"
    " machine had chosen, in the archive too."
)
CORRECT_THEM = Message(
    "The images still carry {reported}. Correct them to {patient}, {accession}: at {device}, if"
    " they have not been sent, else in the archive."
)


def post_match(p: PageRequest) -> str:
    """POST /unscheduled/match: link a performed step to an exam; say what the images still carry."""
    number, step = p.number("performed"), p.number("step")
    decided = [(("performed", number), p.seen("performed"), ""),
               (("step", step), p.seen("step"), "match")]  # fmt: skip
    p.write(as_seen, decided, link_by_hand, number, step)
    t, performed = p.t, p.read(performed_row, number)
    told, exam = ElementIndex(bytes(performed.data)), exam_of(p, step)
    words = f"{exam_words(t, exam)}: {t('Linked.')}"
    if p.read(differs, told, p.read(step_row, step)):
        reported, patient = (
            f"{t.name(one.get('PatientName')) or '?'} {one.get('PatientID')}"
            for one in (told, exam)
        )
        title = performed.performed_station_ae_title
        wrong = {"reported": reported, "patient": patient, "device": title,
                 "accession": exam.get("AccessionNumber")}  # fmt: skip
        words += f" {t(Message(CORRECT_THEM, **wrong))}"
    return p.tell(f"/step/{step}", words)


def post_settle(p: PageRequest) -> str:
    """POST /unscheduled/settle: accept a performed step without an order; needs a reason."""
    performed = p.number("performed")
    p.write_seen(("performed", performed), "", settle_unscheduled, performed, p.form("reason"))
    return p.tell("/unscheduled", p.t("Saved."))


def post_unmatch(p: PageRequest) -> str:
    """POST /unmatch: remove the link between a performed step and an exam."""
    step, performed = p.number("step"), p.number("performed")
    p.write_seen(("performed", performed), "", unlink_step, performed, step)
    exam = exam_words(p.t, exam_of(p, step))
    told = p.t("The report was removed from {exam}. Which exam was it?", exam=exam)
    path = f"/unscheduled/match?performed={performed}&wrong={step}"
    return p.tell(path, told + " " + p.t(IMAGES_CARRY))
