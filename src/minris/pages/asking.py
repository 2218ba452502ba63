"""What a person is asked before it is done: after a change by others, or for good."""

from minris.dataset.elements import ElementIndex
from minris.orders.items import exam_name
from minris.orders.lookup import get_step
from minris.orders.patients import get_patient
from minris.pages.frame import PageRequest
from minris.pages.language import Translator, shown_time
from minris.pages.template import template
from minris.seen import ChangedMeanwhile, Thing
from minris.standard.status import Message

RESUME_PAGE = template("resume.html")
SURE = "yes"  # the field `sure` of a form whose question was answered
# The words of the button for each event of an exam that a person may choose.
PERSON_EVENTS = {
    "arrive": Message("Check in"),
    "cancel": Message("Cancel"),
    "no show": Message("Mark as no-show"),
    "reschedule": Message("Put back on the worklist"),
    "finish": Message("Mark as done"),
    "stop": Message("Mark as stopped"),
}


def ask(p: PageRequest, title: str, sentences: list[str], button: str, **changed: str) -> str:
    """Return a page that asks a person; its button sends the form again with some fields changed.

    button  its words; empty if there is nothing that could be done
    """
    sent = p.request.forms.decode().allitems()
    fields = [(name, value) for name, value in sent if name not in ("csrf", *changed)]
    return p.show(
        RESUME_PAGE, title, action=p.request.path, fields=[*fields, *changed.items()], shown=[],
        sentences=sentences, button=button, back=p.came_from("/"),
    )  # fmt: skip


def is_sure(p: PageRequest) -> bool:
    """Tell whether the question whether to do it was answered with its button."""
    return p.form("sure") == SURE


def ask_if_sure(p: PageRequest, title: str, sentence: str, button: str) -> str:
    """Return a page that asks, in a sentence that names it, for what cannot be undone."""
    return ask(p, title, [sentence], button, sure=SURE)


def exam_words(t: Translator, index: ElementIndex) -> str:
    """Return patient, exam and time of an exam's data set, to name it in a sentence."""
    item = index.item("ScheduledProcedureStepSequence")
    at = item.get("ScheduledProcedureStepStartDate"), item.get("ScheduledProcedureStepStartTime")
    when = f"{t.date(at[0])} {shown_time(at[1])}".strip()
    return t.listed((t.name(index.get("PatientName")), exam_name(index), when))


def thing_words(p: PageRequest, about: Thing) -> str:
    """Return a thing by the name that people know it by. Refuses 0112."""
    kind, key = about
    if kind == "undo":
        kind, _, key = key.partition(" ")
    if kind == "step":
        return exam_words(p.t, ElementIndex(p.read(get_step, int(key))))
    if kind == "patient":
        index = ElementIndex(p.read(get_patient, int(key)))
        return f"{p.t.name(index.get('PatientName'))} {index.get('PatientID')}"
    names = {"performed": Message("The report of the machine"), "settings": Message("Settings")}
    return p.t(names[kind]) if kind in names else str(key)


def changed_words(p: PageRequest, changed: ChangedMeanwhile) -> str:
    """Return who changed what and when, in one sentence."""
    t, subject = p.t, thing_words(p, changed.about)
    if not changed.change:
        return t("{subject} was changed meanwhile.", subject=subject)
    at, who, what = changed.change
    return t("{subject}: {what}, by {who} at {at}.", subject=subject, what=t(what), who=who,
             at=p.at(at))  # fmt: skip


def ask_changed(p: PageRequest, changed: ChangedMeanwhile) -> str:
    """Answer 409: what was decided upon has changed; say who, when and what, and ask."""
    t, (kind, key) = p.t, changed.about
    p.response.status = 409
    question, button = t("Do it all the same?"), t("Do it all the same")
    if kind == "step" and changed.event in PERSON_EVENTS:
        button = t(PERSON_EVENTS[changed.event])
    if (kind, changed.event) == ("step", "reschedule"):
        question = t("Put it back on the list?")
    if kind == "undo":
        offered = p.undo_of(key)
        button = offered[1] if offered else ""
    if not changed.mark or not button:
        question, button = t("It can no longer be done."), ""
    sentences = [changed_words(p, changed), question]
    return ask(
        p, Message("Changed meanwhile"), sentences, button, **{f"{kind}_state": changed.mark}
    )
