"""Section 17, DIMSE: door 1, with callers that make no mistakes and with those that do."""

import contextlib
import gc
import io
import random
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import peers
import peewee
import pytest
from conftest import item
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role
from pynetdicom.dsutils import decode, encode
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context

from minris.access.context import audit
from minris.dataset.elements import EMPTY
from minris.dimse.services import SEARCHED, SERVICES
from minris.standard.status import Refusal, Status
from minris.standard.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MODALITY_WORKLIST,
    MPPS,
    VERIFICATION,
)
from minris.store.models import (
    Audit,
    PerformedProcedureStep,
    PerformedScheduledStep,
    ScheduledProcedureStep,
)
from minris.upper_layer.association import Association
from minris.upper_layer.pdus import OPERATIONS

CLASSES = (VERIFICATION, MODALITY_WORKLIST, MPPS)
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(2, 8)
FIELDS = {name: number for number, name in OPERATIONS.items()}
NO_DATA_SET, DATA_SET = 0x0101, 0x0001


# A caller that makes its messages itself, to send what no library would.


class Refused(Exception):
    """No association: result, source and reason of A-ASSOCIATE-RJ."""


class Closed(Exception):
    """The connection is closed, or the association aborted."""


def associate_rq(calling, called, maximum):
    """An A-ASSOCIATE-RQ PDU; the context IDs are 1, 3, 5 … in the order of CLASSES."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    contexts = [build_context(uid, IMPLICIT_VR_LITTLE_ENDIAN) for uid in CLASSES]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = maximum
    implementation.implementation_class_uid = "2.25.20260705"
    primitive.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return pdu.encode()


def request(operation, sop_class, data=None, uid=None, number=1, field=None):
    """A message: its context ID, its command set and its data set."""
    requested = operation in ("N-SET", "N-GET", "N-ACTION", "N-DELETE")
    which = "Requested" if requested else "Affected"
    command = Dataset()
    setattr(command, f"{which}SOPClassUID", sop_class)
    command.CommandField = FIELDS.get(operation, field)
    command.MessageID = number
    command.CommandDataSetType = NO_DATA_SET if data is None else DATA_SET
    if uid:
        setattr(command, f"{which}SOPInstanceUID", uid)
    if operation == "C-FIND":
        command.Priority = 0
    context_id = 2 * CLASSES.index(sop_class) + 1
    return context_id, command_set(command), data


def command_set(command):
    """A command set as it is sent."""
    command.CommandGroupLength = len(encode(command, True, True))
    return encode(command, True, True)


def in_context(sop_class, message):
    """The message, but sent in the context of another SOP class."""
    return 2 * CLASSES.index(sop_class) + 1, *message[1:]


def values(context_id, command, data, size=16000):
    """A message as presentation data values, with fragments of at most `size` bytes."""
    return [
        *fragments(context_id, 1, command, size),
        *(fragments(context_id, 0, data, size) if data is not None else ()),
    ]


def fragments(context_id, kind, data, size):
    parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    for number, part in enumerate(parts, 1):
        last = 2 if number == len(parts) else 0
        yield struct.pack(">IBB", len(part) + 2, context_id, kind | last) + part


def p_data(*data_values):
    """A P-DATA-TF PDU of presentation data values."""
    return struct.pack(">BxI", P_DATA, sum(map(len, data_values))) + b"".join(data_values)


def pdus(message, size=16000):
    """A message with each presentation data value in a PDU of its own."""
    return b"".join(map(p_data, values(*message, size)))


class Wire:
    """An association over a bare socket, in Implicit VR Little Endian."""

    TIMEOUT_S = peers.PATIENCE_S

    def __init__(self, port, calling="CT1", called="MINRIS", maximum=16384):
        self.associate(port, associate_rq(calling, called, maximum))

    def associate(self, port, pdu):
        self.rest = []
        self.socket = socket.create_connection((peers.HOST, port), self.TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")
        self.socket.sendall(pdu)
        kind, body = self.pdu()
        if kind == ASSOCIATE_RJ:
            self.close()
            raise Refused(*body[1:])
        assert kind == ASSOCIATE_AC

    @classmethod
    def with_pdu(cls, port, pdu):
        """An association by an A-ASSOCIATE-RQ as it stands."""
        wire = cls.__new__(cls)
        wire.associate(port, pdu)
        return wire

    def pdu(self):
        """The next PDU: its type and body."""
        try:
            head = self.file.read(6)
            if len(head) < 6:
                raise Closed("the connection is closed")
            kind, length = struct.unpack(">BxI", head)
            body = self.file.read(length)
        except ConnectionError as error:
            raise Closed(str(error)) from None
        if kind == ABORT:
            raise Closed("aborted")
        return kind, body

    def value(self):
        """The next presentation data value: its control byte and fragment."""
        while not self.rest:
            kind, body = self.pdu()
            assert kind == P_DATA, kind
            at = 0
            while at < len(body):
                length, _, control = struct.unpack_from(">IBB", body, at)
                self.rest.append((control, body[at + 6 : at + 4 + length]))
                at += 4 + length
        return self.rest.pop(0)

    def answer(self):
        """The next message: its command set and data set."""
        command = decode(io.BytesIO(self.whole(1)), True, True)
        if command.CommandDataSetType == NO_DATA_SET:
            return command, None
        return command, decode(io.BytesIO(self.whole(0)), True, True)

    def whole(self, kind):
        parts, last = [], False
        while not last:
            control, part = self.value()
            assert control & 1 == kind
            parts.append(part)
            last = control & 2
        return b"".join(parts)

    def send(self, data):
        self.socket.sendall(data)

    def ask(self, message):
        """Send a message and take its one answer."""
        self.send(pdus(message))
        return self.answer()[0]

    def find(self, message):
        """Send a C-FIND: the identifiers, and the last command set."""
        self.send(pdus(message))
        found = []
        while True:
            command, identifier = self.answer()
            if command.Status not in (0xFF00, 0xFF01):
                return found, command
            found.append(identifier)

    def echo(self, number=1):
        """The status of a C-ECHO."""
        return self.ask(request("C-ECHO", VERIFICATION, number=number)).Status

    def release(self):
        self.send(struct.pack(">BxIxxxx", RELEASE_RQ, 4))
        assert self.pdu()[0] == RELEASE_RP
        self.close()

    def close(self):
        self.file.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            with contextlib.suppress(Closed, OSError):
                self.release()
        self.close()


# What the callers send.


def dataset(**texts):
    ds = Dataset()
    for keyword, value in texts.items():
        setattr(ds, keyword, value)
    return ds


def query(**step_keys):
    """The identifier of a worklist query."""
    step = dataset(
        ScheduledStationAETitle="",
        ScheduledProcedureStepStartDate="",
        ScheduledProcedureStepID="",
        Modality="CT",
        **step_keys,
    )
    keys = dataset(
        PatientName="", PatientID="", AccessionNumber="", StudyInstanceUID="",
        RequestedProcedureID="", ScheduledProcedureStepSequence=[step],
    )  # fmt: skip
    return encode(keys, True, True)


def creation(step=None, **changes):
    """The attribute list of an N-CREATE, all type 1 with the items of the worklist in it."""
    step = step or EMPTY
    which = dataset(
        StudyInstanceUID=step.get("StudyInstanceUID") or "2.25.8675309",
        AccessionNumber=step.get("AccessionNumber"),
        RequestedProcedureID=step.get("RequestedProcedureID"),
        ScheduledProcedureStepID=step.item("ScheduledProcedureStepSequence").get(
            "ScheduledProcedureStepID"
        ),
    )
    ds = dataset(
        Modality="CT",
        PatientName="Miller^Anna",
        PatientID=step.get("PatientID") or "P000042",
        PerformedStationAETitle="CT1",
        PerformedProcedureStepStartDate="20260705",
        PerformedProcedureStepStartTime="093112",
        PerformedProcedureStepStatus="IN PROGRESS",
        PerformedProcedureStepID="PPS0931",
        ScheduledStepAttributesSequence=[which],
    )
    ds.update(dataset(**changes))
    return encode(ds, True, True)


def ending(status="COMPLETED"):
    """The modification list of an N-SET that ends a step."""
    series = dataset(
        SeriesInstanceUID="2.25.27182818284",
        ProtocolName="Chest routine",
        PerformingPhysicianName="",
        OperatorsName="",
        SeriesDescription="",
        RetrieveAETitle="",
        ReferencedImageSequence=[],
        ReferencedNonImageCompositeSOPInstanceSequence=[],
    )
    ds = dataset(
        PerformedProcedureStepStatus=status,
        PerformedProcedureStepEndDate="20260705",
        PerformedProcedureStepEndTime="094205",
        PerformedSeriesSequence=[series],
    )
    return encode(ds, True, True)


def find_request(data=None, number=1):
    data = query() if data is None else data
    return request("C-FIND", MODALITY_WORKLIST, data, number=number)


def create_request(uid, data=None, number=1):
    data = creation() if data is None else data
    return request("N-CREATE", MPPS, data, uid, number)


def set_request(uid, data=None, number=1):
    data = ending() if data is None else data
    return request("N-SET", MPPS, data, uid, number)


def performed():
    """{SOP Instance UID: state} of all performed steps; for appliance.read."""
    return {row.sop_instance_uid: row.status for row in PerformedProcedureStep.select()}


def kept():
    """All bytes of all performed and scheduled steps; for appliance.read."""
    models = (PerformedProcedureStep, ScheduledProcedureStep)
    return [{**row.__data__, "data": bytes(row.data)} for model in models for row in model.select()]


@pytest.fixture
def wire(appliance):
    with Wire(appliance.port) as association:
        yield association


# Verification.


def test_dcmtk_is_echoed(appliance):
    """T-GEN-01."""
    assert peers.run_echoscu(appliance.port, "MINRIS", "CT1").exit_code == 0


def test_dcmjs_is_echoed(appliance):
    """T-GEN-01."""
    [answer] = peers.run_dimse(appliance.port, [{"op": "echo"}], calling="US1")
    assert answer["status"] == 0x0000


def test_pynetdicom_is_echoed(appliance):
    """T-GEN-01."""
    ae = AE("DX1")
    ae.add_requested_context(VERIFICATION)
    association = ae.associate(peers.HOST, appliance.port, ae_title="MINRIS")
    assert association.send_c_echo().Status == 0x0000
    association.release()


def test_an_echo_is_answered_with_its_message_id(wire):
    answer = wire.ask(request("C-ECHO", VERIFICATION, number=4711))
    assert (answer.CommandField, answer.MessageIDBeingRespondedTo) == (0x8030, 4711)
    assert answer.AffectedSOPClassUID == VERIFICATION


# Who may call.


def refusal_of(port, calling="CT1", called="MINRIS"):
    """Result, source and reason of a rejected association."""
    with pytest.raises(Refused) as refused:
        Wire(port, calling, called)
    return refused.value.args


def test_a_call_to_another_title_is_rejected(appliance):
    """T-GEN-02."""
    assert refusal_of(appliance.port, called="PACS") == (1, 1, 7)


def test_dcmtk_reads_that_it_called_another_title(appliance):
    """T-GEN-02."""
    log = peers.run_echoscu(appliance.port, "PACS", "CT1").log
    assert "Called AE Title Not Recognized" in log


def test_a_call_to_another_title_is_taken_where_that_is_not_checked(run_appliance):
    port = run_appliance("[dicom]\ncheck_called_ae_title = no").port
    with Wire(port, called="PACS") as wire:
        assert wire.echo() == 0x0000


def test_an_unknown_caller_is_rejected(appliance):
    assert refusal_of(appliance.port, calling="CT9") == (1, 1, 3)


def test_dcmtk_reads_that_it_is_not_known(appliance):
    log = peers.run_echoscu(appliance.port, "MINRIS", "CT9").log
    assert "Calling AE Title Not Recognized" in log


def test_an_unknown_caller_is_taken_where_that_is_allowed(run_appliance):
    port = run_appliance("[dicom]\naccept_unknown_devices = yes").port
    with Wire(port, calling="CT9") as wire:
        assert wire.echo() == 0x0000


@pytest.mark.parametrize("calling", ["ct1", "Ct1"])
def test_a_caller_in_other_case_is_another_caller(appliance, calling):
    """T-GEN-09."""
    assert refusal_of(appliance.port, calling=calling) == (1, 1, 3)


def test_our_title_in_other_case_is_another_title(appliance):
    """T-GEN-09."""
    assert refusal_of(appliance.port, called="minris") == (1, 1, 7)


def with_titles(called, calling):
    """An A-ASSOCIATE-RQ with the 16 bytes of each title as given."""
    pdu = associate_rq("CT1", "MINRIS", 16384)
    assert pdu[10:16] == b"MINRIS"
    return pdu[:10] + called + calling + pdu[42:]


TITLES = {
    "trailing spaces": (b"MINRIS          ", b"CT1             "),
    "leading spaces": (b"    MINRIS      ", b"             CT1"),
    "trailing NULs": (b"MINRIS\0\0\0\0\0\0\0\0\0\0", b"CT1\0\0\0\0\0\0\0\0\0\0\0\0\0"),
}


@pytest.mark.parametrize("padding", TITLES)
def test_padding_of_a_title_does_not_count(appliance, padding):
    """T-GEN-09."""
    with Wire.with_pdu(appliance.port, with_titles(*TITLES[padding])) as wire:
        assert wire.echo() == 0x0000


def test_a_title_of_spaces_alone_is_rejected(appliance):
    pdu = with_titles(b"MINRIS".ljust(16), b" " * 16)
    with pytest.raises(Refused) as refused:
        Wire.with_pdu(appliance.port, pdu)
    assert refused.value.args == (1, 1, 3)


def test_padding_in_config_does_not_count(run_appliance):
    """T-GEN-09."""
    running = run_appliance("[dicom]\nae_title = MINRIS  \n[device MR room]\nae_title = MR1  ,")
    with Wire(running.port, calling="MR1") as wire:
        assert wire.echo() == 0x0000


def associations_alive(appliance):
    """How many association objects of the appliance are in memory."""
    gc.collect()
    server = appliance.appliance.associations
    return sum(isinstance(o, Association) and o.server is server for o in gc.get_objects())


def test_a_device_that_is_rejected_again_and_again_leaves_nothing_behind(appliance):
    for _ in range(20):
        refusal_of(appliance.port, calling="CT9")
    wait_until(lambda: not appliance.appliance.associations.associations)
    assert associations_alive(appliance) <= 2


def wait_until(condition, timeout_s=peers.PATIENCE_S):
    """Return when a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        threading.Event().wait(0.02)


# Presentation contexts and roles, with pynetdicom as the caller.


@contextlib.contextmanager
def proposing(appliance, *contexts, roles=()):
    """An association of pynetdicom that proposes (abstract syntax, transfer syntaxes)."""
    ae = AE("CT1")
    for uid, syntaxes in contexts:
        ae.add_requested_context(uid, syntaxes)
    association = ae.associate(
        peers.HOST, appliance.port, ae_title="MINRIS", ext_neg=list(roles) or None
    )
    assert association.is_established
    peers.leave_answers(association)
    yield association
    association.release()


LITTLE_ENDIAN = [IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN]


def test_an_unknown_abstract_syntax_is_rejected_and_the_others_work(appliance):
    """T-GEN-03."""
    contexts = [(STUDY_ROOT_FIND, LITTLE_ENDIAN), (VERIFICATION, LITTLE_ENDIAN)]
    with proposing(appliance, *contexts) as association:
        [rejected] = association.rejected_contexts
        assert (rejected.abstract_syntax, rejected.result) == (STUDY_ROOT_FIND, 3)
        assert association.send_c_echo().Status == 0x0000


def test_a_context_without_a_little_endian_syntax_is_rejected(appliance):
    contexts = [
        (MPPS, [EXPLICIT_VR_BIG_ENDIAN]),
        (VERIFICATION, LITTLE_ENDIAN),
    ]
    with proposing(appliance, *contexts) as association:
        [rejected] = association.rejected_contexts
        assert (rejected.abstract_syntax, rejected.result) == (MPPS, 4)


@pytest.mark.parametrize("sop_class", sorted({service.sop_class for service in SERVICES}))
@pytest.mark.parametrize("syntax", LITTLE_ENDIAN)
def test_each_class_is_served_in_each_little_endian_syntax(appliance, sop_class, syntax):
    """T-GEN-04."""
    with proposing(appliance, (sop_class, [syntax])) as association:
        [accepted] = association.accepted_contexts
        assert accepted.transfer_syntax == [syntax]


def roles_of(association):
    """{SOP class: (SCU, SCP)} of the role items in the answer."""
    items = association.acceptor.role_selection
    return {uid: (item.scu_role, item.scp_role) for uid, item in items.items()}


ROLES = [(True, True), (True, False), (False, True)]


@pytest.mark.parametrize("proposed", ROLES)
def test_a_role_is_not_granted_that_was_not_proposed(appliance, proposed):
    """T-GEN-05."""
    role = build_role(MPPS, scu_role=proposed[0], scp_role=proposed[1])
    contexts = [(MPPS, LITTLE_ENDIAN), (VERIFICATION, LITTLE_ENDIAN)]
    with proposing(appliance, *contexts, roles=[role]) as association:
        granted = roles_of(association).get(MPPS, (False, False))
    assert not any(answer and not wanted for answer, wanted in zip(granted, proposed, strict=True))


def test_a_modality_that_proposes_both_roles_may_be_user(appliance):
    """T-GEN-05."""
    role = build_role(MPPS, scu_role=True, scp_role=True)
    with proposing(appliance, (MPPS, LITTLE_ENDIAN), roles=[role]) as association:
        assert roles_of(association)[MPPS][0] is True
        [accepted] = association.accepted_contexts
        assert accepted.as_scu


def test_no_role_is_answered_where_none_was_proposed(appliance):
    """T-GEN-06."""
    contexts = [(uid, LITTLE_ENDIAN) for uid in CLASSES]
    with proposing(appliance, *contexts) as association:
        assert roles_of(association) == {}


# What is no service.

UNKNOWN_OPERATIONS = [
    ("N-DELETE", MPPS),
    ("N-ACTION", MPPS),
    ("N-EVENT-REPORT", MPPS),
    ("N-GET", MPPS),
    ("C-FIND", MPPS),
    ("C-STORE", MODALITY_WORKLIST),
    ("C-MOVE", MODALITY_WORKLIST),
    ("N-CREATE", MODALITY_WORKLIST),
    ("C-FIND", VERIFICATION),
    ("C-ECHO", MODALITY_WORKLIST),
]


@pytest.mark.parametrize(("operation", "sop_class"), UNKNOWN_OPERATIONS)
def test_an_operation_that_is_not_of_its_class_is_answered_0211(wire, operation, sop_class):
    answer = wire.ask(request(operation, sop_class, uid="2.25.1"))
    assert (answer.Status, answer.CommandField) == (0x0211, FIELDS[operation] | 0x8000)
    assert wire.echo() == 0x0000


def test_a_command_that_nobody_knows_is_answered_0211(wire):
    answer = wire.ask(request("", MPPS, field=0x0999))
    assert (answer.Status, answer.CommandField) == (0x0211, 0x8999)


def test_a_data_set_of_an_operation_that_is_not_served_is_read_over(wire):
    answer = wire.ask(request("C-STORE", MODALITY_WORKLIST, creation(), "2.25.1"))
    assert answer.Status == 0x0211
    assert wire.echo() == 0x0000


@pytest.mark.parametrize("operation", ["N-CREATE", "N-SET"])
def test_an_n_service_of_another_class_than_its_context_is_answered_0118(wire, operation):
    message = in_context(MODALITY_WORKLIST, request(operation, MPPS, uid="2.25.1"))
    answer = wire.ask(message)
    assert answer.Status == 0x0118
    assert wire.echo() == 0x0000


@pytest.mark.parametrize(
    ("operation", "sop_class"),
    [("C-FIND", MODALITY_WORKLIST), ("C-ECHO", VERIFICATION)],
)
def test_a_c_service_of_another_class_than_its_context_is_answered_0122(wire, operation, sop_class):
    """PS3.7 9.1.2.1.5, 9.1.5.1.4: C-services refuse a SOP class by 0122, not by 0118."""
    answer = wire.ask(in_context(MPPS, request(operation, sop_class)))
    assert answer.Status == 0x0122


def test_a_message_without_its_class_is_answered(wire):
    command = dataset(CommandField=0x0120, MessageID=1, CommandDataSetType=NO_DATA_SET)
    answer = wire.ask((5, command_set(command), None))
    assert answer.Status in (0x0118, 0x0212)
    assert "None" not in answer.get("ErrorComment", "")


def test_an_error_of_ours_is_0110_and_says_no_more(appliance, wire, caplog):
    """What went wrong is in the log with its traceback, and nothing of it is kept."""

    def broken(ctx, uid, *data):
        audit(ctx, "half done", uid)
        raise KeyError("inner secret")

    dimse = appliance.appliance.associations.dispatch.__self__
    key = MPPS, "N-SET"
    dimse.services[key] = dimse.services[key]._replace(core=broken)
    answer = wire.ask(set_request("2.25.1"))
    assert answer.Status == 0x0110
    assert "secret" not in answer.ErrorComment
    assert "inner secret" in caplog.text
    assert appliance.read(lambda: list(Audit.select().where(Audit.what == "half done"))) == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyError("inner secret"), 0xC000),
        (peewee.DatabaseError("database disk image is malformed"), 0xC000),
        (Refusal(Status.PROCESSING_FAILURE, "It is not so"), 0xC000),
        (Refusal(Status.INVALID_ATTRIBUTE_VALUE, "It is not so"), 0xC000),
        (Refusal(Status.RESOURCE_LIMITATION, "The disk is full"), 0xA700),
        (Refusal(Status.IDENTIFIER_DOES_NOT_MATCH, "It is not so"), 0xA900),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Exception) else f"{one:04X}",
)
def test_a_query_fails_with_a_status_that_c_find_has(appliance, wire, monkeypatch, error, status):
    """PS3.4 C.4.1.1.4, K.4.1.1.4: an error of ours is Cxxx with a comment, never 0110."""

    def broken(ctx, search, *rest):
        yield from ()
        raise error

    dimse = appliance.appliance.associations.dispatch.__self__
    key = MODALITY_WORKLIST, "C-FIND"
    monkeypatch.setitem(SEARCHED, broken, SEARCHED[dimse.services[key].core])
    dimse.services[key] = dimse.services[key]._replace(core=broken)
    found, answer = wire.find(find_request())
    assert (found, answer.Status) == ([], status)
    assert answer.ErrorComment
    assert "secret" not in answer.ErrorComment


# Data sets that cannot be read.


def nested(depth):
    """A data set with sequences in sequences, of undefined length."""
    head = struct.pack("<HHI", 0x0040, 0x0100, 0xFFFFFFFF)
    item_head = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    item_end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return (head + item_head) * depth + (item_end + end) * depth


UNREADABLE = {
    "cut in an element": creation()[:-3],
    "longer than it is": struct.pack("<HHI", 0x0010, 0x0010, 4711) + b"Miller^Anna ",
    "random bytes": random.Random(5).randbytes(500),
    "a delimiter alone": struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
    "a command element": struct.pack("<HHIH", 0x0000, 0x0900, 2, 0),
    "undefined length of a text": struct.pack("<HHI", 0x0010, 0x0010, 0xFFFFFFFF) + b"Miller",
    "one byte": b"\0",
    "nested a thousand deep": nested(1000),
}


@pytest.mark.parametrize("operation", ["N-CREATE", "N-SET"])
@pytest.mark.parametrize("what", UNREADABLE)
def test_a_data_set_that_cannot_be_read_fails_its_message_alone(appliance, wire, operation, what):
    """T-GEN-10."""
    assert wire.ask(create_request("2.25.1")).Status == 0x0000
    before = appliance.read(kept)
    uid = {"N-CREATE": "2.25.2", "N-SET": "2.25.1"}[operation]
    answer = wire.ask(request(operation, MPPS, UNREADABLE[what], uid))
    assert answer.Status == 0x0110
    assert answer.ErrorComment.startswith("Cannot decode the data set")
    assert appliance.read(kept) == before
    assert wire.ask(set_request("2.25.1")).Status == 0x0000


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_identifier_that_cannot_be_read_finds_nothing(appliance, wire, what):
    """T-GEN-10: never "everything"."""
    appliance.schedule(item())
    found, answer = wire.find(find_request(UNREADABLE[what]))
    assert found == []
    assert answer.Status == 0xA900 or answer.Status >> 12 == 0xC
    assert wire.echo() == 0x0000


def test_a_creation_that_is_cut_anywhere_fails(appliance, wire):
    """T-GEN-10: at whichever byte the data set ends."""
    whole = creation()
    answers = {
        wire.ask(create_request(f"2.25.{cut}", whole[:cut])).Status for cut in range(len(whole))
    }
    assert answers == {0x0110, 0x0120}
    assert appliance.read(performed) == {}
    assert wire.ask(create_request("2.25.4711", whole)).Status == 0x0000


@pytest.mark.parametrize("seed", range(4))
def test_a_creation_with_bytes_changed_is_answered_in_words(wire, seed):
    """T-GEN-10: by its own status, not by an error of ours."""
    chance, whole = random.Random(seed), creation()
    for number in range(100):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        answer = wire.ask(create_request(f"2.25.{number}", bytes(changed)))
        assert "Internal error" not in answer.get("ErrorComment", "")
    assert wire.echo() == 0x0000


@pytest.mark.parametrize("seed", range(4))
def test_a_query_with_bytes_changed_is_answered_in_words(appliance, wire, seed):
    """T-GEN-10: by its own status, not by an error of ours."""
    appliance.schedule(item())
    chance, whole = random.Random(seed), query()
    for _ in range(100):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        _, answer = wire.find(find_request(bytes(changed)))
        assert "Internal error" not in answer.get("ErrorComment", "")
    assert wire.echo() == 0x0000


def test_nesting_within_the_limit_is_read(appliance, wire):
    inner = dataset(CodeValue="CHEST", CodingSchemeDesignator="99LAKESIDE", CodeMeaning="Chest")
    for _ in range(8):
        inner = dataset(ContentSequence=[inner])
    data = creation(ProcedureCodeSequence=[inner])
    assert wire.ask(create_request("2.25.1", data)).Status == 0x0000


# Data sets that are too large.

SMALL = "[dicom]\nmaximum_dataset_length = 65536\nmaximum_drained_length = 131072"


@pytest.fixture
def small(run_appliance):
    """An appliance that takes data sets of 64 KiB and reads over twice as much."""
    return run_appliance(SMALL)


def padded(data, length):
    """The data set with a private element that makes it so long."""
    size = length - len(data) - 8
    return data + struct.pack("<HHI", 0x0071, 0x1001, size) + bytes(size)


@pytest.mark.parametrize("operation", ["N-CREATE", "N-SET"])
def test_a_data_set_past_the_limit_is_answered_0213(small, operation):
    with Wire(small.port) as wire:
        wire.ask(create_request("2.25.1"))
        before = small.read(kept)
        uid = {"N-CREATE": "2.25.2", "N-SET": "2.25.1"}[operation]
        data = {"N-CREATE": creation(), "N-SET": ending()}[operation]
        answer = wire.ask(request(operation, MPPS, padded(data, 65538), uid))
        assert answer.Status == 0x0213
        assert "larger" in answer.ErrorComment
        assert small.read(kept) == before
        assert wire.ask(set_request("2.25.1")).Status == 0x0000


def test_an_identifier_past_the_limit_is_answered_a700(small):
    small.schedule(item())
    with Wire(small.port) as wire:
        found, answer = wire.find(find_request(padded(query(), 65538)))
        assert (found, answer.Status) == ([], 0xA700)
        assert len(wire.find(find_request())[0]) == 1


def test_a_data_set_at_the_limit_is_taken(small):
    with Wire(small.port) as wire:
        data = padded(creation(), 65536)
        assert wire.ask(create_request("2.25.1", data)).Status == 0x0000


def test_a_data_set_past_what_is_read_over_ends_the_association(small):
    with Wire(small.port) as wire, Wire(small.port) as beside:
        with pytest.raises(Closed):
            wire.ask(create_request("2.25.1", padded(creation(), 140000)))
        assert beside.echo() == 0x0000


def test_what_was_read_over_is_forgotten(small):
    with Wire(small.port) as wire:
        for number in range(10):
            answer = wire.ask(create_request(f"2.25.{number}", padded(creation(), 100000)))
            assert answer.Status == 0x0213
        assert +small.appliance.associations.intake.held == {}


def test_long_questions_of_a_registered_device_are_not_kept(appliance, wire):
    """Different ones of 3 MB each: neither answers, nor keys, nor the trace grow with them."""
    for number in range(3):
        keys = Dataset()
        keys.PatientName, keys.TextValue = "", f"{number}".ljust(3_000_000)
        found, answer = wire.find(find_request(encode(keys, True, True)))
        assert (found, answer.Status) == ([], 0x0000)
    dimse = appliance.appliance.dimse
    assert not dimse.finder.recent
    assert not dimse.finder.cache.searches
    assert wire.echo() == 0x0000  # what was before it has ended
    traced = dimse.queries.take()
    assert sum(len(one) for line in traced for one in line if isinstance(one, bytes)) < 1000
    assert +appliance.appliance.associations.intake.held == {}


# Messages in pieces.


@pytest.mark.parametrize("size", [1, 2, 7, 100, 1000])
def test_fragments_may_be_of_any_size(wire, size):
    wire.send(pdus(create_request("2.25.1"), size))
    assert wire.answer()[0].Status == 0x0000


def test_a_pdu_may_come_byte_by_byte(wire):
    for byte in pdus(request("C-ECHO", VERIFICATION)):
        wire.send(bytes((byte,)))
    assert wire.answer()[0].Status == 0x0000


def test_command_and_data_set_may_stand_in_one_pdu(wire):
    wire.send(p_data(*values(*create_request("2.25.1"))))
    assert wire.answer()[0].Status == 0x0000


def test_all_fragments_of_a_message_may_stand_in_one_pdu(wire):
    wire.send(p_data(*values(*create_request("2.25.1"), size=10)))
    assert wire.answer()[0].Status == 0x0000


def test_the_last_fragment_may_be_empty(wire):
    context_id, command, data = create_request("2.25.1")
    parts = values(context_id, command, data)
    open_end = struct.pack(">IBB", len(data) + 2, context_id, 0) + data
    empty_end = struct.pack(">IBB", 2, context_id, 2)
    wire.send(p_data(parts[0]) + p_data(open_end) + p_data(empty_end))
    assert wire.answer()[0].Status == 0x0000


def test_the_end_of_a_pdu_and_the_next_may_come_in_one_segment(wire):
    both = pdus(request("C-ECHO", VERIFICATION, number=1))
    both += pdus(request("C-ECHO", VERIFICATION, number=2))
    middle = len(both) // 2
    wire.send(both[:middle])
    wire.send(both[middle:])
    assert [wire.answer()[0].MessageIDBeingRespondedTo for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("maximum", [1024, 4096])
def test_no_answer_is_longer_than_the_caller_takes(appliance, maximum):
    appliance.schedule(item(PatientComments="Allergic to latex. " * 200))
    keys = decode(io.BytesIO(query()), True, True)
    keys.PatientComments = ""
    with Wire(appliance.port, maximum=maximum) as wire:
        lengths = []
        take = wire.pdu
        wire.pdu = lambda: lengths.append(found := take()) or found
        [identifier], last = wire.find(find_request(encode(keys, True, True)))
    assert max(len(body) for _, body in lengths) <= maximum
    assert identifier.PatientComments == ("Allergic to latex. " * 200).strip()
    assert last.Status == 0x0000


# Requests that do not wait for their answers.


def test_pipelined_requests_are_answered_in_order(wire):
    numbers = list(range(1, 61))
    wire.send(b"".join(pdus(request("C-ECHO", VERIFICATION, number=n)) for n in numbers))
    answers = [wire.answer()[0] for _ in numbers]
    assert [answer.MessageIDBeingRespondedTo for answer in answers] == numbers


def test_pipelined_reports_are_carried_out_in_order(appliance, wire):
    messages = [create_request("2.25.1"), set_request("2.25.1"), set_request("2.25.1")]
    wire.send(b"".join(map(pdus, messages)))
    assert [wire.answer()[0].Status for _ in messages] == [0x0000, 0x0000, 0x0110]
    assert appliance.read(performed) == {"2.25.1": "COMPLETED"}


def test_a_query_sees_what_was_reported_before_it(appliance, wire):
    [step] = appliance.schedule(item())
    wire.send(pdus(create_request("2.25.1", creation(step))) + pdus(set_request("2.25.1")))
    found, _ = wire_after(wire, answers=2).find(find_request())
    assert found == []


def wire_after(wire, answers):
    """The wire when so many answers are taken."""
    for _ in range(answers):
        wire.answer()
    return wire


@contextlib.contextmanager
def writer_held(appliance):
    """While it lasts, the writer is busy with something else."""
    held, go_on = threading.Event(), threading.Event()

    def hold():
        held.set()
        assert go_on.wait(20)

    future = appliance.appliance.writer.submit(hold)
    assert held.wait(20)
    yield
    go_on.set()
    future.result(20)


def hang_up_with_report_on_its_way(appliance):
    """A modality sends the end of 2.25.1 and is gone before it can be written."""
    associations = appliance.appliance.associations.associations
    with Wire(appliance.port) as wire:
        assert wire.ask(create_request("2.25.1")).Status == 0x0000
        with writer_held(appliance):
            wire.send(pdus(set_request("2.25.1")))
            wait_until(lambda: appliance.appliance.writer.queue.qsize() == 1)
            wire.close()
            wait_until(lambda: not associations)


def test_a_report_is_kept_though_the_caller_does_not_wait_for_the_answer(appliance):
    hang_up_with_report_on_its_way(appliance)
    wait_until(lambda: appliance.read(performed) == {"2.25.1": "COMPLETED"})


def test_a_caller_that_hangs_up_does_not_stop_the_reports_of_others(appliance):
    hang_up_with_report_on_its_way(appliance)
    with Wire(appliance.port) as wire:
        assert wire.ask(create_request("2.25.2")).Status == 0x0000


# What a modality does wrong (table "Bad input gets" of the first issue).


@pytest.fixture
def ended(appliance, wire):
    """2.25.1 is completed, 2.25.2 in progress."""
    [first, second] = appliance.schedule(item(), item(name="Li^Na=李^娜"))
    assert wire.ask(create_request("2.25.1", creation(first))).Status == 0x0000
    assert wire.ask(set_request("2.25.1")).Status == 0x0000
    assert wire.ask(create_request("2.25.2", creation(second))).Status == 0x0000


BAD_INPUT = {
    "N-SET after the end": (set_request("2.25.1"), 0x0110, 0xA710),
    "unknown UID": (set_request("2.25.4711"), 0x0112, None),
    "same UID twice": (create_request("2.25.1"), 0x0111, None),
    "changed patient ID": (
        set_request("2.25.2", encode(dataset(PatientID="P999999"), True, True)),
        0x0105,
        None,
    ),
}


@pytest.mark.parametrize("what", BAD_INPUT)
def test_what_a_modality_does_wrong_changes_nothing(appliance, wire, ended, what):
    """T-MPPS-03, T-MPPS-06, T-MPPS-08, T-MPPS-11."""
    message, status, error_id = BAD_INPUT[what]
    before = appliance.read(kept)
    answer = wire.ask(message)
    assert (answer.Status, answer.get("ErrorID")) == (status, error_id)
    assert appliance.read(kept) == before


# Many at once.


def test_a_hundred_queries_beside_reports_lose_nothing(appliance):
    """T-GEN-07."""
    steps = appliance.schedule(*[item(PatientID=f"P{n:06}") for n in range(40)])
    shared = appliance.schedule(item(PatientID="P900000"))[0]
    start = threading.Barrier(108)

    def ask():
        with Wire(appliance.port) as wire:
            start.wait(20)
            return [wire.find(find_request(number=n))[1].Status for n in range(1, 4)]

    def report(writer):
        with Wire(appliance.port) as wire:
            start.wait(20)
            answers = [wire.ask(create_request(f"2.25.9{writer}", creation(shared))).Status]
            for number in range(writer, 40, 8):
                uid = f"2.25.7{number:04}"
                answers.append(wire.ask(create_request(uid, creation(steps[number]))).Status)
                answers.append(wire.ask(set_request(uid)).Status)
            return answers

    with ThreadPoolExecutor(108) as pool:
        asking = [pool.submit(ask) for _ in range(100)]
        reporting = [pool.submit(report, writer) for writer in range(8)]
        assert {status for future in asking for status in future.result(30)} == {0x0000}
        assert {status for future in reporting for status in future.result(30)} == {0x0000}
    states = appliance.read(lambda: [s.status for s in ScheduledProcedureStep.select()])
    links = appliance.read(lambda: PerformedScheduledStep.select().count())
    assert sorted(states) == ["COMPLETED"] * 40 + ["STARTED"]
    assert links == 48


def test_an_echo_is_answered_while_others_query_and_report(appliance):
    """T-GEN-07."""
    appliance.schedule(*[item(PatientID=f"P{n:06}") for n in range(200)])
    stop = threading.Event()

    def ask():
        with Wire(appliance.port) as wire:
            while not stop.is_set():
                wire.find(find_request())

    with ThreadPoolExecutor(8) as pool:
        busy = [pool.submit(ask) for _ in range(8)]
        took = []
        for _ in range(10):
            begun = time.monotonic()
            with Wire(appliance.port) as wire:
                assert wire.echo() == 0x0000
            took.append(time.monotonic() - begun)
        stop.set()
        for future in busy:
            future.result(20)
    assert max(took) < 5
