"""Reverse proxies before us: who calls, by which of our names, below which path."""

import ipaddress
import re
import types
import urllib.parse
from collections.abc import Iterable
from typing import Any

from minris import log
from minris.config.values import Networks
from minris.standard.status import HttpRefusal, Message
from minris.web.request import OF_THIS_COMPUTER, header_of

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Headers = Iterable[tuple[bytes, bytes]]
FORWARDING_HEADERS = frozenset(
    b"forwarded via x-real-ip x-forwarded-for x-forwarded-host x-forwarded-proto".split()
)


def read_address(text: str) -> Address | None:
    """Return the address in a text, with or without a port; None if there is none."""
    found = re.fullmatch(r"\[([^\]]+)\](?::\d+)?|([\d.]+):\d+", text)
    try:
        address = ipaddress.ip_address((found[1] or found[2]) if found else text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_trusted(address: str, proxies: Networks) -> bool:
    """Whether an address is that of a trusted proxy."""
    found = read_address(address)
    return found is not None and any(found in network for network in proxies)


class Entrance:
    """The way of requests to us and of answers back.

    names  host names of ours; empty: any
    root   path of the public URL; requests may come with it or without
    """

    def __init__(self, web: types.SimpleNamespace) -> None:
        public = urllib.parse.urlsplit(web.public_url)
        self.proxies, self.root, self.public = web.trusted_proxies, public.path, web.public_url
        self.names = {name for name in (public.hostname, *web.hosts) if name}
        if self.names:
            self.names.add(web.host)

    def take(self, scope: Any) -> None:
        """Make of an ASGI scope what the caller has asked of us. Refuses 400, 421."""
        look_through(scope, self.proxies)
        self._check_host(scope)
        root = self.root
        if root and (scope["path"] == root or scope["path"].startswith(f"{root}/")):
            raw = scope["raw_path"].removeprefix(root.encode())
            scope["path"], scope["raw_path"] = scope["path"].removeprefix(root) or "/", raw or b"/"

    def _check_host(self, scope: Any) -> None:
        """Refuse (421) a name that is not ours, as of DNS rebinding (RFC 9110 7.4).

        The address of the connection itself is ours: what a proxy sets by default, and probes
        """
        host = header_of(scope, b"host").decode("latin-1")
        try:
            name = (urllib.parse.urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            raise HttpRefusal(400, "The Host header is invalid") from None
        if not self.names or not name or name in self.names or name in OF_THIS_COMPUTER:
            return
        here = read_address((scope["server"] or ("",))[0])
        if not here or read_address(name) != here:
            words = Message(
                "This system is not called {host}: see [web] public_url and hosts", host=host
            )
            if self.public:
                words = Message(
                    "This system is not called {host}. Open {url} (see [web] public_url and hosts)",
                    host=host, url=self.public,
                )  # fmt: skip
            raise HttpRefusal(421, words)

    def give(
        self, headers: list[tuple[bytes, bytes]], content: bytes
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Return an answer with the path of the public URL in each address of ours."""
        if not self.root:
            return headers, content
        told = dict(headers)
        html = told.get(b"content-type", b"").startswith(b"text/html")
        if html and content and b"content-encoding" not in told:
            content = below_path(self.root, content)
            told[b"content-length"] = str(len(content)).encode()
        if told.get(b"location", b"").startswith(b"/"):
            told[b"location"] = self.root.encode() + told[b"location"]
        changed = (b"content-length", b"location")
        return [
            (name, told[name] if name in changed else value) for name, value in headers
        ], content


def below_path(root: str, html: bytes) -> bytes:
    """Return HTML whose addresses of ours are below the path of the public URL."""
    return LINK.sub(rb"\1" + root.encode() + b"/", html) if root else html


# where an address of ours may stand: what users have typed is escaped, and has no quotation mark
LINK = re.compile(rb'(\s(?:href|src|action|formaction|data-part|data-find|data-root)=")/(?!/)')


def parts_of(headers: Headers, name: bytes) -> list[str]:
    """Return the parts of a header that is a list, in order."""
    values = [value.decode("latin-1") for key, value in headers if key == name]
    return [part.strip() for value in values for part in value.split(",")]


def forwarded(headers: Headers, field: str) -> list[str]:
    """Return a field of each element of Forwarded, in order; empty where it is missing (RFC 7239)."""
    pattern = re.compile(rf'(?:^|;)\s*{field}\s*=\s*"?([^";]*)', re.IGNORECASE)
    found = (pattern.search(element) for element in parts_of(headers, b"forwarded"))
    return [one[1].strip() if one else "" for one in found]


def walk_back(peer: str, hops: Iterable[str], proxies: Networks) -> str:
    """Return the first address on the way back that is no trusted proxy.

    hops  as the proxies have told them, the nearest last; a text that is no address ends the way
    """
    for hop in reversed(list(hops)):
        address = read_address(hop)
        if not is_trusted(peer, proxies) or not address:
            break
        peer = str(address)
    return peer


def look_through(scope: Any, proxies: Networks) -> None:
    """Set client and scheme of an ASGI scope as the trusted proxies before us tell them.

    If X-Forwarded-For and Forwarded name two callers, the caller has written one of them: then it
    is the proxy. `minris.forwarded` tells whether a proxy has sent the request, trusted or not.
    """
    headers, peer = scope["headers"], (scope["client"] or ("",))[0]
    names = {name for name, _ in headers}
    # HTTP/1.0 is what nginx speaks to us by default, without a header that tells of it
    scope["minris.forwarded"] = bool(FORWARDING_HEADERS & names) or scope["http_version"] == "1.0"
    if not is_trusted(peer, proxies):
        if b"x-forwarded-for" in names or b"forwarded" in names:
            words = "web: %s forwards requests of others: if it is your proxy, set trusted_proxies"
            log.warning(words, peer, extra={"repeats": True})
        return
    ways = parts_of(headers, b"x-forwarded-for"), forwarded(headers, "for")
    callers = {walk_back(peer, hops, proxies) for hops in ways if hops}
    scope["client"] = (callers.pop() if len(callers) == 1 else peer), 0
    schemes = [*forwarded(headers, "proto"), *parts_of(headers, b"x-forwarded-proto")]
    if schemes and schemes[-1] in ("http", "https"):
        scope["scheme"] = schemes[-1]
