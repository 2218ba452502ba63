"""A lean DICOM client on the standard library: associate, ask, count the answers, release.

Requests are encoded once, so a query costs a few socket calls and a scan of the answer, and the
same code drives every server under test. Data sets are Implicit VR Little Endian, the one syntax
that every SCP takes. All servers stand on 127.0.0.1 and are called BENCH.

A client's socket habits weigh more than the server's work, so there are three profiles:

    lean   an ordinary modern client: TCP_NODELAY, a message in one send, delayed acknowledgement
    split  sends as DCMTK does: command and data set in two sends, Nagle's algorithm on
    quick  lean, but acknowledges at once (TCP_QUICKACK): shows the server's own time
"""

import socket
import struct

HOST = "127.0.0.1"
CALLED = "BENCH"
PROFILES = ("lean", "split", "quick")
TIMEOUT_S = 120

VERIFICATION = "1.2.840.10008.1.1"
MODALITY_WORKLIST = "1.2.840.10008.5.1.4.31"
MPPS = "1.2.840.10008.3.1.2.3.3"
UPS_PUSH = "1.2.840.10008.5.1.4.34.6.1"
UPS_WATCH = "1.2.840.10008.5.1.4.34.6.2"
UPS_PULL = "1.2.840.10008.5.1.4.34.6.3"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
UPS_GLOBAL_SUBSCRIPTION = "1.2.840.10008.5.1.4.34.5"
IMPLEMENTATION = "2.25.20260101"
IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
CLASSES = (
    MODALITY_WORKLIST, VERIFICATION, MPPS, UPS_PUSH, UPS_WATCH, UPS_PULL, STORAGE_COMMITMENT,
)  # fmt: skip
CONTEXT_ID = {sop_class: 2 * index + 1 for index, sop_class in enumerate(CLASSES)}

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
RELEASE = struct.pack(">BxIxxxx", RELEASE_RQ, 4)
PDU_HEADER = struct.Struct(">BxI")
PDV_HEADER = struct.Struct(">IxB")  # length, (context), control
STATUS = struct.pack("<HHI", 0x0000, 0x0900, 2)
DATA_SET_TYPE = struct.pack("<HHI", 0x0000, 0x0800, 2)
NO_DATA_SET = b"\1\1"
PENDING = (0xFF00, 0xFF01)


class PeerError(Exception):
    """The peer rejected, aborted, hung up or answered something else than it should."""


# Encoding ---------------------------------------------------------------------------------------


def element(tag, value=b"", pad=b" "):
    """One Implicit VR element; a string is padded, an int becomes an unsigned short."""
    if isinstance(value, int):
        value = struct.pack("<H", value)
    elif isinstance(value, str):
        value = value.encode("ascii")
        value += pad * (len(value) % 2)
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


def message(sop_class, command, dataset=None):
    """A DIMSE message as its one or two PDUs; `command` is (element, value), without the group.

    Everything sent here fits the smallest PDU a server may ask for, so nothing is fragmented.
    """
    body = command_set({**command, 0x0800: NO_DATA_SET if dataset is None else 1})
    parts = [(3, body)] if dataset is None else [(3, body), (2, dataset)]
    return tuple(data_pdu(CONTEXT_ID[sop_class], *part) for part in parts)


def command_set(command):
    """A command set with its group length."""
    body = b"".join(element(tag, value, b"\0") for tag, value in sorted(command.items()))
    return element(0x00000000, struct.pack("<I", len(body))) + body


def data_pdu(context_id, control, data):
    """One P-DATA-TF PDU with one presentation data value."""
    value = struct.pack(">IBB", len(data) + 2, context_id, control) + data
    return PDU_HEADER.pack(P_DATA, len(value)) + value


def c_echo():
    """A C-ECHO request."""
    return message(VERIFICATION, {0x0002: VERIFICATION, 0x0100: 0x0030, 0x0110: 1})


def c_find(identifier, sop_class=MODALITY_WORKLIST):
    """A C-FIND request."""
    command = {0x0002: sop_class, 0x0100: 0x0020, 0x0110: 1, 0x0700: 0}
    return message(sop_class, command, identifier)


def n_create(instance_uid, dataset, sop_class=MPPS):
    """An N-CREATE request: of a performed procedure step, or of UPS_PUSH."""
    command = {0x0002: sop_class, 0x0100: 0x0140, 0x0110: 1, 0x1000: instance_uid}
    return message(sop_class, command, dataset)


def n_set(instance_uid, dataset):
    """An N-SET request of a performed procedure step."""
    return message(MPPS, {0x0003: MPPS, 0x0100: 0x0120, 0x0110: 1, 0x1001: instance_uid}, dataset)


def n_action(sop_class, instance_uid, action_type, dataset):
    """An N-ACTION request on a workitem, in the context of a SOP class (PS3.4 CC.3.1.1)."""
    command = {0x0003: UPS_PUSH, 0x0100: 0x0130, 0x0110: 1, 0x1001: instance_uid}
    return message(sop_class, {**command, 0x1008: action_type}, dataset)


def item(kind, body):
    """An item of an A-ASSOCIATE PDU."""
    return struct.pack(">BxH", kind, len(body)) + body


def associate(*sop_classes, calling="CT_1"):
    """An A-ASSOCIATE-RQ PDU that proposes the SOP classes."""
    body = struct.pack(">Hxx16s16s32x", 1, CALLED.ljust(16).encode(), calling.ljust(16).encode())
    body += item(0x10, b"1.2.840.10008.3.1.1.1")
    for sop_class in sop_classes:
        syntaxes = item(0x30, sop_class.encode()) + item(0x40, IMPLICIT_LITTLE_ENDIAN.encode())
        body += item(0x20, bytes([CONTEXT_ID[sop_class], 0, 0, 0]) + syntaxes)
    user = item(0x51, struct.pack(">I", 16384)) + item(0x52, IMPLEMENTATION.encode())
    body += item(0x50, user + item(0x55, CALLED.encode()))
    return PDU_HEADER.pack(ASSOCIATE_RQ, len(body)) + body


# Decoding ---------------------------------------------------------------------------------------


class Scanner:
    """Cuts what a peer sends into events: (PDU type, status of a finished message or the body).

    datasets  a list to keep the received data sets in, or None
    """

    def __init__(self, datasets=None):
        self.datasets = datasets
        self._rest = self._command = self._dataset = b""
        self._status = None

    def feed(self, chunk):
        """The events that `chunk` completes."""
        buffer = self._rest + chunk if self._rest else chunk
        events, start, end = [], 0, len(buffer)
        while end - start >= 6:
            kind, length = PDU_HEADER.unpack_from(buffer, start)
            stop = start + 6 + length
            if stop > end:
                break
            if kind == P_DATA:
                self._scan_values(buffer, start + 6, stop, events)
            else:
                events.append((kind, buffer[start + 6 : stop]))
            start = stop
        self._rest = buffer[start:]
        return events

    def _scan_values(self, buffer, start, stop, events):
        while start < stop:
            length, control = PDV_HEADER.unpack_from(buffer, start)
            end = start + 4 + length
            if control & 1:
                self._command += buffer[start + 6 : end]
                if control & 2 and not self._finish_command():
                    events.append((P_DATA, self._status))
            else:
                if self.datasets is not None:
                    self._keep(buffer[start + 6 : end], control & 2)
                if control & 2:
                    events.append((P_DATA, self._status))
            start = end

    def _finish_command(self):
        """Take the status of the command set; True if a data set follows."""
        command, self._command = self._command, b""
        at = command.index(STATUS) + 8
        self._status = int.from_bytes(command[at : at + 2], "little")
        at = command.index(DATA_SET_TYPE) + 8
        return command[at : at + 2] != NO_DATA_SET

    def _keep(self, fragment, last):
        self._dataset += fragment
        if last:
            self.datasets.append(self._dataset)
            self._dataset = b""


def items(body, position=68):
    """Kind and body of each item of an A-ASSOCIATE PDU, whose own begin at 68."""
    while position + 4 <= len(body):
        kind, length = struct.unpack_from(">BxH", body, position)
        yield kind, body[position + 4 : position + 4 + length]
        position += 4 + length


def accepted(body):
    """True if every proposed context of an A-ASSOCIATE-AC was accepted."""
    results = [context[2] for kind, context in items(body) if kind == 0x21]
    return bool(results) and not any(results)


def command_elements(command):
    """The elements of a command set, encoded, by their number in group 0000."""
    elements, position = {}, 0
    while position < len(command):
        _, number, length = struct.unpack_from("<HHI", command, position)
        elements[number] = command[position + 8 : position + 8 + length]
        position += 8 + length
    return elements


class Association:
    """One blocking association; as a context manager it is released at the end."""

    def __init__(self, port, request, profile="lean", datasets=None):
        self.profile = profile
        self.socket = socket.create_connection((HOST, port), TIMEOUT_S)
        if profile != "split":
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.scanner, self.events = Scanner(datasets), []
        try:
            self.socket.sendall(request)
            if not accepted(self._expect(ASSOCIATE_AC)):
                raise PeerError("presentation context refused")
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.release()
        self.socket.close()

    def _receive(self):
        chunk = self.socket.recv(262144)
        if not chunk:
            raise PeerError("connection closed by the peer")
        if self.profile == "quick":
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return self.scanner.feed(chunk)

    def _expect(self, kind):
        while not self.events:
            self.events = self._receive()
        found, body = self.events.pop(0)
        if found != kind:
            raise PeerError(f"PDU type {found} instead of {kind}: {body!r}")
        return body

    def ask(self, request):
        """Send a request; (number of pending responses, final status)."""
        self.send(request)
        return self.answer()

    def send(self, request):
        """Send a request."""
        for part in request if self.profile == "split" else (b"".join(request),):
            self.socket.sendall(part)

    def answer(self):
        """Wait for the answer; (number of pending responses, final status)."""
        matches = 0
        while True:
            for kind, status in self._receive():
                if kind != P_DATA:
                    raise PeerError(f"PDU type {kind} in place of an answer")
                if status not in PENDING:
                    return matches, status
                matches += 1

    def release(self):
        """Release the association and close the connection."""
        self.socket.sendall(RELEASE)
        self._expect(RELEASE_RP)
        self.socket.close()
