"""Unfinished exams of earlier days, and performed steps without an order."""

import functools
from collections.abc import Sequence

from minris.dataset.elements import ElementIndex
from minris.mpps.linking import (
    accept_patient,
    doubtful_links,
    link_by_hand,
    settle_unscheduled,
    unlink_step,
    unscheduled_steps,
)
from minris.orders.items import step_item
from minris.orders.lookup import leftovers, steps_of_day
from minris.orders.scheduling import change_rows
from minris.pages.asking import PERSON_EVENTS, changed_words
from minris.pages.frame import Action, PageRequest, Part, Row, no_such_action
from minris.pages.language import Translator, shown_time, who_is
from minris.pages.template import template
from minris.seen import ChangedMeanwhile, as_seen, mark_of
from minris.standard.mpps import STEP_ATTRIBUTES
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
    return p.show(LEFTOVERS_PAGE, "Leftovers", steps=steps, problems=problems)


def post_leftovers(p: PageRequest) -> str:
    """POST /leftovers: apply an event to the chosen exams, or move them to today; all or none."""
    event = p.form("event")
    if event not in ("no show", "finish", "cancel", "today"):
        raise no_such_action()
    chosen = [int(row) for row in p.request.forms.getall("row") if row.isdigit()]
    seen = dict(pair.split(" ", 1) for pair in p.request.forms.getall("step_state") if " " in pair)
    told = "reschedule" if event == "today" else event
    decided = [(("step", row), seen.get(str(row), ""), told) for row in chosen]
    try:
        count = p.write(as_seen, decided, change_rows, event, chosen)
    except ChangedMeanwhile as changed:
        p.response.status = 409
        return leftovers_page(p, [changed_words(p, changed)])
    words = p.t("Move to today") if event == "today" else p.t(PERSON_EVENTS[event])
    exams = p.t("1 exam") if count == 1 else p.t("{count} exams", count=count)
    return p.tell("/leftovers", f"{words}: {exams}")


def unscheduled_page(p: PageRequest) -> str:
    """GET /unscheduled: performed steps without an order, to be matched by hand."""
    t = p.t
    choices_of = functools.cache(functools.partial(exams_to_choose, p))
    found = []
    for row in p.read(unscheduled_steps):
        index, fields = ElementIndex(bytes(row.data)), (("performed", str(row.id)),)
        day = index.get("PerformedProcedureStepStartDate")
        cells = (t.name(index.get("PatientName")) or "?", index.get("PatientID"),
                 row.performed_station_ae_title, begin_of(t, index),
                 index.get("PerformedProcedureStepDescription"), t(row.status))  # fmt: skip
        days = sorted({day, p.ctx.today()} - {""})
        near = similar_first(t, [choice for one in days for choice in choices_of(one)], index)
        match = Action("/unscheduled/match", t("Match"), fields, "step", t("Exam"), near)
        leave = Action("/unscheduled/settle", t("No order"), fields, "reason", t("Reason"))
        found.append(Row(cells, "", (match, leave) if near else (leave,)))
    intro = t("Devices reported these exams, and no order of ours was found for them.")
    part = p.listed("Patient | Patient ID | Device | Begin | Exam | State", found,
                    "There are none.")  # fmt: skip
    return p.listing("Unscheduled", [*other_patients(p), part], intro=intro)


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
    part = p.listed("Patient of the order | Patient at the machine | Device | Begin", rows,
                    heading=t("Reported for another patient"))  # fmt: skip
    return [part] if rows else []


def post_accept(p: PageRequest) -> str:
    """POST /unscheduled/accept: settle that a performed step is of the order's patient."""
    step, performed = p.number("step"), p.number("performed")
    p.write_seen(("performed", performed), "", accept_patient, performed, step)
    return p.tell(f"/step/{step}", p.t("Saved.") + " " + p.t(IMAGES_CARRY))


def exams_to_choose(p: PageRequest, day: str) -> list[tuple[str, str]]:
    """Return the exams of a day as choices: row ID and words."""
    return [
        (str(row[0]), f"{p.t.date(day)} {shown_time(row[2])}"
         f" {p.t.name(index.get('PatientName'))} {index.get('AccessionNumber')}")
        for row in p.read(steps_of_day, day)
        for index in [ElementIndex(bytes(row[3]))]
    ]  # fmt: skip


def post_match(p: PageRequest) -> str:
    """POST /unscheduled/match: link a performed step to an exam."""
    p.write(link_by_hand, p.number("performed"), p.number("step"))
    return p.tell("/unscheduled", p.t("Matched."))


def post_settle(p: PageRequest) -> str:
    """POST /unscheduled/settle: accept a performed step without an order; needs a reason."""
    performed = p.number("performed")
    p.write_seen(("performed", performed), "", settle_unscheduled, performed, p.form("reason"))
    return p.tell("/unscheduled", p.t("Saved."))


def post_unmatch(p: PageRequest) -> str:
    """POST /unmatch: remove the link between a performed step and an exam."""
    step, performed = p.number("step"), p.number("performed")
    p.write_seen(("performed", performed), "", unlink_step, performed, step)
    told = p.t("The report of the machine waits on the page Unscheduled for its order.")
    return p.tell(f"/step/{step}", told + " " + p.t(IMAGES_CARRY))


def similar_first(
    t: Translator, choices: list[tuple[str, str]], index: ElementIndex
) -> tuple[tuple[str, str], ...]:
    """Sort choices: exams with the same patient name or accession number first."""
    wanted = {t.name(index.get("PatientName")), *(
        item.get("AccessionNumber") for item in index.items(STEP_ATTRIBUTES))} - {""}  # fmt: skip
    return tuple(sorted(choices, key=lambda choice: not any(w in choice[1] for w in wanted)))
