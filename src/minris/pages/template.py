"""Templates: .html files beside the modules that show them."""

from pathlib import Path


def template(name: str) -> str:
    """Return the text of a template file; `name` is its path within pages/.

    `src/amalgamate.py` replaces this call with the text.
    """
    return (Path(__file__).parent / name).read_text("utf-8")
