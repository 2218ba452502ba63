"""Section 8, EVENTS: who hears of a workitem, and what; sending is in test_delivery.py."""

import dataclasses
import datetime
from typing import NamedTuple

import peers
import pytest
from conftest import NOON, write_config
from pydicom.dataset import Dataset
from pynetdicom import AE
from test_mpps import code, dataset, read, refused, stored_form

from minris.access.context import Actor
from minris.config.ini import load_config
from minris.outbox import due_events, give_up_events, note_sent
from minris.standard.status import Refusal, Status
from minris.standard.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    UPS_FILTERED_SUBSCRIPTION,
    UPS_GLOBAL_SUBSCRIPTION,
    UPS_PULL,
    UPS_PUSH,
    UPS_WATCH,
)
from minris.standard.ups import SUBSCRIPTION_TRANSITIONS, UPS_ATTRIBUTES
from minris.store.models import database
from minris.ups import subscriptions as ups_subscriptions
from minris.ups.events import announce
from minris.ups.people import history_of, release_lock, watchers_of
from minris.ups.search import filter_search, find_workitems
from minris.ups.subscriptions import own_state, suspend_global_subscription
from minris.ups.workitems import (
    change_state,
    create_workitem,
    get_workitem,
    purge_workitems,
    request_cancel,
    update_workitem,
)

WATCHERS = """
[device Viewing room 1]
ae_title = WATCH1
host = 127.0.0.1
port = 9
[device Viewing room 2]
ae_title = WATCH2
host = 127.0.0.1
port = 9
"""
UID, OTHER, THIRD = "2.25.4001", "2.25.4002", "2.25.4003"
LOCK = "2.25.271828182845904523536"
BOTH = pytest.mark.parametrize("flavour", [UPS_GLOBAL_SUBSCRIPTION, UPS_FILTERED_SUBSCRIPTION])
REPORT, CANCEL, PROGRESS, RESTART, ASSIGNED = 1, 2, 3, 4, 5


# Workitems.


def workitem(**changes):
    """What a RIS creates: all type 1 and type 2 attributes of PS3.4 Table CC.2.5-3."""
    ds = Dataset()
    for attribute in UPS_ATTRIBUTES.children():
        if attribute.cells["create"].startswith("2/"):
            setattr(ds, attribute.keyword, [] if attribute.vr == "SQ" else "")
    ds.update(
        dataset(
            SpecificCharacterSet="ISO_IR 192",
            ScheduledProcedureStepPriority="MEDIUM",
            ProcedureStepLabel="3D views of the aorta",
            WorklistLabel="3D",
            ScheduledProcedureStepStartDateTime="20260705130000",
            ScheduledWorkitemCodeSequence=[code("110001", meaning="Image Processing")],
            InputReadinessState="READY",
            PatientName="Wang^XiaoDong=王^小东",
            PatientID="P000042",
            ProcedureStepState="SCHEDULED",
        )
    )
    ds.update(dataset(**changes))
    return ds


def person(value="TECH7", name="Li^Na", organization="Lakeside Clinic"):
    """An item of Scheduled Human Performers Sequence."""
    return dataset(
        HumanPerformerCodeSequence=[code(value, "99LAKESIDE", "Technologist")],
        HumanPerformerName=name,
        HumanPerformerOrganization=organization,
    )


def station(value="AW3"):
    """An item of Scheduled Station Name Code Sequence."""
    return code(value, "99LAKESIDE", "Workstation 3")


def progress(percent="40", **changes):
    """The one item of Procedure Step Progress Information Sequence."""
    ds = dataset(
        ProcedureStepProgress=percent,
        ProcedureStepProgressDescription="Vessels are marked",
        ProcedureStepCommunicationsURISequence=[
            dataset(ContactURI="tel:+49-6221-555-17", ContactDisplayName="3D desk")
        ],
    )
    ds.update(dataset(**changes))
    return ds


def performed(**changes):
    """The one item of UPS Performed Procedure Sequence that COMPLETED needs."""
    ds = dataset(
        PerformedStationNameCodeSequence=[station()],
        PerformedProcedureStepStartDateTime="20260705131500",
        PerformedProcedureStepEndDateTime="20260705134000",
        PerformedWorkitemCodeSequence=[code("110001", meaning="Image Processing")],
        OutputInformationSequence=[],
    )
    ds.update(dataset(**changes))
    return ds


def create(ctx, uid=UID, **changes):
    return create_workitem(ctx, uid, stored_form(workitem(**changes)))


def change(ctx, uid=UID, **changes):
    return update_workitem(ctx, uid, stored_form(dataset(**changes)))


def claim(ctx, uid=UID):
    assert change_state(ctx, uid, "IN PROGRESS", LOCK) == Status.SUCCESS


def complete(ctx, uid=UID):
    """Finish what has been claimed."""
    sequence = {"UnifiedProcedureStepPerformedProcedureSequence": [performed()]}
    change(ctx, uid, TransactionUID=LOCK, **sequence)
    assert change_state(ctx, uid, "COMPLETED", LOCK) == Status.SUCCESS


def subscribe(ctx, uid=UID, ae_title="WATCH1", lock=False, **keys):
    """Subscribe; a filtered global subscription to all labels if no keys are given."""
    if uid == UPS_FILTERED_SUBSCRIPTION:
        return ups_subscriptions.subscribe(
            ctx, uid, ae_title, lock, keys_of(keys or {"WorklistLabel": "*"})
        )
    return ups_subscriptions.subscribe(ctx, uid, ae_title, lock)


def keys_of(keys):
    """Matching keys, stored form."""
    return stored_form(dataset(SpecificCharacterSet="ISO_IR 192", **keys))


def state_of(uid=UID, ae_title="WATCH1"):
    """The AE's own state for a workitem, a word of SUBSCRIPTION_STATES."""
    return own_state(dict(watchers_of(uid)).get(ae_title))


class Told(NamedTuple):
    """An event that waits for a receiver."""

    uid: str
    kind: int
    data: Dataset


def told(ae_title="WATCH1"):
    """All that an AE has not been told yet, in order."""
    due = due_events(ae_title, 1000)
    return [Told(event.uid, event.event_type, read(event.data)) for event in due]


def kinds(ae_title="WATCH1"):
    """[(UID, event type)] of all that an AE has not been told yet."""
    return [(event.uid, event.kind) for event in told(ae_title)]


def heard():
    """Nothing of what has happened waits any more."""
    database.execute_sql("DELETE FROM outbox")


def globally_subscribed():
    """[(AE title, UID, lock)] of all global subscriptions."""
    return database.execute_sql(
        "SELECT ae_title, uid, deletion_lock FROM global_subscription ORDER BY 1, 2"
    ).fetchall()


@pytest.fixture
def config(tmp_path):
    """The usual settings, and two watchers that we could call."""
    return load_config(write_config(tmp_path, WATCHERS))


@pytest.fixture
def scheduled(ctx):
    """A workitem that nobody watches."""
    create(ctx)
    heard()


# The subscription table.

REQUESTS = {
    "created, global lock": lambda ctx, flavour: subscribe(ctx, flavour, lock=True),
    "created, global": lambda ctx, flavour: subscribe(ctx, flavour),
    "subscribe globally, lock": lambda ctx, flavour: subscribe(ctx, flavour, lock=True),
    "subscribe globally": lambda ctx, flavour: subscribe(ctx, flavour),
    "subscribe, lock": lambda ctx, flavour: subscribe(ctx, lock=True),
    "subscribe": lambda ctx, flavour: subscribe(ctx),
    "unsubscribe": lambda ctx, flavour: ups_subscriptions.unsubscribe(ctx, UID, "WATCH1"),
    "unsubscribe globally": lambda ctx, flavour: ups_subscriptions.unsubscribe(
        ctx, flavour, "WATCH1"
    ),
    "suspend globally": lambda ctx, flavour: suspend_global_subscription(ctx, flavour, "WATCH1"),
}
CREATIONS = [request for request in REQUESTS if request.startswith("created")]
# a workitem that is created has no subscribers: one column alone
CELLS = [cell for cell in SUBSCRIPTION_TRANSITIONS if cell[0] not in CREATIONS]


def test_each_request_of_the_subscription_table_is_tried():
    assert {request for request, _ in SUBSCRIPTION_TRANSITIONS} == set(REQUESTS)


@BOTH
@pytest.mark.parametrize("request_", CREATIONS)
def test_a_new_workitem_has_the_subscribers_of_the_table(ctx, request_, flavour):
    """T-UPS-60, column of new workitems; T-UPS-67."""
    new, report = SUBSCRIPTION_TRANSITIONS[request_, "Not Subscribed"]
    REQUESTS[request_](ctx, flavour)
    create(ctx)
    assert (state_of(), kinds()) == (new, [(UID, REPORT)] if report else [])


@BOTH
@pytest.mark.parametrize(("request_", "state"), CELLS)
def test_a_request_has_the_effect_of_its_cell(ctx, scheduled, request_, state, flavour):
    """T-UPS-60; the same for a filtered subscription that matches: T-UPS-67."""
    if state != "Not Subscribed":
        subscribe(ctx, lock=state == "with Lock")
    heard()
    new, report = SUBSCRIPTION_TRANSITIONS[request_, state]
    REQUESTS[request_](ctx, flavour)
    assert (state_of(), kinds()) == (new, [(UID, REPORT)] if report else [])


@BOTH
@pytest.mark.parametrize("request_", [r for r, s in CELLS if s == "with Lock"])
def test_no_request_changes_what_another_watcher_hears(ctx, scheduled, request_, flavour):
    subscribe(ctx, ae_title="WATCH2", lock=True)
    heard()
    REQUESTS[request_](ctx, flavour)
    assert (state_of(ae_title="WATCH2"), kinds("WATCH2")) == ("with Lock", [])


def test_subscribing_again_tells_the_state_again(ctx, scheduled):
    """T-UPS-61."""
    subscribe(ctx)
    subscribe(ctx)
    assert kinds() == [(UID, REPORT)] * 2


def test_the_first_report_has_the_state_and_the_readiness_of_the_moment(ctx, scheduled):
    claim(ctx)
    subscribe(ctx)
    [event] = told()
    assert event.data == dataset(ProcedureStepState="IN PROGRESS", InputReadinessState="READY")


def test_subscribing_globally_with_a_lock_tells_of_each_workitem_once(ctx):
    """T-UPS-62."""
    for uid in (UID, OTHER, THIRD):
        create(ctx, uid)
    claim(ctx, OTHER)
    complete(ctx, OTHER)  # PS3.4 CC.2.4.3: every managed one, ended ones included
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION, lock=True)
    assert [(e.uid, e.kind, e.data.ProcedureStepState) for e in told()] == [
        (UID, REPORT, "SCHEDULED"),
        (OTHER, REPORT, "COMPLETED"),
        (THIRD, REPORT, "SCHEDULED"),
    ]


def test_subscribing_globally_without_a_lock_tells_nothing(ctx, scheduled):
    """T-UPS-62."""
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION)
    assert (state_of(), kinds()) == ("without Lock", [])


def test_a_global_subscription_without_a_lock_leaves_a_lock_where_it_is(ctx, scheduled):
    """T-UPS-63."""
    subscribe(ctx, lock=True)
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION)
    assert state_of() == "with Lock"


def test_subscribing_to_the_one_workitem_without_a_lock_releases_it(ctx, scheduled):
    """T-UPS-63."""
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION, lock=True)
    subscribe(ctx)
    assert state_of() == "without Lock"


def test_a_global_lock_is_no_lock_on_what_is_watched_without_one(ctx, scheduled):
    """PS3.4 Table CC.2.3-2: it is not upgraded."""
    subscribe(ctx)
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION, lock=True)
    assert state_of() == "without Lock"


def test_suspended_hears_on_of_what_there_is(ctx, scheduled):
    """T-UPS-64."""
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION, lock=True)
    suspend_global_subscription(ctx, UPS_GLOBAL_SUBSCRIPTION, "WATCH1")
    heard()
    claim(ctx)
    assert (state_of(), kinds()) == ("with Lock", [(UID, REPORT)])


def test_suspended_hears_nothing_of_what_is_new(ctx, scheduled):
    """T-UPS-64."""
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION)
    suspend_global_subscription(ctx, UPS_GLOBAL_SUBSCRIPTION, "WATCH1")
    create(ctx, OTHER)
    claim(ctx, OTHER)
    assert (state_of(OTHER), kinds(), globally_subscribed()) == ("Not Subscribed", [], [])


@BOTH
def test_unsubscribed_globally_hears_nothing_at_all(ctx, scheduled, flavour):
    """T-UPS-64, T-UPS-77: what was subscribed by itself is ended too."""
    subscribe(ctx, flavour, lock=True)
    create(ctx, OTHER)
    subscribe(ctx, OTHER, lock=True)
    heard()
    ups_subscriptions.unsubscribe(ctx, flavour, "WATCH1")
    claim(ctx)
    claim(ctx, OTHER)
    create(ctx, THIRD)
    assert (kinds(), globally_subscribed()) == ([], [])
    assert {state_of(uid) for uid in (UID, OTHER, THIRD)} == {"Not Subscribed"}


def test_a_suspended_subscription_is_taken_up_again(ctx, scheduled):
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION)
    suspend_global_subscription(ctx, UPS_GLOBAL_SUBSCRIPTION, "WATCH1")
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION)
    create(ctx, OTHER)
    assert kinds() == [(OTHER, REPORT)]


def test_events_go_to_the_receiver_and_not_to_the_one_that_asks(ctx, scheduled):
    """T-UPS-65: CT1 asks for WATCH2."""
    subscribe(ctx, ae_title="WATCH2")
    heard()
    claim(ctx)
    assert (kinds("WATCH2"), kinds("CT1")) == ([(UID, REPORT)], [])


def test_a_receiver_is_unsubscribed_by_anybody(ctx, scheduled):
    subscribe(ctx, ae_title="WATCH2", lock=True)
    ups_subscriptions.unsubscribe(ctx.by(Actor("US1", "127.0.0.1")), UID, "WATCH2")
    assert state_of(ae_title="WATCH2") == "Not Subscribed"


def everything_of_subscriptions():
    """All that a refused request must leave as it was."""
    return [
        database.execute_sql(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
        for table in ("subscription", "global_subscription", "outbox", "workitem_event")
    ]


@pytest.mark.parametrize("uid", [UID, UPS_GLOBAL_SUBSCRIPTION, UPS_FILTERED_SUBSCRIPTION])
@pytest.mark.parametrize("receiver", ["NOBODY", "US1"])
def test_a_receiver_that_could_not_be_called_is_refused(ctx, scheduled, uid, receiver):
    """T-UPS-66: one that is not registered, and one without an address."""
    subscribe(ctx, lock=True)
    before = everything_of_subscriptions()
    with refused(Status.RECEIVING_AE_UNKNOWN):
        subscribe(ctx, uid, receiver, lock=True)
    assert everything_of_subscriptions() == before


def test_suspending_one_workitem_is_not_appropriate(ctx, scheduled):
    """T-UPS-66."""
    subscribe(ctx)
    with refused(Status.ACTION_NOT_APPROPRIATE):
        suspend_global_subscription(ctx, UID, "WATCH1")
    assert state_of() == "without Lock"


@pytest.mark.parametrize(
    "request_", [subscribe, ups_subscriptions.unsubscribe, suspend_global_subscription]
)
def test_nobody_watches_what_is_not_there(ctx, scheduled, request_):
    """T-UPS-66."""
    with refused(Status.NO_SUCH_UPS):
        request_(ctx, OTHER, "WATCH1")


@pytest.mark.parametrize("uid", [UID, UPS_GLOBAL_SUBSCRIPTION, UPS_FILTERED_SUBSCRIPTION])
def test_a_lock_that_is_not_granted_is_a_warning(ctx, scheduled, uid):
    """T-UPS-66."""
    ctx.config.ups.grant_locks = False
    status = subscribe(ctx, uid, lock=True)
    assert (status, state_of()) == (Status.DELETION_LOCK_NOT_GRANTED, "without Lock")


def test_unsubscribing_what_is_not_watched_is_no_failure(ctx, scheduled):
    before = everything_of_subscriptions()
    ups_subscriptions.unsubscribe(ctx, UID, "WATCH1")
    ups_subscriptions.unsubscribe(ctx, UPS_GLOBAL_SUBSCRIPTION, "NOBODY")
    assert everything_of_subscriptions() == before


# Filtered.


def two_worklists(ctx):
    """One workitem for 3D, one for CAD."""
    create(ctx, UID, WorklistLabel="3D")
    create(ctx, OTHER, WorklistLabel="CAD")
    heard()


def test_a_filtered_subscription_is_to_what_matches(ctx):
    """T-UPS-67."""
    two_worklists(ctx)
    subscribe(ctx, UPS_FILTERED_SUBSCRIPTION, lock=True, WorklistLabel="CAD")
    assert (state_of(UID), state_of(OTHER)) == ("Not Subscribed", "with Lock")
    assert kinds() == [(OTHER, REPORT)]


def test_a_filtered_subscription_is_to_what_will_match(ctx):
    """T-UPS-67."""
    subscribe(ctx, UPS_FILTERED_SUBSCRIPTION, WorklistLabel="CAD")
    two_worklists(ctx)
    assert (state_of(UID), state_of(OTHER)) == ("Not Subscribed", "without Lock")


@pytest.mark.parametrize(
    "keys",
    [
        {"PatientName": "wang*"},
        {"PatientName": "*=王*"},
        {"PatientName": "WANG^XIAODONG"},
        {"PatientName": "Wang^Xiao*"},
        {"PatientName": "王*"},
        {"PatientName": "W?ng^*"},
        {"PatientName": "Wang^XiaoDong=王^小东"},
        {"PatientName": "Xiao*"},
        {"PatientName": "Wang^Xiaodong Li"},
        {"PatientID": "P000042", "WorklistLabel": "*"},
        {"PatientID": "p000042"},
        {"ProcedureStepLabel": "3D views*"},
        {"ProcedureStepLabel": "3d VIEWS of the aorta"},
        {"WorklistLabel": " 3D "},
        {"SOPInstanceUID": ["2.25.1", UID, OTHER]},
        {"ScheduledProcedureStepStartDateTime": "20260705150000+0200"},
        {"ScheduledProcedureStepStartDateTime": "20260705"},
        {"ScheduledProcedureStepStartDateTime": "-20260705130000"},
        {"ScheduledProcedureStepStartDateTime": "20260705130000.000001-"},
        {"ScheduledHumanPerformersSequence": []},
        {"ScheduledProcedureStepStartDateTime": "20260705-20260706"},
        {"ScheduledProcedureStepStartDateTime": "20260705080000+0000-"},
        {"ScheduledWorkitemCodeSequence": [code("110001")]},
        {"ScheduledStationNameCodeSequence": [code("AW?", "99LAKESIDE")]},
        {"ProcedureStepState": "SCHEDULED", "InputReadinessState": ""},
        {"ScheduledProcedureStepPriority": "HIGH"},
        {"PatientID": "P000043"},
        {"ScheduledProcedureStepStartDateTime": "20260706-"},
    ],
    ids=str,
)
def test_a_filter_means_what_a_query_means(ctx, keys):
    """PS3.4 CC.2.3.3.1: what a C-FIND with the same keys finds, there already and to come."""
    create(ctx, UID, ScheduledStationNameCodeSequence=[station()])
    heard()
    search = filter_search(keys_of(keys), ctx.config.zone)
    found = sum(len(answers) for answers in find_workitems(ctx, search))
    subscribe(ctx, UPS_FILTERED_SUBSCRIPTION, lock=True, **keys)
    create(ctx, OTHER, ScheduledStationNameCodeSequence=[station()])
    watched = [state_of(uid) == "with Lock" for uid in (UID, OTHER)]
    assert watched == [bool(found)] * 2


def test_a_new_filter_takes_the_place_of_the_old(ctx):
    subscribe(ctx, UPS_FILTERED_SUBSCRIPTION, WorklistLabel="CAD")
    subscribe(ctx, UPS_FILTERED_SUBSCRIPTION, WorklistLabel="3D")
    two_worklists(ctx)
    assert (state_of(UID), state_of(OTHER)) == ("without Lock", "Not Subscribed")


def test_a_filter_without_keys_is_refused(ctx, scheduled):
    """T-UPS-78."""
    with refused(Status.MISSING_ATTRIBUTE):
        ups_subscriptions.subscribe(ctx, UPS_FILTERED_SUBSCRIPTION, "WATCH1", True, b"")
    assert globally_subscribed() == []


def test_a_global_and_a_filtered_subscription_tell_once(ctx):
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION)
    subscribe(ctx, UPS_FILTERED_SUBSCRIPTION, lock=True, WorklistLabel="3D")
    create(ctx)
    assert (state_of(), kinds()) == ("with Lock", [(UID, REPORT)])


@pytest.mark.parametrize(
    ("suspended", "left"),
    [
        (UPS_GLOBAL_SUBSCRIPTION, UPS_FILTERED_SUBSCRIPTION),
        (UPS_FILTERED_SUBSCRIPTION, UPS_GLOBAL_SUBSCRIPTION),
    ],
)
def test_suspending_one_kind_leaves_the_other(ctx, suspended, left):
    """T-UPS-77."""
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION)
    subscribe(ctx, UPS_FILTERED_SUBSCRIPTION)
    suspend_global_subscription(ctx, suspended, "WATCH1")
    assert globally_subscribed() == [("WATCH1", left, 0)]


def test_a_suspended_filter_leaves_what_is_watched_and_takes_nothing_new(ctx, scheduled):
    """T-UPS-77."""
    subscribe(ctx, UPS_FILTERED_SUBSCRIPTION, lock=True)
    suspend_global_subscription(ctx, UPS_FILTERED_SUBSCRIPTION, "WATCH1")
    heard()
    create(ctx, OTHER)
    assert (state_of(), state_of(OTHER), kinds()) == ("with Lock", "Not Subscribed", [])


def test_a_global_lock_tells_of_what_is_watched_already_and_tells_again(ctx, scheduled):
    """T-UPS-76."""
    create(ctx, OTHER)
    subscribe(ctx, UID, lock=True)
    heard()
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION, lock=True)
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION, lock=True)
    assert kinds() == [(UID, REPORT), (OTHER, REPORT)] * 2


# What is told.


def test_a_new_workitem_for_a_station_is_told_as_scheduled_and_as_assigned(ctx):
    """T-UPS-68."""
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION)
    create(ctx, ScheduledStationNameCodeSequence=[station()], InputReadinessState="INCOMPLETE")
    report, assigned = told()
    wanted = dataset(ProcedureStepState="SCHEDULED", InputReadinessState="INCOMPLETE")
    assert (report.kind, report.data) == (REPORT, wanted)
    wanted = dataset(ScheduledStationNameCodeSequence=[station()])
    assert (assigned.kind, assigned.data) == (ASSIGNED, wanted)


def test_each_performer_of_a_new_workitem_is_told(ctx):
    """T-UPS-68; PS3.4 Table CC.2.4-1: the code and the organization stand at the top level."""
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION)
    create(ctx, ScheduledHumanPerformersSequence=[person("TECH7"), person("TECH8")])
    _, first, second = told()
    assert [event.data.HumanPerformerCodeSequence[0].CodeValue for event in (first, second)] == [
        "TECH7",
        "TECH8",
    ]
    assert set(first.data.dir()) == {"HumanPerformerCodeSequence", "HumanPerformerOrganization"}


def in_progress(**changes):
    """A modification of whoever has the lock."""
    return {"TransactionUID": LOCK, **changes}


CHANGES = {
    "readiness": ({"InputReadinessState": "INCOMPLETE"}, [REPORT]),
    "progress": ({"ProcedureStepProgressInformationSequence": [progress()]}, [PROGRESS]),
    "station": ({"ScheduledStationNameCodeSequence": [station()]}, [ASSIGNED]),
    "performers": ({"ScheduledHumanPerformersSequence": [person()]}, [ASSIGNED]),
    "comment": ({"CommentsOnTheScheduledProcedureStep": "Call before you begin"}, []),
    "label": ({"ProcedureStepLabel": "3D views of the heart", "WorklistLabel": "CAD"}, []),
    "station class": ({"ScheduledStationClassCodeSequence": [station("AW")]}, []),
    "priority": ({"ScheduledProcedureStepPriority": "HIGH"}, []),
    "all": (
        {
            "InputReadinessState": "UNAVAILABLE",
            "ProcedureStepProgressInformationSequence": [progress()],
            "ScheduledStationNameCodeSequence": [station()],
        },
        [REPORT, PROGRESS, ASSIGNED],
    ),
}


@pytest.mark.parametrize(("changes", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_told_as_its_kind(ctx, scheduled, changes, expected):
    """T-UPS-69."""
    claim(ctx)
    subscribe(ctx)
    heard()
    change(ctx, **in_progress(**changes))
    assert [event.kind for event in told()] == expected


@pytest.mark.parametrize(("changes", "expected"), CHANGES.values(), ids=CHANGES)
def test_the_same_value_again_is_told_nobody(ctx, scheduled, changes, expected):
    """T-UPS-70."""
    claim(ctx)
    change(ctx, **in_progress(**changes))
    subscribe(ctx)
    heard()
    change(ctx, **in_progress(**changes))
    assert kinds() == []


def test_progress_is_told_whole(ctx, scheduled):
    """T-UPS-69: all four attributes, not what has changed alone."""
    claim(ctx)
    sequence = "ProcedureStepProgressInformationSequence"
    parameters = [dataset(ValueType="TEXT", ConceptNameCodeSequence=[code("1")], TextValue="two")]
    item = progress("40", ProcedureStepProgressParametersSequence=parameters)
    change(ctx, **in_progress(**{sequence: [item]}))
    subscribe(ctx)
    heard()
    item.ProcedureStepProgress = "60"
    change(ctx, **in_progress(**{sequence: [item]}))
    [event] = told()
    assert event.data == dataset(**{sequence: [item]})


def test_progress_without_a_value_is_told_too(ctx, scheduled):
    """A performer that takes its progress back."""
    claim(ctx)
    sequence = "ProcedureStepProgressInformationSequence"
    change(ctx, **in_progress(**{sequence: [progress()]}))
    subscribe(ctx)
    heard()
    change(ctx, **in_progress(**{sequence: []}))
    assert kinds() == [(UID, PROGRESS)]


def test_who_is_unassigned_is_told(ctx):
    """PS3.4 CC.2.4.3: the sequence has changed, though it is empty now."""
    create(ctx, ScheduledStationNameCodeSequence=[station()])
    subscribe(ctx)
    heard()
    change(ctx, ScheduledStationNameCodeSequence=[])
    assert kinds() == [(UID, ASSIGNED)]


def test_another_performer_is_told_with_the_station_that_stays(ctx):
    create(ctx, ScheduledStationNameCodeSequence=[station()])
    subscribe(ctx)
    heard()
    change(ctx, ScheduledHumanPerformersSequence=[person("TECH8")])
    [event] = told()
    assert event.data.ScheduledStationNameCodeSequence[0].CodeValue == "AW3"
    assert event.data.HumanPerformerCodeSequence[0].CodeValue == "TECH8"
    assert event.data.HumanPerformerOrganization == "Lakeside Clinic"


def test_a_life_is_told_in_the_order_in_which_it_happened(ctx):
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION)
    create(ctx)
    claim(ctx)
    change(ctx, **in_progress(**CHANGES["progress"][0]))
    complete(ctx)
    assert [(e.kind, e.data.get("ProcedureStepState")) for e in told()] == [
        (REPORT, "SCHEDULED"),
        (REPORT, "IN PROGRESS"),
        (PROGRESS, None),
        (REPORT, "COMPLETED"),
    ]


def asked_to_cancel():
    """What a request to cancel says."""
    return dataset(
        ReasonForCancellation="Wrong side",
        ProcedureStepDiscontinuationReasonCodeSequence=[code("110512")],
        ContactURI="tel:+49-6221-555-12",
        ContactDisplayName="Dr. Zhao",
    )


def test_a_performer_is_told_who_wants_it_cancelled_and_why(ctx, scheduled):
    claim(ctx)
    subscribe(ctx)
    heard()
    request_cancel(ctx, UID, stored_form(asked_to_cancel()))
    [event] = told()
    wanted = asked_to_cancel()
    wanted.RequestingAE = "CT1"
    assert (event.kind, event.data) == (CANCEL, wanted)


def test_what_nobody_has_begun_is_told_as_asked_begun_and_canceled(ctx, scheduled):
    subscribe(ctx)
    heard()
    request_cancel(ctx, UID, stored_form(asked_to_cancel()))
    assert [(e.kind, e.data.get("ProcedureStepState")) for e in told()] == [
        (CANCEL, None),
        (REPORT, "IN PROGRESS"),
        (REPORT, "CANCELED"),
    ]
    assert told()[2].data.ReasonForCancellation == "Wrong side"


def test_no_event_carries_the_lock(ctx):
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION)
    create(ctx)
    claim(ctx)
    change(ctx, **in_progress(**CHANGES["all"][0]))
    complete(ctx)
    events = database.execute_sql("SELECT data FROM workitem_event").fetchall()
    assert len(events) > 5
    assert all(LOCK.encode() not in bytes(data) for (data,) in events)


REFUSED = {
    "claim of another's": lambda ctx: change_state(ctx, UID, "IN PROGRESS", "2.25.1"),
    "end without what it needs": lambda ctx: change_state(ctx, UID, "COMPLETED", LOCK),
    "change without the lock": lambda ctx: change(ctx, InputReadinessState="INCOMPLETE"),
    "wrong readiness": lambda ctx: change(ctx, TransactionUID=LOCK, InputReadinessState="SOON"),
    "created twice": lambda ctx: create(ctx),
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_told_nobody(ctx, scheduled, request_):
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION)
    claim(ctx)
    heard()
    with pytest.raises(Refusal):
        request_(ctx)
    assert kinds() == []


def test_events_are_kept_where_nobody_watches(ctx, scheduled):
    """The time line of a workitem, on its page."""
    claim(ctx)
    complete(ctx)
    assert [one.event_type for one in history_of(UID)] == [REPORT] * 3


def test_what_a_new_watcher_is_told_is_no_part_of_the_history(ctx, scheduled):
    subscribe(ctx)
    assert len(history_of(UID)) == 1


# Who creates, where [ups] auto_subscribe_creator is on.


def test_the_creator_is_told_where_the_settings_say_so(ctx):
    ctx.config.ups.auto_subscribe_creator = True
    create(ctx.by(Actor("WATCH1", "127.0.0.1")))
    assert (state_of(), kinds()) == ("without Lock", [(UID, REPORT)])


@pytest.mark.parametrize(
    "creator",
    [Actor("anna", "127.0.0.1", "desk"), Actor("US1", "127.0.0.1")],
    ids=str,
)
def test_a_creator_that_could_not_be_called_is_not_subscribed(ctx, creator):
    """A person at the desk, and a device without an address: nobody hears these events."""
    ctx.config.ups.auto_subscribe_creator = True
    create(ctx.by(creator))
    assert (watchers_of(UID), kinds(creator.name)) == ([], [])


# Restart.


def restart_reports(ae_title):
    """[(status, subscriptions, workitems)] of event 4."""
    return [
        (e.data.SCPStatus, e.data.SubscriptionListStatus, e.data.UnifiedProcedureStepListStatus)
        for e in told(ae_title)
        if e.kind == RESTART
    ]


@pytest.mark.parametrize(
    ("status", "cold", "start"),
    [
        ("RESTARTED", False, "WARM START"),
        ("RESTARTED", True, "COLD START"),
        ("GOING DOWN", False, "WARM START"),
    ],
)
def test_a_restart_is_told_with_its_three_values(ctx, scheduled, status, cold, start):
    """T-UPS-74, T-UPS-79."""
    subscribe(ctx)
    heard()
    announce(ctx, status, cold)
    [event] = told()
    assert (event.uid, event.kind) == (UPS_GLOBAL_SUBSCRIPTION, RESTART)
    assert event.data == dataset(
        SCPStatus=status, SubscriptionListStatus=start, UnifiedProcedureStepListStatus=start
    )


def test_each_subscriber_and_each_of_the_list_is_told_once(ctx, scheduled):
    """T-UPS-74."""
    ctx.config.ups.restart_receivers = ("WATCH1", "BACKUP")
    create(ctx, OTHER)
    subscribe(ctx, UID)
    subscribe(ctx, OTHER)
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION)
    subscribe(ctx, UPS_FILTERED_SUBSCRIPTION, "WATCH2", WorklistLabel="NONE")
    heard()
    announce(ctx, "RESTARTED")
    receivers = ("WATCH1", "WATCH2", "BACKUP", "CT1")
    assert [len(restart_reports(one)) for one in receivers] == [1, 1, 1, 0]


def test_an_announcement_that_was_not_heard_is_overtaken_by_the_next(ctx):
    ctx.config.ups.restart_receivers = ("WATCH1",)
    announce(ctx, "GOING DOWN")
    announce(ctx, "RESTARTED")
    assert restart_reports("WATCH1") == [("RESTARTED", "WARM START", "WARM START")]


# Deletion locks and retention.


def later(ctx, **how):
    """The same circumstances some days later."""
    return dataclasses.replace(ctx, now=lambda: NOON + datetime.timedelta(**how))


def ended(ctx, lock):
    """A workitem that ended at noon, watched; its watcher has heard all."""
    create(ctx)
    subscribe(ctx, lock=lock)
    claim(ctx)
    complete(ctx)
    heard()


def test_a_lock_keeps_what_has_ended(ctx):
    """T-UPS-73."""
    ended(ctx, lock=True)
    assert purge_workitems(later(ctx, days=3650)) == 0
    status, _ = get_workitem(UID)
    assert status == Status.SUCCESS


def let_go(ctx):
    ups_subscriptions.unsubscribe(ctx, UID, "WATCH1")


def let_all_go(ctx):
    ups_subscriptions.unsubscribe(ctx, UPS_GLOBAL_SUBSCRIPTION, "WATCH1")


def subscribed_without(ctx):
    subscribe(ctx, lock=False)
    heard()


def released(ctx):
    release_lock(ctx, UID, "WATCH1", "The workstation has been sold")


@pytest.mark.parametrize("release", [let_go, let_all_go, subscribed_without, released])
def test_what_nobody_locks_goes_in_its_time(ctx, release):
    """T-UPS-73."""
    ended(ctx, lock=True)
    release(ctx)
    assert purge_workitems(later(ctx, days=ctx.config.housekeeping.keep_workitems_days)) == 0
    assert purge_workitems(later(ctx, days=8)) == 1
    with refused(Status.NO_SUCH_UPS):
        get_workitem(UID)


def test_what_has_not_ended_is_never_purged(ctx, scheduled):
    create(ctx, OTHER)
    claim(ctx, OTHER)
    heard()
    assert purge_workitems(later(ctx, days=3650)) == 0


def test_what_is_still_to_be_told_keeps_a_workitem(ctx):
    """The watcher that comes back asks for what it is told of."""
    ended(ctx, lock=False)
    subscribe(ctx)
    assert purge_workitems(later(ctx, days=8)) == 0
    note_sent(ctx, "WATCH1", {e.outbox_id: "0000" for e in due_events("WATCH1")})
    assert purge_workitems(later(ctx, days=8)) == 1


def test_a_purged_workitem_keeps_its_history_and_its_uid(ctx):
    ended(ctx, lock=False)
    purge_workitems(later(ctx, days=8))
    assert len(history_of(UID)) == 3
    with refused(Status.DUPLICATE_SOP_INSTANCE):
        create(ctx)


def test_a_lock_released_by_a_person_leaves_the_subscription(ctx):
    ended(ctx, lock=True)
    released(ctx)
    assert state_of() == "without Lock"


# Over DIMSE: pynetdicom asks.


class Requester:
    """An SCU of all UPS classes with an association to the appliance."""

    def __init__(self, port, title="CT1"):
        ae = AE(title)
        for uid in (UPS_PUSH, UPS_WATCH, UPS_PULL):
            ae.add_requested_context(uid, EXPLICIT_VR_LITTLE_ENDIAN)
        self.association = ae.associate("127.0.0.1", port, ae_title="MINRIS")
        assert self.association.is_established
        peers.leave_answers(self.association)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.association.release()

    def create(self, uid=UID, **changes):
        """N-CREATE: the status."""
        status, _ = self.association.send_n_create(workitem(**changes), UPS_PUSH, uid)
        return status.Status

    def act(self, kind, uid, context=UPS_WATCH, **information):
        """N-ACTION: the status."""
        status, _ = self.association.send_n_action(
            dataset(**information), kind, UPS_PUSH, uid, meta_uid=context
        )
        return status.Status

    def subscribe(self, uid, receiver="WATCH1", lock="FALSE", **keys):
        return self.act(3, uid, ReceivingAE=receiver, DeletionLock=lock, **keys)

    def unsubscribe(self, uid, receiver="WATCH1"):
        return self.act(4, uid, ReceivingAE=receiver)

    def suspend(self, uid, receiver="WATCH1"):
        return self.act(5, uid, ReceivingAE=receiver)

    def enter(self, state, uid=UID):
        """Change the state with our lock: the status."""
        told = {"ProcedureStepState": state, "TransactionUID": LOCK}
        return self.act(1, uid, UPS_PULL, **told)

    def set(self, uid=UID, **changes):
        """N-SET with our lock: the status."""
        ds = dataset(TransactionUID=LOCK, **changes)
        status, _ = self.association.send_n_set(ds, UPS_PUSH, uid, meta_uid=UPS_PULL)
        return status.Status

    def perform(self, uid=UID):
        """Claim, report and complete."""
        sequence = {"UnifiedProcedureStepPerformedProcedureSequence": [performed()]}
        statuses = self.enter("IN PROGRESS", uid), self.set(uid, **sequence)
        assert (*statuses, self.enter("COMPLETED", uid)) == (0, 0, 0)

    def get(self, uid=UID):
        """N-GET: the status and the data set."""
        status, ds = self.association.send_n_get([], UPS_PUSH, uid, meta_uid=UPS_WATCH)
        return status.Status, ds


@pytest.fixture
def door(run_appliance):
    """A running appliance that knows two watchers, and a requester of it."""
    appliance = run_appliance(WATCHERS)
    with Requester(appliance.port) as requester:
        requester.appliance = appliance
        assert requester.create() == 0
        yield requester


def subscriptions_of(appliance):
    """The global subscriptions, and the watchers of the one workitem."""
    return appliance.read(globally_subscribed), appliance.read(watchers_of, UID)


@pytest.mark.parametrize("uid", [UID, UPS_GLOBAL_SUBSCRIPTION, UPS_FILTERED_SUBSCRIPTION])
def test_a_watcher_subscribes_suspends_and_unsubscribes_over_dimse(door, uid):
    """T-UPS-77 for the filtered one."""
    keys = {"WorklistLabel": "3D"} if uid == UPS_FILTERED_SUBSCRIPTION else {}
    assert door.subscribe(uid, "WATCH1", "TRUE", **keys) == 0x0000
    kept, watchers = subscriptions_of(door.appliance)
    assert watchers == [("WATCH1", 1)]
    assert kept == ([] if uid == UID else [("WATCH1", uid, 1)])
    assert door.suspend(uid) == (0xC314 if uid == UID else 0x0000)
    assert subscriptions_of(door.appliance) == ([], [("WATCH1", 1)])
    assert door.unsubscribe(uid) == 0x0000
    assert subscriptions_of(door.appliance) == ([], [])


def test_the_keys_of_a_filter_stand_beside_the_receiver(door):
    """T-UPS-67: at the top level of the action information."""
    code_keys = [dataset(CodeValue="110001", CodingSchemeDesignator="DCM")]
    assert door.create(OTHER, ScheduledWorkitemCodeSequence=[code("110003")]) == 0x0000
    filtered = UPS_FILTERED_SUBSCRIPTION
    status = door.subscribe(filtered, lock="TRUE", ScheduledWorkitemCodeSequence=code_keys)
    assert status == 0x0000
    watched = [door.appliance.read(watchers_of, uid) for uid in (UID, OTHER)]
    assert watched == [[("WATCH1", 1)], []]


WRONG = {
    "no receiver": (0x0120, 3, UID, {"DeletionLock": "TRUE"}),
    "empty receiver": (0x0121, 3, UID, {"ReceivingAE": "", "DeletionLock": "TRUE"}),
    "no lock": (0x0120, 3, UID, {"ReceivingAE": "WATCH1"}),
    "empty lock": (0x0121, 3, UID, {"ReceivingAE": "WATCH1", "DeletionLock": ""}),
    "lock of MAYBE": (0x0115, 3, UID, {"ReceivingAE": "WATCH1", "DeletionLock": "MAYBE"}),
    "unknown receiver": (0xC308, 3, UID, {"ReceivingAE": "NOBODY", "DeletionLock": "TRUE"}),
    "unknown workitem": (0xC307, 3, OTHER, {"ReceivingAE": "WATCH1", "DeletionLock": "TRUE"}),
    "filter without keys": (
        0x0120, 3, UPS_FILTERED_SUBSCRIPTION, {"ReceivingAE": "WATCH1", "DeletionLock": "TRUE"},
    ),
    "filter of two values": (
        0x0115, 3, UPS_FILTERED_SUBSCRIPTION,
        {"ReceivingAE": "WATCH1", "DeletionLock": "TRUE", "PatientID": ["P000042", "P000043"]},
    ),
    "unsubscribe nobody": (0x0120, 4, UID, {"DeletionLock": "TRUE"}),
    "suspend nobody": (0x0120, 5, UPS_GLOBAL_SUBSCRIPTION, {"DeletionLock": "TRUE"}),
    "suspend one": (0xC314, 5, UID, {"ReceivingAE": "WATCH1"}),
    "action 6": (0x0123, 6, UID, {"ReceivingAE": "WATCH1"}),
}  # fmt: skip


@pytest.mark.parametrize(("status", "kind", "uid", "told_"), WRONG.values(), ids=WRONG)
def test_a_wrong_request_has_its_status_and_changes_nothing(door, status, kind, uid, told_):
    """T-UPS-66, T-UPS-78."""
    assert door.subscribe(UID, "WATCH2", "TRUE") == 0x0000
    before = door.appliance.read(everything_of_subscriptions)[:2]
    assert door.act(kind, uid, **told_) == status
    assert door.appliance.read(everything_of_subscriptions)[:2] == before


@pytest.mark.parametrize("kind", [1, 2])
def test_a_subscription_is_no_workitem(door, kind):
    context = UPS_PULL if kind == 1 else UPS_WATCH
    told_ = {"ProcedureStepState": "IN PROGRESS", "TransactionUID": LOCK}
    assert door.act(kind, UPS_GLOBAL_SUBSCRIPTION, context, **told_) == 0xC314


def test_a_lock_refused_by_the_settings_is_b301_over_dimse(run_appliance):
    """T-UPS-66."""
    appliance = run_appliance(WATCHERS + "[ups]\ngrant_locks = no\n")
    with Requester(appliance.port) as requester:
        requester.create()
        assert requester.subscribe(UID, "WATCH1", "TRUE") == 0xB301
    assert appliance.read(watchers_of, UID) == [("WATCH1", 0)]


def test_an_ended_workitem_is_there_for_whoever_locked_it(door):
    """T-UPS-73: until it unsubscribes; then N-GET is answered C307."""
    appliance = door.appliance
    door.subscribe(UID, "WATCH1", "TRUE")
    door.perform()
    appliance.write(give_up_events, appliance.context(), "WATCH1", "Not listening")
    much_later = later(appliance.context(), days=3650)
    assert appliance.write(purge_workitems, much_later) == 0
    assert door.get()[1].ProcedureStepState == "COMPLETED"
    assert door.unsubscribe(UID) == 0x0000
    appliance.write(give_up_events, appliance.context(), "WATCH1", "Not listening")
    assert appliance.write(purge_workitems, much_later) == 1
    assert door.get()[0] == 0xC307
