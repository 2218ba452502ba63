"""Commands that change the store, run by the running appliance if there is one."""

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import peewee

from minris.access.context import Context
from minris.access.users import delete_token, delete_user, make_token, make_user
from minris.config.ini import Config
from minris.housekeeping.simulated import erase_simulated, make_simulated
from minris.interchange.decoding import ReadAs
from minris.interchange.files import import_file
from minris.interchange.whole_store import import_export
from minris.standard.status import Message, Refusal, Status

# The errors of a value that does not fit its column.
NOT_STORABLE = (
    peewee.IntegrityError, peewee.InterfaceError, peewee.ProgrammingError,
    sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError,
    OverflowError, RecursionError,
)  # fmt: skip


def run_import(
    ctx: Context, name: str, content: bytes, encoding: str = "", leave_out: bool = False
) -> str:
    """Import one file, all or nothing; return a summary."""
    if name.lower().endswith(".json") and b'"minris"' in content[:100]:
        try:
            return f"{name}: {import_export(ctx, json.loads(content))}"
        except Refusal as refusal:
            if refusal.status is Status.DUPLICATE_SOP_INSTANCE:
                raise
            status = Status.INVALID_ATTRIBUTE_VALUE
            raise Refusal(status, refusal.detail, refusal.problems) from None
        except (ValueError, LookupError, TypeError, AttributeError, *NOT_STORABLE) as error:
            words = Message("The export is damaged: {problem}", problem=repr(error))
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words) from None
    return f"{name}: {import_file(ctx, name, content, ReadAs(encoding, leave_out))}"


def run_user(ctx: Context, name: str, role: str, password: str, delete: bool) -> str:
    """Create, change or delete a user; return a summary."""
    if delete:
        delete_user(ctx, name)
        return f"user {name} deleted"
    make_user(ctx, name, role, password)
    return f"user {name} saved (role {role})"


def run_token(
    ctx: Context, name: str, role: str, delete: bool, ae_titles: Iterable[str] = ()
) -> str:
    """Create or delete a token; return the token, which is shown only once, or a summary."""
    if delete:
        delete_token(ctx, name)
        return f"token {name} deleted"
    return make_token(ctx, name, role, ae_titles)


def control_file(config: Config) -> Path:
    """Return the file with the address and secret of the running appliance."""
    return config.store_path.with_name(config.store_path.name + ".control")


STORE_COMMANDS = {
    "import": run_import, "user": run_user, "token": run_token,
    "make simulated": make_simulated, "erase simulated": erase_simulated,
}  # fmt: skip
