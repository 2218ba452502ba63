"""Send the outbox by DIMSE (PS3.4 CC.2.4, F.9, J.3)."""

import asyncio
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pydicom.uid import UID

from minris import log
from minris.access.devices import AccessRules, written_for
from minris.config.ini import Config, Device
from minris.delivery.receivers import Answered
from minris.dimse.encoding import request_command
from minris.outbox import (
    EVENT_LANES,
    MOST_ABORTS,
    MOST_REFUSALS,
    PASSED_ON_LANE,
    REQUEST_LANE,
    RESULT_LANE,
    Event,
)
from minris.standard.mpps import MAY_NO_LONGER_BE_UPDATED
from minris.standard.status import Message, Status
from minris.standard.uids import PASSED_ON, STORAGE_COMMITMENT, UPS_EVENT, UPS_PUSH
from minris.upper_layer.association import Association
from minris.upper_layer.caller import Caller, DeliveryError
from minris.upper_layer.tls import way_to


def known_device(device: Device | None, ae_title: str) -> Device:
    """Return the device of an AE. Raises DeliveryError if there is none with an address."""
    if not device or not device.host:
        raise DeliveryError(Message("{ae} is not registered with an address", ae=ae_title))
    return device


def answer_words(fields: Mapping[str, Any]) -> str:
    """Return a response's status and comment for the store; not for the log: may name a patient."""
    comment = "".join(c if c.isprintable() else "?" for c in fields.get("ErrorComment", ""))
    return f"{fields['Status']:04X}{' ' if comment else ''}{comment}"


# Temporary failures: the message is sent again.
PASSING_FAILURES = frozenset(
    {Status.PROCESSING_FAILURE, Status.RESOURCE_LIMITATION, Status.UNRECOGNIZED_OPERATION}
)


class Kind(NamedTuple):
    """How a kind of outbox message is sent by DIMSE, and what an answer means.

    lane      its lane; messages of a lane share an association
    proposed  SOP class of the presentation context
    named     SOP class in the command
    as_scp    whether we are its SCP (PS3.7 D.3.3.4)
    refused   text if the receiver does not accept the context
    passing, failure, aborts
              number of temporary failures, other failures, and aborted associations after which
              it is given up; 0: a failure counts as delivered, and an abort as unreachable
    """

    lane: str
    proposed: str
    named: str
    as_scp: bool
    refused: str
    passing: int
    failure: int = 0
    aborts: int = 0


KINDS = {
    # PS3.4 CC.2.4.4: the status has no effect
    "event": Kind(EVENT_LANES["dimse"], UPS_EVENT, UPS_PUSH, True,
                  Message("it does not take the UPS Event SOP class with us as SCP"), 0),
    **{
        kind: Kind(PASSED_ON_LANE, uid, uid, as_scp, Message("it does not take {service}", service=UID(uid).name),
                   MOST_REFUSALS, aborts=MOST_ABORTS)
        for kind, (uid, as_scp) in PASSED_ON.items()
    },
    # PS3.4 J.3.3: after another failure it has the result, but does not know the transaction
    "commitment result": Kind(RESULT_LANE, STORAGE_COMMITMENT, STORAGE_COMMITMENT, True,
                              Message("it does not take storage commitment with us as SCP"), sys.maxsize),
    # then a new request is made, with another Transaction UID
    "commitment request": Kind(REQUEST_LANE, STORAGE_COMMITMENT, STORAGE_COMMITMENT, False,
                               Message("the archive takes no requests for storage commitment"), 1, 1),
}  # fmt: skip


def _takes(caller: Caller, device: Device, kind: Kind) -> bool:
    """Tell whether a device accepted the context of a kind, and our role in it."""
    _, scp = caller.accepted.roles.get(kind.proposed, (False, False))
    accepted = kind.proposed in caller.accepted.contexts
    return accepted and (scp or not kind.as_scp or device.events_without_role)


ENDED_THERE = Message("it has ended there already")
NO_ROLE = Message("it answers no role (see events_without_role of its device)")


def refused_words(caller: Caller, kind: Kind) -> str:
    """Return why a receiver does not take a kind; if it answers no role, the setting for that."""
    if kind.as_scp and kind.proposed in caller.accepted.contexts:
        return f"{kind.refused}: {NO_ROLE}"
    return kind.refused


class DimseSender:
    """Sends outbox messages on our own associations, with the contexts a receiver needs.

    An association for events or passed-on messages stays open for KEEP seconds, for bursts. A
    storage commitment result first uses the requester's association, if its device wants that.

    associations  returns those that peers have open
    """

    KEEP = 3.0  # unit: seconds
    KEPT = (EVENT_LANES["dimse"], PASSED_ON_LANE)

    def __init__(
        self,
        config: Config,
        access: Callable[[], AccessRules],
        associations: Callable[[], Iterable[Association]] = tuple,
    ) -> None:
        self.config, self.access, self.associations = config, access, associations
        self.kept: dict[tuple[str, ...], Caller] = {}  # by lane, our AE title and the receiver's
        self.timers: dict[tuple[str, ...], asyncio.TimerHandle] = {}
        self.tasks: set[asyncio.Task] = set()

    async def __call__(
        self, receiver: str, events: list[Event], heard: Callable[[Event, str], None]
    ) -> None:
        """Send events of one lane to a receiver, in order. Raises DeliveryError."""
        device = self.access().device(receiver)
        known_device(device, receiver)
        first = events[0]
        if await self._told_on_theirs(device, receiver, first):
            heard(first, "")
            return
        key = KINDS[first.kind].lane, first.ours or self.config.dicom.ae_title, receiver
        caller = self.kept.pop(key, None)
        if timer := self.timers.pop(key, None):
            timer.cancel()
        was_kept = bool(caller and caller.is_open)
        if not was_kept:
            if caller:
                caller.close()
            caller = await self._open(device, key)
        try:
            for event in events:
                try:
                    answer = await self._report(caller, device, event)
                except DeliveryError:
                    if not was_kept or caller.is_open:
                        raise
                    caller = await self._open(device, key)  # it closed the kept association
                    answer = await self._report(caller, device, event)
                was_kept = True  # it works
                heard(event, answer)
        finally:
            if caller.is_open and key[0] in self.KEPT:
                self.kept[key] = caller
                loop = asyncio.get_running_loop()
                self.timers[key] = loop.call_later(self.KEEP, self._let_go, key)
            elif caller.is_open:
                await caller.release()

    async def _open(self, device: Device, key: tuple[str, ...]) -> Caller:
        """Open an association for what a device accepts in a lane. Raises DeliveryError."""
        lane, ours, theirs = key
        proposed = tuple(
            (kind.proposed, (False, True) if kind.as_scp else None)
            for name, kind in KINDS.items()
            if kind.lane == lane and (name not in PASSED_ON or name in device.passed_on)
        )
        if not proposed:
            raise DeliveryError("nothing is forwarded to it any more")
        caller = Caller(30.0 if lane == REQUEST_LANE else 10.0)  # an archive may search first
        await caller.open(
            ours=ours, theirs=theirs, proposed=proposed, **way_to(self.config, device)
        )
        return caller

    def _let_go(self, key: tuple[str, ...]) -> None:
        self.timers.pop(key).cancel()
        task = asyncio.get_running_loop().create_task(self.kept.pop(key).release())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        """Release the kept associations."""
        for key in list(self.kept):
            self._let_go(key)
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _report(self, caller: Caller, device: Device, event: Event) -> str:
        """Send a message; return its answer. Raises Answered for one that means a retry."""
        kind = KINDS[event.kind]
        if not _takes(caller, device, kind):
            of_lane = (other for other in KINDS.values() if other.lane == kind.lane)
            if not any(_takes(caller, device, other) for other in of_lane):
                raise DeliveryError(refused_words(caller, kind))
            log.warning("%s: %s", device.name, refused_words(caller, kind))
            return kind.refused  # do not hold up what it accepts
        context = caller.accepted.contexts[kind.proposed]
        data = written_for(device, event.data, context.explicit)
        numbers = event.message_id, event.event_type
        command = request_command(event.operation, kind.named, event.uid, bool(data), *numbers)
        try:
            fields = await caller.ask(context, command, data, device.combined_pdvs)
        except DeliveryError as error:
            if not kind.aborts:
                raise
            raise Answered(event.outbox_id, str(error), kind.aborts, str(error)) from None
        status, answer = fields["Status"], answer_words(fields)
        if fields.get("ErrorID") == MAY_NO_LONGER_BE_UPDATED:
            return f"{MAY_NO_LONGER_BE_UPDATED:04X} {ENDED_THERE}"
        repeated = event.operation == "N-CREATE" and status == Status.DUPLICATE_SOP_INSTANCE
        if status == Status.SUCCESS or repeated:
            return answer
        if most := kind.passing if status in PASSING_FAILURES else kind.failure:
            raise Answered(event.outbox_id, answer, most)
        log.warning("%s of %s: %s answered %04X", event.operation, event.uid, device.name, status)
        return answer

    async def _told_on_theirs(self, device: Device, receiver: str, event: Event) -> bool:
        """Tell whether the requester took a result on its own association (PS3.4 J.3.3.1.2)."""
        if event.kind != "commitment result" or not device.report_on_same_association:
            return False
        for association in self.associations():
            peer = association.peer
            if not peer or (peer.calling, peer.called) != (receiver, event.ours):
                continue
            of_class = [context for context in peer.contexts.values()
                        if context.abstract_syntax == STORAGE_COMMITMENT]  # fmt: skip
            if not of_class or STORAGE_COMMITMENT in peer.of_providers:
                continue  # there we are the SCU (PS3.7 D.3.3.4)
            written = written_for(device, event.data, of_class[0].explicit)
            numbers = Association.ASKED_ID, event.event_type
            command = request_command(
                event.operation, STORAGE_COMMITMENT, event.uid, True, *numbers
            )
            status = await association.ask(of_class[0], command, written)
            return status is not None and status not in PASSING_FAILURES
        return False
