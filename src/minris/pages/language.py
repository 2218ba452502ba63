"""Sentences, names, dates and values in the user's language."""

import datetime
from collections.abc import Iterable, Mapping

from minris.access.context import Context
from minris.dataset.elements import ElementIndex
from minris.dataset.names import shown_name
from minris.dataset.times import MONTHS, datetime_bounds, shown_date
from minris.orders.diary import Booking
from minris.standard.dictionary import is_date, tag_of, vr_of
from minris.standard.mpps import TAKEN_ANSWERS
from minris.standard.status import Message
from minris.web.request import Web


class Translator:
    """Translates a sentence; the English text is the key of the catalogue."""

    def __init__(self, language: str, catalogue: Mapping[str, str]) -> None:
        self.language, self.catalogue = language, catalogue

    def __call__(self, text: str, **values: object) -> str:
        if isinstance(text, Message):
            text, values = text.key, dict(text.values)
        found = self.catalogue.get(text, text)
        if not values:
            return found
        return found.format_map(
            {k: self(v) if isinstance(v, Message) else v for k, v in values.items()}
        )

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
        number = int(value[4:6])
        words = {"day": int(value[6:]), "month": MONTHS[number - 1], "number": number,
                 "year": int(value[:4])}  # fmt: skip
        return DATES.get(self.language, DATES["en"]).format(**words)

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


DATES = {"en": "{day} {month} {year}", "zh-CN": "{year}年{number}月{day}日"}


def choose_language(languages: Iterable[str], wanted: str, accepted: str, default: str) -> str:
    """Return the language of a page: the user's choice, else the browser's, else the setting."""
    known = list(languages)
    if wanted in known:
        return wanted
    for part in accepted.split(","):
        tag = part.partition(";")[0].strip().lower()
        for language in known:
            if tag and language.lower().startswith(tag.partition("-")[0]):
                return language
    return default if default in known else "en"


LANGUAGES = {"en": "English", "zh-CN": "简体中文"}
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
    return ", ".join(f"{clock(one.begin)}–{clock(one.end)} {t.name(one.name)}" for one in bookings)


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
    return ", ".join(filter(None, told))


def other_patient(t: Translator, told: ElementIndex, ours: ElementIndex) -> str:
    """Return the warning that a machine has reported an exam for another patient than ordered."""
    return t(
        "The machine reported this exam for {told}; the order is for {ours}. Decide below. The"
        " images in the archive carry {told}: if that is wrong, correct them there too.",
        told=who_is(t, told),
        ours=who_is(t, ours),
    )


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
        return ", ".join(map(t, meanings)) or (str(len(items)) if items else "")
    text = index.get(keyword)
    if vr == "DT" and text:
        try:
            at, _ = datetime_bounds(text, zone)
        except (ValueError, OverflowError):
            return text
        return f"{at.astimezone(zone):%Y-%m-%d %H:%M}"
    readers = {"PN": t.name, "DA": t.date, "TM": shown_time, "CS": t}
    return readers.get(vr, lambda text: text.replace("\\", ", "))(text)


def shown_instant(stamp: str, zone: datetime.tzinfo | None) -> str:
    """Return a time stamp of the store in the clinic's time zone."""
    if not stamp:
        return ""
    return f"{datetime.datetime.fromisoformat(stamp).astimezone(zone):%Y-%m-%d %H:%M:%S}"
