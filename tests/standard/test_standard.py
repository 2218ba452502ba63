"""STANDARD: the tables against the Standard, and against other programs' copies of it."""

import pynetdicom.sop_class
import pytest
from pydicom import datadict
from pydicom.sr.codedict import codes
from pydicom.uid import UID

from minris.standard.dictionary import (
    KNOWN_VRS,
    SUPPLEMENT_233,
    attribute_name,
    tag_of,
    value_problem,
    vr_of,
)
from minris.standard.mpps import (
    DISCONTINUATION_REASONS,
    INCORRECT_WORKLIST_ENTRY,
    MPPS_ATTRIBUTES,
    MPPS_STATES,
    STEP_STATUS_AFTER,
)
from minris.standard.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MODALITY_WORKLIST,
    MPPS,
    MPPS_RETRIEVE,
    VERIFICATION,
)
from minris.standard.worklist import (
    MODALITIES,
    MWL_ATTRIBUTES,
    OPEN_STEP_STATES,
    PREGNANCY_STATUS,
    STEP_STATES,
    WAITING_STEP_STATES,
)

TABLES = {"MWL_ATTRIBUTES": MWL_ATTRIBUTES, "MPPS_ATTRIBUTES": MPPS_ATTRIBUTES}
ROWS = [(name, attribute) for name, table in TABLES.items() for attribute in table.values()]

TYPES = {"1", "1C", "2", "2C", "3"}
PAIRS = {f"{scu}/{scp}" for scu in (*TYPES, "-") for scp in TYPES}
CELLS = {
    "match": {"R", "O", "-"},
    "return": TYPES,
    "entity": {"step", "procedure", "patient", "answer"},
    "create": PAIRS,
    "set": PAIRS | {"NA"},
    "final": TYPES | {"-"},
    "get": PAIRS,
}


def name_of(row) -> str:
    table, attribute = row
    return f"{table[:4]} {'>' * (len(attribute.path) - 1)}{attribute.keyword}"


@pytest.mark.parametrize("row", ROWS, ids=map(name_of, ROWS))
def test_a_row_has_the_tag_and_vr_of_the_dictionary(row):
    attribute = row[1]
    assert datadict.keyword_for_tag(attribute.tag) == attribute.keyword
    assert datadict.dictionary_VR(attribute.tag).startswith(attribute.vr)
    assert attribute.path[-1] == attribute.tag


@pytest.mark.parametrize("row", ROWS, ids=map(name_of, ROWS))
def test_the_cells_of_a_row_are_such_as_its_columns_have(row):
    cells = row[1].cells
    assert {column: cell for column, cell in cells.items() if cell not in CELLS[column]} == {}


@pytest.mark.parametrize("name", TABLES)
def test_a_sequence_with_rows_below_is_the_parent_of_each(name):
    table = TABLES[name]
    below = {path[:-1] for path in table if len(path) > 1}
    assert {table[path].vr for path in below} == {"SQ"}
    for path in below:
        assert all(child.path[:-1] == path for child in table.children(path))


# Modality Worklist


def test_the_required_matching_keys_are_those_of_table_k_6_1():
    required = {a.keyword for a in MWL_ATTRIBUTES.values() if a.cells["match"] == "R"}
    assert required == {
        "ScheduledProcedureStepSequence",
        "ScheduledStationAETitle",
        "ScheduledProcedureStepStartDate",
        "ScheduledProcedureStepStartTime",
        "Modality",
        "ScheduledPerformingPhysicianName",
        "PatientName",
        "PatientID",
    }


def test_what_an_answer_must_have_a_value_of_is_as_in_table_k_6_1():
    type_1 = {
        a.keyword
        for a in MWL_ATTRIBUTES.values()
        if a.cells["return"] == "1" and len(a.path) <= 2 and a.path[:1] in {(0x00400100,), (a.tag,)}
    }
    assert type_1 == {
        "ScheduledProcedureStepSequence",
        "ScheduledStationAETitle",
        "ScheduledProcedureStepStartDate",
        "ScheduledProcedureStepStartTime",
        "Modality",
        "ScheduledProcedureStepID",
        "RequestedProcedureID",
        "StudyInstanceUID",
        "PatientName",
        "PatientID",
    }


@pytest.mark.parametrize(
    "keyword",
    [
        "RequestedProcedurePriority",
        "PatientTransportArrangements",
        "AccessionNumber",
        "RequestingPhysician",
        "ReferringPhysicianName",
        "AdmissionID",
        "CurrentPatientLocation",
        "ReferencedStudySequence",
        "ReferencedPatientSequence",
        "PatientBirthDate",
        "PatientSex",
        "PatientWeight",
        "ConfidentialityConstraintOnPatientDataDescription",
        "PatientState",
        "PregnancyStatus",
        "MedicalAlerts",
        "Allergies",
        "SpecialNeeds",
    ],
)
def test_what_is_answered_though_it_is_empty(keyword):
    assert MWL_ATTRIBUTES[tag_of(keyword),].cells["return"] == "2"


@pytest.mark.parametrize("keyword", ["SpecificCharacterSet", "TimezoneOffsetFromUTC"])
def test_what_belongs_to_the_identifier_is_never_matched(keyword):
    assert MWL_ATTRIBUTES[tag_of(keyword),].cells["match"] == "-"


def test_every_attribute_belongs_to_the_entity_of_what_it_lies_in():
    astray = [
        attribute.keyword
        for path, attribute in MWL_ATTRIBUTES.items()
        if len(path) > 1 and attribute.cells["entity"] != MWL_ATTRIBUTES[path[:-1]].cells["entity"]
    ]
    assert astray == []


# Modality Performed Procedure Step


def test_what_a_performed_step_is_created_with_is_as_in_table_f_7_2_1():
    type_1 = {a.keyword for a in MPPS_ATTRIBUTES.children() if a.cells["create"] == "1/1"}
    assert type_1 == {
        "ScheduledStepAttributesSequence",
        "PerformedProcedureStepID",
        "PerformedStationAETitle",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
        "PerformedProcedureStepStatus",
        "Modality",
    }


def test_what_a_performed_step_may_be_set_to_is_as_in_table_f_7_2_1():
    settable = {a.keyword for a in MPPS_ATTRIBUTES.children() if a.cells["set"] != "NA"}
    assert settable == {
        "SpecificCharacterSet",
        "PerformedProcedureStepStatus",
        "PerformedProcedureStepDescription",
        "PerformedProcedureTypeDescription",
        "ProcedureCodeSequence",
        "ReasonForPerformedProcedureCodeSequence",
        "PerformedProcedureStepEndDate",
        "PerformedProcedureStepEndTime",
        "CommentsOnThePerformedProcedureStep",
        "PerformedProcedureStepDiscontinuationReasonCodeSequence",
        "PerformedProtocolCodeSequence",
        "PerformedSeriesSequence",
    }


def test_what_an_ended_step_must_have_a_value_of_is_as_in_table_f_7_2_1():
    type_1 = {a.keyword for a in MPPS_ATTRIBUTES.values() if a.cells["final"] == "1"}
    assert type_1 == {
        "PerformedProcedureStepEndDate",
        "PerformedProcedureStepEndTime",
        "PerformedSeriesSequence",
        "ProtocolName",
        "SeriesInstanceUID",
        "ReferencedSOPClassUID",
        "ReferencedSOPInstanceUID",
    }


def test_what_retrieve_must_return_with_a_value_is_as_in_table_f_8_2_1():
    type_1 = {a.keyword for a in MPPS_ATTRIBUTES.children() if a.cells["get"] == "3/1"}
    assert type_1 == {
        "ScheduledStepAttributesSequence",
        "PerformedStationAETitle",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
        "PerformedProcedureStepID",
        "PerformedProcedureStepStatus",
        "Modality",
    }


ITEMS = {
    "ScheduledStepAttributesSequence": {
        "1/1": {"StudyInstanceUID"},
        "2/2": {
            "ReferencedStudySequence",
            "AccessionNumber",
            "RequestedProcedureID",
            "RequestedProcedureDescription",
            "ScheduledProcedureStepID",
            "ScheduledProcedureStepDescription",
            "ScheduledProtocolCodeSequence",
        },
    },
    "PerformedSeriesSequence": {
        "1/1": {"ProtocolName", "SeriesInstanceUID"},
        "2/2": {
            "PerformingPhysicianName",
            "OperatorsName",
            "SeriesDescription",
            "RetrieveAETitle",
            "ReferencedImageSequence",
            "ReferencedNonImageCompositeSOPInstanceSequence",
        },
    },
    "ReferencedPatientSequence": {
        "1/1": {"ReferencedSOPClassUID", "ReferencedSOPInstanceUID"},
        "2/2": set(),
    },
}


@pytest.mark.parametrize("kind", ["1/1", "2/2"])
@pytest.mark.parametrize("keyword", ITEMS)
def test_what_an_item_is_created_with_is_as_in_table_f_7_2_1(keyword, kind):
    items = MPPS_ATTRIBUTES.children((tag_of(keyword),))
    assert {a.keyword for a in items if a.cells["create"] == kind} == ITEMS[keyword][kind]


def test_an_item_of_a_series_is_set_as_it_is_created():
    series = MPPS_ATTRIBUTES.children((tag_of("PerformedSeriesSequence"),))
    assert all(attribute.cells["set"] == attribute.cells["create"] for attribute in series)


# UIDs, terms and codes


@pytest.mark.parametrize(
    ("uid", "theirs"),
    [
        (VERIFICATION, pynetdicom.sop_class.Verification),
        (MODALITY_WORKLIST, pynetdicom.sop_class.ModalityWorklistInformationFind),
        (MPPS, pynetdicom.sop_class.ModalityPerformedProcedureStep),
        (MPPS_RETRIEVE, pynetdicom.sop_class.ModalityPerformedProcedureStepRetrieve),
    ],
)
def test_a_sop_class_has_the_uid_that_others_know(uid, theirs):
    assert uid == theirs


@pytest.mark.parametrize(
    ("uid", "name"),
    [
        (IMPLICIT_VR_LITTLE_ENDIAN, "Implicit VR Little Endian"),
        (EXPLICIT_VR_LITTLE_ENDIAN, "Explicit VR Little Endian"),
    ],
)
def test_a_transfer_syntax_has_the_name_that_others_know(uid, name):
    assert UID(uid).name.startswith(name)


def terms_of(context_group) -> dict[str, str]:
    """Code value and meaning of each DICOM code (DCM) that pydicom has in a context group."""
    found = [getattr(context_group, name) for name in dir(context_group)]
    return {c.value: c.meaning for c in found if getattr(c, "scheme_designator", "") == "DCM"}


THEIR_REASONS = terms_of(codes.cid9300)


@pytest.mark.parametrize("code", DISCONTINUATION_REASONS)
def test_a_reason_for_discontinuing_is_that_of_cid_9300(code):
    assert DISCONTINUATION_REASONS[code] == THEIR_REASONS[code]


def test_a_wrong_entry_is_among_the_reasons():
    reasons = DISCONTINUATION_REASONS
    assert reasons[INCORRECT_WORKLIST_ENTRY] == "Incorrect worklist entry selected"


def test_the_states_of_a_step_begin_with_the_five_terms_of_the_standard():
    terms = ("SCHEDULED", "ARRIVED", "READY", "STARTED", "DEPARTED")
    assert STEP_STATES[:5] == terms


@pytest.mark.parametrize(
    "term",
    [*STEP_STATES, *MPPS_STATES, *MODALITIES],
)
def test_a_term_is_a_code_string(term):
    assert value_problem("CS", term) is None


@pytest.mark.parametrize("modality", [m for m in MODALITIES if m not in ("OT", "RTIMAGE")])
def test_a_modality_is_one_of_cid_29(modality):
    """RTIMAGE and OT are defined terms of Modality (0008,0060) that acquire nothing."""
    assert modality in terms_of(codes.cid29)


def test_the_states_in_use_are_states_of_a_step():
    used = {after for _, after in STEP_STATUS_AFTER} | OPEN_STEP_STATES
    assert used | WAITING_STEP_STATES <= set(STEP_STATES)
    assert {before for before, _ in STEP_STATUS_AFTER} == set(MPPS_STATES)


# The dictionary


@pytest.mark.parametrize("tag", SUPPLEMENT_233, ids=lambda tag: f"{tag:08X}")
def test_an_attribute_of_supplement_233_has_its_vr(tag):
    """T-GEN-11: in Implicit VR nothing but the dictionary says it."""
    vr, vm, name, _, keyword = SUPPLEMENT_233[tag]
    assert vr_of(tag) == vr
    assert tag_of(keyword) == tag
    assert attribute_name(tag) == f"{name} ({tag >> 16:04X},{tag & 0xFFFF:04X})"
    assert vm == "1"


@pytest.mark.parametrize(
    "keyword",
    [
        "GenderIdentitySequence",
        "SexParametersForClinicalUseCategorySequence",
        "PersonNamesToUseSequence",
        "ThirdPersonPronounsSequence",
    ],
)
def test_a_sequence_of_supplement_233_is_answered_when_asked_for(keyword):
    """T-MWL-33."""
    assert MWL_ATTRIBUTES[tag_of(keyword),].cells["return"] == "3"


@pytest.mark.parametrize(
    ("tag", "vr"),
    [
        (0x00100010, "PN"),
        (0x00280106, "US"),  # US or SS
        (0x00091002, "UN"),  # private
        (0x00090010, "LO"),  # private creator
        (0x000900FF, "LO"),
        (0x0009000F, "UN"),
        (0x60003000, "OB"),  # a repeating group, OB or OW
    ],
    ids=lambda value: f"{value:08X}" if isinstance(value, int) else value,
)
def test_a_vr_is_that_of_the_dictionary_or_of_ps3_5_7_8_1(tag, vr):
    assert vr_of(tag) == vr


def test_an_unknown_keyword_is_an_error():
    with pytest.raises(KeyError, match="PatientsName"):
        tag_of("PatientsName")


def test_an_attribute_is_named_for_people():
    assert attribute_name(0x00100030) == "Patient's Birth Date (0010,0030)"
    assert attribute_name(0x00091002).endswith("(0009,1002)")


def test_the_dictionary_of_the_product_has_no_vr_that_the_product_does_not_know():
    for tag, entry in datadict.DicomDictionary.items():
        if tag >> 16 not in (0x0000, 0x0002, 0xFFFE):
            assert vr_of(tag).encode() in KNOWN_VRS, entry


def test_the_names_of_what_pregnancy_status_says_are_those_of_ps3_3():
    names = ["not pregnant", "possibly pregnant", "definitely pregnant", "unknown"]
    assert dict(enumerate(names, 1)) == PREGNANCY_STATUS
