"""The tables of rules: nothing is missing in them, and their readers refuse what is wrong."""

import ast

import pytest
from conftest import made_tree
from pynetdicom import status as pynetdicom_status

from minris.config.settings import setting_table
from minris.standard.attributes import attribute_table, transition_table
from minris.standard.mpps import FINAL_MPPS_STATES, MPPS_STATES, MPPS_TRANSITIONS, STEP_STATUS_AFTER
from minris.standard.status import OUTCOMES, Status, outcome_table
from minris.standard.tables import grid_table, one_of, rows, table
from minris.standard.ups import UPS_STATES, UPS_TRANSITIONS
from minris.standard.worklist import STEP_STATES, STEP_TRANSITIONS

TRANSITIONS = {
    "MPPS_TRANSITIONS": (MPPS_TRANSITIONS, ("none", *MPPS_STATES)),
    "UPS_TRANSITIONS": (UPS_TRANSITIONS, ("none", *UPS_STATES)),
    "STEP_TRANSITIONS": (STEP_TRANSITIONS, STEP_STATES),
}
CELLS = [(name, *cell) for name, (table, _) in TRANSITIONS.items() for cell in table]


def statuses_in_source() -> set[Status]:
    """Every status that the source names, and those in the cells of the transition tables."""
    named = {
        Status[node.attr]
        for node in ast.walk(made_tree())
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Status"
        if node.attr in Status.__members__
    }
    cells = (cell for table, _ in TRANSITIONS.values() for cell in table.values())
    return named | {cell for cell in cells if isinstance(cell, Status)}


USED = statuses_in_source()


def failures() -> list[Status]:
    return sorted(one for one in USED if pynetdicom_status.code_to_category(int(one)) == "Failure")


@pytest.mark.parametrize("status", failures(), ids=lambda status: status.name)
def test_every_failure_that_is_raised_has_an_outcome(status):
    assert ("*", status) in OUTCOMES


@pytest.mark.parametrize("status", Status, ids=lambda status: status.name)
def test_every_status_is_used(status):
    assert status in USED


# Transition tables


@pytest.mark.parametrize("name", TRANSITIONS)
def test_a_transition_table_has_a_cell_for_every_event_in_every_state(name):
    table, states = TRANSITIONS[name]
    events = {event for event, _ in table}
    assert set(table) == {(event, state) for event in events for state in states}


@pytest.mark.parametrize(("name", "event", "state"), CELLS)
def test_a_cell_is_a_state_a_warning_or_a_failure(name, event, state):
    table, states = TRANSITIONS[name]
    cell = table[event, state]
    if cell in (Status.ALREADY_CANCELED, Status.ALREADY_COMPLETED):
        assert pynetdicom_status.code_to_category(int(cell)) == "Warning"
    elif isinstance(cell, Status):
        assert ("*", cell) in OUTCOMES
    else:
        assert cell in states
        assert cell != "none"


@pytest.mark.parametrize("event", [event for event, state in MPPS_TRANSITIONS])
@pytest.mark.parametrize("state", sorted(FINAL_MPPS_STATES))
def test_a_performed_step_that_has_ended_goes_nowhere(event, state):
    assert isinstance(MPPS_TRANSITIONS[event, state], Status)


@pytest.mark.parametrize("name", TRANSITIONS)
def test_every_state_is_reached_or_begun_with(name):
    """A person puts a step nowhere that MPPS puts it, so STARTED and the ends come from there."""
    table, states = TRANSITIONS[name]
    by_mpps = {after for _, after in STEP_STATUS_AFTER}
    reached = {cell for cell in table.values() if not isinstance(cell, Status)}
    assert set(states) - {"none"} <= reached | by_mpps


STATES = ("OPEN", "DONE")
TRANSITIONS_ARE_WRONG = {
    "an unknown state in the head": "event | OPEN | SHUT\nend | DONE | 0110",
    "an unknown state in a cell": "event | OPEN | DONE\nend | DOEN | 0110",
    "a status there is not": "event | OPEN | DONE\nend | DONE | 0999",
    "a missing cell": "event | OPEN | DONE\nend | DONE",
    "a cell too many": "event | OPEN | DONE\nend | DONE | 0110 | 0110",
    "an event twice": "event | OPEN | DONE\nend | DONE | 0110\nend | DONE | 0110",
    "a state twice": "event | OPEN | OPEN\nend | DONE | 0110",
}


@pytest.mark.parametrize("what", TRANSITIONS_ARE_WRONG)
def test_a_transition_table_is_refused_for(what):
    with pytest.raises(ValueError):
        transition_table("PS3.4", TRANSITIONS_ARE_WRONG[what], STATES)


def test_a_transition_table_is_read():
    text = """
    event | none | OPEN | DONE
    begin | OPEN | 0111 | 0111  # a remark
    end   | 0112 | DONE | 0110
    """
    table = transition_table("PS3.4", text, STATES)
    assert table["begin", "none"] == "OPEN"
    assert table["end", "none"] is Status.NO_SUCH_SOP_INSTANCE
    assert len(table) == 6


# Attribute tables


ATTRIBUTES_ARE_WRONG = {
    "an unknown keyword": "keyword | match\nPatientsName | R",
    "a row below what is no sequence": "keyword | match\nPatientName | R\n> Modality | R",
    "a row below nothing": "keyword | match\n> Modality | R",
    "a row two levels down at once": (
        "keyword | match\nScheduledProcedureStepSequence | R\n>> CodeValue | R"
    ),
    "a row twice": "keyword | match\nPatientID | R\nPatientName | R\nPatientID | R",
    "a missing cell": "keyword | match | return\nPatientID | R",
    "a cell too many": "keyword | match\nPatientID | R | 1",
}


@pytest.mark.parametrize("what", ATTRIBUTES_ARE_WRONG)
def test_an_attribute_table_is_refused_for(what):
    with pytest.raises(ValueError, match="Table K"):
        attribute_table("PS3.4 Table K", ATTRIBUTES_ARE_WRONG[what])


def test_an_attribute_table_is_read():
    text = """
    keyword                          | match | return
    ScheduledProcedureStepSequence   | R     | 1       # a remark
    > Modality                       | R     | 1
    > ScheduledProtocolCodeSequence  | O     | 1C
    >> CodeValue                     | O     | 1C
    PatientName                      | R     | 1
    """
    table = attribute_table("PS3.4 Table K", text)
    assert [len(path) for path in table] == [1, 2, 2, 3, 1]
    code = table[0x00400100, 0x00400008, 0x00080100]
    assert (code.keyword, code.vr, code.cells["return"]) == ("CodeValue", "SH", "1C")
    below = table.children((0x00400100,))
    assert [one.keyword for one in below] == ["Modality", "ScheduledProtocolCodeSequence"]
    assert [one.keyword for one in table.children()] == [
        "ScheduledProcedureStepSequence",
        "PatientName",
    ]


# Outcomes and settings


OUTCOMES_ARE_WRONG = {
    "an unknown status": "operation | status | HTTP | text\n* | 0999 | 404 | No.",
    "a status that is no number": "operation | status | HTTP | text\n* | gone | 404 | No.",
    "an HTTP code there is not": "operation | status | HTTP | text\n* | 0112 | 4040 | No.",
    "a row twice": "operation | status | HTTP | text\n* | 0112 | 404 | No.\n* | 0112 | 410 | No.",
    "a missing cell": "operation | status | HTTP | text\n* | 0112 | 404",
}


@pytest.mark.parametrize("what", OUTCOMES_ARE_WRONG)
def test_an_outcome_table_is_refused_for(what):
    with pytest.raises(ValueError):
        outcome_table("PS3.18", OUTCOMES_ARE_WRONG[what])


SETTINGS_ARE_WRONG = {
    "an unknown kind": "section | key | default | kind | meaning\nweb | port | 80 | number | port",
    "a missing cell": "section | key | default | kind | meaning\nweb | port | 80 | int 1 2",
    "a setting twice": (
        "section | key | default | kind | meaning\n"
        "web | port | 80 | int 1 99 | port\nweb | port | 81 | int 1 99 | port"
    ),
}


@pytest.mark.parametrize("what", SETTINGS_ARE_WRONG)
def test_a_table_of_settings_is_refused_for(what):
    with pytest.raises((ValueError, TypeError)):
        setting_table(SETTINGS_ARE_WRONG[what])


def test_remarks_and_empty_lines_of_a_table_are_read_over():
    text = """
    head  | second

    # a remark of its own
    cell  | C# and #2   # a remark behind
    """
    assert list(rows(text)) == [["head", "second"], ["cell", "C# and #2"]]


# Any table


def test_rows_of_a_table_are_read_by_name():
    text = """
    term | number | words
    A    | 7      | an apple, red
    B    |        |
    """
    first, second = table(text, number=lambda cell: int(cell or 0))
    assert (first.term, first.number, first.words) == ("A", 7, "an apple, red")
    assert (second.term, second.number, second.words) == ("B", 0, "")


TABLES_ARE_WRONG = {
    "a missing cell": ("term | number\nA | 1\nB", {}, "B"),
    "a cell too many": ("term | number\nA | 1 | 2", {}, r"A \| 1 \| 2"),
    "a column twice": ("term | term\nA | 1", {}, "term"),
    "a reader of no column": ("term | number\nA | 1", {"count": int}, "count"),
    "a cell that is not taken": ("term | number\nA | one", {"number": int}, r"A \| one"),
    "an unknown word": ("term | number\nC | 1", {"term": one_of("AB")}, r"C \| 1.*A, B"),
}


@pytest.mark.parametrize("what", TABLES_ARE_WRONG)
def test_a_table_is_refused_with_its_line_for(what):
    text, readers, line = TABLES_ARE_WRONG[what]
    with pytest.raises(ValueError, match=line):
        table(text, **readers)


def test_a_cell_of_a_grid_is_refused_with_its_line():
    with pytest.raises(ValueError, match=r"PS3.8: close \| 1 \| x"):
        grid_table("PS3.8", "event | Sta1 | Sta2\nopen | 2 | 1\nclose | 1 | x", int)


def test_cells_of_a_grid_are_found_by_row_and_column():
    text = """
    event | Sta1 | Sta2
    open  | 2    | 1
    close | 1    | 1
    """
    found = grid_table("PS3.8", text, int)
    assert found == {
        ("open", "Sta1"): 2, ("open", "Sta2"): 1, ("close", "Sta1"): 1, ("close", "Sta2"): 1,
    }  # fmt: skip
