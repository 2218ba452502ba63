"""The diary of a station: booked exams and free times."""

import datetime
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from minris.access.context import Context, device_of
from minris.config.values import WEEKDAYS, spans_of
from minris.dataset.elements import ElementIndex
from minris.orders.catalogue import all_procedures
from minris.recent import cached
from minris.standard.worklist import OPEN_STEP_STATES
from minris.store.models import BlockedTime, database
from minris.store.rows import fetch_rows

DAY_MINUTES = 24 * 60
BLOCKED = "BLOCKED"  # the status of a time in which a device has no exams
IN_THE_WAY = OPEN_STEP_STATES | {BLOCKED}


class Booking(NamedTuple):
    """An exam in the diary of a station, or a blocked time; begin and end are minutes of the day.

    row_id  that of the exam; of a blocked time the negative
    """

    row_id: int
    date: str
    begin: int
    end: int
    status: str
    name: str
    exam: str
    study: str = ""


def minute_of_day(tm: str) -> int:
    """Minutes since midnight of a TM value."""
    return int(tm[:2] or 0) * 60 + int(tm[2:4] or 0)


def exam_minutes() -> dict[str, int]:
    """The duration of exams in minutes, by procedure code and by name."""
    known = {}
    for procedure in all_procedures():
        known[procedure.code] = known[procedure.meaning] = procedure.minutes
    return known


@cached(1024, 4096)
def _booked(data: bytes) -> tuple[str, str, str]:
    """The code and name of the procedure, and the patient's name, of an exam's data set."""
    index = ElementIndex(data)
    code = index.item("RequestedProcedureCodeSequence").get("CodeValue")
    return code, index.get("RequestedProcedureDescription"), index.get("PatientName")


def minutes_of(ctx: Context, data: bytes, known: Mapping[str, int] | None = None) -> int:
    """How many minutes an exam takes by its data set: as its procedure does, else a slot.

    known  exam_minutes(), for many exams
    """
    code, exam, _ = _booked(data)
    known = exam_minutes() if known is None else known
    return known.get(code) or known.get(exam) or ctx.config.clinic.slot_minutes


def diary(ctx: Context, ae_title: str, first: str, last: str) -> list[Booking]:
    """The exams and blocked times of a device from one day (DA) to another, by start.

    Cancelled exams are left out.

    ae_title  any AE title of the device
    """
    known, found = exam_minutes(), []
    device = device_of(ctx, ae_title)
    titles = device.ae_titles if device else (ae_title,)
    cursor = database.execute_sql(
        "SELECT s.id, s.start_date, s.start_time, s.status, s.data, s.study_instance_uid FROM scheduled_procedure_step s"
        " WHERE s.id IN (SELECT t.step_id FROM scheduled_station t WHERE t.ae_title IN"
        f" ({', '.join('?' * len(titles))}) AND t.start_date BETWEEN ? AND ?)"
        " AND s.status NOT IN ('CANCELED', 'NO SHOW', 'DEPARTED')"
        " ORDER BY s.start_date, s.start_time, s.id",
        (*titles, first, last),
    )
    for row_id, date, start_time, status, data, study in cursor:
        _, exam, name = _booked(bytes(data))
        minutes, begin = minutes_of(ctx, bytes(data), known), minute_of_day(start_time)
        found.append(Booking(row_id, date, begin, begin + minutes, status, name, exam, study))
    blocked = [one for title in titles for one in blocked_of(title, first, last)]
    return sorted([*found, *blocked], key=lambda one: (one.date, one.begin)) if blocked else found


def blocked_of(ae_title: str, first: str, last: str) -> Iterator[Booking]:
    """The blocked times of an AE title from one day (DA) to another, one for each day."""
    for row in fetch_rows(
        BlockedTime, "last >= ? AND ae_title = ? AND first <= ?", first, ae_title, last
    ):
        day, end = day_of_da(max(first, row.first)), min(last, row.last)
        while (date := f"{day:%Y%m%d}") <= end:
            yield Booking(-row.id, date, row.begins, row.ends, BLOCKED, "", row.reason)
            day += datetime.timedelta(days=1)


def day_of_da(date: str) -> datetime.date:
    """A day as DA."""
    return datetime.date(int(date[:4]), int(date[4:6]), int(date[6:]))


def clashes(bookings: Iterable[Booking]) -> set[int]:
    """The row ids of open exams that overlap with another one, or with a blocked time."""
    found: set[int] = set()
    latest: Booking | None = None
    for one in bookings:
        if one.status not in IN_THE_WAY:
            continue
        if latest and latest.date == one.date and one.begin < latest.end:
            found |= {latest.row_id, one.row_id}
        if not latest or (one.date, one.end) > (latest.date, latest.end):
            latest = one
    return {row_id for row_id in found if row_id > 0}


def day_begins_ends(ctx: Context) -> tuple[int, int]:
    """Opening and closing time of the clinic in minutes since midnight."""
    opens, closes = ctx.config.clinic.opens or (0, 0), ctx.config.clinic.closes or (24, 0)
    return opens[0] * 60 + opens[1], closes[0] * 60 + closes[1]


def hours_of(ctx: Context, ae_title: str) -> list[tuple[int, int]]:
    """The hours of a device, else those of the clinic; in minutes since midnight."""
    device = device_of(ctx, ae_title)
    return spans_of(device.hours) if device and device.hours else [day_begins_ends(ctx)]


def is_closed(ctx: Context, date: str) -> bool:
    """Whether the clinic is closed on a day (DA)."""
    return WEEKDAYS[day_of_da(date).weekday()] in ctx.config.clinic.closed_days


def _lie_on(bookings: Iterable[Booking], begin: int, minutes: int) -> list[Booking]:
    """The exams and blocked times that overlap with a time of their day."""
    return [one for one in bookings if one.begin < begin + minutes and begin < one.end]


def free_times(
    ctx: Context, ae_title: str, bookings: Iterable[Booking], date: str, minutes: int
) -> list[int]:
    """When an exam can start at a device on a day (DA), in minutes; never in the past.

    bookings  its exams and blocked times of that day
    """
    now = ctx.local_now()
    today = f"{now:%Y%m%d}"
    if date < today or is_closed(ctx, date):
        return []
    earliest = now.hour * 60 + now.minute if date == today else 0
    taken = [one for one in bookings if one.date == date]
    return [
        begin
        for opens, closes in hours_of(ctx, ae_title)
        for begin in range(opens, closes - minutes + 1, ctx.config.clinic.slot_minutes)
        if begin >= earliest and not _lie_on(taken, begin, minutes)
    ]


def in_the_way(
    ctx: Context, ae_title: str, date: str, begin: int, exam: str = "", row_id: int = 0
) -> tuple[list[Booking], list[int]]:
    """The exams and blocked times that an exam would overlap with, and the free times of that day in minutes.

    exam    name or code of its procedure
    row_id  the exam itself, if it is on the worklist already: not an overlap
    """
    everything = diary(ctx, ae_title, date, date)
    bookings = [one for one in everything if one.row_id != row_id]
    its_own = next((one.end - one.begin for one in everything if one.row_id == row_id), 0)
    minutes = exam_minutes().get(exam) or its_own or ctx.config.clinic.slot_minutes
    open_ = [one for one in bookings if one.status in IN_THE_WAY]
    return _lie_on(open_, begin, minutes), free_times(ctx, ae_title, bookings, date, minutes)


DAYS_AHEAD = 31  # in which free times are looked for
DAYS_OFFERED = 3


def free_days(
    ctx: Context, ae_title: str, first: str, days: int, minutes: int, row_id: int = 0
) -> Iterator[tuple[str, list[int]]]:
    """Days (DA) that follow each other, each with the free times of a device, in minutes of the day.

    minutes  how long the exam lasts
    row_id   the exam itself, if it is on the worklist already: it is not in its own way
    """
    dates = [f"{day_of_da(first) + datetime.timedelta(days=n):%Y%m%d}" for n in range(days)]
    booked = diary(ctx, ae_title, dates[0], dates[-1])
    bookings = [one for one in booked if one.row_id != row_id]
    return ((date, free_times(ctx, ae_title, bookings, date, minutes)) for date in dates)


def next_free(
    ctx: Context, ae_title: str, first: str, begin: int, minutes: int, row_id: int = 0
) -> list[tuple[str, list[int]]]:
    """The next DAYS_OFFERED days on which a device has free times; else as free_days.

    first, begin  the day and the minute from which on
    """
    found: list[tuple[str, list[int]]] = []
    start = max(first, ctx.today())
    for date, free in free_days(ctx, ae_title, start, DAYS_AHEAD + 1, minutes, row_id):
        earliest = begin if date == first else 0
        if later := [one for one in free if one >= earliest]:
            found.append((date, later))
        if len(found) == DAYS_OFFERED:
            break
    return found


def exams_of_days(first: str, last: str) -> dict[str, int]:
    """The number of exams per day (DA) from one day to another, without canceled ones."""
    cursor = database.execute_sql(
        "SELECT start_date, count(*) FROM scheduled_procedure_step WHERE start_date BETWEEN ? AND ?"
        " AND status NOT IN ('CANCELED', 'NO SHOW', 'DEPARTED') GROUP BY start_date",
        (first, last),
    )
    return dict(cursor.fetchall())
