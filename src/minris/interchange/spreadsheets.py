"""Tables as spreadsheets write them: separators, headings, rows."""

import csv
import io
import re
from collections.abc import Callable
from typing import NamedTuple

from minris.dataset.spelling import tidy_code
from minris.standard.status import Message, Problem, Refusal, Status, joined


class Sheet(NamedTuple):
    """A table: its headings, and its rows by their number in the spreadsheet, where 1 is the first."""

    columns: list[str]
    rows: list[tuple[int, list[str]]]


def refused_lines(lines: list[Message]) -> Refusal:
    """The refusal (0106) of a table, a line for each problem."""
    shown = lines[:100]
    if len(lines) > 100:
        shown.append(Message("and {count} more", count=len(lines) - 100))
    words = joined(shown, "\n")
    return Refusal(Status.INVALID_ATTRIBUTE_VALUE, words, [Problem(0, one) for one in shown])


def at_row(number: int, words: Message, column: str = "") -> Message:
    """What is wrong in a row, or in a cell of it."""
    if not column:
        return Message("row {number}: {words}", number=number, words=words)
    return Message("row {number}, {column}: {words}", number=number, column=column, words=words)


def _cells_of(text: str, delimiter: str) -> list[list[str]]:
    reader, found = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True), []
    try:
        for line in reader:
            found.append(line)
    except csv.Error:
        words = Message(
            "row {number} cannot be read: a quotation mark is not closed, or a cell is too long",
            number=len(found) + 1,
        )
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words) from None
    return found


def _is_blank(cells: list[str]) -> bool:
    return not any(tidy_code(cell).strip() for cell in cells)


def read_sheet(text: str, knows: Callable[[str], bool]) -> Sheet:
    """The table of a CSV text with commas, semicolons, tabs or bars between cells.

    Above the headings may be a line such as `sep=;` and a title; empty rows, and repeated
    headings, are no rows of the table.

    knows    whether a text is a heading
    Refuses  0106 without rows, for a cell without a heading
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    said = re.match(r'"?sep=(.)"?[,;\t|]*(\n|$)', text, re.I)
    first = 2 if said else 1
    text = text[said.end() :] if said else text
    delimiter = said[1] if said else _delimiter(text, knows)
    lines = [*enumerate(_cells_of(text, delimiter), first)]
    at = next((i for i, (_, cells) in enumerate(lines[:10]) if any(map(knows, cells))), 0)
    if any(len([*filter(str.strip, cells)]) > 1 for _, cells in lines[:at]):
        at = 0
    columns = [tidy_code(name).strip() for name in lines[at][1]] if lines else []
    body = [
        (number, cells)
        for number, cells in lines[at + 1 :]
        if not _is_blank(cells) and [tidy_code(cell).strip() for cell in cells] != columns
    ]
    if not body:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("The file has no rows"))
    return _without_empty_columns(columns, body)


def _delimiter(text: str, knows: Callable[[str], bool]) -> str:
    """The separator that finds most headings in the first lines."""
    head = "\n".join(text.split("\n", 10)[:10])

    def found(delimiter: str) -> tuple[int, int]:
        cells = [cell for line in head.split("\n") for cell in line.split(delimiter)]
        return sum(knows(cell.strip('" ')) for cell in cells), head.split("\n")[0].count(delimiter)

    return max(",;\t|", key=found)


def _without_empty_columns(columns: list[str], body: list[tuple[int, list[str]]]) -> Sheet:
    """The table, each row as long as its headings. Refuses 0106 for a cell without a heading."""
    wide = len(columns)
    problems = []
    for number, cells in body:
        for place, cell in enumerate(cells):
            if tidy_code(cell).strip() and (place >= wide or not columns[place]):
                words = Message(
                    "{value} stands under no heading, in column {place}",
                    value=cell.strip()[:80],
                    place=place + 1,
                )
                problems.append(at_row(number, words))
    if problems:
        raise refused_lines(problems)
    kept = [place for place, name in enumerate(columns) if name]
    rows = [(number, [*cells, *[""] * wide]) for number, cells in body]
    return Sheet(
        [columns[place] for place in kept],
        [(number, [cells[place] for place in kept]) for number, cells in rows],
    )
