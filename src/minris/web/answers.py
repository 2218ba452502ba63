"""Routes for programs, and their answers: data sets or a refusal (PS3.18 8.5)."""

import http.client
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from minris import log
from minris.dataset.dicom_json import to_json
from minris.dataset.elements import ElementIndex
from minris.standard.status import Refusal, http_status, warning_text
from minris.web.request import Web, enter, problem_json

ROW_NUMBER = "[0-9]{1,18}"  # as <name:row> in the path of a route or page


class Route(NamedTuple):
    """A route: method, path, the function that answers, and the least role that may call it.

    operation  its name in OUTCOMES
    clause     of PS3.18; empty for routes of the product's own
    success    the HTTP codes of success
    body       `one` data set, `optional`, or empty for none
    query      parameters besides accept and charset: keys of WEB_PARAMETERS
    """

    method: str
    path: str
    function: Callable[..., Any]
    operation: str
    role: str
    clause: str = ""
    success: tuple[int, ...] = (200,)
    body: str = ""
    query: tuple[str, ...] = ()


class Reply(NamedTuple):
    """An answer: the HTTP code, the body with its media type, further headers."""

    http: int
    content_type: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def pairs(self) -> list[tuple[bytes, bytes]]:
        """Its headers in the form of ASGI."""
        found = (("Content-Type", self.content_type), *self.headers)
        return [(name.lower().encode(), value.encode("latin-1")) for name, value in found]


def refusal_reply(refusal: Refusal, operation: str = "*") -> Reply:
    """Return a refusal as JSON, with the HTTP code that OUTCOMES gives it."""
    code = http_status(operation, refusal)
    headers = {
        401: (("WWW-Authenticate", 'Bearer realm="minris"'),),
        429: (("Retry-After", "1"),),
        503: (("Retry-After", "1"),),
    }.get(code, ())
    body = json.dumps(problem_json(refusal), ensure_ascii=False).encode()
    return Reply(code, "application/json", body, headers)


def note_reason(request: Any, refusal: Refusal) -> None:
    """Keep why a request is refused, for its line in the log."""
    request.environ["minris.reason"] = refusal.reason


def log_refused(method: str, path: str, address: str, code: int, reason: str = "") -> None:
    """Log an answer of 400 or more: one line, without query and values, which may be a patient's.

    path  as it was sent, or the rule of its route; of one that we do not have only plain words
    """
    shown = "/".join(
        part if re.fullmatch(r"[a-z_-]{0,40}|<.*>", part) else "…" for part in path.split("/")[:6]
    )
    phrase = http.client.responses.get(code, "")
    values = method, shown, address, code, reason or phrase
    log.info("web: %s %s from %s: %d %s", *values, extra={"repeats": True})


def data_reply(found: Iterable[bytes], http: int) -> Reply:
    """Return data sets as DICOM JSON."""
    body = json.dumps([to_json(ElementIndex(data)) for data in found], ensure_ascii=False)
    return Reply(http, "application/dicom+json; charset=UTF-8", body.encode())


class RouteView:
    """Answers the requests of one route through bottle, in DICOM JSON unless a subclass differs."""

    def __init__(self, web: Web, route: Route, request: Any, response: Any) -> None:
        self.web, self.route, self.request, self.response = web, route, request, response

    def __call__(self, **arguments: str) -> bytes:
        try:
            reply = self.reply(arguments)
        except Refusal as refusal:
            note_reason(self.request, refusal)
            reply = self.refused(refusal, arguments)
        self.response.status, self.response.content_type = reply.http, reply.content_type
        for name, value in reply.headers:
            self.response.add_header(name, value)
        return reply.body

    def reply(self, arguments: dict[str, str]) -> Reply:
        """Return the data sets of the route's function; `arguments` are the parts of the path."""
        _, ctx = enter(self.web, self.request, self.route.role)
        found = self.route.function(self.web, self.request, ctx, **arguments)
        return found if isinstance(found, Reply) else data_reply(found, self.route.success[0])

    def refused(self, refusal: Refusal, arguments: dict[str, str]) -> Reply:
        """Return the refusal with the text of OUTCOMES as a Warning header."""
        reply = refusal_reply(refusal, self.route.operation)
        text = warning_text(self.route.operation, refusal)
        return reply._replace(headers=(*reply.headers, ("Warning", f'299 minris: "{text}"')))
