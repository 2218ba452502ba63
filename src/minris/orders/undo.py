"""What a person has done is taken back, within a day."""

import base64
import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from minris.access.context import Context, audit
from minris.dataset.elements import ElementIndex, text_elements
from minris.orders.lookup import step_row
from minris.orders.steps import STAMP_OF_STATE, enter_state, refold, refold_open
from minris.standard.status import Message, Refusal, Status
from minris.standard.worklist import STEP_STATUS
from minris.store.models import Patient, ScheduledProcedureStep, UndoNote, database
from minris.store.rows import erase, fetch_rows, insert_row, update_row

UNDO_HOURS = 24
STAMPS_BY_THEN = {  # the times that an exam has in a state, beside that of its registration
    "ARRIVED": ("arrived_at",),
    "READY": ("arrived_at",),
    "STARTED": ("arrived_at", "started_at"),
}
_IMAGE_COLUMNS = {
    "patient": "patient_id, issuer_of_patient_id, patient_name, name_key, initials,"
    " patient_birth_date, data, created_at, updated_at",
    "requested_procedure": "patient_id, accession_number, requested_procedure_id, data",
    "scheduled_procedure_step": "status, data",
}
Place = tuple[str, int]  # a table of _IMAGE_COLUMNS and a row


def _image(place: Place) -> dict[str, str] | None:
    """A row as it is; of a step its item, and its state beside. None where there is none."""
    table, row_id = place
    columns = _IMAGE_COLUMNS[table]
    row = database.execute_sql(f"SELECT {columns} FROM {table} WHERE id = ?", (row_id,)).fetchone()
    if not row:
        return None
    image = dict(zip(columns.split(", "), row, strict=True))
    if table == "scheduled_procedure_step":
        item = ElementIndex(image["data"]).item("ScheduledProcedureStepSequence")
        image["data"] = item.without([STEP_STATUS])
    return image | {"data": base64.b64encode(bytes(image["data"])).decode()}


def _same_image(one: Mapping[str, str] | None, other: Mapping[str, str] | None) -> bool:
    """Whether a row is as it was, but for the state of a step."""
    return (one and {**one, "status": ""}) == (other and {**other, "status": ""})


@contextlib.contextmanager
def can_be_undone(
    ctx: Context, what: Message, about: str, places: Iterable[Place]
) -> Iterator[None]:
    """Keep rows as they are before and after what a person does to them, for a day."""
    if not ctx.actor.role:
        yield
        return
    before = {place: _image(place) for place in places}
    yield
    images = [[*place, old, new] for place, old in before.items() if (new := _image(place)) != old]
    if images:
        insert_row(UndoNote, about=about, what=what, who=ctx.actor.name, at=ctx.stamp(),
                   images=json.dumps(images))  # fmt: skip


def undoable(ctx: Context, about: str) -> tuple[Any, Message | None]:
    """The last change of `patient 3` or `step 7` within a day, and why it cannot be taken back.

    None and words where there is none
    """
    where = "about = ? AND at >= ? ORDER BY id DESC LIMIT 1"
    found = fetch_rows(UndoNote, where, about, ctx.stamp(hours=-UNDO_HOURS))
    if not found:
        return None, Message("There is nothing to take back")
    [note] = found
    images = json.loads(note.images)
    if not all(_same_image(_image((table, row)), after) for table, row, _, after in images):
        return note, Message("It was changed again since, and cannot be taken back")
    return note, _undo_problem(note, images)


def _undo_problem(note: Any, images: list[Any]) -> Message | None:
    """Why rows cannot be as they were: somebody else has the number, or an exam went on."""
    own = [row for table, row, *_ in images if table == "patient"]
    for table, row, before, after in images:
        if table == "patient" and before["patient_id"] != (after or {}).get("patient_id"):
            others = fetch_rows(
                Patient,
                "patient_id = ? AND issuer_of_patient_id = ? AND id NOT IN"
                f" ({', '.join('?' * len(own))})",
                before["patient_id"], before["issuer_of_patient_id"], *own,
            )  # fmt: skip
            if others:
                return Message("{value} belongs to another patient", value=before["patient_id"])
        if table == "requested_procedure":
            number, whose = before["accession_number"], before["patient_id"]
            taken = (
                "SELECT 1 FROM requested_procedure WHERE accession_number = ? AND patient_id <> ?"
                " AND id <> ? AND accession_number NOT IN ('', ?)"
            )
            values = number, whose, row, after["accession_number"]
            if database.execute_sql(taken, values).fetchone():
                return Message("{value} belongs to another patient", value=number)
            if whose not in own and not Patient.get_or_none(Patient.id == whose):
                return Message("It was changed again since, and cannot be taken back")
    rows_: dict[str, list[str]] = {table: ["0"] for table in _IMAGE_COLUMNS}
    for table, row, *_ in images:
        rows_[table].append(str(row))
    of_patient, of_order, of_step = map(", ".join, rows_.values())
    begun = (
        "SELECT 1 FROM scheduled_procedure_step s JOIN requested_procedure r ON r.id = s.procedure_id"
        f" WHERE (r.patient_id IN ({of_patient}) OR r.id IN ({of_order}) OR s.id IN ({of_step}))"
        " AND (s.started_at >= ? OR s.ended_at >= ?)"
    )
    if database.execute_sql(begun, (note.at, note.at)).fetchone():
        return Message("An exam has gone on since: it cannot be taken back")
    return None


def undo(ctx: Context, about: str) -> None:
    """Take back the last change of a patient or an exam, within a day.

    Refuses  0110 where there is none, or what it changed has changed again, gone on, or belongs to
             somebody else
    """
    with database.atomic():
        note, problem = undoable(ctx, about)
        if problem:
            raise Refusal(Status.PROCESSING_FAILURE, problem)
        items, patients = [], set()
        for table, row_id, before, after in json.loads(note.images):
            columns = before | {"data": base64.b64decode(before["data"])}
            if table == "scheduled_procedure_step":
                items.append((row_id, columns["data"], before["status"], after["status"]))
            else:
                _restore(table, row_id, columns)
                patients.add(row_id if table == "patient" else before["patient_id"])
        for item in items:
            _restore_item(*item)
        for patient in Patient.select().where(Patient.id.in_(patients)):
            refold_open(patient)
        erase("undo_note WHERE id = ?", note.id)
        audit(ctx, "change taken back", about, f"{note.what}, {note.at}")


def _restore(table: str, row_id: int, columns: Mapping[str, Any]) -> None:
    """Write a row as it was, anew where it is gone."""
    names, places = ", ".join(columns), ", ".join("?" * len(columns))
    values = ", ".join(f"{name} = excluded.{name}" for name in columns)
    if table == "patient":
        sql = f"INSERT INTO patient (id, {names}) VALUES (?, {places}) ON CONFLICT (id) DO UPDATE SET {values}"
        database.execute_sql(sql, (row_id, *columns.values()))
    else:
        values = ", ".join(f"{name} = ?" for name in columns)
        database.execute_sql(
            f"UPDATE {table} SET {values} WHERE id = ?", (*columns.values(), row_id)
        )


def _restore_item(row_id: int, item: bytes, old: str, new: str) -> None:
    """Give an exam its item as it was, and its state if the change had changed that."""
    step = ScheduledProcedureStep.get_by_id(row_id)
    state = old if step.status == new else step.status
    status = text_elements(ScheduledProcedureStepStatus=state)
    procedure = step.procedure
    refold(step, procedure.patient, procedure, ElementIndex(item).merged(status))


def can_take_back(ctx: Context, step: Any) -> bool:
    """Whether the last thing that a person did to an exam can be taken back."""
    return bool(step.state_before) and step.changed_at >= ctx.stamp(hours=-UNDO_HOURS)


def take_back(ctx: Context, row_id: int) -> None:
    """Undo the last thing that a person did to an exam, within a day. Refuses 0112, 0110."""
    with database.atomic():
        step = step_row(row_id)
        if not can_take_back(ctx, step):
            raise Refusal(Status.PROCESSING_FAILURE, Message("There is nothing to take back"))
        old, kept = step.status, STAMPS_BY_THEN.get(step.state_before, ())
        stamps = {name: getattr(step, name) if name in kept else ""
                  for name in STAMP_OF_STATE.values()}  # fmt: skip
        enter_state(ctx, step, step.state_before)
        update_row(ScheduledProcedureStep, row_id, **stamps)
        audit(ctx, "step taken back", step.study_instance_uid, f"{old} -> {step.status}")
