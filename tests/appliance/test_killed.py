"""What was killed in the midst of an import or a backup is whole afterwards, and leaves nothing."""

import contextlib
import re
import shutil
import signal
import sqlite3
import subprocess
import threading

import httpx
import pytest
from conftest import item
from faults import compiled
from kills import SHIM
from test_appliance import Served, command_line, folder, here, run  # noqa: F401
from test_damage import lose_schema, zero
from test_dimse import wait_until
from test_disk import OPEN
from test_imports_long import csv_of
from test_pages import csrf_of, words_of

from minris.appliance.backups import backups, sweep
from minris.appliance.store_commands import control_file
from minris.config.ini import load_config
from minris.store.condition import TROUBLES
from minris.store.sqlite import backup_store, open_store


def exams(store):
    """The accession numbers of a store that is whole."""
    with contextlib.closing(sqlite3.connect(store)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        sql = "SELECT accession_number FROM scheduled_procedure_step ORDER BY 1"
        return [number for (number,) in connection.execute(sql)]


def numbers(rows):
    """Those of a list of so many exams."""
    return [f"A{n:06}" for n in range(rows)]


def dying(file, at):
    """The environment in which a process dies at its n-th write to a file."""
    return {"LD_PRELOAD": str(compiled(SHIM)), "KILL_FILE": str(file), "KILL_AT": str(at)}


# An import where nothing runs: one transaction


def test_a_killed_import_command_adds_nothing_and_its_repeat_all(folder):  # noqa: F811
    (folder / "all.csv").write_text(csv_of(150), "utf-8")
    store = folder / "minris.db"
    open_store(store)
    killed = run("import", "all.csv", folder=folder, **dying(f"{store}-wal", 60))
    assert killed.returncode == -signal.SIGKILL
    assert exams(store) == []
    assert "Imported: 150" in run("import", "all.csv", folder=folder).stdout
    assert exams(store) == numbers(150)


# An import beside a running appliance: slices, which go on after the next start


def by_command(served, rows):
    (served.folder / "all.csv").write_text(csv_of(rows), "utf-8")
    subprocess.run(
        command_line("import", "all.csv"), cwd=served.folder, capture_output=True, check=False
    )


def by_page(served, rows):
    """Look at a file, and import it; a repeat is told when it was imported, and goes no further."""
    with httpx.Client(base_url=served.url, timeout=60, trust_env=False) as client:
        client.post("/login", data={"name": "admin", "password": served.first_password})
        sent = {"csrf": csrf_of(client.get("/import").text)}
        with contextlib.suppress(httpx.TransportError):
            file = {"upload": ("all.csv", csv_of(rows).encode())}
            page = client.post("/import", data=sent, files=file)
            while "Refresh" in page.headers:
                page = client.get(page.headers["Refresh"].partition("url=")[2])
            if "imported already" not in words_of(page):
                number = re.search(r'name="number" value="(\d+)"', page.text)[1]
                client.post("/import", data=sent | {"number": number, "confirmed": "yes"})


def by_program(served, rows):
    kind = {"Content-Type": "application/dicom+json"}
    items = [item(f"Doe {n}", AccessionNumber=f"A{n:06}", PatientID=f"P{n}") for n in range(rows)]
    with contextlib.suppress(httpx.TransportError):
        httpx.post(
            f"{served.url}/api/worklist", json=items, headers=kind, timeout=60, trust_env=False
        )


def done_so_far(folder):  # noqa: F811
    with contextlib.closing(sqlite3.connect(folder / "minris.db")) as connection:
        found = connection.execute("SELECT max(done), min(state) FROM imported_file WHERE wanted")
        return found.fetchone()


ROWS = 400


@pytest.mark.long
@pytest.mark.parametrize("door", [by_command, by_page, by_program])
@pytest.mark.parametrize("after", [1, ROWS // 2])
def test_an_import_of_a_killed_appliance_is_completed_once(tmp_path, door, after):
    served = Served(tmp_path, config=OPEN)
    served.first_password = served.password
    try:
        sender = threading.Thread(target=door, args=(served, ROWS))
        sender.start()

        def is_under_way():
            done, state = done_so_far(tmp_path)
            return state == "importing" and done >= after

        wait_until(is_under_way)
        served.stop(signal.SIGKILL)
        sender.join()
        assert len(exams(tmp_path / "minris.db")) < ROWS
        password = served.first_password
        served = Served(tmp_path)
        served.first_password = password
        for _ in range(2):  # the same file again, while it goes on and after its end
            door(served, ROWS)
            wait_until(lambda: done_so_far(tmp_path)[1] == "done")
            assert exams(tmp_path / "minris.db") == numbers(ROWS)
        assert not list(tmp_path.glob("*.to-import-*"))
        served.stop()
    finally:
        served.kill()


# What they leave


def test_what_killed_ones_left_is_gone_after_a_start_and_other_files_stay(run_appliance, tmp_path):
    first = run_appliance()
    first.stop()
    copies = first.config.backup_folder
    copies.mkdir()
    gone = [
        tmp_path / "minris.db.to-import-0123456789abcdef",
        tmp_path / "minris.db.tried",
        tmp_path / "minris.db.schema-17.part",
        copies / "minris-20260704-023000.db.part",
        copies / "minris-20260704-023000.db.part-journal",
        copies / "audit-20260704-000000001.jsonl.new",
    ]
    stay = [
        tmp_path / "minris.db.before-20260704-120000",
        tmp_path / "minris.db.schema-17",
        copies / "minris-20260703-023000.db",
        copies / "letters.part",
    ]
    for each in (*gone, *stay):
        each.write_bytes(b"of a run before")
    run_appliance()
    assert [each for each in gone if each.exists()] == []
    assert all(each.exists() for each in stay)


def test_a_copy_that_another_process_works_at_stays(run_appliance, monkeypatch):
    first = run_appliance()
    to = first.config.backup_folder / "minris-20260704-023000.db"
    part = to.with_name(f"{to.name}.part")

    def meanwhile(copy):
        sweep(to.parent)
        assert part.exists()

    backup_store(first.config.store_path, to, None, meanwhile)
    assert to.exists() and not part.exists()


def test_a_killed_backup_vouches_for_nothing_and_is_gone_after_the_next_start(
    run_appliance, tmp_path
):
    """Killed while its copy is written: some pages of it are there, with or without a journal."""
    running = run_appliance()
    for number in range(40):
        running.schedule(item(f"Wang^Fang{number}", RequestedProcedureDescription="x" * 60))
    running.stop()
    copies = running.config.backup_folder
    copies.mkdir()
    killed = run("backup", folder=tmp_path, **dying(copies, 12))
    assert killed.returncode == -signal.SIGKILL
    [part] = copies.glob("*.part")
    assert backups(copies) == []
    alone = tmp_path / "alone.db"
    shutil.copyfile(part, alone)
    for each in (part, alone):
        refused = run("restore", each, folder=tmp_path)
        assert refused.returncode == 1 and str(each) in refused.stderr, refused.stderr
    run_appliance()
    assert list(copies.iterdir()) == []


# A store in quarantine

WRITING = [
    ("user", "anna", "--delete"),
    ("token", "ris"),
    ("import", "list.csv"),
    ("import", "export.json"),
]


@pytest.mark.parametrize("command", WRITING, ids=" ".join)
@pytest.mark.parametrize(("harm", "table"), [(zero, "patient"), (zero, "mark"), (lose_schema, "")])
def test_a_command_writes_nothing_to_a_damaged_store_and_names_it(
    folder,  # noqa: F811
    here,  # noqa: F811
    command,
    harm,
    table,
):
    config = load_config(folder / "config.ini")
    open_store(config.store_path)
    here("check")
    (folder / "list.csv").write_text(csv_of(2), "utf-8")
    (folder / "export.json").write_text(here("export")[1], "utf-8")
    harm(config.store_path, table)
    control_file(config).touch()  # as it is left by a sudden end, and by one in quarantine
    before = config.store_path.read_bytes()
    status, _, errors = here(*command)
    assert status == 1
    assert f"{config.store_path}" in errors.splitlines()[-1] and "amaged" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert config.store_path.read_bytes() == before


def test_a_command_beside_a_running_appliance_whose_store_is_damaged_says_so(
    run_appliance,
    here,  # noqa: F811
    folder,  # noqa: F811
):
    first = run_appliance(folder=folder)
    first.stop()
    zero(first.config.store_path, "patient")
    control_file(first.config).touch()
    running = run_appliance(folder=folder)
    for command in WRITING[:2]:
        status, _, errors = here(*command)
        assert status == 1
        words = [f"minris: {running.config.store_path}: {words}" for words in TROUBLES.values()]
        assert errors.splitlines()[-1] in words
