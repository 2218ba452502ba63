"""The addresses of this computer that others in its network can type."""

import contextlib
import ipaddress
import socket
import struct

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from minris.config.ini import Config

ADDRESS_OF = 0x8915  # SIOCGIFADDR of Linux
EVERYWHERE = ("", "0.0.0.0", "::")
OF_CONTAINERS = ("docker", "br-", "veth", "virbr", "lxc", "podman")


def own_addresses(host: str) -> list[str]:
    """The addresses by which others reach a server that listens at `host`: its own, or those of all networks.

    That of the way out comes first. Nothing is sent, and no name server is asked
    """
    if host not in EVERYWHERE:
        return [host]
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): the way out, whatever it is
        found.append(way.getsockname()[0])
    found += _of_interfaces()
    others = [one for one in dict.fromkeys(found) if _is_of_a_network(one)]
    return others or ["127.0.0.1"]


def _of_interfaces() -> list[str]:
    """The IPv4 address of each interface, of those that have one; only on Linux."""
    found: list[str] = []
    if not fcntl or not hasattr(socket, "if_nameindex"):
        return found
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            if not name.startswith(OF_CONTAINERS):
                with contextlib.suppress(OSError):
                    request = struct.pack("256s", name.encode()[:15])
                    answer = fcntl.ioctl(asked, ADDRESS_OF, request)
                    found.append(socket.inet_ntoa(answer[20:24]))
    return found


def _is_of_a_network(address: str) -> bool:
    one = ipaddress.ip_address(address)
    return not (one.is_loopback or one.is_link_local or one.is_unspecified)


def page_urls(config: Config, port: int) -> list[str]:
    """The addresses of the pages for other computers and phones; none if only this one may open them."""
    if config.web.public_url:
        return [config.web.public_url]
    scheme = "https" if config.web.tls_certificate else "http"
    hosts = [f"[{one}]" if ":" in one else one for one in own_addresses(config.web.host)]
    return [
        f"{scheme}://{one}:{port}"
        for one in hosts
        if one not in ("127.0.0.1", "[::1]", "localhost")
    ]
