"""What spreadsheets do to tables: read as meant where it is certain, else refused with row and column."""

import re

import pytest
from conftest import item

from minris.dataset.dicom_json import from_json
from minris.dataset.elements import text_elements
from minris.interchange.cells import (
    BadCell,
    damaged_identifiers,
    day_comes_first,
    plain_cell,
    read_cell,
    read_date,
    read_time,
)
from minris.interchange.csv_tables import csv_keyword, read_csv
from minris.interchange.decoding import ReadAs
from minris.interchange.imports import How, import_now
from minris.orders.patients import correct_patient
from minris.orders.scheduling import move_step, reschedule, schedule
from minris.standard.status import Refusal
from minris.store.models import Patient, ScheduledProcedureStep

HEAD = "name,id,birth_date,sex,exam,device,date,time"


def row(
    name="Wang Fang", id="P1", birth="1970-01-02", sex="F", date="2026-07-05", time="09:30", more=""
):
    return f"{name},{id},{birth},{sex},CT head,CT1,{date},{time}{more}"


def imported(ctx, *lines, end="\r\n", head=HEAD, **read_as):
    """Import a list: the patients."""
    content = end.join([head, *lines, ""]).encode()
    import_now(ctx, "day.csv", content, How(ReadAs(**read_as)))
    return [*Patient.select().order_by(Patient.id)]


def refused(ctx, *lines, head=HEAD, words=None):
    """A list is refused in words, and nothing is imported."""
    with pytest.raises(Refusal, match=words) as refusal:
        imported(ctx, *lines, head=head)
    assert ScheduledProcedureStep.select().count() == Patient.select().count() == 0
    return refusal.value.detail


# Tables


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("said", ["", "sep=;\r\n", '"sep=;"\r\n', "SEP=;\n"])
def test_ends_of_lines_and_a_line_that_names_the_separator_are_read(ctx, end, said):
    text = said + end.join([HEAD, row(), row("Li Na", "P2")]).replace(",", ";") + end
    import_now(ctx, "day.csv", text.encode())
    assert [one.patient_id for one in Patient.select()] == ["P1", "P2"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_separator_is_the_one_that_finds_headings(ctx, delimiter):
    lines = [HEAD, row()]
    text = "\n".join(line.replace(",", delimiter) for line in lines)
    import_now(ctx, "day.csv", text.encode())
    assert Patient.select().count() == 1


def test_a_title_blank_rows_and_a_repeated_heading_are_no_rows(ctx):
    lines = ["", row(), ",,,,,,,", HEAD, row("Li Na", "P2"), "\xa0,,,,,,,"]
    text = "\n".join(["Worklist of Monday,,,,,,,", "", HEAD, *lines])
    import_now(ctx, "day.csv", text.encode())
    assert [one.patient_id for one in Patient.select()] == ["P1", "P2"]


def test_rows_have_the_numbers_of_the_spreadsheet(ctx):
    text = "\n".join(["Worklist of Monday,,,,,,,", HEAD, "", row(birth="1970-02-31")])
    with pytest.raises(Refusal, match="row 4: "):
        import_now(ctx, "day.csv", text.encode())


def test_a_row_that_is_longer_than_the_heading_is_refused(ctx):
    words = refused(ctx, row(), row(id="P2", more=",iodine, penicillin"))
    assert words.startswith("row 3: iodine stands under no heading, in column 9")


def test_blank_cells_beyond_the_heading_are_nothing(ctx):
    assert len(imported(ctx, row(more=",,,"), head=HEAD + ",,")) == 1


def test_a_column_without_a_heading_is_refused_if_it_has_content(ctx):
    refused(ctx, row(more=",x"), head=HEAD + ",", words="row 2: x stands under no heading")


@pytest.mark.parametrize(
    ("head", "line"),
    [
        ("name,id,id,device,exam", "Wang,P1,P2,CT1,CT"),
        ("name,姓名,device,exam", "Wang,王,CT1,CT"),
        ("name,id,PatientID,device,exam", "Wang,P1,P2,CT1,CT"),
    ],
)
def test_two_columns_of_one_meaning_are_refused(ctx, head, line):
    refused(ctx, line, head=head, words="There are 2 columns for ")


@pytest.mark.parametrize(
    "name", ["colour", "PixelData", "RequestAttributesSequence", "PregnancyStatus"]
)
def test_unknown_columns_are_listed_and_left_out_on_demand(ctx, name):
    head, line = f"{HEAD},{name},shoe size", row(more=",red,43")
    words = refused(ctx, line, head=head)
    assert words.split("\n") == [f"Unknown column {name}", "Unknown column shoe size"]
    text = f"{head}\n{line}\n".encode()
    done = import_now(ctx, "day.csv", text, How(ReadAs(leave_out=True)))
    assert done == f"day.csv: Imported: 1; columns left out: {name}, shoe size"


@pytest.mark.parametrize(
    "name", ["Patient ID", "patient-id", "PATIENT_ID", " Patient\xa0ID ", "ＩＤ", "PatientID"]
)
def test_a_heading_is_known_however_it_is_written(name):
    assert csv_keyword(name) == "PatientID"


@pytest.mark.parametrize("text", ['name,id\n"Wang,P1\nLi,P2\n', 'name,id\n"Wang"x,P1\n'])
def test_a_quotation_mark_that_is_not_closed_is_refused(text):
    with pytest.raises(Refusal, match="row 2 cannot be read: a quotation mark"):
        read_csv(text)


# Identifiers


@pytest.mark.parametrize("id", ["1.10101E+17", "1,10101E+17", "1E+17", "1.1e+05", "123.0", "1 234 567",
                                "nan", "NULL", "N/A", "-", "#N/A", "#####", "#NAME?", "#BEZUG!"])  # fmt: skip
def test_an_identifier_that_became_something_else_is_refused(ctx, id):
    words = refused(ctx, row(), row("Li Na", f'"{id}"'))
    assert words.startswith("row 3, id: ")


@pytest.mark.parametrize(
    ("cell", "id"),
    [("'00123", "00123"), ('="00123"', "00123"), ("00123", "00123"), ("1E5", "1E5"), ("P-1", "P-1"),
     ("'=1+1", "=1+1"), ("Ｐ１\u200b", "P1"), ("110101199003070994", "110101199003070994")],
)  # fmt: skip
def test_an_identifier_is_what_the_cell_shows(cell, id):
    assert read_cell("PatientID", cell) == {"PatientID": id}


def test_a_name_keeps_its_own_apostrophe():
    assert plain_cell("PatientName", "'t Hart^Jan") == "'t Hart^Jan"


@pytest.mark.parametrize(
    ("texts", "damaged"),
    [
        (["110101199003070000"], {"110101199003070000"}),
        (["1234567890123450", "1234567890123460", "1234567890123470"], 3),
        (["1234567890123450"], 0),
        (["1234567890123450", "1234567890123456", "1234567890123460", "1234567890123470"], 0),
        (["00123", "00456", "789"], {"789"}),
        (["00123", "00456", "12789"], 0),
        (["0", "12"], 0),
        (["12", "345"], 0),
    ],
)
def test_digits_that_are_lost_show_by_the_others(texts, damaged):
    found = damaged_identifiers(texts)
    assert len(found) == damaged if isinstance(damaged, int) else set(found) == damaged


def test_zeros_that_are_lost_show_by_the_patient_who_is_known(ctx):
    imported(ctx, row(id="00123"))
    with pytest.raises(
        Refusal, match="row 2: 123 may have lost zeros in front: this patient has 00123"
    ):
        imported(ctx, row(id="123"))
    imported(ctx, row("Li Na", "123"))


# Dates and times


@pytest.mark.parametrize(
    ("cell", "date"),
    [
        ("1970-01-02", "19700102"), ("1970/1/2", "19700102"), ("1970.1.2", "19700102"),
        ("1970年1月2日", "19700102"), ("02.01.1970", "19700102"), ("2-Jan-1970", "19700102"),
        ("2 January 1970", "19700102"), ("Jan 2, 1970", "19700102"), ("5/5/1970", "19700505"),
        ("19700102", "19700102"), ("tomorrow", "tomorrow"),
    ],
)  # fmt: skip
def test_a_date_that_is_certain_is_read(cell, date):
    assert read_date(cell) == date


@pytest.mark.parametrize(
    "cell",
    [
        "1/2/1970",
        "01-02-1970",
        "25570",
        "25570.5",
        "0",
        "1/2/70",
        "02.01.70",
        "2-Jan-70",
        "70-01-02",
    ],
)
def test_a_date_that_is_not_certain_is_refused(ctx, cell):
    assert refused(ctx, row(birth=cell)).startswith("row 2, birth_date: ")


@pytest.mark.parametrize(
    ("texts", "first"),
    [
        (["1/2/1970", "25/2/1970"], True), (["1/2/1970", "2/25/1970"], False),
        (["25/2/1970", "2/25/1970"], None), (["1/2/1970"], None), (["1970-01-25"], None),
    ],
)  # fmt: skip
def test_the_other_dates_of_a_column_tell_whether_the_day_comes_first(texts, first):
    assert day_comes_first(texts) is first


def test_an_ambiguous_date_is_read_as_the_others_of_its_column(ctx):
    found = imported(ctx, row(birth="1/2/1970"), row("Li Na", "P2", birth="25/12/1970"))
    assert [one.patient_birth_date for one in found] == ["19700201", "19701225"]


@pytest.mark.parametrize(
    ("cell", "time"),
    [
        ("9:30", "0930"), ("09:30:15", "093015"), ("9:30 AM", "0930"), ("9:30:00 PM", "213000"),
        ("12:05 am", "0005"), ("上午9:30", "0930"), ("下午2:30", "1430"), ("9h30", "0930"), ("9点30分", "0930"),
        ("930", "0930"), ("93000", "093000"), ("0.395833333333333", "093000"), ("0,5", "120000"),
        ("0930", "0930"), ("soon", "soon"), ("13:00 PM", "13:00 PM"),
    ],
)  # fmt: skip
def test_a_time_is_read_as_people_write_it(cell, time):
    assert read_time(cell) == time


@pytest.mark.parametrize(
    ("keyword", "cell", "values"),
    [
        ("PatientBirthDate", "1970-01-02 00:00:00", {"PatientBirthDate": "19700102"}),
        ("PatientBirthDate", "1970-01-02T00:00:00Z", {"PatientBirthDate": "19700102"}),
        ("ScheduledProcedureStepStartTime", "1899-12-30 09:30:00", {"ScheduledProcedureStepStartTime": "093000"}),
        ("ScheduledProcedureStepStartTime", "2026-07-05 9:30",
         {"ScheduledProcedureStepStartDate": "20260705", "ScheduledProcedureStepStartTime": "0930"}),
    ],
)  # fmt: skip
def test_a_cell_with_date_and_time_is_read_where_it_is_certain(keyword, cell, values):
    assert read_cell(keyword, cell) == values


def test_a_birth_date_with_a_time_is_not_certain():
    with pytest.raises(BadCell, match="has a time"):
        read_cell("PatientBirthDate", "1970-01-01T16:00:00Z")


def test_a_date_that_contradicts_its_other_column_is_refused(ctx):
    words = refused(ctx, row(date="2026-07-05", time="2026-07-06 09:30"))
    assert words.startswith("row 2, time: 20260706 contradicts another column")


# Other cells


@pytest.mark.parametrize("name", ["M?ller", "??", "M\ufffdller", "锟斤拷", "MÃ¼ller^JÃ¼rgen"])
def test_a_name_that_has_lost_letters_is_refused(ctx, name):
    refused(ctx, row(name), words="row 2, name: .* has lost letters")


@pytest.mark.parametrize(
    ("keyword", "cell", "value"),
    [
        ("PatientWeight", "70,5", "70.5"), ("PatientWeight", "70 kg", "70"), ("PatientSize", "172", "1.72"),
        ("PatientSize", "1,72 m", "1.72"), ("PatientSize", "172cm", "1.72"), ("PatientSex", "女性", "F"),
        ("PatientSex", "unknown", ""), ("ReferringPhysicianName", "Miller^Anna", "Miller^Anna"),
    ],
)  # fmt: skip
def test_a_value_is_read_as_people_write_it(keyword, cell, value):
    assert read_cell(keyword, cell) == {keyword: value}


def test_a_sex_that_is_none_is_refused(ctx):
    refused(ctx, row(sex="1"), words="row 2, sex: 1 is not a sex")


def test_a_merged_cell_whose_name_is_missing_is_refused(ctx):
    refused(
        ctx, row(), ",,,,CT head,CT1,2026-07-06,09:30", words="row 3: Patient's Name .* is missing"
    )


# What a patient cannot be, at every door

IMPOSSIBLE = [
    ("PatientBirthDate", "20780102"),
    ("PatientBirthDate", "18260102"),
    ("PatientWeight", "705"),
    ("PatientWeight", "0.1"),
    ("PatientSize", "17.2"),
    ("PatientSize", "0.1"),
]
impossible = pytest.mark.parametrize(("keyword", "value"), IMPOSSIBLE)


@impossible
def test_a_list_with_what_cannot_be_is_refused(ctx, keyword, value):
    head = HEAD.replace("birth_date", keyword)
    refused(
        ctx,
        row(birth=f"'{value}"),
        head=head,
        words="row 2: Patient's .* (cannot be|is not a birth date)",
    )


@impossible
def test_an_order_of_what_cannot_be_is_refused_by_the_api(appliance, web, keyword, value):
    answer = web.post("/api/worklist", json=[item(**{keyword: value})])
    assert answer.status_code == 400
    assert appliance.read(Patient.select().count) == 0


@impossible
def test_what_cannot_be_is_refused_in_a_change(ctx, keyword, value):
    schedule(ctx, from_json(item(PatientID="P1")))
    step, patient = ScheduledProcedureStep.get(), Patient.get()
    given = bytes(text_elements(**{keyword: value}))
    with pytest.raises(Refusal, match=r"cannot be|is not a birth date"):
        reschedule(ctx, step.study_instance_uid, step.scheduled_procedure_step_id, given)
    with pytest.raises(Refusal, match=r"cannot be|is not a birth date"):
        correct_patient(ctx, patient.id, given)
    assert bytes(Patient.get().data) == bytes(patient.data)


@impossible
def test_an_exam_of_a_patient_kept_from_before_can_be_moved(ctx, keyword, value):
    """What was let in once must not hold up the day."""
    schedule(ctx, from_json(item(PatientID="P1", **{keyword: value})), kept=True)
    step = ScheduledProcedureStep.get()
    move_step(ctx, step.id, ScheduledProcedureStepStartDate="20260801")
    given = bytes(text_elements(**{keyword: value}, RequestedProcedureComments="late"))
    reschedule(ctx, step.study_instance_uid, step.scheduled_procedure_step_id, given)
    assert ScheduledProcedureStep.get().start_date == "20260801"


def test_the_page_offers_to_leave_out_unknown_columns(appliance, web):
    content = f"{HEAD},colour\n{row(more=',red')}\n".encode()
    shown = web.post("/import", files={"upload": ("day.csv", content, "text/csv")})
    assert "Unknown column colour" in shown.text
    assert 'name="confirmed"' not in shown.text
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', shown.text))
    again = web.post("/import", data=fields | {"leave_out": "yes"})
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', again.text))
    assert fields["leave_out"] == "yes"
    done = web.post("/import", data=fields | {"confirmed": "yes"})
    assert done.status_code == 303
    assert appliance.read(Patient.select().count) == 1
