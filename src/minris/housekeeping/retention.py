"""What has passed its time is erased, in slices between which others write."""

import collections
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from minris import log
from minris.access.context import Context, audit, purge_audit
from minris.housekeeping.auditing import purge_archives
from minris.interchange.imports import purge_imports
from minris.mpps.performed import notify_of_mpps
from minris.orders.blocking import purge_blocked
from minris.orders.notes import UNDO_HOURS
from minris.store.models import database

LOOKED_THROUGH = 500  # looked at in one slice
MOST_S = 0.05  # seconds of a slice, whatever the machine
LINES_AT_ONCE = 2000  # audit lines of a slice


class Ageing(NamedTuple):
    """What is erased of a table.

    words   what is counted; "" for what goes with something else
    table   with the column by which its rows are gone through
    days    setting of the days they are kept, 0 for ever: keep_days of [commitment], others of
            [housekeeping]; `undo`, or "" for not at all
    where   a condition on a row and :old
    first   what goes before the row: SQL for a row of :key
    last    the SQL that erases it, if it is not deleted
    told    called with the columns of `of` of each row
    """

    words: str
    table: str
    key: str
    days: str
    where: str
    first: tuple[str, ...] = ()
    last: str = ""
    told: Callable[[Context, str], None] | None = None
    of: str = ""


# Performed steps of old exams alone; a link to an exam that stays keeps one.
_OF_OLD_EXAMS = (
    "updated_at < :old AND NOT EXISTS (SELECT 1 FROM performed_scheduled_step l"
    " JOIN scheduled_procedure_step s ON s.id = l.scheduled_id"
    " WHERE l.performed_id = performed_procedure_step.id"
    " AND NOT (s.ended_at <> '' AND s.ended_at < :old))"
)
_NOT_SENT = "NOT EXISTS (SELECT 1 FROM outbox o WHERE o.event_id = workitem_event.id)"
_OVER = "(state IN ('told', 'given up') OR (state = 'judged' AND door = 'web'))"

AGEING = (
    Ageing("", "performed_procedure_step", "id", "keep_steps_days", _OF_OLD_EXAMS,
         ("DELETE FROM performed_scheduled_step WHERE performed_id = :key",),
         told=lambda ctx, uid: notify_of_mpps(ctx, uid, "deleted"), of="sop_instance_uid"),
    Ageing("steps", "scheduled_procedure_step", "id", "keep_steps_days",
         "ended_at <> '' AND ended_at < :old",
         ("DELETE FROM performed_scheduled_step WHERE scheduled_id = :key",
          "DELETE FROM scheduled_station WHERE step_id = :key",
          "DELETE FROM step_seen WHERE step_id = :key",
          "DELETE FROM value_change WHERE about = 'step ' || :key")),
    Ageing("", "requested_procedure", "id", "keep_steps_days",
         "created_at < :old AND NOT EXISTS (SELECT 1 FROM scheduled_procedure_step s"
         " WHERE s.procedure_id = requested_procedure.id)"),
    Ageing("patients", "patient", "id", "keep_patients_days",
         "updated_at < :old AND NOT EXISTS (SELECT 1 FROM requested_procedure r"
         " WHERE r.patient_id = patient.id)",
         ("DELETE FROM value_change WHERE about = 'patient ' || :key",)),
    Ageing("views", "patient_view", "id", "keep_views_days", "at < :old"),
    Ageing("queries", "query_trace", "id", "keep_queries_days", "last_at < :old"),
    Ageing("commitments", "commitment", "id", "keep_days", f"{_OVER} AND judged_at < :old",
         ("DELETE FROM commitment_instance WHERE commitment_id = :key",
          "DELETE FROM outbox WHERE commitment_id = :key"),
         # its Transaction UID stays used
         "UPDATE commitment SET state = 'dropped', data = x'' WHERE id = :key"),
    Ageing("", "availability", "sop_instance_uid", "keep_days", "at < :old"),
    Ageing("", "study_seen", "study_instance_uid", "keep_days", "since < :old"),
    Ageing("", "availability_notice", "id", "keep_days", "created_at < :old"),
    Ageing("changes", "undo_note", "id", "undo", "at < :old"),
    Ageing("deliveries", "outbox", "id", "keep_deliveries_days",
         "created_at < :old AND (sent_at <> '' OR given_up_at <> '') AND commitment_id IS NULL"),
    Ageing("initial reports", "workitem_event", "id", "", f"initial = 1 AND {_NOT_SENT}"),
    Ageing("workitem events", "workitem_event", "id", "keep_workitem_history_days",
         f"created_at < :old AND {_NOT_SENT} AND NOT EXISTS (SELECT 1 FROM workitem w"
         " WHERE w.sop_instance_uid = workitem_event.sop_instance_uid)"),
)  # fmt: skip


def old_since(ctx: Context, days: str) -> str:
    """The time before which something is old, by the days of an Ageing; empty for never."""
    if days in ("", "undo"):
        return ctx.stamp(hours=-UNDO_HOURS if days else 0)
    section = ctx.config.commitment if days == "keep_days" else ctx.config.housekeeping
    kept = getattr(section, days)
    return ctx.stamp(days=-kept) if kept else ""


def _here(core: Callable[..., Any], *arguments: Any) -> Any:
    return core(*arguments)


def purge(ctx: Context, call: Callable[..., Any] = _here) -> dict[str, int]:
    """Erase what is older than [housekeeping] says; return the counts by kind.

    call  runs a core function, and returns its result after the commit
    """
    erased: collections.Counter[str] = collections.Counter()
    for kind in AGEING:
        old, place = old_since(ctx, kind.days), 0 if kind.key == "id" else ""
        while old and place is not None:
            place, count = call(purge_slice, ctx, kind, old, place)
            erased[kind.words] += count
    if days := ctx.config.housekeeping.keep_audit_days:
        while count := call(purge_audit, ctx.stamp(days=-days), LINES_AT_ONCE):
            erased["audit lines"] += count
    while call(purge_archives, ctx):
        erased["audit files"] += 1
    erased["imports"] = call(purge_imports, ctx)
    erased["blocked times"] = call(purge_blocked, ctx)
    found = {what: count for what, count in erased.items() if what and count}
    if found:
        call(_note, ctx, counted(found))
    return found


def counted(erased: dict[str, int]) -> str:
    """How many of each kind, in words."""
    return ", ".join(f"{count} {what}" for what, count in erased.items() if count)


def _note(ctx: Context, words: str) -> None:
    audit(ctx, "purged", "store", words)
    log.info("purged: %s", words)


def purge_slice(ctx: Context, kind: Ageing, old: str, place: Any) -> tuple[Any, int]:
    """Erase what is old among the next rows of a table; return the place to go on at, and how many.

    The place is that of the last row that was looked at, None at the end of the table
    """
    until, count = time.monotonic() + MOST_S, 0
    key, table = kind.key, kind.table
    named = {"place": place, "old": old}
    (last,) = database.execute_sql(
        f"SELECT max({key}) FROM (SELECT {key} FROM {table} WHERE {key} > :place"
        f" ORDER BY {key} LIMIT {LOOKED_THROUGH})",
        named,
    ).fetchone()
    if last is None:
        return None, 0
    found = database.execute_sql(
        f"SELECT DISTINCT {key}, {kind.of or key} FROM {table} WHERE {key} > :place"
        f" AND {key} <= :last AND {kind.where} ORDER BY {key}",
        named | {"last": last},
    ).fetchall()
    with database.atomic():
        for row, of in found:
            for sql in kind.first:
                database.execute_sql(sql, {"key": row})
            sql = kind.last or f"DELETE FROM {table} WHERE {key} = :key AND {kind.where}"
            count += database.execute_sql(sql, {"key": row, "old": old}).rowcount
            if kind.told:
                kind.told(ctx, of)
            if time.monotonic() >= until:
                return row, count
    return last, count
