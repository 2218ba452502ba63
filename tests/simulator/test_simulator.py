"""Section 21: the simulated modality, and the day that the demonstration plays."""

import contextlib
import datetime
import socket
import time
import zoneinfo

import peers
import pytest
from conftest import Running, item
from test_peers import WORKLIST_ENTRY

from minris.access.devices import AccessRules
from minris.cli import CommandError, read_destination
from minris.config.ini import load_config
from minris.config.values import EVIDENCE
from minris.dataset.dicom_json import from_json
from minris.dataset.elements import ElementIndex
from minris.dataset.names import shown_name
from minris.mpps.linking import unscheduled_steps
from minris.orders.scheduling import schedule
from minris.simulator.archive import SimulatedArchive
from minris.simulator.demo import DEMO_CONFIG, DEMO_DAY, demo_items, play_day, zone_at_ten
from minris.simulator.modality import Modality, Scanner
from minris.simulator.peer import SimulationError
from minris.simulator.scenarios import (
    MODALITY_SCENARIOS,
    WORKSTATION_SCENARIOS,
    scenario_cancel,
    scenario_commitment,
    scenario_pull,
    scenario_reliable_watcher,
)
from minris.simulator.workstation import Workstation
from minris.standard.mpps import INCORRECT_WORKLIST_ENTRY
from minris.store.models import (
    GlobalSubscription,
    PerformedProcedureStep,
    ScheduledProcedureStep,
    Subscription,
    Workitem,
)


class Said(list):
    """What a simulated modality says, line by line."""

    __call__ = list.append


@pytest.fixture
def said():
    """The lines of the conversation."""
    return Said()


@pytest.fixture
def ct(appliance, said):
    """A simulated CT that knows the appliance, and examines Wang alone."""
    machine = Modality("CT1", "CT", "127.0.0.1", appliance.port, "MINRIS", said)
    machine.patient_id = "P7"
    return machine


def state_of(appliance, name="Wang"):
    """The state of a patient's exam."""
    [step] = appliance.read(
        lambda: list(ScheduledProcedureStep.select().where(
            ScheduledProcedureStep.name_key.contains(name.lower())
        ))
    )  # fmt: skip
    return step.status


def performed_of(appliance):
    """The performed steps, as they are stored."""
    return appliance.read(lambda: list(PerformedProcedureStep.select()))


# Scenarios.

ENDS = {"echo": "SCHEDULED", "modality": "COMPLETED", "discontinue": "DISCONTINUED"}


@pytest.mark.parametrize("name", MODALITY_SCENARIOS)
def test_a_scenario_leaves_the_exam_as_it_says(appliance, ct, name):
    appliance.schedule(item(PatientID="P7"))
    MODALITY_SCENARIOS[name](ct)
    assert state_of(appliance) == ENDS[name]


@pytest.mark.parametrize("name", MODALITY_SCENARIOS)
def test_a_scenario_is_complete_enough_for_a_strict_server(run_appliance, said, name):
    """Leniency is for the machines of others, not for our own."""
    appliance = run_appliance("[dicom]\nstrict_mpps = yes")
    appliance.schedule(item(PatientID="P7"))
    machine = Modality("CT1", "CT", "127.0.0.1", appliance.port, "MINRIS", said)
    machine.patient_id = "P7"
    MODALITY_SCENARIOS[name](machine)
    assert state_of(appliance) == ENDS[name]


def test_nothing_is_left_out_of_a_report(appliance, ct):
    appliance.schedule(item(PatientID="P7"))
    MODALITY_SCENARIOS["modality"](ct)
    [performed] = performed_of(appliance)
    assert performed.remark == ""


@pytest.mark.parametrize("name", MODALITY_SCENARIOS)
def test_a_scenario_says_what_was_answered(appliance, ct, said, name):
    appliance.schedule(item("Wang^XiaoDong=王^小东", PatientID="P7"))
    MODALITY_SCENARIOS[name](ct)
    assert said
    assert all(line.startswith("CT1 -> MINRIS  ") for line in said)
    assert said[-1].endswith(": 0000")


def test_a_patient_is_named_as_people_read_it(appliance, ct, said):
    appliance.schedule(item("Wang^XiaoDong=王^小东", PatientID="P7"))
    MODALITY_SCENARIOS["modality"](ct)
    assert said[0] == "CT1 -> MINRIS  C-FIND worklist: 王小东 Wang XiaoDong"
    assert "IN PROGRESS, 王小东 Wang XiaoDong: 0000" in said[1]


def test_an_exam_given_up_has_its_reason(appliance, ct):
    appliance.schedule(item(PatientID="P7"))
    MODALITY_SCENARIOS["discontinue"](ct)
    [performed] = performed_of(appliance)
    keyword = "PerformedProcedureStepDiscontinuationReasonCodeSequence"
    reason = ElementIndex(bytes(performed.data)).item(keyword)
    assert reason.get("CodeValue") == "110513"


def test_the_wrong_line_taken_back_is_on_the_worklist_again(appliance, ct):
    """T-MPPS-15."""
    appliance.schedule(item(PatientID="P7"))
    [found] = ct.worklist()
    ct.start(found, "2.25.77")
    assert state_of(appliance) == "STARTED"
    ct.end(found, "2.25.77", reason=INCORRECT_WORKLIST_ENTRY)
    assert state_of(appliance) == "SCHEDULED"
    assert len(ct.worklist()) == 1


def test_a_modality_finds_its_own_exams_alone(appliance, ct):
    ct.patient_id = ""
    appliance.schedule(item(), item("Li^Na", ScheduledStationAETitle="US1", Modality="US"))
    assert [str(found.PatientName) for found in ct.worklist()] == ["Wang^XiaoDong=王^小东"]


@pytest.mark.parametrize("name", ["modality", "discontinue"])
def test_no_other_patient_is_examined(appliance, ct, name):
    appliance.schedule(item("Li^Na", PatientID="P8"), item("Wang", PatientID="P7 "))
    MODALITY_SCENARIOS[name](ct)
    assert (state_of(appliance, "Li"), state_of(appliance)) == ("SCHEDULED", ENDS[name])


@pytest.mark.parametrize("name", ["modality", "discontinue"])
def test_without_a_patient_nobody_is_examined(appliance, ct, name):
    appliance.schedule(item(PatientID="P7"))
    ct.patient_id = ""
    with pytest.raises(SimulationError, match="who must be named"):
        MODALITY_SCENARIOS[name](ct)
    assert state_of(appliance) == "SCHEDULED"


def test_a_modality_finds_the_exams_of_a_day(appliance, ct):
    ct.patient_id = ""
    appliance.schedule(item(), item("Li^Na", ScheduledProcedureStepStartDate="20260706"))
    assert [str(found.PatientName) for found in ct.worklist("20260706")] == ["Li^Na"]


# What goes wrong is said.


@pytest.mark.parametrize("name", ["modality", "discontinue"])
def test_an_empty_worklist_is_said(ct, name):
    with pytest.raises(SimulationError, match="P7 is not on the worklist"):
        MODALITY_SCENARIOS[name](ct)


@pytest.mark.parametrize(
    ("calling", "called"), [("STRANGER", "MINRIS"), ("CT1", "ORTHANC")], ids=["calling", "called"]
)
def test_not_being_let_in_is_said(appliance, said, calling, called):
    machine = Modality(calling, "CT", "127.0.0.1", appliance.port, called, said)
    with pytest.raises(SimulationError, match=f"{called} rejected {calling}"):
        machine.echo()


def test_nobody_listening_is_said(said):
    machine = Modality("CT1", "CT", "127.0.0.1", peers.free_port(), "MINRIS", said)
    with pytest.raises(SimulationError):
        machine.echo()


def test_a_refused_report_is_said_with_its_status(appliance, ct):
    appliance.schedule(item(PatientID="P7"))
    [found] = ct.worklist()
    ct.start(found, "2.25.77")
    with pytest.raises(SimulationError, match="N-CREATE failed: 0111"):
        ct.start(found, "2.25.77")
    ct.end(found, "2.25.77")
    with pytest.raises(SimulationError, match="N-SET failed: 0110"):
        ct.end(found, "2.25.77")


# Against a server of others.


def test_the_worklist_of_dcmtk_is_read_as_well(tmp_path, said):
    folder = tmp_path / "CLINIC"
    folder.mkdir()
    (folder / "lockfile").touch()
    (tmp_path / "entry.dump").write_text(WORKLIST_ENTRY, "utf-8")
    done = peers.run_tool([peers.dump2dcm(), tmp_path / "entry.dump", folder / "entry.wl"])
    assert done.exit_code == 0, done.log
    with peers.serving_worklist(tmp_path) as port:
        machine = Modality("CT1", "CT", "127.0.0.1", port, "CLINIC", said)
        [found] = machine.worklist()
    assert found.PatientName == "Wang^Xiaohong=王^小红"


# The demonstration's day.


LOOPBACK = "[dicom]\nhost = 127.0.0.1\nport = 0\n[web]\nhost = 127.0.0.1\nport = 0\n"


@pytest.fixture
def department(tmp_path):
    """The invented department, running."""
    path = tmp_path / "config.ini"
    path.write_text(DEMO_CONFIG.format(listen=peers.free_port(), zone="UTC") + LOOPBACK, "utf-8")
    running = Running(load_config(path))
    yield running
    running.stop()


def play(department):
    """Play the day without pauses: its lines."""
    said = Said()
    token = department.token("desk")
    play_day(department.url, token, "127.0.0.1", department.port, "MINRIS", said, 0)
    return said


def test_the_day_ends_as_it_is_told(department):
    play(department)
    states = department.read(
        lambda: {s.name_key.partition("=")[0]: s.status for s in ScheduledProcedureStep}
    )
    assert states == {
        "wangxiaodong": "COMPLETED",
        "lina": "DISCONTINUED",
        "milleranna": "COMPLETED",
        "brownemma": "SCHEDULED",  # who is late
        "garcialuis": "STARTED",
        "zhangwei": "ARRIVED",
        "ouyangjing": "ARRIVED",
        "smithjohn": "SCHEDULED",
        "satoyui": "SCHEDULED",
    }
    assert len(department.read(unscheduled_steps)) == 1


def test_every_patient_of_the_day_is_told_of(department):
    told = "\n".join(play(department))
    for name, *_ in DEMO_DAY:
        assert shown_name(name) in told


def test_every_report_of_the_day_was_taken(department):
    answered = [line for line in play(department) if "N-CREATE" in line or "N-SET" in line]
    assert len(answered) == 14
    assert all(line.endswith(": 0000") for line in answered)


@pytest.mark.parametrize("hour", range(24))
def test_the_department_is_seen_at_ten_whatever_the_hour(hour):
    now = datetime.datetime(2026, 12, 31, hour, 20, tzinfo=datetime.UTC)
    assert f"{now.astimezone(zoneinfo.ZoneInfo(zone_at_ten(now))):%H:%M}" == "10:20"


@pytest.mark.parametrize("time_of_day", ["00:00", "08:00", "23:50"])
def test_the_patients_of_the_day_can_be_registered_at_any_hour(ctx, time_of_day):
    now = datetime.datetime.fromisoformat(f"2026-12-31T{time_of_day}")
    for one in demo_items(now):
        schedule(ctx, from_json(one))
    assert ScheduledProcedureStep.select().count() == len(DEMO_DAY)


def test_the_day_is_played_on_devices_of_its_own(tmp_path):
    path = tmp_path / "config.ini"
    path.write_text(DEMO_CONFIG.format(listen=11113, zone="UTC"), "utf-8")
    devices = AccessRules(load_config(path)).by_title
    for _, _, _, title, modality, *_ in DEMO_DAY:
        assert devices[title].modality == modality


# Workstations


@pytest.fixture
def workstation(run_appliance):
    """A simulated workstation that the appliance can call, and what it says."""
    port, said = peers.free_port(), Said()
    appliance = run_appliance(f"[device WS]\nae_title = WS1\nhost = 127.0.0.1\nport = {port}\n")
    address = ("127.0.0.1", appliance.port, "MINRIS", said)
    return Workstation("WS1", *address, listen=port), said, appliance


def told_events(said):
    """What the workstation heard: the words of each event."""
    lines = [line.partition("N-EVENT-REPORT")[2].strip() for line in said]
    return [line.rpartition("  (")[0] for line in lines if line]


@pytest.mark.parametrize("name", WORKSTATION_SCENARIOS)
def test_a_workflow_is_played_to_its_end_and_leaves_no_subscription(workstation, name):
    """PS3.17 GGG, as `minris simulate` prints it."""
    station, said, appliance = workstation
    WORKSTATION_SCENARIOS[name](station)
    answered = [line for line in said if line.startswith("WS1 ") and " -> MINRIS " in line]
    assert answered
    assert all(line.endswith(": 0000") for line in answered)
    assert told_events(said)
    assert appliance.read(lambda: Subscription.select().count()) == 0
    assert appliance.read(lambda: GlobalSubscription.select().count()) == 0
    open_ones = Workitem.state.in_(["SCHEDULED", "IN PROGRESS"])
    assert appliance.read(lambda: Workitem.select().where(open_ones).count()) == 0


def test_a_cancellation_has_three_endings(workstation):
    station, said, _ = workstation
    scenario_cancel(station)
    reason = "Discontinued for unspecified reason"
    asked = "UPS Cancel Requested: WS1, {}, WS1, tel:+1-555-0100, " + reason
    assert told_events(said) == [
        "UPS State Report: SCHEDULED, READY",
        asked.format("not needed any more"),
        "UPS State Report: IN PROGRESS, READY",
        f"UPS State Report: CANCELED, READY, not needed any more, {reason}",
        "UPS State Report: SCHEDULED, READY",
        "UPS State Report: IN PROGRESS, READY",
        asked.format("wrong series"),
        f"UPS State Report: CANCELED, READY, {reason}",
        "UPS State Report: SCHEDULED, READY",
        "UPS State Report: IN PROGRESS, READY",
        asked.format("patient has left"),
        "UPS State Report: COMPLETED, READY",
    ]


def test_a_watcher_that_was_away_hears_of_all_of_it_in_order(workstation):
    station, said, _ = workstation
    scenario_reliable_watcher(station)
    away = said.index("WS1 goes offline.")
    by_item = {
        number: [line for line in said[away:] if line.endswith(f"(Reading {number})")]
        for number in (1, 2, 3)
    }
    for lines in by_item.values():
        states = [line.partition("UPS State Report: ")[2].partition(",")[0] for line in lines]
        assert states == ["SCHEDULED", "IN PROGRESS", "COMPLETED"]


def test_a_workstation_without_a_port_pulls_and_hears_nothing(workstation):
    station, said, _ = workstation
    station.listen = 0
    scenario_pull(station)
    assert told_events(said) == []
    assert [line for line in said if "COMPLETED" in line]


@pytest.mark.parametrize("name", ["cancel", "reliable-watcher"])
def test_a_workflow_of_events_needs_a_port(workstation, name):
    station, _, _ = workstation
    station.listen = 0
    with pytest.raises(SimulationError, match="--listen PORT"):
        WORKSTATION_SCENARIOS[name](station)


def test_a_workstation_that_is_not_registered_with_an_address_is_told_so(appliance, said):
    port = peers.free_port()
    address = ("127.0.0.1", appliance.port, "MINRIS", said)
    station = Workstation("CT1", *address, listen=port)
    with pytest.raises(SimulationError, match=f"C308 .*register it .* port {port}"):
        scenario_pull(station)


def test_a_port_that_is_taken_is_said(workstation):
    station, _, _ = workstation
    with (
        socket.create_server(("", station.listen)),
        pytest.raises(SimulationError, match=f"port {station.listen}"),
    ):
        scenario_pull(station)


# Are my images safe? The simulated archive and the simulated scanner, through the box.


COMMITTING = """[device CT room]
ae_title = CT1
modality = CT
host = 127.0.0.1
port = {ct}
[device PACS]
ae_title = PACS
role = archive
host = 127.0.0.1
port = {archive}
passed_on = mpps, mpps_notification
[commitment]
missing_minutes = 0
evidence = {evidence}
"""


@contextlib.contextmanager
def committing(run_appliance, said, evidence="archive", stores=True):
    """A simulated scanner, whose archive listens."""
    ct, port = peers.free_port(), peers.free_port()
    text = COMMITTING.format(ct=ct, archive=port, evidence=evidence)
    box = run_appliance(text)
    box.schedule(item(PatientID="P7"))
    address = "127.0.0.1", box.port, "MINRIS", said
    where = ("PACS", "127.0.0.1", port) if stores else None
    scanner = Scanner("CT1", "CT", *address, listen=ct, archive=where)
    scanner.patient_id = "P7"
    with SimulatedArchive("PACS", *address, listen=port).listening():
        yield scanner


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_a_scanner_that_has_stored_its_images_may_delete_them(run_appliance, said, evidence):
    with committing(run_appliance, said, evidence) as scanner:
        scenario_commitment(scanner)
    assert "CT1 -> PACS  C-STORE 4 images: 0000" in said
    assert any(line.endswith("1: 4 images confirmed in the archive") for line in said)


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_a_scanner_that_has_not_is_told_so(run_appliance, said, evidence):
    with committing(run_appliance, said, evidence, stores=False) as scanner:
        scenario_commitment(scanner)
    assert any("4 images not confirmed: 0112" in line for line in said)


def test_the_simulated_archive_takes_what_is_passed_on(run_appliance, said):
    with committing(run_appliance, said) as scanner:
        scenario_commitment(scanner)
        deadline = time.monotonic() + 10
        while (
            len(told := [line.split("  ")[1] for line in said if "MINRIS -> PACS  N-" in line]) < 4
        ):
            assert time.monotonic() < deadline, said
            time.sleep(0.02)
    assert told == [
        "N-CREATE: 0000",
        "N-EVENT-REPORT 1: 0000",
        "N-SET: 0000",
        "N-EVENT-REPORT 2: 0000",
    ]


def test_a_scanner_that_nobody_could_tell_says_so(run_appliance, said):
    with committing(run_appliance, said) as scanner:
        scanner.listen = 0
        with pytest.raises(SimulationError, match="--listen"):
            scenario_commitment(scanner)


def test_an_archive_needs_a_port(said):
    archive = SimulatedArchive("PACS", "127.0.0.1", 11112, "MINRIS", said)
    with pytest.raises(SimulationError, match="--listen"), archive.listening():
        pass


@pytest.mark.parametrize(
    "text", ["PACS", "PACS@host", "@host:104", "PACS@host:0", "PA\\CS@host:104"]
)
def test_a_wrong_archive_is_refused(text):
    with pytest.raises(CommandError, match="is not AE@HOST:PORT"):
        read_destination(text)


def test_an_archive_is_named_by_ae_title_host_and_port():
    assert read_destination("PACS@[::1]:104") == ("PACS", "::1", 104)
    assert read_destination("") is None
