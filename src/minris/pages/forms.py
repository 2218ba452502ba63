"""Forms: their fields, which way a value is read and shown, and what a form had shown."""

import base64
import collections
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from minris.access.context import Context
from minris.dataset.names import typed_name
from minris.dataset.times import shown_date
from minris.orders.undo import undoable
from minris.pages.frame import PageRequest
from minris.pages.language import shown_time
from minris.pages.template import template
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.tables import body_rows
from minris.store.writer import Core

FORM_PAGE = template("form.html")
UPLOAD_PAGE = template("upload.html")


class Field(NamedTuple):
    """One field of a form, ready to show."""

    name: str
    label: str
    kind: str = "text"
    value: str = ""
    required: bool = False
    problem: str = ""
    choices: tuple[tuple[str, str], ...] = ()


class FieldKind(NamedTuple):
    """A kind of field: its input, what is kept of what was typed, and what is shown of that.

    read    raises ValueError for what is not a number
    within  the least and the most that can be meant, in the unit that is kept
    """

    input: str = "text"
    read: Callable[[str], str] = str.strip
    show: Callable[[str], str] = str
    within: tuple[float, float] = (-math.inf, math.inf)

    def takes(self, text: str) -> bool:
        """Whether a value can be meant; what is no number is for others to judge."""
        low, high = self.within
        try:
            return not (float(text) < low or float(text) > high)
        except ValueError:
            return True


def metres(text: str) -> str:
    """Centimetres as they are typed, in m. Raises ValueError."""
    return f"{float(text.replace(',', '.')) / 100:g}" if text.strip() else ""


def centimetres(value: str) -> str:
    """A length in m as it is typed; nothing for what is none."""
    return f"{float(value) * 100:g}" if re.fullmatch(r"[\d.]+", value) else ""


# The three parts of a name are read together: person_name.
FIELD_KINDS = {
    "text": FieldKind(),
    "area": FieldKind("area"),
    "select": FieldKind("select", show=lambda value: value.partition("\\")[0]),
    "date": FieldKind("date", lambda text: text.replace("-", ""), shown_date),
    "time": FieldKind("time", lambda text: text.replace(":", ""), shown_time),
    "phones": FieldKind("tel", show=lambda value: value.replace("\\", ", ")),
    "weight": FieldKind(read=lambda text: text.strip().replace(",", "."), within=(0.2, 650)),  # kg
    "height": FieldKind(read=metres, show=centimetres, within=(0.2, 2.75)),  # m
    "name": FieldKind(read=lambda text: typed_name(text.strip())),
    "physician": FieldKind(
        read=lambda text: typed_name(text.strip().replace(" ", "^", 1)),
        show=lambda name: name.replace("^", " "),
    ),
    "family": FieldKind(show=lambda name: re.split("[=^]", name)[0]),
    "given": FieldKind(
        show=lambda name: name.partition("=")[0].partition("^")[2].replace("^", " ").strip()
    ),
    "chinese": FieldKind(show=lambda name: f"{name}==".split("=")[1].replace("^", " ")),
}


class FieldRow(NamedTuple):
    """A row of a table of fields: what is asked for, and which attribute it fills."""

    name: str
    keyword: str
    tag: int
    kind: FieldKind
    label: str
    required: bool
    group: str = ""


def field_table(text: str) -> tuple[FieldRow, ...]:
    """The fields of a form: name, keyword, kind, label (with * where something must be said), and
    perhaps group. Raises KeyError for an unknown keyword or kind."""
    return tuple(
        FieldRow(name, keyword, tag_of(keyword), FIELD_KINDS[kind], label.removesuffix(" *"),
                 label.endswith("*"), *group)
        for name, keyword, kind, label, *group in body_rows(text)
    )  # fmt: skip


def sent_fields(p: PageRequest, rows: Iterable[FieldRow]) -> dict[str, str]:
    """What was typed in the fields of a form, by name."""
    return {row.name: p.form(row.name) for row in rows}


def read_fields(
    rows: Iterable[FieldRow], form: Mapping[str, str]
) -> tuple[dict[str, str], list[Problem]]:
    """The texts of attributes that a form fills, by keyword, and what cannot be meant."""
    texts, problems = {}, []
    for row in rows:
        try:
            texts[row.keyword] = row.kind.read(form[row.name])
        except ValueError:
            texts[row.keyword] = ""
            words = Message("{value} is not a number", value=form[row.name].strip())
            problems.append(Problem(row.tag, words))
        if not row.kind.takes(texts[row.keyword]):
            problems.append(Problem(row.tag, Message("{value} cannot be", value=form[row.name])))
    return texts, problems


def show_fields(
    p: PageRequest,
    rows: Iterable[FieldRow],
    form: Mapping[str, str],
    problems: Sequence[Problem],
    choices: Mapping[str, tuple[tuple[str, str], ...]],
) -> tuple[list[Field], list[Problem]]:
    """The fields of a form as they are shown, and the problems that are those of no field.

    What is wrong with an attribute stands at the first field that fills it.
    """
    words = collections.defaultdict(list)
    for problem in problems:
        words[problem.tag].append(p.t(problem.words))
    fields = [
        Field(row.name, p.t(row.label), row.kind.input, form.get(row.name, ""), row.required,
              "; ".join(words.pop(row.tag, ())), choices.get(row.name, ()))
        for row in rows
    ]  # fmt: skip
    return fields, [problem for problem in problems if problem.tag in words]


def changed_keywords(
    rows: Iterable[FieldRow], form: Mapping[str, str], shown: Mapping[str, str]
) -> set[str]:
    """What those fields fill that are not as they were shown; the rest stays as it is."""
    return {
        row.keyword for row in rows if form[row.name].strip() != shown.get(row.name, "").strip()
    }


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
    values = {"action": p.request.path} | values
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


NOT_KEPT = frozenset({"csrf", "password", "new_password", "seen"})  # of a form without a login
TOO_OLD = Message("The form is too old: load the page anew")


def decoded(text: str) -> bytes:
    """The bytes of a hidden field. Refuses 0106."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, TOO_OLD) from None


def encoded_form(form: Any) -> str:
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
    raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, TOO_OLD)


def unless_changed(
    ctx: Context, shown: Mapping[str, str], now: Callable[[], Mapping[str, str]], core: Core,
    *arguments: Any,
) -> bool:  # fmt: skip
    """Call a core function in the store thread if a form is still as it was shown; whether so."""
    if now() != shown:
        return False
    core(ctx, *arguments)
    return True
