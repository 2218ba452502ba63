"""The scenarios of `simulate` (PS3.17 GGG)."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from minris.simulator.archive import SimulatedArchive
from minris.simulator.modality import Modality, Scanner
from minris.simulator.peer import SimulationError
from minris.simulator.workstation import Workstation
from minris.standard.uids import UPS_FILTERED_SUBSCRIPTION, new_uid


def started(machine: Modality) -> tuple[Any, str]:
    """Start the first step of the machine's one patient; return it with the UID of its report."""
    if not machine.patient_id:
        raise SimulationError("a simulated machine examines one patient, who must be named")
    found = machine.worklist()
    if not found:
        raise SimulationError(
            f"{machine.patient_id} is not on the worklist for this AE title and modality"
        )
    uid = new_uid()
    machine.start(found[0], uid)
    return found[0], uid


def scenario_modality(machine: Modality) -> None:
    """Perform the patient's first step."""
    machine.end(*started(machine))


def scenario_discontinue(machine: Modality) -> None:
    """Start the patient's first step, and discontinue it."""
    machine.end(*started(machine), reason="110513")


@contextlib.contextmanager
def watching(station: Workstation, lock: bool = False) -> Iterator[None]:
    """Subscribe a workstation to the workitems of its label, and unsubscribe at the end."""
    with station.listening():
        if station.listen:
            station.subscribe(UPS_FILTERED_SUBSCRIPTION, lock, only_own=True)
        try:
            yield
        except SimulationError:
            if station.listen:
                with contextlib.suppress(SimulationError):
                    station.end_subscriptions()
            raise
        if station.listen:
            station.end_subscriptions()


def perform(station: Workstation, uid: str, code: str) -> None:
    """Claim and complete a workitem, and wait for the event."""
    station.complete(uid, station.claim(uid), code)
    station.hear(uid, "COMPLETED")


def scenario_pull(station: Workstation) -> None:
    """PS3.17 GGG.3.1, pull: a performer finds, claims, updates and completes a workitem."""
    with watching(station):
        uid = station.create("3D views", "3D")
        station.hear(uid, "SCHEDULED")
        [found] = station.find()
        lock = station.claim(found)
        station.hear(uid, "IN PROGRESS")
        station.get(uid)
        station.progress(uid, lock, 50, "half of the views")
        station.hear(uid, "50 %")
        station.complete(uid, lock, "3D")
        station.hear(uid, "COMPLETED")
        station.get(uid)


def scenario_push(station: Workstation) -> None:
    """PS3.17 GGG.3.2, push: a workitem is assigned to a station, which completes it."""
    with watching(station):
        uid = station.create("CAD", "110004", station=station.ae_title)
        station.hear(uid, "UPS Assigned")
        perform(station, uid, "110004")
        station.get(uid)


def scenario_watch(station: Workstation) -> None:
    """PS3.17 GGG.3.4, watch: a watcher creates the next workitem when one is completed."""
    if not station.listen:
        raise SimulationError("a watcher must be reached: give --listen PORT")
    with watching(station):
        first = station.create("CAD", "110004")
        perform(station, first, "110004")
        station.get(first)
        second = station.create("Reading", "110005", source=first)
        station.hear(second, "SCHEDULED")
        perform(station, second, "110005")


def scenario_cancel(station: Workstation) -> None:
    """The three outcomes of a cancel request: immediate, honoured, declined."""
    if not station.listen:
        raise SimulationError("the performer needs a port for the request: use --listen PORT")
    with watching(station):
        station.say("Not claimed yet: canceled at once.")
        uid = station.create("Prefetch", "FETCH")
        station.request_cancel(uid, "not needed any more")
        station.hear(uid, "UPS Cancel Requested")
        station.hear(uid, "CANCELED")
        station.say("The performer gets the request and cancels.")
        uid = station.create("3D views", "3D")
        lock = station.claim(uid)
        station.request_cancel(uid, "wrong series")
        station.hear(uid, "UPS Cancel Requested")
        station.change_state(uid, "CANCELED", lock)
        station.hear(uid, "CANCELED")
        station.say("The performer gets the request but completes.")
        uid = station.create("Write a CD", "CD")
        lock = station.claim(uid)
        station.request_cancel(uid, "patient has left")
        station.hear(uid, "UPS Cancel Requested")
        station.complete(uid, lock, "CD")
        station.hear(uid, "COMPLETED")


def scenario_reliable_watcher(station: Workstation) -> None:
    """PS3.17 GGG.1: a watcher with deletion locks misses no event while offline."""
    if not station.listen:
        raise SimulationError("a watcher must be reached: give --listen PORT")
    with station.listening():
        station.subscribe(UPS_FILTERED_SUBSCRIPTION, lock=True, only_own=True)
    station.say(f"{station.ae_title} goes offline.")
    uids = [station.create(f"Reading {number}", "110005") for number in (1, 2, 3)]
    for uid in uids:
        station.complete(uid, station.claim(uid), "110005")
    station.say(f"{station.ae_title} is back, and receives all events at the next retry.")
    with station.listening():
        for uid in uids:
            station.hear(uid, "COMPLETED")
        for uid in uids:
            station.get(uid)
        station.end_subscriptions()


def scenario_commitment(machine: Scanner) -> None:
    """Perform the patient's first step, store its images, request their commitment."""
    item, uid = started(machine)
    series = machine.end(item, uid)
    machine.store(item, series)
    machine.commit(series)


def scenario_archive(archive: SimulatedArchive) -> None:
    """Run an archive until Ctrl-C."""
    with archive.listening(), contextlib.suppress(KeyboardInterrupt):
        archive.say(f"{archive.ae_title} listens on port {archive.listen}; press Ctrl-C to stop.")
        threading.Event().wait()


ARCHIVE_SCENARIOS: dict[str, Callable[[Any], None]] = {
    "archive": scenario_archive, "commitment": scenario_commitment}  # fmt: skip
MODALITY_SCENARIOS: dict[str, Callable[[Modality], None]] = {
    "echo": Modality.echo, "modality": scenario_modality, "discontinue": scenario_discontinue}  # fmt: skip
WORKSTATION_SCENARIOS: dict[str, Callable[[Workstation], None]] = {
    "pull": scenario_pull, "push": scenario_push, "watch": scenario_watch,
    "cancel": scenario_cancel, "reliable-watcher": scenario_reliable_watcher}  # fmt: skip
SCENARIOS = (*MODALITY_SCENARIOS, *WORKSTATION_SCENARIOS, *ARCHIVE_SCENARIOS)
