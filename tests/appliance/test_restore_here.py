"""Backups on the page: the list, a file to take away, and a restore by a start that comes by itself."""

import re
import sqlite3
import time

import httpx
import peers
import pytest
from conftest import item, write_config
from test_appliance import Served
from test_dimse import wait_until
from test_pages import csrf_of, employ, hidden_fields, visiting, words_of

from minris.access.users import FIRST_USER
from minris.appliance.backups import ToRestore, backups, order_file, order_restore, take_order
from minris.housekeeping.erasing import erase_patient
from minris.store.models import StoreError
from minris.store.sqlite import store_facts


@pytest.fixture
def admin(appliance):
    with visiting(appliance) as client:
        yield employ(appliance, client, "admin")


def post(client, path, **fields):
    return client.post(path, data=fields | {"csrf": csrf_of(client.get(path).text)})


def back_up(client):
    """A backup by the button of the page, to its end."""
    post(client, "/backups", do="backup")
    wait_until(lambda: "under way" not in client.get("/backups").text)


def test_a_backup_is_listed_with_what_it_holds_and_taken_away(appliance, admin):
    appliance.schedule(item("Li^Na"), item("Wang^Fang"))
    back_up(admin)
    [path] = backups(appliance.config.backup_folder)
    at = f"{path.stem[7:11]}-{path.stem[11:13]}-{path.stem[13:15]}"
    words = words_of(admin.get("/backups"))
    assert re.search(rf"{at} \d\d:\d\d:\d\d \d+ kB 2 patients, 2 exams checked when made", words)
    assert "No second place is set" in words
    got = admin.get(f"/backups/{path.name}")
    assert got.content == path.read_bytes()
    assert f'filename="{path.name}"' in got.headers["Content-Disposition"]
    assert "backup downloaded" in words_of(admin.get(f"/audit?q={path.name}"))


@pytest.mark.parametrize("name", ["minris-20200101-000000.db", "minris.db", "..-minris.db"])
def test_only_backups_are_given(admin, name):
    assert admin.get(f"/backups/{name}").status_code == 404
    assert admin.get(f"/backups/{name}/restore").status_code == 404


@pytest.mark.parametrize("path", ["/backups", "/backups/x.db", "/backups/x.db/restore"])
def test_backups_are_for_administrators(appliance, path):
    with visiting(appliance) as client:
        assert employ(appliance, client, "technologist").get(path).status_code == 403


def test_a_restore_names_what_comes_back_and_what_is_lost_and_wants_its_time_typed(
    appliance, admin
):
    appliance.schedule(item("Li^Na", PatientID="GONE"))
    back_up(admin)
    appliance.write(erase_patient, appliance.context(), 1, "on request")
    appliance.schedule(item("Wang^Fang"), item("Zhao^Min"), item("Sun^Li"))
    [path] = backups(appliance.config.backup_folder)
    words = words_of(admin.get(f"/backups/{path.name}/restore"))
    assert "Lost would be 3 new exams, 3 new patients" in words
    assert "Erased since, and back: GONE." in words
    answer = post(admin, f"/backups/{path.name}/restore", sure="2020-01-01 00:00")
    assert answer.status_code == 422
    assert not order_file(appliance.config).exists()


def test_a_backup_that_cannot_be_read_is_said_and_not_offered(appliance, admin):
    folder = appliance.config.backup_folder
    folder.mkdir()
    (folder / "minris-20260701-023000.db").write_bytes(b"nothing" * 1000)
    page = admin.get("/backups")
    assert "is not a minris database" in words_of(page)
    assert "20260701-023000.db/restore" not in page.text


def test_an_order_is_taken_once(config):
    config.backup_folder.mkdir()
    with pytest.raises(StoreError):
        order_restore(config, ToRestore("minris-20260701-023000.db", "anna"))
    order_file(config).write_text('["minris-20260701-023000.db", "anna"]')
    assert take_order(config) == ToRestore("minris-20260701-023000.db", "anna")
    assert take_order(config) is None
    order_file(config).write_text("half an ord")
    assert take_order(config) is None


def test_an_order_that_fails_leaves_the_store_as_it_is_and_says_so(run_appliance, tmp_path):
    write_config(tmp_path)
    (tmp_path / "minris.db.to-restore").write_text('["minris-20260701-023000.db", "anna"]')
    running = run_appliance()
    with visiting(running) as client:
        employ(running, client, "admin")
        assert "The backup was not restored: minris-20260701-023000.db" in words_of(
            client.get("/box")
        )


def enter(url, name):
    """Put a patient on the worklist."""
    with httpx.Client(trust_env=False) as program:
        assert program.post(f"{url}/api/worklist", json=item(name)).status_code == 201


def test_a_real_process_restores_and_comes_back_by_itself(tmp_path):
    ports = [peers.free_port() for _ in range(2)]
    config = f"[dicom]\nport = {ports[0]}\n[web]\nport = {ports[1]}\nanonymous_loopback = yes\n"
    served = Served(tmp_path, config=config)
    try:
        with httpx.Client(base_url=served.url, trust_env=False, timeout=peers.PATIENCE_S) as client:
            enter(served.url, "Li^Na")
            login = {"name": FIRST_USER, "password": served.password}
            assert client.post("/login", data=login).status_code == 303
            back_up(client)
            enter(served.url, "Wang^Fang")
            [path] = backups(tmp_path / "backups")
            page = client.get(f"/backups/{path.name}/restore")
            assert "Lost would be 1 new exams" in words_of(page)
            at = re.search(r"Type ([-\d: ]+) to confirm", page.text)[1]
            form = hidden_fields(page.text) | {"sure": at}
            answer = client.post(f"/backups/{path.name}/restore", data=form)
            assert answer.status_code == 200
            assert answer.headers["Refresh"].endswith("/login")
            until = time.monotonic() + peers.PATIENCE_S
            while True:
                try:
                    if client.get("/").headers.get("Location", "").startswith("/login"):
                        break  # the session has ended with the store that it was in
                except httpx.TransportError:
                    pass
                assert time.monotonic() < until, served.log
                time.sleep(0.1)
            assert served.process.poll() is None, "the same process"
            assert client.post("/login", data=login).status_code == 303
            words = words_of(client.get("/audit"))
            assert "restore ordered" in words
            assert f"admin backup restored {path.name}" in words
        assert store_facts(tmp_path / "minris.db").exams == 1
        [kept] = tmp_path.glob("minris.db.before-*")
        with sqlite3.connect(kept) as connection:
            assert connection.execute("SELECT count(*) FROM patient").fetchone() == (2,)
    finally:
        served.kill()
