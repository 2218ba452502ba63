"""Matching of one key: wildcards, names, UIDs, numbers, ranges (PS3.4 C.2.2.2)."""

import contextlib
import datetime
import re
from collections.abc import Callable

from minris.dataset.elements import ElementIndex, unpack_numbers
from minris.dataset.names import name_groups, name_key, plain
from minris.dataset.times import instants, key_interval, key_refusal
from minris.standard.dictionary import BINARY_NUMBERS, ONE_VALUE_VRS

Test = Callable[[bytes], bool]
WILDCARD_VRS = frozenset(b"AE CS LO LT PN SH ST UC UR UT".split())  # PS3.4 C.2.2.2.4


class Wildcard:
    """A pattern: `*` for any run, `?` for exactly one character, anything else literally.

    The pieces between stars are searched from left to right, so that no key takes long.
    """

    def __init__(self, text: str) -> None:
        self.pieces = [
            re.compile("".join("." if c == "?" else re.escape(c) for c in piece), re.S)
            for piece in text.split("*")
        ]
        self.lengths = [len(piece) for piece in text.split("*")]

    def fullmatch(self, text: str) -> bool:
        """Whether the whole text matches."""
        first, *rest = self.pieces
        if not rest:
            return first.fullmatch(text) is not None
        *middle, last = rest
        found = first.match(text)
        if not found:
            return False
        at = found.end()
        for piece in middle:
            found = piece.search(text, at)
            if not found:
                return False
            at = found.end()
        start = len(text) - self.lengths[-1]
        return start >= at and last.fullmatch(text, start) is not None


def loose_name_test(text: str) -> Callable[[str], bool]:
    """A test of a Chinese name in any spelling: spaces, tones and carets do not matter."""
    if "=" in text or "?" in text:
        return lambda name: False
    parts = [name_key(part) for part in text.split("*")]
    if not any(parts):
        return lambda name: False
    pattern = Wildcard("*".join(parts))
    return lambda name: any(map(pattern.fullmatch, filter(None, name_key(name).split("="))))


def _name_patterns(group: str) -> list[Wildcard]:
    """The patterns of one group of a key, [] for any; SMITH^* matches SMITH too."""
    if not group.strip("*"):
        return []
    found = [group]
    while (shorter := re.sub(r"\^\*?$", "", found[-1])) != found[-1]:
        found.append(shorter)
    return [Wildcard(one) for one in found if one]


def name_test(text: str) -> Test:
    """The test of a PN key, without case and accents; without `=` it is tried on each group.

    A name with an ideographic group is found by any spelling of its Latin group.
    Source: PS3.4 C.2.2.2.1.1, C.2.2.2.4
    """
    loosely = loose_name_test(text)
    if "*" in text or "?" in text:
        groups = [plain(group).strip(" ") for group in text.split("=")]
        patterns = [_name_patterns(group) for group in groups]

        def fits(number: int, group: str) -> bool:
            return not patterns[number] or any(one.fullmatch(group) for one in patterns[number])
    else:
        groups = name_groups(text)

        def fits(number: int, group: str) -> bool:
            return not groups[number] or groups[number] == group

    def test(value: bytes) -> bool:
        for name in value.decode("utf-8", "replace").split("\\"):
            stored = name_groups(name)
            if len(groups) == 1:
                if any(group and fits(0, group) for group in stored):
                    return True
            elif all(
                fits(number, stored[number] if number < len(stored) else "")
                for number in range(len(groups))
            ):
                return True
            if "=" in name and loosely(name):
                return True
        return False

    return test


def text_test(text: str, vr: bytes) -> Test:
    """The test of a key of another text VR: exact and case-sensitive, or with wildcards."""
    one_value = vr in ONE_VALUE_VRS
    if vr in WILDCARD_VRS and ("*" in text or "?" in text):
        pattern = Wildcard(text)

        def test(value: bytes) -> bool:
            stored = value.decode("utf-8", "replace")
            values = [stored] if one_value else stored.split("\\")
            return any(pattern.fullmatch(one.strip(" ")) for one in values if one.strip(" "))
    else:
        wanted = text.encode()

        def test(value: bytes) -> bool:
            if value.strip(b" \0") == wanted:
                return True
            return (
                b"\\" in value and not one_value and wanted in map(bytes.strip, value.split(b"\\"))
            )

    return test


def uid_test(uids: list[str]) -> Test:
    """The test of a UI key: any of the UIDs in the list (PS3.4 C.2.2.2.2)."""
    wanted = frozenset(uid.encode() for uid in uids)
    return lambda value: not wanted.isdisjoint(one.strip(b" \0") for one in value.split(b"\\"))


def number_test(text: str, vr: bytes) -> Test:
    """The test of a number: equal by value."""
    wanted = frozenset(map(float, text.split("\\")))
    if vr in BINARY_NUMBERS:
        return lambda value: not wanted.isdisjoint(unpack_numbers(vr, value))

    def test(value: bytes) -> bool:
        with contextlib.suppress(ValueError):
            return not wanted.isdisjoint(float(one) for one in value.split(b"\\"))
        return False

    return test


def key_test(
    tag: int, vr: bytes, index: ElementIndex, zone: datetime.tzinfo | None = None
) -> Test | None:
    """The test of one key, None if it is universal. Refuses A900 for an invalid key."""
    text = index.text(tag)
    if not text or not text.strip("*"):
        return None  # PS3.4 C.2.2.2.3; `*` alone: C.2.2.2.4 note 1
    values = [value.strip(" ") for value in text.split("\\")]
    if vr == b"UI":
        return uid_test(values)
    if len(values) > 1 and vr not in ONE_VALUE_VRS:
        raise key_refusal(tag, "has several values")  # local: C.2.2.2.8 note 4 leaves it open
    if vr == b"PN":
        return name_test(text)
    if vr in (b"DA", b"TM"):
        return key_interval(tag, vr, text).test
    if vr == b"DT":
        return instants(tag, text, zone).test
    if vr in BINARY_NUMBERS or vr in (b"DS", b"IS"):
        try:
            return number_test(text, vr)
        except ValueError:
            raise key_refusal(tag, "is not a number") from None
    return text_test(text, vr)
