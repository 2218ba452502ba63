"""Patient not on the machine?"""

from collections.abc import Iterable
from typing import Any

from pydicom import datadict

from minris.access.context import Context
from minris.config.ini import Device
from minris.dataset.elements import ElementIndex
from minris.dataset.search import Search
from minris.orders.items import step_item
from minris.orders.lookup import find_steps, step_key
from minris.orders.scheduling import move_step, reschedule
from minris.orders.trace import Exclusion, exclusion, latest_by_device, recent_queries, save_queries
from minris.orders.worklist import WorklistView
from minris.pages.asking import exam_words
from minris.pages.frame import Action, PageRequest, Part, Row, no_such_action
from minris.pages.language import Translator, day_of, local_time
from minris.seen import mark_of
from minris.standard.dictionary import is_date, tag_of
from minris.standard.status import Refusal, Status, description_of
from minris.standard.worklist import MWL_ATTRIBUTES, START_DATE, STEP_STATUS, STEP_TRANSITIONS


def why_page(p: PageRequest) -> str:
    """GET /why: the devices' queries, and for each exam found the first key that excluded it."""
    t, query = p.t, p.query("q")
    p.write(save_queries, p.web.box.dimse.queries.take())
    queries = p.read(recent_queries, p.ctx.stamp(days=-p.web.config.housekeeping.keep_queries_days))
    steps = p.read(find_steps, query) if query.strip() else []
    steps = sorted(steps, key=lambda step: days_away(p, step))[:10]
    parts = [explained(p, step, queries) for step in steps]
    if query.strip() and not steps:
        parts = [p.listed("", [], "No patient found.")]
    asked = [
        Row((f"{q.ae_title} {q.address}", p.at(q.last_at),
             str(q.count),
             str(q.answers) if q.status in (0, Status.CANCEL) else f"{q.status:04X}",
             asked_for(t, ElementIndex(bytes(q.keys)))))
        for q in queries[:50]
    ]  # fmt: skip
    parts.append(p.listed("Device | Last | Times in the hour | Answers | Asked for", asked,
                          "No device has queried the worklist yet.", t("Queries of the devices")))  # fmt: skip
    label = t("Patient: name, ID or accession number")
    intro = t("Patient not on the machine?")
    return p.listing("Not on the machine?", parts, search=label, query=query, intro=intro)


def days_away(p: PageRequest, step: Any) -> int:
    """Return how many days an exam is from today, to have today's first."""
    return abs((day_of(step.start_date or "19000101") - day_of(p.ctx.today())).days)


def explained(p: PageRequest, step: Any, queries: list[Any]) -> Part:
    """Return a table for one exam: each device's recent queries, and the key that excluded it."""
    ctx, t, data, is_found = p.ctx, p.t, bytes(step.data), False
    own: list[Row] = []
    others: list[Row] = []
    stations = step_item(step).values(tag_of("ScheduledStationAETitle"))
    stray = not any(map(p.device, stations))  # it is meant for no machine that we know
    for query in latest_by_device(queries):
        device = p.device(query.ae_title)
        try:
            search = Search(ElementIndex(bytes(query.keys)), MWL_ATTRIBUTES)
        except Refusal as refusal:
            words = t("The query was refused: {words}", words=refusal.detail)
            others.append(Row((query.ae_title, "", words)))
            continue
        when = local_time(query.last_at, ctx.config.zone)
        seen = Context(ctx.config, ctx.actor, lambda when=when: when)
        why = exclusion(ctx.config, search, WorklistView.of(seen, device), data)
        titles = device.ae_titles if device else (query.ae_title,)
        is_own = bool(set(titles) & set(stations))
        sentence, given = reason_of(t, why, step)
        if why and (is_own or (device and stray)):
            keys = [why[:3], *search.mismatches(ElementIndex(data))]
            if wrong := misset(t, keys, device, titles):
                sentence, given = f"{sentence} {wrong}", []
            elif why.asked:
                given = mendable(keys, step, ctx.today())
        if not is_own and not stray:
            given = []
        row = Row((query.ae_title, p.at(query.last_at), sentence), "",
                  mend_action(t, step, given))  # fmt: skip
        is_found |= why is None and is_own
        (own if is_own else others).append(row)
    if is_found:  # its own machine finds it: there is nothing to fix
        own, others = ([row._replace(actions=()) for row in rows] for rows in (own, others))
    index = ElementIndex(data)
    heading = f"{exam_words(t, index)}, {step.accession_number} ({t(step.status)})"
    return p.listed("Device | Asked | Outcome", own + others,
                    "No device has asked for a worklist.", heading)  # fmt: skip


def post_mend(p: PageRequest) -> str:
    """POST /why/mend: set the exam to the values that the device asked for."""
    row_id, forms = p.number("step"), p.request.forms
    given = dict(zip(forms.getall("keyword"), forms.getall("value"), strict=False))
    about, event = ("step", row_id), "reschedule"
    if "ScheduledProcedureStepStatus" in given:
        p.write_seen(about, event, reschedule, *p.read(step_key, row_id), b"")
    elif given and MENDABLE.issuperset(given):
        p.write_seen(about, event, lambda ctx: move_step(ctx, row_id, **given))
    else:
        raise no_such_action()
    words = p.t("Fixed: the next query of the device finds the exam.")
    return p.tell(p.came_from("/why"), words, f"step {row_id}")


Mend = tuple[str, str]  # a keyword of MENDABLE, and the value that the exam gets
MENDABLE = frozenset({"ScheduledStationAETitle", "Modality", "ScheduledProcedureStepStartDate"})


MissedKey = tuple[int, str, str]  # an attribute, the value that was asked for, that of the exam


def reason_of(t: Translator, why: Exclusion | None, step: Any) -> tuple[str, list[Mend]]:
    """Return why a query did not find an exam, in one sentence, and what puts it back on the list."""
    if why is None:
        return t("It is found."), []
    if why.tag == STEP_STATUS and not why.asked:
        again = isinstance(STEP_TRANSITIONS["reschedule", step.status], str)
        words = t("The exam is {state}; that is not shown to devices.", state=t(why.has))
        return words, [("ScheduledProcedureStepStatus", "")] * again
    asked, has = (t.date(one) if is_date(one) else one for one in (why.asked, why.has))
    values = {"name": t(why.name), "asked": asked, "has": has or t("nothing")}
    return t("It asked for {name} {asked}; the exam has {has}.", **values), []


def misset(
    t: Translator, keys: Iterable[MissedKey], device: Device | None, titles: Iterable[str]
) -> str:
    """Return the sentence on a filter of a machine that contradicts how the machine is registered.

    The exam is right then: it would be made wrong to be found.
    """
    meant = {"Modality": {device.modality} - {""} if device else set(),
             "ScheduledStationAETitle": set(titles)}  # fmt: skip
    for tag, asked, _ in keys:
        right = meant.get(datadict.keyword_for_tag(tag))
        if right and is_single(tag, asked) and asked not in right:
            return t("The machine's filter is set to {asked}, and it is registered with {right}:"
                     " change it at the machine.", asked=asked, right=t.listed(sorted(right)))  # fmt: skip
    return ""


def is_single(tag: int, asked: str) -> bool:
    """Tell whether a key asks for one value."""
    wild = set("*?\\") | (set("-") if tag == START_DATE else set())
    return bool(asked) and not wild & set(asked)


def mendable(keys: Iterable[MissedKey], step: Any, today: str) -> list[Mend]:
    """Return the values that its own machine asked for and that an exam can be given."""
    given: list[Mend] = []
    if not isinstance(STEP_TRANSITIONS["reschedule", step.status], str):
        return given
    for tag, asked, _ in keys:
        keyword = datadict.keyword_for_tag(tag)
        past = tag == START_DATE and asked < today
        if keyword in MENDABLE and is_single(tag, asked) and not past:
            given.append((keyword, asked))
    return list(dict.fromkeys(given))


def mend_action(t: Translator, step: Any, given: list[Mend]) -> tuple[Action, ...]:
    """Return the button that gives an exam the values that its machine asked for."""
    if not given:
        return ()
    seen = "step_state", mark_of(step.status, step.study_instance_uid)
    fields = [("step", str(step.id)), seen]
    for keyword, asked in given:
        fields += [("keyword", keyword), ("value", asked)]
    shown = t.listed(t.date(asked) if is_date(asked) else asked for _, asked in given)
    words = t("Give the exam {asked}", asked=shown) if shown else t("Put back on the worklist")
    return (Action("/why/mend", words, tuple(fields)),)


def asked_for(t: Translator, index: ElementIndex) -> str:
    """Return the matching keys of a query in words, without universal matches."""
    words = []
    for tag in index:
        if index.vr(tag) == b"SQ":
            words += [asked_for(t, item) for item in index.items(tag)]
        elif index.text(tag).strip("*"):
            words.append(f"{t(description_of(tag))} {index.text(tag)}")
    return t.listed(words)
