# ruff: noqa: F401, F811 (fixtures of test_commitment.py)
"""Section 12, AVAILABILITY: what has come to the archive, and what follows of it.

Orthanc is the archive; the clock stands at noon, or where a test sets it.
"""

import asyncio
import contextlib
import dataclasses
import logging
import re
import threading
import time

import peers
import pytest
from archive import AE_TITLE, CT_IMAGE, Image, series
from conftest import Running, item, write_config
from test_commitment import (
    ARCHIVE,
    Liar,
    archive,
    at,
    create_notice,
    flat,
    hasty,
    notice,
    notify,
    own_archive,
    request,
    technologist_of,
    uids,
)
from test_delivery import (
    PATIENCE_S,
    Silent,
    once,
    watcher,
)
from test_mpps import UID as PERFORMED
from test_mpps import (
    change,
    create,
    creation_for,
    dataset,
    discontinuation,
    ending,
    schedule,
    state,
    step_id,
    step_row,
    stored_form,
)
from test_mpps import creation as performed_creation
from test_mpps import modality as reporting
from test_mpps import read as read_stored
from test_mpps import series as performed_series
from test_pages import csrf_of, employ, visiting, words_of
from test_passing_on import passed_on, receiver
from test_ups import LOCK
from test_ups import creation as workitem

from minris.access.context import Actor
from minris.config.ini import Device, load_config
from minris.dataset.checks import check_attributes, check_uid
from minris.dataset.elements import ElementIndex
from minris.delivery.archive import ArchiveWatch
from minris.dimse.archive import ArchiveSearch
from minris.housekeeping.stuck import correct_stamps, orphans
from minris.images.arrivals import arrival_of, incomplete_arrivals, make_ready, ready_workitems
from minris.images.availability import record_found
from minris.images.commitment import record_evidence, request_commitment
from minris.images.references import Evidence, Reference, notified_instances
from minris.interchange.whole_store import export_store, import_export
from minris.orders.steps import change_step
from minris.standard.commitment import AVAILABILITY_ATTRIBUTES
from minris.standard.dictionary import tag_of
from minris.standard.uids import MPPS, UPS_GLOBAL_SUBSCRIPTION, new_uid
from minris.store.models import Commitment, Outbox, PerformedProcedureStep, database
from minris.store.rows import erase, fetch_rows
from minris.ups.people import history_of
from minris.ups.search import stored_workitem
from minris.ups.subscriptions import subscribe
from minris.ups.workitems import change_state, create_workitem

US_IMAGE = "1.2.840.10008.5.1.4.1.1.6.1"
SCHEDULED, STARTED, COMPLETED = "SCHEDULED", "STARTED", "COMPLETED"
SONO = {"ScheduledStationAETitle": "US1", "Modality": "US"}
TODAY, YESTERDAY = "20260705", "20260704"
EMPTY_LISTING = "No images are missing."


# An exam at a machine that does not report, and its images.


def images_of(step, count):
    """As many images of one series of the study of a step."""
    one = new_uid()
    study = step.get("StudyInstanceUID")
    return [Image(study, one, new_uid(), US_IMAGE) for _ in range(count)]


def with_archive(ctx, port, **settings):
    """The same circumstances with an archive that listens on a port."""
    device = dataclasses.replace(ARCHIVE, port=port)
    others = [one for one in ctx.devices if one.role != "archive"]
    for key, value in settings.items():
        setattr(ctx.config.commitment, key, value)
    return dataclasses.replace(ctx, devices=[*others, device])


def with_mpps(ctx, how):
    """The same circumstances; what the setting of the ultrasound says of its reports."""
    devices = [
        dataclasses.replace(one, mpps=how) if "US1" in one.ae_titles else one for one in ctx.devices
    ]
    return dataclasses.replace(ctx, devices=devices)


@pytest.fixture(autouse=True)
def none_of_others(request):
    """A shared archive is emptied: each test counts its study UIDs from the same number."""
    if "archive" in request.fixturenames:
        request.getfixturevalue("archive").empty()


@pytest.fixture
def sono(ctx):
    """An ultrasound of Wang XiaoDong, scheduled for this morning."""
    return schedule(ctx, **SONO)


def watch_of(ctx):
    """The watch over the archive in these circumstances, on the store of this test."""

    async def here(function, *arguments):
        return function(*arguments)

    search = ArchiveSearch(ctx.config)
    return ArchiveWatch(search, search.count, lambda: ctx, here, here)


def look(ctx):
    """Look once, as [commitment] look_minutes has it done."""
    asyncio.run(watch_of(ctx).work())


def came(ctx, images, who=AE_TITLE):
    """The archive notifies of images."""
    notify(ctx, images, who=who)


def told_by(step):
    return step_row(step).told_by


def outcome(step):
    """The state of a step, and who told of its end."""
    return state(step), told_by(step)


QUIET = 10  # minutes, the default


# Begun and ended by images.


def test_an_exam_begins_when_its_images_are_in_the_archive(ctx, sono, archive):
    ctx = with_archive(ctx, archive.port)
    look(ctx)
    assert state(sono) == SCHEDULED
    archive.store(*images_of(sono, 2))
    look(ctx)
    assert outcome(sono) == (STARTED, "")
    assert step_row(sono).started_at == ctx.stamp()


def test_an_exam_ends_when_no_more_images_come(ctx, sono, archive):
    ctx = with_archive(ctx, archive.port)
    archive.store(*images_of(sono, 2))
    look(ctx)
    look(at(ctx, minutes=QUIET - 1))
    assert state(sono) == STARTED
    look(at(ctx, minutes=QUIET))
    assert outcome(sono) == (COMPLETED, "archive")


def test_new_images_put_the_end_off(ctx, sono, archive):
    ctx = with_archive(ctx, archive.port)
    for minutes in (0, 9, 18, 27):
        archive.store(*images_of(sono, 1))
        look(at(ctx, minutes=minutes))
        assert state(sono) == STARTED
    look(at(ctx, minutes=36))
    assert state(sono) == STARTED
    look(at(ctx, minutes=37))
    assert state(sono) == COMPLETED


def test_an_image_that_is_deleted_does_not_put_the_end_off(ctx, sono, archive):
    ctx = with_archive(ctx, archive.port)
    images = images_of(sono, 3)
    archive.store(*images)
    look(ctx)
    archive.lose(images[0])
    look(at(ctx, minutes=5))
    look(at(ctx, minutes=QUIET))
    assert state(sono) == COMPLETED


def test_a_notice_begins_an_exam_and_silence_ends_it(ctx, sono):
    came(ctx, images_of(sono, 2))
    assert outcome(sono) == (STARTED, "")
    came(at(ctx, minutes=9), images_of(sono, 1))
    look(at(ctx, minutes=18))
    assert state(sono) == STARTED
    look(at(ctx, minutes=19))
    assert outcome(sono) == (COMPLETED, "availability")


def test_the_same_notice_again_does_not_put_the_end_off(ctx, sono):
    images = images_of(sono, 2)
    came(ctx, images)
    came(at(ctx, minutes=9), images)
    look(at(ctx, minutes=QUIET))
    assert state(sono) == COMPLETED


@pytest.mark.parametrize("word", ["UNAVAILABLE", "OFFLINE"])
def test_a_notice_of_what_cannot_be_had_begins_nothing(ctx, sono, word):
    notify(ctx, images_of(sono, 2), word)
    look(at(ctx, hours=1))
    assert state(sono) == SCHEDULED


def test_a_notice_of_nearline_images_begins_an_exam(ctx, sono):
    notify(ctx, images_of(sono, 1), "NEARLINE")
    assert state(sono) == STARTED


def test_without_quiet_minutes_an_exam_ends_at_once(ctx, sono):
    ctx.config.commitment.quiet_minutes = 0
    came(ctx, images_of(sono, 1))
    assert outcome(sono) == (COMPLETED, "availability")


def test_images_that_come_after_the_end_change_nothing(ctx, sono):
    ctx.config.commitment.quiet_minutes = 0
    came(ctx, images_of(sono, 1))
    before = step_row(sono).version
    came(at(ctx, minutes=3), images_of(sono, 1))
    look(at(ctx, minutes=30))
    assert (state(sono), step_row(sono).version) == (COMPLETED, before)


@pytest.mark.parametrize("event", ["cancel", "no show"])
def test_an_exam_that_a_person_took_off_the_list_is_left_alone(ctx, sono, event):
    change_step(ctx, event, sono.get("StudyInstanceUID"), step_id(sono))
    before = state(sono)
    came(ctx, images_of(sono, 1))
    look(at(ctx, hours=1))
    assert state(sono) == before


def test_a_patient_who_waits_is_begun_too(ctx, sono):
    change_step(ctx, "arrive", sono.get("StudyInstanceUID"), step_id(sono))
    came(ctx, images_of(sono, 1))
    assert state(sono) == STARTED


def test_an_exam_that_a_person_ended_stays_so_told(ctx, sono):
    """Its images come to rest after the tap."""
    came(ctx, images_of(sono, 1))
    anna = ctx.by(Actor("anna"))
    change_step(anna, "stop", sono.get("StudyInstanceUID"), step_id(sono))
    look(at(ctx, minutes=QUIET))
    assert outcome(sono) == ("DISCONTINUED", "anna")


def test_an_exam_of_yesterday_is_looked_for(ctx, archive):
    late = schedule(ctx, ScheduledProcedureStepStartDate=YESTERDAY, **SONO)
    archive.store(*images_of(late, 1))
    look(with_archive(ctx, archive.port))
    assert state(late) == STARTED


@pytest.mark.parametrize("date", ["20260703", "20260706"])
def test_an_exam_of_another_day_is_not_looked_for(ctx, archive, date):
    other = schedule(ctx, ScheduledProcedureStepStartDate=date, **SONO)
    archive.store(*images_of(other, 1))
    look(with_archive(ctx, archive.port))
    assert state(other) == SCHEDULED


def test_an_old_exam_that_has_begun_is_looked_for(ctx, archive):
    """By a notice; then the archive is asked, whatever its date."""
    old = schedule(ctx, ScheduledProcedureStepStartDate="20260701", **SONO)
    came(ctx, images_of(old, 1))
    ctx = with_archive(ctx, archive.port)
    archive.store(*images_of(old, 2))
    look(at(ctx, minutes=9))
    look(at(ctx, minutes=18))
    assert state(old) == STARTED
    look(at(ctx, minutes=19))
    assert outcome(old) == (COMPLETED, "archive")


# Whose machine reports is left alone.


@pytest.mark.parametrize(("how", "after"), [("yes", SCHEDULED), ("no", STARTED), ("auto", STARTED)])
def test_the_setting_of_a_machine_says_whether_it_reports(ctx, sono, archive, how, after):
    ctx = with_mpps(with_archive(ctx, archive.port), how)
    archive.store(*images_of(sono, 1))
    look(ctx)
    came(ctx, images_of(sono, 1))
    assert state(sono) == after


def reported_once(ctx, title="US1"):
    """A machine reports an exam of somebody else."""
    create(ctx, performed_creation(PerformedStationAETitle=title), new_uid())


@pytest.mark.parametrize(
    ("how", "after"), [("yes", SCHEDULED), ("no", STARTED), ("auto", SCHEDULED)]
)
def test_auto_is_yes_from_the_first_report(ctx, sono, archive, how, after):
    ctx = with_mpps(with_archive(ctx, archive.port), how)
    archive.store(*images_of(sono, 1))
    reported_once(ctx)
    look(ctx)
    came(ctx, images_of(sono, 1))
    assert state(sono) == after


def test_a_report_of_another_machine_says_nothing_of_this_one(ctx, sono):
    reported_once(ctx, "CT1")
    came(ctx, images_of(sono, 1))
    assert state(sono) == STARTED


def test_a_first_report_while_images_come_takes_over(ctx, sono):
    """From then on the machine says when its exam has ended."""
    came(ctx, images_of(sono, 1))
    create(ctx, creation_for(sono, PerformedStationAETitle="US1"))
    look(at(ctx, hours=1))
    assert outcome(sono) == (STARTED, "")
    change(at(ctx, hours=1), ending())
    assert outcome(sono) == (COMPLETED, "performed step")


def test_a_step_that_was_reported_is_left_alone_though_its_machine_does_not_report(ctx, sono):
    ctx = with_mpps(ctx, "no")
    create(ctx, creation_for(sono, PerformedStationAETitle="US1"))
    came(ctx, images_of(sono, 1))
    look(at(ctx, hours=1))
    assert state(sono) == STARTED


def test_a_wrong_entry_is_not_begun_again_by_its_images(ctx, sono):
    """PS3.4 F.7.2.1.2: images of the exam that was picked by mistake."""
    create(ctx, creation_for(sono, PerformedStationAETitle="US1"))
    change(ctx, discontinuation("110514"))
    came(ctx, images_of(sono, 1))
    assert state(sono) == SCHEDULED


# Several steps of one study.


@pytest.fixture
def two(ctx):
    """An ultrasound in two steps of one study."""
    return schedule(ctx, {"ScheduledProcedureStepDescription": "Duplex"}, **SONO)


@pytest.fixture
def mixed(ctx):
    """A CT, then an ultrasound, in one study."""
    return schedule(ctx, dict(SONO))


def test_of_two_steps_in_a_study_none_is_begun(ctx, two, archive):
    ctx = with_archive(ctx, archive.port)
    archive.store(*images_of(two[0], 2))
    look(ctx)
    look(at(ctx, hours=1))
    assert [state(one) for one in two] == [SCHEDULED] * 2


def test_the_second_step_of_a_study_is_not_begun_by_images_of_the_first(ctx, two):
    """A person ended the first; the patient comes back for the second in the afternoon."""
    images = images_of(two[0], 2)
    came(ctx, images[:1])
    change_step(ctx, "finish", two[0].get("StudyInstanceUID"), step_id(two[0]))
    came(ctx, images)
    look(at(ctx, minutes=QUIET))
    assert [state(one) for one in two] == [COMPLETED, SCHEDULED]


def test_images_of_a_machine_that_reports_do_not_begin_the_exam_of_another(ctx, mixed):
    create(ctx, creation_for(mixed[0]))
    came(ctx, images_of(mixed[0], 2))
    look(at(ctx, minutes=QUIET))
    assert [state(one) for one in mixed] == [STARTED, SCHEDULED]


# Who told of the end.


@contextlib.contextmanager
def asked_for_commitment(running, calling, images):
    """A machine asks whether its images are safe."""
    uid = new_uid()
    put = request_commitment
    running.write(put, running.context(calling), uid, stored_form(request(uid, images)))
    running.appliance.wake_delivery()
    yield uid


def settings(archive_port, more="", commitment="missing_minutes = 0"):
    """A config.ini with the archive and an address for the ultrasound."""
    return (
        f"[device Ultrasound]\nhost = {peers.HOST}\nport = 1\n"
        f"[device Archive]\nae_title = {AE_TITLE}\nhost = {peers.HOST}\nport = {archive_port}\n"
        f"role = archive\nrelational_queries = yes\n[commitment]\n{commitment}\n{more}"
    )


def scheduled(running, **texts):
    """An ultrasound of today on the worklist of an appliance."""
    today = running.context().today()
    start = {"ScheduledProcedureStepStartDate": today, **SONO}
    [step] = running.schedule(item(**{**start, **texts}))
    return step


def watch_once(running):
    """Have an appliance look at the archive now."""
    watch = running.appliance.archive_watch

    async def anew():
        if watch.tasks:  # it began before
            await asyncio.wait(watch.tasks.values())
        watch.look_at = watch.long_look_at = 0.0
        await watch.work()

    asyncio.run_coroutine_threadsafe(anew(), running.appliance.loop).result(PATIENCE_S)


def once_outcome(running, step, wanted):
    once(running, lambda: outcome(step) == wanted, f"it is not {wanted}")


def page_of(running, step):
    """What a technologist reads on the page of an exam."""
    with technologist_of(running) as anna:
        return words_of(anna.get(f"/step/{running.read(step_row, step).id}"))


def by_notice(running, step, archive):
    create_notice(running, notice(images_of(step, 2)))


def by_archive(running, step, archive):
    archive.store(*images_of(step, 2))
    watch_once(running)


def by_commitment(running, step, archive):
    images = images_of(step, 2)
    archive.store(*images)
    with asked_for_commitment(running, "US1", images):
        once_outcome(running, step, (COMPLETED, "commitment"))


def by_report(running, step, archive):
    with reporting(running, "US1") as call:
        call.create(creation_for(step, PerformedStationAETitle="US1"))
        call.set(ending())


ENDS = {
    "availability": (by_notice, "the archive's notice of images"),
    "archive": (by_archive, "the images found in the archive"),
    "commitment": (by_commitment, "the machine's storage commitment request"),
    "performed step": (by_report, "MPPS from the machine"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_the_page_of_an_exam_says_who_told_of_its_end(run_appliance, archive, kind):
    end, words = ENDS[kind]
    quiet = "quiet_minutes = 600" if kind == "commitment" else "quiet_minutes = 0"
    running = run_appliance(
        settings(archive.port, commitment=f"look_minutes = 0\nmissing_minutes = 0\n{quiet}")
    )
    if kind == "archive":
        running.config.commitment.look_minutes = 5
    step = scheduled(running)
    end(running, step, archive)
    assert running.read(outcome, step) == (COMPLETED, kind)
    assert f"Source {words}" in page_of(running, step)


def test_a_tap_on_the_board_ends_an_exam_of_a_machine_that_does_not_report(run_appliance):
    running = run_appliance()
    step = scheduled(running)
    with visiting(running) as client:
        anna = employ(running, client, "desk")
        board = anna.get("/")
        path = f"/step/{running.read(step_row, step).id}"
        assert "Mark as done" in words_of(board)
        anna.post(path, data={"csrf": csrf_of(board.text), "event": "finish"})
        assert running.read(state, step) == COMPLETED
        assert re.search(r"Source anna\b", words_of(anna.get(path)))


@pytest.mark.parametrize(("how", "offered"), [("yes", False), ("no", True), ("auto", True)])
def test_that_an_exam_is_done_is_offered_where_its_machine_does_not_report(
    run_appliance, how, offered
):
    running = run_appliance(f"[device Ultrasound]\nmpps = {how}\n")
    step = scheduled(running)
    with visiting(running) as client:
        anna = employ(running, client, "desk")
        path = f"/step/{running.read(step_row, step).id}"
        for where in ("/", path):
            assert ("Mark as done" in words_of(anna.get(where))) == offered


def test_who_told_of_the_end_is_in_an_export(ctx, sono, tmp_path):
    ctx.config.commitment.quiet_minutes = 0
    came(ctx, images_of(sono, 1))
    exported = export_store()
    [step] = exported["worklist"]
    assert (step["told_by"], bool(step["ended_at"])) == ("availability", True)
    erase("scheduled_station")
    erase("scheduled_procedure_step")
    erase("requested_procedure")
    import_export(ctx, exported)
    assert outcome(sono) == (COMPLETED, "availability")


def test_an_exam_that_is_put_on_the_list_again_has_not_been_told_of(ctx, sono):
    study = sono.get("StudyInstanceUID")
    change_step(ctx.by(Actor("anna")), "cancel", study, step_id(sono))
    assert told_by(sono) == "anna"
    change_step(ctx, "reschedule", study, step_id(sono))
    assert outcome(sono) == (SCHEDULED, "")


def judged(ctx, requester, images, kept):
    """A machine has asked about images, and the archive has some of them."""
    uid = new_uid()
    devices = [dataclasses.replace(one, host=peers.HOST) for one in ctx.devices]
    asking = dataclasses.replace(ctx, devices=devices)
    asking = asking.by(Actor(requester))
    request_commitment(asking, uid, stored_form(flat(images)))
    [row] = fetch_rows(Commitment, "transaction_uid = ?", uid)
    record_evidence(asking, row.id, evidence_of(images, kept))


def evidence_of(images, kept=None):
    kept = images if kept is None else kept
    return Evidence(
        {one.uid: (one.sop_class, AE_TITLE) for one in kept},
        frozenset(set(uids(images)) - set(uids(kept))),
        places={one.uid: (one.study, one.series, "ONLINE") for one in kept},
    )


def test_of_two_steps_in_a_study_the_question_of_a_machine_ends_its_own(ctx, mixed):
    devices = [dataclasses.replace(one, mpps="no") for one in ctx.devices]
    ctx = with_archive(dataclasses.replace(ctx, devices=devices), 1)
    judged(ctx, "US1", images := images_of(mixed[1], 2), images)
    assert [outcome(one) for one in mixed] == [(SCHEDULED, ""), (COMPLETED, "commitment")]


def test_the_question_of_another_machine_does_not_end_an_exam(ctx, mixed):
    """The CT reports and asks; the ultrasound of the same study has not begun."""
    ctx = with_archive(ctx, 1)
    create(ctx, creation_for(mixed[0]))
    judged(ctx, "CT1", images := images_of(mixed[0], 2), images)
    assert [state(one) for one in mixed] == [STARTED, SCHEDULED]


def test_a_question_about_what_the_archive_has_not_ends_nothing(ctx, sono):
    judged(with_archive(ctx, 1), "US1", images_of(sono, 2), [])
    assert state(sono) == SCHEDULED


# The archive is asked, or cannot be.


def test_images_that_came_while_the_archive_could_not_be_asked_are_found_later(
    ctx, sono, own_archive
):
    own_archive.store(*images_of(sono, 2))
    own_archive.stop()
    ctx = with_archive(ctx, own_archive.port)
    look(ctx)
    assert state(sono) == SCHEDULED
    own_archive.start()
    look(at(ctx, minutes=5))
    assert state(sono) == STARTED


def test_silence_of_an_archive_that_cannot_be_asked_is_no_end(ctx, sono, own_archive):
    """Nobody has looked since; more may have come."""
    own_archive.store(*images_of(sono, 2))
    ctx = with_archive(ctx, own_archive.port)
    look(ctx)
    own_archive.stop()
    look(at(ctx, minutes=QUIET))
    assert state(sono) == STARTED
    own_archive.start()
    own_archive.store(*images_of(sono, 1))
    look(at(ctx, minutes=QUIET + 5))
    assert state(sono) == STARTED


def test_an_exam_does_not_end_between_two_looks(ctx, sono, archive):
    """look_minutes = 30: what came since the first look is not known yet."""
    ctx = with_archive(ctx, archive.port, look_minutes=30)
    archive.store(*images_of(sono, 1))
    look(ctx)
    later = dataclasses.replace(ctx, now=at(ctx, minutes=QUIET).now)
    watch = watch_of(later)
    watch.look_at = float("inf")  # it is not time yet
    asyncio.run(watch.work())
    assert state(sono) == STARTED


def test_with_look_minutes_0_the_archive_is_never_asked(ctx, sono, archive):
    archive.store(*images_of(sono, 1))
    ctx = with_archive(ctx, archive.port, look_minutes=0)
    look(ctx)
    assert state(sono) == SCHEDULED
    came(ctx, images_of(sono, 1))
    look(at(ctx, minutes=QUIET))
    assert outcome(sono) == (COMPLETED, "availability")


def test_an_archive_is_asked_as_often_as_is_set(ctx, sono):
    asked = []

    async def count(archive, studies):
        asked.append(studies)
        return {}

    watch = watch_of(with_archive(ctx, 1))
    watch.count = count

    async def thrice():
        for _ in range(3):
            await watch.work()
        asked.append("five minutes pass")
        watch.look_at -= 5 * 60
        await watch.work()

    asyncio.run(thrice())
    study = sono.get("StudyInstanceUID")
    assert asked == [[study], "five minutes pass", [study]]


def study_answer(study, number=None):
    """An archive's answer at study level, the number as raw text."""
    ds = dataset(QueryRetrieveLevel="STUDY", StudyInstanceUID=study)
    if number is not None:
        ds.add_new(tag_of("NumberOfStudyRelatedInstances"), "LO", number)
    return ds


def counting(*numbers, study=None):
    """Answers of an archive that says these numbers."""

    def answers(identifier, association):
        for number in numbers:
            yield 0xFF00, study_answer(study or identifier.StudyInstanceUID, number)

    return answers


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("number", [None, "", "many", "-3", "٣"])
def test_an_archive_that_does_not_say_how_many_has_some(ctx, sono, number):
    with Liar(counting(number)) as liar:
        ctx = with_archive(ctx, liar.port)
        look(ctx)
        assert state(sono) == STARTED
        look(at(ctx, minutes=QUIET))
    assert state(sono) == COMPLETED


def test_an_archive_that_says_0_has_none(ctx, sono):
    with Liar(counting("0")) as liar:
        look(with_archive(ctx, liar.port))
    assert state(sono) == SCHEDULED


def test_an_archive_that_answers_of_other_studies_says_nothing(ctx, sono):
    with Liar(counting("5", study="2.25.999")) as liar:
        look(with_archive(ctx, liar.port))
    assert state(sono) == SCHEDULED


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("number", ["9" * 30, pytest.param("9" * 5000, id="5000 digits")])
def test_an_archive_that_says_nonsense_does_not_hold_up_what_waits(ctx, sono, number):
    waiting = input_workitem(ctx, images := series(2))
    came(ctx, images)
    with Liar(counting(number)) as liar:
        look(with_archive(ctx, liar.port))
    assert readiness(waiting) == "READY"


# Performed steps: how many of their images have come.


@pytest.fixture
def ct(ctx):
    """A CT of Wang XiaoDong that has ended: its step and its 14 images."""
    step = schedule(ctx)
    images = [one._replace(study=step.get("StudyInstanceUID")) for one in series(14)]
    end_ct(ctx, step, images)
    return step, images


def series_of(images):
    """An item of Performed Series Sequence."""
    references = list(flat(images).ReferencedSOPSequence)
    return performed_series(SeriesInstanceUID=images[0].series, ReferencedImageSequence=references)


def end_ct(ctx, step, images, uid=PERFORMED):
    """The CT reports an exam from begin to end."""
    create(ctx, creation_for(step), uid)
    change(ctx, ending(PerformedSeriesSequence=[series_of(images)]), uid)


def arrival():
    """How many images of the one performed step have come, of how many."""
    [row] = fetch_rows(PerformedProcedureStep, "1 = 1")
    one = arrival_of(row)
    return len(one.references) - len(one.missing), len(one.references)


def test_a_notice_of_12_of_14_images(ctx, ct):
    _, images = ct
    assert arrival() == (0, 14)
    came(ctx, images[:12])
    assert arrival() == (12, 14)
    [one] = incomplete_arrivals(ctx)
    assert {ref.sop_instance_uid for ref in one.missing} == set(uids(images[12:]))
    came(ctx, images[12:])
    assert arrival() == (14, 14)
    assert incomplete_arrivals(ctx) == []


def test_a_notice_can_take_an_image_back(ctx, ct):
    _, images = ct
    came(ctx, images)
    notify(ctx, images[:2], "UNAVAILABLE")
    assert arrival() == (12, 14)


def test_an_image_taken_back_at_one_place_is_still_at_another(ctx, ct):
    _, images = ct
    came(ctx, images)
    notify(ctx, images, title="PACS2")
    notify(ctx, images[:2], "UNAVAILABLE")
    assert arrival() == (14, 14)


def test_images_that_came_before_the_report_count(ctx):
    step = schedule(ctx)
    images = [one._replace(study=step.get("StudyInstanceUID")) for one in series(3)]
    came(ctx, images[:2])
    end_ct(ctx, step, images)
    assert arrival() == (2, 3)


def test_other_images_of_the_study_do_not_count(ctx, ct):
    step, _ = ct
    came(ctx, images_of(step, 20))
    assert arrival() == (0, 14)


def test_a_report_without_images_misses_none(ctx):
    step = schedule(ctx)
    create(ctx, creation_for(step))
    change(ctx, ending(PerformedSeriesSequence=[performed_series(ReferencedImageSequence=[])]))
    assert incomplete_arrivals(ctx) == []


def test_an_exam_that_runs_is_not_listed_as_incomplete(ctx):
    step = schedule(ctx)
    create(ctx, creation_for(step, PerformedSeriesSequence=[series_of(series(2))]))
    assert incomplete_arrivals(ctx) == []


@pytest.mark.parametrize(("hours", "listed"), [(47, 1), (49, 0)])
def test_two_days_are_listed(ctx, ct, hours, listed):
    assert len(incomplete_arrivals(at(ctx, hours=hours))) == listed


def test_the_archive_is_asked_for_what_is_missing(ctx, ct, archive):
    _, images = ct
    ctx = with_archive(ctx, archive.port)
    archive.store(*images[:12])
    look(ctx)
    assert arrival() == (12, 14)
    archive.store(*images[12:])
    look(at(ctx, minutes=5))
    assert arrival() == (14, 14)


def test_an_image_that_the_archive_has_again_is_there(ctx, ct, archive):
    """Its own notice had taken it back; then it was sent once more."""
    _, images = ct
    ctx = with_archive(ctx, archive.port)
    notify(ctx, images, "UNAVAILABLE")
    look(ctx)
    assert arrival() == (0, 14)
    archive.store(*images)
    look(ctx)
    assert arrival() == (14, 14)


def test_the_pages_say_12_of_14(run_appliance):
    running = run_appliance(settings(1, commitment="look_minutes = 0"))
    step = scheduled(running, ScheduledStationAETitle="CT1", Modality="CT")
    images = [one._replace(study=step.get("StudyInstanceUID")) for one in series(14)]
    with reporting(running) as call:
        assert call.create(creation_for(step)).status == 0
        assert call.set(ending(PerformedSeriesSequence=[series_of(images)])).status == 0
    assert create_notice(running, notice(images[:12]))["status"] == 0
    with technologist_of(running) as anna:
        listing = words_of(anna.get("/commitments"))
        assert "CT1 12 of 14 images" in listing
        page = f"/step/{running.read(step_row, step).id}"
        assert "In the archive 12 of 14 images" in words_of(anna.get(page))
        create_notice(running, notice(images[:1], "UNAVAILABLE"))
        assert "In the archive 11 of 14 images" in words_of(anna.get(page))
        create_notice(running, notice(images))
        assert "In the archive 14 of 14 images" in words_of(anna.get(page))
        assert EMPTY_LISTING in words_of(anna.get("/commitments"))


# Others are told of what was found.


def with_ris(ctx):
    """The RIS is passed on availabilities."""
    ris = Device("RIS", ("RIS",), passed_on=frozenset({"availability"}))
    return dataclasses.replace(ctx, devices=[*ctx.devices, ris])


def told_to_ris():
    """The notices for the RIS, as pydicom reads them."""
    rows = fetch_rows(Outbox, "receiver = 'RIS' ORDER BY id")
    assert all(one.operation == "N-CREATE" for one in rows)
    return [(one.sop_instance_uid, bytes(one.data)) for one in rows]


def instances_in(data):
    """{UID: (availability, Retrieve AE)} of a notice."""
    return {
        one.ReferencedSOPInstanceUID: (one.InstanceAvailability, one.RetrieveAETitle)
        for of_series in read_stored(data).ReferencedSeriesSequence
        for one in of_series.ReferencedSOPSequence
    }


def test_others_get_notices_of_new_images_alone(ctx, ct, archive):
    _, images = ct
    ctx = with_ris(with_archive(ctx, archive.port))
    archive.store(*images[:12])
    look(ctx)
    look(ctx)
    [(_, first)] = told_to_ris()
    assert instances_in(first) == dict.fromkeys(uids(images[:12]), ("ONLINE", AE_TITLE))
    archive.store(*images[12:])
    look(ctx)
    assert set(instances_in(told_to_ris()[1][1])) == set(uids(images[12:]))


def test_a_notice_of_ours_is_a_valid_one(ctx, archive):
    """PS3.4 Table R.3.2-1; two series, of one performed step."""
    step = schedule(ctx)
    images = [one._replace(study=step.get("StudyInstanceUID")) for one in (*series(2), *series(3))]
    create(ctx, creation_for(step))
    change(ctx, ending(PerformedSeriesSequence=[series_of(images[:2]), series_of(images[2:])]))
    archive.store(*images)
    look(with_ris(with_archive(ctx, archive.port)))
    [(uid, data)] = told_to_ris()
    index = ElementIndex(data)
    check_attributes(index, AVAILABILITY_ATTRIBUTES, "create", lenient=False)
    check_uid(uid)
    ds = read_stored(data)
    assert ds.StudyInstanceUID == images[0].study
    assert sorted(len(one.ReferencedSOPSequence) for one in ds.ReferencedSeriesSequence) == [2, 3]
    [performed] = ds.ReferencedPerformedProcedureStepSequence
    assert (performed.ReferencedSOPClassUID, performed.ReferencedSOPInstanceUID) == (
        MPPS,
        PERFORMED,
    )
    assert performed.PerformedWorkitemCodeSequence == []
    assert {
        one.ReferencedSOPClassUID
        for of_series in ds.ReferencedSeriesSequence
        for one in of_series.ReferencedSOPSequence
    } == {CT_IMAGE}


def test_of_two_studies_there_are_two_notices(ctx):
    """PS3.4 R.1.1: one notification, one study; without a performed step none is named."""
    images = [*series(2), *series(1)]
    record_found(with_ris(ctx), AE_TITLE, evidence_of(images))
    told = [read_stored(data) for _, data in told_to_ris()]
    assert {one.StudyInstanceUID for one in told} == {one.study for one in images}
    assert all(one.ReferencedPerformedProcedureStepSequence == [] for one in told)


def test_what_the_archive_notified_itself_is_not_told_twice(ctx):
    images = series(2)
    ctx = with_ris(ctx)
    came(ctx, images)
    record_found(ctx, AE_TITLE, evidence_of(images))
    assert len(told_to_ris()) == 1


def test_what_was_seen_is_no_notice_of_the_archive(ctx):
    """Evidence by notice needs the archive's own word."""
    images = series(1)
    record_found(ctx, AE_TITLE, evidence_of(images))
    references = [Reference(one.sop_class, one.uid) for one in images]
    assert notified_instances(references, AE_TITLE) == {}


# Workitems whose inputs have come.


def input_item(images, *retrieve, **changes):
    """An item of Input Information Sequence."""
    ds = dataset(
        TypeOfInstances="DICOM",
        StudyInstanceUID=images[0].study,
        SeriesInstanceUID=images[0].series,
        ReferencedSOPSequence=list(flat(images).ReferencedSOPSequence),
    )
    if retrieve:
        ds.DICOMRetrievalSequence = [dataset(RetrieveAETitle=title) for title in retrieve]
    ds.update(dataset(**changes))
    return ds


def a_workitem(*items, readiness="UNAVAILABLE"):
    return workitem(InputReadinessState=readiness, InputInformationSequence=list(items))


def put_workitem(ctx, ds):
    """Create a workitem in the core: its UID."""
    uid = new_uid()
    create_workitem(ctx, uid, stored_form(ds))
    return uid


def input_workitem(ctx, images, *retrieve, readiness="UNAVAILABLE"):
    """A workitem that waits for images: its UID."""
    return put_workitem(ctx, a_workitem(input_item(images, *retrieve), readiness=readiness))


def readiness(uid):
    """Input Readiness State of a workitem; that of its row is the same."""
    one = stored_workitem(uid)
    assert one.readiness == read_stored(bytes(one.data)).InputReadinessState
    return one.readiness


def look_inside(ctx):
    """Look at what follows in the store."""
    ctx.config.commitment.look_minutes = 0
    look(ctx)


def test_a_workitem_is_ready_when_all_of_its_inputs_have_come(ctx):
    images = series(3)
    one = input_workitem(ctx, images)
    came(ctx, images[:2])
    look_inside(ctx)
    assert readiness(one) == "UNAVAILABLE"
    came(ctx, images[2:])
    look_inside(ctx)
    assert readiness(one) == "READY"


def test_images_found_in_the_archive_make_a_workitem_ready(ctx, ct, archive):
    _, images = ct
    one = input_workitem(ctx, images)
    archive.store(*images)
    look(with_archive(ctx, archive.port))
    assert readiness(one) == "READY"


def test_the_archive_is_asked_for_inputs_that_no_report_names(ctx, sono, archive):
    """Images of a machine that does not report; its archive sends no notices."""
    images = images_of(sono, 2)
    one = input_workitem(ctx, images)
    archive.store(*images)
    look(with_archive(ctx, archive.port))
    assert readiness(one) == "READY"


def test_each_of_several_inputs_must_have_come(ctx):
    first, second = series(1), series(2)
    one = put_workitem(ctx, a_workitem(input_item(first), input_item(second)))
    came(ctx, first)
    look_inside(ctx)
    assert readiness(one) == "UNAVAILABLE"
    came(ctx, second)
    look_inside(ctx)
    assert readiness(one) == "READY"


@pytest.mark.parametrize(
    ("asked", "after"),
    [
        ([AE_TITLE], "READY"),
        (["PACS2"], "UNAVAILABLE"),
        (["PACS2", AE_TITLE], "READY"),
        ([], "READY"),
    ],
)
def test_inputs_are_to_be_had_where_a_workitem_says(ctx, asked, after):
    one = input_workitem(ctx, images := series(2), *asked)
    came(ctx, images)
    look_inside(ctx)
    assert readiness(one) == after


@pytest.mark.parametrize("word", ["OFFLINE", "UNAVAILABLE"])
def test_inputs_that_cannot_be_had_have_not_come(ctx, word):
    one = input_workitem(ctx, images := series(2))
    notify(ctx, images, word)
    look_inside(ctx)
    assert readiness(one) == "UNAVAILABLE"


def test_a_workitem_whose_inputs_were_there_before_is_ready(ctx):
    came(ctx, images := series(2))
    one = input_workitem(ctx, images)
    look_inside(ctx)
    assert readiness(one) == "READY"


def test_a_workitem_without_inputs_waits(ctx):
    one = put_workitem(ctx, a_workitem())
    look_inside(ctx)
    assert readiness(one) == "UNAVAILABLE"


def test_a_workitem_that_lists_no_instances_waits_for_its_study(ctx):
    """Of that study all is there that its performed steps have made."""
    step = schedule(ctx)
    images = [one._replace(study=step.get("StudyInstanceUID")) for one in series(2)]
    one = put_workitem(ctx, a_workitem(input_item(images, ReferencedSOPSequence=[])))
    came(ctx, images)
    look_inside(ctx)
    assert readiness(one) == "UNAVAILABLE"
    end_ct(ctx, step, images)
    look_inside(ctx)
    assert readiness(one) == "READY"


def test_an_incomplete_list_stays_so_though_what_it_lists_is_there(ctx):
    one = input_workitem(ctx, images := series(2), readiness="INCOMPLETE")
    came(ctx, images)
    look_inside(ctx)
    assert readiness(one) == "INCOMPLETE"


@pytest.mark.parametrize("kind", ["runs", "misses one", "all there"])
def test_an_incomplete_list_is_ready_when_its_study_is_done(ctx, kind):
    step = schedule(ctx)
    images = [one._replace(study=step.get("StudyInstanceUID")) for one in series(3)]
    one = input_workitem(ctx, images[:1], readiness="INCOMPLETE")
    create(ctx, creation_for(step, PerformedSeriesSequence=[series_of(images)]))
    if kind != "runs":
        change(ctx, ending(PerformedSeriesSequence=[series_of(images)]))
    came(ctx, images[: 2 if kind == "misses one" else 3])
    look_inside(ctx)
    assert readiness(one) == ("READY" if kind == "all there" else "INCOMPLETE")


def test_a_second_performed_step_that_runs_keeps_a_list_incomplete(ctx):
    step = schedule(ctx)
    images = [one._replace(study=step.get("StudyInstanceUID")) for one in series(2)]
    one = input_workitem(ctx, images, readiness="INCOMPLETE")
    end_ct(ctx, step, images)
    create(ctx, creation_for(step), new_uid())
    came(ctx, images)
    look_inside(ctx)
    assert readiness(one) == "INCOMPLETE"


def test_a_second_step_of_the_study_that_is_to_come_keeps_a_list_incomplete(ctx):
    """Native now, with contrast in an hour: more images are to be expected (PS3.3 C.30.2)."""
    first, _ = schedule(ctx, {"ScheduledProcedureStepDescription": "With contrast"})
    images = [one._replace(study=first.get("StudyInstanceUID")) for one in series(2)]
    one = input_workitem(ctx, images, readiness="INCOMPLETE")
    end_ct(ctx, first, images)
    came(ctx, images)
    look_inside(ctx)
    assert readiness(one) == "INCOMPLETE"


def test_a_workitem_in_progress_is_left_alone(ctx):
    one = input_workitem(ctx, images := series(2))
    change_state(ctx, one, "IN PROGRESS", LOCK)
    came(ctx, images)
    look_inside(ctx)
    assert readiness(one) == "UNAVAILABLE"


def test_a_workitem_that_is_claimed_meanwhile_is_left_alone(ctx):
    """Claimed between the look and the change."""
    one = input_workitem(ctx, images := series(2))
    came(ctx, images)
    assert ready_workitems() == [one]
    change_state(ctx, one, "IN PROGRESS", LOCK)
    make_ready(ctx, one)
    assert readiness(one) == "UNAVAILABLE"


def test_a_workitem_whose_input_is_taken_back_meanwhile_waits(ctx):
    one = input_workitem(ctx, images := series(2))
    came(ctx, images)
    assert ready_workitems() == [one]
    notify(ctx, images[:1], "UNAVAILABLE")
    make_ready(ctx, one)
    assert readiness(one) == "UNAVAILABLE"


def test_a_ready_workitem_is_told_of_once(ctx):
    """PS3.4 CC.2.4.3: event 1 when Input Readiness changes."""
    everything = UPS_GLOBAL_SUBSCRIPTION
    subscribe(ctx, everything, "CT1", False, channel="websocket")
    one = input_workitem(ctx, images := series(2))
    came(ctx, images)
    look_inside(ctx)
    look_inside(ctx)
    told = [(event.event_type, read_stored(event.data)) for event in history_of(one)]
    assert [(kind, ds.ProcedureStepState, ds.InputReadinessState) for kind, ds in told] == [
        (1, SCHEDULED, "UNAVAILABLE"),
        (1, SCHEDULED, "READY"),
    ]


def test_a_hundred_workitems_become_ready(ctx):
    came(ctx, images := series(2))
    them = [input_workitem(ctx, images) for _ in range(100)]
    others = [input_workitem(ctx, series(1)) for _ in range(100)]
    look_inside(ctx)
    assert {readiness(one) for one in them} == {"READY"}
    assert {readiness(one) for one in others} == {"UNAVAILABLE"}


def test_a_watcher_hears_that_a_workitem_is_ready(run_appliance, watcher):
    """A notice over the network, a State Report over the network."""
    pacs = watcher()
    running = run_appliance(
        settings(1, f"[device W]\nae_title = WATCH1\nhost = 127.0.0.1\nport = {pacs.port}\n",
                 "look_minutes = 0")
    )  # fmt: skip
    everything = UPS_GLOBAL_SUBSCRIPTION
    running.write(subscribe, running.context(), everything, "WATCH1", False)
    one = running.write(input_workitem, running.context(), images := series(2))
    running.appliance.wake_delivery()
    heard = pacs.next()
    assert (heard.uid, heard.data.InputReadinessState) == (one, "UNAVAILABLE")
    assert create_notice(running, notice(images))["status"] == 0
    heard = pacs.next()
    assert (heard.kind if hasattr(heard, "kind") else heard[0], heard.uid) == (1, one)
    assert (heard.state, heard.data.InputReadinessState) == (SCHEDULED, "READY")


@pytest.fixture
def silent():
    """An archive that takes connections and never answers."""
    one = Silent()
    yield one
    one.close()


def test_an_archive_that_does_not_answer_does_not_hold_up_a_workitem(run_appliance, silent):
    """Its inputs have come by the notice of another system."""
    running = run_appliance(settings(silent.port))
    scheduled(running)
    running.appliance.archive_watch.look_at = 0.0
    running.appliance.wake_delivery()
    assert silent.called.wait(PATIENCE_S)
    one = running.write(input_workitem, running.context(), images := series(1))
    running.write(came, running.context(), images)
    running.appliance.wake_delivery()
    ready, deadline = threading.Event(), 40
    while running.read(readiness, one) != "READY":
        deadline -= 1
        assert deadline, "it still waits"
        ready.wait(0.1)


# Begun and silent.


def stuck(ctx):
    """The exams that are listed as stuck, with the time of the last news."""
    return [(one.uid, one.since) for one in orphans(ctx) if one.kind == "exam"]


def test_an_exam_that_is_silent_is_listed_after_stuck_exam_hours(ctx):
    step = schedule(ctx)
    create(ctx, creation_for(step))
    assert stuck(at(ctx, hours=4)) == []
    assert stuck(at(ctx, hours=4, seconds=1)) == [(str(step_row(step).id), ctx.stamp())]


def test_a_report_in_between_is_news(ctx):
    """N-SET of a series after three hours."""
    step = schedule(ctx)
    create(ctx, creation_for(step))
    change(at(ctx, hours=3), dataset(PerformedSeriesSequence=[performed_series()]))
    assert stuck(at(ctx, hours=6)) == []
    assert [since for _, since in stuck(at(ctx, hours=8))] == [at(ctx, hours=3).stamp()]


def test_an_exam_that_has_ended_is_not_stuck(ctx):
    step = schedule(ctx)
    create(ctx, creation_for(step))
    change(ctx, ending())
    assert stuck(at(ctx, days=2)) == []


def test_a_stuck_exam_is_ended_with_a_reason_by_an_administrator(run_appliance):
    running = run_appliance()
    step = scheduled(running, ScheduledStationAETitle="CT1", Modality="CT")
    with reporting(running) as call:
        call.create(creation_for(step))
    sql = "UPDATE {} SET {} = '2026-01-01T08:00:00.000000Z'"
    for table, column in (
        ("scheduled_procedure_step", "started_at"),
        ("performed_procedure_step", "updated_at"),
    ):
        running.write(database.execute_sql, sql.format(table, column))
    row_id = running.read(step_row, step).id
    form = {"kind": "exam", "uid": str(row_id), "about": ""}
    with visiting(running) as client:
        admin = employ(running, client, "admin")
        page = admin.get("/orphans")
        assert "Exam has started, no news since" in words_of(page)
        form["csrf"] = csrf_of(page.text)
        assert admin.post("/orphans", data={**form, "reason": " "}).status_code >= 400
        assert running.read(state, step) == STARTED
        admin.post("/orphans", data={**form, "reason": "The CT was switched off"})
        assert running.read(state, step) == COMPLETED
        shown = words_of(admin.get(f"/step/{row_id}"))
        assert "The CT was switched off" in shown
        assert "Source anna" in shown
        assert "Nothing needs attention" in words_of(admin.get("/orphans"))


def test_a_technologist_sees_stuck_exams_and_cannot_end_them(run_appliance):
    running = run_appliance()
    step = scheduled(running)
    with technologist_of(running) as anna:
        token = csrf_of(anna.get("/orphans").text)
        row_id = running.read(step_row, step).id
        form = {"csrf": token, "kind": "exam", "uid": str(row_id), "reason": "Because"}
        assert anna.post("/orphans", data=form).status_code == 403
    assert running.read(state, step) == SCHEDULED


def test_an_exam_that_is_not_stuck_any_more_is_not_ended(run_appliance):
    """As with workitems: the page was old when the button was pressed."""
    running = run_appliance()
    step = scheduled(running, ScheduledStationAETitle="CT1", Modality="CT")
    with reporting(running) as call:
        call.create(creation_for(step))
    with visiting(running) as client:
        admin = employ(running, client, "admin")
        token = csrf_of(admin.get("/orphans").text)
        row_id = running.read(step_row, step).id
        form = {"csrf": token, "kind": "exam", "uid": str(row_id), "reason": "Forgotten"}
        admin.post("/orphans", data=form)
    assert running.read(state, step) == STARTED


# What is kept, and what is not told.


def test_a_restart_in_between_keeps_what_was_seen(tmp_path, archive):
    """The count, and since when it stands, are in the store."""
    folder = tmp_path / "box"
    folder.mkdir()
    config = load_config(write_config(folder, settings(archive.port)))
    first = Running(config)
    step = scheduled(first)
    archive.store(*images_of(step, 2))
    watch_once(first)
    sql = "SELECT instances, told_by, since FROM study_seen"
    before = first.read(lambda: database.execute_sql(sql).fetchall())
    assert before[0][:2] == (2, "archive")
    first.stop()
    again = Running(load_config(folder / "config.ini"))
    try:
        watch_once(again)
        assert again.read(lambda: database.execute_sql(sql).fetchall()) == before
        assert again.read(outcome, step) == (STARTED, "")
    finally:
        again.stop()


def test_a_clock_that_was_behind_does_not_end_an_exam(ctx, sono, monkeypatch):
    """A box without a battery clock: the time of the last image moves with the leap."""
    behind = at(ctx, days=-1)
    came(behind, images_of(sono, 1))
    monkeypatch.setattr(time, "time", ctx.now().timestamp)
    correct_stamps(at(ctx, days=-2).now().timestamp(), 86400.0)
    look(at(ctx, minutes=1))
    assert state(sono) == STARTED


def test_logs_name_no_patient(ctx, sono, archive, caplog):
    caplog.set_level(logging.DEBUG)
    one = input_workitem(ctx, images := images_of(sono, 2))
    archive.store(*images)
    ctx = with_archive(ctx, archive.port)
    look(ctx)
    came(ctx, images)
    look(at(ctx, minutes=QUIET))
    assert (state(sono), readiness(one)) == (COMPLETED, "READY")
    said = [line.getMessage() for line in caplog.records if line.name == "minris"]
    assert said
    assert not [line for line in said if re.search("Wang|XiaoDong|王|P000042", line)]


def test_what_was_seen_of_a_study_goes_when_its_exam_has_ended(ctx, sono):
    came(ctx, images_of(sono, 1))
    look(at(ctx, minutes=QUIET))
    assert database.execute_sql("SELECT count(*) FROM study_seen").fetchone() == (0,)
