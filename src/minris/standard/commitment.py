"""Storage commitment and instance availability (PS3.4 J, R)."""

from minris.standard.attributes import attribute_table
from minris.standard.dictionary import tag_of
from minris.standard.status import Message
from minris.standard.uids import STORAGE_COMMITMENT

COMMITMENT_ATTRIBUTES = attribute_table(
    "PS3.4 Table J.3-1",
    """
    keyword                   | action
    StorageMediaFileSetID     | 3/3
    StorageMediaFileSetUID    | 3/3
    ReferencedSOPSequence     | 1/1
    > ReferencedSOPClassUID   | 1/1
    > ReferencedSOPInstanceUID | 1/1
    > StorageMediaFileSetID   | 3/3
    > StorageMediaFileSetUID  | 3/3
    """,
)
COMMITMENT_BY_STUDY = attribute_table(
    "PS3.18 Table J.1-1",
    """
    keyword                                | action
    ReferencedStudySequence                | 1/1
    > StudyInstanceUID                     | 1/1
    > ReferencedSeriesSequence             | 1/1
    >> SeriesInstanceUID                   | 1/1
    >> ReferencedInstancesBySOPClassSequence | 1/1
    >>> ReferencedSOPClassUID              | 1/1
    >>> ReferencedInstanceSequence         | 1/1
    >>>> ReferencedSOPInstanceUID          | 1/1
    """,
)
AVAILABILITY_ATTRIBUTES = attribute_table(
    "PS3.4 Table R.3.2-1",
    """
    keyword                                | create
    SpecificCharacterSet                   | 1C/1C
    ReferencedPerformedProcedureStepSequence | 2/2
    > ReferencedSOPClassUID                | 1/1
    > ReferencedSOPInstanceUID             | 1/1
    > PerformedWorkitemCodeSequence        | 2/2
    StudyInstanceUID                       | 1/1
    ReferencedSeriesSequence               | 1/1
    > SeriesInstanceUID                    | 1/1
    > ReferencedSOPSequence                | 1/1
    >> ReferencedSOPClassUID               | 1/1
    >> ReferencedSOPInstanceUID            | 1/1
    >> InstanceAvailability                | 1/1
    >> RetrieveAETitle                     | 1/1
    >> RetrieveLocationUID                 | 3/3
    >> RetrieveURI                         | 3/3
    >> RetrieveURL                         | 3/3
    >> StorageMediaFileSetID               | 3/3
    >> StorageMediaFileSetUID              | 3/3
    """,
)
INSTANCE_AVAILABILITIES = frozenset("ONLINE NEARLINE OFFLINE UNAVAILABLE".split())
RETRIEVABLE = ("ONLINE", "NEARLINE")  # PS3.3 C.4.23.1.1: a C-MOVE would work
# PS3.3 C.14.1.1: Failure Reason (0008,1197), with the reason in words for the pages.
NOT_CHECKED, NOT_THERE, OF_ANOTHER_CLASS = "0110", "0112", "0119"
NOT_STORED, UID_IN_USE, NO_ROOM, COMMITTED = "0122", "0131", "0213", "0000"
FAILURE_REASONS = {
    NOT_CHECKED: Message("could not be checked"),
    NOT_THERE: Message("is not in the archive"),
    OF_ANOTHER_CLASS: Message("is in the archive as an object of another class"),
    NOT_STORED: Message("is not an object that can be stored"),
    UID_IN_USE: Message("was asked for under a number that is in use"),
    NO_ROOM: Message("has no room in the archive"),
}
COMMITMENT_EVENTS = {True: 1, False: 2}  # PS3.4 Table J.3-2, by whether every instance is committed
COMMITMENT_RESULT = attribute_table(
    "PS3.4 Table J.3-2",
    """
    keyword                    | all | some
    RetrieveAETitle            | 3/3 | 3/3
    StorageMediaFileSetID      | 3/3 | 3/3
    StorageMediaFileSetUID     | 3/3 | 3/3
    ReferencedSOPSequence      | 1/1 | 3/3
    > ReferencedSOPClassUID    | 1/1 | 1/1
    > ReferencedSOPInstanceUID | 1/1 | 1/1
    > RetrieveAETitle          | 3/3 | 3/3
    > StorageMediaFileSetID    | 3/3 | 3/3
    > StorageMediaFileSetUID   | 3/3 | 3/3
    FailedSOPSequence          | 3/3 | 1/1
    > ReferencedSOPClassUID    | 1/1 | 1/1
    > ReferencedSOPInstanceUID | 1/1 | 1/1
    > FailureReason            | 1/1 | 1/1
    """,
)
# PS3.4 Table J.3-1
COMMITMENT_ACTIONS = {1: ("request commitment", frozenset({STORAGE_COMMITMENT}))}
REFERENCED_SOP = tag_of("ReferencedSOPSequence")
