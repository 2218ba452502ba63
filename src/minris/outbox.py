"""What others are to be told, as rows: due, sent, refused, given up; what is passed on."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from minris.access.context import Context, audit, needs_reason
from minris.store.models import Outbox, database
from minris.store.rows import fetch_rows, insert_rows

# Seconds to wait after so many failures in a row to reach somebody; the last for all that follow.
RETRY_AFTER = (5, 10, 30, 60, 120, 300, 600, 1800)


def retry_wait(failures: int) -> int:
    """Seconds to wait after so many failures in a row, 1 for the first."""
    return RETRY_AFTER[min(failures, len(RETRY_AFTER)) - 1]


# Lanes: what one receiver is told in order. Those of events, by channel; the others.
EVENT_LANES = {"dimse": "events", "websocket": "websocket"}
PASSED_ON_LANE, RESULT_LANE, REQUEST_LANE = "passed on", "commitment results", "commitment requests"

WAITING = "sent_at = '' AND given_up_at = ''"


# What is written.


def pass_on(
    ctx: Context, kind: str, operation: str, uid: str, data: bytes = b"", event_type: int = 0
) -> None:
    """Write a message for each device that is passed on its kind, in the transaction at hand.

    kind        a key of PASSED_ON
    uid         SOP Instance UID of what it is about
    data        the data set, stored form
    Who told us is not told: two systems would tell each other without end
    """
    receivers = [
        device.ae_title
        for device in ctx.devices
        if kind in device.passed_on and ctx.actor.name not in device.ae_titles
    ]
    insert_rows(
        "outbox (kind, lane, receiver, operation, sop_instance_uid, event_type, data, created_at)",
        [(kind, PASSED_ON_LANE, receiver, operation, uid, event_type, data, ctx.stamp())
         for receiver in receivers],
    )  # fmt: skip


def enter_events(ctx: Context, to_tell: Iterable[tuple[int, str, str]]) -> None:
    """Write rows for events that are kept: each with its row, the receiver and the channel."""
    now = ctx.stamp()
    insert_rows(
        "outbox (kind, event_id, receiver, lane, created_at)",
        [("event", event_id, receiver, EVENT_LANES[channel], now)
         for event_id, receiver, channel in to_tell],
    )  # fmt: skip


# What is shown.


def recent_passed_on(most: int = 200) -> list[Any]:
    """The newest of what is passed on."""
    return fetch_rows(Outbox, f"lane = '{PASSED_ON_LANE}' ORDER BY id DESC LIMIT {most}")


def passed_on_of(performed_id: int) -> list[tuple[str, str, str, str, str]]:
    """Receiver, operation, answer, time, and when it was given up, of what is passed on of a step."""
    return database.execute_sql(
        "SELECT receiver, o.operation, o.answer, o.sent_at, o.given_up_at FROM outbox o"
        " JOIN performed_procedure_step p ON p.sop_instance_uid = o.sop_instance_uid"
        " WHERE p.id = ? ORDER BY o.id",
        (performed_id,),
    ).fetchall()


def destinations() -> list[tuple[str, int, str, str, str]]:
    """AE title, how many messages wait, since when, last success and problem of who is passed on."""
    return database.execute_sql(
        "SELECT o.receiver, sum(o.sent_at = '' AND o.given_up_at = ''), coalesce(min(CASE WHEN"
        " o.sent_at = '' AND o.given_up_at = '' THEN o.created_at END), ''),"
        " coalesce(max(r.heard_at), ''), coalesce(max(r.problem), '') FROM outbox o"
        " LEFT JOIN receiver r ON r.lane = o.lane AND r.ae_title = o.receiver"
        # +: by the index of what is passed on, not by that of all receivers
        f" WHERE o.lane = '{PASSED_ON_LANE}' GROUP BY +o.receiver ORDER BY 1"
    ).fetchall()


def count_waiting(*lanes: str) -> int:
    """How many messages of some lanes wait."""
    places = ", ".join("?" * len(lanes))
    sql = f"SELECT count(*) FROM outbox WHERE lane IN ({places}) AND {WAITING}"
    return database.execute_sql(sql, lanes).fetchone()[0]


# What is sent, and what becomes of it.


class Event(NamedTuple):
    """An event, or whatever else is to be told, as a sender is given it.

    uid            SOP Instance UID of what it is about
    event_type     Event Type ID or Action Type ID, 0 for none
    commitment_id  the request for storage commitment that it belongs to
    ours           our AE title towards this receiver, where it is not the usual one
    """

    outbox_id: int
    uid: str
    event_type: int
    data: bytes
    kind: str = "event"
    operation: str = "N-EVENT-REPORT"
    commitment_id: int | None = None
    ours: str = ""

    @property
    def message_id(self) -> int:
        """Message ID (0000,0110): the same whenever it is sent, so that a repeat is known."""
        return self.outbox_id % 65535 + 1


def due_receivers(ctx: Context, lane: str = "events") -> list[str]:
    """The receivers that have something to hear in a lane and are to be tried now."""
    unsent = f"FROM outbox WHERE lane = ?1 AND {WAITING}"
    cursor = database.execute_sql(
        # from one receiver to the next in the index, past its thousands of events
        f"WITH RECURSIVE waiting (ae_title) AS (SELECT min(receiver) {unsent} UNION ALL"
        f" SELECT (SELECT min(receiver) {unsent} AND receiver > w.ae_title) FROM waiting w"
        " WHERE w.ae_title IS NOT NULL) SELECT w.ae_title FROM waiting w"
        " LEFT JOIN receiver r ON r.lane = ?1 AND r.ae_title = w.ae_title"
        " WHERE w.ae_title IS NOT NULL"
        # a time further off than any wait is of a clock that has been set back
        " AND (coalesce(r.try_at, '') <= ?2 OR r.try_at > ?3)",
        (lane, ctx.stamp(), ctx.stamp(seconds=RETRY_AFTER[-1])),
    )
    return [title for (title,) in cursor]


MOST_EVENTS = 50  # that are read at once for one receiver
# Of one message with a failure that may pass, and ends of the association in its middle; then the
# next has its turn.
MOST_REFUSALS, MOST_ABORTS = 5, 20


def due_events(receiver: str, most: int = MOST_EVENTS, lane: str = "events") -> list[Event]:
    """What a receiver is to hear of next in a lane, in order."""
    cursor = database.execute_sql(
        "SELECT o.id, coalesce(o.sop_instance_uid, e.sop_instance_uid, ''),"
        " coalesce(e.event_type, o.event_type), coalesce(e.data, o.data), o.kind, o.operation,"
        " o.commitment_id FROM outbox o LEFT JOIN workitem_event e ON e.id = o.event_id"
        f" WHERE o.lane = ? AND o.receiver = ? AND {WAITING} ORDER BY o.id LIMIT ?",
        (lane, receiver, most),
    )
    return [Event(i, uid, number, bytes(data), *more) for i, uid, number, data, *more in cursor]


def note_sent(
    ctx: Context, receiver: str, answers: Mapping[int, str], lane: str = "events"
) -> None:
    """Messages have been heard of, each with its answer by its id in the outbox."""
    now = ctx.stamp()
    database.connection().executemany(
        "UPDATE outbox SET sent_at = ?, answer = ? WHERE id = ? AND sent_at = ''",
        [(now, answer[:200], outbox_id) for outbox_id, answer in answers.items()],
    )
    database.execute_sql(
        "INSERT INTO receiver (lane, ae_title, heard_at) VALUES (?, ?, ?)"
        " ON CONFLICT (lane, ae_title) DO UPDATE"
        " SET failures = 0, failing_s = 0, try_at = '', problem = '', heard_at = excluded.heard_at",
        (lane, receiver, now),
    )


def note_failed(ctx: Context, receiver: str, problem: str, lane: str = "events") -> int:
    """A receiver could not be told: seconds until it is tried again.

    After [housekeeping] give_up_events_hours of failing, counted by the waits and not by the
    clock, what is as old as that is given up; results of storage commitment after [commitment]
    report_hours, by the clock.
    """
    row = database.execute_sql(
        "SELECT failures, failing_s FROM receiver WHERE lane = ? AND ae_title = ?", (lane, receiver)
    ).fetchone()
    failures, failing_s = row or (0, 0)
    wait = retry_wait(failures + 1)
    database.execute_sql(
        "INSERT INTO receiver (lane, ae_title, failures, failing_s, try_at, problem)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (lane, ae_title) DO UPDATE SET"
        " failures = excluded.failures, failing_s = excluded.failing_s,"
        " try_at = excluded.try_at, problem = excluded.problem",
        (lane, receiver, failures + 1, failing_s + wait, ctx.stamp(seconds=wait), problem[:500]),
    )
    hours = ctx.config.housekeeping.give_up_events_hours
    if lane == RESULT_LANE:
        _give_up(ctx, lane, receiver, problem, -ctx.config.commitment.report_hours)
    elif failing_s >= hours * 3600 and (given_up := _give_up(ctx, lane, receiver, problem, -hours)):
        audit(ctx, "events given up", receiver, f"{given_up}: {problem[:200]}")
    return wait


def note_refused(
    ctx: Context,
    receiver: str,
    outbox_id: int,
    answer: str,
    most: int = MOST_REFUSALS,
    lane: str = PASSED_ON_LANE,
) -> int:
    """A message was answered with a failure: seconds until the receiver is tried again.

    After as many as `most` it is left, so that one message that a receiver cannot take keeps none
    from it
    """
    database.execute_sql(
        "UPDATE outbox SET refused = refused + 1, answer = ?,"
        " given_up_at = CASE WHEN refused + 1 >= ? THEN ? ELSE '' END"
        " WHERE id = ? AND given_up_at = ''",
        (answer[:200], most, ctx.stamp(), outbox_id),
    )
    for message in fetch_rows(Outbox, "id = ?", outbox_id):  # it may be erased meanwhile
        if not message.given_up_at:
            return note_failed(ctx, receiver, answer, lane)
        audit(ctx, "not passed on", message.sop_instance_uid, f"{receiver}: {answer[:200]}")
    try_again(receiver, lane)
    return 0


def _give_up(ctx: Context, lane: str, receiver: str, why: str, hours: int = 0) -> int:
    """Give up what a receiver has not been told in a lane, up to some hours from now: how many."""
    return database.execute_sql(
        "UPDATE outbox SET given_up_at = ?, problem = ?"
        f" WHERE lane = ? AND receiver = ? AND {WAITING} AND created_at <= ?",
        (ctx.stamp(), why.strip()[:500], lane, receiver, ctx.stamp(hours=hours)),
    ).rowcount


def try_again(receiver: str, lane: str = "events") -> None:
    """Have what a receiver has not heard tried again now, as if it had never failed."""
    database.execute_sql(
        "UPDATE receiver SET try_at = '', failures = 0, failing_s = 0, problem = ''"
        " WHERE lane = ? AND ae_title = ?",
        (lane, receiver),
    )


A_CENTURY = 876_000  # hours: a clock may have been set back


def give_up_events(ctx: Context, receiver: str, why: str, *lanes: str) -> int:
    """Give up what one receiver has not been told, all events if no lane is named: how many.

    Refuses 0106
    """
    needs_reason(why)
    count = sum(
        _give_up(ctx, lane, receiver, why, A_CENTURY) for lane in lanes or EVENT_LANES.values()
    )
    audit(ctx, "events given up", receiver, f"{count}: {why.strip()[:500]}")
    return count


def retry_events(ctx: Context, receiver: str, lane: str = "events") -> None:
    """Try a receiver that has not been reached again now."""
    try_again(receiver, lane)
    audit(ctx, "events tried again", receiver)
