"""The walks of a clinic's people in Chromium, in both languages.

First start to first patient; register, wait, done; a wrong AE title found and mended; a lock that
nobody tends removed; a patient merged; the day printed; a free time found in the calendar.

MINRIS_PICTURES=yes leaves pictures of them all in artefacts/, and makes the README's anew.
"""

import datetime
import os
import re

import pytest
from conftest import ROOT, item
from playwright.sync_api import expect
from pynetdicom import AE
from test_pages import Desk, chromium  # noqa: F401 (a fixture)

from minris.access.context import Actor
from minris.access.devices import save_device
from minris.dataset.elements import ElementIndex, text_elements
from minris.dataset.times import shown_date
from minris.orders.patients import get_patient
from minris.pages.language import Translator
from minris.pages.static import load_catalogues
from minris.standard.uids import MODALITY_WORKLIST
from minris.store.models import database
from minris.ups.people import end_workitem
from minris.ups.subscriptions import subscribe
from minris.ups.workitems import create_workitem

LANGUAGES = {"en-GB": "en", "zh-CN": "zh"}


@pytest.fixture(params=LANGUAGES)
def desk(request, chromium, run_appliance):  # noqa: F811
    """A window in a language, at an appliance that was just started, logged in as administrator."""
    appliance = run_appliance()
    one = Desk(chromium, appliance, locale=request.param, viewport={"width": 1280, "height": 800})
    one.language = LANGUAGES[request.param]
    one.enter()
    one.page.locator("#board").wait_for()
    yield one
    one.context.close()
    assert one.complaints == []
    assert one.hosts == {"127.0.0.1"}


PICTURES = ROOT / "tests" / "pictures"
README_PICTURES = {"en-day", "zh-day", "en-found", "en-calendar", "zh-doctor"}


def picture(desk, name):
    """Keep what is seen where that is asked for: with the artefacts, and for the README."""
    desk.picture(f"walk-{desk.language}-{name}")
    name = f"{desk.language}-{name}"
    if name in README_PICTURES and os.environ.get("MINRIS_PICTURES"):
        PICTURES.mkdir(exist_ok=True)
        desk.page.screenshot(path=PICTURES / f"{name}.png")


def words(desk, text):
    """A text of the pages in the language of the window."""
    catalogues = load_catalogues()
    code = {"en": "en", "zh": "zh-CN"}[desk.language]
    return Translator(code, catalogues[code])(text)


def press(desk, text):
    """Press the button with these words."""
    desk.page.get_by_role("button", name=words(desk, text), exact=True).first.click()


def test_first_start_to_first_patient_with_the_keyboard_alone(desk):
    page = desk.page
    picture(desk, "first-board")
    page.keyboard.press("n")
    page.wait_for_url("**/register")
    first = {"en": "#family_name", "zh": "#chinese_name"}[desk.language]
    expect(page.locator(first)).to_be_focused()
    page.locator("#family_name").focus()
    keyboard = page.keyboard
    page.locator("details.row > summary").first.click()
    page.locator("#chinese_name").fill("王小东")
    page.locator("#family_name").focus()
    for text in ("Wang", "XiaoDong"):
        keyboard.insert_text(text)
        keyboard.press("Tab")
    page.locator("#birth_date").fill("1978-03-12")
    page.locator("#sex").select_option("M")
    for name in ("procedure", "device"):
        while page.evaluate("document.activeElement.id") != name:
            keyboard.press("Tab")
        keyboard.type("CT" if name == "device" else "CT chest")
    keyboard.press("Tab")
    keyboard.press("Enter")
    page.get_by_role("status").wait_for()
    picture(desk, "registered")
    page.goto("/")
    page.locator("#board tr", has_text="王小东").wait_for()
    picture(desk, "board")


def test_a_patient_comes_waits_and_is_done(desk):
    today = desk.appliance.context().today()
    desk.appliance.schedule(item(ScheduledProcedureStepStartDate=today))
    page = desk.page
    page.goto("/")
    press(desk, "Check in")
    page.locator('#board tr[data-state="ARRIVED"]').wait_for()
    page.goto("/waiting")
    page.get_by_text("王*东").wait_for()
    picture(desk, "waiting-room")
    page.goto("/")
    press(desk, "Mark as done")
    page.locator('#board tr[data-state="COMPLETED"]').wait_for()
    page.goto("/step/1")
    picture(desk, "visit")
    page.locator("button[value='undo']").click()
    page.goto("/")
    page.locator('#board tr[data-state="ARRIVED"]').wait_for()


def test_who_is_known_is_shown_while_one_types(desk):
    desk.appliance.schedule(item())
    page = desk.page
    page.goto("/register")
    page.locator("#family_name").press_sequentially("wxd", delay=20)
    page.locator("#procedure").fill("CT chest")
    known = page.locator("#found button", has_text="王小东")
    known.wait_for()
    picture(desk, "found")
    known.click()
    expect(page.locator("#chinese_name")).to_have_value("王 小东")
    expect(page.locator("#procedure")).to_have_value("CT chest")


def test_an_identity_number_fills_the_form(desk):
    page = desk.page
    page.goto("/register")
    page.locator("details.row > summary").first.click()
    page.locator("#identity").fill("11010519491231002X")
    expect(page.locator("#birth_date")).to_have_value("1949-12-31")
    expect(page.locator("#sex")).to_have_value("F")


def test_a_wrong_ae_title_is_found_by_the_doctor_and_mended(desk):
    appliance, page = desk.appliance, desk.page
    settings = {"ae_title": "XR9", "host": "127.0.0.1", "port": "1", "modality": "DX"}
    appliance.write(save_device, appliance.context(), "X-ray 9", settings)
    appliance.appliance.reload_access()

    def call():
        ae = AE("XRAY_9")
        ae.add_requested_context(MODALITY_WORKLIST)
        association = ae.associate("127.0.0.1", appliance.port, ae_title="MINRIS")
        try:
            return association.is_established
        finally:
            if association.is_established:
                association.release()

    assert not call()
    page.goto("/devices/doctor?name=X-ray%209")
    picture(desk, "doctor")
    page.get_by_role("button", name="XRAY_9").click()
    page.get_by_role("status").wait_for()
    assert call()


def test_a_lock_that_nobody_tends_is_removed(desk):
    appliance, page = desk.appliance, desk.page
    now = appliance.context().now()

    def orphan(ctx):
        old = ctx.by(Actor("WS1"))
        data = text_elements(
            ProcedureStepState="SCHEDULED",
            ProcedureStepLabel="3D views",
            WorklistLabel="3D",
            ScheduledProcedureStepPriority="MEDIUM",
            InputReadinessState="READY",
            ScheduledProcedureStepStartDateTime=f"{now:%Y%m%d}",
        )
        uid, _ = create_workitem(old, "", bytes(data))
        subscribe(old, uid, "WS1", True, channel="websocket")
        end_workitem(old, uid, "Not needed")
        long_ago = "UPDATE workitem SET ended_at = '2020-01-01T00:00:00.000000Z'"
        database.execute_sql(long_ago)

    appliance.write(orphan, appliance.context())
    page.goto("/orphans")
    row = page.locator("tr", has_text="WS1")
    row.locator("input[name=reason]").fill("The workstation is gone")
    picture(desk, "stuck")
    row.locator("button").click()
    page.get_by_role("status").wait_for()
    assert page.locator("tr", has_text="WS1").count() == 0


def test_a_patient_is_merged(desk):
    desk.appliance.schedule(item())
    desk.appliance.schedule(item("Wang^Xiao", PatientID="P9"))
    page = desk.page
    page.goto("/patient/2/merge")
    page.locator("#q").press_sequentially("P000001")
    picture(desk, "merge")
    page.locator("#found button", has_text="P000001").click()
    press(desk, "Merge")
    page.wait_for_url("**/patient/1")
    page.goto("/patients?q=P9")
    assert page.locator("table").count() == 0


def test_the_day_is_printed(desk):
    today = desk.appliance.context().today()
    desk.appliance.schedule(item(ScheduledProcedureStepStartDate=today))
    page = desk.page
    page.goto("/print")
    page.emulate_media(media="print")
    assert not page.locator("header").is_visible()
    picture(desk, "day-on-paper")
    page.goto("/step/1/slip")
    for image in page.locator("img").all():
        assert image.evaluate("image => image.complete && image.naturalWidth > 0")
    picture(desk, "slip")


# A day as people see it: patient, device, modality, time, exam, state.
DEPARTMENT = (
    ("Wang^XiaoDong=王^小东", "CT1", "CT", "0830", "CT head", "COMPLETED"),
    ("Miller^Anna", "CT1", "CT", "0915", "CT abdomen with contrast", "STARTED"),
    ("Zhang^Wei=张^伟", "CT1", "CT", "0945", "CT chest", "ARRIVED"),
    ("Garcia^Luis", "CT1", "CT", "1100", "CT chest", "SCHEDULED"),
    ("Ouyang^Jing=欧阳^静", "US1", "US", "0900", "Thyroid", "COMPLETED"),
    ("Li^Na=李^娜", "US1", "US", "0930", "Abdomen", "ARRIVED"),
    ("Smith^John", "US1", "US", "1015", "Abdomen", "NO SHOW"),
)


def department(appliance, date):
    """Have a day's exams registered."""
    for number, (name, title, modality, time, exam, state) in enumerate(DEPARTMENT):
        texts = {"PatientID": f"P{number + 1:06}", "ScheduledStationAETitle": title,
                 "Modality": modality, "RequestedProcedureDescription": exam,
                 "ScheduledProcedureStepStatus": state, "ScheduledProcedureStepStartDate": date,
                 "ScheduledProcedureStepStartTime": time, "PatientBirthDate": "19780312"}  # fmt: skip
        appliance.schedule(item(name, **texts))


def test_the_day_at_a_glance_by_device_and_by_state(desk):
    department(desk.appliance, desk.appliance.context().today())
    page = desk.page
    page.goto("/")
    page.locator("#board tr", has_text="Garcia").wait_for()
    picture(desk, "day")
    page.locator("nav.views a[href*='by=state']").click()
    page.wait_for_url("**by=state**")
    headings = page.locator("#board h2").all_inner_texts()
    assert len(headings) == 5
    picture(desk, "day-by-state")
    page.keyboard.press("ArrowRight")
    tomorrow = desk.appliance.context().local_now() + datetime.timedelta(days=1)
    page.wait_for_url(f"**date={tomorrow:%Y-%m-%d}**")
    assert page.locator("#board tr").count() == 0
    page.keyboard.press("t")
    page.locator("#board tr", has_text="Garcia").wait_for()
    page.wait_for_load_state()  # with the script that hears the keys
    page.keyboard.press("n")
    page.wait_for_url("**/register")


def test_an_exam_is_drawn_to_a_free_time_in_the_calendar(desk):
    appliance, page = desk.appliance, desk.page
    soon = appliance.context().local_now() + datetime.timedelta(days=7)
    department(appliance, f"{soon:%Y%m%d}")
    page.goto(f"/calendar?date={soon:%Y-%m-%d}")
    waiting = [number for number, row in enumerate(DEPARTMENT, 1)
               if row[1] == "CT1" and row[5] == "SCHEDULED"]  # fmt: skip
    path = f"/step/{waiting[0]}"
    free = page.locator(".free[data-to*=' 14:00 CT1']")
    page.locator(f".block[href='{path}']").drag_to(free)
    moved = page.locator(f".block[href='{path}']", has_text="14:00")
    moved.wait_for()
    page.locator(".told button").click()  # undo
    expect(moved).to_have_count(0)


def test_a_free_time_is_found_in_the_calendar(desk):
    appliance, page = desk.appliance, desk.page
    soon = appliance.context().local_now() + datetime.timedelta(days=7)
    date = f"{soon:%Y-%m-%d}"
    department(appliance, f"{soon:%Y%m%d}")
    page.goto(f"/calendar?date={date}&device=CT1")
    picture(desk, "calendar")
    page.locator(f"a.free[href*='{date}'][href*='10%3A00']").click()
    page.wait_for_url("**/register**")
    expect(page.locator("#time")).to_have_value("10:00")
    page.locator("#time").fill("09:50")
    taken = page.locator("#slots .warning", has_text="张伟")
    taken.wait_for()
    picture(desk, "taken")
    page.locator("#slots input").first.click()
    expect(page.locator("#time")).to_have_value("10:00")
    expect(taken).to_have_count(0)
    page.locator("#family_name").fill("Chen")
    page.locator("#birth_date").fill("1978-03-12")
    page.locator("#sex").select_option("M")
    page.locator("#procedure").fill("CT chest")
    desk.send()
    page.get_by_role("status").wait_for()
    page.goto(f"/calendar?date={date}&device=CT1")
    page.locator("table.grid a.block", has_text="Chen").wait_for()


def test_the_second_of_two_people_sees_what_the_first_has_changed(desk):
    desk.appliance.schedule(item())
    first, second = desk.page, desk.new_page()
    for page in (first, second):
        page.goto("/patient/1")
    first.locator("#phone").fill("13800001111")
    desk.send(first)
    first.get_by_role("status").wait_for()
    second.locator("#weight").fill("70")
    desk.send(second)
    second.get_by_role("alert").wait_for()
    expect(second.locator("#phone")).to_have_value("13800001111")
    expect(second.locator("#weight")).to_have_value("70")
    desk.page = second
    picture(desk, "changed-meanwhile")
    desk.send(second)
    second.get_by_role("status").wait_for()
    known = ElementIndex(desk.appliance.read(get_patient, 1))
    assert known.get("PatientWeight") == "70"
    # the browser says of any answer of 400 and more that it could not load it
    assert all("409" in one for one in desk.complaints)
    desk.complaints.clear()


def test_all_of_it_goes_without_a_script(desk):
    """The same pages in a browser that runs none: a day from registration to the end."""
    window = Desk(desk.context.browser, desk.appliance, java_script_enabled=False, locale="en-GB")
    window.log_in()
    page, today = window.page, desk.appliance.context().today()
    window.fill_in(date=shown_date(today))
    window.send()
    for step, state in (("Check in", "ARRIVED"), ("Mark as done", "COMPLETED")):
        page.goto("/")
        page.get_by_role("button", name=step, exact=True).first.click()
        page.locator(f'#board tr[data-state="{state}"]').wait_for()
    page.goto("/calendar?device=CT1")
    page.locator("table.grid a.block", has_text="王小东").click()
    page.get_by_role("link", name="Appointment slip").click()
    page.locator("article.slip").wait_for()
    page.goto("/patients")
    page.locator("main input[name=q]").fill("wxd")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name="王小东").click()
    page.locator("#weight").fill("70")
    window.send()
    page.get_by_role("status").wait_for()
    window.context.close()


def test_the_readmes_pictures_are_those_of_the_walks():
    text = (PICTURES.parent.parent / "README.md").read_text("utf-8")
    shown = set(re.findall(r"tests/pictures/([\w-]+)\.png", text))
    assert shown == README_PICTURES
    assert {path.stem for path in PICTURES.glob("*.png")} == README_PICTURES
