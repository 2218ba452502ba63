"""Write workitems into the store of a minris that is not running, through its own functions.

    python tests/bench/fill.py MINRIS CONFIG NUMBER PLANTED

MINRIS is minris.py, or `installed`. PLANTED of the workitems answer the standard query.
"""

import datetime
import importlib
import itertools
import pkgutil
import sys
import types
from pathlib import Path

import ups
from entries import encode, new_uid

BATCH = 1000


def main(where, config, number, planted):
    """Create them, claim some, a thousand in each transaction."""
    minris = installed() if where == "installed" else lone(where)
    config = minris.load_config(Path(config))
    made = ups.workitems(number, datetime.date.today(), planted)
    ctx = minris.Context(config, minris.Actor("BENCH", "127.0.0.1"))
    with minris.StoreLock(config.store_path):
        minris.open_store(config.store_path)
        with minris.database.connection_context():
            while batch := list(itertools.islice(made, BATCH)):
                with minris.database.atomic():
                    write(minris, ctx, batch)


def lone(path):
    """The module that a minris.py is."""
    sys.path.insert(0, str(Path(path).parent))
    return importlib.import_module("minris")


def installed():
    """Every name of the installed package, as if it were one module."""
    package, found = importlib.import_module("minris"), {}
    for module in pkgutil.walk_packages(package.__path__, "minris."):
        if not module.name.endswith("__main__"):
            found |= vars(importlib.import_module(module.name))
    return types.SimpleNamespace(**found)


def write(minris, ctx, batch):
    """Create and claim a batch."""
    for dataset, claimed in batch:
        uid, _ = minris.create_workitem(ctx, "", encode(dataset, explicit=True))
        if claimed:
            minris.change_state(ctx, uid, "IN PROGRESS", new_uid())


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:5]))
