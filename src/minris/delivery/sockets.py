"""Deliver events to open WebSockets."""

import asyncio
import collections
import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from minris import log
from minris.access.context import Context, audit
from minris.delivery.receivers import Rounds
from minris.outbox import MOST_EVENTS, RETRY_AFTER, WAITING, Event
from minris.standard.status import Message
from minris.store.models import database
from minris.store.rows import erase, insert_rows
from minris.ups.events import enter_channel

# The store is the queue: a slow socket reads on from its own position.


def socket_start(ae_title: str, alone: bool) -> tuple[int, int]:
    """Return the outbox row after which a new socket starts, and the newest row.

    alone  no other socket of the AE is open: start with what is still waiting
    """
    (newest,) = database.execute_sql("SELECT coalesce(max(id), 0) FROM outbox").fetchone()
    (oldest,) = database.execute_sql(
        f"SELECT min(id) FROM outbox WHERE lane = 'websocket' AND receiver = ? AND {WAITING}",
        (ae_title,),
    ).fetchone()
    return (oldest - 1 if alone and oldest else newest), newest


_SOCKET_EVENTS = (
    "SELECT o.receiver, o.id, e.sop_instance_uid, e.event_type, e.data FROM outbox o"
    " JOIN workitem_event e ON e.id = o.event_id"
    " WHERE o.lane = 'websocket' AND o.given_up_at = '' AND o.id > ?"
)


def socket_events(ae_title: str, after: int) -> list[Event]:
    """Return the WebSocket events of an AE after an outbox row, in order."""
    sql = f"{_SOCKET_EVENTS} AND o.receiver = ? ORDER BY o.id LIMIT {MOST_EVENTS}"
    cursor = database.execute_sql(sql, (after, ae_title))
    return [Event(i, uid, kind, bytes(data)) for _, i, uid, kind, data in cursor]


def new_socket_events(after: int) -> tuple[int, list[tuple[str, Event]]]:
    """Return the last row read and (AE title, event) of the WebSocket events after a row."""
    (newest,) = database.execute_sql("SELECT coalesce(max(id), 0) FROM outbox").fetchone()
    cursor = database.execute_sql(
        f"{_SOCKET_EVENTS} ORDER BY o.id LIMIT {10 * MOST_EVENTS}", (after,)
    )
    found = [(ae, Event(i, uid, kind, bytes(data))) for ae, i, uid, kind, data in cursor]
    if len(found) == 10 * MOST_EVENTS:
        newest = found[-1][1].outbox_id
    return max([newest, *(event.outbox_id for _, event in found[-1:])]), found


def open_channel(ctx: Context, ae_title: str) -> None:
    """Add the WebSocket channel for an AE that has opened one."""
    if enter_channel(ctx, ae_title, "websocket"):
        audit(ctx, "told by WebSocket", ae_title)


def note_heard(ctx: Context, heard: Mapping[str, Iterable[int]]) -> None:
    """Record outbox rows, by AE title, as delivered by WebSocket."""
    now = ctx.stamp()
    database.connection().executemany(
        f"UPDATE outbox SET sent_at = ? WHERE id = ? AND {WAITING}",
        [(now, outbox_id) for ids in heard.values() for outbox_id in ids],
    )
    insert_rows(
        "receiver (lane, ae_title, heard_at) VALUES"
        " ON CONFLICT (lane, ae_title) DO UPDATE SET heard_at = excluded.heard_at",
        [("events", ae_title, now) for ae_title in heard],
    )


NOT_OPENED = Message("no WebSocket was opened")


def give_up_unfetched(ctx: Context) -> int:
    """Give up events not fetched in [housekeeping] give_up_events_hours; return how many.

    An AE that also uses DIMSE gets no events by WebSocket until it opens one again.
    """
    cursor = database.execute_sql(
        "UPDATE outbox SET given_up_at = ?, problem = ?"
        f" WHERE lane = 'websocket' AND {WAITING} AND created_at < ? RETURNING receiver",
        (ctx.stamp(), NOT_OPENED, ctx.stamp(hours=-ctx.config.housekeeping.give_up_events_hours)),
    )
    given_up = collections.Counter(receiver for (receiver,) in cursor)
    for ae_title, count in given_up.items():
        audit(ctx, "events given up", ae_title, f"{count}: {NOT_OPENED}")
        erase(
            "event_channel WHERE ae_title = ?1 AND channel = 'websocket' AND EXISTS"
            " (SELECT 1 FROM event_channel c WHERE c.ae_title = ?1 AND c.channel = 'dimse')",
            ae_title,
        )
    return given_up.total()


class SocketDelivery(Rounds):
    """Delivers events to the open WebSockets of AEs, each socket at its own pace.

    An event is delivered when a pong follows it on one of the AE's sockets. A socket has
    ae_title, position and began (outbox rows: last sent, and starting point), unheard (rows
    without a pong), ready, tell(event), ping(), is_alive(), is_allowed(), close(code)
    """

    NAME = "delivery by WebSocket"
    KEEP_ALIVE = 20.0  # unit: seconds; between two pings

    def __init__(self, *how: Callable[..., Any]) -> None:
        super().__init__(*how)
        self.sockets: dict[str, set[Any]] = {}
        self.seen = 0  # newest outbox row read
        self.lagging: dict[
            Any, asyncio.Task | None
        ] = {}  # sockets that are catching up, and their task
        self.missed: set[Any] = set()  # lagging sockets that missed a new event
        self.heard: dict[str, set[int]] = collections.defaultdict(set)  # not recorded yet
        self.noting: asyncio.Task | None = None
        self.ping_at = 0.0

    def __len__(self) -> int:
        return sum(map(len, self.sockets.values()))

    def open(self, client: Any) -> None:
        """Add a socket; events that waited for its AE are sent first."""
        self.sockets.setdefault(client.ae_title, set()).add(client)
        self._start(client, self._begin(client))

    def closed(self, client: Any) -> None:
        """Remove a socket; events without a pong go to the other sockets of its AE."""
        others = self.sockets.get(client.ae_title, set())
        others.discard(client)
        if not others:
            self.sockets.pop(client.ae_title, None)
        self.missed.discard(client)
        oldest = min(client.unheard, default=math.inf)
        if client in self.lagging and client.began < math.inf:  # what it has not read yet
            oldest = min(oldest, min(client.position, client.owed) + 1)
        if task := self.lagging.pop(client, None):
            task.cancel()
        for other in others:
            if oldest <= other.began:
                other.owed = min(other.owed, oldest - 1)
                self.missed.add(other)
                self.resume(other, lags=True)

    def resume(self, client: Any, lags: bool = False) -> None:
        """Let a socket that is ready again, or lags, catch up from its position."""
        if (lags or client in self.lagging) and not self.lagging.get(client):
            self._start(client, self._catch_up(client))

    def has_heard(self, client: Any, outbox_ids: Iterable[int]) -> None:
        """Record that a pong has followed these events."""
        self.heard[client.ae_title].update(outbox_ids)
        if not self.noting:
            self.noting = asyncio.get_running_loop().create_task(self._note())

    def pause(self) -> float:
        """Return the seconds until the next ping."""
        now = asyncio.get_running_loop().time()
        self.ping_at = self.ping_at or now + self.KEEP_ALIVE
        return self.ping_at - now

    async def work(self, wait: bool = False) -> None:
        """Send new events; ping every socket when it is time."""
        if any(one.began < math.inf for some in self.sockets.values() for one in some):
            await self._tell_new()
        now = asyncio.get_running_loop().time()
        if now >= self.ping_at:
            self.ping_at = now + self.KEEP_ALIVE
            await self._ping_all()

    async def _tell_new(self) -> None:
        """Send new events to the sockets that do not lag."""
        more = True
        while more:
            newest, found = await self.read(new_socket_events, self.seen)
            self.seen, told = max(self.seen, newest), set()
            for ae_title, event in found:
                for client in self.sockets.get(ae_title, ()):
                    if client in self.lagging or not client.ready:
                        self.lagging.setdefault(client, None)
                        self.missed.add(client)
                    elif event.outbox_id > client.position:
                        client.tell(event)
                        told.add(client)
            for client in told:
                client.ping()
            more = len(found) == 10 * MOST_EVENTS

    async def _ping_all(self) -> None:
        """Ping every socket; close those that are silent or no longer allowed."""
        sockets = [client for some in self.sockets.values() for client in some]
        allowed = await self.read(lambda: [client.is_allowed() for client in sockets])
        for number, (client, may) in enumerate(zip(sockets, allowed, strict=True), 1):
            if not may:
                client.close(1008)  # policy violation (RFC 6455 7.4.1)
            elif client.is_alive():
                client.ping()
            if number % 50 == 0:
                await asyncio.sleep(0)

    def _start(self, client: Any, work: Any) -> None:
        task = self.lagging[client] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(functools.partial(self._done, client))

    def _done(self, client: Any, task: asyncio.Task) -> None:
        if self.lagging.get(client) is task:
            self.lagging[client] = None  # not ready: it lags until resume()
            if client.ready and not task.cancelled() and not task.exception():
                self.resume(client)  # it became ready before this call
        if not task.cancelled() and (error := task.exception()):
            log.error("WebSocket of %s failed", client.ae_title, exc_info=error)
            client.close(1011)  # unexpected condition; the client reconnects

    async def _begin(self, client: Any) -> None:
        await self.write(open_channel, client.ctx, client.ae_title)
        same = self.sockets.get(client.ae_title, set()) - {client}
        alone = all(one.began == math.inf for one in same)
        start, newest = await self.read(socket_start, client.ae_title, alone)
        client.began = client.position = start
        others = (one for some in self.sockets.values() for one in some if one is not client)
        if all(one.began == math.inf for one in others):  # nobody needs the rows up to here
            self.seen = max(self.seen, newest)
        await self._catch_up(client)

    async def _catch_up(self, client: Any) -> None:
        """Send a socket what is in the store, until there is no more or it is not ready."""
        while client.ready:
            self.missed.discard(client)
            if client.owed < client.position:
                client.began = client.position = client.owed
            client.owed = math.inf
            events = await self.read(socket_events, client.ae_title, client.position)
            for event in events:
                client.tell(event)
            if events:
                client.ping()
            elif client not in self.missed:
                self.lagging.pop(client, None)
                return

    async def _note(self) -> None:
        """Record what was delivered; retry after a full disk."""
        try:
            while self.heard:
                heard, self.heard = self.heard, collections.defaultdict(set)
                try:
                    await self.write(note_heard, self.context(), heard)
                except Exception as error:
                    log.warning("cannot record deliveries by WebSocket: %s", error)
                    for ae_title, ids in heard.items():
                        self.heard[ae_title] |= ids
                    await asyncio.sleep(RETRY_AFTER[0])
        finally:
            self.noting = None

    async def close(self) -> None:
        """Send new events, then close all sockets; their clients reconnect."""
        with contextlib.suppress(Exception):
            await self._tell_new()
        for some in list(self.sockets.values()):
            for client in list(some):
                client.close(1001)  # going away
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while self.sockets or self.noting:
                    await asyncio.sleep(self.CALM)
        if self.noting:
            self.noting.cancel()
