"""CSV: worklist items and the procedure catalogue."""

import csv
import io
import re
from collections.abc import Iterable

from pydicom import datadict

from minris.access.context import Context
from minris.dataset.elements import ElementIndex, sequence_elements, text_elements
from minris.dataset.names import listed_name, person_name, typed_name
from minris.dataset.spelling import typed_value
from minris.interchange.decoding import text_of
from minris.orders.catalogue import (
    PROCEDURE_COLUMNS,
    all_procedures,
    apply_procedure,
    retire_procedure,
    save_procedure,
)
from minris.standard.dictionary import vr_of
from minris.standard.status import Message, Problem, Refusal, Status, joined
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
    comment, 备注                                   | RequestedProcedureComments
    allergies, 过敏史                               | Allergies
    """)
    for name in row.names.split(", ")
}
CSV_SEXES = {"男": "M", "女": "F", "male": "M", "female": "F", "m": "M", "f": "F", "o": "O"}


def read_csv(text: str) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of a CSV file with commas, semicolons or tabs. Refuses 0106."""
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    try:
        lines = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error as error:
        words = Message("cannot be read: {error}", error=error)
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words) from None
    while lines and not any(cell.strip() for cell in lines[-1]):
        lines.pop()
    if len(lines) < 2:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("The file has no rows"))
    return [name.strip() for name in lines[0]], lines[1:]


def csv_keyword(name: str) -> str:
    """The keyword that a column fills, or "" for an unknown column."""
    known = CSV_COLUMNS.get(name.strip().casefold())
    return known or (name.strip() if datadict.tag_for_keyword(name.strip()) else "")


PARTS_OF_NAME = {"family": "PatientName", "given": "PatientName"}


def csv_value(keyword: str, text: str) -> str:
    """A cell as a DICOM value: dates without dashes, times without colons."""
    text = (
        typed_value(PARTS_OF_NAME.get(keyword, keyword), text).strip().lstrip("'")
    )  # spreadsheets mark text like this
    vr = vr_of(datadict.tag_for_keyword(keyword) or 0)
    if vr == "DA":
        parts = re.fullmatch(r"(\d{4})[-/.年](\d{1,2})[-/.月](\d{1,2})日?", text)
        return "".join((parts[1], parts[2].zfill(2), parts[3].zfill(2))) if parts else text
    if vr == "TM":
        parts = re.fullmatch(r"(\d{1,2}):(\d\d)(:(\d\d))?", text)
        return f"{parts[1].zfill(2)}{parts[2]}{parts[4] or ''}" if parts else text
    if keyword == "PatientSex":
        return CSV_SEXES.get(text.casefold(), text)
    if keyword == "PatientName":
        return listed_name(text)
    return typed_name(text) if vr == "PN" else text


def items_from_csv(text: str) -> list[bytes]:
    """The worklist items of a CSV file, one per row, completed from the catalogue.

    Refuses  0106 for unknown columns, or without a column for the patient's name
    """
    names, lines = read_csv(text)
    keywords = [csv_keyword(name) for name in names]
    problems = [
        Message("There is no column {value}", value=name)
        for name, keyword in zip(names, keywords, strict=True)
        if not keyword
    ]
    if not {"PatientName", "family"} & set(keywords):
        problems.append(Message("There is no column for the patient's name"))
    if problems:
        words = joined(problems, "\n")
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words, [Problem(0, p) for p in problems])
    return [
        _item_from_row(keywords, line) if any(cell.strip() for cell in line) else b""
        for line in lines
    ]


def _item_from_row(keywords: list[str], line: list[str]) -> bytes:
    cells = {key: csv_value(key, text) for key, text in zip(keywords, line, strict=False)}
    if "family" in cells or "given" in cells:
        typed = person_name(cells.pop("family", ""), cells.pop("given", ""), "")
        groups = zip(
            f"{typed}==".split("="), f"{cells.get('PatientName', '')}==".split("="), strict=False
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
    head, lines = read_csv(text_of(content, encoding, ctx.config.clinic.import_encoding))
    columns, count = [name.casefold() for name in head], 0
    problems = [
        Message("There is no column {column}", column=column)
        for column in ("code", "meaning")
        if column not in columns
    ]
    if problems:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(0, w) for w in problems])
    with database.atomic():
        stored = {one.code: one for one in all_procedures()}
        for number, line in enumerate(lines, 2):
            if not any(cell.strip() for cell in line):
                continue
            row = {key: of_formula(cell.strip()) for key, cell in zip(columns, line, strict=False)}
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
