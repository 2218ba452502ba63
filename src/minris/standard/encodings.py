"""Encodings of text files, by the names that people know."""

import codecs
import contextlib
import re
from typing import NamedTuple

from minris.standard.status import Message
from minris.standard.tables import table


class Encoding(NamedTuple):
    """An encoding of text files: its name, Python's codec, and who uses it."""

    name: str
    codec: str
    use: str


# In the order in which they are offered where a file does not tell.
ENCODINGS = {
    row.name: Encoding(*row)
    for row in table("""
    name         | codec      | use
    UTF-8        | utf-8      | all letters
    UTF-16       | utf-16     | all letters
    GB18030      | gb18030    | Chinese, simplified
    Big5         | cp950      | Chinese, traditional
    Shift-JIS    | cp932      | Japanese
    EUC-JP       | euc_jp     | Japanese
    ISO-2022-JP  | iso2022_jp | Japanese
    EUC-KR       | cp949      | Korean
    windows-1252 | cp1252     | Western Europe
    windows-1250 | cp1250     | Central Europe
    windows-1251 | cp1251     | Cyrillic
    windows-1253 | cp1253     | Greek
    windows-1254 | cp1254     | Turkish
    windows-1255 | cp1255     | Hebrew
    windows-1256 | cp1256     | Arabic
    windows-1257 | cp1257     | Baltic
    windows-1258 | cp1258     | Vietnamese
    windows-874  | cp874      | Thai
    ISO-8859-1   | iso8859_1  | Western Europe
    ISO-8859-2   | iso8859_2  | Central Europe
    ISO-8859-5   | iso8859_5  | Cyrillic
    ISO-8859-7   | iso8859_7  | Greek
    ISO-8859-9   | iso8859_9  | Turkish
    ISO-8859-15  | iso8859_15 | Western Europe
    KOI8-R       | koi8_r     | Cyrillic
    KOI8-U       | koi8_u     | Cyrillic
    Macintosh    | mac_roman  | Western Europe
    CP437        | cp437      | Western Europe
    CP850        | cp850      | Western Europe
    CP852        | cp852      | Central Europe
    CP866        | cp866      | Cyrillic
    """)
}


# Codecs of which another one has all letters.
OTHER_CODECS = {
    "utf-8-sig": "utf-8", "utf-16-le": "utf-16", "gbk": "gb18030", "gb2312": "gb18030", "big5": "cp950",
    "euc_kr": "cp949", "shift_jis": "cp932",
}  # fmt: skip


def encoding_named(name: str) -> Encoding | None:
    """The encoding with this name, or with another one that is known for it, such as latin-2."""
    for one in ENCODINGS.values():
        if one.name.casefold() == name.strip().casefold():
            return one
    for each in (name.strip(), re.sub("[ _-]", "", name)):
        with contextlib.suppress(LookupError, ValueError):
            codec = codecs.lookup(each).name
            codec = OTHER_CODECS.get(codec, codec)
            return next(
                (e for e in ENCODINGS.values() if codecs.lookup(e.codec).name == codec), None
            )
    return None


def read_encoding(text: str) -> str:
    """The name of an encoding, or "". Raises ValueError for an unknown one."""
    one = encoding_named(text) if text else None
    if text and not one:
        names = ", ".join(ENCODINGS)
        raise ValueError(Message("is not one of {choices}", choices=names))
    return one.name if one else ""
