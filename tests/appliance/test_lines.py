"""Section 23, LOG: lines are bounded, one of a kind a minute, and nothing of a patient."""

import io
import json
import logging
import time

import httpx
import pytest
from conftest import item
from test_dimse import Refused, Wire, associate_rq, find_request, wire  # noqa: F401

from minris import log
from minris.appliance.jobs import job_withheld
from minris.appliance.lines import (
    LINE,
    TRACE,
    JsonLines,
    OneOfAKind,
    TextLines,
    error_lines,
    one_line,
)
from minris.recent import Repeats, Withheld
from minris.standard.status import Message, Problem, Refusal, Status
from minris.store.models import Audit


@pytest.fixture
def written():
    """The log as it is written: a function that gives its lines."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextLines())
    handler.addFilter(OneOfAKind())
    logging.root.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lambda: stream.getvalue().splitlines()
    logging.root.removeHandler(handler)
    log.setLevel(logging.NOTSET)


# Lines.


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("workitem 2.25.1: SCHEDULED by 王", "workitem 2.25.1: SCHEDULED by 王"),
        ("CT\n2026-12-01 ERROR forged", "CT\\n2026-12-01 ERROR forged"),
        ("a\r\x1b[2Jb\u2028c\u202ed", "a\\r\\x1b[2Jb\\u2028c\\u202ed"),
        ("x" * 120_000, "x" * LINE + "… (120000 characters)"),
    ],
)
def test_a_message_is_one_bounded_line(text, shown):
    assert one_line(text) == shown


@pytest.mark.parametrize("formatter", [TextLines(), JsonLines()])
def test_what_is_formatted_is_bounded_and_one_line(formatter):
    record = log.makeRecord("minris", logging.ERROR, "", 0, "%s\nERROR x", ("y" * 99_000,), None)
    line = formatter.format(record)
    assert "\n" not in line
    assert len(line) < LINE + 200


def failing(depth):
    if depth:
        failing(depth - 1)
    try:
        raise KeyError(f"P{42:06}")
    except KeyError as error:
        raise OSError(28, "No space left on device") from error


@pytest.mark.parametrize("depth", [0, 200])
def test_a_traceback_has_no_values_and_is_bounded(depth):
    try:
        failing(depth)
    except OSError as error:
        text = error_lines(error)
    assert "P000042" not in text
    assert "No space left on device" in text
    assert "raise KeyError(" in text
    assert len(text) <= TRACE + 100
    assert json.loads(JsonLines().format(log.makeRecord("minris", 40, "", 0, "x", (), None)))


# One of a kind a minute.


def test_the_first_of_a_kind_comes_at_once_and_the_rest_are_counted():
    now = [0.0]
    repeats = Repeats(clock=lambda: now[0])
    assert [repeats.lets_through("a") for _ in range(4)] == [True, False, False, False]
    assert repeats.lets_through("b")
    assert repeats.ended() == []
    now[0] = 60
    assert repeats.ended() == [Withheld("", "a", 3)]
    assert repeats.lets_through("a")
    assert not repeats.lets_through("a")
    assert repeats.ended(at_once=True) == [Withheld("", "a", 1)]
    assert repeats.ended(at_once=True) == []


def test_what_was_counted_is_told_although_the_next_one_came_first():
    now = [0.0]
    repeats = Repeats(clock=lambda: now[0])
    assert [repeats.lets_through("a"), repeats.lets_through("a")] == [True, False]
    now[0] = 61
    assert repeats.lets_through("a")
    assert repeats.ended() == [Withheld("", "a", 1)]


def test_a_flood_of_kinds_is_counted_in_all():
    repeats = Repeats(of_group=20, clock=lambda: 100.0)
    told = sum(repeats.lets_through(kind, group) for group in range(1000) for kind in range(30))
    found = repeats.ended(at_once=True)
    assert told == 20 * repeats.GROUPS
    assert told + sum(one.more for one in found) == 30_000
    assert len(found) <= repeats.GROUPS + 1


def test_of_many_lines_of_a_kind_the_first_is_written(written):
    for number in range(500):
        log.warning("workitem 2.25.%d from %s lacks %s", 10**6 + number, "CT1", "Modality")
        log.warning("workitem 2.25.%d from %s lacks %s", 10**6 + number, "CT2", "Modality")
    assert len(written()) == 2
    for handler in logging.root.handlers:
        for one in handler.filters:
            one.tell(at_once=True)
    assert sorted(line.split("WARNING ")[1] for line in written()[2:]) == [
        f"499 more: workitem 2.25.# from CT{number} lacks Modality" for number in (1, 2)
    ]


def test_what_happened_to_orders_is_always_written(written):
    for number in range(50):
        log.info("workitem 2.25.%d: SCHEDULED by CT1", 10**6 + number)
    assert len(written()) == 50


# What others send.


def test_a_line_feed_in_a_character_set_forges_no_line(appliance, wire, written):  # noqa: F811
    """(0008,0005) of 120,000 characters, with a line of a log in it."""
    for term in ("ISO\n2026-12-01 00:00:00,000 ERROR forged", "x" * 120_000, "ISO IR 100\n"):
        element = b"\x08\0\x05\0" + (len(term) + len(term) % 2).to_bytes(4, "little")
        keys = element + term.encode().ljust(len(term) + len(term) % 2) + b"\x10\0\x10\0\0\0\0\0"
        for _ in range(40):
            assert wire.find(find_request(keys))[1].Status in (0x0000, 0xA900)
    lines = written()
    assert 1 <= len(lines) <= 6
    assert not any("ERROR" in line.split()[2] or len(line) > LINE for line in lines)


def test_no_patient_id_is_written(appliance, written):
    for name in ("Li^Na", "Wang^Wei"):
        appliance.schedule(item(name, PatientID="P000042"))
    assert any("used by another patient" in line for line in written())
    assert not any("P000042" in line or "Wang" in line for line in written())


# What is refused by HTTP.


def test_what_is_refused_by_http_is_one_line_with_status_and_reason(appliance, written):
    token = appliance.token("desk")
    with httpx.Client(base_url=appliance.url, trust_env=False) as client:
        client.get("/api/worklist?date=20260705")
        client.headers["Authorization"] = f"Bearer {token}"
        client.get("/api/worklist?date=P000042")
        client.get("/dicom-web/workitems/2.25.4711")
        client.get("/dicomweb/studies/Wang%5EXiaoDong")
        client.get("/users")
    assert [line.partition("web: ")[2] for line in written()] == [
        "GET /api/worklist from 127.0.0.1: 401 Log in first",
        "GET /api/worklist from 127.0.0.1: 400 … is not a date",
        "GET /dicom-web/workitems/<uid> from 127.0.0.1: 404 There is no such workitem",
        "GET /dicomweb/studies/… from 127.0.0.1: 404 Not Found",
        "GET /users from 127.0.0.1: 403 Your account is not allowed to do this. Ask an administrator.",
    ]
    assert all(" INFO " in line for line in written())


def test_what_is_refused_again_and_again_is_counted(appliance, written):
    for _ in range(30):
        httpx.get(f"{appliance.url}/api/worklist?date=x", trust_env=False)
    assert len(written()) == 1
    for handler in logging.root.handlers:
        for one in handler.filters:
            one.tell(at_once=True)
    assert "29 more: web: GET /api/worklist from 127.0.0.1: 401" in written()[1]


def test_a_reason_has_no_values():
    refusal = Refusal(Status.DUPLICATE_SOP_INSTANCE, problems=[
        Problem(0x00100020, Message("{value} belongs to {name}", value="P000042", name="Li^Na")),
        Problem(0x00100030, Message("{value!r} is not a date", value="19800231")),
    ])  # fmt: skip
    assert refusal.reason == "Patient ID … belongs to …; Patient's Birth Date … is not a date"
    row = Message("row {row:02}: {words}", row=7, words=Message("{value} is wrong", value="x"))
    assert Refusal(Status.INVALID_ATTRIBUTE_VALUE, row).reason == "row 07: … is wrong"


# Rejections.


def rejected(appliance, calling, called="MINRIS"):
    with pytest.raises(Refused):
        Wire.with_pdu(appliance.port, associate_rq(calling, called, 16384))


def audited(appliance):
    appliance.write(time.monotonic)  # what was submitted before is written
    rows = appliance.read(lambda: list(Audit.select().where(Audit.what == "association rejected")))
    return [(row.who, row.about, row.detail) for row in rows]


def test_each_rejection_is_audited(appliance):
    rejected(appliance, "MRI9")
    rejected(appliance, "CT1", "ARCHIVE")
    assert audited(appliance) == [
        ("MRI9@127.0.0.1", "MRI9", "'MRI9' is not a registered device"),
        ("CT1@127.0.0.1", "CT1", "it called 'ARCHIVE', but our AE title is 'MINRIS'"),
    ]


def test_a_flood_of_rejections_is_audited_with_its_count(appliance):
    for _ in range(25):
        rejected(appliance, "MRI9")
    for number in range(30):
        rejected(appliance, f"X{number}")
    job_withheld(appliance.appliance, at_once=True)
    found = audited(appliance)
    assert len(found) == 22
    assert [detail for _, about, detail in found if detail.endswith("more")] == [
        "'MRI9' is not a registered device; 24 more", "several reasons; 11 more"
    ]  # fmt: skip
