"""Commands that read only read: no store is made, migrated or written."""

import sqlite3

import pytest
from test_appliance import folder, here  # noqa: F401
from test_store import RELEASED, connect, state_of

from minris.store.migrations import BASELINE, newest_schema
from minris.store.sqlite import open_store

READING = [("check",), ("export",), ("export", "--format", "csv")]


def without_journals(folder):  # noqa: F811
    """Every file of a folder but what SQLite lays beside a database that is read."""
    return {
        name: held for name, held in state_of(folder).items() if not name.endswith(("-shm", "-wal"))
    }


@pytest.fixture
def old_store(folder):  # noqa: F811
    with connect(folder / "minris.db") as connection:
        connection.executescript(RELEASED.read_text("utf-8"))
        connection.execute("PRAGMA journal_mode=WAL")
    return folder / "minris.db"


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_a_store_is_as_before_when_it_was_read(folder, here, command):  # noqa: F811
    open_store(folder / "minris.db")
    here("check")  # lays the lock
    before = without_journals(folder)
    assert here(*command)[0] == 0
    assert without_journals(folder) == before


@pytest.mark.parametrize("command", [*READING, ("token", "ris")], ids=" ".join)
def test_an_older_store_is_named_and_not_migrated(here, old_store, command):  # noqa: F811
    status, said, errors = here(*command)
    assert status == 1
    assert f"schema {BASELINE}, and this minris needs {newest_schema()}" in said + errors
    assert "serve" in said + errors
    with sqlite3.connect(old_store) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (BASELINE,)


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_a_newer_store_is_named(folder, here, command):  # noqa: F811
    open_store(folder / "minris.db")
    with sqlite3.connect(folder / "minris.db") as connection:
        connection.execute(f"PRAGMA user_version={newest_schema() + 1}")
    status, said, errors = here(*command)
    assert status == 1
    assert "newer minris" in said + errors


def test_a_check_where_there_is_no_store_leaves_nothing(folder, here):  # noqa: F811
    before = state_of(folder)
    here("check")
    assert state_of(folder) == before
