"""Patients: found, corrected, merged, erased."""

import urllib.parse
from collections.abc import Iterable, Mapping

from minris.access.users import permit
from minris.dataset.elements import ElementIndex
from minris.dataset.names import initials
from minris.housekeeping.erasing import erase_patient, forget_erased
from minris.orders.items import step_item
from minris.orders.lookup import steps_of
from minris.orders.patients import correct_patient, find_patients, get_patient, merge_patients
from minris.orders.undo import undo
from minris.pages.forms import FORM_PAGE, Field, encoded_form, unless_changed
from minris.pages.frame import Frame, Part, Row
from minris.pages.language import Translator, shown_time
from minris.pages.reception import REGISTER_FIELDS, form_of_patient, patient_from_form
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Problem, Refusal, Status
from minris.web.request import enter, find_login


class PatientPages(Frame):
    """Patients: found, corrected, merged, erased."""

    def merge(self, row_id: int) -> str:
        """POST /patient/…/merge: this patient is another one."""
        _, ctx = enter(self.web, self.request, "desk")
        try:
            into = self.web.write(
                merge_patients, ctx, row_id, self.form("into"), self.form("reason")
            )
        except Refusal as refusal:
            self.web.read(get_patient, row_id)  # refuses where there is none
            self.bottle.response.status = 422
            return self.merge_page(row_id, [refusal.detail])
        return self.tell(f"/patient/{into}", self.translator()("Saved. Open exams follow."))

    def merge_page(self, row_id: int, problems: Iterable[Message] = ()) -> str:
        """GET /patient/…/merge: which other one this patient is."""
        login, _ = enter(self.web, self.request, "desk")
        t = self.translator()
        index = ElementIndex(self.web.read(get_patient, row_id))
        who = f"{t.name(index.get('PatientName'))} {index.get('PatientID')}"
        fields = [
            Field(
                "into",
                t("Patient ID of the one who stays"),
                "text",
                self.form("into"),
                True,
                "",
                self._namesakes(t, row_id, index),
            ),
            Field("reason", t("Reason"), "text", self.form("reason"), True, "", ()),
        ]
        return self.page(
            FORM_PAGE, "The same person", login, action=f"/patient/{row_id}/merge",
            submit=t("Merge"), csrf=login.form_token, hidden=[], problems=list(map(t, problems)),
            groups=[(t("{who} is the same person as", who=who), fields)],
            after=[(f"/patient/{row_id}", t("Back"))],
        )  # fmt: skip

    def _namesakes(
        self, t: Translator, row_id: int, index: ElementIndex
    ) -> tuple[tuple[str, str], ...]:
        """Patients who may be the same person: ID and who it is."""
        initials_, born = initials(index.get("PatientName")), index.get("PatientBirthDate")
        found = [
            one
            for text in (initials_, born)
            if text
            for one in self.web.read(find_patients, text, 10)
        ]
        return tuple({
            one.patient_id: f"{t.name(one.patient_name)}, {t.date(one.patient_birth_date)}"
            for one in found if one.id != row_id
        }.items())  # fmt: skip

    def erase_page(self, row_id: int, problems: Iterable[Problem] = ()) -> str:
        """GET /patient/…/erase: erase all that is kept of a patient, on request."""
        login, _ = enter(self.web, self.request, "admin")
        t = self.translator()
        index = ElementIndex(self.web.read(get_patient, row_id))
        fields = [
            Field("patient_id", t("Patient ID, once more"), "text", "", True, "", ()),
            Field("reason", t("Reason"), "text", self.form("reason"), True, "", ()),
        ]
        who = f"{t.name(index.get('PatientName'))} {index.get('PatientID')}"
        words = t(
            "Erased are the patient, all exams, reports of machines, workitems and remembered"
            " queries. The audit log keeps ID and accession numbers, the archive its images, and"
            " backups what they have until they are dropped. This cannot be taken back."
        )
        return self.page(
            FORM_PAGE, "Erase a patient", login, action=f"/patient/{row_id}/erase",
            submit=t("Erase"), csrf=login.form_token, hidden=[], intro=words,
            problems=[t(problem.words) for problem in problems], groups=[(who, fields)],
            after=[(f"/patient/{row_id}", t("Back"))],
        )  # fmt: skip

    def erase(self, row_id: int) -> str:
        """POST /patient/…/erase."""
        _, ctx = enter(self.web, self.request, "admin")
        known = ElementIndex(self.web.read(get_patient, row_id)).get("PatientID")
        try:
            if self.form("patient_id").strip() != known:
                words = Message("This is not the ID of the patient")
                raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(0, words)])
            self.web.write(erase_patient, ctx, row_id, self.form("reason"))
            self.web.read(forget_erased)
        except Refusal as refusal:
            self.bottle.response.status = 422
            return self.erase_page(
                row_id, refusal.problems or [Problem(0, Message(refusal.detail))]
            )
        return self.tell("/patients", self.translator()("Erased."))

    def patients(self) -> str:
        """GET /patients: find a patient."""
        login, _ = enter(self.web, self.request, "desk")
        t, query = self.translator(), self.request.query.getunicode("q") or ""
        found = self.web.read(find_patients, query) if query.strip() else []
        found_rows = [
            Row(
                (t.name(p.patient_name), p.patient_id, t.date(p.patient_birth_date)),
                f"/patient/{p.id}",
            )
            for p in found
        ]
        columns = (t("Patient"), t("Patient ID"), t("Birth date"))
        empty = t("Nobody was found.") if query else ""
        label = t("Name, ID or birth date")
        part = Part("", columns, found_rows, empty)
        return self.listing("Patients", login, [part], search=label, query=query)

    def patient(self, row_id: int, form: Mapping[str, str] | None = None,
                problems: Iterable[Problem] = ()) -> str:  # fmt: skip
        """GET /patient/…: what is known of a patient, to correct, and the exams."""
        login, ctx = enter(self.web, self.request, "desk")
        t = self.translator()
        shown_now = form_of_patient(ElementIndex(self.web.read(get_patient, row_id)))
        form = form or shown_now
        by_tag = {problem.tag: t(problem.words) for problem in problems}
        fields = []
        for name, group, keyword, kind, label in REGISTER_FIELDS:
            if group == "patient" and name != "pregnancy":
                words = by_tag.pop(tag_of(keyword), "")
                field = Field(name, t(label), kind, form.get(name, ""), False, words,
                              self.choices(name, t))  # fmt: skip
                fields.append(field)
        shown = self.page(
            FORM_PAGE,
            "Patient",
            login,
            action=f"/patient/{row_id}",
            submit=t("Save"),
            csrf=login.form_token,
            hidden=[("seen", encoded_form(shown_now))],
            groups=[(t("Patient"), fields)],
            problems=[f"{f.label}: {f.problem}" for f in fields if f.problem]
            + list(by_tag.values()),
            extra=self._undo_button(ctx, t, f"patient {row_id}"),
            after=self.steps_of_patient(row_id, t),
        )
        return shown

    def steps_of_patient(self, row_id: int, t: Translator) -> list[tuple[str, str]]:
        """A link to each exam of a patient, and to a new one."""
        links = [(f"/register?patient={row_id}", t("New exam for this patient")),
                 (f"/patient/{row_id}/merge", t("The same person as another one"))]  # fmt: skip
        login = find_login(self.web, self.request)
        if login and permit(login.role, "admin"):
            links.append((f"/patient/{row_id}/erase", t("Erase this patient's data")))
        for step in self.web.read(steps_of, row_id):
            item = step_item(step)
            words = (t.date(step.start_date), shown_time(step.start_time),
                     item.get("ScheduledProcedureStepDescription"), t(step.status))  # fmt: skip
            links.append((f"/step/{step.id}", " ".join(words)))
        return links

    def correct(self, row_id: int) -> str:
        """POST /patient/…: correct a patient, or take back what was last done."""
        _, ctx = enter(self.web, self.request, "desk")
        if self.form("event") == "undo":
            self.web.write(undo, ctx, f"patient {row_id}")
            return self.tell(f"/patient/{row_id}", self.translator()("Taken back."))
        form = {row[0]: self.form(row[0]) for row in REGISTER_FIELDS}
        shown = form_of_patient(ElementIndex(self.web.read(get_patient, row_id)))
        if meanwhile := self._changed_meanwhile("patient", form, shown):
            self.bottle.response.status = 409
            return self.patient(row_id, form, meanwhile)
        given, problems = patient_from_form(form, shown)
        try:
            if problems:
                raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
            known = ElementIndex(self.web.read(get_patient, row_id))
            before = form_of_patient(known)
            if all(form[n] == before[n] for n in ("family_name", "given_name", "chinese_name")):
                # the form shows less of a name than there is: middle names, a phonetic group
                name = known.only([tag_of("PatientName")])
                given = bytes(ElementIndex(given).merged(name))

            def now() -> dict[str, str]:
                return form_of_patient(ElementIndex(get_patient(row_id)))

            if not self.web.write(unless_changed, ctx, shown, now, correct_patient, row_id, given):
                return self.correct(row_id)
        except Refusal as refusal:
            if refusal.status is Status.NO_SUCH_SOP_INSTANCE:
                raise
            self.bottle.response.status = 422
            return self.patient(row_id, form, refusal.problems)
        t = self.translator()
        where = f"/patient/{row_id}"
        if form["patient_id"].strip() != shown["patient_id"]:  # the orders may have gone to another
            where = f"/patients?q={urllib.parse.quote(form['patient_id'].strip())}"
        return self.tell(where, t("Saved. Open exams follow."))
