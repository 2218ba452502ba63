"""Section 16: the upper layer, as PS3.8 section 9 and PS3.7 annex D have it, and its limits.

`Peer` is a client that sends any bytes one likes; `Inside` looks into a running server. Most tests
run an AssociationServer of their own with a service that the test knows; those that need a store
run the whole appliance.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import copy
import gc
import io
import itertools
import logging
import random
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import conftest
import peers
import pydicom
import pynetdicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.fsm import TRANSITION_TABLE
from pynetdicom.sop_class import ModalityWorklistInformationFind, Verification

from minris.access.devices import AccessRules, host_addresses
from minris.config.ini import load_config
from minris.dimse.services import EXTENDED_NEGOTIATION, PRESENTATION_CONTEXTS
from minris.store.models import PerformedProcedureStep
from minris.upper_layer.association import Association
from minris.upper_layer.caller import associate_answer
from minris.upper_layer.negotiation import Negotiator, Rejection
from minris.upper_layer.pdus import decode_command, encode_command
from minris.upper_layer.server import AssociationServer
from minris.upper_layer.states import ASSOCIATION_STATES

HOST = "127.0.0.1"
ELSEWHERE = "127.0.0.2"

VERIFICATION = "1.2.840.10008.1.1"
WORKLIST = "1.2.840.10008.5.1.4.31"
MPPS = "1.2.840.10008.3.1.2.3.3"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG = "1.2.840.10008.1.2.4.50"

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
C_FIND, C_ECHO, N_CREATE, N_SET, C_CANCEL = 0x0020, 0x0030, 0x0140, 0x0120, 0x0FFF
SOON_S = 4  # PS3.8 leaves it open; so long a bad peer waits for its end at most
BESIDE_S = 1  # and so long a good one beside it for its echo


# What a peer sends, in bytes --------------------------------------------------------------------


def pdu(kind, body=b"\0\0\0\0"):
    """A PDU; four bytes make the short ones (PS3.8 9.3.4, 9.3.6 to 9.3.8)."""
    return struct.pack(">BxI", kind, len(body)) + body


def item(kind, body):
    """An item or a sub-item of A-ASSOCIATE."""
    return struct.pack(">BxH", kind, len(body)) + body


def context(number, abstract_syntax, *transfer_syntaxes):
    """A proposed presentation context."""
    syntaxes = [item(0x40, uid.encode()) for uid in transfer_syntaxes]
    body = item(0x30, abstract_syntax.encode()) + b"".join(syntaxes)
    return item(0x20, bytes((number, 0, 0, 0)) + body)


def maximum_length(length):
    return item(0x51, struct.pack(">I", length))


def role(uid, scu, scp):
    """SCP/SCU Role Selection."""
    return item(0x54, struct.pack(">H", len(uid)) + uid.encode() + bytes((scu, scp)))


def extended(uid, information):
    """SOP Class Extended Negotiation."""
    return item(0x56, struct.pack(">H", len(uid)) + uid.encode() + information)


def common_extended(uid, service_class):
    """SOP Class Common Extended Negotiation."""
    both = (struct.pack(">H", len(one)) + one.encode() for one in (uid, service_class))
    return item(0x57, b"".join(both) + b"\0\0")


def identity(kind, primary, secondary=b"", response=0):
    """User Identity: 1 name, 2 name and passcode, 3 Kerberos, 4 SAML, 5 JWT."""
    fields = (struct.pack(">H", len(one)) + one for one in (primary, secondary))
    return item(0x58, bytes((kind, response)) + b"".join(fields))


WINDOW = item(0x53, struct.pack(">HH", 4, 4))
IMPLEMENTATION = item(0x52, b"2.25.20260705") + item(0x55, b"CTCONSOLE_31")
ECHO_CONTEXT = context(1, VERIFICATION, IMPLICIT)
USUAL_CONTEXTS = (
    ECHO_CONTEXT,
    context(3, WORKLIST, EXPLICIT, IMPLICIT),
    context(5, MPPS, IMPLICIT),
)


def associate_rq(
    *contexts,
    user=(maximum_length(16384),),
    called="MINRIS",
    calling="CT1",
    version=1,
    name="1.2.840.10008.3.1.1.1",
    implementation=IMPLEMENTATION,
):
    """An A-ASSOCIATE-RQ PDU; without contexts that of a CT console."""
    titles = called.ljust(16).encode("latin-1") + calling.ljust(16).encode("latin-1")
    body = struct.pack(">Hxx", version) + titles + bytes(32) + item(0x10, name.encode())
    body += b"".join(contexts or USUAL_CONTEXTS)
    return pdu(ASSOCIATE_RQ, body + item(0x50, b"".join(user) + implementation))


def command(field, message_id=1, uid=VERIFICATION, has_data=False, **more):
    """A command set, implicit little endian (PS3.7 6.3.1)."""
    words = {0x0100: field, 0x0110: message_id, 0x0800: 1 if has_data else 0x0101}
    if field == C_FIND:
        words[0x0700] = 0
    if field == C_CANCEL:
        words = {0x0100: field, 0x0120: message_id, 0x0800: 0x0101}
    elements = {tag: struct.pack("<H", word) for tag, word in words.items()}
    elements[0x0003 if field == N_SET else 0x0002] = uid.encode() + b"\0" * (len(uid) % 2)
    elements |= {int(tag[1:], 16): value for tag, value in more.items()}
    encoded = [
        struct.pack("<HHI", 0, tag, len(value)) + value for tag, value in sorted(elements.items())
    ]
    body = b"".join(encoded)
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def value(number, control, data):
    """A presentation data value; control 1 command, 0 data set, and 2 for the last of it."""
    return struct.pack(">IBB", len(data) + 2, number, control) + data


def p_data(*values):
    return pdu(P_DATA, b"".join(values))


def echo(message_id=1):
    """A C-ECHO request on the first of the usual contexts."""
    return p_data(value(1, 3, command(C_ECHO, message_id)))


def find(identifier=b"", message_id=1, number=3):
    """A C-FIND request on the second of the usual contexts."""
    set_ = command(C_FIND, message_id, WORKLIST, has_data=True)
    return p_data(value(number, 3, set_), value(number, 2, identifier))


def n_create(data, uid, message_id=1):
    """An N-CREATE request on the third of the usual contexts."""
    uid = uid.encode() + b"\0" * (len(uid) % 2)
    set_ = command(N_CREATE, message_id, MPPS, has_data=True, x1000=uid)
    return p_data(value(5, 3, set_), value(5, 2, data))


def n_set(data, uid, message_id=1):
    """An N-SET request on the third of the usual contexts."""
    uid = uid.encode() + b"\0" * (len(uid) % 2)
    set_ = command(N_SET, message_id, MPPS, has_data=True, x1001=uid)
    return p_data(value(5, 3, set_), value(5, 2, data))


def cancel(message_id=1):
    """A C-CANCEL request (PS3.7 9.3.2.3)."""
    return p_data(value(3, 3, command(C_CANCEL, message_id, WORKLIST)))


def encode(ds, explicit=False):
    """A pydicom data set in a little endian syntax."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, implicit_vr=not explicit, little_endian=True)
    return buffer.getvalue()


# What comes back --------------------------------------------------------------------------------


Answer = collections.namedtuple("Answer", "contexts roles extended identity maximum_length")


def read_items(body, at=0):
    while at < len(body):
        kind, length = struct.unpack_from(">BxH", body, at)
        yield kind, body[at + 4 : at + 4 + length]
        at += 4 + length


def read_accept(body):
    """An A-ASSOCIATE-AC: contexts by ID as (result, transfer syntax if accepted), roles, …"""
    contexts, roles, others, identities, maximum = {}, {}, {}, [], None
    for kind, content in read_items(body, 68):
        if kind == 0x21:
            syntax = dict(read_items(content, 4)).get(0x40, b"").decode()
            contexts[content[0]] = content[2], None if content[2] else syntax
        elif kind == 0x50:
            for sub, information in read_items(content):
                if sub in (0x54, 0x56):
                    end = 2 + int.from_bytes(information[:2], "big")
                    uid = information[2:end].decode()
                    (roles if sub == 0x54 else others)[uid] = information[end:]
                elif sub == 0x59:
                    identities.append(information)
                elif sub == 0x51:
                    maximum = int.from_bytes(information, "big")
    roles = {uid: tuple(one) for uid, one in roles.items()}
    return Answer(contexts, roles, others, identities, maximum)


def read_command(data):
    """A command set by element number."""
    fields, at = {}, 0
    while at < len(data):
        _, element, length = struct.unpack_from("<HHI", data, at)
        fields[element] = data[at + 8 : at + 8 + length]
        at += 8 + length
    return fields


def word(fields, element):
    return int.from_bytes(fields[element], "little")


def values_of(pdus):
    """The presentation data values in some PDUs: control header and bytes."""
    for kind, body in pdus:
        assert kind == P_DATA, (kind, body[:80])
        at = 0
        while at < len(body):
            length, _, control = struct.unpack_from(">IBB", body, at)
            yield control, body[at + 6 : at + 4 + length]
            at += 4 + length


def read_messages(pdus):
    """The DIMSE messages in some PDUs: (command set by element number, data set or None)."""
    set_, data = b"", None
    for control, part in values_of(pdus):
        if control & 1:
            set_ += part
        else:
            data = (data or b"") + part
        fields = read_command(set_) if control & 2 else None
        if fields and (not control & 1 or word(fields, 0x0800) == 0x0101):
            yield fields, data
            set_, data = b"", None


def statuses(pdus):
    return [word(fields, 0x0900) for fields, _ in read_messages(pdus)]


class Peer:
    """A client that sends bytes and gives what comes back as (PDU type, body)."""

    def __init__(self, port, source=HOST, receive_buffer=None, tls=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.bind((source, 0))
        self.socket.settimeout(10)
        self.socket.connect((HOST, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.socket = tls.wrap_socket(self.socket)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *parts):
        self.socket.sendall(b"".join(parts))

    def receive(self, timeout_s=SOON_S):
        """The next PDU; None at the end of the connection, TimeoutError if neither comes."""
        deadline = time.monotonic() + timeout_s
        while len(self.buffer) < 6 or len(self.buffer) < 6 + self._length():
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                received = self.socket.recv(1 << 18)
            except ConnectionResetError:
                received = b""
            if not received:
                return None
            self.buffer += received
        end = 6 + self._length()
        one, self.buffer = (self.buffer[0], self.buffer[6:end]), self.buffer[end:]
        return one

    def _length(self):
        return int.from_bytes(self.buffer[2:6], "big")

    def rest(self, timeout_s=SOON_S):
        """All PDUs up to the one that ends the association, or to the end of the connection.

        Either must come in time. At a reject, an abort or the answer to its release a peer closes
        the connection (PS3.8 9.2), as the caller of this does.
        """
        deadline, received = time.monotonic() + timeout_s, []
        while one := self.receive(max(0.001, deadline - time.monotonic())):
            received.append(one)
            if one[0] in (ASSOCIATE_RJ, RELEASE_RP, ABORT):
                break
        return received

    def associate(self, request=None):
        """Ask for an association and get it: the Answer."""
        self.send(request or associate_rq())
        kind, body = self.receive()
        assert kind == ASSOCIATE_AC, (kind, body)
        return read_accept(body)

    def echo(self, message_id=1):
        """Verify: the status."""
        self.send(echo(message_id))
        return statuses([self.receive()])[0]

    def responses(self, timeout_s=10):
        """The messages up to and with the first whose status is not pending."""
        self.received, messages = [], []

        def arriving():
            while one := self.receive(timeout_s):
                self.received.append(one)
                yield one

        for message in read_messages(arriving()):
            messages.append(message)
            if word(message[0], 0x0900) & 0xFF00 != 0xFF00:
                break
        return messages

    def release(self):
        """Release in order: everything else that came before the connection's end."""
        self.send(pdu(RELEASE_RQ))
        *before, last = self.rest()
        assert last[0] == RELEASE_RP
        return before


def associated(port, request=None, **how):
    """A peer with an association."""
    peer = Peer(port, **how)
    peer.associate(request)
    return peer


def echo_beside(port, source=HOST):
    """A well-behaved device verifies: associate, C-ECHO, release, in a second."""
    start = time.monotonic()
    with associated(port, source=source) as peer:
        assert peer.echo() == 0
        assert peer.release() == []
    assert time.monotonic() - start < BESIDE_S


ABORTED_BY_USER = (ABORT, b"\0\0\0\0")
ABORTED_UNRECOGNIZED = (ABORT, b"\0\0\2\1")
ABORTED_UNEXPECTED = (ABORT, b"\0\0\2\2")
RELEASED = (RELEASE_RP, b"\0\0\0\0")


def is_abort(one):
    return bool(one) and one[0] == ABORT


def reject(result, source, reason):
    return ASSOCIATE_RJ, bytes((0, result, source, reason))


# The server, and a look inside ------------------------------------------------------------------


class Inside:
    """Looks into the event loop of a running server."""

    def __init__(self, loop, server, port):
        self.loop, self.server, self.port = loop, server, port
        self.mishaps = []
        self.requests = []

    def call(self, function, *arguments):
        """Call a function in the loop: what it returns."""

        async def run():
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def until(self, is_so, timeout_s=SOON_S):
        """Wait until something is so, looked at in the loop; AssertionError if it is not in time."""

        async def run():
            async with asyncio.timeout(timeout_s):
                while not is_so():
                    await asyncio.sleep(0.002)

        try:
            asyncio.run_coroutine_threadsafe(run(), self.loop).result(timeout_s + 5)
        except TimeoutError:
            raise AssertionError(f"not so within {timeout_s} s: {self.remains()}") from None

    @property
    def association(self):
        """The one association there is."""
        (one,) = self.call(lambda: list(self.server.associations))
        return one

    def remains(self):
        """What is left of associations: themselves, counts, bytes, tasks, timers."""
        return self.call(self._remains)

    def _remains(self):
        tasks = [t for t in asyncio.all_tasks() if "Association." in t.get_coro().__qualname__]
        timers = [
            timer._callback.__name__
            for timer in self.loop._scheduled
            if isinstance(getattr(timer._callback, "__self__", None), Association)
        ]
        found = {
            "associations": [(str(a), a.state) for a in self.server.associations],
            "counts": dict(self.server.counts),
            "bytes": dict(+self.server.intake.held),
            "tasks": tasks,
            "timers": timers,
        }
        return {name: one for name, one in found.items() if one}

    def in_memory(self):
        """How many associations of this server are still in memory."""
        gc.collect()
        found = (one for one in gc.get_objects() if isinstance(one, Association))
        return sum(one.server is self.server for one in found)

    def settle(self, timeout_s=SOON_S):
        """Nothing may be left of what was."""
        self.until(lambda: not self._remains(), timeout_s)
        assert self.mishaps == []


def success(request, status=0, pending=False):
    """The command set of a response."""
    return encode_command(
        AffectedSOPClassUID=request.context.abstract_syntax,
        CommandField=request.command["CommandField"] | 0x8000,
        MessageIDBeingRespondedTo=request.message_id,
        CommandDataSetType=1 if pending else 0x0101,
        Status=0xFF00 if pending else status,
    )


async def answer(association, request):
    """A service that says 0000 to everything."""
    await association.send((request.context, success(request), None))


def streaming(size, count=None, slice_=64):
    """A service whose C-FIND answers `count` data sets of `size` bytes, without count for ever."""

    async def dispatch(association, request):
        if request.operation == "C-FIND":
            left = itertools.count() if count is None else range(0, count, slice_)
            pending = success(request, pending=True)
            for at in left:
                if request.cancelled:
                    await association.send((request.context, success(request, 0xFE00), None))
                    return
                many = slice_ if count is None else min(slice_, count - at)
                answers = [bytes(size)] * many
                if not await association.send_answers(request.context, pending, answers):
                    return
                await asyncio.sleep(0)  # a slice; the others have their turn
        await answer(association, request)

    return dispatch


class Held:
    """A service that answers only when it is told to."""

    def __init__(self):
        self.free = None
        self.begun = []

    async def __call__(self, association, request):
        self.begun.append(request)
        self.free = self.free or asyncio.Event()
        await self.free.wait()
        await answer(association, request)


CONTEXTS = {**PRESENTATION_CONTEXTS}


@contextlib.contextmanager
def serving(folder, text="", dispatch=answer, contexts=CONTEXTS, tls=None):
    """An AssociationServer in a thread with [dicom] as in `text`: an Inside of it."""
    config = load_config(conftest.write_config(folder, text))
    inside, started = Inside(None, None, 0), threading.Event()

    async def recording(association, request):
        inside.requests.append(request)
        await dispatch(association, request)

    async def serve():
        inside.loop = asyncio.get_running_loop()
        inside.loop.set_exception_handler(lambda _, mishap: inside.mishaps.append(mishap))
        inside.until_end = asyncio.Event()
        inside.access = AccessRules(config)
        inside.negotiator = Negotiator(
            contexts, EXTENDED_NEGOTIATION, config.dicom.maximum_pdu_length
        )
        inside.server = AssociationServer(
            config.dicom, lambda: inside.access, inside.negotiator, recording
        )
        inside.port = await inside.server.listen(HOST, 0, tls)
        started.set()
        await inside.until_end.wait()
        await inside.server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(20)
    try:
        yield inside
    finally:
        inside.loop.call_soon_threadsafe(inside.until_end.set)
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


class Alone:
    """The appliance in a process of its own, as the system sees it."""

    def __init__(self, port, pid, said):
        self.port, self.process, self.said = port, Path("/proc", str(pid)), said

    def cpu_s(self):
        """The time it has run, over all threads."""
        spent = (path.read_text().split()[0] for path in self.process.glob("task/*/schedstat"))
        return sum(map(int, spent)) / 1e9

    def come_to_rest(self):
        """Return when it does nothing: what it loads after it has begun to listen is loaded."""
        deadline, spent = time.monotonic() + 20, -1.0
        while self.cpu_s() - spent > 0.001:
            assert time.monotonic() < deadline, "it is busy by itself"
            spent = self.cpu_s()
            threading.Event().wait(0.2)

    def memory(self):
        """Resident memory in bytes."""
        return int(re.search(r"VmRSS:\s+(\d+)", (self.process / "status").read_text())[1]) << 10

    def files(self):
        """How many files and sockets are open."""
        return len(list((self.process / "fd").iterdir()))

    def threads(self):
        return len(list((self.process / "task").iterdir()))

    def words(self):
        """What it has said up to now."""
        return self.said.read_text(encoding="utf-8")


@contextlib.contextmanager
def running_alone(folder, settings="", before=""):
    """An appliance that runs alone; `before` is Python for its process to begin with."""
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("needs Linux: looks into /proc")
    port, said = peers.free_port(), folder / "said.txt"
    config = conftest.write_config(folder, f"[dicom]\nport = {port}\n{settings}")
    lines = [
        "import sys",
        f"sys.stderr = open({str(said)!r}, 'w', 1, 'utf-8')",
        before,
        "from minris.cli import main",
        "sys.exit(main(sys.argv[1:]))",
    ]
    command_line = [sys.executable, "-c", "\n".join(lines), "--config", str(config)]
    with peers.process(command_line, cwd=folder) as running:
        peers.wait_for_port(port)
        yield Alone(port, running.pid, said)


@pytest.fixture
def serve(tmp_path):
    """Gives a function that starts a server: serve("maximum_associations = 2", dispatch)."""
    with contextlib.ExitStack() as stack:

        def start(settings="", dispatch=answer, **how):
            text = f"[dicom]\n{settings}" if settings else ""
            return stack.enter_context(serving(tmp_path, text, dispatch, **how))

        yield start


@pytest.fixture
def server(serve):
    """A server with the usual settings that says 0000 to everything."""
    return serve()


@pytest.fixture
def box(appliance):
    """An Inside of the whole appliance."""
    return inside_of(appliance)


def inside_of(running):
    inner = running.appliance
    return Inside(inner.changes.loop, inner.associations, running.port)


# The state machine: PS3.8 Table 9-10 ------------------------------------------------------------

STATES = ("Sta1", "Sta2", "Sta3", "Sta6", "Sta7", "Sta8", "Sta10", "Sta11", "Sta12", "Sta13")
EVENTS = {  # our name of each event, and that of PS3.8
    "ASSOCIATE-AC": "Evt3",
    "ASSOCIATE-RJ": "Evt4",
    "connected": "Evt5",
    "ASSOCIATE-RQ": "Evt6",
    "accept": "Evt7",
    "reject": "Evt8",
    "send data": "Evt9",
    "P-DATA": "Evt10",
    "release": "Evt11",
    "RELEASE-RQ": "Evt12",
    "RELEASE-RP": "Evt13",
    "released": "Evt14",
    "abort": "Evt15",
    "ABORT": "Evt16",
    "closed": "Evt17",
    "ARTIM": "Evt18",
    "invalid": "Evt19",
}
STATE_AFTER = {  # PS3.8 Tables 9-6 to 9-9, the acceptor's half
    "AE-5": "Sta2",
    "AE-6": "Sta3",
    "AE-7": "Sta6",
    "AE-8": "Sta13",
    "DT-1": "Sta6",
    "DT-2": "Sta6",
    "AR-1": "Sta7",
    "AR-2": "Sta8",
    "AR-3": "Sta1",
    "AR-4": "Sta13",
    "AR-5": "Sta1",
    "AR-6": "Sta7",
    "AR-7": "Sta8",
    "AR-8": "Sta10",
    "AR-10": "Sta12",
    "AA-1": "Sta13",
    "AA-2": "Sta1",
    "AA-3": "Sta1",
    "AA-4": "Sta1",
    "AA-5": "Sta1",
    "AA-6": "Sta13",
    "AA-7": "Sta13",
    "AA-8": "Sta13",
}
LOCAL = {("abort", "Sta2"): "AA-1"}  # ours: a connection past a limit


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_the_state_table_is_that_of_the_standard(event, state):
    action = LOCAL.get((event, state)) or TRANSITION_TABLE.get((EVENTS[event], state))
    expected = [action, STATE_AFTER[action]] if action else None
    assert (ASSOCIATION_STATES[event, state] or None) == expected


def test_the_state_table_has_no_events_and_states_of_its_own():
    assert {event for event, _ in ASSOCIATION_STATES} == set(EVENTS)
    assert {state for _, state in ASSOCIATION_STATES} <= set(STATES)


# What the peer sees of an action; DT-2 and AR-6 are seen in the service.
SEEN_OF_ACTION = {
    "AE-6": [ASSOCIATE_AC],
    "DT-2": [P_DATA],
    "AR-2": [RELEASE_RP],
    "AR-3": [],
    "AR-6": [],
    "AR-8": [],
    "AR-10": [RELEASE_RP],
    "AA-1": [ABORT],
    "AA-2": [],
    "AA-3": [],
    "AA-6": [],
    "AA-7": [],  # local: by then our half may be closed, nothing can follow
    "AA-8": [ABORT],
}
SENT_OF_EVENT = {
    "ASSOCIATE-AC": pdu(ASSOCIATE_AC),
    "ASSOCIATE-RJ": pdu(ASSOCIATE_RJ),
    "ASSOCIATE-RQ": associate_rq(),
    "P-DATA": echo(),
    "RELEASE-RQ": pdu(RELEASE_RQ),
    "RELEASE-RP": pdu(RELEASE_RP),
    "ABORT": pdu(ABORT),
    "invalid": pdu(0x42),
}


@pytest.fixture(scope="module")
def quick_server(tmp_path_factory):
    """A server that waits 0.1 s for nobody."""
    settings = "[dicom]\nassociate_timeout = 0.1"
    with serving(tmp_path_factory.mktemp("quick"), settings) as inside:
        yield inside


def in_state(peer, state, inside):
    """Bring the one association into a state, by hand where it passes through within a call."""
    if state != "Sta2":
        peer.associate()
    inside.until(lambda: len(inside.server.associations) == 1)
    association = inside.association
    inside.call(setattr, association, "state", state)
    return association


@pytest.mark.parametrize(
    ("event", "state", "action"),
    [
        (event, state, cell[0])
        for (event, state), cell in ASSOCIATION_STATES.items()
        if cell and event in SENT_OF_EVENT
    ],
)
def test_a_pdu_is_answered_as_its_action_says(quick_server, event, state, action):
    with Peer(quick_server.port) as peer:
        association = in_state(peer, state, quick_server)
        peer.send(SENT_OF_EVENT[event])
        after = STATE_AFTER[{"AE-6": "AE-7", "AR-2": "AR-4", "AR-10": "AR-4"}.get(action, action)]
        quick_server.until(lambda: association.state == after and not association.buffer)
        if after != "Sta1":
            peer.send(pdu(ABORT))
        assert [kind for kind, _ in peer.rest()] == SEEN_OF_ACTION[action]
    quick_server.settle()


def test_an_unexpected_pdu_is_named_by_the_abort(server):
    """PS3.8 9.3.8: source 2, reason 2 (unexpected-PDU)."""
    with associated(server.port) as peer:
        peer.send(associate_rq())
        assert peer.rest() == [ABORTED_UNEXPECTED]
    server.settle()


def test_an_unrecognized_pdu_is_named_by_the_abort(server):
    """PS3.8 9.3.8: source 2, reason 1 (unrecognized-PDU)."""
    with associated(server.port) as peer:
        peer.send(pdu(0x42))
        assert peer.rest() == [ABORTED_UNRECOGNIZED]
    server.settle()


def test_before_an_association_the_abort_is_that_of_the_user(server):
    """PS3.8 Table 9-9, AA-1."""
    with Peer(server.port) as peer:
        peer.send(echo())
        assert peer.rest() == [ABORTED_BY_USER]
    server.settle()


def test_a_release_is_answered_and_the_connection_closed(server):
    with associated(server.port) as peer:
        peer.send(pdu(RELEASE_RQ))
        assert peer.rest() == [RELEASED]
    server.settle()


def test_our_release_ends_with_the_answer_of_the_peer(server):
    with associated(server.port) as peer:
        server.call(server.association.happens, "release")
        assert peer.receive() == (RELEASE_RQ, b"\0\0\0\0")
        peer.send(pdu(RELEASE_RP))
        assert peer.rest() == []
    server.settle()


def test_a_message_that_crosses_our_release_is_still_taken(server):
    with associated(server.port) as peer:
        server.call(server.association.happens, "release")
        peer.send(echo(7))
        server.until(lambda: server.requests)
        peer.send(pdu(RELEASE_RP))
        assert peer.rest() == [(RELEASE_RQ, b"\0\0\0\0")]
    server.settle()
    assert server.requests[0].message_id == 7


def test_in_a_release_collision_the_acceptor_answers_last(server):
    """PS3.8 9.2.2: AR-8 waits in Sta10, AR-10 and AR-4 answer the peer's own request."""
    with associated(server.port) as peer:
        association = server.association
        server.call(association.happens, "release")
        assert peer.receive()[0] == RELEASE_RQ
        peer.send(pdu(RELEASE_RQ))
        server.until(lambda: association.state == "Sta10")
        peer.send(pdu(RELEASE_RP))
        assert peer.rest() == [RELEASED]
    server.settle()


@pytest.mark.parametrize("state", ["Sta7", "Sta10"])
def test_a_peer_that_does_not_end_a_release_is_aborted(serve, state):
    inside = serve("idle_timeout = 0.2")
    with associated(inside.port) as peer:
        inside.call(inside.association.happens, "release")
        assert peer.receive()[0] == RELEASE_RQ
        if state == "Sta10":
            peer.send(pdu(RELEASE_RQ))
        assert peer.rest() == [ABORTED_BY_USER]
    inside.settle()


def test_a_peer_that_stays_after_our_abort_is_left(serve):
    """PS3.8 9.1.5: ARTIM waits for the peer to close, and not for ever."""
    inside = serve("associate_timeout = 0.1")
    with associated(inside.port) as peer:
        peer.send(pdu(0x42))
        assert is_abort(peer.receive())
        inside.settle()


def test_a_peer_that_stays_after_its_release_is_left(serve):
    inside = serve("associate_timeout = 0.1")
    with associated(inside.port) as peer:
        peer.send(pdu(RELEASE_RQ))
        assert peer.receive() == RELEASED
        inside.settle()


def test_what_comes_after_the_end_does_not_prolong_it(serve):
    """PS3.8 Table 9-10, Sta13: AA-6 and AA-7 leave the timer alone."""
    inside = serve("associate_timeout = 0.1")
    with associated(inside.port) as peer, contextlib.suppress(ConnectionError):
        association = inside.association
        peer.send(pdu(0x42))
        assert is_abort(peer.receive())
        due = inside.call(lambda: association.artim.when())
        peer.send(echo(), associate_rq(), pdu(0x42))
        assert inside.call(lambda: association.artim.when()) == due
        inside.settle()


def test_closing_the_server_aborts_what_is_open(tmp_path):
    with serving(tmp_path) as inside:
        peer = associated(inside.port)
    with peer:
        assert peer.rest() == [ABORTED_BY_USER]


def test_closing_the_server_ends_a_service_at_work(tmp_path):
    held = Held()
    with serving(tmp_path, dispatch=held) as inside:
        peer = associated(inside.port)
        peer.send(echo())
        inside.until(lambda: held.begun)
    with peer:
        assert peer.rest() == [ABORTED_BY_USER]
    assert inside.server.associations == set()


def close_by_reset(peer):
    """Leave as a machine does that is switched off and on."""
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.socket.close()


LEAVINGS = {"closed": lambda peer: peer.socket.close(), "reset": close_by_reset}


@pytest.mark.parametrize("leaving", LEAVINGS)
def test_a_peer_that_left_a_moment_ago_can_be_aborted(server, leaving):
    """The loop has not heard of it yet."""
    peer = associated(server.port)
    association = server.association

    def leave_and_abort():
        LEAVINGS[leaving](peer)
        association.happens("abort")

    server.call(leave_and_abort)
    server.settle()


@pytest.mark.parametrize("leaving", LEAVINGS)
@pytest.mark.parametrize(
    "last", [pdu(RELEASE_RQ), echo(), pdu(0x42)], ids="release echo bad".split()
)
def test_a_peer_may_leave_without_waiting_for_the_answer(server, leaving, last):
    for _ in range(50):
        peer = associated(server.port)
        peer.send(last)
        LEAVINGS[leaving](peer)
    server.settle()


@pytest.mark.parametrize("leaving", LEAVINGS)
def test_closing_the_server_is_not_hindered_by_a_peer_that_left(server, leaving):
    with contextlib.ExitStack() as stack:
        gone, *others = [stack.enter_context(associated(server.port)) for _ in range(10)]

        async def leave_and_close():
            LEAVINGS[leaving](gone)
            await server.server.close()

        asyncio.run_coroutine_threadsafe(leave_and_close(), server.loop).result(10)
        assert [peer.rest() for peer in others] == [[ABORTED_BY_USER]] * 9
    server.settle()


# Messages ---------------------------------------------------------------------------------------


def cut(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


def fragments(data, number, kind, size):
    """The presentation data values of a command set (kind 1) or a data set (kind 0)."""
    parts = cut(data, size)
    return [value(number, kind | 2 * (i == len(parts) - 1), p) for i, p in enumerate(parts)]


FIND_COMMAND = command(C_FIND, 1, WORKLIST, has_data=True)
IDENTIFIER = encode(Dataset()) + struct.pack("<HHI", 0x10, 0x20, 8) + b"P000123 "


@pytest.mark.parametrize("size", [1, 2, 7, 4096])
@pytest.mark.parametrize("together", [True, False], ids=["in one PDU", "in one PDU each"])
def test_a_message_may_be_fragmented_at_will(server, size, together):
    """PS3.8 annex E."""
    values = fragments(FIND_COMMAND, 3, 1, size) + fragments(IDENTIFIER, 3, 0, size)
    with associated(server.port) as peer:
        peer.send(*([p_data(*values)] if together else map(p_data, values)))
        assert statuses([peer.receive()]) == [0]
    assert server.requests[0].data == IDENTIFIER
    assert server.requests[0].operation == "C-FIND"


def test_a_message_may_come_byte_by_byte(server):
    with associated(server.port) as peer:
        for byte in find(IDENTIFIER):
            peer.send(bytes((byte,)))
        assert statuses([peer.receive()]) == [0]


def test_an_association_may_come_in_one_segment(server):
    with Peer(server.port) as peer:
        peer.send(associate_rq(), echo(1), find(IDENTIFIER, 2))
        assert peer.receive()[0] == ASSOCIATE_AC
        assert statuses([peer.receive(), peer.receive()]) == [0, 0]


def test_messages_that_were_not_waited_for_are_answered_in_order(server):
    with associated(server.port) as peer:
        peer.send(*(echo(number) for number in range(1, 101)))
        answers = read_messages(peer.receive() for _ in range(100))
        assert [word(fields, 0x0120) for fields, _ in answers] == list(range(1, 101))


def test_messages_that_come_one_by_one_are_answered_in_order(server):
    with associated(server.port) as peer:
        for number in range(1, 1001):
            peer.send(echo(number))
        answers = read_messages(peer.receive() for _ in range(1000))
        assert [word(fields, 0x0120) for fields, _ in answers] == list(range(1, 1001))


def test_a_message_that_comes_as_the_one_before_ends_is_served(server):
    """The service has ended, the loop has not said so yet, and the next message is there."""
    with associated(server.port) as peer:
        association = server.association

        def arrive():
            association.data_received(echo(1))
            server.loop.call_soon(association.data_received, echo(2))

        server.call(arrive)
        assert statuses([peer.receive()]) == [0]
        assert statuses([peer.receive()]) == [0]


def test_a_release_does_not_lose_the_message_before_it(server):
    """PS3.8 7.2: a release is graceful, nothing in transit is lost."""
    with associated(server.port) as peer:
        peer.send(n_create(b"", "2.25.71"), pdu(RELEASE_RQ))
        assert peer.rest()[-1] == RELEASED
    server.settle()
    assert [request.operation for request in server.requests] == ["N-CREATE"]


def test_reading_stops_while_sixteen_messages_wait(serve):
    held = Held()
    inside = serve(dispatch=held)
    with associated(inside.port) as peer:
        peer.send(*(echo(number) for number in range(40)))
        association = inside.association
        inside.until(lambda: association.paused)
        assert not inside.call(association.transport.is_reading)
        inside.call(lambda: held.free.set())
        assert statuses(peer.receive() for _ in range(40)) == [0] * 40
        inside.until(association.transport.is_reading)


def test_a_pdu_is_not_late_while_we_do_not_read(serve):
    """Half a message behind sixteen that wait for a slow service: the delay is ours."""
    held = Held()
    inside = serve(dispatch=held)
    with associated(inside.port) as peer:
        peer.send(*(echo(number) for number in range(40)), echo(40)[:20])
        association = inside.association
        inside.until(lambda: association.paused)
        assert not inside.call(lambda: association.pdu_timer)


def test_a_peer_that_leaves_while_its_report_is_written_harms_no_later_one(appliance):
    """Its answer is wanted no more; the one writer goes on."""
    box, free = inside_of(appliance), threading.Event()
    appliance.appliance.writer.submit(free.wait, 10)
    with associated(box.port) as peer:
        peer.send(n_create(encode(performed(1)), "2.25.811"))
        association = box.association
        box.until(lambda: association.current)
    box.settle()
    free.set()
    assert appliance.write(lambda: "written") == "written"
    with associated(box.port) as peer:
        peer.send(n_create(encode(performed(2)), "2.25.812"))
        assert word(peer.responses()[-1][0], 0x0900) == 0


def test_cancel_reaches_the_query_at_work(serve):
    inside = serve(dispatch=streaming(1000))
    with associated(inside.port) as peer:
        peer.send(find(IDENTIFIER, 9), cancel(9))
        messages = peer.responses()
        assert word(messages[-1][0], 0x0900) == 0xFE00
        assert peer.echo() == 0


def test_cancel_reaches_the_query_that_waits(serve):
    held = Held()
    inside = serve(dispatch=held)
    with associated(inside.port) as peer:
        peer.send(echo(1), find(IDENTIFIER, 2), cancel(2))
        association = inside.association
        inside.until(lambda: association.waiting and association.waiting[0].cancelled)


def test_cancel_of_nothing_is_ignored(server):
    with associated(server.port) as peer:
        peer.send(cancel(99))
        assert peer.echo() == 0


def test_a_query_does_not_hold_up_an_echo_beside_it(serve):
    inside = serve(dispatch=streaming(1000))
    with associated(inside.port) as asking:
        asking.send(find(IDENTIFIER))
        asking.receive()
        echo_beside(inside.port)


def test_a_peer_that_does_not_read_stops_only_its_own_query(serve):
    inside = serve(dispatch=streaming(1000, slice_=5000))
    with associated(inside.port, receive_buffer=4096) as deaf:
        deaf.send(find(IDENTIFIER))
        association = inside.association
        inside.until(lambda: not association.writable.is_set(), 5)
        assert inside.call(association.transport.get_write_buffer_size) < 1 << 20
        echo_beside(inside.port)


def test_a_release_ends_the_query_that_streams(serve):
    inside = serve(dispatch=streaming(1000))
    with associated(inside.port) as peer:
        peer.send(find(IDENTIFIER))
        peer.receive()
        peer.send(pdu(RELEASE_RQ))
        assert peer.rest(5)[-1] == RELEASED
    inside.settle()


def test_an_abort_ends_the_query_that_streams(serve):
    inside = serve(dispatch=streaming(1000))
    with associated(inside.port) as peer:
        peer.send(find(IDENTIFIER))
        peer.receive()
        peer.send(pdu(ABORT))
        with contextlib.suppress(ConnectionError):
            assert all(kind == P_DATA for kind, _ in peer.rest(5))
    inside.settle()


def test_a_peer_that_goes_away_ends_the_query_that_streams(serve):
    inside = serve(dispatch=streaming(1000))
    with associated(inside.port) as peer:
        peer.send(find(IDENTIFIER))
        peer.receive()
    inside.settle()


def test_a_service_that_fails_ends_in_an_abort(serve, caplog):
    async def broken(association, request):
        raise ZeroDivisionError

    inside = serve(dispatch=broken)
    with associated(inside.port) as peer:
        peer.send(echo())
        assert peer.rest() == [ABORTED_BY_USER]
    inside.settle()
    assert "ZeroDivisionError" in caplog.text


class Counting:
    """A transport that counts what is written to it."""

    def __init__(self, transport):
        self.transport, self.written = transport, []

    def write(self, data):
        self.written.append(len(data))
        self.transport.write(data)

    def __getattr__(self, name):
        return getattr(self.transport, name)


def count_writes(inside):
    association = inside.association
    counting = Counting(association.transport)
    inside.call(setattr, association, "transport", counting)
    return counting.written


def test_a_message_is_one_write(serve):
    inside = serve(dispatch=streaming(600, 1))
    with associated(inside.port) as peer:
        written = count_writes(inside)
        assert peer.echo() == 0
        assert len(written) == 1
        peer.send(find(IDENTIFIER))
        assert len(peer.responses()) == 2
        assert len(written) == 3


def test_command_and_data_set_have_a_pdu_each_where_the_device_wants_it(tmp_path):
    text = "[dicom]\n[device CT room]\nae_title = CT1\ncombined_pdvs = no"
    with serving(tmp_path, text, streaming(600, 3)) as inside, associated(inside.port) as peer:
        peer.send(find(IDENTIFIER))
        assert len(peer.responses()) == 4
        assert [len(list(values_of([one]))) for one in peer.received] == [1] * 7


def test_many_answers_share_a_write_of_64_to_128_kib(serve):
    inside = serve(dispatch=streaming(600, 1000, slice_=1000))
    with associated(inside.port) as peer:
        written = count_writes(inside)
        peer.send(find(IDENTIFIER))
        assert len(peer.responses()) == 1001
        *full, _, _ = written
        assert full
        assert all(64 << 10 <= size <= 128 << 10 for size in full)


def test_nagle_is_off(server):
    with associated(server.port):
        assert server.association.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("peers_maximum", [0, 1024, 4096, 16384, 131072, 0xFFFFFFFF])
@pytest.mark.parametrize("size", [2, 900, 1018, 1024, 16000, 16378, 40000])
def test_a_peer_gets_no_pdu_past_its_maximum(serve, peers_maximum, size):
    """PS3.8 D.1.1: the length of the variable field of a P-DATA-TF PDU; 0 is no limit."""
    inside = serve(dispatch=streaming(size, 3))
    with associated(inside.port, associate_rq(user=(maximum_length(peers_maximum),))) as peer:
        peer.send(find(IDENTIFIER))
        assert [data for _, data in peer.responses()] == [bytes(size)] * 3 + [None]
        assert max(len(body) for _, body in peer.received) <= (peers_maximum or 1 << 32)


def test_a_peer_that_names_no_maximum_is_served(server):
    with associated(server.port, associate_rq(user=())) as peer:
        assert peer.echo() == 0


RESPONSE_FIELDS = {
    "AffectedSOPClassUID": WORKLIST,
    "CommandField": 0x8020,
    "MessageIDBeingRespondedTo": 65535,
    "CommandDataSetType": 0x0101,
    "Status": 0xA900,
    "OffendingElement": [0x00100030, 0x00400100],
    "ErrorComment": "Patient's Birth Date 19800231 is not a date",
    "ErrorID": 12,
}


def test_a_command_set_is_encoded_as_pynetdicom_does():
    """PS3.7 6.3.1: implicit little endian, with its group length."""
    ds = Dataset()
    for keyword, one in RESPONSE_FIELDS.items():
        setattr(ds, keyword, one)
    body = pynetdicom.dsutils.encode(ds, is_implicit_vr=True, is_little_endian=True)
    expected = struct.pack("<HHII", 0, 0, 4, len(body)) + body
    assert encode_command(**RESPONSE_FIELDS) == expected


def test_a_command_set_is_read_back():
    decoded = decode_command(encode_command(**RESPONSE_FIELDS))
    assert {**decoded, "CommandGroupLength": None} == {
        **RESPONSE_FIELDS,
        "CommandGroupLength": None,
    }


BROKEN_PDATA = {
    "empty PDU": p_data(),
    "value cut short": pdu(P_DATA, b"\0\0\0"),
    "value longer than its PDU": pdu(P_DATA, struct.pack(">IBB", 500, 1, 3) + b"abcd"),
    "value of one byte": pdu(P_DATA, struct.pack(">IB", 1, 1)),
    "value of 4 GiB": pdu(P_DATA, struct.pack(">IBB", 0xFFFFFFFF, 1, 3)),
    "context that was not accepted": p_data(value(9, 3, command(C_ECHO))),
    "data set without a command": p_data(value(3, 2, IDENTIFIER)),
    "data set on another context": p_data(value(3, 3, FIND_COMMAND), value(1, 2, IDENTIFIER)),
    "command before the data set": p_data(value(3, 3, FIND_COMMAND), value(3, 3, FIND_COMMAND)),
    "command set that is none": p_data(value(1, 3, b"Hello, world")),
    "empty command set": p_data(value(1, 3, b"")),
    "command set cut short": p_data(value(1, 3, command(C_ECHO)[:-3])),
    "command set without its command": p_data(value(1, 3, struct.pack("<HHIH", 0, 0x110, 2, 1))),
    "data element in a command set": p_data(value(1, 3, command(C_ECHO) + IDENTIFIER)),
    "response to nothing": p_data(value(1, 3, command(C_ECHO | 0x8000))),
}


@pytest.mark.parametrize("name", BROKEN_PDATA)
def test_a_message_out_of_order_is_aborted(quick_server, name):
    with associated(quick_server.port) as peer:
        peer.send(BROKEN_PDATA[name])
        (end,) = peer.rest()
        assert end[0] == ABORT
        assert end[1][2] == 2  # the provider, PS3.8 AA-8
    echo_beside(quick_server.port)
    quick_server.settle()


# Negotiation: the same bytes to pynetdicom ------------------------------------------------------

UNKNOWN = "1.2.826.0.1.3680043.8.498.1"
PRIVATE_SYNTAX = "1.2.840.113619.5.2"  # GE's, big endian

REQUESTS = {
    "a CT console": associate_rq(),
    "one implicit": associate_rq(context(1, WORKLIST, IMPLICIT)),
    "one explicit": associate_rq(context(1, WORKLIST, EXPLICIT)),
    "explicit first": associate_rq(context(1, WORKLIST, EXPLICIT, IMPLICIT)),
    "implicit first": associate_rq(context(1, WORKLIST, IMPLICIT, EXPLICIT)),
    "a syntax twice": associate_rq(context(1, WORKLIST, IMPLICIT, IMPLICIT)),
    "a context per syntax": associate_rq(
        context(1, WORKLIST, EXPLICIT),
        context(3, WORKLIST, IMPLICIT),
        context(5, WORKLIST, BIG_ENDIAN),
    ),
    "all uncompressed": associate_rq(context(1, WORKLIST, EXPLICIT, BIG_ENDIAN, IMPLICIT)),
    "big endian alone": associate_rq(context(1, WORKLIST, BIG_ENDIAN)),
    "deflated alone": associate_rq(context(1, WORKLIST, DEFLATED)),
    "deflated or implicit": associate_rq(context(1, WORKLIST, DEFLATED, IMPLICIT)),
    "compressed alone": associate_rq(context(1, MPPS, JPEG)),
    "a private syntax": associate_rq(context(1, WORKLIST, PRIVATE_SYNTAX)),
    "a private syntax or implicit": associate_rq(context(1, WORKLIST, PRIVATE_SYNTAX, IMPLICIT)),
    "an image": associate_rq(
        context(1, CT_STORAGE, EXPLICIT, JPEG), context(3, VERIFICATION, IMPLICIT)
    ),
    "nothing we know": associate_rq(context(1, CT_STORAGE, IMPLICIT), context(3, UNKNOWN, JPEG)),
    "IDs out of order": associate_rq(
        context(255, WORKLIST, IMPLICIT), context(1, MPPS, IMPLICIT), context(99, UNKNOWN, IMPLICIT)
    ),
    "128 contexts": associate_rq(*(context(n, WORKLIST, IMPLICIT) for n in range(1, 256, 2))),
    "UIDs padded with NUL": associate_rq(context(1, VERIFICATION + "\0", IMPLICIT + "\0")),
    "no roles for MPPS": associate_rq(context(1, MPPS, IMPLICIT)),
    "MPPS as SCU": associate_rq(context(1, MPPS, IMPLICIT), user=(role(MPPS, 1, 0),)),
    "MPPS as SCP": associate_rq(context(1, MPPS, IMPLICIT), user=(role(MPPS, 0, 1),)),
    "MPPS as both": associate_rq(context(1, MPPS, IMPLICIT), user=(role(MPPS, 1, 1),)),
    "MPPS as neither": associate_rq(context(1, MPPS, IMPLICIT), user=(role(MPPS, 0, 0),)),
    "commitment as SCU": associate_rq(
        context(1, STORAGE_COMMITMENT, IMPLICIT), user=(role(STORAGE_COMMITMENT, 1, 0),)
    ),
    "commitment as SCP": associate_rq(
        context(1, STORAGE_COMMITMENT, IMPLICIT), user=(role(STORAGE_COMMITMENT, 0, 1),)
    ),
    "commitment as both": associate_rq(
        context(1, STORAGE_COMMITMENT, IMPLICIT), user=(role(STORAGE_COMMITMENT, 1, 1),)
    ),
    "a role we leave alone": associate_rq(user=(role(WORKLIST, 1, 0), role(VERIFICATION, 0, 1))),
    "a role of an unknown class": associate_rq(user=(role(UNKNOWN, 1, 1),)),
    "a role of a rejected context": associate_rq(context(1, MPPS, JPEG), user=(role(MPPS, 1, 0),)),
    "a role and several contexts": associate_rq(
        context(1, MPPS, IMPLICIT),
        context(3, MPPS, EXPLICIT),
        context(5, MPPS, JPEG),
        user=(role(MPPS, 1, 1),),
    ),
    "extended negotiation": associate_rq(user=(extended(WORKLIST, b"\1\1\1\1"),)),
    "extended negotiation of others": associate_rq(user=(extended(CT_STORAGE, b"\2\1\0\1\2\0"),)),
    "common extended negotiation": associate_rq(
        context(1, CT_STORAGE, IMPLICIT),
        context(3, WORKLIST, IMPLICIT),
        user=(common_extended(CT_STORAGE, "1.2.840.10008.4.2"),),
    ),
    "an operations window": associate_rq(user=(maximum_length(16384), WINDOW)),
    "a user's name": associate_rq(user=(identity(1, b"technologist"),)),
    "a user's name, answer wanted": associate_rq(user=(identity(1, b"technologist", b"", 1),)),
    "a user's passcode": associate_rq(user=(identity(2, b"technologist", b"sesame"),)),
    "a Kerberos ticket": associate_rq(user=(identity(3, bytes(range(200)), b"", 1),)),
    "a web token": associate_rq(user=(identity(5, b"eyJhbGciOiJub25lIn0.e30."),)),
    "no maximum length": associate_rq(user=()),
    "unlimited": associate_rq(user=(maximum_length(0),)),
    "everything at once": associate_rq(
        context(1, MPPS, EXPLICIT, IMPLICIT),
        context(3, WORKLIST, DEFLATED),
        context(5, UNKNOWN, EXPLICIT),
        context(7, VERIFICATION, JPEG, IMPLICIT),
        user=(
            maximum_length(28672),
            WINDOW,
            role(MPPS, 1, 1),
            extended(WORKLIST, b"\1\1\1"),
            identity(2, b"technologist", b"sesame", 1),
        ),
    ),
    "a reserved byte": associate_rq().replace(bytes((0x20, 0)), bytes((0x20, 9)), 1),
}

SUPPORTED = {**CONTEXTS, STORAGE_COMMITMENT: (True, True)}


@pytest.fixture(scope="module")
def two_servers(tmp_path_factory):
    """The ports of ours and of pynetdicom's acceptor, with the same supported contexts."""
    reference = AE("MINRIS")
    reference.maximum_associations = 1000
    for uid, roles in SUPPORTED.items():
        scu, scp = roles or (None, None)
        reference.add_supported_context(uid, [EXPLICIT, IMPLICIT], scu, scp)
    listening = reference.start_server((HOST, 0), block=False)
    with serving(tmp_path_factory.mktemp("two"), contexts=SUPPORTED) as inside:
        yield inside.port, listening.socket.getsockname()[1]
    listening.shutdown()


@pytest.mark.parametrize("name", REQUESTS)
def test_the_same_request_is_negotiated_as_pynetdicom_does(two_servers, name):
    """T-GEN-03, T-GEN-04, T-GEN-05, T-GEN-06: contexts and roles, as the same bytes gave them."""
    answers = []
    for port in two_servers:
        with Peer(port) as peer:
            answers.append(peer.associate(REQUESTS[name]))
            peer.send(pdu(ABORT))
    ours, theirs = answers
    assert ours.contexts == theirs.contexts
    assert ours.roles == theirs.roles
    assert ours.identity == theirs.identity


def test_an_unknown_abstract_syntax_is_result_3_and_the_others_usable(server):
    """T-GEN-03."""
    request = associate_rq(context(1, VERIFICATION, IMPLICIT), context(3, CT_STORAGE, IMPLICIT))
    with Peer(server.port) as peer:
        assert peer.associate(request).contexts == {1: (0, IMPLICIT), 3: (3, None)}
        assert peer.echo() == 0


@pytest.mark.parametrize("uid", PRESENTATION_CONTEXTS)
def test_implicit_little_endian_alone_is_accepted(server, uid):
    """T-GEN-04."""
    with Peer(server.port) as peer:
        answer = peer.associate(associate_rq(context(1, uid, IMPLICIT)))
        assert answer.contexts == {1: (0, IMPLICIT)}


@pytest.mark.parametrize("proposed", list(itertools.product((0, 1), repeat=2)))
def test_no_role_is_granted_that_was_not_proposed(two_servers, proposed):
    """T-GEN-05."""
    request = associate_rq(
        context(1, STORAGE_COMMITMENT, IMPLICIT), user=(role(STORAGE_COMMITMENT, *proposed),)
    )
    with Peer(two_servers[0]) as peer:
        granted = peer.associate(request).roles.get(STORAGE_COMMITMENT, (0, 0))
        assert all(got <= asked for got, asked in zip(granted, proposed, strict=True))


def test_the_scp_role_is_answered_where_it_is_proposed(two_servers):
    """T-GEN-05."""
    request = associate_rq(
        context(1, STORAGE_COMMITMENT, IMPLICIT), user=(role(STORAGE_COMMITMENT, 0, 1),)
    )
    with Peer(two_servers[0]) as peer:
        assert peer.associate(request).roles == {STORAGE_COMMITMENT: (0, 1)}


def test_no_role_item_is_answered_where_none_is_asked(server):
    """T-GEN-06."""
    with Peer(server.port) as peer:
        assert peer.associate(associate_rq(context(1, MPPS, IMPLICIT))).roles == {}


@pytest.mark.parametrize("syntax", [DEFLATED, BIG_ENDIAN, JPEG])
@pytest.mark.parametrize("uid", PRESENTATION_CONTEXTS)
def test_other_transfer_syntaxes_are_result_4(server, uid, syntax):
    with Peer(server.port) as peer:
        assert peer.associate(associate_rq(context(1, uid, syntax))).contexts == {1: (4, None)}


@pytest.mark.parametrize("asked", range(1, 8))
def test_extended_negotiation_is_answered_with_3_bytes_or_4(server, asked):
    """PS3.4 K.5.1: three at least, and none that was not offered beyond them."""
    information = b"\1\1\1\1\1\1\1"[:asked]
    with Peer(server.port) as peer:
        answer = peer.associate(associate_rq(user=(extended(WORKLIST, information),)))
    assert answer.extended == {WORKLIST: b"\1\1\0\0"[: min(4, max(3, asked))]}


def test_extended_negotiation_of_nothing_does_no_harm(server):
    with Peer(server.port) as peer:
        peer.send(associate_rq(user=(extended(WORKLIST, b""),)))
        assert peer.receive()[0] == ASSOCIATE_AC


def test_extended_negotiation_is_not_offered_unasked(server):
    """PS3.4 K.5.1."""
    with Peer(server.port) as peer:
        assert peer.associate().extended == {}


def test_unrecognized_user_information_is_ignored(server):
    """PS3.8 D.2: an acceptor ignores sub-items of a later edition and does not reject for them."""
    with Peer(server.port) as peer:
        answer = peer.associate(associate_rq(user=(maximum_length(16384), item(0x5F, b"later"))))
        assert answer.contexts[1] == (0, IMPLICIT)


@pytest.mark.parametrize("uid", ["1.2.840.10008.01.2", "1.2.GE.3"])
def test_a_transfer_syntax_that_is_no_uid_costs_only_itself(server, uid):
    request = associate_rq(context(1, VERIFICATION, uid, IMPLICIT), context(3, WORKLIST, uid))
    with Peer(server.port) as peer:
        assert peer.associate(request).contexts == {1: (0, IMPLICIT), 3: (4, None)}


CLASS_UID = item(0x52, b"2.25.20260705")
ONLY_INFORMS = {
    "a class UID that is none": item(0x52, b"1.2.826.0.1.03"),
    "a class UID of letters": item(0x52, b"CT CONSOLE"),
    "a class UID that is no ASCII": item(0x52, b"\xff\xfe"),
    "a class UID past its length": item(0x52, b"1." * 40 + b"1"),
    "a version name past its length": CLASS_UID + item(0x55, b"A CONSOLE OF A NEW KIND 3.1"),
    "a version name padded with NUL": CLASS_UID + item(0x55, b"CTCONSOLE\0\0"),
    "a version name that is no ASCII": CLASS_UID + item(0x55, "Größe 3".encode("latin-1")),
    "a version name that is empty": CLASS_UID + item(0x55, b""),
    "a window cut short": CLASS_UID + item(0x53, b"\0\1"),
    "a user of an unknown kind": CLASS_UID + item(0x58, b"\x09\0\0\1A\0\0"),
    "a user cut short": CLASS_UID + item(0x58, b"\1"),
    "a related class cut short": CLASS_UID + item(0x57, b"\0\x40abc"),
    "a role of another class that is none": CLASS_UID + role(CT_STORAGE, 2, 5),
    "a role of another class cut short": CLASS_UID + item(0x54, b"\0\x10abc"),
    "what another class would extend, cut short": CLASS_UID + item(0x56, b"\0\x40abc"),
}


@pytest.mark.parametrize("name", ONLY_INFORMS)
def test_a_field_that_only_informs_ends_no_association(server, name):
    """They say who made the peer, or concern classes that are not negotiated."""
    with Peer(server.port) as peer:
        answer = peer.associate(associate_rq(implementation=ONLY_INFORMS[name]))
        assert [result for result, _ in answer.contexts.values()] == [0, 0, 0]


@pytest.mark.parametrize("name", ONLY_INFORMS)
def test_a_field_that_only_informs_ends_no_association_of_ours(name):
    syntaxes = bytes((1, 0, 0, 0)) + item(0x40, IMPLICIT.encode())
    user = maximum_length(4096) + ONLY_INFORMS[name] + item(0x5F, b"later")
    body = struct.pack(">Hxx", 1) + b"\xff" * 64 + item(0x10, b"1.2.840.10008.3.1.1.1")
    body += item(0x21, syntaxes) + item(0x50, user)
    accepted = associate_answer(pdu(ASSOCIATE_AC, body), ((VERIFICATION, None),))
    assert (accepted.maximum_length, [*accepted.contexts]) == (4096, [VERIFICATION])


@pytest.mark.parametrize("uid", ["1.2.840.ä", "1." * 40 + "1", "CT"])
def test_a_class_whose_uid_cannot_be_read_costs_only_itself(server, uid):
    request = associate_rq(ECHO_CONTEXT, context(3, uid, IMPLICIT))
    with Peer(server.port) as peer:
        assert peer.associate(request).contexts == {1: (0, IMPLICIT), 3: (3, None)}


@pytest.mark.parametrize("uid", ["", " ", "1.2.ä", "1." * 40 + "1"])
def test_a_transfer_syntax_that_cannot_be_read_costs_only_itself(server, uid):
    request = associate_rq(context(1, VERIFICATION, uid, IMPLICIT), context(3, WORKLIST, uid))
    with Peer(server.port) as peer:
        assert peer.associate(request).contexts == {1: (0, IMPLICIT), 3: (4, None)}


def test_the_length_we_take_is_that_of_the_settings(serve):
    with Peer(serve("maximum_pdu_length = 65536").port) as peer:
        assert peer.associate().maximum_length == 65536


def test_an_even_context_id_is_answered(server):
    """dcm4che's stgcmtscu sends 2."""
    with Peer(server.port) as peer:
        answer = peer.associate(associate_rq(context(2, VERIFICATION, IMPLICIT)))
        assert answer.contexts == {2: (0, IMPLICIT)}
        peer.send(p_data(value(2, 3, command(C_ECHO))))
        kind, body = peer.receive()
        assert (kind, body[4]) == (P_DATA, 2)
        assert statuses([(kind, body)]) == [0]


def test_even_and_odd_context_ids_keep_their_meaning(server):
    request = associate_rq(
        context(2, VERIFICATION, IMPLICIT),
        context(1, CT_STORAGE, IMPLICIT),
        context(255, WORKLIST, EXPLICIT),
        context(254, MPPS, JPEG),
    )
    with Peer(server.port) as peer:
        answer = peer.associate(request)
    assert answer.contexts == {
        2: (0, IMPLICIT),
        1: (3, None),
        255: (0, EXPLICIT),
        254: (4, None),
    }


BAD_REQUESTS = {
    "cut short": pdu(ASSOCIATE_RQ, bytes(20)),
    "empty": pdu(ASSOCIATE_RQ, b""),
    "no items": pdu(ASSOCIATE_RQ, associate_rq()[6:74]),
    "context without transfer syntax": associate_rq(context(1, WORKLIST)),
    "context without abstract syntax": associate_rq(
        item(0x20, b"\1\0\0\0" + item(0x40, IMPLICIT.encode()))
    ),
    "two abstract syntaxes": associate_rq(
        item(0x20, b"\1\0\0\0" + 2 * item(0x30, WORKLIST.encode()) + item(0x40, IMPLICIT.encode()))
    ),
    "context ID 0": associate_rq(context(0, WORKLIST, IMPLICIT)),
    "context ID twice": associate_rq(
        context(1, WORKLIST, IMPLICIT), context(1, VERIFICATION, IMPLICIT)
    ),
    "1000 contexts": associate_rq(
        *(context(n % 128 * 2 + 1, WORKLIST, IMPLICIT) for n in range(1000))
    ),
    "129 contexts": associate_rq(
        context(2, WORKLIST, IMPLICIT),
        *(context(n, WORKLIST, IMPLICIT) for n in range(1, 256, 2)),
    ),
    "empty context": associate_rq(item(0x20, b"")),
    "item past the end": associate_rq(struct.pack(">BxH", 0x20, 60000)),
    "no application context": pdu(
        ASSOCIATE_RQ, associate_rq()[6:].replace(item(0x10, b"1.2.840.10008.3.1.1.1"), b"")
    ),
    "no user information": pdu(ASSOCIATE_RQ, associate_rq()[6:].split(b"\x50\0")[0]),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_request_out_of_order_is_turned_away_at_once(quick_server, name):
    with Peer(quick_server.port) as peer:
        peer.send(BAD_REQUESTS[name])
        (end,) = peer.rest()
        assert end[0] in (ABORT, ASSOCIATE_RJ)
    echo_beside(quick_server.port)
    quick_server.settle()


def test_only_the_bit_of_protocol_version_1_is_looked_at(server):
    """PS3.8 Table 9-11."""
    with Peer(server.port) as peer:
        assert peer.associate(associate_rq(version=3)).contexts[1] == (0, IMPLICIT)


REJECTED = {
    "another called AE title": (associate_rq(called="ARCHIVE"), reject(1, 1, 7)),
    "our AE title in small letters": (associate_rq(called="minris"), reject(1, 1, 7)),
    "no called AE title": (associate_rq(called=""), reject(1, 1, 7)),
    "an unknown calling AE title": (associate_rq(calling="MRI9"), reject(1, 1, 3)),
    "a device in small letters": (associate_rq(calling="ct1"), reject(1, 1, 3)),
    "no calling AE title": (associate_rq(calling=""), reject(1, 1, 3)),
    "another application context": (associate_rq(name="1.2.840.10008.3.1.1.2"), reject(1, 1, 2)),
    "another protocol version": (associate_rq(version=2), reject(1, 2, 2)),
    "a maximum length of 1": (associate_rq(user=(maximum_length(1),)), reject(1, 2, 1)),
    "a maximum length of 1023": (associate_rq(user=(maximum_length(1023),)), reject(1, 2, 1)),
}


@pytest.mark.parametrize("name", REJECTED)
def test_what_is_not_for_us_is_rejected_with_its_reason(quick_server, name):
    """T-GEN-02, T-GEN-09."""
    request, rejection = REJECTED[name]
    for _ in range(2):  # decided, and remembered
        with Peer(quick_server.port) as peer:
            peer.send(request)
            assert peer.rest() == [rejection]
    quick_server.settle()


@pytest.mark.parametrize("title", ["MINRIS", " MINRIS", "MINRIS\0\0"])
def test_padding_is_no_part_of_an_ae_title(server, title):
    """T-GEN-09."""
    with Peer(server.port) as peer:
        peer.associate(associate_rq(called=title, calling=title.replace("MINRIS", "CT1")))
        assert peer.echo() == 0


def test_any_called_ae_title_is_taken_when_it_is_not_checked(serve):
    """T-GEN-02: when the check is on."""
    with Peer(serve("check_called_ae_title = no").port) as peer:
        peer.associate(associate_rq(called="ANYONE"))


def test_an_unknown_device_is_served_where_the_settings_say_so(serve):
    with Peer(serve("accept_unknown_devices = yes").port) as peer:
        peer.associate(associate_rq(calling="MRI9"))


@pytest.mark.parametrize("title", ["CT\n1", "CT\x1b[31m", "CT\xff", "CT\\1"])
def test_an_ae_title_cannot_write_lines_of_its_own_into_the_log(serve, caplog, title):
    inside = serve("accept_unknown_devices = yes")
    with Peer(inside.port) as peer:
        peer.send(associate_rq(calling=title))
        if peer.receive()[0] == ASSOCIATE_AC:
            peer.send(pdu(0x42))
            peer.rest()
    ours = [r.getMessage() for r in caplog.records if r.name == "minris"]
    assert all(text.isprintable() for text in ours)


def test_whom_we_turned_away_is_remembered_for_the_page_of_devices(server):
    with Peer(server.port) as peer:
        peer.send(associate_rq(calling="MRI9"))
        peer.rest()
    assert list(server.server.rejected) == [("MRI9", HOST)]


# What is remembered of a negotiation ------------------------------------------------------------


@pytest.fixture
def decided(serve, monkeypatch):
    """A server, with a list of the requests that were really negotiated."""
    inside, seen = serve(), []
    negotiate = inside.negotiator._negotiate

    def watched(request, called, calling):
        seen.append(calling)
        return negotiate(request, called, calling)

    monkeypatch.setattr(inside.negotiator, "_negotiate", watched)
    inside.seen = seen
    return inside


def test_a_request_is_negotiated_once(decided):
    for _ in range(3):
        with Peer(decided.port) as peer:
            assert peer.associate().contexts[1] == (0, IMPLICIT)
            assert peer.echo() == 0
    assert len(decided.seen) == 1


def test_what_is_not_served_is_named_in_the_log(server, caplog):
    """A class of ours in syntaxes that we do not have, one we do not serve, and many more."""
    caplog.set_level(logging.INFO, "minris")
    storage = [f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2", "4", "7", "1.2", "1.3")]
    proposed = [(MPPS, JPEG), (storage[0], IMPLICIT), (storage[0], EXPLICIT),
                (VERIFICATION, IMPLICIT), *((uid, IMPLICIT) for uid in storage[1:]),
                ("1.2.3\n4", IMPLICIT), ("2.25.4711", IMPLICIT)]  # fmt: skip
    contexts = [context(2 * n + 1, *one) for n, one in enumerate(proposed)]
    with associated(server.port, associate_rq(*contexts)) as peer:
        assert peer.release() == []
    [line] = [record.getMessage() for record in caplog.records if "not served" in record.msg]
    name, _, named = line.partition(" proposes what is not served here: ")
    assert name == "CT1@127.0.0.1"
    names = named.split(", ")
    assert names[:2] == [
        "Modality Performed Procedure Step SOP Class (no transfer syntax of ours)",
        "CT Image Storage",
    ]
    assert names[-1] == "and 2 more"
    assert len(names) == 7


def test_a_negotiation_is_remembered_for_its_address(decided):
    for source in (HOST, ELSEWHERE, HOST, ELSEWHERE):
        associated(decided.port, source=source).socket.close()
    assert [address for _, address, _ in decided.negotiator.known] == [HOST, ELSEWHERE]
    assert len(decided.seen) == 2


def test_a_negotiation_is_forgotten_with_the_access_rules(decided):
    associated(decided.port).socket.close()
    decided.access = changed = copy.copy(decided.access)
    changed.version, changed.by_title = changed.version + 1, {}
    with Peer(decided.port) as peer:
        peer.send(associate_rq())
        assert peer.rest() == [reject(1, 1, 3)]


def test_a_request_with_user_identity_is_never_remembered(decided):
    request = associate_rq(user=(identity(2, b"technologist", b"sesame"),))
    for _ in range(3):
        associated(decided.port, request).socket.close()
    assert len(decided.seen) == 3
    assert not decided.negotiator.known


def test_what_is_remembered_is_bounded(decided):
    def remember():
        for number in range(400):
            title = f"CT{number}"
            with contextlib.suppress(Rejection):
                decided.negotiator.decide(associate_rq(calling=title), HOST, decided.access)

    decided.call(remember)
    assert 0 < decided.negotiator.known.size <= decided.negotiator.REMEMBERED


NAMED_DEVICE = """
[dicom]
[device CT room]
ae_title = CT1
host = ct1.clinic.example
check_address = yes
"""


@pytest.fixture
def name_server(monkeypatch):
    """The addresses that names have, asked anew each time."""
    names, look_up = {}, socket.getaddrinfo

    def getaddrinfo(host, *arguments, **how):
        if host in names:
            return names[host]()
        return look_up(host, *arguments, **how)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    host_addresses.cache_clear()
    yield names
    host_addresses.cache_clear()


def test_a_rejection_lasts_no_longer_than_its_reason(tmp_path, name_server):
    """The name of a machine is looked up each minute: a wrong address is not for ever."""
    found = []
    name_server["ct1.clinic.example"] = lambda: [(0, 0, 0, "", (ip, 0)) for ip in found]
    with serving(tmp_path, NAMED_DEVICE) as inside:
        with Peer(inside.port) as peer:
            peer.send(associate_rq())
            assert peer.rest() == [reject(1, 1, 3)]
        found.append(HOST)
        host_addresses.cache_clear()  # a minute later
        with Peer(inside.port) as peer:
            peer.associate()


def test_a_slow_name_server_holds_up_nobody_else(tmp_path, name_server):
    """Nothing blocks in the loop."""
    answered = threading.Event()

    def slowly():
        answered.wait(5)
        raise socket.gaierror

    name_server["ct1.clinic.example"] = slowly
    with serving(tmp_path, NAMED_DEVICE) as inside, Peer(inside.port) as waiting:
        waiting.send(associate_rq())
        start = time.monotonic()
        try:
            with associated(inside.port, associate_rq(calling="US1"), source=ELSEWHERE) as peer:
                assert peer.echo() == 0
            assert time.monotonic() - start < BESIDE_S
        finally:
            answered.set()


def is_known(host=HOST):
    """The answer of a name server."""
    return [(0, 0, 0, "", (host, 0))]


def test_a_name_is_looked_up_once_a_call(tmp_path, name_server, monkeypatch):
    """Though a minute ends meanwhile, which the cache would count as another look-up."""
    threads, minutes = [], itertools.count(1)
    name_server["ct1.clinic.example"] = lambda: (
        threads.append(threading.current_thread()) or is_known()
    )
    monkeypatch.setattr("minris.upper_layer.server.this_minute", lambda: next(minutes))
    monkeypatch.setattr("minris.access.devices.this_minute", lambda: next(minutes))
    with serving(tmp_path, NAMED_DEVICE) as inside:
        for count in (1, 2):
            with Peer(inside.port) as peer:
                peer.associate()
            assert len(threads) == count
    assert all(thread.name.startswith("asyncio_") for thread in threads)


@pytest.mark.parametrize(
    "error", [socket.gaierror, UnicodeError, ValueError, RuntimeError, MemoryError]
)
def test_a_look_up_that_fails_is_a_rejection_and_no_broken_connection(tmp_path, name_server, error):
    def fail():
        raise error

    name_server["ct1.clinic.example"] = fail
    with serving(tmp_path, NAMED_DEVICE) as inside:
        with Peer(inside.port) as peer:
            peer.send(associate_rq())
            assert peer.rest() == [reject(1, 1, 3)]
        inside.settle()


def test_a_name_server_that_is_down_locks_no_known_machine_out(tmp_path, name_server):
    """The address that the name had last counts."""
    name_server["ct1.clinic.example"] = is_known
    with serving(tmp_path, NAMED_DEVICE) as inside:
        with Peer(inside.port) as peer:
            peer.associate()

        def fail():
            raise socket.gaierror

        name_server["ct1.clinic.example"] = fail
        host_addresses.cache_clear()  # a minute later
        with Peer(inside.port) as peer:
            peer.associate()


def test_a_look_up_without_an_answer_ends(tmp_path, name_server, monkeypatch):
    answered = threading.Event()
    name_server["ct1.clinic.example"] = lambda: answered.wait(peers.PATIENCE_S) and is_known()
    monkeypatch.setattr(AssociationServer, "LOOK_UP_SECONDS", 0.1)
    with serving(tmp_path, NAMED_DEVICE) as inside:
        try:
            with Peer(inside.port) as first, Peer(inside.port) as second:
                for peer in (first, second):
                    peer.send(associate_rq())
                assert [peer.rest() for peer in (first, second)] == [[reject(1, 1, 3)]] * 2
        finally:
            answered.set()


# Bad peers: the first table of the engine's measurements ----------------------------------------


def test_connections_that_close_at_once_lock_nobody_out(server):
    """A port scan, a TCP health check."""
    for _ in range(12):
        Peer(server.port).socket.close()
    echo_beside(server.port)
    server.settle()


def test_connections_that_close_at_once_are_no_complaint(server, caplog):
    for _ in range(12):
        Peer(server.port).socket.close()
    server.settle()
    assert caplog.messages == []


def test_peers_that_send_one_byte_and_stay_are_aborted(serve):
    inside = serve("pdu_timeout = 0.3")
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(Peer(inside.port)) for _ in range(12)]
        for peer in silent:
            peer.send(b"\1")
        echo_beside(inside.port)
        assert [peer.rest() for peer in silent] == [[ABORTED_BY_USER]] * 12
    inside.settle()


def test_a_peer_that_sends_nothing_is_left_when_its_time_is_over(serve):
    inside = serve("associate_timeout = 0.2")
    with Peer(inside.port) as peer:
        assert peer.rest() == []
    inside.settle()


@pytest.fixture(scope="module")
def tls_pair(tmp_path_factory):
    """A server's and a client's TLS settings with a certificate of their own."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command_line = [peers.openssl(), "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
    command_line += ["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=minris"]
    command_line += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command_line, check=True, capture_output=True)
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(certificate, key)
    theirs = ssl.create_default_context(cafile=str(certificate))
    theirs.check_hostname = False
    return ours, theirs


def test_a_silent_peer_on_the_tls_port_holds_up_no_other(serve, tls_pair):
    ours, theirs = tls_pair
    inside = serve("associate_timeout = 0.2", tls=ours)
    start = time.monotonic()
    with Peer(inside.port), associated(inside.port, tls=theirs) as peer:
        assert peer.echo() == 0
        assert time.monotonic() - start < BESIDE_S
        assert peer.release() == []


TLS_ENDS = {
    "one too many": lambda peer: None,
    "rejected": lambda peer: peer.send(associate_rq(calling="MRI9")),
    "garbage": lambda peer: peer.send(pdu(0x42)),
    "released": lambda peer: peer.send(associate_rq(), pdu(RELEASE_RQ)),
}


@pytest.mark.parametrize("end", TLS_ENDS)
def test_a_tls_peer_that_stays_after_its_end_is_left(serve, tls_pair, end):
    """The closing of TLS waits for the peer too, and not for ever."""
    ours, theirs = tls_pair
    most = 1 if end == "one too many" else 9
    inside = serve(f"associate_timeout = 0.3\nmaximum_pending = {most}", tls=ours)
    with contextlib.ExitStack() as stack:
        if most == 1:
            stack.enter_context(Peer(inside.port, tls=theirs))
        peer = stack.enter_context(Peer(inside.port, tls=theirs))
        TLS_ENDS[end](peer)
        inside.settle(3)


@pytest.mark.parametrize("kind", [*range(1, 8), 0x42])
@pytest.mark.parametrize("state", ["Sta2", "Sta6"])
def test_a_pdu_of_4_gib_is_aborted_at_its_header(quick_server, kind, state):
    with Peer(quick_server.port) as peer:
        if state == "Sta6":
            peer.associate()
        peer.send(struct.pack(">BxI", kind, 0xFFFFFFFF))
        (end,) = peer.rest()
        assert end[0] == ABORT
    quick_server.settle()


@contextlib.contextmanager
def measured_memory():
    """Gives a function for the bytes that are more now than they were, and the most there were."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield lambda: tuple(one - before for one in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()


def test_a_pdu_of_4_gib_is_not_swallowed(quick_server):
    with measured_memory() as grown, associated(quick_server.port) as peer:
        with contextlib.suppress(ConnectionError):
            peer.send(struct.pack(">BxI", P_DATA, 0xFFFFFFFF), *[bytes(1 << 16)] * 512)
        with contextlib.suppress(ConnectionError):
            peer.rest()
        quick_server.settle()
        assert grown()[1] < (32 << 20) + (4 << 20)  # what this test itself sends, and little more


def endless(size, pdus, values=None):
    """PDUs full of data set fragments of a size, none of them the last."""
    room = 16384 // (size + 6) if values is None else values
    return p_data(*[value(3, 0, bytes(size))] * room) * pdus


SMALL = "maximum_dataset_length = 65536\nmaximum_drained_length = 131072"


def test_fragments_that_are_never_the_last_end_in_an_abort(serve):
    inside = serve(SMALL)
    with associated(inside.port) as peer:
        peer.send(p_data(value(3, 3, FIND_COMMAND)))
        with contextlib.suppress(ConnectionError):
            peer.send(endless(1000, 12))
        assert is_abort(peer.rest()[-1])
    echo_beside(inside.port)
    inside.settle()


def test_empty_fragments_that_are_never_the_last_end_in_an_abort(serve):
    """They carry nothing, so no limit of bytes ends them."""
    inside = serve(SMALL)
    with associated(inside.port) as peer:
        peer.send(p_data(value(3, 3, FIND_COMMAND)))
        with contextlib.suppress(ConnectionError):
            for _ in range(256):
                peer.send(endless(0, 4))
        assert is_abort(peer.rest()[-1])
    inside.settle()


@pytest.mark.parametrize("size", [0, 2, 16000])
def test_a_data_set_costs_little_more_memory_than_its_bytes(serve, size):
    inside = serve("maximum_dataset_length = 4194304")
    one = endless(size, 1)
    with measured_memory() as grown, associated(inside.port) as peer:
        peer.send(p_data(value(3, 3, FIND_COMMAND)))
        with contextlib.suppress(ConnectionError):
            for _ in range((1 << 19) // len(one)):
                peer.send(one)
            peer.send(echo())  # out of turn: the abort shows that all before it was read
        assert is_abort(peer.rest(10)[-1])
        assert grown()[1] < 2 << 20
    inside.settle()


@pytest.fixture
def no_log():
    """pytest keeps log records, and with them the associations they speak of."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def test_memory_is_back_after_bad_peers(serve, no_log):
    inside = serve(SMALL + "\nassociate_timeout = 0.1")
    attack = [p_data(value(3, 3, FIND_COMMAND)), endless(1000, 12)]

    def misbehave():
        with associated(inside.port) as peer, contextlib.suppress(ConnectionError):
            peer.send(*attack)
            peer.rest()

    misbehave()
    inside.settle()
    with measured_memory() as grown:
        for _ in range(20):
            misbehave()
        inside.settle()
        gc.collect()
        assert grown()[0] < 200_000
    assert inside.in_memory() == 0


def test_memory_is_back_after_callers_that_are_rejected(server, no_log):
    """A machine with a wrong AE title asks every few seconds, for weeks."""
    for _ in range(50):
        with Peer(server.port) as peer:
            peer.send(associate_rq(called="ARCHIVE"))
            peer.rest()
    server.settle()
    assert server.in_memory() == 0


def nested(depth, explicit, undefined):
    """A Scheduled Procedure Step Sequence in a Scheduled Procedure Step Sequence in …"""
    data = b""
    for _ in range(depth):
        length = 0xFFFFFFFF if undefined else len(data)
        end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) if undefined else b""
        one = struct.pack("<HHI", 0xFFFE, 0xE000, length) + data + end
        length = 0xFFFFFFFF if undefined else len(one)
        end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0) if undefined else b""
        head = b"SQ\0\0" if explicit else b""
        data = struct.pack("<HH", 0x0040, 0x0100) + head + struct.pack("<I", length) + one + end
    return data


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
@pytest.mark.parametrize("undefined", [True, False], ids=["undefined length", "defined length"])
def test_nesting_1000_deep_is_a_failure_status(box, caplog, explicit, undefined):
    caplog.set_level(logging.DEBUG)
    syntax = EXPLICIT if explicit else IMPLICIT
    request = associate_rq(context(3, WORKLIST, syntax), context(5, MPPS, syntax), ECHO_CONTEXT)
    data = nested(1000, explicit, undefined)
    with associated(box.port, request) as peer:
        start = time.monotonic()
        peer.send(find(data, 1))
        assert statuses([peer.receive()]) == [0xA900]
        peer.send(n_create(data, "2.25.99", 2))
        assert statuses([peer.receive()])[0] in (0x0110, 0x0106, 0x0213)
        assert time.monotonic() - start < SOON_S
        assert peer.echo() == 0
    box.settle()


def test_fifty_idle_associations_cost_nothing(tmp_path):
    with running_alone(tmp_path) as alone, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(associated(alone.port)) for _ in range(50)]
        alone.come_to_rest()
        start = alone.cpu_s()
        threading.Event().wait(2)  # the length of the measurement
        assert alone.cpu_s() - start < 2 * 0.003
        assert [peer.echo() for peer in idle] == [0] * 50


def test_a_burst_of_a_hundred_clients_is_served(box):
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Peer(box.port)) for _ in range(100)]
        for client in clients:
            client.send(associate_rq(), echo())
        for client in clients:
            assert client.receive()[0] == ASSOCIATE_AC
            assert statuses([client.receive()]) == [0]
        assert time.monotonic() - start < SOON_S
    box.settle()


@pytest.mark.parametrize("hours", [1, -1])
def test_the_clock_may_be_set(serve, monkeypatch, hours):
    """Timers count on the monotonic clock."""
    inside, now = serve(), time.time
    with associated(inside.port) as peer:
        monkeypatch.setattr(time, "time", lambda: now() + hours * 3600)
        assert peer.echo() == 0
        with associated(inside.port) as other:
            assert other.echo() == 0
        assert peer.echo() == 0


# Limits: the second table -----------------------------------------------------------------------


def padded_echo(length):
    """A C-ECHO in a PDU whose length is given, the rest an Error Comment."""
    room = length - 6 - len(command(C_ECHO, x0902=b""))
    return p_data(value(1, 3, command(C_ECHO, x0902=b"x" * room)))


def test_a_pdu_of_our_maximum_length_is_taken(serve):
    with associated(serve("maximum_pdu_length = 4096").port) as peer:
        peer.send(padded_echo(4096))
        assert statuses([peer.receive()]) == [0]


def test_a_pdu_past_our_maximum_length_is_aborted(serve):
    with associated(serve("maximum_pdu_length = 4096").port) as peer:
        peer.send(padded_echo(4098))
        assert is_abort(peer.rest()[-1])


def test_a_command_set_of_the_limit_is_taken(server):
    comment = b"x" * (16384 - len(command(C_ECHO, x0902=b"")))
    with associated(server.port) as peer:
        peer.send(*map(p_data, fragments(command(C_ECHO, x0902=comment), 1, 1, 4096)))
        assert statuses([peer.receive()]) == [0]


def test_a_command_set_past_the_limit_is_aborted(server):
    comment = b"x" * (16386 - len(command(C_ECHO, x0902=b"")))
    with associated(server.port) as peer:
        peer.send(*map(p_data, fragments(command(C_ECHO, x0902=comment), 1, 1, 4096)))
        assert is_abort(peer.rest()[-1])
    server.settle()


@pytest.mark.parametrize("size", [0, 2])
def test_a_command_set_that_never_ends_is_aborted(serve, size):
    inside = serve("maximum_command_length = 1024")
    with associated(inside.port) as peer:
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                peer.send(p_data(*[value(1, 1, bytes(size))] * 2000))
        assert is_abort(peer.rest()[-1])
    inside.settle()


def text_element(tag, length):
    """An Implicit VR element with so many letters."""
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length) + b"A" * length


def in_pdus(number, set_, data):
    """A message whose data set comes in fragments of 16 KB."""
    return b"".join(map(p_data, [value(number, 3, set_), *fragments(data, number, 0, 16000)]))


def test_a_data_set_of_the_limit_is_handed_over(serve):
    inside = serve(SMALL)
    with associated(inside.port) as peer:
        peer.send(in_pdus(3, FIND_COMMAND, bytes(65536)))
        peer.receive()
    assert (len(inside.requests[0].data), inside.requests[0].too_large) == (65536, False)


def test_a_data_set_past_the_limit_is_read_over(serve):
    inside = serve(SMALL)
    with associated(inside.port) as peer:
        peer.send(in_pdus(3, FIND_COMMAND, bytes(65537)))
        peer.receive()
        assert peer.echo() == 0
    assert (inside.requests[0].data, inside.requests[0].too_large) == (None, True)
    inside.settle()


def test_a_performed_step_past_the_limit_is_0213_in_words(run_appliance):
    box = inside_of(run_appliance(f"[dicom]\n{SMALL}"))
    set_ = command(N_CREATE, 1, MPPS, has_data=True, x1000=b"2.25.4711\0")
    with associated(box.port) as peer:
        peer.send(in_pdus(5, set_, text_element(0x00400280, 70000)))
        ((fields, _),) = peer.responses()
        assert word(fields, 0x0900) == 0x0213
        assert b"larger" in fields[0x0902]
        assert peer.echo() == 0


def test_a_query_past_the_limit_is_a700_in_words(run_appliance):
    box = inside_of(run_appliance(f"[dicom]\n{SMALL}"))
    with associated(box.port) as peer:
        peer.send(in_pdus(3, FIND_COMMAND, text_element(0x00100010, 70000)))
        ((fields, _),) = peer.responses()
        assert word(fields, 0x0900) == 0xA700
        assert b"larger" in fields[0x0902]
        assert peer.echo() == 0


def test_a_data_set_past_what_is_read_over_is_aborted(serve):
    inside = serve(SMALL)
    with associated(inside.port) as peer:
        with contextlib.suppress(ConnectionError):
            peer.send(in_pdus(3, FIND_COMMAND, bytes(131073)))
        assert is_abort(peer.rest()[-1])
    inside.settle()


def test_data_sets_of_all_peers_together_are_bounded(serve):
    inside = serve()
    inside.server.intake.most = 100_000
    unfinished = p_data(value(3, 3, FIND_COMMAND), value(3, 0, bytes(60_000)))
    with associated(inside.port) as one, associated(inside.port) as other:
        one.send(unfinished)
        inside.until(lambda: inside.server.intake.held[""] == 60_000)
        other.send(unfinished)
        inside.until(
            lambda: any(
                a.assembler.request and a.assembler.request.too_large
                for a in inside.server.associations
            )
        )
        assert inside.server.intake.held[""] == 60_000
        one.send(p_data(value(3, 2, b"")))
        assert statuses([one.receive()]) == [0]
        other.send(p_data(value(3, 2, b"")))
        other.receive()
    assert [request.too_large for request in inside.requests] == [False, True]
    inside.settle()


def test_what_waits_for_its_turn_counts_until_it_is_answered(serve):
    """A peer that sends on while we work fills no memory: reading pauses after 1 MiB."""
    go_on = asyncio.Event()

    async def later(association, request):
        await go_on.wait()
        await answer(association, request)

    inside = serve(dispatch=later)
    one = in_pdus(3, FIND_COMMAND, bytes(400_000))
    with associated(inside.port) as peer:
        sender = threading.Thread(target=lambda: [peer.send(one) for _ in range(12)])
        sender.start()
        inside.until(lambda: any(a.paused for a in inside.server.associations))
        held = inside.call(lambda: inside.server.intake.held[HOST])
        assert 1 << 20 < held < 2 << 20
        inside.call(go_on.set)
        assert statuses([peer.receive() for _ in range(12)]) == [0] * 12
        sender.join()
    inside.settle()


def test_a_pdu_that_has_begun_must_end(serve):
    inside = serve("pdu_timeout = 0.2")
    with associated(inside.port) as peer:
        peer.send(echo()[:20])
        assert is_abort(peer.rest()[-1])
    inside.settle()


def test_single_bytes_do_not_prolong_a_pdu(server):
    """Its timer runs from the first byte on."""
    with associated(server.port) as peer:
        association = server.association
        peer.send(echo()[:20])
        server.until(lambda: len(association.buffer) == 20)
        due = server.call(lambda: association.pdu_timer.when())
        peer.send(echo()[20:21])
        server.until(lambda: len(association.buffer) == 21)
        assert server.call(lambda: association.pdu_timer.when()) == due


@pytest.mark.parametrize("first", [1, 6, 100])
def test_a_long_pdu_has_a_second_for_each_16_kib(server, first):
    with associated(server.port) as peer:
        association = server.association
        whole = p_data(value(3, 1, bytes(65536 - 6)))
        peer.send(whole[:first])
        server.until(lambda: association.buffer)
        peer.send(whole[first:200])
        server.until(lambda: len(association.buffer) == 200)
        left = server.call(lambda: association.pdu_timer.when() - server.loop.time())
        assert 8 < left <= 9


def test_the_next_pdu_has_its_own_time(server):
    with associated(server.port) as peer:
        association = server.association
        peer.send(echo()[:20])
        server.until(lambda: association.pdu_timer)
        first = server.call(lambda: association.pdu_timer.when())
        peer.send(echo()[20:], echo(2)[:20])
        server.until(lambda: association.pdu_timer and association.pdu_timer.when() > first)


def test_an_idle_association_is_aborted(serve):
    inside = serve("idle_timeout = 0.2")
    with associated(inside.port) as peer:
        assert peer.rest() == [ABORTED_BY_USER]
    inside.settle()


def test_an_association_is_not_idle_while_it_is_served(serve):
    held = Held()
    inside = serve("idle_timeout = 0.1", held)
    with associated(inside.port) as peer:
        peer.send(echo())
        association = inside.association
        inside.until(lambda: association.current)
        before = inside.loop.time()
        inside.until(lambda: inside.loop.time() > before + 0.35)
        inside.call(lambda: held.free.set())
        assert statuses([peer.receive()]) == [0]


def test_messages_keep_an_association_from_being_idle(serve):
    inside = serve("idle_timeout = 0.3")
    with associated(inside.port) as peer:
        start = inside.loop.time()
        for number in range(1, 6):
            inside.until(lambda: inside.loop.time() > start + 0.1 * number)
            assert peer.echo(number) == 0


def test_a_peer_that_takes_nothing_is_left(serve):
    inside = serve("send_timeout = 0.2", streaming(1000))
    with associated(inside.port, receive_buffer=4096) as deaf:
        deaf.send(find(IDENTIFIER))
        inside.until(lambda: inside.server.associations)
        inside.settle(5)


def test_a_peer_that_reads_slowly_is_not_left(serve):
    """The time for a blocked send begins anew when the peer has taken something."""
    inside = serve("send_timeout = 600", streaming(1000))
    with associated(inside.port, receive_buffer=4096) as slow:
        slow.send(find(IDENTIFIER))
        association = inside.association
        inside.until(lambda: not association.writable.is_set(), 5)
        slow.send(cancel())
        assert word(slow.responses()[-1][0], 0x0900) == 0xFE00
        inside.until(association.writable.is_set)
        assert inside.call(association.send_timer.cancelled)


async def leave_bytes_unsent(association, request):
    """Send until the peer takes no more, but less than makes us wait for it."""
    chunk = success(request, pending=True)
    there = True
    while there and not association.transport.get_write_buffer_size():
        there = await association.send((request.context, chunk, bytes(8000)))
        await asyncio.sleep(0)


ENDS = {
    "release": lambda peer: peer.send(pdu(RELEASE_RQ)),
    "abort": lambda peer: peer.send(pdu(ABORT)),
    "garbage": lambda peer: peer.send(pdu(0x42)),
    "half close": lambda peer: peer.socket.shutdown(socket.SHUT_WR),
    "silence": lambda peer: None,
}


@pytest.mark.parametrize("end", ENDS)
def test_a_peer_that_leaves_our_last_bytes_unread_is_left(serve, end):
    """Closing waits for what is unsent, and a peer that stays and does not read never takes it."""
    settings = "associate_timeout = 0.1\nsend_timeout = 0.2\nidle_timeout = 0.3"
    inside = serve(settings, leave_bytes_unsent)
    with associated(inside.port, receive_buffer=4096) as deaf:
        deaf.send(find(IDENTIFIER))
        association = inside.association
        inside.until(lambda: association.transport.get_write_buffer_size() > 0, 5)
        ENDS[end](deaf)
        inside.settle(3)


COUNTS = {
    "associations in all": "maximum_associations = 3",
    "associations from one address": "maximum_associations_per_address = 3",
}


@pytest.mark.parametrize("name", COUNTS)
def test_an_association_past_the_limit_is_rejected_as_transient(serve, name):
    """PS3.8 Table 9-21: result 2, source 3, reason 2 (local-limit-exceeded)."""
    inside = serve(COUNTS[name])
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(associated(inside.port))
        with Peer(inside.port) as peer:
            peer.send(associate_rq())
            assert peer.rest() == [reject(2, 3, 2)]
    inside.settle()
    echo_beside(inside.port)


@pytest.mark.parametrize("key", ["maximum_pending", "maximum_pending_per_address"])
def test_a_connection_past_the_limit_is_aborted(serve, key):
    inside = serve(f"{key} = 3")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(Peer(inside.port))
        with Peer(inside.port) as peer:
            assert peer.rest() == [ABORTED_BY_USER]
    inside.settle()
    echo_beside(inside.port)


def test_connections_that_wait_do_not_count_as_associations(serve):
    inside = serve("maximum_associations = 1\nmaximum_associations_per_address = 1")
    with Peer(inside.port), Peer(inside.port):
        echo_beside(inside.port)


def test_associations_do_not_count_as_connections_that_wait(serve):
    inside = serve("maximum_pending = 1\nmaximum_pending_per_address = 1")
    with associated(inside.port), associated(inside.port):
        echo_beside(inside.port)


def test_a_flood_of_connections_from_one_address_locks_out_no_other(serve):
    inside = serve("maximum_pending = 20\nmaximum_pending_per_address = 10")
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(Peer(inside.port, source=ELSEWHERE))
        echo_beside(inside.port)


def test_a_flood_of_associations_from_one_address_locks_out_no_other(serve):
    inside = serve("maximum_associations = 20\nmaximum_associations_per_address = 10")
    with contextlib.ExitStack() as stack:
        flood = [stack.enter_context(Peer(inside.port, source=ELSEWHERE)) for _ in range(60)]
        for peer in flood:
            peer.send(associate_rq())
        kinds = collections.Counter(peer.receive()[0] for peer in flood)
        assert kinds == {ASSOCIATE_AC: 10, ASSOCIATE_RJ: 50}
        echo_beside(inside.port)


def test_a_flood_of_wrong_callers_locks_out_no_other(serve):
    """Rejected, and they stay."""
    inside = serve("maximum_pending = 20\nmaximum_pending_per_address = 10")
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            peer = stack.enter_context(Peer(inside.port, source=ELSEWHERE))
            with contextlib.suppress(ConnectionError):
                peer.send(associate_rq(calling="MRI9"))
        echo_beside(inside.port)


def test_a_refused_caller_may_come_back_at_once(serve):
    """Who was turned away holds no place that a better caller of the same address could have."""
    inside = serve("maximum_associations_per_address = 3")
    with contextlib.ExitStack() as stack:
        good = [associated(inside.port) for _ in range(3)]
        turned_away = stack.enter_context(Peer(inside.port))
        turned_away.send(associate_rq())
        assert turned_away.receive() == reject(2, 3, 2)
        for peer in good:
            peer.release()
            peer.socket.close()
        inside.until(lambda: inside.server.counts["associated", HOST] == 0)


def test_counts_are_right_whatever_way_associations_end(serve):
    inside = serve("pdu_timeout = 0.1\nidle_timeout = 0.3\nassociate_timeout = 0.1")
    rng = random.Random(5)
    for _ in range(60):
        peer = Peer(inside.port, source=rng.choice([HOST, ELSEWHERE]))
        with contextlib.suppress(ConnectionError, TimeoutError):
            if rng.random() < 0.8:
                peer.send(associate_rq())
                peer.receive()
            peer.send(rng.choice([pdu(RELEASE_RQ), pdu(ABORT), pdu(0x42), echo(), b"\1", b""]))
            peer.receive(0.001)
        peer.socket.close()
    inside.settle(4)


# The log: one line for each peer and minute -----------------------------------------------------


def complaints(caplog, address=HOST):
    return [record for record in caplog.records if address in record.getMessage()]


def misbehaviours():
    """What a peer does wrong, by the limit it meets: settings, and what it does."""
    yield "wrong AE title", "", lambda port: _then(port, associate_rq(called="ARCHIVE"))
    yield "garbage", "", lambda port: _then(port, b"GET / HTTP/1.1\r\n\r\n")
    yield "garbage later", "", lambda port: _then(port, associate_rq(), pdu(0x42))
    yield "a large PDU", "", lambda port: _then(port, struct.pack(">BxI", 4, 1 << 31))
    yield "no request in time", "associate_timeout = 0.1", lambda port: _then(port)
    yield "half a PDU", "pdu_timeout = 0.1", lambda port: _then(port, b"\1")
    yield "idle", "idle_timeout = 0.1", lambda port: _then(port, associate_rq())


def _then(port, *sent):
    with Peer(port) as peer:
        peer.send(*sent)
        peer.rest()


@pytest.mark.parametrize(
    ("settings", "misbehave"),
    [one[1:] for one in misbehaviours()],
    ids=[one[0] for one in misbehaviours()],
)
def test_a_peer_that_meets_a_limit_makes_one_line_a_minute(serve, caplog, settings, misbehave):
    caplog.set_level(logging.INFO, "minris")
    inside = serve(settings)
    for _ in range(3):
        misbehave(inside.port)
    inside.settle()
    assert len(complaints(caplog)) == 1


def test_each_address_has_a_line_of_its_own(server, caplog):
    for source in (HOST, ELSEWHERE):
        with Peer(server.port, source=source) as peer:
            peer.send(pdu(0x42))
            peer.rest()
    assert len(complaints(caplog, HOST)) == len(complaints(caplog, ELSEWHERE)) == 1


def test_after_a_minute_the_log_says_how_many_more_there_were(server, caplog):
    def misbehave():
        with Peer(server.port) as peer:
            peer.send(pdu(0x42))
            peer.rest()

    for _ in range(4):
        misbehave()
    server.server.complaints.clock = lambda: time.monotonic() + 61
    caplog.clear()
    misbehave()
    assert caplog.messages[0] == "127.0.0.1: 3 more in a minute"
    assert len(caplog.messages) == 2


def test_a_rejection_says_why_in_the_log(server, caplog):
    with Peer(server.port) as peer:
        peer.send(associate_rq(calling="MRI9"))
        peer.rest()
    assert "'MRI9' is not a registered device" in caplog.text
    assert HOST in caplog.text


def test_a_good_day_makes_no_lines(server, caplog):
    caplog.set_level(logging.INFO, "minris")
    echo_beside(server.port)
    server.settle()
    assert caplog.messages == []


UNREADABLE = {
    "an AE title with a line feed": associate_rq(calling="CT\n1"),
    "a UID that is no ASCII": associate_rq(context(1, "1.2.840.ä", IMPLICIT)),
    "a version name with control characters": associate_rq(
        implementation=IMPLEMENTATION.replace(b"CTCONSOLE_31", b"CT\nCONSOLE\x1b1")
    ),
    "a UID that is none": associate_rq(context(1, "1.2.GE", IMPLICIT)),
    "half a request": pdu(ASSOCIATE_RQ, associate_rq()[6:200]),
}


def test_requests_that_cannot_be_read_fill_no_log(tmp_path):
    """Neither with our own lines nor with those of the libraries: a line of each kind, once."""
    with running_alone(tmp_path, "accept_unknown_devices = yes") as alone:
        before = alone.words()
        for _ in range(3):
            for request in UNREADABLE.values():
                with Peer(alone.port) as peer:
                    peer.send(request, pdu(ABORT))
                    peer.rest()
        lines = alone.words().removeprefix(before).splitlines()
    kinds = ("not an AE title", "proposes what is not served here: an invalid UID")
    assert [sum(kind in line for line in lines) for kind in kinds] == [1, 1], lines
    assert len(lines) == len(kinds), lines


# Peers of others --------------------------------------------------------------------------------


def test_echoscu_is_answered(appliance):
    """T-GEN-01."""
    assert peers.run_echoscu(appliance.port, "MINRIS", "CT1").exit_code == 0


def test_echoscu_with_128_contexts_of_38_syntaxes_is_answered(appliance):
    options = ["--propose-pc", "128", "--propose-ts", "38"]
    assert peers.run_echoscu(appliance.port, "MINRIS", "CT1", options=options).exit_code == 0


def test_echoscu_that_calls_another_is_rejected(appliance):
    """T-GEN-02."""
    done = peers.run_echoscu(appliance.port, "ARCHIVE", "CT1")
    assert done.exit_code != 0
    assert "Called AE Title Not Recognized" in done.log


def test_an_unknown_echoscu_is_rejected(appliance):
    done = peers.run_echoscu(appliance.port, "MINRIS", "MRI9")
    assert done.exit_code != 0
    assert "Calling AE Title Not Recognized" in done.log


@pytest.mark.parametrize("options", [["--abort"], ["--repeat", "50"], ["--max-pdu", "4096"]])
def test_echoscu_leaves_nothing_behind(box, options):
    assert peers.run_echoscu(box.port, "MINRIS", "CT1", options=options).exit_code == 0
    box.settle()


def test_dcmjs_dimse_is_answered(appliance):
    """T-GEN-01."""
    (line,) = peers.run_dimse(appliance.port, [{"op": "echo"}], calling="CT1")
    assert line["status"] == 0


def test_pynetdicom_is_answered(box):
    """T-GEN-01."""
    ae = AE("CT1")
    ae.add_requested_context(Verification)
    association = ae.associate(HOST, box.port, ae_title="MINRIS")
    assert association.send_c_echo().Status == 0
    association.release()
    assert association.is_released
    box.settle()


def test_pynetdicom_understands_our_rejection(appliance):
    """T-GEN-02. Asked of the PDU: in one of a hundred pynetdicom 3.0.4 calls a reject an abort."""
    received = []
    ae = AE("CT1")
    ae.add_requested_context(Verification)
    handlers = [(evt.EVT_PDU_RECV, lambda event: received.append(event.pdu))]
    association = ae.associate(HOST, appliance.port, ae_title="ARCHIVE", evt_handlers=handlers)
    assert not association.is_established
    assert received[0].reason_str == "Called AE title not recognised"


def test_pynetdicom_gets_its_extended_negotiation(appliance):
    asked = pynetdicom.pdu_primitives.SOPClassExtendedNegotiation()
    asked.sop_class_uid = ModalityWorklistInformationFind
    asked.service_class_application_information = b"\1\1\1"
    ae = AE("CT1")
    ae.add_requested_context(ModalityWorklistInformationFind, ExplicitVRLittleEndian)
    association = ae.associate(HOST, appliance.port, ae_title="MINRIS", ext_neg=[asked])
    association.release()
    assert association.acceptor.sop_class_extended == {WORKLIST: b"\1\1\0"}


# Garbage ----------------------------------------------------------------------------------------


def query(name="Wang*"):
    """What a CT asks for."""
    step, ds = Dataset(), Dataset()
    step.Modality, step.ScheduledStationAETitle = "CT", "CT1"
    step.ScheduledProcedureStepStartDate = "20260705"
    ds.PatientName, ds.PatientID, ds.StudyInstanceUID = name, "", ""
    ds.ScheduledProcedureStepSequence = [step]
    return ds


def performed(number):
    """What a CT reports when it begins."""
    scheduled, ds = Dataset(), Dataset()
    scheduled.StudyInstanceUID = f"2.25.{4000 + number}"
    for keyword in ("AccessionNumber", "RequestedProcedureID", "ScheduledProcedureStepID"):
        setattr(scheduled, keyword, "")
    ds.PatientName, ds.PatientID = "Li^Na", f"P{number:06}"
    ds.ScheduledStepAttributesSequence = [scheduled]
    ds.PerformedProcedureStepID = f"PPS{number}"
    ds.PerformedStationAETitle, ds.Modality = "CT1", "CT"
    ds.PerformedProcedureStepStartDate = "20260705"
    ds.PerformedProcedureStepStartTime = "093000"
    ds.PerformedProcedureStepStatus = "IN PROGRESS"
    return ds


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
def test_a_truncated_query_is_a_status_and_the_association_survives(box, explicit):
    """T-GEN-10."""
    syntax = EXPLICIT if explicit else IMPLICIT
    data = encode(query(), explicit)
    with associated(box.port, associate_rq(context(3, WORKLIST, syntax), ECHO_CONTEXT)) as peer:
        for length in range(1, len(data)):
            peer.send(find(data[:length], length))
            status = word(peer.responses()[-1][0], 0x0900)
            assert status in (0x0000, 0xA900), length
        assert peer.echo() == 0
    box.settle()


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
def test_a_truncated_performed_step_is_a_status_and_the_association_survives(box, explicit):
    """T-GEN-10."""
    syntax = EXPLICIT if explicit else IMPLICIT
    data = encode(performed(1), explicit)
    with associated(box.port, associate_rq(context(5, MPPS, syntax), ECHO_CONTEXT)) as peer:
        for length in range(1, len(data) - 30, 3):
            peer.send(n_create(data[:length], f"2.25.{length}", length))
            status = word(peer.responses()[-1][0], 0x0900)
            assert status & 0xFF00 == 0x0100 and status != 0, length
        assert peer.echo() == 0
    box.settle()


CONVERSATIONS = (
    (associate_rq(), echo(), pdu(RELEASE_RQ)),
    (associate_rq(), find(encode(query())), cancel(), pdu(RELEASE_RQ)),
    (associate_rq(), n_create(encode(performed(2)), "2.25.5"), echo(2), pdu(ABORT)),
    (REQUESTS["everything at once"], echo(), pdu(RELEASE_RQ)),
    (REQUESTS["IDs out of order"], find(encode(query()), 4, 255), pdu(RELEASE_RQ)),
    (associate_rq(context(2, VERIFICATION, IMPLICIT)), echo(), pdu(RELEASE_RQ)),
)
EDGES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\1", b"\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff")


def mutated(rng):
    """A conversation with a few things wrong in it."""
    sent = list(rng.choice(CONVERSATIONS))
    for _ in range(rng.randint(1, 3)):
        kind, at = rng.randrange(7), rng.randrange(len(sent))
        if kind == 0:
            sent.insert(at, rng.choice(rng.choice(CONVERSATIONS)))
        elif kind == 1 and len(sent) > 1:
            del sent[at]
        else:
            sent[at] = spoiled(sent[at], kind, rng)
    return b"".join(sent)


def spoiled(data, kind, rng):
    """Bytes with a byte changed, a stretch left out, an edge value put in, or the end cut off."""
    if not data:
        return data
    at = rng.randrange(len(data))
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + data[at + rng.randint(1, 8) :]
    if kind == 4:
        return data[:at] + rng.randbytes(rng.randint(1, 8)) + data[at:]
    edge = rng.choice(EDGES) if kind == 5 else rng.randbytes(1)
    return data[:at] + edge + data[at + len(edge) :]


TOLERANT = """
[dicom]
accept_unknown_devices = yes
check_called_ae_title = no
associate_timeout = 0.1
pdu_timeout = 0.1
idle_timeout = 0.1
maximum_pdu_length = 4096
"""


def fuzz(port, cases, seed):
    """Play mutated conversations; each must have its end in time, an abort or an answer before."""
    rng = random.Random(seed)
    for number in range(cases):
        sent = mutated(rng)
        with Peer(port) as peer:
            try:
                peer.send(sent)
                if rng.random() < 0.7:
                    peer.socket.shutdown(socket.SHUT_WR)
                peer.rest(5)
            except TimeoutError:
                raise AssertionError(f"case {number} of seed {seed} has no end") from None
            except OSError:
                continue  # reset while we were still sending


def fuzz_in_parallel(port, cases, seed, threads=8):
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        runs = [pool.submit(fuzz, port, cases // threads, seed + n) for n in range(threads)]
        for run in runs:
            run.result()


def test_mutated_conversations_leave_the_server_as_it_was(tmp_path, no_log):
    with serving(tmp_path, TOLERANT) as inside:
        fuzz_in_parallel(inside.port, 800, 20260705)
        inside.settle()
        echo_beside(inside.port)
        inside.settle()
        assert inside.in_memory() == 0


def test_mutated_conversations_leave_the_appliance_as_it_was(run_appliance, caplog):
    running = run_appliance(TOLERANT.replace("idle_timeout = 0.1", "idle_timeout = 0.3"))
    running.schedule(conftest.item())
    box = inside_of(running)
    fuzz_in_parallel(box.port, 80, 99)
    threads = threading.active_count()
    fuzz_in_parallel(box.port, 400, 7)
    box.settle(5)
    with associated(box.port) as peer:
        peer.send(find(encode(query(), explicit=True)))
        assert [word(fields, 0x0900) for fields, _ in peer.responses()] == [0xFF00, 0]
    assert threading.active_count() < threads + 10  # pools grow as they are needed
    errors = [r for r in caplog.records if r.name == "minris" and r.levelno >= logging.ERROR]
    assert [record.getMessage() for record in errors] == []


# Together ---------------------------------------------------------------------------------------


def work(port, number):
    """One performed step, begun and ended: its statuses."""
    end = Dataset()
    end.PerformedProcedureStepStatus = "DISCONTINUED"
    end.PerformedProcedureStepEndDate, end.PerformedProcedureStepEndTime = "20260705", "094500"
    uid = f"2.25.{8000 + number}"
    with associated(port) as peer:
        found = []
        for message in (n_create(encode(performed(number)), uid), n_set(encode(end), uid, 2)):
            peer.send(message)
            found.append(word(peer.responses()[-1][0], 0x0900))
        peer.release()
    return found


def ask(port):
    """One query: how many answers."""
    with associated(port) as peer:
        peer.send(find(encode(query(), explicit=True)))
        messages = peer.responses()
        assert word(messages[-1][0], 0x0900) == 0
        peer.release()
    return len(messages) - 1


def test_a_hundred_queries_beside_performed_steps_lose_nothing(appliance):
    """T-GEN-07."""
    appliance.schedule(*(conftest.item(f"Wang^Patient{n}") for n in range(10)))
    with concurrent.futures.ThreadPoolExecutor(108) as pool:
        asking = [pool.submit(ask, appliance.port) for _ in range(100)]
        working = [pool.submit(work, appliance.port, number) for number in range(40)]
        assert [one.result() for one in working] == [[0, 0]] * 40
        assert [one.result() for one in asking] == [10] * 100
    stored = appliance.read(lambda: PerformedProcedureStep.select().count())
    assert stored == 40
