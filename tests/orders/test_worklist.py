"""Section 9, the worklist: scheduling, what people do to steps, and the search, over DIMSE too."""

import contextlib
import copy
import dataclasses
import datetime
import io
import itertools
import random
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import peers
import peewee
import pydicom
import pytest
from bench import wire
from conftest import NOON, item
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pynetdicom import AE, evt
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

from minris.access.context import Actor
from minris.appliance.appliance import Appliance
from minris.dataset.dicom_json import from_json
from minris.dataset.elements import ElementIndex, encode_element, encode_text, text_elements
from minris.dataset.recode import recode
from minris.dataset.search import Search
from minris.dimse.services import SEARCHED
from minris.interchange.imports import import_now
from minris.orders.lookup import find_step, step_data
from minris.orders.scheduling import reschedule, schedule
from minris.orders.steps import change_step, update_patient
from minris.orders.worklist import find_worklist, worklist_ids
from minris.standard import worklist as standard_worklist
from minris.standard.dictionary import tag_of
from minris.standard.status import Refusal, Status
from minris.standard.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MODALITY_WORKLIST,
)
from minris.standard.worklist import (
    MWL_ATTRIBUTES,
    OPEN_STEP_STATES,
    STEP_STATES,
    STEP_STATUS,
    STEP_TRANSITIONS,
)
from minris.store.models import MODELS, Audit, Patient, ScheduledProcedureStep, database
from minris.store.rows import SLICE, AnswerCache, fetch_rows

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # wrong values are meant

EXPLICIT, IMPLICIT = EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
STEP_SEQUENCE = standard_worklist.STEP_SEQUENCE
STEP_KEYWORDS = frozenset(
    attribute.keyword for attribute in MWL_ATTRIBUTES.children((STEP_SEQUENCE,))
)
CHARACTER_SETS = ("ISO_IR 192", "GB18030", "ISO_IR 100")
PENDING, PENDING_UNSUPPORTED, SUCCESS = 0xFF00, 0xFF01, 0x0000
OUT_OF_RESOURCES, DOES_NOT_MATCH, CANCELLED = 0xA700, 0xA900, 0xFE00


# A query, asked of the core or over DIMSE.


def query(**keys):
    """A query by keywords; those of a step go into the one item of the sequence."""
    ds, step = Dataset(), Dataset()
    for keyword, value in keys.items():
        setattr(step if keyword in STEP_KEYWORDS else ds, keyword, value)
    if step:
        ds.ScheduledProcedureStepSequence = [step]
    return ds


def code(value, scheme="99LAKE", meaning=None):
    """An item of a code sequence."""
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator = value, scheme
    if meaning is not None:
        ds.CodeMeaning = meaning
    return ds


def code_json(value, scheme, meaning):
    """An item of a code sequence as DICOM JSON."""
    return code(value, scheme, meaning).to_json_dict()


def encoded(ds, explicit=True):
    """A data set as pydicom encodes it."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, little_endian=True, implicit_vr=not explicit)
    return buffer.getvalue()


def decoded(data, explicit=True):
    """A data set as pydicom reads it."""
    return read_dataset(io.BytesIO(data), not explicit, True)


def search_for(ds, **how):
    """A query, compiled."""
    index = ElementIndex(recode(encoded(ds)))
    return Search(index, MWL_ATTRIBUTES, **how)


def find(ctx, ds):
    """The answers of the core."""
    slices = find_worklist(ctx, search_for(ds))
    return [decoded(data) for answers in slices for data in answers]


class Answers(NamedTuple):
    """What came back over DIMSE: the command set of each response, and the data sets as sent."""

    commands: list[Dataset]
    raw: list[bytes]
    explicit: bool = True

    @property
    def statuses(self):
        return [command.Status for command in self.commands]

    @property
    def datasets(self):
        return [decoded(data, self.explicit) for data in self.raw]


@contextlib.contextmanager
def associated(port, calling="CT1", syntax=EXPLICIT, called="MINRIS", **how):
    """An association for worklist queries; gives a function that asks."""
    commands, raw = [], []

    def keep(event):
        commands.append(event.message.command_set)
        if data := event.message.data_set.getvalue():
            raw.append(data)

    ae = AE(calling)
    ae.add_requested_context(MODALITY_WORKLIST, syntax)
    handlers = [(evt.EVT_DIMSE_RECV, keep)]
    association = ae.associate("127.0.0.1", port, ae_title=called, evt_handlers=handlers, **how)
    assert association.is_established
    peers.leave_answers(association)

    def ask_one(ds):
        commands.clear()
        raw.clear()
        for _ in association.send_c_find(ds, MODALITY_WORKLIST):
            pass
        return Answers([*commands], [*raw], syntax == EXPLICIT)

    ask_one.association = association
    try:
        yield ask_one
    finally:
        association.release()
        assert not association.is_aborted


def ask(appliance, ds, **how):
    """The answers to one query on an association of its own."""
    with associated(appliance.port, **how) as ask_one:
        return ask_one(ds)


def put(ctx, *items, same_id="separate"):
    """Schedule items: the stored data sets."""
    stored = []
    with database.atomic():
        for one in items:
            stored += schedule(ctx, from_json(one), same_id)
    return [ElementIndex(data) for data in stored]


@dataclasses.dataclass
class Worklist:
    """A worklist to put items on and to ask, by the core or over DIMSE."""

    put: Callable[..., list[ElementIndex]]
    ask: Callable[[Dataset], list[Dataset]]
    status: Callable[[Dataset], int]

    def values(self, keyword, **keys):
        """The values of one keyword in the answers to a query."""
        answers = self.ask(query(**{keyword: "", **keys}))
        return [str(one.get(keyword, "")) for one in answers]

    def names(self, **keys):
        return sorted(self.values("PatientName", **keys))

    def accessions(self, **keys):
        return sorted(self.values("AccessionNumber", **keys))


def status_of_core(ctx, ds):
    try:
        list(find_worklist(ctx, search_for(ds)))
    except Refusal as refusal:
        return refusal.status
    return SUCCESS


@pytest.fixture(params=["core", "DIMSE"])
def worklist(request):
    """A worklist, once by its core functions and once over DIMSE."""
    if request.param == "core":
        ctx = request.getfixturevalue("ctx")
        yield Worklist(
            lambda *items: put(ctx, *items),
            lambda ds: find(ctx, ds),
            lambda ds: status_of_core(ctx, ds),
        )
    else:
        appliance = request.getfixturevalue("appliance")
        with associated(appliance.port) as ask_one:
            yield Worklist(
                appliance.schedule,
                lambda ds: ask_one(ds).datasets,
                lambda ds: ask_one(ds).statuses[-1],
            )


def two_steps(**texts):
    """An item with two steps in one procedure."""
    found = item(ScheduledProcedureStepID="S1", **texts)
    second = item(ScheduledProcedureStepID="S2", ScheduledProcedureStepStartTime="1000")
    sequence = found["ScheduledProcedureStepSequence"]["Value"]
    sequence += second["ScheduledProcedureStepSequence"]["Value"]
    return found


def ids_of(index):
    """Study Instance UID and step ID of a stored data set."""
    step = index.item("ScheduledProcedureStepSequence")
    return index.get("StudyInstanceUID"), step.get("ScheduledProcedureStepID")


def state_of(data):
    """Scheduled Procedure Step Status of a stored data set."""
    return ElementIndex(data).item("ScheduledProcedureStepSequence").text(STEP_STATUS)


def rows_of(ids):
    """The row of a step."""
    return find_step(*ids)


def everything():
    """All rows of all tables."""
    return {
        model.__name__: sorted(
            database.execute_sql(f"SELECT * FROM {model._meta.table_name}").fetchall()
        )
        for model in MODELS
    }


# Responses of a C-FIND.


def test_a_query_without_a_match_gets_one_success_without_a_data_set(appliance):
    """T-MWL-01."""
    appliance.schedule(item())
    answers = ask(appliance, query(PatientName="Nobody^Known"))
    assert answers.statuses == [SUCCESS]
    assert answers.commands[0].CommandDataSetType == 0x0101
    assert answers.raw == []


def test_a_universal_query_returns_each_step_once(worklist):
    """T-MWL-02."""
    worklist.put(item("Wang^Fang"), item("Li^Na"), two_steps(name="Zhang^Wei"))
    assert worklist.names() == ["Li^Na", "Wang^Fang", "Zhang^Wei", "Zhang^Wei"]


def test_each_match_is_pending_and_the_end_is_success(appliance):
    """T-MWL-02."""
    appliance.schedule(item("Wang^Fang"), item("Li^Na"))
    assert ask(appliance, query(PatientName="")).statuses == [PENDING, PENDING, SUCCESS]


def test_findscu_sees_no_data_set_in_the_last_response(appliance):
    """T-MWL-01, field: a client complains of a success that carries a data set."""
    appliance.schedule(item())
    found = peers.run_findscu(appliance.port, "MINRIS", "CT1", ["PatientName"])
    last = found.log.rpartition("Received Final Find Response")[2] or found.log
    assert found.statuses == [PENDING, SUCCESS]
    assert "Data Set                      : none" in last
    assert found.exit_code == 0


def test_dcmjs_finds_the_worklist(appliance):
    appliance.schedule(item())
    keys = {"PatientName": "", "ScheduledProcedureStepSequence": [{"Modality": "CT"}]}
    responses = peers.run_dimse(appliance.port, [{"op": "find", "keys": keys}], "CT1")
    assert [response["status"] for response in responses] == [PENDING, SUCCESS]


def test_an_answer_holds_what_was_asked_alone(appliance):
    """T-MWL-03."""
    appliance.schedule(item(PatientSex="M", PatientBirthDate="19780312", Allergies="Penicillin"))
    [answer] = ask(appliance, query(PatientName="", PatientSex="", Modality="CT")).datasets
    [step] = answer.ScheduledProcedureStepSequence
    asked = {"SpecificCharacterSet", "PatientName", "PatientSex", "ScheduledProcedureStepSequence"}
    assert {element.keyword for element in answer} == asked
    assert {element.keyword for element in step} == {"Modality"}


def test_two_steps_of_a_procedure_are_two_answers_with_one_item_each(worklist):
    """T-MWL-04."""
    worklist.put(two_steps())
    answers = worklist.ask(query(StudyInstanceUID="", ScheduledProcedureStepID=""))
    steps = [answer.ScheduledProcedureStepSequence for answer in answers]
    assert [[step.ScheduledProcedureStepID for step in items] for items in steps] == [
        ["S1"],
        ["S2"],
    ]
    assert len({answer.StudyInstanceUID for answer in answers}) == 1


def test_answers_come_in_the_order_of_their_start(worklist):
    worklist.put(
        item("Late^One", ScheduledProcedureStepStartTime="1400"),
        item("Early^One", ScheduledProcedureStepStartTime="0800"),
        item("Tomorrow^One", ScheduledProcedureStepStartDate="20260706"),
        item("Noon^One", ScheduledProcedureStepStartTime="12"),
    )
    names = ["Early^One", "Noon^One", "Late^One", "Tomorrow^One"]
    assert worklist.values("PatientName") == names


def test_an_unsupported_attribute_is_left_out_with_ff01(appliance):
    """T-MWL-17."""
    appliance.schedule(item())
    answers = ask(appliance, query(PatientName="", SliceThickness=None))
    assert answers.statuses == [PENDING_UNSUPPORTED, SUCCESS]
    assert "SliceThickness" not in answers.datasets[0]


def test_a_supported_attribute_of_type_2_without_value_is_empty_with_ff00(appliance):
    """T-MWL-17."""
    appliance.schedule(item())
    answers = ask(appliance, query(PatientName="", Allergies="", ScheduledStationName=""))
    [answer] = answers.datasets
    assert answers.statuses == [PENDING, SUCCESS]
    assert answer["Allergies"].VM == 0
    assert answer.ScheduledProcedureStepSequence[0]["ScheduledStationName"].VM == 0


def test_a_supported_attribute_of_type_3_without_value_is_left_out_with_ff00(appliance):
    appliance.schedule(item())
    answers = ask(appliance, query(PatientName="", PatientAddress=""))
    assert answers.statuses == [PENDING, SUCCESS]
    assert "PatientAddress" not in answers.datasets[0]


@pytest.mark.parametrize(
    "keyword", ["RequestedProcedureCodeSequence", "ScheduledProtocolCodeSequence"]
)
def test_a_code_sequence_without_code_is_left_out(worklist, keyword):
    """Type 1C: with a value or not at all (PS3.4 K.2.2.1.2, PS3.5 7.4.2)."""
    worklist.put(item())
    [answer] = worklist.ask(query(PatientName="", **{keyword: [code("", "", "")]}))
    assert keyword not in answer
    assert all(keyword not in step for step in answer.get("ScheduledProcedureStepSequence", []))


@pytest.mark.parametrize("items", [[], [Dataset()]], ids=["no item", "an empty item"])
def test_an_empty_step_sequence_asks_for_the_whole_item(worklist, items):
    """T-MWL-15."""
    [stored] = worklist.put(item(PreMedication="Diazepam 5 mg"))
    ds = query(PatientName="")
    ds.ScheduledProcedureStepSequence = items
    [answer] = worklist.ask(ds)
    [step] = answer.ScheduledProcedureStepSequence
    assert {*step.keys()} == {Tag(tag) for tag in stored.items(STEP_SEQUENCE)[0]}
    assert step.PreMedication == "Diazepam 5 mg"


def test_the_study_instance_uid_stays_over_a_restart(run_appliance):
    """T-MWL-28."""
    running = run_appliance()
    running.schedule(item())
    uids = [ask(running, query(StudyInstanceUID="")).datasets[0].StudyInstanceUID] * 2
    assert ask(running, query(StudyInstanceUID="")).datasets[0].StudyInstanceUID == uids[0]
    running.stop()
    assert ask(run_appliance(), query(StudyInstanceUID="")).datasets[0].StudyInstanceUID == uids[1]


# Matching of names, identifiers and codes. Each table says which key finds what.

PEOPLE = (
    "Smith^John",
    "Smyth^Jane",
    "Miller^Anna Maria",
    "Müller^Jürgen",
    "O'Brien^Mary-Ann",
    "Großmann^Eva",
    "Silva^Victor",
    "Sun^YuQing=孙^玉清",
    "Yamada^Tarou=山田^太郎=やまだ^たろう",
)


def by_name(worklist, table):
    """What each key of a table finds among PEOPLE."""
    worklist.put(*map(item, PEOPLE))
    asking = {"SpecificCharacterSet": "ISO_IR 192"}
    return {key: worklist.names(**asking, PatientName=key) for key in table}


def test_wildcards_in_a_name(worklist):
    """T-MWL-07."""
    table = {
        "SMITH*": ["Smith^John"],
        "S?ITH^J*": ["Smith^John"],
        "SM?TH^J*": ["Smith^John", "Smyth^Jane"],
        "SM??TH*": [],
        "Smith^Joh?": ["Smith^John"],
        "Smith^John?": [],
        "*^Victor": ["Silva^Victor"],
        "*va^*": ["Großmann^Eva", "Silva^Victor"],
        "S*^Yu*": ["Sun^YuQing=孙^玉清"],
    }
    assert by_name(worklist, table) == table


def test_case_does_not_matter_in_a_name(worklist):
    """T-MWL-08."""
    keys = ["smith^john", "SMITH^JOHN", "Smith^John", "sMiTh^*"]
    assert by_name(worklist, keys) == {key: ["Smith^John"] for key in keys}


def test_a_name_is_found_by_each_of_its_groups(worklist):
    """T-MWL-08."""
    found = ["Yamada^Tarou=山田^太郎=やまだ^たろう"]
    table = {
        "山田*": found,
        "Yamada^Tarou": found,
        "やまだ^たろう": found,
        "山田^太郎": found,
        "山?^太*": found,
        "=山田*": found,
        "Yamada*=山田*": found,
        "*=山田^太郎": found,
        "==やまだ*": found,
        "Yamada*=田中*": [],
        "=Yamada*": [],
        "山田*=Yamada*": [],
        "太郎": [],
    }
    assert by_name(worklist, table) == table


def test_a_name_is_found_by_its_own_value(worklist):
    assert by_name(worklist, PEOPLE) == {name: [name] for name in PEOPLE}


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("Smith^John^^^", "Smith^John"),
        ("Smith^John ", "Smith^John"),
        ("Smith^*^*^*^*", "Smith^John"),
        ("Smith^*^^^", "Smith^John"),
        ("Smith^John=", "Smith^John"),
        ("Miller^Anna*", "Miller^Anna Maria"),
        ("*Maria", "Miller^Anna Maria"),
        ("O?Brien^*Ann", "O'Brien^Mary-Ann"),
        ("MÜLLER^JÜRGEN", "Müller^Jürgen"),
        ("M?ller^J?rgen", "Müller^Jürgen"),
        ("GROSSMANN*", "Großmann^Eva"),
        ("SUN^YUQING", "Sun^YuQing=孙^玉清"),
        ("Sun^Yu Qing", "Sun^YuQing=孙^玉清"),
        ("*^YUQING", "Sun^YuQing=孙^玉清"),
        ("*yu*", "Sun^YuQing=孙^玉清"),
    ],
)
def test_a_name_is_found_however_it_is_written(ctx, key, wanted):
    put(ctx, *map(item, PEOPLE))
    ds = query(SpecificCharacterSet="ISO_IR 192", PatientName=key)
    assert [str(answer.PatientName) for answer in find(ctx, ds)] == [wanted]


@pytest.mark.parametrize(
    "key", ["Smith", "ith*", "Smith^Johnny", "Jo*", "S.ith*", "Smith^J[o]hn", "%"]
)
def test_a_name_that_is_not_meant_is_not_found(ctx, key):
    put(ctx, *map(item, PEOPLE))
    assert find(ctx, query(PatientName=key)) == []


def test_an_empty_key_and_a_lone_asterisk_match_everything(worklist):
    """T-MWL-09."""
    worklist.put(item(PatientID="1201"), item(PatientID="3400"))
    for key in ("", "*", "**"):
        assert sorted(worklist.values("PatientID", PatientID=key)) == ["1201", "3400"]


def test_a_patient_id_is_matched_whole_or_by_wildcards(worklist):
    """T-MWL-09."""
    worklist.put(item(PatientID="1201"), item(PatientID="1255"), item(PatientID="P7a"))
    table = {
        "12*": ["1201", "1255"],
        "12?1": ["1201"],
        "*5": ["1255"],
        "1201": ["1201"],
        " 1201 ": ["1201"],
        "120": [],
        "12.1": [],
        "P7a": ["P7a"],
        "p7a": [],
        "p7?": [],
    }
    assert {key: sorted(worklist.values("PatientID", PatientID=key)) for key in table} == table


def test_a_patient_id_with_an_asterisk_in_it_is_found(ctx):
    put(ctx, item(PatientID="TMP*7"), item(PatientID="TMP77"))
    assert len(find(ctx, query(PatientID="TMP*7"))) == 2


def test_a_step_is_found_by_any_of_its_stations_and_returned_with_all(worklist):
    """T-MWL-05."""
    worklist.put(item(ScheduledStationAETitle="CT1\\CT2"), item(ScheduledStationAETitle="MR1"))
    for key in ("CT1", "CT2", " CT2 "):
        [answer] = worklist.ask(query(ScheduledStationAETitle=key))
        [step] = answer.ScheduledProcedureStepSequence
        assert step.ScheduledStationAETitle == ["CT1", "CT2"]


def test_another_station_is_not_found(worklist):
    """T-MWL-05."""
    worklist.put(item(ScheduledStationAETitle="CT1\\CT2"))
    for key in ("CT", "ct1", "CT12", "CT1CT2"):
        assert worklist.ask(query(ScheduledStationAETitle=key)) == []


def test_the_modality_is_matched_with_its_case(worklist):
    """T-MWL-06."""
    worklist.put(item(AccessionNumber="A1"), item(AccessionNumber="A2", Modality="US"))
    table = {"CT": ["A1"], "ct": [], "C": [], "C?": ["A1"]}
    assert {key: worklist.accessions(Modality=key) for key in table} == table


def test_a_step_is_found_by_its_performing_physician_if_it_has_one(worklist):
    """T-MWL-14."""
    worklist.put(
        item(AccessionNumber="A1"),
        item(AccessionNumber="A2", ScheduledPerformingPhysicianName="Adams^Ruth"),
        item(AccessionNumber="A3", ScheduledPerformingPhysicianName="Baker^Tom"),
    )
    table = {
        "": ["A1", "A2", "A3"],
        "*": ["A1", "A2", "A3"],
        "A*": ["A2"],
        "adams^ruth": ["A2"],
        "?*": ["A2", "A3"],
        "Clark*": [],
    }
    told = {key: worklist.accessions(ScheduledPerformingPhysicianName=key) for key in table}
    assert told == table


def coded(**texts):
    """An item with two procedure codes, A of LAKE and B of SHORE."""
    found = item(**texts)
    codes = [code_json("A", "99LAKE", "Chest"), code_json("B", "99SHORE", "Abdomen")]
    [step] = found["ScheduledProcedureStepSequence"]["Value"]
    step["ScheduledProtocolCodeSequence"] = {"vr": "SQ", "Value": codes}
    return found


def test_all_keys_of_an_item_hold_in_one_item(worklist):
    """T-MWL-16."""
    worklist.put(coded(AccessionNumber="A1"))
    table = {
        ("A", "99LAKE"): ["A1"],
        ("B", "99SHORE"): ["A1"],
        ("A", "99SHORE"): [],
        ("B", "99LAKE"): [],
        ("A", ""): ["A1"],
    }
    told = {key: worklist.accessions(ScheduledProtocolCodeSequence=[code(*key)]) for key in table}
    assert told == table


def test_of_a_code_sequence_the_item_that_matches_is_answered(worklist):
    """T-MWL-16."""
    worklist.put(coded())
    [answer] = worklist.ask(query(ScheduledProtocolCodeSequence=[code("B", "", "")]))
    [found] = answer.ScheduledProcedureStepSequence[0].ScheduledProtocolCodeSequence
    assert found == code("B", "99SHORE", "Abdomen")


def test_of_a_code_sequence_all_items_are_answered_to_an_empty_key(worklist):
    worklist.put(coded())
    [answer] = worklist.ask(query(ScheduledProtocolCodeSequence=[code("", "")]))
    found = answer.ScheduledProcedureStepSequence[0].ScheduledProtocolCodeSequence
    assert list(found) == [code("A", "99LAKE"), code("B", "99SHORE")]


def test_a_list_of_uids_finds_each(worklist):
    """T-MWL-18."""
    worklist.put(*(item(AccessionNumber=f"A{n}", StudyInstanceUID=f"2.25.7{n}") for n in (1, 2, 3)))
    table = {
        ("2.25.71", "2.25.72"): ["A1", "A2"],
        ("2.25.71",): ["A1"],
        ("2.25.7",): [],
        ("2.25.9", "2.25.72"): ["A2"],
    }
    assert {key: worklist.accessions(StudyInstanceUID=list(key)) for key in table} == table


def test_two_quotation_marks_do_not_find_a_step_without_accession_number(appliance):
    """T-MWL-30."""
    [stored] = appliance.schedule(item())
    emptied = encode_text("AccessionNumber", "")
    appliance.write(reschedule, appliance.context(), *ids_of(stored), emptied)
    assert ask(appliance, query(AccessionNumber='""')).statuses == [SUCCESS]
    [answer] = ask(appliance, query(AccessionNumber="")).datasets
    assert answer["AccessionNumber"].VM == 0


def test_several_values_in_a_key_that_is_no_uid_are_refused(worklist):
    """T-MWL-31."""
    worklist.put(item())
    table = {
        "PatientID": ["1201", "3400"],
        "AccessionNumber": ["A1", "A2"],
        "PatientName": ["Smith^John", "Li^Na"],
        "PatientSex": ["M", "F"],
        "Modality": ["CT", "MR"],
        "ScheduledStationAETitle": ["CT1", "CT2"],
        "ScheduledProcedureStepStartDate": ["20260705", "20260706"],
        "ScheduledProcedureStepStartTime": ["0930", "1000"],
        "ScheduledProcedureStepDescription": ["CT chest", "CT head"],
    }
    told = {keyword: worklist.status(query(**{keyword: table[keyword]})) for keyword in table}
    assert told == dict.fromkeys(table, DOES_NOT_MATCH)


@pytest.mark.parametrize(("key", "wanted"), [("62.5", ["A1"]), ("62.50", ["A1"]), ("62", [])])
def test_a_number_is_matched_by_its_value(ctx, key, wanted):
    put(ctx, item(AccessionNumber="A1", PatientWeight="62.5"), item(AccessionNumber="A2"))
    answers = find(ctx, query(AccessionNumber="", PatientWeight=key))
    assert [answer.AccessionNumber for answer in answers] == wanted


@pytest.mark.parametrize(("key", "wanted"), [(4, ["A1"]), (1, ["A2"]), (2, [])])
def test_a_pregnancy_status_is_matched(ctx, key, wanted):
    put(
        ctx,
        item(AccessionNumber="A1", PregnancyStatus=4),
        item(AccessionNumber="A2", PregnancyStatus=1),
    )
    answers = find(ctx, query(AccessionNumber="", PregnancyStatus=key))
    assert [answer.AccessionNumber for answer in answers] == wanted


# Dates and times.

STARTS = (
    "20260704 235959",
    "20260705 000000",
    "20260706 120000",
    "20260707 235959",
    "20260708 0000",
)
START_DATE, START_TIME = "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime"


def at(*starts):
    """An item for each start, its accession number is that of its place."""
    return [
        item(
            AccessionNumber=str(number),
            **dict(zip((START_DATE, START_TIME), start.split(), strict=True)),
        )
        for number, start in enumerate(starts)
    ]


def by_start(worklist, starts, table):
    """Which of some starts each key of a table finds; a key is a date, a time, or both."""
    worklist.put(*at(*starts))
    keys = {key: dict(zip((START_DATE, START_TIME), key.split("|"), strict=True)) for key in table}
    return {key: "".join(worklist.accessions(**asking)) for key, asking in keys.items()}


def test_a_date_range_includes_its_ends(worklist):
    """T-MWL-10."""
    table = {
        "20260705-20260707|": "123",
        "-20260705|": "01",
        "20260707-|": "34",
        "20260706|": "2",
        "20260705-20260705|": "1",
        "20260709-|": "",
        "20260707-20260705|": "",
        "2026.07.06|": "2",
        " 20260706 |": "2",
        "20260705 - 20260707|": "123",
    }
    assert by_start(worklist, STARTS, table) == table


def test_a_date_range_and_a_time_range_of_one_form_are_one_interval(worklist):
    """T-MWL-11."""
    starts = (
        "20260705 095959",
        "20260705 1000",
        "20260706 0300",
        "20260706 2300",
        "20260707 1800",
        "20260707 1801",
    )
    table = {
        "20260705-20260707|1000-1800": "1234",  # one interval of 56 hours
        "20260705-|1000-": "12345",
        "-20260707|-1800": "01234",
        "20260705-20260707|2200-0200": "23",
        "20260706-20260707|2200-0200": "3",  # a night
        "20260705-20260705|1000-1800": "1",
    }
    assert by_start(worklist, starts, table) == table


def test_a_date_and_a_time_of_other_forms_hold_each_for_itself(worklist):
    """T-MWL-11, T-MWL-12."""
    starts = ("20260705 0959", "20260705 1000", "20260706 0300", "20260706 2300", "20260707 1800")
    table = {
        "20260705|1000-1800": "1",
        "20260705-20260707|1000-": "134",
        "20260705-20260707|2300": "3",
        "20260705-|-0300": "2",
        "20260706|0300": "2",
    }
    assert by_start(worklist, starts, table) == table


def test_a_time_range_on_one_day(worklist):
    """T-MWL-12, T-MWL-29: an imprecise end covers its whole minute, 180030 is within 1800."""
    times = ("095959", "100000", "1330", "180000", "180030", "180100")
    table = {
        "20260705|1000-1800": "1234",
        "20260705|100000-180000": "123",
        "20260705|1000-18": "12345",
        "20260705|-0959": "0",
        "20260705|1801-": "5",
        "20260705|2200-0200": "",
    }
    assert by_start(worklist, [f"20260705 {time}" for time in times], table) == table


def test_an_imprecise_end_of_a_range_covers_its_whole_unit(worklist):
    """T-MWL-29."""
    times = ("095959", "100000", "105959.999999", "110000")
    table = {"|-10": "012", "|-1059": "012", "|-105959": "012", "|11-": "3", "|10": "12"}
    assert by_start(worklist, [f"20260705 {time}" for time in times], table) == table


def test_a_time_is_matched_by_its_meaning(worklist):
    """T-MWL-13."""
    same = ("2230", "223000", "223000.0", "223000.000000")
    table = {f"|{key}": "0123" for key in (*same, "2230-2230", "22", "2230-", "-2230")}
    table |= dict.fromkeys(("|2229", "|2231", "|223001", "|223000.000001"), "")
    assert by_start(worklist, [f"20260705 {time}" for time in same], table) == table


@pytest.mark.parametrize(
    ("key", "found"), [("19780101-19781231", True), ("-1977", None), ("1979-", None)]
)
def test_a_birth_date_range(ctx, key, found):
    put(ctx, item(PatientBirthDate="19780312"))
    ds = query(PatientBirthDate=key)
    if found is None:
        assert status_of_core(ctx, ds) == DOES_NOT_MATCH
    else:
        assert len(find(ctx, ds)) == 1


# Bad input: queries.

BAD_DATES = (
    "20260231",
    "2026-07-05",
    "20260705,",
    "2026070",
    "20260705-2026070",
    "20260705-20260706-20260707",
    "20260705103000",
    "2026*",
    "-",
    "today",
)
BAD_TIMES = ("2530", "1061", "10000", "09.30", "1000-25", "-", "10?", "noon")


def test_a_key_that_is_no_date_or_time_is_refused_and_never_matches_all(worklist):
    worklist.put(item())
    keys = [(START_DATE, key) for key in BAD_DATES]
    keys += [(START_TIME, key) for key in BAD_TIMES]
    keys += [("PatientBirthDate", "19781301")]
    told = {(keyword, key): worklist.status(query(**{keyword: key})) for keyword, key in keys}
    assert told == dict.fromkeys(keys, DOES_NOT_MATCH)


def test_a_refused_date_is_told_with_its_tag_and_a_comment(appliance):
    appliance.schedule(item())
    answers = ask(appliance, query(ScheduledProcedureStepStartDate="20260231"))
    [command] = answers.commands
    assert answers.raw == []
    assert command.OffendingElement == Tag("ScheduledProcedureStepStartDate")
    assert "20260231" in command.ErrorComment
    assert len(command.ErrorComment) <= 64


def test_two_items_in_the_step_sequence_are_refused(worklist):
    """T-MWL-20."""
    worklist.put(item())
    ds = query(Modality="CT")
    ds.ScheduledProcedureStepSequence.append(query(Modality="MR").ScheduledProcedureStepSequence[0])
    assert worklist.status(ds) == DOES_NOT_MATCH


def test_two_items_in_the_step_sequence_are_refused_with_a_comment(appliance):
    """T-MWL-20."""
    ds = query(Modality="CT")
    ds.ScheduledProcedureStepSequence.append(Dataset())
    [command] = ask(appliance, ds).commands
    assert command.OffendingElement == Tag("ScheduledProcedureStepSequence")
    assert "more than one" in command.ErrorComment


def test_two_items_in_a_code_sequence_are_refused(worklist):
    worklist.put(coded())
    ds = query(ScheduledProtocolCodeSequence=[code("A"), code("B")])
    assert worklist.status(ds) == DOES_NOT_MATCH


def test_a_bad_key_leaves_the_association_as_it_was(appliance):
    appliance.schedule(item())
    with associated(appliance.port) as ask_one:
        assert ask_one(query(ScheduledProcedureStepStartDate="now")).statuses == [DOES_NOT_MATCH]
        assert ask_one(query(PatientName="")).statuses == [PENDING, SUCCESS]


def test_a_query_level_is_passed_over_and_the_keys_are_matched(worklist):
    worklist.put(item())
    for level in ("WORKLIST", "STUDY"):
        [answer] = worklist.ask(query(QueryRetrieveLevel=level, PatientName="Wang*"))
        assert "QueryRetrieveLevel" not in answer
        assert worklist.ask(query(QueryRetrieveLevel=level, PatientName="Nobody*")) == []


def test_a_step_key_at_the_top_level_is_not_matched(worklist):
    worklist.put(item())
    ds = query(PatientName="")
    for ds.Modality in ("CT", "MR"):
        [answer] = worklist.ask(ds)
        assert "Modality" not in answer


def test_private_and_unknown_keys_are_tolerated_with_ff01(appliance):
    appliance.schedule(item())
    ds = query(PatientName="Wang*")
    ds.add_new(0x00091001, "LO", "ON")
    ds.add_new(0x00180FFF, "LO", "?")
    answers = ask(appliance, ds)
    assert answers.statuses == [PENDING_UNSUPPORTED, SUCCESS]
    assert {element.keyword for element in answers.datasets[0]} <= {
        "SpecificCharacterSet",
        "PatientName",
    }


def test_a_key_longer_than_its_vr_is_no_reason_to_refuse(worklist):
    worklist.put(item(AccessionNumber="A1"))
    assert worklist.accessions(AccessionNumber="A" + "?" * 20 + "*") == []
    assert worklist.accessions(AccessionNumber="*" * 20 + "A1") == ["A1"]


def test_a_query_without_identifier_is_refused(run_appliance):
    appliance = run_appliance("[dicom]\nae_title = BENCH")
    appliance.schedule(item())
    request = wire.associate(wire.MODALITY_WORKLIST, calling="CT1")
    command = {0x0002: wire.MODALITY_WORKLIST, 0x0100: 0x0020, 0x0110: 1, 0x0700: 0}
    with wire.Association(appliance.port, request) as association:
        assert association.ask(wire.message(wire.MODALITY_WORKLIST, command)) == (0, DOES_NOT_MATCH)


@pytest.mark.parametrize("data", [b"\x10\x00\x10\x00PN\xff\x00Wang", b"\x10\x00\x10", b"junk" * 9])
def test_a_damaged_identifier_is_refused_and_the_association_goes_on(run_appliance, data):
    appliance = run_appliance("[dicom]\nae_title = BENCH")
    appliance.schedule(item())
    request = wire.associate(wire.MODALITY_WORKLIST, calling="CT1")
    with wire.Association(appliance.port, request) as association:
        matches, status = association.ask(wire.c_find(data))
        assert (matches, status & 0xF000) in ((0, 0xA000), (0, 0xC000))
        assert association.ask(wire.c_find(wire.element(0x00100010))) == (1, SUCCESS)


# States.


def test_a_status_key_filters(worklist):
    """T-MWL-25."""
    worklist.put(
        item(AccessionNumber="A1"),
        item(AccessionNumber="A2", ScheduledProcedureStepStatus="STARTED"),
    )
    table = {"STARTED": ["A2"], "SCHEDULED": ["A1"], "ARRIVED": [], "S*": ["A1", "A2"]}
    told = {key: worklist.accessions(ScheduledProcedureStepStatus=key) for key in table}
    assert told == table


def in_all_states():
    """An item in each state, its accession number is the state's name."""
    return [item(AccessionNumber=s, ScheduledProcedureStepStatus=s) for s in STEP_STATES]


def test_what_has_ended_is_hidden_from_modalities(worklist):
    """T-MWL-25; field: an empty status key makes hidden states show."""
    worklist.put(*in_all_states())
    for keys in ({}, {"ScheduledProcedureStepStatus": ""}, {"ScheduledProcedureStepStatus": "*"}):
        assert worklist.accessions(**keys) == ["ARRIVED", "READY", "SCHEDULED", "STARTED"]


def test_a_hidden_state_is_hidden_from_a_key_that_names_it(worklist):
    worklist.put(*in_all_states())
    for state in ("COMPLETED", "DISCONTINUED", "CANCELED", "NO SHOW", "DEPARTED"):
        assert worklist.accessions(ScheduledProcedureStepStatus=state) == []


def test_which_states_are_hidden_is_a_setting(run_appliance):
    """T-MWL-25."""
    appliance = run_appliance("[dicom]\nhide_steps = CANCELED, NO SHOW")
    appliance.schedule(*in_all_states())
    answers = ask(appliance, query(AccessionNumber="")).datasets
    shown = {answer.AccessionNumber for answer in answers}
    assert shown == {*STEP_STATES} - {"CANCELED", "NO SHOW"}


# What a device is shown of the worklist.


def test_a_device_that_sees_its_own_steps_sees_no_others_whatever_it_asks(run_appliance):
    """Field: devices that ask without their AE title get everyone's list."""
    profile = "[device CT room]\nae_title = CT1, CT2\nown_steps_only = yes"
    appliance = run_appliance(profile)
    stations = ("CT1", "CT2", "US1", "US1\\CT2")
    appliance.schedule(*(item(AccessionNumber=s[:3], ScheduledStationAETitle=s) for s in stations))
    table = {"": 3, "*": 3, "CT?": 3, "CT1": 1, "CT2": 2, "US1": 1}
    told = {key: len(ask(appliance, query(ScheduledStationAETitle=key)).raw) for key in table}
    assert told == table


@pytest.mark.parametrize(
    ("profile", "wanted"),
    [
        ("days_back = 0\ndays_ahead = 0", "2"),
        ("days_back = 1", "1234"),
        ("days_ahead = 1", "0123"),
    ],
)
def test_a_device_is_shown_the_days_of_its_profile(run_appliance, monkeypatch, profile, wanted):
    at_time(monkeypatch, [NOON])
    appliance = run_appliance(f"[device CT room]\nae_title = CT1\n{profile}")
    appliance.schedule(*at(*(f"2026070{day} 0930" for day in (3, 4, 5, 6, 7))))
    for asking in (
        query(AccessionNumber=""),
        query(AccessionNumber="", **{START_DATE: "20260101-"}),
    ):
        answers = ask(appliance, asking).datasets
        assert "".join(sorted(answer.AccessionNumber for answer in answers)) == wanted


def test_the_limit_of_a_device_goes_before_that_of_all(run_appliance):
    """T-MWL-21."""
    appliance = run_appliance("[device CT room]\nae_title = CT1\nanswer_limit = 2")
    appliance.schedule(*many(3))
    assert ask(appliance, query(PatientName="")).statuses == [PENDING, PENDING, OUT_OF_RESOURCES]
    assert ask(appliance, query(PatientName=""), calling="US1").statuses[-1] == SUCCESS


# Slices, the limit, C-CANCEL.


def many(count):
    """So many items, a minute apart, with their numbers as names."""
    return [
        item(
            f"Patient^{number:04}",
            ScheduledProcedureStepStartTime=f"{number // 60:02}{number % 60:02}",
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("count", [0, 249, 250, 251, 501])
def test_no_answer_is_lost_or_told_twice_between_slices(ctx, count):
    put(ctx, *many(count))
    slices = list(find_worklist(ctx, search_for(query(PatientName=""))))
    names = [str(decoded(data).PatientName) for answers in slices for data in answers]
    assert names == [f"Patient^{number:04}" for number in range(count)]
    assert max(map(len, slices), default=0) <= SLICE == 250


def test_answers_past_a_slice_reach_the_modality(appliance):
    appliance.write(put, appliance.context(), *many(251))
    for _ in range(2):  # the second time from what is kept
        answers = ask(appliance, query(PatientName=""))
        assert answers.statuses == [PENDING] * 251 + [SUCCESS]
        assert len({str(answer.PatientName) for answer in answers.datasets}) == 251


@pytest.mark.parametrize(("count", "last"), [(2, SUCCESS), (3, SUCCESS), (4, OUT_OF_RESOURCES)])
def test_past_the_limit_a_query_ends_with_a700(run_appliance, count, last):
    """T-MWL-21."""
    appliance = run_appliance("[dicom]\nanswer_limit = 3")
    appliance.schedule(*many(count))
    for _ in range(2):
        answers = ask(appliance, query(PatientName=""))
        assert answers.statuses == [PENDING] * min(count, 3) + [last]
    assert last == SUCCESS or "3" in answers.commands[-1].ErrorComment


@pytest.mark.parametrize(("limit", "refused"), [(251, True), (252, False), (250, True)])
def test_the_limit_holds_across_slices(ctx, limit, refused):
    """T-MWL-21."""
    put(ctx, *many(252))
    ctx.config.dicom.answer_limit = limit
    told = []
    try:
        for answers in find_worklist(ctx, search_for(query(PatientName=""))):
            told += answers
    except Refusal as refusal:
        assert refused
        assert refusal.status is Status.OUT_OF_RESOURCES
    assert len(told) == min(limit, 252)


def test_the_limit_counts_matches_not_steps_looked_at(ctx):
    """T-MWL-21."""
    put(ctx, *many(6), item("Wang^Fang", PreMedication="Diazepam"))
    ctx.config.dicom.answer_limit = 1
    assert len(find(ctx, query(PreMedication="Diaz*"))) == 1


def c_cancel(message_id):
    """A C-CANCEL of the query with that ID."""
    return wire.message(wire.MODALITY_WORKLIST, {0x0100: 0x0FFF, 0x0120: message_id})


@pytest.mark.parametrize(("message_id", "wanted"), [(1, (0, CANCELLED)), (7, (3, SUCCESS))])
def test_a_query_that_is_cancelled_at_once_ends_with_fe00(run_appliance, message_id, wanted):
    """T-MWL-19."""
    appliance = run_appliance("[dicom]\nae_title = BENCH")
    appliance.schedule(*many(3))
    request = wire.associate(wire.MODALITY_WORKLIST, calling="CT1")
    with wire.Association(appliance.port, request) as association:
        both = (*wire.c_find(wire.element(0x00100010)), *c_cancel(message_id))
        assert association.ask(both) == wanted
        assert association.ask(wire.c_find(wire.element(0x00100010))) == (3, SUCCESS)


def test_findscu_cancels_a_large_result(appliance):
    """T-MWL-19."""
    long = ("PatientComments", "ImagingServiceRequestComments", "RequestedProcedureComments")
    texts = dict.fromkeys(long, "Patient is claustrophobic. " * 300)
    appliance.write(
        put,
        appliance.context(),
        *(one | item(f"P^{n}", **texts) for n, one in enumerate(many(600))),
    )
    found = peers.run_findscu(
        appliance.port, "MINRIS", "CT1", ["PatientName", *long], options=["--cancel", "2"]
    )
    *pending, last = found.statuses
    assert last == CANCELLED
    assert 2 <= len(pending) < 600
    assert set(pending) == {PENDING}


# Extended negotiation and the time zone.


def negotiated(appliance, information):
    """What we answer to so many bytes of service class application information."""
    offered = SOPClassExtendedNegotiation()
    offered.sop_class_uid = MODALITY_WORKLIST
    offered.service_class_application_information = information
    items = [offered] if information else []
    with associated(appliance.port, ext_neg=items) as ask_one:
        return ask_one.association.acceptor.sop_class_extended


@pytest.mark.parametrize(
    ("offered", "accepted"),
    [
        (b"\1\1\1", [b"\1\1\0"]),
        (b"\1\1\1\1", [b"\1\1\0", b"\1\1\0\0"]),
        (b"\1\1\0\0", [b"\1\1\0", b"\1\1\0\0"]),
    ],
)
def test_fuzzy_matching_and_timezone_adjustment_are_declined(appliance, offered, accepted):
    """T-MWL-26."""
    assert negotiated(appliance, offered)[MODALITY_WORKLIST] in accepted


def test_without_extended_negotiation_there_is_none_in_the_answer(appliance):
    """T-MWL-26."""
    assert negotiated(appliance, b"") == {}


def test_of_seven_bytes_offered_no_more_than_four_are_answered(appliance):
    """T-MWL-32."""
    answer = negotiated(appliance, b"\1\1\1\1\1\1\1")[MODALITY_WORKLIST]
    assert answer in (b"\1\1\0", b"\1\1\0\0")


@pytest.mark.parametrize(
    ("zone", "offset"),
    [("UTC", "+0000"), ("Asia/Shanghai", "+0800"), ("America/New_York", "-0400")],
)
def test_the_timezone_offset_has_a_value_where_it_is_asked_for(
    run_appliance, zone, offset, monkeypatch
):
    """T-MWL-27."""
    at_time(monkeypatch, [NOON])
    appliance = run_appliance(f"[clinic]\ntimezone = {zone}")
    appliance.schedule(item())
    for syntax in (EXPLICIT, IMPLICIT):
        ds = query(PatientName="", TimezoneOffsetFromUTC="")
        [answer] = ask(appliance, ds, syntax=syntax).datasets
        assert answer.TimezoneOffsetFromUTC == offset


def test_the_timezone_offset_is_absent_where_it_is_not_asked_for(appliance):
    """T-MWL-27."""
    appliance.schedule(item())
    assert "TimezoneOffsetFromUTC" not in ask(appliance, query(PatientName="")).datasets[0]


def test_a_timezone_offset_in_a_query_is_not_matched_and_shifts_no_time(worklist):
    """T-MWL-27, PS3.4 K.2.2.2."""
    worklist.put(item(ScheduledProcedureStepStartTime="0930"))
    keys = {"TimezoneOffsetFromUTC": "+0800", "ScheduledProcedureStepStartTime": "0900-1000"}
    assert len(worklist.ask(query(**keys))) == 1


# Character sets.

LATIN = "Müller^Jürgen"
CHINESE = "Wang^XiaoDong=王^小东"


def test_a_latin_1_query_finds_a_name_stored_in_utf_8(appliance):
    """T-MWL-22."""
    appliance.schedule(item(LATIN), item())
    ds = query(SpecificCharacterSet="ISO_IR 100", PatientName="Müller*")
    [answer] = ask(appliance, ds).datasets
    assert answer.SpecificCharacterSet == "ISO_IR 100"
    assert answer.PatientName == LATIN


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT], ids=["explicit", "implicit"])
def test_an_answer_is_in_the_set_of_the_device_or_the_query_or_in_utf_8(appliance, syntax):
    """T-MWL-23."""
    whole, latin = "Lü^Jürgen=吕^岩", "Lü^Jürgen"
    table = {
        ("CT1", None): ("ISO_IR 192", whole),
        ("CT1", ""): ("ISO_IR 192", whole),
        ("CT1", "ISO_IR 192"): ("ISO_IR 192", whole),
        ("CT1", "GB18030"): ("GB18030", whole),
        ("CT1", "ISO_IR 100"): ("ISO_IR 100", latin),
        ("US1", None): ("GB18030", whole),
        ("US1", "ISO_IR 192"): ("GB18030", whole),
        ("DX1", None): ("ISO_IR 100", latin),
        ("DX1", "ISO_IR 192"): ("ISO_IR 100", latin),
        ("DX1", "GB18030"): ("ISO_IR 100", latin),
    }
    appliance.schedule(item(whole))
    told = {}
    for calling, asked in table:
        ds = query(PatientName="")
        if asked is not None:
            ds.SpecificCharacterSet = asked
        answers = ask(appliance, ds, calling=calling, syntax=syntax)
        [answer], [raw] = answers.datasets, answers.raw
        told[calling, asked] = str(answer.SpecificCharacterSet), str(answer.PatientName)
        assert b"?" not in raw
    assert told == table


@pytest.mark.parametrize("fallback", ["ISO_IR 192", "GB18030"])
def test_what_the_set_of_a_device_cannot_carry_is_answered_in_its_fallback(run_appliance, fallback):
    """T-MWL-23."""
    setting = "" if fallback == "ISO_IR 192" else f"fallback_character_set = {fallback}"
    appliance = run_appliance(f"[device X-ray]\nae_title = DX1\n{setting}")
    whole = "Wang^XiaoDong=王^小东"
    items = [
        {"PatientName": "王^小东"},
        {"PatientName": whole, "RequestedProcedureDescription": "胸部CT平扫"},
        {"PatientName": "Li^Na", "Allergies": "青霉素"},
        {"PatientName": "Li^Wei", "ScheduledProcedureStepDescription": "胸部CT平扫"},
    ]
    for number, texts in enumerate(items):
        texts["PatientID"] = f"P{number}"
        name = texts["PatientName"]
        appliance.schedule(item(name, **{k: v for k, v in texts.items() if k != "PatientName"}))
        asking = query(**(dict.fromkeys(texts, "") | {"PatientID": f"P{number}"}))
        [answer] = ask(appliance, asking, calling="DX1").datasets
        [step] = answer.get("ScheduledProcedureStepSequence", [Dataset()])
        told = {k: str(step.get(k) if k in STEP_KEYWORDS else answer.get(k)) for k in texts}
        assert (answer.SpecificCharacterSet, told) == (fallback, texts)


def test_one_answer_in_the_fallback_set_leaves_the_others_in_the_devices(appliance):
    """T-MWL-23."""
    appliance.schedule(
        item("Müller^Jürgen"), item("王^小东", ScheduledProcedureStepStartTime="1000")
    )
    answers = ask(appliance, query(PatientName=""), calling="DX1").datasets
    assert [answer.SpecificCharacterSet for answer in answers] == ["ISO_IR 100", "ISO_IR 192"]


def test_a_character_with_a_backslash_byte_is_not_split(appliance):
    r"""T-MWL-24: 乗 is 81 5C in GB18030."""
    assert "乗".encode("gb18030").endswith(b"\\")
    appliance.schedule(item("Cheng^Jing=乗俓^一"), item())
    for calling, declared in (("CT1", "GB18030"), ("US1", None), ("US1", "GB18030")):
        for key in ("*=乗*", "=*乗俓*", "Cheng*"):
            ds = Dataset()
            if declared:
                ds.SpecificCharacterSet = declared
            ds.add_new("PatientName", "PN", key.encode("gb18030"))
            answers = ask(appliance, ds, calling=calling)
            assert answers.statuses == [PENDING, SUCCESS], (calling, declared, key)
            assert "乗俓^一".encode("gb18030") in answers.raw[0]


def test_the_character_set_is_told_whether_it_was_asked_for_or_not(appliance):
    """Field: umlauts come as ? where the answer does not name its set."""
    appliance.schedule(item(LATIN))
    for calling in ("CT1", "US1", "DX1"):
        for ds in (query(PatientName=""), query(PatientName="", SpecificCharacterSet="")):
            [answer] = ask(appliance, ds, calling=calling).datasets
            assert answer.SpecificCharacterSet in CHARACTER_SETS
            assert answer.PatientName == LATIN


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT], ids=["explicit", "implicit"])
def test_an_answer_in_ascii_alone_names_no_set_unless_it_is_asked_for(appliance, syntax):
    """Type 1C: where an extended or replacement set is used (PS3.4 Table K.6-1a)."""
    appliance.schedule(item("Smith^John"))
    keys = {"PatientName": "", "ScheduledProcedureStepDescription": ""}
    [asked] = ask(appliance, query(SpecificCharacterSet="", **keys), syntax=syntax).datasets
    assert asked.SpecificCharacterSet == "ISO_IR 192"
    [answer] = ask(appliance, query(**keys), syntax=syntax).datasets
    assert "SpecificCharacterSet" not in answer


@pytest.mark.parametrize("vr", [b"PN", b"CS", b"UI"])
def test_a_key_under_a_wrong_vr_has_the_set_of_its_answer_named(vr):
    """王^小东 is more than ASCII, whatever VR a modality gave its empty key."""
    key = ElementIndex(encode_element(0x00100010, vr, b""))
    stored = text_elements(PatientName="Wang^XiaoDong=王^小东")
    answer = Search(key, MWL_ATTRIBUTES).answer(bytes(stored))
    assert b"ISO_IR 192" in answer


NAMES_BY_SET = {
    "ISO_IR 192": (CHINESE, "Yamada^Tarou=山田^太郎=やまだ^たろう", "Lü^Jürgen=吕^岩"),
    "GB18030": (CHINESE, "Zhu^Rongji=朱^镕基", "Lü^Jürgen=吕^岩"),
    "ISO_IR 100": ("Müller^Jürgen", "Æsir^Þór"),
}


@pytest.mark.parametrize("charset", NAMES_BY_SET)
def test_names_are_stored_asked_for_and_returned_in_their_set(appliance, charset):
    """T-CS-01."""
    step = Dataset()
    step.ScheduledStationAETitle, step.Modality = "CT1", "CT"
    for name in NAMES_BY_SET[charset]:
        entry = query(SpecificCharacterSet=charset, PatientName=name)
        entry.ScheduledProcedureStepSequence = [step]
        appliance.write(import_now, appliance.context(), "entry.wl", encoded(entry))
    for name in NAMES_BY_SET[charset]:
        keys = [f"PatientName={name}"]
        found = peers.run_findscu(appliance.port, "MINRIS", "CT1", keys, character_set=charset)
        assert [str(answer.PatientName) for answer in found.datasets] == [name]
        assert found.datasets[0].SpecificCharacterSet == charset


@pytest.mark.parametrize("charset", ["ISO_IR 192", "GB18030"])
def test_findscu_finds_a_chinese_name_by_its_characters(appliance, charset):
    """T-CS-01."""
    appliance.schedule(item(), item("Wang^Fang=汪^芳"))
    found = peers.run_findscu(
        appliance.port, "MINRIS", "CT1", ["PatientName==王*"], character_set=charset
    )
    [answer] = found.datasets
    assert answer.SpecificCharacterSet == charset
    assert str(answer.PatientName) == "Wang^XiaoDong=王^小东"


# Attributes of Supplement 233.


def supplement_233():
    """A data set with the four sequences and all that is in them."""
    ds, gender, sex, name, pronouns = (Dataset() for _ in range(5))
    gender.GenderIdentityCodeSequence = [code("446141000124107", "SCT", "Female gender identity")]
    gender.GenderIdentityComment = "As told at reception"
    gender.EffectiveStartDateTime = "20240101"
    gender.EffectiveStopDateTime = "20301231"
    sex.SexParametersForClinicalUseCategoryCodeSequence = [code("131232", "DCM", "Specified")]
    sex.SexParametersForClinicalUseCategoryComment = "Dose for female pelvis"
    sex.SexParametersForClinicalUseCategoryReference = "https://ris.example/spcu/77"
    name.NameToUse = "Xiao Dong"
    name.NameToUseComment = "At the desk and in the room"
    pronouns.PronounCodeSequence = [code("LA29519-8", "LN", "she/her/her/hers/herself")]
    pronouns.PronounComment = "Told by the patient"
    ds.PersonNamesToUseSequence = [name]
    ds.ThirdPersonPronounsSequence = [pronouns]
    ds.GenderIdentitySequence = [gender]
    ds.SexParametersForClinicalUseCategorySequence = [sex]
    return ds


SUPPLEMENT_233 = (
    "PersonNamesToUseSequence",
    "ThirdPersonPronounsSequence",
    "GenderIdentitySequence",
    "SexParametersForClinicalUseCategorySequence",
)


def test_sequences_of_supplement_233_are_returned_where_they_are_stored(worklist):
    """T-MWL-33."""
    worklist.put(item("Wang^Fang", AccessionNumber="A1") | supplement_233().to_json_dict(), item())
    ds = query(AccessionNumber="", **{keyword: [] for keyword in SUPPLEMENT_233})
    told = {answer.AccessionNumber: answer for answer in worklist.ask(ds)}
    for answer in told.values():
        answer.pop("SpecificCharacterSet", None)
        answer.pop("AccessionNumber")
    assert told.pop("A1") == supplement_233()
    assert [list(answer) for answer in told.values()] == [[]]


def test_sequences_of_supplement_233_are_supported(appliance):
    """T-MWL-33."""
    appliance.schedule(item())
    ds = query(**{keyword: [] for keyword in SUPPLEMENT_233})
    assert ask(appliance, ds).statuses == [PENDING, SUCCESS]


def test_attributes_deep_in_a_sequence_that_is_kept_whole_are_supported(appliance):
    """T-MWL-33, T-MWL-17."""
    appliance.schedule(item("Wang^Fang") | supplement_233().to_json_dict())
    gender = Dataset()
    gender.GenderIdentityCodeSequence = [code("", "", "")]
    answers = ask(appliance, query(GenderIdentitySequence=[gender]))
    assert answers.statuses == [PENDING, SUCCESS]
    [told] = answers.datasets[0].GenderIdentitySequence
    assert told.GenderIdentityCodeSequence[0].CodeMeaning == "Female gender identity"


def vrs(ds):
    """The VR of each element of a data set by keyword, nested ones too."""
    found = []
    ds.walk(lambda _, element: found.append((element.keyword, element.VR)))
    return found


@pytest.mark.parametrize("preamble", [False, True], ids=["bare", "with file meta"])
def test_what_came_in_implicit_vr_is_returned_with_the_right_vrs(appliance, preamble):
    """T-GEN-11."""
    step = Dataset()
    step.ScheduledStationAETitle, step.Modality = "CT1", "CT"
    entry = supplement_233()
    entry.PatientName, entry.ScheduledProcedureStepSequence = "Wang^Fang", [step]
    content = encoded(entry, explicit=False)
    if preamble:
        content = file_of(entry)
    appliance.write(import_now, appliance.context(), "a.wl", content)
    ds = query(**{keyword: [] for keyword in SUPPLEMENT_233})
    [answer] = ask(appliance, ds).datasets
    answer.pop("SpecificCharacterSet", None)
    assert vrs(answer) == vrs(supplement_233())
    assert answer == supplement_233()


def file_of(ds):
    """A DICOM file in Implicit VR Little Endian."""
    ds = copy.deepcopy(ds)
    ds.SOPClassUID, ds.SOPInstanceUID = MODALITY_WORKLIST, "2.25.77"
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = IMPLICIT
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


# Byte identity with pydicom.


def rich_entry(charset="ISO_IR 192"):
    """A worklist entry with many kinds of values, complete, so that nothing is made for it."""
    step = Dataset()
    step.Modality = "CT"
    step.RequestedContrastAgent = "Iohexol 300"
    step.ScheduledStationAETitle = ["CT1", "CT2"]
    step.ScheduledProcedureStepStartDate = "20260705"
    step.ScheduledProcedureStepStartTime = "093000"
    step.ScheduledPerformingPhysicianName = "Zhao^Min=赵^敏"
    step.ScheduledProcedureStepDescription = "胸部CT平扫"
    protocol = code("CT01", "99LAKE", "胸部")
    context = Dataset()
    context.ValueType = "NUMERIC"
    context.ConceptNameCodeSequence = [code("122093", "DCM", "Dose")]
    context.NumericValue = "12.5"
    protocol.ProtocolContextSequence = [context]
    step.ScheduledProtocolCodeSequence = [protocol, code("CT02", "99LAKE", "Abdomen")]
    step.ScheduledProcedureStepID = "S1"
    step.ScheduledStationName = "CT room"
    step.ScheduledProcedureStepLocation = "2F"
    step.PreMedication = None
    step.ScheduledProcedureStepStatus = "SCHEDULED"
    step.CommentsOnTheScheduledProcedureStep = "先到护士站\r\nIV line in the left arm"
    ds = Dataset()
    ds.SpecificCharacterSet = charset
    ds.AccessionNumber = "2607050001"
    ds.ReferringPhysicianName = "Müller^Jürgen"
    ds.ReferencedStudySequence = []
    ds.PatientName = "Lü^Jürgen=吕^岩"
    ds.PatientID = "P000123"
    ds.PatientBirthDate = "19780312"
    ds.PatientSex = "M"
    ds.OtherPatientNames = ["Lue^Juergen", "Lyu^Yan=吕^岩"]
    ds.PatientWeight = "62.5"
    ds.Allergies = "青霉素"
    ds.PregnancyStatus = 4
    ds.StudyInstanceUID = "2.25.16485339752615320723118690447861241715"
    ds.RequestedProcedureDescription = "CT chest"
    ds.RequestedProcedureCodeSequence = [code("71260", "99CPT", "CT chest")]
    ds.ScheduledProcedureStepSequence = [step]
    ds.RequestedProcedureID = "R1"
    ds.RequestedProcedurePriority = "HIGH"
    return ds


def emptied(ds):
    """The query that asks for all that is in a data set."""
    asking = Dataset()
    for element in ds:
        if element.VR == "SQ" and element.value:
            asking.add_new(element.tag, "SQ", [emptied(element.value[0])])
        else:
            asking.add_new(element.tag, element.VR, [] if element.VR == "SQ" else None)
    return asking


@pytest.mark.parametrize(
    ("calling", "charset", "syntax"),
    [
        ("CT1", "ISO_IR 192", EXPLICIT),
        ("CT1", "ISO_IR 192", IMPLICIT),
        ("US1", "GB18030", EXPLICIT),
        ("US1", "GB18030", IMPLICIT),
    ],
)
@pytest.mark.parametrize("whole", [False, True], ids=["by key", "whole sequences"])
def test_an_answer_is_byte_for_byte_what_pydicom_encodes(
    appliance, calling, charset, syntax, whole
):
    entry = encoded(rich_entry())
    stored = from_json(rich_entry().to_json_dict()) if whole else recode(entry)
    appliance.write(schedule, appliance.context(), stored)
    asking, wanted = emptied(rich_entry()), rich_entry(charset)
    asking.SpecificCharacterSet = charset
    if whole:
        asking.ScheduledProcedureStepSequence = []
    answers = ask(appliance, asking, calling=calling, syntax=syntax)
    assert answers.raw == [encoded(wanted, syntax == EXPLICIT)]


# SQL narrows, Search.matches decides: nothing is lost on the way.

RANDOM_NAMES = (
    "Smith^John|SMITH^JOHN|Smith-Jones^Mary Ann|O'Brien^Pat|Müller^Jürgen|Mu\u0308ller^Ju\u0308rgen"
    "|Großmann^Eva|Van der Berg^Jan^^Dr|Wang^XiaoDong=王^小东|Wang^Xiao Dong=王^小东|=王^芳|李^娜"
    "|Yamada^Tarou=山田^太郎=やまだ^たろう|İnce^Ömer|Παπάς^Γιώργος|Li|Silva^Victor|Paul^Yuri"
    "|Sun^YuQing=孙^玉清|Chen^Yu=陈^雨|Lü^Yan=吕^燕|Lyu^Yan=吕^燕|Malyutin^Ivan"
).split("|")
NAME_KEYS = (
    "smith*|*jones*|S?ITH*|*ann|* *|m?ller*|GROSS*|van der*|VAN*BERG*|*^jan^^dr|王*|*=王*|=*东"
    "|wang*=*小*|*=*=や*|li|Li^|*'*|?i|ΠΑΠΆΣ*|İ*|*-*|^|=|*^*^*|*yu*|*^yu*|*^v*|*va*|lv*|lyu*|lu*"
    "|maly?tin*|sun^yuqing|*yuqing"
).split("|")


def listed(line):
    return line.split("|")


RANDOM_KEYS = {
    "PatientName": (*RANDOM_NAMES, *NAME_KEYS),
    "PatientID": listed("P1|p1|P*|?1|P 1|P*1|ID-7|*-*|0007|7"),
    "AccessionNumber": listed("A1|a1|A*||A?|1*"),
    "RequestedProcedureID": listed("R1|R*|r1"),
    "StudyInstanceUID": listed("2.25.1|2.25.1\\2.25.2|2.25.*|2.25.3\\|1.2"),
    "Modality": listed("CT|ct|C*|M?|US"),
    "ScheduledStationAETitle": listed("CT1|ct1|CT?|*1|CT 1|MR1| CT1"),
    START_DATE: listed(
        "20260705|20260705-|-20260705|20260704-20260706|2026.07.05|20260706-20260704|*"
    ),
    START_TIME: listed("0930|09|0900-1000|-0930|0930-|1000-0900|093000.5"),
    "ScheduledProcedureStepStatus": listed("SCHEDULED|STARTED|COMPLETED|S*|*ED|NO SHOW"),
    "ScheduledProcedureStepID": listed("S1|S*|s1"),
    "PatientBirthDate": listed("19780312|1970-1980|19700101-19801231|-19780312"),
    "ScheduledProcedureStepDescription": listed("CT*|*|CT chest|?T*"),
}
RANDOM_VALUES = {
    "PatientID": listed("P1|p1|P 1|ID-7|0007|P*1"),
    "AccessionNumber": listed("A1|a1|A?||12"),
    "RequestedProcedureID": listed("R1|r1|"),
    "Modality": listed("CT|MR|US"),
    "ScheduledStationAETitle": listed("CT1|CT 1|CT1\\MR1|ct1|MR1\\CT1\\US1"),
    START_DATE: listed("20260704|20260705|20260706"),
    START_TIME: listed("09|0930|093000|093000.5|1000|000000|235959"),
    "ScheduledProcedureStepStatus": STEP_STATES,
    "ScheduledProcedureStepDescription": listed("CT chest|CT|MR head"),
    "PatientBirthDate": listed("19780312||20010105"),
}


def random_item(chance, number):
    """An item with values that are easily confused."""
    texts = {keyword: chance.choice(found) for keyword, found in RANDOM_VALUES.items()}
    texts = {keyword: value for keyword, value in texts.items() if value}
    if chance.random() < 0.5:
        texts["StudyInstanceUID"] = f"2.25.{number}"
    return item(chance.choice(RANDOM_NAMES), ScheduledProcedureStepID=f"S{number}", **texts)


def random_search(chance):
    """A query of a few random keys; None for one that is refused."""
    keywords = chance.sample(sorted(RANDOM_KEYS), chance.choice((1, 1, 2, 2, 3)))
    keys = {keyword: chance.choice(RANDOM_KEYS[keyword]) for keyword in keywords}
    ds = query(SpecificCharacterSet="ISO_IR 192", **keys)
    try:
        return keys, search_for(ds)
    except Refusal:
        return keys, None


@pytest.mark.parametrize("seed", range(6))
def test_narrowing_by_sql_never_loses_a_match(ctx, seed):
    chance = random.Random(seed)
    put(ctx, *(random_item(chance, number) for number in range(1, 41)))
    stored = fetch_rows(ScheduledProcedureStep, "1 ORDER BY id")
    hidden = ctx.config.dicom.hide_steps
    rows = [(row.id, ElementIndex(row.data)) for row in stored if row.status not in hidden]
    matched = 0
    for _ in range(150):
        keys, search = random_search(chance)
        if search:
            wanted = {row_id for row_id, index in rows if search.matches(index)}
            looked_at = {row_id for row_id, _ in worklist_ids(ctx, search)}
            assert wanted <= looked_at, keys
            told = [data for answers in find_worklist(ctx, search) for data in answers]
            assert len(told) == len(wanted), keys
            matched += len(wanted)
    assert matched > 100  # the keys are such that there is something to lose


@pytest.mark.parametrize("seed", range(3))
def test_what_is_narrowed_is_still_found_after_changes(ctx, seed):
    chance = random.Random(100 + seed)
    stored = put(ctx, *(random_item(chance, number) for number in range(1, 31)))
    for index in chance.sample(stored, 20):
        changes = {
            keyword: chance.choice(RANDOM_VALUES[keyword])
            for keyword in ("Modality", "ScheduledStationAETitle", START_DATE)
        }
        changed = item(chance.choice(RANDOM_NAMES), **changes)
        with contextlib.suppress(Refusal):
            reschedule(ctx, *ids_of(index), from_json(changed))
    rows = fetch_rows(ScheduledProcedureStep, "1 ORDER BY id")
    ctx.config.dicom.hide_steps = frozenset()
    for _ in range(100):
        keys, search = random_search(chance)
        if search:
            wanted = {row.id for row in rows if search.matches(ElementIndex(row.data))}
            assert wanted <= {row_id for row_id, _ in worklist_ids(ctx, search)}, keys


# The same answer is kept, and never a stale one.


def corrected(ctx, index):
    schedule(
        ctx,
        from_json(item("Wang^XiaoDong=王^晓东", PatientID=index.get("PatientID"))),
        "update",
    )


CHANGES: dict[str, Callable[..., Any]] = {
    "cancelled": lambda ctx, index: change_step(ctx, "cancel", *ids_of(index)),
    "arrived": lambda ctx, index: change_step(ctx, "arrive", *ids_of(index)),
    "rescheduled": lambda ctx, index: reschedule(
        ctx,
        *ids_of(index),
        from_json(item("Wang^XiaoDong=王^小东", PreMedication="Diazepam")),
    ),
    "patient corrected": corrected,
    "another scheduled": lambda ctx, index: schedule(ctx, from_json(item("Li^Na"))),
}
EVERYTHING = query(
    PatientName="",
    ScheduledProcedureStepStatus="",
    PreMedication="",
    ScheduledProcedureStepStartTime="",
)


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("before", [1, 2], ids=["asked once", "asked twice"])
def test_a_repeated_query_is_told_of_a_change(appliance, what, before):
    [index] = appliance.schedule(item())
    with associated(appliance.port) as ask_one:
        old = [ask_one(EVERYTHING).raw for _ in range(before)]
        appliance.write(CHANGES[what], appliance.context(), index)
        new = ask_one(EVERYTHING).raw
    assert new not in old
    fresh = appliance.read(lambda: find(appliance.context(), EVERYTHING))
    assert [decoded(data) for data in new] == fresh


def test_every_acknowledged_change_is_in_the_next_answer(appliance):
    [index] = appliance.schedule(item())
    asking = query(ScheduledProcedureStepStartTime="")
    with associated(appliance.port) as one, associated(appliance.port, "US1") as another:
        for minute, ask_one in zip(range(10, 50), itertools.cycle([one, another]), strict=False):
            change = from_json(item("Wang^XiaoDong", ScheduledProcedureStepStartTime=f"08{minute}"))
            appliance.write(reschedule, appliance.context(), *ids_of(index), change)
            [answer] = ask_one(asking).datasets
            step = answer.ScheduledProcedureStepSequence[0]
            assert step.ScheduledProcedureStepStartTime == f"08{minute}"


def test_a_change_is_answered_after_its_commit_and_not_before(appliance):
    [index] = appliance.schedule(item())
    changed, commit = threading.Event(), threading.Event()

    def cancel_slowly():
        change_step(appliance.context(), "cancel", *ids_of(index))
        changed.set()
        assert commit.wait(10)

    with associated(appliance.port) as ask_one:
        done = appliance.appliance.writer.submit(cancel_slowly)
        assert changed.wait(10)
        assert [len(ask_one(EVERYTHING).raw) for _ in range(3)] == [1, 1, 1]
        commit.set()
        done.result(10)
        assert [len(ask_one(EVERYTHING).raw) for _ in range(2)] == [0, 0]


def test_an_answer_read_before_a_commit_is_not_kept_after_it(appliance, monkeypatch):
    [index] = appliance.schedule(item())
    real, changed = find_worklist, []

    def cancelled_meanwhile(*arguments):
        found = list(real(*arguments))
        if not changed:
            changed.append(appliance.write(CHANGES["cancelled"], appliance.context(), index))
        yield from found

    services, door = appliance.appliance.dimse.services, (MODALITY_WORKLIST, "C-FIND")
    monkeypatch.setitem(SEARCHED, cancelled_meanwhile, MWL_ATTRIBUTES)
    monkeypatch.setitem(services, door, services[door]._replace(core=cancelled_meanwhile))
    with associated(appliance.port) as ask_one:
        assert [len(ask_one(EVERYTHING).raw) for _ in range(3)] == [1, 0, 0]


def test_a_refused_change_leaves_the_answer_as_it_was(appliance):
    [index] = appliance.schedule(item())
    with associated(appliance.port) as ask_one:
        old = ask_one(EVERYTHING).raw
        wrong = from_json(item(ScheduledProcedureStepStartDate="20260231"))
        with pytest.raises(Refusal):
            appliance.write(reschedule, appliance.context(), *ids_of(index), wrong)
        assert ask_one(EVERYTHING).raw == old


def test_two_devices_with_the_same_query_are_each_answered_in_their_set(appliance):
    appliance.schedule(item())
    sets = []
    for calling in ("CT1", "US1", "DX1") * 2:
        raw = ask(appliance, query(PatientName="Wang*"), calling=calling).raw
        sets.append(raw[0])
    assert sets[:3] == sets[3:]
    assert len(set(sets)) == 3


def test_the_same_query_in_another_syntax_is_answered_in_that_syntax(appliance):
    appliance.schedule(item())
    ds = query(PatientID="*")
    names = []
    for syntax in (EXPLICIT, IMPLICIT, EXPLICIT, IMPLICIT):
        names += [answer.PatientID for answer in ask(appliance, ds, syntax=syntax).datasets]
    assert len(names) == 4
    assert len(set(names)) == 1


@pytest.mark.parametrize("what", CHANGES)
def test_the_answer_cache_never_gives_an_old_answer(ctx, what):
    [index] = put(ctx, item())
    cache, search = AnswerCache(), search_for(EVERYTHING)

    def told():
        return list(find_worklist(ctx, search, cache, "a query"))

    assert told() == told()
    CHANGES[what](ctx, index)
    assert told() == list(find_worklist(ctx, search))


def test_the_answer_cache_holds_no_more_than_its_limit(ctx):
    put(ctx, *many(20))
    cache = AnswerCache(limit=20_000)
    for number in range(30):
        search = search_for(query(PatientName=f"Patient^00{number:02}*"[: 9 + number % 5] + "*"))
        list(find_worklist(ctx, search, cache, number))
        assert cache.searches.size <= 20_000
    assert cache.searches.size == sum(cache.searches.sizes.values())
    assert 0 < len(cache.searches) < 30


def test_searches_without_a_candidate_are_not_kept(ctx):
    cache = AnswerCache(limit=5000)
    for number in range(100):
        assert not list(find_worklist(ctx, search_for(EVERYTHING), cache, number))[0:]
    assert not cache.searches


def at_time(monkeypatch, times):
    """Let every request happen at the last of `times`."""
    context = Appliance.context

    def at_that_time(self, actor=Actor("minris")):
        return dataclasses.replace(context(self, actor), now=lambda: times[-1])

    monkeypatch.setattr(Appliance, "context", at_that_time)


def test_an_answer_has_the_offset_of_the_hour_also_in_the_night_of_summer_time(
    run_appliance, monkeypatch
):
    """T-MWL-27: 29 March 2026, Berlin goes from +0100 to +0200 at 01:00 UTC."""
    times = [datetime.datetime(2026, 3, 29, 0, 30, tzinfo=datetime.UTC)]
    at_time(monkeypatch, times)
    appliance = run_appliance("[clinic]\ntimezone = Europe/Berlin")
    appliance.schedule(item())
    ds = query(PatientName="", TimezoneOffsetFromUTC="")
    offsets = [ask(appliance, ds).datasets[0].TimezoneOffsetFromUTC]
    times.append(datetime.datetime(2026, 3, 29, 1, 30, tzinfo=datetime.UTC))
    offsets.append(ask(appliance, ds).datasets[0].TimezoneOffsetFromUTC)
    assert offsets == ["+0100", "+0200"]


# Scheduling: what is made, and what is refused.


def test_identifiers_that_are_not_given_are_made(ctx):
    [index] = put(ctx, item())
    made = (
        index.get("PatientID"),
        index.get("AccessionNumber"),
        index.get("RequestedProcedureID"),
        ids_of(index)[1],
    )
    assert made == ("P000001", "2607050001", "R2607050001", "S2607050001")
    assert index.get("StudyInstanceUID").startswith("2.25.")


def test_identifiers_that_are_given_are_kept(ctx):
    texts = {
        "PatientID": "K100",
        "AccessionNumber": "ACC9",
        "RequestedProcedureID": "RP9",
        "StudyInstanceUID": "1.2.3.4",
        "ScheduledProcedureStepID": "SPS9",
    }
    [index] = put(ctx, item(**texts))
    step = index.item("ScheduledProcedureStepSequence")
    assert {k: (step if k in STEP_KEYWORDS else index).get(k) for k in texts} == texts


def test_each_made_identifier_is_the_next(ctx):
    stored = put(ctx, item("Wang^Fang"), item("Li^Na"), item("Zhang^Wei"))
    assert [index.get("AccessionNumber")[-4:] for index in stored] == ["0001", "0002", "0003"]
    assert len({index.get("StudyInstanceUID") for index in stored}) == 3


def test_a_number_that_is_in_use_is_passed_over(ctx):
    put(ctx, item("Wang^Fang", AccessionNumber="2607050001", PatientID="P000001"))
    [index] = put(ctx, item("Li^Na"))
    assert index.get("AccessionNumber") == "2607050002"
    assert index.get("PatientID") == "P000002"


def test_dated_numbers_begin_anew_each_day_and_others_go_on(ctx):
    tomorrow = dataclasses.replace(ctx, now=lambda: NOON + datetime.timedelta(days=1))
    put(ctx, item("Wang^Fang"))
    [index] = put(tomorrow, item("Li^Na"))
    assert index.get("AccessionNumber") == "2607060001"
    assert index.get("PatientID") == "P000002"


def test_the_day_of_an_identifier_is_that_of_the_clinic(run_appliance, monkeypatch):
    at_time(monkeypatch, [datetime.datetime(2026, 7, 5, 17, 0, tzinfo=datetime.UTC)])
    appliance = run_appliance("[clinic]\ntimezone = Asia/Shanghai")
    [index] = appliance.schedule(item())
    assert index.get("AccessionNumber") == "2607060001"


@pytest.mark.parametrize(
    ("setting", "keyword", "pattern", "made"),
    [
        ("patient_id_format", "PatientID", "LAKE-{year}-{number:05}", "LAKE-2026-00001"),
        (
            "accession_number_format",
            "AccessionNumber",
            "A{year}{month}{day}{number:04}",
            "A202607050001",
        ),
        ("requested_procedure_id_format", "RequestedProcedureID", "{number}", "1"),
        (
            "scheduled_procedure_step_id_format",
            "ScheduledProcedureStepID",
            "S{yy}-{number:03}",
            "S26-001",
        ),
    ],
)
def test_identifiers_have_the_format_of_the_setting(
    run_appliance, monkeypatch, setting, keyword, pattern, made
):
    at_time(monkeypatch, [NOON])
    [index] = run_appliance(f"[clinic]\n{setting} = {pattern}").schedule(item())
    step = index.item("ScheduledProcedureStepSequence")
    assert (step if keyword in STEP_KEYWORDS else index).get(keyword) == made


def test_a_refused_item_uses_up_no_number(ctx):
    put(ctx, item("Li^Na", StudyInstanceUID="2.25.7"))
    with pytest.raises(Refusal):
        put(ctx, item("Wang^Fang", StudyInstanceUID="2.25.7"))
    [index] = put(ctx, item("Zhang^Wei"))
    assert index.get("PatientID") == "P000002"


def test_steps_of_a_procedure_share_its_identifiers(ctx):
    first, second = put(ctx, two_steps())
    for keyword in ("StudyInstanceUID", "AccessionNumber", "RequestedProcedureID", "PatientID"):
        assert first.get(keyword) == second.get(keyword) != ""


def test_a_step_may_be_added_to_a_procedure_that_is_known(ctx):
    [first] = put(ctx, item(PatientID="P7", StudyInstanceUID="2.25.7"))
    [second] = put(ctx, item(PatientID="P7", StudyInstanceUID="2.25.7"))
    assert first.get("AccessionNumber") == second.get("AccessionNumber")
    assert ids_of(first)[1] != ids_of(second)[1]


@pytest.mark.parametrize("keyword", ["AccessionNumber", "RequestedProcedureID"])
def test_a_step_added_under_another_number_is_refused_or_stored_with_it(ctx, keyword):
    """Nothing that was given is dropped silently."""
    put(ctx, item(PatientID="P7", StudyInstanceUID="2.25.7", **{keyword: "X1"}))
    try:
        [second] = put(ctx, item(PatientID="P7", StudyInstanceUID="2.25.7", **{keyword: "X2"}))
    except Refusal:
        return
    assert second.get(keyword) == "X2"


def test_what_is_not_given_is_taken_from_the_device(run_appliance):
    text = "[device CT room]\nae_title = CT1\nmodality = CT\nstation_name = CT one\nlocation = 2F"
    appliance = run_appliance(text)
    [index] = appliance.schedule(item(Modality=None))
    step = index.item("ScheduledProcedureStepSequence")
    told = [
        step.get(k) for k in ("Modality", "ScheduledStationName", "ScheduledProcedureStepLocation")
    ]
    assert told == ["CT", "CT one", "2F"]


def test_the_only_device_of_a_modality_is_its_station(ctx):
    [index] = put(ctx, item(ScheduledStationAETitle=None, Modality="US"))
    assert index.item("ScheduledProcedureStepSequence").get("ScheduledStationAETitle") == "US1"


def test_a_step_without_date_and_time_is_for_now(ctx):
    [index] = put(
        ctx, item(ScheduledProcedureStepStartDate=None, ScheduledProcedureStepStartTime=None)
    )
    step = index.item("ScheduledProcedureStepSequence")
    assert step.get("ScheduledProcedureStepStartDate") == "20260705"
    assert step.get("ScheduledProcedureStepStartTime") == "120000"


def test_a_step_without_state_is_scheduled(ctx):
    [index] = put(ctx, item())
    assert state_of(bytes(index)) == "SCHEDULED"


WRONG_ITEMS = {
    "no name": ({"name": ""}, ["PatientName"]),
    "a name of delimiters": ({"name": "^=^"}, ["PatientName"]),
    "an impossible date": ({"PatientBirthDate": "19800231"}, ["PatientBirthDate"]),
    "an impossible time": (
        {"ScheduledProcedureStepStartTime": "2461"},
        ["ScheduledProcedureStepStartTime"],
    ),
    "a long accession number": ({"AccessionNumber": "A" * 17}, ["AccessionNumber"]),
    "a small sex": ({"PatientSex": "m"}, ["PatientSex"]),
    "no such UID": ({"StudyInstanceUID": "1.02.3"}, ["StudyInstanceUID"]),
    "no such state": ({"ScheduledProcedureStepStatus": "DONE"}, ["ScheduledProcedureStepStatus"]),
    "no modality": ({"ScheduledStationAETitle": "XX9", "Modality": None}, ["Modality"]),
    "no station": (
        {"ScheduledStationAETitle": None, "Modality": "XA"},
        ["ScheduledStationAETitle"],
    ),
    "two at once": (
        {"PatientBirthDate": "19800231", "PatientWeight": "heavy"},
        ["PatientBirthDate", "PatientWeight"],
    ),
    "two accession numbers": ({"AccessionNumber": "A1\\A2"}, ["AccessionNumber"]),
    "two patient IDs": ({"PatientID": "P1\\P2"}, ["PatientID"]),
    "two names": ({"name": "Wang^Fang\\Li^Na"}, ["PatientName"]),
    "two modalities": ({"Modality": "PT\\CT"}, ["Modality"]),
    "two dates": (
        {"ScheduledProcedureStepStartDate": "20260705\\20260706"},
        ["ScheduledProcedureStepStartDate"],
    ),
    "two step IDs": ({"ScheduledProcedureStepID": "S1\\S2"}, ["ScheduledProcedureStepID"]),
}


@pytest.mark.parametrize("what", WRONG_ITEMS)
def test_a_wrong_item_is_refused_with_all_that_is_wrong_and_nothing_is_stored(ctx, what):
    texts, blamed = WRONG_ITEMS[what]
    before = everything()
    with pytest.raises(Refusal) as refusal:
        schedule(ctx, from_json(item(**texts)))
    assert refusal.value.status is Status.INVALID_ATTRIBUTE_VALUE
    assert set(refusal.value.tags) == {tag_of(keyword) for keyword in blamed}
    assert everything() == before


def test_an_item_without_steps_is_refused(ctx):
    without = item()
    del without["ScheduledProcedureStepSequence"]
    with pytest.raises(Refusal) as refusal:
        schedule(ctx, from_json(without))
    assert refusal.value.tags == (STEP_SEQUENCE,)


def same_step_twice():
    found = two_steps(PatientID="P7", StudyInstanceUID="2.25.8")
    second = found["ScheduledProcedureStepSequence"]["Value"][1]
    second["ScheduledProcedureStepID"]["Value"] = ["S1"]
    return found


ALREADY_THERE = {
    "the step is there": lambda: item(
        PatientID="P7", StudyInstanceUID="2.25.7", ScheduledProcedureStepID="S7"
    ),
    "the study is another patient's": lambda: item(
        "Li^Na", PatientID="P8", PatientBirthDate="19900721", StudyInstanceUID="2.25.7"
    ),
    "the second step is the first": same_step_twice,
}


@pytest.mark.parametrize("what", ALREADY_THERE)
def test_what_exists_already_is_refused_whole(ctx, what):
    put(ctx, item(PatientID="P7", StudyInstanceUID="2.25.7", ScheduledProcedureStepID="S7"))
    before = everything()
    with pytest.raises(Refusal) as refusal:
        schedule(ctx, from_json(ALREADY_THERE[what]()))
    assert refusal.value.status is Status.DUPLICATE_SOP_INSTANCE
    assert everything() == before


def test_a_refused_item_in_the_store_thread_leaves_the_others_of_its_batch(appliance):
    good, bad = from_json(item("Wang^Fang")), from_json(item("", PatientSex="m"))
    jobs = [bad, good, bad, good]
    done = [appliance.appliance.writer.submit(schedule, appliance.context(), j) for j in jobs]
    assert [bool(one.exception(10)) for one in done] == [True, False, True, False]
    assert len(ask(appliance, query(PatientName="")).raw) == 2


# Patients.


def patients():
    """Name and Patient ID of all patients."""
    return [(p.patient_name, p.patient_id) for p in Patient.select().order_by(Patient.id)]


@pytest.mark.parametrize(
    "again",
    [
        {"name": "Wang^XiaoDong=王^小东"},
        {"name": "WANG^XIAODONG"},
        {"name": "Wang^Xiao Dong"},
        {"name": "=王^小东"},
        {"name": "Wang^XiaoDong", "PatientBirthDate": "19780312"},
    ],
    ids=lambda texts: " ".join(texts.values()),
)
def test_the_same_person_is_kept_once(ctx, again):
    put(ctx, item(PatientID="P7", PatientBirthDate="19780312"))
    schedule(ctx, from_json(item(PatientID="P7", **again)))
    assert [patient_id for _, patient_id in patients()] == ["P7"]


ANOTHER = (
    {"name": "Li^Na=李^娜"},
    {"name": "Wang^XiaoDong=王^小东", "PatientBirthDate": "19990101"},
)
another = pytest.mark.parametrize("texts", ANOTHER, ids=["name", "birth date"])


@another
def test_a_patient_id_of_somebody_else_is_refused(ctx, texts):
    put(ctx, item(PatientID="P7", PatientBirthDate="19780312"))
    before = everything()
    with pytest.raises(Refusal) as refusal:
        schedule(ctx, from_json(item(PatientID="P7", **texts)))
    assert refusal.value.status is Status.DUPLICATE_SOP_INSTANCE
    assert refusal.value.tags == (tag_of("PatientID"),)
    assert "XiaoDong" in refusal.value.detail
    assert everything() == before


@another
def test_a_patient_id_of_somebody_else_may_correct_that_patient(ctx, texts):
    [index] = put(ctx, item(PatientID="P7", PatientBirthDate="19780312"))
    schedule(ctx, from_json(item(PatientID="P7", **texts)), "update")
    assert patients() == [(texts["name"], "P7")]
    told = ElementIndex(step_data(*ids_of(index)))
    assert told.get("PatientName") == texts["name"]
    assert told.get("PatientBirthDate") == texts.get("PatientBirthDate", "19780312")


@another
def test_a_patient_id_of_somebody_else_may_be_kept_apart(ctx, texts):
    [index] = put(ctx, item(PatientID="P7", PatientBirthDate="19780312"))
    schedule(ctx, from_json(item(PatientID="P7", **texts)), "separate")
    assert patients() == [("Wang^XiaoDong=王^小东", "P7"), (texts["name"], "P7")]
    assert len(find(ctx, query(PatientID="P7"))) == 2
    told = ElementIndex(step_data(*ids_of(index)))
    assert told.get("PatientName") == "Wang^XiaoDong=王^小东"


def test_a_patient_kept_apart_is_known_again(ctx):
    for name in ("Wang^Fang", "Li^Na", "Wang^Fang", "Li^Na"):
        put(ctx, item(name, PatientID="P7"), same_id="separate")
    assert patients() == [("Wang^Fang", "P7"), ("Li^Na", "P7")]


def test_the_same_id_of_another_issuer_is_another_patient(ctx):
    put(ctx, item("Wang^Fang", PatientID="P7", IssuerOfPatientID="LAKESIDE"))
    schedule(ctx, from_json(item("Li^Na", PatientID="P7", IssuerOfPatientID="SHORE")))
    assert len(patients()) == 2


def test_what_is_newly_told_of_a_patient_is_in_all_open_steps(ctx):
    [first] = put(ctx, item(PatientID="P7"))
    put(ctx, item(PatientID="P7", Allergies="Penicillin", PatientWeight="62.5"))
    told = ElementIndex(step_data(*ids_of(first)))
    assert (told.get("Allergies"), told.get("PatientWeight")) == ("Penicillin", "62.5")


@pytest.mark.parametrize(
    "keyword",
    [
        attribute.keyword
        for attribute in MWL_ATTRIBUTES.children()
        if attribute.cells["entity"] == "patient" and attribute.vr == "LO"
        if attribute.keyword not in ("PatientID", "IssuerOfPatientID")
    ],
)
def test_what_the_table_calls_the_patients_is_in_all_open_steps(ctx, keyword):
    """PS3.4 Table K.6-1, column entity of MWL_ATTRIBUTES."""
    [first] = put(ctx, item(PatientID="P7"))
    put(ctx, item(PatientID="P7", **{keyword: "Wheelchair"}))
    assert ElementIndex(step_data(*ids_of(first))).get(keyword) == "Wheelchair"


@pytest.mark.parametrize("allergies", [None, ""], ids=["absent", "empty"])
def test_what_is_not_told_again_of_a_patient_stays(ctx, allergies):
    [first] = put(ctx, item(PatientID="P7", Allergies="Penicillin"))
    texts = {} if allergies is None else {"Allergies": allergies}
    [second] = put(ctx, item(PatientID="P7", **texts))
    for index in (first, second):
        told = ElementIndex(step_data(*ids_of(index)))
        assert told.get("Allergies") == "Penicillin"


def test_a_name_told_without_its_chinese_group_does_not_lose_it(ctx):
    """A group that is not told is not told to be empty."""
    [first] = put(ctx, item("Wang^XiaoDong=王^小东", PatientID="P7"))
    put(ctx, item("WANG^XIAODONG", PatientID="P7"))
    assert "王^小东" in ElementIndex(step_data(*ids_of(first))).get("PatientName")


@pytest.mark.parametrize("state", STEP_STATES)
def test_open_steps_follow_a_corrected_patient_and_ended_ones_do_not(ctx, state):
    [index] = put(ctx, item("Wang^Fang", PatientID="P7", ScheduledProcedureStepStatus=state))
    put(ctx, item("Wang^Fan", PatientID="P7"), same_id="update")
    name = ElementIndex(step_data(*ids_of(index))).get("PatientName")
    if state in OPEN_STEP_STATES:
        assert name == "Wang^Fan"
    elif state in ("COMPLETED", "DISCONTINUED"):
        assert name == "Wang^Fang"


@pytest.mark.parametrize(
    ("event", "state"),
    [
        cell
        for cell, outcome in STEP_TRANSITIONS.items()
        if outcome in OPEN_STEP_STATES and cell[1] not in OPEN_STEP_STATES
    ],
)
def test_a_step_that_comes_back_has_the_corrected_patient(ctx, event, state):
    [index] = put(ctx, item("Wang^Fang", PatientID="P7", ScheduledProcedureStepStatus=state))
    put(ctx, item("Wang^Fan", PatientID="P7"), same_id="update")
    let_happen(ctx, event, ids_of(index))
    [name] = {str(answer.PatientName) for answer in find(ctx, query(PatientName=""))}
    assert name == "Wang^Fan"


def test_a_corrected_name_is_found_and_the_old_one_is_not(worklist_of_corrected):
    assert worklist_of_corrected("Wang^Fan*") == 1
    assert worklist_of_corrected("Wang^Fang*") == 0


@pytest.fixture
def worklist_of_corrected(ctx):
    """Gives how many steps are found by a name, after Wang^Fang was corrected to Wang^Fan."""
    put(ctx, item("Wang^Fang", PatientID="P7"))
    update_patient(ctx, Patient.get(), text_elements(PatientName="Wang^Fan"))
    return lambda key: len(find(ctx, query(PatientName=key)))


# What people do to a step.


def let_happen(ctx, event, ids):
    """Let an event of STEP_TRANSITIONS happen: the new data set."""
    if event == "reschedule":
        later = item("Wang^XiaoDong", ScheduledProcedureStepStartTime="1545")
        del later["PatientName"]
        return reschedule(ctx, *ids, from_json(later))
    return change_step(ctx, event, *ids)


@pytest.mark.parametrize(("event", "state"), list(STEP_TRANSITIONS))
def test_every_event_in_every_state_does_what_the_table_says(ctx, event, state):
    [index] = put(ctx, item(ScheduledProcedureStepStatus=state))
    outcome = STEP_TRANSITIONS[event, state]
    before = everything()
    if isinstance(outcome, Status):
        with pytest.raises(Refusal) as refusal:
            let_happen(ctx, event, ids_of(index))
        assert refusal.value.status is outcome
        assert everything() == before
    else:
        data = let_happen(ctx, event, ids_of(index))
        assert state_of(data) == outcome
        assert rows_of(ids_of(index)).status == outcome
        assert state_of(step_data(*ids_of(index))) == outcome


def test_the_table_has_a_cell_for_every_event_in_every_state():
    events = {event for event, _ in STEP_TRANSITIONS}
    assert set(STEP_TRANSITIONS) == set(itertools.product(events, STEP_STATES))


@pytest.mark.parametrize("event", sorted({event for event, _ in STEP_TRANSITIONS}))
@pytest.mark.parametrize("ids", [("2.25.404", "S7"), ("2.25.7", "S404")], ids=["study", "step"])
def test_what_happens_to_an_unknown_step_is_refused(ctx, event, ids):
    put(ctx, item(StudyInstanceUID="2.25.7", ScheduledProcedureStepID="S7"))
    with pytest.raises(Refusal) as refusal:
        let_happen(ctx, event, ids)
    assert refusal.value.status is Status.NO_SUCH_SOP_INSTANCE


@pytest.mark.parametrize("function", [find_step, step_data])
def test_an_unknown_step_is_not_found(ctx, function):
    with pytest.raises(Refusal) as refusal:
        function("2.25.404", "S404")
    assert refusal.value.status is Status.NO_SUCH_SOP_INSTANCE


def test_a_step_is_found_by_study_and_id(ctx):
    put(ctx, two_steps(StudyInstanceUID="2.25.7"), two_steps(StudyInstanceUID="2.25.8"))
    step = find_step("2.25.8", "S2")
    assert (step.study_instance_uid, step.scheduled_procedure_step_id) == ("2.25.8", "S2")


def test_a_cancelled_step_is_hidden_and_kept_with_its_reason(ctx):
    [index] = put(ctx, item())
    change_step(ctx, "cancel", *ids_of(index), "Patient has gone home")
    assert find(ctx, query(PatientName="")) == []
    assert rows_of(ids_of(index)).remark == "Patient has gone home"
    assert state_of(step_data(*ids_of(index))) == "CANCELED"


def test_cancelling_one_step_leaves_the_other_of_its_procedure(ctx):
    first, second = put(ctx, two_steps())
    change_step(ctx, "cancel", *ids_of(first))
    [answer] = find(ctx, query(ScheduledProcedureStepID=""))
    assert answer.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID == ids_of(second)[1]


@pytest.mark.parametrize(
    ("events", "stamps"),
    [
        (["arrive"], {"arrived_at": True, "ended_at": False}),
        (["ready"], {"arrived_at": True, "ended_at": False}),
        (["cancel"], {"arrived_at": False, "ended_at": True}),
        (["no show"], {"arrived_at": False, "ended_at": True}),
        (["no show", "arrive"], {"arrived_at": True, "ended_at": False}),
        (["cancel", "reschedule"], {"arrived_at": False, "ended_at": False}),
        (["arrive", "depart", "reschedule"], {"ended_at": False}),
    ],
    ids=lambda found: ", ".join(found) if isinstance(found, list) else "",
)
def test_a_step_has_the_times_of_its_state(ctx, events, stamps):
    [index] = put(ctx, item())
    for event in events:
        let_happen(ctx, event, ids_of(index))
    row = rows_of(ids_of(index))
    assert {name: bool(getattr(row, name)) for name in stamps} == stamps


def test_an_event_changes_the_version_of_the_row(ctx):
    [index] = put(ctx, item())
    versions = [rows_of(ids_of(index)).version]
    for event in ("arrive", "ready", "reschedule", "cancel"):
        let_happen(ctx, event, ids_of(index))
        versions.append(rows_of(ids_of(index)).version)
    assert versions == sorted(set(versions))


def test_what_happens_to_a_step_is_audited(ctx):
    [index] = put(ctx, item())
    change_step(ctx, "arrive", *ids_of(index))
    last = Audit.select().order_by(Audit.id.desc()).get()
    assert (last.who, last.about) == ("CT1@127.0.0.1", index.get("StudyInstanceUID"))
    assert "ARRIVED" in last.detail


@pytest.mark.parametrize("what", CHANGES)
def test_what_fails_on_its_way_leaves_nothing_behind(ctx, monkeypatch, what):
    [index] = put(ctx, item())
    before = everything()

    def disk_full(*_):
        raise peewee.OperationalError("database or disk is full")

    monkeypatch.setattr("minris.access.devices.audit", disk_full)
    monkeypatch.setattr("minris.access.users.audit", disk_full)
    monkeypatch.setattr("minris.delivery.sockets.audit", disk_full)
    monkeypatch.setattr("minris.housekeeping.erasing.audit", disk_full)
    monkeypatch.setattr("minris.images.arrivals.audit", disk_full)
    monkeypatch.setattr("minris.images.availability.audit", disk_full)
    monkeypatch.setattr("minris.images.commitment.audit", disk_full)
    monkeypatch.setattr("minris.mpps.linking.audit", disk_full)
    monkeypatch.setattr("minris.mpps.performed.audit", disk_full)
    monkeypatch.setattr("minris.orders.catalogue.audit", disk_full)
    monkeypatch.setattr("minris.orders.patients.audit", disk_full)
    monkeypatch.setattr("minris.orders.scheduling.audit", disk_full)
    monkeypatch.setattr("minris.orders.steps.audit", disk_full)
    monkeypatch.setattr("minris.orders.undo.audit", disk_full)
    monkeypatch.setattr("minris.outbox.audit", disk_full)
    monkeypatch.setattr("minris.ups.people.audit", disk_full)
    monkeypatch.setattr("minris.ups.subscriptions.audit", disk_full)
    monkeypatch.setattr("minris.ups.workitems.audit", disk_full)
    with pytest.raises(peewee.OperationalError):
        CHANGES[what](ctx, index)
    assert everything() == before


# Rescheduling.


def change(ctx, index, **texts):
    """Reschedule a step with these attributes alone: its new data set."""
    changed = item("Somebody", **texts)
    for keyword in {"PatientName", "RequestedProcedureDescription"} - set(texts):
        del changed[keyword]
    step = changed["ScheduledProcedureStepSequence"]["Value"][0]
    for keyword in [k for k in step if k not in texts]:
        del step[keyword]
    if not step:
        del changed["ScheduledProcedureStepSequence"]
    return ElementIndex(reschedule(ctx, *ids_of(index), from_json(changed)))


def test_a_rescheduled_step_is_found_where_it_now_is(ctx):
    [index] = put(ctx, item())
    change(ctx, index, ScheduledStationAETitle="CT2", ScheduledProcedureStepStartDate="20260708")
    found = [
        len(find(ctx, query(ScheduledStationAETitle=title, ScheduledProcedureStepStartDate=date)))
        for title, date in itertools.product(("CT1", "CT2"), ("20260705", "20260708"))
    ]
    assert found == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PreMedication", "Diazepam"),
        ("ReferringPhysicianName", "Zhao^Min"),
        ("AccessionNumber", "A77"),
        ("Allergies", "Penicillin"),
        ("PatientSex", "F"),
    ],
)
def test_what_is_absent_stays_when_a_step_is_rescheduled(ctx, keyword, value):
    [index] = put(ctx, item(**{keyword: value}))
    told = change(ctx, index, ScheduledProcedureStepStartTime="1545")
    step = told.item("ScheduledProcedureStepSequence")
    assert (step if keyword in STEP_KEYWORDS else told).get(keyword) == value
    assert step.get("ScheduledProcedureStepStartTime") == "1545"


@pytest.mark.parametrize(
    "keyword",
    ["PreMedication", "ReferringPhysicianName", "AccessionNumber", "Allergies", "PatientSex"],
)
def test_what_is_empty_is_emptied_when_a_step_is_rescheduled(ctx, keyword):
    value = "F" if keyword == "PatientSex" else "Diazepam"
    [index] = put(ctx, item(**{keyword: value}))
    told = change(ctx, index, **{keyword: ""})
    assert (told.item("ScheduledProcedureStepSequence") if keyword in STEP_KEYWORDS else told).get(
        keyword
    ) == ""


IDENTITY = {
    "StudyInstanceUID": "2.25.8",
    "ScheduledProcedureStepID": "S8",
    "PatientID": "P8",
}


@pytest.mark.parametrize("keyword", IDENTITY)
def test_what_a_step_is_known_by_cannot_be_changed(ctx, keyword):
    [index] = put(
        ctx, item(StudyInstanceUID="2.25.7", ScheduledProcedureStepID="S7", PatientID="P7")
    )
    before = everything()
    with pytest.raises(Refusal) as refusal:
        change(ctx, index, **{keyword: IDENTITY[keyword]})
    assert refusal.value.status is Status.NO_SUCH_ATTRIBUTE
    assert refusal.value.tags == (tag_of(keyword),)
    assert everything() == before


@pytest.mark.parametrize(
    "keyword",
    [
        "StudyInstanceUID",
        "ScheduledProcedureStepID",
        "PatientID",
        "PatientName",
        "RequestedProcedureID",
        "ScheduledStationAETitle",
        "Modality",
        "ScheduledProcedureStepStartDate",
        "ScheduledProcedureStepStartTime",
    ],
)
def test_an_attribute_of_type_1_is_never_emptied(ctx, keyword):
    """PS3.4 Table K.6-1: the answer must have a value."""
    [index] = put(ctx, item())
    with contextlib.suppress(Refusal):
        change(ctx, index, **{keyword: ""})
    told = ElementIndex(step_data(*ids_of(index)))
    step = told.item("ScheduledProcedureStepSequence")
    assert (step if keyword in STEP_KEYWORDS else told).get(keyword)


def test_what_is_said_again_unchanged_is_no_change_of_identity(ctx):
    [index] = put(ctx, item())
    data = reschedule(ctx, *ids_of(index), bytes(index))
    assert data == bytes(index)


@pytest.mark.parametrize(
    "texts",
    [
        {"ScheduledProcedureStepStartDate": "20260231"},
        {"PatientName": ""},
        {"AccessionNumber": "A" * 17},
        {"ScheduledProcedureStepStatus": "DONE"},
        {"Modality": ""},
    ],
    ids=lambda texts: ", ".join(texts),
)
def test_a_wrong_change_is_refused_and_changes_nothing(ctx, texts):
    [index] = put(ctx, item())
    before = everything()
    with pytest.raises(Refusal) as refusal:
        change(ctx, index, **texts, ReferringPhysicianName="Zhao^Min")
    assert refusal.value.status is Status.INVALID_ATTRIBUTE_VALUE
    assert refusal.value.tags == tuple(tag_of(keyword) for keyword in texts)
    assert everything() == before


@pytest.mark.parametrize("state", ["STARTED", "COMPLETED", "DISCONTINUED"])
def test_a_change_of_attributes_does_not_begin_or_end_a_step(ctx, state):
    """One place decides the state: STEP_TRANSITIONS for people, MPPS for machines."""
    [index] = put(ctx, item())
    with contextlib.suppress(Refusal):
        change(ctx, index, ScheduledProcedureStepStatus=state)
    assert rows_of(ids_of(index)).status == "SCHEDULED"


def test_a_changed_procedure_is_changed_in_all_its_open_steps(ctx):
    first, second = put(ctx, two_steps())
    change(ctx, first, AccessionNumber="A77", RequestedProcedureDescription="CT abdomen")
    told = ElementIndex(step_data(*ids_of(second)))
    assert told.get("AccessionNumber") == "A77"
    assert told.get("RequestedProcedureDescription") == "CT abdomen"
    assert len(find(ctx, query(AccessionNumber="A77"))) == 2


def test_a_changed_patient_is_changed_in_the_steps_of_other_procedures(ctx):
    [first] = put(ctx, item(PatientID="P7"))
    [second] = put(ctx, item(PatientID="P7"))
    change(ctx, first, PatientName="Wang^XiaoDong=王^晓东")
    told = ElementIndex(step_data(*ids_of(second)))
    assert told.get("PatientName") == "Wang^XiaoDong=王^晓东"


def test_a_rescheduled_step_leaves_its_sibling_at_its_time(ctx):
    first, second = put(ctx, two_steps())
    change(ctx, first, ScheduledProcedureStepStartTime="1545")
    step = ElementIndex(step_data(*ids_of(second)))
    assert (
        step.item("ScheduledProcedureStepSequence").get("ScheduledProcedureStepStartTime") == "1000"
    )


def test_two_items_in_a_change_are_refused(ctx):
    """Nothing that was given is dropped silently."""
    first, _ = put(ctx, two_steps())
    with pytest.raises(Refusal):
        reschedule(ctx, *ids_of(first), from_json(two_steps()))
