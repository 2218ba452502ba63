"""Image arrival: the exams it ends, and the workitems that wait for it."""

import collections
import datetime
from collections.abc import Mapping
from typing import Any, NamedTuple

from minris import log
from minris.access.context import Context, archive_of, audit, device_of, needs_reason
from minris.dataset.elements import ElementIndex, encode_text, text_elements
from minris.images.references import MOST_PERFORMED, Reference, available_uids, produced_by
from minris.mpps.linking import does_report, reporting_stations
from minris.orders.steps import enter_state
from minris.standard.commitment import REFERENCED_SOP, RETRIEVABLE
from minris.standard.dictionary import tag_of
from minris.standard.mpps import FINAL_MPPS_STATES
from minris.standard.status import Message, Refusal, Status
from minris.standard.worklist import OPEN_STEP_STATES
from minris.store.models import PerformedProcedureStep, ScheduledProcedureStep, Workitem, database
from minris.store.rows import erase, fetch_rows
from minris.ups.search import stored_workitem
from minris.ups.workitems import update_workitem


class Arrival(NamedTuple):
    """A performed step, and which of its images are known to be in an archive.

    step_id    row id of a linked scheduled step, or None
    performed  its data set
    """

    step_id: int | None
    performed: ElementIndex
    uid: str
    ended_at: str
    references: list[Reference]
    missing: list[Reference]


def arrival_of(row: Any) -> Arrival:
    """The arrival of a performed step's images (PS3.4 R.1.1: of those that it references)."""
    performed = ElementIndex(row.data)
    produced = produced_by(performed)
    there = available_uids(produced)
    references = [Reference(sop_class, uid, study, series)
                  for uid, (study, series, sop_class) in produced.items()]  # fmt: skip
    missing = [one for one in references if one.sop_instance_uid not in there]
    (step_id,) = database.execute_sql(
        "SELECT min(scheduled_id) FROM performed_scheduled_step WHERE performed_id = ?", (row.id,)
    ).fetchone()
    return Arrival(step_id, performed, row.sop_instance_uid, row.updated_at, references, missing)


def incomplete_arrivals(ctx: Context, hours: float = 48, most: int = 300) -> list[Arrival]:
    """Performed steps that ended in the last hours with images not known to be in an archive."""
    ended = fetch_rows(
        PerformedProcedureStep,
        f"updated_at > ? AND status IN {tuple(sorted(FINAL_MPPS_STATES))}"
        " ORDER BY updated_at DESC LIMIT ?",
        ctx.stamp(hours=-hours),
        most,
    )
    return [arrival for arrival in map(arrival_of, ended) if arrival.missing]


def performed_arrival(performed_id: int) -> Arrival:
    """The arrival of the images of one performed step."""
    return arrival_of(fetch_rows(PerformedProcedureStep, "id = ?", performed_id)[0])


def images_there(study_instance_uid: str) -> int:
    """How many images of a study are known to be in an archive."""
    count: int = database.execute_sql(
        "SELECT count(DISTINCT sop_instance_uid) FROM availability WHERE study_instance_uid = ?"
        f" AND availability IN {RETRIEVABLE}",
        (study_instance_uid,),
    ).fetchone()[0]
    return count


# Exams on machines without MPPS: their images tell their state.


def unreported_steps(ctx: Context, where: str, *values: Any) -> list[Any]:
    """The open steps under a condition, without performed step, on machines that do not report."""
    found = fetch_rows(
        ScheduledProcedureStep,
        f"status IN {tuple(sorted(OPEN_STEP_STATES))} AND {where} AND NOT EXISTS (SELECT 1 FROM"
        " performed_scheduled_step l WHERE l.scheduled_id = scheduled_procedure_step.id)"
        " ORDER BY start_date DESC, id DESC LIMIT 5000",
        *values,
    )
    if not found:
        return []
    reporting, stations = reporting_stations(), collections.defaultdict(list)
    cursor = database.execute_sql(
        "SELECT step_id, ae_title FROM scheduled_station WHERE step_id IN"
        f" ({', '.join(str(step.id) for step in found)})"
    )
    for step_id, title in cursor:
        stations[step_id].append(title)
    for step in found:
        step.stations = stations[step.id]
    return [step for step in found if not does_report(ctx, step.stations, reporting)]


def unreported_studies(ctx: Context) -> list[str]:
    """Studies of today and yesterday that may be in the archive, on machines that do not report."""
    yesterday = f"{ctx.local_now() - datetime.timedelta(days=1):%Y%m%d}"
    steps = unreported_steps(
        ctx, "((start_date >= ? AND start_date <= ?) OR status = 'STARTED')", yesterday, ctx.today()
    )
    return list(dict.fromkeys(step.study_instance_uid for step in steps))


def note_images(ctx: Context, counts: Mapping[str, int], told_by: str) -> None:
    """Note how many images of studies are in the archive, which starts unreported exams.

    counts   images by Study Instance UID
    told_by  a key of TOLD_BY
    """
    for study, count in counts.items():
        step = _unreported_step(ctx, study) if count else None
        if not step:
            continue
        database.execute_sql(
            "INSERT INTO study_seen (study_instance_uid, instances, told_by, since, seen_at)"
            " VALUES (?1, ?2, ?3, ?4, ?4) ON CONFLICT (study_instance_uid) DO UPDATE SET"
            " seen_at = ?4, told_by = ?3, instances = max(instances, ?2),"
            " since = CASE WHEN instances < ?2 THEN ?4 ELSE since END",
            (study, count, told_by, ctx.stamp()),
        )
        if step.status != "STARTED":
            enter_state(ctx, step, "STARTED")
    end_quiet_exams(ctx)


def _unreported_step(ctx: Context, study: str, station: str = "") -> Any | None:
    """The one open step of a study whose machine does not report, or None.

    If the study has several steps, only that of the station: images do not name their step
    """
    steps = unreported_steps(ctx, "study_instance_uid = ?", study) if study else []
    if not steps:
        return None
    (count,) = database.execute_sql(
        "SELECT count(*) FROM scheduled_procedure_step WHERE study_instance_uid = ?"
        " AND status NOT IN ('CANCELED', 'NO SHOW')",
        (study,),
    ).fetchone()
    if count > 1:
        device = device_of(ctx, station)
        titles = {station, *(device.ae_titles if device else ())}
        steps = [step for step in steps if titles & set(step.stations)]
    return steps[0] if len(steps) == 1 else None


def quiet_studies(ctx: Context) -> list[tuple[str, str]]:
    """Studies without new images for [commitment] quiet_minutes, and the source of the count.

    If the archive is queried, it must have been queried again after that time
    """
    keep, archive = ctx.config.commitment, archive_of(ctx)
    asked = bool(keep.look_minutes and archive and archive.host)
    return database.execute_sql(
        "SELECT study_instance_uid, told_by FROM study_seen WHERE julianday(CASE WHEN told_by ="
        " 'archive' AND ? THEN seen_at ELSE ? END) - julianday(since) >= ? LIMIT 500",
        (asked, ctx.stamp(), keep.quiet_minutes / 1440 - 1e-8),
    ).fetchall()


def end_quiet_exams(ctx: Context) -> None:
    """End unreported exams whose images seem to be complete."""
    for study, told_by in quiet_studies(ctx):
        end_by_images(ctx, study, told_by)
        erase("study_seen WHERE study_instance_uid = ?", study)


def end_by_images(ctx: Context, study: str, told_by: str, station: str = "") -> None:
    """End a study's exam if its machine does not report; `told_by` is a key of TOLD_BY."""
    if step := _unreported_step(ctx, study, station):
        enter_state(ctx, step, "COMPLETED", told_by)


# Inputs of workitems.


def retrieved_from(item: ElementIndex) -> set[str]:
    """The Retrieve AE Titles of an Input Information item."""
    sequence = item.items(tag_of("DICOMRetrievalSequence"))
    return {one.get("RetrieveAETitle") for one in sequence} - {""}


def inputs_are_ready(index: ElementIndex) -> bool:
    """Whether all inputs of a workitem are known to be available (local; PS3.3 C.30.2).

    Each listed instance must be at one of its Retrieve AE Titles. An INCOMPLETE list is not enough,
    unless all performed steps of its studies have ended and their images are available.
    """
    items = index.items(tag_of("InputInformationSequence"))
    whole = index.get("InputReadinessState") != "INCOMPLETE"
    for item in items:
        listed = [one.get("ReferencedSOPInstanceUID") for one in item.items(REFERENCED_SOP)]
        if set(listed) - available_uids(listed, retrieved_from(item)):
            return False
        if not (listed and whole) and not _has_all_arrived(item.get("StudyInstanceUID")):
            return False
    return bool(items)


def _has_all_arrived(study: str) -> bool:
    """Whether all performed steps of a study have ended and their images have arrived."""
    rows_ = fetch_rows(
        PerformedProcedureStep,
        "id IN (SELECT l.performed_id FROM performed_scheduled_step l JOIN scheduled_procedure_step"
        " s ON s.id = l.scheduled_id WHERE s.study_instance_uid = ?) OR id IN (SELECT id FROM"
        f" (SELECT id, data FROM performed_procedure_step ORDER BY id DESC LIMIT {MOST_PERFORMED})"
        " WHERE instr(data, ?))",
        study,
        encode_text("StudyInstanceUID", study),
    )
    more = database.execute_sql(
        "SELECT 1 FROM scheduled_procedure_step WHERE study_instance_uid = ?"
        f" AND status IN {tuple(sorted(OPEN_STEP_STATES))} LIMIT 1",
        (study,),
    ).fetchone()
    ended = not more and all(row.status in FINAL_MPPS_STATES for row in rows_)
    arrivals = [arrival_of(row) for row in rows_] if ended else []
    produced = any(arrival.references for arrival in arrivals)
    return produced and not any(arrival.missing for arrival in arrivals)


def _waiting_workitems(most: int) -> list[Any]:
    where = "state = 'SCHEDULED' AND readiness <> 'READY' ORDER BY updated_at DESC LIMIT ?"
    return fetch_rows(Workitem, where, most)


def awaited_inputs(most: int = 5000) -> list[Reference]:
    """The instances that workitems wait for and that are not known to be available."""
    found: list[Reference] = []
    for workitem in _waiting_workitems(200):
        for item in ElementIndex(workitem.data).items(tag_of("InputInformationSequence")):
            listed = [
                Reference(one.get("ReferencedSOPClassUID"), one.get("ReferencedSOPInstanceUID"),
                          item.get("StudyInstanceUID"), item.get("SeriesInstanceUID"))
                for one in item.items(REFERENCED_SOP)
            ]  # fmt: skip
            there = available_uids((one.sop_instance_uid for one in listed), retrieved_from(item))
            found += [one for one in listed if one.sop_instance_uid not in there]
    return list(dict.fromkeys(found))[:most]


def ready_workitems() -> list[str]:
    """UIDs of waiting workitems whose inputs are available."""
    return [one.sop_instance_uid for one in _waiting_workitems(2000)
            if inputs_are_ready(ElementIndex(one.data))]  # fmt: skip


def make_ready(ctx: Context, uid: str) -> None:
    """Set a workitem's Input Readiness State to READY if so, and notify its subscribers."""
    workitem = stored_workitem(uid)
    if not workitem or workitem.state != "SCHEDULED" or workitem.readiness == "READY":
        return
    if inputs_are_ready(ElementIndex(workitem.data)):
        update_workitem(ctx, uid, bytes(text_elements(InputReadinessState="READY")))
        log.info("workitem %s: inputs are ready", uid)


STUDIES_WITHOUT_ORDER = (  # a skip scan of the index
    "WITH RECURSIVE t (u) AS (SELECT min(study_instance_uid) FROM availability UNION ALL"
    " SELECT (SELECT min(study_instance_uid) FROM availability WHERE study_instance_uid > t.u)"
    " FROM t WHERE t.u IS NOT NULL), f (u) AS (SELECT u FROM t WHERE u <> '' AND NOT EXISTS"
    " (SELECT 1 FROM requested_procedure r WHERE r.study_instance_uid = t.u) AND NOT EXISTS"
    " (SELECT 1 FROM settled_study s WHERE s.study_instance_uid = t.u))"
    " SELECT 'images', f.u, max(a.who), min(a.at), count(DISTINCT a.sop_instance_uid)"
    " FROM f JOIN availability a ON a.study_instance_uid = f.u WHERE a.at <= ?"
    " GROUP BY f.u ORDER BY 4"
)


def settle_study(ctx: Context, study_instance_uid: str, why: str) -> None:
    """Accept images in the archive without an order, with a reason. Refuses 0106, 0112."""
    needs_reason(why)
    known = "SELECT 1 FROM availability WHERE study_instance_uid = ? LIMIT 1"
    if not database.execute_sql(known, (study_instance_uid,)).fetchone():
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There are no such images"))
    database.execute_sql(
        "INSERT OR REPLACE INTO settled_study (study_instance_uid, why, at) VALUES (?, ?, ?)",
        (study_instance_uid, why.strip()[:500], ctx.stamp()),
    )
    audit(ctx, "images settled", study_instance_uid, why.strip()[:500])
