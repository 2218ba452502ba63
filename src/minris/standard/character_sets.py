"""Coded character sets, and which combinations are legal (PS3.3 C.12.1.1.2)."""

import codecs
import re
import types
from collections.abc import Iterable
from typing import NamedTuple

from minris.standard.status import Message
from minris.standard.tables import one_of, table


class Repertoire(NamedTuple):
    """One coded character set of ISO 2022: its code element, its escape sequence, its codec.

    place   G0 (bytes below 80H) or G1 (above)
    escape  the escape sequence that designates it, without ESC
    width   bytes per character
    codec   Python's codec for `prefix` followed by the bytes; their high bit is set first, except
            for a G0 set of one byte
    """

    place: str
    escape: bytes
    width: int
    codec: str
    prefix: bytes = b""

    def decode(self, raw: bytes) -> str:
        """The text of one or more characters. Raises UnicodeDecodeError."""
        if self.place == "G0" and self.width == 2:
            high = (bytes(byte | 0x80 for byte in raw[i : i + 2]) for i in range(0, len(raw), 2))
            return b"".join(self.prefix + pair for pair in high).decode(self.codec)
        return raw.decode(self.codec)

    def encode(self, character: str) -> bytes | None:
        """The bytes of a character, None if this set lacks it."""
        try:
            raw = character.encode(self.codec)
        except UnicodeEncodeError:
            return None
        if not raw.startswith(self.prefix) or len(raw) - len(self.prefix) != self.width:
            return None
        raw = raw.removeprefix(self.prefix)
        if min(raw) < 0xA0:  # ASCII, and the half-width katakana of EUC-JP behind 8EH
            return None
        return bytes(byte & 0x7F for byte in raw) if self.place == "G0" else raw


def repertoire_table(source: str, text: str) -> dict[str, tuple[Repertoire, ...]]:
    """Read `number | place | escape | width | codec | prefix`: the sets by ISO-IR number."""
    found: dict[str, tuple[Repertoire, ...]] = {}
    rows_ = table(
        text,
        source,
        place=one_of(("G0", "G1")),
        escape=str.encode,
        width=int,
        codec=lambda name: codecs.lookup(name) and name,
        prefix=bytes.fromhex,
    )
    for number, *one in rows_:
        found[number] = (*found.get(number, ()), Repertoire(*one))
    return found


REPERTOIRES = repertoire_table(
    "PS3.3 Tables C.12-2, C.12-3, C.12-4",
    """
    number | place | escape | width | codec       | prefix
    6      | G0    | (B     | 1     | ascii       |
    100    | G1    | -A     | 1     | iso8859_1   |
    101    | G1    | -B     | 1     | iso8859_2   |
    109    | G1    | -C     | 1     | iso8859_3   |
    110    | G1    | -D     | 1     | iso8859_4   |
    144    | G1    | -L     | 1     | iso8859_5   |
    127    | G1    | -G     | 1     | iso8859_6   |
    126    | G1    | -F     | 1     | iso8859_7   |
    138    | G1    | -H     | 1     | iso8859_8   |
    148    | G1    | -M     | 1     | iso8859_9   |
    203    | G1    | -b     | 1     | iso8859_15  |
    166    | G1    | -T     | 1     | tis_620     |
    13     | G1    | )I     | 1     | shift_jis   |
    13     | G0    | (J     | 1     | ascii       |
    87     | G0    | $B     | 2     | euc_jp      |
    159    | G0    | $(D    | 2     | euc_jp      | 8f
    149    | G1    | $)C    | 2     | euc_kr      |
    58     | G1    | $)A    | 2     | gb2312      |
    """,
)
DESIGNATIONS = {one.escape: one for found in REPERTOIRES.values() for one in found}
ASCII_REPERTOIRE = REPERTOIRES["6"][0]
ESCAPE_SEQUENCE = re.compile(rb"\x1b([\x20-\x2f]+[\x30-\x7e]|\$[A-B@])")
CHARACTER_SETS_ALONE = types.MappingProxyType(
    {"ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk"}
)
CHARACTER_SET_NUMBER = re.compile(r"ISO(_IR| 2022 IR) (\d+)")


def repertoires_of(term: str) -> tuple[Repertoire, ...]:
    """The sets that a defined term names, G0 first; none for an empty term."""
    found = CHARACTER_SET_NUMBER.fullmatch(term)
    return REPERTOIRES[found[2]] if found else ()


_TERM_MEANT = re.compile(r"(?:ISO)?(IR|2022IR|2022)?(\d+)")
_MEANT = {  # other names of sets, without spaces and signs
    "UTF8": "ISO_IR 192", "UNICODE11UTF8": "ISO_IR 192", "GB18030": "GB18030", "GBK": "GBK",
    "GB2312": "GB18030",  # which holds it whole
    "2022GB18030": "GB18030", "2022GBK": "GBK", "ASCII": "ISO_IR 6", "USASCII": "ISO_IR 6",
    "LATIN1": "ISO_IR 100",
    **{f"8859{part}": f"ISO_IR {number}" for part, number in {
        1: 100, 2: 101, 3: 109, 4: 110, 5: 144, 6: 127, 7: 126, 8: 138, 9: 148, 15: 203}.items()},
}  # fmt: skip


def term_meant(term: str) -> str:
    """The defined term that a misspelt one clearly means; else the term itself.

    `ISO IR 100`, `iso-ir_100` and `ISO_IR100` mean ISO_IR 100; `ISO 2022 58` means ISO 2022 IR 58.
    """
    if not term or not character_set_problem([term]):
        return term
    plain = re.sub(r"[ _.:-]", "", term.upper())
    if known := _MEANT.get(plain.removeprefix("ISO")):
        return known
    found = _TERM_MEANT.fullmatch(plain)
    if not found or not (found[1] or plain.startswith("ISO")):
        return term
    extended = (found[1] or "").startswith("2022")
    meant = f"ISO 2022 IR {found[2]}" if extended else f"ISO_IR {found[2]}"
    if found[2] == "192":
        meant = "ISO_IR 192"
    return term if character_set_problem([meant]) else meant


def character_set_problem(terms: Iterable[str]) -> str:
    """Why these terms are not a legal Specific Character Set, "" if they are (PS3.3 C.12.1.1.2)."""
    terms = tuple(terms)
    for number, term in enumerate(terms):
        found = CHARACTER_SET_NUMBER.fullmatch(term)
        if term in CHARACTER_SETS_ALONE:
            if len(terms) > 1:
                return Message("{term} stands alone", term=term)
        elif not (found and found[2] in REPERTOIRES) and not (term == "" and number == 0):
            return Message("{term!r} is not a character set known here", term=term)
    return ""
