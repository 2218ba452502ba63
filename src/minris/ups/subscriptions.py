"""Subscriptions to workitems (PS3.4 CC.2.3)."""

from collections.abc import Iterable
from typing import Any

from minris import log
from minris.access.context import Context, audit
from minris.dataset.elements import ElementIndex, text_elements
from minris.outbox import WAITING, enter_events, try_again
from minris.standard.status import Message, Refusal, Status
from minris.standard.uids import UPS_FILTERED_SUBSCRIPTION, WELL_KNOWN_UPS
from minris.standard.ups import (
    EVENT_TYPES,
    SUBSCRIPTION_STATES,
    SUBSCRIPTION_TRANSITIONS,
    UPS_ATTRIBUTES,
)
from minris.store.models import GlobalSubscription, database
from minris.store.rows import erase, fetch_rows, insert_rows
from minris.ups.events import can_be_told, check_receiver, enter_channel, ways_to_tell
from minris.ups.search import filter_search, find_workitem, matching_workitems


def own_state(deletion_lock: int | None) -> str:
    """Return the state in SUBSCRIPTION_STATES of a subscription with this lock; None: no row."""
    return SUBSCRIPTION_STATES[0 if deletion_lock is None else 1 if deletion_lock else 2]


def change_subscriptions(
    ctx: Context, request: str, ae_title: str, only: set[int] | None = None
) -> str:
    """Change an AE's subscriptions as the table says; return the audit words on released locks.

    request  a row of SUBSCRIPTION_TRANSITIONS
    only     ids of workitems; None for all
    """
    nothing = SUBSCRIPTION_TRANSITIONS[request, "Not Subscribed"] == ("Not Subscribed", False)
    one = only is not None and len(only) == 1
    cursor = database.execute_sql(
        "SELECT w.id, w.sop_instance_uid, w.state, w.readiness, s.deletion_lock FROM workitem w"
        f" {'' if nothing else 'LEFT '}JOIN subscription s"
        " ON s.workitem_id = w.id AND s.ae_title = ?"
        + (f" WHERE w.id = {min(only)}" if one else " ORDER BY w.id"),
        (ae_title,),
    )
    entered, left, reports, released = [], [], [], 0
    for row_id, uid, state, readiness, lock in cursor.fetchall():
        if only is not None and row_id not in only:
            continue
        new, report = SUBSCRIPTION_TRANSITIONS[request, own_state(lock)]
        released += bool(lock) and new != "with Lock"
        if new == "Not Subscribed":
            left.append((row_id, ae_title))
        elif new != own_state(lock):
            entered.append((row_id, ae_title, int(new == "with Lock"), ctx.stamp()))
        if report:
            reports.append((uid, state, readiness))
    enter_subscriptions(entered)
    delete = "DELETE FROM subscription WHERE workitem_id = ? AND ae_title = ?"
    database.connection().executemany(delete, left)
    _record_initial_reports(ctx, ae_title, reports)
    return f", {released} locks released" if released else ""


def enter_subscriptions(values: Iterable[tuple[int, str, int, str]]) -> None:
    """Write subscriptions given as (workitem id, AE title, deletion lock, time)."""
    insert_rows(
        "subscription (workitem_id, ae_title, deletion_lock, created_at) VALUES"
        " ON CONFLICT (workitem_id, ae_title) DO UPDATE SET deletion_lock = excluded.deletion_lock",
        values,
    )


def _record_initial_reports(
    ctx: Context, ae_title: str, reports: list[tuple[str, str, str]]
) -> None:
    """Write state reports for a new subscriber from (UID, state, readiness) (PS3.4 CC.2.3.2)."""
    if not reports:
        return
    now, who, kind = ctx.stamp(), str(ctx.actor), EVENT_TYPES["UPS State Report"]
    told = {
        (state, ready): bytes(text_elements(ProcedureStepState=state, InputReadinessState=ready))
        for _, state, ready in reports
    }
    (last,) = database.execute_sql("SELECT coalesce(max(id), 0) FROM workitem_event").fetchone()
    insert_rows(
        "workitem_event (id, sop_instance_uid, event_type, data, created_at, who, initial)",
        (
            (event_id, uid, kind, told[state, readiness], now, who, 1)
            for event_id, (uid, state, readiness) in enumerate(reports, last + 1)
        ),
    )
    ways = ways_to_tell(ctx, [ae_title])
    enter_events(ctx, ((last + n, *way) for n in range(1, len(reports) + 1) for way in ways))


def subscribe(
    ctx: Context, uid: str, ae_title: str, lock: bool, keys: bytes = b"", channel: str = "dimse"
) -> Status:
    """Subscribe an AE to one workitem, to all (34.5), or to those that match keys (34.5.1).

    channel  added to the channels of the AE; any AE may use WebSocket
    Returns  B301 if a lock was requested and [ups] grant_locks is off, else SUCCESS
    Refuses  C307, C308; 0120 for a filtered subscription without keys, 0115 for invalid keys
    Source   PS3.4 CC.2.3, Table CC.2.3-2
    """
    granted = lock and ctx.config.ups.grant_locks
    ending = ", lock" if granted else ""
    with database.atomic():
        if uid not in WELL_KNOWN_UPS:
            find_workitem(uid)
        check_receiver(ae_title)
        enter_channel(ctx, ae_title, channel)
        if not can_be_told(ctx, ae_title):
            words = Message("{ae} is not registered with an address", ae=ae_title)
            raise Refusal(Status.RECEIVING_AE_UNKNOWN, words)
        if uid in WELL_KNOWN_UPS:
            request, only = (
                "subscribe globally",
                _subscribe_globally(ctx, uid, ae_title, granted, keys),
            )
        else:
            request, only = "subscribe", {find_workitem(uid).id}
        released = change_subscriptions(ctx, request + ending, ae_title, only)
        # a subscriber that calls can be reached: retry at once
        try_again(ae_title)
        audit(ctx, "subscribed", uid, f"{ae_title}{' with lock' if granted else ''}{released}")
    log.info("%s subscribed to %s by %s", ae_title, uid, ctx.actor)
    return Status.SUCCESS if granted or not lock else Status.DELETION_LOCK_NOT_GRANTED


def _subscribe_globally(
    ctx: Context, uid: str, ae_title: str, lock: bool, keys: bytes
) -> set[int] | None:
    """Write a global subscription; return the ids of the workitems it covers, None for all."""
    only = None
    if uid == UPS_FILTERED_SUBSCRIPTION:
        asked = ElementIndex(keys)
        keys = bytes(asked.only(tag for tag in asked if (tag,) in UPS_ATTRIBUTES))
        if not keys:
            raise Refusal(Status.MISSING_ATTRIBUTE, Message("A filtered subscription needs keys"))
        try:
            only = matching_workitems(filter_search(keys, ctx.config.zone))
        except Refusal as refusal:  # A900 is not a status of N-ACTION
            status = Status.INVALID_ARGUMENT_VALUE
            raise Refusal(status, refusal.detail, refusal.problems) from None
    insert_rows(
        "global_subscription (ae_title, uid, deletion_lock, keys, created_at) VALUES"
        " ON CONFLICT (ae_title, uid) DO UPDATE SET deletion_lock = excluded.deletion_lock,"
        " keys = excluded.keys",
        [(ae_title, uid, int(lock), keys if only is not None else b"", ctx.stamp())],
    )
    return only


def unsubscribe(ctx: Context, uid: str, ae_title: str, why: str = "") -> None:
    """End a subscription to one workitem, or all of an AE's (34.5, 34.5.1).

    why      the reason, if a user does it for the AE
    Refuses  C307, 0115. Source: PS3.4 CC.2.3.2; local: 34.5.1 ends what 34.5 ends
    """
    check_receiver(ae_title)
    with database.atomic():
        if uid in WELL_KNOWN_UPS:
            erase("global_subscription WHERE ae_title = ?", ae_title)
            released = change_subscriptions(ctx, "unsubscribe globally", ae_title)
        else:
            row_id = find_workitem(uid).id
            released = change_subscriptions(ctx, "unsubscribe", ae_title, {row_id})
        # an AE that returns by HTTP only is no longer called by DIMSE
        erase(
            "event_channel WHERE ae_title = ? AND channel = 'dimse' AND NOT EXISTS (SELECT 1 FROM"
            " subscription s WHERE s.ae_title = event_channel.ae_title) AND NOT EXISTS (SELECT 1"
            " FROM global_subscription g WHERE g.ae_title = event_channel.ae_title)",
            ae_title,
        )
        database.execute_sql(
            "UPDATE outbox SET given_up_at = ?, problem = 'unsubscribed' WHERE receiver = ?"
            f" AND {WAITING} AND EXISTS (SELECT 1 FROM workitem_event e"
            " WHERE e.id = event_id AND e.event_type <> ? AND (? OR e.sop_instance_uid = ?))",
            (ctx.stamp(), ae_title, EVENT_TYPES["SCP Status Change"], uid in WELL_KNOWN_UPS, uid),
        )
        reason = f": {why.strip()[:500]}" if why.strip() else ""
        audit(ctx, "unsubscribed", uid, f"{ae_title}{released}{reason}")
    log.info("%s unsubscribed from %s by %s", ae_title, uid, ctx.actor)


def known_subscription(uid: str, ae_title: str, single: bool = True) -> None:
    """Refuse (C307) unless this subscription exists (PS3.18 11.11.3, 11.12.3).

    single  for a global UID, a subscription to a single workitem counts too
    """
    known = ["SELECT 1 FROM global_subscription WHERE uid = ?1 AND ae_title = ?2"]
    if uid not in WELL_KNOWN_UPS:
        find_workitem(uid)
        known = ["SELECT 1 FROM subscription s JOIN workitem w ON w.id = s.workitem_id"
                 " WHERE w.sop_instance_uid = ?1 AND s.ae_title = ?2"]  # fmt: skip
    elif single:
        known += [
            f"SELECT 1 FROM {name}subscription WHERE ae_title = ?2" for name in ("", "global_")
        ]
    if not database.execute_sql(" UNION ALL ".join(known), (uid, ae_title)).fetchone():
        raise Refusal(Status.NO_SUCH_UPS, Message("There is no such subscription"))


def suspend_global_subscription(ctx: Context, uid: str, ae_title: str) -> None:
    """End a global subscription; subscriptions to existing workitems stay.

    Refuses  C307, 0115; C314 for the UID of a workitem. Source: PS3.4 CC.2.3.2
    """
    check_receiver(ae_title)
    if uid not in WELL_KNOWN_UPS:
        find_workitem(uid)
        words = Message("Only a global subscription can be suspended")
        raise Refusal(Status.ACTION_NOT_APPROPRIATE, words)
    with database.atomic():
        erase("global_subscription WHERE ae_title = ? AND uid = ?", ae_title, uid)
        change_subscriptions(ctx, "suspend globally", ae_title)
        audit(ctx, "suspended", uid, ae_title)
    log.info("subscription of %s to %s suspended by %s", ae_title, uid, ctx.actor)


def _is_wanted(ctx: Context, row: Any, index: ElementIndex) -> bool:
    """Tell whether a global subscription covers a workitem; an unreadable filter covers none."""
    try:
        return not row.keys or filter_search(bytes(row.keys), ctx.config.zone).matches(index)
    except Refusal as refusal:
        log.error("cannot read the filter of %s: %s", row.ae_title, refusal.reason)
        return False


def subscribe_created(ctx: Context, workitem_id: int, index: ElementIndex) -> list[str]:
    """Subscribe the global subscribers to a new workitem; return their AE titles."""
    locks: dict[str, bool] = {}
    for row in fetch_rows(GlobalSubscription, "1 = 1 ORDER BY ae_title, uid"):
        if _is_wanted(ctx, row, index):
            locks[row.ae_title] = locks.get(row.ae_title, False) or bool(row.deletion_lock)
    now, requests = ctx.stamp(), ("created, global", "created, global lock")
    new = [SUBSCRIPTION_TRANSITIONS[request, "Not Subscribed"][0] for request in requests]
    enter_subscriptions(
        (workitem_id, ae, int(new[lock] == "with Lock"), now) for ae, lock in locks.items()
    )
    return list(locks)
