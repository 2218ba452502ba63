"""Section 19: a box in an empty folder: what is done of its first day, what commands know of it."""

import pytest
from conftest import Running
from test_first_day import new_box, save
from test_pages import admin_password, csrf_of, hidden_fields, log_in, visiting

from minris.access.page_settings import save_settings, stored_settings
from minris.appliance.jobs import job_save_queries
from minris.cli import main
from minris.config.ini import load_config
from minris.housekeeping.first_day import first_day, simulated_patients
from minris.pages.day.paper import qr_lines
from minris.simulator.modality import Modality
from minris.standard.status import Refusal
from minris.web.addresses import page_urls


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


def done(box):
    """What is done of the list."""
    return box.read(first_day, box.context())


def test_each_line_is_done_by_what_is_there(tmp_path):
    """From the empty folder to the first patient on a machine; the walk does the same in Chromium."""
    box = new_box(tmp_path / "day")
    with visiting(box) as client:
        log_in(client, "admin", admin_password(box))
        assert done(box) == (False,) * 6
        assert ">6</span>" in client.get("/calendar").text, "lines to do, in the menu"
        save(client, clinic_name="Lakeside", clinic_timezone="Asia/Shanghai")
        page = client.get("/password?next=/welcome").text
        new = {"password": admin_password(box), "new_password": "blue-kettle-9"}
        answer = client.post("/password", data=hidden_fields(page) | new)
        assert (answer.status_code, answer.headers["Location"]) == (303, "/welcome")
        assert done(box) == (True, True, False, False, False, False)
        welcome = client.get("/welcome").text
        machine = {"name": "CT room", "ae_title": "CT1", "modality": "CT", "next": "/welcome"}
        token = {"csrf": csrf_of(welcome)}
        assert client.post("/devices/save", data=machine | token).headers["Location"] == "/welcome"
        part = client.get("/welcome?part=board").text
        assert "Waiting for CT1 to call" in part
        assert "Welcome" in client.get("/").text
        client.post("/welcome", data=token | {"name": "CT room"})
        assert "Welcome" in client.get("/").text, "a test patient is nobody's"
        ct = Modality("CT1", "CT", "127.0.0.1", box.port, "MINRIS", lambda line: None)
        ct.echo()
        assert done(box).machine
        assert "CT room called at" in client.get("/welcome?part=board").text
        assert 'data-part="/?part=board' in client.get("/").text, "the board"
        assert len(ct.worklist()) == 1
        job_save_queries(box.appliance)
        assert done(box).tried
        assert "Last worklist query: 1 exam." in client.get("/welcome?part=board").text
        (test,) = box.read(simulated_patients)
        assert (test.ae_title, bool(test.seen_at)) == ("CT1", True)
        end = token | {"event": "end", "patient_id": test.patient_id}
        assert client.post("/welcome", data=end).status_code == 303
        assert box.read(simulated_patients) == []
        assert done(box) == (True, True, True, False, False, True)
        client.post("/welcome", data=token | {"event": "put away"})
        assert '"/welcome"' not in client.get("/calendar").text
    box.stop()


def test_the_start_tells_addresses_that_others_can_type(monkeypatch):
    config = load_config(None)
    monkeypatch.setattr("minris.web.addresses._of_interfaces", lambda: ["127.0.0.1", "10.9.8.7"])
    urls = page_urls(config, 8080)
    assert "http://10.9.8.7:8080" in urls
    assert not any("127.0.0.1" in url for url in urls)
    config.web.host = "127.0.0.1"
    assert page_urls(config, 8080) == []
    config.web.public_url = "https://ris.clinic.example"
    assert page_urls(config, 8080) == ["https://ris.clinic.example"]
    assert len(qr_lines(urls[0]).splitlines()) > 10
