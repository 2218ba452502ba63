"""The order's life: catalogue, several exams in one order, changes, people who turn out to be others."""

import contextlib
import csv
import dataclasses
import html
import io
import re

import peers
import pytest
from conftest import item

from minris.appliance.store_commands import run_import
from minris.dataset.dicom_json import from_json
from minris.dataset.elements import ElementIndex, encode_items, encode_text
from minris.dataset.names import name_key
from minris.interchange.csv_tables import CSV_COLUMNS, STEP_KEYWORDS, export_csv
from minris.interchange.files import preview_lines
from minris.interchange.imports import How, Importer, enter_file, known_import
from minris.mpps.linking import link_by_hand, unlink_step
from minris.orders import scheduling as orders_scheduling
from minris.orders.catalogue import (
    apply_procedure,
    find_procedure,
    retire_procedure,
    save_procedure,
)
from minris.orders.lookup import find_step, find_steps, leftovers, step_key, step_known, steps_of
from minris.orders.patients import correct_patient, similar_patients
from minris.orders.scheduling import change_rows, move_step, reschedule
from minris.orders.steps import change_step
from minris.standard.dictionary import tag_of
from minris.standard.status import Refusal, Status
from minris.standard.worklist import OPEN_STEP_STATES, STEP_SEQUENCE, STEP_STATES
from minris.store.models import (
    Counter,
    Patient,
    PerformedProcedureStep,
    Procedure,
    RequestedProcedure,
    ScheduledProcedureStep,
)
from minris.store.rows import fetch_rows, insert_row

YESTERDAY, TODAY, TOMORROW = "20260704", "20260705", "20260706"


@contextlib.contextmanager
def refused(status):
    """Expects a Refusal with a status; gives it."""
    with pytest.raises(Refusal) as caught:
        yield caught
    assert caught.value.status is status


def schedule(ctx, name="Wang^XiaoDong=王^小东", **texts):
    """Put an exam on the worklist: its row."""
    [data] = orders_scheduling.schedule(ctx, from_json(item(name, **texts)))
    return row_of(ElementIndex(data))


def row_of(index):
    """The row of a step, by its data set."""
    study = index.get("StudyInstanceUID")
    return find_step(study, step_of(index).get("ScheduledProcedureStepID"))


def step_of(index):
    return index.item("ScheduledProcedureStepSequence")


def data_of(row):
    """What is stored of a step now."""
    [found] = fetch_rows(ScheduledProcedureStep, "id = ?", row.id)
    return ElementIndex(bytes(found.data))


def state_of(row):
    return step_of(data_of(row)).get("ScheduledProcedureStepStatus")


def count(model=ScheduledProcedureStep):
    return model.select().count()


def texts(**values):
    """A data set of texts, empty ones too."""
    elements = {tag_of(k): encode_text(k, v) for k, v in values.items()}
    return b"".join(element for _, element in sorted(elements.items()))


# The catalogue.

CHEST = {
    "code": "CTCH",
    "meaning": "CT chest",
    "modality": "CT",
    "ae_title": "CT1",
    "minutes": "20",
    "protocol_code": "CH-LD",
    "protocol_meaning": "Chest low dose",
}
ABDOMEN = {"code": "CTAB", "meaning": "CT abdomen", "modality": "CT", "ae_title": "CT1"}


def catalogue():
    """The rows of the catalogue by code."""
    return {p.code: p for p in fetch_rows(Procedure, "1 = 1")}


def named(description="CT chest", **values):
    """An item that names its procedure and little else, as the desk types it."""
    untold = {"Modality": None, "ScheduledStationAETitle": None}
    given = item(RequestedProcedureDescription=description, **untold | values)
    return apply_procedure(from_json(given))


def test_a_procedure_is_kept(ctx):
    save_procedure(ctx, CHEST)
    kept = catalogue()["CTCH"]
    assert {key: str(getattr(kept, key)) for key in CHEST} == CHEST


def test_a_procedure_is_known_by_its_code(ctx):
    save_procedure(ctx, CHEST)
    save_procedure(ctx, CHEST | {"meaning": "CT thorax"})
    assert [p.meaning for p in catalogue().values()] == ["CT thorax"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"code": ""},
        {"meaning": ""},
        {"code": "C" * 17},
        {"code": "CT\\CH"},
        {"scheme": "S" * 17},
        {"meaning": "m" * 65},
        {"minutes": "soon"},
        {"minutes": "-5"},
        {"modality": "Computed tomography"},
        {"modality": "C" * 17},
        {"ae_title": "CT-ROOM-ONE-BASEMENT"},
        {"protocol_code": "P" * 17},
        {"protocol_meaning": "p" * 65},
    ],
    ids=lambda wrong: "-".join(f"{k} {v[:12]}" for k, v in wrong.items()),
)
def test_a_procedure_that_no_exam_could_be_made_of_is_refused(ctx, wrong):
    """What is taken here would be refused at the desk, with every exam."""
    with refused(Status.INVALID_ATTRIBUTE_VALUE):
        save_procedure(ctx, CHEST | wrong)
    assert catalogue() == {}


def test_an_exam_named_as_in_the_catalogue_has_what_the_catalogue_says(ctx):
    save_procedure(ctx, CHEST)
    [data] = orders_scheduling.schedule(ctx, named())
    index = ElementIndex(data)
    code = index.item("RequestedProcedureCodeSequence")
    protocol = step_of(index).item("ScheduledProtocolCodeSequence")
    assert [code.get(k) for k in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")] == [
        "CTCH",
        "99MINRIS",
        "CT chest",
    ]
    assert (protocol.get("CodeValue"), protocol.get("CodeMeaning")) == ("CH-LD", "Chest low dose")
    assert step_of(index).get("ScheduledProcedureStepDescription") == "CT chest"
    assert (step_of(index).get("Modality"), step_of(index).get("ScheduledStationAETitle")) == (
        "CT",
        "CT1",
    )


def test_an_exam_may_be_named_by_its_code(ctx):
    save_procedure(ctx, CHEST)
    index = ElementIndex(named("CTCH"))
    assert index.get("RequestedProcedureDescription") == "CT chest"


def test_what_is_given_goes_before_the_catalogue(ctx):
    save_procedure(ctx, CHEST)
    index = ElementIndex(named(ScheduledStationAETitle="CT9"))
    assert step_of(index).get("ScheduledStationAETitle") == "CT9"


def test_an_exam_that_is_not_in_the_catalogue_stays_as_it_is(ctx):
    save_procedure(ctx, CHEST)
    given = from_json(item(RequestedProcedureDescription="CT sinuses"))
    assert apply_procedure(given) == given


def test_a_retired_procedure_is_not_applied(ctx):
    save_procedure(ctx, CHEST)
    retire_procedure(ctx, "CTCH")
    index = ElementIndex(named())
    assert not index.items(tag_of("RequestedProcedureCodeSequence"))


def test_a_retired_procedure_is_in_use_again_when_it_is_saved(ctx):
    save_procedure(ctx, CHEST)
    retire_procedure(ctx, "CTCH")
    save_procedure(ctx, CHEST)
    assert find_procedure("CTCH").retired == 0


@pytest.mark.parametrize("state", sorted(OPEN_STEP_STATES))
def test_a_procedure_of_open_exams_cannot_be_deleted_only_retired(ctx, state):
    """Issue: a catalogue code used by open steps cannot be deleted, only retired."""
    save_procedure(ctx, CHEST)
    orders_scheduling.schedule(ctx, named(ScheduledProcedureStepStatus=state))
    with refused(Status.PROCESSING_FAILURE) as refusal:
        retire_procedure(ctx, "CTCH", delete=True)
    assert refusal.value.detail == "CTCH is used by open exams: it can only be retired"
    retire_procedure(ctx, "CTCH")
    assert catalogue()["CTCH"].retired == 1


@pytest.mark.parametrize("state", sorted(set(STEP_STATES) - OPEN_STEP_STATES))
def test_a_procedure_whose_exams_have_ended_can_be_deleted(ctx, state):
    save_procedure(ctx, CHEST)
    orders_scheduling.schedule(ctx, named(ScheduledProcedureStepStatus=state))
    retire_procedure(ctx, "CTCH", delete=True)
    assert catalogue() == {}


@pytest.mark.parametrize("delete", [False, True])
def test_a_procedure_that_is_not_there_cannot_be_taken_out(ctx, delete):
    with refused(Status.NO_SUCH_SOP_INSTANCE):
        retire_procedure(ctx, "CTXX", delete)


# Several exams in one order, and changes of them.


def test_two_procedures_of_a_patient_may_have_one_accession_number(ctx):
    first = schedule(ctx, PatientID="P1", AccessionNumber="A1")
    second = schedule(ctx, PatientID="P1", AccessionNumber="A1")
    assert first.study_instance_uid != second.study_instance_uid
    assert count(RequestedProcedure) == 2


def test_an_accession_number_of_another_patient_is_refused(ctx):
    schedule(ctx, PatientID="P1", AccessionNumber="A1")
    with refused(Status.DUPLICATE_SOP_INSTANCE) as refusal:
        schedule(ctx, "Li^Na=李^娜", PatientID="P2", AccessionNumber="A1")
    assert refusal.value.detail == "Accession Number (0008,0050) A1 belongs to another patient"
    assert count() == 1


def test_an_exam_is_not_given_the_accession_number_of_another_patient(ctx):
    schedule(ctx, PatientID="P1", AccessionNumber="A1")
    row = schedule(ctx, "Li^Na=李^娜", PatientID="P2", AccessionNumber="A2")
    with refused(Status.DUPLICATE_SOP_INSTANCE):
        reschedule(ctx, *step_key(row.id), texts(AccessionNumber="A1"))
    assert data_of(row).get("AccessionNumber") == "A2"


def test_a_step_moves_to_another_device_with_its_modality_and_place(ctx):
    [us] = [d for d in ctx.devices if d.name == "Ultrasound"]
    placed = dataclasses.replace(us, station_name="US ROOM", location="First floor")
    ctx = dataclasses.replace(ctx, devices=(*ctx.devices[:1], placed))
    row = schedule(ctx)
    move_step(ctx, row.id, ScheduledStationAETitle="US1")
    step = step_of(data_of(row))
    keywords = (
        "ScheduledStationAETitle Modality ScheduledStationName ScheduledProcedureStepLocation"
    )
    assert [step.get(k) for k in keywords.split()] == ["US1", "US", "US ROOM", "First floor"]


def test_a_step_moves_to_another_day_and_all_else_stays(ctx):
    row = schedule(ctx)
    before = data_of(row)
    move_step(ctx, row.id, ScheduledProcedureStepStartDate=TOMORROW)
    after = data_of(row)
    assert step_of(after).get("ScheduledProcedureStepStartDate") == TOMORROW
    moved = encode_items(STEP_SEQUENCE, [bytes(step_of(before))])
    assert bytes(after.merged(ElementIndex(moved))) == bytes(before)


@pytest.mark.parametrize("state", ["STARTED", "COMPLETED"])
def test_a_step_that_has_begun_or_is_done_is_not_moved(ctx, state):
    row = schedule(ctx, ScheduledProcedureStepStatus=state)
    with refused(Status.PROCESSING_FAILURE):
        move_step(ctx, row.id, ScheduledStationAETitle="US1")
    assert step_of(data_of(row)).get("ScheduledStationAETitle") == "CT1"


@pytest.mark.parametrize("event", ["cancel", "no show"])
def test_a_step_put_back_on_another_day_has_not_ended(ctx, event):
    """Retention goes by the time a step ended: one that waits again must have none."""
    row = schedule(ctx)
    change_step(ctx, event, *step_key(row.id))
    move_step(ctx, row.id, ScheduledProcedureStepStartDate=TOMORROW)
    [kept] = fetch_rows(ScheduledProcedureStep, "id = ?", row.id)
    assert (kept.status, kept.ended_at) == ("SCHEDULED", "")


def test_a_step_cancelled_by_mistake_does_not_come_back_by_an_undone_match(ctx):
    """A report matched to a cancelled exam, and the match undone: it is cancelled as before."""
    row = schedule(ctx)
    change_step(ctx, "cancel", *step_key(row.id))
    performed = insert_row(
        PerformedProcedureStep,
        sop_instance_uid="2.25.1",
        status="IN PROGRESS",
        performed_station_ae_title="CT1",
        data=texts(PerformedProcedureStepStatus="IN PROGRESS"),
        created_at=ctx.stamp(),
        updated_at=ctx.stamp(),
        remark="",
    )
    link_by_hand(ctx, performed, row.id)
    unlink_step(ctx, performed, row.id)
    assert state_of(row) == "CANCELED"


# What is left from days before.


@pytest.fixture
def week(ctx):
    """Exams of yesterday in each state, one of today and one of tomorrow: rows by state or day."""
    rows = {
        state: schedule(
            ctx,
            f"Wang^{number}",
            ScheduledProcedureStepStartDate=YESTERDAY,
            ScheduledProcedureStepStatus=state,
        )
        for number, state in enumerate(STEP_STATES)
    }
    for day in (TODAY, TOMORROW):
        rows[day] = schedule(ctx, f"Li^{day}", ScheduledProcedureStepStartDate=day)
    return rows


def test_what_is_still_open_from_days_before_is_left_over(ctx, week):
    found = {row.status for row in leftovers(ctx.today())}
    assert found == OPEN_STEP_STATES


def test_leftovers_are_told_the_oldest_first(ctx):
    for day in ("20260703", "20260701", "20260702"):
        schedule(ctx, f"Wang^{day}", ScheduledProcedureStepStartDate=day)
    days = [row.start_date for row in leftovers(ctx.today())]
    assert days == ["20260701", "20260702", "20260703"]


@pytest.mark.parametrize(
    ("event", "state"),
    [("no show", "NO SHOW"), ("cancel", "CANCELED"), ("finish", "COMPLETED")],
)
def test_leftovers_end_in_bulk(ctx, week, event, state):
    rows = [week["SCHEDULED"], week["ARRIVED"]]
    assert change_rows(ctx, event, [row.id for row in rows]) == 2
    assert [state_of(row) for row in rows] == [state, state]


def test_leftovers_move_to_today_in_bulk(ctx, week):
    rows = [week["SCHEDULED"], week["ARRIVED"]]
    change_rows(ctx, "today", [row.id for row in rows])
    days = [step_of(data_of(row)).get("ScheduledProcedureStepStartDate") for row in rows]
    assert days == [TODAY, TODAY]
    assert [state_of(row) for row in rows] == ["SCHEDULED", "ARRIVED"]


def test_an_exam_whose_machine_has_gone_silent_is_ended_by_a_person(ctx, week):
    """PS3.4 F.7.2.2.3 note 2."""
    assert change_rows(ctx, "finish", [week["STARTED"].id]) == 1
    assert state_of(week["STARTED"]) == "COMPLETED"


@pytest.mark.parametrize("event", ["no show", "cancel", "today"])
def test_leftovers_change_all_or_none(ctx, week, event):
    with refused(Status.PROCESSING_FAILURE):
        change_rows(ctx, event, [week["SCHEDULED"].id, week["COMPLETED"].id])
    assert state_of(week["SCHEDULED"]) == "SCHEDULED"
    assert step_of(data_of(week["SCHEDULED"])).get("ScheduledProcedureStepStartDate") == YESTERDAY


# Patients who are corrected, and who turn out to be others.


def patient_row(patient_id):
    return Patient.get(Patient.patient_id == patient_id)


def correct(ctx, patient_id, **values):
    correct_patient(ctx, patient_row(patient_id).id, texts(**values))


@pytest.mark.parametrize(
    ("state", "follows"),
    [
        *((state, True) for state in sorted(OPEN_STEP_STATES)),
        ("COMPLETED", False),
        ("DISCONTINUED", False),
    ],
)
def test_open_exams_follow_a_corrected_patient_and_ended_ones_do_not(ctx, state, follows):
    """What may still come back, of those who did not come or went away, is free to follow."""
    row = schedule(ctx, PatientID="P1", ScheduledProcedureStepStatus=state)
    correct(ctx, "P1", PatientName="Wang^XiaoDong=王^晓东", PatientBirthDate="19780312")
    expected = "Wang^XiaoDong=王^晓东" if follows else "Wang^XiaoDong=王^小东"
    assert data_of(row).get("PatientName") == expected
    assert row_of(data_of(row)).name_key == name_key(expected)


def test_what_is_emptied_of_a_patient_is_empty_in_open_exams(ctx):
    row = schedule(ctx, PatientID="P1", Allergies="Penicillin")
    correct(ctx, "P1", Allergies="")
    assert data_of(row).get("Allergies") == ""


def test_what_is_not_given_of_a_patient_stays(ctx):
    row = schedule(ctx, PatientID="P1", Allergies="Penicillin")
    correct(ctx, "P1", PatientWeight="71")
    assert data_of(row).get("Allergies") == "Penicillin"


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"PatientName": ""}, Status.INVALID_ATTRIBUTE_VALUE),
        ({"PatientName": "^"}, Status.INVALID_ATTRIBUTE_VALUE),
        ({"PatientID": ""}, Status.INVALID_ATTRIBUTE_VALUE),
        ({"PatientBirthDate": "19800231"}, Status.INVALID_ATTRIBUTE_VALUE),
        ({"PatientID": "P2"}, Status.DUPLICATE_SOP_INSTANCE),
    ],
    ids=str,
)
def test_a_wrong_correction_changes_nothing(ctx, wrong, status):
    row = schedule(ctx, PatientID="P1")
    schedule(ctx, "Li^Na=李^娜", PatientID="P2")
    before = bytes(data_of(row))
    with refused(status):
        correct(ctx, "P1", **wrong)
    assert bytes(data_of(row)) == before


def test_a_patient_who_is_not_there_cannot_be_corrected(ctx):
    with refused(Status.NO_SUCH_SOP_INSTANCE):
        correct_patient(ctx, 404, texts(PatientWeight="71"))


def test_another_patient_id_is_taken_and_open_exams_follow(ctx):
    waiting = schedule(ctx, PatientID="P1")
    done = schedule(ctx, PatientID="P1", ScheduledProcedureStepStatus="COMPLETED")
    correct(ctx, "P1", PatientID="P7")
    assert (data_of(waiting).get("PatientID"), data_of(done).get("PatientID")) == ("P7", "P1")
    assert [row.id for row in find_steps("P7")] == [waiting.id]


def emergency(ctx, **values):
    """A patient whom nobody knows, with an exam."""
    return schedule(
        ctx, "Unknown^Emergency 05.07. 12:00", PatientID="P9", **{"PatientSex": "M", **values}
    )


KNOWN = {"PatientName": "Wang^XiaoDong=王^小东", "PatientBirthDate": "19780312"}


def known(ctx, **values):
    """A patient who was here before."""
    given = {"PatientBirthDate": "19780312", "ScheduledProcedureStepStatus": "COMPLETED", **values}
    return schedule(ctx, PatientID="P1", **given)


def test_the_unknown_patient_is_given_a_name(ctx):
    row = emergency(ctx)
    correct(ctx, "P9", **KNOWN)
    assert data_of(row).get("PatientName") == KNOWN["PatientName"]
    assert data_of(row).get("PatientID") == "P9"


def test_the_unknown_patient_turns_out_to_be_a_known_one(ctx):
    known(ctx)
    row = emergency(ctx)
    correct(ctx, "P9", PatientID="P1", **KNOWN)
    assert data_of(row).get("PatientID") == "P1"
    assert [step.id for step in steps_of(patient_row("P1").id)].count(row.id) == 1


def test_the_exam_begun_before_the_unknown_patient_was_known_follows(ctx):
    known(ctx)
    row = emergency(ctx, ScheduledProcedureStepStatus="STARTED")
    correct(ctx, "P9", PatientID="P1", **KNOWN)
    assert data_of(row).get("PatientName") == KNOWN["PatientName"]


def test_the_exams_of_the_known_patient_stay(ctx):
    old = known(ctx)
    emergency(ctx)
    correct(ctx, "P9", PatientID="P1", **KNOWN)
    assert old.id in [step.id for step in steps_of(patient_row("P1").id)]


def test_what_was_known_of_the_known_patient_stays(ctx):
    """The allergies of years ago are what the emergency room needs most."""
    known(ctx, Allergies="Penicillin", PatientWeight="71")
    row = emergency(ctx)
    correct(ctx, "P9", PatientID="P1", **KNOWN)
    found = data_of(row)
    assert (found.get("Allergies"), found.get("PatientWeight")) == ("Penicillin", "71")


def test_the_unknown_patient_is_not_given_the_id_of_somebody_else(ctx):
    known(ctx)
    row = emergency(ctx)
    with refused(Status.DUPLICATE_SOP_INSTANCE):
        correct(ctx, "P9", PatientID="P1", PatientName="Li^Na=李^娜")
    assert data_of(row).get("PatientID") == "P9"


@pytest.mark.parametrize(
    ("name", "birth_date", "similar"),
    [
        ("Wang^XiaoDong", "19780312", True),
        ("WANG^xiao dong", "19780312", True),
        ("王^小东", "19780312", True),
        ("=王^小东", "19780312", True),
        ("Wang^XiaoDong", "19780313", False),
        ("Wang^XiaoDong", "", True),
        ("Wang^XiaoMing", "19780312", False),
    ],
)
def test_the_same_name_and_birth_date_under_another_id_is_found(ctx, name, birth_date, similar):
    schedule(ctx, PatientID="P1", PatientBirthDate="19780312")
    given = texts(PatientName=name, PatientBirthDate=birth_date, PatientID="P2")
    found = similar_patients(ElementIndex(given))
    assert [patient.patient_id for patient in found] == (["P1"] if similar else [])


# CSV

HEAD = "name,id,birth date,sex,exam,device,date,time"
ROW = "Wang XiaoDong,P000042,1978-03-12,M,CT chest,CT1,2026-07-05,9:30"
CHINESE_HEAD = "姓名,病历号,出生日期,性别,检查项目,设备,检查日期,检查时间,申请医生,备注"
CHINESE_ROW = "王小东,K100023,1978年3月12日,男,胸部平扫,CT1,2026/7/5,9:30,赵敏,门诊"


def table(*lines, delimiter=",", end="\r\n"):
    """A CSV file as a spreadsheet writes it."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end)
    writer.writerows(line.split(",") for line in lines)
    return out.getvalue()


def imported(ctx, content):
    """Import a CSV file: the data sets of its steps."""
    run_import(ctx, "day.csv", content)
    steps = fetch_rows(ScheduledProcedureStep, "1 = 1 ORDER BY id")
    return [ElementIndex(bytes(step.data)) for step in steps]


ENCODINGS = pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "gb18030"])
DELIMITERS = pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semi", "tab"])


@ENCODINGS
@DELIMITERS
def test_a_list_with_chinese_headings_is_read_as_chinese_excel_writes_it(ctx, codec, delimiter):
    [found] = imported(ctx, table(CHINESE_HEAD, CHINESE_ROW, delimiter=delimiter).encode(codec))
    expected = {
        "PatientID": "K100023",
        "PatientBirthDate": "19780312",
        "PatientSex": "M",
        "RequestedProcedureDescription": "胸部平扫",
        "RequestedProcedureComments": "门诊",
    }
    assert {keyword: found.get(keyword) for keyword in expected} == expected
    assert found.get("PatientName").split("=")[1] == "王^小东"
    assert found.get("ReferringPhysicianName").replace("^", "").endswith("赵敏")
    step = step_of(found)
    assert step.get("ScheduledProcedureStepStartDate") == "20260705"
    assert step.get("ScheduledProcedureStepStartTime") == "0930"
    assert (step.get("ScheduledStationAETitle"), step.get("Modality")) == ("CT1", "CT")


@pytest.mark.parametrize(
    "heading", [name for name, keyword in CSV_COLUMNS.items() if keyword != "given"]
)
def test_every_heading_of_the_table_is_known(ctx, heading):
    keyword = CSV_COLUMNS[heading]
    values = {
        "family": "Wang",
        "PatientName": "Wang^XiaoDong",
        "PatientBirthDate": "1978-03-12",
        "PatientSex": "male",
        "PatientWeight": "71.5",
        "PatientSize": "1.7",
        "ScheduledStationAETitle": "CT1",
        "Modality": "CT",
        "ScheduledProcedureStepStartDate": "2026-07-05",
        "ScheduledProcedureStepStartTime": "09:30:00",
        "RequestedProcedurePriority": "STAT",
        "ReferringPhysicianName": "Zhao^Min",
    }
    head, row = [heading.upper(), "device"], [values.get(keyword, "X1"), "CT1"]
    if keyword not in ("family", "PatientName"):
        head, row = ["name", *head], ["Wang XiaoDong", *row]
    if keyword == "ScheduledStationAETitle":
        head, row = head[:-1], row[:-1]
    [found] = imported(ctx, table(",".join(head), ",".join(row)).encode())
    where = step_of(found) if keyword in STEP_KEYWORDS else found
    expected = {
        "1978-03-12": "19780312",
        "2026-07-05": "20260705",
        "09:30:00": "093000",
        "male": "M",
    }
    keyword = "PatientName" if keyword == "family" else keyword
    text = values.get(CSV_COLUMNS[heading], "X1")
    assert where.get(keyword) == expected.get(text, text)


@pytest.mark.parametrize(
    "written", ["1978-03-12", "1978-3-12", "1978/3/12", "1978.03.12", "19780312", "1978年3月12日"]
)
def test_a_date_is_read_as_people_write_it(ctx, written):
    [found] = imported(ctx, table(HEAD, ROW.replace("1978-03-12", written)).encode())
    assert found.get("PatientBirthDate") == "19780312"


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("Wang^XiaoDong", "Wang^XiaoDong"),
        ("Wang^XiaoDong=王^小东", "Wang^XiaoDong=王^小东"),
        ("王小东", "Wang^XiaoDong=王^小东"),
        ("欧阳静", "Ouyang^Jing=欧阳^静"),
    ],
)
def test_a_name_is_read_as_people_write_it(ctx, written, stored):
    [found] = imported(ctx, table(HEAD, ROW.replace("Wang XiaoDong", written)).encode())
    assert found.get("PatientName") == stored


def test_family_and_given_name_may_stand_in_two_columns(ctx):
    content = table(f"姓名,family name,given name,{HEAD[5:]}", f"王小东,Wang,XiaoDong,{ROW[14:]}")
    [found] = imported(ctx, content.encode())
    assert found.get("PatientName") == "Wang^XiaoDong=王^小东"


def test_a_cell_with_a_comma_is_one_cell(ctx):
    content = f'{HEAD},comment\n{ROW},"Cough, fever"\n'
    assert imported(ctx, content.encode())[0].get("RequestedProcedureComments") == "Cough, fever"


def test_a_row_with_more_cells_than_headings_is_refused(ctx):
    """A comma that was not quoted: what follows it would stand under the wrong headings."""
    content = table(HEAD, ROW.replace("CT chest", "CT chest, plain"))
    with refused(Status.INVALID_ATTRIBUTE_VALUE):
        imported(ctx, content.encode())
    assert count() == 0


def test_cells_missing_at_the_end_of_a_row_are_empty(ctx):
    content = f"{HEAD},comment,weight\n{ROW}\n"
    assert imported(ctx, content.encode())[0].get("PatientID") == "P000042"


def test_empty_lines_are_no_exams(ctx):
    assert len(imported(ctx, f"{HEAD}\n{ROW}\n\n,,,,,,,\n".encode())) == 1


def test_procedures_of_a_list_are_those_of_the_catalogue(ctx):
    save_procedure(ctx, CHEST)
    [found] = imported(ctx, table("name,exam", "Wang XiaoDong,CTCH").encode())
    assert found.item("RequestedProcedureCodeSequence").get("CodeMeaning") == "CT chest"
    assert step_of(found).get("ScheduledStationAETitle") == "CT1"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "The file has no rows"),
        (HEAD.encode(), "The file has no rows"),
        (f"{HEAD},shoe size\n{ROW},43\n".encode(), "Unknown column shoe size"),
        (b"id,exam\nP1,CT chest\n", "There is no column for the patient's name"),
        (b"\xff\xff\xff,\xff\n\xff\xff\xff,\xff\n", "It is not certain how the letters"),
        (b'name,id\n"' + b"W" * 200000 + b'",P1\n', "cannot be read: "),
    ],
    ids=["empty", "no rows", "unknown column", "no name", "no text", "huge cell"],
)
def test_a_file_that_is_no_list_is_refused_in_words(ctx, content, words):
    with refused(Status.INVALID_ATTRIBUTE_VALUE) as refusal:
        imported(ctx, content)
    assert words in refusal.value.detail


def five_hundred():
    """Five hundred rows of which 17, 230 and 499 are wrong."""
    rows = [f"Wang {n},P{n:06},1978-03-12,M,CT chest,CT1,2026-07-05,09:30" for n in range(1, 501)]
    rows[16] = rows[16].replace("1978-03-12", "1980-02-31")
    rows[229] = rows[229].replace("P000230", "P" + "0" * 70)
    rows[498] = rows[498].replace("2026-07-05", "tomorrow")
    return table(HEAD, *rows).encode()


WRONG_ROWS = [
    ("18", "Patient's Birth Date (0010,0030)", "19800231", "is not a date"),
    ("231", "Patient ID (0010,0020)", "P" + "0" * 63, "64"),
    ("500", "Scheduled Procedure Step Start Date (0040,0002)", "tomorrow", "is not a date"),
]


def test_of_five_hundred_rows_three_are_wrong_and_nothing_is_imported(ctx):
    """Issue: nothing imported, three lines that say row, column, value and why."""
    with refused(Status.INVALID_ATTRIBUTE_VALUE) as refusal:
        imported(ctx, five_hundred())
    lines = refusal.value.detail.split("\n")
    assert len(lines) == 3
    for line, (number, *parts) in zip(lines, WRONG_ROWS, strict=True):
        assert line.startswith(f"row {number}: ")
        assert all(part in line for part in parts), line
    assert (count(), count(Patient), count(RequestedProcedure)) == (0, 0, 0)


def test_rows_are_numbered_alike_whether_or_not_empty_lines_are_among_them(ctx):
    """The number leads to the row in the spreadsheet, where empty lines are lines too."""
    wrong = ROW.replace("1978-03-12", "1980-02-31")
    numbers = []
    for between in (ROW, ",,,,,,,"):
        with refused(Status.INVALID_ATTRIBUTE_VALUE) as refusal:
            imported(ctx, table(HEAD, between, wrong).encode())
        numbers.append(re.match(r"row (\d+)[:,]", refusal.value.detail)[1])
    assert numbers[0] == numbers[1]


def problems_of(ctx, content):
    """What is said of a list that is looked at."""
    number = enter_file(ctx, "list.csv", content, How(), False)
    importer = Importer(lambda actor: ctx, lambda core, *arguments: core(*arguments))
    importer.work(number)
    one = known_import(number)
    return "" if one.state == "checked" else importer.refusal_of(one).detail


def test_a_preview_keeps_nothing_and_uses_up_no_number(ctx):
    content = table("name,device", "Wang Fang,CT1").encode()
    assert preview_lines("list.csv", content) == ([["name", "device"], ["Wang Fang", "CT1"]], 1)
    assert problems_of(ctx, content) == ""
    assert (count(), count(Patient), count(Counter)) == (0, 0, 0)


def test_a_preview_says_what_an_import_would_say(ctx):
    problems = problems_of(ctx, five_hundred())
    with refused(Status.INVALID_ATTRIBUTE_VALUE) as refusal:
        imported(ctx, five_hundred())
    assert str(problems) == refusal.value.detail


def test_a_preview_is_not_logged_as_if_it_were_done(ctx, caplog):
    caplog.set_level("INFO", "minris")
    problems_of(ctx, table("name,device", "Wang Fang,CT1").encode())
    assert "scheduled" not in caplog.text


@pytest.mark.parametrize("cell", ["=1+1", "+49", "-2", "@SUM(A1)"])
def test_no_cell_of_an_export_is_a_formula(ctx, cell):
    schedule(ctx, PatientID=f"{cell}x"[:64], RequestedProcedureDescription=f"{cell}x")
    cells = [cell for row in list(csv.reader(io.StringIO(export_csv(), "")))[1:] for cell in row]
    assert not [cell for cell in cells if cell[:1] in "=+-@\t\r" and cell]


def test_an_exported_list_can_be_imported(ctx, tmp_path):
    row = schedule(ctx, PatientID="P1", PatientBirthDate="19780312", PatientSex="M")
    content = export_csv().replace(row.study_instance_uid, "2.25.77").encode("utf-8-sig")
    found = imported(ctx, content)[-1]
    assert found.get("StudyInstanceUID") == "2.25.77"
    assert found.get("PatientName") == "Wang^XiaoDong=王^小东"


# The pages


def words_of(text):
    """What a person reads of a page, in one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def form_of(text, action):
    """What a form of a page would send as it is shown: fields with their values."""
    part = re.search(rf'<form method="post" action="{re.escape(action)}".*?</form>', text, re.S)[0]
    fields = {}
    for name, kind, value in re.findall(
        r'<input(?=[^>]*name="(\w+)")(?=[^>]*type="(\w+)")(?=[^>]*value="([^"]*)")', part
    ):
        if kind != "checkbox":
            fields[name] = html.unescape(value)
    for name, options in re.findall(r'<select id="\w+" name="(\w+)".*?>(.*?)</select>', part, re.S):
        chosen = re.search(r'value="([^"]*)" selected', options)
        fields[name] = html.unescape(chosen[1]) if chosen else ""
    for name, value in re.findall(r'<textarea id="\w+" name="(\w+)"[^>]*>(.*?)</textarea>', part):
        fields[name] = html.unescape(value)
    return fields


def send(web, path, action="", **changes):
    """Load a form, change some fields, and send it."""
    action = action or path.partition("?")[0]
    return web.post(action, data=form_of(web.get(path).text, action) | changes)


def row_in(appliance, index):
    return appliance.read(step_known, index.get("StudyInstanceUID"))


def steps_in(appliance):
    """The data sets of all steps, in order."""
    rows = appliance.read(fetch_rows, ScheduledProcedureStep, "1 = 1 ORDER BY id")
    return [ElementIndex(bytes(row.data)) for row in rows]


EXAM = {"device": "CT1", "procedure": "CT chest", "date": "2026-07-05", "time": "09:30",
        "event": "anyway"}  # fmt: skip
WANG = {
    "family_name": "Wang", "given_name": "XiaoDong", "birth_date": "1978-03-12", "sex": "M",
}  # fmt: skip


def test_a_second_exam_in_an_order_has_its_accession_number_and_patient(appliance, web):
    """Issue: several procedures in one order."""
    [first] = appliance.schedule(item(PatientBirthDate="19780312", AccessionNumber="A1"))
    path = f"/register?order={row_in(appliance, first)}"
    answer = send(web, path, **EXAM | {"procedure": "CT abdomen", "time": "09:45"})
    assert answer.status_code == 303
    second = steps_in(appliance)[1]
    keywords = ("AccessionNumber", "PatientID", "PatientName", "PatientBirthDate")
    assert [second.get(k) for k in keywords] == [first.get(k) for k in keywords]
    assert second.get("StudyInstanceUID") != first.get("StudyInstanceUID")
    found = peers.run_findscu(
        appliance.port, "MINRIS", "CT1", ["AccessionNumber=A1", "RequestedProcedureDescription"]
    )
    assert [ds.RequestedProcedureDescription for ds in found.datasets] == ["CT chest", "CT abdomen"]


def test_another_exam_of_a_patient_with_an_issuer_is_of_the_same_patient(appliance, web):
    """Patients of another system's import have an issuer of their ID."""
    [first] = appliance.schedule(item(IssuerOfPatientID="LAKESIDE", AccessionNumber="A1"))
    answer = send(web, f"/register?order={row_in(appliance, first)}", **EXAM)
    assert answer.status_code == 303, words_of(answer.text)
    assert appliance.read(count, Patient) == 1


def test_the_same_name_and_birth_date_under_another_id_is_asked_about_before_saving(appliance, web):
    appliance.schedule(item("Wang^XiaoDong", PatientID="P1", PatientBirthDate="19780312"))
    answer = send(web, "/register", **WANG | EXAM)
    assert answer.status_code == 422
    assert "The same patient: use the ID P1" in words_of(answer.text)
    assert len(steps_in(appliance)) == 1


@pytest.mark.parametrize(("choice", "same"), [("P1", True), ("another", False)])
def test_what_was_answered_is_done(appliance, web, choice, same):
    appliance.schedule(item("Wang^XiaoDong", PatientID="P1", PatientBirthDate="19780312"))
    asked = send(web, "/register", **WANG | EXAM)
    answer = web.post("/register", data=form_of(asked.text, "/register") | {"same_person": choice})
    assert answer.status_code == 303
    assert (steps_in(appliance)[1].get("PatientID") == "P1") is same
    assert appliance.read(count, Patient) == (1 if same else 2)


def test_reception_is_told_that_an_accession_number_is_another_patient_s(appliance, web):
    appliance.schedule(item("Li^Na=李^娜", AccessionNumber="A1"))
    answer = send(web, "/register", **WANG | EXAM | {"accession": "A1"})
    assert answer.status_code == 422
    assert "A1 belongs to another patient" in words_of(answer.text)


def test_the_unknown_emergency_patient_is_registered_with_nothing_known(appliance, web):
    answer = send(web, "/register?emergency=1", **EXAM)
    assert answer.status_code == 303
    [index] = steps_in(appliance)
    assert index.get("PatientName").startswith("Unknown^Emergency")
    assert index.get("RequestedProcedurePriority") == "STAT"


def test_the_way_to_the_emergency_form_is_on_a_page(web):
    pages = (web.get(path).text for path in ("/", "/register", "/patients"))
    assert any("/register?emergency=" in page for page in pages)


def test_the_unknown_emergency_patient_is_identified_on_the_page(appliance, web):
    appliance.schedule(
        item("Wang^XiaoDong", PatientID="P1", PatientBirthDate="19780312", Allergies="Penicillin")
    )
    send(web, "/register?emergency=1", **EXAM)
    unknown = steps_in(appliance)[1].get("PatientID")
    row = appliance.read(lambda: patient_row(unknown).id)
    answer = send(web, f"/patient/{row}", **WANG | {"patient_id": "P1"})
    assert answer.status_code == 303
    found = peers.run_findscu(
        appliance.port, "MINRIS", "CT1", ["PatientID=P1", "PatientName", "Allergies"]
    )
    assert [str(ds.Allergies) for ds in found.datasets] == ["Penicillin", "Penicillin"]


def test_a_program_merges_by_the_id_of_the_record_that_stays(appliance, web):
    appliance.schedule(item("Merge^Old", PatientID="OLD"), item("Merge^New", PatientID="NEW"))
    path = f"/patient/{appliance.read(lambda: patient_row('OLD').id)}/merge"
    assert send(web, path, into="NOBODY", reason="same").status_code == 422
    assert send(web, path, into="NEW", reason="same").status_code == 303
    assert {index.get("PatientID") for index in steps_in(appliance)} == {"NEW"}


@pytest.mark.parametrize(
    "name",
    [
        "Wang^XiaoDong=王^小东",
        "Ouyang^Jing=欧阳^静",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "Müller^Anna^Maria^Dr.",
        "van der Berg^Jan",
    ],
)
def test_saving_a_patient_s_page_as_it_is_shown_changes_nothing(appliance, web, name):
    appliance.schedule(item(name, PatientID="P1", PatientSize="1.72"))
    row = appliance.read(lambda: patient_row("P1").id)
    send(web, f"/patient/{row}")
    assert steps_in(appliance)[0].get("PatientName") == name
    assert steps_in(appliance)[0].get("PatientSize") == "1.72"


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("ReferringPhysicianName", "Zhao^Min=赵^敏"),
        ("ReferringPhysicianName", "van der Berg^Jan"),
        ("ReferringPhysicianName", "Zhao^Min"),
        ("ScheduledStationAETitle", "CT1\\CT2"),
        ("ScheduledProcedureStepDescription", "CT chest, with contrast"),
        ("RequestedProcedureComments", "Cough, fever"),
        ("ScheduledStationName", "CT ROOM"),
        ("RequestedProcedurePriority", "MEDIUM"),
        ("Modality", "IVUS"),
    ],
)
def test_saving_an_exam_s_page_as_it_is_shown_changes_nothing(appliance, web, keyword, value):
    [index] = appliance.schedule(item(**{keyword: value}))
    where = step_of if keyword in STEP_KEYWORDS else lambda index: index
    before = where(index).get(keyword)
    answer = send(web, f"/step/{row_in(appliance, index)}/edit")
    assert answer.status_code == 303
    assert where(steps_in(appliance)[0]).get(keyword) == before


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("House Gregory", "House^Gregory"),
        ("Müller Hans", "Müller^Hans"),
        ("赵敏", "Zhao^Min=赵^敏"),
    ],
)
def test_a_physician_named_later_is_written_as_at_registration(appliance, web, typed, stored):
    """PS3.5 6.2.1.1: what is no hanzi stands in the first group, ASCII or not."""
    [index] = appliance.schedule(item())
    send(web, f"/step/{row_in(appliance, index)}/edit", physician=typed)
    send(web, "/register", **WANG | EXAM | {"physician": typed, "same_person": "another"})
    assert [one.get("ReferringPhysicianName") for one in steps_in(appliance)] == [stored] * 2


def test_an_exam_is_moved_to_another_device_on_its_page(appliance, web):
    [index] = appliance.schedule(item("Wang^Fang"))
    path = f"/step/{row_in(appliance, index)}/edit"
    assert send(web, path, device="US1", modality="", time="14:00").status_code == 303
    key = "ScheduledProcedureStepSequence[0].Modality=US"
    found = peers.run_findscu(appliance.port, "MINRIS", "US1", ["PatientName", key])
    assert [str(ds.PatientName) for ds in found.datasets] == ["Wang^Fang"]


def test_an_exam_changed_to_another_of_the_catalogue_has_its_code_and_protocol(appliance, web):
    """The machine chooses its protocol by the codes, not by the words."""
    for procedure in (CHEST, ABDOMEN | {"protocol_code": "AB-1"}):
        appliance.write(save_procedure, appliance.context(), procedure)
    send(web, "/register", **WANG | EXAM)
    path = f"/step/{row_in(appliance, steps_in(appliance)[0])}/edit"
    send(web, path, procedure="CT abdomen")
    [index] = steps_in(appliance)
    assert index.get("RequestedProcedureDescription") == "CT abdomen"
    assert index.item("RequestedProcedureCodeSequence").get("CodeValue") == "CTAB"
    protocol = step_of(index).item("ScheduledProtocolCodeSequence")
    assert protocol.get("CodeValue") == "AB-1"


def test_an_exam_changed_to_one_outside_the_catalogue_has_no_old_code(appliance, web):
    appliance.write(save_procedure, appliance.context(), CHEST)
    send(web, "/register", **WANG | EXAM)
    path = f"/step/{row_in(appliance, steps_in(appliance)[0])}/edit"
    send(web, path, procedure="CT sinuses")
    [index] = steps_in(appliance)
    assert index.item("RequestedProcedureCodeSequence").get("CodeValue") == ""
    assert step_of(index).item("ScheduledProtocolCodeSequence").get("CodeValue") == ""


def test_an_exam_that_has_begun_is_not_changed_on_its_page(appliance, web):
    [index] = appliance.schedule(item(ScheduledProcedureStepStatus="STARTED"))
    answer = send(web, f"/step/{row_in(appliance, index)}/edit", time="14:00")
    assert answer.status_code == 422
    assert "The step is In progress" in words_of(answer.text)


def left_over(appliance, *states):
    """Exams of long ago, one in each state."""
    items = (
        item(
            f"Wang^{n}", ScheduledProcedureStepStartDate="20200101", ScheduledProcedureStepStatus=s
        )
        for n, s in enumerate(states)
    )
    return appliance.schedule(*items)


def checked(text):
    """The rows whose boxes are ticked as the page is shown."""
    boxes = re.findall(r'<input type="checkbox"[^>]*>', text)
    return [re.search(r'value="(\d+)"', b)[1] for b in boxes if " checked" in b and
            " disabled" not in b]  # fmt: skip


def states_in(appliance):
    return [step_of(index).get("ScheduledProcedureStepStatus") for index in steps_in(appliance)]


@pytest.mark.parametrize(("event", "state"), [("no show", "NO SHOW"), ("cancel", "CANCELED")])
def test_leftovers_end_by_one_click(appliance, web, event, state):
    left_over(appliance, "SCHEDULED", "ARRIVED")
    rows = checked(web.get("/leftovers").text)
    answer = web.post("/leftovers", data={"row": rows, "event": event})
    assert answer.status_code == 303
    assert states_in(appliance) == [state, state]
    assert "No unfinished exams" in words_of(web.get("/leftovers").text)


def test_leftovers_that_were_not_ticked_stay(appliance, web):
    left_over(appliance, "SCHEDULED", "SCHEDULED")
    rows = checked(web.get("/leftovers").text)
    web.post("/leftovers", data={"row": rows[:1], "event": "cancel"})
    assert states_in(appliance) == ["CANCELED", "SCHEDULED"]


def test_an_exam_left_begun_does_not_keep_the_others_of_the_page(appliance, web):
    """A device that never said it was done; the page is sent as it is shown."""
    left_over(appliance, "SCHEDULED", "STARTED")
    rows = checked(web.get("/leftovers").text)
    answer = web.post("/leftovers", data={"row": rows, "event": "no show"})
    assert answer.status_code == 303
    assert states_in(appliance)[0] == "NO SHOW"


@pytest.mark.parametrize("fields", [{"event": "erase"}, {"row": "404", "event": "cancel"}])
def test_leftovers_that_are_none_are_refused(appliance, web, fields):
    assert web.post("/leftovers", data=fields).status_code in (404, 422)


def test_a_procedure_is_saved_changed_retired_and_deleted_on_the_page(appliance, web):
    def kept():
        return [(p.code, p.meaning, p.retired) for p in appliance.read(catalogue).values()]

    assert send(web, "/catalogue", **CHEST).status_code == 303
    assert kept() == [("CTCH", "CT chest", 0)]
    send(web, "/catalogue?code=CTCH", "/catalogue", meaning="CT thorax")
    assert kept() == [("CTCH", "CT thorax", 0)]
    send(web, "/catalogue?code=CTCH", "/catalogue", event="retire")
    assert kept() == [("CTCH", "CT thorax", 1)]
    send(web, "/catalogue?code=CTCH", "/catalogue", event="delete", sure="yes")
    assert kept() == []


def test_the_page_says_why_a_procedure_is_not_deleted(appliance, web):
    appliance.write(save_procedure, appliance.context(), CHEST)
    send(web, "/register", **WANG | EXAM)
    answer = send(web, "/catalogue?code=CTCH", "/catalogue", event="delete", sure="yes")
    assert answer.status_code == 422
    assert "CTCH is used by open exams: it can only be retired" in words_of(answer.text)


def test_a_procedure_in_use_is_offered_at_the_desk_and_a_retired_one_is_not(appliance, web):
    for procedure in (CHEST, ABDOMEN):
        appliance.write(save_procedure, appliance.context(), procedure)
    appliance.write(retire_procedure, appliance.context(), "CTAB")
    text = web.get("/register").text
    assert 'value="CT chest"' in text
    assert 'value="CT abdomen"' not in text


def test_a_catalogue_is_imported(appliance):
    """Issue: catalogue editable and importable."""
    content = b'{"minris": "", "procedures": [{"code": "CTCH", "meaning": "CT chest"}]}'
    appliance.write(run_import, appliance.context(), "catalogue.json", content)
    assert list(appliance.read(catalogue)) == ["CTCH"]


def upload(web, content, name="day.csv"):
    """What a file looks like, when it has been checked."""
    answer = web.post("/import", files={"upload": (name, content, "text/csv")})
    while "Refresh" in answer.headers:
        answer = web.get(answer.headers["Refresh"].partition("url=")[2])
    return answer


@ENCODINGS
def test_a_list_is_shown_first_and_imported_when_confirmed(appliance, web, codec):
    shown = upload(web, table(CHINESE_HEAD, CHINESE_ROW).encode(codec))
    assert "王小东" in shown.text
    assert "1 row" in words_of(shown.text)
    assert steps_in(appliance) == []
    answer = web.post("/import", data=form_of(shown.text, "/import") | {"confirmed": "yes"})
    assert answer.status_code == 303
    assert [index.get("PatientID") for index in steps_in(appliance)] == ["K100023"]


def test_the_page_shows_the_three_wrong_rows_and_offers_no_import(appliance, web):
    shown = upload(web, five_hundred())
    lines = [words_of(line) for line in re.findall(r"<li>(.*?)</li>", shown.text)]
    assert [line.split(":")[0] for line in lines] == ["row 18", "row 231", "row 500"]
    assert 'name="confirmed"' not in shown.text
    assert steps_in(appliance) == []


def test_a_list_that_was_right_when_shown_is_imported_whole_or_not_at_all(appliance, web):
    """Between look and click a step of the list came by another way."""
    head, row = f"{HEAD},StudyInstanceUID,ScheduledProcedureStepID", f"{ROW},2.25.7,S7"
    shown = upload(web, table(head, f"{ROW},2.25.6,S6", row).encode())
    appliance.schedule(item(StudyInstanceUID="2.25.7", ScheduledProcedureStepID="S7"))
    answer = web.post("/import", data=form_of(shown.text, "/import") | {"confirmed": "yes"})
    assert answer.status_code == 422
    assert "row 3: " in words_of(answer.text)
    assert len(steps_in(appliance)) == 1


@pytest.mark.parametrize("number", ["", "abc", "99", "²", "9" * 30])
def test_a_confirmation_of_no_file_is_no_mistake_of_ours(appliance, web, number):
    form = {"number": number, "confirmed": "yes"}
    assert 400 <= web.post("/import", data=form).status_code < 500


@pytest.mark.parametrize("content", [b"", b"\0\1\2", b'{"00100010": 1}', b"%PDF-1.7"])
@pytest.mark.parametrize("name", ["day.csv", "day.json", "day.wl", "day"])
def test_a_file_that_cannot_be_imported_is_refused_in_words(appliance, web, name, content):
    answer = upload(web, content, name)
    assert answer.status_code in (200, 422)
    assert "Nothing was imported:" in words_of(answer.text)
