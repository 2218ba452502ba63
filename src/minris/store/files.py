"""Files of the store: whose they are, how they are made, and why one cannot be used."""

import contextlib
import errno
import os
import re
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import peewee

from minris.store.models import StoreError, StoreInUse

# What SQLite lays beside a database; each holds changes that are not in the database yet.
JOURNALS = ("-wal", "-journal")

TO_IMPORT = ".to-import-"  # in the name of a file that a command lays beside the store
# Of use to the process alone that made it: what follows the name of the store in theirs.
_OF_ONE_RUN = re.compile(
    r"\.(to-import-[0-9a-f]+|tried|(new|schema-[0-9]+\.part)(-wal|-shm|-journal)?)"
)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_REFUSED = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM})
_FAILED = _REFUSED | {sqlite3.SQLITE_IOERR}
_NO_SHM = frozenset({sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP})


def beside(path: Path, suffix: str) -> Path:
    """The file beside another one, whose name is longer by a suffix."""
    return path.with_name(path.name + suffix)


def is_there(path: Path) -> bool:
    """Whether there is a file. Raises StoreError where its folder may not be looked into."""
    with in_words(path):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def sweep_beside(path: Path) -> None:
    """Delete what a process that was killed left beside the store; the caller holds its lock."""
    for each in path.parent.iterdir():
        if each.name.startswith(path.name) and _OF_ONE_RUN.fullmatch(each.name[len(path.name) :]):
            each.unlink(missing_ok=True)


# Whose


def _person(uid: int) -> str:
    try:
        import pwd  # not on Windows

        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except (ImportError, KeyError):
        return f"uid {uid}"


def _visible(path: Path) -> Path:
    """The file, or the nearest folder above it that can be seen."""
    return next((each for each in (path, *path.parents) if os.path.exists(each)), path)


def _whose(path: Path) -> str:
    """Who owns it and who we are, in words; empty on Windows."""
    if not hasattr(os, "geteuid"):
        return ""
    seen = _visible(path)
    it = "It" if seen == path else f"The folder {seen}"
    owner, we = _person(seen.stat().st_uid), _person(os.geteuid())
    return f". {it} belongs to {owner}; this minris runs as {we}"


def _hand_over(descriptor: int, like: Path) -> None:
    """Give a new file or folder the owner and the group of another one, as far as we may."""
    if not hasattr(os, "fchown"):
        return
    model = like.stat()
    for owner, group in ((-1, model.st_gid), (model.st_uid, -1)):
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, owner, group)


def make_folder(path: Path) -> None:
    """Make a folder and those above it; each new one belongs to the owner of the one above."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        if hasattr(os, "O_DIRECTORY"):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _hand_over(descriptor, folder.parent)
            finally:
                os.close(descriptor)


def open_private(path: Path, replaced: Path | None = None) -> int:
    """Make a file that only its owner can read, who is that of the folder; its descriptor.

    replaced  the file whose place it will take: it gets its owner, group and mode
    Raises    FileExistsError if there is one of its name
    """
    make_folder(path.parent)
    model = replaced if replaced and replaced.is_file() else None
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        _hand_over(descriptor, model or path.parent)
        if model and hasattr(os, "fchmod"):
            mode, ours = model.stat(), os.fstat(descriptor)
            same = mode.st_gid == ours.st_gid  # another group gets nothing
            os.fchmod(descriptor, stat.S_IMODE(mode.st_mode) & (0o777 if same else 0o700))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def private_file(path: Path, replaced: Path | None = None) -> None:
    """Make an empty file, as `open_private` does."""
    os.close(open_private(path, replaced))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read: our user, or that of the folder if we are root."""
    path.unlink(missing_ok=True)
    with os.fdopen(open_private(path), "w", encoding="utf-8", newline="") as file:
        file.write(text)


def sized(count: float) -> str:
    """Return a number of bytes as 12.3 MB."""
    size, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"


def sync_folder(path: Path) -> None:
    """Make the names of a folder last through a power cut."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# Why not


def _is_read_only(path: Path) -> bool:
    return hasattr(os, "statvfs") and bool(os.statvfs(_visible(path)).f_flag & os.ST_RDONLY)


def _is_full(path: Path) -> bool:
    return shutil.disk_usage(_visible(path)).free < 1 << 16


def _begins_with_zeros(path: Path) -> bool:
    """Whether the beginning of a file was lost; a database begins with a name."""
    try:
        with path.open("rb") as file:
            return file.read(100) == bytes(100)
    except OSError:
        return False


def _forbidden(path: Path) -> Path | None:
    """The file of a database, or its folder, that we may not read and write."""
    files = [beside(path, suffix) for suffix in ("", *JOURNALS, "-shm")]
    for file in (*filter(os.path.exists, files), _visible(path.parent)):
        if not os.access(file, os.R_OK | os.W_OK):
            return file
    return None


def takes_writes(path: Path) -> bool:
    """Whether a database may be written and its disk has room: tried with a file beside it."""
    probe = beside(path, ".tried")
    if _forbidden(path):
        return False
    try:
        probe.write_bytes(bytes(1 << 20))  # more than a start needs
        return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def not_ours(path: Path) -> StoreError:
    """The refusal of a file that another program made."""
    return StoreError(f"{path} is not a minris database{_whose(path)}")


def why_not(path: Path, error: Exception) -> StoreError:
    """The reason why a database or its copy cannot be used, in a sentence.

    error  what SQLite, peewee or the system said
    """
    cause = getattr(error, "orig", error)  # peewee wraps SQLite's own
    extended = getattr(cause, "sqlite_errorcode", 0)
    code = extended & 0xFF
    number = getattr(cause, "errno", None)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreInUse(f"{path} is in use. Stop the running minris first")
    if code == sqlite3.SQLITE_NOTADB and not _begins_with_zeros(path):
        return not_ours(path)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreError(f"{path} is damaged ({cause}): restore a backup{_whose(path)}", "damaged")
    if code == sqlite3.SQLITE_FULL or number in _FULL or (extended in _NO_SHM and _is_full(path)):
        return StoreError(f"there is no room for {path} on its disk", "full")
    refused = code in _FAILED or number in _FORBIDDEN
    if number == errno.EROFS or (refused and _is_read_only(path)):
        return StoreError(f"{path} is on a read-only file system{_whose(path)}", "read-only")
    if code in _REFUSED or number in _FORBIDDEN:
        file = _forbidden(path)
        if file or number in _FORBIDDEN:
            file = file or path
            words = f"no permission to read and write {file}{_whose(file)}"
            return StoreError(words, "read-only")
    kind = "failing" if code in _FAILED or number == errno.EIO else ""
    return StoreError(f"cannot open {path}: {cause}{_whose(path)}", kind)


@contextlib.contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Say what SQLite or the system refuses as a StoreError that names the file."""
    try:
        yield
    except (sqlite3.Error, peewee.PeeweeException, OSError) as error:
        raise why_not(path, error) from None
