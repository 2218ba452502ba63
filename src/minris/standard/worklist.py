"""The worklist's attributes, and the states of a scheduled step (PS3.4 K, PS3.3 C.4.10)."""

from minris.standard.attributes import attribute_table, transition_table
from minris.standard.dictionary import tag_of
from minris.standard.status import Message

# match: R required, O optional, - never; return: type in an answer; entity: what it describes.
MWL_ATTRIBUTES = attribute_table(
    "PS3.4 Tables K.6-1 and K.6-1a",
    """
    keyword                                       | match | return | entity
    SpecificCharacterSet                          | -     | 1C     | answer
    TimezoneOffsetFromUTC                         | -     | 1C     | answer
    ScheduledProcedureStepSequence                | R     | 1      | step
    > ScheduledStationAETitle                     | R     | 1      | step
    > ScheduledProcedureStepStartDate             | R     | 1      | step
    > ScheduledProcedureStepStartTime             | R     | 1      | step
    > Modality                                    | R     | 1      | step
    > ScheduledPerformingPhysicianName            | R     | 2      | step
    > ScheduledProcedureStepDescription           | O     | 1C     | step
    > ScheduledStationName                        | O     | 2      | step
    > ScheduledProcedureStepLocation              | O     | 2      | step
    > ReferencedDefinedProtocolSequence           | O     | 3      | step
    >> ReferencedSOPClassUID                      | O     | 1      | step
    >> ReferencedSOPInstanceUID                   | O     | 1      | step
    > ReferencedPerformedProtocolSequence         | O     | 3      | step
    >> ReferencedSOPClassUID                      | O     | 1      | step
    >> ReferencedSOPInstanceUID                   | O     | 1      | step
    > ScheduledProtocolCodeSequence               | O     | 1C     | step
    >> CodeValue                                  | O     | 1C     | step
    >> CodingSchemeDesignator                     | O     | 1C     | step
    >> CodingSchemeVersion                        | O     | 3      | step
    >> CodeMeaning                                | O     | 1      | step
    >> LongCodeValue                              | O     | 1C     | step
    >> URNCodeValue                               | O     | 1C     | step
    >> ProtocolContextSequence                    | -     | 3      | step
    > PreMedication                               | O     | 2C     | step
    > ScheduledProcedureStepID                    | O     | 1      | step
    > RequestedContrastAgent                      | O     | 2C     | step
    > ScheduledProcedureStepStatus                | O     | 3      | step
    > ScheduledProcedureStepEndDate               | O     | 3      | step
    > ScheduledProcedureStepEndTime               | O     | 3      | step
    > CommentsOnTheScheduledProcedureStep         | O     | 3      | step
    ScheduledSpecimenSequence                     | O     | 3      | procedure
    > ContainerIdentifier                         | O     | 1      | procedure
    > ContainerTypeCodeSequence                   | -     | 2      | procedure
    > SpecimenDescriptionSequence                 | O     | 1      | procedure
    >> SpecimenIdentifier                         | O     | 1      | procedure
    >> SpecimenUID                                | O     | 1      | procedure
    BarcodeValue                                  | O     | 3      | procedure
    RequestedProcedureID                          | O     | 1      | procedure
    RequestedProcedureDescription                 | O     | 1C     | procedure
    RequestedProcedureCodeSequence                | O     | 1C     | procedure
    > CodeValue                                   | O     | 1C     | procedure
    > CodingSchemeDesignator                      | O     | 1C     | procedure
    > CodingSchemeVersion                         | O     | 3      | procedure
    > CodeMeaning                                 | O     | 1      | procedure
    > LongCodeValue                               | O     | 1C     | procedure
    > URNCodeValue                                | O     | 1C     | procedure
    StudyInstanceUID                              | O     | 1      | procedure
    StudyDate                                     | O     | 3      | procedure
    StudyTime                                     | O     | 3      | procedure
    ReferencedStudySequence                       | O     | 2      | procedure
    > ReferencedSOPClassUID                       | O     | 1      | procedure
    > ReferencedSOPInstanceUID                    | O     | 1      | procedure
    RequestedProcedurePriority                    | O     | 2      | procedure
    PatientTransportArrangements                  | O     | 2      | procedure
    ReasonForTheRequestedProcedure                | O     | 3      | procedure
    ReasonForRequestedProcedureCodeSequence       | O     | 3      | procedure
    RequestedProcedureComments                    | O     | 3      | procedure
    RequestedProcedureLocation                    | O     | 3      | procedure
    ConfidentialityCode                           | O     | 3      | procedure
    ReportingPriority                             | O     | 3      | procedure
    NamesOfIntendedRecipientsOfResults            | O     | 3      | procedure
    AccessionNumber                               | O     | 2      | procedure
    IssuerOfAccessionNumberSequence               | O     | 3      | procedure
    > LocalNamespaceEntityID                      | O     | 1C     | procedure
    > UniversalEntityID                           | O     | 1C     | procedure
    > UniversalEntityIDType                       | O     | 1C     | procedure
    RequestingPhysician                           | O     | 2      | procedure
    ReferringPhysicianName                        | O     | 2      | procedure
    RequestingService                             | O     | 3      | procedure
    ReasonForTheImagingServiceRequest             | O     | 3      | procedure
    ImagingServiceRequestComments                 | O     | 3      | procedure
    PlacerOrderNumberImagingServiceRequest        | O     | 3      | procedure
    FillerOrderNumberImagingServiceRequest        | O     | 3      | procedure
    IssueDateOfImagingServiceRequest              | O     | 3      | procedure
    IssueTimeOfImagingServiceRequest              | O     | 3      | procedure
    OrderEnteredBy                                | O     | 3      | procedure
    OrderEntererLocation                          | O     | 3      | procedure
    OrderCallbackPhoneNumber                      | O     | 3      | procedure
    AdmissionID                                   | O     | 2      | procedure
    IssuerOfAdmissionIDSequence                   | O     | 3      | procedure
    CurrentPatientLocation                        | O     | 2      | procedure
    ReferencedPatientSequence                     | O     | 2      | procedure
    > ReferencedSOPClassUID                       | O     | 1      | procedure
    > ReferencedSOPInstanceUID                    | O     | 1      | procedure
    InstitutionName                               | O     | 3      | procedure
    InstitutionAddress                            | O     | 3      | procedure
    InstitutionalDepartmentName                   | O     | 3      | procedure
    AdmittingDiagnosesDescription                 | O     | 3      | procedure
    PregnancyStatus                               | O     | 2      | procedure
    PatientName                                   | R     | 1      | patient
    PatientID                                     | R     | 1      | patient
    IssuerOfPatientID                             | O     | 3      | patient
    IssuerOfPatientIDQualifiersSequence           | O     | 3      | patient
    OtherPatientIDs                               | O     | 3      | patient
    OtherPatientIDsSequence                       | O     | 3      | patient
    PatientBirthDate                              | O     | 2      | patient
    PatientBirthTime                              | O     | 3      | patient
    PatientSex                                    | O     | 2      | patient
    PatientPrimaryLanguageCodeSequence            | O     | 3      | patient
    > CodeValue                                   | O     | 1C     | patient
    > CodingSchemeDesignator                      | O     | 1C     | patient
    > CodeMeaning                                 | O     | 1      | patient
    > PatientPrimaryLanguageModifierCodeSequence  | O     | 3      | patient
    PatientWeight                                 | O     | 2      | patient
    PatientSize                                   | O     | 3      | patient
    ConfidentialityConstraintOnPatientDataDescription | O | 2      | patient
    PatientState                                  | O     | 2      | patient
    MedicalAlerts                                 | O     | 2      | patient
    Allergies                                     | O     | 2      | patient
    SpecialNeeds                                  | O     | 2      | patient
    SmokingStatus                                 | O     | 3      | patient
    AdditionalPatientHistory                      | O     | 3      | patient
    LastMenstrualDate                             | O     | 3      | patient
    PatientAge                                    | O     | 3      | patient
    OtherPatientNames                             | O     | 3      | patient
    PatientAddress                                | O     | 3      | patient
    PatientTelephoneNumbers                       | O     | 3      | patient
    EthnicGroup                                   | O     | 3      | patient
    Occupation                                    | O     | 3      | patient
    PatientComments                               | O     | 3      | patient
    PatientReligiousPreference                    | O     | 3      | patient
    ResponsiblePerson                             | O     | 3      | patient
    ResponsibleOrganization                       | O     | 3      | patient
    PatientSpeciesDescription                     | O     | 3      | patient
    PertinentDocumentsSequence                    | -     | 3      | patient
    PersonNamesToUseSequence                      | -     | 3      | patient  # local: returned, not matched
    ThirdPersonPronounsSequence                   | -     | 3      | patient
    GenderIdentitySequence                        | -     | 3      | patient
    SexParametersForClinicalUseCategorySequence   | -     | 3      | patient
    HL7StructuredDocumentReferenceSequence        | -     | 1C     | answer
    """,
)
STEP_SEQUENCE = tag_of("ScheduledProcedureStepSequence")
STEP_STATUS = tag_of("ScheduledProcedureStepStatus")
# The five defined terms of PS3.3 Table C.4-10, and local states.
STEP_STATES = (
    "SCHEDULED",
    "ARRIVED",
    "READY",
    "STARTED",
    "DEPARTED",
    "COMPLETED",  # local, as all below: the Standard has no terms for the end
    "DISCONTINUED",
    "CANCELED",
    "NO SHOW",
)
WAITING_STEP_STATES = frozenset({"SCHEDULED", "ARRIVED", "READY"})
OPEN_STEP_STATES = WAITING_STEP_STATES | {"STARTED"}
MODALITIES = tuple(
    "CR CT DX ES IO MG MR NM OP OT PT PX RF US XA XC ECG EPS BMD DMS OCT RTIMAGE".split()
)
PREGNANCY_STATUS = {
    1: "not pregnant",
    2: "possibly pregnant",
    3: "definitely pregnant",
    4: "unknown",
}
MAY_BE_PREGNANT = (2, 3)  # values of (0010,21C0) that must be seen before an exam
START_DATE, START_TIME = 0x00400002, 0x00400003
# What a user may do to a step, by its state.
STEP_TRANSITIONS = transition_table(
    "local; terms of PS3.3 C.4.10",
    """
    event      | SCHEDULED | ARRIVED   | READY     | STARTED | DEPARTED  | COMPLETED | DISCONTINUED | CANCELED  | NO SHOW
    arrive     | ARRIVED   | ARRIVED   | READY     | 0110    | ARRIVED   | 0110      | 0110         | 0110      | ARRIVED
    ready      | READY     | READY     | READY     | 0110    | READY     | 0110      | 0110         | 0110      | READY
    depart     | DEPARTED  | DEPARTED  | DEPARTED  | 0110    | DEPARTED  | 0110      | 0110         | 0110      | 0110
    cancel     | CANCELED  | CANCELED  | CANCELED  | 0110    | CANCELED  | 0110      | CANCELED     | CANCELED  | CANCELED
    no show    | NO SHOW   | NO SHOW   | NO SHOW   | 0110    | NO SHOW   | 0110      | 0110         | 0110      | NO SHOW
    reschedule | SCHEDULED | ARRIVED   | READY     | 0110    | SCHEDULED | 0110      | SCHEDULED    | SCHEDULED | SCHEDULED
    finish     | COMPLETED | COMPLETED | COMPLETED | COMPLETED | 0110    | 0110      | 0110         | 0110      | 0110
    stop       | 0110      | 0110      | 0110      | DISCONTINUED | 0110 | 0110      | 0110         | 0110      | 0110
    """,
    STEP_STATES,
)
# What reported the end of an exam, if not a user.
TOLD_BY = {
    "performed step": Message("MPPS from the machine"),
    "availability": Message("the archive's notice of images"),
    "archive": Message("the images found in the archive"),
    "commitment": Message("the machine's storage commitment request"),
}
