"""CSV: worklist items and the procedure catalogue."""

import collections
import csv
import io
import itertools
from collections.abc import Iterable
from typing import NamedTuple

from pydicom import datadict

from minris.access.context import Context
from minris.dataset.elements import ElementIndex, sequence_elements, text_elements
from minris.dataset.names import person_name
from minris.dataset.spelling import tidy_code
from minris.interchange.cells import (
    BadCell,
    damaged_identifiers,
    day_comes_first,
    is_identifier,
    plain_cell,
    read_cell,
)
from minris.interchange.decoding import text_of
from minris.interchange.spreadsheets import Sheet, at_row, read_sheet, refused_lines
from minris.orders.catalogue import (
    PROCEDURE_COLUMNS,
    all_procedures,
    apply_procedure,
    retire_procedure,
    save_procedure,
)
from minris.orders.patients import known_with_zeros
from minris.standard.dictionary import BINARY_VRS, vr_of
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.tables import table
from minris.standard.worklist import MWL_ATTRIBUTES, STEP_SEQUENCE
from minris.store.models import ScheduledProcedureStep, database
from minris.store.rows import fetch_rows

# Columns of a CSV file: accepted names, and the keyword they fill. A keyword is accepted too.
CSV_COLUMNS: dict[str, str] = {
    name: row.keyword
    for row in table("""
    names                                           | keyword
    family_name, family name, 姓拼音                | family
    given_name, given name, 名拼音                  | given
    name, patient name, patient_name, 姓名          | PatientName
    patient_id, patient id, id, 病人编号, 患者编号, 病历号 | PatientID
    birth_date, birth date, date of birth, 出生日期 | PatientBirthDate
    sex, gender, 性别                               | PatientSex
    weight, 体重                                    | PatientWeight
    exam, procedure, 检查, 检查项目                 | RequestedProcedureDescription
    device, station, ae_title, 设备                 | ScheduledStationAETitle
    modality, 检查类型, 设备类型                    | Modality
    date, 日期, 检查日期                            | ScheduledProcedureStepStartDate
    time, 时间, 检查时间                            | ScheduledProcedureStepStartTime
    priority, 优先级                                | RequestedProcedurePriority
    physician, referring physician, 申请医生        | ReferringPhysicianName
    accession, accession number, accession_number, 检查号 | AccessionNumber
    height, 身高                                    | PatientSize
    comment, 备注                                   | RequestedProcedureComments
    allergies, 过敏史                               | Allergies
    """)
    for name in row.names.split(", ")
}
# A list to begin with: its first line names columns, its second is an example.
SAMPLE_COLUMNS = (
    ("family_name", "Miller"), ("given_name", "Anna"), ("patient_id", ""),
    ("birth_date", "1978-03-12"), ("sex", "F"), ("exam", "CT chest"), ("device", "CT1"),
    ("date", "2030-01-31"), ("time", "09:30"), ("physician", "House^Gregory"), ("comment", ""),
)  # fmt: skip


def names_of_columns() -> list[str]:
    """The names of columns that a list may have: the first one of each."""
    first = {keyword: name for name, keyword in reversed(CSV_COLUMNS.items())}
    return [name for name, keyword in CSV_COLUMNS.items() if first[keyword] == name]


def sample_list() -> str:
    """A list of one exam, to be filled in."""
    names, cells = zip(*SAMPLE_COLUMNS, strict=True)
    return csv_text(names, [cells])


NO_COLUMN = "Unknown column {value}"


def csv_keyword(name: str) -> str:
    """The keyword that a column fills, or "" for an unknown column."""
    name = tidy_code(name).strip()
    folded = name.casefold().replace("-", " ")
    for one in (folded, folded.replace(" ", "_"), folded.replace("_", " ")):
        if known := CSV_COLUMNS.get(one):
            return known
    tag = datadict.tag_for_keyword(name)
    is_text = tag and vr_of(tag) != "SQ" and vr_of(tag).encode() not in BINARY_VRS
    return name if is_text else ""


def read_csv(text: str) -> Sheet:
    """The table of a list of patients. Refuses 0106."""
    return read_sheet(text, lambda name: bool(csv_keyword(name)))


def twice(names: Iterable[str]) -> list[Message]:
    """What is wrong with columns of one meaning: either may be the right one."""
    counted = collections.Counter(names)
    return [
        Message("There are {count} columns for {value}", count=n, value=name)
        for name, n in counted.items()
        if n > 1
    ]


class _Column(NamedTuple):
    """A column of a list: its place and heading, and what it fills."""

    place: int
    name: str
    keyword: str


def _list_columns(sheet: Sheet, leave_out: bool) -> list[_Column]:
    """The columns of a list. Refuses 0106 for unknown and double ones, and without a name."""
    found = [_Column(i, name, csv_keyword(name)) for i, name in enumerate(sheet.columns)]
    keywords = [one.keyword for one in found if one.keyword]
    unknown = [Message(NO_COLUMN, value=one.name) for one in found if not one.keyword]
    problems = [*([] if leave_out else unknown), *twice(keywords)]
    if not {"PatientName", "family"} & set(keywords):
        problems.append(Message("There is no column for the patient's name"))
    if problems:
        raise refused_lines(problems)
    return [one for one in found if one.keyword]


def unknown_columns(text: str) -> list[str]:
    """The columns of a list that fill nothing."""
    return [name for name in read_csv(text).columns if not csv_keyword(name)]


def items_from_csv(text: str, leave_out: bool = False) -> list[bytes]:
    """The worklist items of a CSV file by the number of their row, completed from the catalogue.

    leave_out  leave out columns that are not known
    Refuses    0106 for unknown columns, without a column for the patient's name, and for each
               cell that is not certain, with its row and column
    """
    sheet = read_csv(text)
    columns, problems = _list_columns(sheet, leave_out), []
    texts = {one: [cells[one.place] for _, cells in sheet.rows] for one in columns}
    day_first = {one: day_comes_first(texts[one]) for one in columns}
    damaged = {one: damaged_identifiers(plain_cell(one.keyword, text) for text in texts[one])
               for one in columns if is_identifier(one.keyword)}  # fmt: skip
    items: list[bytes] = [b""] * sheet.rows[-1][0]
    for number, cells in sheet.rows:
        found: dict[str, str] = {}
        for one in columns:
            try:
                cell = cells[one.place]
                if words := damaged.get(one, {}).get(plain_cell(one.keyword, cell)):
                    raise BadCell(words)
                _add_values(found, read_cell(one.keyword, cell, day_first[one]))
            except BadCell as bad:
                problems.append(at_row(number, bad.words, one.name))
        if not problems:
            items[number - 1] = _item_of(found)
            index = ElementIndex(items[number - 1])
            if other := known_with_zeros(index):
                words = Message("{value} may have lost zeros in front: this patient has {other}",
                                value=index.get("PatientID"), other=other)  # fmt: skip
                problems.append(at_row(number, words))
    if problems:
        raise refused_lines(problems)
    return items


def _add_values(found: dict[str, str], values: dict[str, str]) -> None:
    """Add the values of a cell to those of its row. Raises BadCell if they contradict."""
    for keyword, value in values.items():
        known = found.get(keyword, "")
        if known and value and known.ljust(6, "0") != value.ljust(6, "0"):
            raise BadCell(Message("{value} contradicts another column", value=value))
        found[keyword] = known or value


def _item_of(cells: dict[str, str]) -> bytes:
    """The worklist item of the values of a row."""
    if "family" in cells or "given" in cells:
        typed = person_name(cells.pop("family", ""), cells.pop("given", ""), "")
        groups = itertools.zip_longest(
            typed.split("="), cells.get("PatientName", "").split("="), fillvalue=""
        )
        cells["PatientName"] = "=".join(one or other for one, other in groups).rstrip("=")
    step = {keyword: cells.pop(keyword) for keyword in STEP_KEYWORDS if keyword in cells}
    texts = text_elements(**{keyword: text for keyword, text in cells.items() if text})
    sequence = sequence_elements(ScheduledProcedureStepSequence=[text_elements(**step)])
    return apply_procedure(bytes(texts.merged(sequence)))


STEP_KEYWORDS = tuple(attribute.keyword for attribute in MWL_ATTRIBUTES.children((STEP_SEQUENCE,)))
EXPORT_COLUMNS = (
    "PatientID PatientName PatientBirthDate PatientSex AccessionNumber RequestedProcedureID"
    " StudyInstanceUID RequestedProcedureDescription ReferringPhysicianName"
    " ScheduledProcedureStepID ScheduledStationAETitle Modality ScheduledProcedureStepStartDate"
    " ScheduledProcedureStepStartTime ScheduledProcedureStepStatus"
).split()


def no_formula(cell: str) -> str:
    """A cell of a CSV file, quoted if a spreadsheet would take it for a formula."""
    return "'" + cell if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def of_formula(cell: str) -> str:
    """The cell before no_formula."""
    return cell[1:] if cell[:1] == "'" and no_formula(cell[1:]) == cell else cell


def csv_text(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A CSV file of column names and rows; no cell can be taken for a formula."""
    out = io.StringIO()
    csv.writer(out).writerows([head, *(map(no_formula, line) for line in lines)])
    return out.getvalue()


def export_procedures() -> str:
    """The procedure catalogue as CSV for `import_procedures`."""
    lines = (
        [*(str(getattr(one, c)) for c in PROCEDURE_COLUMNS), "yes" if one.retired else ""]
        for one in all_procedures()
    )
    return csv_text([*PROCEDURE_COLUMNS, "retired"], lines)


def import_procedures(ctx: Context, content: bytes, encoding: str = "") -> int:
    """Create or change procedures by code from CSV, all or none; return their number.

    content  columns of PROCEDURE_COLUMNS, and optionally retired; code and meaning are required,
             columns that are absent stay unchanged
    Refuses  0106 with a line per wrong row
    """
    known_columns = {*PROCEDURE_COLUMNS, "retired"}
    text = text_of(content, encoding, ctx.config.clinic.import_encoding)
    head, lines = read_sheet(text, lambda name: name.strip().casefold() in known_columns)
    columns, count = [name.casefold() for name in head], 0
    problems = twice(name for name in columns if name in known_columns)
    problems += [
        Message("Unknown column {column}", column=column)
        for column in ("code", "meaning")
        if column not in columns
    ]
    if problems:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(0, w) for w in problems])
    with database.atomic():
        stored = {one.code: one for one in all_procedures()}
        for number, line in lines:
            row = {key: of_formula(cell.strip()) for key, cell in zip(columns, line, strict=True)}
            known = stored.get(row.get("code", ""))
            for key in PROCEDURE_COLUMNS.keys() - set(columns) if known else ():
                row[key] = str(getattr(known, key))
            try:
                save_procedure(ctx, row)
                said = row.get("retired", "yes" if known and known.retired else "")
                if said.casefold() in ("yes", "1", "true"):
                    retire_procedure(ctx, row["code"])
                count += 1
            except Refusal as refusal:
                words = Message("Row {number}: {words}", number=number, words=refusal.detail)
                problems.append(words)
        if problems:
            found = [Problem(0, words) for words in problems[:50]]
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=found)
    return count


def export_csv() -> str:
    """The scheduled steps as CSV, one row each."""

    def cells(data: bytes) -> list[str]:
        index = ElementIndex(data)
        item = index.item("ScheduledProcedureStepSequence")
        return [(item if key in STEP_KEYWORDS else index).get(key) for key in EXPORT_COLUMNS]

    steps = fetch_rows(ScheduledProcedureStep, "1 = 1 ORDER BY start_date, start_time, id")
    return csv_text(EXPORT_COLUMNS, (cells(step.data) for step in steps))
