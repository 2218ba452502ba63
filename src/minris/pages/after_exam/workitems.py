"""Workitems."""

import datetime
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from minris.access.context import Context, needs_reason
from minris.access.users import Login, permit
from minris.dataset.checks import well_formed, with_empty
from minris.dataset.elements import EMPTY, ElementIndex, sequence_elements, text_elements
from minris.dataset.items import cancellation_reason, workitem_code
from minris.dataset.names import typed_name
from minris.orders.lookup import get_step
from minris.pages.forms import FORM_PAGE, Field
from minris.pages.frame import Frame, Part, Row
from minris.pages.language import Translator, fact, shown_instant
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
from minris.web.request import enter

WORKITEM_PAGE = template("after_exam/workitem.html")
# What a person may do with a workitem: in which states, who, and what is asked for.
WORKITEM_ACTIONS = body_rows("""
    event     | states                | who    | role         | asks              | words
    claim     | SCHEDULED             | anyone | desk         |                   | Claim it
    complete  | IN PROGRESS           | holder | desk         | remark            | It is done
    give up   | IN PROGRESS           | holder | desk         | code reason       | Give it up
    decline   | IN PROGRESS           | asked  | desk         | reason            | Do not cancel it
    cancel    | SCHEDULED | anyone | desk         | code reason uri contact | Cancel it
    cancel    | IN PROGRESS | anyone | desk         | code reason uri contact | Request cancellation
    assign    | SCHEDULED             | anyone | desk         | station performer | Assign it
    readiness | SCHEDULED             | anyone | desk         | readiness         | Set its inputs
    subscribe | any                   | anyone | technologist | receiver lock     | Subscribe a device
    unsubscribe | any                 | anyone | admin        | watcher reason    | End a subscription
    release   | any                   | anyone | admin        | watcher reason    | Release a deletion lock
    end       | SCHEDULED, IN PROGRESS | anyone | admin        | code reason       | End it, whoever has it
    """)
WORKITEM_QUESTIONS = {
    "remark": Message("Remark"),
    "reason": Message("Reason"),
    "code": Message("Kind of reason"),
    "uri": Message("Contact (telephone or e-mail)"),
    "contact": Message("Contact's name"),
    "station": Message("Station"),
    "performer": Message("Person"),
    "readiness": Message("Inputs"),
    "receiver": Message("Device"),
    "watcher": Message("Device"),
    "lock": Message("Deletion lock"),
}
WORKITEM_FIELDS = body_rows("""
    name       | keyword                             | kind   | label
    label      | ProcedureStepLabel                  | text   | What is to be done
    code       | ScheduledWorkitemCodeSequence       | select | Kind of work
    worklist   | WorklistLabel                       | text   | Worklist
    priority   | ScheduledProcedureStepPriority      | select | Priority
    readiness  | InputReadinessState                 | select | Inputs
    date       | ScheduledProcedureStepStartDateTime | date   | Date
    time       | ScheduledProcedureStepStartDateTime | time   | Time
    expires    | ScheduledProcedureStepExpirationDateTime | date | Expires after
    patient    | PatientName                         | text   | Patient's name
    patient_id | PatientID                           | text   | Patient ID
    comment    | CommentsOnTheScheduledProcedureStep | area   | Comment
    """)
# The four modules of PS3.3 C.30; the first item where a path leads through a sequence.
WORKITEM_FACTS = body_rows("""
    module       | label               | path
    Scheduled    | What is to be done  | ProcedureStepLabel
    Scheduled    | Kind of work        | ScheduledWorkitemCodeSequence
    Scheduled    | Worklist            | WorklistLabel
    Scheduled    | Priority            | ScheduledProcedureStepPriority
    Scheduled    | Inputs              | InputReadinessState
    Scheduled    | Begin               | ScheduledProcedureStepStartDateTime
    Scheduled    | Expected end        | ExpectedCompletionDateTime
    Scheduled    | Expires after       | ScheduledProcedureStepExpirationDateTime
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
    Progress     | Canceled            | ProcedureStepProgressInformationSequence > ProcedureStepCancellationDateTime
    Progress     | Kind of reason      | ProcedureStepProgressInformationSequence > ProcedureStepDiscontinuationReasonCodeSequence
    Progress     | Reason              | ProcedureStepProgressInformationSequence > ReasonForCancellation
    Performed    | Station             | UnifiedProcedureStepPerformedProcedureSequence > PerformedStationNameCodeSequence
    Performed    | Person              | UnifiedProcedureStepPerformedProcedureSequence > ActualHumanPerformersSequence > HumanPerformerName
    Performed    | Begin               | UnifiedProcedureStepPerformedProcedureSequence > PerformedProcedureStepStartDateTime
    Performed    | End                 | UnifiedProcedureStepPerformedProcedureSequence > PerformedProcedureStepEndDateTime
    Performed    | Kind of work        | UnifiedProcedureStepPerformedProcedureSequence > PerformedWorkitemCodeSequence
    Performed    | Output sets         | UnifiedProcedureStepPerformedProcedureSequence > OutputInformationSequence
    Performed    | Comment             | UnifiedProcedureStepPerformedProcedureSequence > CommentsOnThePerformedProcedureStep
    """)
# What the time line says of an event of each type, beside its name.
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
    """An event of the time line in words."""
    name = next(name for name, number in EVENT_TYPES.items() if number == happening.event_type)
    index = ElementIndex(happening.data)
    said = [fact(index, path, t, zone) for path in HAPPENING_PATHS.get(happening.event_type, ())]
    return f"{t(name)}: {', '.join(filter(None, said))}"


def workitem_from_form(form: Mapping[str, str], step: bytes = b"") -> bytes:
    """A workitem from the form. Refuses 0106.

    step  the scheduled procedure step that it is for, whose patient and request it has
    """
    if form["code"] not in WORKITEM_CODES:
        problem = Problem(tag_of("ScheduledWorkitemCodeSequence"), Message("is not a kind of work"))
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[problem])
    codes = sequence_elements(ScheduledWorkitemCodeSequence=[workitem_code(form["code"])])
    day, clock = form["date"].replace("-", ""), form["time"].replace(":", "")
    texts = text_elements(
        ProcedureStepState="SCHEDULED",
        ProcedureStepLabel=form["label"],
        WorklistLabel=form["worklist"],
        ScheduledProcedureStepPriority=form["priority"],
        InputReadinessState=form["readiness"],
        ScheduledProcedureStepStartDateTime=day and day + clock,
        ScheduledProcedureStepExpirationDateTime=form["expires"].replace("-", ""),
        PatientName=typed_name(form["patient"]),
        PatientID=form["patient_id"],
        CommentsOnTheScheduledProcedureStep=form["comment"],
    )
    relationship = relationship_of_step(step) if step else EMPTY
    made = texts.merged(codes, relationship)
    if form["expires"] and form["date"] > form["expires"]:
        tag = tag_of("ScheduledProcedureStepExpirationDateTime")
        problem = Problem(tag, Message("is before its begin"))
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[problem])
    return bytes(with_empty(well_formed(made), UPS_ATTRIBUTES, "create"))


def workitems_path(state: str, label: str) -> str:
    """Where workitems of a state and a worklist label are listed."""
    return f"/workitems?{urllib.parse.urlencode({'state': state, 'label': label})}"


class WorkitemPages(Frame):
    """Workitems."""

    def workitems(self) -> str:
        """GET /workitems: what comes after, by state and worklist label."""
        login, _ = enter(self.web, self.request, "desk")
        t, query = self.translator(), self.request.query
        state = query.getunicode("state") or ""
        label = query.getunicode("label") or ""
        found, count = self.web.read(workitems_of, state, label)
        found_rows = [
            Row(
                (
                    w.label,
                    t.name(ElementIndex(bytes(w.data)).get("PatientName")),
                    w.patient_id,
                    w.worklist_label,
                    t(w.state),
                    t(w.priority),
                    shown_instant(w.start_at, self.web.config.zone),
                    w.performer,
                ),
                f"/workitem/{w.sop_instance_uid}",
            )
            for w in found
        ]
        columns = (t("Workitem"), t("Patient"), t("Patient ID"), t("Worklist"), t("State"),
                   t("Priority"), t("Begin"), t("Performer"))  # fmt: skip
        part = Part("", columns, found_rows, t("There are none."))
        labels = self.web.read(worklist_labels)
        intro = (
            t(
                "The first {shown} of {count}. Choose a state or a worklist.",
                shown=len(found),
                count=count,
            )
            if count > len(found)
            else ""
        )
        filters = [(workitems_path("", label), t("Open"), not state)]
        filters += [(workitems_path(one, label), t(one), one == state) for one in UPS_STATES]
        if len(labels) > 1:
            filters.append((workitems_path(state, ""), t("All worklists"), not label))
            filters += [(workitems_path(state, one), one, one == label) for one in labels]
        links = [("/workitems/new", t("New workitem"))]
        return self.listing("Workitems", login, [part], links=links, filters=filters, intro=intro)

    def workitem(self, uid: str) -> str:
        """GET /workitem/…: its four modules, its time line, who watches it, what can be done."""
        login, _ = enter(self.web, self.request, "desk")
        t, zone = self.translator(), self.web.config.zone
        workitem = self.web.read(stored_workitem, uid)
        happenings = self.web.read(history_of, uid)
        if not workitem and not happenings:
            raise Refusal(Status.NO_SUCH_UPS, Message("There is no such workitem"))
        index = ElementIndex(bytes(workitem.data) if workitem else b"")
        modules: dict[str, list[tuple[str, str]]] = {}
        for module, label, path in WORKITEM_FACTS:
            facts = modules.setdefault(module, [])
            if value := fact(index, path, t, zone):
                facts.append((t(label), value))
        if workitem and workitem.performer:
            modules["Progress"].append((t("Performer"), workitem.performer))
        events = [
            (
                shown_instant(one.at, zone),
                one.who,
                happening_words(one, t, zone),
                t("told: {heard} of {all}", heard=one.heard, all=one.receivers)
                if one.receivers
                else "",
            )
            for one in happenings
        ]
        asked = any(one.event_type == EVENT_TYPES["UPS Cancel Requested"] for one in happenings)
        warnings = [] if workitem else [t("It has been purged; its history remains.")]
        if asked and workitem and workitem.state == "IN PROGRESS":
            warnings.append(
                t("The cancellation was declined: {reason}", reason=workitem.declined)
                if workitem.declined
                else t("Somebody wants it to be canceled; see the time line.")
            )
        return self.page(
            WORKITEM_PAGE,
            "Workitem",
            login,
            warnings=warnings,
            modules=[(t(module), facts) for module, facts in modules.items()],
            forms=self._workitem_forms(login, workitem, asked, t) if workitem else [],
            watched=self.web.read(watchers_of, uid),
            patient_id=index.get("PatientID"),
            events=events,
            csrf=login.form_token,
        )

    def _workitem_forms(
        self, login: Login, workitem: Any, asked_to_cancel: bool, t: Translator
    ) -> list[tuple[str, str, list[Field]]]:
        """What this person may do with a workitem now."""
        holder = workitem.by_person and workitem.performer == login.name
        who_may = {
            "anyone": True,
            "holder": holder,
            "asked": holder and asked_to_cancel and not workitem.declined,
        }
        choices = self._workitem_choices(workitem, t)
        forms = []
        for event, states, who, role, asks, words in WORKITEM_ACTIONS:
            in_state = states == "any" or workitem.state in states.split(", ")
            fields = [
                Field(
                    name, t(WORKITEM_QUESTIONS[name]), "text", "", False, "", choices.get(name, ())
                )
                for name in asks.split()
            ]
            askable = all(choices.get(name, True) for name in asks.split())
            if in_state and askable and who_may[who] and permit(login.role, role):
                forms.append((event, t(words), fields))
        return forms

    def _workitem_choices(self, workitem: Any, t: Translator) -> dict[str, Any]:
        """What the questions about a workitem are answered from."""
        callable_ = [d for d in self.web.access().devices if d.host]
        return {
            "code": tuple(
                (code, t(words))
                for code, words in sorted(
                    UPS_CANCELLATION_REASONS.items(), key=lambda one: one[0] != "110513"
                )
            ),
            "station": (("", "-"), *((d.ae_title, d.name) for d in self.web.access().devices)),
            "readiness": tuple(
                (r, t(r))
                for r in sorted(
                    UPS_ENUMERATIONS["InputReadinessState"], key=lambda r: r != workitem.readiness
                )
            ),
            "receiver": tuple((one, one) for d in callable_ for one in d.ae_titles),
            "watcher": tuple(
                (ae, ae) for ae, _ in self.web.read(watchers_of, workitem.sop_instance_uid)
            ),
            "lock": (("FALSE", t("no")), ("TRUE", t("yes"))),
        }

    def workitem_event(self, uid: str) -> str:
        """POST /workitem/…: what a person does with it."""
        event = self.form("event")
        least = next((row[3] for row in WORKITEM_ACTIONS if row[0] == event), "admin")
        _, ctx = enter(self.web, self.request, least)
        self._do_with_workitem(ctx, uid, event)
        return self.tell(f"/workitem/{uid}", self.translator()("Saved."))

    def _do_with_workitem(self, ctx: Context, uid: str, event: str) -> None:
        asked, write = self.form, self.web.write
        if event in ("give up", "end", "release", "decline", "unsubscribe"):
            needs_reason(asked("reason"))
        calls: dict[str, Callable[[], Any]] = {
            "claim": lambda: write(claim_by_person, ctx, uid),
            "complete": lambda: write(finish_by_person, ctx, uid, asked("remark")),
            "give up": lambda: write(give_up_by_person, ctx, uid, asked("reason"), asked("code")),
            "decline": lambda: write(decline_cancellation, ctx, uid, asked("reason")),
            "cancel": lambda: write(request_cancel, ctx, uid, self._cancel_request()),
            "assign": lambda: write(
                assign_workitem, ctx, uid, asked("station"), asked("performer")
            ),
            "readiness": lambda: write(
                update_workitem,
                ctx,
                uid,
                bytes(text_elements(InputReadinessState=asked("readiness"))),
            ),
            "subscribe": lambda: write(
                subscribe, ctx, uid, asked("receiver"), asked("lock") == "TRUE"
            ),
            "unsubscribe": lambda: write(unsubscribe, ctx, uid, asked("watcher"), asked("reason")),
            "release": lambda: write(release_lock, ctx, uid, asked("watcher"), asked("reason")),
            "end": lambda: write(end_workitem, ctx, uid, asked("reason"), asked("code")),
        }
        if event not in calls:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
        calls[event]()

    def _cancel_request(self) -> bytes:
        """The information of a request to cancel, from the form."""
        contact = text_elements(
            ContactURI=self.form("uri"), ContactDisplayName=self.form("contact")
        )
        asked = cancellation_reason(self.form("reason"), self.form("code") or "110513")
        return bytes(asked.merged(contact))

    def new_workitem(
        self, form: Mapping[str, str] | None = None, problems: Iterable[Problem] = ()
    ) -> str:
        """GET /workitems/new: a form for a workitem, empty or for the exam of ?step=."""
        login, ctx = enter(self.web, self.request, "desk")
        t, now = self.translator(), ctx.local_now()
        form = form or {
            "step": self.request.query.getunicode("step") or "",
            "date": f"{now:%Y-%m-%d}",
            "time": f"{now:%H:%M}",
            "priority": "MEDIUM",
            "readiness": "READY",
        }
        step = ElementIndex(self._step_data(form.get("step", "")))
        fixed = {
            "patient": t.name(step.get("PatientName")), "patient_id": step.get("PatientID")
        } if step.found else {}  # fmt: skip
        choices = {
            "code": tuple((code, t(meaning)) for code, (_, meaning) in WORKITEM_CODES.items()),
            "worklist": tuple((label, label) for label in self.web.read(worklist_labels)),
            "priority": tuple(
                (p, t(p)) for p in UPS_ENUMERATIONS["ScheduledProcedureStepPriority"]
            ),
            "readiness": tuple((r, t(r)) for r in UPS_ENUMERATIONS["InputReadinessState"]),
        }
        by_tag = {problem.tag: t(problem.words) for problem in problems}
        fields = [
            Field(name, t(label), kind, form.get(name, ""), name == "label",
                  by_tag.pop(tag_of(keyword), ""), choices.get(name, ()))
            for name, keyword, kind, label in WORKITEM_FIELDS
            if name not in fixed
        ]  # fmt: skip
        words = " · ".join(filter(None, fixed.values()))
        return self.page(
            FORM_PAGE,
            "New workitem",
            login,
            action="/workitems/new",
            submit=t("Create"),
            csrf=login.form_token,
            hidden=[("step", form.get("step", "")), ("uid", form.get("uid") or ctx.new_uid())],
            groups=[(words or t("Workitem"), fields)],
            problems=[f"{f.label}: {f.problem}" for f in fields if f.problem]
            + list(by_tag.values()),
        )

    def _step_data(self, row_id: str) -> bytes:
        """The data set of a step by the number in a form, nothing where there is none. Refuses 0112."""
        return (
            self.web.read(get_step, int(row_id))[0] if re.fullmatch(r"[0-9]{1,18}", row_id) else b""
        )

    def create_workitem(self) -> str:
        """POST /workitems/new."""
        _, ctx = enter(self.web, self.request, "desk")
        form = {row[0]: self.form(row[0]).strip() for row in WORKITEM_FIELDS}
        form |= {"step": self.form("step"), "uid": self.form("uid")}
        step = self._step_data(form["step"])
        try:
            uid, _ = self.web.write(
                create_workitem, ctx, form["uid"], workitem_from_form(form, step)
            )
        except Refusal as refusal:
            if refusal.status is Status.DUPLICATE_SOP_INSTANCE:  # a form sent twice
                return self.redirect(f"/workitem/{form['uid']}")
            self.bottle.response.status = 422
            return self.new_workitem(form, refusal.problems)
        return self.tell(f"/workitem/{uid}", self.translator()("Saved."))
