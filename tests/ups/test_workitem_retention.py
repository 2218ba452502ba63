"""Workitems that have ended, those that are stuck, and clocks that leap: what goes and what stays."""

import contextlib
import dataclasses
import datetime
import threading
import time

import pytest
from conftest import NOON
from test_housekeeping import at, count, keeping
from test_order_life import refused

from minris.access.context import Actor, utc_now
from minris.appliance import jobs
from minris.appliance.appliance import Appliance
from minris.appliance.jobs import DAILY, Daily, Job, daily_due, job_clock, job_daily, job_workitems
from minris.appliance.machine import ClockWatch
from minris.config.ini import Device
from minris.dataset.elements import ElementIndex, text_elements
from minris.housekeeping.retention import purge
from minris.housekeeping.stuck import correct_stamps, due_to_end, orphans
from minris.outbox import (
    RETRY_AFTER,
    due_events,
    due_receivers,
    give_up_events,
    note_failed,
    note_sent,
    retry_events,
)
from minris.standard.status import Refusal, Status
from minris.standard.uids import UPS_GLOBAL_SUBSCRIPTION
from minris.standard.ups import UPS_STATE
from minris.store.models import Audit, Outbox, Subscription, Workitem, WorkitemEvent
from minris.store.rows import get_mark, set_mark
from minris.ups.people import (
    assign_workitem,
    claim_by_person,
    end_workitem,
    history_of,
    release_lock,
    watchers_of,
)
from minris.ups.search import stored_workitem
from minris.ups.subscriptions import subscribe, unsubscribe
from minris.ups.workitems import (
    change_state,
    create_workitem,
    get_workitem,
    purge_workitems,
    request_cancel,
    update_workitem,
)

UID = "2.25.7"
LOCK = "2.25.99"  # a performer's Transaction UID
HOUR, DAY = 3600.0, 86400.0
WATCHERS = tuple(Device(title, (title,), "127.0.0.1", 11112) for title in ("RIS", "VIEWER", "PACS"))


def workitem(ctx, uid=UID, **texts):
    """Have 3D views of a CT made: the UID of the workitem."""
    told = {
        "ProcedureStepState": "SCHEDULED",
        "ScheduledProcedureStepPriority": "MEDIUM",
        "InputReadinessState": "READY",
        "ProcedureStepLabel": "3D views of the hip",
        "WorklistLabel": "3D",
        "ScheduledProcedureStepStartDateTime": "20260705093000",
        "PatientName": "Wang^XiaoDong=王^小东",
        "PatientID": "P1",
    }
    create_workitem(ctx, uid, bytes(text_elements(**told | texts)))
    return uid


def claim(ctx, uid=UID):
    """A machine claims it."""
    change_state(ctx, uid, "IN PROGRESS", LOCK)


def ended(ctx, uid=UID):
    """A workitem that a machine claimed and gave up: its UID."""
    workitem(ctx, uid)
    claim(ctx, uid)
    change_state(ctx, uid, "CANCELED", LOCK)
    return uid


def watch(ctx, uid=UID, ae_title="RIS", lock=False):
    """Subscribe an AE whose address is known."""
    subscribe(dataclasses.replace(ctx, devices=WATCHERS), uid, ae_title, lock)


def hear(ctx, *receivers):
    """Have all that is due to receivers delivered."""
    for receiver in receivers:
        heard = {event.outbox_id: "0000" for event in due_events(receiver, 10_000)}
        note_sent(ctx, receiver, heard)


def row(uid=UID):
    return stored_workitem(uid)


def state_of(uid=UID):
    return row(uid).state


def audited(what):
    """The audit lines of a kind: about what, detail, who."""
    lines = Audit.select().where(Audit.what == what).order_by(Audit.id)
    return [(line.about, line.detail, line.who) for line in lines]


def reason_code(uid=UID):
    """The code of the reason for which a workitem was cancelled."""
    progress = ElementIndex(bytes(row(uid).data)).item("ProcedureStepProgressInformationSequence")
    return progress.item("ProcedureStepDiscontinuationReasonCodeSequence").get("CodeValue")


# Retention


@pytest.mark.parametrize(("days", "left"), [(6.99, 1), (7.01, 0)])
def test_what_has_ended_is_purged_after_its_days(ctx, days, left):
    ended(at(ctx, days=-days))
    assert purge_workitems(keeping(ctx, workitems=7)) == 1 - left
    assert count(Workitem) == left


@pytest.mark.parametrize("claimed", [False, True], ids=["scheduled", "in progress"])
def test_what_has_not_ended_is_never_purged(ctx, claimed):
    workitem(at(ctx, days=-4000))
    if claimed:
        claim(at(ctx, days=-4000))
    assert purge_workitems(ctx) == 0
    assert count(Workitem) == 1


def test_the_days_count_from_the_end_and_not_from_the_beginning(ctx):
    workitem(at(ctx, days=-400))
    claim(at(ctx, days=-300))
    change_state(at(ctx, days=-1), UID, "CANCELED", LOCK)
    assert purge_workitems(ctx) == 0


def test_a_deletion_lock_keeps_what_has_ended_until_it_is_released(ctx):
    """T-UPS-73."""
    old = at(ctx, days=-400)
    workitem(old)
    watch(old, lock=True)
    claim(old)
    change_state(old, UID, "CANCELED", LOCK)
    hear(old, "RIS")
    assert purge_workitems(ctx) == 0
    unsubscribe(ctx, UID, "RIS")
    assert purge_workitems(ctx) == 1
    with refused(Status.NO_SUCH_UPS):
        get_workitem(UID)


def test_a_lock_is_released_by_a_subscription_without_one(ctx):
    old = at(ctx, days=-400)
    ended(old)
    watch(old, lock=True)
    watch(ctx, lock=False)
    hear(ctx, "RIS")
    assert purge_workitems(ctx) == 1


def test_one_lock_of_two_keeps_it(ctx):
    old = at(ctx, days=-400)
    ended(old)
    watch(old, ae_title="RIS", lock=True)
    watch(old, ae_title="VIEWER", lock=True)
    hear(ctx, "RIS", "VIEWER")
    unsubscribe(ctx, UID, "RIS")
    assert purge_workitems(ctx) == 0


def test_a_subscription_without_lock_keeps_nothing_and_goes_with_it(ctx):
    old = at(ctx, days=-400)
    ended(old)
    watch(old)
    hear(old, "RIS")
    assert purge_workitems(ctx) == 1
    assert count(Subscription) == 0


def test_what_its_watcher_has_not_heard_of_stays(ctx):
    """A watcher told of the end finds the final state with N-GET."""
    old = at(ctx, days=-400)
    workitem(old)
    watch(old)
    claim(old)
    change_state(old, UID, "CANCELED", LOCK)
    assert purge_workitems(ctx) == 0
    hear(ctx, "RIS")
    assert purge_workitems(ctx) == 1


def test_what_will_not_be_told_any_more_keeps_nothing(ctx):
    old = at(ctx, days=-400)
    ended(old)
    watch(old)
    give_up_events(ctx, "RIS", "The RIS has been replaced")
    assert purge_workitems(ctx) == 1


def test_a_purge_is_in_slices(ctx):
    for number in range(5):
        ended(at(ctx, days=-400), f"2.25.7{number}")
    assert [purge_workitems(ctx, 2) for _ in range(4)] == [2, 2, 1, 0]


def test_what_is_kept_does_not_stop_a_slice(ctx):
    """The first of the list are locked, those behind them still go."""
    old = at(ctx, days=-400)
    for number in range(4):
        ended(old, f"2.25.7{number}")
    for number in range(2):
        watch(old, f"2.25.7{number}", lock=True)
    hear(old, "RIS")
    assert purge_workitems(ctx, 2) == 2
    assert {w.sop_instance_uid for w in Workitem.select()} == {"2.25.70", "2.25.71"}


def test_the_uid_of_a_purged_workitem_is_not_given_again(ctx):
    """T-UPS-03, after the purge too: one UID is one workitem for ever."""
    ended(at(ctx, days=-8))
    purge_workitems(ctx)
    with refused(Status.DUPLICATE_SOP_INSTANCE):
        workitem(ctx)


@pytest.mark.parametrize(
    "ask",
    [
        lambda ctx: get_workitem(UID),
        lambda ctx: update_workitem(ctx, UID, b""),
        lambda ctx: change_state(ctx, UID, "IN PROGRESS", LOCK),
        lambda ctx: request_cancel(ctx, UID),
        lambda ctx: watch(ctx),
        lambda ctx: unsubscribe(ctx, UID, "RIS"),
        lambda ctx: release_lock(ctx, UID, "RIS", "Gone"),
        lambda ctx: end_workitem(ctx, UID, "Gone"),
        lambda ctx: claim_by_person(ctx, UID),
        lambda ctx: assign_workitem(ctx, UID, "CT room"),
    ],
    ids="get set claim cancel subscribe unsubscribe release end person assign".split(),
)
def test_a_purged_workitem_is_unknown_to_all_who_ask(ctx, ask):
    ended(at(ctx, days=-8))
    purge_workitems(ctx)
    with refused(Status.NO_SUCH_UPS):
        ask(ctx)


def test_the_history_of_a_purged_workitem_stays(ctx):
    ended(at(ctx, days=-400))
    before = history_of(UID)
    purge_workitems(ctx)
    purge(keeping(ctx, deliveries=1))
    assert history_of(UID) == before
    assert [one.event_type for one in before] == [1, 1, 1]


def test_a_purge_is_in_the_audit_log(ctx):
    ended(at(ctx, days=-8))
    purge_workitems(dataclasses.replace(ctx, actor=Actor("minris")))
    assert audited("workitem purged") == [(UID, "", "minris")]


@pytest.mark.parametrize(("age", "left"), [(89, 3), (91, 0)])
def test_the_history_goes_after_its_days_where_they_are_set(ctx, age, left):
    ended(at(ctx, days=-age))
    purge_workitems(ctx)
    purge(keeping(ctx, workitem_history=90))
    assert len(history_of(UID)) == left


def test_the_history_of_what_is_still_here_is_kept(ctx):
    workitem(at(ctx, days=-400))
    purge(keeping(ctx, workitem_history=90))
    assert len(history_of(UID)) == 1


@pytest.mark.parametrize(("age", "left"), [(29, 1), (31, 0)])
def test_who_was_told_is_remembered_for_its_days(ctx, age, left):
    old = at(ctx, days=-age)
    workitem(old)
    watch(old)
    hear(old, "RIS")
    purge(keeping(ctx, deliveries=30))
    assert count(Outbox) == left


def test_what_is_still_to_be_told_is_not_forgotten_however_old(ctx):
    old = at(ctx, days=-400)
    workitem(old)
    watch(old)
    purge(keeping(ctx, deliveries=30, workitem_history=30))
    assert [event.uid for event in due_events("RIS")] == [UID]


def test_first_reports_to_new_subscribers_do_not_gather_for_ever(ctx):
    """They are no history: each subscription to everything would leave one for each workitem."""
    old = at(ctx, days=-400)
    ended(old)
    for _ in range(3):
        watch(old, UPS_GLOBAL_SUBSCRIPTION, lock=True)
    hear(old, "RIS")
    purge(keeping(ctx, deliveries=30))
    assert WorkitemEvent.select().where(WorkitemEvent.initial == 1).count() == 0


# What is stuck


def stuck(ctx, kind):
    """What is listed as stuck, of a kind."""
    return [tuple(one)[1:] for one in orphans(ctx) if one.kind == kind]


def test_nothing_is_stuck_in_a_new_store(ctx):
    assert orphans(ctx) == []


@pytest.mark.parametrize(("hours", "listed"), [(23.9, False), (24.1, True)])
def test_a_lock_on_what_ended_long_ago_is_stuck(ctx, hours, listed):
    old = at(ctx, hours=-hours)
    ended(old)
    watch(old, lock=True)
    heard = at(ctx, hours=-hours + 1)
    hear(heard, "RIS")
    known = [(UID, "RIS", old.stamp(), heard.stamp())]
    assert stuck(ctx, "lock") == (known if listed else [])


def test_a_lock_on_what_has_not_ended_is_not_stuck(ctx):
    old = at(ctx, days=-30)
    workitem(old)
    watch(old, lock=True)
    assert stuck(ctx, "lock") == []


def test_a_subscription_without_lock_is_not_stuck(ctx):
    ended(at(ctx, days=-6))
    watch(at(ctx, days=-6))
    assert stuck(ctx, "lock") == []


def test_a_lock_of_a_watcher_never_heard_of_is_listed_as_such(ctx):
    ended(at(ctx, days=-6))
    watch(at(ctx, days=-6), lock=True)
    [(_, _, _, heard)] = stuck(ctx, "lock")
    assert heard == ""


@pytest.mark.parametrize(("hours", "listed"), [(7.9, False), (8.1, True)])
def test_a_workitem_in_progress_without_news_is_stuck(ctx, hours, listed):
    workitem(at(ctx, days=-30))
    claim(at(ctx, hours=-hours))
    known = [(UID, "CT1", at(ctx, hours=-hours).stamp(), "3D views of the hip")]
    assert stuck(ctx, "silent") == (known if listed else [])


def test_news_of_its_performer_make_a_workitem_no_longer_silent(ctx):
    workitem(at(ctx, days=-30))
    claim(at(ctx, hours=-20))
    news = text_elements(TransactionUID=LOCK, CommentsOnTheScheduledProcedureStep="Half")
    update_workitem(at(ctx, hours=-1), UID, bytes(news))
    assert stuck(ctx, "silent") == []


def test_a_workitem_that_waits_for_long_is_not_silent(ctx):
    workitem(at(ctx, days=-30))
    assert orphans(ctx) == []


@pytest.mark.parametrize(
    ("expires", "listed"),
    [("20260705115959", True), ("20260705120001", False), ("20260705135959+0200", True), ("", 0)],
)
def test_a_scheduled_workitem_past_its_expiration_is_stuck(ctx, expires, listed):
    workitem(ctx, ScheduledProcedureStepExpirationDateTime=expires)
    known = [(UID, "3D", "2026-07-05T11:59:59.000000Z", "3D views of the hip")]
    assert stuck(ctx, "expired") == (known if listed else [])


def test_what_was_begun_in_time_does_not_expire(ctx):
    workitem(ctx, ScheduledProcedureStepExpirationDateTime="20260705080000")
    claim(ctx)
    assert stuck(ctx, "expired") == []


@pytest.mark.parametrize(("minutes", "listed"), [(9, False), (11, True)])
def test_events_that_are_not_delivered_are_stuck(ctx, minutes, listed):
    old = at(ctx, minutes=-minutes)
    workitem(old)
    watch(old)
    claim(ctx)
    note_failed(ctx, "RIS", "it is not reached at 127.0.0.1, port 11112")
    known = [("RIS", "2", old.stamp(), "it is not reached at 127.0.0.1, port 11112")]
    assert stuck(ctx, "events") == (known if listed else [])


@pytest.mark.parametrize("end", ["heard", "given up"])
def test_events_that_are_done_with_are_not_stuck(ctx, end):
    workitem(at(ctx, days=-3))
    watch(at(ctx, days=-3))
    if end == "heard":
        hear(ctx, "RIS")
    else:
        give_up_events(ctx, "RIS", "Replaced")
    assert stuck(ctx, "events") == []


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("stuck_lock_hours", 100, "lock"),
        ("stuck_workitem_hours", 100, "silent"),
        ("stuck_events_minutes", 6000, "events"),
    ],
)
def test_how_long_until_it_is_stuck_is_the_clinics_choice(ctx, key, value, kind):
    old = at(ctx, hours=-99)
    ended(old, "2.25.71")
    watch(old, "2.25.71", lock=True)
    workitem(old, "2.25.72")
    claim(old, "2.25.72")
    assert stuck(ctx, kind)
    setattr(ctx.config.housekeeping, key, value)
    assert stuck(ctx, kind) == []


# Ended by an administrator


@pytest.fixture
def admin(ctx):
    """The circumstances of an administrator at the desk."""
    return ctx.by(Actor("root", "127.0.0.1", "admin"))


def test_a_released_lock_lets_the_workitem_go_and_leaves_the_subscription(ctx, admin):
    old = at(ctx, days=-30)
    ended(old)
    watch(old, lock=True)
    hear(old, "RIS")
    release_lock(admin, UID, "RIS", "The RIS is gone")
    assert watchers_of(UID) == [("RIS", 0)]
    assert stuck(ctx, "lock") == []
    assert audited("lock released") == [(UID, "RIS: The RIS is gone", "root@127.0.0.1")]
    assert purge_workitems(ctx) == 1


def test_a_lock_of_another_watcher_stays(ctx, admin):
    ended(ctx)
    for title in ("RIS", "VIEWER"):
        watch(ctx, ae_title=title, lock=True)
    release_lock(admin, UID, "RIS", "The RIS is gone")
    assert watchers_of(UID) == [("RIS", 0), ("VIEWER", 1)]


def test_the_audit_log_names_no_lock_that_was_not_there(ctx, admin):
    ended(ctx)
    watch(ctx, lock=False)
    with contextlib.suppress(Refusal):
        release_lock(admin, UID, "RIS", "The RIS is gone")
    assert audited("lock released") == []


def test_a_stuck_workitem_is_cancelled_whoever_has_claimed_it(ctx, admin):
    workitem(ctx)
    watch(ctx)
    claim(ctx)
    hear(ctx, "RIS")
    end_workitem(admin, UID, "The workstation has died")
    assert (state_of(), reason_code()) == ("CANCELED", "110513")
    [event] = due_events("RIS")
    report = ElementIndex(event.data)
    assert report.text(UPS_STATE) == "CANCELED"
    assert report.get("ReasonForCancellation") == "The workstation has died"
    assert audited("workitem ended") == [(UID, "The workstation has died", "root@127.0.0.1")]


def test_a_workitem_that_nobody_began_ends_by_way_of_in_progress(ctx, admin):
    """PS3.4 CC.2.2.3: there is no other way to CANCELED."""
    workitem(ctx)
    watch(ctx)
    hear(ctx, "RIS")
    end_workitem(admin, UID, "Nobody needs it", "110533")
    told = [ElementIndex(e.data).text(UPS_STATE) for e in due_events("RIS")]
    assert told == ["IN PROGRESS", "CANCELED"]
    assert reason_code() == "110533"


def test_what_has_ended_is_not_ended_again(ctx, admin):
    ended(ctx)
    with refused(Status.MAY_NO_LONGER_BE_UPDATED):
        end_workitem(admin, UID, "Nobody needs it")


def test_a_workitem_does_not_end_for_a_reason_that_is_none_of_the_list(ctx, admin):
    workitem(ctx)
    with refused(Status.INVALID_ATTRIBUTE_VALUE):
        end_workitem(admin, UID, "Nobody needs it", "99999")
    assert state_of() == "SCHEDULED"


def test_the_performer_of_what_was_ended_hears_that_it_may_not_report_any_more(ctx, admin):
    workitem(ctx)
    claim(ctx)
    end_workitem(admin, UID, "The workstation has died")
    with refused(Status.MAY_NO_LONGER_BE_UPDATED):
        change_state(ctx, UID, "COMPLETED", LOCK)


def test_events_given_up_are_those_of_one_receiver(ctx, admin):
    workitem(ctx)
    for title in ("RIS", "VIEWER"):
        watch(ctx, ae_title=title)
    claim(ctx)
    assert give_up_events(admin, "RIS", "The RIS is gone") == 2
    assert due_events("RIS") == []
    assert len(due_events("VIEWER")) == 2
    assert audited("events given up") == [("RIS", "2: The RIS is gone", "root@127.0.0.1")]


def test_what_happens_after_events_were_given_up_is_told(ctx, admin):
    workitem(ctx)
    watch(ctx)
    give_up_events(admin, "RIS", "It was off for a week")
    claim(ctx)
    assert len(due_events("RIS")) == 1


def test_a_receiver_tried_again_is_due_at_once(ctx, admin):
    workitem(ctx)
    watch(ctx)
    for _ in range(8):
        note_failed(ctx, "RIS", "not reached")
    assert due_receivers(ctx) == []
    retry_events(admin, "RIS")
    assert due_receivers(ctx) == ["RIS"]
    assert audited("events tried again") == [("RIS", "", "root@127.0.0.1")]


BY_HAND = {
    "release_lock": lambda ctx, why: release_lock(ctx, UID, "RIS", why),
    "end_workitem": lambda ctx, why: end_workitem(ctx, UID, why),
    "give_up_events": lambda ctx, why: give_up_events(ctx, "RIS", why),
}


@pytest.mark.parametrize("why", ["", "  \n"], ids=["nothing", "blanks"])
@pytest.mark.parametrize("deed", BY_HAND)
def test_without_a_reason_nothing_stuck_is_ended(ctx, admin, deed, why):
    workitem(ctx)
    watch(ctx, lock=True)
    before = Audit.select().count()
    with refused(Status.INVALID_ATTRIBUTE_VALUE):
        BY_HAND[deed](admin, why)
    assert state_of() == "SCHEDULED"
    assert watchers_of(UID) == [("RIS", 1)]
    assert len(due_events("RIS")) == 1
    assert Audit.select().count() == before


@pytest.mark.parametrize("deed", ["release_lock", "end_workitem"])
def test_what_is_not_there_is_not_ended(ctx, admin, deed):
    with refused(Status.NO_SUCH_UPS):
        BY_HAND[deed](admin, "Nobody needs it")


# Ended of itself


def housekeep(ctx, **settings):
    """Other settings of [housekeeping]."""
    for key, value in settings.items():
        setattr(ctx.config.housekeeping, key, value)
    return ctx


def end_due(ctx):
    """Do what is due to end: how much that was."""
    due = due_to_end(ctx)
    for core, arguments in due:
        core(ctx, *arguments)
    return len(due)


def all_that_is_stuck(ctx):
    """A lock, a silent and an expired workitem, all 99 hours old."""
    old = at(ctx, hours=-99)
    ended(old, "2.25.71")
    watch(old, "2.25.71", lock=True)
    workitem(old, "2.25.72")
    claim(old, "2.25.72")
    workitem(old, "2.25.73", ScheduledProcedureStepExpirationDateTime="20260701")


def test_by_default_nothing_that_is_stuck_ends_of_itself(ctx):
    all_that_is_stuck(ctx)
    assert {one.kind for one in orphans(ctx)} == {"lock", "silent", "expired", "events"}
    assert due_to_end(ctx) == []


@pytest.mark.parametrize(("days", "lock"), [(4, 0), (5, 1)])
def test_locks_are_released_after_the_days_that_are_set(ctx, days, lock):
    all_that_is_stuck(ctx)
    assert end_due(housekeep(ctx, release_locks_days=days)) == 1 - lock
    assert watchers_of("2.25.71") == [("RIS", lock)]
    assert len(audited("lock released")) == 1 - lock


def test_a_lock_on_what_has_not_ended_is_never_released_of_itself(ctx):
    workitem(at(ctx, days=-400))
    watch(at(ctx, days=-400), lock=True)
    assert due_to_end(housekeep(ctx, release_locks_days=1)) == []


@pytest.mark.parametrize(("hours", "state"), [(98, "CANCELED"), (100, "IN PROGRESS")])
def test_silent_workitems_are_cancelled_after_the_hours_that_are_set(ctx, hours, state):
    all_that_is_stuck(ctx)
    end_due(housekeep(ctx, cancel_silent_workitems_hours=hours))
    assert state_of("2.25.72") == state
    assert state_of("2.25.73") == "SCHEDULED"


def test_expired_workitems_are_cancelled_where_that_is_set(ctx):
    all_that_is_stuck(ctx)
    assert end_due(housekeep(ctx, cancel_expired_workitems=True)) == 1
    assert (state_of("2.25.73"), reason_code("2.25.73")) == ("CANCELED", "110533")
    assert state_of("2.25.72") == "IN PROGRESS"


def test_what_ended_of_itself_says_by_which_setting(ctx):
    all_that_is_stuck(ctx)
    end_due(
        housekeep(
            ctx,
            release_locks_days=1,
            cancel_silent_workitems_hours=1,
            cancel_expired_workitems=True,
        )
    )
    details = [detail for _, detail, _ in audited("lock released") + audited("workitem ended")]
    assert details == [
        "RIS: [housekeeping] release_locks_days",
        "[housekeeping] cancel_silent_workitems_hours",
        "[housekeeping] cancel_expired_workitems",
    ]


def test_what_was_ended_of_itself_is_not_due_again(ctx):
    all_that_is_stuck(ctx)
    housekeep(
        ctx, release_locks_days=1, cancel_silent_workitems_hours=1, cancel_expired_workitems=True
    )
    assert (end_due(ctx), end_due(ctx)) == (3, 0)


def end_what_was_due(ctx, due):
    for core, arguments in due:
        with contextlib.suppress(Refusal):
            core(ctx, *arguments)


def test_news_between_the_look_and_the_deed_save_a_silent_workitem(ctx):
    """What is due is read without the store's lock; its performer may report meanwhile."""
    all_that_is_stuck(ctx)
    due = due_to_end(housekeep(ctx, cancel_silent_workitems_hours=1))
    news = text_elements(TransactionUID=LOCK, CommentsOnTheScheduledProcedureStep="Half")
    update_workitem(ctx, "2.25.72", bytes(news))
    end_what_was_due(ctx, due)
    assert state_of("2.25.72") == "IN PROGRESS"


def test_what_is_claimed_between_the_look_and_the_deed_does_not_expire(ctx):
    all_that_is_stuck(ctx)
    due = due_to_end(housekeep(ctx, cancel_expired_workitems=True))
    claim(ctx, "2.25.73")
    end_what_was_due(ctx, due)
    assert state_of("2.25.73") == "IN PROGRESS"


# Deliveries and the clock


def waiting(ctx):
    """Events that the RIS is to hear of."""
    workitem(ctx)
    watch(ctx)
    claim(ctx)


@pytest.mark.parametrize(("seconds", "due"), [(4, []), (6, ["RIS"])])
def test_a_receiver_that_failed_is_tried_again_after_its_wait(ctx, seconds, due):
    waiting(ctx)
    note_failed(ctx, "RIS", "not reached")
    assert due_receivers(at(ctx, seconds=seconds)) == due


def test_a_try_far_in_the_future_is_made_now(ctx):
    """It was noted before the clock was set back."""
    waiting(ctx)
    note_failed(at(ctx, days=300), "RIS", "not reached")
    assert due_receivers(ctx) == ["RIS"]


def test_a_clock_set_back_by_an_hour_does_not_hold_up_a_receiver(ctx):
    waiting(ctx)
    note_failed(at(ctx, hours=1), "RIS", "not reached")
    assert due_receivers(ctx) == ["RIS"]


def test_the_longest_wait_is_waited_for(ctx):
    waiting(ctx)
    for _ in range(20):
        wait = note_failed(ctx, "RIS", "not reached")
    assert wait == RETRY_AFTER[-1]
    assert due_receivers(at(ctx, seconds=wait - 1)) == []
    assert due_receivers(at(ctx, seconds=wait)) == ["RIS"]


def test_a_leap_of_the_clock_gives_up_no_events(ctx):
    """It is the waits that count: two failures are not three days."""
    waiting(ctx)
    note_failed(ctx, "RIS", "not reached")
    note_failed(at(ctx, days=4000), "RIS", "not reached")
    assert len(due_events("RIS")) == 2


def fail_for(ctx, hours):
    """A receiver that is not reached for so long: the circumstances after that."""
    passed = 0.0
    while passed <= hours * HOUR:
        passed += note_failed(at(ctx, seconds=passed), "RIS", "not reached")
    return at(ctx, seconds=passed)


def test_events_are_given_up_after_hours_of_failing(ctx):
    waiting(ctx)
    then = fail_for(ctx, 73)
    assert due_events("RIS") == []
    assert [about for about, _, _ in audited("events given up")] == ["RIS"]
    assert watchers_of(UID) == [("RIS", 0)]
    assert due_receivers(then) == []


def test_events_are_not_given_up_before(ctx):
    waiting(ctx)
    fail_for(ctx, 70)
    assert len(due_events("RIS")) == 2


def test_young_events_are_not_given_up_with_the_old(ctx):
    waiting(ctx)
    change_state(at(ctx, hours=60), UID, "CANCELED", LOCK)
    fail_for(ctx, 73)
    assert len(due_events("RIS")) == 1


# The clock of the machine


class Board:
    """A machine whose clocks the test moves; they are looked at as the appliance does."""

    def __init__(self, wall=NOON.timestamp()):
        self.wall, self.running, self.watch, self.leaps = wall, 5.0, None, []

    def start(self, last_seen):
        """The appliance starts."""
        self.watch = ClockWatch(last_seen, lambda: self.wall, lambda: self.running)
        return self

    def run(self, seconds):
        """Let time pass."""
        while seconds > 0:
            step = min(15.0, seconds)
            self.wall, self.running, seconds = self.wall + step, self.running + step, seconds - step
            self.look()
        return self

    def look(self):
        if leap := self.watch.check():
            self.leaps.append(leap)

    def leap(self, seconds):
        """The wall clock is set; the other runs on."""
        self.wall += seconds
        return self

    @property
    def steady(self):
        return self.watch.steady


NOW = NOON.timestamp()
CALM, LONG = ClockWatch.CALM, ClockWatch.LONG


@pytest.mark.parametrize("away", [None, 0, HOUR, 6.9 * DAY, -59])
def test_after_a_usual_absence_the_clock_is_believed_after_a_calm_while(away):
    board = Board().start(None if away is None else NOW - away)
    assert not board.steady
    assert not board.run(CALM - 1).steady
    assert board.run(2).steady


@pytest.mark.parametrize("away", [7.1 * DAY, 10 * 365 * DAY, -61, -56 * 365 * DAY])
def test_after_a_doubtful_absence_the_clock_is_believed_after_a_long_while(away):
    """Off for more than a week, or for less than no time."""
    board = Board().start(NOW - away)
    assert not board.run(LONG - 1).steady
    assert board.run(2).steady


@pytest.fixture
def board():
    """A machine that has run for an hour."""
    board = Board().start(NOW).run(HOUR)
    assert board.steady
    assert board.leaps == []
    return board


@pytest.mark.parametrize("seconds", [59, -59, 1])
def test_a_small_correction_is_no_leap(board, seconds):
    assert board.leap(seconds).run(15).steady
    assert board.leaps == []


@pytest.mark.parametrize("seconds", [61, -61, HOUR, -DAY, 6.9 * DAY])
def test_after_a_leap_the_clock_is_believed_after_a_calm_while(board, seconds):
    board.leap(seconds).run(15)
    assert board.leaps == [pytest.approx(seconds)]
    assert not board.run(CALM - 16).steady
    assert board.run(16).steady
    assert len(board.leaps) == 1


@pytest.mark.parametrize("seconds", [8 * DAY, -8 * DAY, 10 * 365 * DAY, -56 * 365 * DAY])
def test_after_a_far_leap_the_clock_is_believed_after_a_long_while(board, seconds):
    assert not board.leap(seconds).run(LONG - 1).steady
    assert board.run(16).steady


@pytest.mark.parametrize("seconds", [HOUR, -HOUR, 10 * 365 * DAY])
def test_a_leap_makes_the_clock_unsteady_before_it_is_looked_at(board, seconds):
    """Jobs that the leap has made due run at once, up to 15 s before the next look."""
    assert not board.leap(seconds).steady


def test_a_leap_that_a_job_saw_first_is_still_reported(board):
    board.leap(HOUR)
    assert not board.steady
    board.look()
    assert board.leaps == [pytest.approx(HOUR)]


def test_a_small_leap_does_not_shorten_the_wait_after_a_far_one(board):
    board.leap(10 * 365 * DAY).run(HOUR).leap(HOUR)
    assert not board.run(LONG - HOUR - 1).steady


def test_a_machine_that_slept_waits_before_it_is_believed(board):
    """In a suspension the one clock runs and the other does not."""
    board.leap(9 * HOUR).run(15)
    assert board.leaps == [pytest.approx(9 * HOUR)]
    assert not board.steady
    assert board.run(CALM).steady


def test_a_board_that_starts_in_the_past_is_not_believed_before_nor_just_after_its_leap():
    board = Board(wall=300.0).start(NOW - 9 * HOUR)
    assert not board.run(HOUR).steady
    board.leap(NOW - board.wall).run(15)
    assert not board.steady
    assert not board.run(CALM - 30).steady


def test_a_board_that_starts_in_the_past_and_is_off_at_night_is_believed_by_noon():
    """Once its clock fits the last time that was seen it is as good as another: not never."""
    board = Board(wall=300.0).start(NOW - 14 * HOUR).run(30)
    board.leap(NOW - board.wall)
    assert board.run(4 * HOUR).steady


def test_a_clock_that_is_set_right_again_is_not_believed_at_once(board):
    board.leap(10 * 365 * DAY).run(60).leap(-10 * 365 * DAY).run(15)
    assert len(board.leaps) == 2
    assert not board.run(CALM - 30).steady


# Jobs of the running appliance


@pytest.fixture
def restless(run_appliance):
    """An appliance that ends what is stuck, with the clocks of a `board`, just started."""
    running = run_appliance(
        "[housekeeping]\nrelease_locks_days = 1\ncancel_silent_workitems_hours = 8\n"
        "cancel_expired_workitems = yes\n"
    )
    board = Board().start(NOW)
    running.appliance.clock = board.watch
    running.board = board
    return running


def in_store(running, function):
    """Run something as of now in the store of an appliance."""
    return running.write(lambda: function(running.context()))


def before(ctx, **ago):
    """The same circumstances some time ago."""
    return dataclasses.replace(
        ctx, now=lambda: utc_now() - datetime.timedelta(**ago), devices=WATCHERS
    )


def fill(ctx):
    """One of each that is to go: to be purged, locked, silent, expired."""
    ended(before(ctx, days=30), "2.25.70")
    ended(before(ctx, days=2), "2.25.71")
    watch(before(ctx, days=2), "2.25.71", lock=True)
    hear(ctx, "RIS")
    workitem(before(ctx, days=2), "2.25.72")
    claim(before(ctx, days=2), "2.25.72")
    workitem(before(ctx, days=2), "2.25.73", ScheduledProcedureStepExpirationDateTime="20260101")


def what_is_there():
    """The states by UID, and the lock."""
    states = {w.sop_instance_uid[5:]: w.state for w in Workitem.select()}
    return states, watchers_of("2.25.71")


def test_the_job_of_workitems_ends_and_purges_what_is_due(restless):
    in_store(restless, fill)
    restless.board.run(HOUR)
    job_workitems(restless.appliance)
    states, watchers = restless.read(what_is_there)
    assert states == {"71": "CANCELED", "72": "CANCELED", "73": "CANCELED"}
    assert watchers == [("RIS", 0)]


def unsteady_at_start(board):
    pass


def unsteady_after_a_leap(board):
    board.run(HOUR).leap(HOUR).run(15)


def unsteady_within_a_leap(board):
    board.run(HOUR).leap(10 * 365 * DAY)


@pytest.mark.parametrize(
    "story", [unsteady_at_start, unsteady_after_a_leap, unsteady_within_a_leap]
)
def test_nothing_is_ended_or_purged_while_the_clock_is_not_steady(restless, story):
    in_store(restless, fill)
    was = restless.read(what_is_there)
    story(restless.board)
    job_workitems(restless.appliance)
    assert restless.read(what_is_there) == was


def test_what_is_stuck_is_said_while_the_clock_is_not_steady_too(restless, caplog):
    in_store(restless, fill)
    job_workitems(restless.appliance)
    for words in ("stuck: silent, 2.25.72", "stuck: expired, 2.25.73", "stuck: lock, 2.25.71, RIS"):
        assert words in caplog.text


def stuck_lines(caplog):
    return [line for line in caplog.messages if line.startswith("stuck: ")]


def test_what_is_stuck_is_said_once(restless, caplog):
    in_store(restless, fill)
    for _ in range(3):
        job_workitems(restless.appliance)
    assert len(stuck_lines(caplog)) == 3


def test_a_receiver_that_cannot_be_told_is_said_once_however_many_events_gather(restless, caplog):
    def gather(ctx):
        watch(before(ctx, hours=1), UPS_GLOBAL_SUBSCRIPTION)
        workitem(before(ctx, hours=1), ctx.new_uid())

    for _ in range(3):
        in_store(restless, gather)
        job_workitems(restless.appliance)
    assert len(stuck_lines(caplog)) == 1


def test_what_is_stuck_anew_is_said_again(restless, caplog):
    in_store(restless, lambda ctx: workitem(before(ctx, days=2)))
    in_store(restless, lambda ctx: claim(before(ctx, days=2)))
    job_workitems(restless.appliance)
    news = bytes(text_elements(TransactionUID=LOCK, ProcedureStepLabel="3D views"))
    in_store(restless, lambda ctx: update_workitem(ctx, UID, news))
    job_workitems(restless.appliance)
    in_store(restless, lambda ctx: update_workitem(before(ctx, days=1), UID, news))
    job_workitems(restless.appliance)
    assert len(stuck_lines(caplog)) == 2


def test_one_that_ended_meanwhile_does_not_keep_the_others_from_their_end(restless, monkeypatch):
    in_store(restless, fill)
    restless.board.run(HOUR)
    gone = (end_workitem, ("2.25.70", "Late", "110513"))
    there = (end_workitem, ("2.25.72", "Late", "110513"))
    monkeypatch.setattr("minris.appliance.jobs.due_to_end", lambda ctx: [gone, there])
    job_workitems(restless.appliance)
    assert restless.read(what_is_there)[0]["72"] == "CANCELED"


def test_what_was_claimed_by_a_wrong_clock_is_not_silent_when_the_clock_is_set_right(restless):
    """A board starts three days late, a workitem is claimed, then the time server is reached."""
    in_store(restless, lambda ctx: workitem(before(ctx, days=3)))
    in_store(restless, lambda ctx: claim(before(ctx, days=3)))
    restless.board.leap(3 * DAY).run(CALM + 30)
    assert restless.board.steady
    restless.write(correct_stamps, time.time() - 3 * DAY - HOUR, 3 * DAY)
    job_workitems(restless.appliance)
    assert restless.read(state_of) == "IN PROGRESS"


def test_a_doubtful_clock_is_not_what_the_next_start_goes_by(run_appliance, monkeypatch):
    """A clock years ahead is in doubt for a day; a restart after an hour makes it no better."""
    first = run_appliance()
    ahead = Board(wall=NOW + 10 * 365 * DAY).start(NOW)
    first.appliance.clock = ahead.run(HOUR).watch
    monkeypatch.setattr(time, "time", lambda: ahead.wall)
    job_clock(first.appliance)
    monkeypatch.undo()
    seen = first.read(get_mark, "clock")
    again = Board(wall=ahead.wall).start(float(seen) if seen else NOW)
    assert not again.run(HOUR).steady


def test_the_time_is_remembered_for_the_next_start(restless):
    restless.board.run(HOUR)
    job_clock(restless.appliance)
    seen = float(restless.read(get_mark, "clock"))
    assert abs(utc_now().timestamp() - seen) < 600


# Once a day


NIGHTLY = Daily("purge", lambda config: (3, 10), lambda appliance: None)


def on(day, clock):
    """A time of a day, in July 2026."""
    hour, minute = map(int, clock.split(":"))
    then = datetime.datetime(2026, 7, day, hour, minute, tzinfo=datetime.UTC)
    return lambda: then


def due(ctx, day, clock):
    """Whether the nightly purge is due then."""
    return daily_due(dataclasses.replace(ctx, now=on(day, clock)), NIGHTLY)


def done_on(day):
    set_mark("daily purge", f"202607{day:02}")


@pytest.mark.parametrize(("clock", "is_due"), [("03:09", False), ("03:10", True), ("23:59", True)])
def test_what_is_done_once_a_day_is_due_from_its_time_on(ctx, clock, is_due):
    done_on(4)
    assert due(ctx, 5, clock) is is_due


def test_what_has_been_done_today_is_not_due_again(ctx):
    done_on(5)
    assert not due(ctx, 5, "03:10")
    assert not due(ctx, 5, "23:59")
    assert due(ctx, 6, "03:10")


def test_what_was_missed_for_days_is_due_once(ctx):
    """The box was off from the first to the seventh."""
    done_on(1)
    assert due(ctx, 7, "08:00")
    done_on(7)
    assert not due(ctx, 7, "08:01")
    assert not due(ctx, 8, "03:09")


@pytest.mark.parametrize("back", [1, 2])
def test_a_clock_set_back_by_a_day_or_two_repeats_nothing(ctx, back):
    done_on(7)
    assert not due(ctx, 7 - back, "23:00")


def test_what_was_done_by_a_clock_far_ahead_does_not_keep_it_from_being_done(ctx):
    """Not never: the day it was done lies years ahead."""
    set_mark("daily purge", "20360705")
    assert due(ctx, 5, "03:10")


def test_without_a_time_it_is_never_due(ctx):
    done_on(1)
    assert not daily_due(ctx, NIGHTLY._replace(at=lambda config: None))


def test_a_store_that_knows_of_no_day_does_nothing(ctx):
    assert not due(ctx, 5, "23:59")


def test_the_first_day_of_a_new_store_does_nothing(appliance):
    """Nothing has gathered yet: its first night is the next."""
    ctx = appliance.context()
    late = datetime.datetime.combine(
        ctx.local_now().date(), datetime.time(23, 59), tzinfo=ctx.config.zone
    )
    tonight = dataclasses.replace(ctx, now=lambda: late)
    tomorrow = dataclasses.replace(ctx, now=lambda: late + datetime.timedelta(days=1))
    for daily in DAILY:
        assert not appliance.read(daily_due, tonight, daily)
        is_on = daily.at(ctx.config) is not None
        assert appliance.read(daily_due, tomorrow, daily) == is_on


@pytest.mark.parametrize(("utc", "is_due"), [("19:09", False), ("19:10", True)])
def test_the_time_is_that_of_the_clinics_clock(ctx, utc, is_due):
    """03:10 of the fifth in Shanghai is 19:10 of the fourth in UTC."""
    ctx.config.clinic.timezone = "Asia/Shanghai"
    done_on(4)
    assert due(ctx, 4, utc) is is_due


@pytest.fixture
def daily_probe(restless, monkeypatch):
    """Something done daily, from midnight on, that was last done long ago; gives its runs."""
    runs = []
    probe = Daily("probe", lambda config: (0, 0), lambda appliance: runs.append(1))
    monkeypatch.setattr("minris.appliance.appliance.DAILY", (probe,))
    monkeypatch.setattr("minris.appliance.jobs.DAILY", (probe,))
    restless.write(set_mark, "daily probe", "20260101")
    return runs


def test_the_daily_job_does_what_was_missed_once(restless, daily_probe):
    restless.board.run(HOUR)
    for _ in range(3):
        job_daily(restless.appliance)
    assert len(daily_probe) == 1


@pytest.mark.parametrize(
    "story", [unsteady_at_start, unsteady_after_a_leap, unsteady_within_a_leap]
)
def test_the_daily_job_waits_for_a_steady_clock(restless, daily_probe, story):
    story(restless.board)
    job_daily(restless.appliance)
    assert daily_probe == []


def test_one_daily_duty_that_fails_does_not_keep_the_others_from_being_done(
    restless, daily_probe, monkeypatch
):
    def fail(_):
        raise OSError("No space left on device")

    broken = Daily("broken", lambda config: (0, 0), fail)
    all_of_them = (broken, *jobs.DAILY)
    monkeypatch.setattr("minris.appliance.appliance.DAILY", all_of_them)
    monkeypatch.setattr("minris.appliance.jobs.DAILY", all_of_them)
    restless.write(set_mark, "daily broken", "20260101")
    restless.board.run(HOUR)
    restless.appliance.run_job(Job("daily", 60, job_daily))
    assert len(daily_probe) == 1


# After a leap


def test_after_the_clock_was_set_back_a_job_does_not_wait_for_the_old_time(
    monkeypatch, run_appliance
):
    ran = threading.Event()
    monkeypatch.setattr(
        "minris.appliance.appliance.BY_THE_CLOCK", Job("probe", 60, lambda appliance: ran.set())
    )
    box = run_appliance().appliance
    in_a_year = utc_now() + datetime.timedelta(days=365)
    box.scheduler.get_job("probe").modify(next_run_time=in_a_year)
    box.reschedule()
    assert ran.wait(10)
    assert box.scheduler.get_job("probe").next_run_time < in_a_year


def test_a_leap_before_the_jobs_have_begun_does_no_harm(config):
    box = Appliance(config)
    box.reschedule()
    box.lock.release()
