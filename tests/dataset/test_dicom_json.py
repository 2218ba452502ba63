"""Sections 4 and 18: a data set as DICOM JSON and as the Native DICOM Model, and back."""

import copy
import json
import random
import re
import struct
import subprocess
from xml.etree import ElementTree

import peers
import pytest
from test_datasets import KEYWORDS
from test_dicomweb_workitems import JSON, UID, XML, create, door, workitem  # noqa: F401
from test_mpps import creation as mpps_creation
from test_ups import UPS_PUSH, call, creation, dataset, js  # noqa: F401

from minris.dataset.dicom_json import NAME_GROUPS, from_json, to_json
from minris.dataset.dicom_xml import from_xml, to_xml
from minris.dataset.elements import ElementIndex, encode_element, encode_item, encode_items
from minris.dataset.items import code_item
from minris.dataset.recode import recode
from minris.dataset.text import SPECIFIC_CHARACTER_SET, UTF_8, character_set
from minris.interchange.files import items_from_json
from minris.interchange.whole_store import export_store
from minris.standard.dictionary import tag_of
from minris.standard.status import Refusal, http_status
from minris.standard.uids import UPS_PULL

# pydicom warns of what some tests send on purpose
pytestmark = [
    pytest.mark.filterwarnings("ignore:Invalid value for VR"),
    pytest.mark.filterwarnings("ignore:The value length"),
]

NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
ONE_VALUE = ("ST", "LT", "UT", "UR")
CREATOR = encode_element(0x00090010, b"LO", b"LAKESIDE")

# What a peer may send in a value of a VR; of a list, several at once where the VR has several.
NAMES = [
    "Wang^XiaoDong", "Wang^XiaoDong=王^小东", "Wang^XiaoDong=王^小东=wang^xiaodong", "=王^小东",
    "==wang", "Wang^XiaoDong==wang^xiaodong", "Wang^^^Dr", "^XiaoDong", "", "Yamada^Tarou=山田^太郎=",
    " Li ^ Na ", "O'Neil^Mary Ann^^^PhD", "Wang",
]  # fmt: skip
WORDS = [
    "CT chest", "胸部CT平扫", "", " a", "a  b", "a & b <c> ]]> \"d\" 'e'", "&amp;", "𠀀😀", "Müller",
    "Penicillin", "1.50", "null",
]  # fmt: skip
LONG_TEXTS = [
    "second\r\nline", "C:\\scans\\1", "\\", "  indented", "a\tb", "one\n\ntwo", "胸部\\平扫", "",
    "a & b <c>", "\r", "ends in a line\r\n",
]  # fmt: skip
TEXTS = {
    "AE": ["CT1", "MR ROOM 2", " US1", ""],
    "AS": ["042Y", "003W", ""],
    "CS": ["CT", "SECONDARY", " MR ", ""],
    "DA": ["20260705", ""],
    "DS": ["70.5", "+1.50E2", " 12 ", "-0", "-0.0", "0.1", "070", "1.50", "1e-7", ".5", "5.", "",
           "123456789012345", "1234567890123456", "0.12345678901234", "1E400", "100", "1.0"],
    "DT": ["20260705120000.250000+0800", "2026", ""],
    "IS": ["0", "-1", "+5", "007", " 12 ", "2147483647", "-2147483648", "-0", ""],
    "LO": WORDS,
    "LT": LONG_TEXTS,
    "PN": NAMES,
    "SH": [word[:16] for word in WORDS],
    "ST": LONG_TEXTS,
    "TM": ["093000", "0930", "093000.25", ""],
    "UC": [*WORDS, "x" * 70_000],
    "UI": ["1.2.840.10008.1.2", "2.25.1", ""],
    "UR": ["https://ris.clinic.example/a?b=1&c=2", "tel:+86-10-5555-0142", ""],
    "UT": [*LONG_TEXTS, "王" * 30_000],
}  # fmt: skip
VRS = sorted({*TEXTS, *NUMBERS, "AT", "OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UN"})


def number(chance, vr):
    """A number of a binary VR, encoded; the ends of its range among them."""
    code = NUMBERS[vr]
    size = struct.calcsize(code)
    if code in "fd":
        special = [0.0, -0.0, 1.5, 0.1, 1e-30, float("inf"), float("-inf"), float("nan")]
        return struct.pack("<" + code, chance.choice([*special, chance.uniform(-1e9, 1e9)]))
    return chance.choice([b"\0" * size, b"\xff" * size, b"\xff" * (size - 1) + b"\x7f",
                          b"\0" * (size - 1) + b"\x80", chance.randbytes(size)])  # fmt: skip


def value_of(chance, vr, charset, depth):
    """A value of a VR as a peer encodes it."""
    many = chance.choice([0, 1, 1, 1, 2, 3, 5])
    if vr == "SQ":
        items = (elements(chance, charset, depth + 1) for _ in range(many if depth < 4 else 0))
        return b"".join(encode_item(chance.choice([b"", one, one])) for one in items)
    if vr in NUMBERS:
        return b"".join(number(chance, vr) for _ in range(many))
    if vr == "AT":
        return b"".join(struct.pack("<HH", 0x0010, chance.randrange(0x10000)) for _ in range(many))
    if vr in ("OB", "UN"):
        return chance.randbytes(chance.randrange(20))
    if vr not in TEXTS:
        return chance.randbytes(8 * many)
    found = [chance.choice(TEXTS[vr]) for _ in range(many)]
    text = "\\".join(found) if vr not in ONE_VALUE else "".join(found[:1])
    if vr in ("SH", "LO", "UC", "ST", "LT", "UT", "PN"):
        return charset.encode(text)
    return text.encode()


def elements(chance, charset, depth=1):
    """Elements of many VRs: known, private with and without a creator, and group lengths."""
    found = {}
    for vr in chance.sample(VRS, chance.randint(1, 8)):
        tag = tag_of(chance.choice(KEYWORDS[vr])) if vr in KEYWORDS else 0x00091001
        if vr == "UN" or chance.random() < 0.2:
            tag = chance.choice([0x00091000, 0x00111100, 0x00130100]) + chance.randrange(256)
        found[tag] = encode_element(tag, vr.encode(), value_of(chance, vr, charset, depth))
    if chance.random() < 0.5:
        found[0x00090010] = CREATOR
        found[0x00100000] = encode_element(0x00100000, b"UL", struct.pack("<I", 4))
    return b"".join(found[tag] for tag in sorted(found))


def peer_data(seed):
    """A data set of a seed as a peer sends it, in the character set that it declares."""
    chance = random.Random(seed)
    term = chance.choice(["ISO_IR 192", "GB18030"])
    head = encode_element(SPECIFIC_CHARACTER_SET, b"CS", term.encode())
    return head + elements(chance, character_set((term,)))


def plain(data, names=False):
    """A stored data set less what PS3.5 6.2 and 6.2.1 have as padding, and NaN as the one NaN.

    This is what JSON does not keep. `names`: less the delimiters at the end of a name group too,
    which the Native DICOM Model has no place for.
    """
    index, found = ElementIndex(data), []
    for tag in index:
        vr, value = index.vr(tag).decode(), index.value(tag)
        if vr == "SQ":
            found.append(encode_items(tag, (plain(bytes(i), names) for i in index.items(tag))))
            continue
        if vr in ("FL", "FD"):
            code = f"<{len(value) // struct.calcsize(NUMBERS[vr])}{NUMBERS[vr]}"
            numbers = struct.unpack(code, value)
            value = struct.pack(code, *(float("nan") if n != n else n for n in numbers))
        elif vr in TEXTS:
            value = plain_text(vr, value.decode(), names).encode()
        found.append(encode_element(tag, vr.encode(), value))
    return b"".join(found)


def plain_text(vr, text, names):
    if vr in ONE_VALUE:
        return text.rstrip(" \0")
    values = text.rstrip(" \0").split("\\")
    values = [value.rstrip(" ") if vr == "UC" else value.strip(" ") for value in values]
    if vr == "PN":
        groups = ([g.rstrip("^") if names else g for g in v.split("=")] for v in values)
        values = ["=".join(one).rstrip("=") for one in groups]
    return "\\".join(values).rstrip(" ")


def strict_json(text):
    """JSON, and no more than JSON: neither NaN nor a key twice."""

    def once(pairs):
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys))
        return dict(pairs)

    def never(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, object_pairs_hook=once, parse_constant=never)


def through_json(data):
    """A stored data set that was told as JSON and read again."""
    [found] = items_from_json(
        json.dumps([to_json(ElementIndex(data))], ensure_ascii=False).encode()
    )
    return found


def through_xml(data):
    return from_json(from_xml(to_xml(to_json(ElementIndex(data)))))


# Any data set that DIMSE accepts

SEEDS = range(300)


def test_any_data_set_comes_back_from_json_as_it_was():
    """T-WEB-13."""
    for seed in SEEDS:
        data = recode(peer_data(seed))
        assert through_json(data) == plain(data), f"seed {seed}"


def test_any_data_set_comes_back_from_xml_as_it_was():
    """T-WEB-13."""
    for seed in SEEDS:
        data = recode(peer_data(seed))
        assert through_xml(data) == plain(data, names=True), f"seed {seed}"


def test_json_that_was_told_is_told_the_same_again():
    """T-WEB-13: nothing is lost in the second round that was not in the first."""
    for seed in SEEDS:
        told = to_json(ElementIndex(recode(peer_data(seed))))
        assert to_json(ElementIndex(from_json(told))) == told, f"seed {seed}"


def members(value):
    """Every attribute of a data set in the JSON Model, those of items among them, and its key."""
    for key, member in value.items():
        yield key, member
        if member["vr"] == "SQ":
            for item in member.get("Value", []):
                yield from members(item)


def data_sets(value):
    """A data set of the JSON Model, and the items in it."""
    yield value
    for member in value.values():
        if member["vr"] == "SQ":
            for item in member.get("Value", []):
                yield from data_sets(item)


def told_sets():
    for seed in SEEDS:
        text = json.dumps(to_json(ElementIndex(recode(peer_data(seed)))), ensure_ascii=False)
        yield text, strict_json(text)


def test_keys_are_tags_in_order_without_group_lengths_and_character_set():
    """PS3.18 F.2.2."""
    for _, told in told_sets():
        for one in data_sets(told):
            assert list(one) == sorted(one)
            assert all(re.fullmatch("[0-9A-F]{8}", key) for key in one)
            assert not any(key.endswith("0000") or key == "00080005" for key in one)


def test_a_member_has_its_vr_and_at_most_one_kind_of_value():
    """PS3.18 F.2.2, F.2.5, F.2.7."""
    for _, told in told_sets():
        for key, member in members(told):
            assert member["vr"] in VRS
            assert len(member) <= 2
            assert member.keys() <= {"vr", "Value", "InlineBinary"}, key
            assert member.get("Value", "some") and member.get("InlineBinary", "some"), key


def test_values_are_of_the_json_types_of_their_vrs():
    """PS3.18 Table F.2.3-1, F.2.2, F.2.5."""
    kinds = {"SQ": dict, "US": int, "SS": int, "UL": int, "SL": int, "AT": str}
    for _, told in told_sets():
        for key, member in members(told):
            vr = member["vr"]
            for value in member.get("Value", []):
                if vr == "PN":
                    assert value is None or set(value) <= set(NAME_GROUPS)
                    assert value is None or (value and all(value.values())), key
                elif vr in ("DS", "IS", "UV", "SV", "FL", "FD"):
                    assert value is None or type(value) in (int, float, str), key
                elif vr in kinds:
                    assert type(value) is kinds[vr], key
                else:
                    assert value is None or (type(value) is str and value), key


def test_texts_are_told_as_they_are_read():
    assert any("王" in text for text, _ in told_sets())
    assert not any(r"\u7" in text for text, _ in told_sets())


def test_ten_sequences_in_each_other_come_back():
    data = encode_element(tag_of("PatientName"), b"PN", "Li^Na=李^娜".encode())
    for _ in range(10):
        data = encode_items(tag_of("ReferencedPatientSequence"), [data, b""])
    assert through_json(data) == through_xml(data) == data


# One thing at a time


@pytest.mark.parametrize("through", [through_json, through_xml], ids=["json", "xml"])
@pytest.mark.parametrize(
    ("tag", "vr", "value"),
    [
        (0x00090010, "LO", b"LAKESIDE"),
        (0x00100020, "SH", b"P000042"),
        (0x00080119, "UC", b" starts with a space"),
        (0x00100010, "PN", b"A^B^C^D^E^F"),
        (0x00100010, "PN", b"Wang=Wang=wang=wang"),
        (0x00104000, "LT", b"one\r\ntwo\rthree\nfour"),
        (0x00102203, "CS", b"\\"),
        (0x00091001, "UV", b"\xff" * 8),
        (0x00091001, "SV", b"\0" * 7 + b"\x80"),
        (0x00091001, "FD", struct.pack("<3d", 1.5, float("inf"), float("-inf"))),
        (0x00091001, "FD", struct.pack("<2d", -0.0, 5e-324)),
        (0x00091001, "OB", b"\x01\x02"),
        (0x00111001, "LO", "没有创建者".encode()),
    ],
)
def test_an_element_comes_back(through, tag, vr, value):
    """What DIMSE accepts is told and read; (0009,0010) is a private creator."""
    data = recode(encode_element(tag, vr.encode(), value), charset=UTF_8)
    assert through(data) == data


@pytest.mark.parametrize("vr", ["UV", "SV"])
def test_a_number_of_more_digits_than_a_reader_keeps_is_a_text(vr):
    """PS3.18 F.2.3: readers of JSON have doubles; whole numbers end to be exact at 2^53."""
    code = "<3" + NUMBERS[vr]
    data = encode_element(0x00091001, vr.encode(), struct.pack(code, 7, 2**53 - 1, 2**62 + 1))
    told = to_json(ElementIndex(data))["00091001"]["Value"]
    assert told == [7, 2**53 - 1, str(2**62 + 1)]


@pytest.mark.parametrize("raw", [b"\x01", b"\x01\x02", b"\x01\x02\x03\x04\x05\x06"])
def test_a_number_with_bytes_missing_leaves_a_member_in_order(raw):
    """PS3.18 F.2.5: a Value is never an empty array."""
    told = to_json(ElementIndex(recode(encode_element(0x00091001, b"UL", raw))))["00091001"]
    assert told.get("Value", "none")


def test_a_text_outside_ascii_where_there_is_none_leaves_json_in_order():
    """A CS in GB18030, as broken peers have it: it cannot be told, and breaks nothing."""
    data = recode(encode_element(tag_of("PatientSex"), b"CS", "男".encode("gb18030")))
    told = json.dumps(to_json(ElementIndex(data)), ensure_ascii=False)
    assert from_json(strict_json(told))


@pytest.mark.parametrize(
    "text", ["a\fb", "a\0b", "a\x1bb", "a\x0bb", "a\ufffeb", "a\uffffb", "\x01"]
)
def test_xml_is_well_formed_whatever_a_text_holds(text):
    """A form feed is allowed in a DICOM text (PS3.5 6.1.3), but not in XML 1.0 (2.2)."""
    name = encode_element(tag_of("PatientName"), b"PN", f"Li^{text}".encode())
    data = name + encode_element(tag_of("PatientComments"), b"LT", f"{text}, Müller".encode())
    root = ElementTree.fromstring(to_xml(to_json(ElementIndex(data))))
    assert root.findtext(".//Value").endswith(", Müller")
    assert root.findtext(".//FamilyName") == "Li"


# The Native DICOM Model of DCMTK

PRIVATE = [
    CREATOR,
    encode_element(0x00091001, b"LO", "CT 胸部\\\\2".encode()),
    encode_element(0x00091102, b"UN", b"\0\1"),
]


def dicom_file(path, data):
    """A DICOM file of a stored data set."""
    head = encode_element(SPECIFIC_CHARACTER_SET, b"CS", b"ISO_IR 192")
    texts = {0x00020002: "1.2.3", 0x00020003: "2.25.7", 0x00020010: "1.2.840.10008.1.2.1"}
    meta = encode_element(0x00020001, b"OB", b"\0\1")
    meta += b"".join(encode_element(tag, b"UI", text.encode()) for tag, text in texts.items())
    size = encode_element(0x00020000, b"UL", struct.pack("<I", len(meta)))
    path.write_bytes(b"\0" * 128 + b"DICM" + size + meta + head + data)
    return path


def xml_of_dcmtk(path, *options):
    tool = peers.dcmtk("dcm2xml")
    done = subprocess.run([tool, "-nat", *options, path], capture_output=True, check=True)
    return done.stdout


@pytest.mark.parametrize("options", [[], ["+Xn"]], ids=["plain", "namespace"])
def test_the_xml_of_dcmtk_is_the_data_set(tmp_path, options):
    """A private element is gggg00ee with the name of its creator there (PS3.19 A.1.5)."""
    name = encode_element(tag_of("PatientName"), b"PN", "Wang^Xiao^^Dr=王^小东".encode())
    code = code_item("110001", "Image Processing")
    data = b"".join(
        [
            encode_items(tag_of("ProcedureCodeSequence"), [code, b""]),
            CREATOR,
            encode_element(0x00091001, b"LO", "CT 胸部\\\\2".encode()),
            encode_element(0x00091002, b"FD", struct.pack("<2d", 1.5, float("-inf"))),
            name,
            encode_element(tag_of("PatientComments"), b"LT", b"one\r\n two & <three>"),
        ]
    )
    written = xml_of_dcmtk(dicom_file(tmp_path / "a.dcm", data), *options)
    assert from_json(from_xml(written)) == plain(data)


def attributes_of(content):
    """The attributes of the XML elements of a document, by tag and creator."""
    found = ElementTree.fromstring(re.sub(rb' xmlns="[^"]*"', b"", content))
    return [dict(element.attrib) for element in found.iter("DicomAttribute")]


def test_private_elements_are_named_as_dcmtk_names_them(tmp_path):
    """PS3.19 A.1.5."""
    data = CREATOR + encode_element(0x00091001, b"LO", b"CT chest")
    theirs = attributes_of(xml_of_dcmtk(dicom_file(tmp_path / "a.dcm", data)))
    ours = attributes_of(to_xml(to_json(ElementIndex(data))))
    assert ours == [one for one in theirs if one["tag"] != "00080005"]


def private(tag, creator, text="x"):
    named = f' privateCreator="{creator}"' if creator else ""
    return f'<DicomAttribute tag="{tag}" vr="LO"{named}><Value number="1">{text}</Value></DicomAttribute>'


def native(*parts):
    return f"<NativeDicomModel>{''.join(parts)}</NativeDicomModel>".encode()


@pytest.mark.parametrize(
    ("parts", "tags"),
    [
        ([private("00090001", "LAKESIDE")], [0x00090010, 0x00091001]),
        ([private("00090011", "", "LAKESIDE"), private("00090001", "LAKESIDE")],
         [0x00090011, 0x00091101]),
        ([private("00090010", "", "OTHER"), private("00090001", "LAKESIDE")],
         [0x00090010, 0x00090011, 0x00091101]),
        ([private("00090001", "LAKESIDE"), private("00090001", "OTHER")],
         [0x00090010, 0x00090011, 0x00091001, 0x00091101]),
        ([private("00090001", "LAKESIDE"), private("00090002", "LAKESIDE")],
         [0x00090010, 0x00091001, 0x00091002]),
        ([private("00091001", "LAKESIDE")], [0x00090010, 0x00091001]),
        ([private("00090010", "", "LAKESIDE"), private("00091001", "")], [0x00090010, 0x00091001]),
    ],
)  # fmt: skip
def test_a_private_element_of_xml_gets_a_block_of_its_creator(parts, tags):
    """PS3.5 7.8.1, PS3.19 A.1.5."""
    index = ElementIndex(from_json(from_xml(native(*parts))))
    assert list(index) == tags
    assert index.text(tags[0]) in ("LAKESIDE", "OTHER")


# Over DIMSE and out of the web door, and the other way

CHINESE = {
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Wang^XiaoDong", "Ideographic": "王^小东"}]},
    "00101000": {"vr": "LO", "Value": ["H-991", None, "门诊 42"]},
    "00101001": {"vr": "PN", "Value": [{"Alphabetic": "Li^Na", "Ideographic": "李^娜"}]},
    "00101020": {"vr": "DS", "Value": ["1.80"]},
    "00102110": {"vr": "LO", "Value": ["青霉素", None, "Nuts"]},
    "001021B0": {"vr": "LT", "Value": ["咳嗽 三周\r\n  C:\\scans"]},
    "001021C0": {"vr": "US", "Value": [4]},
    "00104000": {"vr": "LT"},
    "00400400": {"vr": "LT", "Value": ["急诊 & <soon>"]},
    "00404018": {"vr": "SQ", "Value": [
        {"00080100": {"vr": "SH", "Value": ["110001"]}, "00080102": {"vr": "SH", "Value": ["DCM"]},
         "00080104": {"vr": "LO", "Value": ["Image Processing"]}}]},
}  # fmt: skip
# Only bytes, private elements and empty items make it more than dcmjs writes.
EVERYTHING = CHINESE | {
    "00090010": {"vr": "LO", "Value": ["LAKESIDE"]},
    "00091001": {"vr": "UN", "InlineBinary": "AAEC/w=="},
    "00091002": {"vr": "OB", "InlineBinary": "/w=="},
    "00091003": {"vr": "FD", "Value": [1.5, "NaN", "-inf"]},
    "00091004": {"vr": "UV", "Value": [str(2**64 - 1)]},
    "00091005": {"vr": "AT", "Value": ["00100010", "00400100"]},
    "00081120": {"vr": "SQ", "Value": [{}, {"00081155": {"vr": "UI", "Value": ["2.25.9"]}}]},
    "00404021": {"vr": "SQ"},
}


def same(told, sent):
    """Assert that attributes are told as they were sent, numbers and texts of them alike."""
    found = {key: told.get(key) for key in sent}
    assert ElementIndex(from_json(found)).data == ElementIndex(from_json(sent)).data
    assert {key: value["vr"] for key, value in found.items()} == {
        key: value["vr"] for key, value in sent.items()
    }


@pytest.mark.parametrize("charset", ["GB18030", "ISO_IR 192"])
def test_a_workitem_of_dcmjs_comes_out_of_the_web_door_equal(appliance, door, charset):  # noqa: F811
    """T-WEB-13."""
    ask = js("n-create", UPS_PUSH, uid=UID, charset=charset, dataset=creation())
    for key, member in CHINESE.items():  # dcmjs 0.50 writes null as the word
        values = ["" if value is None else value for value in member.get("Value", [])]
        ask["dataset"][key] = {"vr": member["vr"], "Value": values}
    [answer] = peers.run_dimse(appliance.port, [ask], calling="US1")
    assert answer["status"] == 0, answer
    [told] = strict_json(door.get(f"/workitems/{UID}").text)
    same(told, CHINESE)
    assert told["00101000"] == CHINESE["00101000"]
    assert told["00100010"] == CHINESE["00100010"]
    assert "00080005" not in told
    assert "青霉素" in door.get(f"/workitems/{UID}").text
    answer = door.get(f"/workitems/{UID}", headers={"Accept": "application/dicom+xml"})
    same(from_xml(answer.content), CHINESE)


def test_a_performed_step_of_dcmjs_comes_out_of_the_web_door_equal(appliance, door):  # noqa: F811
    """T-WEB-13, T-WEB-16."""
    sent = mpps_creation().to_json_dict() | {
        "00100010": CHINESE["00100010"],
        "00400254": {"vr": "LO", "Value": ["胸部CT平扫"]},
    }
    del sent["00080005"]
    ask = {"op": "n-create", "instance": UID, "charset": "GB18030", "dataset": sent}
    [answer] = peers.run_dimse(appliance.port, [ask], calling="CT1")
    assert answer["status"] == 0, answer
    [told] = strict_json(door.get(f"/modality-performed-procedure-steps/{UID}").text)
    same(told, sent)


@pytest.mark.parametrize("form", ["json", "xml"])
def test_what_is_posted_comes_out_over_dimse_equal(appliance, door, call, form):  # noqa: F811
    """T-WEB-13: with a private element of each kind, and an item that is empty."""
    body = workitem() | EVERYTHING
    content, kind = json.dumps([body]).encode(), JSON
    if form == "xml":
        content, kind = to_xml(body), XML
    answer = door.post(f"/workitems?{UID}", content=content, headers=kind)
    assert answer.status_code == 201, answer.text
    got = call.get(uid=UID)
    assert got.status == 0
    same(to_json(ElementIndex(recode(got.data))), EVERYTHING)
    keys = dataset(SOPInstanceUID=UID, PatientName="", Allergies="", OtherPatientIDs="")
    found, _ = call.find(keys)
    told = to_json(ElementIndex(recode(found.data)))
    assert told["00100010"] == CHINESE["00100010"]
    assert told["00102110"] == CHINESE["00102110"]


def test_what_is_posted_is_read_by_dcmjs(appliance, door):  # noqa: F811
    """T-WEB-13."""
    create(door, PatientName="Wang^XiaoDong=王^小东", Allergies=["青霉素", "", "Nuts"])
    get = js("n-get", UPS_PULL, uid=UID)
    [answer] = peers.run_dimse(appliance.port, [get], calling="US1")
    assert answer["dataset"]["PatientName"][0] == CHINESE["00100010"]["Value"][0]
    assert [one or None for one in answer["dataset"]["Allergies"]] == CHINESE["00102110"]["Value"]


def test_a_workitem_with_private_elements_is_exported_and_imported(appliance, door):  # noqa: F811
    body = workitem() | EVERYTHING
    assert door.post(f"/workitems?{UID}", json=[body], headers=JSON).status_code == 201
    exported = json.loads(json.dumps(appliance.read(export_store), allow_nan=False))
    [one] = exported["workitems"]
    same(to_json(ElementIndex(from_json(one["data"]))), EVERYTHING)


# What is no DICOM JSON

P01 = '{"00100020": {"vr": "LO", "Value": ["P01"]}}'


def member(text, key="00100020"):
    return f'[{{"{key}": {text}}}]'.encode()


WRONG_JSON = {
    "nothing": b"",
    "no object": b"[7]",
    "an array in an array": b"[[{}]]",
    "a hundred thousand brackets": b"[" * 100_000,
    "a hundred thousand brackets, closed": b"[" * 100_000 + b"]" * 100_000,
    "a hundred thousand braces": b'{"00081120":' * 100_000,
    "a number as a value, deep": member('{"vr":"LO","Value":[' * 2000 + "]}" * 2000),
    "NaN": member('{"vr":"DS","Value":[NaN]}', "00101030"),
    "Infinity": member('{"vr":"FD","Value":[-Infinity]}', "00091001"),
    "a number past a double, as a decimal string": member('{"vr":"DS","Value":[1e999]}', "00101030"),
    "a number past a double, as a double": member('{"vr":"FD","Value":[1e999]}', "00091001"),
    "a number past a double, as a text": member('{"vr":"FD","Value":["1e999"]}', "00091001"),
    "a number past a float": member('{"vr":"FL","Value":[1e39]}', "00091001"),
    "a number past a double, as an id": member('{"vr":"LO","Value":[1e999]}'),
    "a number of ten thousand digits": member('{"vr":"IS","Value":[%s]}' % ("9" * 10_000), "00200013"),
    "a number with an underscore": member('{"vr":"US","Value":["1_0"]}', "001021C0"),
    "a number in other digits": member('{"vr":"US","Value":["４"]}', "001021C0"),
    "true as a double": member('{"vr":"FD","Value":[true]}', "00091001"),
    "null as a double": member('{"vr":"FD","Value":[null]}', "00091001"),
    "half a surrogate": member(r'{"vr":"LO","Value":["\ud800"]}'),
    "half a surrogate as a key": member('{"vr":"LO"}', r"\ud800"),
    "half a surrogate as a VR": member(r'{"vr":"\ud800"}'),
    "half a surrogate in a name": member(r'{"vr":"PN","Value":[{"Alphabetic":"\udfff"}]}', "00100010"),
    "half a surrogate in bytes": member(r'{"vr":"OB","InlineBinary":"\ud800"}', "00091001"),
    "half a surrogate, raw": member('{"vr":"LO","Value":["?"]}').replace(b"?", b"\xed\xa0\x80"),
    "a key twice": b'[{"00100020": {"vr": "LO", "Value": ["P01"]}, "00100020": {"vr": "LO"}}]',
    "a Value twice": member('{"vr":"LO","Value":["P01"],"Value":["P02"]}'),
    "an attribute by tag and by keyword": b'[{"00100020": {"vr": "LO"}, "PatientID": {"vr": "LO"}}]',
    "an attribute in both cases": b'[{"0010002A": {"vr": "LO"}, "0010002a": {"vr": "LO"}}]',
    "a key of seven digits": member('{"vr":"LO"}', "0010002"),
    "a key of nine digits": member('{"vr":"LO"}', "001000200"),
    "a key in other digits": member('{"vr":"LO"}', "００１０００２０"),
    "a key with a comma": member('{"vr":"LO"}', "0010,0020"),
    "an empty key": member('{"vr":"US","Value":[1]}', ""),
    "a keyword there is not": member('{"vr":"LO"}', "PatientsID"),
    "a keyword in another case": member('{"vr":"LO"}', "patientID"),
    "a command element": member('{"vr":"US","Value":[1]}', "00000110"),
    "a file meta element": member('{"vr":"UI"}', "00020010"),
    "an item": member('{"vr":"SQ"}', "FFFEE000"),
    "a VR that is false": member('{"vr":false,"Value":["P01"]}'),
    "a VR that is an object": member('{"vr":{},"Value":["P01"]}'),
    "a VR in small letters": member('{"vr":"lo","Value":["P01"]}'),
    "a VR of another kind": member('{"vr":"US","Value":[1]}'),
    "a name group that is false": member('{"vr":"PN","Value":[{"Alphabetic":false}]}', "00100010"),
    "a name group that is an array": member('{"vr":"PN","Value":[{"Alphabetic":[]}]}', "00100010"),
    "a name group with a delimiter": member('{"vr":"PN","Value":[{"Alphabetic":"A=B"}]}', "00100010"),
    "a Value in small letters": member('{"vr":"LO","value":["P01"]}'),
    "a Value beside bytes": member('{"vr":"OB","Value":["x"],"InlineBinary":"AAAA"}', "00091001"),
    "bytes that are elsewhere too": member(
        '{"vr":"OB","InlineBinary":"AAAA","BulkDataURI":"https://ris.example/1"}', "00091001"),
    "two values of a text that has one": member('{"vr":"LT","Value":["a","b"]}', "00104000"),
    "a value that would be two": member(r'{"vr":"LO","Value":["a\\b"]}'),
    "bytes that are not UTF-8": member('{"vr":"LO","Value":["王"]}').decode().encode("gb18030"),
    "a comma too many": f"[{P01},]".encode(),
    "a comment": f"/* a */ [{P01}]".encode(),
    "two documents": f"{P01}{P01}".encode(),
}  # fmt: skip


def refused(read, content):
    """Assert that a content is refused, with one line of a length to be read."""
    with pytest.raises(Refusal) as found:
        read(content)
    assert 400 <= http_status("create", found.value) < 500
    for line in (found.value.detail, *map(str, found.value.problems)):
        assert "\n" not in line
        assert len(line) < 400
        line.encode()
    return found.value


@pytest.mark.parametrize("what", WRONG_JSON)
def test_json_is_refused_for(what):
    refused(items_from_json, WRONG_JSON[what])


def test_json_may_begin_with_a_mark():
    assert items_from_json(b"\xef\xbb\xbf" + P01.encode()) == items_from_json(P01.encode())


def test_a_key_in_small_letters_is_read():
    assert from_json({"0010002a": {"vr": "UN"}}) == from_json({"0010002A": {"vr": "UN"}})


def test_a_key_that_is_too_long_is_named_in_short():
    refused(items_from_json, member('{"vr":"LO"}', "x" * 1_000_000))


def test_minus_nought_is_kept():
    told = [{"00101030": {"vr": "DS", "Value": [-0.0]}, "00091001": {"vr": "FD", "Value": [-0.0]}}]
    index = ElementIndex(items_from_json(json.dumps(told).encode())[0])
    assert index.text(0x00101030) == "-0.0"
    assert index.value(0x00091001) == struct.pack("<d", -0.0)


# What is no Native DICOM Model


def attribute(inner, head='tag="00100020" vr="LO"'):
    return native(f"<DicomAttribute {head}>{inner}</DicomAttribute>")


BOMB = b'<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]>'
OUTSIDE = b'<!DOCTYPE a SYSTEM "file:///etc/passwd">'
VALUE = '<Value number="1">P01</Value>'
NAME = 'tag="00100010" vr="PN"'
WRONG_XML = {
    "nothing": b"",
    "JSON": f"[{P01}]".encode(),
    "entities": BOMB + attribute("<Value>&c;</Value>"),
    "a document type": OUTSIDE + attribute(VALUE),
    "a document type alone": b"<!DOCTYPE NativeDicomModel>" + attribute(VALUE),
    "an entity there is not": attribute("<Value>&b;</Value>"),
    "another root": b"<DicomModel/>",
    "no end": attribute(VALUE)[:-5],
    "more behind the end": attribute(VALUE) * 2,
    "a hundred thousand elements in each other": b"<a>" * 100_000,
    "depth": native('<DicomAttribute tag="00081120" vr="SQ"><Item number="1">' * 40
                    + "</Item></DicomAttribute>" * 40),
    "an attribute without a tag": attribute(VALUE, 'vr="LO"'),
    "an attribute with an empty tag": attribute(VALUE, 'tag="" vr="LO"'),
    "a tag that is none": attribute(VALUE, 'tag="0010002" vr="LO"'),
    "a command element": attribute("", 'tag="00000002" vr="UI"'),
    "a VR there is not": attribute(VALUE, 'tag="00100020" vr="XX"'),
    "an attribute twice": native(*[
        f'<DicomAttribute tag="00100020" vr="LO">{VALUE}</DicomAttribute>'] * 2),
    "values from the third": attribute('<Value number="3">a</Value><Value number="1">b</Value>'),
    "a number twice": attribute('<Value number="1">a</Value><Value number="1">b</Value>'),
    "a number that is none": attribute('<Value number="one">a</Value>'),
    "number nought": attribute('<Value number="0">a</Value>'),
    "a number past all": attribute('<Value number="999999999999">a</Value>'),
    "an element there is not": attribute("<value>P01</value>"),
    "an attribute in small letters": native('<dicomAttribute tag="00100020" vr="LO"/>'),
    "a text without a Value": attribute("P01"),
    "a text between attributes": native("P01"),
    "a name without groups": attribute("<PersonName number='1'>Li</PersonName>", NAME),
    "a name group without parts": attribute(
        "<PersonName number='1'><Alphabetic>Li^Na</Alphabetic></PersonName>", NAME),
    "a name group there is not": attribute(
        "<PersonName number='1'><Latin><FamilyName>Li</FamilyName></Latin></PersonName>", NAME),
    "a name part there is not": attribute(
        "<PersonName number='1'><Alphabetic><Surname>Li</Surname></Alphabetic></PersonName>", NAME),
    "a value that is a name": attribute(
        "<PersonName number='1'><Alphabetic><FamilyName>Li</FamilyName></Alphabetic></PersonName>"),
    "a value that is an item": attribute('<Item number="1"/>'),
    "an item that is a value": attribute(VALUE, 'tag="00081120" vr="SQ"'),
    "bytes beside a value": attribute(
        f"{VALUE}<InlineBinary>AAAA</InlineBinary>", 'tag="00091001" vr="OB"'),
    "bytes twice": attribute("<InlineBinary>AAAA</InlineBinary>" * 2, 'tag="00091001" vr="OB"'),
    "bytes that are elsewhere": attribute(
        '<BulkData uri="file:///etc/passwd"/>', 'tag="00091001" vr="OB"'),
    "a number that is empty": attribute("<Value/>", 'tag="001021C0" vr="US"'),
    "an encoding there is not": b'<?xml version="1.0" encoding="EBCDIC-7"?>' + attribute(VALUE),
    "bytes that are not UTF-8": attribute("<Value>王</Value>").decode().encode("gb18030"),
    "a form feed": attribute("<Value>a\fb</Value>"),
    "half a surrogate": attribute("<Value>&#xD800;</Value>"),
    "a null": attribute("<Value>&#0;</Value>"),
}  # fmt: skip


def read_xml(content):
    return from_json(from_xml(content))


@pytest.mark.parametrize("what", WRONG_XML)
def test_xml_is_refused_for(what):
    refused(read_xml, WRONG_XML[what])


PATIENT = encode_element(tag_of("PatientID"), b"LO", b"P01")
NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"


@pytest.mark.parametrize(
    "content",
    [
        attribute(VALUE),
        attribute("<Value>P01</Value>"),
        attribute('<Value number="1"><![CDATA[P01]]></Value>'),
        attribute('<Value number="1">P<!-- zero -->01</Value>'),
        attribute('<?a b?><Value number="1">P0<?a b?>1</Value>'),
        attribute('\n  <Value number="1">P01</Value>\n'),
        attribute('<Value number="1">&#80;01</Value>'),
        b'<?xml version="1.0"?>\n<!-- a -->' + attribute(VALUE),
        b"\xef\xbb\xbf" + attribute(VALUE),
        attribute(VALUE).decode().encode("utf-16"),
        attribute(VALUE).replace(b"Model>", f'Model xmlns="{NAMESPACE}">'.encode(), 1),
        attribute(VALUE)
        .replace(b"<", b"<d:")
        .replace(b"<d:/", b"</d:")
        .replace(b"Model>", f'Model xmlns:d="{NAMESPACE}">'.encode(), 1),
        attribute(VALUE, 'tag="00100020"'),
        attribute(VALUE, 'keyword="PatientID" vr="LO"'),
    ],
)
def test_xml_is_read_however_it_is_written(content):
    assert read_xml(content) == PATIENT


def test_bytes_in_xml_may_be_on_several_lines():
    """xs:base64Binary has white space anywhere."""
    content = attribute("<InlineBinary>\n AAEC\n /w==\n</InlineBinary>", 'tag="00091001" vr="OB"')
    assert ElementIndex(read_xml(content)).value(0x00091001) == b"\0\1\2\xff"


# Any document, made worse at random

ATOMS = [None, True, False, 0, -1, 1.5, 1e300, 2**70, "", "a\\b", "PN", "SQ", "OB", "王", "\ud800",
         "\0", "x" * 70_000, [], {}, [None], [[]], [{}], {"vr": "LO"}, {"Value": [1]},
         {"Alphabetic": "A"}]  # fmt: skip
KEYS = ["vr", "Value", "InlineBinary", "BulkDataURI", "Alphabetic", "00100010", "00081120", "PatientID",
        "00091001", "00080005", "00000002", "FFFEE000", "", "7", "00100000", "00090010"]  # fmt: skip


def places(value, path=()):
    """Every place in a JSON document."""
    yield path
    parts = value.items() if isinstance(value, dict) else ()
    for key, part in enumerate(value) if isinstance(value, list) else parts:
        yield from places(part, (*path, key))


def worse(chance, value):
    """A document with one to three of its parts replaced, moved, renamed or left out."""
    value = copy.deepcopy(value)
    for _ in range(chance.randint(1, 3)):
        *path, last = chance.choice([place for place in places(value) if place])
        holder = value
        for key in path:
            holder = holder[key]
        what = chance.randrange(5)
        if what == 0:
            holder[last] = chance.choice(ATOMS)
        elif what == 1:
            holder[last] = chance.choice([[holder[last]], {chance.choice(KEYS): holder[last]}])
        elif what == 2:
            del holder[last]
        elif isinstance(holder, dict):
            holder[chance.choice(KEYS)] = holder.pop(last) if what == 3 else holder[last]
        else:
            holder.insert(last, chance.choice(ATOMS) if what == 3 else holder[last])
        if not value:
            break
    return value


def damaged(chance, content):
    """A text with some of its bytes changed, left out or doubled."""
    content = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content))
        end = at + chance.randint(1, 20)
        what = chance.randrange(4)
        if what == 0:
            content[at] = chance.randrange(256)
        elif what == 1:
            content[at] = chance.choice(b"\"{}[]:,<>&/\\0 '=!")
        elif what == 2 and len(content) > 100:
            del content[at:end]
        else:
            content[at:at] = content[at:end]
    return bytes(content)


def taken_or_refused(read, content):
    """Whether a content is taken; then it is a data set that comes back from both models."""
    try:
        data = read(content)
    except Refusal as refusal:
        assert 400 <= http_status("create", refusal) < 500
        assert "\n" not in refusal.detail
        return False
    assert recode(data, charset=UTF_8) == data
    strict_json(json.dumps(to_json(ElementIndex(data))))
    assert through_json(data) == through_json(through_json(data))
    ElementTree.fromstring(to_xml(to_json(ElementIndex(data))))
    return True


def one_item(content):
    found = items_from_json(content)
    return b"".join(found[:1])


def sample():
    """A document with something of every kind."""
    return workitem() | EVERYTHING


def test_any_json_is_taken_whole_or_refused():
    chance, taken = random.Random(5), 0
    base = sample()
    for _ in range(700):
        content = json.dumps(worse(chance, [base])).encode()
        taken += taken_or_refused(one_item, content)
    assert 0 < taken < 700


def test_any_bytes_for_json_are_taken_whole_or_refused():
    chance, taken = random.Random(6), 0
    base = json.dumps([sample()], ensure_ascii=False).encode()
    for _ in range(500):
        taken += taken_or_refused(one_item, damaged(chance, base))
    assert 0 < taken < 500


XML_NAMES = ["NativeDicomModel", "DicomAttribute", "Value", "Item", "PersonName", "Alphabetic",
             "FamilyName", "InlineBinary", "BulkData", "a"]  # fmt: skip


def worse_xml(chance, content):
    """A document with one to three of its elements renamed, moved, doubled or left out."""
    root = ElementTree.fromstring(content)
    for _ in range(chance.randint(1, 3)):
        parents = [(parent, child) for parent in root.iter() for child in parent]
        if not parents:
            break
        parent, child = chance.choice(parents)
        what = chance.randrange(6)
        if what == 0:
            child.tag = chance.choice(XML_NAMES)
        elif what == 1:
            parent.remove(child)
        elif what == 2:
            parent.append(copy.deepcopy(child))
        elif what == 3:
            chance.choice(list(root.iter())).append(copy.deepcopy(child))
        elif what == 4:
            child.text = chance.choice(["", "a\\b", "7", "王", "x" * 70_000, "1e999", "AAAA", None])
        elif child.attrib:
            name = chance.choice(list(child.attrib))
            child.set(
                name, chance.choice(["", "0", "SQ", "PN", "US", "00100010", "00090001", "王"])
            )
    return ElementTree.tostring(root)


def test_any_xml_is_taken_whole_or_refused():
    chance, taken = random.Random(7), 0
    base = to_xml(sample())
    for _ in range(500):
        taken += taken_or_refused(read_xml, worse_xml(chance, base))
    assert 0 < taken < 500


def test_any_bytes_for_xml_are_taken_whole_or_refused():
    chance, taken = random.Random(8), 0
    base = to_xml(sample())
    for _ in range(400):
        taken += taken_or_refused(read_xml, damaged(chance, base))
    assert 0 < taken < 400


# The same at the door


AT_THE_DOOR = [
    (JSON, "a hundred thousand brackets"),
    (JSON, "half a surrogate"),
    (JSON, "half a surrogate as a key"),
    (JSON, "NaN"),
    (JSON, "a key twice"),
    (JSON, "bytes that are not UTF-8"),
    (XML, "entities"),
    (XML, "a document type"),
    (XML, "a hundred thousand elements in each other"),
    (XML, "an attribute twice"),
    (XML, "bytes that are not UTF-8"),
    (XML, "nothing"),
]


def test_nothing_is_stored_of_what_is_refused_at_the_door(door):  # noqa: F811
    for kind, what in AT_THE_DOOR:
        content = (WRONG_JSON if kind is JSON else WRONG_XML)[what]
        answer = door.post(f"/workitems?{UID}", content=content, headers=kind)
        assert answer.status_code == 400, what
        assert answer.json()["error"], what
        assert "\n" not in answer.json()["error"], what
    assert door.get("/workitems").json() == []


@pytest.mark.parametrize("kind", [JSON, XML], ids=["json", "xml"])
def test_a_wrong_part_of_a_workitem_is_a_wrong_workitem(door, kind):  # noqa: F811
    """No half of it is stored, and its place is named."""
    body = workitem() | EVERYTHING | {"001021C0": {"vr": "US", "Value": [70_000]}}
    content = to_xml(body) if kind is XML else json.dumps([body]).encode()
    answer = door.post(f"/workitems?{UID}", content=content, headers=kind)
    assert answer.status_code == 400
    assert "(0010,21C0)" in answer.text
    assert door.get(f"/workitems/{UID}").status_code == 404


def test_a_workitem_with_a_private_creator_is_taken_at_the_door(door):  # noqa: F811
    body = workitem() | {"00090010": {"vr": "LO", "Value": ["LAKESIDE"]}}
    answer = door.post(f"/workitems?{UID}", json=[body], headers=JSON)
    assert answer.status_code == 201, answer.text
