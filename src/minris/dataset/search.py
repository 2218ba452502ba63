"""Compiled queries: they match stored data sets and encode the answers."""

import contextlib
import datetime
import functools
import types
from collections.abc import Mapping
from typing import NamedTuple

from minris.dataset.elements import (
    EMPTY,
    LENGTH,
    TAG,
    TAG_AND_LENGTH,
    ElementIndex,
    encode_element,
    encode_item,
    every_element,
    pad,
)
from minris.dataset.matching import Test, key_test
from minris.dataset.text import SPECIFIC_CHARACTER_SET, UTF_8, CharacterSet
from minris.dataset.times import Interval, key_interval, key_refusal, time_start
from minris.standard.attributes import AttributeTable
from minris.standard.dictionary import MAY_BE_TEXT, TEXT_VRS, tag_of, vr_of
from minris.standard.status import Status
from minris.standard.worklist import MWL_ATTRIBUTES, START_DATE, START_TIME

# PS3.4 Table CC.2.5-3: in code sequences that a table does not spell out
NEVER_MATCHED_IN_CODES = frozenset({tag_of("CodeMeaning"), tag_of("CodingSchemeVersion")})


class AnswerStyle(NamedTuple):
    """How answers to one device are encoded; set in the device's profile.

    charset          character set of the answer; `fallback` if it cannot encode a text
    name_groups      `all`, or the only component group of names that is sent
    empty_sequences  whether empty sequences are sent
    zone             time zone of values without an offset, None for that of the machine
    """

    charset: CharacterSet = UTF_8
    fallback: CharacterSet = UTF_8
    name_groups: str = "all"
    empty_sequences: bool = True
    zone: datetime.tzinfo | None = None


def one_group(value: bytes, name_groups: str) -> bytes:
    """The names of a PN value, each with one group only; the other group if that is empty."""
    names, wanted = [], int(name_groups == "ideographic")
    for name in value.decode("utf-8", "replace").split("\\"):
        groups = f"{name.strip(' ')}==".split("=")
        names.append(groups[wanted] or groups[1 - wanted] or groups[2])
    return pad("\\".join(names).encode(), b"PN")


class Search:
    """A compiled query: `answer(data)` is the encoded answer if a stored data set matches.

    index     the identifier in the stored form
    table     the supported attributes (columns match and return)
    explicit  whether answers are Explicit or Implicit VR Little Endian
    style     how texts and empty sequences are encoded
    extra     elements added to every answer if requested, by tag (stored form)
    Refuses   A900 for two items in a sequence, an invalid date or range, several values
    Source    PS3.4 C.2.2.2, K.2.2, K.4.1.1.3.2
    """

    def __init__(
        self,
        index: ElementIndex,
        table: AttributeTable,
        explicit: bool = True,
        style: AnswerStyle = AnswerStyle(),
        extra: Mapping[int, bytes] = types.MappingProxyType({}),
        path: tuple[int, ...] = (),
    ) -> None:
        self.index, self.explicit, self.path = index, explicit, path
        self.style, self.extra = style, extra
        self.tests: list[tuple[int, Test]] = []
        self.combined: Interval | None = None
        self.nested: dict[int, Search] = {}
        self.intervals: dict[int, Interval] = {}
        self.shape: list[tuple[int, bytes, bytes | None]] = []
        self.texts: list[int] = []  # tags of shape whose values may be non-ASCII
        self.unsupported: list[int] = []
        self.unmatched: list[int] = []  # keys whose value is ignored
        for tag in index:
            self._add(tag, table)
        self._combine_date_and_time()

    def _add(self, tag: int, table: AttributeTable) -> None:
        if tag in (SPECIFIC_CHARACTER_SET, 0x00080052, 0x00080201):
            # PS3.4 K.2.2.2; a Query/Retrieve Level in a worklist query is an error of the SCU
            if tag == 0x00080201 and tag in self.extra:
                self.shape.append((tag, TAG.pack(tag >> 16, tag & 0xFFFF), self.extra[tag]))
            return
        path = (*self.path, tag)
        attribute = table.get(path)
        vr = self.index.vr(tag)
        known = attribute is not None or self._inside_open_sequence(table)
        if not known:
            self.unsupported.append(tag)
        if vr == b"SQ":
            self._add_sequence(tag, table, path)
        elif not known or (attribute and attribute.cells.get("match", "O") == "-"):
            self.unmatched += [tag] if self.index.has_value(tag) else []
        else:
            meaning = not attribute and tag in NEVER_MATCHED_IN_CODES
            test = None if meaning else key_test(tag, vr, self.index, self.style.zone)
            if test:
                self.tests.append((tag, test))
            if vr in (b"DA", b"TM") and (text := self.index.text(tag).strip("*")):
                self.intervals[tag] = key_interval(tag, vr, text)
        kind = attribute.cells["return"] if attribute else "3"
        if kind == "-" or (vr == b"SQ" and not self.style.empty_sequences):
            kind = "3"
        absent = b""
        if attribute and kind not in ("1C", "3"):
            absent = self._encode(tag, attribute.vr.encode(), b"")
        self.shape.append((tag, TAG.pack(tag >> 16, tag & 0xFFFF), absent))
        if vr_of(tag).encode() in MAY_BE_TEXT:  # the VR in the query may be wrong
            self.texts.append(tag)

    def _inside_open_sequence(self, table: AttributeTable) -> bool:
        """Whether it lies in a sequence whose items the table leaves open: all is supported."""
        outer = (self.path[:depth] for depth in range(1, len(self.path) + 1))
        return any(path in table and not table.children(path) for path in outer)

    def _add_sequence(self, tag: int, table: AttributeTable, path: tuple[int, ...]) -> None:
        items = self.index.items(tag)
        if len(items) > 1:
            raise key_refusal(tag, "has more than one item")  # PS3.4 C.2.2.2.6
        if items and items[0].found:
            nested = Search(items[0], table, self.explicit, self.style, self.extra, path)
            self.unsupported += nested.unsupported
            self.unmatched += nested.unmatched
            matched = (one.cells.get("match") != "-" for one in table.children(path))
            if path in table and table[path].cells.get("match") == "-" and not any(matched):
                self.unmatched += [tag] if nested.tests else []
                nested.ask_nothing()
            self.nested[tag] = nested

    def ask_nothing(self) -> None:
        """Match everything; keep only the shape of the answer."""
        self.tests, self.combined = [], None
        for nested in self.nested.values():
            nested.ask_nothing()

    def _combine_date_and_time(self) -> None:
        """Combine date and time ranges of the same form (PS3.4 C.2.2.2.5.4, Table K.6-1)."""
        date, time_ = self.intervals.get(START_DATE), self.intervals.get(START_TIME)
        if date and time_ and date.form == time_.form and "-" in date.form:
            self.tests = [(t, test) for t, test in self.tests if t not in (START_DATE, START_TIME)]
            self.combined = Interval(date.low + time_.low, date.high + time_.high, date.form)

    @property
    def status(self) -> Status:
        """FF01 if a requested attribute is not supported (PS3.4 Table K.4-1), else FF00."""
        return Status.PENDING_OPTIONAL_KEYS_UNSUPPORTED if self.unsupported else Status.PENDING

    def matches(self, index: ElementIndex) -> bool:
        """Whether a stored data set matches every key."""
        data, found = index.data, index.found
        for tag, test in self.tests:
            entry = found.get(tag)
            if not entry or not test(data[entry[2] : entry[3]]):
                return False
        if self.combined and not self._begins_in(self.combined, index):
            return False
        for tag, nested in self.nested.items():
            if nested.restricts and not any(map(nested.matches, index.items(tag))):
                return False
        return True

    @staticmethod
    def _begins_in(span: Interval, index: ElementIndex) -> bool:
        """Whether date and time lie in the combined interval of both keys."""
        date, clock = index.text(START_DATE), index.text(START_TIME)
        return bool(date) and span.holds(date + time_start(clock or "000000"))

    @functools.cached_property
    def restricts(self) -> bool:
        """Whether any key is not universal."""
        return bool(self.tests or self.combined or any(n.restricts for n in self.nested.values()))

    def mismatches(self, index: ElementIndex) -> list[tuple[int, str, str]]:
        """The keys that a stored data set does not match: tag, key, stored value."""
        found = [
            (tag, self.index.text(tag), index.text(tag))
            for tag, test in self.tests
            if tag not in index or not test(index.value(tag))
        ]
        if self.combined and not self._begins_in(self.combined, index):
            found.append((START_DATE, self.index.text(START_DATE), index.text(START_DATE)))
        for tag, nested in self.nested.items():
            items = index.items(tag)
            if nested.restricts and not any(map(nested.matches, items)):
                found += nested.mismatches(items[0] if items else EMPTY)
        return found

    def answer(self, data: bytes) -> bytes | None:
        """The encoded answer for a stored data set, None if it does not match."""
        index = ElementIndex(data)
        return self.select(index) if self.matches(index) else None

    def select(self, index: ElementIndex) -> bytes:
        """The requested attributes, with (0008,0005) if needed or requested."""
        for charset in (self.style.charset, self.style.fallback, UTF_8):
            try:
                return self._select(index, charset)
            except UnicodeEncodeError:
                continue
        raise AssertionError("UTF-8 encodes any text")

    def _select(self, index: ElementIndex, charset: CharacterSet) -> bytes:
        body = b"".join(self._elements(index, charset))
        named = charset.terms not in ((), ("ISO_IR 6",))  # PS3.3 Table C.12-2 has no term for ASCII
        if named and (SPECIFIC_CHARACTER_SET in self.index or self._extended(index)):
            head = self._encode(SPECIFIC_CHARACTER_SET, b"CS", bytes(charset))
            return head + body
        return body

    def _extended(self, index: ElementIndex) -> bool:
        """Whether a requested text is non-ASCII."""
        data, found = index.data, index.found
        for tag in self.texts:
            if tag not in found:
                continue
            vr, _, start, end = found[tag]
            if vr == b"SQ":
                # tags and lengths are ASCII but for the delimiters, whose bytes alone are
                # not UTF-8: usually this saves parsing the items
                if data[start + 8 : end].translate(None, b"\xdd\xe0\xfe\xff").isascii():
                    continue
                nested = self.nested.get(tag)
                extended = nested._extended if nested else has_extended_text
                if any(map(extended, index.items(tag))):
                    return True
            elif vr in TEXT_VRS and not data[start:end].isascii():
                return True
        return False

    def _elements(self, index: ElementIndex, charset: CharacterSet) -> list[bytes]:
        """The requested elements of a data set or item, in the answer's syntax and set."""
        data, found, parts = index.data, index.found, []
        plain = charset.codec == "utf-8"
        verbatim = self.explicit and plain
        one_name = self.style.name_groups != "all"
        for tag, raw_tag, absent in self.shape:
            entry = found.get(tag)
            if entry is None:
                if absent:
                    parts.append(absent)
                continue
            vr, head, start, end = entry
            if vr == b"SQ":
                parts.append(self._sequence(tag, index, charset))
            elif verbatim and not (one_name and vr == b"PN"):
                parts.append(data[head:end])
            else:
                value = data[start:end]
                if one_name and vr == b"PN":
                    value = one_group(value, self.style.name_groups)
                if not plain and vr in TEXT_VRS and not value.isascii():
                    value = self._text(vr, value, charset)
                if self.explicit:
                    parts.append(encode_element(tag, vr, value))
                else:
                    parts += raw_tag, LENGTH.pack(len(value)), value
        return parts

    def _text(self, vr: bytes, value: bytes, charset: CharacterSet) -> bytes:
        """A stored text in another set; of a name at least the first group."""
        if charset.codec == "utf-8":
            return value
        text = value.decode().rstrip(" ")
        with contextlib.suppress(UnicodeEncodeError):
            return pad(charset.encode(text, vr), vr)
        text = charset.fitted(text)
        if vr != b"PN" or charset.carries(text):
            return pad(charset.encode(text, vr), vr)
        names = []
        for name in text.split("\\"):
            groups = [group if charset.carries(group) else "" for group in name.split("=")]
            if not groups[0]:
                charset.encode(name, vr)  # raises, so that the next set is tried
            names.append("=".join(groups).rstrip("="))
        return pad(charset.encode("\\".join(names), vr), vr)

    def _sequence(self, tag: int, index: ElementIndex, charset: CharacterSet) -> bytes:
        nested = self.nested.get(tag)
        items = index.items(tag)
        if nested:
            if nested.restricts:  # PS3.4 C.2.2.2.6: only the items that match
                items = [item for item in items if nested.matches(item)]
            contents = [b"".join(nested._elements(item, charset)) for item in items]
        elif self.explicit and charset.codec == "utf-8" and self.style.name_groups == "all":
            return index.element(tag)
        else:
            contents = [self._whole(item, charset) for item in items]
        if not contents and not self.style.empty_sequences:
            return b""
        value = b"".join(map(encode_item, contents))
        return self._encode(tag, b"SQ", value)

    def _whole(self, item: ElementIndex, charset: CharacterSet) -> bytes:
        """A whole item in the answer's syntax and character set."""
        parts = []
        for tag in item:
            vr = item.vr(tag)
            if vr == b"SQ":
                contents = [self._whole(inner, charset) for inner in item.items(tag)]
                value = b"".join(map(encode_item, contents))
            else:
                value = item.value(tag)
                if vr == b"PN" and self.style.name_groups != "all":
                    value = one_group(value, self.style.name_groups)
                if vr in TEXT_VRS:
                    value = self._text(vr, value, charset)
            parts.append(self._encode(tag, vr, value))
        return b"".join(parts)

    def _encode(self, tag: int, vr: bytes, value: bytes) -> bytes:
        if self.explicit:
            return encode_element(tag, vr, value)
        value = pad(value, vr)
        return TAG_AND_LENGTH.pack(tag >> 16, tag & 0xFFFF, len(value)) + value


def has_extended_text(index: ElementIndex) -> bool:
    """Whether any text of a data set is non-ASCII."""
    return any(
        holder.vr(tag) in TEXT_VRS and not holder.value(tag).isascii()
        for holder, tag in every_element(index)
    )


def encode_whole(data: bytes, explicit: bool, style: AnswerStyle) -> bytes:
    """A stored data set in a receiver's syntax and character set, with (0008,0005) if needed."""
    index = ElementIndex(data).without([SPECIFIC_CHARACTER_SET])
    search = Search(EMPTY, MWL_ATTRIBUTES, explicit, style)
    if not has_extended_text(index):
        return search._whole(index, UTF_8)
    texts = [one.text(tag) for one, tag in every_element(index) if one.vr(tag) in TEXT_VRS]
    sets = (style.charset, style.fallback, UTF_8)
    charset = next(one for one in sets if all(one.carries(one.fitted(text)) for text in texts))
    head = search._encode(SPECIFIC_CHARACTER_SET, b"CS", bytes(charset))
    return head + search._whole(index, charset)


def to_syntax(data: bytes, explicit: bool) -> bytes:
    """A stored data set as Explicit or Implicit VR Little Endian, in UTF-8."""
    if explicit:
        return data
    search = Search(EMPTY, MWL_ATTRIBUTES, explicit=False)
    return search._whole(ElementIndex(data), UTF_8)
