"""Sections 9 and 19: what reception does in a hurry: find as one types, merge, take back."""

import dataclasses
import datetime
import re

import barcode
import pytest
from conftest import item
from test_mpps import schedule, state
from test_pages import csrf_of, employ, filled, visiting, words_of

from minris.access.context import Actor
from minris.dataset.elements import ElementIndex
from minris.dataset.names import initials, masked_name, resident_number
from minris.dataset.times import typed_dates
from minris.images.availability import ENTER_AVAILABILITY
from minris.interchange.csv_tables import no_formula
from minris.orders.history import days_between, visit_of
from minris.orders.lookup import get_step, step_data, step_row, steps_of
from minris.orders.patients import find_patients, get_patient, merge_patients
from minris.orders.scheduling import move_step
from minris.orders.steps import change_step, enter_state
from minris.orders.undo import undo
from minris.pages.day.paper import code_128
from minris.standard.commitment import COMMITTED
from minris.standard.status import Refusal, Status
from minris.store.models import Commitment, ScheduledProcedureStep
from minris.store.rows import insert_row, insert_rows, update_row

# Initials and identity numbers.


@pytest.mark.parametrize(
    ("name", "letters"),
    [
        ("Wang^XiaoDong=王^小东", "wxd"),
        ("WANG^XIAODONG", "wx"),
        ("Ouyang^Jing", "oj"),
        ("wang xiao dong", "wxd"),
        ("Müller^Änne", "ma"),
        ("McDonald^Anna", "mda"),
        ("=王^小东", "wxd"),
        ("=欧阳^静", "oj"),
        ("=王小东", "wxd"),
        ("王小东", "wxd"),
        ("王^小东", "wxd"),
        ("Иванов^Пётр", "ип"),
        ("", ""),
    ],
)
def test_initials_are_of_words_and_capitals(name, letters):
    assert initials(name) == letters


# The number that GB 11643 itself gives as its example, and made-up ones with right check characters.
@pytest.mark.parametrize(
    ("number", "told"),
    [
        ("11010519491231002X", ("19491231", "F")),
        ("11010519491231002x", ("19491231", "F")),
        (" 440524188001010014 ", ("18800101", "M")),
        ("110105194912310021", None),
        ("11010519491331002X", None),
        ("1101051949123100X2", None),
        ("P000001", None),
        ("", None),
    ],
)
def test_an_identity_number_tells_birth_date_and_sex(number, told):
    assert resident_number(number) == told


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1978-03-12", ["19780312"]),
        ("19780312", ["19780312"]),
        ("12.3.78", ["19780312"]),
        ("12 Mar 1978", ["19780312"]),
        ("March 12, 1978", ["19780312"]),
        ("1978年3月12日", ["19780312"]),
        ("3/12/1978", ["19781203", "19780312"]),
        ("13/12/1978", ["19781213"]),
        ("5.7.26", ["20260705"]),
        ("6.7.26", ["19260706"]),
        ("31.2.1978", []),
        ("2.25.19491", []),
        ("12", []),
        ("Smith", []),
    ],
)
def test_a_typed_date_is_read_in_each_way_it_can_be_meant(text, meant):
    assert typed_dates(text, datetime.date(2026, 7, 5)) == meant


# Finding.


@pytest.fixture
def known(ctx):
    """Three patients."""
    people = (
        ("Wang^XiaoDong=王^小东", "P000001", "19780312", "13800001111"),
        ("Wu^XiaoDan", "P000002", "19900721", "010-6552 1234"),
        ("Müller^Anna", "P000003", "19651102", ""),
    )
    for name, patient_id, born, phone in people:
        texts = {"PatientName": name, "PatientID": patient_id, "PatientBirthDate": born,
                 "PatientTelephoneNumbers": phone}  # fmt: skip
        schedule(ctx, **texts)
    return ctx


def ids(text):
    return [one.patient_id for one in find_patients(text, datetime.date(2026, 7, 5))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("wxd", ["P000001", "P000002"]),
        ("WXD", ["P000001", "P000002"]),
        ("ma", ["P000003"]),
        ("wang xiao", ["P000001"]),
        ("小东", ["P000001"]),
        ("王小东", ["P000001"]),
        ("muller", ["P000003"]),
        ("P000002", ["P000002"]),
        ("1990-07-21", ["P000002"]),
        ("21.7.90", ["P000002"]),
        ("21 Jul 1990", ["P000002"]),
        ("12/03/1978", ["P000001"]),
        ("xiaodong wang", ["P000001"]),
        ("Anna, Muller", ["P000003"]),
        ("anna wang", []),
        ("13800001111", ["P000001"]),
        ("138 0000", ["P000001"]),
        ("nobody", []),
        ("'; DROP TABLE patient", []),
        ("%", []),
    ],
)
def test_a_patient_is_found(known, text, found):
    assert sorted(ids(text)) == found


def test_the_patient_with_that_id_comes_first(known):
    schedule(known, PatientName="P000002^Robot", PatientID="X1")
    assert ids("P000002")[0] == "P000002"


def test_a_part_of_a_page_shows_who_may_be_meant(appliance):
    appliance.schedule(item())
    with visiting(appliance) as client:
        part = employ(appliance, client).get("/find", params={"q": "wang"})
        assert "Is it one of these?" in words_of(part)
        assert '<button name="choose" value="1" formnovalidate>' in part.text
        assert "<html" not in part.text
        assert "choose" not in client.get("/find", params={"q": "w"}).text
        told = client.get("/find", params={"q": "11010519491231002X"}).text
        assert 'data-born="1949-12-31" data-sex="F"' in told


def test_nobody_is_found_without_a_login(appliance):
    with visiting(appliance) as client:
        assert client.get("/find", params={"q": "wang"}).status_code == 303


def test_an_identity_number_fills_birth_date_and_sex(appliance):
    with visiting(appliance) as client:
        form = filled(employ(appliance, client), patient_id="11010519491231002X",
                      birth_date="", sex="")  # fmt: skip
        assert client.post("/register", data=form).status_code == 303
    index = ElementIndex(appliance.read(get_patient, 1))
    assert (index.get("PatientBirthDate"), index.get("PatientSex")) == ("19491231", "F")


def test_an_identity_number_that_contradicts_is_asked_about(appliance):
    with visiting(appliance) as client:
        form = filled(employ(appliance, client), patient_id="11010519491231002X",
                      birth_date="1978-03-12", sex="F")  # fmt: skip
        answer = client.post("/register", data=form)
    assert answer.status_code == 422
    assert "is not that of the identity number" in words_of(answer)


# Merging.


def test_a_patient_is_merged_into_another(known):
    step = schedule(known, PatientName="Wang^Xiao Dong", PatientID="P000009", PatientWeight="71")
    [double] = find_patients("P000009", datetime.date(2026, 7, 5))
    into = merge_patients(known, double.id, "P000001", "Typed anew by mistake")
    assert find_patients("P000009", datetime.date(2026, 7, 5)) == []
    data = step_data(step.get("StudyInstanceUID"),
                            step.item("ScheduledProcedureStepSequence").get(
                                "ScheduledProcedureStepID"))  # fmt: skip
    index = ElementIndex(data)
    assert (index.get("PatientID"), index.get("PatientWeight")) == ("P000001", "71")
    assert index.get("PatientName") == "Wang^XiaoDong=王^小东"
    assert len(steps_of(into)) == 2


@pytest.mark.parametrize(
    ("into", "why", "status"),
    [
        ("P000001", "", Status.INVALID_ATTRIBUTE_VALUE),
        ("P000001", "same", Status.INVALID_ATTRIBUTE_VALUE),
        ("P999", "same", Status.NO_SUCH_SOP_INSTANCE),
    ],
)
def test_a_merge_that_makes_no_sense_is_refused(known, into, why, status):
    [one] = find_patients("P000001", datetime.date(2026, 7, 5))
    with pytest.raises(Refusal) as refusal:
        merge_patients(known, one.id, into, why)
    assert refusal.value.status is status
    assert len(find_patients("P000001", datetime.date(2026, 7, 5))) == 1


def test_a_patient_is_merged_on_the_page(appliance):
    appliance.schedule(item())
    appliance.schedule(item(PatientID="P9", PatientName="Wang^X"))
    with visiting(appliance) as client:
        page = employ(appliance, client).get("/patient/2/merge")
        form = {"csrf": csrf_of(page.text), "choose": "1", "reason": "Typed twice"}
        asked = client.post("/patient/2/merge", data=form)
        assert "Merge Wang X P9 into Wang XiaoDong 王小东, P000001" in words_of(asked)
        answer = client.post("/patient/2/merge", data=form | {"sure": "yes"})
        assert answer.headers["location"] == "/patient/1"
        assert client.get("/patient/2").status_code == 404


# Taking back.


def event(ctx, step, name):
    change_step(ctx, name, step.get("StudyInstanceUID"),
                       step.item("ScheduledProcedureStepSequence").get(
                           "ScheduledProcedureStepID"))  # fmt: skip


@pytest.mark.parametrize("name", ["arrive", "no show", "cancel", "finish"])
def test_what_a_person_has_done_is_taken_back(ctx, name):
    step = schedule(ctx)
    event(ctx, step, name)
    assert state(step) != "SCHEDULED"
    undo(ctx, "step 1")
    row = step_row(1)
    assert (state(step), row.ended_at, row.told_by) == ("SCHEDULED", "", "")


def test_when_a_patient_arrived_is_not_forgotten(ctx):
    """The end was a slip of the finger: waiting began when it began."""
    step = schedule(ctx)
    event(ctx, step, "arrive")
    arrived = step_row(1).arrived_at
    later = dataclasses.replace(ctx, now=lambda: ctx.now() + datetime.timedelta(minutes=8))
    event(later, step, "finish")
    undo(later, "step 1")
    assert (state(step), step_row(1).arrived_at) == ("ARRIVED", arrived)


def test_who_did_not_arrive_after_all_has_no_time_of_arrival(ctx):
    step = schedule(ctx)
    event(ctx, step, "arrive")
    undo(ctx, "step 1")
    assert step_row(1).arrived_at == ""


@pytest.mark.parametrize(
    ("texts", "wrong"),
    [
        ({"weight": "-5"}, True), ({"weight": "700"}, True), ({"weight": "0"}, True),
        ({"weight": "3,2"}, False), ({"height": "17"}, True), ({"height": "1700"}, True),
        ({"height": "172"}, False), ({"weight": "", "height": ""}, False),
    ],
)  # fmt: skip
def test_a_weight_or_height_that_nobody_has_is_refused(appliance, texts, wrong):
    with visiting(appliance) as client:
        answer = client.post("/register", data=filled(employ(appliance, client), **texts))
    assert (answer.status_code, "cannot be" in answer.text) == (
        (422, True) if wrong else (303, False)
    )


def test_a_day_that_has_passed_is_said(appliance):
    with visiting(appliance) as client:
        form = filled(employ(appliance, client), date="2020-01-01")
        page = client.get(client.post("/register", data=form).headers["location"])
    assert "Its date has passed" in words_of(page)
    assert "finds the patient" not in page.text


def test_a_mistyped_identity_number_is_said_while_one_types(appliance):
    with visiting(appliance) as client:
        employ(appliance, client)
        assert "not a valid identity number" in client.get("/find?q=110105194912310021").text
        assert "not a valid identity number" not in client.get("/find?q=11010519491231002X").text


def test_one_chinese_character_finds(appliance):
    appliance.schedule(item())
    with visiting(appliance) as client:
        employ(appliance, client)
        assert "小东" in client.get("/find", params={"q": "王"}).text
        assert "小东" not in client.get("/find", params={"q": "w"}).text


def test_a_merge_that_fails_keeps_what_was_typed_and_offers_namesakes(appliance):
    appliance.schedule(item(PatientBirthDate="19780312"))
    appliance.schedule(item("Wang^X", PatientID="P9", PatientBirthDate="19780312"))
    with visiting(appliance) as client:
        page = employ(appliance, client).get("/patient/2/merge")
        assert '<button name="choose" value="1" formnovalidate><strong>Wang XiaoDong' in page.text
        form = {"csrf": csrf_of(page.text), "choose": "1", "reason": "", "sure": "yes", "q": "P00"}
        answer = client.post("/patient/2/merge", data=form)
        assert answer.status_code == 422
        assert "A reason is needed" in words_of(answer)
        assert 'value="P00"' in answer.text


def test_the_screen_of_the_waiting_room_has_no_menu(appliance):
    with visiting(appliance) as client:
        page = employ(appliance, client).get("/waiting?bare=1").text
    assert "<header" not in page
    assert "<nav" not in page
    assert "Log out" not in page


def test_a_change_is_in_the_time_line(ctx):
    step = schedule(ctx)
    move_step(ctx, 1, ScheduledProcedureStepStartTime="1100")
    event(ctx, step, "arrive")
    undo(ctx, "step 1")
    told = [str(one.what) for one in visit_of(1)]
    assert {"Registered", "Changed", "Checked in", "Undone: ARRIVED"} <= set(told)


def test_only_the_last_thing_is_taken_back_and_once(ctx):
    step = schedule(ctx)
    event(ctx, step, "arrive")
    event(ctx, step, "finish")
    undo(ctx, "step 1")
    assert state(step) == "ARRIVED"
    with pytest.raises(Refusal, match="nothing to undo"):
        undo(ctx, "step 1")


def test_after_a_day_nothing_is_taken_back(ctx):
    step = schedule(ctx)
    event(ctx, step, "no show")
    later = dataclasses.replace(ctx, now=lambda: ctx.now() + datetime.timedelta(hours=25))
    with pytest.raises(Refusal):
        undo(later, "step 1")


def test_what_a_machine_has_reported_is_not_taken_back(ctx):
    step = schedule(ctx)
    event(ctx, step, "arrive")
    enter_state(ctx, step_row(1), "STARTED", "performed step")
    with pytest.raises(Refusal):
        undo(ctx, "step 1")
    assert state(step) == "STARTED"


def test_the_page_of_an_exam_offers_to_take_back(appliance):
    appliance.schedule(item())
    with visiting(appliance) as client:
        page = employ(appliance, client).get("/step/1")
        assert "Undo: " not in page.text
        csrf = csrf_of(page.text)
        client.post("/step/1", data={"csrf": csrf, "event": "no show"})
        assert "Undo: " in client.get("/step/1").text
        client.post("/step/1", data={"csrf": csrf, "event": "undo"})
        assert re.search("Scheduled", client.get("/step/1").text)


# The waiting room, the slip, the day on paper.


@pytest.mark.parametrize(
    ("name", "masked"),
    [
        ("Wang^XiaoDong=王^小东", "王*东"),
        ("=王^东", "王*"),
        ("Ouyang^Jing=欧阳^静", "欧阳*"),
        ("Ouyang^NaNa=欧阳^娜娜", "欧阳*娜"),
        ("=欧阳娜", "欧阳*"),
        ("=王小东", "王*东"),
        ("Miller^Anna", "M*** A"),
        ("Miller", "M***"),
        ("", ""),
    ],
)
def test_a_name_is_masked_for_a_screen_that_others_see(name, masked):
    assert masked_name(name) == masked


def today(appliance):
    return appliance.context().today()


def test_the_waiting_room_shows_who_has_come_and_no_name(appliance):
    appliance.schedule(item(ScheduledProcedureStepStartDate=today(appliance)))
    with visiting(appliance) as client:
        page = employ(appliance, client).get("/waiting")
        assert "Nobody waiting." in words_of(page)
        csrf = csrf_of(client.get("/step/1").text)
        client.post("/step/1", data={"csrf": csrf, "event": "arrive"})
        shown = client.get("/waiting").text
    assert "王*东" in shown
    assert "王小东" not in shown
    assert "XiaoDong" not in shown


def test_a_slip_has_codes_that_a_scanner_reads(appliance):
    appliance.schedule(item())
    with visiting(appliance) as client:
        slip = employ(appliance, client).get("/step/1/slip")
        index = ElementIndex(appliance.read(get_step, 1))
        assert index.get("AccessionNumber") in words_of(slip)
        for kind in ("code128", "qr"):
            answer = client.get(f"/step/1/{kind}.svg")
            assert answer.headers["content-type"].startswith("image/svg+xml")
            assert b"<svg" in answer.content
        assert client.get("/step/99/slip").status_code == 404


def test_the_bars_are_those_of_code_128():
    """Start B, the digits, the check symbol and the stop: 11 modules each, 13 for the stop."""

    modules = barcode.get("code128", "A1").build()[0]
    assert len(modules) == 11 * 4 + 13
    assert code_128("A1") != code_128("A2")


@pytest.mark.parametrize("text", ["", "王", "A\n1"])
def test_what_code_128_cannot_carry_is_no_code(text):
    assert code_128(text) == b'<svg xmlns="http://www.w3.org/2000/svg"/>'


def test_the_day_is_printed(appliance):
    appliance.schedule(item())
    with visiting(appliance) as client:
        page = words_of(employ(appliance, client).get("/print?date=2026-07-05"))
        assert "Exams of Sun, 5 Jul 2026" in page
        assert "Wang XiaoDong 王小东" in page
        assert "王小东" not in words_of(client.get("/print?date=2026-07-06"))


# The time line of a visit, and figures.


def later(ctx, **span):
    return dataclasses.replace(ctx, now=lambda: ctx.now() + datetime.timedelta(**span))


def test_a_visit_is_told_in_order(ctx):
    step = schedule(ctx)
    event(later(ctx, minutes=5), step, "arrive")
    event(later(ctx, minutes=50), step, "finish")
    told = [(str(one.what), one.at[11:16]) for one in visit_of(1)]
    assert told == [("Registered", "12:00"), ("Checked in", "12:05"), ("COMPLETED", "12:50")]


def test_a_step_set_back_keeps_when_it_had_begun(ctx):
    """By a wrong entry, which was taken back; then it begins again."""
    schedule(ctx)
    for minutes, one in ((5, "STARTED"), (9, "SCHEDULED"), (30, "STARTED"), (40, "COMPLETED")):
        enter_state(later(ctx, minutes=minutes), ScheduledProcedureStep.get_by_id(1), one)
        told = [(str(each.what), each.at[11:16]) for each in visit_of(1)]
        assert ("Started", "12:05") in told
    assert told == [
        ("Registered", "12:00"),
        ("Started", "12:05"),
        ("Put back on the worklist", "12:09"),
        ("Started", "12:30"),
        ("COMPLETED", "12:40"),
    ]


def test_an_end_that_was_taken_back_stays_in_the_time_line(ctx):
    step = schedule(ctx)
    event(later(ctx, minutes=5), step, "no show")
    event(later(ctx, minutes=9), step, "arrive")
    event(later(ctx, minutes=20), step, "finish")
    told = [str(one.what) for one in visit_of(1)]
    assert told == ["Registered", "NO SHOW", "Checked in", "COMPLETED"]


def test_who_told_of_the_end_is_in_the_time_line(ctx):
    step = schedule(ctx)
    event(ctx.by(Actor("anna")), step, "finish")
    assert visit_of(1)[-1].about == "anna"


def test_the_page_of_an_exam_has_its_time_line(appliance):
    appliance.schedule(item())
    with visiting(appliance) as client:
        assert "Timeline" in words_of(employ(appliance, client).get("/step/1"))


def test_figures_count_and_measure(ctx):
    first, second = schedule(ctx), schedule(ctx, PatientID="P2", PatientName="Li^Na")
    for row_id, minutes in ((1, 10), (2, 30)):
        event(ctx, (first, second)[row_id - 1], "arrive")
        step = step_row(row_id)
        enter_state(later(ctx, minutes=minutes), step, "STARTED")
    enter_state(later(ctx, minutes=25), step_row(1), "COMPLETED")
    [day] = days_between("20260701", "20260731")
    assert (day.exams, day.completed, sorted(day.waiting), day.room) == (2, 1, [10, 30], [15])
    assert days_between("20260801", "20260831") == []


def test_what_was_told_of_an_image_in_two_archives_counts_once(ctx):
    step = schedule(ctx)
    study = step.get("StudyInstanceUID")
    row_id = insert_row(
        Commitment, transaction_uid="2.25.9", requester="CT1", called="MINRIS",
        door="dimse", by_study=0, repeats=0, state="told", data=b"", created_at=ctx.stamp(),
        told_at=ctx.stamp(minutes=1),
    )  # fmt: skip
    insert_rows(
        "commitment_instance (commitment_id, sop_class_uid, sop_instance_uid, study_instance_uid,"
        " series_instance_uid, verdict)",
        [(row_id, "1.2", uid, "", "", COMMITTED) for uid in ("2.25.11", "2.25.12")],
    )
    insert_rows(
        ENTER_AVAILABILITY,
        [(uid, archive, "1.2", study, "2.25.10", "ONLINE", archive, ctx.stamp())
         for uid in ("2.25.11", "2.25.12") for archive in ("ARCHIVE", "CACHE")],
    )  # fmt: skip
    told = [str(one.what) for one in visit_of(1)]
    assert "CT1 was told that 2 images are in the archive" in told


def test_the_median_of_two_is_between_them(appliance):
    appliance.schedule(item(), item(PatientID="P2", PatientName="Li^Na"))

    def waited(ctx):
        for row_id, minutes in ((1, 10), (2, 30)):
            step = step_row(row_id)
            update_row(
                ScheduledProcedureStep, step.id, arrived_at="2026-07-05T09:00:00.000000Z",
                started_at=f"2026-07-05T09:{minutes}:00.000000Z",
            )  # fmt: skip

    appliance.write(waited, appliance.context())
    with visiting(appliance) as client:
        table = employ(appliance, client, "technologist").get(
            "/figures.csv?first=2026-07-01&last=2026-07-31"
        )
    assert "2026-W27,CT room,2,2.0,0,0,,0,20," in table.text


def test_figures_are_shown_drawn_and_exported(appliance):
    appliance.schedule(item(), item(PatientID="P2", PatientName="Li^Na"))
    span = "?first=2026-07-01&last=2026-07-31"
    with visiting(appliance) as client:
        employ(appliance, client, "technologist")
        assert "2026-W27 CT room 2" in words_of(client.get(f"/figures{span}"))
        chart = client.get(f"/figures.svg{span}")
        assert chart.headers["content-type"].startswith("image/svg+xml")
        assert "<title>5 Jul: 2</title>" in chart.text
        table = client.get(f"/figures.csv{span}")
        assert "2026-W27,CT room,2" in table.text
        assert client.get("/figures?first=nonsense").status_code == 422


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@x", "\tx", "\rx"])
def test_no_cell_is_a_formula(cell):
    assert no_formula(cell) == f"'{cell}"
    assert no_formula("") == ""
    assert no_formula("Wang") == "Wang"


def test_the_search_box_answers_with_the_exam_of_today(appliance):
    today = appliance.context().today()
    appliance.schedule(
        item("Smith^John", ScheduledProcedureStepStartDate=today,
             ScheduledProcedureStepDescription="CT chest")
    )  # fmt: skip
    with visiting(appliance) as client:
        employ(appliance, client)
        found = client.get("/search?q=john+smith&part=1").text
        assert "Smith John" in found and "09:30 CT chest" in found
        assert 'href="/devices"' not in client.get("/search?q=devices&part=1").text
        assert 'href="/calendar"' in client.get("/search?q=calen&part=1").text


def test_nobody_found_leads_to_registration(appliance):
    with visiting(appliance) as client:
        employ(appliance, client)
        assert 'href="/register"' in client.get("/search?q=nobodyatall&part=1").text
