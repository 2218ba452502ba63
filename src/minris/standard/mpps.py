"""Performed procedure steps: attributes, states, events (PS3.4 F)."""

from minris.standard.attributes import attribute_table, transition_table
from minris.standard.dictionary import tag_of

# create, set: type for the SCU / for the SCP (PS3.4 5.4.2); final: type in the final state;
# get: type in MPPS Retrieve. NA: not allowed.
MPPS_ATTRIBUTES = attribute_table(
    "PS3.4 Tables F.7.2-1 and F.8.2-1",
    """
    keyword                                                | create | set   | final | get
    SpecificCharacterSet                                   | 1C/1C  | 1C/1C | -     | 3/1C
    ScheduledStepAttributesSequence                        | 1/1    | NA    | -     | 3/1
    > StudyInstanceUID                                     | 1/1    | NA    | -     | -/1
    > ReferencedStudySequence                              | 2/2    | NA    | -     | -/2
    >> ReferencedSOPClassUID                               | 1/1    | NA    | -     | -/1
    >> ReferencedSOPInstanceUID                            | 1/1    | NA    | -     | -/1
    > AccessionNumber                                      | 2/2    | NA    | -     | -/2
    > IssuerOfAccessionNumberSequence                      | 3/3    | NA    | -     | -/3
    > PlacerOrderNumberImagingServiceRequest               | 3/3    | NA    | -     | -/3
    > OrderPlacerIdentifierSequence                        | 3/3    | NA    | -     | -/3
    > FillerOrderNumberImagingServiceRequest               | 3/3    | NA    | -     | -/3
    > OrderFillerIdentifierSequence                        | 3/3    | NA    | -     | -/3
    > RequestedProcedureID                                 | 2/2    | NA    | -     | -/2
    > RequestedProcedureCodeSequence                       | 3/3    | NA    | -     | -/3
    > RequestedProcedureDescription                        | 2/2    | NA    | -     | -/2
    > ScheduledProcedureStepID                             | 2/2    | NA    | -     | -/2
    > ScheduledProcedureStepDescription                    | 2/2    | NA    | -     | -/2
    > ScheduledProtocolCodeSequence                        | 2/2    | NA    | -     | -/2
    PatientName                                            | 2/2    | NA    | -     | 3/2
    PatientID                                              | 2/2    | NA    | -     | 3/2
    IssuerOfPatientID                                      | 3/3    | NA    | -     | 3/3
    IssuerOfPatientIDQualifiersSequence                    | 3/3    | NA    | -     | 3/3
    OtherPatientIDsSequence                                | 3/3    | NA    | -     | 3/3
    PatientBirthDate                                       | 2/2    | NA    | -     | 3/2
    PatientSex                                             | 2/2    | NA    | -     | 3/2
    ReferencedPatientSequence                              | 2/2    | NA    | -     | 3/2
    > ReferencedSOPClassUID                                | 1/1    | NA    | -     | -/1
    > ReferencedSOPInstanceUID                             | 1/1    | NA    | -     | -/1
    AdmissionID                                            | 3/3    | NA    | -     | 3/3
    IssuerOfAdmissionIDSequence                            | 3/3    | NA    | -     | 3/3
    ServiceEpisodeID                                       | 3/3    | NA    | -     | 3/3
    IssuerOfServiceEpisodeIDSequence                       | 3/3    | NA    | -     | 3/3
    ServiceEpisodeDescription                              | 3/3    | NA    | -     | 3/3
    PerformedProcedureStepID                               | 1/1    | NA    | -     | 3/1
    PerformedStationAETitle                                | 1/1    | NA    | -     | 3/1
    PerformedStationName                                   | 2/2    | NA    | -     | 3/2
    PerformedLocation                                      | 2/2    | NA    | -     | 3/2
    PerformedProcedureStepStartDate                        | 1/1    | NA    | -     | 3/1
    PerformedProcedureStepStartTime                        | 1/1    | NA    | -     | 3/1
    PerformedProcedureStepStatus                           | 1/1    | 3/1   | -     | 3/1
    PerformedProcedureStepDescription                      | 2/2    | 3/2   | -     | 3/2
    PerformedProcedureTypeDescription                      | 2/2    | 3/2   | -     | 3/2
    ProcedureCodeSequence                                  | 2/2    | 3/2   | -     | 3/2
    ReasonForPerformedProcedureCodeSequence                | 3/3    | 3/3   | -     | 3/3
    PerformedProcedureStepEndDate                          | 2/2    | 3/1   | 1     | 3/2
    PerformedProcedureStepEndTime                          | 2/2    | 3/1   | 1     | 3/2
    CommentsOnThePerformedProcedureStep                    | 3/3    | 3/3   | -     | 3/3
    PerformedProcedureStepDiscontinuationReasonCodeSequence | 3/3   | 3/3   | -     | 3/2
    Modality                                               | 1/1    | NA    | -     | 3/1
    StudyID                                                | 2/2    | NA    | -     | 3/2
    PerformedProtocolCodeSequence                          | 2/2    | 3/2   | -     | 3/2
    PerformedSeriesSequence                                | 2/2    | 3/1   | 1     | 3/2
    > PerformingPhysicianName                              | 2/2    | 2/2   | 2     | -/2
    > ProtocolName                                         | 1/1    | 1/1   | 1     | -/1
    > OperatorsName                                        | 2/2    | 2/2   | 2     | -/2
    > SeriesInstanceUID                                    | 1/1    | 1/1   | 1     | -/1
    > SeriesDescription                                    | 2/2    | 2/2   | 2     | -/2
    > RetrieveAETitle                                      | 2/2    | 2/2   | 2     | -/2
    > ArchiveRequested                                     | 3/3    | 3/3   | -     | -/3
    > ReferencedImageSequence                              | 2/2    | 2/2   | 2     | -/2
    >> ReferencedSOPClassUID                               | 1/1    | 1/1   | 1     | -/1
    >> ReferencedSOPInstanceUID                            | 1/1    | 1/1   | 1     | -/1
    > ReferencedNonImageCompositeSOPInstanceSequence       | 2/2    | 2/2   | 2     | -/2
    >> ReferencedSOPClassUID                               | 1/1    | 1/1   | 1     | -/1
    >> ReferencedSOPInstanceUID                            | 1/1    | 1/1   | 1     | -/1
    """,
)
MPPS_STATES = ("IN PROGRESS", "COMPLETED", "DISCONTINUED")
FINAL_MPPS_STATES = frozenset({"COMPLETED", "DISCONTINUED"})
MPPS_TRANSITIONS = transition_table(
    "PS3.4 F.1.5, F.7.2.2.3, Table F.7.2-2",
    """
    event            | none        | IN PROGRESS  | COMPLETED | DISCONTINUED
    create           | IN PROGRESS | 0111         | 0111      | 0111
    set              | 0112        | IN PROGRESS  | 0110      | 0110
    set IN PROGRESS  | 0112        | IN PROGRESS  | 0110      | 0110
    set COMPLETED    | 0112        | COMPLETED    | 0110      | 0110
    set DISCONTINUED | 0112        | DISCONTINUED | 0110      | 0110
    """,
    MPPS_STATES,
)
MPPS_EVENTS = {  # PS3.4 Table F.9.2-1, by the new state of the performed step
    "IN PROGRESS": 1,
    "COMPLETED": 2,
    "DISCONTINUED": 3,
    "": 4,  # updated without a change of state
    "deleted": 5,
}
# Prefixes of the answers that mean a receiver has taken a forwarded message: success and warnings
# (PS3.7 annex C); local: 0111 for a repetition, Error ID A710 for a step that has ended there.
TAKEN_ANSWERS = ("0000", "0001", "0107", "0116", "B", "0111", "A710")
INCORRECT_WORKLIST_ENTRY = "110514"
# PS3.16 CID 9300 (with CID 9301), coding scheme DCM
DISCONTINUATION_REASONS = {
    "110500": "Doctor canceled procedure",
    "110501": "Equipment failure",
    "110502": "Incorrect procedure ordered",
    "110503": "Patient allergic to media/contrast",
    "110504": "Patient died",
    "110505": "Patient refused to continue procedure",
    "110506": "Patient taken for treatment or surgery",
    "110507": "Patient did not arrive",
    "110508": "Patient pregnant",
    "110509": "Change of procedure for correct charging",
    "110510": "Duplicate order",
    "110511": "Nursing unit cancel",
    "110512": "Incorrect side ordered",
    "110513": "Discontinued for unspecified reason",
    "110514": "Incorrect worklist entry selected",
    "110515": "Patient condition prevented continuing",
    "110516": "Equipment change",
}
# The state of a scheduled step by the states of its performed steps; the first match decides.
# Source: PS3.4 F.7.2.1.2 notes, PS3.3 7.3.1.9; a step for a wrong entry (110514) does not count.
STEP_STATUS_AFTER = (
    ("IN PROGRESS", "STARTED"),
    ("COMPLETED", "COMPLETED"),
    ("DISCONTINUED", "DISCONTINUED"),
)
MAY_NO_LONGER_BE_UPDATED = 0xA710  # PS3.4 Table F.7.2-2
MPPS_STATUS = tag_of("PerformedProcedureStepStatus")
STEP_ATTRIBUTES = tag_of("ScheduledStepAttributesSequence")
SERIES = tag_of("PerformedSeriesSequence")
