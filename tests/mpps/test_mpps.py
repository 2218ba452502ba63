"""Section 10, MPPS: what modalities report, and what it does to the scheduled steps."""

import contextlib
import copy
import io
import os
import re
import signal
import sqlite3
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import peers
import pytest
from conftest import PROGRAM, item, write_config
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.dsutils import decode, encode
from test_dimse import Closed, Wire, create_request, set_request, wait_until

from minris.dataset.dicom_json import from_json
from minris.dataset.elements import EMPTY, ElementIndex, encode_element
from minris.dataset.recode import recode
from minris.dataset.text import SPECIFIC_CHARACTER_SET
from minris.mpps.linking import link_by_hand, settle_unscheduled, unlink_step, unscheduled_steps
from minris.mpps.performed import create_mpps, set_mpps
from minris.orders import scheduling as orders_scheduling
from minris.orders.lookup import find_step
from minris.orders.steps import change_step
from minris.standard.dictionary import attribute_name, tag_of, vr_of
from minris.standard.mpps import (
    DISCONTINUATION_REASONS,
    FINAL_MPPS_STATES,
    INCORRECT_WORKLIST_ENTRY,
    MPPS_ATTRIBUTES,
    MPPS_TRANSITIONS,
    SERIES,
)
from minris.standard.status import Refusal, Status
from minris.standard.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, MPPS, new_uid
from minris.store.models import (
    Audit,
    Patient,
    PerformedProcedureStep,
    PerformedScheduledStep,
    ScheduledProcedureStep,
)
from minris.store.rows import fetch_rows

# pydicom warns of what some tests send on purpose
pytestmark = [
    pytest.mark.filterwarnings("ignore:Invalid value for VR CS"),
    pytest.mark.filterwarnings("ignore:Failed to encode value"),
]

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"
DETACHED_PATIENT = "1.2.840.10008.3.1.2.1.1"
UID = "2.25.164853397526153207231186904478612417153"
STATUS = tag_of("PerformedProcedureStepStatus")

# A believable value for each text attribute of the table, and another one of the same VR.
EXAMPLES = {
    "SpecificCharacterSet": "ISO_IR 192",
    "StudyInstanceUID": "2.25.31415926535",
    "AccessionNumber": "2607050007",
    "PlacerOrderNumberImagingServiceRequest": "PO-4711",
    "FillerOrderNumberImagingServiceRequest": "FO-4711",
    "RequestedProcedureID": "R2607050007",
    "RequestedProcedureDescription": "CT chest",
    "ScheduledProcedureStepID": "S2607050007",
    "ScheduledProcedureStepDescription": "CT chest, plain",
    "PatientName": "Wang^XiaoDong=王^小东",
    "PatientID": "P000042",
    "IssuerOfPatientID": "LAKESIDE",
    "PatientBirthDate": "19780312",
    "PatientSex": "M",
    "AdmissionID": "V2026-118",
    "ServiceEpisodeID": "E118",
    "ServiceEpisodeDescription": "Cough",
    "PerformedProcedureStepID": "PPS0930",
    "PerformedStationAETitle": "CT1",
    "PerformedStationName": "CT ROOM 1",
    "PerformedLocation": "Ground floor",
    "PerformedProcedureStepStartDate": "20260705",
    "PerformedProcedureStepStartTime": "093112",
    "PerformedProcedureStepStatus": "IN PROGRESS",
    "PerformedProcedureStepDescription": "CT chest",
    "PerformedProcedureTypeDescription": "Chest",
    "PerformedProcedureStepEndDate": "20260705",
    "PerformedProcedureStepEndTime": "094205",
    "CommentsOnThePerformedProcedureStep": "Patient could not hold his breath",
    "Modality": "CT",
    "StudyID": "1187",
    "PerformingPhysicianName": "Zhao^Min=赵^敏",
    "ProtocolName": "Chest routine",
    "OperatorsName": "Li^Na=李^娜",
    "SeriesInstanceUID": "2.25.27182818284",
    "SeriesDescription": "Axial 5 mm",
    "RetrieveAETitle": "PACS",
    "ArchiveRequested": "YES",
    "ReferencedSOPClassUID": CT_IMAGE_STORAGE,
    "ReferencedSOPInstanceUID": "2.25.16180339887",
}
OTHERS = {
    "AE": "CT2", "CS": "O", "DA": "20260706", "LO": "Other", "PN": "Other^Name", "SH": "OTHER1",
    "ST": "Other", "TM": "101500", "UI": "2.25.4711", "SQ": [],
}  # fmt: skip


# Data sets of a modality.


def dataset(**values):
    """A data set from keywords; a list is a sequence."""
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def code(value, scheme="DCM", meaning="Meaning"):
    """An item of a code sequence."""
    return dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def complete(path=()):
    """A data set with a value for every row of MPPS_ATTRIBUTES; a sequence has one item."""
    ds = Dataset()
    for attribute in MPPS_ATTRIBUTES.children(path):
        if attribute.vr == "SQ" and MPPS_ATTRIBUTES.children(attribute.path):
            value = [complete(attribute.path)]
        elif attribute.vr == "SQ":
            value = [code("110501", meaning="Equipment failure")]
        else:
            value = EXAMPLES[attribute.keyword]
        setattr(ds, attribute.keyword, value)
    return ds


def holder(ds, path):
    """The data set, or the item in it, that the last tag of `path` stands in."""
    for tag in path[:-1]:
        ds = ds[tag].value[0]
    return ds


def scheduled_item(step, **changes):
    """An item of Scheduled Step Attributes as a modality copies it from a worklist answer."""
    inner = step.item("ScheduledProcedureStepSequence")
    ds = dataset(
        StudyInstanceUID=step.get("StudyInstanceUID"),
        ReferencedStudySequence=[],
        AccessionNumber=step.get("AccessionNumber"),
        RequestedProcedureID=step.get("RequestedProcedureID"),
        RequestedProcedureDescription=step.get("RequestedProcedureDescription"),
        ScheduledProcedureStepID=inner.get("ScheduledProcedureStepID"),
        ScheduledProcedureStepDescription=inner.get("ScheduledProcedureStepDescription"),
        ScheduledProtocolCodeSequence=[],
    )
    ds.update(dataset(**changes))
    return ds


def unscheduled_item(**values):
    """An item of Scheduled Step Attributes that knows nothing but what is given."""
    empty = EMPTY
    return scheduled_item(empty, **{"StudyInstanceUID": "2.25.8675309", **values})


def creation(*items, **changes):
    """What a CT sends when it begins: all of type 1 and 2, nothing more."""
    ds = dataset(
        SpecificCharacterSet="ISO_IR 192",
        ScheduledStepAttributesSequence=list(items) or [unscheduled_item()],
        ReferencedPatientSequence=[],
        PerformedStationName="",
        PerformedLocation="",
        PerformedProcedureStepDescription="CT chest",
        PerformedProcedureTypeDescription="",
        ProcedureCodeSequence=[],
        PerformedProcedureStepEndDate="",
        PerformedProcedureStepEndTime="",
        StudyID="",
        PerformedProtocolCodeSequence=[],
        PerformedSeriesSequence=[],
    )
    for keyword in (
        "PatientName PatientID PatientBirthDate PatientSex PerformedProcedureStepID"
        " PerformedStationAETitle PerformedProcedureStepStartDate PerformedProcedureStepStartTime"
        " PerformedProcedureStepStatus Modality"
    ).split():
        setattr(ds, keyword, EXAMPLES[keyword])
    ds.update(dataset(**changes))
    return ds


def creation_for(*steps, **changes):
    """The same for scheduled steps and their patient."""
    texts = {k: steps[0].get(k) for k in ("PatientName", "PatientID")}
    return creation(*map(scheduled_item, steps), **{**texts, **changes})


def series(images=2, **changes):
    """An item of Performed Series Sequence."""
    ds = dataset(
        PerformingPhysicianName="Zhao^Min=赵^敏",
        ProtocolName="Chest routine",
        OperatorsName="Li^Na=李^娜",
        SeriesInstanceUID=new_uid(),
        SeriesDescription="Axial 5 mm",
        RetrieveAETitle="PACS",
        ReferencedImageSequence=[image() for _ in range(images)],
        ReferencedNonImageCompositeSOPInstanceSequence=[],
    )
    ds.update(dataset(**changes))
    return ds


def image():
    return dataset(ReferencedSOPClassUID=CT_IMAGE_STORAGE, ReferencedSOPInstanceUID=new_uid())


def ending(status="COMPLETED", **changes):
    """What a CT sends when it ends."""
    ds = dataset(
        SpecificCharacterSet="ISO_IR 192",
        PerformedProcedureStepStatus=status,
        PerformedProcedureStepEndDate="20260705",
        PerformedProcedureStepEndTime="094205",
        PerformedSeriesSequence=[series()],
    )
    ds.update(dataset(**changes))
    return ds


def discontinuation(reason, scheme="DCM", **changes):
    """What a CT sends when it gives up, with a reason of CID 9301."""
    meaning = DISCONTINUATION_REASONS.get(reason, "Reason")
    reasons = [code(reason, scheme, meaning)]
    keyword = "PerformedProcedureStepDiscontinuationReasonCodeSequence"
    return ending("DISCONTINUED", **{keyword: reasons, **changes})


# The core, called as the DIMSE door calls it.


def stored_form(ds):
    return recode(encode(ds, is_implicit_vr=False, is_little_endian=True))


def create(ctx, ds, uid=UID):
    return create_mpps(ctx, uid, stored_form(ds))


def change(ctx, ds, uid=UID):
    return set_mpps(ctx, uid, stored_form(ds))


def performed_row(uid=UID):
    return PerformedProcedureStep.get_or_none(PerformedProcedureStep.sop_instance_uid == uid)


def kept(uid=UID):
    """Everything that is stored of a performed step, to be compared."""
    row = performed_row(uid)
    return row and {**row.__data__, "data": bytes(row.data)}


def stored(uid=UID):
    """A performed step as pydicom reads it from the stored bytes."""
    return read(bytes(performed_row(uid).data))


def read(data):
    """A data set from its stored form."""
    head = encode_element(SPECIFIC_CHARACTER_SET, b"CS", b"ISO_IR 192")
    ds = decode(io.BytesIO(head + data), False, True)
    del ds.SpecificCharacterSet
    return ds


def links(uid=UID):
    """The scheduled steps a performed one is linked to: {step ID: how it was found}."""
    rows = PerformedScheduledStep.select().where(
        PerformedScheduledStep.performed == performed_row(uid)
    )
    return {row.scheduled.scheduled_procedure_step_id: row.found_by for row in rows}


def step_id(step):
    return step.item("ScheduledProcedureStepSequence").get("ScheduledProcedureStepID")


def step_row(step):
    return find_step(step.get("StudyInstanceUID"), step_id(step))


def state(step):
    return step_row(step).status


def states():
    return [row.status for row in ScheduledProcedureStep.select()]


def schedule(ctx, *more_steps, **texts):
    """Put an exam on the worklist; the stored data set of its one step, or of each."""
    one = item(**texts)
    sequence = one["ScheduledProcedureStepSequence"]["Value"]
    for changes in more_steps:
        other = copy.deepcopy(sequence[0])
        for keyword, value in changes.items():
            other[keyword] = {"vr": vr_of(tag_of(keyword)), "Value": [value]}
        sequence.append(other)
    found = orders_scheduling.schedule(ctx, from_json(one), "separate")
    steps = [ElementIndex(data) for data in found]
    return steps if more_steps else steps[0]


@contextlib.contextmanager
def refused(status):
    """Expects a Refusal with a status; gives it."""
    with pytest.raises(Refusal) as caught:
        yield caught
    assert caught.value.status == status


@pytest.fixture
def step(ctx):
    """A CT of Wang XiaoDong, scheduled."""
    return schedule(ctx)


@pytest.fixture
def strict(ctx):
    """The setting [dicom] strict_mpps."""
    ctx.config.dicom.strict_mpps = True


# The table of attributes.


def rows(column, *kinds):
    """The rows of MPPS_ATTRIBUTES whose cell in a column begins with one of some types."""
    return [
        pytest.param(attribute, id=" > ".join(MPPS_ATTRIBUTES[p].keyword for p in paths(attribute)))
        for attribute in MPPS_ATTRIBUTES.values()
        if attribute.cells[column].partition("/")[0] in kinds
    ]


def paths(attribute):
    return [attribute.path[: n + 1] for n in range(len(attribute.path))]


def top(parameters):
    return [p for p in parameters if len(p.values[0].path) == 1]


def nested(parameters):
    return [p for p in parameters if len(p.values[0].path) > 1]


def in_series(parameters):
    return [p for p in parameters if p.values[0].path[0] == SERIES]


def emptied(ds, attribute):
    holder(ds, attribute.path)[attribute.tag].value = [] if attribute.vr == "SQ" else ""
    return ds


def lacking(ds, attribute):
    del holder(ds, attribute.path)[attribute.tag]
    return ds


def test_table_has_the_top_level_rows_of_type_1_and_2_that_the_standard_has():
    counted = [a for a in MPPS_ATTRIBUTES.children() if a.cells["create"] in ("1/1", "2/2")]
    assert len(counted) == 22


@pytest.mark.parametrize("attribute", rows("create", "1", "2", "3"))
def test_an_attribute_of_the_table_is_stored_as_it_was_sent(ctx, attribute):
    create(ctx, complete())
    sent = holder(complete(), attribute.path)[attribute.tag]
    assert holder(stored(), attribute.path)[attribute.tag].value == sent.value


@pytest.mark.parametrize("attribute", rows("create", "1"))
def test_a_creation_without_a_type_1_attribute_is_refused(ctx, attribute):
    """T-MPPS-04."""
    with refused(Status.MISSING_ATTRIBUTE) as caught:
        create(ctx, lacking(complete(), attribute))
    assert caught.value.tags == (attribute.tag,)
    assert performed_row() is None


@pytest.mark.parametrize("attribute", rows("create", "1"))
def test_a_creation_with_an_empty_type_1_attribute_is_refused(ctx, attribute):
    """T-MPPS-04, T-MPPS-05."""
    with refused(Status.MISSING_ATTRIBUTE_VALUE) as caught:
        create(ctx, emptied(complete(), attribute))
    assert caught.value.tags == (attribute.tag,)
    assert performed_row() is None


@pytest.mark.parametrize("attribute", rows("create", "2"))
def test_a_creation_without_a_type_2_attribute_is_taken_and_noted(ctx, attribute):
    create(ctx, lacking(complete(), attribute))
    assert attribute_name(attribute.tag) in performed_row().remark


@pytest.mark.parametrize("attribute", rows("create", "2"))
def test_a_creation_without_a_type_2_attribute_is_refused_where_strict(ctx, strict, attribute):
    with refused(Status.MISSING_ATTRIBUTE) as caught:
        create(ctx, lacking(complete(), attribute))
    assert caught.value.tags == (attribute.tag,)


@pytest.mark.parametrize("attribute", rows("create", "2", "3"))
def test_a_creation_with_an_empty_type_2_or_3_attribute_is_taken_where_strict(
    ctx, strict, attribute
):
    create(ctx, emptied(complete(), attribute))
    assert performed_row().remark == ""


@pytest.mark.parametrize("attribute", rows("create", "1C", "3"))
def test_a_creation_without_an_optional_attribute_is_taken_where_strict(ctx, strict, attribute):
    create(ctx, lacking(complete(), attribute))
    assert performed_row().remark == ""


@pytest.mark.parametrize("attribute", top(rows("set", "NA")))
def test_what_may_not_be_set_is_refused_where_it_differs(ctx, attribute):
    """T-MPPS-11."""
    create(ctx, complete())
    before = kept()
    with refused(Status.NO_SUCH_ATTRIBUTE) as caught:
        change(ctx, dataset(**{attribute.keyword: OTHERS[attribute.vr]}))
    assert caught.value.tags == (attribute.tag,)
    assert kept() == before


@pytest.mark.parametrize("attribute", nested(rows("set", "NA")))
def test_what_may_not_be_set_is_refused_where_it_differs_within_a_sequence(ctx, attribute):
    create(ctx, complete())
    before, outer = kept(), MPPS_ATTRIBUTES[attribute.path[:1]].keyword
    sent = complete()
    holder(sent, attribute.path)[attribute.tag].value = OTHERS[attribute.vr]
    with refused(Status.NO_SUCH_ATTRIBUTE):
        change(ctx, dataset(**{outer: sent[outer].value}))
    assert kept() == before


@pytest.mark.parametrize("attribute", top(rows("set", "NA")))
def test_what_may_not_be_set_is_taken_where_it_is_the_same(ctx, attribute):
    create(ctx, complete())
    value = complete()[attribute.tag].value
    change(ctx, dataset(SpecificCharacterSet="ISO_IR 192", **{attribute.keyword: value}))
    assert stored() == read(stored_form(complete()))


@pytest.mark.parametrize("attribute", top(rows("set", "NA")))
def test_what_may_not_be_set_is_refused_where_it_was_not_created(ctx, attribute):
    optional = attribute.cells["create"].startswith("3")
    create(ctx, lacking(complete(), attribute) if optional else complete())
    with refused(Status.NO_SUCH_ATTRIBUTE):
        change(ctx, dataset(**{attribute.keyword: OTHERS[attribute.vr] or [code("110513")]}))


def test_a_name_that_differs_by_empty_components_alone_is_the_same(ctx):
    create(ctx, complete())
    change(ctx, dataset(SpecificCharacterSet="ISO_IR 192", PatientName="Wang^XiaoDong^^^=王^小东"))
    assert stored().PatientName == "Wang^XiaoDong=王^小东"


@pytest.mark.parametrize(
    "attribute", [p for p in top(rows("set", "3")) if p.values[0].tag != STATUS]
)
def test_what_may_be_set_replaces_what_was_stored(ctx, attribute):
    create(ctx, complete())
    value = OTHERS[attribute.vr] or [code("110513")]
    if attribute.tag == SERIES:
        value = [series()]
    change(ctx, dataset(SpecificCharacterSet="ISO_IR 192", **{attribute.keyword: value}))
    expected = complete()
    expected[attribute.tag].value = value
    assert stored() == read(stored_form(expected))


@pytest.mark.parametrize("attribute", in_series(nested(rows("set", "1"))))
def test_a_series_without_a_type_1_attribute_is_not_set(ctx, attribute):
    create(ctx, creation())
    before = kept()
    with refused(Status.MISSING_ATTRIBUTE) as caught:
        change(ctx, dataset(PerformedSeriesSequence=lacking(complete(), attribute)[SERIES]))
    assert caught.value.tags == (attribute.tag,)
    assert kept() == before


@pytest.mark.parametrize("attribute", in_series(nested(rows("set", "2"))))
def test_a_series_without_a_type_2_attribute_is_set_and_noted(ctx, attribute):
    create(ctx, creation())
    change(ctx, dataset(PerformedSeriesSequence=lacking(complete(), attribute)[SERIES]))
    assert attribute_name(attribute.tag) in performed_row().remark


@pytest.mark.parametrize("status", sorted(FINAL_MPPS_STATES))
@pytest.mark.parametrize("attribute", in_series(nested(rows("final", "1"))))
def test_an_end_with_a_series_that_lacks_a_type_1_attribute_is_refused(ctx, attribute, status):
    create(ctx, creation())
    before = kept()
    with refused(Status.MISSING_ATTRIBUTE) as caught:
        change(ctx, lacking(complete_ending(status), attribute))
    assert caught.value.tags == (attribute.tag,)
    assert kept() == before


@pytest.mark.parametrize("status", sorted(FINAL_MPPS_STATES))
@pytest.mark.parametrize("attribute", in_series(nested(rows("final", "1"))))
def test_an_end_with_a_series_with_an_empty_type_1_attribute_is_refused(ctx, attribute, status):
    create(ctx, creation())
    before = kept()
    with refused(Status.MISSING_ATTRIBUTE_VALUE) as caught:
        change(ctx, emptied(complete_ending(status), attribute))
    assert caught.value.tags == (attribute.tag,)
    assert kept() == before


@pytest.mark.parametrize("attribute", in_series(rows("final", "2")))
def test_an_end_with_a_series_that_lacks_a_type_2_attribute_is_taken_and_noted(ctx, attribute):
    create(ctx, creation())
    change(ctx, lacking(complete_ending(), attribute))
    assert attribute_name(attribute.tag) in performed_row().remark
    assert performed_row().status == "COMPLETED"


@pytest.mark.parametrize("status", sorted(FINAL_MPPS_STATES))
@pytest.mark.parametrize("attribute", in_series(rows("final", "2")))
def test_an_end_with_a_series_that_lacks_a_type_2_attribute_is_refused_where_strict(
    ctx, strict, attribute, status
):
    create(ctx, creation())
    with refused(Status.MISSING_ATTRIBUTE):
        change(ctx, lacking(complete_ending(status), attribute))
    assert performed_row().status == "IN PROGRESS"


@pytest.mark.parametrize("attribute", in_series(rows("final", "2")))
def test_an_end_with_a_series_with_an_empty_type_2_attribute_is_taken_where_strict(
    ctx, strict, attribute
):
    create(ctx, creation())
    change(ctx, emptied(complete_ending(), attribute))
    assert (performed_row().status, performed_row().remark) == ("COMPLETED", "")


@pytest.mark.parametrize("attribute", top(rows("final", "1")))
def test_a_completion_without_what_the_end_needs_is_refused(ctx, attribute):
    """T-MPPS-13, T-MPPS-14."""
    create(ctx, creation())
    before = kept()
    with refused(Status.MISSING_ATTRIBUTE_VALUE) as caught:
        change(ctx, lacking(complete_ending(), attribute))
    assert caught.value.tags == (attribute.tag,)
    assert kept() == before


@pytest.mark.parametrize("attribute", top(rows("final", "1")))
def test_a_completion_is_refused_where_what_the_end_needs_was_never_there(ctx, attribute):
    create(ctx, lacking(creation(), attribute))
    with refused(Status.MISSING_ATTRIBUTE):
        change(ctx, lacking(complete_ending(), attribute))
    assert performed_row().status == "IN PROGRESS"


@pytest.mark.parametrize("attribute", top(rows("final", "1")))
def test_what_the_end_needs_may_have_been_there_before(ctx, attribute):
    create(ctx, creation())
    change(ctx, dataset(**{attribute.keyword: complete()[attribute.tag].value}))
    change(ctx, lacking(complete_ending(), attribute))
    assert performed_row().status == "COMPLETED"


def complete_ending(status="COMPLETED"):
    """What ends a step, with every attribute of a series."""
    return ending(status, PerformedSeriesSequence=complete().PerformedSeriesSequence)


# The state machine.


def in_state(ctx, state):
    """A performed step in a state of MPPS_TRANSITIONS; none for "none"."""
    if state != "none":
        create(ctx, creation())
    if state in FINAL_MPPS_STATES:
        change(ctx, ending(state))


def let_happen(ctx, event):
    """Let an event of MPPS_TRANSITIONS happen."""
    if event == "create":
        create(ctx, creation(PerformedProcedureStepID="PPS0931"))
    elif event == "set":
        change(ctx, dataset(PerformedProcedureStepDescription="CT chest with contrast"))
    else:
        change(ctx, ending(event.removeprefix("set ")))


@pytest.mark.parametrize(
    ("event", "before"),
    [cell for cell, outcome in MPPS_TRANSITIONS.items() if isinstance(outcome, Status)],
)
def test_an_event_that_the_state_does_not_allow_is_refused_and_changes_nothing(ctx, event, before):
    """T-MPPS-03, T-MPPS-06, T-MPPS-08, T-MPPS-09."""
    in_state(ctx, before)
    was = kept()
    with refused(MPPS_TRANSITIONS[event, before]):
        let_happen(ctx, event)
    assert kept() == was


@pytest.mark.parametrize(
    ("event", "before"),
    [cell for cell, outcome in MPPS_TRANSITIONS.items() if not isinstance(outcome, Status)],
)
def test_an_event_that_the_state_allows_leads_to_the_next(ctx, event, before):
    in_state(ctx, before)
    let_happen(ctx, event)
    assert performed_row().status == MPPS_TRANSITIONS[event, before]
    assert stored().PerformedProcedureStepStatus == MPPS_TRANSITIONS[event, before]


@pytest.mark.parametrize(("event", "before", "outcome"), [
    ("create", "none", "IN PROGRESS"),
    ("create", "IN PROGRESS", 0x0111),
    ("create", "COMPLETED", 0x0111),
    ("set", "none", 0x0112),
    ("set COMPLETED", "IN PROGRESS", "COMPLETED"),
    ("set DISCONTINUED", "IN PROGRESS", "DISCONTINUED"),
    ("set IN PROGRESS", "COMPLETED", 0x0110),
    ("set COMPLETED", "COMPLETED", 0x0110),
    ("set COMPLETED", "DISCONTINUED", 0x0110),
    ("set", "DISCONTINUED", 0x0110),
])  # fmt: skip
def test_transitions_are_those_of_the_standard(event, before, outcome):
    assert MPPS_TRANSITIONS[event, before] == outcome


@pytest.mark.parametrize("before", sorted(FINAL_MPPS_STATES))
@pytest.mark.parametrize("event", sorted({e for e, _ in MPPS_TRANSITIONS} - {"create"}))
def test_what_has_ended_is_refused_with_a710(ctx, event, before):
    """T-MPPS-08, T-MPPS-09."""
    in_state(ctx, before)
    with refused(Status.PROCESSING_FAILURE) as caught:
        let_happen(ctx, event)
    assert caught.value.error_id == 0xA710


def test_the_same_end_again_is_refused(ctx):
    """T-MPPS-08: even an identical repeat."""
    create(ctx, creation())
    end = ending()
    change(ctx, end)
    with refused(Status.PROCESSING_FAILURE):
        change(ctx, end)


def test_a_refused_word_after_the_end_is_still_answered_by_the_end(ctx):
    """T-MPPS-08: any N-SET, also one that would be wrong before the end."""
    in_state(ctx, "COMPLETED")
    for ds in (dataset(PerformedProcedureStepStatus="FOO"), dataset(PatientID="P999999")):
        with refused(Status.PROCESSING_FAILURE) as caught:
            change(ctx, ds)
        assert caught.value.error_id == 0xA710


@pytest.mark.parametrize("status", ["COMPLETED", "DISCONTINUED", "SCHEDULED", "in progress"])
def test_a_step_is_created_in_progress_or_not_at_all(ctx, status):
    """T-MPPS-02."""
    with refused(Status.INVALID_ATTRIBUTE_VALUE) as caught:
        create(ctx, creation(PerformedProcedureStepStatus=status))
    assert caught.value.tags == (STATUS,)
    assert performed_row() is None


@pytest.mark.parametrize("status", ["SCHEDULED", "FOO", "completed", "COMPLETED\\DISCONTINUED"])
def test_another_status_is_not_set(ctx, status):
    """T-MPPS-10."""
    create(ctx, creation())
    before = kept()
    with refused(Status.INVALID_ATTRIBUTE_VALUE) as caught:
        change(ctx, ending(status))
    assert caught.value.tags == (STATUS,)
    assert kept() == before


def test_an_empty_status_does_not_take_the_state_away(ctx):
    create(ctx, creation())
    with contextlib.suppress(Refusal):
        change(ctx, dataset(PerformedProcedureStepStatus=""))
    assert stored().PerformedProcedureStepStatus == "IN PROGRESS"


def test_in_progress_again_is_normal(ctx, step):
    create(ctx, creation_for(step))
    change(ctx, dataset(PerformedProcedureStepStatus="IN PROGRESS", StudyID=""))
    assert (performed_row().status, state(step)) == ("IN PROGRESS", "STARTED")


# N-CREATE.


def test_a_step_created_in_full_starts_its_scheduled_step(ctx, step):
    """T-MPPS-01."""
    assert create(ctx, creation_for(step)) == UID
    assert state(step) == "STARTED"


def test_a_started_step_says_so_in_its_worklist_data_set(ctx, step):
    create(ctx, creation_for(step))
    [inner] = read(bytes(step_row(step).data)).ScheduledProcedureStepSequence
    assert inner.ScheduledProcedureStepStatus == "STARTED"


def test_an_instance_uid_is_made_where_none_is_given(ctx, step):
    uid = create(ctx, creation_for(step), uid="")
    assert re.fullmatch(r"2\.25\.\d+", uid)
    assert stored(uid).PerformedProcedureStepID == "PPS0930"


@pytest.mark.parametrize("uid", ["1.2.03", "1.2.", "abc", "2.25." + "1" * 60])
def test_an_instance_uid_that_is_none_is_refused(ctx, uid):
    with refused(Status.INVALID_SOP_INSTANCE):
        create(ctx, creation(), uid)
    assert performed_row(uid) is None


def test_the_same_instance_uid_again_starts_no_other_step(ctx, step):
    """T-MPPS-03."""
    other = schedule(ctx, name="Li^Na=李^娜")
    create(ctx, creation_for(step))
    with refused(Status.DUPLICATE_SOP_INSTANCE):
        create(ctx, creation_for(other))
    assert (state(step), state(other)) == ("STARTED", "SCHEDULED")


def test_a_creation_of_nothing_names_all_it_lacks(ctx):
    with refused(Status.MISSING_ATTRIBUTE) as caught:
        create(ctx, Dataset())
    wanted = {a.tag for a in MPPS_ATTRIBUTES.children() if a.cells["create"] == "1/1"}
    assert set(caught.value.tags) == wanted


def test_attributes_that_nobody_asked_for_are_kept(ctx):
    ds = creation(PatientWeight="78.5", TotalNumberOfExposures=3)
    private = ds.private_block(0x0045, "LAKESIDE CT", create=True)
    private.add_new(0x01, "LO", "Tube 2")
    create(ctx, ds)
    found = stored()
    assert (found.PatientWeight, found.TotalNumberOfExposures) == (78.5, 3)
    assert found.private_block(0x0045, "LAKESIDE CT")[0x01].value == "Tube 2"


SUP_233 = (
    "GenderIdentitySequence",
    "SexParametersForClinicalUseCategorySequence",
    "PersonNamesToUseSequence",
    "ThirdPersonPronounsSequence",
)


@pytest.mark.parametrize("keyword", SUP_233)
def test_the_sequences_on_gender_are_taken(ctx, strict, keyword):
    """T-MPPS-25."""
    inner = {
        "GenderIdentitySequence": dataset(GenderIdentityCodeSequence=[code("446141000124107")]),
        "PersonNamesToUseSequence": dataset(NameToUse="Xiao Wang"),
    }.get(keyword, dataset(EffectiveStartDateTime="20260101"))
    create(ctx, creation(**{keyword: [inner]}))
    assert stored()[keyword].value[0] == inner


def test_uids_of_the_command_set_may_stand_in_the_data_set(ctx):
    create(ctx, creation(SOPClassUID=MPPS, SOPInstanceUID=UID))
    assert performed_row().status == "IN PROGRESS"


def test_a_data_set_of_another_instance_is_refused(ctx):
    with refused(Status.INVALID_ATTRIBUTE_VALUE):
        create(ctx, creation(SOPInstanceUID="2.25.4711"))


def test_audit_tells_creation_and_change_apart(ctx, step):
    create(ctx, creation_for(step))
    change(ctx, ending())
    lines = Audit.select().where(Audit.about == UID).order_by(Audit.id)
    told = [(line.who, line.what, line.detail) for line in lines]
    assert told == [
        ("CT1@127.0.0.1", "performed step created", "1 of 1 steps found"),
        ("CT1@127.0.0.1", "performed step set", "IN PROGRESS -> COMPLETED"),
    ]


# N-SET.


def test_a_completion_with_its_series_completes_the_scheduled_step(ctx, step):
    """T-MPPS-07."""
    create(ctx, creation_for(step))
    change(ctx, ending())
    assert (performed_row().status, state(step)) == ("COMPLETED", "COMPLETED")


def test_a_completion_without_any_series_is_refused(ctx, step):
    """T-MPPS-14."""
    create(ctx, creation_for(step))
    with refused(Status.MISSING_ATTRIBUTE_VALUE):
        change(ctx, ending(PerformedSeriesSequence=[]))
    assert (performed_row().status, state(step)) == ("IN PROGRESS", "STARTED")


def test_a_discontinuation_without_any_series_is_taken_and_flagged(ctx, step):
    """T-MPPS-14."""
    create(ctx, creation_for(step))
    change(ctx, discontinuation("110505", PerformedSeriesSequence=[]))
    assert performed_row().status == "DISCONTINUED"
    assert "Performed Series Sequence (0040,0340)" in performed_row().remark


@pytest.mark.parametrize("attribute", top(rows("final", "1")))
def test_a_discontinuation_that_lacks_something_is_refused_where_strict(ctx, strict, attribute):
    """T-MPPS-14."""
    create(ctx, creation())
    with refused(Status.MISSING_ATTRIBUTE_VALUE):
        change(ctx, lacking(discontinuation("110505"), attribute))
    assert performed_row().status == "IN PROGRESS"


def test_a_sequence_that_is_set_replaces_the_stored_one(ctx):
    """T-MPPS-12."""
    create(ctx, creation(PerformedSeriesSequence=[series(), series()]))
    last = series(images=1)
    change(ctx, dataset(SpecificCharacterSet="ISO_IR 192", PerformedSeriesSequence=[last]))
    [found] = stored().PerformedSeriesSequence
    assert found.SeriesInstanceUID == last.SeriesInstanceUID
    assert len(found.ReferencedImageSequence) == 1


def test_what_is_not_set_stays(ctx):
    create(ctx, creation(CommentsOnThePerformedProcedureStep="Came by wheelchair"))
    change(ctx, ending())
    assert stored().CommentsOnThePerformedProcedureStep == "Came by wheelchair"


def test_an_optional_attribute_can_be_blanked(ctx):
    create(ctx, creation(CommentsOnThePerformedProcedureStep="Wrong patient?"))
    change(ctx, dataset(CommentsOnThePerformedProcedureStep=""))
    assert stored().CommentsOnThePerformedProcedureStep == ""


def test_a_reason_that_was_not_created_is_kept(ctx):
    """Losing the reason is worse than note 5 of PS3.4 Table F.7.2-1."""
    create(ctx, creation())
    change(ctx, discontinuation("110501"))
    [reason] = stored().PerformedProcedureStepDiscontinuationReasonCodeSequence
    assert (reason.CodeValue, reason.CodeMeaning) == ("110501", "Equipment failure")


def test_one_wrong_attribute_among_good_ones_changes_nothing(ctx):
    create(ctx, creation())
    before = kept()
    with refused(Status.NO_SUCH_ATTRIBUTE):
        change(ctx, ending(PatientID="P999999", PatientName="Li^Na=李^娜"))
    assert kept() == before


def test_a_refused_set_names_all_that_may_not_be_set(ctx):
    create(ctx, creation())
    with refused(Status.NO_SUCH_ATTRIBUTE) as caught:
        change(ctx, ending(PatientID="P999999", Modality="MR"))
    assert caught.value.tags == (tag_of("Modality"), tag_of("PatientID"))


def test_what_was_missing_at_the_start_is_still_noted_after_the_end(ctx):
    create(ctx, lacking(creation(), MPPS_ATTRIBUTES[tag_of("PatientSex"),]))
    change(ctx, discontinuation("110505", PerformedSeriesSequence=[]))
    remark = performed_row().remark
    assert "Patient's Sex" in remark
    assert "Performed Series Sequence" in remark


def test_the_final_data_set_is_creation_and_changes_together(ctx, step):
    sent, end = creation_for(step), ending()
    create(ctx, sent)
    change(ctx, dataset(PerformedProtocolCodeSequence=[code("CHEST", "99LAKESIDE", "Chest")]))
    change(ctx, end)
    sent.update(end)
    sent.PerformedProtocolCodeSequence = [code("CHEST", "99LAKESIDE", "Chest")]
    assert stored() == read(stored_form(sent))


def test_stored_bytes_stand_in_ascending_order_without_character_set(ctx):
    create(ctx, creation())
    change(ctx, ending())
    tags = list(ElementIndex(bytes(performed_row().data)))
    assert tags == sorted(tags)
    assert SPECIFIC_CHARACTER_SET not in tags


# Character sets.


def test_latin_creation_and_utf_8_change_are_both_right(ctx):
    """T-MPPS-19."""
    create(ctx, creation(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg"))
    change(ctx, ending())
    found = stored()
    assert found.PatientName == "Müller^Jörg"
    assert found.PerformedSeriesSequence[0].OperatorsName == "Li^Na=李^娜"


def test_a_change_without_character_set_leaves_older_texts_alone(ctx):
    """T-MPPS-19."""
    create(ctx, creation(SpecificCharacterSet="GB18030"))
    change(ctx, dataset(PerformedProcedureStepDescription="CT chest"))
    assert stored().PatientName == "Wang^XiaoDong=王^小东"


def test_the_same_name_in_another_character_set_may_be_sent_again(ctx):
    create(ctx, creation(SpecificCharacterSet="GB18030"))
    change(ctx, ending(SpecificCharacterSet="ISO_IR 192", PatientName="Wang^XiaoDong=王^小东"))
    assert performed_row().status == "COMPLETED"


def test_a_text_in_an_unknown_set_is_read_right_or_refused_never_damaged(appliance):
    """T-CS-04."""
    ds = creation(SpecificCharacterSet="\\ISO 2022 IR 87", PatientName="Yamada^Tarou=山田^太郎")
    with modality(appliance) as call:
        answer = call.create(ds)
    if answer.status == 0x0000:
        assert appliance.read(stored).PatientName.ideographic == "山田^太郎"
    else:
        assert (answer.status, appliance.read(performed_row)) == (0x0106, None)


# What it does to the scheduled steps.


def test_a_step_of_a_group_each_follow_the_performed_one(ctx):
    """T-MPPS-16: several scheduled steps, one performed."""
    chest = schedule(ctx, PatientID="P000042")
    abdomen = schedule(ctx, PatientID="P000042", RequestedProcedureDescription="CT abdomen")
    create(ctx, creation_for(chest, abdomen))
    assert (state(chest), state(abdomen)) == ("STARTED", "STARTED")
    change(ctx, ending())
    assert (state(chest), state(abdomen)) == ("COMPLETED", "COMPLETED")


def test_a_group_under_one_new_study_is_found_by_its_accession_numbers(ctx):
    """T-MPPS-16: the original study UIDs are in Referenced Study Sequence."""
    steps = [schedule(ctx, PatientID="P000042") for _ in range(2)]
    items = [
        scheduled_item(
            step,
            StudyInstanceUID="2.25.555",
            ReferencedStudySequence=[
                dataset(
                    ReferencedSOPClassUID=DETACHED_STUDY,
                    ReferencedSOPInstanceUID=step.get("StudyInstanceUID"),
                )
            ],
        )
        for step in steps
    ]
    create(ctx, creation(*items, PatientID="P000042"))
    assert [state(step) for step in steps] == ["STARTED", "STARTED"]


def test_two_steps_of_one_procedure_follow_their_own_performed_steps(ctx):
    plain, contrast = schedule(ctx, {"ScheduledProcedureStepDescription": "with contrast"})
    create(ctx, creation_for(plain))
    change(ctx, ending())
    create(ctx, creation_for(contrast), "2.25.2")
    assert (state(plain), state(contrast)) == ("COMPLETED", "STARTED")


def test_a_second_performed_step_for_the_same_scheduled_one_is_linked_too(ctx, step):
    """T-MPPS-18: append."""
    create(ctx, creation_for(step), "2.25.1")
    change(ctx, ending(), "2.25.1")
    create(ctx, creation_for(step), "2.25.2")
    assert links("2.25.1") == links("2.25.2") == {step_id(step): "study"}
    assert len(states()) == 1


def test_a_scheduled_step_is_done_when_all_its_performed_ones_are(ctx, step):
    create(ctx, creation_for(step), "2.25.1")
    create(ctx, creation_for(step), "2.25.2")
    change(ctx, ending(), "2.25.1")
    assert state(step) == "STARTED"
    change(ctx, ending(), "2.25.2")
    assert state(step) == "COMPLETED"


def test_what_was_completed_in_part_is_completed(ctx, step):
    create(ctx, creation_for(step), "2.25.1")
    create(ctx, creation_for(step), "2.25.2")
    change(ctx, ending(), "2.25.1")
    change(ctx, discontinuation("110515"), "2.25.2")
    assert state(step) == "COMPLETED"


@pytest.mark.parametrize(
    "reason", sorted(DISCONTINUATION_REASONS.keys() - {INCORRECT_WORKLIST_ENTRY})
)
def test_a_discontinued_step_is_discontinued(ctx, step, reason):
    create(ctx, creation_for(step))
    change(ctx, discontinuation(reason))
    assert state(step) == "DISCONTINUED"


def test_a_discontinuation_without_reason_is_one(ctx, step):
    create(ctx, creation_for(step))
    change(ctx, ending("DISCONTINUED"))
    assert state(step) == "DISCONTINUED"


def test_a_wrong_entry_puts_the_step_back_on_the_list(ctx, step):
    """T-MPPS-15."""
    create(ctx, creation_for(step))
    change(ctx, discontinuation("110514", PerformedSeriesSequence=[]))
    assert (performed_row().status, state(step)) == ("DISCONTINUED", "SCHEDULED")


def test_a_wrong_entry_puts_each_step_of_a_group_back(ctx):
    """T-MPPS-15."""
    steps = [schedule(ctx, PatientID="P000042") for _ in range(2)]
    create(ctx, creation_for(*steps))
    change(ctx, discontinuation("110514"))
    assert [state(step) for step in steps] == ["SCHEDULED", "SCHEDULED"]


@pytest.mark.parametrize(
    ("event", "before"),
    [("arrive", "ARRIVED"), ("cancel", "CANCELED"), ("no show", "NO SHOW"), ("depart", "DEPARTED")],
)
def test_a_wrong_entry_leaves_the_step_as_it_was(ctx, step, event, before):
    """T-MPPS-15: a canceled exam that was picked by mistake is not asked for again."""
    change_step(ctx, event, step.get("StudyInstanceUID"), step_id(step))
    create(ctx, creation_for(step))
    change(ctx, discontinuation("110514"))
    assert state(step) == before


def test_a_wrong_entry_does_not_undo_what_another_performed_step_did(ctx, step):
    create(ctx, creation_for(step), "2.25.1")
    change(ctx, ending(), "2.25.1")
    create(ctx, creation_for(step), "2.25.2")
    change(ctx, discontinuation("110514"), "2.25.2")
    assert state(step) == "COMPLETED"


def test_after_two_wrong_entries_the_step_is_back_on_the_list(ctx, step):
    create(ctx, creation_for(step), "2.25.1")
    create(ctx, creation_for(step), "2.25.2")
    change(ctx, discontinuation("110514"), "2.25.1")
    assert state(step) == "STARTED"
    change(ctx, discontinuation("110514"), "2.25.2")
    assert state(step) == "SCHEDULED"


def test_a_site_code_of_the_same_number_is_no_wrong_entry(ctx, step):
    create(ctx, creation_for(step))
    change(ctx, discontinuation("110514", scheme="99LAKESIDE"))
    assert state(step) == "DISCONTINUED"


def test_an_unscheduled_step_is_kept_and_touches_no_scheduled_one(ctx, step):
    """T-MPPS-17."""
    create(ctx, creation(unscheduled_item(), PatientID=step.get("PatientID")))
    change(ctx, ending())
    assert performed_row().status == "COMPLETED"
    assert (links(), state(step)) == ({}, "SCHEDULED")


def test_an_unscheduled_step_is_listed_for_a_person_to_match(ctx, step):
    """T-MPPS-17."""
    create(ctx, creation(unscheduled_item()), "2.25.1")
    create(ctx, creation_for(step), "2.25.2")
    assert [row.sop_instance_uid for row in unscheduled_steps()] == ["2.25.1"]


def test_a_step_matched_by_a_person_follows_the_performed_one(ctx, step):
    create(ctx, creation(unscheduled_item()))
    link_by_hand(ctx, performed_row().id, step_row(step).id)
    assert (links(), state(step)) == ({step_id(step): "by hand"}, "STARTED")
    change(ctx, ending())
    assert (unscheduled_steps(), state(step)) == ([], "COMPLETED")


def test_a_match_by_a_person_can_be_undone(ctx, step):
    create(ctx, creation(unscheduled_item()))
    link_by_hand(ctx, performed_row().id, step_row(step).id)
    unlink_step(ctx, performed_row().id, step_row(step).id)
    assert (links(), state(step)) == ({}, "SCHEDULED")


def test_an_unscheduled_step_left_without_an_order_is_listed_no_more(ctx):
    create(ctx, creation(unscheduled_item()))
    settle_unscheduled(ctx, performed_row().id, "Emergency, order written later")
    assert unscheduled_steps() == []


def test_an_unscheduled_step_with_empty_type_2_attributes_is_taken_where_strict(ctx, strict):
    """T-MPPS-17."""
    texts = dict.fromkeys(("PatientName", "PatientID", "PatientBirthDate", "PatientSex"), "")
    create(ctx, creation(unscheduled_item(), **texts))
    assert performed_row().remark == ""


def test_an_unscheduled_step_makes_no_patient(ctx):
    create(ctx, creation(PatientID="P777777", PatientName="Nobody^Known"))
    assert list(Patient.select()) == []


def test_a_group_with_an_unknown_item_starts_the_known_one(ctx, step):
    items = [unscheduled_item(AccessionNumber="NOT-OURS"), scheduled_item(step)]
    create(ctx, creation(*items, PatientID=step.get("PatientID")))
    assert links() == {step_id(step): "study"}


def test_the_same_item_twice_links_once(ctx, step):
    create(ctx, creation_for(step, step))
    assert links() == {step_id(step): "study"}


# How a scheduled step is found.


def test_a_step_is_found_by_study_procedure_and_step_id(ctx):
    first, second = schedule(ctx, {"Modality": "CT"})
    create(ctx, creation_for(second))
    assert links() == {step_id(second): "study"}
    assert (state(first), state(second)) == ("SCHEDULED", "STARTED")


def test_a_step_id_is_looked_for_within_its_study(ctx):
    ours = schedule(ctx, ScheduledProcedureStepID="1", StudyInstanceUID="2.25.11")
    other = schedule(ctx, ScheduledProcedureStepID="1", StudyInstanceUID="2.25.12")
    create(ctx, creation_for(ours))
    assert (state(ours), state(other)) == ("STARTED", "SCHEDULED")


def test_the_only_step_of_a_study_is_found_by_the_study(ctx, step):
    empty = dict.fromkeys(
        ("AccessionNumber", "RequestedProcedureID", "ScheduledProcedureStepID"), ""
    )
    create(ctx, creation(scheduled_item(step, **empty), PatientID=step.get("PatientID")))
    assert links() == {step_id(step): "study"}


def test_two_steps_of_a_study_without_a_step_id_are_left_to_a_person(ctx):
    steps = schedule(ctx, {"Modality": "CT"})
    which = scheduled_item(steps[0], ScheduledProcedureStepID="")
    create(ctx, creation(which, PatientID=steps[0].get("PatientID")))
    assert (links(), states()) == ({}, ["SCHEDULED", "SCHEDULED"])


def test_a_step_is_found_by_accession_number_under_another_study(ctx, step):
    which = scheduled_item(step, StudyInstanceUID="2.25.555")
    create(ctx, creation(which, PatientID=step.get("PatientID")))
    assert links() == {step_id(step): "accession number"}


def test_a_step_is_found_by_accession_number_alone(ctx, step):
    which = unscheduled_item(AccessionNumber=step.get("AccessionNumber"))
    create(ctx, creation(which, PatientID=step.get("PatientID")))
    assert links() == {step_id(step): "accession number"}


def test_one_of_two_steps_of_an_accession_number_is_found_by_its_id(ctx):
    _, second = schedule(ctx, {"Modality": "CT"})
    which = scheduled_item(second, StudyInstanceUID="2.25.555")
    create(ctx, creation(which, PatientID=second.get("PatientID")))
    assert links() == {step_id(second): "accession number"}


def test_an_accession_number_of_two_steps_is_left_to_a_person(ctx):
    steps = schedule(ctx, {"Modality": "CT"})
    which = unscheduled_item(AccessionNumber=steps[0].get("AccessionNumber"))
    create(ctx, creation(which, PatientID=steps[0].get("PatientID")))
    assert (links(), states()) == ({}, ["SCHEDULED", "SCHEDULED"])


def test_a_step_is_found_by_its_id_where_no_other_has_it(ctx, step):
    which = unscheduled_item(ScheduledProcedureStepID=step_id(step))
    create(ctx, creation(which, PatientID=step.get("PatientID")))
    assert links() == {step_id(step): "step ID"}


def test_a_step_id_of_two_steps_is_left_to_a_person(ctx):
    for _ in range(2):
        schedule(ctx, ScheduledProcedureStepID="1", PatientID="P000042")
    which = unscheduled_item(ScheduledProcedureStepID="1")
    create(ctx, creation(which, PatientID="P000042"))
    assert (links(), states()) == ({}, ["SCHEDULED", "SCHEDULED"])


@pytest.mark.parametrize("keyword", ["AccessionNumber", "ScheduledProcedureStepID"])
def test_another_patients_step_is_never_taken_by_a_number(ctx, step, keyword):
    value = scheduled_item(step)[keyword].value
    which = unscheduled_item(**{keyword: value})
    create(ctx, creation(which, PatientID="P999999", PatientName=step.get("PatientName")))
    assert (links(), state(step)) == ({}, "SCHEDULED")


def test_a_step_is_never_found_by_the_patients_name_or_id(ctx, step):
    """T-MPPS-17."""
    same = {k: step.get(k) for k in ("PatientName", "PatientID")}
    create(ctx, creation(unscheduled_item(), **same))
    assert (links(), state(step)) == ({}, "SCHEDULED")


# Over the network, with pynetdicom as the modality.


class Answer:
    """A response as it came over the wire: status, command set and data set."""

    def __init__(self, command, data, explicit):
        self.command, self.status, self.data = command, command.Status, data
        self.dataset = decode(io.BytesIO(data), not explicit, True) if data else None


class Caller:
    """A modality with an association."""

    def __init__(self, association, received):
        self.association, self.received = association, received

    def create(self, ds, uid=UID):
        self.association.send_n_create(ds, MPPS, uid)
        return self.answer()

    def set(self, ds, uid=UID):
        self.association.send_n_set(ds, MPPS, uid)
        return self.answer()

    def answer(self):
        [context] = self.association.accepted_contexts
        explicit = not context.transfer_syntax[0].is_implicit_VR
        return Answer(*self.received.pop(), explicit)


@contextlib.contextmanager
def modality(appliance, calling="CT1", syntax=EXPLICIT_VR_LITTLE_ENDIAN):
    """An association of a modality by pynetdicom."""
    ae, received = AE(calling), []
    ae.add_requested_context(MPPS, syntax)

    def keep(event):
        received.append((event.message.command_set, event.message.data_set.getvalue()))

    handlers = [(evt.EVT_DIMSE_RECV, keep)]
    association = ae.associate(
        peers.HOST, appliance.port, ae_title="MINRIS", evt_handlers=handlers, max_pdu=16384
    )
    assert association.is_established
    peers.leave_answers(association)
    try:
        yield Caller(association, received)
    finally:
        association.release()


SYNTAXES = [IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_an_exam_is_reported_in_either_syntax(appliance, syntax):
    [step] = appliance.schedule(item())
    sent, end = creation_for(step), ending()
    with modality(appliance, syntax=syntax) as call:
        assert call.create(sent).status == 0x0000
        assert call.set(end).status == 0x0000
    sent.update(end)
    assert appliance.read(stored) == read(stored_form(sent))
    assert appliance.read(state, step) == "COMPLETED"


def test_the_instance_uid_that_was_made_is_returned(appliance):
    with modality(appliance) as call:
        answer = call.create(creation(), uid=None)
    assert answer.status == 0x0000
    assert appliance.read(performed_row, answer.command.AffectedSOPInstanceUID)


def test_two_series_with_two_thousand_images_are_kept_whole(appliance):
    """T-MPPS-24."""
    end = ending(PerformedSeriesSequence=[series(images=1000), series(images=1000)])
    with modality(appliance) as call:
        call.create(creation())
        assert call.set(end).status == 0x0000
    assert appliance.read(stored).PerformedSeriesSequence == end.PerformedSeriesSequence


def test_a_status_that_cannot_be_is_sent_back_in_the_attribute_list(appliance):
    """T-MPPS-02."""
    with modality(appliance) as call:
        answer = call.create(creation(PerformedProcedureStepStatus="COMPLETED"))
    assert answer.status == 0x0106
    assert answer.dataset == dataset(PerformedProcedureStepStatus="COMPLETED")


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_attribute_list_of_a_refusal_is_in_the_syntax_of_its_context(appliance, syntax):
    """T-MPPS-10."""
    with modality(appliance, syntax=syntax) as call:
        call.create(creation())
        answer = call.set(dataset(PerformedProcedureStepStatus="SCHEDULED"))
    assert answer.status == 0x0106
    implicit = syntax == IMPLICIT_VR_LITTLE_ENDIAN
    assert answer.data == encode(dataset(PerformedProcedureStepStatus="SCHEDULED"), implicit, True)


def test_what_is_missing_is_named_in_the_attribute_identifier_list(appliance):
    """T-MPPS-04."""
    ds = creation()
    del ds.PerformedStationAETitle
    with modality(appliance) as call:
        answer = call.create(ds)
    assert answer.status == 0x0120
    assert answer.command.AttributeIdentifierList == tag_of("PerformedStationAETitle")


def test_several_missing_attributes_are_all_named(appliance):
    ds = creation()
    del ds.PerformedStationAETitle, ds.Modality
    with modality(appliance) as call:
        answer = call.create(ds)
    wanted = [tag_of(keyword) for keyword in ("Modality", "PerformedStationAETitle")]
    assert list(answer.command.AttributeIdentifierList) == wanted


def test_what_has_no_value_is_sent_back_in_the_attribute_list(appliance):
    """T-MPPS-04."""
    with modality(appliance) as call:
        answer = call.create(creation(PerformedStationAETitle=""))
    assert answer.status == 0x0121
    assert answer.dataset == dataset(PerformedStationAETitle="")


def test_scheduled_step_attributes_without_an_item_are_refused(appliance):
    """T-MPPS-05."""
    with modality(appliance) as call:
        answer = call.create(creation(ScheduledStepAttributesSequence=[]))
    assert answer.status == 0x0121
    assert answer.dataset == dataset(ScheduledStepAttributesSequence=[])


def test_another_patient_id_is_refused_and_named(appliance):
    """T-MPPS-11."""
    with modality(appliance) as call:
        call.create(creation(PatientID="P000042"))
        answer = call.set(dataset(PatientID="P999999"))
    assert answer.status == 0x0105
    assert answer.command.AttributeIdentifierList == tag_of("PatientID")
    assert appliance.read(stored).PatientID == "P000042"


@pytest.mark.parametrize("status", sorted(FINAL_MPPS_STATES))
def test_a_change_after_the_end_is_refused_in_the_words_of_the_standard(appliance, status):
    """T-MPPS-08, T-MPPS-09."""
    with modality(appliance) as call:
        call.create(creation())
        call.set(ending(status))
        answer = call.set(dataset(PerformedProcedureStepDescription="CT chest with contrast"))
    assert (answer.status, answer.command.ErrorID) == (0x0110, 0xA710)
    comment = "Performed Procedure Step Object may no longer be updated"
    assert answer.command.ErrorComment == comment


def test_an_unknown_instance_is_named_in_the_refusal(appliance):
    """T-MPPS-06."""
    with modality(appliance) as call:
        answer = call.set(ending(), "2.25.4711")
    assert (answer.status, answer.command.AffectedSOPInstanceUID) == (0x0112, "2.25.4711")


def test_a_duplicate_instance_is_named_in_the_refusal(appliance):
    """T-MPPS-03."""
    with modality(appliance) as call:
        call.create(creation())
        answer = call.create(creation())
    assert (answer.status, answer.command.AffectedSOPInstanceUID) == (0x0111, UID)


WRONG = {
    "status with a backslash": (0x0106, {"PerformedProcedureStepStatus": "COM\\PLETED"}),
    "status in French": (0x0106, {"PerformedProcedureStepStatus": "TERMINÉ"}),
    "status with a line feed": (0x0106, {"PerformedProcedureStepStatus": "COMPLETED\n!"}),
    "other patient": (0x0105, {"PatientID": "P999999"}),
    "no end": (0x0121, {"PerformedProcedureStepStatus": "COMPLETED"}),
    "series without protocol": (0x0120, {"PerformedSeriesSequence": [Dataset()]}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_error_comment_is_one_line_of_ascii_within_64_characters(appliance, wrong):
    """PS3.5 6.2: LO has neither backslash nor control characters."""
    status, values = WRONG[wrong]
    with modality(appliance) as call:
        call.create(creation())
        answer = call.set(dataset(SpecificCharacterSet="ISO_IR 192", **values))
    assert answer.status == status
    assert re.fullmatch(r"[ -\[\]-~]{1,64}", str(answer.command.ErrorComment))


def test_of_ten_ends_at_once_one_is_the_end(appliance):
    """T-MPPS-08: the others come after it."""
    with modality(appliance) as call:
        call.create(creation())

    def end(number):
        with modality(appliance) as call:
            return number, call.set(ending(PerformedProcedureStepDescription=f"{number}")).status

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(end, range(10)))
    assert sorted(status for _, status in answers) == [0x0000] + [0x0110] * 9
    [(winner, _)] = [answer for answer in answers if answer[1] == 0x0000]
    assert appliance.read(stored).PerformedProcedureStepDescription == str(winner)


def test_one_of_ten_that_create_the_same_instance_has_it(appliance):
    def begin(number):
        with modality(appliance) as call:
            return call.create(creation(PerformedProcedureStepID=f"PPS{number}")).status

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(begin, range(10)))
    assert sorted(answers) == [0x0000] + [0x0111] * 9


def test_texts_of_a_device_without_character_set_are_read_in_its_own(appliance):
    """US1 is set up with GB18030 and does not say what it sends."""
    ds = creation(SpecificCharacterSet="GB18030")
    raw = encode(ds, False, True)
    head = encode_element(SPECIFIC_CHARACTER_SET, b"CS", b"GB18030")
    assert raw.startswith(head)
    undeclared = decode(io.BytesIO(raw.removeprefix(head)), False, True)
    with modality(appliance, "US1") as call:
        call.association.send_n_create(undeclared, MPPS, UID)
    assert appliance.read(stored).PatientName == "Wang^XiaoDong=王^小东"


# With dcmjs-dimse, a DICOM implementation by others.


def as_json(ds):
    return {k: v for k, v in ds.to_json_dict().items() if k != "00080005"}


@pytest.mark.parametrize("charset", ["ISO_IR 192", "GB18030"])
def test_dcmjs_reports_an_exam_with_chinese_names(appliance, charset):
    [step] = appliance.schedule(item())
    sent, end = creation_for(step), ending()
    operations = [
        {"op": "n-create", "instance": UID, "charset": charset, "dataset": as_json(sent)},
        {"op": "n-set", "instance": UID, "charset": charset, "dataset": as_json(end)},
    ]
    answers = peers.run_dimse(appliance.port, operations, calling="CT1")
    assert [answer.get("status") for answer in answers] == [0x0000, 0x0000]
    found = appliance.read(stored)
    assert found.PatientName == "Wang^XiaoDong=王^小东"
    assert found.PerformedSeriesSequence[0].OperatorsName == "Li^Na=李^娜"
    assert appliance.read(state, step) == "COMPLETED"


def test_dcmjs_reads_why_it_was_refused(appliance):
    """T-MPPS-02."""
    ds = as_json(creation(PerformedProcedureStepStatus="COMPLETED"))
    create = {"op": "n-create", "instance": UID, "charset": "ISO_IR 192", "dataset": ds}
    [answer] = peers.run_dimse(appliance.port, [create], calling="CT1")
    assert answer["status"] == 0x0106
    assert answer["dataset"]["PerformedProcedureStepStatus"] == "COMPLETED"
    assert "IN PROGRESS" in answer["errorComment"]


def test_dcmjs_starts_and_ends_an_exam_in_two_associations(appliance):
    [step] = appliance.schedule(item())
    create = {"op": "n-create", "instance": UID, "charset": "GB18030"}
    change = {"op": "n-set", "instance": UID, "charset": "ISO_IR 192"}
    create["dataset"] = as_json(creation_for(step))
    change["dataset"] = as_json(discontinuation("110514", PerformedSeriesSequence=[]))
    answers = peers.run_dimse(appliance.port, [[create], [change]], calling="CT1")
    assert [answer.get("status") for answer in answers] == [0x0000, 0x0000]
    assert appliance.read(state, step) == "SCHEDULED"


# As a modality sees the worklist.


def names_on_worklist(appliance):
    keys = ["PatientName", "ScheduledProcedureStepSequence[0].ScheduledStationAETitle=CT1"]
    found = peers.run_findscu(appliance.port, "MINRIS", "CT1", keys)
    assert found.status == 0x0000
    return [str(ds.PatientName) for ds in found.datasets]


def test_a_completed_step_is_no_longer_on_the_worklist(appliance):
    """T-MPPS-07."""
    [step] = appliance.schedule(item())
    assert names_on_worklist(appliance) == ["Wang^XiaoDong=王^小东"]
    with modality(appliance) as call:
        call.create(creation_for(step))
        call.set(ending())
    assert names_on_worklist(appliance) == []


def test_a_step_picked_by_mistake_is_on_the_worklist_again(appliance):
    """T-MPPS-15."""
    [step] = appliance.schedule(item())
    with modality(appliance) as call:
        call.create(creation_for(step))
        call.set(discontinuation("110514", PerformedSeriesSequence=[]))
    assert names_on_worklist(appliance) == ["Wang^XiaoDong=王^小东"]


# Killed.


@contextlib.contextmanager
def serving(config):
    """A `minris serve` of its own: its process and its DICOM port."""
    command = [*PROGRAM, "serve", "--config", config]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("MINRIS_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            told = next(line for line in process.stdout if " DICOM " in line)
            yield process, int(re.search(r"DICOM \S+ at \S+?:(\d+)", told)[1])
        finally:
            process.kill()


class Acknowledged:
    """What the machines have been told is done; so many answers later the appliance is killed."""

    def __init__(self, process, answers):
        self.process, self.left = process, answers
        self.created, self.ended, self.lock = set(), set(), threading.Lock()

    def hear(self, answer, uid, where):
        assert answer.Status == 0x0000
        with self.lock:
            where.add(uid)
            self.left -= 1
            if self.left == 0:
                os.kill(self.process.pid, signal.SIGKILL)

    def converse(self, port, uid, step):
        """Report an exam from start to end, as far as the appliance lives."""
        begin = create_request(uid, encode(creation_for(step), True, True))
        end = set_request(uid, encode(ending(), True, True))
        with contextlib.suppress(Closed, ConnectionError), Wire(port) as wire:
            self.hear(wire.ask(begin), uid, self.created)
            self.hear(wire.ask(end), uid, self.ended)


def test_what_was_acknowledged_before_a_kill_is_there_after_the_restart(run_appliance, tmp_path):
    """T-GEN-08: SIGKILL in the middle of a hundred conversations, twenty at once."""
    prepared = run_appliance()
    steps = prepared.schedule(*[item(PatientID=f"P{number:06}") for number in range(100)])
    prepared.stop()
    exams = {f"2.25.7{number:04}": step for number, step in enumerate(steps)}
    with serving(write_config(tmp_path)) as (process, port), ThreadPoolExecutor(20) as pool:
        told = Acknowledged(process, answers=100)
        for done in [pool.submit(told.converse, port, *exam) for exam in exams.items()]:
            done.result(20)
        assert process.wait(10) == -signal.SIGKILL
    assert 0 < len(told.ended) <= len(told.created) < len(exams)
    with serving(tmp_path / "config.ini") as (_, port), Wire(port) as wire:
        assert {wire.ask(create_request(uid)).Status for uid in told.created} == {0x0111}
        assert {wire.ask(set_request(uid)).Status for uid in told.ended} == {0x0110}
        kept = states_in(tmp_path / "minris.db")
    assert {kept[uid] for uid in told.ended} == {("COMPLETED", "COMPLETED")}
    # an end may be kept though the answer to it did not come through
    unfinished = {kept[uid] for uid in told.created - told.ended}
    assert unfinished <= {("IN PROGRESS", "STARTED"), ("COMPLETED", "COMPLETED")}


def states_in(path):
    """{SOP Instance UID: (state of the performed step, state of its scheduled one)}."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        found = connection.execute(
            "SELECT p.sop_instance_uid, p.status, s.status FROM performed_procedure_step p"
            " LEFT JOIN performed_scheduled_step l ON l.performed_id = p.id"
            " LEFT JOIN scheduled_procedure_step s ON s.id = l.scheduled_id"
        ).fetchall()
    return {uid: (performed, scheduled) for uid, performed, scheduled in found}


@pytest.mark.parametrize(("event", "ended"), [("finish", "COMPLETED"), ("stop", "DISCONTINUED")])
def test_what_a_machine_reports_after_a_person_ended_its_exam_counts(ctx, step, event, ended):
    """PS3.4 F.7.2.2.3 note 2: the machine was silent for an hour, not dead."""
    create(ctx, creation_for(step))
    [found] = fetch_rows(ScheduledProcedureStep, "id > 0")
    change_step(ctx, event, found.study_instance_uid, found.scheduled_procedure_step_id)
    assert states() == [ended]
    change(ctx, discontinuation("110515"))
    assert states() == ["DISCONTINUED"]


def test_an_association_waits_for_the_end_of_its_exam_and_no_longer(run_appliance):
    """An exam may last longer than a machine has nothing to say (dcm4chee-arc-light#4190)."""
    appliance = run_appliance("[dicom]\nidle_timeout = 0.3\nexam_timeout = 50\n")
    [step] = appliance.schedule(item())
    with modality(appliance) as call:
        assert call.create(creation_for(step), "2.25.8").status == 0
        [association] = appliance.appliance.associations.associations
        began = association.loop.time()
        wait_until(lambda: association.loop.time() > began + 0.8)
        assert call.set(ending(), "2.25.8").status == 0
        wait_until(lambda: not appliance.appliance.associations.associations)
        assert association.ending[0] == "refused"
        assert association.loop.time() < began + 30  # not that of an exam
