"""Events of workitems: contents, subscribers and channels (PS3.4 CC.2.4)."""

import collections
from collections.abc import Iterable

from minris.access.context import Context, device_of
from minris.dataset.elements import EMPTY, ElementIndex, text_elements
from minris.outbox import WAITING, enter_events
from minris.standard.dictionary import is_ae_title, tag_of
from minris.standard.status import Message, Refusal, Status
from minris.standard.uids import UPS_GLOBAL_SUBSCRIPTION
from minris.standard.ups import CANCELLATION_REASON, EVENT_TYPES, UPS_STATE
from minris.store.models import WorkitemEvent, database
from minris.store.rows import insert_row

# An AE gets events by N-EVENT-REPORT (PS3.4 CC.2.4), WebSocket (PS3.18 8.10.5), or both.
EVENT_CHANNELS = ("dimse", "websocket")


def record_event(
    ctx: Context, name: str, uid: str, told: ElementIndex, receivers: Iterable[str]
) -> None:
    """Write an event, and an outbox row for each receiver, in the caller's transaction.

    name       a key of EVENT_TYPES
    told       event information
    receivers  AE titles; if empty, the event is only history
    """
    event_id = insert_row(
        WorkitemEvent,
        sop_instance_uid=uid,
        event_type=EVENT_TYPES[name],
        data=bytes(told),
        created_at=ctx.stamp(),
        who=str(ctx.actor),
    )
    enter_events(ctx, [(event_id, *way) for way in ways_to_tell(ctx, receivers)])


def ways_to_tell(ctx: Context, receivers: Iterable[str]) -> list[tuple[str, str]]:
    """Return (AE title, channel) pairs: as the device is configured, else the channels used."""
    if not (receivers := list(receivers)):
        return []
    known = collections.defaultdict(list)
    for ae_title, channel in database.execute_sql("SELECT ae_title, channel FROM event_channel"):
        known[ae_title].append(channel)
    for device in ctx.devices:
        if device.events != "as_subscribed":
            ways = EVENT_CHANNELS if device.events == "both" else (device.events,)
            known |= {title: list(ways) for title in device.ae_titles}
    return [(title, one) for title in receivers for one in known.get(title, EVENT_CHANNELS[:1])]


def enter_channel(ctx: Context, ae_title: str, channel: str) -> bool:
    """Add a channel for an AE, DIMSE only if it has an address; return whether that is new."""
    device = device_of(ctx, ae_title)
    if channel == "dimse" and not (device and device.host):
        return False
    sql = "INSERT INTO event_channel (ae_title, channel) VALUES (?, ?) ON CONFLICT DO NOTHING"
    return database.execute_sql(sql, (ae_title, channel)).rowcount > 0


def subscribers(workitem_id: int) -> list[str]:
    """Return the AE titles subscribed to a workitem."""
    cursor = database.execute_sql(
        "SELECT ae_title FROM subscription WHERE workitem_id = ? ORDER BY ae_title", (workitem_id,)
    )
    return [title for (title,) in cursor]


def state_report(index: ElementIndex) -> ElementIndex:
    """Return the information of a UPS State Report (PS3.4 Table CC.2.4-1)."""
    told = {UPS_STATE, tag_of("InputReadinessState")}
    progress = index.item("ProcedureStepProgressInformationSequence")
    canceled = index.text(UPS_STATE) == "CANCELED"
    return index.only(told).merged(progress.only(CANCELLATION_REASON if canceled else ()))


def assigned_reports(index: ElementIndex) -> list[ElementIndex]:
    """Return the information of UPS Assigned: one per performer, one if only a station is named."""
    station = index.only([tag_of("ScheduledStationNameCodeSequence")])
    station = station if station.items(tag_of("ScheduledStationNameCodeSequence")) else EMPTY
    keywords = ("HumanPerformerCodeSequence", "HumanPerformerOrganization")
    performers = index.items(tag_of("ScheduledHumanPerformersSequence"))
    told = [station.merged(performer.only(map(tag_of, keywords))) for performer in performers]
    return told or ([station] if station.found else [])


def can_be_told(ctx: Context, ae_title: str) -> bool:
    """Tell whether an AE uses WebSocket, or is a device with a known address."""
    device = device_of(ctx, ae_title)
    has_host = bool(device and device.host)
    return any(way == "websocket" or has_host for _, way in ways_to_tell(ctx, [ae_title]))


def check_receiver(ae_title: str) -> None:
    """Refuse (0115) an invalid AE title."""
    if not is_ae_title(ae_title):
        raise Refusal(Status.INVALID_ARGUMENT_VALUE, Message("That is not an AE title"))


def announce(ctx: Context, scp_status: str, cold: bool = False) -> list[str]:
    """Send SCP Status Change to subscribers and [ups] restart_receivers; return their AE titles.

    scp_status  RESTARTED or GOING DOWN
    cold        whether the lists may have changed
    Source      PS3.4 CC.2.4.3; local: one report per AE, with the UID of global subscriptions;
                it replaces an earlier one that was not delivered
    """
    start = "COLD START" if cold else "WARM START"
    data = text_elements(
        SCPStatus=scp_status, SubscriptionListStatus=start, UnifiedProcedureStepListStatus=start
    )
    cursor = database.execute_sql(
        "SELECT ae_title FROM subscription UNION SELECT ae_title FROM global_subscription"
    )
    receivers = sorted({title for (title,) in cursor} | set(ctx.config.ups.restart_receivers))
    database.execute_sql(
        f"UPDATE outbox SET given_up_at = ?, problem = 'superseded' WHERE {WAITING}"
        " AND EXISTS (SELECT 1 FROM workitem_event e WHERE e.id = event_id AND e.event_type = ?)",
        (ctx.stamp(), EVENT_TYPES["SCP Status Change"]),
    )
    if receivers:
        record_event(ctx, "SCP Status Change", UPS_GLOBAL_SUBSCRIPTION, data, receivers)
    return receivers
