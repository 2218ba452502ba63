"""A store whose process was killed at any write is opened, backed up and put aside without loss."""

import contextlib
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from kills import LOAD, cut_power, cut_restores, killed_at

from minris.store.models import StoreError, database
from minris.store.sqlite import backup_store, open_store, restore_store

# The first writes are the switch to the WAL; those after them a checkpoint.
AT = (1, 2, 3, 60, 200)
ALL = range(1, 401)
BESIDE = {"-wal", "-shm"}


def counted(path: Path) -> set[str]:
    """What a whole file holds, with the journals beside it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {name.split()[0] for (name,) in connection.execute("SELECT name FROM counter")}


def copy_of(folder: Path, name: str) -> Path:
    """The store of a folder in another one, as it lies there."""
    other = folder.parent / name
    shutil.copytree(folder, other)
    return other / "minris.db"


def nothing_is_lost(folder: Path, acknowledged: set[str], older: Path) -> None:
    """A start, a backup and a restore, each of the same state."""
    backed_up, restored = copy_of(folder, "backed up"), copy_of(folder, "restored")
    backup_store(backed_up, backed_up.with_name("copy.db"))
    assert acknowledged <= counted(backed_up.with_name("copy.db"))
    kept = restore_store(restored, older)
    assert counted(restored) == set()
    assert kept is not None
    assert acknowledged <= counted(kept)
    open_store(folder / "minris.db")
    assert acknowledged <= counted(folder / "minris.db")


@pytest.fixture
def older(tmp_path):
    """A backup of an empty store."""
    open_store(tmp_path / "older" / "minris.db")
    backup_store(tmp_path / "older" / "minris.db", tmp_path / "older.db")
    return tmp_path / "older.db"


def kill_and_look(number, tmp_path, older):
    folder = tmp_path / "box"
    folder.mkdir()
    acknowledged = set(killed_at(number, LOAD, folder / "minris.db"))
    assert number < 3 or acknowledged
    nothing_is_lost(folder, acknowledged, older)


@pytest.mark.parametrize("number", AT)
def test_a_store_killed_at_a_write_to_its_file_loses_nothing(number, tmp_path, older):
    kill_and_look(number, tmp_path, older)


@pytest.mark.long
@pytest.mark.parametrize("number", ALL)
def test_a_store_killed_at_each_write_to_its_file_loses_nothing(number, tmp_path, older):
    kill_and_look(number, tmp_path, older)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(200))
def test_a_store_killed_at_any_write_under_mixed_load_loses_nothing(seed, tmp_path, older):
    """Writes to the store, its WAL and its copies; twice on one box, the second after the first."""
    folder, chance = tmp_path / "box", random.Random(seed)
    folder.mkdir()
    acknowledged, file = set(), folder / "minris.db"
    for _ in range(2):
        number = chance.randint(100, 4000)
        acknowledged |= set(killed_at(number, LOAD, file, "mixed", KILL_FILE=str(file.parent)))
    nothing_is_lost(folder, acknowledged, older)


@pytest.mark.parametrize("again", ["start", "restore"])
def test_a_restore_cut_off_at_any_step_has_not_begun_or_is_done_at_the_next_start(
    again, tmp_path, older
):
    """Over a store that was killed in a checkpoint; what it held is there, or set aside."""
    state = tmp_path / "box"
    state.mkdir()
    acknowledged = set(killed_at(60, LOAD, state / "minris.db"))
    folders = cut_restores(state, older, tmp_path / "cut")
    assert len(folders) > 10
    done = []
    for folder in folders:
        path = folder / "minris.db"
        if again == "start":
            open_store(path)
        else:
            restore_store(path, older)
        kept = [each for each in folder.glob("minris.db.before-*") if each.name[-4:] not in BESIDE]
        found = counted(path)
        done.append(not found)
        assert any(acknowledged <= counted(each) for each in (path, *kept))
        assert found == set() or acknowledged <= found
        assert not list(folder.glob("*.restored*"))
    assert done[-1]
    assert done == sorted(done)


# Power cuts


def cut_and_look(seed: int, tmp_path: Path, older: Path, *how: str) -> set[str]:
    """Cut the power twice, the second time after a start: what was acknowledged and is lost."""
    folder, chance = tmp_path / "box", random.Random(seed)
    folder.mkdir(parents=True)
    acknowledged: set[str] = set()
    for _ in range(2):
        number, log = chance.randint(20, 1500), tmp_path / "writes"
        more = {"KILL_FILE": str(folder), "CUT_LOG": str(log)}
        acknowledged |= set(killed_at(number, LOAD, folder / "minris.db", *how, **more))
        cut_power(log, chance)
        open_store(folder / "minris.db")
        database.close()
    if not how or "mixed" in how:
        nothing_is_lost(folder, acknowledged, older)
    return acknowledged - counted(folder / "minris.db")


@pytest.mark.parametrize("seed", range(3))
def test_a_power_cut_loses_nothing_acknowledged(seed, tmp_path, older):
    assert cut_and_look(seed, tmp_path, older) == set()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100))
def test_one_hundred_power_cuts_lose_nothing_acknowledged(seed, tmp_path, older):
    assert cut_and_look(1000 + seed, tmp_path, older, "mixed") == set()


def test_a_store_that_does_not_sync_shows_that_the_power_was_cut(tmp_path, older):
    lost = set()
    for seed in range(5):
        with contextlib.suppress(sqlite3.Error, StoreError, AssertionError):
            lost |= cut_and_look(seed, tmp_path / str(seed), older, "careless")
            if lost:
                break
            continue
        lost.add("the store")
        break
    assert lost
