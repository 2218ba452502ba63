"""Forms: their fields, and what a form had shown when somebody else was quicker."""

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from minris.access.context import Context
from minris.pages.template import template
from minris.standard.status import Message, Refusal, Status
from minris.store.writer import Core

FORM_PAGE = template("form.html")
UPLOAD_PAGE = template("upload.html")


def with_choice(choices: tuple[tuple[str, str], ...], value: str) -> tuple[tuple[str, str], ...]:
    """The choices of a field, and what it holds, though that is not among them."""
    if not choices or any(one == value for one, _ in choices):
        return choices
    return (*choices, (value, value))


class Field(NamedTuple):
    """One field of a form, ready to show."""

    name: str
    label: str
    kind: str
    value: str
    required: bool
    problem: str
    choices: tuple[tuple[str, str], ...] = ()


def decoded(text: str) -> bytes:
    """The bytes of a hidden field. Refuses 0106."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise Refusal(
            Status.INVALID_ATTRIBUTE_VALUE, Message("The form is too old: load the page anew")
        ) from None


def unless_changed(
    ctx: Context, shown: Mapping[str, str], now: Callable[[], Mapping[str, str]], core: Core,
    *arguments: Any,
) -> bool:  # fmt: skip
    """Call a core function in the store thread if a form is still as it was shown; whether so."""
    if now() != shown:
        return False
    core(ctx, *arguments)
    return True


NOT_KEPT = frozenset(
    {"csrf", "password", "new_password", "seen"}
)  # of a form that was sent without a login


def encoded_form(form: Mapping[str, str]) -> str:
    """What a form showed, for a hidden field."""
    return base64.b64encode(json.dumps(form).encode()).decode()


def decoded_form(text: str) -> dict[str, str]:
    """What a form had shown; nothing where that is not told. Refuses 0106."""
    try:
        found = json.loads(decoded(text) or b"{}")
        if all(isinstance(value, str) for value in found.values()):
            return found
    except (ValueError, AttributeError, RecursionError):
        pass
    raise Refusal(
        Status.INVALID_ATTRIBUTE_VALUE, Message("The form is too old: load the page anew")
    )
