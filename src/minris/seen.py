"""What a form or button was made from, compared with what is there now."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from minris.access.context import Context
from minris.standard.status import Message, Refusal, Status
from minris.standard.worklist import STEP_TRANSITIONS
from minris.store.models import ScheduledProcedureStep, database
from minris.store.rows import first_row
from minris.store.writer import Core

Thing = tuple[str, Any]  # a key of _STATES, and the row id or name
# The state of each kind of thing, as far as an action on it depends on that. The study tells a
# row from a later one with the same number.
_STATES = {
    "step": "SELECT status, study_instance_uid FROM scheduled_procedure_step WHERE id = ?",
    "undo": "SELECT max(id) FROM undo_note WHERE about = ?",
    "patient": "SELECT patient_id, issuer_of_patient_id, patient_name, patient_birth_date"
    " FROM patient WHERE id = ?",
    "record": "SELECT hex(data) FROM patient WHERE id = ?",
    "performed": "SELECT sop_instance_uid, settled, (SELECT group_concat(scheduled_id || patient) FROM"
    " performed_scheduled_step l WHERE l.performed_id = p.id)"
    " FROM performed_procedure_step p WHERE id = ?",
    "workitem": "SELECT state, performer, readiness, declined, (SELECT max(id) FROM audit"
    " WHERE about = sop_instance_uid AND what = 'workitem assigned')"
    " FROM workitem WHERE sop_instance_uid = ?",
    "user": "SELECT id, role FROM user WHERE name = ?",
    "token": "SELECT role, ae_titles, created_at FROM token WHERE name = ?",
    "device": "SELECT id, settings FROM device_record WHERE name = ?",
    "settings": "SELECT group_concat(name || value, char(10)) FROM"
    " (SELECT * FROM mark WHERE instr(name, ?) = 1 ORDER BY name)",
    "procedure": "SELECT scheme, meaning, modality, ae_title, minutes, protocol_code,"
    " protocol_meaning, retired FROM procedure WHERE code = ?",
}  # fmt: skip
# The audit lines about a thing; those of which the audit log has its name need no row.
_LINES = {
    "step": "SELECT a.* FROM scheduled_procedure_step s JOIN audit a ON"
    " a.about = s.study_instance_uid AND a.what IN ('step', 'rescheduled')"
    " AND (a.detail = s.scheduled_procedure_step_id"
    " OR instr(a.detail, s.scheduled_procedure_step_id || ' ') = 1)"
    " WHERE s.id = ?1 UNION ALL SELECT * FROM audit WHERE about = 'step ' || ?1",
    "patient": "SELECT a.* FROM patient p JOIN audit a ON a.about = p.patient_id WHERE p.id = ?",
    "performed": "SELECT * FROM audit WHERE what LIKE 'performed step%' AND about IN"
    " (?1, (SELECT sop_instance_uid FROM performed_procedure_step WHERE id = ?1))",
}


class Change(NamedTuple):
    """The last change of a thing: time (as stored), who, and what, to be translated."""

    at: str
    who: str
    what: str


class ChangedMeanwhile(Refusal):
    """The refusal (0110) of what was decided from a state that is no more: a person is asked.

    about   the thing
    event   what was to be done
    mark    that of now, for those who go on all the same; empty if that cannot be done any more
    change  the last change, or None
    """

    def __init__(self, about: Thing, event: str, mark: str, change: Change | None) -> None:
        super().__init__(Status.PROCESSING_FAILURE, Message("It was changed meanwhile"))
        self.about, self.event, self.mark, self.change = about, event, mark, change


def mark_of(*state: object) -> str:
    """The mark of a state, short enough for the address of a button."""
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:12]


def state_mark(about: Thing) -> str:
    """The mark of the present state of a thing; that of no state if it is not there."""
    kind, key = about
    return mark_of(*(database.execute_sql(_STATES[kind], (key,)).fetchone() or ()))


def last_change(about: Thing) -> Change | None:
    """The newest audit line about a thing; of an exam the state it has got."""
    kind, key = about
    if kind == "undo":
        kind, _, key = key.partition(" ")
    lines = _LINES.get(kind, "SELECT * FROM audit WHERE about = ?")
    found = database.execute_sql(
        f"SELECT at, who, what, detail FROM ({lines}) ORDER BY id DESC LIMIT 1", (key,)
    ).fetchone()
    if not found:
        return None
    at, who, what, detail = found
    if what == "step":
        what = detail.partition(" ")[2]
    return Change(at, who.partition("@")[0], what)


def check_seen(about: Thing, seen: str, event: str) -> None:
    """Refuse (ChangedMeanwhile) what was decided from another state than the present one.

    What leaves the state of an exam as it is now does no harm, and is let pass: a new time for one
    who has arrived meanwhile, or a second click.

    seen   the mark that the form or button carried; empty for one that carried none
    event  of an exam: an event of STEP_TRANSITIONS; else free
    """
    now = state_mark(about)
    if not seen or seen == now:
        return
    if about[0] == "step":
        step = first_row(ScheduledProcedureStep, "id = ?", about[1])
        after = STEP_TRANSITIONS.get((event, step.status if step else ""))
        if not step or after == step.status:  # the call itself says that it is not there
            return
        if isinstance(after, Status):
            now = ""
    raise ChangedMeanwhile(about, event, now, last_change(about))


def as_seen(
    ctx: Context, decided: Iterable[tuple[Thing, str, str]], core: Core, *arguments: Any
) -> Any:
    """Call a core function in the store thread if all things are as they were seen.

    decided  things, with mark and event as for check_seen
    """
    for about, seen, event in decided:
        check_seen(about, seen, event)
    return core(ctx, *arguments)
