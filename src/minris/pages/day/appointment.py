"""An appointment for a patient's own calendar (RFC 5545)."""

import datetime
import re
from typing import NamedTuple

from minris.access.context import Context
from minris.dataset.elements import ElementIndex
from minris.orders.catalogue import all_procedures
from minris.orders.diary import minute_of_day
from minris.orders.items import exam_name
from minris.standard.dictionary import is_date


class Appointment(NamedTuple):
    """When a patient is to come for what; times by the clinic's clock, None: the whole day."""

    uid: str
    date: str
    begin: datetime.datetime | None
    end: datetime.datetime | None
    what: str
    where: str
    preparation: str


def appointment_of(ctx: Context, index: ElementIndex) -> Appointment:
    """Return the appointment of a scheduled step."""
    item, clinic = index.item("ScheduledProcedureStepSequence"), ctx.config.clinic
    date = item.get("ScheduledProcedureStepStartDate")
    time = item.get("ScheduledProcedureStepStartTime")
    code = index.item("RequestedProcedureCodeSequence").get("CodeValue")
    exam = exam_name(index)
    known = all_procedures()
    of_code = [one for one in known if code and one.code == code]
    procedure = (of_code or [one for one in known if one.meaning == exam] or [None])[0]
    begin = end = None
    if is_date(date) and time:
        day = datetime.datetime.strptime(date, "%Y%m%d").replace(tzinfo=ctx.config.zone)
        minute = minute_of_day(time)
        begin = day.replace(hour=minute // 60, minute=minute % 60)
        minutes = procedure.minutes if procedure else clinic.slot_minutes
        end = begin + datetime.timedelta(minutes=minutes)
    return Appointment(
        uid=f"{index.get('StudyInstanceUID')}.{item.get('ScheduledProcedureStepID')}@minris",
        date=date, begin=begin, end=end, what=f"{exam}, {clinic.name}".strip(", "),
        where=clinic.address, preparation=procedure.preparation if procedure else "",
    )  # fmt: skip


def _text(value: str) -> str:
    """A TEXT value: what has a meaning there is escaped (RFC 5545 3.3.11)."""
    escaped = re.sub(r"([\\\\;,])", r"\\\1", value)
    return re.sub("\r?\n", r"\\n", escaped)


def _lines(one: Appointment) -> list[str]:
    lines = ["BEGIN:VEVENT", f"SUMMARY:{_text(one.what)}"]
    if one.begin and one.end:
        for name, at in (("DTSTART", one.begin), ("DTEND", one.end)):
            lines.append(f"{name}:{at.astimezone(datetime.UTC):%Y%m%dT%H%M%SZ}")
    elif one.date:
        lines.append(f"DTSTART;VALUE=DATE:{one.date}")
    if one.where:
        lines.append(f"LOCATION:{_text(one.where)}")
    return lines


def calendar_event(one: Appointment) -> str:
    """Return the appointment as short as a camera reads it well."""
    return "\n".join([*_lines(one), "END:VEVENT"])


def calendar_file(ctx: Context, one: Appointment) -> str:
    """Return the appointment as a calendar; a changed one replaces it by its UID."""
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//minris//EN", *_lines(one)]
    lines += [f"UID:{one.uid}", f"DTSTAMP:{ctx.now().astimezone(datetime.UTC):%Y%m%dT%H%M%SZ}"]
    if one.preparation:
        lines.append(f"DESCRIPTION:{_text(one.preparation)}")
    lines += ["END:VEVENT", "END:VCALENDAR", ""]
    return "\r\n".join(map(_folded, lines))


def _folded(line: str) -> str:
    """A line of at most 75 bytes, continued on further ones (RFC 5545 3.1)."""
    folded, size = [], 0
    for letter in line:
        size += len(letter.encode())
        if size > 75:
            folded.append("\r\n ")
            size = 1 + len(letter.encode())
        folded.append(letter)
    return "".join(folded)
