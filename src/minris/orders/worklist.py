"""The modality worklist search of devices and the web (PS3.4 K.4)."""

import datetime
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from minris.access.context import Context
from minris.config.ini import Device
from minris.dataset.elements import EMPTY
from minris.dataset.names import name_chunk
from minris.dataset.search import Search
from minris.standard.dictionary import tag_of
from minris.standard.worklist import START_DATE, STEP_SEQUENCE, STEP_STATUS
from minris.store.models import ScheduledProcedureStep, database
from minris.store.rows import AnswerCache, answer_slices, page_of_matches

# SQL narrows by the columns below; Search.answer decides.

_STEP_KEY_COLUMNS = {
    (tag_of("PatientID"),): "s.patient_id",
    (tag_of("AccessionNumber"),): "s.accession_number",
    (tag_of("RequestedProcedureID"),): "s.requested_procedure_id",
    (tag_of("StudyInstanceUID"),): "s.study_instance_uid",
    (STEP_SEQUENCE, tag_of("Modality")): "s.modality",
    (STEP_SEQUENCE, tag_of("ScheduledProcedureStepID")): "s.scheduled_procedure_step_id",
    (STEP_SEQUENCE, STEP_STATUS): "s.status",
}
STATION_AE_TITLE = tag_of("ScheduledStationAETitle")


def _narrow(search: Search) -> tuple[list[str], list[Any]]:
    """SQL conditions that let through at least every match of a search."""
    index = search.index
    items = index.items(STEP_SEQUENCE)
    item = items[0] if items else EMPTY
    where, values = [], []
    for path, column in _STEP_KEY_COLUMNS.items():
        wanted = (item if len(path) > 1 else index).values(path[-1])
        if wanted and all(wanted) and not any("*" in w or "?" in w for w in wanted):
            where.append(f"{column} IN ({', '.join('?' * len(wanted))})")
            values += wanted
    if chunk := name_chunk(index.get("PatientName")):
        where.append("instr(s.name_key, ?)")
        values.append(chunk)
    nested = search.nested.get(STEP_SEQUENCE)
    if nested and (date := nested.intervals.get(START_DATE)):
        where.append("s.start_date BETWEEN ? AND ?")
        values += [date.low, date.high or "99999999"]
    return where, values


class WorklistView(NamedTuple):
    """The part of the worklist that a caller may see, whatever it asks for."""

    ae_titles: tuple[str, ...] = ()  # only steps of these stations; () for all
    first_day: str = ""
    last_day: str = ""
    limit: int | None = None

    @classmethod
    def of(cls, ctx: Context, device: Device | None) -> "WorklistView":
        """The part that a device's profile shows it."""
        if not device:
            return cls()
        today, day = ctx.local_now().date(), datetime.timedelta(days=1)
        first, last = (
            "" if days is None else f"{today + days * step:%Y%m%d}"
            for days, step in ((device.days_back, -day), (device.days_ahead, day))
        )
        titles = device.ae_titles if device.own_steps_only else ()
        return cls(titles, first, last, device.answer_limit)

    def conditions(self) -> tuple[list[str], list[str]]:
        """Its SQL conditions and their values."""
        days = {"s.start_date >= ?": self.first_day, "s.start_date <= ?": self.last_day}
        where = [condition for condition, day in days.items() if day]
        values = [day for day in days.values() if day]
        if self.ae_titles:
            where.append(
                "EXISTS (SELECT 1 FROM scheduled_station o WHERE o.step_id = s.id"
                f" AND o.ae_title IN ({', '.join('?' * len(self.ae_titles))}))"
            )
            values += self.ae_titles
        return where, values


def worklist_ids(
    ctx: Context, search: Search, view: WorklistView = WorklistView()
) -> list[tuple[int, int]]:
    """Ids and versions of the steps that may match, by start time."""
    (where, values), (of_view, its_values) = _narrow(search), view.conditions()
    where, values = where + of_view, values + its_values
    hidden = sorted(ctx.config.dicom.hide_steps)
    if hidden:
        where.append(f"s.status NOT IN ({', '.join('?' * len(hidden))})")
        values += hidden
    source = "scheduled_procedure_step s"
    nested = search.nested.get(STEP_SEQUENCE)
    title = nested.index.text(STATION_AE_TITLE) if nested else ""
    if title.strip("*") and not set(title) & set("*?\\"):
        source = "scheduled_station t JOIN scheduled_procedure_step s ON s.id = t.step_id"
        where.append("t.ae_title = ?")
        values.append(title)
        if date := nested.intervals.get(START_DATE):
            where.append("t.start_date BETWEEN ? AND ?")
            values += [date.low, date.high or "99999999"]
    sql = f"SELECT s.id, s.version FROM {source}"
    if where:
        sql += f" WHERE {' AND '.join(where)}"
    cursor = database.execute_sql(f"{sql} ORDER BY s.start_date, s.start_time, s.id", values)
    return cursor.fetchall()


def find_worklist(
    ctx: Context,
    search: Search,
    cache: AnswerCache | None = None,
    key: object = None,
    view: WorklistView = WorklistView(),
    seen: Callable[[list[tuple[int, int]]], None] | None = None,
) -> Iterator[list[bytes]]:
    """Yield the encoded answers of a worklist search, slice by slice.

    Steps in a state of [dicom] hide_steps are left out, whatever the status key says.
    seen     called with the row ids and versions of each slice
    Refuses  A700 beyond the answer limit of the view or [dicom]
    Source   PS3.4 K.4.1.3
    """
    limit = view.limit or ctx.config.dicom.answer_limit
    found = worklist_ids(ctx, search, view)
    yield from answer_slices(search, ScheduledProcedureStep, found, limit, cache, key, seen)


def page_of_worklist(
    ctx: Context, search: Search, shape: Search, offset: int, limit: int
) -> tuple[list[bytes], int]:
    """One page of a worklist search, in the form of `shape`, and the total number of matches."""
    found = worklist_ids(ctx, search, WorklistView())
    return page_of_matches(search, shape, ScheduledProcedureStep, found, offset, limit)
