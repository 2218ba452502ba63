"""Specific Character Set: decoding, encoding, and recovery if the declared set is wrong."""

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from minris.dataset.plausible import has_no_plain_letters, is_odd, is_proper, reads_as_chinese
from minris.dataset.spelling import carried_signs
from minris.recent import cached
from minris.standard.character_sets import (
    ASCII_REPERTOIRE,
    CHARACTER_SETS_ALONE,
    DESIGNATIONS,
    ESCAPE_SEQUENCE,
    Repertoire,
    character_set_problem,
    repertoires_of,
)
from minris.standard.dictionary import ONE_VALUE_VRS

SPECIFIC_CHARACTER_SET = 0x00080005


class CharacterSet:
    """Specific Character Set (0008,0005): decodes and encodes text values.

    terms   defined terms; () is the default repertoire, ASCII
    Source  PS3.5 6.1; PS3.3 C.12.1.1.2
    """

    def __init__(self, terms: tuple[str, ...] = ()) -> None:
        self.terms = terms
        self.codec = CHARACTER_SETS_ALONE.get(terms[0]) if terms else "ascii"
        self.sets: list[Repertoire] = [ASCII_REPERTOIRE]
        of_first: dict[str, Repertoire] = {}
        if not self.codec:
            self.sets += (one for term in terms for one in repertoires_of(term))
            of_first = {one.place: one for one in repertoires_of(terms[0]) if one.width == 1}
        g1 = of_first.get("G1")
        self.first = of_first.get("G0", ASCII_REPERTOIRE), g1  # initial G0 and G1
        if not self.codec and len(terms) == 1 and g1 and g1.width == 1 and g1.codec != "shift_jis":
            self.codec = g1.codec  # without code extensions Python's codec does the whole text

    def delimiters(self, vr: bytes) -> bytes:
        """Bytes after which the initial sets are active again (PS3.5 6.1.2.5.3)."""
        return b"\r\n\f\t" + (b"" if vr in ONE_VALUE_VRS else b"\\^=" if vr == b"PN" else b"\\")

    def decode(self, raw: bytes, vr: bytes = b"LO") -> str:
        """The text of a value. Raises UnicodeDecodeError if the bytes are not in this set."""
        if self.codec:
            text = raw.decode(self.codec)
            alone = self.codec in CHARACTER_SETS_ALONE.values()
            if not alone and re.search(r"[\x80-\x9f\x1b]", text):
                raise UnicodeDecodeError(self.codec, raw, 0, 1, "ESC or a control character of C1")
            return text
        return self._decode_extended(raw, self.delimiters(vr))

    def _decode_extended(self, raw: bytes, delimiters: bytes) -> str:
        g0, g1 = self.first
        parts, pos = [], 0
        while pos < len(raw):
            byte = raw[pos]
            if byte == 0x1B:
                found = ESCAPE_SEQUENCE.match(raw, pos)
                one = DESIGNATIONS.get(found[1]) if found else None
                if not (found and one):
                    raise UnicodeDecodeError("iso2022", raw, pos, pos + 1, "an unknown escape")
                g0, g1 = (one, g1) if one.place == "G0" else (g0, one)
                pos = found.end()
                continue
            active = g1 if byte >= 0x80 else g0
            width = 1 if byte < 0x21 or not active else active.width
            if byte >= 0x80 and (byte < 0xA0 or not active):
                raise UnicodeDecodeError("iso2022", raw, pos, pos + 1, "no active set")
            piece = raw[pos : pos + width]
            parts.append(active.decode(piece) if active and byte >= 0x21 else chr(byte))
            pos += width
            if width == 1 and byte in delimiters:
                g0, g1 = self.first
        return "".join(parts)

    def loose(self) -> Iterator["CharacterSet"]:
        """The same with its two-byte set initially active, for senders that omit the escape."""
        wide = [one for one in self.sets if one.place == "G1" and one.width == 2]
        if not self.codec and len(wide) == 1 and not self.first[1]:
            found = CharacterSet(self.terms)
            found.first = self.first[0], wide[0]
            yield found

    def encode(self, text: str, vr: bytes = b"LO") -> bytes:
        """The bytes of a text. Raises UnicodeEncodeError if this set cannot encode it."""
        if self.codec:
            return text.encode(self.codec)
        delimiters = self.delimiters(vr)
        g0, g1 = first0, first1 = self.first
        out = bytearray()
        for character in text:
            if character.isascii():
                if g0.width == 2:
                    out += b"\x1b" + first0.escape
                    g0 = first0
                out += character.encode()
                if character.encode() in delimiters:
                    g0, g1 = first0, first1
                continue
            one, raw = self._find(character, g0, g1, text)
            if one not in (g0, g1):
                out += b"\x1b" + one.escape
                g0, g1 = (one, g1) if one.place == "G0" else (g0, one)
            out += raw
        return bytes(out) + (b"\x1b" + first0.escape if g0.width == 2 else b"")

    def _find(
        self, character: str, g0: Repertoire, g1: Repertoire | None, text: str
    ) -> tuple[Repertoire, bytes]:
        """The set for a character: an active one, else the first one that has it; and the bytes."""
        for one in (*filter(None, (g0, g1)), *self.sets):
            if raw := one.encode(character):
                return one, raw
        at = text.index(character)
        raise UnicodeEncodeError("iso2022", text, at, at + 1, f"not in {self}")

    def carries(self, text: str) -> bool:
        """Whether this set can encode a text."""
        try:
            self.encode(text)
        except UnicodeEncodeError:
            return False
        return True

    def fitted(self, text: str) -> str:
        """The text with letters composed and signs plain, if it can be encoded only so."""
        return text if self.carries(text) else carried_signs(text)

    def __bytes__(self) -> bytes:
        """The value of (0008,0005)."""
        return "\\".join(self.terms).encode("ascii", "replace")

    def __str__(self) -> str:
        return "\\".join(self.terms) or "ISO_IR 6"


def set_of_codec(codec: str) -> CharacterSet:
    """A set that a person has chosen, by Python's codec, such as cp1251."""
    found = CharacterSet()
    found.codec = codec
    return found


@cached(256)
def character_set(terms: tuple[str, ...]) -> CharacterSet | None:
    """The CharacterSet of some terms; None if one is unknown.

    After a set without code extensions, such as ISO_IR 192, further terms are ignored.
    """
    if terms and terms[0] in CHARACTER_SETS_ALONE:
        terms = terms[:1]
    return None if character_set_problem(terms) else CharacterSet(terms)


ASCII = CharacterSet()
UTF_8 = CharacterSet(("ISO_IR 192",))
ISO_2022 = CharacterSet(("", "ISO 2022 IR 6"))


class DecodedText(NamedTuple):
    """A text, and how it was decoded: `declared`, `recovered`, `guessed` or `damaged`.

    Recovered is what can hardly be anything else; guessed, Chinese that may be another text;
    damaged, what has been read as ISO 8859-1 although it may be anything.
    """

    text: str
    how: str


def is_utf_8_of_hanzi(raw: bytes) -> bool:
    """Whether bytes are Chinese in UTF-8, a form that GB18030 rarely has by chance."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return False
    high = [c for c in text if not c.isascii()]
    return bool(high) and all("\u3000" <= c <= "\u9fff" or "\uff00" <= c <= "\uffef" for c in high)


def looks_like_gb18030(raw: bytes) -> bool:
    """Whether pairs of common hanzi outnumber single high bytes, which Western texts have."""
    pairs = re.findall(rb"[\xb0-\xf7][\xa1-\xfe]", raw)
    single = re.findall(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])", raw)
    return len(pairs) > len(single)


# Windows' sets whose letters are those of an ISO 8859 set; between 80H and 9FH they have more.
WINDOWS_SETS = {
    "iso8859_1": "cp1252", "iso8859_8": "cp1255", "iso8859_9": "cp1254", "tis_620": "cp874",
}  # fmt: skip
WINDOWS_SIGNS = frozenset("€„…‘’“”–—™ŠšŒœŽžŸ")


def read_as_windows(raw: bytes, charset: CharacterSet | None) -> str | None:
    """A text that has letters or signs of Windows beside those of its ISO 8859 set; else None.

    They must be few in each word, and stand among letters: in Shift-JIS and its like they are not.
    """
    codec = WINDOWS_SETS.get(charset.codec or "") if charset else None
    if not codec or b"\x1b" in raw:
        return None
    for word in re.split(rb"[ ^=\\]", raw):
        more = re.findall(rb"[\x80-\x9f]", word)
        if len(word) > 1 and len(more) * 5 > len(word) * 2:
            return None
    try:
        text = raw.decode(codec)
    except UnicodeDecodeError:
        return None
    signs = {c for c in text if "\x80" <= c <= "\xff" and not c.isalpha()} - {*"\xa0°´·®²³«»"}
    more = re.findall(rb"[\x80-\x9f]", raw)
    return text if WINDOWS_SIGNS.issuperset(signs | {*b"".join(more).decode(codec)}) else None


# Sets of Latin letters, in which a word has some of ASCII.
LATIN_SETS = frozenset(f"iso8859_{part}" for part in (1, 2, 3, 4, 9, 15))


def is_utf_8_instead(raw: bytes, charset: CharacterSet) -> bool:
    """Whether bytes that the declared set can read are UTF-8: right words where it has odd ones."""
    if charset.codec in ("gb18030", "gbk") and is_utf_8_of_hanzi(raw):
        return True
    if not (charset.terms and charset.codec) or charset.codec == "utf-8":
        return False
    try:
        return is_proper(raw.decode()) and is_odd(raw.decode(charset.codec))
    except UnicodeDecodeError:
        return False


def is_of_another_set(text: str, charset: CharacterSet) -> bool:
    """Whether a text that the declared set could read is none in its languages."""
    declared = charset.terms and charset.codec in LATIN_SETS
    return bool(declared) and (has_no_plain_letters(text) or is_odd(text))


def _readings(
    raw: bytes, charset: CharacterSet | None, multi_byte: bool
) -> Iterator[tuple[CharacterSet, str]]:
    """The character sets to try in order, each with the resulting state of the text."""
    escaped = b"\x1b" in raw
    if escaped and (multi_byte or not charset):  # the escapes tell the sets
        yield ISO_2022, "recovered"
    if charset:
        if is_utf_8_instead(raw, charset):
            yield UTF_8, "recovered"
        yield charset, "declared"
        yield from ((one, "recovered") for one in charset.loose())
    if escaped:
        yield ISO_2022, "recovered"


def decode_text(
    raw: bytes, charset: CharacterSet | None, vr: bytes, mark: str = "\\"
) -> DecodedText:
    """The text of a value, recovered if the bytes contradict the declared set.

    Next it tries UTF-8, whose form is rare by chance; GB18030 where it is convincing Chinese, or
    where the declared set is multi-byte too or no ISO 8859 text has such bytes; the set of Windows
    that resembles the declared one; and ISO 8859-1, which is a guess. Control characters then
    become `mark` and their octal code (PS3.5 6.1.2.3).
    """
    multi_byte = charset is not None and charset.codec in CHARACTER_SETS_ALONE.values()
    for one, how in _readings(raw, charset, multi_byte):
        with contextlib.suppress(UnicodeDecodeError):
            text = one.decode(raw, vr)
            if how == "declared" and is_of_another_set(text, one):
                if reads_as_chinese(raw):
                    return DecodedText(raw.decode("gb18030"), "recovered")
                how = "damaged"
            return DecodedText(text, how)
    with contextlib.suppress(UnicodeDecodeError):
        if not re.search(r"[\x80-\x9f\x1b]", text := raw.decode()):
            return DecodedText(text, "recovered")
    likely_gb = multi_byte or re.search(rb"[\x80-\x9f]", raw)
    chinese = reads_as_chinese(raw)
    if chinese or (likely_gb and looks_like_gb18030(raw)):
        with contextlib.suppress(UnicodeDecodeError):
            if not re.search(r"[\x80-\x9f\x1b]", text := raw.decode("gb18030")):
                return DecodedText(text, "recovered" if chinese else "guessed")
    if windows := read_as_windows(raw, charset):
        return DecodedText(windows, "recovered")
    text = re.sub(r"[\x80-\x9f\x1b]", lambda c: f"{mark}{ord(c[0]):03o}", raw.decode("latin-1"))
    return DecodedText(text, "damaged")
