"""The outbox: messages to others, pending, sent, refused or given up."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from minris.access.context import Context, audit, needs_reason
from minris.store.models import Outbox, database
from minris.store.rows import fetch_rows, insert_rows

# Seconds to wait after each failure in a row to reach a receiver; the last value repeats.
RETRY_AFTER = (5, 10, 30, 60, 120, 300, 600, 1800)


def retry_wait(failures: int) -> int:
    """Seconds to wait after this number of failures in a row, starting at 1."""
    return RETRY_AFTER[min(failures, len(RETRY_AFTER)) - 1]


# Lanes: a receiver gets the messages of a lane in order. Event lanes by channel, then the others.
EVENT_LANES = {"dimse": "events", "websocket": "websocket"}
PASSED_ON_LANE, RESULT_LANE, REQUEST_LANE = "passed on", "commitment results", "commitment requests"
ALERT_LANE = "alerts"
LANES = (*EVENT_LANES.values(), PASSED_ON_LANE, RESULT_LANE, REQUEST_LANE, ALERT_LANE)

WAITING = "sent_at = '' AND given_up_at = ''"


# Writing.


def pass_on(
    ctx: Context, kind: str, operation: str, uid: str, data: bytes = b"", event_type: int = 0
) -> None:
    """Write a message for each device that is forwarded this kind, in the current transaction.

    kind        a key of PASSED_ON
    uid         SOP Instance UID of the object
    data        the data set, stored form
    The sender gets no copy: two systems would forward to each other forever
    """
    insert_rows(
        "outbox (kind, lane, receiver, operation, sop_instance_uid, event_type, data, created_at)",
        [(kind, PASSED_ON_LANE, device.ae_title, operation, uid, event_type, data, ctx.stamp())
         for device in ctx.devices
         if kind in device.passed_on and ctx.actor.name not in device.ae_titles],
    )  # fmt: skip


def enter_events(ctx: Context, to_tell: Iterable[tuple[int, str, str]]) -> None:
    """Write a message for each stored event: its row id, the receiver and the channel."""
    now = ctx.stamp()
    insert_rows(
        "outbox (kind, event_id, receiver, lane, created_at)",
        [("event", event_id, receiver, EVENT_LANES[channel], now)
         for event_id, receiver, channel in to_tell],
    )  # fmt: skip


def enter_alert(ctx: Context, receivers: Iterable[str], data: bytes) -> None:
    """Write an alert for each of its receivers."""
    now = ctx.stamp()
    insert_rows(
        "outbox (kind, lane, receiver, data, created_at)",
        [("alert", ALERT_LANE, receiver, data, now) for receiver in receivers],
    )


# Lists.


def recent_passed_on(most: int = 200) -> list[Any]:
    """The newest forwarded messages."""
    return fetch_rows(Outbox, f"lane = '{PASSED_ON_LANE}' ORDER BY id DESC LIMIT {most}")


def passed_on_of(performed_id: int) -> list[tuple[str, str, str, str, str]]:
    """Receiver, operation, answer, time sent and time given up of a step's forwarded messages."""
    return database.execute_sql(
        "SELECT receiver, o.operation, o.answer, o.sent_at, o.given_up_at FROM outbox o"
        " JOIN performed_procedure_step p ON p.sop_instance_uid = o.sop_instance_uid"
        " WHERE p.id = ? ORDER BY o.id",
        (performed_id,),
    ).fetchall()


def destinations() -> list[tuple[str, int, str, str, str]]:
    """Each forwarding destination: AE title, waiting messages, since when, last success, problem."""
    return database.execute_sql(
        "SELECT o.receiver, sum(o.sent_at = '' AND o.given_up_at = ''), coalesce(min(CASE WHEN"
        " o.sent_at = '' AND o.given_up_at = '' THEN o.created_at END), ''),"
        " coalesce(max(r.heard_at), ''), coalesce(max(r.problem), '') FROM outbox o"
        " LEFT JOIN receiver r ON r.lane = o.lane AND r.ae_title = o.receiver"
        # +: use the index of lanes, not that of receivers
        f" WHERE o.lane = '{PASSED_ON_LANE}' GROUP BY +o.receiver ORDER BY 1"
    ).fetchall()


def count_waiting(*lanes: str) -> int:
    """The number of waiting messages of some lanes."""
    where = f"lane IN ({', '.join('?' * len(lanes))}) AND {WAITING}"
    return database.execute_sql(f"SELECT count(*) FROM outbox WHERE {where}", lanes).fetchone()[0]


def failing_receivers() -> list[tuple[str, str]]:
    """AE title and problem of each receiver that several deliveries in a row did not reach."""
    return database.execute_sql(
        "SELECT ae_title, max(problem) FROM receiver WHERE problem <> '' AND failures >= ?"
        " GROUP BY ae_title ORDER BY 1",
        (FAILURES_IN_A_ROW,),
    ).fetchall()


def heard_alerts() -> list[tuple[str, str, str]]:
    """Each receiver of alerts: its name, last success and problem."""
    return database.execute_sql(
        "SELECT ae_title, heard_at, problem FROM receiver WHERE lane = ? ORDER BY 1", (ALERT_LANE,)
    ).fetchall()


FAILURES_IN_A_ROW = 3  # one or two are a machine that is being switched on

# Delivery.


class Event(NamedTuple):
    """An event or another message to be sent.

    uid            SOP Instance UID of the object
    event_type     Event Type ID or Action Type ID, 0 for none
    commitment_id  the storage commitment request that it belongs to
    ours           our AE title towards this receiver, if not the usual one
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
        """Message ID (0000,0110): the same for each attempt, so that a repeat is recognized."""
        return self.outbox_id % 65535 + 1


def due_receivers(ctx: Context, lane: str = "events") -> list[str]:
    """The receivers with waiting messages in a lane whose next attempt is due."""
    unsent = f"FROM outbox WHERE lane = ?1 AND {WAITING}"
    cursor = database.execute_sql(
        # a skip scan of the index, past thousands of events per receiver
        f"WITH RECURSIVE waiting (ae_title) AS (SELECT min(receiver) {unsent} UNION ALL"
        f" SELECT (SELECT min(receiver) {unsent} AND receiver > w.ae_title) FROM waiting w"
        " WHERE w.ae_title IS NOT NULL) SELECT w.ae_title FROM waiting w"
        " LEFT JOIN receiver r ON r.lane = ?1 AND r.ae_title = w.ae_title"
        " WHERE w.ae_title IS NOT NULL"
        # a time further off than any wait: the clock was set back
        " AND (coalesce(r.try_at, '') <= ?2 OR r.try_at > ?3)",
        (lane, ctx.stamp(), ctx.stamp(seconds=RETRY_AFTER[-1])),
    )
    return [title for (title,) in cursor]


MOST_EVENTS = 50  # read at once for one receiver
# Maximum failures, and aborted associations, of one message; then the next one has its turn.
MOST_REFUSALS, MOST_ABORTS = 5, 20


def due_events(receiver: str, most: int = MOST_EVENTS, lane: str = "events") -> list[Event]:
    """The next messages of a lane to a receiver, in order."""
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
    """Mark messages as sent; `answers` has the answer of each by its id in the outbox."""
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
    """Note that a receiver could not be reached; return the seconds until the next attempt.

    After [housekeeping] give_up_events_hours of failures, summed from the waits and not taken from
    the clock, messages of that age are given up; storage commitment results after [commitment]
    report_hours by the clock.
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
    """Note a failure response to a message; return the seconds until the next attempt.

    After `most` failures the message is given up, so that it does not block the lane
    """
    database.execute_sql(
        "UPDATE outbox SET refused = refused + 1, answer = ?,"
        " given_up_at = CASE WHEN refused + 1 >= ? THEN ? ELSE '' END"
        " WHERE id = ? AND given_up_at = ''",
        (answer[:200], most, ctx.stamp(), outbox_id),
    )
    for message in fetch_rows(Outbox, "id = ?", outbox_id):  # it may have been erased meanwhile
        if not message.given_up_at:
            return note_failed(ctx, receiver, answer, lane)
        audit(ctx, "not forwarded", message.sop_instance_uid, f"{receiver}: {answer[:200]}")
    try_again(receiver, lane)
    return 0


def _give_up(ctx: Context, lane: str, receiver: str, why: str, hours: int = 0) -> int:
    """Give up a receiver's waiting messages written until `hours` from now; return their number."""
    return database.execute_sql(
        "UPDATE outbox SET given_up_at = ?, problem = ?"
        f" WHERE lane = ? AND receiver = ? AND {WAITING} AND created_at <= ?",
        (ctx.stamp(), why.strip()[:500], lane, receiver, ctx.stamp(hours=hours)),
    ).rowcount


def try_again(receiver: str, lane: str = "events") -> None:
    """Make a receiver's next attempt due now, and forget its failures."""
    database.execute_sql(
        "UPDATE receiver SET try_at = '', failures = 0, failing_s = 0, problem = ''"
        " WHERE lane = ? AND ae_title = ?",
        (lane, receiver),
    )


A_CENTURY = 876_000  # hours: the clock may have been set back


def give_up_events(ctx: Context, receiver: str, why: str, *lanes: str) -> int:
    """Give up a receiver's waiting messages in some lanes, by default events; return their number.

    Refuses  0106 without a reason
    """
    needs_reason(why)
    lanes = lanes or tuple(EVENT_LANES.values())
    count = sum(_give_up(ctx, lane, receiver, why, A_CENTURY) for lane in lanes)
    audit(ctx, "events given up", receiver, f"{count}: {why.strip()[:500]}")
    return count


def retry_events(ctx: Context, receiver: str, lane: str = "events") -> None:
    """Retry a receiver now that could not be reached."""
    try_again(receiver, lane)
    audit(ctx, "events tried again", receiver)
