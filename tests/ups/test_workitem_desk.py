"""Workitems at the desk: claimed, finished and given up by people, on the pages and below them."""

import dataclasses
import datetime
import html
import re

import pytest
from conftest import item
from test_housekeeping import at
from test_order_life import refused
from test_pages import csrf_of, employ, visiting, words_of
from test_workitem_retention import (
    LOCK,
    UID,
    WATCHERS,
    audited,
    before,
    claim,
    ended,
    reason_code,
    row,
    state_of,
    watch,
    workitem,
)

from minris.access.context import Actor, utc_now
from minris.dataset.checks import value_problems
from minris.dataset.elements import ElementIndex, encode_items, text_elements
from minris.dataset.items import code_item
from minris.housekeeping.stuck import orphans
from minris.outbox import due_events, note_failed
from minris.standard.dictionary import tag_of
from minris.standard.status import Refusal, Status
from minris.standard.ups import (
    EVENT_TYPES,
    TRANSACTION_UID,
    UPS_CANCELLATION_REASONS,
    UPS_STATE,
    WORKITEM_CODES,
)
from minris.store.models import Audit, ScheduledProcedureStep, Workitem, WorkitemEvent
from minris.ups.checks import check_final
from minris.ups.people import (
    assign_workitem,
    claim_by_person,
    decline_cancellation,
    finish_by_person,
    give_up_by_person,
    history_of,
    watchers_of,
)
from minris.ups.subscriptions import subscribe
from minris.ups.workitems import (
    change_state,
    get_workitem,
    purge_workitems,
    request_cancel,
    update_workitem,
)

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


@pytest.fixture
def anna(ctx):
    """The circumstances of Anna, a technologist at the desk."""
    return ctx.by(Actor("anna", "127.0.0.1", "technologist"))


def stored(uid=UID):
    """What N-GET shows."""
    return ElementIndex(get_workitem(uid)[1])


def performed(uid=UID):
    return stored(uid).item("UnifiedProcedureStepPerformedProcedureSequence")


def progress(uid=UID):
    return stored(uid).item("ProcedureStepProgressInformationSequence")


def told(receiver="RIS"):
    """What a receiver is to hear: event type and information."""
    return [(e.event_type, ElementIndex(e.data)) for e in due_events(receiver)]


def codes(index, keyword):
    """The codes of a code sequence: value, scheme, meaning."""
    return [
        tuple(one.get(k) for k in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"))
        for one in index.items(tag_of(keyword))
    ]


# Claimed by a person


def test_a_person_claims_a_workitem_and_its_watchers_hear(ctx, anna):
    workitem(ctx)
    watch(ctx)
    claim_by_person(anna, UID)
    assert (state_of(), row().performer, row().by_person) == ("IN PROGRESS", "anna", 1)
    assert [index.text(UPS_STATE) for _, index in told()] == ["SCHEDULED", "IN PROGRESS"]


def test_the_lock_of_a_person_is_made_here_and_shown_nowhere(ctx, anna, caplog):
    """The lock is a permission: it is in no answer, event, history, audit line or log."""
    caplog.set_level("DEBUG", "minris")
    workitem(ctx)
    watch(ctx)
    claim_by_person(anna, UID)
    lock = row().transaction_uid
    assert lock
    _, shown = get_workitem(UID, [TRANSACTION_UID])
    lines = "".join(f"{line.about}{line.detail}" for line in Audit.select())
    events = b"".join(bytes(e.data) for e in WorkitemEvent.select())
    everything = bytes(row().data) + shown + events + lines.encode() + caplog.text.encode()
    assert lock.encode() not in everything


def test_each_claim_has_a_lock_of_its_own(ctx, anna):
    for uid in ("2.25.71", "2.25.72"):
        workitem(ctx, uid)
        claim_by_person(anna, uid)
    assert row("2.25.71").transaction_uid != row("2.25.72").transaction_uid


@pytest.mark.parametrize("by", ["a machine", "herself", "another"])
def test_what_is_claimed_is_not_claimed_again(ctx, anna, by):
    workitem(ctx)
    if by == "a machine":
        claim(ctx)
    else:
        name = {"herself": "anna", "another": "bert"}[by]
        claim_by_person(ctx.by(Actor(name, "127.0.0.1", "desk")), UID)
    holder = row().performer
    with refused(Status.TRANSACTION_UID_INCORRECT):
        claim_by_person(anna, UID)
    assert row().performer == holder


def test_what_has_ended_is_not_claimed(ctx, anna):
    ended(ctx)
    with refused(Status.TRANSACTION_UID_INCORRECT):
        claim_by_person(anna, UID)


def test_a_machine_does_not_end_what_a_person_has_claimed(ctx, anna):
    workitem(ctx)
    claim_by_person(anna, UID)
    with refused(Status.TRANSACTION_UID_INCORRECT):
        change_state(ctx, UID, "CANCELED", LOCK)


# Finished by a person

READING = code_item("110005", "Interpretation")


def interpretation(ctx):
    """A workitem to be read, with its workitem code."""
    code = encode_items(tag_of("ScheduledWorkitemCodeSequence"), [READING])
    workitem(ctx)
    update_workitem(ctx, UID, code)


def test_what_a_person_finished_says_who_when_and_what(ctx, anna):
    """T-UPS-15: all that COMPLETED needs is made here."""
    interpretation(ctx)
    claim_by_person(at(anna, minutes=10), UID)
    finish_by_person(at(anna, minutes=35), UID, "Fracture of the left hip")
    assert state_of() == "COMPLETED"
    done = performed()
    assert done.get("PerformedProcedureStepStartDateTime") == "20260705121000+0000"
    assert done.get("PerformedProcedureStepEndDateTime") == "20260705123500+0000"
    assert done.get("CommentsOnThePerformedProcedureStep") == "Fracture of the left hip"
    person = done.item("ActualHumanPerformersSequence")
    assert person.get("HumanPerformerName") == "anna"
    assert codes(done, "PerformedWorkitemCodeSequence") == [("110005", "DCM", "Interpretation")]
    assert codes(done, "PerformedStationNameCodeSequence")
    assert tag_of("OutputInformationSequence") in done


def test_what_a_person_finished_meets_the_table(ctx, anna):
    workitem(ctx)
    claim_by_person(anna, UID)
    finish_by_person(anna, UID)
    check_final(ElementIndex(bytes(row().data)), "COMPLETED")


def test_the_times_of_a_person_are_on_the_clock_of_the_clinic(ctx, anna):
    ctx.config.clinic.timezone = "Asia/Shanghai"
    workitem(ctx)
    claim_by_person(anna, UID)
    finish_by_person(at(anna, minutes=5), UID)
    assert performed().get("PerformedProcedureStepStartDateTime") == "20260705200000+0800"
    assert performed().get("PerformedProcedureStepEndDateTime") == "20260705200500+0800"


def test_a_workitem_without_a_code_is_finished_too(ctx, anna):
    workitem(ctx)
    claim_by_person(anna, UID)
    finish_by_person(anna, UID)
    assert state_of() == "COMPLETED"
    assert codes(performed(), "PerformedWorkitemCodeSequence")


def test_the_watchers_of_what_a_person_finished_hear_of_one_end(ctx, anna):
    workitem(ctx)
    watch(ctx)
    claim_by_person(anna, UID)
    finish_by_person(anna, UID)
    states = [index.text(UPS_STATE) for _, index in told()]
    assert states == ["SCHEDULED", "IN PROGRESS", "COMPLETED"]


BY_PERSON = {
    "finish": lambda ctx: finish_by_person(ctx, UID),
    "give up": lambda ctx: give_up_by_person(ctx, UID, "Wrong hip"),
    "decline": lambda ctx: decline_cancellation(ctx, UID, "Nearly done"),
}


def unchanged_after(ctx, deed, status):
    """A deed is refused and leaves everything as it was."""
    was, events = dataclasses.astuple(kept()), history_of(UID)
    with refused(status):
        BY_PERSON[deed](ctx)
    assert dataclasses.astuple(kept()) == was
    assert history_of(UID) == events
    return True


@dataclasses.dataclass
class Kept:
    """What is kept of a workitem."""

    columns: dict


def kept():
    return Kept(vars(row()))


@pytest.mark.parametrize("deed", BY_PERSON)
def test_what_another_has_claimed_is_not_mine_to_end(ctx, anna, deed):
    workitem(ctx)
    claim_by_person(ctx.by(Actor("bert", "127.0.0.1", "admin")), UID)
    assert unchanged_after(anna, deed, Status.TRANSACTION_UID_INCORRECT)


@pytest.mark.parametrize("deed", BY_PERSON)
def test_a_machine_of_my_name_is_not_me(ctx, deed):
    """A user may be named as an AE title is."""
    workitem(ctx)
    claim(ctx)
    user = ctx.by(Actor("CT1", "127.0.0.1", "desk"))
    assert unchanged_after(user, deed, Status.TRANSACTION_UID_INCORRECT)


@pytest.mark.parametrize("deed", BY_PERSON)
def test_what_nobody_has_claimed_is_ended_by_nobody(ctx, anna, deed):
    workitem(ctx)
    assert unchanged_after(anna, deed, Status.NOT_YET_IN_PROGRESS)


@pytest.mark.parametrize("deed", BY_PERSON)
def test_what_has_ended_is_not_ended_by_a_person(ctx, anna, deed):
    workitem(ctx)
    claim_by_person(anna, UID)
    finish_by_person(anna, UID)
    assert unchanged_after(anna, deed, Status.MAY_NO_LONGER_BE_UPDATED)


@pytest.mark.parametrize("deed", BY_PERSON)
def test_what_is_unknown_is_not_ended_by_a_person(anna, deed):
    with refused(Status.NO_SUCH_UPS):
        BY_PERSON[deed](anna)


# Given up by a person


@pytest.mark.parametrize("code", UPS_CANCELLATION_REASONS)
def test_what_a_person_gave_up_says_why(ctx, anna, code):
    workitem(ctx)
    watch(ctx)
    claim_by_person(anna, UID)
    give_up_by_person(at(anna, minutes=5), UID, "The images are of the other hip", code)
    assert (state_of(), reason_code()) == ("CANCELED", code)
    assert progress().get("ReasonForCancellation") == "The images are of the other hip"
    assert progress().get("ProcedureStepCancellationDateTime") == "20260705120500+0000"
    _, last = told()[-1]
    assert last.text(UPS_STATE) == "CANCELED"
    assert last.get("ReasonForCancellation") == "The images are of the other hip"


def test_a_reason_that_is_none_of_the_list_gives_nothing_up(ctx, anna):
    workitem(ctx)
    claim_by_person(anna, UID)
    with refused(Status.INVALID_ATTRIBUTE_VALUE):
        give_up_by_person(anna, UID, "Wrong hip", "99999")
    assert state_of() == "IN PROGRESS"


# Asked to cancel


def test_a_person_without_watchers_can_be_asked_to_cancel(ctx, anna):
    """The person reads it on the page: no C312."""
    workitem(ctx)
    claim_by_person(anna, UID)
    assert request_cancel(ctx, UID) is Status.SUCCESS
    assert state_of() == "IN PROGRESS"
    assert history_of(UID)[-1].event_type == 2


def test_a_machine_without_watchers_cannot_be_asked_to_cancel(ctx):
    """T-UPS-52."""
    workitem(ctx)
    claim(ctx)
    with refused(Status.PERFORMER_CANNOT_BE_CONTACTED):
        request_cancel(ctx, UID)
    assert [one.event_type for one in history_of(UID)] == [1, 1]


def test_who_asks_again_after_a_decline_hears_that_the_performer_goes_on(ctx, anna):
    workitem(ctx)
    watch(ctx)
    claim_by_person(anna, UID)
    request_cancel(ctx, UID)
    decline_cancellation(anna, UID, "The surgeon is waiting for it")
    events = history_of(UID)
    with refused(Status.PERFORMER_CHOOSES_NOT_TO_CANCEL):
        request_cancel(ctx, UID)
    assert state_of() == "IN PROGRESS"
    assert history_of(UID) == events  # T-UPS-56: what is refused is told to nobody


def test_a_decline_is_in_the_audit_log(ctx, anna):
    workitem(ctx)
    claim_by_person(anna, UID)
    request_cancel(ctx, UID)
    decline_cancellation(anna, UID, "  The surgeon is waiting for it ")
    line = (UID, "The surgeon is waiting for it", "anna@127.0.0.1")
    assert audited("workitem cancellation declined") == [line]


@pytest.mark.parametrize("why", ["", " \t"])
def test_a_decline_needs_a_reason(ctx, anna, why):
    workitem(ctx)
    claim_by_person(anna, UID)
    with refused(Status.INVALID_ATTRIBUTE_VALUE):
        decline_cancellation(anna, UID, why)
    assert request_cancel(ctx, UID) is Status.SUCCESS


def test_who_declined_can_still_give_it_up_and_finish_it(ctx, anna):
    for uid in ("2.25.71", "2.25.72"):
        workitem(ctx, uid)
        claim_by_person(anna, uid)
        request_cancel(ctx, uid)
        decline_cancellation(anna, uid, "Nearly done")
    give_up_by_person(anna, "2.25.71", "The scanner failed")
    finish_by_person(anna, "2.25.72")
    assert [state_of("2.25.71"), state_of("2.25.72")] == ["CANCELED", "COMPLETED"]


# Assigned


def test_an_assignment_is_told_to_the_watchers(ctx, anna):
    """T-UPS-69: event 5."""
    workitem(ctx)
    watch(ctx)
    assign_workitem(anna, UID, "CT room", "Li Na")
    kind, report = told()[-1]
    assert kind == EVENT_TYPES["UPS Assigned"]
    assert [meaning for *_, meaning in codes(report, "ScheduledStationNameCodeSequence")] == [
        "CT room"
    ]
    assert [meaning for *_, meaning in codes(report, "HumanPerformerCodeSequence")] == ["Li Na"]
    assert report.get("HumanPerformerOrganization") == "Lakeside Clinic"
    person = stored().item("ScheduledHumanPerformersSequence")
    assert person.get("HumanPerformerName") == "Li Na"


def test_an_assignment_to_a_station_alone_names_no_person(ctx, anna):
    workitem(ctx)
    watch(ctx)
    assign_workitem(anna, UID, station="CT room")
    kind, report = told()[-1]
    assert kind == 5
    assert tag_of("HumanPerformerCodeSequence") not in report


def test_the_same_assignment_again_is_told_to_nobody(ctx, anna):
    """T-UPS-70."""
    workitem(ctx)
    watch(ctx)
    assign_workitem(anna, UID, "CT room", "Li Na")
    before = len(told())
    assign_workitem(anna, UID, "CT room", "Li Na")
    assert len(told()) == before


def test_what_somebody_performs_can_be_assigned_anew(ctx, anna):
    workitem(ctx)
    claim(ctx)
    assign_workitem(anna, UID, performer="Li Na")
    assert stored().item("ScheduledHumanPerformersSequence").get("HumanPerformerName") == "Li Na"


def test_what_has_ended_is_not_assigned(ctx, anna):
    ended(ctx)
    with refused(Status.MAY_NO_LONGER_BE_UPDATED):
        assign_workitem(anna, UID, "CT room")


def station_code(ctx, uid, station):
    workitem(ctx, uid)
    assign_workitem(ctx, uid, station=station)
    item = stored(uid).item("ScheduledStationNameCodeSequence")
    return item.get("CodeValue") or item.get("LongCodeValue")


def test_two_stations_of_nearly_one_name_have_two_codes(ctx, anna):
    """A station asks for what is its own by the code: the meaning is never matched."""
    first = station_code(anna, "2.25.71", "Ultrasound room 1")
    assert station_code(anna, "2.25.72", "Ultrasound room 2") != first


def is_well_formed(index):
    """Whether all values are as their VR wants them."""
    assert list(value_problems(index)) == []
    return True


@pytest.mark.parametrize(
    "name", ["R2\\D2", "A" * 200, "Wang=王=", "^" * 9, "x\ny\x00", "Universitätsspital 超声波"]
)
def test_what_is_assigned_is_well_formed_whatever_the_name(ctx, anna, name):
    workitem(ctx)
    try:
        assign_workitem(anna, UID, name, name)
    except Refusal as refusal:
        assert refusal.status is Status.INVALID_ATTRIBUTE_VALUE
    assert is_well_formed(stored())


@pytest.mark.parametrize("name", ["LAKESIDE\\anna", "a" * 64, "anna^" * 6, "王小东", "anna=" * 4])
def test_what_a_person_of_any_name_finished_is_well_formed(ctx, name):
    """All of these are names that a user may have."""
    person = ctx.by(Actor(name, "127.0.0.1", "desk"))
    workitem(ctx)
    claim_by_person(person, UID)
    finish_by_person(person, UID)
    assert is_well_formed(stored())


@pytest.mark.parametrize("words", ["w" * 20_000, "a\x00b", "a\\b", "左髋骨折"])
@pytest.mark.parametrize("deed", ["finish", "give up"])
def test_what_a_person_writes_is_stored_well_formed_or_refused(ctx, anna, deed, words):
    workitem(ctx)
    claim_by_person(anna, UID)
    try:
        if deed == "finish":
            finish_by_person(anna, UID, words)
        else:
            give_up_by_person(anna, UID, words)
    except Refusal as refusal:
        assert refusal.status is Status.INVALID_ATTRIBUTE_VALUE
    assert is_well_formed(stored())


# The pages


@pytest.fixture
def desk(appliance):
    """Anna of reception, logged in."""
    with visiting(appliance) as client:
        yield employ(appliance, client)


@pytest.fixture
def technologist(appliance):
    """Anna as a technologist, logged in."""
    with visiting(appliance) as client:
        yield employ(appliance, client, "technologist")


@pytest.fixture
def boss(appliance):
    """Anna as administrator, logged in."""
    with visiting(appliance) as client:
        yield employ(appliance, client, "admin")


def put(running, function=workitem, **ago):
    """Do something to workitems in the store of an appliance, now or some time ago."""
    return running.write(lambda: function(before(running.context("CT1").by(CT1), **ago)))


CT1 = Actor("CT1", "127.0.0.1")


def send(client, path, page=None, **form):
    """Send a form of a page."""
    return client.post(path, data={"csrf": csrf_of(client.get(page or path).text), **form})


def act(client, event, uid=UID, **form):
    """Press a button of a workitem's page."""
    return send(client, f"/workitem/{uid}", event=event, **form)


def by(running, name):
    """Have a user of another name claim the workitem."""
    actor = Actor(name, "127.0.0.1", "desk")
    running.write(claim_by_person, running.context().by(actor), UID)


def test_the_list_shows_workitems_and_leads_to_each(appliance, desk):
    put(appliance)
    page = desk.get("/workitems")
    assert page.status_code == 200
    assert "3D views of the hip" in words_of(page)
    assert "P1" in words_of(page)
    assert f'href="/workitem/{UID}"' in page.text


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("state=SCHEDULED", True),
        ("state=COMPLETED", False),
        ("label=3D", True),
        ("label=READING", False),
        ("state=SCHEDULED&label=READING", False),
    ],
)
def test_the_list_is_of_a_state_and_a_worklist_label(appliance, desk, query, shown):
    put(appliance)
    assert (f"/workitem/{UID}" in desk.get(f"/workitems?{query}").text) is shown


def test_the_page_of_a_workitem_shows_what_is_known_of_it(appliance, desk):
    put(appliance)
    put(appliance, watch)
    words = words_of(desk.get(f"/workitem/{UID}"))
    for known in ("3D views of the hip", "王小东", "P1", "3D", "RIS"):
        assert known in words


def test_the_page_does_not_show_the_lock(appliance, desk):
    put(appliance)
    put(appliance, claim)
    assert LOCK not in desk.get(f"/workitem/{UID}").text


def test_the_page_of_what_is_not_there_says_so(desk):
    assert desk.get(f"/workitem/{UID}").status_code == 404


def test_the_page_of_a_purged_workitem_shows_its_history(appliance, desk):
    put(appliance, ended, days=30)
    put(appliance, purge_workitems)
    page = desk.get(f"/workitem/{UID}")
    assert page.status_code == 200
    assert "purged" in words_of(page)
    assert "CT1" in words_of(page)


def test_a_person_claims_and_finishes_on_the_page(appliance, desk):
    put(appliance)
    answer = act(desk, "claim")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/workitem/{UID}")
    assert appliance.read(lambda: (state_of(), row().performer)) == ("IN PROGRESS", "anna")
    act(desk, "complete", remark="Fracture of the left hip")
    assert appliance.read(state_of) == "COMPLETED"
    assert "Fracture of the left hip" in words_of(desk.get(f"/workitem/{UID}"))


def test_a_person_gives_up_on_the_page(appliance, desk):
    put(appliance)
    act(desk, "claim")
    act(desk, "give up", reason="The other hip", code="110514")
    assert appliance.read(lambda: (state_of(), reason_code())) == ("CANCELED", "110514")


def test_a_person_declines_on_the_page(appliance, desk):
    put(appliance)
    act(desk, "claim")
    act(desk, "cancel", reason="The patient has left", code="110513")
    act(desk, "decline", reason="Nearly done")
    assert appliance.read(row).declined == "Nearly done"


def buttons(client):
    """The values of the buttons of a workitem's page."""
    text = client.get(f"/workitem/{UID}").text
    return {html.unescape(one.split('"')[0]) for one in text.split('name="event" value="')[1:]}


def test_who_has_not_claimed_it_is_not_offered_its_end(appliance, desk):
    put(appliance)
    assert "claim" in buttons(desk)
    by(appliance, "bert")
    assert not buttons(desk) & {"claim", "complete", "give up", "decline", "release", "end"}


@pytest.mark.parametrize(
    ("event", "form"),
    [
        ("complete", {"remark": "Done"}),
        ("give up", {"reason": "Wrong", "code": "110513"}),
        ("decline", {"reason": "No"}),
        ("claim", {}),
    ],
)
def test_what_another_has_claimed_is_refused_on_the_page(appliance, desk, event, form):
    put(appliance)
    by(appliance, "bert")
    assert act(desk, event, **form).status_code in (403, 409, 422, 400)
    assert appliance.read(lambda: (state_of(), row().performer)) == ("IN PROGRESS", "bert")


def test_a_request_to_cancel_tells_the_watchers_why(appliance, desk):
    put(appliance)
    put(appliance, watch)
    put(appliance, claim)
    act(
        desk,
        "cancel",
        reason="Patient went home",
        code="110500",
        uri="tel:+861012345",
        contact="Anna",
    )
    kind, report = appliance.read(told)[-1]
    assert kind == EVENT_TYPES["UPS Cancel Requested"]
    assert report.get("ReasonForCancellation") == "Patient went home"
    assert report.get("ContactURI") == "tel:+861012345"
    assert report.get("ContactDisplayName") == "Anna"
    assert appliance.read(state_of) == "IN PROGRESS"


def test_a_scheduled_workitem_is_cancelled_on_the_page_at_once(appliance, desk):
    put(appliance)
    act(desk, "cancel", reason="Patient went home", code="110500")
    assert appliance.read(state_of) == "CANCELED"


def test_a_workitem_is_assigned_on_the_page(appliance, desk):
    put(appliance)
    act(desk, "assign", station="CT room", performer="Li Na")
    words = words_of(desk.get(f"/workitem/{UID}"))
    assert "CT room" in words
    assert "Li Na" in words


def test_an_unknown_action_does_nothing(appliance, boss):
    put(appliance)
    assert act(boss, "explode").status_code >= 400
    assert appliance.read(state_of) == "SCHEDULED"


ADMINISTRATORS = {
    "end": {"reason": "It is stuck", "code": "110513"},
    "release": {"watcher": "RIS", "reason": "It is gone"},
}


@pytest.mark.parametrize("event", ADMINISTRATORS)
@pytest.mark.parametrize("role", ["desk", "technologist"])
def test_what_is_an_administrators_is_refused_to_others(appliance, request, event, role):
    client = request.getfixturevalue(role)
    put(appliance)
    put(appliance, lambda ctx: watch(ctx, lock=True))
    put(appliance, claim)
    assert act(client, event, **ADMINISTRATORS[event]).status_code == 403
    assert appliance.read(state_of) == "IN PROGRESS"
    assert appliance.read(watchers_of, UID) == [("RIS", 1)]


@pytest.mark.parametrize("event", ADMINISTRATORS)
def test_an_administrator_needs_a_reason_on_the_page(appliance, boss, event):
    put(appliance)
    put(appliance, lambda ctx: watch(ctx, lock=True))
    form = {**ADMINISTRATORS[event], "reason": " "}
    assert act(boss, event, **form).status_code >= 400
    assert appliance.read(state_of) == "SCHEDULED"
    assert appliance.read(watchers_of, UID) == [("RIS", 1)]


@pytest.mark.parametrize("path", [f"/workitem/{UID}", "/workitems/new", "/orphans"])
def test_a_form_without_its_token_does_nothing(appliance, boss, path):
    put(appliance)
    answer = boss.post(path, data={"event": "claim", "kind": "silent", "uid": UID, "reason": "x"})
    assert answer.status_code == 403
    assert appliance.read(lambda: (Workitem.select().count(), state_of())) == (
        1,
        "SCHEDULED",
    )


@pytest.mark.parametrize("path", ["/workitems", f"/workitem/{UID}", "/workitems/new", "/orphans"])
def test_a_guest_is_sent_to_log_in(appliance, path):
    put(appliance)
    with visiting(appliance) as guest:
        answer = guest.get(path)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login")


# A new workitem

FORM = {
    "label": "3D views of the hip",
    "code": "3D",
    "worklist": "",
    "priority": "HIGH",
    "readiness": "READY",
    "date": "2026-07-05",
    "time": "09:30",
    "expires": "",
    "patient": "Wang^XiaoDong",
    "patient_id": "P1",
    "comment": "",
}


def make(client, **texts):
    return send(client, "/workitems/new", **FORM | texts)


def made(running):
    """The data set of the one workitem there is."""

    def read():
        [only] = Workitem.select()
        return ElementIndex(bytes(only.data))

    return running.read(read)


def test_a_workitem_is_made_on_the_page(appliance, desk):
    answer = make(desk)
    assert answer.status_code == 303
    index = made(appliance)
    assert answer.headers["location"] == f"/workitem/{index.get('SOPInstanceUID')}"
    assert index.get("ProcedureStepLabel") == "3D views of the hip"
    assert index.get("ScheduledProcedureStepPriority") == "HIGH"
    assert index.text(UPS_STATE) == "SCHEDULED"
    assert codes(index, "ScheduledWorkitemCodeSequence") == [("3D", "99MINRIS", "3D views")]
    assert is_well_formed(index)


@pytest.mark.parametrize("code", WORKITEM_CODES)
def test_every_code_of_the_catalogue_can_be_chosen(appliance, desk, code):
    assert f'value="{code}"' in desk.get("/workitems/new").text
    make(desk, code=code)
    scheme, meaning = WORKITEM_CODES[code]
    assert codes(made(appliance), "ScheduledWorkitemCodeSequence") == [(code, scheme, meaning)]


@pytest.mark.parametrize(
    "texts",
    [
        {"label": ""},
        {"code": "99999"},
        {"priority": "URGENT"},
        {"readiness": "SOON"},
        {"date": "5 July"},
        {"date": ""},
        {"time": "25:61"},
        {"label": "L" * 65},
        {"label": "a\\b"},
        {"expires": "never"},
        {"patient": "A" * 65},
    ],
    ids=lambda texts: "=".join(next(iter(texts.items())))[:20],
)
def test_a_form_filled_wrongly_makes_nothing_and_says_so(appliance, desk, texts):
    answer = make(desk, **texts)
    assert 400 <= answer.status_code < 500
    assert appliance.read(lambda: Workitem.select().count()) == 0
    assert 'role="alert"' in answer.text or "problem" in answer.text


def test_what_was_filled_in_is_still_there_after_a_problem(desk):
    answer = make(desk, label="", patient="Li^Na=李^娜", comment="Left hip")
    assert "Li^Na=李^娜" in html.unescape(answer.text)


def test_a_workitem_for_an_exam_has_its_patient_and_request(appliance, desk):
    """Made from a step of the worklist: nothing is typed a second time."""
    appliance.schedule(item(PatientID="P7", AccessionNumber="A7"))
    step = appliance.read(lambda: ScheduledProcedureStep.select().get().id)
    assert "P7" in desk.get(f"/workitems/new?step={step}").text
    answer = send(
        desk, "/workitems/new", f"/workitems/new?step={step}", **FORM | {"step": str(step)}
    )
    assert answer.status_code == 303
    index = made(appliance)
    assert index.get("PatientID") == "P7"
    assert index.get("PatientName") == "Wang^XiaoDong=王^小东"
    assert index.item("ReferencedRequestSequence").get("AccessionNumber") == "A7"


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("Wang^XiaoDong", "Wang^XiaoDong"),
        ("Müller^Anna", "Müller^Anna"),
        ("Li^Na=李^娜", "Li^Na=李^娜"),
    ],
)
def test_a_patients_name_is_kept_as_it_was_typed(appliance, desk, typed, kept):
    """A letter with a mark is no ideograph."""
    make(desk, patient=typed)
    assert made(appliance).get("PatientName") == kept


def test_what_expires_after_today_has_not_expired_today(appliance, desk):
    today = appliance.context().local_now()
    make(desk, expires=f"{today:%Y-%m-%d}")
    assert appliance.read(orphans, appliance.context()) == []


@pytest.mark.parametrize("step", ["9999", "99999999999999999999999", "-1", "x", "²"])
def test_a_step_that_is_not_there_is_no_error_of_ours(desk, step):
    assert desk.get("/workitems/new", params={"step": step}).status_code < 500


# Hostile texts


def harmless(page):
    """No text of a page has become markup."""
    assert page.status_code < 500
    assert "<script>alert" not in page.text
    assert "<img src=x" not in page.text
    return True


def hostile(ctx):
    """A workitem whose every text is an attack, told of and given up."""
    short = HOSTILE[:64]
    workitem(ctx, ProcedureStepLabel=short, WorklistLabel=short, PatientID=short, PatientName=short)
    watch(ctx)
    user = ctx.by(Actor(HOSTILE[:40], "127.0.0.1", "desk"))
    assign_workitem(user, UID, short, short)
    claim_by_person(user, UID)
    asked = text_elements(
        ReasonForCancellation=HOSTILE, ContactURI="javascript:alert(1)", ContactDisplayName=short
    )
    request_cancel(ctx.by(Actor('"><script>', "127.0.0.1")), UID, bytes(asked))
    note_failed(ctx, "RIS", HOSTILE)


@pytest.mark.parametrize("path", ["/workitems", f"/workitem/{UID}", "/orphans", "/watchers"])
def test_texts_of_others_are_no_markup(appliance, boss, path):
    put(appliance, hostile, days=2)
    page = boss.get(path)
    assert harmless(page)
    assert 'href="javascript:' not in page.text


@pytest.mark.parametrize("query", ["state", "label"])
def test_what_is_in_the_address_is_no_markup(desk, query):
    assert harmless(desk.get("/workitems", params={query: HOSTILE}))


def test_what_is_typed_into_the_form_is_no_markup(desk):
    assert harmless(make(desk, **dict.fromkeys(FORM, HOSTILE)))


def test_a_given_reason_is_no_markup_on_the_page(appliance, desk):
    put(appliance)
    act(desk, "claim")
    act(desk, "give up", reason=HOSTILE, code="110513")
    page = desk.get(f"/workitem/{UID}")
    assert harmless(page)
    assert "alert(1)" in words_of(page)


# What is stuck


def stick(running):
    """One of each kind."""
    put(running, lambda ctx: ended(ctx, "2.25.71"), days=2)
    put(running, lambda ctx: watch(ctx, "2.25.71", lock=True), days=2)
    put(running, lambda ctx: workitem(ctx, "2.25.72"), days=2)
    put(running, lambda ctx: claim(ctx, "2.25.72"), days=2)
    expired = {"ScheduledProcedureStepExpirationDateTime": "20260101"}
    put(running, lambda ctx: workitem(ctx, "2.25.73", **expired), days=2)


def events_waiting():
    return len(due_events("RIS"))


STUCK = {
    "lock": ({"uid": "2.25.71", "about": "RIS"}, lambda: watchers_of("2.25.71")[0][1]),
    "silent": ({"uid": "2.25.72", "about": "CT1"}, lambda: state_of("2.25.72") == "IN PROGRESS"),
    "expired": ({"uid": "2.25.73", "about": "3D"}, lambda: state_of("2.25.73") == "SCHEDULED"),
    "events": ({"uid": "RIS", "about": "1"}, events_waiting),
}


def test_nothing_is_stuck_on_a_new_box(technologist):
    page = technologist.get("/orphans")
    assert page.status_code == 200
    assert "Nothing needs attention" in words_of(page)


def test_what_is_stuck_is_listed_with_what_is_known(appliance, technologist):
    stick(appliance)
    answer = technologist.get("/orphans")
    words = words_of(answer)
    for known in ("RIS", "CT1", "3D views of the hip", "An administrator can close the others."):
        assert known in words
    for uid in ("2.25.71", "2.25.72", "2.25.73"):
        assert f'href="/workitem/{uid}"' in answer.text


@pytest.mark.parametrize("kind", STUCK)
def test_an_administrator_ends_what_is_stuck(appliance, boss, kind):
    stick(appliance)
    form, still = STUCK[kind]
    answer = send(boss, "/orphans", kind=kind, reason="Nobody needs it", **form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/orphans")
    assert not appliance.read(still)
    lines = appliance.read(lambda: [line.who for line in Audit.select()])
    assert "anna@127.0.0.1" in lines


@pytest.mark.parametrize("kind", STUCK)
def test_what_is_stuck_stays_without_a_reason(appliance, boss, kind):
    stick(appliance)
    form, still = STUCK[kind]
    answer = send(boss, "/orphans", kind=kind, reason=" ", **form)
    assert 400 <= answer.status_code < 500
    assert appliance.read(still)


@pytest.mark.parametrize("role", ["desk", "technologist"])
@pytest.mark.parametrize("kind", STUCK)
def test_who_is_no_administrator_ends_nothing(appliance, request, kind, role):
    client = request.getfixturevalue(role)
    stick(appliance)
    form, still = STUCK[kind]
    answer = send(client, "/orphans", "/workitems/new", kind=kind, reason="Nobody needs it", **form)
    assert answer.status_code == 403
    assert appliance.read(still)


def test_reception_does_not_see_what_is_stuck(desk):
    assert desk.get("/orphans").status_code == 403


@pytest.mark.parametrize("uid", ["2.25.999", "", "x" * 5000])
def test_ending_what_is_not_there_is_refused(appliance, boss, uid):
    answer = send(boss, "/orphans", kind="silent", uid=uid, reason="Nobody needs it")
    assert 400 <= answer.status_code < 500


def test_a_kind_that_is_none_is_refused(boss):
    assert 400 <= send(boss, "/orphans", kind="all", uid="2.25.71", reason="x").status_code < 500


def test_what_was_begun_after_the_page_was_shown_does_not_expire(appliance, boss):
    """An administrator's click on an old page ends no work in progress."""
    stick(appliance)
    csrf = csrf_of(boss.get("/orphans").text)
    put(appliance, lambda ctx: claim(ctx, "2.25.73"))
    boss.post(
        "/orphans",
        data={"csrf": csrf, "kind": "expired", "uid": "2.25.73", "about": "3D", "reason": "Old"},
    )
    assert appliance.read(state_of, "2.25.73") == "IN PROGRESS"


def test_a_receiver_is_tried_again_at_once_on_the_page(appliance, technologist):
    """The page of watchers: what waits is due now."""
    put(appliance)
    put(appliance, watch)
    later = utc_now() + datetime.timedelta(minutes=20)
    ctx = dataclasses.replace(appliance.context(), now=lambda: later, devices=WATCHERS)
    appliance.write(note_failed, ctx, "RIS", "not reached")
    send(technologist, "/watchers", receiver="RIS", uid="", do="retry")
    assert appliance.read(audited, "events tried again") == [("RIS", "", "anna@127.0.0.1")]


# What a stranger found


def watched_and_locked(appliance):
    """RIS holds a lock on the workitem."""
    put(appliance)
    put(appliance, lambda ctx: subscribe(ctx, UID, "RIS", True))


def test_only_an_administrator_ends_the_subscriptions_of_a_device(appliance, technologist):
    watched_and_locked(appliance)
    answer = send(technologist, "/watchers", do="end", receiver="RIS", reason="Tidying")
    assert answer.status_code == 403
    assert appliance.read(watchers_of, UID) == [("RIS", 1)]


def test_the_end_of_subscriptions_has_a_reason_in_the_audit_log(appliance, boss):
    watched_and_locked(appliance)
    send(boss, "/watchers", do="end", receiver="RIS", reason=" ")
    assert appliance.read(watchers_of, UID) == [("RIS", 1)]
    send(boss, "/watchers", do="end", receiver="RIS", reason="Scrapped")
    assert appliance.read(watchers_of, UID) == []
    lines = appliance.read(lambda: [line.detail for line in Audit.select()])
    assert "RIS, 1 locks released: Scrapped" in lines


def test_a_decline_is_on_the_time_line_and_is_not_asked_again(appliance, desk):
    put(appliance)
    act(desk, "claim")
    act(desk, "cancel", reason="The patient has left", code="110513")
    assert "decline" in buttons(desk)
    act(desk, "decline", reason="Nearly done")
    words = words_of(desk.get(f"/workitem/{UID}"))
    assert "Cancellation declined: Nearly done" in words
    assert "The cancellation was declined: Nearly done" in words
    assert "decline" not in buttons(desk)


def test_the_second_to_claim_reads_who_was_first(appliance, desk):
    put(appliance)
    by(appliance, "ben")
    assert "ben has claimed it already" in words_of(act(desk, "claim"))


def test_nothing_is_assigned_to_nobody(appliance, desk):
    put(appliance)
    assert "Choose a station or name a person" in words_of(act(desk, "assign"))


def test_a_long_list_says_that_it_is_not_whole(appliance, desk, monkeypatch):
    monkeypatch.setattr("minris.ups.people.MOST_LISTED", 2)
    for number in range(3):
        put(appliance, lambda ctx, number=number: workitem(ctx, f"2.25.9{number}"))
    assert "The first 2 of 3." in words_of(desk.get("/workitems"))


def test_a_form_that_expires_before_it_begins_is_refused(appliance, desk):
    form = {"label": "3D", "code": "3D", "priority": "HIGH", "readiness": "READY",
            "date": "2026-07-05", "time": "09:30", "expires": "2026-07-04"}  # fmt: skip
    answer = send(desk, "/workitems/new", **form)
    assert answer.status_code == 422
    assert "is before its start" in words_of(answer)


def test_a_form_sent_twice_makes_one_workitem(appliance, desk):
    page = desk.get("/workitems/new").text
    uid = re.search(r'name="uid" value="([0-9.]+)"', page)[1]
    form = {"uid": uid, "label": "3D", "code": "3D", "priority": "HIGH", "readiness": "READY",
            "date": "2026-07-05", "time": "09:30"}  # fmt: skip
    answers = [send(desk, "/workitems/new", **form) for _ in range(2)]
    assert [one.headers["location"] for one in answers] == [f"/workitem/{uid}"] * 2
    assert appliance.read(lambda: Workitem.select().count()) == 1


def test_an_exam_and_its_workitems_lead_to_each_other(appliance, desk):
    [step] = appliance.schedule(item())
    form = {"step": "1", "label": "Views of the hip", "code": "3D", "priority": "HIGH",
            "readiness": "READY", "date": "2026-07-05", "time": "09:30"}  # fmt: skip
    made = send(desk, "/workitems/new", "/workitems/new?step=1", **form).headers["location"]
    assert f'href="{made}"' in desk.get("/step/1").text
    patient = step.get("PatientID")
    assert f'href="/patients?q={patient}"' in desk.get(made).text
