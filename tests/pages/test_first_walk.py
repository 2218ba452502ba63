"""Section 19: the first day, in Chromium: from an empty folder to the first patient on a machine."""

import peers
import pytest
from test_first_day import new_box
from test_pages import Desk, admin_password, chromium  # noqa: F401 (a fixture)

from minris.pages.language import Translator
from minris.pages.static import load_catalogues

WINDOWS = {
    "en": {"locale": "en-GB", "viewport": {"width": 1440, "height": 900}, "color_scheme": "light"},
    "zh-CN": {"locale": "zh-CN", "viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}


@pytest.fixture(params=WINDOWS)
def desk(request, chromium, tmp_path):  # noqa: F811
    """The window of whoever sets up a new box, of which config.ini says no more than its ports."""
    box = new_box(tmp_path / "box")
    one = Desk(chromium, box, timezone_id="Asia/Shanghai", **WINDOWS[request.param])
    one.t = Translator(request.param, load_catalogues()[request.param])
    yield one
    one.context.close()
    box.stop()
    assert one.complaints == []


def asked(desk):
    """What the CT is told of its worklist: Patient IDs."""
    found = peers.run_findscu(desk.appliance.port, "MINRIS", "CT1", peers.WORKLIST_KEYS)
    return [ds.PatientID for ds in found.datasets]


def test_the_first_day_leads_to_the_first_patient_on_a_machine(desk):
    page, t, port = desk.page, desk.t, desk.appliance.port
    desk.log_in()
    page.get_by_role("heading", name=t("Welcome to minris")).wait_for()
    assert page.locator(".sign[data-done]").count() == 0
    desk.picture(f"first-day-{desk.t.language}")
    # The clinic: its name is typed, the time zone comes from the browser.
    assert page.locator("#clinic_timezone").input_value() == "Asia/Shanghai"
    page.locator("#clinic_name").fill("Lakeside Clinic")
    page.locator(".step", has=page.locator("#clinic_name")).get_by_role("button").click()
    page.locator(".sign[data-done]").wait_for()
    # The own password.
    page.get_by_role("link", name=t("Choose your own")).click()
    page.locator("#password").fill(admin_password(desk.appliance))
    page.locator("#new_password").fill("blue-kettle-9")
    page.keyboard.press("Enter")
    page.get_by_text(t("The password of the first start was replaced.")).wait_for()
    # A machine that is not known yet calls, and is there to be taken, without a reload.
    peers.run_echoscu(port, "MINRIS", "XR9")
    page.get_by_role("link", name=t("Use {ae}", ae="XR9")).click()
    assert page.locator("#ae_title").input_value() == "XR9"
    # The first machine: one click, and ten keys with the data.
    page.goto("/welcome")
    page.locator("#name").click()
    keys = [*"CT", "Tab", *"CT1", "Tab", *"CT", "Enter"]
    for key in keys:
        page.keyboard.press(key)
    assert len(keys) == 10
    page.get_by_text(
        t("Waiting for {ae} to call … press “Echo” or “Verify” at the machine.", ae="CT1")
    ).wait_for()
    assert peers.run_echoscu(port, "MINRIS", "CT1").exit_code == 0
    page.locator("#board .told").wait_for()
    desk.picture(f"first-day-called-{desk.t.language}")
    # A test patient to the machine and away.
    page.get_by_role("button", name=t("Send a test patient to {name}", name="CT")).click()
    page.get_by_role("button", name=t("Take it away again")).wait_for()
    assert [one.startswith("SIMULATED-") for one in asked(desk)] == [True]
    page.get_by_role("button", name=t("Take it away again")).click()
    page.get_by_text(t("The test patient was erased.")).wait_for()
    assert asked(desk) == []
    # The first patient.
    desk.fill_in()
    page.locator("#procedure").press("Enter")
    page.wait_for_url("**/step/*")
    assert asked(desk) == ["P000001"]
    page.goto("/")
    page.locator("#board tr", has_text="王小东").wait_for()
