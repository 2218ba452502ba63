"""Dates and times: ranges in keys, instants, display."""

import datetime
import re
from typing import NamedTuple

from minris.standard.dictionary import is_date, value_problem
from minris.standard.status import Message, Problem, Refusal, Status


def key_refusal(tag: int, words: str) -> Refusal:
    """The refusal (A900) of a key that cannot be matched."""
    return Refusal(Status.IDENTIFIER_DOES_NOT_MATCH, problems=[Problem(tag, Message(words))])


def shown_date(value: str) -> str:
    """A DA value for display: 2026-07-05."""
    return f"{value[:4]}-{value[4:6]}-{value[6:8]}" if len(value) >= 8 else value


def date_of(value: str) -> datetime.date | str:
    """A DA value as a date, for a sentence; any other text as it stands."""
    return datetime.date.fromisoformat(shown_date(value)) if is_date(value) else value


class Interval(NamedTuple):
    """A range of DA or TM values, both ends included; "" for an open end."""

    low: str
    high: str
    form: str

    def test(self, value: bytes) -> bool:
        """Whether a stored value, or one of several, lies in the range."""
        text = value.decode("ascii", "replace").strip(" \0")
        return any(one and self.holds(one) for one in text.split("\\"))

    def holds(self, text: str) -> bool:
        """Whether one value lies in the range."""
        text = normal_time(text)
        return text >= self.low and (not self.high or text <= self.high)


def normal_date(text: str) -> str:
    """A date as eight digits, without the dots of ACR-NEMA."""
    return text.replace(".", "") if text.count(".") == 2 else text


MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
MONTH_NUMBERS = {name: number for number, name in enumerate(MONTHS, 1)}


_IN_NUMBERS = re.compile(r"(\d{1,4})(?:[-./ ]|年)(\d{1,2})(?:[-./ ]|月)(\d{1,4})日?")
_DAY_FIRST = re.compile(r"(\d{1,2})(?:st|nd|rd|th)?[-./, ]*([a-z]{3,})[-./, ]*(\d{4}|\d{2})")
_MONTH_FIRST = re.compile(r"([a-z]{3,})[-./, ]*(\d{1,2})(?:st|nd|rd|th)?[-./, ]+(\d{4}|\d{2})")


def date_readings(text: str) -> list[tuple[str, str, str]]:
    """Year, month and day, as digits, that a date as people write it can mean; [] for none.

    Two readings, the day first and the month first, where nothing tells which. Takes 19780312,
    1978-03-12, 12.3.78, 12/3/1978, 12 Mar 1978, Mar 12 1978 and 1978年3月12日; there may be no such
    day. A year may have two digits.
    """
    text = text.strip().casefold()
    if whole := re.fullmatch(r"(\d{4})(\d\d)(\d\d)", text):
        return [(whole[1], whole[2], whole[3])]
    if numbers := _IN_NUMBERS.fullmatch(text):
        one, two, three = numbers.groups()
        if int(one) > 31:
            return [(one, two, three)]
        certain = "." in text or int(one) == int(two)  # with dots always the day first
        return [(three, two, one), (three, one, two)][: 1 if certain else 2]
    day = month = year = ""
    if found := _DAY_FIRST.fullmatch(text):
        day, month, year = found.groups()
    elif found := _MONTH_FIRST.fullmatch(text):
        month, day, year = found.groups()
    number = MONTH_NUMBERS.get(month[:3].capitalize())
    return [(year, str(number), day)] if number else []


def typed_dates(text: str, today: datetime.date) -> list[str]:
    """The dates (DA) that a typed date can mean; two where day and month may be meant either way.

    A year of two digits is the latest one that is not after today.
    """
    found = []
    for year, month, day in (tuple(map(int, reading)) for reading in date_readings(text)):
        if year < 100:
            year += today.year // 100 * 100
            year -= 100 if (year, month, day) > (today.year, today.month, today.day) else 0
        date = f"{year:04}{month:02}{day:02}"
        if is_date(date) and date not in found:
            found.append(date)
    return found


def typed_time(text: str) -> str:
    """A typed time as 14:30; any other text unchanged. Takes 9, 930, 9.30, 14h30, 2:30 pm and 14：30."""
    form = r"([0-9]{1,2})(?:[:.h：点]?([0-9]{2}))?[:.h：点]?(?::[0-9]{2})? *([ap]m)?"
    found = re.fullmatch(form, text.strip().casefold())
    if not found:
        return text
    hour, minute = int(found[1]), int(found[2] or 0)
    if found[3] and 1 <= hour <= 12:
        hour = hour % 12 + (12 if found[3] == "pm" else 0)
    return f"{hour:02}:{minute:02}" if hour < 24 and minute < 60 else text


def typed_minute(text: str) -> int:
    """A typed time in minutes since midnight; -1 for what is no time of a day."""
    found = re.fullmatch("([01][0-9]|2[0-3]):([0-5][0-9])", typed_time(text))
    return int(found[1]) * 60 + int(found[2]) if found else -1


def normal_time(text: str) -> str:
    """A time without colons; 2230 sorts just before 223000."""
    return text.replace(":", "")


def _time_end(text: str) -> str:
    """The last instant of an imprecise time: 10 covers up to 10:59:59.999999."""
    digits, _, fraction = text.partition(".")
    if fraction:
        return f"{digits}.{fraction.ljust(6, '9')}"
    return digits + "5959"[len(digits) - 2 :] + ".999999"


def time_start(text: str) -> str:
    """The first instant of an imprecise time."""
    return text.partition(".")[0].ljust(6, "0") + text[6:].rstrip("0").rstrip(".")


class TimeInterval(Interval):
    """A range of times; a stored time without seconds is the start of its minute."""

    __slots__ = ()

    def holds(self, text: str) -> bool:
        """Whether one time lies in the range."""
        return super().holds(time_start(normal_time(text)))


def key_interval(tag: int, vr: bytes, text: str) -> Interval:
    """The interval of a DA or TM key: `a`, `a-b`, `-b` or `a-`. Refuses A900."""
    normal = normal_date if vr == b"DA" else normal_time
    low, dash, high = (normal(part.strip(" ")) for part in text.partition("-"))
    for part in filter(None, (low, high)):
        if words := value_problem(vr.decode(), part):
            raise Refusal(Status.IDENTIFIER_DOES_NOT_MATCH, problems=[Problem(tag, words)])
    if not (low or high):
        raise key_refusal(tag, "is not a range")
    form = f"{'a' if low else ''}{dash}{'b' if high else ''}"
    high = high if dash else low
    if vr == b"TM":
        return TimeInterval(time_start(low) if low else "", _time_end(high) if high else "", form)
    return Interval(low, high, form)


_DATETIME = re.compile(
    r"(?P<y>\d{4})(?P<m>\d\d)?(?P<d>\d\d)?(?P<H>\d\d)?(?P<M>\d\d)?(?P<S>\d\d)?(\.(?P<f>\d{1,6}))?"
    r"(?P<z>[+-](0\d|1[0-4])[0-5]\d)?"
)


def datetime_bounds(
    text: str, zone: datetime.tzinfo | None
) -> tuple[datetime.datetime, datetime.datetime]:
    """The first and the last instant of a DT value, in UTC. Raises ValueError.

    zone  time zone of a value without an offset, None for that of the machine
    """
    found = _DATETIME.fullmatch(text)
    if not found:
        raise ValueError(text)
    parts = [int(found[name]) if found[name] else None for name in "ymdHMS"]
    known = [part for part in parts if part is not None]
    year, month, day, hour, minute, second = [*known, *(1, 1, 0, 0, 0)[len(known) - 1 :]]
    micro = int((found["f"] or "").ljust(6, "0"))
    start = datetime.datetime(year, month, day, hour, minute, min(second, 59), micro)
    try:
        if found["f"]:
            end = start + datetime.timedelta(microseconds=10 ** (6 - len(found["f"])) - 1)
        else:
            end = _next_unit(start, len(known)) - datetime.timedelta(microseconds=1)
    except (ValueError, OverflowError):  # the end of the last year
        end = datetime.datetime.max
    if found["z"]:
        sign = -1 if found["z"][0] == "-" else 1
        minutes = int(found["z"][1:3]) * 60 + int(found["z"][3:5])
        zone = datetime.timezone(sign * datetime.timedelta(minutes=minutes))
    return in_utc(start, zone), in_utc(end, zone)


def in_utc(at: datetime.datetime, zone: datetime.tzinfo | None) -> datetime.datetime:
    """A local time in UTC; zone None is that of the machine. Unchanged at the calendar's ends."""
    try:
        return (at.replace(tzinfo=zone) if zone else at.astimezone()).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        return at.replace(tzinfo=datetime.UTC)


def utc_stamp(at: datetime.datetime) -> str:
    """A UTC time as text that sorts, the form in the database."""
    return f"{at.year:04d}-{at:%m-%dT%H:%M:%S.%fZ}"


def _next_unit(start: datetime.datetime, known: int) -> datetime.datetime:
    """The start of the next year, month, day, hour, minute or second."""
    if known == 1:
        return start.replace(year=start.year + 1)
    if known == 2:
        return (start.replace(day=28) + datetime.timedelta(days=4)).replace(day=1)
    units = ("days", "hours", "minutes", "seconds")
    return start + datetime.timedelta(**{units[known - 3]: 1})


def split_datetime_range(text: str) -> tuple[str, str, str]:
    """Split a DT key into low end, dash, high end; the dash of an offset is not a range.

    Source: PS3.4 C.2.2.2.5.3; local: four digits up to 1459 after a dash are an offset
    """
    for match in re.finditer("-", text):
        low, high = text[: match.start()], text[match.end() :]
        offset = low and re.fullmatch(r"(0\d|1[0-4])[0-5]\d(-.*)?", high)
        if not offset:
            return low, "-", high
    return text, "", ""


class Instants(NamedTuple):
    """A range of instants; None for an open end."""

    low: datetime.datetime | None
    high: datetime.datetime | None
    zone: datetime.tzinfo | None

    def test(self, value: bytes) -> bool:
        """Whether a stored DT value begins in the range."""
        text = value.decode("ascii", "replace").strip(" \0")
        if not text:
            return False
        try:
            start, _ = datetime_bounds(text, self.zone)
        except (ValueError, OverflowError):
            return False
        return not (self.low and start < self.low) and not (self.high and start > self.high)


def instants(tag: int, text: str, zone: datetime.tzinfo | None) -> Instants:
    """The range of a DT key, single or range. Refuses A900."""
    low, dash, high = split_datetime_range(text.strip())
    try:
        first = datetime_bounds(low, zone) if low else None
        last = datetime_bounds(high, zone) if high else None
    except (ValueError, OverflowError):
        raise key_refusal(tag, "is not a date and time or a range of them") from None
    if not (first or last):
        raise key_refusal(tag, "is not a range")
    if first and not dash:
        return Instants(*first, zone)
    return Instants(first[0] if first else None, last[1] if last else None, zone)
