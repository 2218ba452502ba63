"""The outbox: every look into it goes by an index, and every kind in it has a lane that is sent."""

import asyncio
import re

import pytest
from conftest import write_config
from test_commitment import AE_TITLE, series
from test_commitment import ask as ask_for
from test_delivery import told_of
from test_events import UID, create, later, subscribe
from test_mpps import creation, stored_form

from minris.config.ini import load_config
from minris.delivery.archive import CommitmentDesk
from minris.delivery.receivers import Delivery, Lane
from minris.delivery.sockets import (
    give_up_unfetched,
    new_socket_events,
    note_heard,
    socket_events,
    socket_start,
)
from minris.dimse.senders import KINDS
from minris.housekeeping.stuck import orphans
from minris.images.commitment import (
    Evidence,
    due_commitments,
    due_request,
    due_result,
    follow_requests,
    follow_results,
    pass_request_on,
    record_evidence,
    request_state,
)
from minris.mpps.performed import create_mpps
from minris.outbox import (
    EVENT_LANES,
    PASSED_ON_LANE,
    REQUEST_LANE,
    RESULT_LANE,
    WAITING,
    count_waiting,
    destinations,
    due_events,
    due_receivers,
    give_up_events,
    note_failed,
    note_refused,
    note_sent,
    passed_on_of,
    recent_passed_on,
    retry_events,
)
from minris.standard.uids import UPS_GLOBAL_SUBSCRIPTION
from minris.store.models import Outbox, database
from minris.store.rows import fetch_rows, insert_row
from minris.upper_layer.caller import DeliveryError
from minris.ups.events import announce
from minris.ups.people import history_of, watchers
from minris.ups.subscriptions import unsubscribe
from minris.ups.workitems import purge_workitems

DEVICES = f"""
[device watch]
ae_title = WATCH1
host = 127.0.0.1
port = 9
events = both
[device archive]
ae_title = {AE_TITLE}
host = 127.0.0.1
port = 9
role = archive
passed_on = mpps, availability
[device CT room]
ae_title = CT1
host = 127.0.0.1
port = 9
"""


@pytest.fixture
def config(tmp_path):
    return load_config(write_config(tmp_path, DEVICES))


@pytest.fixture
def told(ctx):
    """A store with something in each lane."""
    subscribe(ctx, UPS_GLOBAL_SUBSCRIPTION)
    create(ctx)
    create_mpps(ctx, "2.25.60", stored_form(creation()))
    pass_request_on(ctx, ask_for(ctx, series(1), "2.25.900"), AE_TITLE)
    images = series(1)
    one = ask_for(ctx, images, "2.25.901")
    record_evidence(ctx, one, Evidence({images[0].uid: ("", AE_TITLE)}))
    lanes = {row.lane for row in fetch_rows(Outbox, "1 = 1")}
    assert lanes == {*EVENT_LANES.values(), PASSED_ON_LANE, RESULT_LANE, REQUEST_LANE}
    return ctx


def first(lane):
    return fetch_rows(Outbox, f"lane = ? AND {WAITING} LIMIT 1", lane)[0]


LOOKS = {
    "due in a lane": lambda ctx: due_receivers(ctx),
    "due to a receiver": lambda ctx: due_events("WATCH1"),
    "a result that is due": lambda ctx: due_result("CT1"),
    "a request that is due": lambda ctx: due_request(AE_TITLE),
    "sent": lambda ctx: note_sent(ctx, "WATCH1", {first("events").id: "0000"}),
    "failed for days": lambda ctx: [
        note_failed(later(ctx, hours=100), "WATCH1", "not reached") for _ in range(200)
    ],
    "a result not told for days": lambda ctx: note_failed(
        later(ctx, hours=100), "CT1", "not reached", RESULT_LANE
    ),
    "refused": lambda ctx: note_refused(ctx, AE_TITLE, first(PASSED_ON_LANE).id, "0213", 1),
    "given up": lambda ctx: give_up_events(ctx, "WATCH1", "It is gone"),
    "tried again": lambda ctx: retry_events(ctx, "WATCH1"),
    "what follows of results": lambda ctx: follow_results(ctx, "CT1", "not reached"),
    "what follows of requests": lambda ctx: follow_requests(ctx, AE_TITLE, "not reached"),
    "a request's state": lambda ctx: request_state(ctx, 1, AE_TITLE),
    "to be judged": lambda ctx: due_commitments(ctx),
    "the newest passed on": lambda ctx: recent_passed_on(),
    "passed on of a step": lambda ctx: passed_on_of(1),
    "destinations": lambda ctx: destinations(),
    "waiting": lambda ctx: count_waiting(*EVENT_LANES.values()),
    "watchers": lambda ctx: watchers(),
    "stuck": lambda ctx: orphans(ctx),
    "history": lambda ctx: history_of(UID),
    "a socket begins": lambda ctx: socket_start("WATCH1", True),
    "a socket reads on": lambda ctx: socket_events("WATCH1", 0),
    "new for sockets": lambda ctx: new_socket_events(0),
    "heard by a socket": lambda ctx: note_heard(ctx, {"WATCH1": [first("websocket").id]}),
    "not fetched": lambda ctx: give_up_unfetched(later(ctx, hours=100)),
    "restart": lambda ctx: announce(ctx, "RESTARTED"),
    "unsubscribed": lambda ctx: unsubscribe(ctx, UPS_GLOBAL_SUBSCRIPTION, "WATCH1"),
    "purged": lambda ctx: purge_workitems(later(ctx, days=400)),
}
# All that waits, or is passed on, may be read; not all that was ever told.
WHOLE = re.compile(r"SCAN (outbox|o)\b(?! USING (COVERING )?INDEX outbox_(due|passed_on))")


@pytest.mark.parametrize("look", LOOKS)
def test_the_outbox_is_looked_into_by_an_index(told, look):
    statements, connection = [], database.connection()
    connection.set_trace_callback(statements.append)
    try:
        LOOKS[look](told)
    finally:
        connection.set_trace_callback(None)
    looks = {one for one in statements if re.search(r"\b(outbox|receiver|commitment)\b", one)}
    assert looks
    for statement in looks:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
        assert not [step for step in plan if WHOLE.match(step)], (statement, plan)


def test_every_kind_is_in_a_lane_that_is_sent():
    desk = CommitmentDesk(None, None, None, None)
    lanes = {EVENT_LANES["dimse"], PASSED_ON_LANE, *desk.lanes(None)}
    assert {kind.lane for kind in KINDS.values()} == lanes


def test_a_further_kind_brings_a_lane_and_a_sender_and_nothing_else(ctx):
    """As HL7 messages or webhooks would: in order, beside an AE of that name that is away."""
    told_of(ctx, "RIS", count=2)
    for number in (1, 2, 3):
        insert_row(Outbox, kind="hl7", lane="hl7", receiver="RIS", data=f"MSH|{number}".encode(),
                   created_at=ctx.stamp())  # fmt: skip
    heard_of = []

    async def send(receiver, messages, heard):
        for message in messages:
            heard_of.append((message.kind, message.data))
            heard(message, "AA")

    async def away(receiver, messages, heard):
        raise DeliveryError("not reached")

    async def call(function, *arguments):
        return function(*arguments)

    async def one_round():
        lanes = {"events": Lane(away), "hl7": Lane(send)}
        await Delivery(lanes, lambda: ctx, call, call).work(wait=True)

    asyncio.run(one_round())
    assert heard_of == [("hl7", b"MSH|1"), ("hl7", b"MSH|2"), ("hl7", b"MSH|3")]
    rows = fetch_rows(Outbox, "lane = 'hl7'")
    assert {(row.answer, row.sent_at) for row in rows} == {("AA", ctx.stamp())}
    assert len(due_events("RIS")) == 2
