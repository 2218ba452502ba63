"""A damaged store: found by itself, told by every door, and never written to."""

import contextlib
import datetime
import signal
import sqlite3

import httpx
import peers
import pytest
from conftest import item
from test_appliance import Served
from test_disk import OPEN, goes_on, post, words_of
from test_mpps import creation, modality

from minris.access.context import purge_audit
from minris.appliance.store_commands import control_file
from minris.cli import main
from minris.store.condition import TROUBLES
from minris.store.files import beside
from minris.store.models import database
from minris.store.rows import get_mark
from minris.store.sqlite import backup_store

WORDS = TROUBLES["damaged"]


def page_of(path, table):
    """The place of a table's first page in the file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (page,) = connection.execute(sql, (table,)).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return (page - 1) * size, size


def zero(path, table):
    """Lose a page, as a bad sector does."""
    at, size = page_of(path, table)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(size))


def lose_header(path, _):
    with path.open("r+b") as file:
        file.write(bytes(4096))


def forget_in_index(path, _):
    """A patient whom the index of names does not know."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        find = "SELECT * FROM sqlite_master WHERE name = 'patient_name_key'"
        row = connection.execute(find).fetchone()
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("DELETE FROM sqlite_master WHERE name = 'patient_name_key'")
        connection.commit()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE patient SET name_key = 'ZHAO^LEI'")
        connection.commit()
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)
        connection.commit()


@pytest.fixture
def stopped(run_appliance):
    """Gives the settings of an appliance that had a day and was stopped."""
    first = run_appliance()
    first.schedule(item())
    first.stop()
    return first.config


def check_all(running):
    """All slices of the check, one after the other."""
    box = running.appliance
    box.checker.check_next(box.writer)
    while box.checker.left and not database.condition.trouble:
        box.checker.check_next(box.writer)


def is_told_by_every_door(running):
    with httpx.Client(base_url=running.url, trust_env=False) as client:
        health = client.get("/healthz")
        assert (health.status_code, health.json()["store"]) == (503, WORDS)
        assert WORDS in words_of(client.get("/login").text)
        refused = post(client, "Li^Na")
        assert (refused.status_code, refused.json()["error"]) == (507, WORDS)
    with modality(running) as call:
        assert call.create(creation()).status == 0x0213


@pytest.mark.parametrize("table", ["audit", "patient", "performed_procedure_step"])
def test_a_lost_page_is_found_in_the_background_and_nothing_more_is_written(
    run_appliance, stopped, table
):
    zero(stopped.store_path, table)
    running = run_appliance(OPEN)
    check_all(running)
    before = stopped.store_path.read_bytes()
    is_told_by_every_door(running)
    found = peers.run_findscu(running.port, "MINRIS", "CT1", ["PatientName"])
    assert len(found.datasets) == 1
    running.stop()
    assert stopped.store_path.read_bytes() == before
    assert control_file(stopped).exists()  # so that the next start looks at once


@pytest.mark.parametrize("table", ["audit", "scheduled_procedure_step"])
def test_a_lost_page_is_found_at_the_start_after_a_sudden_end(run_appliance, stopped, table):
    zero(stopped.store_path, table)
    control_file(stopped).touch()
    is_told_by_every_door(run_appliance(OPEN))


def test_a_worklist_that_cannot_be_read_is_refused_not_empty(run_appliance, stopped):
    zero(stopped.store_path, "scheduled_procedure_step")
    running = run_appliance(OPEN)
    found = peers.run_findscu(running.port, "MINRIS", "CT1", ["PatientName"])
    assert (found.status, found.datasets) == (0xA700, [])
    is_told_by_every_door(running)


def test_a_store_without_its_beginning_is_told_and_a_start_does_not_fail(run_appliance, stopped):
    lose_header(stopped.store_path, "")
    is_told_by_every_door(run_appliance(OPEN))


def test_a_wrong_index_is_made_anew(run_appliance, stopped):
    forget_in_index(stopped.store_path, "")
    running = run_appliance(OPEN)
    check_all(running)
    assert database.condition.trouble is None
    with contextlib.closing(sqlite3.connect(stopped.store_path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_whole_store_is_found_whole_beside_writing(run_appliance):
    running = run_appliance()
    for number in range(3):
        running.schedule(item(f"Wang^Fang{number}"))
        check_all(running)
    assert database.condition.trouble is None


@pytest.mark.parametrize("harm", [zero, lose_header])
def test_the_newest_good_backup_replaces_a_damaged_store_where_a_setting_says_so(
    run_appliance, stopped, harm
):
    good = stopped.backup_folder / "minris-20260704-023000.db"
    backup_store(stopped.store_path, good)
    bad = good.with_name("minris-20260705-023000.db")
    bad.write_bytes(good.read_bytes()[:20000])
    harm(stopped.store_path, "patient")
    control_file(stopped).touch()
    running = run_appliance(OPEN + "[housekeeping]\nrestore_damaged = yes\n")
    with httpx.Client(base_url=running.url, trust_env=False) as client:
        assert client.get("/healthz").json()["store"] == "ok"
        assert post(client, "Li^Na").status_code == 201
    assert len(list(stopped.store_path.parent.glob("minris.db.before-*"))) >= 1


def lose_schema(path, _):
    with path.open("r+b") as file:
        file.seek(100)
        file.write(bytes(3996))


@pytest.mark.parametrize(
    ("harm", "table"),
    [
        (zero, "patient"),
        (zero, "device_record"),
        (zero, "mark"),
        (lose_header, ""),
        (lose_schema, ""),
        (forget_in_index, ""),
    ],
)
def test_check_tells_of_damage_and_never_ends_in_a_traceback(stopped, harm, table, capsys):
    harm(stopped.store_path, table)
    with pytest.raises(SystemExit):
        main(["check", "--config", str(stopped.path)])
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert f"store {stopped.store_path}: ok" not in said.out


def test_a_write_ahead_log_that_is_deleted_loses_nothing_acknowledged(tmp_path):
    ports = [peers.free_port() for _ in range(2)]
    config = f"[dicom]\nport = {ports[0]}\n{OPEN}port = {ports[1]}\n"
    served = Served(tmp_path, config=config)
    try:
        with httpx.Client(base_url=served.url, trust_env=False) as client:
            assert post(client, "Wang^Fang").status_code == 201
            (tmp_path / "minris.db-wal").unlink()
            assert post(client, "Li^Na").status_code == 201
        goes_on(served, 1e9)
        with httpx.Client(base_url=served.url, trust_env=False) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    assert post(client, "Zhao^Lei").status_code == 201
                    break
        served.stop(signal.SIGKILL)
    finally:
        served.kill()
    with contextlib.closing(sqlite3.connect(tmp_path / "minris.db")) as connection:
        kept = [name for (name,) in connection.execute("SELECT patient_name FROM patient")]
    assert {"Wang^Fang", "Li^Na", "Zhao^Lei"} <= set(kept)
    assert "write-ahead log was deleted" in served.log


def test_a_store_that_is_replaced_under_way_takes_nothing_more(run_appliance):
    running = run_appliance(OPEN)
    running.schedule(item())
    path = running.config.store_path
    path.rename(path.with_name("moved.db"))
    with httpx.Client(base_url=running.url, trust_env=False) as client:
        assert post(client, "Li^Na").status_code == 507
        assert client.get("/healthz").json()["store"] == TROUBLES["gone"]


# The end of the audit log, outside the store


def desk(running):
    """A client of the pages with an administrator's token."""
    headers = {"Authorization": f"Bearer {running.token()}"}
    return httpx.Client(base_url=running.url, trust_env=False, headers=headers)


def test_the_end_of_the_audit_log_that_was_cut_off_shows_until_it_is_confirmed(
    run_appliance, stopped
):
    """As a write-ahead log that was deleted, or a copy of the store that was put back."""
    with contextlib.closing(sqlite3.connect(stopped.store_path)) as connection:
        connection.execute("DROP TRIGGER audit_not_erased")
        connection.execute("DELETE FROM audit WHERE id = (SELECT max(id) FROM audit)")
        connection.commit()
    running = run_appliance("[clinic]\ntimezone = Asia/Shanghai\n")
    at = datetime.datetime.fromisoformat(running.read(get_mark, "audit cut off"))
    there = at.astimezone(running.config.zone)
    with desk(running) as client:
        told = client.get("/patients").text
        assert "The database has lost its last changes" in words_of(told)
        assert f"{there:%H:%M} is missing" in words_of(client.get("/restored").text)
        client.post("/restored", data={"do": "confirm"})
        assert "has lost" not in client.get("/patients").text
    running.stop()
    with desk(run_appliance()) as client:
        assert "has lost" not in client.get("/patients").text


@pytest.mark.parametrize("text", ["", "12", "one 2026-07-01T08:00 abc", "1 today abc"])
def test_an_end_of_the_audit_log_that_cannot_be_read_is_none(run_appliance, stopped, text):
    beside(stopped.store_path, ".audit").write_text(text)
    assert run_appliance().read(get_mark, "audit cut off") == ""


def test_an_audit_log_that_goes_on_or_is_purged_is_not_cut_off(run_appliance, stopped):
    running = run_appliance()
    running.schedule(item())
    running.stop()
    running = run_appliance()
    assert running.appliance.audit_end.missing() == running.read(get_mark, "audit cut off") == ""
    running.write(purge_audit, "9999")
    running.stop()
    assert run_appliance().read(get_mark, "audit cut off") == ""
