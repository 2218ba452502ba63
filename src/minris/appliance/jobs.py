"""What is done by the clock."""

import datetime
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from minris import log
from minris.access.context import Context, check_audit
from minris.appliance.health import Parts, backups
from minris.appliance.machine import notify_systemd
from minris.config.ini import Config
from minris.delivery.sockets import give_up_unfetched
from minris.housekeeping.erasing import purge
from minris.housekeeping.stuck import due_to_end, note_not_come, orphans
from minris.orders.lookup import leftovers
from minris.orders.trace import save_queries, save_shown
from minris.standard.status import Refusal
from minris.store.models import StoreError
from minris.store.rows import get_mark, set_mark
from minris.store.sqlite import backup_store, reading
from minris.ups.workitems import purge_workitems


class Job(NamedTuple):
    """Something the appliance does by the clock: an APScheduler trigger, and what."""

    name: str
    trigger: str
    when: Mapping[str, Any]
    function: Callable[[Parts], None]


def job_watchdog(appliance: Parts) -> None:
    """Tell systemd that all is well, while it is."""
    if not any(appliance.health().values()):
        notify_systemd("WATCHDOG=1")


def job_save_queries(appliance: Parts) -> None:
    """Keep the worklist queries that have gathered, and who was shown what."""
    if shown := appliance.dimse.queries.take_shown():
        appliance.writer.submit(save_shown, shown).result(60)
    if queries := appliance.dimse.queries.take():
        appliance.writer.submit(save_queries, appliance.context(), queries).result(60)


def job_purge(appliance: Parts) -> None:
    """Erase what [housekeeping] lets go."""
    appliance.writer.submit(purge, appliance.context()).result(600)
    appliance.wake_delivery()  # MPPS Notification tells what is deleted


def job_workitems(appliance: Parts) -> None:
    """Say what is newly stuck; purge workitems, and end what [housekeeping] ends of itself."""
    ctx, writer = appliance.context(), appliance.writer
    with reading():
        found, due = orphans(ctx), due_to_end(ctx)
    told = ("events", "passed on")  # about how many, which changes
    stuck = {(o.kind, o.uid, "" if o.kind in told else o.about) for o in found}
    for kind, uid, about in sorted(stuck - appliance.stuck):
        log.warning("stuck: %s", ", ".join(filter(None, (kind, uid, about))))
    appliance.stuck = stuck
    if not appliance.clock.steady:
        return
    for core, arguments in due:
        try:
            writer.submit(core, ctx, *arguments).result(60)
        except Refusal as refusal:  # it has ended meanwhile
            log.info("%s: %s", arguments[0], refusal)
    writer.submit(give_up_unfetched, ctx).result(60)
    while writer.submit(purge_workitems, ctx).result(60):
        pass  # in slices: others write between them
    appliance.wake_delivery()


def job_clock(appliance: Parts) -> None:
    """Remember what time it is, for the next start; not while the clock is in doubt."""
    if not appliance.clock.steady:
        return
    appliance.writer.submit(set_mark, "clock", f"{time.time():.0f}").result(60)


def job_daily(appliance: Parts) -> None:
    """Do what is due today and has not been done."""
    if not appliance.clock.steady:
        return
    for daily in DAILY:
        ctx = appliance.context()
        with reading():
            due = daily_due(ctx, daily)
        if due:
            try:
                daily.function(appliance)
            except Exception:
                log.exception("%s failed", daily.name)
            appliance.writer.submit(set_mark, f"daily {daily.name}", ctx.today()).result(60)


def job_renew(appliance: Parts) -> None:
    """Read renewed certificates; say which are about to expire."""
    for certificate in appliance.certificates:
        try:
            if certificate.renew():
                log.info("certificate %s is read anew", certificate.files[0])
        except (ssl.SSLError, OSError) as error:
            log.error("certificate %s cannot be read: %s", certificate.files[0], error)


def job_backup(appliance: Parts) -> None:
    """Copy the store into the folder of backups, and drop the oldest there."""
    config = appliance.config
    folder, now = config.backup_folder, appliance.context().local_now()
    try:
        backup_store(config.store_path, folder / f"minris-{now:%Y%m%d-%H%M%S}.db")
    except (StoreError, OSError) as error:
        log.error("backup: %s", error)
        appliance.backup_problem = str(error)
        return
    appliance.backup_problem = ""
    kept = backups(config)
    for old in kept[: -config.housekeeping.backups_kept]:
        old.unlink()
    log.info("backup: %d kept in %s", min(len(kept), config.housekeeping.backups_kept), folder)


class Daily(NamedTuple):
    """Something done once a day, from a time of the clinic's clock on."""

    name: str
    at: Callable[[Config], tuple[int, int] | None]
    function: Callable[[Parts], None]


def job_leftovers(appliance: Parts) -> None:
    """Say how many exams of days before are still open; the page Leftovers shows them."""
    with reading():
        appliance.leftovers = len(leftovers(appliance.context().today()))
    if appliance.leftovers:
        log.warning("%d exams of days before have not ended", appliance.leftovers)


def job_no_show(appliance: Parts) -> None:
    """Say at closing time who did not come."""
    appliance.writer.submit(note_not_come, appliance.context()).result(60)


def job_audit(appliance: Parts) -> None:
    """Say whether the audit log is as it was written, and by what another copy is compared with it."""
    with reading():
        chain = check_audit()
    if chain.broken:
        log.error("the audit log was changed: its line %d does not follow", chain.broken[0])
    log.info("audit log: %d lines, the last digest is %s", chain.count, chain.digest)


def closing_time(config: Config) -> tuple[int, int] | None:
    """When the job of who has not come is due, None for never."""
    return config.clinic.closes if config.housekeeping.no_show_after_closing else None


DAILY = (
    Daily("audit", lambda config: (0, 10), job_audit),
    Daily("leftovers", lambda config: (0, 5), job_leftovers),
    Daily("backup", lambda config: config.housekeeping.backup_time, job_backup),
    Daily("purge", lambda config: (3, 10), job_purge),
    Daily("no show", closing_time, job_no_show),
)


def daily_due(ctx: Context, daily: Daily) -> bool:
    """Whether its time has come and it was not done today; a box off at night does it when on.

    A day done that lies a little ahead is of a clock that has been set back.
    """
    at, now = daily.at(ctx.config), ctx.local_now()
    done = get_mark(f"daily {daily.name}")
    if not at or not done:
        return False
    days = (datetime.date.fromisoformat(done) - now.date()).days
    return (now.hour, now.minute) >= at and not 0 <= days <= 2


JOBS = (
    Job("queries", "interval", {"seconds": 10}, job_save_queries),
    Job("watchdog", "interval", {"seconds": 20}, job_watchdog),
    Job("clock", "interval", {"hours": 1}, job_clock),
    Job("certificates", "interval", {"minutes": 1}, job_renew),
    Job("daily", "interval", {"minutes": 1}, job_daily),
    Job("workitems", "interval", {"minutes": 5}, job_workitems),
)
