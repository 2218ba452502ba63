"""UPS among hostile peers and unlucky machines: watchers, filters, exports, a disk that is full."""

import asyncio
import contextlib
import json
import struct

import peewee
import pytest
from conftest import write_config
from pydicom.dataset import Dataset
from test_delivery import BareWatcher, told_of
from test_events import UID, WATCHERS, create, keys_of, subscribe
from test_order_life import refused
from test_ups import LOCK

from minris.access.context import Actor, purge_audit
from minris.appliance.store_commands import run_import
from minris.config.ini import ConfigError, load_config
from minris.dataset.elements import ElementIndex, encode_element
from minris.dataset.recode import recode
from minris.dataset.text import SPECIFIC_CHARACTER_SET
from minris.delivery.receivers import Delivery, Lane
from minris.dimse.services import ups_action
from minris.housekeeping.stuck import orphans
from minris.interchange.whole_store import export_store
from minris.standard.dictionary import tag_of
from minris.standard.status import Refusal, Status
from minris.standard.uids import UPS_EVENT, UPS_FILTERED_SUBSCRIPTION, UPS_GLOBAL_SUBSCRIPTION
from minris.store.models import Audit, Workitem, database
from minris.store.rows import insert_row
from minris.upper_layer.caller import Caller, DeliveryError, associate_request
from minris.upper_layer.pdus import AcceptedContext, encode_command
from minris.ups import subscriptions as ups_subscriptions
from minris.ups.people import claim_by_person
from minris.ups.search import stored_workitem
from minris.ups.workitems import get_workitem

P_DATA, ASSOCIATE_AC = 4, 2
CONTEXT = AcceptedContext(1, UPS_EVENT, True)
PROPOSED = ((UPS_EVENT, (False, True)),)


@pytest.fixture
def config(tmp_path):
    """The usual settings, and two watchers that we could call."""
    return load_config(write_config(tmp_path, WATCHERS))


# Watchers that we call.


class Rogue:
    """A watcher that answers our association, then sends bytes of the test and reads no more.

    accepted  its A-ASSOCIATE-AC, a proper one if none is given
    """

    def __init__(self, then=b"", accepted=None):
        self.accepted = accepted or BareWatcher()._accepted(
            associate_request("MINRIS", "WATCH1", PROPOSED)
        )
        self.then, self.writers = then, []

    async def _serve(self, reader, writer):
        self.writers.append(writer)
        head = await reader.readexactly(6)
        await reader.readexactly(int.from_bytes(head[2:], "big"))
        writer.transport.pause_reading()
        with contextlib.suppress(ConnectionError):
            writer.write(self.accepted + self.then)
            await writer.drain()

    @contextlib.asynccontextmanager
    async def called(self, timeout=2.0):
        """Listen, and give a Caller with its address."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield Caller(timeout), server.sockets[0].getsockname()[:2]
        finally:
            server.close()
            for writer in self.writers:
                writer.transport.abort()
            await asyncio.sleep(0)


def p_data(*fragments):
    """A P-DATA-TF PDU of command fragments, none of them the last."""
    body = b"".join(struct.pack(">IBB", len(part) + 2, 1, 1) + part for part in fragments)
    return struct.pack(">BxI", P_DATA, len(body)) + body


TELLING = encode_command(CommandField=0x0100, MessageID=1, CommandDataSetType=0x0001, EventTypeID=1)


async def failure_of(rogue, data=b"", timeout=2.0):
    """What becomes of telling a rogue: the words of the failure, and its caller."""
    async with rogue.called(timeout) as (caller, address):
        with pytest.raises(DeliveryError) as error:
            await caller.open(address, "MINRIS", "WATCH1", PROPOSED)
            await caller.ask(CONTEXT, TELLING, data or None)
        await asyncio.sleep(0)  # what has been aborted is closed
        await asyncio.sleep(0)
        return str(error.value), caller.writer.transport.get_write_buffer_size()


def test_a_response_in_endless_small_fragments_is_cut_off_early():
    """No command set is past 16 KiB; a megabyte of one byte each holds the loop for seconds."""
    words, _ = asyncio.run(failure_of(Rogue(p_data(*[b"x"] * 40_000))))
    assert "exceeds the limit" in words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (struct.pack(">IBB", 3, 3, 3) + b"x", "presentation context 3 was not accepted"),
        (struct.pack(">IBB", 400, 1, 3) + b"x", "wrong length"),
        (struct.pack(">H", 3), "truncated"),
        (b"", "empty"),
    ],
)
def test_a_response_in_wrong_fragments_is_refused_as_a_request_is(value, words):
    found, _ = asyncio.run(failure_of(Rogue(struct.pack(">BxI", P_DATA, len(value)) + value)))
    assert words in found


def test_an_answer_to_our_association_of_a_megabyte_is_not_read():
    accepted = struct.pack(">BxI", ASSOCIATE_AC, 1 << 20)
    words, _ = asyncio.run(failure_of(Rogue(accepted=accepted)))
    assert "exceeds the limit" in words


def test_a_watcher_that_does_not_read_costs_no_memory_once_it_is_given_up():
    """Four megabytes that it will never take must not wait for it for good."""
    _, waiting = asyncio.run(failure_of(Rogue(), b"y" * 20_000_000, timeout=0.3))
    assert waiting == 0


def test_a_receiver_is_told_once_though_the_disk_is_too_full_to_note_it(ctx):
    """Each wake, and there is one for each request, would tell it the same again."""
    told_of(ctx, "WATCH1", count=2)
    sent, unhandled = [], []

    async def send(receiver, events, heard):
        for event in events:
            sent.append(event.uid)
            heard(event)

    async def read(function, *arguments):
        return function(*arguments)

    async def write(function, *arguments):
        raise peewee.OperationalError("database or disk is full")

    async def rounds():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, how: unhandled.append(how["message"]))
        delivery = Delivery({"events": Lane(send)}, lambda: ctx, read, write)
        for _ in range(5):
            await delivery.work(wait=True)

    asyncio.run(rounds())
    assert sent == ["2.25.60", "2.25.61"]


def test_a_delivery_on_a_full_disk_leaves_no_task_with_an_exception(ctx):
    told_of(ctx, "WATCH1", count=1)

    async def send(receiver, events, heard):
        raise DeliveryError("not reached")

    async def read(function, *arguments):
        return function(*arguments)

    async def write(function, *arguments):
        raise peewee.OperationalError("database or disk is full")

    async def one_round():
        delivery = Delivery({"events": Lane(send)}, lambda: ctx, read, write)
        await delivery.work()
        return await asyncio.gather(*delivery.tasks.values(), return_exceptions=True)

    assert asyncio.run(one_round()) == [None]


# Who asks.


def act(ctx, kind, receiver, **information):
    """An N-ACTION on all workitems."""
    data = encode_element(tag_of("ReceivingAE"), b"AE", receiver)
    rest = b"".join(ElementIndex(keys_of(information)).element(tag_of(k)) for k in information)
    return ups_action(ctx, UPS_GLOBAL_SUBSCRIPTION, kind, ElementIndex(data + rest))


NO_AE = [b"WATCH1\nworkitem 2.25.7: SCHEDULED -> CANCELED by CT1", b"A" * 60_000, b"WATCH1\x1b[2J"]


@pytest.mark.parametrize("receiver", NO_AE, ids=["two lines", "60,000 bytes", "escape"])
@pytest.mark.parametrize("kind", [4, 5], ids=["unsubscribe", "suspend"])
def test_what_is_no_ae_title_gets_into_neither_log_nor_audit(ctx, caplog, kind, receiver):
    caplog.set_level("DEBUG", "minris")
    with contextlib.suppress(Refusal):
        act(ctx, kind, receiver)
    lines = [record.getMessage() for record in caplog.records]
    lines += [audit.detail for audit in Audit.select()]
    assert all(line.isprintable() and len(line) < 500 for line in lines)


def test_a_lock_that_another_machine_has_released_is_in_the_audit_log(ctx):
    """CT1 releases what WATCH1 holds (PS3.4 CC.2.3.2 lets it): who did it can be found."""
    create(ctx)
    subscribe(ctx, lock=True)
    purge_audit("9999")
    subscribe(ctx, lock=False)
    [line] = Audit.select()
    assert (line.who, line.about) == ("CT1@127.0.0.1", UID)
    assert "WATCH1" in line.detail and "lock" in line.detail


# Filters.


def test_of_a_filter_is_kept_what_workitems_are_matched_by(ctx):
    """60,000 elements of no meaning would be read again for each workitem that is made."""
    junk = Dataset()
    junk.add_new(0x00091001, "LO", "padding")
    junk.PixelSpacing = [1, 1]
    keys = keys_of({"WorklistLabel": "3D"})
    padded = bytes(ElementIndex(keys).merged(ElementIndex(recode(_encoded(junk)))))
    ups_subscriptions.subscribe(ctx, UPS_FILTERED_SUBSCRIPTION, "WATCH1", False, padded)
    [(kept,)] = database.execute_sql("SELECT keys FROM global_subscription")
    assert set(ElementIndex(bytes(kept))) <= {
        tag_of("WorklistLabel"),
        SPECIFIC_CHARACTER_SET,
    }


def _encoded(ds):
    from pynetdicom.dsutils import encode

    return encode(ds, False, True)


def test_a_filter_that_cannot_be_read_hinders_no_workitem(ctx):
    """As an older export or a hand may have left it: its watcher hears nothing, all else goes on."""
    subscribe(ctx, UPS_FILTERED_SUBSCRIPTION)
    wrong = encode_element(tag_of("ScheduledProcedureStepStartDateTime"), b"DT", b"yesterday")
    database.execute_sql("UPDATE global_subscription SET keys = ?", (wrong,))
    assert create(ctx)[1] == Status.SUCCESS


# Exports that a hand has changed.


@pytest.fixture
def export(ctx):
    """An export of one claimed workitem with a watcher and a filter; the store is then empty."""
    create(ctx)
    claim_by_person(ctx.by(Actor("anna", "", "desk")), UID)
    subscribe(ctx, lock=True)
    subscribe(ctx, UPS_FILTERED_SUBSCRIPTION, "WATCH2")
    content = json.loads(json.dumps(export_store()))
    for table in ("subscription", "global_subscription", "outbox", "workitem_event"):
        database.execute_sql(f"DELETE FROM {table}")
    database.execute_sql("DELETE FROM workitem")
    return content


def put(value, *path):
    """A change of an export: a value at a path."""

    def change(content):
        *outer, last = path
        for key in outer:
            content = content[key]
        content[last] = value

    return change


DT = "00404005"  # Scheduled Procedure Step Start DateTime
WRONG = {
    "a lock past 64 bits": put(2**70, "subscriptions", 0, 2),
    "a lock that is a list": put([], "subscriptions", 0, 2),
    "a lock of seven": put(7, "subscriptions", 0, 2),
    "a subscription without its time": put(None, "subscriptions", 0, 3),
    "a purged workitem without its time": put([["2.25.5"]], "purged_workitems"),
    "a global subscription without its receiver": put(None, "global_subscriptions", 0, "ae_title"),
    "a filter that cannot be read": put(
        {DT: {"vr": "DT", "Value": ["yesterday"]}}, "global_subscriptions", 0, "keys"
    ),
    "an event type past 64 bits": put(2**70, "workitem_events", 0, "event_type"),
    "an event of no type": put(99, "workitem_events", 0, "event_type"),
    "an event at no time": put("then", "workitem_events", 0, "created_at"),
    "a workitem in no state": put("FOO", "workitems", 0, "data", "00741000", "Value", 0),
    "a workitem claimed at no time": put("then", "workitems", 0, "claimed_at"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_an_export_that_is_wrong_is_refused_and_nothing_of_it_kept(ctx, export, wrong):
    """What is taken as it stands breaks a page, an N-ACTION or every N-CREATE later."""
    WRONG[wrong](export)
    with refused(Status.INVALID_ATTRIBUTE_VALUE), database.atomic():
        run_import(ctx, "all.json", json.dumps(export).encode())
    assert stored_workitem(UID) is None


def test_a_lock_in_an_export_is_told_to_nobody(ctx, export):
    """The Transaction UID is never returned, whoever put it there (PS3.4 CC.2.7)."""
    put({"vr": "UI", "Value": [LOCK]}, "workitems", 0, "data", "00081195")(export)
    with contextlib.suppress(Refusal):
        run_import(ctx, "all.json", json.dumps(export).encode())
        assert LOCK.encode() not in get_workitem(UID)[1]
    assert LOCK not in json.dumps(export_store())


def test_an_export_that_is_right_is_taken(ctx, export):
    """So that the refusals above are for what is wrong alone."""
    run_import(ctx, "all.json", json.dumps(export).encode())
    assert stored_workitem(UID).state == "IN PROGRESS"
    assert json.loads(json.dumps(export_store())) == export


# Settings.


@pytest.mark.parametrize("label", ["L" * 65, "3D\\CAD"])
def test_a_label_that_no_workitem_may_have_is_refused_in_the_settings(tmp_path, label):
    """VR LO: at most 64 characters, one value."""
    path = write_config(tmp_path, f"[ups]\nworklist_label = {label}\n")
    with pytest.raises(ConfigError, match=r"\[ups\].*worklist_label"):
        load_config(path)


# Many.


def test_the_list_of_what_is_stuck_is_not_endless(ctx):
    """50,000 locks made a page of 30 MB."""
    now = ctx.stamp(hours=-100)
    for number in range(1000):
        insert_row(
            Workitem,
            sop_instance_uid=f"2.25.5{number:04}", transaction_uid="", performer="", by_person=0,
            declined="", data=b"", version=1, created_at=now, updated_at=now, claimed_at="",
            ended_at=now, state="COMPLETED", worklist_label="", priority="", readiness="",
            start_at="", expires_at="", patient_id="", accession_number="", name_key="", label="",
        )  # fmt: skip
    database.execute_sql(
        "INSERT INTO subscription (workitem_id, ae_title, deletion_lock, created_at)"
        " SELECT id, 'WATCH1', 1, '' FROM workitem"
    )
    assert len(orphans(ctx)) <= 500
