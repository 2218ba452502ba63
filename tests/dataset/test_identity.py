"""Whether two patients are one, whatever the spelling."""

import pytest

from minris.dataset.elements import sequence_elements, text_elements
from minris.dataset.identity import contradictions, same_name

WANG = "Wang^XiaoDong=王^小东"
SAME = [
    (WANG, WANG),
    (WANG, "WANG^XIAODONG"),
    (WANG, "wang^xiao dong^^^"),
    (WANG, "王^小东"),
    (WANG, "=王小东"),
    (WANG, "王小东 "),
    (WANG, "XIAODONG WANG"),
    (WANG, "Xiao Dong^Wang"),
    (WANG, "Wang"),
    (WANG, "Wang^X"),
    (WANG, "王^小?"),
    (WANG, "王^??"),
    (WANG, ""),
    (WANG, "^^"),
    (WANG, "??"),
    ("=王^小东", "Wang^Xiaodong"),
    ("王^小东", "WANG XIAO DONG"),
    ("=吕^布", "Lyu^Bu"),
    ("=吕^布", "Lv^Bu"),
    ("Müller^Jörg", "MUELLER^JOERG"),
    ("Müller^Jörg", "Muller^Jorg"),
    ("Müller^Jörg", "M?ller^J?rg"),
    ("Müller^Jörg", "M\N{REPLACEMENT CHARACTER}ller^J\N{REPLACEMENT CHARACTER}rg"),
    ("Weiß^Anna", "WEISS^ANNA"),
    ("Søren^Åse", "SOEREN^AASE"),
    ("O'Brien^Mary^Jane", "OBRIEN^MARY"),
    ("O\u2019Brien^Mary", "O'Brien^Mary"),
    ("Smith-Jones^Anna", "Smith Jones^Anna"),
    ("Smith^John^Robert^Dr^Jr", "Smith^John^R"),
    ("Smith^John", "Smith^John^^Mr"),
    ("Smith^John", "John^Smith"),
    ("Smith^John", "ＳＭＩＴＨ^ＪＯＨＮ"),
    ("Featherstonehaugh^Hubert^Blaine", "FEATHERSTONEHAUG"),
    ("Иванов^Пётр", "ИВАНОВ^ПЕТР"),
    ("Иванов^Пётр", "Ivanov^Pyotr"),
    ("Yamada^Tarou=山田^太郎=やまだ^たろう", "YAMADA^TAROU"),
    ("=山田^太郎=やまだ^たろう", "Yamada^Tarou"),
    ("Yamada^Tarou=山田^太郎=やまだ^たろう", "ヤマダ^タロウ"),
]
OTHER = [
    (WANG, "Li^Na=李^娜"),
    (WANG, "Wang^XiaoDong=王^晓东"),
    (WANG, "Wang^XiaoLi"),
    (WANG, "李^娜"),
    ("=王^小东", "Li^Na"),
    ("Smith^John", "Smith^Jane"),
    ("Smith^John", "Jones^John"),
    ("Smith^Anna", "Jones^A"),
    ("Doe^John", "Bloggs^Joe"),
    ("Иванов^Пётр", "Петров^Иван"),
    ("J^S", "Smith^Jane"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_another_spelling_is_the_same_name(one, other):
    patient = text_elements(PatientName=one)
    assert contradictions(text_elements(PatientName=other), [patient]) == []
    assert contradictions(patient, [text_elements(PatientName=other)]) == []


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_another_name_is_not(one, other):
    assert (same_name(one, other), same_name(other, one)) == (False, False)


KNOWN = {"PatientID": "P000042", "PatientBirthDate": "19780312", "PatientSex": "M"}


@pytest.mark.parametrize(
    ("keyword", "told", "differs"),
    [
        ("PatientID", "P000042", False),
        ("PatientID", " p000042 ", False),
        ("PatientID", "", False),
        ("PatientID", "P000043", True),
        ("PatientID", "000042", True),
        ("PatientBirthDate", "1978.03.12", False),
        ("PatientBirthDate", "19780000", False),
        ("PatientBirthDate", "00000000", False),
        ("PatientBirthDate", "", False),
        ("PatientBirthDate", "19780321", True),
        ("PatientSex", "m", False),
        ("PatientSex", "O", False),
        ("PatientSex", "", False),
        ("PatientSex", "F", True),
    ],
)
def test_what_is_told_contradicts_only_with_a_value(keyword, told, differs):
    found = contradictions(text_elements(**{keyword: told}), [text_elements(**KNOWN)])
    assert found == [keyword] * differs


def test_an_attribute_agrees_with_any_that_is_known():
    known = [
        text_elements(PatientID="E1", PatientName="Unknown^Emergency"),
        text_elements(PatientID="P7"),
    ]
    assert (
        contradictions(text_elements(PatientID="P7", PatientName="UNKNOWN^EMERGENCY"), known) == []
    )


def test_other_patient_ids_count():
    items = sequence_elements(OtherPatientIDsSequence=[text_elements(PatientID="HIS-9")])
    ours = text_elements(PatientID="P7").merged(items)
    assert contradictions(text_elements(PatientID="HIS-9"), [ours]) == []
    assert contradictions(ours, [text_elements(PatientID="HIS-9")]) == []
