"""Commands that change the store, run by the running appliance if there is one."""

import json
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import peewee

from minris.access.context import Context
from minris.access.users import delete_token, delete_user, make_token, make_user
from minris.appliance.imports import ImportDesk
from minris.config.ini import Config
from minris.housekeeping.simulated import erase_simulated, make_simulated
from minris.interchange.decoding import ReadAs
from minris.interchange.imports import (
    UNDER_WAY,
    How,
    enter_file,
    import_now,
    words_of_repeat,
)
from minris.interchange.whole_store import import_export
from minris.standard.status import Message, Refusal, Status

# The errors of a value that does not fit its column.
NOT_STORABLE = (
    peewee.IntegrityError, peewee.InterfaceError, peewee.ProgrammingError,
    sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError,
    OverflowError, RecursionError,
)  # fmt: skip


LARGEST_EXPORT = 1 << 20  # bytes of an export that is imported beside a running appliance


def is_export(name: str, content: bytes) -> bool:
    """Whether a file is an export of the whole store."""
    return name.lower().endswith(".json") and b'"minris"' in content[:100]


def run_import(
    ctx: Context,
    name: str,
    content: bytes,
    encoding: str = "",
    leave_out: bool = False,
    again: bool = False,
) -> str:
    """Import one file, all or nothing; return a summary."""
    if is_export(name, content):
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
    return import_now(ctx, name, content, How(ReadAs(encoding, leave_out)), again)


class ImportCommand:
    """The import command beside a running appliance, in slices between which others write.

    It answers after WAIT_S seconds at most: what was done, or the number to ask again with.
    """

    WAIT_S = 10.0

    def __init__(self, imports: ImportDesk, write: Callable[..., Any]) -> None:
        self.imports, self.write = imports, write

    def __call__(
        self, ctx: Context, name: str, path: str = "", number: int = 0, encoding: str = "",
        leave_out: bool = False, again: bool = False,
    ) -> str | int:  # fmt: skip
        """Return a summary, or the number of an import that goes on. Refuses as `schedule`."""
        if number:
            return self._outcome(name, number)
        file = Path(path)
        try:
            content = file.read_bytes()
        finally:
            file.unlink(missing_ok=True)
        if is_export(name, content):
            if len(content) > LARGEST_EXPORT:
                raise Refusal(Status.RESOURCE_LIMITATION, TOO_LARGE_BESIDE)
            return str(self.write(run_import, ctx, name, content))
        how = How(ReadAs(encoding, leave_out))
        number = self.write(enter_file, ctx, name, content, how, True, again)
        if words := words_of_repeat(name, self.imports.wait(number, 0)):
            return words
        self.imports.start(number)
        return self._outcome(name, number)

    def _outcome(self, name: str, number: int) -> str | int:
        one = self.imports.wait(number, self.WAIT_S)
        return number if one.state in UNDER_WAY else self.imports.words(name, one)


TOO_LARGE_BESIDE = Message(
    "This is an export of a whole database: stop minris, import it, and start minris again"
)


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
