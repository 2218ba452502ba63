"""Sections 9, 13 and 19: the diary of a device, double bookings, who did not come."""

import base64
import dataclasses
import datetime
import html
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import item
from test_mpps import schedule
from test_pages import csrf_of, employ, filled, visiting, words_of

from minris.access.context import Actor
from minris.appliance.jobs import DAILY, job_no_show
from minris.config.ini import Device
from minris.config.values import read_hours, read_weekdays
from minris.dataset.elements import ElementIndex, encode_items, text_elements
from minris.dataset.items import workitem_code
from minris.dataset.times import shown_date
from minris.housekeeping.retention import purge
from minris.housekeeping.stuck import not_come
from minris.orders.blocking import block_time, unblock_time
from minris.orders.catalogue import save_procedure
from minris.orders.diary import (
    Booking,
    clashes,
    day_of_da,
    diary,
    exam_minutes,
    free_times,
    in_the_way,
    is_closed,
)  # fmt: skip
from minris.orders.history import visit_of
from minris.orders.lookup import get_step, step_key, step_row
from minris.orders.patients import get_patient
from minris.orders.scheduling import reschedule
from minris.orders.steps import change_step
from minris.orders.trace import QueryLog, save_shown
from minris.orders.undo import undo
from minris.pages.day.grid import Column, grid
from minris.pages.day.paper import code_128
from minris.standard.dictionary import tag_of
from minris.standard.status import Refusal
from minris.store.models import database
from minris.ups.people import claim_by_person, finish_by_person, relationship_of_step
from minris.ups.workitems import create_workitem

DAY = "20260706"  # a Monday, the day after that of the tests' clock


def booked(ctx, time, exam="CT chest", date=DAY, **texts):
    """An exam at CT1: its row."""
    schedule(ctx, ScheduledProcedureStepStartDate=date, ScheduledProcedureStepStartTime=time,
             RequestedProcedureDescription=exam, **texts)  # fmt: skip
    return database.execute_sql("SELECT max(id) FROM scheduled_procedure_step").fetchone()[0]


def change(ctx, row_id, event):
    change_step(ctx, event, *step_key(row_id))


# The diary.


def test_a_diary_has_the_exams_of_a_station_by_their_begin(ctx):
    second, first = booked(ctx, "1000"), booked(ctx, "093000", PatientID="P2", PatientName="Li^Na")
    booked(ctx, "0900", date="20260707")
    found = diary(ctx, "CT1", DAY, DAY)
    assert [(one.row_id, one.begin, one.end) for one in found] == [
        (first, 570, 585),
        (second, 600, 615),
    ]
    assert diary(ctx, "US9", DAY, DAY) == []


@pytest.mark.parametrize("known_by", ["code", "meaning"])
def test_an_exam_takes_as_long_as_the_catalogue_says(ctx, known_by):
    row = {"code": "CTC", "meaning": "CT chest", "minutes": "40"}
    save_procedure(ctx, row)
    booked(ctx, "0900", row["meaning"])
    [one] = diary(ctx, "CT1", DAY, DAY)
    assert one.end - one.begin == 40
    assert exam_minutes()[row[known_by]] == 40


@pytest.mark.parametrize("event", ["cancel", "no show", "depart"])
def test_what_was_called_off_takes_no_time(ctx, event):
    change(ctx, booked(ctx, "0900"), event)
    assert diary(ctx, "CT1", DAY, DAY) == []


@pytest.mark.parametrize(
    ("times", "double"),
    [
        (("0900", "0915"), 0),
        (("0900", "0914"), 2),
        (("0900", "0900", "0900"), 3),
        (("0900", "0910", "0930"), 2),
        ((), 0),
    ],
)
def test_exams_on_the_time_of_another_one_are_found(ctx, times, double):
    for number, time in enumerate(times):
        booked(ctx, time, PatientID=f"P{number}")
    assert len(clashes(diary(ctx, "CT1", DAY, DAY))) == double


def test_a_long_exam_clashes_with_each_that_begins_within_it(ctx):
    save_procedure(ctx, {"code": "L", "meaning": "Long", "minutes": "60"})
    rows = {booked(ctx, "0900", "Long"), booked(ctx, "0905"), booked(ctx, "0950")}
    assert clashes(diary(ctx, "CT1", DAY, DAY)) == rows


def test_what_is_over_is_in_nobodys_way(ctx):
    first, second = booked(ctx, "0900"), booked(ctx, "0905")
    change(ctx, first, "finish")
    assert clashes(diary(ctx, "CT1", DAY, DAY)) == set()
    taken, _ = in_the_way(ctx, "CT1", DAY, 545, row_id=second)
    assert taken == []


def test_free_are_the_times_of_opening_less_those_taken(ctx):
    ctx.config.clinic.opens, ctx.config.clinic.closes = (9, 0), (10, 0)
    booked(ctx, "0910")
    bookings = diary(ctx, "CT1", DAY, DAY)
    assert free_times(ctx, "CT1", bookings, DAY, 15) == [570, 585]
    assert free_times(ctx, "CT1", bookings, DAY, 30) == [570]
    assert free_times(ctx, "CT1", bookings, DAY, 90) == []


@pytest.mark.parametrize(("opens", "slot"), [((8, 10), 15), ((8, 30), 20), ((8, 0), 45)])
def test_any_opening_time_has_free_times_in_the_calendar(appliance, opens, slot):
    clinic = appliance.config.clinic
    clinic.opens, clinic.slot_minutes = opens, slot
    day = soon(appliance)
    appliance.schedule(at(day, "0005"), at(day, "0610", PatientID="P2", PatientName="Li^Na"))
    with visiting(appliance) as client:
        page = employ(appliance, client).get(f"/calendar?date={shown_date(day)}&device=CT1")
    assert page.text.count('class="free"') >= 600 // slot - 1
    assert "00:05 Wang" in words_of(page)
    assert "06:10 Li" in words_of(page)


def test_exams_on_any_title_of_a_device_are_in_its_diary(ctx):
    twin = Device("Twin", ("CT1", "CT2"))
    ctx = dataclasses.replace(ctx, devices=[twin])
    booked(ctx, "0900", ScheduledStationAETitle="CT1")
    booked(ctx, "0905", ScheduledStationAETitle="CT2", PatientID="P2", PatientName="Li^Na")
    assert clashes(diary(ctx, "CT2", DAY, DAY)) == {1, 2}


def test_an_exam_lies_as_long_as_its_code_says_on_its_own_page_too(ctx):
    save_procedure(ctx, {"code": "CTX", "meaning": "CT long", "minutes": "60"})
    code = text_elements(CodeValue="CTX", CodeMeaning="x", CodingSchemeDesignator="L")
    first = booked(ctx, "0900", "whatever")
    sequence = encode_items(tag_of("RequestedProcedureCodeSequence"), [bytes(code)])
    reschedule(ctx, *step_key(first), sequence)
    second = booked(ctx, "0930", PatientID="P2", PatientName="Li^Na")
    taken, _ = in_the_way(ctx, "CT1", DAY, 540, "", first)
    assert [one.row_id for one in taken] == [second]


def test_nothing_is_free_in_the_past_or_on_a_closed_day(ctx):
    """The tests' clock stands at 12:00 of 5 July 2026, a Sunday."""
    assert free_times(ctx, "CT1", [], "20260704", 15) == []
    assert free_times(ctx, "CT1", [], "20260705", 15)[0] == 720
    ctx.config.clinic.closed_days = ("mon",)
    assert free_times(ctx, "CT1", [], DAY, 15) == []
    assert is_closed(ctx, DAY)
    assert not is_closed(ctx, "20260707")


def test_without_hours_all_day_is_open(ctx):
    ctx.config.clinic.opens = ctx.config.clinic.closes = None
    assert len(free_times(ctx, "CT1", [], DAY, 15)) == 96


@pytest.mark.parametrize(
    ("text", "days"),
    [("", ()), ("sun, sat", ("sat", "sun")), ("Monday", ("mon",)), ("SAT", ("sat",))],
)
def test_days_of_the_week_are_read(text, days):
    assert read_weekdays(text) == days


def test_a_day_that_is_none_is_refused():
    with pytest.raises(ValueError, match="xyz"):
        read_weekdays("sun, xyz")


# The page.


@pytest.fixture
def desk(appliance):
    with visiting(appliance) as client:
        yield employ(appliance, client)


def soon(appliance, days=1):
    """A day to come, DA."""
    now = appliance.context().local_now()
    return f"{now + datetime.timedelta(days=days):%Y%m%d}"


def at(day, time, **texts):
    return item(ScheduledProcedureStepStartDate=day, ScheduledProcedureStepStartTime=time, **texts)


def test_the_calendar_offers_a_free_time_that_fills_the_form(appliance, desk):
    day = shown_date(soon(appliance))
    page = desk.get(f"/calendar?date={day}&device=CT1")
    [link] = [html.unescape(one) for one in re.findall(r'href="(/register\?[^"]+)"', page.text)
              if day in one and "10%3A15" in one]  # fmt: skip
    form = desk.get(link).text
    assert f'name="date" type="text" value="{day}"' in form
    assert 'name="time" type="text" value="10:15"' in form
    assert '<option value="CT1" selected>' in form


def test_the_calendar_shows_exams_and_double_bookings(appliance, desk):
    day = soon(appliance)
    appliance.schedule(at(day, "0900"), at(day, "0905", PatientID="P2", PatientName="Li^Na"))
    page = desk.get(f"/calendar?date={shown_date(day)}&device=CT1")
    words = words_of(page)
    assert "2 exams overlap." in words
    assert words.count("double booking") == 2
    assert "09:00 Wang XiaoDong 王小东" in words
    assert "2 exams" in words.partition(shown_date(day)[:7] + " Mon")[2]
    assert "CT room, Week from" in words
    assert 'href="/step/1"' in page.text


@pytest.mark.parametrize("date", ["", "0001-01-01", "9999-12-31", "1900-01-01"])
def test_any_date_gives_a_calendar(desk, date):
    assert desk.get("/calendar", params={"date": date}).status_code == 200


@pytest.mark.parametrize("date", ["2026-02-30", "x", "２０２６０７０５"])
def test_a_day_of_no_calendar_is_said_to_be_none(desk, date):
    """Today would be shown in its place, and taken for it."""
    answer = desk.get("/calendar", params={"date": date})
    assert answer.status_code == 422
    assert f"{date} is not a date" in words_of(answer)


def test_an_exam_before_opening_is_shown_too(appliance, desk):
    day = soon(appliance)
    appliance.schedule(at(day, "0605"), at(day, "2350"))
    words = words_of(desk.get(f"/calendar?date={shown_date(day)}&device=CT1"))
    assert "06:05 Wang XiaoDong" in words
    assert "23:50 Wang XiaoDong" in words


def test_without_a_device_the_calendar_says_what_to_do(run_appliance, tmp_path):
    running = run_appliance()
    running.appliance.access_rules.devices = []
    with visiting(running) as client:
        page = employ(running, client).get("/calendar")
    assert "Register a device first." in words_of(page)


def test_who_registers_on_a_taken_time_is_told(appliance, desk):
    day = soon(appliance)
    appliance.schedule(at(day, "0900", PatientID="P2", PatientName="Li^Na"))
    shown = shown_date(day)
    answer = desk.post("/register", data=filled(desk, date=shown, time="09:05"))
    words = words_of(desk.get(answer.headers["location"]))
    assert "Overlaps with 09:00" in words
    assert "09:00–09:15 Li Na" in words
    assert "Next free: 09:15." in words


def test_while_one_types_what_is_in_the_way_is_shown_with_free_times(appliance, desk):
    day = soon(appliance)
    appliance.schedule(at(day, "0900", PatientID="P2", PatientName="Li^Na"))
    asked = {"device": "CT1", "date": shown_date(day), "time": "09:05", "procedure": ""}
    part = desk.get("/slots", params=asked)
    assert "09:00–09:15 Li Na" in words_of(part)
    free = re.findall('name="slot" value="[^ ]+ ([^"]+)"', part.text)
    assert free[:2] == ["09:15", "09:30"]
    part = desk.get("/slots", params=asked | {"time": "09:15"})
    assert f'value="{shown_date(day)} 09:15" checked' in part.text
    assert "Already booked" not in part.text
    assert "Already booked" not in desk.get("/slots", params=asked | {"step": "1"}).text


@pytest.mark.parametrize(
    "wrong", [{"time": "9x"}, {"time": "99:99"}, {"date": ""}, {"device": ""}, {"time": "<b>"}]
)
def test_half_an_exam_has_nothing_in_its_way(desk, wrong):
    asked = {"device": "CT1", "date": "2026-07-06", "time": "09:05"} | wrong
    answer = desk.get("/slots", params=asked)
    assert answer.status_code == 200
    assert "Already booked" not in answer.text


# Blocked times and hours of a device.


def test_a_blocked_time_is_taken_each_of_its_days_and_in_the_way(ctx):
    row = booked(ctx, "1205")
    block_time(ctx, "CT1", DAY, "20260708", 720, 840, "service")
    [exam, *_] = [one for one in diary(ctx, "CT1", DAY, DAY) if one.row_id == row]
    assert [one.exam for one in diary(ctx, "CT1", "20260707", "20260709")] == ["service"] * 2
    assert diary(ctx, "US1", DAY, DAY) == []
    assert clashes(diary(ctx, "CT1", DAY, DAY)) == {row}
    taken, free = in_the_way(ctx, "CT1", DAY, 825, row_id=row)
    assert [one.exam for one in taken] == ["service"]
    assert not [minute for minute in free if 720 <= minute < 840]
    assert exam.exam == "CT chest"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ae_title": "NONE"}, "Choose a device"),
        ({"last": "20260705"}, "The last day is before the first"),
        ({"first": "2026"}, "The last day is before the first"),
        ({"last": "20270707"}, "A time can be blocked for a year at most"),
        ({"ends": 600}, "The end is not after the begin"),
        ({"ends": 1500}, "The end is not after the begin"),
        ({"begins": -1}, "The end is not after the begin"),
        ({"reason": "x" * 201}, "The reason is longer than"),
    ],
)
def test_what_is_no_time_is_not_blocked(ctx, change, words):
    given = {"ae_title": "CT1", "first": DAY, "last": DAY, "begins": 600, "ends": 660, "reason": ""}
    with pytest.raises(Refusal, match=words):
        block_time(ctx, **given | change)
    assert diary(ctx, "CT1", DAY, DAY) == []


def test_a_blocked_time_is_taken_away_once_and_kept_a_month(ctx):
    row_id = block_time(ctx, "CT1", DAY, DAY, 600, 660, "")
    block_time(ctx, "CT1", "20260501", "20260601", 600, 660, "over")
    unblock_time(ctx, row_id)
    with pytest.raises(Refusal):
        unblock_time(ctx, row_id)
    assert purge(ctx)["blocked times"] == 1


def test_a_device_with_hours_of_its_own_has_free_times_in_them_alone(ctx):
    hours = read_hours("8:00-9:00, 13:00 – 13:30")
    ctx = dataclasses.replace(ctx, devices=(Device("CT", ("CT1",), hours=hours),))
    assert free_times(ctx, "CT1", [], DAY, 15) == [480, 495, 510, 525, 780, 795]
    assert free_times(ctx, "CT1", [], DAY, 60) == [480]


@pytest.mark.parametrize("text", ["8-12", "12:00-08:00", "08:00-12:00, 11:00-13:00", "25:00-26:00"])
def test_what_are_no_hours_is_refused(text):
    with pytest.raises(ValueError, match="are not hours"):
        read_hours(text)


def test_a_time_is_blocked_on_the_page_shown_and_freed(appliance, desk):
    day = shown_date(soon(appliance))
    form = {"device": "CT1", "first": day, "last": day, "begins": "12:00", "ends": "14:00",
            "reason": "service <12>"}  # fmt: skip
    page = desk.get("/blocked", params={"date": day, "device": "CT1"})
    assert desk.post("/blocked", data=form | {"csrf": csrf_of(page.text)}).status_code == 303
    shown = desk.get("/calendar", params={"date": day})
    assert "CT room has no exams from 12:00 to 14:00." in words_of(shown)
    assert "service &lt;12&gt;" in shown.text
    path = re.search(r'href="(/blocked\?id=\d+)"', shown.text)[1]
    again = desk.get(path)
    freed = form | {"csrf": csrf_of(again.text), "id": path.partition("=")[2], "event": "unblock"}
    assert desk.post("/blocked", data=freed).headers["location"] == f"/calendar?date={day}"
    assert "service" not in desk.get("/calendar", params={"date": day}).text
    assert desk.get(path).status_code == 404


@pytest.mark.parametrize(("ends", "until"), [("2 pm", 840), ("00:00", 1440), ("24:00", 1440)])
def test_a_blocked_time_is_typed_as_people_do_and_may_end_with_the_day(
    appliance, desk, ends, until
):
    day = soon(appliance)
    form = {"device": "CT1", "first": shown_date(day), "last": shown_date(day), "begins": "12",
            "ends": ends, "reason": ""}  # fmt: skip
    sent = form | {"csrf": csrf_of(desk.get("/blocked").text)}
    assert desk.post("/blocked", data=sent).status_code == 303
    [one] = appliance.read(diary, appliance.context(), "CT1", day, day)
    assert (one.begin, one.end) == (720, until)


def test_a_device_is_blocked_by_any_of_its_titles(run_appliance):
    running = run_appliance("[device CT room]\nae_title = CT1, CT1_DOSE\nmodality = CT\n")
    with visiting(running) as client:
        desk, day = employ(running, client), shown_date(soon(running))
        form = {"device": "CT1_DOSE", "first": day, "last": day, "begins": "12:00", "ends": "14:00",
                "reason": "", "csrf": csrf_of(desk.get("/blocked").text)}  # fmt: skip
        assert desk.post("/blocked", data=form).status_code == 303
        assert "CT room has no exams" in words_of(desk.get("/calendar", params={"date": day}))


@pytest.mark.parametrize("wrong", [
    {"first": ""}, {"begins": "x"}, {"ends": "11:00"}, {"device": ""}, {"begins": "12:xx"},
    {"ends": "\N{SUPERSCRIPT TWO}\N{SUPERSCRIPT TWO}:00"}, {"ends": "25:61"}, {"ends": ""},
])  # fmt: skip
def test_a_time_that_cannot_be_blocked_is_said_on_the_form(appliance, desk, wrong):
    day = shown_date(soon(appliance))
    form = {"device": "CT1", "first": day, "last": day, "begins": "12:00", "ends": "14:00",
            "reason": "service"}  # fmt: skip
    page = desk.get("/blocked")
    answer = desk.post("/blocked", data=form | wrong | {"csrf": csrf_of(page.text)})
    assert answer.status_code == 422
    assert 'value="service"' in answer.text


# Moving an exam.


def test_a_long_exam_is_offered_no_gap_too_short_for_it_on_any_day(appliance, desk):
    save = {"code": "L", "meaning": "Long", "minutes": "60"}
    appliance.write(save_procedure, appliance.context(), save)
    day = soon(appliance)
    later = f"{day_of_da(day) + datetime.timedelta(days=1):%Y%m%d}"
    appliance.schedule(at(day, "0900", RequestedProcedureDescription="Long"),
                       at(later, "0930", PatientID="P2", PatientName="Li^Na"))  # fmt: skip
    page = desk.get("/step/1/move", params={"date": shown_date(day)}).text
    offered = set(re.findall(r'name="to" value="([^"]+) CT1"', page))
    assert {f"{shown_date(later)} {time}" for time in ("08:30", "09:45")} <= offered
    assert not {f"{shown_date(later)} {time}" for time in ("08:45", "09:00", "09:15")} & offered
    assert {f"{shown_date(day)} {time}" for time in ("08:30", "09:15")} <= offered  # itself


def test_an_exam_that_is_changed_is_not_in_its_own_way(appliance, desk):
    day = soon(appliance)
    appliance.schedule(at(day, "0900"))
    asked = {
        "device": "CT1",
        "date": shown_date(day),
        "time": "09:00",
        "procedure": "",
        "step": "1",
    }
    assert f"{shown_date(day)} 09:00" in desk.get("/slots", params=asked).text
    assert (
        f'value="{shown_date(day)} 09:00"'
        not in desk.get("/slots", params=asked | {"step": ""}).text
    )


def test_an_exam_is_moved_by_one_button_and_can_be_undone(appliance, desk):
    day = soon(appliance)
    appliance.schedule(at(day, "0900"))
    page = desk.get("/step/1/move")
    assert f'value="{shown_date(day)} 10:00 CT1"' in page.text
    action = re.search(r'action="(/step/1/move[^"]*)"', page.text)[1]
    to = {"csrf": csrf_of(page.text), "to": f"{shown_date(day)} 10:00 CT1"}
    answer = desk.post(action, data=to)
    assert answer.status_code == 303
    told = desk.get(answer.headers["location"])
    assert "10:00" in words_of(told) and "Undo" in words_of(told)
    assert appliance.read(step_row, 1).start_time == "100000"


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("{day} 10:00 US1", "Ultrasound does US, and the exam is CT"),
        ("{day} 10:00 NONE", "Choose a device and a time"),
        ("10:00", "Choose a device and a time"),
        ("{day} 99:00 CT1", "99"),
    ],
)
def test_what_is_no_place_for_an_exam_is_refused(appliance, desk, to, words):
    day = soon(appliance)
    appliance.schedule(at(day, "0900"))
    page = desk.get("/step/1/move")
    action = re.search(r'action="(/step/1/move[^"]*)"', page.text)[1]
    sent = {"csrf": csrf_of(page.text), "to": to.format(day=shown_date(day))}
    answer = desk.post(action, data=sent)
    assert answer.status_code in (409, 422)
    assert words in words_of(answer)
    assert appliance.read(step_row, 1).start_time == "090000"


def test_whoever_moves_an_exam_that_a_colleague_cancelled_is_asked(appliance, desk):
    day = soon(appliance)
    appliance.schedule(at(day, "0900"))
    page = desk.get("/step/1/move")
    action = re.search(r'action="(/step/1/move[^"]*)"', page.text)[1]
    appliance.write(change_step, appliance.context("mary"), "cancel", *appliance.read(step_key, 1))
    sent = {"csrf": csrf_of(page.text), "to": f"{shown_date(day)} 10:00 CT1"}
    assert desk.post(action, data=sent).status_code == 409
    assert appliance.read(step_row, 1).status == "CANCELED"


# Closing time.


def reporting(ctx, monkeypatch, does=True):
    monkeypatch.setattr("minris.housekeeping.stuck.does_report", lambda *how: does)
    monkeypatch.setattr("minris.images.arrivals.does_report", lambda *how: does)
    monkeypatch.setattr("minris.pages.day.board.does_report", lambda *how: does)


@pytest.mark.parametrize("does", [True, False])
def test_who_has_not_come_is_of_machines_that_report(ctx, monkeypatch, does):
    row = booked(ctx, "0900", date=ctx.today())
    reporting(ctx, monkeypatch, does)
    assert not_come(ctx) == ([row] if does else [])


def test_who_has_come_or_comes_tomorrow_is_not_missed(ctx, monkeypatch):
    reporting(ctx, monkeypatch)
    arrived = booked(ctx, "0900", date=ctx.today())
    change(ctx, arrived, "arrive")
    booked(ctx, "0900")
    assert not_come(ctx) == []


def test_who_is_to_come_in_the_evening_is_not_missed_yet(ctx, monkeypatch):
    """The tests' clock stands at 12:00."""
    reporting(ctx, monkeypatch)
    booked(ctx, "2200", date=ctx.today())
    assert not_come(ctx) == []


def test_at_closing_time_who_did_not_come_is_said_so_and_can_be_taken_back(appliance, monkeypatch):
    monkeypatch.setattr("minris.housekeeping.stuck.does_report", lambda *how: True)
    monkeypatch.setattr("minris.images.arrivals.does_report", lambda *how: True)
    monkeypatch.setattr("minris.pages.day.board.does_report", lambda *how: True)
    appliance.schedule(at(appliance.context().today(), "000000"))
    job_no_show(appliance.appliance)
    assert appliance.read(step_row, 1).status == "NO SHOW"
    appliance.write(undo, appliance.context(), "step 1")
    assert appliance.read(step_row, 1).status == "SCHEDULED"


@pytest.mark.parametrize("switched_on", [True, False])
def test_closing_time_is_a_setting(config, switched_on):
    config.housekeeping.no_show_after_closing = switched_on
    [no_show] = [daily for daily in DAILY if daily.function is job_no_show]
    assert no_show.at(config) == ((18, 0) if switched_on else None)


# The label.


def test_a_label_has_what_a_film_bag_needs(appliance, desk):
    appliance.schedule(item(PatientBirthDate="19780312"))
    words = words_of(desk.get("/step/1/label"))
    assert "Wang XiaoDong 王小东" in words
    assert "12 Mar 1978" in words
    assert re.search(r"\d+ y\b", words)
    index = ElementIndex(appliance.read(get_step, 1))
    assert index.get("AccessionNumber") in words


def test_bars_can_be_drawn_in_any_width():
    drawn = code_128("A26112200001")
    assert b'preserveAspectRatio="none"' in drawn
    width = float(re.search(rb'width="([\d.]+)mm"', drawn)[1])
    assert float(re.search(rb'viewBox="0 0 ([\d.]+) ', drawn)[1]) == pytest.approx(
        width * 96 / 25.4, abs=0.01
    )


# Two people at one patient, at one exam.


def edited(client, path, **texts):
    """The form of a page as it is shown, with some texts changed."""
    page = client.get(path).text
    body = page[page.index(f'action="{path}"') :]
    form = dict(re.findall(r'name="(\w+)" type="\w+" value="([^"]*)"', body))
    form |= dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', body))
    for name, options in re.findall(r'<select id="(\w+)".*?>(.*?)</select>', body, re.S):
        chosen = re.search(r'value="([^"]*)" selected', options)
        form[name] = chosen[1] if chosen else ""
    for name, text in re.findall(r'<textarea id="(\w+)"[^>]*>(.*?)</textarea>', body, re.S):
        form[name] = text
    form = {name: html.unescape(value) for name, value in form.items()}
    return form | texts


def test_the_second_of_two_is_shown_what_the_first_has_changed(appliance, desk):
    appliance.schedule(item(PatientBirthDate="19780312"))
    mine = edited(desk, "/patient/1", weight="70")
    theirs = edited(desk, "/patient/1", birth_date="1978-03-13")
    assert desk.post("/patient/1", data=theirs).status_code == 303
    answer = desk.post("/patient/1", data=mine)
    assert answer.status_code == 409
    assert "was changed to 1978-03-13" in words_of(answer)
    assert 'value="70"' in answer.text, "what was typed is kept"
    stored = ElementIndex(appliance.read(get_patient, 1))
    assert (stored.get("PatientBirthDate"), stored.get("PatientWeight")) == ("19780313", "")
    body = answer.text[answer.text.index('action="/patient/1"') :]
    again = mine | {"birth_date": "1978-03-13"}
    again |= dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', body))
    assert desk.post("/patient/1", data=again).status_code == 303
    stored = ElementIndex(appliance.read(get_patient, 1))
    assert (stored.get("PatientBirthDate"), stored.get("PatientWeight")) == ("19780313", "70")


def test_what_only_the_other_has_touched_is_taken_over(appliance, desk):
    appliance.schedule(item())
    mine = edited(desk, "/patient/1", weight="70")
    desk.post("/patient/1", data=edited(desk, "/patient/1", allergies="Penicillin"))
    answer = desk.post("/patient/1", data=mine)
    assert 'value="Penicillin"' in answer.text


def test_two_at_one_exam_likewise(appliance, desk):
    appliance.schedule(item())
    mine = edited(desk, "/step/1/edit", time="11:00")
    desk.post("/step/1/edit", data=edited(desk, "/step/1/edit", time="10:45"))
    answer = desk.post("/step/1/edit", data=mine)
    assert answer.status_code == 409
    assert "was changed to 10:45" in words_of(answer)
    assert appliance.read(step_row, 1).start_time[:4] == "1045"


def test_a_state_that_changed_meanwhile_holds_nobody_up(appliance, desk):
    appliance.schedule(item())
    mine = edited(desk, "/step/1/edit", time="11:00")
    desk.post("/step/1", data={"csrf": csrf_of(desk.get("/").text), "event": "arrive"})
    assert desk.post("/step/1/edit", data=mine).status_code == 303
    assert appliance.read(step_row, 1).start_time[:4] == "1100"


def test_of_two_at_the_same_moment_one_is_told(appliance, desk):
    """What a form shows is compared in the store thread, where only one can be first."""
    appliance.schedule(item())
    form = edited(desk, "/patient/1")
    together = threading.Barrier(2)

    def save(weight):
        with visiting(appliance) as client:
            client.cookies = desk.cookies
            together.wait(10)
            return client.post("/patient/1", data=form | {"weight": weight}).status_code

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(save, ("70", "71"))) == [303, 409]


def deep():
    return base64.b64encode(b"[" * 30_000).decode()


@pytest.mark.parametrize("seen", ["!", deep(), "e30", "WzFd", "eyJhIjoxfQ=="])
def test_a_form_that_was_tampered_with_is_refused(appliance, desk, seen):
    appliance.schedule(item())
    form = edited(desk, "/patient/1", weight="70") | {"seen": seen}
    assert desk.post("/patient/1", data=form).status_code == 422
    assert ElementIndex(appliance.read(get_patient, 1)).get("PatientWeight") == ""


# First seen by a device, read.


def test_an_exam_that_was_made_after_it_was_shown_is_another_one(ctx):
    """A row that was erased gives its number to the next."""
    schedule(ctx)
    save_shown([(1, "CT1", "2026-07-05T11:59:00.000000Z")])
    assert len(visit_of(1)) == 1


def test_who_was_shown_an_exam_first_is_in_its_time_line(ctx):
    schedule(ctx)
    save_shown([(1, "CT1", "2026-07-05T12:03:00.000000Z"), (99, "CT1", "2026")])
    save_shown([(1, "CT1", "2026-07-05T13:00:00.000000Z")])
    told = [(str(one.what), one.at[11:16]) for one in visit_of(1)]
    assert told == [("Registered", "12:00"), ("First shown to CT1", "12:03")]


def test_what_is_remembered_of_a_device_is_bounded_and_told_once(ctx):
    log = QueryLog()
    by_ct = ctx.by(Actor("CT1"))
    log.show(by_ct, [(1, 7), (2, 7)])
    log.show(by_ct, [(2, 7), (3, 7)])
    assert sorted(row[0] for row in log.take_shown()) == [1, 2, 3]
    assert log.take_shown() == []
    log.show(by_ct, [(row, 7) for row in range(10, 10 + log.MOST_SHOWN)])
    log.show(by_ct, [(1, 7)])
    assert len(log.shown) <= log.MOST_SHOWN + 10


@pytest.mark.parametrize(("code", "words"), [("110005", "Read"), ("110001", "Images processed")])
def test_what_comes_after_is_told_by_what_it_was(ctx, code, words):
    step = schedule(ctx)
    request = relationship_of_step(bytes(step))
    texts = text_elements(
        ProcedureStepState="SCHEDULED", ProcedureStepLabel="Chest", WorklistLabel="R",
        ScheduledProcedureStepPriority="MEDIUM", InputReadinessState="READY",
        ScheduledProcedureStepStartDateTime="20260705",
    )  # fmt: skip
    codes = encode_items(tag_of("ScheduledWorkitemCodeSequence"), [workitem_code(code)])
    data = texts.merged(ElementIndex(codes), request)
    uid, _ = create_workitem(ctx, "", bytes(data))
    reader = ctx.by(Actor("anna", "127.0.0.1", "desk"))
    later = dataclasses.replace(reader, now=lambda: ctx.now() + datetime.timedelta(hours=1))
    claim_by_person(later, uid)
    finish_by_person(later, uid, "")
    assert str(visit_of(1)[-1].what) == words


def test_exams_that_overlap_stand_side_by_side():
    def booking(row, begin, end):
        return Booking(row, DAY, begin, end, "SCHEDULED", "Wang", "CT")

    bookings = [
        booking(1, 540, 570),
        booking(2, 545, 555),
        booking(3, 556, 575),
        booking(4, 600, 610),
    ]
    lanes, rows = grid([Column(DAY, "CT1", bookings, {480})], 480, 660, 30)
    shown = {cell.booking.row_id: (begin, cell.rows, cell.lanes)
             for begin, cells in rows for cell in cells if cell.booking}  # fmt: skip
    assert lanes == 2
    assert shown == {1: (540, 6, 1), 2: (545, 2, 1), 3: (555, 4, 1), 4: (600, 2, 2)}
    assert [cell.start for begin, cells in rows for cell in cells if cell.start >= 0] == [480]


def test_each_row_of_the_calendar_is_as_wide_as_the_others():
    """Height times width of all cells is that of the whole grid."""
    bookings = [Booking(n, DAY, 480 + 7 * n, 500 + 11 * n, "SCHEDULED", "W", "") for n in range(9)]
    columns = [Column(DAY, "CT1", bookings, set()), Column(DAY, "US1", bookings[:2], {485, 500})]
    lanes, rows = grid(columns, 480, 600, 15)
    cells = [cell for _, found in rows for cell in found]
    assert sum(cell.rows * cell.lanes for cell in cells) == len(rows) * lanes * len(columns)
