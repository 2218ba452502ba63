"""Erasing: old data by [housekeeping], and a patient's data on request."""

import json
import time
from collections.abc import Mapping
from typing import Any

from minris import log
from minris.access.context import Context, audit, needs_reason, purge_audit
from minris.dataset.elements import ElementIndex
from minris.dataset.names import name_key
from minris.housekeeping.auditing import purge_archives
from minris.images.commitment import purge_commitments
from minris.interchange.imports import purge_imports
from minris.mpps.performed import notify_of_mpps
from minris.orders.blocking import purge_blocked
from minris.orders.lookup import NO_PATIENT
from minris.orders.notes import UNDO_HOURS
from minris.orders.patients import same_person
from minris.standard.status import Message, Refusal, Status
from minris.store.models import (
    FormerIdentity,
    Patient,
    PerformedProcedureStep,
    QueryTrace,
    ScheduledProcedureStep,
    UndoNote,
    Workitem,
    database,
)
from minris.store.rows import erase, fetch_rows, first_row, insert_rows, known_row
from minris.ups.search import find_workitem


def purge(ctx: Context) -> dict[str, int]:
    """Erase what is older than [housekeeping] says, 0 for never; return the counts by kind."""
    keep, erased = ctx.config.housekeeping, {}
    with database.atomic():
        if keep.keep_steps_days:
            erased["steps"] = _purge_steps(ctx, ctx.stamp(days=-keep.keep_steps_days))
        if keep.keep_patients_days:
            gone = (
                "patient WHERE updated_at < ? AND NOT EXISTS (SELECT 1 FROM requested_procedure r"
                " WHERE r.patient_id = patient.id)"
            )
            old = ctx.stamp(days=-keep.keep_patients_days)
            erase(f"value_change WHERE about IN (SELECT 'patient ' || id FROM {gone})", old)
            erased["patients"] = erase(gone, old)
        erased["queries"] = erase(
            "query_trace WHERE last_at < ?", ctx.stamp(days=-keep.keep_queries_days)
        )
        if keep.keep_audit_days:
            erased["audit lines"] = purge_audit(ctx.stamp(days=-keep.keep_audit_days))
            erased["audit files"] = purge_archives(ctx)
        erased["commitments"] = purge_commitments(ctx)
        erased["imports"] = purge_imports(ctx)
        erased["blocked times"] = purge_blocked(ctx)
        erased["changes"] = erase("undo_note WHERE at < ?", ctx.stamp(hours=-UNDO_HOURS))
        erased["deliveries"] = erase(
            "outbox WHERE created_at < ? AND (sent_at <> '' OR given_up_at <> '')"
            " AND commitment_id IS NULL",
            ctx.stamp(days=-keep.keep_deliveries_days),
        )
        erased["initial reports"] = erase(
            "workitem_event WHERE initial = 1 AND NOT EXISTS"
            " (SELECT 1 FROM outbox o WHERE o.event_id = workitem_event.id)"
        )
        if keep.keep_workitem_history_days:
            erased["workitem events"] = erase(
                "workitem_event WHERE created_at < ? AND NOT EXISTS (SELECT 1 FROM outbox o"
                " WHERE o.event_id = workitem_event.id) AND NOT EXISTS (SELECT 1 FROM workitem w"
                " WHERE w.sop_instance_uid = workitem_event.sop_instance_uid)",
                ctx.stamp(days=-keep.keep_workitem_history_days),
            )
        if erased := {what: count for what, count in erased.items() if count}:
            words = _counts(erased)
            audit(ctx, "purged", "store", words)
            log.info("purged: %s", words)
    return erased


def _counts(erased: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in erased.items() if count)


def _purge_steps(ctx: Context, old: str) -> int:
    """Erase steps that ended before a time, and performed steps of these alone."""
    ended = "SELECT id FROM scheduled_procedure_step WHERE ended_at <> '' AND ended_at < ?"
    performed = database.execute_sql(
        "SELECT p.id, p.sop_instance_uid FROM performed_procedure_step p"
        " WHERE p.updated_at < ? AND NOT EXISTS"
        f" (SELECT 1 FROM performed_scheduled_step l WHERE l.performed_id = p.id"
        f" AND l.scheduled_id NOT IN ({ended}))",
        (old, old),
    ).fetchall()
    erase(f"performed_scheduled_step WHERE scheduled_id IN ({ended})", old)
    for row_id, uid in performed:
        erase("performed_procedure_step WHERE id = ?", row_id)
        notify_of_mpps(ctx, uid, "deleted")
    erase(f"value_change WHERE about IN (SELECT 'step ' || id FROM ({ended}))", old)
    for table in ("scheduled_station", "step_seen"):
        erase(f"{table} WHERE step_id IN ({ended})", old)
    count = erase(f"scheduled_procedure_step WHERE id IN ({ended})", old)
    erase(
        "requested_procedure WHERE created_at < ? AND NOT EXISTS (SELECT 1 FROM"
        " scheduled_procedure_step s WHERE s.procedure_id = requested_procedure.id)",
        old,
    )
    return count


def erase_patient(ctx: Context, row_id: int, why: str) -> dict[str, int]:
    """Erase a patient's data, with a reason; return the counts by kind.

    The audit log keeps the ID and accession numbers; UIDs of images in the archive and existing
    backups stay, too.
    Refuses  0106 without a reason; 0112; 0110 while an exam or a workitem is under way
    """
    needs_reason(why)
    patient = known_row(first_row(Patient, "id = ?", row_id), NO_PATIENT)
    database.execute_sql("PRAGMA secure_delete = ON")  # overwrite what is erased
    with database.atomic():
        steps = fetch_rows(
            ScheduledProcedureStep,
            "procedure_id IN (SELECT id FROM requested_procedure WHERE patient_id = ?)",
            row_id,
        )
        former = former_ids(patient)
        accessions = {step.accession_number for step in steps}
        workitems = _workitems_of(patient, former, accessions)
        if {"STARTED", "IN PROGRESS"} & {*(step.status for step in steps), *workitems.values()}:
            words = Message("An exam or a workitem of this patient is under way: end it first")
            raise Refusal(Status.PROCESSING_FAILURE, words)
        _erase_notes(row_id, [step.id for step in steps])
        erased = {"workitems": sum(_erase_workitem(ctx, uid) for uid in workitems)}
        erased["performed"] = _erase_performed(ctx, patient, former)
        for step in steps:
            for table in ("performed_scheduled_step WHERE scheduled_id",
                          "scheduled_station WHERE step_id", "step_seen WHERE step_id"):  # fmt: skip
                erase(f"{table} = ?", step.id)
            erase("scheduled_procedure_step WHERE id = ?", step.id)
        erased["exams"] = len(steps)
        erase("requested_procedure WHERE patient_id = ?", row_id)
        erase("imported_file WHERE NOT wanted")  # files that were looked at may tell of anybody
        erased["queries"] = _erase_queries(patient)
        erase("patient WHERE id = ?", row_id)
        counts = _counts(erased)
        audit(ctx, "patient erased", patient.patient_id, f"{why.strip()[:500]} ({counts})")
    log.info("patient data erased by %s: %s", ctx.actor, counts)
    return erased


def former_ids(patient: Any) -> set[str]:
    """A patient's former Patient IDs that nobody else has now."""
    found = {one.former_id for one in fetch_rows(FormerIdentity, "patient_id = ?", patient.id)}
    others = {one for (one,) in database.execute_sql(
        "SELECT patient_id FROM patient WHERE id <> ?", (patient.id,)) if one in found}  # fmt: skip
    return found - others - {patient.patient_id}


def _is_of(patient: Any, former: set[str], index: ElementIndex) -> bool:
    """Whether a data set is a patient's: by ID and name, or by a former ID."""
    known = index.get("PatientID")
    return known in former or (known == patient.patient_id and same_person(index, patient))


def _workitems_of(patient: Any, former: set[str], accessions: set[str]) -> dict[str, str]:
    """The states by UID of a patient's workitems, found by ID and name or by accession number."""
    ids = sorted({patient.patient_id, *former})
    rows_ = fetch_rows(
        Workitem,
        f"patient_id IN ({', '.join('?' * len(ids))}) OR (accession_number <> ''"
        f" AND accession_number IN ({', '.join('?' * len(accessions))}))",
        *ids,
        *accessions,
    )
    return {
        one.sop_instance_uid: one.state
        for one in rows_
        if one.accession_number in accessions - {""}
        or _is_of(patient, former, ElementIndex(one.data))
    }


def _erase_workitem(ctx: Context, uid: str) -> int:
    """Erase a workitem with its history and waiting events."""
    workitem = find_workitem(uid)
    events = "SELECT id FROM workitem_event WHERE sop_instance_uid = ?"
    erase(f"outbox WHERE event_id IN ({events})", uid)
    erase("workitem_event WHERE sop_instance_uid = ?", uid)
    erase("subscription WHERE workitem_id = ?", workitem.id)
    insert_rows("purged_workitem (sop_instance_uid, purged_at)", [(uid, ctx.stamp())])
    return erase("workitem WHERE id = ?", workitem.id)


def _erase_performed(ctx: Context, patient: Any, former: set[str]) -> int:
    """Erase a patient's performed steps, also those without an order; return their number."""
    ids = sorted({patient.patient_id, *former})
    found = fetch_rows(
        PerformedProcedureStep,
        "id IN (SELECT l.performed_id FROM performed_scheduled_step l JOIN scheduled_procedure_step s"
        " ON s.id = l.scheduled_id JOIN requested_procedure r ON r.id = s.procedure_id"
        f" WHERE r.patient_id = ?) OR {' OR '.join(['instr(data, CAST(? AS BLOB))'] * len(ids))}",
        patient.id,
        *ids,
    )
    linked = (
        "SELECT DISTINCT r.patient_id FROM performed_scheduled_step l JOIN scheduled_procedure_step s"
        " ON s.id = l.scheduled_id JOIN requested_procedure r ON r.id = s.procedure_id"
        " WHERE l.performed_id = ?"
    )
    count = 0
    for one in found:
        owners = {row_id for (row_id,) in database.execute_sql(linked, (one.id,))}
        if owners - {patient.id}:
            continue
        if not owners and not _is_of(patient, former, ElementIndex(one.data)):
            continue
        erase("performed_scheduled_step WHERE performed_id = ?", one.id)
        erase("outbox WHERE sop_instance_uid = ?", one.sop_instance_uid)
        count += erase("performed_procedure_step WHERE id = ?", one.id)
        notify_of_mpps(ctx, one.sop_instance_uid, "deleted")
    return count


def forget_erased() -> None:
    """Truncate the write-ahead log, which has the erased data too; call outside a transaction."""
    for _ in range(50):
        busy, _, _ = database.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            return
        time.sleep(0.1)
    log.warning("the database is busy: erased data stays in its write-ahead log for now")


def _erase_notes(patient_row: int, steps: list[int]) -> None:
    """Erase the notes of changes of a patient, the exams, and records merged into this one."""
    about = {f"patient {patient_row}", *(f"step {one}" for one in steps)}
    for one in about:
        erase("value_change WHERE about = ?", one)
    for note in fetch_rows(UndoNote, "1 = 1"):
        places = [(table, row) for table, row, *_ in json.loads(note.images)]
        if note.about in about or ("patient", patient_row) in places:
            erase("undo_note WHERE id = ?", note.id)


def _erase_queries(patient: Any) -> int:
    """Erase logged queries for a patient by ID or name; return their number."""
    count = 0
    for query in fetch_rows(QueryTrace, "1 = 1"):
        index = ElementIndex(query.keys)
        name = name_key(index.get("PatientName").strip("*")).strip("=")
        if index.get("PatientID") == patient.patient_id or (name and name in patient.name_key):
            count += erase("query_trace WHERE id = ?", query.id)
    return count
