"""Workitems: attributes, states, subscriptions, events, actions (PS3.4 CC)."""

from minris.standard.attributes import attribute_table, transition_table
from minris.standard.dictionary import tag_of
from minris.standard.mpps import DISCONTINUATION_REASONS
from minris.standard.tables import grid_table, one_of, table
from minris.standard.uids import UPS_PULL, UPS_PUSH, UPS_WATCH

# create, set: type for the SCU / for the SCP; final: R always, RC if known, P for COMPLETED, P2 the
# same but may be empty, X for CANCELED; match: R, O, U unique key; get, return: types.
UPS_ATTRIBUTES = attribute_table(
    "PS3.4 Table CC.2.5-3",
    """
    keyword                                           | create | set   | final | get  | match | return
    TransactionUID                                    | 2/2    | NA    | O     | NA   | -     | -
    SpecificCharacterSet                              | 1C/1C  | 1C/1C | RC    | 3/1  | -     | 1C
    SOPClassUID                                       | -      | NA    | -     | NA   | O     | 1
    SOPInstanceUID                                    | -      | NA    | -     | NA   | U     | 1
    ScheduledProcedureStepPriority                    | 1/1    | 3/1   | R     | 3/1  | R     | 1
    ScheduledProcedureStepModificationDateTime        | -/1    | -/1   | R     | 3/1  | O     | 3
    ProcedureStepLabel                                | 1/1    | 3/1   | O     | 3/1  | R     | 1
    WorklistLabel                                     | 2/1    | 3/1   | O     | 3/1  | R     | 1
    ScheduledProcessingParametersSequence             | 2/2    | 3/2   | O     | 3/2  | -     | 2
    ScheduledStationNameCodeSequence                  | 2/2    | 3/2   | O     | 3/2  | R     | 2
    ScheduledStationClassCodeSequence                 | 2/2    | 3/2   | O     | 3/2  | R     | 2
    ScheduledStationGeographicLocationCodeSequence    | 2/2    | 3/2   | O     | 3/2  | R     | 2
    ScheduledHumanPerformersSequence                  | 2C/2C  | 3/2   | O     | 3/2  | R     | 2
    > HumanPerformerCodeSequence                      | 1/1    | 1/1   | O     | -/1  | R     | 1
    > HumanPerformerName                              | 1/1    | 1/1   | O     | -/1  | O     | 3
    > HumanPerformerOrganization                      | 1/1    | 1/1   | O     | -/1  | O     | 3
    ScheduledProcedureStepStartDateTime               | 1/1    | 3/1   | R     | 3/1  | R     | 1
    ExpectedCompletionDateTime                        | 3/1    | 3/1   | O     | 3/1  | R     | 3
    ScheduledProcedureStepExpirationDateTime          | 3/3    | 3/3   | O     | 3/3  | O     | 3
    ScheduledWorkitemCodeSequence                     | 2/2    | 3/1   | O     | 3/1  | R     | 2
    CommentsOnTheScheduledProcedureStep               | 2/2    | 3/1   | O     | 3/1  | O     | 3
    InputReadinessState                               | 1/1    | 3/1   | R     | 3/1  | R     | 1
    InputInformationSequence                          | 2/2    | 3/2   | O     | 3/2  | O     | 2
    StudyInstanceUID                                  | 1C/2   | 3/2   | O     | 3/2  | O     | 2
    OutputDestinationSequence                         | 3/3    | 3/3   | O     | 3/3  | O     | 3
    PatientName                                       | 2/2    | NA    | O     | 3/2  | R     | 2
    PatientID                                         | 1C/2   | NA    | O     | 3/2  | R     | 2
    IssuerOfPatientID                                 | 2/2    | NA    | O     | 3/2  | R     | 2
    IssuerOfPatientIDQualifiersSequence               | 2/2    | NA    | O     | 3/2  | O     | 2
    OtherPatientIDsSequence                           | 2/2    | 3/3   | O     | 3/2  | O     | 2
    PatientBirthDate                                  | 2/2    | NA    | O     | 3/2  | R     | 2
    PatientSex                                        | 2/2    | NA    | O     | 3/2  | R     | 2
    GenderIdentitySequence                            | 3/3    | NA    | O     | 3/3  | O     | 3
    > GenderIdentityCodeSequence                      | 1/1    | NA    | O     | -/1  | O     | 1
    > EffectiveStartDateTime                          | 3/3    | NA    | O     | -/3  | O     | 3
    > EffectiveStopDateTime                           | 3/3    | NA    | O     | -/3  | O     | 3
    > GenderIdentityComment                           | 3/3    | NA    | O     | -/3  | O     | 3
    SexParametersForClinicalUseCategorySequence       | 3/3    | NA    | O     | 3/3  | O     | 3
    > SexParametersForClinicalUseCategoryCodeSequence | 1/1    | NA    | O     | -/1  | O     | 1
    > EffectiveStartDateTime                          | 3/3    | NA    | O     | -/3  | O     | 3
    > EffectiveStopDateTime                           | 3/3    | NA    | O     | -/3  | O     | 3
    > SexParametersForClinicalUseCategoryComment      | 2C/2C  | NA    | O     | -/2C | O     | 3
    > SexParametersForClinicalUseCategoryReference    | 2C/2C  | NA    | O     | -/2C | O     | 3
    PersonNamesToUseSequence                          | 3/3    | NA    | O     | 3/3  | O     | 3
    > NameToUse                                       | 1/1    | NA    | O     | -/1  | O     | 1
    > EffectiveStartDateTime                          | 3/3    | NA    | O     | -/3  | O     | 3
    > EffectiveStopDateTime                           | 3/3    | NA    | O     | -/3  | O     | 3
    > NameToUseComment                                | 3/3    | NA    | O     | -/3  | O     | 3
    ThirdPersonPronounsSequence                       | 3/3    | NA    | O     | 3/3  | O     | 3
    > PronounCodeSequence                             | 1/1    | NA    | O     | -/1  | O     | 1
    > EffectiveStartDateTime                          | 3/3    | NA    | O     | -/3  | O     | 3
    > EffectiveStopDateTime                           | 3/3    | NA    | O     | -/3  | O     | 3
    > PronounComment                                  | 3/3    | NA    | O     | -/3  | O     | 3
    ReferencedPatientPhotoSequence                    | 3/3    | 3/3   | O     | 3/3  | -     | 3
    AdmissionID                                       | 2/2    | NA    | O     | 3/2  | R     | 2
    IssuerOfAdmissionIDSequence                       | 2/2    | NA    | O     | 3/2  | R     | 2
    AdmittingDiagnosesDescription                     | 2/2    | NA    | O     | 3/2  | O     | 2
    AdmittingDiagnosesCodeSequence                    | 2/2    | NA    | O     | 3/2  | O     | 2
    ReferencedRequestSequence                         | 2/2    | NA    | O     | 3/2  | R     | 2
    > StudyInstanceUID                                | 1/1    | NA    | O     | -/1  | O     | 1
    > AccessionNumber                                 | 2/2    | NA    | O     | -/2  | R     | 2
    > IssuerOfAccessionNumberSequence                 | 2/2    | NA    | O     | -/2  | R     | 2
    > PlacerOrderNumberImagingServiceRequest          | 3/1    | NA    | O     | -/1  | O     | 1C
    > OrderPlacerIdentifierSequence                   | 2/2    | NA    | O     | -/2  | O     | 2
    > FillerOrderNumberImagingServiceRequest          | 3/1    | NA    | O     | -/1  | O     | 1C
    > OrderFillerIdentifierSequence                   | 2/2    | NA    | O     | -/2  | O     | 2
    > RequestedProcedureID                            | 2/2    | NA    | O     | -/2  | R     | 2
    > RequestedProcedureDescription                   | 2/2    | NA    | O     | -/2  | O     | 2
    > RequestedProcedureCodeSequence                  | 2/2    | NA    | O     | -/2  | O     | 2
    > ReasonForTheRequestedProcedure                  | 3/3    | 3/3   | O     | -/3  | O     | 3
    > ReasonForRequestedProcedureCodeSequence         | 3/3    | 3/3   | O     | -/3  | O     | 3
    > RequestedProcedureComments                      | 3/3    | 3/3   | O     | -/3  | O     | 1C
    > ConfidentialityCode                             | 3/3    | 3/3   | O     | -/3  | O     | 3
    > NamesOfIntendedRecipientsOfResults              | 3/3    | 3/3   | O     | -/3  | O     | 3
    > ImagingServiceRequestComments                   | 3/3    | 3/3   | O     | -/3  | O     | 3
    > RequestingPhysician                             | 3/3    | 3/3   | O     | -/3  | O     | 3
    > RequestingService                               | 3/1    | 3/1   | O     | -/3  | R     | 3
    > RequestingServiceCodeSequence                   | 3/3    | 3/3   | O     | -/3  | O     | 3
    > IssueDateOfImagingServiceRequest                | 3/3    | 3/3   | O     | -/3  | O     | 3
    > IssueTimeOfImagingServiceRequest                | 3/3    | 3/3   | O     | -/3  | O     | 3
    > ReferringPhysicianName                          | 3/3    | 3/3   | O     | -/3  | O     | 3
    ReplacedProcedureStepSequence                     | 1C/1C  | NA    | O     | 3/2  | R     | 3
    MedicalAlerts                                     | 3/2    | 3/2   | O     | 3/2  | O     | 2C
    PregnancyStatus                                   | 3/2    | 3/2   | O     | 3/2  | O     | 2C
    SpecialNeeds                                      | 3/2    | 3/2   | O     | 3/2  | O     | 2C
    ProcedureStepState                                | 1/1    | NA    | R     | 3/1  | R     | 1
    ProcedureStepProgressInformationSequence          | 2/2    | 3/2   | X     | 3/2  | -     | 2
    > ProcedureStepProgress                           | NA     | 3/1   | O     | -/1  | -     | -
    > ProcedureStepProgressDescription                | NA     | 3/1   | O     | -/1  | -     | -
    > ProcedureStepProgressParametersSequence         | NA     | 3/3   | O     | -/3  | -     | -
    > ProcedureStepCommunicationsURISequence          | NA     | 3/1   | O     | -/1  | -     | -
    >> ContactURI                                     | NA     | 1/1   | O     | -/1  | -     | -
    >> ContactDisplayName                             | NA     | 3/1   | O     | -/1  | -     | -
    > ProcedureStepCancellationDateTime               | NA     | 3/1   | X     | -/1  | -     | -
    > ReasonForCancellation                           | NA     | 3/1   | O     | -/1  | -     | -
    > ProcedureStepDiscontinuationReasonCodeSequence  | NA     | 3/1   | X     | -/1  | -     | -
    UnifiedProcedureStepPerformedProcedureSequence    | 2/2    | 3/2   | P     | 3/2  | -     | -
    > ActualHumanPerformersSequence                   | NA     | 3/1   | RC    | -/1  | O     | 1C
    >> HumanPerformerCodeSequence                     | NA     | 3/1   | RC    | -/1  | -     | -
    >> HumanPerformerName                             | NA     | 3/1   | RC    | -/1  | -     | -
    >> HumanPerformerOrganization                     | NA     | 3/1   | O     | -/1  | -     | -
    > PerformedStationNameCodeSequence                | NA     | 3/2   | P     | -/2  | O     | 3
    > PerformedStationClassCodeSequence               | NA     | 3/2   | O     | -/2  | -     | -
    > PerformedStationGeographicLocationCodeSequence  | NA     | 3/2   | O     | -/2  | -     | -
    > PerformedProcedureStepStartDateTime             | NA     | 3/1   | P     | -/1  | -     | -
    > PerformedProcedureStepDescription               | NA     | 3/1   | O     | -/1  | -     | -
    > CommentsOnThePerformedProcedureStep             | NA     | 3/1   | O     | -/1  | -     | -
    > PerformedWorkitemCodeSequence                   | NA     | 3/1   | P     | -/1  | -     | -
    > PerformedProcessingParametersSequence           | NA     | 3/1   | O     | -/1  | -     | -
    > PerformedProcedureStepEndDateTime               | NA     | 3/1   | P     | -/1  | O     | 1C
    > OutputInformationSequence                       | NA     | 2/2   | P2    | -/2  | -     | -
    """,
)
UPS_STATES = ("SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED")
FINAL_UPS_STATES = frozenset({"COMPLETED", "CANCELED"})
# right UID: that of the claim; any UID claims a SCHEDULED workitem, and becomes the right one.
UPS_TRANSITIONS = transition_table(
    "PS3.4 Tables CC.1.1-2, CC.2.1-2, CC.2.2-2, CC.2.6-1",
    """
    event                  | none      | SCHEDULED   | IN PROGRESS | COMPLETED | CANCELED
    create                 | SCHEDULED | 0111        | 0111        | 0111      | 0111
    IN PROGRESS, right UID | C307      | IN PROGRESS | C302        | C300      | C300
    IN PROGRESS, wrong UID | C307      | C301        | C301        | C301      | C301
    SCHEDULED, right UID   | C307      | C303        | C303        | C303      | C303
    SCHEDULED, wrong UID   | C307      | C303        | C303        | C303      | C303
    COMPLETED, right UID   | C307      | C310        | COMPLETED   | B306      | C300
    COMPLETED, wrong UID   | C307      | C301        | C301        | C301      | C301
    CANCELED, right UID    | C307      | C310        | CANCELED    | C300      | B304
    CANCELED, wrong UID    | C307      | C301        | C301        | C301      | C301
    request cancel         | C307      | CANCELED    | IN PROGRESS | C311      | B304
    set, no UID            | C307      | SCHEDULED   | C301        | C300      | C300
    set, right UID         | C307      | C310        | IN PROGRESS | C300      | C300
    set, wrong UID         | C307      | C310        | C301        | C300      | C300
    """,
    UPS_STATES,
)
SUBSCRIPTION_STATES = ("Not Subscribed", "with Lock", "without Lock")


def subscription_table(source: str, text: str) -> dict[tuple[str, str], tuple[str, bool]]:
    """Read `request | state | …`: a cell is the new state, with `+` if a state report is due."""
    state = one_of(SUBSCRIPTION_STATES)

    def read(cell: str) -> tuple[str, bool] | None:
        return None if cell == "-" else (state(cell.removesuffix(" +")), cell.endswith(" +"))

    found = grid_table(source, text, read, state)
    return {key: outcome for key, outcome in found.items() if outcome}  # `-`: impossible


# The request, by the state of one AE for one workitem; a new workitem has no subscribers yet.
# Local: for a global lock, CC.2.4.3 wants a report of every workitem, but the table only of those
# that the AE was not subscribed to.
SUBSCRIPTION_TRANSITIONS = subscription_table(
    "PS3.4 Table CC.2.3-2",
    """
    request                  | Not Subscribed | with Lock      | without Lock
    created, global lock     | with Lock +    | -              | -
    created, global          | without Lock + | -              | -
    subscribe globally, lock | with Lock +    | with Lock +    | without Lock +
    subscribe globally       | without Lock   | with Lock      | without Lock
    subscribe, lock          | with Lock +    | with Lock +    | with Lock +
    subscribe                | without Lock + | without Lock + | without Lock +
    unsubscribe              | Not Subscribed | Not Subscribed | Not Subscribed
    unsubscribe globally     | Not Subscribed | Not Subscribed | Not Subscribed
    suspend globally         | Not Subscribed | with Lock      | without Lock
    """,
)
EVENT_TYPES = {  # PS3.4 Table CC.2.4-1
    "Cancellation declined": 0,  # local: kept in the history, sent to no subscriber
    "UPS State Report": 1,
    "UPS Cancel Requested": 2,
    "UPS Progress Report": 3,
    "SCP Status Change": 4,
    "UPS Assigned": 5,
}
UPS_ACTIONS = {  # PS3.4 Tables CC.2.1-1 to CC.2.3-1: action type, and the SOP classes that have it
    1: ("change state", frozenset({UPS_PULL})),
    2: ("request cancel", frozenset({UPS_PUSH, UPS_WATCH})),
    3: ("subscribe", frozenset({UPS_WATCH})),
    4: ("unsubscribe", frozenset({UPS_WATCH})),
    5: ("suspend", frozenset({UPS_WATCH})),
}
UPS_ENUMERATIONS = {
    "ScheduledProcedureStepPriority": ("HIGH", "MEDIUM", "LOW"),
    "InputReadinessState": ("INCOMPLETE", "UNAVAILABLE", "READY"),
}
TRANSACTION_UID = tag_of("TransactionUID")
TIMEZONE_OFFSET = tag_of("TimezoneOffsetFromUTC")
UPS_STATE = tag_of("ProcedureStepState")
PROGRESS_INFORMATION = tag_of("ProcedureStepProgressInformationSequence")
PERFORMED_PROCEDURE = tag_of("UnifiedProcedureStepPerformedProcedureSequence")
CANCELLATION_REASON = (
    tag_of("ReasonForCancellation"), tag_of("ProcedureStepDiscontinuationReasonCodeSequence"),
)  # fmt: skip
LOCAL_SCHEME = "99MINRIS"
# Choices on the form of a workitem: PS3.16 CID 9231, and local codes for what it lacks.
WORKITEM_CODES: dict[str, tuple[str, str]] = {
    row.code: (row.scheme, row.meaning)
    for row in table("""
    code    | scheme   | meaning
    110001  | DCM      | Image Processing
    110002  | DCM      | Quality Control
    110003  | DCM      | Computer Aided Diagnosis
    110004  | DCM      | Computer Aided Detection
    110005  | DCM      | Interpretation
    110006  | DCM      | Transcription
    110007  | DCM      | Report Verification
    110008  | DCM      | Print
    110013  | DCM      | Media Import
    128001  | DCM      | Add Addendum to Report
    3D      | 99MINRIS | 3D views
    CD      | 99MINRIS | Write a CD
    FETCH   | 99MINRIS | Prefetch of earlier images
    ROUTE   | 99MINRIS | Sending of images
    DISPLAY | 99MINRIS | Display calibration
    """)
}
# PS3.16 CID 9300 with its extension for workitems.
UPS_CANCELLATION_REASONS = DISCONTINUATION_REASONS | {
    "110527": "Resource inadequate",
    "110530": "Workitem assignment rejected by assigned resource",
    "110533": "Workitem expired",
}
MODIFIED_AT = tag_of("ScheduledProcedureStepModificationDateTime")
