"""Imports in slices: checked whole first, all or nothing, a repeat adds nothing."""

import concurrent.futures
import json
import re
import time

import httpx
import pytest
from conftest import item
from test_imports_long import csv_of
from test_store import Gate

from minris.appliance.store_commands import LARGEST_EXPORT
from minris.cli import CommandError, run_store_command
from minris.dataset.elements import ElementIndex, text_elements
from minris.housekeeping.retention import purge
from minris.interchange import imports
from minris.interchange.imports import (
    How,
    Importer,
    enter_file,
    import_now,
    known_import,
    open_imports,
    want_import,
)
from minris.orders.patients import correct_patient
from minris.orders.scheduling import schedule
from minris.standard.status import Refusal, Status
from minris.store.models import (
    ImportedFile,
    ImportedPatient,
    Patient,
    RequestedProcedure,
    ScheduledProcedureStep,
)
from minris.store.rows import fetch_rows


class Killed(BaseException):
    """The process ends here."""


def at_once(core, *arguments):
    return core(*arguments)


def killed_at(number):
    """Runs core functions until the so manieth, which is not run any more."""
    count = iter(range(number))

    def call(core, *arguments):
        if next(count, None) is None:
            raise Killed
        return core(*arguments)

    return call


@pytest.fixture
def small_slices(monkeypatch):
    """One item in a slice."""
    monkeypatch.setattr(imports, "SLICE_S", 0.0)


def count(model=ScheduledProcedureStep):
    return model.select().count()


def entered(ctx, content, how=How(), name="day.csv", wanted=True):
    return enter_file(ctx, name, content, how, wanted)


def worked(ctx, number, call=at_once):
    Importer(lambda actor: ctx, call).work(number)
    return known_import(number)


def json_of(*items):
    return json.dumps(items).encode()


def test_the_same_file_given_again_adds_nothing(ctx):
    content = csv_of(3).encode()
    assert import_now(ctx, "day.csv", content).startswith("day.csv: Imported: 3;")
    words = import_now(ctx, "other name.csv", content)
    assert "imported already" in words
    assert count() == 3


def test_the_same_file_is_added_again_where_that_is_wanted(ctx):
    content = csv_of(3).encode()
    import_now(ctx, "day.csv", content)
    assert import_now(ctx, "day.csv", content, again=True).startswith("day.csv: Imported: 3;")
    assert count() == 6


def test_a_file_that_was_refused_may_be_given_again(ctx):
    content = csv_of(1).replace("1980-01-01", "1980-02-31").encode()
    for _ in range(2):
        with pytest.raises(Refusal):
            import_now(ctx, "day.csv", content)


@pytest.mark.parametrize("at", range(1, 14))
def test_an_import_that_was_killed_goes_on_and_doubles_and_loses_nothing(ctx, small_slices, at):
    """Killed at each of its writes: whoever repeats it, and the next start, find the same."""
    content = csv_of(5).encode()
    number = entered(ctx, content)
    try:
        worked(ctx, number, killed_at(at))
    except Killed:
        assert open_imports() == [number]
    assert entered(ctx, content) == number
    assert worked(ctx, number).state == "done"
    assert "imported already" in import_now(ctx, "day.csv", content)
    assert [count(), count(Patient)] == [5, 5]


def test_a_file_is_forgotten_when_it_is_imported(ctx):
    """It holds patients' data, and may be large."""
    number = entered(ctx, csv_of(3).encode())
    worked(ctx, number)
    assert [bytes(one.content) for one in fetch_rows(ImportedFile, "1 = 1")] == [b""]


def test_a_file_is_checked_whole_before_anything_of_it_is_there(ctx, small_slices):
    """Its last row is wrong, and contradicts its first."""
    first = item(StudyInstanceUID="2.25.1", PatientID="A")
    last = item(StudyInstanceUID="2.25.1", PatientID="B", name="Li^Na")
    seen = []

    def call(core, *arguments):
        seen.append(count())
        return core(*arguments)

    content = json_of(first, *(item(PatientID=f"P{n}") for n in range(5)), last)
    one = worked(ctx, entered(ctx, content, name="a.json"), call)
    assert one.state == "refused"
    assert "item 7: " in json.loads(one.problem)[1]
    assert set(seen) == {0}


def test_what_came_in_between_and_contradicts_takes_the_import_back(ctx, small_slices):
    content = json_of(
        *(item(PatientID=f"P{n}", name=f"Doe^{n}") for n in range(4)),
        item(StudyInstanceUID="2.25.7", PatientID="P9"),
    )
    number = entered(ctx, content, name="a.json")
    with pytest.raises(Killed):
        worked(ctx, number, killed_at(9))  # two items are there
    assert known_import(number).done == 2
    ours = item(StudyInstanceUID="2.25.7", PatientID="P8", name="Li^Na")
    schedule(ctx, imports.read_items("b.json", json_of(ours))[0])
    one = worked(ctx, number)
    assert one.state == "taken back"
    assert "item 5: " in json.loads(one.problem)[1]
    assert [count(model) for model in (ScheduledProcedureStep, RequestedProcedure, Patient)] == [
        1
    ] * 3
    assert Patient.get().patient_id == "P8"


def test_an_exam_that_has_begun_is_not_taken_back(ctx, small_slices):
    content = json_of(*(item(PatientID=f"P{n}", name=f"Doe^{n}") for n in range(4)))
    number = entered(ctx, content, name="a.json")
    with pytest.raises(Killed):
        worked(ctx, number, killed_at(8))
    begun = ScheduledProcedureStep.get()
    ScheduledProcedureStep.update(status="STARTED").where(
        ScheduledProcedureStep.id == begun.id
    ).execute()
    Importer(lambda actor: ctx, at_once).fail(number, Refusal(Status.PROCESSING_FAILURE, "Wrong"))
    assert [one.id for one in ScheduledProcedureStep.select()] == [begun.id]


def test_old_imports_are_forgotten(ctx):
    number = entered(ctx, csv_of(1).encode())
    worked(ctx, number)
    entered(ctx, b"looked at", wanted=False)
    purge(ctx)
    assert count(ImportedFile) == 2
    later = ctx.now()
    import dataclasses
    import datetime

    purge(dataclasses.replace(ctx, now=lambda: later + datetime.timedelta(days=2)))
    assert [one.id for one in ImportedFile.select()] == [number]
    purge(dataclasses.replace(ctx, now=lambda: later + datetime.timedelta(days=31)))
    assert count(ImportedFile) == 0


def test_twenty_files_are_looked_at_at_most(ctx):
    for n in range(30):
        entered(ctx, b"%d" % n, wanted=False)
    assert count(ImportedFile) == imports.LOOKED_AT


# Beside a running appliance


def test_a_file_of_any_size_is_imported_beside_a_running_appliance(run_appliance, tmp_path):
    """By its path: a body has a limit."""
    appliance = run_appliance("[web]\nmaximum_body = 65536")
    content = csv_of(1100).encode()
    assert len(content) > 65536
    words = run_store_command(appliance.config, "import", name="all.csv", content=content)
    assert words.startswith("all.csv: Imported: 1100;")
    assert not list(tmp_path.glob("*to-import*"))
    again = run_store_command(appliance.config, "import", name="all.csv", content=content)
    assert "imported already" in again
    assert appliance.read(count) == 1100


def test_others_write_between_the_slices_of_an_import(appliance, monkeypatch):
    monkeypatch.setattr(imports, "SLICE_S", 0.01)
    content = csv_of(300).encode()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        done = pool.submit(
            run_store_command, appliance.config, "import", name="a.csv", content=content
        )
        others = 0
        while not done.done():
            appliance.write(len, "")
            others += 1
        assert done.result().startswith("a.csv: Imported: 300;")
    assert others > 10


def test_an_import_that_a_stop_interrupts_is_finished_after_the_next_start(
    run_appliance, monkeypatch
):
    monkeypatch.setattr(imports, "SLICE_S", 0.0)
    appliance = run_appliance()
    number = appliance.write(
        enter_file, appliance.context(), "a.csv", csv_of(300).encode(), How(), True
    )
    appliance.appliance.imports.start(number)
    appliance.stop()
    assert appliance.read(known_import, number).state in ("checking", "importing")
    again = run_appliance()
    assert again.appliance.imports.wait(number, 60).state == "done"
    assert again.read(count) == 300


def test_a_large_export_is_not_imported_beside_a_running_appliance(appliance):
    """It would hold up everybody, and cannot be taken back."""
    content = b'{"minris": "0.1.0", "worklist": []' + b" " * LARGEST_EXPORT + b"}"
    with pytest.raises(CommandError, match="stop minris, import it"):
        run_store_command(appliance.config, "import", name="all.json", content=content)


def items(number, **texts):
    return [item(PatientID=f"P{n}", name=f"Doe^{n}", **texts) for n in range(number)]


def test_many_items_are_scheduled_by_one_request_and_a_repeat_adds_none(web, appliance):
    for _ in range(2):
        answer = web.post("/api/worklist", json=items(150))
        while answer.status_code == 202:
            answer = web.get(answer.headers["Location"])
        assert answer.status_code in (200, 201)
        found = [one["00100020"]["Value"][0] for one in answer.json()]
        assert found == [f"P{n}" for n in range(150)]
    assert appliance.read(count) == 150


def test_many_items_of_which_one_is_wrong_are_refused_whole(web, appliance):
    wrong = [*items(150), item(PatientBirthDate="19800231")]
    answer = web.post("/api/worklist", json=wrong)
    while answer.status_code == 202:
        answer = web.get(answer.headers["Location"])
    assert answer.status_code == 400
    assert "item 151: " in answer.json()["error"]
    assert appliance.read(count) == 0


def test_a_request_that_takes_long_is_told_where_its_result_will_be(web, appliance, monkeypatch):
    monkeypatch.setattr("minris.web.api.WAIT_S", 0.0)
    gate_opened = Gate(appliance.appliance.writer)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        posted = pool.submit(web.post, "/api/worklist", json=items(150))
        time.sleep(0.2)
        gate_opened.open()
        answer = posted.result()
    while answer.status_code == 202:
        assert answer.json()["state"] in ("checking", "importing")
        where = answer.headers["Location"]
        answer = web.get(where)
    assert len(answer.json()) == 150


def test_an_import_is_of_no_concern_to_another_login(web, appliance, monkeypatch):
    number = appliance.write(
        enter_file, appliance.context("desk 1"), "a.csv", csv_of(1).encode(), How(), True
    )
    headers = {"Authorization": f"Bearer {appliance.token('desk')}"}
    with httpx.Client(base_url=appliance.url, headers=headers, trust_env=False) as other:
        assert other.get(f"/api/imports/{number}").status_code == 404
        assert other.get(f"/import?number={number}").status_code == 404
        assert other.get(f"/api/imports/{'9' * 20}").status_code == 404  # nobody's


def test_a_page_says_that_a_file_was_imported_before(web, appliance):
    upload = {"upload": ("day.csv", csv_of(2).encode(), "text/csv")}
    shown = web.post("/import", files=upload)
    number = re.search(r'name="number" value="(\d+)"', shown.text)[1]
    assert "imported already" not in shown.text
    assert web.post("/import", data={"number": number, "confirmed": "yes"}).status_code == 303
    shown = web.post("/import", files=upload)
    assert "imported already" in shown.text
    assert appliance.read(count) == 2


def test_a_page_shows_how_far_a_long_import_is(web, appliance, monkeypatch):
    monkeypatch.setattr("minris.pages.patients.files.PATIENCE_S", 0.0)
    monkeypatch.setattr(imports, "SLICE_S", 0.0)
    answer = web.post("/import", files={"upload": ("day.csv", csv_of(100).encode(), "text/csv")})
    assert "Checking day.csv" in answer.text
    where = answer.headers["Refresh"].partition("url=")[2]
    while "Refresh" in answer.headers:
        answer = web.get(where)
    assert "100 rows" in answer.text


def test_an_import_that_is_taken_back_gives_patients_back_what_it_changed(ctx, small_slices):
    known = [item(PatientID=f"P{n}", name=f"Doe^{n}", PatientWeight="70") for n in range(3)]
    for one in known:
        schedule(ctx, imports.read_items("b.json", json_of(one))[0])
    before = [bytes(row.data) for row in Patient.select().order_by(Patient.id)]
    content = json_of(
        *(item(PatientID=f"P{n}", name=f"Doe^{n}", PatientWeight="80") for n in range(3)),
        item(StudyInstanceUID="2.25.7", PatientID="P9"),
    )
    number = entered(ctx, content, name="a.json")
    with pytest.raises(Killed):
        worked(ctx, number, killed_at(9))
    changed = [bytes(row.data) for row in Patient.select().order_by(Patient.id)]
    assert changed[:2] != before[:2]
    correct_patient(ctx, 2, bytes(text_elements(PatientComments="changed by a person since")))
    ours = item(StudyInstanceUID="2.25.7", PatientID="P8", name="Li^Na")
    schedule(ctx, imports.read_items("b.json", json_of(ours))[0])
    one = worked(ctx, number)
    assert one.state == "taken back"
    after = [bytes(row.data) for row in Patient.select().order_by(Patient.id)]
    assert (after[0], after[2]) == (before[0], before[2])
    assert ElementIndex(after[1]).get("PatientWeight") == "80"
    assert "patients stay as the import left them" in json.loads(one.problem)[1]
    assert fetch_rows(ImportedPatient, "1 = 1") == []


def test_a_file_that_is_being_imported_is_not_added_twice_from_the_page(ctx, small_slices):
    """The page was sent again after a restart, while the first import goes on."""
    content = json_of(*(item(PatientID=f"P{n}", name=f"Doe^{n}") for n in range(4)))
    number = entered(ctx, content, name="a.json")
    with pytest.raises(Killed):
        worked(ctx, number, killed_at(7))
    again = enter_file(ctx, "a.json", content, How(), False)
    assert again != number
    assert want_import(ctx, again) == number
    assert worked(ctx, number).state == "done"
    assert count() == 4
    assert want_import(ctx, again) == again  # wanted though it is known to be there
