"""The procedure catalogue."""

import re
from collections.abc import Mapping
from typing import Any

from minris.access.context import Context, audit
from minris.dataset.elements import EMPTY, ElementIndex, sequence_elements, text_elements
from minris.dataset.items import code_item
from minris.standard.dictionary import value_problem
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.worklist import OPEN_STEP_STATES, STEP_SEQUENCE
from minris.store.models import Procedure, Referrer, ScheduledProcedureStep
from minris.store.rows import erase, fetch_rows, first_row, insert_rows


def save_procedure(ctx: Context, row: Mapping[str, str]) -> None:
    """Create or change the procedure with this code.

    row      text by column: code and meaning are required; scheme, modality, ae_title, minutes,
             protocol_code, protocol_meaning and preparation are optional
    Refuses  0106
    """
    columns = {key: (row.get(key) or default).strip() for key, default in PROCEDURE_COLUMNS.items()}
    problems = []
    if not re.fullmatch("[0-9]{1,4}", columns["minutes"]):
        problems.append(Message("{value} is not a number of minutes", value=columns["minutes"]))
    for key, vr in PROCEDURE_VRS.items():
        words = value_problem(vr, columns[key]) if columns[key] else None
        if "\\" in columns[key]:
            words = Message("{value} may not have a backslash", value=columns[key])
        problems += [words] if words else []
    if not columns["code"] or not columns["meaning"]:
        problems.append(Message("A procedure needs a code and a meaning"))
    if problems:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(0, w) for w in problems])
    values = {**columns, "minutes": int(columns["minutes"]), "retired": 0}
    saved = Procedure.insert(**values)
    saved.on_conflict(conflict_target=[Procedure.code], update=values).execute()
    audit(ctx, "procedure saved", columns["code"])


PROCEDURE_VRS = {
    "code": "SH", "scheme": "SH", "meaning": "LO", "modality": "CS", "ae_title": "AE",
    "protocol_code": "SH", "protocol_meaning": "LO", "preparation": "LT",
}  # fmt: skip
PROCEDURE_COLUMNS = {
    "code": "", "scheme": "99MINRIS", "meaning": "", "modality": "", "ae_title": "",
    "minutes": "15", "protocol_code": "", "protocol_meaning": "", "preparation": "",
}  # fmt: skip


def code_in_use(code: str) -> bool:
    """Whether an open step has this procedure code."""
    steps = fetch_rows(ScheduledProcedureStep, f"status IN {tuple(sorted(OPEN_STEP_STATES))}")
    return any(
        ElementIndex(step.data).item("RequestedProcedureCodeSequence").get("CodeValue") == code
        for step in steps
    )


def retire_procedure(ctx: Context, code: str, delete: bool = False) -> None:
    """Retire a procedure, or delete it. Refuses 0112; 0110 to delete one that open steps use."""
    if not Procedure.get_or_none(Procedure.code == code):
        words = Message("There is no procedure {code}", code=code)
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, words)
    if delete and code_in_use(code):
        words = Message("{code} is used by open exams: it can only be retired", code=code)
        raise Refusal(Status.PROCESSING_FAILURE, words)
    if delete:
        Procedure.delete().where(Procedure.code == code).execute()
    else:
        Procedure.update(retired=1).where(Procedure.code == code).execute()
    audit(ctx, "procedure deleted" if delete else "procedure retired", code)


def find_procedure(text: str) -> Any | None:
    """The procedure with this code or meaning that is not retired, or None."""
    where = "retired = 0 AND (code = ? OR meaning = ?) ORDER BY code LIMIT 1"
    return first_row(Procedure, where, text, text)


def apply_procedure(data: bytes) -> bytes:
    """A worklist item, completed from the catalogue: code, modality, station and protocol."""
    index = ElementIndex(data)
    procedure = find_procedure(index.get("RequestedProcedureDescription"))
    if not procedure:
        return data
    code, protocol = code_item(procedure.code, procedure.meaning, procedure.scheme), EMPTY
    if procedure.protocol_code:
        meaning = procedure.protocol_meaning or procedure.protocol_code
        item = code_item(procedure.protocol_code, meaning, procedure.scheme)
        protocol = sequence_elements(ScheduledProtocolCodeSequence=[item])
    defaults = text_elements(
        Modality=procedure.modality,
        ScheduledStationAETitle=procedure.ae_title,
        ScheduledProcedureStepDescription=procedure.meaning,
    )
    given = index.items(STEP_SEQUENCE) or [EMPTY]
    steps = [step.merged(defaults, protocol, step.with_values()) for step in given]
    named = text_elements(RequestedProcedureDescription=procedure.meaning)
    sequences = sequence_elements(
        RequestedProcedureCodeSequence=[code], ScheduledProcedureStepSequence=steps
    )
    return bytes(index.merged(named, sequences))


def all_procedures() -> list[Any]:
    """All procedures, retired ones last."""
    return fetch_rows(Procedure, "1 = 1 ORDER BY retired, code")


def procedures_in_use() -> list[Any]:
    """The procedures that are not retired."""
    return fetch_rows(Procedure, "retired = 0 ORDER BY meaning")


MOST_REFERRERS = 500  # kept, those used last


def note_referrer(ctx: Context, name: str) -> None:
    """Remember a referring physician (PN), to be offered when the next order is typed."""
    if not name.strip("^= "):
        return
    columns = "referrer (name, used_at) VALUES ON CONFLICT (name) DO UPDATE SET used_at = excluded.used_at"
    insert_rows(columns, [(name, ctx.stamp())])
    erase(
        "referrer WHERE used_at < (SELECT used_at FROM referrer ORDER BY used_at DESC"
        " LIMIT 1 OFFSET ?)",
        MOST_REFERRERS,
    )


def referrers() -> list[str]:
    """The referring physicians of the last orders (PN), by name."""
    newest = fetch_rows(Referrer, "1 = 1 ORDER BY used_at DESC LIMIT ?", MOST_REFERRERS)
    return sorted(one.name for one in newest)
