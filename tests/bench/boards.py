"""People who look at the board of a day: its first byte, its size, and boards that stay open.

    python tests/bench/boards.py PORT NUMBER      (the session's cookie comes on standard input)

keeps so many boards open as the page's script does, each with an event stream of its own, and
prints time.perf_counter() whenever one of them has been sent anew.
"""

import asyncio
import gzip
import http.client
import random
import re
import sys
import time
import urllib.parse

import entries
import wire

STATIC = ("/static/minris.css", "/static/minris.js")


def of_today(number, today):
    """So many entries, all of today, at two stations."""
    chance = random.Random(number)
    stations = entries.STATIONS[:2]
    return [entries.entry(index, today, stations[index % 2], chance) for index in range(number)]


def log_in(port, password):
    """The cookie of a new session of the administrator."""
    connection = http.client.HTTPConnection(wire.HOST, port, timeout=20)
    form = urllib.parse.urlencode({"name": "admin", "password": password})
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/login", form, kind)
    answer = connection.getresponse()
    answer.read()
    return re.search("minris-[^;]+", answer.headers["Set-Cookie"])[0]


def get(port, cookie, path):
    """Seconds to the first byte of an answer, and its bytes as they are transferred."""
    connection = http.client.HTTPConnection(wire.HOST, port, timeout=20)
    connection.connect()
    begin = time.perf_counter()
    asked = {"Cookie": cookie, "Accept-Encoding": "gzip"}
    connection.request("GET", path, headers=asked)
    answer = connection.getresponse()
    first = time.perf_counter() - begin
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status}")
    return first, content


def rows(content):
    """How many exams a page shows."""
    return gzip.decompress(content).count(b"<tr data-state")


async def fetch(port, cookie, mark):
    """The board's part for who has `mark`: the new mark."""
    reader, writer = await asyncio.open_connection(wire.HOST, port)
    lines = (f"GET /?part=board&have={mark} HTTP/1.1", f"Host: {wire.HOST}",
             f"Cookie: {cookie}", "Accept-Encoding: gzip", "Connection: close")  # fmt: skip
    writer.write("\r\n".join((*lines, "", "")).encode())
    answer = await reader.read()
    writer.close()
    found = re.search(rb"(?i)x-mark: (\w+)", answer)
    return found[1].decode() if found else mark


async def look(port, cookie):
    """One open board."""
    reader, writer = await asyncio.open_connection(wire.HOST, port)
    lines = ("GET /events HTTP/1.1", f"Host: {wire.HOST}", f"Cookie: {cookie}")
    writer.write("\r\n".join((*lines, "", "")).encode())
    mark = ""
    while line := await reader.readline():
        if line.startswith(b"data"):
            new = await fetch(port, cookie, mark)
            if new != mark:
                print(time.perf_counter(), flush=True)
            mark = new
    raise RuntimeError("an event stream has ended")


async def main(port, number, cookie):
    """All of them, until killed."""
    await asyncio.gather(*(look(port, cookie) for _ in range(number)))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.stdin.readline().strip()))
