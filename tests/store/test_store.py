"""STORE: what is kept, the one thread that changes it, and that nothing promised is lost."""

import contextlib
import functools
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import peewee
import pytest
from conftest import MADE, write_config
from pydicom.dataset import Dataset
from pynetdicom import AE

from minris.dataset.elements import ElementIndex
from minris.dataset.names import name_key
from minris.standard.status import Refusal, Status
from minris.standard.uids import EXPLICIT_VR_LITTLE_ENDIAN, MPPS
from minris.store.condition import StoreTrouble, Trouble
from minris.store.migrations import BASELINE, MIGRATIONS, newest_schema
from minris.store.models import (
    APPLICATION_ID,
    MODELS,
    Counter,
    DeviceRecord,
    StoreError,
    database,
)
from minris.store.rows import fetch_rows, insert_row, insert_rows, update_row
from minris.store.sqlite import StoreLock, backup_store, open_store, reading, restore_store
from minris.store.writer import Writer

HERE = MADE.parent
ENVIRONMENT = {"PYTHONPATH": str(HERE), "PATH": "/usr/bin:/bin"}


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


def state_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def connect(path: Path) -> contextlib.closing:
    """A connection of our own, beside peewee's."""
    return contextlib.closing(sqlite3.connect(path, isolation_level=None))


def count(name: str, last: int = 1) -> int:
    """A call that changes the store, as core functions do."""
    database.execute_sql("INSERT INTO counter (name, last) VALUES (?, ?)", (name, last))
    return last


def count_and_refuse(name: str) -> None:
    count(name)
    raise Refusal(Status.DUPLICATE_SOP_INSTANCE, "It exists already")


def count_and_fail(name: str) -> None:
    count(name)
    raise ValueError(name)


def counted(path: Path) -> set[str]:
    """The names that are in the store for good."""
    with connect(path) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM counter")}


@pytest.fixture
def path(tmp_path):
    """A new store."""
    file = tmp_path / "minris.db"
    open_store(file)
    return file


@pytest.fixture
def writer(path):
    """The one that changes it."""
    one = Writer()
    yield one
    if one.thread.is_alive():
        one.close()


class Gate:
    """Keeps the store thread busy until it is opened, so that what is submitted gathers."""

    def __init__(self, writer: Writer) -> None:
        self.opened, inside = threading.Event(), threading.Event()

        def wait() -> None:
            inside.set()
            self.opened.wait(20)

        self.job = writer.submit(wait)
        assert inside.wait(20)

    def open(self) -> None:
        self.opened.set()
        self.job.result(20)


# The schema


def schema(path: Path) -> dict[tuple[str, str], set[str] | str]:
    """Tables by their columns and ends, in any order; indexes and triggers by their SQL.

    A column that a migration has added comes after the others; it means the same.
    """
    found = {}
    with connect(path) as connection:
        master = "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        for kind, name, sql in connection.execute(master):
            words = " ".join(sql.split()).replace('"', "")
            if kind == "table":
                _, _, inside = words.partition("(")
                inside, _, ending = inside.rpartition(")")
                parts = re.split(r",(?![^(]*\))", inside)
                words = {part.strip() for part in (*parts, ending)}
            found[kind, name] = words
    return found


def columns(path: Path, table: str) -> dict[str, tuple]:
    """The columns of a table: whether it may be null, its place in the primary key."""
    with connect(path) as connection:
        found = connection.execute(f"PRAGMA table_info({table})").fetchall()
    return {name: (not not_null, key) for _, name, _, not_null, _, key in found}


def test_every_table_has_a_model_and_every_model_its_table(path):
    with connect(path) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        names = {name for (name,) in tables if not name.startswith("sqlite_")}
    assert names == {model._meta.table_name for model in MODELS}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_columns_of_a_model_are_those_of_the_schema(model, path):
    found = columns(path, model._meta.table_name)
    assert set(found) == {field.column_name for field in model._meta.sorted_fields}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_column_may_be_null_where_its_model_says_so(model, path):
    found = columns(path, model._meta.table_name)
    may_be_null = {name for name, (null, _) in found.items() if null}
    assert may_be_null == {field.column_name for field in model._meta.sorted_fields if field.null}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_primary_key_of_a_model_is_that_of_the_schema(model, path):
    found = columns(path, model._meta.table_name)
    keys = {name for name, (_, key) in found.items() if key}
    assert keys == {field.column_name for field in model._meta.get_primary_keys()}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_reference_is_kept_by_the_database(model, path):
    with connect(path) as connection:
        listed = connection.execute(f"PRAGMA foreign_key_list({model._meta.table_name})")
        found = {(row[3], row[2]) for row in listed}
    assert found == {
        (field.column_name, field.rel_model._meta.table_name)
        for field in model._meta.sorted_fields
        if isinstance(field, peewee.ForeignKeyField)
    }


# Migrations


def test_migrations_are_numbered_from_the_first_release_on():
    numbers = [number for number, _, _ in MIGRATIONS]
    assert numbers == list(range(BASELINE + 1, BASELINE + 1 + len(MIGRATIONS)))


def test_a_new_store_is_at_the_newest_schema(path):
    with connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (newest_schema(),)
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)


RELEASED = HERE / "tests" / "data" / "store-14.sql"


@pytest.fixture
def released(tmp_path):
    """A store of the first release, with rows in each table."""
    file = tmp_path / "released.db"
    with connect(file) as connection:
        connection.executescript(RELEASED.read_text("utf-8"))
    return file


def contents(path: Path, columns: dict[str, str] | None = None) -> dict[str, list[str]]:
    """The rows of each table: of all columns, or of those given."""
    with connect(path) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        names = [name for (name,) in tables if not name.startswith("sqlite_")]
        return {
            name: sorted(
                map(
                    repr, connection.execute(f"SELECT {(columns or {}).get(name, '*')} FROM {name}")
                )
            )
            for name in names
        }


def columns_of(path: Path) -> dict[str, str]:
    """The columns of each table."""
    with connect(path) as connection:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall()
        return {
            name: ", ".join(row[1] for row in connection.execute(f"PRAGMA table_info({name})"))
            for (name,) in tables
        }


def test_a_store_of_the_first_release_becomes_as_a_new_one(released, path):
    open_store(released)
    assert schema(released) == schema(path)
    with connect(released) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (newest_schema(),)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_a_store_of_the_first_release_holds_is_there_afterwards(released, path):
    assert all(contents(released).values())
    moved = {"outbox_event", "passed_on", "receiver", "destination", "commitment_relay"}
    had, now = columns_of(released), columns_of(path)
    kept = {
        name: ", ".join(one for one in had[name].split(", ") if one in now[name].split(", "))
        for name in (had.keys() & now.keys()) - moved
    }
    before = contents(released, kept)
    open_store(released)
    after = contents(released, kept)
    untouched = before.keys() - moved - {"commitment", "undo_note", "mark"}
    assert {name: before[name] for name in untouched} == {name: after[name] for name in untouched}


def test_a_store_is_copied_before_it_is_migrated_and_the_copy_is_named(released, caplog):
    before = contents(released)
    open_store(released)
    copy = released.with_name(f"{released.name}.schema-{BASELINE}")
    assert contents(copy) == before
    assert str(copy) in caplog.text
    assert stat.S_IMODE(copy.stat().st_mode) & 0o077 == 0


def test_a_store_of_this_version_is_not_copied(path):
    open_store(path)
    assert not list(path.parent.glob("*.schema-*"))


def test_only_the_last_copies_stay(released):
    for number in (9, 11, 12):
        released.with_name(f"{released.name}.schema-{number}").touch()
    open_store(released)
    left = {file.name for file in released.parent.glob("*.schema-*")}
    assert left == {f"{released.name}.schema-{number}" for number in (12, BASELINE)}


def test_a_store_that_cannot_be_copied_is_not_migrated(released, monkeypatch):
    def full(*_):
        raise StoreError("there is no room")

    monkeypatch.setattr("minris.store.sqlite.backup_store", full)
    with pytest.raises(StoreError, match="no room"):
        open_store(released)
    with connect(released) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (BASELINE,)


def test_an_older_program_says_which_version_wrote_the_store_and_where_its_copy_is(released):
    open_store(released)
    with connect(released) as connection:
        connection.execute("UPDATE mark SET value = '7.3.1' WHERE name = 'version'")
        connection.execute("PRAGMA user_version=999")
    words = rf"newer minris, 7\.3\.1 \(schema 999\).*schema-{BASELINE} is the copy from before"
    with pytest.raises(StoreError, match=words):
        open_store(released)


def told_from(released: Path, sql: str) -> list[tuple]:
    with connect(released) as connection:
        return connection.execute(sql).fetchall()


def test_what_was_to_be_told_by_the_first_release_is_told_after_it(released):
    """In its order, each with the Message ID it had; what was told is not told again."""
    waits = "sent_at = '' AND given_up_at = ''"
    numbered = "id % 65535 + 1, receiver, created_at"
    events, sockets = (
        told_from(
            released,
            f"SELECT {numbered}, event_id FROM outbox_event WHERE channel = '{channel}' AND {waits}"
            " ORDER BY id",
        )
        for channel in ("dimse", "websocket")
    )
    columns_ = f"{numbered}, operation, sop_instance_uid, data, answer, refused"
    passed = told_from(released, f"SELECT {columns_} FROM passed_on WHERE {waits} ORDER BY id")
    sent = told_from(released, "SELECT count(*) FROM outbox_event WHERE sent_at <> ''")
    assert all((events, sockets, passed, sent[0][0]))
    open_store(released)

    def of(lane: str, columns_: str) -> list[tuple]:
        where = f"lane = '{lane}' AND {waits} ORDER BY id"
        return told_from(released, f"SELECT {columns_} FROM outbox WHERE {where}")

    assert of("events", f"{numbered}, event_id") == events
    assert of("websocket", f"{numbered}, event_id") == sockets
    assert of("passed on", columns_) == passed
    assert {kind for (kind,) in of("passed on", "kind")} == {"mpps"}
    told = "SELECT count(*) FROM outbox WHERE lane = 'events' AND sent_at <> ''"
    assert told_from(released, told) == sent


def test_results_that_the_first_release_could_not_tell_are_told_after_it(released):
    """Those that it has given up when a person tries them again."""
    with connect(released) as connection:
        given_up = "UPDATE commitment SET state = 'given up' WHERE transaction_uid = '2.25.903'"
        connection.execute(given_up)
    open_store(released)
    results = told_from(
        released,
        "SELECT c.transaction_uid, o.receiver, o.given_up_at <> '' FROM outbox o JOIN commitment c"
        " ON c.id = o.commitment_id WHERE o.lane = 'commitment results' ORDER BY o.id",
    )
    assert results == [("2.25.902", "CT1", 0), ("2.25.903", "CT1", 1)]


def test_what_the_first_release_asked_the_archive_is_waited_for_after_it(released):
    """One request was taken; the other may never have come there, and is asked anew."""
    taken, lost = told_from(
        released, "SELECT transaction_uid, asked_at FROM commitment_relay ORDER BY id"
    )
    open_store(released)
    found = told_from(
        released,
        "SELECT sop_instance_uid, sent_at, given_up_at <> '' FROM outbox"
        " WHERE lane = 'commitment requests' ORDER BY id",
    )
    assert found == [(*taken, 0), (*lost, 1)]


def test_receivers_that_fail_are_as_patiently_tried_after_the_upgrade(released):
    columns_ = "ae_title, failures, failing_s, try_at, problem, heard_at"
    before = {
        lane: told_from(released, f"SELECT {columns_} FROM {table}")
        for lane, table in (("events", "receiver"), ("passed on", "destination"))
    }
    open_store(released)
    for lane, rows in before.items():
        assert rows
        sql = f"SELECT {columns_} FROM receiver WHERE lane = '{lane}'"
        assert told_from(released, sql) == rows


def test_identifiers_that_were_merged_before_the_upgrade_are_known_after_it(released):
    """A chain of them, by the audit log."""
    with connect(released) as connection:
        row, now = connection.execute("SELECT id, patient_id FROM patient ORDER BY id").fetchone()
        for what, about, detail in (
            ("patient corrected", "B2", "A1 -> B2"),
            ("patients merged", now, f"B2 -> {now}: one person"),
            ("patient corrected", now, ""),
            ("step", now, "S1 COMPLETED"),
        ):
            connection.execute(
                "INSERT INTO audit (at, who, what, about, detail) VALUES ('2026', 'x', ?, ?, ?)",
                (what, about, detail),
            )
    open_store(released)
    sql = f"SELECT former_id, merged FROM former_identity WHERE patient_id = {row} ORDER BY 1"
    assert told_from(released, sql) == [("A1", 1), ("B2", 1)]


def test_a_store_from_before_the_first_release_is_refused_in_words(released):
    with connect(released) as connection:
        connection.execute(f"PRAGMA user_version={BASELINE - 1}")
    before = contents(released)
    with pytest.raises(StoreError, match="before the first release"):
        open_store(released)
    assert contents(released) == before


def test_a_migration_that_fails_leaves_the_store_as_it_was(path, monkeypatch):
    before = schema(path)
    number = newest_schema() + 1
    broken = (number, "broken", "CREATE TABLE ward (id INTEGER); INSERT INTO beds VALUES (1)")
    monkeypatch.setattr("minris.store.sqlite.MIGRATIONS", (*MIGRATIONS, broken))
    with pytest.raises((sqlite3.Error, peewee.DatabaseError, StoreError)):
        open_store(path)
    assert schema(path) == before
    with connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (number - 1,)


# Opening


def test_a_store_is_opened_again_as_it_was_left(path):
    with database.connection_context():
        count("A#", 7)
    open_store(path)
    with database.connection_context():
        assert Counter.get_by_id("A#").last == 7


def test_the_folder_of_a_store_is_made(tmp_path):
    open_store(tmp_path / "data" / "ris" / "minris.db")
    assert (tmp_path / "data" / "ris" / "minris.db").is_file()


@pytest.mark.parametrize("folder", ["Radiology #2", "100%25", "Röntgen?", "湖畔诊所", "a b"])
def test_a_store_may_lie_in_any_folder(folder, tmp_path):
    file = tmp_path / folder / "minris.db"
    open_store(file)
    open_store(file)
    assert [each.name for each in tmp_path.iterdir()] == [folder]


def test_only_our_user_may_read_a_store(tmp_path):
    old = os.umask(0o022)
    try:
        open_store(tmp_path / "minris.db")
        with database.connection_context():
            count("A#")
            files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert set(files) == {"minris.db", "minris.db-wal", "minris.db-shm"}
    assert set(files.values()) == {0o600}


def test_a_cut_while_a_store_is_made_leaves_none(tmp_path, monkeypatch):
    monkeypatch.setattr("minris.store.sqlite.new_schema", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        open_store(tmp_path / "minris.db")
    monkeypatch.undo()
    assert not (tmp_path / "minris.db").exists()
    open_store(tmp_path / "minris.db")
    assert schema(tmp_path / "minris.db")


def foreign_text(file: Path) -> None:
    file.write_text("This is the diary of the practice.\n" * 100)


def foreign_sqlite(file: Path) -> None:
    with connect(file) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
        connection.execute("INSERT INTO bookmarks VALUES ('https://dicom.nema.org')")


def foreign_sqlite_in_wal_mode(file: Path) -> None:
    with connect(file) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA application_id=252006673")
        connection.execute("CREATE TABLE bookmarks (url TEXT)")


def empty(file: Path) -> None:
    file.touch()


def newer(file: Path) -> None:
    open_store(file)
    with connect(file) as connection:
        connection.execute(f"PRAGMA user_version={newest_schema() + 1}")


def damaged(file: Path) -> None:
    """One whose first page alone has outlived a bad memory card."""
    open_store(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:100] + b"\xa5" * (len(whole) - 100))


def folder(file: Path) -> None:
    file.mkdir()


@pytest.mark.parametrize(
    "make",
    [foreign_text, foreign_sqlite, foreign_sqlite_in_wal_mode, empty, newer],
    ids=lambda make: make.__name__,
)
def test_what_is_no_store_of_ours_is_refused_and_left_as_it_is(make, tmp_path):
    file = tmp_path / "minris.db"
    make(file)
    before = state_of(tmp_path)
    with pytest.raises(StoreError, match=r"minris\.db|newer"):
        open_store(file)
    assert state_of(tmp_path) == before


@pytest.mark.parametrize("make", [damaged, folder], ids=lambda make: make.__name__)
def test_what_cannot_be_opened_is_refused_in_words(make, tmp_path):
    make(tmp_path / "minris.db")
    with pytest.raises(StoreError, match=r"minris\.db"):
        open_store(tmp_path / "minris.db")


def test_an_empty_file_is_told_from_a_foreign_one(tmp_path):
    empty(tmp_path / "minris.db")
    with pytest.raises(StoreError, match="is empty"):
        open_store(tmp_path / "minris.db")


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)],
)
def test_the_store_is_opened_so_that_a_power_cut_loses_nothing(pragma, value, writer):
    found = writer.submit(lambda: database.execute_sql(f"PRAGMA {pragma}").fetchone())
    assert found.result(20) == (value,)


# The lock


LOCK = """
import sys, pathlib, minris
try:
    with minris.StoreLock(pathlib.Path(sys.argv[1])):
        print("held", flush=True)
        if len(sys.argv) > 2:
            sys.stdin.read()
except minris.StoreError as error:
    print(error)
"""


def test_a_second_process_is_locked_out(path):
    with StoreLock(path):
        assert run_python(LOCK, path).stdout == f"{path} is in use. Stop the running minris first\n"
    assert run_python(LOCK, path).stdout == "held\n"


def test_a_second_lock_in_one_process_is_refused(path):
    with StoreLock(path), pytest.raises(StoreError, match="in use"):
        StoreLock(path)


def test_a_lock_is_free_when_its_process_is_killed(path):
    command = [sys.executable, "-c", LOCK, str(path), "wait"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=ENVIRONMENT, **pipes) as running:
        assert running.stdout.readline() == b"held\n"
        with pytest.raises(StoreError):
            StoreLock(path)
        running.kill()
    StoreLock(path).release()


def test_a_lock_that_cannot_be_made_is_told_in_words(tmp_path):
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(StoreError) as error:
        StoreLock(tmp_path / "data" / "minris.db")
    assert "in use" not in str(error.value)


def test_a_second_appliance_on_a_store_says_so_and_ends(run_appliance, tmp_path):
    run_appliance()
    config = write_config(tmp_path)
    command = [sys.executable, str(HERE / "minris.py"), "--config", str(config), "serve"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"minris: {tmp_path / 'minris.db'} is in use. Stop the running minris first\n"
    )


# Reading


def test_a_reader_sees_what_is_committed_and_does_not_wait_for_the_writer(writer, path):
    inside, go = threading.Event(), threading.Event()

    def slow() -> None:
        count("slow")
        inside.set()
        go.wait(20)

    writer.submit(count, "quick").result(20)
    slow_one = writer.submit(slow)
    assert inside.wait(20)
    with reading():
        names = [row.name for row in fetch_rows(Counter, "1 = 1")]
        assert names == ["quick"]
    go.set()
    slow_one.result(20)
    with reading():
        assert len(fetch_rows(Counter, "last = ?", 1)) == 2
    database.close()


def test_rows_are_put_in_changed_and_fetched(ctx):
    times = {"created_at": ctx.stamp(), "updated_at": ctx.stamp()}
    row_id = insert_row(DeviceRecord, name="MR room", settings='{"ae_title": "MR1"}', **times)
    update_row(DeviceRecord, row_id, settings='{"ae_title": "MR2"}')
    (row,) = fetch_rows(DeviceRecord, "name = ?", "MR room")
    assert (row.id, row.settings) == (row_id, '{"ae_title": "MR2"}')
    assert fetch_rows(DeviceRecord, "name = ?", "CT room") == []


# The writer


def test_a_call_gives_its_result(writer, path):
    assert writer.submit(count, "A#", 7).result(20) == 7
    assert counted(path) == {"A#"}


def test_calls_run_in_the_order_they_are_submitted(writer):
    order = []
    futures = [writer.submit(order.append, number) for number in range(600)]
    futures[-1].result(20)
    assert order == list(range(600))


def test_what_has_gathered_is_committed_together(writer, path):
    gate = Gate(writer)
    futures = [writer.submit(count, f"A{number}") for number in range(100)]
    before = writer.commits
    gate.open()
    for future in futures:
        future.result(20)
    assert writer.commits - before == 2  # the gate's own, and one for a hundred
    assert len(counted(path)) == 100


def test_a_batch_has_its_bound(writer):
    gate = Gate(writer)
    futures = [writer.submit(count, f"A{number}") for number in range(Writer.BATCH + 1)]
    before = writer.commits
    gate.open()
    futures[-1].result(20)
    assert writer.commits - before == 3


@pytest.mark.parametrize(
    ("bad", "error"),
    [(count_and_refuse, Refusal), (count_and_fail, ValueError), (count, peewee.IntegrityError)],
    ids=["a refusal", "an error of ours", "an error of the database"],
)
def test_what_fails_undoes_its_own_call_alone(bad, error, writer, path):
    writer.submit(count, "twice").result(20)
    gate = Gate(writer)
    first = writer.submit(count, "first")
    failing = writer.submit(bad, "twice" if bad is count else "failing")
    last = writer.submit(count, "last")
    gate.open()
    assert (first.result(20), last.result(20)) == (1, 1)
    with pytest.raises(error):
        failing.result(20)
    assert counted(path) == {"twice", "first", "last"}


def test_a_refusal_inside_a_call_that_goes_on_undoes_what_it_says(writer, path):
    def item(name: str, function) -> None:
        with contextlib.suppress(Refusal), database.atomic():
            function(name)

    def several() -> None:
        item("first", count)
        item("second", count_and_refuse)
        item("third", count)

    writer.submit(several).result(20)
    assert counted(path) == {"first", "third"}


def test_what_a_refusal_leaves_behind_is_kept(writer, path):
    def refuse() -> None:
        count("undone")
        refusal = Refusal(Status.NOT_AUTHORIZED)
        refusal.afterwards = lambda: count("noted")
        raise refusal

    with pytest.raises(Refusal):
        writer.submit(refuse).result(20)
    assert counted(path) == {"noted"}


def test_success_is_told_after_the_commit(writer, path):
    """T-GEN-08: whoever hears of it finds it in the store, by a connection of its own."""
    gate = Gate(writer)
    seen = {}
    for name in ("A", "B", "C"):
        future = writer.submit(count, name)
        future.add_done_callback(
            functools.partial(lambda n, f: seen.update({n: counted(path)}), name)
        )
    gate.open()
    writer.submit(len, "").result(20)
    assert seen == {name: {"A", "B", "C"} for name in "ABC"}


def test_watchers_are_woken_after_the_answers(path):
    answered = []
    writer = Writer(on_commit=lambda: answered.append([future.done() for future in futures]))
    gate = Gate(writer)
    futures = [writer.submit(count, name) for name in "AB"]
    gate.open()
    writer.close()
    assert answered[-1] == [True, True]


def test_nobody_is_woken_where_nothing_was_committed(path):
    woken = []
    writer = Writer(on_commit=lambda: woken.append(writer.commits))
    with contextlib.suppress(peewee.IntegrityError):
        writer.submit(count, None).result(20)
    writer.submit(count, "A").result(20)
    writer.close()
    assert woken == [1]


def test_closing_finishes_what_has_been_submitted(path):
    writer = Writer()
    gate = Gate(writer)
    futures = [writer.submit(count, f"A{number}") for number in range(1000)]
    closing = threading.Thread(target=writer.close)
    closing.start()
    gate.open()
    closing.join(20)
    assert not writer.thread.is_alive()
    assert all(future.result(0) == 1 for future in futures)
    assert len(counted(path)) == 1000


def test_what_is_submitted_after_closing_does_not_wait_for_ever(path):
    writer = Writer()
    writer.close()
    with pytest.raises(Exception) as error:
        writer.submit(count, "late").result(2)
    assert not isinstance(error.value, TimeoutError)


# What must not stop the writer


def goes_on(writer: Writer) -> bool:
    return writer.submit(count, "after").result(5) == 1


def test_a_caller_that_has_gone_does_not_stop_the_writer(writer):
    gate = Gate(writer)
    writer.submit(count, "gone").cancel()
    gate.open()
    assert goes_on(writer)


def test_a_watcher_that_fails_does_not_stop_the_writer(path):
    def fail() -> None:
        raise RuntimeError("Event loop is closed")

    writer = Writer(on_commit=fail)
    writer.submit(count, "A").result(20)
    assert goes_on(writer)
    writer.close()


def test_a_call_without_a_name_that_fails_does_not_stop_the_writer(writer):
    failing = writer.submit(functools.partial(count_and_fail, "A"))
    with pytest.raises(ValueError):
        failing.result(5)
    assert goes_on(writer)


def test_a_modality_that_hangs_up_before_the_commit_does_not_stop_the_writer(run_appliance):
    running = run_appliance()
    writer, submit = running.appliance.writer, running.appliance.writer.submit
    gate, arrived, ended = Gate(writer), threading.Event(), threading.Event()

    def noting(function, *arguments):
        future = submit(function, *arguments)
        future.add_done_callback(lambda _: ended.set())
        arrived.set()
        return future

    writer.submit = noting
    ae = AE("CT1")
    ae.dimse_timeout = 1
    ae.add_requested_context(MPPS, EXPLICIT_VR_LITTLE_ENDIAN)
    association = ae.associate("127.0.0.1", running.port, ae_title="MINRIS")
    assert association.is_established
    ds = Dataset()
    ds.PerformedProcedureStepStatus = "IN PROGRESS"
    asking = threading.Thread(target=association.send_n_create, args=(ds, MPPS, "2.25.7"))
    asking.start()
    assert arrived.wait(20)
    association.abort()
    ended.wait(1)
    gate.open()
    writer.submit = submit
    assert goes_on(writer)
    asking.join(20)


# A full disk


def limit_pages(more: int | None) -> None:
    """Let the store grow by so many pages, or as it likes."""
    (pages,) = database.execute_sql("PRAGMA page_count").fetchone()
    most = 1 << 30 if more is None else pages + more
    database.execute_sql(f"PRAGMA max_page_count={most}").fetchone()


def count_many(name: str) -> None:
    """As `count`, by the way that many rows go."""
    insert_rows("counter (name, last) VALUES", [(name, 1)])


@pytest.mark.parametrize("insert", [count, count_many])
def test_a_full_disk_fails_what_does_not_fit_and_nothing_else(writer, path, insert):
    writer.submit(limit_pages, 10).result(20)
    gate = Gate(writer)
    small = writer.submit(count, "small")
    large = writer.submit(insert, "x" * 1_000_000)
    last = writer.submit(count, "last")
    gate.open()
    assert (small.result(20), last.result(20)) == (1, 1)
    with pytest.raises(StoreTrouble, match="The disk is full"):
        large.result(20)
    assert counted(path) == {"small", "last"}


def test_a_full_disk_in_the_middle_of_a_call_undoes_the_call(writer, path):
    def two(first: str, second: str) -> None:
        count(first)
        with database.atomic():
            count(second)

    writer.submit(limit_pages, 10).result(20)
    with pytest.raises(StoreTrouble):
        writer.submit(two, "first", "x" * 1_000_000).result(20)
    assert counted(path) == set()


def test_the_store_goes_on_when_there_is_room_again(writer, path):
    writer.submit(limit_pages, 10).result(20)
    for _ in range(3):
        with pytest.raises(StoreTrouble):
            writer.submit(count, "x" * 1_000_000).result(20)
    writer.submit(limit_pages, None).result(20)
    writer.submit(count, "x" * 1_000_000).result(20)
    assert len(counted(path)) == 1


# A sudden end


ACKNOWLEDGE = """
import os, pathlib, sys, threading, minris
minris.open_store(pathlib.Path(sys.argv[1]))
writer = minris.Writer()
def count(name):
    minris.database.execute_sql("INSERT INTO counter (name, last) VALUES (?, 1)", (name,))
def client(who):
    number = 0
    while True:
        number += 1
        name = f"{who}-{number}"
        writer.submit(count, name).result()
        os.write(1, f"{name}\\n".encode())
for who in range(8):
    threading.Thread(target=client, args=(who,)).start()
"""


def test_what_was_acknowledged_before_a_kill_is_there_after_it(tmp_path):
    """T-GEN-08."""
    file = tmp_path / "minris.db"
    command = [sys.executable, "-c", ACKNOWLEDGE, str(file)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE) as running:
        lines = [running.stdout.readline() for _ in range(300)]
        os.kill(running.pid, signal.SIGKILL)
        lines += running.stdout.readlines()
    acknowledged = {line.decode().strip() for line in lines}
    assert len(acknowledged) >= 300
    open_store(file)
    assert acknowledged <= counted(file)
    with connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# Backup


def test_a_backup_is_a_store_and_for_our_user_alone(writer, path, tmp_path):
    writer.submit(count, "A").result(20)
    copy = tmp_path / "backups" / "minris-20260705.db"
    backup_store(path, copy)
    assert counted(copy) == {"A"}
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert [file.name for file in copy.parent.iterdir()] == [copy.name]


LOOK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(sorted(name for (name,) in connection.execute("SELECT name FROM counter")))
connection.close()
"""


@pytest.mark.parametrize("look", [lambda path, to: None, backup_store], ids=["nothing", "a backup"])
def test_nothing_is_lost_when_another_program_looks_in_after(look, writer, path, tmp_path):
    """A file that is opened and closed beside SQLite loses the locks of this process: the other
    program, alone as it thinks, then deletes the journal that we go on writing into.

    Source: sqlite.org/howtocorrupt.html 2.2
    """
    writer.submit(count, "before").result(20)
    look(path, tmp_path / "backup.db")
    assert run_python(LOOK, path).stdout == "['before']\n"
    writer.submit(count, "after").result(20)
    assert run_python(LOOK, path).stdout == "['after', 'before']\n"


def test_a_backup_is_put_back_and_what_was_there_is_kept(path, tmp_path):
    with database.connection_context():
        count("before")
    copy = tmp_path / "backup.db"
    backup_store(path, copy)
    with database.connection_context():
        count("after")
    kept = restore_store(path, copy)
    assert counted(path) == {"before"}
    assert counted(kept) == {"before", "after"}


@pytest.mark.parametrize("make", [damaged, empty, foreign_text], ids=lambda make: make.__name__)
def test_a_backup_is_put_back_over_what_is_no_store_any_more(make, path, tmp_path):
    with database.connection_context():
        count("before")
    copy = tmp_path / "backup.db"
    backup_store(path, copy)
    for file in tmp_path.glob("minris.db*"):
        file.unlink()
    make(path)
    spoiled = path.read_bytes()
    kept = restore_store(path, copy)
    assert counted(path) == {"before"}
    assert kept.read_bytes() == spoiled


@pytest.mark.parametrize(
    "make", [damaged, empty, foreign_text, foreign_sqlite], ids=lambda m: m.__name__
)
def test_what_is_no_backup_is_not_put_back(make, path, tmp_path):
    wrong = tmp_path / "backup.db"
    make(wrong)
    before = schema(path)
    with pytest.raises(StoreError):
        restore_store(path, wrong)
    assert schema(path) == before


def cut_in_the_middle(path):
    """A store whose last change is in its WAL alone, as after a kill; a copy of it."""
    with database.connection_context():
        count("in the WAL")
        for suffix in ("", "-wal"):
            (path.parent / f"cut.db{suffix}").write_bytes(
                path.with_name(path.name + suffix).read_bytes()
            )
    return path.with_name("cut.db")


def test_a_wal_that_was_not_folded_in_goes_aside_with_its_store(path, tmp_path):
    copy = tmp_path / "backup.db"
    backup_store(path, copy)
    cut = cut_in_the_middle(path)
    before = {suffix: cut.with_name(cut.name + suffix).read_bytes() for suffix in ("", "-wal")}
    kept = restore_store(cut, copy)
    assert before == {s: kept.with_name(kept.name + s).read_bytes() for s in ("", "-wal")}
    assert counted(cut) == set()
    assert counted(kept) == {"in the WAL"}


def test_a_wal_of_what_is_no_store_any_more_goes_aside_too(path, tmp_path):
    copy = tmp_path / "backup.db"
    backup_store(path, copy)
    cut = cut_in_the_middle(path)
    wal = cut.with_name("cut.db-wal").read_bytes()
    cut.write_bytes(b"")
    kept = restore_store(cut, copy)
    assert kept.with_name(f"{kept.name}-wal").read_bytes() == wal


def test_a_store_that_is_gone_is_not_made_anew_beside_its_wal(path, tmp_path):
    copy = tmp_path / "backup.db"
    backup_store(path, copy)
    cut = cut_in_the_middle(path)
    cut.unlink()
    before = state_of(tmp_path)
    with pytest.raises(StoreError, match=r"is gone, but .*cut\.db-wal holds changes"):
        open_store(cut)
    assert state_of(tmp_path) == before
    kept = restore_store(cut, copy)
    assert kept.with_name(f"{kept.name}-wal").read_bytes() == before["cut.db-wal"]
    assert counted(cut) == set()


def test_two_restores_in_one_second_keep_both(path, tmp_path):
    copy = tmp_path / "backup.db"
    backup_store(path, copy)
    with database.connection_context():
        count("first")
    first = restore_store(path, copy)
    with database.connection_context():
        count("second")
    second = restore_store(path, copy)
    assert [counted(first), counted(second)] == [{"first"}, {"second"}]


def test_what_a_restore_kept_can_be_put_back(path, tmp_path):
    copy = tmp_path / "backup.db"
    backup_store(path, copy)
    cut = cut_in_the_middle(path)
    kept = restore_store(cut, copy)
    restore_store(cut, kept)
    assert counted(cut) == {"in the WAL"}


def test_no_copy_is_laid_over_a_database_in_use(writer, path, tmp_path):
    """Its WAL would be read as that of the copy."""
    writer.submit(count, "A").result(20)
    with pytest.raises(StoreError, match="in use"):
        backup_store(path, path)
    assert counted(path) == {"A"}


@pytest.mark.parametrize("make", [open_store, lambda path: None], ids=["a start", "nothing"])
def test_a_change_that_was_cut_off_in_a_rollback_journal_is_taken_back(make, path, tmp_path):
    """A store that an older version restored, and that has not been opened since."""
    with connect(path) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("INSERT INTO counter VALUES ('whole', 1)")
        connection.execute("PRAGMA cache_size=1")
        connection.execute("BEGIN")
        rows = [(f"half {number}" + "x" * 3000,) for number in range(50)]
        connection.executemany("INSERT INTO counter VALUES (?, 1)", rows)
        cut = tmp_path / "cut.db"
        for suffix in ("", "-journal"):
            content = path.with_name(path.name + suffix).read_bytes()
            cut.with_name(cut.name + suffix).write_bytes(content)
        connection.execute("ROLLBACK")
    assert (
        cut.stat().st_size > path.stat().st_size or cut.with_name("cut.db-journal").stat().st_size
    )
    make(cut)
    backup_store(cut, tmp_path / "backup.db")
    assert counted(tmp_path / "backup.db") == {"whole"}


def test_names_stored_with_typographic_signs_are_found_after_the_upgrade(released):
    """U+02BC is a letter, and was in the key."""
    with connect(released) as connection:
        name = "O\u02bcBrien^Ann"
        connection.execute(
            "UPDATE patient SET patient_name = ?, name_key = ?", (name, "o\u02bcbrienann")
        )
        connection.execute("UPDATE scheduled_procedure_step SET name_key = 'o\u02bcbrienann'")
        connection.execute("UPDATE workitem SET name_key = 'o\u02bcbrienann'")
    open_store(released)
    assert set(told_from(released, "SELECT name_key FROM patient")) == {("obrienann",)}
    for table in ("scheduled_procedure_step", "workitem"):
        keys = told_from(released, f"SELECT name_key, data FROM {table}")
        assert keys
        for key, data in keys:
            assert key == name_key(ElementIndex(data).get("PatientName"))


def test_performed_steps_are_found_by_their_patient_after_the_upgrade(released):
    open_store(released)
    rows = told_from(released, "SELECT patient_id, data FROM performed_procedure_step")
    assert rows
    assert all(known == ElementIndex(data).get("PatientID") for known, data in rows)


def test_calls_that_keep_coming_do_not_keep_a_store_from_being_opened_anew(path, monkeypatch):
    """At a start on a full disk, beside machines that go on asking."""
    open_store(path)
    condition, tried = database.condition, threading.Event()
    condition.begin(Trouble("full", lasts=True), "as the start has found it")
    monkeypatch.setattr(condition, "try_to_reopen", tried.set)
    monkeypatch.setattr(Writer, "TRY_AGAIN", 0.3)
    writer = Writer()
    until = time.monotonic() + 20
    while not tried.is_set():
        assert isinstance(writer.submit(len, "").exception(20), StoreTrouble)
        assert time.monotonic() < until
    assert writer.close(20)
