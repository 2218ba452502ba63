"""The search box of every page: patients with their exam, and pages."""

from typing import Any

from minris.dataset.elements import ElementIndex
from minris.dataset.names import plain
from minris.orders.items import step_item
from minris.orders.lookup import step_of_day
from minris.orders.patients import find_patients
from minris.pages.frame import PageRequest
from minris.pages.language import shown_time
from minris.pages.template import template

SEARCH_PAGE = template("patients/search.html")
SEARCH_PART = template("patients/search_part.html")


def search_page(p: PageRequest) -> str:
    """GET /search: patients and pages that match what is typed; ?part=1: the list alone."""
    text = p.query("q").strip()
    enough = len(text) >= 2 or (text and not text.isascii())
    few = 8 if p.query("part") else 50
    people = p.read(find_patients, text, p.ctx.local_now().date(), few) if enough else []
    found = p.part(SEARCH_PART, query=text, people=[person(p, one) for one in people],
                   pages=pages_named(p, text))  # fmt: skip
    if p.query("part"):
        return found
    return p.show(SEARCH_PAGE, "Search", query=text, found=found)


def person(p: PageRequest, patient: Any) -> dict[str, Any]:
    """Return what the list shows of a patient: who it is, and the exam of today, next or last."""
    t, index = p.t, ElementIndex(bytes(patient.data))
    about = [t.of_person(index, p.ctx.local_now().date()), patient.patient_id,
             t.date(patient.patient_birth_date)]  # fmt: skip
    shown = {"path": f"/patient/{patient.id}", "name": t.name(patient.patient_name),
             "about": t.dotted(about), "exam": None}  # fmt: skip
    if step := p.read(step_of_day, patient.id, p.ctx.today()):
        exam = step_item(step).get("ScheduledProcedureStepDescription")
        day = "" if step.start_date == p.ctx.today() else f"{t.date(step.start_date)} "
        shown["exam"] = {"path": f"/step/{step.id}", "state": step.status,
                         "words": f"{day}{shown_time(step.start_time)} {exam}"}  # fmt: skip
    return shown


def pages_named(p: PageRequest, text: str) -> list[tuple[str, str]]:
    """Return path and name of the pages of the menu that a text names, in either language."""
    if len(text) < 2 and text.isascii():
        return []
    wanted = plain(text)
    return [
        (page.path, p.t(page.words))
        for page in p.site.menu
        if p.may(page.role) and (wanted in plain(page.words) or wanted in plain(p.t(page.words)))
    ]
