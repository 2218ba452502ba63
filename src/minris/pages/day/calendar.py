"""The calendar: a day of all devices or the week of one, and the month."""

import datetime
import urllib.parse
from typing import Any

from minris.orders.diary import (
    BLOCKED,
    clashes,
    day_begins_ends,
    diary,
    exams_of_days,
    free_times,
    is_closed,
)
from minris.pages.day.board import stations_of
from minris.pages.day.grid import UNIT, Cell, Column, grid
from minris.pages.frame import PageRequest
from minris.pages.language import WEEKDAY_WORDS, clock, day_of
from minris.pages.template import template
from minris.seen import mark_of
from minris.standard.status import Message
from minris.standard.worklist import WAITING_STEP_STATES

CALENDAR_PAGE = template("day/calendar.html")


VIEWS = {"day": Message("Day view"), "week": Message("Week view")}


def calendar_page(p: PageRequest) -> str:
    """GET /calendar: a day of all devices, or the week of one, and the month."""
    ctx, t, stations = p.ctx, p.t, stations_of(p)
    day = day_of(p.day("date") or ctx.today())
    view = "week" if p.query("view") == "week" or p.query("device") else "day"
    device = p.query("device") or (stations[0][0] if stations else "")
    columns = week_columns(p, day, device) if view == "week" else day_columns(p, day)
    double = {row for column in columns for row in clashes(column.bookings)}
    lanes, rows = grid(columns, *day_begins_ends(ctx), ctx.config.clinic.slot_minutes)
    shift = datetime.timedelta(days=7 if view == "week" else 1)
    back, forth = BACK_FORTH[view]
    chosen = device if view == "week" else ""
    queries = {name: calendar_query(one, chosen, view=view)
               for name, one in (("before", day - shift), ("after", day + shift),
                                 ("today", day_of(ctx.today())))}  # fmt: skip
    return p.show(
        CALENDAR_PAGE, title_of(p, columns, view, dict(stations)), sheet="calendar", **queries, day=f"{day}", view=view, device=device,
        stations=stations, back=t(back), forth=t(forth), double=len(double), lanes=lanes,
        views=[(f"/calendar?{calendar_query(day, '', view=name)}", t(words), name == view)
               for name, words in VIEWS.items()],
        columns=[head_of(p, column, view, dict(stations)) for column in columns],
        rows=shown_rows(p, rows, double, ctx.today() in {column.date for column in columns}),
        month=f"{day:%Y-%m}", weekdays=[t(words) for words in WEEKDAY_WORDS],
        weeks=weeks_of_month(p, day, chosen, view),
    )  # fmt: skip


BACK_FORTH = {
    "day": (Message("Previous day"), Message("Next day")),
    "week": (Message("The week before"), Message("The week after")),
}


def calendar_query(day: datetime.date, device: str, **more: str) -> str:
    """Return the query of a URL for a day and a device."""
    known = {"date": f"{day}", **more, "device": device}
    return urllib.parse.urlencode({key: value for key, value in known.items() if value})


def day_columns(p: PageRequest, day: datetime.date) -> list[Column]:
    """Return a column for each machine, on one day."""
    date = f"{day:%Y%m%d}"
    return [
        column
        for ae_title, _ in stations_of(p)
        for column in columns_of(p, ae_title, [date])
    ]  # fmt: skip


def week_columns(p: PageRequest, day: datetime.date, device: str) -> list[Column]:
    """Return a column for each day of the week, of one machine."""
    monday = day - datetime.timedelta(days=day.weekday())
    days = [monday + datetime.timedelta(days=n) for n in range(7)]
    return columns_of(p, device, [f"{one:%Y%m%d}" for one in days]) if device else []


def columns_of(p: PageRequest, device: str, dates: list[str]) -> list[Column]:
    """Return the columns of a machine for days that follow each other."""
    bookings = p.read(diary, p.ctx, device, dates[0], dates[-1])
    step = p.ctx.config.clinic.slot_minutes
    return [
        Column(date, device, [one for one in bookings if one.date == date],
               set(free_times(p.ctx, device, bookings, date, step)))
        for date in dates
    ]  # fmt: skip


def title_of(p: PageRequest, columns: list[Column], view: str, names: dict[str, str]) -> str:
    """Return what the calendar shows: a day, or a machine and a week."""
    if not columns:
        return p.t("Calendar")
    first, last = columns[0], columns[-1]
    if view == "week":
        words = p.t(
            "Week from {first} to {last}", first=p.t.date(first.date), last=p.t.date(last.date)
        )
        return p.t.listed((names.get(first.device, first.device), words))
    return p.t.day(first.date)


def head_of(
    p: PageRequest, column: Column, view: str, names: dict[str, str]
) -> tuple[str, str, str]:
    """Return the heading of a column: words, link, note."""
    day = day_of(column.date)
    closed = p.t("closed") if is_closed(p.ctx, column.date) else ""
    if view == "week":
        words = f"{p.t(WEEKDAY_WORDS[day.weekday()])} {day.day}"
        return words, f"/calendar?{calendar_query(day, '', view='day')}", closed
    path = f"/calendar?{calendar_query(day, column.device, view='week')}"
    return names.get(column.device, column.device), path, closed


def shown_rows(
    p: PageRequest, rows: list[tuple[int, list[Cell]]], double: set[int], today: bool
) -> list[tuple[str, bool, bool, list[dict[str, Any]]]]:
    """Return the rows as the template wants them: time, whether a full hour, whether now, cells."""
    now = p.ctx.local_now()
    this = (now.hour * 60 + now.minute) // UNIT * UNIT if today else -1
    return [
        (clock(minute), minute % 60 == 0, minute == this,
         [shown_cell(p, cell, double) for cell in cells])
        for minute, cells in rows
    ]  # fmt: skip


def shown_cell(p: PageRequest, cell: Cell, double: set[int]) -> dict[str, Any]:
    """Return a cell as the template wants it."""
    shown: dict[str, Any] = {
        "rows": cell.rows,
        "lanes": cell.lanes,
        "free": cell.start >= 0,
        "exam": "",
    }
    day, one = day_of(cell.column.date), cell.booking
    if one and one.status == BLOCKED:
        words = one.exam or p.t("Blocked")
        return shown | {
            "path": f"/blocked?id={-one.row_id}", "state": one.status, "name": words, "mark": "",
            "time": clock(one.begin), "exam": "–" + clock(one.end), "clash": False, "title": words,
        }  # fmt: skip
    if one:
        name, exam = p.t.name(one.name), one.exam or "?"
        title = f"{clock(one.begin)}–{clock(one.end)} {name}, {exam}"
        return shown | {
            "path": f"/step/{one.row_id}", "state": one.status, "name": name, "time": clock(one.begin),
            "exam": exam, "title": title, "clash": one.row_id in double,
            "mark": mark_of(one.status, one.study) if one.status in WAITING_STEP_STATES else "",
        }  # fmt: skip
    if cell.start >= 0:
        words = p.t("Register on {date} at {time}", date=day, time=clock(cell.start))
        query = calendar_query(day, cell.column.device, time=clock(cell.start))
        to = f"{day} {clock(cell.start)} {cell.column.device}"
        return shown | {"path": query, "title": words, "to": to}
    return shown


def weeks_of_month(
    p: PageRequest, day: datetime.date, device: str, view: str
) -> list[list[tuple[Any, ...]]]:
    """Return the weeks of a month; per day: number, query, number of exams, date, whether chosen."""
    first = day.replace(day=1)
    first -= datetime.timedelta(days=first.weekday())
    days = [first + datetime.timedelta(days=n) for n in range(42)]
    counts = p.read(exams_of_days, f"{days[0]:%Y%m%d}", f"{days[-1]:%Y%m%d}")
    cells = [
        (one.day, calendar_query(one, device, view=view), counts.get(f"{one:%Y%m%d}", 0), f"{one}",
         one == day)
        for one in days
    ]  # fmt: skip
    weeks = [cells[n : n + 7] for n in range(0, 42, 7)]
    return [week for week in weeks if any(cell[3][:7] == f"{day:%Y-%m}" for cell in week)]
