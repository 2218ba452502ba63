"""What days before left open, and what came without an order."""

import functools

from minris.dataset.elements import ElementIndex
from minris.mpps.linking import link_by_hand, settle_unscheduled, unlink_step, unscheduled_steps
from minris.orders.items import step_item
from minris.orders.lookup import leftovers, steps_of_day
from minris.orders.scheduling import change_rows
from minris.pages.frame import Action, Frame, Part, Row
from minris.pages.language import Translator, shown_time
from minris.pages.template import template
from minris.standard.mpps import STEP_ATTRIBUTES
from minris.standard.status import Message, Refusal, Status
from minris.web.request import enter

LEFTOVERS_PAGE = template("day/leftovers.html")


class LeftoverPages(Frame):
    """What days before left open, and what came without an order."""

    def leftovers_page(self) -> str:
        """GET /leftovers: what is still open from days before."""
        login, ctx = enter(self.web, self.request, "desk")
        t = self.translator()
        steps = [
            (
                step.id,
                t.name(ElementIndex(bytes(step.data)).get("PatientName")),
                step.patient_id,
                step_item(step).get("ScheduledProcedureStepDescription"),
                t.date(step.start_date),
                step.status,
            )
            for step in self.web.read(leftovers, ctx.today())
        ]
        return self.page(LEFTOVERS_PAGE, "Leftovers", login, steps=steps, csrf=login.form_token)

    def end_leftovers(self) -> str:
        """POST /leftovers: did not come, done, cancelled, or moved to today; all or none."""
        _, ctx = enter(self.web, self.request, "desk")
        event = self.form("event")
        if event not in ("no show", "finish", "cancel", "today"):
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
        chosen = [int(row) for row in self.request.forms.getall("row") if row.isdigit()]
        self.web.write(change_rows, ctx, event, chosen)
        return self.redirect("/leftovers")

    def unscheduled(self) -> str:
        """GET /unscheduled: performed steps without an order, to be matched by a person."""
        login, ctx = enter(self.web, self.request, "desk")
        t = self.translator()
        choices_of = functools.cache(functools.partial(self.choices_of_day, t))
        found_rows = []
        for row in self.web.read(unscheduled_steps):
            index, fields = ElementIndex(bytes(row.data)), (("performed", str(row.id)),)
            cells = (
                t.name(index.get("PatientName")) or "?",
                index.get("PatientID"),
                row.performed_station_ae_title,
                t.date(index.get("PerformedProcedureStepStartDate"))
                + " "
                + shown_time(index.get("PerformedProcedureStepStartTime")),
                index.get("PerformedProcedureStepDescription"),
                t(row.status),
            )
            days = {index.get("PerformedProcedureStepStartDate"), ctx.today()} - {""}
            choices = [choice for day in sorted(days) for choice in choices_of(day)]
            near = similar_first(t, choices, index)
            match = Action("/unscheduled/match", t("Match"), fields, "step", t("Exam"), near)
            leave = Action("/unscheduled/settle", t("No order"), fields, "reason", t("Reason"))
            found_rows.append(Row(cells, "", (match, leave) if near else (leave,)))
        columns = (t("Patient"), t("Patient ID"), t("Device"), t("Begin"), t("Exam"), t("State"))
        intro = t("Devices reported these exams, and no order of ours was found for them.")
        part = Part("", columns, found_rows, t("There are none."))
        return self.listing("Unscheduled", login, [part], intro=intro)

    def choices_of_day(self, t: Translator, day: str) -> list[tuple[str, str]]:
        """The exams of a day to choose from: row and words."""
        return [
            (str(row[0]), f"{t.date(day)} {shown_time(row[2])}"
             f" {t.name(index.get('PatientName'))} {index.get('AccessionNumber')}")
            for row in self.web.read(steps_of_day, day)
            for index in [ElementIndex(bytes(row[3]))]
        ]  # fmt: skip

    def match(self) -> str:
        """POST /unscheduled/match."""
        _, ctx = enter(self.web, self.request, "desk")
        performed, step = self.number("performed"), self.number("step")
        self.web.write(link_by_hand, ctx, performed, step)
        return self.tell("/unscheduled", self.translator()("Matched."))

    def settle(self) -> str:
        """POST /unscheduled/settle."""
        _, ctx = enter(self.web, self.request, "desk")
        self.web.write(settle_unscheduled, ctx, self.number("performed"), self.form("reason"))
        return self.tell("/unscheduled", self.translator()("Saved."))

    def unmatch(self) -> str:
        """POST /unmatch: undo a match."""
        _, ctx = enter(self.web, self.request, "desk")
        step = self.number("step")
        self.web.write(unlink_step, ctx, self.number("performed"), step)
        return self.redirect(f"/step/{step}")


def similar_first(
    t: Translator, choices: list[tuple[str, str]], index: ElementIndex
) -> tuple[tuple[str, str], ...]:
    """Exams to choose from, those of the same patient by name or accession number before others."""
    wanted = {t.name(index.get("PatientName")), *(
        item.get("AccessionNumber") for item in index.items(STEP_ATTRIBUTES))} - {""}  # fmt: skip
    return tuple(sorted(choices, key=lambda choice: not any(w in choice[1] for w in wanted)))
