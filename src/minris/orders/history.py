"""History: the timeline of an exam, and daily statistics."""

import datetime
from typing import Any, NamedTuple

from minris.dataset.elements import ElementIndex
from minris.orders.lookup import step_row
from minris.standard.commitment import RETRIEVABLE
from minris.standard.status import Message
from minris.standard.worklist import STEP_STATES, TOLD_BY
from minris.store.models import Audit, database
from minris.store.rows import fetch_rows


class Moment(NamedTuple):
    """One entry of a timeline: time (as stored), what happened, and to what."""

    at: str
    what: Message
    about: str = ""


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
    told = TOLD_BY.get(step.told_by, step.told_by)
    found = [
        Moment(step.created_at, Message("Registered")),
        *(
            Moment(at, Message("First shown to {ae}", ae=ae))
            for ae, at in database.execute_sql(
                "SELECT ae_title, at FROM step_seen WHERE step_id = ?", (row_id,)
            )
        ),
        Moment(step.arrived_at, Message("Checked in")),
        Moment(step.started_at, Message("Started")),
        Moment(step.ended_at, Message(step.status), str(told)),
        *_states_before(step),
    ]
    study = (step.study_instance_uid,)
    # created_at: the row id may have belonged to an earlier exam
    where = "about IN (?, ?) AND what IN ('rescheduled', 'change taken back') AND at >= ?"
    changes = fetch_rows(Audit, where, *study, f"step {row_id}", step.created_at)
    found += [Moment(line.at, Message("Changed") if line.what == "rescheduled" else
                     Message("Undone"), f"{line.detail} {line.who}") for line in changes]  # fmt: skip
    first, last, count = database.execute_sql(
        "SELECT coalesce(min(at), ''), coalesce(max(at), ''), count(DISTINCT sop_instance_uid)"
        f" FROM availability WHERE study_instance_uid = ? AND availability IN {RETRIEVABLE}",
        study,
    ).fetchone()
    found.append(Moment(first, Message("First image in the archive")))
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
    workitems = database.execute_sql(
        "SELECT label, state, created_at, claimed_at, ended_at, performer, data FROM workitem"
        " WHERE accession_number = ? AND accession_number <> ''",
        (step.accession_number,),
    )
    for label, state, created, claimed, ended, performer, data in workitems:
        code = ElementIndex(data).item("ScheduledWorkitemCodeSequence").get("CodeValue")
        words = Message("Workitem ended: {state}", state=Message(state))
        if state == "COMPLETED" and code in WORKITEM_MOMENTS:
            words = WORKITEM_MOMENTS[code]
        about = f"{label} {performer}".strip()
        found += [Moment(created, Message("Workitem created"), label),
                  Moment(claimed, Message("Workitem claimed"), about), Moment(ended, words, about)]  # fmt: skip
    return sorted((one for one in found if one.at), key=lambda one: one.at)


# The words of the timeline for a state that was entered; of others, that it ended.
STATE_MOMENTS = {
    "SCHEDULED": Message("Put back on the worklist"),
    "ARRIVED": Message("Checked in"),
    "READY": Message("Checked in"),
    "STARTED": Message("Started"),
}


def _states_before(step: Any) -> list[Moment]:
    """What a step went through before its present state: its columns know the last times alone."""
    prefix = f"{step.scheduled_procedure_step_id} "
    lines = fetch_rows(Audit, "at >= ? AND what = 'step' AND about = ? ORDER BY id",
                       step.created_at, step.study_instance_uid)  # fmt: skip
    states = [(line, line.detail.removeprefix(prefix)) for line in lines
              if line.detail.startswith(prefix)]  # fmt: skip
    last: dict[str, Any] = {}
    for line, state in states:
        last["ended" if state not in STATE_MOMENTS else state] = line
    known = {"ARRIVED": step.arrived_at, "STARTED": step.started_at, "ended": step.ended_at}
    told = {id(line) for kind, line in last.items() if known.get(kind)}  # by its column
    return [
        Moment(line.at, STATE_MOMENTS.get(state) or Message(state), line.who)
        for line, state in states
        if id(line) not in told and state in STEP_STATES
    ]


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
