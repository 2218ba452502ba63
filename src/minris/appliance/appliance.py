"""The appliance: store, writer, DICOM and web server."""

import asyncio
import concurrent.futures
import contextlib
import datetime
import functools
import json
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import peewee

from minris import __version__, log
from minris.access.audit_end import AuditEnd, note_cut_off
from minris.access.context import Actor, Context
from minris.access.devices import AccessRules, device_conflicts, stored_devices
from minris.access.page_settings import stored_settings
from minris.access.users import first_password_file, make_first_user
from minris.appliance.alerting import try_alert
from minris.appliance.backups import (
    Kept,
    ToRestore,
    backups,
    listed_backups,
    order_restore,
    sweep,
    take_order,
)
from minris.appliance.health import (
    Failed,
    SecondPlace,
    alarms,
    backup_under_way,
    health,
    lights,
    metrics,
    neighbours,
    notices,
)
from minris.appliance.imports import ImportDesk
from minris.appliance.jobs import (
    BY_THE_CLOCK,
    DAILY,
    JOBS,
    Job,
    job_withheld,
    minute_trigger,
    note_rejection,
    start_backup,
)
from minris.appliance.machine import (
    ClockWatch,
    notify_systemd,
    open_certificate,
    raise_file_limit,
)
from minris.appliance.overview import second_place, tiles
from minris.appliance.store_commands import STORE_COMMANDS, ImportCommand, control_file
from minris.appliance.watchdog import feed_watchdog
from minris.config.ini import Config
from minris.delivery.alerts import AlertSender
from minris.delivery.archive import ArchiveWatch, CommitmentDesk
from minris.delivery.numbers import NumberWatch
from minris.delivery.receivers import Delivery, Lane
from minris.delivery.sockets import SocketDelivery
from minris.dimse.archive import ArchiveSearch
from minris.dimse.dispatcher import Dimse
from minris.dimse.senders import DimseSender
from minris.dimse.services import EXTENDED_NEGOTIATION, PRESENTATION_CONTEXTS
from minris.housekeeping.first_day import note_first_call
from minris.housekeeping.restoring import restore
from minris.housekeeping.stuck import correct_stamps
from minris.outbox import ALERT_LANE, EVENT_LANES, PASSED_ON_LANE
from minris.pages.day.paper import qr_lines
from minris.pages.site import build_app
from minris.standard.status import Refusal
from minris.store.checking import Checker, check_after_sudden_end
from minris.store.condition import StoreTrouble
from minris.store.files import write_private
from minris.store.models import StoreError, User, database
from minris.store.rows import get_mark, set_mark
from minris.store.sqlite import open_to_serve, reading
from minris.store.writer import Writer
from minris.upper_layer.negotiation import Negotiator
from minris.upper_layer.server import AssociationServer
from minris.ups.events import announce, can_be_told
from minris.web.addresses import page_urls
from minris.web.api import add_control
from minris.web.request import Web
from minris.web.server import Changes, WebServer

STOP_SECONDS = 3.5  # of work that is under way; with the rest a stop takes less than five


async def _together(seconds: float, *work: Coroutine[Any, Any, Any]) -> None:
    """Do some work at the same time, at most so long; a failure is logged."""
    tasks = [asyncio.ensure_future(one) for one in work]
    done, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        task.cancel()
    for task in done:
        if error := task.exception():
            log.error("while stopping", exc_info=error)


class Appliance:
    """The appliance: store, writer, DICOM and web server.

    say  takes the lines for the console
    """

    health, lights, metrics, back_up = health, lights, metrics, start_backup
    alarms, notices, neighbours = alarms, notices, neighbours
    tiles, second_place, backup_under_way, try_alert = (
        tiles,
        second_place,
        backup_under_way,
        try_alert,
    )

    def __init__(self, config: Config, say: Callable[[str], None] = print) -> None:
        self.config, self.say = config, say
        self.dicom_tls = open_certificate(config, config.dicom)
        self.web_tls = open_certificate(config, config.web)
        self.certificates = [one for one in (self.dicom_tls, self.web_tls) if one]
        self.backup_problem = self.backup_since = self.restore_problem = ""
        self.backing_up = threading.Lock()
        self.lock = open_to_serve(config.store_path)
        with contextlib.suppress(OSError):  # of a disk that is only read
            sweep(config.backup_folder)
        if control_file(config).exists():
            check_after_sudden_end(config.store_path)
        if self.lock and (order := take_order(config)):
            self._restore_ordered(order)
        if database.condition.is_damaged and config.housekeeping.restore_damaged and self.lock:
            self._restore_newest()
        self.checker = Checker(config.store_path)
        self.audit_end, cut_off = AuditEnd(config.store_path), ""
        self.access_rules, last_seen = AccessRules(config, version=0), ""
        try:
            with contextlib.suppress(StoreTrouble), reading():  # a damaged store may tell nothing
                self._load_access()
                last_seen = get_mark("clock")
                cut_off = self.audit_end.missing()
        except BaseException:
            self._release()
            raise
        self.clock = ClockWatch(float(last_seen) if last_seen else None)
        self.stuck: set[tuple[str, str, str]] = set()
        self.leftovers = 0
        self.second = SecondPlace()
        self.light_watch: Any = None
        self.failed_jobs: dict[str, Failed] = {}
        self.writer: Writer | None = None
        self.scheduler: Any = None
        self.control = secrets.token_urlsafe(32)
        # what a start writes, and whether the command line was told where to find it
        self.to_begin = [self.first_start, self.begin_marks, self.tell_of_restart]
        if cut_off:
            log.error("the audit log was cut off: a line of %s is missing", cut_off)
            self.to_begin.insert(0, lambda: note_cut_off(self.context(), cut_off))
        self.is_told = self.is_to_start_again = False
        self.started = threading.Event()
        self.dicom_port = self.dicom_tls_port = self.web_port = 0
        self.start_time, self.began_at = time.time(), time.monotonic()

    def _restore_newest(self) -> None:
        """Let the newest backup that is whole replace a damaged store, which is kept aside."""
        ctx = Context(self.config, Actor("minris"))
        for backup in reversed(backups(self.config.backup_folder)):
            try:
                kept, _ = restore(ctx, self.config.store_path, backup)
            except StoreError as error:
                log.error("%s cannot be restored: %s", backup, error)
            else:
                log.error("the damaged store is kept as %s; %s was restored", kept, backup)
                return

    def _restore_ordered(self, order: ToRestore) -> None:
        """Restore the backup that an administrator chose; what it replaces is kept aside."""
        ctx = Context(self.config, Actor(order.who, role="admin"))
        try:
            kept, _ = restore(ctx, self.config.store_path, self.config.backup_folder / order.name)
        except StoreError as error:
            log.error("%s cannot be restored: %s", order.name, error)
            self.restore_problem = f"{order.name}: {error}"
        else:
            log.warning("restored %s; the previous database is kept as %s", order.name, kept)

    def restore(self, name: str, who: str) -> None:
        """Restore a backup of our folder by a new start, which comes by itself.

        Raises  StoreError or OSError if that cannot begin
        """
        order_restore(self.config, ToRestore(name, who))
        self._start_again()

    def _committed(self) -> None:
        """Let open pages know of a commit, and keep the end of the audit log."""
        self.changes.bump()
        self.audit_end.keep()

    def _release(self) -> None:
        if self.lock:
            self.lock.release()

    def context(self, actor: Actor = Actor("minris")) -> Context:
        """Return the context of a request."""
        return Context(self.config, actor, devices=self.access_rules.devices)

    def access(self) -> AccessRules:
        """Return the current access rules."""
        return self.access_rules

    def reload_access(self) -> None:
        """Take the settings and devices of the pages after a change; wait for it.

        In the store's thread: what was saved before is seen, and no older rules come after newer
        """
        if self.writer:
            self.writer.call(self._load_access)

    def _first_call(self, ae_title: str) -> None:
        """Show pages that wait for it that a machine has called, and keep that; nobody waits."""
        device = self.access_rules.device(ae_title)
        if device and device.role == "modality":
            self.writer.submit(note_first_call, self.context(), ae_title)
        self.changes.bump()

    def _load_access(self) -> None:
        for words in self.config.take(stored_settings()):
            log.error("%s", words)
        rules = AccessRules(self.config, stored_devices(), self.access_rules.version + 1)
        for device, words in device_conflicts(rules.devices):
            log.error("device %s: %s", device.name, words)
        self.access_rules = rules

    async def start(self) -> None:
        """Start both servers and all tasks; OSError if a port is taken."""
        raise_file_limit()
        config, loop = self.config, asyncio.get_running_loop()
        self.loop = loop
        self.changes, self.beginning = Changes(loop), asyncio.Lock()
        # one for each job, one for a backup by hand, one for what else may wait
        self.job_threads = concurrent.futures.ThreadPoolExecutor(len(JOBS) + 2, "job")
        self.writer = Writer(self._committed)
        self.readers = concurrent.futures.ThreadPoolExecutor(2, "reader")
        self.dimse = Dimse(self.context, self.access, self.writer, self.readers)
        dicom, most = config.dicom, config.dicom.maximum_pdu_length
        negotiator = Negotiator(PRESENTATION_CONTEXTS, EXTENDED_NEGOTIATION, most)
        self.associations = AssociationServer(dicom, self.access, negotiator, self.dimse.dispatch)
        self.associations.on_first_call = self._first_call
        self.associations.on_rejected = functools.partial(note_rejection, self)
        listen = self.associations.listen
        if dicom.port != "off":
            self.dicom_port = await listen(dicom.host, dicom.port)
        if self.dicom_tls and dicom.tls_port:
            self.dicom_tls_port = await listen(dicom.host, dicom.tls_port, self.dicom_tls.context)
        self._start_rounds()
        self.dimse.on_events = self._wake_delivery
        self.dimse.on_caller = self.delivery.heard_from
        self.clock_task = loop.create_task(self._watch_clock())
        self.imports = ImportDesk(self.context, self.writer, self.wake_delivery)
        self.imports.before = self.clear_numbers
        web = Web(config, self.context, self.access, self.writer, self)
        app = build_app(web)
        in_slices = {"import": ImportCommand(self.imports, web.write)}
        add_control(app, web, STORE_COMMANDS, in_slices)
        self.web_server = WebServer(web, app, self.changes)
        tls = self.web_tls.context if self.web_tls else None
        self.web_port = await self.web_server.listen(config.web.host, config.web.port, tls)
        database.condition.on_change = self._condition_changed
        await self._begin()
        self.imports.go_on()
        for notice in self.notices():
            log.warning("%s", notice)
        self.start_jobs()
        self.started.set()

    async def _begin(self) -> None:
        """Write what belongs to a start; what cannot be written is, when the store can be again."""
        async with self.beginning:
            try:
                if not self.is_told:
                    told = json.dumps({"url": self.web_url, "secret": self.control})
                    write_private(control_file(self.config), told)
                    self.is_told = True
                while self.to_begin:
                    await self.write_async(self.to_begin[0])
                    del self.to_begin[0]
            except StoreTrouble:
                return
            except OSError as error:
                if not database.condition.suffers(error):
                    raise
        self._wake_delivery()

    def backups(self) -> list[Kept]:
        """Return the backups of our folder, the newest first."""
        return listed_backups(self.config.backup_folder)

    def _may_restore(self) -> bool:
        return bool(self.config.housekeeping.restore_damaged and backups(self.config.backup_folder))

    def _condition_changed(self) -> None:
        """Show a trouble of the store, or its end, on open pages; in any thread."""
        self.changes.bump()
        if database.condition.is_damaged and self._may_restore():
            self._start_again()
        if not database.condition.trouble:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                asyncio.run_coroutine_threadsafe(self._begin(), self.loop)

    def _start_rounds(self) -> None:
        """Start the tasks that call other systems."""
        # a reader of their own, so that many deliveries do not delay queries
        self.delivery_reader = concurrent.futures.ThreadPoolExecutor(1, "delivery")
        how = self.context, self.read_async, self.write_async
        search = ArchiveSearch(self.config)
        ours = self.associations
        self.sender = DimseSender(self.config, self.access, lambda: list(ours.associations))
        self.commitments = CommitmentDesk(search, *how)
        lanes = {lane: Lane(self.sender) for lane in (EVENT_LANES["dimse"], PASSED_ON_LANE)}
        lanes[ALERT_LANE] = Lane(AlertSender(self.config), most=1)
        self.delivery = Delivery(lanes | self.commitments.lanes(self.sender), *how)
        self.socket_delivery = SocketDelivery(*how)
        self.archive_watch = ArchiveWatch(search, search.count, *how)
        self.archive_watch.line = self.commitments.line
        self.archive_watch.on_change = self.commitments.on_change = self._wake_delivery
        self.numbers = NumberWatch(search.identifiers, *how)
        self.rounds = (self.archive_watch, self.commitments, self.delivery, self.socket_delivery,
                       self.numbers)  # fmt: skip
        self.tasks = [self.loop.create_task(rounds.run()) for rounds in self.rounds]

    async def read_async(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a reading function in the reader thread of deliveries."""

        def read() -> Any:
            with reading():
                return function(*arguments)

        return await asyncio.get_running_loop().run_in_executor(self.delivery_reader, read)

    async def write_async(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a core function in the store thread."""
        return await asyncio.wrap_future(self.writer.submit(function, *arguments))

    async def _watch_clock(self) -> None:
        """Watch for jumps of the system clock, every 15 seconds."""
        while True:
            await asyncio.sleep(15)
            began = self.clock.began[0]
            if leap := self.clock.check():
                log.warning("system clock jumped by %+.0f s", leap)
                # in a thread: APScheduler may hold its lock for long
                await self.loop.run_in_executor(self.job_threads, self.reschedule)
                self.clock.began = self.clock.seen
                if leap > 0:
                    try:
                        await self.write_async(correct_stamps, began, leap)
                    except Exception:
                        log.exception("the times written before the jump stay as they are")

    def _wake_delivery(self) -> None:
        """Wake the delivery tasks; call it in the loop."""
        for rounds in self.rounds:
            rounds.wake()

    def wake_delivery(self) -> None:
        """Wake the delivery tasks; call it from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self._wake_delivery)

    def clear_numbers(self, count: int = 1) -> None:
        """See to it that the archive has none of the next made numbers; not in the loop."""
        if self.numbers.at_peace():
            return
        cleared = asyncio.run_coroutine_threadsafe(self.numbers.clear(count), self.loop)
        try:
            cleared.result(self.numbers.WAIT_S)
        except TimeoutError:  # it goes on looking by itself
            self.numbers.be_at_peace("it takes long to answer")

    def begin_marks(self) -> None:
        """Mark today's daily jobs of a new store as done; they first run tomorrow."""
        for daily in DAILY:
            if not get_mark(f"daily {daily.name}"):
                set_mark(f"daily {daily.name}", self.context().today())

    def tell_of_restart(self) -> None:
        """Send event 4 to all subscribers; COLD START if the store is new or was restored."""
        ctx = self.context()
        for title in ctx.config.ups.restart_receivers:
            if not can_be_told(ctx, title):
                log.warning("[ups] restart_receivers: %s is not registered with an address", title)
        database.execute_sql("UPDATE receiver SET try_at = ''")
        database.execute_sql("UPDATE commitment SET try_at = '' WHERE state = 'asked'")
        announce(ctx, "RESTARTED", get_mark("started") in ("", "restored"))
        set_mark("started", ctx.stamp())

    async def _tell_of_going_down(self) -> None:
        """Send event 4 to all subscribers that can be reached within two seconds."""
        if not self.config.ups.tell_going_down:
            return
        with contextlib.suppress(TimeoutError, Refusal, peewee.DatabaseError):
            async with asyncio.timeout(2):
                if await self.write_async(announce, self.context(), "GOING DOWN"):
                    await self.delivery.work(wait=True, only=(EVENT_LANES["dimse"],))

    def start_jobs(self) -> None:
        """Start the jobs: intervals by the loop's clock, what has a time of day by APScheduler."""
        from apscheduler.schedulers.background import BackgroundScheduler

        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        defaults = {"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
        zone = self.config.zone or datetime.datetime.now().astimezone().tzinfo
        self.scheduler = BackgroundScheduler(job_defaults=defaults, timezone=zone)
        job = BY_THE_CLOCK
        self.scheduler.add_job(self.run_job, minute_trigger(zone), args=[job], id=job.name)
        self.scheduler.start()
        self.tasks += [self.loop.create_task(self._repeat(job)) for job in JOBS]
        self.tasks.append(self.loop.create_task(feed_watchdog(self)))

    async def _repeat(self, job: Job) -> None:
        """Run a job in a thread, again and again; a pause follows each run."""
        while True:
            await asyncio.sleep(job.seconds)
            await self.loop.run_in_executor(self.job_threads, self.run_job, job)

    def reschedule(self) -> None:
        """Look for what is due by the clock now, after it has jumped; not in the loop."""
        if self.scheduler:
            now = datetime.datetime.now(self.scheduler.timezone)
            for job in self.scheduler.get_jobs():
                job.modify(next_run_time=now)

    def run_job(self, job: Job) -> None:
        """Run a job; an exception is logged, and the job runs again at its next time."""
        try:
            job.function(self)
        except Exception:
            log.exception("job %s failed", job.name)
        finally:  # a thread that reads once in a while keeps no pages of the store in memory
            if not database.is_closed():
                database.close()

    @property
    def web_url(self) -> str:
        """The URL of the pages for a browser on this computer."""
        host = self.config.web.host
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if self.web_tls else 'http'}://{host}:{self.web_port}"

    def first_start(self) -> None:
        """Create the user admin with a random password if there are no users."""
        if User.select().exists():
            return
        password = secrets.token_urlsafe(9)
        make_first_user(self.context(), password)
        if sys.stdout and sys.stdout.isatty():
            self.say(f"First start: log in as admin with the password {password}")
        else:
            path = first_password_file(self.config)
            write_private(path, password + "\n")
            self.say(f"First start: the password of admin is in {path}")

    async def stop(self) -> None:
        """Stop both servers, answer what is under way, release the store: within STOP_SECONDS.

        What cannot be finished by then is not committed, and its caller is told so.
        """
        doors = self.associations, self.web_server
        for door in doors:
            door.stop_listening()
        until = self.loop.time() + STOP_SECONDS
        ending = concurrent.futures.ThreadPoolExecutor(2, "stop")  # others may be in use for long
        if self.scheduler:  # in a thread: it waits for APScheduler's lock
            ending.submit(self.scheduler.shutdown, False)
        await _together(2, self._tell_of_going_down(), *(door.finish(2) for door in doors))
        self.imports.close()
        for task in (self.clock_task, *self.tasks):
            task.cancel()
        await _together(1, self.sender.close(), *(rounds.close() for rounds in self.rounds))
        job_withheld(self, at_once=True)
        seconds = max(until - self.loop.time(), 0.5)
        if not await self.loop.run_in_executor(ending, self.writer.close, seconds):
            log.warning("stopped before all was written; whoever waited for it was told so")
        await _together(0.5, *(door.finish(0.5) for door in doors))
        for door in doors:
            await door.close()
        for pool in (ending, self.job_threads, self.readers, self.delivery_reader):
            pool.shutdown(wait=False, cancel_futures=True)
        # else the next start checks the store; one that was only looked at is as it was checked
        if not database.condition.trouble or (
            self.is_to_start_again and database.condition.trouble.kind in ("full", "read-only")
        ):
            control_file(self.config).unlink(missing_ok=True)
        self._release()

    async def serve(self, until: asyncio.Event) -> bool:
        """Run until the event `until` is set; return whether to start again."""
        config = self.config
        try:
            await self.start()
        except OSError as error:
            self._release()
            raise SystemExit(f"minris: cannot listen: {error}") from None
        tls = f", TLS {self.dicom_tls_port}" if self.dicom_tls_port else ""
        plain = f":{self.dicom_port}" if self.dicom_port else ""
        dicom = f"{config.dicom.ae_title} at {config.dicom.host}{plain}{tls}"
        files = f"store {config.store_path}, configuration {config.path or 'defaults'}"
        self.say(f"minris {__version__}: DICOM {dicom}, pages at {self.web_url}, {files}")
        if urls := page_urls(config, self.web_port):
            self.say(f"On other computers and phones: {' or '.join(urls)}")
            if sys.stdout and sys.stdout.isatty():
                self.say(qr_lines(urls[0]))
        notify_systemd(f"READY=1\nMAINPID={os.getpid()}")
        self.until, database.condition.on_reopen = until, self._start_again
        try:
            await until.wait()
        finally:
            notify_systemd("RELOADING=1" if self.is_to_start_again else "STOPPING=1")
            await self.stop()
        return self.is_to_start_again

    def _start_again(self) -> None:
        """End this run for another one, which opens the store anew; in any thread."""
        log.warning("minris starts again, to open the store anew")
        self.is_to_start_again = True
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self.until.set)
