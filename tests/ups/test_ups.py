"""Section 11, UPS: workitems over the network, from those who ask, claim, report and cancel."""

import contextlib
import dataclasses
import datetime
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import peers
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.dsutils import encode
from test_mpps import EXAMPLES as MPPS_EXAMPLES
from test_mpps import OTHERS as MPPS_OTHERS
from test_mpps import (
    SYNTAXES,
    Answer,
    as_json,
    code,
    dataset,
    emptied,
    holder,
    image,
    lacking,
    paths,
    read,
    refused,
    stored_form,
)

from minris.dataset.elements import ElementIndex, encode_element, encode_text
from minris.dataset.search import AnswerStyle, Search
from minris.dataset.text import SPECIFIC_CHARACTER_SET
from minris.dataset.times import datetime_bounds
from minris.standard.dictionary import tag_of
from minris.standard.status import Refusal, Status
from minris.standard.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    UPS_EVENT,
    UPS_FILTERED_SUBSCRIPTION,
    UPS_GLOBAL_SUBSCRIPTION,
    UPS_PULL,
    UPS_PUSH,
    UPS_QUERY,
    UPS_WATCH,
)
from minris.standard.ups import (
    FINAL_UPS_STATES,
    MODIFIED_AT,
    PERFORMED_PROCEDURE,
    PROGRESS_INFORMATION,
    TRANSACTION_UID,
    UPS_ACTIONS,
    UPS_ATTRIBUTES,
    UPS_STATE,
    UPS_STATES,
    UPS_TRANSITIONS,
)
from minris.store.models import Workitem, database
from minris.store.rows import AnswerCache
from minris.ups.people import history_of
from minris.ups.search import find_workitems, stored_workitem
from minris.ups.workitems import (
    change_state,
    create_workitem,
    get_workitem,
    purge_workitems,
    request_cancel,
    update_workitem,
)

# pydicom warns of what some tests send on purpose
pytestmark = [
    pytest.mark.filterwarnings("ignore:Invalid value for VR"),
    pytest.mark.filterwarnings("ignore:The value for the data element"),
    pytest.mark.filterwarnings("ignore:Failed to encode value"),
    pytest.mark.filterwarnings("ignore:A value of type 'str' cannot be assigned"),
]

UID = "2.25.215063401487712901325523387610957311120"
LOCK = "2.25.92611470315580346411872090337421186541"
OTHER_LOCK = "2.25.92611470315580346411872090337421186542"
CLASSES = (UPS_PUSH, UPS_PULL, UPS_WATCH, UPS_QUERY)
STATE = UPS_STATE
FINAL = sorted(FINAL_UPS_STATES)
WANG = "Wang^XiaoDong=王^小东"

# A believable value for each attribute of the table, and another one of the same VR.
EXAMPLES = {
    **MPPS_EXAMPLES,
    "ScheduledProcedureStepPriority": "MEDIUM",
    "ScheduledProcedureStepModificationDateTime": "20260705090000+0000",
    "ProcedureStepLabel": "3D of the chest",
    "WorklistLabel": "3D",
    "HumanPerformerName": "Li^Na=李^娜",
    "HumanPerformerOrganization": "Lakeside Clinic",
    "ScheduledProcedureStepStartDateTime": "20260705110000",
    "ExpectedCompletionDateTime": "20260705120000",
    "ScheduledProcedureStepExpirationDateTime": "20260706180000",
    "CommentsOnTheScheduledProcedureStep": "Before the surgeon comes",
    "InputReadinessState": "READY",
    "EffectiveStartDateTime": "20200101",
    "EffectiveStopDateTime": "20301231",
    "GenderIdentityComment": "As told at the desk",
    "SexParametersForClinicalUseCategoryComment": "As of the last visit",
    "SexParametersForClinicalUseCategoryReference": "https://lakeside.example/spcu/42",
    "NameToUse": "XiaoDong",
    "NameToUseComment": "At the door",
    "PronounComment": "As told at the desk",
    "AdmittingDiagnosesDescription": "Pneumonia",
    "ReasonForTheRequestedProcedure": "Cough for three weeks",
    "RequestedProcedureComments": "Call the ward",
    "ConfidentialityCode": "R",
    "NamesOfIntendedRecipientsOfResults": "Zhao^Min=赵^敏",
    "ImagingServiceRequestComments": "By phone",
    "RequestingPhysician": "Zhao^Min=赵^敏",
    "RequestingService": "PULMO",
    "IssueDateOfImagingServiceRequest": "20260704",
    "IssueTimeOfImagingServiceRequest": "161500",
    "ReferringPhysicianName": "Zhao^Min=赵^敏",
    "MedicalAlerts": "MRSA",
    "PregnancyStatus": 1,
    "SpecialNeeds": "Wheelchair",
    "ProcedureStepState": "SCHEDULED",
    "ProcedureStepProgress": "40",
    "ProcedureStepProgressDescription": "Segmenting",
    "ContactURI": "tel:+86-10-5555-0142",
    "ContactDisplayName": "3D desk",
    "ProcedureStepCancellationDateTime": "20260705111500",
    "ReasonForCancellation": "Wrong side",
    "PerformedProcedureStepStartDateTime": "20260705110200",
    "PerformedProcedureStepEndDateTime": "20260705112500",
    "InputInformationSequence": [
        dataset(
            TypeOfInstances="DICOM",
            StudyInstanceUID="2.25.31415926535",
            SeriesInstanceUID="2.25.27182818284",
            ReferencedSOPSequence=[image()],
        )
    ],
    "OutputDestinationSequence": [dataset(DICOMStorageSequence=[dataset(DestinationAE="PACS")])],
    "OtherPatientIDsSequence": [dataset(PatientID="H-991", IssuerOfPatientID="HOSPITAL")],
    "IssuerOfPatientIDQualifiersSequence": [
        dataset(UniversalEntityID="2.25.1", UniversalEntityIDType="ISO")
    ],
    "ReplacedProcedureStepSequence": [image()],
    "ReferencedPatientPhotoSequence": [dataset(TypeOfInstances="DICOM")],
}
EXAMPLES |= {
    keyword: [dataset(LocalNamespaceEntityID="LAKESIDE")]
    for keyword in (
        "IssuerOfAdmissionIDSequence",
        "IssuerOfAccessionNumberSequence",
        "OrderPlacerIdentifierSequence",
        "OrderFillerIdentifierSequence",
    )
}
EXAMPLES |= {
    keyword: [
        dataset(
            ValueType="TEXT",
            ConceptNameCodeSequence=[code("THICK", "99LAKESIDE", "Slice thickness")],
            TextValue="1 mm",
        )
    ]
    for keyword in (
        "ScheduledProcessingParametersSequence",
        "ProcedureStepProgressParametersSequence",
        "PerformedProcessingParametersSequence",
    )
}
OTHERS = {
    **MPPS_OTHERS, "DT": "20271224", "DS": "77", "LT": "Other", "UR": "https://other.example",
    "US": 4, "UT": "Other",
}  # fmt: skip
OF_THE_COMMAND = ("SOPClassUID", "SOPInstanceUID")
SET_BY_US = ("TransactionUID", "SpecificCharacterSet", *OF_THE_COMMAND)
MADE_LATER = (PROGRESS_INFORMATION, PERFORMED_PROCEDURE)


# Data sets of those who ask for a workitem, and of those who do it.


def complete(path=()):
    """A data set with a value for every row of UPS_ATTRIBUTES; a sequence has one item."""
    ds = Dataset()
    for attribute in UPS_ATTRIBUTES.children(path):
        if attribute.vr == "SQ" and UPS_ATTRIBUTES.children(attribute.path):
            value = [complete(attribute.path)]
        elif attribute.vr == "SQ":
            value = EXAMPLES.get(attribute.keyword) or [code("110001", meaning="Image Processing")]
        elif attribute.keyword not in SET_BY_US:
            value = EXAMPLES[attribute.keyword]
        else:
            continue
        setattr(ds, attribute.keyword, value)
    return ds


def complete_creation():
    """All of it that a workitem can be created with."""
    ds = complete()
    ds.SpecificCharacterSet = "ISO_IR 192"
    for tag in MADE_LATER:
        ds[tag].value = []
    return ds


def creation(**changes):
    """A workitem as a RIS asks for it: all of type 1 and 2, nothing more."""
    ds = dataset(SpecificCharacterSet="ISO_IR 192", TransactionUID="")
    for attribute in UPS_ATTRIBUTES.children():
        kind = attribute.cells["create"].partition("/")[0]
        if kind == "2":
            setattr(ds, attribute.keyword, [] if attribute.vr == "SQ" else "")
        elif kind == "1" and attribute.keyword in EXAMPLES:
            setattr(ds, attribute.keyword, EXAMPLES[attribute.keyword])
    ds.update(dataset(PatientName=WANG, PatientID="P000042", WorklistLabel="3D"))
    ds.ScheduledWorkitemCodeSequence = [code("110001", meaning="Image Processing")]
    ds.update(dataset(**changes))
    del ds[SPECIFIC_CHARACTER_SET]
    return dataset(SpecificCharacterSet="ISO_IR 192", **{e.keyword: e.value for e in ds})


def performed(**changes):
    """An item of UPS Performed Procedure Sequence with what COMPLETED needs, nothing more."""
    ds = dataset(
        PerformedStationNameCodeSequence=[code("WS1", "99LAKESIDE", "3D workstation")],
        PerformedProcedureStepStartDateTime="20260705110200",
        PerformedWorkitemCodeSequence=[code("110001", meaning="Image Processing")],
        PerformedProcedureStepEndDateTime="20260705112500",
        OutputInformationSequence=[],
    )
    ds.update(dataset(**changes))
    return ds


def done(lock=None, **changes):
    """The modification list of a performer that has done its work."""
    return modification(lock, UnifiedProcedureStepPerformedProcedureSequence=[performed(**changes)])


def modification(lock=None, **values):
    """A modification list, with the lock of its performer if it has one."""
    key = {"TransactionUID": lock} if lock else {}
    return dataset(SpecificCharacterSet="ISO_IR 192", **key, **values)


def cancellation():
    """The action information of a request to cancel."""
    return dataset(
        SpecificCharacterSet="ISO_IR 192",
        ReasonForCancellation="Patient went home",
        ProcedureStepDiscontinuationReasonCodeSequence=[
            code("110526", meaning="Resource pre-empted")
        ],
        ContactURI="tel:+86-10-5555-0142",
        ContactDisplayName="Ward 3, 李娜",
    )


# Callers by pynetdicom.


class Caller:
    """A system with an association for some of the UPS classes.

    Commands name UPS Push, as they are meant to; `over` is the class of their context.
    """

    def __init__(self, association, received):
        self.association, self.received = association, received

    def create(self, ds, uid=UID, over=UPS_PUSH):
        self.association.send_n_create(ds, UPS_PUSH, uid, meta_uid=over)
        return self.answer()

    def set(self, ds, uid=UID, over=UPS_PULL):
        self.association.send_n_set(ds, UPS_PUSH, uid, meta_uid=over)
        return self.answer()

    def get(self, tags=(), uid=UID, over=UPS_PULL):
        self.association.send_n_get(list(tags), UPS_PUSH, uid, meta_uid=over)
        return self.answer()

    def act(self, kind, ds, uid=UID, over=UPS_PULL):
        self.association.send_n_action(ds, kind, UPS_PUSH, uid, meta_uid=over)
        return self.answer()

    def change(self, state, lock=LOCK, uid=UID, over=UPS_PULL):
        """Change the state; None leaves an argument out."""
        arguments = {"ProcedureStepState": state, "TransactionUID": lock}
        given = {k: v for k, v in arguments.items() if v is not None}
        return self.act(1, dataset(**given) if given else None, uid, over)

    def cancel(self, ds=None, uid=UID, over=UPS_PUSH):
        return self.act(2, ds, uid, over)

    def subscribe(self, uid=UID, lock="FALSE", receiver="WATCHER", over=UPS_WATCH):
        return self.act(3, dataset(ReceivingAE=receiver, DeletionLock=lock), uid, over)

    def find(self, keys, over=UPS_PULL):
        """The answers to a query, the last one without a data set."""
        for _ in self.association.send_c_find(keys, over):
            pass
        answers = [Answer(*one, self.explicit) for one in self.received]
        self.received.clear()
        return answers

    def answer(self):
        return Answer(*self.received.pop(), self.explicit)

    @property
    def explicit(self):
        return not self.association.accepted_contexts[0].transfer_syntax[0].is_implicit_VR


@contextlib.contextmanager
def calling(appliance, ae_title="CT1", classes=CLASSES, syntax=EXPLICIT_VR_LITTLE_ENDIAN):
    """An association of a system by pynetdicom."""
    ae, received = AE(ae_title), []
    for sop_class in classes:
        ae.add_requested_context(sop_class, syntax)

    def keep(event):
        received.append((event.message.command_set, event.message.data_set.getvalue()))

    association = ae.associate(
        peers.HOST,
        appliance.port,
        ae_title="MINRIS",
        evt_handlers=[(evt.EVT_DIMSE_RECV, keep)],
        max_pdu=16384,
    )
    assert association.is_established
    peers.leave_answers(association)
    try:
        yield Caller(association, received)
    finally:
        association.release()


WATCHER = "[device Watcher]\nae_title = WATCHER\nhost = 127.0.0.1\nport = {port}"


@pytest.fixture
def appliance(run_appliance):
    """A running appliance with the usual devices, and a watcher that never answers its phone."""
    return run_appliance(WATCHER.format(port=peers.free_port()))


@pytest.fixture
def call(appliance):
    """An association of CT1 for all of the classes."""
    with calling(appliance) as caller:
        yield caller


def kept(*uids):
    """All that is stored of some workitems, or all: rows, subscriptions, events, audit lines."""
    where = f" WHERE {{}} IN ({', '.join('?' * len(uids))})" if uids else ""

    def select(sql, column):
        return database.execute_sql(sql + where.format(column), uids).fetchall()

    return [
        select("SELECT * FROM workitem", "sop_instance_uid"),
        select(
            "SELECT w.sop_instance_uid, s.ae_title, s.deletion_lock FROM subscription s"
            " JOIN workitem w ON w.id = s.workitem_id",
            "w.sop_instance_uid",
        ),
        select("SELECT * FROM global_subscription", "uid"),
        select("SELECT * FROM workitem_event", "sop_instance_uid"),
        select("SELECT about, what, detail FROM audit", "about"),
    ]


def row(uid=UID):
    return stored_workitem(uid)


def stored(uid=UID):
    """A workitem as pydicom reads it from the stored bytes."""
    return read(bytes(row(uid).data))


def state(uid=UID):
    """The state of a workitem in its data set; that of its row is the same."""
    assert row(uid).state == stored(uid).ProcedureStepState
    return row(uid).state


def events(uid=UID):
    """What happened to a workitem: (event type, information as pydicom reads it), in order."""
    return [(one.event_type, read(one.data)) for one in history_of(uid)]


def states_told(uid=UID):
    return [ds.ProcedureStepState for kind, ds in events(uid) if kind == 1]


def bring_to(call, wanted, uid=UID):
    """Bring a workitem to a state as its performer would; none for "none"."""
    if wanted == "none":
        return
    call.create(creation(), uid)
    if wanted == "SCHEDULED":
        return
    call.change("IN PROGRESS", uid=uid)
    call.set(done(LOCK), uid)
    if wanted != "IN PROGRESS":
        assert call.change(wanted, uid=uid).status == 0x0000


# The transition table.

WRONG_LOCKS = {"no lock": None, "empty lock": "", "another's lock": OTHER_LOCK}


def let_happen(call, event, wrong_lock=OTHER_LOCK):
    """Let an event of UPS_TRANSITIONS happen to the workitem: the answer."""
    if event == "create":
        return call.create(creation(ProcedureStepLabel="Second try"))
    if event == "request cancel":
        return call.cancel(cancellation())
    what, _, lock = event.partition(", ")
    key = {"right UID": LOCK, "wrong UID": wrong_lock, "no UID": None}[lock]
    if what == "set":
        return call.set(modification(key, ProcedureStepLabel="3D of the heart"))
    return call.change(what, key)


def cells(kind):
    """Cells of UPS_TRANSITIONS whose outcome is of a kind: event, state, wrong lock."""
    for (event, before), outcome in UPS_TRANSITIONS.items():
        if isinstance(outcome, kind):
            # nobody's lock is another's while nobody has claimed it, but for N-SET
            wrongs = [None, ""] if before == "SCHEDULED" else [None, "", OTHER_LOCK]
            wrongs = [OTHER_LOCK] if event.startswith("set") else wrongs
            for wrong in wrongs if event.endswith("wrong UID") else [OTHER_LOCK]:
                names = {"None": "absent", "": "empty", OTHER_LOCK: "another's"}
                how = f", {names[str(wrong or '') if wrong is not None else 'None']}"
                name = f"{event}{how if event.endswith('wrong UID') else ''} when {before}"
                yield pytest.param(event, before, wrong, id=name)


@pytest.mark.parametrize(("event", "before", "wrong_lock"), list(cells(Status)))
def test_what_the_state_does_not_allow_gets_its_status_and_changes_nothing(
    appliance, call, event, before, wrong_lock
):
    """Neither data set nor version, subscriptions, events and audit lines.

    T-UPS-03, T-UPS-09, T-UPS-10, T-UPS-11, T-UPS-12, T-UPS-13, T-UPS-18, T-UPS-19, T-UPS-20,
    T-UPS-30, T-UPS-31, T-UPS-32, T-UPS-33, T-UPS-53, T-UPS-56.
    """
    bring_to(call, before)
    was = appliance.read(kept)
    answer = let_happen(call, event, wrong_lock)
    assert answer.status == UPS_TRANSITIONS[event, before]
    assert appliance.read(kept) == was


@pytest.mark.parametrize(("event", "before", "wrong_lock"), list(cells(str)))
def test_what_the_state_allows_leads_to_the_next(appliance, call, event, before, wrong_lock):
    """T-UPS-01, T-UPS-08, T-UPS-16, T-UPS-17, T-UPS-30, T-UPS-50, T-UPS-51."""
    bring_to(call, before)
    if event == "request cancel":
        call.subscribe()
    assert let_happen(call, event, wrong_lock).status == 0x0000
    assert appliance.read(state) == UPS_TRANSITIONS[event, before]


FAILURES = {  # a cell for each failure
    outcome: cell
    for cell, outcome in UPS_TRANSITIONS.items()
    if isinstance(outcome, Status) and outcome >> 12 != 0xB
}


@pytest.mark.parametrize("status", FAILURES)
def test_a_failure_has_a_comment_of_64_plain_characters_at_most(call, status):
    event, before = FAILURES[status]
    bring_to(call, before)
    answer = let_happen(call, event)
    assert answer.status == status
    assert re.fullmatch(r"[ -\[\]-~]{1,64}", str(answer.command.ErrorComment))


@pytest.mark.parametrize(("event", "before", "outcome"), [
    ("create", "none", "SCHEDULED"),
    ("create", "CANCELED", 0x0111),
    ("IN PROGRESS, right UID", "SCHEDULED", "IN PROGRESS"),
    ("IN PROGRESS, right UID", "IN PROGRESS", 0xC302),
    ("IN PROGRESS, wrong UID", "IN PROGRESS", 0xC301),
    ("IN PROGRESS, right UID", "COMPLETED", 0xC300),
    ("IN PROGRESS, wrong UID", "CANCELED", 0xC301),
    ("SCHEDULED, right UID", "SCHEDULED", 0xC303),
    ("SCHEDULED, wrong UID", "COMPLETED", 0xC303),
    ("COMPLETED, right UID", "SCHEDULED", 0xC310),
    ("COMPLETED, wrong UID", "SCHEDULED", 0xC301),
    ("COMPLETED, right UID", "COMPLETED", 0xB306),
    ("COMPLETED, right UID", "CANCELED", 0xC300),
    ("CANCELED, right UID", "SCHEDULED", 0xC310),
    ("CANCELED, right UID", "CANCELED", 0xB304),
    ("CANCELED, right UID", "COMPLETED", 0xC300),
    ("CANCELED, wrong UID", "CANCELED", 0xC301),
    ("request cancel", "SCHEDULED", "CANCELED"),
    ("request cancel", "IN PROGRESS", "IN PROGRESS"),
    ("request cancel", "COMPLETED", 0xC311),
    ("request cancel", "CANCELED", 0xB304),
    ("set, no UID", "SCHEDULED", "SCHEDULED"),
    ("set, right UID", "SCHEDULED", 0xC310),
    ("set, wrong UID", "IN PROGRESS", 0xC301),
    ("set, no UID", "IN PROGRESS", 0xC301),
    ("set, right UID", "CANCELED", 0xC300),
    ("set, no UID", "COMPLETED", 0xC300),
])  # fmt: skip
def test_transitions_are_those_of_the_standard(event, before, outcome):
    """PS3.4 Tables CC.1.1-2 and CC.2.6-1, not by way of our own."""
    assert UPS_TRANSITIONS[event, before] == outcome


def test_every_event_of_an_unknown_workitem_is_c307():
    """T-UPS-20."""
    events = {event for event, _ in UPS_TRANSITIONS} - {"create"}
    assert {UPS_TRANSITIONS[event, "none"] for event in events} == {Status.NO_SUCH_UPS}


# N-CREATE.


def test_a_new_workitem_is_scheduled_and_has_no_lock(appliance, call):
    """T-UPS-01: what was sent as modification time does not count."""
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    answer = call.create(creation(ScheduledProcedureStepModificationDateTime="19990101"))
    assert (answer.status, answer.command.AffectedSOPInstanceUID) == (0x0000, UID)
    assert answer.command.AffectedSOPClassUID == UPS_PUSH
    found = appliance.read(stored)
    modified, _ = datetime_bounds(
        str(found.ScheduledProcedureStepModificationDateTime), datetime.UTC
    )
    assert before <= modified <= datetime.datetime.now(datetime.UTC)
    assert (found.ProcedureStepState, found.SOPClassUID) == ("SCHEDULED", UPS_PUSH)
    assert "TransactionUID" not in found
    assert appliance.read(row).transaction_uid == ""


def test_a_uid_is_made_where_none_is_given(appliance, call):
    answer = call.create(creation(), uid=None)
    assert answer.status == 0x0000
    assert appliance.read(row, str(answer.command.AffectedSOPInstanceUID))


@pytest.mark.parametrize("state", ["IN PROGRESS", "COMPLETED", "CANCELED", "scheduled", "FOO"])
def test_a_workitem_is_created_scheduled_or_not_at_all(appliance, call, state):
    """T-UPS-02."""
    assert call.create(creation(ProcedureStepState=state)).status == 0xC309
    assert appliance.read(kept, UID) == [[], [], [], [], []]


def test_a_uid_is_used_once(appliance, call):
    """T-UPS-03: also that of one that is canceled."""
    bring_to(call, "CANCELED")
    was = appliance.read(kept)
    answer = call.create(creation(ProcedureStepLabel="Second try"))
    assert (answer.status, answer.command.AffectedSOPInstanceUID) == (0x0111, UID)
    assert appliance.read(kept) == was


def test_a_workitem_without_its_readiness_is_refused_and_told_what_lacks(appliance, call):
    """T-UPS-04."""
    ds = creation()
    del ds.InputReadinessState
    answer = call.create(ds)
    assert answer.status == 0x0120
    assert answer.command.AttributeIdentifierList == tag_of("InputReadinessState")
    assert appliance.read(row) is None


def test_a_workitem_with_empty_readiness_is_refused_and_sent_it_back(appliance, call):
    """T-UPS-04."""
    answer = call.create(creation(InputReadinessState=""))
    assert answer.status == 0x0121
    assert answer.dataset == dataset(InputReadinessState="")
    assert appliance.read(row) is None


def test_a_workitem_that_brings_a_lock_is_refused(appliance, call):
    """T-UPS-05."""
    assert call.create(creation(TransactionUID=LOCK)).status == 0x0106
    assert appliance.read(row) is None


def test_the_refusal_of_a_workitem_that_brings_a_lock_does_not_say_it(call):
    """T-UPS-05: a Transaction UID is in no answer at all."""
    answer = call.create(creation(TransactionUID=LOCK))
    assert LOCK.encode() not in answer.data
    assert LOCK not in str(answer.command)


@pytest.mark.parametrize("keyword", [UPS_ATTRIBUTES[(tag,)].keyword for tag in MADE_LATER])
def test_a_workitem_with_a_past_is_refused(appliance, call, keyword):
    """T-UPS-06."""
    assert call.create(creation(**{keyword: complete()[keyword].value})).status == 0x0106
    assert appliance.read(row) is None


@pytest.mark.parametrize("label", ["", None])
def test_a_workitem_without_label_is_on_the_main_worklist(call, label):
    """T-UPS-07."""
    ds = creation(WorklistLabel=label or "")
    if label is None:
        del ds.WorklistLabel
    assert call.create(ds).status == 0x0000
    assert call.get([tag_of("WorklistLabel")]).dataset.WorklistLabel == "MAIN"


@pytest.mark.parametrize(("keyword", "value"), [
    ("ScheduledProcedureStepPriority", "STAT"),
    ("ScheduledProcedureStepPriority", "high"),
    ("ScheduledProcedureStepPriority", "HIGH\\LOW"),
    ("InputReadinessState", "YES"),
    ("ScheduledProcedureStepStartDateTime", "tomorrow"),
    ("ScheduledProcedureStepStartDateTime", "20260231"),
    ("ScheduledProcedureStepStartDateTime", "20260705-20260706"),
    ("ExpectedCompletionDateTime", "2026070511\\2026070512"),
])  # fmt: skip
@pytest.mark.parametrize("operation", ["create", "set"])
def test_a_value_that_cannot_be_is_refused_and_sent_back(
    appliance, call, operation, keyword, value
):
    """T-UPS-36: with a good one beside it."""
    if operation == "set":
        call.create(creation())
    was = appliance.read(kept)
    sent = {keyword: value, "ProcedureStepLabel": "3D of the heart"}
    answer = (
        call.create(creation(**sent)) if operation == "create" else call.set(modification(**sent))
    )
    assert answer.status == 0x0106
    assert [element.keyword for element in answer.dataset] == [keyword]
    assert appliance.read(kept) == was


@pytest.mark.parametrize("uid", ["2.25.abc", "1..2", "02.5"])
def test_a_uid_that_is_none_is_refused(appliance, call, uid):
    ds = creation()
    call.association.send_n_create(ds, UPS_PUSH, uid)
    assert call.answer().status == 0x0117
    assert appliance.read(kept)[0] == []


@pytest.mark.parametrize(("keyword", "status"), [("SOPInstanceUID", 0x0106), ("SOPClassUID", 0x0106)])  # fmt: skip
def test_a_data_set_that_names_another_instance_than_its_command_is_refused(
    appliance, call, keyword, status
):
    """As N-CREATE of MPPS; they belong in the command set alone (PS3.4 Table CC.2.5-3)."""
    assert call.create(creation(**{keyword: "2.25.4711"})).status == status
    assert appliance.read(row) is None


def test_a_data_set_that_names_the_instance_of_its_command_is_taken(appliance, call):
    assert call.create(creation(SOPInstanceUID=UID, SOPClassUID=UPS_PUSH)).status == 0x0000
    assert appliance.read(state) == "SCHEDULED"


# Change of state.


def test_a_claim_is_recorded_with_its_lock(appliance, call):
    """T-UPS-08."""
    call.create(creation())
    assert call.change("IN PROGRESS").status == 0x0000
    found = appliance.read(row)
    assert (found.state, found.transaction_uid, found.performer) == ("IN PROGRESS", LOCK, "CT1")


def test_what_a_system_does_to_a_workitem_is_in_the_audit(appliance, call):
    bring_to(call, "IN PROGRESS")
    call.subscribe()
    assert call.cancel(cancellation()).status == 0x0000
    assert call.change("COMPLETED").status == 0x0000
    *_, lines = appliance.read(kept, UID)
    assert [(what, detail) for _, what, detail in lines] == [
        ("workitem created", ""),
        ("workitem", "SCHEDULED -> IN PROGRESS"),
        ("workitem set", ""),
        ("subscribed", "WATCHER"),
        ("workitem cancel requested", "Patient went home"),
        ("workitem", "IN PROGRESS -> COMPLETED"),
    ]


@pytest.mark.parametrize("lock", [None, "", "not a UID", "2.25.1\\2.25.2", "2.25." + "1" * 60])
def test_a_claim_without_a_lock_is_refused(appliance, call, lock):
    """T-UPS-09."""
    call.create(creation())
    was = appliance.read(kept)
    assert call.change("IN PROGRESS", lock).status == 0xC301
    assert appliance.read(kept) == was


def test_a_second_claim_hears_whether_it_is_its_own(call):
    """T-UPS-10."""
    call.create(creation())
    call.change("IN PROGRESS")
    assert call.change("IN PROGRESS", OTHER_LOCK).status == 0xC301
    assert call.change("IN PROGRESS", LOCK).status == 0xC302


@pytest.mark.parametrize("final", FINAL)
def test_what_nobody_has_claimed_does_not_end(appliance, call, final):
    """T-UPS-12."""
    call.create(creation())
    assert call.change(final).status == 0xC310
    assert appliance.read(state) == "SCHEDULED"


@pytest.mark.parametrize("wrong", WRONG_LOCKS)
def test_a_completion_without_the_lock_is_refused(appliance, call, wrong):
    """T-UPS-13."""
    bring_to(call, "IN PROGRESS")
    was = appliance.read(kept)
    assert call.change("COMPLETED", WRONG_LOCKS[wrong]).status == 0xC301
    assert appliance.read(kept) == was


def test_a_completion_of_nothing_performed_is_refused(appliance, call):
    """T-UPS-14."""
    call.create(creation())
    call.change("IN PROGRESS")
    was = appliance.read(kept)
    assert call.change("COMPLETED").status == 0xC304
    assert appliance.read(kept) == was


NEEDED_AT_THE_END = [
    pytest.param(attribute, id=attribute.keyword)
    for attribute in UPS_ATTRIBUTES.children((PERFORMED_PROCEDURE,))
    if attribute.cells["final"] in ("P", "P2")
]


def test_five_attributes_are_needed_at_the_end():
    """PS3.4 Table CC.2.5-1."""
    assert len(NEEDED_AT_THE_END) == 5


@pytest.mark.parametrize("attribute", NEEDED_AT_THE_END)
def test_a_completion_that_lacks_one_attribute_is_refused(ctx, attribute):
    """T-UPS-15: whether it was never set, or is in the first of two items alone."""
    create(ctx, creation())
    change_state(ctx, UID, "IN PROGRESS", LOCK)
    poor = performed()
    del poor[attribute.tag]
    for items in ([poor], [performed(), poor]):
        put_performed(items)
        was = kept()
        with refused(Status.FINAL_STATE_REQUIREMENTS_NOT_MET) as caught:
            change_state(ctx, UID, "COMPLETED", LOCK)
        assert caught.value.tags == (attribute.tag,)
        assert kept() == was


def put_performed(items):
    """Put items of what was performed into the stored workitem, past all checks."""
    found = ElementIndex(bytes(row().data))
    ds = dataset(UnifiedProcedureStepPerformedProcedureSequence=items)
    data = bytes(found.merged(ElementIndex(stored_form(ds))))
    Workitem.update(data=data).where(Workitem.sop_instance_uid == UID).execute()


@pytest.mark.parametrize("attribute", NEEDED_AT_THE_END)
def test_a_completion_over_the_network_that_lacks_one_attribute_never_happens(
    appliance, call, attribute
):
    """T-UPS-15: refused when it is set, or at the end."""
    call.create(creation())
    call.change("IN PROGRESS")
    item = performed()
    del item[attribute.tag]
    call.set(modification(LOCK, UnifiedProcedureStepPerformedProcedureSequence=[item]))
    assert call.change("COMPLETED").status == 0xC304
    assert appliance.read(state) == "IN PROGRESS"


def test_a_completion_without_output_is_one(appliance, call):
    """T-UPS-16."""
    bring_to(call, "IN PROGRESS")
    assert call.change("COMPLETED").status == 0x0000
    assert appliance.read(state) == "COMPLETED"
    assert appliance.read(states_told) == ["SCHEDULED", "IN PROGRESS", "COMPLETED"]


def test_a_performer_gives_up_without_a_word(appliance, call):
    """T-UPS-17: the time and a reason are filled in."""
    call.create(creation())
    call.change("IN PROGRESS")
    assert call.change("CANCELED").status == 0x0000
    [info] = appliance.read(stored).ProcedureStepProgressInformationSequence
    assert re.fullmatch(r"\d{14}[+-]\d{4}", str(info.ProcedureStepCancellationDateTime))
    [reason] = info.ProcedureStepDiscontinuationReasonCodeSequence
    assert (reason.CodeValue, reason.CodingSchemeDesignator) == ("110513", "DCM")


def test_a_performer_gives_up_in_words_of_its_own(appliance, call):
    """T-UPS-17: what it said stays."""
    call.create(creation())
    call.change("IN PROGRESS")
    said = dataset(
        ProcedureStepProgress="60",
        ProcedureStepCancellationDateTime="20260705111500",
        ReasonForCancellation="Motion",
        ProcedureStepDiscontinuationReasonCodeSequence=[
            code("110501", meaning="Equipment failure")
        ],
    )
    call.set(modification(LOCK, ProcedureStepProgressInformationSequence=[said]))
    assert call.change("CANCELED").status == 0x0000
    [info] = appliance.read(stored).ProcedureStepProgressInformationSequence
    assert info == said


def test_the_same_end_again_is_a_warning(call):
    """T-UPS-18."""
    bring_to(call, "COMPLETED")
    assert call.change("COMPLETED").status == 0xB306
    assert call.change("COMPLETED", OTHER_LOCK).status == 0xC301


def test_an_end_is_not_changed_for_another(call):
    """T-UPS-19."""
    bring_to(call, "COMPLETED", "2.25.1")
    bring_to(call, "CANCELED", "2.25.2")
    assert call.change("CANCELED", uid="2.25.2").status == 0xB304
    assert call.change("CANCELED", uid="2.25.1").status == 0xC300
    assert call.change("COMPLETED", uid="2.25.2").status == 0xC300
    for uid in ("2.25.1", "2.25.2"):
        assert call.change("IN PROGRESS", uid=uid).status == 0xC300
        assert call.change("IN PROGRESS", OTHER_LOCK, uid=uid).status == 0xC301


@pytest.mark.parametrize("kind", sorted(UPS_ACTIONS))
def test_every_action_on_an_unknown_workitem_is_refused(appliance, call, kind):
    """T-UPS-20."""
    over = min(UPS_ACTIONS[kind][1])
    ds = dataset(
        ProcedureStepState="IN PROGRESS",
        TransactionUID=LOCK,
        ReceivingAE="WATCHER",
        DeletionLock="FALSE",
    )
    was = appliance.read(kept)
    answer = call.act(kind, ds, over=over)
    assert (answer.status, answer.command.AffectedSOPInstanceUID) == (0xC307, UID)
    assert appliance.read(kept) == was


def test_the_lock_of_a_performer_outlives_a_restart(run_appliance, appliance, tmp_path):
    """T-UPS-21."""
    with calling(appliance) as call:
        bring_to(call, "IN PROGRESS")
    appliance.stop()
    again = run_appliance()
    with calling(again) as call:
        assert call.change("COMPLETED", OTHER_LOCK).status == 0xC301
        assert call.change("COMPLETED").status == 0x0000


@pytest.mark.parametrize("final", FINAL)
def test_the_lock_of_a_performer_is_known_after_the_end_and_a_restart(
    run_appliance, appliance, final
):
    """T-UPS-18, T-UPS-19, T-UPS-21."""
    with calling(appliance) as call:
        bring_to(call, final)
    appliance.stop()
    with calling(run_appliance()) as call:
        assert call.change(final, OTHER_LOCK).status == 0xC301
        assert call.change(final).status == {"COMPLETED": 0xB306, "CANCELED": 0xB304}[final]


def test_who_knows_the_lock_may_finish_whoever_that_is(appliance):
    """T-UPS-22: PS3.4 CC.1.1, the lock alone decides."""
    with calling(appliance, "CT1") as call:
        bring_to(call, "IN PROGRESS")
    with calling(appliance, "US1") as call:
        assert call.set(modification(LOCK, ProcedureStepLabel="3D of the heart")).status == 0x0000
        assert call.change("COMPLETED").status == 0x0000


def test_who_claimed_it_may_not_finish_without_the_lock(appliance):
    """T-UPS-22."""
    with calling(appliance) as call:
        bring_to(call, "IN PROGRESS")
        assert call.change("COMPLETED", None).status == 0xC301
        assert call.set(modification(ProcedureStepLabel="3D of the heart")).status == 0xC301


def race(appliance, rounds):
    """Ten systems that claim each of some workitems at once: the statuses of each round."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(10) as pool:
        callers = [stack.enter_context(calling(appliance)) for _ in range(10)]
        ready = threading.Barrier(10)

        def claim(number, uid):
            ready.wait(20)
            return callers[number].change("IN PROGRESS", f"2.25.99{number}", uid=uid).status

        for uid in (f"2.25.7{number:05}" for number in range(rounds)):
            callers[0].create(creation(), uid)
            statuses = list(pool.map(claim, range(10), [uid] * 10))
            winner = statuses.index(0x0000)
            yield sorted(statuses), appliance.read(row, uid).transaction_uid == f"2.25.99{winner}"


ONE_OF_TEN = [0x0000] + [0xC301] * 9


def test_of_ten_that_claim_at_once_one_has_it(appliance):
    """T-UPS-23."""
    assert list(race(appliance, 50)) == [(ONE_OF_TEN, True)] * 50


@pytest.mark.long
def test_of_ten_that_claim_at_once_one_has_it_a_thousand_times(appliance):
    """T-UPS-23."""
    for outcome in race(appliance, 1000):
        assert outcome == (ONE_OF_TEN, True)


@pytest.mark.parametrize("before", ["SCHEDULED", "IN PROGRESS"])
@pytest.mark.parametrize(
    ("word", "status"), [(None, 0x0120), ("", 0x0121), ("FOO", 0x0115), ("in progress", 0x0115)]
)
def test_a_state_that_is_none_is_refused(appliance, call, before, word, status):
    """T-UPS-24."""
    bring_to(call, before)
    was = appliance.read(kept)
    assert call.change(word).status == status
    assert appliance.read(kept) == was


@pytest.mark.parametrize("before", ["IN PROGRESS", "COMPLETED"])
@pytest.mark.parametrize("word", [None, "", "FOO"])
def test_a_state_that_is_none_without_the_lock_is_refused_for_want_of_the_lock(
    appliance, call, before, word
):
    """T-UPS-24."""
    bring_to(call, before)
    assert call.change(word, None).status == 0xC301
    assert appliance.read(state) == before


def test_a_change_without_any_information_is_refused_for_want_of_the_lock(call):
    """T-UPS-24."""
    call.create(creation())
    assert call.act(1, None).status == 0xC301


@pytest.mark.parametrize(
    ("kind", "over"),
    [(9, UPS_PUSH), (9, UPS_PULL), (9, UPS_WATCH), (0, UPS_PULL), (6, UPS_PULL), (65535, UPS_PULL)],
)
def test_an_unknown_action_is_refused_and_named(appliance, call, kind, over):
    """T-UPS-25."""
    call.create(creation())
    was = appliance.read(kept)
    answer = call.act(kind, dataset(TransactionUID=LOCK), over=over)
    assert (answer.status, answer.command.ActionTypeID) == (0x0123, kind)
    assert appliance.read(kept) == was


@pytest.mark.parametrize(
    ("word", "status", "named"),
    [
        (None, 0x0120, False),
        ("", 0x0121, False),
        ("FOO", 0x0115, True),
        ("COMPLETED", 0xC310, False),
    ],
)
def test_a_refused_action_has_no_reply_and_its_type_where_that_is_at_fault(
    call, word, status, named
):
    """PS3.7 10.1.4.1.5, C.5.10: type and reply belong to a success but for a few statuses."""
    call.create(creation())
    answer = call.change(word)
    assert (answer.status, answer.data) == (status, b"")
    assert ("ActionTypeID" in answer.command) == named
    assert answer.command.AffectedSOPInstanceUID == UID


def test_an_action_that_is_done_names_its_type(call):
    call.create(creation())
    answer = call.change("IN PROGRESS")
    assert (answer.status, answer.command.ActionTypeID) == (0, 1)


# N-SET.


def test_a_workitem_that_nobody_has_claimed_is_set_without_a_lock(appliance, call):
    """T-UPS-30."""
    call.create(creation())
    answer = call.set(modification(ProcedureStepLabel="3D of the heart"))
    assert answer.status == 0x0000
    assert appliance.read(stored).ProcedureStepLabel == "3D of the heart"


def test_a_workitem_that_nobody_has_claimed_is_not_set_with_a_lock(appliance, call):
    """T-UPS-30."""
    call.create(creation())
    was = appliance.read(kept)
    assert call.set(modification(LOCK, ProcedureStepLabel="3D of the heart")).status == 0xC310
    assert appliance.read(kept) == was


@pytest.mark.parametrize("wrong", WRONG_LOCKS)
def test_a_workitem_in_progress_is_not_set_without_its_lock(appliance, call, wrong):
    """T-UPS-31: nobody hears of it either."""
    bring_to(call, "IN PROGRESS")
    call.subscribe()
    was = appliance.read(kept)
    ds = modification(InputReadinessState="UNAVAILABLE")
    if WRONG_LOCKS[wrong] is not None:
        ds.TransactionUID = WRONG_LOCKS[wrong]
    assert call.set(ds).status == 0xC301
    assert appliance.read(kept) == was


@pytest.mark.parametrize("final", FINAL)
def test_what_has_ended_is_not_set(appliance, call, final):
    """T-UPS-32."""
    bring_to(call, final)
    was = appliance.read(kept)
    assert call.set(modification(LOCK, ProcedureStepLabel="3D of the heart")).status == 0xC300
    assert appliance.read(kept) == was


def test_an_unknown_workitem_is_not_set(call):
    """T-UPS-33."""
    assert call.set(modification(ProcedureStepLabel="3D of the heart")).status == 0xC307


@pytest.mark.parametrize(
    ("word", "status"),
    [("SCHEDULED", 0xC303), ("IN PROGRESS", 0x0105), ("COMPLETED", 0x0105), ("FOO", 0x0105)],
)
@pytest.mark.parametrize("lock", [None, LOCK])
def test_a_state_is_not_set(appliance, call, word, status, lock):
    """T-UPS-34, T-UPS-48."""
    bring_to(call, "IN PROGRESS" if lock else "SCHEDULED")
    was = appliance.read(kept)
    answer = call.set(modification(lock, ProcedureStepState=word, ProcedureStepLabel="3D"))
    assert answer.status == status
    assert appliance.read(kept) == was


def test_a_state_that_is_not_set_is_named(call):
    """T-UPS-48."""
    call.create(creation())
    answer = call.set(modification(ProcedureStepState="COMPLETED"))
    assert answer.command.AttributeIdentifierList == STATE


def test_a_workitem_does_not_change_its_patient(appliance, call):
    """T-UPS-35."""
    call.create(creation())
    was = appliance.read(kept)
    answer = call.set(modification(PatientID="P999999", ProcedureStepLabel="3D of the heart"))
    assert answer.status == 0x0105
    assert answer.command.AttributeIdentifierList == tag_of("PatientID")
    assert appliance.read(kept) == was


def test_all_that_may_not_be_set_is_named(call):
    """T-UPS-35, T-UPS-36."""
    call.create(creation())
    sent = modification(PatientID="P999999", PatientSex="F", PatientName="Other^Name")
    answer = call.set(sent)
    wanted = [tag_of(keyword) for keyword in ("PatientName", "PatientID", "PatientSex")]
    assert list(answer.command.AttributeIdentifierList) == wanted


def test_a_sequence_is_replaced_as_a_whole(appliance, call):
    """T-UPS-37."""
    two = [code("WS1", "99LAKESIDE"), code("WS2", "99LAKESIDE")]
    call.create(creation(ScheduledStationNameCodeSequence=two))
    one = [code("WS3", "99LAKESIDE")]
    call.set(modification(ScheduledStationNameCodeSequence=one))
    assert appliance.read(stored).ScheduledStationNameCodeSequence == one


def test_the_same_modification_again_changes_nothing_but_its_time(appliance, call):
    """T-UPS-37: and nobody hears of it again."""
    bring_to(call, "IN PROGRESS")
    sent = modification(
        LOCK,
        ScheduledStationNameCodeSequence=[code("WS1", "99LAKESIDE")],
        ProcedureStepProgressInformationSequence=[dataset(ProcedureStepProgress="40")],
    )
    call.set(sent)
    was, told = appliance.read(stored), appliance.read(events)
    assert call.set(sent).status == 0x0000
    again = appliance.read(stored)
    for ds in (was, again):
        del ds.ScheduledProcedureStepModificationDateTime
    assert again == was
    assert appliance.read(events) == told


def test_an_empty_modification_is_taken(appliance, call):
    call.create(creation())
    was = appliance.read(stored)
    assert call.set(dataset(SpecificCharacterSet="ISO_IR 192")).status == 0x0000
    del was.ScheduledProcedureStepModificationDateTime
    found = appliance.read(stored)
    del found.ScheduledProcedureStepModificationDateTime
    assert found == was


@pytest.mark.parametrize("keyword", [
    a.keyword for a in UPS_ATTRIBUTES.children()
    if a.cells["final"] == "R" and a.keyword not in ("ScheduledProcedureStepModificationDateTime",)
])  # fmt: skip
def test_what_the_end_needs_is_not_emptied(appliance, call, keyword):
    call.create(creation())
    was = appliance.read(kept)
    assert call.set(modification(**{keyword: ""})).status == 0x0121
    assert appliance.read(kept) == was


def test_gender_identity_is_created_but_never_set(appliance, call):
    """T-UPS-47."""
    told = complete().GenderIdentitySequence
    assert call.create(creation(GenderIdentitySequence=told)).status == 0x0000
    was = appliance.read(kept)
    other = [dataset(GenderIdentityCodeSequence=[code("446141000124107", "SCT", "Female")])]
    answer = call.set(modification(GenderIdentitySequence=other))
    assert answer.status == 0x0105
    assert answer.command.AttributeIdentifierList == tag_of("GenderIdentitySequence")
    assert appliance.read(kept) == was
    assert call.get([tag_of("GenderIdentitySequence")]).dataset[0x00100041].value == told
    found, _ = call.find(dataset(SOPInstanceUID=UID, GenderIdentitySequence=[]))
    assert found.dataset.GenderIdentitySequence == told


# N-GET.


@pytest.mark.parametrize("over", [UPS_PUSH, UPS_PULL, UPS_WATCH])
def test_a_workitem_is_got_whole_but_for_its_lock(appliance, call, over):
    """T-UPS-38, T-UPS-40."""
    bring_to(call, "IN PROGRESS")
    answer = call.get(over=over)
    assert answer.status == 0x0000
    assert LOCK.encode() not in answer.data
    expected = appliance.read(stored)
    del answer.dataset.SpecificCharacterSet, expected.SOPClassUID, expected.SOPInstanceUID
    assert answer.dataset == expected


def test_the_lock_is_not_got_by_asking_for_it(call):
    """T-UPS-38."""
    bring_to(call, "IN PROGRESS")
    answer = call.get([TRANSACTION_UID, STATE])
    assert answer.status == 0x0001
    assert answer.dataset == dataset(ProcedureStepState="IN PROGRESS")


def test_the_lock_alone_is_not_got(call):
    """T-UPS-38."""
    bring_to(call, "IN PROGRESS")
    answer = call.get([TRANSACTION_UID])
    assert (answer.status, answer.data) == (0x0001, b"")


def test_the_character_set_alone_does_not_get_the_rest(call):
    call.create(creation())
    answer = call.get([SPECIFIC_CHARACTER_SET])
    assert "PatientID" not in (answer.dataset or Dataset())


def test_what_is_asked_for_and_nothing_else_is_got(call):
    call.create(creation())
    answer = call.get([tag_of("PatientID"), tag_of("ProcedureStepLabel")])
    assert answer.status == 0x0000
    assert answer.dataset == dataset(PatientID="P000042", ProcedureStepLabel="3D of the chest")


def test_an_attribute_that_is_not_kept_is_a_warning(call):
    call.create(creation())
    answer = call.get([tag_of("PatientID"), tag_of("EchoTime")])
    assert (answer.status, answer.dataset) == (0x0001, dataset(PatientID="P000042"))


def test_an_unknown_workitem_is_not_got(call):
    answer = call.get()
    assert (answer.status, answer.data) == (0xC307, b"")


# C-FIND.


def found_by(call, over=UPS_PULL, **keys):
    """UIDs of what is found by some keys."""
    *found, last = call.find(dataset(SOPInstanceUID="", **keys), over)
    assert (last.status, last.data) == (0x0000, b"")
    return [str(answer.dataset.SOPInstanceUID) for answer in found]


def test_the_lock_is_no_key_and_is_not_answered(call):
    """T-UPS-39."""
    bring_to(call, "IN PROGRESS")
    for key in (LOCK, OTHER_LOCK, ""):
        [found, _] = call.find(dataset(ProcedureStepState="", TransactionUID=key))
        assert found.dataset == dataset(ProcedureStepState="IN PROGRESS")


@pytest.mark.parametrize("over", [UPS_PULL, UPS_WATCH, UPS_QUERY])
def test_a_query_is_answered_in_the_class_of_its_context(call, over):
    """T-UPS-41."""
    call.create(creation())
    found, last = call.find(dataset(SOPClassUID="", SOPInstanceUID=""), over)
    assert {found.command.AffectedSOPClassUID, last.command.AffectedSOPClassUID} == {over}
    assert found.dataset == dataset(SOPClassUID=UPS_PUSH, SOPInstanceUID=UID)


@pytest.mark.parametrize(("keys", "others"), [
    ({"ScheduledProcedureStepPriority": "HIGH"}, {"ScheduledProcedureStepPriority": "LOW"}),
    ({"ProcedureStepLabel": "3D*"}, {"ProcedureStepLabel": "2D*"}),
    ({"WorklistLabel": "3D"}, {"WorklistLabel": "MAIN"}),
    ({"InputReadinessState": "READY"}, {"InputReadinessState": "UNAVAILABLE"}),
    ({"ProcedureStepState": "SCHEDULED"}, {"ProcedureStepState": "COMPLETED"}),
    ({"ScheduledProcedureStepStartDateTime": "2026070510-2026070511"},
     {"ScheduledProcedureStepStartDateTime": "20260706-"}),
    ({"PatientName": "wang*"}, {"PatientName": "Li*"}),
    ({"PatientID": "P000042"}, {"PatientID": "P000043"}),
    ({"PatientBirthDate": "19780312"}, {"PatientBirthDate": "19780313"}),
    ({"AdmissionID": "V2026-118"}, {"AdmissionID": "V2026-119"}),
    ({"ReferencedRequestSequence": [dataset(AccessionNumber="2607050007")]},
     {"ReferencedRequestSequence": [dataset(AccessionNumber="2607050008")]}),
    ({"ReferencedRequestSequence": [dataset(RequestedProcedureID="R2607050007")]},
     {"ReferencedRequestSequence": [dataset(RequestedProcedureID="R1")]}),
    ({"ScheduledStationNameCodeSequence":
        [dataset(CodeValue="WS1", CodingSchemeDesignator="99LAKESIDE")]},
     {"ScheduledStationNameCodeSequence":
        [dataset(CodeValue="WS1", CodingSchemeDesignator="99OTHER")]}),
    ({"ScheduledWorkitemCodeSequence":
        [dataset(CodeValue="110001", CodingSchemeDesignator="DCM")]},
     {"ScheduledWorkitemCodeSequence":
        [dataset(CodeValue="110002", CodingSchemeDesignator="DCM")]}),
    ({"ScheduledHumanPerformersSequence":
        [dataset(HumanPerformerCodeSequence=[dataset(CodeValue="LINA")])]},
     {"ScheduledHumanPerformersSequence":
        [dataset(HumanPerformerCodeSequence=[dataset(CodeValue="ZHAOMIN")])]}),
], ids=lambda keys: " ".join(keys))  # fmt: skip
def test_a_workitem_is_found_by_what_it_is_and_by_nothing_else(call, keys, others):
    """T-UPS-42."""
    ds = complete_creation()
    ds.ScheduledProcedureStepPriority = "HIGH"
    ds.ScheduledStationNameCodeSequence = [code("WS1", "99LAKESIDE")]
    [performer] = ds.ScheduledHumanPerformersSequence
    performer.HumanPerformerCodeSequence = [code("LINA", "99LAKESIDE")]
    assert call.create(ds).status == 0x0000
    assert found_by(call, **keys) == [UID]
    assert found_by(call, **others) == []


def test_the_meaning_of_a_code_is_no_key(call):
    """T-UPS-43."""
    call.create(creation())
    key = dataset(CodeValue="110001", CodingSchemeDesignator="DCM", CodeMeaning="图像处理")
    assert found_by(call, ScheduledWorkitemCodeSequence=[key]) == [UID]


def test_one_item_has_the_code_and_its_scheme(call):
    """T-UPS-42: not the code of one item and the scheme of another."""
    two = [code("WS1", "99LAKESIDE"), code("WS2", "99OTHER")]
    call.create(creation(ScheduledStationNameCodeSequence=two))
    key = dataset(CodeValue="WS1", CodingSchemeDesignator="99OTHER")
    assert found_by(call, ScheduledStationNameCodeSequence=[key]) == []


@pytest.mark.parametrize(("start", "key", "found"), [
    ("20260105113000+0000", "20260105120000+0100-20260105130000+0100", True),
    ("20260105113000", "20260105120000+0100-20260105130000+0100", True),
    ("20260105193000+0800", "20260105120000+0100-20260105130000+0100", True),
    ("20260105113000+0100", "20260105120000+0100-20260105130000+0100", False),
    ("20260105130001+0100", "20260105120000+0100-20260105130000+0100", False),
    ("20260105113000+0000", "20260105123000+0100", True),
    ("20260105113000+0000", "20260105063000-0500", True),
    ("20260105113000+0000", "20260105", True),
    ("20260105233000-0500", "20260105", False),
    ("20260105113000", "-2026010511", True),
    ("20260105113000", "2026010512-", False),
    ("20260105113000", "00010101-", True),
    ("20260105113000", "19000101-99991231", True),
])  # fmt: skip
def test_a_time_is_found_by_what_it_means(call, start, key, found):
    """T-UPS-44: a time without an offset is that of the clinic, here UTC."""
    call.create(creation(ScheduledProcedureStepStartDateTime=start))
    assert found_by(call, ScheduledProcedureStepStartDateTime=key) == [UID] * found


def test_a_time_is_in_the_zone_that_its_workitem_names(call):
    """T-UPS-44: Timezone Offset From UTC is that of its times without an offset (PS3.3 C.12.1)."""
    start = "20260705110000"
    call.create(creation(TimezoneOffsetFromUTC="+0800", ScheduledProcedureStepStartDateTime=start))
    assert found_by(call, ScheduledProcedureStepStartDateTime="2026070503+0000") == [UID]


def test_a_workitem_may_never_expire(appliance, call):
    """Field: the last second that there is stands for no end."""
    ds = creation(ScheduledProcedureStepExpirationDateTime="99991231235959")
    assert call.create(ds).status == 0x0000
    assert found_by(call, ScheduledProcedureStepExpirationDateTime="20260705-") == [UID]


def test_workitems_of_all_states_are_found_where_none_is_asked_for(call):
    """T-UPS-45."""
    uids = dict(zip(UPS_STATES, ("2.25.1", "2.25.2", "2.25.3", "2.25.4"), strict=True))
    for state, uid in uids.items():
        bring_to(call, state, uid)
    assert sorted(found_by(call)) == sorted(uids.values())
    assert sorted(found_by(call, ProcedureStepState="")) == sorted(uids.values())
    assert found_by(call, ProcedureStepState="CANCELED") == [uids["CANCELED"]]


@pytest.mark.parametrize("key", ["*Victor*", "Daniel^V*", "Victor", "*^Victor", "DANIEL^VICTOR", "Daniel*"])  # fmt: skip
def test_a_name_is_found_by_any_part_of_it(ctx, key):
    """Whatever SQL narrows by: l before v is not the ü of pinyin here."""
    create(ctx, creation(PatientName="Daniel^Victor"))
    expected = [] if key == "Victor" else [UID]
    assert find(ctx, PatientName=key) == expected


@pytest.mark.parametrize("key", ["王*", "*小东", "=王^小东", "Wang^XiaoDong", "wang^xiaodong*"])
def test_a_chinese_name_is_found_in_either_writing(call, key):
    call.create(creation())
    keys = dataset(SpecificCharacterSet="ISO_IR 192", SOPInstanceUID="", PatientName=key)
    assert [answer.status for answer in call.find(keys)] == [0xFF00, 0x0000]


def test_several_workitems_are_found_by_their_uids(call):
    for uid in ("2.25.1", "2.25.2", "2.25.3"):
        call.create(creation(), uid)
    *found, _ = call.find(dataset(SOPInstanceUID=["2.25.1", "2.25.3"]))
    assert [str(answer.dataset.SOPInstanceUID) for answer in found] == ["2.25.1", "2.25.3"]


def test_an_answer_is_as_new_as_the_last_change(call):
    """Whatever is kept of answers."""
    call.create(creation())
    keys = dataset(ProcedureStepState="", ProcedureStepLabel="")
    for label in ("3D of the heart", "3D of the aorta"):
        call.set(modification(ProcedureStepLabel=label))
        assert call.find(keys)[0].dataset.ProcedureStepLabel == label
    call.change("IN PROGRESS")
    assert call.find(keys)[0].dataset.ProcedureStepState == "IN PROGRESS"


def test_what_is_kept_of_a_purged_workitem_is_not_answered_for_another(ctx):
    """After a quiet week the next workitem has the row number of one that was purged."""
    search = Search(
        ElementIndex(stored_form(dataset(ProcedureStepState="SCHEDULED", PatientID=""))),
        UPS_ATTRIBUTES,
    )
    cache = AnswerCache()

    def patients():
        found = find_workitems(ctx, search, cache, "the query of WS1")
        return [read(data).PatientID for part in found for data in part]

    create(ctx, creation(PatientID="P000042"))
    assert patients() == ["P000042"]
    request_cancel(ctx, UID)
    later = dataclasses.replace(ctx, now=lambda: ctx.now() + datetime.timedelta(days=30))
    assert purge_workitems(later) == 1
    create(ctx, creation(PatientID="P000117"), "2.25.2")
    assert patients() == ["P000117"]


def test_a_key_that_is_not_kept_here_is_a_warning_with_each_answer(call):
    call.create(creation())
    found, last = call.find(dataset(SOPInstanceUID="", EchoTime=""))
    assert (found.status, last.status) == (0xFF01, 0x0000)


@pytest.mark.parametrize("keys", [
    {"ScheduledProcedureStepStartDateTime": "tomorrow"},
    {"PatientID": "P000042\\P000043"},
    {"ScheduledWorkitemCodeSequence": [code("110001"), code("110002")]},
], ids=lambda keys: next(iter(keys)))  # fmt: skip
def test_a_key_that_is_none_is_refused(call, keys):
    call.create(creation())
    [answer] = call.find(dataset(**keys))
    assert answer.status == 0xA900
    assert answer.command.OffendingElement == tag_of(next(iter(keys)))


def test_a_time_within_an_item_that_no_calendar_has_does_not_stop_a_search(ctx):
    """A workitem that one system made does not take the worklist from all others."""
    identity = complete().GenderIdentitySequence
    identity[0].EffectiveStartDateTime = "00010101000000+1400"
    with contextlib.suppress(Refusal):
        create(ctx, creation(GenderIdentitySequence=identity), "2.25.1")
    create(ctx, creation(GenderIdentitySequence=complete().GenderIdentitySequence))
    key = [dataset(EffectiveStartDateTime="20200101-")]
    assert find(ctx, GenderIdentitySequence=key) == [UID]


# The table of attributes, row by row, in the core.


def create(ctx, ds, uid=UID):
    return create_workitem(ctx, uid, stored_form(ds))


def change(ctx, ds, uid=UID):
    return update_workitem(ctx, uid, stored_form(ds))


def answers(ctx, keys):
    """The answers to a query, as pydicom reads them."""
    search = Search(
        ElementIndex(stored_form(keys)),
        UPS_ATTRIBUTES,
        style=AnswerStyle(zone=ctx.config.zone),
    )
    return [read(data) for part in find_workitems(ctx, search) for data in part]


def find(ctx, **keys):
    """UIDs of what is found by some keys."""
    keys = dataset(SpecificCharacterSet="ISO_IR 192", SOPInstanceUID="", **keys)
    return [str(answer.SOPInstanceUID) for answer in answers(ctx, keys)]


def rows(column, *kinds, deep=None):
    """The rows of UPS_ATTRIBUTES whose cell in a column begins with one of some types.

    deep  True for those in sequences alone, False for those at the top alone
    """
    return [
        pytest.param(attribute, id=" > ".join(UPS_ATTRIBUTES[p].keyword for p in paths(attribute)))
        for attribute in UPS_ATTRIBUTES.values()
        if attribute.cells[column].partition("/")[0] in kinds
        and attribute.keyword not in SET_BY_US
        and (deep is None or deep == (len(attribute.path) > 1))
    ]


def made_later(parameters, answer=True):
    """Those of some rows that are in progress information or performed procedure, or are not."""
    return [p for p in parameters if (p.values[0].path[0] in MADE_LATER) == answer]


@pytest.fixture
def whole(ctx):
    """A workitem with a value for every row."""
    create(ctx, complete_creation())
    later = {UPS_ATTRIBUTES[(tag,)].keyword: complete()[tag].value for tag in MADE_LATER}
    change(ctx, modification(**later))


def expected(attribute):
    """What the whole workitem has of a row."""
    if attribute.tag == MODIFIED_AT:
        return "20260705120000+0000"
    return holder(complete(), attribute.path)[attribute.tag].value


def sequence_key(attribute, value):
    """The identifier of a query with one key of the table, in its sequences."""
    ds = dataset(**{attribute.keyword: value})
    for path in reversed(paths(attribute)[:-1]):
        ds = dataset(**{UPS_ATTRIBUTES[path].keyword: [ds]})
    return ds


def test_the_table_has_all_rows_of_the_standard():
    """PS3.4 Table CC.2.5-3, Sup 233 included, but for the lines of other module attributes."""
    assert len(UPS_ATTRIBUTES) == 111


@pytest.mark.parametrize("attribute", rows("get", "3", "-", deep=None))
def test_what_was_created_or_set_is_stored_and_got(ctx, whole, attribute):
    """T-UPS-46."""
    status, data = get_workitem(UID, [attribute.path[0]])
    assert status == Status.SUCCESS
    assert holder(read(data), attribute.path)[attribute.tag].value == expected(attribute)


@pytest.mark.parametrize("attribute", rows("return", "1", "1C", "2", "2C", "3"))
def test_what_is_asked_for_is_answered(ctx, whole, attribute):
    """T-UPS-46."""
    [answer] = answers(ctx, sequence_key(attribute, [] if attribute.vr == "SQ" else ""))
    assert holder(answer, attribute.path)[attribute.tag].value == expected(attribute)


@pytest.mark.parametrize("attribute", rows("return", "1", "2", deep=False))
def test_what_is_asked_for_and_has_no_value_is_answered_empty(ctx, attribute):
    """T-UPS-46."""
    create(ctx, creation())
    [answer] = answers(ctx, sequence_key(attribute, [] if attribute.vr == "SQ" else ""))
    assert attribute.tag in answer


def value_and_other(attribute):
    """A key for what the whole workitem has of a row, and one for what it has not."""
    value = expected(attribute)
    if attribute.vr != "SQ":
        return value, OTHERS[attribute.vr]
    [element] = [e for e in value[0] if e.VR != "SQ"][:1] or [None]
    if element is None:  # an item of items
        return value, [Dataset()]
    return [dataset(**{element.keyword: element.value})], [
        dataset(**{element.keyword: OTHERS[element.VR]})
    ]


MATCHED = [
    p
    for p in rows("match", "R", "O", "U")
    if p.values[0].vr != "SQ" or not UPS_ATTRIBUTES.children(p.values[0].path)
]


@pytest.mark.parametrize(
    "attribute", [p for p in MATCHED if p.values[0].keyword != "OutputDestinationSequence"]
)
def test_a_key_of_the_table_finds_its_value_and_no_other(ctx, whole, attribute):
    """T-UPS-42, T-UPS-46."""
    value, other = value_and_other(attribute)
    for wanted, uids in ((value, [UID]), (other, [])):
        key = sequence_key(attribute, wanted)
        assert find(ctx, **{e.keyword: e.value for e in key}) == uids


def test_a_workitem_is_found_by_where_its_output_goes(ctx, whole):
    """T-UPS-46."""
    for title, uids in (("PACS", [UID]), ("OTHER", [])):
        key = [dataset(DICOMStorageSequence=[dataset(DestinationAE=title)])]
        assert find(ctx, OutputDestinationSequence=key) == uids


@pytest.mark.parametrize("attribute", rows("match", "-"))
def test_what_is_no_key_restricts_nothing(ctx, whole, attribute):
    """T-UPS-46."""
    _, other = value_and_other(attribute)
    key = sequence_key(attribute, other)
    assert find(ctx, **{e.keyword: e.value for e in key}) == [UID]


@pytest.mark.parametrize("uid", [UID, "2.25.4711"])
def test_the_uid_and_the_class_are_keys(ctx, whole, uid):
    """T-UPS-46."""
    found = answers(ctx, dataset(SOPInstanceUID=uid, SOPClassUID=UPS_PUSH))
    assert found == ([dataset(SOPClassUID=UPS_PUSH, SOPInstanceUID=UID)] if uid == UID else [])


@pytest.mark.parametrize("attribute", made_later(rows("create", "1"), False))
def test_a_workitem_without_a_type_1_attribute_is_refused(ctx, attribute):
    """T-UPS-04, T-UPS-46."""
    with refused(Status.MISSING_ATTRIBUTE) as caught:
        create(ctx, lacking(complete_creation(), attribute))
    assert caught.value.tags == (attribute.tag,)
    assert row() is None


@pytest.mark.parametrize("attribute", made_later(rows("create", "1"), False))
def test_a_workitem_with_an_empty_type_1_attribute_is_refused(ctx, attribute):
    """T-UPS-04, T-UPS-46."""
    with refused(Status.MISSING_ATTRIBUTE_VALUE) as caught:
        create(ctx, emptied(complete_creation(), attribute))
    assert caught.value.tags == (attribute.tag,)
    assert row() is None


@pytest.mark.parametrize("attribute", rows("create", "2"))
def test_a_workitem_without_a_type_2_attribute_is_taken(ctx, attribute):
    """T-UPS-46."""
    create(ctx, lacking(complete_creation(), attribute))
    assert state() == "SCHEDULED"


@pytest.mark.parametrize("attribute", rows("create", "2"))
def test_a_workitem_without_a_type_2_attribute_is_refused_where_strict(ctx, attribute):
    """T-UPS-46."""
    ctx.config.ups.strict = True
    ds = lacking(complete_creation(), attribute)
    ds.TransactionUID = ""
    with refused(Status.MISSING_ATTRIBUTE) as caught:
        create(ctx, ds)
    assert caught.value.tags == (attribute.tag,)
    assert row() is None


def test_a_workitem_without_the_empty_lock_is_refused_where_strict(ctx):
    """T-UPS-46, T-UPS-05."""
    ctx.config.ups.strict = True
    with refused(Status.MISSING_ATTRIBUTE) as caught:
        create(ctx, complete_creation())
    assert caught.value.tags == (TRANSACTION_UID,)


@pytest.mark.parametrize(
    "attribute", made_later(rows("create", "1C", "2", "2C", "3", deep=False), False)
)
def test_a_workitem_with_an_empty_attribute_is_taken_where_strict(ctx, attribute):
    """T-UPS-46: a type 3/1 one too, systems send them so (local)."""
    ctx.config.ups.strict = True
    ds = emptied(complete_creation(), attribute)
    ds.TransactionUID = ""
    create(ctx, ds)
    assert state() == "SCHEDULED"


@pytest.mark.parametrize("attribute", made_later(rows("create", "3"), False))
def test_a_workitem_without_an_optional_attribute_is_taken_where_strict(ctx, attribute):
    """T-UPS-46."""
    ctx.config.ups.strict = True
    ds = lacking(complete_creation(), attribute)
    ds.TransactionUID = ""
    create(ctx, ds)
    assert state() == "SCHEDULED"


NOT_SETTABLE = [p for p in rows("set", "NA", deep=False) if p.values[0].tag != STATE]


@pytest.mark.parametrize("attribute", NOT_SETTABLE)
def test_what_may_not_be_set_is_refused_by_name(ctx, whole, attribute):
    """T-UPS-35, T-UPS-46."""
    was = kept()
    with refused(Status.NO_SUCH_ATTRIBUTE) as caught:
        change(ctx, modification(**{attribute.keyword: OTHERS[attribute.vr]}, WorklistLabel="CT"))
    assert caught.value.tags == (attribute.tag,)
    assert kept() == was


@pytest.mark.parametrize("attribute", NOT_SETTABLE)
def test_what_may_not_be_set_is_refused_where_it_was_not_created(ctx, attribute):
    """T-UPS-46."""
    create(ctx, creation(PatientName="", PatientID=""))
    was = kept()
    with refused(Status.NO_SUCH_ATTRIBUTE) as caught:
        change(ctx, modification(**{attribute.keyword: expected(attribute)}))
    assert caught.value.tags == (attribute.tag,)
    assert kept() == was


@pytest.mark.parametrize("attribute", rows("set", "NA", deep=True))
def test_what_may_not_be_set_is_refused_within_a_sequence(ctx, whole, attribute):
    """T-UPS-46: the sequence is named, whose item differs."""
    was, outer = kept(), UPS_ATTRIBUTES[attribute.path[:1]]
    ds = complete()
    holder(ds, attribute.path)[attribute.tag].value = OTHERS[attribute.vr]
    with refused(Status.NO_SUCH_ATTRIBUTE) as caught:
        change(ctx, modification(**{outer.keyword: ds[outer.tag].value}))
    assert caught.value.tags == (outer.tag,)
    assert kept() == was


@pytest.mark.parametrize("keyword", OF_THE_COMMAND)
def test_the_identity_of_a_workitem_is_not_set(ctx, whole, keyword):
    """T-UPS-46."""
    was = kept()
    with refused(Status.NO_SUCH_ATTRIBUTE) as caught:
        change(ctx, modification(**{keyword: "2.25.4711"}))
    assert caught.value.tags == (tag_of(keyword),)
    assert kept() == was


@pytest.mark.parametrize("attribute", NOT_SETTABLE)
def test_what_may_not_be_set_is_taken_where_it_is_the_same(ctx, whole, attribute):
    """Local: systems send the whole workitem back."""
    was = stored()
    change(ctx, modification(**{attribute.keyword: expected(attribute)}))
    assert stored() == was


@pytest.mark.parametrize("attribute", made_later(rows("set", "3", deep=False), False))
def test_what_may_be_set_replaces_what_was_there(ctx, attribute):
    """T-UPS-37, T-UPS-46."""
    ds = complete_creation()
    ds.ScheduledProcedureStepPriority, ds.InputReadinessState = "LOW", "READY"
    create(ctx, ds)
    value = {"ScheduledProcedureStepPriority": "HIGH", "InputReadinessState": "UNAVAILABLE"}.get(
        attribute.keyword, OTHERS[attribute.vr]
    )
    was = stored()
    change(ctx, modification(**{attribute.keyword: value}))
    was[attribute.tag].value = value
    assert stored() == was


@pytest.mark.parametrize("attribute", made_later(rows("set", "1", deep=True)))
def test_an_item_without_a_type_1_attribute_is_not_set(ctx, attribute):
    """T-UPS-36, T-UPS-46."""
    create(ctx, creation())
    was, outer = kept(), UPS_ATTRIBUTES[attribute.path[:1]].keyword
    with refused(Status.MISSING_ATTRIBUTE) as caught:
        change(ctx, modification(**{outer: lacking(complete(), attribute)[outer].value}))
    assert caught.value.tags == (attribute.tag,)
    assert kept() == was


def test_a_modification_time_is_ours(ctx, whole):
    """T-UPS-46: sent or not, PS3.4 Table CC.2.5-3 has the SCP set it."""
    change(ctx, modification(ScheduledProcedureStepModificationDateTime="19990101"))
    assert stored().ScheduledProcedureStepModificationDateTime == "20260705120000+0000"


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_workitem_with_everything_comes_back_in_either_syntax(appliance, syntax):
    """T-GEN-11, T-UPS-46: with the right VRs, those of Supplement 233 too."""
    with calling(appliance, syntax=syntax) as call:
        assert call.create(complete_creation()).status == 0x0000
        later = {UPS_ATTRIBUTES[(tag,)].keyword: complete()[tag].value for tag in MADE_LATER}
        assert call.set(modification(**later)).status == 0x0000
        found = call.get().dataset
    for ds in (found, wanted := complete()):
        del ds.ScheduledProcedureStepModificationDateTime
    del found.SpecificCharacterSet
    assert found == wanted
    assert read(bytes(appliance.read(row).data)).group_dataset(0x0010) == wanted.group_dataset(0x10)


# Which class does what.

OPERATIONS = {
    "create": lambda call, over: call.create(creation(), "2.25.2", over),
    "set": lambda call, over: call.set(modification(ProcedureStepLabel="3D"), over=over),
    "get": lambda call, over: call.get(over=over),
    "change": lambda call, over: call.change("IN PROGRESS", over=over),
    "cancel": lambda call, over: call.cancel(over=over),
    "subscribe": lambda call, over: call.subscribe(over=over),
    "unsubscribe": lambda call, over: call.act(4, dataset(ReceivingAE="WATCHER"), over=over),
    "suspend": lambda call, over: call.act(
        5, dataset(ReceivingAE="WATCHER"), UPS_GLOBAL_SUBSCRIPTION, over
    ),
    "find": lambda call, over: call.find(dataset(SOPInstanceUID=UID), over)[-1],
}
SERVED = {
    UPS_PUSH: {"create", "cancel", "get"},
    UPS_PULL: {"find", "get", "set", "change"},
    UPS_WATCH: {"find", "get", "cancel", "subscribe", "unsubscribe", "suspend"},
    UPS_QUERY: {"find"},
    UPS_EVENT: set(),
}
CLASS_NAMES = dict(zip(SERVED, ("Push", "Pull", "Watch", "Query", "Event"), strict=True))


@pytest.fixture
def scheduled(appliance):
    """A workitem that is on the worklist already."""
    appliance.write(create, appliance.context(), creation())


@pytest.mark.parametrize(
    ("sop_class", "operation"),
    [pytest.param(c, o, id=f"{CLASS_NAMES[c]} {o}") for c in SERVED for o in sorted(SERVED[c])],
)
def test_a_class_alone_serves_its_operations(appliance, scheduled, sop_class, operation):
    """T-UPS-40: its context has the commands of UPS Push."""
    with calling(appliance, classes=[sop_class]) as call:
        assert OPERATIONS[operation](call, sop_class).status == 0x0000


@pytest.mark.parametrize(
    ("sop_class", "operation"),
    [
        pytest.param(c, o, id=f"{CLASS_NAMES[c]} {o}")
        for c in SERVED
        for o in sorted(set(OPERATIONS) - SERVED[c])
    ],
)
def test_an_operation_of_another_class_is_refused(appliance, scheduled, sop_class, operation):
    """PS3.7 10.1: it is outside what was agreed."""
    was = appliance.read(kept)
    with calling(appliance, classes=[sop_class]) as call:
        answer = OPERATIONS[operation](call, sop_class)
        assert (answer.status, answer.data) == (0x0211, b"")
        assert appliance.read(kept) == was
        assert call.association.is_established


@pytest.mark.parametrize(
    ("over", "operation"),
    [
        pytest.param(c, o, id=f"{CLASS_NAMES[c]} {o}")
        for c in (UPS_PULL, UPS_WATCH)
        for o in ("cancel", "change", "get", "set", "subscribe")
        if o in SERVED[c]
    ],
)
def test_an_operation_may_name_the_class_of_its_context(appliance, scheduled, over, operation):
    """Field: systems name UPS Pull or UPS Watch in commands that are of UPS Push."""
    with calling(appliance) as call:
        association = call.association
        subscription = dataset(ReceivingAE="WATCHER", DeletionLock="FALSE")
        claim = dataset(ProcedureStepState="IN PROGRESS", TransactionUID=LOCK)
        send = {
            "get": lambda: association.send_n_get([STATE], over, UID),
            "set": lambda: association.send_n_set(modification(WorklistLabel="CT"), over, UID),
            "change": lambda: association.send_n_action(claim, 1, over, UID),
            "cancel": lambda: association.send_n_action(None, 2, over, UID),
            "subscribe": lambda: association.send_n_action(subscription, 3, over, UID),
        }
        send[operation]()
        assert call.answer().status == 0x0000


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("uid", [UPS_GLOBAL_SUBSCRIPTION, UPS_FILTERED_SUBSCRIPTION])
def test_a_subscription_is_neither_claimed_nor_canceled(call, kind, uid):
    claim = dataset(ProcedureStepState="IN PROGRESS", TransactionUID=LOCK)
    over = {1: UPS_PULL, 2: UPS_PUSH}[kind]
    assert call.act(kind, claim, uid, over).status == 0xC314


# A request to cancel.


def told_of(appliance):
    """(event type, state) of what the watcher of the workitem was to be told, in order."""
    sql = (
        "SELECT e.event_type, e.data FROM outbox o JOIN workitem_event e ON e.id = o.event_id"
        " WHERE o.receiver = 'WATCHER' AND e.initial = 0 ORDER BY o.id"
    )
    found = appliance.read(lambda: database.execute_sql(sql).fetchall())
    return [(kind, ElementIndex(bytes(data)).text(STATE)) for kind, data in found]


def test_what_nobody_has_begun_is_canceled_at_once(appliance, call):
    """T-UPS-50, T-UPS-55: watchers hear the request, the claim and the end, in order."""
    call.create(creation())
    call.subscribe()
    assert call.cancel(cancellation()).status == 0x0000
    assert appliance.read(state) == "CANCELED"
    assert told_of(appliance) == [(2, ""), (1, "IN PROGRESS"), (1, "CANCELED")]


def test_the_reason_of_a_request_is_kept_in_what_it_ended(appliance, call):
    """T-UPS-50: PS3.4 CC.2.2.3."""
    call.create(creation())
    call.cancel(cancellation())
    [info] = appliance.read(stored).ProcedureStepProgressInformationSequence
    assert info.ReasonForCancellation == "Patient went home"
    [reason] = info.ProcedureStepDiscontinuationReasonCodeSequence
    assert reason.CodeValue == "110526"
    assert info.ProcedureStepCancellationDateTime


def test_the_lock_of_what_was_canceled_at_once_is_nobodys(call):
    """T-UPS-50: nobody knows it who could end it again."""
    call.create(creation())
    call.cancel()
    assert call.change("CANCELED").status == 0xC301


def test_a_request_is_passed_on_to_the_watchers_of_the_performer(appliance, call):
    """T-UPS-51."""
    bring_to(call, "IN PROGRESS")
    call.subscribe()
    was = appliance.read(stored)
    with calling(appliance, "US1") as ward:
        assert ward.cancel(cancellation()).status == 0x0000
    assert appliance.read(stored) == was
    assert told_of(appliance) == [(2, "")]
    kind, told = appliance.read(events)[-1]
    wanted = cancellation()
    wanted.RequestingAE = "US1"
    del wanted.SpecificCharacterSet
    assert (kind, told) == (2, wanted)


@pytest.mark.parametrize("keyword", [
    "ReasonForCancellation", "ProcedureStepDiscontinuationReasonCodeSequence", "ContactURI",
    "ContactDisplayName",
])  # fmt: skip
def test_what_a_request_does_not_say_is_not_passed_on(appliance, call, keyword):
    """T-UPS-51: absent, or there without a value."""
    bring_to(call, "IN PROGRESS")
    call.subscribe()
    ds = cancellation()
    ds[keyword].value = [] if ds[keyword].VR == "SQ" else ""
    call.cancel(ds)
    del ds[keyword]
    call.cancel(ds)
    (_, empty), (_, absent) = appliance.read(events)[-2:]
    assert empty == absent
    assert keyword not in absent


def test_a_request_that_nobody_hears_is_refused(appliance, call):
    """T-UPS-52."""
    bring_to(call, "IN PROGRESS")
    was = appliance.read(kept)
    assert call.cancel(cancellation()).status == 0xC312
    assert appliance.read(kept) == was


@pytest.mark.parametrize(("final", "status"), [("COMPLETED", 0xC311), ("CANCELED", 0xB304)])
def test_a_request_after_the_end_tells_nobody(appliance, call, final, status):
    """T-UPS-53, T-UPS-56."""
    bring_to(call, final)
    call.subscribe()
    was = appliance.read(kept)
    assert call.cancel(cancellation()).status == status
    assert appliance.read(kept) == was


def test_a_request_for_an_unknown_workitem_tells_nobody(appliance, call):
    """T-UPS-56: not even those who hear of everything."""
    call.subscribe(UPS_GLOBAL_SUBSCRIPTION)
    was = appliance.read(kept)
    assert call.cancel(cancellation()).status == 0xC307
    assert appliance.read(kept) == was


@pytest.mark.parametrize("before", ["SCHEDULED", "IN PROGRESS"])
def test_a_request_without_a_word_is_one(appliance, call, before):
    """T-UPS-54."""
    bring_to(call, before)
    call.subscribe()
    assert call.cancel().status == 0x0000
    [told] = [told for kind, told in appliance.read(events) if kind == 2]
    assert told == dataset(RequestingAE="CT1")


@pytest.mark.parametrize("over", [UPS_PUSH, UPS_WATCH])
def test_a_request_is_made_in_either_class(appliance, call, over):
    """T-UPS-50."""
    call.create(creation())
    assert call.cancel(over=over).status == 0x0000
    assert appliance.read(state) == "CANCELED"


# The lock is a secret.


def live_and_fail(call):
    """Everything that goes right and wrong with a lock."""
    bring_to(call, "IN PROGRESS")
    for wrong in (OTHER_LOCK, None):
        yield call.change("COMPLETED", wrong)
        yield call.set(modification(wrong, ProcedureStepLabel="3D"))
    yield call.change("IN PROGRESS")
    yield call.change("FOO")
    yield call.set(modification(LOCK, ProcedureStepState="COMPLETED"))
    yield call.set(modification(LOCK, PatientID="P999999"))
    yield call.set(modification(LOCK, InputReadinessState="MAYBE"))
    yield call.set(modification(LOCK, ProcedureStepLabel="3D"))
    yield call.act(9, dataset(TransactionUID=LOCK))
    yield call.subscribe(UPS_GLOBAL_SUBSCRIPTION, "TRUE")
    yield call.cancel(dataset(TransactionUID=LOCK))
    yield call.change("COMPLETED")
    yield call.change("COMPLETED")
    yield call.change("CANCELED")
    yield call.get()
    yield from call.find(dataset(SOPInstanceUID="", TransactionUID=LOCK))
    yield call.create(creation(), "2.25.2")
    yield call.change("COMPLETED", uid="2.25.2")
    yield call.set(modification(LOCK, ProcedureStepLabel="3D"), "2.25.2")


def test_the_lock_is_in_no_answer(call):
    """T-UPS-38, T-UPS-39."""
    for answer in live_and_fail(call):
        for lock in (LOCK, OTHER_LOCK):
            assert lock.encode() not in answer.data
            assert lock not in str(answer.command)


def test_a_lock_within_an_item_is_in_no_answer(call):
    """A performer that writes it into its progress too, where others read."""
    bring_to(call, "IN PROGRESS")
    progress = dataset(ProcedureStepProgress="40", TransactionUID=LOCK)
    call.set(modification(LOCK, ProcedureStepProgressInformationSequence=[progress]))
    [found, _] = call.find(dataset(ProcedureStepProgressInformationSequence=[]))
    for answer in (call.get(), found):
        assert LOCK.encode() not in answer.data


def test_the_lock_is_in_no_line_of_the_log(call, caplog):
    caplog.set_level(logging.DEBUG, "minris")
    list(live_and_fail(call))
    ours = [record.getMessage() for record in caplog.records if record.name == "minris"]
    assert any(UID in line for line in ours)
    for line in ours:
        assert LOCK not in line
        assert OTHER_LOCK not in line


def cells_of_the_store():
    """Each value in the store, with its table and column."""
    tables = database.execute_sql("SELECT name FROM sqlite_schema WHERE type = 'table'")
    for (table,) in tables.fetchall():
        cursor = database.execute_sql(f"SELECT * FROM {table}")
        names = [column[0] for column in cursor.description]
        for found in cursor.fetchall():
            for column, value in zip(names, found, strict=True):
                yield table, column, value if isinstance(value, bytes) else str(value).encode()


def test_the_lock_is_in_one_place_of_the_store(appliance, call):
    """Neither in data sets, events and audit lines, nor in what is kept of queries."""
    list(live_and_fail(call))
    found = appliance.read(lambda: list(cells_of_the_store()))
    where = [cell[:2] for cell in found if LOCK.encode() in cell[2]]
    assert where == [("workitem", "transaction_uid")]
    assert not [cell[:2] for cell in found if OTHER_LOCK.encode() in cell[2]]


# Character sets.


@pytest.mark.parametrize(("ae_title", "charset"), [("US1", "GB18030"), ("CT1", "ISO_IR 192")])
def test_a_chinese_name_comes_back_in_the_set_of_its_reader(appliance, ae_title, charset):
    with calling(appliance, "CT1") as call:
        call.create(creation(ProcedureStepLabel="胸部三维重建"))
    with calling(appliance, ae_title) as call:
        got = call.get().dataset
        found, _ = call.find(dataset(PatientName="", ProcedureStepLabel=""), UPS_QUERY)
    for ds in (got, found.dataset):
        assert ds.SpecificCharacterSet == charset
        assert (ds.PatientName, ds.ProcedureStepLabel) == (WANG, "胸部三维重建")


def test_a_chinese_name_is_created_and_set_in_the_set_of_its_sender(appliance):
    """US1 is set up with GB18030."""
    with calling(appliance, "US1") as call:
        call.create(creation(SpecificCharacterSet="GB18030"))
        call.set(dataset(SpecificCharacterSet="GB18030", ProcedureStepLabel="胸部三维重建"))
        found = call.get().dataset
    assert (found.PatientName, found.ProcedureStepLabel) == (WANG, "胸部三维重建")
    assert appliance.read(stored).PatientName == WANG
    assert "王^小东".encode() in bytes(appliance.read(row).data)


HEAD = encode_element(SPECIFIC_CHARACTER_SET, b"CS", b"GB18030")


def in_gb18030(ds):
    """The bytes of a data set in GB18030, less what says so."""
    ds.SpecificCharacterSet = "GB18030"
    return bytes_of(ds).removeprefix(HEAD)


def test_a_name_without_a_character_set_is_read_in_that_of_the_device(appliance, raw):
    """US1 is set up with GB18030."""
    with calling(appliance, "US1") as call:
        assert call.create(raw_dataset(in_gb18030(creation()))).status == 0x0000
    assert appliance.read(stored).PatientName == WANG


def test_a_name_in_a_set_that_nobody_knows_is_refused(appliance, call, raw):
    """PS3.5 6.1.2.3: it would be wrong for good."""
    head = encode_element(SPECIFIC_CHARACTER_SET, b"CS", b"ISO_IR 999")
    answer = call.create(raw_dataset(head + in_gb18030(creation())))
    assert answer.status in (0x0000, 0x0106)
    if answer.status == 0x0000:
        assert appliance.read(stored).PatientName == WANG
    else:
        assert appliance.read(row) is None


# Bad data sets: nothing half done.


def raw_dataset(data):
    """A data set that pynetdicom sends as these bytes."""

    class Raw(Dataset):
        pass

    ds = Raw()
    ds.raw = data
    return ds


@pytest.fixture
def raw(monkeypatch):
    """Lets pynetdicom send bytes as they are, where a data set has them."""
    from pynetdicom import association

    usual = association.encode

    def encode_raw(ds, *how, **more):
        return ds.raw if hasattr(ds, "raw") else usual(ds, *how, **more)

    monkeypatch.setattr(association, "encode", encode_raw)


def nested(depth):
    ds = dataset(TextValue="Deep")
    for _ in range(depth):
        ds = dataset(ContentSequence=[ds])
    return [ds]


def bytes_of(ds):
    return encode(ds, False, True)


LABEL = encode_text("ProcedureStepLabel", "3D of the heart")
BAD = {
    "cut short": lambda: bytes_of(creation())[:-3],
    "a length past the end": lambda: LABEL + b"\x74\x00\x02\x12LO\xff\x7fMAIN",
    "an unknown VR": lambda: LABEL + b"\x74\x00\x02\x12??\x04\x00MAIN",
    "a command element": lambda: b"\x00\x00\x00\x01US\x02\x00\x01\x00" + LABEL,
    "noise": lambda: bytes(range(256)) * 4,
    "a number for a text": lambda: LABEL + b"\x74\x00\x02\x12US\x02\x00\x01\x00",
}


@pytest.mark.parametrize("operation", ["create", "set", "change", "cancel"])
@pytest.mark.parametrize("kind", BAD)
def test_a_data_set_that_cannot_be_read_changes_nothing(appliance, call, raw, kind, operation):
    if operation != "create":
        bring_to(call, "IN PROGRESS" if operation == "cancel" else "SCHEDULED")
        call.subscribe()
    was = appliance.read(kept)
    ds = raw_dataset(BAD[kind]())
    send = {
        "create": lambda: call.create(ds),
        "set": lambda: call.set(ds),
        "change": lambda: call.act(1, ds),
        "cancel": lambda: call.cancel(ds),
    }
    answer = send[operation]()
    assert answer.status == 0x0110
    assert re.fullmatch(r"[ -\[\]-~]{1,64}", str(answer.command.ErrorComment))
    assert appliance.read(kept) == was
    assert call.get(uid="2.25.4711").status == 0xC307


@pytest.mark.parametrize("operation", ["create", "set"])
def test_a_data_set_that_is_too_deep_is_refused(appliance, call, operation):
    if operation == "set":
        call.create(creation())
    was = appliance.read(kept)
    deep = {"ScheduledProcessingParametersSequence": nested(20)}
    answer = (
        call.create(creation(**deep)) if operation == "create" else call.set(modification(**deep))
    )
    assert answer.status == 0x0110
    assert appliance.read(kept) == was


def test_a_data_set_within_the_depth_is_taken(call):
    deep = {"ScheduledProcessingParametersSequence": nested(12)}
    assert call.create(creation(**deep)).status == 0x0000


@pytest.mark.parametrize("operation", ["create", "set", "cancel"])
def test_a_data_set_that_is_too_large_is_refused(run_appliance, operation):
    small = run_appliance("[dicom]\nmaximum_dataset_length = 65536")
    with calling(small) as call:
        if operation != "create":
            call.create(creation())
        was = small.read(kept)
        large = modification(CommentsOnTheScheduledProcedureStep="x" * 9000)
        large.ScheduledProcessingParametersSequence = [dataset(TextValue="x" * 9000)] * 8
        ds = creation()
        ds.update(large)
        send = {
            "create": lambda: call.create(ds),
            "set": lambda: call.set(large),
            "cancel": lambda: call.cancel(large),
        }
        assert send[operation]().status == 0x0213
        assert small.read(kept) == was
        assert call.create(creation(), "2.25.2").status == 0x0000


def test_a_workitem_created_without_a_data_set_is_refused(appliance, call):
    assert call.create(None).status == 0x0120
    assert appliance.read(row) is None


def test_progress_has_one_item(appliance, call):
    """PS3.4 Table CC.2.5-3: 0 or 1; a second one would be lost in reports."""
    call.create(creation())
    was = appliance.read(kept)
    two = [dataset(ProcedureStepProgress="40"), dataset(ProcedureStepProgress="60")]
    answer = call.set(modification(ProcedureStepProgressInformationSequence=two))
    assert answer.status == 0x0106
    assert appliance.read(kept) == was


# With dcmjs-dimse, a DICOM implementation by others.


def js(op, over, uid=UID, charset="GB18030", **more):
    """An operation of tests/peers/dimse.mjs in a UPS context."""
    ds = more.pop("dataset", None)
    given = {} if ds is None else {"dataset": as_json(ds), "charset": charset}
    return {"op": op, "sopClass": UPS_PUSH, "meta": over, "instance": uid, **given, **more}


def claim_by(lock=LOCK, state="IN PROGRESS"):
    ds = dataset(ProcedureStepState=state, TransactionUID=lock)
    return js("n-action", UPS_PULL, type=1, dataset=ds)


def statuses(answers):
    return [answer.get("status") for answer in answers]


def test_dcmjs_asks_for_a_workitem_and_another_one_does_it(appliance):
    """T-UPS-01, 08, 16, 18, 38, 40: requester and performer, in two associations."""
    asked = [js("n-create", UPS_PUSH, dataset=creation())]
    did = [
        claim_by(),
        js("n-set", UPS_PULL, dataset=done(LOCK)),
        claim_by(state="COMPLETED"),
        claim_by(state="COMPLETED"),
        js("n-get", UPS_PULL),
    ]
    found = peers.run_dimse(appliance.port, [asked, did], calling="US1")
    assert statuses(found) == [0x0000, 0x0000, 0x0000, 0x0000, 0xB306, 0x0000]
    got = found[-1]["dataset"]
    assert got["PatientName"][0]["Ideographic"] == "王^小东"
    assert got["SpecificCharacterSet"] == "GB18030"
    assert got["ProcedureStepState"] == "COMPLETED"
    assert "TransactionUID" not in got
    assert appliance.read(state) == "COMPLETED"


def test_dcmjs_finds_what_it_is_to_do(appliance, call):
    """T-UPS-41, 42."""
    call.create(creation())
    keys = {
        "SOPInstanceUID": "",
        "ProcedureStepState": "SCHEDULED",
        "WorklistLabel": "3D",
        "PatientName": "*=王*",
        "ScheduledWorkitemCodeSequence": [{"CodeValue": "110001"}],
    }
    for sop_class in (UPS_PULL, UPS_WATCH, UPS_QUERY):
        query = {"op": "find", "sopClass": sop_class, "charset": "GB18030", "keys": keys}
        found, last = peers.run_dimse(appliance.port, [query], calling="US1")
        assert (found["status"], last["status"]) == (0xFF00, 0x0000)
        assert found["dataset"]["SOPInstanceUID"] == UID
        assert found["dataset"]["PatientName"][0]["Ideographic"] == "王^小东"


def test_dcmjs_reads_why_its_claim_was_refused(appliance, call):
    """T-UPS-10, 13, 31."""
    bring_to(call, "IN PROGRESS")
    late = [
        claim_by(OTHER_LOCK),
        claim_by(OTHER_LOCK, "COMPLETED"),
        js("n-set", UPS_PULL, dataset=modification(OTHER_LOCK, ProcedureStepLabel="3D")),
        js("n-set", UPS_PULL, dataset=modification(LOCK, PatientID="P999999")),
    ]
    found = peers.run_dimse(appliance.port, late, calling="US1")
    assert statuses(found) == [0xC301, 0xC301, 0xC301, 0x0105]
    for answer in found:
        assert 0 < len(answer["errorComment"]) <= 64
        assert LOCK not in str(answer)


@pytest.fixture
def watched(run_appliance):
    """An appliance, and a watcher by dcmjs-dimse that it can call."""
    with peers.listening_dimse("WATCHER") as listener:
        config = WATCHER.format(port=listener.port) + "\nevents_without_role = yes"
        yield run_appliance(config), listener


def subscribe_by():
    ds = dataset(ReceivingAE="WATCHER", DeletionLock="FALSE")
    return js("n-action", UPS_WATCH, type=3, dataset=ds)


def test_dcmjs_watches_a_workitem_that_is_canceled_at_once(watched):
    """T-UPS-50, T-UPS-55."""
    appliance, listener = watched
    asked = [
        js("n-create", UPS_PUSH, dataset=creation()),
        subscribe_by(),
        js("n-action", UPS_PUSH, type=2, dataset=cancellation(), charset="GB18030"),
    ]
    found = peers.run_dimse(appliance.port, asked, calling="US1")
    assert statuses(found) == [0x0000, 0x0000, 0x0000]
    heard = [listener.next_event() for _ in range(4)]
    told = [(one["event"], one["dataset"].get("ProcedureStepState")) for one in heard]
    assert told == [(1, "SCHEDULED"), (2, None), (1, "IN PROGRESS"), (1, "CANCELED")]
    assert {one["sopClass"] for one in heard} == {UPS_PUSH}
    assert {one["sopInstance"] for one in heard} == {UID}


def test_dcmjs_hears_who_wants_its_work_cancelled_and_why(watched):
    """T-UPS-51."""
    appliance, listener = watched
    begun = [js("n-create", UPS_PUSH, dataset=creation()), claim_by(), subscribe_by()]
    ask = [js("n-action", UPS_WATCH, type=2, dataset=cancellation(), charset="GB18030")]
    found = peers.run_dimse(appliance.port, [begun, ask], calling="US1")
    assert statuses(found) == [0x0000] * 4
    first, second = listener.next_event(), listener.next_event()
    assert (first["event"], first["dataset"]["ProcedureStepState"]) == (1, "IN PROGRESS")
    assert second["event"] == 2
    assert second["dataset"]["RequestingAE"] == "US1"
    assert second["dataset"]["ReasonForCancellation"] == "Patient went home"
    assert second["dataset"]["ContactDisplayName"] == "Ward 3, 李娜"


def test_dcmjs_reads_that_nobody_hears_its_request(appliance, call):
    """T-UPS-52, T-UPS-54."""
    bring_to(call, "IN PROGRESS")
    ask = js("n-action", UPS_PUSH, type=2)
    [answer] = peers.run_dimse(appliance.port, [ask], calling="US1")
    assert answer["status"] == 0xC312
    assert appliance.read(state) == "IN PROGRESS"
