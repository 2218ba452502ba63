"""Conversion of a peer's data set to the stored form."""

from typing import NamedTuple

from minris import log
from minris.dataset.elements import (
    ELEMENT_HEADER,
    ITEM_END,
    ITEM_TAG,
    SEQUENCE_END,
    UNDEFINED_LENGTH,
    Malformed,
    TooManyElements,
    encode_element,
    encode_items,
    encoded,
    repacked,
)
from minris.dataset.text import (
    ASCII,
    SPECIFIC_CHARACTER_SET,
    CharacterSet,
    character_set,
    decode_text,
)
from minris.standard.character_sets import character_set_problem, term_meant
from minris.standard.dictionary import (
    BINARY_NUMBERS,
    KNOWN_VRS,
    LONG_VRS,
    ONE_VALUE_VRS,
    TEXT_VRS,
    allows,
    attribute_name,
    kind_of_vr,
    vr_of,
)


class Limits(NamedTuple):
    """Limits of a peer's data set."""

    nesting: int = 16
    elements: int = 100_000


NO_ITEMS = ELEMENT_HEADER.pack(0xFFFE, 0xE0DD, b"\0\0", 0)  # a Sequence Delimitation Item


class _Where(NamedTuple):
    """The state at a place of a data set: Explicit VR, character set of texts, nesting from 1."""

    explicit: bool
    charset: CharacterSet | None
    depth: int


class _Recoder:
    """Reads a peer's data set once, from front to back, and writes the stored form."""

    LONGEST_TERMS = 1024  # bytes of (0008,0005): all sets there are have fewer

    def __init__(self, data: bytes, limits: Limits, given: CharacterSet | None = None) -> None:
        self.data, self.limits, self.count = data, limits, 0
        self.given = given
        self.asked: tuple[str, ...] | None = None
        self.texts: dict[str, list[int]] = {"recovered": [], "guessed": [], "damaged": []}

    def elements(self, pos: int, end: int, where: _Where, until: int = 0) -> tuple[bytes, int]:
        """The elements from pos to end, or to the delimiter `until`, and their end."""
        if where.depth > self.limits.nesting:
            raise Malformed(f"nested deeper than {self.limits.nesting}")
        found: dict[int, bytes] = {}
        ordered, last = True, -1
        while pos < end:
            tag, vr, start, length = self.header(pos, end, where.explicit)
            if tag == until:
                return b"".join(found.values()) if ordered else encoded(found), start
            if tag >> 16 in (0x0000, 0x0002, 0xFFFE):
                raise Malformed(f"{attribute_name(tag)} does not belong in a data set")
            self.count += 1
            if self.count > self.limits.elements:
                raise TooManyElements(f"more than {self.limits.elements} elements")
            element, pos = self.element(tag, vr, start, length, end, where)
            if tag == SPECIFIC_CHARACTER_SET:
                where = _Where(where.explicit, self.declared(element, where), where.depth)
            elif tag & 0xFFFF:  # PS3.5 7.2: group lengths are retired
                found[tag] = element
                ordered, last = ordered and tag > last, tag
        if until:
            raise Malformed("an item has no delimiter")
        return b"".join(found.values()) if ordered else encoded(found), pos

    def header(self, pos: int, end: int, explicit: bool) -> tuple[int, bytes, int, int]:
        """Tag, VR (empty if implicit), start and length of the value."""
        if pos + 8 > end:
            raise Malformed("ends in the middle of an element")
        group, number, vr, length = ELEMENT_HEADER.unpack_from(self.data, pos)
        tag, start = group << 16 | number, pos + 8
        if not explicit or group == 0xFFFE:
            return tag, b"", start, int.from_bytes(self.data[pos + 4 : pos + 8], "little")
        if vr not in KNOWN_VRS:
            raise Malformed(f"{attribute_name(tag)} has no known VR")
        if vr in LONG_VRS:
            if start + 4 > end:
                raise Malformed("ends in the middle of an element")
            return tag, vr, start + 4, int.from_bytes(self.data[start : start + 4], "little")
        return tag, vr, start, length

    def element(
        self, tag: int, vr: bytes, start: int, length: int, end: int, where: _Where
    ) -> tuple[bytes, int]:
        """One element in the stored form, and the start of the next one."""
        if vr == b"UN":  # PS3.5 6.2.2: implicit little endian inside
            vr, where = b"", _Where(False, where.charset, where.depth)
        vr = vr or vr_of(tag).encode()
        right = vr if allows(tag, vr) else vr_of(tag).encode()
        if kind_of_vr(vr) != kind_of_vr(right):
            empty = self.end_of_empty(vr, start, length, end)
            if not empty:
                raise Malformed(f"{attribute_name(tag)} is {vr.decode()}, not {right.decode()}")
            return encode_element(tag, right, b""), empty  # PS3.4 C.2.2.2.3: it says nothing
        if length == UNDEFINED_LENGTH:
            if vr not in (b"SQ", b"UN"):
                raise Malformed(f"{attribute_name(tag)} has an undefined length")
            return self.sequence(tag, start, end, where, delimited=True)
        if start + length > end:
            raise Malformed(f"{attribute_name(tag)} exceeds the item or data set that contains it")
        if vr == b"SQ":
            return self.sequence(tag, start, start + length, where)
        value = self.data[start : start + length]
        if right in TEXT_VRS and not (value.isascii() and b"\x1b" not in value):
            value = self.text(tag, right, value, where.charset)
            if len(value) > 0xFFFE and right not in LONG_VRS:
                raise Malformed(f"{attribute_name(tag)} is longer than its VR allows")
        if right != vr and vr in BINARY_NUMBERS:
            value = repacked(tag, vr, value, right)
        return encode_element(tag, right, value), start + length

    def end_of_empty(self, vr: bytes, start: int, length: int, end: int) -> int:
        """The end of an element without value or items, 0 if it has any."""
        if length == UNDEFINED_LENGTH and vr == b"SQ":
            return start + 8 if self.data[start : min(start + 8, end)] == NO_ITEMS else 0
        return 0 if length else start

    def sequence(
        self, tag: int, pos: int, end: int, where: _Where, delimited: bool = False
    ) -> tuple[bytes, int]:
        """A sequence in the stored form, with defined lengths, and its end."""
        items: list[bytes] = []
        inside = _Where(where.explicit, where.charset, where.depth + 1)
        while pos < end:
            item, _, start, length = self.header(pos, end, explicit=False)
            if item == SEQUENCE_END and delimited:
                return encode_items(tag, items), start
            if item != ITEM_TAG:
                raise Malformed(f"{attribute_name(tag)} contains something other than an item")
            if length == UNDEFINED_LENGTH:
                content, pos = self.elements(start, end, inside, ITEM_END)
            elif start + length > end:
                raise Malformed(f"an item of {attribute_name(tag)} exceeds the sequence")
            else:
                content, pos = self.elements(start, start + length, inside)
            items.append(content)
            self.count += 1
            if self.count > self.limits.elements:
                raise TooManyElements(f"more than {self.limits.elements} elements")
        if delimited:
            raise Malformed(f"{attribute_name(tag)} has no delimiter")
        return encode_items(tag, items), pos

    def text(self, tag: int, vr: bytes, value: bytes, charset: CharacterSet | None) -> bytes:
        """A text value in UTF-8; notes a text that was recovered, guessed or damaged."""
        # in a multi-valued VR a backslash would split the value
        text, how = decode_text(value, charset, vr, "\\" if vr in ONE_VALUE_VRS else "\ufffd")
        if how != "declared":
            self.texts[how].append(tag)
        return text.rstrip(" ").encode()

    def declared(self, element: bytes, where: _Where) -> CharacterSet | None:
        """The set that (0008,0005) declares: the outer one if empty, None if unknown."""
        value = element[8 : 8 + self.LONGEST_TERMS].decode("ascii", "replace")
        given = tuple(term.strip(" \0") for term in value.split("\\"))
        terms = tuple(map(term_meant, given))
        if where.depth == 1:
            self.asked = terms if any(terms) else ()
        if self.given or not any(terms):
            return where.charset
        shown, problem = f"{value.strip()[:64]!a}", character_set_problem(terms)
        if problem:
            log.warning("Specific Character Set (0008,0005) %s: %.100s", shown, problem)
        elif terms != given:
            meant = "\\".join(terms)
            log.warning("Specific Character Set (0008,0005) %s is read as %s", shown, meant)
        return character_set(terms)


def recode(
    data: bytes, explicit: bool = True, charset: CharacterSet = ASCII, limits: Limits = Limits()
) -> bytes:
    """Convert a peer's data set to the stored form: explicit little endian, UTF-8, defined lengths.

    data      in a little endian transfer syntax, without command and file meta groups
    explicit  whether it is Explicit VR
    charset   character set of texts if (0008,0005) is absent or empty
    Raises    Malformed
    """
    return recode_noting(data, explicit, charset, limits).data


class Recoded(NamedTuple):
    """A peer's data set in the stored form, and the state of its texts.

    asked      the terms of its top-level (0008,0005), () if empty, None if absent
    recovered  tags of texts that contradict the declared set and were read in another one
    guessed    tags of texts that seem to be Chinese, and may be something else
    damaged    tags of texts in no set that could be found
    """

    data: bytes
    asked: tuple[str, ...] | None
    recovered: tuple[int, ...]
    guessed: tuple[int, ...]
    damaged: tuple[int, ...]


def recode_noting(
    data: bytes,
    explicit: bool,
    charset: CharacterSet = ASCII,
    limits: Limits = Limits(),
    given: CharacterSet | None = None,
) -> Recoded:
    """As `recode`, with the state of the texts.

    given  the set of all texts, whatever (0008,0005) says
    """
    recoder = _Recoder(data, limits, given)
    stored, _ = recoder.elements(0, len(data), _Where(explicit, given or charset, 1))
    return Recoded(stored, recoder.asked, *map(tuple, recoder.texts.values()))
