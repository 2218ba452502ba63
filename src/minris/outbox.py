"""What others are to be told, as rows: due, sent, failed, given up; what is passed on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from minris.access.context import Context, audit, needs_reason
from minris.standard.uids import PASSED_ON, UPS_PUSH
from minris.store.models import PassedOn, database
from minris.store.rows import fetch_rows, insert_rows

# Seconds to wait after so many failures in a row to reach somebody; the last for all that follow.
RETRY_AFTER = (5, 10, 30, 60, 120, 300, 600, 1800)


def retry_wait(failures: int) -> int:
    """Seconds to wait after so many failures in a row, 1 for the first."""
    return RETRY_AFTER[min(failures, len(RETRY_AFTER)) - 1]


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
    sop_class, _ = PASSED_ON[kind]
    insert_rows(
        "passed_on (receiver, sop_class_uid, operation, sop_instance_uid, event_type, data,"
        " created_at)",
        [(receiver, sop_class, operation, uid, event_type, data, ctx.stamp())
         for receiver in receivers],
    )  # fmt: skip


def recent_passed_on(most: int = 200) -> list[Any]:
    """The newest of what is passed on."""
    return fetch_rows(PassedOn, f"1 = 1 ORDER BY id DESC LIMIT {most}")


def passed_on_of(performed_id: int) -> list[tuple[str, str, str, str, str]]:
    """Receiver, operation, answer, time, and when it was given up, of what is passed on of a step."""
    return database.execute_sql(
        "SELECT receiver, o.operation, o.answer, o.sent_at, o.given_up_at FROM passed_on o"
        " JOIN performed_procedure_step p ON p.sop_instance_uid = o.sop_instance_uid"
        " WHERE p.id = ? ORDER BY o.id",
        (performed_id,),
    ).fetchall()


def destinations() -> list[tuple[str, int, str, str, str]]:
    """AE title, how many messages wait, since when, last success and problem of who is passed on."""
    return database.execute_sql(
        "SELECT p.receiver, sum(p.sent_at = '' AND p.given_up_at = ''), coalesce(min(CASE WHEN"
        " p.sent_at = '' AND p.given_up_at = '' THEN p.created_at END), ''),"
        " coalesce(max(d.heard_at), ''), coalesce(max(d.problem), '') FROM passed_on p"
        " LEFT JOIN destination d ON d.ae_title = p.receiver GROUP BY p.receiver ORDER BY 1"
    ).fetchall()


class Outbox(NamedTuple):
    """A queue of what AEs are to be told by DIMSE, each in its order.

    table, receivers  that of the messages, and that of how the deliveries to an AE go
    waiting           what of the table waits; `rows`: what a sender is given of it, by receiver
    """

    table: str
    receivers: str
    waiting: str
    rows: str


EVENTS_OUTBOX = Outbox(
    "outbox_event",
    "receiver",
    "channel = 'dimse' AND sent_at = '' AND given_up_at = ''",
    "SELECT o.id, e.sop_instance_uid, e.event_type, e.data FROM outbox_event o"
    " JOIN workitem_event e ON e.id = o.event_id WHERE o.channel = 'dimse'"
    " AND o.receiver = ? AND o.sent_at = '' AND o.given_up_at = '' ORDER BY o.id LIMIT ?",
)
PASSED_ON_OUTBOX = Outbox(
    "passed_on",
    "destination",
    "sent_at = '' AND given_up_at = ''",
    "SELECT id, sop_instance_uid, event_type, data, sop_class_uid, operation FROM passed_on"
    " WHERE receiver = ? AND sent_at = '' AND given_up_at = '' ORDER BY id LIMIT ?",
)


def try_again(receiver: str, outbox: Outbox = EVENTS_OUTBOX) -> None:
    """Have what a receiver has not heard tried again now, as if it had never failed."""
    database.execute_sql(
        f"UPDATE {outbox.receivers} SET try_at = '', failures = 0, failing_s = 0, problem = ''"
        " WHERE ae_title = ?",
        (receiver,),
    )


def give_up_events(ctx: Context, receiver: str, why: str, outbox: Outbox = EVENTS_OUTBOX) -> int:
    """Give up what one receiver has not been told: how many events. Refuses 0106."""
    needs_reason(why)
    cursor = database.execute_sql(
        f"UPDATE {outbox.table} SET given_up_at = ?, problem = ?"
        " WHERE receiver = ? AND sent_at = '' AND given_up_at = ''",
        (ctx.stamp(), why.strip()[:500], receiver),
    )
    audit(ctx, "events given up", receiver, f"{cursor.rowcount}: {why.strip()[:500]}")
    return cursor.rowcount


def retry_events(ctx: Context, receiver: str, outbox: Outbox = EVENTS_OUTBOX) -> None:
    """Try a receiver that has not been reached again now."""
    try_again(receiver, outbox)
    audit(ctx, "events tried again", receiver)


class Event(NamedTuple):
    """An event, or what is passed on, as a sender is given it."""

    outbox_id: int
    uid: str
    event_type: int
    data: bytes
    sop_class: str = UPS_PUSH
    operation: str = "N-EVENT-REPORT"

    @property
    def message_id(self) -> int:
        """Message ID (0000,0110): the same whenever it is sent, so that a repeat is known."""
        return self.outbox_id % 65535 + 1


def due_receivers(ctx: Context, outbox: Outbox = EVENTS_OUTBOX) -> list[str]:
    """The receivers that have something to hear and are to be tried now."""
    unsent = f"FROM {outbox.table} WHERE {outbox.waiting}"
    cursor = database.execute_sql(
        # from one receiver to the next in the index, past its thousands of events
        f"WITH RECURSIVE waiting (ae_title) AS (SELECT min(receiver) {unsent} UNION ALL"
        f" SELECT (SELECT min(receiver) {unsent} AND receiver > w.ae_title) FROM waiting w"
        " WHERE w.ae_title IS NOT NULL) SELECT w.ae_title FROM waiting w"
        f" LEFT JOIN {outbox.receivers} r ON r.ae_title = w.ae_title WHERE w.ae_title IS NOT NULL"
        # a time further off than any wait is of a clock that has been set back
        " AND (coalesce(r.try_at, '') <= ? OR r.try_at > ?)",
        (ctx.stamp(), ctx.stamp(seconds=RETRY_AFTER[-1])),
    )
    return [title for (title,) in cursor]


MOST_EVENTS = 50  # that are read at once for one receiver
# Of one message with a failure that may pass, and ends of the association in its middle; then the
# next has its turn.
MOST_REFUSALS, MOST_ABORTS = 5, 20


def due_events(
    receiver: str, most: int = MOST_EVENTS, outbox: Outbox = EVENTS_OUTBOX
) -> list[Event]:
    """What a receiver is to hear of next, in order."""
    cursor = database.execute_sql(outbox.rows, (receiver, most))
    return [Event(i, uid, kind, bytes(data), *more) for i, uid, kind, data, *more in cursor]


def note_sent(
    ctx: Context,
    receiver: str,
    answers: Mapping[int, str],
    outbox: Outbox = EVENTS_OUTBOX,
) -> None:
    """Events have been heard of, each with its answer by its id in the outbox."""
    now = ctx.stamp()
    if outbox is EVENTS_OUTBOX:  # whatever was answered (PS3.4 CC.2.4.4)
        sent, what = [(now, outbox_id) for outbox_id in answers], "sent_at = ?"
    else:
        sent = [(now, answer[:200], outbox_id) for outbox_id, answer in answers.items()]
        what = "sent_at = ?, answer = ?"
    database.connection().executemany(f"UPDATE {outbox.table} SET {what} WHERE id = ?", sent)
    database.execute_sql(
        f"INSERT INTO {outbox.receivers} (ae_title, heard_at) VALUES (?, ?)"
        " ON CONFLICT (ae_title) DO UPDATE"
        " SET failures = 0, failing_s = 0, try_at = '', problem = '', heard_at = excluded.heard_at",
        (receiver, now),
    )


def note_failed(ctx: Context, receiver: str, problem: str, outbox: Outbox = EVENTS_OUTBOX) -> int:
    """A receiver could not be told: seconds until it is tried again.

    After [housekeeping] give_up_events_hours of failing, counted by the waits and not by the
    clock, what is as old as that is given up.
    """
    row = database.execute_sql(
        f"SELECT failures, failing_s FROM {outbox.receivers} WHERE ae_title = ?", (receiver,)
    ).fetchone()
    failures, failing_s = row or (0, 0)
    wait = retry_wait(failures + 1)
    database.execute_sql(
        f"INSERT INTO {outbox.receivers} (ae_title, failures, failing_s, try_at, problem)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT (ae_title) DO UPDATE SET"
        " failures = excluded.failures, failing_s = excluded.failing_s,"
        " try_at = excluded.try_at, problem = excluded.problem",
        (receiver, failures + 1, failing_s + wait, ctx.stamp(seconds=wait), problem[:500]),
    )
    hours = ctx.config.housekeeping.give_up_events_hours
    if failing_s >= hours * 3600:
        cursor = database.execute_sql(
            f"UPDATE {outbox.table} SET given_up_at = ?, problem = ? WHERE receiver = ?"
            f" AND {outbox.waiting} AND created_at < ?",
            (ctx.stamp(), problem[:500], receiver, ctx.stamp(hours=-hours)),
        )
        if cursor.rowcount:
            audit(ctx, "events given up", receiver, f"{cursor.rowcount}: {problem[:200]}")
    return wait


def note_refused(
    ctx: Context, receiver: str, outbox_id: int, answer: str, most: int = MOST_REFUSALS
) -> int:
    """What was passed on was answered with a failure that may pass: seconds until it is tried again.

    After as many as `most` it is left, so that one message that a receiver cannot take keeps none
    from it
    """
    database.execute_sql(
        "UPDATE passed_on SET refused = refused + 1, answer = ?,"
        " given_up_at = CASE WHEN refused + 1 >= ? THEN ? ELSE '' END"
        " WHERE id = ? AND given_up_at = ''",
        (answer[:200], most, ctx.stamp(), outbox_id),
    )
    [message] = fetch_rows(PassedOn, "id = ?", outbox_id)
    if not message.given_up_at:
        return note_failed(ctx, receiver, answer, PASSED_ON_OUTBOX)
    audit(ctx, "not passed on", message.sop_instance_uid, f"{receiver}: {answer[:200]}")
    try_again(receiver, PASSED_ON_OUTBOX)
    return 0
