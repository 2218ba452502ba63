"""tests/peers.py against programs of others only: no line of minris runs here."""

import contextlib
import subprocess

import peers
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import ModalityPerformedProcedureStep, ModalityWorklistInformationFind

WORKLIST_ENTRY = """
(0008,0005) CS [ISO_IR 192]
(0008,0050) SH [20260105-007]
(0008,0090) PN [Zhao^Min=赵^敏]
(0010,0010) PN [Wang^Xiaohong=王^小红]
(0010,0020) LO [K100023]
(0010,0030) DA [19840517]
(0010,0040) CS [F]
(0020,000d) UI [2.25.164853397526153207231186904478612417153]
(0032,1032) PN [Zhao^Min=赵^敏]
(0032,1060) LO [CT Kopf]
(0040,0100) SQ
(fffe,e000) -
(0008,0060) CS [CT]
(0040,0001) AE [CT1]
(0040,0002) DA [20260105]
(0040,0003) TM [093000]
(0040,0006) PN [Li^Na=李^娜]
(0040,0007) LO [头颅平扫]
(0040,0009) SH [S1]
(fffe,e00d) -
(fffe,e0dd) -
(0040,1001) SH [R1]
"""


@contextlib.contextmanager
def serving(tmp_path, dump):
    """wlmscpfs, called CLINIC, with the one entry of `dump`; gives its port."""
    folder = tmp_path / "CLINIC"
    folder.mkdir()
    (folder / "lockfile").touch()
    (tmp_path / "entry.dump").write_bytes(dump)
    entry = [tmp_path / "entry.dump", folder / "entry.wl"]
    subprocess.run([peers.dump2dcm(), "-q", *entry], check=True)
    with peers.serving_worklist(tmp_path) as port:
        yield port


@pytest.fixture
def worklist(tmp_path):
    with serving(tmp_path, WORKLIST_ENTRY.encode()) as port:
        yield port


def test_findscu_finds_the_entry_of_a_worklist(worklist):
    keys = ["ScheduledProcedureStepSequence[0].Modality=CT", *peers.WORKLIST_KEYS[2:4]]
    found = peers.run_findscu(worklist, "CLINIC", "CT1", keys)
    assert found.exit_code == 0
    assert found.statuses == [0xFF00, 0x0000]
    [entry] = found.datasets
    assert entry.PatientName.ideographic == "王^小红"
    assert entry.ScheduledProcedureStepSequence[0].Modality == "CT"


def test_findscu_with_nothing_to_find_has_no_answers_and_success(worklist):
    found = peers.run_findscu(worklist, "CLINIC", "CT1", ["PatientID=K999999"])
    assert (found.datasets, found.status) == ([], 0x0000)


def test_findscu_takes_a_data_set_as_query(worklist):
    query = Dataset()
    query.SpecificCharacterSet = "ISO_IR 192"
    query.PatientName = "*=王*"
    query.PatientID = None
    query.ScheduledProcedureStepSequence = [Dataset()]
    query.ScheduledProcedureStepSequence[0].ScheduledProcedureStepDescription = None
    [entry] = peers.run_findscu(worklist, "CLINIC", "CT1", query).datasets
    assert entry.PatientID == "K100023"
    assert entry.ScheduledProcedureStepSequence[0].ScheduledProcedureStepDescription == "头颅平扫"


def test_findscu_answers_in_gb2312_are_read(tmp_path):
    entry = WORKLIST_ENTRY.encode("gb2312").replace(b"[ISO_IR 192]", rb"[\ISO 2022 IR 58]")
    entry = entry.replace("王^小红".encode("gb2312"), b"\x1b$)A\xcd\xf5^\x1b$)A\xd0\xa1\xba\xec")
    with serving(tmp_path, entry) as port:
        [found] = peers.run_findscu(port, "CLINIC", "CT1", ["PatientName"]).datasets
    assert found.PatientName == "Wang^Xiaohong=王^小红"


@pytest.mark.parametrize("character_set", ["ISO_IR 192", "GB18030"])
def test_findscu_queries_in_the_character_set_asked_for(recorder, character_set):
    keys = ["PatientName=Wang*=王*", "ScheduledProcedureStepSequence[0].Modality=CT"]
    found = peers.run_findscu(recorder.port, "RECORDER", "CT1", keys, character_set=character_set)
    assert recorder.received[0].SpecificCharacterSet == character_set
    assert recorder.received[0].PatientName.ideographic == "王*"
    assert found.statuses == [0xFF01, 0xFF01, 0x0000]
    assert found.datasets[0].PatientName.ideographic == "王^芳"
    [step] = found.datasets[0].ScheduledProcedureStepSequence
    assert step.ScheduledProcedureStepDescription == "头颅平扫"


def test_findscu_queries_in_gb2312_by_escape_sequence(recorder):
    character_set = r"ISO 2022 IR 6\ISO 2022 IR 58"
    keys = ["PatientName=Wang*=王^小*"]
    peers.run_findscu(recorder.port, "RECORDER", "CT1", keys, character_set=character_set)
    as_sent = recorder.received[0].PatientName.original_string
    assert as_sent == b"Wang*=\x1b$)A\xcd\xf5^\x1b$)A\xd0\xa1*"


def test_findscu_that_is_rejected_has_no_status(worklist):
    found = peers.run_findscu(worklist, "NOBODY", "CT1", peers.WORKLIST_KEYS)
    assert found.exit_code != 0
    assert (found.datasets, found.status) == ([], None)


def test_echoscu_is_answered(worklist):
    assert peers.run_echoscu(worklist, "CLINIC", "CT1").exit_code == 0


def test_tools_are_those_of_dcmtk():
    for tool in (peers.findscu(), peers.echoscu(), peers.dump2dcm(), peers.wlmscpfs()):
        assert "dcmtk" in peers.run_tool([tool, "--version"]).log


def not_found(*_arguments):
    return None


@pytest.mark.parametrize(
    ("peer", "finder"),
    [
        (peers.findscu, "find_dcmtk_tool"),
        (peers.chromium, "find_chromium"),
        (peers.node, "find_node"),
        (peers.node, "find_node_module"),
    ],
)
@pytest.mark.parametrize(
    ("ci", "outcome"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_a_missing_peer_fails_in_ci_and_is_left_out_elsewhere(
    monkeypatch, peer, finder, ci, outcome
):
    monkeypatch.setattr(peers.fetcher, "find_node", lambda: "/usr/bin/node")
    monkeypatch.setattr(peers.fetcher, finder, not_found)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome):
        peer()


class Recorder:
    """A worklist and MPPS by pynetdicom that keeps what it was sent."""

    def __init__(self):
        self.received = []

    def find(self, event):
        query = event.identifier
        self.received.append(query)
        asked_in = query.SpecificCharacterSet
        # pydicom 3.0.2 writes ISO 2022 IR 58 without its escape sequence
        answer_in = asked_in if isinstance(asked_in, str) else "GB18030"
        for name in ("Wang^Fang=王^芳", "Wang^Hong=王^𬭎"):
            answer = Dataset()
            answer.SpecificCharacterSet = answer_in
            answer.PatientName = name
            answer.ScheduledProcedureStepSequence = [Dataset()]
            answer.ScheduledProcedureStepSequence[0].ScheduledProcedureStepDescription = "头颅平扫"
            yield 0xFF01, answer

    def create(self, event):
        self.received.append(event.attribute_list)
        return 0x0000, event.attribute_list

    def set(self, event):
        self.received.append(event.modification_list)
        status = Dataset()
        status.Status = 0x0110
        status.ErrorComment = "Performed Procedure Step is final"
        return status, None


@pytest.fixture
def recorder():
    recorder = Recorder()
    handlers = [
        (evt.EVT_C_FIND, recorder.find),
        (evt.EVT_N_CREATE, recorder.create),
        (evt.EVT_N_SET, recorder.set),
    ]
    ae = AE("RECORDER")
    ae.add_supported_context(ModalityWorklistInformationFind)
    ae.add_supported_context(ModalityPerformedProcedureStep)
    server = ae.start_server((peers.HOST, 0), block=False, evt_handlers=handlers)
    recorder.port = server.server_address[1]
    yield recorder
    server.shutdown()


@pytest.mark.parametrize("character_set", ["ISO_IR 192", "GB18030"])
def test_dcmjs_dimse_queries_in_chinese(recorder, character_set):
    keys = {"PatientName": "*=王*", "ScheduledProcedureStepSequence": [{"Modality": "CT"}]}
    query = {"op": "find", "charset": character_set, "keys": keys}
    *pending, final = peers.run_dimse(recorder.port, [query], called="RECORDER")
    assert recorder.received[0].PatientName.ideographic == "王*"
    assert recorder.received[0].SpecificCharacterSet == character_set
    names = [answer["dataset"]["PatientName"][0]["Ideographic"] for answer in pending]
    assert names == ["王^芳", "王^𬭎"]
    [step] = pending[0]["dataset"]["ScheduledProcedureStepSequence"]
    assert step["ScheduledProcedureStepDescription"] == "头颅平扫"
    assert [answer["status"] for answer in (*pending, final)] == [0xFF01, 0xFF01, 0x0000]


@pytest.mark.parametrize("character_set", ["ISO_IR 192", "GB18030"])
def test_dcmjs_dimse_reports_a_performed_procedure_step(recorder, character_set):
    started = {
        "PatientName": "Wang^Fang=王^芳",
        "PerformedProcedureStepStatus": "IN PROGRESS",
        "ScheduledStepAttributesSequence": [{"RequestedProcedureDescription": "头颅平扫"}],
        "PerformedSeriesSequence": [],
    }
    ended = {"00400252": {"vr": "CS", "Value": ["COMPLETED"]}, "00400281": {"vr": "SQ"}}
    create = {"op": "n-create", "instance": "2.25.7", "charset": character_set, "dataset": started}
    complete = {"op": "n-set", "instance": "2.25.7", "dataset": ended}
    created, refused = peers.run_dimse(recorder.port, [[create], [complete]])
    assert recorder.received[0].PatientName.ideographic == "王^芳"
    [step] = recorder.received[0].ScheduledStepAttributesSequence
    assert step.RequestedProcedureDescription == "头颅平扫"
    assert recorder.received[1].PerformedProcedureStepStatus == "COMPLETED"
    assert (created["status"], created["sopInstance"]) == (0x0000, "2.25.7")
    assert (refused["index"], refused["status"]) == (1, 0x0110)
    assert refused["errorComment"] == "Performed Procedure Step is final"


def test_dcmjs_dimse_says_what_was_not_accepted(recorder):
    [echo] = peers.run_dimse(recorder.port, [{"op": "echo"}])
    assert echo["error"] == "presentation context not accepted"


def test_dcmjs_dimse_listens_for_events():
    event_class = "1.2.840.10008.5.1.4.34.6.4"
    report = Dataset()
    report.SpecificCharacterSet = "GB18030"
    report.ProcedureStepState = "CANCELED"
    report.ReasonForCancellation = "病人未到"
    with peers.listening_dimse("CT1") as listener:
        ae = AE("CLINIC")
        ae.add_requested_context(event_class)
        association = ae.associate(peers.HOST, listener.port, ae_title="CT1")
        status, _ = association.send_n_event_report(report, 1, event_class, "2.25.7")
        association.release()
        event = listener.next_event()
    assert status.Status == 0x0000
    assert (event["event"], event["called"], event["sopInstance"]) == (1, "CT1", "2.25.7")
    assert event["dataset"]["ReasonForCancellation"] == "病人未到"


def test_a_free_port_is_free_and_given_once():
    ports = [peers.free_port() for _ in range(20)]
    assert len(set(ports)) == 20
    for port in ports:
        peers.bound("", port).close()


@pytest.mark.skipif(not peers.Ports.ANY_PORT.is_file(), reason="needs Linux: looks into /proc")
def test_a_free_port_is_none_that_the_system_gives_to_anybody():
    first, last = map(int, peers.Ports.ANY_PORT.read_text().split())
    assert not first <= peers.free_port() <= last


def test_a_free_port_is_none_that_somebody_has():
    here = peers.Ports()
    following = here.next() + 1
    with peers.bound("", following):
        assert here.next() == following + 1


def test_another_process_has_other_ports():
    others = peers.Ports()
    mine = {peers.free_port() for _ in range(200)}
    assert not mine & {others.next() for _ in range(200)}
