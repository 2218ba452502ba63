"""An outbox emptied, whenever woken: each receiver in its own order, none waiting for another."""

import asyncio
import collections
import contextlib
import functools
from collections.abc import Callable
from typing import Any

from minris import log
from minris.access.context import Context
from minris.outbox import (
    EVENTS_OUTBOX,
    MOST_EVENTS,
    MOST_REFUSALS,
    RETRY_AFTER,
    Event,
    Outbox,
    due_events,
    due_receivers,
    note_failed,
    note_refused,
    note_sent,
    try_again,
)
from minris.upper_layer.caller import DeliveryError


class Rounds:
    """What is done over and over: whenever woken, and every few seconds; `work` is one round.

    NAME   for the log, where a round fails
    PAUSE  seconds until the next round, where nobody wakes it
    CALM   seconds between two rounds, while much is written
    """

    NAME, PAUSE, CALM = "", 5.0, 0.01

    def __init__(self) -> None:
        self.wanted = asyncio.Event()

    def wake(self) -> None:
        """Something may be due; called in the loop."""
        self.wanted.set()

    async def work(self, wait: bool = False) -> None:
        """Begin what is due; with `wait`, until it has ended."""
        raise NotImplementedError

    async def run(self) -> None:
        """One round after the other, until it is cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.PAUSE):
                    await self.wanted.wait()
            self.wanted.clear()
            try:
                await self.work(wait=False)
            except Exception:
                log.exception("%s failed", self.NAME)
            await asyncio.sleep(self.CALM)


class Delivery(Rounds):
    """Tells receivers what happened: each in its own order, none waiting for another.

    send     coroutine function (receiver, events, heard): calls heard(event, answer) for each event
             that was taken; raises DeliveryError
    read     runs a function in a reader's thread; `write` runs a core function in the store thread
    """

    NAME = "delivery"

    def __init__(
        self,
        context: Callable[[], Context],
        send: Callable[..., Any],
        read: Callable[..., Any],
        write: Callable[..., Any],
        outbox: Outbox = EVENTS_OUTBOX,
    ) -> None:
        super().__init__()
        self.context, self.send, self.read, self.write = context, send, read, write
        self.outbox = outbox
        self.busy: set[str] = set()
        # heard and not written down yet: the answers by id in the outbox
        self.unnoted: dict[str, dict[int, str]] = collections.defaultdict(dict)
        self.not_before: dict[str, float] = {}  # while the store takes no note of a failure
        self.failing: dict[str, float] = {}  # receivers not reached, and when one was last heard of
        self.tasks: set[asyncio.Task] = set()

    def heard_from(self, ae_title: str) -> None:
        """An AE has called: if it could not be told, it is tried now, at most twice a minute."""
        if ae_title not in self.failing:
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self.failing[ae_title]:
            self.failing[ae_title] = loop.time() + 30
            task = loop.create_task(self._try_now(ae_title))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _try_now(self, ae_title: str) -> None:
        with contextlib.suppress(Exception):  # a full disk: it is tried later
            await self.write(try_again, ae_title, self.outbox)
        self.wake()

    async def deliver_due(self, wait: bool = False) -> None:
        """Start the delivery to every receiver that is due; with `wait`, until all have ended."""
        busy = set(self.busy)  # what fails while we look is not due any more
        loop = asyncio.get_running_loop()
        for receiver in await self.read(due_receivers, self.context(), self.outbox):
            paused = loop.time() < self.not_before.get(receiver, 0.0)
            if receiver not in self.busy | busy and not paused:
                self.busy.add(receiver)
                task = loop.create_task(self._deliver(receiver))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
        if wait and self.tasks:
            await asyncio.wait(self.tasks)

    work = deliver_due

    async def _deliver(self, receiver: str) -> None:
        """Tell one receiver all that is due to it."""
        try:
            await self._note(receiver)
            due = due_events, receiver, MOST_EVENTS, self.outbox
            events = await self.read(*due)
            while events:
                await self._send(receiver, events)
                more = len(events) == MOST_EVENTS  # else wake() sees what came meanwhile
                events = await self.read(*due) if more else []
        except Answered as error:
            noted = error.outbox_id, error.answer, error.most
            await self._failed(receiver, str(error), note_refused, *noted)
        except DeliveryError as error:
            await self._failed(receiver, str(error))
        except Exception as error:
            log.exception("delivery to %s failed", receiver)
            await self._failed(receiver, f"internal error: {error}")
        finally:
            self.busy.discard(receiver)
        self.wake()  # for what was written while it was busy

    async def _send(self, receiver: str, events: list[Event]) -> None:
        try:
            await self.send(receiver, events, functools.partial(self._heard, receiver))
        finally:
            await self._note(receiver)

    def _heard(self, receiver: str, event: Event, answer: str = "") -> None:
        self.unnoted[receiver][event.outbox_id] = answer

    async def _note(self, receiver: str) -> None:
        """Write down what a receiver has heard."""
        if heard := self.unnoted.get(receiver):
            await self.write(note_sent, self.context(), receiver, dict(heard), self.outbox)
            del self.unnoted[receiver]
            self.failing.pop(receiver, None)

    async def _failed(
        self,
        receiver: str,
        problem: str,
        note: Callable[..., int] = note_failed,
        *arguments: Any,
    ) -> None:
        self.failing.setdefault(receiver, 0.0)
        arguments = arguments or (problem, self.outbox)
        try:
            wait = await self.write(note, self.context(), receiver, *arguments)
        except Exception as error:  # a full disk: nothing is told again before it can be noted
            wait = RETRY_AFTER[2]
            self.not_before[receiver] = asyncio.get_running_loop().time() + wait
            problem = f"{problem}; {error}"
        what = "events" if self.outbox is EVENTS_OUTBOX else "what is passed on"
        log.warning("%s for %s: %s; again in %d s", what, receiver, problem, wait)

    async def close(self) -> None:
        """Leave what is being told where it is: it is told again after the next start."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Answered(DeliveryError):
    """A receiver has answered a message with a failure that may pass, or ended the association.

    answer  status and comment, or what happened; most: after so many the message is given up
    """

    def __init__(self, outbox_id: int, answer: str, most: int) -> None:
        super().__init__(f"it answers {answer[:4]}" if most == MOST_REFUSALS else answer)
        self.outbox_id, self.answer, self.most = outbox_id, answer, most
