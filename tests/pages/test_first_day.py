"""Section 19: the first day: settings on a page, the first machine, the first patient on it."""

import contextlib
import re

import pytest
from conftest import Running
from test_pages import (
    csrf_of,
    employ,
    hidden_fields,
    problem_at,
    value_of,
    visiting,
    words_of,
)

from minris.access.context import audit_lines
from minris.access.devices import delete_device, save_device
from minris.access.page_settings import stored_settings
from minris.access.users import authenticate, logins_of, make_user, open_session
from minris.config.ini import load_config
from minris.config.settings import DEVICE_SETTINGS, PAGE_SETTINGS
from minris.pages.frame import TEACHING
from minris.pages.machines.device_form import FIRST_KEYS, GROUPS, LABELS
from minris.pages.settings import SETTING_FIELDS, field_name
from minris.simulator.modality import Modality
from minris.simulator.peer import SimulationError
from minris.standard.status import Refusal

EMPTY = "[dicom]\nhost = 127.0.0.1\nport = 0\n[web]\nhost = 127.0.0.1\nport = 0\n"


def new_box(folder, text=""):
    """An appliance in an empty folder, of which config.ini says no more than its ports."""
    folder.mkdir(exist_ok=True)
    path = folder / "config.ini"
    path.write_text(EMPTY + text, "utf-8")
    return Running(load_config(path))


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """One for the tests of this module, with a clinic's time zone in config.ini."""
    running = new_box(tmp_path_factory.mktemp("first"), "[clinic]\ntimezone = Asia/Shanghai\n")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def admin(box):
    """Its administrator."""
    with visiting(box) as client:
        yield employ(box, client, "admin")


def save(client, **texts):
    """Change settings on the page, and leave the others as they are shown."""
    page = client.get("/settings").text
    form = page[page.index('action="/settings"') :]
    return client.post("/settings", data=hidden_fields(form) | texts)


def test_each_setting_of_the_page_has_its_field():
    assert {one.key for one in PAGE_SETTINGS} == SETTING_FIELDS.keys()
    assert len(set(map(field_name, PAGE_SETTINGS))) == len(PAGE_SETTINGS) == 12


def test_a_setting_of_the_page_is_taken_at_once(box, admin):
    assert save(admin, clinic_name="Lakeside", clinic_opens="07:30").status_code == 303
    assert box.config.clinic.opens == (7, 30)
    shown = admin.get("/settings").text
    assert "<title>Settings - Lakeside</title>" in shown
    assert value_of(shown, "clinic_opens") == "07:30"
    lines = box.read(audit_lines, "setting changed")
    assert [one.detail for one in lines if "opens" in one.detail] == ["opens:  -> 07:30"]


def test_an_empty_field_gives_the_default_back(box, admin):
    save(admin, clinic_closes="20:00")
    assert box.config.clinic.closes == (20, 0)
    save(admin, clinic_closes="")
    assert box.config.clinic.closes == (18, 0)
    assert ("clinic", "closes") not in box.read(stored_settings)


def test_days_are_boxes_to_tick(box, admin):
    save(admin, clinic_closed_days=["", "sat", "sun"])
    assert box.config.clinic.closed_days == ("sat", "sun")
    page = admin.get("/settings").text
    assert re.search('value="sun"[^>]* checked', page)
    save(admin, clinic_closed_days="")
    assert box.config.clinic.closed_days == ()


def test_the_own_ae_title_is_taken_at_once(box, admin):
    save(admin, dicom_ae_title="CLINIC")
    assert box.appliance.access().called == "CLINIC"
    save(admin, dicom_ae_title="")
    assert box.appliance.access().called == "MINRIS"


def test_what_config_ini_names_is_shown_and_stays(box, admin):
    page = admin.get("/settings").text
    assert re.search('<input id="clinic_timezone"[^>]* disabled', page)
    assert "Set in config.ini, and changed there." in page
    save(admin, clinic_timezone="Europe/Berlin")
    assert box.config.clinic.timezone == "Asia/Shanghai"
    assert ("clinic", "timezone") not in box.read(stored_settings)


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("clinic_opens", "late", "'late' is not a time such as 02:30"),
        ("dicom_ae_title", "Röntgen", "'Röntgen' is not an AE title (1 to 16 ASCII characters)"),
        ("housekeeping_second_backup_folder", "/no/such/stick",
         "'/no/such/stick' is no folder of this computer that can be written to"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_at_its_field_and_changes_nothing(box, admin, field, text, words):
    before = box.read(stored_settings)
    answer = save(admin, **{field: text, "clinic_name": "Not kept"})
    assert answer.status_code == 422
    assert problem_at(answer.text, field) == words
    assert re.search(f'<input id="{field}"[^>]* aria-invalid="true"[^>]* autofocus', answer.text)
    assert value_of(answer.text, field) == text
    assert box.read(stored_settings) == before


def test_two_who_change_the_settings_do_not_overwrite_each_other(box, admin):
    page = admin.get("/settings").text
    first = hidden_fields(page[page.index('action="/settings"') :])
    save(admin, clinic_name="Hillside")
    answer = admin.post("/settings", data=first | {"clinic_name": "Lakeside"})
    assert answer.status_code == 409
    assert "setting changed" in words_of(answer)
    assert box.config.clinic.name == "Hillside"


# The list of the first day.


def test_an_administrator_is_led_until_somebody_works_with_it(box, admin):
    shown = words_of(admin.get("/"))
    assert "Welcome to minris" in shown
    assert 'id="board" data-part="/?' in admin.get("/?by=device").text
    with visiting(box) as client:
        client.cookies.update(desk_cookies(box))
        assert "Welcome to minris" not in client.get("/").text


def desk_cookies(box):
    """The cookie of somebody of reception."""

    def logged_in():
        user = make_user(box.context(), "rita", "desk", "blue-kettle-9")
        return open_session(box.context(), user.id)

    return {box.cookie: box.write(logged_in)}


def test_each_setting_of_a_device_has_its_place_in_the_form():
    placed = [key for _, keys in GROUPS for key in keys] + list(FIRST_KEYS)
    assert len(placed) == len(set(placed))
    assert (
        set(placed) == LABELS.keys() == {one.key for one in DEVICE_SETTINGS} | {"name", "profile"}
    )


def test_a_rejected_caller_fills_the_form(box, admin):
    with pytest.raises(SimulationError):
        Modality("MR7", "MR", "127.0.0.1", box.port, "MINRIS", lambda line: None).echo()
    part = admin.get("/welcome?part=board").text
    assert "MR7 called from 127.0.0.1: &#039;MR7&#039; is not a registered device" in part
    link = re.search(r'href="(/welcome\?[^"]*)"', part)[1].replace("&amp;", "&")
    page = admin.get(link).text
    assert value_of(page, "ae_title") == value_of(page, "name") == "MR7"
    assert '<input type="hidden" id="host" name="host" value="127.0.0.1">' in page


def test_a_setup_sheet_has_what_is_entered_at_the_machine(box, admin):
    box.write(save_device, box.context(), "MR room", {"ae_title": "MR1"})
    box.appliance.reload_access()
    shown = words_of(admin.get("/devices/sheet?name=MR room"))
    assert f"AE title MINRIS Address 127.0.0.1 Port {box.port}" in shown
    assert "The machine itself is MR1 here." in shown
    assert shown.count(f"MINRIS, 127.0.0.1, {box.port}") == 0, "no message about what was done"
    assert "<svg " in admin.get("/devices/sheet.svg").text


def test_an_echo_in_vain_is_told_in_red(box, admin):
    box.write(save_device, box.context(), "Old US", {"ae_title": "US9"})
    box.appliance.reload_access()
    token = csrf_of(admin.get("/devices").text)
    admin.post("/devices/echo", data={"csrf": token, "name": "Old US"})
    assert (
        '<div class="problem" role="alert"><p>Old US has no address' in admin.get("/devices").text
    )


# Users, and pages with nothing on them.


def test_a_user_is_opened_and_gets_another_role_without_another_password(box, admin):
    box.write(make_user, box.context(), "mary", "desk", "blue-kettle-9")
    assert 'href="/users/new?name=mary"' in admin.get("/users").text
    page = admin.get("/users/new?name=mary").text
    assert re.search('<input id="name"[^>]* value="mary"[^>]* disabled', page)
    form = hidden_fields(page[page.index('action="/users"') :]) | {"role": "technologist"}
    assert admin.post("/users", data=form).status_code == 303
    role = {name: role for name, role, _, _ in box.read(logins_of, box.context())}["mary"]
    assert role == "technologist"
    box.read(authenticate, box.context(), "mary", "blue-kettle-9")


@pytest.mark.parametrize("path", TEACHING)
def test_a_page_with_nothing_says_what_it_is_for(box, admin, path):
    for device in ("MR room", "Old US"):
        with contextlib.suppress(Refusal):
            box.write(delete_device, box.context(), device)
    box.appliance.reload_access()
    page = admin.get(path).text
    words, link, _ = TEACHING[path]
    assert f'<p class="empty">{words} <a href="{link}"' in page or path == "/associations"


def test_registration_without_a_machine_leads_to_one(box, admin):
    assert 'machine first: patients are registered for one. <a href="/devices/edit"' in (
        admin.get("/register").text
    )
    with visiting(box) as client:
        client.cookies.update(desk_cookies(box))
        assert "Ask an administrator to add one." in words_of(client.get("/register"))
        assert "No machines yet." in words_of(client.get("/"))
