"""Invented workitems, and what performers and watchers ask of them; data sets as in entries.py."""

import datetime
import itertools
import random

import wire
from entries import DAYS, FAMILY, GIVEN, encode, new_uid

MATCHES = 10
LABELS = ("3D", "CAD", "READING", "MEDIA", "CALIBRATION")
CLAIMED = 5  # every so many-th of a filled store is somebody's
CODES = {"110005": "Interpretation", "110004": "Computer Aided Detection"}


def code(value, meaning):
    """A code sequence of one item."""
    return [{"CodeValue": value, "CodingSchemeDesignator": "DCM", "CodeMeaning": meaning}]


def workitem(index, day, label, chance):
    """A workitem to be created: about fifty attributes, one image series to work on."""
    study, accession = new_uid(chance), f"A{index:08}"
    image = {"ReferencedSOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}
    retrieve = [{"RetrieveAETitle": "ARCHIVE"}]
    series = {
        "TypeOfInstances": "DICOM",
        "StudyInstanceUID": study,
        "SeriesInstanceUID": new_uid(chance),
        "DICOMRetrievalSequence": retrieve,
        "ReferencedSOPSequence": [image | {"ReferencedSOPInstanceUID": new_uid(chance)}],
    }
    request = {
        "StudyInstanceUID": study,
        "AccessionNumber": accession,
        "IssuerOfAccessionNumberSequence": [],
        "OrderPlacerIdentifierSequence": [],
        "OrderFillerIdentifierSequence": [],
        "RequestedProcedureID": f"RP{index:08}",
        "RequestedProcedureDescription": f"CT examination {index % 40}",
        "RequestedProcedureCodeSequence": [],
    }
    start = f"{day:%Y%m%d}{chance.randrange(7, 19):02}{chance.randrange(60):02}00"
    return {
        "TransactionUID": "",
        "ScheduledProcedureStepPriority": chance.choice(["HIGH", "MEDIUM", "LOW"]),
        "ProcedureStepLabel": f"{label} of examination {index % 40}",
        "WorklistLabel": label,
        "ScheduledProcessingParametersSequence": [],
        "ScheduledStationNameCodeSequence": [],
        "ScheduledStationClassCodeSequence": [],
        "ScheduledStationGeographicLocationCodeSequence": [],
        "ScheduledProcedureStepStartDateTime": start,
        "ScheduledWorkitemCodeSequence": code(*chance.choice([*CODES.items()])),
        "CommentsOnTheScheduledProcedureStep": "",
        "InputReadinessState": "READY",
        "InputInformationSequence": [series],
        "StudyInstanceUID": study,
        "PatientName": f"{chance.choice(FAMILY)}^{chance.choice(GIVEN)}",
        "PatientID": f"P{index:08}",
        "IssuerOfPatientID": "",
        "IssuerOfPatientIDQualifiersSequence": [],
        "OtherPatientIDsSequence": [],
        "PatientBirthDate": f"{chance.randrange(1930, 2020)}{chance.randrange(1, 13):02}15",
        "PatientSex": chance.choice("FMO"),
        "AdmissionID": f"ADM{index:08}",
        "IssuerOfAdmissionIDSequence": [],
        "AdmittingDiagnosesDescription": "",
        "AdmittingDiagnosesCodeSequence": [],
        "ReferencedRequestSequence": [request],
        "ProcedureStepState": "SCHEDULED",
        "ProcedureStepProgressInformationSequence": [],
        "UnifiedProcedureStepPerformedProcedureSequence": [],
    }


def workitems(number, today, planted=MATCHES):
    """Yield `number` workitems and whether each is to be claimed.

    `planted` of them, no others, are unclaimed, for today and of the first label.
    """
    chance = random.Random(f"workitems {number}")
    found = set(chance.sample(range(number), min(planted, number)))
    for index in range(number):
        day, label, claimed = today, LABELS[0], False
        while index not in found and (day, label, claimed) == (today, LABELS[0], False):
            day = today + datetime.timedelta(days=chance.randrange(DAYS))
            label, claimed = chance.choice(LABELS), not chance.randrange(CLAIMED)
        yield workitem(index, day, label, chance), claimed


def unclaimed(today):
    """Workitems without end."""
    chance = random.Random("unclaimed")
    for index in itertools.count(10**7):
        yield workitem(index, today, LABELS[1], chance)


# What performers and watchers send --------------------------------------------------------------


def creation(dataset):
    """UID of a new workitem, and the N-CREATE that makes it."""
    uid = new_uid()
    return uid, wire.n_create(uid, encode(dataset), wire.UPS_PUSH)


def claim(uid):
    """The N-ACTION that claims a workitem, with a lock of its own."""
    lock = {"TransactionUID": new_uid(), "ProcedureStepState": "IN PROGRESS"}
    return wire.n_action(wire.UPS_PULL, uid, 1, encode(lock))


def subscription(ae_title):
    """The N-ACTION that subscribes an AE to all workitems, without deletion lock."""
    whom = {"ReceivingAE": ae_title, "DeletionLock": "FALSE"}
    return wire.n_action(wire.UPS_WATCH, wire.UPS_GLOBAL_SUBSCRIPTION, 3, encode(whom))


def query(today):
    """The C-FIND of a performer: what nobody does yet, of its label, today; whole workitems."""
    asked = dict.fromkeys(workitem(0, today, "", random.Random(0)), b"") | {
        "SOPClassUID": b"",
        "SOPInstanceUID": b"",
        "ProcedureStepState": "SCHEDULED",
        "WorklistLabel": LABELS[0],
        "ScheduledProcedureStepStartDateTime": f"{today:%Y%m%d}000000-{today:%Y%m%d}235959",
    }
    del asked["TransactionUID"]
    return wire.c_find(encode(asked), wire.UPS_PULL)
