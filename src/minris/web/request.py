"""A request: who asks, from where, how often, with what body."""

import hmac
import re
import urllib.parse
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from minris.access.context import Actor, Context
from minris.access.devices import AccessRules
from minris.access.users import Login, find_session, find_token, permit
from minris.config.ini import Config
from minris.standard.dictionary import attribute_name
from minris.standard.status import HttpRefusal, Message, Refusal, Status
from minris.store.sqlite import reading
from minris.store.writer import Core, Writer
from minris.upper_layer.server import AssociationServer
from minris.ups.events import EVENT_CHANNELS


class Box(Protocol):
    """What routes and pages ask of the appliance.

    control  the secret of commands beside it
    """

    associations: AssociationServer
    backup_problem: str
    control: str
    commitments: Any  # these three stand beside the web, or above it
    dimse: Any
    socket_delivery: Any

    def back_up(self) -> None: ...
    def health(self) -> Mapping[str, str]: ...
    def lights(self) -> list[tuple[Message, str, Message]]: ...
    def metrics(self) -> Mapping[str, float]: ...
    def notices(self) -> list[Message]: ...
    def reload_access(self) -> None: ...
    def wake_delivery(self) -> None: ...


class Web:
    """What the routes and pages work with.

    context  gives a Context for an Actor
    access   gives the AccessRules of the moment
    writer   the store's one writer
    box      the appliance
    """

    def __init__(
        self,
        config: Config,
        context: Callable[[Actor], Context],
        access: Callable[[], AccessRules],
        writer: Writer,
        box: Box,
    ) -> None:
        self.config, self.context, self.access = config, context, access
        self.writer, self.box = writer, box

    def write(self, core: Core, ctx: Context, *arguments: Any) -> Any:
        """Call a core function in the store thread and wait for its commit."""
        try:
            return self.writer.submit(core, ctx, *arguments).result(60)
        finally:
            self.box.wake_delivery()

    @staticmethod
    def read(core: Core, *arguments: Any) -> Any:
        """Call a core function that only reads."""
        with reading():
            return core(*arguments)


class RateLimit:
    """How often an address may ask: `rate` times a second, and two seconds' worth at once.

    rate  0 for no limit
    """

    BURST = 2.0  # seconds

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.due: dict[str, float] = {}  # when an address would have asked that often

    def allows(self, address: str, now: float) -> bool:
        """Whether it may ask now; if so that is counted."""
        if not self.rate:
            return True
        due = max(self.due.get(address, 0.0), now)
        if due - now > self.BURST:
            return False
        self.due[address] = due + 1 / self.rate
        if len(self.due) > 4096:
            self.due = {one: at for one, at in self.due.items() if at > now}
        return True


def client_address(request: Any) -> str:
    """Where a request comes from: the peer of the connection, never a header."""
    return request.environ.get("REMOTE_ADDR", "")


FORWARDING_HEADERS = frozenset(
    "forwarded via x-real-ip x-forwarded-for x-forwarded-host x-forwarded-proto".split()
)


def bearer_of(request: Any) -> str:
    """The token that a request bears, or nothing."""
    kind, _, token = request.get_header("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def find_login(web: Web, request: Any) -> Login | None:
    """Who a request comes from: a bearer token, a session, or loopback where that is allowed."""
    if holds_control(web, request):
        return Login("console", "admin")
    if token := bearer_of(request):
        return web.read(find_token, token)
    if cookie := request.get_cookie("minris"):
        return web.read(find_session, web.context(Actor("web")), cookie)
    if web.config.web.anonymous_loopback and not web.config.web.public_url:
        forwarded = FORWARDING_HEADERS.intersection(name.lower() for name in request.headers)
        host = urllib.parse.urlsplit(f"//{request.get_header('Host', '')}").hostname
        check_origin(web, request)
        path = request.path.startswith(("/api/", "/dicom-web/"))
        ours = {client_address(request), host} <= {"127.0.0.1", "::1", "localhost"}
        if path and not forwarded and ours:
            return Login("loopback", "admin")
    return None


def check_origin(web: Web, request: Any) -> None:
    """Refuse (0124) a request that another site had a browser send."""
    origin = request.get_header("Origin")
    if origin and origin != "null":
        host = urllib.parse.urlsplit(origin).netloc
        ours = {request.get_header("Host"), urllib.parse.urlsplit(web.config.web.public_url).netloc}
        if host in ours:
            return
    elif not origin and request.get_header("Sec-Fetch-Site", "none") in ("none", "same-origin"):
        return
    raise Refusal(Status.NOT_AUTHORIZED, Message("The request comes from another site"))


def check_csrf(login: Login, request: Any) -> None:
    """Refuse (0124) a change without the token of its session."""
    given = request.get_header("X-CSRF-Token") or request.forms.getunicode("csrf") or ""
    if login.csrf and not login.sent(given):
        raise Refusal(Status.NOT_AUTHORIZED, Message("The form is too old: load the page anew"))


def enter(web: Web, request: Any, least: str) -> tuple[Login, Context]:
    """The login of a request that may do what `least` may. Refuses 0124; 401 where there is none."""
    login = find_login(web, request)
    if not login:
        raise HttpRefusal(401, Message("Log in first"), Status.NOT_AUTHORIZED)
    if not permit(login.role, least):
        raise Refusal(Status.NOT_AUTHORIZED, Message("Your role may not do this"))
    if request.method not in ("GET", "HEAD") and login.csrf:
        check_origin(web, request)
        check_csrf(login, request)
    return login, web.context(Actor(login.name, client_address(request), login.role))


def check_speaker(login: Login, ae_title: str) -> None:
    """Refuse (0124) to let a login subscribe an AE, or hear of it, that it does not speak for."""
    if not login.speaks_for(ae_title):
        words = Message("This login does not speak for {ae}", ae=ae_title)
        raise Refusal(Status.NOT_AUTHORIZED, words)


def body_of(request: Any) -> bytes:
    """The whole body without its Content-Encoding; bounded. Refuses 400, 413, 415."""
    body: bytes = request.body.read()
    request.body.seek(0)
    encoding = request.get_header("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise HttpRefusal(415, "Of content encodings, gzip is taken")
    unzip, most = zlib.decompressobj(zlib.MAX_WBITS | 16), request.environ["minris.maximum_body"]
    try:
        found = unzip.decompress(body, most + 1)
    except zlib.error:
        raise HttpRefusal(400, "The body is not gzip") from None
    if len(found) > most:
        raise HttpRefusal(413, "Larger than this system takes")
    if not unzip.eof or unzip.unused_data:
        raise HttpRefusal(400, "The body is gzip that breaks off, or more than that")
    return found


def check_json_type(request: Any) -> None:
    """Refuse (0212, HTTP 415) a body that does not say it is DICOM JSON."""
    kind = (request.content_type or "").partition(";")[0].strip().lower()
    if kind not in ("application/dicom+json", "application/json"):
        raise Refusal(Status.MISTYPED_ARGUMENT, f"{kind or 'no content type'} is not DICOM JSON")


def problem_json(refusal: Refusal) -> dict[str, Any]:
    """A refusal as the API tells it."""
    return {
        "status": f"{refusal.status:04X}",
        "error": refusal.detail,
        "problems": [
            {"attribute": f"{p.tag:08X}", "name": attribute_name(p.tag), "text": str(p.words)}
            for p in refusal.problems
            if p.tag
        ],
    }


BASE = "/dicom-web"


def is_told_by_dimse_alone(web: Web, ae_title: str) -> bool:
    """Whether the device of an AE title says that it is not told by WebSocket."""
    device = web.access().device(ae_title)
    return bool(device) and device.events == EVENT_CHANNELS[0]


SLASH = "%2F"  # a slash of an AE title, which is none of the path


def holds_control(web: Web, request: Any) -> bool:
    """Whether a request bears the secret of this run, which is in a file of our user's alone."""
    return hmac.compare_digest(bearer_of(request).encode(), web.box.control.encode())


BEARER = "bearer."  # before the token in a subprotocol of a WebSocket


def header_of(scope: Any, name: bytes) -> bytes:
    """A header of an ASGI scope, or nothing."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def check_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse (400) headers that bottle could not read."""
    try:
        b"\n".join(value for _, value in headers).decode()
    except UnicodeDecodeError:
        raise HttpRefusal(400, "A header is not UTF-8") from None


def takes_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header takes gzip."""
    return bool(re.search(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", accept_encoding.lower()))


def cookie_of(scope: Any, name: str) -> str:
    """The value of a cookie in an ASGI scope, or nothing."""
    for part in header_of(scope, b"cookie").decode("latin-1").split(";"):
        found, _, secret = part.strip().partition("=")
        if found == name:
            return secret.strip('"')
    return ""


SECURITY_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
