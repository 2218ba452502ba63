"""Why is my patient not on the machine?"""

import datetime
from typing import Any

from pydicom import datadict

from minris.access.context import Context
from minris.dataset.elements import ElementIndex
from minris.dataset.search import Search
from minris.orders.items import step_item
from minris.orders.lookup import find_steps, step_key
from minris.orders.scheduling import move_step, reschedule
from minris.orders.trace import Exclusion, exclusion, latest_by_device, recent_queries, save_queries
from minris.orders.worklist import WorklistView
from minris.pages.frame import Action, PageRequest, Part, Row, no_such_action
from minris.pages.language import Translator
from minris.standard.dictionary import is_date, tag_of
from minris.standard.status import Refusal, Status, description_of
from minris.standard.worklist import MWL_ATTRIBUTES, START_DATE, STEP_STATUS, STEP_TRANSITIONS


def why_page(p: PageRequest) -> str:
    """GET /why: the devices' queries, and for each exam found the first key that excluded it."""
    t, query = p.t, p.query("q")
    p.write(save_queries, p.web.box.dimse.queries.take())
    queries = p.read(recent_queries, p.ctx.stamp(days=-p.web.config.housekeeping.keep_queries_days))
    steps = p.read(find_steps, query)[:10] if query.strip() else []
    parts = [explained(p, step, queries) for step in steps]
    if query.strip() and not steps:
        parts = [p.listed("", [], "Nobody was found.")]
    asked = [
        Row((f"{q.ae_title} {q.address}", f"{local_time(p, q.last_at):%d.%m. %H:%M:%S}",
             str(q.count),
             str(q.answers) if q.status in (0, Status.CANCEL) else f"{q.status:04X}",
             asked_for(t, ElementIndex(bytes(q.keys)))))
        for q in queries[:50]
    ]  # fmt: skip
    parts.append(p.listed("Device | Last | Times in the hour | Answers | Asked for", asked,
                          "There are none.", t("Queries of the devices")))  # fmt: skip
    label = t("Patient: name, ID or accession number")
    intro = t("Why is my patient not on the machine?")
    return p.listing("Why not there?", parts, search=label, query=query, intro=intro)


def local_time(p: PageRequest, stamp: str) -> datetime.datetime:
    """Return a time stamp of the store in the clinic's time zone."""
    return datetime.datetime.fromisoformat(stamp).astimezone(p.ctx.config.zone)


def explained(p: PageRequest, step: Any, queries: list[Any]) -> Part:
    """Return a table for one exam: each device's recent queries, and the key that excluded it."""
    ctx, t, data, answers, is_found = p.ctx, p.t, bytes(step.data), [], False
    for query in latest_by_device(queries):
        device = p.device(query.ae_title)
        try:
            search = Search(ElementIndex(bytes(query.keys)), MWL_ATTRIBUTES)
        except Refusal as refusal:
            words = t("The query was refused: {words}", words=refusal.detail)
            answers.append(Row((query.ae_title, words)))
            continue
        when = local_time(p, query.last_at)
        seen = Context(ctx.config, ctx.actor, lambda when=when: when)
        why = exclusion(ctx.config, search, WorklistView.of(seen, device), data)
        others = search.mismatches(ElementIndex(data))
        sentence, actions = reason_of(t, why, step, others)
        answers.append(Row((query.ae_title, f"{when:%d.%m. %H:%M}", sentence), "", actions))
        stations = step_item(step).values(tag_of("ScheduledStationAETitle"))
        titles = device.ae_titles if device else (query.ae_title,)
        is_found |= why is None and bool(set(titles) & set(stations))
    if is_found:  # its own machine finds it: there is nothing to fix
        answers = [row._replace(actions=()) for row in answers]
    name = t.name(ElementIndex(data).get("PatientName"))
    heading = f"{name}, {t.date(step.start_date)} {step.accession_number}"
    return p.listed("Device | Asked | What came of it", answers,
                    "No device has asked for a worklist.", heading)  # fmt: skip


def post_mend(p: PageRequest) -> str:
    """POST /why/mend: set the exam to the values that the device asked for."""
    row_id, forms = p.number("step"), p.request.forms
    given = dict(zip(forms.getall("keyword"), forms.getall("value"), strict=False))
    if "ScheduledProcedureStepStatus" in given:
        p.write(reschedule, *p.read(step_key, row_id), b"")
    elif given and MENDABLE.issuperset(given):
        p.write(lambda ctx: move_step(ctx, row_id, **given))
    else:
        raise no_such_action()
    words = p.t("Mended: the next query of the device finds the exam.")
    return p.tell(p.came_from("/why"), words)


MENDABLE = frozenset({"ScheduledStationAETitle", "Modality", "ScheduledProcedureStepStartDate"})


def reason_of(
    t: Translator, why: Exclusion | None, step: Any, others: list[tuple[int, str, str]]
) -> tuple[str, tuple[Action, ...]]:
    """Return why a query did not find an exam, in one sentence, and the button that fixes it.

    others  every key that the exam does not match
    """
    if why is None:
        return t("It is found."), ()
    again = isinstance(STEP_TRANSITIONS["reschedule", step.status], str)
    fields = [("step", str(step.id))]
    if why.tag == STEP_STATUS and not why.asked:
        sentence = t("The exam is {state}; that is not shown to devices.", state=t(why.has))
        fields += [("keyword", "ScheduledProcedureStepStatus"), ("value", "")]
        words = t("Back on the list")
        return sentence, (Action("/why/mend", words, tuple(fields)),) if again else ()
    asked, has = (t.date(one) if is_date(one) else one for one in (why.asked, why.has))
    values = {"name": t(why.name), "asked": asked, "has": has or t("nothing")}
    sentence = t("It asked for {name} {asked}; the exam has {has}.", **values)
    given = []
    for tag, asked, _ in [why[:3], *others]:
        keyword = datadict.keyword_for_tag(tag)
        wild = set("*?\\") | (set("-") if tag == START_DATE else set())
        single = asked and not wild & set(asked)
        if keyword in MENDABLE and single and (keyword, asked) not in given:
            given.append((keyword, asked))
    if not given or not again:
        return sentence, ()
    for keyword, asked in given:
        fields += [("keyword", keyword), ("value", asked)]
    words = t("Give the exam {asked}", asked=", ".join(
        t.date(asked) if is_date(asked) else asked for _, asked in given))  # fmt: skip
    return sentence, (Action("/why/mend", words, tuple(fields)),)


def asked_for(t: Translator, index: ElementIndex) -> str:
    """Return the matching keys of a query in words, without universal matches."""
    words = []
    for tag in index:
        if index.vr(tag) == b"SQ":
            words += [asked_for(t, item) for item in index.items(tag)]
        elif index.text(tag).strip("*"):
            words.append(f"{t(description_of(tag))} {index.text(tag)}")
    return ", ".join(filter(None, words))
