"""Appointment slip and label, with barcode and QR code."""

import io
import re

from minris.pages.frame import PageRequest
from minris.pages.language import shown_time
from minris.pages.reception import exam_of
from minris.pages.template import template
from minris.standard.dictionary import is_date

SLIP_PAGE = template("day/slip.html")
LABEL_PAGE = template("day/label.html")


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


def slip_page(p: PageRequest, row_id: int) -> str:
    """GET /step/…/slip: the appointment slip for the patient, with codes for a scanner."""
    t, index = p.t, exam_of(p, row_id)
    item = index.item("ScheduledProcedureStepSequence")
    device = p.device(item.get("ScheduledStationAETitle").split("\\")[0])
    facts = [
        (t("Patient ID"), index.get("PatientID")),
        (t("Birth date"), t.date(index.get("PatientBirthDate"))),
        (t("Sex"), t(index.get("PatientSex"))),
        (t("Exam"), index.get("RequestedProcedureDescription")),
        (t("Date"), t.date(item.get("ScheduledProcedureStepStartDate"))),
        (t("Time"), shown_time(item.get("ScheduledProcedureStepStartTime"))),
        (t("Device"), device.name if device else item.get("ScheduledStationAETitle")),
        (t("Accession number"), index.get("AccessionNumber")),
    ]
    return p.show(
        SLIP_PAGE, "Appointment slip", clinic=p.web.config.clinic.name, name=t.name(index.get("PatientName")),
        facts=facts, row_id=row_id, accession=index.get("AccessionNumber"),
        patient_id=index.get("PatientID"),
    )  # fmt: skip


def label_page(p: PageRequest, row_id: int) -> str:
    """GET /step/…/label: a label of 50 × 30 mm."""
    t, index, today = p.t, exam_of(p, row_id), p.ctx.today()
    item = index.item("ScheduledProcedureStepSequence")
    born = index.get("PatientBirthDate")
    about = [t(index.get("PatientSex")), t.date(born)]
    if is_date(born):
        years = int(today[:4]) - int(born[:4]) - (today[4:] < born[4:])
        about.append(t("{count} years", count=years))
    return p.show(
        LABEL_PAGE, "Print label", name=t.name(index.get("PatientName")),
        about=" · ".join(filter(None, about)),
        exam=index.get("RequestedProcedureDescription"),
        date=t.date(item.get("ScheduledProcedureStepStartDate")), row_id=row_id,
        accession=index.get("AccessionNumber"), patient_id=index.get("PatientID"),
    )  # fmt: skip


def accession_svg(p: PageRequest, row_id: int) -> bytes:
    """GET /step/…/code128.svg: the accession number as a barcode."""
    return p.svg(code_128(exam_of(p, row_id).get("AccessionNumber")))


def patient_svg(p: PageRequest, row_id: int) -> bytes:
    """GET /step/…/qr.svg: the Patient ID as a QR code."""
    return p.svg(qr_code(exam_of(p, row_id).get("PatientID")))
