"""The WebSocket for UPS events (PS3.18 8.10)."""

import asyncio
import collections
import concurrent.futures
import contextlib
import io
import json
import math
import re
import time
import urllib.parse
from typing import Any

from minris import log
from minris.access.context import Actor
from minris.access.users import Login
from minris.dataset.dicom_json import to_json
from minris.dataset.elements import ElementIndex
from minris.outbox import Event
from minris.recent import cached
from minris.standard.dictionary import is_ae_title
from minris.standard.status import HttpRefusal, Refusal
from minris.standard.uids import UPS_PUSH
from minris.web.answers import log_refused, refusal_reply
from minris.web.proxies import Entrance
from minris.web.request import (
    BASE,
    BEARER,
    SECURITY_HEADERS,
    RateLimit,
    Web,
    check_headers,
    check_origin,
    check_speaker,
    enter,
    is_told_by_dimse_alone,
)

SOCKET_PATH = re.compile(r"(?:/ws)?/subscribers/([^/]+)")  # dcm4chee-arc uses /ws


@cached(64, 16384)
def event_members(uid: str, event_type: int, data: bytes) -> str:
    """Return the members of an event's JSON after its Message ID, the same for every receiver."""
    told = {
        "00001000": {"vr": "UI", "Value": [uid]},
        "00001002": {"vr": "US", "Value": [event_type]},
        **to_json(ElementIndex(data)),
    }
    return json.dumps(told, ensure_ascii=False)[1:]


def event_text(event: Event) -> str:
    """Return an event as one DICOM JSON object with its command attributes (PS3.18 8.10.5)."""
    members = event_members(event.uid, event.event_type, event.data)
    sop_class = f'"00000002": {{"vr": "UI", "Value": ["{UPS_PUSH}"]}}'
    return f'{{{sop_class}, "00000110": {{"vr": "US", "Value": [{event.message_id}]}}, {members}'


class EventSocket(asyncio.Protocol):
    """A WebSocket for events; uvicorn's HTTP protocol hands it the connection (PS3.18 8.10.4).

    Built on wsproto, as ASGI exposes neither pings and pongs nor the size of the send buffer.
    """

    MOST_UNHEARD = 1000  # events without a pong
    PONG_WITHIN, CLOSE_WITHIN = 15.0, 1.0  # seconds

    def __init__(
        self,
        web: Web,
        rate: RateLimit,
        workers: concurrent.futures.Executor,
        entrance: Entrance,
        **_: Any,
    ) -> None:
        from wsproto import ConnectionType, WSConnection, events

        self.web, self.rate, self.workers, self.entrance = web, rate, workers, entrance
        self.delivery = web.box.socket_delivery
        self.connection, self.frames = WSConnection(ConnectionType.SERVER), events
        self.ae_title, self.ctx = "", None
        self.began, self.position, self.owed = math.inf, 0, math.inf
        self.told = 0  # number of events sent
        self._unheard: collections.deque[tuple[int, int]] = collections.deque()
        self.is_open, self.writable = False, True
        self.pinged = 0  # value of `told` in the last ping
        self.waits_since: float | None = None  # monotonic time of the oldest ping without a pong

    # For SocketDelivery.

    @property
    def ready(self) -> bool:
        """Whether it can send more events now."""
        return self.is_open and self.writable and len(self._unheard) < self.MOST_UNHEARD

    @property
    def unheard(self) -> list[int]:
        """The ids of the outbox rows that no pong has confirmed."""
        return [outbox_id for _, outbox_id in self._unheard]

    def tell(self, event: Event) -> None:
        """Send an event."""
        self.position = event.outbox_id
        try:
            text = event_text(event)
        except Exception:
            log.exception("cannot encode an event of workitem %s", event.uid)
            return
        self.told += 1
        self._unheard.append((self.told, event.outbox_id))
        self._send(self.frames.TextMessage(data=text))

    def ping(self) -> None:
        """Ask the client to confirm all events sent so far."""
        self.pinged = self.told
        if self.waits_since is None:
            self.waits_since = time.monotonic()
        self._send(self.frames.Ping(payload=str(self.told).encode()))

    def is_alive(self) -> bool:
        """Whether pings are answered in time; a silent socket is aborted."""
        waits = self.waits_since is not None and time.monotonic() - self.waits_since
        if waits and waits > self.PONG_WITHIN:
            log.info("WebSocket of %s: closed, no pong", self.ae_title)
            self.transport.abort()
            return False
        return True

    def is_allowed(self) -> bool:
        """Whether its login may still receive the events of the AE."""
        with contextlib.suppress(Refusal):
            speak_for(self.web, self.request, self.ae_title)
            return True
        return False

    def close(self, code: int) -> None:
        """Close it; the client has CLOSE_WITHIN seconds to answer and to send its last pongs."""
        self._send(self.frames.CloseConnection(code=code))
        self.is_open = False
        asyncio.get_running_loop().call_later(self.CLOSE_WITHIN, self.transport.abort)

    # For asyncio.

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self.ae_title:
            self.delivery.closed(self)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.delivery.resume(self)

    def data_received(self, data: bytes) -> None:
        from wsproto.utilities import ProtocolError

        try:
            self.connection.receive_data(data)
            for event in self.connection.events():
                self._take(event)
        except (ProtocolError, UnicodeError) as error:  # UnicodeError: headers beyond ASCII
            answer = None if self.ae_title else self.frames.RejectConnection()
            self._wrong(getattr(error, "event_hint", answer))

    def _take(self, event: Any) -> None:
        if isinstance(event, self.frames.Request):
            self.transport.pause_reading()
            self.opening = asyncio.get_running_loop().create_task(self._open(event))
        elif isinstance(event, self.frames.Ping):
            if self.writable:  # RFC 6455 5.5.3: only the last ping must be answered
                self._send(event.response())
        elif isinstance(event, self.frames.Pong):
            self._heard(bytes(event.payload))
        elif isinstance(event, self.frames.CloseConnection):
            if self.is_open:
                self._send(event.response())
            self.transport.close()

    def _wrong(self, answer: Any) -> None:
        """Answer a protocol error: a bad handshake with an HTTP code, a bad frame with a close."""
        if answer is not None:
            with contextlib.suppress(Exception):
                self.transport.write(self.connection.send(answer))
        self.is_open = False
        self.transport.close()

    def _send(self, event: Any) -> None:
        if self.is_open and not self.transport.is_closing():
            self.transport.write(self.connection.send(event))

    def _heard(self, payload: bytes) -> None:
        """Take a pong: all events sent before its ping have arrived."""
        number = int(payload) if re.fullmatch(rb"[0-9]{1,18}", payload) else -1
        if not 0 <= number <= self.pinged:
            return  # not a ping of ours
        self.waits_since = time.monotonic() if number < self.pinged else None
        heard = []
        while self._unheard and self._unheard[0][0] <= number:
            heard.append(self._unheard.popleft()[1])
        if heard:
            self.delivery.has_heard(self, heard)
            self.delivery.resume(self)

    # The handshake.

    async def _open(self, asked: Any) -> None:
        scope = self._scope(asked)
        try:
            self.entrance.take(scope)
            address = (scope["client"] or ("",))[0]
            if not self.rate.allows(address, time.monotonic()):
                raise HttpRefusal(429, "Too many requests")
            run = asyncio.get_running_loop().run_in_executor
            title, login = await run(self.workers, self._enter, asked, scope)
        except Refusal as refusal:
            self._refuse(refusal, scope)
            return
        except Exception:  # answered, so that the client does not wait
            log.exception("WebSocket handshake failed")
            self._refuse(HttpRefusal(500, "Internal error"), scope)
            return
        if self.transport.is_closing():
            return
        offered = [one for one in asked.subprotocols if not one.startswith(BEARER)]
        accept = self.frames.AcceptConnection(subprotocol=offered[0] if offered else None)
        self.transport.write(self.connection.send(accept))
        self.ae_title, self.is_open = title, True
        self.ctx = self.web.context(Actor(login.name, address, login.role))
        self.delivery.open(self)
        self.transport.resume_reading()

    def _scope(self, asked: Any) -> dict[str, Any]:
        """Return a handshake in the form of ASGI."""
        told = self.transport.get_extra_info
        path, _, query = asked.target.partition("?")
        headers = [(name.lower(), value) for name, value in asked.extra_headers]
        return {
            "client": told("peername"), "server": told("sockname"), "http_version": "1.1",
            "scheme": "https" if told("ssl_object") else "http", "path": path,
            "raw_path": path.encode("latin-1", "replace"), "query_string": query,
            "headers": [(b"host", asked.host.encode("latin-1", "replace")), *headers],
        }  # fmt: skip

    def _refuse(self, refusal: Refusal, scope: Any) -> None:
        """Refuse a handshake with an HTTP code."""
        reply, address = refusal_reply(refusal, "subscribe"), (scope["client"] or ("",))[0]
        log_refused("GET", f"{BASE}/subscribers/…", address, reply.http, refusal.reason)
        headers = [*reply.pairs, *SECURITY_HEADERS]
        how = {"status_code": reply.http, "headers": headers, "has_body": True}
        for frame in (self.frames.RejectConnection(**how), self.frames.RejectData(data=reply.body)):
            self.transport.write(self.connection.send(frame))
        self.transport.close()

    def _enter(self, asked: Any, scope: Any) -> tuple[str, Login]:
        """Return AE title and login of a handshake. Refuses 400, 401, 403, 404, 503.

        scope  in the form of ASGI, as Entrance has left it
        """
        path = scope["path"]
        found = SOCKET_PATH.fullmatch(path.removeprefix(BASE)) if path.startswith(BASE) else None
        if not found:
            raise HttpRefusal(404, "There is no WebSocket here")
        if len(self.delivery) >= self.web.config.web.maximum_websockets:
            raise HttpRefusal(503, "Too many WebSockets are open")
        title = urllib.parse.unquote(found[1]).strip()
        if not is_ae_title(title):
            raise HttpRefusal(400, "The last part of the path is not an AE title")
        self.request = handshake_request(asked, scope)
        login = speak_for(self.web, self.request, title)
        if is_told_by_dimse_alone(self.web, title):
            raise HttpRefusal(403, "The device of this AE title gets its events by DIMSE only")
        return title, login


def handshake_request(asked: Any, scope: Any) -> Any:
    """Return a handshake as a request for find_login. Refuses 400."""
    import bottle

    try:
        host = asked.host.encode("idna").decode()
    except UnicodeError:
        raise HttpRefusal(400, "The Host header is invalid") from None
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": scope["path"], "QUERY_STRING": scope["query_string"],
        "REMOTE_ADDR": (scope["client"] or ("",))[0], "wsgi.url_scheme": scope["scheme"],
        "asgi.scope": scope,
        "HTTP_HOST": host, "wsgi.input": io.BytesIO(),
    }  # fmt: skip
    check_headers(asked.extra_headers)
    for name, value in asked.extra_headers:
        environ[f"HTTP_{name.decode().upper().replace('-', '_')}"] = value.decode("latin-1")
    for one in asked.subprotocols:  # a browser cannot set Authorization on a WebSocket
        if one.startswith(BEARER):
            environ["HTTP_AUTHORIZATION"] = f"Bearer {one.removeprefix(BEARER)}"
    return bottle.BaseRequest(environ)


def speak_for(web: Web, request: Any, ae_title: str) -> Login:
    """Return the login of a request that acts for an AE. Refuses 0124, 401."""
    login, _ = enter(web, request, "desk")
    if login.csrf:
        check_origin(web, request)  # a browser sends the cookie for any site
    check_speaker(login, ae_title)
    return login
