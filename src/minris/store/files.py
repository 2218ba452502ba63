"""Files of the store: whose they are, how they are made, and why one cannot be used."""

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import peewee

from minris.store.models import StoreError, StoreInUse

# What SQLite lays beside a database; each holds changes that are not in the database yet.
JOURNALS = ("-wal", "-journal")

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_REFUSED = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM})


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


def _forbidden(path: Path) -> Path | None:
    """The file of a database, or its folder, that we may not read and write."""
    files = [beside(path, suffix) for suffix in ("", *JOURNALS, "-shm")]
    for file in (*filter(os.path.exists, files), _visible(path.parent)):
        if not os.access(file, os.R_OK | os.W_OK):
            return file
    return None


def not_ours(path: Path) -> StoreError:
    """The refusal of a file that another program made."""
    return StoreError(f"{path} is not a minris database{_whose(path)}")


def why_not(path: Path, error: Exception) -> StoreError:
    """The reason why a database or its copy cannot be used, in a sentence.

    error  what SQLite, peewee or the system said
    """
    cause = getattr(error, "orig", error)  # peewee wraps SQLite's own
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    number = getattr(cause, "errno", None)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreInUse(f"{path} is in use. Stop the running minris first")
    if code == sqlite3.SQLITE_NOTADB:
        return not_ours(path)
    if code == sqlite3.SQLITE_CORRUPT:
        return StoreError(f"{path} is damaged ({cause}): restore a backup{_whose(path)}")
    if code == sqlite3.SQLITE_FULL or number in _FULL:
        return StoreError(f"there is no room for {path} on its disk")
    if code in _REFUSED or number in _FORBIDDEN:
        if number == errno.EROFS or _is_read_only(path):
            return StoreError(f"{path} is on a read-only file system{_whose(path)}")
        file = _forbidden(path)
        if file or number in _FORBIDDEN:
            file = file or path
            return StoreError(f"no permission to read and write {file}{_whose(file)}")
    return StoreError(f"cannot open {path}: {cause}{_whose(path)}")


@contextlib.contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Say what SQLite or the system refuses as a StoreError that names the file."""
    try:
        yield
    except (sqlite3.Error, peewee.PeeweeException, OSError) as error:
        raise why_not(path, error) from None
