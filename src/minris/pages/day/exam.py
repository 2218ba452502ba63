"""The page of an exam."""

import collections
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

from minris.access.context import Context
from minris.access.devices import style_of
from minris.config.ini import Device
from minris.dataset.elements import ElementIndex, encode_element
from minris.dataset.recode import recode
from minris.dataset.search import Search
from minris.dataset.text import character_set
from minris.images.arrivals import performed_arrival
from minris.mpps.linking import reporting_stations
from minris.mpps.performed import performed_of
from minris.orders.catalogue import apply_procedure
from minris.orders.diary import in_the_way, minute_of_day
from minris.orders.history import visit_of
from minris.orders.lookup import get_step, patient_of_step, step_key, step_row
from minris.orders.scheduling import reschedule
from minris.orders.steps import change_step
from minris.orders.undo import undo
from minris.outbox import passed_on_of
from minris.pages.day.board import PERSON_EVENTS, person_events
from minris.pages.forms import FORM_PAGE, Field, encoded_form, unless_changed, with_choice
from minris.pages.frame import Frame, safe_path
from minris.pages.language import Translator, booked_words, clock, facts_of, shown_instant
from minris.pages.reception import REGISTER_FIELDS, REQUIRED_FIELDS, exam_from_form, form_of_step
from minris.pages.template import template
from minris.standard.dictionary import tag_of
from minris.standard.mpps import DISCONTINUATION_REASONS, SERIES
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.tables import body_rows
from minris.standard.worklist import MWL_ATTRIBUTES, STEP_TRANSITIONS, TOLD_BY, WAITING_STEP_STATES
from minris.ups.people import workitems_of_request
from minris.web.request import enter

STEP_PAGE = template("day/exam.html")


def shown_at(device: Device | None, data: bytes) -> str:
    """The patient's name as a device will be shown it; nothing where that is all of it."""
    if not device:
        return ""
    query = ElementIndex(encode_element(tag_of("PatientName"), b"PN", b""))
    charset = character_set(device.character_set or ("ISO_IR 192",))
    search = Search(query, MWL_ATTRIBUTES, True, style_of(device, charset))
    answer = ElementIndex(recode(search.select(ElementIndex(data))))
    name = ElementIndex(data).get("PatientName")
    other = device.character_set and not charset_carries(device, answer.get("PatientName"))
    return answer.get("PatientName") if answer.get("PatientName") != name or other else ""


def charset_carries(device: Device, text: str) -> bool:
    """Whether a device's own set can carry a name."""
    try:
        character_set(device.character_set).encode(text, b"PN")
    except UnicodeEncodeError:
        return False
    return True


STEP_FACTS = body_rows("""
    label                | keyword
    Patient              | PatientName
    Patient ID           | PatientID
    Birth date           | PatientBirthDate
    Sex                  | PatientSex
    Weight (kg)          | PatientWeight
    Allergies            | Allergies
    Medical alerts       | MedicalAlerts
    Exam                 | RequestedProcedureDescription
    Referring physician  | ReferringPhysicianName
    Priority             | RequestedProcedurePriority
    Comment              | RequestedProcedureComments
    Accession number     | AccessionNumber
    Requested procedure ID | RequestedProcedureID
    Study Instance UID   | StudyInstanceUID
    """)
STEP_ITEM_FACTS = body_rows("""
    label                | keyword
    Step ID              | ScheduledProcedureStepID
    Device               | ScheduledStationAETitle
    Modality             | Modality
    Date                 | ScheduledProcedureStepStartDate
    Time                 | ScheduledProcedureStepStartTime
    State                | ScheduledProcedureStepStatus
    """)
PERFORMED_FACTS = body_rows("""
    label       | keyword
    Device      | PerformedStationAETitle
    Step ID     | PerformedProcedureStepID
    State       | PerformedProcedureStepStatus
    Exam        | PerformedProcedureStepDescription
    Date        | PerformedProcedureStepStartDate
    Begin       | PerformedProcedureStepStartTime
    End         | PerformedProcedureStepEndTime
    """)
DOSE_FACTS = body_rows("""
    label                                   | keyword
    Exposures                               | TotalNumberOfExposures
    Fluoroscopy (s)                         | TotalTimeOfFluoroscopy
    Dose area product (dGy·cm²)             | ImageAndFluoroscopyAreaDoseProduct
    Entrance dose (dGy)                     | EntranceDose
    Entrance dose (mGy)                     | EntranceDoseInmGy
    Distance source to detector (mm)        | DistanceSourceToDetector
    Remark on dose                          | CommentsOnRadiationDose
    """)
EXPOSURE_FACTS = body_rows("""
    label             | keyword
    Radiation mode    | RadiationMode
    KVP               | KVP
    Tube current (µA) | XRayTubeCurrentInuA
    Exposure time (ms) | ExposureTime
    """)


def performed_facts(
    data: bytes, remark: str, found_by: str, t: Translator
) -> list[tuple[str, str]]:
    """What a performed step's page part says."""
    index = ElementIndex(data)
    facts = facts_of(index, PERFORMED_FACTS, t)
    reason = index.item("PerformedProcedureStepDiscontinuationReasonCodeSequence")
    if reason.found:
        code = reason.get("CodeValue")
        words = DISCONTINUATION_REASONS.get(code, reason.get("CodeMeaning"))
        facts.append((t("Reason"), f"{t(words)} ({code})"))
    for number, item in enumerate(index.items(SERIES), 1):
        images = len(item.items(tag_of("ReferencedImageSequence")))
        others = len(item.items(tag_of("ReferencedNonImageCompositeSOPInstanceSequence")))
        words = (item.get("ProtocolName"), item.get("SeriesDescription"),
                 t.name(item.get("OperatorsName")))  # fmt: skip
        counts = t("{images} images, {others} others", images=images, others=others)
        told = ", ".join(filter(None, (*words, counts)))
        facts.append((t("Series {number}", number=number), told))
    facts += facts_of(index, DOSE_FACTS, t)
    for exposure in index.items(tag_of("ExposureDoseSequence")):
        words = ", ".join(map(" ".join, facts_of(exposure, EXPOSURE_FACTS, t)))
        facts.append((t("Exposure"), words))
    if remark:
        facts.append((t("Left out by the device"), remark))
    if found_by != "study":  # to be doubted
        facts.append((t("Matched by"), t(found_by)))
    return facts


class ExamPages(Frame):
    """The page of an exam."""

    def step(self, row_id: int) -> str:
        """GET /step/…: all that is known of one step."""
        login, ctx = enter(self.web, self.request, "desk")
        t = self.translator()
        row = self.web.read(step_row, row_id)
        data = bytes(row.data)
        index = ElementIndex(data)
        item = index.item("ScheduledProcedureStepSequence")
        facts = facts_of(index, STEP_FACTS, t) + facts_of(item, STEP_ITEM_FACTS, t)
        if row.remark:
            facts.append((t("Remark"), row.remark))
        if row.told_by:
            facts.append((t("Told by"), t(TOLD_BY.get(row.told_by, row.told_by))))
        told = self.request.query.get("registered")
        stations = [title for title in item.get("ScheduledStationAETitle").split("\\") if title]
        device = self.web.access().device(stations[0]) if stations else None
        events = person_events(ctx, row.status, stations, self.web.read(reporting_stations))
        shown, warnings = shown_at(device, data), []
        if shown:
            warnings.append(
                t("{device} will show the name as {name}", device=device.name, name=shown)
            )
        warnings += self._double_booking(ctx, t, row, stations, device)
        if row.status in WAITING_STEP_STATES and row.start_date < ctx.today():
            told = ""
            warnings.insert(
                0, t("Its day has passed: a machine that asks for today does not find it.")
            )
        return self.page(
            STEP_PAGE,
            "Exam",
            login,
            told=t("Registered. The device finds the patient on its worklist.") if told else "",
            facts=facts,
            warnings=warnings,
            actions=[(e, t(PERSON_EVENTS[e])) for e in events]
            + self._undo_button(ctx, t, f"step {row_id}"),
            links=self._step_links(t, row_id, index, row.status),
            visit=[
                (shown_instant(one.at, ctx.config.zone), t(one.what), t(one.about))
                for one in self.web.read(visit_of, row_id)
            ],
            performed=[
                (
                    t("Performed step {number}", number=number),
                    performed,
                    performed_facts(*row, t)
                    + self._arrival_facts(performed, t)
                    + self._passing_facts(performed, t),
                )
                for number, (performed, *row) in enumerate(self.web.read(performed_of, row_id), 1)
            ],
            path=f"/step/{row_id}",
            row_id=row_id,
            csrf=login.form_token,
        )

    def _double_booking(
        self, ctx: Context, t: Translator, row: Any, stations: list[str], device: Device | None
    ) -> list[str]:
        """What is said of an exam that lies on another one's time."""
        if row.status not in WAITING_STEP_STATES or not stations:
            return []
        when = row.start_date, minute_of_day(row.start_time)
        taken, free = self.web.read(in_the_way, ctx, stations[0], *when, "", row.id)
        if not taken:
            return []
        later = [one for one in free if one >= when[1]][:1]
        next_free = f" {t('Free is {time}.', time=clock(later[0]))}" if later else ""
        name = device.name if device else stations[0]
        words = t("Double booking: at this time {device} has {exams} too.", device=name,
                  exams=booked_words(t, taken))  # fmt: skip
        return [words + next_free]

    def _step_links(
        self, t: Translator, row_id: int, index: ElementIndex, state: str
    ) -> list[tuple[str, str]]:
        """Where one goes from the page of an exam."""
        patient = self.web.read(patient_of_step, row_id)
        return [
            (f"/step/{row_id}/edit", t("Change exam"))
            if isinstance(STEP_TRANSITIONS["reschedule", state], str)
            else ("", ""),
            (f"/step/{row_id}/slip", t("Slip")),
            (f"/step/{row_id}/label", t("Label")),
            (f"/register?order={row_id}", t("Another exam in this order")),
            (f"/workitems/new?step={row_id}", t("New workitem")),
            *(
                (f"/workitem/{uid}", f"{label}: {t(state_)}")
                for uid, label, state_ in self.web.read(
                    workitems_of_request, index.get("AccessionNumber")
                )
            ),
            (f"/patient/{patient}", t("Patient")),
            (f"/register?patient={patient}", t("New exam for this patient")),
            (f"/why?q={urllib.parse.quote(index.get('AccessionNumber'))}", t("Why not there?")),
        ]

    def _arrival_facts(self, performed_id: int, t: Translator) -> list[tuple[str, str]]:
        """How many of the images that a performed step names have come to an archive."""
        arrival = self.web.read(performed_arrival, performed_id)
        archives = any(device.role == "archive" for device in self.web.access().devices)
        nobody_knows = len(arrival.missing) == len(arrival.references) and not archives
        if not arrival.references or nobody_knows:
            return []
        count = len(arrival.references)
        words = t("{number} of {count} images", number=count - len(arrival.missing), count=count)
        return [(t("In the archive"), words)]

    def _passing_facts(self, performed_id: int, t: Translator) -> list[tuple[str, str]]:
        """To whom a performed step was passed on, and what came of it."""
        words: dict[str, list[str]] = collections.defaultdict(list)
        for receiver, operation, *how in self.web.read(passed_on_of, performed_id):
            words[receiver].append(f"{operation}: {self._passing_words(t, *how)}")
        return [
            (t("Passed on to {device}", device=ae), "; ".join(told)) for ae, told in words.items()
        ]

    def step_event(self, row_id: int) -> str:
        """POST /step/…: arrived, cancelled, did not come, back on the list."""
        _, ctx = enter(self.web, self.request, "desk")
        event = self.form("event")
        if event == "undo":
            self.web.write(undo, ctx, f"step {row_id}")
            return self.tell(f"/step/{row_id}", self.translator()("Taken back."))
        if event not in PERSON_EVENTS:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
        index = ElementIndex(self.web.read(get_step, row_id)[0])
        item = index.item("ScheduledProcedureStepSequence")
        self.web.write(
            change_step,
            ctx,
            event,
            index.get("StudyInstanceUID"),
            item.get("ScheduledProcedureStepID"),
            self.form("remark"),
        )
        return self.redirect(safe_path(self.request.get_header("Referer"), "/"))

    def edit_step(self, row_id: int, form: Mapping[str, str] | None = None,
                  problems: Iterable[Problem] = ()) -> str:  # fmt: skip
        """GET /step/…/edit: another date, device, exam."""
        login, _ = enter(self.web, self.request, "desk")
        t = self.translator()
        index = ElementIndex(self.web.read(get_step, row_id)[0])
        form = form or form_of_step(index)
        seen = [("seen", encoded_form(form_of_step(index))), ("step", str(row_id))]
        by_tag = {problem.tag: t(problem.words) for problem in problems}
        fields = [
            Field(name, t(label), kind, form.get(name, ""), name in REQUIRED_FIELDS,
                  by_tag.pop(tag_of(keyword), ""), with_choice(self.choices(name, t), form.get(name, "")))
            for name, group, keyword, kind, label in REGISTER_FIELDS
            if group == "exam"
        ]  # fmt: skip
        return self.page(
            FORM_PAGE,
            "Change exam",
            login,
            action=f"/step/{row_id}/edit",
            submit=t("Save"),
            csrf=login.form_token,
            slots="/slots",
            hidden=seen,
            groups=[(t.name(index.get("PatientName")), fields)],
            problems=[f"{f.label}: {f.problem}" for f in fields if f.problem]
            + list(by_tag.values()),
            after=[(f"/step/{row_id}", t("Back"))],
        )

    def change(self, row_id: int) -> str:
        """POST /step/…/edit: reschedule, move to another device."""
        _, ctx = enter(self.web, self.request, "desk")
        form = {row[0]: self.form(row[0]) for row in REGISTER_FIELDS if row[1] == "exam"}
        shown = form_of_step(ElementIndex(self.web.read(get_step, row_id)[0]))
        if meanwhile := self._changed_meanwhile("exam", form, shown):
            self.bottle.response.status = 409
            return self.edit_step(row_id, form, meanwhile)
        data = exam_from_form(form, shown, self.web.access().device(form["device"]))
        if form["procedure"].strip() != shown["procedure"]:
            data = self.web.read(apply_procedure, data)
        try:
            study, step_id = self.web.read(step_key, row_id)

            def now() -> dict[str, str]:
                return form_of_step(ElementIndex(get_step(row_id)[0]))

            if not self.web.write(
                unless_changed, ctx, shown, now, reschedule, study, step_id, data
            ):
                return self.change(row_id)
        except Refusal as refusal:
            if refusal.status is Status.NO_SUCH_SOP_INSTANCE:
                raise
            self.bottle.response.status = 422
            problems = refusal.problems or [Problem(0, Message(refusal.detail))]
            return self.edit_step(row_id, form, problems)
        return self.redirect(f"/step/{row_id}")
