"""Worklist queries: who asked for what, and why an exam did not match."""

import collections
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

from minris.access.context import Context
from minris.config.ini import Config
from minris.dataset.elements import ElementIndex
from minris.dataset.search import Search
from minris.orders.worklist import STATION_AE_TITLE, WorklistView
from minris.recent import Recent
from minris.standard.status import Status, description_of
from minris.standard.worklist import START_DATE, STEP_STATUS
from minris.store.models import QueryTrace, database
from minris.store.rows import erase, fetch_rows, first_row


class QueryLog:
    """Worklist queries, counted in memory by hour, device and keys until they are saved.

    A query never waits for the database; a power failure may lose some of them.
    """

    # bytes of a query that is kept whole, and of all those of a device
    LONGEST, OF_DEVICE = 8192, 65536
    DEVICES = 100
    MOST_SHOWN = 20_000  # steps remembered, all devices together

    def __init__(self) -> None:
        # by AE title, then by hour, address and keys
        self.folded: Recent[str, Recent[tuple[str, str, bytes], list[Any]]] = Recent(self.DEVICES)
        self.shown: set[tuple[str, int, int]] = set()  # device, step, version
        self.first: list[tuple[int, str, str]] = []
        self.lock = threading.Lock()

    def note(self, ctx: Context, keys: bytes, raw: bytes, answers: int, status: Status) -> None:
        """Count one query: its keys in the stored form and as received, its answers.

        Of too many different ones of a device the newest stay.
        """
        if len(keys) > self.LONGEST:
            keys = shortened(keys, self.LONGEST)
        raw = raw if len(raw) <= self.LONGEST else b""
        key, now = (f"{ctx.local_now():%Y-%m-%d %H}", ctx.actor.address, keys), ctx.stamp()
        with self.lock:
            of_device = self.folded.get(ctx.actor.name)
            if of_device is None:
                of_device = self.folded[ctx.actor.name] = Recent(self.OF_DEVICE)
            if known := of_device.get(key):
                known[1:] = [known[1] + 1, answers, int(status), now]
            else:
                size = 500 + len(keys) + len(raw)
                of_device.keep(key, [raw, 1, answers, int(status), now], size)

    def show(self, ctx: Context, steps: list[tuple[int, int]]) -> None:
        """Note which steps (row id and version) a device was shown, and when for the first time."""
        name = ctx.actor.name
        with self.lock:
            new = {(name, *step) for step in steps} - self.shown
            if new and len(self.first) <= self.MOST_SHOWN:  # else the database cannot take them
                if len(self.shown) > self.MOST_SHOWN:
                    self.shown.clear()  # saving ignores what is known
                self.shown |= new
                at = ctx.stamp()
                self.first += [(step_id, name, at) for _, step_id, _ in new]

    def take_shown(self) -> list[tuple[int, str, str]]:
        """Take out what was shown for the first time: step, AE title, time."""
        with self.lock:
            first, self.first = self.first, []
        return first

    def take(self) -> list[tuple[Any, ...]]:
        """Take out the counted queries, to be saved; counting restarts."""
        with self.lock:
            folded, self.folded = self.folded, Recent(self.DEVICES)
        return [
            (hour, name, address, keys, *values)
            for name, of_device in folded.items()
            for (hour, address, keys), values in of_device.items()
        ]


def shortened(keys: bytes, most: int) -> bytes:
    """A data set without its longest elements, so that it has at most so many bytes."""
    index, size, kept = ElementIndex(keys), 0, []
    for tag in sorted(index, key=lambda tag: len(index.element(tag))):
        size += len(index.element(tag))
        if size > most:
            break
        kept.append(tag)
    return bytes(index.only(kept))


# Rows and bytes of saved queries, of a device and of all: the newest stay.
MOST_QUERIES = {"PARTITION BY ae_title": (300, 1 << 20), "": (5000, 8 << 20)}


def save_queries(ctx: Context, queries: Iterable[tuple[Any, ...]]) -> None:
    """Save the queries that QueryLog.take gave."""
    for query in queries:
        database.execute_sql(
            "INSERT INTO query_trace (hour, ae_title, address, keys, raw, count, answers, status,"
            " last_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hour, ae_title, address, keys)"
            " DO UPDATE SET count = count + excluded.count, answers = excluded.answers,"
            " status = excluded.status, last_at = excluded.last_at",
            query,
        )
    for part, (rows_, size) in MOST_QUERIES.items():
        erase(
            "query_trace WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER newest AS number,"
            " sum(2 * length(keys) + length(raw) + 200) OVER newest AS size FROM query_trace"
            f" WINDOW newest AS ({part} ORDER BY last_at DESC, id DESC))"
            " WHERE number > ? OR size > ?)",
            rows_,
            size,
        )


def save_shown(first: Iterable[tuple[int, str, str]]) -> None:
    """Save when devices were first shown a step, as QueryLog.take_shown gave it."""
    for step_id, ae_title, at in first:
        database.execute_sql(
            "INSERT OR IGNORE INTO step_seen (step_id, ae_title, at)"
            " SELECT id, ?, ? FROM scheduled_procedure_step WHERE id = ? AND created_at <= ?",
            (ae_title, at, step_id, at),
        )


class Exclusion(NamedTuple):
    """Why a query did not match a step: the key, the requested value, the step's value.

    tag    the attribute
    """

    tag: int
    asked: str
    has: str

    @property
    def name(self) -> str:
        """The attribute's name."""
        return description_of(self.tag) if self.tag else ""


def exclusion(config: Config, search: Search, view: WorklistView, data: bytes) -> Exclusion | None:
    """The first reason why a step does not match a search, or None if it matches."""
    index = ElementIndex(data)
    item = index.item("ScheduledProcedureStepSequence")
    state, day = item.text(STEP_STATUS), item.text(START_DATE)
    if state in config.dicom.hide_steps:
        return Exclusion(STEP_STATUS, "", state)
    stations = item.values(STATION_AE_TITLE)
    if view.ae_titles and not set(view.ae_titles) & set(stations):
        return Exclusion(STATION_AE_TITLE, ", ".join(view.ae_titles), ", ".join(stations))
    if not view.first_day <= day <= (view.last_day or "9"):
        return Exclusion(START_DATE, f"{view.first_day}-{view.last_day}", day)
    found = search.mismatches(index)
    return Exclusion(*found[0]) if found else None


def recent_queries(since: str, limit: int = 100) -> list[Any]:
    """The queries since a stored time, newest first; the last 20 of a device."""
    of_device = (
        "id IN (SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY ae_title ORDER BY"
        " last_at DESC, id DESC) AS number FROM query_trace WHERE last_at >= ?) WHERE number <= 20)"
    )
    return fetch_rows(QueryTrace, f"{of_device} ORDER BY last_at DESC LIMIT ?", since, limit)


def last_query(ae_titles: Iterable[str]) -> Any | None:
    """The newest query of any of these AE titles, or None."""
    titles = list(ae_titles)
    where = f"ae_title IN ({', '.join('?' * len(titles))}) ORDER BY last_at DESC LIMIT 1"
    return first_row(QueryTrace, where, *titles)


def latest_by_device(queries: Iterable[Any]) -> list[Any]:
    """The newest different queries per calling AE title, at most three each."""
    found: dict[str, list[Any]] = collections.defaultdict(list)
    for query in queries:
        of_device = found[query.ae_title]
        if len(of_device) < 3 and all(other.keys != query.keys for other in of_device):
            of_device.append(query)
    return [query for of_device in found.values() for query in of_device]
