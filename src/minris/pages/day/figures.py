"""Statistics of exams."""

import collections
import csv
import datetime
import io
import itertools
import statistics

from minris.dataset.times import shown_date
from minris.interchange.csv_tables import no_formula
from minris.orders.history import Day, days_between
from minris.pages.frame import PageRequest, Row
from minris.pages.language import device_names
from minris.pages.template import template

FIGURES_PAGE = template("day/figures.html")
CHART = template("day/chart.svg")


def days_asked_for(p: PageRequest) -> tuple[str, str]:
    """Return the first and last day of the query (DA); default: the last four weeks."""
    month = f"{p.ctx.local_now() - datetime.timedelta(days=27):%Y%m%d}"
    return p.day("first") or month, p.day("last") or p.ctx.today()


def table_of_figures(p: PageRequest) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the columns, and one row per week and station."""
    t, names = p.t, device_names(p.web)
    weeks: dict[tuple[str, str], list[Day]] = {}
    for day in p.read(days_between, *days_asked_for(p)):
        year, week, _ = datetime.date.fromisoformat(shown_date(day.date)).isocalendar()
        weeks.setdefault((f"{year}-W{week:02}", day.station), []).append(day)
    columns = (t("Week"), t("Device"), t("Exams"), t("Exams a day"), t("Done"), t("Stopped"),
               t("Stop rate"), t("No-show"),
               t("Waiting time, minutes (median)"), t("Exam time, minutes (median)"))  # fmt: skip
    table = []
    for (week, station), days in sorted(weeks.items()):
        exams, done, given_up, absent = (
            sum(getattr(day, key) for day in days)
            for key in ("exams", "completed", "discontinued", "no_show")
        )
        share = f"{100 * given_up / (done + given_up):.0f} %" if done + given_up else ""
        counts = (exams, t.number(exams / len(days)), done, given_up, share, absent)
        medians = []
        for key in ("waiting", "room"):
            minutes = list(itertools.chain.from_iterable(getattr(day, key) for day in days))
            medians.append(f"{statistics.median(minutes):.0f}" if minutes else "")
        table.append([week, names.get(station, station), *map(str, counts), *medians])
    return columns, table


def figures_page(p: PageRequest) -> str:
    """GET /figures: exams per week and device, waiting times, durations."""
    columns, table = table_of_figures(p)
    first, last = map(shown_date, days_asked_for(p))
    lines = [Row(tuple(line)) for line in table]
    return p.show(FIGURES_PAGE, "Statistics", columns=columns, rows=lines, first=first, last=last)


def figures_csv(p: PageRequest) -> bytes:
    """GET /figures.csv: the same as CSV."""
    columns, table = table_of_figures(p)
    stream = io.StringIO()
    csv.writer(stream).writerows([columns, *([no_formula(cell) for cell in row] for row in table)])
    return p.csv("figures.csv", stream.getvalue())


def figures_svg(p: PageRequest) -> str:
    """GET /figures.svg: exams per day as a bar chart."""
    counts: collections.Counter[str] = collections.Counter()
    for day in p.read(days_between, *days_asked_for(p)):
        counts[day.date] += day.exams
    most = max(counts.values(), default=1)
    bars = [(p.t.short_date(date), count, round(120 * count / most))
            for date, count in sorted(counts.items())[-60:]]  # fmt: skip
    return p.svg(p.part(CHART, bars=bars, width=40 + 26 * max(1, len(bars))))
