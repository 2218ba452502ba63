"""A request: its login, address, rate and body."""

import hmac
import re
import urllib.parse
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

from minris.access.context import Actor, Context
from minris.access.devices import AccessRules
from minris.access.unsaved import Unsaved
from minris.access.users import Login, find_session, find_token, permit, was_session
from minris.config.ini import Config
from minris.standard.dictionary import attribute_name
from minris.standard.status import HttpRefusal, Message, Refusal, Status
from minris.store.sqlite import reading
from minris.store.writer import Core, Writer
from minris.upper_layer.server import AssociationServer
from minris.ups.events import EVENT_CHANNELS


class Tile(NamedTuple):
    """A number that people look at, with small lines below; light: a key of LIGHTS, or none."""

    what: Message
    value: str
    lines: tuple[str, ...]
    light: str = ""
    path: str = ""


class Box(Protocol):
    """What routes and pages need from the appliance.

    backup_since  when the backup that is under way began, empty if none is
    control   the secret by which the command line proves itself
    web_port  the port of the pages; dicom_port, dicom_tls_port: those of machines, 0 for none
    """

    associations: AssociationServer
    backup_problem: str
    restore_problem: str
    backup_since: str
    control: str
    web_port: int
    dicom_port: int
    dicom_tls_port: int
    commitments: Any  # these four are of this floor or above
    dimse: Any
    imports: Any
    socket_delivery: Any

    def alarms(self) -> list[Message]: ...
    def backups(self) -> list[Any]: ...
    def back_up(self) -> None: ...
    def backup_under_way(self) -> list[Message]: ...
    def clear_numbers(self, count: int = 1) -> None: ...
    def health(self) -> Mapping[str, str]: ...
    def neighbours(self) -> Mapping[str, str]: ...
    def lights(self) -> list[tuple[Message, str, Message]]: ...
    def metrics(self) -> Mapping[str, float]: ...
    def notices(self) -> list[Message]: ...
    def reload_access(self) -> None: ...
    def restore(self, name: str, who: str) -> None: ...
    def second_place(self) -> Message: ...
    def try_alert(self) -> None: ...
    def tiles(self, to_do: int) -> list[Tile]: ...
    def wake_delivery(self) -> None: ...


class Web:
    """What routes and pages work with.

    context  makes a Context for an Actor
    access   returns the current AccessRules
    writer   the store's only writer
    box      the appliance
    root     path of the public URL
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
        self.unsaved = Unsaved()
        self.root = urllib.parse.urlsplit(config.web.public_url).path

    def write(self, core: Core, ctx: Context, *arguments: Any) -> Any:
        """Call a core function in the store thread and wait for its commit."""
        try:
            return self.writer.call(core, ctx, *arguments)
        finally:
            self.box.wake_delivery()

    def session(self, cookie: str) -> Login | None:
        """The login of a session's cookie, None if unknown or expired."""
        ctx = self.context(Actor("web"))
        return self.read(self.unsaved.find, ctx, cookie) or self.read(find_session, ctx, cookie)

    def was_session(self, cookie: str) -> bool:
        """Whether a cookie is that of a session, also of one that has expired."""
        return self.unsaved.knows(cookie) or self.read(was_session, cookie)

    @staticmethod
    def read(core: Core, *arguments: Any) -> Any:
        """Call a core function that only reads."""
        with reading():
            return core(*arguments)


class RateLimit:
    """Limits the requests of each address to `rate` a second, with bursts of two seconds' worth.

    rate  0 for no limit
    """

    BURST = 2.0  # seconds

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.due: dict[str, float] = {}  # by address: when its requests so far are paid off

    def allows(self, address: str, now: float) -> bool:
        """Whether a request is allowed now; if so, count it."""
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
    """Return the address of the caller: of the connection, or as trusted proxies tell it."""
    return request.environ.get("REMOTE_ADDR", "")


def bearer_of(request: Any) -> str:
    """Return the bearer token of a request, or an empty text."""
    kind, _, token = request.get_header("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def find_login(web: Web, request: Any) -> Login | None:
    """Return the login of a bearer token, a session, or of loopback where that is allowed."""
    if holds_control(web, request):
        return Login("console", "admin")
    if token := bearer_of(request):
        return web.read(find_token, token)
    if cookie := request.get_cookie(cookie_name(web, scheme_of(request), "minris")):
        return web.session(cookie)
    open_here = web.config.web.anonymous_loopback
    if open_here and request.path.startswith(("/api/", "/dicom-web/")):
        host = urllib.parse.urlsplit(f"//{host_of(request)}").hostname
        check_origin(web, request)
        ours = {client_address(request), host} <= {"127.0.0.1", "::1", "localhost"}
        if ours and not request.environ["asgi.scope"]["minris.forwarded"]:
            return Login("loopback", "admin")
    return None


def host_of(request: Any) -> str:
    """Return the Host header. Refuses 400 for one that no address has."""
    host: str = request.get_header("Host", "")
    try:
        urllib.parse.urlsplit(f"//{host}")
    except ValueError:
        raise HttpRefusal(400, "The Host header is invalid") from None
    return host


def scheme_of(request: Any) -> str:
    """Return `http` or `https`: of the connection, or as trusted proxies tell it."""
    scheme: str = request.environ["wsgi.url_scheme"]
    return scheme


def is_secure(web: Web, scheme: str) -> bool:
    """Whether browsers reach us by https."""
    return scheme == "https" or web.config.web.public_url.startswith("https:")


def cookie_name(web: Web, scheme: str, name: str) -> str:
    """Return the name of a cookie of this box.

    Cookies know no port, and another box may be at the next one, or below another path: the name
    tells them apart (RFC 6265 8.5). Over https no other host may set it (RFC 6265bis 4.1.3).
    """
    public = urllib.parse.urlsplit(web.config.web.public_url)
    place = f"{public.port or public.scheme}{public.path.replace('/', '.')}"
    kind = ("__Secure-" if web.root else "__Host-") if is_secure(web, scheme) else ""
    return f"{kind}{name}-{place if public.hostname else web.box.web_port}"


def site_of(address: str) -> tuple[str, int] | None:
    """Return host and port of a web address, None if it is none."""
    try:
        parts = urllib.parse.urlsplit(address)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.hostname, port) if parts.hostname else None


def check_origin(web: Web, request: Any) -> None:
    """Refuse (0124) a cross-site request of a browser."""
    origin = request.get_header("Origin")
    if origin and origin != "null":
        site, scheme = site_of(origin), origin.partition(":")[0]
        ours = f"{scheme}://{request.get_header('Host', '')}", web.config.web.public_url
        if site and site in [site_of(address) for address in ours]:
            return
        if site:
            raise Refusal(Status.NOT_AUTHORIZED, Message(FROM_ANOTHER_SITE.key, site=origin))
    elif not origin and request.get_header("Sec-Fetch-Site", "none") in ("none", "same-origin"):
        return
    raise Refusal(Status.NOT_AUTHORIZED, Message("The request comes from another site"))


FROM_ANOTHER_SITE = Message(
    "The request comes from another site, {site}. "
    "If that is this system behind a proxy: set [web] public_url"
)


def check_kept(web: Web, request: Any) -> None:
    """Refuse (0124) a login of a browser over http beside an https public URL: it keeps no cookie."""
    origin, public = request.get_header("Origin", ""), web.config.web.public_url
    site = site_of(origin) if origin.startswith("http:") and public.startswith("https:") else None
    if site and site[0] not in OF_THIS_COMPUTER:
        words = Message(
            "Open {url} and log in there: over http this browser keeps no login", url=public
        )
        raise Refusal(Status.NOT_AUTHORIZED, words)


OF_THIS_COMPUTER = ("localhost", "127.0.0.1", "::1")


def enter(web: Web, request: Any, least: str) -> tuple[Login, Context]:
    """Return login and context of a request with at least the role `least`. Refuses 0124, 401."""
    login = find_login(web, request)
    if not login:
        raise HttpRefusal(401, Message("Log in first"), Status.NOT_AUTHORIZED)
    if not permit(login.role, least):
        raise Refusal(
            Status.NOT_AUTHORIZED,
            Message("Your account is not allowed to do this. Ask an administrator."),
        )
    if request.method not in ("GET", "HEAD") and login.csrf:
        check_origin(web, request)
        given = request.get_header("X-CSRF-Token") or request.forms.getunicode("csrf") or ""
        if not login.sent(given):
            raise Refusal(Status.NOT_AUTHORIZED, Message("This page has expired. Reload it."))
    return login, web.context(Actor(login.name, client_address(request), login.role))


def check_speaker(login: Login, ae_title: str) -> None:
    """Refuse (0124) a login that may not act for an AE title."""
    if not login.speaks_for(ae_title):
        words = Message("This login does not speak for {ae}", ae=ae_title)
        raise Refusal(Status.NOT_AUTHORIZED, words)


def body_of(request: Any) -> bytes:
    """Return the body, decompressed and bounded. Refuses 400, 413, 415, 503."""
    body: bytes = request.body.read()
    request.body.seek(0)
    encoding = request.get_header("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise HttpRefusal(415, "The only Content-Encoding accepted is gzip")
    unzip, most = zlib.decompressobj(zlib.MAX_WBITS | 16), request.environ["minris.maximum_body"]
    try:
        found = unzip.decompress(body, most + 1)
    except zlib.error:
        raise HttpRefusal(400, "The body is not gzip") from None
    if len(found) > most:
        raise HttpRefusal(413, "The body is too large")
    if not request.environ["minris.share"].take(len(found)):
        raise HttpRefusal(503, Message("Too many large requests at once: try again"))
    if not unzip.eof or unzip.unused_data:
        raise HttpRefusal(400, "The gzip body is truncated or followed by other data")
    return found


def check_json_type(request: Any) -> None:
    """Refuse (0212, HTTP 415) a body whose Content-Type is not DICOM JSON."""
    kind = (request.content_type or "").partition(";")[0].strip().lower()
    if kind not in ("application/dicom+json", "application/json"):
        raise Refusal(Status.MISTYPED_ARGUMENT, f"{kind or 'no content type'} is not DICOM JSON")


def problem_json(refusal: Refusal) -> dict[str, Any]:
    """Return a refusal as the JSON object of the API."""
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
    """Whether the device of an AE title gets its events by DIMSE only."""
    device = web.access().device(ae_title)
    return bool(device) and device.events == EVENT_CHANNELS[0]


SLASH = "%2F"  # a slash within an AE title


def holds_control(web: Web, request: Any) -> bool:
    """Whether a request has the secret of this run, which only our user can read from its file."""
    return hmac.compare_digest(bearer_of(request).encode(), web.box.control.encode())


BEARER = "bearer."  # before the token in a subprotocol of a WebSocket


def header_of(scope: Any, name: bytes) -> bytes:
    """Return a header of an ASGI scope, or an empty value."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def check_headers(headers: Collection[tuple[bytes, bytes]]) -> None:
    """Refuse (400) a body of two lengths (RFC 9112 6.3), and what bottle cannot read: no UTF-8."""
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
        raise HttpRefusal(400, "Content-Length and Transfer-Encoding exclude each other")
    try:
        b"\n".join(value for _, value in headers).decode()
    except UnicodeDecodeError:
        raise HttpRefusal(400, "A header is not UTF-8") from None


def takes_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header accepts gzip."""
    return bool(re.search(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", accept_encoding.lower()))


def cookie_of(scope: Any, name: str) -> str:
    """Return the value of a cookie in an ASGI scope, or an empty text."""
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
