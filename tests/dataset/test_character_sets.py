"""Specific Character Set (0008,0005): every set read, written, matched; Latin names by pinyin.

What is sent is put together here, what is answered is read by DCMTK, dcmjs-dimse and pydicom, so
that the encoder of minris is never checked by its own decoder alone.
"""

import contextlib
import io
import itertools
import logging
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import httpx
import peers
import pydicom
import pydicom.charset
import pytest
from bench import wire
from conftest import item
from pydicom.data import get_charset_files
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pynetdicom.dsutils import encode

from minris.access.users import make_user, open_session
from minris.dataset.dicom_json import from_json
from minris.dataset.elements import ElementIndex, encode_text
from minris.dataset.names import COMPOUND_SURNAMES, chinese_name, latin_name, person_name
from minris.dataset.recode import recode, recode_noting
from minris.dataset.search import AnswerStyle, Search, to_syntax
from minris.dataset.text import ASCII, character_set, decode_text
from minris.interchange.files import read_items
from minris.interchange.imports import import_now
from minris.orders.scheduling import schedule
from minris.orders.worklist import find_worklist
from minris.standard.character_sets import REPERTOIRES, term_meant
from minris.standard.dictionary import tag_of
from minris.standard.uids import IMPLICIT_VR_LITTLE_ENDIAN
from minris.standard.worklist import MWL_ATTRIBUTES
from minris.store.models import PerformedProcedureStep

SUCCESS, INVALID_VALUE = 0x0000, 0x0106
WANG = "Wang^XiaoDong=王^小东"

# A name that each set can carry, by the value of (0008,0005): PS3.3 Tables C.12-2 to C.12-5.
SETS = {
    "": "Smith^John",
    "ISO_IR 100": "Müller^Jürgen",
    "ISO_IR 101": "Dvořák^Łucja",
    "ISO_IR 109": "Għarb^Ħalina",
    "ISO_IR 110": "Bērziņš^Jānis",
    "ISO_IR 144": "Иванов^Пётр",
    "ISO_IR 127": "قباني^نزار",
    "ISO_IR 126": "Παπαδόπουλος^Γιώργος",
    "ISO_IR 138": "כהן^דוד",
    "ISO_IR 148": "Şahin^Gülağa",
    "ISO_IR 203": "Lefèvre^Œuvrard",
    "ISO_IR 166": "สมชาย^ใจดี",
    "ISO_IR 13": "ﾔﾏﾀﾞ^ﾀﾛｳ",
    "ISO_IR 192": WANG,
    "GB18030": "Zhu^RongJi=朱^镕基",
    "GBK": "Zhu^RongJi=朱^镕基",
    r"\ISO 2022 IR 100": "Müller^Jürgen",
    r"\ISO 2022 IR 101": "Dvořák^Łucja",
    r"\ISO 2022 IR 109": "Għarb^Ħalina",
    r"\ISO 2022 IR 110": "Bērziņš^Jānis",
    r"\ISO 2022 IR 144": "Ivanov^Pyotr=Иванов^Пётр",
    r"\ISO 2022 IR 127": "Qabbani^Nizar=قباني^نزار",
    r"\ISO 2022 IR 126": "Papadopoulos^Giorgos=Παπαδόπουλος^Γιώργος",
    r"\ISO 2022 IR 138": "Cohen^David=כהן^דוד",
    r"\ISO 2022 IR 148": "Şahin^Gülağa",
    r"\ISO 2022 IR 203": "Lefèvre^Œuvrard",
    r"\ISO 2022 IR 166": "Somchai^Jaidee=สมชาย^ใจดี",
    r"\ISO 2022 IR 13": "Yamada^Tarou==ﾔﾏﾀﾞ^ﾀﾛｳ",
    r"\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    r"\ISO 2022 IR 159": "Maruo^Jo=丂^丄",
    r"\ISO 2022 IR 149": "Hong^Gildong=洪^吉洞=홍^길동",
    r"\ISO 2022 IR 58": "Zhang^XiaoDong=张^小东",
    r"ISO 2022 IR 6\ISO 2022 IR 58": "Zhang^XiaoDong=张^小东",
    r"ISO 2022 IR 13\ISO 2022 IR 87": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    r"ISO 2022 IR 100\ISO 2022 IR 144": "Müller^Jürgen=Иванов^Пётр",
    r"\ISO 2022 IR 87\ISO 2022 IR 159": "Maruo^Jo=山丂^丄太=やまだ^たろう",
}

# The examples printed in the Standard: (0008,0005), VR, text, bytes. That of I.3 stands there as
# text with its escapes.
EXAMPLES = {
    "PS3.5 H.3.1": (
        r"\ISO 2022 IR 87",
        "PN",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    "PS3.5 H.3.2": (
        r"ISO 2022 IR 13\ISO 2022 IR 87",
        "PN",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J"
        b"=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
    ),
    "PS3.5 I.2": (
        r"\ISO 2022 IR 149",
        "PN",
        "Hong^Gildong=洪^吉洞=홍^길동",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"
        b"=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
    ),
    "PS3.5 I.3": (
        r"\ISO 2022 IR 149",
        "LT",
        "The first line includes 한글.\r\nThe second line includes 한글, too.\r\nThe third line",
        b"\x1b$)CThe first line includes \xc7\xd1\xb1\xdb.\r\n"
        b"\x1b$)CThe second line includes \xc7\xd1\xb1\xdb, too.\r\nThe third line",
    ),
    "PS3.5 J.1": (
        "ISO_IR 192",
        "PN",
        "Wang^XiaoDong=王^小東=",
        b"Wang^XiaoDong=\xe7\x8e\x8b^\xe5\xb0\x8f\xe6\x9d\xb1=",
    ),
    "PS3.5 J.2": (
        "ISO_IR 192",
        "LT",
        "The first line includes中文.\r\nThe second line includes中文, too.\r\nThe third line.\r\n",
        b"The first line includes\xe4\xb8\xad\xe6\x96\x87.\r\n"
        b"The second line includes\xe4\xb8\xad\xe6\x96\x87, too.\r\nThe third line.\r\n",
    ),
    "PS3.5 J.3": (
        "GB18030",
        "PN",
        "Wang^XiaoDong=王^小东=",
        b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=",
    ),
    "PS3.5 J.4": (
        "GB18030",
        "LT",
        "The first line includes中文.\r\nThe second line includes中文, too.\r\nThe third line.\r\n",
        b"The first line includes\xd6\xd0\xce\xc4.\r\n"
        b"The second line includes\xd6\xd0\xce\xc4, too.\r\nThe third line.\r\n",
    ),
    "PS3.5 K.2": (
        r"\ISO 2022 IR 58",
        "PN",
        "Zhang^XiaoDong=张^小东=",
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
    ),
    "PS3.5 K.3": (
        r"\ISO 2022 IR 58",
        "LT",
        "1.第一行文字。\r\n2.第二行文字。\r\n3.第三行文字。\r\n",
        b"1.\x1b$)A\xb5\xda\xd2\xbb\xd0\xd0\xce\xc4\xd7\xd6\xa1\xa3\r\n"
        b"2.\x1b$)A\xb5\xda\xb6\xfe\xd0\xd0\xce\xc4\xd7\xd6\xa1\xa3\r\n"
        b"3.\x1b$)A\xb5\xda\xc8\xfd\xd0\xd0\xce\xc4\xd7\xd6\xa1\xa3\r\n",
    ),
}


def charset(terms):
    """A CharacterSet from the value of (0008,0005)."""
    return character_set(tuple(terms.split("\\")) if terms else ())


# Bytes that minris had no hand in.


# The codec of Python for each set, and the escape that invokes it: PS3.3 Tables C.12-2 to C.12-4.
CODECS = {
    "100": ("-A", "iso8859_1"),
    "101": ("-B", "iso8859_2"),
    "109": ("-C", "iso8859_3"),
    "110": ("-D", "iso8859_4"),
    "144": ("-L", "iso8859_5"),
    "127": ("-G", "iso8859_6"),
    "126": ("-F", "iso8859_7"),
    "138": ("-H", "iso8859_8"),
    "148": ("-M", "iso8859_9"),
    "203": ("-b", "iso8859_15"),
    "166": ("-T", "tis_620"),
    "13": (")I", "shift_jis"),
    "149": ("$)C", "euc_kr"),
    "58": ("$)A", "gb2312"),
    "192": ("", "utf-8"),
    "GB18030": ("", "gb18030"),
    "GBK": ("", "gbk"),
}


def in_bytes(text, terms):
    """A text in the bytes of its set; what is behind a delimiter has an escape of its own."""
    return b"".join(part_in_bytes(part, terms) for part in re.split(r"([\\^=])", text))


def part_in_bytes(part, terms):
    """A component in the first set that has it, the escape in front of what needs it."""
    if part.isascii():
        return part.encode()
    start = next(i for i, character in enumerate(part) if not character.isascii())
    for number, term in enumerate(terms.split("\\")):
        escape, codec = CODECS.get(term.rpartition(" ")[2], ("", "ascii"))
        with contextlib.suppress(UnicodeEncodeError):
            raw = part[start:].encode(codec)
            if codec == "shift_jis" and len(raw) > len(part[start:]):
                continue  # it has more than katakana
            return part[:start].encode() + (b"\x1b" + escape.encode() if number else b"") + raw
    # the Japanese sets of two bytes
    return pydicom.charset.encode_string(part, pydicom.charset.convert_encodings(terms.split("\\")))


def encoded(**values):
    """A data set by keywords, Implicit VR; a value is text, bytes or a list of encoded items."""
    parts = []
    for tag, value in sorted((tag_of(keyword), value) for keyword, value in values.items()):
        if isinstance(value, list):
            value = b"".join(wire.element(0xFFFEE000, one) for one in value)
        elif isinstance(value, bytes):
            value += b" " * (len(value) & 1)
        parts.append(wire.element(tag, value))
    return b"".join(parts)


def decoded(data):
    """A data set as pydicom reads it."""
    ds = read_dataset(io.BytesIO(data), True, True)
    ds.walk(peers.strip_escape_sequence)
    return ds


def stored_text(data, keyword="PatientName"):
    return ElementIndex(data).get(keyword)


# A modality that sends bytes as they are; it calls us as the benchmarks do.

ANY_TITLE = "[dicom]\ncheck_called_ae_title = no\n"


@pytest.fixture
def appliance(run_appliance):
    """A running appliance with the usual devices."""
    return run_appliance(ANY_TITLE)


@contextlib.contextmanager
def associated(appliance, sop_class, calling="CT1"):
    """An association; gives a function that sends a message: the final status and the data sets."""
    found = []
    hello = wire.associate(sop_class, calling=calling)
    with wire.Association(appliance.port, hello, datasets=found) as association:

        def send(message):
            found.clear()
            return association.ask(message)[1], [*found]

        yield send


def ask(appliance, query, calling="CT1"):
    """The answers to a worklist query, in bytes as it is."""
    with associated(appliance, wire.MODALITY_WORKLIST, calling) as send:
        status, answers = send(wire.c_find(query))
    assert status == SUCCESS
    return answers


def shown_name(appliance, calling, **keys):
    """The name and the set that one answer shows."""
    [answer] = ask(appliance, encoded(**{"PatientName": "", **keys}), calling)
    ds = decoded(answer)
    terms = ds.get("SpecificCharacterSet") or ""
    return str(ds.PatientName), terms if isinstance(terms, str) else "\\".join(terms)


def by_dcmtk(appliance, calling, query, folder):
    """The one answer to a query that DCMTK sends, as DCMTK shows it in UTF-8: its name."""
    path = folder / "query.dcm"
    path.write_bytes(bytes(128) + b"DICM" + encoded_meta() + query)
    switches = ["-W", "-X", "-od", folder, "-aet", calling, "-aec", "MINRIS"]
    where = [peers.HOST, str(appliance.port), path]
    subprocess.run([peers.findscu(), *switches, *where], check=True, capture_output=True)
    [answer] = folder.glob("rsp*.dcm")
    return name_by_dcmtk(answer)


def name_by_dcmtk(path):
    """The name in a file, as DCMTK converts it to UTF-8."""
    shown = [peers.dcmtk("dcmdump"), "+U8", "+P", "PatientName", path]
    done = subprocess.run(shown, check=True, capture_output=True)
    return re.search(r"PN \[(.*?)\]", done.stdout.decode())[1].strip()


def encoded_meta():
    """The file meta group of a file in Implicit VR Little Endian."""
    uid = IMPLICIT_VR_LITTLE_ENDIAN.encode() + b"\0"
    syntax = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    return struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(syntax)) + syntax


# Reading and writing a value.


@pytest.mark.parametrize("where", EXAMPLES)
def test_an_example_of_the_standard_is_read(where):
    """T-CS-01, T-CS-02."""
    terms, vr, text, raw = EXAMPLES[where]
    assert charset(terms).decode(raw, vr.encode()) == text


@pytest.mark.parametrize("where", [where for where in EXAMPLES if where != "PS3.5 I.3"])
def test_an_example_of_the_standard_is_written_as_it_is_printed(where):
    """T-CS-01, T-CS-02. That of I.3 has its escapes farther ahead than they need be."""
    terms, vr, text, raw = EXAMPLES[where]
    assert charset(terms).encode(text, vr.encode()) == raw


@pytest.mark.parametrize("path", get_charset_files("*.dcm"), ids=lambda path: Path(path).stem)
def test_a_file_of_pydicom_is_read_as_pydicom_reads_it(path):
    """T-CS-01. Texts of sequences that have a set of their own among them."""
    theirs = pydicom.dcmread(path)
    theirs.remove_private_tags()
    theirs.pop("PixelData", None)
    body = recode(encode(theirs, False, True))
    ours = decoded(encoded(SpecificCharacterSet="ISO_IR 192") + to_syntax(body, False))
    texts, seen = [], []
    theirs.walk(lambda _, element: texts.append(text_of(element)))
    ours.walk(lambda _, element: seen.append(text_of(element)))
    assert list(filter(None, seen)) == list(filter(None, texts))


def text_of(element):
    """The text of an element whose characters depend on the set, None of another."""
    return str(element.value) if element.VR in ("SH", "LO", "ST", "LT", "PN", "UT", "UC") else None


@pytest.mark.parametrize(("terms", "name"), SETS.items())
def test_a_name_of_each_set_is_read(terms, name):
    """T-CS-01."""
    assert charset(terms).decode(in_bytes(name, terms), b"PN") == name


@pytest.mark.parametrize(("terms", "name"), SETS.items())
def test_a_name_of_each_set_is_written_in_its_bytes(terms, name):
    """T-CS-01."""
    assert charset(terms).encode(name, b"PN") == in_bytes(name, terms)


def characters_of(codec, width, prefix=b""):
    """The characters that a codec of Python has for so many bytes above ASCII."""
    found = set()
    for raw in itertools.product(range(0xA0, 0x100), repeat=width):
        with contextlib.suppress(UnicodeDecodeError):
            found |= {*(prefix + bytes(raw)).decode(codec)}
    return {character for character in found if not character.isascii()}


# Each set of several hundred characters or more, and Latin 9, as Python knows them.
WHOLE = {
    "87": characters_of("euc_jp", 2),
    "159": characters_of("euc_jp", 2, b"\x8f"),
    "149": characters_of("euc_kr", 2),
    "58": characters_of("gb2312", 2),
    "13": {chr(code) for code in range(0xFF61, 0xFFA0)},
    "203": characters_of("iso8859_15", 1),
}
CHARACTERS = sorted(
    {chr(code) for code in range(0xA0, 0x180)}.union(
        *WHOLE.values(),
        *(characters_of(codec, 1) for escape, codec in CODECS.values() if escape[:1] == "-"),
    )
)


@pytest.mark.parametrize("number", REPERTOIRES)
def test_every_character_of_a_repertoire_round_trips(number):
    """T-CS-01. Nor does a control character other than ESC come about."""
    one = charset(rf"\ISO 2022 IR {number}")
    wrong = []
    for character in CHARACTERS:
        try:
            raw = one.encode(character)
        except UnicodeEncodeError:
            continue
        how = decode_text(raw, one, b"LO")
        if how != (character, "declared") or re.search(rb"[\0-\x1a\x1c-\x1f\x80-\x9f]", raw):
            wrong.append((character, raw))
    assert wrong == []


@pytest.mark.parametrize("number", WHOLE)
def test_a_repertoire_is_whole_and_has_nothing_else(number):
    """T-CS-01."""
    carried = {c for c in CHARACTERS if charset(rf"\ISO 2022 IR {number}").carries(c)}
    assert carried == WHOLE[number]


@pytest.mark.parametrize("terms", ["ISO_IR 203", r"\ISO 2022 IR 203"])
def test_the_euro_sign_of_latin_9_round_trips(terms):
    """T-CS-05."""
    escape = b"\x1b-b" if "2022" in terms else b""
    assert charset(terms).decode(escape + b"\xa4 80") == "€ 80"
    assert charset(terms).encode("€ 80") == escape + b"\xa4 80"


def test_of_two_latin_sets_the_one_that_has_a_character_is_invoked():
    """T-CS-05."""
    both = charset(r"ISO 2022 IR 100\ISO 2022 IR 203")
    assert both.encode("Größe¤^80 €", b"PN") == b"Gr\xf6\xdfe\xa4^80 \x1b-b\xa4"


# Code extensions: what is active where. The escapes of PS3.3 Tables C.12-3 and C.12-4, typed
# anew: where a set goes, and the width of its characters.
ESCAPES = {
    "6": {"(B": ("G0", 1)},
    "13": {"(J": ("G0", 1), ")I": ("G1", 1)},
    "87": {"$B": ("G0", 2)},
    "159": {"$(D": ("G0", 2)},
    "149": {"$)C": ("G1", 2)},
    "58": {"$)A": ("G1", 2)},
    **{
        number: {"(B": ("G0", 1), f"-{final}": ("G1", 1)}
        for number, final in zip(
            "100 101 109 110 144 127 126 138 148 203 166".split(), "ABCDLGFHMbT", strict=True
        )
    },
}


def violation(raw, terms, vr):
    """What PS3.5 6.1.2.5 forbids in a value, or nothing."""
    numbers = [term.rpartition(" ")[2] if term else "6" for term in terms.split("\\")]
    known = {escape: to for number in numbers for escape, to in ESCAPES[number].items()}
    first = {to[0]: escape for escape, to in ESCAPES[numbers[0]].items()}
    active, pos = dict(first), 0
    delimiters = {"PN": b"\\^=\r\n\f\t", "LO": b"\\\r\n\f\t", "LT": b"\r\n\f\t"}[vr]
    while pos < len(raw):
        if raw[pos] == 0x1B:
            escape = next((e for e in known if raw.startswith(e.encode(), pos + 1)), None)
            if not escape:
                return f"an escape that is not declared at {pos}"
            active[known[escape][0]] = escape
            pos += 1 + len(escape)
            continue
        place = "G1" if raw[pos] >= 0x80 else "G0"
        if place not in active:
            return f"no set for the byte at {pos}"
        width = known.get(active[place], ("", 1))[1]
        if raw[pos] < 0x21 or (width == 1 and raw[pos] in delimiters):
            if raw[pos] < 0x20 and active["G0"] != first["G0"]:
                return f"a control character in another set at {pos}"
            if raw[pos] in delimiters:
                if active["G0"] != first["G0"]:
                    return f"a delimiter in another set at {pos}"
                active = dict(first)
            pos += 1
            continue
        piece = raw[pos : pos + width]
        if len(piece) != width or any((byte >= 0x80) != (place == "G1") for byte in piece):
            return f"a broken character at {pos}"
        if any(byte & 0x7F < 0x20 for byte in piece):
            return f"a control character as part of a character at {pos}"
        pos += width
    return "" if active["G0"] == first["G0"] else "the value ends in another set"


@pytest.mark.parametrize("where", [where for where in EXAMPLES if "2022" in EXAMPLES[where][0]])
def test_the_examples_of_the_standard_violate_nothing(where):
    terms, vr, _, raw = EXAMPLES[where]
    assert violation(raw, terms, vr) == ""


@pytest.mark.parametrize("vr", ["PN", "LO", "LT"])
@pytest.mark.parametrize(("terms", "name"), [(t, n) for t, n in SETS.items() if "2022" in t])
def test_what_is_written_with_code_extensions_is_legal_and_read_back(terms, name, vr):
    """T-CS-02."""
    one, chance = charset(terms), random.Random(58)
    alphabet = [c for c in name if not c.isascii()] * 2 + list("Ab 1^=\\")
    alphabet += ["\r\n", "\t", "\f"] if vr == "LT" else []
    for _ in range(150):
        text = "".join(chance.choices(alphabet, k=chance.randint(1, 12)))
        raw = one.encode(text, vr.encode())
        assert (violation(raw, terms, vr), one.decode(raw, vr.encode())) == ("", text)


@pytest.mark.parametrize("delimiter", ["^", "=", "\\"])
def test_the_first_set_is_active_again_behind_each_delimiter_of_a_name(delimiter):
    """T-CS-02: Latin 1 again, though Cyrillic was invoked in the component before."""
    one = charset(r"ISO 2022 IR 100\ISO 2022 IR 144")
    raw = b"\x1b-L\xb8\xd2\xd0\xdd" + delimiter.encode() + b"J\xfcrgen"
    assert one.decode(raw, b"PN") == f"Иван{delimiter}Jürgen"


@pytest.mark.parametrize(("vr", "resets"), [("LO", ""), ("LT", ""), ("PN", "^=")])
def test_a_caret_is_a_delimiter_in_a_name_alone(vr, resets):
    one = charset(r"\ISO 2022 IR 149")
    text = "홍^길=동"
    assert one.encode(text, vr.encode()).count(b"\x1b$)C") == 1 + len(resets)


def test_a_backslash_is_a_delimiter_but_where_one_text_alone_is_allowed():
    one = charset(r"\ISO 2022 IR 149")
    counts = {vr: one.encode("홍\\길", vr).count(b"\x1b") for vr in (b"LO", b"PN", b"LT", b"UT")}
    assert counts == {b"LO": 2, b"PN": 2, b"LT": 1, b"UT": 1}


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("ﾔﾏﾀﾞ", r"\ISO 2022 IR 87"),  # half-width: of IR 13, not of IR 87
        ("東", r"\ISO 2022 IR 58"),
        ("王", "ISO_IR 100"),
        ("€", "ISO_IR 100"),
        ("¤", "ISO_IR 203"),
        ("ü", ""),
        ("ü", r"\ISO 2022 IR 87"),
        ("镕", r"\ISO 2022 IR 58"),
        ("𠮷", "GBK"),
        ("Ж", "ISO_IR 126"),
    ],
)
def test_a_character_that_a_set_does_not_have_is_not_written_as_another(text, terms):
    with pytest.raises(UnicodeEncodeError):
        charset(terms).encode(text)


# What a set cannot carry.

DEVICE = "[device Ward]\nae_title = WARD\n"


@pytest.mark.parametrize(
    ("terms", "name", "shown", "answered"),
    [
        ("ISO_IR 100", WANG, "Wang^XiaoDong", ""),
        ("ISO_IR 6", WANG, "Wang^XiaoDong", ""),
        (r"\ISO 2022 IR 58", "Wang^XiaoDong=王^小東", "Wang^XiaoDong", ""),
        (r"\ISO 2022 IR 58", WANG, WANG, r"\ISO 2022 IR 58"),
        (r"\ISO 2022 IR 87", "Hong^Gildong=洪^吉洞=홍^길동", "Hong^Gildong=洪^吉洞", r"\ISO 2022 IR 87"),
        (r"\ISO 2022 IR 149", "Yu^RongJi=于^镕基=홍", "Yu^RongJi==홍", r"\ISO 2022 IR 149"),
        ("ISO_IR 144", "Ivanov^Pyotr=王^小东=Иванов^Пётр", "Ivanov^Pyotr==Иванов^Пётр", "ISO_IR 144"),
        ("ISO_IR 100", "Lü^Jürgen=吕^岩", "Lü^Jürgen", "ISO_IR 100"),
        # without an alphabetic group that it can carry: the fallback
        ("ISO_IR 100", "王^小东", "王^小东", "ISO_IR 192"),
        ("ISO_IR 100", "=王^小东", "=王^小东", "ISO_IR 192"),
        ("ISO_IR 144", "Lü^Jürgen=吕^岩", "Lü^Jürgen=吕^岩", "ISO_IR 192"),
        ("ISO_IR 6", "Müller^Jürgen", "Müller^Jürgen", "ISO_IR 192"),
        (r"\ISO 2022 IR 58", "王^小東", "王^小東", "ISO_IR 192"),
        ("GBK", "𠮷田^太郎", "𠮷田^太郎", "ISO_IR 192"),
        (r"\ISO 2022 IR 87", "ﾔﾏﾀﾞ^ﾀﾛｳ", "ﾔﾏﾀﾞ^ﾀﾛｳ", "ISO_IR 192"),
    ],
)  # fmt: skip
def test_a_device_is_shown_of_a_name_what_its_set_can_carry(
    run_appliance, terms, name, shown, answered
):
    """T-MWL-23. A set need not be named where what is shown is ASCII (PS3.4 Table K.6-1a)."""
    appliance = run_appliance(f"{ANY_TITLE}{DEVICE}character_set = {terms}\n")
    appliance.schedule(item(name))
    found, named = shown_name(appliance, "WARD")
    assert found == shown
    assert named == answered or (shown.isascii() and named == terms)


@pytest.mark.parametrize("fallback", ["GB18030", r"\ISO 2022 IR 58", "ISO_IR 192"])
def test_a_name_that_cannot_be_carried_comes_whole_in_the_fallback(run_appliance, fallback):
    """T-MWL-23."""
    appliance = run_appliance(
        f"{ANY_TITLE}{DEVICE}character_set = ISO_IR 100\nfallback_character_set = {fallback}\n"
    )
    appliance.schedule(item("王^小东"))
    assert shown_name(appliance, "WARD") == ("王^小东", fallback)


def test_a_fallback_that_cannot_carry_it_either_is_passed_over_for_utf_8(run_appliance):
    """T-MWL-23."""
    appliance = run_appliance(
        f"{ANY_TITLE}{DEVICE}character_set = ISO_IR 100\nfallback_character_set = ISO_IR 144\n"
    )
    appliance.schedule(item("王^小东"))
    assert shown_name(appliance, "WARD") == ("王^小东", "ISO_IR 192")


def test_another_text_that_the_set_cannot_carry_takes_the_whole_answer_into_the_fallback(
    run_appliance,
):
    """T-MWL-23: of a name a group may be left out, of a text nothing."""
    appliance = run_appliance(f"{ANY_TITLE}{DEVICE}character_set = ISO_IR 100\n")
    appliance.schedule(item("Müller^Jürgen=穆^勒", RequestedProcedureDescription="胸部CT平扫"))
    data = encoded(PatientName="", RequestedProcedureDescription="")
    [answer] = map(decoded, ask(appliance, data, "WARD"))
    assert answer.SpecificCharacterSet == "ISO_IR 192"
    assert answer.RequestedProcedureDescription == "胸部CT平扫"
    assert answer.PatientName == "Müller^Jürgen=穆^勒"


def test_the_default_repertoire_is_not_named(run_appliance):
    """PS3.3 Table C.12-2 has no term for it: DCMTK complains of ISO_IR 6."""
    appliance = run_appliance(f"{ANY_TITLE}{DEVICE}character_set = ISO_IR 6\n")
    appliance.schedule(item())
    [answer] = ask(appliance, encoded(SpecificCharacterSet="", PatientName=""), "WARD")
    assert decoded(answer).get("SpecificCharacterSet", "") == ""


def test_names_within_a_name_of_several_values_lose_their_own_groups_alone(run_appliance):
    appliance = run_appliance(f"{ANY_TITLE}{DEVICE}character_set = ISO_IR 100\n")
    appliance.schedule(item(OtherPatientNames=r"Wang^XiaoDong=王^小东\Müller^Anna"))
    [answer] = ask(appliance, encoded(OtherPatientNames=""), "WARD")
    assert list(map(str, decoded(answer).OtherPatientNames)) == ["Wang^XiaoDong", "Müller^Anna"]


# The same patient at machines of all kinds.

FIVE = r"""
[device A]
ae_title = UTF8
character_set = ISO_IR 192
[device B]
ae_title = GB
character_set = GB18030
[device C]
ae_title = GB2312
character_set = \ISO 2022 IR 58
[device D]
ae_title = LATIN
character_set = ISO_IR 100
[device E]
ae_title = NONE
"""
SHOWN = {
    "UTF8": ("ISO_IR 192", WANG),
    "GB": ("GB18030", WANG),
    "GB2312": (r"\ISO 2022 IR 58", WANG),
    "LATIN": ("", "Wang^XiaoDong"),
    "NONE": ("ISO_IR 192", WANG),
}


@pytest.fixture
def five(run_appliance):
    """Five machines with five sets, and Wang XiaoDong on the worklist."""
    appliance = run_appliance(ANY_TITLE + FIVE)
    appliance.schedule(item(WANG))
    return appliance


@pytest.mark.parametrize("calling", SHOWN)
def test_each_of_five_devices_is_sent_the_name_in_its_set(five, calling):
    """T-MWL-23."""
    terms, name = SHOWN[calling]
    [answer] = ask(five, encoded(PatientName=""), calling)
    assert in_bytes(name, terms) in answer
    assert b"?" not in answer
    assert terms.encode() in answer


@pytest.mark.parametrize("calling", SHOWN)
def test_dcmtk_shows_each_of_five_devices_the_name(five, calling, tmp_path):
    """T-CS-01."""
    query = encoded(SpecificCharacterSet="", PatientName="")
    assert by_dcmtk(five, calling, query, tmp_path) == SHOWN[calling][1]


@pytest.mark.parametrize("calling", [title for title in SHOWN if title != "GB2312"])
def test_dcmjs_shows_each_of_the_devices_of_one_set_the_name(five, calling):
    """T-CS-01. dcmjs does not read a (0008,0005) of several values."""
    keys = {"PatientName": "", "SpecificCharacterSet": ""}
    found = peers.run_dimse(five.port, [{"op": "find", "keys": keys}], calling)
    groups = found[0]["dataset"]["PatientName"][0]
    assert "=".join(groups.values()) == SHOWN[calling][1]


@pytest.mark.parametrize(
    "name", ["Yamada^Tarou=山田^太郎=やまだ^たろう", "Hong^Gildong=洪^吉洞=홍^길동"]
)
def test_one_worklist_holds_names_of_all_sets_side_by_side(five, name, tmp_path):
    five.schedule(item(name, PatientID="K100023"))
    query = encoded(SpecificCharacterSet="", PatientName="", PatientID="K100023")
    assert by_dcmtk(five, "UTF8", query, tmp_path) == name


# Queries in each set.


@pytest.mark.parametrize(("terms", "name"), SETS.items())
def test_a_name_is_stored_asked_for_and_returned_in_each_set(appliance, terms, name):
    """T-CS-01, T-MWL-22."""
    raw = in_bytes(name, terms)
    step = encoded(ScheduledStationAETitle="CT1", Modality="CT")
    entry = encoded(
        SpecificCharacterSet=terms, PatientName=raw, ScheduledProcedureStepSequence=[step]
    )
    appliance.write(import_now, appliance.context(), "entry.wl", entry)
    appliance.schedule(item("Doe^Jane=无^名氏"))
    key = in_bytes(name.rpartition("=")[2], terms)
    [answer] = ask(appliance, encoded(SpecificCharacterSet=terms, PatientName=key))
    assert stored_text(read_items("entry.wl", entry)[0]) == name
    assert raw in answer
    assert terms.encode() in answer[:64]


def answer_in(terms, name):
    """The answer to a query for names, in a set."""
    query = ElementIndex(encode_text("PatientName", ""))
    style = AnswerStyle(charset(terms))
    search = Search(query, MWL_ATTRIBUTES, False, style)
    return search.select(ElementIndex(encode_text("PatientName", name)))


WITHOUT_DCMTK = ("IR 203", "IR 87", "IR 159", "IR 13")  # DCMTK 3.6.7 with the GNU C library


@pytest.mark.parametrize(
    ("terms", "name"),
    [(t, n) for t, n in SETS.items() if not any(term in t for term in WITHOUT_DCMTK)],
)
def test_dcmtk_shows_an_answer_in_each_set_it_knows(tmp_path, terms, name):
    """T-CS-01."""
    path = tmp_path / "answer.dcm"
    path.write_bytes(bytes(128) + b"DICM" + encoded_meta() + answer_in(terms, name))
    assert name_by_dcmtk(path) == name


@pytest.mark.parametrize(
    ("terms", "name"), [(t, n) for t, n in SETS.items() if any(s in t for s in ("87", "159", "13"))]
)
def test_pydicom_shows_an_answer_in_each_japanese_set(terms, name):
    """T-CS-01, T-CS-02."""
    assert str(decoded(answer_in(terms, name)).PatientName) == name


@pytest.mark.parametrize("key", ["Müller^Jürgen", "Müller*", "M?ller*", "*^Jürgen", "MÜLLER*"])
@pytest.mark.parametrize("terms", ["ISO_IR 100"])
def test_a_latin_key_finds_a_name_that_came_in_utf_8(appliance, terms, key):
    """T-MWL-22."""
    appliance.schedule(item("Müller^Jürgen"), item("Mueller^Anna"))
    query = encoded(SpecificCharacterSet=terms, PatientName=key.encode("latin-1"))
    [answer] = ask(appliance, query)
    assert "Müller^Jürgen".encode("latin-1") in answer


# 乗 is 81 5C in GB18030, 俓 82 5C, 表 is \x1b$BI= in IR 87: a backslash, an equals sign.
@pytest.mark.parametrize(
    ("terms", "name"),
    [
        ("GB18030", "Cheng^Jing=乗俓^一"),
        ("GBK", "Cheng^Jing=乗俓^一"),
        (r"\ISO 2022 IR 87", "Omote^Taka=表^十"),
        (r"\ISO 2022 IR 159", "Maruo^Jo=丂^丄"),
    ],
)
@pytest.mark.parametrize("before", ["", "*="])
def test_a_character_with_the_byte_of_a_delimiter_is_not_split(appliance, terms, name, before):
    """T-MWL-24."""
    appliance.schedule(item(name), item())
    key = before.encode() + in_bytes(name.partition("=")[2], terms)
    [answer] = ask(appliance, encoded(SpecificCharacterSet=terms, PatientName=key))
    assert in_bytes(name, terms) in answer


def test_a_backslash_in_a_character_of_a_text_is_not_split(appliance):
    """T-MWL-24: a matching key of VR LO."""
    appliance.schedule(item(RequestedProcedureDescription="乗俓 CT"), item())
    key = "乗俓*".encode("gb18030")
    query = encoded(SpecificCharacterSet="GB18030", RequestedProcedureDescription=key)
    [answer] = ask(appliance, query)
    assert "乗俓 CT".encode("gb18030") in answer


@pytest.mark.parametrize(
    ("calling", "raw"),
    [
        ("GB", "Wang^XiaoDong=王*".encode("gb18030")),
        ("GB2312", b"*=\x1b$)A\xcd\xf5*"),
        ("UTF8", "=王*".encode()),
        ("NONE", "=王*".encode()),
    ],
)
def test_a_key_that_names_no_set_is_in_that_of_the_device(five, calling, raw):
    five.schedule(item("Li^Na=李^娜"))
    assert len(ask(five, encoded(PatientName=raw), calling)) == 1


def test_a_set_declared_in_an_item_holds_for_that_item(appliance):
    step = encoded(
        SpecificCharacterSet="GB18030",
        ScheduledPerformingPhysicianName="*=赵*".encode("gb18030"),
    )
    appliance.schedule(item(ScheduledPerformingPhysicianName="Zhao^Min=赵^敏"), item())
    query = encoded(
        SpecificCharacterSet="ISO_IR 100",
        PatientName="",
        ScheduledProcedureStepSequence=[step],
    )
    assert len(ask(appliance, query)) == 1


# Bytes that contradict what is declared.

SINGLE_BYTE = [terms for terms in SETS if terms.startswith("ISO_IR") and terms != "ISO_IR 192"]
BARE = "Zhang^XiaoDong=\x1b$)A张^小东"


@pytest.mark.parametrize("terms", ["", *SINGLE_BYTE, *(t for t in SETS if "2022" in t)])
def test_utf_8_that_is_called_another_set_is_recovered(terms):
    assert decode_text(WANG.encode(), charset(terms), b"PN") == (WANG, "recovered")


@pytest.mark.parametrize("terms", ["ISO_IR 192", r"\ISO 2022 IR 87"])
def test_gb18030_that_is_called_utf_8_is_recovered(terms):
    """As the CT of a Chinese maker sends it."""
    if terms == "ISO_IR 192":
        assert decode_text(WANG.encode("gb18030"), charset(terms), b"PN") == (WANG, "recovered")
    else:
        assert decode_text(WANG.encode("gb18030"), charset(terms), b"PN").how != "declared"


@pytest.mark.parametrize("terms", ["GB18030", "GBK"])
@pytest.mark.parametrize("name", [WANG, "王小东", "Ouyang^Jing=欧阳^静", "胸部CT平扫"])
def test_utf_8_that_is_called_gb18030_is_recovered(terms, name):
    """Three bytes a character where two make one: it reads as rare characters, its ^ eaten."""
    assert decode_text(name.encode(), charset(terms), b"PN") == (name, "recovered")


@pytest.mark.parametrize("terms", ["GB18030", "GBK"])
@pytest.mark.parametrize("name", ["小", "岑^红建", "联通", "朱^镕基", "Wang^XiaoDong=王^小东", "Ж"])
def test_gb18030_that_might_be_utf_8_is_what_it_is_called(terms, name):
    """小 is D0 A1, which is the С of UTF-8."""
    assert decode_text(name.encode("gb18030"), charset(terms), b"PN") == (name, "declared")


@pytest.mark.parametrize(
    "name", ["Müller^Jürgen", "José^Núñez", "Bjørn^Åse", "Lefèvre^René", "Größe^Jörg"]
)
def test_latin_1_that_is_called_utf_8_does_not_become_chinese(name):
    text, how = decode_text(name.encode("latin-1"), charset("ISO_IR 192"), b"PN")
    assert (text, how) == (name, "damaged")  # a guess, and told as one


@pytest.mark.parametrize(
    ("terms", "codec", "name"),
    [
        (r"\ISO 2022 IR 58", "gb2312", "Zhang^XiaoDong=张^小东"),
        (r"\ISO 2022 IR 149", "euc_kr", "Hong^Gildong=洪^吉洞=홍^길동"),
    ],
)
def test_a_set_whose_escapes_are_left_out_is_recovered(terms, codec, name):
    """As pydicom 3.0.2 writes ISO 2022 IR 58: the one set that has such bytes is declared."""
    assert decode_text(name.encode(codec), charset(terms), b"PN") == (name, "recovered")


@pytest.mark.parametrize(
    ("terms", "raw", "name"),
    [
        (r"\ISO 2022 IR 58", b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\xd0\xa1\xb6\xab", "Zhang^XiaoDong=张^小东"),
        (r"\ISO 2022 IR 149", b"\x1b$)C\xc8\xab^\xb1\xe6\xb5\xbf", "홍^길동"),
    ],
)  # fmt: skip
def test_an_escape_that_is_not_repeated_behind_a_delimiter_is_recovered(terms, raw, name):
    assert decode_text(raw, charset(terms), b"PN") == (name, "recovered")


@pytest.mark.parametrize("terms", ["", "ISO_IR 100", "ISO_IR 192", r"\ISO 2022 IR 149"])
def test_escapes_of_a_set_that_is_not_declared_are_followed(terms):
    _, _, text, raw = EXAMPLES["PS3.5 H.3.1"]
    read = decode_text(raw, charset(terms), b"PN")
    assert read.text == text


def test_a_kanji_in_shift_jis_is_not_told_to_be_certain_chinese():
    how = decode_text("山田^太郎".encode("shift_jis"), charset(r"\ISO 2022 IR 87"), b"PN").how
    assert how == "damaged"


def test_latin_1_that_is_not_declared_is_a_guess():
    raw = "Müller^Jürgen".encode("latin-1")
    assert decode_text(raw, ASCII, b"PN") == ("Müller^Jürgen", "damaged")


def test_a_byte_that_no_set_has_is_shown_by_its_number():
    """PS3.5 6.1.2.3."""
    assert decode_text(b"Li\x81^Na", ASCII, b"PN") == ("Li\\201^Na", "damaged")


@pytest.mark.parametrize("terms", SINGLE_BYTE)
def test_text_in_the_declared_set_is_never_taken_for_another(terms):
    raw = in_bytes(SETS[terms], terms)
    assert decode_text(raw, charset(terms), b"PN") == (SETS[terms], "declared")


@pytest.mark.parametrize(
    ("terms", "codec", "name"),
    [
        ("ISO_IR 100", "cp1252", "O’Brien^Síle"),
        ("ISO_IR 100", "cp1252", "Žižek^Slavoj"),
        ("ISO_IR 100", "cp1252", "Šimek^Léa"),
        ("ISO_IR 100", "cp1252", "Thorax – 2 Ebenen für d’Artagnan"),
        ("ISO 2022 IR 100", "cp1252", "Œuvrard^Zoë"),
        ("ISO_IR 148", "cp1254", "Şahin’in^Gülağa"),
        ("ISO_IR 138", "cp1255", "צ’רניחובסקי^דוד"),
        ("ISO_IR 166", "cp874", "สมชาย “เล็ก”"),
    ],
)
def test_letters_of_windows_beside_those_of_the_declared_set_are_read(terms, codec, name):
    assert decode_text(name.encode(codec), charset(terms), b"PN") == (name, "recovered")


@pytest.mark.parametrize(
    "name",
    ["山田^太郎", "アイ^カ", "林^一", "鈴木^花子", "山^口", "田^中", "佐藤^健", "Yamada=山田"],
)
def test_shift_jis_is_not_read_as_letters_of_windows(name):
    assert decode_text(name.encode("shift_jis"), charset("ISO_IR 100"), b"PN").how == "damaged"


@pytest.mark.parametrize(
    "terms", ["", "ISO_IR 144", "ISO_IR 101", "ISO_IR 126", r"\ISO 2022 IR 149"]
)
def test_letters_of_windows_are_not_read_where_its_set_resembles_none_that_is_declared(terms):
    raw = "O’Brien^Síle".encode("cp1252")
    assert decode_text(raw, charset(terms), b"PN").how == "damaged"


MISSPELT = {
    "ISO IR 100": "ISO_IR 100",
    "ISO_IR_100": "ISO_IR 100",
    "ISO-IR 100": "ISO_IR 100",
    "iso_ir 100": "ISO_IR 100",
    "ISO_IR100": "ISO_IR 100",
    "ISOIR 100": "ISO_IR 100",
    "IR 100": "ISO_IR 100",
    "ISO 8859-1": "ISO_IR 100",
    "ISO_8859-5": "ISO_IR 144",
    "ISO IR 192": "ISO_IR 192",
    "ISO 2022 IR 192": "ISO_IR 192",
    "UTF-8": "ISO_IR 192",
    "utf8": "ISO_IR 192",
    "ISO_2022_IR_100": "ISO 2022 IR 100",
    "ISO 2022 100": "ISO 2022 IR 100",
    "ISO2022 IR 149": "ISO 2022 IR 149",
    "ISO 2022 GBK": "GBK",
    "GB 18030": "GB18030",
    "GB2312": "GB18030",
}


@pytest.mark.parametrize(("given", "meant"), MISSPELT.items())
def test_a_misspelt_term_with_a_clear_meaning_is_read_as_what_it_means(given, meant):
    assert term_meant(given) == meant


@pytest.mark.parametrize(
    "given",
    [
        "",
        "100",
        "ISO_IR 999",
        "KLINGON",
        "ISO_IR 192 x",
        "8859",
        "ISO",
        "ISO_IR",
        "ISO 8859-16",
        "2022",
    ],
)
def test_a_term_whose_meaning_is_not_clear_stays_as_it_is(given):
    assert term_meant(given) == given


@pytest.mark.parametrize("terms", ["", *SETS])
def test_the_defined_terms_mean_themselves(terms):
    assert [*map(term_meant, terms.split("\\"))] == terms.split("\\")


@pytest.mark.parametrize("given", ["ISO IR 100", "iso-ir 100", "ISO_IR100"])
def test_a_report_in_a_misspelt_set_is_read_and_noted(appliance, caplog, given):
    """As four products were met to spell it."""
    raw = "Müller^Jürgen".encode("latin-1")
    with caplog.at_level(logging.WARNING, "minris"):
        status, row = report(appliance, performed(given, raw))
    assert (status, stored_text(bytes(row.data))) == (SUCCESS, "Müller^Jürgen")
    assert any(given in r.getMessage() and "ISO_IR 100" in r.getMessage() for r in caplog.records)


def test_a_query_in_a_misspelt_set_is_answered_in_what_it_means(appliance):
    appliance.schedule(item("Müller^Jürgen"))
    raw = "*Müller*".encode("latin-1")
    [answer] = ask(appliance, encoded(SpecificCharacterSet="ISO IR 100", PatientName=raw))
    assert decoded(answer).SpecificCharacterSet == "ISO_IR 100"
    assert decoded(answer).PatientName == "Müller^Jürgen"


def test_a_file_with_a_sign_of_windows_is_read():
    data = encoded(SpecificCharacterSet="ISO_IR 100", PatientName="O’Brien^Síle".encode("cp1252"))
    [found] = read_items("one.wl", data)
    assert stored_text(found) == "O’Brien^Síle"


def test_a_term_cannot_forge_or_flood_a_line_of_the_log(appliance, caplog):
    with caplog.at_level(logging.WARNING, "minris"):
        report(appliance, performed("X\n2026 ERROR forged " + "Y" * 40_000, b"Wang^XiaoDong"))
    lines = [r.getMessage() for r in caplog.records if "0008,0005" in r.getMessage()]
    assert lines
    assert all("\n" not in line and len(line) < 300 for line in lines)


# What a modality reports in a set that is unknown, illegal or wrong.


def performed(terms, name, **values):
    """What a modality sends when it begins; the name is given in bytes."""
    inner = encoded(
        AccessionNumber="",
        ReferencedStudySequence=[],
        StudyInstanceUID="2.25.8675309",
        RequestedProcedureDescription="",
        ScheduledProcedureStepDescription="",
        ScheduledProtocolCodeSequence=[],
        ScheduledProcedureStepID="",
        RequestedProcedureID="",
    )
    texts = {"SpecificCharacterSet": terms} if terms is not None else {}
    texts |= dict.fromkeys(
        "PatientBirthDate PatientSex PerformedStationName PerformedLocation"
        " PerformedProcedureStepDescription PerformedProcedureTypeDescription"
        " PerformedProcedureStepEndDate PerformedProcedureStepEndTime StudyID".split(),
        "",
    )
    sequences = "ProcedureCodeSequence PerformedProtocolCodeSequence PerformedSeriesSequence"
    texts |= {keyword: [] for keyword in (*sequences.split(), "ReferencedPatientSequence")}
    return encoded(
        **texts
        | {
            "PatientName": name,
            "PatientID": "P000042",
            "Modality": "CT",
            "PerformedProcedureStepID": "PPS0930",
            "PerformedStationAETitle": "CT1",
            "PerformedProcedureStepStartDate": "20260705",
            "PerformedProcedureStepStartTime": "093112",
            "PerformedProcedureStepStatus": "IN PROGRESS",
            "ScheduledStepAttributesSequence": [inner],
        }
        | values
    )


def kept(appliance):
    """The one performed step that is stored, None if there is none."""
    return appliance.read(PerformedProcedureStep.get_or_none)


UID = "2.25.77"


def report(appliance, data, calling="CT1", change=None):
    """The status of an N-CREATE, or of the N-SET after it, and what is stored."""
    with associated(appliance, wire.MPPS, calling) as send:
        status, _ = send(wire.n_create(UID, data))
        if change:
            assert status == SUCCESS
            status, _ = send(wire.n_set(UID, change))
    return status, kept(appliance)


@pytest.mark.parametrize(
    "terms", ["ISO_IR 999", "KLINGON", "ISO-IR 100", "GB 2312", "ISO_IR 192 x"]
)
def test_an_unknown_set_does_no_harm_where_all_is_ascii(appliance, terms):
    """T-CS-04."""
    status, row = report(appliance, performed(terms, b"Wang^XiaoDong"))
    assert (status, stored_text(bytes(row.data)), row.raw) == (SUCCESS, "Wang^XiaoDong", None)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        (WANG, WANG.encode()),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", EXAMPLES["PS3.5 H.3.1"][3]),
        ("Zhang^XiaoDong=张^小东=", EXAMPLES["PS3.5 K.2"][3]),
    ],
    ids=["UTF-8", "IR 87", "IR 58"],
)
def test_an_unknown_set_is_no_harm_where_the_bytes_tell_what_they_are(appliance, name, raw):
    """T-CS-04."""
    status, row = report(appliance, performed("ISO_IR 999", raw))
    assert (status, stored_text(bytes(row.data))) == (SUCCESS, name)


@pytest.mark.parametrize("codec", ["latin-1", "iso8859_2", "cp1252"])
def test_an_unknown_set_is_refused_where_the_text_would_be_damaged(appliance, codec):
    """T-CS-04."""
    data = performed("ISO_IR 999", "Müller^Jürgen".encode(codec))
    assert report(appliance, data) == (INVALID_VALUE, None)


def test_a_refusal_tells_of_the_character_set(appliance):
    """T-CS-04."""
    names = {"PatientName": "Müller^Jürgen", "PerformedProcedureStepStatus": "IN PROGRESS"}
    attributes = {"SpecificCharacterSet": "ISO_IR 999", **names}
    create = {"op": "n-create", "instance": UID, "dataset": attributes, "encoding": "latin1"}
    [answer] = peers.run_dimse(appliance.port, [create], "CT1")
    assert (answer["status"], kept(appliance)) == (INVALID_VALUE, None)
    assert "character set" in answer["errorComment"].lower()


def test_an_action_in_an_unknown_set_is_an_argument_that_is_not_valid(appliance):
    """PS3.7 10.1.4.1.10 has no status for an attribute there."""
    reason = {"ReasonForCancellation": "Schädel".encode("latin-1")}
    data = encoded(SpecificCharacterSet="ISO_IR 999", **reason)
    with associated(appliance, wire.UPS_PUSH) as send:
        assert send(wire.n_action(wire.UPS_PUSH, UID, 2, data))[0] == 0x0115


def test_an_unknown_set_in_a_change_that_would_be_damaged_changes_nothing(appliance):
    """T-CS-04."""
    change = encoded(
        SpecificCharacterSet="ISO_IR 999",
        PerformedProcedureStepDescription="Schädel".encode("latin-1"),
    )
    _, before = report(appliance, performed(None, b"Wang^XiaoDong"))
    with associated(appliance, wire.MPPS) as send:
        assert send(wire.n_set(UID, change))[0] == INVALID_VALUE
    assert bytes(kept(appliance).data) == bytes(before.data)


@pytest.mark.parametrize(
    ("terms", "raw"),
    [
        (r"ISO_IR 192\ISO 2022 IR 87", WANG.encode()),
        (r"GB18030\ISO 2022 IR 58", WANG.encode("gb18030")),
        (r"\ISO_IR 192", WANG.encode()),
        (r"ISO 2022 IR 87\ISO_IR 192", WANG.encode()),
    ],
)
def test_a_set_that_stands_alone_but_does_not_is_read_and_logged(appliance, caplog, terms, raw):
    """T-CS-03."""
    with caplog.at_level(logging.WARNING, "minris"):
        status, row = report(appliance, performed(terms, raw))
    assert (status, stored_text(bytes(row.data))) == (SUCCESS, WANG)
    assert any("0008,0005" in line.getMessage() for line in caplog.records)


@pytest.mark.parametrize("terms", [r"ISO_IR 192\ISO 2022 IR 87", "ISO_IR 999", "KLINGON"])
def test_a_query_in_an_illegal_or_unknown_set_is_answered(appliance, terms):
    """T-CS-03, T-CS-04."""
    appliance.schedule(item(WANG), item("Li^Na=李^娜"))
    query = encoded(SpecificCharacterSet=terms, PatientName="=王*".encode())
    [answer] = ask(appliance, query)
    assert decoded(answer).SpecificCharacterSet == "ISO_IR 192"
    assert decoded(answer).PatientName == WANG


WRONG = {
    "UTF-8 called ISO_IR 100": ("ISO_IR 100", WANG.encode()),
    "GB18030 called ISO_IR 192": ("ISO_IR 192", WANG.encode("gb18030")),
    "UTF-8 called GB18030": ("GB18030", WANG.encode()),
    "UTF-8 called nothing": (None, WANG.encode()),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_set_is_read_right_with_its_raw_bytes_kept(appliance, what):
    terms, raw = WRONG[what]
    data = performed(terms, raw)
    status, row = report(appliance, data)
    assert (status, stored_text(bytes(row.data))) == (SUCCESS, WANG)
    assert bytes(row.raw or b"") == data


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_set_is_logged_with_device_and_attribute_but_without_the_name(
    appliance, caplog, what
):
    with caplog.at_level(logging.INFO, "minris"):
        report(appliance, performed(*WRONG[what]))
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any("CT1" in line and "Patient's Name" in line for line in lines)
    assert not any("XiaoDong" in r.getMessage() for r in caplog.records)


def test_latin_1_that_names_no_set_is_taken_with_its_raw_bytes(appliance):
    """Many modalities send it so; the guess can be looked into later."""
    data = performed(None, "Müller^Jürgen".encode("latin-1"))
    status, row = report(appliance, data)
    assert (status, stored_text(bytes(row.data))) == (SUCCESS, "Müller^Jürgen")
    assert bytes(row.raw or b"") == data


def test_the_raw_bytes_of_a_wrong_change_are_kept(appliance):
    change = encoded(
        SpecificCharacterSet="ISO_IR 192",
        PerformedProcedureStepDescription="胸部CT平扫".encode("gb18030"),
    )
    status, row = report(appliance, performed(None, b"Wang^XiaoDong"), change=change)
    assert status == SUCCESS
    assert stored_text(bytes(row.data), "PerformedProcedureStepDescription") == "胸部CT平扫"
    assert change in bytes(row.raw or b"")


@pytest.mark.parametrize(
    ("calling", "terms", "raw", "name"),
    [
        ("GB", None, WANG.encode("gb18030"), WANG),
        ("GB", "", WANG.encode("gb18030"), WANG),
        ("LATIN", None, "Müller^Jürgen".encode("latin-1"), "Müller^Jürgen"),
        ("LATIN", "GB18030", WANG.encode("gb18030"), WANG),
        ("GB2312", None, EXAMPLES["PS3.5 K.2"][3], "Zhang^XiaoDong=张^小东="),
        ("GB", "ISO_IR 192", WANG.encode(), WANG),
    ],
)
def test_what_names_no_set_is_read_in_that_of_the_device(five, calling, terms, raw, name):
    status, row = report(five, performed(terms, raw), calling)
    assert (status, stored_text(bytes(row.data)), row.raw) == (SUCCESS, name, None)


@pytest.mark.parametrize(("terms", "name"), SETS.items())
def test_a_report_in_each_set_is_read_without_doubt(terms, name):
    """T-CS-01."""
    found = recode_noting(performed(terms, in_bytes(name, terms)), False)
    assert (stored_text(found.data), found.recovered, found.damaged) == (name, (), ())


# Names in Latin letters.

PINYIN = {
    "王^小东": "Wang^XiaoDong",
    "单^雄信": "Shan^XiongXin",
    "曾^国藩": "Zeng^GuoFan",
    "仇^英": "Qiu^Ying",
    "覃^海洋": "Qin^HaiYang",
    "欧阳^静": "Ouyang^Jing",
    "司马^光": "Sima^Guang",
    "尉迟^恭": "Yuchi^Gong",
    "万俟^卨": "Moqi^Xie",
    "吕^岩": "Lyu^Yan",
    "任^盈盈": "Ren^YingYing",
    "解^晓东": "Xie^XiaoDong",
    "朴^树": "Piao^Shu",
    "查^良镛": "Zha^LiangYong",
    "区^伟文": "Ou^WeiWen",
    "盖^叫天": "Ge^JiaoTian",
    "华^罗庚": "Hua^LuoGeng",
    "乐^进": "Yue^Jin",
    "翟^天临": "Zhai^TianLin",
    "刘^旅": "Liu^Lyu",
    "王": "Wang",
}


@pytest.fixture
def pypinyin():
    return pytest.importorskip("pypinyin")


@pytest.mark.parametrize(("chinese", "latin"), PINYIN.items())
def test_a_chinese_name_is_read_as_its_bearer_reads_it(pypinyin, chinese, latin):
    assert latin_name(chinese) == latin


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("王小东", WANG),
        ("王 小东", WANG),
        ("王　小东", WANG),  # the space of a Chinese keyboard
        (" 王小东 ", WANG),
        ("欧阳静", "Ouyang^Jing=欧阳^静"),
        ("诸葛亮", "Zhuge^Liang=诸葛^亮"),
        ("吕岩", "Lyu^Yan=吕^岩"),
    ],
)
def test_a_chinese_name_alone_gets_its_latin_part(pypinyin, typed, name):
    assert person_name("", "", typed) == name


@pytest.mark.parametrize("family", sorted(COMPOUND_SURNAMES))
def test_a_family_name_of_two_characters_is_not_taken_apart(family):
    assert chinese_name(f"{family}静") == f"{family}^静"


def test_a_latin_part_that_is_typed_goes_before_pinyin(pypinyin):
    """As in a passport of Hong Kong."""
    assert person_name("Wong", "Siu Tung", "王小东") == "Wong^Siu Tung=王^小东"


def test_without_pypinyin_a_chinese_name_stays_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "pypinyin", None)
    assert person_name("", "", "王小东") == "=王^小东"


class Desk:
    """Reception, logged in."""

    def __init__(self, appliance):
        def logged_in():
            context = appliance.context()
            user = make_user(context, "anna", "desk", "blue-kettle-9")
            return open_session(context, user.id)

        cookies = {appliance.cookie: appliance.write(logged_in)}
        self.client = httpx.Client(base_url=appliance.url, cookies=cookies, trust_env=False)

    def send(self, path, page, **fields):
        """Send a form of a page with what stands in it and what is typed."""
        text = self.client.get(page).text
        text = text[text.index(f'action="{path}"') :]
        form = dict(re.findall(r'<input[^>]* name="(\w+)"[^>]* value="([^"]*)"', text))
        answer = self.client.post(path, data=form | fields)
        assert answer.status_code == 303, answer.text
        return answer


@pytest.fixture
def desk(appliance):
    found = Desk(appliance)
    with found.client:
        yield found


def register(desk, **names):
    texts = {"device": "CT1", "procedure": "CT chest", "date": "2026-07-05", "time": "09:30",
             "event": "anyway"}  # fmt: skip
    return desk.send("/register", "/register", **texts | names)


def test_a_patient_registered_by_chinese_name_alone_has_a_latin_one_at_an_old_machine(
    pypinyin, appliance, desk
):
    register(desk, chinese_name="单雄信")
    assert shown_name(appliance, "DX1")[0] == "Shan^XiongXin"


def test_a_latin_name_that_was_made_can_be_corrected(pypinyin, appliance, desk):
    register(desk, chinese_name="单雄信")
    desk.send("/patient/1", "/patient/1", family_name="Dan", given_name="HsiungHsin")
    assert shown_name(appliance, "CT1")[0] == "Dan^HsiungHsin=单^雄信"


@pytest.mark.parametrize("name", ["Yamada^Tarou=山田^太郎=やまだ^たろう", "Doe^John^Quincy^Dr"])
def test_a_corrected_birth_date_leaves_the_name_as_it_was(appliance, desk, name):
    appliance.schedule(item(name))
    desk.send("/patient/1", "/patient/1", birth_date="1978-03-12")
    assert shown_name(appliance, "CT1")[0] == name


SPELLINGS = {
    WANG: (
        "Wang^XiaoDong", "wang^xiaodong", "WANG^XIAODONG", "Wang XiaoDong", "wang xiao dong",
        "wangxiaodong", "Wang^Xiao^Dong", "Wang, Xiao-Dong", "Wáng^Xiǎo Dōng", "Wáng Xiǎodōng",
        "wang*", "Wang^X*", "wangxiao*", "*xiaodong", "Wáng*", "王小东", "王 小东", "王^小东", "王*",
        "*小东", "W?ng^XiaoDong", "=王*", "Wang*=王*",
    ),
    "Lyu^Yan=吕^岩": (
        "Lyu^Yan", "lv yan", "Lü^Yan", "LÜ YAN", "lu yan", "lǚ yán", "lvyan", "LYU*", "Lv*", "lü*",
        "吕岩", "吕*",
    ),
    "Ouyang^Jing=欧阳^静": ("Ou Yang Jing", "ouyang^jing", "OuYang Jing", "Ōuyáng Jìng", "欧阳静", "欧*"),
    "Nyu^LvXing=女^旅行": ("nv lvxing", "Nü^Lü Xing", "nyu lyu xing"),
}  # fmt: skip
OTHERS = ("Wan^XiaoDong=万^晓东", "Wang^XiaoDan=王^小丹", "Lu^Ran=陆^然", "Smith^John")


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, keys in SPELLINGS.items() for key in keys]
)
def test_a_chinese_name_is_found_in_any_spelling(ctx, name, key):
    found = names_found(ctx, key, name, *OTHERS)
    assert name in found
    assert "Smith^John" not in found


@pytest.mark.parametrize(
    "key", ["Wang^XiaoDong", "wang xiao dong", "wangxiaodong", "王小东", "Wáng Xiǎodōng"]
)
def test_another_chinese_name_is_not_found_for_it(ctx, key):
    assert names_found(ctx, key, WANG, *OTHERS) == [WANG]


@pytest.mark.parametrize(
    "key",
    [
        "Smith John",
        "SmithJohn",
        "Smith, John",
        "Smi th^John",
        "SmithJ*",
        "Smith^Jo hn",
        "Smith Jo*",
    ],
)
def test_a_western_name_is_not_matched_loosely(ctx, key):
    """PS3.4 C.2.2.2.1: case may be left out of account, what stands there may not."""
    assert names_found(ctx, key, "Smith^John") == []


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Silva^Victor", "Sil*va*"),
        ("Silva^Victor", "*va^Victor"),
        ("Melvin^Ann", "Mel*vin^Ann"),
        ("Calvin^John", "*vin^J*"),
        ("Milyukov^Ivan", "*yukov*"),
        ("Lyu^Yan=吕^岩", "?yu^Yan"),
        ("Lyu^Yan=吕^岩", "*yu^Yan"),
    ],
)
def test_letters_that_stand_for_u_umlaut_in_pinyin_are_letters_elsewhere(ctx, name, key):
    """lv and lyu are lü in pinyin: that must not hide who is asked for by a part of the name."""
    assert names_found(ctx, key, name) == [name]


def test_a_modality_finds_a_chinese_name_in_another_spelling(appliance):
    appliance.schedule(item("Lyu^XiaoDong=吕^小东"), item("Li^Na=李^娜"))
    found = peers.run_findscu(appliance.port, "MINRIS", "CT1", ["PatientName=lv xiao dong"])
    assert [str(ds.PatientName) for ds in found.datasets] == ["Lyu^XiaoDong=吕^小东"]


def names_found(ctx, key, *names):
    """Which of some names on the worklist a key finds."""
    for name in names:
        schedule(ctx, from_json(item(name)), "separate")
    ds = Dataset()
    ds.SpecificCharacterSet, ds.PatientName = "ISO_IR 192", key
    index = ElementIndex(recode(encode(ds, False, True)))
    search = Search(index, MWL_ATTRIBUTES, explicit=False)
    answers = [data for found in find_worklist(ctx, search) for data in found]
    return sorted(str(decoded(data).PatientName) for data in answers)
