"""A document of headings, paragraphs and tables, as Markdown or HTML."""

import html
import re
from collections.abc import Iterable
from typing import NamedTuple


class Block(NamedTuple):
    """A piece of a document: a heading of a level, a paragraph, or a table with its head."""

    kind: str
    text: str = ""
    rows: tuple[tuple[str, ...], ...] = ()
    level: int = 0


def statement_table(head: Iterable[object], *lines: Iterable[object]) -> str:
    """Return a table as Markdown."""
    rows = [[str(cell).replace("|", "\\|") for cell in line] for line in (head, *lines)]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def statement_blocks(source: str) -> list[Block]:
    """Return the blocks of a text: Markdown, a line for each block, with hanging indents."""
    found = []
    text = re.sub(r"(?m)^ +", "", re.sub(r"\n {9,}", " ", source)) + "\n"  # indents of 8 are ours
    for piece in re.findall(r"(?m)^(?:[^|\n].*|(?:\|.*\n)+)", text):
        if piece[0] == "#":
            marks, _, words = piece.partition(" ")
            found.append(Block("heading", words, level=len(marks)))
        elif piece[0] != "|":
            found.append(Block("paragraph", piece))
        else:
            head, _, *lines = (re.split(r"(?<!\\)\|", row)[1:-1] for row in piece.splitlines())
            rows = (tuple(cell[1:-1].replace("\\|", "|") for cell in row) for row in (head, *lines))
            found.append(Block("table", rows=tuple(rows)))
    return found


def statement_markdown(block: Block) -> str:
    """Return a block as Markdown."""
    if block.kind == "table":
        return statement_table(*block.rows) + "\n\n"
    return f"{'#' * block.level} {block.text}\n\n".lstrip()


def statement_html(block: Block) -> str:
    """Return a block as HTML."""
    if block.kind != "table":
        tag = f"h{block.level}" if block.level else "p"
        return f"<{tag}>{html.escape(block.text)}</{tag}>\n"
    head, *body = block.rows
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in body]
    trs = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"<table><thead><tr>{cells}</tr></thead>\n<tbody>\n{trs}</tbody></table>\n"
