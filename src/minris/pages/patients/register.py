"""Registration."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from minris.access.context import Context, modalities_of
from minris.dataset.checks import implausible
from minris.dataset.elements import ElementIndex, text_elements
from minris.dataset.names import resident_number
from minris.dataset.resident import looks_like_resident
from minris.dataset.times import shown_date, typed_dates
from minris.orders.catalogue import apply_procedure
from minris.orders.items import item_problems, split_item, step_with_defaults
from minris.orders.lookup import patient_id_known, patient_of_step, step_known
from minris.orders.patients import (
    NOT_TOLD,
    SAME_ID,
    SAME_NAME,
    SAME_PERSON,
    find_patients,
    get_patient,
)
from minris.orders.scheduling import register_once
from minris.pages.day.slots import free_times_part
from minris.pages.forms import (
    Field,
    changed_meanwhile,
    encoded_form,
    first_problem,
    problem_words,
    sent_fields,
    show_fields,
    today_of,
)
from minris.pages.frame import PageRequest, row_number
from minris.pages.language import Translator
from minris.pages.patients.search import person
from minris.pages.reception import (
    EMERGENCY,
    EXAM_FIELDS,
    MORE_FIELDS,
    PATIENT_FIELDS,
    REGISTER_FIELDS,
    exam_of,
    form_of,
    in_order,
    item_from_form,
    reception_choices,
)
from minris.pages.template import template
from minris.seen import ChangedMeanwhile, as_seen, state_mark
from minris.standard.dictionary import value_problem
from minris.standard.status import Problem, Refusal, Status

REGISTER_PAGE = template("patients/register.html")
FOUND_PART = template("patients/found_part.html")
# Hidden fields: the study to be made; the row of a known patient, and what the form showed of it.
CARRIED = ("study", "patient", "seen", "emergency")


def prefilled(p: PageRequest) -> dict[str, str]:
    """Return the initial form: empty, for a known patient, or for another exam of an order."""
    now = p.ctx.local_now()
    form = {"date": f"{now:%Y-%m-%d}", "time": f"{now:%H:%M}", "study": p.ctx.new_uid()}
    if p.query("emergency"):
        form |= {"family_name": EMERGENCY[0], "given_name": f"{EMERGENCY[1]} {now:%m%d-%H%M}",
                 "priority": "STAT", "emergency": "yes"}  # fmt: skip
        if p.t.kind == "zh":
            form["chinese_name"] = f"无名氏急诊{now:%m%d-%H%M}"
    for name in ("date", "time", "device"):  # from the calendar
        form |= {name: p.query(name)} if p.query(name) else {}
    order_row, patient_row = (row_number(p.query(name)) for name in ("order", "patient"))
    if not (order_row or patient_row):
        return form
    if order_row:
        order = form_of(EXAM_FIELDS, exam_of(p, order_row))
        form |= {name: order[name] for name in ("accession", "physician", "priority")}
    row = p.read(patient_of_step, order_row) if order_row else patient_row
    return form | of_known(p, row)


def of_known(p: PageRequest, row: int) -> dict[str, str]:
    """Return what a form has of a known patient. Refuses 0112."""
    known = form_of(PATIENT_FIELDS, ElementIndex(p.read(get_patient, row)))
    return known | {"patient": str(row), "seen": encoded_form(known)}


def register_page(
    p: PageRequest, form: Mapping[str, str] | None = None, problems: Sequence[Problem] = ()
) -> str:
    """GET /register: the registration form, or the form again with its problems."""
    t, form = p.t, form or prefilled(p)
    empty = dict.fromkeys((row.name for row in REGISTER_FIELDS), "")
    rows = in_order(t, REGISTER_FIELDS)
    untold = any(problem.words.key == NOT_TOLD for problem in problems)
    others_too = any(problem.words.key != NOT_TOLD for problem in problems)
    fields, others = show_fields(p, rows, form, problems, reception_choices(p))
    of_patient, of_exam = (
        [field for field, row in zip(fields, rows, strict=True) if (row.group == "exam") is exam]
        for exam in (False, True)
    )
    of_patient = [
        one._replace(help=birth_words(p, form.get(one.name, "")) or " ")
        if one.name == "birth_date" else one for one in of_patient
    ]  # fmt: skip
    asked = []
    if any(problem.words.key == SAME_ID for problem in problems) or form.get("same_id"):
        asked.append(same_id_field(t, form))
    if similar := [one for one in problems if one.words.key in (SAME_PERSON, SAME_NAME)]:
        asked.append(same_person_field(t, similar))
    folded = MORE_FIELDS | (set() if t.kind == "zh" else {"chinese_name"})
    decided = form.get("patient") or form.get("emergency")
    name = "chinese_name" if t.kind == "zh" else "family_name"
    groups = [(t("Patient"), of_patient, asked), (t("Exam details"), of_exam, [])]
    return p.show(
        REGISTER_PAGE, "Register", groups=groups, folded=folded,
        problems=problem_words(p, fields + asked, others) if others_too else [],
        hidden=[(name, form.get(name, "")) for name in CARRIED],
        known=form.get("patient"), untold=untold, query=form.get("q", ""),
        found=found_part(p, form["q"]) if form.get("q") else "",
        slots=free_times_part(p, empty | form),
        focus=first_problem(fields + asked) or ("procedure" if decided else name),
        machines=modalities_of(p.devices), may_add=p.may("technologist"),
    )  # fmt: skip


def birth_words(p: PageRequest, typed: str) -> str:
    """Return a typed birth date as it is understood, with the age; "" if it is none."""
    t, words = p.t, []
    for day in typed_dates(typed, today_of(p)):
        index = text_elements(PatientBirthDate=day)
        words.append(f"{t.date(day)} · {t.of_person(index, today_of(p))}")
    return " / ".join(words)


def same_id_field(t: Translator, form: Mapping[str, str]) -> Field:
    """Return the field that asks what to do when the Patient ID is known under another name."""
    choices = (
        ("", t("Please choose")),
        ("update", t("The same patient: correct the name")),
        ("new", t("Another patient: assign a new ID")),
    )
    label = t("This Patient ID is known with another name")
    return Field("same_id", label, "select", form.get("same_id", ""), True, "", choices)


def same_person_field(t: Translator, similar: list[Problem]) -> Field:
    """Return the field that asks whether this is a known patient of that name and birth date."""
    known = {
        str(one.words.values["value"]): f" ({one.words.values['birth_date']})"
        if "birth_date" in one.words.values
        else ""
        for one in similar
    }
    choices = (
        ("", t("Please choose")),
        *(
            (i, t("The same patient: use the ID {value}", value=i) + born)
            for i, born in known.items()
        ),
        ("another", t("Another patient of the same name")),
    )
    dated = all(one.words.key == SAME_PERSON for one in similar)
    label = t("This name and birth date are known") if dated else t("This name is known")
    return Field("same_person", label, "select", "", True, "", choices)


def post_register(p: PageRequest) -> str:
    """POST /register: register and go to the exam, or show the form again with nothing saved."""
    form = sent_fields(p, REGISTER_FIELDS)
    form |= {name: p.form(name) for name in (*CARRIED, "same_id", "same_person", "q")}
    if p.form("choose"):
        return register_page(p, chosen_patient(p, form))
    if p.form("event") == "look" or (form["q"] and not name_typed(form)):
        return register_page(p, form)  # without script
    if value_problem("UI", form["study"]) or not form["study"]:
        form["study"] = p.ctx.new_uid()
    if not same_form(p, form):  # the back button showed the form of another patient
        form["study"] = p.ctx.new_uid()
    if form["same_id"] == "new":
        form |= {"patient_id": "", "same_id": ""}
    if form["same_person"] not in ("", "another"):
        form["patient_id"] = form["same_person"]
    typed = form["patient_id"].strip()
    if looks_like_resident(typed) and not form["identity"] and not p.read(patient_id_known, typed):
        form |= {"identity": typed, "patient_id": ""}  # the ID is made as usual
    known, mark, meanwhile = known_patient(p, form)
    if meanwhile:
        return register_page(p, form, meanwhile)
    item, problems = item_from_form(form)
    item = p.read(apply_procedure, item)
    same_id = "update" if form["same_id"] == "update" else "refuse"
    try:
        if problems:
            refuse_item(p.ctx, item, problems)
        p.web.box.clear_numbers()
        seen = [(("record", known), mark, "")]
        anyway = bool(form["emergency"]) or p.form("event") == "anyway"
        ask = not (form["same_person"] or form["emergency"])  # two may come in one minute
        p.write(as_seen, seen, register_once, item, same_id, ask, anyway)
    except ChangedMeanwhile:  # in this moment: look again
        return post_register(p)
    except Refusal as refusal:
        return register_page(p, form, p.again(refusal))
    return p.redirect(f"/step/{p.read(step_known, form['study'])}?registered=1")


def known_patient(p: PageRequest, form: dict[str, str]) -> tuple[int, str, list[Problem]]:
    """Return row and mark of the known patient whom a form is for, and what others have changed.

    What the form shows of a patient is written when it is registered: what a colleague has
    corrected meanwhile stays, and is shown where this user has typed something else.
    """
    if not re.fullmatch("[0-9]{1,18}", form["patient"]):
        return 0, "", []
    row = int(form["patient"])
    mark = p.read(state_mark, ("record", row))
    try:
        stored = form_of(PATIENT_FIELDS, ElementIndex(p.read(get_patient, row)))
    except Refusal:  # erased, or merged into another one
        return 0, "", []
    if stored["patient_id"] != form["patient_id"].strip():
        return 0, "", []
    problems = changed_meanwhile(p, PATIENT_FIELDS, form, stored)
    form["seen"] = encoded_form(stored)
    return row, mark, problems


def same_form(p: PageRequest, form: Mapping[str, str]) -> bool:
    """Tell whether the form's study is new, or is of this same form, sent twice."""
    known = p.read(step_known, form["study"])
    if not known:
        return True
    index = exam_of(p, known)
    stored = form_of(EXAM_FIELDS, index)
    typed = ElementIndex(item_from_form(form)[0]).get("PatientName")
    told = ("device", "procedure", "date", "time")
    return typed == index.get("PatientName") and all(
        form[name].strip() in ("", stored[name]) for name in told
    )


def refuse_item(ctx: Context, item: bytes, problems: list[Problem]) -> None:
    """Refuse (0106) with the problems of the form and of the item, one per attribute."""
    index = ElementIndex(item)
    _, procedure, steps = split_item(index)
    steps = [step_with_defaults(ctx, step, ElementIndex(procedure)) for step in steps]
    of_item = (*item_problems(index, steps), *implausible(index, ctx.today()))
    found = {problem.tag: problem for problem in (*of_item, *problems)}
    raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=found.values())


def name_typed(form: Mapping[str, str]) -> bool:
    """Tell whether a form has a name."""
    return any(form[name].strip() for name in ("family_name", "given_name", "chinese_name"))


def chosen_patient(p: PageRequest, form: dict[str, str]) -> dict[str, str]:
    """Return a form for a known patient, or for another one; what it says of the exam stays."""
    row = row_number(p.form("choose"))
    empty = dict.fromkeys((field.name for field in PATIENT_FIELDS), "")
    empty |= {"patient": "", "seen": "", "same_id": "", "same_person": "", "q": "", "emergency": ""}
    return form | empty | (of_known(p, row) if row else {})


def find_part(p: PageRequest) -> str:
    """GET /find: known patients that match what is typed; fetched by the script."""
    return found_part(p, p.query("q"), p.query("field"))


def found_part(
    p: PageRequest, text: str, field: str = "", people: Sequence[Any] | None = None
) -> str:
    """Return the known patients that match a text, and what the text says of a birth date.

    people  those to be shown instead
    """
    text = text.strip()
    enough = len(text) >= 2 or (text and not text.isascii())
    found = people or (p.read(find_patients, text, today_of(p), 6) if enough else ())
    born, sex = resident_number(text) or ("", "")
    mistyped = re.fullmatch("[0-9]{17}[0-9Xx]", text) and not born
    return p.part(
        FOUND_PART, people=[(one.id, person(p, one)) for one in found], born=shown_date(born),
        sex=sex, mistyped=mistyped, echo=birth_words(p, text) if field == "birth_date" else None,
    )  # fmt: skip
