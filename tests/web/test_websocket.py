"""Events by WebSocket, sections 15 and 18: heard by websockets, by pynetdicom, by plain sockets."""

import base64
import contextlib
import json
import logging
import os
import re
import signal
import socket
import threading
import urllib.parse
from typing import NamedTuple

import httpx
import peers
import pytest
import test_dicomweb_workitems as http
from conftest import write_config
from test_delivery import PATIENCE_S, QUIET, Watcher, burst, going_down, once, registered
from test_dicomweb_workitems import FILTERED, GLOBAL, LOCK, OTHER, UID, texts
from test_events import ASSIGNED, CANCEL, PROGRESS, REPORT, RESTART, Requester, later, station
from test_mpps import serving, stored_form
from test_pages import employ
from test_tls import WEB_TLS, Authority, put, trusting
from test_ups import creation
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from minris.access.users import delete_token, make_token
from minris.config.ini import load_config
from minris.dataset.elements import text_elements
from minris.delivery.sockets import (
    SocketDelivery,
    give_up_unfetched,
    new_socket_events,
    open_channel,
    socket_events,
    socket_start,
)
from minris.outbox import EVENT_LANES, MOST_EVENTS
from minris.standard.dictionary import tag_of
from minris.standard.uids import UPS_GLOBAL_SUBSCRIPTION, UPS_PULL, UPS_PUSH, UPS_WATCH
from minris.store.models import Audit, User, database
from minris.store.rows import insert_rows
from minris.ups import subscriptions as ups_subscriptions
from minris.ups.events import ways_to_tell
from minris.ups.search import find_workitem
from minris.ups.subscriptions import enter_subscriptions
from minris.ups.workitems import create_workitem, request_cancel
from minris.web.sockets import EventSocket, event_members

VIEWER, NEIGHBOUR = "VIEW1", "VIEW2"
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
GOING_AWAY, PROTOCOL_ERROR, POLICY_VIOLATION = 1001, 1002, 1008
THIRD = "2.25.703"
GOOD = f"/dicom-web/subscribers/{VIEWER}"


# Sockets.


class Told(NamedTuple):
    """An event as a socket hears it."""

    kind: int
    uid: str
    state: str | None
    message_id: int
    members: dict


def event_of(text):
    """What a frame says."""
    assert isinstance(text, str)
    members = json.loads(text)
    value = {tag: (one.get("Value") or [None])[0] for tag, one in members.items()}
    return Told(
        value["00001002"], value["00001000"], value.get("00741000"), value["00000110"], members
    )


class Ears:
    """A WebSocket by websockets: it answers pings, and keeps what it hears until it is asked."""

    def __init__(self, stack, url, token="", **how):
        if token:
            how["additional_headers"] = {"Authorization": f"Bearer {token}"}
        self.socket = stack.enter_context(connect(url, proxy=None, ping_interval=None, **how))

    def next(self, timeout_s=PATIENCE_S):
        """The next event."""
        return event_of(self.socket.recv(timeout_s))

    def states(self, count):
        """[(UID, state)] of as many events."""
        return [(event.uid, event.state) for event in (self.next() for _ in range(count))]

    def code(self):
        """The code with which the appliance closes it; what it says before is passed over."""
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                self.socket.recv(PATIENCE_S)
        return closed.value.rcvd.code if closed.value.rcvd else None


class Bare:
    """A WebSocket on a plain socket, which answers no ping by itself.

    headers  instead of, or beside, those of a proper handshake; None leaves one out
    """

    def __init__(self, appliance, target, headers=(), method="GET", receive_buffer=0, body=b""):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE_S)
        self.port = appliance.appliance.web_port
        self.socket.connect(("127.0.0.1", self.port))
        self.file = self.socket.makefile("rb")
        self.ask(target, headers, method, body)

    def ask(self, target, headers=(), method="GET", body=b""):
        """Send a handshake."""
        proper = {
            "Host": f"127.0.0.1:{self.port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Version": "13",
        }
        lines = [f"{name}: {value}" for name, value in (proper | dict(headers)).items() if value]
        head = "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""])
        self.socket.sendall(head.encode("latin-1") + body)

    def answer(self):
        """Status and headers of the answer to the handshake; 0 where there is none."""
        with contextlib.suppress(ConnectionError):
            lines = list(iter(lambda: self.file.readline().decode("latin-1").strip(), ""))
            pairs = (one.partition(": ") for one in lines[1:])
            found = {name.lower(): value for name, _, value in pairs}
            return int(lines[0].split()[1]) if lines else 0, found
        return 0, {}

    def send(self, opcode, payload=b"", fin=True, mask=b"\1\2\3\4"):
        """Send a frame; mask b"" sends it as only a server may."""
        size = len(payload) if len(payload) < 126 else 126
        long = len(payload).to_bytes(2, "big") if size == 126 else b""
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)) if mask else payload
        head = bytes([fin << 7 | opcode, bool(mask) << 7 | size])
        self.socket.sendall(head + long + mask + masked)

    def frame(self):
        """(first byte, payload) of the next frame. EOFError where there is none."""
        head = self.file.read(2)
        if len(head) < 2:
            raise EOFError
        size = {126: 2, 127: 8}.get(head[1])
        length = int.from_bytes(self.file.read(size), "big") if size else head[1]
        return head[0], self.file.read(length)

    def until(self, opcode):
        """The payload of the next frame of a kind."""
        while True:
            first, payload = self.frame()
            if first & 0xF == opcode:
                return payload

    def next(self):
        """The next event."""
        return event_of(self.until(TEXT).decode())

    def next_heard(self):
        """The next event; pings before it are answered."""
        while True:
            first, payload = self.frame()
            if first & 0xF == PING:
                self.send(PONG, payload)
            elif first & 0xF == TEXT:
                return event_of(payload.decode())

    def round_trip(self):
        """Return when the appliance has looked at all that was sent."""
        for number in range(2):
            self.send(PING, b"trip %d" % number)
            while self.until(PONG) != b"trip %d" % number:
                pass

    def code(self):
        """The code with which the appliance closes it; None where it is cut off."""
        with contextlib.suppress(EOFError, ConnectionError):
            return int.from_bytes(self.until(CLOSE)[:2], "big")
        return None

    def close(self):
        """Close it without a word."""
        self.file.close()
        self.socket.close()


class House:
    """A running appliance, its web door as an administrator has it, and sockets of viewers."""

    def __init__(self, appliance, stack, token=""):
        self.appliance, self.stack = appliance, stack
        self.token = token or appliance.token()
        headers = {"Authorization": f"Bearer {self.token}"}
        base = f"{appliance.url}/dicom-web"
        client = httpx.Client(base_url=base, headers=headers, trust_env=False, verify=False)
        self.http = stack.enter_context(client)

    @property
    def deliveries(self):
        return self.appliance.appliance.socket_delivery

    def subscribe(self, title=VIEWER, target=GLOBAL, query=""):
        path = f"/workitems/{target}/subscribers/{urllib.parse.quote(title, safe='')}{query}"
        answer = self.http.post(path)
        assert answer.status_code == 201, answer.text
        return answer

    def unsubscribe(self, title=VIEWER, target=GLOBAL):
        answer = self.http.delete(f"/workitems/{target}/subscribers/{title}")
        assert answer.status_code == 200, answer.text

    def url(self, title=VIEWER):
        where = urllib.parse.quote(title, safe="")
        return f"ws{self.appliance.url.removeprefix('http')}/dicom-web/subscribers/{where}"

    def open(self, title=VIEWER, token=None, url="", **how):
        """A socket that websockets has opened."""
        token = self.token if token is None else token
        return Ears(self.stack, url or self.url(title), token, **how)

    def bare(self, title=VIEWER, **how):
        """A socket that answers nothing by itself."""
        token = {"Authorization": f"Bearer {self.token}"}
        target = f"/dicom-web/subscribers/{title}"
        bare = Bare(self.appliance, target, token, **how)
        self.stack.callback(bare.close)
        assert bare.answer()[0] == 101
        return bare

    def settled(self, count):
        """Wait until as many sockets have been told all there is."""
        sockets = self.deliveries
        once(self.appliance, lambda: len(sockets) == count, f"there are not {count} sockets")
        once(self.appliance, lambda: not sockets.lagging, "a socket is not told all")

    def create(self, *uids, **changes):
        for uid in uids:
            http.create(self.http, uid, **changes)
        return [(uid, "SCHEDULED") for uid in uids]

    def rows(self, title=VIEWER, column="sent_at <> ''"):
        """A column of what there is for an AE to hear by WebSocket, in order."""
        return self.appliance.read(
            lambda: [
                value
                for (value,) in database.execute_sql(
                    f"SELECT {column} FROM outbox WHERE lane = 'websocket'"
                    " AND receiver = ? ORDER BY id",
                    (title,),
                )
            ]
        )

    def once_heard(self, count, title=VIEWER):
        """Wait until it is written that an AE has heard so many events."""
        once(self.appliance, lambda: sum(self.rows(title)) == count, f"{title} has not heard all")

    @contextlib.contextmanager
    def busy_writer(self):
        """The store writes nothing meanwhile."""
        gate, begun = threading.Event(), threading.Event()

        def wait():
            begun.set()
            gate.wait(PATIENCE_S)

        done = self.appliance.appliance.writer.submit(wait)
        begun.wait(PATIENCE_S)
        try:
            yield
        finally:
            gate.set()
            done.result(PATIENCE_S)


@pytest.fixture
def open_house(run_appliance):
    """Gives a function that starts an appliance with some settings."""
    with contextlib.ExitStack() as stack:
        yield lambda text="", **how: House(run_appliance(QUIET + text, **how), stack)


@pytest.fixture
def house(open_house):
    """A running appliance that nobody listens to yet."""
    return open_house()


# Where the events are.


@pytest.mark.parametrize(
    ("title", "where"),
    [
        ("VIEW1", "VIEW1"),
        ("VIEW 1", "VIEW%201"),
        ("3D#1?", "3D%231%3F"),
        ("50%41+1", "50%2541%2B1"),
        ("A/B", "A%2FB"),
    ],
)
def test_a_subscription_says_where_its_events_are(house, title, where):
    """T-WEB-10: PS3.18 11.10.3.2; and they are there."""
    answer = house.subscribe(title)
    port = house.appliance.appliance.web_port
    url = f"ws://127.0.0.1:{port}/dicom-web/subscribers/{where}"
    assert (answer.headers["Content-Location"], answer.headers["Location"]) == (url, url)
    ears = house.open(url=url)
    told = house.create(UID)
    assert ears.states(1) == told


@pytest.mark.parametrize(
    ("public", "base"),
    [
        ("https://ris.lakeside.example", "wss://ris.lakeside.example"),
        ("https://ris.lakeside.example:8443/", "wss://ris.lakeside.example:8443"),
        ("http://ris.lakeside.example/minris", "ws://ris.lakeside.example/minris"),
        ("HTTPS://ris.lakeside.example", "wss://ris.lakeside.example"),
    ],
)
def test_behind_a_proxy_the_events_are_at_its_address(open_house, public, base):
    """T-WEB-10."""
    answer = open_house(f"[web]\npublic_url = {public}\n").subscribe("VIEW 1")
    assert answer.headers["Content-Location"] == f"{base}/dicom-web/subscribers/VIEW%201"


def test_a_space_at_the_end_of_an_ae_title_is_none(house):
    """PS3.5 6.2: it is not significant; the socket takes it so."""
    house.subscribe(f"{VIEWER} ")
    ears = house.open(VIEWER)
    told = house.create(UID)
    assert ears.states(1) == told


@pytest.mark.parametrize("first", ["subscribe", "connect"])
def test_subscribing_and_connecting_go_in_any_order(house, first):
    """PS3.18 8.10.4: a subscription may be without a connection, and the other way."""
    house.create(UID)
    if first == "subscribe":
        house.subscribe(target=UID)
        ears = house.open()
    else:
        ears = house.open()
        house.subscribe(target=UID)
    assert ears.states(1) == [(UID, "SCHEDULED")]


def test_a_filter_lets_through_what_matches(house):
    """T-WEB-10, T-UPS-67: 34.5.1 over HTTP, heard on the socket."""
    house.subscribe(target=FILTERED, query="?filter=WorklistLabel%3DCT%20post")
    ears = house.open()
    house.create(UID)
    told = house.create(OTHER, WorklistLabel="CT post")
    assert ears.states(1) == told


def test_the_path_of_dcm4chee_arc_is_one_too(house):
    house.subscribe()
    ears = house.open(url=house.url().replace("/dicom-web/", "/dicom-web/ws/"))
    told = house.create(UID)
    assert ears.states(1) == told


def test_a_socket_is_opened_after_other_requests_on_its_connection(house):
    """RFC 6455 4.1: as a proxy has it, that keeps its connections."""
    token = {"Authorization": f"Bearer {house.token}"}
    plain = {"Upgrade": None, "Connection": None}
    bare = Bare(house.appliance, "/dicom-web/openapi.json", token | plain)
    status, head = bare.answer()
    assert status == 200
    bare.file.read(int(head["content-length"]))
    bare.ask(GOOD, token)
    assert bare.answer()[0] == 101
    bare.close()


def test_over_tls_the_events_are_at_wss(open_house, tmp_path):
    """T-WEB-10: and the certificate is that of the pages."""
    authority = Authority(tmp_path / "clinic")
    put(authority.issue("minris"), tmp_path)
    house = open_house(WEB_TLS)
    url = house.subscribe().headers["Content-Location"]
    assert url == f"wss://127.0.0.1:{house.appliance.appliance.web_port}{GOOD}"
    ears = house.open(url=url, ssl=trusting(authority))
    told = house.create(UID)
    assert ears.states(1) == told


# Frames.

REASONS = {
    f"{tag_of('ReasonForCancellation'):08X}": "LT",
    f"{tag_of('ProcedureStepDiscontinuationReasonCodeSequence'):08X}": "SQ",
}
COMMAND = {"00000002": "UI", "00000110": "US", "00001000": "UI", "00001002": "US"}
STATE = {"00404041": "CS", "00741000": "CS"}
RESTARTED = {"00741242": "CS", "00741244": "CS", "00741246": "CS"}
MEMBERS = [
    (REPORT, STATE),
    (ASSIGNED, {"00404025": "SQ"}),
    (CANCEL, {"00741236": "AE"} | REASONS),
    (REPORT, STATE),
    (REPORT, STATE | REASONS),
    (REPORT, STATE),
    (REPORT, STATE),
    (PROGRESS, {"00741002": "SQ"}),
    (RESTART, RESTARTED),
]


def reasons():
    """Why a workitem is to be canceled."""
    code = texts(CodeValue="110513", CodingSchemeDesignator="DCM", CodeMeaning="For unknown reason")
    why = texts(ReasonForCancellation="Wrong side: 左侧")
    return why | {list(REASONS)[1]: {"vr": "SQ", "Value": [code]}}


def report_progress(house, uid, percent="40"):
    item = texts(ProcedureStepProgress=percent)
    body = [{"00741002": {"vr": "SQ", "Value": [item]}}]
    path = f"/workitems/{uid}?transaction-uid={LOCK}"
    assert house.http.post(path, json=body, headers=http.JSON).status_code == 200


def every_event(house):
    """Do what is told as MEMBERS; RESTART after the next start."""
    house.create(UID, ScheduledStationNameCodeSequence=[station()])
    answer = house.http.post(f"/workitems/{UID}/cancelrequest", json=[reasons()], headers=http.JSON)
    assert answer.status_code == 202, answer.text
    house.create(OTHER)
    http.enter(house.http, "IN PROGRESS", uid=OTHER)
    report_progress(house, OTHER)


def workitem_id(house, uid):
    return house.appliance.read(lambda: find_workitem(uid).id)


def test_each_event_is_one_text_frame_with_one_object(open_house):
    """T-WEB-11: PS3.18 8.10.5, Annex F.2; keys ascending, the Push UID, the VRs of PS3.6."""
    house = open_house()
    house.subscribe()
    bare, frames = house.bare(), []
    every_event(house)
    while len(frames) < len(MEMBERS) - 1:
        first, payload = bare.frame()
        if first & 0xF == PING:
            bare.send(PONG, payload)
        else:
            frames.append((first, payload))
    bare.send(PONG, bare.until(PING))
    house.once_heard(len(frames))
    house.appliance.stop()
    frames.append(open_house().bare().frame())
    assert {first for first, _ in frames} == {0x80 | TEXT}  # one frame each, whole
    heard = [json.loads(payload) for _, payload in frames]
    found = [{tag: one["vr"] for tag, one in members.items()} for members in heard]
    assert found == [COMMAND | vrs for _, vrs in MEMBERS]
    assert all(list(members) == sorted(members) for members in heard)
    assert {members["00000002"]["Value"][0] for members in heard} == {UPS_PUSH}
    assert [members["00001002"]["Value"][0] for members in heard] == [kind for kind, _ in MEMBERS]


def test_a_canceled_workitem_is_told_with_its_reasons(house):
    """PS3.4 Table CC.2.4-1, in UTF-8 (RFC 6455 5.6)."""
    house.subscribe()
    ears = house.open()
    house.create(UID)
    body = [reasons()]
    house.http.post(f"/workitems/{UID}/cancelrequest?requester=RIS", json=body, headers=http.JSON)
    events = [ears.next() for _ in range(4)]
    assert [(event.kind, event.state) for event in events] == [
        (REPORT, "SCHEDULED"),
        (CANCEL, None),
        (REPORT, "IN PROGRESS"),
        (REPORT, "CANCELED"),
    ]
    for event in (events[1], events[3]):
        assert {tag: event.members[tag] for tag in REASONS} == reasons()
    assert events[1].members["00741236"]["Value"] == ["RIS"]


def test_a_restart_is_told_with_its_three_values(open_house):
    house = open_house()
    house.subscribe()
    house.appliance.stop()
    told = open_house().open().next()
    assert (told.kind, told.uid) == (RESTART, UPS_GLOBAL_SUBSCRIPTION)
    values = [told.members[tag]["Value"][0] for tag in RESTARTED]
    assert values == ["RESTARTED", "WARM START", "WARM START"]


def test_a_message_id_is_of_one_event(house):
    house.subscribe()
    ears = house.open()
    told = burst(house.appliance, 60)
    numbers = {ears.next().message_id for _ in told}
    assert len(numbers) == len(told)
    assert all(1 <= number <= 65535 for number in numbers)


# In order, at least once.


def test_a_burst_is_heard_whole_and_in_order(house):
    house.subscribe()
    ears = house.open()
    told = burst(house.appliance, 700)
    assert ears.states(len(told)) == told
    house.once_heard(len(told))


def test_what_came_while_nobody_listened_is_told_first(house):
    """T-WEB-28."""
    house.subscribe()
    told = burst(house.appliance, 120)
    ears = house.open()
    told += house.create(UID)
    assert ears.states(len(told)) == told


def test_what_was_heard_is_not_told_to_the_next(house):
    house.subscribe()
    ears = house.open()
    house.create(UID)
    ears.next()
    house.once_heard(1)
    ears.socket.close()
    house.settled(0)
    again = house.open()
    told = house.create(OTHER)
    assert again.states(1) == told


def test_two_sockets_of_an_ae_hear_each_event(house):
    """T-WEB-28."""
    house.subscribe()
    one, two = house.open(), house.open()
    house.settled(2)
    told = house.create(UID, OTHER)
    heard = [[ears.next() for _ in told] for ears in (one, two)]
    assert heard[0] == heard[1]
    assert [(event.uid, event.state) for event in heard[0]] == told


def test_a_socket_opened_beside_another_hears_what_comes_later(house):
    """T-WEB-28."""
    house.subscribe()
    first = house.bare()
    house.create(UID)
    first.next()
    second = house.open()
    house.settled(2)
    told = house.create(OTHER)
    assert second.states(1) == told


def test_what_a_dead_socket_did_not_hear_is_told_to_the_other(house):
    house.subscribe()
    silent = house.bare()
    told = house.create(UID)
    silent.next()
    other = house.open()
    house.settled(2)
    silent.close()
    assert other.states(1) == told


def test_what_a_dead_socket_did_not_hear_is_told_to_the_next(house):
    """With the same Message ID, so that a repeat is known."""
    house.subscribe()
    silent = house.bare()
    house.create(UID, OTHER)
    first = [silent.next(), silent.next()]
    silent.close()
    house.settled(0)
    ears = house.open()
    assert [ears.next(), ears.next()] == first


def test_what_a_dying_socket_did_not_hear_is_told_to_the_one_that_is_just_opened(house):
    """The first dies before the second has begun: nobody else would tell it."""
    house.subscribe()
    silent = house.bare()
    told = house.create(UID)
    silent.next()
    with house.busy_writer():
        ears = house.open()
        once(house.appliance, lambda: len(house.deliveries) == 2, "it is not open")
        silent.close()
        once(house.appliance, lambda: len(house.deliveries) == 1, "it is not closed")
    house.settled(1)
    told += house.create(OTHER)
    assert ears.states(2) == told


def test_what_a_dying_socket_did_not_hear_is_told_to_one_that_reads_on(house, monkeypatch):
    """The first dies while the second reads what is newer."""
    read, reading, gate = socket_events, threading.Event(), threading.Event()
    house.subscribe()
    silent = house.bare()
    told = house.create(UID)
    silent.next()
    house.settled(1)

    def read_slowly(*arguments):
        reading.set()
        gate.wait(PATIENCE_S)
        return read(*arguments)

    monkeypatch.setattr("minris.delivery.sockets.socket_events", read_slowly)
    ears = house.open()
    reading.wait(PATIENCE_S)
    silent.close()
    once(house.appliance, lambda: len(house.deliveries) == 1, "it is not closed")
    told += house.create(OTHER)
    gate.set()
    assert {ears.next().uid for _ in told} == {uid for uid, _ in told}


UIDS = [f"2.25.8{number:02}" for number in range(20)]


def test_who_is_told_again_what_another_did_not_hear_hears_on(house, monkeypatch):
    """Late pongs of what was told before are not mistaken for others, nor the other way."""
    monkeypatch.setattr(EventSocket, "MOST_UNHEARD", 6)
    house.subscribe()
    first = house.bare()
    house.create(UIDS[0])
    assert first.next().uid == UIDS[0]
    house.settled(1)
    second = house.bare()
    house.settled(2)
    house.create(*UIDS[1:5])
    pings, texts = [], 0
    while texts < 4:
        kind, payload = second.frame()
        texts += kind & 0xF == TEXT
        pings += [payload] if kind & 0xF == PING else []
    pings.append(second.until(PING))
    first.close()
    assert second.next().uid == UIDS[0]
    for payload in pings:
        second.send(PONG, payload)
    house.create(UIDS[5])
    heard = iter(lambda: second.next_heard().uid, UIDS[5])
    assert set(heard) >= set(UIDS[1:5])
    second.send(PONG, second.until(PING))
    house.once_heard(6)


def test_what_a_socket_had_not_read_yet_is_told_to_the_one_that_stays(house, monkeypatch):
    monkeypatch.setattr("minris.delivery.sockets.MOST_EVENTS", 3)
    monkeypatch.setattr("minris.outbox.MOST_EVENTS", 3)
    monkeypatch.setattr(EventSocket, "MOST_UNHEARD", 6)
    house.subscribe()
    house.create(*UIDS[:10])
    first = house.bare()
    told = [first.next().uid for _ in range(6)]
    assert told == UIDS[:6]
    last = first.until(PING)
    second = house.bare()
    once(house.appliance, lambda: len(house.deliveries) == 2, "it is not open")
    first.send(PONG, last)
    first.close()
    heard = iter(lambda: second.next_heard().uid, UIDS[9])  # its pong may have been lost
    assert set(heard) >= set(UIDS[6:9])
    second.send(PONG, second.until(PING))
    house.once_heard(10)


def test_an_event_that_cannot_be_written_holds_up_no_other(house, monkeypatch):
    """Whatever is wrong with it: it is one event of one AE."""
    members = event_members

    def write(uid, *arguments):
        if uid == UID:
            raise ValueError("a data set like no other")
        return members(uid, *arguments)

    monkeypatch.setattr("minris.web.sockets.event_members", write)
    house.subscribe(VIEWER, GLOBAL)
    house.subscribe(NEIGHBOUR, FILTERED, "?filter=WorklistLabel%3DOTHER")
    house.open(VIEWER)
    neighbour = house.open(NEIGHBOUR)
    house.settled(2)

    def create_both():
        for uid, label in ((UID, "3D"), (OTHER, "OTHER")):
            create_workitem(
                house.appliance.context(), uid, stored_form(creation(WorklistLabel=label))
            )

    house.appliance.write(create_both)
    house.appliance.appliance.wake_delivery()
    assert neighbour.states(1) == [(OTHER, "SCHEDULED")]


# Heard.


def test_an_event_is_heard_when_a_pong_follows(house):
    house.subscribe()
    bare = house.bare()
    house.create(UID)
    bare.next()
    question = bare.until(PING)
    bare.round_trip()
    house.appliance.write(lambda: None)
    assert house.rows() == [0]
    bare.send(PONG, question)
    house.once_heard(1)


@pytest.mark.parametrize("payload", [b"", b"999999", b"-1", b"1e9", b"\xff\xfe", b"9" * 125])
def test_a_pong_of_no_ping_is_no_proof(house, payload):
    house.subscribe()
    bare = house.bare()
    house.create(UID)
    bare.next()
    bare.send(PONG, payload)
    bare.round_trip()
    house.appliance.write(lambda: None)
    assert house.rows() == [0]


def test_a_pong_is_of_what_was_told_before_its_ping(house):
    house.subscribe()
    bare = house.bare()
    house.create(UID)
    bare.next()
    first = bare.until(PING)
    house.create(OTHER)
    bare.next()
    second = bare.until(PING)
    bare.send(PONG, first)
    house.once_heard(1)
    assert house.rows() == [1, 0]
    bare.send(PONG, second)  # RFC 6455 5.5.3: one pong may be for several pings
    house.once_heard(2)


def test_one_socket_that_hears_is_enough(house):
    house.subscribe()
    house.bare()
    ears = house.open()
    house.settled(2)
    house.create(UID)
    ears.next()
    house.once_heard(1)


# Sockets that lag.


def test_who_does_not_read_holds_up_nobody_and_hears_all_later(house, monkeypatch):
    """What is not heard stays in the store, not in memory."""
    monkeypatch.setattr(EventSocket, "PONG_WITHIN", 300.0)
    monkeypatch.setattr(EventSocket, "MOST_UNHEARD", 100)
    house.subscribe(VIEWER)
    house.subscribe(NEIGHBOUR)
    asleep, awake = house.bare(VIEWER, receive_buffer=4096), house.open(NEIGHBOUR)
    house.settled(2)
    told = burst(house.appliance, 600)
    assert awake.states(len(told)) == told
    [client] = house.deliveries.sockets[VIEWER]
    assert len(client.unheard) <= 100 + MOST_EVENTS
    assert sum(house.rows(VIEWER)) == 0
    told += house.create(UID)
    heard = [asleep.next_heard() for _ in told]
    assert [(event.uid, event.state) for event in heard] == told


def long_requests(house, count):
    """Ask as often for the end of a workitem in progress, at some length: what is told."""
    told = [f"{number} {'Wrong side. ' * 800}" for number in range(count)]

    def ask():
        for text in told:
            data = bytes(text_elements(ReasonForCancellation=text))
            request_cancel(house.appliance.context(), UID, data)

    house.appliance.write(ask)
    house.appliance.appliance.wake_delivery()
    return told


def test_what_is_not_read_does_not_fill_our_memory(house, monkeypatch):
    """A client of websockets that has more to do: it reads on when it likes, and has all."""
    monkeypatch.setattr(EventSocket, "PONG_WITHIN", 300.0)
    house.create(UID)
    http.enter(house.http, "IN PROGRESS")
    house.subscribe(VIEWER)
    house.appliance.write(enter_subscriptions, [(workitem_id(house, UID), VIEWER, 0, "")])
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", house.appliance.appliance.web_port))
    ears = house.open(VIEWER, sock=slow, max_queue=1)
    house.settled(1)
    told = long_requests(house, 900)
    [client] = house.deliveries.sockets[VIEWER]
    once(house.appliance, lambda: not client.ready, "all has gone out")
    assert client.transport.get_write_buffer_size() < 2 << 20
    heard = [ears.next().members["00741238"]["Value"][0] for _ in told]
    assert heard == [text.rstrip() for text in told]


def test_pings_that_are_not_waited_for_do_not_fill_our_memory(house):
    """RFC 6455 5.5.3: only the last of several pings need be answered."""
    bare = house.bare(receive_buffer=4096)
    house.settled(1)
    [client] = house.deliveries.sockets[VIEWER]
    ping = bytes([0x80 | PING, 0x80 | 125]) + bytes(4) + bytes(125)
    bare.socket.settimeout(3)
    with contextlib.suppress(TimeoutError, ConnectionError):  # we read no more of it: as good
        for _ in range(400):
            bare.socket.sendall(ping * 500)
    assert client.transport.get_write_buffer_size() < 4 << 20


# Alive and allowed.


def hasty(monkeypatch, pong_within=2.0):
    """Ping ten times a second."""
    monkeypatch.setattr(SocketDelivery, "KEEP_ALIVE", 0.1)
    monkeypatch.setattr(EventSocket, "PONG_WITHIN", pong_within)


def test_a_silent_socket_is_closed_and_a_living_one_is_not(monkeypatch, open_house):
    hasty(monkeypatch)
    house = open_house()
    house.subscribe()
    silent, ears = house.bare(), house.open()
    house.settled(2)
    assert silent.code() is None
    house.settled(1)
    told = house.create(UID)
    assert ears.states(1) == told


def test_what_a_silent_socket_was_told_is_told_to_another(monkeypatch, open_house):
    hasty(monkeypatch)
    house = open_house()
    house.subscribe()
    silent = house.bare()
    told = house.create(UID)
    silent.next()
    ears = house.open()
    assert ears.states(1) == told


def viewer_token(house, *titles, name="viewer"):
    """A token that speaks for some AEs."""
    appliance = house.appliance
    return appliance.write(make_token, appliance.context(), name, "desk", titles)


def test_who_has_no_token_any_more_hears_no_more(monkeypatch, open_house):
    hasty(monkeypatch)
    house = open_house()
    ears = house.open(token=viewer_token(house, VIEWER))
    house.settled(1)
    house.appliance.write(delete_token, house.appliance.context(), "viewer")
    assert ears.code() == POLICY_VIOLATION
    house.settled(0)


def test_whose_role_changes_hears_no_more(monkeypatch, open_house):
    """A session of an administrator who is one no more."""
    hasty(monkeypatch)
    house = open_house()
    ears = house.open(token="", additional_headers={"Cookie": cookie_of(house)})
    house.settled(1)

    def change():
        User.update(role="desk").where(User.name == "anna").execute()

    house.appliance.write(change)
    assert ears.code() == POLICY_VIOLATION


def cookie_of(house, role="admin"):
    """The cookie of a login."""
    with httpx.Client() as client:
        employ(house.appliance, client, role)
        name = house.appliance.cookie
        return f"{name}={client.cookies[name]}"


def test_who_has_no_token_and_does_not_read_is_cut_off(monkeypatch, open_house):
    """Its place is for others, and the backlog for its next socket."""
    hasty(monkeypatch, pong_within=300.0)
    house = open_house()
    house.create(UID)
    http.enter(house.http, "IN PROGRESS")
    house.subscribe(target=UID)
    token = {"Authorization": f"Bearer {viewer_token(house, VIEWER)}"}
    asleep = Bare(house.appliance, f"/dicom-web/subscribers/{VIEWER}", token, receive_buffer=4096)
    house.stack.callback(asleep.close)
    assert asleep.answer()[0] == 101
    house.settled(1)
    [client] = house.deliveries.sockets[VIEWER]
    long_requests(house, 900)
    once(house.appliance, lambda: not client.writable, "all has gone out")
    house.appliance.write(delete_token, house.appliance.context(), "viewer")
    once(house.appliance, lambda: not client.is_open, "it is not closed")
    monkeypatch.setattr(EventSocket, "PONG_WITHIN", 1.0)
    once(house.appliance, lambda: not house.deliveries.sockets, "it is still there")


def test_a_socket_that_closes_is_answered_and_forgotten(house):
    bare = house.bare()
    house.settled(1)
    assert house.appliance.appliance.metrics()["minris_websockets"] == 1
    bare.send(CLOSE, (1000).to_bytes(2, "big") + b"done")
    assert bare.code() == 1000
    house.settled(0)
    assert house.appliance.appliance.metrics()["minris_websockets"] == 0


# Subscriptions and channels.


def test_who_unsubscribes_hears_no_more(house):
    """T-WEB-10: of that workitem, neither on the socket nor of what has waited."""
    house.create(UID, OTHER)
    ears = house.open()
    for uid in (UID, OTHER):
        house.subscribe(target=uid)
        ears.next()
    house.unsubscribe(target=UID)
    for uid in (UID, OTHER):
        http.enter(house.http, "IN PROGRESS", uid=uid)
    assert ears.states(1) == [(OTHER, "IN PROGRESS")]


def test_what_waits_for_who_unsubscribes_is_dropped(house):
    house.subscribe()
    house.create(UID, OTHER)
    house.unsubscribe()
    assert house.rows(column="given_up_at <> ''") == [1, 1]
    house.subscribe()
    ears = house.open()
    told = house.create(THIRD)
    assert ears.states(1) == told


def device(port, events="as_subscribed"):
    return (
        f"[device Viewing room]\nae_title = {VIEWER}\nhost = 127.0.0.1\nport = {port}\n"
        f"events = {events}\n"
    )


CHANNELS = [
    ("as_subscribed", ["dimse"], {"dimse"}),
    ("as_subscribed", ["http"], {"websocket"}),
    ("as_subscribed", ["dimse", "socket"], {"dimse", "websocket"}),
    ("as_subscribed", ["http", "dimse"], {"dimse", "websocket"}),
    ("dimse", ["http"], {"dimse"}),
    ("websocket", ["dimse"], {"websocket"}),
    ("both", ["dimse"], {"dimse", "websocket"}),
    ("both", ["http"], {"dimse", "websocket"}),
]


@pytest.mark.parametrize(("setting", "ways", "channels"), CHANNELS)
def test_an_ae_is_told_as_it_has_subscribed_or_as_its_settings_say(
    open_house, setting, ways, channels
):
    """The setting `events` of a device; N-ACTION by pynetdicom."""
    house = open_house(device(peers.free_port(), setting))
    for way in ways:
        if way == "dimse":
            with Requester(house.appliance.port, VIEWER) as requester:
                assert requester.subscribe(UPS_GLOBAL_SUBSCRIPTION, VIEWER) == 0x0000
        elif way == "http":
            house.subscribe()
        else:
            house.open()
            house.settled(1)
    house.create(UID)
    ways_told = "SELECT lane FROM outbox WHERE receiver = ?"
    assert {EVENT_LANES[channel] for channel in channels} == house.appliance.read(
        lambda: {one for (one,) in database.execute_sql(ways_told, (VIEWER,))}
    )


def test_an_ae_that_is_told_by_dimse_alone_opens_no_socket(open_house):
    house = open_house(device(peers.free_port(), "dimse"))
    with pytest.raises(InvalidStatus) as refusal:
        house.open()
    assert refusal.value.response.status_code == 403
    assert b"events by DIMSE only" in refusal.value.response.body


def test_an_ae_by_dimse_that_opens_a_socket_is_told_by_both(run_appliance):
    """dcmjs-dimse subscribes, and hears; so does its socket."""
    with peers.listening_dimse(VIEWER) as modality, contextlib.ExitStack() as stack:
        house = House(run_appliance(QUIET + device(modality.port)), stack)
        [answer] = peers.run_dimse(
            house.appliance.port,
            [
                {
                    "op": "n-action",
                    "type": 3,
                    "sopClass": UPS_PUSH,
                    "meta": UPS_WATCH,
                    "instance": UPS_GLOBAL_SUBSCRIPTION,
                    "dataset": {"ReceivingAE": VIEWER, "DeletionLock": "FALSE"},
                }
            ],
            calling=VIEWER,
        )
        assert answer["status"] == 0x0000, answer
        ears = house.open()
        house.settled(1)
        told = house.create(UID, OTHER)
        events = [modality.next_event() for _ in told]
        assert [(e["sopInstance"], e["dataset"]["ProcedureStepState"]) for e in events] == told
        assert ears.states(len(told)) == told


def test_claimed_over_dimse_reported_on_over_http_heard_by_both(run_appliance):
    """T-WEB-12: two doors, two watchers, one order."""
    watcher = Watcher()
    with contextlib.ExitStack() as stack:
        stack.callback(watcher.stop)
        house = House(run_appliance(registered(WATCH1=watcher.port)), stack)
        requester = stack.enter_context(Requester(house.appliance.port, "WATCH1"))
        house.subscribe(VIEWER)
        ears = house.open(VIEWER)
        assert requester.subscribe(UPS_GLOBAL_SUBSCRIPTION) == 0x0000
        assert requester.create(UID) == 0x0000
        assert requester.act(
            1, UID, UPS_PULL, ProcedureStepState="IN PROGRESS", TransactionUID=LOCK
        ) == (0x0000)
        report_progress(house, UID)
        told = [(REPORT, "SCHEDULED"), (REPORT, "IN PROGRESS"), (PROGRESS, None)]
        on_socket = [ears.next() for _ in told]
        by_dimse = [watcher.next() for _ in told]
        assert [(event.kind, event.state) for event in on_socket] == told
        assert [(event.kind, event.state) for event in by_dimse] == told
        [progress] = on_socket[-1].members["00741002"]["Value"]
        assert progress["00741004"]["Value"] == [40]
        [progress] = by_dimse[-1].data.ProcedureStepProgressInformationSequence
        assert progress.ProcedureStepProgress == 40


# Handshakes.

REFUSED = {
    "no token": (401, GOOD, {"Authorization": None}),
    "a token that never was": (401, GOOD, {"Authorization": "Bearer 0123456789"}),
    "a token of another AE": (403, f"/dicom-web/subscribers/{NEIGHBOUR}", {}),
    "no AE": (404, "/dicom-web/subscribers/", {}),
    "more than an AE": (404, f"{GOOD}/suspend", {}),
    "a page": (404, "/worklist", {}),
    "a transaction": (404, "/dicom-web/workitems", {}),
    "a long AE title": (400, f"/dicom-web/subscribers/{'V' * 17}", {}),
    "an AE title of spaces": (400, "/dicom-web/subscribers/%20%20", {}),
    "a backslash": (400, "/dicom-web/subscribers/V%5CW", {}),
    "a line end": (400, "/dicom-web/subscribers/V%0AW", {}),
    "a name": (400, "/dicom-web/subscribers/%E7%8E%8B", {}),
    "no UTF-8": (400, "/dicom-web/subscribers/%FF", {}),
    "no key": (400, GOOD, {"Sec-WebSocket-Key": None}),
    "no version": (400, GOOD, {"Sec-WebSocket-Version": None}),
    "version 12": (426, GOOD, {"Sec-WebSocket-Version": "12"}),
    "no upgrade": (426, GOOD, {"Upgrade": None}),
    "no connection upgrade": (426, GOOD, {"Connection": "keep-alive"}),
}


@pytest.mark.parametrize(("code", "target", "headers"), REFUSED.values(), ids=REFUSED)
def test_a_handshake_that_is_not_in_order_is_refused(house, code, target, headers):
    """T-WEB-27: RFC 6455 4.2.2, 4.4; the log and the answer do not have the token."""
    token = viewer_token(house, VIEWER)
    bare = Bare(house.appliance, target, {"Authorization": f"Bearer {token}"} | headers)
    status, found = bare.answer()
    body = bare.file.read() if found.get("connection") == "close" else b""
    bare.close()
    assert status == code
    assert token.encode() not in body
    if code == 401:
        assert found["www-authenticate"].startswith("Bearer")
    if headers.get("Sec-WebSocket-Version") == "12":
        assert found["sec-websocket-version"] == "13"
    if code == 426 and "Sec-WebSocket-Version" not in headers:
        assert found["upgrade"] == "websocket"


def test_a_socket_that_is_posted_is_refused(house):
    bare = Bare(house.appliance, GOOD, {"Authorization": f"Bearer {house.token}"}, method="POST")
    assert bare.answer()[0] in (400, 405)
    bare.close()


def test_a_login_without_ae_titles_may_open_none(house):
    token = house.appliance.token("desk")
    with pytest.raises(InvalidStatus) as refused:
        house.open(token=token)
    assert refused.value.response.status_code == 403


def test_no_content_type_is_needed_and_one_does_no_harm(house):
    """T-WEB-27: PS3.18 Table 8.10.4-1 lists it."""
    for headers in ({}, {"Content-Type": "application/dicom+json"}):
        bare = Bare(house.appliance, GOOD, {"Authorization": f"Bearer {house.token}"} | headers)
        assert bare.answer()[0] == 101
        bare.close()


def test_there_are_so_many_sockets_and_no_more(open_house):
    house = open_house("[web]\nmaximum_websockets = 1\n")
    first = house.open()
    house.settled(1)
    with pytest.raises(InvalidStatus) as refused:
        house.open(NEIGHBOUR)
    assert refused.value.response.status_code == 503
    first.socket.close()
    house.settled(0)
    assert house.open(NEIGHBOUR)


def test_who_asks_too_often_is_told_to_wait(open_house):
    house = open_house("[web]\nrequests_per_second = 1\n")
    codes = []
    while 429 not in codes and len(codes) < 50:
        bare = Bare(house.appliance, GOOD)
        codes.append(bare.answer()[0])
        bare.close()
    assert (codes[0], codes[-1]) == (401, 429)


def test_a_token_is_not_in_the_log(house, caplog):
    caplog.set_level(logging.DEBUG)
    token = viewer_token(house, VIEWER)
    house.open(token=token)
    house.open(token="", subprotocols=[f"bearer.{token}"])
    for how in ({"token": token}, {"token": "", "subprotocols": [f"bearer.{token}"]}):
        with pytest.raises(InvalidStatus):
            house.open(NEIGHBOUR, **how)
    ours = [record.getMessage() for record in caplog.records if "websockets" not in record.name]
    assert not [line for line in ours if token in line]


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        (["dicom"], "dicom"),
        (["dicom", "minris"], "dicom"),
        (["bearer.{token}"], None),
        (["bearer.{token}", "dicom"], "dicom"),
        (["dicom", "bearer.{token}"], "dicom"),
    ],
)
def test_a_subprotocol_is_chosen_of_those_offered(house, offered, chosen):
    """T-WEB-27: RFC 6455 4.2.2; a token among them lets in and is not sent back."""
    token = viewer_token(house, VIEWER)
    names = [name.format(token=token) for name in offered]
    speaks = any(name.startswith("bearer.") for name in offered)
    ears = house.open(token="" if speaks else token, subprotocols=names or None)
    assert ears.socket.subprotocol == chosen
    assert ears.socket.response.headers.get("Sec-WebSocket-Protocol") == chosen


@pytest.mark.parametrize(
    ("origin", "code"),
    [
        ("http://127.0.0.1:{port}", 101),
        ("https://ris.lakeside.example", 101),
        (None, 101),
        ("https://evil.example", 403),
        ("http://127.0.0.1:1", 403),
        ("null", 403),
    ],
)
def test_a_cookie_opens_no_socket_for_another_site(open_house, origin, code):
    """RFC 6455 10.2: a browser sends it whoever asks."""
    house = open_house("[web]\npublic_url = https://ris.lakeside.example\n")
    origin = origin and origin.format(port=house.appliance.appliance.web_port)
    bare = Bare(house.appliance, GOOD, {"Cookie": cookie_of(house), "Origin": origin})
    assert bare.answer()[0] == code
    bare.close()


@pytest.mark.parametrize(("origin", "code"), [(None, 101), ("https://evil.example", 403)])
def test_where_loopback_needs_no_token_another_site_opens_none(open_house, origin, code):
    """[web] anonymous_loopback."""
    house = open_house("[web]\nanonymous_loopback = yes\n")
    bare = Bare(house.appliance, GOOD, {"Origin": origin})
    assert bare.answer()[0] == code
    bare.close()


def test_a_site_whose_name_is_not_latin_opens_its_own_sockets(house):
    """RFC 5891: Host and Origin have it as ASCII."""
    site = "xn--gesundheitszentrum-mnchen-5lc.example"
    headers = {"Cookie": cookie_of(house), "Host": site, "Origin": f"http://{site}"}
    bare = Bare(house.appliance, GOOD, headers)
    assert bare.answer()[0] == 101
    bare.close()


def test_a_token_opens_a_socket_from_any_site(house):
    """A page of another site that has been given one."""
    assert house.open(origin="https://viewer.example")


# Stop, start, kill.


def test_a_stop_closes_sockets_in_order(house):
    ears = house.open()
    house.settled(1)
    house.appliance.stop()
    assert ears.code() == GOING_AWAY


def test_going_down_is_told_before_the_socket_is_closed(run_appliance):
    """T-UPS-79."""
    with contextlib.ExitStack() as stack:
        house = House(run_appliance(going_down(QUIET)), stack)
        house.subscribe()
        ears = house.open()
        house.settled(1)
        house.appliance.stop()
        told = ears.next()
        assert told.members["00741242"]["Value"] == ["GOING DOWN"]
        assert ears.code() == GOING_AWAY


def test_what_was_not_heard_is_told_after_a_restart(open_house):
    """T-UPS-74: then the restart itself."""
    first = open_house()
    first.subscribe()
    silent = first.bare()
    told = first.create(UID)
    heard = silent.next()
    silent.close()
    told += first.create(OTHER)
    first.appliance.stop()
    ears = open_house().open()
    events = [ears.next() for _ in range(3)]
    assert [(event.uid, event.state) for event in events[:2]] == told
    assert events[0].message_id == heard.message_id
    assert events[2].kind == RESTART


class Served:
    """An appliance that is a process of its own, as House sees one."""

    def __init__(self, config):
        settings = load_config(config)
        path = settings.store_path.with_name(settings.store_path.name + ".control")
        control = json.loads(path.read_text())
        self.url, self.secret = control["url"], control["secret"]
        self.appliance = self
        self.web_port = int(self.url.rpartition(":")[2])


def test_a_kill_between_a_change_and_its_event_loses_nothing(tmp_path):
    """SIGKILL while the socket has not answered the ping: told again, with the same Message ID."""
    config = write_config(tmp_path, QUIET)
    with contextlib.ExitStack() as stack:
        with serving(config) as (process, _):
            served = Served(config)
            house = House(served, stack, served.secret)
            house.subscribe()
            silent = house.bare()
            told = house.create(UID)
            first = silent.next()
            silent.close()
            told += house.create(OTHER)
            process.kill()
            assert process.wait(10) == -signal.SIGKILL
        with serving(config):
            served = Served(config)
            ears = House(served, stack, served.secret).open()
            events = [ears.next() for _ in range(3)]
    assert [(event.uid, event.state) for event in events[:2]] == told
    assert events[0].message_id == first.message_id
    assert events[2].kind == RESTART


# Given up.


def fetched(ctx, title=VIEWER):
    """What is told an AE that opens a socket."""
    start, _ = socket_start(title, True)
    return [event.uid for event in socket_events(title, start)]


@pytest.fixture
def unfetched(ctx):
    """Two events that nobody has opened a socket for."""
    ups_subscriptions.subscribe(ctx, GLOBAL, VIEWER, False, channel="websocket")
    for uid in (UID, OTHER):
        create_workitem(ctx, uid, stored_form(creation()))
    return [UID, OTHER]


@pytest.mark.parametrize(("hours", "given_up"), [(71, 0), (73, 2)])
def test_what_nobody_fetches_is_given_up_after_three_days(ctx, unfetched, hours, given_up):
    """[housekeeping] give_up_events_hours."""
    assert give_up_unfetched(later(ctx, hours=hours)) == given_up
    assert fetched(ctx) == ([] if given_up else unfetched)


def test_what_is_young_is_not_given_up_with_the_old(ctx, unfetched):
    create_workitem(later(ctx, hours=2), THIRD, stored_form(creation()))
    assert give_up_unfetched(later(ctx, hours=73)) == 2
    assert fetched(ctx) == [THIRD]


def test_what_is_given_up_is_in_the_audit_log(ctx, unfetched):
    give_up_unfetched(later(ctx, hours=73))
    found = Audit.get(Audit.what == "events given up")
    assert (found.about, found.detail) == (VIEWER, "2: no WebSocket was opened")


def test_who_is_told_by_dimse_too_is_told_by_that_alone_from_then_on(ctx, unfetched):
    insert_rows("event_channel (ae_title, channel)", [(VIEWER, "dimse")])
    give_up_unfetched(later(ctx, hours=73))
    assert ways_to_tell(ctx, [VIEWER]) == [(VIEWER, "dimse")]
    open_channel(ctx, VIEWER)
    assert set(ways_to_tell(ctx, [VIEWER])) == {(VIEWER, "dimse"), (VIEWER, "websocket")}


def test_who_is_told_by_websocket_alone_is_told_what_comes_later(ctx, unfetched):
    give_up_unfetched(later(ctx, hours=73))
    create_workitem(later(ctx, hours=74), THIRD, stored_form(creation()))
    assert fetched(ctx) == [THIRD]


def test_a_new_socket_does_not_read_what_has_long_been_told(house, monkeypatch):
    """Two that open at once, as after a restart: the outbox may have a month's rows."""
    house.subscribe(NEIGHBOUR)
    told = house.create(UID, OTHER)
    looked, look = [], new_socket_events

    def looking(after):
        looked.append(after)
        return look(after)

    monkeypatch.setattr("minris.delivery.sockets.new_socket_events", looking)
    with house.busy_writer():
        one, two = house.open(VIEWER), house.open("VIEW3")
        once(house.appliance, lambda: len(house.deliveries) == 2, "they are not open")
    house.settled(2)
    house.subscribe(VIEWER)
    house.subscribe("VIEW3")
    house.create(THIRD)
    assert one.next().uid == THIRD
    assert two.next().uid == THIRD
    assert min(looked) >= len(told)


# Hostile.

FRAMES = {
    "unmasked": bytes([0x81, 5]) + b"hello",
    "a ping in pieces": bytes([PING, 0x80]) + bytes(4),
    "a long ping": bytes([0x89, 0xFE, 0, 126]) + bytes(130),
    "reserved bits": bytes([0xF1, 0x80]) + bytes(4),
    "an opcode that is none": bytes([0x83, 0x80]) + bytes(4),
    "a continuation of nothing": bytes([0x80, 0x80]) + bytes(4),
    "a text within a text": bytes([0x01, 0x80]) + bytes(4) + bytes([0x81, 0x80]) + bytes(4),
    "no UTF-8": bytes([0x81, 0x82]) + bytes(4) + b"\xff\xfe",
    "a length of 2 to the 63": bytes([0x82, 0xFF, 0x80]) + bytes(7) + bytes(4),
    "a length that is too long": bytes([0x81, 0xFE, 0, 5]) + bytes(4) + b"hello",
    "a close of one byte": bytes([0x88, 0x81]) + bytes(5),
    "a close with a code that is none": bytes([0x88, 0x82]) + bytes(4) + b"\0\1",
    "a request": b"GET / HTTP/1.1\r\nHost: minris\r\n\r\n",
    "garbage": bytes(range(255, 0, -1)) * 40,
}


def errors(caplog):
    """What the log says went wrong with us."""
    return [r.getMessage() for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR]


@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES)
def test_a_frame_that_is_none_ends_its_socket_alone(house, caplog, frames):
    """RFC 6455 5, 7.1.7."""
    house.subscribe()
    house.subscribe(NEIGHBOUR)
    ears, bare = house.open(NEIGHBOUR), house.bare()
    house.settled(2)
    bare.socket.sendall(frames)
    assert bare.code() in (None, PROTOCOL_ERROR, 1007, 1009)
    house.settled(1)
    told = house.create(UID)
    assert ears.states(1) == told
    assert not errors(caplog)


def test_a_frame_that_says_it_is_huge_costs_nothing(house):
    """2 to the 62 bytes are promised, and some are sent."""
    ears, bare = house.open(NEIGHBOUR), house.bare()
    house.subscribe(NEIGHBOUR)
    house.settled(2)
    bare.socket.sendall(bytes([0x82, 0xFF, 0x40]) + bytes(7) + bytes(4) + bytes(1 << 20))
    told = house.create(UID)
    assert ears.states(1) == told


def test_what_a_client_says_is_passed_over(house):
    """Ten thousand texts, in one frame and in pieces, and a bit of binary."""
    house.subscribe()
    bare = house.bare()
    house.settled(1)
    text = bytes([0x81, 0x82]) + bytes(4) + b"{}"
    bare.socket.sendall(text * 10_000)
    bare.send(TEXT, b"{", fin=False)
    bare.send(PING, b"still there?")
    bare.send(0, b"}")
    bare.send(BINARY, bytes(200))
    assert bare.until(PONG) == b"still there?"
    house.create(UID)
    assert bare.next().uid == UID


HANDSHAKES = {
    "a host that is none": {"Host": "ris..lakeside\xff"},
    "a host without end": {"Host": "xn--" + "a" * 300},
    "a subprotocol that is none": {"Sec-WebSocket-Protocol": "dicom\xff"},
    "a subprotocol with spaces": {"Sec-WebSocket-Protocol": "di com"},
    "an extension that is none": {"Sec-WebSocket-Extensions": "\xff; \xfe=1"},
    "a connection that is none": {"Connection": "Upgrade, \xff"},
    "a token that is none": {"Authorization": "Bearer \xff\xfe"},
    "a body": {"Content-Length": "5"},
    "a body in chunks": {"Transfer-Encoding": "chunked"},
    "a wait for 100": {"Content-Length": "5", "Expect": "100-continue"},
    "a key that is none": {"Sec-WebSocket-Key": "\xff"},
    "a cookie that is none": {"Authorization": None, "Cookie": "minris=\xff\xfe"},
    "an origin that is none": {"Origin": "http://[::1"},
}


@pytest.mark.parametrize("headers", HANDSHAKES.values(), ids=HANDSHAKES)
def test_a_strange_handshake_is_answered_and_ends_nothing_else(house, caplog, headers):
    """With one line at most in the log, and no traceback."""
    token = {"Authorization": f"Bearer {house.token}"}
    bare = Bare(house.appliance, GOOD, token | headers)
    bare.socket.settimeout(5)
    try:
        status, _ = bare.answer()
    except TimeoutError:
        status = "no answer"
    finally:
        bare.close()
    assert status in (101, 400, 401, 403, 501)
    assert house.open()
    assert not errors(caplog)


def test_bytes_sent_along_with_the_handshake_do_no_harm(house, caplog):
    """RFC 6455 4.1: a client waits for 101; one that does not is closed, or is taken."""
    token = {"Authorization": f"Bearer {house.token}"}
    text = bytes([0x81, 0x82]) + bytes(4) + b"{}"
    bare = Bare(house.appliance, GOOD, token, body=text)
    assert bare.answer()[0] in (101, 400)
    bare.close()
    assert house.open()
    assert not errors(caplog)


def test_who_leaves_in_the_midst_of_the_handshake_leaves_nothing_behind(house, caplog):
    token = {"Authorization": f"Bearer {house.token}"}
    for _ in range(20):
        Bare(house.appliance, GOOD, token).close()
    ears = house.open(NEIGHBOUR)
    house.settled(1)
    house.subscribe(NEIGHBOUR)
    told = house.create(UID)
    assert ears.states(1) == told
    assert not errors(caplog)


def test_an_opened_socket_is_in_the_audit_log(house):
    house.open(token=viewer_token(house, VIEWER))
    house.settled(1)
    find = Audit.get
    found = house.appliance.read(lambda: find(Audit.what == "told by WebSocket"))
    assert found.about == VIEWER
    assert re.search(r"viewer|127\.0\.0\.1", found.who)
