"""The grid of a calendar: exams as high as they last, overlapping ones side by side."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from minris.orders.diary import Booking

UNIT = 5  # minutes of a row


class Column(NamedTuple):
    """A column of the calendar: a device on a day.

    starts  minutes since midnight at which an exam can be registered
    """

    date: str
    device: str
    bookings: list[Booking]
    starts: set[int]


class Cell(NamedTuple):
    """A cell of the grid: an exam, a free time, or neither; height in rows, width in lanes.

    start  minute at which an exam can be registered, -1 for none
    """

    column: Column
    begin: int
    rows: int
    lanes: int
    booking: Booking | None = None
    start: int = -1


def in_lanes(bookings: Iterable[Booking]) -> list[list[tuple[int, Booking]]]:
    """Return the clusters of bookings that overlap, by time; each booking with its lane."""
    clusters: list[list[tuple[int, Booking]]] = []
    end = -1
    for one in sorted(bookings, key=lambda one: (one.begin, -one.end)):
        begin = one.begin // UNIT * UNIT
        if begin >= end:
            clusters.append([])
        taken = {lane for lane, other in clusters[-1] if _end(other) > begin}
        lane = next(lane for lane in range(len(taken) + 1) if lane not in taken)
        clusters[-1].append((lane, one))
        end = max(end, _end(one))
    return clusters


def _end(one: Booking) -> int:
    """When a booking ends, at the end of a row; it has one row at least."""
    begin = one.begin // UNIT * UNIT
    return max(begin + UNIT, -(-one.end // UNIT) * UNIT)


def cells_of(column: Column, first: int, last: int, step: int) -> tuple[int, list[Cell]]:
    """Return the number of lanes of a column, and its cells from one minute to another.

    step  minutes of a free time
    """
    clusters = in_lanes(column.bookings)
    lanes = max((lane + 1 for cluster in clusters for lane, _ in cluster), default=1)
    found: list[Cell] = []

    def gap(begin: int, end: int) -> None:
        while begin < end:
            stop = min(end, (begin // 60 + 1) * 60)
            found.append(Cell(column, begin, (stop - begin) // UNIT, lanes))
            begin = stop

    def fill(begin: int, end: int) -> None:
        for start in sorted(column.starts):
            free = start // UNIT * UNIT
            if begin <= free < end:
                stop = min(end, max(free + UNIT, (start + step) // UNIT * UNIT))
                gap(begin, free)
                found.append(Cell(column, free, (stop - free) // UNIT, lanes, None, start))
                begin = stop
        gap(begin, end)

    at = first
    for cluster in clusters:
        begin = max(first, min(one.begin for _, one in cluster) // UNIT * UNIT)
        end = min(last, max(_end(one) for _, one in cluster))
        fill(at, begin)
        count = max(lane for lane, _ in cluster) + 1
        for lane in range(count):
            width = lanes - count + 1 if lane == count - 1 else 1
            free = begin
            for one in [one for its, one in cluster if its == lane]:
                start, stop = max(first, one.begin // UNIT * UNIT), min(last, _end(one))
                if start > free:
                    found.append(Cell(column, free, (start - free) // UNIT, width))
                found.append(Cell(column, start, (stop - start) // UNIT, width, one))
                free = stop
            if free < end:
                found.append(Cell(column, free, (end - free) // UNIT, width))
        at = max(at, end)
    fill(at, last)
    return lanes, found


def grid(
    columns: list[Column], opens: int, closes: int, step: int
) -> tuple[int, list[tuple[int, list[Cell]]]]:
    """Return the lanes of a column, and the rows: minute of the day, cells that begin there.

    The rows go from the opening to the closing hour, or further where exams do.
    """
    bookings = [one for column in columns for one in column.bookings]
    first = min([opens, *(one.begin for one in bookings)]) // 60 * 60
    last = min(24 * 60, -(-max([closes, *(_end(one) for one in bookings)]) // 60) * 60)
    filled = [cells_of(column, first, last, step) for column in columns]
    lanes = math.lcm(*(number for number, _ in filled))  # so that all columns are equally wide
    rows: dict[int, list[Cell]] = {begin: [] for begin in range(first, last, UNIT)}
    for number, cells in filled:
        for cell in cells:
            rows[cell.begin].append(cell._replace(lanes=cell.lanes * lanes // number))
    return lanes, list(rows.items())
