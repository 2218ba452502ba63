"""DATASETS: encoded data sets, against pydicom's reader, writer and JSON, and against garbage.

What is random here comes from a seed, so that a failure comes again.
"""

import base64
import io
import json
import random
import re
import struct
import time
import warnings

import pydicom.charset
import pytest
from pydicom import datadict
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from minris.dataset.checks import check_attributes, value_problems
from minris.dataset.dicom_json import from_json, to_json
from minris.dataset.elements import (
    EMPTY,
    ElementIndex,
    Malformed,
    encode_element,
    encode_items,
    encode_text,
    pad,
    sequence_elements,
    text_elements,
)
from minris.dataset.matching import key_test
from minris.dataset.recode import Limits, recode, recode_noting
from minris.dataset.search import Search, to_syntax
from minris.dataset.text import ASCII, UTF_8, character_set
from minris.standard.attributes import attribute_table
from minris.standard.dictionary import BINARY_NUMBERS, is_date, tag_of, value_problem, vr_of
from minris.standard.mpps import MPPS_ATTRIBUTES
from minris.standard.status import Refusal, Status
from minris.standard.worklist import MWL_ATTRIBUTES

pytestmark = pytest.mark.filterwarnings("ignore:The value length")  # in bytes, says pydicom

SEEDS = range(40)
PATIENT_NAME = tag_of("PatientName")
STEP_SEQUENCE = tag_of("ScheduledProcedureStepSequence")

# Texts that a set can carry, for patients and exams that nobody has.
TEXTS = {
    "ISO_IR 6": ["Wang^XiaoDong", "CT chest", "Smith^John"],
    "ISO_IR 100": ["Müller^Jörg", "Thorax nativ, größer", "Peña^Inés"],
    "ISO_IR 101": ["Kovács^Gyöngyi", "Čapek^Jiří"],
    "ISO_IR 126": ["Παπαδόπουλος^Νίκος", "θώρακας"],
    "ISO_IR 144": ["Люкceмбypг", "Иванов^Пётр"],
    "ISO_IR 148": ["Çavuş^Gülşah", "Işık^İdil"],
    "ISO_IR 166": ["นามสกุล^ชื่อ", "ปอด"],
    "ISO_IR 203": ["Œuvrard^Zoë", "Gebühr 20 €"],
    "ISO_IR 192": ["Wang^XiaoDong=王^小东", "CT 胸部", "Müller", "Παπα", "山田^太郎"],
    "GB18030": ["Wang^XiaoDong=王^小东", "胸部CT平扫", "赵^钱孙", "𠀀"],
    "GBK": ["Li^Na=李^娜", "腹部"],
}


def implicit_or_not(ds: Dataset, explicit: bool) -> bytes:
    """A data set written by pydicom, without file meta information."""
    fp = DicomBytesIO()
    fp.is_little_endian, fp.is_implicit_VR = True, not explicit
    write_dataset(fp, ds)
    return fp.getvalue()


def read(data: bytes, explicit: bool = True) -> Dataset:
    """A data set read by pydicom; its texts are UTF-8 unless it says otherwise."""
    ds = read_dataset(io.BytesIO(data), not explicit, True)
    if "SpecificCharacterSet" not in ds:
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.decode()
        del ds.SpecificCharacterSet
    return ds


def stored_form(ds: Dataset) -> bytes:
    """What minris is to store of a data set, as pydicom writes it."""
    copy = Dataset()
    copy.update(ds)
    copy.SpecificCharacterSet = "ISO_IR 192"
    written = implicit_or_not(copy, explicit=True)
    element = encode_element(0x00080005, b"CS", b"ISO_IR 192")
    assert element in written
    return written.replace(element, b"", 1)


def stored_form_of(seed: int) -> bytes:
    return stored_form(made(seed)[0])


def index_of(**texts: str) -> ElementIndex:
    elements = [(tag_of(keyword), keyword, text) for keyword, text in texts.items()]
    return ElementIndex(b"".join(encode_text(k, t) for _, k, t in sorted(elements)))


def stored(vr: str, value: bytes, keyword: str = "PatientName") -> bytes:
    return encode_element(tag_of(keyword), vr.encode(), value)


# Random data sets


def keywords_by_vr() -> dict[str, list[str]]:
    """Keywords of the dictionary that have one VR, not retired, outside the command and file groups."""
    found: dict[str, list[str]] = {}
    for tag, (vr, vm, _, retired, keyword) in sorted(datadict.DicomDictionary.items()):
        usual = len(vr) == 2 and keyword and not retired and vm in ("1", "1-n")
        if usual and 0x0008 <= tag >> 16 < 0x5000 and tag != 0x00080005:
            found.setdefault(vr, []).append(keyword)
    return found


KEYWORDS = keywords_by_vr()
VRS = sorted(KEYWORDS)
INTEGERS = {"US": 16, "SS": 16, "UL": 32, "SL": 32, "UV": 64, "SV": 64}


def one_value(chance: random.Random, vr: str, texts: list[str]):
    """A value of a VR, as pydicom takes it."""
    digits = lambda most: str(chance.randint(0, most))  # noqa: E731
    text = chance.choice(texts)
    if vr in INTEGERS:
        bits = INTEGERS[vr]
        low, high = (0, 2**bits - 1) if vr[0] == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return chance.randint(low, high)
    if vr in ("OB", "UN"):
        return chance.randbytes(chance.randint(1, 20) * 2)
    if vr in ("OW", "OL", "OF", "OD", "OV"):
        return chance.randbytes(8 * chance.randint(1, 4))
    made = {
        "AE": lambda: chance.choice(["CT1", "MR ROOM 2", "US-7"]),
        "AS": lambda: f"{chance.randint(1, 120):03}Y",
        "AT": lambda: chance.choice([0x00100010, 0x00400100]),
        "CS": lambda: chance.choice(["CT", "SECONDARY", "A_1"]),
        "DA": lambda: f"202607{chance.randint(1, 31):02}",
        "DS": lambda: chance.choice(["70.5", "-0.25", "1.75", "183.5"]),
        "DT": lambda: f"202607051200{chance.randint(0, 59):02}.25+0800",
        "FD": lambda: chance.uniform(-1e9, 1e9),
        "FL": lambda: struct.unpack("<f", struct.pack("<f", chance.uniform(-1e6, 1e6)))[0],
        "IS": lambda: digits(2**31 - 1),
        "LT": lambda: f"{text}\r\nsecond line, {digits(9)}",
        "ST": lambda: f"{text} \\ {digits(99)}",
        "TM": lambda: f"{chance.randint(0, 23):02}3000.{digits(9)}",
        "UI": lambda: f"1.2.826.0.1.{digits(10**9)}",
        "UR": lambda: f"https://ris.clinic.example/{digits(99)}",
        "UT": lambda: f"{text} {digits(10**6)}",
        "PN": lambda: text if "^" in text else f"{text}^{digits(9)}",
    }
    return made[vr]() if vr in made else text.replace("=", " ")[: 16 if vr == "SH" else 64]


def random_dataset(chance: random.Random, term: str, depth: int = 0) -> Dataset:
    """A data set with elements of many VRs, sequences in it."""
    ds = Dataset()
    for vr in chance.sample(VRS, chance.randint(3, len(VRS))):
        keyword = chance.choice(KEYWORDS[vr])
        tag = tag_of(keyword)
        if vr == "SQ":
            many = chance.randint(0, 2) if depth < 3 else 0
            items = [random_dataset(chance, term, depth + 1) for _ in range(many)]
            element = DataElement(tag, "SQ", Sequence(items))
        else:
            many = 1
            if datadict.dictionary_VM(tag) == "1-n" and vr not in ("UN", "UT", "ST", "LT", "UR"):
                many = 1 if vr.startswith("O") else chance.randint(1, 3)
            values = [one_value(chance, vr, TEXTS[term]) for _ in range(many)]
            value = values if many > 1 else values[0]
            if chance.random() < 0.1:
                value = None if vr[0] != "O" and vr != "UN" else b""
            element = DataElement(tag, vr, value)
        ds.add(element)
    return ds


def undefined_lengths(ds: Dataset, chance: random.Random) -> None:
    """Let pydicom write some sequences and items with delimiters."""
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = chance.random() < 0.5
            for item in element.value:
                item.is_undefined_length_sequence_item = chance.random() < 0.5
                undefined_lengths(item, chance)


def made(seed: int) -> tuple[Dataset, str]:
    """The data set of a seed, and the set its texts are in."""
    chance = random.Random(seed)
    term = chance.choice(["ISO_IR 6", "ISO_IR 100", "ISO_IR 192", "GB18030"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return random_dataset(chance, term), term


# recode


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_pydicom_writes_is_stored_as_pydicom_would_write_it(seed, explicit):
    ds, term = made(seed)
    ds.SpecificCharacterSet = term
    undefined_lengths(ds, random.Random(seed))
    assert recode(implicit_or_not(ds, explicit), explicit) == stored_form_of(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stored_data_set_stays_as_it_is(seed):
    data = stored_form_of(seed)
    assert recode(data, charset=UTF_8) == data


def test_a_data_set_without_elements_is_one():
    assert recode(b"") == recode(b"", explicit=False) == b""


def test_elements_are_put_in_order():
    parts = [encode_text("PatientID", "P1"), encode_text("Modality", "CT")]
    assert recode(b"".join(parts)) == b"".join(reversed(parts))


def test_elements_of_an_item_are_put_in_order():
    parts = [encode_text("PatientID", "P1"), encode_text("Modality", "CT")]
    expected = encode_items(STEP_SEQUENCE, [b"".join(reversed(parts))])
    assert recode(encode_items(STEP_SEQUENCE, [b"".join(parts)])) == expected


def test_a_value_of_odd_length_is_padded():
    assert recode(b"\x10\x00\x20\x00LO\x03\x00P01") == b"\x10\x00\x20\x00LO\x04\x00P01 "


@pytest.mark.parametrize(
    ("vr", "value"), [("US", b"\x04"), ("OW", b"\x01\x02\x03"), ("UL", b"\1\2\3"), ("OB", b"\x01")]
)
def test_a_binary_value_is_never_padded_with_a_space(vr, value):
    """PS3.5 6.2: the space pads texts; in a number it would be another number."""
    assert pad(value, vr.encode()) == value + b"\0"


def test_group_lengths_are_left_out():
    data = struct.pack("<HH2sHI", 0x0010, 0, b"UL", 4, 10) + encode_text("PatientID", "P1")
    assert recode(data) == encode_text("PatientID", "P1")


def test_an_unknown_vr_of_a_known_attribute_is_that_of_the_dictionary():
    """PS3.5 6.2.2: UN is Implicit VR Little Endian inside."""
    inner = b"\x08\x00\x60\x00\x02\x00\x00\x00CT"
    item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(inner)) + inner
    data = encode_element(STEP_SEQUENCE, b"UN", item) + encode_element(
        PATIENT_NAME, b"UN", b"Li^Nan"
    )
    expected = encode_text("PatientName", "Li^Nan") + encode_items(
        STEP_SEQUENCE, [encode_text("Modality", "CT")]
    )
    assert recode(data) == expected


def test_a_private_element_of_undefined_length_is_a_sequence():
    inner = b"\x08\x00\x60\x00\x02\x00\x00\x00CT"
    data = (
        b"\x09\x00\x02\x10UN\0\0\xff\xff\xff\xff"
        + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
        + inner
        + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    )
    assert recode(data) == encode_items(0x00091002, [encode_text("Modality", "CT")])


def test_a_private_element_is_kept_as_it_is():
    data = encode_element(0x00090010, b"LO", b"LAKESIDE") + encode_element(
        0x00091001, b"UN", b"\x01\x02\xff\x00"
    )
    assert recode(data) == data


def test_sequences_of_supplement_233_come_with_their_vrs_in_implicit_vr():
    """T-GEN-11."""
    code = {
        "CodeValue": "446141000124107",
        "CodingSchemeDesignator": "SCT",
        "CodeMeaning": "Female",
    }
    codes = b"".join(encode_text(keyword, text) for keyword, text in code.items())
    gender = encode_items(tag_of("GenderIdentityCodeSequence"), [codes])
    name = encode_text("NameToUse", "Lee")
    data = encode_items(tag_of("PersonNamesToUseSequence"), [name]) + encode_items(
        tag_of("GenderIdentitySequence"), [gender]
    )
    assert recode(to_syntax(data, explicit=False), explicit=False) == data


KINDS = ["SH", "LO", "PN", "UI", "US", "FL", "OB", "SQ"]


@pytest.mark.parametrize("vr", KINDS)
@pytest.mark.parametrize(
    "keyword",
    ["PatientName", "PregnancyStatus", "PatientWeight", "RequestedProcedureCodeSequence"],
)
def test_an_empty_element_of_another_kind_is_an_empty_one(keyword, vr):
    tag = tag_of(keyword)
    after = stored("LO", b"P1", "RequestedProcedureDescription")
    index = ElementIndex(recode(encode_element(tag, vr.encode(), b"") + after))
    assert (index.vr(tag).decode(), index.value(tag)) == (vr_of(tag), b"") or vr == vr_of(tag)
    assert index.get("RequestedProcedureDescription") == "P1"


def test_an_empty_sequence_of_undefined_length_is_an_empty_text():
    tag = tag_of("PatientName")
    head = struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, b"SQ", 0, 0xFFFFFFFF)
    after = stored("LO", b"P1", "PatientID")
    index = ElementIndex(recode(head + bytes.fromhex("feffdde000000000") + after))
    assert (index.value(tag), index.get("PatientID")) == (b"", "P1")
    with pytest.raises(Malformed):
        recode(head + bytes.fromhex("feff00e000000000feffdde000000000") + after)


@pytest.mark.parametrize(
    "element",
    [
        encode_element(tag_of("PatientName"), b"US", b"\1\0"),
        encode_element(tag_of("PregnancyStatus"), b"LO", b"no"),
        encode_element(tag_of("RequestedProcedureCodeSequence"), b"LO", b"CT"),
    ],
)
def test_a_value_of_another_kind_is_still_malformed(element):
    with pytest.raises(Malformed):
        recode(element)


# Character sets


@pytest.mark.parametrize("term", TEXTS)
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
def test_a_text_is_the_same_in_every_set(term, explicit):
    """T-CS-01, T-CS-05."""
    charset = character_set((term,))
    for text in TEXTS[term]:
        head = encode_element(0x00080005, b"CS", term.encode())
        body = encode_element(PATIENT_NAME, b"PN", charset.encode(text, b"PN"))
        data = to_syntax(head + body, True)
        if not explicit:
            data = b"".join(
                struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value
                for tag, value in (
                    (0x00080005, pad(term.encode(), b"CS")),
                    (PATIENT_NAME, pad(charset.encode(text, b"PN"), b"PN")),
                )
            )
        assert ElementIndex(recode(data, explicit)).get("PatientName") == text


@pytest.mark.parametrize("term", [t for t in TEXTS if t not in ("ISO_IR 203",)])
def test_a_set_is_encoded_as_by_pydicom(term):
    for text in TEXTS[term]:
        theirs = pydicom.charset.encode_string(text, pydicom.charset.convert_encodings(term))
        assert character_set((term,)).encode(text, b"LO") == theirs


def test_a_backslash_inside_a_character_of_gb18030_parts_no_values():
    """T-MWL-24: the second byte of 誠 in GB18030 is 5CH."""
    raw = "誠^一".encode("gb18030")
    assert b"\\" in raw
    data = encode_element(0x00080005, b"CS", b"GB18030") + stored("PN", raw)
    assert ElementIndex(recode(data)).values(PATIENT_NAME) == ["誠^一"]


def test_an_item_has_the_set_of_what_it_lies_in_unless_it_has_its_own():
    inherits = stored("PN", "Müller^Jörg".encode("latin-1"))
    own = encode_element(0x00080005, b"CS", b"GB18030") + stored("PN", "李^娜".encode("gb18030"))
    after = stored("LO", "größer".encode("latin-1"), "RequestedProcedureDescription")
    data = (
        encode_element(0x00080005, b"CS", b"ISO_IR 100")
        + encode_items(tag_of("ReferencedPatientSequence"), [inherits, own, inherits])
        + after
    )
    index = ElementIndex(recode(data))
    items = index.items(tag_of("ReferencedPatientSequence"))
    assert [item.get("PatientName") for item in items] == ["Müller^Jörg", "李^娜", "Müller^Jörg"]
    assert index.get("RequestedProcedureDescription") == "größer"
    assert all(0x00080005 not in item for item in (index, *items))


def test_what_a_data_set_does_not_say_its_device_does():
    charset = character_set(("GB18030",))
    data = stored("PN", "李^娜".encode("gb18030"))
    assert ElementIndex(recode(data, charset=charset)).get("PatientName") == "李^娜"


@pytest.mark.parametrize("term", ["ISO_IR 999", "UTF-8", "ISO_IR 192\\ISO 2022 IR 87", "?"])
def test_a_set_that_is_not_known_stops_nothing(term):
    """T-CS-03."""
    data = encode_element(0x00080005, b"CS", term.encode()) + stored("PN", "李^娜".encode())
    assert ElementIndex(recode(data)).get("PatientName") == "李^娜"


@pytest.mark.parametrize(
    ("declared", "really"), [("ISO_IR 192", "gb18030"), ("ISO_IR 100", "utf-8"), ("", "utf-8")]
)
def test_a_text_that_is_declared_wrongly_is_recovered(declared, really):
    head = encode_element(0x00080005, b"CS", declared.encode()) if declared else b""
    noted = recode_noting(head + stored("PN", "王^小东".encode(really)), True)
    assert ElementIndex(noted.data).get("PatientName") == "王^小东"
    assert noted.recovered == (PATIENT_NAME,)


def test_a_byte_that_is_no_text_does_not_make_two_names_of_one():
    """PS3.5 6.1.2.3 shows it as backslash and octal digits; in a value a backslash parts values."""
    data = encode_element(0x00080005, b"CS", b"ISO_IR 100") + stored("PN", b"O\x81\xff")
    assert len(ElementIndex(recode(data)).values(PATIENT_NAME)) == 1


# What is no data set


def test_a_data_set_cut_anywhere_is_malformed_or_shorter():
    """T-GEN-10."""
    for seed in range(8):
        ds, term = made(seed)
        ds.SpecificCharacterSet = term
        undefined_lengths(ds, random.Random(seed))
        for explicit in (True, False):
            whole = implicit_or_not(ds, explicit)
            complete = recode(whole, explicit)
            for length in range(len(whole)):
                try:
                    data = recode(whole[:length], explicit)
                except Malformed:
                    continue
                assert complete.startswith(data)


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
def test_a_data_set_with_a_few_wrong_bytes_is_malformed_or_a_data_set(explicit):
    """T-GEN-10."""
    chance = random.Random(2026)
    for seed in range(16):
        ds, term = made(seed)
        ds.SpecificCharacterSet = term
        whole = implicit_or_not(ds, explicit)[:2000]
        for _ in range(250):
            spoiled = bytearray(whole)
            for _ in range(chance.randint(1, 4)):
                spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
            check_that_it_is_kept_or_malformed(bytes(spoiled), explicit)


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
def test_random_bytes_are_malformed_or_a_data_set(explicit):
    """T-GEN-10."""
    chance = random.Random(1993)
    pieces = [b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0", b"\xfe\xff\x0d\xe0", b"\xff" * 4, b"\0" * 4]
    pieces += [b"\x08\x00\x05\x00CS", b"\x10\x00\x10\x00PN", b"\x40\x00\x00\x01SQ\0\0", b"UN\0\0"]
    for _ in range(5000):
        parts = [
            chance.choice(pieces)
            if chance.random() < 0.6
            else chance.randbytes(chance.randint(1, 9))
            for _ in range(chance.randint(1, 20))
        ]
        check_that_it_is_kept_or_malformed(b"".join(parts), explicit)


def check_that_it_is_kept_or_malformed(data: bytes, explicit: bool) -> None:
    try:
        kept = recode(data, explicit)
    except Malformed:
        return
    assert recode(kept, charset=UTF_8) == kept
    index = ElementIndex(kept)
    json.dumps(to_json(index))
    list(value_problems(index))
    to_syntax(kept, explicit=False)


MALFORMED = {
    "a command element": b"\x00\x00\x02\x00UI\x02\x001.",
    "a file meta element": b"\x02\x00\x10\x00UI\x02\x001.",
    "an item outside a sequence": b"\xfe\xff\x00\xe0\x00\x00\x00\x00",
    "a delimiter outside a sequence": b"\xfe\xff\x0d\xe0\x00\x00\x00\x00",
    "a VR there is not": b"\x10\x00\x10\x00XX\x02\x00Li",
    "a length past the end": b"\x10\x00\x10\x00PN\x10\x00Li",
    "half a header": b"\x10\x00\x10\x00PN",
    "half a long header": b"\x10\x00\x10\x00UT\x00\x00\x02",
    "a text of undefined length": b"\x10\x00\x10\x00UT\x00\x00\xff\xff\xff\xff",
    "an element where an item should be": encode_element(
        STEP_SEQUENCE, b"SQ", encode_text("Modality", "CT")
    ),
    "an item longer than its sequence": b"\x40\0\0\1SQ\0\0\x08\0\0\0\xfe\xff\x00\xe0\x10\0\0\0",
    "a sequence without an end": b"\x40\0\0\1SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\0\0\0\0",
    "an item without an end": b"\x40\0\0\1SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff",
    "pixel data in fragments": b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff\xfe\xff\xdd\xe0\0\0\0\0",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_data_set_is_malformed_for(what):
    with pytest.raises(Malformed):
        recode(MALFORMED[what])


@pytest.mark.parametrize(
    "element",
    [
        encode_element(STEP_SEQUENCE, b"LO", b"CT chest"),
        encode_items(tag_of("PatientID"), [b""]),
        encode_element(tag_of("PregnancyStatus"), b"LO", b"4"),
    ],
    ids=["a sequence sent as a text", "a text sent as a sequence", "a number sent as a text"],
)
def test_a_vr_of_another_kind_than_the_dictionary_s_is_malformed(element):
    """In Implicit VR Little Endian it would reach a modality as something else."""
    with pytest.raises(Malformed):
        recode(element)


def nested(depth: int) -> bytes:
    content = encode_text("Modality", "CT")
    for _ in range(depth):
        content = encode_items(STEP_SEQUENCE, [content])
    return content


def test_nesting_has_its_limit():
    limits = Limits(nesting=4)
    assert recode(nested(3), limits=limits) == nested(3)
    with pytest.raises(Malformed, match="nested deeper than 4"):
        recode(nested(4), limits=limits)


def test_nesting_of_undefined_lengths_has_its_limit():
    begin = b"\x40\0\0\1SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    with pytest.raises(Malformed, match="nested deeper than 64"):
        recode(begin * 50_000, limits=Limits(nesting=64))


def test_elements_have_their_limit():
    data = b"".join(encode_element(0x00110000 | n, b"US", b"\1\0") for n in range(0x1000, 0x1010))
    assert recode(data, limits=Limits(elements=16)) == data
    with pytest.raises(Malformed, match="more than 15 elements"):
        recode(data, limits=Limits(elements=15))


def test_items_without_elements_count_as_elements():
    data = encode_items(STEP_SEQUENCE, [b""] * 100)
    with pytest.raises(Malformed, match="more than 50 elements"):
        recode(data, limits=Limits(elements=50))


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
def test_a_text_that_grows_past_its_length_field_is_malformed(explicit):
    raw = b"\xe4" * 40_000
    length = struct.pack("<H", len(raw)) if explicit else struct.pack("<I", len(raw))
    data = b"\x10\x00\x20\x00" + (b"LO" if explicit else b"") + length + raw
    with pytest.raises(Malformed, match="Patient ID"):
        recode(data, explicit, character_set(("ISO_IR 100",)))


# Encoding


@pytest.mark.parametrize("vr", [vr for vr in VRS if vr != "SQ"])
def test_an_element_is_encoded_as_by_pydicom(vr):
    chance = random.Random(vr)
    for _ in range(30):
        keyword = chance.choice(KEYWORDS[vr])
        ds = Dataset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = one_value(chance, vr, TEXTS["ISO_IR 6"])
            ds.add(DataElement(tag_of(keyword), vr, value))
            theirs = implicit_or_not(ds, explicit=True)
        index = ElementIndex(theirs)
        raw = index.value(tag_of(keyword)).rstrip(b" \0") or index.value(tag_of(keyword))
        if vr in BINARY_NUMBERS or vr[0] == "O" or vr in ("UN", "AT"):
            raw = index.value(tag_of(keyword))
        assert encode_element(tag_of(keyword), vr.encode(), raw) == theirs


def test_items_are_encoded_as_by_pydicom():
    items = []
    for name in ("CT1", "CT22", ""):
        item = Dataset()
        item.ScheduledStationAETitle = name
        items.append(item)
    ds = Dataset()
    ds.ScheduledProcedureStepSequence = [*items, Dataset()]
    contents = [implicit_or_not(item, explicit=True) for item in items]
    assert encode_items(STEP_SEQUENCE, [*contents, b""]) == implicit_or_not(ds, explicit=True)


def test_a_value_that_its_length_field_cannot_tell_is_malformed():
    with pytest.raises(Malformed, match=r"Patient ID \(0010,0020\)"):
        encode_element(tag_of("PatientID"), b"LO", b"9" * 65_536)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stored_data_set_is_read_by_pydicom_in_both_syntaxes(seed):
    data = stored_form_of(seed)
    theirs = read(data)
    assert read(to_syntax(data, explicit=False), explicit=False) == theirs
    assert to_syntax(data, explicit=True) == data


# ElementIndex


@pytest.fixture
def index():
    """A worklist item as it is stored."""
    step = Dataset()
    step.Modality = "CT"
    step.ScheduledStationAETitle = ["CT1", "CT2"]
    ds = Dataset()
    ds.AccessionNumber = ""
    ds.ReferringPhysicianName = "  "
    ds.PatientName = "Wang^XiaoDong=王^小东"
    ds.PatientID = "P01"
    ds.OtherPatientIDs = ["A", "", "B"]
    ds.PatientWeight = "70.5"
    ds.PregnancyStatus = 4
    ds.StudyInstanceUID = "1.2.3"
    ds.ScheduledProcedureStepSequence = [step, Dataset()]
    ds.ReferencedPatientSequence = []
    return ElementIndex(stored_form(ds))


def test_an_index_has_the_tags_in_order(index):
    assert list(index) == sorted(index.found)
    assert PATIENT_NAME in index
    assert tag_of("PatientSex") not in index


def test_a_text_is_without_its_padding(index):
    assert index.get("PatientID") == "P01"
    assert index.value(tag_of("PatientID")) == b"P01 "
    assert index.get("StudyInstanceUID") == "1.2.3"
    assert index.value(tag_of("StudyInstanceUID")) == b"1.2.3\0"


def test_a_number_is_told_in_digits(index):
    assert index.get("PregnancyStatus") == "4"


def test_values_are_told_apart(index):
    assert index.values(tag_of("OtherPatientIDs")) == ["A", "", "B"]
    assert index.values(tag_of("AccessionNumber")) == []


def test_what_is_absent_is_empty(index):
    sex = tag_of("PatientSex")
    assert (index.element(sex), index.value(sex), index.text(sex)) == (b"", b"", "")
    assert (index.values(sex), index.items(sex), index.has_value(sex)) == ([], [], False)


@pytest.mark.parametrize(
    ("keyword", "there"),
    [
        ("PatientID", True),
        ("PregnancyStatus", True),
        ("ScheduledProcedureStepSequence", True),
        ("AccessionNumber", False),
        ("ReferringPhysicianName", False),
        ("ReferencedPatientSequence", False),
    ],
)
def test_padding_alone_is_no_value(index, keyword, there):
    assert index.has_value(tag_of(keyword)) is there


def test_zero_is_a_value():
    index = ElementIndex(encode_element(tag_of("PregnancyStatus"), b"US", b"\0\0"))
    assert index.has_value(tag_of("PregnancyStatus"))


def test_items_are_opened(index):
    first, second = index.items(STEP_SEQUENCE)
    assert first.values(tag_of("ScheduledStationAETitle")) == ["CT1", "CT2"]
    assert list(second) == []
    assert bytes(first) in bytes(index)
    assert index.item("ScheduledProcedureStepSequence").get("Modality") == "CT"
    assert index.item("RequestedProcedureCodeSequence").get("CodeValue") == ""


def test_a_leading_space_of_a_long_text_is_part_of_it():
    """PS3.5 Table 6.2-1: LT, ST and UT may be padded behind, not in front."""
    indented = "  - no contrast\r\n  - fasting"
    index = index_of(RequestedProcedureComments=indented, AdditionalPatientHistory=indented)
    assert index.get("AdditionalPatientHistory") == indented


def test_an_element_put_in_takes_the_place_of_its_own(index):
    told = index_of(PatientID="P02", PatientSex="F")
    merged = index.merged(told)
    assert (merged.get("PatientID"), merged.get("PatientSex")) == ("P02", "F")
    assert list(merged) == sorted({*index, *told})
    assert bytes(merged) == recode(bytes(merged), charset=UTF_8)


def test_the_last_of_several_goes_before_the_others(index):
    merged = index.merged(index_of(PatientID="P02"), index_of(PatientID="P03"))
    assert merged.get("PatientID") == "P03"


def test_some_elements_are_left_out_or_taken_alone(index):
    tags = [tag_of("PatientID"), PATIENT_NAME, tag_of("PatientSex")]
    assert list(index.only(tags)) == [PATIENT_NAME, tag_of("PatientID")]
    assert list(index.without(tags)) == [tag for tag in index if tag not in tags]


def test_elements_that_have_a_value_are_taken_alone():
    sequences = sequence_elements(
        ReferencedStudySequence=[], ScheduledProcedureStepSequence=[text_elements(Modality="CT")]
    )
    empty = ElementIndex(encode_text("PatientID", ""))
    found = text_elements(PatientName="Li^Na").merged(empty, sequences).with_values()
    assert list(found) == [PATIENT_NAME, STEP_SEQUENCE]
    assert found.item("ScheduledProcedureStepSequence").get("Modality") == "CT"


@pytest.mark.parametrize("seed", SEEDS)
def test_an_index_agrees_with_pydicom(seed):
    data = stored_form_of(seed)
    theirs = read(data)
    index = ElementIndex(data)
    assert list(index) == [int(element.tag) for element in theirs]
    for element in theirs:
        assert index.vr(int(element.tag)) == element.VR.encode()
        if element.VR == "SQ":
            assert len(index.items(int(element.tag))) == len(element.value)


# Values by VR


RIGHT = {
    "AE": ["CT1", "CT ROOM 1", "a" * 16],
    "AS": ["042Y", "006M", "003W", "010D"],
    "CS": ["CT", "IN PROGRESS", "A_1", "F"],
    "DA": ["20260705", "20240229", "19000101"],
    "DS": ["70", "70.5", "-0.25", "+1", "1e3", "1.5E-3", ".5", "5."],
    "DT": ["2026", "202607", "20260705", "20260705120000", "20260705120000.123456+0800"],
    "IS": ["0", "-1", "+15", "2147483647", "-2147483648"],
    "LO": ["CT chest", "胸部CT平扫", "x" * 64, "王" * 64],
    "LT": ["one\r\ntwo", "x" * 10240, "a \\ b", "\tindented"],
    "PN": ["Wang^XiaoDong=王^小东", "Yamada^Tarou=山田^太郎=やまだ^たろう", "x" * 64, "A^B^C^D^E"],
    "SH": ["26070500001", "S" * 16],
    "ST": ["one\r\ntwo", "x" * 1024],
    "TM": ["09", "0930", "093000", "093000.1", "093000.123456", "235960", "000000"],
    "UI": ["1.2.840.10008.1.1", "2.25.0", "0.1", "1." + "2" * 62],
    "UC": ["x" * 100_000],
    "UR": ["https://ris.clinic.example/a?b=c"],
    "UT": ["x" * 100_000, "one\r\ntwo"],
}
WRONG = {
    "AE": ["CT\\1", "放射科", "a" * 17, "CT\t1"],
    "AS": ["42Y", "042", "042y", "0042Y", "０４２Y"],
    "CS": ["ct", "CT-1", "A" * 17, "胸"],
    "DA": ["20260230", "19800231", "2026-07-05", "2026075", "202607050", "today", "00000101",
           "20261301", "２０２６０７０５", "2026.07.05"],
    "DS": ["seventy", "70,5", "1e", "--1", "1" * 17, "nan", "inf", "７０"],
    "DT": ["20261301", "20260732", "2026070525", "202607051260", "26", "20260705+8", "２０２６"],
    "IS": ["1.0", "1e3", "one", "2147483648", "-2147483649", "1" * 13, "１"],
    "LO": ["x" * 65, "two\nlines", "bell\a"],
    "LT": ["x" * 10241, "bell\a", "nul\0nul"],
    "PN": ["x" * 65, "a=" + "王" * 65, "one\ntwo", "A=B=C=D", "A^B^C^D^E^F"],
    "SH": ["x" * 17, "a\tb"],
    "ST": ["x" * 1025, "bell\a"],
    "TM": ["9", "930", "2400", "0960", "093061", "09:30", "093000.", "093000.1234567", "0930.5",
           "０９３０", "noon"],
    "UI": ["1.02.3", "1..2", ".1", "1.2.", "1.2.x", "1." + "2" * 63, "１.２"],
    "UT": ["bell\a"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("vr", "text"), [(vr, text) for vr, texts in RIGHT.items() for text in texts]
)
def test_a_value_is_right(vr, text):
    assert value_problem(vr, text) is None


@pytest.mark.parametrize(
    ("vr", "text"), [(vr, text) for vr, texts in WRONG.items() for text in texts]
)
def test_a_value_is_wrong(vr, text):
    problem = value_problem(vr, text)
    assert problem
    assert len(problem) < 200


def test_a_wrong_value_is_quoted():
    assert value_problem("DA", "19800231") == "19800231 is not a date"
    words = value_problem("SH", "12345678901234567")
    assert words == "12345678901234567 is longer than 16 characters"


def test_the_day_29_february_is_one_every_four_years():
    assert is_date("20240229")
    assert not is_date("20250229")


def test_every_wrong_value_of_a_data_set_is_found_in_its_depth():
    step = encode_text("Modality", "ct") + encode_text(
        "ScheduledProcedureStepStartDate", "20260230"
    )
    data = encode_text("AccessionNumber", "1" * 17) + encode_items(STEP_SEQUENCE, [step])
    found = [str(problem) for problem in value_problems(ElementIndex(data))]
    assert found == [
        "Accession Number (0008,0050) 11111111111111111 is longer than 16 characters",
        "Modality (0008,0060) ct has characters other than capitals, digits, space and _",
        "Scheduled Procedure Step Start Date (0040,0002) 20260230 is not a date",
    ]


def test_every_value_of_several_is_looked_at():
    index = index_of(ImageType="ORIGINAL\\primary\\AXIAL")
    (problem,) = value_problems(index)
    assert str(problem.words).startswith("primary ")


def test_a_backslash_in_a_long_text_parts_nothing():
    index = index_of(RequestedProcedureComments="x" * 6000 + "\\" + "y" * 4000)
    assert list(value_problems(index)) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_right_by_ps3_5_has_no_problems(seed):
    assert list(value_problems(ElementIndex(stored_form_of(seed)))) == []


# Checks against an attribute table


TABLE = attribute_table(
    "PS3.4 Table F.7.2-1, in short",
    """
    keyword                           | create | final
    ScheduledStepAttributesSequence   | 1/1    | -
    > StudyInstanceUID                | 1/1    | -
    > AccessionNumber                 | 2/2    | -
    > RequestedProcedureDescription   | 3/3    | -
    PatientName                       | 2/2    | -
    PerformedProcedureStepID          | 1/1    | -
    PerformedProcedureStepEndDate     | 2/2    | 1
    Modality                          | 1/1    | -
    PerformedSeriesSequence           | 2/2    | 1
    > SeriesDescription               | 2/2    | 2
    > ProtocolName                    | 1C/1   | 1
    """,
)


def performed(**changes: str | list | None) -> ElementIndex:
    """A performed step that is in order, but for what is given; None leaves an attribute out."""
    item = Dataset()
    item.StudyInstanceUID, item.AccessionNumber = "1.2.3", ""
    values = {
        "ScheduledStepAttributesSequence": [item],
        "PatientName": "Li^Na",
        "PerformedProcedureStepID": "PPS1",
        "PerformedProcedureStepEndDate": "",
        "Modality": "CT",
        "PerformedSeriesSequence": [],
        **changes,
    }
    ds = Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(ds, keyword, value)
    return ElementIndex(stored_form(ds))


def item_of(**values: str) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def test_a_data_set_in_order_has_nothing_to_forgive():
    assert check_attributes(performed(), TABLE, "create") == []


CHECKS = {
    "a type 1 attribute that is absent": (
        {"Modality": None}, Status.MISSING_ATTRIBUTE, ["Modality"]),
    "a type 1 attribute without value": (
        {"Modality": ""}, Status.MISSING_ATTRIBUTE_VALUE, ["Modality"]),
    "a type 1 attribute of spaces": (
        {"PerformedProcedureStepID": "  "},
        Status.MISSING_ATTRIBUTE_VALUE,
        ["PerformedProcedureStepID"],
    ),
    "a type 2 attribute that is absent": (
        {"PatientName": None}, Status.MISSING_ATTRIBUTE, ["PatientName"]),
    "a type 1 sequence without items": (
        {"ScheduledStepAttributesSequence": []},
        Status.MISSING_ATTRIBUTE_VALUE,
        ["ScheduledStepAttributesSequence"],
    ),
    "an item without what it must have": (
        {"ScheduledStepAttributesSequence": [item_of(AccessionNumber="")]},
        Status.MISSING_ATTRIBUTE,
        ["StudyInstanceUID"],
    ),
    "an item with an empty type 1 attribute": (
        {"ScheduledStepAttributesSequence": [item_of(StudyInstanceUID="", AccessionNumber="")]},
        Status.MISSING_ATTRIBUTE_VALUE,
        ["StudyInstanceUID"],
    ),
    "an empty item": (
        {"ScheduledStepAttributesSequence": [Dataset()]},
        Status.MISSING_ATTRIBUTE,
        ["AccessionNumber", "StudyInstanceUID"],
    ),
    "the second item of two": (
        {
            "ScheduledStepAttributesSequence": [
                item_of(StudyInstanceUID="1.2.3", AccessionNumber=""),
                item_of(StudyInstanceUID="1.2.4"),
            ]
        },
        Status.MISSING_ATTRIBUTE,
        ["AccessionNumber"],
    ),
    "what is absent and what is empty: the absent first": (
        {"Modality": "", "PerformedProcedureStepID": None},
        Status.MISSING_ATTRIBUTE,
        ["PerformedProcedureStepID"],
    ),
    "everything that is absent at once": (
        {"Modality": None, "PerformedProcedureStepID": None},
        Status.MISSING_ATTRIBUTE,
        ["Modality", "PerformedProcedureStepID"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHECKS)
def test_a_data_set_is_refused_for(what):
    changes, status, keywords = CHECKS[what]
    with pytest.raises(Refusal) as refusal:
        check_attributes(performed(**changes), TABLE, "create")
    assert refusal.value.status is status
    assert refusal.value.tags == tuple(sorted(map(tag_of, keywords)))


def test_an_absent_type_2_attribute_is_forgiven_where_that_is_wanted():
    index = performed(
        PatientName=None, ScheduledStepAttributesSequence=[item_of(StudyInstanceUID="1.2.3")]
    )
    forgiven = check_attributes(index, TABLE, "create", lenient=True)
    assert [problem.tag for problem in forgiven] == [tag_of("AccessionNumber"), PATIENT_NAME]


def test_a_type_1_attribute_is_never_forgiven():
    with pytest.raises(Refusal):
        check_attributes(performed(Modality=None), TABLE, "create", lenient=True)


def test_another_column_asks_something_else():
    series = [item_of(ProtocolName="Chest", SeriesDescription="")]
    done = performed(PerformedProcedureStepEndDate="20260705", PerformedSeriesSequence=series)
    assert check_attributes(done, TABLE, "final") == []
    with pytest.raises(Refusal) as refusal:
        check_attributes(performed(PerformedSeriesSequence=series), TABLE, "final")
    assert refusal.value.tags == (tag_of("PerformedProcedureStepEndDate"),)


@pytest.mark.parametrize("attribute", MPPS_ATTRIBUTES.children(), ids=lambda a: a.keyword)
def test_each_row_of_the_table_of_performed_steps_is_asked_for(attribute):
    """T-MPPS-04."""
    with pytest.raises(Refusal) as refusal:
        check_attributes(EMPTY, MPPS_ATTRIBUTES, "create")
    must = attribute.cells["create"] in ("1/1", "2/2")
    assert (attribute.tag in refusal.value.tags) is must


# Searching: single keys


def found(keyword: str, key: str, value: str) -> bool:
    """Whether a key finds a stored value; both as texts of that attribute."""
    tag, vr = tag_of(keyword), vr_of(tag_of(keyword)).encode()
    test = key_test(tag, vr, index_of(**{keyword: key}))
    return test is None or test(index_of(**{keyword: value}).value(tag))


def is_refused(keyword: str, key: str) -> bool:
    tag = tag_of(keyword)
    with pytest.raises(Refusal) as refusal:
        key_test(tag, vr_of(tag).encode(), index_of(**{keyword: key}))
    return refusal.value.status is Status.IDENTIFIER_DOES_NOT_MATCH and refusal.value.tags == (tag,)


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "StudyDate", "StudyInstanceUID"])
@pytest.mark.parametrize("key", ["", " ", "*", "**"])
def test_a_key_is_universal(keyword, key):
    """T-MWL-14."""
    tag = tag_of(keyword)
    assert key_test(tag, vr_of(tag).encode(), index_of(**{keyword: key})) is None


FINDS = [
    # T-MWL-07: wildcards
    ("PatientName", "SMITH*", "Smith^John"),
    ("PatientName", "S?ITH^J*", "Smith^John"),
    ("PatientName", "*JOHN", "Smith^John"),
    ("PatientName", "SMITH^*", "Smith"),
    # T-MWL-08: any case, each group
    ("PatientName", "smith^john", "SMITH^JOHN"),
    ("PatientName", "Smith^John^^^", "Smith^John"),
    ("PatientName", "山田*", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ("PatientName", "Yamada^Tarou", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ("PatientName", "Yamada*=山田*", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ("PatientName", "=山田^太郎", "Yamada^Tarou=山田^太郎"),
    # T-MWL-09: text
    ("PatientID", "12*", "12345"),
    ("PatientID", "P01", "P01"),
    ("PatientID", " P01 ", "P01"),
    ("OtherPatientIDs", "B", "A\\B\\C"),
    ("RequestedProcedureDescription", "CT*(chest)", "CT of (chest)"),
    ("ScheduledStationAETitle", "CT2", "CT1\\CT2"),  # T-MWL-05
    ("AccessionNumber", "2607[5]", "2607[5]"),
    # T-MWL-10: dates
    ("StudyDate", "20260705", "20260705"),
    ("StudyDate", "20260705-20260707", "20260707"),
    ("StudyDate", "20260705-20260707", "20260705"),
    ("StudyDate", "-20260705", "20260705"),
    ("StudyDate", "20260705-", "20301231"),
    ("StudyDate", "2026.07.05", "20260705"),
    # T-MWL-12, T-MWL-13, T-MWL-29: times
    ("StudyTime", "2230", "223000"),
    ("StudyTime", "223000", "2230"),
    ("StudyTime", "1000-1800", "100000"),
    ("StudyTime", "1000-1800", "180000"),
    ("StudyTime", "1000-1800", "180030"),
    ("StudyTime", "-10", "105959"),
    ("StudyTime", "-10", "105959.999999"),
    ("StudyTime", "10-", "10"),
    ("StudyTime", "10:00-18:00", "120000"),
    ("StudyTime", "100000.5-", "100000.500"),
    # T-MWL-18: UIDs
    ("StudyInstanceUID", "1.2.3\\1.2.4", "1.2.4"),
    ("StudyInstanceUID", "1.2.3", "1.2.3"),
    # numbers by what they are
    ("PatientWeight", "70", "70.0"),
    ("PatientWeight", "7e1", "70"),
]  # fmt: skip
FINDS_NOT = [
    ("PatientName", "S?ITH", "Smmith"),
    ("PatientName", "SMITH", "Smithson"),
    ("PatientName", "Li????", "Li"),
    ("PatientName", "Li^???", "Li"),
    ("PatientName", "SMITH^J*", "Smith"),
    ("PatientName", "山田*", "Yamada^Tarou"),
    ("PatientName", "Tanaka*=山田*", "Yamada^Tarou=山田^太郎"),
    ("PatientName", "A*", ""),
    ("PatientID", "p01", "P01"),
    ("PatientID", "P0", "P01"),
    ("PatientID", "P0?", "P0"),
    ("PatientID", "P.1", "P01"),
    ("PatientID", "?", ""),
    ("Modality", "ct", "CT"),  # T-MWL-06
    ("AccessionNumber", '""', ""),  # T-MWL-30
    ("AccessionNumber", "2607[5]", "26075"),
    ("StudyDate", "20260705-20260707", "20260708"),
    ("StudyDate", "20260707-20260705", "20260706"),
    ("StudyDate", "-20260705", ""),
    ("StudyTime", "1000-1800", "095959"),
    ("StudyTime", "1000-1800", "180100"),
    ("StudyTime", "2200-0200", "230000"),
    ("StudyTime", "-10", "11"),
    ("StudyInstanceUID", "1.2.3", "1.2.33"),
    ("StudyInstanceUID", "1.2.*", "1.2.3"),
    ("PatientWeight", "70", "71"),
    ("PatientWeight", "70", "heavy"),
]


@pytest.mark.parametrize(("keyword", "key", "value"), FINDS)
def test_a_key_finds(keyword, key, value):
    """T-MWL-05, T-MWL-07 to T-MWL-10, T-MWL-12, T-MWL-13, T-MWL-18, T-MWL-29."""
    assert found(keyword, key, value)


@pytest.mark.parametrize(("keyword", "key", "value"), FINDS_NOT)
def test_a_key_does_not_find(keyword, key, value):
    """T-MWL-06, T-MWL-07, T-MWL-12, T-MWL-14, T-MWL-30."""
    assert not found(keyword, key, value)


@pytest.mark.parametrize(
    ("keyword", "key"),
    [
        ("StudyDate", "20260230"),
        ("StudyDate", "today"),
        ("StudyDate", "-"),
        ("StudyDate", "20260705-20260706-20260707"),
        ("StudyDate", "2026*"),
        ("StudyDate", "20260705,"),
        ("StudyDate", "２０２６０７０５"),
        ("StudyTime", "2500"),
        ("StudyTime", "noon-"),
        ("PatientWeight", "heavy"),
        ("PatientID", "P1\\P2"),  # T-MWL-31
        ("Modality", "CT\\MR"),
        ("PatientName", "Li\\Wang"),
        ("StudyDate", "20260705\\20260706"),
    ],
)
def test_a_key_is_refused(keyword, key):
    """T-MWL-31; a wrong date is never a search for everything."""
    assert is_refused(keyword, key)


def test_a_number_is_found_by_its_value():
    tag = tag_of("PregnancyStatus")
    key = ElementIndex(encode_element(tag, b"US", b"\x04\0"))
    assert key_test(tag, b"US", key)(b"\x04\0")
    assert not key_test(tag, b"US", key)(b"\x01\0")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "a" * 64),
        ("RequestedProcedureDescription", "a" * 64),
        ("PatientName", "王" * 60),
    ],
)
def test_a_key_of_many_wildcards_holds_nobody_up(keyword, value):
    """Backtracking would take minutes for it, and every reader waits."""
    letter = value[0]
    for stars in (3, 5, 6):  # grows by what the value is long, with each star
        begin = time.perf_counter()
        assert not found(keyword, f"*{letter}" * stars + "*b", value)
        assert time.perf_counter() - begin < 0.5


# Searching: whole queries


def step(**texts: str) -> bytes:
    given = {
        "ScheduledStationAETitle": "CT1",
        "ScheduledProcedureStepStartDate": "20260705",
        "ScheduledProcedureStepStartTime": "0930",
        "Modality": "CT",
        **texts,
    }
    return bytes(index_of(**given))


def entry(*steps: bytes, **texts: str) -> bytes:
    """A worklist data set as it is stored."""
    given = {"PatientName": "Wang^XiaoDong=王^小东", "PatientID": "P01", **texts}
    sequence = sequence_elements(ScheduledProcedureStepSequence=steps or [step()])
    return bytes(index_of(**given).merged(sequence))


def query(item: dict[str, str] | None = None, **texts: str) -> Search:
    keys = index_of(**texts)
    if item is not None:
        keys = keys.merged(sequence_elements(ScheduledProcedureStepSequence=[index_of(**item)]))
    return Search(keys, MWL_ATTRIBUTES)


def keywords(data: bytes) -> list[str]:
    return [datadict.keyword_for_tag(tag) for tag in ElementIndex(data)]


def test_an_answer_has_what_was_asked_for_and_no_more():
    """T-MWL-03."""
    answer = query({"Modality": ""}, PatientName="", AccessionNumber="").answer(
        entry(PatientSex="F")
    )
    assert keywords(answer)[-3:] == [
        "AccessionNumber",
        "PatientName",
        "ScheduledProcedureStepSequence",
    ]
    assert set(keywords(answer)) - {"SpecificCharacterSet"} == {
        "AccessionNumber",
        "PatientName",
        "ScheduledProcedureStepSequence",
    }
    item = ElementIndex(answer).item("ScheduledProcedureStepSequence")
    assert keywords(bytes(item)) == ["Modality"]


def test_an_empty_type_2_attribute_is_answered_empty_and_an_unsupported_one_not_at_all():
    """T-MWL-17."""
    supported = query(PatientSex="")
    assert supported.status is Status.PENDING
    assert keywords(supported.answer(entry())) == ["PatientSex"]
    unsupported = query(PatientSex="", PatientBirthName="")
    assert unsupported.status is Status.PENDING_OPTIONAL_KEYS_UNSUPPORTED
    assert keywords(unsupported.answer(entry())) == ["PatientSex"]


def test_an_empty_sequence_key_asks_for_the_whole_sequence():
    """T-MWL-15."""
    stored_item = entry(step(ScheduledProcedureStepDescription="CT chest"))
    none = Search(ElementIndex(encode_items(STEP_SEQUENCE, [])), MWL_ATTRIBUTES)
    empty = Search(ElementIndex(encode_items(STEP_SEQUENCE, [b""])), MWL_ATTRIBUTES)
    whole = ElementIndex(stored_item).element(STEP_SEQUENCE)
    for search in (none, empty):
        assert ElementIndex(search.answer(stored_item)).element(STEP_SEQUENCE) == whole


def test_the_keys_of_an_item_match_in_one_item():
    """T-MWL-16."""

    def code(value: str, scheme: str) -> bytes:
        return bytes(index_of(CodeValue=value, CodingSchemeDesignator=scheme))

    codes = tag_of("RequestedProcedureCodeSequence")
    two = ElementIndex(encode_items(codes, [code("A", "X"), code("B", "Y")]))
    stored_item = bytes(ElementIndex(entry()).merged(two))
    for value, scheme, matches in (("A", "X", True), ("B", "Y", True), ("A", "Y", False)):
        search = Search(ElementIndex(encode_items(codes, [code(value, scheme)])), MWL_ATTRIBUTES)
        assert (search.answer(stored_item) is not None) is matches


def test_two_items_in_a_sequence_key_are_refused():
    """T-MWL-20."""
    with pytest.raises(Refusal) as refusal:
        Search(ElementIndex(encode_items(STEP_SEQUENCE, [step(), step()])), MWL_ATTRIBUTES)
    assert refusal.value.status is Status.IDENTIFIER_DOES_NOT_MATCH


@pytest.mark.parametrize(
    ("date", "clock", "at", "matches"),
    [
        ("20260705-20260707", "1000-1800", "20260706 2300", True),
        ("20260705-20260707", "1000-1800", "20260705 0959", False),
        ("20260705-20260707", "1000-1800", "20260707 1801", False),
        ("20260705-20260707", "1000-1800", "20260707 1800", True),
        ("20260705-", "1000-", "20260706 0800", True),
        ("20260705-", "1000-", "20260705 0959", False),
        ("-20260705", "-1000", "20260704 2359", True),
        ("-20260705", "-1000", "20260705 1100", False),
        ("20260705", "1000-1800", "20260705 1200", True),
        ("20260705", "1000-1800", "20260706 1200", False),
        ("20260705-20260707", "1000-", "20260706 0900", False),
        ("20260705-20260707", "1000-", "20260706 1100", True),
    ],
)
def test_ranges_of_one_form_are_one_interval(date, clock, at, matches):
    """T-MWL-11, T-MWL-12."""
    keys = {"ScheduledProcedureStepStartDate": date, "ScheduledProcedureStepStartTime": clock}
    day, minute = at.split()
    times = {"ScheduledProcedureStepStartDate": day, "ScheduledProcedureStepStartTime": minute}
    assert (query(keys).answer(entry(step(**times))) is not None) is matches


def test_a_step_without_a_date_is_in_no_interval():
    """PS3.4 K.2.2.1.1.1: what is empty matches no key that asks for something."""
    keys = {
        "ScheduledProcedureStepStartDate": "-20260705",
        "ScheduledProcedureStepStartTime": "-1000",
    }
    assert query(keys).answer(entry(step(ScheduledProcedureStepStartDate=""))) is None


@pytest.mark.parametrize(
    "keyword",
    [a.keyword for a in MWL_ATTRIBUTES.children() if a.cells["match"] == "-" and a.vr == "SQ"],
)
def test_a_sequence_that_is_never_matched_restricts_nothing(keyword):
    """T-MWL-33; PS3.4 Table K.6-1."""
    content = bytes(index_of(CodeValue="446141000124107"))
    search = Search(ElementIndex(encode_items(tag_of(keyword), [content])), MWL_ATTRIBUTES)
    assert search.answer(entry()) is not None


def test_a_zone_is_answered_once_in_either_syntax():
    """T-MWL-27: also for an entry that was imported with a zone of its own."""
    zone = encode_element(0x00080201, b"SH", b"+0800")
    stored_item = bytes(ElementIndex(entry()).merged(ElementIndex(zone)))
    index = index_of(PatientID="").merged(index_of(TimezoneOffsetFromUTC=""))
    for explicit in (True, False):
        extra = {0x00080201: to_syntax(zone, explicit)}
        search = Search(index, MWL_ATTRIBUTES, explicit, extra=extra)
        ds = read(search.answer(stored_item), explicit)
        assert [element.tag for element in ds] == [Tag(0x00080201), Tag(0x00100020)]
        assert (ds.TimezoneOffsetFromUTC, ds.PatientID) == ("+0800", "P01")


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
def test_an_answer_is_read_by_pydicom_as_it_is_stored(explicit):
    index = index_of(PatientID="").merged(index_of(PatientName=""))
    search = Search(index, MWL_ATTRIBUTES, explicit)
    ds = read(search.answer(entry()), explicit)
    assert str(ds.PatientName) == "Wang^XiaoDong=王^小东"
    assert ds.PatientID == "P01"


def test_what_does_not_match_first_is_named():
    search = query({"Modality": "MR"}, PatientID="P01")
    assert search.mismatches(ElementIndex(entry()))[0][0] == tag_of("Modality")
    assert query(PatientID="P01").mismatches(ElementIndex(entry())) == []


# DICOM JSON


def comparable(value):
    """DICOM JSON with what may be written in two ways in one: numbers, empty values."""
    if isinstance(value, dict) and "vr" in value:
        vr = value["vr"]
        kept = {key: comparable(part) for key, part in value.items() if part not in ([], "")}
        if vr in ("DS", "IS", "FL", "FD", "UV", "SV") and "Value" in kept:
            kept["Value"] = [None if one is None else float(one) for one in kept["Value"]]
        return kept
    if isinstance(value, dict):
        return {key: comparable(part) for key, part in value.items()}
    return [comparable(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", SEEDS)
def test_a_data_set_is_the_json_that_pydicom_makes_of_it(seed):
    ours = to_json(ElementIndex(stored_form_of(seed)))
    theirs = made(seed)[0].to_json_dict()
    assert comparable(ours) == comparable(json.loads(json.dumps(theirs)))


@pytest.mark.parametrize("seed", SEEDS)
def test_json_of_pydicom_is_the_data_set(seed):
    theirs = json.dumps(made(seed)[0].to_json_dict())
    assert from_json(json.loads(theirs)) == stored_form_of(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_our_json_is_the_data_set_to_pydicom(seed):
    data = stored_form_of(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = Dataset.from_json(json.dumps(to_json(ElementIndex(data))))
        assert stored_form(theirs) == data


@pytest.mark.parametrize("seed", SEEDS)
def test_a_data_set_comes_back_from_json_as_it_was(seed):
    data = stored_form_of(seed)
    assert from_json(json.loads(json.dumps(to_json(ElementIndex(data))))) == data


def test_json_may_be_by_keywords():
    by_keyword = {"PatientName": {"Value": [{"Alphabetic": "Li^Na", "Ideographic": "李^娜"}]}}
    by_tag = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Li^Na", "Ideographic": "李^娜"}]}}
    assert from_json(by_keyword) == from_json(by_tag) == stored("PN", "Li^Na=李^娜".encode())


def test_elements_of_json_are_put_in_order():
    value = {"PatientID": {"vr": "LO", "Value": ["P01"]}, "Modality": {"vr": "CS", "Value": ["CT"]}}
    assert list(ElementIndex(from_json(value))) == [tag_of("Modality"), tag_of("PatientID")]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ({"vr": "LO"}, b""),
        ({"vr": "LO", "Value": []}, b""),
        ({"vr": "LO", "Value": [None]}, b""),
        ({"vr": "LO", "Value": ["A", None, "B"]}, b"A\\\\B"),
    ],
)
def test_what_is_empty_in_json_is_empty(member, value):
    """T-WEB-13."""
    assert from_json({"OtherPatientIDs": member}) == stored("LO", value, "OtherPatientIDs")


@pytest.mark.parametrize("item", [{}, None])
def test_an_empty_item_of_json_is_an_item(item):
    """T-WEB-13."""
    value = {"ScheduledProcedureStepSequence": {"vr": "SQ", "Value": [item]}}
    assert from_json(value) == encode_items(STEP_SEQUENCE, [b""])


def test_the_character_set_of_json_is_none():
    value = {"00080005": {"vr": "CS", "Value": ["GB18030"]}, "PatientID": {"Value": ["P01"]}}
    assert list(ElementIndex(from_json(value))) == [tag_of("PatientID")]


def test_bytes_of_json_are_kept():
    raw = bytes(range(256))
    text = base64.b64encode(raw).decode()
    data = from_json({"00091001": {"vr": "OB", "InlineBinary": text}})
    assert data == encode_element(0x00091001, b"OB", raw)
    assert to_json(ElementIndex(data)) == {"00091001": {"vr": "OB", "InlineBinary": text}}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("vr", "code"), [("FD", "<d"), ("FL", "<f")])
def test_a_number_that_json_does_not_have_leaves_json_valid(vr, code, number):
    data = encode_element(0x00091001, vr.encode(), struct.pack(code, number))
    json.dumps(to_json(ElementIndex(data)), allow_nan=False)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1E400", "070", "1.50"])
def test_a_decimal_string_that_is_no_json_number_is_told_as_text(text):
    value = to_json(index_of(PatientWeight=text))["00101030"]["Value"]
    assert json.loads(json.dumps(value, allow_nan=False)) == [text]


WRONG_JSON = {
    "a keyword there is not": ("PatientsName", {"vr": "PN"}),
    "a tag of seven digits": ("0010001", {"vr": "PN"}),
    "a command element": ("00000002", {"vr": "UI", "Value": ["1.2"]}),
    "a file meta element": ("00020010", {"vr": "UI", "Value": ["1.2"]}),
    "an item as an element": ("FFFEE000", {"vr": "SQ"}),
    "a member that is a text": ("PatientID", "P01"),
    "a member that is an array": ("PatientID", ["P01"]),
    "a member that is null": ("PatientID", None),
    "a VR there is not": ("PatientID", {"vr": "XX", "Value": ["P01"]}),
    "a VR that is a number": ("PatientID", {"vr": 7, "Value": ["P01"]}),
    "a VR that is an array": ("PatientID", {"vr": ["LO"], "Value": ["P01"]}),
    "a Value that is no array": ("PatientID", {"vr": "LO", "Value": "P01"}),
    "a Value that is an object": ("PatientID", {"vr": "LO", "Value": {"0": "P01"}}),
    "a Value that is null": ("PatientID", {"vr": "LO", "Value": None}),
    "a value that is an object": ("PatientID", {"vr": "LO", "Value": [{"a": 1}]}),
    "a value that is an array": ("PatientID", {"vr": "LO", "Value": [["P01"]]}),
    "a value that is true": ("PatientID", {"vr": "LO", "Value": [True]}),
    "half a surrogate": ("PatientID", {"vr": "LO", "Value": ["\ud800"]}),
    "a value past its length field": ("PatientID", {"vr": "LO", "Value": ["9" * 70_000]}),
    "a name group that is a number": ("PatientName", {"vr": "PN", "Value": [{"Alphabetic": 7}]}),
    "a name group there is not": ("PatientName", {"vr": "PN", "Value": [{"alphabetic": "Li^Na"}]}),
    "an item that is a text": ("ScheduledProcedureStepSequence", {"vr": "SQ", "Value": ["CT"]}),
    "an item that is a number": ("ScheduledProcedureStepSequence", {"vr": "SQ", "Value": [7]}),
    "an item that is zero": ("ScheduledProcedureStepSequence", {"vr": "SQ", "Value": [0]}),
    "an item that is false": ("ScheduledProcedureStepSequence", {"vr": "SQ", "Value": [False]}),
    "an item that is an empty text": ("ScheduledProcedureStepSequence", {"vr": "SQ", "Value": [""]}),
    "an item that is an array": ("ScheduledProcedureStepSequence", {"vr": "SQ", "Value": [[]]}),
    "a number past its bits": ("PregnancyStatus", {"vr": "US", "Value": [65_536]}),
    "a negative number without a sign": ("PregnancyStatus", {"vr": "US", "Value": [-1]}),
    "a text for a number": ("PregnancyStatus", {"vr": "US", "Value": ["four"]}),
    "half a number": ("PregnancyStatus", {"vr": "US", "Value": [1.5]}),
    "no number": ("PregnancyStatus", {"vr": "US", "Value": [None]}),
    "true for a number": ("PregnancyStatus", {"vr": "US", "Value": [True]}),
    "an object for a number": ("PregnancyStatus", {"vr": "US", "Value": [{}]}),
    "a tag that is no tag": ("FrameIncrementPointer", {"vr": "AT", "Value": ["PatientI"]}),
    "a tag that is short": ("FrameIncrementPointer", {"vr": "AT", "Value": ["0018106"]}),
    "a tag that is long": ("FrameIncrementPointer", {"vr": "AT", "Value": ["001810630"]}),
    "a tag that is a number": ("FrameIncrementPointer", {"vr": "AT", "Value": [1]}),
    "bytes that are not base64": ("00091001", {"vr": "OB", "InlineBinary": "#"}),
    "bytes that are a number": ("00091001", {"vr": "OB", "InlineBinary": 7}),
    "bytes that are null": ("00091001", {"vr": "OB", "InlineBinary": None}),
    "bytes that are an empty array": ("00091001", {"vr": "OB", "InlineBinary": []}),
    "bytes that are an object": ("00091001", {"vr": "OB", "InlineBinary": {}}),
    "bytes as values": ("00091001", {"vr": "OB", "Value": ["AAEC"]}),
    "bytes as a text": ("PatientName", {"vr": "PN", "InlineBinary": "gICA"}),
    "bytes as a sequence": ("ScheduledProcedureStepSequence", {"vr": "SQ", "InlineBinary": "AAAA"}),
    "bytes as a number": ("PregnancyStatus", {"vr": "US", "InlineBinary": "AA=="}),
    "bytes that are elsewhere": ("00091001", {"vr": "OB", "BulkDataURI": "https://ris.example/1"}),
    "a sequence with the VR of a text": (
        "ScheduledProcedureStepSequence", {"vr": "LO", "Value": ["CT"]}),
    "a text with the VR of a sequence": ("PatientID", {"vr": "SQ", "Value": [{}]}),
    "a number with the VR of a text": ("PregnancyStatus", {"vr": "LO", "Value": ["4"]}),
}  # fmt: skip


def named(refusal: Refusal, key: str) -> bool:
    """Whether a refusal names an attribute, by its tag or by its words."""
    tag = int(key, 16) if re.fullmatch("[0-9A-F]{8}", key) else 0
    known = tag or datadict.tag_for_keyword(key)
    words = [refusal.detail, *map(str, refusal.problems)]
    number = f"({known >> 16:04X},{known & 0xFFFF:04X})" if known else key
    return any(number in text or key in text for text in words)


@pytest.mark.parametrize("what", WRONG_JSON)
def test_json_is_refused_for(what):
    key, member = WRONG_JSON[what]
    with pytest.raises(Refusal) as refusal:
        from_json({"PatientSex": {"vr": "CS", "Value": ["F"]}, key: member})
    assert refusal.value.status is Status.INVALID_ATTRIBUTE_VALUE
    assert named(refusal.value, key)


@pytest.mark.parametrize("what", WRONG_JSON)
def test_json_in_an_item_is_refused_for(what):
    key, member = WRONG_JSON[what]
    value = {"ReferencedPatientSequence": {"vr": "SQ", "Value": [{}, {key: member}]}}
    with pytest.raises(Refusal) as refusal:
        from_json(value)
    assert refusal.value.status is Status.INVALID_ATTRIBUTE_VALUE
    assert named(refusal.value, key)


@pytest.mark.parametrize("value", [None, [], "text", 7, True, [{}]])
def test_what_is_no_object_is_no_data_set(value):
    with pytest.raises(Refusal) as refusal:
        from_json(value)
    assert refusal.value.status is Status.INVALID_ATTRIBUTE_VALUE


def test_json_nested_too_deep_is_refused():
    value: dict = {}
    for _ in range(200):
        value = {"ReferencedPatientSequence": {"vr": "SQ", "Value": [value]}}
    with pytest.raises(Refusal) as refusal:
        from_json(value)
    assert refusal.value.status is Status.INVALID_ATTRIBUTE_VALUE


def random_json(chance: random.Random, depth: int = 0):
    """Something that JSON can say."""
    if depth < 4 and chance.random() < 0.6:
        many = range(chance.randint(0, 3))
        if chance.random() < 0.4:
            return [random_json(chance, depth + 1) for _ in many]
        keys = ["vr", "Value", "InlineBinary", "BulkDataURI", "Alphabetic", "00100010", "PatientID"]
        keys += ["00400100", "PregnancyStatus", "00280009", "00091001", "PatientWeight", "FFFEE000"]
        return {chance.choice(keys): random_json(chance, depth + 1) for _ in many}
    plain = [None, True, False, 0, 1, -1, 1.5, 1e300, 2**70, "", "PN", "SQ", "US", "AT", "OB", "LO"]
    return chance.choice([*plain, "AAAA", "00100010", "王", "\ud800", "\0", "a\\b", "x" * 70_000])


@pytest.mark.parametrize("seed", range(20))
def test_any_json_is_refused_or_a_data_set(seed):
    chance = random.Random(seed)
    for _ in range(300):
        try:
            data = from_json(random_json(chance))
        except Refusal as refusal:
            assert refusal.status is Status.INVALID_ATTRIBUTE_VALUE
        else:
            assert recode(data, charset=UTF_8) == data
            assert ASCII.terms == ()
