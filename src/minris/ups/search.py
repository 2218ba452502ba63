"""Find workitems (PS3.4 CC.2.8)."""

import datetime
from collections.abc import Iterator
from typing import Any

from minris.access.context import Context
from minris.dataset.elements import ElementIndex
from minris.dataset.names import name_chunk
from minris.dataset.search import AnswerStyle, Search
from minris.dataset.times import instants, utc_stamp
from minris.recent import cached
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Refusal, Status
from minris.standard.ups import UPS_ATTRIBUTES
from minris.store.models import Workitem, database
from minris.store.rows import AnswerCache, answer_slices, first_row, matching_rows, page_of_matches


def stored_workitem(uid: str) -> Any:
    """Return a workitem by its UID, None if there is none."""
    return first_row(Workitem, "sop_instance_uid = ?", uid)


def find_workitem(uid: str) -> Any:
    """Return a workitem by its UID. Refuses C307."""
    if not (found := stored_workitem(uid)):
        raise Refusal(Status.NO_SUCH_UPS, Message("There is no such workitem"))
    return found


_WORKITEM_KEY_COLUMNS = {
    "SOPInstanceUID": "sop_instance_uid",
    "ProcedureStepState": "state",
    "WorklistLabel": "worklist_label",
    "ScheduledProcedureStepPriority": "priority",
    "InputReadinessState": "readiness",
    "PatientID": "patient_id",
    "ProcedureStepLabel": "label",
}


def workitem_ids(search: Search) -> list[tuple[int, int]]:
    """Return ids and versions of the workitems that may match, by start time."""
    index, where, values = search.index, [], []
    for keyword, column in _WORKITEM_KEY_COLUMNS.items():
        wanted = index.values(tag_of(keyword))
        stem = wanted[0].removesuffix("*") if len(wanted) == 1 else ""
        if wanted and all(wanted) and not any("*" in w or "?" in w for w in wanted):
            where.append(f"{column} IN ({', '.join('?' * len(wanted))})")
            values += wanted
        elif stem and "*" not in stem and "?" not in stem:  # text*
            where.append(f"{column} >= ? AND {column} < ?")
            values += stem, stem + "\U0010ffff"
    request = index.item("ReferencedRequestSequence").get("AccessionNumber")
    if request and "*" not in request and "?" not in request:
        where.append("accession_number IN (?, '*')")
        values.append(request)
    if chunk := name_chunk(index.get("PatientName")):
        where.append("instr(name_key, ?)")
        values.append(chunk)
    tag = tag_of("ScheduledProcedureStepStartDateTime")
    if text := index.text(tag).strip("*"):
        span = instants(tag, text, search.style.zone)
        for sign, bound in ((">=", span.low), ("<=", span.high)):
            if bound:
                where.append(f"start_at {sign} ?")
                values.append(utc_stamp(bound))
    sql = "SELECT id, version FROM workitem" + (f" WHERE {' AND '.join(where)}" if where else "")
    return database.execute_sql(f"{sql} ORDER BY start_at, id", values).fetchall()


@cached(64, 16384)
def filter_search(keys: bytes, zone: datetime.tzinfo | None) -> Search:
    """Return the search of a filtered subscription. Refuses A900."""
    return Search(ElementIndex(keys), UPS_ATTRIBUTES, True, AnswerStyle(zone=zone))


def matching_workitems(search: Search) -> set[int]:
    """Return the ids of the workitems that match."""
    return {row_id for row_id, _ in matching_rows(Workitem, workitem_ids(search), search)}


def find_workitems(
    ctx: Context, search: Search, cache: AnswerCache | None = None, key: object = None
) -> Iterator[list[bytes]]:
    """Yield the encoded answers of a workitem search, slice by slice.

    Refuses  A700 after [dicom] answer_limit answers
    Source   PS3.4 CC.2.8
    """
    limit = ctx.config.dicom.answer_limit
    yield from answer_slices(search, Workitem, workitem_ids(search), limit, cache, key)


def page_of_workitems(
    ctx: Context, search: Search, shape: Search, offset: int, limit: int
) -> tuple[list[bytes], int]:
    """Return a page of a workitem search: `shape` of each match, and how many match in all."""
    return page_of_matches(search, shape, Workitem, workitem_ids(search), offset, limit)
