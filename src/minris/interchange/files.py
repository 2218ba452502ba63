"""Import of worklist items from files: DICOM, DICOM JSON, CSV."""

import json
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from minris import log
from minris.dataset.dicom_json import from_json
from minris.dataset.elements import ELEMENT_HEADER, ElementIndex, Malformed
from minris.dataset.recode import Recoded, recode_noting
from minris.dataset.text import set_of_codec
from minris.interchange.csv_tables import items_from_csv, read_csv, unknown_columns
from minris.interchange.decoding import ReadAs, Reading, readings_of, text_of
from minris.standard.dictionary import KNOWN_VRS, LONG_VRS, attribute_name
from minris.standard.encodings import ENCODINGS
from minris.standard.status import Message, Problem, Refusal, Status, joined
from minris.standard.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN


def read_dicom_file(content: bytes, encoding: str = "", usual: str = "") -> bytes:
    """The data set of a DICOM file, with or without preamble, in the stored form.

    encoding  name of the encoding of its texts, whatever (0008,0005) says; "" as it says
    usual     encoding of texts that contradict it
    Refuses   0106 for an unreadable file, and for texts that could only be guessed
    """
    if not content:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("The file is empty"))
    at = 132 if content[128:132] == b"DICM" else 0
    try:
        syntax, at = _file_meta(content, at)
        syntax = syntax or guess_syntax(content[at:])
        if syntax not in (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN):
            raise Malformed(f"transfer syntax {syntax} is not supported")
        found = _with_texts(content[at:], syntax == EXPLICIT_VR_LITTLE_ENDIAN, encoding)
        if usual and not encoding and (found.guessed or found.damaged):
            found = _with_texts(content[at:], syntax == EXPLICIT_VR_LITTLE_ENDIAN, usual)
        if doubtful := (*found.guessed, *found.damaged):
            words = Message("cannot be read in the character set of the file")
            problems = [Problem(tag, words) for tag in dict.fromkeys(doubtful)]
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
        if found.recovered:
            log.warning("import: %s, recovered", ", ".join(map(attribute_name, found.recovered)))
        return found.data
    except (Malformed, struct.error) as error:
        words = Message("cannot be read: {error}", error=error)
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words) from None


def _with_texts(data: bytes, explicit: bool, encoding: str) -> Recoded:
    """A data set in the stored form, its texts in an encoding, or as (0008,0005) says."""
    given = set_of_codec(ENCODINGS[encoding].codec) if encoding else None
    return recode_noting(data, explicit, given=given)


def _file_meta(content: bytes, at: int) -> tuple[str, int]:
    """The transfer syntax of a file meta group, and the offset of the data set."""
    start, syntax = at, ""
    while content[at : at + 2] == b"\x02\x00":
        _, number, vr, length = ELEMENT_HEADER.unpack_from(content, at)
        at += 8
        if vr in LONG_VRS:
            length = int.from_bytes(content[at : at + 4], "little")
            at += 4
        if number == 0x0010:
            syntax = content[at : at + length].decode("ascii", "replace").strip(" \0")
        at += length
    if at > start and not syntax:
        raise Malformed("the file does not name its transfer syntax")
    return syntax, at


def guess_syntax(data: bytes) -> str:
    """Explicit VR Little Endian if the first element has a VR, else Implicit."""
    explicit = data[4:6] in KNOWN_VRS
    return EXPLICIT_VR_LITTLE_ENDIAN if explicit else IMPLICIT_VR_LITTLE_ENDIAN


def is_csv(name: str) -> bool:
    """Whether a file is a CSV file, by its name."""
    return name.lower().endswith(".csv")


def read_items(
    name: str, content: bytes, read_as: ReadAs = ReadAs(), usual: str = ""
) -> list[bytes]:
    """The worklist items of one file, in the stored form.

    name     .csv, or .json for DICOM JSON, one data set or an array; else a DICOM file
    usual    encoding of files that do not tell it
    Refuses  0106, with "item N" if the file has several
    """
    if is_csv(name):
        return items_from_csv(text_of(content, read_as.encoding, usual), read_as.leave_out)
    if content[:3] == b"\xef\xbb\xbf":
        content = content[3:]
    if name.lower().endswith(".json") or content.lstrip()[:1] in (b"[", b"{"):
        return items_from_json(content)
    return [read_dicom_file(content, read_as.encoding, usual)]


def encodings_to_choose(name: str, content: bytes) -> list[Reading]:
    """The encodings that a file may be read in, with samples; [] if there is no doubt."""
    if is_csv(name):
        return readings_of(content)
    found: dict[str, Reading] = {}
    for one in ENCODINGS:
        try:
            index = ElementIndex(read_dicom_file(content, one))
        except Refusal:
            continue
        sample = index.get("PatientName")
        found.setdefault(sample, Reading(one, sample))
    return list(found.values()) if len(found) > 1 else []


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a duplicate key, as one of the values would be lost."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:40]!r} occurs twice")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _values_of_array(text: str) -> Iterator[Any]:
    """The values of a JSON array one by one, so that not all are held; else the one value."""
    decoder = json.JSONDecoder(object_pairs_hook=_keys_once, parse_constant=_no_constant)
    at, between = _past_space(text, 0), "["
    if text[at : at + 1] != "[":
        yield decoder.decode(text)
        return
    while text[at : at + 1] == between:
        at = _past_space(text, at + 1)
        if between == "[" and text[at : at + 1] == "]":
            break
        value, at = decoder.raw_decode(text, at)
        yield value
        at, between = _past_space(text, at), ","
    if text[at : at + 1] != "]":
        raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    if (end := _past_space(text, at + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _past_space(text: str, at: int) -> int:
    found = JSON_SPACE.match(text, at)
    return found.end() if found else at


JSON_SPACE = re.compile(r"[ \t\n\r]*")


def items_from_json(content: bytes) -> list[bytes]:
    """The data sets of a DICOM JSON text, an object or an array. Refuses 0106."""
    items: list[bytes] = []
    try:
        text = content.decode(json.detect_encoding(content))
        for value in _values_of_array(text):
            items.append(from_json(value))
    except Refusal as refusal:
        raise numbered(refusal, len(items) + 1) from None
    except (ValueError, RecursionError) as error:
        words = Message("is not JSON: {error}", error=error)
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words) from None
    return items


def numbered(refusal: Refusal, number: int, word: str = "item") -> Refusal:
    """The refusal with the item's number and all its problems as its sentence."""
    found = [problem.message for problem in refusal.problems]
    words = joined(found, "; ") if found else Message(refusal.detail)
    line = Message("{word} {number}: {words}", word=Message(word), number=number, words=words)
    return Refusal(refusal.status, line, refusal.problems)


def refused_items(refusals: Sequence[Refusal]) -> Refusal:
    """The refusal of a file, with a line for each of its items that is refused."""
    lines = [refusal.detail for refusal in refusals[:100]]
    if len(refusals) > 100:
        lines.append(Message("and {count} more", count=len(refusals) - 100))
    problems = [problem for refusal in refusals[:100] for problem in refusal.problems]
    return Refusal(refusals[0].status, joined(lines, "\n"), problems)


def left_out(name: str, content: bytes, read_as: ReadAs, usual: str) -> list[str]:
    """The columns of a file that fill nothing. Refuses 0106."""
    return unknown_columns(text_of(content, read_as.encoding, usual)) if is_csv(name) else []


def preview_lines(
    name: str, content: bytes, read_as: ReadAs = ReadAs(), usual: str = ""
) -> tuple[list[list[str]], int]:
    """The first lines of a file with their heads, and the number of lines. Refuses 0106."""
    if is_csv(name):
        names, lines = read_csv(text_of(content, read_as.encoding, usual))
        return [names, *(cells for _, cells in lines[:MOST_SHOWN])], len(lines)
    items = read_items(name, content, read_as, usual)
    head = ["PatientID", "PatientName", "AccessionNumber"]
    lines = [[ElementIndex(item).get(keyword) for keyword in head] for item in items[:MOST_SHOWN]]
    return [head, *lines], len(items)


MOST_SHOWN = 50  # lines of a preview
