"""Workitems (Unified Procedure Steps)."""

import datetime
import itertools
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from minris.access.context import needs_reason
from minris.dataset.checks import well_formed, with_empty
from minris.dataset.elements import EMPTY, ElementIndex, sequence_elements, text_elements
from minris.dataset.items import cancellation_reason, workitem_code
from minris.orders.lookup import get_step
from minris.pages.forms import Field, field_table, read_fields, sent_fields, show_fields, show_form
from minris.pages.frame import PageRequest, Row, no_such_action, row_number
from minris.pages.language import Translator, fact, facts_of
from minris.pages.template import template
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.tables import body_rows
from minris.standard.ups import (
    EVENT_TYPES,
    UPS_ATTRIBUTES,
    UPS_CANCELLATION_REASONS,
    UPS_ENUMERATIONS,
    UPS_STATES,
    WORKITEM_CODES,
)
from minris.ups.people import (
    Happening,
    assign_workitem,
    claim_by_person,
    decline_cancellation,
    end_workitem,
    finish_by_person,
    give_up_by_person,
    history_of,
    relationship_of_step,
    release_lock,
    watchers_of,
    workitems_of,
    worklist_labels,
)
from minris.ups.search import stored_workitem
from minris.ups.subscriptions import subscribe, unsubscribe
from minris.ups.workitems import create_workitem, request_cancel, update_workitem

WORKITEM_PAGE = template("after_exam/workitem.html")
# Actions on a workitem: in which states, for whom, minimum role, and the questions of the form.
WORKITEM_ACTIONS = body_rows("""
    event     | states                | who    | role         | asks              | words
    claim     | SCHEDULED             | anyone | desk         |                   | Claim
    complete  | IN PROGRESS           | holder | desk         | remark            | Mark task as done
    give up   | IN PROGRESS           | holder | desk         | code reason       | Stop
    decline   | IN PROGRESS           | asked  | desk         | reason            | Do not cancel it
    cancel    | SCHEDULED | anyone | desk         | code reason uri contact | Cancel it
    cancel    | IN PROGRESS | anyone | desk         | code reason uri contact | Request cancellation
    assign    | SCHEDULED             | anyone | desk         | station performer | Assign it
    readiness | SCHEDULED             | anyone | desk         | readiness         | Set its inputs
    subscribe | any                   | anyone | technologist | receiver lock     | Subscribe a device
    unsubscribe | any                 | anyone | admin        | watcher reason    | End a subscription
    release   | any                   | anyone | admin        | watcher reason    | Release a deletion lock
    end       | SCHEDULED, IN PROGRESS | anyone | admin        | code reason       | Force-close
    """)
WORKITEM_QUESTIONS = {
    "remark": Message("Note"),
    "reason": Message("Reason"),
    "code": Message("Kind of reason"),
    "uri": Message("Contact (telephone or e-mail)"),
    "contact": Message("Contact's name"),
    "station": Message("Station"),
    "performer": Message("Person"),
    "readiness": Message("Images ready?"),
    "receiver": Message("Device"),
    "watcher": Message("Device"),
    "lock": Message("Deletion lock"),
}
WORKITEM_FIELDS = field_table("""
    name       | keyword                             | kind   | label
    label      | ProcedureStepLabel                  | text   | Task *
    code       | ScheduledWorkitemCodeSequence       | select | Type
    worklist   | WorklistLabel                       | text   | Worklist
    priority   | ScheduledProcedureStepPriority      | select | Priority
    readiness  | InputReadinessState                 | select | Images ready?
    date       | ScheduledProcedureStepStartDateTime | day    | Date
    time       | ScheduledProcedureStepStartDateTime | time   | Time
    expires    | ScheduledProcedureStepExpirationDateTime | day | Due
    patient    | PatientName                         | name   | Patient's name
    patient_id | PatientID                           | text   | Patient ID
    comment    | CommentsOnTheScheduledProcedureStep | area   | Comment
    """)
# The four modules of PS3.3 C.30; a path takes the first item of each sequence.
WORKITEM_FACTS = body_rows("""
    module       | label               | path
    Scheduled    | Task                | ProcedureStepLabel
    Scheduled    | Type                | ScheduledWorkitemCodeSequence
    Scheduled    | Worklist            | WorklistLabel
    Scheduled    | Priority            | ScheduledProcedureStepPriority
    Scheduled    | Images ready?       | InputReadinessState
    Scheduled    | Start               | ScheduledProcedureStepStartDateTime
    Scheduled    | Expected end        | ExpectedCompletionDateTime
    Scheduled    | Due                 | ScheduledProcedureStepExpirationDateTime
    Scheduled    | Station             | ScheduledStationNameCodeSequence
    Scheduled    | Kind of station     | ScheduledStationClassCodeSequence
    Scheduled    | Place               | ScheduledStationGeographicLocationCodeSequence
    Scheduled    | Person              | ScheduledHumanPerformersSequence > HumanPerformerName
    Scheduled    | Input sets          | InputInformationSequence
    Scheduled    | Comment             | CommentsOnTheScheduledProcedureStep
    Relationship | Patient             | PatientName
    Relationship | Patient ID          | PatientID
    Relationship | Birth date          | PatientBirthDate
    Relationship | Sex                 | PatientSex
    Relationship | Accession number    | ReferencedRequestSequence > AccessionNumber
    Relationship | Exam                | ReferencedRequestSequence > RequestedProcedureDescription
    Relationship | Requested procedure ID | ReferencedRequestSequence > RequestedProcedureID
    Relationship | Study Instance UID  | StudyInstanceUID
    Progress     | State               | ProcedureStepState
    Progress     | Progress (%)        | ProcedureStepProgressInformationSequence > ProcedureStepProgress
    Progress     | Progress            | ProcedureStepProgressInformationSequence > ProcedureStepProgressDescription
    Progress     | Contact             | ProcedureStepProgressInformationSequence > ProcedureStepCommunicationsURISequence > ContactURI
    Progress     | Contact's name      | ProcedureStepProgressInformationSequence > ProcedureStepCommunicationsURISequence > ContactDisplayName
    Progress     | Cancelled           | ProcedureStepProgressInformationSequence > ProcedureStepCancellationDateTime
    Progress     | Kind of reason      | ProcedureStepProgressInformationSequence > ProcedureStepDiscontinuationReasonCodeSequence
    Progress     | Reason              | ProcedureStepProgressInformationSequence > ReasonForCancellation
    Performed    | Station             | UnifiedProcedureStepPerformedProcedureSequence > PerformedStationNameCodeSequence
    Performed    | Person              | UnifiedProcedureStepPerformedProcedureSequence > ActualHumanPerformersSequence > HumanPerformerName
    Performed    | Start               | UnifiedProcedureStepPerformedProcedureSequence > PerformedProcedureStepStartDateTime
    Performed    | End                 | UnifiedProcedureStepPerformedProcedureSequence > PerformedProcedureStepEndDateTime
    Performed    | Type                | UnifiedProcedureStepPerformedProcedureSequence > PerformedWorkitemCodeSequence
    Performed    | Output sets         | UnifiedProcedureStepPerformedProcedureSequence > OutputInformationSequence
    Performed    | Comment             | UnifiedProcedureStepPerformedProcedureSequence > CommentsOnThePerformedProcedureStep
    """)
# What the timeline shows for an event of each type, after its name.
HAPPENING_PATHS = {
    0: ("ReasonForCancellation",),
    1: ("ProcedureStepState", "InputReadinessState", "ReasonForCancellation"),
    2: ("RequestingAE", "ReasonForCancellation", "ProcedureStepDiscontinuationReasonCodeSequence",
        "ContactDisplayName", "ContactURI"),
    3: ("ProcedureStepProgressInformationSequence > ProcedureStepProgress",
        "ProcedureStepProgressInformationSequence > ProcedureStepProgressDescription"),
    5: ("ScheduledStationNameCodeSequence", "HumanPerformerCodeSequence"),
}  # fmt: skip


def happening_words(happening: Happening, t: Translator, zone: datetime.tzinfo | None) -> str:
    """Return an event of the timeline in words."""
    name = next(name for name, number in EVENT_TYPES.items() if number == happening.event_type)
    index = ElementIndex(happening.data)
    said = [fact(index, path, t, zone) for path in HAPPENING_PATHS.get(happening.event_type, ())]
    return t.labelled(t(name), t.listed(said)) if any(said) else t(name)


def workitem_from_form(form: Mapping[str, str], step: bytes = b"") -> bytes:
    """Return the data set of a new workitem from the form. Refuses 0106.

    step  the scheduled procedure step it is for; patient and request are copied from it
    """
    if form["code"] not in WORKITEM_CODES:
        problem = Problem(tag_of("ScheduledWorkitemCodeSequence"), Message("is not a kind of work"))
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[problem])
    texts, _ = read_fields(WORKITEM_FIELDS, form)
    begin = form["date"] + form["time"] if form["date"] else ""
    texts["ScheduledProcedureStepStartDateTime"] = re.sub("[-:]", "", begin)
    code = workitem_code(texts.pop("ScheduledWorkitemCodeSequence"))
    codes = sequence_elements(ScheduledWorkitemCodeSequence=[code])
    relationship = relationship_of_step(step) if step else EMPTY
    made = text_elements(ProcedureStepState="SCHEDULED", **texts).merged(codes, relationship)
    if form["expires"] and form["date"] > form["expires"]:
        tag = tag_of("ScheduledProcedureStepExpirationDateTime")
        problem = Problem(tag, Message("is before its start"))
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[problem])
    return bytes(with_empty(well_formed(made), UPS_ATTRIBUTES, "create"))


def workitems_path(state: str, label: str) -> str:
    """Return the URL of the list for a state and a worklist label."""
    return f"/workitems?{urllib.parse.urlencode({'state': state, 'label': label})}"


def workitems_page(p: PageRequest) -> str:
    """GET /workitems: the list of workitems, by state and worklist label."""
    t, state, label = p.t, p.query("state"), p.query("label")
    found, count = p.read(workitems_of, state, label)
    listed = [
        Row((one.label, t.name(ElementIndex(bytes(one.data)).get("PatientName")), one.patient_id,
             one.worklist_label, t.task(one.state), t.task(one.priority), p.at(one.start_at), one.performer),
            f"/workitem/{one.sop_instance_uid}")
        for one in found
    ]  # fmt: skip
    part = p.listed(
        "Workitem | Patient | Patient ID | Worklist | State | Priority | Start | Performer",
        listed, "No workitems in this list.",
    )  # fmt: skip
    intro = ""
    if count > len(found):
        intro = t("The first {shown} of {count}. Choose a state or a worklist.",
                  shown=len(found), count=count)  # fmt: skip
    filters = [(workitems_path("", label), t("Open"), not state)]
    filters += [(workitems_path(one, label), t.task(one), one == state) for one in UPS_STATES]
    labels = p.read(worklist_labels)
    if len(labels) > 1:
        filters.append((workitems_path(state, ""), t("All worklists"), not label))
        filters += [(workitems_path(state, one), one, one == label) for one in labels]
    links = [("/workitems/new", t("New workitem"))]
    return p.listing("Workitems", [part], links=links, filters=filters, intro=intro)


def workitem_page(p: PageRequest, uid: str) -> str:
    """GET /workitem/…: its four modules, actions, subscribers and timeline."""
    t, zone, mark = p.t, p.web.config.zone, p.mark(("workitem", uid))
    workitem, happenings = p.read(stored_workitem, uid), p.read(history_of, uid)
    if not workitem and not happenings:
        raise Refusal(Status.NO_SUCH_UPS, Message("There is no such workitem"))
    index = ElementIndex(bytes(workitem.data) if workitem else b"")
    modules = {
        module: facts_of(index, [row[1:] for row in rows], t, zone)
        for module, rows in itertools.groupby(WORKITEM_FACTS, key=lambda row: row[0])
    }
    if workitem and workitem.performer:
        modules["Progress"].append((t("Performer"), workitem.performer))
    events = [
        (p.at(one.at), one.who, happening_words(one, t, zone),
         t("{heard} of {all} notified", heard=one.heard, all=one.receivers) if one.receivers else "")
        for one in happenings
    ]  # fmt: skip
    asked = any(one.event_type == EVENT_TYPES["UPS Cancel Requested"] for one in happenings)
    warnings = [] if workitem else [t("It has been purged; its history remains.")]
    if asked and workitem and workitem.state == "IN PROGRESS":
        wanted = t("Cancellation requested; see timeline.")
        declined = t("The cancellation was declined: {reason}", reason=workitem.declined)
        warnings.append(declined if workitem.declined else wanted)
    return p.show(
        WORKITEM_PAGE, "Workitem", warnings=warnings, events=events, mark=mark,
        modules=[(t(module), facts) for module, facts in modules.items()],
        forms=workitem_forms(p, workitem, asked) if workitem else [],
        watched=p.read(watchers_of, uid), patient_query=urllib.parse.urlencode({"q": index.get("PatientID")}),
    )  # fmt: skip


def workitem_forms(
    p: PageRequest, workitem: Any, asked_to_cancel: bool
) -> list[tuple[str, str, list[Field]]]:
    """Return the actions that this user may take now: event, words, fields."""
    holder = workitem.by_person and workitem.performer == p.login.name
    asked = holder and asked_to_cancel and not workitem.declined
    who_may = {"anyone": True, "holder": holder, "asked": asked}
    choices = workitem_choices(p, workitem)
    forms = []
    for event, states, who, role, asks, words in WORKITEM_ACTIONS:
        in_state = states == "any" or workitem.state in states.split(", ")
        fields = [
            Field(name, p.t(WORKITEM_QUESTIONS[name]), choices=choices.get(name, ()))
            for name in asks.split()
        ]
        askable = all(choices.get(name, True) for name in asks.split())
        if in_state and askable and who_may[who] and p.may(role):
            forms.append((event, p.t(words), fields))
    return forms


def workitem_choices(p: PageRequest, workitem: Any) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the choices for the questions of WORKITEM_ACTIONS, by name."""
    t = p.t
    codes = sorted(UPS_CANCELLATION_REASONS.items(), key=lambda one: one[0] != "110513")
    inputs = sorted(UPS_ENUMERATIONS["InputReadinessState"], key=lambda r: r != workitem.readiness)
    watching = p.read(watchers_of, workitem.sop_instance_uid)
    return {
        "code": tuple((code, t(words)) for code, words in codes),
        "station": (("", "-"), *((device.ae_title, device.name) for device in p.devices)),
        "readiness": tuple((one, t.task(one)) for one in inputs),
        "receiver": tuple((one, one) for d in p.devices if d.host for one in d.ae_titles),
        "watcher": tuple((ae, ae) for ae, _ in watching),
        "lock": (("FALSE", t("no")), ("TRUE", t("yes"))),
    }


def post_workitem(p: PageRequest, uid: str) -> str:
    """POST /workitem/…: take an action of WORKITEM_ACTIONS."""
    event, asked = p.form("event"), p.form
    p.need(next((row[3] for row in WORKITEM_ACTIONS if row[0] == event), "admin"))
    if event in ("give up", "end", "release", "decline", "unsubscribe"):
        needs_reason(asked("reason"))
    readiness = bytes(text_elements(InputReadinessState=asked("readiness")))
    deeds: dict[str, tuple[Any, ...]] = {
        "claim": (claim_by_person,),
        "complete": (finish_by_person, asked("remark")),
        "give up": (give_up_by_person, asked("reason"), asked("code")),
        "decline": (decline_cancellation, asked("reason")),
        "assign": (assign_workitem, asked("station"), asked("performer")),
        "readiness": (update_workitem, readiness),
        "subscribe": (subscribe, asked("receiver"), asked("lock") == "TRUE"),
        "unsubscribe": (unsubscribe, asked("watcher"), asked("reason")),
        "release": (release_lock, asked("watcher"), asked("reason")),
        "end": (end_workitem, asked("reason"), asked("code")),
    }
    if event == "cancel":
        p.write_seen(("workitem", uid), event, request_cancel, uid, cancel_request(p))
    elif event in deeds:
        core, *more = deeds[event]
        p.write_seen(("workitem", uid), event, core, uid, *more)
    else:
        raise no_such_action()
    return p.tell(f"/workitem/{uid}", p.t("Saved."))


def cancel_request(p: PageRequest) -> bytes:
    """Return the data set of a cancellation request from the form. Refuses 0106."""
    contact = text_elements(ContactURI=p.form("uri"), ContactDisplayName=p.form("contact"))
    asked = cancellation_reason(p.form("reason"), p.form("code") or "110513")
    return bytes(asked.merged(contact))


def new_workitem_page(
    p: PageRequest, form: Mapping[str, str] | None = None, problems: Sequence[Problem] = ()
) -> str:
    """GET /workitems/new: the form for a workitem, empty or for the exam of ?step=."""
    t, now = p.t, p.ctx.local_now()
    form = form or {
        "step": p.query("step"), "date": f"{now:%Y-%m-%d}", "time": f"{now:%H:%M}",
        "priority": "MEDIUM", "readiness": "READY",
    }  # fmt: skip
    step = ElementIndex(step_of_form(p, form.get("step", "")))
    fixed = {
        "patient": t.name(step.get("PatientName")), "patient_id": step.get("PatientID")
    } if step.found else {}  # fmt: skip
    priorities = UPS_ENUMERATIONS["ScheduledProcedureStepPriority"]
    choices = {
        "code": tuple((code, t(meaning)) for code, (_, meaning) in WORKITEM_CODES.items()),
        "worklist": tuple((label, label) for label in p.read(worklist_labels)),
        "priority": tuple((one, t.task(one)) for one in priorities),
        "readiness": tuple((one, t.task(one)) for one in UPS_ENUMERATIONS["InputReadinessState"]),
    }
    rows = [row for row in WORKITEM_FIELDS if row.name not in fixed]
    fields, others = show_fields(p, rows, form, problems, choices)
    words = t.dotted(fixed.values())
    return show_form(
        p, "New workitem", [(words or t("Workitem"), fields)], others, submit=t("Create"),
        hidden=[("step", form.get("step", "")), ("uid", form.get("uid") or p.ctx.new_uid())],
    )  # fmt: skip


def step_of_form(p: PageRequest, row_id: str) -> bytes:
    """Return the data set of the step a form names by row ID; b"" for none. Refuses 0112."""
    return p.read(get_step, row_number(row_id)) if row_id else b""


def post_new_workitem(p: PageRequest) -> str:
    """POST /workitems/new: create a workitem, or show the form again."""
    form = sent_fields(p, WORKITEM_FIELDS) | {"step": p.form("step"), "uid": p.form("uid")}
    step = step_of_form(p, form["step"])
    try:
        uid, _ = p.write(create_workitem, form["uid"], workitem_from_form(form, step))
    except Refusal as refusal:
        if refusal.status is Status.DUPLICATE_SOP_INSTANCE:  # the form was sent twice
            return p.redirect(f"/workitem/{form['uid']}")
        return new_workitem_page(p, form, p.again(refusal))
    return p.tell(f"/workitem/{uid}", p.t("Saved."))
