"""Export of the whole database, and its import."""

import collections
import datetime
import json
from collections.abc import Callable, Iterable
from typing import Any

import peewee

from minris import __version__
from minris.access.context import Context
from minris.access.devices import save_device, stored_devices
from minris.dataset.checks import check_uid, exists_already
from minris.dataset.dicom_json import from_json, to_json
from minris.dataset.elements import ElementIndex
from minris.interchange.files import numbered
from minris.mpps.linking import insert_link
from minris.orders.catalogue import PROCEDURE_COLUMNS, retire_procedure, save_procedure
from minris.orders.items import fold, patient_columns, step_columns
from minris.orders.lookup import find_step
from minris.orders.patients import find_patient
from minris.orders.scheduling import schedule
from minris.orders.steps import update_patient, write_patient
from minris.standard.mpps import MPPS_STATUS
from minris.standard.status import Refusal, Status
from minris.standard.uids import WELL_KNOWN_UPS
from minris.standard.ups import EVENT_TYPES, TRANSACTION_UID, UPS_STATES
from minris.standard.worklist import OPEN_STEP_STATES
from minris.store.models import (
    DeviceRecord,
    GlobalSubscription,
    Patient,
    PerformedProcedureStep,
    Procedure,
    RequestedProcedure,
    ScheduledProcedureStep,
    Stored,
    Workitem,
    WorkitemEvent,
    database,
)
from minris.store.rows import fetch_rows, first_version, insert_row, insert_rows, update_row
from minris.ups.checks import workitem_columns, workitem_problems
from minris.ups.events import check_receiver
from minris.ups.search import filter_search, stored_workitem
from minris.ups.subscriptions import enter_subscriptions
from minris.ups.workitems import is_purged

STAMPS = ("created_at", "updated_at")
STEP_COLUMNS_KEPT = ("arrived_at", "started_at", "ended_at", "remark", "told_by")
EVENT_COLUMNS_KEPT = ("event_type", "created_at", "who")
WORKITEM_COLUMNS_KEPT = ("performer", "by_person", "declined", *STAMPS, "claimed_at", "ended_at")


def _columns_of(row: Any, columns: Iterable[str]) -> dict[str, Any]:
    return {column: getattr(row, column) for column in columns}


def _exported(
    model: type[Stored],
    columns: Iterable[str],
    where: str = "1 = 1",
    **others: Callable[[Any], Any],
) -> list[dict[str, Any]]:
    """The rows of a model: data set in the DICOM JSON Model, some columns, and others by name."""
    return [
        {"data": to_json(ElementIndex(row.data))}
        | _columns_of(row, columns)
        | {name: made_of(row) for name, made_of in others.items()}
        for row in fetch_rows(model, f"{where} ORDER BY id")
    ]


def _places(model: type[Stored]) -> dict[int, int]:
    """The place in the export of each row of a model, by row id."""
    return {row.id: place for place, row in enumerate(model.select(model.id).order_by(model.id))}


def export_store() -> dict[str, Any]:
    """The whole database as JSON, data sets in the DICOM JSON Model, for `import_export`."""
    patient_at, requested_at = _places(Patient), _places(RequestedProcedure)
    links = collections.defaultdict(list)
    for performed, *link in database.execute_sql(
        "SELECT l.performed_id, s.study_instance_uid, s.scheduled_procedure_step_id, l.found_by,"
        " l.status_before, l.patient, hex(l.told) FROM performed_scheduled_step l"
        " JOIN scheduled_procedure_step s ON s.id = l.scheduled_id"
    ):
        links[performed].append(link)
    return {
        "minris": __version__,
        "patients": _exported(Patient, STAMPS),
        "requested": _exported(RequestedProcedure, (), patient=lambda row: patient_at[row.patient_id]),
        "worklist": _exported(ScheduledProcedureStep, STEP_COLUMNS_KEPT,
                              requested=lambda row: requested_at[row.procedure_id]),
        "performed": _exported(PerformedProcedureStep, (*STAMPS, "remark", "settled"),
                               uid=lambda row: row.sop_instance_uid, links=lambda row: links[row.id]),
        "devices": [
            {"name": row.name, "settings": json.loads(row.settings)}
            for row in fetch_rows(DeviceRecord, "1 = 1 ORDER BY name")
        ],
        "procedures": [
            _columns_of(row, (*PROCEDURE_COLUMNS, "retired"))
            for row in fetch_rows(Procedure, "1 = 1 ORDER BY code")
        ],
    } | export_workitems()  # fmt: skip


def export_workitems() -> dict[str, Any]:
    """The workitems with history and subscriptions, without Transaction UIDs."""
    purged = "SELECT sop_instance_uid, purged_at FROM purged_workitem ORDER BY sop_instance_uid"
    subscriptions = (
        "SELECT w.sop_instance_uid, s.ae_title, s.deletion_lock, s.created_at FROM subscription s"
        " JOIN workitem w ON w.id = s.workitem_id ORDER BY w.id, s.ae_title"
    )
    return {
        "workitems": _exported(Workitem, WORKITEM_COLUMNS_KEPT),
        "workitem_events": _exported(WorkitemEvent, EVENT_COLUMNS_KEPT, "initial = 0",
                                     uid=lambda row: row.sop_instance_uid),
        "purged_workitems": list(map(list, database.execute_sql(purged))),
        "subscriptions": list(map(list, database.execute_sql(subscriptions))),
        "global_subscriptions": [
            {"keys": to_json(ElementIndex(row.keys))}
            | _columns_of(row, ("ae_title", "uid", "deletion_lock", "created_at"))
            for row in fetch_rows(GlobalSubscription, "1 = 1 ORDER BY ae_title, uid")
        ],
    }  # fmt: skip


def import_workitems(ctx: Context, content: dict[str, Any]) -> None:
    """Import the result of export_workitems. Refuses 0111, 0106.

    Sends no events. A performer's claim is lost: its workitem must be ended and created again.
    """
    ids = dict(_import_workitem(ctx, one) for one in content.get("workitems", []))
    for one in content.get("workitem_events", []):
        _import_happening(one)
    purged = [(uid, at) for uid, at in content.get("purged_workitems", [])]
    check_stamps(at for _, at in purged)
    insert_rows(
        "purged_workitem (sop_instance_uid, purged_at) VALUES ON CONFLICT DO NOTHING", purged
    )
    _import_subscriptions(ctx, content, ids)


def _import_workitem(ctx: Context, given: dict[str, Any]) -> tuple[str, int]:
    """Import a workitem; return its UID and row id."""
    index = _index_of(given).without([TRANSACTION_UID])
    uid, stored = index.get("SOPInstanceUID"), {key: given[key] for key in WORKITEM_COLUMNS_KEPT}
    check_uid(uid)
    if stored_workitem(uid) or is_purged(uid):
        raise exists_already(uid)
    if problems := workitem_problems(ctx, index):
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
    columns = workitem_columns(ctx, index)
    if columns["state"] not in UPS_STATES:
        raise ValueError(columns["state"])
    check_stamps(stamp for key, stamp in stored.items() if key.endswith("_at"))
    row_id = insert_row(
        Workitem,
        sop_instance_uid=uid,
        transaction_uid=ctx.new_uid(),
        data=bytes(index),
        version=first_version(),
        **columns | stored,
    )
    return uid, row_id


def _import_happening(given: dict[str, Any]) -> None:
    if given["event_type"] not in EVENT_TYPES.values():
        raise ValueError(given["event_type"])
    check_stamps([given["created_at"]])
    insert_row(
        WorkitemEvent,
        sop_instance_uid=given["uid"],
        data=from_json(given["data"]),
        **{key: given[key] for key in EVENT_COLUMNS_KEPT},
    )


def _import_subscriptions(ctx: Context, content: dict[str, Any], ids: dict[str, int]) -> None:
    told = [(ids[uid], ae, lock, at) for uid, ae, lock, at in content.get("subscriptions", [])]
    globally = [(one["ae_title"], one["uid"], one["deletion_lock"], from_json(one["keys"]),
                 one["created_at"]) for one in content.get("global_subscriptions", [])]  # fmt: skip
    for _, uid, _, keys, _ in globally:
        if uid not in WELL_KNOWN_UPS:
            raise ValueError(uid)
        if keys:
            filter_search(keys, ctx.config.zone)
    for ae_title, lock in (*(row[1:3] for row in told), *(row[0:3:2] for row in globally)):
        check_receiver(ae_title)
        if lock not in (0, 1):
            raise ValueError(lock)
    check_stamps(row[-1] for row in (*told, *globally))
    enter_subscriptions(told)
    insert_rows(
        "global_subscription (ae_title, uid, deletion_lock, keys, created_at) VALUES"
        " ON CONFLICT DO NOTHING",
        globally,
    )


def check_stamps(stamps: Iterable[str]) -> None:
    """Raise ValueError unless all are times as stored, or empty."""
    for stamp in stamps:
        if stamp:
            datetime.datetime.fromisoformat(stamp)
        elif stamp != "":
            raise ValueError(stamp)


def import_export(ctx: Context, content: dict[str, Any]) -> str:
    """Import the result of export_store, all or nothing; return a summary. Refuses as `schedule`."""
    with database.atomic():
        patients = [(_import_patient(ctx, one), one) for one in content.get("patients", [])]
        steps = []
        for number, step in enumerate(content.get("worklist", []), 1):
            given = from_json(step["data"])
            try:
                [data] = schedule(ctx, _as_of_now(content, step, given), "separate", kept=True)
            except Refusal as refusal:
                raise numbered(refusal, number, "worklist") from None
            known = step_columns(ElementIndex(data))
            row = find_step(known["study_instance_uid"], known["scheduled_procedure_step_id"])
            facts = {key: step.get(key, "") for key in STEP_COLUMNS_KEPT}
            update_row(ScheduledProcedureStep, row.id, **facts)
            if row.status not in OPEN_STEP_STATES:
                steps.append((row.id, given))
        for patient, one in patients:  # ended steps have an older state of the patient
            if patient:
                write_patient(patient, _index_of(one), one["updated_at"])
        for row_id, given in steps:
            columns = step_columns(ElementIndex(given))
            update_row(ScheduledProcedureStep, row_id, data=given, **columns)
        for performed in content.get("performed", []):
            _import_performed(performed)
        known = {device.name for device in stored_devices()}
        for device in content.get("devices", []):
            name = device["name"]
            save_device(ctx, name, device["settings"], name if name in known else "")
        for procedure in content.get("procedures", []):
            save_procedure(ctx, {key: str(procedure.get(key, "")) for key in PROCEDURE_COLUMNS})
            if procedure.get("retired"):
                retire_procedure(ctx, procedure["code"])
        import_workitems(ctx, content)
    counts = (f"{len(content.get(key, []))} {key}" for key in
              ("worklist", "performed", "devices", "procedures", "workitems"))  # fmt: skip
    return ", ".join(counts)


def _as_of_now(content: dict[str, Any], step: dict[str, Any], data: bytes) -> bytes:
    """A step's data set with the present data of its patient and procedure."""
    if "requested" not in step:
        return data
    requested = content["requested"][step["requested"]]
    patient = content["patients"][requested["patient"]]
    item = ElementIndex(data).item("ScheduledProcedureStepSequence")
    return bytes(fold(_index_of(patient), _index_of(requested), item))


def _index_of(given: dict[str, Any]) -> ElementIndex:
    return ElementIndex(from_json(given["data"]))


def _import_patient(ctx: Context, given: dict[str, Any]) -> Patient | None:
    """Create the patient of an export and return it, or update a known one and return None."""
    index = _index_of(given)
    known = find_patient(index, "separate")
    if known:
        update_patient(ctx, known, index)
        return None
    return Patient.create(**patient_columns(index), **{key: given[key] for key in STAMPS})


def _import_performed(performed: dict[str, Any]) -> None:
    data = from_json(performed["data"])
    index = ElementIndex(data)
    check_uid(performed["uid"])
    try:
        row_id = insert_row(
            PerformedProcedureStep,
            sop_instance_uid=performed["uid"],
            status=index.text(MPPS_STATUS),
            performed_station_ae_title=index.get("PerformedStationAETitle"),
            data=data,
            **{key: performed[key] for key in STAMPS},
            **{key: performed.get(key, "") for key in ("remark", "settled")},
        )
    except peewee.IntegrityError:
        raise exists_already(performed["uid"]) from None
    for study, step_id, found_by, before, *doubt in performed.get("links", []):
        patient, told = doubt or ("", "")
        step = find_step(study, step_id)
        insert_link(row_id, step.id, found_by, before, patient, bytes.fromhex(told))
