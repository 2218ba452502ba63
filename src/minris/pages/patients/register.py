"""Registration."""

import collections
import re
from collections.abc import Iterable, Mapping

from minris.access.context import Context
from minris.dataset.elements import ElementIndex
from minris.dataset.names import resident_number
from minris.dataset.times import shown_date
from minris.orders.catalogue import apply_procedure
from minris.orders.items import item_problems, split_item, step_with_defaults
from minris.orders.lookup import get_step, step_known
from minris.orders.patients import (
    SAME_ID,
    SAME_PERSON,
    find_patients,
    get_patient,
    similar_patients,
)
from minris.orders.scheduling import schedule
from minris.pages.forms import FORM_PAGE, Field
from minris.pages.frame import Frame
from minris.pages.language import Translator
from minris.pages.reception import (
    REGISTER_FIELDS,
    REQUIRED_FIELDS,
    form_of_patient,
    form_of_step,
    item_from_form,
)
from minris.pages.template import template
from minris.standard.dictionary import tag_of, value_problem
from minris.standard.status import Message, Problem, Refusal, Status
from minris.web.request import enter

FOUND_PART = template("patients/found_part.html")


def register_once(ctx: Context, item: bytes, same_id: str, ask: bool) -> None:
    """Schedule an item unless its study is known: the same form twice, by a double click.

    ask  refuse, so that it is asked, where somebody of this name and birth date is known
    """
    index = ElementIndex(item)
    if step_known(index.get("StudyInstanceUID")):
        return
    problems = [
        Problem(tag_of("PatientName"), Message(SAME_PERSON, value=patient.patient_id))
        for patient in (similar_patients(index) if ask else ())
    ]
    if problems:
        raise Refusal(Status.DUPLICATE_SOP_INSTANCE, problems=problems)
    schedule(ctx, item, same_id)


class RegisterPages(Frame):
    """Registration."""

    def prefilled(self, ctx: Context) -> dict[str, str]:
        """The form as it is first shown: for nobody yet, a known patient, or a known order."""
        now, query = ctx.local_now(), self.request.query
        form = {"date": f"{now:%Y-%m-%d}", "time": f"{now:%H:%M}", "study": ctx.new_uid()}
        if query.get("emergency"):
            form |= {"family_name": "Unknown", "given_name": f"Emergency {now:%d.%m. %H:%M}",
                     "priority": "STAT"}  # fmt: skip
        for name in ("date", "time", "device"):  # from the calendar
            form |= {name: query.getunicode(name)} if query.getunicode(name) else {}
        row_id = query.get("order") or query.get("patient") or ""
        if not re.fullmatch("[0-9]{1,18}", row_id):
            return form
        if query.get("order"):
            index = ElementIndex(self.web.read(get_step, int(row_id))[0])
            form |= {
                "accession": index.get("AccessionNumber"),
                "physician": index.get("ReferringPhysicianName").replace("^", " "),
            }
        else:
            index = ElementIndex(self.web.read(get_patient, int(row_id)))
        return form | form_of_patient(index)

    def register_page(
        self, form: Mapping[str, str] | None = None, problems: Iterable[Problem] = ()
    ) -> str:
        """GET /register, and the form again with words beside each field that is wrong."""
        login, ctx = enter(self.web, self.request, "desk")
        t = self.translator()
        form = form or self.prefilled(ctx)
        by_tag = collections.defaultdict(list)
        for problem in problems:
            by_tag[problem.tag].append(t(problem.words))
        shown: set[int] = set()
        groups: dict[str, list[Field]] = {t("Patient"): [], t("Exam"): []}
        for name, group, keyword, kind, label in REGISTER_FIELDS:
            tag = tag_of(keyword)
            words = "; ".join(by_tag[tag]) if tag not in shown else ""
            shown.add(tag)
            required = name in REQUIRED_FIELDS
            choices = self.choices(name, t)
            field = Field(name, t(label), kind, form.get(name, ""), required, words, choices)
            groups[t(group.capitalize())].append(field)
        others = [t(p.words) for p in problems if p.tag not in shown]
        if any(p.words.key == SAME_ID for p in problems) or form.get("same_id"):
            groups[t("Patient")].insert(4, self._same_id_field(t, form))
        if similar := [p for p in problems if p.words.key == SAME_PERSON]:
            groups[t("Patient")].insert(4, self._same_person_field(t, similar))
        listed = [
            f"{f.label}: {f.problem}" for fields in groups.values() for f in fields if f.problem
        ]
        return self.page(
            FORM_PAGE,
            "Register",
            login,
            action="/register",
            after=[("/register?emergency=1", t("Unknown emergency patient"))],
            submit=t("Register"),
            csrf=login.form_token,
            hidden=[("study", form.get("study", ""))],
            groups=list(groups.items()),
            problems=listed + others,
            finding="/find",
            slots="/slots",
            focus="chinese_name" if t.language.startswith("zh") else "family_name",
        )

    @staticmethod
    def _same_id_field(t: Translator, form: Mapping[str, str]) -> Field:
        """Shown when the Patient ID belongs to another name: who is right must be said."""
        choices = (
            ("", t("Please choose")),
            ("update", t("The same patient: correct the name")),
            ("new", t("Another patient: make a new ID")),
        )
        label = t("This Patient ID is known with another name")
        return Field("same_id", label, "select", form.get("same_id", ""), True, "", choices)

    @staticmethod
    def _same_person_field(t: Translator, similar: list[Problem]) -> Field:
        """Shown when someone of this name and birth date has another Patient ID."""
        known = [str(problem.words.values["value"]) for problem in similar]
        choices = (
            ("", t("Please choose")),
            *((i, t("The same patient: use the ID {value}", value=i)) for i in known),
            ("another", t("Another patient of the same name")),
        )
        label = t("This name and birth date are known")
        return Field("same_person", label, "select", "", True, "", choices)

    def register(self) -> str:
        """POST /register: the step's page, or the form again with nothing saved."""
        _, ctx = enter(self.web, self.request, "desk")
        form = {row[0]: self.form(row[0]) for row in REGISTER_FIELDS}
        form |= {name: self.form(name) for name in ("study", "same_id", "same_person")}
        if value_problem("UI", form["study"]) or not form["study"]:
            form["study"] = ctx.new_uid()
        if not self.same_form(form):  # the form of another patient, by the back button
            form["study"] = ctx.new_uid()
        if form["same_id"] == "new":
            form |= {"patient_id": "", "same_id": ""}
        if form["same_person"] not in ("", "another"):
            form["patient_id"] = form["same_person"]
        item, problems = item_from_form(form)
        item = self.web.read(apply_procedure, item)
        same_id = "update" if form["same_id"] == "update" else "refuse"
        try:
            if problems:
                self._add_problems(ctx, item, problems)
            ask = not form["same_person"]
            self.web.write(register_once, ctx, item, same_id, ask)
        except Refusal as refusal:
            self.bottle.response.status = 422
            return self.register_page(form, refusal.problems)
        return self.redirect(f"/step/{self.web.read(step_known, form['study'])}?registered=1")

    def same_form(self, form: Mapping[str, str]) -> bool:
        """Whether the study of a form is new, or that of this very form, sent a second time."""
        known = self.web.read(step_known, form["study"])
        if not known:
            return True
        index = ElementIndex(self.web.read(get_step, known)[0])
        stored = form_of_patient(index) | form_of_step(index)
        typed = ElementIndex(item_from_form(form)[0]).get("PatientName")
        told = ("device", "procedure", "date", "time")
        return typed == index.get("PatientName") and all(
            form[name].strip() in ("", stored[name]) for name in told
        )

    @staticmethod
    def _add_problems(ctx: Context, item: bytes, problems: list[Problem]) -> None:
        """Refuse with what the form found and what the item itself shows, each once."""
        index = ElementIndex(item)
        _, procedure, steps = split_item(index)
        steps = [step_with_defaults(ctx, step, ElementIndex(procedure)) for step in steps]
        found = {problem.tag: problem for problem in item_problems(index, steps)}
        found |= {problem.tag: problem for problem in problems}
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=found.values())

    def find(self) -> str:
        """GET /find: patients while the form is typed, a part of a page for its script."""
        enter(self.web, self.request, "desk")
        t, text = self.translator(), (self.request.query.getunicode("q") or "").strip()
        enough = len(text) >= 2 or (text and not text.isascii())
        found = self.web.read(find_patients, text, 6) if enough else []
        people = [
            (p.id, t.name(p.patient_name), p.patient_id, t.date(p.patient_birth_date))
            for p in found
        ]
        born, sex = resident_number(text) or ("", "")
        mistyped = re.fullmatch("[0-9]{17}[0-9Xx]", text) and not born
        return self.bottle.template(
            FOUND_PART, t=t, people=people, born=shown_date(born), sex=sex, mistyped=mistyped
        )
