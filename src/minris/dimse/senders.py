"""Requests of ours: events and what is passed on (PS3.4 CC.2.4, F.9)."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from pydicom.uid import UID

from minris import log
from minris.access.devices import AccessRules, written_for
from minris.config.ini import Config, Device
from minris.delivery.receivers import Answered
from minris.outbox import MOST_ABORTS, MOST_REFUSALS, Event
from minris.standard.mpps import MAY_NO_LONGER_BE_UPDATED
from minris.standard.status import Status
from minris.standard.uids import PASSED_ON, UPS_EVENT, UPS_PUSH
from minris.upper_layer.caller import Caller, DeliveryError
from minris.upper_layer.pdus import NO_DATA_SET, AcceptedContext, encode_command


def address_of(device: Device | None, ae_title: str) -> tuple[str, int]:
    """Where an AE is called. Raises DeliveryError where that is not known"""
    if not device or not device.host:
        raise DeliveryError(f"{ae_title} is not registered with an address")
    return device.host, device.port


def takes_from_us(caller: Caller, device: Device, sop_class: str, as_scp: bool) -> bool:
    """Whether a device has accepted a SOP class, and us in the role that it has there."""
    _, scp = caller.accepted.roles.get(sop_class, (False, False))
    accepted = sop_class in caller.accepted.contexts
    return accepted and (scp or not as_scp or device.events_without_role)


async def open_as_scp(device: Device, ours: str, theirs: str, sop_class: str, words: str) -> Caller:
    """An association to a device on which we report as SCP (PS3.7 D.3.3.4). Raises DeliveryError

    ours, theirs  calling and called AE title; words: what the class is called where it is refused
    """
    caller = Caller()
    await caller.open((device.host, device.port), ours, theirs, ((sop_class, (False, True)),))
    if takes_from_us(caller, device, sop_class, True):
        return caller
    await caller.release()
    raise DeliveryError(f"it does not take {words} with us as SCP")


# PS3.7 10.3: Command Field of a request, and whether it names a class and instance as requested.
REQUESTS = {
    "N-EVENT-REPORT": (0x0100, "Affected"),
    "N-SET": (0x0120, "Requested"),
    "N-ACTION": (0x0130, "Requested"),
    "N-CREATE": (0x0140, "Affected"),
}


def request_command(
    operation: str, sop_class: str, uid: str, has_data: bool, **fields: Any
) -> bytes:
    """The command set of a request of ours (PS3.7 10.3)."""
    number, named = REQUESTS[operation]
    fields[f"{named}SOPClassUID"], fields[f"{named}SOPInstanceUID"] = sop_class, uid
    kind = 1 if has_data else NO_DATA_SET
    return encode_command(CommandField=number, CommandDataSetType=kind, **fields)


async def send_request(
    caller: Caller,
    context: AcceptedContext,
    device: Device,
    data: bytes,
    *named: str,
    **fields: Any,
) -> dict[str, Any]:
    """Send a request without answers beside its own, and wait for it. Raises DeliveryError

    data    its data set, stored form; named: operation, SOP class and instance; fields: further
            ones of the command set
    """
    written = written_for(device, data, context.explicit)
    command = request_command(*named, bool(written), **fields)
    return await caller.ask(context, command, written, device.combined_pdvs)


def answer_words(fields: Mapping[str, Any]) -> str:
    """A response's status with its comment, as it is kept; not for the log: it may name a patient."""
    comment = "".join(c if c.isprintable() else "?" for c in fields.get("ErrorComment", ""))
    return f"{fields['Status']:04X}{' ' if comment else ''}{comment}"


class EventSender:
    """Sends N-EVENT-REPORT on associations of our own, as SCP (PS3.4 CC.2.4, PS3.7 D.3.3.4).

    An association stays open for a while, for what follows in a burst.
    """

    KEEP = 3.0  # seconds

    def __init__(self, config: Config, access: Callable[[], AccessRules]) -> None:
        self.config, self.access = config, access
        self.kept: dict[str, Caller] = {}
        self.timers: dict[str, asyncio.TimerHandle] = {}
        self.tasks: set[asyncio.Task] = set()

    async def __call__(
        self, receiver: str, events: list[Event], heard: Callable[[Event, str], None]
    ) -> None:
        """Tell one receiver events in order. Raises DeliveryError."""
        device = self.access().device(receiver)
        address_of(device, receiver)
        caller = self.kept.pop(receiver, None)
        if timer := self.timers.pop(receiver, None):
            timer.cancel()
        was_kept = bool(caller and caller.is_open)
        if not was_kept:
            if caller:
                caller.close()
            caller = await self._open(device, receiver)
        try:
            for event in events:
                try:
                    answer = await self._report(caller, device, event)
                except DeliveryError:
                    if not was_kept or caller.is_open:
                        raise
                    caller = await self._open(device, receiver)  # it has closed a kept one
                    answer = await self._report(caller, device, event)
                was_kept = True  # it has served
                heard(event, answer)
        finally:
            if caller.is_open:
                self._keep(receiver, caller)

    async def _open(self, device: Device, receiver: str) -> Caller:
        ours = self.config.dicom.ae_title
        return await open_as_scp(device, ours, receiver, UPS_EVENT, "the UPS Event SOP class")

    def _keep(self, receiver: str, caller: Caller) -> None:
        """Leave an association open for a while."""
        self.kept[receiver] = caller
        loop = asyncio.get_running_loop()
        self.timers[receiver] = loop.call_later(self.KEEP, self._let_go, receiver)

    def _let_go(self, receiver: str) -> None:
        self.timers.pop(receiver).cancel()
        task = asyncio.get_running_loop().create_task(self.kept.pop(receiver).release())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        """Release what is kept."""
        for receiver in list(self.kept):
            self._let_go(receiver)
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _report(self, caller: Caller, device: Device, event: Event) -> str:
        """Send one event: its answer."""
        context = caller.accepted.contexts[UPS_EVENT]
        fields = await send_request(
            caller, context, device, event.data, "N-EVENT-REPORT", UPS_PUSH, event.uid,
            MessageID=event.message_id, EventTypeID=event.event_type,
        )  # fmt: skip
        if fields["Status"] != Status.SUCCESS:  # PS3.4 CC.2.4.4: of no effect here
            code = f"{fields['Status']:04X}"
            log.warning("event %d of %s: answered %s", event.event_type, event.uid, code)
        return answer_words(fields)


# Failures that may pass: whoever answers them is sent the same again.
PASSING_FAILURES = frozenset(
    {Status.PROCESSING_FAILURE, Status.RESOURCE_LIMITATION, Status.UNRECOGNIZED_OPERATION}
)


class PassingOnSender(EventSender):
    """Sends what is passed on: N-CREATE and N-SET as SCU, MPPS Notification as SCP (PS3.4 F.9)."""

    async def _open(self, device: Device, receiver: str) -> Caller:
        wanted = [PASSED_ON[kind] for kind in sorted(device.passed_on)]
        proposed = tuple((uid, (False, True) if scp else None) for uid, scp in wanted)
        if not proposed:
            raise DeliveryError("it is passed on nothing any more")
        caller = Caller()
        address = device.host, device.port
        await caller.open(address, self.config.dicom.ae_title, receiver, proposed)
        return caller

    async def _report(self, caller: Caller, device: Device, event: Event) -> str:
        taken = {uid for uid, scp in PASSED_ON.values() if takes_from_us(caller, device, uid, scp)}
        if event.sop_class not in taken:
            words = f"it does not take {UID(event.sop_class).name}"
            if not taken:
                raise DeliveryError(words)
            log.warning("%s: %s", device.name, words)
            return words  # what it takes is not to wait for that
        context = caller.accepted.contexts[event.sop_class]
        try:
            fields = await send_request(
                caller, context, device, event.data, event.operation, event.sop_class, event.uid,
                MessageID=event.message_id, EventTypeID=event.event_type or None,
            )  # fmt: skip
        except DeliveryError as error:
            raise Answered(event.outbox_id, str(error), MOST_ABORTS) from None
        status, answer = fields["Status"], answer_words(fields)
        if fields.get("ErrorID") == MAY_NO_LONGER_BE_UPDATED:
            return f"{MAY_NO_LONGER_BE_UPDATED:04X} it has ended there already"
        if status in PASSING_FAILURES:
            raise Answered(event.outbox_id, answer, MOST_REFUSALS)
        repeated = event.operation == "N-CREATE" and status == Status.DUPLICATE_SOP_INSTANCE
        if status != Status.SUCCESS and not repeated:
            log.warning("%s of %s: answered %04X", event.operation, event.uid, status)
        return answer
