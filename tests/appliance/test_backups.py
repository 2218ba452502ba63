"""What a backup holds besides the store, which are kept, and the second place."""

import datetime
import errno
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest
from conftest import write_config
from test_dimse import wait_until
from test_housekeeping import at_night, run_here, stored
from test_pages import employ, visiting, words_of

from minris.appliance.backups import backups, copy_to_second, thin, to_keep
from minris.appliance.jobs import job_backup, job_second_backup
from minris.cli import main
from minris.config.ini import load_config
from minris.store.sqlite import open_store

# Which are kept


def nights(last, count):
    """Names of backups of that many nights in a row, oldest first."""
    days = (last - datetime.timedelta(days=n) for n in range(count))
    return sorted(f"minris-{day:%Y%m%d}-023000.db" for day in days)


SUNDAY = datetime.date(2026, 7, 5)


def test_of_a_year_seven_days_four_weeks_and_twelve_months_are_kept(config):
    kept = [each.name[7:15] for each in to_keep(config, map(Path, nights(SUNDAY, 365)))]
    days = ["20260629", "20260630", "20260701", "20260702", "20260703", "20260704", "20260705"]
    weeks = ["20260614", "20260621", "20260628", "20260705"]
    months = ["20250831", "20250930", "20251031", "20251130", "20251231", "20260131", "20260228",
              "20260331", "20260430", "20260531", "20260630", "20260705"]  # fmt: skip
    assert kept == sorted({*days, *weeks, *months})


def test_of_a_day_the_last_is_kept_and_days_without_one_do_not_count(config):
    names = ["minris-20260101-020000.db", "minris-20260101-140000.db", "minris-20260704-080000.db"]
    assert [each.name for each in to_keep(config, map(Path, names))] == names[1:]


def test_what_was_made_by_hand_today_stays_today(config):
    names = [f"minris-20260704-{hour:02}0000.db" for hour in range(2, 9)]
    assert [each.name for each in to_keep(config, map(Path, names))] == names[-5:]


def test_a_year_of_nights_leaves_at_most_three_and_twenty(config, tmp_path):
    open_store(config.store_path)
    for name in nights(SUNDAY, 365):
        (tmp_path / name).touch()
        thin(config, tmp_path, 2)
    assert len(backups(tmp_path)) <= 7 + 4 + 12


def test_where_there_is_little_room_the_oldest_go_first(config, tmp_path, monkeypatch):
    open_store(config.store_path)
    for name in nights(SUNDAY, 5):
        (tmp_path / name).touch()
    free = iter([0, 0, 1 << 40])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free)))
    assert thin(config, tmp_path, 2) == 3
    assert [each.name for each in backups(tmp_path)] == nights(SUNDAY, 5)[2:]


def test_the_last_ones_stay_where_there_is_no_room_at_all(config, tmp_path, monkeypatch):
    open_store(config.store_path)
    for name in nights(SUNDAY, 5):
        (tmp_path / name).touch()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    thin(config, tmp_path, 2)
    assert [each.name for each in backups(tmp_path)] == nights(SUNDAY, 2)


# The second place


@pytest.fixture
def stick(tmp_path):
    path = tmp_path / "stick"
    path.mkdir()
    return path


def test_each_backup_goes_to_the_second_folder_too(run_appliance, stick, monkeypatch):
    appliance = run_appliance(f"[housekeeping]\nsecond_backup_folder = {stick}\n")
    box = appliance.appliance
    at_night(monkeypatch, appliance, 5)
    job_backup(box)
    wait_until(lambda: box.second.last)
    [ours], [theirs] = backups(appliance.config.backup_folder), backups(stick)
    assert ours.read_bytes() == theirs.read_bytes()
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o600
    monkeypatch.undo()
    with visiting(appliance) as client:
        employ(appliance, client, "admin")
        assert f"Second backup Last: {ours.name}" in words_of(client.get("/box"))


def test_a_stick_that_is_away_is_said_and_tried_again(run_appliance, stick, monkeypatch, caplog):
    stick.rmdir()
    appliance = run_appliance(f"[housekeeping]\nsecond_backup_folder = {stick}\n")
    box = appliance.appliance
    job_backup(box)
    wait_until(lambda: box.second.problem)
    told = f"could not be copied to {stick}: there is no such folder"
    with visiting(appliance) as client:
        employ(appliance, client)
        assert told in words_of(client.get("/"))
        assert "not copied to" in caplog.text
        stick.mkdir()
        job_second_backup(box)
        assert told not in words_of(client.get("/"))
    assert len(backups(stick)) == 1


def test_a_folder_where_the_stick_was_mounted_gets_nothing(config, stick):
    """It would fill the disk of the store, and be no second place."""
    open_store(config.store_path)
    told = load_config(
        write_config(stick.parent, f"[housekeeping]\nsecond_backup_folder = {stick}")
    )
    [backup] = nights(SUNDAY, 1)
    (stick.parent / backup).touch()
    with pytest.raises(OSError, match="nothing is mounted"):
        copy_to_second(told, stick.parent / backup, was_apart=True)
    assert not list(stick.iterdir())


def test_a_copy_that_was_cut_off_leaves_no_half_file(config, stick, monkeypatch):
    open_store(config.store_path)
    told = load_config(
        write_config(stick.parent, f"[housekeeping]\nsecond_backup_folder = {stick}")
    )
    backup = stick.parent / nights(SUNDAY, 1)[0]
    backup.write_bytes(b"x" * 100)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space"):
        copy_to_second(told, backup, was_apart=False)
    assert not list(stick.iterdir())


# Configuration and certificates

KEY = "-----BEGIN PRIVATE KEY-----\nnot a real one\n-----END PRIVATE KEY-----\n"
TLS = "[web]\ntls_certificate = tls/web.pem\ntls_key = tls/web.key\n"


@pytest.fixture
def clinic(tmp_path):
    """A box with certificates, and its backup."""
    folder = tmp_path / "clinic"
    (folder / "tls").mkdir(parents=True)
    (folder / "tls" / "web.pem").write_text("a certificate")
    (folder / "tls" / "web.key").write_text(KEY)
    (folder / "tls" / "web.key").chmod(0o644)
    config = load_config(write_config(folder, TLS + "[store]\nurl = sqlite:///data.db\n"))
    stored(config, "A1")
    done = run_here(config, "backup", folder / "copy.db")
    assert done.exit_code == 0, done.err
    return config


def files(folder):
    names = ("config.ini", "tls/web.pem", "tls/web.key")
    return {name: (folder / name).read_text("utf-8") for name in names}


def test_a_new_computer_gets_all_from_a_backup(clinic, tmp_path, monkeypatch, capsys):
    new = tmp_path / "new"
    new.mkdir()
    monkeypatch.chdir(new)
    assert main(["restore", str(clinic.directory / "copy.db")]) == 0
    assert files(new) == files(clinic.directory)
    assert stat.S_IMODE((new / "tls/web.key").stat().st_mode) == 0o600
    said = capsys.readouterr().out
    assert f"{new / 'config.ini'} was given back" in said
    with sqlite3.connect(new / "data.db") as connection:
        assert connection.execute("SELECT count(*) FROM patient").fetchone() == (1,)
        assert not connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'held_file'"
        ).fetchone()


def test_a_file_that_differs_stays_and_that_of_the_backup_lies_beside_it(clinic):
    before = files(clinic.directory)
    clinic.path.write_text(
        before["config.ini"] + "\n[clinic]\nlanguage = en\n".replace("[clinic]\n", "# ")
    )
    (clinic.directory / "tls/web.key").write_text("a new one")
    changed = files(clinic.directory)
    done = run_here(clinic, "restore", clinic.directory / "copy.db")
    assert done.exit_code == 0, done.err
    assert files(clinic.directory) == changed
    for name in ("config.ini", "tls/web.key"):
        beside = clinic.directory / f"{name}.from-backup"
        assert beside.read_text("utf-8") == before[name]
        assert str(beside) in done.out
    assert stat.S_IMODE((clinic.directory / "tls/web.key.from-backup").stat().st_mode) == 0o600
    assert "web.pem" not in done.out


def test_the_nightly_backup_holds_them_too(run_appliance, tmp_path):
    appliance = run_appliance()
    job_backup(appliance.appliance)
    [backup] = backups(appliance.config.backup_folder)
    with sqlite3.connect(backup) as connection:
        held = dict(connection.execute("SELECT name, content FROM held_file"))
    assert held == {"config.ini": appliance.config.path.read_bytes()}


def test_a_file_that_cannot_be_read_does_not_prevent_a_backup(clinic, caplog):
    (clinic.directory / "tls/web.key").unlink()
    (clinic.directory / "tls/web.key").mkdir()
    from minris.appliance.backups import hold_files

    with sqlite3.connect(":memory:") as copy:
        hold_files(clinic)(copy)
        assert copy.execute("SELECT count(*) FROM held_file").fetchone() == (2,)
    assert "web.key" in caplog.text
