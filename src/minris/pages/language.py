"""Sentences, names, dates and values in the user's language."""

import datetime
import functools
import re
import string
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from minris.access.context import Context
from minris.dataset.elements import ElementIndex
from minris.dataset.names import shown_name
from minris.dataset.times import MONTHS, datetime_bounds, shown_date
from minris.orders.diary import BLOCKED, Booking
from minris.standard.dictionary import is_date, tag_of, vr_of
from minris.standard.mpps import TAKEN_ANSWERS
from minris.standard.status import Message
from minris.standard.ups import UPS_ENUMERATIONS, UPS_STATES
from minris.standard.worklist import STEP_STATES
from minris.web.request import Web

SENTENCES = {"problem", "words", "why", "answer"}  # places of a sentence for another one
Catalogue = Mapping[str, str | Mapping[str, str]]  # a plural has a text for each category


def one_or_other(count: int) -> str:
    """Return the plural category of most languages."""
    return "one" if count == 1 else "other"


def no_plural(count: int) -> str:
    """Return the plural category of a language that has but one."""
    return "other"


def french_plural(count: int) -> str:
    """Return the plural category of French and Brazilian Portuguese: 0 is like 1."""
    return "one" if count < 2 else "other"


def russian_plural(count: int) -> str:
    """Return the plural category of a whole number in Russian."""
    if count % 10 == 1 and count % 100 != 11:
        return "one"
    return "few" if count % 10 in (2, 3, 4) and count % 100 not in (12, 13, 14) else "many"


def arabic_plural(count: int) -> str:
    """Return the plural category of a whole number in Arabic."""
    if count < 3:
        return ("zero", "one", "two")[count]
    last = count % 100
    return "few" if 3 <= last <= 10 else "many" if last > 10 else "other"


# Plural categories of whole numbers (Unicode CLDR, cardinals), where they differ from English.
PLURALS: dict[str, Callable[[int], str]] = {
    "ar": arabic_plural,
    "ru": russian_plural,
    "uk": russian_plural,
    "fr": french_plural,
    "pt": french_plural,
    "id": no_plural,
    "ja": no_plural,
    "ko": no_plural,
    "ms": no_plural,
    "th": no_plural,
    "vi": no_plural,
    "zh": no_plural,
}
RIGHT_TO_LEFT = {"ar", "fa", "he", "ur"}
COPIED = {"secret", "url"}  # places of what people copy
LRI, RLI, PDI = "\u2066", "\u2067", "\u2069"  # isolates of Unicode
FROM_LEFT = re.compile(r"[A-Za-z]|\d\D|\D\d")  # Latin letters, or a sign among digits
RIGHT_LETTER = re.compile("[\u0590-\u08ff]")  # Hebrew, Arabic
DECIMAL_COMMA = {"de", "es", "fr", "id", "it", "pt", "ru", "vi"}


class Translator:
    """Translates a sentence; the English text, or a code, is the key of the catalogue."""

    def __init__(self, language: str, catalogue: Catalogue) -> None:
        self.language, self.catalogue = language, catalogue
        self.kind = language.partition("-")[0]  # without region or script
        self.plural = PLURALS.get(self.kind, one_or_other)

    def __call__(self, text: str, **values: Any) -> str:
        if isinstance(text, Message):
            text, values = text.key, dict(text.values)
        found = self.catalogue.get(text, text)
        if not isinstance(found, str):
            found = found.get(self.plural(int(values["count"]))) or found["other"]
        if not values:
            return found
        shown = {key: self.value(value, key) for key, value in values.items()}
        return found.format_map({
            key: self.placed(value) if isinstance(value, str) and key not in COPIED else value
            for key, value in shown.items()
        })  # fmt: skip

    def placed(self, value: str) -> str:
        """Return a value with marks that keep its own order in a text from right to left."""
        if self.direction == "ltr" or not FROM_LEFT.search(value):
            return value
        return f"{RLI if RIGHT_LETTER.search(value) else LRI}{value}{PDI}"

    def way(self, value: str) -> str:
        """Return the direction of a value that stands by itself."""
        if self.direction == "ltr":
            return "auto"
        return "rtl" if RIGHT_LETTER.search(str(value)) else "ltr"

    def said(self, text: str) -> str:
        """Return a sentence that the store keeps in English, in this language.

        Its key and values are found again by its form, and so are those of its parts.
        """
        if text in self.catalogue:
            return self(text)
        if found := sentence_of(text, tuple(self.catalogue)):
            key, values = found
            return self(key, **{name: self.said(value) for name, value in values.items()})
        first, colon, rest = text.partition(": ")
        if colon:
            return self.labelled(self.said(first), self.said(rest))
        return state_codes().sub(lambda code: self(code[0]), text).replace(" -> ", self.arrow)

    def value(self, value: object, name: str = "") -> object:
        """Return a value of a sentence as this language writes it; by its name it is one itself."""
        if isinstance(value, datetime.datetime):
            return self.moment(value)
        if isinstance(value, datetime.date):
            return self.date(f"{value:%Y%m%d}")
        if isinstance(value, Message):
            return self(value)
        return self.said(value) if name in SENTENCES and isinstance(value, str) else value

    @property
    def direction(self) -> str:
        """The direction of writing: ltr or rtl."""
        return "rtl" if self.kind in RIGHT_TO_LEFT else "ltr"

    @property
    def arrow(self) -> str:
        """From an old value to a new one."""
        return " ← " if self.direction == "rtl" else " → "

    def number(self, value: float, digits: int = 1) -> str:
        """Return a decimal number: 2.5 or 2,5."""
        return f"{value:.{digits}f}".replace(".", "," if self.kind in DECIMAL_COMMA else ".")

    def listed(self, values: Iterable[str]) -> str:
        """Return those values that are not empty, with the comma of the language."""
        return self(COMMA).join(self.placed(one) for one in values if one)

    def dotted(self, values: Iterable[str]) -> str:
        """Return those values that are not empty, with a dot between them."""
        return " · ".join(self.placed(one) for one in values if one)

    def labelled(self, label: str, words: str) -> str:
        """Return words after a label and a colon."""
        return self(LABELLED, label=label, words=words)

    def text(self, *sentences: str) -> str:
        """Return sentences, each with its own full stop, as one text."""
        return ("" if self.kind in ("zh", "ja") else " ").join(filter(None, sentences))

    def sentences(self, *words: str) -> str:
        """Return those texts that are not empty as sentences, each with its full stop."""
        return "".join(self(SENTENCE, sentence=self(one)) for one in words if one).strip()

    def task(self, code: str) -> str:
        """Return a code of a workitem, where the same code of an exam is another word."""
        return self(TASK_WORDS.get(code, code))

    def name(self, value: str) -> str:
        """Return a PN value for display; Latin letters first unless the language is zh, ja or ko."""
        shown = shown_name(value)
        if self.language.startswith(("zh", "ja", "ko")):
            return shown
        latin = " ".join(value.partition("=")[0].replace("^", " ").split())
        return f"{latin} {shown.removesuffix(latin)}".strip()

    def date(self, value: str) -> str:
        """Return a DA value as 5 Jul 2026 or 2026年7月5日; any other text unchanged."""
        if not is_date(value):
            return shown_date(value)
        return self._date(DATE, value)

    def short_date(self, value: str) -> str:
        """Return a DA value without its year: 5 Jul."""
        return self._date(DAY_AND_MONTH, value)

    def _date(self, form: str, value: str) -> str:
        number = int(value[4:6])
        return self(form, day=int(value[6:]), month=self(MONTHS[number - 1]), number=number,
                    year=int(value[:4]))  # fmt: skip

    def day(self, value: str) -> str:
        """Return a DA value with its day of the week."""
        weekday = WEEKDAY_WORDS[day_of(value).weekday()]
        return self(DAY, weekday=weekday, date=self.date(value))

    def moment(self, at: datetime.datetime, seconds: bool = False) -> str:
        """Return an instant as date and time of its zone: 5 Jul 2026 09:30."""
        return f"{self.date(f'{at:%Y%m%d}')} {at:{'%H:%M:%S' if seconds else '%H:%M'}}"

    def of_person(self, index: ElementIndex, today: datetime.date) -> str:
        """Return sex and age of a patient: M 48 y; months below two years."""
        born, sex = index.get("PatientBirthDate"), index.get("PatientSex")
        age = ""
        if is_date(born):
            months = (today.year - int(born[:4])) * 12 + today.month - int(born[4:6])
            months -= today.day < int(born[6:])
            years, young = Message("{count} y", count=months // 12), max(months, 0)
            age = self(years if months >= 24 else Message("{count} months", count=young))
        return " ".join(filter(None, (self(sex) if sex in ("M", "F", "O") else "", age)))


DATE = "{day} {month} {year}"  # a language may use {number} for the number of the month
DAY, DAY_AND_MONTH = "{weekday}, {date}", "{day} {month}"
LABELLED, SENTENCE, COMMA = "{label}: {words}", "{sentence}. ", ", "
# Codes of workitems whose words differ from those of exams, in some language.
TASK_WORDS = {
    "SCHEDULED": Message("task: SCHEDULED"),
    "READY": Message("task: READY"),
    "HIGH": Message("task: HIGH"),
}


def choose_language(languages: Iterable[str], wanted: str, accepted: str, default: str) -> str:
    """Return the language of a page: the user's choice, else the browser's, else the setting."""
    known = list(languages)
    if wanted in known:
        return wanted
    for part in accepted.lower().split(","):
        tag = part.partition(";")[0].strip()
        kind = tag.partition("-")[0]
        found = [one for one in known if one.lower().partition("-")[0] == kind]
        if found:
            return next((one for one in found if one.lower() == tag), found[0])
    return default if default in known else "en"


WEEKDAY_WORDS = (
    Message("Mon"), Message("Tue"), Message("Wed"), Message("Thu"), Message("Fri"), Message("Sat"),
    Message("Sun"),
)  # fmt: skip


def day_of(date: str) -> datetime.date:
    """Return the date of a DA value, limited to years whose neighbours a calendar can show."""
    day = datetime.date.fromisoformat(shown_date(date))
    return min(max(day, datetime.date(1900, 1, 1)), datetime.date(9000, 1, 1))


def clock(minute: int) -> str:
    """Return a minute of the day as 09:30."""
    return f"{minute // 60 % 24:02}:{minute % 60:02}"


def booked_words(t: Translator, bookings: Iterable[Booking]) -> str:
    """Return bookings as text: times and names."""
    return t.listed(
        f"{clock(one.begin)}–{clock(one.end)} {booking_name(t, one)}" for one in bookings
    )


def booking_name(t: Translator, one: Booking) -> str:
    """Return the patient of a booking, or why the time is blocked."""
    return (one.exam or t("Blocked")) if one.status == BLOCKED else t.name(one.name)


def shown_time(value: str) -> str:
    """Return a TM value as 09:30."""
    return f"{value[:2]}:{value[2:4]}" if len(value) >= 4 else value


def elapsed(ctx: Context, t: Translator, stamp: str) -> str:
    """Return the time since a time stamp of the store, in minutes or hours."""
    if not stamp:
        return ""
    then = datetime.datetime.fromisoformat(stamp)
    minutes = max(0, int((ctx.now() - then).total_seconds() // 60))
    if minutes < 120:
        return t("{minutes} min", minutes=minutes)
    return t("{hours} h {minutes} min", hours=minutes // 60, minutes=minutes % 60)


def device_names(web: Web) -> dict[str, str]:
    """Return device names by AE title."""
    return {title: device.name for title, device in web.access().by_title.items()}


def facts_of(
    index: ElementIndex, table: Iterable[list[str]], t: Translator,
    zone: datetime.tzinfo | None = None,
) -> list[tuple[str, str]]:  # fmt: skip
    """Return label and value of each row of a table (label, path) that has a value."""
    found = [(t(label), fact(index, path, t, zone)) for label, path in table]
    return [(label, value) for label, value in found if value]


def who_is(t: Translator, index: ElementIndex) -> str:
    """Return name, ID, birth date and sex of a patient, those that there are."""
    told = (t.name(index.get("PatientName")), index.get("PatientID"),
            t.date(index.get("PatientBirthDate")), t(index.get("PatientSex")))  # fmt: skip
    return t.listed(told)


def other_patient(t: Translator, told: ElementIndex, ours: ElementIndex) -> str:
    """Return the warning that a machine has reported an exam for another patient than ordered."""
    return t(
        "The machine reported this exam for {told}; the order is for {ours}. Decide below. The"
        " images in the archive carry {told}: if that is wrong, correct them there too.",
        told=who_is(t, told),
        ours=who_is(t, ours),
    )


@functools.cache
def state_codes() -> re.Pattern[str]:
    """Return the form of the codes of states."""
    return re.compile("|".join(rf"\b{code}\b" for code in (*STEP_STATES, *UPS_STATES)))


@functools.lru_cache(16)
def sentence_forms(keys: tuple[str, ...]) -> list[tuple[re.Pattern[str], str]]:
    """Return the form of each key with places for values, those with most words first."""
    found = []
    for key in keys:
        form, words, seen = "", 0, set[str]()
        for text, name, *_ in string.Formatter().parse(key):
            form += re.escape(text)
            words += sum(map(str.isalpha, text))
            if name:
                form += f"(?P={name})" if name in seen else f"(?P<{name}>.+?)"
                seen.add(name)
        if seen and words >= 5:
            found.append((words, form, key))
    return [(re.compile(form, re.DOTALL), key) for _, form, key in sorted(found, reverse=True)]


@functools.lru_cache(2048)
def sentence_of(text: str, keys: tuple[str, ...]) -> tuple[str, dict[str, str]] | None:
    """Return key and values of a sentence that was made of one of these keys, None if of none."""
    for form, key in sentence_forms(keys):
        if found := form.fullmatch(text):
            return key, found.groupdict()
    return None


PASSED_ON_WORDS = {
    ("mpps", "N-CREATE"): Message("Exam has started"),
    ("mpps", "N-SET"): Message("Exam has changed or ended"),
    ("mpps_notification", "N-EVENT-REPORT"): Message("Notification of an exam"),
    ("availability", "N-CREATE"): Message("Images are in the archive"),
}


def passing_words(t: Translator, answer: str, sent_at: str, given_up_at: str) -> str:
    """Return the outcome of forwarding a message."""
    if given_up_at:
        return t("given up, {answer}", answer=answer) if answer else t("given up")
    if not sent_at:
        return t("waits")
    taken = answer.startswith(TAKEN_ANSWERS)
    return t("taken, {answer}", answer=answer) if taken else t("refused, {answer}", answer=answer)


def fact(index: ElementIndex, path: str, t: Translator, zone: datetime.tzinfo | None) -> str:
    """Return the value at a path of keywords for display; a code by its meaning."""
    *outer, keyword = path.split(" > ")
    for sequence in outer:
        index = index.item(sequence)
    tag = tag_of(keyword)
    if (vr := vr_of(tag)) == "SQ":
        items = index.items(tag)
        meanings = [item.get("CodeMeaning") for item in items if item.get("CodeMeaning")]
        return t.listed(map(t, meanings)) or (str(len(items)) if items else "")
    text = index.get(keyword)
    if vr == "DT" and text:
        try:
            at, _ = datetime_bounds(text, zone)
        except (ValueError, OverflowError):
            return text
        return t.moment(at.astimezone(zone))
    readers = {"PN": t.name, "DA": t.date, "TM": shown_time, "CS": t}
    if keyword in UPS_ENUMERATIONS or keyword == "ProcedureStepState":
        return t.task(text)
    return readers.get(vr, lambda text: text.replace("\\", ", "))(text)


def local_time(stamp: str, zone: datetime.tzinfo | None) -> datetime.datetime:
    """Return a time stamp of the store in the clinic's time zone."""
    return datetime.datetime.fromisoformat(stamp).astimezone(zone)
