"""Notes of changes, before and after: to undo them for a day, and to tell who changed what."""

import base64
import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from minris.access.context import Context
from minris.dataset.elements import EMPTY, ElementIndex
from minris.dataset.resident import OTHER_IDS, identity_number, masked_number
from minris.standard.dictionary import SPACE_PADDED_VRS, tag_of, vr_of
from minris.standard.worklist import STEP_STATUS
from minris.store.models import UndoNote, ValueChange, database
from minris.store.rows import erase, insert_row

UNDO_HOURS = 24
Place = tuple[str, int]  # a table of _COLUMNS and a row id
_COLUMNS = {
    "patient": "patient_id, issuer_of_patient_id, patient_name, name_key, initials,"
    " patient_birth_date, created_at, data",
    "requested_procedure": "patient_id, accession_number, requested_procedure_id, data",
    "former_identity": "patient_id, former_id, at, merged, data",
    "scheduled_procedure_step": "status, arrived_at, started_at, ended_at, told_by, remark, data",
}


def row_as_noted(place: Place) -> dict[str, Any]:
    """The columns of a row, with `data` in Base64; empty if there is no such row.

    Of a step: the item of its sequence, and its state with the times as one part
    """
    table, row_id = place
    columns = _COLUMNS[table]
    row = database.execute_sql(f"SELECT {columns} FROM {table} WHERE id = ?", (row_id,)).fetchone()
    if not row:
        return {}
    parts = dict(zip(columns.split(", "), row, strict=True))
    data = ElementIndex(parts.pop("data"))
    if table == "scheduled_procedure_step":
        data = data.item("ScheduledProcedureStepSequence").without([STEP_STATUS])
        parts = {"state": parts}
    return parts | {"data": base64.b64encode(bytes(data)).decode()}


@contextlib.contextmanager
def can_be_undone(
    ctx: Context, what: str, about: str, places: Iterable[Place], always: bool = False
) -> Iterator[None]:
    """Note what a change does to some rows, so that it can be undone.

    what    the change, in words: a Message or a state
    about   the page that offers to undo it: `patient 3`, `step 7`
    places  the rows that may change: patients first, then what is theirs
    always  note it whoever makes the change, not only if it is a person
    """
    if not (always or ctx.actor.role):
        yield
        return
    before = {place: row_as_noted(place) for place in places}
    yield
    images = []
    for place, old in before.items():
        new = row_as_noted(place)
        changed = {part for part in old if old[part] != new.get(part)}
        images.append([*place, *({p: row[p] for p in row if p in changed} for row in (old, new))])
    if any(old for *_, old, _ in images):
        insert_row(UndoNote, about=about, what=what, who=ctx.actor.name, at=ctx.stamp(),
                   images=json.dumps(images))  # fmt: skip


MOST_CHANGES = 200  # told of one patient or exam, the newest
# What follows from other values, or is told in words of its own.
_NOT_TOLD = frozenset(map(tag_of, (
    "ScheduledStationName", "ScheduledProcedureStepLocation", "ScheduledProcedureStepStatus",
    "ScheduledProcedureStepDescription", "SpecificCharacterSet",
)))  # fmt: skip


def note_change(
    ctx: Context, about: str, what: str, old: ElementIndex = EMPTY, new: ElementIndex = EMPTY
) -> None:
    """Note that somebody changed a patient or an exam, and from which values to which.

    about  `patient 3`, `step 7`
    what   the change, in words to be translated
    """
    before, after = _told_values(old), _told_values(new)
    changed = [k for k in {**before, **after} if before.get(k, "") != after.get(k, "")]
    if (old is not EMPTY or new is not EMPTY) and not changed:
        return
    told = ({k: values[k] for k in changed if k in values} for values in (before, after))
    images = (json.dumps(values, ensure_ascii=False) for values in told)
    columns = dict(zip(("before", "after"), images, strict=True))
    insert_row(ValueChange, about=about, at=ctx.stamp(), who=ctx.actor.name, what=what, **columns)
    erase(
        "value_change WHERE about = ?1 AND id <= (SELECT id FROM value_change WHERE about = ?1"
        " ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        about,
        MOST_CHANGES,
    )


def _told_values(index: ElementIndex) -> dict[str, str]:
    """The values of a data set by keyword, short, the identity number masked."""
    found = {f"{tag:08X}": index.text(tag)[:200] for tag in index
             if vr_of(tag).encode() in SPACE_PADDED_VRS | {b"UI"} and tag not in _NOT_TOLD}  # fmt: skip
    if OTHER_IDS in index:
        found[f"{OTHER_IDS:08X}"] = masked_number(identity_number(index))
    return found
