"""Clicks and keys of the tasks that reception does all day, counted by what is really pressed.

The bounds are those of a good desk: a row says how many clicks and keys a task may cost.
"""

import datetime

import pytest
from conftest import Running, item, write_config
from playwright.sync_api import expect
from test_pages import Desk, chromium  # noqa: F401 (a fixture)

from minris.config.ini import load_config
from minris.orders.catalogue import save_procedure
from minris.store.models import ScheduledProcedureStep

CATALOGUE = (("CTC", "CT chest", "CT", "CT1"), ("CTH", "CT head", "CT", "CT1"),
             ("US", "US liver", "US", "US1"))  # fmt: skip


@pytest.fixture(scope="module")
def counted(chromium, tmp_path_factory, ready_store):  # noqa: F811
    """One browser at one box with a catalogue, for all rows."""
    config = load_config(write_config(tmp_path_factory.mktemp("counted")))
    ready_store(config.store_path)
    box = Running(config)
    for code, meaning, modality, ae_title in CATALOGUE:
        row = {"code": code, "meaning": meaning, "modality": modality, "ae_title": ae_title}
        box.write(save_procedure, box.context(), row)
    desk = Desk(chromium, box, viewport={"width": 1440, "height": 900})
    desk.log_in()
    desk.page.locator("header a.main").wait_for()
    yield desk
    desk.context.close()
    box.stop()
    assert desk.complaints == []


class Hands:
    """What a person does, counted."""

    def __init__(self, desk):
        self.desk, self.page, self.clicks, self.keys = desk, desk.page, 0, 0

    def click(self, selector, **how):
        self.page.locator(selector, **how).first.click()
        self.clicks += 1

    def to_registration(self):
        self.click("header a.main")
        self.page.wait_for_url("**/register")
        expect(self.page.locator("#family_name")).to_be_focused()

    def type(self, text):
        self.page.keyboard.type(text)
        self.keys += len(text)

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
            self.keys += 1

    def schedule(self, name, patient_id, **texts):
        """An exam of another patient, today, for the task."""
        today = self.desk.appliance.context().today()
        known = {"PatientID": patient_id, "ScheduledProcedureStepStartDate": today,
                 "PatientBirthDate": "19780312", "PatientSex": "M"}  # fmt: skip
        self.desk.appliance.schedule(item(name, **known | texts))
        self.page.goto("/")
        return self.page.locator("#board tr", has_text=patient_id)

    def registered(self):
        self.page.wait_for_url("**/step/*")
        self.page.get_by_role("status").filter(has_text="Registered").wait_for()


def register_new(hands):
    hands.to_registration()
    hands.type("Smith")
    hands.press("Tab")
    hands.type("John")
    hands.press("Tab")
    hands.type("12.3.78")
    hands.press("Tab")
    hands.type("m")
    hands.click("#procedure")
    hands.type("CTC")
    hands.click("#slots label.chip")
    hands.press("Enter")
    hands.registered()
    expect(hands.page.locator("h1")).to_contain_text("Smith John · M 48 y")


def known_patient(hands):
    hands.schedule("Abbot^Carl", "K1")
    hands.to_registration()
    hands.type("ac")
    hands.click("#found button")
    expect(hands.page.locator("#procedure")).to_be_focused()
    hands.type("CTH")
    hands.click("#slots label.chip")
    hands.press("Enter")
    hands.registered()


def move(hands):
    row = hands.schedule("Move^Mary", "K2")
    row.get_by_role("link", name="Move Mary").click()  # from its page
    hands.click("aside a", has_text="Move")
    hands.click("button[name=to]")
    hands.page.get_by_role("status").wait_for()


def correct(hands):
    row = hands.schedule("Brow^Emma", "K3")
    row.get_by_role("link", name="Brow Emma").click()  # from its page
    hands.click("aside a", has_text="Correct the patient")
    hands.click("#family_name")
    hands.type("ning")
    hands.press("Enter")
    hands.page.get_by_role("status").wait_for()
    expect(hands.page.locator("h1")).to_contain_text("Browning Emma")


def emergency(hands):
    hands.to_registration()
    hands.click("a[href*=emergency]")
    expect(hands.page.locator("#procedure")).to_be_focused()
    hands.type("CT head")
    hands.click("div.actions button.main")
    hands.registered()


def identified(hands):
    hands.schedule("Smythe^Jane", "K4")
    row = hands.schedule("Unknown^Emergency 1201-1030", "K5")
    row.get_by_role("link", name="Unknown").click()  # from its page
    hands.click("aside a", has_text="Identify the patient")
    hands.type("smyth")
    hands.click("#found button", has_text="Smythe Jane")
    hands.click("main button", has_text="Merge")
    hands.page.get_by_role("status").wait_for()
    expect(hands.page.locator(".found li")).to_have_count(2)


def no_show(hands):
    row = hands.schedule("Late^Larry", "K6")
    row.locator("summary").click()
    hands.clicks += 1
    row.get_by_role("button", name="Mark as no-show").click()
    hands.clicks += 1
    hands.page.locator(".toast .told button").first.wait_for()


def second_exam(hands):
    row = hands.schedule("Second^Sue", "K7")
    row.get_by_role("link", name="Second Sue").click()
    hands.clicks += 1
    hands.click("aside a", has_text="Add exam to this order")
    expect(hands.page.locator("#procedure")).to_be_focused()
    hands.type("US liver")
    hands.click("div.actions button.main")
    hands.registered()


def is_it_done(hands):
    hands.schedule("Doneson^Dora", "K8", ScheduledProcedureStepStatus="COMPLETED")
    hands.press("/")
    hands.type("dones")
    answer = hands.page.locator("#answers", has_text="Doneson Dora")
    expect(answer).to_contain_text("Done")


# task, clicks, keys: what it may cost, data included
ROWS = (
    (register_new, 4, 29),
    (known_patient, 3, 6),
    (move, 2, 0),
    (correct, 2, 5),
    (emergency, 3, 7),
    (identified, 3, 5),
    (no_show, 2, 0),  # one behind the dots; undo is in the toast
    (second_exam, 3, 8),
    (is_it_done, 0, 6),
)


@pytest.mark.parametrize(("task", "clicks", "keys"), ROWS, ids=[row[0].__name__ for row in ROWS])
def test_a_task_costs_no_more_than_at_a_good_desk(counted, task, clicks, keys):
    hands = Hands(counted)
    hands.page.goto("/")
    task(hands)
    print(f"{task.__name__}: {hands.clicks} + {hands.keys}")
    assert hands.clicks <= clicks
    assert hands.keys <= keys


def test_back_after_registering_shows_the_exam_and_registers_nothing_again(counted):
    hands = Hands(counted)
    hands.page.goto("/")
    emergency(hands)
    exam = hands.page.url.partition("?")[0]
    count = counted.appliance.read(ScheduledProcedureStep.select().count)
    hands.page.go_back()
    hands.page.wait_for_url(exam)
    assert counted.appliance.read(ScheduledProcedureStep.select().count) == count


def test_dates_and_times_are_typed_with_the_keyboard_and_read_back(counted):
    page = counted.page
    page.goto("/register")
    page.locator("#birth_date").press_sequentially("3/12/1978")
    expect(page.locator("#birth_date-help")).to_contain_text("3 Dec 1978")
    expect(page.locator("#birth_date-help")).to_contain_text("12 Mar 1978")
    page.locator("#procedure").press_sequentially("CTC")
    expect(page.locator("#device")).to_have_value("CT1")
    day = counted.appliance.context().local_now() + datetime.timedelta(days=3)
    page.locator("#date").fill(f"{day:%d.%m.%Y}")
    expect(page.locator(f"#slots input[value^='{day:%Y-%m-%d}']").first).to_be_attached()
