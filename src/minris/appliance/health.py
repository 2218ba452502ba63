"""Health of the running appliance, and the checks before a start."""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import os
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import peewee

from minris.access.audit_end import words_of_cut_off
from minris.access.context import Context, archive_of, clinic_time, utc_now
from minris.access.devices import AccessRules, device_conflicts, stored_devices
from minris.appliance.backups import backups
from minris.appliance.machine import Certificate, ClockWatch
from minris.config.ini import OF_PAGE, Config, Device
from minris.delivery.alerts import alert_receivers
from minris.doctor import clock_words_of, last_report
from minris.housekeeping.restoring import gaps, notice_of_gap
from minris.mpps.linking import doubtful_steps
from minris.outbox import (
    EVENT_LANES,
    PASSED_ON_LANE,
    count_waiting,
    failing_receivers,
    heard_alerts,
)
from minris.standard.status import Message
from minris.store.checking import Checker, damage_of, is_mendable
from minris.store.condition import StoreTrouble
from minris.store.files import is_there
from minris.store.models import StoreError, StoreInUse, database
from minris.store.sqlite import StoreLock, read_store, reading
from minris.store.writer import Writer
from minris.upper_layer.caller import NotSecured
from minris.upper_layer.tls import way_to
from minris.web.request import Box
from minris.web.server import Changes

LIGHT_WORDS = {"store": Message("Database"), "writer": Message("Database writes"),
               "dicom": Message("DICOM service"), "disk": Message("Disk")}  # fmt: skip
STEPS_OF_DAY = """SELECT status, count(*) FROM scheduled_procedure_step WHERE start_date = ?
    GROUP BY status"""
UNSCHEDULED = """SELECT count(*) FROM performed_procedure_step p WHERE settled = '' AND NOT EXISTS
    (SELECT 1 FROM performed_scheduled_step l WHERE l.performed_id = p.id)"""
WORKITEMS = "SELECT state, count(*) FROM workitem GROUP BY state"


class Failed(NamedTuple):
    """A daily job that has failed.

    day       the day it was due
    times     how often it has failed
    again_at  when it is tried again, by the monotonic clock
    """

    day: str
    times: int
    again_at: float


@dataclasses.dataclass
class SecondPlace:
    """How the last copy to the second folder went.

    last  the name of the newest backup there, as far as we know
    """

    problem: str = ""
    last: str = ""
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class Parts(Box, Protocol):
    """What health and jobs need from the appliance."""

    config: Config
    writer: Writer | None
    changes: Changes
    checker: Checker
    clock: ClockWatch
    certificates: list[Certificate]
    stuck: set[tuple[str, str, str]]
    leftovers: int
    second: SecondPlace
    failed_jobs: dict[str, Failed]
    start_time: float
    began_at: float  # by the monotonic clock
    light_watch: Any
    backing_up: threading.Lock
    job_threads: concurrent.futures.ThreadPoolExecutor

    def context(self) -> Context: ...
    def run_job(self, job: Any) -> None: ...


TOO_LITTLE_ROOM = 64 << 20  # bytes free on the disk of the store: less is an alarm


def health(box: Parts) -> dict[str, str]:
    """Return the problem of each check, empty if it is good."""
    checks: dict[str, str] = {"store": "", "writer": "", "dicom": "", "disk": ""}
    try:
        with reading():
            database.execute_sql("SELECT 1 FROM counter LIMIT 1").fetchone()
    except Exception as error:
        checks["store"] = str(error)
    for words in alarms(box):
        checks["store"] = words
    if not box.writer or not box.writer.thread.is_alive():
        checks["writer"] = "not running"
    if not all(server.is_serving() for server in box.associations.servers):
        checks["dicom"] = "not listening"
    if shutil.disk_usage(box.config.store_path.parent).free < TOO_LITTLE_ROOM:
        checks["disk"] = "less than 64 MiB free"
    return checks


def neighbours(box: Parts) -> dict[str, str]:
    """Return the problem of each system that we need, empty if it answers; none if not asked."""
    ctx = box.context()
    archive = archive_of(ctx)
    reached = box.commitments.line.of(archive)
    if not archive or not reached.at:
        return {}
    since = datetime.datetime.fromtimestamp(reached.since, datetime.UTC)
    problem = f"{archive.ae_title} since {since:%Y-%m-%dT%H:%M:%SZ}: {reached.problem}"
    return {"archive": problem if reached.problem else ""}


def archive_light(box: Parts) -> list[tuple[Message, str, Message]]:
    """Return the light of the archive that is asked for images, if there is one."""
    ctx = box.context()
    archive = archive_of(ctx)
    if not archive or not archive.host or not ctx.config.commitment.look_minutes:
        return []
    reached = box.commitments.line.of(archive)
    seconds = reached.since if reached.problem else reached.at
    at = datetime.datetime.fromtimestamp(seconds, ctx.config.zone)
    how = {"ae": archive.ae_title, "at": at, "problem": reached.problem}
    if reached.problem:
        words = Message("{ae} has not answered since {at}: {problem}", **how)
        return [(Message("Archive"), "bad", words)]
    answered = Message("{ae} answered at {at}", **how) if reached.at else Message("not asked yet")
    return [(Message("Archive"), "good", answered)]


def clock_problem(ctx: Context, device: Device) -> Message | None:
    """Return what is wrong with the clock of a device, as of its last report."""
    performed = last_report(device)
    return clock_words_of(ctx, performed) if performed else None


def alert_lights(box: Parts) -> list[tuple[Message, str, Message]]:
    """Return a light for each way by which alerts are told."""
    found, ctx = [], box.context()
    with contextlib.suppress(StoreTrouble, peewee.DatabaseError), reading():
        known = {name: more for name, *more in heard_alerts()}
        for receiver in alert_receivers(box.config):
            heard_at, problem = known.get(receiver, ("", ""))
            how = {"receiver": receiver, "at": clinic_time(ctx, heard_at), "problem": problem}
            words = Message("{receiver}: last sent {at}", **how)
            if problem:
                words = Message("{receiver}: {problem}", **how)
            found.append((Message("Alerts"), "warning" if problem else "good", words))
    return found


def device_lights(box: Parts) -> list[tuple[Message, str, Message]]:
    """Return a light for each device that is not reached or whose clock is wrong, else one for all."""
    ctx, found = box.context(), []
    with contextlib.suppress(StoreTrouble, peewee.DatabaseError), reading():
        failing = dict(failing_receivers())
        for device in ctx.devices:
            problems = [failing[title] for title in device.ae_titles if title in failing]
            for problem in (*problems, clock_problem(ctx, device)):
                if problem:
                    words = Message("{name}: {problem}", name=device.name, problem=problem)
                    found.append((Message("Devices"), "warning", words))
    return found or [(Message("Devices"), "good", Message("OK"))]


def lights(box: Parts) -> list[tuple[Message, str, Message]]:
    """Return each component with `good`, `warning` or `bad` and its details, for people."""
    in_order = Message("OK")
    found = [
        (LIGHT_WORDS[name], "bad" if said else "good", as_message(said) if said else in_order)
        for name, said in health(box).items()
    ]
    kept = backups(box.config.backup_folder)
    last = Message("Last: {name}", name=kept[-1].name) if kept else Message("No backup yet")
    failed = failed_backup(box)
    light = "bad" if failed else "good" if kept else "warning"
    found.append((Message("Backup"), light, (backup_under_way(box) or failed or [last])[0]))
    if box.config.second_backup_folder:
        known = Message("Last: {name}", name=box.second.last)
        known = known if box.second.last else Message("No backup yet")
        light = "bad" if box.second.problem else "good" if box.second.last else "warning"
        words = (failed_copy(box) or [known])[0]
        found.append((Message("Second backup"), light, words))
    found += archive_light(box)
    found += device_lights(box)
    found += alert_lights(box)
    if box.clock.doubtful and not box.clock.steady:
        words = Message("the system clock jumped: nothing is erased until it runs evenly")
        found.append((Message("Clock"), "warning", words))
    for what, count in (
        (Message("Other problems"), len(box.stuck)),
        (Message("Unfinished exams"), box.leftovers),
        (Message("Exams reported for another patient"), doubtful_exams()),
    ):
        words = Message("{count} to look at", count=count) if count else in_order
        found.append((what, "warning" if count else "good", words))
    for _, shared in device_conflicts(box.context().devices):
        found.append((Message("Devices"), "warning", shared))
    now = utc_now()
    for certificate in box.certificates:
        notice = certificate.notice(now)
        found.append((Message("Certificate"), "warning" if notice else "good", notice or in_order))
    return found


def doubtful_exams() -> int:
    """Return how many exams a machine reported for another patient than ordered; nobody decided."""
    with contextlib.suppress(StoreTrouble, peewee.DatabaseError), reading():
        return len(doubtful_steps())
    return 0


def as_message(text: str) -> Message:
    """A text as a message; what is one stays one."""
    return text if isinstance(text, Message) else Message(text)


def alarms(_: Parts) -> list[Message]:
    """Return what is wrong with the store, for every page, and for devices that are refused."""
    trouble = database.condition.trouble
    return [trouble.words] if trouble else []


def notices(box: Parts) -> list[Message]:
    """Return the notices at the top of every page: certificates, a failed backup, a restore."""
    now, ctx = utc_now(), box.context()
    found = [notice for one in box.certificates if (notice := one.notice(now))]
    with contextlib.suppress(StoreTrouble, peewee.DatabaseError), reading():
        found += [notice_of_gap(ctx, gap) for gap in gaps()] + words_of_cut_off(ctx)
    if problem := box.restore_problem:
        found.append(Message("The backup was not restored: {problem}", problem=problem))
    return found + failed_backup(box) + failed_copy(box)


def failed_copy(box: Parts) -> list[Message]:
    """Return the notice of a backup that could not be copied to the second folder."""
    problem, folder = box.second.problem, box.config.second_backup_folder
    if not problem:
        return []
    return [Message("The backup could not be copied to {folder}: {problem}. It will be retried.",
                    folder=folder, problem=problem)]  # fmt: skip


def backup_under_way(box: Parts) -> list[Message]:
    """Return how far the backup is that is made now, if one is."""
    if not box.backup_since:
        return []
    parts = [one.stat().st_size for one in box.config.backup_folder.glob("minris-*.db.part")]
    at = clinic_time(box.context(), box.backup_since)
    return [Message("under way since {at}: {done} of {whole} MiB", at=at, done=sum(parts) >> 20,
                    whole=box.config.store_path.stat().st_size >> 20)]  # fmt: skip


def failed_backup(box: Parts) -> list[Message]:
    """Return the notice of a failed backup, if the last one failed."""
    problem, again = box.backup_problem, box.failed_jobs.get("backup")
    if not problem:
        return []
    words = Message("The last backup failed: {problem}", problem=problem)
    if not again:
        return [words]
    seconds = max(again.again_at - time.monotonic(), 0)
    at = box.context().local_now() + datetime.timedelta(seconds=seconds)
    return [words, Message("The backup will be retried at {time}", time=f"{at:%H:%M}")]


def metrics(box: Parts) -> dict[str, float]:
    """Return the figures of /metrics by name; none identifies a patient."""
    with reading():
        today = box.context().today()
        states = database.execute_sql(STEPS_OF_DAY, (today,)).fetchall()
        workitems = database.execute_sql(WORKITEMS).fetchall()
        (unscheduled,) = database.execute_sql(UNSCHEDULED).fetchone()
        waiting, to_pass_on = count_waiting(*EVENT_LANES.values()), count_waiting(PASSED_ON_LANE)
    counts = box.associations.counts
    figures = {
        "minris_associations": counts["associated", ""],
        "minris_connections_pending": counts["pending", ""],
        "minris_associations_total": box.associations.accepted,
        "minris_rejections_total": box.associations.turned_away,
        "minris_commits_total": box.writer.commits,
        "minris_event_streams": len(box.changes.waiting),
        "minris_websockets": len(box.socket_delivery),
        "minris_unscheduled_performed_steps": unscheduled,
        "minris_events_waiting": waiting,
        "minris_passed_on_waiting": to_pass_on,
        "minris_stuck": len(box.stuck),
        "minris_leftovers": box.leftovers,
        "minris_store_bytes": box.config.store_path.stat().st_size,
        "minris_start_time_seconds": box.start_time,
    }
    for name, problem in neighbours(box).items():
        figures[f'minris_neighbour_answers{{name="{name}"}}'] = 0 if problem else 1
    for name, label, found in (
        ("minris_requests_total", "operation", sorted(box.dimse.counts.items())),
        ("minris_steps_today", "state", states),
        ("minris_workitems", "state", workitems),
    ):
        figures |= {f'{name}{{{label}="{value}"}}': count for value, count in found}
    return figures


# Checks before a start.


def check_lines(config: Config) -> Iterator[tuple[str, str]]:
    """Yield each check with its problem, empty if it is good."""
    yield f"configuration: {config.path or 'none, using defaults'}", ""
    for (section, key), source in config.sources.items():
        if source == OF_PAGE:
            yield f"[{section}] {key}: from the page Settings", ""
    running = ""
    try:
        with StoreLock(config.store_path) if is_there(config.store_path) else nullcontext():
            yield from check_store_lines(config)
    except StoreInUse as error:
        running = str(error)
        try:
            found = damage_of(config.store_path)
        except UNREADABLE as unreadable:
            found = [str(unreadable)]
        yield f"store {config.store_path} (in use by a running minris)", "".join(found[:1])
    except StoreError as error:
        yield f"store {config.store_path}", str(error)
    doors = {"[dicom] port": (config.dicom.host, config.dicom.port),
             "[dicom] tls_port": (config.dicom.host, config.dicom.tls_port or "off"),
             "[web] port": (config.web.host, config.web.port)}  # fmt: skip
    for name, (host, port) in doors.items():
        if port != "off":
            problem = "" if running else port_problem(host, port)
            yield f"{name} {port}" + (" (running)" if running else ""), problem
    folder = config.store_path.parent
    free = shutil.disk_usage(folder).free >> 20 if folder.exists() else 0
    yield f"disk: {free} MiB free", "" if free > 256 else "less than 256 MiB"
    if second := config.second_backup_folder:
        there = second.is_dir() and os.access(second, os.W_OK)
        yield f"second backup folder {second}", "" if there else "not there, or not writable"
    year = datetime.datetime.now().year
    yield f"clock: {datetime.datetime.now():%Y-%m-%d %H:%M}", "" if year >= 2026 else "wrong year"
    for name, device in config.devices.items():
        if device.host:
            problem = port_problem(device.host, device.port, connect=True)
            problem = problem or tls_problem(config, Device.from_settings(name, device))
            yield f"device {name} at {device.host}:{device.port}", problem


# What a store that is damaged in any way may answer.
UNREADABLE = (StoreError, StoreTrouble, peewee.PeeweeException, sqlite3.Error, OSError,
              ValueError, LookupError, TypeError, AttributeError)  # fmt: skip


def check_store_lines(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the checks of a store that is not in use."""
    if not config.store_path.exists():
        wrong = "" if config.path else "there is none, and no config.ini: is this the right folder?"
        yield f"store {config.store_path} (created at first start)", wrong
        return
    try:
        read_store(config.store_path)
        with database.connection_context():
            found = damage_of(config.store_path)
            stored = stored_devices()
        words = found[0] if found else ""
        if words and is_mendable(found):
            words += "; the index is made anew by `minris serve` within a quarter of an hour"
        yield f"store {config.store_path}", words
        for device, words in device_conflicts(AccessRules(config, stored).devices):
            yield f"device {device.name} (made on the page)", words
    except UNREADABLE as error:
        yield f"store {config.store_path}", str(error)


def tls_problem(config: Config, device: Device) -> str:
    """Return why TLS fails with a device that is called over it, empty if it does not."""
    try:
        context = way_to(config, device).get("ssl")
        if context:
            with socket.create_connection((device.host, device.port), 3) as connection:
                context.wrap_socket(connection, server_hostname=device.host).close()
    except (OSError, NotSecured) as error:  # ssl.SSLError is an OSError
        return f"TLS: {error}"
    return ""


def port_problem(host: str, port: int, connect: bool = False) -> str:
    """Return why a port cannot be opened, or connected to, empty if it can."""
    try:
        address = host, port
        with socket.create_connection(address, 3) if connect else socket.create_server(address):
            return ""
    except OSError as error:
        return f"{'cannot connect: ' if connect else ''}{error.strerror or error}"
