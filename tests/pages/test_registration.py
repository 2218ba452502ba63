"""Registration in one glance: who is known, dates as people write them, free times always."""

import datetime
import html
import re

import pytest
from conftest import item
from test_pages import (
    employ,
    filled,
    hidden_fields,
    problem_at,
    stored_steps,
    value_of,
    visiting,
    words_of,
)

from minris.dataset.elements import ElementIndex
from minris.dataset.times import shown_date, typed_time
from minris.orders.catalogue import MOST_REFERRERS, note_referrer, referrers, save_procedure
from minris.orders.diary import next_free
from minris.orders.patients import get_patient
from minris.pages.reception import MORE_FIELDS

CHEST = {"code": "CTC", "meaning": "CT chest", "modality": "CT", "ae_title": "CT1",
         "minutes": "30", "preparation": "Nothing to eat for 4 hours."}  # fmt: skip


@pytest.fixture
def desk(appliance):
    """Reception, with a catalogue of one exam."""
    appliance.write(save_procedure, appliance.context(), CHEST)
    with visiting(appliance) as client:
        yield employ(appliance, client)


def soon(appliance, days=7):
    return f"{appliance.context().local_now() + datetime.timedelta(days=days):%Y-%m-%d}"


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("9", "09:00"), ("930", "09:30"), ("0930", "09:30"), ("9.30", "09:30"), ("14h30", "14:30"),
        ("14：30", "14:30"), ("2:30 pm", "14:30"), ("12 am", "00:00"), ("09:30:15", "09:30"),
        ("25", "25"), ("9:75", "9:75"), ("soon", "soon"), ("", ""),
    ],
)  # fmt: skip
def test_a_typed_time_is_read(typed, read):
    assert typed_time(typed) == read


@pytest.mark.parametrize(
    "typed", ["12.3.78", "12 Mar 1978", "1978-03-12", "1978年3月12日", "19780312"]
)
def test_a_birth_date_is_typed_as_people_write_it(appliance, desk, typed):
    answer = desk.post("/register", data=filled(desk, birth_date=typed, sex="M"))
    assert answer.status_code == 303
    assert ElementIndex(appliance.read(get_patient, 1)).get("PatientBirthDate") == "19780312"


def test_a_birth_date_is_read_back_with_the_age(desk):
    part = desk.get("/find", params={"q": "12.3.78", "field": "birth_date"})
    assert re.search(r"12 Mar 1978 · \d\d y", words_of(part))
    assert "12 Mar 1978 ·" not in words_of(desk.get("/find", params={"q": "12.3.78"}))


def test_a_birth_date_that_can_be_two_days_is_asked(appliance, desk):
    form = filled(desk, birth_date="3/12/1978", sex="M")
    asked = desk.post("/register", data=form)
    assert asked.status_code == 422
    assert stored_steps(appliance) == []
    assert "3/12/1978 can be two days: choose one" in words_of(asked)
    days = re.findall('<option value="(1978-[^"]+)">', asked.text)
    assert sorted(days) == ["1978-03-12", "1978-12-03"]
    assert desk.post("/register", data=form | {"birth_date": days[0]}).status_code == 303


def test_the_day_of_an_exam_with_two_digits_is_of_this_century(appliance, desk):
    day = datetime.date.fromisoformat(soon(appliance))
    form = filled(desk, date=f"{day:%d.%m.%y}", time="9.30")
    assert desk.post("/register", data=form).status_code == 303
    step = stored_steps(appliance)[0].item("ScheduledProcedureStepSequence")
    assert step.get("ScheduledProcedureStepStartDate") == f"{day:%Y%m%d}"
    assert step.get("ScheduledProcedureStepStartTime")[:4] == "0930"


def test_the_exam_sets_device_and_minutes_and_tells_the_preparation(appliance, desk):
    day = soon(appliance)
    part = desk.get("/slots", params={"procedure": "CTC", "date": day, "time": "10:05"})
    assert 'data-device="CT1"' in part.text
    assert "Free times of CT room, 30 min" in words_of(part)
    assert "Preparation: Nothing to eat for 4 hours." in words_of(part)
    assert f'value="{day} 10:15"' in part.text


def test_a_free_time_is_chosen_without_script(appliance, desk):
    """The exam is typed, free times are asked for, one is chosen; the device is the exam's."""
    form = filled(desk, device="", procedure="CT chest", time="")
    looked = desk.post("/register", data=form | {"event": "look"})
    assert looked.status_code == 200
    assert stored_steps(appliance) == []
    slot = html.unescape(re.findall('name="slot" value="([^"]+)"', looked.text)[0])
    assert desk.post("/register", data=form | {"slot": slot}).status_code == 303
    step = stored_steps(appliance)[0].item("ScheduledProcedureStepSequence")
    assert step.get("ScheduledStationAETitle") == "CT1"
    date, time = (step.get(f"ScheduledProcedureStepStart{part}") for part in ("Date", "Time"))
    assert f"{shown_date(date)} {time[:2]}:{time[2:4]}" == slot


def test_free_times_are_of_the_next_days_that_have_some(ctx):
    """NOON is a Sunday of July; the exam lasts until closing time."""
    found = next_free(ctx, "CT1", ctx.today(), 0, 6 * 60)
    assert found[0] == ("20260705", [12 * 60])
    assert [day for day, _ in found] == ["20260705", "20260706", "20260707"]


def test_a_known_patient_is_chosen_and_what_was_typed_of_the_exam_stays(appliance, desk):
    appliance.schedule(item(PatientBirthDate="19780312", PatientSex="M", Allergies="Penicillin"))
    form = filled(desk, family_name="wxd", given_name="", chinese_name="", physician="Wu Ying")
    chosen = desk.post("/register", data=form | {"choose": "1"})
    assert (chosen.status_code, len(stored_steps(appliance))) == (200, 1)
    assert value_of(chosen.text, "family_name") == "Wang"
    assert value_of(chosen.text, "birth_date") == "1978-03-12"
    assert value_of(chosen.text, "procedure") == "CT chest"
    assert value_of(chosen.text, "physician") == "Wu Ying"
    assert '<details class="row" open>' in chosen.text  # the allergy is seen
    form |= hidden_fields(chosen.text) | {"family_name": "Wang", "given_name": "XiaoDong",
            "chinese_name": "王小东", "patient_id": "P000001", "birth_date": "1978-03-12",
            "sex": "M", "allergies": "Penicillin", "choose": ""}  # fmt: skip
    assert desk.post("/register", data=form).status_code == 303
    assert len({one.get("PatientID") for one in stored_steps(appliance)}) == 1


def test_a_patient_is_found_and_let_go_without_script(appliance, desk):
    appliance.schedule(item())
    form = filled(desk, family_name="", given_name="", chinese_name="")
    found = desk.post("/register", data=form | {"q": "P000001", "event": ""})
    assert '<button name="choose" value="1" formnovalidate>' in found.text
    other = desk.post("/register", data=form | {"choose": "0", "patient": "1"})
    assert (value_of(other.text, "family_name"), hidden_fields(other.text)["patient"]) == ("", "")


def test_the_first_button_is_the_one_that_registers(desk):
    """Enter in a field presses it; never a patient of the list."""
    form = desk.get("/register").text.partition('action="/register"')[2]
    assert re.search("<button[^>]*>(.*?)</button>", form)[1] == "Register"


@pytest.mark.parametrize(("language", "first"), [("en", "family_name"), ("zh-CN", "chinese_name")])
def test_what_most_need_stands_open_and_the_name_is_first(desk, language, first):
    desk.cookies.set("language", language)
    page = desk.get("/register", headers={"Accept-Language": language}).text
    names = re.findall('<(?:input|select) id="([a-z_]+)"', page.partition("<fieldset>")[2])
    assert names[:2] == ["q", first]
    folded = set(re.findall('id="([a-z_]+)"', "".join(
        part.partition("</details>")[0] for part in page.split('<details class="row"')[1:])))  # fmt: skip
    assert folded - {"chinese_name"} == MORE_FIELDS


def test_referring_physicians_are_offered_and_bounded(ctx):
    for number in range(MOST_REFERRERS + 3):
        later = ctx.now() + datetime.timedelta(seconds=number)
        note_referrer(ctx.__class__(ctx.config, now=lambda at=later: at), f"Wu^{number}")
    note_referrer(ctx, "^")
    assert len(referrers()) == MOST_REFERRERS
    assert "Wu^0" not in referrers()


def test_a_referring_physician_is_offered_for_the_next_order(appliance, desk):
    desk.post("/register", data=filled(desk, physician="Wu Ying"))
    assert '<option value="Wu Ying">' in desk.get("/register").text


def test_a_second_exam_of_an_order_is_as_urgent_and_begins_at_the_exam(appliance, desk):
    appliance.schedule(item(RequestedProcedurePriority="STAT"))
    page = desk.get("/register?order=1").text
    assert '<option value="STAT" selected>' in page
    assert re.search('<input id="procedure"[^>]* autofocus', page)


def test_a_name_that_is_too_long_is_shown_as_people_write_it(desk):
    answer = desk.post("/register", data=filled(desk, family_name="Featherstone" * 5))
    assert "Featherstone Xi" in problem_at(answer.text, "family_name")
