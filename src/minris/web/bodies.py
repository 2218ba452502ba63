"""Bodies of requests: who may send how much."""

import asyncio
import contextlib
import io
from typing import Any

from minris.intake import SMALL, Share
from minris.standard.status import HttpRefusal, Message
from minris.web.request import BASE, Web, cookie_name, find_login, header_of

FORM = SMALL  # bytes of a form
OPEN = ("/login",)  # paths whose forms nobody has to be known for
MOST_FIELDS = 100  # of a form with files
TOO_LARGE = Message("The body is too large")


def take_room(share: Share, size: int) -> None:
    """Count the bytes of a body before they are held. Refuses 503."""
    if size > 0 and not share.take(size):
        raise HttpRefusal(503, Message("Too many large requests at once: try again"))


def is_for_programs(path: str) -> bool:
    """Whether a path is called by programs rather than from a page."""
    return path.startswith((BASE, "/api/", "/control/"))


def is_upload(scope: Any) -> bool:
    """Whether a request sends files from a page."""
    kind = header_of(scope, b"content-type").lstrip().lower()
    return kind.startswith(b"multipart/form-data") and scope["path"] != "/login"


def most_of_body(scope: Any, most: int) -> int:
    """The bytes that a body may have: those of a form, more for programs and for files."""
    return most if is_for_programs(scope["path"]) or is_upload(scope) else min(most, FORM)


def check_fields(scope: Any, body: bytes) -> None:
    """Refuse (413) a form with files that has too many fields: each costs much more than its bytes."""
    if is_upload(scope):
        _, _, boundary = header_of(scope, b"content-type").partition(b"boundary=")
        boundary = boundary.partition(b";")[0].strip(b' "')
        if boundary and body.count(b"--" + boundary) > MOST_FIELDS:
            raise HttpRefusal(413, Message("The form has too many fields"))


def has_body(scope: Any) -> bool:
    """Whether a request has a body."""
    size = header_of(scope, b"content-length").strip() or b"0"
    return size != b"0" or bool(header_of(scope, b"transfer-encoding"))


def is_known(web: Web, scope: Any, large: bool) -> bool:
    """Whether a request comes from somebody who has logged in, or from a program with a token.

    large  also its login must not have ended: of a form of its page what was typed is kept
    """
    import bottle
    from a2wsgi.wsgi import build_environ

    with contextlib.suppress(Exception):  # its route answers for it
        request = bottle.BaseRequest(build_environ(scope, io.BytesIO()))
        if find_login(web, request) is not None:
            return True
        cookie = request.get_cookie(cookie_name(web, scope["scheme"], "minris"))
        page = not (large or is_upload(scope) or is_for_programs(scope["path"]))
        return bool(page and cookie and web.was_session(cookie))
    return False


async def drain(receive: Any, seconds: float) -> None:
    """Read and drop the rest of a body, so that its sender reads our answer first."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while (message := await receive())["type"] == "http.request":
                if not message.get("more_body"):
                    return
