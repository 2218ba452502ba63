"""Imports in slices, between which others write: checked whole first, then all or nothing.

A file is kept in the store until its import has ended, so that an interrupted one goes on at the
next start. Its digest is the mark by which the same file, given again, adds nothing.
"""

import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from minris import log
from minris.access.context import Actor, Context, audit
from minris.dataset.elements import ElementIndex
from minris.interchange.decoding import ReadAs
from minris.interchange.files import is_csv, left_out, numbered, read_items, refused_items
from minris.orders.identities import forget_undone
from minris.orders.scheduling import schedule
from minris.orders.steps import write_patient
from minris.recent import Recent
from minris.standard.status import HttpRefusal, Message, Refusal, Status, joined
from minris.standard.worklist import WAITING_STEP_STATES
from minris.store.models import (
    ImportedFile,
    ImportedPatient,
    Patient,
    RequestedProcedure,
    ScheduledProcedureStep,
    database,
)
from minris.store.rows import (
    erase,
    fetch_rows,
    first_row,
    insert_row,
    known_row,
    set_mark,
    update_row,
)

SLICE_S = 0.1  # seconds that an import holds the store at a time
MOST_NUMBERS = 2000  # made identifiers that are looked up in the archive before
LOOKED_AT = 20  # files that were looked at and not imported, kept for a day
MARK_DAYS = 30  # as long is the same file known again
NO_IMPORT = Message("There is no such import")
BEGUN_STAY = Message("exams that had begun stay: {count}")
CHANGED_STAY = Message("patients stay as the import left them, as they were changed since: {count}")
UNDER_WAY = ("checking", "importing", "taking back")


class How(NamedTuple):
    """How a file is imported.

    read_as  its encoding
    same_id  if a Patient ID belongs to another name: `refuse`, `update` or `separate`
    """

    read_as: ReadAs = ReadAs()
    same_id: str = "separate"

    def text(self) -> str:
        """It as text, for the store."""
        return json.dumps([self.read_as._asdict(), self.same_id])


def how_of(text: str) -> How:
    """The How of a text."""
    read_as, same_id = json.loads(text)
    return How(ReadAs(**read_as), same_id)


Numbered = tuple[int, bytes]  # an item with its number in the file


# In the store's thread


def enter_file(
    ctx: Context, name: str, content: bytes, how: How, wanted: bool, again: bool = False
) -> int:
    """Keep a file to look at or to import; return its row id, or that of the same file before.

    wanted  import it if it is right, else look at it alone
    again   import it although it was imported before
    """
    kind = ("csv" if is_csv(name) else "json" if name.lower().endswith(".json") else "").encode()
    digest = hashlib.sha256(b"\0".join((kind, how.text().encode(), content))).hexdigest()
    states = "('importing', 'taking back')" if again else "('importing', 'taking back', 'done')"
    known = first_row(
        ImportedFile,
        f"digest = ? AND (state IN {states} OR state = 'checking' AND wanted)"
        " ORDER BY id DESC LIMIT 1",
        digest,
        columns="id",
    )
    if known and wanted:
        return int(known.id)
    erase(
        "imported_file WHERE NOT wanted AND id NOT IN"
        f" (SELECT id FROM imported_file WHERE NOT wanted ORDER BY id DESC LIMIT {LOOKED_AT - 1})"
    )
    return insert_row(
        ImportedFile, digest=digest, name=name[:200], how=how.text(), wanted=wanted,
        who=json.dumps(ctx.actor), state="checking", created_at=ctx.stamp(), ended_at="",
        content=content,
    )  # fmt: skip


def want_import(ctx: Context, row_id: int) -> int:
    """Let a file that was looked at be checked again, and imported; return its row id. Refuses 0112.

    That of the same file if it is being imported now, as after a restart: it is not added twice
    """
    known_row(known_import(row_id), NO_IMPORT)
    states = ", ".join(f"'{state}'" for state in UNDER_WAY)
    same = (
        f"wanted AND state IN ({states}) AND id <> ?1"
        " AND digest = (SELECT digest FROM imported_file WHERE id = ?1)"
    )
    if known := first_row(ImportedFile, same, row_id, columns="id"):
        return int(known.id)
    where = "id = ? AND state IN ('checking', 'checked', 'refused')"
    sql = f"UPDATE imported_file SET wanted = 1, state = 'checking', done = 0 WHERE {where}"
    database.execute_sql(sql, (row_id,))
    return row_id


def known_import(row_id: int) -> Any | None:
    """An import without its content, None if there is none."""
    columns = (
        "id, name, how, wanted, who, state, total, done, problem, left_out, created_at, ended_at"
    )
    return first_row(ImportedFile, "id = ?", row_id, columns=columns)


def _a_slice(some: list[Any], first: int) -> Iterable[Any]:
    """What is done in one go, one at least, until its time is over."""
    until = time.monotonic() + SLICE_S
    for one in itertools.islice(some, first, None):
        yield one
        if time.monotonic() >= until:
            return


def try_slice(
    ctx: Context, groups: list[list[Numbered]], first: int, how: How, word: str
) -> tuple[int, list[tuple[int, Refusal]]]:
    """Schedule some items and take that back; return the next place, and what was refused.

    groups  items that may contradict each other, together
    """
    refusals, place = [], first
    with database.atomic() as trial:
        for group in _a_slice(groups, first):
            for number, item in group:
                try:
                    schedule(ctx, item, how.same_id, trial=True)
                except Refusal as refusal:
                    refusals.append((number, numbered(refusal, number, word)))
            place += 1
        trial.rollback()
    return place, refusals


def import_slice(
    ctx: Context, row_id: int, items: list[Numbered], first: int, how: How, word: str
) -> int:
    """Schedule a slice of items for good; return the next place. Refuses as `schedule`."""
    with database.atomic():
        (before,) = database.execute_sql(
            "SELECT coalesce(max(id), 0) FROM scheduled_procedure_step"
        ).fetchone()
        place = first
        set_mark("importing", str(row_id))  # what it changes of patients is kept, by triggers
        for number, item in _a_slice(items, first):
            try:
                schedule(ctx, item, how.same_id)
            except Refusal as refusal:
                raise numbered(refusal, number, word) from None
            place += 1
        erase("mark WHERE name = 'importing'")
        database.execute_sql(
            "INSERT INTO imported_step (import_id, step_id)"
            " SELECT ?, id FROM scheduled_procedure_step WHERE id > ?",
            (row_id, before),
        )
        update_row(ImportedFile, row_id, done=place)
    return place


def take_back_slice(ctx: Context, row_id: int) -> tuple[int, int]:
    """Erase some exams of an import that nobody has begun; return how many, and how many stay."""
    count, of_import = 0, "SELECT step_id FROM imported_step WHERE import_id = ? LIMIT 50"
    with database.atomic():
        ids = [step_id for (step_id,) in database.execute_sql(of_import, (row_id,))]
        for step_id in ids:
            step = first_row(ScheduledProcedureStep, "id = ?", step_id)
            linked = "SELECT 1 FROM performed_scheduled_step WHERE scheduled_id = ?"
            waits = step and step.status in WAITING_STEP_STATES and not step.arrived_at
            if waits and not database.execute_sql(linked, (step_id,)).fetchone():
                _erase_step(row_id, step)
                count += 1
            erase("imported_step WHERE import_id = ? AND step_id = ?", row_id, step_id)
    return count, len(ids) - count


def give_back_slice(ctx: Context, row_id: int) -> tuple[int, int]:
    """Give some patients back what an import changed; return how many, and how many stay.

    One stays whom somebody else has changed since
    """
    count = 0
    with database.atomic():
        found = fetch_rows(ImportedPatient, "import_id = ? LIMIT 50", row_id)
        for one in found:
            patient = Patient.get_by_id(one.patient_id)
            if bytes(patient.data) == bytes(one.after):
                write_patient(patient, ElementIndex(one.before), ctx.stamp())
                forget_undone({patient.id})
                audit(ctx, "patient given back", patient.patient_id)
                count += 1
            erase("imported_patient WHERE import_id = ? AND patient_id = ?", row_id, patient.id)
    return count, len(found) - count


def _erase_step(row_id: int, step: Any) -> None:
    """Erase an exam, with its order and its patient if they came with this import and are alone."""
    began = "(SELECT created_at FROM imported_file WHERE id = ?)"
    for table in ("scheduled_station", "step_seen"):
        erase(f"{table} WHERE step_id = ?", step.id)
    erase("scheduled_procedure_step WHERE id = ?", step.id)
    order = first_row(RequestedProcedure, "id = ?", step.procedure_id)
    erase(
        f"requested_procedure WHERE id = ? AND created_at >= {began} AND NOT EXISTS"
        " (SELECT 1 FROM scheduled_procedure_step s WHERE s.procedure_id = requested_procedure.id)",
        order.id, row_id,
    )  # fmt: skip
    erase(
        f"patient WHERE id = ? AND created_at >= {began} AND NOT EXISTS"
        " (SELECT 1 FROM requested_procedure r WHERE r.patient_id = patient.id)",
        order.patient_id, row_id,
    )  # fmt: skip


def note_total(row_id: int, total: int) -> None:
    """Note the number of items of a file that is checked now."""
    update_row(ImportedFile, row_id, total=total, done=0)


def note_state(row_id: int, state: str, refusal: Refusal | None = None) -> None:
    """Enter a state of an import, with the reason if it was refused."""
    columns = {"problem": json.dumps([refusal.status, str(refusal.detail)])} if refusal else {}
    update_row(ImportedFile, row_id, state=state, **columns)


def end_import(
    ctx: Context, row_id: int, state: str, refusal: Refusal | None = None, left: Iterable[str] = ()
) -> None:
    """End an import; what a person looks at is kept for a day.

    left  the columns that were left out
    """
    one = known_import(row_id)
    if one and one.wanted:
        columns = json.dumps([*left])
        update_row(ImportedFile, row_id, ended_at=ctx.stamp(), content=b"", left_out=columns)
        counts = Message("{done} of {count} rows", done=one.done, count=one.total)
        audit(ctx, "file imported" if state == "done" else "import refused", one.name, counts)
        log.info("import %d by %s: %s", row_id, ctx.actor, state)
        erase("imported_patient WHERE import_id = ?", row_id)
    note_state(row_id, state, refusal)


def purge_imports(ctx: Context) -> int:
    """Forget old imports, and what was looked at alone; return their number."""
    count = erase("imported_file WHERE NOT wanted AND created_at < ?", ctx.stamp(days=-1))
    count += erase(
        "imported_file WHERE ended_at <> '' AND ended_at < ?", ctx.stamp(days=-MARK_DAYS)
    )
    erase("imported_step WHERE import_id NOT IN (SELECT id FROM imported_file)")
    return count


# Reading


def imported_before(row_id: int) -> str:
    """When the same file was imported before, empty if never."""
    sql = (
        "SELECT max(b.ended_at) FROM imported_file a JOIN imported_file b ON b.digest = a.digest"
        " WHERE a.id = ? AND b.id <> a.id AND b.state = 'done'"
    )
    (at,) = database.execute_sql(sql, (row_id,)).fetchone()
    return at or ""


def imported_content(row_id: int) -> bytes:
    """The file of an import, empty after its end."""
    row = first_row(ImportedFile, "id = ?", row_id, columns="content")
    return bytes(known_row(row, NO_IMPORT).content)


def imported_data(row_id: int) -> list[bytes]:
    """The data sets of the exams that came with an import."""
    sql = (
        "SELECT s.data FROM imported_step i JOIN scheduled_procedure_step s ON s.id = i.step_id"
        " WHERE i.import_id = ? ORDER BY s.id"
    )
    return [bytes(data) for (data,) in database.execute_sql(sql, (row_id,))]


def open_imports() -> list[int]:
    """The imports that have not ended."""
    states = ", ".join(f"'{state}'" for state in UNDER_WAY)
    return [one.id for one in fetch_rows(ImportedFile, f"state IN ({states})", columns="id")]


# The work


class Importer:
    """Works at imports.

    context  returns a Context for an Actor
    call     runs a core function in the store's thread and returns its result
    """

    def __init__(self, context: Callable[[Actor], Context], call: Callable[..., Any]) -> None:
        self.context, self.call = context, call
        self.before: Callable[[int], None] = lambda count: None  # so many numbers may be made
        self.lock = threading.Lock()
        self.refusals: Recent[int, Refusal] = Recent(50)  # in words that can be translated

    def work(self, row_id: int) -> None:
        """Do what there is to do for an import, to its end."""
        one = known_import(row_id)
        if not one or one.state not in UNDER_WAY:
            return
        ctx = self.context(Actor(*json.loads(one.who)))
        if one.state == "taking back":
            self.fail(row_id, self.refusal_of(one))
            return
        try:
            self._forward(ctx, one)
        except HttpRefusal:  # of the store, not of an item
            raise
        except Refusal as refusal:
            self.fail(row_id, refusal)

    def fail(self, row_id: int, refusal: Refusal) -> None:
        """End an import that is refused; what was imported is taken back."""
        one = known_row(known_import(row_id), NO_IMPORT)
        ctx = self.context(Actor(*json.loads(one.who)))
        with self.lock:
            self.refusals[row_id] = refusal
        if one.state == "checking":
            self.call(end_import, ctx, row_id, "refused", refusal)
            return
        self.call(note_state, row_id, "taking back", refusal)
        words = [refusal.detail]
        for core, told in ((take_back_slice, BEGUN_STAY), (give_back_slice, CHANGED_STAY)):
            stay = 0
            while sum(found := self.call(core, ctx, row_id)):
                stay += found[1]
            if stay:
                words.append(Message(told.key, count=stay))
                log.warning("import %d is taken back; %s", row_id, words[-1])
        refusal = Refusal(refusal.status, joined(words, "\n"), refusal.problems)
        with self.lock:
            self.refusals[row_id] = refusal
        self.call(end_import, ctx, row_id, "taken back", refusal)

    def refusal_of(self, one: Any) -> Refusal:
        """Why an import was refused or taken back."""
        with self.lock:
            if known := self.refusals.get(one.id):
                return known
        status, detail = json.loads(one.problem or f'[{Status.PROCESSING_FAILURE}, ""]')
        return Refusal(Status(status), Message(detail))

    def words(self, name: str, one: Any) -> str:
        """What was done by an import that has ended. Refuses as `schedule` if it was not."""
        if one.state != "done":
            raise self.refusal_of(one)
        return f"{name}: {imported_words(one)}"

    def _forward(self, ctx: Context, one: Any) -> None:
        """Check a file, and import it if it is wanted. Refuses as `schedule`."""
        how, word = how_of(one.how), "row" if is_csv(one.name) else "item"
        usual = ctx.config.clinic.import_encoding
        content = imported_content(one.id)
        found = read_items(one.name, content, how.read_as, usual)
        # an empty row of a table counts, but has no item
        items = [(number, item) for number, item in enumerate(found, 1) if item]
        if one.state == "checking":
            self._check(ctx, one, items, how, word)
            one.state = "importing" if one.wanted else "checked"
            self.call(note_state, one.id, one.state)
        if one.state == "importing":
            self.before(min(len(items) - one.done, MOST_NUMBERS))
            place = one.done
            while place < len(items):
                place = self.call(import_slice, ctx, one.id, items, place, how, word)
            left = left_out(one.name, content, how.read_as, usual)
            self.call(end_import, ctx, one.id, "done", None, left)

    def _check(self, ctx: Context, one: Any, items: list[Numbered], how: How, word: str) -> None:
        """Try the items of a file. Refuses as `schedule`, with a line for each wrong one."""
        if not items:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("The file has no item"))
        self.call(note_total, one.id, len(items))
        groups: dict[str, list[Numbered]] = {}
        for number, item in items:
            subject = subject_of(item, how.same_id) or str(number)
            groups.setdefault(subject, []).append((number, item))
        tried, place = list(groups.values()), 0
        refusals: list[tuple[int, Refusal]] = []
        while place < len(tried):
            place, more = self.call(try_slice, ctx, tried, place, how, word)
            refusals += more
        if refusals:
            refusals.sort(key=lambda one: one[0])
            raise refused_items([refusal for _, refusal in refusals])


def subject_of(item: bytes, same_id: str) -> str:
    """What items have in common that may contradict each other: study, or patient; "" for none."""
    index = ElementIndex(item)
    study = index.get("StudyInstanceUID")
    if study or same_id == "separate":
        return study
    return f"patient {index.get('PatientID')}" if index.get("PatientID") else ""


def import_now(
    ctx: Context, name: str, content: bytes, how: How = How(), again: bool = False
) -> str:
    """Import a file in the present transaction; return what was done. Refuses as `schedule`."""
    row_id = enter_file(ctx, name, content, how, True, again)
    if words := words_of_repeat(name, known_import(row_id)):
        return words
    importer = Importer(lambda actor: ctx, lambda core, *arguments: core(*arguments))
    importer.work(row_id)
    return importer.words(name, known_import(row_id))


def imported_words(one: Any) -> Message:
    """What was imported, and what was left out."""
    notes = [Message("Imported: {count}", count=one.done)]
    if left := json.loads(one.left_out):
        notes.append(Message("columns left out: {names}", names=", ".join(left)))
    if missing := _not_told(one.id):
        notes.append(Message("Without birth date or sex: {count}", count=missing))
    if similar := _known_with_other_ids(one.id):
        names = ", ".join([*similar[:10], *(["…"] if len(similar) > 10 else [])])
        notes.append(Message("perhaps known already, with other IDs: {names}", names=names))
    return joined(notes, "; ")


_ITS_PATIENTS = (
    "FROM patient p WHERE p.id IN (SELECT r.patient_id FROM imported_step i"
    " JOIN scheduled_procedure_step s ON s.id = i.step_id"
    " JOIN requested_procedure r ON r.id = s.procedure_id WHERE i.import_id = ?)"
)


def _not_told(row_id: int) -> int:
    """How many patients of an import have no birth date or no sex, which is a CS of two bytes."""
    missing = "(p.patient_birth_date = '' OR instr(p.data, X'1000400043530200') = 0)"
    sql = f"SELECT count(*) {_ITS_PATIENTS} AND {missing}"
    return int(database.execute_sql(sql, (row_id,)).fetchone()[0])


def _known_with_other_ids(row_id: int) -> list[str]:
    """Patient IDs of the same name as one of an import, whose birth date is the same or not known."""
    sql = (
        "SELECT DISTINCT o.patient_id FROM patient o JOIN (SELECT p.id, p.name_key, p.patient_id,"
        f" p.patient_birth_date AS born {_ITS_PATIENTS}) n ON o.name_key = n.name_key"
        " WHERE o.patient_id <> n.patient_id AND o.name_key <> '' AND (o.patient_birth_date = n.born"
        " OR o.patient_birth_date = '' OR n.born = '') ORDER BY 1 LIMIT 11"
    )
    return [patient_id for (patient_id,) in database.execute_sql(sql, (row_id,))]


def words_of_repeat(name: str, one: Any) -> str:
    """What is said of a file that was imported before, empty if it was not."""
    if one.state != "done":
        return ""
    return f"{name}: imported already at {one.ended_at}, nothing was added (--again adds it again)"
