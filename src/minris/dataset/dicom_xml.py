"""The Native DICOM Model, by way of the JSON model (PS3.19 A.1)."""

import re
from collections.abc import Mapping
from typing import Any

from pydicom import datadict

from minris.dataset.dicom_json import NAME_GROUPS
from minris.standard.status import HttpRefusal

NAME_PARTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")


def to_xml(value: Mapping[str, Any]) -> bytes:
    """Convert an object of the DICOM JSON Model to a document of the Native DICOM Model."""
    from xml.etree import ElementTree

    root = ElementTree.Element("NativeDicomModel", {"xml:space": "preserve"})
    _xml_data_set(root, value)
    # a parser turns CR LF and CR into LF unless CR is written as a reference (XML 1.0 2.11)
    text: bytes = ElementTree.tostring(root, "utf-8", xml_declaration=True)
    return text.replace(b"\r", b"&#13;")


def _xml_text(text: str) -> str:
    """A text with U+FFFD for each character that XML does not allow (XML 1.0 2.2)."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def is_creator(key: str) -> bool:
    """Whether a tag is that of a private creator, which reserves a block (PS3.5 7.8.1)."""
    return re.fullmatch(r"[0-9A-F]{3}[13579BDF]00[1-9A-F][0-9A-F]", key) is not None


def _private_creators(value: Mapping[str, Any]) -> dict[str, str]:
    """Private creators by tag, without those that reserve several blocks of a group."""
    found: dict[tuple[str, str], list[str]] = {}
    for key in filter(is_creator, value):
        for name in value[key].get("Value", [])[:1]:
            if isinstance(name, str):
                found.setdefault((key[:4], _xml_text(name)), []).append(key)
    return {keys[0]: name for (_, name), keys in found.items() if len(keys) == 1}


def _xml_names(key: str, creators: Mapping[str, str]) -> dict[str, str]:
    """The XML attributes that name an element: gggg00ee and creator if private (PS3.19 A.1.5)."""
    tag = int(key, 16)
    if datadict.dictionary_has_tag(tag):
        return {"tag": key, "keyword": datadict.dictionary_keyword(tag)}
    creator = creators.get(f"{key[:4]}00{key[4:6]}")
    return {"tag": f"{key[:4]}00{key[6:]}", "privateCreator": creator} if creator else {"tag": key}


def _xml_data_set(parent: Any, value: Mapping[str, Any]) -> None:
    from xml.etree.ElementTree import SubElement

    creators = _private_creators(value)
    for key, member in value.items():
        names = _xml_names(key, creators) | {"vr": member["vr"]}
        element = SubElement(parent, "DicomAttribute", names)
        if "InlineBinary" in member:
            SubElement(element, "InlineBinary").text = member["InlineBinary"]
        for number, one in enumerate(member.get("Value", []), 1):
            if member["vr"] == "SQ":
                _xml_data_set(SubElement(element, "Item", number=str(number)), one or {})
            elif member["vr"] == "PN":
                _xml_name(SubElement(element, "PersonName", number=str(number)), one or {})
            else:
                text = "" if one is None else _xml_text(str(one))
                SubElement(element, "Value", number=str(number)).text = text


def _xml_name(element: Any, groups: Mapping[str, str]) -> None:
    from xml.etree.ElementTree import SubElement

    for group in NAME_GROUPS:
        if text := groups.get(group):
            parent = SubElement(element, group)
            for name, part in zip(NAME_PARTS, text.split("^", 4), strict=False):
                if part:
                    SubElement(parent, name).text = _xml_text(part)


def from_xml(content: bytes) -> dict[str, Any]:
    """Convert a document of the Native DICOM Model to the JSON Model. Refuses 400 with the line."""
    import xml.parsers.expat
    from xml.etree.ElementTree import TreeBuilder

    builder, depth = TreeBuilder(), 0
    parser = xml.parsers.expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise HttpRefusal(400, f"line {parser.CurrentLineNumber}: a document type is not taken")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > 64:
            raise HttpRefusal(400, f"line {parser.CurrentLineNumber}: nested too deep")
        builder.start(tag.rpartition(":")[2], attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag.rpartition(":")[2])

    parser.StartDoctypeDeclHandler = refuse  # no entities of any kind
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
        root = builder.close()
    except xml.parsers.expat.ExpatError as error:
        raise HttpRefusal(400, f"line {error.lineno}: not well-formed XML") from None
    except (ValueError, LookupError):  # of the declared encoding
        raise HttpRefusal(400, "line 1: its encoding is not taken") from None
    if root.tag != "NativeDicomModel":
        raise HttpRefusal(400, f"line 1: {root.tag[:40]} is not NativeDicomModel")
    return _xml_members(root)


def _xml_children(parent: Any, *names: str) -> list[Any]:
    """The child elements. Refuses 400 for unexpected ones, and for text beside them."""
    tag = parent.get("tag") or parent.tag
    for child in parent:
        if child.tag not in names:
            raise HttpRefusal(400, f"{tag[:40]}: {child.tag[:40]} is not expected")
    if "".join([parent.text or "", *(child.tail or "" for child in parent)]).strip():
        raise HttpRefusal(400, f"{tag[:40]}: there is text outside of a value")
    return list(parent)


def _xml_members(parent: Any) -> dict[str, Any]:
    elements = _xml_children(parent, "DicomAttribute")
    blocks = _Blocks(elements)
    found: dict[str, Any] = {}
    for element in elements:
        key = element.get("tag") or element.get("keyword") or "?"
        key = blocks.tag(key, element.get("privateCreator"))
        if key in found:
            raise HttpRefusal(400, f"{key[:40]} is there twice")
        found[key] = _xml_member(element, key)
    return found | blocks.made


def _xml_member(element: Any, key: str) -> dict[str, Any]:
    member: dict[str, Any] = {"vr": element.get("vr")}
    for one in _xml_children(element, "Value", "Item", "PersonName", "InlineBinary", "BulkData"):
        if one.tag in ("InlineBinary", "BulkData"):
            name = "InlineBinary" if one.tag == "InlineBinary" else "BulkDataURI"
            if name in member:
                raise HttpRefusal(400, f"{key[:40]} has {one.tag} twice")
            member[name] = "".join((one.text or "").split()) or one.get("uri", "")
            continue
        values = member.setdefault("Value", [])
        expected = str(len(values) + 1)
        if (number := one.get("number", expected)) != expected:
            raise HttpRefusal(400, f"{key[:40]}: {one.tag} {number[:20]!r} is to be {expected}")
        values.append(_xml_value(one))
    return member


class _Blocks:
    """The blocks of private creators in a data set (PS3.5 7.8.1, PS3.19 A.1.5).

    made    the private creator elements that had to be added
    """

    def __init__(self, elements: list[Any]) -> None:
        self.made: dict[str, Any] = {}
        self.owners: dict[str, str] = {}
        self.blocks: dict[tuple[str, str], str] = {}
        for element in elements:
            key = (element.get("tag") or "").upper()
            if is_creator(key) and not element.get("privateCreator"):
                self._reserve(key, (element.findtext("Value") or "").strip())

    def _reserve(self, key: str, creator: str) -> None:
        self.owners[key] = creator
        self.blocks.setdefault((key[:4], creator), key[6:])

    def tag(self, key: str, creator: str | None) -> str:
        """The tag of an element in the block of its creator. Refuses 400 if no block is free."""
        creator = (creator or "").strip()
        if not creator or not re.fullmatch(r"[0-9A-Fa-f]{3}[13579BDFbdf][0-9A-Fa-f]{4}", key):
            return key
        key = key.upper()
        group, block = key[:4], key[4:6]
        if block == "00":
            blocks = (f"{number:02X}" for number in range(0x10, 0x100))
            free = (one for one in blocks if f"{group}00{one}" not in self.owners)
            block = self.blocks.get((group, creator)) or next(free, "")
        owner = f"{group}00{block}"
        if not is_creator(owner) or self.owners.get(owner, creator) != creator:
            raise HttpRefusal(400, f"{key}: there is no block for {creator[:64]!r}")
        if owner not in self.owners:
            self._reserve(owner, creator)
            self.made[owner] = {"vr": "LO", "Value": [creator]}
        return f"{group}{block}{key[6:]}"


def _xml_value(element: Any) -> Any:
    if element.tag == "Item":
        return _xml_members(element)
    if element.tag == "Value":
        if len(element):
            raise HttpRefusal(400, f"Value: {element[0].tag[:40]} is not expected")
        return element.text or ""
    groups = {}
    for group in _xml_children(element, *NAME_GROUPS):
        parts = {part.tag: part.text or "" for part in _xml_children(group, *NAME_PARTS)}
        groups[group.tag] = "^".join(parts.get(name, "") for name in NAME_PARTS).rstrip("^")
    return groups
