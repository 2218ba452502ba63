"""Why is my patient not on the machine?"""

import datetime
from collections.abc import Mapping
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
from minris.pages.frame import Action, Frame, Part, Row, safe_path
from minris.pages.language import Translator
from minris.standard.dictionary import is_date, tag_of
from minris.standard.status import Message, Refusal, Status, description_of
from minris.standard.worklist import MWL_ATTRIBUTES, START_DATE, STEP_STATUS, STEP_TRANSITIONS
from minris.web.request import enter


class WhyPages(Frame):
    """Why is my patient not on the machine?"""

    def why(self) -> str:
        """GET /why: which device asked when, and the first key that kept each exam from it."""
        login, ctx = enter(self.web, self.request, "desk")
        t, query = self.translator(), self.request.query.getunicode("q") or ""
        self.web.write(save_queries, ctx, self.web.box.dimse.queries.take())
        since = ctx.stamp(days=-self.web.config.housekeeping.keep_queries_days)
        queries = self.web.read(recent_queries, since)
        parts = []
        if query.strip():
            steps = self.web.read(find_steps, query)[:10]
            parts = [self.explained(ctx, t, step, queries) for step in steps]
            if not steps:
                parts = [Part("", (), [], t("Nobody was found."))]
        columns = (t("Device"), t("Last"), t("Times in the hour"), t("Answers"), t("Asked for"))
        asked = [
            Row(
                (
                    f"{q.ae_title} {q.address}",
                    f"{datetime.datetime.fromisoformat(q.last_at).astimezone(ctx.config.zone):%d.%m. %H:%M:%S}",
                    str(q.count),
                    str(q.answers) if q.status in (0, Status.CANCEL) else f"{q.status:04X}",
                    asked_for(t, ElementIndex(bytes(q.keys))),
                )
            )
            for q in queries[:50]
        ]
        parts.append(Part(t("Queries of the devices"), columns, asked, t("There are none.")))
        label = t("Patient: name, ID or accession number")
        intro = t("Why is my patient not on the machine?")
        return self.listing("Why not there?", login, parts, search=label, query=query, intro=intro)

    def explained(self, ctx: Context, t: Translator, step: Any, queries: list[Any]) -> Part:
        """For one exam, each device's last different queries and what kept it from them."""
        data, found_rows, is_found = bytes(step.data), [], False
        for query in latest_by_device(queries):
            device = self.web.access().device(query.ae_title)
            try:
                search = Search(ElementIndex(bytes(query.keys)), MWL_ATTRIBUTES)
            except Refusal as refusal:
                found_rows.append(
                    Row((query.ae_title, t("The query was refused: {words}", words=refusal.detail)))
                )
                continue
            seen = Context(
                ctx.config, ctx.actor, lambda q=query: datetime.datetime.fromisoformat(q.last_at)
            )
            why = exclusion(ctx.config, search, WorklistView.of(seen, device), data)
            others = search.mismatches(ElementIndex(data))
            sentence, actions = reason_of(t, why, step, others)
            when = datetime.datetime.fromisoformat(query.last_at).astimezone(ctx.config.zone)
            found_rows.append(Row((query.ae_title, f"{when:%d.%m. %H:%M}", sentence), "", actions))
            stations = step_item(step).values(tag_of("ScheduledStationAETitle"))
            titles = device.ae_titles if device else (query.ae_title,)
            is_found |= why is None and bool(set(titles) & set(stations))
        if is_found:  # by its own machine: nothing is to be mended
            found_rows = [row._replace(actions=()) for row in found_rows]
        index = ElementIndex(data)
        heading = (
            f"{t.name(index.get('PatientName'))}, {t.date(step.start_date)} {step.accession_number}"
        )
        columns = (t("Device"), t("Asked"), t("What came of it"))
        return Part(heading, columns, found_rows, t("No device has asked for a worklist."))

    def mend(self) -> str:
        """POST /why/mend: give the exam what the device asked for."""
        _, ctx = enter(self.web, self.request, "desk")
        row_id, forms = self.number("step"), self.request.forms
        given = dict(zip(forms.getall("keyword"), forms.getall("value"), strict=False))
        if "ScheduledProcedureStepStatus" in given:
            study, step_id = self.web.read(step_key, row_id)
            self.web.write(reschedule, ctx, study, step_id, b"")
        elif given and MENDABLE.issuperset(given):
            self.web.write(mend_step, ctx, row_id, given)
        else:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
        t = self.translator()
        following = safe_path(self.request.get_header("Referer"), "/why")
        return self.tell(following, t("Mended: the next query of the device finds the exam."))


MENDABLE = frozenset({"ScheduledStationAETitle", "Modality", "ScheduledProcedureStepStartDate"})


def mend_step(ctx: Context, row_id: int, given: Mapping[str, str]) -> bytes:
    """Give a step what a query asked for: its station, modality or day, by keyword."""
    return move_step(ctx, row_id, **given)


def reason_of(
    t: Translator, why: Exclusion | None, step: Any, others: list[tuple[int, str, str]]
) -> tuple[str, tuple[Action, ...]]:
    """Why a query did not find an exam, in a sentence, and the click that mends it.

    others  every key that the exam does not satisfy
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
        if (
            keyword in MENDABLE
            and asked
            and not wild & set(asked)
            and (keyword, asked) not in given
        ):
            given.append((keyword, asked))
    if not given or not again:
        return sentence, ()
    for keyword, asked in given:
        fields += [("keyword", keyword), ("value", asked)]
    words = t("Give the exam {asked}", asked=", ".join(
        t.date(asked) if is_date(asked) else asked for _, asked in given))  # fmt: skip
    return sentence, (Action("/why/mend", words, tuple(fields)),)


def asked_for(t: Translator, index: ElementIndex) -> str:
    """The keys of a query that are not universal, in words."""
    words = []
    for tag in index:
        if index.vr(tag) == b"SQ":
            words += [asked_for(t, item) for item in index.items(tag)]
        elif index.text(tag).strip("*"):
            words.append(f"{t(description_of(tag))} {index.text(tag)}")
    return ", ".join(filter(None, words))
