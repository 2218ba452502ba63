"""History: the timeline of an exam, and daily statistics."""

import datetime
import json
from typing import Any, NamedTuple

from minris.dataset.elements import ElementIndex
from minris.orders.lookup import step_row
from minris.standard.commitment import RETRIEVABLE
from minris.standard.status import Message
from minris.standard.worklist import STEP_STATES, TOLD_BY
from minris.store.models import Audit, RequestedProcedure, ValueChange, database
from minris.store.rows import fetch_rows, first_row


class Moment(NamedTuple):
    """One entry of a timeline: time (as stored), what happened, to what, by whom.

    changes  tag, value before and value after of each attribute that was changed
    """

    at: str
    what: Message
    about: str = ""
    who: str = ""
    changes: tuple[tuple[int, str, str], ...] = ()


# What a completed workitem means for the visit, by its code (PS3.16 CID 9231).
WORKITEM_MOMENTS = {
    "110001": Message("Images processed"),
    "3D": Message("Images processed"),
    "110003": Message("Computer aided diagnosis done"),
    "110004": Message("Computer aided detection done"),
    "110005": Message("Read"),
    "110006": Message("Report written down"),
    "110007": Message("Report verified"),
    "CD": Message("CD written"),
}


def visit_of(row_id: int) -> list[Moment]:
    """The timeline of an exam in order, from registration to its workitems. Refuses 0112."""
    step = step_row(row_id)
    lines = _lines_of(step)
    told = TOLD_BY.get(step.told_by, step.told_by)
    found = [
        Moment(step.created_at, Message("Registered"), who=who_registered(step)),
        *(
            Moment(at, Message("First shown to {ae}", ae=ae))
            for ae, at in database.execute_sql(
                "SELECT ae_title, at FROM step_seen WHERE step_id = ?", (row_id,)
            )
        ),
        *(
            Moment(getattr(step, f"{state.lower()}_at"), words, who=_who(lines, state))
            for state, words in STATE_MOMENTS.items()
            if state in STAMPED_STATES
        ),
        Moment(step.ended_at, Message(step.status), str(told)),
        *_states_before(step, lines),
        *changes_of(f"step {row_id}", step.created_at),
    ]
    patient = first_row(RequestedProcedure, "id = ?", step.procedure_id).patient_id
    found += changes_of(f"patient {patient}", step.created_at)
    where = "at >= ? AND what = 'reason' AND about = ? AND instr(detail, ?) = 1"
    prefix = f"{step.scheduled_procedure_step_id}: "
    found += [
        Moment(line.at, Message("Reason"), line.detail.removeprefix(prefix), _by(line))
        for line in fetch_rows(Audit, where, step.created_at, step.study_instance_uid, prefix)
    ]
    found += _images_of(step.study_instance_uid) + _workitems_of_order(step.accession_number)
    return sorted((one for one in found if one.at), key=lambda one: one.at)


def _images_of(*study: str) -> list[Moment]:
    """When images of a study came to the archive, and who was told so."""
    first, last, count = database.execute_sql(
        "SELECT coalesce(min(at), ''), coalesce(max(at), ''), count(DISTINCT sop_instance_uid)"
        f" FROM availability WHERE study_instance_uid = ? AND availability IN {RETRIEVABLE}",
        study,
    ).fetchone()
    found = [Moment(first, Message("First image in the archive"))]
    if count > 1:
        found.append(Moment(last, Message("{count} images in the archive", count=count)))
    found += [
        Moment(
            at, Message("{ae} was told that {count} images are in the archive", ae=ae, count=safe)
        )
        for at, ae, safe in database.execute_sql(
            "SELECT c.told_at, c.requester, count(DISTINCT i.id) FROM commitment c JOIN commitment_instance i"
            " ON i.commitment_id = c.id JOIN availability a ON a.sop_instance_uid ="
            " i.sop_instance_uid WHERE a.study_instance_uid = ? AND i.verdict = '0000'"
            " AND c.told_at <> '' GROUP BY c.id",
            study,
        )
    ]
    return found


def _workitems_of_order(accession: str) -> list[Moment]:
    """What was done with the images of an order afterwards."""
    found = []
    workitems = database.execute_sql(
        "SELECT label, state, created_at, claimed_at, ended_at, performer, data FROM workitem"
        " WHERE accession_number = ? AND accession_number <> ''",
        (accession,),
    )
    for label, state, created, claimed, ended, performer, data in workitems:
        code = ElementIndex(data).item("ScheduledWorkitemCodeSequence").get("CodeValue")
        words = Message("Workitem ended: {state}", state=Message(state))
        if state == "COMPLETED" and code in WORKITEM_MOMENTS:
            words = WORKITEM_MOMENTS[code]
        about = f"{label} {performer}".strip()
        found += [Moment(created, Message("Workitem created"), label),
                  Moment(claimed, Message("Workitem claimed"), about), Moment(ended, words, about)]  # fmt: skip
    return found


# The words of the timeline for a state that was entered; of others, that it ended.
STATE_MOMENTS = {
    "ARRIVED": Message("Checked in"),
    "STARTED": Message("Started"),
    "SCHEDULED": Message("Put back on the worklist"),
    "READY": Message("Checked in"),
}
STAMPED_STATES = ("ARRIVED", "STARTED")  # the columns of a step know when it entered them


def changes_of(about: str, since: str = "") -> list[Moment]:
    """Who changed which values of `patient 3` or `step 7` since a time, oldest first."""
    found = []
    # since: the row id may have belonged to an earlier exam
    for row in fetch_rows(ValueChange, "about = ? AND at >= ? ORDER BY id", about, since):
        before, after = json.loads(row.before), json.loads(row.after)
        undone = row.what.startswith("Undone: ")
        what = Message("Undone: {what}", what=Message(row.what[8:])) if undone else row.what
        values = (
            (int(tag, 16), before.get(tag, ""), after.get(tag, "")) for tag in {**before, **after}
        )
        found.append(Moment(row.at, Message(what), "", row.who, tuple(values)))
    return found


def _by(line: Any) -> str:
    """Who did what an audit line tells, without the address."""
    name: str = line.who.partition("@")[0]
    return name


def who_registered(step: Any) -> str:
    """Who put a step on the worklist; "" if the audit log no longer tells."""
    line = first_row(Audit, "about = ? AND what = 'scheduled' ORDER BY id DESC LIMIT 1",
                     step.study_instance_uid)  # fmt: skip
    return _by(line) if line else ""


def _lines_of(step: Any) -> list[tuple[Any, str]]:
    """The audit lines of the states that a step entered, in order, each with the state."""
    prefix = f"{step.scheduled_procedure_step_id} "
    lines = fetch_rows(Audit, "at >= ? AND what = 'step' AND about = ? ORDER BY id",
                       step.created_at, step.study_instance_uid)  # fmt: skip
    return [(line, line.detail.removeprefix(prefix)) for line in lines
            if line.detail.startswith(prefix)]  # fmt: skip


def _who(lines: list[tuple[Any, str]], state: str) -> str:
    """Who brought a step into a state the last time."""
    return next((_by(line) for line, entered in reversed(lines) if entered == state), "")


def _states_before(step: Any, lines: list[tuple[Any, str]]) -> list[Moment]:
    """What a step went through before its present state: its columns know the last times alone."""
    last: dict[str, Any] = {}
    for line, state in lines:
        last["ended" if state not in STATE_MOMENTS else state] = line
    known = {"ARRIVED": step.arrived_at, "STARTED": step.started_at, "ended": step.ended_at}
    told = {id(line) for kind, line in last.items() if known.get(kind)}  # by its column
    return [
        Moment(line.at, STATE_MOMENTS.get(state) or Message(state), "",
               _by(line))
        for line, state in lines
        if id(line) not in told and state in STEP_STATES
    ]  # fmt: skip


class Stage(NamedTuple):
    """A stage of an exam: in words, its state if that is entered, when and by whom."""

    words: Message
    state: str = ""
    at: str = ""
    who: str = ""


def stages_of(row_id: int) -> list[Stage]:
    """The stages of an exam, from registration to its end, in order. Refuses 0112."""
    step = step_row(row_id)
    lines = _lines_of(step)
    told = Message(TOLD_BY.get(step.told_by, step.told_by))
    ended = step.status if step.ended_at else ""
    return [
        Stage(Message("Registered"), "SCHEDULED", step.created_at, who_registered(step)),
        Stage(Message("Checked in"), "ARRIVED" if step.arrived_at else "", step.arrived_at,
              _who(lines, "ARRIVED")),
        Stage(Message("In progress"), "STARTED" if step.started_at else "", step.started_at,
              _who(lines, "STARTED")),
        Stage(Message(ended or "Done"), ended, step.ended_at, told),
    ]  # fmt: skip


class Day(NamedTuple):
    """A station's exams on one day: counts by outcome; waiting and room times in minutes."""

    date: str
    station: str
    exams: int
    completed: int
    discontinued: int
    no_show: int
    waiting: list[float]
    room: list[float]


def days_between(first: str, last: str) -> list[Day]:
    """The statistics per day and station from one day (DA) to another, in order."""
    days: dict[tuple[str, str], Day] = {}
    for date, station, status, arrived, started, ended in database.execute_sql(
        "SELECT s.start_date, coalesce((SELECT t.ae_title FROM scheduled_station t"
        " WHERE t.step_id = s.id LIMIT 1), ''), s.status, s.arrived_at, s.started_at, s.ended_at"
        " FROM scheduled_procedure_step s WHERE s.start_date BETWEEN ? AND ? AND s.status <> 'CANCELED'",
        (first, last),
    ):
        day = days.setdefault((date, station), Day(date, station, 0, 0, 0, 0, [], []))
        for minutes, *times in ((day.waiting, arrived, started), (day.room, started, ended)):
            if all(times):
                begin, end = map(datetime.datetime.fromisoformat, times)
                minutes.append(max(0.0, (end - begin).total_seconds() / 60))
        days[date, station] = day._replace(
            exams=day.exams + 1,
            completed=day.completed + (status == "COMPLETED"),
            discontinued=day.discontinued + (status == "DISCONTINUED"),
            no_show=day.no_show + (status == "NO SHOW"),
        )
    return [days[key] for key in sorted(days)]
