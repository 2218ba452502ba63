"""What is printed, read back from its PDF: sizes, text, codes at the 203 dpi of a label printer."""

import datetime
import re
import shutil
import subprocess

import pytest
from conftest import Running, item, write_config
from test_label import sheets_of
from test_pages import ARTEFACTS, Desk, chromium, employ, visiting  # noqa: F401

from minris.config.ini import load_config

NAME = "Featherstonehaugh-Gyjpq^Hubert-Blaine"
CLINIC = """[clinic]
name = Lakeside Clinic
address = 12 Lake Road, Northtown
phone = 555-0100
timezone = Asia/Shanghai
"""
needs_zbar = pytest.mark.skipif(not shutil.which("zbarimg"), reason="zbarimg is not here")


@pytest.fixture(scope="module")
def desk(chromium, tmp_path_factory, ready_store):  # noqa: F811
    """One browser at one appliance, for all tests of this module."""
    config = load_config(write_config(tmp_path_factory.mktemp("paper"), CLINIC))
    ready_store(config.store_path)
    running = Running(config)
    exam = {"PatientBirthDate": "19780312", "PatientID": "P000042", "PatientSex": "M"}
    running.schedule(
        item(NAME, AccessionNumber="2612010001", ReferringPhysicianName="House^Gregory", **exam),
        item("Ouyang^Na=欧阳^娜", AccessionNumber="2612010002", ScheduledStationAETitle="DX1", Modality="DX"),
        *(item(f"Many^Patient{n}", ScheduledStationAETitle="US1", Modality="US") for n in range(60)),
    )  # fmt: skip
    one = Desk(chromium, running)
    one.enter()
    one.page.locator("#board").wait_for()
    yield one
    one.context.close()
    running.stop()


def printed(desk, path, name):
    """Print a page; the text of each sheet."""
    desk.page.goto(path, wait_until="load")
    desk.page.pdf(path=ARTEFACTS / name, prefer_css_page_size=True)
    command = ["pdftotext", "-layout", ARTEFACTS / name, "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return text.split("\f")[:-1]


def codes_of(name, dpi=203):
    """The codes on the first sheet of a PDF, as a scanner reads them: kind and text."""
    picture = (ARTEFACTS / name).with_suffix("")
    draw = ["pdftoppm", "-r", str(dpi), "-gray", "-png", "-singlefile", ARTEFACTS / name, picture]
    subprocess.run(draw, check=True)
    scan = ["zbarimg", "-q", "--xml", f"{picture}.png"]
    told = subprocess.run(scan, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"symbol type='([^']*)'.*?<!\[CDATA\[(.*?)\]\]>", told, re.S)
    return dict(found)


@pytest.mark.parametrize("size", ["50x30", "57x32", "89x36"])
def test_a_label_has_its_size_and_its_text(desk, size):
    [text] = printed(desk, f"/step/1/label?size={size}", f"label-{size}.pdf")
    assert sheets_of(desk.page, f"label-{size}.pdf") == [tuple(map(int, size.split("x")))]
    words = " ".join(text.split())
    for part in ("Blaine", "P000042", "12 Mar 1978", "CT chest", "2612010001"):
        assert part in words
    assert "…" not in words


@needs_zbar
@pytest.mark.parametrize("size", ["50x30", "57x32", "89x36"])
def test_the_codes_of_a_label_are_read_at_203_dpi(desk, size):
    printed(desk, f"/step/1/label?size={size}", f"codes-{size}.pdf")
    assert codes_of(f"codes-{size}.pdf") == {"CODE-128": "2612010001", "QR-Code": "P000042"}


def test_the_size_of_the_setting_is_the_first(desk):
    printed(desk, "/step/1/label", "label-default.pdf")
    assert sheets_of(desk.page, "label-default.pdf") == [(50, 30)]
    assert desk.page.locator("[aria-current=true]").inner_text() == "50 × 30"


@pytest.mark.parametrize(("size", "sheet"), [("A5", (148, 210)), ("A6", (105, 148))])
def test_a_slip_is_one_sheet_with_what_a_patient_needs(desk, size, sheet):
    [text] = printed(desk, f"/step/1/slip?size={size}", f"slip-{size}.pdf")
    assert sheets_of(desk.page, f"slip-{size}.pdf") == [sheet]
    words = " ".join(text.split())
    for part in ("Lakeside Clinic", "12 Lake Road, Northtown · 555-0100", "Sun, 5 Jul 2026 09:30",
                 "CT chest", "CT room", "P000042", "2612010001"):  # fmt: skip
        assert part in words


@needs_zbar
@pytest.mark.parametrize("size", ["A5", "A6"])
def test_a_telephone_takes_the_appointment_from_the_slip(desk, size):
    printed(desk, f"/step/1/slip?size={size}", f"slip-codes-{size}.pdf")
    codes = codes_of(f"slip-codes-{size}.pdf")
    assert codes["CODE-128"] == "2612010001"
    assert codes["QR-Code"].split("\n") == [
        "BEGIN:VEVENT",
        "SUMMARY:CT chest\\, Lakeside Clinic",
        "DTSTART:20260705T013000Z",
        "DTEND:20260705T014500Z",
        "LOCATION:12 Lake Road\\, Northtown",
        "END:VEVENT",
    ]


def test_the_day_is_a_page_for_each_device_with_header_and_numbers(desk):
    sheets = printed(desk, "/print?date=2026-07-05", "day.pdf")
    first, *of_ultrasound, last = [" ".join(sheet.split()) for sheet in sheets]
    assert len(of_ultrasound) >= 2
    assert re.search(rf"1 ?/ ?{len(sheets)}", first)
    assert re.search(rf"{len(sheets)} ?/ ?{len(sheets)}", last)
    for words in (first, *of_ultrasound, last):  # the header stands on each sheet
        assert re.search(r"Sun, 5 Jul 2026 · Lakeside Clinic · printed \d+ \w{3} \d{4}", words)
        assert "Referring" in words
    assert "☐" in first
    assert "CT room" in first
    assert "12 Mar 1978" in first
    assert "House Gregory" in first
    assert all("Ultrasound" in words for words in of_ultrasound)
    assert "X-ray" in last
    assert "欧阳娜" in last
    assert all(wide > high for wide, high in sheets_of(desk.page, "day.pdf"))


def test_a_page_to_print_has_a_button_that_prints(desk):
    for path in ("/print?date=2026-07-05", "/step/1/slip", "/step/1/label"):
        desk.page.goto(path)
        desk.page.evaluate("() => { window.print = () => { document.title = 'printed'; }; }")
        desk.page.get_by_role("button", name="Print", exact=True).click()
        assert desk.page.title() == "printed"


def test_the_appointment_is_a_file_for_a_calendar(appliance):
    appliance.schedule(
        item(
            "Ouyang^Na=欧阳^娜",
            RequestedProcedureDescription="头颅、颈部和胸部增强扫描检查；含三维重建",
        )
    )
    with visiting(appliance) as client:
        answer = employ(appliance, client).get("/step/1/appointment.ics")
    assert answer.headers["content-type"] == "text/calendar; charset=utf-8"
    lines = answer.content.split(b"\r\n")
    assert max(map(len, lines)) <= 75
    whole = answer.content.decode().replace("\r\n ", "").split("\r\n")
    assert whole[0] == "BEGIN:VCALENDAR"
    assert "SUMMARY:头颅、颈部和胸部增强扫描检查；含三维重建\\, Lakeside Clinic" in whole
    assert "DTSTART:20260705T093000Z" in whole
    [stamp] = [one for one in whole if one.startswith("DTSTAMP:")]
    assert datetime.datetime.strptime(stamp, "DTSTAMP:%Y%m%dT%H%M%SZ")
    assert len([one for one in whole if one.startswith("UID:")]) == 1
