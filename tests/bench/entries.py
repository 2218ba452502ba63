"""Invented scheduled procedure steps, and what a modality asks and reports about them.

A data set is a dictionary {keyword: value}: a string, an int, or a list of dictionaries for a
sequence. Whatever the number of entries, exactly MATCHES of them are for the given day, CT and
CT_1, so that the standard query has the same answer at every size.
"""

import datetime
import functools
import json
import random
import struct
import uuid
from pathlib import Path

import wire
from pydicom import datadict

MATCHES = 10
DAYS = 60  # today and after: no rule about yesterday's steps can take one away
STATIONS = [("CT", "1"), ("CT", "2"), ("MR", "1"), ("MR", "2"), ("US", "1"), ("DX", "1")]
FAMILY = ["Smith", "Garcia", "Muller", "Rossi", "Dubois", "Novak", "Silva", "Kim", "Tanaka"]
GIVEN = ["Anna", "Peter", "Maria", "John", "Luis", "Eva", "Omar", "Linda", "Paul", "Nina"]
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
WORKLIST_FILE_CLASS = "1.2.276.0.7230010.3.1.0.1"  # what DCMTK writes into a .wl file
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"

# Three encodings --------------------------------------------------------------------------------


@functools.cache
def tag_and_vr(keyword):
    """Tag and VR of an attribute, from pydicom's dictionary."""
    tag = datadict.tag_for_keyword(keyword)
    return tag, datadict.dictionary_VR(tag)


def encode(dataset, explicit=False):
    """The data set in Implicit or Explicit VR Little Endian."""
    out = b""
    for (tag, vr), value in sorted((tag_and_vr(key), value) for key, value in dataset.items()):
        if vr == "SQ":
            value = b"".join(wire.element(0xFFFEE000, encode(item, explicit)) for item in value)
        plain = wire.element(tag, value, pad_of(vr))
        out += with_vr(plain, vr) if explicit else plain
    return out


def pad_of(vr):
    """What fills a value to an even length."""
    return b"\0" if vr in ("UI", "OB") else b" "


def with_vr(plain, vr):
    """Make an implicit element explicit: its VR is let in before the length."""
    if vr in ("SQ", "OB"):
        return plain[:4] + vr.encode() + b"\0\0" + plain[4:]
    return plain[:4] + vr.encode() + plain[4:6] + plain[8:]


def dicom_json(dataset):
    """The data set in the DICOM JSON Model (PS3.18 annex F)."""
    return {f"{tag_and_vr(key)[0]:08X}": json_element(key, value) for key, value in dataset.items()}


def json_element(keyword, value):
    """One element of the DICOM JSON Model."""
    vr = tag_and_vr(keyword)[1]
    if vr == "SQ":
        return {"vr": vr, "Value": [dicom_json(item) for item in value]}
    if value == "":
        return {"vr": vr}
    convert = {"PN": lambda name: {"Alphabetic": name}, "DS": float}.get(vr, lambda same: same)
    return {"vr": vr, "Value": [convert(value)]}


# Worklist entries -------------------------------------------------------------------------------


def new_uid(source=random):
    """A UID below 2.25, from 122 random bits."""
    return f"2.25.{uuid.UUID(int=source.getrandbits(128), version=4).int}"


def entries(number, today, first=0):
    """Yield `number` entries; MATCHES of them (or all, if fewer) are for today, CT and CT_1."""
    chance = random.Random(f"{number} {first}")
    planted = set(chance.sample(range(number), min(MATCHES, number)))
    for index in range(number):
        day, station = today, STATIONS[0]
        while index not in planted and (day, station) == (today, STATIONS[0]):
            day = today + datetime.timedelta(days=chance.randrange(DAYS))
            station = chance.choice(STATIONS)
        yield entry(first + index, day, station, chance)


def entry(index, day, station, chance):
    """One scheduled procedure step, 28 attributes; patient and order are its own."""

    def person():
        return f"{chance.choice(FAMILY)}^{chance.choice(GIVEN)}"

    modality, description = station[0], f"{station[0]} examination {index % 40}"
    hour, minute = chance.randrange(7, 19), chance.randrange(60)
    step = {
        "Modality": modality,
        "RequestedContrastAgent": chance.choice(["", "IOHEXOL"]),
        "ScheduledStationAETitle": "_".join(station),
        "ScheduledProcedureStepStartDate": f"{day:%Y%m%d}",
        "ScheduledProcedureStepStartTime": f"{hour:02}{minute:02}00",
        "ScheduledPerformingPhysicianName": person(),
        "ScheduledProcedureStepDescription": description,
        "ScheduledProcedureStepID": f"SPS{index:08}",
        "ScheduledStationName": " ROOM ".join(station),
        "ScheduledProcedureStepLocation": f"FLOOR {chance.randrange(4)}",
        "PreMedication": "",
    }
    return {
        "AccessionNumber": f"A{index:08}",
        "ReferringPhysicianName": person(),
        "PatientName": person(),
        "PatientID": f"P{index:08}",
        "PatientBirthDate": f"{chance.randrange(1930, 2020)}{chance.randrange(1, 13):02}15",
        "PatientSex": chance.choice("FMO"),
        "PatientWeight": f"{chance.randrange(45, 105)}.5",
        "MedicalAlerts": chance.choice(["", "", "PACEMAKER"]),
        "Allergies": chance.choice(["", "", "IODINE"]),
        "PregnancyStatus": 4,
        "StudyInstanceUID": new_uid(chance),
        "RequestingPhysician": person(),
        "RequestedProcedureDescription": description,
        "AdmissionID": f"ADM{index:08}",
        "CurrentPatientLocation": f"WARD {chance.randrange(20)}",
        "ScheduledProcedureStepSequence": [step],
        "RequestedProcedureID": f"RP{index:08}",
        "RequestedProcedurePriority": chance.choice(["ROUTINE", "HIGH", "STAT"]),
    }


def worklist_query(**keys):
    """A C-FIND identifier that asks for all 28 attributes and matches by the given ones."""
    request = next(entries(1, datetime.date.today()))
    (step,) = request["ScheduledProcedureStepSequence"]
    step = {keyword: keys.get(keyword, b"") for keyword in step}
    request = dict.fromkeys(request, b"") | {"ScheduledProcedureStepSequence": [step]}
    return encode(request)


def days_query(today):
    """The standard query of the machine CT_1 for its list of the day."""
    return worklist_query(
        Modality="CT",
        ScheduledStationAETitle="CT_1",
        ScheduledProcedureStepStartDate=f"{today:%Y%m%d}",
    )


def planted_ids(datasets, today):
    """The encoded step IDs that answer the standard query."""
    steps = [each["ScheduledProcedureStepSequence"][0] for each in datasets]
    wanted = ("CT_1", f"{today:%Y%m%d}")
    return {
        step["ScheduledProcedureStepID"].encode()
        for step in steps
        if (step["ScheduledStationAETitle"], step["ScheduledProcedureStepStartDate"]) == wanted
    }


# What a modality did ----------------------------------------------------------------------------


def unscheduled(entry):
    """The entry as a machine knows it that took the patient without an order."""
    (step,) = entry["ScheduledProcedureStepSequence"]
    return entry | {
        "AccessionNumber": "",
        "RequestedProcedureID": "",
        "ScheduledProcedureStepSequence": [step | {"ScheduledProcedureStepID": ""}],
    }


def performed_start(entry):
    """N-CREATE data set: every type 1 and 2 attribute of PS3.4 Table F.7.2-1."""
    (step,) = entry["ScheduledProcedureStepSequence"]
    scheduled = {
        "StudyInstanceUID": entry["StudyInstanceUID"],
        "ReferencedStudySequence": [],
        "AccessionNumber": entry["AccessionNumber"],
        "RequestedProcedureID": entry["RequestedProcedureID"],
        "RequestedProcedureDescription": entry["RequestedProcedureDescription"],
        "ScheduledProcedureStepID": step["ScheduledProcedureStepID"],
        "ScheduledProcedureStepDescription": step["ScheduledProcedureStepDescription"],
        "ScheduledProtocolCodeSequence": [],
    }
    today = datetime.date.today()
    protocol = {"CodeValue": "ABD", "CodingSchemeDesignator": "99BENCH", "CodeMeaning": "Abdomen"}
    return {
        "ScheduledStepAttributesSequence": [scheduled],
        "PatientName": entry["PatientName"],
        "PatientID": entry["PatientID"],
        "PatientBirthDate": entry["PatientBirthDate"],
        "PatientSex": entry["PatientSex"],
        "ReferencedPatientSequence": [],
        "PerformedProcedureStepID": f"PPS{entry['PatientID']}",
        "PerformedStationAETitle": step["ScheduledStationAETitle"],
        "PerformedStationName": step["ScheduledStationName"],
        "PerformedLocation": step["ScheduledProcedureStepLocation"],
        "PerformedProcedureStepStartDate": f"{today:%Y%m%d}",
        "PerformedProcedureStepStartTime": "000100",
        "PerformedProcedureStepStatus": "IN PROGRESS",
        "PerformedProcedureStepDescription": step["ScheduledProcedureStepDescription"],
        "PerformedProcedureTypeDescription": "",
        "ProcedureCodeSequence": [],
        "PerformedProcedureStepEndDate": "",
        "PerformedProcedureStepEndTime": "",
        "Modality": step["Modality"],
        "StudyID": "",
        "PerformedProtocolCodeSequence": [protocol],
        "PerformedSeriesSequence": [],
    }


def performed_end():
    """N-SET data set that completes a step with one series of one image."""
    image = {"ReferencedSOPClassUID": CT_IMAGE, "ReferencedSOPInstanceUID": new_uid()}
    series = {
        "PerformingPhysicianName": "",
        "ProtocolName": "Routine",
        "OperatorsName": "Costa^Rita",
        "SeriesInstanceUID": new_uid(),
        "SeriesDescription": "Axial",
        "RetrieveAETitle": "",
        "ReferencedImageSequence": [image],
        "ReferencedNonImageCompositeSOPInstanceSequence": [],
    }
    return {
        "PerformedProcedureStepStatus": "COMPLETED",
        "PerformedProcedureStepEndDate": f"{datetime.date.today():%Y%m%d}",
        "PerformedProcedureStepEndTime": "000200",
        "PerformedSeriesSequence": [series],
    }


def performed(entry):
    """The two MPPS messages of one examination: N-CREATE and N-SET."""
    uid = new_uid()
    return (
        wire.n_create(uid, encode(performed_start(entry))),
        wire.n_set(uid, encode(performed_end())),
    )


# Files ------------------------------------------------------------------------------------------


def worklist_file(dataset):
    """A data set as a DICOM file (PS3.10)."""
    meta = {
        "FileMetaInformationVersion": b"\0\1",
        "MediaStorageSOPClassUID": WORKLIST_FILE_CLASS,
        "MediaStorageSOPInstanceUID": new_uid(),
        "TransferSyntaxUID": EXPLICIT_LITTLE_ENDIAN,
        "ImplementationClassUID": wire.IMPLEMENTATION,
    }
    meta = encode(meta, explicit=True)
    length = {"FileMetaInformationGroupLength": struct.pack("<I", len(meta))}
    header = b"\0" * 128 + b"DICM" + encode(length, explicit=True)
    return header + meta + encode(dataset, explicit=True)


def write_worklist_files(folder, datasets):
    """Write the layout of wlmscpfs: FOLDER/BENCH with a lockfile and one .wl file an entry."""
    folder = Path(folder) / wire.CALLED
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lockfile").touch()
    for index, dataset in enumerate(datasets):
        (folder / f"{index:06}.wl").write_bytes(worklist_file(dataset))


def write_json(path, datasets):
    """Write one array of DICOM JSON, as `minris import` reads it."""
    Path(path).write_text(json.dumps([dicom_json(dataset) for dataset in datasets]))
