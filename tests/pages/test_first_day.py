"""Section 19: the first day: settings on a page, the first machine, the first patient on it."""

import re

import pytest
from conftest import Running
from test_pages import employ, hidden_fields, problem_at, value_of, visiting, words_of

from minris.access.page_settings import save_settings, stored_settings
from minris.cli import main
from minris.config.ini import load_config
from minris.config.settings import PAGE_SETTINGS
from minris.pages.settings import SETTING_FIELDS, field_name
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
    assert "opens: -&gt; 07:30" in re.sub(" +", " ", admin.get("/audit?q=setting").text)


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


def test_settings_of_the_page_outlive_a_start_and_are_known_to_commands(tmp_path, capsys):
    box = new_box(tmp_path / "box")
    texts = {("clinic", "name"): "Lakeside", ("dicom", "ae_title"): "CLINIC"}
    box.write(save_settings, box.context(), texts)
    box.stop()
    path = str(box.config.path)
    assert load_config(box.config.path).clinic.name == "minris"
    box = Running(load_config(box.config.path))
    assert (box.config.clinic.name, box.config.dicom.ae_title) == ("Lakeside", "CLINIC")
    box.stop()
    main(["check", "--config", path])
    assert "[dicom] ae_title: from the page Settings: ok" in capsys.readouterr().out
    main(["conformance", "--config", path])
    assert "CLINIC" in capsys.readouterr().out
    main(["settings"])
    assert "# name of the clinic, shown on the pages (page)\n" in capsys.readouterr().out


def test_a_stored_setting_that_is_no_longer_valid_is_left_out(ctx):
    stored = {("clinic", "opens"): "late", ("clinic", "closes"): "19:00"}
    del ctx.config.sources["clinic", "name"]
    (words,) = ctx.config.take(stored)
    assert "late" in words
    assert (ctx.config.clinic.opens, ctx.config.clinic.closes) == ((8, 0), (19, 0))


def test_a_setting_is_never_partly_saved(ctx):
    with pytest.raises(Refusal):
        save_settings(ctx, {("clinic", "opens"): "07:00", ("clinic", "closes"): "never"})
    assert stored_settings() == {}
