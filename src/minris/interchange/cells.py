"""Cells as spreadsheets write them: identifiers, dates, times; what they have damaged."""

import datetime
import re
from collections.abc import Iterable

from pydicom import datadict

from minris.dataset.names import listed_name, resident_number, typed_name
from minris.dataset.plausible import is_odd, is_proper
from minris.dataset.spelling import typed_value
from minris.dataset.times import date_readings
from minris.standard.dictionary import vr_of
from minris.standard.status import Message

PARTS_OF_NAME = {"family": "PatientName", "given": "PatientName"}
SEXES = {
    "男": "M", "男性": "M", "male": "M", "m": "M", "女": "F", "女性": "F", "female": "F", "f": "F",
    "其他": "O", "other": "O", "o": "O", "未知": "", "unknown": "", "u": "",
}  # fmt: skip
SPREADSHEET_ERROR = re.compile(r"#+|#(N/?A|NAME\?|NULL!|NUM!|REF!|VALUE!|DIV/0!|SPILL!|CALC!|GETTING_DATA|NV|WERT!|BEZUG!|ZAHL!|VALEUR!|NOMBRE!|NOM\s?\?)", re.I)  # fmt: skip
NO_VALUE = frozenset("nan nat none null n/a na".split())


class BadCell(ValueError):
    """A cell that cannot be read as it is meant; `words` say why."""

    def __init__(self, words: Message) -> None:
        super().__init__(words)
        self.words = words


def is_identifier(keyword: str) -> bool:
    """Whether an attribute is an identifier or a number to call, not a number to reckon with."""
    others = ("AccessionNumber", "PatientTelephoneNumbers")
    return keyword.endswith(("ID", "IDs", "UID")) or keyword in others


def plain_cell(keyword: str, cell: str) -> str:
    """The text that a cell shows: without the marks that keep a spreadsheet from reckoning."""
    text = typed_value(PARTS_OF_NAME.get(keyword, keyword), cell).strip()
    if formula := re.fullmatch(r'="([^"]*)"', text):
        text = formula[1].strip()
    marked = text[:1] == "'" and (re.match(r"'[=+\-@\d]", text) or is_identifier(keyword))
    return text[1:] if marked else text


def _check_whole(keyword: str, text: str) -> None:
    """Raise BadCell for a text that a spreadsheet or another encoding has damaged."""
    if SPREADSHEET_ERROR.fullmatch(text):
        raise BadCell(Message("{value} is an error of the spreadsheet", value=text))
    lost = "\ufffd" in text or "锟斤拷" in text or _is_read_twice(text)
    asked = re.search(r"[^\W\d_]\?|\?[^\W\d_]|\?\?", text)
    if lost or (
        asked and vr_of(datadict.tag_for_keyword(PARTS_OF_NAME.get(keyword, keyword)) or 0) == "PN"
    ):
        raise BadCell(
            Message(
                "{value} has lost letters when it was saved in another encoding", value=text[:80]
            )
        )


def _is_read_twice(text: str) -> bool:
    """Whether a text is UTF-8 that was read as windows-1252 before it was saved: `MÃ¼ller`."""
    try:
        return not text.isascii() and is_odd(text) and is_proper(text.encode("cp1252").decode())
    except UnicodeError:
        return False


def _check_identifier(text: str) -> None:
    """Raise BadCell for an identifier that has become a number."""
    if re.fullmatch(r"\d([.,]\d+)?E\+?\d{2,}", text, re.I):
        raise BadCell(Message("{value} has become a number: format the column as text and enter it anew", value=text))  # fmt: skip
    if re.fullmatch(r"\d+[.,]0+|\d{1,3}([,\u0020]\d{3})+", text):
        raise BadCell(Message("{value} is written as a number, not as an identifier", value=text))
    if text.casefold() in NO_VALUE or (text and not any(c.isalnum() for c in text)):
        raise BadCell(Message("{value} is not an identifier", value=text))


def damaged_identifiers(texts: Iterable[str]) -> dict[str, Message]:
    """What has been lost of identifiers, seen by the others of their column: digits at either end.

    A spreadsheet keeps fifteen digits of a number, and no zeros in front.
    """
    numbers = {text for text in texts if re.fullmatch(r"\d+", text)}
    found = {}
    long_ = {n for n in numbers if len(n) > 15 and not resident_number(n)}
    cut = {n for n in long_ if not n[15:].strip("0")}
    if cut == long_ and sum(len(n) - 15 for n in cut) >= 3:
        found |= {
            n: Message(
                "{value} has lost its last digits: a spreadsheet keeps fifteen of a number", value=n
            )
            for n in cut
        }
    led = {len(n) for n in numbers if n[0] == "0"}
    if len(led) == 1 and {n for n in numbers if n[0] == "0"} != {"0"}:
        found |= {
            n: Message(
                "{value} may have lost zeros in front: others have {count} digits",
                value=n,
                count=max(led),
            )
            for n in numbers
            if len(n) < max(led)
        }
    return found


def day_comes_first(texts: Iterable[str]) -> bool | None:
    """Whether dates such as 25/2/2026 have the day first, None if none of them tells."""
    told = set()
    for text in texts:
        if parts := re.match(r"(\d{1,2})[/-](\d{1,2})[/-]\d{4}\b", text.strip()):
            first, second = int(parts[1]), int(parts[2])
            told |= {True} if first > 12 >= second else {False} if second > 12 >= first else set()
    return told.pop() if len(told) == 1 else None


def read_date(text: str, day_first: bool | None = None) -> str:
    """A date as DA; a text that is no date stays as it is. Raises BadCell if it may be two days."""
    if found := date_readings(text):
        year = found[0][0]
        if len(year) == 2:
            raise BadCell(Message("{value} has a year of two digits", value=text))
        if len(found) > 1 and day_first is None:
            one, two = (f"{year}-{month:0>2}-{day:0>2}" for _, month, day in found)
            raise BadCell(Message("{value} may be {one} or {two}: write one of these", value=text, one=one, two=two))  # fmt: skip
        _, month, day = found[0 if day_first else -1]
        return f"{year}{month:0>2}{day:0>2}"
    if re.fullmatch(r"\d{1,5}([.,]\d+)?", text):
        days = datetime.timedelta(int(re.split("[.,]", text)[0]))
        shown = datetime.date(1899, 12, 30) + days
        raise BadCell(Message("{value} is a spreadsheet's number of a day, perhaps {one}: format the column"
                      " as dates", value=text, one=shown))  # fmt: skip
    return text


def read_time(text: str) -> str:
    """A time as TM; a text that is no time stays as it is."""
    if re.fullmatch(r"0?[.,]\d+", text):  # of a day
        seconds = round(float(text.replace(",", ".")) * 86400)
        return f"{seconds // 3600:02}{seconds // 60 % 60:02}{seconds % 60:02}"
    if re.fullmatch(r"\d{3}|\d{5}", text):
        return f"0{text}"
    parts = re.fullmatch(
        r"(上午|下午|AM|PM)? ?(\d{1,2})[:h点时](\d\d)(?:[:分](\d\d)?秒?)?(?:\.\d+)? ?(AM|PM|A\.M\.|P\.M\.)?",
        text, re.I,
    )  # fmt: skip
    if not parts:
        return text
    hour, half = int(parts[2]), (parts[1] or parts[5] or "").upper().replace(".", "")
    if half:
        if not 1 <= hour <= 12:
            return text
        hour = hour % 12 + 12 * (half in ("下午", "PM"))
    return f"{hour:02}{parts[3]}{parts[4] or ''}"


def read_number(keyword: str, text: str) -> str:
    """A weight in kg or a height in m, however they are written."""
    text = re.sub(r"\s*(kg|公斤|千克|cm|厘米|m|米)$", "", text, flags=re.I).replace(",", ".")
    tall = keyword == "PatientSize" and re.fullmatch(r"\d{2,3}(\.\d+)?", text)
    return f"{float(text) / 100:g}" if tall and 20 <= float(text) <= 275 else text


def read_cell(keyword: str, cell: str, day_first: bool | None = None) -> dict[str, str]:
    """The attribute values of a cell, by keyword. Raises BadCell.

    day_first  whether the day comes first in the dates of its column
    """
    text = plain_cell(keyword, cell)
    _check_whole(keyword, text)
    vr = vr_of(datadict.tag_for_keyword(keyword) or 0)
    if is_identifier(keyword):
        _check_identifier(text)
    if vr in ("DA", "TM"):
        return _read_moment(keyword, vr, text, day_first)
    if keyword == "PatientSex":
        if text and text.casefold() not in SEXES:
            raise BadCell(Message("{value} is not a sex: M, F or O", value=text))
        return {keyword: SEXES.get(text.casefold(), "")}
    if keyword in ("PatientWeight", "PatientSize"):
        return {keyword: read_number(keyword, text)}
    if keyword == "PatientName":
        return {keyword: listed_name(text)}
    return {keyword: typed_name(text) if vr == "PN" else text}


STEP_DAY, STEP_TIME = "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime"


def _read_moment(keyword: str, vr: str, text: str, day_first: bool | None) -> dict[str, str]:
    """The date and the time of a cell; a spreadsheet may write both where one is meant."""
    both = re.fullmatch(
        r"(.*\d{4}.*?|.*\d{4}年.*?日)[T ]+((?:上午|下午)?\d{1,2}[:时点].*?)Z?", text
    )
    if not both:
        return {keyword: read_date(text, day_first) if vr == "DA" else read_time(text)}
    date, time_ = read_date(both[1].strip(), day_first), read_time(both[2].strip())
    if vr == "TM" and date in ("18991230", "18991231", "19000100", "19000101"):
        return {keyword: time_}
    if vr == "DA" and not time_.strip("0"):
        return {keyword: date}
    if keyword not in (STEP_DAY, STEP_TIME):
        raise BadCell(Message("{value} has a time: the day may be another one", value=text))
    return {STEP_DAY: date, STEP_TIME: time_}
