"""Section 12, AVAILABILITY: arrivals in odd circumstances; two appliances that tell each other."""

import contextlib
import dataclasses
import sqlite3
import time

import pytest
from archive import AE_TITLE, series
from conftest import item, write_config
from test_arrivals import (
    COMPLETED,
    QUIET,
    SCHEDULED,
    SONO,
    STARTED,
    a_workitem,
    archive,  # noqa: F401, a fixture
    came,
    end_ct,
    images_of,
    input_item,
    input_workitem,
    judged,
    look,
    look_inside,
    none_of_others,  # noqa: F401, a fixture
    outcome,
    put_workitem,
    readiness,
    scheduled,
    series_of,
    settings,
    sono,  # noqa: F401, a fixture
    stuck,
    two,  # noqa: F401, a fixture
    watch_once,
    with_archive,
)
from test_commitment import at, create_notice, notice, notify, perform, uids
from test_delivery import (
    PATIENCE_S,
    watcher,  # noqa: F401, a fixture
    woken_alone,  # noqa: F401, a fixture
)
from test_mpps import (
    change,
    create,
    creation_for,
    ending,
    schedule,
    serving,
    state,
    unscheduled_item,
)
from test_mpps import creation as performed_creation
from test_pages import csrf_of, employ, visiting, words_of

from minris.config.ini import load_config
from minris.dataset.dicom_json import from_json
from minris.images.references import available_uids
from minris.orders import scheduling
from minris.orders.steps import change_step
from minris.standard.uids import UPS_GLOBAL_SUBSCRIPTION, new_uid
from minris.store.models import database
from minris.ups.subscriptions import subscribe

# pytest finds the fixtures of other files by these names.
# ruff: noqa: F811


# Others are told.


def found_in(path):
    """What another appliance knows of images: {(Retrieve AE, who said so): how many}."""
    sql = "SELECT retrieve_ae_title, who, count(*) FROM availability GROUP BY 1, 2"
    with contextlib.closing(sqlite3.connect(path)) as store:
        return {(title, who): count for title, who, count in store.execute(sql)}


def test_one_appliance_tells_another_what_it_found(run_appliance, archive, tmp_path):
    """The other has no archive of its own; the notice is one that an SCP of minris takes."""
    folder = tmp_path / "other"
    folder.mkdir()
    config = write_config(folder, "[dicom]\nae_title = OTHER\n[device One]\nae_title = ONE")
    with serving(config) as (_, port):
        one = run_appliance(
            settings(archive.port)
            + f"[device Other]\nae_title = OTHER\nhost = 127.0.0.1\nport = {port}\n"
            "passed_on = availability\n[dicom]\nae_title = ONE\n"
        )
        images = series(3)
        archive.store(*images[:2])
        one.write(perform, one.context("CT1"), images)
        watch_once(one)
        one.appliance.wake_delivery()
        store = load_config(config).store_path
        deadline = time.monotonic() + PATIENCE_S
        while found_in(store) != {(AE_TITLE, "ONE"): 2}:
            assert time.monotonic() < deadline, found_in(store)
            time.sleep(0.05)


@pytest.mark.usefixtures("woken_alone")
def test_a_watcher_is_told_at_once_that_a_workitem_is_ready(run_appliance, watcher):
    """Not by chance, when delivery looks for something to do every few seconds."""
    ris = watcher()
    running = run_appliance(
        settings(1, f"[device W]\nae_title = WATCH1\nhost = 127.0.0.1\nport = {ris.port}\n",
                 "look_minutes = 0")
    )  # fmt: skip
    everything = UPS_GLOBAL_SUBSCRIPTION
    running.write(subscribe, running.context(), everything, "WATCH1", False)
    running.write(input_workitem, running.context(), images := series(2))
    running.appliance.wake_delivery()
    ris.next()
    assert create_notice(running, notice(images))["status"] == 0
    assert ris.next(timeout_s=4).data.InputReadinessState == "READY"


# Exams of machines that do not report.


def test_a_machine_is_looked_for_behind_five_hundred_that_report(ctx, sono, archive):
    """A large clinic: yesterday's and today's open exams of the machines that report."""
    create(ctx, performed_creation(), new_uid())
    for _ in range(501):
        scheduling.schedule(ctx, from_json(item()), "separate")
    archive.store(*images_of(sono, 1))
    look(with_archive(ctx, archive.port))
    assert state(sono) == STARTED


def test_a_machine_asks_by_any_of_its_titles(ctx, two):
    """It stores, and asks, under another title than it is scheduled under."""
    devices = [
        dataclasses.replace(one, ae_titles=("US1", "US1_STORE")) if "US1" in one.ae_titles else one
        for one in ctx.devices
    ]
    first, second = two
    alone = second.item("ScheduledProcedureStepSequence").get("ScheduledProcedureStepID")
    sql = (
        "UPDATE scheduled_station SET ae_title = 'DX1' WHERE step_id ="
        " (SELECT id FROM scheduled_procedure_step WHERE scheduled_procedure_step_id = ?)"
    )
    database.execute_sql(sql, (alone,))
    ctx = with_archive(dataclasses.replace(ctx, devices=devices), 1)
    judged(ctx, "US1_STORE", images := images_of(first, 2), images)
    assert [outcome(one) for one in two] == [(COMPLETED, "commitment"), (SCHEDULED, "")]


def test_an_exam_ends_though_the_archive_is_not_asked_any_more(ctx, sono, archive):
    """look_minutes was set to 0 after the archive had told of its images."""
    archive.store(*images_of(sono, 1))
    look(with_archive(ctx, archive.port))
    assert state(sono) == STARTED
    look(with_archive(at(ctx, minutes=QUIET), archive.port, look_minutes=0))
    assert outcome(sono) == (COMPLETED, "archive")


def test_new_images_are_news_of_an_exam(ctx, sono):
    """An intervention of five hours at a machine that does not report is not stuck."""
    for minutes in range(0, 241, 8):
        came(at(ctx, minutes=minutes), images_of(sono, 1))
    assert state(sono) == STARTED
    assert stuck(at(ctx, minutes=244)) == []


def test_an_exam_of_unknown_begin_is_stuck_and_shown(run_appliance):
    """As of another system's export: it has begun, nobody knows when."""
    running = run_appliance()
    step = scheduled(running)
    study = step.get("StudyInstanceUID")
    sql = "UPDATE scheduled_procedure_step SET status = 'STARTED' WHERE study_instance_uid = ?"
    running.write(database.execute_sql, sql, (study,))
    with visiting(running) as client:
        admin = employ(running, client, "admin")
        assert "Exam has started, no news since" in words_of(admin.get("/orphans"))


@pytest.mark.parametrize("uid", ["0", "9" * 30, "-1", "", pytest.param("²")])
def test_what_is_no_exam_cannot_be_ended(run_appliance, uid):
    running = run_appliance()
    with visiting(running) as client:
        admin = employ(running, client, "admin")
        token = csrf_of(admin.get("/orphans").text)
        form = {"csrf": token, "kind": "exam", "uid": uid, "reason": "Forgotten"}
        assert 400 <= admin.post("/orphans", data=form).status_code < 500


# Inputs of workitems.


def test_an_image_known_elsewhere_is_looked_for_where_a_workitem_wants_it(ctx, archive):
    """A cache has it, too, and said so; the workitem is to get it from the archive."""
    one = input_workitem(ctx, images := series(2), AE_TITLE)
    notify(ctx, images, title="CACHE", who="CACHE")
    archive.store(*images)
    look(with_archive(ctx, archive.port))
    assert readiness(one) == "READY"


def test_a_workitem_on_an_unscheduled_study_is_ready_when_its_images_are_there(ctx):
    """An emergency: performed without an order, nothing is linked; no instances are listed."""
    images = series(2)
    one = put_workitem(ctx, a_workitem(input_item(images, ReferencedSOPSequence=[])))
    uid, step = new_uid(), unscheduled_item(StudyInstanceUID=images[0].study)
    create(ctx, performed_creation(step), uid)
    change(ctx, ending(PerformedSeriesSequence=[series_of(images)]), uid)
    came(ctx, images)
    look_inside(ctx)
    assert readiness(one) == "READY"


def test_an_image_of_which_no_place_is_known_waits(ctx, archive):
    """The archive takes no relational queries, and the workitem names no study."""
    images = series(1)
    one = put_workitem(ctx, a_workitem(input_item(images, StudyInstanceUID="")))
    archive.store(*images)
    ctx = with_archive(ctx, archive.port)
    devices = [dataclasses.replace(one, relational_queries=False) for one in ctx.devices]
    look(dataclasses.replace(ctx, devices=devices))
    assert readiness(one) == "UNAVAILABLE"


def test_two_workitems_share_what_is_asked_of_the_archive(ctx, archive):
    """Two want the same image, one of them another that is not there."""
    images = series(2)
    first, second = input_workitem(ctx, images[:1]), input_workitem(ctx, images)
    archive.store(images[0])
    look(with_archive(ctx, archive.port))
    assert (readiness(first), readiness(second)) == ("READY", "UNAVAILABLE")


def test_a_study_that_is_discontinued_is_whole_with_what_it_made(ctx):
    """DISCONTINUED after one series: no more is to come (PS3.4 F.7.2.2.3)."""
    step = schedule(ctx)
    images = [one._replace(study=step.get("StudyInstanceUID")) for one in series(2)]
    one = input_workitem(ctx, images, readiness="INCOMPLETE")
    create(ctx, creation_for(step))
    change(ctx, ending("DISCONTINUED", PerformedSeriesSequence=[series_of(images)]))
    came(ctx, images)
    look_inside(ctx)
    assert readiness(one) == "READY"


def test_a_cancelled_second_step_keeps_nothing_waiting(ctx):
    first, second = schedule(ctx, {"ScheduledProcedureStepDescription": "With contrast"})
    images = [one._replace(study=first.get("StudyInstanceUID")) for one in series(2)]
    one = input_workitem(ctx, images, readiness="INCOMPLETE")
    end_ct(ctx, first, images)
    came(ctx, images)
    inner = second.item("ScheduledProcedureStepSequence").get("ScheduledProcedureStepID")
    change_step(ctx, "cancel", second.get("StudyInstanceUID"), inner)
    look_inside(ctx)
    assert readiness(one) == "READY"


def test_of_two_steps_the_one_left_is_begun_when_the_other_was_cancelled(ctx, archive):
    """What was cancelled has made no images."""
    first, second = schedule(ctx, {"ScheduledProcedureStepDescription": "Duplex"}, **SONO)
    inner = second.item("ScheduledProcedureStepSequence").get("ScheduledProcedureStepID")
    change_step(ctx, "cancel", second.get("StudyInstanceUID"), inner)
    archive.store(*images_of(first, 1))
    look(with_archive(ctx, archive.port))
    assert [state(first), state(second)] == [STARTED, "CANCELED"]


def test_notices_of_other_images_do_not_hide_what_the_archive_counts(ctx, sono, archive):
    """The archive has 5; a notice of 1 of them is no news, and puts nothing off."""
    ctx = with_archive(ctx, archive.port)
    images = images_of(sono, 5)
    archive.store(*images)
    look(ctx)
    came(at(ctx, minutes=9), images[:1])
    look(at(ctx, minutes=QUIET))
    assert state(sono) == COMPLETED
    assert uids(images[:1]) == list(available_uids(uids(images)))
