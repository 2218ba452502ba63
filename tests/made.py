"""A plugin of pytest: `pytest -p made …` runs tests against minris.py instead of the package.

Every module of the package is then the one module that minris.py is, so that
`from minris.orders.undo import undo` and patches by name meet what technicians copy.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "minris"


def load_made():
    """Load minris.py under the names of all modules of the package."""
    spec = importlib.util.spec_from_file_location("minris", ROOT / "minris.py")
    made = importlib.util.module_from_spec(spec)
    sys.modules["minris"] = made
    spec.loader.exec_module(made)
    made.__path__ = []  # a package without modules: those below are found by their names
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        sys.modules[name.removesuffix(".__init__")] = made
        if not hasattr(made, path.stem):  # `from minris.orders import scheduling`
            setattr(made, path.stem, made)
    return made


load_made()
