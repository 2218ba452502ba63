"""Section 15, DELIVERY: events on their way to watchers of others, dcmjs-dimse and pynetdicom."""

import asyncio
import contextlib
import datetime
import gc
import queue
import signal
import socket
import sqlite3
import struct
import threading
import time
from typing import NamedTuple

import peers
import pytest
from conftest import write_config
from peers import PATIENCE_S
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from test_events import (
    OTHER,
    REPORT,
    RESTART,
    THIRD,
    UID,
    Requester,
    later,
    progress,
    station,
    stored_form,
    workitem,
)
from test_mpps import dataset, serving
from test_pages import csrf_of, employ, visiting

from minris.config.ini import load_config
from minris.dataset.elements import EMPTY
from minris.delivery.receivers import Delivery, Lane, due_in_lanes
from minris.dimse.senders import DimseSender
from minris.outbox import (
    RETRY_AFTER,
    Event,
    due_events,
    due_receivers,
    note_failed,
    note_sent,
    retry_events,
)
from minris.standard.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    UPS_EVENT,
    UPS_FILTERED_SUBSCRIPTION,
    UPS_GLOBAL_SUBSCRIPTION,
    UPS_PUSH,
    VERIFICATION,
)
from minris.store.models import database
from minris.store.sqlite import backup_store, restore_store
from minris.upper_layer.caller import Caller, DeliveryError
from minris.upper_layer.pdus import (
    NO_DATA_SET,
    AcceptedContext,
    decode_command,
    encode_command,
    message_pdus,
)
from minris.ups.events import announce, record_event
from minris.ups.people import watchers, watchers_of
from minris.ups.subscriptions import subscribe
from minris.ups.workitems import create_workitem, purge_workitems

QUIET = "[ups]\ntell_going_down = no\n"
LIFE = ["SCHEDULED", "IN PROGRESS", "COMPLETED"]


# Watchers.


class Heard(NamedTuple):
    """An event as a watcher hears it."""

    kind: int
    uid: str
    state: str | None
    data: Dataset
    message_id: int
    sop_class: str


class Watcher:
    """pynetdicom as SCU of the UPS Event class: an AE that is told of workitems.

    role    whether it answers our role selection; `on_event` is called with each event
    gate    an event is answered when this is set
    answer  the status, and the data set beside it
    """

    def __init__(
        self, port=0, role=True, on_event=None, title="WATCH1", answer=(0x0000, None), pdu=16384
    ):
        self.title, self.role, self.on_event = title, role, on_event
        self.answer, self.maximum_pdu = answer, pdu
        self.events, self.closed = queue.Queue(), queue.Queue()
        self.requests, self.associations = [], []
        self.gate = threading.Event()
        self.gate.set()
        self.port = port or peers.free_port()  # it is stopped, and listens there again
        self.listen()

    def listen(self):
        self.ae = ae = AE(self.title)
        ae.maximum_pdu_size = self.maximum_pdu
        roles = {"scu_role": False, "scp_role": True} if self.role else {}
        ae.add_supported_context(UPS_EVENT, EXPLICIT_VR_LITTLE_ENDIAN, **roles)
        handlers = [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_ESTABLISHED, lambda event: self.associations.append(event.assoc)),
            (evt.EVT_CONN_CLOSE, lambda event: self.closed.put("closed")),
            (evt.EVT_RELEASED, lambda event: self.closed.put("released")),
            (evt.EVT_N_EVENT_REPORT, self._told),
        ]
        ae.start_server((peers.HOST, self.port), block=False, evt_handlers=handlers)

    def _requested(self, event):
        self.requests.append(event.assoc.requestor.primitive)

    def _told(self, event):
        request, data = event.request, event.event_information
        told = Heard(
            event.event_type,
            str(request.AffectedSOPInstanceUID),
            data.get("ProcedureStepState"),
            data,
            request.MessageID,
            str(request.AffectedSOPClassUID),
        )
        self.events.put(told)
        self.gate.wait(PATIENCE_S)
        if self.on_event:
            self.on_event(told)
        return self.answer

    def next(self, timeout_s=PATIENCE_S):
        """The next event."""
        return self.events.get(timeout=timeout_s)

    def next_states(self, count):
        """[(UID, state)] of as many events."""
        return [(event.uid, event.state) for event in (self.next() for _ in range(count))]

    def stop(self):
        """End it, as if it were killed: whoever calls is refused."""
        self.gate.set()
        self.ae.shutdown()


@pytest.fixture
def watcher():
    """Gives a function that starts a Watcher."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, **how):
            one = Watcher(*arguments, **how)
            stack.callback(one.stop)
            return one

        yield start


class Silent:
    """Takes a connection and never says anything."""

    def __init__(self):
        self.listener = socket.create_server((peers.HOST, 0))
        self.port = self.listener.getsockname()[1]
        self.called = threading.Event()
        self.kept = []
        self.thread = threading.Thread(target=self._take, daemon=True)
        self.thread.start()

    def _take(self):
        with contextlib.suppress(OSError):
            while True:
                self.kept.append(self.listener.accept()[0])
                self.called.set()

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)
        for connection in self.kept:
            connection.close()


@pytest.fixture
def silent():
    """A watcher that takes connections and never answers."""
    one = Silent()
    yield one
    one.close()


class BareWatcher:
    """A watcher on bare sockets, for what no library does.

    roles     whether it answers role selection
    events    as many are taken on one association, then it is closed
    response  what is sent in place of an N-EVENT-REPORT-RSP
    """

    def __init__(self, roles=True, events=1000, response=None):
        self.roles, self.most, self.response = roles, events, response
        self.events, self.left = queue.Queue(), queue.Queue()

    def __enter__(self):
        self.listener = socket.create_server((peers.HOST, 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection):
        with connection, connection.makefile("rb") as file, contextlib.suppress(EOFError, OSError):
            connection.sendall(self._accepted(pdu_of(file)))
            for _ in range(self.most):
                connection.sendall(self._answer(pdu_of(file)))
            connection.shutdown(socket.SHUT_WR)  # we have said all
            file.read()
            self.left.put("closed by the appliance")

    def _accepted(self, pdu):
        asked = A_ASSOCIATE_RQ()
        asked.decode(pdu)
        answer = asked.to_primitive()
        answer.result, answer.result_source = 0x00, 0x01
        [context] = answer.presentation_context_definition_list
        context.result, context.transfer_syntax = 0x00, [EXPLICIT_VR_LITTLE_ENDIAN]
        answer.presentation_context_definition_results_list = [context]
        answer.user_information = [
            item for item in answer.user_information if self.roles or not hasattr(item, "scp_role")
        ]
        accepted = A_ASSOCIATE_AC()
        accepted.from_primitive(answer)
        return accepted.encode()

    def _answer(self, pdu):
        """The response to a command; nothing yet where the PDU holds its data set alone."""
        if pdu[0] != 0x04:
            raise EOFError
        length, context_id, control = struct.unpack_from(">IBB", pdu, 6)
        if not control & 1:
            return self._response()
        self.command, self.context_id = decode_command(pdu[12 : 10 + length]), context_id
        self.combined = len(pdu) > 10 + length
        self.events.put((self.command["EventTypeID"], self.command["AffectedSOPInstanceUID"]))
        return self._response() if self.combined else b""

    def _response(self):
        if self.response is not None:
            return self.response
        response = encode_command(
            AffectedSOPClassUID=UPS_PUSH,
            CommandField=0x8100,
            MessageIDBeingRespondedTo=self.command["MessageID"],
            CommandDataSetType=NO_DATA_SET,
            Status=0x0000,
            AffectedSOPInstanceUID=self.command["AffectedSOPInstanceUID"],
            EventTypeID=self.command["EventTypeID"],
        )
        where = AcceptedContext(self.context_id, UPS_EVENT, True)
        return message_pdus(where, response, None, 16384)


def pdu_of(file):
    """The next PDU. EOFError"""
    header = file.read(6)
    if len(header) < 6:
        raise EOFError
    return header + file.read(int.from_bytes(header[2:], "big"))


def registered(**ports):
    """Device sections: registered(WATCH1=11113)."""
    sections = [
        f"[device {title} room]\nae_title = {title}\nhost = 127.0.0.1\nport = {port}\n"
        for title, port in ports.items()
    ]
    return "".join(sections) + QUIET


def watch(appliance, *titles, uid=UPS_GLOBAL_SUBSCRIPTION, lock=False):
    """Subscribe AEs to all workitems, or to one."""
    for title in titles:
        appliance.write(subscribe, appliance.context(), uid, title, lock)


def impatient(monkeypatch, seconds=0.5):
    """So much silence is a failure, not ten seconds and more."""
    make = Caller.__init__
    monkeypatch.setattr(
        Caller, "__init__", lambda self, timeout=seconds: make(self, min(timeout, seconds))
    )


@pytest.fixture
def woken_alone(monkeypatch):
    """Delivery looks for something to do when it is woken, and not every few seconds."""
    monkeypatch.setattr(Delivery, "PAUSE", 3600.0)


def waiting(appliance, title):
    """How many events a receiver has not heard."""
    return len(appliance.read(due_events, title, 1000))


def once(appliance, condition, words):
    """Wait for something that the appliance does in its own time."""
    deadline = datetime.datetime.now() + datetime.timedelta(seconds=PATIENCE_S)
    pause = threading.Event()
    while not appliance.read(condition):
        assert datetime.datetime.now() < deadline, words
        pause.wait(0.02)


def once_all_is_heard(appliance, title):
    """Wait until a receiver is known to have heard all."""
    once(appliance, lambda: not due_events(title), f"{title} has not heard all")


def problem_of(title):
    """What the last delivery to an AE failed of; nothing where it did not."""
    row = database.execute_sql(
        "SELECT problem FROM receiver WHERE lane = 'events' AND ae_title = ?", (title,)
    )
    return (row.fetchone() or ("",))[0]


def once_failed(appliance, title):
    """Wait for a failure to be noted: its words."""
    once(appliance, lambda: problem_of(title), f"{title} was not tried")
    return appliance.read(problem_of, title)


def try_again(appliance, title):
    """What an administrator does when a watcher is back."""
    appliance.write(retry_events, appliance.context(), title)
    appliance.appliance.wake_delivery()


def live(requester, *uids):
    """Create, claim and complete workitems, one after the other: what is told of it."""
    for uid in uids:
        assert requester.create(uid) == 0x0000
        requester.perform(uid)
    return [(uid, state) for uid in uids for state in LIFE]


def life_of(*uids):
    """What is told of the whole lives of workitems."""
    return [(uid, state) for uid in uids for state in LIFE]


# Told.


def test_a_watcher_by_pynetdicom_hears_all_in_order(run_appliance, watcher, woken_alone):
    workstation = watcher()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester:
        told = live(requester, UID, OTHER, THIRD)
    assert workstation.next_states(len(told)) == told


def test_a_watcher_by_dcmjs_dimse_hears_all_in_order(run_appliance):
    with peers.listening_dimse("WATCH2") as workstation:
        appliance = run_appliance(registered(WATCH2=workstation.port))
        watch(appliance, "WATCH2")
        with Requester(appliance.port) as requester:
            told = live(requester, UID, OTHER, THIRD)
        events = [workstation.next_event() for _ in told]
    assert [(e["sopInstance"], e["dataset"]["ProcedureStepState"]) for e in events] == told
    assert {(e["event"], e["sopClass"], e["calling"], e["called"]) for e in events} == {
        (REPORT, UPS_PUSH, "MINRIS", "WATCH2")
    }


def test_two_watchers_each_hear_all_in_order(run_appliance, watcher):
    one, two = watcher(), watcher(title="WATCH2")
    appliance = run_appliance(registered(WATCH1=one.port, WATCH2=two.port))
    watch(appliance, "WATCH1", "WATCH2")
    with Requester(appliance.port) as requester:
        told = live(requester, UID, OTHER, THIRD)
    assert one.next_states(len(told)) == two.next_states(len(told)) == told


def test_the_event_association_is_proposed_with_us_as_scp(run_appliance, watcher):
    """T-UPS-71."""
    workstation = watcher()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester:
        requester.create()
    event = workstation.next()
    [asked] = workstation.requests
    roles = [
        (item.sop_class_uid, item.scu_role, item.scp_role)
        for item in asked.user_information
        if hasattr(item, "scp_role")
    ]
    contexts = [c.abstract_syntax for c in asked.presentation_context_definition_list]
    assert (contexts, roles) == ([UPS_EVENT], [(UPS_EVENT, False, True)])
    assert (asked.calling_ae_title, asked.called_ae_title) == ("MINRIS", "WATCH1")
    assert (event.sop_class, event.uid) == (UPS_PUSH, UID)


def test_a_name_is_sent_in_the_character_set_of_the_watcher(run_appliance, watcher):
    workstation = watcher()
    text = registered(WATCH1=workstation.port)
    text = text.replace("host =", "character_set = GB18030\nhost =")
    appliance = run_appliance(text)
    watch(appliance, "WATCH1")
    sequence = station()
    sequence.CodeMeaning = "三维工作站"
    with Requester(appliance.port) as requester:
        requester.create(ScheduledStationNameCodeSequence=[sequence])
    workstation.next()
    told = workstation.next().data
    assert told.SpecificCharacterSet == "GB18030"
    assert told.ScheduledStationNameCodeSequence[0].CodeMeaning == "三维工作站"


def test_a_gift_is_told_to_the_one_it_was_given_to(run_appliance, watcher):
    """T-UPS-65: CT1 subscribes WATCH1, over DIMSE."""
    workstation = watcher()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    with Requester(appliance.port) as requester:
        requester.create()
        assert requester.subscribe(UID, "WATCH1", "TRUE") == 0x0000
        requester.perform()
    assert workstation.next_states(3) == life_of(UID)
    assert appliance.read(watchers_of, UID) == [("WATCH1", 1)]


def test_a_filter_lets_through_what_matches(run_appliance, watcher):
    """T-UPS-67, over DIMSE from end to end."""
    workstation = watcher()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    with Requester(appliance.port) as requester:
        status = requester.subscribe(
            UPS_FILTERED_SUBSCRIPTION,
            ScheduledProcedureStepPriority="HIGH",
            PatientName="WANG*",
        )
        assert status == 0x0000
        requester.create(UID)
        requester.create(OTHER, ScheduledProcedureStepPriority="HIGH", PatientName="Zhao^Min")
        requester.create(THIRD, ScheduledProcedureStepPriority="HIGH")
        requester.perform(UID)
        requester.perform(THIRD)
    assert workstation.next_states(3) == life_of(THIRD)


def test_what_a_person_does_on_a_page_is_told(run_appliance, watcher, woken_alone):
    workstation = watcher()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester, visiting(appliance) as client:
        requester.create()
        desk, page = employ(appliance, client), f"/workitem/{UID}"
        form = {"csrf": csrf_of(desk.get(page).text), "event": "claim"}
        assert desk.post(page, data=form).status_code == 303
    assert workstation.next_states(2) == [(UID, "SCHEDULED"), (UID, "IN PROGRESS")]


def test_who_is_told_of_the_end_finds_it_ended(run_appliance, watcher):
    """T-UPS-75: N-GET of a watcher, from within its answer to event 1 CANCELED."""
    found = queue.Queue()

    def ask(event):
        if event.state == "CANCELED":
            with Requester(appliance.port, "US1") as watching:
                found.put(watching.get()[1].ProcedureStepState)

    workstation = watcher(on_event=ask)
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester:
        requester.create()
        assert requester.act(2, UID, ReasonForCancellation="Wrong side") == 0x0000
    assert found.get(timeout=PATIENCE_S) == "CANCELED"


def test_whoever_asks_is_answered_before_it_is_told(run_appliance, watcher):
    """A requester that watches and has one thread: the event waits for its answer to be there."""
    workstation = watcher()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    dimse, order = appliance.appliance.dimse, []
    wake = dimse.on_events
    dimse.on_events = lambda: (order.append(len(workstation.requests)), wake())
    with Requester(appliance.port) as requester:
        requester.create()
    workstation.next()
    assert order[0] == 0


# None waits for another.


def test_a_dead_a_silent_and_a_slow_watcher_delay_nobody(run_appliance, watcher, silent):
    slow, well = watcher(title="SLOW"), watcher()
    slow.gate.clear()
    ports = {"DEAD": peers.free_port(), "SILENT": silent.port, "SLOW": slow.port}
    appliance = run_appliance(registered(**ports, WATCH1=well.port))
    watch(appliance, *ports, "WATCH1")
    with Requester(appliance.port) as requester:
        told = live(requester, UID, OTHER, THIRD)
    assert well.next_states(len(told)) == told
    once_all_is_heard(appliance, "WATCH1")
    assert silent.called.wait(PATIENCE_S)
    assert slow.next_states(1) == told[:1]
    assert [waiting(appliance, title) for title in ports] == [len(told)] * 3
    slow.gate.set()
    assert slow.next_states(len(told) - 1) == told[1:]


def test_a_watcher_out_of_reach_keeps_its_subscriptions(run_appliance, watcher):
    """T-UPS-72."""
    well = watcher(title="WATCH2")
    appliance = run_appliance(registered(WATCH1=peers.free_port(), WATCH2=well.port))
    watch(appliance, "WATCH1", "WATCH2", lock=True)
    with Requester(appliance.port) as requester:
        told = live(requester, UID)
    assert well.next_states(len(told)) == told
    assert "cannot connect" in once_failed(appliance, "WATCH1")
    assert appliance.read(watchers_of, UID) == [("WATCH1", 1), ("WATCH2", 1)]
    assert {(w.ae_title, w.deletion_lock) for w in appliance.read(watchers)} == {
        ("WATCH1", 1),
        ("WATCH2", 1),
    }


def test_a_silent_watcher_is_given_up_for_the_moment(run_appliance, silent, monkeypatch):
    impatient(monkeypatch)
    appliance = run_appliance(registered(SILENT=silent.port))
    watch(appliance, "SILENT")
    with Requester(appliance.port) as requester:
        requester.create()
    assert once_failed(appliance, "SILENT") == "cannot connect: no answer"
    assert waiting(appliance, "SILENT") == 1


def test_a_watcher_that_does_not_answer_an_event_hears_it_again(
    run_appliance, watcher, monkeypatch
):
    """At least once, and the Message ID tells that it is the same."""
    impatient(monkeypatch)
    workstation = watcher()
    workstation.gate.clear()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester:
        requester.create()
    first = workstation.next()
    assert once_failed(appliance, "WATCH1") == "no response: no answer"
    workstation.gate.set()
    try_again(appliance, "WATCH1")
    again = workstation.next()
    assert (again.uid, again.state, again.message_id) == (first.uid, first.state, first.message_id)
    once_all_is_heard(appliance, "WATCH1")


def test_each_event_has_a_message_id_of_its_own(run_appliance, watcher):
    workstation = watcher()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester:
        live(requester, UID, OTHER)
    assert len({workstation.next().message_id for _ in range(6)}) == 6


@pytest.mark.parametrize("outbox_id", [1, 65534, 65535, 65536, 131071])
def test_a_message_id_fits_its_field(outbox_id):
    assert 0 < Event(outbox_id, UID, REPORT, b"").message_id < 65536


# An association for a burst.


def burst(appliance, count):
    """As many workitems in one transaction."""

    uids = [f"2.25.5{number:04}" for number in range(count)]
    data = stored_form(workitem())

    def create_all():
        for uid in uids:
            create_workitem(appliance.context(), uid, data)

    appliance.write(create_all)
    appliance.appliance.wake_delivery()
    return [(uid, "SCHEDULED") for uid in uids]


def test_a_burst_is_told_on_one_association(run_appliance, watcher):
    workstation = watcher()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    told = burst(appliance, 120)
    assert workstation.next_states(len(told)) == told
    assert len(workstation.associations) == 1


def test_an_association_is_kept_for_what_follows(run_appliance, watcher):
    workstation = watcher()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester:
        for uid in (UID, OTHER, THIRD):
            requester.create(uid)
            workstation.next()
            once_all_is_heard(appliance, "WATCH1")
    assert len(workstation.associations) == 1


@pytest.fixture
def soon_let_go(monkeypatch):
    """An association that nobody needs is kept for a moment, not for three seconds."""
    monkeypatch.setattr(DimseSender, "KEEP", 0.2)


@pytest.mark.usefixtures("soon_let_go")
def test_an_association_that_is_not_needed_is_released(run_appliance, watcher):
    workstation = watcher()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester:
        requester.create()
    workstation.next()
    assert workstation.closed.get(timeout=PATIENCE_S) == "released"


def test_an_association_is_released_when_the_appliance_stops(run_appliance, watcher):
    workstation = watcher()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester:
        requester.create()
    workstation.next()
    once_all_is_heard(appliance, "WATCH1")
    appliance.stop()
    assert workstation.closed.get(timeout=PATIENCE_S) == "released"


def let_go_by_abort(association):
    association.abort()


def let_go_by_closing(association):
    association.dul.socket.close()


def let_go_by_release(association):
    """It asks for a release and does not wait for the answer."""
    association.acse.send_release()


@pytest.mark.parametrize("let_go", [let_go_by_abort, let_go_by_closing, let_go_by_release])
def test_an_association_that_the_watcher_has_closed_is_opened_anew(run_appliance, watcher, let_go):
    workstation = watcher()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester:
        requester.create(UID)
        workstation.next()
        once_all_is_heard(appliance, "WATCH1")
        let_go(workstation.associations[0])
        requester.create(OTHER)
        assert workstation.next_states(1) == [(OTHER, "SCHEDULED")]
    assert appliance.read(problem_of, "WATCH1") == ""
    assert len(workstation.associations) == 2


def test_a_watcher_that_takes_one_event_on_each_association_hears_all(run_appliance, monkeypatch):
    """It has answered and closed: that is no failure, and nothing to wait for."""
    monkeypatch.setattr("minris.conformance.services.RETRY_AFTER", (3600,))
    monkeypatch.setattr("minris.delivery.archive.RETRY_AFTER", (3600,))
    monkeypatch.setattr("minris.delivery.receivers.RETRY_AFTER", (3600,))
    monkeypatch.setattr("minris.delivery.sockets.RETRY_AFTER", (3600,))
    monkeypatch.setattr("minris.images.commitment.RETRY_AFTER", (3600,))
    monkeypatch.setattr("minris.outbox.RETRY_AFTER", (3600,))
    with BareWatcher(events=1) as workstation:
        appliance = run_appliance(registered(WATCH1=workstation.port))
        watch(appliance, "WATCH1")
        told = burst(appliance, 4)
        heard_of = [workstation.events.get(timeout=PATIENCE_S) for _ in told]
    assert heard_of == [(REPORT, uid) for uid, _ in told]


@pytest.mark.parametrize(("setting", "combined"), [("yes", True), ("no", False)])
def test_a_watcher_has_command_and_data_set_in_one_pdu_or_two(run_appliance, setting, combined):
    """The device setting combined_pdvs, as for answers."""
    with BareWatcher() as workstation:
        text = registered(WATCH1=workstation.port)
        appliance = run_appliance(text.replace("host =", f"combined_pdvs = {setting}\nhost ="))
        watch(appliance, "WATCH1")
        told = burst(appliance, 2)
        heard_of = [workstation.events.get(timeout=PATIENCE_S) for _ in told]
        once_all_is_heard(appliance, "WATCH1")
    assert heard_of == [(REPORT, uid) for uid, _ in told]
    assert workstation.combined == combined


@pytest.mark.usefixtures("soon_let_go")
def test_a_connection_that_the_watcher_has_closed_is_closed_here_too(run_appliance):
    """No open file is left behind for each association that a watcher ends."""
    with BareWatcher(events=1) as workstation, without_collection():
        appliance = run_appliance(registered(WATCH1=workstation.port))
        watch(appliance, "WATCH1")
        with Requester(appliance.port) as requester:
            for uid in (UID, OTHER):
                requester.create(uid)
                assert workstation.events.get(timeout=PATIENCE_S) == (REPORT, uid)
                once_all_is_heard(appliance, "WATCH1")
        left = [workstation.left.get(timeout=PATIENCE_S) for _ in (UID, OTHER)]
    assert left == ["closed by the appliance"] * 2


@contextlib.contextmanager
def without_collection():
    """Nothing is closed by chance, because its last reader is collected."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# What watchers answer.


@pytest.mark.parametrize(
    "answer", [(0x0110, None), (0x0000, dataset(PatientID="")), (0xFE00, None)]
)
def test_an_event_is_heard_whatever_the_watcher_makes_of_it(run_appliance, watcher, answer):
    """PS3.4 CC.2.4.4: a status has no effect here; an Event Reply has none either."""
    workstation = watcher(answer=answer)
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester:
        told = live(requester, UID)
    assert workstation.next_states(len(told)) == told
    once_all_is_heard(appliance, "WATCH1")
    assert (workstation.events.empty(), len(workstation.associations)) == (True, 1)


def test_a_watcher_that_takes_small_pdus_hears_long_events(run_appliance, watcher):
    workstation = watcher(pdu=256)
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    words = "Vessels are marked. " * 40
    sequence = {
        "ProcedureStepProgressInformationSequence": [
            progress(ProcedureStepProgressDescription=words)
        ]
    }
    with Requester(appliance.port) as requester:
        requester.create()
        requester.enter("IN PROGRESS")
        assert requester.set(**sequence) == 0x0000
    assert workstation.next_states(2) == life_of(UID)[:2]
    [item] = workstation.next().data.ProcedureStepProgressInformationSequence
    assert item.ProcedureStepProgressDescription.strip() == words.strip()


NO_ASSOCIATION = {
    "a web server": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a rejection": bytes.fromhex("0300 00000004 00010103"),
    "an abort": bytes.fromhex("0700 00000004 00000000"),
    "an answer of nonsense": bytes.fromhex("0200 00000008 0001000000000000"),
    "half a PDU": bytes.fromhex("0200 000000"),
    "nothing": b"",
}


@pytest.mark.parametrize("answer", NO_ASSOCIATION.values(), ids=NO_ASSOCIATION)
def test_whatever_answers_in_place_of_a_watcher_is_a_failure_in_words(run_appliance, answer):
    with answering(answer) as port:
        appliance = run_appliance(registered(WATCH1=port))
        watch(appliance, "WATCH1")
        with Requester(appliance.port) as requester:
            requester.create()
        words = once_failed(appliance, "WATCH1")
    assert words.startswith(("cannot ", "it "))
    assert waiting(appliance, "WATCH1") == 1


@contextlib.contextmanager
def answering(data):
    """Answers whoever connects with the same bytes, and closes; gives its port."""

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(data)

    with socket.create_server((peers.HOST, 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


NO_RESPONSE = {
    "an abort": bytes.fromhex("0700 00000004 00000000"),
    "a command of nonsense": bytes.fromhex("0400 0000000c 00000008 0103 ffffffffffff"),
    "a PDV of no length": bytes.fromhex("0400 00000006 00000000 0103"),
    "a PDU past the limit": bytes.fromhex("0400 7fffffff"),
    "nothing": b"",
}


@pytest.mark.parametrize("answer", NO_RESPONSE.values(), ids=NO_RESPONSE)
def test_an_event_answered_with_nonsense_is_not_heard(run_appliance, monkeypatch, answer):
    impatient(monkeypatch)
    with BareWatcher(response=answer) as workstation:
        appliance = run_appliance(registered(WATCH1=workstation.port))
        watch(appliance, "WATCH1")
        with Requester(appliance.port) as requester:
            requester.create()
        words = once_failed(appliance, "WATCH1")
    assert words.startswith("no response")
    assert waiting(appliance, "WATCH1") == 1


# Role selection.


def test_a_watcher_that_takes_no_roles_is_told_nothing(run_appliance, watcher):
    """PS3.7 D.3.3.4: without a role of SCP we may not."""
    workstation = watcher(role=False)
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester:
        requester.create()
    problem = once_failed(appliance, "WATCH1")
    assert "SCP" in problem
    assert "it answers no role (see events_without_role of its device)" in problem
    assert (workstation.events.empty(), waiting(appliance, "WATCH1")) == (True, 1)
    assert workstation.closed.get(timeout=PATIENCE_S) == "released"


def test_a_watcher_that_takes_no_roles_is_told_where_the_settings_say_so(run_appliance):
    """dcmjs-dimse takes any role, and pynetdicom no event without one: a watcher of our own."""
    with BareWatcher(roles=False) as workstation:
        text = registered(WATCH1=workstation.port)
        appliance = run_appliance(text.replace("host =", "events_without_role = yes\nhost ="))
        watch(appliance, "WATCH1")
        with Requester(appliance.port) as requester:
            requester.create()
        assert workstation.events.get(timeout=PATIENCE_S) == (REPORT, UID)
        once_all_is_heard(appliance, "WATCH1")


# Tried again.


@pytest.fixture
def config(tmp_path):
    """The usual settings, and a watcher."""
    return load_config(write_config(tmp_path, registered(WATCH1=9)))


@pytest.fixture
def one_event(ctx):
    """An event that WATCH1 has not heard."""
    ctx.config.ups.restart_receivers = ("WATCH1",)
    announce(ctx, "RESTARTED")
    [event] = due_events("WATCH1")
    return event


def test_each_failure_in_a_row_is_waited_for_longer(ctx, one_event):
    waits = [note_failed(ctx, "WATCH1", "not reached") for _ in range(len(RETRY_AFTER) + 2)]
    assert waits == [*RETRY_AFTER, RETRY_AFTER[-1], RETRY_AFTER[-1]]


@pytest.mark.parametrize("failures", range(1, len(RETRY_AFTER) + 1))
def test_a_receiver_is_due_when_its_wait_is_over(ctx, one_event, failures):
    waits = [note_failed(ctx, "WATCH1", "not reached") for _ in range(failures)]
    seconds = (0, waits[-1] - 1, waits[-1])
    due = [due_receivers(later(ctx, seconds=after)) for after in seconds]
    assert due == [[], [], ["WATCH1"]]


def test_a_clock_that_is_set_back_leaves_nobody_waiting(ctx, one_event):
    note_failed(later(ctx, days=4000), "WATCH1", "not reached")
    assert due_receivers(ctx) == ["WATCH1"]


def test_who_has_heard_something_begins_anew_with_short_waits(ctx, one_event):
    for _ in range(4):
        note_failed(ctx, "WATCH1", "not reached")
    note_sent(ctx, "WATCH1", {one_event.outbox_id: "0000"})
    assert note_failed(ctx, "WATCH1", "not reached") == RETRY_AFTER[0]


def failures_of(ctx, hours):
    """So many hours of failing, by the waits; the clock of each failure goes with them."""
    waited = 0
    while waited < hours * 3600:
        waited += note_failed(later(ctx, seconds=waited), "WATCH1", "not reached")
    return waited


def test_an_event_is_given_up_after_hours_of_failing(ctx, one_event):
    waited = failures_of(ctx, ctx.config.housekeeping.give_up_events_hours)
    assert due_events("WATCH1") == [one_event]
    note_failed(later(ctx, seconds=waited), "WATCH1", "not reached")
    assert due_events("WATCH1") == []


def test_a_clock_that_leaps_gives_nothing_up(ctx, one_event):
    """A board without a clock starts in 1970 and is in 2026 a minute later."""
    for _ in range(20):
        note_failed(later(ctx, days=20000), "WATCH1", "not reached")
    assert due_events("WATCH1") == [one_event]


def test_what_is_young_is_not_given_up_with_the_old(ctx, one_event):
    hours = ctx.config.housekeeping.give_up_events_hours
    waited = failures_of(ctx, hours)
    young = later(ctx, seconds=waited)
    record_event(young, "UPS State Report", UID, EMPTY, ["WATCH1"])
    note_failed(young, "WATCH1", "not reached")
    assert [event.uid for event in due_events("WATCH1")] == [UID]


def test_what_is_given_up_is_in_the_audit_log(ctx, one_event):
    waited = failures_of(ctx, ctx.config.housekeeping.give_up_events_hours)
    note_failed(later(ctx, seconds=waited), "WATCH1", "not reached")
    cursor = database.execute_sql("SELECT about, detail FROM audit ORDER BY id DESC LIMIT 1")
    assert cursor.fetchone() == ("WATCH1", "1: not reached")


@pytest.mark.parametrize("again", ["tried by a person", "subscribed anew"])
def test_a_try_that_nobody_has_waited_for_is_no_time_of_failing(ctx, one_event, again):
    """Then the clock leaps, and the event is as young as it was."""
    create_workitem(ctx, UID, stored_form(workitem()))
    for _ in range(400):
        if again == "tried by a person":
            retry_events(ctx, "WATCH1")
        else:
            subscribe(ctx, UID, "WATCH1", True)
        note_failed(ctx, "WATCH1", "not reached")
    note_failed(later(ctx, days=20000), "WATCH1", "not reached")
    assert due_events("WATCH1")[0] == one_event


def test_who_subscribes_is_tried_at_once(ctx, one_event):
    """It is there: it has just asked."""
    create_workitem(ctx, UID, stored_form(workitem()))
    note_failed(ctx, "WATCH1", "not reached")
    subscribe(ctx, UID, "WATCH1", False)
    assert due_receivers(ctx) == ["WATCH1"]


def deliver(ctx, send, *receivers):
    """One round of Delivery in this thread, with a sender of the test."""

    async def call(function, *arguments):
        return function(*arguments)

    async def round_of_all():
        delivery = Delivery({"events": Lane(send)}, lambda: ctx, call, call)
        await delivery.work(wait=True)

    asyncio.run(round_of_all())


def test_a_failure_counts_once_though_somebody_wakes_the_delivery_meanwhile(ctx):
    """Who was due when the looking began, and has failed since, waits."""
    told_of(ctx, "WATCH1")
    tries = []

    async def round_with_a_wake_in_it():
        looked, failed = asyncio.Event(), asyncio.Event()

        async def read(function, *arguments):
            found = function(*arguments)
            if function is due_in_lanes and tries:  # the second look
                looked.set()
                await failed.wait()
            return found

        async def write(function, *arguments):
            return function(*arguments)

        async def send(receiver, events, heard):
            tries.append(receiver)
            if len(tries) == 1:
                await looked.wait()
            raise DeliveryError("not reached")

        delivery = Delivery({"events": Lane(send)}, lambda: ctx, read, write)
        await delivery.work()
        await asyncio.sleep(0)  # the first try begins
        second = asyncio.create_task(delivery.work(wait=True))
        await asyncio.wait(delivery.tasks.values())
        failed.set()
        await second

    asyncio.run(round_with_a_wake_in_it())
    assert tries == ["WATCH1"]


def told_of(ctx, *receivers, count=3):
    """Events that receivers have not heard: their UIDs."""
    uids = [f"2.25.6{number}" for number in range(count)]
    for uid in uids:
        record_event(ctx, "UPS State Report", uid, EMPTY, receivers)
    return uids


def test_what_was_heard_before_a_failure_is_not_sent_again(ctx):
    uids = told_of(ctx, "WATCH1")

    async def send(receiver, events, heard):
        heard(events[0])
        raise DeliveryError("it ended the association")

    deliver(ctx, send)
    assert [event.uid for event in due_events("WATCH1")] == uids[1:]


def test_an_error_of_ours_is_a_failure_like_others(ctx):
    told_of(ctx, "WATCH1")

    async def send(receiver, events, heard):
        raise ZeroDivisionError("division by zero")

    deliver(ctx, send)
    assert problem_of("WATCH1") == "internal error: division by zero"
    assert due_receivers(ctx) == []


def test_a_receiver_that_fails_leaves_the_others_theirs(ctx):
    told_of(ctx, "WATCH1", "WATCH2")

    async def send(receiver, events, heard):
        if receiver == "WATCH1":
            raise DeliveryError("not reached")
        for event in events:
            heard(event)

    deliver(ctx, send)
    assert [len(due_events(title)) for title in ("WATCH1", "WATCH2")] == [3, 0]


def test_more_than_is_sent_at_once_comes_in_order(ctx):
    uids, heard_of = told_of(ctx, "WATCH1", count=130), []

    async def send(receiver, events, heard):
        for event in events:
            heard_of.append(event.uid)
            heard(event)

    deliver(ctx, send)
    assert heard_of == uids


def test_a_watcher_that_comes_back_hears_what_it_missed(run_appliance, watcher, monkeypatch):
    """Of itself: nobody has to press a button."""
    monkeypatch.setattr("minris.conformance.services.RETRY_AFTER", (1,))
    monkeypatch.setattr("minris.delivery.archive.RETRY_AFTER", (1,))
    monkeypatch.setattr("minris.delivery.receivers.RETRY_AFTER", (1,))
    monkeypatch.setattr("minris.delivery.sockets.RETRY_AFTER", (1,))
    monkeypatch.setattr("minris.images.commitment.RETRY_AFTER", (1,))
    monkeypatch.setattr("minris.outbox.RETRY_AFTER", (1,))
    port = peers.free_port()
    appliance = run_appliance(registered(WATCH1=port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester:
        told = live(requester, UID, OTHER)
    once_failed(appliance, "WATCH1")
    assert watcher(port).next_states(len(told)) == told
    once(appliance, lambda: not problem_of("WATCH1"), "the problem is still there")


def test_an_administrator_tries_at_once(run_appliance, watcher):
    port = peers.free_port()
    appliance = run_appliance(registered(WATCH1=port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester:
        told = live(requester, UID)
    once_failed(appliance, "WATCH1")
    workstation = watcher(port)
    try_again(appliance, "WATCH1")
    assert workstation.next_states(len(told)) == told


def test_a_watcher_that_dies_in_a_burst_hears_the_rest_later(run_appliance, watcher):
    workstation = watcher()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    with Requester(appliance.port) as requester:
        first = live(requester, UID)
        assert workstation.next_states(3) == first
        once_all_is_heard(appliance, "WATCH1")
        workstation.stop()
        then = live(requester, OTHER, THIRD)
    once_failed(appliance, "WATCH1")
    workstation.listen()
    try_again(appliance, "WATCH1")
    assert workstation.next_states(len(then)) == then


# Over a restart.


def test_what_was_not_heard_is_told_after_a_restart(run_appliance, watcher):
    port = peers.free_port()
    first = run_appliance(registered(WATCH1=port))
    watch(first, "WATCH1")
    with Requester(first.port) as requester:
        told = live(requester, UID, OTHER)
    once_failed(first, "WATCH1")
    first.stop()
    workstation = watcher(port)
    second = run_appliance(registered(WATCH1=port))
    try_again(second, "WATCH1")
    assert workstation.next_states(len(told)) == told
    assert workstation.next().kind == RESTART


def test_what_was_heard_is_not_told_after_a_restart(run_appliance, watcher):
    workstation = watcher()
    first = run_appliance(registered(WATCH1=workstation.port))
    watch(first, "WATCH1")
    with Requester(first.port) as requester:
        told = live(requester, UID)
    assert workstation.next_states(len(told)) == told
    once_all_is_heard(first, "WATCH1")
    first.stop()
    run_appliance(registered(WATCH1=workstation.port))
    assert workstation.next().kind == RESTART


def test_subscriptions_last_over_a_restart(run_appliance, watcher):
    workstation = watcher()
    first = run_appliance(registered(WATCH1=workstation.port))
    watch(first, "WATCH1", lock=True)
    first.stop()
    second = run_appliance(registered(WATCH1=workstation.port))
    assert workstation.next().kind == RESTART
    with Requester(second.port) as requester:
        told = live(requester, UID)
    assert workstation.next_states(len(told)) == told
    assert second.read(watchers_of, UID) == [("WATCH1", 1)]


def test_a_kill_between_a_change_and_its_event_loses_nothing(tmp_path, watcher):
    """SIGKILL while the watcher holds the event: told again, with the same Message ID."""
    workstation = watcher()
    workstation.gate.clear()
    config = write_config(tmp_path, registered(WATCH1=workstation.port))
    with serving(config) as (process, port):
        with Requester(port) as requester:
            assert requester.subscribe(UPS_GLOBAL_SUBSCRIPTION) == 0x0000
            told = live(requester, UID)
        first = workstation.next()
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
    workstation.gate.set()
    with serving(config):
        events = [workstation.next() for _ in range(len(told) + 1)]
    assert [(event.uid, event.state) for event in events[:-1]] == told
    assert events[0].message_id == first.message_id
    assert events[-1].kind == RESTART


def test_a_kill_with_a_dead_watcher_loses_nothing(tmp_path, watcher):
    port_of_watcher = peers.free_port()
    config = write_config(tmp_path, registered(WATCH1=port_of_watcher))
    with serving(config) as (process, port):
        with Requester(port) as requester:
            assert requester.subscribe(UPS_GLOBAL_SUBSCRIPTION) == 0x0000
            told = live(requester, UID)
        process.kill()
        process.wait(10)
    workstation = watcher(port_of_watcher)
    with serving(config):
        assert workstation.next_states(len(told)) == told


# A restart is told.


def restart_values(event):
    """What event 4 says."""
    keywords = ("SCPStatus", "SubscriptionListStatus", "UnifiedProcedureStepListStatus")
    assert (event.kind, event.uid) == (RESTART, UPS_GLOBAL_SUBSCRIPTION)
    return tuple(event.data[keyword].value for keyword in keywords)


WARM = ("RESTARTED", "WARM START", "WARM START")
COLD = ("RESTARTED", "COLD START", "COLD START")


def with_receivers(*titles, **ports):
    """Settings in which some are told of a restart anyhow."""
    listed = f"restart_receivers = {', '.join(titles)}\n"
    return registered(**ports) + listed


def test_a_restart_is_told_to_subscribers_and_to_the_list_once_each(run_appliance, watcher):
    """T-UPS-74: WATCH1 is both, WATCH2 watches one workitem, BACKUP is on the list alone."""
    ports = {"WATCH1": watcher(), "WATCH2": watcher(title="WATCH2")}
    backup = watcher(title="BACKUP")
    devices = {title: one.port for title, one in ports.items()}
    text = with_receivers("WATCH1", "BACKUP", **devices, BACKUP=backup.port)
    first = run_appliance(text)
    assert [restart_values(ports["WATCH1"].next()), restart_values(backup.next())] == [COLD] * 2
    watch(first, "WATCH1")
    with Requester(first.port) as requester:
        requester.create()
        requester.subscribe(UID, "WATCH2")
    assert ports["WATCH1"].next().kind == ports["WATCH2"].next().kind == REPORT
    for title in ("WATCH1", "WATCH2", "BACKUP"):
        once_all_is_heard(first, title)
    first.stop()
    second = run_appliance(text)
    everybody = (*ports.values(), backup)
    assert [restart_values(one.next()) for one in everybody] == [WARM] * 3
    for title in ("WATCH1", "WATCH2", "BACKUP"):
        once_all_is_heard(second, title)
    assert all(one.events.empty() for one in everybody)


def test_a_restart_is_told_at_once(run_appliance, watcher, woken_alone):
    workstation = watcher()
    run_appliance(with_receivers("WATCH1", WATCH1=workstation.port))
    assert restart_values(workstation.next()) == COLD


def test_a_kill_is_told_as_a_restart(tmp_path, watcher):
    """T-UPS-74."""
    workstation = watcher()
    config = write_config(tmp_path, with_receivers("WATCH1", WATCH1=workstation.port))
    with serving(config) as (process, _):
        assert restart_values(workstation.next()) == COLD
        process.kill()
        process.wait(10)
    with serving(config):
        assert restart_values(workstation.next()) == WARM


def test_a_store_put_back_from_a_backup_starts_cold(run_appliance, tmp_path, watcher):
    """T-UPS-74: what was subscribed since the backup is gone."""
    workstation = watcher()
    text = with_receivers("WATCH1", WATCH1=workstation.port)
    first = run_appliance(text)
    assert restart_values(workstation.next()) == COLD
    once_all_is_heard(first, "WATCH1")
    backup_store(first.config.store_path, tmp_path / "backup.db")
    first.stop()
    restore_store(first.config.store_path, tmp_path / "backup.db")
    second = run_appliance(text)
    assert restart_values(workstation.next()) == COLD
    once_all_is_heard(second, "WATCH1")
    second.stop()
    run_appliance(text)
    assert restart_values(workstation.next()) == WARM


def going_down(text):
    return text.replace("tell_going_down = no", "tell_going_down = yes")


def test_going_down_is_told_before_the_appliance_is_gone(run_appliance, watcher):
    """T-UPS-79."""
    workstation = watcher()
    appliance = run_appliance(going_down(registered(WATCH1=workstation.port)))
    watch(appliance, "WATCH1")
    appliance.stop()
    assert restart_values(workstation.next()) == ("GOING DOWN", "WARM START", "WARM START")


def test_going_down_is_kept_to_ourselves_where_the_settings_say_so(run_appliance, watcher):
    workstation = watcher()
    appliance = run_appliance(registered(WATCH1=workstation.port))
    watch(appliance, "WATCH1")
    appliance.stop()
    assert workstation.events.empty()


def test_a_dead_and_a_silent_watcher_do_not_keep_the_appliance_from_stopping(
    run_appliance, watcher, silent
):
    """T-UPS-72; Running.stop() waits for 20 s."""
    well = watcher()
    ports = {"DEAD": peers.free_port(), "SILENT": silent.port, "WATCH1": well.port}
    appliance = run_appliance(going_down(registered(**ports)))
    watch(appliance, *ports)
    appliance.stop()
    assert restart_values(well.next())[0] == "GOING DOWN"


# The reliable watcher.


class Reader:
    """Reads back what a watcher is told of, from the appliance."""

    def __init__(self, port):
        self.port = port

    def states(self, *uids):
        with Requester(self.port, "US1") as requester:
            return [requester.get(uid)[1].ProcedureStepState for uid in uids]


def test_a_reliable_watcher_misses_nothing(tmp_path, run_appliance, watcher):
    """PS3.17 GGG.1: killed, three complete, purge, kill, restart, back; then all is let go.

    T-UPS-72, T-UPS-73.
    """
    uids = (UID, OTHER, THIRD)
    workstation = watcher()
    text = registered(WATCH1=workstation.port)
    with serving(write_config(tmp_path, text)) as (process, port):
        with Requester(port) as requester:
            assert requester.subscribe(UPS_GLOBAL_SUBSCRIPTION, lock="TRUE") == 0x0000
            workstation.stop()
            told = live(requester, *uids)
        process.kill()
        process.wait(10)
    long_ago(tmp_path / "minris.db")
    appliance = run_appliance(text)
    much_later = later(appliance.context(), days=365)
    assert appliance.write(purge_workitems, much_later) == 0
    workstation.listen()
    try_again(appliance, "WATCH1")
    assert workstation.next_states(len(told)) == told
    assert restart_values(workstation.next()) == WARM
    assert appliance.write(purge_workitems, much_later) == 0
    assert Reader(appliance.port).states(*uids) == ["COMPLETED"] * 3
    with Requester(appliance.port) as requester:
        assert requester.unsubscribe(UPS_GLOBAL_SUBSCRIPTION) == 0x0000
        assert appliance.write(purge_workitems, much_later) == 3
        assert [requester.get(uid)[0] for uid in uids] == [0xC307] * 3


def long_ago(path):
    """All that has ended did so a year ago."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE workitem SET ended_at = '2025-07-05T12:00:00.000000Z' WHERE ended_at <> ''"
        )


def test_a_watcher_that_calls_is_tried_at_once(run_appliance, watcher):
    """It was away for an hour: its back-off ends when it associates, not half an hour later."""
    port = peers.free_port()
    appliance = run_appliance(with_receivers("WATCH1", WATCH1=port))
    delivery = appliance.appliance.delivery
    until = time.monotonic() + 20
    while ("events", "WATCH1") not in delivery.failing and time.monotonic() < until:
        time.sleep(0.05)
    far = appliance.context().stamp(seconds=1700)
    appliance.write(database.execute_sql, "UPDATE receiver SET try_at = ?", (far,))
    back = watcher(port=port)
    ae = AE("WATCH1")
    ae.add_requested_context(VERIFICATION)
    association = ae.associate("127.0.0.1", appliance.port, ae_title="MINRIS")
    assert association.send_c_echo().Status == 0x0000
    association.release()
    assert restart_values(back.next()) == COLD
