"""Forms: their fields, and what a form had shown when somebody else was quicker."""

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from minris.access.context import Context
from minris.orders.undo import undoable
from minris.pages.frame import PageRequest
from minris.pages.template import template
from minris.standard.status import Message, Problem, Refusal, Status
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
    kind: str = "text"
    value: str = ""
    required: bool = False
    problem: str = ""
    choices: tuple[tuple[str, str], ...] = ()


def show_form(
    p: PageRequest,
    title: str,
    groups: list[tuple[str, list[Field]]],
    problems: Iterable[Problem] = (),
    **values: Any,
) -> str:
    """A page of one form.

    groups    legends with their fields
    problems  what is wrong, beside what is said at the fields
    values    submit: the words of its button, "" for none; action: where it is sent, the address
              it is shown at if not given; what form.html can have beside that
    """
    said = [f"{f.label}: {f.problem}" for _, fields in groups for f in fields if f.problem]
    said += [p.t(problem.words) for problem in problems]
    values = {"action": p.request.path, "hidden": []} | values
    return p.show(FORM_PAGE, title, groups=groups, problems=said, **values)


def undo_button(p: PageRequest, about: str) -> list[tuple[str, str]]:
    """The button that takes back the last change of a patient or an exam, if there is one."""
    note, problem = p.read(undoable, p.ctx, about)
    if problem:
        return []
    at = p.at(note.at)[:-3]
    return [
        ("undo", p.t("Take back: {what} ({who}, {at})", what=p.t(note.what), who=note.who, at=at))
    ]


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
