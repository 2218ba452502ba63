"""Scenarios, by name (PS3.17 GGG)."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from minris.simulator.archive import SimulatedArchive
from minris.simulator.modality import Modality, Scanner
from minris.simulator.peer import SimulationError
from minris.simulator.workstation import Workstation
from minris.standard.uids import UPS_FILTERED_SUBSCRIPTION, new_uid


def scenario_echo(machine: Modality) -> None:
    """C-ECHO."""
    machine.echo()


def started(machine: Modality) -> tuple[Any, str]:
    """The first step of the worklist, begun, and the UID of what performs it."""
    found = machine.worklist()
    if not found:
        raise SimulationError("the worklist is empty for this AE title and modality")
    uid = new_uid()
    machine.start(found[0], uid)
    return found[0], uid


def scenario_modality(machine: Modality) -> None:
    """Find the worklist, perform its first step, report start and end."""
    machine.end(*started(machine))


def scenario_discontinue(machine: Modality) -> None:
    """Begin the first step of the worklist and give it up."""
    machine.end(*started(machine), reason="110513")


@contextlib.contextmanager
def watching(station: Workstation, lock: bool = False) -> Iterator[None]:
    """Let a workstation hear of the workitems of its label, and leave nothing behind."""
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


def scenario_pull(station: Workstation) -> None:
    """PS3.17 GGG.3.1, pull: a performer finds a workitem, claims it, reports, completes it."""
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
    """PS3.17 GGG.3.2, push: a workitem is made for a station, which hears of it and does it."""
    with watching(station):
        uid = station.create("CAD", "110004", station=station.ae_title)
        station.hear(uid, "UPS Assigned")
        lock = station.claim(uid)
        station.complete(uid, lock, "110004")
        station.hear(uid, "COMPLETED")
        station.get(uid)


def scenario_watch(station: Workstation) -> None:
    """PS3.17 GGG.3.4, watch: who hears that one thing has ended makes the next of it."""
    if not station.listen:
        raise SimulationError("a watcher must be reached: give --listen PORT")
    with watching(station):
        first = station.create("CAD", "110004")
        lock = station.claim(first)
        station.complete(first, lock, "110004")
        station.hear(first, "COMPLETED")
        station.get(first)
        second = station.create("Reading", "110005", source=first)
        station.hear(second, "SCHEDULED")
        lock = station.claim(second)
        station.complete(second, lock, "110005")
        station.hear(second, "COMPLETED")


def scenario_cancel(station: Workstation) -> None:
    """A request to cancel in its three endings: direct, honoured, declined."""
    if not station.listen:
        raise SimulationError("nobody would hear of the request: give --listen PORT")
    with watching(station):
        station.say("Nobody has begun: it is canceled at once.")
        uid = station.create("Prefetch", "FETCH")
        station.request_cancel(uid, "not needed any more")
        station.hear(uid, "UPS Cancel Requested")
        station.hear(uid, "CANCELED")
        station.say("The performer hears of the request, and cancels.")
        uid = station.create("3D views", "3D")
        lock = station.claim(uid)
        station.request_cancel(uid, "wrong series")
        station.hear(uid, "UPS Cancel Requested")
        station.change_state(uid, "CANCELED", lock)
        station.hear(uid, "CANCELED")
        station.say("The performer hears of the request, and completes all the same.")
        uid = station.create("Write a CD", "CD")
        lock = station.claim(uid)
        station.request_cancel(uid, "patient has left")
        station.hear(uid, "UPS Cancel Requested")
        station.complete(uid, lock, "CD")
        station.hear(uid, "COMPLETED")


def scenario_reliable_watcher(station: Workstation) -> None:
    """PS3.17 GGG.1: a watcher with deletion locks goes away, comes back, and has missed nothing."""
    if not station.listen:
        raise SimulationError("a watcher must be reached: give --listen PORT")
    with station.listening():
        station.subscribe(UPS_FILTERED_SUBSCRIPTION, lock=True, only_own=True)
    station.say(f"{station.ae_title} goes away.")
    uids = [station.create(f"Reading {number}", "110005") for number in (1, 2, 3)]
    for uid in uids:
        station.complete(uid, station.claim(uid), "110005")
    station.say(f"{station.ae_title} is back, and hears of all of it as soon as it is tried again.")
    with station.listening():
        for uid in uids:
            station.hear(uid, "COMPLETED")
        for uid in uids:
            station.get(uid)
        station.end_subscriptions()


def scenario_commitment(machine: Scanner) -> None:
    """Perform the first step of the worklist, store its images, ask whether they are safe."""
    item, uid = started(machine)
    series = machine.end(item, uid)
    machine.store(item, series)
    machine.commit(series)


def scenario_archive(archive: SimulatedArchive) -> None:
    """Be an archive, until it is ended by Ctrl-C."""
    with archive.listening(), contextlib.suppress(KeyboardInterrupt):
        archive.say(f"{archive.ae_title} listens at port {archive.listen}; Ctrl-C ends it.")
        threading.Event().wait()


ARCHIVE_SCENARIOS: dict[str, Callable[[Any], None]] = {
    "archive": scenario_archive,
    "commitment": scenario_commitment,
}
MODALITY_SCENARIOS: dict[str, Callable[[Modality], None]] = {
    "echo": scenario_echo,
    "modality": scenario_modality,
    "discontinue": scenario_discontinue,
}
WORKSTATION_SCENARIOS: dict[str, Callable[[Workstation], None]] = {
    "pull": scenario_pull,
    "push": scenario_push,
    "watch": scenario_watch,
    "cancel": scenario_cancel,
    "reliable-watcher": scenario_reliable_watcher,
}
SCENARIOS = (*MODALITY_SCENARIOS, *WORKSTATION_SCENARIOS, *ARCHIVE_SCENARIOS)
