"""The SQLite file: open, migrate, lock, back up, restore."""

import contextlib
import datetime
import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import peewee

from minris import __version__, log
from minris.dataset.elements import ElementIndex
from minris.dataset.names import name_key
from minris.store.condition import Condition, Trouble
from minris.store.files import (
    JOURNALS,
    beside,
    in_words,
    is_there,
    not_ours,
    private_file,
    sweep_beside,
    sync_folder,
)
from minris.store.migrations import BASELINE, MIGRATIONS, newest_schema
from minris.store.models import APPLICATION_ID, StoreError, StoreInUse, database
from minris.store.schema import new_schema


def _forget(path: Path) -> None:
    """Delete an unfinished file of ours with what SQLite laid beside it."""
    for suffix in ("", *JOURNALS, "-shm"):
        beside(path, suffix).unlink(missing_ok=True)


_WRITTEN_BY = f"INSERT OR REPLACE INTO mark VALUES ('version', '{__version__}')"


def _create_store(path: Path) -> None:
    """Create a database; it gets its name last, so that an interruption leaves none."""
    new = beside(path, ".new")
    _forget(new)
    private_file(new)
    with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        script = f"BEGIN;{new_schema()}{_WRITTEN_BY};PRAGMA user_version={newest_schema()};COMMIT"
        connection.executescript(script)
        connection.execute("PRAGMA journal_mode=WAL")  # now: a switch may be cut off as well
    os.replace(new, path)


def _check_version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema number of a database. Raises StoreError if this version does not support it."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > newest_schema():
        by = ""
        with contextlib.suppress(sqlite3.Error):
            sql = "SELECT ', ' || value FROM mark WHERE name = 'version'"
            (by,) = connection.execute(sql).fetchone() or ("",)
        words = (
            f"{path} is from a newer minris{by} (schema {version});"
            f" this is minris {__version__}, which knows schemas up to {newest_schema()}"
        )
        copies = [copy for copy in _copies_before_migrations(path) if copy[0] <= newest_schema()]
        raise StoreError(words + (f". {copies[-1][1]} is the copy from before" if copies else ""))
    if version < BASELINE:
        raise StoreError(f"the database is from before the first release (schema {version})")
    return int(version)


def _check_newest(connection: sqlite3.Connection, path: Path) -> None:
    """Raise StoreError for a database that has yet to be migrated, or of a newer version."""
    version = _check_version(connection, path)
    if version < newest_schema():
        raise StoreError(
            f"{path} has schema {version}, and this minris needs {newest_schema()}:"
            " `minris serve` migrates it at its start"
        )


def _copies_before_migrations(path: Path) -> list[tuple[int, Path]]:
    """The copies of a database from before it was migrated, by their schema."""
    head = f"{path.name}.schema-"
    found = (each for each in path.parent.glob(f"{head}*") if each.suffix != ".part")
    numbered = ((each.name.removeprefix(head), each) for each in found)
    return sorted((int(number), each) for number, each in numbered if number.isdecimal())


def _migrate(connection: sqlite3.Connection, path: Path, copy: bool = True) -> None:
    """Migrate a database to the newest schema, one transaction per migration.

    copy  lay a copy aside first; of the earlier ones only the last stays
    """
    version = _check_version(connection, path)
    if copy and version < newest_schema():
        aside = beside(path, f".schema-{version}")
        backup_store(path, aside)
        log.warning("%s is migrated to schema %d; as it was, it is kept as %s", path,
                    newest_schema(), aside)  # fmt: skip
        for _, older in _copies_before_migrations(path)[:-2]:
            older.unlink()
    connection.create_function("name_key", 1, name_key, deterministic=True)
    connection.create_function("text_of", 2, lambda data, keyword: ElementIndex(data).get(keyword))
    for number, what, sql in MIGRATIONS:
        if number > version:
            log.info("database migrated to schema %d: %s", number, what)
            script = f"BEGIN IMMEDIATE;{sql};{_WRITTEN_BY};PRAGMA user_version={number};COMMIT"
            connection.executescript(script)


def check_store(path: Path) -> None:
    """Refuse a file that is not a minris database, without changing it.

    Whatever state a sudden end left its pages in: they count only together with the WAL, which
    is not read here. So SQLite is told to look at the first page alone.
    """
    with in_words(path):
        if path.stat().st_size == 0:
            raise StoreError(f"{path} is empty, not a minris database; move it away to start anew")
    # through SQLite: closing the file ourselves would drop this process's locks on it
    # (sqlite.org/howtocorrupt.html 2.2); immutable creates no -wal and no -shm
    url = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with in_words(path), contextlib.closing(sqlite3.connect(url, uri=True)) as connection:
        connection.execute("PRAGMA writable_schema=ON")  # a file shorter than it says will do
        (found,) = connection.execute("PRAGMA application_id").fetchone()
        if found != APPLICATION_ID:
            raise not_ours(path)


def _make_or_finish(path: Path) -> None:
    """Create the database that is not there, or finish the restore that was cut off."""
    new = beside(path, ".restored")
    left = [name for name in JOURNALS if _holds_changes(beside(path, name))]
    if new.exists():
        _set_aside(path)
        _take_place(new, path)
    elif left:
        raise StoreError(
            f"{path} is gone, but {beside(path, left[0])} holds changes to it: restore a backup"
        )
    else:
        _create_store(path)


class Store(peewee.SqliteDatabase):
    """The database of a process, and the condition that it is in.

    look  open it to be read alone, however little the disk allows
    """

    def __init__(self, path: Path, look: bool = False) -> None:
        self.condition = Condition(path)
        self.condition.is_looked_at = look
        writing = {
            "journal_mode": "wal",
            "synchronous": "full",
            "foreign_keys": 1,
            "journal_size_limit": 64 << 20,
        }
        super().__init__(
            source_of(path) if look else str(path),
            lock_type="IMMEDIATE",
            autoconnect=False,
            timeout=10,
            uri=look,
            pragmas={"cache_size": -2048, **({"query_only": 1} if look else writing)},
        )


def open_store(path: Path, migrate: bool = True) -> None:
    """Bind `database` to a file, created if absent.

    The caller holds the StoreLock.
    path     the SQLite file
    migrate  change an older schema to the newest, else it is refused
    Raises   StoreError for a foreign or empty file, or a schema that is too new or too old
    """
    with in_words(path):
        if not is_there(path):
            _make_or_finish(path)
        for suffix in (".restored", ".restored.part"):  # of a restore that had not begun
            _forget(beside(path, suffix))
        sweep_beside(path)
    check_store(path)
    bind_store(path)
    with in_words(path), database.connection_context():
        if migrate:
            _migrate(database.connection(), path)
        _check_newest(database.connection(), path)


def bind_store(path: Path) -> None:
    """Bind `database` to a file that is a store."""
    database.initialize(Store(path))


def read_store(path: Path) -> None:
    """Bind `database` to a file to read it, while it is in use or not; nothing is changed.

    Raises  StoreError for what is no database of this version
    """
    if not is_there(path):
        raise StoreError(f"there is no store {path}")
    check_store(path)
    database.initialize(Store(path, look=True))
    with in_words(path), database.connection_context():
        _check_newest(database.connection(), path)


def open_to_serve(path: Path) -> "StoreLock | None":
    """Open a database for a server; return its lock, None where that cannot be had.

    A disk that is full, read-only or failing, and damage, do not keep what is stored from being
    shown: the database is then in trouble until the next start.
    Raises  StoreError as `open_store`, and for what cannot be read
    """
    lock = None
    try:
        lock = StoreLock(path)
        open_store(path)
    except StoreError as error:
        if not error.kind or not path.exists() or not _look_at(path, error):
            if lock:
                lock.release()
            raise
    return lock


def _look_at(path: Path, why: StoreError) -> bool:
    """Bind `database` to a file that is only read; whether there is something to be read."""
    store = Store(path, look=True)
    try:
        with store.connection_context():
            version = _check_version(store.connection(), path)
    except (sqlite3.Error, peewee.PeeweeException, StoreError):
        version = 0
    if version < newest_schema() and why.kind != "damaged":
        return False
    database.initialize(store)
    store.condition.begin(Trouble(why.kind, lasts=True), str(why))
    return True


SHM = 1 << 15  # bytes of the smallest -shm in use; one that found no room is smaller


def _takes_files(folder: Path) -> bool:
    """Whether SQLite can lay files in a folder."""
    return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 1 << 17


def source_of(path: Path) -> str:
    """The address of a database to read: whole with its journals, wherever it lies."""
    how = "mode=ro"
    if _holds_changes(beside(path, "-journal")):
        how = "mode=rw"  # a change that was cut off is taken back first
    elif not (_holds_changes(beside(path, "-wal")) or _holds_changes(beside(path, "-shm"), SHM)):
        how += "&immutable=1" * (not _takes_files(path.parent))  # no room for a -shm
    return f"{path.absolute().as_uri()}?{how}"


class StoreFacts(NamedTuple):
    """What a store holds; newest is the time of its newest change, "" for none."""

    patients: int
    exams: int
    newest: str


COUNT_STORE = """SELECT (SELECT count(*) FROM patient),
    (SELECT count(*) FROM scheduled_procedure_step),
    max(coalesce((SELECT at FROM audit ORDER BY id DESC LIMIT 1), ''),
        coalesce((SELECT max(updated_at) FROM patient), ''),
        coalesce((SELECT max(updated_at) FROM performed_procedure_step), ''),
        coalesce((SELECT max(updated_at) FROM workitem), ''))"""


def store_facts(path: Path) -> StoreFacts:
    """What a database holds, by any version. Raises StoreError if it cannot be read."""
    with in_words(path), contextlib.closing(sqlite3.connect(source_of(path), uri=True)) as found:
        return StoreFacts(*found.execute(COUNT_STORE).fetchone())


def backup_store(
    path: Path,
    to: Path,
    replaced: Path | None = None,
    add: Callable[[sqlite3.Connection], None] = lambda copy: None,
) -> None:
    """Copy a database consistently, even while in use; the copy is checked before it gets its name.

    replaced  the file whose owner, group and mode the copy gets, if not the one of its name
    add       writes into the copy what it is to hold besides
    Raises    StoreError if the copy is damaged or cannot be written
    """
    check_store(path)
    part = beside(to, ".part")
    with in_words(to):
        if any(_holds_changes(beside(to, name)) for name in JOURNALS):
            raise StoreError(f"{to} is a database in use: give the copy another name")
        _forget(part)
        private_file(part, replaced or to)
    try:
        with (
            contextlib.closing(sqlite3.connect(source_of(path), uri=True)) as source,
            contextlib.closing(sqlite3.connect(part)) as copy,
        ):
            with in_words(path):
                source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            with in_words(to):
                copy.execute("PRAGMA locking_mode=EXCLUSIVE")  # it shows that it is worked at
                source.backup(copy)  # in one step: a snapshot that no write delays
                copy.execute("PRAGMA journal_mode=DELETE")
                add(copy)
                (answer,) = copy.execute("PRAGMA integrity_check").fetchone()
        if answer != "ok":
            raise StoreError(f"the copy of {path} is damaged: {answer}")
        with in_words(to):
            os.replace(part, to)
            sync_folder(to.parent)
    except StoreError:
        _forget(part)
        raise


def sweep_copies(folder: Path, names: str) -> None:
    """Delete the unfinished copies in a folder that nobody works at any more.

    names  of the finished ones, as a pattern
    """
    for part in folder.glob(f"{names}.part"):
        try:
            with contextlib.closing(sqlite3.connect(part, 0, isolation_level=None)) as connection:
                connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:  # in use; what is no database is another error
            continue
        except sqlite3.DatabaseError:
            pass
        _forget(part)


# Restore. At any time there is either the old database with its journals or the checked backup,
# so that a restore that was cut off has either not begun or is finished at the next start.


def _holds_changes(journal: Path, least: int = 1) -> bool:
    return journal.exists() and journal.stat().st_size >= least


def _free_name(path: Path) -> Path:
    """A name to keep a database under, with what lies beside it."""
    name = f"{path.name}.before-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    taken = {each.name for each in path.parent.iterdir()}
    tries = (name if n == 1 else f"{name}-{n}" for n in range(1, len(taken) + 2))
    return path.with_name(
        next(n for n in tries if taken.isdisjoint({n, *(n + each for each in JOURNALS)}))
    )


def _set_aside(path: Path) -> Path | None:
    """Give a database another name with its journals, bit for bit; None if there is nothing.

    Afterwards the journals lie under both names, so that there is no time when one is missing.
    """
    kept, found = _free_name(path), path.exists()
    for suffix in JOURNALS:
        journal = beside(path, suffix)
        if _holds_changes(journal):
            found = True
            try:
                os.link(journal, beside(kept, suffix))
            except OSError:  # a file system without links
                private_file(beside(kept, suffix), journal)
                shutil.copyfile(journal, beside(kept, suffix))
    if path.exists():
        os.replace(path, kept)
    return kept if found else None


def kept_files(kept: Path) -> list[Path]:
    """The files of a database that was set aside."""
    return [each for each in (kept, *(beside(kept, name) for name in JOURNALS)) if each.exists()]


def _take_place(new: Path, path: Path) -> None:
    """Let a checked backup be the database, where there is none. What lies beside was kept."""
    for suffix in (*JOURNALS, "-shm"):
        beside(path, suffix).unlink(missing_ok=True)
    os.replace(new, path)
    sync_folder(path.parent)


def restore_store(
    path: Path, backup: Path, carry_over: Callable[[Path], None] = lambda new: None
) -> Path | None:
    """Replace the database by a checked backup; return where the old one is kept, if any.

    A journal that was not folded into the old database is kept beside it, under its name.
    The caller holds the StoreLock. Raises StoreError if the file is not a backup of minris

    carry_over  is given the new database before it takes the place of the old one
    """
    if not backup.is_file():
        raise StoreError(f"no such file: {backup}")
    new = beside(path, ".restored")
    with in_words(new):
        _forget(new)
    backup_store(backup, new, path)
    try:
        with in_words(new), contextlib.closing(sqlite3.connect(new)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            _migrate(connection, backup, copy=False)
            with connection:
                connection.execute("INSERT OR REPLACE INTO mark VALUES ('started', 'restored')")
                connection.execute("DROP TABLE IF EXISTS held_file")
        carry_over(new)
        if _holds_changes(beside(new, "-wal")):
            raise StoreError(f"{new} is open elsewhere")
    except BaseException:
        _forget(new)
        raise
    with in_words(path):
        kept = _set_aside(path)
        _take_place(new, path)
    return kept


class StoreLock:
    """The lock of the only process that may change a database; released by the system on exit.

    It is an SQLite file beside the database in an exclusive transaction, since that works the
    same on every platform.
    """

    def __init__(self, path: Path) -> None:
        self.path = beside(path, ".lock")
        with in_words(self.path):
            with contextlib.suppress(FileExistsError):
                private_file(self.path, path)
            if not os.access(self.path, os.W_OK):  # SQLite would lock nothing, and not say so
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self.connection = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False
            )
        try:
            with in_words(self.path):
                self.connection.execute("PRAGMA journal_mode=MEMORY")  # a full disk has no room
                self.connection.execute("BEGIN EXCLUSIVE")
        except StoreInUse:
            self.connection.close()
            raise StoreInUse(f"{path} is in use. Stop the running minris first") from None
        except StoreError:
            self.connection.close()
            raise

    def release(self) -> None:
        """Release the lock."""
        self.connection.close()

    def __enter__(self) -> "StoreLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Connect this thread for reading; the connection is kept.

    Refuses 0213 (StoreTrouble) where disk or store do not give what is asked for
    """
    try:
        database.connect(reuse_if_open=True)
        yield
    except (sqlite3.Error, peewee.DatabaseError) as error:
        raise database.condition.suffers(error, reading=True) or error from None
