"""The server for associations that peers open."""

import asyncio
import collections
import itertools
import re
import socket
import time
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from minris import log
from minris.access.devices import AccessRules, host_addresses, this_minute
from minris.intake import Intake
from minris.recent import Recent, Repeats
from minris.standard.status import Message
from minris.upper_layer.association import Association
from minris.upper_layer.messages import MessageLimits, Request
from minris.upper_layer.negotiation import Negotiator, calling_ae_title


class Call(NamedTuple):
    """An accepted association: time (seconds since 1970), address, SOP classes.

    not_served  names of the proposed ones that are not served here
    """

    at: float
    address: str
    classes: tuple[str, ...]
    not_served: tuple[str, ...] = ()


class Ended(NamedTuple):
    """An ended association, for the page of associations.

    at       start, seconds since 1970
    seconds  duration
    done     number of messages by (operation, status)
    ending   a key of ENDINGS
    words    details
    """

    at: float
    seconds: float
    calling: str
    address: str
    done: tuple[tuple[tuple[str, int], int], ...]
    ending: str
    words: str
    not_served: tuple[str, ...] = ()


ENDINGS = {
    "released": Message("completed"),
    "aborted": Message("aborted by the device"),
    "lost": Message("the connection was lost"),
    "refused": Message("aborted by minris: {words}"),
    "rejected": Message("rejected: {words}"),
}


class AssociationServer:
    """Accepts associations, counts and limits them, and remembers how they ended.

    limits      settings of [dicom]
    access      returns the current AccessRules
    negotiator  decides on presentation contexts
    dispatch    coroutine function (association, request) that answers a message
    """

    LOOK_UP_SECONDS = 10.0  # the caller waits, for 30 s usually

    def __init__(
        self,
        limits: types.SimpleNamespace,
        access: Callable[[], AccessRules],
        negotiator: Negotiator,
        dispatch: Callable[[Association, Request], Any],
    ) -> None:
        self.limits, self.access = limits, access
        self.negotiator, self.dispatch = negotiator, dispatch
        self.message_limits = MessageLimits(
            limits.maximum_command_length,
            limits.maximum_dataset_length,
            limits.maximum_drained_length,
        )
        self.intake = Intake()
        self.loop = asyncio.get_running_loop()
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self.associations: set[Association] = set()
        self.complaints = Repeats(of_group=500)  # by address
        self.rejections = Repeats()  # calling AE title and reason, by address
        self.on_rejected: Callable[[str, str, str], None] = lambda calling, address, words: None
        self.on_first_call: Callable[[str], None] = lambda calling: None  # since the start
        self.rejected: Recent[tuple[str, str], tuple[float, str]] = Recent(100)
        self.called: Recent[str, Call] = Recent(500)
        self.ended: collections.deque[Ended] = collections.deque(maxlen=200)
        self.accepted = self.turned_away = 0
        self.servers: list[asyncio.Server] = []
        self.hosts: Recent[str, frozenset[str]] = Recent(500)  # addresses, as last looked up
        self.lookups: dict[str, asyncio.Future[frozenset[str]]] = {}
        self.own: set[tuple[str, int]] = set()  # where our own connections to us come from

    async def addresses_of(self, host: str) -> frozenset[str]:
        """The addresses of a host, looked up once for all who wait, and off the loop.

        Those it had last if the look-up fails or is slow: a name server that is down locks no
        machine out
        """
        found: frozenset[str] = frozenset()
        try:
            if host not in self.lookups:
                run = self.loop.run_in_executor(None, host_addresses, host, this_minute())
                self.lookups[host] = run
                run.add_done_callback(lambda done: self.lookups.pop(host) and done.exception())
            async with asyncio.timeout(self.LOOK_UP_SECONDS):
                found = await asyncio.shield(self.lookups[host])
        except Exception as error:  # whatever it is, the caller gets an answer
            words = "cannot look up the address of %s: %s"
            self.complain(host, words, host, str(error) or "no answer in time")
        if found:
            self.hosts[host] = found
        return self.hosts.get(host, frozenset())

    async def listen(self, host: str, port: int, tls: Any = None) -> int:
        """Listen on a port; return its number."""
        secured = {"ssl": tls, "ssl_handshake_timeout": 5} if tls else {}
        server = await self.loop.create_server(
            lambda: Association(self), host or None, port, backlog=512, **secured
        )
        self.servers.append(server)
        return server.sockets[0].getsockname()[1]

    async def admit(self, connection: socket.socket) -> None:
        """Serve a connected socket."""
        connection.setblocking(False)
        await self.loop.connect_accepted_socket(lambda: Association(self), connection)

    def stop_listening(self) -> None:
        """Accept no more connections."""
        for server in self.servers:
            server.close()

    async def finish(self, seconds: float) -> None:
        """Answer the messages that are being worked at, within some seconds, and take no more."""
        for association in self.associations:
            association.hear_no_more()
        if tasks := {one.task for one in self.associations if one.task}:
            await asyncio.wait(tasks, timeout=seconds)

    async def close(self) -> None:
        """Abort open associations."""
        self.stop_listening()
        for association in list(self.associations):
            association.happens("abort")
        await asyncio.sleep(0)
        for association in list(self.associations):
            association.transport.abort()
        await asyncio.sleep(0)

    def enter(self, association: Association, kind: str) -> str:
        """Count a connection as `pending` or `associated`; return why it is refused, or ""."""
        limits, address = self.limits, association.address
        most, most_of_one = {
            "pending": (limits.maximum_pending, limits.maximum_pending_per_address),
            "associated": (limits.maximum_associations, limits.maximum_associations_per_address),
        }[kind]
        count, of_one = self.counts[kind, ""], self.counts[kind, address]
        self.associations.add(association)
        if association.ours:
            return ""
        if count >= most or of_one >= most_of_one:
            return Message(
                "too many at once: {own} of {count} are its own", own=of_one, count=count
            )
        self.leave(association)
        self.associations.add(association)
        association.counted = kind
        self.counts[kind, ""] += 1
        self.counts[kind, address] += 1
        return ""

    def leave(self, association: Association) -> None:
        """Stop counting a connection."""
        self.associations.discard(association)
        if kind := association.counted:
            association.counted = ""
            for key in ((kind, ""), (kind, association.address)):
                self.counts[key] -= 1
                if not self.counts[key]:
                    del self.counts[key]

    def note_accepted(self, association: Association) -> None:
        """Remember the last call of each AE title, for the doctor of devices."""
        if association.ours:
            return
        self.accepted += 1
        peer = association.peer
        classes = tuple(sorted({one.abstract_syntax for one in peer.contexts.values()}))
        called = Call(time.time(), association.address, classes, peer.not_served)
        is_first = peer.calling not in self.called
        self.called[peer.calling] = called
        if is_first:
            self.on_first_call(peer.calling)
        if peer.not_served:
            words = ", ".join(peer.not_served)
            log.info("%s proposes what is not served here: %s", association, words,
                     extra={"repeats": True})  # fmt: skip

    def note_ended(self, association: Association) -> None:
        """Remember an ended association, for the page of associations.

        It replaces a recent one of the same device with the same result.
        """
        if not association.calling.isprintable() or not association.calling or association.ours:
            return
        done = tuple(sorted(association.done.items()))
        began, now = association.began, time.time()
        one = Ended(began, now - began, association.calling, association.address, done,
                    *association.ending,
                    association.peer.not_served if association.peer else ())  # fmt: skip
        for known in itertools.islice(reversed(self.ended), 20):
            words, others = (re.sub("[0-9]+", "#", each.words) for each in (known, one))
            if known[2:6] == one[2:6] and words == others:
                self.ended.remove(known)
                break
        self.ended.append(one)

    def note_rejected(self, address: str, pdu: bytes, words: str) -> None:
        """Remember a rejected caller, for the page of devices and for the audit log."""
        self.turned_away += 1
        calling = calling_ae_title(pdu)
        if calling.isprintable():
            self.rejected[calling, address] = time.time(), words
        shown = calling if calling.isprintable() else ascii(calling)
        if self.rejections.lets_through((shown, re.sub(r"\b[0-9]+\b", "#", words)), address):
            self.on_rejected(shown, address, words)

    def withheld_rejections(self, at_once: bool = False) -> list[tuple[str, str, str]]:
        """Calling AE title, address and words of the rejections that on_rejected was not told of."""
        found = []
        for address, kind, count in self.rejections.ended(at_once):
            calling, words = kind or ("?", "several reasons")
            found.append((calling, str(address or "several addresses"), f"{words}; {count} more"))
        return found

    def complain(self, address: str, words: str, *values: object) -> None:
        """Log what a peer did wrong: one line per address and minute, and a count of the rest."""
        for _, of, more in self.complaints.ended():
            log.warning("%s: %d more in a minute", of or "others", more)
        if self.complaints.lets_through(address):
            log.warning(words, *values)
