"""HTTP and WebSocket clients of DICOMweb: load, and watchers that print when they are told.

    python tests/bench/web.py PORT NUMBER      (the token comes on standard input)

opens a WebSocket for each of so many AE titles, prints a line when all are open, then one for each
event: the AE title, the workitem's UID, time.perf_counter().
"""

import asyncio
import base64
import json
import os
import re
import sys
import time

import wire

BASE, EVERYTHING = "/dicom-web", wire.UPS_GLOBAL_SUBSCRIPTION
JSON = "Content-Type: application/dicom+json\r\n"
PING, PONG, TEXT = 0x9, 0xA, 0x1


class HttpError(RuntimeError):
    """An answer that is not the one expected."""


def head(method, path, token, content=b"", more=""):
    """A request, whole."""
    length = f"{JSON}Content-Length: {len(content)}\r\n" if content else ""
    lines = f"{method} {path} HTTP/1.1\r\nHost: {wire.HOST}\r\nAuthorization: Bearer {token}\r\n"
    return f"{lines}{more}{length}\r\n".encode() + content


def change(uid, state):
    """The body and path of a state change."""
    lock = {"vr": "UI", "Value": ["2.25.77"]}
    body = [{"00741000": {"vr": "CS", "Value": [state]}, "00081195": lock}]
    return f"{BASE}/workitems/{uid}/state", json.dumps(body).encode()


class Connection:
    """One connection that is kept, one request at a time."""

    def __init__(self, port, token):
        self.port, self.token = port, token

    async def open(self):
        """Connect."""
        self.reader, self.writer = await asyncio.open_connection(wire.HOST, self.port)
        return self

    async def ask(self, method, path, content=b""):
        """The content of the answer; HttpError for anything but success."""
        self.writer.write(head(method, path, self.token, content))
        lines = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", lines)
        answer = await self.reader.readexactly(int(length[1]) if length else 0)
        if not lines.startswith(b"http/1.1 2"):
            raise HttpError(f"{method} {path}: {lines[:60]!r} {answer[:200]!r}")
        return answer


async def _mix(port, token, uids, clients, gets):
    connections = [await Connection(port, token).open() for _ in range(clients)]

    async def work(number):
        ask = connections[number].ask
        for uid in uids[number::clients]:
            for _ in range(gets):
                await ask("GET", f"{BASE}/workitems/{uid}")
            path, body = change(uid, "IN PROGRESS")
            await ask("PUT", path, body)

    begin = time.perf_counter()
    await asyncio.gather(*map(work, range(clients)))
    took = time.perf_counter() - begin
    for connection in connections:
        connection.writer.close()
    return len(uids) * (gets + 1) / took


def mix(port, token, uids, clients=8, gets=3):
    """Requests a second: so many retrieves of each workitem, then its claim."""
    return asyncio.run(_mix(port, token, uids, clients, gets))


async def _repeat(port, path, number, clients):
    connections = [await Connection(port, "none").open() for _ in range(clients)]

    async def work(connection):
        for _ in range(number // clients):
            await connection.ask("GET", path)

    begin = time.perf_counter()
    await asyncio.gather(*map(work, connections))
    return number / (time.perf_counter() - begin)


def repeat(port, path, number, clients=8):
    """Requests a second of one path."""
    return asyncio.run(_repeat(port, path, number, clients))


async def _subscribe(port, token, titles):
    connection = await Connection(port, token).open()
    for title in titles:
        await connection.ask("POST", f"{BASE}/workitems/{EVERYTHING}/subscribers/{title}")


def subscribe(port, token, titles):
    """Subscribe AE titles to all workitems."""
    asyncio.run(_subscribe(port, token, titles))


# Watchers ---------------------------------------------------------------------------------------


class Watcher:
    """One WebSocket; answers pings."""

    def __init__(self, port, token, title):
        self.port, self.token, self.title = port, token, title

    async def open(self):
        """Connect; HttpError where it is refused."""
        self.reader, self.writer = await asyncio.open_connection(wire.HOST, self.port)
        key = base64.b64encode(os.urandom(16)).decode()
        more = (
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n"
        )
        path = f"{BASE}/subscribers/{self.title}"
        self.writer.write(head("GET", path, self.token, more=more))
        lines = await self.reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in lines:
            raise HttpError(f"{path}: {lines[:80]!r}")

    async def follow(self):
        """Print each event."""
        while True:
            first, length = await self.reader.readexactly(2)
            if length == 126:
                length = int.from_bytes(await self.reader.readexactly(2), "big")
            elif length == 127:
                length = int.from_bytes(await self.reader.readexactly(8), "big")
            payload = await self.reader.readexactly(length)
            if first & 0xF == PING:
                self.writer.write(bytes([0x80 | PONG, 0x80 | length, 0, 0, 0, 0]) + payload)
            elif first & 0xF == TEXT:
                uid = json.loads(payload)["00001000"]["Value"][0]
                print(self.title, uid, time.perf_counter(), flush=True)


async def watch(port, token, titles):
    """Open a WebSocket for each AE title and follow them."""
    watchers = [Watcher(port, token, title) for title in titles]
    for watcher in watchers:
        await watcher.open()
    print("open", len(watchers), 0, flush=True)
    await asyncio.gather(*(watcher.follow() for watcher in watchers))


if __name__ == "__main__":
    port_given, number_given = map(int, sys.argv[1:])
    names = [f"W{index:03}" for index in range(1, number_given + 1)]
    asyncio.run(watch(port_given, sys.stdin.readline().strip(), names))
