"""The query trace: what devices asked for, and why an exam was not among their answers."""

import contextlib
import dataclasses
import datetime
import html
import io
import re
import threading

import httpx
import peers
import peewee
import pydicom
import pytest
from conftest import NOON, item
from playwright.sync_api import sync_playwright
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from test_worklist_cases import CASES, ENTRIES

from minris.access.context import Actor
from minris.access.users import open_session
from minris.appliance.jobs import JOBS, job_save_queries
from minris.dataset.dicom_json import from_json
from minris.dataset.elements import ElementIndex, text_elements
from minris.dataset.recode import recode
from minris.dataset.search import Search
from minris.orders.items import fold, split_item
from minris.orders.lookup import get_step, step_known
from minris.orders.scheduling import schedule
from minris.orders.steps import change_step
from minris.orders.trace import (
    MOST_QUERIES,
    QueryLog,
    exclusion,
    latest_by_device,
    recent_queries,
    save_queries,
)
from minris.orders.worklist import STATION_AE_TITLE, WorklistView, find_worklist
from minris.standard.dictionary import tag_of, vr_of
from minris.standard.status import Status
from minris.standard.worklist import MWL_ATTRIBUTES, START_DATE, STEP_STATES, STEP_STATUS
from minris.store.models import QueryTrace, User, database
from minris.store.rows import fetch_rows

STEP_KEYS = "ScheduledProcedureStepSequence[0]."
CT1_KEYS = (
    "PatientName",
    f"{STEP_KEYS}ScheduledStationAETitle=CT1",
    f"{STEP_KEYS}ScheduledProcedureStepID",
)


# Queries in the stored form, without a network.


def query(**texts):
    """An identifier: keywords of the step stand in its sequence."""
    given = item(
        name=texts.pop("PatientName", ""),
        RequestedProcedureDescription="",
        **{"ScheduledStationAETitle": "", "Modality": "", **texts},
    )
    inner = given["ScheduledProcedureStepSequence"]["Value"][0]
    for keyword in ("ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime"):
        inner[keyword]["Value"] = [texts.get(keyword, "")]
    return from_json(given)


def noted(log, ctx, keys=None, answers=1, status=Status.SUCCESS):
    """Count a query in a log."""
    keys = query(ScheduledStationAETitle="CT1") if keys is None else keys
    log.note(ctx, keys, keys, answers, status)


def at(ctx, **later):
    """The same circumstances somewhat later."""
    return dataclasses.replace(ctx, now=lambda: NOON + datetime.timedelta(**later))


def kept():
    """The lines of the trace, the newest first."""
    return recent_queries("")


def save(ctx, log):
    save_queries(ctx, log.take())


def test_a_query_repeated_within_the_hour_is_one_line_with_its_count(ctx):
    log = QueryLog()
    for minute in (0, 10, 59):
        noted(log, at(ctx, minutes=minute))
    save(ctx, log)
    assert [line.count for line in kept()] == [3]


def test_a_query_repeated_after_the_trace_was_saved_is_still_one_line(ctx):
    log = QueryLog()
    for minute in (0, 10, 59):
        noted(log, at(ctx, minutes=minute))
        save(ctx, log)
    assert [line.count for line in kept()] == [3]


ANOTHER = {
    "hour": lambda ctx: (at(ctx, hours=1), None),
    "device": lambda ctx: (ctx.by(Actor("US1", "127.0.0.1")), None),
    "address": lambda ctx: (ctx.by(Actor("CT1", "127.0.0.9")), None),
    "keys": lambda ctx: (ctx, query(ScheduledStationAETitle="CT2")),
}


@pytest.mark.parametrize("what", ANOTHER)
def test_a_query_of_another(ctx, what):
    """… hour, device, address or with other keys is a line of its own."""
    log = QueryLog()
    noted(log, ctx)
    noted(log, *ANOTHER[what](ctx))
    save(ctx, log)
    assert [line.count for line in kept()] == [1, 1]


def test_the_hour_is_that_of_the_clinic(tmp_path, ctx, config):
    config.clinic.timezone = "Asia/Shanghai"
    log = QueryLog()
    noted(log, ctx)
    save(ctx, log)
    assert kept()[0].hour == "2026-07-05 20"


@pytest.mark.parametrize("saved_between", [False, True])
def test_a_line_tells_of_the_last_time(ctx, saved_between):
    log = QueryLog()
    noted(log, ctx, answers=7)
    if saved_between:
        save(ctx, log)
    noted(log, at(ctx, minutes=5), answers=0, status=Status.OUT_OF_RESOURCES)
    save(ctx, log)
    [line] = kept()
    assert (line.answers, line.status) == (0, 0xA700)
    assert line.last_at.startswith("2026-07-05T12:05")


def test_a_caller_that_varies_its_query_for_ever_does_not_fill_the_memory(ctx):
    """Its newest stay, and those of the others all."""
    log = QueryLog()
    noted(log, ctx.by(Actor("US1", "127.0.0.1")))
    for number in range(1000):
        noted(log, ctx, b"%d" % number)
    noted(log, ctx, b"999")
    found = log.take()
    assert sum(len(line[3]) + len(line[4]) for line in found) <= log.OF_DEVICE
    assert [(line[1], line[5]) for line in (found[0], found[-1])] == [("US1", 1), ("CT1", 2)]


def test_callers_without_end_do_not_fill_the_memory(ctx):
    log = QueryLog()
    for number in range(1000):
        noted(log, ctx.by(Actor(f"CT{number}", "127.0.0.1")))
    assert len(log.take()) == log.DEVICES


def test_of_a_query_of_megabytes_its_short_keys_are_kept(ctx):
    """They explain what it asked for; the rest is of no use to anybody."""
    log = QueryLog()
    for number in range(12):
        long = f"{number}".ljust(3_000_000)
        keys = text_elements(TextValue=long, PatientID="P000042", Modality="CT")
        noted(log, ctx, bytes(keys))
    [line] = log.take()
    index = ElementIndex(line[3])
    texts = {keyword_for_tag(tag): index.text(tag) for tag in index}
    assert texts == {"PatientID": "P000042", "Modality": "CT"}
    assert (line[4], line[5]) == (b"", 12)


def test_the_saved_queries_of_a_device_are_bounded(ctx):
    """201 different ones a day: the newest stay, and those of the others all."""
    log = QueryLog()
    noted(log, ctx.by(Actor("US1", "127.0.0.1")))
    save(ctx, log)
    for day in range(5):
        for number in range(201):
            noted(log, at(ctx, days=day, seconds=number), b"%d" % number)
        save(ctx, log)
    rows, size = MOST_QUERIES["PARTITION BY ae_title"]
    found = fetch_rows(QueryTrace, "ae_title = 'CT1' ORDER BY id")
    assert len(found) == rows
    assert sum(len(one.keys) for one in found) <= size
    assert (found[-1].hour, bytes(found[-1].keys)) == ("2026-07-09 12", b"200")
    assert [one.count for one in fetch_rows(QueryTrace, "ae_title = 'US1'")] == [1]


def test_a_device_that_asks_without_end_leaves_the_others_explained(ctx):
    log = QueryLog()
    noted(log, ctx.by(Actor("US1", "127.0.0.1")))
    for number in range(150):
        noted(log, at(ctx, seconds=number), b"%d" % number)
    save(ctx, log)
    assert {one.ae_title for one in kept()} == {"CT1", "US1"}


def test_what_has_been_taken_is_counted_from_nothing(ctx):
    log = QueryLog()
    noted(log, ctx)
    log.take()
    assert log.take() == []


def test_of_each_device_its_last_three_different_queries_explain(ctx):
    log = QueryLog()
    for number, title in enumerate(("CT1", "CT2", "CT3", "CT4", "CT4")):
        noted(log, at(ctx, hours=number), query(ScheduledStationAETitle=title))
    save(ctx, log)
    found = latest_by_device(kept())
    assert [line.hour[-2:] for line in found] == ["16", "14", "13"]


# Why a query did not find a step. It is compared with the answers themselves.


def data_of(**texts):
    """A step as it is stored, as if scheduled."""
    steps = from_json(item(**{"PatientID": "P000042", **texts}))
    return bytes(fold(*_parts(steps)))


def _parts(data):
    patient, procedure, [step] = split_item(ElementIndex(data))
    state = text_elements(ScheduledProcedureStepStatus="SCHEDULED")
    return patient, procedure, state.merged(step)


def why(config, keys, data, view=WorklistView()):
    search = Search(ElementIndex(keys), MWL_ATTRIBUTES)
    return exclusion(config, search, view, data)


def test_a_step_that_is_found_is_not_excluded(config):
    keys = query(ScheduledStationAETitle="CT1", Modality="CT", PatientName="wang*")
    assert why(config, keys, data_of()) is None


# For each VR a value that a believable step has, and one that a query asks for in vain.
VALUES = {
    "AE": ("CT1", "CT9"),
    "AS": ("046Y", "001M"),
    "CS": ("CT", "MR"),
    "DA": ("20260705", "20260101"),
    "DS": ("71.5", "12"),
    "LO": ("Room 3", "Basement"),
    "LT": ("Bring the old films", "None"),
    "PN": ("Zhao^Min=赵^敏", "Schmidt"),
    "SH": ("S2607050007", "S9"),
    "ST": ("Long Street 1", "Short Street"),
    "TM": ("093000", "2200"),
    "UC": ("71388002", "399208008"),
    "UI": ("2.25.42", "1.2.3"),
    "UR": ("urn:loinc:24627-2", "urn:loinc:1"),
    "US": (1, 4),
    "UT": ("Cough for six weeks", "None"),
}
MATCHED = [
    attribute
    for attribute in MWL_ATTRIBUTES.values()
    if attribute.cells["match"] != "-" and attribute.vr != "SQ"
]


def nested(path, value):
    """A data set with one value at a path of tags, as pydicom has it."""
    ds = Dataset()
    tag, *rest = path
    vr = vr_of(tag)
    ds.add_new(tag, vr, [nested(rest, value)] if rest else value)
    return ds


def stored_form(ds):
    """A pydicom data set in the stored form."""
    encoded, copy = io.BytesIO(), Dataset()
    copy.SpecificCharacterSet = "ISO_IR 192"
    copy.update(ds)
    pydicom.dcmwrite(encoded, copy, little_endian=True, implicit_vr=False)
    return recode(encoded.getvalue())


@pytest.mark.parametrize("attribute", MATCHED, ids=lambda a: "-".join(f"{t:08X}" for t in a.path))
def test_the_key_that_kept_a_step_from_the_answers_is_named(config, attribute):
    has, asked = VALUES[attribute.vr]
    step, keys = nested(attribute.path, has), nested(attribute.path, asked)
    found = why(config, stored_form(keys), stored_form(step))
    assert (found.tag, found.asked, found.has) == (attribute.tag, str(asked), str(has))


def test_a_key_that_the_step_has_no_value_for_is_named(config):
    found = why(config, query(AccessionNumber="2607050001"), data_of())
    assert found == (tag_of("AccessionNumber"), "2607050001", "")


def test_a_key_sent_on_the_wrong_level_too_is_told_from_the_step(config):
    """Old devices send Modality beside the sequence as well; there it has no meaning."""
    keys = ElementIndex(query(Modality="MR"))
    keys = keys.merged(ElementIndex(stored_form(nested([tag_of("Modality")], ""))))
    found = why(config, keys, data_of())
    assert (found.asked, found.has) == ("MR", "CT")


def test_a_range_of_date_and_time_that_ended_before_is_the_date(config):
    keys = query(
        ScheduledProcedureStepStartDate="20260703-20260704",
        ScheduledProcedureStepStartTime="0800-1800",
    )
    found = why(config, keys, data_of())
    assert found.tag == tag_of("ScheduledProcedureStepStartDate")
    assert (found.asked, found.has) == ("20260703-20260704", "20260705")


@pytest.mark.parametrize("state", STEP_STATES)
def test_a_state_that_is_not_shown_to_devices_comes_before_every_key(config, state):
    found = why(config, query(Modality="MR"), data_of(ScheduledProcedureStepStatus=state))
    hidden = state in config.dicom.hide_steps
    expected = STEP_STATUS if hidden else tag_of("Modality")
    assert (found.tag, found.has) == (expected, state if hidden else "CT")


@pytest.mark.parametrize(("titles", "kept_from"), [("CT1", False), ("CT2", True)])
def test_a_device_that_sees_its_own_steps_alone_does_not_see_another_s(config, titles, kept_from):
    view = WorklistView((titles, "CT3"))
    found = why(config, query(), data_of(), view)
    expected = (STATION_AE_TITLE, "CT2, CT3", "CT1") if kept_from else None
    assert found == expected


@pytest.mark.parametrize(
    ("first", "last", "kept_from"),
    [
        ("20260705", "20260705", False),
        ("", "20260704", True),
        ("20260706", "", True),
        ("", "", False),
        ("20260704", "", False),
    ],
)
def test_a_step_outside_the_days_of_a_device_is_kept_from_it(config, first, last, kept_from):
    found = why(config, query(), data_of(), WorklistView((), first, last))
    expected = (START_DATE, f"{first}-{last}", "20260705") if kept_from else None
    assert found == expected


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_nothing_excludes_what_is_answered_and_something_what_is_not(ctx, case):
    items = [from_json(entry) for entry in ENTRIES]
    stored = [data for one in items for data in schedule(ctx, one, "separate")]
    search = Search(ElementIndex(from_json(case["query"])), MWL_ATTRIBUTES)
    everything = WorklistView()
    answered = sum(len(answers) for answers in find_worklist(ctx, search))
    reasons = [exclusion(ctx.config, search, everything, data) for data in stored]
    assert reasons.count(None) == answered


# Queries of real devices.


def ask(appliance, *keys, calling="CT1"):
    """The answers of a worklist query of findscu."""
    return peers.run_findscu(appliance.port, "MINRIS", calling, keys or CT1_KEYS)


def traced(appliance):
    """The lines of the trace after saving what has gathered."""
    job_save_queries(appliance.appliance)
    return appliance.read(kept)


def test_every_query_of_a_device_is_traced_with_its_answers(appliance):
    appliance.schedule(item(), item(name="Li^Na=李^娜"))
    for _ in range(3):
        ask(appliance)
    [line] = traced(appliance)
    assert (line.ae_title, line.address, line.count, line.answers) == ("CT1", "127.0.0.1", 3, 2)


def test_a_query_that_was_refused_is_traced_with_its_status(appliance):
    ask(appliance, f"{STEP_KEYS}ScheduledProcedureStepStartDate=20260230")
    [line] = traced(appliance)
    assert (line.answers, line.status) == (0, 0xA900)


def test_a_query_is_answered_while_the_store_is_being_written(appliance):
    appliance.schedule(item())
    release = threading.Event()
    busy = appliance.appliance.writer.submit(release.wait, 20)
    try:
        assert len(ask(appliance).datasets) == 1
        assert not busy.done()
    finally:
        release.set()


def test_a_trace_that_cannot_be_kept_loses_nothing_else(appliance):
    """A report of a modality in the same commit is taken, and the next query answered."""
    ask(appliance)
    appliance.write(database.execute_sql, "DROP TABLE query_trace")
    writer, release = appliance.appliance.writer, threading.Event()
    writer.submit(release.wait, 20)
    queries = appliance.appliance.dimse.queries.take()
    lost = writer.submit(save_queries, appliance.context(), queries)
    order = writer.submit(schedule, appliance.context(), from_json(item()))
    release.set()
    assert len(order.result(20)) == 1
    assert isinstance(lost.exception(20), peewee.DatabaseError)
    assert len(ask(appliance).datasets) == 1


def test_the_job_that_keeps_the_trace_fails_without_harm(appliance, caplog):
    appliance.schedule(item())
    ask(appliance)
    appliance.write(database.execute_sql, "DROP TABLE query_trace")
    [job] = [job for job in JOBS if job.name == "queries"]
    appliance.appliance.run_job(job)
    assert "job queries failed" in caplog.text
    assert len(ask(appliance).datasets) == 1


# The page


def words_of(text):
    """What a person reads of a page, in one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def part(text, number=0):
    """What the page says of one exam that was found: words, one string."""
    return words_of(text.split("<section>")[1 + number])


def why_page(web, text="Wang"):
    """The page asked for a patient."""
    answer = web.get("/why", params={"q": text})
    assert answer.status_code == 200
    return answer.text


def clicks(text):
    """The forms that mend, as their fields."""
    forms = re.findall(r'<form method="post" action="/why/mend">(.*?)</form>', text, re.S)
    return [dict(re.findall(r'name="(\w+)" value="([^"]*)"', html.unescape(f))) for f in forms]


def click(web, text):
    """Press the one button that mends."""
    [fields] = clicks(text)
    answer = web.post("/why/mend", data=fields)
    assert answer.status_code == 303
    return answer


def found_by(appliance, *keys, calling="CT1"):
    return [str(ds.PatientName) for ds in ask(appliance, *keys, calling=calling).datasets]


def test_a_step_under_the_wrong_ae_title_is_mended_by_one_click(appliance, web):
    """Issue: the trace names the key; one click mends it; the next query finds it."""
    appliance.schedule(item(name="Wang^Fang", ScheduledStationAETitle="CT9"))
    assert found_by(appliance) == []
    text = why_page(web)
    assert "It asked for Scheduled Station AE Title CT1; the exam has CT9." in part(text)
    click(web, text)  # no machine is registered under that title
    assert found_by(appliance) == ["Wang^Fang"]


def test_after_the_click_the_page_says_that_it_is_found(appliance, web):
    appliance.schedule(item(ScheduledStationAETitle="CT9"))
    ask(appliance)
    click(web, why_page(web))
    text = why_page(web)
    assert "It is found." in part(text)
    assert clicks(text) == []


def test_a_stray_step_takes_the_modality_of_the_machine_it_is_given_to(appliance, web):
    keys = (*CT1_KEYS, f"{STEP_KEYS}Modality=CT")
    appliance.schedule(item(name="Wang^Fang", ScheduledStationAETitle="US9", Modality="US"))
    assert found_by(appliance, *keys) == []
    click(web, why_page(web))
    assert found_by(appliance, *keys) == ["Wang^Fang"]


def test_only_the_exam_s_own_machine_offers_a_change(appliance, web):
    appliance.schedule(item(ScheduledStationAETitle="US1", Modality="US"))
    ask(appliance, *CT1_KEYS, f"{STEP_KEYS}Modality=CT")
    ask(appliance, "PatientName", f"{STEP_KEYS}Modality=CT", calling="UNKNOWN")
    text = why_page(web)
    assert "It asked for Modality CT; the exam has US." in part(text)
    assert clicks(text) == []


@pytest.mark.parametrize(
    ("keyword", "asked", "registered"),
    [("Modality", "MR", "CT"), ("ScheduledStationAETitle", "US1", "CT1")],
)
def test_a_machine_s_wrong_filter_is_named_and_no_exam_is_changed_to_it(
    appliance, web, keyword, asked, registered
):
    appliance.schedule(item())
    ask(appliance, "PatientName", f"{STEP_KEYS}{keyword}={asked}")
    text = why_page(web)
    words = f"The machine's filter is set to {asked}, and it is registered with {registered}"
    assert words in part(text)
    assert clicks(text) == []


def test_a_day_that_has_passed_is_not_offered(appliance, web):
    appliance.schedule(item(ScheduledProcedureStepStartDate=appliance.context().today()))
    ask(appliance, "PatientName", f"{STEP_KEYS}ScheduledProcedureStepStartDate=20260701")
    assert clicks(why_page(web)) == []


def test_today_s_exams_come_first_and_two_of_one_patient_are_told_apart(appliance, web):
    now = appliance.context().local_now()
    for days, exam in ((-3, "Abdomen"), (8, "Knee"), (0, "Chest"), (0, "Head")):
        day = f"{now + datetime.timedelta(days=days):%Y%m%d}"
        appliance.schedule(item(ScheduledProcedureStepStartDate=day,
                                RequestedProcedureDescription=exam))  # fmt: skip
    text = why_page(web)
    shown = [re.search("Chest|Head|Abdomen|Knee", part(text, number))[0] for number in range(4)]
    assert set(shown[:2]) == {"Chest", "Head"}
    assert shown[2:] == ["Abdomen", "Knee"]


def test_an_exam_that_was_changed_meanwhile_is_asked_about(appliance, web):
    [step] = appliance.schedule(item(name="Wang^Fang", ScheduledStationAETitle="CT9"))
    ask(appliance)
    [fields] = clicks(why_page(web))
    inner = step.item("ScheduledProcedureStepSequence")
    keys = step.get("StudyInstanceUID"), inner.get("ScheduledProcedureStepID")
    appliance.write(change_step, appliance.context(), "cancel", *keys)
    assert web.post("/why/mend", data=fields).status_code == 409


@pytest.mark.parametrize(
    ("keyword", "asked", "has"),
    [
        ("Modality", "CT", "MR"),
        ("ScheduledProcedureStepStartDate", "20990705", "20990706"),
    ],
)
def test_another_key_of_the_schedule_is_mended_by_one_click(appliance, web, keyword, asked, has):
    keys = ("PatientName", f"{STEP_KEYS}{keyword}={asked}")
    appliance.schedule(item(name="Wang^Fang", **{keyword: has}))
    assert found_by(appliance, *keys) == []
    click(web, why_page(web))
    assert found_by(appliance, *keys) == ["Wang^Fang"]


@pytest.fixture
def hyphenated(run_appliance):
    """A clinic whose CT has a hyphen in its AE title, as many have."""
    return run_appliance("[device CT basement]\nae_title = CT-BASEMENT\nmodality = CT\n")


def test_an_ae_title_with_a_hyphen_is_no_range(hyphenated):
    keys = ("PatientName", f"{STEP_KEYS}ScheduledStationAETitle=CT-BASEMENT")
    hyphenated.schedule(item(name="Wang^Fang", ScheduledStationAETitle="CT9"))
    assert found_by(hyphenated, *keys, calling="CT-BASEMENT") == []
    with client_of(hyphenated) as web:
        click(web, why_page(web))
    assert found_by(hyphenated, *keys, calling="CT-BASEMENT") == ["Wang^Fang"]


@contextlib.contextmanager
def client_of(appliance, role="admin"):
    """An HTTP client of an appliance with a token."""
    headers = {"Authorization": f"Bearer {appliance.token(role)}"}
    with httpx.Client(base_url=appliance.url, headers=headers, trust_env=False) as client:
        yield client


@pytest.mark.parametrize(
    ("keyword", "asked"),
    [
        ("ScheduledProcedureStepStartDate", "20260706-20260709"),
        ("ScheduledProcedureStepStartDate", "-20260704"),
        ("ScheduledStationAETitle", "MR*"),
        ("ScheduledStationAETitle", "MR?"),
    ],
)
def test_what_was_asked_for_as_a_range_or_pattern_is_named_and_not_given(
    appliance, web, keyword, asked
):
    appliance.schedule(item())
    ask(appliance, "PatientName", f"{STEP_KEYS}{keyword}={asked}")
    text = why_page(web)
    assert f" {asked}; the exam has" in part(text)
    assert clicks(text) == []


def test_a_key_of_the_patient_is_named_and_not_mended(appliance, web):
    appliance.schedule(item(PatientID="P000042"))
    ask(appliance, "PatientID=P000024")
    text = why_page(web)
    assert "It asked for Patient ID P000024; the exam has P000042." in part(text)
    assert clicks(text) == []


def test_a_cancelled_exam_is_put_back_by_one_click(appliance, web):
    [step] = appliance.schedule(item(name="Wang^Fang"))
    inner = step.item("ScheduledProcedureStepSequence")
    keys = step.get("StudyInstanceUID"), inner.get("ScheduledProcedureStepID")
    appliance.write(change_step, appliance.context(), "cancel", *keys)
    assert found_by(appliance) == []
    text = why_page(web)
    assert "The exam is Cancelled; that is not shown to devices." in part(text)
    click(web, text)
    assert found_by(appliance) == ["Wang^Fang"]


def test_an_exam_that_is_done_is_not_put_back(appliance, web):
    appliance.schedule(item(ScheduledProcedureStepStatus="COMPLETED"))
    ask(appliance)
    text = why_page(web)
    assert "The exam is Done; that is not shown to devices." in part(text)
    assert clicks(text) == []


def test_an_exam_that_has_begun_is_not_moved(appliance, web):
    [step] = appliance.schedule(
        item(ScheduledStationAETitle="CT9", ScheduledProcedureStepStatus="STARTED")
    )
    ask(appliance)
    assert clicks(why_page(web)) == []
    row = appliance.read(step_known, step.get("StudyInstanceUID"))
    fields = {"step": row, "keyword": "ScheduledStationAETitle", "value": "CT1"}
    assert web.post("/why/mend", data=fields).status_code == 409
    assert found_by(appliance) == []


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "NoSuchKeyword", ""])
def test_only_what_is_offered_can_be_mended(appliance, web, keyword):
    [step] = appliance.schedule(item())
    row = appliance.read(step_known, step.get("StudyInstanceUID"))
    fields = {"step": row, "keyword": keyword, "value": "P9"}
    assert web.post("/why/mend", data=fields).status_code == 422
    assert appliance.read(get_step, row) == bytes(step)


def test_what_the_device_s_own_profile_hides_is_named(run_appliance):
    appliance = run_appliance("[device CT room]\nown_steps_only = yes\n")
    appliance.schedule(item(ScheduledStationAETitle="DX1", Modality="DX"))
    ask(appliance, "PatientName")
    with client_of(appliance) as web:
        words = part(why_page(web))
    assert "Scheduled Station AE Title CT1; the exam has DX1." in words


def test_the_days_that_a_device_is_shown_are_named(run_appliance):
    appliance = run_appliance("[device CT room]\ndays_back = 0\ndays_ahead = 1\n")
    appliance.schedule(item(ScheduledProcedureStepStartDate="20200101"))
    ask(appliance, "PatientName")
    with client_of(appliance) as web:
        words = part(why_page(web))
    today = appliance.context().local_now()
    tomorrow = today + datetime.timedelta(days=1)
    asked = f"{today:%Y%m%d}-{tomorrow:%Y%m%d}"
    assert f"Scheduled Procedure Step Start Date {asked}; the exam has 1 Jan 2020." in words


def test_a_query_that_was_refused_is_named_as_the_reason(appliance, web):
    appliance.schedule(item())
    ask(appliance, f"{STEP_KEYS}ScheduledProcedureStepStartDate=20260230")
    words = part(why_page(web))
    assert "The query was refused: " in words
    assert "20260230" in words


@pytest.mark.parametrize(
    "text", ["wang xiaodong", "Xiao Dong", "王小东", "P000042", "2607059001", " P000042 "]
)
def test_a_patient_is_searched_by_name_in_any_spelling_id_or_accession_number(appliance, web, text):
    appliance.schedule(
        item(PatientID="P000042", AccessionNumber="2607059001"), item(name="Li^Na=李^娜")
    )
    assert part(why_page(web, text)).startswith("Wang XiaoDong 王小东")
    assert "5 Jul 2026 09:30, 2607059001" in part(why_page(web, text))


def test_nobody_of_that_name_is_said(appliance, web):
    appliance.schedule(item())
    assert "No patient found." in words_of(why_page(web, "Schmidt"))


def test_that_no_device_has_asked_is_said(appliance, web):
    appliance.schedule(item())
    assert "No device has asked for a worklist." in part(why_page(web))


def test_every_device_that_asked_is_judged_by_itself(appliance, web):
    appliance.schedule(item())
    ask(appliance, "PatientName", f"{STEP_KEYS}Modality=US", calling="US1")
    ask(appliance)
    words = part(why_page(web))
    assert re.search(r"CT1 \d+ \w+ \d{4} \d\d:\d\d It is found\.", words)
    assert re.search(
        r"US1 \d+ \w+ \d{4} \d\d:\d\d It asked for Modality US; the exam has CT\.", words
    )


def test_the_page_lists_what_devices_asked_for_and_how_many_answers_they_had(appliance, web):
    appliance.schedule(item(), item(name="Li^Na=李^娜"))
    for _ in range(3):
        ask(appliance, "PatientName", *CT1_KEYS[1:], f"{STEP_KEYS}Modality=CT")
    words = words_of(web.get("/why").text)
    line = r"CT1 127\.0\.0\.1 .* \d\d:\d\d 3 2 (.*)$"
    assert "Modality CT" in re.search(line, words)[1]
    assert "Scheduled Station AE Title CT1" in re.search(line, words)[1]


def test_markup_in_a_query_is_shown_as_text(appliance, web):
    ask(appliance, "PatientName=<b>Wang</b>")
    text = web.get("/why").text
    assert "<b>Wang" not in text
    assert "<b>Wang</b>" in html.unescape(text)


def test_queries_older_than_they_are_kept_explain_nothing(appliance, web):
    appliance.schedule(item())
    ask(appliance)
    traced(appliance)
    old = appliance.context().stamp(days=-8)
    appliance.write(database.execute_sql, "UPDATE query_trace SET last_at = ?", (old,))
    assert "No device has asked for a worklist." in part(why_page(web))


def test_the_board_s_exam_leads_to_its_reason(appliance, web):
    [step] = appliance.schedule(item(ScheduledStationAETitle="CT9"))
    ask(appliance)
    row = appliance.read(step_known, step.get("StudyInstanceUID"))
    [path] = re.findall(r'href="(/why\?q=[^"]+)"', web.get(f"/step/{row}").text)
    assert "the exam has CT9." in part(web.get(path).text)


def test_reception_mends_it_in_a_browser(appliance):
    """Issue: a step asked for under the wrong AE title; one click."""
    appliance.schedule(item(name="Wang^Fang", ScheduledStationAETitle="CT9"))
    assert found_by(appliance) == []
    context = appliance.context()
    secret = appliance.write(
        lambda: open_session(
            context, User.create(name="anna", role="desk", password="-", created_at="").id
        )
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=peers.chromium(), args=["--no-sandbox"]
        )
        visit = browser.new_context()
        visit.add_cookies([{"name": appliance.cookie, "value": secret, "url": appliance.url}])
        page = visit.new_page()
        page.goto(f"{appliance.url}/why?q=Wang")
        page.get_by_role("button", name="Give the exam CT1").click()
        page.get_by_text("Fixed: the next query of the device finds the exam.").wait_for()
        browser.close()
    assert found_by(appliance) == ["Wang^Fang"]
