"""Who has viewed which patient, where [web] access_log says so."""

from typing import Any

from minris.access.context import Context
from minris.orders.lookup import patient_of_step
from minris.store.models import PatientView, database
from minris.store.rows import erase, fetch_rows, insert_row

MOST_VIEWS = 1_000_000  # lines of about 100 bytes
SAME_MINUTES = 10  # looking again within these is not a line of its own


def note_view(ctx: Context, what: str, row_id: int) -> None:
    """Note that somebody has opened a page about a patient.

    what    the rule of the page: /patient/* or one of /step/*
    row_id  of the patient, or of the step
    """
    patient_id = row_id if what.startswith("/patient/") else patient_of_step(row_id)
    sql = "SELECT 1 FROM patient_view WHERE patient_id = ? AND who = ? AND what = ? AND at > ?"
    who, since = ctx.actor.name, ctx.stamp(hours=-SAME_MINUTES / 60)
    if database.execute_sql(sql, (patient_id, who, what, since)).fetchone():
        return
    row = insert_row(PatientView, at=ctx.stamp(), who=who, address=ctx.actor.address, what=what,
                     patient_id=patient_id)  # fmt: skip
    erase("patient_view WHERE id <= ?", row - MOST_VIEWS)


def views_of(patient_id: int, most: int = 500) -> list[Any]:
    """Return who has viewed a patient, the newest first."""
    return fetch_rows(PatientView, "patient_id = ? ORDER BY id DESC LIMIT ?", patient_id, most)


def move_views(patient_id: int, into: int) -> None:
    """Keep the views of a patient who is merged into another record."""
    database.execute_sql(
        "UPDATE patient_view SET patient_id = ? WHERE patient_id = ?", (into, patient_id)
    )
