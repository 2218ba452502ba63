"""Stuck work of all services, and how to end it."""

import datetime
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from minris.access.context import Context, needs_reason
from minris.dataset.times import utc_stamp
from minris.images.arrivals import STUDIES_WITHOUT_ORDER
from minris.mpps.linking import does_report, reporting_stations
from minris.orders.lookup import step_row
from minris.orders.scheduling import change_rows
from minris.outbox import WAITING
from minris.standard.status import Message, Refusal, Status
from minris.store.models import database
from minris.ups.people import end_workitem, release_lock

SILENT_EXAMS = (  # a report of the machine is news, and so are new images
    "SELECT 'exam', s.id, s.scheduled_procedure_step_id, max(s.started_at,"
    " coalesce(max(p.updated_at), ''), coalesce(max(i.since), '')) AS news, s.accession_number"
    " FROM scheduled_procedure_step s"
    " LEFT JOIN performed_scheduled_step l ON l.scheduled_id = s.id"
    " LEFT JOIN performed_procedure_step p ON p.id = l.performed_id"
    " LEFT JOIN study_seen i ON i.study_instance_uid = s.study_instance_uid"
    " WHERE s.status = 'STARTED' GROUP BY s.id HAVING news < ?"
)


def end_silent_exam(ctx: Context, row_id: int, why: str) -> None:
    """Mark an exam without news as done. Refuses 0106; C300 if there has been news."""
    needs_reason(why)
    old = ctx.stamp(hours=-ctx.config.housekeeping.stuck_exam_hours)
    silent = {row[1] for row in database.execute_sql(SILENT_EXAMS, (old,))}
    if row_id not in silent:
        raise Refusal(Status.MAY_NO_LONGER_BE_UPDATED, Message("It no longer needs attention"))
    change_rows(ctx, "finish", [row_id], why)


def end_leftover(ctx: Context, row_id: int, why: str) -> None:
    """Mark an exam from an earlier day as no-show. Refuses 0106, 0112, 0110, C300."""
    needs_reason(why)
    if step_row(row_id).start_date >= ctx.today():
        raise Refusal(Status.MAY_NO_LONGER_BE_UPDATED, Message("It no longer needs attention"))
    change_rows(ctx, "no show", [row_id], why)


def not_come(ctx: Context) -> list[int]:
    """Today's exams until now that have not started, on machines that report their exams."""
    reporting, found = reporting_stations(), {}
    for row_id, station in database.execute_sql(
        "SELECT s.id, t.ae_title FROM scheduled_procedure_step s JOIN scheduled_station t"
        " ON t.step_id = s.id WHERE s.start_date = ? AND s.start_time <= ?"
        " AND s.status = 'SCHEDULED'",
        (ctx.today(), f"{ctx.local_now():%H%M%S}"),
    ):
        found.setdefault(row_id, []).append(station)
    return [row_id for row_id, stations in found.items() if does_report(ctx, stations, reporting)]


def note_not_come(ctx: Context) -> int:
    """Mark these exams as no-show; return their number."""
    return change_rows(ctx, "no show", not_come(ctx))


class Orphan(NamedTuple):
    """Stuck work: kind, UID or row id, about whom or what, since when, details."""

    kind: str
    uid: str
    about: str
    since: str
    known: str


STUCK_LOCKS = (
    "SELECT 'lock', w.sop_instance_uid, s.ae_title, w.ended_at, coalesce(r.heard_at, '')"
    " FROM subscription s JOIN workitem w ON w.id = s.workitem_id"
    " LEFT JOIN receiver r ON r.lane = 'events' AND r.ae_title = s.ae_title"
    " WHERE s.deletion_lock = 1 AND w.ended_at <> '' AND w.ended_at < ? ORDER BY w.ended_at"
)
MOST_STUCK = 100  # listed per kind, oldest first
# Stuck work per service: the setting with its time limit (or now, or today), and the SELECT of the
# fields of an Orphan.
STUCK = (
    ("stuck_lock_hours", STUCK_LOCKS),
    ("stuck_workitem_hours",
     "SELECT 'silent', sop_instance_uid, performer, updated_at, label FROM workitem"
     " WHERE state = 'IN PROGRESS' AND updated_at < ? ORDER BY updated_at"),
    ("now",
     "SELECT 'expired', sop_instance_uid, worklist_label, expires_at, label FROM workitem"
     " WHERE state = 'SCHEDULED' AND expires_at <> '' AND expires_at < ? ORDER BY expires_at"),
    ("stuck_exam_hours", f"{SILENT_EXAMS} ORDER BY news"),
    ("today",
     "SELECT 'leftover', id, scheduled_procedure_step_id, created_at,"
     " start_date || ' ' || accession_number"
     " FROM scheduled_procedure_step WHERE status IN ('SCHEDULED', 'ARRIVED', 'READY')"
     " AND start_date < ? ORDER BY start_date, id"),
    ("now",
     "SELECT 'unscheduled', id, performed_station_ae_title, created_at, status"
     " FROM performed_procedure_step p WHERE settled = '' AND created_at <= ? AND NOT EXISTS"
     " (SELECT 1 FROM performed_scheduled_step l WHERE l.performed_id = p.id) ORDER BY id"),
    ("now", STUDIES_WITHOUT_ORDER),
    ("stuck_events_minutes",
     "SELECT 'commitment', transaction_uid, requester, created_at, problem FROM commitment"
     " WHERE repeats = 0 AND (state = 'given up' OR (state = 'judged' AND judged_at < ?))"
     " ORDER BY id"),
    ("stuck_events_minutes",
     "SELECT 'passed on', o.receiver, count(*), min(o.created_at), coalesce(max(r.problem), '')"
     " FROM outbox o LEFT JOIN receiver r ON r.lane = o.lane AND r.ae_title = o.receiver"
     f" WHERE o.lane = 'passed on' AND {WAITING} GROUP BY o.receiver"
     " HAVING min(o.created_at) < ? ORDER BY 4"),
    ("stuck_events_minutes",
     "SELECT 'events', o.receiver, count(*), min(o.created_at),"
     " CASE WHEN max(o.lane = 'events') THEN coalesce(max(r.problem), '') ELSE 'websocket' END"
     " FROM outbox o LEFT JOIN receiver r ON r.lane = 'events' AND r.ae_title = o.receiver"
     f" WHERE o.lane IN ('events', 'websocket') AND {WAITING} GROUP BY o.receiver"
     " HAVING min(o.created_at) < ? ORDER BY 4"),
)  # fmt: skip


def stuck_since(ctx: Context, setting: str) -> str:
    """The time before which work counts as stuck: by a setting of [housekeeping], now, or today."""
    if setting == "today":
        return ctx.today()
    value = getattr(ctx.config.housekeeping, setting, 0)
    unit = "minutes" if setting.endswith("_minutes") else "hours"
    return ctx.stamp(**{unit: -value})


def orphans(ctx: Context) -> list[Orphan]:
    """The stuck work of all services: locks, silent exams and workitems, undelivered messages, …"""
    return [
        Orphan(kind, str(uid), str(about), since, str(known))
        for setting, sql in STUCK
        for kind, uid, about, since, known in database.execute_sql(
            f"{sql} LIMIT {MOST_STUCK}", (stuck_since(ctx, setting),)
        )
    ]


def due_to_end(ctx: Context) -> list[tuple[Callable[..., None], tuple[Any, ...]]]:
    """What [housekeeping] ends automatically now: core functions with their arguments."""
    keep, due = ctx.config.housekeeping, []
    if keep.release_locks_days:
        why, old = "[housekeeping] release_locks_days", ctx.stamp(days=-keep.release_locks_days)
        locks = database.execute_sql(STUCK_LOCKS, (old,))
        due += [(release_lock, (uid, ae_title, why)) for _, uid, ae_title, *_ in locks]
    if keep.cancel_silent_workitems_hours:
        old = ctx.stamp(hours=-keep.cancel_silent_workitems_hours)
        why = "[housekeeping] cancel_silent_workitems_hours", "110513", "IN PROGRESS", old
        uids = _workitems_where("state = 'IN PROGRESS' AND updated_at < ?", old)
        due += [(end_workitem, (uid, *why)) for uid in uids]
    if keep.cancel_expired_workitems:
        where = "state = 'SCHEDULED' AND expires_at <> '' AND expires_at < ?"
        why = "[housekeeping] cancel_expired_workitems", "110533", "SCHEDULED"
        uids = _workitems_where(where, ctx.stamp())
        due += [(end_workitem, (uid, *why)) for uid in uids]
    return due


def correct_stamps(began: float, leap: float) -> None:
    """Correct the times of workitems and images that this run wrote while the clock was behind.

    began  start of this run by that clock, in seconds since 1970
    leap   how far the clock was behind, in seconds
    """
    until = time.time() - leap
    first, last = (
        utc_stamp(datetime.datetime.fromtimestamp(at, datetime.UTC)) for at in (began, until)
    )
    for table, column in (("workitem", "updated_at"), ("workitem", "claimed_at"),
                          ("workitem", "ended_at"), ("study_seen", "since"),
                          ("study_seen", "seen_at")):  # fmt: skip
        database.execute_sql(
            f"UPDATE {table} SET {column} = strftime('%Y-%m-%dT%H:%M:%f000Z', {column}, ?)"
            f" WHERE {column} BETWEEN ? AND ?",
            (f"{leap:+.3f} seconds", first, last),
        )


def _workitems_where(where: str, *values: Any) -> list[str]:
    cursor = database.execute_sql(f"SELECT sop_instance_uid FROM workitem WHERE {where}", values)
    return [uid for (uid,) in cursor]
