"""Readers of text tables that are written as the Standard prints them."""

import collections
from collections.abc import Callable, Collection, Iterator
from typing import Any


def rows(text: str, source: str = "table") -> Iterator[list[str]]:
    """The cells of a text table, row by row; the first row is the head, `# …` is a comment.

    Raises  ValueError with the line if a row has more or fewer cells than the head
    """
    width = 0
    for line in text.splitlines():
        if line := line.split("  # ")[0].strip():
            cells = [cell.strip() for cell in line.split("|")]
            width = width or len(cells)
            if len(cells) != width:
                raise ValueError(f"{source}: {line}: {len(cells)} cells in {width} columns")
            yield cells


def body_rows(text: str) -> tuple[list[str], ...]:
    """The rows of a text table below its head."""
    return tuple(rows(text))[1:]


def table(text: str, /, source: str = "table", **readers: Callable[[str], Any]) -> tuple[Any, ...]:
    """The rows of a text table as named tuples; the head names the fields.

    readers  by column: converts a cell to a value; cells of other columns stay text
    Raises   ValueError for a reader without a column, and with the line if a cell is invalid
    """
    head, *body = rows(text, source)
    if unknown := readers.keys() - set(head):
        raise ValueError(f"{source}: there is no column {min(unknown)}")
    row = collections.namedtuple("row", head)  # type: ignore[misc]  # the head names its fields
    read = [readers.get(name, str) for name in head]
    return tuple(row(*_read_cells(source, read, cells)) for cells in body)


def grid_table(
    source: str, text: str, read: Callable[[str], Any], column: Callable[[str], str] = str
) -> dict[tuple[str, str], Any]:
    """The values of a text table by first cell of the row and head of the column.

    read    converts a cell to a value
    column  converts the head of a column
    Raises  ValueError with the line if a cell is invalid, and for a duplicate row or column
    """
    (_, *head), *body = rows(text, source)
    columns = _read_cells(source, [column] * len(head), head)
    if len(set(columns)) < len(columns) or len({name for name, *_ in body}) < len(body):
        raise ValueError(f"{source}: duplicate row or column")
    readers: list[Callable[[str], Any]] = [str, *[read] * len(columns)]
    return {
        (name, one): value
        for name, *values in (_read_cells(source, readers, cells) for cells in body)
        for one, value in zip(columns, values, strict=True)
    }


def _read_cells(source: str, readers: list[Callable[[str], Any]], cells: list[str]) -> list[Any]:
    try:
        return [read(cell) for read, cell in zip(readers, cells, strict=True)]
    except (LookupError, ValueError) as error:
        raise ValueError(f"{source}: {' | '.join(cells)}: {error}") from None


def one_of(words: Collection[str]) -> Callable[[str], str]:
    """A reader of cells that accepts only these words."""

    def read(cell: str) -> str:
        if cell not in words:
            raise ValueError(f"{cell!r} is none of {', '.join(words)}")
        return cell

    return read
