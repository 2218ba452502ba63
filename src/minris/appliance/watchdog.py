"""The watchdog of systemd: fed when both doors have answered ourselves."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Protocol

from minris import log
from minris.appliance.machine import notify_systemd
from minris.config.ini import Config
from minris.dataset.elements import text_elements
from minris.dataset.search import to_syntax
from minris.standard.uids import MODALITY_WORKLIST, VERIFICATION
from minris.upper_layer.caller import Caller, DeliveryError
from minris.upper_layer.pdus import encode_command
from minris.upper_layer.server import AssociationServer
from minris.web.server import WebServer

WATCHDOG_SECONDS = 20.0  # systemd waits for three of them
NOBODY = "no such patient"  # a Patient ID that is never found; a space in it is made by no pattern


class Doors(Protocol):
    """What the watchdog asks: the appliance."""

    config: Config
    associations: AssociationServer
    web_server: WebServer


async def feed_watchdog(box: Doors, seconds: float = WATCHDOG_SECONDS) -> None:
    """Reset the watchdog of systemd each time that both doors have answered, for ever.

    Neither a full disk nor a damaged store starves it: a failure status is an answer too.
    """
    while os.environ.get("NOTIFY_SOCKET"):
        await asyncio.sleep(seconds)
        try:
            async with asyncio.timeout(seconds):
                await ask_dicom(box)
                await ask_web(box)
        except Exception as error:  # whatever it is, systemd hears nothing
            log.error("we do not answer ourselves: %s", str(error) or "no answer in time")
        else:
            notify_systemd("WATCHDOG=1")


async def ask_dicom(box: Doors) -> None:
    """Send ourselves a C-ECHO and a worklist query. Raises DeliveryError or OSError without answers."""
    caller, title = Caller(), box.config.dicom.ae_title
    async with own_connection(box) as connection:
        proposed = ((VERIFICATION, None), (MODALITY_WORKLIST, None))
        await caller.open((), title, title, proposed, sock=connection)
        try:
            contexts = caller.accepted.contexts
            if not {VERIFICATION, MODALITY_WORKLIST} <= contexts.keys():
                raise DeliveryError("a presentation context is rejected")
            echo = encode_command(AffectedSOPClassUID=VERIFICATION, CommandField=0x0030,
                                  MessageID=1, CommandDataSetType=0x0101)  # fmt: skip
            await caller.ask(contexts[VERIFICATION], echo, None)
            context = contexts[MODALITY_WORKLIST]
            find = encode_command(AffectedSOPClassUID=MODALITY_WORKLIST, CommandField=0x0020,
                                  MessageID=2, Priority=0, CommandDataSetType=1)  # fmt: skip
            keys = to_syntax(bytes(text_elements(PatientID=NOBODY)), context.explicit)
            await caller.ask(context, find, keys)
        finally:
            await caller.release()


@contextlib.asynccontextmanager
async def own_connection(box: Doors) -> AsyncIterator[socket.socket]:
    """Give a socket to the DICOM door, which knows it for ours before it is connected.

    No limit and no rule about callers applies to it. Where only TLS is spoken, whose certificates
    are for devices, it is a pair of sockets within this process
    """
    server, loop, other = box.associations, asyncio.get_running_loop(), None
    if box.config.dicom.port == "off":
        connection, other = socket.socketpair()
        ours = (other.getpeername() or ("", 0))[:2]
    else:
        family, address = reachable(server.servers[0])
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.bind((address[0], 0))
        ours = connection.getsockname()[:2]
    with connection:
        connection.setblocking(False)
        server.own.add(ours)
        try:
            if other:
                await server.admit(other)
            else:
                await loop.sock_connect(connection, address)
            yield connection
        finally:
            server.own.discard(ours)


def reachable(server: asyncio.Server) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return family and address at which a server is reached from this computer."""
    door = server.sockets[0]
    host, port = door.getsockname()[:2]
    return door.family, ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)


async def ask_web(box: Doors) -> None:
    """Ask the web door for what needs a login. Raises OSError or EOFError without an answer."""
    tls = None
    if box.config.web.tls_certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE  # it is our own
    _, address = reachable(box.web_server.server)
    reader, writer = await asyncio.open_connection(*address, ssl=tls)
    try:
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await reader.readuntil(b"\r\n")
    finally:
        writer.transport.abort()
