"""Reverse proxies before us: who calls through one."""

import ipaddress
import re
from collections.abc import Iterable
from typing import Any

from minris.config.values import Networks

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
        return
    ways = parts_of(headers, b"x-forwarded-for"), forwarded(headers, "for")
    callers = {walk_back(peer, hops, proxies) for hops in ways if hops}
    scope["client"] = (callers.pop() if len(callers) == 1 else peer), 0
    schemes = [*forwarded(headers, "proto"), *parts_of(headers, b"x-forwarded-proto")]
    if schemes and schemes[-1] in ("http", "https"):
        scope["scheme"] = schemes[-1]
