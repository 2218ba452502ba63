"""Erasing a patient's data on request."""

import time
from collections.abc import Callable
from typing import Any

from minris import log
from minris.access.context import Context, audit, needs_reason
from minris.dataset.elements import ElementIndex, text_elements
from minris.dataset.identity import IDENTITY
from minris.dataset.names import name_key
from minris.housekeeping.retention import counted
from minris.mpps.performed import notify_of_mpps
from minris.orders.lookup import NO_PATIENT
from minris.orders.patients import same_person
from minris.standard.status import Message, Refusal, Status
from minris.store.models import (
    Outbox,
    Patient,
    PerformedProcedureStep,
    QueryTrace,
    ScheduledProcedureStep,
    Workitem,
    database,
)
from minris.store.rows import erase, fetch_rows, first_row, insert_rows, known_row, update_row
from minris.ups.search import find_workitem


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
        counts = counted(erased)
        audit(ctx, "patient erased", patient.patient_id, f"{why.strip()[:500]} ({counts})")
    log.info("patient data erased by %s: %s", ctx.actor, counts)
    return erased


def former_ids(patient: Any) -> set[str]:
    """A patient's former Patient IDs that nobody else has now."""
    sql = (
        "SELECT former_id FROM former_identity WHERE patient_id = ?1 AND NOT EXISTS"
        " (SELECT 1 FROM patient p WHERE p.patient_id = former_id)"
    )
    return {one for (one,) in database.execute_sql(sql, (patient.id,))}


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
        f" WHERE r.patient_id = ?) OR patient_id IN ({', '.join('?' * len(ids))})"
        " OR id IN (SELECT performed_id FROM performed_scheduled_step WHERE told <> x'')",
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
            _erase_name(ctx, one, lambda index: _is_of(patient, former, index))
            continue
        if not owners and not _is_of(patient, former, ElementIndex(one.data)):
            continue
        erase("performed_scheduled_step WHERE performed_id = ?", one.id)
        erase("outbox WHERE sop_instance_uid = ?", one.sop_instance_uid)
        count += erase("performed_procedure_step WHERE id = ?", one.id)
        notify_of_mpps(ctx, one.sop_instance_uid, "deleted")
    return count


def _erase_name(ctx: Context, performed: Any, names: Callable[[ElementIndex], bool]) -> None:
    """Erase a patient whom a machine named by mistake from the report of another one's exam."""

    def without(data: bytes) -> bytes:
        index = ElementIndex(data)
        of_patient = [tag for tag in index if tag >> 16 == 0x0010]
        return bytes(index.without(of_patient).merged(text_elements(**dict.fromkeys(IDENTITY, ""))))

    named = names(ElementIndex(performed.data))
    if named:
        data = without(performed.data)
        update_row(PerformedProcedureStep, performed.id, data=data, raw=None, patient_id="")
        for row in fetch_rows(Outbox, "sop_instance_uid = ?", performed.sop_instance_uid):
            if names(ElementIndex(row.data)):
                update_row(Outbox, row.id, data=without(row.data))
    links = (
        "SELECT scheduled_id, told, patient FROM performed_scheduled_step WHERE performed_id = ?"
    )
    told_too = False
    for step_id, told, verdict in database.execute_sql(links, (performed.id,)).fetchall():
        is_told = bool(told) and names(ElementIndex(told))
        if is_told or (named and not told):
            told_too = told_too or is_told
            database.execute_sql(
                "UPDATE performed_scheduled_step SET told = x'', patient = ?"
                " WHERE performed_id = ? AND scheduled_id = ?",
                ("agrees" if verdict == "differs" else verdict, performed.id, step_id),
            )
    if named or told_too:
        about = performed.sop_instance_uid
        audit(ctx, "erased patient's name removed from report", about)


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
    erase("undo_note WHERE instr(images, ?)", f'["patient", {patient_row}, ')  # as json writes it
    for one in about:
        erase("undo_note WHERE about = ?", one)
        erase("value_change WHERE about = ?", one)


def _erase_queries(patient: Any) -> int:
    """Erase logged queries for a patient by ID or name; return their number."""
    count = 0
    for query in fetch_rows(QueryTrace, "1 = 1"):
        index = ElementIndex(query.keys)
        name = name_key(index.get("PatientName").strip("*")).strip("=")
        if index.get("PatientID") == patient.patient_id or (name and name in patient.name_key):
            count += erase("query_trace WHERE id = ?", query.id)
    return count
