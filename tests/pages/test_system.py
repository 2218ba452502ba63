"""The page of the system: tiles with a number each, checks below, backups."""

import datetime
import re
import types

import pytest
from conftest import NOON, Running, write_config
from test_mpps import creation, stored_form
from test_pages import employ, visiting, words_of

from minris.appliance.overview import at_words, next_backup, sized
from minris.config.ini import load_config
from minris.mpps.performed import create_mpps
from minris.outbox import note_failed

BACKUP = "[housekeeping]\nbackup_time = 02:30\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory, ready_store):
    """An appliance for all tests of this module that change nothing others look at."""
    folder = tmp_path_factory.mktemp("system")
    config = load_config(write_config(folder, BACKUP))
    ready_store(config.store_path)
    one = Running(config)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def admin(running):
    with visiting(running) as client:
        yield employ(running, client, "admin")


def tile(client, name):
    """What a tile says."""
    found = re.findall(r"<li data-light.*?</li>", client.get("/box").text, re.S)
    told = [words_of(types.SimpleNamespace(text=one)) for one in found]
    return next(words for words in told if re.match(rf"\W*{name}", words))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Running", r"Running 0 min minris \d+\.\d+\.\d+, since today \d\d:\d\d"),
        ("Database", r"Database \d+ kB 0 patients, 0 exams"),
        ("Disk", r"Disk [\d.]+ [kMGT]B free of [\d.]+ [MGT]B"),
        ("Last backup", r"Last backup none yet next (today|tomorrow) 02:30 No second place is set"),
        ("Archive", r"Archive none Register it as a device"),
        ("Devices", r"Devices 0 of 3 today CT room: never called .*"),
        ("Certificate until", r"Certificate until none .*"),
        ("Waiting to be sent", r"Waiting to be sent 0 to do: 0"),
    ],
)
def test_a_tile_has_a_number_and_small_lines(admin, name, words):
    assert re.fullmatch(rf"[●▲■] {words}|{words}", tile(admin, name))


def test_the_light_of_the_header_counts_in_words(running, admin):
    assert "1 to check" in words_of(admin.get("/settings")), "there is no backup yet"


def test_a_device_whose_clock_is_wrong_is_said_with_when_it_was_seen(run_appliance):
    appliance = run_appliance()

    def late(ctx):
        at = ctx.now() - datetime.timedelta(hours=8)
        create_mpps(ctx, "2.25.1", stored_form(creation(
            PerformedStationAETitle="CT1", PerformedProcedureStepStartDate=f"{at:%Y%m%d}",
            PerformedProcedureStepStartTime=f"{at:%H%M}",
        )))  # fmt: skip
        for _ in range(3):
            note_failed(ctx, "DX1", "connection refused", "passed on")

    appliance.write(late, appliance.context())
    with visiting(appliance) as client:
        employ(appliance, client, "admin")
        told = tile(client, "Devices")
        assert re.search(r"▲ Devices 1 of 3 today CT room: today \d\d:\d\d\. Its clock is 8 h slow:"
                         r" check its time zone", told)  # fmt: skip
        page = words_of(client.get("/box"))
        assert "Check Devices X-ray: connection refused" in page
        assert "3 to check" in page


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (41e9, "41.0 GB"),
     (5e15, "5000 TB")],
)  # fmt: skip
def test_a_size_is_read_at_a_glance(count, words):
    assert sized(count) == words


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        (0, "today 12:00"),
        (-24, "yesterday 12:00"),
        (24, "tomorrow 12:00"),
        (48, "2026-07-07 12:00"),
    ],
)
def test_a_time_near_by_is_said_by_its_day(ctx, hours, words):
    assert at_words(ctx, NOON + datetime.timedelta(hours=hours)) == words


def test_when_the_next_backup_is_due(ctx):
    assert next_backup(ctx) == "next tomorrow 02:30"
