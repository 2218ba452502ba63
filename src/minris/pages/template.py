"""Templates, which lie as files beside the modules that show them."""

from pathlib import Path


def template(name: str) -> str:
    """The text of a template file; `name` is its path within pages/.

    `src/amalgamate.py` puts the text itself in the place of this call.
    """
    return (Path(__file__).parent / name).read_text("utf-8")
