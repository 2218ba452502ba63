# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "pynetdicom>=3.0.4,<4", "pydicom>=3.0.1,<4", "peewee>=4.1,<5", "bottle>=0.13.2,<0.14",
#   "apscheduler>=3.11,<4", "uvicorn>=0.35,<1", "h11>=0.16,<1", "wsproto>=1.2,<2", "a2wsgi>=1.10,<2",
#   "tzdata; sys_platform == 'win32'",
# ]
# ///
"""minris: the worklist of a small clinic, in one file.

Reception registers the patient on a web page, the machine finds the patient on its worklist
(Modality Worklist) and reports what it did (Modality Performed Procedure Step); the board shows it.
The file reads from top to bottom: what DICOM says, what we hold, what may happen to it, who may
ask, and how the box is started. A section uses those above it, never those below.

 1. STATUS       every status we answer, with its HTTP code; the one exception
 2. STANDARD     SOP classes, attribute tables, transition tables, defined terms
 3. CONFIG       one table of settings; reading and checking config.ini
 4. DATASETS     encoded data sets: index, character sets, matching, checks, DICOM JSON
 5. STORE        models, migrations, the one writer
 6. CONTEXT      who asks and when; the audit line
 7. ACCESS       devices, users, sessions, tokens, roles
 9. WORKLIST     patients, requested procedures, scheduled procedure steps
10. MPPS         performed procedure steps and what they do to the scheduled ones
14. INTERCHANGE  import of worklist items
16. ASSOCIATION  the DICOM upper layer: PDUs, negotiation, timers, limits
17. DIMSE        door 1: which message calls which core function
18. DICOMWEB     door 2: the JSON API, the web server
19. PAGES        the browser's side
21. SIMULATOR    a modality to try the box with
22. APPLIANCE    start, stop, command line
"""

import argparse
import asyncio
import base64
import bisect
import collections
import concurrent.futures
import configparser
import contextlib
import dataclasses
import datetime
import enum
import functools
import getpass
import hashlib
import hmac
import html
import io
import json
import logging
import logging.handlers
import os
import queue
import random
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import struct
import sys
import tempfile
import threading
import time
import types
import urllib.error
import urllib.parse
import urllib.request
import uuid
import warnings
import zoneinfo
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import peewee
from pydicom import charset as pydicom_charset
from pydicom import datadict

__version__ = "0.1.0"

log = logging.getLogger("minris")


# 1. STATUS ------------------------------------------------------------------------------------
#
# The failures of the domain are the statuses of DIMSE. One exception carries them, one table
# gives each its HTTP code. Source: PS3.7 annex C, PS3.4 per service, PS3.18 8.5.
# For others: Status, Message, Problem, Refusal, OUTCOMES.


class Status(enum.IntEnum):
    """The DIMSE statuses that minris answers (PS3.7 annex C; PS3.4 K.4.1.1.4, F.7.2.2.2)."""

    SUCCESS = 0x0000
    NO_SUCH_ATTRIBUTE = 0x0105
    INVALID_ATTRIBUTE_VALUE = 0x0106
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    NO_SUCH_SOP_INSTANCE = 0x0112
    INVALID_SOP_INSTANCE = 0x0117
    NO_SUCH_SOP_CLASS = 0x0118
    MISSING_ATTRIBUTE = 0x0120
    MISSING_ATTRIBUTE_VALUE = 0x0121
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NOT_AUTHORIZED = 0x0124
    DUPLICATE_INVOCATION = 0x0210
    UNRECOGNIZED_OPERATION = 0x0211
    MISTYPED_ARGUMENT = 0x0212
    RESOURCE_LIMITATION = 0x0213
    OUT_OF_RESOURCES = 0xA700
    IDENTIFIER_DOES_NOT_MATCH = 0xA900
    UNABLE_TO_PROCESS = 0xC000
    CANCEL = 0xFE00
    PENDING = 0xFF00
    PENDING_OPTIONAL_KEYS_UNSUPPORTED = 0xFF01


class Message(str):
    """A sentence for a person: English as it stands, and what a catalogue needs to translate it.

    Message("{value} is not a date", value="19800231") reads "19800231 is not a date".
    """

    key: str
    values: Mapping[str, object]

    def __new__(cls, key: str, **values: object) -> "Message":
        text = super().__new__(cls, key.format_map(values) if values else key)
        text.key, text.values = key, values
        return text


class Problem(NamedTuple):
    """What is wrong with one attribute: its tag (0 where none is to blame) and the words."""

    tag: int
    words: Message

    def __str__(self) -> str:
        return f"{attribute_name(self.tag)} {self.words}" if self.tag else str(self.words)


class Refusal(Exception):
    """The one exception of the domain: a DIMSE failure status with words for the caller.

    status      Status to answer
    detail      one sentence; the first 64 characters travel as Error Comment (0000,0902)
    problems    attributes to blame: Attribute Identifier List (0000,1005), or words beside a field
    error_id    Error ID (0000,0903), for example A710
    data        encoded elements to send back as Attribute List, where the status has one
    """

    def __init__(
        self,
        status: Status,
        detail: str = "",
        problems: Iterable[Problem] = (),
        error_id: int | None = None,
    ) -> None:
        self.problems = tuple(problems)
        super().__init__(detail or (str(self.problems[0]) if self.problems else status.name))
        self.status, self.error_id = status, error_id
        self.detail: str = self.args[0]

    @property
    def tags(self) -> tuple[int, ...]:
        """The tags to blame, each once, ascending."""
        return tuple(sorted({problem.tag for problem in self.problems if problem.tag}))


class Outcome(NamedTuple):
    """What the web answers for a status: the HTTP code and the text of the Warning header."""

    http: int
    text: str


def rows(text: str) -> Iterator[list[str]]:
    """The cells of a text table, row by row; the head is the first row, `# …` is a remark."""
    for line in text.splitlines():
        line = line.split("  # ")[0].strip()
        if line:
            yield [cell.strip() for cell in line.split("|")]


def outcome_table(source: str, text: str) -> dict[tuple[str, Status], Outcome]:
    """Read `operation | status | HTTP | text`; refuses an unknown status or HTTP code."""
    table: dict[tuple[str, Status], Outcome] = {}
    for operation, status, code, words in list(rows(text))[1:]:
        key = operation, Status(int(status, 16))
        if key in table or not 200 <= int(code) <= 599:
            raise ValueError(f"{source}: {operation} {status}")
        table[key] = Outcome(int(code), words)
    return table


OUTCOMES = outcome_table(
    "PS3.18 8.5; PS3.7 annex C",
    """
    operation | status | HTTP | text
    *         | 0105   | 400  | An attribute may not be given here.
    *         | 0106   | 400  | An attribute has an invalid value.
    *         | 0110   | 409  | The request could not be carried out.
    *         | 0111   | 409  | It exists already.
    *         | 0112   | 404  | There is no such object.
    *         | 0117   | 400  | The UID is not valid.
    *         | 0118   | 501  | The SOP class is not known here.
    *         | 0120   | 400  | An attribute is missing.
    *         | 0121   | 400  | An attribute has no value.
    *         | 0122   | 501  | The SOP class is not supported.
    *         | 0124   | 403  | Not authorized.
    *         | 0210   | 409  | The message ID is in use.
    *         | 0211   | 405  | The operation is not part of this service.
    *         | 0212   | 400  | An argument is of the wrong kind.
    *         | 0213   | 413  | The request is larger than this system takes.
    *         | A700   | 413  | More matches than the limit.
    *         | A900   | 400  | The query is not valid.
    *         | C000   | 500  | The query could not be carried out.
    """,
)


def outcome(operation: str, status: Status) -> Outcome:
    """The row of the operation, else that of `*`."""
    return OUTCOMES.get((operation, status)) or OUTCOMES["*", status]


# 2. STANDARD ----------------------------------------------------------------------------------
#
# What DICOM says, as tables that can be proof-read against it. Tag, VR and name come from
# pydicom's dictionary. Source: PS3.4 annexes A, F, K; PS3.3 C.4.10; PS3.16 CID 9300.
# For others: MWL_ATTRIBUTES, MPPS_ATTRIBUTES, MPPS_TRANSITIONS, STEP_STATUS_AFTER, the UIDs.

VERIFICATION = "1.2.840.10008.1.1"
MODALITY_WORKLIST = "1.2.840.10008.5.1.4.31"
MPPS = "1.2.840.10008.3.1.2.3.3"

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"

# Attributes of Supplement 233 that pydicom 3.0's dictionary does not have yet.
# Source: PS3.6; (VR, VM, name, retired, keyword). May go when pydicom knows them.
SUPPLEMENT_233 = {
    0x00100011: ("SQ", "1", "Person Names to Use Sequence", "", "PersonNamesToUseSequence"),
    0x00100012: ("LT", "1", "Name to Use", "", "NameToUse"),
    0x00100013: ("UT", "1", "Name to Use Comment", "", "NameToUseComment"),
    0x00100014: ("SQ", "1", "Third Person Pronouns Sequence", "", "ThirdPersonPronounsSequence"),
    0x00100015: ("SQ", "1", "Pronoun Code Sequence", "", "PronounCodeSequence"),
    0x00100016: ("UT", "1", "Pronoun Comment", "", "PronounComment"),
    0x00100041: ("SQ", "1", "Gender Identity Sequence", "", "GenderIdentitySequence"),
    0x00100042: (
        "UT",
        "1",
        "Sex Parameters for Clinical Use Category Comment",
        "",
        "SexParametersForClinicalUseCategoryComment",
    ),
    0x00100043: (
        "SQ",
        "1",
        "Sex Parameters for Clinical Use Category Sequence",
        "",
        "SexParametersForClinicalUseCategorySequence",
    ),
    0x00100044: ("SQ", "1", "Gender Identity Code Sequence", "", "GenderIdentityCodeSequence"),
    0x00100045: ("UT", "1", "Gender Identity Comment", "", "GenderIdentityComment"),
    0x00100046: (
        "SQ",
        "1",
        "Sex Parameters for Clinical Use Category Code Sequence",
        "",
        "SexParametersForClinicalUseCategoryCodeSequence",
    ),
    0x00100047: (
        "UR",
        "1",
        "Sex Parameters for Clinical Use Category Reference",
        "",
        "SexParametersForClinicalUseCategoryReference",
    ),
    0x0040A034: ("DT", "1", "Effective Start DateTime", "", "EffectiveStartDateTime"),
    0x0040A035: ("DT", "1", "Effective Stop DateTime", "", "EffectiveStopDateTime"),
}
datadict.add_dict_entries(
    {tag: entry for tag, entry in SUPPLEMENT_233.items() if not datadict.dictionary_has_tag(tag)}
)


def tag_of(keyword: str) -> int:
    """The tag of a keyword, as an int; KeyError for a keyword that DICOM does not have."""
    tag = datadict.tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return int(tag)


@functools.lru_cache(4096)
def vr_of(tag: int) -> str:
    """The VR of a tag in the data dictionary, UN where it is not known; `US or SS` is US."""
    try:
        return datadict.dictionary_VR(tag)[:2]
    except KeyError:
        if tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF:
            return "LO"  # PS3.5 7.8.1: a private creator
        return "UN"


def attribute_name(tag: int) -> str:
    """`Patient's Birth Date (0010,0030)`, for people."""
    try:
        name = datadict.dictionary_description(tag) + " "
    except KeyError:
        name = ""
    return f"{name}({tag >> 16:04X},{tag & 0xFFFF:04X})"


class Attribute(NamedTuple):
    """One row of an attribute table: where it stands, and its cells by column name."""

    keyword: str
    tag: int
    vr: str
    path: tuple[int, ...]
    cells: Mapping[str, str]


class AttributeTable(dict[tuple[int, ...], Attribute]):
    """Attributes by path of tags, outermost first, in the order of the Standard."""

    def children(self, path: tuple[int, ...] = ()) -> tuple[Attribute, ...]:
        """The attributes directly below a sequence; those of the top level for ()."""
        return self._children.get(path, ())

    def seal(self) -> "AttributeTable":
        """Compute `children` once; called by the reader when the last row is in."""
        below: dict[tuple[int, ...], list[Attribute]] = collections.defaultdict(list)
        for path, attribute in self.items():
            below[path[:-1]].append(attribute)
        self._children = {path: tuple(found) for path, found in below.items()}
        return self


def attribute_table(source: str, text: str) -> AttributeTable:
    """Read a table of `> keyword | cell | …`, one `>` for each sequence an attribute lies in.

    Refuses an unknown keyword, a row below something that is no sequence, a double row or a row
    with a missing cell.
    """
    head, *body = rows(text)
    table, path = AttributeTable(), ()
    for cells in body:
        depth = cells[0].count(">")
        keyword = cells[0].lstrip("> ")
        try:
            tag = tag_of(keyword)
        except KeyError:
            raise ValueError(f"{source}: no such keyword {keyword}") from None
        path = (*path[:depth], tag)
        below_sequence = depth == 0 or (path[:-1] in table and table[path[:-1]].vr == "SQ")
        if len(cells) != len(head) or len(path) != depth + 1 or path in table or not below_sequence:
            raise ValueError(f"{source}: row {cells}")
        named = types.MappingProxyType(dict(zip(head[1:], cells[1:], strict=True)))
        table[path] = Attribute(keyword, tag, vr_of(tag), path, named)
    return table.seal()


# match: R required, O optional, - never. return: the type in an answer. entity: whose it is.
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

# create, set: requirement for the sender / for us (PS3.4 5.4.2); final: type once it has ended;
# get: what MPPS Retrieve returns. NA: may not be set.
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


def transition_table(source: str, text: str, states: Iterable[str]) -> dict[tuple[str, str], Any]:
    """Read `event | state | …`: a cell is the new state or the hex of the status that refuses."""
    head, *body = rows(text)
    known, table = {*states, "none"}, {}
    for event, *cells in body:
        for state, cell in zip(head[1:], cells, strict=True):
            if state not in known or (event, state) in table:
                raise ValueError(f"{source}: {event}, {state}")
            table[event, state] = cell if cell in known else Status(int(cell, 16))
    return table


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

# The five defined terms of PS3.3 Table C.4-10, and what people do with an order beside them.
STEP_STATES = (
    "SCHEDULED",
    "ARRIVED",
    "READY",
    "STARTED",
    "DEPARTED",
    "COMPLETED",  # local, as all below: the Standard has no terms for what has ended
    "DISCONTINUED",
    "CANCELED",
    "NO SHOW",
)
WAITING_STEP_STATES = frozenset({"SCHEDULED", "ARRIVED", "READY"})
OPEN_STEP_STATES = WAITING_STEP_STATES | {"STARTED"}

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

# What the sum of its performed steps makes of a scheduled one; the first row that holds decides.
# Source: PS3.4 F.7.2.1.2 notes, PS3.3 7.3.1.9; a wrong entry (110514) does not count at all.
STEP_STATUS_AFTER = (
    ("IN PROGRESS", "STARTED"),
    ("COMPLETED", "COMPLETED"),
    ("DISCONTINUED", "DISCONTINUED"),
)

MODALITIES = tuple(
    "CR CT DX ES IO MG MR NM OP OT PT PX RF US XA XC ECG EPS BMD DMS OCT RTIMAGE".split()
)
SEXES = ("F", "M", "O")
PRIORITIES = ("STAT", "HIGH", "ROUTINE", "MEDIUM", "LOW")  # PS3.3 C.4.11
PREGNANCY_STATUS = {1: "not pregnant", 2: "possibly pregnant", 3: "definitely pregnant", 4: "unknown"}


# 3. CONFIG ------------------------------------------------------------------------------------
#
# Every setting is one row of SETTINGS; reading, checking, the printed reference and config.ini
# come from it. An environment variable MINRIS_SECTION_KEY goes before the file.
# For others: SETTINGS, DEVICE_SETTINGS, Config, ConfigError, load_config, settings_reference.


class ConfigError(Exception):
    """Everything that is wrong with a configuration: one line each, with section and key."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Setting(NamedTuple):
    """One key of config.ini."""

    section: str
    key: str
    default: str
    kind: str
    meaning: str


def setting_table(text: str) -> tuple[Setting, ...]:
    """Read `section | key | default | kind | meaning`; an unknown kind is refused."""
    table = tuple(Setting(*cells) for cells in list(rows(text))[1:])
    for setting in table:
        if setting.kind.partition(" ")[0] not in SETTING_KINDS:
            raise ValueError(f"kind of {setting}")
    return table


def read_bool(text: str) -> bool:
    """yes or no, as people write it."""
    try:
        return configparser.ConfigParser.BOOLEAN_STATES[text.lower()]
    except KeyError:
        raise ValueError("is neither yes nor no") from None


def read_int(text: str, low: str, high: str) -> int:
    """A whole number from low to high."""
    if not re.fullmatch(r"-?\d+", text) or not int(low) <= int(text) <= int(high):
        raise ValueError(f"is not a whole number from {low} to {high}")
    return int(text)


def read_seconds(text: str, low: str, high: str) -> float:
    """A number of seconds from low to high."""
    try:
        if float(low) <= float(text) <= float(high):
            return float(text)
    except ValueError:
        pass
    raise ValueError(f"is not a number of seconds from {low} to {high}")


def read_ae_titles(text: str, most: str = "1") -> tuple[str, ...]:
    """AE titles separated by commas or spaces (PS3.5 6.2: 1 to 16 printable characters)."""
    titles = tuple(title.strip() for title in text.split(",") if title.strip())
    for title in titles:
        if not re.fullmatch(r"[ -\[\]-~]{1,16}", title):
            raise ValueError(f"{title!r} is not an AE title (1 to 16 ASCII characters)")
    if not 1 <= len(titles) <= int(most):
        raise ValueError("is not an AE title" if int(most) == 1 else "has no AE title")
    return titles


def read_ae_title(text: str) -> str:
    """One AE title."""
    return read_ae_titles(text)[0]


def read_zone(text: str) -> str:
    """An IANA time zone, or nothing for that of the machine."""
    try:
        return text and zoneinfo.ZoneInfo(text).key
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        raise ValueError("is not a time zone such as Asia/Shanghai") from None


def read_choice(text: str, *choices: str) -> str:
    """One of a few words, in any case."""
    for choice in choices:
        if text.lower() == choice.lower():
            return choice
    raise ValueError(f"is not one of {', '.join(choices)}")


def read_states(text: str) -> frozenset[str]:
    """States of a scheduled procedure step, separated by commas."""
    states = frozenset(state.strip().upper() for state in text.split(",") if state.strip())
    if unknown := states.difference(STEP_STATES):
        raise ValueError(f"{', '.join(sorted(unknown))}: not one of {', '.join(STEP_STATES)}")
    return states


def read_character_set(text: str) -> tuple[str, ...]:
    """Terms of Specific Character Set (0008,0005), by backslash; nothing: as asked."""
    terms = tuple(term.strip() for term in text.split("\\")) if text else ()
    if terms and (problem := CharacterSet.problem_of(terms)):
        raise ValueError(problem)
    return terms


def read_store_url(text: str) -> str:
    """sqlite:///FILE; a path that is not absolute counts from config.ini."""
    if not text.startswith("sqlite:///") or len(text) == len("sqlite:///"):
        raise ValueError("is not sqlite:///FILE")
    return text


def read_public_url(text: str) -> str:
    """An http or https address, or nothing."""
    parts = urllib.parse.urlsplit(text)
    if text and not (parts.scheme in ("http", "https") and parts.netloc):
        raise ValueError("is not an address such as https://ris.clinic.example")
    return text.rstrip("/")


def read_id_format(text: str, longest: str) -> str:
    """A format with {number} and dates, for example A{year}{month}{day}{number:04}."""
    now = datetime.datetime(2026, 12, 31, 23, 59, 59)
    try:
        sample = format_identifier(text, now, 1)
        if sample == format_identifier(text, now, 2):
            raise ValueError("has no {number}")
    except (KeyError, IndexError):
        raise ValueError("has a field other than {year} {yy} {month} {day} {number}") from None
    if len(sample) > int(longest) or not re.fullmatch(r"[!-\[\]-~]+", sample):
        raise ValueError(f"gives {sample!r}: not 1 to {longest} ASCII characters")
    return text


def format_identifier(pattern: str, now: datetime.datetime, number: int) -> str:
    """The identifier of a pattern for a day and a number."""
    return pattern.format(
        year=f"{now:%Y}", yy=f"{now:%y}", month=f"{now:%m}", day=f"{now:%d}", number=number
    )


SETTING_KINDS: dict[str, Callable[..., Any]] = {
    "text": str,
    "bool": read_bool,
    "int": read_int,
    "seconds": read_seconds,
    "ae": read_ae_title,
    "aes": read_ae_titles,
    "zone": read_zone,
    "choice": read_choice,
    "states": read_states,
    "charset": read_character_set,
    "store": read_store_url,
    "url": read_public_url,
    "id": read_id_format,
}

SETTINGS = setting_table(r"""
    section | key | default | kind | meaning
    dicom | ae_title | MINRIS | ae | our AE title, to be entered at every machine
    dicom | host | 0.0.0.0 | text | address to listen on
    dicom | port | 11112 | int 0 65535 | port to listen on; 104 is the registered one (0: any free)
    dicom | check_called_ae_title | yes | bool | refuse calls to another AE title than ours
    dicom | accept_unknown_devices | no | bool | serve AE titles that are not registered as devices
    dicom | character_set | | charset | set of answers where neither device nor query name one; empty: ISO_IR 192 (UTF-8)
    dicom | hide_steps | COMPLETED, DISCONTINUED, CANCELED, NO SHOW, DEPARTED | states | steps in these states are not shown to modalities
    dicom | answer_limit | 10000 | int 1 1000000 | most answers to one query; past it the query ends with A700
    dicom | strict_mpps | no | bool | refuse a performed step without its type 2 attributes (0120), or discontinued without series
    dicom | maximum_pdu_length | 131072 | int 4096 1048576 | largest PDU accepted, bytes
    dicom | maximum_command_length | 16384 | int 1024 1048576 | largest command set, bytes
    dicom | maximum_dataset_length | 4194304 | int 65536 268435456 | largest data set, bytes; a larger one is read over and answered 0213
    dicom | maximum_drained_length | 33554432 | int 65536 1073741824 | past so many bytes of one data set the association is aborted
    dicom | maximum_nesting | 16 | int 2 64 | deepest nesting of sequences
    dicom | maximum_elements | 100000 | int 1000 10000000 | most elements in one data set
    dicom | associate_timeout | 10 | seconds 0.1 600 | time for a caller to ask for an association
    dicom | pdu_timeout | 5 | seconds 0.1 600 | time for a PDU that has begun, and one second more for each 16 KiB
    dicom | idle_timeout | 60 | seconds 0.1 86400 | an association without a message for so long is aborted
    dicom | send_timeout | 10 | seconds 0.1 600 | time for a caller to take what we send
    dicom | maximum_associations | 256 | int 1 10000 | associations at once
    dicom | maximum_associations_per_address | 128 | int 1 10000 | of them from one address
    dicom | maximum_pending | 256 | int 1 10000 | connections not yet associated
    dicom | maximum_pending_per_address | 64 | int 1 10000 | of them from one address
    web | host | 0.0.0.0 | text | address to listen on
    web | port | 8080 | int 0 65535 | port to listen on (0: any free)
    web | public_url | | url | address that browsers use, where a proxy stands before this port
    web | anonymous_loopback | no | bool | calls from 127.0.0.1 to /api and /dicom-web need no token
    web | session_hours | 12 | int 1 720 | a login ends after so many hours
    web | login_attempts | 10 | int 3 1000 | wrong passwords from one address or for one user in 15 minutes before both must wait
    web | maximum_body | 16777216 | int 65536 1073741824 | largest request, bytes
    web | request_timeout | 20 | seconds 1 600 | time for a request to come in
    web | maximum_connections_per_address | 128 | int 1 10000 | connections from one address
    store | url | sqlite:///minris.db | store | where everything is kept; a relative path counts from config.ini
    clinic | name | minris | text | shown on the pages
    clinic | timezone | | zone | time zone of the clinic, such as Asia/Shanghai; empty: that of the machine
    clinic | language | en | choice en zh-CN | language of the pages where the browser asks for neither
    clinic | patient_id_format | P{number:06} | id 64 | Patient ID made when none is given
    clinic | accession_number_format | {yy}{month}{day}{number:04} | id 16 | Accession Number made when none is given
    clinic | requested_procedure_id_format | R{yy}{month}{day}{number:04} | id 16 | Requested Procedure ID made when none is given
    clinic | scheduled_procedure_step_id_format | S{yy}{month}{day}{number:04} | id 16 | Scheduled Procedure Step ID made when none is given
    log | level | INFO | choice DEBUG INFO WARNING ERROR | least level that is written
    log | format | text | choice text json | form of a line
    log | file | | text | file to write to, rotated at 10 MB; empty: standard error
    """)

# The keys of each [device NAME].
DEVICE_SETTINGS = setting_table(r"""
    section | key | default | kind | meaning
    device | ae_title | | aes 8 | AE titles of the machine, separated by commas
    device | host | | text | address of the machine, where we call it
    device | port | 104 | int 1 65535 | port of the machine, where we call it
    device | check_address | no | bool | refuse its AE titles from another address than host
    device | modality | | text | CT, MR, US, DX ...: what it is offered for on the registration page
    device | station_name | | text | Scheduled Station Name (0040,0010) of its steps
    device | location | | text | Scheduled Procedure Step Location (0040,0011) of its steps
    device | character_set | | charset | set of answers to it and of its texts without one; empty: as its query says, else UTF-8
    device | fallback_character_set | ISO_IR 192 | charset | set of an answer that character_set cannot carry
    device | role | modality | choice modality archive workstation | what it is
    """)


@dataclasses.dataclass(frozen=True)
class Config:
    """The checked settings: config.dicom.port, and one mapping of settings for each device."""

    dicom: types.SimpleNamespace
    web: types.SimpleNamespace
    store: types.SimpleNamespace
    clinic: types.SimpleNamespace
    log: types.SimpleNamespace
    devices: Mapping[str, types.SimpleNamespace]
    path: Path | None = None
    directory: Path = Path()

    @property
    def zone(self) -> datetime.tzinfo | None:
        """The zone of the clinic, None for that of the machine."""
        return zoneinfo.ZoneInfo(self.clinic.timezone) if self.clinic.timezone else None

    @property
    def store_path(self) -> Path:
        """The file of the store, absolute."""
        return (self.directory / self.store.url.removeprefix("sqlite:///")).absolute()


def read_setting(setting: Setting, text: str) -> Any:
    """The value of a setting; ValueError says what is wrong with it."""
    name, *arguments = setting.kind.split(" ")
    return SETTING_KINDS[name](text, *arguments)


def read_section(
    name: str, table: Iterable[Setting], given: Mapping[str, str], problems: list[str]
) -> types.SimpleNamespace:
    """The values of one section; adds a line to `problems` for each that is wrong."""
    section, known = types.SimpleNamespace(), set()
    for setting in table:
        text = given.get(setting.key, setting.default).strip()
        known.add(setting.key)
        try:
            setattr(section, setting.key, read_setting(setting, text))
        except ValueError as error:
            problems.append(f"[{name}] {setting.key}: {text or 'nothing'!r} {error}")
    problems.extend(f"[{name}] {key}: there is no such setting" for key in set(given) - known)
    return section


def read_ini(path: Path) -> configparser.ConfigParser:
    """The file as it stands; ConfigError where it is not an ini file in UTF-8."""
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text("utf-8-sig"), str(path))
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        raise ConfigError([f"{path}: {' '.join(str(error).split())}"]) from None
    return parser


def check_devices(devices: Mapping[str, types.SimpleNamespace]) -> Iterator[str]:
    """A line for each AE title that two devices claim, and for an address that cannot be checked."""
    owners: dict[str, str] = {}
    for name, device in devices.items():
        for title in getattr(device, "ae_title", ()):
            other = owners.setdefault(title, name)
            if other != name:
                yield f"[device {name}] ae_title: {title!r} belongs to [device {other}] already"
        if getattr(device, "check_address", False) and not device.host:
            yield f"[device {name}] check_address: needs host"


def load_config(
    path: Path | None = None, environ: Mapping[str, str] = types.MappingProxyType({})
) -> Config:
    """Read a config.ini, or the defaults; ConfigError lists every mistake at once.

    path     the file, None for defaults alone
    environ  variables MINRIS_SECTION_KEY that go before the file
    """
    parser = read_ini(path) if path else configparser.ConfigParser(default_section="")
    problems: list[str] = []
    given = {name: dict(parser[name]) for name in parser.sections()}
    for setting in SETTINGS:
        variable = f"MINRIS_{setting.section}_{setting.key}".upper()
        if variable in environ:
            given.setdefault(setting.section, {})[setting.key] = environ[variable]
    sections: dict[str, types.SimpleNamespace] = {}
    for name in dict.fromkeys(setting.section for setting in SETTINGS):
        table = [setting for setting in SETTINGS if setting.section == name]
        sections[name] = read_section(name, table, given.pop(name, {}), problems)
    devices = {}
    for name in [name for name in given if name.startswith("device ")]:
        title = name.removeprefix("device ").strip()
        devices[title] = read_section(name, DEVICE_SETTINGS, given.pop(name), problems)
    problems.extend(f"[{name}]: there is no such section" for name in given if name)
    problems.extend(check_devices(devices))
    if problems:
        raise ConfigError(problems)
    directory = path.absolute().parent if path else Path.cwd()
    return Config(**sections, devices=devices, path=path, directory=directory)


def settings_reference() -> str:
    """config.ini with every setting, its default and meaning, each default as a remark."""
    lines = [
        "# minris: every setting with its default. A line that begins with # is a remark:",
        "# take the # away and change the value. Texts are UTF-8.",
    ]
    section = ""
    for setting in (*SETTINGS, *DEVICE_SETTINGS):
        if setting.section != section:
            section = setting.section
            lines += ["", f"[{section}]" if section != "device" else "#[device CT room 1]"]
        lines += [f"# {setting.meaning}", f"#{setting.key} = {setting.default}".rstrip()]
    return "\n".join(lines) + "\n"


# 4. DATASETS ----------------------------------------------------------------------------------
#
# A stored object is its whole data set, encoded: Explicit VR Little Endian, ISO_IR 192, defined
# lengths, ascending tags. Here it is read from a peer's bytes (recode), indexed, searched, sliced,
# checked and turned to and from DICOM JSON. Source: PS3.5 6 and 7, PS3.4 C.2.2.2, PS3.18 annex F.
# For others: CharacterSet, recode, ElementIndex, Search, check_attributes, from_json, to_json.

_HEADER = struct.Struct("<HH2sH")
_TAG = struct.Struct("<HH")
_TAG_LENGTH = struct.Struct("<HHI")
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_KNOWN_VRS = _LONG_VRS | frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_TEXT_VRS = frozenset(b"SH LO UC ST LT UT PN".split())  # PS3.5 6.1.2.3: (0008,0005) applies
_ONE_VALUE_VRS = frozenset(b"ST LT UT UR".split())
_NUL_PADDED = frozenset(b"UI OB UN".split())
SPECIFIC_CHARACTER_SET = 0x00080005


class Malformed(ValueError):
    """Bytes that are no data set, or one past a limit."""


class CharacterSet:
    """Specific Character Set (0008,0005): decodes and encodes text values.

    terms   its defined terms; () is the default repertoire, ASCII
    Source  PS3.5 6.1; PS3.3 C.12.1.1.2
    """

    ALONE = types.MappingProxyType({"ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk"})

    def __init__(self, terms: tuple[str, ...] = ()) -> None:
        self.terms = terms
        self.codec = self.ALONE.get(terms[0]) if len(terms) == 1 else None
        if not self.codec and len(terms) <= 1:
            python = _single_byte_codec(terms[0]) if terms else "ascii"
            self.codec = python

    @staticmethod
    def problem_of(terms: Iterable[str]) -> str:
        """Why these terms are no legal character set, or nothing."""
        terms = tuple(terms)
        for number, term in enumerate(terms):
            if term in CharacterSet.ALONE:
                if len(terms) > 1:
                    return f"{term} stands alone"
            elif not (term == "" and number == 0) and not _single_byte_codec(term):
                return f"{term!r} is not a character set known here"
        if len(terms) > 1:
            return "more than one term is not supported yet"
        return ""

    def decode(self, raw: bytes) -> str:
        """The text of a value; UnicodeDecodeError where the bytes are not of this set."""
        return raw.decode(self.codec or "ascii")

    def encode(self, text: str) -> bytes:
        """The bytes of a text; UnicodeEncodeError where this set cannot carry it."""
        return text.encode(self.codec or "ascii")

    def __bytes__(self) -> bytes:
        """The value of (0008,0005)."""
        return "\\".join(self.terms).encode("ascii", "replace")


def _single_byte_codec(term: str) -> str | None:
    """Python's codec of a single-byte set, None for a term that is not one."""
    if term in ("ISO_IR 6", "ISO 2022 IR 6"):
        return "ascii"
    codec = pydicom_charset.python_encoding.get(term)
    return codec if term.startswith("ISO_IR") and term != "ISO_IR 13" else None


@functools.lru_cache(256)
def character_set(terms: tuple[str, ...]) -> CharacterSet:
    """The CharacterSet of some terms; one that is unknown reads as ASCII and says so on decoding."""
    return CharacterSet(() if CharacterSet.problem_of(terms) else terms)


ASCII = character_set(())
UTF_8 = character_set(("ISO_IR 192",))


def decode_text(raw: bytes, charset: CharacterSet) -> str:
    """The text of a value, recovered where the declared set is contradicted by the bytes.

    Tried after the declared one: UTF-8, GB18030 where the set declared is multi-byte or absent,
    and ISO_IR 100. Bytes beyond any of them become \\nnn, as PS3.5 6.1.2.3 wants them shown.
    """
    attempts = [charset.decode, lambda raw: raw.decode("utf-8")]
    if charset.codec in ("utf-8", "gb18030", "gbk"):
        attempts.append(lambda raw: raw.decode("gb18030"))
    attempts.append(lambda raw: raw.decode("latin-1"))
    for attempt in attempts:
        with contextlib.suppress(UnicodeDecodeError):
            text = attempt(raw)
            return re.sub(r"[\x80-\x9f]", lambda c: f"\\{ord(c[0]):03o}", text)
    raise AssertionError("ISO_IR 100 decodes any bytes")


def pad(value: bytes, vr: bytes) -> bytes:
    """The value at even length."""
    if len(value) & 1:
        return value + (b"\0" if vr in _NUL_PADDED else b" ")
    return value


def encode_element(tag: int, vr: bytes, value: bytes) -> bytes:
    """One element in Explicit VR Little Endian; the value is padded to even length."""
    value = pad(value, vr)
    if vr in _LONG_VRS:
        return _HEADER.pack(tag >> 16, tag & 0xFFFF, vr, 0) + len(value).to_bytes(4, "little") + value
    if len(value) > 0xFFFF:
        raise Malformed(f"{attribute_name(tag)} is longer than its VR allows")
    return _HEADER.pack(tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def encode_item(content: bytes) -> bytes:
    """One item of a sequence, with defined length."""
    return _TAG_LENGTH.pack(0xFFFE, 0xE000, len(content)) + content


def encode_items(tag: int, contents: Iterable[bytes]) -> bytes:
    """A sequence of items that are encoded already."""
    return encode_element(tag, b"SQ", b"".join(map(encode_item, contents)))


def encode_text(keyword: str, text: str) -> bytes:
    """One element from a keyword and its text, UTF-8."""
    tag = tag_of(keyword)
    return encode_element(tag, vr_of(tag).encode(), text.encode())


class Limits(NamedTuple):
    """How much of a peer's data set is taken."""

    nesting: int = 16
    elements: int = 100_000


class _Recoder:
    """Reads a peer's data set once, front to back, and writes it in the stored form."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        self.data, self.limits, self.count = data, limits, 0
        self.damaged: list[int] = []

    def elements(
        self, pos: int, end: int, explicit: bool, charset: CharacterSet, depth: int, until: int = 0
    ) -> tuple[bytes, int]:
        """The elements from pos to end, or to the delimiter `until`; and where they ended."""
        if depth > self.limits.nesting:
            raise Malformed(f"nested deeper than {self.limits.nesting}")
        found: dict[int, bytes] = {}
        ordered, last = True, -1
        while pos < end:
            tag, vr, start, length = self.header(pos, end, explicit)
            if tag == until:
                return b"".join(found.values() if ordered else _by_tag(found)), start
            if tag >> 16 in (0x0000, 0x0002, 0xFFFE):
                raise Malformed(f"{attribute_name(tag)} does not belong in a data set")
            self.count += 1
            if self.count > self.limits.elements:
                raise Malformed(f"more than {self.limits.elements} elements")
            element, pos = self.element(tag, vr, start, length, end, explicit, charset, depth)
            if tag == SPECIFIC_CHARACTER_SET:
                charset = self.declared(element, charset)
            elif tag & 0xFFFF:  # PS3.5 7.2: group lengths are retired and tell nothing
                found[tag] = element
                ordered, last = ordered and tag > last, tag
        if until:
            raise Malformed("a delimiter is missing")
        return b"".join(found.values() if ordered else _by_tag(found)), pos

    def header(self, pos: int, end: int, explicit: bool) -> tuple[int, bytes, int, int]:
        """Tag, VR (empty where implicit), start and length of the value."""
        if pos + 8 > end:
            raise Malformed("ends in the middle of an element")
        group, number, vr, length = _HEADER.unpack_from(self.data, pos)
        tag, start = group << 16 | number, pos + 8
        if not explicit or group == 0xFFFE:
            return tag, b"", start, int.from_bytes(self.data[pos + 4 : pos + 8], "little")
        if vr not in _KNOWN_VRS:
            raise Malformed(f"{attribute_name(tag)} has no known VR")
        if vr in _LONG_VRS:
            if start + 4 > end:
                raise Malformed("ends in the middle of an element")
            return tag, vr, start + 4, int.from_bytes(self.data[start : start + 4], "little")
        return tag, vr, start, length

    def element(
        self,
        tag: int,
        vr: bytes,
        start: int,
        length: int,
        end: int,
        explicit: bool,
        charset: CharacterSet,
        depth: int,
    ) -> tuple[bytes, int]:
        """One element in the stored form, and where the next one starts."""
        if vr == b"UN":  # PS3.5 6.2.2: implicit little endian inside
            vr, explicit = b"", False
        vr = vr or vr_of(tag).encode()
        if length == _UNDEFINED:
            if vr not in (b"SQ", b"UN"):
                raise Malformed(f"{attribute_name(tag)} has no length")
            return self.sequence(tag, start, end, explicit, charset, depth, delimited=True)
        if start + length > end:
            raise Malformed(f"{attribute_name(tag)} is longer than what holds it")
        if vr == b"SQ":
            return self.sequence(tag, start, start + length, explicit, charset, depth)
        value = self.data[start : start + length]
        if vr in _TEXT_VRS and not (value.isascii() and b"\x1b" not in value):
            value = decode_text(value, charset).encode()
            if len(value) > 0xFFFE and vr not in _LONG_VRS:
                raise Malformed(f"{attribute_name(tag)} is longer than its VR allows")
        return encode_element(tag, vr, value), start + length

    def sequence(
        self,
        tag: int,
        pos: int,
        end: int,
        explicit: bool,
        charset: CharacterSet,
        depth: int,
        delimited: bool = False,
    ) -> tuple[bytes, int]:
        """A sequence in the stored form: items of defined length."""
        items = []
        while pos < end:
            item, _, start, length = self.header(pos, end, explicit=False)
            if item == _SEQUENCE_END and delimited:
                return encode_items(tag, items), start
            if item != _ITEM:
                raise Malformed(f"{attribute_name(tag)} holds something that is no item")
            if length == _UNDEFINED:
                content, pos = self.elements(start, end, explicit, charset, depth + 1, _ITEM_END)
            elif start + length > end:
                raise Malformed(f"an item of {attribute_name(tag)} is longer than the sequence")
            else:
                content, pos = self.elements(start, start + length, explicit, charset, depth + 1)
            items.append(content)
            self.count += 1
            if self.count > self.limits.elements:
                raise Malformed(f"more than {self.limits.elements} elements")
        if delimited:
            raise Malformed(f"{attribute_name(tag)} has no end")
        return encode_items(tag, items), pos

    @staticmethod
    def declared(element: bytes, outer: CharacterSet) -> CharacterSet:
        """The set that (0008,0005) declares; the outer one where it is empty."""
        value = element[8:].decode("ascii", "replace")
        terms = tuple(term.strip(" \0") for term in value.split("\\"))
        if not any(terms):
            return outer
        if problem := CharacterSet.problem_of(terms):
            log.warning("Specific Character Set (0008,0005) %s: %s", value.strip(), problem)
        return character_set(terms)


def _by_tag(found: Mapping[int, bytes]) -> list[bytes]:
    return [found[tag] for tag in sorted(found)]


def recode(
    data: bytes,
    explicit: bool = True,
    charset: CharacterSet = ASCII,
    limits: Limits = Limits(),
) -> bytes:
    """A peer's data set in the stored form: explicit little endian, UTF-8, defined lengths.

    data      encoded in one of the little endian syntaxes, without command or file meta group
    explicit  whether the VRs are in it
    charset   what texts are in where (0008,0005) does not say
    Raises    Malformed
    """
    return _Recoder(data, limits).elements(0, len(data), explicit, charset, 1)[0]


def declared_character_set(data: bytes, explicit: bool) -> CharacterSet | None:
    """The set that a peer's data set declares at its top; None where it declares none."""
    head = struct.pack("<HH", 0x0008, 0x0005)
    at = data.find(head, 0, 64)
    if at < 0:
        return None
    length = int.from_bytes(data[at + 6 : at + 8] if explicit else data[at + 4 : at + 8], "little")
    value = data[at + 8 : at + 8 + length].decode("ascii", "replace")
    terms = tuple(term.strip(" \0") for term in value.split("\\"))
    return character_set(terms) if any(terms) else None


class ElementIndex:
    """An encoded data set (stored form), indexed by tag; sequences are opened when asked for."""

    __slots__ = ("data", "end", "found", "start")

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self.data, self.start = data, start
        self.end = end = len(data) if end is None else end
        self.found: dict[int, tuple[bytes, int, int, int]] = {}
        found, unpack, pos = self.found, _HEADER.unpack_from, start
        while pos < end:
            group, number, vr, length = unpack(data, pos)
            value = pos + 8
            if vr in _LONG_VRS:
                length = int.from_bytes(data[value : value + 4], "little")
                value += 4
            found[group << 16 | number] = vr, pos, value, value + length
            pos = value + length

    def __contains__(self, tag: int) -> bool:
        return tag in self.found

    def __iter__(self) -> Iterator[int]:
        return iter(self.found)

    def vr(self, tag: int) -> bytes:
        """The VR of an element that is there."""
        return self.found[tag][0]

    def element(self, tag: int) -> bytes:
        """The whole element, b"" where there is none."""
        if tag not in self.found:
            return b""
        _, head, _, end = self.found[tag]
        return self.data[head:end]

    def value(self, tag: int) -> bytes:
        """The bytes of a value, b"" where there is none."""
        if tag not in self.found:
            return b""
        _, _, start, end = self.found[tag]
        return self.data[start:end]

    def text(self, tag: int) -> str:
        """The value as text, without padding; numbers of binary VRs as decimal digits."""
        vr, _, start, end = self.found.get(tag, (b"", 0, 0, 0))
        if vr in _BINARY_NUMBERS:
            return "\\".join(map(str, unpack_numbers(vr, self.data[start:end])))
        return self.data[start:end].decode("utf-8", "replace").rstrip(" \0").lstrip(" ")

    def get(self, keyword: str) -> str:
        """The text of a keyword, empty where there is none."""
        return self.text(tag_of(keyword))

    def values(self, tag: int) -> list[str]:
        """Each value as text, without padding; [] where there is none."""
        text = self.text(tag)
        return [value.strip(" ") for value in text.split("\\")] if text else []

    def items(self, tag: int) -> list["ElementIndex"]:
        """The items of a sequence, [] where there is none."""
        vr, _, pos, end = self.found.get(tag, (b"", 0, 0, 0))
        if vr != b"SQ":
            return []
        items = []
        while pos < end:
            length = int.from_bytes(self.data[pos + 4 : pos + 8], "little")
            items.append(ElementIndex(self.data, pos + 8, pos + 8 + length))
            pos += 8 + length
        return items

    def item(self, keyword: str) -> "ElementIndex":
        """The first item of a sequence; an empty one where there is none."""
        return next(iter(self.items(tag_of(keyword))), EMPTY)

    def has_value(self, tag: int) -> bool:
        """Whether there is a value other than padding, or an item."""
        vr, _, start, end = self.found.get(tag, (b"", 0, 0, 0))
        return end > start and (vr in _BINARY_VRS or bool(self.data[start:end].strip(b" \0")))

    def __bytes__(self) -> bytes:
        return self.data[self.start : self.end]

    def merged(self, *others: "ElementIndex") -> bytes:
        """The data set with the elements of the others put in, each in the place of its own."""
        elements = {tag: self.element(tag) for tag in self.found}
        for other in others:
            elements |= {tag: other.element(tag) for tag in other.found}
        return b"".join(_by_tag(elements))

    def without(self, tags: Iterable[int]) -> bytes:
        """The data set less some elements."""
        leave = frozenset(tags)
        return b"".join(self.element(tag) for tag in self.found if tag not in leave)

    def only(self, tags: Iterable[int]) -> bytes:
        """The elements of the given tags that are there, ascending."""
        return b"".join(self.element(tag) for tag in sorted(tags) if tag in self.found)


EMPTY = ElementIndex(b"")

_BINARY_NUMBERS = {
    b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d", b"UV": "Q", b"SV": "q",
}  # fmt: skip
_BINARY_VRS = frozenset(_BINARY_NUMBERS) | frozenset(b"AT OB OD OF OL OV OW SQ UN".split())


def unpack_numbers(vr: bytes, value: bytes) -> tuple[float, ...]:
    """The numbers of a binary value; bytes left over are ignored."""
    code = _BINARY_NUMBERS[vr]
    count = len(value) // struct.calcsize(code)
    return struct.unpack_from(f"<{count}{code}", value)


# What a value of a VR may be. Source: PS3.5 Table 6.2-1.
VALUE_LENGTHS = {
    "AE": 16, "AS": 4, "CS": 16, "DA": 8, "DS": 16, "DT": 26, "IS": 12, "LO": 64, "LT": 10240,
    "SH": 16, "ST": 1024, "TM": 16, "UI": 64,
}  # fmt: skip
VALUE_PATTERNS = {
    "AE": (re.compile(r"[ -\[\]-~]*"), "has characters that an AE title may not have"),
    "AS": (re.compile(r"\d{3}[DWMY]"), "is not an age such as 042Y"),
    "CS": (re.compile(r"[A-Z0-9_ ]*"), "has characters other than capitals, digits, space and _"),
    "DA": (re.compile(r"\d{8}"), "is not a date"),
    "DS": (re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"), "is not a number"),
    "DT": (re.compile(r"\d{4}(\d\d){0,5}(\.\d{1,6})?([+-]\d{4})?"), "is not a date and time"),
    "IS": (re.compile(r"[+-]?\d+"), "is not a whole number"),
    "TM": (re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d|60)?(?<=\d{6})(\.\d{1,6})?|[0-5]\d)?"), "is not a time"),
    "UI": (re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))*"), "is not a UID"),
}  # fmt: skip


def is_date(text: str) -> bool:
    """Whether eight digits are a day of the calendar."""
    try:
        datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return False
    return len(text) == 8 and text.isdigit()


def value_problem(vr: str, text: str) -> Message | None:
    """What is wrong with one value of a VR, None where nothing is (PS3.5 Table 6.2-1)."""
    pattern, words = VALUE_PATTERNS.get(vr, (None, ""))
    if pattern and not pattern.fullmatch(text) or vr == "DA" and not is_date(text):
        return Message("{value} " + words, value=text)
    longest = VALUE_LENGTHS.get(vr)
    if longest and len(text) > longest:
        return Message(
            "{value} is longer than {longest} characters", value=text[:80], longest=longest
        )
    if vr == "PN" and any(len(group) > 64 for group in text.split("=")):
        return Message("{value} is longer than {longest} characters", value=text[:80], longest=64)
    if vr not in ("LT", "ST", "UT") and re.search(r"[\0-\x1a\x1c-\x1f]", text):
        return Message("has a control character")
    return None


def value_problems(index: ElementIndex) -> Iterator[Problem]:
    """A problem for each value in a data set that its VR does not allow, nested ones included."""
    for tag in index:
        vr = index.vr(tag)
        if vr == b"SQ":
            for item in index.items(tag):
                yield from value_problems(item)
        elif vr not in _BINARY_VRS:
            texts = [index.text(tag)] if vr in _ONE_VALUE_VRS else index.values(tag)
            for text in filter(None, texts):
                if words := value_problem(vr.decode(), text):
                    yield Problem(tag, words)


def check_attributes(
    index: ElementIndex,
    table: AttributeTable,
    column: str,
    lenient: bool = False,
    path: tuple[int, ...] = (),
) -> list[Problem]:
    """Hold a data set against a column of an attribute table; what is absent but forgiven.

    column   its cells are types: `1/1`, `2/2`, `1`, `2`; others ask nothing (PS3.4 5.4.2)
    lenient  take an absent type 2 attribute as empty, and return it as a problem forgiven
    Refuses  0120 for what is absent, 0121 for what has no value
    """
    absent, empty, forgiven = [], [], []
    for attribute in table.children(path):
        kind = attribute.cells[column].partition("/")[0]
        if attribute.tag not in index:
            if kind == "1" or kind == "2" and not lenient:
                absent.append(Problem(attribute.tag, Message("is missing")))
            elif kind == "2":
                forgiven.append(Problem(attribute.tag, Message("is missing")))
        elif kind == "1" and not index.has_value(attribute.tag):
            empty.append(Problem(attribute.tag, Message("has no value")))
        elif attribute.vr == "SQ":
            for item in index.items(attribute.tag):
                forgiven += check_attributes(item, table, column, lenient, attribute.path)
    if absent:
        raise Refusal(Status.MISSING_ATTRIBUTE, problems=absent)
    if empty:
        raise Refusal(Status.MISSING_ATTRIBUTE_VALUE, problems=empty)
    return forgiven


# Searching. A query is compiled once into a Search: tests by tag, and the shape of the answer.
# Source: PS3.4 C.2.2.2 and K.2.2.

Test = Callable[[bytes], bool]
_WILDCARD_VRS = frozenset(b"AE CS LO LT PN SH ST UC UR UT".split())  # PS3.4 C.2.2.2.4
_RANGE_VRS = frozenset(b"DA TM DT".split())


def _refuse_key(tag: int, words: str) -> Refusal:
    return Refusal(
        Status.IDENTIFIER_DOES_NOT_MATCH, problems=[Problem(tag, Message(words))]
    )


def wildcard_pattern(text: str, flags: int = 0) -> re.Pattern[str]:
    """`*` for any run, `?` for exactly one character, anything else for itself."""
    parts = (re.escape(part) for part in re.split(r"([*?])", text))
    return re.compile("".join({r"\*": ".*", r"\?": "."}.get(p, p) for p in parts), flags | re.S)


def name_groups(text: str) -> list[str]:
    """The component groups of a person name, in lower case, empty components at the end gone."""
    return [group.strip(" ").rstrip("^ ").casefold() for group in text.split("=")]


def name_test(text: str) -> Test:
    """A key of VR PN: any case; without `=` tried against each group (PS3.4 C.2.2.2.1.1)."""
    if "*" in text or "?" in text:
        groups = [group.strip(" ").casefold() for group in text.split("=")]
        patterns = [wildcard_pattern(group) if group.strip("*") else None for group in groups]

        def fits(number: int, group: str) -> bool:
            pattern = patterns[number]
            carets = "^" * (4 - group.count("^"))  # SMITH^* is for SMITH too
            return not pattern or bool(
                pattern.fullmatch(group) or pattern.fullmatch(group + carets)
            )
    else:
        groups = name_groups(text)

        def fits(number: int, group: str) -> bool:
            return not groups[number] or groups[number] == group

    def test(value: bytes) -> bool:
        for name in value.decode("utf-8", "replace").split("\\"):
            stored = name_groups(name)
            if len(groups) == 1:
                if any(group and fits(0, group) for group in stored):
                    return True
            elif all(
                fits(number, stored[number] if number < len(stored) else "")
                for number in range(len(groups))
            ):
                return True
        return False

    return test


def text_test(text: str, vr: bytes) -> Test:
    """A key of another text VR: exact and case-sensitive, or with wildcards."""
    one_value = vr in _ONE_VALUE_VRS
    if vr in _WILDCARD_VRS and ("*" in text or "?" in text):
        pattern = wildcard_pattern(text)

        def test(value: bytes) -> bool:
            stored = value.decode("utf-8", "replace")
            values = [stored] if one_value else stored.split("\\")
            return any(pattern.fullmatch(one.strip(" ")) for one in values if one.strip(" "))
    else:
        wanted = text.encode()

        def test(value: bytes) -> bool:
            if value.strip(b" \0") == wanted:
                return True
            return b"\\" in value and not one_value and wanted in map(bytes.strip, value.split(b"\\"))

    return test


def uid_test(uids: list[str]) -> Test:
    """A key of VR UI: any of the UIDs listed (PS3.4 C.2.2.2.2)."""
    wanted = frozenset(uid.encode() for uid in uids)
    return lambda value: not wanted.isdisjoint(
        one.strip(b" \0") for one in value.split(b"\\")
    )


def number_test(text: str, vr: bytes) -> Test:
    """A key of a number: equal by value."""
    wanted = frozenset(map(float, text.split("\\")))
    if vr in _BINARY_NUMBERS:
        return lambda value: not wanted.isdisjoint(unpack_numbers(vr, value))

    def test(value: bytes) -> bool:
        with contextlib.suppress(ValueError):
            return not wanted.isdisjoint(float(one) for one in value.split(b"\\"))
        return False

    return test


class Interval(NamedTuple):
    """A range of DA, TM or DT values, both ends included; "" for an open end."""

    low: str
    high: str
    form: str

    def test(self, value: bytes) -> bool:
        """Whether a stored value lies in it."""
        text = value.decode("ascii", "replace").strip(" \0")
        return any(one and self.holds(one) for one in text.split("\\"))

    def holds(self, text: str) -> bool:
        """Whether one value, normalised as the ends are, lies in it."""
        text = normal_time(text)
        return text >= self.low and (not self.high or text <= self.high)


def normal_date(text: str) -> str:
    """A date as eight digits; the dots of ACR-NEMA go."""
    return text.replace(".", "") if text.count(".") == 2 else text


def normal_time(text: str) -> str:
    """A time in its shortest comparable form: 2230 stands before 223000 and sorts as it does."""
    return text.replace(":", "")


def _time_end(text: str) -> str:
    """The last instant that an imprecise time covers: 10 is up to 10:59:59.999999."""
    digits, _, fraction = text.partition(".")
    if fraction:
        return f"{digits}.{fraction.ljust(6, '9')}"
    return digits + "5959"[len(digits) - 2 :] + ".999999"


def _time_start(text: str) -> str:
    """The first instant that an imprecise time covers."""
    return text.partition(".")[0].ljust(6, "0") + text[6:].rstrip("0").rstrip(".")


def interval(tag: int, vr: bytes, text: str) -> Interval:
    """A key of VR DA, TM: `a`, `a-b`, `-b`, `a-`; Refuses A900 for what is neither."""
    normal = normal_date if vr == b"DA" else normal_time
    low, dash, high = (normal(part.strip(" ")) for part in text.partition("-"))
    for part in filter(None, (low, high)):
        if words := value_problem(vr.decode(), part):
            raise Refusal(Status.IDENTIFIER_DOES_NOT_MATCH, problems=[Problem(tag, words)])
    if not (low or high):
        raise _refuse_key(tag, "is not a range")
    form = f"{'a' if low else ''}{dash}{'b' if high else ''}"
    high = high if dash else low
    if vr == b"TM":
        return Interval(_time_start(low) if low else "", _time_end(high) if high else "", form)
    return Interval(low, high, form)


class TimeInterval(Interval):
    """A range of times; a stored time without seconds begins with its minute."""

    __slots__ = ()

    def holds(self, text: str) -> bool:
        """Whether one time lies in it."""
        text = _time_start(normal_time(text))
        return text >= self.low and (not self.high or text <= self.high)


def key_test(tag: int, vr: bytes, index: ElementIndex) -> Test | None:
    """The test of one key, None where it is universal. Refuses A900 for a key that is no key."""
    text = index.text(tag)
    if not text or not text.strip("*"):
        return None  # PS3.4 C.2.2.2.3; `*` alone: C.2.2.2.4 note 1
    values = [value.strip(" ") for value in text.split("\\")]
    if vr == b"UI":
        return uid_test(values)
    if len(values) > 1 and vr not in _ONE_VALUE_VRS:
        raise _refuse_key(tag, "has several values")  # local: C.2.2.2.8 note 4 leaves it open
    if vr == b"PN":
        return name_test(text)
    if vr in (b"DA", b"TM"):
        return key_interval(tag, vr, text).test
    if vr in _BINARY_NUMBERS or vr in (b"DS", b"IS"):
        try:
            return number_test(text, vr)
        except ValueError:
            raise _refuse_key(tag, "is not a number") from None
    return text_test(text, vr)


def key_interval(tag: int, vr: bytes, text: str) -> Interval:
    """The interval of a date or time key."""
    found = interval(tag, vr, text)
    return TimeInterval(*found) if vr == b"TM" else found


START_DATE, START_TIME = 0x00400002, 0x00400003


class Search:
    """A query, compiled: `answer(data)` is the encoded answer of a stored data set that matches.

    index     the identifier in the stored form
    table     which attributes are supported (columns match and return)
    explicit  whether answers are Explicit or Implicit VR Little Endian
    charset   what the texts of answers are in, `fallback` where it cannot carry one
    extra     elements put into every answer when they are asked for, by tag (stored form)
    Refuses   A900 for two items in a sequence, a wrong date or range, several values
    Source    PS3.4 C.2.2.2, K.2.2, K.4.1.1.3.2
    """

    def __init__(
        self,
        index: ElementIndex,
        table: AttributeTable,
        explicit: bool = True,
        charset: CharacterSet = UTF_8,
        fallback: CharacterSet = UTF_8,
        extra: Mapping[int, bytes] = types.MappingProxyType({}),
        path: tuple[int, ...] = (),
    ) -> None:
        self.index, self.explicit, self.path = index, explicit, path
        self.charset, self.fallback, self.extra = charset, fallback, extra
        self.tests: list[tuple[int, Test]] = []
        self.nested: dict[int, Search] = {}
        self.intervals: dict[int, Interval] = {}
        self.shape: list[tuple[int, bytes, bytes | None]] = []
        self.unsupported: list[int] = []
        for tag in index:
            self._add(tag, table)
        self._combine_date_and_time()

    def _add(self, tag: int, table: AttributeTable) -> None:
        if tag in (SPECIFIC_CHARACTER_SET, 0x00080052, 0x00080201):
            # PS3.4 K.2.2.2; a Query/Retrieve Level in a worklist query is a slip of its sender
            if tag == 0x00080201 and tag in self.extra:
                self.shape.append((tag, b"", self.extra[tag]))
            return
        path = (*self.path, tag)
        attribute = table.get(path)
        vr = self.index.vr(tag)
        known = attribute is not None or self._inside_open_sequence(table)
        if not known:
            self.unsupported.append(tag)
        if vr == b"SQ":
            self._add_sequence(tag, table, path)
        elif known and (not attribute or attribute.cells.get("match", "O") != "-"):
            if test := key_test(tag, vr, self.index):
                self.tests.append((tag, test))
            if vr in (b"DA", b"TM") and (text := self.index.text(tag).strip("*")):
                self.intervals[tag] = key_interval(tag, vr, text)
        kind = attribute.cells["return"] if attribute else "3"
        absent = b"" if kind == "3" else self._encode(tag, attribute.vr.encode(), b"", UTF_8)
        self.shape.append((tag, _TAG.pack(tag >> 16, tag & 0xFFFF), absent))

    def _inside_open_sequence(self, table: AttributeTable) -> bool:
        """Below a sequence that the table names without saying what is in it, all is known."""
        return bool(self.path) and self.path in table and not table.children(self.path)

    def _add_sequence(self, tag: int, table: AttributeTable, path: tuple[int, ...]) -> None:
        items = self.index.items(tag)
        if len(items) > 1:
            raise _refuse_key(tag, "has more than one item")  # PS3.4 C.2.2.2.6
        if items and items[0].found:
            nested = Search(
                items[0], table, self.explicit, self.charset, self.fallback, self.extra, path
            )
            self.unsupported += nested.unsupported
            self.nested[tag] = nested

    def _combine_date_and_time(self) -> None:
        """PS3.4 C.2.2.2.5.4, Table K.6-1: ranges of the same form are one continuous interval."""
        date, time_ = self.intervals.get(START_DATE), self.intervals.get(START_TIME)
        if date and time_ and date.form == time_.form and "-" in date.form:
            self.tests = [(t, test) for t, test in self.tests if t not in (START_DATE, START_TIME)]
            self.combined: Interval | None = Interval(
                date.low + time_.low, date.high + time_.high, date.form
            )
        else:
            self.combined = None

    @property
    def status(self) -> Status:
        """FF01 where an attribute is asked for that is not kept here (PS3.4 Table K.4-1)."""
        return Status.PENDING_OPTIONAL_KEYS_UNSUPPORTED if self.unsupported else Status.PENDING

    def matches(self, index: ElementIndex) -> bool:
        """Whether a stored data set satisfies every key."""
        data, found = index.data, index.found
        for tag, test in self.tests:
            entry = found.get(tag)
            if not entry or not test(data[entry[2] : entry[3]]):
                return False
        if self.combined:
            at = index.text(START_DATE) + _time_start(index.text(START_TIME) or "000000")
            if START_DATE not in index or not self.combined.holds(at):
                return False
        for tag, nested in self.nested.items():
            if nested.restricts and not any(map(nested.matches, index.items(tag))):
                return False
        return True

    @functools.cached_property
    def restricts(self) -> bool:
        """Whether any key is not universal."""
        return bool(
            self.tests or self.combined or any(n.restricts for n in self.nested.values())
        )

    def first_mismatch(self, index: ElementIndex) -> int | None:
        """The tag of the first key that a stored data set does not satisfy; None if it matches."""
        for tag, test in self.tests:
            if tag not in index or not test(index.value(tag)):
                return tag
        if self.combined and not self.matches(index):
            return START_DATE
        for tag, nested in self.nested.items():
            if nested.restricts and not any(map(nested.matches, index.items(tag))):
                items = index.items(tag) or [EMPTY]
                return nested.first_mismatch(items[0])
        return None

    def answer(self, data: bytes) -> bytes | None:
        """The encoded answer of a stored data set, None where it does not match."""
        index = ElementIndex(data)
        return self.select(index) if self.matches(index) else None

    def select(self, index: ElementIndex) -> bytes:
        """The attributes asked for, with (0008,0005) where it is needed or was asked for."""
        for charset in (self.charset, self.fallback, UTF_8):
            try:
                return self._select(index, charset)
            except UnicodeEncodeError:
                continue
        raise AssertionError("UTF-8 carries any text")

    def _select(self, index: ElementIndex, charset: CharacterSet) -> bytes:
        body = b"".join(self._elements(index, charset))
        if charset.terms and (SPECIFIC_CHARACTER_SET in self.index or not body.isascii()):
            head = self._encode(SPECIFIC_CHARACTER_SET, b"CS", bytes(charset), charset)
            return head + body
        return body

    def _elements(self, index: ElementIndex, charset: CharacterSet) -> list[bytes]:
        """The elements asked for from one data set or item, in the syntax and set of the answer."""
        data, found, parts = index.data, index.found, []
        verbatim = self.explicit and charset.codec == "utf-8"
        for tag, raw_tag, absent in self.shape:
            entry = found.get(tag)
            if entry is None:
                if absent:
                    parts.append(absent)
                continue
            vr, head, start, end = entry
            if vr == b"SQ":
                parts.append(self._sequence(tag, index, charset))
            elif verbatim:
                parts.append(data[head:end])
            else:
                value = data[start:end]
                if vr in _TEXT_VRS and not value.isascii():
                    value = self._text(vr, value, charset)
                if self.explicit:
                    parts.append(encode_element(tag, vr, value))
                else:
                    parts.append(raw_tag + len(value).to_bytes(4, "little") + value)
        return parts

    def _text(self, vr: bytes, value: bytes, charset: CharacterSet) -> bytes:
        """A stored text in another set; of a name the groups that it can carry, if the first."""
        if charset.codec == "utf-8":
            return value
        text = value.decode().rstrip(" ")
        try:
            return pad(charset.encode(text), vr)
        except UnicodeEncodeError:
            if vr != b"PN":
                raise
        names = []
        for name in text.split("\\"):
            groups = [group if _carries(charset, group) else "" for group in name.split("=")]
            if not groups[0]:
                charset.encode(name)  # raises: the next set is tried
            names.append("=".join(groups).rstrip("="))
        return pad(charset.encode("\\".join(names)), vr)

    def _sequence(self, tag: int, index: ElementIndex, charset: CharacterSet) -> bytes:
        nested = self.nested.get(tag)
        items = index.items(tag)
        if nested:
            if nested.restricts:  # PS3.4 C.2.2.2.6: the items that match, and of them what is asked
                items = [item for item in items if nested.matches(item)]
            contents = [b"".join(nested._elements(item, charset)) for item in items]
        elif self.explicit and charset.codec == "utf-8":
            return index.element(tag)
        else:
            contents = [self._whole(item, charset) for item in items]
        value = b"".join(map(encode_item, contents))
        return self._encode(tag, b"SQ", value, charset)

    def _whole(self, item: ElementIndex, charset: CharacterSet) -> bytes:
        """A whole item in the syntax and set of the answer."""
        parts = []
        for tag in item:
            vr = item.vr(tag)
            if vr == b"SQ":
                contents = [self._whole(inner, charset) for inner in item.items(tag)]
                value = b"".join(map(encode_item, contents))
            elif vr in _TEXT_VRS:
                value = self._text(vr, item.value(tag), charset)
            else:
                value = item.value(tag)
            parts.append(self._encode(tag, vr, value, charset))
        return b"".join(parts)

    def _encode(self, tag: int, vr: bytes, value: bytes, charset: CharacterSet) -> bytes:
        if self.explicit:
            return encode_element(tag, vr, value)
        value = pad(value, vr)
        return _TAG_LENGTH.pack(tag >> 16, tag & 0xFFFF, len(value)) + value


def _carries(charset: CharacterSet, text: str) -> bool:
    try:
        charset.encode(text)
    except UnicodeEncodeError:
        return False
    return True


def to_syntax(data: bytes, explicit: bool) -> bytes:
    """A stored data set in one of the two little endian syntaxes, still UTF-8."""
    if explicit:
        return data
    search = Search(EMPTY, MWL_ATTRIBUTES, explicit=False)
    return search._whole(ElementIndex(data), UTF_8)


# DICOM JSON, straight to and from the stored form. Source: PS3.18 annex F.


def _json_number(text: str) -> float | str:
    """A DS or IS as a number where nothing is lost by it, else as its text."""
    with contextlib.suppress(ValueError):
        number = int(text) if re.fullmatch(r"-?\d{1,15}", text) else float(text)
        if str(number) == text:
            return number
    return text


def _json_name(text: str) -> dict[str, str] | None:
    names = ("Alphabetic", "Ideographic", "Phonetic")
    groups = text.split("=")
    return {n: g for n, g in zip(names, groups, strict=False) if g} or None


def _json_values(vr: bytes, index: ElementIndex, tag: int) -> list[Any]:
    if vr == b"SQ":
        return [to_json(item) for item in index.items(tag)]
    if vr in _BINARY_NUMBERS:
        return list(unpack_numbers(vr, index.value(tag)))
    if vr == b"AT":
        value = index.value(tag)
        pairs = struct.iter_unpack("<HH", value[: len(value) // 4 * 4])
        return [f"{group:04X}{element:04X}" for group, element in pairs]
    if vr in _ONE_VALUE_VRS:
        return [index.text(tag)]
    values = index.values(tag)
    if vr == b"PN":
        return [_json_name(value) for value in values]
    if vr in (b"DS", b"IS"):
        return [_json_number(value) if value else None for value in values]
    return [value or None for value in values]


def to_json(index: ElementIndex) -> dict[str, Any]:
    """A stored data set as an object of the DICOM JSON Model."""
    result: dict[str, Any] = {}
    for tag in index:
        vr = index.vr(tag)
        member: dict[str, Any] = {"vr": vr.decode()}
        if vr in (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"UN"):
            if value := index.value(tag):
                member["InlineBinary"] = base64.b64encode(value).decode()
        elif index.has_value(tag):
            member["Value"] = _json_values(vr, index, tag)
        result[f"{tag:08X}"] = member
    return result


def _bad_json(key: str, words: str, **values: object) -> Refusal:
    tag = int(key, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", key) else 0
    words = words if tag else f"{key!r}: {words}"
    return Refusal(
        Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(tag, Message(words, **values))]
    )


def _from_json_values(key: str, vr: bytes, values: list[Any], depth: int) -> bytes:
    if vr == b"SQ":
        return b"".join(encode_item(from_json(item or {}, depth + 1)) for item in values)
    if vr in _BINARY_NUMBERS:
        code = _BINARY_NUMBERS[vr]
        cast = float if code in "fd" else int
        return struct.pack(f"<{len(values)}{code}", *map(cast, values))
    if vr == b"AT":
        return b"".join(_TAG.pack(int(v[:4], 16), int(v[4:8], 16)) for v in values)
    texts = []
    for value in values:
        if vr == b"PN" and isinstance(value, dict):
            groups = [value.get(n) or "" for n in ("Alphabetic", "Ideographic", "Phonetic")]
            value = "=".join(groups).rstrip("=")
        if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
            raise TypeError
        texts.append("" if value is None else str(value))
    return "\\".join(texts).encode()


def from_json(value: Any, depth: int = 1) -> bytes:
    """An object of the DICOM JSON Model in the stored form; keys may be keywords too.

    Refuses 0106 with the key that is wrong. Source: PS3.18 annex F
    """
    if not isinstance(value, dict):
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("is not an object of DICOM JSON"))
    if depth > 16:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("is nested too deep"))
    found: dict[int, bytes] = {}
    for key, member in value.items():
        tag = int(key, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", key) else None
        if tag is None:
            tag = datadict.tag_for_keyword(key)
        if tag is None or tag >> 16 in (0, 2, 0xFFFE):
            raise _bad_json(key, "is not an attribute")
        if tag == SPECIFIC_CHARACTER_SET or not tag & 0xFFFF:
            continue  # JSON is UTF-8, and so is the store
        if not isinstance(member, dict):
            raise _bad_json(key, "is not an object with vr and Value")
        vr = str(member.get("vr") or vr_of(tag)).encode("ascii", "replace")
        dictionary = vr_of(tag).encode()
        if vr not in _KNOWN_VRS:
            raise _bad_json(key, "has no known vr")
        if vr == b"UN" and dictionary != b"SQ":
            vr = dictionary
        try:
            found[tag] = encode_element(tag, vr, _json_member(key, vr, member, depth))
        except (TypeError, ValueError, AttributeError, struct.error, OverflowError):
            raise _bad_json(key, "has a value that its vr does not allow") from None
    return b"".join(_by_tag(found))


def _json_member(key: str, vr: bytes, member: Mapping[str, Any], depth: int) -> bytes:
    if "InlineBinary" in member:
        binary = member["InlineBinary"]
        return base64.b64decode(binary[0] if isinstance(binary, list) else binary, validate=True)
    values = member.get("Value", [])
    if not isinstance(values, list):
        raise _bad_json(key, "has a Value that is not an array")
    return _from_json_values(key, vr, values, depth)


# 5. STORE -------------------------------------------------------------------------------------
#
# What is kept, and the one thread that changes it. SQLite in WAL mode with synchronous=FULL;
# what gathers while a commit runs is committed together with the next. Nothing is hard-deleted.
# For others: the models, open_store, StoreLock, reading, Writer.

APPLICATION_ID = 0x6D726973  # "mris"
database = peewee.DatabaseProxy()


class StoreError(Exception):
    """The store cannot be opened: foreign, empty, newer than this program, or in use."""


class Stored(peewee.Model):
    """What all models have in common."""

    class Meta:
        database = database
        legacy_table_names = False


class Patient(Stored):
    """A patient; `data` holds the attributes of the patient alone, in the stored form."""

    patient_id = peewee.TextField()
    issuer_of_patient_id = peewee.TextField(default="")
    patient_name = peewee.TextField()
    name_key = peewee.TextField(index=True)
    patient_birth_date = peewee.TextField(default="")
    data = peewee.BlobField()
    created_at = peewee.TextField()
    updated_at = peewee.TextField()

    class Meta:
        indexes = ((("patient_id", "issuer_of_patient_id"), False),)


class RequestedProcedure(Stored):
    """A requested procedure with its imaging service request and visit."""

    patient = peewee.ForeignKeyField(Patient)
    study_instance_uid = peewee.TextField(unique=True)
    requested_procedure_id = peewee.TextField(index=True)
    accession_number = peewee.TextField(default="", index=True)
    data = peewee.BlobField()
    created_at = peewee.TextField()


class ScheduledProcedureStep(Stored):
    """A scheduled procedure step; `data` is the complete worklist data set, folded together."""

    procedure = peewee.ForeignKeyField(RequestedProcedure)
    scheduled_procedure_step_id = peewee.TextField(index=True)
    study_instance_uid = peewee.TextField()
    requested_procedure_id = peewee.TextField()
    accession_number = peewee.TextField(default="")
    patient_id = peewee.TextField()
    name_key = peewee.TextField()
    modality = peewee.TextField()
    start_date = peewee.TextField()
    start_time = peewee.TextField()
    status = peewee.TextField()
    data = peewee.BlobField()
    version = peewee.IntegerField(default=1)
    created_at = peewee.TextField()
    arrived_at = peewee.TextField(default="")
    started_at = peewee.TextField(default="")
    ended_at = peewee.TextField(default="")
    remark = peewee.TextField(default="")

    class Meta:
        indexes = (
            (("procedure", "scheduled_procedure_step_id"), True),
            (("start_date", "start_time"), False),
            (("start_date", "modality"), False),
            (("accession_number",), False),
            (("patient_id",), False),
            (("study_instance_uid",), False),
        )


class ScheduledStation(Stored):
    """One of the station AE titles of a scheduled procedure step."""

    ae_title = peewee.TextField()
    start_date = peewee.TextField()
    step = peewee.ForeignKeyField(ScheduledProcedureStep)

    class Meta:
        primary_key = peewee.CompositeKey("ae_title", "start_date", "step")


class PerformedProcedureStep(Stored):
    """A modality performed procedure step, as the modality told it."""

    sop_instance_uid = peewee.TextField(unique=True)
    status = peewee.TextField()
    performed_station_ae_title = peewee.TextField()
    data = peewee.BlobField()
    created_at = peewee.TextField()
    updated_at = peewee.TextField()
    remark = peewee.TextField(default="")


class PerformedScheduledStep(Stored):
    """Which scheduled steps a performed one satisfies, n to m."""

    performed = peewee.ForeignKeyField(PerformedProcedureStep)
    scheduled = peewee.ForeignKeyField(ScheduledProcedureStep)
    found_by = peewee.TextField()
    status_before = peewee.TextField()

    class Meta:
        primary_key = peewee.CompositeKey("performed", "scheduled")


class User(Stored):
    """Someone who logs in."""

    name = peewee.TextField(unique=True)
    role = peewee.TextField()
    password = peewee.TextField()
    created_at = peewee.TextField()


class Session(Stored):
    """A login; only the hash of its cookie is kept."""

    digest = peewee.TextField(primary_key=True)
    user = peewee.ForeignKeyField(User)
    csrf = peewee.TextField()
    created_at = peewee.TextField()
    expires_at = peewee.TextField()


class Token(Stored):
    """An API token; only its hash is kept."""

    name = peewee.TextField(unique=True)
    role = peewee.TextField()
    digest = peewee.TextField(unique=True)
    created_at = peewee.TextField()


class LoginFailure(Stored):
    """A wrong password, for the throttle."""

    who = peewee.TextField(index=True)
    at = peewee.TextField()


class Counter(Stored):
    """The last number given out for a kind of identifier on a day."""

    name = peewee.TextField(primary_key=True)
    last = peewee.IntegerField()


class Audit(Stored):
    """Who did what to which object, append-only."""

    at = peewee.TextField(index=True)
    who = peewee.TextField()
    what = peewee.TextField()
    about = peewee.TextField()
    detail = peewee.TextField(default="")


MODELS = (
    Patient,
    RequestedProcedure,
    ScheduledProcedureStep,
    ScheduledStation,
    PerformedProcedureStep,
    PerformedScheduledStep,
    User,
    Session,
    Token,
    LoginFailure,
    Counter,
    Audit,
)

# Append-only: what has been released is never changed, a change is a new row.
MIGRATIONS: tuple[tuple[int, str, str], ...] = (
    (
        1,
        "patients, procedures, steps, users, audit",
        """
        CREATE TABLE patient (
            id INTEGER NOT NULL PRIMARY KEY, patient_id TEXT NOT NULL,
            issuer_of_patient_id TEXT NOT NULL, patient_name TEXT NOT NULL, name_key TEXT NOT NULL,
            patient_birth_date TEXT NOT NULL, data BLOB NOT NULL, created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL);
        CREATE INDEX patient_name_key ON patient (name_key);
        CREATE INDEX patient_patient_id_issuer_of_patient_id
            ON patient (patient_id, issuer_of_patient_id);
        CREATE TABLE requested_procedure (
            id INTEGER NOT NULL PRIMARY KEY,
            patient_id INTEGER NOT NULL REFERENCES patient (id), study_instance_uid TEXT NOT NULL,
            requested_procedure_id TEXT NOT NULL, accession_number TEXT NOT NULL,
            data BLOB NOT NULL, created_at TEXT NOT NULL);
        CREATE INDEX requested_procedure_patient_id ON requested_procedure (patient_id);
        CREATE UNIQUE INDEX requested_procedure_study_instance_uid
            ON requested_procedure (study_instance_uid);
        CREATE INDEX requested_procedure_requested_procedure_id
            ON requested_procedure (requested_procedure_id);
        CREATE INDEX requested_procedure_accession_number ON requested_procedure (accession_number);
        CREATE TABLE scheduled_procedure_step (
            id INTEGER NOT NULL PRIMARY KEY,
            procedure_id INTEGER NOT NULL REFERENCES requested_procedure (id),
            scheduled_procedure_step_id TEXT NOT NULL, study_instance_uid TEXT NOT NULL,
            requested_procedure_id TEXT NOT NULL, accession_number TEXT NOT NULL,
            patient_id TEXT NOT NULL, name_key TEXT NOT NULL, modality TEXT NOT NULL,
            start_date TEXT NOT NULL, start_time TEXT NOT NULL, status TEXT NOT NULL,
            data BLOB NOT NULL, version INTEGER NOT NULL, created_at TEXT NOT NULL,
            arrived_at TEXT NOT NULL, started_at TEXT NOT NULL, ended_at TEXT NOT NULL,
            remark TEXT NOT NULL);
        CREATE UNIQUE INDEX scheduled_procedure_step_procedure_step_id
            ON scheduled_procedure_step (procedure_id, scheduled_procedure_step_id);
        CREATE INDEX scheduled_procedure_step_step_id
            ON scheduled_procedure_step (scheduled_procedure_step_id);
        CREATE INDEX scheduled_procedure_step_start
            ON scheduled_procedure_step (start_date, start_time);
        CREATE INDEX scheduled_procedure_step_start_date_modality
            ON scheduled_procedure_step (start_date, modality);
        CREATE INDEX scheduled_procedure_step_accession_number
            ON scheduled_procedure_step (accession_number);
        CREATE INDEX scheduled_procedure_step_patient_id ON scheduled_procedure_step (patient_id);
        CREATE INDEX scheduled_procedure_step_study
            ON scheduled_procedure_step (study_instance_uid);
        CREATE TABLE scheduled_station (
            ae_title TEXT NOT NULL, start_date TEXT NOT NULL,
            step_id INTEGER NOT NULL REFERENCES scheduled_procedure_step (id),
            PRIMARY KEY (ae_title, start_date, step_id)) WITHOUT ROWID;
        CREATE INDEX scheduled_station_step_id ON scheduled_station (step_id);
        CREATE TABLE performed_procedure_step (
            id INTEGER NOT NULL PRIMARY KEY, sop_instance_uid TEXT NOT NULL, status TEXT NOT NULL,
            performed_station_ae_title TEXT NOT NULL, data BLOB NOT NULL, created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL, remark TEXT NOT NULL);
        CREATE UNIQUE INDEX performed_procedure_step_sop_instance_uid
            ON performed_procedure_step (sop_instance_uid);
        CREATE INDEX performed_procedure_step_created_at ON performed_procedure_step (created_at);
        CREATE TABLE performed_scheduled_step (
            performed_id INTEGER NOT NULL REFERENCES performed_procedure_step (id),
            scheduled_id INTEGER NOT NULL REFERENCES scheduled_procedure_step (id),
            found_by TEXT NOT NULL, status_before TEXT NOT NULL,
            PRIMARY KEY (performed_id, scheduled_id)) WITHOUT ROWID;
        CREATE INDEX performed_scheduled_step_scheduled_id
            ON performed_scheduled_step (scheduled_id);
        CREATE TABLE user (
            id INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL UNIQUE, role TEXT NOT NULL,
            password TEXT NOT NULL, created_at TEXT NOT NULL);
        CREATE TABLE session (
            digest TEXT NOT NULL PRIMARY KEY,
            user_id INTEGER NOT NULL REFERENCES user (id) ON DELETE CASCADE,
            csrf TEXT NOT NULL, created_at TEXT NOT NULL, expires_at TEXT NOT NULL);
        CREATE TABLE token (
            id INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL UNIQUE, role TEXT NOT NULL,
            digest TEXT NOT NULL UNIQUE, created_at TEXT NOT NULL);
        CREATE TABLE login_failure (
            id INTEGER NOT NULL PRIMARY KEY, who TEXT NOT NULL, at TEXT NOT NULL);
        CREATE INDEX login_failure_who ON login_failure (who, at);
        CREATE TABLE counter (name TEXT NOT NULL PRIMARY KEY, last INTEGER NOT NULL);
        CREATE TABLE audit (
            id INTEGER NOT NULL PRIMARY KEY, at TEXT NOT NULL, who TEXT NOT NULL,
            what TEXT NOT NULL, about TEXT NOT NULL, detail TEXT NOT NULL);
        CREATE INDEX audit_at ON audit (at);
        """,
    ),
)


def _create_store(path: Path) -> None:
    """A new store under its own name at last, so that a cut in between leaves none."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(new, os.O_CREAT | os.O_WRONLY, 0o600))
    with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        _migrate(connection)
    os.replace(new, path)


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring a store to the newest schema, one transaction for each migration."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > MIGRATIONS[-1][0]:
        raise StoreError(f"the store is of a newer minris (schema {version})")
    for number, what, sql in MIGRATIONS:
        if number > version:
            log.info("store: schema %d, %s", number, what)
            script = f"BEGIN IMMEDIATE;{sql};PRAGMA user_version={number};COMMIT"
            connection.executescript(script)


def _check_store(path: Path) -> None:
    """Refuse a file that is no store of ours, without touching it."""
    if path.stat().st_size == 0:
        raise StoreError(f"{path} is empty: not a store of minris; move it away to start anew")
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            (found,) = connection.execute("PRAGMA application_id").fetchone()
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} is not a store of minris ({error})") from None
    if found != APPLICATION_ID:
        raise StoreError(f"{path} is not a store of minris")


def open_store(path: Path) -> None:
    """Bind `database` to a store, made if there is none, and bring it to the newest schema.

    path    the SQLite file
    Raises  StoreError for a foreign or empty file, or a store of a newer minris
    """
    if not path.exists():
        _create_store(path)
    _check_store(path)
    store = peewee.SqliteDatabase(
        str(path),
        lock_type="IMMEDIATE",
        autoconnect=False,
        timeout=10,
        pragmas={
            "journal_mode": "wal",
            "synchronous": "full",
            "foreign_keys": 1,
            "journal_size_limit": 64 << 20,
            "cache_size": -4096,
        },
    )
    database.initialize(store)
    with database.connection_context():
        _migrate(database.connection())


class StoreLock:
    """Held by the one process that may change a store; freed by the system when it dies.

    A file beside the store, itself an SQLite file in an exclusive transaction: the one lock that
    is alike on every platform.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.connection = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        try:
            self.connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            self.connection.close()
            raise StoreError(f"{path} is in use by another minris") from None

    def release(self) -> None:
        """Give the lock back."""
        self.connection.close()

    def __enter__(self) -> "StoreLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """A connection for reading in this thread; opened at the first time and kept."""
    database.connect(reuse_if_open=True)
    yield


class _Job(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: concurrent.futures.Future


class Writer:
    """The one thread that changes the store.

    submit(function, …) gives a future; its result is set after the commit that made it last.
    What has gathered is committed together; each call runs in a savepoint of its own, so that a
    Refusal undoes its call alone. An error of the database fails the batch, whose calls are then
    tried one by one.
    """

    BATCH = 256

    def __init__(self, on_commit: Callable[[], None] = lambda: None) -> None:
        self.on_commit = on_commit
        self.queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="store", daemon=True)
        self.thread.start()

    def submit(
        self, function: Callable[..., Any], *arguments: Any
    ) -> concurrent.futures.Future:
        """Have a core call run and committed; its future holds the result or the exception."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        self.queue.put(_Job(function, arguments, future))
        return future

    def close(self) -> None:
        """Finish what has been submitted, and end the thread."""
        self.queue.put(None)
        self.thread.join()

    def _run(self) -> None:
        with database.connection_context():
            going = True
            while going:
                batch = [self.queue.get()]
                while len(batch) < self.BATCH and not self.queue.empty():
                    batch.append(self.queue.get())
                going = None not in batch
                if jobs := [job for job in batch if job]:
                    self._commit(jobs)

    def _commit(self, jobs: list[_Job]) -> None:
        try:
            with database.atomic():
                outcomes = [self._attempt(job) for job in jobs]
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._commit([job])
            else:
                log.error("store: %s failed", jobs[0].function.__name__, exc_info=error)
                jobs[0].future.set_exception(error)
            return
        for job, (result, error) in zip(jobs, outcomes, strict=True):
            if error:
                job.future.set_exception(error)
            else:
                job.future.set_result(result)
        self.on_commit()

    @staticmethod
    def _attempt(job: _Job) -> tuple[Any, Exception | None]:
        """Run a call in its savepoint; what a refusal leaves behind is written after its undoing."""
        try:
            with database.atomic():
                return job.function(*job.arguments), None
        except Refusal as refusal:
            if after := getattr(refusal, "afterwards", None):
                after()
            return None, refusal
        except peewee.DatabaseError:
            raise
        except Exception as error:
            log.exception("%s failed", job.function.__name__)
            return None, error


# 6. CONTEXT -----------------------------------------------------------------------------------
#
# Who asks, when, and the line that is kept of it. For others: Actor, Context, audit.


class Actor(NamedTuple):
    """Who asks: an AE title with its address, or a user, or a job of our own."""

    name: str
    address: str = ""
    role: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.address}" if self.address else self.name


def utc_now() -> datetime.datetime:
    """Now, aware, in UTC."""
    return datetime.datetime.now(datetime.UTC)


def new_uid() -> str:
    """A UID from a UUID (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid4().int}"


@dataclasses.dataclass(frozen=True)
class Context:
    """The circumstances of one request; tests give another clock and other UIDs."""

    config: Config
    actor: Actor = Actor("minris")
    now: Callable[[], datetime.datetime] = utc_now
    new_uid: Callable[[], str] = new_uid

    def by(self, actor: Actor) -> "Context":
        """The same circumstances for somebody else."""
        return dataclasses.replace(self, actor=actor)

    def local_now(self) -> datetime.datetime:
        """Now on the clock of the clinic."""
        return self.now().astimezone(self.config.zone)

    def today(self) -> str:
        """Today at the clinic, as a DA value."""
        return f"{self.local_now():%Y%m%d}"

    def stamp(self, **later: float) -> str:
        """Now in UTC as the store keeps it, or so much later (hours=…): text that sorts."""
        return f"{self.now() + datetime.timedelta(**later):%Y-%m-%dT%H:%M:%S.%fZ}"


def audit(ctx: Context, what: str, about: str, detail: str = "") -> None:
    """Keep who did what to which object; part of the transaction that does it."""
    database.execute_sql(
        "INSERT INTO audit (at, who, what, about, detail) VALUES (?, ?, ?, ?, ?)",
        (ctx.stamp(), str(ctx.actor), what, about, detail),
    )


# 7. ACCESS ------------------------------------------------------------------------------------
#
# Which devices may call, and who may log in. For others: Device, AccessRules, authenticate,
# open_session, find_session, end_session, make_user, make_token, find_token, permit.

ROLES = ("desk", "technologist", "admin")  # each may do what those before it may


@dataclasses.dataclass(frozen=True)
class Device:
    """A machine that may call us, or that we call."""

    name: str
    ae_titles: tuple[str, ...]
    host: str = ""
    port: int = 104
    check_address: bool = False
    modality: str = ""
    station_name: str = ""
    location: str = ""
    character_set: tuple[str, ...] = ()
    fallback_character_set: tuple[str, ...] = ("ISO_IR 192",)
    role: str = "modality"

    @property
    def ae_title(self) -> str:
        """The title it is scheduled under."""
        return self.ae_titles[0]

    @classmethod
    def from_settings(cls, name: str, settings: types.SimpleNamespace) -> "Device":
        """A device as config.ini describes it."""
        given = dict(vars(settings))
        return cls(name=name, ae_titles=given.pop("ae_title"), **given)


class AccessRules:
    """A frozen picture of who may associate; `version` tells two pictures apart."""

    def __init__(self, config: Config, version: int = 1) -> None:
        self.version = version
        self.accept_unknown = config.dicom.accept_unknown_devices
        self.called = config.dicom.ae_title if config.dicom.check_called_ae_title else None
        self.devices = tuple(Device.from_settings(n, d) for n, d in config.devices.items())
        self.by_title = {title: d for d in self.devices for title in d.ae_titles}

    def device(self, calling: str) -> Device | None:
        """The device of an AE title, None where it is not registered."""
        return self.by_title.get(calling)

    def refusal(self, called: str, calling: str, address: str) -> tuple[int, str] | None:
        """Why an association is not for us: the reason of A-ASSOCIATE-RJ and words; or None.

        Source: PS3.8 Table 9-21 (service user: 3 calling, 7 called AE title not recognized)
        """
        if self.called and called != self.called:
            return 7, f"it called {called!r}, our AE title is {self.called!r}"
        device = self.by_title.get(calling)
        if not device and not self.accept_unknown:
            return 3, f"{calling!r} is not registered as a device"
        if device and device.check_address and not same_host(device.host, address):
            return 3, f"{calling!r} is registered for {device.host}"
        return None


@functools.lru_cache(256)
def host_addresses(host: str, minute: int) -> frozenset[str]:
    """The addresses of a host, looked up once a minute."""
    try:
        return frozenset(info[4][0] for info in socket.getaddrinfo(host, None))
    except OSError:
        return frozenset()


def same_host(host: str, address: str) -> bool:
    """Whether an address is one of a host's."""
    address = address.removeprefix("::ffff:")
    return address == host or address in host_addresses(host, int(time.monotonic() // 60))


def hash_password(password: str) -> str:
    """scrypt, n=2¹⁴, r=8, p=1, with a salt of its own."""
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, n=1 << 14, r=8, p=1)
    return f"scrypt$14$8$1${salt.hex()}${digest.hex()}"


def check_password(password: str, stored: str) -> bool:
    """Whether a password is the one that was hashed; in constant time."""
    _, n, r, p, salt, digest = stored.split("$")
    found = hashlib.scrypt(
        password.encode(), salt=bytes.fromhex(salt), n=1 << int(n), r=int(r), p=int(p)
    )
    return hmac.compare_digest(found.hex(), digest)


def digest_of(secret: str) -> str:
    """What is kept of a random secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


# Somebody who is not there costs as long to refuse as somebody with a wrong password.
_NOBODY = "scrypt$14$8$1$" + "00" * 16 + "$" + "00" * 64


def make_user(ctx: Context, name: str, role: str, password: str) -> User:
    """Make a login, or give an existing one this role and password, ending its sessions.

    Refuses 0106 for an empty name, an unknown role, a password of less than 8 characters
    """
    words = None
    if not re.fullmatch(r"[^\s:@/]{1,64}", name):
        words = Message("A user name has 1 to 64 characters, without spaces and : @ /")
    elif role not in ROLES:
        words = Message("There is no role {role}", role=role)
    elif len(password) < 8:
        words = Message("A password has at least 8 characters")
    if words:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words, [Problem(0, words)])
    user = User.get_or_none(User.name == name) or User(name=name, created_at=ctx.stamp())
    user.role, user.password = role, hash_password(password)
    user.save()
    Session.delete().where(Session.user == user).execute()
    audit(ctx, "user set", name, role)
    return user


def delete_user(ctx: Context, name: str) -> None:
    """End a login. Refuses 0112 for an unknown one, 0110 for the last administrator."""
    user = User.get_or_none(User.name == name)
    if not user:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no user {name}", name=name))
    if user.role == "admin" and User.select().where(User.role == "admin").count() == 1:
        raise Refusal(Status.PROCESSING_FAILURE, Message("This is the last administrator"))
    Session.delete().where(Session.user == user).execute()
    User.delete().where(User.id == user.id).execute()
    audit(ctx, "user deleted", name)


def failures_of(ctx: Context, who: Iterable[str]) -> int:
    """The most wrong passwords of any of these in the last 15 minutes."""
    since = ctx.stamp(minutes=-15)
    return max(
        LoginFailure.select().where((LoginFailure.who == one) & (LoginFailure.at > since)).count()
        for one in who
    )


def authenticate(ctx: Context, name: str, password: str) -> int:
    """The id of the user whose password this is.

    Refuses 0124 for a wrong name or password, 0213 for too many of them in 15 minutes
    """
    who = (f"address {ctx.actor.address}", f"user {name.casefold()[:64]}")
    if failures_of(ctx, who) >= ctx.config.web.login_attempts:
        raise Refusal(
            Status.RESOURCE_LIMITATION, Message("Too many wrong passwords: wait 15 minutes")
        )
    user = User.get_or_none(User.name == name)
    if check_password(password, user.password if user else _NOBODY) and user:
        return user.id
    raise Refusal(Status.NOT_AUTHORIZED, Message("The name or the password is wrong"))


def note_login_failure(ctx: Context, name: str) -> None:
    """Count a wrong password; forget those of long ago."""
    LoginFailure.delete().where(LoginFailure.at < ctx.stamp(minutes=-15)).execute()
    for who in (f"address {ctx.actor.address}", f"user {name.casefold()[:64]}"):
        LoginFailure.create(who=who, at=ctx.stamp())
    audit(ctx, "login failed", name[:64])


def open_session(ctx: Context, user_id: int) -> str:
    """A new login of a user: the secret for its cookie."""
    user, secret = User.get_by_id(user_id), secrets.token_urlsafe(32)
    Session.delete().where(Session.expires_at < ctx.stamp()).execute()
    Session.create(
        digest=digest_of(secret),
        user=user,
        csrf=secrets.token_urlsafe(32),
        created_at=ctx.stamp(),
        expires_at=ctx.stamp(hours=ctx.config.web.session_hours),
    )
    audit(ctx, "login", user.name)
    return secret


class Login(NamedTuple):
    """Who a request comes from."""

    name: str
    role: str
    csrf: str = ""


def find_session(ctx: Context, secret: str) -> Login | None:
    """The login of a cookie, None where it has ended or never was."""
    row = database.execute_sql(
        "SELECT u.name, u.role, s.csrf FROM session s JOIN user u ON u.id = s.user_id"
        " WHERE s.digest = ? AND s.expires_at > ?",
        (digest_of(secret), ctx.stamp()),
    ).fetchone()
    return Login(*row) if row else None


def end_session(ctx: Context, secret: str) -> None:
    """Log out."""
    Session.delete().where(Session.digest == digest_of(secret)).execute()
    audit(ctx, "logout", ctx.actor.name)


def make_token(ctx: Context, name: str, role: str) -> str:
    """A new API token, shown once; one of the same name is replaced. Refuses 0106."""
    if not name or role not in ROLES:
        raise Refusal(
            Status.INVALID_ATTRIBUTE_VALUE, Message("A token needs a name and a role")
        )
    secret = secrets.token_urlsafe(32)
    Token.delete().where(Token.name == name).execute()
    Token.create(name=name, role=role, digest=digest_of(secret), created_at=ctx.stamp())
    audit(ctx, "token made", name, role)
    return secret


def delete_token(ctx: Context, name: str) -> None:
    """End a token. Refuses 0112 for an unknown one."""
    if not Token.delete().where(Token.name == name).execute():
        raise Refusal(
            Status.NO_SUCH_SOP_INSTANCE, Message("There is no token {name}", name=name)
        )
    audit(ctx, "token deleted", name)


def find_token(secret: str) -> Login | None:
    """Whose API token this is."""
    row = database.execute_sql(
        "SELECT name, role FROM token WHERE digest = ?", (digest_of(secret),)
    ).fetchone()
    return Login(*row) if row else None


def permit(role: str, least: str) -> bool:
    """Whether a role may do what another may."""
    return role in ROLES and ROLES.index(role) >= ROLES.index(least)
