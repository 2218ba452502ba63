"""The DICOM JSON Model, to and from the stored form (PS3.18 F)."""

import base64
import math
import re
import struct
from collections.abc import Mapping
from typing import Any

from pydicom import datadict

from minris.dataset.elements import (
    TAG,
    ElementIndex,
    encode_element,
    encode_item,
    encoded,
    unpack_numbers,
)
from minris.dataset.text import SPECIFIC_CHARACTER_SET
from minris.standard.dictionary import BINARY_NUMBERS, KNOWN_VRS, ONE_VALUE_VRS, allows, vr_of
from minris.standard.status import Message, Problem, Refusal, Status

_INLINE_BINARY_VRS = frozenset(b"OB OD OF OL OV OW UN".split())
NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def _json_number(text: str) -> float | str:
    """A DS or IS as a number if that loses nothing, else as text."""
    if re.fullmatch(r"-?\d{1,15}", text) and str(int(text)) == text:
        return int(text)
    if re.fullmatch(r"-?\d+\.\d+", text) and str(float(text)) == text:
        return float(text)
    return text


def _json_name(text: str) -> dict[str, str] | None:
    groups = text.split("=", 2)  # more are illegal, but kept as sent
    return {n: g for n, g in zip(NAME_GROUPS, groups, strict=False) if g} or None


def _json_whole_or_float(number: float) -> float | str:
    """A binary number; as text if JSON has none, or if a reader using doubles would change it."""
    if isinstance(number, int):
        return number if abs(number) < 2**53 else str(number)
    return number if math.isfinite(number) else "NaN" if number != number else str(number)


def _json_values(vr: bytes, index: ElementIndex, tag: int) -> list[Any]:
    if vr == b"SQ":
        return [to_json(item) for item in index.items(tag)]
    if vr in BINARY_NUMBERS:
        return [_json_whole_or_float(n) for n in unpack_numbers(vr, index.value(tag))]
    if vr == b"AT":
        value = index.value(tag)
        pairs = struct.iter_unpack("<HH", value[: len(value) // 4 * 4])
        return [f"{group:04X}{element:04X}" for group, element in pairs]
    if vr in ONE_VALUE_VRS:
        return [index.text(tag)]
    values = index.values(tag)
    if vr == b"PN":
        return [_json_name(value) for value in values]
    if vr in (b"DS", b"IS"):
        return [_json_number(value) if value else None for value in values]
    return [value or None for value in values]


def to_json(index: ElementIndex) -> dict[str, Any]:
    """Convert a stored data set to an object of the DICOM JSON Model."""
    result: dict[str, Any] = {}
    for tag in index:
        vr = index.vr(tag)
        member: dict[str, Any] = {"vr": vr.decode()}
        if vr in _INLINE_BINARY_VRS:
            if value := index.value(tag):
                member["InlineBinary"] = base64.b64encode(value).decode()
        elif index.has_value(tag) and (values := _json_values(vr, index, tag)):
            member["Value"] = values
        result[f"{tag:08X}"] = member
    return result


def _bad_json(key: str, words: str, **values: object) -> Refusal:
    tag = int(key, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", key) else 0
    words = words if tag else f"{key[:40]!r}: {words}"
    return Refusal(
        Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(tag, Message(words, **values))]
    )


def _from_json_values(key: str, vr: bytes, values: list[Any], depth: int) -> bytes:
    if vr == b"SQ":
        if not all(item is None or isinstance(item, dict) for item in values):
            raise TypeError
        return b"".join(encode_item(from_json(item or {}, depth + 1)) for item in values)
    if vr in BINARY_NUMBERS:
        code = BINARY_NUMBERS[vr]
        cast = _float if code in "fd" else _whole_number
        return struct.pack(f"<{len(values)}{code}", *map(cast, values))
    if vr == b"AT":
        if not all(re.fullmatch(r"[0-9A-Fa-f]{8}", value) for value in values):
            raise TypeError
        return b"".join(TAG.pack(int(v[:4], 16), int(v[4:8], 16)) for v in values)
    if len(values) > 1 and vr in ONE_VALUE_VRS:
        raise _bad_json(key, "has more than one value")
    texts = [_json_text(vr, value) for value in values]
    if vr not in ONE_VALUE_VRS and any("\\" in text for text in texts):
        raise _bad_json(key, "has a backslash, which would make two values of one")  # PS3.18 F.2.4
    return "\\".join(texts).rstrip(" ").encode()


def _json_text(vr: bytes, value: Any) -> str:
    """One value of a text VR. Raises TypeError."""
    if vr == b"PN" and isinstance(value, dict):
        if value.keys() - set(NAME_GROUPS):
            raise TypeError
        groups = [value.get(name, "") for name in NAME_GROUPS]
        groups = ["" if group is None else group for group in groups]
        if any("=" in group for group in groups[:2]):
            raise TypeError
        return "=".join(groups).rstrip("=")
    if value is None or isinstance(value, str):
        return value or ""
    if type(value) in (int, float) and math.isfinite(value):
        return str(value)
    raise TypeError


def _whole_number(value: Any) -> int:
    """A JSON number, or a text of one, as an integer. Raises TypeError if it is not whole."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,20}\s*", value):
        return int(value)
    if type(value) is not int:
        raise TypeError
    return value


def _float(value: Any) -> float:
    """A JSON number, or a text of a number, NaN or infinity. Raises TypeError for others."""
    if isinstance(value, str) and not re.fullmatch(
        r"[\s0-9.eE+-]*|NaN|nan|[+-]?(inf|INF|Infinity)", value
    ):
        raise TypeError
    if type(value) not in (int, float, str):
        raise TypeError
    number = float(value)
    if math.isinf(number) and not (isinstance(value, str) and "n" in value.lower()):
        raise TypeError
    return number


def _json_vr(key: str, tag: int, given: Any) -> bytes:
    """The VR of a member, that of the dictionary if none is given. Refuses 0106."""
    if given is None:
        return vr_of(tag).encode()
    vr = given.encode("ascii", "replace") if isinstance(given, str) else b""
    if vr not in KNOWN_VRS:
        raise _bad_json(key, "has no known vr")
    if vr == b"UN" and vr_of(tag) != "SQ":
        return vr_of(tag).encode()
    if not allows(tag, vr):
        raise _bad_json(key, "has the vr {vr}, not {right}", vr=given, right=vr_of(tag))
    return vr


def from_json(value: Any, depth: int = 1) -> bytes:
    """Convert an object of the DICOM JSON Model to the stored form; keys may be keywords too.

    Refuses 0106 with the key that is wrong. Source: PS3.18 F
    """
    if not isinstance(value, dict):
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("is not an object of DICOM JSON"))
    if depth > 16:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("is nested too deep"))
    found: dict[int, bytes] = {}
    for key, member in value.items():
        tag = int(key, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", key) else None
        if tag is None and key:  # the dictionary has an entry with an empty keyword
            tag = datadict.tag_for_keyword(key)
        if tag is None or tag >> 16 in (0, 2, 0xFFFE):
            raise _bad_json(key, "is not an attribute")
        if tag == SPECIFIC_CHARACTER_SET or not tag & 0xFFFF:
            continue  # both JSON and the stored form are UTF-8
        if not isinstance(member, dict):
            raise _bad_json(key, "is not an object with vr and Value")
        if tag in found:
            raise _bad_json(key, "is there twice")
        vr = _json_vr(key, tag, member.get("vr"))
        try:
            found[tag] = encode_element(tag, vr, _json_member(key, vr, member, depth))
        except (TypeError, ValueError, AttributeError, struct.error, OverflowError):
            raise _bad_json(key, "has a value that its vr does not allow") from None
    return encoded(found)


_JSON_CONTENTS = frozenset(("Value", "InlineBinary", "BulkDataURI"))


def _json_member(key: str, vr: bytes, member: Mapping[str, Any], depth: int) -> bytes:
    if unknown := member.keys() - {"vr", *_JSON_CONTENTS}:
        raise _bad_json(key, "has {name}, which is no part of it", name=repr(min(unknown)[:40]))
    if len(member.keys() & _JSON_CONTENTS) > 1:
        raise _bad_json(key, "has more than one of Value, InlineBinary and BulkDataURI")
    if "InlineBinary" in member:
        if vr not in _INLINE_BINARY_VRS or not isinstance(member["InlineBinary"], str):
            raise TypeError
        return base64.b64decode(member["InlineBinary"], validate=True)
    if "BulkDataURI" in member:
        raise _bad_json(key, "is elsewhere: bulk data are not fetched")
    values = member.get("Value", [])
    if vr in _INLINE_BINARY_VRS and values:
        raise TypeError
    if not isinstance(values, list):
        raise _bad_json(key, "has a Value that is not an array")
    return _from_json_values(key, vr, values, depth)
