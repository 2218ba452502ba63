"""The calendar: the month, and the week of one device."""

import datetime
import math
import re
import urllib.parse
from typing import Any

from minris.orders.diary import (
    Booking,
    clashes,
    day_begins_ends,
    diary,
    exams_of_days,
    free_times,
    in_the_way,
    is_closed,
    minute_of_day,
)
from minris.pages.day.board import stations_of
from minris.pages.frame import PageRequest
from minris.pages.language import WEEKDAY_WORDS, booked_words, clock, day_of
from minris.pages.template import template

CALENDAR_PAGE = template("day/calendar.html")
SLOTS_PART = template("day/slots_part.html")


def calendar_page(p: PageRequest) -> str:
    """GET /calendar: the month, and the week of one device with its free times."""
    ctx, t, stations = p.ctx, p.t, stations_of(p)
    day = day_of(p.day("date") or ctx.today())
    device = p.query("device") or (stations[0][0] if stations else "")
    monday = day - datetime.timedelta(days=day.weekday())
    days = [monday + datetime.timedelta(days=n) for n in range(7)]
    bookings = p.read(diary, ctx, device, f"{days[0]:%Y%m%d}", f"{days[-1]:%Y%m%d}")
    double = clashes(bookings)
    week = datetime.timedelta(days=7)
    return p.show(
        CALENDAR_PAGE, "Calendar", before=calendar_query(day - week, device),
        after=calendar_query(day + week, device), day=f"{day}",
        device=device, stations=stations, heading=dict(stations).get(device, device),
        month=f"{day:%Y-%m}", weekdays=[t(words) for words in WEEKDAY_WORDS],
        weeks=weeks_of_month(p, day, device), double=len(double),
        days=[(t(WEEKDAY_WORDS[d.weekday()]), f"{d}", is_closed(ctx, f"{d:%Y%m%d}")) for d in days],
        slots=week_rows(p, device, days, bookings, double),
    )  # fmt: skip


def calendar_query(day: datetime.date, device: str, **more: str) -> str:
    """Return the query of a URL for a day and a device."""
    return urllib.parse.urlencode({"date": f"{day}", **more, "device": device})


def weeks_of_month(p: PageRequest, day: datetime.date, device: str) -> list[list[tuple[Any, ...]]]:
    """Return the weeks of a month; per day: number, query, number of exams, date, whether chosen."""
    first = day.replace(day=1)
    first -= datetime.timedelta(days=first.weekday())
    days = [first + datetime.timedelta(days=n) for n in range(42)]
    counts = p.read(exams_of_days, f"{days[0]:%Y%m%d}", f"{days[-1]:%Y%m%d}")
    cells = [
        (one.day, calendar_query(one, device), counts.get(f"{one:%Y%m%d}", 0), f"{one}", one == day)
        for one in days
    ]  # fmt: skip
    weeks = [cells[n : n + 7] for n in range(0, 42, 7)]
    return [week for week in weeks if any(cell[3][:7] == f"{day:%Y-%m}" for cell in week)]


def week_rows(
    p: PageRequest, device: str, days: list[datetime.date], bookings: list[Booking],
    double: set[int],
) -> list[tuple[str, list[tuple[Any, ...]]]]:  # fmt: skip
    """Return the rows of a week: a time; per day: exams that start then, link if free, if taken."""
    ctx, t, step = p.ctx, p.t, p.ctx.config.clinic.slot_minutes
    opens, closes = day_begins_ends(ctx)
    earliest = min([opens, *(one.begin for one in bookings)])
    first = opens - math.ceil((opens - earliest) / step) * step
    last = min(24 * 60, max([closes, *(one.end for one in bookings)]))
    dates = [f"{day:%Y%m%d}" for day in days]
    free = {date: set(free_times(ctx, bookings, date, step)) for date in dates}
    week = []
    for begin in range(first, last, step):
        cells = []
        for day, date in zip(days, dates, strict=True):
            here = [one for one in bookings if one.date == date and one.begin < begin + step
                    and begin < one.end]  # fmt: skip
            exams = [(f"/step/{one.row_id}", f"{clock(one.begin)} {t.name(one.name)}",
                      one.status, one.row_id in double)
                     for one in here if begin <= one.begin]  # fmt: skip
            words = t("Register on {date} at {time}", date=day, time=clock(begin))
            query = calendar_query(day, device, time=clock(begin))
            open_ = (query, words) if begin in free[date] else None
            cells.append((exams, open_, bool(here)))
        week.append((clock(max(0, begin)), cells))
    return week


def slots_part(p: PageRequest) -> str:
    """GET /slots: the exams that overlap with a time, and free times; fetched by the script."""
    date, device, time_ = p.day("date"), p.query("device"), p.query("time")
    if not (date and device and re.fullmatch(r"[0-2]\d:[0-5]\d(:[0-5]\d)?", time_)):
        return ""
    begin, step = minute_of_day(time_.replace(":", "")), p.query("step")
    itself = int(step) if re.fullmatch("[0-9]{1,18}", step) else 0
    taken, free = p.read(in_the_way, p.ctx, device, date, begin, p.query("procedure"), itself)
    later = [one for one in free if one >= begin] or free
    shown = [clock(one) for one in later[:6]] if taken else []
    return p.part(SLOTS_PART, taken=booked_words(p.t, taken), free=shown)
