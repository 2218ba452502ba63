"""DCMTK's sample worklist: ten scheduled procedure steps, thirteen queries, what each finds.

Its composers are born after 1900 here, as the patients of a clinic are.
"""

import io
import json
import subprocess

import peers
import pydicom
import pytest
from conftest import PROGRAM, ROOT, Running, write_config
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pynetdicom import AE
from pynetdicom.sop_class import ModalityWorklistInformationFind

from minris.config.ini import load_config
from minris.dataset.elements import ElementIndex
from minris.dataset.recode import recode
from minris.dataset.search import Search
from minris.orders.worklist import find_worklist
from minris.standard.worklist import MWL_ATTRIBUTES

DATA = ROOT / "tests" / "data"
ENTRIES = json.loads((DATA / "worklist-entries.json").read_text("utf-8"))
CASES = json.loads((DATA / "worklist-cases.json").read_text("utf-8"))["cases"]
NUMBERS = {e["0020000D"]["Value"][0]: number for number, e in enumerate(ENTRIES, 1)}
CHARACTER_SET, STEP_STATUS, STEP_SEQUENCE = "00080005", "00400020", "00400100"
cases = pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])


@pytest.fixture(scope="module")
def appliance(tmp_path_factory):
    """An appliance that has imported the ten entries by its command line."""
    config = write_config(tmp_path_factory.mktemp("cases"))
    running = Running(load_config(config))
    try:
        entries = str(DATA / "worklist-entries.json")
        subprocess.run([*PROGRAM, "import", entries, "--config", str(config)], check=True)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """wlmscpfs on the same ten entries; its port. It is called CLINIC."""
    folder = tmp_path_factory.mktemp("wlmscpfs") / "CLINIC"
    folder.mkdir()
    (folder / "lockfile").touch()
    for number, entry in enumerate(ENTRIES, 1):
        ds = Dataset.from_json(entry)
        pydicom.dcmwrite(folder / f"{number}.wl", ds, little_endian=True, implicit_vr=False)
    with peers.serving_worklist(folder.parent) as port:
        yield port


def as_kept(entry):
    """An entry with what the last one of its patient tells of the patient: there is one of each."""
    patient_id = entry["00100020"]["Value"]
    same = [other for other in ENTRIES if other["00100020"]["Value"] == patient_id]
    return entry | {tag: member for tag, member in same[-1].items() if tag.startswith("0010")}


def as_query(case):
    """The identifier of a case as a pydicom data set."""
    return Dataset.from_json(case["query"])


def with_study(query):
    """A query that asks for the Study Instance UID too, by which the answers are known."""
    query.StudyInstanceUID = ""
    return query


def ask_core(appliance, query):
    """The answers of the core, each as a pydicom data set."""
    encoded = io.BytesIO()
    pydicom.dcmwrite(encoded, query, little_endian=True, implicit_vr=False)
    index = ElementIndex(recode(encoded.getvalue()))
    search = Search(index, MWL_ATTRIBUTES)
    slices = appliance.read(lambda: list(find_worklist(appliance.context(), search)))
    answers = [data for answers in slices for data in answers]
    return [pydicom.dcmread(io.BytesIO(data), force=True) for data in answers]


def ask_by_pynetdicom(appliance, query):
    """The answers that pynetdicom is given as CT1, all of them FF00."""
    ae = AE("CT1")
    ae.add_requested_context(ModalityWorklistInformationFind)
    association = ae.associate("127.0.0.1", appliance.port, ae_title="MINRIS")
    assert association.is_established
    peers.leave_answers(association)
    try:
        *pending, last = association.send_c_find(query, ModalityWorklistInformationFind)
    finally:
        association.release()
    assert {status.Status for status, _ in pending} <= {0xFF00}
    assert last[0].Status == 0x0000
    return [answer for _, answer in pending]


def ask_by_findscu(appliance, query):
    """The answers that findscu is given as CT1."""
    found = peers.run_findscu(appliance.port, "MINRIS", "CT1", query)
    assert found.statuses == [0xFF00] * len(found.datasets) + [0x0000]
    return found.datasets


ASKING = (ask_core, ask_by_pynetdicom, ask_by_findscu)
asked = pytest.mark.parametrize("ask", ASKING, ids=[ask.__name__ for ask in ASKING])


def known(answers):
    """Which entries answers are of, in the order of their numbers."""
    return sorted(NUMBERS[str(answer.StudyInstanceUID)] for answer in answers)


def selected(entry, query):
    """What of an entry a query asks for, by PS3.4 K.2.2.1.2: as DICOM JSON, values alone."""
    found = {}
    for tag, key in query.items():
        given = entry.get(tag, {})
        inner = next(iter(key.get("Value") or [{}]), {}) if key["vr"] == "SQ" else {}
        if inner:
            items = [selected(item, inner) for item in given.get("Value", [])]
            given = {"vr": "SQ", "Value": items} if items else {}
        if given.get("Value"):
            found[tag] = given
    return found


def values(answer):
    """An answer as DICOM JSON, values alone, without its character set."""
    found = {}
    for tag, member in answer.to_json_dict().items():
        if member["vr"] == "SQ":
            member = {"vr": "SQ", "Value": [values_of(item) for item in member["Value"]]}
        found[tag] = member
    found.pop(CHARACTER_SET, None)
    return values_of(found)


def values_of(members):
    return {tag: member for tag, member in members.items() if member.get("Value")}


def canonical(answers):
    """Data sets in an order of their own, to be compared as a multiset."""
    return sorted(json.dumps(answer, sort_keys=True) for answer in answers)


@asked
@cases
def test_a_query_finds_its_entries_and_no_other(appliance, ask, case):
    assert known(ask(appliance, with_study(as_query(case)))) == case["expected"]


@asked
@cases
def test_an_answer_holds_the_values_of_what_was_asked(appliance, ask, case):
    kept = [as_kept(ENTRIES[number - 1]) for number in case["expected"]]
    wanted = [selected(entry, case["query"]) for entry in kept]
    if case["query"].get(STEP_SEQUENCE, {}).get("Value") == [{}]:
        for entry in wanted:  # the whole item was asked for: we keep the state in it
            [step] = entry[STEP_SEQUENCE]["Value"]
            step = {**step, STEP_STATUS: {"vr": "CS", "Value": ["SCHEDULED"]}}
            entry[STEP_SEQUENCE] = {"vr": "SQ", "Value": [values_of(step)]}
    assert canonical(map(values, ask(appliance, as_query(case)))) == canonical(wanted)


@cases
def test_an_answer_holds_no_attribute_that_was_not_asked(appliance, case):
    """T-MWL-03."""
    query = as_query(case)
    [step] = query.get("ScheduledProcedureStepSequence") or [Dataset()]
    for answer in ask_by_pynetdicom(appliance, query):
        assert set(answer.keys()) <= {*query.keys(), Tag("SpecificCharacterSet")}
        for item in answer.get("ScheduledProcedureStepSequence", []):
            assert not step or set(item.keys()) <= set(step.keys())


@cases
def test_wlmscpfs_finds_the_same_entries(reference, case):
    found = peers.run_findscu(reference, "CLINIC", "CT1", with_study(as_query(case)))
    assert found.status == 0x0000
    assert known(found.datasets) == case["expected"]
