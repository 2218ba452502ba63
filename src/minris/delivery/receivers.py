"""Deliver the outbox: in order per receiver, receivers in parallel."""

import asyncio
import collections
import contextlib
import functools
import math
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, NamedTuple

from minris import log
from minris.access.context import Context
from minris.outbox import (
    MOST_EVENTS,
    MOST_REFUSALS,
    RETRY_AFTER,
    Event,
    due_events,
    due_receivers,
    note_failed,
    note_refused,
    note_sent,
    try_again,
)
from minris.standard.status import Message
from minris.store.condition import StoreTrouble
from minris.upper_layer.caller import DeliveryError


class Rounds:
    """A loop that runs `work` whenever woken, and every PAUSE seconds.

    NAME   name in the log
    PAUSE  unit: seconds; longest time between two rounds
    CALM   unit: seconds; shortest time between two rounds
    read   runs a function in a reader thread; `write` runs a core function in the store thread
    """

    NAME, PAUSE, CALM = "", 5.0, 0.01

    def __init__(
        self, context: Callable[[], Context], read: Callable[..., Any], write: Callable[..., Any]
    ) -> None:
        self.context, self.read, self.write = context, read, write
        self.wanted = asyncio.Event()
        self.tasks: dict[Any, asyncio.Task] = {}  # running tasks by subject
        self.on_change: Callable[[], None] = lambda: None  # something may be due for delivery

    def wake(self) -> None:
        """Start a round now; called in the event loop."""
        self.wanted.set()

    def pause(self) -> float:
        """Return the seconds until the next round if nobody wakes it."""
        return self.PAUSE

    async def work(self, wait: bool = False) -> None:
        """Start what is due; with `wait`, until it has ended."""
        raise NotImplementedError

    def start(self, key: Any, work: Coroutine[Any, Any, None]) -> None:
        """Start a task, and a new round when it ends."""
        self.tasks[key] = task = asyncio.get_running_loop().create_task(work)

        def ended(_: asyncio.Task) -> None:
            self.tasks.pop(key, None)
            self.wake()

        task.add_done_callback(ended)

    async def run(self) -> None:
        """Run rounds until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.pause()):
                    await self.wanted.wait()
            self.wanted.clear()
            try:
                await self.work(wait=False)
            except Exception:
                log.exception("%s failed", self.NAME)
            await asyncio.sleep(self.CALM)

    async def close(self) -> None:
        """Cancel what is running; it is done after the next start."""
        for task in list(self.tasks.values()):
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


class Answered(DeliveryError):
    """A receiver answered a message with a failure, or ended the association before answering.

    answer   status and comment, or what happened
    most     number of failures after which the message is given up
    problem  text about the receiver
    """

    def __init__(
        self, outbox_id: int, answer: str, most: int = MOST_REFUSALS, problem: str = ""
    ) -> None:
        super().__init__(problem or Message("it answers {status}", status=answer[:4]))
        self.outbox_id, self.answer, self.most = outbox_id, answer, most


class Lane(NamedTuple):
    """How a lane of the outbox is delivered.

    send    coroutine function (receiver, events, heard): calls heard(event, answer) for each event
            delivered; raises DeliveryError
    due     returns the next events of a receiver, `most` at once; default: due_events
    follow  core function (ctx, receiver, problem), called in the transaction that records a
            delivery (problem is empty) or a failure
    """

    send: Callable[..., Any]
    due: Callable[[str], list[Event]] | None = None
    most: int = MOST_EVENTS
    follow: Callable[[Context, str, str], None] = lambda ctx, receiver, problem: None


Queue = tuple[str, str]  # a lane and a receiver


def due_in_lanes(ctx: Context, lanes: Iterable[str]) -> list[Queue]:
    """Return (lane, receiver) of every receiver with something due now."""
    return [(name, receiver) for name in lanes for receiver in due_receivers(ctx, name)]


class Delivery(Rounds):
    """Delivers the outbox: in order per receiver, receivers in parallel.

    how  as for Rounds
    """

    NAME = "delivery"

    def __init__(self, lanes: Mapping[str, Lane], *how: Callable[..., Any]) -> None:
        super().__init__(*how)
        self.lanes = lanes
        # delivered but not recorded yet: answers by outbox id
        self.unnoted: dict[Queue, dict[int, str]] = collections.defaultdict(dict)
        self.not_before: dict[Queue, float] = {}  # while failures cannot be recorded
        # receivers that failed, and when they may be retried on a call of theirs
        self.failing: dict[Queue, float] = {}

    def heard_from(self, ae_title: str) -> None:
        """Retry an AE that called us if deliveries to it failed, at most twice a minute."""
        now = asyncio.get_running_loop().time()
        for name in self.lanes:
            if now >= self.failing.get((name, ae_title), math.inf):
                self.failing[name, ae_title] = now + 30
                self.start(("called", name, ae_title), self._try_now(name, ae_title))

    async def _try_now(self, name: str, ae_title: str) -> None:
        with contextlib.suppress(Exception):  # a full disk: retry later
            await self.write(try_again, ae_title, name)

    async def work(self, wait: bool = False, only: Collection[str] = ()) -> None:
        """Start the delivery to every receiver that is due; with `wait`, until all have ended.

        only  limits it to these lanes
        """
        busy = set(self.tasks)  # what fails meanwhile is no longer due
        names, loop = only or self.lanes, asyncio.get_running_loop()
        for key in await self.read(due_in_lanes, self.context(), names):
            paused = loop.time() < self.not_before.get(key, 0.0)
            if key not in self.tasks.keys() | busy and not paused:
                self.start(key, self._deliver(*key))
        begun = [task for key, task in self.tasks.items() if key[0] in names]
        if wait and begun:
            await asyncio.wait(begun)

    async def _deliver(self, name: str, receiver: str) -> None:
        """Deliver everything that is due to a receiver in a lane."""
        key, lane = (name, receiver), self.lanes[name]
        due = lane.due or functools.partial(due_events, most=lane.most, lane=name)
        try:
            await self._note(key)
            events = await self.read(due, receiver)
            while events:
                try:
                    await lane.send(receiver, events, functools.partial(self._heard, key))
                finally:
                    await self._note(key)
                more = len(events) == lane.most  # else a wake-up brings what came meanwhile
                events = await self.read(due, receiver) if more else []
        except Answered as error:
            refused = error.outbox_id, error.answer, error.most
            await self._failed(key, str(error), note_refused, *refused)
        except DeliveryError as error:
            await self._failed(key, str(error), note_failed, str(error))
        except StoreTrouble:  # no retry before it can be recorded
            self.not_before[key] = asyncio.get_running_loop().time() + RETRY_AFTER[2]
        except Exception as error:
            log.exception("delivery to %s failed", receiver)
            problem = Message("internal error: {error}", error=error)
            await self._failed(key, problem, note_failed, problem)

    def _heard(self, key: Queue, event: Event, answer: str = "") -> None:
        self.unnoted[key][event.outbox_id] = answer

    async def _note(self, key: Queue) -> None:
        """Record what was delivered to a receiver."""
        name, receiver = key

        def note(ctx: Context) -> None:
            note_sent(ctx, receiver, heard, name)
            self.lanes[name].follow(ctx, receiver, "")

        if heard := dict(self.unnoted.get(key, {})):
            await self.write(note, self.context())
            del self.unnoted[key]
            self.failing.pop(key, None)

    async def _failed(
        self, key: Queue, problem: str, note: Callable[..., int], *arguments: Any
    ) -> None:
        """Record a failed delivery with note_failed or note_refused."""
        name, receiver = key
        self.failing.setdefault(key, 0.0)

        def note_it(ctx: Context) -> int:
            wait = note(ctx, receiver, *arguments, lane=name)
            self.lanes[name].follow(ctx, receiver, problem)
            return wait

        try:
            wait = await self.write(note_it, self.context())
        except Exception as error:  # a full disk: no retry before it can be recorded
            wait = RETRY_AFTER[2]
            self.not_before[key] = asyncio.get_running_loop().time() + wait
            problem = f"{problem}; {error}"
        log.warning("delivery to %s, %s: %s; retry in %d s", receiver, name, problem, wait)
