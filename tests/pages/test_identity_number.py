"""The Chinese identity number is an identifier of its own: masked, found, and told to no machine."""

import datetime

import pytest
from conftest import item
from test_pages import employ, filled, visiting, words_of
from test_seen import button, press

from minris.dataset.elements import ElementIndex, sequence_elements, text_elements
from minris.dataset.resident import OTHER_IDS, identity_number
from minris.orders.lookup import get_step, step_key
from minris.orders.patients import find_patients, get_patient
from minris.orders.scheduling import reschedule

NUMBER, WRONG, MASKED = "11010519491231002X", "110105194912310021", "110***********002X"
TODAY = datetime.date(2026, 12, 1)


@pytest.fixture
def desk(appliance):
    with visiting(appliance) as client:
        yield employ(appliance, client)


def register(client, **texts):
    return client.post("/register", data=filled(client, birth_date="", sex="", **texts))


def patient(appliance, row_id=1):
    return ElementIndex(appliance.read(get_patient, row_id))


@pytest.mark.parametrize("field", ["identity", "patient_id"])
def test_the_number_is_kept_beside_a_patient_id_made_as_usual(appliance, desk, field):
    assert register(desk, **{field: NUMBER.lower()}).status_code == 303
    index = patient(appliance)
    assert index.get("PatientID") == "P000001"
    [other] = index.items(OTHER_IDS)
    assert (other.get("PatientID"), other.get("TypeOfPatientID")) == (NUMBER, "TEXT")
    assert other.get("IssuerOfPatientID")
    assert (index.get("PatientBirthDate"), index.get("PatientSex")) == ("19491231", "F")


def test_no_machine_and_no_page_has_the_number(appliance, desk):
    register(desk, identity=NUMBER)
    assert NUMBER.encode() not in appliance.read(get_step, 1)
    for path in ("/", "/step/1", "/step/1/label", "/step/1/slip", "/print", "/patients?q=wang",
                 "/patient/1", "/register?patient=1", "/register?order=1"):  # fmt: skip
        assert NUMBER not in desk.get(path).text, path
    assert MASKED in desk.get("/patient/1").text


@pytest.mark.parametrize("field", ["identity", "patient_id"])
def test_a_wrong_check_digit_is_refused(appliance, desk, field):
    answer = register(desk, **{field: WRONG})
    assert answer.status_code == 422
    assert "is not a valid identity number: a digit may be wrong" in words_of(answer)


def test_the_number_finds_its_patient(appliance, desk):
    register(desk, identity=NUMBER)
    for text in (NUMBER, NUMBER.lower(), NUMBER[:10]):
        assert [one.patient_id for one in appliance.read(find_patients, text, TODAY)] == ["P000001"]


def test_the_same_number_again_is_asked_about(appliance, desk):
    register(desk, identity=NUMBER)
    other = {"family_name": "Zhao", "given_name": "Min", "chinese_name": "", "same_person": ""}
    answer = register(desk, identity=NUMBER, **other)
    assert answer.status_code == 422
    assert "P000001" in words_of(answer)


def test_a_patient_whose_id_is_the_number_stays_so(appliance, desk):
    appliance.schedule(item(PatientID=NUMBER, PatientBirthDate="19491231", PatientSex="F"))
    assert register(desk, patient_id=NUMBER).status_code == 303
    assert patient(appliance).get("PatientID") == NUMBER
    assert identity_number(patient(appliance)) == ""


def test_a_new_exam_and_a_correction_keep_the_number(appliance, desk):
    register(desk, identity=NUMBER)
    again = button(desk.get("/register?patient=1").text, "Register", device="CT1", procedure="CT")
    assert press(desk, again).status_code == 303
    more = button(desk.get("/register?order=1").text, "Register", device="CT1", procedure="CT")
    assert press(desk, more).status_code == 303
    saved = button(desk.get("/patient/1").text, "Save", weight="70")
    assert press(desk, saved).status_code == 303
    assert identity_number(patient(appliance)) == NUMBER
    gone = button(desk.get("/patient/1").text, "Save", identity="")
    assert press(desk, gone).status_code == 303
    assert identity_number(patient(appliance)) == ""


def test_half_a_mask_is_refused(appliance, desk):
    register(desk, identity=NUMBER)
    half = button(desk.get("/patient/1").text, "Save", identity="110***********0021")
    assert press(desk, half).status_code == 422
    assert identity_number(patient(appliance)) == NUMBER


def test_other_identifiers_given_by_a_program_do_not_end_the_number(appliance, desk):
    register(desk, identity=NUMBER)
    other = text_elements(PatientID="HIS7", IssuerOfPatientID="HIS", TypeOfPatientID="TEXT")
    given = bytes(sequence_elements(OtherPatientIDsSequence=[other]))
    appliance.write(reschedule, appliance.context(), *appliance.read(step_key, 1), given)
    index = patient(appliance)
    assert [one.get("PatientID") for one in index.items(OTHER_IDS)] == ["HIS7", NUMBER]
    told = ElementIndex(appliance.read(get_step, 1)).items(OTHER_IDS)
    assert [one.get("PatientID") for one in told] == ["HIS7"]
