"""STATUS: the statuses of DIMSE, what they are on the web, and the exception that carries them."""

import pytest
from pynetdicom import status as pynetdicom_status

from minris.standard.dictionary import tag_of
from minris.standard.status import OUTCOMES, Message, Outcome, Problem, Refusal, Status, outcome

BIRTH_DATE = tag_of("PatientBirthDate")
PATIENT_ID = tag_of("PatientID")
NO_DATE = Message("{value} is not a date", value="19800231")

# What the category of a code is (PS3.7 annex C), by another program's dictionary.
CATEGORIES = {status: pynetdicom_status.code_to_category(int(status)) for status in Status}


# Status


@pytest.mark.parametrize("status", Status, ids=lambda s: f"{s:04X}")
def test_a_status_is_of_a_category_that_the_standard_has(status):
    assert CATEGORIES[status] in ("Success", "Warning", "Failure", "Cancel", "Pending")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (0x0001, Status.OPTIONAL_ATTRIBUTES_NOT_SUPPORTED),
        (0x0105, Status.NO_SUCH_ATTRIBUTE),
        (0x0106, Status.INVALID_ATTRIBUTE_VALUE),
        (0x0110, Status.PROCESSING_FAILURE),
        (0x0111, Status.DUPLICATE_SOP_INSTANCE),
        (0x0112, Status.NO_SUCH_SOP_INSTANCE),
        (0x0117, Status.INVALID_SOP_INSTANCE),
        (0x0118, Status.NO_SUCH_SOP_CLASS),
        (0x0120, Status.MISSING_ATTRIBUTE),
        (0x0121, Status.MISSING_ATTRIBUTE_VALUE),
        (0x0122, Status.SOP_CLASS_NOT_SUPPORTED),
        (0x0124, Status.NOT_AUTHORIZED),
        (0x0211, Status.UNRECOGNIZED_OPERATION),
        (0x0212, Status.MISTYPED_ARGUMENT),
        (0x0213, Status.RESOURCE_LIMITATION),
        (0xA700, Status.OUT_OF_RESOURCES),
        (0xA900, Status.IDENTIFIER_DOES_NOT_MATCH),
        (0xFE00, Status.CANCEL),
        (0xFF00, Status.PENDING),
        (0xFF01, Status.PENDING_OPTIONAL_KEYS_UNSUPPORTED),
    ],
    ids=lambda value: f"{value:04X}" if isinstance(value, int) else value,
)
def test_a_status_has_the_code_of_the_standard(code, status):
    assert status == code


# Outcomes


@pytest.mark.parametrize("key", OUTCOMES, ids=lambda key: f"{key[0]} {key[1]:04X}")
def test_an_outcome_is_of_a_failure_and_an_error_of_http(key):
    assert CATEGORIES[key[1]] == "Failure"
    assert 400 <= OUTCOMES[key].http <= 599


@pytest.mark.parametrize("key", OUTCOMES, ids=lambda key: f"{key[0]} {key[1]:04X}")
def test_the_text_of_an_outcome_is_a_sentence_that_fits_a_warning_header(key):
    text = OUTCOMES[key].text
    assert text.isascii()
    assert text[0].isupper()
    assert text.endswith(".")


@pytest.mark.parametrize(
    ("status", "http"),
    [
        (Status.DUPLICATE_SOP_INSTANCE, 409),
        (Status.NO_SUCH_SOP_INSTANCE, 404),
        (Status.NOT_AUTHORIZED, 403),
        (Status.INVALID_ATTRIBUTE_VALUE, 400),
        (Status.MISSING_ATTRIBUTE, 400),
        (Status.OUT_OF_RESOURCES, 413),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_what_the_web_expects_of_a_failure(status, http):
    assert outcome("schedule", status).http == http


def test_the_row_of_an_operation_goes_before_that_of_all(monkeypatch):
    row = Outcome(403, "Not for this operation.")
    monkeypatch.setitem(OUTCOMES, ("subscribe", Status.NO_SUCH_SOP_INSTANCE), row)
    assert outcome("subscribe", Status.NO_SUCH_SOP_INSTANCE) == row
    assert outcome("schedule", Status.NO_SUCH_SOP_INSTANCE).http == 404


# Message, Problem, Refusal


def test_a_message_reads_as_its_sentence():
    assert NO_DATE == "19800231 is not a date"


def test_a_message_keeps_what_a_translator_needs():
    assert NO_DATE.key == "{value} is not a date"
    assert NO_DATE.values == {"value": "19800231"}


def test_a_message_takes_values_as_they_are():
    assert Message("{value} is not a date", value="{today}") == "{today} is not a date"


def test_a_message_without_values_may_have_braces():
    assert Message("A format has {number}") == "A format has {number}"


def test_a_problem_names_its_attribute():
    words = "Patient's Birth Date (0010,0030) 19800231 is not a date"
    assert str(Problem(BIRTH_DATE, NO_DATE)) == words


def test_a_problem_without_an_attribute_is_its_words():
    assert str(Problem(0, Message("A token needs a name"))) == "A token needs a name"


def test_a_refusal_says_its_first_problem():
    problems = [Problem(BIRTH_DATE, NO_DATE), Problem(PATIENT_ID, Message("is missing"))]
    refusal = Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
    assert refusal.detail == "Patient's Birth Date (0010,0030) 19800231 is not a date"


def test_a_refusal_says_what_it_is_told_to():
    refusal = Refusal(Status.PROCESSING_FAILURE, "The step has begun", error_id=0xA710)
    assert (str(refusal), refusal.detail) == ("The step has begun", "The step has begun")
    assert refusal.error_id == 0xA710


def test_a_refusal_without_words_says_its_status():
    assert Refusal(Status.NO_SUCH_SOP_INSTANCE).detail == "NO_SUCH_SOP_INSTANCE"


def test_a_refusal_names_each_tag_once_and_ascending():
    found = [PATIENT_ID, BIRTH_DATE, 0, PATIENT_ID, 0x00080050]
    problems = (Problem(tag, Message("is missing")) for tag in found)
    refusal = Refusal(Status.MISSING_ATTRIBUTE, problems=problems)
    assert refusal.tags == (0x00080050, PATIENT_ID, BIRTH_DATE)
