"""What keeps the box in order: export, backup, restore, retention, jobs, metrics, systemd."""

import contextlib
import csv
import dataclasses
import datetime
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import threading
import time
import zoneinfo

import httpx
import peers
import pytest
from conftest import NOON, PROGRAM, ROOT, item
from test_mpps import creation, creation_for, ending, stored_form, unscheduled_item

from minris.access.context import Context, audit, utc_now
from minris.access.devices import AccessRules, save_device
from minris.access.users import make_token, make_user, open_session
from minris.appliance.jobs import (
    BY_THE_CLOCK,
    DAILY,
    Job,
    daily_due,
    job_backup,
    job_daily,
    job_purge,
    minute_trigger,
)
from minris.appliance.machine import notify_systemd
from minris.appliance.store_commands import STORE_COMMANDS, run_import
from minris.appliance.watchdog import WATCHDOG_SECONDS
from minris.cli import main
from minris.dataset.dicom_json import from_json
from minris.dataset.elements import ElementIndex, encode_text
from minris.housekeeping.retention import purge
from minris.interchange.csv_tables import export_csv
from minris.interchange.whole_store import export_store
from minris.mpps.linking import link_by_hand, settle_unscheduled, unscheduled_steps
from minris.mpps.performed import create_mpps, set_mpps
from minris.orders import scheduling as orders_scheduling
from minris.orders.catalogue import retire_procedure, save_procedure
from minris.orders.lookup import find_step, find_steps
from minris.orders.patients import correct_patient
from minris.orders.scheduling import move_step, reschedule
from minris.orders.steps import change_step, enter_state
from minris.orders.trace import QueryLog, save_queries
from minris.standard.dictionary import tag_of
from minris.standard.status import Refusal, Status
from minris.standard.worklist import OPEN_STEP_STATES, STEP_STATES
from minris.store.models import (
    Audit,
    Patient,
    PerformedProcedureStep,
    PerformedScheduledStep,
    QueryTrace,
    RequestedProcedure,
    ScheduledProcedureStep,
    ScheduledStation,
    StoreError,
    User,
    database,
)
from minris.store.rows import get_mark, set_mark
from minris.store.sqlite import backup_store, open_store

UNIT = ROOT / "systemd" / "minris.service"


def at(ctx, **later):
    """The same circumstances at another time."""
    return dataclasses.replace(ctx, now=lambda: NOON + datetime.timedelta(**later))


def schedule(ctx, name="Wang^XiaoDong=王^小东", **texts):
    """Put an exam on the worklist: its data set."""
    [data] = orders_scheduling.schedule(ctx, from_json(item(name, **texts)), "separate")
    return ElementIndex(data)


def keys_of(index):
    inner = index.item("ScheduledProcedureStepSequence")
    return index.get("StudyInstanceUID"), inner.get("ScheduledProcedureStepID")


def texts(**values):
    """A data set of texts, empty ones too."""
    elements = {tag_of(k): encode_text(k, v) for k, v in values.items()}
    return b"".join(element for _, element in sorted(elements.items()))


def patient_row(patient_id):
    return Patient.get(Patient.patient_id == patient_id).id


def perform(ctx, index, uid, *ends):
    """Report an exam as a machine does."""
    create_mpps(ctx, uid, stored_form(creation_for(index)))
    for ds in ends:
        set_mpps(ctx, uid, stored_form(ds))


def count(model):
    return model.select().count()


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    exit_code: int
    out: str
    err: str


def run(config, *arguments, given=None, **environment):
    """A command as it is typed, in a process of its own: beside a running appliance."""
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments), "--config", str(config.path)],
        input=given,
        capture_output=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def run_here(config, *arguments):
    """A command as it is typed, in this process: where no appliance runs."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([*map(str, arguments), "--config", str(config.path)])
        except SystemExit as end:
            code = end.code
    return Done(code, out.getvalue(), err.getvalue())


def is_told(done, *words):
    """A command that could not says so in a line, and ends with 1."""
    assert "Traceback" not in done.err, done.err
    assert done.exit_code == 1
    assert all(word in done.err for word in words), done.err
    return True


# Export and back


def department(ctx):
    """A day with something of everything that is kept."""
    ct = schedule(ctx, PatientID="P1", PatientBirthDate="19780312", PregnancyStatus=1)
    change_step(at(ctx, minutes=1), "arrive", *keys_of(ct))
    perform(at(ctx, minutes=2), ct, "2.25.1", ending())
    us = schedule(ctx, "Li^Na=李^娜", PatientID="P2", ScheduledStationAETitle="US1\\US2")
    perform(at(ctx, minutes=3), us, "2.25.2")
    create_mpps(ctx, "2.25.3", stored_form(creation(unscheduled_item())))
    create_mpps(ctx, "2.25.4", stored_form(creation(unscheduled_item())))
    performed = {p.sop_instance_uid: p.id for p in unscheduled_steps()}
    link_by_hand(ctx, performed["2.25.3"], find_step(*keys_of(us)).id)
    settle_unscheduled(ctx, performed["2.25.4"], "Phantom, weekly check")
    gone = schedule(ctx, "Müller^Anna", PatientID="P3")
    change_step(ctx, "cancel", *keys_of(gone), "Went home")
    schedule(ctx, "Yamada^Tarou=山田^太郎=やまだ^たろう", PatientID="P4", IssuerOfPatientID="LAKE")
    settings = {"ae_title": "MR1, MR2", "modality": "MR", "character_set": "GB18030"}
    save_device(ctx, "MR room", settings)
    for code in ("CTCH", "CTOLD"):
        save_procedure(ctx, {"code": code, "meaning": f"CT {code}", "minutes": "20"})
    retire_procedure(ctx, "CTOLD")


def corrected_after_the_end(ctx):
    """An exam that waits was registered before one that has ended; then the patient changed."""
    schedule(ctx, PatientID="P1", PatientWeight="70")
    done = schedule(ctx, PatientID="P1")
    perform(ctx, done, "2.25.1", ending())
    correct_patient(ctx, patient_row("P1"), texts(PatientWeight="75"))


def renamed_after_the_end(ctx):
    done = schedule(ctx, PatientID="P1")
    perform(ctx, done, "2.25.1", ending())
    schedule(ctx, PatientID="P1")
    correct_patient(ctx, patient_row("P1"), texts(PatientName="Zhang^Wei=张^伟"))


def two_patients_of_one_id(ctx):
    schedule(ctx, "Wang^Fang", PatientID="P1")
    schedule(ctx, "Li^Na", PatientID="P1")


def half_of_a_procedure_ended(ctx):
    """Two steps of a procedure; what was changed after the end of one is not in it."""
    given = item("Wang^Fang", PatientID="P1")
    sequence = given["ScheduledProcedureStepSequence"]["Value"]
    sequence.append(dict(sequence[0]))
    first, second = map(ElementIndex, orders_scheduling.schedule(ctx, from_json(given)))
    change_step(ctx, "cancel", *keys_of(first))
    changed = texts(RequestedProcedureComments="Bring the old films")
    reschedule(ctx, *keys_of(second), changed)


def identified_later(ctx):
    schedule(ctx, PatientID="P1", PatientBirthDate="19780312")
    begun = schedule(ctx, "Unknown^Emergency", PatientID="P9")
    perform(ctx, begun, "2.25.1", ending())
    schedule(ctx, "Unknown^Emergency", PatientID="P9")
    known = texts(PatientName="Wang^XiaoDong=王^小东", PatientID="P1", PatientBirthDate="19780312")
    correct_patient(ctx, patient_row("P9"), known)


def every_state(ctx):
    for number, state in enumerate(STEP_STATES):
        schedule(ctx, f"Wang^{number}", ScheduledProcedureStepStatus=state)


STORIES = pytest.mark.parametrize(
    "story",
    [
        department,
        corrected_after_the_end,
        renamed_after_the_end,
        two_patients_of_one_id,
        half_of_a_procedure_ended,
        identified_later,
        every_state,
    ],
    ids=lambda story: story.__name__,
)


@contextlib.contextmanager
def empty_store(folder):
    """Another store, as on a new box."""
    first = database.obj
    open_store(folder / "other.db")
    try:
        with database.connection_context():
            yield
    finally:
        database.initialize(first)


def exported():
    """What export writes."""
    return json.dumps(export_store(), ensure_ascii=False, indent=1)


@STORIES
def test_an_export_read_into_an_empty_store_is_exported_the_same(ctx, tmp_path, story):
    """Issue: export in open form; nothing of it is lost or changed on the way back."""
    story(ctx)
    before = exported()
    with empty_store(tmp_path):
        run_import(ctx, "all.json", before.encode())
        after = exported()
    assert json.loads(after) == json.loads(before)


def test_patients_whose_exams_have_been_erased_are_in_an_export(ctx):
    """Their allergies are what is left of them."""
    old = at(ctx, days=-40)
    index = schedule(old, PatientID="P1", Allergies="Penicillin")
    change_step(old, "cancel", *keys_of(index))
    purge(keeping(ctx, steps=30))
    assert "Penicillin" in exported()


def test_an_import_of_an_export_says_what_it_did(ctx, tmp_path):
    department(ctx)
    content = exported().encode()
    with empty_store(tmp_path):
        words = run_import(ctx, "all.json", content)
    assert words == "all.json: 4 worklist, 4 performed, 1 devices, 2 procedures, 0 workitems"


def test_what_comes_back_goes_on_where_it_was(ctx, tmp_path):
    """A report that had begun before the move ends after it."""
    index = schedule(ctx)
    perform(ctx, index, "2.25.1")
    content = exported().encode()
    with empty_store(tmp_path):
        run_import(ctx, "all.json", content)
        set_mpps(ctx, "2.25.1", stored_form(ending()))
        assert find_step(*keys_of(index)).status == "COMPLETED"


def test_an_export_read_twice_is_refused_and_changes_nothing(ctx):
    department(ctx)
    before = exported()
    with pytest.raises(Refusal), database.atomic():
        run_import(ctx, "all.json", before.encode())
    assert exported() == before


def spoiled(change):
    """An export of a small store with something wrong."""
    content = {"minris": "0.1.0", "worklist": [{"data": item()}], "performed": []}
    change(content)
    return json.dumps(content).encode()


DAMAGED = {
    "cut short": lambda: spoiled(lambda c: None)[:-40],
    "without a data set": lambda: spoiled(lambda c: c["worklist"].append({})),
    "a list for a map": lambda: spoiled(lambda c: c.update(worklist=[["data"]])),
    "no list": lambda: spoiled(lambda c: c.update(worklist=7)),
    "a report of nothing": lambda: spoiled(lambda c: c["performed"].append({"uid": "2.25.1"})),
    "an order that is not there": lambda: spoiled(
        lambda c: c.update(patients=[], requested=[], worklist=[{"data": item(), "requested": 7}])
    ),
    "a patient since nobody knows when": lambda: spoiled(
        lambda c: c.update(patients=[{"data": item(), "created_at": None, "updated_at": []}])
    ),
    "a device without settings": lambda: spoiled(lambda c: c.update(devices=[{"name": "MR"}])),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_export_is_refused_in_words_and_nothing_of_it_is_kept(config, tmp_path, what):
    path = tmp_path / "all.json"
    path.write_bytes(DAMAGED[what]())
    assert is_told(run_here(config, "import", path), "all.json: nothing imported: ")
    open_store(config.store_path)
    with database.connection_context():
        assert count(ScheduledProcedureStep) == 0


def test_the_running_appliance_refuses_a_damaged_export_in_words(appliance, tmp_path):
    path = tmp_path / "all.json"
    path.write_bytes(DAMAGED["without a data set"]())
    done = run(appliance.config, "import", path)
    assert is_told(done, "all.json: nothing imported: ")
    assert "does not answer" not in done.err


def test_the_exported_list_has_a_row_for_each_step(ctx):
    department(ctx)
    head, *rows = csv.reader(io.StringIO(export_csv(), newline=""))
    assert len(rows) == 4
    cells = dict(zip(head, next(row for row in rows if "P1" in row), strict=True))
    assert cells["PatientName"] == "Wang^XiaoDong=王^小东"
    assert cells["ScheduledProcedureStepStatus"] == "COMPLETED"


def test_export_beside_a_running_appliance_writes_a_file_for_our_user_alone(appliance, tmp_path):
    appliance.schedule(item())
    target = tmp_path / "all.json"
    done = run(appliance.config, "export", target)
    assert done.exit_code == 0, done.err
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert len(json.loads(target.read_text("utf-8"))["worklist"]) == 1


def test_export_as_csv_opens_in_a_chinese_spreadsheet(appliance):
    """The mark at its beginning tells a spreadsheet that it is UTF-8."""
    appliance.schedule(item())
    done = run(appliance.config, "export", "--format", "csv")
    assert done.exit_code == 0, done.err
    assert done.out.startswith("\ufeffPatientID,")
    assert "王^小东" in done.out


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("form", ["json", "csv"])
@pytest.mark.parametrize("to_file", [True, False])
def test_an_export_is_utf_8_whatever_the_system_s_own_encoding(appliance, tmp_path, form, to_file):
    """A service has no locale, a Windows box another one."""
    appliance.schedule(item())
    target = tmp_path / "all"
    done = run(appliance.config, "export", "--format", form, *[target] * to_file, **ASCII)
    assert done.exit_code == 0, done.err
    text = target.read_text("utf-8") if to_file else done.out
    assert "王^小东" in text


@pytest.mark.parametrize("form", ["md", "html"])
def test_the_statement_is_utf_8_whatever_the_system_s_own_encoding(config, form):
    done = run(config, "conformance", "--format", form, **ASCII)
    assert done.exit_code == 0, done.err
    assert "lü, lv or lyu" in done.out


@pytest.mark.parametrize("command", ["export", "backup"])
def test_a_place_that_cannot_be_written_to_is_told_in_words(appliance, tmp_path, command):
    (tmp_path / "file").touch()
    assert is_told(run(appliance.config, command, tmp_path / "file" / "copy"), "copy")


@pytest.mark.parametrize("command", ["export", "backup"])
def test_without_a_store_there_is_nothing_to_keep(config, command):
    assert is_told(run_here(config, command), "there is no store")
    assert not config.store_path.exists()


# Backup and restore


def orders_in(path):
    """Accession numbers by table: of procedures, and of steps."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        sql = "SELECT accession_number FROM {} ORDER BY 1"
        tables = ("requested_procedure", "scheduled_procedure_step")
        return [[row[0] for row in connection.execute(sql.format(t))] for t in tables]


@contextlib.contextmanager
def registering(appliance):
    """Reception registers patients without a pause; gives what counts those acknowledged."""
    done, numbers = [], itertools.count()
    many, enough = threading.Event(), threading.Event()

    def register():
        while not enough.is_set():
            appliance.schedule(item(f"Wang^{next(numbers)}"))
            done.append(1)
            if len(done) >= 20:
                many.set()

    threads = [threading.Thread(target=register) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert many.wait(20)
        yield lambda: len(done)
    finally:
        enough.set()
        for thread in threads:
            thread.join(20)


def test_a_backup_under_writes_is_consistent(appliance, tmp_path):
    """Every order in it is whole, and all that was acknowledged before is there."""
    with registering(appliance) as acknowledged:
        before = acknowledged()
        backup_store(appliance.config.store_path, tmp_path / "copy.db")
    procedures, steps = orders_in(tmp_path / "copy.db")
    assert procedures == steps
    assert len(steps) >= before


def ballast(appliance, mebibytes):
    """Let a store be as large as after years."""
    sql = "INSERT INTO audit (at, who, what, about, detail) VALUES ('', '', '', '', ?)"
    for _ in range(mebibytes):
        appliance.write(database.execute_sql, sql, ("x" * (1 << 20),))


def test_a_backup_of_a_large_store_ends_though_the_writes_do_not(appliance, tmp_path):
    """A night with the scanner at work."""
    ballast(appliance, 60)
    ended = threading.Event()

    def backup():
        backup_store(appliance.config.store_path, tmp_path / "copy.db")
        ended.set()

    def write():
        while not ended.is_set():
            appliance.write(audit, appliance.context(), "login", "anna")

    writers = [threading.Thread(target=write) for _ in range(3)]
    for thread in (*writers, threading.Thread(target=backup, daemon=True)):
        thread.start()
    in_time = ended.wait(peers.PATIENCE_S)
    ended.set()
    for thread in writers:
        thread.join(20)
    assert in_time, "the backup does not end while there are writes"


def test_reception_goes_on_during_a_backup(appliance, tmp_path):
    ballast(appliance, 24)
    thread = threading.Thread(
        target=backup_store, args=(appliance.config.store_path, tmp_path / "copy.db")
    )
    thread.start()
    begun = time.monotonic()
    appliance.schedule(item())
    assert time.monotonic() - begun < 2
    thread.join(30)


def test_the_backup_command_beside_a_running_appliance(appliance, tmp_path):
    appliance.schedule(item(AccessionNumber="A1"))
    target = tmp_path / "copy.db"
    done = run(appliance.config, "backup", target)
    assert done.exit_code == 0, done.err
    assert f"{target}: " in done.out
    assert orders_in(target) == [["A1"], ["A1"]]


def stored(config, accession):
    """A store with one order, closed."""
    open_store(config.store_path)
    with database.connection_context():
        ctx = Context(config, devices=AccessRules(config).devices)
        schedule(ctx, AccessionNumber=accession)


def backup_of(config, path, accession):
    stored(config, accession)
    backup_store(config.store_path, path)
    return path


def kept_beside(config):
    """The store that was there before a restore, under its new name."""
    return sorted(config.store_path.parent.glob(f"{config.store_path.name}.before-*"))


def test_restore_puts_a_backup_back_and_keeps_what_was_there(config, tmp_path):
    backup = backup_of(config, tmp_path / "copy.db", "A1")
    stored(config, "A2")
    done = run_here(config, "restore", backup)
    assert done.exit_code == 0, done.err
    assert orders_in(config.store_path) == [["A1"], ["A1"]]
    [kept] = kept_beside(config)
    assert str(kept) in done.out
    assert orders_in(kept) == [["A1", "A2"], ["A1", "A2"]]


def test_restore_makes_a_store_where_there_is_none(config, tmp_path):
    backup = backup_of(config, tmp_path / "copy.db", "A1")
    config.store_path.unlink()
    assert run_here(config, "restore", backup).exit_code == 0
    assert orders_in(config.store_path) == [["A1"], ["A1"]]


def test_restore_is_refused_while_the_appliance_runs(appliance, tmp_path):
    appliance.schedule(item(AccessionNumber="A1"))
    backup = tmp_path / "copy.db"
    backup_store(appliance.config.store_path, backup)
    appliance.schedule(item("Li^Na", AccessionNumber="A2"))
    assert is_told(
        run(appliance.config, "restore", backup), "is in use. Stop the running minris first"
    )
    assert len(appliance.read(find_steps, "A2")) == 1


def garbage(path):
    path.write_bytes(b"This is no backup.\n" * 500)


def empty(path):
    path.write_bytes(b"")


def foreign(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE images (id)")
        connection.commit()


def cut_short(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def of_a_newer_minris(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 999")


def gone(path):
    path.unlink()


@pytest.mark.parametrize(
    "spoil",
    [garbage, empty, foreign, cut_short, of_a_newer_minris, gone],
    ids=lambda spoil: spoil.__name__,
)
def test_restore_refuses_what_is_no_backup_and_keeps_the_store(config, tmp_path, spoil):
    """Issue: restore refuses; the old store is there as it was."""
    backup = backup_of(config, tmp_path / "copy.db", "A1")
    if spoil is foreign:
        backup.unlink()
    spoil(backup)
    stored(config, "A2")
    assert is_told(run_here(config, "restore", backup), "minris: ")
    assert orders_in(config.store_path) == [["A1", "A2"], ["A1", "A2"]]
    open_store(config.store_path)


def test_a_backup_cut_off_leaves_no_half_file(config, tmp_path):
    backup = backup_of(config, tmp_path / "copy.db", "A1")
    cut_short(backup)
    with contextlib.suppress(Exception):
        run_here(config, "restore", backup)
    assert not list(config.store_path.parent.glob("*.part"))


# Nightly backup


def backups(appliance):
    folder = appliance.config.backup_folder
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def at_night(monkeypatch, appliance, day):
    """Let it be the night of a day."""
    night = datetime.datetime(2026, 7, day, 2, 30, tzinfo=datetime.UTC)
    context = appliance.context()
    changed = dataclasses.replace(context, now=lambda: night)
    monkeypatch.setattr(appliance.appliance, "context", lambda *actor: changed)


def test_the_nightly_backup_is_named_after_its_night_and_is_in_order(appliance, monkeypatch):
    appliance.schedule(item(AccessionNumber="A1"))
    at_night(monkeypatch, appliance, 5)
    job_backup(appliance.appliance)
    assert backups(appliance) == ["minris-20260705-023000.db"]
    path = appliance.config.backup_folder / "minris-20260705-023000.db"
    assert orders_in(path) == [["A1"], ["A1"]]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_oldest_backups_go(run_appliance, monkeypatch):
    """Issue: a nightly backup with rotation."""
    appliance = run_appliance("[housekeeping]\nbackups_kept = 3\n")
    for day in range(1, 6):
        at_night(monkeypatch, appliance, day)
        job_backup(appliance.appliance)
    assert backups(appliance) == [f"minris-2026070{day}-023000.db" for day in (3, 4, 5)]


def believe_the_clock(appliance):
    """As ten minutes after the start."""
    appliance.appliance.clock.believed_from = 0.0


def mark(appliance, name, value):
    appliance.write(set_mark, f"daily {name}", value)


def at_daily_time(monkeypatch, hour):
    """Every daily job at the same hour."""
    daily = tuple(one._replace(at=lambda config: (hour, 0)) for one in DAILY)
    monkeypatch.setattr("minris.appliance.appliance.DAILY", daily)
    monkeypatch.setattr("minris.appliance.jobs.DAILY", daily)


def test_a_backup_missed_at_night_is_made_up_for_after_the_start(run_appliance, monkeypatch):
    """The clinic's PC is off at half past two."""
    at_daily_time(monkeypatch, 0)
    first = run_appliance()
    believe_the_clock(first)
    job_daily(first.appliance)
    assert backups(first) == []  # a new store
    mark(first, "backup", "20260101")
    first.stop()
    again = run_appliance()
    job_daily(again.appliance)
    assert backups(again) == []  # not while the clock is in doubt
    believe_the_clock(again)
    job_daily(again.appliance)
    job_daily(again.appliance)
    assert len(backups(again)) == 1


def test_what_else_lies_in_the_folder_stays(run_appliance, monkeypatch):
    appliance = run_appliance("[housekeeping]\nbackups_kept = 1\n")
    appliance.config.backup_folder.mkdir()
    others = ("before-the-move.db", "minris-old.db", "notes.txt")
    for name in others:
        (appliance.config.backup_folder / name).touch()
    for day in (1, 2):
        at_night(monkeypatch, appliance, day)
        job_backup(appliance.appliance)
    assert set(backups(appliance)) == {*others, "minris-20260702-023000.db"}


def page(appliance):
    headers = {"Authorization": f"Bearer {appliance.token()}"}
    return httpx.get(f"{appliance.url}/", headers=headers, trust_env=False).text


def folder_is_a_file(appliance, monkeypatch):
    appliance.config.backup_folder.write_text("")


def copy_is_damaged(appliance, monkeypatch):
    def fail(*_):
        raise StoreError("the copy is not in order")

    monkeypatch.setattr("minris.appliance.jobs.backup_store", fail)
    monkeypatch.setattr("minris.cli.backup_store", fail)
    monkeypatch.setattr("minris.store.sqlite.backup_store", fail)


def disk_is_full(appliance, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minris.appliance.jobs.backup_store", fail)
    monkeypatch.setattr("minris.cli.backup_store", fail)
    monkeypatch.setattr("minris.store.sqlite.backup_store", fail)


@pytest.mark.parametrize(
    "what", [folder_is_a_file, copy_is_damaged, disk_is_full], ids=lambda what: what.__name__
)
def test_a_backup_that_failed_is_said_on_every_page_and_in_the_log(
    appliance, monkeypatch, caplog, what
):
    what(appliance, monkeypatch)
    appliance.appliance.run_job(Job("backup", 60, job_backup))
    assert "The last backup failed: " in page(appliance)
    assert "backup failed: " in caplog.text


def test_a_failed_backup_drops_no_older_one(run_appliance, monkeypatch):
    appliance = run_appliance("[housekeeping]\nbackups_kept = 1\n")
    at_night(monkeypatch, appliance, 1)
    job_backup(appliance.appliance)
    disk_is_full(appliance, monkeypatch)
    at_night(monkeypatch, appliance, 2)
    job_backup(appliance.appliance)
    assert "minris-20260701-023000.db" in backups(appliance)


def test_the_next_good_backup_takes_the_words_off_the_page(appliance):
    appliance.appliance.backup_problem = "No space left on device"
    job_backup(appliance.appliance)
    assert "backup failed" not in page(appliance)


# The clock


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/Los_Angeles"])
def test_the_nightly_backup_is_at_its_time_on_the_clock_of_the_clinic(run_appliance, zone):
    appliance = run_appliance(f"[clinic]\ntimezone = {zone}\n[housekeeping]\nbackup_time = 01:45\n")
    mark(appliance, "backup", "20260630")
    [backup] = [daily for daily in DAILY if daily.name == "backup"]
    midnight = datetime.datetime(2026, 7, 1, tzinfo=zoneinfo.ZoneInfo(zone))

    def due(minutes):
        ctx = Context(appliance.config, now=lambda: midnight + datetime.timedelta(minutes=minutes))
        return appliance.read(daily_due, ctx, backup)

    assert (due(104), due(105)) == (False, True)


def test_without_a_time_there_is_no_nightly_backup(run_appliance):
    appliance = run_appliance("[housekeeping]\nbackup_time =\n")
    believe_the_clock(appliance)
    mark(appliance, "backup", "20260101")
    job_daily(appliance.appliance)
    assert backups(appliance) == []


def test_a_job_is_done_again_and_again_by_the_clock_of_the_loop(monkeypatch, run_appliance):
    runs, ran = [], threading.Event()

    def function(_):
        runs.append(time.monotonic())
        if len(runs) == 3:
            ran.set()

    monkeypatch.setattr("minris.appliance.appliance.JOBS", (Job("probe", 0.05, function),))
    run_appliance()
    assert ran.wait(10)
    assert all(later - sooner >= 0.05 for sooner, later in itertools.pairwise(runs))


@pytest.mark.parametrize("days", [30, 365, 20_000])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu"])
def test_a_time_by_the_clock_is_never_in_the_past(days, zone):
    """APScheduler asks for the next time after each that was missed, until one is not."""
    now = datetime.datetime(2026, 12, 1, 9, 0, tzinfo=zoneinfo.ZoneInfo(zone))
    for second in (0, 0.5, 59, 59.9):
        at = now + datetime.timedelta(seconds=second)
        missed = now - datetime.timedelta(days=days)
        following = minute_trigger(now.tzinfo).get_next_fire_time(missed, at)
        assert datetime.timedelta(0) < following - at <= datetime.timedelta(seconds=62)


def test_what_has_a_time_of_day_is_looked_for_each_minute(appliance):
    [job] = appliance.appliance.scheduler.get_jobs()
    assert (job.args, job.coalesce, job.max_instances) == ((BY_THE_CLOCK,), True, 1)
    assert job.next_run_time > utc_now() - datetime.timedelta(seconds=1)


def test_a_job_that_fails_is_logged_and_the_appliance_goes_on(appliance, caplog):
    def fail(_):
        raise ZeroDivisionError

    appliance.appliance.run_job(Job("broken", 60, fail))
    assert "job broken failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert not any(appliance.appliance.health().values())


# Retention


def keeping(ctx, **days):
    """The same circumstances with other numbers of days."""
    for key, value in days.items():
        setattr(ctx.config.housekeeping, f"keep_{key}_days", value)
    return ctx


@pytest.mark.parametrize(
    "state", [s for s in STEP_STATES if s not in OPEN_STEP_STATES and s != "DEPARTED"]
)
@pytest.mark.parametrize(("age", "left"), [(29, 1), (31, 0)])
def test_steps_that_ended_long_enough_ago_are_erased(ctx, state, age, left):
    index = schedule(at(ctx, days=-age))
    row = find_step(*keys_of(index))
    enter_state(at(ctx, days=-age), row, state)
    purge(keeping(ctx, steps=30))
    assert count(ScheduledProcedureStep) == left
    assert count(ScheduledStation) == left
    assert count(RequestedProcedure) == left


@pytest.mark.parametrize("state", sorted(OPEN_STEP_STATES))
def test_a_step_that_has_not_ended_is_never_erased(ctx, state):
    schedule(at(ctx, days=-400), ScheduledProcedureStepStatus=state)
    purge(keeping(ctx, steps=30, patients=30))
    assert count(ScheduledProcedureStep) == 1


def test_a_step_put_back_on_the_list_by_another_date_is_not_erased(ctx):
    """Cancelled long ago, given a new date since: it is waiting."""
    index = schedule(at(ctx, days=-40))
    change_step(at(ctx, days=-40), "cancel", *keys_of(index))
    row = find_step(*keys_of(index)).id
    move_step(ctx, row, ScheduledProcedureStepStartDate="20260706")
    purge(keeping(ctx, steps=30))
    assert count(ScheduledProcedureStep) == 1


def test_a_step_imported_as_done_is_erased_in_its_time(ctx):
    """A list of old exams, read in from another system, is not kept for ever."""
    schedule(at(ctx, days=-40), ScheduledProcedureStepStatus="COMPLETED")
    purge(keeping(ctx, steps=30))
    assert count(ScheduledProcedureStep) == 0


def test_what_was_performed_goes_with_its_steps(ctx):
    old = at(ctx, days=-40)
    perform(old, schedule(old), "2.25.1", ending())
    purge(keeping(ctx, steps=30))
    models = (PerformedProcedureStep, PerformedScheduledStep)
    assert [count(model) for model in models] == [0, 0]


def test_what_was_performed_for_a_step_that_stays_too_stays(ctx):
    old = at(ctx, days=-40)
    steps = [schedule(old, PatientID="P1"), schedule(old, PatientID="P1")]
    create_mpps(old, "2.25.1", stored_form(creation_for(*steps)))
    set_mpps(old, "2.25.1", stored_form(ending()))
    again = find_step(*keys_of(steps[1]))
    enter_state(ctx, again, "STARTED")
    purge(keeping(ctx, steps=30))
    assert count(ScheduledProcedureStep) == 1
    assert count(PerformedProcedureStep) == 1


@pytest.mark.parametrize(("age", "left"), [(29, 1), (31, 0)])
def test_patients_without_any_step_are_erased(ctx, age, left):
    old = at(ctx, days=-age)
    index = schedule(old)
    change_step(old, "cancel", *keys_of(index))
    purge(keeping(ctx, steps=1, patients=30))
    assert count(Patient) == left


def test_a_patient_with_a_step_is_not_erased(ctx):
    schedule(at(ctx, days=-400))
    purge(keeping(ctx, patients=30))
    assert count(Patient) == 1


@pytest.mark.parametrize(("age", "left"), [(6, 1), (8, 0)])
def test_queries_are_erased_after_their_days(ctx, age, left):
    log = QueryLog()
    log.note(at(ctx, days=-age), b"keys", b"raw", 1, Status.SUCCESS)
    save_queries(ctx, log.take())
    purge(keeping(ctx, queries=7))
    assert count(QueryTrace) == left


@pytest.mark.parametrize(("age", "left"), [(29, 1), (31, 0)])
def test_audit_lines_are_erased_after_their_days(ctx, age, left):
    audit(at(ctx, days=-age), "login", "anna")
    purge(keeping(ctx, audit=30))
    found = [line for line in Audit.select() if line.what == "login"]
    assert len(found) == left


def test_by_default_nothing_but_queries_is_erased(ctx):
    old = at(ctx, days=-4000)
    perform(old, schedule(old), "2.25.1", ending())
    purge(ctx)
    assert count(ScheduledProcedureStep) == count(PerformedProcedureStep) == 1
    assert count(Audit) > 0


def test_what_was_erased_is_told_by_number_and_not_by_name(ctx, caplog):
    caplog.set_level("INFO", "minris")
    old = at(ctx, days=-40)
    perform(old, schedule(old), "2.25.1", ending())
    caplog.clear()
    assert purge(keeping(ctx, steps=30)) == {"steps": 1}
    assert "purged: 1 steps" in caplog.text
    [line] = [line for line in Audit.select() if line.what == "purged"]
    assert line.detail == "1 steps"


def test_the_job_of_retention_does_it_in_the_running_appliance(run_appliance):
    appliance = run_appliance("[housekeeping]\nkeep_steps_days = 30\n")
    [index] = appliance.schedule(item())
    appliance.write(change_step, appliance.context(), "cancel", *keys_of(index))
    long_ago = appliance.context().stamp(days=-31)
    sql = "UPDATE scheduled_procedure_step SET ended_at = ?"
    appliance.write(database.execute_sql, sql, (long_ago,))
    job_purge(appliance.appliance)
    assert appliance.read(count, ScheduledProcedureStep) == 0


# Metrics


def metrics(appliance):
    """/metrics as Prometheus reads it: value by name with labels."""
    answer = httpx.get(f"{appliance.url}/metrics", trust_env=False)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    line = re.compile(r'([a-zA-Z_:][\w:]*(?:\{\w+="[^"\\\n]*"(?:,\w+="[^"\\\n]*")*\})?) (\S+)')
    found = {}
    for text in answer.text.splitlines():
        if not text.startswith("#"):
            name, value = line.fullmatch(text).groups()
            assert name not in found
            found[name] = float(value)
    assert answer.text.endswith("\n")
    return found


def test_metrics_are_read_as_prometheus_reads_them(appliance):
    found = metrics(appliance)
    assert found["minris_store_bytes"] == appliance.config.store_path.stat().st_size
    assert all(name.startswith("minris_") for name in found)


def test_metrics_count_requests_and_steps(appliance):
    today = appliance.context().today()
    appliance.schedule(item(ScheduledProcedureStepStartDate=today))
    peers.run_echoscu(appliance.port, "MINRIS", "CT1")
    peers.run_echoscu(appliance.port, "MINRIS", "NOBODY")
    found = metrics(appliance)
    assert found['minris_requests_total{operation="C-ECHO"}'] == 1
    assert found['minris_steps_today{state="SCHEDULED"}'] == 1
    assert found["minris_associations_total"] == 1
    assert found["minris_rejections_total"] == 1


def test_large_figures_are_told_to_the_unit(appliance):
    """A start time rounded to six figures is off by an hour, a counter by hundreds."""
    appliance.appliance.writer.commits = 123456789
    found = metrics(appliance)
    assert found["minris_commits_total"] == 123456789
    assert abs(found["minris_start_time_seconds"] - appliance.appliance.start_time) < 1


def test_metrics_tell_nothing_of_patients(appliance):
    today = appliance.context().today()
    appliance.schedule(
        item(
            PatientID="P000042",
            AccessionNumber="2607050042",
            ScheduledProcedureStepStartDate=today,
        )
    )
    text = httpx.get(f"{appliance.url}/metrics", trust_env=False).text
    for told in ("Wang", "王", "P000042", "2607050042", "CT chest"):
        assert told not in text


# Commands beside a running appliance


def test_a_lost_password_is_set_anew_on_the_box(appliance):
    """Issue: a lost admin password (`user`, on the box)."""
    arguments = ("user", "admin", "--role", "admin", "--password-stdin")
    done = run(appliance.config, *arguments, given=b"blue-kettle-9\n")
    assert done.exit_code == 0, done.err
    fields = {"name": "admin", "password": "blue-kettle-9"}
    answer = httpx.post(f"{appliance.url}/login", data=fields, trust_env=False)
    assert answer.status_code == 303


def test_an_import_beside_a_running_appliance_is_on_the_worklist_at_once(appliance, tmp_path):
    path = tmp_path / "day.csv"
    path.write_text("姓名,设备\n王小东,CT1\n", "gb18030")
    done = run(appliance.config, "import", path)
    assert (done.exit_code, done.out) == (
        0,
        "day.csv: Imported: 1; Without birth date or sex: 1\n",
    )
    found = peers.run_findscu(appliance.port, "MINRIS", "CT1", ["PatientName"])
    assert len(found.datasets) == 1


def test_an_import_that_is_refused_says_which_rows(appliance, tmp_path):
    path = tmp_path / "day.csv"
    path.write_text("name,device,birth date\nWang^Fang,CT1,1980-02-31\n", "utf-8")
    done = run(appliance.config, "import", path)
    assert is_told(done, "day.csv: nothing imported: row 2: ", "19800231")


@pytest.mark.parametrize("command", sorted(STORE_COMMANDS))
@pytest.mark.parametrize("who", ["nobody", "an administrator", "a token named console",
                                 "a user named console"])  # fmt: skip
def test_only_commands_of_this_box_are_run(appliance, who, command):
    """The way in for commands is the secret of this run, and no name that somebody chose."""
    headers = {}
    if who == "an administrator":
        headers["Authorization"] = f"Bearer {appliance.token()}"
    elif who == "a token named console":
        secret = appliance.write(make_token, appliance.context(), "console", "desk")
        headers["Authorization"] = f"Bearer {secret}"
    elif who == "a user named console":
        context = appliance.context()
        secret = appliance.write(
            lambda: open_session(context, make_user(context, "console", "desk", "blue-kettle-9").id)
        )
        headers["Cookie"] = f"{appliance.cookie}={secret}"
    given = {
        "import": {"name": "a.json", "content": ""},
        "user": {"name": "eve", "role": "admin", "password": "open-sesame", "delete": False},
        "token": {"name": "eve", "role": "admin", "delete": False},
    }.get(command, {})
    answer = httpx.post(
        f"{appliance.url}/control/{command}", json=given, headers=headers, trust_env=False
    )
    assert answer.status_code == 403
    assert not appliance.read(User.get_or_none, User.name == "eve")


# systemd


@contextlib.contextmanager
def listening(path):
    """systemd's socket; gives a function that waits for the next message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(path)
        channel.settimeout(20)
        yield lambda: channel.recv(4096).decode().split("\n")


@pytest.mark.parametrize("abstract", [False, True], ids=["file", "abstract"])
def test_systemd_hears_that_the_appliance_is_ready_and_that_it_stops(config, tmp_path, abstract):
    address = f"minris-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with listening("\0" + address if abstract else address) as heard:
        environment = {**os.environ, "NOTIFY_SOCKET": "@" + address if abstract else address}
        command = [*PROGRAM, "serve", "--config", str(config.path)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as running:
            try:
                assert heard() == ["READY=1", f"MAINPID={running.pid}"]
                port = re.search(rb":(\d+), pages", running.stdout.read1())[1]
                peers.wait_for_port(int(port), 1)
            finally:
                running.send_signal(signal.SIGTERM)
            assert heard() == ["STOPPING=1"]
            assert running.wait(20) == 0


def test_without_systemd_nothing_is_said(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify_systemd("READY=1")


def test_a_socket_of_systemd_that_has_gone_stops_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify_systemd("WATCHDOG=1")


def unit():
    """The settings of the unit file."""
    lines = (line.partition("=") for line in UNIT.read_text().splitlines() if "=" in line)
    return {key: value for key, _, value in lines if not key.startswith("#")}


def test_the_watchdog_is_fed_twice_before_systemd_loses_patience():
    assert int(unit()["WatchdogSec"]) >= 2 * WATCHDOG_SECONDS


def test_the_unit_is_hardened():
    """Issue: `systemd-analyze security --offline=true` at most 2.0."""
    program = shutil.which("systemd-analyze") or peers.missing("systemd-analyze", "systemd")
    command = [program, "security", "--offline=true", "--threshold=20", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    found = re.search(r"exposure level for minris.service: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= 2.0
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "notify"),
        ("StateDirectory", "minris"),
        ("AmbientCapabilities", "CAP_NET_BIND_SERVICE"),
        ("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE"),
    ],
)
def test_the_unit_says(key, value):
    """Issue: Type=notify, state directory, port 104 by capability."""
    assert unit()[key] == value


# What is done daily and fails


@pytest.fixture
def failing_backup(run_appliance, monkeypatch):
    """An appliance whose nightly backup is due and fails; gives it and the clock of retries."""
    at_daily_time(monkeypatch, 0)
    appliance = run_appliance()
    believe_the_clock(appliance)
    mark(appliance, "backup", "20260101")
    clock = [1e6]
    for module in ("jobs", "health"):
        monkeypatch.setattr(f"minris.appliance.{module}.time.monotonic", lambda: clock[0])
    appliance.config.backup_folder.write_text("")  # a file where its folder should be
    return appliance, clock


def done_of(appliance):
    return appliance.read(get_mark, "daily backup")


def test_a_nightly_backup_that_failed_is_tried_again_the_same_night(failing_backup, caplog):
    appliance, clock = failing_backup
    job_daily(appliance.appliance)
    assert done_of(appliance) == "20260101"
    assert "backup failed" in caplog.text
    assert "tried again in 5 minutes" in caplog.text
    appliance.config.backup_folder.unlink()
    clock[0] += 299
    job_daily(appliance.appliance)
    assert backups(appliance) == []
    clock[0] += 1
    job_daily(appliance.appliance)
    assert len(backups(appliance)) == 1
    assert done_of(appliance) == appliance.context().today()
    assert "backup failed" not in page(appliance)
    clock[0] += 3600
    job_daily(appliance.appliance)
    assert len(backups(appliance)) == 1


def test_the_page_says_when_a_failed_backup_is_tried_again(failing_backup, caplog):
    appliance, _ = failing_backup
    job_daily(appliance.appliance)
    assert re.search(r"The backup will be retried at \d\d:\d\d", page(appliance))


def test_a_failed_backup_is_tried_less_and_less_often(failing_backup, caplog):
    appliance, clock = failing_backup
    for minutes in (5, 10, 20, 40, 60, 60):
        caplog.clear()
        job_daily(appliance.appliance)
        job_daily(appliance.appliance)
        assert caplog.text.count("tried again") == 1
        assert f"tried again in {minutes} minutes" in caplog.text
        clock[0] += minutes * 60


def test_a_backup_that_failed_before_midnight_is_tried_again_after_it(failing_backup, monkeypatch):
    appliance, clock = failing_backup
    daily = tuple(one._replace(at=lambda config: (23, 50)) for one in DAILY)
    monkeypatch.setattr("minris.appliance.jobs.DAILY", daily)

    def at(day, hour, minute):
        now = datetime.datetime(2026, 7, day, hour, minute, tzinfo=datetime.UTC)
        changed = dataclasses.replace(appliance.context(), now=lambda: now)
        monkeypatch.setattr(appliance.appliance, "context", lambda *actor: changed)

    at(5, 23, 58)
    job_daily(appliance.appliance)
    appliance.config.backup_folder.unlink()
    clock[0] += 300
    at(6, 0, 3)
    job_daily(appliance.appliance)
    assert backups(appliance) == ["minris-20260706-000300.db"]
    assert done_of(appliance) == "20260705"
    at(6, 23, 50)
    job_daily(appliance.appliance)
    assert len(backups(appliance)) == 2


def test_purge_goes_in_slices_between_which_others_write(ctx, monkeypatch):
    for number in range(60):
        schedule(at(ctx, days=-40), ScheduledProcedureStepStatus="COMPLETED",
                 AccessionNumber=f"A{number}")  # fmt: skip
    monkeypatch.setattr("minris.housekeeping.retention.LOOKED_THROUGH", 7)
    held = []

    def call(core, *arguments):
        began = time.monotonic()
        assert not database.in_transaction()
        done = core(*arguments)
        held.append(time.monotonic() - began)
        return done

    assert purge(keeping(ctx, steps=30), call)["steps"] == 60
    assert (count(ScheduledProcedureStep), count(RequestedProcedure)) == (0, 0)
    assert len(held) > 2 * 60 / 7


@pytest.mark.long
def test_no_slice_of_a_purge_of_a_million_exams_holds_the_writer_for_half_a_second(ctx):
    million = int(os.environ.get("ROWS", 1_000_000))
    schedule(at(ctx, days=-400), ScheduledProcedureStepStatus="COMPLETED")
    for table in ("patient", "requested_procedure", "scheduled_procedure_step"):
        names = [name for _, name, *_ in database.execute_sql(f"PRAGMA table_info({table})")]
        numbered = {"study_instance_uid": "'1.2.3.' || n", "procedure_id": "n", "id": "n"}
        numbered |= {"patient_id": "n" if table == "requested_procedure" else "'P' || n"}
        columns = ", ".join(numbered.get(name, name) for name in names)
        database.execute_sql(
            f"WITH RECURSIVE t (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM t WHERE n < {million})"
            f" INSERT INTO {table} SELECT {columns} FROM t JOIN {table} WHERE {table}.id = 1"
        )
    held = []

    def call(core, *arguments):
        began = time.monotonic()
        with database.atomic():
            done = core(*arguments)
        held.append(time.monotonic() - began)
        return done

    assert purge(keeping(ctx, steps=30, patients=30), call)["steps"] == million
    print(f"{len(held)} slices, the longest {max(held):.2f} s, all {sum(held):.0f} s")
    assert max(held) < 0.5
    assert count(Patient) == 0
