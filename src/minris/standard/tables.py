"""Text tables, as the Standard prints them: how their cells are read."""

from collections.abc import Iterator


def rows(text: str) -> Iterator[list[str]]:
    """The cells of a text table, row by row; the head is the first row, `# …` is a remark."""
    for line in text.splitlines():
        line = line.split("  # ")[0].strip()
        if line:
            yield [cell.strip() for cell in line.split("|")]


def body_rows(text: str) -> tuple[list[str], ...]:
    """The rows of a text table below its head."""
    return tuple(rows(text))[1:]
