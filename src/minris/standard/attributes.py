"""Readers of attribute tables and transition tables."""

import collections
import types
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from minris.standard.dictionary import tag_of, vr_of
from minris.standard.status import Status, read_status
from minris.standard.tables import grid_table, one_of, rows


class Attribute(NamedTuple):
    """One row of an attribute table: its path of tags, and its cells by column name."""

    keyword: str
    tag: int
    vr: str
    path: tuple[int, ...]
    cells: Mapping[str, str]


class AttributeTable(dict[tuple[int, ...], Attribute]):
    """Attributes by path of tags, outermost first, in the order of the Standard."""

    def __init__(self, attributes: Mapping[tuple[int, ...], Attribute]) -> None:
        super().__init__(attributes)
        below: dict[tuple[int, ...], list[Attribute]] = collections.defaultdict(list)
        for path, attribute in attributes.items():
            below[path[:-1]].append(attribute)
        self._children = {path: tuple(found) for path, found in below.items()}

    def children(self, path: tuple[int, ...] = ()) -> tuple[Attribute, ...]:
        """The attributes directly below a sequence; () is the top level."""
        return self._children.get(path, ())


def attribute_table(source: str, text: str) -> AttributeTable:
    """Read a table of `> keyword | cell | …`, one `>` per level of nesting.

    Refuses an unknown keyword, a row below an attribute that is not a sequence, a duplicate row,
    and a row with a missing cell.
    """
    head, *body = rows(text, source)
    found: dict[tuple[int, ...], Attribute] = {}
    path: tuple[int, ...] = ()
    for cells in body:
        depth = cells[0].count(">")
        keyword = cells[0].lstrip("> ")
        try:
            tag = tag_of(keyword)
        except KeyError:
            raise ValueError(f"{source}: unknown keyword {keyword}") from None
        path = (*path[:depth], tag)
        below_sequence = depth == 0 or (path[:-1] in found and found[path[:-1]].vr == "SQ")
        if len(path) != depth + 1 or path in found or not below_sequence:
            raise ValueError(f"{source}: {' | '.join(cells)}: misplaced or duplicate row")
        named = types.MappingProxyType(dict(zip(head[1:], cells[1:], strict=True)))
        found[path] = Attribute(keyword, tag, vr_of(tag), path, named)
    return AttributeTable(found)


def transition_table(source: str, text: str, states: Iterable[str]) -> dict[tuple[str, str], Any]:
    """Read `event | state | …`: a cell is the new state, or the status that refuses, in hexadecimal."""
    known = {*states, "none"}

    def read(cell: str) -> str | Status:
        return cell if cell in known else read_status(cell)

    return grid_table(source, text, read, one_of(known))
