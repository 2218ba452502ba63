"""The board, the waiting room and the printed list of a day."""

import collections
import datetime
import gzip
import hashlib
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any, NamedTuple

from minris.access.context import Context, modalities_of
from minris.dataset.elements import ElementIndex
from minris.dataset.times import shown_date
from minris.mpps.linking import does_report, doubtful_steps, reporting_stations
from minris.orders.diary import diary, free_times
from minris.orders.items import exam_name
from minris.orders.lookup import steps_of_day
from minris.orders.steps import person_events
from minris.orders.trace import last_query
from minris.orders.waiting import IN_WAITING_ROOM, waiting_on
from minris.pages.asking import PERSON_EVENTS
from minris.pages.frame import PageRequest
from minris.pages.language import (
    Translator,
    clock,
    day_of,
    device_names,
    elapsed,
    local_time,
    shown_time,
)  # fmt: skip
from minris.pages.template import template
from minris.recent import Recent
from minris.seen import mark_of
from minris.standard.status import Message
from minris.standard.worklist import MAY_BE_PREGNANT, PREGNANCY_STATUS, STEP_STATES
from minris.web.proxies import below_path
from minris.web.request import Web, takes_gzip

BOARD_PAGE = template("day/board.html")
# Its buttons belong to the form outside it, so the part is the same for all users (no CSRF token).
BOARD_PART = template("day/board_part.html")
BOARD_ROW_PART = template("day/board_row.html")


def board_step(ctx: Context, t: Translator, row: tuple[Any, ...], reports: bool) -> dict[str, Any]:
    """Return one row of the board, as its template wants it.

    reports  whether its machine reports performed steps
    """
    step_id, state, start_time, data, *_, study = row
    index = ElementIndex(bytes(data))
    events = person_events(state, reports)
    main = next((event for event in events if event in NEXT_EVENTS), "")
    actions = [(event, t(PERSON_EVENTS[event])) for event in events]
    if state in IN_WAITING_ROOM:
        actions.insert(0, ("call", t("Call")))
    about = (t.of_person(index, ctx.local_now().date()), index.get("PatientID"))
    order = index.get("AccessionNumber"), t.name(index.get("ReferringPhysicianName"))
    return {
        "row_id": step_id, "path": f"/step/{step_id}", "mark": mark_of(state, study), "state": state,
        "time": shown_time(start_time), "name": t.name(index.get("PatientName")),
        "about": t.dotted(about), "exam": exam_name(index),
        "order": t.dotted(order), "tags": tags_of(t, index),
        "main": [one for one in actions if one[0] == main],
        "others": [one for one in actions if one[0] != main],
    }  # fmt: skip


NEXT_EVENTS = ("arrive", "finish", "reschedule")  # what comes next is a button, the rest folded


def clock_words(ctx: Context, stamp: str) -> str:
    """Return a time stamp of the store as 10:21 of the clinic's clock; "" for none."""
    return f"{local_time(stamp, ctx.config.zone):%H:%M}" if stamp else ""


def tags_of(t: Translator, index: ElementIndex) -> list[str]:
    """Return what must be seen before an exam: urgency, allergies, alerts, pregnancy."""
    priority, allergies = index.get("RequestedProcedurePriority"), index.get("Allergies")
    pregnancy = index.get("PregnancyStatus")
    pregnant = int(pregnancy) if pregnancy.isascii() and pregnancy.isdigit() else 0
    found = [
        t(priority) if priority in ("STAT", "HIGH") else "",
        f"{t('Allergies')}: {allergies}" if allergies else "",
        index.get("MedicalAlerts"),
        t(PREGNANCY_STATUS[pregnant]) if pregnant in MAY_BE_PREGNANT else "",
    ]
    return [text.replace("\\", ", ") for text in found if text]


class BoardView(NamedTuple):
    """What a board shows: a day (DA), grouped by `device`, `state` or `time`; of one device or state."""

    date: str
    by: str = "device"
    device: str = ""
    state: str = ""

    @property
    def query(self) -> str:
        """The view as the query of a URL."""
        return urllib.parse.urlencode(
            {
                "date": shown_date(self.date),
                "by": self.by,
                "device": self.device,
                "state": self.state,
            }
        )


BOARD_ORDERS = {
    "device": Message("By device"),
    "state": Message("By status"),
    "time": Message("By time"),
}


class Group(NamedTuple):
    """Rows of the board under one heading; `station` is the AE title of a device, `note` what is said of it.

    rows  those of steps_of_day
    """

    heading: str
    rows: list[Any]
    station: str = ""
    note: str = ""


def exams_in_groups(
    names: Mapping[str, str], t: Translator, by: str, rows: list[Any]
) -> list[Group]:
    """Return a day's exams, grouped by device or state, or all by time.

    names  of the devices, by AE title
    """
    groups: dict[str, list[Any]] = {}
    stations: dict[str, str] = {}
    for row in rows:
        device = f"{names[row[7]]} ({row[7]})" if row[7] in names else row[7] or "?"
        stations[device] = row[7] or ""
        groups.setdefault({"state": row[1], "time": ""}.get(by, device), []).append(row)
    if by == "state":
        return [Group(t(state), groups[state]) for state in STEP_STATES if state in groups]
    return [
        Group(device, found, stations[device] if device else "")
        for device, found in sorted(groups.items())
    ]


class Rows:
    """The rows of boards as HTML: one that is as it was is not rendered again."""

    MOST = 4 << 20  # bytes

    def __init__(self) -> None:
        self.kept: Recent[object, str] = Recent(self.MOST)

    def of_groups(
        self, web: Web, ctx: Context, t: Translator, view: BoardView, rows: list[Any]
    ) -> list[Group]:
        """Return a day's exams as rows of the board, in groups with a note for each device."""
        names = device_names(web)
        reporting, doubtful = web.read(reporting_stations), web.read(doubtful_steps)
        numbers, found = web.read(waiting_on, view.date), []
        for one in exams_in_groups(names, t, view.by, rows):
            minute = f"{ctx.local_now():%H%M}" if view.date == ctx.today() else "9999"
            coming = next((row[0] for row in one.rows if row[2][:4] >= minute), None)
            shown = []
            for row in one.rows:
                station, since = row[7], row[5] if row[1] == "STARTED" else row[4]
                waits = numbers.get(row[0]) if row[1] in IN_WAITING_ROOM else None
                called = clock_words(ctx, waits.called_at) if waits else ""
                shown.append(self.row(
                    ctx, t, row, does_report(ctx, [station] if station else [], reporting),
                    device="" if view.by == "device" else names.get(station, station or "?"),
                    since=clock_words(ctx, row[6]) or elapsed(ctx, t, since),
                    called=t("called {time}", time=called) if called else "",
                    doubtful=row[0] in doubtful, now=row[0] == coming,
                ))  # fmt: skip
            note = device_note(web, ctx, t, view.date, one.station) if one.station else ""
            found.append(one._replace(rows=shown, note=note))
        return found

    def row(self, ctx: Context, t: Translator, row: Any, reports: bool, **shown: Any) -> str:
        """Return one row of the board.

        shown  device: its name, where the heading does not have it; since: for how long it is in
               its state, or when it ended; called; doubtful: another patient may have been examined;
               now: it is the first of today that is still to come, a line stands above it
        """
        import bottle

        key = t.language, ctx.today(), row, reports, *shown.values()
        if key not in self.kept:
            step = board_step(ctx, t, row, reports)
            text = bottle.template(BOARD_ROW_PART, t=t, step=step, **shown)
            self.kept.keep(key, text, 2 * len(text) + len(row[3]))
        return self.kept[key]


def device_note(web: Web, ctx: Context, t: Translator, date: str, station: str) -> str:
    """Return the next free time of a device on a day, and when it last asked for the worklist."""
    device = web.access().device(station)
    bookings = web.read(diary, ctx, station, date, date)
    free = free_times(ctx, station, bookings, date, ctx.config.clinic.slot_minutes)
    asked = web.read(last_query, device.ae_titles if device else (station,))
    last = f"{local_time(asked.last_at, ctx.config.zone):%Y%m%d%H:%M}" if asked else ""
    asked_today = last[:8] == date == ctx.today()
    return t.dotted((
        t("next free {time}", time=clock(free[0])) if free else "",
        t("machine last asked {time}", time=last[8:]) if asked_today else "",
    ))  # fmt: skip


def render_board(web: Web, ctx: Context, t: Translator, view: BoardView, rows: Rows) -> str:
    """Return the board of a day as HTML: the same for all users of one language."""
    import bottle

    device = web.access().device(view.device) if view.device else None
    titles = device.ae_titles if device else (view.device,)
    found = [
        row for row in web.read(steps_of_day, view.date) if not view.device or row[7] in titles
    ]
    counted = collections.Counter(row[1] for row in found)
    chips = [("", t("All"), len(found))]
    chips += [(state, t(state), counted[state]) for state in STEP_STATES if counted[state]]
    shown = [row for row in found if view.state in ("", row[1])]
    return bottle.template(
        BOARD_PART, t=t, view=view, machines=modalities_of(web.access().devices),
        chips=[(f"/?{view._replace(state=state).query}", state, words, number)
               for state, words, number in chips],
        groups=rows.of_groups(web, ctx, t, view, shown),
    )  # fmt: skip


class Rendered(NamedTuple):
    """A rendered board: its HTML, the HTML compressed, and a mark that changes with it."""

    text: str
    gzip: bytes
    mark: str


class Boards:
    """Cache of rendered boards: each is rendered once per language, view and change."""

    MOST = 8 << 20  # bytes

    def __init__(self, web: Web) -> None:
        self.web = web
        self.kept: Recent[object, Rendered] = Recent(self.MOST)
        self.rows = Rows()
        self.lock = threading.Lock()

    def get(self, ctx: Context, t: Translator, view: BoardView) -> Rendered:
        """Return the current board of a view; a new minute counts as a change ("since 5 min")."""
        minute = f"{ctx.local_now():%Y%m%d%H%M%z}"
        with self.lock:  # others wait for the same rendering
            key = self.web.writer.commits, self.web.access().version, t.language, view, minute
            if key not in self.kept:
                text = render_board(self.web, ctx, t, view, self.rows)
                content = text.encode()
                sent = below_path(self.web.root, content)
                mark = hashlib.sha256(content).hexdigest()[:16]
                board = Rendered(text, gzip.compress(sent, 5, mtime=0), mark)
                self.kept.keep(key, board, 2 * len(text) + len(board.gzip))
                return board
            return self.kept[key]


def board_page(p: PageRequest) -> str | bytes:
    """GET /: the day by device or state; ?part=board: only the board, if it has changed."""
    date, by = p.day("date"), p.query("by")
    by = by if by in BOARD_ORDERS else "device"
    state = p.query("state") if p.query("state") in STEP_STATES else ""
    view = BoardView(date or p.ctx.today(), by, p.query("device"), state)
    board = p.site.boards.get(p.ctx, p.t, view)
    if p.query("part") == "board":
        return board_part(p, board)
    if p.query("part") == "told":
        return p.told_part()
    day = day_of(view.date)
    before, after = (
        view._replace(date=f"{day + datetime.timedelta(days=days):%Y%m%d}").query
        for days in (-1, 1)
    )
    today = view._replace(date=date).query
    return p.show(
        BOARD_PAGE, p.t.day(view.date), refresh=True, script="board", board=board.text, mark=board.mark,
        part=f"/?part=board&{today}", day=shown_date(view.date), view=view, before=before,
        after=after, stations=stations_of(p),
        orders=[(f"/?{view._replace(by=by).query}", p.t(words), by == view.by)
                for by, words in BOARD_ORDERS.items()],
        now=f"/?{view._replace(date=p.ctx.today()).query}",
    )  # fmt: skip


def stations_of(p: PageRequest) -> list[tuple[str, str]]:
    """Return AE title and name of each modality."""
    return [(d.ae_title, d.name) for d in modalities_of(p.devices)]


def board_part(p: PageRequest, board: Rendered) -> str | bytes:
    """Answer with the board alone, or 204 if the browser already shows it."""
    if p.query("have") == board.mark:
        p.response.status = 204
        return ""
    p.response.set_header("X-Mark", board.mark)
    p.response.set_header("Vary", "Accept-Encoding")
    if not takes_gzip(p.request.get_header("Accept-Encoding", "")):
        return board.text
    p.response.set_header("Content-Encoding", "gzip")
    return board.gzip
