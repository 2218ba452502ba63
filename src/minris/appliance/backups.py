"""Backup files: what they hold besides the store, which are kept, and their second place."""

import contextlib
import datetime
import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from minris import log
from minris.config.ini import Config
from minris.recent import cached
from minris.store.files import (
    beside,
    in_words,
    is_there,
    open_private,
    sync_folder,
    write_private,
)
from minris.store.models import StoreError
from minris.store.sqlite import StoreFacts, check_store, source_of, store_facts, sweep_copies

MOST_OF_A_DAY = 5
SPARE = 64 << 20  # bytes that stay free beside the next backup


# What is kept


def backups(folder: Path) -> list[Path]:
    """Return the backup files of a folder, oldest first."""
    found = sorted(folder.glob("minris-????????-??????.db"))
    return [each for each in found if taken_at(each)]


def sweep(folder: Path) -> None:
    """Delete what a backup that was killed left in a folder, and an audit file likewise."""
    sweep_copies(folder, "minris-????????-??????.db")
    for each in folder.glob("audit-????????-*.jsonl.new"):
        each.unlink(missing_ok=True)


def taken_at(backup: Path) -> datetime.datetime | None:
    """When a backup was made, by the clinic's clock: its name says so; None for another file."""
    with contextlib.suppress(ValueError):
        return datetime.datetime.strptime(backup.stem, "minris-%Y%m%d-%H%M%S")
    return None


# Of which time each newest backup is kept; how many times, by the setting.
TIMES: tuple[tuple[str, Callable[[datetime.datetime], object]], ...] = (
    ("backups_kept", datetime.datetime.date),
    ("backups_kept_weeks", lambda at: at.isocalendar()[:2]),
    ("backups_kept_months", lambda at: (at.year, at.month)),
)


def to_keep(config: Config, found: Iterable[Path]) -> list[Path]:
    """Return the backups to keep, oldest first: the newest of each of the last days, weeks, months.

    Days without a backup do not count; of the last one several are kept.
    """
    dated = [(at, each) for each in found if (at := taken_at(each))]
    kept = {each for at, each in dated[-MOST_OF_A_DAY:] if at.date() == dated[-1][0].date()}
    for setting, time_of in TIMES:
        newest = {time_of(at): each for at, each in dated}
        most = getattr(config.housekeeping, setting)
        kept |= set(list(newest.values())[-most:] if most else [])
    return sorted(kept)


def thin(config: Config, folder: Path, least: int) -> int:
    """Delete backups that are not kept, and the oldest while there is little room; how many stay.

    least  the last ones are kept also where there is no room
    """
    sweep(folder)
    found = backups(folder)
    kept = to_keep(config, found) or found[-1:]
    for each in set(found) - set(kept):
        each.unlink()
    room = SPARE + config.store_path.stat().st_size
    while len(kept) > least and shutil.disk_usage(folder).free < room:
        log.warning("too little room in %s: the backup %s is deleted", folder, kept[0].name)
        kept.pop(0).unlink()
    return len(kept)


class Kept(NamedTuple):
    """A backup: its file, when it was made by the clinic's clock, bytes, and what it holds.

    facts    None if it cannot be read
    problem  why not
    """

    path: Path
    at: datetime.datetime
    size: int
    facts: StoreFacts | None
    problem: str


def listed_backups(folder: Path) -> list[Kept]:
    """Return the backups of a folder with what they hold, the newest first."""
    found = []
    for path in reversed(backups(folder)):
        with contextlib.suppress(FileNotFoundError):  # thinned out meanwhile
            status = path.stat()
            at = taken_at(path) or datetime.datetime.fromtimestamp(status.st_mtime)
            held = _held_by(str(path), status.st_size, status.st_mtime_ns)
            facts, problem = (None, held) if isinstance(held, str) else (held, "")
            found.append(Kept(path, at, status.st_size, facts, problem))
    return found


@cached(200)
def _held_by(path: str, size: int, changed: int) -> StoreFacts | str:
    """What a backup holds, or why that cannot be said; looked at anew when the file has changed."""
    try:
        return store_facts(Path(path))
    except StoreError as error:
        return str(error)


class ToRestore(NamedTuple):
    """An order to restore a backup at the next start: its name, and who gave it."""

    name: str
    who: str


def order_file(config: Config) -> Path:
    """Return the file that tells the next start which backup to restore."""
    return beside(config.store_path, ".to-restore")


def order_restore(config: Config, order: ToRestore) -> None:
    """Let the next start restore a backup of our folder. Raises StoreError, OSError."""
    backup = config.backup_folder / order.name
    if backup not in backups(config.backup_folder):
        raise StoreError(f"there is no backup {order.name}")
    check_store(backup)
    store_facts(backup)
    write_private(order_file(config), json.dumps(order))


def take_order(config: Config) -> ToRestore | None:
    """Return the order to restore a backup, if there is one; it is taken once.

    It is taken away first: what fails is not tried at each start, over what came meanwhile.
    """
    try:
        told = order_file(config).read_text("utf-8")
        order_file(config).unlink()
        return ToRestore(*json.loads(told))
    except (OSError, ValueError, TypeError):
        return None


# The second place


def copy_to_second(config: Config, backup: Path, was_apart: bool) -> bool:
    """Copy a backup to the second folder, and thin that; whether it is on another disk.

    was_apart  it was the last time: else the stick is not there, and only its folder is
    Raises     OSError, with the reason
    """
    folder = config.second_backup_folder
    if not folder or not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(folder))
    apart = folder.stat().st_dev != config.store_path.parent.stat().st_dev
    if was_apart and not apart:
        raise OSError(errno.ENODEV, "nothing is mounted there any more", str(folder))
    to = folder / backup.name
    if not (to.is_file() and to.stat().st_size == backup.stat().st_size):
        thin(config, folder, 1)
        part = beside(to, ".part")
        part.unlink(missing_ok=True)
        try:
            with open(backup, "rb") as source, open(open_private(part), "wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
            os.replace(part, to)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        with contextlib.suppress(OSError):  # a share may know no such thing
            sync_folder(folder)
    thin(config, folder, 2)
    return apart


# Configuration and certificates


class HeldFile(NamedTuple):
    """A file of the configuration, in a backup: its name is relative to the configuration."""

    kind: str
    name: str
    mode: int
    content: bytes


def _files_of(config: Config) -> Iterator[tuple[str, str, Path]]:
    if config.path:
        yield "configuration", config.path.name, config.path
    for name, path in config.tls_files():
        yield "certificate", name, path


def hold_files(config: Config) -> Callable[[sqlite3.Connection], None]:
    """Return what writes the configuration and its certificates into a backup."""

    def write(copy: sqlite3.Connection) -> None:
        copy.execute("CREATE TABLE IF NOT EXISTS held_file (kind, name, mode, content)")
        copy.execute("DELETE FROM held_file")
        for kind, name, path in _files_of(config):
            try:
                mode, content = path.stat().st_mode & 0o777, path.read_bytes()
            except OSError as error:
                log.warning("the backup is without %s: %s", path, error)
                continue
            copy.execute("INSERT INTO held_file VALUES (?, ?, ?, ?)", (kind, name, mode, content))
        copy.commit()

    return write


def held_files(backup: Path) -> list[HeldFile]:
    """Return the files that a backup holds. Raises StoreError if it is none."""
    with in_words(backup):
        if not is_there(backup):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    check_store(backup)
    with (
        in_words(backup),
        contextlib.closing(sqlite3.connect(source_of(backup), uri=True)) as found,
    ):
        there = found.execute("SELECT 1 FROM sqlite_master WHERE name = 'held_file'").fetchone()
        rows_ = found.execute("SELECT kind, name, mode, content FROM held_file") if there else ()
        return [HeldFile(*row) for row in rows_]


def give_back(config: Config, held: Iterable[HeldFile]) -> list[str]:
    """Give back the files of a backup; return what was done, in sentences.

    One that is there and differs stays; that of the backup is laid beside it.
    """
    told = []
    for one in held:
        place = config.directory / one.name
        if one.kind == "configuration" and config.path:
            place = config.path
        words, to = f"{place} was given back", place
        if place.exists():
            if place.read_bytes() == one.content:
                continue
            to = beside(place, ".from-backup")
            to.unlink(missing_ok=True)
            words = f"{place} differs from that of the backup, which lies beside it: {to}"
        with open(open_private(to), "wb") as file:
            file.write(one.content)
        to.chmod(0o600 if b"PRIVATE KEY" in one.content else one.mode)
        told.append(words)
    return told
