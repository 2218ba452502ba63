"""The system at a glance: a few tiles, each with a number and a small line."""

import datetime
import shutil
import time

from minris import __version__
from minris.access.context import Context, archive_of
from minris.appliance.backups import backups, taken_at
from minris.appliance.health import (
    TOO_LITTLE_ROOM,
    Parts,
    backup_under_way,
    clock_problem,
    failed_backup,
    failed_copy,
)
from minris.config.ini import Device
from minris.doctor import last_report
from minris.orders.trace import last_query
from minris.outbox import LANES, count_waiting
from minris.standard.status import Message
from minris.store.files import sized
from minris.store.models import database
from minris.store.sqlite import COUNT_STORE, StoreFacts
from minris.web.request import Tile

LITTLE_ROOM = 1 << 30  # bytes free on a disk: time to look for more


def tiles(box: Parts, to_do: int) -> list[Tile]:
    """Return the tiles of the page of the system, for people.

    to_do  number of things that need attention
    """
    ctx = box.context()
    return [
        _running(box, ctx),
        _database(box),
        _disk(box),
        _backup(box, ctx),
        _archive(box, ctx),
        _devices(box, ctx),
        _certificates(box, ctx),
        _queues(to_do),
    ]


def at_words(ctx: Context, at: datetime.datetime) -> Message:
    """Return a time by the clinic's clock: today 02:30, yesterday 02:30, or with its date."""
    at = at.astimezone(ctx.config.zone)
    days = (at.date() - ctx.local_now().date()).days
    words = DAY_WORDS.get(days, Message("{date} {time}"))
    return Message(words.key, date=f"{at:%Y-%m-%d}", time=f"{at:%H:%M}")


DAY_WORDS = {
    -1: Message("yesterday {time}"),
    0: Message("today {time}"),
    1: Message("tomorrow {time}"),
}


def _seconds(ctx: Context, seconds: float) -> Message:
    return at_words(ctx, datetime.datetime.fromtimestamp(seconds, datetime.UTC))


def _running(box: Parts, ctx: Context) -> Tile:
    minutes = int(time.monotonic() - box.began_at) // 60
    hours, days = minutes // 60, minutes // 1440
    value = Message("{count} min", count=minutes)
    if hours:
        value = Message("{hours} h {minutes} min", hours=hours, minutes=minutes % 60)
    if days:
        value = Message("{days} d {hours} h", days=days, hours=hours % 24)
    since = Message("minris {version}, since {at}", version=__version__,
                    at=_seconds(ctx, box.start_time))  # fmt: skip
    return Tile(Message("Running"), value, (since,))


def _database(box: Parts) -> Tile:
    facts = StoreFacts(*database.execute_sql(COUNT_STORE).fetchone())
    held = Message("{patients} patients, {exams} exams", patients=facts.patients, exams=facts.exams)
    trouble = database.condition.trouble
    size = sized(box.config.store_path.stat().st_size)
    return Tile(Message("Database"), size,
                (trouble.words if trouble else held,), "bad" if trouble else "good")  # fmt: skip


def _disk(box: Parts) -> Tile:
    used = shutil.disk_usage(box.config.store_path.parent)
    light = (
        "bad" if used.free < TOO_LITTLE_ROOM else "warning" if used.free < LITTLE_ROOM else "good"
    )
    return Tile(Message("Disk"), Message("{size} free", size=sized(used.free)),
                (Message("of {size}", size=sized(used.total)),), light)  # fmt: skip


def next_backup(ctx: Context) -> Message:
    """Return when the next backup is due, in words."""
    at, now = ctx.config.housekeeping.backup_time, ctx.local_now()
    if not at:
        return Message("No nightly backup is set")
    due = now.replace(hour=at[0], minute=at[1])
    due += datetime.timedelta(days=due <= now)
    return Message("next {at}", at=at_words(ctx, due))


def _backup(box: Parts, ctx: Context) -> Tile:
    kept, failed = backups(box.config.backup_folder), failed_backup(box)
    value = Message("none yet")
    if kept:
        taken = taken_at(kept[-1]).replace(tzinfo=ctx.config.zone)
        value = at_words(ctx, taken)
    lines = [*(backup_under_way(box) or failed), next_backup(ctx)]
    lines.append(second_place(box))
    light = "bad" if failed or box.second.problem else "good" if kept else "warning"
    return Tile(Message("Last backup"), value, tuple(lines), light, "/backups")


def second_place(box: Parts) -> Message:
    """Return how the last copy to the second place went, in words."""
    if not box.config.second_backup_folder:
        return Message("No second place is set")
    for problem in failed_copy(box):
        return problem
    if box.second.last:
        return Message("Second place: up to date")
    return Message("Second place: none yet")


def _archive(box: Parts, ctx: Context) -> Tile:
    words, archive = Message("Archive"), archive_of(ctx)
    if not archive:
        return Tile(words, Message("none"), (Message("Register it as a device"),), "", "/devices")
    reached = box.commitments.line.of(archive)
    if not reached.at:
        return Tile(words, Message("not asked yet"), (archive.ae_title,),
                    "", "/commitments")  # fmt: skip
    since = Message("{ae} since {at}", ae=archive.ae_title, at=_seconds(ctx, reached.since))
    if not reached.problem:
        return Tile(words, Message("reachable"), (since,), "good", "/commitments")
    return Tile(words, Message("not reachable"), (since, reached.problem), "bad", "/commitments")


def _devices(box: Parts, ctx: Context) -> Tile:
    lines, today, wrong = [], 0, False
    machines = [device for device in ctx.devices if device.role != "archive"]
    for device in machines:
        seen, problem = last_contact(box, device), clock_problem(ctx, device)
        at = Message("never called")
        if seen:
            at = at_words(ctx, seen)
            today += seen.astimezone(ctx.config.zone).date() == ctx.local_now().date()
        line = Message("{name}: {at}", name=device.name, at=at)
        if problem:
            wrong, line = True, Message("{line}. {problem}", line=line, problem=problem)
        lines.append(line)
    value = Message("{count} of {all} today", count=today, all=len(machines))
    if not machines:
        value = Message("none")
    return Tile(Message("Devices"), value, tuple(lines), "warning" if wrong else "good", "/devices")


def last_contact(box: Parts, device: Device) -> datetime.datetime | None:
    """Return when a device last called, asked or reported, as far as it is known."""
    calls = box.associations.called.copy()
    seen = [datetime.datetime.fromtimestamp(calls[title].at, datetime.UTC)
            for title in device.ae_titles if title in calls]  # fmt: skip
    if query := last_query(device.ae_titles):
        seen.append(datetime.datetime.fromisoformat(query.last_at))
    if performed := last_report(device):
        seen.append(datetime.datetime.fromisoformat(performed.updated_at))
    return max(seen, default=None)


def _certificates(box: Parts, ctx: Context) -> Tile:
    words = Message("Certificate until")
    if not box.certificates:
        return Tile(words, Message("none"), (Message("pages and DICOM are not encrypted"),))
    first = min(box.certificates, key=lambda one: one.end)
    lines = [Message("{file}: {day}", file=one.files[0].name, day=f"{one.end:%Y-%m-%d}")
             for one in box.certificates]  # fmt: skip
    light = "warning" if first.notice(ctx.now()) else "good"
    return Tile(words, f"{first.end:%Y-%m-%d}", tuple(lines), light)


def _queues(to_do: int) -> Tile:
    waiting = count_waiting(*LANES)
    return Tile(Message("Waiting to be sent"), str(waiting),
                (Message("to do: {count}", count=to_do),), "warning" if to_do else "good",
                "/orphans")  # fmt: skip
