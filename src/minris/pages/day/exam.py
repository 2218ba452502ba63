"""The page of an exam."""

import collections
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from minris.access.devices import style_of
from minris.config.ini import Device
from minris.dataset.elements import ElementIndex, encode_element
from minris.dataset.recode import recode
from minris.dataset.search import Search
from minris.dataset.text import character_set
from minris.images.arrivals import images_there, performed_arrival
from minris.mpps.linking import does_report, reporting_stations
from minris.mpps.performed import performed_of
from minris.orders.catalogue import apply_procedure
from minris.orders.diary import in_the_way, minute_of_day
from minris.orders.history import stages_of, visit_of
from minris.orders.items import step_item
from minris.orders.lookup import get_step, patient_of_step, step_key, step_row
from minris.orders.scheduling import reschedule
from minris.orders.steps import change_step, person_events
from minris.orders.undo import undo
from minris.orders.waiting import call_patient
from minris.outbox import passed_on_of
from minris.pages.asking import PERSON_EVENTS, SURE, ask, exam_words, is_sure
from minris.pages.day.board import NEXT_EVENTS, tags_of
from minris.pages.day.slots import free_times_part
from minris.pages.forms import post_changes, show_fields, show_form
from minris.pages.frame import PageRequest, no_such_action
from minris.pages.language import (
    Translator,
    booked_words,
    clock,
    device_names,
    facts_of,
    other_patient,
    passing_words,
    shown_time,
    who_is,
)
from minris.pages.reception import (
    EXAM_FIELDS,
    exam_from_form,
    exam_of,
    form_of,
    is_unidentified,
    patient_title,
    reception_choices,
    shown_history,
)
from minris.pages.template import template
from minris.seen import mark_of
from minris.standard.dictionary import tag_of
from minris.standard.mpps import DISCONTINUATION_REASONS, SERIES
from minris.standard.status import Message, Problem, Status
from minris.standard.tables import body_rows
from minris.standard.worklist import (
    MWL_ATTRIBUTES,
    STEP_STATUS,
    STEP_TRANSITIONS,
    TOLD_BY,
    WAITING_STEP_STATES,
)
from minris.ups.people import workitems_of_request

STEP_PAGE = template("day/exam.html")


def shown_at(device: Device | None, index: ElementIndex) -> str:
    """Return the patient's name as a device will show it; "" if it shows the whole name."""
    if not device:
        return ""
    query = ElementIndex(encode_element(tag_of("PatientName"), b"PN", b""))
    charset = character_set(device.character_set or ("ISO_IR 192",))
    search = Search(query, MWL_ATTRIBUTES, True, style_of(device, charset))
    shown = ElementIndex(recode(search.select(index))).get("PatientName")
    if shown == index.get("PatientName"):
        try:
            charset.encode(shown, b"PN")
        except UnicodeEncodeError:  # not in its own character set: it gets another one
            return shown
        return ""
    return shown


# What people use; the rest is for programs and stays folded.
EXAM_FACTS = body_rows("""
    label                | keyword
    Exam                 | RequestedProcedureDescription
    Referring physician  | ReferringPhysicianName
    Comment              | RequestedProcedureComments
    Accession number     | AccessionNumber
    Birth date           | PatientBirthDate
    Phone                | PatientTelephoneNumbers
    Weight (kg)          | PatientWeight
    Allergies            | Allergies
    Medical alerts       | MedicalAlerts
    """)
TECHNICAL_FACTS = body_rows("""
    label                | keyword
    Requested procedure ID | RequestedProcedureID
    Study Instance UID   | StudyInstanceUID
    Step ID              | ScheduledProcedureStepSequence > ScheduledProcedureStepID
    AE title             | ScheduledProcedureStepSequence > ScheduledStationAETitle
    Modality             | ScheduledProcedureStepSequence > Modality
    State                | ScheduledProcedureStepSequence > ScheduledProcedureStepStatus
    """)
PERFORMED_FACTS = body_rows("""
    label       | keyword
    Device      | PerformedStationAETitle
    Step ID     | PerformedProcedureStepID
    State       | PerformedProcedureStepStatus
    Exam        | PerformedProcedureStepDescription
    Date        | PerformedProcedureStepStartDate
    Start       | PerformedProcedureStepStartTime
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
    Comments on dose                        | CommentsOnRadiationDose
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
    """Return label and value of all facts about a performed step."""
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
        counts = [t("{count} images", count=images)] if images or not others else []
        if others:
            counts.append(t("{count} other objects", count=others))
        told = t.listed((*words, *counts))
        facts.append((t("Series {number}", number=number), told))
    facts += facts_of(index, DOSE_FACTS, t)
    for exposure in index.items(tag_of("ExposureDoseSequence")):
        words = t.listed(map(" ".join, facts_of(exposure, EXPOSURE_FACTS, t)))
        facts.append((t("Exposure"), words))
    if remark:
        facts.append((t("Left out by the device"), remark))
    if found_by != "study":  # the link may be wrong
        facts.append((t("Linked by"), t(found_by)))
    return facts


def step_page(p: PageRequest, row_id: int) -> str:
    """GET /step/…: everything about one exam."""
    t, row = p.t, p.read(step_row, row_id)
    index = ElementIndex(bytes(row.data))
    stations = step_item(row).values(tag_of("ScheduledStationAETitle"))
    device = p.device(stations[0]) if stations else None
    when = f"{t.date(row.start_date)} {shown_time(row.start_time)}"
    facts = facts_of(index, EXAM_FACTS, t)
    named = device.name if device else ", ".join(stations)
    facts[1:1] = [(t("Device"), named), (t("Time"), when)]
    technical = facts_of(index, TECHNICAL_FACTS, t)
    if row.remark:
        facts.append((t("Note"), row.remark))
    if row.told_by:
        technical.append((t("Source"), t(TOLD_BY.get(row.told_by, row.told_by))))
    reports = does_report(p.ctx, stations, p.read(reporting_stations))
    actions = person_events(row.status, reports)
    warnings = double_booking(p, row, stations, device)
    if shown := shown_at(device, index):
        words = t("{device} will show the name as {name}", device=device.name, name=shown)
        warnings.insert(0, words)
    told = p.query("registered") and t(
        "Registered. {device} will find the patient on its worklist.", device=named
    )
    if row.status in WAITING_STEP_STATES and row.start_date < p.ctx.today():
        told = ""
        warnings.insert(
            0, t("Its date has passed: a machine that asks for today's exams does not find it.")
        )
    performed = performed_parts(p, row_id, index, warnings)
    main = [one for one in actions if one in NEXT_EVENTS][:1]
    return p.show(
        STEP_PAGE, patient_title(p, index), told=told, facts=facts, technical=technical,
        warnings=warnings, row_id=row_id, state=row.status, tags=tags_of(t, index),
        main=[(one, t(PERSON_EVENTS[one])) for one in main],
        others=[(one, t(PERSON_EVENTS[one]), event_question(p, one, index))
                for one in actions if one not in main],
        undoing=p.undo_of(f"step {row_id}"), performed=performed,
        mark=mark_of(row.status, row.study_instance_uid), stages=shown_stages(p, row),
        links=step_links(p, row_id, index, row.status),
        changing=isinstance(STEP_TRANSITIONS["reschedule", row.status], str),
        history=shown_history(p, p.read(visit_of, row_id)),
        viewer=viewer_of(p, row),
    )  # fmt: skip


def viewer_of(p: PageRequest, row: Any) -> str:
    """Return the address of the images of an exam in the viewer; "" if there are none, or no viewer."""
    pattern = p.web.config.clinic.viewer_url
    if not pattern or row.status not in ("COMPLETED", "DISCONTINUED"):
        return ""
    known = {"accession": row.accession_number, "study": row.study_instance_uid}
    return str(pattern.format(**{k: urllib.parse.quote(v, safe="") for k, v in known.items()}))


def performed_parts(
    p: PageRequest, row_id: int, index: ElementIndex, warnings: list[str]
) -> list[tuple[Any, ...]]:
    """Return the reports of machines about an exam; warn of one that is for another patient."""
    t, parts, names = p.t, [], device_names(p.web)
    for one, *how, verdict, other in p.read(performed_of, row_id):
        found = performed_facts(*how, t)
        if verdict in ("differs", "accepted"):
            found.insert(0, (t("Patient at the machine"), who_is(t, ElementIndex(other))))
        if verdict == "differs":
            warnings.insert(0, other_patient(t, ElementIndex(other), index))
        found += arrival_facts(p, one) + passing_facts(p, one)
        station = ElementIndex(how[0]).get("PerformedStationAETitle")
        heading = t("Performed on {device}", device=names.get(station, station))
        parts.append((heading, one, p.mark(("performed", one))[1], found, verdict == "differs"))
    return parts


def event_question(p: PageRequest, event: str, index: ElementIndex) -> str:
    """Return the question, which names the exam, for an action that is no everyday one."""
    return f"{exam_words(p.t, index)}: {p.t(PERSON_EVENTS[event])}?"


def shown_stages(p: PageRequest, row: Any) -> list[tuple[str, str, str]]:
    """Return the bar of an exam: words, state if the stage is entered, when and by whom."""
    stages = p.read(stages_of, row.id)
    shown = []
    for stage in stages:
        at, told = p.at(stage.at), ()
        if stage.state:
            told = (at.removeprefix(f"{p.t.date(row.start_date)} "), p.t(stage.who))
        shown.append((p.t(stage.words), stage.state, " ".join(filter(None, told))))
    if stages[-1].state in ("", "COMPLETED"):
        shown.append(archive_stage(p, row))
    return shown


def archive_stage(p: PageRequest, row: Any) -> tuple[str, str, str]:
    """Return the last stage of an exam: how many of its images are in the archive."""
    arrivals = [p.read(performed_arrival, one) for one, *_ in p.read(performed_of, row.id)]
    expected = sum(len(one.references) for one in arrivals)
    there = expected - sum(len(one.missing) for one in arrivals)
    if not expected:  # nobody has told which images there are
        there = expected = p.read(images_there, row.study_instance_uid)
    words = p.t("{number} of {count} images", number=there, count=expected) if expected else ""
    return p.t("In the archive"), "COMPLETED" if expected and there == expected else "", words


def double_booking(
    p: PageRequest, row: Any, stations: list[str], device: Device | None
) -> list[str]:
    """Return a warning if other exams overlap with this one."""
    if row.status not in WAITING_STEP_STATES or not stations:
        return []
    when = row.start_date, minute_of_day(row.start_time)
    taken, free = p.read(in_the_way, p.ctx, stations[0], *when, "", row.id)
    if not taken:
        return []
    words = p.t("Overlaps with {exams} on {device}.",
                device=device.name if device else stations[0], exams=booked_words(p.t, taken))  # fmt: skip
    later = [one for one in free if one >= when[1]][:1]
    return [words + (f" {p.t('Next free: {time}.', time=clock(later[0]))}" if later else "")]


def step_links(
    p: PageRequest, row_id: int, index: ElementIndex, state: str
) -> list[tuple[str, str]]:
    """Return the links of an exam's page, the likeliest first."""
    t, accession = p.t, index.get("AccessionNumber")
    patient = p.read(patient_of_step, row_id)
    waits = state in WAITING_STEP_STATES
    return [
        *[(f"/patient/{patient}/merge", t("Identify the patient"))] * is_unidentified(index),
        (f"/patient/{patient}", t("Correct the patient")),
        *[(f"/why?q={urllib.parse.quote(accession)}", t("Not on the machine?"))] * waits,
        (f"/register?order={row_id}", t("Add exam to this order")),
        (f"/register?patient={patient}", t("New order")),
        (f"/step/{row_id}/appointment.ics", t("Calendar file")),
        (f"/workitems/new?step={row_id}", t("New workitem")),
        *(
            (f"/workitem/{uid}", t.labelled(label, t.task(state_)))
            for uid, label, state_ in p.read(workitems_of_request, accession)
        ),
    ]


def arrival_facts(p: PageRequest, performed_id: int) -> list[tuple[str, str]]:
    """Return how many images of a performed step are in an archive."""
    arrival = p.read(performed_arrival, performed_id)
    archives = any(device.role == "archive" for device in p.devices)
    nobody_knows = len(arrival.missing) == len(arrival.references) and not archives
    if not arrival.references or nobody_knows:
        return []
    count = len(arrival.references)
    words = p.t("{number} of {count} images", number=count - len(arrival.missing), count=count)
    return [(p.t("In the archive"), words)]


def passing_facts(p: PageRequest, performed_id: int) -> list[tuple[str, str]]:
    """Return to which devices a performed step was forwarded, and the answers."""
    words: dict[str, list[str]] = collections.defaultdict(list)
    for receiver, operation, *how in p.read(passed_on_of, performed_id):
        words[receiver].append(f"{operation}: {passing_words(p.t, *how)}")
    return [
        (p.t("Forwarded to {device}", device=ae), "; ".join(told)) for ae, told in words.items()
    ]


def post_step(p: PageRequest, row_id: int) -> str:
    """POST /step/…: apply an event (arrive, cancel, no show, …) to an exam, or undo the last one."""
    event = p.form("event")
    if event == "undo":
        about = f"step {row_id}"
        p.write_seen(("undo", about), event, undo, about)
        return tell_step(p, row_id, p.t("Undone."), p.came_from(f"/step/{row_id}"))
    if event == "call":
        p.write_seen(("step", row_id), "", call_patient, row_id)
        return tell_step(p, row_id, p.t("Called."), p.came_from("/"))
    if event not in PERSON_EVENTS:
        raise no_such_action()
    row = p.read(step_row, row_id)
    if event == "arrive" and row.start_date > p.ctx.today() and not is_sure(p):
        words = p.t("{exam}: this is not today. Check in all the same?",
                    exam=exam_words(p.t, ElementIndex(bytes(row.data))))  # fmt: skip
        return ask(
            p,
            Message("Another day"),
            [words],
            p.t("Check in"),
            sure=SURE,
            step_state=p.seen("step"),
        )
    key = p.read(step_key, row_id)
    p.write_seen(("step", row_id), event, change_step, event, *key, p.form("remark"))
    return tell_step(p, row_id, "", p.came_from("/"), f"step {row_id}")


def tell_step(p: PageRequest, row_id: int, words: str, path: str, about: str = "") -> str:
    """Go back to a page that names an exam and its new state, and offers to undo that."""
    row = p.read(step_row, row_id)
    state = p.t.sentences(row.status)
    told = f"{p.t.labelled(exam_words(p.t, ElementIndex(bytes(row.data))), state)} {words}"
    return p.tell(path, told.strip(), about)


def edit_page(
    p: PageRequest, row_id: int, form: Mapping[str, str] | None = None,
    problems: Sequence[Problem] = (),
) -> str:  # fmt: skip
    """GET /step/…/edit: the form to change date, device or procedure."""
    t, index = p.t, exam_of(p, row_id)
    shown = form_of(EXAM_FIELDS, index)
    form, state = form or shown, index.item("ScheduledProcedureStepSequence").text(STEP_STATUS)
    intro, submit = "", t("Save")
    if STEP_TRANSITIONS["reschedule", state] not in (state, Status.PROCESSING_FAILURE):
        intro = t("The exam is {state}: saving puts it back on the list.", state=t(state))
        submit = t("Save, and put it back on the list")
    choices = reception_choices(p)
    for name in choices.keys() & form.keys():  # its value may no longer be a choice
        if choices[name] and form[name] not in dict(choices[name]):
            choices[name] = (*choices[name], (form[name], form[name]))
    fields, others = show_fields(p, EXAM_FIELDS, form, problems, choices)
    return show_form(
        p, "Change exam", [(t.name(index.get("PatientName")), fields)], others, submit=submit,
        seen=shown, slots=free_times_part(p, form, row_id),
        hidden=[("step", str(row_id)),
                ("step_state", mark_of(state, index.get("StudyInstanceUID")))],
        intro=intro,
        after=[(f"/step/{row_id}", t("Back"))],
    )  # fmt: skip


def post_edit(p: PageRequest, row_id: int) -> str:
    """POST /step/…/edit: reschedule an exam or move it to another device."""

    def stored() -> dict[str, str]:
        return form_of(EXAM_FIELDS, ElementIndex(get_step(row_id)))

    def change(form: dict[str, str], shown: dict[str, str]) -> tuple[Any, ...]:
        data = exam_from_form(form, shown, p.device(form["device"]))
        if form["procedure"].strip() != shown["procedure"]:
            data = p.read(apply_procedure, data)
        return reschedule, *p.read(step_key, row_id), data

    about = "step", row_id
    form, _, problems = post_changes(p, EXAM_FIELDS, stored, change, about, "reschedule")
    if problems:
        return edit_page(p, row_id, form, problems)
    return tell_step(p, row_id, p.t("Saved."), f"/step/{row_id}")
