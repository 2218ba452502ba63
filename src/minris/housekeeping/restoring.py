"""Restoring a backup: what the replaced store knew is kept, and the gap is named until confirmed."""

import contextlib
import dataclasses
import datetime
import functools
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from minris.access.context import (
    AUDIT_START,
    Context,
    audit,
    audit_digest,
    clinic_time,
    purge_audit,
)
from minris.orders.lookup import counter_name, leap
from minris.standard.status import Message
from minris.store.files import in_words
from minris.store.models import (
    Audit,
    Patient,
    RequestedProcedure,
    ScheduledProcedureStep,
    database,
)
from minris.store.rows import (
    erase,
    fetch_rows,
    first_row,
    get_mark,
    insert_rows,
    row_exists,
    set_mark,
)
from minris.store.sqlite import (
    COUNT_STORE,
    StoreFacts,
    bind_store,
    open_store,
    restore_store,
    source_of,
    store_facts,
)

# More than a clinic gives on a day: what counters leap by, for each day that a backup is old.
LEAP_OF_A_DAY, LONGEST_LEAP_DAYS = 1000, 365
MOST_NAMED = 200  # identifiers named
IDENTIFIERS = (
    ("patient_id", Patient),
    ("accession_number", RequestedProcedure),
    ("requested_procedure_id", RequestedProcedure),
    ("scheduled_procedure_step_id", ScheduledProcedureStep),
)


@dataclasses.dataclass(frozen=True)
class Gap:
    """What a restore left out; kept until an administrator confirms it.

    at          when the backup was restored; since, until: the newest change of the backup, and
                of the store that it replaced, "" if there was none that could be read
    leap        the numbers that counters skip, 0 if the replaced store told the last ones
    patients, exams                 how many are missing that the replaced store had
    patient_ids, accession_numbers  theirs, MOST_NAMED at most
    erased      (row id, Patient ID) of those who had been erased since, and are back
    revived     users and tokens are those of the backup
    unread      tables of the replaced store that could not be read
    """

    backup: str
    at: str
    since: str
    until: str
    leap: int
    patients: int
    exams: int
    patient_ids: list[str]
    accession_numbers: list[str]
    erased: list[tuple[int, str]]
    revived: bool
    unread: list[str]


class _Replaced:
    """The store that a backup replaces, as far as it is there and can be read."""

    def __init__(self, path: Path) -> None:
        self.unread: set[str] = set()
        self.connection = None
        if path.exists():
            with self._noting("store"):
                self.connection = sqlite3.connect(source_of(path), uri=True)
        [(told,)] = [*self.rows("store", "PRAGMA quick_check(1)")] or [("",)]
        self.whole = told == "ok"

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError):
            self.unread.add(what)

    def rows(self, what: str, sql: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, up to the first that cannot be read."""
        if self.connection and "store" not in self.unread:
            with self._noting(what):
                yield from self.connection.execute(sql, values)

    def close(self) -> None:
        if self.connection:
            self.connection.close()


def restore(ctx: Context, path: Path, backup: Path) -> tuple[Path | None, Gap]:
    """Let a backup be the store; where the replaced one is kept, if there was one, and the gap.

    The caller holds the StoreLock. Raises StoreError if the file is no backup of minris
    """
    found: list[Gap] = []
    kept = restore_store(path, backup, functools.partial(_carry_over, ctx, path, backup, found))
    open_store(path)
    return kept, found[-1]


def _carry_over(ctx: Context, path: Path, backup: Path, found: list[Gap], new: Path) -> None:
    """Take over into a backup what must not be forgotten of the store that it replaces."""
    bind_store(new)
    with (
        contextlib.closing(_Replaced(path)) as replaced,
        database.connection_context(),
        database.atomic(),
    ):
        ours = StoreFacts(*database.execute_sql(COUNT_STORE).fetchone())
        found += [*gaps(), *_gaps_of(replaced)]
        (last,) = database.execute_sql("SELECT coalesce(max(id), 0) FROM audit").fetchone()
        went_on = _carry_audit(replaced)
        revived = not (went_on and _carry_access(replaced))
        erase("session")
        for name, number in replaced.rows("counter", "SELECT name, last FROM counter"):
            database.execute_sql(
                "INSERT INTO counter (name, last) VALUES (?, ?) ON CONFLICT (name)"
                " DO UPDATE SET last = max(last, excluded.last)",
                (name, number),
            )
        missing = _note_lost(replaced)
        sure = went_on and replaced.whole and not replaced.unread
        theirs = next(replaced.rows("newest change", COUNT_STORE), None)
        until = StoreFacts(*theirs).newest if theirs else ""
        gap = Gap(
            backup=backup.name,
            at=ctx.stamp(),
            since=ours.newest,
            until=until,
            leap=0 if sure else _leap(ctx, ours.newest),
            patients=len(missing["patient_id"]),
            exams=_missing_exams(replaced),
            patient_ids=missing["patient_id"][:MOST_NAMED],
            accession_numbers=missing["accession_number"][:MOST_NAMED],
            erased=_erased_and_back(last),
            revived=revived,
            unread=sorted(replaced.unread),
        )
        if gap.until != gap.since or gap.leap or gap.revived:
            _save([*found, gap])
        found.append(gap)
        audit(ctx, "backup restored", backup.name, f"{ours.newest} .. {until}")


def _carry_audit(replaced: _Replaced) -> bool:
    """Keep the audit lines of the replaced store; whether it had gone on from this backup."""
    sql = "SELECT id, at, who, what, about, detail, digest FROM audit WHERE id > ? ORDER BY id"
    into = f"audit ({sql.partition(' FROM')[0].removeprefix('SELECT ')}) VALUES"
    last, digest = database.execute_sql(
        "SELECT id, digest FROM audit ORDER BY id DESC LIMIT 1"
    ).fetchone() or (0, "")
    same = [*replaced.rows("audit", "SELECT digest FROM audit WHERE id = ?", last)]
    if digest and same == [(digest,)]:
        insert_rows(into, replaced.rows("audit", sql, last))
        return True
    (first,) = next(replaced.rows("audit", "SELECT min(id) FROM audit"), (None,))
    if last and first and first > last:  # it has purged the lines up to those
        purge_audit("9999")
        start = replaced.rows("mark", "SELECT value FROM mark WHERE name = ?", AUDIT_START)
        set_mark(AUDIT_START, next(start, ("",))[0])
        insert_rows(into, replaced.rows("audit", sql, 0))
        return True
    known = {one for (one,) in database.execute_sql("SELECT digest FROM audit")}
    for _, *line, theirs in replaced.rows("audit", sql, 0):
        if theirs not in known | {""}:  # of another chain: it gets a digest of ours
            digest = audit_digest(digest, tuple(line))
            insert_rows(into.replace("(id, ", "("), [(*line, digest)])
    return False


def _carry_access(replaced: _Replaced) -> bool:
    """Let users and tokens be those of the replaced store; False if they cannot be read.

    A password that was changed, and a token that was deleted, stay so.
    """
    found = {}
    for table, columns in (("user", "name, role, password, created_at"),
                           ("token", "name, role, digest, created_at, ae_titles")):  # fmt: skip
        found[f"{table} ({columns})"] = [
            *replaced.rows(table, f"SELECT {columns} FROM {table} ORDER BY id")
        ]
    if replaced.unread & {"user", "token"} or not next(iter(found.values())):
        return False
    erase("session")
    for into, rows_ in found.items():
        erase(into.partition(" ")[0])
        insert_rows(f"{into} VALUES", rows_)
    return True


def _note_lost(replaced: _Replaced) -> dict[str, list[str]]:
    """Note the identifiers of the replaced store that the backup lacks; return them by kind."""
    missing = {}
    for kind, model in IDENTIFIERS:
        table = model._meta.table_name
        sql = f"SELECT DISTINCT {kind} FROM {table} WHERE {kind} <> '' ORDER BY id"
        found = replaced.rows(table, sql)
        missing[kind] = [one for (one,) in found if not row_exists(model, kind, one)]
    lost = [(kind, one) for kind, some in missing.items() for one in some]
    there = "SELECT 1 FROM sqlite_master WHERE name = 'lost_identifier'"
    if next(replaced.rows("lost_identifier", there), None):  # younger than the first release
        lost += replaced.rows("lost_identifier", "SELECT kind, value FROM lost_identifier")
    insert_rows("lost_identifier (kind, value) VALUES ON CONFLICT DO NOTHING", lost)
    return missing


def _missing_exams(replaced: _Replaced) -> int:
    table = "scheduled_procedure_step"
    uids = replaced.rows(table, f"SELECT study_instance_uid FROM {table}")
    return sum(not row_exists(RequestedProcedure, "study_instance_uid", uid) for (uid,) in uids)


def _leap(ctx: Context, since: str) -> int:
    """Let all counters, also those of today, skip what may have been given since."""
    now, clinic = ctx.local_now(), ctx.config.clinic
    age = now - datetime.datetime.fromisoformat(since) if since else datetime.timedelta()
    by = LEAP_OF_A_DAY * (1 + max(0, min(age.days, LONGEST_LEAP_DAYS)))
    database.execute_sql("UPDATE counter SET last = last + ?", (by,))
    for name in ("patient_id", "accession_number", "requested_procedure_id",
                 "scheduled_procedure_step_id"):  # fmt: skip
        pattern = getattr(clinic, f"{name}_format")
        counter = counter_name(pattern, now)
        if not database.execute_sql("SELECT 1 FROM counter WHERE name = ?", (counter,)).fetchone():
            leap(counter, LEAP_OF_A_DAY if "{day" in pattern else by)
    return by


def _erased_and_back(last: int) -> list[tuple[int, str]]:
    """Row id and Patient ID of those who were erased after an audit line, by any ID they had."""
    return [
        (row.id, row.patient_id)
        for one in sorted(_ids_erased_since(last))
        for row in fetch_rows(Patient, "patient_id = ?", one)
    ]


def _ids_erased_since(last: int) -> set[str]:
    """The Patient IDs, former ones too, of those who were erased after an audit line."""
    sql = "SELECT about FROM audit WHERE what = 'patient erased' AND id > ?"
    erased = [one for (one,) in database.execute_sql(sql, (last,))]
    return {former for one in erased for former in (one, *_ids_before(one))}


def _ids_before(patient_id: str) -> set[str]:
    """The Patient IDs that were merged into this one, or corrected to it, by the audit log.

    What is known of a patient besides is erased with the patient.
    """
    found, look = set(), {patient_id}
    while look:
        about = look.pop()
        lines = fetch_rows(Audit, "about = ? AND detail <> '' AND what IN"
                           " ('patients merged', 'patient corrected')", about)  # fmt: skip
        old = {line.detail.partition(" -> ")[0] for line in lines if " -> " in line.detail}
        look |= old - found
        found |= old
    return found


class Outlook(NamedTuple):
    """What a restore would bring back and lose.

    since            the newest change of the backup
    patients, exams  how many would be missing that there are now
    changes          audit lines since
    erased           Patient IDs of those who were erased since, and would be back
    """

    since: str
    patients: int
    exams: int
    changes: int
    erased: list[str]


def outlook(backup: Path) -> Outlook:
    """What restoring a backup now would bring back and lose. Raises StoreError if it is none."""
    facts = store_facts(backup)
    there = contextlib.closing(sqlite3.connect(source_of(backup), uri=True))
    with in_words(backup), there as theirs:
        (last,) = theirs.execute("SELECT coalesce(max(id), 0) FROM audit").fetchone()
        patients = {one for (one,) in theirs.execute("SELECT patient_id FROM patient")}
        studies = {one for (one,) in theirs.execute(f"SELECT {STUDY} FROM requested_procedure")}
    ours = database.execute_sql("SELECT patient_id FROM patient")
    exams = database.execute_sql(f"SELECT {STUDY} FROM scheduled_procedure_step")
    changes = database.execute_sql("SELECT count(*) FROM audit WHERE id > ?", (last,))
    return Outlook(
        since=facts.newest,
        patients=sum(one not in patients for (one,) in ours),
        exams=sum(uid not in studies for (uid,) in exams),
        changes=changes.fetchone()[0],
        erased=sorted(_ids_erased_since(last) & patients),
    )


STUDY = "study_instance_uid"


def note_download(ctx: Context, backup: str) -> None:
    """Note that somebody took a backup away as a file."""
    audit(ctx, "backup downloaded", backup)


def note_order(ctx: Context, backup: str) -> None:
    """Note that somebody let a backup be restored."""
    audit(ctx, "restore ordered", backup)


# The gap, until it is confirmed


def _gaps_in(text: str) -> list[Gap]:
    return [Gap(**one) for one in json.loads(text or "[]")]


def _save(found: list[Gap]) -> None:
    set_mark("gaps", json.dumps([dataclasses.asdict(one) for one in found]))


def gaps() -> list[Gap]:
    """The gaps that no administrator has confirmed, oldest first."""
    return _gaps_in(get_mark("gaps"))


def _gaps_of(replaced: _Replaced) -> list[Gap]:
    rows_ = replaced.rows("mark", "SELECT value FROM mark WHERE name = 'gaps'")
    known = {one.at for one in gaps()}
    return [one for (text,) in rows_ for one in _gaps_in(text) if one.at not in known]


def confirm_gaps(ctx: Context) -> None:
    """Confirm that what the restores left out is known."""
    for gap in gaps():
        audit(ctx, "gap confirmed", gap.backup)
    erase("mark WHERE name = 'gaps'")


def still_back(gap: Gap) -> list[tuple[int, str]]:
    """Row id and Patient ID of those who had been erased and are there again."""
    return [
        (row_id, patient_id)
        for row_id, patient_id in gap.erased
        if first_row(Patient, "id = ? AND patient_id = ?", row_id, patient_id)
    ]


def words_of_gap(ctx: Context, gap: Gap) -> list[Message]:
    """What a restore left out, in sentences."""
    since, until = clinic_time(ctx, gap.since), clinic_time(ctx, gap.until)
    words = [
        Message("{backup}, whose newest change is of {since}, was restored at {at}.",
                backup=gap.backup, since=since, at=clinic_time(ctx, gap.at)),
        Message("What the replaced database had until {until} is missing; patients: "
                "{patients}, exams: {exams}.", until=until, patients=gap.patients, exams=gap.exams)
        if gap.until
        else Message("Everything entered since is missing; there was no database left to compare with."),
        Message("New identifiers skip {count} numbers, past all that may have been assigned since.",
                count=gap.leap)
        if gap.leap
        else Message("New identifiers continue after those assigned by the replaced database."),
    ]  # fmt: skip
    if gap.patient_ids:
        words.append(Message("Missing Patient IDs: {ids}.", ids=", ".join(gap.patient_ids)))
    if gap.accession_numbers:
        told = ", ".join(gap.accession_numbers)
        words.append(Message("Missing accession numbers: {numbers}.", numbers=told))
    if gap.erased:
        told = ", ".join(patient_id for _, patient_id in gap.erased)
        words.append(
            Message("Erased after the backup and now back: {ids}. Erase them again.", ids=told)
        )
    if gap.revived:
        words.append(Message("Passwords and API tokens are those of the backup: any revoked "
                             "since then are valid again."))  # fmt: skip
    if gap.unread:
        told = ", ".join(gap.unread)
        words.append(Message("Could not be read in the replaced database: {what}.", what=told))
    return words


def notice_of_gap(ctx: Context, gap: Gap) -> Message:
    """The notice of a gap at the top of every page, and in the log: it names nobody."""
    return Message(
        "A backup of {since} was restored: everything entered after it is missing. An "
        "administrator must confirm this at /restored.",
        since=clinic_time(ctx, gap.since),
    )
