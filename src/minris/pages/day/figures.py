"""Figures of days."""

import collections
import csv
import datetime
import io
import itertools
import statistics

from minris.access.context import Context
from minris.dataset.times import shown_date
from minris.interchange.csv_tables import no_formula
from minris.orders.history import Day, days_between
from minris.pages.frame import Frame
from minris.pages.language import Translator, device_names
from minris.pages.template import template
from minris.standard.dictionary import is_date
from minris.web.request import enter

FIGURES_PAGE = template("day/figures.html")
CHART = template("day/chart.svg")


class FigurePages(Frame):
    """Figures of days."""

    def _span(self, ctx: Context) -> tuple[str, str]:
        """The first and the last day that are asked for, DA; else the last four weeks."""
        asked = [(self.request.query.getunicode(name) or "").replace("-", "")
                 for name in ("first", "last")]  # fmt: skip
        month = f"{ctx.local_now() - datetime.timedelta(days=27):%Y%m%d}"
        first, last = (one if is_date(one) else other
                       for one, other in zip(asked, (month, ctx.today()), strict=True))  # fmt: skip
        return first, last

    def _figures(self, ctx: Context, t: Translator) -> tuple[tuple[str, ...], list[list[str]]]:
        """The table of figures: a row for each week and station."""
        weeks: dict[tuple[str, str], list[Day]] = {}
        for day in self.web.read(days_between, *self._span(ctx)):
            year, week, _ = datetime.date.fromisoformat(shown_date(day.date)).isocalendar()
            weeks.setdefault((f"{year}-W{week:02}", day.station), []).append(day)
        names = device_names(self.web)
        columns = (t("Week"), t("Device"), t("Exams"), t("Exams a day"), t("Done"), t("Given up"),
                   t("Given up, of those begun"), t("Did not come"),
                   t("Waiting, minutes (median)"), t("In the room, minutes (median)"))  # fmt: skip
        rows_ = []
        for (week, station), days in sorted(weeks.items()):
            exams, done, given_up, absent = (
                sum(getattr(day, key) for day in days)
                for key in ("exams", "completed", "discontinued", "no_show")
            )
            share = f"{100 * given_up / (done + given_up):.0f} %" if done + given_up else ""
            counts = (exams, f"{exams / len(days):.1f}", done, given_up, share, absent)
            medians = []
            for key in ("waiting", "room"):
                minutes = list(itertools.chain.from_iterable(getattr(day, key) for day in days))
                medians.append(f"{statistics.median(minutes):.0f}" if minutes else "")
            name = names.get(station, station)
            rows_.append([week, name, *map(str, counts), *medians])
        return columns, rows_

    def figures(self) -> str:
        """GET /figures: exams by week and device, how long people waited, how long exams took."""
        login, ctx = enter(self.web, self.request, "technologist")
        columns, rows_ = self._figures(ctx, self.translator())
        first, last = map(shown_date, self._span(ctx))
        return self.page(
            FIGURES_PAGE, "Figures", login, columns=columns, rows=rows_, first=first, last=last
        )

    def figures_csv(self) -> bytes:
        """GET /figures.csv: the same, for a spreadsheet."""
        _, ctx = enter(self.web, self.request, "technologist")
        columns, rows_ = self._figures(ctx, self.translator())
        stream = io.StringIO()
        csv.writer(stream).writerows(
            [columns, *([no_formula(cell) for cell in row] for row in rows_)]
        )
        return self._csv("figures.csv", stream.getvalue())

    def figures_svg(self) -> str:
        """GET /figures.svg: exams by day, as bars."""
        _, ctx = enter(self.web, self.request, "technologist")
        counts: collections.Counter[str] = collections.Counter()
        for day in self.web.read(days_between, *self._span(ctx)):
            counts[day.date] += day.exams
        most = max(counts.values(), default=1)
        bars = [(f"{date[6:8]}.{date[4:6]}.", count, round(120 * count / most))
                for date, count in sorted(counts.items())[-60:]]  # fmt: skip
        self.bottle.response.content_type = "image/svg+xml"
        return self.bottle.template(CHART, bars=bars, width=40 + 26 * max(1, len(bars)))
