"""Times in which a device has no exams, made and taken away on a page."""

from collections.abc import Iterable, Mapping

from minris.dataset.times import shown_date, typed_minute
from minris.orders.blocking import block_time, get_blocked, unblock_time
from minris.orders.diary import DAY_MINUTES, day_begins_ends
from minris.pages.day.board import stations_of
from minris.pages.forms import Field, show_form
from minris.pages.frame import PageRequest, row_number
from minris.pages.language import clock
from minris.standard.status import Message, Problem, Refusal


def blocked_page(
    p: PageRequest, form: Mapping[str, str] | None = None, problems: Iterable[Problem] = ()
) -> str:
    """GET /blocked: the form to block a time; ?id=: a blocked time, to be taken away."""
    t, row_id = p.t, row_number(p.query("id") or p.form("id"))
    opens, closes = map(clock, day_begins_ends(p.ctx))
    day = p.query("date") or f"{p.ctx.local_now():%Y-%m-%d}"
    form = form or {"device": p.query("device"), "first": day, "last": day, "reason": "",
                    "begins": p.query("time") or opens, "ends": closes}  # fmt: skip
    title, extra = Message("Block a time"), []
    if row_id:
        row, title = p.read(get_blocked, row_id), Message("Blocked time")
        form = {"device": row.ae_title, "first": shown_date(row.first), "last": shown_date(row.last),
                "reason": row.reason, "begins": clock(row.begins), "ends": clock(row.ends)}  # fmt: skip
        extra = [("unblock", t("Free this time again"))]
    fields = [
        Field("device", t("Device"), "select", form["device"], True, "", tuple(stations_of(p))),
        Field("first", t("First day"), "date", form["first"], True),
        Field("last", t("Last day"), "date", form["last"], True),
        Field("begins", t("From"), "time", form["begins"], True),
        Field("ends", t("To"), "time", form["ends"], True),
        Field("reason", t("Reason, such as service"), "text", form["reason"]),
    ]
    return show_form(
        p, title, [("", fields)], problems, action="/blocked", extra=extra,
        submit="" if row_id else t("Block this time"), hidden=[("id", str(row_id))] * bool(row_id),
        after=[(calendar_of(form), t("Back to the calendar"))],
    )  # fmt: skip


def calendar_of(form: Mapping[str, str]) -> str:
    """Return the path of the calendar of the first day."""
    return f"/calendar?date={form['first']}"


def post_blocked(p: PageRequest) -> str:
    """POST /blocked: block a time, or free it again."""
    names = ("device", "first", "last", "begins", "ends", "reason")
    form = {name: p.form(name).strip() for name in names}
    if p.form("event") == "unblock":
        p.write(unblock_time, p.number("id"))
        return p.tell(calendar_of(form), p.t("The time is free again."))
    first, last = (form[name].replace("-", "") for name in ("first", "last"))
    begins, ends = (typed_minute(form[name]) for name in ("begins", "ends"))
    ends = DAY_MINUTES if form["ends"] == "24:00" else ends or DAY_MINUTES
    try:
        p.write(block_time, form["device"], first, last, begins, ends, form["reason"])
    except Refusal as refusal:
        return blocked_page(p, form, p.again(refusal))
    device = p.device(form["device"])
    return p.tell(calendar_of(form), p.t(
        "{device} has no exams from {begins} to {ends}.", device=device.name if device else "",
        begins=clock(begins), ends=clock(ends),
    ))  # fmt: skip
