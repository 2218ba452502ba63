"""Readers of settings: each converts a text to a value, or raises ValueError with the reason."""

import configparser
import datetime
import ipaddress
import re
import urllib.parse
import zoneinfo
from collections.abc import Callable
from typing import Any

from minris.standard.character_sets import character_set_problem
from minris.standard.encodings import read_encoding
from minris.standard.status import Message
from minris.standard.uids import PASSED_ON
from minris.standard.worklist import STEP_STATES


def _parts(text: str) -> tuple[str, ...]:
    """The parts between commas, without empty ones."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def read_bool(text: str) -> bool:
    """Yes or no, also true, on, 1 and their opposites."""
    try:
        return configparser.ConfigParser.BOOLEAN_STATES[text.lower()]
    except KeyError:
        raise ValueError(Message("is neither yes nor no")) from None


def read_int(text: str, low: str, high: str) -> int:
    """A whole number from low to high."""
    if not re.fullmatch("-?[0-9]{1,18}", text) or not int(low) <= int(text) <= int(high):
        raise ValueError(Message("is not a whole number from {low} to {high}", low=low, high=high))
    return int(text)


def read_optional(text: str, low: str, high: str) -> int | None:
    """A whole number from low to high, or None."""
    return read_int(text, low, high) if text else None


def read_seconds(text: str, low: str, high: str) -> float:
    """A number of seconds from low to high."""
    try:
        if float(low) <= float(text) <= float(high):
            return float(text)
    except ValueError:
        pass
    raise ValueError(f"is not a number of seconds from {low} to {high}")


def read_ae_titles(text: str, most: str = "1") -> tuple[str, ...]:
    """AE titles separated by commas or spaces (PS3.5 6.2: 1 to 16 printable characters)."""
    titles = _parts(text)
    fit = all(re.fullmatch(r"[ -\[\]-~]{1,16}", title) for title in titles)
    if not fit or not 1 <= len(titles) <= int(most):
        raise ValueError(Message("is not an AE title (1 to 16 ASCII characters)"))
    return titles


def read_ae_title(text: str) -> str:
    """One AE title."""
    return read_ae_titles(text)[0]


def read_zone(text: str) -> str:
    """An IANA time zone; empty for that of the machine."""
    try:
        return text and zoneinfo.ZoneInfo(text).key
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        raise ValueError(Message("is not a time zone such as Asia/Shanghai")) from None


def read_value(text: str, vr: str, longest: str) -> str:
    """A text that is valid in an attribute of a VR."""
    if len(text) > int(longest) or "\\" in text or not text.isprintable():
        raise ValueError(Message("is longer than {longest} characters", longest=longest))
    if vr == "CS" and not re.fullmatch(r"[A-Z0-9_ ]*", text):
        raise ValueError(Message("has characters other than capitals, digits, space and _"))
    return text


def read_clock(text: str) -> tuple[int, int] | None:
    """Hour and minute, or None."""
    found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
    if text and not found:
        raise ValueError(Message("is not a time such as 02:30"))
    return (int(found[1]), int(found[2])) if found else None


WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def read_weekdays(text: str) -> tuple[str, ...]:
    """Days of the week by three letters, separated by commas."""
    days = {day.lower()[:3] for day in _parts(text)}
    if unknown := days.difference(WEEKDAYS):
        raise ValueError(f"{', '.join(sorted(unknown))}: not one of {', '.join(WEEKDAYS)}")
    return tuple(day for day in WEEKDAYS if day in days)


def read_choice(text: str, *choices: str) -> str:
    """One of the choices; upper and lower case are the same."""
    for choice in choices:
        if text.lower() == choice.lower():
            return choice
    raise ValueError(Message("is not one of {choices}", choices=", ".join(choices)))


def read_language(text: str) -> str:
    """A language, perhaps with a region: de, pt-BR."""
    if not re.fullmatch("[A-Za-z]{2,3}(-[A-Za-z]{2,4})?", text):
        raise ValueError("is not a language such as en or zh-CN")
    kind, dash, region = text.partition("-")
    return kind.lower() + dash + (region.upper() if len(region) < 4 else region.title())


def read_states(text: str) -> frozenset[str]:
    """States of a scheduled procedure step, separated by commas."""
    states = frozenset(state.upper() for state in _parts(text))
    if unknown := states.difference(STEP_STATES):
        raise ValueError(f"{', '.join(sorted(unknown))}: not one of {', '.join(STEP_STATES)}")
    return states


def read_character_set(text: str) -> tuple[str, ...]:
    """Terms of Specific Character Set (0008,0005), separated by backslashes; may be empty."""
    terms = tuple(term.strip() for term in text.split("\\")) if text else ()
    if terms and (problem := character_set_problem(terms)):
        raise ValueError(problem)
    return terms


def read_store_url(text: str) -> str:
    """A URL sqlite:///FILE; a relative path is relative to config.ini."""
    if not text.startswith("sqlite:///") or len(text) == len("sqlite:///"):
        raise ValueError("is not sqlite:///FILE")
    return text


def read_public_url(text: str) -> str:
    """An http or https URL, with a path or without, or empty."""
    wrong = "is not an address such as https://ris.clinic.example or https://clinic.example/minris"
    try:
        parts = urllib.parse.urlsplit(text)
        parts.port  # noqa: B018 - raises ValueError for a port that is none
    except ValueError:
        raise ValueError(wrong) from None
    path = re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?", parts.path)
    plain = path and not (parts.query or parts.fragment or "@" in parts.netloc)
    if text and not (parts.scheme in ("http", "https") and parts.hostname and plain):
        raise ValueError(wrong)
    return parts.geturl().rstrip("/")


def read_hosts(text: str) -> tuple[str, ...]:
    """Host names without a port, separated by commas."""
    names = tuple(part.lower().strip("[]").rstrip(".") for part in _parts(text))
    if not all(re.fullmatch(r"[\w.-]+|[\da-f:.]+", name) for name in names):
        raise ValueError("is no list of host names such as ris.clinic.example, ris")
    return names


Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


def read_networks(text: str) -> Networks:
    """Addresses and networks, separated by commas."""
    try:
        return tuple(ipaddress.ip_network(part, strict=False) for part in _parts(text))
    except ValueError:
        raise ValueError("is no list of addresses such as 192.168.1.2, 10.0.0.0/8") from None


def read_evidence(text: str) -> tuple[str, ...]:
    """Kinds of evidence, in order."""
    found = _parts(text)
    if not found or len(set(found)) < len(found) or not set(found) <= set(EVIDENCE):
        raise ValueError(f"is not some of {', '.join(EVIDENCE)}, each once")
    return found


EVIDENCE = ("archive", "commitment", "availability")


def read_passed_on(text: str) -> frozenset[str]:
    """Kinds of messages that are forwarded to a device."""
    found = frozenset(one.lower() for one in _parts(text))
    if not found <= PASSED_ON.keys():
        raise ValueError(Message("is not some of {choices}", choices=", ".join(PASSED_ON)))
    return found


def read_origins(text: str) -> tuple[str, ...]:
    """Origins of web pages such as https://viewer.example, separated by commas."""
    origins = tuple(one.rstrip("/") for one in _parts(text))
    for origin in origins:
        parts = urllib.parse.urlsplit(read_public_url(origin))
        usual = parts.netloc.lower().removesuffix(":443" if parts.scheme == "https" else ":80")
        if origin != f"{parts.scheme}://{usual}" or "@" in usual or not usual.isascii():
            raise ValueError("is not an origin such as https://viewer.example")
    return origins


def read_id_format(text: str, longest: str) -> str:
    """A pattern with {number} and dates, such as A{year}{month}{day}{number:04}."""
    now = datetime.datetime(2026, 12, 31, 23, 59, 59)
    try:
        sample = format_identifier(text, now, 10_000)
        if sample == format_identifier(text, now, 10_001):
            raise ValueError("has no {number}")
    except (KeyError, IndexError, AttributeError, TypeError):
        raise ValueError("has a field other than {year} {yy} {month} {day} {number}") from None
    if len(sample) > int(longest) or not re.fullmatch(r"[!-\[\]-~]+", sample):
        raise ValueError(f"gives {sample!r}: not 1 to {longest} ASCII characters")
    return text


def format_identifier(pattern: str, now: datetime.datetime, number: int) -> str:
    """The identifier that a pattern makes of a day and a number."""
    return pattern.format(
        year=f"{now:%Y}", yy=f"{now:%y}", month=f"{now:%m}", day=f"{now:%d}", number=number
    )


def read_hours(text: str) -> tuple[str, ...]:
    """Working hours such as 08:00-12:00, 13:00-17:00, in order."""
    spans = tuple(
        part.replace(" ", "") for part in _parts(text.replace("–", "-").replace("\\", ","))
    )
    minutes = [minute for span in spans_of(spans) for minute in span]
    if minutes != sorted(set(minutes)):
        raise ValueError("are not hours such as 08:00-12:00, 13:00-17:00, in order")
    return spans


def spans_of(hours: tuple[str, ...]) -> list[tuple[int, int]]:
    """Begin and end of working hours, in minutes since midnight. Raises ValueError."""
    spans = []
    for text in hours:
        found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)-([01]?\d|2[0-4]):([0-5]\d)", text)
        if not found:
            raise ValueError("are not hours such as 08:00-12:00, 13:00-17:00, in order")
        opens, opens_minute, closes, closes_minute = map(int, found.groups())
        spans.append((opens * 60 + opens_minute, min(24 * 60, closes * 60 + closes_minute)))
    return spans


def read_viewer_url(text: str) -> str:
    """An http or https address with {accession} and {study} as places, or empty."""
    try:
        shown = text.format(accession="A1", study="1.2.3")
    except (KeyError, IndexError, ValueError, AttributeError):
        raise ValueError("has a field other than {accession} and {study}") from None
    if text and (not re.match("https?://[^/ ]", shown) or shown == text or " " in shown):
        raise ValueError("is not an address with {accession} or {study}")
    return text


def read_hook(text: str) -> str:
    """An http or https address that messages are posted to."""
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is not an address such as https://alerts.example/minris")
    return text


SETTING_KINDS: dict[str, Callable[..., Any]] = {
    "text": str,
    "secret": str,  # shown on no page
    "hook": lambda text: read_hook(text) if text else "",
    "bool": read_bool,
    "int": read_int,
    "seconds": read_seconds,
    "ae": read_ae_title,
    "aes": read_ae_titles,
    "titles": lambda text: read_ae_titles(text, "100") if text else (),
    "zone": read_zone,
    "clock": read_clock,
    "value": read_value,
    "choice": read_choice,
    "language": read_language,
    "states": read_states,
    "charset": read_character_set,
    "store": read_store_url,
    "url": read_public_url,
    "viewer": read_viewer_url,
    "origins": read_origins,
    "networks": read_networks,
    "port": lambda text: "off" if text.lower() == "off" else read_int(text, "0", "65535"),
    "hosts": read_hosts,
    "evidence": read_evidence,
    "passed_on": read_passed_on,
    "ae_or_none": lambda text: read_ae_title(text) if text else "",
    "id": read_id_format,
    "encoding": read_encoding,
    "weekdays": read_weekdays,
    "hours": read_hours,
    "days": lambda text: read_optional(text, "0", "3650"),
    "limit": lambda text: read_optional(text, "1", "1000000"),
}
ROLES = ("desk", "technologist", "admin")  # each includes the rights of those before it
SCREEN_ROLE = "kiosk"  # of a token for the screen of the waiting room, and nothing else
TOKEN_ROLES = (*ROLES, SCREEN_ROLE)
