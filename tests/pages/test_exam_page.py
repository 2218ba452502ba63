"""The page of an exam: who it is, how far it is, what was changed of it and by whom."""

import dataclasses
import datetime
import html
import re
from types import SimpleNamespace

import pytest
from conftest import item
from test_mpps import create, creation_for, schedule
from test_pages import csrf_of, employ, visiting, words_of
from test_seen import button, press

from minris.access.context import Actor
from minris.config.values import read_viewer_url
from minris.dataset.elements import EMPTY, ElementIndex, text_elements
from minris.dataset.resident import OTHER_IDS, identity_elements
from minris.housekeeping.erasing import erase_patient
from minris.housekeeping.retention import purge
from minris.mpps.linking import exams_to_match, unlink_step
from minris.orders.history import changes_of, stages_of, visit_of
from minris.orders.lookup import step_row
from minris.orders.notes import MOST_CHANGES, note_change
from minris.orders.patients import correct_patient, merge_patients
from minris.orders.scheduling import move_step
from minris.orders.steps import change_step
from minris.orders.undo import undo
from minris.standard.dictionary import tag_of
from minris.store.models import ValueChange
from minris.store.rows import fetch_rows, first_row


def told(about):
    """What was changed of a thing: words, who, and the values by keyword."""
    return [
        (str(one.what), one.who, {tag: values for tag, *values in one.changes})
        for one in changes_of(about)
    ]


@pytest.fixture
def mary(ctx):
    return ctx.by(Actor("mary", "127.0.0.1", "desk"))


def test_a_corrected_name_is_told_with_the_old_one_and_who_did_it(ctx, mary):
    schedule(ctx)
    correct_patient(mary, 1, bytes(text_elements(PatientName="Wang^XiaoDan")))
    name = {tag_of("PatientName"): ["Wang^XiaoDong=王^小东", "Wang^XiaoDan"]}
    assert told("patient 1") == [("Patient corrected", "mary", name)]
    assert ("Patient corrected", "mary") in {(str(one.what), one.who) for one in visit_of(1)}


def test_a_moved_exam_is_told_with_the_old_time_and_again_when_it_is_undone(ctx, mary):
    schedule(ctx, ScheduledProcedureStepStartTime="100000")
    move_step(mary, 1, ScheduledProcedureStepStartTime="110000")
    undo(mary, "step 1")
    time = tag_of("ScheduledProcedureStepStartTime")
    assert told("step 1") == [
        ("Changed", "mary", {time: ["100000", "110000"]}),
        ("Undone: Exam changed", "mary", {time: ["110000", "100000"]}),
    ]


def test_the_identity_number_is_told_masked(ctx):
    number = identity_elements(EMPTY, "11010519491231002X")
    note_change(ctx, "patient 1", "Patient corrected", new=number)
    [(_, _, values)] = told("patient 1")
    assert values == {OTHER_IDS: ["", "110***********002X"]}


def test_a_long_value_is_told_in_part(ctx):
    long = text_elements(PatientComments="x" * 400)
    note_change(ctx, "patient 1", "Patient corrected", new=long)
    [(_, _, values)] = told("patient 1")
    assert values == {tag_of("PatientComments"): ["", "x" * 200]}


def test_what_leaves_all_values_is_not_told(ctx, mary):
    schedule(ctx)
    correct_patient(mary, 1, bytes(text_elements(PatientName="Wang^XiaoDong=王^小东")))
    assert told("patient 1") == []


def test_changes_are_bounded_by_the_newest(ctx):
    for number in range(MOST_CHANGES + 5):
        note_change(ctx, "step 1", "Changed", new=text_elements(PatientComments=str(number)))
    rows = fetch_rows(ValueChange, "1 = 1")
    assert len(rows) == MOST_CHANGES
    assert '"4"' not in rows[0].after


def test_changes_go_with_a_merged_patient_and_are_erased_with_the_patient(ctx, mary):
    schedule(ctx, PatientID="P1")
    schedule(ctx, PatientID="P2", PatientName="Wang^X")
    correct_patient(mary, 2, bytes(text_elements(PatientName="Wang^Xiao")))
    merge_patients(mary, 2, "P1", "typed twice")
    assert [what for what, *_ in told("patient 1")] == ["Patient corrected", "Patients merged"]
    assert told("patient 1")[1][2] == {tag_of("PatientID"): ["P2", "P1"]}
    move_step(mary, 1, ScheduledProcedureStepStartTime="110000")
    erase_patient(ctx, 1, "asked")
    assert fetch_rows(ValueChange, "1 = 1") == []


def test_changes_are_purged_with_their_exam(ctx, mary):
    step = schedule(ctx)
    move_step(mary, 1, ScheduledProcedureStepStartTime="110000")
    of = step.item("ScheduledProcedureStepSequence").get("ScheduledProcedureStepID")
    change_step(mary, "cancel", step.get("StudyInstanceUID"), of)
    keep = dataclasses.replace(ctx.config, housekeeping=SimpleNamespace(
        **vars(ctx.config.housekeeping) | {"keep_steps_days": 1}))  # fmt: skip
    later = ctx.now() + datetime.timedelta(days=4)
    purge(dataclasses.replace(ctx, config=keep, now=lambda: later))
    assert first_row(ValueChange, "about = 'step 1'") is None


def test_the_stages_have_times_and_names(ctx, mary):
    step = schedule(ctx)
    key = (step.get("StudyInstanceUID"),
           step.item("ScheduledProcedureStepSequence").get("ScheduledProcedureStepID"))  # fmt: skip
    change_step(mary, "arrive", *key)
    change_step(mary, "finish", *key)
    assert [(str(one.words), one.state, one.who) for one in stages_of(1)] == [
        ("Registered", "SCHEDULED", ctx.actor.name),
        ("Checked in", "ARRIVED", "mary"),
        ("In progress", "", ""),
        ("COMPLETED", "COMPLETED", "mary"),
    ]


def test_the_page_names_the_patient_and_tells_what_matters(appliance):
    appliance.schedule(
        item(
            PatientBirthDate="19780312",
            PatientSex="M",
            Allergies="Penicillin",
            RequestedProcedurePriority="STAT",
        )
    )
    with visiting(appliance) as client:
        page = employ(appliance, client).get("/step/1")
        title = re.search("<h1>(.*?)</h1>", page.text)[1]
        assert re.fullmatch("Wang XiaoDong 王小东 · M \\d+ y · P000001", title)
        assert f"<title>{title} - " in page.text
        assert '<strong class="tag">Allergies: Penicillin</strong>' in page.text
        head, technical = page.text.split("Technical details")
        assert "Study Instance UID" not in head
        assert "Study Instance UID" in technical
        assert page.text.count('<button class="main"') == 1
        form = {"csrf": csrf_of(page.text), "event": "cancel", "remark": "Patient phoned"}
        client.post("/step/1", data=form)
        client.post("/step/1", data={"csrf": csrf_of(page.text), "event": "undo"})
        words = words_of(client.get("/step/1"))
    assert re.search(r"Undone: \w+ · anna", words)
    assert "Patient phoned" in words


def test_a_correction_is_shown_with_old_and_new_values(appliance):
    appliance.schedule(item(PatientBirthDate="19780312"))
    with visiting(appliance) as client:
        employ(appliance, client)
        anna = appliance.context().by(Actor("anna", "", "desk"))
        given = bytes(text_elements(PatientBirthDate="19780313"))
        appliance.write(correct_patient, anna, 1, given)
        assert "Birth date: 12 Mar 1978 → 13 Mar 1978" in words_of(client.get("/step/1"))


def begin(ctx, step):
    """The machine reports a step as begun, at half past eleven."""
    when = {"PerformedProcedureStepStartDate": ctx.today(),
            "PerformedProcedureStepStartTime": "114000"}  # fmt: skip
    create(ctx, creation_for(step, **when))


def test_a_check_in_of_another_day_is_asked(appliance):
    day = appliance.context().local_now() + datetime.timedelta(days=1)
    appliance.schedule(item(ScheduledProcedureStepStartDate=f"{day:%Y%m%d}"))
    with visiting(appliance) as client:
        made = button(employ(appliance, client).get("/step/1").text, "Check in")
        asked = press(client, made)
        assert "this is not today. Check in all the same?" in words_of(asked)
        assert appliance.read(step_row, 1).status == "SCHEDULED"
        assert press(client, button(asked.text, "Check in")).status_code == 303
        assert appliance.read(step_row, 1).status == "ARRIVED"


def test_a_report_at_the_wrong_exam_is_moved_to_the_likeliest_other_one(ctx):
    """What was done ten minutes ago at the same device comes before the same Patient ID."""
    wrong = schedule(ctx, ScheduledProcedureStepStartTime="113000")
    schedule(ctx, PatientID="P2", PatientName="Li^Na", ScheduledProcedureStepStartTime="114500")
    schedule(ctx, ScheduledStationAETitle="US1", Modality="US")
    begin(ctx, wrong)
    unlink_step(ctx, 1, 1)
    found = [step.id for step, _ in exams_to_match(ctx, 1, 1)]
    assert found == [2, 3]
    assert [what for what, *_ in told("step 1")] == ["Report of the machine removed"]


def test_an_unlinked_report_leads_to_the_list_of_exams(appliance):
    context = appliance.context()
    [step] = appliance.schedule(item(ScheduledProcedureStepStartDate=context.today()))
    appliance.write(begin, context, ElementIndex(step))
    with visiting(appliance) as client:
        page = employ(appliance, client).get("/step/1").text
        answer = press(client, button(page, "Wrong exam: unlink this report"))
        assert answer.headers["location"] == "/unscheduled/match?performed=1&wrong=1"
        words = words_of(client.get(answer.headers["location"]))
    assert "The report was removed from Wang XiaoDong" in words
    assert "The images in the archive still carry" in words


def test_the_images_of_an_exam_that_is_done_open_in_the_viewer(run_appliance):
    appliance = run_appliance("[clinic]\nviewer_url = https://v.example/?a={accession}&s={study}")
    appliance.schedule(item(AccessionNumber="A 1"))
    with visiting(appliance) as client:
        page = employ(appliance, client).get("/step/1")
        assert "Open the images" not in page.text
        press(client, button(page.text, "Mark as done"))
        page = html.unescape(client.get("/step/1").text)
    study = appliance.read(step_row, 1).study_instance_uid
    assert f'href="https://v.example/?a=A%201&s={study}"' in page


@pytest.mark.parametrize(
    "wrong",
    ["https://v.example/", "ftp://v/{study}", "https://v/{patient}", "https://v/{0}", "{study}"],
)
def test_an_address_of_a_viewer_without_the_exam_is_refused(wrong):
    with pytest.raises(ValueError, match=r"is not an address|has a field other"):
        read_viewer_url(wrong)


def test_an_unidentified_patient_is_identified_by_search(appliance):
    appliance.schedule(item(PatientBirthDate="19780312"))
    unknown = item("Unknown^Emergency 1201-1030", PatientID="P9", AccessionNumber="A9")
    appliance.schedule(unknown)
    with visiting(appliance) as client:
        assert "Identify the patient" in words_of(employ(appliance, client).get("/step/2"))
        assert "Identify the patient" not in words_of(client.get("/step/1"))
        made = button(client.get("/patient/2/merge").text, "Search", q="wang", event="look")
        found = press(client, made)
        asked = press(client, button(found.text, "Wang XiaoDong"))
        assert "into Wang XiaoDong 王小东, P000001, 12 Mar 1978" in words_of(asked)
        done = press(client, button(asked.text, "Merge"))
        assert done.headers["location"] == "/patient/1"
        page = client.get("/patient/1")
    assert page.text.count('<li><a href="/step/') == 2
    assert "Patients merged" in words_of(page)
    assert "Undo" in words_of(page)
