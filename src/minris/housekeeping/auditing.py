"""The audit log within its bound: the oldest lines go to compressed files, and none is lost."""

import collections
import gzip
import json
import os
import zlib
from pathlib import Path

from minris import log
from minris.access.context import Context, audit, let_audit_go
from minris.store.files import open_private
from minris.store.models import database

MOVED_AT_ONCE = 4 << 20  # bytes of lines moved at once, while nobody else writes
_LINE = "at, who, what, about, detail, digest"
_BYTES = "length(CAST(at || who || what || about || detail || digest AS BLOB)) + 50"


def archive_audit(ctx: Context) -> int:
    """Move the oldest lines beyond [housekeeping] audit_megabytes to a file; return their number.

    They go to a file beside the backups, one JSON list a line, and stay in the store if it cannot
    be written. The first line that is left follows from the last one of the file.
    """
    (size,) = database.execute_sql(f"SELECT coalesce(sum({_BYTES}), 0) FROM audit").fetchone()
    most = ctx.config.housekeeping.audit_megabytes << 20
    if size <= most:
        return 0
    wanted, lines = (
        min(MOVED_AT_ONCE, size - most * 3 // 4),
        [],
    )  # a quarter at least, not some each night
    for *line, length in database.execute_sql(
        f"SELECT id, {_LINE}, {_BYTES} FROM audit ORDER BY id"
    ):
        if wanted <= 0:
            break
        wanted -= length
        lines.append(line)
    last_id, at, *_, digest = lines[-1]
    name = f"audit-{at[:10].replace('-', '')}-{last_id:09}.jsonl.gz"
    try:
        _write(ctx.config.backup_folder / name, lines)
    except OSError as error:
        log.error("cannot archive the oldest audit lines, they stay in the store: %s", error)
        return 0
    count = let_audit_go(last_id + 1)
    audit(ctx, "audit lines archived", name, f"{count} until {at}; their last digest is {digest}")
    log.info("audit lines archived: %d, in %s", count, name)
    return count


def _write(path: Path, lines: list[list[object]]) -> None:
    """Write lines to a file that is whole or not there."""
    made = path.with_suffix(".new")
    made.unlink(missing_ok=True)
    with os.fdopen(open_private(made), "wb") as file:
        with gzip.GzipFile("", "wb", 6, file, 0) as packed:
            for line in lines:
                packed.write(json.dumps(line, ensure_ascii=False).encode(errors="surrogatepass"))
                packed.write(b"\n")
        file.flush()
        os.fsync(file.fileno())
    made.replace(path)


def purge_archives(ctx: Context) -> bool:
    """Delete the oldest file beyond [housekeeping]; whether there was one.

    One goes whose lines are all older than keep_audit_days, or while all have more bytes than
    audit_files_megabytes. The digest from which the next file follows is in the audit log.
    """
    keep, old = ctx.config.housekeeping, ""
    if keep.keep_audit_days:
        old = ctx.stamp(days=-keep.keep_audit_days)[:10].replace("-", "")
    found = sorted(ctx.config.backup_folder.glob("audit-????????-*.jsonl.gz"))
    size = sum(path.stat().st_size for path in found)
    if not found or not (found[0].name[6:14] < old or size > keep.audit_files_megabytes << 20):
        return False
    try:
        ending = _ending(found[0])
        found[0].unlink()
    except OSError as error:
        log.error("the old audit file %s stays: %s", found[0], error)
        return False
    audit(ctx, "audit file deleted", found[0].name, ending)
    return True


def _ending(path: Path) -> str:
    """How far a file goes, in words, with its last digest."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="surrogatepass") as file:
            ((count, last),) = collections.deque(enumerate(file, 1), 1)
        _, at, *_, digest = json.loads(last)
    except (EOFError, zlib.error, ValueError, OSError) as error:
        return f"it could not be read: {error}"
    return f"{count} until {at}; their last digest is {digest}"
