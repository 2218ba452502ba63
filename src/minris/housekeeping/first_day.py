"""The first day: what is done of it, as the store and the settings show."""

from typing import NamedTuple

from minris.access.context import Context, audit
from minris.access.users import has_first_password
from minris.housekeeping.simulated import SIMULATED, erase_simulated
from minris.store.models import database
from minris.store.rows import get_mark, set_mark

CALLED_MARK, TRIED_MARK, PUT_AWAY_MARK = "first call", "first day tried", "first day put away"


class FirstDay(NamedTuple):
    """Whether each line of the list is done, by what is there and never by a click."""

    clinic: bool
    password: bool
    machine: bool
    people: bool
    backups: bool
    tried: bool

    @property
    def left(self) -> int:
        """The number of lines that are not done."""
        return len(self) - sum(self)


def first_day(ctx: Context) -> FirstDay:
    """What is done of the first day."""
    named = (("clinic", "name"), ("clinic", "timezone"))
    return FirstDay(
        clinic=all(name in ctx.config.sources for name in named),
        password=not has_first_password(),
        machine=has_called(),
        people=_there_is("user LIMIT 1 OFFSET 1"),
        backups=bool(ctx.config.second_backup_folder),
        tried=bool(get_mark(TRIED_MARK)) or _there_is("step_seen"),
    )


def _there_is(rows: str) -> bool:
    limit = "" if "LIMIT" in rows else " LIMIT 1"
    return database.execute_sql(f"SELECT 1 FROM {rows}{limit}").fetchone() is not None


def has_called() -> bool:
    """Whether a machine has ever called this system."""
    return bool(get_mark(CALLED_MARK)) or any(
        map(_there_is, ("query_trace", "performed_procedure_step"))
    )


def note_first_call(ctx: Context, ae_title: str) -> None:
    """Keep that a machine has called."""
    if not get_mark(CALLED_MARK):
        set_mark(CALLED_MARK, f"{ctx.stamp()} {ae_title}")


def list_leads(ctx: Context) -> bool:
    """Whether an administrator sees the list in place of the board: nobody works with it yet.

    No machine has called, no patient is registered but simulated ones, the list is not put away.
    """
    patients = f"patient WHERE patient_id NOT LIKE '{SIMULATED}-%'"
    return not (get_mark(PUT_AWAY_MARK) or has_called() or _there_is(patients))


def lines_left(ctx: Context) -> int:
    """The number of lines to do; 0 also if the list is put away."""
    return 0 if get_mark(PUT_AWAY_MARK) else first_day(ctx).left


def put_list_away(ctx: Context) -> None:
    """Show the list no more, done or not."""
    set_mark(PUT_AWAY_MARK, ctx.stamp())
    audit(ctx, "first day put away", "setting")


class SimulatedPatient(NamedTuple):
    """A simulated patient who is on a worklist: whose, and when that machine was first told of it."""

    patient_id: str
    ae_title: str
    seen_at: str


def simulated_patients() -> list[SimulatedPatient]:
    """The simulated patients that are on a worklist."""
    rows = database.execute_sql(
        "SELECT s.patient_id, a.ae_title, coalesce(max(n.at), '') FROM scheduled_procedure_step s"
        " JOIN scheduled_station a ON a.step_id = s.id LEFT JOIN step_seen n ON n.step_id = s.id"
        " WHERE s.patient_id >= ? AND s.patient_id < ? GROUP BY s.id ORDER BY s.id",
        (f"{SIMULATED}-", f"{SIMULATED}."),
    )
    return [SimulatedPatient(*row) for row in rows]


def take_test_patient_away(ctx: Context, patient_id: str) -> None:
    """Erase a simulated patient; keep that a machine was told of it. Refuses 0112."""
    if any(one.seen_at for one in simulated_patients() if one.patient_id == patient_id):
        set_mark(TRIED_MARK, ctx.stamp())
    erase_simulated(ctx, patient_id)
