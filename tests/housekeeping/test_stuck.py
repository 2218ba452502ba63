"""Section 13: what is stuck in any service, and the erasure of a patient's data."""

import dataclasses
import datetime
import re
import sqlite3

import pytest
from archive import series
from conftest import item
from test_commitment import ask, noon  # noqa: F401 (a fixture)
from test_mpps import change as report
from test_mpps import create, creation, creation_for, ending, schedule, unscheduled_item
from test_pages import csrf_of, employ, visiting, words_of
from test_workitem_retention import UID, claim, workitem

from minris.access.context import Actor, audit_lines, check_audit
from minris.dataset.elements import text_elements
from minris.housekeeping.erasing import erase_patient, former_ids
from minris.housekeeping.stuck import STUCK, end_leftover, orphans
from minris.images.arrivals import settle_study
from minris.images.commitment import drop_commitment, judged_instances
from minris.mpps.linking import settle_unscheduled
from minris.orders.lookup import step_row
from minris.orders.patients import correct_patient, merge_patients
from minris.orders.trace import QueryLog, save_queries, save_shown
from minris.pages.machines.stuck import ORPHANS
from minris.standard.status import Refusal, Status
from minris.store.models import Commitment, Patient, database
from minris.store.rows import fetch_rows, update_row

DAY_BEFORE = "20260704"


def kinds(ctx):
    return {one.kind: one for one in orphans(ctx)}


def images_of(ctx, study, count=2):
    """An archive tells of images of a study."""
    for number in range(count):
        database.execute_sql(
            "INSERT INTO availability (sop_instance_uid, retrieve_ae_title, sop_class_uid,"
            " study_instance_uid, series_instance_uid, availability, who, at)"
            " VALUES (?, 'PACS', '1.2', ?, '2.25.1', 'ONLINE', 'PACS', ?)",
            (f"{study}.{number}", study, ctx.stamp(hours=-1)),
        )


# What is listed.


def test_an_exam_of_a_day_before_is_listed_until_someone_says_what_became_of_it(ctx):
    schedule(ctx, ScheduledProcedureStepStartDate=DAY_BEFORE)
    one = kinds(ctx)["leftover"]
    assert one.known.startswith(DAY_BEFORE)
    end_leftover(ctx, int(one.uid), "Called: has another date")
    assert kinds(ctx) == {}
    assert step_row(1).status == "NO SHOW"


def test_an_exam_of_today_is_no_leftover(ctx):
    schedule(ctx, ScheduledProcedureStepStartDate=ctx.today())
    assert kinds(ctx) == {}
    with pytest.raises(Refusal, match="no longer needs attention"):
        end_leftover(ctx, 1, "Because")


def test_what_was_performed_without_an_order_is_listed_until_settled(ctx):
    create(ctx, creation())
    one = kinds(ctx)["unscheduled"]
    assert (one.about, one.known) == ("CT1", "IN PROGRESS")
    settle_unscheduled(ctx, int(one.uid), "Phantom")
    assert "unscheduled" not in kinds(ctx)


def test_images_for_no_order_are_listed_until_settled(ctx):
    step = schedule(ctx, ScheduledProcedureStepStartDate=ctx.today())
    images_of(ctx, step.get("StudyInstanceUID"))
    assert kinds(ctx) == {}
    images_of(ctx, "2.25.99", count=3)
    one = kinds(ctx)["images"]
    assert (one.uid, one.about, one.known) == ("2.25.99", "PACS", "3")
    settle_study(ctx, "2.25.99", "Films of another clinic")
    assert kinds(ctx) == {}


def test_images_that_are_not_there_cannot_be_settled(ctx):
    with pytest.raises(Refusal) as refusal:
        settle_study(ctx, "2.25.1", "Because")
    assert refusal.value.status is Status.NO_SUCH_SOP_INSTANCE


def test_a_machine_that_was_not_told_about_its_images_is_listed_until_dropped(noon):  # noqa: F811
    images = series(1)
    one = ask(noon, images)
    assert "commitment" not in kinds(noon)
    update_row(Commitment, one, state="given up")
    listed = kinds(noon)["commitment"]
    assert (listed.uid, listed.about) == ("2.25.900", "CT1")
    drop_commitment(noon, listed.uid, "The CT was sold")
    assert "commitment" not in kinds(noon)
    assert judged_instances(one) == []
    with pytest.raises(Refusal):
        drop_commitment(noon, listed.uid, "Again")


@pytest.mark.parametrize(("minutes", "listed"), [(9, False), (11, True)])
def test_a_judgement_that_cannot_be_told_is_listed_after_a_while(noon, minutes, listed):  # noqa: F811
    one = ask(noon, series(1))
    at = noon.stamp(minutes=-minutes)
    update_row(Commitment, one, state="judged", judged_at=at)
    assert ("commitment" in kinds(noon)) == listed


@pytest.mark.parametrize(
    "deed",
    [
        lambda ctx: end_leftover(ctx, 1, " "),
        lambda ctx: settle_study(ctx, "2.25.1", ""),
        lambda ctx: drop_commitment(ctx, "2.25.900", ""),
        lambda ctx: erase_patient(ctx, 1, " "),
    ],
)
def test_nothing_is_done_without_a_reason(ctx, deed):
    schedule(ctx, ScheduledProcedureStepStartDate=DAY_BEFORE)
    with pytest.raises(Refusal, match="A reason is needed"):
        deed(ctx)


def test_the_reason_is_in_the_audit_log(ctx):
    schedule(ctx, ScheduledProcedureStepStartDate=DAY_BEFORE)
    end_leftover(ctx, 1, "Called: has another date")
    assert [line.what for line in audit_lines("another date")] == ["reason"]


# The page.


@pytest.fixture
def stuck_box(appliance):
    """An appliance with one thing stuck of each kind that needs no device."""
    appliance.schedule(item(ScheduledProcedureStepStartDate=DAY_BEFORE))
    appliance.write(create, appliance.context("CT1"), creation())
    appliance.write(images_of, appliance.context(), "2.25.99")
    return appliance


def end(client, kind, uid, reason="Because"):
    form = {"csrf": csrf_of(client.get("/orphans").text), "kind": kind, "uid": uid, "about": "",
            "reason": reason}  # fmt: skip
    return client.post("/orphans", data=form)


def test_one_page_lists_what_is_stuck_in_any_service_with_what_can_be_done(stuck_box):
    with visiting(stuck_box) as client:
        page = employ(stuck_box, client, "technologist").get("/orphans")
        words = words_of(page)
        for known in ("Exam of an earlier day, not started", "Performed without an order",
                      "Images without an order", "2 images", "4 Jul 2026"):  # fmt: skip
            assert known in words
        for kind, uid in (("leftover", "1"), ("unscheduled", "1"), ("images", "2.25.99")):
            assert end(client, kind, uid).status_code == 303
        assert "Nothing needs attention." in words_of(client.get("/orphans"))


@pytest.mark.parametrize("kind", ["leftover", "unscheduled", "images"])
def test_reception_ends_nothing_here(stuck_box, kind):
    with visiting(stuck_box) as client:
        employ(stuck_box, client, "desk")
        token = csrf_of(client.get("/register").text)
        form = {"csrf": token, "kind": kind, "uid": "1", "reason": "Because"}
        assert client.post("/orphans", data=form).status_code == 403


@pytest.mark.parametrize(
    ("kind", "uid"), [("leftover", "x"), ("leftover", "99"), ("nothing", "1"), ("images", "2.25.5")]
)
def test_what_is_not_stuck_is_not_ended(stuck_box, kind, uid):
    with visiting(stuck_box) as client:
        employ(stuck_box, client, "admin")
        assert end(client, kind, uid).status_code in (404, 422)


def test_every_kind_has_its_row_in_the_table():
    listed = {re.search("SELECT '([a-z ]+)'", sql)[1] for _, sql in STUCK}
    assert listed == set(ORPHANS)


# The erasure of a patient's data.


def rows_with(path, *texts):
    """Where a store has any of some texts: its file, byte for byte."""
    content = path.read_bytes()
    return [text for text in texts if text.encode() in content]


@pytest.fixture
def visited(ctx):
    """A patient with an exam that was performed, a workitem, a query, and another patient."""
    step = schedule(ctx, PatientID="P1")
    create(ctx, creation_for(step))
    report(ctx, ending())
    workitem(ctx, PatientID="P1")
    keys = text_elements(PatientName="Wang^XiaoDong", PatientID="P1")
    log = QueryLog()
    log.note(ctx.by(Actor("CT1")), bytes(keys), b"", 1, Status.SUCCESS)
    save_queries(ctx, log.take())
    save_shown([(1, "CT1", ctx.stamp())])
    schedule(ctx, PatientID="P2", PatientName="Li^Na=李^娜")
    return ctx


def counts():
    tables = ("patient", "requested_procedure", "scheduled_procedure_step", "scheduled_station",
              "performed_procedure_step", "performed_scheduled_step", "workitem", "query_trace",
              "workitem_event", "step_seen")  # fmt: skip
    return {
        table: database.execute_sql(f"SELECT count(*) FROM {table}").fetchone()[0]
        for table in tables
    }


def test_all_of_a_patient_is_erased_and_nothing_of_others(visited):
    erase_patient(visited, 1, "Asked for it in writing")
    assert counts() == {
        "patient": 1, "requested_procedure": 1, "scheduled_procedure_step": 1,
        "scheduled_station": 1, "performed_procedure_step": 0, "performed_scheduled_step": 0,
        "workitem": 0, "query_trace": 0, "workitem_event": 0, "step_seen": 0,
    }  # fmt: skip
    [line] = audit_lines("patient erased")
    assert "Asked for it in writing" in line.detail
    assert check_audit().broken is None


def test_the_name_is_gone_from_the_file(visited, config):
    database.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    assert rows_with(config.store_path, "XiaoDong", "小东") == ["XiaoDong", "小东"]
    erase_patient(visited, 1, "Asked for it")
    database.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    assert rows_with(config.store_path, "XiaoDong", "小东") == []
    assert sqlite3.connect(config.store_path).execute("PRAGMA integrity_check").fetchone() == (
        "ok",
    )


def test_workitems_under_a_former_id_are_erased_too(ctx):
    schedule(ctx, PatientID="P1")
    workitem(ctx, PatientID="P1")
    correct_patient(ctx, 1, bytes(text_elements(PatientID="P9")))
    assert former_ids(fetch_rows(Patient, "id = 1")[0]) == {"P1"}
    erase_patient(ctx, 1, "Asked for it")
    assert counts()["workitem"] == 0


def test_a_former_id_that_somebody_else_has_is_not_erased(ctx):
    schedule(ctx, PatientID="P1")
    correct_patient(ctx, 1, bytes(text_elements(PatientID="P9")))
    schedule(ctx, PatientID="P1", PatientName="Li^Na=李^娜")
    workitem(ctx, PatientID="P1", PatientName="Li^Na=李^娜")
    erase_patient(ctx, 1, "Asked for it")
    assert counts()["workitem"] == 1


def test_workitems_of_who_was_merged_are_erased_too(ctx):
    schedule(ctx, PatientID="P1")
    schedule(ctx, PatientID="P8", PatientName="Wang^X")
    workitem(ctx, PatientID="P8", PatientName="Wang^X")
    merge_patients(ctx, 2, "P1", "Typed twice")
    erase_patient(ctx, 1, "Asked for it")
    assert counts()["workitem"] == 0


def test_what_was_erased_leaves_the_log_ahead_of_the_store_too(appliance):
    appliance.schedule(item("Secret^Person", PatientID="P1"))
    folder = appliance.config.store_path.parent
    with visiting(appliance) as client:
        employ(appliance, client, "admin")
        assert erasing(client, patient_id="P1", reason="Asked for it").status_code == 303
    found = [path.name for path in folder.glob("minris.db*") if b"Secret" in path.read_bytes()]
    assert found == []


def test_what_was_performed_without_an_order_is_erased_too(ctx):
    schedule(ctx, PatientID="P1")
    create(ctx, creation(unscheduled_item(), PatientID="P1", PatientName="Wang^XiaoDong"))
    erase_patient(ctx, 1, "Asked for it")
    assert counts()["performed_procedure_step"] == 0


def test_another_patient_of_the_same_id_keeps_what_is_theirs(ctx):
    schedule(ctx, PatientID="P1")
    create(ctx, creation(unscheduled_item(), PatientID="P1", PatientName="Li^Na=李^娜"))
    workitem(ctx, PatientID="P1", PatientName="Li^Na=李^娜")
    erase_patient(ctx, 1, "Asked for it")
    assert (counts()["performed_procedure_step"], counts()["workitem"]) == (1, 1)


def test_while_an_exam_is_under_way_nothing_is_erased(ctx):
    create(ctx, creation_for(schedule(ctx, PatientID="P1")))
    before = counts()
    with pytest.raises(Refusal, match="under way"):
        erase_patient(ctx, 1, "Asked for it")
    assert counts() == before


def test_while_a_workitem_is_in_progress_nothing_is_erased(ctx):
    schedule(ctx, PatientID="P1")
    workitem(ctx, PatientID="P1")
    claim(ctx, UID)
    with pytest.raises(Refusal, match="under way"):
        erase_patient(ctx, 1, "Asked for it")
    assert counts()["workitem"] == 1


def test_an_unknown_patient_is_not_erased(ctx):
    with pytest.raises(Refusal) as refusal:
        erase_patient(ctx, 7, "Asked for it")
    assert refusal.value.status is Status.NO_SUCH_SOP_INSTANCE


def erasing(client, **texts):
    page = client.get("/patient/1/erase").text
    return client.post("/patient/1/erase", data={"csrf": csrf_of(page)} | texts)


def test_an_administrator_erases_a_patient_who_types_the_id_once_more(appliance):
    appliance.schedule(item(PatientID="P1"))
    with visiting(appliance) as client:
        employ(appliance, client, "admin")
        assert "Erase this patient" in words_of(client.get("/patient/1"))
        wrong = erasing(client, patient_id="P2", reason="Asked for it")
        assert (wrong.status_code, "not the ID" in wrong.text) == (422, True)
        assert 'value="Asked for it"' in wrong.text
        assert erasing(client, patient_id="P1", reason="").status_code == 422
        assert erasing(client, patient_id="P1", reason="Asked for it").status_code == 303
        assert "Erased." in words_of(client.get("/patients"))
        assert client.get("/patient/1").status_code == 404


@pytest.mark.parametrize("role", ["desk", "technologist"])
def test_nobody_else_does(appliance, role):
    appliance.schedule(item())
    with visiting(appliance) as client:
        employ(appliance, client, role)
        assert "Erase this patient" not in client.get("/patient/1").text
        assert client.get("/patient/1/erase").status_code == 403


def test_settled_studies_come_back_when_an_order_never_does(ctx):
    """What was settled stays so: the archive tells of the same images each night."""
    images_of(ctx, "2.25.99")
    settle_study(ctx, "2.25.99", "Another clinic")
    later = dataclasses.replace(ctx, now=lambda: ctx.now() + datetime.timedelta(days=30))
    assert "images" not in kinds(later)
