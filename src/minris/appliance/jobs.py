"""Scheduled jobs."""

import datetime
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from minris import log
from minris.access.context import Actor, Context, audit, check_audit
from minris.appliance.alerting import job_alerts
from minris.appliance.backups import backups, copy_to_second, hold_files, thin
from minris.appliance.health import Failed, Parts
from minris.appliance.lines import tell_withheld
from minris.config.ini import Config
from minris.delivery.sockets import give_up_unfetched
from minris.housekeeping.auditing import archive_audit
from minris.housekeeping.retention import purge
from minris.housekeeping.stuck import due_to_end, note_not_come, orphans
from minris.orders.lookup import leftovers
from minris.orders.trace import save_queries, save_shown
from minris.standard.status import Refusal
from minris.store.condition import StoreTrouble
from minris.store.models import StoreError
from minris.store.rows import get_mark, set_mark
from minris.store.sqlite import backup_store, reading
from minris.ups.workitems import purge_workitems


class Job(NamedTuple):
    """A job: the seconds between two runs, by the monotonic clock, and the function to run."""

    name: str
    seconds: float
    function: Callable[[Parts], None]


def minute_trigger(zone: datetime.tzinfo) -> Any:
    """Return an APScheduler trigger for each full minute of a clock.

    Its times are never in the past. APScheduler's own triggers list every time that was missed, and
    that takes hours after a clock has leapt from 1970.
    """
    from apscheduler.triggers.cron import CronTrigger

    class FromNowOn(CronTrigger):
        def get_next_fire_time(self, previous: Any, now: datetime.datetime) -> Any:
            return super().get_next_fire_time(None, now + datetime.timedelta(seconds=1))

    return FromNowOn(second=0, timezone=zone)


def job_save_queries(appliance: Parts) -> None:
    """Store the worklist queries since the last run, and the steps they returned."""
    if shown := appliance.dimse.queries.take_shown():
        appliance.writer.call(save_shown, shown)
    if queries := appliance.dimse.queries.take():
        appliance.writer.call(save_queries, appliance.context(), queries)


def job_withheld(appliance: Parts, at_once: bool = False) -> None:
    """Tell how many log lines and rejections were held back in the minutes that have ended."""
    tell_withheld(at_once)
    for rejection in appliance.associations.withheld_rejections(at_once):
        note_rejection(appliance, *rejection)


def note_rejection(appliance: Parts, calling: str, address: str, words: str) -> None:
    """Add a rejected association to the audit log; nobody waits for it."""

    def note(ctx: Context) -> None:
        audit(ctx, "association rejected", calling, words)

    appliance.writer.submit(note, appliance.context(Actor(calling, address)))


def job_purge(appliance: Parts) -> None:
    """Erase what has passed its retention in [housekeeping]; others write between its slices."""
    purge(appliance.context(), appliance.writer.call)
    while appliance.writer.call(archive_audit, appliance.context()):
        pass  # in slices, so that others can write between them
    appliance.wake_delivery()  # MPPS Notification reports deletions


def job_workitems(appliance: Parts) -> None:
    """Log what is newly stuck; purge workitems, and close those that [housekeeping] closes."""
    ctx, writer = appliance.context(), appliance.writer
    with reading():
        found, due = orphans(ctx), due_to_end(ctx)
    told = ("events", "passed on")  # their `about` is a count, which changes
    stuck = {(o.kind, o.uid, "" if o.kind in told else o.about) for o in found}
    for kind, uid, about in sorted(stuck - appliance.stuck):
        log.warning("stuck: %s", ", ".join(filter(None, (kind, uid, about))))
    appliance.stuck = stuck
    if not appliance.clock.steady:
        return
    for core, arguments in due:
        try:
            writer.call(core, ctx, *arguments)
        except Refusal as refusal:  # it has ended in the meantime
            log.info("%s: %s", arguments[0], refusal.reason)
    writer.call(give_up_unfetched, ctx)
    while writer.call(purge_workitems, ctx):
        pass  # in slices, so that others can write between them
    appliance.wake_delivery()


def job_clock(appliance: Parts) -> None:
    """Store the time for the next start, unless the clock is doubtful."""
    if not appliance.clock.steady:
        return
    appliance.writer.call(set_mark, "clock", f"{time.time():.0f}")


class Daily(NamedTuple):
    """A daily job, due from a time of the clinic's clock on; None: never."""

    name: str
    at: Callable[[Config], tuple[int, int] | None]
    function: Callable[[Parts], None]


TRY_AGAIN_AFTER = (5, 10, 20, 40, 60)  # minutes; then each hour


def job_daily(appliance: Parts) -> None:
    """Run the daily jobs that are due and were not run today; again later what has failed."""
    if not appliance.clock.steady:
        return
    for daily in DAILY:
        ctx, failed = appliance.context(), appliance.failed_jobs.get(daily.name)
        with reading():
            due = daily_due(ctx, daily)
        day = failed.day if failed and not due else ctx.today()  # midnight has passed since
        if time.monotonic() >= failed.again_at if failed else due:
            _run_daily(appliance, daily, Failed(day, failed.times if failed else 0, 0.0))


def _run_daily(appliance: Parts, daily: Daily, so_far: Failed) -> None:
    """Run a daily job, and note it as done for its day; a failure is tried again."""
    try:
        daily.function(appliance)
        appliance.writer.call(set_mark, f"daily {daily.name}", so_far.day)
        appliance.failed_jobs.pop(daily.name, None)
    except Exception as error:
        wait = TRY_AGAIN_AFTER[min(so_far.times, len(TRY_AGAIN_AFTER) - 1)]
        again_at = time.monotonic() + 60 * wait
        appliance.failed_jobs[daily.name] = Failed(so_far.day, so_far.times + 1, again_at)
        unexpected = not isinstance(error, StoreError | StoreTrouble | OSError)
        log.error("%s failed: %s; it is tried again in %d minutes", daily.name, error, wait,
                  exc_info=unexpected)  # fmt: skip


def job_check(appliance: Parts) -> None:
    """Check the next table of the store."""
    appliance.checker.check_next(appliance.writer)


def job_renew(appliance: Parts) -> None:
    """Reload certificates whose files have changed."""
    for certificate in appliance.certificates:
        try:
            if certificate.renew():
                log.info("reloaded certificate %s", certificate.files[0])
        except (ssl.SSLError, OSError) as error:
            log.error("cannot read certificate %s: %s", certificate.files[0], error)


def job_backup(appliance: Parts) -> None:
    """Back up the store, and delete the oldest backups; a failure is logged and on every page."""
    try:
        nightly_backup(appliance)
    except (StoreError, OSError) as error:
        log.error("backup failed: %s", error)


def start_backup(appliance: Parts) -> None:
    """Let a backup be made where nightly ones are, unless one is under way; nobody waits for it."""
    if not appliance.backup_since:
        appliance.backup_since = appliance.context().stamp()
        appliance.job_threads.submit(appliance.run_job, Job("backup", 0, job_backup))


def nightly_backup(appliance: Parts) -> None:
    """Back up the store, and delete the oldest backups. Raises StoreError or OSError."""
    with appliance.backing_up:
        appliance.backup_since = appliance.context().stamp()
        try:
            _back_up(appliance)
        finally:
            appliance.backup_since = ""


def _back_up(appliance: Parts) -> None:
    config = appliance.config
    folder, now = config.backup_folder, appliance.context().local_now()
    try:
        if folder.is_dir():
            thin(config, folder, 1)
        to = folder / f"minris-{now:%Y%m%d-%H%M%S}.db"
        backup_store(config.store_path, to, None, hold_files(config))
    except (StoreError, OSError) as error:
        appliance.backup_problem = str(error)
        raise
    appliance.backup_problem = ""
    log.info("backup written; kept: %d", thin(config, folder, 2))
    if config.second_backup_folder:  # a share that hangs holds up nobody
        threading.Thread(target=job_second_backup, args=(appliance,), daemon=True).start()


def job_second_backup(appliance: Parts) -> None:
    """Copy the newest backup to the second folder if it is not there; the page says what fails."""
    config, second = appliance.config, appliance.second
    found = backups(config.backup_folder)
    if not config.second_backup_folder or not found or second.last == found[-1].name:
        return
    if not second.lock.acquire(blocking=False):
        return
    try:
        with reading():
            was_apart = get_mark("second backup folder") == str(config.second_backup_folder)
        if copy_to_second(config, found[-1], was_apart) and not was_apart:
            where = str(config.second_backup_folder)
            appliance.writer.submit(set_mark, "second backup folder", where).result(60)
        second.last, second.problem = found[-1].name, ""
        log.info("backup copied to %s", config.second_backup_folder)
    except OSError as error:
        words = error.strerror or str(error)
        if words != second.problem:
            log.error("backup not copied to %s: %s", config.second_backup_folder, words)
        second.problem = words
    finally:
        second.lock.release()


def job_leftovers(appliance: Parts) -> None:
    """Count the exams of earlier days that are still open, and log the number."""
    with reading():
        appliance.leftovers = len(leftovers(appliance.context().today()))
    if appliance.leftovers:
        log.warning("exams from earlier days still open: %d", appliance.leftovers)


def job_no_show(appliance: Parts) -> None:
    """Mark the no-shows of the day at closing time."""
    appliance.writer.call(note_not_come, appliance.context())


def job_audit(appliance: Parts) -> None:
    """Verify the audit log, and log its last digest for comparison with a copy."""
    with reading():
        chain = check_audit()
    if chain.broken:
        log.error("the audit log was tampered with: line %d breaks the chain", chain.broken[0])
    log.info("audit log: %d lines, last digest %s", chain.count, chain.digest)


DAILY = (
    Daily("audit", lambda config: (0, 10), job_audit),
    Daily("leftovers", lambda config: (0, 5), job_leftovers),
    Daily("backup", lambda config: config.housekeeping.backup_time, nightly_backup),
    Daily("purge", lambda config: (3, 10), job_purge),
    Daily("no show", lambda config: config.clinic.closes if config.housekeeping.no_show_after_closing else None, job_no_show),
)  # fmt: skip


def daily_due(ctx: Context, daily: Daily) -> bool:
    """Whether its time has passed today and it has not run yet, even if we were off at its time.

    A last run up to two days ahead counts as today's: the clock has been set back.
    """
    at, now = daily.at(ctx.config), ctx.local_now()
    done = get_mark(f"daily {daily.name}")
    if not at or not done:
        return False
    days = (datetime.date.fromisoformat(done) - now.date()).days
    return (now.hour, now.minute) >= at and not 0 <= days <= 2


JOBS = (
    Job("queries", 10, job_save_queries),
    Job("withheld", 20, job_withheld),
    Job("check", 20, job_check),
    Job("clock", 3600, job_clock),
    Job("certificates", 60, job_renew),
    Job("workitems", 300, job_workitems),
    Job("second backup", 60, job_second_backup),
    Job("alerts", 20, job_alerts),
)
BY_THE_CLOCK = Job("daily", 60, job_daily)  # what has a time of day
