"""Text of files whose encoding nobody says: certain, or asked for, never guessed."""

import codecs
import re
from typing import NamedTuple

from minris.dataset.plausible import is_convincing_chinese, is_odd, is_proper
from minris.standard.encodings import ENCODINGS
from minris.standard.status import Message, Refusal, Status

UNKNOWN_ENCODING = Message(
    "It is not certain how the letters of the file are encoded: it is not UTF-8. Choose the"
    " encoding, or save the file as UTF-8"
)
# How files begin that are no text.
A_WORKBOOK = Message("The file is a workbook: save it as CSV (UTF-8) in the spreadsheet")
OTHER_FILES = {
    b"PK\x03\x04": A_WORKBOOK,
    b"\xd0\xcf\x11\xe0": A_WORKBOOK,
    b"%PDF": Message("The file is a PDF document, not a list"),
}
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
NO_TEXT = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ue000-\uf8ff\ufffe\uffff]")


def _read(content: bytes, codec: str) -> str | None:
    """The text in an encoding, None if it is none in it."""
    try:
        text = content.decode(codec).removeprefix("\ufeff").removesuffix("\x1a")
    except UnicodeDecodeError:
        return None
    return None if NO_TEXT.search(text) else text


def _certain(content: bytes) -> str | None:
    """The text of a file whose bytes tell their encoding, else None."""
    for mark, codec in BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return _read(content, codec)
    if b"\0" in content:  # no other encoding has so many
        for at, codec in ((1, "utf-16-le"), (0, "utf-16-be")):
            half = content[at::2]
            if half.count(0) * 3 > len(half) and not len(content) % 2:
                return _read(content, codec)
        return None
    text, chinese = _read(content, "utf-8"), _read(content, "gb18030")
    odd = [is_odd(word) for word in (chinese or "").split() if not word.isascii()]
    if not chinese or sum(odd) * 2 > len(odd) or not is_convincing_chinese(chinese):
        return text
    # some hanzi, such as those of 头颅平扫, have bytes that are UTF-8 too
    three_bytes = text is not None and any(c > "\u07ff" for c in text)
    return text if three_bytes else None if text and is_proper(text) else chinese


def text_of(content: bytes, encoding: str = "", usual: str = "") -> str:
    """The text of a file.

    encoding  name of the encoding that a person has chosen, "" for none
    usual     that of files that do not tell it themselves
    Refuses   0106 for a file that is no text, or whose encoding is not certain
    """
    for beginning, words in OTHER_FILES.items():
        if content.startswith(beginning):
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words)
    text = None if encoding else _certain(content)
    if text is None and (chosen := encoding or usual):
        text = _read(content, ENCODINGS[chosen].codec)
        if text is None:
            words = Message("The file is not text in the encoding {value}", value=chosen)
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words)
    if text is None:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, UNKNOWN_ENCODING)
    return text


class ReadAs(NamedTuple):
    """How a person wants a file to be read.

    encoding   name of its encoding, "" if it is certain
    leave_out  leave out columns that are not known
    """

    encoding: str = ""
    leave_out: bool = False


class Reading(NamedTuple):
    """An encoding that a file may have: its name, and words of the file as they read in it."""

    encoding: str
    sample: str


def readings_of(content: bytes) -> list[Reading]:
    """The encodings in which a file is text, the likelier ones first; [] if there is no doubt."""
    if _certain(content) is not None:
        return []
    found: dict[tuple[str, ...], Reading] = {}
    for one in ENCODINGS.values():
        if (one.name == "UTF-16") != (b"\0" in content):
            continue
        words = re.findall(
            r"[^\s,;|\x22]*[^\0-\x7f\s][^\s,;|\x22]*", _read(content, one.codec) or ""
        )
        distinct = tuple(dict.fromkeys(words))
        if distinct and distinct not in found:
            found[distinct] = Reading(one.name, ", ".join(distinct[:4])[:80])
    likely = sorted(found, key=lambda words: sum(map(is_proper, words)) * 2 < len(words))
    return [found[words] for words in likely]
