"""Letters that people type or paste in another form are the same letters."""

import unicodedata

import peers
import pytest
from conftest import item

from minris.dataset.dicom_json import from_json
from minris.dataset.elements import text_elements
from minris.dataset.names import listed_name, name_key, person_name, plain, shown_name, typed_name
from minris.dataset.search import Search, one_group
from minris.dataset.spelling import tidy_code, tidy_name, typed_value
from minris.dataset.text import character_set
from minris.interchange.imports import import_now
from minris.orders.lookup import find_steps
from minris.orders.patients import find_patients, same_person
from minris.orders.scheduling import schedule
from minris.orders.worklist import find_worklist
from minris.standard.worklist import MWL_ATTRIBUTES
from minris.store.models import Patient

SAME = [
    ("O’Brien^Síle", "O'Brien^Síle"),
    ("OʼBrien^Síle", "O'Brien^Síle"),
    ("O`Brien^Síle", "O'Brien^Síle"),
    ("O＇Brien^Síle", "O'Brien^Síle"),
    ("Smith‐Jones^Ann", "Smith-Jones^Ann"),
    ("Smith–Jones^Ann", "Smith-Jones^Ann"),
    ("Smith‑Jones^Ann", "Smith-Jones^Ann"),
    (unicodedata.normalize("NFD", "Núñez^José"), "Núñez^José"),
    (unicodedata.normalize("NFD", "홍^길동"), "홍^길동"),
    ("García\xa0López^Ana", "García López^Ana"),
    ("García\u3000López^Ana", "García López^Ana"),
    ("García\u2009López^Ana", "García López^Ana"),
    ("Ｍüller^Ａｎｎａ", "Müller^Anna"),
    ("Mül\u200bler^\ufeffAnna", "Müller^Anna"),
    ("买买提•艾力", "买买提·艾力"),
    ("ﾔﾏﾀﾞ^ﾀﾛｳ", "ヤマダ^タロウ"),
]


@pytest.mark.parametrize(("pasted", "plainly"), SAME)
def test_names_in_another_form_are_equal(pasted, plainly):
    assert plain(pasted) == plain(plainly)
    assert name_key(pasted) == name_key(plainly)


@pytest.mark.parametrize(("pasted", "plainly"), SAME)
def test_a_query_finds_a_name_in_another_form(ctx, pasted, plainly):
    schedule(ctx, from_json(item(pasted, PatientID="P1")))
    for key in (plainly, pasted, plainly[:3] + "*", plainly.upper()):
        query = text_elements(PatientName=key, PatientID="")
        answers = [
            one for found in find_worklist(ctx, Search(query, MWL_ATTRIBUTES)) for one in found
        ]
        assert len(answers) == 1, key


def test_a_device_of_latin_letters_is_sent_a_typographic_sign_as_a_plain_one(appliance):
    appliance.schedule(item("O’Brien^Síle"))
    keys = ["PatientName=O'BRIEN^S*"]
    [answer] = peers.run_findscu(appliance.port, "MINRIS", "DX1", keys).datasets
    assert (answer.SpecificCharacterSet, answer.PatientName) == ("ISO_IR 100", "O'Brien^Síle")


@pytest.mark.parametrize("terms", ["ISO_IR 100", r"\ISO 2022 IR 100"])
@pytest.mark.parametrize(("pasted", "plainly"), SAME[:13])
def test_a_set_without_a_typographic_sign_carries_the_plain_one(terms, pasted, plainly):
    charset = character_set(tuple(terms.split("\\")))
    if charset.carries(plainly):
        read = charset.decode(charset.encode(charset.fitted(pasted), b"PN"), b"PN")
        assert plain(read) == plain(plainly)


def test_a_sign_that_a_set_has_stays_as_it_is():
    assert character_set(("GB18030",)).fitted("O’Brien “x”") == "O’Brien “x”"


# Which group


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("José^Núñez", "José^Núñez"),
        ("Иванов^Пётр", "Иванов^Пётр"),
        ("Παπαδόπουλος", "Παπαδόπουλος"),
        ("ÅSE", "ÅSE"),
        ("홍길동", "==홍^길동"),
        ("홍^길동", "==홍^길동"),
        ("やまだ たろう", "==やまだ^たろう"),
        ("ヤマダ", "==ヤマダ"),
        ("Hong^Gildong=洪^吉洞=홍^길동", "Hong^Gildong=洪^吉洞=홍^길동"),
    ],
)
def test_the_letters_of_a_line_decide_its_group(typed, name):
    assert typed_name(typed) == name


@pytest.mark.parametrize("typed", ["王小东", "王^小东", "王 小东", "王\u3000小东", "王·小东"])
def test_ideographs_are_the_second_group(typed):
    assert typed_name(typed).split("=")[1] == "王^小东"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (("Wang", "XiaoDong", "王小东"), "Wang^XiaoDong=王^小东"),
        (("Hong", "Gildong", "홍길동"), "Hong^Gildong==홍^길동"),
        (("Núñez", "José", ""), "Núñez^José"),
        (("", "", "José Núñez"), "José^Núñez"),
        (("Ｗａｎｇ", "Ｄｏｎｇ", ""), "Wang^Dong"),
    ],
)
def test_each_field_of_a_form_goes_to_the_group_of_its_letters(fields, name):
    assert person_name(*fields) == name


def test_hanzi_in_the_fields_of_latin_letters_are_the_second_group():
    assert person_name("王", "小东", "").split("=")[1] == "王^小东"


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("José Núñez", "Núñez^José"),
        ("Núñez, José", "Núñez^José"),
        ("Wang, XiaoDong", "Wang^XiaoDong"),
        ("Øystein", "Øystein"),
        ("Иван Петров", "Петров^Иван"),
        ("José\xa0Núñez", "Núñez^José"),
        ("홍 길동", "==홍^길동"),
    ],
)
def test_a_name_in_a_list_is_read_as_people_write_it(cell, name):
    assert listed_name(cell) == name


@pytest.mark.parametrize("groups", ["all", "alphabetic", "ideographic"])
def test_a_name_that_is_only_phonetic_is_shown_and_sent(groups):
    assert shown_name("==홍^길동") == "홍길동"
    if groups != "all":
        assert one_group("==홍^길동".encode(), groups).decode().strip() == "홍^길동"


# At the doors


@pytest.mark.parametrize(
    ("keyword", "typed", "value"),
    [
        ("PatientID", "Ｐ１２３", "P123"),
        ("PatientID", "P123\u200b\xa0", "P123 "),
        ("PatientBirthDate", "１９７８－０３－１２", "1978-03-12"),
        ("RequestedProcedureComments", "咳嗽，发热（３天）", "咳嗽，发热（３天）"),
        ("RequestedProcedureComments", "Cafe\u0301\xa0au lait", "Café au lait"),
    ],
)
def test_what_is_typed_is_taken_as_it_is_meant(keyword, typed, value):
    assert typed_value(keyword, typed) == value


def test_what_is_plain_stays_as_it_is():
    for text in ("Wang^XiaoDong=王^小东", "ﾔﾏﾀﾞ^ﾀﾛｳ", "O’Brien", "Иванов"):
        assert tidy_name(text) == text
    assert tidy_code("P-1.2/3") == "P-1.2/3"


@pytest.mark.parametrize(("pasted", "plainly"), SAME[:14])
def test_the_search_box_and_the_same_person_know_both_forms(ctx, pasted, plainly):
    content = f"name,id,device,exam\n{pasted},P1,CT1,CT\n".encode()
    import_now(ctx, "day.csv", content)
    patient = Patient.get()
    assert same_person(text_elements(PatientName=plainly), patient)
    for text in (plainly.replace("^", " "), pasted.replace("^", " "), "Ｐ１"):
        assert [one.patient_id for one in find_patients(text, ctx.local_now().date())] == ["P1"], (
            text
        )
        assert [one.patient_id for one in find_steps(text)] == ["P1"], text


@pytest.mark.parametrize("pasted", [SAME[7][0], SAME[9][0], "Mül\u200bler"])
def test_a_name_is_kept_composed_whatever_door_it_came_by(appliance, pasted):
    appliance.schedule(item(pasted))
    kept = appliance.read(lambda: Patient.get().patient_name)
    assert kept == tidy_name(pasted)
