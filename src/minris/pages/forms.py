"""Forms: fields, how values are read and shown, and detection of changes by others."""

import base64
import collections
import datetime
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from minris.access.context import Context
from minris.dataset.names import shown_groups, typed_name
from minris.dataset.spelling import typed_value
from minris.dataset.times import shown_date, typed_dates, typed_time
from minris.pages.frame import PageRequest
from minris.pages.language import shown_time
from minris.pages.template import template
from minris.seen import ChangedMeanwhile, Thing
from minris.standard.dictionary import tag_of, vr_of
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.tables import body_rows
from minris.store.writer import Core

FORM_PAGE = template("form.html")
UPLOAD_PAGE = template("upload.html")


MISSING = "is missing"
WANTED = {  # what a person is asked for where a field was left empty, by its tag
    tag_of(keyword): words
    for keyword, words in {
        "PatientName": Message("Enter the family name"),
        "PatientID": Message("Enter the Patient ID"),
        "ScheduledStationAETitle": Message("Choose a device"),
        "Modality": Message("Choose a modality"),
        "RequestedProcedureDescription": Message("Enter the exam"),
        "ScheduledProcedureStepStartDate": Message("Enter the date"),
        "ProcedureStepLabel": Message("Enter the task"),
    }.items()
}


class Field(NamedTuple):
    """One field of a form, ready to show.

    help    a sentence below it
    locked  it is shown and cannot be changed
    """

    name: str
    label: str
    kind: str = "text"
    value: str = ""
    required: bool = False
    problem: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    help: str = ""
    locked: bool = False
    mode: str = "text"


class FieldKind(NamedTuple):
    """A kind of field: type of its input, and conversion to and from the stored value.

    read   raises ValueError if it is not a number
    mode   what keyboard a telephone shows
    dates  reads what dates a typed text can mean; None for what is no date
    """

    input: str = "text"
    read: Callable[[str], str] = str.strip
    show: Callable[[str], str] = str
    mode: str = "text"
    dates: Callable[[str, datetime.date], list[str]] | None = None


def metres(text: str) -> str:
    """Convert cm as typed to m. Raises ValueError."""
    return f"{float(text.replace(',', '.')) / 100:g}" if text.strip() else ""


def centimetres(value: str) -> str:
    """Convert m to cm for display; "" if it is not a number."""
    return f"{float(value) * 100:g}" if re.fullmatch(r"[\d.]+", value) else ""


def coming_dates(text: str, today: datetime.date) -> list[str]:
    """Return what dates a typed text can mean, of days to come: 26 is 2026."""
    return typed_dates(text, today + datetime.timedelta(days=50 * 365))


# The three parts of a name are put together by person_name.
FIELD_KINDS = {
    "text": FieldKind(),
    "area": FieldKind("area"),
    "select": FieldKind("select", show=lambda value: value.partition("\\")[0]),
    "date": FieldKind("text", lambda text: text.replace("-", ""), shown_date, dates=typed_dates),
    "day": FieldKind("text", lambda text: text.replace("-", ""), shown_date, dates=coming_dates),
    "time": FieldKind("text", lambda text: text.replace(":", ""), shown_time),
    "phones": FieldKind("tel", show=lambda value: value.replace("\\", ", "), mode="tel"),
    "weight": FieldKind(read=lambda text: text.strip().replace(",", "."), mode="decimal"),
    "height": FieldKind(read=metres, show=centimetres, mode="decimal"),
    "name": FieldKind(read=lambda text: typed_name(text.strip())),
    "physician": FieldKind(
        read=lambda text: typed_name(text.strip().replace(" ", "^", 1)),
        show=lambda name: name.replace("^", " "),
    ),
    "family": FieldKind(show=lambda name: re.split("[=^]", name)[0]),
    "given": FieldKind(
        show=lambda name: name.partition("=")[0].partition("^")[2].replace("^", " ").strip()
    ),
    "chinese": FieldKind(show=lambda name: shown_groups(name)[1] or shown_groups(name)[2]),
}


class FieldRow(NamedTuple):
    """A row of a table of fields: one field and the attribute it fills."""

    name: str
    keyword: str
    tag: int
    kind: FieldKind
    label: str
    required: bool
    group: str = ""


def field_table(text: str) -> tuple[FieldRow, ...]:
    """Read a table of fields: name, keyword, kind, label (ending in * if required), perhaps group.

    Raises KeyError for an unknown keyword or kind.
    """
    return tuple(
        FieldRow(name, keyword, tag_of(keyword), FIELD_KINDS[kind], label.removesuffix(" *"),
                 label.endswith("*"), *group)
        for name, keyword, kind, label, *group in body_rows(text)
    )  # fmt: skip


def sent_fields(p: PageRequest, rows: Iterable[FieldRow]) -> dict[str, str]:
    """Return the values of a form's fields, by name.

    A free time that was chosen, `slot`, goes before date and time. A date that is typed in any form
    is written as 1978-03-12, unless it can mean two days.
    """
    form = {row.name: p.form(row.name) for row in rows}
    if slot := re.fullmatch(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d)", p.form("slot")):
        form |= {k: v for k, v in zip(("date", "time"), slot.groups(), strict=True) if k in form}
    for row in rows:
        if row.kind.dates and len(found := row.kind.dates(form[row.name], today_of(p))) == 1:
            form[row.name] = shown_date(found[0])
        if row.kind is FIELD_KINDS["time"]:
            form[row.name] = typed_time(form[row.name])
    return form


def today_of(p: PageRequest) -> datetime.date:
    """Return the date at the clinic."""
    return p.ctx.local_now().date()


def read_fields(
    rows: Iterable[FieldRow], form: Mapping[str, str]
) -> tuple[dict[str, str], list[Problem]]:
    """Return the attribute values of a form, by keyword, and what is not a number."""
    texts, problems = {}, []
    for row in rows:
        try:
            texts[row.keyword] = row.kind.read(typed_value(row.keyword, form[row.name]))
        except ValueError:
            texts[row.keyword] = ""
            words = Message("{value} is not a number", value=form[row.name].strip())
            problems.append(Problem(row.tag, words))
    return texts, problems


def show_fields(
    p: PageRequest,
    rows: Iterable[FieldRow],
    form: Mapping[str, str],
    problems: Sequence[Problem],
    choices: Mapping[str, tuple[tuple[str, str], ...]],
) -> tuple[list[Field], list[Problem]]:
    """Return the fields of a form for display, and the problems that belong to no field.

    The problem of an attribute is shown at the first field that fills it.
    """
    words = collections.defaultdict(list)
    for problem in problems:
        wanted = WANTED.get(problem.tag) if problem.words.key == MISSING else None
        said = p.t(wanted or problem.words)
        if problem.tag and vr_of(problem.tag) == "PN":  # people write no ^
            said = said.replace("^", " ")
        words[problem.tag].append(said)
    fields = []
    for row in rows:
        typed = form.get(row.name, "")
        one = Field(row.name, p.t(row.label), row.kind.input, typed, row.required,
                    "; ".join(words.pop(row.tag, ())), choices.get(row.name, ()),
                    mode=row.kind.mode)  # fmt: skip
        meant = row.kind.dates(typed, today_of(p)) if row.kind.dates else []
        if len(meant) > 1:  # asked, never guessed
            days = tuple((shown_date(day), p.t.date(day)) for day in meant)
            asked = p.t("{value} can be two days: choose one", value=typed)
            one = one._replace(kind="select", choices=(("", p.t("Please choose")), *days),
                               problem=asked, value="")  # fmt: skip
        fields.append(one)
    return fields, [problem for problem in problems if problem.tag in words]


def changed_keywords(
    rows: Iterable[FieldRow], form: Mapping[str, str], shown: Mapping[str, str]
) -> set[str]:
    """Return the keywords of the fields that were changed."""
    return {
        row.keyword for row in rows if form[row.name].strip() != shown.get(row.name, "").strip()
    }


def post_changes(
    p: PageRequest, rows: tuple[FieldRow, ...], stored: Callable[[], dict[str, str]],
    change: Callable[[dict[str, str], dict[str, str]], tuple[Any, ...]],
    about: Thing | None = None, event: str = "",
) -> tuple[dict[str, str], dict[str, str], list[Problem]]:  # fmt: skip
    """Save the changes of a form; return the form, what the store had, and the problems if refused.

    stored  reads the form of what is stored
    change  takes the form and that of the store; returns the core function and its arguments. May
            refuse: the form is shown again
    about   whose state the form carries; as for check_seen
    """

    def save(ctx: Context, shown: dict[str, str], core: Core, *arguments: Any) -> bool:
        if stored() != shown:
            return False
        core(ctx, *arguments)
        return True

    form = sent_fields(p, rows)
    while True:  # again if somebody else saves in between
        shown = p.read(stored)
        if meanwhile := changed_meanwhile(p, rows, form, shown):
            return form, shown, meanwhile
        try:
            saving = save, shown, *change(form, shown)
            if p.write_seen(about, event, *saving) if about else p.write(*saving):
                return form, shown, []
        except ChangedMeanwhile:
            raise
        except Refusal as refusal:
            if refusal.status is Status.NO_SUCH_SOP_INSTANCE:
                raise
            return form, shown, p.again(refusal)


def changed_meanwhile(
    p: PageRequest, rows: tuple[FieldRow, ...], form: dict[str, str], stored: Mapping[str, str]
) -> list[Problem]:
    """Return the fields that others changed since the form was shown; sets status 409 if any.

    A field that this user did not change takes the new value.
    """
    seen, problems = decoded_form(p.form("seen")), []
    for row in rows:
        name, now = row.name, stored[row.name]
        if name not in seen or seen[name] == now:
            continue
        words = Message("was changed to {value} in the meantime", value=shown_value(p, row, now))
        problems.append(Problem(row.tag, words))
        if form[name].strip() == seen[name].strip():
            form[name] = now
    if problems:
        p.response.status = 409
    return problems


def setting_problems(
    p: PageRequest, problems: Iterable[Problem]
) -> tuple[dict[str, str], list[Problem]]:
    """Return what is wrong with each setting, by its key, in whole sentences; and the problems of none."""
    found: dict[str, str] = {}
    others = []
    for problem in problems:
        values = problem.words.values
        if "key" not in values:
            others.append(problem)
            continue
        missing = values.get("value") == repr("nothing")
        words = Message("Please fill this in.") if missing else Message("{value} {words}", **values)
        found[str(values["key"])] = p.t(words)
    return found, others


def shown_value(p: PageRequest, row: FieldRow, text: str) -> str:
    """Return the text of a field for a sentence; a dash for none."""
    return p.t.date(row.kind.read(text)) if row.kind.input == "date" else text or "-"


def show_form(
    p: PageRequest,
    title: str,
    groups: Sequence[tuple[str, list[Field]] | tuple[str, list[Field], bool]],
    problems: Iterable[Problem] = (),
    seen: Mapping[str, str] | None = None,
    **values: Any,
) -> str:
    """Return a page with one form.

    groups    legends with their fields, and True if it is folded until somebody opens it
    problems  those that belong to no field
    seen      the form of the store, by which changes by others are found
    values    submit: text of the button, "" for none; action: URL, default is that of the page;
              other variables of form.html
    """
    shown = [f for _, fields, *_ in groups for f in fields]
    said = problem_words(p, shown, problems)
    values = {"action": p.request.path} | values
    values["focus"] = first_problem(shown) or values.get("focus", "")
    if seen is not None:
        values["hidden"] = [("seen", encoded_form(seen)), *values.get("hidden", [])]
    return p.show(FORM_PAGE, title, groups=groups, problems=said, **values)


def problem_words(
    p: PageRequest, fields: Iterable[Field], problems: Iterable[Problem]
) -> list[str]:
    """Return what is wrong with a form, in sentences that name the field."""
    whole = set(map(p.t, WANTED.values()))
    said = [
        f.problem if f.problem in whole else p.t.labelled(f.label, f.problem)
        for f in fields if f.problem
    ]  # fmt: skip
    return said + [p.t(problem.words) for problem in problems]


def first_problem(fields: Iterable[Field]) -> str:
    """Return the name of the first field that is wrong, "" if none is."""
    return next((f.name for f in fields if f.problem), "")


NOT_KEPT = frozenset({"csrf", "password", "new_password"})  # of a form without a session
TOO_OLD = Message("This page has expired. Reload it.")


def decoded(text: str) -> bytes:
    """Decode a hidden field. Refuses 0106."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, TOO_OLD) from None


def encoded_form(form: Any) -> str:
    """Encode the values of a form for a hidden field."""
    return base64.b64encode(json.dumps(form).encode()).decode()


def decoded_form(text: str) -> dict[str, str]:
    """Decode the values a form had shown; {} for an empty field. Refuses 0106."""
    try:
        found = json.loads(decoded(text) or b"{}")
        if all(isinstance(value, str) for value in found.values()):
            return found
    except (ValueError, AttributeError, RecursionError):
        pass
    raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, TOO_OLD)
