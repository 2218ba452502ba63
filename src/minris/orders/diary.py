"""The diary of a station: booked exams and free times."""

import datetime
from collections.abc import Iterable
from typing import NamedTuple

from minris.access.context import Context, device_of
from minris.config.values import WEEKDAYS
from minris.dataset.elements import ElementIndex
from minris.orders.catalogue import all_procedures
from minris.standard.worklist import OPEN_STEP_STATES
from minris.store.models import database


class Booking(NamedTuple):
    """An exam in the diary of a station; begin and end are minutes since midnight."""

    row_id: int
    date: str
    begin: int
    end: int
    status: str
    name: str
    exam: str


def minute_of_day(tm: str) -> int:
    """Minutes since midnight of a TM value."""
    return int(tm[:2] or 0) * 60 + int(tm[2:4] or 0)


def exam_minutes() -> dict[str, int]:
    """The duration of exams in minutes, by procedure code and by name."""
    known = {}
    for procedure in all_procedures():
        known[procedure.code] = known[procedure.meaning] = procedure.minutes
    return known


def diary(ctx: Context, ae_title: str, first: str, last: str) -> list[Booking]:
    """The exams of a device from one day (DA) to another, by start; canceled ones are left out.

    ae_title  any AE title of the device
    """
    known, found = exam_minutes(), []
    device = device_of(ctx, ae_title)
    titles = device.ae_titles if device else (ae_title,)
    cursor = database.execute_sql(
        "SELECT s.id, s.start_date, s.start_time, s.status, s.data FROM scheduled_procedure_step s"
        " WHERE s.id IN (SELECT t.step_id FROM scheduled_station t WHERE t.ae_title IN"
        f" ({', '.join('?' * len(titles))}) AND t.start_date BETWEEN ? AND ?)"
        " AND s.status NOT IN ('CANCELED', 'NO SHOW', 'DEPARTED')"
        " ORDER BY s.start_date, s.start_time, s.id",
        (*titles, first, last),
    )
    for row_id, date, start_time, status, data in cursor:
        index = ElementIndex(data)
        exam = index.get("RequestedProcedureDescription")
        code = index.item("RequestedProcedureCodeSequence").get("CodeValue")
        minutes = known.get(code) or known.get(exam) or ctx.config.clinic.slot_minutes
        begin, name = minute_of_day(start_time), index.get("PatientName")
        found.append(Booking(row_id, date, begin, begin + minutes, status, name, exam))
    return found


def clashes(bookings: Iterable[Booking]) -> set[int]:
    """The row ids of open exams that overlap with another one."""
    found: set[int] = set()
    latest: Booking | None = None
    for one in bookings:
        if one.status not in OPEN_STEP_STATES:
            continue
        if latest and latest.date == one.date and one.begin < latest.end:
            found |= {latest.row_id, one.row_id}
        if not latest or (one.date, one.end) > (latest.date, latest.end):
            latest = one
    return found


def day_begins_ends(ctx: Context) -> tuple[int, int]:
    """Opening and closing time of the clinic in minutes since midnight."""
    opens, closes = ctx.config.clinic.opens or (0, 0), ctx.config.clinic.closes or (24, 0)
    return opens[0] * 60 + opens[1], closes[0] * 60 + closes[1]


def is_closed(ctx: Context, date: str) -> bool:
    """Whether the clinic is closed on a day (DA)."""
    day = datetime.date(int(date[:4]), int(date[4:6]), int(date[6:]))
    return WEEKDAYS[day.weekday()] in ctx.config.clinic.closed_days


def _lie_on(bookings: Iterable[Booking], begin: int, minutes: int) -> list[Booking]:
    """The exams that overlap with a time of their day."""
    return [one for one in bookings if one.begin < begin + minutes and begin < one.end]


def free_times(ctx: Context, bookings: Iterable[Booking], date: str, minutes: int) -> list[int]:
    """When an exam can start on a day (DA), in minutes since midnight; never in the past."""
    opens, closes = day_begins_ends(ctx)
    now = ctx.local_now()
    today = f"{now:%Y%m%d}"
    if date < today or is_closed(ctx, date):
        return []
    earliest = now.hour * 60 + now.minute if date == today else 0
    taken = [one for one in bookings if one.date == date]
    return [
        begin
        for begin in range(opens, closes - minutes + 1, ctx.config.clinic.slot_minutes)
        if begin >= earliest and not _lie_on(taken, begin, minutes)
    ]


def in_the_way(
    ctx: Context, ae_title: str, date: str, begin: int, exam: str = "", row_id: int = 0
) -> tuple[list[Booking], list[int]]:
    """The exams that an exam would overlap with, and the free times of that day in minutes.

    exam    name or code of its procedure
    row_id  the exam itself, if it is on the worklist already: not an overlap
    """
    everything = diary(ctx, ae_title, date, date)
    bookings = [one for one in everything if one.row_id != row_id]
    its_own = next((one.end - one.begin for one in everything if one.row_id == row_id), 0)
    minutes = exam_minutes().get(exam) or its_own or ctx.config.clinic.slot_minutes
    open_ = [one for one in bookings if one.status in OPEN_STEP_STATES]
    return _lie_on(open_, begin, minutes), free_times(ctx, bookings, date, minutes)


def exams_of_days(first: str, last: str) -> dict[str, int]:
    """The number of exams per day (DA) from one day to another, without canceled ones."""
    cursor = database.execute_sql(
        "SELECT start_date, count(*) FROM scheduled_procedure_step WHERE start_date BETWEEN ? AND ?"
        " AND status NOT IN ('CANCELED', 'NO SHOW', 'DEPARTED') GROUP BY start_date",
        (first, last),
    )
    return dict(cursor.fetchall())
