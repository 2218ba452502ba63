"""The label of 50 × 30 mm, as the browser lays it out on the screen and on paper."""

import re
import subprocess

import peers
import pytest
from conftest import item
from test_pages import ARTEFACTS, chromium, window  # noqa: F401

from minris.store.models import Patient

MM = 96 / 25.4
NAME = "Featherstonehaugh-Gyjpq^Hubert-Blaine"

BOXES = """() => {
  const box = (one) => {
    const r = one.getBoundingClientRect();
    return {left: r.left, right: r.right, top: r.top, bottom: r.bottom,
            full: one.scrollWidth <= one.clientWidth + 1 && one.scrollHeight <= one.clientHeight + 1};
  };
  const all = (path) => Array.from(document.querySelectorAll(path), box);
  return {label: all(".label")[0], lines: all(".label p"), number: all(".label figcaption")[0],
          bars: all(".label figure img")[0], qr: all(".label div > img")[0],
          drawn: Array.from(document.querySelectorAll(".label img"), (i) => i.complete && i.naturalWidth > 0)};
}"""


@pytest.fixture
def label(window):  # noqa: F811
    desk = window()
    desk.appliance.schedule(item(NAME, PatientBirthDate="19780312",
                                          AccessionNumber="2612010001"))  # fmt: skip
    desk.enter()
    desk.page.locator("#board").wait_for()
    desk.page.goto("/step/1/label", wait_until="load")
    return desk


@pytest.mark.parametrize("medium", ["screen", "print"])
def test_the_number_stands_whole_under_its_bars_and_the_qr_code_beside(label, medium):
    label.page.emulate_media(media=medium)
    boxes = label.page.evaluate(BOXES)
    label.page.locator(".label").screenshot(path=ARTEFACTS / f"label-{medium}.png")
    around = boxes["label"]
    assert label.page.locator(".label figcaption").inner_text() == "2612010001"
    assert boxes["number"]["full"]
    assert boxes["drawn"] == [True, True]
    for name in ("number", "bars", "qr"):
        one = boxes[name]
        assert around["left"] <= one["left"] < one["right"] <= around["right"] + 0.5, name
        assert around["top"] <= one["top"] < one["bottom"] <= around["bottom"] + 0.5, name
    assert boxes["bars"]["bottom"] <= boxes["number"]["top"] + 0.5
    assert boxes["bars"]["right"] <= boxes["qr"]["left"]
    assert boxes["lines"][-1]["bottom"] <= boxes["bars"]["top"] + 0.5
    assert boxes["lines"][-1]["bottom"] <= boxes["qr"]["top"] + 0.5
    # a module of the bars is at least one dot of a printer of 203 dpi; of the QR code, three
    modules = 11 * (len("2612010001") + 3) + 2 + 20
    assert (boxes["bars"]["right"] - boxes["bars"]["left"]) / MM / modules >= 25.4 / 203
    assert (boxes["qr"]["right"] - boxes["qr"]["left"]) / MM / 29 >= 3 * 25.4 / 203


def test_a_line_of_the_label_is_high_enough_for_descenders(label):
    heights = label.page.evaluate(
        "() => Array.from(document.querySelectorAll('.label p'), (p) => [p.getBoundingClientRect()"
        ".height, parseFloat(getComputedStyle(p.querySelector('strong') || p).fontSize)])"
    )
    assert all(height >= 1.25 * size for height, size in heights)


def sheets_of(page, name):
    """The sizes of the sheets that a page is printed on, in mm."""
    pdf = page.pdf(path=ARTEFACTS / name, prefer_css_page_size=True)
    boxes = re.findall(rb"/MediaBox\s*\[([^\]]*)\]", pdf)
    assert len(boxes) == len(re.findall(rb"/Type\s*/Page\b", pdf))
    return [tuple(round(float(n) / 72 * 25.4) for n in box.split()[2:]) for box in boxes]


@pytest.mark.parametrize("problem", ["", "the disk is full"])
def test_the_label_is_one_page_of_its_size(label, problem):
    """Whatever else the page says, as that the last backup failed."""
    label.appliance.appliance.backup_problem = problem
    label.page.reload(wait_until="load")
    assert problem in label.page.locator("main").inner_text()
    assert sheets_of(label.page, "label.pdf") == [(50, 30)]


def test_what_is_printed_at_203_dpi_is_read_by_a_scanner(label, tmp_path):
    """The number is text under its bars, too: where a scanner fails, a person types it."""
    label.page.pdf(path=tmp_path / "label.pdf", prefer_css_page_size=True)
    dots = [peers.pdftoppm(), "-r", "203", "-gray", "label.pdf", "label"]
    subprocess.run(dots, cwd=tmp_path, check=True)
    [image] = tmp_path.glob("label*.pgm")
    read = subprocess.run(
        [peers.zbarimg(), "-q", image], capture_output=True, text=True, check=False
    ).stdout.split()
    patient = label.appliance.read(lambda: Patient.get().patient_id)
    assert sorted(read) == ["CODE-128:2612010001", f"QR-Code:{patient}"]
    text = subprocess.run(
        [peers.pdftoppm().replace("pdftoppm", "pdftotext"), "label.pdf", "-"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert "2612010001" in text and patient in text


def test_the_calendar_lies_on_wide_sheets(label):
    label.page.goto("/calendar", wait_until="load")
    sheets = sheets_of(label.page, "calendar.pdf")
    assert all(width > height for width, height in sheets), sheets
