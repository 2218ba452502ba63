"""The ASGI application: limits, bottle behind it, event streams to open pages."""

import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import gzip
import io
import re
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

from minris import log
from minris.access.users import is_screen
from minris.intake import Intake, Share
from minris.standard.status import HttpRefusal
from minris.web.answers import log_refused, refusal_reply
from minris.web.bodies import (
    FORM,
    OPEN,
    TOO_LARGE,
    check_fields,
    drain,
    has_body,
    is_for_programs,
    is_known,
    most_of_body,
    take_room,
)
from minris.web.proxies import Entrance, is_trusted
from minris.web.request import (
    BASE,
    SECURITY_HEADERS,
    SLASH,
    RateLimit,
    Web,
    check_headers,
    cookie_name,
    cookie_of,
    header_of,
    takes_gzip,
)
from minris.web.sockets import EventSocket


class Changes:
    """Notifies open pages of changes; `bump` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.number = loop, 0
        self.waiting: set[asyncio.Event] = set()
        self.pending = False

    def bump(self) -> None:
        """Notify all open pages of a commit."""
        if not self.pending:
            self.pending = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self.loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self.pending = False
        self.number += 1
        for event in self.waiting:
            event.set()


def wants_page(scope: Any) -> bool:
    """Whether the answer to a request is shown by a browser."""
    shown = b"text/html" in header_of(scope, b"accept") and b"host" in dict(scope["headers"])
    return shown and not is_for_programs(scope["path"])


class WebServer:
    """The ASGI application: limits a request, then hands it to bottle or to the event stream."""

    KEEP_ALIVE = 15.0  # seconds between two comments of an idle stream
    CALM = 0.25  # seconds between two events of one stream
    LINGER = 1.0  # seconds to drop the rest of a body that is not taken
    BODIES = 64 << 20  # bytes of bodies held at once, or four of the largest
    HEAVY = 1 << 20  # bytes of a body from which on one is worked at at a time

    def __init__(self, web: Web, app: Any, changes: Changes, workers: int = 8) -> None:
        self.web, self.app, self.changes = web, app, changes
        self.limits, self.entrance = web.config.web, Entrance(web.config.web)
        self.workers = concurrent.futures.ThreadPoolExecutor(workers, "web")
        self.rate = RateLimit(self.limits.requests_per_second)
        self.intake = Intake(max(self.BODIES, 4 * self.limits.maximum_body))
        # what is read of a body takes twenty times its bytes while it is worked at
        self.heavy = concurrent.futures.ThreadPoolExecutor(1, "heavy")
        self.readers = concurrent.futures.ThreadPoolExecutor(2, "stream")
        self.addresses: collections.Counter[str] = collections.Counter()
        self.answering: set[asyncio.Task[Any]] = set()  # of requests that have come whole

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            peer = scope["client"]
            self.entrance.take(scope)
            check_headers(scope["headers"])
            if scope["client"] == peer:
                await self._respond(scope, receive, send)
            else:
                with self._counted(scope["client"][0]):
                    await self._respond(scope, receive, send)
        except HttpRefusal as refusal:  # of a request that never reaches bottle
            run = asyncio.get_running_loop().run_in_executor
            if wants_page(scope):
                with self.intake.share("") as share:
                    scope["minris.refused"] = refusal
                    told = await run(self.workers, self._answer, scope, b"", share)
                await self._send_last(*told, receive, send)
                return
            reply, address = refusal_reply(refusal), (scope["client"] or ("",))[0]
            log_refused(scope["method"], scope["path"], address, reply.http, refusal.reason)
            start = self._start(scope, reply.http, reply.pairs)
            await self._send_last(start, reply.body, receive, send)

    async def _send_last(self, start: Any, content: bytes, receive: Any, send: Any) -> None:
        """Send the answer to a request whose body is not read, and close the connection."""
        length = b"content-length", str(len(content)).encode()
        kept = [pair for pair in start["headers"] if pair[0] != length[0]]
        await send(start | {"headers": [*kept, length, (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": content, "more_body": True})
        await drain(receive, self.LINGER)
        await send({"type": "http.response.body"})

    async def _respond(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request. Refuses 401, 408, 413, 429, 503."""
        address = (scope["client"] or ("",))[0]
        if not self.rate.allows(address, time.monotonic()):
            raise HttpRefusal(429, "Too many requests")
        if scope["path"] == "/events":
            await self._events(scope, receive, send)
            return
        with self.intake.share(address) as share:
            body, whole = await self._body(scope, receive, share)
            if body is None:
                return
            if (preflight := self._preflight(scope)) is not None:
                await send(preflight)
                await send({"type": "http.response.body"})
                return
            task = asyncio.current_task()
            self.answering.add(task)
            task.add_done_callback(self.answering.discard)
            run = asyncio.get_running_loop().run_in_executor
            heavy = len(body) > self.HEAVY or header_of(scope, b"content-encoding")
            start, content = await run(
                self.heavy if heavy else self.workers, self._answer, scope, body, share
            )
        if not whole:
            await self._send_last(start, content, receive, send)
            return
        await send(start)
        await send({"type": "http.response.body", "body": content})

    @contextlib.contextmanager
    def _counted(self, address: str) -> Iterator[None]:
        """Count a request of a trusted proxy as a connection of its caller. Refuses 503."""
        self.addresses[address] += 1
        try:
            if self.addresses[address] > self.limits.maximum_connections_per_address:
                raise HttpRefusal(503, "Too many connections")
            yield
        finally:
            self.let_go(address)

    def let_go(self, address: str) -> None:
        """Count a connection less of an address."""
        self.addresses[address] -= 1
        if not self.addresses[address]:
            del self.addresses[address]

    def _answer(self, scope: Any, body: bytes, share: Share) -> tuple[dict[str, Any], bytes]:
        """Return head and content of bottle's answer; runs in a worker thread.

        a2wsgi's own middleware returns to the loop for each piece, at twice the cost
        """
        from a2wsgi.wsgi import build_environ

        head: dict[str, Any] = {}

        def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> None:
            pairs = ((n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in headers)
            head["status"], head["headers"] = int(status[:3]), list(pairs)

        try:
            check_headers(scope["headers"])
            check_fields(scope, body)
        except HttpRefusal as refusal:
            reply, address = refusal_reply(refusal), (scope["client"] or ("",))[0]
            log_refused(scope["method"], scope["path"], address, reply.http, refusal.reason)
            return self._start(scope, reply.http, reply.pairs), reply.body
        environ = build_environ(scope, io.BytesIO(body))
        path = scope["raw_path"].decode("ascii", "replace")
        if scope["path"].startswith(BASE) and SLASH in path.upper():  # within an AE title
            path = re.sub("%2f", "%252F", path, flags=re.IGNORECASE)
            environ["PATH_INFO"] = urllib.parse.unquote(path, "latin-1")
        environ.pop("HTTP_TRANSFER_ENCODING", None)  # already decoded
        environ["CONTENT_LENGTH"] = str(len(body))
        environ["minris.maximum_body"] = self.limits.maximum_body
        environ["minris.share"] = share
        pieces = self.app(environ, start_response)
        with contextlib.closing(pieces) if hasattr(pieces, "close") else contextlib.nullcontext():
            content = b"".join(pieces)
        if head["status"] >= 400:
            route = environ.get("bottle.route")
            asked = scope["method"], route.rule if route else scope["path"]
            reason = environ.get("minris.reason", "")
            log_refused(*asked, environ["REMOTE_ADDR"], head["status"], reason)
        headers, content = self.entrance.give(head["headers"], content)
        headers, content = compressed(scope, head["status"], headers, content)
        return self._start(scope, head["status"], headers), content

    def _start(
        self, scope: Any, status: int, headers: Iterable[tuple[bytes, bytes]]
    ) -> dict[str, Any]:
        """Return the head of an answer, with the security headers and those of CORS."""
        found = [*headers, *SECURITY_HEADERS, *self._cors(scope)]
        return {"type": "http.response.start", "status": status, "headers": found}

    def _cors(self, scope: Any) -> list[tuple[bytes, bytes]]:
        """Return the headers that let a page of a configured origin read an answer."""
        origin = header_of(scope, b"origin").decode("latin-1")
        if origin not in self.limits.cors_origins or not scope["path"].startswith(OPEN_TO_ORIGINS):
            return []
        return [(b"access-control-allow-origin", origin.encode()), (b"vary", b"Origin"),
                (b"access-control-expose-headers",
                 b"Warning, Location, Content-Location, Retry-After")]  # fmt: skip

    def _preflight(self, scope: Any) -> dict[str, Any] | None:
        """Return the answer to a CORS preflight request, None for any other request."""
        asks = header_of(scope, b"access-control-request-method")
        cors = self._cors(scope)
        if scope["method"] != "OPTIONS" or not asks or not cors:
            return None
        allowed = [(b"access-control-allow-methods", b"GET, HEAD, POST, PUT, DELETE"),
                   (b"access-control-allow-headers", b"Authorization, Content-Type, Content-Encoding, Accept"),
                   (b"access-control-max-age", b"600")]  # fmt: skip
        return self._start(scope, 204, allowed)

    async def _body(self, scope: Any, receive: Any, share: Share) -> tuple[bytes | None, bool]:
        """Return the body, and whether it was read; None if the client has gone.

        It is read once it is known who sends it, but for a login; else it is left.
        Refuses 408, 413, 503
        """
        body, known = bytearray(), scope["path"] in OPEN or not has_body(scope)
        largest = self.limits.maximum_body
        most = most_of_body(scope, largest)
        size, sure = int(header_of(scope, b"content-length") or 0), False
        run = asyncio.get_running_loop().run_in_executor
        try:
            async with asyncio.timeout(self.limits.request_timeout + largest / 1e6):
                while max(size, len(body)) <= most:
                    large = max(size, len(body)) > FORM
                    if not known or (large and not sure):
                        if not await run(self.workers, is_known, self.web, scope, large):
                            return b"", False
                        known, sure = True, large
                        take_room(share, size - share.size)
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None, False
                    body += message.get("body", b"")
                    take_room(share, len(body) - share.size)
                    if not message.get("more_body") and len(body) <= most:
                        return bytes(body), True
        except TimeoutError:
            raise HttpRefusal(408, "The request took too long") from None
        raise HttpRefusal(413, TOO_LARGE)

    async def _events(self, scope: Any, receive: Any, send: Any) -> None:
        """GET /events: the event stream of an open page, the number of each change."""
        cookie = cookie_of(scope, cookie_name(self.web, scope["scheme"], "minris"))
        screen = cookie_of(scope, cookie_name(self.web, scope["scheme"], "screen"))
        run = asyncio.get_running_loop().run_in_executor
        if not (cookie and await run(self.readers, self.web.session, cookie)) and not (
            screen and await run(self.readers, self.web.read, is_screen, screen)
        ):
            raise HttpRefusal(401, "Log in first")
        # nginx would keep it back until a buffer is full
        headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no"),
                   *SECURITY_HEADERS]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        event = asyncio.Event()
        self.changes.waiting.add(event)
        gone = asyncio.ensure_future(self._until_gone(receive, event))
        try:
            text = f"retry: 2000\ndata: {self.changes.number}\n\n"
            while not gone.done():
                chunk = {"type": "http.response.body", "body": text.encode(), "more_body": True}
                await send(chunk)
                await asyncio.sleep(self.CALM)
                try:
                    async with asyncio.timeout(self.KEEP_ALIVE):
                        await event.wait()
                    event.clear()
                    text = f"data: {self.changes.number}\n\n"
                except TimeoutError:
                    text = ": still here\n\n"
        except asyncio.CancelledError:
            pass  # the server stops; the page reconnects
        finally:
            gone.cancel()
            self.changes.waiting.discard(event)

    @staticmethod
    async def _until_gone(receive: Any, event: asyncio.Event) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        event.set()

    async def listen(self, host: str, port: int, tls: Any = None) -> int:
        """Listen on the web port; return its number."""
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol
        from uvicorn.server import ServerState

        config = uvicorn.Config(
            self, lifespan="off", http="h11", log_config=None, access_log=False,
            ws=functools.partial(EventSocket, self.web, self.rate, self.workers, self.entrance),
            server_header=False, proxy_headers=False,
            timeout_keep_alive=10, h11_max_incomplete_event_size=32768,
        )  # fmt: skip
        config.load()
        self.state = ServerState()
        protocol = bounded_protocol(H11Protocol, self)
        loop = asyncio.get_running_loop()
        made = functools.partial(protocol, config=config, server_state=self.state, app_state={})
        wait = 5 if tls else None
        self.server = await loop.create_server(
            made, host or None, port, ssl=tls, ssl_handshake_timeout=wait
        )
        return self.server.sockets[0].getsockname()[1]

    def stop_listening(self) -> None:
        """Accept no more connections."""
        self.server.close()

    async def finish(self, seconds: float) -> None:
        """Answer the requests that have come whole, within some seconds."""
        if self.answering:
            await asyncio.wait(self.answering, timeout=seconds)

    async def close(self) -> None:
        """Close all connections; what has been answered still goes out, if it is read at once."""
        self.stop_listening()
        for connection in list(self.state.connections):
            connection.transport.close()
        await asyncio.sleep(0)
        if any(
            connection.transport.get_write_buffer_size() for connection in self.state.connections
        ):
            await asyncio.sleep(self.CALM)
        for connection in list(self.state.connections):
            connection.transport.abort()
        if tasks := list(self.state.tasks):
            await asyncio.wait(tasks, timeout=0.5)
        self.workers.shutdown(wait=False)
        self.heavy.shutdown(wait=False)
        self.readers.shutdown(wait=False)


def bounded_protocol(base: type, server: WebServer) -> type:
    """uvicorn's HTTP protocol with a timeout for each request and a connection limit per address."""

    class BoundedProtocol(base):
        counted, timer, upgraded = "", None, False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            address = (transport.get_extra_info("peername") or ("", 0))[0]
            server.addresses[address] += 1
            self.counted = address
            many = server.addresses[address] > server.limits.maximum_connections_per_address
            if many and not is_trusted(address, server.limits.trusted_proxies):
                log.warning("web: too many connections from %s", address)
                transport.write(BUSY)
                transport.close()
            else:
                self._time_request()

        def connection_lost(self, error: Exception | None) -> None:
            self._let_go()
            super().connection_lost(error)

        def _let_go(self) -> None:
            if self.timer:
                self.timer.cancel()
            server.let_go(self.counted)

        def handle_websocket_upgrade(self, event: Any) -> None:
            self.upgraded = True  # EventSocket takes over
            self._let_go()
            super().handle_websocket_upgrade(event)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.upgraded:
                return
            if self.cycle is None or self.cycle.response_complete:
                self._time_request()
            elif self.timer:
                self.timer.cancel()
                self.timer = None

        def _time_request(self) -> None:
            if not self.timer:
                seconds = server.limits.request_timeout
                self.timer = self.loop.call_later(seconds, self._too_slow)

        def _too_slow(self) -> None:
            self.timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return BoundedProtocol


BUSY = b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
OPEN_TO_ORIGINS = (BASE, "/api/")  # paths that [web] cors_origins may call


def compressed(
    scope: Any, status: int, headers: list[tuple[bytes, bytes]], content: bytes
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Compress an answer with gzip where the client accepts it and it is 1 KiB or more.

    Not a page with a query: its compressed length could reveal its content (as in BREACH).
    """
    wanted = takes_gzip(header_of(scope, b"accept-encoding").decode("latin-1"))
    done = any(name == b"content-encoding" for name, _ in headers)
    page = not scope["path"].startswith((*OPEN_TO_ORIGINS, "/static/"))
    if not wanted or done or status != 200 or len(content) < 1024:
        return headers, content
    if page and scope["query_string"]:
        return headers, content
    content = gzip.compress(content, 5, mtime=0)
    kept = [(name, value) for name, value in headers if name != b"content-length"]
    added = [(b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding"),
             (b"content-length", str(len(content)).encode())]  # fmt: skip
    return [*kept, *added], content
