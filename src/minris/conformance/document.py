"""A document of headings, paragraphs and tables, as Markdown or HTML."""

import html
from collections.abc import Iterable
from typing import NamedTuple


class Block(NamedTuple):
    """A piece of a document: a heading of a level, a paragraph, or a table with its head."""

    kind: str
    text: str = ""
    rows: tuple[tuple[str, ...], ...] = ()
    level: int = 0


def heading(level: int, text: str) -> Block:
    """Return a heading; level 1 is the title of the document."""
    return Block("heading", text, level=level)


def paragraphs(*texts: str) -> list[Block]:
    """Return one paragraph for each text."""
    return [Block("paragraph", text) for text in texts]


def table_block(*lines: Iterable[object]) -> Block:
    """Return a table; the first line is its head."""
    return Block("table", rows=tuple(tuple(str(cell) for cell in line) for line in lines))


def statement_contents(block: Block, blocks: list[Block]) -> list[Block]:
    """Return the table of contents for its mark, any other block unchanged."""
    if block.kind != "contents":
        return [block]
    headings = [(b.text,) for b in blocks if b.kind == "heading" and b.level in (2, 3)]
    return [heading(2, "2 Contents"), table_block(("Section",), *headings)]


def statement_markdown(block: Block) -> str:
    """Return a block as Markdown."""
    if block.kind == "heading":
        return f"{'#' * block.level} {block.text}\n\n"
    if block.kind == "paragraph":
        return f"{block.text}\n\n"
    lines = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in block.rows
    ]
    lines.insert(1, "|" + " --- |" * len(block.rows[0]))
    return "\n".join(lines) + "\n\n"


def statement_html(block: Block) -> str:
    """Return a block as HTML."""
    if block.kind == "heading":
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>\n"
    if block.kind == "paragraph":
        return f"<p>{html.escape(block.text)}</p>\n"
    head, *body = block.rows
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in body]
    trs = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"<table><thead><tr>{cells}</tr></thead>\n<tbody>\n{trs}</tbody></table>\n"
