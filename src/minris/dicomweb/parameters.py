"""Query parameters: matching keys, paging, returned attributes (PS3.18 8.3)."""

import functools
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

from pydicom import datadict

from minris.standard.attributes import AttributeTable
from minris.standard.dictionary import vr_of
from minris.standard.status import HttpRefusal
from minris.standard.ups import TIMEZONE_OFFSET


def split_list(text: str) -> list[str]:
    """Return the members of a comma-separated list; commas within quotes do not separate."""
    return [one.strip() for one in re.findall(r'(?:[^,"]|"[^"]*")+', text) if one.strip()]


# The parameters of a search (PS3.18 8.3.4).

FLAGS = ("fuzzymatching", "emptyvaluematching", "multiplevaluematching")
LITERAL_ONLY = (
    "The fuzzymatching parameter is not supported. Only literal matching has been performed.",
    "The emptyvaluematching parameter is not supported. Empty Value Matching has not been performed.",
    "The multiplevaluematching parameter is not supported. Multiple Value Matching has not been performed.",
)


def query_parameters(request: Any) -> list[tuple[str, str]]:
    """Return the names and raw values of the query, split before decoding."""
    parts = (part.partition("=") for part in request.query_string.split("&") if part)
    return [(urllib.parse.unquote(name), value) for name, _, value in parts]


def parameter(request: Any, name: str) -> str:
    """Return the decoded value of a parameter, empty if missing. Refuses 400 if given twice."""
    found = [value for key, value in query_parameters(request) if key == name]
    if len(found) > 1:
        raise HttpRefusal(400, f"{name} is given twice")
    return urllib.parse.unquote_plus(found[-1]) if found else ""


def flag(request: Any, name: str) -> bool:
    """Return a parameter that is true or false, false if missing. Refuses 400."""
    text = parameter(request, name) or "false"
    if text not in ("true", "false"):
        raise HttpRefusal(400, f"{name} must be true or false")
    return text == "true"


def number(request: Any, name: str) -> int | None:
    """Return a parameter that is a whole number, None if missing. Refuses 400."""
    text = parameter(request, name)
    if text and not re.fullmatch(r"[0-9]{1,9}", text):
        raise HttpRefusal(400, f"{name} must be a whole number")
    return int(text) if text else None


@functools.lru_cache(maxsize=1)
def known_keywords() -> frozenset[str]:
    """Every keyword of the dictionary in lower case, to tell misspelled attributes from others."""
    return frozenset(entry[4].lower() for entry in datadict.DicomDictionary.values() if entry[4])


def attribute_path(name: str) -> tuple[int, ...] | None:
    """Return the tags of a name such as `ReferencedRequestSequence.AccessionNumber`, or None.

    None  the name does not look like an attribute
    Refuses 400 for an unknown attribute or a keyword in the wrong case
    """
    first = name.partition(".")[0]
    looks = re.fullmatch(r"[A-Z]\w*|[0-9A-Fa-f]{8}", first) or first.lower() in known_keywords()
    if not looks:
        return None
    tags = []
    for one in name.split("."):
        is_tag = re.fullmatch(r"[0-9A-Fa-f]{8}", one)
        tag = int(one, 16) if is_tag else datadict.tag_for_keyword(one)
        if tag is None or not tag >> 16:
            raise HttpRefusal(400, f"{name[:80]} is not an attribute")
        tags.append(tag)
    return tuple(tags)


def match_keys(parameters: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the matching keys of a search as a DICOM JSON object. Refuses 400."""
    keys: dict[str, Any] = {}
    for name, raw in parameters:
        path = attribute_path(name)
        if path is None:
            continue
        level = keys
        for tag in path[:-1]:
            if vr_of(tag) != "SQ":
                raise HttpRefusal(400, f"{name[:80]} leads through no sequence")
            member = level.setdefault(f"{tag:08X}", {"vr": "SQ", "Value": [{}]})
            level = member["Value"][0]
        key, vr = f"{path[-1]:08X}", vr_of(path[-1])
        if key in level:
            raise HttpRefusal(400, f"{name[:80]} is given twice")
        signed = vr == "DT" or path[-1] == TIMEZONE_OFFSET  # +0800
        decode = urllib.parse.unquote if signed else urllib.parse.unquote_plus
        texts = re.split(r"[,\\]", decode(raw)) if vr == "UI" else [decode(raw)]
        level[key] = {"vr": vr, "Value": [text for text in texts if text]}
    return keys


def returned_keys(request: Any, table: AttributeTable, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the answer: return types 1 and 2, the matching keys, includefield."""
    wanted = [one for name, one in query_parameters(request) if name == "includefield"]
    names = [name for one in wanted for name in split_list(urllib.parse.unquote_plus(one))]
    if "all" in names and len(names) > 1:
        raise HttpRefusal(400, "includefield must be all or a list of attributes")
    kinds = ("1", "1C", "2", "2C", "3") if names == ["all"] else ("1", "1C", "2", "2C")
    tags = {one.tag for one in table.children() if one.cells["return"] in kinds}
    tags |= {int(key, 16) for key in keys}
    for name in names if names != ["all"] else []:
        path = attribute_path(name)
        if path is None:
            raise HttpRefusal(400, f"{name[:80]} is not an attribute")
        tags.add(path[0])
    return {f"{tag:08X}": {"vr": vr_of(tag)} for tag in sorted(tags)}


LOCK_PARAMETERS = {"transaction-uid", "transaction", "transactionuid", "00081195"}
