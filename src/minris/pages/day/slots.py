"""The free times of a device, offered while an exam is registered or changed."""

from collections.abc import Mapping
from typing import Any

from minris.config.ini import Device
from minris.dataset.times import shown_date, typed_minute
from minris.orders.catalogue import find_procedure
from minris.orders.diary import in_the_way, next_free
from minris.pages.forms import coming_dates, today_of
from minris.pages.frame import PageRequest, row_number
from minris.pages.language import booked_words, clock
from minris.pages.template import template

SLOTS_PART = template("day/slots_part.html")
MOST_TIMES = 8  # of a day


def slots_part(p: PageRequest) -> str:
    """GET /slots: exams that overlap with a time, and the next free times; fetched by the script."""
    names = ("procedure", "device", "modality", "date", "time")
    return free_times_part(p, {name: p.query(name) for name in names}, row_number(p.query("step")))


def device_for(p: PageRequest, form: Mapping[str, str], procedure: Any) -> Device | None:
    """Return the device of a form, else that of the exam in the catalogue, else the only one."""
    if form["device"] or (procedure and procedure.ae_title):
        return p.device(form["device"] or procedure.ae_title)
    modality = form["modality"] or (procedure.modality if procedure else "")
    known = [one for one in p.devices if one.role == "modality" and one.modality == modality]
    return known[0] if len(known) == 1 else None


def free_times_part(p: PageRequest, form: Mapping[str, str], row_id: int = 0) -> str:
    """Return what stands beside the time of an exam: who is there already, and the next free times.

    form    procedure, device, modality, date and time as typed
    row_id  the exam itself, if it is on the worklist already
    """
    procedure = p.read(find_procedure, form["procedure"].strip()) if form["procedure"] else None
    device, days = device_for(p, form, procedure), coming_dates(form["date"], today_of(p))
    if not device or len(days) != 1:
        return p.part(SLOTS_PART, device=None, taken="", offered=[], procedure=procedure)
    time = typed_minute(form["time"])
    begin = max(time, 0)
    minutes = procedure.minutes if procedure else p.ctx.config.clinic.slot_minutes
    exam = form["procedure"].strip()
    taken, _ = p.read(in_the_way, p.ctx, device.ae_title, days[0], begin, exam, row_id)
    chosen = f"{shown_date(days[0])} {clock(begin)}"
    offered = []
    for date, free in p.read(next_free, p.ctx, device.ae_title, days[0], 0, minutes, row_id):
        first = next((n for n, one in enumerate(free) if date != days[0] or one >= begin), 0)
        start = max(0, min(first, len(free) - MOST_TIMES))
        times = [
            (f"{shown_date(date)} {clock(one)}", clock(one))
            for one in free[start : start + MOST_TIMES]
        ]
        offered.append((p.t.day(date), times))
    return p.part(
        SLOTS_PART, device=device, minutes=minutes, procedure=procedure, chosen=chosen,
        taken=booked_words(p.t, taken) if time >= 0 else "", offered=offered,
    )  # fmt: skip
