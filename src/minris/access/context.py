"""Who asks, when, with which devices known; and the audit line of it."""

import dataclasses
import datetime
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from minris.config.ini import Config, Device
from minris.dataset.times import utc_stamp
from minris.standard.status import Message, Refusal, Status
from minris.standard.uids import new_uid
from minris.store.models import Audit, database
from minris.store.rows import erase, fetch_rows, set_mark


class Actor(NamedTuple):
    """Who asks: an AE title with its address, or a user, or a job of our own."""

    name: str
    address: str = ""
    role: str = ""
    called: str = ""  # the AE title by which it called us

    def __str__(self) -> str:
        return f"{self.name}@{self.address}" if self.address else self.name


def utc_now() -> datetime.datetime:
    """Now, aware, in UTC."""
    return datetime.datetime.now(datetime.UTC)


@dataclasses.dataclass(frozen=True)
class Context:
    """The circumstances of one request; tests give another clock and other UIDs."""

    config: Config
    actor: Actor = Actor("minris")
    now: Callable[[], datetime.datetime] = utc_now
    new_uid: Callable[[], str] = new_uid
    devices: tuple[Device, ...] = ()

    def by(self, actor: Actor) -> "Context":
        """The same circumstances for somebody else."""
        return dataclasses.replace(self, actor=actor)

    def local_now(self) -> datetime.datetime:
        """Now on the clock of the clinic."""
        return self.now().astimezone(self.config.zone)

    def today(self) -> str:
        """Today at the clinic, as a DA value."""
        return f"{self.local_now():%Y%m%d}"

    def stamp(self, **later: float) -> str:
        """Now in UTC as the store keeps it, or so much later (hours=…): text that sorts."""
        return utc_stamp(self.now().astimezone(datetime.UTC) + datetime.timedelta(**later))


def audit(ctx: Context, what: str, about: str, detail: str = "") -> None:
    """Keep who did what to which object; part of the transaction that does it."""
    line = (ctx.stamp(), str(ctx.actor), what, about, detail)
    last = database.execute_sql("SELECT digest FROM audit ORDER BY id DESC LIMIT 1").fetchone()
    digest = audit_digest(last[0] if last else "", line)
    database.execute_sql(
        "INSERT INTO audit (at, who, what, about, detail, digest) VALUES (?, ?, ?, ?, ?, ?)",
        (*line, digest),
    )


def audit_digest(before: str, line: tuple[str, ...]) -> str:
    """The digest of an audit line behind another one: SHA-256 of both as a list in JSON."""
    text = json.dumps([before, *line], ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


@dataclasses.dataclass(frozen=True)
class AuditChain:
    """Whether the audit log is as it was written.

    count   its lines; digest: of the last one, by which two copies are compared
    broken  id and time of the first line that does not follow from the one before, None for none
    """

    count: int
    digest: str
    broken: tuple[int, str] | None


def check_audit() -> AuditChain:
    """Hold the audit log against its digests. Lines of before there were any are taken as they are."""
    before, count, broken = None, 0, None
    for row_id, *line, digest in database.execute_sql(
        "SELECT id, at, who, what, about, detail, digest FROM audit ORDER BY id"
    ):
        if before is not None and not broken and (before or digest):
            right = audit_digest(before, tuple(line))
            broken = None if hmac.compare_digest(right, digest) else (row_id, line[0])
        before, count = digest, count + 1
    return AuditChain(count, before or "", broken)


def audit_lines(text: str, before: int = 0, most: int = 200) -> list[Any]:
    """The newest audit lines in which a text stands, those before an id where one is given."""
    text = text.strip()
    line = "lower(who || char(10) || what || char(10) || about || char(10) || detail)"
    return fetch_rows(
        Audit,
        f"(? = '' OR instr({line}, lower(?))) AND (? = 0 OR id < ?) ORDER BY id DESC LIMIT ?",
        text, text, before, before, most,
    )  # fmt: skip


def purge_audit(old: str) -> int:
    """Erase the audit lines of before a time: how many."""
    set_mark("audit purge", old)
    count = erase("audit WHERE at < ?", old)
    erase("mark WHERE name = 'audit purge'")
    return count


def device_of(ctx: Context, ae_title: str) -> Device | None:
    """The device of an AE title, None where it is not registered."""
    return next((one for one in ctx.devices if ae_title in one.ae_titles), None)


def needs_reason(words: str) -> None:
    """Refuse (0106) what is done without a reason."""
    if not words.strip():
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("A reason is needed"))


def archive_of(ctx: Context) -> Device | None:
    """The archive that is asked: the one that is set, else the one device whose role is archive."""
    title = ctx.config.commitment.archive
    found = [one for one in ctx.devices
             if (title in one.ae_titles if title else one.role == "archive")]  # fmt: skip
    return found[0] if len(found) == 1 else None
