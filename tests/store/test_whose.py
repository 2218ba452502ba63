"""Whose files these are: what root makes the service can read; why a store cannot be used."""

import contextlib
import io
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT, write_config

from minris.cli import main
from minris.store.models import StoreInUse
from minris.store.sqlite import StoreLock, backup_store, restore_store

SERVICE, GROUP, STRANGER = 41234, 45678, 41235

if not hasattr(os, "geteuid") or os.geteuid() != 0:
    pytest.skip("only root can be two users", allow_module_level=True)


@pytest.fixture
def folder():
    """A folder of the service, which others can come to."""
    path = Path(tempfile.mkdtemp(prefix="minris-whose-"))
    os.chown(path, SERVICE, GROUP)
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def whose(path):
    """Owner, group and mode."""
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def as_user(uid, script, *arguments, group=GROUP, wrapper=()):
    """Run a script as another user: its output."""
    head = (  # all is imported first: the other user may have no way to it
        "import os, pathlib, sys; ''.encode('utf-8-sig')\n"
        + "from minris.cli import main\n" * ("main(" in script)
        + "from minris.store.models import StoreError, database\n"
        "from minris.store.sqlite import StoreLock, backup_store, open_store, reading\n"
        f"os.setgroups([]); os.setgid({group}); os.setuid({uid})\n"
        "path = pathlib.Path(sys.argv[1])\n"
    )
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", head + script, *map(str, arguments)],
        cwd="/", env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OPEN = """
with StoreLock(path):
    open_store(path)
    with database.connection_context():
        database.execute_sql("INSERT INTO counter (name, last) VALUES ('by the service', 1)")
print("written")
"""
TRY = """
try:
    with StoreLock(path):
        open_store(path)
        print("opened")
except StoreError as error:
    print(error)
"""


def command(folder, *arguments):
    """A command as root types it: status, and all that it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main([*map(str, arguments), "--config", str(folder / "config.ini")])
        except SystemExit as end:
            status = end.code
    return status, said.getvalue()


@pytest.fixture
def store(folder):
    """The store of the service."""
    assert as_user(SERVICE, OPEN, folder / "minris.db") == "written"
    return folder / "minris.db"


@pytest.fixture
def backup(folder, store, tmp_path):
    """A backup that root keeps."""
    backup_store(store, tmp_path / "copy.db")
    return tmp_path / "copy.db"


def test_a_restored_store_has_owner_group_and_mode_of_the_one_it_replaces(store, backup):
    os.chown(store, SERVICE, 45679)
    store.chmod(0o640)
    kept = restore_store(store, backup)
    assert whose(store) == whose(kept) == (SERVICE, 45679, 0o640)


def test_a_store_restored_where_there_is_none_is_that_of_the_folder(store, backup):
    store.unlink()
    restore_store(store, backup)
    assert whose(store) == (SERVICE, GROUP, 0o600)


def test_a_backup_is_that_of_the_folder_and_so_is_a_folder_made_for_it(folder, store):
    copy = folder / "backups" / "year" / "copy.db"
    backup_store(store, copy)
    assert whose(copy) == (SERVICE, GROUP, 0o600)
    assert {whose(copy.parent)[:2], whose(copy.parent.parent)[:2]} == {(SERVICE, GROUP)}


def test_a_backup_that_is_replaced_keeps_owner_group_and_mode(folder, store):
    copy = folder / "copy.db"
    copy.touch()
    os.chown(copy, STRANGER, GROUP)
    copy.chmod(0o440)
    backup_store(store, copy)
    assert whose(copy) == (STRANGER, GROUP, 0o440)


def test_the_service_goes_on_after_all_that_root_does_to_its_store(folder, backup):
    write_config(folder)
    os.chown(folder / "config.ini", SERVICE, GROUP)
    (folder / "minris.db.lock").unlink()
    for arguments in (
        ("check",),
        ("user", "anna", "--password-stdin"),
        ("token", "ws"),
        ("export", folder / "all.json"),
        ("backup",),
        ("restore", backup),
        ("token", "ws2"),
    ):
        with contextlib.ExitStack() as stack:
            stdin, sys.stdin = sys.stdin, io.StringIO("a good password\n")
            stack.callback(setattr, sys, "stdin", stdin)
            status, said = command(folder, *arguments)
        assert status == 0 or arguments == ("check",), said
        assert {whose(each)[:2] for each in folder.rglob("*")} == {(SERVICE, GROUP)}, arguments
    assert as_user(SERVICE, OPEN.replace("service", "end"), folder / "minris.db") == "written"


def test_a_member_of_the_group_gives_no_other_group_a_store(folder, store, backup):
    """Who may not give a file to its owner at least gives nobody else a look."""
    folder.chmod(0o777)
    store.chmod(0o644)
    (folder / "copy.db").write_bytes(backup.read_bytes())
    (folder / "copy.db").chmod(0o644)
    script = (
        "from minris.store.sqlite import restore_store\n"
        "restore_store(path, path.with_name('copy.db'))"
    )
    as_user(STRANGER, script, store, group=STRANGER)
    assert whose(store) == (STRANGER, STRANGER, 0o600)


# Four sentences

OWNER = rf"\. It belongs to uid {SERVICE}; this minris runs as uid {STRANGER}$"


def test_no_permission_is_told_with_path_and_owner(store):
    store.parent.chmod(0o777)
    (store.parent / "minris.db.lock").chmod(0o666)
    said = as_user(STRANGER, TRY, store)
    assert re.search(rf"^no permission to read and write {re.escape(str(store))}{OWNER}", said)


def test_a_lock_of_another_user_is_not_a_store_in_use(folder, store):
    lock = folder / "minris.db.lock"
    lock.chmod(0o644)
    said = as_user(STRANGER, TRY, store)
    assert re.search(rf"^no permission to read and write {re.escape(str(lock))}{OWNER}", said)


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_folder_of_another_user_is_told(folder, store, mode):
    store.chmod(0o666)
    (folder / "minris.db.lock").unlink()
    folder.chmod(mode)
    said = as_user(STRANGER, TRY, store)
    assert said.startswith(f"no permission to read and write {folder}")
    assert f"uid {SERVICE}" in said and f"uid {STRANGER}" in said


def test_a_journal_of_another_user_is_told(folder, store):
    """As root left it by a program of its own."""
    folder.chmod(0o777)
    for file in folder.iterdir():
        file.chmod(0o666)
    with contextlib.closing(sqlite3.connect(store)) as connection:
        connection.execute("INSERT INTO counter VALUES ('root', 1)")
        connection.commit()
        for suffix in ("-wal", "-shm"):
            file = store.with_name(store.name + suffix)
            shutil.copy(file, folder / f"cut{suffix}")
    for suffix in ("-wal", "-shm"):
        os.replace(folder / f"cut{suffix}", store.with_name(store.name + suffix))
        store.with_name(store.name + suffix).chmod(0o600)
    said = as_user(STRANGER, TRY, store)
    assert said.startswith(
        f"no permission to read and write {store}-wal. It belongs to root (uid 0)"
    )


def test_a_read_only_file_system_is_told(store):
    """In a name space of its own, where the folder is mounted read-only."""
    unshare = shutil.which("unshare")
    mount = f"mount --bind {store.parent} {store.parent} && mount -o remount,ro,bind {store.parent}"
    wrapper = (unshare, "-m", "sh", "-c", f'{mount} && exec "$@"', "sh")
    if not unshare or subprocess.run([*wrapper, "true"], capture_output=True).returncode:
        pytest.skip("this root may not mount")
    said = as_user(SERVICE, TRY, store, wrapper=wrapper)
    assert "is on a read-only file system. It belongs to" in said
    assert str(store) in said and f"uid {SERVICE}" in said


def test_damage_is_told_with_path_and_owner(store):
    whole = store.read_bytes()
    store.write_bytes(whole[:100] + b"\xa5" * (len(whole) - 100))
    said = as_user(SERVICE, TRY, store)
    assert re.search(rf"^{re.escape(str(store))} is damaged \(.*\): restore a backup", said)
    assert f"It belongs to uid {SERVICE}; this minris runs as uid {SERVICE}" in said


def test_a_file_of_another_program_is_told_with_path_and_owner(store):
    store.write_text("This is the diary of the practice.\n" * 100)
    said = as_user(SERVICE, TRY, store)
    assert said.startswith(f"{store} is not a minris database. It belongs to uid {SERVICE}")


def test_a_backup_on_a_stick_that_takes_no_files_is_read(folder, store, tmp_path):
    """A store that was copied as a file is in WAL mode; SQLite would lay files beside it."""
    stick = folder / "stick"
    stick.mkdir(mode=0o755)
    shutil.copy(store, stick / "minris.db")
    (stick / "minris.db").chmod(0o644)
    before = [each.name for each in stick.iterdir()]
    script = "backup_store(path, pathlib.Path(sys.argv[2])); print('copied')"
    assert as_user(SERVICE, script, stick / "minris.db", folder / "copy.db") == "copied"
    assert [each.name for each in stick.iterdir()] == before


def test_a_command_that_may_not_lock_the_store_does_not_ask_for_a_running_one(folder, store):
    write_config(folder)
    with pytest.raises(StoreInUse), StoreLock(store):
        StoreLock(store)
    (folder / "config.ini").chmod(0o644)
    script = "sys.stderr = sys.stdout; print(main(['token', 'x', '--config', sys.argv[1]]))"
    said = as_user(STRANGER, script, folder / "config.ini")
    assert "minris: no permission to read and write" in said
    assert said.endswith("\n1")


def test_check_tells_why_the_store_cannot_be_used(folder, store):
    write_config(folder)
    (folder / "config.ini").chmod(0o644)
    script = (
        "try: main(['check', '--config', sys.argv[1]])\nexcept SystemExit as end: print(end.code)"
    )
    said = as_user(STRANGER, script, folder / "config.ini")
    assert said.endswith("\n1")
    [line] = [line for line in said.splitlines() if line.startswith("store")]
    assert f"store {store}: no permission to read and write" in line
