"""The stored form: encoding of elements, and the index of an encoded data set."""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import SupportsBytes

from minris.standard.dictionary import (
    BINARY_NUMBERS,
    BINARY_VRS,
    LED_BY_SPACES,
    LONG_VRS,
    SPACE_PADDED_VRS,
    attribute_name,
    tag_of,
    vr_of,
)

ELEMENT_HEADER = struct.Struct("<HH2sH")
TAG = struct.Struct("<HH")
TAG_AND_LENGTH = struct.Struct("<HHI")
LENGTH = struct.Struct("<I")
UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM_TAG, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


class Malformed(ValueError):
    """The bytes are not a data set, or it exceeds a limit."""


class TooManyElements(Malformed):
    """The data set has more elements than allowed."""


def pad(value: bytes, vr: bytes) -> bytes:
    """The value padded to even length."""
    if len(value) & 1:
        return value + (b" " if vr in SPACE_PADDED_VRS else b"\0")
    return value


def encode_element(tag: int, vr: bytes, value: bytes) -> bytes:
    """One element in Explicit VR Little Endian, its value padded to even length."""
    value = pad(value, vr)
    if vr in LONG_VRS:
        return ELEMENT_HEADER.pack(tag >> 16, tag & 0xFFFF, vr, 0) + LENGTH.pack(len(value)) + value
    if len(value) > 0xFFFF:
        raise Malformed(f"{attribute_name(tag)} is longer than its VR allows")
    return ELEMENT_HEADER.pack(tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def encode_item(content: bytes) -> bytes:
    """One item of a sequence, with defined length."""
    return TAG_AND_LENGTH.pack(0xFFFE, 0xE000, len(content)) + content


def encode_items(tag: int, contents: Iterable[SupportsBytes]) -> bytes:
    """One sequence of encoded items."""
    return encode_element(tag, b"SQ", b"".join(encode_item(bytes(one)) for one in contents))


def encode_text(keyword: str, text: str) -> bytes:
    """One element from a keyword and a text, in UTF-8."""
    tag = tag_of(keyword)
    return encode_element(tag, vr_of(tag).encode(), text.encode())


def encoded(elements: Mapping[int, bytes]) -> bytes:
    """The data set of encoded elements, ordered by tag (PS3.5 7.1)."""
    return b"".join([elements[tag] for tag in sorted(elements)])


class ElementIndex:
    """An encoded data set in the stored form, indexed by tag; sequences are parsed on demand."""

    __slots__ = ("data", "end", "found", "start")

    def __init__(self, data: SupportsBytes, start: int = 0, end: int | None = None) -> None:
        self.data = data = data if isinstance(data, bytes) else bytes(data)
        self.start = start
        self.end = end = len(data) if end is None else end
        self.found: dict[int, tuple[bytes, int, int, int]] = {}
        found, unpack, pos = self.found, ELEMENT_HEADER.unpack_from, start
        while pos < end:
            group, number, vr, length = unpack(data, pos)
            value = pos + 8
            if vr in LONG_VRS:
                length = int.from_bytes(data[value : value + 4], "little")
                value += 4
            found[group << 16 | number] = vr, pos, value, value + length
            pos = value + length

    def __contains__(self, tag: int) -> bool:
        return tag in self.found

    def __iter__(self) -> Iterator[int]:
        return iter(self.found)

    def vr(self, tag: int) -> bytes:
        """The VR of an element, which must be present."""
        return self.found[tag][0]

    def element(self, tag: int) -> bytes:
        """The encoded element, b"" if absent."""
        if tag not in self.found:
            return b""
        _, head, _, end = self.found[tag]
        return self.data[head:end]

    def elements(self) -> dict[int, bytes]:
        """The encoded elements by tag."""
        data = self.data
        return {tag: data[head:end] for tag, (_, head, _, end) in self.found.items()}

    def value(self, tag: int) -> bytes:
        """The bytes of a value, b"" if absent."""
        if tag not in self.found:
            return b""
        _, _, start, end = self.found[tag]
        return self.data[start:end]

    def text(self, tag: int) -> str:
        """The value as text, without padding; numbers of binary VRs as decimal digits."""
        vr, _, start, end = self.found.get(tag, (b"", 0, 0, 0))
        if vr in BINARY_NUMBERS:
            return "\\".join(map(str, unpack_numbers(vr, self.data[start:end])))
        text = self.data[start:end].decode("utf-8", "replace").rstrip(" \0")
        return text if vr in LED_BY_SPACES else text.lstrip(" ")

    def get(self, keyword: str) -> str:
        """The text of a keyword, empty if absent."""
        return self.text(tag_of(keyword))

    def values(self, tag: int) -> list[str]:
        """The values as texts, without padding; [] if absent."""
        text = self.text(tag)
        strip = str.rstrip if self.found.get(tag, (b"",))[0] == b"UC" else str.strip
        return [strip(value, " ") for value in text.split("\\")] if text else []

    def items(self, tag: int) -> list["ElementIndex"]:
        """The items of a sequence, [] if absent."""
        vr, _, pos, end = self.found.get(tag, (b"", 0, 0, 0))
        if vr != b"SQ":
            return []
        items = []
        while pos < end:
            length = int.from_bytes(self.data[pos + 4 : pos + 8], "little")
            items.append(ElementIndex(self.data, pos + 8, pos + 8 + length))
            pos += 8 + length
        return items

    def item(self, keyword: str) -> "ElementIndex":
        """The first item of a sequence, an empty one if absent."""
        return next(iter(self.items(tag_of(keyword))), EMPTY)

    def has_value(self, tag: int) -> bool:
        """Whether the element has an item, or a value other than padding."""
        vr, _, start, end = self.found.get(tag, (b"", 0, 0, 0))
        return end > start and (vr in BINARY_VRS or bool(self.data[start:end].strip(b" \0")))

    def __bytes__(self) -> bytes:
        return self.data[self.start : self.end]

    def merged(self, *others: "ElementIndex") -> "ElementIndex":
        """The data set with the elements of the others added; those replace its own."""
        elements = self.elements()
        for other in others:
            elements |= other.elements()
        return ElementIndex(encoded(elements))

    def without(self, tags: Iterable[int]) -> "ElementIndex":
        """The data set without some elements."""
        leave = frozenset(tags)
        return ElementIndex(b"".join([self.element(tag) for tag in self if tag not in leave]))

    def only(self, tags: Iterable[int]) -> "ElementIndex":
        """The elements of the given tags that are present."""
        return ElementIndex(b"".join([self.element(tag) for tag in sorted(tags)]))

    def with_values(self) -> "ElementIndex":
        """The elements that have a value."""
        return self.only(filter(self.has_value, self.found))


EMPTY = ElementIndex(b"")


def text_elements(**texts: str) -> ElementIndex:
    """A data set of text elements by keyword; empty texts are left out."""
    return ElementIndex(encoded({tag_of(k): encode_text(k, v) for k, v in texts.items() if v}))


def sequence_elements(**sequences: Iterable[SupportsBytes]) -> ElementIndex:
    """A data set of sequences by keyword, of encoded items."""
    tags = {tag_of(keyword): items for keyword, items in sequences.items()}
    return ElementIndex(encoded({tag: encode_items(tag, items) for tag, items in tags.items()}))


def every_element(index: ElementIndex) -> Iterator[tuple[ElementIndex, int]]:
    """Every element at any depth: the data set or item that holds it, and its tag."""
    for tag in index:
        yield index, tag
        for item in index.items(tag):
            yield from every_element(item)


def unpack_numbers(vr: bytes, value: bytes) -> tuple[float, ...]:
    """The numbers of a binary value; surplus bytes are ignored."""
    code = BINARY_NUMBERS[vr]
    count = len(value) // struct.calcsize(code)
    return struct.unpack_from(f"<{count}{code}", value)


def repacked(tag: int, vr: bytes, value: bytes, right: bytes) -> bytes:
    """The value with its numbers in another binary VR. Raises Malformed."""
    numbers, code = unpack_numbers(vr, value), BINARY_NUMBERS[right]
    try:
        return struct.pack(f"<{len(numbers)}{code}", *numbers)
    except (struct.error, OverflowError):
        raise Malformed(f"{attribute_name(tag)} is {vr.decode()}, not {right.decode()}") from None
