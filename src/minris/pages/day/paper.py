"""What is printed: appointment slip and label with their codes, the list of a day."""

import io
import itertools
import re
from typing import Any

from minris.config.settings import SETTINGS
from minris.dataset.elements import ElementIndex
from minris.dataset.times import shown_date
from minris.orders.items import exam_name
from minris.orders.lookup import steps_of_day
from minris.orders.waiting import known_number, number_of
from minris.pages.day.appointment import appointment_of, calendar_event, calendar_file
from minris.pages.frame import PageRequest
from minris.pages.language import device_names, shown_time
from minris.pages.reception import exam_of
from minris.pages.template import template
from minris.store.condition import StoreTrouble

SLIP_PAGE = template("day/slip.html")
LABEL_PAGE = template("day/label.html")
PRINT_PAGE = template("day/print.html")


def code_128(text: str) -> bytes:
    """Return a Code 128 barcode (SVG) of ASCII text; an empty SVG for any other text."""
    import barcode
    from barcode.writer import SVGWriter

    if not text or not text.isascii() or not text.isprintable():
        return b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    stream = io.BytesIO()
    barcode.get("code128", text, writer=SVGWriter()).write(stream, {"write_text": False})
    return scaled(stream.getvalue())


def scaled(drawing: bytes) -> bytes:
    """Make an SVG whose size is given in mm scale to any width and height."""
    sides = (
        re.search(rb'<svg[^>]* %b="([\d.]+)mm"' % side, drawing) for side in (b"width", b"height")
    )
    width, height = (float(side[1]) * 96 / 25.4 if side else 0.0 for side in sides)
    box = f'<svg viewBox="0 0 {width:.2f} {height:.2f}" preserveAspectRatio="none"'.encode()
    return drawing.replace(b"<svg", box, 1)


def qr_code(text: str) -> bytes:
    """Return a QR code (SVG) of a text, of any size."""
    import segno

    stream = io.BytesIO()
    segno.make(text or " ", micro=False).save(stream, kind="svg", omitsize=True)
    return stream.getvalue()


def qr_lines(text: str) -> str:
    """Return a QR code of a text in the characters of a terminal."""
    import segno

    stream = io.StringIO()
    segno.make(text, micro=False).terminal(out=stream, compact=True, border=2)
    return stream.getvalue().rstrip("\n")


def sizes_of(key: str) -> tuple[tuple[str, str], ...]:
    """Return the sizes of a kind of paper, by its setting, and as they are shown."""
    [kind] = [one.kind for one in SETTINGS if (one.section, one.key) == ("clinic", key)]
    return tuple((one, one.replace("x", " × ")) for one in kind.split()[1:])


def size_of_paper(p: PageRequest, key: str) -> dict[str, Any]:
    """Return the size that is chosen for a kind of paper, and links to all of them."""
    known, wanted = sizes_of(key), p.query("size")
    size = wanted if wanted in dict(known) else getattr(p.web.config.clinic, key)
    links = [(f"{p.request.path}?size={one}", words, one == size) for one, words in known]
    return {"size": size, "sizes": links}


def patient_facts(p: PageRequest, index: ElementIndex) -> str:
    """Return ID, sex and birth date with the age of a patient, in one line."""
    about = p.t.of_person(index, p.ctx.local_now().date())
    born = p.t.date(index.get("PatientBirthDate"))
    return p.t.dotted((index.get("PatientID"), born, about))


def waiting_number(p: PageRequest, row_id: int, date: str) -> int:
    """Return the number of an exam's patient in the waiting room, 0 if none is needed any more."""
    known: int = p.read(known_number, row_id)
    if known or date < p.ctx.today():
        return known
    try:
        return int(p.write(number_of, row_id))
    except StoreTrouble:  # what can be read is printed all the same
        return 0


def slip_page(p: PageRequest, row_id: int) -> str:
    """GET /step/…/slip: the appointment slip for the patient, with codes for a scanner."""
    t, index, clinic = p.t, exam_of(p, row_id), p.web.config.clinic
    item = index.item("ScheduledProcedureStepSequence")
    station = item.get("ScheduledStationAETitle").split("\\")[0]
    date = item.get("ScheduledProcedureStepStartDate")
    place = (device_names(p.web).get(station, station), item.get("ScheduledProcedureStepLocation"))
    return p.show(
        SLIP_PAGE, "Appointment slip", sheet="paper", row_id=row_id, name=t.name(index.get("PatientName")),
        facts=patient_facts(p, index), exam=exam_name(index), place=t.dotted(place),
        day=t.day(date) if date else "",
        time=shown_time(item.get("ScheduledProcedureStepStartTime")),
        contact=t.dotted((clinic.address, clinic.phone)),
        preparation=p.read(appointment_of, p.ctx, index).preparation,
        accession=index.get("AccessionNumber"), number=waiting_number(p, row_id, date),
        **size_of_paper(p, "slip_size"),
    )  # fmt: skip


def label_page(p: PageRequest, row_id: int) -> str:
    """GET /step/…/label: a label in one of the sizes of [clinic] label_size."""
    index = exam_of(p, row_id)
    item = index.item("ScheduledProcedureStepSequence")
    date = item.get("ScheduledProcedureStepStartDate")
    number = waiting_number(p, row_id, date)
    about = (exam_name(index), p.t.date(date), p.t("No. {number}", number=number) if number else "")
    return p.show(
        LABEL_PAGE, "Print label", sheet="paper", name=p.t.name(index.get("PatientName")), row_id=row_id,
        facts=patient_facts(p, index), exam=p.t.dotted(about),
        accession=index.get("AccessionNumber"), patient_id=index.get("PatientID"),
        **size_of_paper(p, "label_size"),
    )  # fmt: skip


def print_page(p: PageRequest) -> str:
    """GET /print: the exams of a day, a page for each device."""
    t, date = p.t, p.day("date") or p.ctx.today()
    names, found = device_names(p.web), []
    for row in p.read(steps_of_day, date):
        index = ElementIndex(bytes(row[3]))
        found.append((names.get(row[7], row[7] or "?"), (
            shown_time(row[2]), t.name(index.get("PatientName")),
            t.date(index.get("PatientBirthDate")), index.get("PatientID"), exam_name(index),
            t.name(index.get("ReferringPhysicianName")), index.get("AccessionNumber"), t(row[1]),
        )))  # fmt: skip
    found.sort(key=lambda one: one[0])
    by_device = itertools.groupby(found, key=lambda one: one[0])
    devices = [(device, [cells for _, cells in rows]) for device, rows in by_device]
    day = t.day(date)
    return p.show(
        PRINT_PAGE, t("Exams of {date}", date=day), sheet="paper", devices=devices, date=shown_date(date), day=day,
        printed=t("printed {at}", at=p.ctx.local_now()),
    )  # fmt: skip


def accession_svg(p: PageRequest, row_id: int) -> bytes:
    """GET /step/…/code128.svg: the accession number as a barcode."""
    return p.svg(code_128(exam_of(p, row_id).get("AccessionNumber")))


def patient_svg(p: PageRequest, row_id: int) -> bytes:
    """GET /step/…/qr.svg: the Patient ID as a QR code."""
    return p.svg(qr_code(exam_of(p, row_id).get("PatientID")))


def appointment_svg(p: PageRequest, row_id: int) -> bytes:
    """GET /step/…/appointment.svg: the appointment as a QR code that a telephone takes."""
    return p.svg(qr_code(calendar_event(p.read(appointment_of, p.ctx, exam_of(p, row_id)))))


def appointment_ics(p: PageRequest, row_id: int) -> str:
    """GET /step/…/appointment.ics: the appointment as a file for a calendar (RFC 5545)."""
    p.response.content_type = "text/calendar; charset=utf-8"
    p.response.set_header("Content-Disposition", 'attachment; filename="appointment.ics"')
    return calendar_file(p.ctx, p.read(appointment_of, p.ctx, exam_of(p, row_id)))
