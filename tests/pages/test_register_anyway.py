"""Birth date and sex are asked for once; a name without a birth date may be a known patient."""

import html
import re

import pytest
from conftest import item

from minris.appliance.store_commands import run_import
from minris.pages.reception import REGISTER_FIELDS
from minris.store.models import Patient, ScheduledProcedureStep

LI = {"family_name": "Li", "given_name": "Na", "device": "CT1", "procedure": "CT chest",
      "date": "2026-07-05", "time": "09:30"}  # fmt: skip
KNOWN = {"birth_date": "1980-01-02", "sex": "F"}


def shown_form(text):
    """What the registration form would send as it is shown."""
    part = re.search(r'<form method="post" action="/register".*?</form>', text, re.S)[0]
    return {name: html.unescape(value) for name, value in re.findall(
        r'<input(?=[^>]*name="(\w+)")(?=[^>]*value="([^"]*)")', part)}  # fmt: skip


def send(web, path="/register", **texts):
    form = dict.fromkeys((row.name for row in REGISTER_FIELDS), "")
    return web.post("/register", data=form | shown_form(web.get(path).text) | texts)


def patients(appliance):
    return appliance.read(Patient.select().count)


@pytest.mark.parametrize("told", [{}, {"sex": "F"}, {"birth_date": "1980-01-02"}])
def test_what_is_missing_is_asked_for_once(appliance, web, told):
    asked = send(web, **LI | told)
    assert (asked.status_code, patients(appliance)) == (422, 0)
    for field in KNOWN:
        assert (f'id="{field}-problem"' in asked.text) is (field not in told)
    assert '<button name="event" value="anyway">Register anyway</button>' in asked.text
    again = LI | told | shown_form(asked.text) | {"device": "CT1", "event": "anyway"}
    done = web.post("/register", data=dict.fromkeys(KNOWN, "") | dict.fromkeys(
        (row.name for row in REGISTER_FIELDS), "") | again)  # fmt: skip
    assert (done.status_code, patients(appliance)) == (303, 1)


def test_who_has_both_is_not_asked(appliance, web):
    form = web.get("/register").text
    assert "Register anyway" not in form
    assert send(web, **LI | KNOWN).status_code == 303


def test_a_known_patient_who_has_both_is_not_asked(appliance, web):
    appliance.schedule(item("Li^Na", PatientID="P9", PatientBirthDate="19800102", PatientSex="F"))
    assert send(web, **LI | {"patient_id": "P9"}).status_code == 303
    assert patients(appliance) == 1


def test_an_unknown_emergency_patient_is_not_asked(appliance, web):
    answer = send(web, "/register?emergency=1", device="CT1", procedure="CT head")
    assert (answer.status_code, patients(appliance)) == (303, 1)


@pytest.mark.parametrize(
    ("stored", "typed", "words"),
    [
        ("", {}, "born ?, has the ID P9"),
        ("", KNOWN, "born ?, has the ID P9"),
        ("19800102", {}, "born 2 Jan 1980, has the ID P9"),
        ("19800102", KNOWN, "of this name and birth date has the ID P9"),
        ("19700102", KNOWN, ""),
    ],
)
def test_the_same_name_without_a_birth_date_may_be_the_same_patient(
    appliance, web, stored, typed, words
):
    appliance.schedule(item("Li^Na=李^娜", PatientID="P9", PatientBirthDate=stored))
    answer = send(web, **LI | typed, event="anyway")
    if not words:
        assert answer.status_code == 303
        return
    assert (answer.status_code, words in html.unescape(answer.text)) == (422, True)
    assert "The same patient: use the ID P9" in answer.text
    texts = LI | typed | shown_form(answer.text) | {"device": "CT1", "event": "anyway"}
    form = dict.fromkeys((row.name for row in REGISTER_FIELDS), "") | texts
    assert web.post("/register", data=form | {"same_person": "P9"}).status_code == 303
    assert patients(appliance) == 1


def test_a_list_is_imported_with_words_about_what_is_missing(ctx):
    head = "name,id,birth_date,sex,device,exam\n"
    rows = "Li^Na,P9,,F,CT1,CT\nWang^Fang,P2,1970-01-02,M,CT1,CT\n"
    assert run_import(ctx, "a.csv", (head + rows).encode()) == (
        "a.csv: Imported: 2; Without birth date or sex: 1"
    )
    said = run_import(ctx, "b.csv", (head + "Li^Na,,1980-01-02,F,CT1,CT\n").encode())
    assert said == "b.csv: Imported: 1; perhaps known already, with other IDs: P9"
    assert ScheduledProcedureStep.select().count() == 3


def test_the_api_takes_who_has_neither(appliance, web):
    assert web.post("/api/worklist", json=[item("Li^Na")]).status_code == 201
