"""The context of a request: who asks, when, which devices are known; and the audit log."""

import dataclasses
import datetime
import hashlib
import hmac
import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from minris.config.ini import Config, Device
from minris.dataset.times import utc_stamp
from minris.standard.status import Message, Refusal, Status
from minris.standard.uids import new_uid
from minris.store.models import Audit, database
from minris.store.rows import erase, fetch_rows, get_mark, set_mark


class Actor(NamedTuple):
    """Who asks: an AE title with its address, a user, or a job of this system."""

    name: str
    address: str = ""
    role: str = ""
    called: str = ""  # called AE title

    def __str__(self) -> str:
        return f"{self.name}@{self.address}" if self.address else self.name


def utc_now() -> datetime.datetime:
    """The current time in UTC, aware."""
    return datetime.datetime.now(datetime.UTC)


@dataclasses.dataclass(frozen=True)
class Context:
    """The context of one request; tests pass another clock and other UIDs."""

    config: Config
    actor: Actor = Actor("minris")
    now: Callable[[], datetime.datetime] = utc_now
    new_uid: Callable[[], str] = new_uid
    devices: tuple[Device, ...] = ()

    def by(self, actor: Actor) -> "Context":
        """The same context for another actor."""
        return dataclasses.replace(self, actor=actor)

    def local_now(self) -> datetime.datetime:
        """The current time at the clinic."""
        return self.now().astimezone(self.config.zone)

    def today(self) -> str:
        """The date at the clinic, as a DA value."""
        return f"{self.local_now():%Y%m%d}"

    def stamp(self, **later: float) -> str:
        """The current time in UTC as text that sorts, plus an offset such as hours=-1."""
        return utc_stamp(self.now().astimezone(datetime.UTC) + datetime.timedelta(**later))


def clinic_time(ctx: Context, stamp: str) -> datetime.datetime | str:
    """A time of the store by the clinic's clock; a dash for none."""
    return datetime.datetime.fromisoformat(stamp).astimezone(ctx.config.zone) if stamp else "-"


AUDIT_START = "audit begins after"  # the mark with the digest of the last line that was let go


def audit(ctx: Context, what: str, about: str, detail: str = "") -> None:
    """Add an audit line, in the transaction of the change."""
    line = (ctx.stamp(), str(ctx.actor), what, about, detail)
    last = database.execute_sql("SELECT digest FROM audit ORDER BY id DESC LIMIT 1").fetchone()
    digest = audit_digest(last[0] if last else get_mark(AUDIT_START), line)
    database.execute_sql(
        "INSERT INTO audit (at, who, what, about, detail, digest) VALUES (?, ?, ?, ?, ?, ?)",
        (*line, digest),
    )


def audit_digest(before: str, line: tuple[str, ...]) -> str:
    """The digest of an audit line: SHA-256 of the digest before it and the line, as a JSON list."""
    text = json.dumps([before, *line], ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


@dataclasses.dataclass(frozen=True)
class AuditChain:
    """The result of a check of the audit log.

    count   number of lines; digest: that of the last line, to compare two copies
    broken  id and time of the first line that does not follow from the one before, or None
    """

    count: int
    digest: str
    broken: tuple[int, str] | None


def check_audit() -> AuditChain:
    """Check the audit log against its digests. Old lines without a digest are accepted.

    Where lines were let go, the first one follows from the last of those.
    """
    count, broken = 0, None
    before: str | None = get_mark(AUDIT_START) or None
    for row_id, *line, digest in database.execute_sql(
        "SELECT id, at, who, what, about, detail, digest FROM audit ORDER BY id"
    ):
        if before is not None and not broken and (before or digest):
            right = audit_digest(before, tuple(line))
            broken = None if hmac.compare_digest(right, digest) else (row_id, line[0])
        before, count = digest, count + 1
    return AuditChain(count, before or "", broken)


def audit_lines(text: str, before: int = 0, most: int = 200) -> list[Any]:
    """The newest audit lines that contain a text; with `before`, only those with a lower id."""
    text = text.strip()
    line = "lower(who || char(10) || what || char(10) || about || char(10) || detail)"
    return fetch_rows(
        Audit,
        f"(? = '' OR instr({line}, lower(?))) AND (? = 0 OR id < ?) ORDER BY id DESC LIMIT ?",
        text, text, before, before, most,
    )  # fmt: skip


def purge_audit(old: str, most: int = 1 << 60) -> int:
    """Delete the oldest audit lines before the first one since a time; return their number."""
    first = "SELECT coalesce(min(id), (SELECT max(id) + 1 FROM audit)) FROM audit WHERE at >= ?"
    (row_id,) = database.execute_sql(first, (old,)).fetchone()
    (begin,) = database.execute_sql("SELECT coalesce(min(id), 0) FROM audit").fetchone()
    return let_audit_go(min(row_id or 0, begin + most))


def let_audit_go(row_id: int) -> int:
    """Delete the audit lines before a row; return their number. The chain goes on from them."""
    last = "SELECT digest FROM audit WHERE id < ? ORDER BY id DESC LIMIT 1"
    if not (found := database.execute_sql(last, (row_id,)).fetchone()):
        return 0
    set_mark(AUDIT_START, found[0])
    set_mark("audit purge", str(row_id))
    count = erase("audit WHERE id < ?", row_id)
    erase("mark WHERE name = 'audit purge'")
    return count


def device_titled(devices: Iterable[Device], ae_title: str) -> Device | None:
    """The device with an AE title, None if there is none: of two the first, that of config.ini."""
    return next((one for one in devices if ae_title in one.ae_titles), None)


def modalities_of(devices: Iterable[Device]) -> list[Device]:
    """The devices that ask for a worklist."""
    return [device for device in devices if device.role == "modality"]


def device_of(ctx: Context, ae_title: str) -> Device | None:
    """The device with an AE title, None if it is not registered."""
    return device_titled(ctx.devices, ae_title)


def needs_reason(words: str) -> None:
    """Refuse (0106) an empty reason."""
    if not words.strip():
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("A reason is needed"))


def archive_of(ctx: Context) -> Device | None:
    """The archive to query: the configured one, else the only device whose role is archive."""
    if title := ctx.config.commitment.archive:
        return device_of(ctx, title)
    found = [one for one in ctx.devices if one.role == "archive"]
    return found[0] if len(found) == 1 else None
