"""Text in another encoding is certain, or asked for; it is never guessed."""

import html
import re

import pytest
from bench import wire

from minris.appliance.store_commands import run_import
from minris.dataset.elements import ElementIndex
from minris.dataset.plausible import reads_as_chinese
from minris.interchange.decoding import ReadAs, readings_of, text_of
from minris.interchange.files import read_items
from minris.standard.dictionary import tag_of
from minris.standard.encodings import ENCODINGS, read_encoding
from minris.standard.status import Refusal
from minris.store.models import Patient, ScheduledProcedureStep

# Names in a language, and an encoding that files of that language have.
ELSEWHERE = {
    "cp1252": ["Müller^Jürgen", "Größe^Jörg", "Núñez^José", "Lefèvre^Noël"],
    "mac_roman": ["Müller^Jürgen", "Größe^Jörg"],
    "cp850": ["Müller^Jürgen", "Größe^Jörg"],
    "iso8859_2": ["Dvořák^Jan", "Łukasz^Żółć", "Kovács^Ágnes"],
    "cp1250": ["Žižek^Šimon", "Őry^László"],
    "cp1251": ["Иванов^Пётр", "Кузнецова^Анна"],
    "koi8_r": ["Иванов^Пётр", "Кузнецова^Анна"],
    "iso8859_5": ["Иванов^Пётр", "Кузнецова^Анна"],
    "cp1253": ["Παπαδόπουλος^Γιώργος"],
    "cp1254": ["Şahin^Gülağa"],
    "cp1255": ["כהן^דוד"],
    "cp1256": ["قباني^نزار"],
    "cp1257": ["Bērziņš^Jānis"],
    "cp874": ["สมชาย^ใจดี"],
    "cp932": ["山田^太郎", "鈴木^花子", "ﾔﾏﾀﾞ^ﾀﾛｳ"],
    "euc_jp": ["山田^太郎", "長谷川^健"],
    "iso2022_jp": ["山田^太郎"],
    "cp949": ["홍^길동", "김^영희", "박^지성"],
    "cp950": ["王^小明", "陳^大文"],
}
EACH = [(codec, name) for codec, names in ELSEWHERE.items() for name in names]


def table(*names):
    """A list of patients."""
    rows = [f"{name},P{number},CT1,CT head" for number, name in enumerate(names, 1)]
    return "\r\n".join(["name,id,device,exam", *rows, ""])


@pytest.mark.parametrize(("codec", "name"), EACH)
def test_a_list_in_an_encoding_that_is_not_certain_is_refused(ctx, codec, name):
    with pytest.raises(Refusal, match="It is not certain how the letters"):
        run_import(ctx, "day.csv", table(name).encode(codec))
    assert Patient.select().count() == 0


@pytest.mark.parametrize("codec", ELSEWHERE)
def test_the_right_encoding_is_among_those_that_are_offered(codec):
    names = ELSEWHERE[codec]
    samples = [one.sample for one in readings_of(table(*names).encode(codec))]
    assert any(all(name in sample for name in names) for sample in samples)


@pytest.mark.parametrize("codec", ELSEWHERE)
def test_a_list_is_read_in_the_encoding_that_was_chosen(codec):
    text = table(*ELSEWHERE[codec])
    [name] = [one.name for one in ENCODINGS.values() if one.codec == codec]
    assert text_of(text.encode(codec), encoding=name) == text
    assert text_of(text.encode(codec), usual=name) == text


CERTAIN = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("codec", CERTAIN)
@pytest.mark.parametrize("name", ["Müller^Jürgen", "Иванов^Пётр", "朱^镕基", "홍^길동"])
def test_an_encoding_of_unicode_is_certain(codec, name):
    assert text_of(table(name).encode(codec), usual="windows-1252") == table(name)
    assert readings_of(table(name).encode(codec)) == []


@pytest.mark.parametrize(
    "text",
    [
        "姓名,设备\n王小东,CT1\n",
        "name,sex\nLi Na,男\nWang Fang,女\n",
        "name,exam\nLi Na,头颅平扫\n",
        "name,exam\nLi Na,胸部CT平扫\n",
    ],
)
def test_convincing_chinese_in_gb18030_is_read(text):
    assert text_of(text.encode("gb18030")) == text


def test_what_reads_as_two_encodings_is_asked_for():
    """女 has the bytes of Ů."""
    content = "name,sex\nLi Na,女\nWang Fang,女\n".encode("gb18030")
    assert {one.sample for one in readings_of(content)} >= {"女", "Ů"}
    assert text_of(content, usual="GB18030").endswith("女\n")


@pytest.mark.parametrize("name", ["Noël^Zoë", "Chloë^Noëlle", "Иванов С. С.", "Ägidius"])
def test_utf_8_is_not_taken_for_chinese(name):
    assert text_of(table(*[name] * 9).encode()) == table(*[name] * 9)


@pytest.mark.parametrize(("codec", "name"), EACH)
def test_what_is_not_chinese_does_not_convince_as_chinese(codec, name):
    assert not reads_as_chinese(name.encode(codec))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + bytes(30), "workbook"),
        (b"\xd0\xcf\x11\xe0" + bytes(30), "workbook"),
        (b"%PDF-1.7\n", "PDF"),
        (b"name\n\xff\xfe\xfd\x81\x8d", "not certain"),
        (bytes(range(256)), "not certain"),
    ],
)
def test_what_is_no_text_is_refused_in_words(content, words):
    with pytest.raises(Refusal, match=words):
        text_of(content)


def test_a_file_that_is_not_in_the_chosen_encoding_is_refused():
    with pytest.raises(Refusal, match="not text in the encoding Shift-JIS"):
        text_of("Müller,é\n".encode("cp1252"), encoding="Shift-JIS")


@pytest.mark.parametrize(
    ("given", "name"),
    [("latin-2", "ISO-8859-2"), ("cp1251", "windows-1251"), ("WINDOWS-1252", "windows-1252"),
     ("sjis", "Shift-JIS"), ("gbk", "GB18030"), ("utf8", "UTF-8"), ("", "")],
)  # fmt: skip
def test_an_encoding_is_known_by_its_other_names(given, name):
    assert read_encoding(given) == name


@pytest.mark.parametrize("given", ["klingon", "idna", "unicode_escape", "utf-7", "base64"])
def test_what_is_no_encoding_of_files_is_refused(given):
    with pytest.raises(ValueError, match="windows-1252"):
        read_encoding(given)


# Worklist files


def worklist_file(charset, name):
    """A data set in Implicit VR: the bytes of a name under a label."""
    texts = {"PatientName": name, "PatientID": b"P1", "RequestedProcedureDescription": b"CT"}
    step = wire.element(tag_of("Modality"), b"CT") + wire.element(
        tag_of("ScheduledStationAETitle"), b"CT1 "
    )
    parts = [wire.element(tag_of("SpecificCharacterSet"), charset.encode())] if charset else []
    for tag, value in sorted((tag_of(keyword), value) for keyword, value in texts.items()):
        parts.append(wire.element(tag, value + b" " * (len(value) & 1)))
    sequence = wire.element(0xFFFEE000, step)
    return b"".join([*parts, wire.element(tag_of("ScheduledProcedureStepSequence"), sequence)])


def name_in(content, encoding="", usual=""):
    [data] = read_items("one.wl", content, ReadAs(encoding), usual)
    return ElementIndex(data).get("PatientName")


LATIN = ["ISO_IR 100", "ISO_IR 101", "ISO_IR 148"]


@pytest.mark.parametrize("charset", [*LATIN, "ISO_IR 144", "ISO_IR 126", "GB18030"])
@pytest.mark.parametrize("name", ["Müller^Jürgen", "Núñez^José", "Größe^Jörg", "Bjørn^Åse"])
def test_utf_8_under_another_label_is_read(charset, name):
    """Of two readings that are possible, one has words that nobody writes."""
    assert name_in(worklist_file(charset, name.encode())) == name


@pytest.mark.parametrize("charset", ["", *LATIN, "ISO_IR 192"])
@pytest.mark.parametrize("name", ["王^小东", "Li^Na=李^娜", "Ouyang^Jing=欧阳^静"])
def test_convincing_chinese_under_another_label_is_read_and_noted(charset, name, caplog):
    caplog.set_level("WARNING", "minris")
    assert name_in(worklist_file(charset, name.encode("gb18030"))) == name
    assert "Patient's Name (0010,0010), recovered" in caplog.text


@pytest.mark.parametrize("charset", ["", "ISO_IR 100", "ISO_IR 192"])
@pytest.mark.parametrize(
    ("codec", "name"),
    [(c, n) for c, n in EACH if c in ("cp1251", "koi8_r", "cp1253", "cp932", "euc_jp", "cp949")],
)
def test_bytes_that_contradict_their_label_are_refused(charset, codec, name):
    with pytest.raises(Refusal, match="Patient's Name"):
        name_in(worklist_file(charset, name.encode(codec)))


@pytest.mark.parametrize(("codec", "name"), [one for one in EACH if one[0] != "iso2022_jp"])
def test_a_worklist_file_is_read_in_the_encoding_that_was_chosen(codec, name):
    [chosen] = [one.name for one in ENCODINGS.values() if one.codec == codec]
    assert name_in(worklist_file("ISO_IR 100", name.encode(codec)), chosen) == name


def test_the_usual_encoding_is_for_worklist_files_that_contradict_themselves():
    wrong, right = (
        worklist_file("", "Иванов".encode("cp1251")),
        worklist_file("", "Иванов".encode()),
    )
    assert name_in(wrong, usual="windows-1251") == name_in(right, usual="windows-1251") == "Иванов"


# The page and the command


def shown(answer):
    return html.unescape(re.sub(r"<[^>]*>", " ", answer.text))


def kept_form(text):
    """The fields of the form that keeps the file."""
    forms = re.findall(r'<form method="post" action="/import".*?</form>', text, re.S)
    [part] = [form for form in forms if 'name="number"' in form]
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', part))
    return fields, re.findall(r'<option value="([^"]*)"[^>]*>([^<]*)<', part)


def upload(web, content, name="day.csv"):
    return web.post("/import", files={"upload": (name, content, "text/csv")})


@pytest.mark.parametrize("name", ["day.csv", "day.wl"])
def test_the_page_asks_for_the_encoding_with_a_preview_of_each(appliance, web, name):
    content = table("Müller^Jürgen").encode("cp1252")
    if name.endswith(".wl"):
        content = worklist_file("", "Müller^Jürgen".encode("cp1252"))
    answer = upload(web, content, name)
    assert answer.status_code == 422
    fields, choices = kept_form(answer.text)
    assert ("windows-1252", "Müller^Jürgen (windows-1252, Western Europe)") in choices
    assert "confirmed" not in answer.text
    looked = web.post("/import", data=fields | {"encoding": "windows-1252"})
    assert "Müller^Jürgen" in shown(looked)
    assert "Read as windows-1252" in shown(looked)
    fields, _ = kept_form(looked.text)
    assert fields["encoding"] == "windows-1252"
    again = web.post("/import", data=fields | {"again": "yes"})
    assert kept_form(again.text)[1] == choices
    assert appliance.read(Patient.select().count) == 0
    done = web.post("/import", data=fields | {"confirmed": "yes"})
    assert done.status_code == 303
    assert appliance.read(lambda: Patient.get().patient_name) == "Müller^Jürgen"


def test_the_command_takes_an_encoding(ctx):
    content = table("Müller^Jürgen").encode("cp1252")
    assert run_import(ctx, "day.csv", content, "windows-1252") == (
        "day.csv: Imported: 1; Without birth date or sex: 1"
    )
    assert ScheduledProcedureStep.select().count() == 1
