# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "pynetdicom>=3.0.4,<4", "pydicom>=3.0.1,<4", "peewee>=4.1,<5", "bottle>=0.13.2,<0.14",
#   "apscheduler>=3.11,<4", "uvicorn>=0.35,<1", "h11>=0.16,<1", "wsproto>=1.2,<2", "a2wsgi>=1.10,<2",
#   "python-barcode>=0.15,<1", "segno>=1.6,<2",
#   "tzdata; sys_platform == 'win32'",
# ]
# ///
"""minris: the worklist of a small clinic, in one file.

Reception registers the patient on a web page, the machine finds the patient on its worklist
(Modality Worklist) and reports what it did (Modality Performed Procedure Step); the board shows it.
The file reads from top to bottom: what DICOM says, what we hold, what may happen to it, who may
ask, and how the box is started. A section uses those above it, never those below.

 1. STATUS        every status we answer, with its HTTP code; the one exception
 2. STANDARD      SOP classes, attribute tables, transition tables, defined terms
 3. CONFIG        one table of settings; reading and checking config.ini
 4. DATASETS      encoded data sets: index, character sets, matching, checks, DICOM JSON
 5. STORE         models, migrations, the one writer
 6. CONTEXT       who asks and when; the audit line
 7. ACCESS        devices, users, sessions, tokens, roles
 8. EVENTS        subscriptions, and what subscribers are told
 9. WORKLIST      patients, requested procedures, scheduled procedure steps
10. MPPS          performed procedure steps and what they do to the scheduled ones
11. UPS           the workitem's life
12. AVAILABILITY  which images are where, and whether they are safe
13. WORKFLOW      what happens of itself: retention
14. INTERCHANGE   import and export: DICOM files, DICOM JSON, CSV
15. DELIVERY      calls to other systems
16. ASSOCIATION   the DICOM upper layer: PDUs, negotiation, timers, limits
17. DIMSE         door 1: which message calls which core function
18. DICOMWEB      door 2: the JSON API, the web server
19. PAGES         the browser's side
20. CONFORMANCE   the conformance statement, printed from the tables
21. SIMULATOR     a modality to try the box with
22. APPLIANCE     start, stop, command line
"""

import argparse
import asyncio
import base64
import collections
import concurrent.futures
import configparser
import contextlib
import csv
import dataclasses
import datetime
import enum
import functools
import getpass
import gzip
import hashlib
import hmac
import html
import io
import itertools
import json
import logging
import logging.handlers
import math
import os
import queue
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import ssl
import statistics
import struct
import sys
import tempfile
import threading
import time
import types
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
import uuid
import warnings
import zlib
import zoneinfo
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import peewee
from pydicom import datadict
from pydicom.uid import UID

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
    OPTIONAL_ATTRIBUTES_NOT_SUPPORTED = 0x0001
    NO_SUCH_ATTRIBUTE = 0x0105
    INVALID_ATTRIBUTE_VALUE = 0x0106
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    NO_SUCH_SOP_INSTANCE = 0x0112
    NO_SUCH_EVENT_TYPE = 0x0113
    INVALID_ARGUMENT_VALUE = 0x0115
    INVALID_SOP_INSTANCE = 0x0117
    NO_SUCH_SOP_CLASS = 0x0118
    MISSING_ATTRIBUTE = 0x0120
    MISSING_ATTRIBUTE_VALUE = 0x0121
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NO_SUCH_ACTION = 0x0123
    NOT_AUTHORIZED = 0x0124
    UNRECOGNIZED_OPERATION = 0x0211
    MISTYPED_ARGUMENT = 0x0212
    RESOURCE_LIMITATION = 0x0213
    OUT_OF_RESOURCES = 0xA700
    IDENTIFIER_DOES_NOT_MATCH = 0xA900
    DELETION_LOCK_NOT_GRANTED = 0xB301
    ALREADY_CANCELED = 0xB304
    ALREADY_COMPLETED = 0xB306
    UNABLE_TO_PROCESS = 0xC000
    MAY_NO_LONGER_BE_UPDATED = 0xC300
    TRANSACTION_UID_INCORRECT = 0xC301
    ALREADY_IN_PROGRESS = 0xC302
    SCHEDULED_ONLY_BY_CREATE = 0xC303
    FINAL_STATE_REQUIREMENTS_NOT_MET = 0xC304
    NO_SUCH_UPS = 0xC307
    RECEIVING_AE_UNKNOWN = 0xC308
    NOT_CREATED_SCHEDULED = 0xC309
    NOT_YET_IN_PROGRESS = 0xC310
    COMPLETED_ALREADY = 0xC311
    PERFORMER_CANNOT_BE_CONTACTED = 0xC312
    PERFORMER_CHOOSES_NOT_TO_CANCEL = 0xC313
    ACTION_NOT_APPROPRIATE = 0xC314
    CANCEL = 0xFE00
    PENDING = 0xFF00
    PENDING_OPTIONAL_KEYS_UNSUPPORTED = 0xFF01


class Message(str):
    """A sentence for a person: English as it stands, and what a catalogue needs to translate it.

    Message("{value} is not a date", value="19800231") reads "19800231 is not a date".
    """

    key: str
    values: Mapping[str, object]

    def __new__(cls, key: str, /, **values: object) -> "Message":
        text = super().__new__(cls, key.format_map(values) if values else key)
        text.key, text.values = key, values
        return text


def description_of(tag: int) -> str:
    """The name of an attribute in the data dictionary."""
    try:
        return datadict.dictionary_description(tag)
    except KeyError:
        return "Unknown attribute"


class Problem(NamedTuple):
    """What is wrong with one attribute: its tag (0 where none is to blame) and the words."""

    tag: int
    words: Message

    @property
    def message(self) -> Message:
        """The whole sentence: Patient's Birth Date (0010,0030) 19800231 is not a date."""
        if not self.tag:
            return self.words
        name = Message(description_of(self.tag))
        number = f"{self.tag >> 16:04X},{self.tag & 0xFFFF:04X}"
        return Message("{name} ({number}) {words}", name=name, number=number, words=self.words)

    def __str__(self) -> str:
        return str(self.message)


def joined(messages: Iterable[Message], between: str) -> Message:
    """Several sentences as one that can still be translated."""
    first, *rest = messages
    for message in rest:
        first = Message("{first}" + between + "{second}", first=first, second=message)
    return first


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
        super().__init__(detail or (self.problems[0].message if self.problems else status.name))
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


def body_rows(text: str) -> tuple[list[str], ...]:
    """The rows of a text table below its head."""
    return tuple(rows(text))[1:]


def outcome_table(source: str, text: str) -> dict[tuple[str, Status], Outcome]:
    """Read `operation | status | HTTP | text`; refuses an unknown status or HTTP code."""
    table: dict[tuple[str, Status], Outcome] = {}
    for operation, status, code, words in body_rows(text):
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
    *         | 0113   | 400  | There is no such event type.
    *         | 0117   | 400  | The UID is not valid.
    *         | 0118   | 501  | The SOP class is not known here.
    *         | 0120   | 400  | An attribute is missing.
    *         | 0121   | 400  | An attribute has no value.
    *         | 0122   | 501  | The SOP class is not supported.
    *         | 0124   | 403  | Not authorized.
    *         | 0211   | 405  | The operation is not part of this service.
    *         | 0212   | 415  | The media type is not taken.
    *         | 0213   | 413  | The request is larger than this system takes.
    *         | 0115   | 400  | An argument has an invalid value.
    *         | 0123   | 400  | There is no such action.
    *         | C300   | 409  | The submitted request is inconsistent with the state of the UPS Instance.
    *         | C301   | 400  | The Transaction UID is incorrect.
    *         | C302   | 409  | The submitted request is inconsistent with the state of the UPS Instance.
    *         | C303   | 409  | The submitted request is inconsistent with the state of the UPS Instance.
    *         | C304   | 409  | The submitted request is inconsistent with the state of the UPS Instance.
    *         | C307   | 404  | The Target Workitem was not found.
    *         | C308   | 404  | The Receiving AE is not known.
    *         | C309   | 400  | A Workitem is created SCHEDULED.
    *         | C310   | 409  | The submitted request is inconsistent with the state of the UPS Instance.
    *         | C311   | 409  | The UPS is already COMPLETED.
    *         | C312   | 409  | The performer cannot be contacted.
    *         | C313   | 409  | Performer chooses not to cancel.
    *         | C314   | 404  | The action is not appropriate for this Workitem.
    *         | A700   | 413  | More matches than the limit.
    *         | A900   | 400  | The query is not valid.
    *         | C000   | 500  | The query could not be carried out.
    update       | 0105   | 400  | The submitted request is inconsistent with the current state of the Workitem.
    update       | 0106   | 400  | The submitted request is inconsistent with the current state of the Workitem.
    update       | 0115   | 400  | The submitted request is inconsistent with the current state of the Workitem.
    update       | 0120   | 400  | The submitted request is inconsistent with the current state of the Workitem.
    update       | 0121   | 400  | The submitted request is inconsistent with the current state of the Workitem.
    update       | C300   | 400  | The submitted request is inconsistent with the current state of the Workitem.
    update       | C303   | 409  | The submitted request is inconsistent with the current state of the Workitem.
    update       | C307   | 404  | The submitted request is inconsistent with the current state of the Workitem.
    update       | C310   | 409  | The submitted request is inconsistent with the current state of the Workitem.
    update       | 0124   | 403  | The submitted request is inconsistent with the current state of the Workitem.
    update       | 0212   | 415  | The submitted request is inconsistent with the current state of the Workitem.
    update       | 0213   | 413  | The submitted request is inconsistent with the current state of the Workitem.
    update       | C301   | 400  | The target URI did not reference a claimed Workitem.
    change state | 0115   | 400  | The submitted request is inconsistent with the state of the UPS Instance.
    change state | 0120   | 400  | The submitted request is inconsistent with the state of the UPS Instance.
    change state | 0121   | 400  | The submitted request is inconsistent with the state of the UPS Instance.
    change state | 0106   | 400  | The submitted request is inconsistent with the state of the UPS Instance.
    change state | 0124   | 403  | The submitted request is inconsistent with the state of the UPS Instance.
    change state | 0212   | 415  | The submitted request is inconsistent with the state of the UPS Instance.
    change state | 0213   | 413  | The submitted request is inconsistent with the state of the UPS Instance.
    change state | C314   | 404  | The submitted request is inconsistent with the state of the UPS Instance.
    change state | C307   | 404  | The submitted request is inconsistent with the state of the UPS Instance.
    update mpps  | 0105   | 409  | An attribute may not be changed.
    update mpps  | 0110   | 409  | The performed procedure step has ended.
    """,
)


# The texts of warnings that come with success (PS3.18 11.4.3 to 11.10.3).
WARNINGS = {
    Status.DELETION_LOCK_NOT_GRANTED: "Deletion Lock not granted.",
    Status.ALREADY_CANCELED: "The UPS is already in the requested state of CANCELED.",
    Status.ALREADY_COMPLETED: "The UPS is already in the requested state of COMPLETED.",
}


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
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1
MPPS_RETRIEVE = "1.2.840.10008.3.1.2.3.4"
MPPS_NOTIFICATION = "1.2.840.10008.3.1.2.3.5"

UPS_PUSH = "1.2.840.10008.5.1.4.34.6.1"
UPS_WATCH = "1.2.840.10008.5.1.4.34.6.2"
UPS_PULL = "1.2.840.10008.5.1.4.34.6.3"
UPS_EVENT = "1.2.840.10008.5.1.4.34.6.4"
UPS_QUERY = "1.2.840.10008.5.1.4.34.6.5"
UPS_CLASSES = frozenset({UPS_PUSH, UPS_WATCH, UPS_PULL, UPS_EVENT, UPS_QUERY})
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
STORAGE_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
INSTANCE_AVAILABILITY = "1.2.840.10008.5.1.4.33"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
UPS_GLOBAL_SUBSCRIPTION = "1.2.840.10008.5.1.4.34.5"
UPS_FILTERED_SUBSCRIPTION = "1.2.840.10008.5.1.4.34.5.1"

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
def vrs_of(tag: int) -> str:
    """The VRs that a tag may have by the data dictionary, such as `US or SS`; UN for an unknown one."""
    try:
        return datadict.dictionary_VR(tag)
    except KeyError:
        if tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF:
            return "LO"  # PS3.5 7.8.1: a private creator
        return "UN"


def vr_of(tag: int) -> str:
    """The VR of a tag in the data dictionary, UN where it is not known; `US or SS` is US."""
    return vrs_of(tag)[:2]


def attribute_name(tag: int) -> str:
    """`Patient's Birth Date (0010,0030)`, for people."""
    return f"{description_of(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


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

STEP_SEQUENCE = tag_of("ScheduledProcedureStepSequence")
STEP_STATUS = tag_of("ScheduledProcedureStepStatus")

# create, set: as above; final: R always, RC if known, P for COMPLETED, P2 the same but it may be
# empty, X for CANCELED; match: R, O, U unique key; get, return: types.
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

# right UID: that of who claimed it; for a SCHEDULED one any UID, since it becomes the right one.
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
    """Read `request | state | …`: a cell is the new state, with `+` where a state report is due."""
    head, *body = rows(text)
    table: dict[tuple[str, str], tuple[str, bool]] = {}
    for request, *cells in body:
        for state, cell in zip(head[1:], cells, strict=True):
            if cell == "-":  # cannot be
                continue
            new = cell.removesuffix(" +")
            if not {state, new} <= set(SUBSCRIPTION_STATES) or (request, state) in table:
                raise ValueError(f"{source}: {request}, {state}")
            table[request, state] = new, cell.endswith(" +")
    return table


# Request by the own state of one AE for one workitem; a workitem that is created has no
# subscribers yet. Local: CC.2.4.3 wants a report of every workitem for a global lock, the table
# of those alone that were not subscribed.
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
    "Cancellation declined": 0,  # local: in the history alone, told to nobody
    "UPS State Report": 1,
    "UPS Cancel Requested": 2,
    "UPS Progress Report": 3,
    "SCP Status Change": 4,
    "UPS Assigned": 5,
}
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
RETRIEVABLE = ("ONLINE", "NEARLINE")  # PS3.3 C.4.23.1.1: of these a C-MOVE would work
# PS3.3 C.14.1.1: Failure Reason (0008,1197), and for people why an instance is not committed.
NOT_CHECKED, NOT_THERE, OF_ANOTHER_CLASS = "0110", "0112", "0119"
NOT_STORED, UID_IN_USE, NO_ROOM, COMMITTED = "0122", "0131", "0213", "0000"
FAILURE_REASONS = {
    NOT_CHECKED: Message("could not be checked"),
    NOT_THERE: Message("is not in the archive"),
    OF_ANOTHER_CLASS: Message("is in the archive as an object of another class"),
    NOT_STORED: Message("is no object that is stored"),
    UID_IN_USE: Message("was asked for under a number that is in use"),
    NO_ROOM: Message("has no room in the archive"),
}
COMMITMENT_EVENTS = {True: 1, False: 2}  # PS3.4 Table J.3-2, by whether all are committed
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
MPPS_EVENTS = {  # PS3.4 Table F.9.2-1, by the state that a performed step has entered
    "IN PROGRESS": 1,
    "COMPLETED": 2,
    "DISCONTINUED": 3,
    "": 4,  # updated, in the state it was in
    "deleted": 5,
}
# What is passed on to other systems: the SOP class, and whether we are its SCP there.
PASSED_ON = {
    "mpps": (MPPS, False),
    "mpps_notification": (MPPS_NOTIFICATION, True),
    "availability": (INSTANCE_AVAILABILITY, False),
}

# Answers after which a receiver has what it was passed on, by how they begin: success and warnings
# (PS3.7 annex C); local: 0111 of a repetition, Error ID A710 of what has ended there already.
TAKEN_ANSWERS = ("0000", "0001", "0107", "0116", "B", "0111", "A710")

UPS_ACTIONS = {  # PS3.4 Tables CC.2.1-1 to CC.2.3-1: action type, and the classes it is part of
    1: ("change state", frozenset({UPS_PULL})),
    2: ("request cancel", frozenset({UPS_PUSH, UPS_WATCH})),
    3: ("subscribe", frozenset({UPS_WATCH})),
    4: ("unsubscribe", frozenset({UPS_WATCH})),
    5: ("suspend", frozenset({UPS_WATCH})),
}
COMMITMENT_ACTIONS = {  # PS3.4 Table J.3-1
    1: ("request commitment", frozenset({STORAGE_COMMITMENT})),
}
UPS_ENUMERATIONS = {
    "ScheduledProcedureStepPriority": ("HIGH", "MEDIUM", "LOW"),
    "InputReadinessState": ("INCOMPLETE", "UNAVAILABLE", "READY"),
}

TRANSACTION_UID = tag_of("TransactionUID")
REFERENCED_SOP = tag_of("ReferencedSOPSequence")
TIMEZONE_OFFSET = tag_of("TimezoneOffsetFromUTC")
UPS_STATE = tag_of("ProcedureStepState")
PROGRESS_INFORMATION = tag_of("ProcedureStepProgressInformationSequence")
PERFORMED_PROCEDURE = tag_of("UnifiedProcedureStepPerformedProcedureSequence")
LOCAL_SCHEME = "99MINRIS"

# For people who make a workitem: PS3.16 CID 9231 and, under a scheme of our own, what it lacks.
WORKITEM_CODES = {
    code: (scheme, meaning)
    for code, scheme, meaning in body_rows("""
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
# The same context group, for workitems.
UPS_CANCELLATION_REASONS = DISCONTINUATION_REASONS | {
    "110527": "Resource inadequate",
    "110530": "Workitem assignment rejected by assigned resource",
    "110533": "Workitem expired",
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
PREGNANCY_STATUS = {
    1: "not pregnant",
    2: "possibly pregnant",
    3: "definitely pregnant",
    4: "unknown",
}


class Repertoire(NamedTuple):
    """One coded character set of ISO 2022: where it is invoked, its escape, how it is decoded.

    place   G0 (bytes below 80H) or G1 (above)
    escape  the sequence that designates it, without ESC
    width   bytes of a character
    codec   Python's codec for `prefix` and the bytes with their high bit set or, for G0 of one
            byte, as they are
    """

    place: str
    escape: bytes
    width: int
    codec: str
    prefix: bytes = b""

    def decode(self, raw: bytes) -> str:
        """The text of one or more characters. Raises UnicodeDecodeError"""
        if self.place == "G0" and self.width == 2:
            high = (bytes(byte | 0x80 for byte in raw[i : i + 2]) for i in range(0, len(raw), 2))
            return b"".join(self.prefix + pair for pair in high).decode(self.codec)
        return raw.decode(self.codec)

    def encode(self, character: str) -> bytes | None:
        """The bytes of a character, None where this set does not have it."""
        try:
            raw = character.encode(self.codec)
        except UnicodeEncodeError:
            return None
        if not raw.startswith(self.prefix) or len(raw) - len(self.prefix) != self.width:
            return None
        raw = raw.removeprefix(self.prefix)
        if min(raw) < 0xA0:  # ASCII, and the half-width katakana of EUC-JP behind 8EH
            return None
        return bytes(byte & 0x7F for byte in raw) if self.place == "G0" else raw


def repertoire_table(source: str, text: str) -> dict[str, tuple[Repertoire, ...]]:
    """Read `number | place | escape | width | codec | prefix`: the sets by their IR number."""
    table: dict[str, tuple[Repertoire, ...]] = {}
    for number, place, escape, width, codec, prefix in body_rows(text):
        b"".decode(codec)
        found = Repertoire(place, escape.encode(), int(width), codec, bytes.fromhex(prefix))
        table[number] = (*table.get(number, ()), found)
    return table


REPERTOIRES = repertoire_table(
    "PS3.3 Tables C.12-2, C.12-3, C.12-4",
    """
    number | place | escape | width | codec       | prefix
    6      | G0    | (B     | 1     | ascii       |
    100    | G1    | -A     | 1     | iso8859_1   |
    101    | G1    | -B     | 1     | iso8859_2   |
    109    | G1    | -C     | 1     | iso8859_3   |
    110    | G1    | -D     | 1     | iso8859_4   |
    144    | G1    | -L     | 1     | iso8859_5   |
    127    | G1    | -G     | 1     | iso8859_6   |
    126    | G1    | -F     | 1     | iso8859_7   |
    138    | G1    | -H     | 1     | iso8859_8   |
    148    | G1    | -M     | 1     | iso8859_9   |
    203    | G1    | -b     | 1     | iso8859_15  |
    166    | G1    | -T     | 1     | tis_620     |
    13     | G1    | )I     | 1     | shift_jis   |
    13     | G0    | (J     | 1     | ascii       |
    87     | G0    | $B     | 2     | euc_jp      |
    159    | G0    | $(D    | 2     | euc_jp      | 8f
    149    | G1    | $)C    | 2     | euc_kr      |
    58     | G1    | $)A    | 2     | gb2312      |
    """,
)
DESIGNATIONS = {one.escape: one for found in REPERTOIRES.values() for one in found}
ASCII_REPERTOIRE = REPERTOIRES["6"][0]
_ESCAPE = re.compile(rb"\x1b([\x20-\x2f]+[\x30-\x7e]|\$[A-B@])")


CHARACTER_SETS_ALONE = types.MappingProxyType(
    {"ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk"}
)
CHARACTER_SET_NUMBER = re.compile(r"ISO(_IR| 2022 IR) (\d+)")


def character_set_problem(terms: Iterable[str]) -> str:
    """Why these terms are no legal Specific Character Set, or nothing (PS3.3 C.12.1.1.2)."""
    terms = tuple(terms)
    for number, term in enumerate(terms):
        found = CHARACTER_SET_NUMBER.fullmatch(term)
        if term in CHARACTER_SETS_ALONE:
            if len(terms) > 1:
                return Message("{term} stands alone", term=term)
        elif not (found and found[2] in REPERTOIRES) and not (term == "" and number == 0):
            return Message("{term!r} is not a character set known here", term=term)
    return ""


# 3. CONFIG ------------------------------------------------------------------------------------
#
# Every setting is one row of SETTINGS; reading, checking, the printed reference and config.ini
# come from it. An environment variable MINRIS_SECTION_KEY goes before the file.
# For others: SETTINGS, DEVICE_SETTINGS, Config, Device, ConfigError, load_config,
# settings_reference.


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
    table = tuple(Setting(*cells) for cells in body_rows(text))
    for setting in table:
        if setting.kind.partition(" ")[0] not in SETTING_KINDS:
            raise ValueError(f"kind of {setting}")
    if len({setting[:2] for setting in table}) < len(table):
        raise ValueError("a setting stands twice")
    return table


def read_bool(text: str) -> bool:
    """yes or no, as people write it."""
    try:
        return configparser.ConfigParser.BOOLEAN_STATES[text.lower()]
    except KeyError:
        raise ValueError(Message("is neither yes nor no")) from None


def read_int(text: str, low: str, high: str) -> int:
    """A whole number from low to high."""
    if not re.fullmatch(r"-?\d+", text) or not int(low) <= int(text) <= int(high):
        raise ValueError(Message("is not a whole number from {low} to {high}", low=low, high=high))
    return int(text)


def read_optional(text: str, low: str, high: str) -> int | None:
    """A whole number from low to high, or nothing."""
    return read_int(text, low, high) if text else None


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
            raise ValueError(
                Message("{title!r} is not an AE title (1 to 16 ASCII characters)", title=title)
            )
    if not 1 <= len(titles) <= int(most):
        raise ValueError(Message("is not an AE title"))
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


def read_value(text: str, vr: str, longest: str) -> str:
    """A text that fits an attribute of a VR."""
    if len(text) > int(longest) or "\\" in text or not text.isprintable():
        raise ValueError(Message("is longer than {longest} characters", longest=longest))
    if vr == "CS" and not re.fullmatch(r"[A-Z0-9_ ]*", text):
        raise ValueError(Message("has characters other than capitals, digits, space and _"))
    return text


def read_clock(text: str) -> tuple[int, int] | None:
    """Hour and minute, or nothing."""
    found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
    if text and not found:
        raise ValueError("is not a time such as 02:30")
    return (int(found[1]), int(found[2])) if found else None


def read_choice(text: str, *choices: str) -> str:
    """One of a few words, in any case."""
    for choice in choices:
        if text.lower() == choice.lower():
            return choice
    raise ValueError(Message("is not one of {choices}", choices=", ".join(choices)))


def read_states(text: str) -> frozenset[str]:
    """States of a scheduled procedure step, separated by commas."""
    states = frozenset(state.strip().upper() for state in text.split(",") if state.strip())
    if unknown := states.difference(STEP_STATES):
        raise ValueError(f"{', '.join(sorted(unknown))}: not one of {', '.join(STEP_STATES)}")
    return states


def read_character_set(text: str) -> tuple[str, ...]:
    """Terms of Specific Character Set (0008,0005), by backslash; nothing: as asked."""
    terms = tuple(term.strip() for term in text.split("\\")) if text else ()
    if terms and (problem := character_set_problem(terms)):
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
    return parts.geturl().rstrip("/")


def read_evidence(text: str) -> tuple[str, ...]:
    """Kinds of evidence, in their order."""
    found = tuple(one.strip() for one in text.split(",") if one.strip())
    if not found or len(set(found)) < len(found) or not set(found) <= set(EVIDENCE):
        raise ValueError(f"is not some of {', '.join(EVIDENCE)}, each once")
    return found


EVIDENCE = ("archive", "commitment", "availability")


def read_passed_on(text: str) -> frozenset[str]:
    """Kinds of messages that a device is passed on."""
    found = frozenset(one.strip().lower() for one in text.split(",") if one.strip())
    if not found <= PASSED_ON.keys():
        raise ValueError(Message("is not some of {choices}", choices=", ".join(PASSED_ON)))
    return found


def read_origins(text: str) -> tuple[str, ...]:
    """Origins of web pages, such as https://viewer.example, separated by commas."""
    origins = tuple(one.strip().rstrip("/") for one in text.split(",") if one.strip())
    for origin in origins:
        parts = urllib.parse.urlsplit(read_public_url(origin))
        usual = parts.netloc.lower().removesuffix(":443" if parts.scheme == "https" else ":80")
        if origin != f"{parts.scheme}://{usual}" or "@" in usual or not usual.isascii():
            raise ValueError("is not an origin such as https://viewer.example")
    return origins


def read_id_format(text: str, longest: str) -> str:
    """A format with {number} and dates, for example A{year}{month}{day}{number:04}."""
    now = datetime.datetime(2026, 12, 31, 23, 59, 59)
    try:
        sample = format_identifier(text, now, 10_000)
        if sample == format_identifier(text, now, 10_001):
            raise ValueError("has no {number}")
    except (KeyError, IndexError, AttributeError, TypeError):
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
    "titles": lambda text: read_ae_titles(text, "100") if text else (),
    "zone": read_zone,
    "clock": read_clock,
    "value": read_value,
    "choice": read_choice,
    "states": read_states,
    "charset": read_character_set,
    "store": read_store_url,
    "url": read_public_url,
    "origins": read_origins,
    "evidence": read_evidence,
    "passed_on": read_passed_on,
    "ae_or_none": lambda text: read_ae_title(text) if text else "",
    "id": read_id_format,
    "days": lambda text: read_optional(text, "0", "3650"),
    "limit": lambda text: read_optional(text, "1", "1000000"),
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
    dicom | maximum_pending_per_address | 128 | int 1 10000 | of them from one address
    dicom | tls_port | 0 | int 0 65535 | port for associations over TLS (0: none; 2762 is the registered one)
    dicom | tls_certificate | | text | file with our certificate and those above it, PEM
    dicom | tls_key | | text | file with its private key, PEM
    dicom | tls_client_ca | | text | callers must show a certificate of one of the authorities in this file, PEM
    ups | worklist_label | MAIN | value LO 64 | Worklist Label (0074,1202) of workitems created without one
    ups | strict | no | bool | refuse a workitem without its type 2 attributes (0120)
    ups | grant_locks | yes | bool | grant deletion locks; no: subscribers get none (B301)
    ups | restart_receivers | | titles | AE titles told of our restart beside all subscribers, separated by commas
    ups | auto_subscribe_creator | no | bool | subscribe whoever creates a workitem to it
    ups | tell_going_down | yes | bool | tell subscribers when the appliance is stopped
    commitment | evidence | archive | evidence | what proves that an image is safe, in this order, by commas: archive, commitment, availability
    commitment | archive | | ae_or_none | AE title of the archive that is asked; empty: the device whose role is archive
    commitment | answer_minutes | 60 | int 1 1440 | an archive that was passed a request on, for its own commitment, is asked anew after so many minutes
    commitment | look_minutes | 5 | int 0 1440 | the archive is asked every so many minutes for images that are to come (0: never)
    commitment | quiet_minutes | 10 | int 0 1440 | the exam of a machine that does not report has ended when no image has come for so long
    commitment | missing_minutes | 5 | int 0 1440 | an image that the archive does not have is looked for again for so long
    commitment | give_up_hours | 24 | int 1 720 | without evidence, as the archive is down, images are called not safe after so many hours
    commitment | report_hours | 72 | int 1 720 | a result that the machine does not take is given up after so many hours
    commitment | keep_days | 90 | int 1 36500 | results, and what was notified of availability, are kept so many days
    commitment | maximum_instances | 20000 | int 1 1000000 | most images in one request
    web | host | 0.0.0.0 | text | address to listen on
    web | port | 8080 | int 0 65535 | port to listen on (0: any free)
    web | tls_certificate | | text | file with the certificate of the pages, PEM: they are served by https
    web | tls_key | | text | file with its private key, PEM
    web | public_url | | url | address that browsers use, where a proxy stands before this port
    web | anonymous_loopback | no | bool | calls from 127.0.0.1 to /api and /dicom-web need no token
    web | session_hours | 12 | int 1 720 | a login ends after so many hours
    web | login_attempts | 10 | int 3 1000 | wrong passwords from one address or for one user in 15 minutes before both must wait
    web | maximum_body | 16777216 | int 65536 1073741824 | largest request, bytes
    web | request_timeout | 20 | seconds 1 600 | time for a request to come in
    web | maximum_connections_per_address | 128 | int 1 10000 | connections from one address, without WebSockets
    web | maximum_websockets | 1000 | int 1 100000 | WebSockets open at once
    web | requests_per_second | 1000 | int 0 100000 | requests from one address, before it is told to wait (429); 0: no limit
    web | cors_origins | | origins | sites whose pages may call /api and /dicom-web with a token, https://viewer.example and so on
    store | url | sqlite:///minris.db | store | where everything is kept; a relative path counts from config.ini
    clinic | name | minris | text | shown on the pages
    clinic | timezone | | zone | time zone of the clinic, such as Asia/Shanghai; empty: that of the machine
    clinic | language | en | choice en zh-CN | language of the pages where the browser asks for neither
    clinic | patient_id_format | P{number:06} | id 64 | Patient ID made when none is given
    clinic | accession_number_format | {yy}{month}{day}{number:04} | id 16 | Accession Number made when none is given
    clinic | requested_procedure_id_format | R{yy}{month}{day}{number:04} | id 16 | Requested Procedure ID made when none is given
    clinic | scheduled_procedure_step_id_format | S{yy}{month}{day}{number:04} | id 16 | Scheduled Procedure Step ID made when none is given
    housekeeping | backup_time | 02:30 | clock | time of the nightly backup, made up for at the next start if it was missed; empty: none
    housekeeping | backup_folder | backups | text | where backups go; a relative path counts from config.ini
    housekeeping | backups_kept | 14 | int 1 1000 | as many backups are kept, the oldest goes
    housekeeping | keep_queries_days | 7 | int 1 3650 | worklist queries are remembered for so many days
    housekeeping | keep_steps_days | 0 | int 0 36500 | steps that ended so many days ago are erased, with what was performed for them (0: never)
    housekeeping | keep_patients_days | 0 | int 0 36500 | patients without any step, unchanged for so many days, are erased (0: never)
    housekeeping | keep_workitems_days | 7 | int 1 36500 | a workitem that has ended stays so many days at least, and as long as a deletion lock
    housekeeping | keep_workitem_history_days | 0 | int 0 36500 | events of purged workitems are erased after so many days (0: never)
    housekeeping | keep_deliveries_days | 30 | int 1 3650 | who was told of an event, or passed on what, and when, is remembered for so many days
    housekeeping | stuck_lock_hours | 24 | int 1 8760 | a deletion lock on what ended so many hours ago is listed as stuck
    housekeeping | stuck_workitem_hours | 8 | int 1 8760 | a workitem in progress without news for so many hours is listed as stuck
    housekeeping | stuck_exam_hours | 4 | int 1 8760 | an exam that has begun, without news for so many hours, is listed as stuck
    housekeeping | stuck_events_minutes | 10 | int 1 10080 | events, and what is passed on, that could not be delivered for so many minutes are listed as stuck
    housekeeping | give_up_events_hours | 72 | int 1 8760 | an event, or what is passed on, that cannot be delivered is given up after so many hours
    housekeeping | release_locks_days | 0 | int 0 3650 | deletion locks on ended workitems are released after so many days (0: only by a person)
    housekeeping | cancel_silent_workitems_hours | 0 | int 0 87600 | workitems in progress without news for so many hours are canceled (0: only by a person)
    housekeeping | cancel_expired_workitems | no | bool | scheduled workitems past their expiration are canceled
    housekeeping | keep_audit_days | 0 | int 0 36500 | audit lines are erased after so many days (0: never)
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
    device | modality | | value CS 16 | CT, MR, US, DX ...: what it is offered for on the registration page
    device | station_name | | value SH 16 | Scheduled Station Name (0040,0010) of its steps
    device | location | | value SH 16 | Scheduled Procedure Step Location (0040,0011) of its steps
    device | character_set | | charset | set of answers to it and of its texts without one; empty: as its query says, else UTF-8
    device | fallback_character_set | ISO_IR 192 | charset | set of an answer that character_set cannot carry
    device | role | modality | choice modality archive workstation | what it is
    device | own_steps_only | no | bool | show it only steps scheduled for its own AE titles, whatever it asks for
    device | days_back | | days | show it no step from before so many days ago; empty: no limit
    device | days_ahead | | days | show it no step from more than so many days ahead; empty: no limit
    device | answer_limit | | limit | most answers to one query of it; empty: as [dicom] answer_limit
    device | empty_sequences | yes | bool | answer sequences without items; no: leave them out
    device | name_groups | all | choice all alphabetic ideographic | what it is sent of a name: all groups, or one as the only one
    device | relational_queries | no | bool | an archive that finds images by their own UIDs alone
    device | mpps | auto | choice auto yes no | whether it reports performed steps; auto: if it ever has; else its exams end by what the archive tells
    device | report_on_same_association | no | bool | tell it the result of storage commitment on its own association first, while that is open
    device | passed_on | | passed_on | what it is passed on, separated by commas: mpps (performed steps), mpps_notification, availability
    device | events | as_subscribed | choice as_subscribed dimse websocket both | how it is told of workitems: as it has subscribed, or whoever subscribed it
    device | events_without_role | no | bool | send it UPS events though it does not take us as SCP
    device | combined_pdvs | yes | bool | send command and data set in one PDU
    """)


@dataclasses.dataclass(frozen=True)
class Config:
    """The checked settings: config.dicom.port, and one mapping of settings for each device.

    sources  by section and key where a setting comes from, if not from the defaults
    """

    dicom: types.SimpleNamespace
    ups: types.SimpleNamespace
    commitment: types.SimpleNamespace
    web: types.SimpleNamespace
    store: types.SimpleNamespace
    clinic: types.SimpleNamespace
    housekeeping: types.SimpleNamespace
    log: types.SimpleNamespace
    devices: Mapping[str, types.SimpleNamespace]
    path: Path | None = None
    directory: Path = Path()
    sources: Mapping[tuple[str, str], str] = dataclasses.field(default_factory=dict)

    @property
    def zone(self) -> datetime.tzinfo | None:
        """The zone of the clinic, None for that of the machine."""
        return zoneinfo.ZoneInfo(self.clinic.timezone) if self.clinic.timezone else None

    @property
    def backup_folder(self) -> Path:
        """Where nightly backups go, absolute."""
        return (self.directory / self.housekeeping.backup_folder).absolute()

    @property
    def store_path(self) -> Path:
        """The file of the store, absolute."""
        return (self.directory / self.store.url.removeprefix("sqlite:///")).absolute()


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
    own_steps_only: bool = False
    days_back: int | None = None
    days_ahead: int | None = None
    answer_limit: int | None = None
    empty_sequences: bool = True
    name_groups: str = "all"
    combined_pdvs: bool = True
    relational_queries: bool = False
    events: str = "as_subscribed"
    events_without_role: bool = False
    mpps: str = "auto"
    report_on_same_association: bool = False
    passed_on: frozenset[str] = frozenset()
    from_file: bool = True

    @property
    def ae_title(self) -> str:
        """The title it is scheduled under."""
        return self.ae_titles[0]

    @classmethod
    def from_settings(
        cls, name: str, settings: types.SimpleNamespace, from_file: bool = True
    ) -> "Device":
        """A device as config.ini or the page of devices describes it."""
        given = dict(vars(settings))
        titles = given.pop("ae_title")
        return cls(name=name, ae_titles=titles, from_file=from_file, **given)


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
            where = {"section": name, "key": setting.key, "value": repr(text or "nothing")}
            problems.append(
                Message("[{section}] {key}: {value} {words}", **where, words=error.args[0])
            )
    for key in given:
        if key not in known:
            where = {"section": name, "key": key, "value": repr(given[key])}
            words = Message("there is no such setting")
            problems.append(Message("[{section}] {key}: {words}", **where, words=words))
    return section


def read_ini(path: Path) -> configparser.ConfigParser:
    """The file as it stands; ConfigError where it is not an ini file in UTF-8."""
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text("utf-8-sig"), str(path))
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        raise ConfigError([f"{path}: {' '.join(str(error).split())}"]) from None
    return parser


def check_files(sections: Mapping[str, types.SimpleNamespace], directory: Path) -> Iterator[str]:
    """A line for each file of TLS that is named and not there, or needed and not named."""
    for name in ("dicom", "web"):
        section = sections[name]
        for key in ("tls_certificate", "tls_key", "tls_client_ca"):
            if (text := getattr(section, key, "")) and not (directory / text).is_file():
                yield f"[{name}] {key}: there is no file {directory / text}"
        if getattr(section, "tls_key", "") and not getattr(section, "tls_certificate", ""):
            yield f"[{name}] tls_certificate: is needed with tls_key"
    if getattr(sections["dicom"], "tls_port", 0) and not getattr(
        sections["dicom"], "tls_certificate", ""
    ):
        yield "[dicom] tls_certificate: is needed with tls_port"


def check_devices(devices: Mapping[str, types.SimpleNamespace]) -> Iterator[str]:
    """A line for each AE title that two devices claim, and for an address that cannot be checked."""
    owners: dict[str, str] = {}
    for name, device in devices.items():
        for title in getattr(device, "ae_title", ()):
            other = owners.setdefault(title, name)
            if other != name:
                yield f"[device {name}] ae_title: {title!r} belongs to [device {other}] already"
        for key in ("check_address", "passed_on"):
            if getattr(device, key, False) and not getattr(device, "host", ""):
                yield f"[device {name}] {key}: needs host"


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
    sources = {(name, key): "config.ini" for name in given for key in given[name]}
    for setting in SETTINGS:
        variable = f"MINRIS_{setting.section}_{setting.key}".upper()
        if variable in environ:
            given.setdefault(setting.section, {})[setting.key] = environ[variable]
            sources[setting.section, setting.key] = variable
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
    directory = path.absolute().parent if path else Path.cwd()
    problems.extend(check_files(sections, directory))
    if problems:
        raise ConfigError(problems)
    return Config(**sections, devices=devices, path=path, directory=directory, sources=sources)


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
_LENGTH = struct.Struct("<I")
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_KNOWN_VRS = _LONG_VRS | frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
)
_TEXT_VRS = frozenset(b"SH LO UC ST LT UT PN".split())  # PS3.5 6.1.2.3: (0008,0005) applies
_MAY_BE_TEXT = _TEXT_VRS | {b"SQ", b"UN"}
_ONE_VALUE_VRS = frozenset(b"ST LT UT UR".split())
_LED_BY_SPACES = _ONE_VALUE_VRS | {b"UC"}  # PS3.5 Table 6.2-1: where leading spaces mean something
_SPACE_PADDED = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UC UR UT".split())
SPECIFIC_CHARACTER_SET = 0x00080005


def kind_of_vr(vr: bytes) -> str:
    """`SQ`, `text`, `number` or `bytes`: what a value of a VR is, whatever its length."""
    if vr == b"SQ":
        return "SQ"
    if vr in _SPACE_PADDED or vr == b"UI":
        return "text"
    return "number" if vr in b"US SS UL SL FL FD UV SV".split() else "bytes"


def allows(tag: int, vr: bytes) -> bool:
    """Whether the dictionary has a VR for an attribute; any where it does not know the attribute."""
    known = vrs_of(tag)
    return known == "UN" or vr.decode() in known


class Malformed(ValueError):
    """Bytes that are no data set, or one past a limit."""


class TooManyElements(Malformed):
    """A data set with more elements than are taken."""


class CharacterSet:
    """Specific Character Set (0008,0005): decodes and encodes text values.

    terms   its defined terms; () is the default repertoire, ASCII
    Source  PS3.5 6.1; PS3.3 C.12.1.1.2
    """

    ALONE = CHARACTER_SETS_ALONE
    NUMBER = CHARACTER_SET_NUMBER

    def __init__(self, terms: tuple[str, ...] = ()) -> None:
        self.terms = terms
        self.codec = self.ALONE.get(terms[0]) if terms else "ascii"
        self.sets: list[Repertoire] = [ASCII_REPERTOIRE]
        if not self.codec:
            for term in terms:
                self.sets += REPERTOIRES[self.NUMBER.fullmatch(term)[2]] if term else ()
        self.first = self._first() if not self.codec else (ASCII_REPERTOIRE, None)
        g1 = self.first[1]
        if not self.codec and len(terms) == 1 and g1 and g1.width == 1 and g1.codec != "shift_jis":
            self.codec = g1.codec  # without extensions Python's codec does it all at once

    def _first(self) -> tuple[Repertoire, Repertoire | None]:
        """G0 and G1 as the first term has them."""
        number = self.NUMBER.fullmatch(self.terms[0])[2] if self.terms[0] else "6"
        found = {one.place: one for one in REPERTOIRES[number] if one.width == 1}
        return found.get("G0", ASCII_REPERTOIRE), found.get("G1")

    @staticmethod
    def problem_of(terms: Iterable[str]) -> str:
        """Why these terms are no legal character set, or nothing."""
        return character_set_problem(terms)

    def delimiters(self, vr: bytes) -> bytes:
        """Bytes behind which the first term's sets are active again (PS3.5 6.1.2.5.3)."""
        return b"\r\n\f\t" + (b"" if vr in _ONE_VALUE_VRS else b"\\^=" if vr == b"PN" else b"\\")

    def decode(self, raw: bytes, vr: bytes = b"LO") -> str:
        """The text of a value; UnicodeDecodeError where the bytes are not of this set."""
        if self.codec:
            text = raw.decode(self.codec)
            if self.codec not in self.ALONE.values() and re.search(r"[\x80-\x9f]", text):
                raise UnicodeDecodeError(self.codec, raw, 0, 1, "a control character of C1")
            if "\x1b" in text and self.codec not in self.ALONE.values():
                raise UnicodeDecodeError(self.codec, raw, 0, 1, "an escape sequence")
            return text
        return self._decode_extended(raw, self.delimiters(vr))

    def _decode_extended(self, raw: bytes, delimiters: bytes) -> str:
        g0, g1 = self.first
        parts, pos = [], 0
        while pos < len(raw):
            byte = raw[pos]
            if byte == 0x1B:
                found = _ESCAPE.match(raw, pos)
                one = DESIGNATIONS.get(found[1]) if found else None
                if not one:
                    raise UnicodeDecodeError("iso2022", raw, pos, pos + 1, "an unknown escape")
                g0, g1 = (one, g1) if one.place == "G0" else (g0, one)
                pos = found.end()
                continue
            active = g1 if byte >= 0x80 else g0
            width = 1 if byte < 0x21 or not active else active.width
            if byte >= 0x80 and (byte < 0xA0 or not active):
                raise UnicodeDecodeError("iso2022", raw, pos, pos + 1, "no set for it is active")
            piece = raw[pos : pos + width]
            parts.append(active.decode(piece) if byte >= 0x21 else chr(byte))
            pos += width
            if width == 1 and byte in delimiters:
                g0, g1 = self.first
        return "".join(parts)

    def loose(self) -> Iterator["CharacterSet"]:
        """The same with its one set of two bytes active from the start: its escapes are often left out."""
        wide = [one for one in self.sets if one.place == "G1" and one.width == 2]
        if not self.codec and len(wide) == 1 and not self.first[1]:
            found = CharacterSet(self.terms)
            found.first = self.first[0], wide[0]
            yield found

    def encode(self, text: str, vr: bytes = b"LO") -> bytes:
        """The bytes of a text; UnicodeEncodeError where this set cannot carry it."""
        if self.codec:
            return text.encode(self.codec)
        delimiters = self.delimiters(vr)
        g0, g1 = first0, first1 = self.first
        out = bytearray()
        for character in text:
            if character.isascii():
                if g0.width == 2:
                    out += b"\x1b" + first0.escape
                    g0 = first0
                out += character.encode()
                if character.encode() in delimiters:
                    g0, g1 = first0, first1
                continue
            one, raw = self._find(character, g0, g1, text)
            if one not in (g0, g1):
                out += b"\x1b" + one.escape
                g0, g1 = (one, g1) if one.place == "G0" else (g0, one)
            out += raw
        return bytes(out) + (b"\x1b" + first0.escape if g0.width == 2 else b"")

    def _find(
        self, character: str, g0: Repertoire, g1: Repertoire | None, text: str
    ) -> tuple[Repertoire, bytes]:
        """The set to write a character in: one that is active, else the first that has it."""
        for one in (*filter(None, (g0, g1)), *self.sets):
            if raw := one.encode(character):
                return one, raw
        at = text.index(character)
        raise UnicodeEncodeError("iso2022", text, at, at + 1, f"not in {self}")

    def carries(self, text: str) -> bool:
        """Whether a text can be encoded in it."""
        try:
            self.encode(text)
        except UnicodeEncodeError:
            return False
        return True

    def __bytes__(self) -> bytes:
        """The value of (0008,0005)."""
        return "\\".join(self.terms).encode("ascii", "replace")

    def __str__(self) -> str:
        return "\\".join(self.terms) or "ISO_IR 6"


@functools.lru_cache(256)
def character_set(terms: tuple[str, ...]) -> CharacterSet | None:
    """The CharacterSet of some terms; None where one is not known.

    A set that stands alone does so although others are named behind it.
    """
    if terms and terms[0] in CharacterSet.ALONE:
        terms = terms[:1]
    return None if CharacterSet.problem_of(terms) else CharacterSet(terms)


ASCII = CharacterSet()
UTF_8 = CharacterSet(("ISO_IR 192",))
ISO_2022 = CharacterSet(("", "ISO 2022 IR 6"))


class DecodedText(NamedTuple):
    """A text, and how sure it is: `declared`, `recovered` in another set, or `damaged`."""

    text: str
    how: str


def is_utf_8_of_hanzi(raw: bytes) -> bool:
    """Whether bytes are UTF-8 of Chinese: text in GB18030 hardly ever has that form by chance."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return False
    high = [c for c in text if not c.isascii()]
    return bool(high) and all("\u3000" <= c <= "\u9fff" or "\uff00" <= c <= "\uffef" for c in high)


def looks_like_gb18030(raw: bytes) -> bool:
    """Whether pairs of common hanzi outnumber single high bytes, as Western texts have them."""
    pairs = re.findall(rb"[\xb0-\xf7][\xa1-\xfe]", raw)
    single = re.findall(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])", raw)
    return len(pairs) > len(single)


def decode_text(
    raw: bytes, charset: CharacterSet | None, vr: bytes, mark: str = "\\"
) -> DecodedText:
    """The text of a value, recovered where the bytes contradict the declared set.

    Tried behind it: UTF-8, whose form hardly comes about by chance; GB18030 where the set declared
    is multi-byte too, or the bytes are such as no ISO 8859 text has; and ISO 8859-1, which is a
    guess. What none of them has becomes `mark` and nnn, as PS3.5 6.1.2.3 wants it shown.
    """
    multi_byte = charset and charset.codec in ("utf-8", "gb18030", "gbk")
    if b"\x1b" in raw and (multi_byte or not charset):  # its escapes say what it is
        with contextlib.suppress(UnicodeDecodeError):
            return DecodedText(ISO_2022.decode(raw, vr), "recovered")
    if charset and charset.codec in ("gb18030", "gbk") and is_utf_8_of_hanzi(raw):
        return DecodedText(raw.decode(), "recovered")
    if charset:
        with contextlib.suppress(UnicodeDecodeError):
            return DecodedText(charset.decode(raw, vr), "declared")
        for one in charset.loose():
            with contextlib.suppress(UnicodeDecodeError):
                return DecodedText(one.decode(raw, vr), "recovered")
    if b"\x1b" in raw:
        with contextlib.suppress(UnicodeDecodeError):
            return DecodedText(ISO_2022.decode(raw, vr), "recovered")
    with contextlib.suppress(UnicodeDecodeError):
        if not re.search(r"[\x80-\x9f\x1b]", text := raw.decode()):
            return DecodedText(text, "recovered")
    if multi_byte or re.search(rb"[\x80-\x9f]", raw):
        with contextlib.suppress(UnicodeDecodeError):
            if looks_like_gb18030(raw) and not re.search(
                r"[\x80-\x9f\x1b]", text := raw.decode("gb18030")
            ):
                return DecodedText(text, "recovered")
    text = re.sub(r"[\x80-\x9f\x1b]", lambda c: f"{mark}{ord(c[0]):03o}", raw.decode("latin-1"))
    return DecodedText(text, "damaged")


def pad(value: bytes, vr: bytes) -> bytes:
    """The value at even length."""
    if len(value) & 1:
        return value + (b" " if vr in _SPACE_PADDED else b"\0")
    return value


def encode_element(tag: int, vr: bytes, value: bytes) -> bytes:
    """One element in Explicit VR Little Endian; the value is padded to even length."""
    value = pad(value, vr)
    if vr in _LONG_VRS:
        return (
            _HEADER.pack(tag >> 16, tag & 0xFFFF, vr, 0) + len(value).to_bytes(4, "little") + value
        )
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
        self.asked: tuple[str, ...] | None = None
        self.recovered: list[int] = []
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
                raise TooManyElements(f"more than {self.limits.elements} elements")
            element, pos = self.element(tag, vr, start, length, end, explicit, charset, depth)
            if tag == SPECIFIC_CHARACTER_SET:
                charset = self.declared(element, charset, depth)
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
        right = vr if allows(tag, vr) else vr_of(tag).encode()
        if kind_of_vr(vr) != kind_of_vr(right):
            raise Malformed(f"{attribute_name(tag)} is {vr.decode()}, not {right.decode()}")
        if length == _UNDEFINED:
            if vr not in (b"SQ", b"UN"):
                raise Malformed(f"{attribute_name(tag)} has no length")
            return self.sequence(tag, start, end, explicit, charset, depth, delimited=True)
        if start + length > end:
            raise Malformed(f"{attribute_name(tag)} is longer than what holds it")
        if vr == b"SQ":
            return self.sequence(tag, start, start + length, explicit, charset, depth)
        value = self.data[start : start + length]
        if right in _TEXT_VRS and not (value.isascii() and b"\x1b" not in value):
            value = self.text(tag, right, value, charset)
            if len(value) > 0xFFFE and right not in _LONG_VRS:
                raise Malformed(f"{attribute_name(tag)} is longer than its VR allows")
        if right != vr and vr in _BINARY_NUMBERS:
            value = repacked(tag, vr, value, right)
        return encode_element(tag, right, value), start + length

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
                raise TooManyElements(f"more than {self.limits.elements} elements")
        if delimited:
            raise Malformed(f"{attribute_name(tag)} has no end")
        return encode_items(tag, items), pos

    def text(self, tag: int, vr: bytes, value: bytes, charset: CharacterSet | None) -> bytes:
        """A text value in UTF-8; notes where it had to be recovered."""
        # a backslash in a text of several values would make two of one
        text, how = decode_text(value, charset, vr, "\\" if vr in _ONE_VALUE_VRS else "\ufffd")
        if how != "declared":
            (self.recovered if how == "recovered" else self.damaged).append(tag)
        return text.rstrip(" ").encode()

    def declared(
        self, element: bytes, outer: CharacterSet | None, depth: int
    ) -> CharacterSet | None:
        """The set that (0008,0005) declares; the outer one where it is empty, None if unknown."""
        value = element[8:].decode("ascii", "replace")
        terms = tuple(term.strip(" \0") for term in value.split("\\"))
        if depth == 1:
            self.asked = terms if any(terms) else ()
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
    return recode_noting(data, explicit, charset, limits).data


class Recoded(NamedTuple):
    """A peer's data set in the stored form, and what became of its texts.

    asked      the terms of (0008,0005) at its top, () where it is empty, None where it is absent
    recovered  tags of texts that the declared set was contradicted by, read in another
    damaged    tags of texts that could only be guessed at
    """

    data: bytes
    asked: tuple[str, ...] | None
    recovered: tuple[int, ...]
    damaged: tuple[int, ...]


def recode_noting(
    data: bytes, explicit: bool, charset: CharacterSet = ASCII, limits: Limits = Limits()
) -> Recoded:
    """As `recode`, with what was noted on the way."""
    recoder = _Recoder(data, limits)
    stored, _ = recoder.elements(0, len(data), explicit, charset, 1)
    recovered, damaged = tuple(recoder.recovered), tuple(recoder.damaged)
    return Recoded(stored, recoder.asked, recovered, damaged)


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
        text = self.data[start:end].decode("utf-8", "replace").rstrip(" \0")
        return text if vr in _LED_BY_SPACES else text.lstrip(" ")

    def get(self, keyword: str) -> str:
        """The text of a keyword, empty where there is none."""
        return self.text(tag_of(keyword))

    def values(self, tag: int) -> list[str]:
        """Each value as text, without padding; [] where there is none."""
        text = self.text(tag)
        strip = str.rstrip if self.found.get(tag, (b"",))[0] == b"UC" else str.strip
        return [strip(value, " ") for value in text.split("\\")] if text else []

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


def text_elements(**texts: str) -> ElementIndex:
    """A data set of text elements by keyword; those without a text are left out."""
    elements = {tag_of(k): encode_text(k, v) for k, v in texts.items() if v}
    return ElementIndex(b"".join(_by_tag(elements)))


def code_item(value: str, meaning: str, scheme: str = "DCM") -> bytes:
    """An item of a code sequence (PS3.3 Table 8.8-1)."""
    kind = "CodeValue" if len(value) <= 16 else "LongCodeValue"
    code = {kind: value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning[:64]}
    return bytes(text_elements(**code))


def workitem_code(code: str) -> bytes:
    """An item with a code of WORKITEM_CODES."""
    scheme, meaning = WORKITEM_CODES[code]
    return code_item(code, meaning, scheme)


def cancellation_reason(remark: str, code: str) -> ElementIndex:
    """Why something is cancelled: words, and a key of UPS_CANCELLATION_REASONS. Refuses 0106."""
    if code not in UPS_CANCELLATION_REASONS:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such reason"))
    item = code_item(code, UPS_CANCELLATION_REASONS[code])
    codes = encode_items(tag_of("ProcedureStepDiscontinuationReasonCodeSequence"), [item])
    texts = text_elements(ReasonForCancellation=remark.strip()) if remark.strip() else EMPTY
    return ElementIndex(well_formed(texts.merged(ElementIndex(codes))))


def well_formed(data: bytes) -> bytes:
    """What was made of what a person typed. Refuses 0106 where a value is not as its VR wants."""
    if problems := list(value_problems(ElementIndex(data))):
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
    return data


_BINARY_NUMBERS = {
    b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d", b"UV": "Q", b"SV": "q",
}  # fmt: skip
_BINARY_VRS = frozenset(_BINARY_NUMBERS) | frozenset(b"AT OB OD OF OL OV OW SQ UN".split())


def unpack_numbers(vr: bytes, value: bytes) -> tuple[float, ...]:
    """The numbers of a binary value; bytes left over are ignored."""
    code = _BINARY_NUMBERS[vr]
    count = len(value) // struct.calcsize(code)
    return struct.unpack_from(f"<{count}{code}", value)


def repacked(tag: int, vr: bytes, value: bytes, right: bytes) -> bytes:
    """Numbers of one binary VR in another. Raises Malformed"""
    numbers, code = unpack_numbers(vr, value), _BINARY_NUMBERS[right]
    try:
        return struct.pack(f"<{len(numbers)}{code}", *numbers)
    except (struct.error, OverflowError):
        raise Malformed(f"{attribute_name(tag)} is {vr.decode()}, not {right.decode()}") from None


# What a value of a VR may be. Source: PS3.5 Table 6.2-1.
VALUE_LENGTHS = {
    "AE": 16, "AS": 4, "CS": 16, "DA": 8, "DS": 16, "DT": 26, "IS": 12, "LO": 64, "LT": 10240,
    "SH": 16, "ST": 1024, "TM": 16, "UI": 64,
}  # fmt: skip
VALUE_PATTERNS = {
    "AE": (re.compile(r"[ -\[\]-~]*", re.A), "has characters that an AE title may not have"),
    "AS": (re.compile(r"\d{3}[DWMY]", re.A), "is not an age such as 042Y"),
    "CS": (re.compile(r"[A-Z0-9_ ]*", re.A), "has characters other than capitals, digits, space and _"),
    "DA": (re.compile(r"\d{8}", re.A), "is not a date"),
    "DS": (re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.A), "is not a number"),
    "DT": (re.compile(r"\d{4}(\d\d){0,5}(\.\d{1,6})?([+-]\d{4})?", re.A), "is not a date and time"),
    "IS": (re.compile(r"[+-]?\d+", re.A), "is not a whole number"),
    "TM": (re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d|60)?(?<=\d{6})(\.\d{1,6})?|[0-5]\d)?", re.A), "is not a time"),
    "UI": (re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))*", re.A), "is not a UID"),
}  # fmt: skip


def is_date(text: str) -> bool:
    """Whether eight digits are a day of the calendar."""
    try:
        datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return False
    return len(text) == 8 and text.isdigit()


def is_value(vr: str, pattern: re.Pattern[str] | None, text: str) -> bool:
    """Whether a text has the form of its VR, and says a day, a time or a number that there is."""
    if pattern and not pattern.fullmatch(text):
        return False
    if vr == "DA":
        return is_date(text)
    if vr == "IS":
        return -(2**31) <= int(text) < 2**31
    if vr == "DT":
        digits = re.match(r"\d*", text)[0]
        day = digits[:8] + "0101"[len(digits[:8]) - 4 :] if len(digits) < 8 else digits[:8]
        hours, rest = digits[8:10], (digits[10:12], digits[12:14])
        return is_date(day) and (hours or "0") < "24" and all((one or "0") < "60" for one in rest)
    return True


def value_problem(vr: str, text: str) -> Message | None:
    """What is wrong with one value of a VR, None where nothing is (PS3.5 Table 6.2-1)."""
    pattern, words = VALUE_PATTERNS.get(vr, (None, ""))
    if not is_value(vr, pattern, text):
        return Message("{value} " + words, value=text)
    longest = VALUE_LENGTHS.get(vr)
    if longest and len(text) > longest:
        return Message(
            "{value} is longer than {longest} characters", value=text[:80], longest=longest
        )
    groups = text.split("=")
    if vr == "PN" and (len(groups) > 3 or any(group.count("^") > 4 for group in groups)):
        return Message("{value} has more parts than a name", value=text[:80])
    if vr == "PN" and any(len(group) > 64 for group in groups):
        return Message("{value} is longer than {longest} characters", value=text[:80], longest=64)
    control = (
        r"[\0-\x08\x0b\x0e-\x1a\x1c-\x1f]" if vr in ("LT", "ST", "UT") else r"[\0-\x1a\x1c-\x1f]"
    )
    if re.search(control, text):
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
            if (
                len(texts) > 1
                and datadict.dictionary_has_tag(tag)
                and datadict.dictionary_VM(tag) == "1"
            ):
                yield Problem(tag, Message("has more than one value"))
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
            if kind == "1" or (kind == "2" and not lenient):
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


def with_empty(data: bytes, table: AttributeTable, column: str) -> bytes:
    """A data set with the type 2 attributes of a column that it lacks, empty."""
    index = ElementIndex(data)
    absent = {
        attribute.tag: encode_element(attribute.tag, attribute.vr.encode(), b"")
        for attribute in table.children()
        if attribute.cells[column].startswith("2/") and attribute.tag not in index
    }
    return index.merged(ElementIndex(b"".join(_by_tag(absent))))


def selected_attributes(
    index: ElementIndex, tags: Iterable[int], table: AttributeTable
) -> tuple[Status, bytes]:
    """What N-GET answers of a data set: the attributes asked for, or all; 0001 where one is not kept.

    tags  Attribute Identifier List (0000,1005), top level
    """
    tags = list(tags)
    wanted = [tag for tag in tags if tag & 0xFFFF and tag != SPECIFIC_CHARACTER_SET]
    if not tags:
        return Status.SUCCESS, bytes(index)
    parts, missing = {}, False
    for tag in wanted:
        attribute = table.get((tag,))
        if tag in index:
            parts[tag] = index.element(tag)
        elif attribute and attribute.cells["get"] == "3/2":
            parts[tag] = encode_element(tag, attribute.vr.encode(), b"")
        else:
            missing = True
    status = Status.OPTIONAL_ATTRIBUTES_NOT_SUPPORTED if missing else Status.SUCCESS
    return status, b"".join(_by_tag(parts))


# Searching. A query is compiled once into a Search: tests by tag, and the shape of the answer.
# Source: PS3.4 C.2.2.2 and K.2.2.

Test = Callable[[bytes], bool]
_WILDCARD_VRS = frozenset(b"AE CS LO LT PN SH ST UC UR UT".split())  # PS3.4 C.2.2.2.4


def _refuse_key(tag: int, words: str) -> Refusal:
    return Refusal(Status.IDENTIFIER_DOES_NOT_MATCH, problems=[Problem(tag, Message(words))])


class Wildcard:
    """A pattern: `*` for any run, `?` for exactly one character, anything else for itself.

    Pieces between stars are looked for from left to right, so that no key takes long.
    """

    def __init__(self, text: str) -> None:
        self.pieces = [
            re.compile("".join("." if c == "?" else re.escape(c) for c in piece), re.S)
            for piece in text.split("*")
        ]
        self.lengths = [len(piece) for piece in text.split("*")]

    def fullmatch(self, text: str) -> bool:
        """Whether the whole text is as the pattern says."""
        first, *rest = self.pieces
        if not rest:
            return first.fullmatch(text) is not None
        *middle, last = rest
        found = first.match(text)
        if not found:
            return False
        at = found.end()
        for piece in middle:
            found = piece.search(text, at)
            if not found:
                return False
            at = found.end()
        start = len(text) - self.lengths[-1]
        return start >= at and last.fullmatch(text, start) is not None


def plain(text: str) -> str:
    """Lower case without accents and tones; the letter behind a mark stays."""
    if text.isascii():
        return text.casefold()
    decomposed = unicodedata.normalize("NFKD", text)
    bare = "".join(c for c in decomposed if not "\u0300" <= c <= "\u036f")
    return unicodedata.normalize("NFC", bare).casefold()


def name_key(name: str) -> str:
    """A name as it is looked for: each group in plain letters and digits, run together.

    ü is written lü, lv, lyu or lu in pinyin; all are lu here, and likewise nu.
    """
    groups = []
    for group in name.split("="):
        letters = "".join(c for c in plain(group) if c.isalnum())
        groups.append(re.sub("([ln])(yu|v)", r"\1u", letters))
    return "=".join(groups)


def initials(name: str) -> str:
    """The initials of a name's Latin group, by words and capitals within them: wxd of Wang^XiaoDong."""
    latin = name.split("=")[0]
    words = re.findall("[^\\W\\d_]+", latin)
    parts = [part for word in words for part in re.findall("[A-Z][^A-Z]*|[^A-Z]+|[A-Z]+", word)]
    shouted = latin.isupper()
    return "".join(plain(part[0]) for part in (words if shouted else parts))


# GB 11643: weights of the first 17 digits of a resident's number, and the check character by the sum.
_RESIDENT_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_RESIDENT_CHECKS = "10X98765432"


def resident_number(text: str) -> tuple[str, str] | None:
    """Birth date (DA) and sex of a Chinese resident's identity number; None for what is none."""
    number = text.strip().upper()
    if not re.fullmatch("[0-9]{17}[0-9X]", number):
        return None
    total = sum(int(c) * weight for c, weight in zip(number[:17], _RESIDENT_WEIGHTS, strict=True))
    if number[17] != _RESIDENT_CHECKS[total % 11] or not is_date(number[6:14]):
        return None
    return number[6:14], "M" if int(number[16]) % 2 else "F"


def shown_name(name: str) -> str:
    """A PN value as people read it: 王小东 Wang XiaoDong."""
    groups = [group.replace("^", " ").strip() for group in name.split("=")]
    latin, ideographic = groups[0], groups[1] if len(groups) > 1 else ""
    return " ".join(filter(None, (ideographic.replace(" ", ""), " ".join(latin.split()))))


def masked_name(name: str) -> str:
    """A PN value for a screen that others see: 王*东, W*** X."""
    groups = [group.split("^") for group in name.split("=")]
    ideographic = "".join(groups[1]).replace(" ", "") if len(groups) > 1 else ""
    if len(ideographic) > 1:
        return ideographic[0] + "*" * max(1, len(ideographic) - 2) + ideographic[2:][-1:]
    family, given = (groups[0] + [""])[:2]
    masked = f"{family[:1]}***" if family else ""
    return f"{masked} {given[:1]}".strip()


def shown_date(value: str) -> str:
    """A DA value as 2026-07-05."""
    return f"{value[:4]}-{value[4:6]}-{value[6:8]}" if len(value) >= 8 else value


def loose_name_test(text: str) -> Callable[[str], bool]:
    """A test of a Chinese name in any spelling: with and without spaces, tones and carets."""
    if "=" in text or "?" in text:
        return lambda name: False
    parts = [name_key(part) for part in text.split("*")]
    if not any(parts):
        return lambda name: False
    pattern = Wildcard("*".join(parts))
    return lambda name: any(map(pattern.fullmatch, filter(None, name_key(name).split("="))))


def name_groups(text: str) -> list[str]:
    """The component groups of a person name, in lower case, empty components at the end gone."""
    return [plain(group).strip(" ").rstrip("^ ") for group in text.split("=")]


def _name_patterns(group: str) -> list[Wildcard]:
    """The patterns of one group of a key: SMITH^* is for SMITH too; none where all will do."""
    if not group.strip("*"):
        return []
    found = [group]
    while (shorter := re.sub(r"\^\*?$", "", found[-1])) != found[-1]:
        found.append(shorter)
    return [Wildcard(one) for one in found if one]


def name_test(text: str) -> Test:
    """A key of VR PN: any case, accents left out; without `=` tried against each group.

    A name with an ideographic group is found in any spelling of its Latin one.
    Source: PS3.4 C.2.2.2.1.1, C.2.2.2.4
    """
    loosely = loose_name_test(text)
    if "*" in text or "?" in text:
        groups = [plain(group).strip(" ") for group in text.split("=")]
        patterns = [_name_patterns(group) for group in groups]

        def fits(number: int, group: str) -> bool:
            return not patterns[number] or any(one.fullmatch(group) for one in patterns[number])
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
            if "=" in name and loosely(name):
                return True
        return False

    return test


def text_test(text: str, vr: bytes) -> Test:
    """A key of another text VR: exact and case-sensitive, or with wildcards."""
    one_value = vr in _ONE_VALUE_VRS
    if vr in _WILDCARD_VRS and ("*" in text or "?" in text):
        pattern = Wildcard(text)

        def test(value: bytes) -> bool:
            stored = value.decode("utf-8", "replace")
            values = [stored] if one_value else stored.split("\\")
            return any(pattern.fullmatch(one.strip(" ")) for one in values if one.strip(" "))
    else:
        wanted = text.encode()

        def test(value: bytes) -> bool:
            if value.strip(b" \0") == wanted:
                return True
            return (
                b"\\" in value and not one_value and wanted in map(bytes.strip, value.split(b"\\"))
            )

    return test


def uid_test(uids: list[str]) -> Test:
    """A key of VR UI: any of the UIDs listed (PS3.4 C.2.2.2.2)."""
    wanted = frozenset(uid.encode() for uid in uids)
    return lambda value: not wanted.isdisjoint(one.strip(b" \0") for one in value.split(b"\\"))


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


def key_test(
    tag: int, vr: bytes, index: ElementIndex, zone: datetime.tzinfo | None = None
) -> Test | None:
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
    if vr == b"DT":
        return instants(tag, text, zone).test
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


_DATETIME = re.compile(
    r"(?P<y>\d{4})(?P<m>\d\d)?(?P<d>\d\d)?(?P<H>\d\d)?(?P<M>\d\d)?(?P<S>\d\d)?(\.(?P<f>\d{1,6}))?"
    r"(?P<z>[+-](0\d|1[0-4])[0-5]\d)?"
)


def datetime_bounds(
    text: str, zone: datetime.tzinfo | None
) -> tuple[datetime.datetime, datetime.datetime]:
    """The first and the last instant that a DT value covers, in UTC; ValueError for no DT value.

    zone  that of a value without an offset, None for that of the machine
    """
    found = _DATETIME.fullmatch(text)
    if not found:
        raise ValueError(text)
    parts = [int(found[name]) if found[name] else None for name in "ymdHMS"]
    known = [part for part in parts if part is not None]
    year, month, day, *clock = [*known, *(1, 1, 0, 0, 0)[len(known) - 1 :]]
    micro = int((found["f"] or "").ljust(6, "0"))
    start = datetime.datetime(year, month, day, *clock[:2], min(clock[2], 59), micro)
    try:
        if found["f"]:
            end = start + datetime.timedelta(microseconds=10 ** (6 - len(found["f"])) - 1)
        else:
            end = _next_unit(start, len(known)) - datetime.timedelta(microseconds=1)
    except (ValueError, OverflowError):  # the end of the last year
        end = datetime.datetime.max
    if found["z"]:
        sign = -1 if found["z"][0] == "-" else 1
        minutes = int(found["z"][1:3]) * 60 + int(found["z"][3:5])
        zone = datetime.timezone(sign * datetime.timedelta(minutes=minutes))
    return in_utc(start, zone), in_utc(end, zone)


def in_utc(at: datetime.datetime, zone: datetime.tzinfo | None) -> datetime.datetime:
    """A time of a zone, None for that of the machine, in UTC; at the ends of the calendar as it is."""
    try:
        return (at.replace(tzinfo=zone) if zone else at.astimezone()).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        return at.replace(tzinfo=datetime.UTC)


def utc_stamp(at: datetime.datetime) -> str:
    """A time in UTC as the store keeps it: text that sorts."""
    return f"{at.year:04d}-{at:%m-%dT%H:%M:%S.%fZ}"


def _next_unit(start: datetime.datetime, known: int) -> datetime.datetime:
    """The beginning of the next year, month, day, hour, minute or second."""
    if known == 1:
        return start.replace(year=start.year + 1)
    if known == 2:
        return (start.replace(day=28) + datetime.timedelta(days=4)).replace(day=1)
    units = ("days", "hours", "minutes", "seconds")
    return start + datetime.timedelta(**{units[known - 3]: 1})


def split_datetime_range(text: str) -> tuple[str, str, str]:
    """A DT key as low end, dash, high end; a dash before an offset is no range.

    Source: PS3.4 C.2.2.2.5.3; local: four digits up to 1459 behind a dash are an offset
    """
    for match in re.finditer("-", text):
        low, high = text[: match.start()], text[match.end() :]
        offset = low and re.fullmatch(r"(0\d|1[0-4])[0-5]\d(-.*)?", high)
        if not offset:
            return low, "-", high
    return text, "", ""


class Instants(NamedTuple):
    """A range of instants; None for an open end."""

    low: datetime.datetime | None
    high: datetime.datetime | None
    zone: datetime.tzinfo | None

    def test(self, value: bytes) -> bool:
        """Whether a stored DT value begins in it."""
        text = value.decode("ascii", "replace").strip(" \0")
        if not text:
            return False
        try:
            start, _ = datetime_bounds(text, self.zone)
        except (ValueError, OverflowError):
            return False
        return not (self.low and start < self.low) and not (self.high and start > self.high)


def instants(tag: int, text: str, zone: datetime.tzinfo | None) -> Instants:
    """A key of VR DT, single or range. Refuses A900."""
    low, dash, high = split_datetime_range(text.strip())
    try:
        first = datetime_bounds(low, zone) if low else None
        last = datetime_bounds(high, zone) if high else None
    except (ValueError, OverflowError):
        raise _refuse_key(tag, "is not a date and time or a range of them") from None
    if not (first or last):
        raise _refuse_key(tag, "is not a range")
    if not dash:
        return Instants(first[0], first[1], zone)
    return Instants(first[0] if first else None, last[1] if last else None, zone)


START_DATE, START_TIME = 0x00400002, 0x00400003
# PS3.4 Table CC.2.5-3: in code sequences that a table does not spell out
NEVER_MATCHED_IN_CODES = frozenset({tag_of("CodeMeaning"), tag_of("CodingSchemeVersion")})


class AnswerStyle(NamedTuple):
    """How the answers to one device are written; a device's profile gives it.

    charset          what texts are in, `fallback` where it cannot carry one
    name_groups      `all`, or the one component group of a name that is sent
    empty_sequences  whether a sequence without items is sent
    zone             that of times without an offset, None for that of the machine
    """

    charset: CharacterSet = UTF_8
    fallback: CharacterSet = UTF_8
    name_groups: str = "all"
    empty_sequences: bool = True
    zone: datetime.tzinfo | None = None


def one_group(value: bytes, name_groups: str) -> bytes:
    """Each name of a PN value with one of its groups alone; the other where it has none."""
    names = []
    for name in value.decode("utf-8", "replace").split("\\"):
        alphabetic, _, rest = name.strip(" ").partition("=")
        ideographic = rest.partition("=")[0]
        if name_groups == "ideographic":
            names.append(ideographic or alphabetic)
        else:
            names.append(alphabetic or ideographic)
    return pad("\\".join(names).encode(), b"PN")


class Search:
    """A query, compiled: `answer(data)` is the encoded answer of a stored data set that matches.

    index     the identifier in the stored form
    table     which attributes are supported (columns match and return)
    explicit  whether answers are Explicit or Implicit VR Little Endian
    style     how texts and empty sequences are answered
    extra     elements put into every answer when they are asked for, by tag (stored form)
    Refuses   A900 for two items in a sequence, a wrong date or range, several values
    Source    PS3.4 C.2.2.2, K.2.2, K.4.1.1.3.2
    """

    def __init__(
        self,
        index: ElementIndex,
        table: AttributeTable,
        explicit: bool = True,
        style: AnswerStyle = AnswerStyle(),
        extra: Mapping[int, bytes] = types.MappingProxyType({}),
        path: tuple[int, ...] = (),
    ) -> None:
        self.index, self.explicit, self.path = index, explicit, path
        self.style, self.extra = style, extra
        self.tests: list[tuple[int, Test]] = []
        self.nested: dict[int, Search] = {}
        self.intervals: dict[int, Interval] = {}
        self.shape: list[tuple[int, bytes, bytes | None]] = []
        self.texts: list[int] = []  # tags of shape that may hold more than ASCII
        self.unsupported: list[int] = []
        self.unmatched: list[int] = []  # keys with a value that is not looked at
        for tag in index:
            self._add(tag, table)
        self._combine_date_and_time()

    def _add(self, tag: int, table: AttributeTable) -> None:
        if tag in (SPECIFIC_CHARACTER_SET, 0x00080052, 0x00080201):
            # PS3.4 K.2.2.2; a Query/Retrieve Level in a worklist query is a slip of its sender
            if tag == 0x00080201 and tag in self.extra:
                self.shape.append((tag, _TAG.pack(tag >> 16, tag & 0xFFFF), self.extra[tag]))
            return
        path = (*self.path, tag)
        attribute = table.get(path)
        vr = self.index.vr(tag)
        known = attribute is not None or self._inside_open_sequence(table)
        if not known:
            self.unsupported.append(tag)
        if vr == b"SQ":
            self._add_sequence(tag, table, path)
        elif not known or (attribute and attribute.cells.get("match", "O") == "-"):
            self.unmatched += [tag] if self.index.has_value(tag) else []
        else:
            meaning = not attribute and tag in NEVER_MATCHED_IN_CODES
            test = None if meaning else key_test(tag, vr, self.index, self.style.zone)
            if test:
                self.tests.append((tag, test))
            if vr in (b"DA", b"TM") and (text := self.index.text(tag).strip("*")):
                self.intervals[tag] = key_interval(tag, vr, text)
        kind = attribute.cells["return"] if attribute else "3"
        if kind == "-" or (vr == b"SQ" and not self.style.empty_sequences):
            kind = "3"
        absent = (
            b"" if kind in ("1C", "3") else self._encode(tag, attribute.vr.encode(), b"", UTF_8)
        )
        self.shape.append((tag, _TAG.pack(tag >> 16, tag & 0xFFFF), absent))
        if vr_of(tag).encode() in _MAY_BE_TEXT:  # not the VR of the query, which may be wrong
            self.texts.append(tag)

    def _inside_open_sequence(self, table: AttributeTable) -> bool:
        """Below a sequence that the table names without saying what is in it, all is known."""
        outer = (self.path[:depth] for depth in range(1, len(self.path) + 1))
        return any(path in table and not table.children(path) for path in outer)

    def _add_sequence(self, tag: int, table: AttributeTable, path: tuple[int, ...]) -> None:
        items = self.index.items(tag)
        if len(items) > 1:
            raise _refuse_key(tag, "has more than one item")  # PS3.4 C.2.2.2.6
        if items and items[0].found:
            nested = Search(items[0], table, self.explicit, self.style, self.extra, path)
            self.unsupported += nested.unsupported
            self.unmatched += nested.unmatched
            matched = (one.cells.get("match") != "-" for one in table.children(path))
            if path in table and table[path].cells.get("match") == "-" and not any(matched):
                self.unmatched += [tag] if nested.tests else []
                nested.ask_nothing()
            self.nested[tag] = nested

    def ask_nothing(self) -> None:
        """Only say what is wanted in the answer; match all."""
        self.tests, self.combined = [], None
        for nested in self.nested.values():
            nested.ask_nothing()

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
            if not index.text(START_DATE) or not self.combined.holds(at):
                return False
        for tag, nested in self.nested.items():
            if nested.restricts and not any(map(nested.matches, index.items(tag))):
                return False
        return True

    @functools.cached_property
    def restricts(self) -> bool:
        """Whether any key is not universal."""
        return bool(self.tests or self.combined or any(n.restricts for n in self.nested.values()))

    def mismatches(self, index: ElementIndex) -> list[tuple[int, str, str]]:
        """Each key that a stored data set does not satisfy: its tag, what it asks for, what is there."""
        found = [
            (tag, self.index.text(tag), index.text(tag))
            for tag, test in self.tests
            if tag not in index or not test(index.value(tag))
        ]
        if self.combined:
            at = index.text(START_DATE) + _time_start(index.text(START_TIME) or "000000")
            if not index.text(START_DATE) or not self.combined.holds(at):
                found.append((START_DATE, self.index.text(START_DATE), index.text(START_DATE)))
        for tag, nested in self.nested.items():
            items = index.items(tag)
            if nested.restricts and not any(map(nested.matches, items)):
                found += nested.mismatches(items[0] if items else EMPTY)
        return found

    def answer(self, data: bytes) -> bytes | None:
        """The encoded answer of a stored data set, None where it does not match."""
        index = ElementIndex(data)
        return self.select(index) if self.matches(index) else None

    def select(self, index: ElementIndex) -> bytes:
        """The attributes asked for, with (0008,0005) where it is needed or was asked for."""
        for charset in (self.style.charset, self.style.fallback, UTF_8):
            try:
                return self._select(index, charset)
            except UnicodeEncodeError:
                continue
        raise AssertionError("UTF-8 carries any text")

    def _select(self, index: ElementIndex, charset: CharacterSet) -> bytes:
        body = b"".join(self._elements(index, charset))
        named = charset.terms not in ((), ("ISO_IR 6",))  # PS3.3 Table C.12-2 has no term for ASCII
        if named and (SPECIFIC_CHARACTER_SET in self.index or self._extended(index)):
            head = self._encode(SPECIFIC_CHARACTER_SET, b"CS", bytes(charset), charset)
            return head + body
        return body

    def _extended(self, index: ElementIndex) -> bool:
        """Whether a text that is asked for is more than ASCII."""
        data, found = index.data, index.found
        for tag in self.texts:
            if tag not in found:
                continue
            vr, _, start, end = found[tag]
            if vr == b"SQ":
                # past the item's length, tags and lengths are ASCII but for the delimiters,
                # whose bytes alone are no UTF-8: mostly there is no need to look closer
                if data[start + 8 : end].translate(None, b"\xdd\xe0\xfe\xff").isascii():
                    continue
                nested = self.nested.get(tag)
                extended = nested._extended if nested else has_extended_text
                if any(map(extended, index.items(tag))):
                    return True
            elif vr in _TEXT_VRS and not data[start:end].isascii():
                return True
        return False

    def _elements(self, index: ElementIndex, charset: CharacterSet) -> list[bytes]:
        """The elements asked for from one data set or item, in the syntax and set of the answer."""
        data, found, parts = index.data, index.found, []
        plain = charset.codec == "utf-8"
        verbatim = self.explicit and plain
        one_name = self.style.name_groups != "all"
        for tag, raw_tag, absent in self.shape:
            entry = found.get(tag)
            if entry is None:
                if absent:
                    parts.append(absent)
                continue
            vr, head, start, end = entry
            if vr == b"SQ":
                parts.append(self._sequence(tag, index, charset))
            elif verbatim and not (one_name and vr == b"PN"):
                parts.append(data[head:end])
            else:
                value = data[start:end]
                if one_name and vr == b"PN":
                    value = one_group(value, self.style.name_groups)
                if not plain and vr in _TEXT_VRS and not value.isascii():
                    value = self._text(vr, value, charset)
                if self.explicit:
                    parts.append(encode_element(tag, vr, value))
                else:
                    parts += raw_tag, _LENGTH.pack(len(value)), value
        return parts

    def _text(self, vr: bytes, value: bytes, charset: CharacterSet) -> bytes:
        """A stored text in another set; of a name the groups that it can carry, if the first."""
        if charset.codec == "utf-8":
            return value
        text = value.decode().rstrip(" ")
        try:
            return pad(charset.encode(text, vr), vr)
        except UnicodeEncodeError:
            if vr != b"PN":
                raise
        names = []
        for name in text.split("\\"):
            groups = [group if charset.carries(group) else "" for group in name.split("=")]
            if not groups[0]:
                charset.encode(name, vr)  # raises: the next set is tried
            names.append("=".join(groups).rstrip("="))
        return pad(charset.encode("\\".join(names), vr), vr)

    def _sequence(self, tag: int, index: ElementIndex, charset: CharacterSet) -> bytes:
        nested = self.nested.get(tag)
        items = index.items(tag)
        if nested:
            if nested.restricts:  # PS3.4 C.2.2.2.6: the items that match, and of them what is asked
                items = [item for item in items if nested.matches(item)]
            contents = [b"".join(nested._elements(item, charset)) for item in items]
        elif self.explicit and charset.codec == "utf-8" and self.style.name_groups == "all":
            return index.element(tag)
        else:
            contents = [self._whole(item, charset) for item in items]
        if not contents and not self.style.empty_sequences:
            return b""
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
            elif vr == b"PN" and self.style.name_groups != "all":
                value = self._text(vr, one_group(item.value(tag), self.style.name_groups), charset)
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


def has_extended_text(index: ElementIndex) -> bool:
    """Whether any text of a data set is more than ASCII."""
    return any(
        any(map(has_extended_text, index.items(tag)))
        if index.vr(tag) == b"SQ"
        else index.vr(tag) in _TEXT_VRS and not index.value(tag).isascii()
        for tag in index
    )


def encode_whole(data: bytes, explicit: bool, style: AnswerStyle) -> bytes:
    """A stored data set in the syntax and set of its reader, with (0008,0005) where it needs that."""
    index = ElementIndex(ElementIndex(data).without([SPECIFIC_CHARACTER_SET]))
    search = Search(EMPTY, MWL_ATTRIBUTES, explicit, style)
    if not has_extended_text(index):
        return search._whole(index, UTF_8)
    sets = (one for one in (style.charset, style.fallback) if carries_all(one, index))
    charset = next(sets, UTF_8)
    head = search._encode(SPECIFIC_CHARACTER_SET, b"CS", bytes(charset), charset)
    return head + search._whole(index, charset)


def carries_all(charset: CharacterSet, index: ElementIndex) -> bool:
    """Whether a set carries every text of a data set."""
    return all(
        all(carries_all(charset, item) for item in index.items(tag))
        if index.vr(tag) == b"SQ"
        else index.vr(tag) not in _TEXT_VRS or charset.carries(index.text(tag))
        for tag in index
    )


def to_syntax(data: bytes, explicit: bool) -> bytes:
    """A stored data set in one of the two little endian syntaxes, still UTF-8."""
    if explicit:
        return data
    search = Search(EMPTY, MWL_ATTRIBUTES, explicit=False)
    return search._whole(ElementIndex(data), UTF_8)


# DICOM JSON, straight to and from the stored form. Source: PS3.18 annex F.


_INLINE_BINARY_VRS = frozenset(b"OB OD OF OL OV OW UN".split())
NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def _json_number(text: str) -> float | str:
    """A DS or IS as a number where nothing is lost by it, else as its text."""
    if re.fullmatch(r"-?\d{1,15}", text) and str(int(text)) == text:
        return int(text)
    if re.fullmatch(r"-?\d+\.\d+", text) and str(float(text)) == text:
        return float(text)
    return text


def _json_name(text: str) -> dict[str, str] | None:
    groups = text.split("=", 2)  # there are no more, but what a peer has sent is kept
    return {n: g for n, g in zip(NAME_GROUPS, groups, strict=False) if g} or None


def _json_whole_or_float(number: float) -> float | str:
    """A binary number; as text where JSON has none, or readers with doubles would change it."""
    if isinstance(number, int):
        return number if abs(number) < 2**53 else str(number)
    return number if math.isfinite(number) else "NaN" if number != number else str(number)


def _json_values(vr: bytes, index: ElementIndex, tag: int) -> list[Any]:
    if vr == b"SQ":
        return [to_json(item) for item in index.items(tag)]
    if vr in _BINARY_NUMBERS:
        return [_json_whole_or_float(n) for n in unpack_numbers(vr, index.value(tag))]
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
        if vr in _INLINE_BINARY_VRS:
            if value := index.value(tag):
                member["InlineBinary"] = base64.b64encode(value).decode()
        elif index.has_value(tag) and (values := _json_values(vr, index, tag)):
            member["Value"] = values
        result[f"{tag:08X}"] = member
    return result


def _bad_json(key: str, words: str, **values: object) -> Refusal:
    tag = int(key, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", key) else 0
    words = words if tag else f"{key[:40]!r}: {words}"
    return Refusal(
        Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(tag, Message(words, **values))]
    )


def _from_json_values(key: str, vr: bytes, values: list[Any], depth: int) -> bytes:
    if vr == b"SQ":
        if not all(item is None or isinstance(item, dict) for item in values):
            raise TypeError
        return b"".join(encode_item(from_json(item or {}, depth + 1)) for item in values)
    if vr in _BINARY_NUMBERS:
        code = _BINARY_NUMBERS[vr]
        cast = _float if code in "fd" else _whole_number
        return struct.pack(f"<{len(values)}{code}", *map(cast, values))
    if vr == b"AT":
        if not all(re.fullmatch(r"[0-9A-Fa-f]{8}", value) for value in values):
            raise TypeError
        return b"".join(_TAG.pack(int(v[:4], 16), int(v[4:8], 16)) for v in values)
    if len(values) > 1 and vr in _ONE_VALUE_VRS:
        raise _bad_json(key, "has more than one value")
    texts = [_json_text(vr, value) for value in values]
    if vr not in _ONE_VALUE_VRS and any("\\" in text for text in texts):
        raise _bad_json(key, "has a backslash, which would make two values of one")  # PS3.18 F.2.4
    return "\\".join(texts).rstrip(" ").encode()


def _json_text(vr: bytes, value: Any) -> str:
    """One value of a text VR. Raises TypeError"""
    if vr == b"PN" and isinstance(value, dict):
        if value.keys() - set(NAME_GROUPS):
            raise TypeError
        groups = [value.get(name, "") for name in NAME_GROUPS]
        groups = ["" if group is None else group for group in groups]
        if any("=" in group for group in groups[:2]):
            raise TypeError
        return "=".join(groups).rstrip("=")
    if value is None or isinstance(value, str):
        return value or ""
    if type(value) in (int, float) and math.isfinite(value):
        return str(value)
    raise TypeError


def _whole_number(value: Any) -> int:
    """A JSON number, or a text that holds one, as a whole number; TypeError for half of one."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,20}\s*", value):
        return int(value)
    if type(value) is not int:
        raise TypeError
    return value


def _float(value: Any) -> float:
    """A JSON number, or a text that holds one or says that it is none; TypeError for others."""
    if isinstance(value, str) and not re.fullmatch(
        r"[\s0-9.eE+-]*|NaN|nan|[+-]?(inf|INF|Infinity)", value
    ):
        raise TypeError
    if type(value) not in (int, float, str):
        raise TypeError
    number = float(value)
    if math.isinf(number) and not (isinstance(value, str) and "n" in value.lower()):
        raise TypeError
    return number


def _json_vr(key: str, tag: int, given: Any) -> bytes:
    """The VR of a member, by the dictionary where it is not given. Refuses 0106."""
    if given is None:
        return vr_of(tag).encode()
    vr = given.encode("ascii", "replace") if isinstance(given, str) else b""
    if vr not in _KNOWN_VRS:
        raise _bad_json(key, "has no known vr")
    if vr == b"UN" and vr_of(tag) != "SQ":
        return vr_of(tag).encode()
    if not allows(tag, vr):
        raise _bad_json(key, "has the vr {vr}, not {right}", vr=given, right=vr_of(tag))
    return vr


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
        if tag is None and key:  # the dictionary has a keyword without letters
            tag = datadict.tag_for_keyword(key)
        if tag is None or tag >> 16 in (0, 2, 0xFFFE):
            raise _bad_json(key, "is not an attribute")
        if tag == SPECIFIC_CHARACTER_SET or not tag & 0xFFFF:
            continue  # JSON is UTF-8, and so is the store
        if not isinstance(member, dict):
            raise _bad_json(key, "is not an object with vr and Value")
        if tag in found:
            raise _bad_json(key, "is there twice")
        vr = _json_vr(key, tag, member.get("vr"))
        try:
            found[tag] = encode_element(tag, vr, _json_member(key, vr, member, depth))
        except (TypeError, ValueError, AttributeError, struct.error, OverflowError):
            raise _bad_json(key, "has a value that its vr does not allow") from None
    return b"".join(_by_tag(found))


_JSON_CONTENTS = frozenset(("Value", "InlineBinary", "BulkDataURI"))


def _json_member(key: str, vr: bytes, member: Mapping[str, Any], depth: int) -> bytes:
    if unknown := member.keys() - {"vr", *_JSON_CONTENTS}:
        raise _bad_json(key, "has {name}, which is no part of it", name=repr(min(unknown)[:40]))
    if len(member.keys() & _JSON_CONTENTS) > 1:
        raise _bad_json(key, "has more than one of Value, InlineBinary and BulkDataURI")
    if "InlineBinary" in member:
        if vr not in _INLINE_BINARY_VRS or not isinstance(member["InlineBinary"], str):
            raise TypeError
        return base64.b64decode(member["InlineBinary"], validate=True)
    if "BulkDataURI" in member:
        raise _bad_json(key, "is elsewhere: bulk data are not fetched")
    values = member.get("Value", [])
    if vr in _INLINE_BINARY_VRS and values:
        raise TypeError
    if not isinstance(values, list):
        raise _bad_json(key, "has a Value that is not an array")
    return _from_json_values(key, vr, values, depth)


def availability_data(study: str, rows_: list[tuple[str, ...]], of: list[bytes]) -> bytes:
    """The data set of an Instance Availability Notification (PS3.4 Table R.3.2-1).

    rows_  instance, Retrieve AE Title, class, study, series, availability, in order of the series
    of     items of Referenced Performed Procedure Step Sequence
    """
    series = []
    for uid, of_series in itertools.groupby(rows_, key=lambda row: row[4]):
        images = [
            bytes(text_elements(ReferencedSOPClassUID=row[2], ReferencedSOPInstanceUID=row[0],
                                InstanceAvailability=row[5], RetrieveAETitle=row[1]))
            for row in of_series
        ]  # fmt: skip
        sequence = ElementIndex(encode_items(REFERENCED_SOP, images))
        series.append(text_elements(SeriesInstanceUID=uid).merged(sequence))
    return text_elements(StudyInstanceUID=study).merged(
        ElementIndex(encode_items(tag_of("ReferencedPerformedProcedureStepSequence"), of)),
        ElementIndex(encode_items(tag_of("ReferencedSeriesSequence"), series)),
    )


# 5. STORE -------------------------------------------------------------------------------------
#
# What is kept, and the one thread that changes it. SQLite in WAL mode with synchronous=FULL;
# what gathers while a commit runs is committed together with the next. Nothing is hard-deleted.
# For others: the models, open_store, backup_store, restore_store, StoreLock, reading, Writer.

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
    told_by = peewee.TextField(default="")  # a key of TOLD_BY, or the person who said that it ended
    state_before = peewee.TextField(default="")  # what a person's last event may be taken back to
    changed_at = peewee.TextField(default="")  # when that was

    class Meta:
        indexes = (
            (("procedure", "scheduled_procedure_step_id"), True),
            (("start_date", "start_time"), False),
            (("start_date", "modality"), False),
            (("accession_number",), False),
            (("patient_id",), False),
            (("study_instance_uid",), False),
            (("status", "start_date"), False),
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
    raw = peewee.BlobField(null=True)  # as received, where texts had to be recovered
    settled = peewee.TextField(default="")  # why a person left it without an order


class PerformedScheduledStep(Stored):
    """Which scheduled steps a performed one satisfies, n to m."""

    performed = peewee.ForeignKeyField(PerformedProcedureStep)
    scheduled = peewee.ForeignKeyField(ScheduledProcedureStep)
    found_by = peewee.TextField()
    status_before = peewee.TextField()

    class Meta:
        primary_key = peewee.CompositeKey("performed", "scheduled")


class DeviceRecord(Stored):
    """A device made on the page; `settings` is JSON of texts by key of DEVICE_SETTINGS."""

    name = peewee.TextField(unique=True)
    settings = peewee.TextField()
    created_at = peewee.TextField()
    updated_at = peewee.TextField()


class Procedure(Stored):
    """A row of the procedure catalogue."""

    code = peewee.TextField(unique=True)
    scheme = peewee.TextField(default="L")
    meaning = peewee.TextField()
    modality = peewee.TextField(default="")
    ae_title = peewee.TextField(default="")
    minutes = peewee.IntegerField(default=15)
    protocol_code = peewee.TextField(default="")
    protocol_meaning = peewee.TextField(default="")
    retired = peewee.IntegerField(default=0)


class QueryTrace(Stored):
    """Worklist queries of one device with the same keys in one hour, folded."""

    hour = peewee.TextField()
    ae_title = peewee.TextField()
    address = peewee.TextField()
    keys = peewee.BlobField()
    raw = peewee.BlobField()
    count = peewee.IntegerField()
    answers = peewee.IntegerField()
    status = peewee.IntegerField()
    last_at = peewee.TextField()

    class Meta:
        indexes = ((("hour", "ae_title", "address", "keys"), True),)


class Workitem(Stored):
    """A unified procedure step; the Transaction UID, its lock, is in no data set.

    accession_number  that of its request, * where it has several
    performer  the AE title or, `by_person`, the user that claimed it
    declined   why that person does not have it cancelled
    """

    sop_instance_uid = peewee.TextField(unique=True)
    state = peewee.TextField()
    transaction_uid = peewee.TextField(default="")
    performer = peewee.TextField(default="")
    by_person = peewee.IntegerField(default=0)
    declined = peewee.TextField(default="")
    worklist_label = peewee.TextField()
    priority = peewee.TextField()
    readiness = peewee.TextField()
    start_at = peewee.TextField()
    expires_at = peewee.TextField(default="")
    patient_id = peewee.TextField(default="")
    accession_number = peewee.TextField(default="")
    name_key = peewee.TextField(default="")
    label = peewee.TextField()
    data = peewee.BlobField()
    version = peewee.IntegerField(default=1)
    created_at = peewee.TextField()
    updated_at = peewee.TextField()
    claimed_at = peewee.TextField(default="")
    ended_at = peewee.TextField(default="")

    class Meta:
        indexes = (
            (("state", "worklist_label", "start_at"), False),
            (("start_at",), False),
            (("patient_id",), False),
            (("accession_number",), False),
        )


class PurgedWorkitem(Stored):
    """The UID of a workitem that was deleted, so that it is known to have been."""

    sop_instance_uid = peewee.TextField(primary_key=True)
    purged_at = peewee.TextField()


class Subscription(Stored):
    """An AE that hears of one workitem, with or without a deletion lock."""

    workitem = peewee.ForeignKeyField(Workitem)
    ae_title = peewee.TextField(index=True)
    deletion_lock = peewee.IntegerField()
    created_at = peewee.TextField()

    class Meta:
        primary_key = peewee.CompositeKey("workitem", "ae_title")


class GlobalSubscription(Stored):
    """An AE that is subscribed to what is created; `keys` holds the filter of a filtered one."""

    ae_title = peewee.TextField()
    uid = peewee.TextField()
    deletion_lock = peewee.IntegerField()
    keys = peewee.BlobField()
    created_at = peewee.TextField()

    class Meta:
        primary_key = peewee.CompositeKey("ae_title", "uid")


class WorkitemEvent(Stored):
    """Something that happened to a workitem, as watchers are told it; kept as history.

    initial  it is what a new subscriber is told, and no happening
    """

    sop_instance_uid = peewee.TextField(index=True)
    event_type = peewee.IntegerField()
    data = peewee.BlobField()
    created_at = peewee.TextField()
    who = peewee.TextField()
    initial = peewee.IntegerField(default=0)


class OutboxEvent(Stored):
    """An event that one receiver is to hear of."""

    event = peewee.ForeignKeyField(WorkitemEvent)
    receiver = peewee.TextField()
    channel = peewee.TextField(default="dimse")
    created_at = peewee.TextField()
    sent_at = peewee.TextField(default="")
    given_up_at = peewee.TextField(default="")
    problem = peewee.TextField(default="")

    class Meta:
        indexes = ((("receiver", "id"), False),)


class EventChannel(Stored):
    """A way by which an AE is told of workitems, one of EVENT_CHANNELS."""

    ae_title = peewee.TextField()
    channel = peewee.TextField()

    class Meta:
        primary_key = peewee.CompositeKey("ae_title", "channel")


class Receiver(Stored):
    """How deliveries to an AE by DIMSE go: failures in a row, the seconds they have cost, the next try."""

    ae_title = peewee.TextField(primary_key=True)
    failures = peewee.IntegerField(default=0)
    failing_s = peewee.IntegerField(default=0)
    try_at = peewee.TextField(default="")
    problem = peewee.TextField(default="")
    heard_at = peewee.TextField(default="")


class PassedOn(Stored):
    """A message of ours to another system: a performed step, a notification, an availability.

    answer   status that it was answered with, 4 hexadecimal digits, and the comment
    refused  how often it was answered with a failure that may pass
    """

    receiver = peewee.TextField()
    sop_class_uid = peewee.TextField()
    operation = peewee.TextField()
    sop_instance_uid = peewee.TextField(index=True)
    event_type = peewee.IntegerField(default=0)
    data = peewee.BlobField()
    created_at = peewee.TextField()
    sent_at = peewee.TextField(default="")
    given_up_at = peewee.TextField(default="")
    answer = peewee.TextField(default="")
    refused = peewee.IntegerField(default=0)
    problem = peewee.TextField(default="")

    class Meta:
        indexes = ((("receiver", "id"), False),)


class Destination(Stored):
    """As Receiver, of what is passed on."""

    ae_title = peewee.TextField(primary_key=True)
    failures = peewee.IntegerField(default=0)
    failing_s = peewee.IntegerField(default=0)
    try_at = peewee.TextField(default="")
    problem = peewee.TextField(default="")
    heard_at = peewee.TextField(default="")


class Commitment(Stored):
    """A request for storage commitment.

    requester  the AE title that asked, or the login over HTTP; called: ours, as it asked
    door       `dimse` or `web`; by_study: how its references are written
    repeats    it asks under a Transaction UID that was in use already
    state      `asked`, `judged`, `told`, or `given up`: nobody could be told
    """

    transaction_uid = peewee.TextField(index=True)
    requester = peewee.TextField()
    called = peewee.TextField()
    door = peewee.TextField()
    by_study = peewee.IntegerField()
    repeats = peewee.IntegerField()
    state = peewee.TextField()
    data = peewee.BlobField()
    problem = peewee.TextField(default="")
    failures = peewee.IntegerField(default=0)
    try_at = peewee.TextField(default="")
    created_at = peewee.TextField()
    judged_at = peewee.TextField(default="")
    told_at = peewee.TextField(default="")


class CommitmentInstance(Stored):
    """An instance that is to be committed: "" while it is not judged, `0000`, or why not."""

    commitment = peewee.ForeignKeyField(Commitment)
    sop_class_uid = peewee.TextField()
    sop_instance_uid = peewee.TextField()
    study_instance_uid = peewee.TextField()
    series_instance_uid = peewee.TextField()
    verdict = peewee.TextField(default="")
    evidence = peewee.TextField(default="")


class CommitmentRelay(Stored):
    """A request that was passed on to the archive, under a Transaction UID of ours.

    asked_at  "" while the archive has not taken it, as far as we know: a report counts all the same
    """

    transaction_uid = peewee.TextField(unique=True)
    commitment = peewee.ForeignKeyField(Commitment)
    archive = peewee.TextField()
    asked_at = peewee.TextField()
    answered_at = peewee.TextField(default="")


class Availability(Stored):
    """What was last notified of an instance at an AE that it can be retrieved from."""

    sop_instance_uid = peewee.TextField()
    retrieve_ae_title = peewee.TextField()
    sop_class_uid = peewee.TextField()
    study_instance_uid = peewee.TextField(index=True)
    series_instance_uid = peewee.TextField()
    availability = peewee.TextField()
    who = peewee.TextField()
    at = peewee.TextField()

    class Meta:
        primary_key = peewee.CompositeKey("sop_instance_uid", "retrieve_ae_title")


class StudySeen(Stored):
    """Of an exam that its machine does not report: its images so far, and since when so many.

    seen_at  when that was last known to be so
    """

    study_instance_uid = peewee.TextField(primary_key=True)
    instances = peewee.IntegerField()
    told_by = peewee.TextField()
    since = peewee.TextField()
    seen_at = peewee.TextField(default="")


class AvailabilityNotice(Stored):
    """An Instance Availability Notification: its UID is not taken twice."""

    sop_instance_uid = peewee.TextField(unique=True)
    who = peewee.TextField()
    data = peewee.BlobField()
    created_at = peewee.TextField()


class Mark(Stored):
    """What the store remembers of the box: its last start, when a job last ran."""

    name = peewee.TextField(primary_key=True)
    value = peewee.TextField()


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
    """An API token; only its hash is kept.

    ae_titles  those that it may subscribe, and hear of, separated by backslashes
    """

    name = peewee.TextField(unique=True)
    role = peewee.TextField()
    digest = peewee.TextField(unique=True)
    created_at = peewee.TextField()
    ae_titles = peewee.TextField(default="")


class LoginFailure(Stored):
    """A wrong password, for the throttle."""

    who = peewee.TextField(index=True)
    at = peewee.TextField()


class Counter(Stored):
    """The last number given out for a kind of identifier on a day."""

    name = peewee.TextField(primary_key=True)
    last = peewee.IntegerField()


class Audit(Stored):
    """Who did what to which object: never changed, and erased by the purge alone.

    digest  of this line and of the digest before it, as audit_digest has it; "" of old stores
    """

    at = peewee.TextField(index=True)
    who = peewee.TextField()
    what = peewee.TextField()
    about = peewee.TextField()
    detail = peewee.TextField(default="")
    digest = peewee.TextField(default="")


MODELS = (
    Patient,
    RequestedProcedure,
    ScheduledProcedureStep,
    ScheduledStation,
    PerformedProcedureStep,
    PerformedScheduledStep,
    Workitem,
    PurgedWorkitem,
    Subscription,
    GlobalSubscription,
    WorkitemEvent,
    OutboxEvent,
    Receiver,
    EventChannel,
    PassedOn,
    Destination,
    Commitment,
    CommitmentInstance,
    CommitmentRelay,
    Availability,
    AvailabilityNotice,
    StudySeen,
    Mark,
    DeviceRecord,
    Procedure,
    QueryTrace,
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
    (
        2,
        "devices, procedure catalogue, query trace, raw bytes of recovered texts",
        """
        CREATE TABLE device_record (
            id INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL UNIQUE, settings TEXT NOT NULL,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
        CREATE TABLE procedure (
            id INTEGER NOT NULL PRIMARY KEY, code TEXT NOT NULL UNIQUE, scheme TEXT NOT NULL,
            meaning TEXT NOT NULL, modality TEXT NOT NULL, ae_title TEXT NOT NULL,
            minutes INTEGER NOT NULL, protocol_code TEXT NOT NULL, protocol_meaning TEXT NOT NULL,
            retired INTEGER NOT NULL);
        CREATE TABLE query_trace (
            id INTEGER NOT NULL PRIMARY KEY, hour TEXT NOT NULL, ae_title TEXT NOT NULL,
            address TEXT NOT NULL, keys BLOB NOT NULL, raw BLOB NOT NULL, count INTEGER NOT NULL,
            answers INTEGER NOT NULL, status INTEGER NOT NULL, last_at TEXT NOT NULL);
        CREATE UNIQUE INDEX query_trace_once ON query_trace (hour, ae_title, address, keys);
        ALTER TABLE performed_procedure_step ADD COLUMN raw BLOB;
        ALTER TABLE performed_procedure_step ADD COLUMN settled TEXT NOT NULL DEFAULT '';
        CREATE INDEX scheduled_procedure_step_status
            ON scheduled_procedure_step (status, start_date);
        """,
    ),
    (
        3,
        "workitems, subscriptions, events and their delivery",
        """
        CREATE TABLE workitem (
            id INTEGER NOT NULL PRIMARY KEY, sop_instance_uid TEXT NOT NULL, state TEXT NOT NULL,
            transaction_uid TEXT NOT NULL, performer TEXT NOT NULL, by_person INTEGER NOT NULL,
            declined TEXT NOT NULL, worklist_label TEXT NOT NULL,
            priority TEXT NOT NULL, readiness TEXT NOT NULL, start_at TEXT NOT NULL,
            expires_at TEXT NOT NULL, patient_id TEXT NOT NULL,
            accession_number TEXT NOT NULL, name_key TEXT NOT NULL, label TEXT NOT NULL, data BLOB NOT NULL, version INTEGER NOT NULL,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL, claimed_at TEXT NOT NULL,
            ended_at TEXT NOT NULL);
        CREATE INDEX workitem_ended_at ON workitem (ended_at) WHERE ended_at <> '';
        CREATE UNIQUE INDEX workitem_sop_instance_uid ON workitem (sop_instance_uid);
        CREATE INDEX workitem_state ON workitem (state, worklist_label, start_at);
        CREATE INDEX workitem_start_at ON workitem (start_at);
        CREATE INDEX workitem_patient_id ON workitem (patient_id);
        CREATE INDEX workitem_accession_number ON workitem (accession_number);
        CREATE INDEX workitem_silent ON workitem (updated_at) WHERE state = 'IN PROGRESS';
        CREATE TABLE purged_workitem (
            sop_instance_uid TEXT NOT NULL PRIMARY KEY, purged_at TEXT NOT NULL);
        CREATE TABLE subscription (
            workitem_id INTEGER NOT NULL REFERENCES workitem (id), ae_title TEXT NOT NULL,
            deletion_lock INTEGER NOT NULL, created_at TEXT NOT NULL,
            PRIMARY KEY (workitem_id, ae_title)) WITHOUT ROWID;
        CREATE INDEX subscription_ae_title ON subscription (ae_title);
        CREATE TABLE global_subscription (
            ae_title TEXT NOT NULL, uid TEXT NOT NULL, deletion_lock INTEGER NOT NULL,
            keys BLOB NOT NULL, created_at TEXT NOT NULL, PRIMARY KEY (ae_title, uid));
        CREATE TABLE workitem_event (
            id INTEGER NOT NULL PRIMARY KEY, sop_instance_uid TEXT NOT NULL,
            event_type INTEGER NOT NULL, data BLOB NOT NULL, created_at TEXT NOT NULL,
            who TEXT NOT NULL, initial INTEGER NOT NULL DEFAULT 0);
        CREATE INDEX workitem_event_sop_instance_uid ON workitem_event (sop_instance_uid);
        CREATE TABLE outbox_event (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            event_id INTEGER NOT NULL REFERENCES workitem_event (id), receiver TEXT NOT NULL,
            created_at TEXT NOT NULL, sent_at TEXT NOT NULL DEFAULT '',
            given_up_at TEXT NOT NULL DEFAULT '', problem TEXT NOT NULL DEFAULT '');
        CREATE INDEX outbox_event_receiver ON outbox_event (receiver, id);
        CREATE INDEX outbox_event_due ON outbox_event (receiver, id)
            WHERE sent_at = '' AND given_up_at = '';
        CREATE INDEX outbox_event_event_id ON outbox_event (event_id);
        CREATE TABLE receiver (
            ae_title TEXT NOT NULL PRIMARY KEY, failures INTEGER NOT NULL DEFAULT 0,
            failing_s INTEGER NOT NULL DEFAULT 0,
            try_at TEXT NOT NULL DEFAULT '', problem TEXT NOT NULL DEFAULT '',
            heard_at TEXT NOT NULL DEFAULT '');
        CREATE TABLE mark (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL);
        """,
    ),
    (
        4,
        "events by WebSocket, tokens of AE titles",
        """
        CREATE TABLE event_channel (
            ae_title TEXT NOT NULL, channel TEXT NOT NULL,
            PRIMARY KEY (ae_title, channel)) WITHOUT ROWID;
        INSERT INTO event_channel SELECT ae_title, 'dimse' FROM subscription
            UNION SELECT ae_title, 'dimse' FROM global_subscription;
        ALTER TABLE outbox_event ADD COLUMN channel TEXT NOT NULL DEFAULT 'dimse';
        DROP INDEX outbox_event_due;
        CREATE INDEX outbox_event_due ON outbox_event (channel, receiver, id)
            WHERE sent_at = '' AND given_up_at = '';
        ALTER TABLE token ADD COLUMN ae_titles TEXT NOT NULL DEFAULT '';
        """,
    ),
    (
        5,
        "storage commitment, instance availability",
        """
        CREATE TABLE commitment (
            id INTEGER NOT NULL PRIMARY KEY, transaction_uid TEXT NOT NULL,
            requester TEXT NOT NULL, called TEXT NOT NULL, door TEXT NOT NULL,
            by_study INTEGER NOT NULL, repeats INTEGER NOT NULL, state TEXT NOT NULL,
            data BLOB NOT NULL, problem TEXT NOT NULL DEFAULT '',
            failures INTEGER NOT NULL DEFAULT 0, try_at TEXT NOT NULL DEFAULT '',
            created_at TEXT NOT NULL, judged_at TEXT NOT NULL DEFAULT '',
            told_at TEXT NOT NULL DEFAULT '');
        CREATE INDEX commitment_transaction_uid ON commitment (transaction_uid);
        CREATE INDEX commitment_due ON commitment (try_at) WHERE state IN ('asked', 'judged');
        CREATE INDEX commitment_created_at ON commitment (created_at);
        CREATE TABLE commitment_instance (
            id INTEGER NOT NULL PRIMARY KEY,
            commitment_id INTEGER NOT NULL REFERENCES commitment (id) ON DELETE CASCADE,
            sop_class_uid TEXT NOT NULL, sop_instance_uid TEXT NOT NULL,
            study_instance_uid TEXT NOT NULL, series_instance_uid TEXT NOT NULL,
            verdict TEXT NOT NULL DEFAULT '', evidence TEXT NOT NULL DEFAULT '');
        CREATE INDEX commitment_instance_commitment_id ON commitment_instance (commitment_id);
        CREATE TABLE availability (
            sop_instance_uid TEXT NOT NULL, retrieve_ae_title TEXT NOT NULL,
            sop_class_uid TEXT NOT NULL, study_instance_uid TEXT NOT NULL,
            series_instance_uid TEXT NOT NULL, availability TEXT NOT NULL, who TEXT NOT NULL,
            at TEXT NOT NULL, PRIMARY KEY (sop_instance_uid, retrieve_ae_title)) WITHOUT ROWID;
        CREATE INDEX availability_study_instance_uid ON availability (study_instance_uid);
        CREATE TABLE availability_notice (
            id INTEGER NOT NULL PRIMARY KEY, sop_instance_uid TEXT NOT NULL UNIQUE,
            who TEXT NOT NULL, data BLOB NOT NULL, created_at TEXT NOT NULL);
        """,
    ),
    (
        6,
        "what is passed on to other systems",
        """
        CREATE TABLE passed_on (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, receiver TEXT NOT NULL,
            sop_class_uid TEXT NOT NULL, operation TEXT NOT NULL, sop_instance_uid TEXT NOT NULL,
            event_type INTEGER NOT NULL, data BLOB NOT NULL, created_at TEXT NOT NULL,
            sent_at TEXT NOT NULL DEFAULT '', given_up_at TEXT NOT NULL DEFAULT '',
            answer TEXT NOT NULL DEFAULT '', refused INTEGER NOT NULL DEFAULT 0,
            problem TEXT NOT NULL DEFAULT '');
        CREATE INDEX passed_on_due ON passed_on (receiver, id)
            WHERE sent_at = '' AND given_up_at = '';
        CREATE INDEX passed_on_sop_instance_uid ON passed_on (sop_instance_uid);
        CREATE TABLE destination (
            ae_title TEXT NOT NULL PRIMARY KEY, failures INTEGER NOT NULL DEFAULT 0,
            failing_s INTEGER NOT NULL DEFAULT 0,
            try_at TEXT NOT NULL DEFAULT '', problem TEXT NOT NULL DEFAULT '',
            heard_at TEXT NOT NULL DEFAULT '');
        """,
    ),
    (
        7,
        "requests for commitment that are passed on to the archive",
        """
        CREATE TABLE commitment_relay (
            id INTEGER NOT NULL PRIMARY KEY, transaction_uid TEXT NOT NULL UNIQUE,
            commitment_id INTEGER NOT NULL REFERENCES commitment (id) ON DELETE CASCADE,
            archive TEXT NOT NULL, asked_at TEXT NOT NULL,
            answered_at TEXT NOT NULL DEFAULT '');
        CREATE INDEX commitment_relay_commitment_id ON commitment_relay (commitment_id);
        CREATE INDEX commitment_instance_open ON commitment_instance (sop_instance_uid)
            WHERE verdict = '';
        """,
    ),
    (
        8,
        "exams whose machines do not report",
        """
        ALTER TABLE scheduled_procedure_step ADD COLUMN told_by TEXT NOT NULL DEFAULT '';
        CREATE TABLE study_seen (
            study_instance_uid TEXT NOT NULL PRIMARY KEY, instances INTEGER NOT NULL,
            told_by TEXT NOT NULL, since TEXT NOT NULL);
        CREATE INDEX performed_procedure_step_station
            ON performed_procedure_step (performed_station_ae_title);
        CREATE INDEX performed_procedure_step_updated_at ON performed_procedure_step (updated_at);
        CREATE INDEX workitem_not_ready ON workitem (updated_at)
            WHERE state = 'SCHEDULED' AND readiness <> 'READY';
        """,
    ),
    (
        9,
        "an audit log that shows whether it was changed",
        """
        ALTER TABLE audit ADD COLUMN digest TEXT NOT NULL DEFAULT '';
        CREATE TRIGGER audit_not_changed BEFORE UPDATE ON audit
            BEGIN SELECT RAISE(ABORT, 'the audit log is never changed'); END;
        CREATE TRIGGER audit_not_erased BEFORE DELETE ON audit
            WHEN NOT EXISTS (SELECT 1 FROM mark WHERE name = 'audit purge')
            BEGIN SELECT RAISE(ABORT, 'the audit log is never erased'); END;
        """,
    ),
    (
        10,
        "when images were last counted",
        "ALTER TABLE study_seen ADD COLUMN seen_at TEXT NOT NULL DEFAULT ''",
    ),
    (
        11,
        "what a person has done to an exam can be taken back",
        """
        ALTER TABLE scheduled_procedure_step ADD COLUMN state_before TEXT NOT NULL DEFAULT '';
        ALTER TABLE scheduled_procedure_step ADD COLUMN changed_at TEXT NOT NULL DEFAULT '';
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


def _check_version(connection: sqlite3.Connection) -> int:
    """The schema of a store; StoreError for one that this program does not know yet."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > MIGRATIONS[-1][0]:
        raise StoreError(f"the store is of a newer minris (schema {version})")
    return version


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring a store to the newest schema, one transaction for each migration."""
    version = _check_version(connection)
    for number, what, sql in MIGRATIONS:
        if number > version:
            log.info("store: schema %d, %s", number, what)
            script = f"BEGIN IMMEDIATE;{sql};PRAGMA user_version={number};COMMIT"
            connection.executescript(script)


def _check_store(path: Path) -> None:
    """Refuse a file that is no store of ours, without touching it."""
    if path.stat().st_size == 0:
        raise StoreError(f"{path} is empty: not a store of minris; move it away to start anew")
    # by SQLite, since closing a file ourselves would drop the locks of this process on it
    # (sqlite.org/howtocorrupt.html 2.2); immutable makes no -wal and no -shm beside it
    url = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(url, uri=True)) as connection:
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
    store.register_function(initials, "initials", 1)
    database.initialize(store)
    try:
        with database.connection_context():
            _migrate(database.connection())
    except (sqlite3.DatabaseError, peewee.DatabaseError) as error:
        raise StoreError(f"{path} cannot be opened: {error}") from None


def backup_store(path: Path, to: Path) -> None:
    """Copy a store, running or not, consistently; the copy is checked before it gets its name.

    Raises StoreError where the copy is not in order, OSError where it cannot be written
    """
    _check_store(path)
    part = to.with_name(to.name + ".part")
    part.unlink(missing_ok=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    try:
        with (
            contextlib.closing(
                sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            ) as source,
            contextlib.closing(sqlite3.connect(part)) as copy,
        ):
            source.backup(copy)  # in one step: a copy of one moment, that no write delays
            copy.execute("PRAGMA journal_mode=DELETE")
            (answer,) = copy.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.DatabaseError as error:
        answer = str(error)
    if answer != "ok":
        part.unlink()
        raise StoreError(f"the copy of {path} is not in order: {answer}")
    os.replace(part, to)


def restore_store(path: Path, backup: Path) -> Path | None:
    """Put a backup in the place of the store, after checking it; where the old one went, if any.

    The caller holds the StoreLock. Raises StoreError for what is no backup of minris
    """
    if not backup.is_file():
        raise StoreError(f"there is no file {backup}")
    new = path.with_name(path.name + ".restored")
    backup_store(backup, new)
    try:
        with contextlib.closing(sqlite3.connect(new)) as connection:
            _check_version(connection)
    except StoreError:
        new.unlink()
        raise
    kept = None
    if path.exists():
        kept = path.with_name(f"{path.name}.before-{datetime.datetime.now():%Y%m%d-%H%M%S}")
        try:
            backup_store(path, kept)  # with what is still in its journal
        except StoreError:
            os.replace(path, kept)  # no store any more: kept as it is
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.replace(new, path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        if connection.execute("PRAGMA user_version").fetchone()[0] >= 3:
            connection.execute("INSERT OR REPLACE INTO mark VALUES ('started', 'restored')")
    return kept


class StoreLock:
    """Held by the one process that may change a store; freed by the system when it dies.

    A file beside the store, itself an SQLite file in an exclusive transaction: the one lock that
    is alike on every platform.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self.path} cannot be made: {error}") from None
        try:
            self.connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            self.connection.close()
            raise StoreError(f"{path} is in use by another minris") from None

    def _open(self) -> None:
        self.connection = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False
        )

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


# Plain SQL for what modalities wait for: building a query costs peewee ten times its execution.


def fetch_rows(model: type[Stored], where: str, *values: Any) -> list[Any]:
    """The rows of a model under a condition, as plain objects with its columns as fields."""
    table = model._meta.table_name
    cursor = database.execute_sql(f"SELECT * FROM {table} WHERE {where}", values)
    names = [column[0] for column in cursor.description]
    return [types.SimpleNamespace(**dict(zip(names, row, strict=True))) for row in cursor]


def matching_rows(
    model: type[Stored], rows_: list[tuple[int, int]], search: Search
) -> Iterator[tuple[int, ElementIndex]]:
    """Id and data set of each row that matches, in the order given, read slice by slice.

    rows_  ids, with their versions, of the rows that may match
    """
    for start in range(0, len(rows_), 250):
        chunk = [row_id for row_id, _ in rows_[start : start + 250]]
        cursor = database.execute_sql(
            f"SELECT id, data FROM {model._meta.table_name}"
            f" WHERE id IN ({','.join(map(str, chunk))})"
        )
        data = {row_id: bytes(one) for row_id, one in cursor}
        for row_id in filter(data.__contains__, chunk):
            index = ElementIndex(data[row_id])
            if search.matches(index):
                yield row_id, index


def insert_row(model: type[Stored], **columns: Any) -> int:
    """Insert a row: its id."""
    table, places = model._meta.table_name, ", ".join("?" * len(columns))
    sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places}) RETURNING id"
    return database.execute_sql(sql, tuple(columns.values())).fetchone()[0]


def first_version() -> int:
    """The version of a new row: none that an earlier row of its id, since purged, has had.

    Answers are kept by id and version, and SQLite gives an id again.
    """
    return secrets.randbits(48)


def insert_rows(what: str, values: Iterable[tuple[Any, ...]]) -> None:
    """Insert many rows, `what` being a table with its columns and what follows their values."""
    head, _, tail = what.partition(" VALUES")
    places = ", ".join("?" * (head.count(",") + 1))
    database.connection().executemany(f"INSERT INTO {head} VALUES ({places}){tail}", values)


def update_row(model: type[Stored], row_id: int, **columns: Any) -> None:
    """Change columns of a row."""
    table, places = model._meta.table_name, ", ".join(f"{name} = ?" for name in columns)
    database.execute_sql(f"UPDATE {table} SET {places} WHERE id = ?", (*columns.values(), row_id))


def get_mark(name: str) -> str:
    """Something remembered in the store, empty if it never was."""
    row = database.execute_sql("SELECT value FROM mark WHERE name = ?", (name,)).fetchone()
    return row[0] if row else ""


def set_mark(name: str, value: str) -> None:
    """Remember something in the store."""
    columns = "mark (name, value) VALUES ON CONFLICT (name) DO UPDATE SET value = excluded.value"
    insert_rows(columns, [(name, value)])


def erase(what: str, *values: Any) -> int:
    """Delete rows, `what` being a table and a condition: how many."""
    return database.execute_sql(f"DELETE FROM {what}", values).rowcount


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
        self.commits = 0  # counted before anybody hears of the commit
        self.closed, self.closing = False, threading.Lock()
        self.queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="store", daemon=True)
        self.thread.start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future:
        """Have a core call run and committed; its future holds the result or the exception."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        future.set_running_or_notify_cancel()  # a caller that goes away cannot take it back
        with self.closing:
            if self.closed:
                future.set_exception(StoreError("the store is closed"))
            else:
                self.queue.put(_Job(function, arguments, future))
        return future

    def close(self) -> None:
        """Finish what has been submitted, and end the thread."""
        with self.closing:
            self.closed = True
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
                log.error("store: %s failed", jobs[0].function, exc_info=error)
                jobs[0].future.set_exception(error)
            return
        self.commits += 1
        for job, (result, error) in zip(jobs, outcomes, strict=True):
            if error:
                job.future.set_exception(error)
            else:
                job.future.set_result(result)
        try:
            self.on_commit()
        except Exception:
            log.exception("a watcher of commits failed")

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
            log.exception("%s failed", job.function)
            return None, error


# 6. CONTEXT -----------------------------------------------------------------------------------
#
# Who asks, when, and the line that is kept of it. For others: Actor, Context, audit, check_audit.


# Seconds to wait after so many failures in a row to reach somebody; the last for all that follow.
RETRY_AFTER = (5, 10, 30, 60, 120, 300, 600, 1800)


def retry_wait(failures: int) -> int:
    """Seconds to wait after so many failures in a row, 1 for the first."""
    return RETRY_AFTER[min(failures, len(RETRY_AFTER)) - 1]


class Actor(NamedTuple):
    """Who asks: an AE title with its address, or a user, or a job of our own."""

    name: str
    address: str = ""
    role: str = ""
    called: str = ""  # the AE title by which it called us

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
    devices: tuple[Device, ...] = ()

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
        return utc_stamp(self.now().astimezone(datetime.UTC) + datetime.timedelta(**later))


def audit(ctx: Context, what: str, about: str, detail: str = "") -> None:
    """Keep who did what to which object; part of the transaction that does it."""
    line = (ctx.stamp(), str(ctx.actor), what, about, detail)
    last = database.execute_sql("SELECT digest FROM audit ORDER BY id DESC LIMIT 1").fetchone()
    digest = audit_digest(last[0] if last else "", line)
    database.execute_sql(
        "INSERT INTO audit (at, who, what, about, detail, digest) VALUES (?, ?, ?, ?, ?, ?)",
        (*line, digest),
    )


def audit_digest(before: str, line: tuple[str, ...]) -> str:
    """The digest of an audit line behind another one: SHA-256 of both as a list in JSON."""
    text = json.dumps([before, *line], ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


class AuditChain(NamedTuple):
    """Whether the audit log is as it was written.

    count   its lines; digest: of the last one, by which two copies are compared
    broken  id and time of the first line that does not follow from the one before, None for none
    """

    count: int
    digest: str
    broken: tuple[int, str] | None


def check_audit() -> AuditChain:
    """Hold the audit log against its digests. Lines of before there were any are taken as they are."""
    before, count, broken = None, 0, None
    for row_id, *line, digest in database.execute_sql(
        "SELECT id, at, who, what, about, detail, digest FROM audit ORDER BY id"
    ):
        if before is not None and not broken and (before or digest):
            right = audit_digest(before, tuple(line))
            broken = None if hmac.compare_digest(right, digest) else (row_id, line[0])
        before, count = digest, count + 1
    return AuditChain(count, before or "", broken)


def audit_lines(text: str, before: int = 0, most: int = 200) -> list[Any]:
    """The newest audit lines in which a text stands, those before an id where one is given."""
    text = text.strip()
    line = "lower(who || char(10) || what || char(10) || about || char(10) || detail)"
    return fetch_rows(
        Audit,
        f"(? = '' OR instr({line}, lower(?))) AND (? = 0 OR id < ?) ORDER BY id DESC LIMIT ?",
        text, text, before, before, most,
    )  # fmt: skip


def purge_audit(old: str) -> int:
    """Erase the audit lines of before a time: how many."""
    set_mark("audit purge", old)
    count = erase("audit WHERE at < ?", old)
    erase("mark WHERE name = 'audit purge'")
    return count


# 7. ACCESS ------------------------------------------------------------------------------------
#
# Which devices may call, and who may log in. For others: Device, AccessRules, authenticate,
# open_session, find_session, end_session, make_user, make_token, find_token, permit.

ROLES = ("desk", "technologist", "admin")  # each may do what those before it may


class AccessRules:
    """A frozen picture of who may associate; `version` tells two pictures apart."""

    def __init__(self, config: Config, stored: Iterable[Device] = (), version: int = 1) -> None:
        self.version = version
        self.accept_unknown = config.dicom.accept_unknown_devices
        self.called = config.dicom.ae_title if config.dicom.check_called_ae_title else None
        of_file = [Device.from_settings(n, d) for n, d in config.devices.items()]
        self.devices = (*of_file, *stored)
        self.by_title = {title: d for d in self.devices for title in d.ae_titles}

    def device(self, calling: str) -> Device | None:
        """The device of an AE title, None where it is not registered."""
        return self.by_title.get(calling)

    def host_to_look_up(self, calling: str) -> str:
        """The name of a host that must be known before `refusal` is asked, or nothing."""
        device = self.by_title.get(calling)
        if not device or not device.check_address:
            return ""
        return (
            "" if re.fullmatch(r"[\d.]+|[\da-fA-F:]*:[\da-fA-F:.]*", device.host) else device.host
        )

    def refusal(self, called: str, calling: str, address: str) -> tuple[int, str] | None:
        """Why an association is not for us: the reason of A-ASSOCIATE-RJ and words; or None.

        Source: PS3.8 Table 9-21 (service user: 3 calling, 7 called AE title not recognized)
        """
        if self.called and called != self.called:
            return 7, Message(
                "it called {called}, our AE title is {ours}",
                called=repr(called),
                ours=repr(self.called),
            )
        device = self.by_title.get(calling)
        if not device and not self.accept_unknown:
            return 3, Message("{calling} is not registered as a device", calling=repr(calling))
        if device and device.check_address and not same_host(device.host, address):
            return 3, Message(
                "{calling} is registered for {host}", calling=repr(calling), host=device.host
            )
        return None


def style_of(device: Device | None, charset: CharacterSet) -> AnswerStyle:
    """How answers to a device are written, `charset` being decided already."""
    if not device:
        return AnswerStyle(charset)
    fallback = character_set(device.fallback_character_set)
    return AnswerStyle(charset, fallback, device.name_groups, device.empty_sequences)


def written_for(device: Device | None, data: bytes, explicit: bool) -> bytes:
    """A whole stored data set as a device reads it."""
    named = device.character_set if device else ()
    charset = character_set(named) if named else UTF_8
    return encode_whole(data, explicit, style_of(device, charset))


def stored_devices() -> list[Device]:
    """The devices made on the page; one that is no longer in order is left out and logged."""
    found = []
    for name, text in database.execute_sql(
        "SELECT name, settings FROM device_record ORDER BY name"
    ):
        problems: list[str] = []
        section = read_section(f"device {name}", DEVICE_SETTINGS, json.loads(text), problems)
        if problems:
            log.error("%s", "; ".join(problems))
        else:
            found.append(Device.from_settings(name, section, from_file=False))
    return found


def save_device(ctx: Context, name: str, settings: Mapping[str, str], old_name: str = "") -> None:
    """Make or change a device of the page.

    settings  texts by key of DEVICE_SETTINGS; what is empty has its default
    Refuses   0106 with a line for each setting that is wrong, 0111 for a name or AE title of
              another device
    """
    given = {key: text for key, text in settings.items() if text}
    wrong: list[str] = []
    section = read_section(f"device {name}", DEVICE_SETTINGS, given, wrong)
    words = [Message("{key}: {value} {words}", **message.values) for message in wrong]
    if any(device.from_file and device.name == old_name for device in ctx.devices):
        words.append(Message("It is of config.ini, and is changed there"))
    if not re.fullmatch(r"[^\[\]\n]{1,64}", name.strip()):
        words.append(Message("A name has 1 to 64 characters"))
    for key in ("check_address", "passed_on"):
        if section.__dict__.get(key) and not section.__dict__.get("host"):
            words.append(Message("{key} needs host", key=key))
    if words:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(0, w) for w in words])
    for other in ctx.devices:
        taken = set(other.ae_titles) & set(section.ae_title)
        if other.name != old_name and (other.name == name or taken):
            words = Message(
                "{value} belongs to {name} already",
                value=", ".join(sorted(taken)) or name,
                name=other.name,
            )
            raise Refusal(Status.DUPLICATE_SOP_INSTANCE, words, [Problem(0, words)])
    text, now = json.dumps(given, ensure_ascii=False), ctx.stamp()
    record = DeviceRecord.get_or_none(DeviceRecord.name == (old_name or name))
    if record:
        DeviceRecord.update(name=name, settings=text, updated_at=now).where(
            DeviceRecord.id == record.id
        ).execute()
    else:
        DeviceRecord.create(name=name, settings=text, created_at=now, updated_at=now)
    audit(ctx, "device saved", name, text)


def delete_device(ctx: Context, name: str) -> None:
    """Forget a device of the page. Refuses 0112 for one that is not."""
    if not DeviceRecord.delete().where(DeviceRecord.name == name).execute():
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no device {name}", name=name))
    audit(ctx, "device deleted", name)


def adopt_title(ctx: Context, name: str, ae_title: str) -> None:
    """Let a device of the page have another AE title, by which it calls. Refuses as save_device."""
    record = DeviceRecord.get_or_none(DeviceRecord.name == name)
    if not record:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE,
                      Message("It is of config.ini, and is changed there"))  # fmt: skip
    settings = json.loads(record.settings)
    settings["ae_title"] = f"{settings['ae_title']}, {ae_title}"
    save_device(ctx, name, settings, name)


# Ready settings for a new device, to start from.
DEVICE_PROFILES = {
    name: dict(pair.split(": ", 1) for pair in pairs.split("; "))
    for name, pairs in body_rows("""
    name                        | settings
    Modern, UTF-8               | character_set: ISO_IR 192
    Chinese, GB18030            | character_set: GB18030
    Chinese, GBK                | character_set: GBK
    Chinese, ISO 2022 IR 58     | character_set: \\ISO 2022 IR 58
    Chinese screen, one name    | character_set: GB18030; name_groups: ideographic
    Western Europe, ISO_IR 100  | character_set: ISO_IR 100; fallback_character_set: ISO_IR 100; name_groups: alphabetic
    Cyrillic, ISO_IR 144        | character_set: ISO_IR 144
    Japanese, ISO 2022 IR 87    | character_set: \\ISO 2022 IR 87
    Korean, ISO 2022 IR 149     | character_set: \\ISO 2022 IR 149
    Old: ASCII, plain answers   | character_set: ISO_IR 6; fallback_character_set: ISO_IR 6; name_groups: alphabetic; empty_sequences: no; combined_pdvs: no
    """)
}


def this_minute() -> int:
    """A number that is another one each minute, on a clock that is not set."""
    return int(time.monotonic() // 60)


def profile_settings(name: str) -> dict[str, str]:
    """The settings of a ready profile, with the defaults of those that only others name."""
    if name not in DEVICE_PROFILES:
        return {}
    named = {key for profile in DEVICE_PROFILES.values() for key in profile}
    return {s.key: s.default for s in DEVICE_SETTINGS if s.key in named} | DEVICE_PROFILES[name]


@functools.lru_cache(256)
def host_addresses(host: str, minute: int) -> frozenset[str]:
    """The addresses of a host, looked up once a minute."""
    try:
        return frozenset(info[4][0] for info in socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):  # a name that is none
        return frozenset()


def same_host(host: str, address: str) -> bool:
    """Whether an address is one of a host's."""
    address = address.removeprefix("::ffff:")
    return address == host or address in host_addresses(host, this_minute())


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
    if role != "admin" and is_last_administrator(name):
        raise Refusal(Status.PROCESSING_FAILURE, Message("This is the last administrator"))
    user = User.get_or_none(User.name == name) or User(name=name, created_at=ctx.stamp())
    admins = User.select().where(User.role == "admin").count()
    if user.id and user.role == "admin" and role != "admin" and admins == 1:
        raise Refusal(Status.PROCESSING_FAILURE, Message("This is the last administrator"))
    user.role, user.password = role, hash_password(password)
    user.save()
    Session.delete().where(Session.user == user).execute()
    audit(ctx, "user set", name, role)
    return user


def is_last_administrator(name: str) -> bool:
    """Whether nobody else is an administrator."""
    admins = [user.name for user in User.select().where(User.role == "admin")]
    return admins == [name]


def delete_user(ctx: Context, name: str) -> None:
    """End a login. Refuses 0112 for an unknown one, 0110 for the last administrator."""
    user = User.get_or_none(User.name == name)
    if not user:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no user {name}", name=name))
    if is_last_administrator(name):
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
    """Who a request comes from.

    ae_titles  of a token: those that it speaks for
    """

    name: str
    role: str
    csrf: str = ""
    ae_titles: tuple[str, ...] = ()

    def speaks_for(self, ae_title: str) -> bool:
        """Whether it may subscribe an AE, or hear what the AE is told."""
        return self.role == "admin" or ae_title in self.ae_titles


def logins_of(ctx: Context) -> list[tuple[str, str, int, str]]:
    """Name, role, number of open sessions, and when the last began, of each user."""
    return database.execute_sql(
        "SELECT u.name, u.role, count(s.digest), coalesce(max(s.created_at), '') FROM user u"
        " LEFT JOIN session s ON s.user_id = u.id AND s.expires_at > ?"
        " GROUP BY u.id ORDER BY u.name",
        (ctx.stamp(),),
    ).fetchall()


def tokens_of() -> list[tuple[str, str, str, str]]:
    """Name, role, AE titles and time of making of each API token."""
    return database.execute_sql(
        "SELECT name, role, ae_titles, created_at FROM token ORDER BY name"
    ).fetchall()


def end_sessions(ctx: Context, name: str) -> int:
    """Log a user out everywhere: how many sessions that ends. Refuses 0112."""
    user = User.get_or_none(User.name == name)
    if not user:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no user {name}", name=name))
    count = Session.delete().where(Session.user == user).execute()
    audit(ctx, "sessions ended", name, str(count))
    return count


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


def make_token(ctx: Context, name: str, role: str, ae_titles: Iterable[str] = ()) -> str:
    """A new API token, shown once; one of the same name is replaced. Refuses 0106.

    ae_titles  those that it may subscribe and open WebSockets for; an administrator's needs none
    """
    if not name or role not in ROLES:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("A token needs a name and a role"))
    titles = [title.strip() for title in ae_titles]
    for title in titles:
        if not is_ae_title(title):
            words = Message("{ae} is no AE title", ae=repr(title))
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words)
    secret = secrets.token_urlsafe(32)
    Token.delete().where(Token.name == name).execute()
    Token.create(
        name=name,
        role=role,
        digest=digest_of(secret),
        created_at=ctx.stamp(),
        ae_titles="\\".join(titles),
    )
    audit(ctx, "token made", name, f"{role}{' for ' if titles else ''}{', '.join(titles)}")
    return secret


def delete_token(ctx: Context, name: str) -> None:
    """End a token. Refuses 0112 for an unknown one."""
    if not Token.delete().where(Token.name == name).execute():
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no token {name}", name=name))
    audit(ctx, "token deleted", name)


def find_token(secret: str) -> Login | None:
    """Whose API token this is."""
    row = database.execute_sql(
        "SELECT name, role, ae_titles FROM token WHERE digest = ?", (digest_of(secret),)
    ).fetchone()
    if not row:
        return None
    name, role, titles = row
    return Login(name, role, ae_titles=tuple(titles.split("\\")) if titles else ())


def is_ae_title(text: str) -> bool:
    """Whether a text may be an AE title (PS3.5 6.2)."""
    return bool(text) and not value_problem("AE", text) and text.isprintable()


def permit(role: str, least: str) -> bool:
    """Whether a role may do what another may."""
    return role in ROLES and ROLES.index(role) >= ROLES.index(least)


# 8. EVENTS ------------------------------------------------------------------------------------
#
# Who wants to hear of a workitem, and what they are told. Events are rows written in the
# transaction that caused them; section 15 sends them. Source: PS3.4 CC.2.3, CC.2.4.
# For others: subscribe, unsubscribe, suspend_global_subscription, record_event, announce, pass_on.

# How an AE is told: by N-EVENT-REPORT (PS3.4 CC.2.4), by WebSocket (PS3.18 8.10.5), or both.
EVENT_CHANNELS = ("dimse", "websocket")


def record_event(ctx: Context, name: str, uid: str, data: bytes, receivers: Iterable[str]) -> None:
    """Write an event and a row for each receiver, in the transaction at hand.

    name       a key of EVENT_TYPES
    data       the event information, stored form
    receivers  AE titles; without any the event is history alone
    """
    now = ctx.stamp()
    event_id = insert_row(
        WorkitemEvent,
        sop_instance_uid=uid,
        event_type=EVENT_TYPES[name],
        data=data,
        created_at=now,
        who=str(ctx.actor),
    )
    to_tell = [(event_id, *way, now) for way in ways_to_tell(ctx, receivers)]
    insert_rows("outbox_event (event_id, receiver, channel, created_at)", to_tell)


def pass_on(
    ctx: Context, kind: str, operation: str, uid: str, data: bytes = b"", event_type: int = 0
) -> None:
    """Write a message for each device that is passed on its kind, in the transaction at hand.

    kind        a key of PASSED_ON
    uid         SOP Instance UID of what it is about
    data        the data set, stored form
    Who told us is not told: two systems would tell each other without end
    """
    receivers = [
        device.ae_title
        for device in ctx.devices
        if kind in device.passed_on and ctx.actor.name not in device.ae_titles
    ]
    sop_class, _ = PASSED_ON[kind]
    insert_rows(
        "passed_on (receiver, sop_class_uid, operation, sop_instance_uid, event_type, data,"
        " created_at)",
        [(receiver, sop_class, operation, uid, event_type, data, ctx.stamp())
         for receiver in receivers],
    )  # fmt: skip


def recent_passed_on(most: int = 200) -> list[Any]:
    """The newest of what is passed on."""
    return fetch_rows(PassedOn, f"1 = 1 ORDER BY id DESC LIMIT {most}")


def passed_on_of(performed_id: int) -> list[tuple[str, str, str, str, str]]:
    """Receiver, operation, answer, time, and when it was given up, of what is passed on of a step."""
    return database.execute_sql(
        "SELECT receiver, o.operation, o.answer, o.sent_at, o.given_up_at FROM passed_on o"
        " JOIN performed_procedure_step p ON p.sop_instance_uid = o.sop_instance_uid"
        " WHERE p.id = ? ORDER BY o.id",
        (performed_id,),
    ).fetchall()


def destinations() -> list[tuple[str, int, str, str, str]]:
    """AE title, how many messages wait, since when, last success and problem of who is passed on."""
    return database.execute_sql(
        "SELECT p.receiver, sum(p.sent_at = '' AND p.given_up_at = ''), coalesce(min(CASE WHEN"
        " p.sent_at = '' AND p.given_up_at = '' THEN p.created_at END), ''),"
        " coalesce(max(d.heard_at), ''), coalesce(max(d.problem), '') FROM passed_on p"
        " LEFT JOIN destination d ON d.ae_title = p.receiver GROUP BY p.receiver ORDER BY 1"
    ).fetchall()


def ways_to_tell(ctx: Context, receivers: Iterable[str]) -> list[tuple[str, str]]:
    """Each receiver with each channel by which it is told: as its device says, else as is known."""
    if not (receivers := list(receivers)):
        return []
    known = collections.defaultdict(list)
    for ae_title, channel in database.execute_sql("SELECT ae_title, channel FROM event_channel"):
        known[ae_title].append(channel)
    for device in ctx.devices:
        if device.events != "as_subscribed":
            ways = EVENT_CHANNELS if device.events == "both" else (device.events,)
            known |= {title: list(ways) for title in device.ae_titles}
    return [(title, one) for title in receivers for one in known.get(title, EVENT_CHANNELS[:1])]


def device_of(ctx: Context, ae_title: str) -> Device | None:
    """The device of an AE title, None where it is not registered."""
    return next((one for one in ctx.devices if ae_title in one.ae_titles), None)


def enter_channel(ctx: Context, ae_title: str, channel: str) -> bool:
    """An AE is to be told by a channel too, by DIMSE where it has an address; whether that is new."""
    device = device_of(ctx, ae_title)
    if channel == "dimse" and not (device and device.host):
        return False
    sql = "INSERT INTO event_channel (ae_title, channel) VALUES (?, ?) ON CONFLICT DO NOTHING"
    return database.execute_sql(sql, (ae_title, channel)).rowcount > 0


def subscribers(workitem_id: int) -> list[str]:
    """The AE titles subscribed to a workitem."""
    cursor = database.execute_sql(
        "SELECT ae_title FROM subscription WHERE workitem_id = ? ORDER BY ae_title", (workitem_id,)
    )
    return [title for (title,) in cursor]


def state_report(index: ElementIndex) -> bytes:
    """The information of a UPS State Report (PS3.4 Table CC.2.4-1)."""
    told = {UPS_STATE, tag_of("InputReadinessState")}
    progress = index.item("ProcedureStepProgressInformationSequence")
    reasons = ("ReasonForCancellation", "ProcedureStepDiscontinuationReasonCodeSequence")
    final = index.text(UPS_STATE) == "CANCELED"
    why = progress.only(map(tag_of, reasons)) if final else b""
    return ElementIndex(index.only(told)).merged(ElementIndex(why))


def assigned_reports(index: ElementIndex) -> list[bytes]:
    """The information of UPS Assigned: one for each performer, one where only a station is named."""
    station = ElementIndex(index.only([tag_of("ScheduledStationNameCodeSequence")]))
    station = station if station.items(tag_of("ScheduledStationNameCodeSequence")) else EMPTY
    keywords = ("HumanPerformerCodeSequence", "HumanPerformerOrganization")
    performers = index.items(tag_of("ScheduledHumanPerformersSequence"))
    told = [
        station.merged(ElementIndex(performer.only(map(tag_of, keywords))))
        for performer in performers
    ]
    return told or ([bytes(station)] if station.found else [])


def can_be_told(ctx: Context, ae_title: str) -> bool:
    """Whether an AE is told by WebSocket, or is a device whose address we know."""
    device = device_of(ctx, ae_title)
    has_host = bool(device and device.host)
    return any(way == "websocket" or has_host for _, way in ways_to_tell(ctx, [ae_title]))


def check_receiver(ae_title: str) -> None:
    """Refuse (0115) what is no AE title."""
    if not is_ae_title(ae_title):
        raise Refusal(Status.INVALID_ARGUMENT_VALUE, Message("That is no AE title"))


def known_receiver(ctx: Context, ae_title: str) -> None:
    """Refuse (0115, C308) an AE title that we could not call."""
    check_receiver(ae_title)
    if not can_be_told(ctx, ae_title):
        raise Refusal(
            Status.RECEIVING_AE_UNKNOWN,
            Message("{ae} is not registered with an address", ae=ae_title),
        )


def stored_workitem(uid: str) -> Any:
    """A workitem by its UID, None where there is none."""
    return next(iter(fetch_rows(Workitem, "sop_instance_uid = ?", uid)), None)


def find_workitem(uid: str) -> Any:
    """A workitem by its UID. Refuses C307."""
    if not (found := stored_workitem(uid)):
        raise Refusal(Status.NO_SUCH_UPS, Message("There is no such workitem"))
    return found


def name_chunk(name: str) -> str:
    """The longest part of a name key that is in the `name_key` of every name that it matches."""
    # name_key reads yu and v behind l or n as u: a chunk may begin or end in the midst of that
    edges = re.compile(r"^(yu|y|v)|(?<=[ln])y$")
    chunks = [edges.sub("", name_key(chunk)) for chunk in re.split(r"[*?=^ vyu]", plain(name))]
    return max(chunks, key=len)


_WORKITEM_KEY_COLUMNS = {
    "SOPInstanceUID": "sop_instance_uid",
    "ProcedureStepState": "state",
    "WorklistLabel": "worklist_label",
    "ScheduledProcedureStepPriority": "priority",
    "InputReadinessState": "readiness",
    "PatientID": "patient_id",
    "ProcedureStepLabel": "label",
}


def workitem_ids(search: Search) -> list[tuple[int, int]]:
    """Ids and versions of the workitems that may match, in order of their start."""
    index, where, values = search.index, [], []
    for keyword, column in _WORKITEM_KEY_COLUMNS.items():
        wanted = index.values(tag_of(keyword))
        stem = wanted[0].removesuffix("*") if len(wanted) == 1 else ""
        if wanted and all(wanted) and not any("*" in w or "?" in w for w in wanted):
            where.append(f"{column} IN ({', '.join('?' * len(wanted))})")
            values += wanted
        elif stem and "*" not in stem and "?" not in stem:  # text*
            where.append(f"{column} >= ? AND {column} < ?")
            values += stem, stem + "\U0010ffff"
    request = index.item("ReferencedRequestSequence").get("AccessionNumber")
    if request and "*" not in request and "?" not in request:
        where.append("accession_number IN (?, '*')")
        values.append(request)
    if chunk := name_chunk(index.get("PatientName")):
        where.append("instr(name_key, ?)")
        values.append(chunk)
    tag = tag_of("ScheduledProcedureStepStartDateTime")
    if text := index.text(tag).strip("*"):
        span = instants(tag, text, search.style.zone)
        for sign, bound in ((">=", span.low), ("<=", span.high)):
            if bound:
                where.append(f"start_at {sign} ?")
                values.append(utc_stamp(bound))
    sql = "SELECT id, version FROM workitem" + (f" WHERE {' AND '.join(where)}" if where else "")
    return database.execute_sql(f"{sql} ORDER BY start_at, id", values).fetchall()


@functools.lru_cache(maxsize=64)
def filter_search(keys: bytes, zone: datetime.tzinfo | None) -> Search:
    """The search of a filtered subscription. Refuses A900."""
    return Search(ElementIndex(keys), UPS_ATTRIBUTES, True, AnswerStyle(zone=zone))


def matching_workitems(search: Search) -> set[int]:
    """Ids of the workitems that match."""
    return {row_id for row_id, _ in matching_rows(Workitem, workitem_ids(search), search)}


def own_state(deletion_lock: int | None) -> str:
    """The state of SUBSCRIPTION_STATES that a row of `subscription`, or none, stands for."""
    return SUBSCRIPTION_STATES[0 if deletion_lock is None else 1 if deletion_lock else 2]


def change_subscriptions(
    ctx: Context, request: str, ae_title: str, only: set[int] | None = None
) -> str:
    """Let a request change what an AE hears of some workitems, or all, as the table says.

    Returns what the audit line says of locks that it released.

    request  a row of SUBSCRIPTION_TRANSITIONS
    only     ids of workitems; None for all
    """
    nothing = SUBSCRIPTION_TRANSITIONS[request, "Not Subscribed"] == ("Not Subscribed", False)
    one = only is not None and len(only) == 1
    cursor = database.execute_sql(
        "SELECT w.id, w.sop_instance_uid, w.state, w.readiness, s.deletion_lock FROM workitem w"
        f" {'' if nothing else 'LEFT '}JOIN subscription s"
        " ON s.workitem_id = w.id AND s.ae_title = ?"
        + (f" WHERE w.id = {min(only)}" if one else " ORDER BY w.id"),
        (ae_title,),
    )
    entered, left, reports, released = [], [], [], 0
    for row_id, uid, state, readiness, lock in cursor.fetchall():
        if only is not None and row_id not in only:
            continue
        new, report = SUBSCRIPTION_TRANSITIONS[request, own_state(lock)]
        released += bool(lock) and new != "with Lock"
        if new == "Not Subscribed":
            left.append((row_id, ae_title))
        elif new != own_state(lock):
            entered.append((row_id, ae_title, int(new == "with Lock"), ctx.stamp()))
        if report:
            reports.append((uid, state, readiness))
    enter_subscriptions(entered)
    delete = "DELETE FROM subscription WHERE workitem_id = ? AND ae_title = ?"
    database.connection().executemany(delete, left)
    _record_initial_reports(ctx, ae_title, reports)
    return f", {released} locks released" if released else ""


def enter_subscriptions(values: Iterable[tuple[int, str, int, str]]) -> None:
    """Write subscriptions as (workitem's id, AE title, deletion lock, time)."""
    insert_rows(
        "subscription (workitem_id, ae_title, deletion_lock, created_at) VALUES"
        " ON CONFLICT (workitem_id, ae_title) DO UPDATE SET deletion_lock = excluded.deletion_lock",
        values,
    )


def _record_initial_reports(
    ctx: Context, ae_title: str, reports: list[tuple[str, str, str]]
) -> None:
    """State reports for a new subscriber: UID, state, readiness of each (PS3.4 CC.2.3.2)."""
    if not reports:
        return
    now, who, kind = ctx.stamp(), str(ctx.actor), EVENT_TYPES["UPS State Report"]
    told = {
        (state, readiness): bytes(
            text_elements(ProcedureStepState=state, InputReadinessState=readiness)
        )
        for _, state, readiness in reports
    }
    (last,) = database.execute_sql("SELECT coalesce(max(id), 0) FROM workitem_event").fetchone()
    insert_rows(
        "workitem_event (id, sop_instance_uid, event_type, data, created_at, who, initial)",
        (
            (event_id, uid, kind, told[state, readiness], now, who, 1)
            for event_id, (uid, state, readiness) in enumerate(reports, last + 1)
        ),
    )
    ways = ways_to_tell(ctx, [ae_title])
    insert_rows(
        "outbox_event (event_id, receiver, channel, created_at)",
        ((last + n, *way, now) for n in range(1, len(reports) + 1) for way in ways),
    )


WELL_KNOWN_UPS = frozenset({UPS_GLOBAL_SUBSCRIPTION, UPS_FILTERED_SUBSCRIPTION})


def subscribe(
    ctx: Context,
    uid: str,
    ae_title: str,
    lock: bool,
    keys: bytes = b"",
    channel: str = EVENT_CHANNELS[0],
) -> Status:
    """Subscribe an AE to one workitem, to all (34.5), or to those that match keys (34.5.1).

    channel  how it is told from now on, too; any AE may be told by WebSocket

    Returns  B301 where a lock was asked for and [ups] grant_locks is off
    Refuses  C307, C308; 0120 for a filtered subscription without keys, A900 for wrong ones
    Source   PS3.4 CC.2.3, Table CC.2.3-2
    """
    granted = lock and ctx.config.ups.grant_locks
    ending = ", lock" if granted else ""
    with database.atomic():
        if uid not in WELL_KNOWN_UPS:
            find_workitem(uid)
        check_receiver(ae_title)
        enter_channel(ctx, ae_title, channel)
        known_receiver(ctx, ae_title)
        if uid in WELL_KNOWN_UPS:
            only = _subscribe_globally(ctx, uid, ae_title, granted, keys)
            released = change_subscriptions(ctx, f"subscribe globally{ending}", ae_title, only)
        else:
            only = {find_workitem(uid).id}
            released = change_subscriptions(ctx, f"subscribe{ending}", ae_title, only)
        # who subscribes is there: what it has missed is tried at once
        try_again(ae_title)
        audit(ctx, "subscribed", uid, f"{ae_title}{' with lock' if granted else ''}{released}")
    log.info("%s subscribed to %s by %s", ae_title, uid, ctx.actor)
    return Status.SUCCESS if granted or not lock else Status.DELETION_LOCK_NOT_GRANTED


class Outbox(NamedTuple):
    """A queue of what AEs are to be told by DIMSE, each in its order.

    table, receivers  that of the messages, and that of how the deliveries to an AE go
    waiting           what of the table waits; `rows`: what a sender is given of it, by receiver
    """

    table: str
    receivers: str
    waiting: str
    rows: str


EVENTS_OUTBOX = Outbox(
    "outbox_event",
    "receiver",
    "channel = 'dimse' AND sent_at = '' AND given_up_at = ''",
    "SELECT o.id, e.sop_instance_uid, e.event_type, e.data FROM outbox_event o"
    " JOIN workitem_event e ON e.id = o.event_id WHERE o.channel = 'dimse'"
    " AND o.receiver = ? AND o.sent_at = '' AND o.given_up_at = '' ORDER BY o.id LIMIT ?",
)
PASSED_ON_OUTBOX = Outbox(
    "passed_on",
    "destination",
    "sent_at = '' AND given_up_at = ''",
    "SELECT id, sop_instance_uid, event_type, data, sop_class_uid, operation FROM passed_on"
    " WHERE receiver = ? AND sent_at = '' AND given_up_at = '' ORDER BY id LIMIT ?",
)


def try_again(receiver: str, outbox: Outbox = EVENTS_OUTBOX) -> None:
    """Have what a receiver has not heard tried again now, as if it had never failed."""
    database.execute_sql(
        f"UPDATE {outbox.receivers} SET try_at = '', failures = 0, failing_s = 0, problem = ''"
        " WHERE ae_title = ?",
        (receiver,),
    )


def _subscribe_globally(
    ctx: Context, uid: str, ae_title: str, lock: bool, keys: bytes
) -> set[int] | None:
    """Keep a global subscription: ids of the workitems that it is of, None for all."""
    only = None
    if uid == UPS_FILTERED_SUBSCRIPTION:
        keys = ElementIndex(keys).only(
            tag for tag in ElementIndex(keys) if (tag,) in UPS_ATTRIBUTES
        )
        if not keys:
            raise Refusal(Status.MISSING_ATTRIBUTE, "A filtered subscription needs keys")
        try:
            only = matching_workitems(filter_search(keys, ctx.config.zone))
        except Refusal as refusal:  # A900 is none of N-ACTION's
            status = Status.INVALID_ARGUMENT_VALUE
            raise Refusal(status, refusal.detail, refusal.problems) from None
    insert_rows(
        "global_subscription (ae_title, uid, deletion_lock, keys, created_at) VALUES"
        " ON CONFLICT (ae_title, uid) DO UPDATE SET deletion_lock = excluded.deletion_lock,"
        " keys = excluded.keys",
        [(ae_title, uid, int(lock), keys if only is not None else b"", ctx.stamp())],
    )
    return only


def unsubscribe(ctx: Context, uid: str, ae_title: str, why: str = "") -> None:
    """End a subscription to one workitem, or all of an AE's (34.5, 34.5.1).

    why      what a person says who does it for the AE

    Refuses  C307, 0115. Source: PS3.4 CC.2.3.2; local: 34.5.1 ends what 34.5 ends
    """
    check_receiver(ae_title)
    with database.atomic():
        if uid in WELL_KNOWN_UPS:
            erase("global_subscription WHERE ae_title = ?", ae_title)
            released = change_subscriptions(ctx, "unsubscribe globally", ae_title)
        else:
            row_id = find_workitem(uid).id
            released = change_subscriptions(ctx, "unsubscribe", ae_title, {row_id})
        # who comes back over HTTP alone must not be called by DIMSE for ever
        erase(
            "event_channel WHERE ae_title = ? AND channel = 'dimse' AND NOT EXISTS (SELECT 1 FROM"
            " subscription s WHERE s.ae_title = event_channel.ae_title) AND NOT EXISTS (SELECT 1"
            " FROM global_subscription g WHERE g.ae_title = event_channel.ae_title)",
            ae_title,
        )
        database.execute_sql(
            "UPDATE outbox_event SET given_up_at = ?, problem = 'unsubscribed' WHERE receiver = ?"
            " AND sent_at = '' AND given_up_at = '' AND EXISTS (SELECT 1 FROM workitem_event e"
            " WHERE e.id = event_id AND e.event_type <> ? AND (? OR e.sop_instance_uid = ?))",
            (ctx.stamp(), ae_title, EVENT_TYPES["SCP Status Change"], uid in WELL_KNOWN_UPS, uid),
        )
        reason = f": {why.strip()[:500]}" if why.strip() else ""
        audit(ctx, "unsubscribed", uid, f"{ae_title}{released}{reason}")
    log.info("%s unsubscribed from %s by %s", ae_title, uid, ctx.actor)


def known_subscription(uid: str, ae_title: str, single: bool = True) -> None:
    """Refuse (C307) a subscription that there is not (PS3.18 11.11.3, 11.12.3).

    single  for a global one: one to a workitem will do, which ends with it
    """
    known = ["SELECT 1 FROM global_subscription WHERE uid = ?1 AND ae_title = ?2"]
    if uid not in WELL_KNOWN_UPS:
        find_workitem(uid)
        known = ["SELECT 1 FROM subscription s JOIN workitem w ON w.id = s.workitem_id"
                 " WHERE w.sop_instance_uid = ?1 AND s.ae_title = ?2"]  # fmt: skip
    elif single:
        known += [
            f"SELECT 1 FROM {name}subscription WHERE ae_title = ?2" for name in ("", "global_")
        ]
    if not database.execute_sql(" UNION ALL ".join(known), (uid, ae_title)).fetchone():
        raise Refusal(Status.NO_SUCH_UPS, Message("There is no such subscription"))


def suspend_global_subscription(ctx: Context, uid: str, ae_title: str) -> None:
    """End what an AE hears of workitems to come; its subscriptions to those there are stay.

    Refuses  C307, 0115; C314 for a UID that is no global subscription. Source: PS3.4 CC.2.3.2
    """
    check_receiver(ae_title)
    if uid not in WELL_KNOWN_UPS:
        find_workitem(uid)
        raise Refusal(Status.ACTION_NOT_APPROPRIATE, "Only a global subscription is suspended")
    with database.atomic():
        erase("global_subscription WHERE ae_title = ? AND uid = ?", ae_title, uid)
        change_subscriptions(ctx, "suspend globally", ae_title)
        audit(ctx, "suspended", uid, ae_title)
    log.info("%s suspended its subscription to %s by %s", ae_title, uid, ctx.actor)


def _is_wanted(ctx: Context, row: Any, index: ElementIndex) -> bool:
    """Whether a global subscription is of a workitem; one whose filter cannot be read is of none."""
    try:
        return not row.keys or filter_search(bytes(row.keys), ctx.config.zone).matches(index)
    except Refusal as refusal:
        log.error("the filter of %s cannot be read: %s", row.ae_title, refusal)
        return False


def subscribe_created(ctx: Context, workitem_id: int, data: bytes) -> list[str]:
    """Subscribe whoever is subscribed globally to a new workitem: their AE titles."""
    index, locks = ElementIndex(data), {}
    for row in fetch_rows(GlobalSubscription, "1 = 1 ORDER BY ae_title, uid"):
        if _is_wanted(ctx, row, index):
            locks[row.ae_title] = locks.get(row.ae_title, False) or bool(row.deletion_lock)
    entered, now = [], ctx.stamp()
    for ae_title, lock in locks.items():
        request = "created, global lock" if lock else "created, global"
        new, _ = SUBSCRIPTION_TRANSITIONS[request, "Not Subscribed"]
        entered.append((workitem_id, ae_title, int(new == "with Lock"), now))
    enter_subscriptions(entered)
    return list(locks)


def announce(ctx: Context, scp_status: str, cold: bool = False) -> list[str]:
    """Tell every subscriber and [ups] restart_receivers of our restart, or going down: whom.

    scp_status  RESTARTED or GOING DOWN
    cold        whether the lists may not be what they were
    Source      PS3.4 CC.2.4.3; local: one report for an AE, of the UID of global subscriptions;
                an earlier one that has not been delivered is given up for it
    """
    start = "COLD START" if cold else "WARM START"
    data = text_elements(
        SCPStatus=scp_status,
        SubscriptionListStatus=start,
        UnifiedProcedureStepListStatus=start,
    )
    cursor = database.execute_sql(
        "SELECT ae_title FROM subscription UNION SELECT ae_title FROM global_subscription"
    )
    receivers = sorted({title for (title,) in cursor} | set(ctx.config.ups.restart_receivers))
    database.execute_sql(
        "UPDATE outbox_event SET given_up_at = ?, problem = 'superseded' WHERE sent_at = ''"
        " AND given_up_at = '' AND EXISTS (SELECT 1 FROM workitem_event e"
        " WHERE e.id = event_id AND e.event_type = ?)",
        (ctx.stamp(), EVENT_TYPES["SCP Status Change"]),
    )
    if receivers:
        uid = UPS_GLOBAL_SUBSCRIPTION
        record_event(ctx, "SCP Status Change", uid, bytes(data), receivers)
    return receivers


# 9. WORKLIST ----------------------------------------------------------------------------------
#
# Patients, requested procedures and scheduled procedure steps; the modality worklist.
# Source: PS3.4 annex K, PS3.3 C.4.10 to C.4.12.
# For others: schedule, reschedule, change_step, cancel_step, find_step, find_worklist, AnswerCache,
# QueryLog, save_queries, exclusion, find_steps, recent_queries.

# Family names of two characters, so that a Chinese name written in one run can be taken apart.
COMPOUND_SURNAMES = frozenset(
    "欧阳 太史 端木 上官 司马 东方 独孤 南宫 万俟 闻人 夏侯 诸葛 尉迟 公羊 赫连 澹台 皇甫 宗政 濮阳 公冶 太叔 申屠"
    " 公孙 慕容 仲孙 钟离 长孙 宇文 司徒 鲜于 司空 令狐 百里 呼延 东郭 南门 西门".split()
)


# How family names are read where they are read otherwise than the same character in a word.
SURNAMES = dict(
    pair.split("=")
    for pair in (
        "单=shan 仇=qiu 曾=zeng 覃=qin 解=xie 朴=piao 查=zha 区=ou 盖=ge 华=hua 任=ren 宁=ning 尉迟=yuchi"
        " 万俟=moqi 澹台=tantai 长孙=zhangsun 单于=chanyu 尉=wei 黑=he 繁=po 召=shao 员=yun 乐=yue 种=chong"
        " 折=she 逄=pang 晟=cheng 冼=xian 宓=fu 郗=xi 缪=miao 瞿=qu 翟=zhai 臧=zang 卜=bu 车=che 贾=jia"
        " 俞=yu 沈=shen 薄=bo 秘=bi 应=ying 纪=ji 那=na 洗=xian 阙=que 隗=wei 谌=chen 吕=lyu 鲜于=xianyu"
    ).split()
)


def latin_name(components: str) -> str:
    """The pinyin of a Chinese name, Wang^XiaoDong for 王^小东; nothing without pypinyin.

    ü is written yu, as in passports.
    """
    try:
        from pypinyin import lazy_pinyin
    except ImportError:
        return ""
    family, _, given = components.partition("^")
    syllables = lazy_pinyin(given.replace("^", ""), errors="ignore")
    read = SURNAMES.get(family) or "".join(lazy_pinyin(family, errors="ignore"))
    parts = [read.capitalize(), "".join(one.capitalize() for one in syllables)]
    return "^".join(parts).rstrip("^").replace("v", "yu")


def chinese_name(text: str) -> str:
    """`王小东` or `王 小东` as components `王^小东`."""
    parts = text.replace("^", " ").replace("·", " ").split()
    if len(parts) == 1 and len(text.strip()) > 1 and not parts[0].isascii():
        name = parts[0]
        cut = 2 if name[:2] in COMPOUND_SURNAMES and len(name) > 2 else 1
        parts = [name[:cut], name[cut:]]
    return "^".join(parts)


def person_name(family: str, given: str, chinese: str) -> str:
    """A PN value from what was typed: `Wang^XiaoDong=王^小东`."""
    ideographic = chinese_name(chinese)
    latin = f"{family.strip()}^{given.strip()}".strip("^") if family.strip() else given.strip()
    return f"{latin or latin_name(ideographic)}={ideographic}".rstrip("=")


def typed_name(text: str) -> str:
    """A PN value from one line: hanzi alone are the ideographic group, all else is as it is."""
    hanzi = re.search(r"[\u3400-\u9fff]", text) and "=" not in text
    return person_name("", "", text) if hanzi else text


def same_person(index: ElementIndex, patient: Patient) -> bool:
    """Whether name and birth date are those of a patient.

    The ideographic group decides where both have one: many names sound alike. Else any group.
    """
    ours, theirs = patient.name_key.split("="), name_key(index.get("PatientName")).split("=")
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a and b]
    if all(len(groups) > 1 and groups[1] for groups in (ours, theirs)):
        pairs = [(ours[1], theirs[1])]
    birth_dates = {patient.patient_birth_date, index.get("PatientBirthDate")} - {""}
    return any(a == b for a, b in pairs) and len(birth_dates) < 2


def is_of_patient(tag: int) -> bool:
    """Whether an attribute is of the patient, not of the procedure; by group where no table says."""
    row = MWL_ATTRIBUTES.get((tag,))
    return row.cells["entity"] == "patient" if row else tag >> 16 == 0x0010


def split_item(index: ElementIndex) -> tuple[bytes, bytes, list[ElementIndex]]:
    """A worklist item taken apart: the patient's attributes, the procedure's, the steps."""
    patient = [tag for tag in index if is_of_patient(tag)]
    procedure = index.without((*patient, STEP_SEQUENCE, SPECIFIC_CHARACTER_SET))
    return index.only(patient), procedure, index.items(STEP_SEQUENCE)


def fold(patient: bytes, procedure: bytes, step: bytes) -> bytes:
    """The complete worklist data set of one scheduled procedure step."""
    sequence = encode_items(STEP_SEQUENCE, [step])
    return ElementIndex(patient).merged(ElementIndex(procedure), ElementIndex(sequence))


def step_columns(data: bytes) -> dict[str, str]:
    """The columns of a scheduled procedure step, all from its data set, normalised."""
    index = ElementIndex(data)
    step = index.item("ScheduledProcedureStepSequence")
    return {
        "scheduled_procedure_step_id": step.get("ScheduledProcedureStepID"),
        "study_instance_uid": index.get("StudyInstanceUID"),
        "requested_procedure_id": index.get("RequestedProcedureID"),
        "accession_number": index.get("AccessionNumber"),
        "patient_id": index.get("PatientID"),
        "name_key": name_key(index.get("PatientName")),
        "modality": step.get("Modality"),
        "start_date": step.get("ScheduledProcedureStepStartDate"),
        "start_time": _time_start(step.get("ScheduledProcedureStepStartTime")),
        "status": step.get("ScheduledProcedureStepStatus"),
    }


def next_identifier(ctx: Context, pattern: str, taken: Callable[[str], bool]) -> str:
    """The next identifier of a pattern that is not in use; numbers start anew with its dates."""
    now = ctx.local_now()
    day = re.sub(r"\{number[^}]*\}", "#", pattern)
    name = f"{pattern} {format_identifier(day, now, 0)}"
    while True:
        number = database.execute_sql(
            "INSERT INTO counter (name, last) VALUES (?, 1)"
            " ON CONFLICT (name) DO UPDATE SET last = last + 1 RETURNING last",
            (name,),
        ).fetchone()[0]
        identifier = format_identifier(pattern, now, number)
        if not taken(identifier):
            return identifier


def _exists(model: type[Stored], column: str, value: str) -> bool:
    sql = f"SELECT 1 FROM {model._meta.table_name} WHERE {column} = ? LIMIT 1"
    return database.execute_sql(sql, (value,)).fetchone() is not None


def step_with_defaults(ctx: Context, step: ElementIndex, procedure: ElementIndex) -> ElementIndex:
    """A step with what can be known though it was not given: device, modality, time, state."""
    title = next(iter(step.values(tag_of("ScheduledStationAETitle"))), "")
    modality = step.get("Modality")
    devices = (
        [d for d in ctx.devices if title in d.ae_titles]
        if title
        else [d for d in ctx.devices if modality and d.modality == modality]
    )
    device = devices[0] if len(devices) == 1 else Device("", ("",))
    now = ctx.local_now()
    known = text_elements(
        ScheduledStationAETitle=device.ae_title,
        Modality=device.modality,
        ScheduledStationName=device.station_name,
        ScheduledProcedureStepLocation=device.location,
        ScheduledProcedureStepStartDate=f"{now:%Y%m%d}",
        ScheduledProcedureStepStartTime=f"{now:%H%M%S}",
        ScheduledProcedureStepDescription=procedure.get("RequestedProcedureDescription"),
    )
    given = ElementIndex(step.only(tag for tag in step if step.has_value(tag)))
    empty = ElementIndex(step.without(given.found))
    merged = ElementIndex(empty.merged(known, given))
    status = text_elements(ScheduledProcedureStepStatus=step.text(STEP_STATUS) or "SCHEDULED")
    return ElementIndex(merged.merged(status))


REQUIRED_STEP_KEYWORDS = (
    "ScheduledStationAETitle",
    "Modality",
    "ScheduledProcedureStepStartDate",
    "ScheduledProcedureStepStartTime",
)


def item_problems(index: ElementIndex, steps: list[ElementIndex]) -> list[Problem]:
    """Everything that keeps a worklist item from being stored."""
    problems = list(value_problems(index))
    if not name_key(index.get("PatientName")).replace("=", ""):
        problems.append(Problem(tag_of("PatientName"), Message("is missing")))
    if not steps:
        problems.append(Problem(STEP_SEQUENCE, Message("is missing")))
    for step in steps:
        problems += [
            Problem(tag_of(keyword), Message("is missing"))
            for keyword in REQUIRED_STEP_KEYWORDS
            if not step.get(keyword)
        ]
        if (status := step.text(STEP_STATUS)) not in STEP_STATES:
            problems.append(Problem(STEP_STATUS, Message("{value} is not a state", value=status)))
    return problems


SAME_ID = "{value} belongs to {name}, born {birth_date}"
SAME_PERSON = "A patient of this name and birth date has the ID {value}"


def _find_patient(ctx: Context, index: ElementIndex, same_id: str) -> Patient | None:
    """The patient an item is for; None where there is none yet.

    same_id  what to do when the Patient ID belongs to another name: `refuse`, `update` that
             patient, or keep both as `separate` patients
    """
    patient_id = index.get("PatientID")
    if not patient_id:
        return None
    candidates = list(
        Patient.select()
        .where(
            (Patient.patient_id == patient_id)
            & Patient.issuer_of_patient_id.in_([index.get("IssuerOfPatientID"), ""])
            if index.get("IssuerOfPatientID")
            else Patient.patient_id == patient_id  # who names none means the only one
        )
        .order_by(Patient.id)
    )
    for patient in candidates:
        if same_person(index, patient):
            return patient
    if not candidates or same_id == "separate":
        if candidates:
            log.warning("patient ID %s: a second patient of this ID is kept apart", patient_id)
        return None
    if same_id == "update":
        return candidates[0]
    words = Message(
        SAME_ID,
        value=patient_id,
        name=shown_name(candidates[0].patient_name),
        birth_date=shown_date(candidates[0].patient_birth_date) or "?",
    )
    raise Refusal(Status.DUPLICATE_SOP_INSTANCE, problems=[Problem(tag_of("PatientID"), words)])


def patient_columns(data: bytes) -> dict[str, Any]:
    """The columns of a patient, all from its data set."""
    index = ElementIndex(data)
    return {
        "patient_id": index.get("PatientID"),
        "issuer_of_patient_id": index.get("IssuerOfPatientID"),
        "patient_name": index.get("PatientName"),
        "name_key": name_key(index.get("PatientName")),
        "patient_birth_date": index.get("PatientBirthDate"),
        "data": data,
    }


def _save_patient(ctx: Context, given: bytes, same_id: str) -> Patient:
    """Find or make the patient of an item; what it newly tells of a known patient is taken."""
    index = ElementIndex(given)
    patient = _find_patient(ctx, index, same_id)
    if patient:
        if same_person(index, patient):  # a group that is not told is not told to be empty
            told = index.get("PatientName").split("=")
            known = patient.patient_name.split("=")
            groups = itertools.zip_longest(told, known, fillvalue="")
            name = "=".join(new or old for new, old in groups)
            given = index.merged(text_elements(PatientName=name))
        update_patient(ctx, patient, given)
        return patient
    if not index.get("PatientID"):
        made = next_identifier(
            ctx, ctx.config.clinic.patient_id_format, lambda i: _exists(Patient, "patient_id", i)
        )
        given = index.merged(text_elements(PatientID=made))
    now = ctx.stamp()
    return Patient.create(**patient_columns(given), created_at=now, updated_at=now)


def update_patient(ctx: Context, patient: Patient, given: bytes, empty: bool = False) -> None:
    """Take what is newly told of a patient; open steps follow.

    empty  take what is given empty too; else it changes nothing
    """
    index, old = ElementIndex(given), bytes(patient.data)
    told = ElementIndex(index.only(tag for tag in index if empty or index.has_value(tag)))
    new = ElementIndex(old).merged(told)
    if new == old:
        return
    for column, value in patient_columns(new).items():
        setattr(patient, column, value)
    patient.updated_at = ctx.stamp()
    patient.save()
    audit(ctx, "patient updated", patient.patient_id)
    _refold_open(patient)


def _refold_open(patient: Patient) -> None:
    """Let the open steps of a patient follow what is known of the patient."""
    steps = (
        ScheduledProcedureStep.select(ScheduledProcedureStep, RequestedProcedure)
        .join(RequestedProcedure)
        .where(
            (RequestedProcedure.patient == patient)
            & ScheduledProcedureStep.status.in_(OPEN_STEP_STATES | {"DEPARTED", "NO SHOW"})
        )
    )
    for step in steps:
        _refold(step, patient, step.procedure, bytes(step_item(step)))


def step_item(step: ScheduledProcedureStep) -> ElementIndex:
    """The one item of a stored step's Scheduled Procedure Step Sequence."""
    return ElementIndex(bytes(step.data)).item("ScheduledProcedureStepSequence")


def _refold(
    step: ScheduledProcedureStep, patient: Patient, procedure: RequestedProcedure, item: bytes
) -> None:
    """Fold a step's data set anew and write it with a new version."""
    data = fold(bytes(patient.data), bytes(procedure.data), item)
    columns = step_columns(data)
    if columns["status"] in OPEN_STEP_STATES:
        columns["ended_at"] = ""
    changed = ScheduledProcedureStep.update(
        data=data, version=ScheduledProcedureStep.version + 1, **columns
    ).where(ScheduledProcedureStep.id == step.id)
    changed.execute()
    stations = ElementIndex(item).values(tag_of("ScheduledStationAETitle"))
    old = step_item(step)
    if (stations, columns["start_date"]) != (
        old.values(tag_of("ScheduledStationAETitle")),
        step.start_date,
    ):
        ScheduledStation.delete().where(ScheduledStation.step == step).execute()
        _save_stations(step.id, stations, columns["start_date"])
    step.data, step.status = data, columns["status"]


def _save_stations(step_id: int, stations: Iterable[str], start_date: str) -> None:
    for title in dict.fromkeys(stations):
        database.execute_sql(
            "INSERT INTO scheduled_station (ae_title, start_date, step_id) VALUES (?, ?, ?)",
            (title, start_date, step_id),
        )


def _belongs_to_another(keyword: str, value: str) -> Refusal:
    words = Message("{value} belongs to another patient", value=value)
    return Refusal(Status.DUPLICATE_SOP_INSTANCE, problems=[Problem(tag_of(keyword), words)])


def check_accession(accession: str, patient_row: int) -> None:
    """Refuse (0111) the accession number of another patient."""
    sql = "SELECT 1 FROM requested_procedure WHERE accession_number = ? AND patient_id <> ?"
    if accession and database.execute_sql(sql, (accession, patient_row)).fetchone():
        raise _belongs_to_another("AccessionNumber", accession)


def _save_procedure(
    ctx: Context, patient: Patient, given: bytes, same_id: str = "refuse"
) -> RequestedProcedure:
    """Find or make the requested procedure of an item. Refuses 0111 for another patient's."""
    index = ElementIndex(given)
    uid = index.get("StudyInstanceUID")
    known = uid and RequestedProcedure.get_or_none(RequestedProcedure.study_instance_uid == uid)
    if known:
        if known.patient_id != patient.id:
            raise _belongs_to_another("StudyInstanceUID", uid)
        stored = ElementIndex(bytes(known.data))
        problems = [
            Problem(tag_of(k), Message("is {value} already", value=stored.get(k)))
            for k in ("AccessionNumber", "RequestedProcedureID")
            if index.get(k) not in ("", stored.get(k))
        ]
        if problems:
            raise Refusal(Status.DUPLICATE_SOP_INSTANCE, problems=problems)
        return known
    accession, procedure_id = index.get("AccessionNumber"), index.get("RequestedProcedureID")
    if same_id != "separate":
        check_accession(accession, patient.id)
    clinic = ctx.config.clinic
    made = text_elements(
        StudyInstanceUID=uid or ctx.new_uid(),
        AccessionNumber=accession
        or next_identifier(
            ctx,
            clinic.accession_number_format,
            lambda i: _exists(RequestedProcedure, "accession_number", i),
        ),
        RequestedProcedureID=procedure_id
        or next_identifier(
            ctx,
            clinic.requested_procedure_id_format,
            lambda i: _exists(RequestedProcedure, "requested_procedure_id", i),
        ),
    )
    return RequestedProcedure.create(
        patient=patient,
        study_instance_uid=made.get("StudyInstanceUID"),
        requested_procedure_id=made.get("RequestedProcedureID"),
        accession_number=made.get("AccessionNumber"),
        data=index.merged(made),
        created_at=ctx.stamp(),
    )


def _save_step(
    ctx: Context, patient: Patient, procedure: RequestedProcedure, step: ElementIndex
) -> bytes:
    """Make one scheduled procedure step: its complete data set. Refuses 0111 for one known."""
    step_id = step.get("ScheduledProcedureStepID") or next_identifier(
        ctx,
        ctx.config.clinic.scheduled_procedure_step_id_format,
        lambda i: _exists(ScheduledProcedureStep, "scheduled_procedure_step_id", i),
    )
    item = step.merged(text_elements(ScheduledProcedureStepID=step_id))
    data = fold(bytes(patient.data), bytes(procedure.data), item)
    columns = step_columns(data)
    arrived = ctx.stamp() if columns["status"] in ("ARRIVED", "READY") else ""
    ended = "" if columns["status"] in OPEN_STEP_STATES else ctx.stamp()
    try:
        row_id = insert_row(
            ScheduledProcedureStep,
            procedure_id=procedure.id,
            data=data,
            version=first_version(),
            created_at=ctx.stamp(),
            arrived_at=arrived,
            started_at="",
            ended_at=ended,
            remark="",
            **columns,
        )
    except peewee.IntegrityError:
        words = Message("{value} is on the worklist already", value=step_id)
        raise Refusal(
            Status.DUPLICATE_SOP_INSTANCE,
            problems=[Problem(tag_of("ScheduledProcedureStepID"), words)],
        ) from None
    _save_stations(row_id, step.values(tag_of("ScheduledStationAETitle")), columns["start_date"])
    return data


def schedule(
    ctx: Context, data: bytes, same_id: str = "refuse", trial: bool = False
) -> list[bytes]:
    """Put a worklist item on the worklist: the complete data set of each of its steps.

    data      patient, request and Scheduled Procedure Step Sequence of one item or more, stored
              form; identifiers that are not given are made
    same_id   `refuse`, `update` or `separate`, when the Patient ID belongs to another name
    trial     it will be undone, and is not logged
    Refuses   0106 with every attribute that is wrong or missing, 0111 for what exists already
    Source    PS3.4 Table K.6-1 (return types)
    """
    index = ElementIndex(data)
    patient_data, procedure_data, steps = split_item(index)
    procedure_index = ElementIndex(procedure_data)
    steps = [step_with_defaults(ctx, step, procedure_index) for step in steps]
    if problems := item_problems(index, steps):
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
    with database.atomic():
        patient = _save_patient(ctx, patient_data, same_id)
        procedure = _save_procedure(ctx, patient, procedure_data, same_id)
        stored = [_save_step(ctx, patient, procedure, step) for step in steps]
        audit(ctx, "scheduled", procedure.study_instance_uid, procedure.accession_number)
    if not trial:
        log.info(
            "accession %s: %d steps scheduled by %s",
            procedure.accession_number,
            len(stored),
            ctx.actor,
        )
    return stored


def find_step(study_instance_uid: str, step_id: str) -> ScheduledProcedureStep:
    """A scheduled procedure step by its study and ID. Refuses 0112 where there is none."""
    step = ScheduledProcedureStep.get_or_none(
        (ScheduledProcedureStep.study_instance_uid == study_instance_uid)
        & (ScheduledProcedureStep.scheduled_procedure_step_id == step_id)
    )
    if not step:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no such step"))
    return step


def step_data(study_instance_uid: str, step_id: str) -> bytes:
    """The complete data set of a step. Refuses 0112."""
    return bytes(find_step(study_instance_uid, step_id).data)


# What a person may do to a step, and in which states.
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


def step_outcome(event: str, step: ScheduledProcedureStep) -> str:
    """The state a step goes to. Refuses 0110 where STEP_TRANSITIONS has no way."""
    outcome = STEP_TRANSITIONS[event, step.status]
    if isinstance(outcome, Status):
        raise Refusal(outcome, Message("The step is {state}", state=step.status))
    return outcome


# Who says that an exam has ended, where it is no person.
TOLD_BY = {
    "performed step": Message("the machine's report"),
    "availability": Message("the archive's notice of images"),
    "archive": Message("the images found in the archive"),
    "commitment": Message("the machine's question whether its images are safe"),
}
STAMP_OF_STATE = {"ARRIVED": "arrived_at", "STARTED": "started_at"}


def enter_state(ctx: Context, step: ScheduledProcedureStep, state: str, told_by: str = "") -> None:
    """Move a step to a state, in its data set and its columns, with the time it got there.

    told_by  a key of TOLD_BY; else it is who asks
    """
    if step.status == state:
        return
    old, item = step.status, step_item(step)
    changed = item.merged(text_elements(ScheduledProcedureStepStatus=state))
    data = ElementIndex(bytes(step.data)).merged(
        ElementIndex(encode_items(STEP_SEQUENCE, [changed]))
    )
    ended = state not in OPEN_STEP_STATES
    stamps = {
        "ended_at": ctx.stamp() if ended else "",
        "told_by": (told_by or ctx.actor.name) if ended else "",
        "state_before": "",  # of what happens by itself nothing is taken back
    }
    if state in STAMP_OF_STATE:
        stamps[STAMP_OF_STATE[state]] = ctx.stamp()
    if state == "READY" and not step.arrived_at:
        stamps["arrived_at"] = ctx.stamp()
    update_row(
        ScheduledProcedureStep,
        step.id,
        data=data,
        status=state,
        version=step.version + 1,
        **stamps,
    )
    step.data, step.status, step.version = data, state, step.version + 1
    log.info(
        "step %s of %s: %s -> %s by %s",
        step.scheduled_procedure_step_id,
        step.accession_number,
        old,
        state,
        ctx.actor,
    )
    audit(ctx, "step", step.study_instance_uid, f"{step.scheduled_procedure_step_id} {state}")


def change_step(
    ctx: Context, event: str, study_instance_uid: str, step_id: str, remark: str = ""
) -> bytes:
    """Let a person's event happen to a step: its new data set. Refuses 0112, 0110.

    event   arrive, ready, depart, cancel, no show; finish and stop for an exam whose machine does
            not report or has gone silent (PS3.4 F.7.2.2.3 note 2): what it reports later counts
    remark  a reason, kept with the step
    """
    with database.atomic():
        step = find_step(study_instance_uid, step_id)
        before = step.status
        enter_state(ctx, step, step_outcome(event, step))
        changed = {"remark": remark[:1024]} if remark else {}
        if step.status != before:
            changed |= {"state_before": before, "changed_at": ctx.stamp()}
        if changed:
            update_row(ScheduledProcedureStep, step.id, **changed)
    return bytes(step.data)


UNDO_HOURS = 24


def can_take_back(ctx: Context, step: Any) -> bool:
    """Whether the last thing that a person did to an exam can be taken back."""
    return bool(step.state_before) and step.changed_at >= ctx.stamp(hours=-UNDO_HOURS)


def take_back(ctx: Context, row_id: int) -> None:
    """Undo the last thing that a person did to an exam, within a day. Refuses 0112, 0110."""
    with database.atomic():
        step = step_row(row_id)
        if not can_take_back(ctx, step):
            raise Refusal(Status.PROCESSING_FAILURE, Message("There is nothing to take back"))
        old = step.status
        enter_state(ctx, step, step.state_before)
        audit(ctx, "step taken back", step.study_instance_uid, f"{old} -> {step.status}")


def cancel_step(ctx: Context, study_instance_uid: str, step_id: str, reason: str = "") -> bytes:
    """Cancel a step that has not begun; it is kept. Refuses 0112, 0110."""
    return change_step(ctx, "cancel", study_instance_uid, step_id, reason)


def reschedule(ctx: Context, study_instance_uid: str, step_id: str, data: bytes) -> bytes:
    """Change what is given of a step, its procedure and its patient: the new data set.

    data     attributes to change, as for `schedule`; what is absent stays, what is empty is emptied
    Refuses  0112; 0110 for a step that has begun or ended; 0106; 0105 for another Study Instance
             UID, step ID or Patient ID
    """
    index = ElementIndex(data)
    patient_data, procedure_data, items = split_item(index)
    with database.atomic():
        step = find_step(study_instance_uid, step_id)
        state = step_outcome("reschedule", step)
        given = items[0] if items else EMPTY
        check_identity(index, given, step)
        problems = [
            Problem(tag_of(k), Message("is missing"))
            for where, k in (
                (index, "StudyInstanceUID"),
                (index, "PatientID"),
                (index, "RequestedProcedureID"),
                (given, "ScheduledProcedureStepID"),
            )
            if tag_of(k) in where and not where.get(k)
        ]
        if len(items) > 1:
            problems.append(Problem(STEP_SEQUENCE, Message("has more than one item")))
        wanted = given.text(STEP_STATUS)
        if wanted in STEP_STATES and wanted not in WAITING_STEP_STATES | {step.status}:
            problems.append(Problem(STEP_STATUS, Message("cannot be changed here")))
        if problems:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
        procedure = step.procedure
        changed = ElementIndex(step_item(step).merged(given))
        new_state = given.text(STEP_STATUS) or state
        changed = ElementIndex(
            changed.merged(text_elements(ScheduledProcedureStepStatus=new_state))
        )
        patient_merged = ElementIndex(bytes(procedure.patient.data)).merged(
            ElementIndex(patient_data)
        )
        everything = ElementIndex(fold(patient_merged, procedure_data, bytes(changed)))
        if problems := item_problems(everything, [changed]):
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
        procedure.data = ElementIndex(bytes(procedure.data)).merged(ElementIndex(procedure_data))
        told = ElementIndex(bytes(procedure.data))
        if told.get("AccessionNumber") != procedure.accession_number:
            check_accession(told.get("AccessionNumber"), procedure.patient_id)
        procedure.accession_number = told.get("AccessionNumber")
        procedure.requested_procedure_id = told.get("RequestedProcedureID")
        procedure.save()
        update_patient(ctx, procedure.patient, patient_data, empty=True)
        siblings = ScheduledProcedureStep.select().where(
            (ScheduledProcedureStep.procedure == procedure)
            & ScheduledProcedureStep.status.in_(OPEN_STEP_STATES | {step.status})
        )
        for sibling in siblings:
            item = bytes(changed) if sibling.id == step.id else bytes(step_item(sibling))
            _refold(sibling, procedure.patient, procedure, item)
        audit(ctx, "rescheduled", study_instance_uid, step_id)
    return step_data(study_instance_uid, step_id)


def check_identity(index: ElementIndex, item: ElementIndex, step: ScheduledProcedureStep) -> None:
    """Refuse (0105) a change of what a step is known by."""
    known = {
        "StudyInstanceUID": (index, step.study_instance_uid),
        "PatientID": (index, step.patient_id),
        "ScheduledProcedureStepID": (item, step.scheduled_procedure_step_id),
    }
    problems = [
        Problem(tag_of(keyword), Message("cannot be changed here"))
        for keyword, (where, stored) in known.items()
        if where.get(keyword) not in ("", stored)
    ]
    if problems:
        raise Refusal(Status.NO_SUCH_ATTRIBUTE, problems=problems)


def step_key(row_id: int) -> tuple[str, str]:
    """Study Instance UID and step ID of a row. Refuses 0112."""
    row = database.execute_sql(
        "SELECT study_instance_uid, scheduled_procedure_step_id FROM scheduled_procedure_step"
        " WHERE id = ?",
        (row_id,),
    ).fetchone()
    if not row:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no such step"))
    return row


def change_rows(ctx: Context, event: str, row_ids: Iterable[int], remark: str = "") -> int:
    """Let an event happen to many steps, to all or none; `today` moves them to today."""
    count = 0
    with database.atomic():
        for count, row_id in enumerate(row_ids, 1):  # noqa: B007
            study, step_id = step_key(row_id)
            if event == "today":
                move_step(ctx, row_id, ScheduledProcedureStepStartDate=ctx.today())
            else:
                change_step(ctx, event, study, step_id, remark)
    return count


def move_step(ctx: Context, row_id: int, **texts: str) -> bytes:
    """Give a step another date, time, station or modality by keyword; all else stays."""
    if title := texts.get("ScheduledStationAETitle"):
        device = next((d for d in ctx.devices if title in d.ae_titles), None)
        if device:
            texts.setdefault("Modality", device.modality)
            texts["ScheduledStationName"] = device.station_name
            texts["ScheduledProcedureStepLocation"] = device.location
    elements = {tag_of(k): encode_text(k, v) for k, v in texts.items() if v or k != "Modality"}
    sequence = encode_items(STEP_SEQUENCE, [b"".join(_by_tag(elements))])
    return reschedule(ctx, *step_key(row_id), sequence)


def leftovers(today: str) -> list[Any]:
    """The steps of days before that are still waiting or begun, the oldest first."""
    states = sorted(OPEN_STEP_STATES)
    return fetch_rows(
        ScheduledProcedureStep,
        f"status IN ({', '.join('?' * len(states))}) AND start_date < ?"
        " ORDER BY start_date, start_time LIMIT 500",
        *states,
        today,
    )


def similar_patients(index: ElementIndex) -> list[Any]:
    """Patients of the same name and birth date under another Patient ID."""
    birth_date, found = index.get("PatientBirthDate"), []
    if not birth_date:
        return []
    for patient in fetch_rows(Patient, "patient_birth_date = ?", birth_date):
        if patient.patient_id != index.get("PatientID") and same_person(index, patient):
            found.append(patient)
    return found


def find_patients(text: str, limit: int = 50) -> list[Any]:
    """Patients by any part of the name in any spelling, its initials, ID, birth date or phone."""
    text = text.strip()
    key, digits = name_key(text), re.sub(r"[\s()+-]", "", text)
    letters = text.casefold() if re.fullmatch("[A-Za-z]{2,6}", text) else ""
    phone = digits if re.fullmatch("[0-9]{5,}", digits) else ""
    return fetch_rows(
        Patient,
        "patient_id = ?1 OR patient_birth_date = ?2 OR (?3 <> '' AND instr(name_key, ?3))"
        " OR (?4 <> '' AND substr(initials(patient_name), 1, length(?4)) = ?4)"
        " OR (?2 <> '' AND ?5 <> '' AND (patient_id LIKE ?5 || '%' OR instr(data, CAST(?5 AS BLOB))))"
        " ORDER BY patient_id = ?1 DESC, ?4 <> '' AND initials(patient_name) = ?4 DESC,"
        " updated_at DESC LIMIT ?6",
        text,
        digits,
        key,
        letters,
        phone,
        limit,
    )


def merge_patients(ctx: Context, row_id: int, into: str, why: str) -> int:
    """Give the orders of a patient to another one, who is the same person: the row of that one.

    into     Patient ID of the one who stays; what only the other one has is taken over
    Refuses  0106 without a reason, or for the same one; 0112; 0110 where several have the ID
    """
    if not why.strip():
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("A reason is needed"))
    with database.atomic():
        patient = Patient.get_or_none(Patient.id == row_id)
        known = list(Patient.select().where(Patient.patient_id == into.strip()))
        if not patient or not known:
            raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no such patient"))
        if len(known) > 1:
            raise Refusal(Status.PROCESSING_FAILURE, Message("Several patients have this ID"))
        [target] = known
        if target.id == patient.id:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("That is the same patient"))
        RequestedProcedure.update(patient=target).where(
            RequestedProcedure.patient == patient
        ).execute()
        own = ElementIndex(bytes(patient.data))
        have = ElementIndex(bytes(target.data))
        more = own.only(tag for tag in own if own.has_value(tag) and not have.has_value(tag))
        update_patient(ctx, target, more)
        _refold_open(target)
        erase("patient WHERE id = ?", patient.id)
        detail = f"{patient.patient_id} -> {target.patient_id}: {why.strip()[:500]}"
        audit(ctx, "patients merged", target.patient_id, detail)
    return target.id


def correct_patient(ctx: Context, row_id: int, given: bytes) -> None:
    """Correct what is known of a patient; open steps follow. What is given empty is emptied.

    Another Patient ID is taken too; where a patient has it already, and is the same person by
    name and birth date, the orders of this one go over to that one (the unknown emergency patient
    who has been identified).
    Refuses  0112, 0106; 0111 for the ID of somebody else
    """
    with database.atomic():
        patient = Patient.get_or_none(Patient.id == row_id)
        if not patient:
            raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no such patient"))
        new = ElementIndex(ElementIndex(bytes(patient.data)).merged(ElementIndex(given)))
        problems = list(value_problems(new))
        for keyword in ("PatientName", "PatientID"):
            if not new.get(keyword).strip("^= "):
                problems.append(Problem(tag_of(keyword), Message("is missing")))
        if problems:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
        known = (
            _find_patient(ctx, new, "refuse")
            if new.get("PatientID") != patient.patient_id
            else None
        )
        target = known or patient
        if known:
            told = ElementIndex(given)
            told = ElementIndex(told.only(tag for tag in told if told.has_value(tag)))
            new = ElementIndex(ElementIndex(bytes(known.data)).merged(told))
        if known:
            RequestedProcedure.update(patient=known).where(
                RequestedProcedure.patient == patient
            ).execute()
            audit(ctx, "orders moved", known.patient_id, f"from {patient.patient_id}")
        for column, value in patient_columns(bytes(new)).items():
            setattr(target, column, value)
        target.updated_at = ctx.stamp()
        target.save()
        audit(ctx, "patient corrected", target.patient_id)
        _refold_open(target)


# The procedure catalogue.


def save_procedure(ctx: Context, row: Mapping[str, str]) -> None:
    """Make or change a row of the catalogue, known by its code.

    row      texts by column: code, meaning, and any of scheme, modality, ae_title, minutes,
             protocol_code, protocol_meaning
    Refuses  0106
    """
    columns = {key: (row.get(key) or default).strip() for key, default in PROCEDURE_COLUMNS.items()}
    problems = []
    if not re.fullmatch(r"\d{1,4}", columns["minutes"]):
        problems.append(Message("{value} is not a number of minutes", value=columns["minutes"]))
    for key, vr in PROCEDURE_VRS.items():
        words = value_problem(vr, columns[key]) if columns[key] else None
        if "\\" in columns[key]:
            words = Message("{value} may not have a backslash", value=columns[key])
        problems += [words] if words else []
    if not columns["code"] or not columns["meaning"]:
        problems.append(Message("A procedure needs a code and a meaning"))
    if problems:
        raise Refusal(
            Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(0, words) for words in problems]
        )
    minutes = int(columns.pop("minutes"))
    Procedure.insert(**columns, minutes=minutes, retired=0).on_conflict(
        conflict_target=[Procedure.code], update={**columns, "minutes": minutes, "retired": 0}
    ).execute()
    audit(ctx, "procedure saved", columns["code"])


PROCEDURE_VRS = {
    "code": "SH", "scheme": "SH", "meaning": "LO", "modality": "CS", "ae_title": "AE",
    "protocol_code": "SH", "protocol_meaning": "LO",
}  # fmt: skip
PROCEDURE_COLUMNS = {
    "code": "",
    "scheme": "99MINRIS",
    "meaning": "",
    "modality": "",
    "ae_title": "",
    "minutes": "15",
    "protocol_code": "",
    "protocol_meaning": "",
}


def code_in_use(code: str) -> bool:
    """Whether an open step is of a procedure with this code."""
    states = sorted(OPEN_STEP_STATES)
    return any(
        ElementIndex(bytes(step.data)).item("RequestedProcedureCodeSequence").get("CodeValue")
        == code
        for step in fetch_rows(
            ScheduledProcedureStep, f"status IN ({', '.join('?' * len(states))})", *states
        )
    )


def retire_procedure(ctx: Context, code: str, delete: bool = False) -> None:
    """Take a procedure out of use, or out of the catalogue. Refuses 0112, 0110 for one in use."""
    if not Procedure.get_or_none(Procedure.code == code):
        raise Refusal(
            Status.NO_SUCH_SOP_INSTANCE, Message("There is no procedure {code}", code=code)
        )
    if delete and code_in_use(code):
        raise Refusal(
            Status.PROCESSING_FAILURE,
            Message("{code} is used by open exams: it can only be retired", code=code),
        )
    if delete:
        Procedure.delete().where(Procedure.code == code).execute()
    else:
        Procedure.update(retired=1).where(Procedure.code == code).execute()
    audit(ctx, "procedure deleted" if delete else "procedure retired", code)


def find_procedure(text: str) -> Any | None:
    """The procedure in use that has this code, or this meaning; None where there is none."""
    found = fetch_rows(
        Procedure, "retired = 0 AND (code = ? OR meaning = ?) ORDER BY code", text, text
    )
    return found[0] if found else None


def apply_procedure(data: bytes) -> bytes:
    """An item whose procedure is named as in the catalogue, with code, modality, station, protocol."""
    index = ElementIndex(data)
    procedure = find_procedure(index.get("RequestedProcedureDescription"))
    if not procedure:
        return data
    code = text_elements(
        CodeValue=procedure.code,
        CodingSchemeDesignator=procedure.scheme,
        CodeMeaning=procedure.meaning,
    )
    known = [text_elements(RequestedProcedureDescription=procedure.meaning)]
    known.append(
        ElementIndex(encode_items(tag_of("RequestedProcedureCodeSequence"), [bytes(code)]))
    )
    steps = []
    for step in index.items(STEP_SEQUENCE) or [EMPTY]:
        given = ElementIndex(step.only(tag for tag in step if step.has_value(tag)))
        defaults = text_elements(
            Modality=procedure.modality,
            ScheduledStationAETitle=procedure.ae_title,
            ScheduledProcedureStepDescription=procedure.meaning,
        )
        parts = [defaults, _protocol(procedure), given]
        steps.append(step.merged(*parts))
    return index.merged(*known, ElementIndex(encode_items(STEP_SEQUENCE, steps)))


def _protocol(procedure: Any) -> ElementIndex:
    if not procedure.protocol_code:
        return EMPTY
    code = text_elements(
        CodeValue=procedure.protocol_code,
        CodingSchemeDesignator=procedure.scheme,
        CodeMeaning=procedure.protocol_meaning or procedure.protocol_code,
    )
    return ElementIndex(encode_items(tag_of("ScheduledProtocolCodeSequence"), [bytes(code)]))


# The search. SQL narrows by the columns below, Search.answer decides.

_STEP_KEY_COLUMNS = {
    (tag_of("PatientID"),): "s.patient_id",
    (tag_of("AccessionNumber"),): "s.accession_number",
    (tag_of("RequestedProcedureID"),): "s.requested_procedure_id",
    (tag_of("StudyInstanceUID"),): "s.study_instance_uid",
    (STEP_SEQUENCE, tag_of("Modality")): "s.modality",
    (STEP_SEQUENCE, tag_of("ScheduledProcedureStepID")): "s.scheduled_procedure_step_id",
    (STEP_SEQUENCE, STEP_STATUS): "s.status",
}
STATION_AE_TITLE = tag_of("ScheduledStationAETitle")


def _narrow(search: Search) -> tuple[list[str], list[Any]]:
    """Conditions that let through at least every match of a search."""
    index = search.index
    items = index.items(STEP_SEQUENCE)
    item = items[0] if items else EMPTY
    where, values = [], []
    for path, column in _STEP_KEY_COLUMNS.items():
        wanted = (item if len(path) > 1 else index).values(path[-1])
        if wanted and all(wanted) and not any("*" in w or "?" in w for w in wanted):
            where.append(f"{column} IN ({', '.join('?' * len(wanted))})")
            values += wanted
    if chunk := name_chunk(index.get("PatientName")):
        where.append("instr(s.name_key, ?)")
        values.append(chunk)
    nested = search.nested.get(STEP_SEQUENCE)
    if nested and (date := nested.intervals.get(START_DATE)):
        where.append("s.start_date BETWEEN ? AND ?")
        values += [date.low, date.high or "99999999"]
    return where, values


class WorklistView(NamedTuple):
    """What part of the worklist a caller is shown, whatever it asks for."""

    ae_titles: tuple[str, ...] = ()  # steps of these stations alone; () for all
    first_day: str = ""
    last_day: str = ""
    limit: int | None = None

    @classmethod
    def of(cls, ctx: Context, device: Device | None) -> "WorklistView":
        """The part that a device's profile lets it see."""
        if not device:
            return cls()
        today = ctx.local_now().date()

        def day(days: int | None, sign: int) -> str:
            if days is None:
                return ""
            return f"{today + datetime.timedelta(days=sign * days):%Y%m%d}"

        titles = device.ae_titles if device.own_steps_only else ()
        return cls(
            titles, day(device.days_back, -1), day(device.days_ahead, 1), device.answer_limit
        )

    def conditions(self) -> tuple[list[str], list[str]]:
        """The same in SQL."""
        where, values = [], []
        if self.ae_titles:
            places = ", ".join("?" * len(self.ae_titles))
            where.append(
                "EXISTS (SELECT 1 FROM scheduled_station o WHERE o.step_id = s.id"
                f" AND o.ae_title IN ({places}))"
            )
            values += self.ae_titles
        if self.first_day:
            where.append("s.start_date >= ?")
            values.append(self.first_day)
        if self.last_day:
            where.append("s.start_date <= ?")
            values.append(self.last_day)
        return where, values


def worklist_ids(
    ctx: Context, search: Search, view: WorklistView = WorklistView()
) -> list[tuple[int, int]]:
    """Ids and versions of the steps that may match, in order of their start."""
    where, values = _narrow(search)
    seen, of_view = view.conditions()
    where += seen
    values += of_view
    hidden = sorted(ctx.config.dicom.hide_steps)
    if hidden:
        where.append(f"s.status NOT IN ({', '.join('?' * len(hidden))})")
        values += hidden
    source = "scheduled_procedure_step s"
    nested = search.nested.get(STEP_SEQUENCE)
    title = nested.index.text(STATION_AE_TITLE) if nested else ""
    if title.strip("*") and not set(title) & set("*?\\"):
        source = "scheduled_station t JOIN scheduled_procedure_step s ON s.id = t.step_id"
        where.append("t.ae_title = ?")
        values.append(title)
        if date := nested.intervals.get(START_DATE):
            where.append("t.start_date BETWEEN ? AND ?")
            values += [date.low, date.high or "99999999"]
    sql = f"SELECT s.id, s.version FROM {source}"
    if where:
        sql += f" WHERE {' AND '.join(where)}"
    cursor = database.execute_sql(f"{sql} ORDER BY s.start_date, s.start_time, s.id", values)
    return cursor.fetchall()


class AnswerCache:
    """Rendered answers by search and row version, the searches used least dropped first.

    Modalities repeat the same query every few seconds; a row that has changed has a new version.
    """

    def __init__(self, limit: int = 16 << 20) -> None:
        self.limit, self.size = limit, 0
        self.searches: collections.OrderedDict[object, dict[int, tuple[int, bytes | None]]] = (
            collections.OrderedDict()
        )
        self.sizes: dict[object, int] = {}
        self.lock = threading.Lock()

    def of(self, key: object) -> dict[int, tuple[int, bytes | None]]:
        """The answers known to a search: row id → version and answer, None for no match."""
        with self.lock:
            answers = self.searches.setdefault(key, {})
            self.searches.move_to_end(key)
            return answers

    def grown(self, key: object, added: int) -> None:
        """Account for what a search has put in, and drop others until all fits."""
        with self.lock:
            if key not in self.searches:
                return
            self.sizes[key] = self.sizes.get(key, 0) + added
            self.size += added
            while self.size > self.limit and self.searches:
                oldest, _ = self.searches.popitem(last=False)
                self.size -= self.sizes.pop(oldest, 0)


SLICE = 250


def find_worklist(
    ctx: Context,
    search: Search,
    cache: AnswerCache | None = None,
    key: object = None,
    view: WorklistView = WorklistView(),
) -> Iterator[list[bytes]]:
    """The encoded answers of a worklist search, slice by slice.

    Steps in a state of [dicom] hide_steps are left out, whatever the status key says.
    Refuses  A700 after as many answers as the view or [dicom] answer_limit allows.
    Source   PS3.4 K.4.1.3
    """
    limit = view.limit or ctx.config.dicom.answer_limit
    found = worklist_ids(ctx, search, view)
    yield from answer_slices(search, ScheduledProcedureStep, found, limit, cache, key)


def page_of_worklist(
    ctx: Context, search: Search, shape: Search, offset: int, limit: int
) -> tuple[list[bytes], int]:
    """A page of a worklist search: `shape` of each match, and how many match in all."""
    found = worklist_ids(ctx, search, WorklistView())
    return page_of_matches(search, shape, ScheduledProcedureStep, found, offset, limit)


def answer_slices(
    search: Search,
    model: type[Stored],
    found: list[tuple[int, int]],
    left: int,
    cache: AnswerCache | None,
    key: object,
) -> Iterator[list[bytes]]:
    """The answers of rows that may match, slice by slice. Refuses A700 after `left` of them."""
    known, limit = cache.of(key) if cache else {}, left
    for start in range(0, len(found), SLICE):
        chunk = found[start : start + SLICE]
        missing = [i for i, version in chunk if known.get(i, (0,))[0] != version]
        if missing:
            added = _answer_rows(search, model, known, missing)
            if cache:
                cache.grown(key, added)
        answers = [known[i][1] for i, _ in chunk if i in known and known[i][1] is not None]
        if not cache:
            known.clear()
        if len(answers) > left:
            yield answers[:left]
            raise Refusal(
                Status.OUT_OF_RESOURCES, Message("more than {limit} matches", limit=limit)
            )
        left -= len(answers)
        yield answers


def page_of_matches(
    search: Search,
    shape: Search,
    model: type[Stored],
    rows_: list[tuple[int, int]],
    offset: int,
    limit: int,
) -> tuple[list[bytes], int]:
    """Some of the matches of a search, as `shape` selects of each, and how many there are in all."""
    found, count = [], 0
    for count, (_, index) in enumerate(matching_rows(model, rows_, search), 1):
        if offset < count <= offset + limit:
            found.append(shape.select(index))
    return found, count


def _answer_rows(
    search: Search,
    model: type[Stored],
    known: dict[int, tuple[int, bytes | None]],
    missing: list[int],
) -> int:
    """Answer some rows into `known`: the bytes it grew by."""
    added = 0
    cursor = database.execute_sql(
        f"SELECT id, version, data FROM {model._meta.table_name}"
        f" WHERE id IN ({','.join(map(str, missing))})"
    )
    for row_id, version, data in cursor:
        answer = search.answer(bytes(data))
        known[row_id] = version, answer
        added += 100 + len(answer or b"")
    return added


class QueryLog:
    """Worklist queries, folded by hour, device and keys in memory until they are saved.

    What is lost with the power is no harm; a query never waits for it.
    """

    LIMIT = 2000

    def __init__(self) -> None:
        self.folded: dict[tuple[str, str, str, bytes], list[Any]] = {}
        self.lock = threading.Lock()

    def note(self, ctx: Context, keys: bytes, raw: bytes, answers: int, status: Status) -> None:
        """Count one query: its keys in the stored form and as they came, its answers."""
        hour = f"{ctx.local_now():%Y-%m-%d %H}"
        key = hour, ctx.actor.name, ctx.actor.address, keys
        with self.lock:
            known = self.folded.get(key)
            if known:
                known[1:] = [known[1] + 1, answers, int(status), ctx.stamp()]
            elif len(self.folded) < self.LIMIT:
                self.folded[key] = [raw, 1, answers, int(status), ctx.stamp()]

    def take(self) -> list[tuple[Any, ...]]:
        """What has gathered, to be saved; it is counted from nothing again."""
        with self.lock:
            folded, self.folded = self.folded, {}
        return [(*key, *values) for key, values in folded.items()]


def save_queries(ctx: Context, queries: Iterable[tuple[Any, ...]]) -> None:
    """Keep what a QueryLog has gathered."""
    for query in queries:
        database.execute_sql(
            "INSERT INTO query_trace"
            " (hour, ae_title, address, keys, raw, count, answers, status, last_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (hour, ae_title, address, keys) DO UPDATE SET"
            " count = count + excluded.count, answers = excluded.answers,"
            " status = excluded.status, last_at = excluded.last_at",
            query,
        )


class Exclusion(NamedTuple):
    """Why a query did not find a step: the key, what it asked for, what the step has.

    tag    the attribute; 0 where the device's profile keeps the step from it
    """

    tag: int
    asked: str
    has: str

    @property
    def name(self) -> str:
        """The attribute's name."""
        return description_of(self.tag) if self.tag else ""


def exclusion(config: Config, search: Search, view: WorklistView, data: bytes) -> Exclusion | None:
    """The first thing that keeps a step from the answers to a search; None where it is one."""
    index = ElementIndex(data)
    item = index.item("ScheduledProcedureStepSequence")
    state, day = item.text(STEP_STATUS), item.text(START_DATE)
    if state in config.dicom.hide_steps:
        return Exclusion(STEP_STATUS, "", state)
    stations = item.values(STATION_AE_TITLE)
    if view.ae_titles and not set(view.ae_titles) & set(stations):
        return Exclusion(STATION_AE_TITLE, ", ".join(view.ae_titles), ", ".join(stations))
    if not view.first_day <= day <= (view.last_day or "9"):
        return Exclusion(START_DATE, f"{view.first_day}-{view.last_day}", day)
    found = search.mismatches(index)
    return Exclusion(*found[0]) if found else None


def find_steps(text: str, limit: int = 50) -> list[Any]:
    """The steps of a patient by any part of the name in any spelling, ID or accession number."""
    key = name_key(text)
    return fetch_rows(
        ScheduledProcedureStep,
        "patient_id = ? OR accession_number = ? OR (? <> '' AND instr(name_key, ?))"
        " ORDER BY start_date DESC, start_time DESC LIMIT ?",
        text.strip(),
        text.strip(),
        key,
        key,
        limit,
    )


def recent_queries(since: str, limit: int = 100) -> list[Any]:
    """The queries since a time of the store, the newest first."""
    return fetch_rows(QueryTrace, "last_at >= ? ORDER BY last_at DESC LIMIT ?", since, limit)


def last_query(ae_titles: Iterable[str]) -> Any | None:
    """The newest query of any of these AE titles, None where none is kept."""
    titles = list(ae_titles)
    found = fetch_rows(
        QueryTrace,
        f"ae_title IN ({', '.join('?' * len(titles))}) ORDER BY last_at DESC LIMIT 1",
        *titles,
    )
    return found[0] if found else None


def latest_by_device(queries: Iterable[Any]) -> list[Any]:
    """Of each calling AE title its different queries, the newest first, three at most."""
    found: dict[str, list[Any]] = collections.defaultdict(list)
    for query in queries:
        of_device = found[query.ae_title]
        if len(of_device) < 3 and all(other.keys != query.keys for other in of_device):
            of_device.append(query)
    return [query for of_device in found.values() for query in of_device]


def data_of_day(date: str) -> list[bytes]:
    """The complete data sets of a day's steps, in order of their start."""
    cursor = database.execute_sql(
        "SELECT data FROM scheduled_procedure_step WHERE start_date = ? ORDER BY start_time, id",
        (date,),
    )
    return [bytes(row[0]) for row in cursor]


def steps_of_day(date: str) -> list[tuple[Any, ...]]:
    """What the board shows of a day's steps, with the station each stands under."""
    return database.execute_sql(
        "SELECT s.id, s.status, s.start_time, s.data, s.arrived_at, s.started_at, s.ended_at,"
        " (SELECT t.ae_title FROM scheduled_station t WHERE t.step_id = s.id LIMIT 1)"
        " FROM scheduled_procedure_step s WHERE s.start_date = ? ORDER BY s.start_time, s.id",
        (date,),
    ).fetchall()


def step_row(row_id: int) -> Any:
    """A step by its row. Refuses 0112."""
    found = fetch_rows(ScheduledProcedureStep, "id = ?", row_id)
    if not found:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no such step"))
    return found[0]


def get_step(row_id: int) -> tuple[bytes, str, str]:
    """Data set, state and remark of a step by its row. Refuses 0112."""
    row = database.execute_sql(
        "SELECT data, status, remark FROM scheduled_procedure_step WHERE id = ?", (row_id,)
    ).fetchone()
    if not row:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no such step"))
    return bytes(row[0]), row[1], row[2]


def step_known(study: str) -> int | None:
    """The row of the first step of a study, None where there is none."""
    row = database.execute_sql(
        "SELECT id FROM scheduled_procedure_step WHERE study_instance_uid = ? ORDER BY id", (study,)
    ).fetchone()
    return row[0] if row else None


def get_patient(row_id: int) -> bytes:
    """What is known of a patient by its row. Refuses 0112."""
    found = fetch_rows(Patient, "id = ?", row_id)
    if not found:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no such patient"))
    return bytes(found[0].data)


def steps_of(patient_row: int) -> list[Any]:
    """The steps of a patient, the newest first."""
    return fetch_rows(
        ScheduledProcedureStep,
        "procedure_id IN (SELECT id FROM requested_procedure WHERE patient_id = ?)"
        " ORDER BY start_date DESC, start_time DESC LIMIT 100",
        patient_row,
    )


def all_procedures() -> list[Any]:
    """The procedures of the catalogue, those out of use last."""
    return fetch_rows(Procedure, "1 = 1 ORDER BY retired, code")


def procedures_in_use() -> list[Any]:
    """The procedures of the catalogue that can be chosen."""
    return fetch_rows(Procedure, "retired = 0 ORDER BY meaning")


# 10. MPPS -------------------------------------------------------------------------------------
#
# What modalities report of what they did, and what it does to the scheduled steps.
# Source: PS3.4 F.7, F.8. For others: create_mpps, set_mpps, get_mpps, link_by_hand.

MAY_NO_LONGER_BE_UPDATED = 0xA710  # PS3.4 Table F.7.2-2
MPPS_STATUS = tag_of("PerformedProcedureStepStatus")
STEP_ATTRIBUTES = tag_of("ScheduledStepAttributesSequence")
SERIES = tag_of("PerformedSeriesSequence")
NOT_SETTABLE = frozenset(
    attribute.tag for attribute in MPPS_ATTRIBUTES.children() if attribute.cells["set"] == "NA"
)


def check_uid(uid: str) -> None:
    """Refuse (0117) what is no UID."""
    if value_problem("UI", uid) or not uid:
        raise Refusal(Status.INVALID_SOP_INSTANCE, Message("{value} is not a UID", value=uid[:64]))


def check_instance(index: ElementIndex, sop_class: str, uid: str) -> None:
    """Refuse (0106) a data set that names another instance than its command set does (local)."""
    known = {"SOPClassUID": sop_class, "SOPInstanceUID": uid}
    problems = [
        Problem(tag_of(keyword), Message("is not that of the command set"))
        for keyword, value in known.items()
        if index.get(keyword) not in ("", value)
    ]
    if problems:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)


def _noted(problems: Iterable[Problem]) -> str:
    """What was forgiven, for the log and the step's page."""
    return ", ".join(dict.fromkeys(attribute_name(problem.tag) for problem in problems))


def create_mpps(ctx: Context, uid: str, data: bytes, raw: bytes | None = None) -> str:
    """Take a new performed procedure step: its SOP Instance UID, made where none is given.

    uid      Affected SOP Instance UID (0000,1000), or ""
    data     the attribute list, stored form
    raw      as it came, where texts of it had to be recovered
    Refuses  0111, 0117, 0120, 0121; 0106 for a status other than IN PROGRESS
    Source   PS3.4 F.7.2.1, PS3.7 10.1.5
    """
    uid = uid or ctx.new_uid()
    check_uid(uid)
    index = ElementIndex(data)
    check_instance(index, MPPS, uid)
    strict = ctx.config.dicom.strict_mpps
    forgiven = check_attributes(index, MPPS_ATTRIBUTES, "create", lenient=not strict)
    if index.text(MPPS_STATUS) != "IN PROGRESS":
        words = Message("{value} is not IN PROGRESS", value=index.text(MPPS_STATUS))
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(MPPS_STATUS, words)])
    with database.atomic():
        try:
            performed_id = insert_row(
                PerformedProcedureStep,
                sop_instance_uid=uid,
                status=MPPS_TRANSITIONS["create", "none"],
                performed_station_ae_title=index.get("PerformedStationAETitle"),
                data=data,
                created_at=ctx.stamp(),
                updated_at=ctx.stamp(),
                remark=_noted(forgiven),
                raw=raw,
            )
        except peewee.IntegrityError:
            raise Refusal(
                Status.DUPLICATE_SOP_INSTANCE, Message("{uid} exists already", uid=uid)
            ) from None
        patient_id = index.get("PatientID")
        items = index.items(STEP_ATTRIBUTES)
        links = [link_step(performed_id, item, patient_id) for item in items]
        settle_steps(ctx, performed_id)
        pass_on(ctx, "mpps", "N-CREATE", uid, data)
        notify_of_mpps(ctx, uid, "IN PROGRESS")
        audit(ctx, "performed step created", uid, f"{sum(links)} of {len(links)} steps found")
    if forgiven:
        log.warning("performed step %s from %s lacks %s", uid, ctx.actor, _noted(forgiven))
    log.info("performed step %s: IN PROGRESS, for %d steps, by %s", uid, sum(links), ctx.actor)
    return uid


def has_gone_round(ctx: Context, performed: Any, told: bytes) -> bool:
    """Whether a change was passed on before, and comes from another than the machine.

    Systems that pass on to each other would do so for ever
    """
    if ctx.actor.name == performed.performed_station_ae_title:
        return False
    sql = (
        "SELECT 1 FROM passed_on WHERE sop_instance_uid = ? AND operation = 'N-SET' AND data = ?"
        " LIMIT 1"
    )
    return bool(database.execute_sql(sql, (performed.sop_instance_uid, told)).fetchone())


def notify_of_mpps(ctx: Context, uid: str, entered: str) -> None:
    """Tell of a performed step by MPPS Notification, what it has entered being a key of MPPS_EVENTS."""
    event_type = MPPS_EVENTS[entered]
    pass_on(ctx, "mpps_notification", "N-EVENT-REPORT", uid, event_type=event_type)


def link_step(performed_id: int, item: ElementIndex, patient_id: str) -> bool:
    """Link a performed step to the scheduled one that an item names; whether one was found.

    Found by study with procedure and step ID, else by accession number, else by the step ID alone
    where it is the only one; never by the patient's name (PS3.4 F.7.2.1.2).
    """
    step, found_by = find_scheduled(item, patient_id)
    if step:
        insert_link(performed_id, step.id, found_by, step.status)
    return step is not None


def insert_link(performed_id: int, step_row: int, found_by: str, before: str) -> None:
    """Keep that a performed step satisfies a scheduled one, and the state that was in before."""
    database.execute_sql(
        "INSERT INTO performed_scheduled_step (performed_id, scheduled_id, found_by, status_before)"
        " VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (performed_id, step_row, found_by, before),
    )


# How a scheduled step is looked for: each attempt needs its first column, and the others where
# the item has them. A step of another patient is taken only on the word of its study.
STEP_ATTEMPTS = (
    ("study", "study_instance_uid", "requested_procedure_id", "scheduled_procedure_step_id"),
    ("accession number", "accession_number", "scheduled_procedure_step_id", "patient_id"),
    ("accession number", "accession_number", "patient_id"),
    ("step ID", "scheduled_procedure_step_id", "patient_id"),
)


def find_scheduled(item: ElementIndex, patient_id: str) -> tuple[Any | None, str]:
    """The one scheduled step an item of Scheduled Step Attributes means, and how it was found."""
    known = {
        "study_instance_uid": item.get("StudyInstanceUID"),
        "requested_procedure_id": item.get("RequestedProcedureID"),
        "scheduled_procedure_step_id": item.get("ScheduledProcedureStepID"),
        "accession_number": item.get("AccessionNumber"),
        "patient_id": patient_id,
    }
    for found_by, *columns in STEP_ATTEMPTS:
        if known[columns[0]]:
            given = [column for column in columns if known[column]]
            where = " AND ".join(f"{column} = ?" for column in given) + " LIMIT 2"
            values = [known[column] for column in given]
            steps = fetch_rows(ScheduledProcedureStep, where, *values)
            if len(steps) == 1:
                return steps[0], found_by
    return None, ""


def settle_steps(ctx: Context, performed_id: int) -> None:
    """Bring every scheduled step that a performed one satisfies to the state that follows."""
    cursor = database.execute_sql(
        "SELECT scheduled_id FROM performed_scheduled_step WHERE performed_id = ?", (performed_id,)
    )
    for (step_id,) in cursor.fetchall():
        settle_step(ctx, step_id)


def settle_step(ctx: Context, step_id: int, before: str = "") -> None:
    """The state of a scheduled step from all its performed ones, as STEP_STATUS_AFTER says.

    Where none counts, since the wrong entry was chosen, it is again what it was before.

    before  that state, where the link which knew it is gone
    """
    links = database.execute_sql(
        "SELECT l.status_before, p.status, p.data FROM performed_scheduled_step l"
        " JOIN performed_procedure_step p ON p.id = l.performed_id"
        " WHERE l.scheduled_id = ? ORDER BY p.id",
        (step_id,),
    ).fetchall()
    counted = {status for _, status, data in links if not is_wrong_entry(status, bytes(data))}
    state = next((after for status, after in STEP_STATUS_AFTER if status in counted), None)
    if not state:
        before = links[0][0] if links else before
        state = (
            "SCHEDULED" if before in ("", *(after for _, after in STEP_STATUS_AFTER)) else before
        )
    step = fetch_rows(ScheduledProcedureStep, "id = ?", step_id)[0]
    enter_state(ctx, step, state, "performed step")


def reporting_stations() -> set[str]:
    """The AE titles that have ever reported a performed step."""
    title = "SELECT min(performed_station_ae_title) FROM performed_procedure_step"
    cursor = database.execute_sql(  # from one title to the next in the index
        f"WITH RECURSIVE t (title) AS ({title} UNION ALL SELECT ({title} WHERE"
        " performed_station_ae_title > t.title) FROM t WHERE t.title IS NOT NULL)"
        " SELECT title FROM t WHERE title IS NOT NULL"
    )
    return {title for (title,) in cursor}


def does_report(ctx: Context, stations: Iterable[str], reporting: set[str]) -> bool:
    """Whether a machine reports performed steps, as its device says, else as it has ever done.

    stations   the AE titles that a step is scheduled for; reporting: as reporting_stations gives
    """
    titles: set[str] = set()
    for station in stations:
        device = device_of(ctx, station)
        if device and device.mpps != "auto":
            return device.mpps == "yes"
        titles |= {station, *(device.ae_titles if device else ())}
    return bool(titles & reporting)


def unscheduled_steps(limit: int = 200) -> list[Any]:
    """Performed steps that no scheduled one was found for and nobody has settled, newest first."""
    return fetch_rows(
        PerformedProcedureStep,
        "settled = '' AND NOT EXISTS (SELECT 1 FROM performed_scheduled_step l"
        " WHERE l.performed_id = performed_procedure_step.id) ORDER BY id DESC LIMIT ?",
        limit,
    )


def link_by_hand(ctx: Context, performed_id: int, step_row: int) -> None:
    """Let a person say which scheduled step a performed one was. Refuses 0112."""
    with database.atomic():
        performed = fetch_rows(PerformedProcedureStep, "id = ?", performed_id)
        step = fetch_rows(ScheduledProcedureStep, "id = ?", step_row)
        if not performed or not step:
            raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no such step"))
        insert_link(performed_id, step_row, "by hand", step[0].status)
        settle_step(ctx, step_row)
        uid = performed[0].sop_instance_uid
        audit(ctx, "performed step matched", uid, step[0].scheduled_procedure_step_id)


def unlink_step(ctx: Context, performed_id: int, step_row: int) -> None:
    """Undo a match; the scheduled step is again what it was. Refuses 0112."""
    with database.atomic():
        links = database.execute_sql(
            "SELECT status_before FROM performed_scheduled_step"
            " WHERE performed_id = ? AND scheduled_id = ?",
            (performed_id, step_row),
        ).fetchall()
        if not links:
            raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no such match"))
        database.execute_sql(
            "DELETE FROM performed_scheduled_step WHERE performed_id = ? AND scheduled_id = ?",
            (performed_id, step_row),
        )
        settle_step(ctx, step_row, links[0][0])
        audit(ctx, "performed step unmatched", str(performed_id), str(step_row))


def settle_unscheduled(ctx: Context, performed_id: int, reason: str) -> None:
    """Leave a performed step without an order, for a reason. Refuses 0106 without one; 0112."""
    if not reason.strip():
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("A reason is needed"))
    if not fetch_rows(PerformedProcedureStep, "id = ?", performed_id):
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no such step"))
    update_row(PerformedProcedureStep, performed_id, settled=reason.strip()[:1024])
    audit(ctx, "performed step settled", str(performed_id), reason.strip()[:1024])


def is_wrong_entry(status: str, data: bytes) -> bool:
    """Whether a step was discontinued since the wrong worklist entry was chosen (110514, DCM)."""
    keyword = "PerformedProcedureStepDiscontinuationReasonCodeSequence"
    reason = ElementIndex(data).item(keyword)
    known = reason.get("CodeValue") == INCORRECT_WORKLIST_ENTRY
    return (
        status == "DISCONTINUED" and known and reason.get("CodingSchemeDesignator") in ("DCM", "")
    )


def _kept_raw(ctx: Context, known: bytes | None, raw: bytes | None) -> bytes | None:
    """Bytes as received, behind those known; alone where a peer sends them without end."""
    if not (known and raw):
        return raw or known
    kept = bytes(known) + raw
    return kept if len(kept) <= ctx.config.dicom.maximum_dataset_length else raw


def set_mpps(ctx: Context, uid: str, data: bytes, raw: bytes | None = None) -> None:
    """Change a performed procedure step that is IN PROGRESS.

    uid      Requested SOP Instance UID (0000,1001)
    data     the modification list, stored form; a sequence replaces the stored one
    Refuses  0112; 0110 with A710 after the end; 0105 for what may not be set, if it differs;
             0106 for another status; 0120, 0121 for what the end needs
    Source   PS3.4 F.7.2.2
    """
    index = ElementIndex(data)
    with database.atomic():
        found = fetch_rows(PerformedProcedureStep, "sop_instance_uid = ?", uid)
        performed = found[0] if found else None
        status = index.text(MPPS_STATUS)
        state = mpps_outcome(performed, status, uid)
        check_instance(index, MPPS, uid)
        stored = ElementIndex(bytes(performed.data))
        check_settable(index, stored)
        blank = {MPPS_STATUS} if not status else set()
        told = ElementIndex(index.without(NOT_SETTABLE | blank))
        merged = stored.merged(told)
        remark = check_mpps(ctx, merged, state)
        update_row(
            PerformedProcedureStep,
            performed.id,
            data=merged,
            status=state,
            updated_at=ctx.stamp(),
            remark=", ".join(dict.fromkeys(filter(None, (performed.remark, remark)))),
            raw=_kept_raw(ctx, performed.raw, raw),
        )
        if state != performed.status:
            settle_steps(ctx, performed.id)
        changes = merged != bytes(performed.data)
        if changes and not has_gone_round(ctx, performed, bytes(told)):
            pass_on(ctx, "mpps", "N-SET", uid, bytes(told))
        notify_of_mpps(ctx, uid, "" if state == performed.status else state)
        audit(ctx, "performed step set", uid, f"{performed.status} -> {state}")
    log.info("performed step %s: %s -> %s by %s", uid, performed.status, state, ctx.actor)
    if remark:
        log.warning("performed step %s from %s lacks %s", uid, ctx.actor, remark)


def get_mpps(uid: str, tags: Iterable[int] = ()) -> tuple[Status, bytes]:
    """A performed procedure step, or some of its attributes: the status and the data set.

    uid      Requested SOP Instance UID (0000,1001)
    tags     Attribute Identifier List (0000,1005), top level; none for all
    Returns  0001 where an attribute is asked for that is not kept, else 0000
    Refuses  0112
    Source   PS3.4 F.8.2.1, Table F.8.2-1
    """
    found = fetch_rows(PerformedProcedureStep, "sop_instance_uid = ?", uid)
    if not found:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("{uid} is not known", uid=uid))
    return selected_attributes(ElementIndex(bytes(found[0].data)), tags, MPPS_ATTRIBUTES)


def mpps_outcome(performed: Any | None, status: str, uid: str) -> str:
    """The state an N-SET leads to. Refuses as MPPS_TRANSITIONS says, 0106 for another status."""
    event = f"set {status}" if status else "set"
    outcome = MPPS_TRANSITIONS.get((event, performed.status if performed else "none"))
    if performed and performed.status in FINAL_MPPS_STATES:
        raise Refusal(
            Status.PROCESSING_FAILURE,
            "Performed Procedure Step Object may no longer be updated",
            error_id=MAY_NO_LONGER_BE_UPDATED,
        )
    if not performed:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("{uid} is not known", uid=uid))
    if outcome is None:
        words = Message("{value} is not a state", value=status)
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(MPPS_STATUS, words)])
    return outcome


def comparable(index: ElementIndex, tag: int) -> str:
    """A value as it is compared: a name without its empty last components and groups (PS3.5 6.2)."""
    text = index.text(tag)
    if tag not in index or index.vr(tag) != b"PN":
        return text
    return "=".join(group.rstrip("^ ") for group in text.split("=")).rstrip("=")


def same_value(index: ElementIndex, stored: ElementIndex, tag: int) -> bool:
    """Whether an attribute that may not be set is as it is stored."""
    if index.vr(tag) != b"SQ":
        return comparable(index, tag) == comparable(stored, tag)
    empty = not index.has_value(tag) and not stored.has_value(tag)
    return empty or index.element(tag) == stored.element(tag)


def check_settable(index: ElementIndex, stored: ElementIndex) -> None:
    """Refuse (0105) what may not be set, where it is not what is stored (PS3.4 Table F.7.2-1)."""
    problems = [
        Problem(tag, Message("may not be set"))
        for tag in index
        if tag in NOT_SETTABLE and comparable(index, tag) != comparable(stored, tag)
    ]
    if problems:
        raise Refusal(Status.NO_SUCH_ATTRIBUTE, problems=problems)


def check_mpps(ctx: Context, merged: bytes, state: str) -> str:
    """Hold a performed step against the table for its state: what was forgiven, in words.

    DISCONTINUED without a series is common in the field: taken, unless [dicom] strict_mpps.
    Source: PS3.4 F.7.2.2.2
    """
    index, lenient = ElementIndex(merged), not ctx.config.dicom.strict_mpps
    final = state in FINAL_MPPS_STATES
    forgiven: list[Problem] = []
    if final and lenient and state == "DISCONTINUED":
        ends = ("PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime")
        for tag in (*map(tag_of, ends), SERIES):
            if not index.has_value(tag):
                forgiven.append(Problem(tag, Message("has no value")))
        index = ElementIndex(index.without(problem.tag for problem in forgiven))
    series = index.items(SERIES)
    column = "final" if final else "create"
    for item in series:
        forgiven += check_attributes(item, MPPS_ATTRIBUTES, column, lenient, (SERIES,))
    if final:
        wanted = [tag for tag in FINAL_TAGS if tag not in {problem.tag for problem in forgiven}]
        for status, holds in (
            (Status.MISSING_ATTRIBUTE, index.__contains__),
            (Status.MISSING_ATTRIBUTE_VALUE, index.has_value),
        ):
            words = Message("is missing" if status is Status.MISSING_ATTRIBUTE else "has no value")
            if problems := [Problem(tag, words) for tag in wanted if not holds(tag)]:
                raise Refusal(status, problems=problems)
    return _noted(forgiven)


FINAL_TAGS = tuple(
    attribute.tag for attribute in MPPS_ATTRIBUTES.children() if attribute.cells["final"] == "1"
)


def performed_of(step_id: int) -> list[tuple[int, bytes, str, str]]:
    """Row, data set, remark and the way it was found of each performed step of a scheduled one."""
    return database.execute_sql(
        "SELECT p.id, p.data, p.remark, l.found_by FROM performed_procedure_step p"
        " JOIN performed_scheduled_step l ON l.performed_id = p.id"
        " WHERE l.scheduled_id = ? ORDER BY p.id",
        (step_id,),
    ).fetchall()


# 11. UPS --------------------------------------------------------------------------------------
#
# The workitem's life: create, find, claim, report on, cancel, finish, purge.
# Source: PS3.4 annex CC. For others: create_workitem, update_workitem, change_state,
# request_cancel, get_workitem, find_workitems, purge_workitems, orphans, release_lock.

UPS_NOT_SETTABLE = frozenset(
    attribute.tag for attribute in UPS_ATTRIBUTES.children() if attribute.cells["set"] == "NA"
) - {TRANSACTION_UID, UPS_STATE}
UPS_IDENTITY = frozenset({tag_of("SOPClassUID"), tag_of("SOPInstanceUID")})
MODIFIED_AT = tag_of("ScheduledProcedureStepModificationDateTime")
DEFAULT_CANCELLATION_REASON = "110513"


def dicom_now(ctx: Context) -> str:
    """Now as a DT value, with its offset."""
    return f"{ctx.local_now():%Y%m%d%H%M%S%z}"


def workitem_columns(ctx: Context, data: bytes) -> dict[str, str]:
    """The columns of a workitem, all from its data set; times in UTC."""
    index = ElementIndex(data)

    requests = index.items(tag_of("ReferencedRequestSequence"))
    numbers = {item.get("AccessionNumber") for item in requests} - {""}

    def instant(keyword: str, which: int = 0) -> str:
        try:
            at = datetime_bounds(index.get(keyword), ctx.config.zone)[which]
        except (ValueError, OverflowError):
            return ""
        return utc_stamp(at.replace(microsecond=0) if which else at)

    return {
        "state": index.text(UPS_STATE),
        "worklist_label": index.get("WorklistLabel"),
        "priority": index.get("ScheduledProcedureStepPriority"),
        "readiness": index.get("InputReadinessState"),
        "start_at": instant("ScheduledProcedureStepStartDateTime"),
        "expires_at": instant("ScheduledProcedureStepExpirationDateTime", 1),
        "patient_id": index.get("PatientID"),
        "accession_number": "*" if len(numbers) > 1 else "".join(numbers),
        "name_key": name_key(index.get("PatientName")),
        "label": index.get("ProcedureStepLabel"),
    }


def enumeration_problems(index: ElementIndex) -> list[Problem]:
    """A problem for each value that is none of its few; empty ones are judged elsewhere."""
    return [
        Problem(tag_of(keyword), Message("{value} is not one of {choices}",
                value=index.get(keyword), choices=", ".join(allowed)))
        for keyword, allowed in UPS_ENUMERATIONS.items()
        if index.get(keyword) and index.get(keyword) not in allowed
    ]  # fmt: skip


def datetime_problems(index: ElementIndex, zone: datetime.tzinfo | None) -> list[Problem]:
    """A problem for each time of a workitem that is no DT value, nested ones included."""
    problems = []
    for tag in index:
        if index.vr(tag) == b"SQ":
            for item in index.items(tag):
                problems += datetime_problems(item, zone)
        elif index.vr(tag) == b"DT":
            one_value = not datadict.dictionary_has_tag(tag) or datadict.dictionary_VM(tag) == "1"
            for text in filter(None, [index.text(tag)] if one_value else index.values(tag)):
                try:
                    datetime_bounds(text, zone)
                except (ValueError, OverflowError):
                    words = Message("{value} is not a date and time", value=text[:64])
                    problems.append(Problem(tag, words))
    return problems


def lock_problems(index: ElementIndex) -> list[Problem]:
    """A problem for each Transaction UID within an item: it would be given to everybody."""
    problems = []
    for tag in index:
        if index.vr(tag) == b"SQ":
            for item in index.items(tag):
                if item.has_value(TRANSACTION_UID):
                    problems.append(Problem(TRANSACTION_UID, Message("must be empty")))
                problems += lock_problems(item)
    return problems


def count_problems(index: ElementIndex) -> list[Problem]:
    """A problem for each sequence with more items than one that may have one (PS3.4 CC.2.5-3)."""
    words = Message("has more than one item")
    return [
        Problem(tag, words)
        for tag in (PROGRESS_INFORMATION, PERFORMED_PROCEDURE)
        if len(index.items(tag)) > 1
    ]


def datetime_with_offset(text: str, offset: str) -> str:
    """A DT, or a range of them, with this offset where it has none."""
    low, dash, high = split_datetime_range(text)
    low, high = (
        end if not end or re.search(r"[+-]\d{4}$", end) else end + offset for end in (low, high)
    )
    return low + dash + high


def with_offsets(index: ElementIndex, offset: str) -> bytes:
    """A data set whose times without an offset have that of its (0008,0201) (PS3.3 C.12.1.1.8)."""
    elements = {}
    for tag in index:
        if index.vr(tag) == b"SQ":
            items = [with_offsets(item, offset) for item in index.items(tag)]
            elements[tag] = encode_items(tag, items)
        elif index.vr(tag) == b"DT" and index.has_value(tag):
            texts = [datetime_with_offset(text, offset) for text in index.values(tag)]
            elements[tag] = encode_element(tag, b"DT", "\\".join(texts).encode())
        elif tag != TIMEZONE_OFFSET:
            elements[tag] = index.element(tag)
    return b"".join(_by_tag(elements))


def in_own_zone(index: ElementIndex) -> ElementIndex:
    """A data set without (0008,0201), whose times say their offset. Refuses 0106 for a wrong one."""
    offset = index.text(TIMEZONE_OFFSET)
    if TIMEZONE_OFFSET not in index:
        return index
    if offset and not re.fullmatch(r"[+-](0\d|1[0-4])[0-5]\d", offset):
        problem = Problem(TIMEZONE_OFFSET, Message("is not an offset"))
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[problem])
    return ElementIndex(with_offsets(index, offset))


def workitem_problems(ctx: Context, index: ElementIndex) -> list[Problem]:
    """What is wrong with the values of a workitem, or of a change of one."""
    return [
        *enumeration_problems(index),
        *datetime_problems(index, ctx.config.zone),
        *lock_problems(index),
        *count_problems(index),
    ]


def check_created(ctx: Context, index: ElementIndex) -> list[Problem]:
    """Hold a new workitem against the table: what was forgiven.

    Refuses C309 for another state than SCHEDULED; 0106 for a Transaction UID, progress or
    performed procedure with a value, and for a value that is none of its few; 0120, 0121
    """
    state = index.text(UPS_STATE)
    if state and state != "SCHEDULED":
        raise Refusal(Status.NOT_CREATED_SCHEDULED, f"It was to be created {state}")
    forgiven = check_attributes(index, UPS_ATTRIBUTES, "create", not ctx.config.ups.strict)
    given = [
        Problem(tag, Message("must be empty"))
        for tag in (TRANSACTION_UID, PROGRESS_INFORMATION, PERFORMED_PROCEDURE)
        if index.has_value(tag)
    ]
    problems = given + workitem_problems(ctx, index)
    if problems:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
    return forgiven


def create_workitem(ctx: Context, uid: str, data: bytes) -> tuple[str, Status]:
    """Take a new workitem: its UID, made where none is given, and the status.

    data     the attribute list, stored form
    Refuses  as check_created; 0111, 0117
    Source   PS3.4 CC.2.5
    """
    uid = uid or ctx.new_uid()
    check_uid(uid)
    index, known = in_own_zone(ElementIndex(data)), stored_workitem(uid)
    check_instance(index, UPS_PUSH, uid)
    if known or is_purged(uid):
        state = known.state if known else "COMPLETED"
        raise Refusal(UPS_TRANSITIONS["create", state], Message("{uid} exists already", uid=uid))
    forgiven = check_created(ctx, index)
    made = text_elements(
        SOPClassUID=UPS_PUSH,
        SOPInstanceUID=uid,
        ProcedureStepState=UPS_TRANSITIONS["create", "none"],
        ScheduledProcedureStepModificationDateTime=dicom_now(ctx),
        WorklistLabel=index.get("WorklistLabel") or ctx.config.ups.worklist_label,
    )
    stored = ElementIndex(index.without([TRANSACTION_UID])).merged(made)
    with database.atomic():
        row_id = insert_row(
            Workitem,
            sop_instance_uid=uid,
            transaction_uid="",
            performer="",
            by_person=0,
            declined="",
            data=stored,
            version=first_version(),
            created_at=ctx.stamp(),
            updated_at=ctx.stamp(),
            claimed_at="",
            ended_at="",
            **workitem_columns(ctx, stored),
        )
        told = subscribe_created(ctx, row_id, stored)
        auto = ctx.config.ups.auto_subscribe_creator and can_be_told(ctx, ctx.actor.name)
        if auto and ctx.actor.name not in told:
            enter_subscriptions([(row_id, ctx.actor.name, 0, ctx.stamp())])
            told.append(ctx.actor.name)
        created = ElementIndex(stored)
        record_event(ctx, "UPS State Report", uid, state_report(created), told)
        for report in assigned_reports(created):
            record_event(ctx, "UPS Assigned", uid, report, told)
        audit(ctx, "workitem created", uid)
    if forgiven:
        log.warning("workitem %s from %s lacks %s", uid, ctx.actor, _noted(forgiven))
    log.info("workitem %s: SCHEDULED by %s", uid, ctx.actor)
    return uid, Status.SUCCESS


def key_state(workitem: Any, transaction_uid: str) -> str:
    """Whether a Transaction UID is the right one; compared in constant time.

    workitem  None where there is none: as one that nobody has claimed, any UID is right
    """
    if not workitem or workitem.state == "SCHEDULED":
        well_formed = transaction_uid and not value_problem("UI", transaction_uid)
        return "right UID" if well_formed else "wrong UID"
    right = hmac.compare_digest(workitem.transaction_uid.encode(), transaction_uid.encode())
    return "right UID" if right and transaction_uid else "wrong UID"


def ups_outcome(event: str, workitem: Any | None) -> str | Status:
    """What UPS_TRANSITIONS says: a state, or a warning to answer. Refuses a failure."""
    outcome = UPS_TRANSITIONS[event, workitem.state if workitem else "none"]
    if isinstance(outcome, Status) and outcome >> 12 != 0xB:
        raise Refusal(outcome, OUTCOMES["*", outcome].text)
    return outcome


def update_workitem(ctx: Context, uid: str, data: bytes) -> Status:
    """Change attributes of a workitem; in progress with the lock of its performer in the data.

    data     the modification list, stored form; a sequence replaces the stored one
    Refuses  C307, C300, C301, C310; C303 for SCHEDULED, 0105 for another state and for what may
             not be set, if it differs; 0106, 0121
    Source   PS3.4 CC.2.6
    """
    index = in_own_zone(ElementIndex(data))
    with database.atomic():
        workitem, key = stored_workitem(uid), index.text(TRANSACTION_UID)
        ups_outcome(f"set, {key_state(workitem, key) if key else 'no UID'}", workitem)
        stored = ElementIndex(bytes(workitem.data))
        check_ups_settable(index, stored)
        leave = UPS_NOT_SETTABLE | UPS_IDENTITY | {TRANSACTION_UID, UPS_STATE, MODIFIED_AT}
        told = ElementIndex(index.without(leave))
        if problems := workitem_problems(ctx, told):
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
        check_items(told, not ctx.config.ups.strict)
        merged = stored.merged(told)
        _save_workitem(ctx, workitem, merged)
        _report_changes(ctx, workitem, stored, ElementIndex(merged))
        audit(ctx, "workitem set", uid)
    return Status.SUCCESS


def check_ups_settable(index: ElementIndex, stored: ElementIndex) -> None:
    """Refuse a change of state (C303, 0105), of what may not be set (0105), emptied needs (0121)."""
    if state := index.text(UPS_STATE):
        if state == "SCHEDULED":
            raise Refusal(Status.SCHEDULED_ONLY_BY_CREATE, "The state is changed by N-ACTION")
        words = Message("is changed by N-ACTION")
        raise Refusal(Status.NO_SUCH_ATTRIBUTE, problems=[Problem(UPS_STATE, words)])
    problems = [
        Problem(tag, Message("may not be set"))
        for tag in index
        if tag in UPS_NOT_SETTABLE | UPS_IDENTITY and not same_value(index, stored, tag)
    ]
    if problems:
        raise Refusal(Status.NO_SUCH_ATTRIBUTE, problems=problems)
    emptied = [
        Problem(attribute.tag, Message("has no value"))
        for attribute in UPS_ATTRIBUTES.children()
        if (attribute.cells["final"] == "R" or attribute.cells["create"] in ("1/1", "2/1"))
        and attribute.tag in index and not index.has_value(attribute.tag)
        and attribute.tag != MODIFIED_AT
    ]  # fmt: skip
    if emptied:
        raise Refusal(Status.MISSING_ATTRIBUTE_VALUE, problems=emptied)


def check_items(index: ElementIndex, lenient: bool) -> None:
    """Hold the items of a modification list against the table (their types in N-SET)."""
    for attribute in UPS_ATTRIBUTES.children():
        if attribute.vr == "SQ" and attribute.tag in index:
            for item in index.items(attribute.tag):
                check_attributes(item, UPS_ATTRIBUTES, "set", lenient, attribute.path)


def _save_workitem(ctx: Context, workitem: Any, data: bytes, **columns: Any) -> bytes:
    """Write a workitem's data set with a new modification time and version."""
    now = text_elements(ScheduledProcedureStepModificationDateTime=dicom_now(ctx))
    data = ElementIndex(data).merged(now)
    update_row(
        Workitem,
        workitem.id,
        data=data,
        version=workitem.version + 1,
        updated_at=ctx.stamp(),
        **workitem_columns(ctx, data) | columns,
    )
    workitem.data, workitem.version = data, workitem.version + 1
    return data


PROGRESS_TOLD = tuple(map(tag_of, (
    "ProcedureStepProgress", "ProcedureStepProgressDescription",
    "ProcedureStepCommunicationsURISequence",
)))  # fmt: skip


def _report_changes(ctx: Context, workitem: Any, old: ElementIndex, new: ElementIndex) -> None:
    """Tell subscribers what of a change they are told of (PS3.4 CC.2.4.3)."""
    uid, told = workitem.sop_instance_uid, subscribers(workitem.id)

    def changed(*keywords: str) -> bool:
        return any(old.element(tag_of(k)) != new.element(tag_of(k)) for k in keywords)

    if changed("InputReadinessState"):
        record_event(ctx, "UPS State Report", uid, state_report(new), told)
    before = old.item("ProcedureStepProgressInformationSequence")
    after = new.item("ProcedureStepProgressInformationSequence")
    if any(before.element(tag) != after.element(tag) for tag in PROGRESS_TOLD):
        parameters = tag_of("ProcedureStepProgressParametersSequence")
        report = encode_items(PROGRESS_INFORMATION, [after.only((*PROGRESS_TOLD, parameters))])
        record_event(ctx, "UPS Progress Report", uid, report, told)
    if changed("ScheduledStationNameCodeSequence", "ScheduledHumanPerformersSequence"):
        for report in assigned_reports(new) or [b""]:
            record_event(ctx, "UPS Assigned", uid, report, told)


def check_is_workitem(uid: str) -> None:
    """Refuse (C314) the UID that global subscriptions have for a workitem's (PS3.4 Table CC.2.3-3)."""
    if uid in WELL_KNOWN_UPS:
        raise Refusal(Status.ACTION_NOT_APPROPRIATE, "This is no workitem, but for subscriptions")


def change_state(ctx: Context, uid: str, state: str | None, transaction_uid: str) -> Status:
    """Move a workitem to `state` and tell its subscribers; SUCCESS, or a warning if already there.

    state            Procedure Step State (0074,1000); None where it is absent
    transaction_uid  Transaction UID (0008,1195), the lock of whoever claims or has claimed it
    Refuses          C300, C301, C302, C303, C304, C307, C310 as UPS_TRANSITIONS says; C314; 0120,
                     0121, 0115 for a state that is absent, empty or none
    Source           PS3.4 CC.2.1
    """
    check_is_workitem(uid)
    with database.atomic():
        workitem = stored_workitem(uid)
        key = key_state(workitem, transaction_uid)
        if workitem and state not in UPS_STATES:
            _refuse_state(state, key)
        outcome = ups_outcome(f"{state if workitem else 'SCHEDULED'}, {key}", workitem)
        if isinstance(outcome, Status):
            return outcome
        index = ElementIndex(bytes(workitem.data))
        columns = {}
        if outcome == "IN PROGRESS":
            columns = {
                "transaction_uid": transaction_uid,
                "performer": ctx.actor.name,
                "by_person": int(bool(ctx.actor.role)),
                "claimed_at": ctx.stamp(),
            }
        else:
            index = ElementIndex(
                with_cancellation(ctx, index) if outcome == "CANCELED" else bytes(index)
            )
            check_final(index, outcome)
        enter_ups_state(ctx, workitem, index, outcome, **columns)
    return Status.SUCCESS


def _refuse_state(state: str | None, key: str) -> None:
    """Refuse a state that is absent, empty or none of the four; a wrong lock before all else."""
    if key == "wrong UID":
        raise Refusal(Status.TRANSACTION_UID_INCORRECT, "The Transaction UID is incorrect.")
    if state is None:
        words = Message("is missing")
        raise Refusal(Status.MISSING_ATTRIBUTE, problems=[Problem(UPS_STATE, words)])
    if not state:
        words = Message("has no value")
        raise Refusal(Status.MISSING_ATTRIBUTE_VALUE, problems=[Problem(UPS_STATE, words)])
    words = Message("{value} is not a state", value=state[:64])
    raise Refusal(Status.INVALID_ARGUMENT_VALUE, problems=[Problem(UPS_STATE, words)])


def enter_ups_state(
    ctx: Context, workitem: Any, index: ElementIndex, state: str, **columns: Any
) -> None:
    """Write a new state with its report to the subscribers."""
    changed = index.merged(text_elements(ProcedureStepState=state))
    if state in FINAL_UPS_STATES:
        columns["ended_at"] = ctx.stamp()
    data = _save_workitem(ctx, workitem, changed, **columns)
    uid, old = workitem.sop_instance_uid, workitem.state
    workitem.state = state
    record_event(
        ctx, "UPS State Report", uid, state_report(ElementIndex(data)), subscribers(workitem.id)
    )
    audit(ctx, "workitem", uid, f"{old} -> {state}")
    log.info("workitem %s: %s -> %s by %s", uid, old, state, ctx.actor)


def with_cancellation(ctx: Context, index: ElementIndex, info: ElementIndex = EMPTY) -> bytes:
    """A workitem with what CANCELED needs: the time, and a reason (PS3.4 CC.2.5.1.3.2).

    info  what the request to cancel said
    Local: a reason is made too (110513, DCM), so that a cancellation never fails for want of one.
    """
    progress = index.item("ProcedureStepProgressInformationSequence")
    keywords = ("ReasonForCancellation", "ProcedureStepDiscontinuationReasonCodeSequence")
    told = ElementIndex(info.only(map(tag_of, keywords)))
    progress = ElementIndex(progress.merged(told))
    made = []
    if not progress.get("ProcedureStepCancellationDateTime"):
        made.append(text_elements(ProcedureStepCancellationDateTime=dicom_now(ctx)))
    reason = tag_of("ProcedureStepDiscontinuationReasonCodeSequence")
    if not progress.items(reason):
        code = DEFAULT_CANCELLATION_REASON
        item = code_item(code, UPS_CANCELLATION_REASONS[code])
        made.append(ElementIndex(encode_items(reason, [item])))
    sequence = encode_items(PROGRESS_INFORMATION, [progress.merged(*made)])
    return index.merged(ElementIndex(sequence))


def check_final(index: ElementIndex, state: str) -> None:
    """Refuse (C304) a final state whose requirements are not met (PS3.4 Table CC.2.5-1)."""
    needed = {"R", "P", "P2"} if state == "COMPLETED" else {"R", "X"}
    problems = list(_final_problems(index, needed, ()))
    if problems:
        words = " ".join(f"({p.tag >> 16:04X},{p.tag & 0xFFFF:04X})" for p in problems)
        raise Refusal(Status.FINAL_STATE_REQUIREMENTS_NOT_MET, f"Missing: {words}", problems)


def _final_problems(
    index: ElementIndex, needed: set[str], path: tuple[int, ...]
) -> Iterator[Problem]:
    for attribute in UPS_ATTRIBUTES.children(path):
        code = attribute.cells["final"]
        if code not in needed:
            continue
        met = attribute.tag in index if code == "P2" else has_content(index, attribute)
        if not met:
            yield Problem(attribute.tag, Message("has no value"))
        for item in index.items(attribute.tag):
            yield from _final_problems(item, needed, attribute.path)


def has_content(index: ElementIndex, attribute: Attribute) -> bool:
    """Whether an attribute has a value; one that holds codes, whether each item has one."""
    if not attribute.keyword.endswith("CodeSequence"):
        return index.has_value(attribute.tag)
    items = index.items(attribute.tag)
    codes = ("CodeValue", "LongCodeValue", "URNCodeValue")
    return bool(items) and all(any(item.get(code) for code in codes) for item in items)


def request_cancel(ctx: Context, uid: str, data: bytes = b"") -> Status:
    """Ask for a workitem's end: done at once where nobody has begun, else its watchers are told.

    data     reason, reason code, contact, stored form; all of it optional
    Returns  B304 where it is CANCELED already
    Refuses  C307, C311, C314; C312 where neither a subscriber nor a person at this box could be told;
             C313 where that person has declined
    Source   PS3.4 CC.2.2
    """
    check_is_workitem(uid)
    info = ElementIndex(data)
    with database.atomic():
        workitem = stored_workitem(uid)
        outcome = ups_outcome("request cancel", workitem)
        if isinstance(outcome, Status):
            return outcome
        told = subscribers(workitem.id)
        if outcome == "IN PROGRESS":
            _refuse_to_ask(workitem, told)
        keywords = ("ReasonForCancellation", "ProcedureStepDiscontinuationReasonCodeSequence",
                    "ContactURI", "ContactDisplayName")  # fmt: skip
        asked = ElementIndex(info.only(tag for tag in map(tag_of, keywords) if info.has_value(tag)))
        requester = text_elements(RequestingAE=our_or_calling_ae(ctx))
        record_event(ctx, "UPS Cancel Requested", uid, requester.merged(asked), told)
        audit(ctx, "workitem cancel requested", uid, info.get("ReasonForCancellation")[:200])
        if outcome == "CANCELED":
            _cancel(ctx, workitem, info)
    return Status.SUCCESS


def our_or_calling_ae(ctx: Context) -> str:
    """The AE title that asks: the caller's, ours for a user or a job."""
    calling = ctx.actor.address and not ctx.actor.role
    return ctx.actor.name if calling else ctx.config.dicom.ae_title


def _refuse_to_ask(workitem: Any, told: list[str]) -> None:
    """Refuse what the performer of a workitem will not do (C313) or cannot be told (C312)."""
    if workitem.declined:
        words = Message("The performer has declined: {reason}", reason=workitem.declined)
        raise Refusal(Status.PERFORMER_CHOOSES_NOT_TO_CANCEL, words)
    if not told and not workitem.by_person:
        words = Message(
            "{performer} does not watch it and cannot be told", performer=workitem.performer
        )
        raise Refusal(Status.PERFORMER_CANNOT_BE_CONTACTED, words)


def get_workitem(uid: str, tags: Iterable[int] = ()) -> tuple[Status, bytes]:
    """A workitem, or some of its attributes, never the Transaction UID: status and data set.

    Returns  0001 where an attribute is asked for that is not kept, else 0000
    Refuses  C307. Source: PS3.4 CC.2.7
    """
    index = ElementIndex(bytes(find_workitem(uid).data))
    index = ElementIndex(index.without(UPS_IDENTITY))
    return selected_attributes(index, tags, UPS_ATTRIBUTES)


def find_workitems(
    ctx: Context,
    search: Search,
    cache: AnswerCache | None = None,
    key: object = None,
    view: WorklistView = WorklistView(),
) -> Iterator[list[bytes]]:
    """The encoded answers of a workitem search, slice by slice.

    Refuses  A700 after as many answers as the view or [dicom] answer_limit allows.
    Source   PS3.4 CC.2.8
    """
    limit = view.limit or ctx.config.dicom.answer_limit
    yield from answer_slices(search, Workitem, workitem_ids(search), limit, cache, key)


def page_of_workitems(
    ctx: Context, search: Search, shape: Search, offset: int, limit: int
) -> tuple[list[bytes], int]:
    """A page of a workitem search: `shape` of each match, and how many match in all."""
    return page_of_matches(search, shape, Workitem, workitem_ids(search), offset, limit)


def purge_workitems(ctx: Context, most: int = 200) -> int:
    """Delete what has ended long enough ago and no deletion lock holds: how many, `most` at once.

    What is still to be told of a workitem keeps it too; its events stay as history.
    """
    gone = fetch_rows(
        Workitem,
        "ended_at <> '' AND ended_at < ? AND NOT EXISTS (SELECT 1 FROM subscription s"
        " WHERE s.workitem_id = workitem.id AND s.deletion_lock = 1)"
        " AND NOT EXISTS (SELECT 1 FROM workitem_event e JOIN outbox_event o ON o.event_id = e.id"
        " WHERE e.sop_instance_uid = workitem.sop_instance_uid"
        " AND o.sent_at = '' AND o.given_up_at = '') ORDER BY ended_at LIMIT ?",
        ctx.stamp(days=-ctx.config.housekeeping.keep_workitems_days),
        most,
    )
    now = ctx.stamp()
    with database.atomic():
        for workitem in gone:
            erase("subscription WHERE workitem_id = ?", workitem.id)
            erase("workitem WHERE id = ?", workitem.id)
            audit(ctx, "workitem purged", workitem.sop_instance_uid)
        insert_rows(
            "purged_workitem (sop_instance_uid, purged_at)",
            ((workitem.sop_instance_uid, now) for workitem in gone),
        )
    return len(gone)


def is_purged(uid: str) -> bool:
    """Whether a workitem of this UID was here and has been deleted."""
    sql = "SELECT 1 FROM purged_workitem WHERE sop_instance_uid = ?"
    return database.execute_sql(sql, (uid,)).fetchone() is not None


def claim_by_person(ctx: Context, uid: str) -> None:
    """Let a user claim a workitem; the lock is kept here. Refuses as change_state."""
    workitem = find_workitem(uid)
    if workitem.state == "IN PROGRESS":
        words = Message("{performer} has claimed it already", performer=workitem.performer)
        raise Refusal(Status.TRANSACTION_UID_INCORRECT, words)
    change_state(ctx, uid, "IN PROGRESS", ctx.new_uid())


def claimed_by(ctx: Context, uid: str) -> Any:
    """A workitem that the user of the context has claimed. Refuses C307, C301, C310, C300."""
    workitem = find_workitem(uid)
    if workitem.state == "SCHEDULED":
        raise Refusal(Status.NOT_YET_IN_PROGRESS, Message("Nobody has claimed it yet"))
    if workitem.state in FINAL_UPS_STATES:
        raise Refusal(Status.MAY_NO_LONGER_BE_UPDATED, Message("It has ended already"))
    if not workitem.by_person or workitem.performer != ctx.actor.name:
        words = Message("It is {performer}'s", performer=workitem.performer)
        raise Refusal(Status.TRANSACTION_UID_INCORRECT, words)
    return workitem


def finish_by_person(ctx: Context, uid: str, remark: str = "") -> None:
    """Complete a workitem for the user who claimed it. Refuses as claimed_by, change_state."""
    with database.atomic():
        workitem = claimed_by(ctx, uid)
        told = encode_items(PERFORMED_PROCEDURE, [performed_by_person(ctx, workitem, remark)])
        _save_workitem(ctx, workitem, ElementIndex(bytes(workitem.data)).merged(ElementIndex(told)))
        change_state(ctx, uid, "COMPLETED", workitem.transaction_uid)


def performed_by_person(ctx: Context, workitem: Any, remark: str) -> bytes:
    """The item of the performed procedure that COMPLETED needs, for a person at this box."""
    began = datetime.datetime.fromisoformat(workitem.claimed_at).astimezone(ctx.config.zone)
    codes = ElementIndex(bytes(workitem.data)).items(tag_of("ScheduledWorkitemCodeSequence"))
    person = text_elements(HumanPerformerName=re.sub(r"[\\^=]", " ", ctx.actor.name)[:64])
    sequences = {
        "PerformedStationNameCodeSequence": [code_item("DESK", "Desk", LOCAL_SCHEME)],
        "PerformedWorkitemCodeSequence": list(map(bytes, codes)) or [workitem_code("110005")],
        "ActualHumanPerformersSequence": [bytes(person)],
        "OutputInformationSequence": [],
    }
    texts = text_elements(
        PerformedProcedureStepStartDateTime=f"{began:%Y%m%d%H%M%S%z}",
        PerformedProcedureStepEndDateTime=dicom_now(ctx),
        CommentsOnThePerformedProcedureStep=remark,
    )
    return well_formed(
        texts.merged(
            *(ElementIndex(encode_items(tag_of(k), items)) for k, items in sequences.items())
        )
    )


def give_up_by_person(ctx: Context, uid: str, remark: str, code: str = "110513") -> None:
    """Cancel a workitem for the user who claimed it. Refuses as claimed_by, change_state.

    code  a key of UPS_CANCELLATION_REASONS
    """
    with database.atomic():
        workitem = claimed_by(ctx, uid)
        data = with_cancellation(
            ctx, ElementIndex(bytes(workitem.data)), cancellation_reason(remark, code)
        )
        _save_workitem(ctx, workitem, data)
        change_state(ctx, uid, "CANCELED", workitem.transaction_uid)


def decline_cancellation(ctx: Context, uid: str, remark: str) -> None:
    """Keep on with what somebody wants cancelled: who asks again hears C313. Refuses 0106.

    Refuses also as claimed_by. Source: PS3.4 CC.2.2.3
    """
    needs_reason(remark)
    workitem = claimed_by(ctx, uid)
    asked = EVENT_TYPES["UPS Cancel Requested"]
    if not any(one.event_type == asked for one in history_of(uid)):
        words = Message("Nobody has asked for its cancellation")
        raise Refusal(Status.ACTION_NOT_APPROPRIATE, words)
    update_row(Workitem, workitem.id, declined=remark.strip()[:500])
    said = well_formed(bytes(text_elements(ReasonForCancellation=remark.strip())))
    record_event(ctx, "Cancellation declined", uid, said, [])
    audit(ctx, "workitem cancellation declined", uid, remark.strip()[:500])


def assign_workitem(ctx: Context, uid: str, station: str = "", performer: str = "") -> None:
    """Name the station or the person that a workitem is for; its watchers hear.

    station    AE title of a device
    performer  name of a person; who or what is not named stays
    Refuses    C307, C300 after its end, 0106
    """
    if not station and not performer:
        words = Message("Choose a station or name a person")
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words)
    with database.atomic():
        workitem = find_workitem(uid)
        if workitem.state in FINAL_UPS_STATES:
            raise Refusal(Status.MAY_NO_LONGER_BE_UPDATED, Message("It has ended already"))
        old = ElementIndex(bytes(workitem.data))
        items = {}
        if station:
            code = code_item(station, station, LOCAL_SCHEME)
            items[tag_of("ScheduledStationNameCodeSequence")] = [code]
        if performer:
            items[tag_of("ScheduledHumanPerformersSequence")] = [_performer_item(ctx, performer)]
        new = old.merged(*(ElementIndex(encode_items(tag, one)) for tag, one in items.items()))
        well_formed(new)
        _save_workitem(ctx, workitem, new)
        _report_changes(ctx, workitem, old, ElementIndex(new))
        audit(ctx, "workitem assigned", uid, f"{station} {performer}".strip())


def _performer_item(ctx: Context, name: str) -> bytes:
    code = code_item(name, name, LOCAL_SCHEME)
    organization = ctx.config.clinic.name or ctx.config.dicom.ae_title
    texts = text_elements(HumanPerformerName=name, HumanPerformerOrganization=organization[:64])
    return texts.merged(ElementIndex(encode_items(tag_of("HumanPerformerCodeSequence"), [code])))


def relationship_of_step(step: bytes) -> bytes:
    """The patient and the request of a scheduled procedure step, as a workitem has them.

    Source: PS3.3 C.30.4
    """
    index = ElementIndex(step)
    patient = index.only(map(tag_of, (
        "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
        "AdmissionID", "MedicalAlerts", "SpecialNeeds", "StudyInstanceUID",
    )))  # fmt: skip
    request = ElementIndex(index.only(map(tag_of, (
        "StudyInstanceUID", "AccessionNumber", "RequestedProcedureID",
        "RequestedProcedureDescription", "RequestedProcedureCodeSequence",
        "ReasonForTheRequestedProcedure", "RequestedProcedureComments", "RequestingPhysician",
        "ReferringPhysicianName",
    ))))  # fmt: skip
    request_item = encode_items(tag_of("ReferencedRequestSequence"), [bytes(request)])
    return ElementIndex(patient).merged(ElementIndex(request_item))


SILENT_EXAMS = (  # what the machine reports is news, and so are new images
    "SELECT 'exam', s.id, s.scheduled_procedure_step_id, max(s.started_at,"
    " coalesce(max(p.updated_at), ''), coalesce(max(i.since), '')) AS news, s.accession_number"
    " FROM scheduled_procedure_step s"
    " LEFT JOIN performed_scheduled_step l ON l.scheduled_id = s.id"
    " LEFT JOIN performed_procedure_step p ON p.id = l.performed_id"
    " LEFT JOIN study_seen i ON i.study_instance_uid = s.study_instance_uid"
    " WHERE s.status = 'STARTED' GROUP BY s.id HAVING news < ?"
)


def end_silent_exam(ctx: Context, row_id: int, why: str) -> None:
    """Say of an exam without news that it is done. Refuses 0106; C300 for one that is not silent."""
    needs_reason(why)
    old = ctx.stamp(hours=-ctx.config.housekeeping.stuck_exam_hours)
    silent = {row[1] for row in database.execute_sql(SILENT_EXAMS, (old,))}
    if row_id not in silent:
        raise Refusal(Status.MAY_NO_LONGER_BE_UPDATED, Message("It is not stuck any more"))
    change_rows(ctx, "finish", [row_id], why)


def needs_reason(words: str) -> None:
    """Refuse (0106) what is done without a reason."""
    if not words.strip():
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("A reason is needed"))


def workitems_of_request(accession_number: str) -> list[tuple[str, str, str]]:
    """UID, what is to be done, and state of the workitems of a request, the first twenty."""
    return database.execute_sql(
        "SELECT sop_instance_uid, label, state FROM workitem"
        " WHERE accession_number = ? AND accession_number <> '' ORDER BY start_at LIMIT 20",
        (accession_number,),
    ).fetchall()


MOST_LISTED = 200


def workitems_of(state: str, label: str) -> tuple[list[Any], int]:
    """Workitems of a state, open ones where empty, and of a worklist label: some, and how many.

    Those that wait come with the oldest begin first, those that have ended with the last end.
    """
    states = [state] if state in UPS_STATES else ["SCHEDULED", "IN PROGRESS"]
    where = f"state IN ({', '.join('?' * len(states))}) AND (? = '' OR worklist_label = ?)"
    order = "ended_at DESC" if state in FINAL_UPS_STATES else "start_at"
    found = fetch_rows(
        Workitem, f"{where} ORDER BY {order} LIMIT {MOST_LISTED}", *states, label, label
    )
    cursor = database.execute_sql(
        f"SELECT count(*) FROM workitem WHERE {where}", (*states, label, label)
    )
    return found, cursor.fetchone()[0]


def worklist_labels() -> list[str]:
    """The worklist labels in use."""
    cursor = database.execute_sql("SELECT DISTINCT worklist_label FROM workitem ORDER BY 1")
    return [label for (label,) in cursor]


class Happening(NamedTuple):
    """An event in the history of a workitem: when, by whom, what, and how many have been told."""

    at: str
    who: str
    event_type: int
    data: bytes
    receivers: int
    heard: int


MOST_HAPPENINGS = 500


def history_of(uid: str) -> list[Happening]:
    """What happened to a workitem, of late if it was much; also of one that has been purged."""
    cursor = database.execute_sql(
        "SELECT e.created_at, e.who, e.event_type, e.data, count(DISTINCT o.receiver),"
        " count(DISTINCT CASE WHEN o.sent_at <> '' THEN o.receiver END) FROM workitem_event e LEFT JOIN outbox_event o ON o.event_id = e.id"
        " WHERE e.sop_instance_uid = ? AND e.initial = 0 GROUP BY e.id ORDER BY e.id DESC LIMIT ?",
        (uid, MOST_HAPPENINGS),
    )
    found = [Happening(at, who, kind, bytes(data), n, m) for at, who, kind, data, n, m in cursor]
    return found[::-1]


def watchers_of(uid: str) -> list[tuple[str, int]]:
    """The AE titles subscribed to a workitem, with their locks."""
    return database.execute_sql(
        "SELECT s.ae_title, s.deletion_lock FROM subscription s JOIN workitem w"
        " ON w.id = s.workitem_id WHERE w.sop_instance_uid = ? ORDER BY s.ae_title",
        (uid,),
    ).fetchall()


class Watcher(NamedTuple):
    """An AE that is subscribed to what is created, and how it goes with telling it."""

    ae_title: str
    uid: str
    deletion_lock: int
    single: int
    waiting: int
    heard_at: str
    problem: str
    channels: str


def watchers() -> list[Watcher]:
    """The global subscriptions, then the other receivers that something is or was to be told."""
    cursor = database.execute_sql(
        "SELECT a.ae_title, coalesce(g.uid, ''), coalesce(g.deletion_lock, 0),"
        " (SELECT count(*) FROM subscription s WHERE s.ae_title = a.ae_title),"
        " (SELECT count(*) FROM outbox_event o"
        " WHERE o.receiver = a.ae_title AND o.sent_at = '' AND o.given_up_at = ''),"
        " coalesce(r.heard_at, ''), coalesce(r.problem, ''),"
        " (SELECT coalesce(group_concat(c.channel, ' '), '') FROM event_channel c"
        " WHERE c.ae_title = a.ae_title) FROM"
        " (SELECT ae_title FROM global_subscription UNION SELECT ae_title FROM receiver"
        " UNION SELECT ae_title FROM subscription) a"
        " LEFT JOIN global_subscription g ON g.ae_title = a.ae_title"
        " LEFT JOIN receiver r ON r.ae_title = a.ae_title ORDER BY a.ae_title, g.uid"
    )
    return [Watcher(*row) for row in cursor]


class Orphan(NamedTuple):
    """Something that is stuck: what kind, what it is about, since when, what is known."""

    kind: str
    uid: str
    about: str
    since: str
    known: str


MOST_STUCK = 100  # that are listed of a kind, the oldest first


def orphans(ctx: Context) -> list[Orphan]:
    """What is stuck: locks on what has ended, silent exams and workitems, what was not told, …"""
    keep = ctx.config.housekeeping
    found = database.execute_sql(
        "SELECT 'lock', w.sop_instance_uid, s.ae_title, w.ended_at, coalesce(r.heard_at, '')"
        " FROM subscription s JOIN workitem w ON w.id = s.workitem_id"
        " LEFT JOIN receiver r ON r.ae_title = s.ae_title WHERE s.deletion_lock = 1"
        f" AND w.ended_at <> '' AND w.ended_at < ? ORDER BY w.ended_at LIMIT {MOST_STUCK}",
        (ctx.stamp(hours=-keep.stuck_lock_hours),),
    ).fetchall()
    found += database.execute_sql(
        "SELECT 'silent', sop_instance_uid, performer, updated_at, label FROM workitem"
        f" WHERE state = 'IN PROGRESS' AND updated_at < ? ORDER BY updated_at LIMIT {MOST_STUCK}",
        (ctx.stamp(hours=-keep.stuck_workitem_hours),),
    ).fetchall()
    found += database.execute_sql(
        "SELECT 'expired', sop_instance_uid, worklist_label, expires_at, label FROM workitem"
        " WHERE state = 'SCHEDULED' AND expires_at <> '' AND expires_at < ?"
        f" ORDER BY expires_at LIMIT {MOST_STUCK}",
        (ctx.stamp(),),
    ).fetchall()
    found += database.execute_sql(
        f"{SILENT_EXAMS} ORDER BY news LIMIT {MOST_STUCK}",
        (ctx.stamp(hours=-keep.stuck_exam_hours),),
    ).fetchall()
    found += database.execute_sql(
        "SELECT 'passed on', p.receiver, count(*), min(p.created_at), coalesce(max(d.problem), '')"
        " FROM passed_on p LEFT JOIN destination d ON d.ae_title = p.receiver"
        " WHERE p.sent_at = '' AND p.given_up_at = '' GROUP BY p.receiver"
        " HAVING min(p.created_at) < ? ORDER BY 4",
        (ctx.stamp(minutes=-keep.stuck_events_minutes),),
    ).fetchall()
    found += database.execute_sql(
        "SELECT 'events', o.receiver, count(*), min(o.created_at),"
        " CASE WHEN max(o.channel = 'dimse') THEN coalesce(max(r.problem), '') ELSE 'websocket' END"
        " FROM outbox_event o LEFT JOIN receiver r ON r.ae_title = o.receiver"
        " WHERE o.sent_at = '' AND o.given_up_at = '' GROUP BY o.receiver"
        " HAVING min(o.created_at) < ? ORDER BY 4",
        (ctx.stamp(minutes=-keep.stuck_events_minutes),),
    ).fetchall()
    return [
        Orphan(kind, str(uid), str(about), since, known) for kind, uid, about, since, known in found
    ]


def release_lock(ctx: Context, uid: str, ae_title: str, why: str) -> None:
    """End the deletion lock of a watcher that does not; its subscription stays. Refuses 0106, C307."""
    needs_reason(why)
    workitem = find_workitem(uid)
    cursor = database.execute_sql(
        "UPDATE subscription SET deletion_lock = 0"
        " WHERE workitem_id = ? AND ae_title = ? AND deletion_lock = 1",
        (workitem.id, ae_title),
    )
    if not cursor.rowcount:
        words = Message("{ae} holds no lock on it", ae=ae_title)
        raise Refusal(Status.ACTION_NOT_APPROPRIATE, words)
    audit(ctx, "lock released", uid, f"{ae_title}: {why.strip()[:500]}")
    log.info("workitem %s: the lock of %s released by %s", uid, ae_title, ctx.actor)


def end_workitem(
    ctx: Context, uid: str, why: str, code: str = "110513", state: str = "", before: str = ""
) -> None:
    """Cancel a workitem that is stuck, whoever has claimed it. Refuses 0106, C307, C300.

    code           a key of UPS_CANCELLATION_REASONS
    state, before  only if it is in this state, and has not been changed since (C300)
    """
    needs_reason(why)
    with database.atomic():
        workitem = find_workitem(uid)
        if workitem.state in FINAL_UPS_STATES:
            raise Refusal(Status.MAY_NO_LONGER_BE_UPDATED, Message("It has ended already"))
        if (state and workitem.state != state) or (before and workitem.updated_at >= before):
            words = Message("It is not stuck any more")
            raise Refusal(Status.MAY_NO_LONGER_BE_UPDATED, words)
        _cancel(ctx, workitem, cancellation_reason(why, code))
        audit(ctx, "workitem ended", uid, why.strip()[:500])


def _cancel(ctx: Context, workitem: Any, info: ElementIndex) -> None:
    """Bring a workitem to CANCELED; one that nobody has begun by way of IN PROGRESS."""
    index = ElementIndex(bytes(workitem.data))
    if workitem.state == "SCHEDULED":  # PS3.4 CC.2.2.3
        enter_ups_state(ctx, workitem, index, "IN PROGRESS", transaction_uid=ctx.new_uid())
        index = ElementIndex(bytes(workitem.data))
    index = ElementIndex(with_cancellation(ctx, index, info))
    enter_ups_state(ctx, workitem, index, "CANCELED")


def give_up_events(ctx: Context, receiver: str, why: str, outbox: Outbox = EVENTS_OUTBOX) -> int:
    """Give up what one receiver has not been told: how many events. Refuses 0106."""
    needs_reason(why)
    cursor = database.execute_sql(
        f"UPDATE {outbox.table} SET given_up_at = ?, problem = ?"
        " WHERE receiver = ? AND sent_at = '' AND given_up_at = ''",
        (ctx.stamp(), why.strip()[:500], receiver),
    )
    audit(ctx, "events given up", receiver, f"{cursor.rowcount}: {why.strip()[:500]}")
    return cursor.rowcount


def retry_events(ctx: Context, receiver: str, outbox: Outbox = EVENTS_OUTBOX) -> None:
    """Try a receiver that has not been reached again now."""
    try_again(receiver, outbox)
    audit(ctx, "events tried again", receiver)


# 12. AVAILABILITY -----------------------------------------------------------------------------
#
# Which images are where, and whether they are safe: notifications from archives, requests for
# storage commitment and their judgement. minris holds no images: what it says rests on evidence.
# Source: PS3.4 annexes J and R; PS3.18 13.
# For others: notify_availability, request_commitment, open_references, record_evidence,
# take_commitment_report, commitment_result, commitment_by_uid, archive_of.


class Reference(NamedTuple):
    """An instance, and where it is if that is known."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str = ""
    series_instance_uid: str = ""


ENTER_AVAILABILITY = (
    "availability (sop_instance_uid, retrieve_ae_title, sop_class_uid, study_instance_uid,"
    " series_instance_uid, availability, who, at) VALUES"
    " ON CONFLICT (sop_instance_uid, retrieve_ae_title) DO UPDATE SET"
    " sop_class_uid = excluded.sop_class_uid, availability = excluded.availability,"
    " study_instance_uid = excluded.study_instance_uid,"
    " series_instance_uid = excluded.series_instance_uid, who = excluded.who, at = excluded.at"
)


def notify_availability(ctx: Context, uid: str, data: bytes) -> str:
    """Take an Instance Availability Notification: its UID, made where none is given.

    The newest of an instance at a Retrieve AE counts.

    Refuses  0106, 0111, 0117, 0120, 0121. Source: PS3.4 R.3.2.1
    """
    uid = uid or ctx.new_uid()
    check_uid(uid)
    index = ElementIndex(data)
    check_instance(index, INSTANCE_AVAILABILITY, uid)
    check_attributes(index, AVAILABILITY_ATTRIBUTES, "create", lenient=True)
    _check_availability(index)
    study, rows_ = index.get("StudyInstanceUID"), []
    for series in index.items(tag_of("ReferencedSeriesSequence")):
        for one in series.items(REFERENCED_SOP):
            rows_.append(
                (one.get("ReferencedSOPInstanceUID"), one.get("RetrieveAETitle"),
                 one.get("ReferencedSOPClassUID"), study, series.get("SeriesInstanceUID"),
                 one.get("InstanceAvailability"), ctx.actor.name, ctx.stamp())
            )  # fmt: skip
    with database.atomic():
        try:
            insert_row(AvailabilityNotice, sop_instance_uid=uid, who=ctx.actor.name, data=data,
                       created_at=ctx.stamp())  # fmt: skip
        except peewee.IntegrityError:
            words = Message("{uid} exists already", uid=uid)
            raise Refusal(Status.DUPLICATE_SOP_INSTANCE, words) from None
        insert_rows(ENTER_AVAILABILITY, rows_)
        look_again({row[0] for row in rows_})
        note_images(ctx, {study: available_of(study)}, "availability")
        pass_on(ctx, "availability", "N-CREATE", uid, data)
        audit(ctx, "availability notified", study, f"{len(rows_)} instances")
    log.info("availability of %d instances notified by %s", len(rows_), ctx.actor)
    return uid


def look_again(uids: Iterable[str]) -> None:
    """Have requests that wait for one of these instances judged now."""
    database.connection().executemany(
        "UPDATE commitment SET try_at = '' WHERE state = 'asked' AND id IN (SELECT commitment_id"
        " FROM commitment_instance WHERE sop_instance_uid = ? AND verdict = '')",
        [(uid,) for uid in uids],
    )


def _check_availability(index: ElementIndex) -> None:
    """Refuse (0106) two performed steps, a word that is no availability, an instance twice."""
    problems, seen = [], set()
    performed = tag_of("ReferencedPerformedProcedureStepSequence")
    if len(index.items(performed)) > 1:
        problems.append(Problem(performed, Message("has more than one item")))
    word, instance = tag_of("InstanceAvailability"), tag_of("ReferencedSOPInstanceUID")
    for series in index.items(tag_of("ReferencedSeriesSequence")):
        for one in series.items(REFERENCED_SOP):
            if one.text(word) not in INSTANCE_AVAILABILITIES:
                choices = ", ".join(sorted(INSTANCE_AVAILABILITIES))
                problems.append(Problem(word, Message("is not one of {choices}", choices=choices)))
            place = one.text(instance), one.get("RetrieveAETitle")
            if place in seen:
                problems.append(Problem(instance, Message("is there twice")))
            seen.add(place)
    problems += _uid_problems(index)
    if problems:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems[:20])


def _uid_problems(index: ElementIndex) -> Iterator[Problem]:
    """UIDs at any depth that are none, or several."""
    for tag in index:
        if index.vr(tag) == b"UI" and (text := index.text(tag)) and value_problem("UI", text):
            yield Problem(tag, Message("{value} is not a UID", value=text[:64]))
        for item in index.items(tag) if index.vr(tag) == b"SQ" else ():
            yield from _uid_problems(item)


def is_by_study(index: ElementIndex) -> bool:
    """Whether a request for commitment names its instances by study. Refuses 0106 for both ways."""
    flat, studies = REFERENCED_SOP, tag_of("ReferencedStudySequence")
    if flat in index and studies in index:
        problem = Problem(studies, Message("is there beside (0008,1199)"))
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[problem])
    return studies in index


def references_of(index: ElementIndex, by_study: bool) -> list[Reference]:
    """The instances that a request for commitment names."""
    if not by_study:
        items = index.items(REFERENCED_SOP)
        return [Reference(one.get("ReferencedSOPClassUID"), one.get("ReferencedSOPInstanceUID"))
                for one in items]  # fmt: skip
    found = []
    for study in index.items(tag_of("ReferencedStudySequence")):
        for series in study.items(tag_of("ReferencedSeriesSequence")):
            for kind in series.items(tag_of("ReferencedInstancesBySOPClassSequence")):
                found += [
                    Reference(kind.get("ReferencedSOPClassUID"), one.get("ReferencedSOPInstanceUID"),
                              study.get("StudyInstanceUID"), series.get("SeriesInstanceUID"))
                    for one in kind.items(tag_of("ReferencedInstanceSequence"))
                ]  # fmt: skip
    return found


def checked_references(ctx: Context, index: ElementIndex, by_study: bool) -> list[Reference]:
    """The instances of a request that is in order. Refuses 0115, 0120, 0121, 0213."""
    check_attributes(index, COMMITMENT_BY_STUDY if by_study else COMMITMENT_ATTRIBUTES, "action")
    references = references_of(index, by_study)
    most = ctx.config.commitment.maximum_instances
    if len(references) > most:
        words = Message("{count} images are more than the {most} of one request",
                        count=len(references), most=most)  # fmt: skip
        raise Refusal(Status.RESOURCE_LIMITATION, words)
    uids = [one.sop_instance_uid for one in references]
    tag = tag_of("ReferencedSOPInstanceUID")
    wrong = [uid for one in references for uid in one if uid and value_problem("UI", uid)]
    if len(set(uids)) < len(uids):
        problem = Problem(tag, Message("is there twice"))
        raise Refusal(Status.INVALID_ARGUMENT_VALUE, problems=[problem])
    if wrong:
        problem = Problem(tag, Message("{value} is not a UID", value=wrong[0][:64]))
        raise Refusal(Status.INVALID_ARGUMENT_VALUE, problems=[problem])
    return references


def request_commitment(ctx: Context, uid: str, data: bytes, door: str = "dimse") -> None:
    """Take a request for storage commitment, to be judged.

    uid      Transaction UID
    data     the references, stored form
    door     `dimse`: the result is told to who asks; `web`: it is asked for
    Refuses  0115, 0120, 0121; 0213 for too many; 0124 for who could not be told; over HTTP 0111
             for a UID in use. Over DIMSE such a request fails whole, by its report
    Source   PS3.4 J.3.2; PS3.18 13.4
    """
    if not uid or value_problem("UI", uid):
        problem = Problem(TRANSACTION_UID, Message("{value} is not a UID", value=uid[:64]))
        raise Refusal(Status.INVALID_ARGUMENT_VALUE, problems=[problem])
    index = ElementIndex(ElementIndex(data).without([TRANSACTION_UID]))
    by_study = door == "web" and is_by_study(index)
    references = checked_references(ctx, index, by_study)
    requester = ctx.actor.name
    device = device_of(ctx, requester)
    if door == "dimse" and not (device and device.host):
        words = Message("{ae} is not registered with an address", ae=requester)
        raise Refusal(Status.NOT_AUTHORIZED, words)
    with database.atomic():
        known = next(iter(fetch_rows(Commitment, "transaction_uid = ? AND repeats = 0", uid)), None)
        if known and door == "web":
            raise Refusal(Status.DUPLICATE_SOP_INSTANCE, Message("{uid} is in use", uid=uid))
        same = known and (known.door, known.requester, bytes(known.data)) == (
            door, requester, bytes(index)
        )  # fmt: skip
        if same and known.state in ("asked", "judged"):
            log.info("commitment %s: asked again by %s", uid, ctx.actor)
            return
        _insert_commitment(ctx, uid, index, references, door, by_study, bool(known))
        audit(ctx, "commitment asked", uid, f"{len(references)} instances")
    log.info("commitment %s: %d instances, by %s", uid, len(references), ctx.actor)


def _insert_commitment(
    ctx: Context,
    uid: str,
    index: ElementIndex,
    references: list[Reference],
    door: str,
    by_study: bool,
    known: bool,
) -> None:
    commitment_id = insert_row(
        Commitment,
        transaction_uid=uid,
        requester=ctx.actor.name,
        called=ctx.actor.called or ctx.config.dicom.ae_title,
        door=door,
        by_study=int(by_study),
        repeats=int(known),
        state="judged" if known else "asked",
        data=bytes(index),
        created_at=ctx.stamp(),
        judged_at=ctx.stamp() if known else "",
    )
    insert_rows(
        "commitment_instance (commitment_id, sop_class_uid, sop_instance_uid, study_instance_uid,"
        " series_instance_uid, verdict)",
        ((commitment_id, *one, first_verdict(one.sop_class_uid, known)) for one in references),
    )


def first_verdict(sop_class_uid: str, repeated: bool) -> str:
    """What can be said of an instance unseen: "", or 0131, or 0122 for a class that is not stored."""
    if repeated:
        return UID_IN_USE
    known = UID(sop_class_uid)
    if known.is_private or known.name == sop_class_uid:  # of a maker, or of a later edition
        return ""
    stored = (
        known.type == "SOP Class" and "Storage" in known.name and "Commitment" not in known.name
    )
    return "" if stored else NOT_STORED


def is_still(commitment: Any) -> bool:
    """Whether a request is in the state in which it was read."""
    sql = "SELECT 1 FROM commitment WHERE id = ? AND state = ?"
    return database.execute_sql(sql, (commitment.id, commitment.state)).fetchone() is not None


def commitment_rows(where: str, *values: Any) -> list[Any]:
    """Requests under a condition, without the references as they came: they may be megabytes."""
    names = [name for name in Commitment._meta.sorted_field_names if name != "data"]
    cursor = database.execute_sql(
        f"SELECT {', '.join(names)} FROM commitment WHERE {where}", values
    )
    return [types.SimpleNamespace(**dict(zip(names, row, strict=True))) for row in cursor]


def due_commitments(ctx: Context, state: str) -> list[Any]:
    """Requests that are to be judged (`asked`), or whose result is to be told (`judged`), now.

    Of those to be told, the first of each requester: one that is away holds up nobody else
    """
    due = "state = ?1 AND (try_at <= ?2 OR try_at > ?3)"
    if state == "judged":
        first = f"SELECT min(id) FROM commitment WHERE {due} AND door = 'dimse' GROUP BY requester"
        due = f"id IN ({first})"
    times = ctx.stamp(), ctx.stamp(seconds=RETRY_AFTER[-1])
    return commitment_rows(f"{due} ORDER BY try_at, id LIMIT 100", state, *times)


def open_references(ctx: Context, commitment_id: int) -> list[Reference]:
    """The instances of a request that are not judged, with their places as far as they are known."""
    cursor = database.execute_sql(
        "SELECT sop_class_uid, sop_instance_uid, study_instance_uid, series_instance_uid"
        " FROM commitment_instance WHERE commitment_id = ? AND verdict = ''",
        (commitment_id,),
    )
    found = [Reference(*row) for row in cursor]
    unknown = {one.sop_instance_uid for one in found if not one.study_instance_uid}
    places = places_of(ctx, unknown) if unknown else {}
    return [one._replace(study_instance_uid=places[one.sop_instance_uid][0],
                         series_instance_uid=places[one.sop_instance_uid][1])
            if one.sop_instance_uid in places else one for one in found]  # fmt: skip


MOST_PERFORMED = 3000  # performed steps that are looked through for an instance, the newest first


def places_of(ctx: Context, uids: set[str]) -> dict[str, tuple[str, str]]:
    """Study and series of instances, as availability or performed steps have told them."""
    found: dict[str, tuple[str, str]] = {}
    wanted = sorted(uids)
    for start in range(0, len(wanted), 500):
        some = wanted[start : start + 500]
        cursor = database.execute_sql(
            "SELECT sop_instance_uid, study_instance_uid, series_instance_uid FROM availability"
            f" WHERE sop_instance_uid IN ({', '.join('?' * len(some))})",
            some,
        )
        found |= {uid: (study, series) for uid, study, series in cursor}
    open_ = uids - found.keys()
    while open_:
        row = database.execute_sql(
            "SELECT data FROM (SELECT id, data FROM performed_procedure_step ORDER BY id DESC"
            f" LIMIT {MOST_PERFORMED}) WHERE instr(data, ?) ORDER BY id DESC LIMIT 1",
            (encode_text("ReferencedSOPInstanceUID", min(open_)),),
        ).fetchone()
        told = produced_by(ElementIndex(bytes(row[0]))) if row else {}
        found |= {uid: told[uid][:2] for uid in open_ & told.keys()}
        open_ = (open_ - told.keys()) if told.keys() & open_ else open_ - {min(open_)}
        if not row and len(open_) > 20:
            break  # of a machine that does not report: none of the others is known either
    return found


def produced_by(performed: ElementIndex) -> dict[str, tuple[str, str, str]]:
    """Study, series and class of each instance that a performed procedure step refers to."""
    studies = {one.get("StudyInstanceUID") for one in performed.items(STEP_ATTRIBUTES)} - {""}
    if len(studies) != 1:
        return {}
    (study,), found = studies, {}
    for series in performed.items(tag_of("PerformedSeriesSequence")):
        for keyword in ("ReferencedImageSequence",
                        "ReferencedNonImageCompositeSOPInstanceSequence"):  # fmt: skip
            for one in series.items(tag_of(keyword)):
                found[one.get("ReferencedSOPInstanceUID")] = (
                    study, series.get("SeriesInstanceUID"), one.get("ReferencedSOPClassUID")
                )  # fmt: skip
    return found


def notified_instances(
    ctx: Context, references: Iterable[Reference], archive: str
) -> dict[str, str]:
    """The class of each instance that the archive has notified as to be had there."""
    wanted, found = [one.sop_instance_uid for one in references], {}
    for start in range(0, len(wanted), 500):
        some = wanted[start : start + 500]
        cursor = database.execute_sql(
            "SELECT sop_instance_uid, sop_class_uid FROM availability WHERE retrieve_ae_title = ?"
            f" AND who = ? AND availability IN {RETRIEVABLE}"
            f" AND sop_instance_uid IN ({', '.join('?' * len(some))})",
            (archive, archive, *some),
        )
        found |= dict(cursor)
    return found


def available_of(study: str) -> int:
    """How many images of a study are known to be where they can be had."""
    sql = (
        "SELECT count(DISTINCT sop_instance_uid) FROM availability"
        f" WHERE study_instance_uid = ? AND availability IN {RETRIEVABLE}"
    )
    return database.execute_sql(sql, (study,)).fetchone()[0]


def available_uids(uids: Iterable[str], at: Iterable[str] = ()) -> set[str]:
    """Those of some instances that are known to be where they can be had.

    at  the Retrieve AE Titles that will do; any if there are none
    """
    wanted, places, found = list(uids), list(at), set()
    where = f" AND retrieve_ae_title IN ({', '.join('?' * len(places))})" if places else ""
    for start in range(0, len(wanted), 500):
        some = wanted[start : start + 500]
        found |= {uid for (uid,) in database.execute_sql(
            f"SELECT sop_instance_uid FROM availability WHERE availability IN {RETRIEVABLE}"
            f" AND sop_instance_uid IN ({', '.join('?' * len(some))}){where}",
            (*some, *places),
        )}  # fmt: skip
    return found


class Arrival(NamedTuple):
    """A performed step, and which of the images that it names are known to be in an archive.

    step_id    row of a scheduled step that it satisfies, None where there is none
    performed  its data set
    """

    step_id: int | None
    performed: ElementIndex
    uid: str
    ended_at: str
    references: list[Reference]
    missing: list[Reference]


def arrival_of(row: Any) -> Arrival:
    """How many images of a performed step have arrived (PS3.4 R.1.1: of those that it names)."""
    performed = ElementIndex(bytes(row.data))
    produced = produced_by(performed)
    there = available_uids(produced)
    references = [Reference(sop_class, uid, study, series)
                  for uid, (study, series, sop_class) in produced.items()]  # fmt: skip
    missing = [one for one in references if one.sop_instance_uid not in there]
    (step_id,) = database.execute_sql(
        "SELECT min(scheduled_id) FROM performed_scheduled_step WHERE performed_id = ?", (row.id,)
    ).fetchone()
    return Arrival(step_id, performed, row.sop_instance_uid, row.updated_at, references, missing)


def incomplete_arrivals(ctx: Context, hours: float = 48, most: int = 300) -> list[Arrival]:
    """Performed steps that ended of late, whose images are not all known to be in an archive."""
    ended = fetch_rows(
        PerformedProcedureStep,
        f"updated_at > ? AND status IN {tuple(sorted(FINAL_MPPS_STATES))}"
        " ORDER BY updated_at DESC LIMIT ?",
        ctx.stamp(hours=-hours),
        most,
    )
    return [arrival for arrival in map(arrival_of, ended) if arrival.missing]


def performed_arrival(performed_id: int) -> Arrival:
    """The arrival of the images of one performed step."""
    return arrival_of(fetch_rows(PerformedProcedureStep, "id = ?", performed_id)[0])


# Exams of machines that do not report: their images are their report.


def unreported_steps(ctx: Context, where: str, *values: Any) -> list[Any]:
    """The open steps under a condition that nothing was performed for, at machines that do not report."""
    found = fetch_rows(
        ScheduledProcedureStep,
        f"status IN {tuple(sorted(OPEN_STEP_STATES))} AND {where} AND NOT EXISTS (SELECT 1 FROM"
        " performed_scheduled_step l WHERE l.scheduled_id = scheduled_procedure_step.id)"
        " ORDER BY start_date DESC, id DESC LIMIT 5000",
        *values,
    )
    if not found:
        return []
    reporting, stations = reporting_stations(), collections.defaultdict(list)
    cursor = database.execute_sql(
        "SELECT step_id, ae_title FROM scheduled_station WHERE step_id IN"
        f" ({', '.join(str(step.id) for step in found)})"
    )
    for step_id, title in cursor:
        stations[step_id].append(title)
    for step in found:
        step.stations = stations[step.id]
    return [step for step in found if not does_report(ctx, step.stations, reporting)]


def unreported_studies(ctx: Context) -> list[str]:
    """Studies that may be in the archive though no machine has said so: of today and yesterday."""
    yesterday = f"{ctx.local_now() - datetime.timedelta(days=1):%Y%m%d}"
    steps = unreported_steps(
        ctx, "((start_date >= ? AND start_date <= ?) OR status = 'STARTED')", yesterday, ctx.today()
    )
    return list(dict.fromkeys(step.study_instance_uid for step in steps))


def note_images(ctx: Context, counts: Mapping[str, int], told_by: str) -> None:
    """So many images of studies are in the archive: exams whose machine does not report have begun.

    counts   by Study Instance UID; told_by: a key of TOLD_BY
    """
    for study, count in counts.items():
        step = _unreported_step(ctx, study) if count else None
        if not step:
            continue
        database.execute_sql(
            "INSERT INTO study_seen (study_instance_uid, instances, told_by, since, seen_at)"
            " VALUES (?1, ?2, ?3, ?4, ?4) ON CONFLICT (study_instance_uid) DO UPDATE SET"
            " seen_at = ?4, told_by = ?3, instances = max(instances, ?2),"
            " since = CASE WHEN instances < ?2 THEN ?4 ELSE since END",
            (study, count, told_by, ctx.stamp()),
        )
        if step.status != "STARTED":
            enter_state(ctx, step, "STARTED")
    end_quiet_exams(ctx)


def _unreported_step(ctx: Context, study: str, station: str = "") -> Any | None:
    """The open step of a study whose machine does not report; of several steps that of a station.

    Images of a study do not say which of its steps they are of, whatever became of the others
    """
    steps = unreported_steps(ctx, "study_instance_uid = ?", study) if study else []
    if not steps:
        return None
    (count,) = database.execute_sql(
        "SELECT count(*) FROM scheduled_procedure_step WHERE study_instance_uid = ?"
        " AND status NOT IN ('CANCELED', 'NO SHOW')",
        (study,),
    ).fetchone()
    if count > 1:
        device = device_of(ctx, station)
        titles = {station, *(device.ae_titles if device else ())}
        steps = [step for step in steps if titles & set(step.stations)]
    return steps[0] if len(steps) == 1 else None


def quiet_studies(ctx: Context) -> list[tuple[str, str]]:
    """Studies to which no image has come for [commitment] quiet_minutes, and who told of them.

    Where the archive is asked, it must have been asked again after that time
    """
    keep, archive = ctx.config.commitment, archive_of(ctx)
    asked = bool(keep.look_minutes and archive and archive.host)
    return database.execute_sql(
        "SELECT study_instance_uid, told_by FROM study_seen WHERE julianday(CASE WHEN told_by ="
        " 'archive' AND ? THEN seen_at ELSE ? END) - julianday(since) >= ? LIMIT 500",
        (asked, ctx.stamp(), keep.quiet_minutes / 1440 - 1e-8),
    ).fetchall()


def end_quiet_exams(ctx: Context) -> None:
    """End the exams whose machines do not report and whose images have all come, as it seems."""
    for study, told_by in quiet_studies(ctx):
        end_by_images(ctx, study, told_by)
        erase("study_seen WHERE study_instance_uid = ?", study)


def end_by_images(ctx: Context, study: str, told_by: str, station: str = "") -> None:
    """End the exam of a study, if its machine does not report; told_by: a key of TOLD_BY."""
    if step := _unreported_step(ctx, study, station):
        enter_state(ctx, step, "COMPLETED", told_by)


def record_found(ctx: Context, archive: str, evidence: "Evidence") -> None:
    """Keep which images have been seen in the archive; others are told of what is new.

    archive  its AE title. What it notified of an image that can be had counts more than our look
    """
    seen = evidence.places.keys() & evidence.found.keys()
    new = seen - available_uids(evidence.places, [archive])
    if not new:
        return
    unknown = new - available_uids(new)
    rows_ = [
        (uid, archive, evidence.found[uid][0], *evidence.places[uid], "", ctx.stamp())
        for uid in sorted(new)
    ]
    with database.atomic():
        insert_rows(ENTER_AVAILABILITY, rows_)
        look_again(new)
        told = sorted((row for row in rows_ if row[0] in unknown), key=lambda row: row[3:5])
        for study, of_study in itertools.groupby(told, key=lambda row: row[3]):
            data = availability_notice(study, list(of_study))
            pass_on(ctx, "availability", "N-CREATE", ctx.new_uid(), data)


def availability_notice(study: str, rows_: list[tuple[str, ...]]) -> bytes:
    """An Instance Availability Notification of a study, with the performed step that made it.

    rows_  as for availability_data
    """
    performed = database.execute_sql(
        "SELECT p.sop_instance_uid FROM performed_procedure_step p JOIN performed_scheduled_step l"
        " ON l.performed_id = p.id JOIN scheduled_procedure_step s ON s.id = l.scheduled_id"
        " WHERE s.study_instance_uid = ? LIMIT 2",
        (study,),
    ).fetchall()
    of = [
        text_elements(ReferencedSOPClassUID=MPPS, ReferencedSOPInstanceUID=uid).merged(
            ElementIndex(encode_items(tag_of("PerformedWorkitemCodeSequence"), []))
        )
        for (uid,) in performed[:1] if len(performed) == 1
    ]  # fmt: skip
    return availability_data(study, rows_, of)


# Workitems whose inputs have come.


def retrieved_from(item: ElementIndex) -> set[str]:
    """The AE titles where an item of input says that its instances are to be had."""
    sequence = item.items(tag_of("DICOMRetrievalSequence"))
    return {one.get("RetrieveAETitle") for one in sequence} - {""}


def inputs_are_ready(index: ElementIndex) -> bool:
    """Whether all that a workitem needs can be had, as far as is known here (local; PS3.3 C.30.2).

    Each instance that it lists, at one of the AE titles where it says that it is to be had. A list
    that is INCOMPLETE is so still, unless it is of studies whose performed steps have all ended, and
    all that these have produced can be had.
    """
    items = index.items(tag_of("InputInformationSequence"))
    whole = index.get("InputReadinessState") != "INCOMPLETE"
    for item in items:
        listed = [one.get("ReferencedSOPInstanceUID") for one in item.items(REFERENCED_SOP)]
        if set(listed) - available_uids(listed, retrieved_from(item)):
            return False
        if not (listed and whole) and not _has_all_arrived(item.get("StudyInstanceUID")):
            return False
    return bool(items)


def _has_all_arrived(study: str) -> bool:
    """Whether what was performed of a study has ended, and all of its images have come."""
    rows_ = [
        types.SimpleNamespace(id=row_id, sop_instance_uid="", updated_at="", status=status, data=data)
        for row_id, status, data in database.execute_sql(
            "SELECT p.id, p.status, p.data FROM performed_procedure_step p WHERE p.id IN (SELECT"
            " l.performed_id FROM performed_scheduled_step l JOIN scheduled_procedure_step s"
            " ON s.id = l.scheduled_id WHERE s.study_instance_uid = ?) OR p.id IN (SELECT id FROM"
            " (SELECT id, data FROM performed_procedure_step ORDER BY id DESC"
            f" LIMIT {MOST_PERFORMED}) WHERE instr(data, ?))",
            (study, encode_text("StudyInstanceUID", study)),
        )
    ]  # fmt: skip
    more = database.execute_sql(
        "SELECT 1 FROM scheduled_procedure_step WHERE study_instance_uid = ?"
        f" AND status IN {tuple(sorted(OPEN_STEP_STATES))} LIMIT 1",
        (study,),
    ).fetchone()
    ended = not more and all(row.status in FINAL_MPPS_STATES for row in rows_)
    arrivals = [arrival_of(row) for row in rows_] if ended else []
    produced = any(arrival.references for arrival in arrivals)
    return produced and not any(arrival.missing for arrival in arrivals)


def awaited_inputs(most: int = 5000) -> list[Reference]:
    """The instances that workitems wait for, and that are not known to be anywhere."""
    waiting = fetch_rows(
        Workitem, "state = 'SCHEDULED' AND readiness <> 'READY' ORDER BY updated_at DESC LIMIT 200"
    )
    found: list[Reference] = []
    for workitem in waiting:
        for item in ElementIndex(bytes(workitem.data)).items(tag_of("InputInformationSequence")):
            listed = [
                Reference(one.get("ReferencedSOPClassUID"), one.get("ReferencedSOPInstanceUID"),
                          item.get("StudyInstanceUID"), item.get("SeriesInstanceUID"))
                for one in item.items(REFERENCED_SOP)
            ]  # fmt: skip
            there = available_uids((one.sop_instance_uid for one in listed), retrieved_from(item))
            found += [one for one in listed if one.sop_instance_uid not in there]
    return list(dict.fromkeys(found))[:most]


def ready_workitems() -> list[str]:
    """Workitems that wait for inputs, and have them."""
    waiting = fetch_rows(
        Workitem, "state = 'SCHEDULED' AND readiness <> 'READY' ORDER BY updated_at DESC LIMIT 2000"
    )
    return [one.sop_instance_uid for one in waiting
            if inputs_are_ready(ElementIndex(bytes(one.data)))]  # fmt: skip


def make_ready(ctx: Context, uid: str) -> None:
    """Set the Input Readiness State of a workitem whose inputs have come, and tell its subscribers."""
    workitem = stored_workitem(uid)
    if not workitem or workitem.state != "SCHEDULED" or workitem.readiness == "READY":
        return
    if inputs_are_ready(ElementIndex(bytes(workitem.data))):
        update_workitem(ctx, uid, bytes(text_elements(InputReadinessState="READY")))
        log.info("workitem %s: its inputs are ready", uid)


class Evidence(NamedTuple):
    """What is known of some instances.

    found      by UID the class of each that was seen, empty where that was not told, and the AE
               title that says so
    missing    those that were looked for and not seen
    unchecked  those that could not be looked for
    problem    why there is no telling of the rest
    reasons    of those that are missing, where the archive has said why; else 0112
    places     study, series and Instance Availability of those found, where they are known
    """

    found: Mapping[str, tuple[str, str]]
    missing: frozenset[str] = frozenset()
    unchecked: frozenset[str] = frozenset()
    problem: str = ""
    reasons: Mapping[str, str] = types.MappingProxyType({})
    places: Mapping[str, tuple[str, ...]] = types.MappingProxyType({})


def record_evidence(ctx: Context, commitment_id: int, evidence: Evidence) -> None:
    """Judge what evidence is of; the rest is looked at again, until its time is over.

    Source  PS3.4 J.3.3.1.2: success is claimed for what was seen in the archive alone
    """
    [commitment] = fetch_rows(Commitment, "id = ?", commitment_id)
    if commitment.state != "asked":
        return
    keep = ctx.config.commitment
    waited = commitment.created_at <= ctx.stamp(minutes=-keep.missing_minutes)
    over = commitment.created_at <= ctx.stamp(hours=-keep.give_up_hours)
    verdicts = []
    for one in fetch_rows(CommitmentInstance, "commitment_id = ? AND verdict = ''", commitment_id):
        sop_class, source = evidence.found.get(one.sop_instance_uid, (None, ""))
        if sop_class is not None:
            right = sop_class in ("", one.sop_class_uid)
            verdict = COMMITTED if right else OF_ANOTHER_CLASS
        elif one.sop_instance_uid in evidence.missing and waited:
            verdict = evidence.reasons.get(one.sop_instance_uid, NOT_THERE)
        elif (one.sop_instance_uid in evidence.unchecked and waited) or over:
            verdict = NOT_CHECKED
        else:
            continue
        verdicts.append((verdict, source, one.id))
    sql = "UPDATE commitment_instance SET verdict = ?, evidence = ? WHERE id = ?"
    with database.atomic():
        database.connection().executemany(sql, verdicts)
        _settle_commitment(ctx, commitment, evidence.problem)
        if evidence.places and (archive := archive_of(ctx)):
            record_found(ctx, archive.ae_title, evidence)
        for study in sorted({place[0] for place in evidence.places.values()}):
            end_by_images(ctx, study, "commitment", commitment.requester)


def _settle_commitment(ctx: Context, commitment: Any, problem: str) -> None:
    """A request of which all is judged is judged; another one is looked at again."""
    good, bad, open_ = commitment_counts([commitment.id])[commitment.id]
    if open_:
        failures = commitment.failures + 1
        update_row(Commitment, commitment.id, failures=failures, problem=problem[:500],
                   try_at=ctx.stamp(seconds=retry_wait(failures)))  # fmt: skip
        return
    update_row(Commitment, commitment.id, state="judged", judged_at=ctx.stamp(), failures=0,
               problem="", try_at="")  # fmt: skip
    audit(ctx, "commitment judged", commitment.transaction_uid, f"{good} committed, {bad} not")
    log.info("commitment %s: %d committed, %d not", commitment.transaction_uid, good, bad)


# What an archive's reasons become; any other is 0110.
REASONS_OF_ARCHIVE = frozenset({NOT_THERE, OF_ANOTHER_CLASS, NOT_STORED, NO_ROOM})


def relay_waits(ctx: Context, commitment_id: int) -> bool:
    """Whether an archive that a request was passed on to may still answer."""
    return bool(
        fetch_rows(
            CommitmentRelay,
            "commitment_id = ? AND answered_at = '' AND asked_at > ?",
            commitment_id,
            ctx.stamp(minutes=-ctx.config.commitment.answer_minutes),
        )
    )


def open_relay(ctx: Context, commitment_id: int, archive: str) -> str:
    """Keep that a request is to be passed on: its Transaction UID there; nothing once it is judged.

    The archive's report on an earlier one may have come while a round was under way.
    """
    [commitment] = fetch_rows(Commitment, "id = ?", commitment_id)
    if commitment.state != "asked":
        return ""
    uid = ctx.new_uid()
    insert_row(CommitmentRelay, transaction_uid=uid, commitment_id=commitment_id, archive=archive,
               asked_at="", answered_at="")  # fmt: skip
    return uid


def note_relay_taken(ctx: Context, uid: str) -> None:
    """The archive has taken what was passed on: its report is waited for."""
    sql = "UPDATE commitment_relay SET asked_at = ? WHERE transaction_uid = ?"
    database.execute_sql(sql, (ctx.stamp(), uid))


def take_commitment_report(ctx: Context, uid: str, event_type: int, data: bytes) -> None:
    """Take an archive's report on a request that was passed on to it: evidence of its own.

    uid      Transaction UID, ours
    Refuses  0115 for one that was not passed on to who reports, 0120, 0121
    Source   PS3.4 J.3.3
    """
    found = fetch_rows(CommitmentRelay, "transaction_uid = ?", uid)
    archive = device_of(ctx, found[0].archive) if found else None
    if not archive or ctx.actor.name not in archive.ae_titles:
        problem = Problem(TRANSACTION_UID, Message("is not known"))
        raise Refusal(Status.INVALID_ARGUMENT_VALUE, problems=[problem])
    index = ElementIndex(ElementIndex(data).without([TRANSACTION_UID]))
    all_good = event_type == COMMITMENT_EVENTS[True]
    check_attributes(index, COMMITMENT_RESULT, "all" if all_good else "some")
    failed = {one.get("ReferencedSOPInstanceUID"): one.get("FailureReason")
              for one in index.items(tag_of("FailedSOPSequence"))}  # fmt: skip
    title = index.get("RetrieveAETitle") or found[0].archive
    good: dict[str, tuple[str, str]] = {}
    for one in index.items(REFERENCED_SOP):
        uid_, sop_class = one.get("ReferencedSOPInstanceUID"), one.get("ReferencedSOPClassUID")
        if good.get(uid_, (sop_class,))[0] != sop_class:  # it cannot be both
            failed[uid_] = str(int(OF_ANOTHER_CLASS, 16))
        good[uid_] = sop_class, one.get("RetrieveAETitle") or title
    good = {uid_: said for uid_, said in good.items() if uid_ not in failed}
    with database.atomic():
        if not found[0].answered_at:
            answered = "UPDATE commitment_relay SET answered_at = ? WHERE transaction_uid = ?"
            database.execute_sql(answered, (ctx.stamp(), uid))
            words = f"event {event_type}: {len(good)} committed, {len(failed)} not"
            audit(ctx, "commitment of the archive", uid, words)
            reasons = {one: _failure_reason(text) for one, text in failed.items()}
            evidence = Evidence(good, frozenset(failed), reasons=reasons)
            record_evidence(ctx, found[0].commitment_id, evidence)
    log.info("commitment of %s: %d committed, %d not", ctx.actor, len(good), len(failed))


def _failure_reason(text: str) -> str:
    """A Failure Reason (0008,1197), that an archive has told, as one of ours."""
    known = f"{int(text):04X}" if text.isdigit() else ""
    return known if known in REASONS_OF_ARCHIVE else NOT_CHECKED


def commitment_counts(commitment_ids: Iterable[int]) -> dict[int, tuple[int, int, int]]:
    """How many instances of requests are committed, refused and not judged, by id."""
    counts = dict.fromkeys(commitment_ids, (0, 0, 0))
    cursor = database.execute_sql(
        "SELECT commitment_id, count(*) FILTER (WHERE verdict = '0000'),"
        " count(*) FILTER (WHERE verdict NOT IN ('', '0000')),"
        " count(*) FILTER (WHERE verdict = '') FROM commitment_instance"
        f" WHERE commitment_id IN ({', '.join(map(str, counts))}) GROUP BY commitment_id"
    )
    return counts | {row_id: (good, bad, open_) for row_id, good, bad, open_ in cursor}


class Result(NamedTuple):
    """How a request was judged: what a report and the web's answer say of each instance.

    archive  AE title of the archive where all was seen that is committed, if it is one
    """

    all_good: bool
    data: bytes
    archive: str


def commitment_result(commitment: Any) -> Result:
    """The result of a request that is judged, in the form of the request (PS3.4 Table J.3-2)."""
    verdicts = fetch_rows(CommitmentInstance, "commitment_id = ? ORDER BY id", commitment.id)
    good = [one for one in verdicts if one.verdict == COMMITTED]
    bad = [one for one in verdicts if one.verdict != COMMITTED]
    sources = {one.evidence for one in good}
    write = _by_study if commitment.by_study else _flat
    return Result(
        bool(good) and not bad, write(good, bad), "".join(sources) if len(sources) == 1 else ""
    )


def _reason(verdict: str) -> bytes:
    """Failure Reason (0008,1197), nothing for what is committed."""
    if verdict == COMMITTED:
        return b""
    return encode_element(tag_of("FailureReason"), b"US", struct.pack("<H", int(verdict, 16)))


def _flat(good: list[Any], bad: list[Any]) -> bytes:
    def item(one: Any) -> bytes:
        uids = {"ReferencedSOPClassUID": one.sop_class_uid,
                "ReferencedSOPInstanceUID": one.sop_instance_uid}  # fmt: skip
        return bytes(text_elements(**uids)) + _reason(one.verdict)

    pairs = (("FailedSOPSequence", bad), ("ReferencedSOPSequence", good))
    return b"".join(encode_items(tag_of(name), map(item, some)) for name, some in pairs if some)


def _by_study(good: list[Any], bad: list[Any]) -> bytes:
    """PS3.18 Table J.2-1: studies, series, classes, instances; with the reason beside each failed."""

    def instance(one: Any) -> bytes:
        uid = text_elements(ReferencedSOPInstanceUID=one.sop_instance_uid)
        return uid.merged(ElementIndex(_reason(one.verdict)))

    def level(some: list[Any], steps: tuple[tuple[str, str, str], ...]) -> list[bytes]:
        if not steps:
            return [instance(one) for one in some]
        (column, keyword, sequence), *rest = steps
        groups: dict[str, list[Any]] = {}
        for one in some:
            groups.setdefault(getattr(one, column), []).append(one)
        return [
            text_elements(**{keyword: uid}).merged(
                ElementIndex(encode_items(tag_of(sequence), level(members, tuple(rest))))
            )
            for uid, members in groups.items()
        ]

    steps = (
        ("study_instance_uid", "StudyInstanceUID", "ReferencedSeriesSequence"),
        ("series_instance_uid", "SeriesInstanceUID", "ReferencedInstancesBySOPClassSequence"),
        ("sop_class_uid", "ReferencedSOPClassUID", "ReferencedInstanceSequence"),
    )
    pairs = (("ReferencedStudySequence", good), ("FailedStudySequence", bad))
    return b"".join(encode_items(tag_of(name), level(some, steps)) for name, some in pairs if some)


def commitment_by_uid(uid: str) -> Any:
    """A request by its Transaction UID. Refuses 0112."""
    found = fetch_rows(Commitment, "transaction_uid = ? AND repeats = 0", uid)
    if not found:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no such request"))
    return found[0]


def note_told(ctx: Context, commitment_id: int) -> None:
    """The result of a request has been told."""
    update_row(Commitment, commitment_id, state="told", told_at=ctx.stamp(), problem="", try_at="")


def note_not_told(ctx: Context, commitment_id: int, problem: str) -> None:
    """The result could not be told: again later, until it is given up."""
    [commitment] = fetch_rows(Commitment, "id = ?", commitment_id)
    failures = commitment.failures + 1
    late = commitment.judged_at <= ctx.stamp(hours=-ctx.config.commitment.report_hours)
    state = "given up" if late else "judged"
    update_row(Commitment, commitment_id, state=state, failures=failures, problem=problem[:500],
               try_at=ctx.stamp(seconds=retry_wait(failures)))  # fmt: skip
    if late:
        audit(ctx, "commitment not told", commitment.transaction_uid, problem[:200])
    log.warning("commitment %s: %s: %s", commitment.transaction_uid, commitment.requester, problem)


def tell_again(requester: str) -> None:
    """Have results that a requester could not be told tried again now."""
    database.execute_sql(
        "UPDATE commitment SET try_at = '' WHERE state = 'judged' AND door = 'dimse'"
        " AND requester = ?",
        (requester,),
    )


def purge_commitments(ctx: Context) -> int:
    """Drop results that are old enough; their Transaction UIDs stay known. How many."""
    old = ctx.stamp(days=-ctx.config.commitment.keep_days)
    over = "state IN ('told', 'given up') OR (state = 'judged' AND door = 'web')"
    ended = f"({over}) AND judged_at < ?"
    erase(
        f"commitment_instance WHERE commitment_id IN (SELECT id FROM commitment WHERE {ended})", old
    )
    erase(f"commitment_relay WHERE commitment_id IN (SELECT id FROM commitment WHERE {ended})", old)
    erase("availability WHERE at < ?", old)
    erase("study_seen WHERE since < ?", old)
    erase("availability_notice WHERE created_at < ?", old)
    sql = f"UPDATE commitment SET state = 'dropped', data = x'' WHERE {ended}"
    return database.execute_sql(sql, (old,)).rowcount


def try_commitment_again(ctx: Context, uid: str) -> None:
    """Ask the archive, or tell the machine, now and not later. Refuses 0112, C300 for what is done.

    A result that was told is final: its Transaction UID is used up (PS3.4 J.3.3.1.2)
    """
    commitment = commitment_by_uid(uid)
    done = commitment.state in ("told", "dropped")
    if done or (commitment.door == "web" and commitment.state != "asked"):
        raise Refusal(Status.MAY_NO_LONGER_BE_UPDATED, Message("It has ended already"))
    state = "judged" if commitment.state == "given up" else commitment.state
    update_row(Commitment, commitment.id, state=state, failures=0, try_at="")
    if commitment.state == "given up":  # it has its time anew
        update_row(Commitment, commitment.id, judged_at=ctx.stamp())
    audit(ctx, "commitment tried again", uid)


def recent_commitments(most: int = 200) -> list[tuple[Any, int, int, int]]:
    """The newest requests, each with how many are committed, refused and not judged."""
    found = commitment_rows(f"1 = 1 ORDER BY id DESC LIMIT {most}")
    counts = commitment_counts(one.id for one in found)
    return [(one, *counts[one.id]) for one in found]


def judged_instances(commitment_id: int) -> list[Any]:
    """The instances of a request with their verdicts, those that are refused first."""
    where = "commitment_id = ? ORDER BY verdict = '0000', id LIMIT 1000"
    return fetch_rows(CommitmentInstance, where, commitment_id)


def archive_of(ctx: Context) -> Device | None:
    """The archive that is asked: the one that is set, else the one device whose role is archive."""
    title = ctx.config.commitment.archive
    found = [one for one in ctx.devices
             if (title in one.ae_titles if title else one.role == "archive")]  # fmt: skip
    return found[0] if len(found) == 1 else None


# 13. WORKFLOW ---------------------------------------------------------------------------------
#
# What happens of itself: retention, as [housekeeping] says; what happened, as figures.
# For others: purge, due_to_end, visit_of, days_between.


def purge(ctx: Context) -> dict[str, int]:
    """Erase what [housekeeping] lets go: how many rows of what. What is 0 there is kept."""
    keep, erased = ctx.config.housekeeping, {}
    with database.atomic():
        if keep.keep_steps_days:
            erased["steps"] = _purge_steps(ctx, ctx.stamp(days=-keep.keep_steps_days))
        if keep.keep_patients_days:
            erased["patients"] = _purge_patients(ctx.stamp(days=-keep.keep_patients_days))
        old = ctx.stamp(days=-keep.keep_queries_days)
        erased["queries"] = erase("query_trace WHERE last_at < ?", old)
        if keep.keep_audit_days:
            old = ctx.stamp(days=-keep.keep_audit_days)
            erased["audit lines"] = purge_audit(old)
        erased["commitments"] = purge_commitments(ctx)
        old = ctx.stamp(days=-keep.keep_deliveries_days)
        erased["deliveries"] = erase(
            "outbox_event WHERE created_at < ? AND (sent_at <> '' OR given_up_at <> '')", old
        )
        erased["passed on"] = erase(
            "passed_on WHERE created_at < ? AND (sent_at <> '' OR given_up_at <> '')", old
        )
        erased["initial reports"] = erase(
            "workitem_event WHERE initial = 1 AND NOT EXISTS"
            " (SELECT 1 FROM outbox_event o WHERE o.event_id = workitem_event.id)"
        )
        if keep.keep_workitem_history_days:
            old = ctx.stamp(days=-keep.keep_workitem_history_days)
            erased["workitem events"] = erase(
                "workitem_event WHERE created_at < ? AND NOT EXISTS (SELECT 1 FROM outbox_event o"
                " WHERE o.event_id = workitem_event.id) AND NOT EXISTS (SELECT 1 FROM workitem w"
                " WHERE w.sop_instance_uid = workitem_event.sop_instance_uid)",
                old,
            )
        if erased := {what: count for what, count in erased.items() if count}:
            words = ", ".join(f"{count} {what}" for what, count in erased.items())
            audit(ctx, "purged", "store", words)
            log.info("purged: %s", words)
    return erased


def _purge_steps(ctx: Context, old: str) -> int:
    """Erase steps that ended before a time, with what was performed for them alone."""
    ended = "SELECT id FROM scheduled_procedure_step WHERE ended_at <> '' AND ended_at < ?"
    performed = database.execute_sql(
        "SELECT p.id, p.sop_instance_uid FROM performed_procedure_step p"
        " WHERE p.updated_at < ? AND NOT EXISTS"
        f" (SELECT 1 FROM performed_scheduled_step l WHERE l.performed_id = p.id"
        f" AND l.scheduled_id NOT IN ({ended}))",
        (old, old),
    ).fetchall()
    erase(f"performed_scheduled_step WHERE scheduled_id IN ({ended})", old)
    for row_id, uid in performed:
        erase("performed_procedure_step WHERE id = ?", row_id)
        notify_of_mpps(ctx, uid, "deleted")
    erase(f"scheduled_station WHERE step_id IN ({ended})", old)
    count = erase(f"scheduled_procedure_step WHERE id IN ({ended})", old)
    erase(
        "requested_procedure WHERE created_at < ? AND NOT EXISTS (SELECT 1 FROM"
        " scheduled_procedure_step s WHERE s.procedure_id = requested_procedure.id)",
        old,
    )
    return count


def _purge_patients(old: str) -> int:
    return erase(
        "patient WHERE updated_at < ? AND NOT EXISTS (SELECT 1 FROM requested_procedure r"
        " WHERE r.patient_id = patient.id)",
        old,
    )


class Moment(NamedTuple):
    """Something that happened in a visit: when (as the store keeps it), what, and what about."""

    at: str
    what: Message
    about: str = ""


def visit_of(row_id: int) -> list[Moment]:
    """The time line of an exam: from its registration to what came after, in order. Refuses 0112."""
    step = step_row(row_id)
    told = TOLD_BY.get(step.told_by, step.told_by)
    found = [
        Moment(step.created_at, Message("Registered")),
        Moment(step.arrived_at, Message("Arrived")),
        Moment(step.started_at, Message("Begun")),
        Moment(step.ended_at, Message("Ended: {state}", state=step.status), str(told)),
    ]
    study = (step.study_instance_uid,)
    first, last, count = database.execute_sql(
        "SELECT coalesce(min(at), ''), coalesce(max(at), ''), count(DISTINCT sop_instance_uid)"
        f" FROM availability WHERE study_instance_uid = ? AND availability IN {RETRIEVABLE}",
        study,
    ).fetchone()
    found.append(Moment(first, Message("First image in the archive")))
    if count > 1:
        found.append(Moment(last, Message("{count} images in the archive", count=count)))
    found += [
        Moment(at, Message("{ae} was told that {count} images are safe", ae=ae, count=safe))
        for at, ae, safe in database.execute_sql(
            "SELECT c.told_at, c.requester, count(DISTINCT i.id) FROM commitment c JOIN commitment_instance i"
            " ON i.commitment_id = c.id JOIN availability a ON a.sop_instance_uid ="
            " i.sop_instance_uid WHERE a.study_instance_uid = ? AND i.verdict = '0000'"
            " AND c.told_at <> '' GROUP BY c.id",
            study,
        )
    ]
    workitems = database.execute_sql(
        "SELECT label, state, created_at, claimed_at, ended_at, performer FROM workitem"
        " WHERE accession_number = ? AND accession_number <> ''",
        (step.accession_number,),
    )
    for label, state, created, claimed, ended, performer in workitems:
        found.append(Moment(created, Message("Workitem made"), label))
        found.append(Moment(claimed, Message("Workitem claimed"), f"{label} {performer}".strip()))
        found.append(Moment(ended, Message("Workitem ended: {state}", state=state), label))
    return sorted((one for one in found if one.at), key=lambda one: one.at)


class Day(NamedTuple):
    """The exams of a day at a station: how many, how they ended, minutes of waiting and in the room."""

    date: str
    station: str
    exams: int
    completed: int
    discontinued: int
    no_show: int
    waiting: list[float]
    room: list[float]


def days_between(first: str, last: str) -> list[Day]:
    """What happened at each station on the days from one DA to another, in order."""
    days: dict[tuple[str, str], Day] = {}
    for date, station, status, arrived, started, ended in database.execute_sql(
        "SELECT s.start_date, coalesce((SELECT t.ae_title FROM scheduled_station t"
        " WHERE t.step_id = s.id LIMIT 1), ''), s.status, s.arrived_at, s.started_at, s.ended_at"
        " FROM scheduled_procedure_step s WHERE s.start_date BETWEEN ? AND ? AND s.status <> 'CANCELED'",
        (first, last),
    ):
        day = days.setdefault((date, station), Day(date, station, 0, 0, 0, 0, [], []))
        for minutes, begin, end in ((day.waiting, arrived, started), (day.room, started, ended)):
            if begin and end:
                minutes.append(minutes_between(begin, end))
        days[date, station] = day._replace(
            exams=day.exams + 1,
            completed=day.completed + (status == "COMPLETED"),
            discontinued=day.discontinued + (status == "DISCONTINUED"),
            no_show=day.no_show + (status == "NO SHOW"),
        )
    return [days[key] for key in sorted(days)]


def minutes_between(begin: str, end: str) -> float:
    """Minutes between two times as the store keeps them, none below 0."""
    first, last = (datetime.datetime.fromisoformat(at) for at in (begin, end))
    return max(0.0, (last - first).total_seconds() / 60)


def due_to_end(ctx: Context) -> list[tuple[Callable[..., None], tuple[Any, ...]]]:
    """What [housekeeping] ends of itself now: core functions with their arguments."""
    keep, due = ctx.config.housekeeping, []
    if keep.release_locks_days:
        locks = database.execute_sql(
            "SELECT w.sop_instance_uid, s.ae_title FROM subscription s JOIN workitem w"
            " ON w.id = s.workitem_id WHERE s.deletion_lock = 1 AND w.ended_at <> ''"
            " AND w.ended_at < ?",
            (ctx.stamp(days=-keep.release_locks_days),),
        ).fetchall()
        why = "[housekeeping] release_locks_days"
        due += [(release_lock, (uid, ae_title, why)) for uid, ae_title in locks]
    if keep.cancel_silent_workitems_hours:
        old = ctx.stamp(hours=-keep.cancel_silent_workitems_hours)
        why = "[housekeeping] cancel_silent_workitems_hours", "110513", "IN PROGRESS", old
        uids = _workitems_where("state = 'IN PROGRESS' AND updated_at < ?", old)
        due += [(end_workitem, (uid, *why)) for uid in uids]
    if keep.cancel_expired_workitems:
        where = "state = 'SCHEDULED' AND expires_at <> '' AND expires_at < ?"
        why = "[housekeeping] cancel_expired_workitems", "110533", "SCHEDULED"
        uids = _workitems_where(where, ctx.stamp())
        due += [(end_workitem, (uid, *why)) for uid in uids]
    return due


def correct_stamps(began: float, leap: float) -> None:
    """Move what this run has written of workitems and images by a clock that was behind.

    began  when it began, in seconds since 1970, by that clock; leap  how far it was behind
    """
    until = time.time() - leap
    first, last = (
        utc_stamp(datetime.datetime.fromtimestamp(at, datetime.UTC)) for at in (began, until)
    )
    for table, column in (
        ("workitem", "updated_at"),
        ("workitem", "claimed_at"),
        ("workitem", "ended_at"),
        ("study_seen", "since"),
        ("study_seen", "seen_at"),
    ):
        database.execute_sql(
            f"UPDATE {table} SET {column} = strftime('%Y-%m-%dT%H:%M:%f000Z', {column}, ?)"
            f" WHERE {column} BETWEEN ? AND ?",
            (f"{leap:+.3f} seconds", first, last),
        )


def _workitems_where(where: str, *values: Any) -> list[str]:
    cursor = database.execute_sql(f"SELECT sop_instance_uid FROM workitem WHERE {where}", values)
    return [uid for (uid,) in cursor]


# 14. INTERCHANGE ------------------------------------------------------------------------------
#
# Worklist items from files: DICOM (.wl, .dcm), DICOM JSON, CSV; everything as JSON and back.
# For others: read_items, import_items, items_from_csv, preview_csv, export_store, export_csv,
# import_export.


def read_dicom_file(content: bytes) -> bytes:
    """The data set of a DICOM file, with or without preamble, in the stored form.

    Refuses 0106 for what cannot be read
    """
    if not content:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("The file is empty"))
    at = 132 if content[128:132] == b"DICM" else 0
    try:
        syntax, at = _file_meta(content, at)
        syntax = syntax or guess_syntax(content[at:])
        if syntax not in (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN):
            raise Malformed(f"transfer syntax {syntax} is not taken")
        found = recode_noting(content[at:], syntax == EXPLICIT_VR_LITTLE_ENDIAN)
        if found.damaged:
            words = Message("cannot be read in the character set of the file")
            problems = [Problem(tag, words) for tag in dict.fromkeys(found.damaged)]
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
        return found.data
    except (Malformed, struct.error) as error:
        raise Refusal(
            Status.INVALID_ATTRIBUTE_VALUE, Message("cannot be read: {error}", error=error)
        ) from None


def _file_meta(content: bytes, at: int) -> tuple[str, int]:
    """The transfer syntax that a file meta group names, and where the data set begins."""
    start, syntax = at, ""
    while content[at : at + 2] == b"\x02\x00":
        _, number, vr, length = _HEADER.unpack_from(content, at)
        at += 8
        if vr in _LONG_VRS:
            length = int.from_bytes(content[at : at + 4], "little")
            at += 4
        if number == 0x0010:
            syntax = content[at : at + length].decode("ascii", "replace").strip(" \0")
        at += length
    if at > start and not syntax:
        raise Malformed("the file does not name its transfer syntax")
    return syntax, at


def guess_syntax(data: bytes) -> str:
    """Explicit or Implicit VR Little Endian, by whether a VR stands where one would be."""
    explicit = data[4:6] in _KNOWN_VRS
    return EXPLICIT_VR_LITTLE_ENDIAN if explicit else IMPLICIT_VR_LITTLE_ENDIAN


def read_items(name: str, content: bytes) -> list[bytes]:
    """The worklist items of one file, in the stored form.

    name     its name, for its kind: .json is DICOM JSON, one data set or an array; others DICOM
    Refuses  0106, with "item N" where the file has several
    """
    if content[:3] == b"\xef\xbb\xbf":
        content = content[3:]
    if name.lower().endswith(".csv"):
        return items_from_csv(content)
    if name.lower().endswith(".json") or content.lstrip()[:1] in (b"[", b"{"):
        return items_from_json(content)
    return [read_dicom_file(content)]


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; ValueError where a key is there twice, as one of the two would be lost."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:40]!r} is there twice")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def items_from_json(content: bytes) -> list[bytes]:
    """The data sets of a DICOM JSON text: an object or an array. Refuses 0106."""
    try:
        value = json.loads(content, object_pairs_hook=_keys_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(
            Status.INVALID_ATTRIBUTE_VALUE, Message("is not JSON: {error}", error=error)
        ) from None
    values = value if isinstance(value, list) else [value]
    items = []
    for number, one in enumerate(values, 1):
        try:
            items.append(from_json(one))
        except Refusal as refusal:
            raise numbered(refusal, number) from None
    return items


def numbered(refusal: Refusal, number: int, word: str = "item") -> Refusal:
    """A refusal that says which item it is about, and all that is wrong with it."""
    found = [problem.message for problem in refusal.problems]
    words = joined(found, "; ") if found else Message(refusal.detail)
    line = Message("{word} {number}: {words}", word=Message(word), number=number, words=words)
    return Refusal(refusal.status, line, refusal.problems)


def import_items(
    ctx: Context,
    items: Iterable[bytes],
    same_id: str = "separate",
    word: str = "item",
    trial: bool = False,
) -> int:
    """Put items on the worklist, all or none: how many.

    trial    it will be undone, and is not logged
    Refuses  as `schedule`, with "item N: …" for each that is wrong, a line each
    """
    imported, refusals = 0, []
    with database.atomic():
        for count, item in enumerate(items, 1):
            if not item:
                continue  # an empty line of a table, which has its number too
            try:
                schedule(ctx, item, same_id, trial)
                imported += 1
            except Refusal as refusal:
                refusals.append(numbered(refusal, count, word))
        if refusals:
            lines = [refusal.detail for refusal in refusals[:100]]
            if len(refusals) > 100:
                lines.append(Message("and {count} more", count=len(refusals) - 100))
            problems = [problem for refusal in refusals for problem in refusal.problems]
            raise Refusal(refusals[0].status, joined(lines, "\n"), problems)
    if not imported:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("The file has no item"))
    return imported


# The columns of a CSV file: names they may have, and what they fill. A keyword does too.
CSV_COLUMNS = {
    name: keyword
    for names, keyword in body_rows("""
    names                                           | keyword
    family_name, family name, 姓拼音                | family
    given_name, given name, 名拼音                  | given
    name, patient name, patient_name, 姓名          | PatientName
    patient_id, patient id, id, 病人编号, 患者编号, 病历号 | PatientID
    birth_date, birth date, date of birth, 出生日期 | PatientBirthDate
    sex, gender, 性别                               | PatientSex
    weight, 体重                                    | PatientWeight
    exam, procedure, 检查, 检查项目                 | RequestedProcedureDescription
    device, station, ae_title, 设备                 | ScheduledStationAETitle
    modality, 检查类型, 设备类型                    | Modality
    date, 日期, 检查日期                            | ScheduledProcedureStepStartDate
    time, 时间, 检查时间                            | ScheduledProcedureStepStartTime
    priority, 优先级                                | RequestedProcedurePriority
    physician, referring physician, 申请医生        | ReferringPhysicianName
    accession, accession number, accession_number, 检查号 | AccessionNumber
    comment, 备注                                   | RequestedProcedureComments
    allergies, 过敏史                               | Allergies
    """)
    for name in names.split(", ")
}
CSV_SEXES = {"男": "M", "女": "F", "male": "M", "female": "F", "m": "M", "f": "F", "o": "O"}


def decode_csv(content: bytes) -> str:
    """The text of a CSV file: UTF-8 with or without mark, else GB18030. Refuses 0106."""
    for codec in ("utf-8-sig", "gb18030"):
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode(codec)
    raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("The file is neither UTF-8 nor GB18030"))


def read_csv(content: bytes) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of a CSV file with commas, semicolons or tabs. Refuses 0106."""
    text = decode_csv(content)
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    try:
        lines = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error as error:
        raise Refusal(
            Status.INVALID_ATTRIBUTE_VALUE, Message("cannot be read: {error}", error=error)
        ) from None
    while lines and not any(cell.strip() for cell in lines[-1]):
        lines.pop()
    if len(lines) < 2:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("The file has no rows"))
    return [name.strip() for name in lines[0]], lines[1:]


def csv_keyword(name: str) -> str:
    """What a column fills: a keyword, or "" for a column that is not known."""
    known = CSV_COLUMNS.get(name.strip().casefold())
    return known or (name.strip() if datadict.tag_for_keyword(name.strip()) else "")


def csv_value(keyword: str, text: str) -> str:
    """A cell as DICOM writes it: dates without dashes, times without colons."""
    text = text.strip().lstrip("'")  # a spreadsheet's way to keep a number a text
    if vr_of(datadict.tag_for_keyword(keyword) or 0) == "DA":
        parts = re.fullmatch(r"(\d{4})[-/.年](\d{1,2})[-/.月](\d{1,2})日?", text)
        return "".join((parts[1], parts[2].zfill(2), parts[3].zfill(2))) if parts else text
    if vr_of(datadict.tag_for_keyword(keyword) or 0) == "TM":
        parts = re.fullmatch(r"(\d{1,2}):(\d\d)(:(\d\d))?", text)
        return f"{parts[1].zfill(2)}{parts[2]}{parts[4] or ''}" if parts else text
    if keyword == "PatientSex":
        return CSV_SEXES.get(text.casefold(), text)
    if keyword == "PatientName" and "^" not in text and "=" not in text and not text.isascii():
        return person_name("", "", text)
    if keyword == "PatientName" and "^" not in text and "=" not in text:
        return "^".join(reversed(text.rsplit(" ", 1))) if " " in text else text
    return text


def items_from_csv(content: bytes) -> list[bytes]:
    """The worklist items of a CSV file, one a row, procedures by the catalogue.

    Refuses 0106 for a file without a column for the name, or with columns that are not known
    """
    names, lines = read_csv(content)
    keywords = [csv_keyword(name) for name in names]
    problems = [
        Message("There is no column {value}", value=name)
        for name, keyword in zip(names, keywords, strict=True)
        if not keyword
    ]
    if not {"PatientName", "family"} & set(keywords):
        problems.append(Message("There is no column for the patient's name"))
    if problems:
        text = joined(problems, "\n")
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, text, [Problem(0, p) for p in problems])
    return [
        _item_from_row(keywords, line) if any(cell.strip() for cell in line) else b""
        for line in lines
    ]


def _item_from_row(keywords: list[str], line: list[str]) -> bytes:
    cells = {
        keyword: csv_value(keyword, text) for keyword, text in zip(keywords, line, strict=False)
    }
    if "family" in cells or "given" in cells:
        latin = "^".join(filter(None, (cells.pop("family", ""), cells.pop("given", ""))))
        rest = cells.get("PatientName", "")
        ideographic = rest.partition("=")[2] or ("" if rest.isascii() else rest)
        cells["PatientName"] = f"{latin}={ideographic}".rstrip("=")
    step = {keyword: cells.pop(keyword, "") for keyword in STEP_KEYWORDS if keyword in cells}
    texts = {k: v for k, v in cells.items() if v}
    sequence = encode_items(STEP_SEQUENCE, [bytes(text_elements(**step))])
    return apply_procedure(text_elements(**texts).merged(ElementIndex(sequence)))


STEP_KEYWORDS = tuple(attribute.keyword for attribute in MWL_ATTRIBUTES.children((STEP_SEQUENCE,)))


def preview_csv(ctx: Context, content: bytes) -> tuple[list[list[str]], str]:
    """What an import of a CSV file would do: its lines, and what is wrong; nothing is kept."""
    names, lines = read_csv(content)
    try:
        with database.atomic() as trial:
            import_items(ctx, items_from_csv(content), word="row", trial=True)
            trial.rollback()
    except Refusal as refusal:
        return [names, *lines], refusal.detail
    return [names, *lines], ""


def import_file(ctx: Context, name: str, content: bytes) -> int:
    """Import a file of the page: how many items. Refuses as import_items."""
    word = "row" if name.lower().endswith(".csv") else "item"
    return import_items(ctx, read_items(name, content), word=word)


def preview_file(ctx: Context, name: str, content: bytes) -> tuple[list[list[str]], str]:
    """What an import would do: its lines, and what is wrong; nothing is kept."""
    if name.lower().endswith(".csv"):
        return preview_csv(ctx, content)
    items = read_items(name, content)
    lines = [["PatientID", "PatientName", "AccessionNumber"]]
    lines += [[ElementIndex(item).get(keyword) for keyword in lines[0]] for item in items]
    try:
        with database.atomic() as trial:
            import_items(ctx, items, trial=True)
            trial.rollback()
    except Refusal as refusal:
        return lines, refusal.detail
    return lines, ""


# Everything, in open form.


def _exported(row: Any, *columns: str) -> dict[str, Any]:
    """The data set of a row in the DICOM JSON Model, and some of its columns."""
    return {
        "data": to_json(ElementIndex(bytes(row.data))),
        **{column: getattr(row, column) for column in columns},
    }


def export_store() -> dict[str, Any]:
    """All that is kept, as JSON: data sets in the DICOM JSON Model; `import` reads it back."""
    patients = fetch_rows(Patient, "1 = 1 ORDER BY id")
    requested = fetch_rows(RequestedProcedure, "1 = 1 ORDER BY id")
    patient_at = {row.id: place for place, row in enumerate(patients)}
    requested_at = {row.id: place for place, row in enumerate(requested)}
    links = collections.defaultdict(list)
    for performed, study, step_id, found_by, before in database.execute_sql(
        "SELECT l.performed_id, s.study_instance_uid, s.scheduled_procedure_step_id, l.found_by,"
        " l.status_before FROM performed_scheduled_step l"
        " JOIN scheduled_procedure_step s ON s.id = l.scheduled_id"
    ):
        links[performed].append([study, step_id, found_by, before])
    stamps = ("created_at", "updated_at")
    return {
        "minris": __version__,
        "patients": [_exported(row, *stamps) for row in patients],
        "requested": [
            _exported(row) | {"patient": patient_at[row.patient_id]} for row in requested
        ],
        "worklist": [
            _exported(row, "arrived_at", "started_at", "ended_at", "remark", "told_by")
            | {"requested": requested_at[row.procedure_id]}
            for row in fetch_rows(ScheduledProcedureStep, "1 = 1 ORDER BY id")
        ],
        "performed": [
            {"uid": row.sop_instance_uid}
            | _exported(row, *stamps, "remark", "settled")
            | {"links": links[row.id]}
            for row in fetch_rows(PerformedProcedureStep, "1 = 1 ORDER BY id")
        ],
        "devices": [
            {"name": row.name, "settings": json.loads(row.settings)}
            for row in fetch_rows(DeviceRecord, "1 = 1 ORDER BY name")
        ],
        "procedures": [
            {key: getattr(row, key) for key in (*PROCEDURE_COLUMNS, "retired")}
            for row in fetch_rows(Procedure, "1 = 1 ORDER BY code")
        ],
    } | export_workitems()


WORKITEM_FACTS_KEPT = ("performer", "by_person", "declined", "created_at", "updated_at",
                       "claimed_at", "ended_at")  # fmt: skip


def export_workitems() -> dict[str, Any]:
    """The workitems with their history and subscribers; without the locks of their performers."""
    subscriptions = database.execute_sql(
        "SELECT w.sop_instance_uid, s.ae_title, s.deletion_lock, s.created_at FROM subscription s"
        " JOIN workitem w ON w.id = s.workitem_id ORDER BY w.id, s.ae_title"
    ).fetchall()
    return {
        "workitems": [
            _exported(row, *WORKITEM_FACTS_KEPT)
            for row in fetch_rows(Workitem, "1 = 1 ORDER BY id")
        ],
        "workitem_events": [
            {"uid": row.sop_instance_uid} | _exported(row, "event_type", "created_at", "who")
            for row in fetch_rows(WorkitemEvent, "initial = 0 ORDER BY id")
        ],
        "purged_workitems": [
            [row.sop_instance_uid, row.purged_at]
            for row in fetch_rows(PurgedWorkitem, "1 = 1 ORDER BY sop_instance_uid")
        ],
        "subscriptions": list(map(list, subscriptions)),
        "global_subscriptions": [
            {"keys": to_json(ElementIndex(bytes(row.keys)))}
            | {key: getattr(row, key) for key in ("ae_title", "uid", "deletion_lock", "created_at")}
            for row in fetch_rows(GlobalSubscription, "1 = 1 ORDER BY ae_title, uid")
        ],
    }


def import_workitems(ctx: Context, content: dict[str, Any]) -> None:
    """Read back what export_workitems gave. Refuses 0111, 0106.

    Nobody is told; who had claimed a workitem over DICOM has to have it ended and made again.
    """
    ids = dict(_import_workitem(ctx, one) for one in content.get("workitems", []))
    for one in content.get("workitem_events", []):
        _import_happening(one)
    purged = [(uid, at) for uid, at in content.get("purged_workitems", [])]
    check_stamps(at for _, at in purged)
    insert_rows(
        "purged_workitem (sop_instance_uid, purged_at) VALUES ON CONFLICT DO NOTHING", purged
    )
    _import_subscriptions(ctx, content, ids)


def _import_workitem(ctx: Context, given: dict[str, Any]) -> tuple[str, int]:
    """Take a workitem of an export: its UID and its row."""
    data = ElementIndex(from_json(given["data"])).without([TRANSACTION_UID])
    uid = ElementIndex(data).get("SOPInstanceUID")
    check_uid(uid)
    if stored_workitem(uid) or is_purged(uid):
        words = Message("{uid} exists already", uid=uid)
        raise Refusal(Status.DUPLICATE_SOP_INSTANCE, words)
    if problems := workitem_problems(ctx, ElementIndex(data)):
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
    columns = workitem_columns(ctx, data)
    if columns["state"] not in UPS_STATES:
        raise ValueError(columns["state"])
    check_stamps(given[key] for key in WORKITEM_FACTS_KEPT if key.endswith("_at"))
    row_id = insert_row(
        Workitem,
        sop_instance_uid=uid,
        transaction_uid=ctx.new_uid(),
        data=data,
        version=first_version(),
        **columns | {key: given[key] for key in WORKITEM_FACTS_KEPT},
    )
    return uid, row_id


def _import_happening(given: dict[str, Any]) -> None:
    if given["event_type"] not in EVENT_TYPES.values():
        raise ValueError(given["event_type"])
    check_stamps([given["created_at"]])
    insert_row(
        WorkitemEvent,
        sop_instance_uid=given["uid"],
        data=from_json(given["data"]),
        **{key: given[key] for key in ("event_type", "created_at", "who")},
    )


def _import_subscriptions(ctx: Context, content: dict[str, Any], ids: dict[str, int]) -> None:
    told = [(ids[uid], ae, lock, at) for uid, ae, lock, at in content.get("subscriptions", [])]
    globally = [
        (
            one["ae_title"],
            one["uid"],
            one["deletion_lock"],
            from_json(one["keys"]),
            one["created_at"],
        )
        for one in content.get("global_subscriptions", [])
    ]
    for _, uid, _, keys, _ in globally:
        if uid not in WELL_KNOWN_UPS:
            raise ValueError(uid)
        if keys:
            filter_search(keys, ctx.config.zone)
    for ae_title, lock in [(row[1], row[2]) for row in told] + [
        (row[0], row[2]) for row in globally
    ]:
        check_receiver(ae_title)
        if lock not in (0, 1):
            raise ValueError(lock)
    check_stamps(row[-1] for row in (*told, *globally))
    enter_subscriptions(told)
    insert_rows(
        "global_subscription (ae_title, uid, deletion_lock, keys, created_at) VALUES"
        " ON CONFLICT DO NOTHING",
        globally,
    )


def check_stamps(stamps: Iterable[str]) -> None:
    """ValueError for what is no time as the store keeps it, nor empty."""
    for stamp in stamps:
        if stamp:
            datetime.datetime.fromisoformat(stamp)
        elif stamp != "":
            raise ValueError(stamp)


def import_export(ctx: Context, content: dict[str, Any]) -> str:
    """Read back what export_store gave, all or nothing: what was done. Refuses as `schedule`."""
    with database.atomic():
        patients = [(_import_patient(ctx, one), one) for one in content.get("patients", [])]
        steps = []
        for number, step in enumerate(content.get("worklist", []), 1):
            given = from_json(step["data"])
            try:
                [data] = schedule(ctx, _as_of_now(content, step, given), "separate")
            except Refusal as refusal:
                raise numbered(refusal, number, "worklist") from None
            index = ElementIndex(data)
            row = find_step(
                index.get("StudyInstanceUID"),
                index.item("ScheduledProcedureStepSequence").get("ScheduledProcedureStepID"),
            )
            stamps = ("arrived_at", "started_at", "ended_at", "remark", "told_by")
            update_row(ScheduledProcedureStep, row.id, **{key: step.get(key, "") for key in stamps})
            if row.status not in OPEN_STEP_STATES:
                steps.append((row.id, given))
        for patient, one in patients:  # a step that has ended told of an earlier time
            if patient:
                _restore_patient(patient, one)
        for row_id, given in steps:
            update_row(ScheduledProcedureStep, row_id, data=given, **step_columns(given))
        for performed in content.get("performed", []):
            _import_performed(performed)
        for device in content.get("devices", []):
            save_device(ctx, device["name"], device["settings"], device["name"])
        for procedure in content.get("procedures", []):
            save_procedure(ctx, {key: str(procedure.get(key, "")) for key in PROCEDURE_COLUMNS})
            if procedure.get("retired"):
                retire_procedure(ctx, procedure["code"])
        import_workitems(ctx, content)
    counts = (f"{len(content.get(key, []))} {key}" for key in
              ("worklist", "performed", "devices", "procedures", "workitems"))  # fmt: skip
    return ", ".join(counts)


def _as_of_now(content: dict[str, Any], step: dict[str, Any], data: bytes) -> bytes:
    """A step that has ended, with what is known of its patient and procedure since."""
    if "requested" not in step:
        return data
    requested = content["requested"][step["requested"]]
    patient = content["patients"][requested["patient"]]
    item = bytes(ElementIndex(data).item("ScheduledProcedureStepSequence"))
    return fold(from_json(patient["data"]), from_json(requested["data"]), item)


def _import_patient(ctx: Context, given: dict[str, Any]) -> Patient | None:
    """Make the patient of an export, or tell one who is known of it: who was made."""
    data = from_json(given["data"])
    known = _find_patient(ctx, ElementIndex(data), "separate")
    if known:
        update_patient(ctx, known, data)
        return None
    stamps = {key: given[key] for key in ("created_at", "updated_at")}
    return Patient.create(**patient_columns(data), **stamps)


def _restore_patient(patient: Patient, given: dict[str, Any]) -> None:
    for column, value in patient_columns(from_json(given["data"])).items():
        setattr(patient, column, value)
    patient.updated_at = given["updated_at"]
    patient.save()
    _refold_open(patient)


def _import_performed(performed: dict[str, Any]) -> None:
    data = from_json(performed["data"])
    index = ElementIndex(data)
    check_uid(performed["uid"])
    try:
        row_id = insert_row(
            PerformedProcedureStep,
            sop_instance_uid=performed["uid"],
            status=index.text(MPPS_STATUS),
            performed_station_ae_title=index.get("PerformedStationAETitle"),
            data=data,
            created_at=performed["created_at"],
            updated_at=performed["updated_at"],
            remark=performed.get("remark", ""),
            settled=performed.get("settled", ""),
        )
    except peewee.IntegrityError:
        words = Message("{uid} exists already", uid=performed["uid"])
        raise Refusal(Status.DUPLICATE_SOP_INSTANCE, words) from None
    for study, step_id, found_by, before in performed.get("links", []):
        insert_link(row_id, find_step(study, step_id).id, found_by, before)


EXPORT_COLUMNS = (
    "PatientID PatientName PatientBirthDate PatientSex AccessionNumber RequestedProcedureID"
    " StudyInstanceUID RequestedProcedureDescription ReferringPhysicianName"
    " ScheduledProcedureStepID ScheduledStationAETitle Modality ScheduledProcedureStepStartDate"
    " ScheduledProcedureStepStartTime ScheduledProcedureStepStatus"
).split()


def no_formula(cell: str) -> str:
    """A cell of a CSV file that no spreadsheet takes for a formula."""
    return "'" + cell if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def export_csv() -> str:
    """The scheduled steps as CSV, a row each; no cell can be taken for a formula."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(EXPORT_COLUMNS)
    for step in fetch_rows(ScheduledProcedureStep, "1 = 1 ORDER BY start_date, start_time, id"):
        index = ElementIndex(bytes(step.data))
        item = index.item("ScheduledProcedureStepSequence")
        cells = [
            (item if keyword in STEP_KEYWORDS else index).get(keyword) for keyword in EXPORT_COLUMNS
        ]
        writer.writerow(map(no_formula, cells))
    return out.getvalue()


# 15. DELIVERY ---------------------------------------------------------------------------------
#
# Calls to other systems: takes outbox rows and hands them to the sender it is given; C-ECHO.
# For others: Delivery, SocketDelivery, CommitmentDesk, ArchiveWatch, echo, examine.


class Event(NamedTuple):
    """An event, or what is passed on, as a sender is given it."""

    outbox_id: int
    uid: str
    event_type: int
    data: bytes
    sop_class: str = UPS_PUSH
    operation: str = "N-EVENT-REPORT"

    @property
    def message_id(self) -> int:
        """Message ID (0000,0110): the same whenever it is sent, so that a repeat is known."""
        return self.outbox_id % 65535 + 1


def due_receivers(ctx: Context, outbox: Outbox = EVENTS_OUTBOX) -> list[str]:
    """The receivers that have something to hear and are to be tried now."""
    unsent = f"FROM {outbox.table} WHERE {outbox.waiting}"
    cursor = database.execute_sql(
        # from one receiver to the next in the index, past its thousands of events
        f"WITH RECURSIVE waiting (ae_title) AS (SELECT min(receiver) {unsent} UNION ALL"
        f" SELECT (SELECT min(receiver) {unsent} AND receiver > w.ae_title) FROM waiting w"
        " WHERE w.ae_title IS NOT NULL) SELECT w.ae_title FROM waiting w"
        f" LEFT JOIN {outbox.receivers} r ON r.ae_title = w.ae_title WHERE w.ae_title IS NOT NULL"
        # a time further off than any wait is of a clock that has been set back
        " AND (coalesce(r.try_at, '') <= ? OR r.try_at > ?)",
        (ctx.stamp(), ctx.stamp(seconds=RETRY_AFTER[-1])),
    )
    return [title for (title,) in cursor]


MOST_EVENTS = 50  # that are read at once for one receiver
# Of one message with a failure that may pass, and ends of the association in its middle; then the
# next has its turn.
MOST_REFUSALS, MOST_ABORTS = 5, 20


def due_events(
    receiver: str, most: int = MOST_EVENTS, outbox: Outbox = EVENTS_OUTBOX
) -> list[Event]:
    """What a receiver is to hear of next, in order."""
    cursor = database.execute_sql(outbox.rows, (receiver, most))
    return [Event(i, uid, kind, bytes(data), *more) for i, uid, kind, data, *more in cursor]


def note_sent(
    ctx: Context,
    receiver: str,
    answers: Mapping[int, str],
    outbox: Outbox = EVENTS_OUTBOX,
) -> None:
    """Events have been heard of, each with its answer by its id in the outbox."""
    now = ctx.stamp()
    if outbox is EVENTS_OUTBOX:  # whatever was answered (PS3.4 CC.2.4.4)
        sent, what = [(now, outbox_id) for outbox_id in answers], "sent_at = ?"
    else:
        sent = [(now, answer[:200], outbox_id) for outbox_id, answer in answers.items()]
        what = "sent_at = ?, answer = ?"
    database.connection().executemany(f"UPDATE {outbox.table} SET {what} WHERE id = ?", sent)
    database.execute_sql(
        f"INSERT INTO {outbox.receivers} (ae_title, heard_at) VALUES (?, ?)"
        " ON CONFLICT (ae_title) DO UPDATE"
        " SET failures = 0, failing_s = 0, try_at = '', problem = '', heard_at = excluded.heard_at",
        (receiver, now),
    )


def note_failed(ctx: Context, receiver: str, problem: str, outbox: Outbox = EVENTS_OUTBOX) -> int:
    """A receiver could not be told: seconds until it is tried again.

    After [housekeeping] give_up_events_hours of failing, counted by the waits and not by the
    clock, what is as old as that is given up.
    """
    row = database.execute_sql(
        f"SELECT failures, failing_s FROM {outbox.receivers} WHERE ae_title = ?", (receiver,)
    ).fetchone()
    failures, failing_s = row or (0, 0)
    wait = retry_wait(failures + 1)
    database.execute_sql(
        f"INSERT INTO {outbox.receivers} (ae_title, failures, failing_s, try_at, problem)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT (ae_title) DO UPDATE SET"
        " failures = excluded.failures, failing_s = excluded.failing_s,"
        " try_at = excluded.try_at, problem = excluded.problem",
        (receiver, failures + 1, failing_s + wait, ctx.stamp(seconds=wait), problem[:500]),
    )
    hours = ctx.config.housekeeping.give_up_events_hours
    if failing_s >= hours * 3600:
        cursor = database.execute_sql(
            f"UPDATE {outbox.table} SET given_up_at = ?, problem = ? WHERE receiver = ?"
            f" AND {outbox.waiting} AND created_at < ?",
            (ctx.stamp(), problem[:500], receiver, ctx.stamp(hours=-hours)),
        )
        if cursor.rowcount:
            audit(ctx, "events given up", receiver, f"{cursor.rowcount}: {problem[:200]}")
    return wait


def note_refused(
    ctx: Context, receiver: str, outbox_id: int, answer: str, most: int = MOST_REFUSALS
) -> int:
    """What was passed on was answered with a failure that may pass: seconds until it is tried again.

    After as many as `most` it is left, so that one message that a receiver cannot take keeps none
    from it
    """
    database.execute_sql(
        "UPDATE passed_on SET refused = refused + 1, answer = ?,"
        " given_up_at = CASE WHEN refused + 1 >= ? THEN ? ELSE '' END"
        " WHERE id = ? AND given_up_at = ''",
        (answer[:200], most, ctx.stamp(), outbox_id),
    )
    [message] = fetch_rows(PassedOn, "id = ?", outbox_id)
    if not message.given_up_at:
        return note_failed(ctx, receiver, answer, PASSED_ON_OUTBOX)
    audit(ctx, "not passed on", message.sop_instance_uid, f"{receiver}: {answer[:200]}")
    try_again(receiver, PASSED_ON_OUTBOX)
    return 0


class Rounds:
    """What is done over and over: whenever woken, and every few seconds; `work` is one round.

    NAME   for the log, where a round fails
    PAUSE  seconds until the next round, where nobody wakes it
    CALM   seconds between two rounds, while much is written
    """

    NAME, PAUSE, CALM = "", 5.0, 0.01

    def __init__(self) -> None:
        self.wanted = asyncio.Event()

    def wake(self) -> None:
        """Something may be due; called in the loop."""
        self.wanted.set()

    async def work(self, wait: bool = False) -> None:
        """Begin what is due; with `wait`, until it has ended."""
        raise NotImplementedError

    async def run(self) -> None:
        """One round after the other, until it is cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.PAUSE):
                    await self.wanted.wait()
            self.wanted.clear()
            try:
                await self.work(wait=False)
            except Exception:
                log.exception("%s failed", self.NAME)
            await asyncio.sleep(self.CALM)


class Delivery(Rounds):
    """Tells receivers what happened: each in its own order, none waiting for another.

    send     coroutine function (receiver, events, heard): calls heard(event, answer) for each event
             that was taken; raises DeliveryError
    read     runs a function in a reader's thread; `write` runs a core function in the store thread
    """

    NAME = "delivery"

    def __init__(
        self,
        context: Callable[[], Context],
        send: Callable[..., Any],
        read: Callable[..., Any],
        write: Callable[..., Any],
        outbox: Outbox = EVENTS_OUTBOX,
    ) -> None:
        super().__init__()
        self.context, self.send, self.read, self.write = context, send, read, write
        self.outbox = outbox
        self.busy: set[str] = set()
        # heard and not written down yet: the answers by id in the outbox
        self.unnoted: dict[str, dict[int, str]] = collections.defaultdict(dict)
        self.not_before: dict[str, float] = {}  # while the store takes no note of a failure
        self.failing: dict[str, float] = {}  # receivers not reached, and when one was last heard of
        self.tasks: set[asyncio.Task] = set()

    def heard_from(self, ae_title: str) -> None:
        """An AE has called: if it could not be told, it is tried now, at most twice a minute."""
        if ae_title not in self.failing:
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self.failing[ae_title]:
            self.failing[ae_title] = loop.time() + 30
            task = loop.create_task(self._try_now(ae_title))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _try_now(self, ae_title: str) -> None:
        with contextlib.suppress(Exception):  # a full disk: it is tried later
            await self.write(try_again, ae_title, self.outbox)
        self.wake()

    async def deliver_due(self, wait: bool = False) -> None:
        """Start the delivery to every receiver that is due; with `wait`, until all have ended."""
        busy = set(self.busy)  # what fails while we look is not due any more
        loop = asyncio.get_running_loop()
        for receiver in await self.read(due_receivers, self.context(), self.outbox):
            paused = loop.time() < self.not_before.get(receiver, 0.0)
            if receiver not in self.busy | busy and not paused:
                self.busy.add(receiver)
                task = loop.create_task(self._deliver(receiver))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
        if wait and self.tasks:
            await asyncio.wait(self.tasks)

    work = deliver_due

    async def _deliver(self, receiver: str) -> None:
        """Tell one receiver all that is due to it."""
        try:
            await self._note(receiver)
            due = due_events, receiver, MOST_EVENTS, self.outbox
            events = await self.read(*due)
            while events:
                await self._send(receiver, events)
                more = len(events) == MOST_EVENTS  # else wake() sees what came meanwhile
                events = await self.read(*due) if more else []
        except Answered as error:
            noted = error.outbox_id, error.answer, error.most
            await self._failed(receiver, str(error), note_refused, *noted)
        except DeliveryError as error:
            await self._failed(receiver, str(error))
        except Exception as error:
            log.exception("delivery to %s failed", receiver)
            await self._failed(receiver, f"internal error: {error}")
        finally:
            self.busy.discard(receiver)
        self.wake()  # for what was written while it was busy

    async def _send(self, receiver: str, events: list[Event]) -> None:
        try:
            await self.send(receiver, events, functools.partial(self._heard, receiver))
        finally:
            await self._note(receiver)

    def _heard(self, receiver: str, event: Event, answer: str = "") -> None:
        self.unnoted[receiver][event.outbox_id] = answer

    async def _note(self, receiver: str) -> None:
        """Write down what a receiver has heard."""
        if heard := self.unnoted.get(receiver):
            await self.write(note_sent, self.context(), receiver, dict(heard), self.outbox)
            del self.unnoted[receiver]
            self.failing.pop(receiver, None)

    async def _failed(
        self,
        receiver: str,
        problem: str,
        note: Callable[..., int] = note_failed,
        *arguments: Any,
    ) -> None:
        self.failing.setdefault(receiver, 0.0)
        arguments = arguments or (problem, self.outbox)
        try:
            wait = await self.write(note, self.context(), receiver, *arguments)
        except Exception as error:  # a full disk: nothing is told again before it can be noted
            wait = RETRY_AFTER[2]
            self.not_before[receiver] = asyncio.get_running_loop().time() + wait
            problem = f"{problem}; {error}"
        what = "events" if self.outbox is EVENTS_OUTBOX else "what is passed on"
        log.warning("%s for %s: %s; again in %d s", what, receiver, problem, wait)

    async def close(self) -> None:
        """Leave what is being told where it is: it is told again after the next start."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class DeliveryError(Exception):
    """A receiver could not be told."""


class Answered(DeliveryError):
    """A receiver has answered a message with a failure that may pass, or ended the association.

    answer  status and comment, or what happened; most: after so many the message is given up
    """

    def __init__(self, outbox_id: int, answer: str, most: int) -> None:
        super().__init__(f"it answers {answer[:4]}" if most == MOST_REFUSALS else answer)
        self.outbox_id, self.answer, self.most = outbox_id, answer, most


# Events by WebSocket. The store is the queue: a socket that lags reads on from where it is.


def socket_start(ae_title: str, alone: bool) -> tuple[int, int]:
    """The outbox row after which a new socket is told, and the newest there is.

    alone  no other socket of the AE is open: what came while there was none is told first
    """
    (newest,) = database.execute_sql("SELECT coalesce(max(id), 0) FROM outbox_event").fetchone()
    (oldest,) = database.execute_sql(
        "SELECT min(id) FROM outbox_event WHERE channel = 'websocket' AND receiver = ?"
        " AND sent_at = '' AND given_up_at = ''",
        (ae_title,),
    ).fetchone()
    return (oldest - 1 if alone and oldest else newest), newest


_SOCKET_EVENTS = (
    "SELECT o.receiver, o.id, e.sop_instance_uid, e.event_type, e.data FROM outbox_event o"
    " JOIN workitem_event e ON e.id = o.event_id"
    " WHERE o.channel = 'websocket' AND o.given_up_at = '' AND o.id > ?"
)


def socket_events(ae_title: str, after: int) -> list[Event]:
    """What an AE is to be told by WebSocket after an outbox row, in order."""
    sql = f"{_SOCKET_EVENTS} AND o.receiver = ? ORDER BY o.id LIMIT {MOST_EVENTS}"
    cursor = database.execute_sql(sql, (after, ae_title))
    return [Event(i, uid, kind, bytes(data)) for _, i, uid, kind, data in cursor]


def new_socket_events(after: int) -> tuple[int, list[tuple[str, Event]]]:
    """What is to be told by WebSocket after an outbox row, to whom; and the last row looked at."""
    (newest,) = database.execute_sql("SELECT coalesce(max(id), 0) FROM outbox_event").fetchone()
    cursor = database.execute_sql(
        f"{_SOCKET_EVENTS} ORDER BY o.id LIMIT {10 * MOST_EVENTS}", (after,)
    )
    found = [(ae, Event(i, uid, kind, bytes(data))) for ae, i, uid, kind, data in cursor]
    if len(found) == 10 * MOST_EVENTS:
        newest = found[-1][1].outbox_id
    return max([newest, *(event.outbox_id for _, event in found[-1:])]), found


def open_channel(ctx: Context, ae_title: str) -> None:
    """An AE has opened a WebSocket: it is told by it from now on, too."""
    if enter_channel(ctx, ae_title, "websocket"):
        audit(ctx, "told by WebSocket", ae_title)


def note_heard(ctx: Context, heard: Mapping[str, Iterable[int]]) -> None:
    """Outbox rows by AE title that have been heard by WebSocket."""
    now = ctx.stamp()
    database.connection().executemany(
        "UPDATE outbox_event SET sent_at = ? WHERE id = ? AND sent_at = '' AND given_up_at = ''",
        [(now, outbox_id) for ids in heard.values() for outbox_id in ids],
    )
    insert_rows(
        "receiver (ae_title, heard_at) VALUES"
        " ON CONFLICT (ae_title) DO UPDATE SET heard_at = excluded.heard_at",
        [(ae_title, now) for ae_title in heard],
    )


def give_up_unfetched(ctx: Context) -> int:
    """Give up what nobody has opened a WebSocket for in [housekeeping] give_up_events_hours.

    An AE that is told by DIMSE too is told by that alone, until it opens a WebSocket again.
    """
    cursor = database.execute_sql(
        "UPDATE outbox_event SET given_up_at = ?, problem = 'no WebSocket was opened'"
        " WHERE channel = 'websocket' AND sent_at = '' AND given_up_at = '' AND created_at < ?"
        " RETURNING receiver",
        (ctx.stamp(), ctx.stamp(hours=-ctx.config.housekeeping.give_up_events_hours)),
    )
    given_up = collections.Counter(receiver for (receiver,) in cursor)
    for ae_title, count in given_up.items():
        audit(ctx, "events given up", ae_title, f"{count}: no WebSocket was opened")
        erase(
            "event_channel WHERE ae_title = ?1 AND channel = 'websocket' AND EXISTS"
            " (SELECT 1 FROM event_channel c WHERE c.ae_title = ?1 AND c.channel = 'dimse')",
            ae_title,
        )
    return given_up.total()


class SocketDelivery(Rounds):
    """Tells AEs by the WebSockets that they have open, each socket at its own pace.

    An event has been heard when a pong has followed it on one of the AE's sockets. A socket has
    ae_title, position and began (the outbox rows it was last told, and begins after), unheard
    (the rows without a pong), ready, tell(event), ping(), is_alive(), is_allowed(), close(code)

    read  runs a function in a reader's thread; `write` runs a core function in the store thread
    """

    KEEP_ALIVE = 20.0  # seconds between two pings

    def __init__(
        self, context: Callable[[], Context], read: Callable[..., Any], write: Callable[..., Any]
    ) -> None:
        super().__init__()
        self.context, self.read, self.write = context, read, write
        self.sockets: dict[str, set[Any]] = {}
        self.seen = 0  # the newest outbox row that has been looked at
        self.lagging: dict[Any, asyncio.Task | None] = {}  # sockets that read on, and their task
        self.missed: set[Any] = set()  # lagging ones, to which something new was not told
        self.heard: dict[str, set[int]] = collections.defaultdict(set)  # not written yet
        self.noting: asyncio.Task | None = None

    def __len__(self) -> int:
        return sum(map(len, self.sockets.values()))

    def open(self, client: Any) -> None:
        """Take a socket; what came while its AE had none is told first."""
        self.sockets.setdefault(client.ae_title, set()).add(client)
        self._start(client, self._begin(client))

    def closed(self, client: Any) -> None:
        """Forget a socket; what only it was told is told to the others of its AE."""
        others = self.sockets.get(client.ae_title, set())
        others.discard(client)
        if not others:
            self.sockets.pop(client.ae_title, None)
        self.missed.discard(client)
        oldest = min(client.unheard, default=math.inf)
        if client in self.lagging and client.began < math.inf:  # what it had not read yet
            oldest = min(oldest, min(client.position, client.owed) + 1)
        if task := self.lagging.pop(client, None):
            task.cancel()
        for other in others:
            if oldest <= other.began:
                other.owed = min(other.owed, oldest - 1)
                self.missed.add(other)
                self.resume(other, lags=True)

    def resume(self, client: Any, lags: bool = False) -> None:
        """A socket is ready for more, or, where it lags, is to read from its position."""
        if (lags or client in self.lagging) and not self.lagging.get(client):
            self._start(client, self._catch_up(client))

    def has_heard(self, client: Any, outbox_ids: Iterable[int]) -> None:
        """A pong has followed these."""
        self.heard[client.ae_title].update(outbox_ids)
        if not self.noting:
            self.noting = asyncio.get_running_loop().create_task(self._note())

    async def run(self) -> None:
        """Tell what is new whenever woken; ping every client now and then."""
        loop = asyncio.get_running_loop()
        ping_at = loop.time() + self.KEEP_ALIVE
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(ping_at):
                    await self.wanted.wait()
            self.wanted.clear()
            try:
                if any(one.began < math.inf for some in self.sockets.values() for one in some):
                    await self._tell_new()
                if loop.time() >= ping_at:
                    ping_at = loop.time() + self.KEEP_ALIVE
                    await self._ping_all()
            except Exception:
                log.exception("delivery by WebSocket failed")
            await asyncio.sleep(self.CALM)

    async def _tell_new(self) -> None:
        """Hand what is new to the sockets that do not lag."""
        more = True
        while more:
            newest, found = await self.read(new_socket_events, self.seen)
            self.seen, told = max(self.seen, newest), set()
            for ae_title, event in found:
                for client in self.sockets.get(ae_title, ()):
                    if client in self.lagging or not client.ready:
                        self.lagging.setdefault(client, None)
                        self.missed.add(client)
                    elif event.outbox_id > client.position:
                        client.tell(event)
                        told.add(client)
            for client in told:
                client.ping()
            more = len(found) == 10 * MOST_EVENTS

    async def _ping_all(self) -> None:
        """Ping every socket; close those that are silent, or may not hear any more."""
        sockets = [client for some in self.sockets.values() for client in some]
        allowed = await self.read(lambda: [client.is_allowed() for client in sockets])
        for number, (client, may) in enumerate(zip(sockets, allowed, strict=True), 1):
            if not may:
                client.close(1008)  # policy violation (RFC 6455 7.4.1)
            elif client.is_alive():
                client.ping()
            if number % 50 == 0:
                await asyncio.sleep(0)

    def _start(self, client: Any, work: Any) -> None:
        task = self.lagging[client] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(functools.partial(self._done, client))

    def _done(self, client: Any, task: asyncio.Task) -> None:
        if self.lagging.get(client) is task:
            self.lagging[client] = None  # not ready: it lags until resume()
            if client.ready and not task.cancelled() and not task.exception():
                self.resume(client)  # it was ready again before this was called
        if not task.cancelled() and (error := task.exception()):
            log.error("WebSocket of %s failed", client.ae_title, exc_info=error)
            client.close(1011)  # an unexpected condition; the client comes back

    async def _begin(self, client: Any) -> None:
        await self.write(open_channel, client.ctx, client.ae_title)
        same = self.sockets.get(client.ae_title, set()) - {client}
        alone = all(one.began == math.inf for one in same)
        start, newest = await self.read(socket_start, client.ae_title, alone)
        client.began = client.position = start
        others = (one for some in self.sockets.values() for one in some if one is not client)
        if all(one.began == math.inf for one in others):  # nobody is told by looking
            self.seen = max(self.seen, newest)
        await self._catch_up(client)

    async def _catch_up(self, client: Any) -> None:
        """Tell a socket what is in the store, until there is no more or it is not ready."""
        while client.ready:
            self.missed.discard(client)
            if client.owed < client.position:
                client.began = client.position = client.owed
            client.owed = math.inf
            events = await self.read(socket_events, client.ae_title, client.position)
            for event in events:
                client.tell(event)
            if events:
                client.ping()
            elif client not in self.missed:
                self.lagging.pop(client, None)
                return

    async def _note(self) -> None:
        """Write down what has been heard; a full disk is tried again."""
        try:
            while self.heard:
                heard, self.heard = self.heard, collections.defaultdict(set)
                try:
                    await self.write(note_heard, self.context(), heard)
                except Exception as error:
                    log.warning("what was heard by WebSocket is not noted: %s", error)
                    for ae_title, ids in heard.items():
                        self.heard[ae_title] |= ids
                    await asyncio.sleep(RETRY_AFTER[0])
        finally:
            self.noting = None

    async def close(self) -> None:
        """Tell what is new, then end all sockets: their clients come back."""
        with contextlib.suppress(Exception):
            await self._tell_new()
        for some in list(self.sockets.values()):
            for client in list(some):
                client.close(1001)  # going away
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while self.sockets or self.noting:
                    await asyncio.sleep(self.CALM)
        if self.noting:
            self.noting.cancel()


# Storage commitment: the archive is asked, and who asked us is told.


class CommitmentDesk(Rounds):
    """Has requests for storage commitment judged, and their results told; a few at once.

    ask      coroutine function (archive, references) giving Evidence; raises DeliveryError
    pass_on  coroutine function (archive, Transaction UID, references): asks the archive for its own
             commitment; raises DeliveryError
    tell     coroutine function (commitment, result); raises DeliveryError
    read     runs a function in a reader's thread; `write` runs a core function in the store thread
    """

    NAME = "storage commitment"
    AT_ONCE = 4  # that are judged
    TOLD_AT_ONCE = 32  # each to another requester

    def __init__(
        self,
        context: Callable[[], Context],
        ask: Callable[..., Any],
        pass_on: Callable[..., Any],
        tell: Callable[..., Any],
        read: Callable[..., Any],
        write: Callable[..., Any],
    ) -> None:
        super().__init__()
        self.context, self.read, self.write = context, read, write
        self.ask, self.pass_on, self.tell = ask, pass_on, tell
        self.busy: dict[int | str, asyncio.Task] = {}  # by id, and by who is told
        self.failing: dict[str, float] = {}  # requesters not reached, and when one last called
        self.archive_problem, self.archive_at = "", 0.0  # of the last time that it was asked

    def heard_from(self, ae_title: str) -> None:
        """An AE has called: if it could not be told, it is tried now, at most twice a minute."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self.failing.get(ae_title, math.inf) and ae_title not in self.busy:
            self.failing[ae_title] = loop.time() + 30
            self.busy[ae_title] = loop.create_task(self._try_now(ae_title))

    async def _try_now(self, ae_title: str) -> None:
        try:
            await self.write(tell_again, ae_title)
        except Exception as error:  # a full disk: it is tried later
            log.warning("commitments of %s: %s", ae_title, error)
        finally:
            del self.busy[ae_title]
            self.wake()

    async def work(self, wait: bool = False) -> None:
        """Begin what is due, as far as there is room; with `wait`, until it has ended."""
        for commitment in await self.read(due_commitments, self.context(), "judged"):
            if sum(isinstance(key, str) for key in self.busy) < self.TOLD_AT_ONCE:
                self._start(commitment.requester, self._tell, commitment)
        for commitment in await self.read(due_commitments, self.context(), "asked"):
            if sum(isinstance(key, int) for key in self.busy) < self.AT_ONCE:
                self._start(commitment.id, self._judge, commitment)
        if wait and self.busy:
            await asyncio.wait(list(self.busy.values()))

    def _start(self, key: int | str, step: Callable[..., Any], commitment: Any) -> None:
        if key not in self.busy:
            task = asyncio.get_running_loop().create_task(self._guarded(key, step, commitment))
            self.busy[key] = task

    async def _guarded(self, key: int | str, step: Callable[..., Any], commitment: Any) -> None:
        try:
            if await self.read(is_still, commitment):  # it may have been read long before
                await step(commitment)
        except Exception:
            log.exception("commitment %s failed", commitment.transaction_uid)
            await asyncio.sleep(RETRY_AFTER[0])
        finally:
            del self.busy[key]
            self.wake()

    async def _judge(self, commitment: Any) -> None:
        ctx = self.context()
        references = await self.read(open_references, ctx, commitment.id)
        archive, found, problem = archive_of(ctx), {}, ""
        places: dict[str, tuple[str, ...]] = {}
        absent: set[str] = set()  # the archive itself says that it does not have them
        unseen = {one.sop_instance_uid for one in references}  # nothing was said of them
        unchecked: frozenset[str] = frozenset()
        waiting: set[str] = set()  # the archive may still report on them
        for kind in ctx.config.commitment.evidence:
            open_ = [one for one in references
                     if one.sop_instance_uid not in found.keys() | absent]  # fmt: skip
            try:
                evidence = await self._evidence(ctx, kind, commitment, archive, open_)
            except DeliveryError as error:
                problem = str(error)
                log.warning("commitment %s: %s", commitment.transaction_uid, error)
                continue
            if kind == "commitment":
                waiting = {one.sop_instance_uid for one in open_}
            found |= evidence.found
            places |= evidence.places
            unchecked |= evidence.unchecked
            unseen &= evidence.missing
            absent |= evidence.missing if kind == "archive" else set()
        missing = (absent | unseen) - unchecked - found.keys()
        evidence = Evidence(found, frozenset(missing), unchecked - found.keys(), places=places)
        if problem or waiting:  # what was not seen may be where nobody could look
            kept = frozenset(absent - found.keys() - waiting)  # the archive has said so itself
            evidence = Evidence(found, kept, problem=problem, places=places)
        await self.write(record_evidence, ctx, commitment.id, evidence)

    async def _evidence(
        self,
        ctx: Context,
        kind: str,
        commitment: Any,
        archive: Device | None,
        references: list[Reference],
    ) -> Evidence:
        """What one kind of evidence says of some instances. Raises DeliveryError"""
        uids = frozenset(one.sop_instance_uid for one in references)
        if not archive or not references:
            return Evidence({}, unchecked=uids)
        if kind == "availability":
            known = await self.read(notified_instances, ctx, references, archive.ae_title)
            found = {uid: (sop_class, archive.ae_title) for uid, sop_class in known.items()}
            return Evidence(found, uids - found.keys())
        if kind == "commitment" and await self.read(relay_waits, ctx, commitment.id):
            return Evidence({})
        try:
            evidence = await self._ask(ctx, kind, commitment, archive, references)
        except DeliveryError as error:
            self.archive_problem, self.archive_at = str(error), time.time()
            raise
        self.archive_problem, self.archive_at = "", time.time()
        return evidence

    async def _ask(
        self,
        ctx: Context,
        kind: str,
        commitment: Any,
        archive: Device,
        references: list[Reference],
    ) -> Evidence:
        if kind == "archive":
            return await self.ask(archive, references)
        # kept before it is sent: the report may come at once
        uid = await self.write(open_relay, ctx, commitment.id, archive.ae_title)
        if uid:
            await self.pass_on(archive, uid, references)
            await self.write(note_relay_taken, ctx, uid)
        return Evidence({})

    async def _tell(self, commitment: Any) -> None:
        result = await self.read(commitment_result, commitment)
        try:
            await self.tell(commitment, result)
        except DeliveryError as error:
            self.failing.setdefault(commitment.requester, 0.0)
            await self.write(note_not_told, self.context(), commitment.id, str(error))
        else:
            self.failing.pop(commitment.requester, None)
            await self.write(note_told, self.context(), commitment.id)

    async def close(self) -> None:
        """Leave what is being done where it is: it is done after the next start."""
        for task in list(self.busy.values()):
            task.cancel()
        await asyncio.gather(*self.busy.values(), return_exceptions=True)


class ArchiveWatch(Rounds):
    """Sees what has come to the archive: images of exams that have ended, and of unreported ones.

    ask    coroutine function (archive, references) giving Evidence; raises DeliveryError
    count  coroutine function (archive, studies) giving their numbers of images; likewise
    read   runs a function in a reader's thread; `write` runs a core function in the store thread
    """

    NAME, PAUSE, CALM = "the watch over the archive", 30.0, 1.0

    def __init__(
        self,
        context: Callable[[], Context],
        ask: Callable[..., Any],
        count: Callable[..., Any],
        read: Callable[..., Any],
        write: Callable[..., Any],
    ) -> None:
        super().__init__()
        self.context, self.read, self.write = context, read, write
        self.ask, self.count = ask, count
        self.on_change: Callable[[], None] = lambda: None  # somebody may be to be told
        self.look_at = self.long_look_at = 0.0  # on the loop's clock
        self.looking: asyncio.Task | None = None

    async def work(self, wait: bool = True) -> None:
        """Look once: in the archive if it is time, then at what follows in the store.

        wait  until the archive has answered; else others do not wait for it
        """
        ctx, loop = self.context(), asyncio.get_running_loop()
        minutes, archive = ctx.config.commitment.look_minutes, archive_of(ctx)
        if (
            minutes
            and archive
            and archive.host
            and loop.time() >= self.look_at
            and not self.looking
        ):
            self.look_at = loop.time() + minutes * 60
            self.looking = loop.create_task(self._look(ctx, archive))
        if wait and self.looking:
            await self.looking
        if await self.read(quiet_studies, ctx):
            await self.write(end_quiet_exams, ctx)
        for uid in await self.read(ready_workitems):
            try:
                await self.write(make_ready, ctx, uid)
            except Refusal as refusal:
                log.warning("workitem %s cannot be made ready: %s", uid, refusal)
            else:
                self.on_change()

    async def _look(self, ctx: Context, archive: Device) -> None:
        try:
            await self.look(ctx, archive)
        except DeliveryError as error:
            log.warning("archive %s: %s", archive.ae_title, error)
        except Exception:
            log.exception("the look into the archive failed")
        finally:
            self.looking = None
            self.on_change()
            self.wake()

    async def close(self) -> None:
        """Look no longer."""
        if self.looking:
            self.looking.cancel()
            await asyncio.gather(self.looking, return_exceptions=True)

    async def look(self, ctx: Context, archive: Device) -> None:
        """Ask the archive for what has not come yet. Raises DeliveryError"""
        now, hours = asyncio.get_running_loop().time(), 2
        if now >= self.long_look_at:  # for what has not come for long, it is asked each hour
            self.long_look_at, hours = now + 3600, 48
        arrivals = await self.read(incomplete_arrivals, ctx, hours)
        references = [one for arrival in arrivals for one in arrival.missing]
        references += await self.read(awaited_inputs)
        if references:
            found = await self.ask(archive, references)
            await self.write(record_found, ctx, archive.ae_title, found)
        if studies := await self.read(unreported_studies, ctx):
            counts = await self.count(archive, studies)
            await self.write(note_images, ctx, counts, "archive")


def echo(our_ae_title: str, device: Device) -> Message:
    """C-ECHO to a device: what came of it, in a sentence."""
    where = {"name": device.name, "host": device.host, "port": device.port, "ae": our_ae_title}
    template = ECHO_WORDS[echo_outcome(our_ae_title, device)]
    return Message(template.key, **where)


ECHO_WORDS = {
    "no address": Message("{name} has no address here"),
    "unreached": Message("{name} is not reached at {host}, port {port}"),
    "rejected": Message("{name} rejects us: is {ae} known to it?"),
    "no answer": Message("{name} was reached, but did not answer C-ECHO"),
    "answers": Message("{name} answers"),
}


def echo_outcome(our_ae_title: str, device: Device) -> str:
    """C-ECHO to a device: a key of ECHO_WORDS."""
    from pynetdicom import AE

    if not device.host:
        return "no address"
    ae = AE(ae_title=our_ae_title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = 5
    ae.add_requested_context(VERIFICATION)
    try:
        association = ae.associate(device.host, device.port, ae_title=device.ae_title)
    except (OSError, UnicodeError):  # the host has no address, or is no name
        return "unreached"
    if association.is_rejected:
        return "rejected"
    if association.rejected_contexts:
        return "no answer"
    if not association.is_established:
        return "unreached"
    status = association.send_c_echo()
    association.release()
    return "answers" if status and status.Status == Status.SUCCESS else "no answer"


# The doctor of devices: what is known of one, and the one thing to do next.


class Finding(NamedTuple):
    """What is known of a device: `good`, `warning` or `bad`, a sentence, and what mends it.

    path  a page that mends it, with words for the link; or, for `do`, an action of the doctor's page
    """

    light: str
    words: Message
    path: str = ""
    mend: Message | None = None
    do: str = ""


class Called(NamedTuple):
    """What the association server has seen: calls by AE title, and those turned away, with why."""

    accepted: Mapping[str, Any]
    rejected: Mapping[tuple[str, str], tuple[float, str]]


def examine(ctx: Context, device: Device, called: Called, outcome: str) -> list[Finding]:
    """What is known of a device, the worst first.

    outcome  a key of ECHO_WORDS
    """
    found = [
        *_reached(ctx, device, outcome),
        *_turned_away(device, called),
        *_has_called(ctx, device, called),
        *_has_asked(ctx, device),
        *_has_reported(ctx, device),
    ]
    order = ("bad", "warning", "good")
    return sorted(found, key=lambda one: order.index(one.light))


def _edit(device: Device) -> str:
    return f"/devices/edit?name={urllib.parse.quote(device.name)}"


def _reached(ctx: Context, device: Device, outcome: str) -> Iterator[Finding]:
    """Whether we reach it, as results, events and what is passed on need."""
    where = {"name": device.name, "host": device.host, "port": device.port,
             "ae": ctx.config.dicom.ae_title}  # fmt: skip
    words = Message(ECHO_WORDS[outcome].key, **where)
    if outcome == "answers":
        yield Finding("good", words)
    elif outcome == "no address":
        yield Finding("warning" if device.role == "modality" else "bad", words, _edit(device),
                      Message("Enter its address"))  # fmt: skip
    else:
        light = "warning" if device.role == "modality" else "bad"
        yield Finding(light, words, _edit(device), Message("Check its address, or switch it on"))


def _turned_away(device: Device, called: Called) -> Iterator[Finding]:
    """Calls of it that were refused, also under another AE title from its address."""
    for (calling, address), (at, why) in called.rejected.items():
        last = max((called.accepted[title].at for title in device.ae_titles
                    if title in called.accepted), default=0.0)  # fmt: skip
        if calling in device.ae_titles and at > last:
            words = Message("It was turned away: {why}", why=why)
            yield Finding("bad", words, _edit(device), Message("Change it here, or at the machine"))
        elif device.host and same_host(device.host, address) and calling not in device.ae_titles:
            words = Message("It calls itself {calling}, and is registered as {ae}",
                            calling=calling, ae=device.ae_title)  # fmt: skip
            if calling not in called.accepted:
                yield Finding(
                    "bad", words, "", Message("Take {calling} too", calling=calling), calling
                )


def _has_called(ctx: Context, device: Device, called: Called) -> Iterator[Finding]:
    """Its last association, from where, and for what."""
    calls = [called.accepted[title] for title in device.ae_titles if title in called.accepted]
    if not calls:
        yield Finding("warning", Message("It has not called since this system was started"), "",
                      Message("Ask for the worklist at the machine"))  # fmt: skip
        return
    last = max(calls, key=lambda call: call.at)
    at = datetime.datetime.fromtimestamp(last.at, ctx.config.zone)
    classes = ", ".join(UID(uid).name for uid in last.classes)
    words = Message("It called at {at} from {address}, for {classes}",
                    at=f"{at:%Y-%m-%d %H:%M}", address=last.address, classes=classes)  # fmt: skip
    yield Finding("good", words)
    if device.host and not same_host(device.host, last.address):
        words = Message("It called from {address}, and is registered for {host}",
                        address=last.address, host=device.host)  # fmt: skip
        yield Finding("warning", words, _edit(device), Message("Correct its address"))
    if device.role == "modality" and MODALITY_WORKLIST not in last.classes:
        words = Message("In its last call it did not offer the worklist")
        yield Finding("warning", words, "", Message("Set the worklist up at the machine"))


def _has_asked(ctx: Context, device: Device) -> Iterator[Finding]:
    """Its last worklist query and what came of it."""
    if device.role != "modality":
        return
    query = last_query(device.ae_titles)
    if not query:
        words = Message("It has not asked for the worklist of late")
        yield Finding("warning", words, "", Message("Ask for the worklist at the machine"))
        return
    why, mend = "/why", Message("Why not there?")
    at = {"at": query.last_at[:16].replace("T", " ")}
    if query.status != Status.SUCCESS:
        yield Finding("bad", Message("Its last query failed, at {at} (UTC)", **at), why, mend)
    elif query.answers:
        words = Message("It asked for the worklist at {at} (UTC) and was told of {count} exams",
                        **at, count=query.answers)  # fmt: skip
        yield Finding("good", words)
    else:
        words = Message("It asked for the worklist at {at} (UTC) and was told of nobody", **at)
        yield Finding("warning", words, why, mend)


MOST_SKEW_S = 300


def _has_reported(ctx: Context, device: Device) -> Iterator[Finding]:
    """Whether it reports performed steps, and how its clock goes."""
    if device.role != "modality":
        return
    titles = ", ".join("?" * len(device.ae_titles))
    performed = fetch_rows(
        PerformedProcedureStep,
        f"performed_station_ae_title IN ({titles}) ORDER BY id DESC LIMIT 1",
        *device.ae_titles,
    )
    if not performed:
        light = "bad" if device.mpps == "yes" else "good"
        words = Message("It does not report performed steps: its exams end by its images, or a tap")
        yield Finding(light, words)
        return
    index = ElementIndex(bytes(performed[0].data))
    yield Finding("good", Message("It reports performed steps, the last one at {at} (UTC)",
                                  at=performed[0].created_at[:16].replace("T", " ")))  # fmt: skip
    begun = f"{index.get('PerformedProcedureStepStartDate')}{index.get('PerformedProcedureStepStartTime')}"
    try:
        said = datetime_bounds(begun.partition(".")[0], ctx.config.zone)[0]
        heard = datetime.datetime.fromisoformat(performed[0].created_at)
    except (ValueError, OverflowError):
        return
    skew = (said - heard).total_seconds()
    if abs(skew) > MOST_SKEW_S:
        words = Message("Its clock is {minutes} minutes off ours", minutes=round(skew / 60))
        yield Finding("warning", words, "", Message("Set its clock, or ours"))


# 16. ASSOCIATION ------------------------------------------------------------------------------
#
# The upper layer of DICOM for those who call us: one protocol object a connection, all in one
# event loop; nothing here knows a service. pynetdicom's classes decode and encode A-ASSOCIATE and
# decide contexts and roles. Source: PS3.8 section 9, PS3.7 annex D.
# For others: AssociationServer, Association, Request, encode_command.

A_ASSOCIATE_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ, P_DATA_TF = 1, 2, 3, 4
A_RELEASE_RQ, A_RELEASE_RP, A_ABORT = 5, 6, 7
_PDU_HEADER = struct.Struct(">BBI")
_PDV_HEADER = struct.Struct(">IBB")
NO_DATA_SET = 0x0101
C_CANCEL_RQ = 0x0FFF

OPERATIONS = {
    0x0001: "C-STORE",
    0x0010: "C-GET",
    0x0020: "C-FIND",
    0x0021: "C-MOVE",
    0x0030: "C-ECHO",
    0x0100: "N-EVENT-REPORT",
    0x0110: "N-GET",
    0x0120: "N-SET",
    0x0130: "N-ACTION",
    0x0140: "N-CREATE",
    0x0150: "N-DELETE",
}

# The acceptor's half of the state machine: what happens, and the state after it.
# Source: PS3.8 Table 9-10
ASSOCIATION_STATES = {
    (event, state): cell.split(" ")
    for head, *body in [
        list(
            rows("""
    event      | Sta1       | Sta2       | Sta3       | Sta6       | Sta7        | Sta8       | Sta10       | Sta11      | Sta12      | Sta13
    connected  | AE-5 Sta2  |            |            |            |             |            |             |            |            |
    ASSOCIATE-AC |          | AA-1 Sta13 | AA-8 Sta13 | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-6 Sta13
    ASSOCIATE-RJ |          | AA-1 Sta13 | AA-8 Sta13 | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-6 Sta13
    ASSOCIATE-RQ |          | AE-6 Sta3  | AA-8 Sta13 | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-7 Sta13
    accept     |            |            | AE-7 Sta6  |            |             |            |             |            |            |
    reject     |            |            | AE-8 Sta13 |            |             |            |             |            |            |
    send data  |            |            |            | DT-1 Sta6  |             | AR-7 Sta8  |             |            |            |
    P-DATA     |            | AA-1 Sta13 | AA-8 Sta13 | DT-2 Sta6  | AR-6 Sta7   | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-6 Sta13
    release    |            |            |            | AR-1 Sta7  |             |            |             |            |            |
    RELEASE-RQ |            | AA-1 Sta13 | AA-8 Sta13 | AR-2 Sta8  | AR-8 Sta10  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-6 Sta13
    RELEASE-RP |            | AA-1 Sta13 | AA-8 Sta13 | AA-8 Sta13 | AR-3 Sta1   | AA-8 Sta13 | AR-10 Sta12 | AR-3 Sta1  | AA-8 Sta13 | AA-6 Sta13
    released   |            |            |            |            |             | AR-4 Sta13 |             |            | AR-4 Sta13 |
    abort      |            | AA-1 Sta13 | AA-1 Sta13 | AA-1 Sta13 | AA-1 Sta13  | AA-1 Sta13 | AA-1 Sta13  | AA-1 Sta13 | AA-1 Sta13 |
    ABORT      |            | AA-2 Sta1  | AA-3 Sta1  | AA-3 Sta1  | AA-3 Sta1   | AA-3 Sta1  | AA-3 Sta1   | AA-3 Sta1  | AA-3 Sta1  | AA-2 Sta1
    closed     |            | AA-5 Sta1  | AA-4 Sta1  | AA-4 Sta1  | AA-4 Sta1   | AA-4 Sta1  | AA-4 Sta1   | AA-4 Sta1  | AA-4 Sta1  | AR-5 Sta1
    ARTIM      |            | AA-2 Sta1  |            |            |             |            |             |            |            | AA-2 Sta1
    invalid    |            | AA-1 Sta13 | AA-8 Sta13 | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-7 Sta13
            """)
        )
    ]
    for event, *cells in body
    for state, cell in zip(head[1:], cells, strict=True)
    if cell
}  # local: "abort" in Sta2 is ours, for a connection past a limit

PDU_EVENTS = {
    A_ASSOCIATE_RQ: "ASSOCIATE-RQ",
    A_ASSOCIATE_AC: "ASSOCIATE-AC",
    A_ASSOCIATE_RJ: "ASSOCIATE-RJ",
    P_DATA_TF: "P-DATA",
    A_RELEASE_RQ: "RELEASE-RQ",
    A_RELEASE_RP: "RELEASE-RP",
    A_ABORT: "ABORT",
}


class ProtocolError(Exception):
    """A peer broke a rule of the upper layer or a limit: the association is aborted.

    reason  of A-ABORT: 1 unrecognized PDU, 2 unexpected PDU, 6 invalid parameter (PS3.8 9.3.8)
    """

    def __init__(self, words: str, reason: int = 6) -> None:
        super().__init__("".join(c if c.isprintable() else "?" for c in words))
        self.reason = reason


def calling_ae_title(pdu: bytes) -> str:
    """The calling AE title of an A-ASSOCIATE-RQ, without padding."""
    return pdu[26:42].decode("ascii", "replace").strip(" \0")


class Rejection(Exception):
    """An association is not accepted: result, source and reason of A-ASSOCIATE-RJ."""

    def __init__(self, result: int, source: int, reason: int, words: str) -> None:
        super().__init__(words)
        self.pdu = _PDU_HEADER.pack(A_ASSOCIATE_RJ, 0, 4) + bytes((0, result, source, reason))


class AcceptedContext(NamedTuple):
    """A presentation context both sides agreed on."""

    id: int
    abstract_syntax: str
    explicit: bool


class Negotiated(NamedTuple):
    """What an A-ASSOCIATE-RQ led to.

    of_providers  abstract syntaxes of which the peer has the role SCP alone, and we SCU
    """

    answer: bytes
    contexts: Mapping[int, AcceptedContext]
    maximum_length: int
    called: str
    calling: str
    of_providers: frozenset[str] = frozenset()


def abort_pdu(source: int, reason: int = 0) -> bytes:
    """An A-ABORT PDU; source 0 is the service user, 2 the provider (PS3.8 9.3.8)."""
    return _PDU_HEADER.pack(A_ABORT, 0, 4) + bytes((0, 0, source, reason))


RELEASE_RQ_PDU = _PDU_HEADER.pack(A_RELEASE_RQ, 0, 4) + bytes(4)
RELEASE_RP_PDU = _PDU_HEADER.pack(A_RELEASE_RP, 0, 4) + bytes(4)


@functools.lru_cache(maxsize=256)
def command_element(element: int) -> tuple[str, str]:
    """Keyword and VR of an element of group 0000. Raises KeyError"""
    return datadict.keyword_for_tag(element), datadict.dictionary_VR(element)


def decode_command(data: bytes) -> dict[str, Any]:
    """A command set (implicit little endian) by keyword; ProtocolError for what is none."""
    fields: dict[str, Any] = {}
    pos = 0
    while pos < len(data):
        if pos + 8 > len(data):
            raise ProtocolError("a command set ends in the middle of an element")
        group, element, length = _TAG_LENGTH.unpack_from(data, pos)
        pos += 8 + length
        if group or pos > len(data):
            raise ProtocolError("a command set holds something that is no command element")
        try:
            keyword, vr = command_element(element)
        except KeyError:
            continue
        value = data[pos - length : pos]
        if vr == "US":
            fields[keyword] = int.from_bytes(value[:2], "little")
        elif vr == "AT":
            count = length // 4
            words = struct.unpack_from(f"<{count * 2}H", value)
            fields[keyword] = [g << 16 | e for g, e in zip(words[::2], words[1::2], strict=True)]
        else:
            fields[keyword] = value.decode("ascii", "replace").strip(" \0")
    if not {"CommandField", "CommandDataSetType"} <= fields.keys():
        raise ProtocolError("a command set lacks its command field")
    return fields


def encode_command(**fields: Any) -> bytes:
    """A command set from keywords; what is None is left out. Source: PS3.7 6.3.1, annex E."""
    elements = {}
    for keyword, value in fields.items():
        if value is None:
            continue
        tag = tag_of(keyword)
        vr = vr_of(tag)
        if vr == "US":
            raw = int(value).to_bytes(2, "little")
        elif vr == "AT":
            raw = b"".join(_TAG.pack(one >> 16, one & 0xFFFF) for one in value)
        else:
            raw = pad(str(value).encode("ascii", "backslashreplace"), vr.encode())
        elements[tag] = _TAG_LENGTH.pack(0, tag, len(raw)) + raw
    body = b"".join(_by_tag(elements))
    return _TAG_LENGTH.pack(0, 0, 4) + len(body).to_bytes(4, "little") + body


class Request:
    """One DIMSE message of a peer: its command set, and its data set if it has one."""

    def __init__(
        self, context: AcceptedContext, command: dict[str, Any], data: bytes | None
    ) -> None:
        self.context, self.command, self.data = context, command, data
        self.too_large = False
        self.cancelled = False
        self.index: ElementIndex | None = None
        self.asked: tuple[str, ...] | None = None  # the terms of its (0008,0005)
        self.raw: bytes | None = None  # kept where texts had to be recovered

    @property
    def operation(self) -> str:
        """C-FIND, N-SET …; the number of a command that is none of them."""
        field = self.command["CommandField"]
        return OPERATIONS.get(field, f"{field:04X}")

    @property
    def message_id(self) -> int:
        """Message ID (0000,0110)."""
        return self.command.get("MessageID", 0)


def _items(data: bytes, pos: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Type, start and end of each item of an A-ASSOCIATE PDU; ProtocolError past the end."""
    while pos < end:
        if pos + 4 > end:
            raise ProtocolError("an item of A-ASSOCIATE-RQ is cut short")
        length = int.from_bytes(data[pos + 2 : pos + 4], "big")
        if pos + 4 + length > end:
            raise ProtocolError("an item of A-ASSOCIATE-RQ is longer than the PDU")
        yield data[pos], pos + 4, pos + 4 + length
        pos += 4 + length


def check_associate_rq(pdu: bytes) -> tuple[bytes, dict[int, int]]:
    """Look an A-ASSOCIATE-RQ over before it is decoded; the PDU with odd context IDs alone.

    Returns the PDU, and {odd ID: even ID} for those renumbered: dcm4che's stgcmtscu sends 2.
    Raises ProtocolError for more than 128 contexts, IDs used twice, no transfer syntax
    """
    if len(pdu) < 74:
        raise ProtocolError("A-ASSOCIATE-RQ is cut short")
    places, kinds = {}, collections.Counter()
    for kind, start, end in _items(pdu, 74, len(pdu)):
        kinds[kind] += 1
        if kind == 0x20:
            if end - start < 4 or pdu[start] in places or not pdu[start]:
                raise ProtocolError("a presentation context has no ID of its own")
            inner = collections.Counter(t for t, _, _ in _items(pdu, start + 4, end))
            if inner[0x30] != 1 or not inner[0x40]:
                raise ProtocolError("a presentation context lacks its syntaxes")
            places[pdu[start]] = start
        elif kind == 0x50:
            list(_items(pdu, start, end))
    if not places or len(places) > 128 or kinds[0x10] != 1 or kinds[0x50] != 1:
        raise ProtocolError(f"A-ASSOCIATE-RQ has {len(places)} presentation contexts")
    free = (number for number in range(255, 0, -2) if number not in places)
    renumbered, changed = {}, bytearray(pdu)
    for number, place in places.items():
        if number % 2 == 0:
            changed[place] = odd = next(free)
            renumbered[odd] = number
    for at in (10, 26):
        changed[at : at + 16] = bytes(changed[at : at + 16]).strip(b" \0").ljust(16)
    return _known_items(bytes(changed)), renumbered


USER_ITEMS = frozenset(range(0x51, 0x5A))  # PS3.8 annex D, PS3.7 annex D


def _known_items(pdu: bytes) -> bytes:
    """The PDU without items that are not known, which PS3.8 9.3.1 wants ignored."""
    parts = []
    for kind, start, end in _items(pdu, 74, len(pdu)):
        content = pdu[start:end]
        if kind == 0x50:
            kept = [pdu[s - 4 : e] for k, s, e in _items(pdu, start, end) if k in USER_ITEMS]
            content = b"".join(kept)
        if kind in (0x10, 0x20, 0x50):
            parts.append(bytes((kind, 0)) + len(content).to_bytes(2, "big") + content)
    body = pdu[6:74] + b"".join(parts)
    return _PDU_HEADER.pack(A_ASSOCIATE_RQ, 0, len(body)) + body


class Negotiator:
    """Decides on A-ASSOCIATE-RQs, by pynetdicom's classes; remembers what it has decided.

    contexts  abstract syntaxes we serve, with (SCU, SCP) roles we take where they are proposed
    extended  service class application information we answer, by SOP class
    """

    REMEMBERED = 256

    def __init__(
        self,
        contexts: Mapping[str, tuple[bool, bool] | None],
        extended: Mapping[str, bytes],
        maximum_length: int,
    ) -> None:
        from pynetdicom.presentation import build_context

        for library in ("pynetdicom", "pydicom"):  # what they say of a peer's bytes, we say once
            logging.getLogger(library).setLevel(logging.CRITICAL)
            warnings.filterwarnings("ignore", module=library)
        self.extended, self.maximum_length = extended, maximum_length
        self.supported = []
        for uid, roles in contexts.items():
            syntaxes = [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN]
            context = build_context(uid, syntaxes)
            if roles:
                context.scu_role, context.scp_role = roles
            self.supported.append(context)
        self.known: collections.OrderedDict[object, Negotiated] = collections.OrderedDict()

    def decide(self, pdu: bytes, address: str, access: AccessRules) -> Negotiated:
        """What an A-ASSOCIATE-RQ leads to. Raises Rejection, ProtocolError."""
        if len(pdu) < 74:
            raise ProtocolError("A-ASSOCIATE-RQ is cut short")
        called = pdu[10:26].decode("ascii", "replace").strip(" \0")
        calling = calling_ae_title(pdu)
        self._check_titles(called, calling, address, access)
        key = pdu, address, access.version
        negotiated = self.known.get(key)
        if negotiated is None:
            negotiated = self._negotiate(pdu, address, access)
            if len(pdu) <= 8192 and not self._has_user_identity(pdu):
                self.known[key] = negotiated
                if len(self.known) > self.REMEMBERED:
                    self.known.popitem(last=False)
        return negotiated

    @staticmethod
    def _check_titles(called: str, calling: str, address: str, access: AccessRules) -> None:
        """Reject who may not call, each time anew (PS3.8 Table 9-21)."""
        if not calling:
            raise Rejection(1, 1, 3, "the caller has no AE title set")
        for reason, title in ((3, calling), (7, called)):
            if not re.fullmatch(r"[ -\[\]-~]{1,16}", title):
                raise Rejection(1, 1, reason, f"{title!a} is not an AE title")
        if refusal := access.refusal(called, calling, address):
            raise Rejection(1, 1, *refusal)

    @staticmethod
    def _has_user_identity(pdu: bytes) -> bool:
        return any(
            kind == 0x58
            for outer, start, end in _items(pdu, 74, len(pdu))
            if outer == 0x50
            for kind, _, _ in _items(pdu, start, end)
        )

    def _negotiate(self, pdu: bytes, address: str, access: AccessRules) -> Negotiated:
        from pynetdicom import pdu as pdus

        called = pdu[10:26].decode("ascii", "replace").strip(" \0")
        calling = calling_ae_title(pdu)
        pdu, renumbered = check_associate_rq(pdu)
        if not int.from_bytes(pdu[6:8], "big") & 1:
            raise Rejection(1, 2, 2, "protocol version 1 is not among those proposed")
        request = pdus.A_ASSOCIATE_RQ()
        try:
            request.decode(pdu)
            primitive = request.to_primitive()
        except Exception as error:  # whatever pynetdicom says of bytes that are not in order
            raise ProtocolError(f"A-ASSOCIATE-RQ cannot be decoded: {error}") from None
        if str(primitive.application_context_name) != APPLICATION_CONTEXT:
            raise Rejection(1, 1, 2, "the application context is not that of DICOM")
        return self._accept(primitive, called, calling, renumbered)

    def _accept(
        self, primitive: Any, called: str, calling: str, renumbered: Mapping[int, int]
    ) -> Negotiated:
        from pynetdicom import pdu as pdus
        from pynetdicom import pdu_primitives as items
        from pynetdicom.presentation import negotiate_as_acceptor

        roles, extended, maximum = {}, [], 0
        for item in primitive.user_information:
            if isinstance(item, items.MaximumLengthNotification):
                maximum = item.maximum_length_received
            elif isinstance(item, items.SCP_SCU_RoleSelectionNegotiation):
                roles[item.sop_class_uid] = item.scu_role, item.scp_role
            elif isinstance(item, items.SOPClassExtendedNegotiation):
                extended += self._extended(item)
        if 0 < maximum < 1024:
            raise Rejection(1, 2, 1, f"a maximum PDU length of {maximum} bytes is too small")
        results, role_items = negotiate_as_acceptor(
            primitive.presentation_context_definition_list, self.supported, roles
        )
        length, implementation = (
            items.MaximumLengthNotification(),
            items.ImplementationClassUIDNotification(),
        )
        length.maximum_length_received = self.maximum_length
        implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        version = items.ImplementationVersionNameNotification()
        version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        answer = items.A_ASSOCIATE()
        answer.application_context_name = primitive.application_context_name
        answer.calling_ae_title = primitive.calling_ae_title
        answer.called_ae_title = primitive.called_ae_title
        answer.result, answer.result_source = 0, 1
        answer.presentation_context_definition_results_list = results
        answer.user_information = [length, implementation, version, *role_items, *extended]
        pdu = pdus.A_ASSOCIATE_AC()
        pdu.from_primitive(answer)
        contexts = {}
        for context in results:
            number = renumbered.get(context.context_id, context.context_id)
            if context.result == 0:
                explicit = str(context.transfer_syntax[0]) == EXPLICIT_VR_LITTLE_ENDIAN
                contexts[number] = AcceptedContext(number, str(context.abstract_syntax), explicit)
        encoded = self._renumber(pdu.encode(), renumbered)
        providers = frozenset(str(uid) for uid, (scu, scp) in roles.items() if scp and not scu)
        return Negotiated(encoded, contexts, maximum, called, calling, providers)

    def _extended(self, item: Any) -> list[Any]:
        """Our answer to an extended negotiation item: as many bytes as asked, three at least."""
        ours = self.extended.get(str(item.sop_class_uid))
        if ours is None:
            return []
        asked = len(item.service_class_application_information)
        answer = type(item)()
        answer.sop_class_uid = item.sop_class_uid
        answer.service_class_application_information = ours[: max(3, asked)]
        return [answer]

    @staticmethod
    def _renumber(pdu: bytes, renumbered: Mapping[int, int]) -> bytes:
        changed = bytearray(pdu)
        for kind, start, _ in _items(pdu, 74, len(pdu)):
            if kind == 0x21 and pdu[start] in renumbered:
                changed[start] = renumbered[pdu[start]]
        return bytes(changed)


IMPLEMENTATION_CLASS_UID = "2.25.86392480563837162905117359046021397318"
IMPLEMENTATION_VERSION_NAME = "MINRIS_" + __version__.replace(".", "")
IMPLEMENTATION_VERSION_NAME = IMPLEMENTATION_VERSION_NAME[:16]


def message_pdus(
    context: AcceptedContext,
    command: bytes,
    data: bytes | None,
    longest: int,
    combined: bool = True,
) -> bytes:
    """A message as P-DATA-TF PDUs: command and data set in one where the peer takes that."""
    room = longest - 6
    parts = [(command[i : i + room], 1) for i in range(0, len(command), room)]
    last = {len(parts) - 1}
    if data:
        parts += [(data[i : i + room], 0) for i in range(0, len(data), room)]
        last.add(len(parts) - 1)
    pdus, together = [], b""
    for number, (part, kind) in enumerate(parts):
        control = kind | (2 if number in last else 0)
        value = _PDV_HEADER.pack(len(part) + 2, context.id, control) + part
        if together and (len(together) + len(value) > longest or not combined):
            pdus.append(_PDU_HEADER.pack(P_DATA_TF, 0, len(together)) + together)
            together = b""
        together += value
    return b"".join(pdus) + _PDU_HEADER.pack(P_DATA_TF, 0, len(together)) + together


class Call(NamedTuple):
    """An association that was accepted: when (seconds since 1970), from where, which SOP classes."""

    at: float
    address: str
    classes: tuple[str, ...]


class Association(asyncio.Protocol):
    """One connection of a peer, from the first byte to the last.

    The state machine decides what a PDU or an event means; `_aa_8` and its like are the actions
    of PS3.8 Tables 9-6 to 9-9 by their names.
    """

    QUEUE = 16  # messages waiting before reading is paused
    ASKED_ID = 1  # Message ID of what we ask the peer, one at a time
    EMPTY = 1024  # fragments of one association that carry nothing

    def __init__(self, server: "AssociationServer") -> None:
        self.server, self.limits = server, server.limits
        self.loop = server.loop
        self.state = "Sta1"
        self.buffer = bytearray()
        self.command, self.data, self.received, self.empty = bytearray(), bytearray(), 0, 0
        self.request: Request | None = None
        self.waiting: collections.deque[Request] = collections.deque()
        self.current: Request | None = None
        self.asked: asyncio.Future[int] | None = None  # the status of what we ask the peer
        self.task: asyncio.Task | None = None
        self.artim: asyncio.TimerHandle | None = None
        self.pdu_timer: asyncio.TimerHandle | None = None
        self.idle_timer: asyncio.TimerHandle | None = None
        self.send_timer: asyncio.TimerHandle | None = None
        self.writable = asyncio.Event()
        self.writable.set()
        self.peer: Negotiated | None = None
        self.address, self.counted = "", ""
        self.refused = False
        self.active = self.pdu_began = 0.0
        self.paused = self.pdu_sized = False
        self.combined = True  # command and data set in one PDU, as nearly all peers take it

    # Events of the transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.address = (transport.get_extra_info("peername") or ("", 0))[0]
        self.socket = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=256 << 10)
        self._quick_ack()
        self.happens("connected")
        if words := self.server.enter(self, "pending"):
            self.refuse(words)
            transport.close()  # none of a flood is waited for

    def connection_lost(self, error: Exception | None) -> None:
        self.happens("closed")
        for timer in (self.artim, self.pdu_timer, self.idle_timer, self.send_timer):
            if timer:
                timer.cancel()
        self._forget_data()
        self.server.leave(self)
        self.writable.set()
        if self.asked and not self.asked.done():
            self.asked.set_result(None)
        if self.task:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()
        self.send_timer = self.loop.call_later(self.limits.send_timeout, self._send_timed_out)

    def resume_writing(self) -> None:
        self.writable.set()
        if self.send_timer:
            self.send_timer.cancel()

    def _send_timed_out(self) -> None:
        self.server.complain(self.address, "%s does not take what it asked for", self)
        self.transport.abort()

    def _quick_ack(self) -> None:
        if quick := getattr(socket, "TCP_QUICKACK", None):
            with contextlib.suppress(OSError, AttributeError):
                self.socket.setsockopt(socket.IPPROTO_TCP, quick, 1)

    def data_received(self, data: bytes) -> None:
        self.active = self.loop.time()
        self._quick_ack()
        buffer = self.buffer
        buffer += data
        pos, have = 0, len(buffer)
        try:
            while have - pos >= 6 and self.state != "Sta1":
                kind, _, length = _PDU_HEADER.unpack_from(buffer, pos)
                if kind not in PDU_EVENTS:
                    raise ProtocolError(f"PDU type {kind:02X} is not known", 1)
                if length > self._longest(kind):
                    raise ProtocolError(f"a PDU of {length} bytes is past the limit")
                if have - pos < 6 + length:
                    break
                end = pos + 6 + length
                self._pdu(kind, bytes(memoryview(buffer)[pos:end]))
                pos = end
        except ProtocolError as error:
            self.server.complain(self.address, "%s: %s", self, error)
            self.happens("invalid", error.reason)
            pos = have
        if pos:
            del buffer[:pos]
        self._time_pdu()

    def _longest(self, kind: int) -> int:
        if kind == P_DATA_TF:
            return self.limits.maximum_pdu_length
        return max(65536, self.limits.maximum_pdu_length) if kind <= A_ASSOCIATE_AC else 4

    def _time_pdu(self) -> None:
        """A PDU that has begun must end: its timer runs from its first byte, while we read."""
        whole_header = len(self.buffer) >= 6
        if not self.buffer or self.paused or self.state in ("Sta1", "Sta13"):
            self._stop_pdu_timer()
        elif not self.pdu_timer or whole_header != self.pdu_sized:
            if not self.pdu_timer:
                self.pdu_began = self.loop.time()
            self._stop_pdu_timer()
            self.pdu_sized = whole_header
            length = int.from_bytes(self.buffer[2:6], "big") if whole_header else 0
            until = self.pdu_began + self.limits.pdu_timeout + length / 16384
            self.pdu_timer = self.loop.call_at(until, self._pdu_timed_out)

    def _stop_pdu_timer(self) -> None:
        if self.pdu_timer:
            self.pdu_timer.cancel()
            self.pdu_timer = None

    def _pdu_timed_out(self) -> None:
        self.server.complain(self.address, "%s: a PDU that has begun does not end", self)
        self.pdu_timer = None
        self.happens("invalid")

    # The state machine

    def happens(self, event: str, *arguments: Any) -> None:
        """Let an event happen: the action of the table, and the state after it."""
        cell = ASSOCIATION_STATES.get((event, self.state))
        if cell:
            action, self.state = cell
            getattr(self, "_" + action.lower().replace("-", "_"))(*arguments)

    def _pdu(self, kind: int, pdu: bytes) -> None:
        self._stop_pdu_timer()
        self.happens(PDU_EVENTS[kind], pdu)

    def _start_artim(self, seconds: float) -> None:
        if self.artim:
            self.artim.cancel()
        self.artim = self.loop.call_later(seconds, self.happens, "ARTIM")

    def _stop_artim(self) -> None:
        if self.artim:
            self.artim.cancel()

    def _write_last(self, pdu: bytes) -> None:
        """Write what ends the association; the peer is to close, for so long we wait."""
        self._stop_work()
        self.refused = True
        self.transport.write(pdu)
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError):  # the peer has left a moment ago
                self.transport.write_eof()
        self._start_artim(min(2.0, self.limits.associate_timeout))

    def _stop_work(self) -> None:
        self._forget_data()
        self.waiting.clear()
        if self.current:
            self.current.cancelled = True
        self.writable.set()

    def _close(self) -> None:
        self._stop_artim()
        self._stop_work()
        self.transport.abort()  # what has not been read by now is not wanted

    def _ae_5(self) -> None:
        self._start_artim(self.limits.associate_timeout)

    def _ae_6(self, pdu: bytes) -> None:
        self._stop_artim()
        host = self.server.access().host_to_look_up(calling_ae_title(pdu))
        if host:  # a name server may be slow, and nothing blocks in the loop
            run = self.loop.run_in_executor(None, host_addresses, host, this_minute())
            run.add_done_callback(lambda _: self._decide(pdu))
        else:
            self._decide(pdu)

    def _decide(self, pdu: bytes) -> None:
        """Accept or reject, if the peer is still there."""
        if self.state != "Sta3":
            return
        server = self.server
        try:
            negotiated = server.negotiator.decide(pdu, self.address, server.access())
            if words := server.enter(self, "associated"):
                raise Rejection(2, 3, 2, words)
        except Rejection as rejection:
            server.complain(self.address, "%s rejected: %s", self, rejection)
            server.note_rejected(self.address, pdu, rejection.args[0])
            self.happens("reject", rejection.pdu)
        except ProtocolError as error:
            server.complain(self.address, "%s: %s", self, error)
            self.happens("invalid", error.reason)
        else:
            self.peer = negotiated
            server.accepted += 1
            server.note_accepted(self)
            device = server.access().device(negotiated.calling)
            self.combined = device.combined_pdvs if device else True
            self.happens("accept", negotiated.answer)

    def _ae_7(self, answer: bytes) -> None:
        log.debug("%s associated", self)
        self.transport.write(answer)
        self.active = self.loop.time()
        self._watch_idle()

    def _ae_8(self, rejection: bytes) -> None:
        self._write_last(rejection)

    def _dt_1(self, pdus: bytes) -> None:
        self.transport.write(pdus)

    _ar_7 = _dt_1

    def _dt_2(self, pdu: bytes) -> None:
        self._fragments(pdu)

    _ar_6 = _dt_2

    def _ar_1(self) -> None:
        self.transport.write(RELEASE_RQ_PDU)

    def _ar_2(self, pdu: bytes) -> None:
        if self.task:  # what came before it is still done; a search has nobody to hear it
            if self.current:
                self.current.cancelled = True
        else:
            self.happens("released")

    def _ar_3(self, pdu: bytes) -> None:
        self._close()

    def _ar_4(self) -> None:
        self._write_last(RELEASE_RP_PDU)

    def _ar_5(self) -> None:
        self._stop_artim()

    def _ar_8(self, pdu: bytes) -> None:
        """A release collision; as the acceptor we wait for the peer's answer first."""

    def _ar_10(self, pdu: bytes) -> None:
        self.happens("released")

    def _aa_1(self, cause: bytes | int = b"") -> None:
        self._write_last(abort_pdu(0))

    def _aa_2(self, pdu: bytes = b"") -> None:
        if not self.peer and not self.refused and not pdu:
            self.server.complain(self.address, "%s asked for no association in time", self)
        self._close()

    def _aa_3(self, pdu: bytes) -> None:
        log.debug("%s aborted by the peer", self)
        self._close()

    def _aa_4(self) -> None:
        self._stop_work()

    def _aa_5(self) -> None:
        self._stop_artim()

    def _aa_6(self, pdu: bytes) -> None:
        """What comes after our last PDU is ignored."""

    def _aa_7(self, cause: bytes | int = b"") -> None:
        """PS3.8 wants another A-ABORT here; our half is closed already, so nothing can follow."""

    def _aa_8(self, cause: bytes | int = 6) -> None:
        self._write_last(abort_pdu(2, cause if isinstance(cause, int) else 2))

    # Limits of time

    def _watch_idle(self) -> None:
        if self.state in ("Sta1", "Sta13"):
            return
        idle = self.loop.time() - self.active
        left = self.limits.idle_timeout - (0 if self.current else idle)
        if left <= 0:
            self.refuse(f"idle for {idle:.0f} s")
        else:
            self.idle_timer = self.loop.call_later(left, self._watch_idle)

    def refuse(self, words: str) -> None:
        """Abort since a limit is reached, with a line in the log."""
        self.server.complain(self.address, "%s refused: %s", self, words)
        self.happens("abort")

    # Messages

    def _fragments(self, pdu: bytes) -> None:
        """Take the presentation data values of a P-DATA-TF PDU (PS3.8 9.3.5, annex E)."""
        pos, end = 6, len(pdu)
        if pos == end:
            raise ProtocolError("a P-DATA PDU is empty")
        while pos < end:
            if pos + 6 > end:
                raise ProtocolError("a presentation data value is cut short")
            length, context_id, control = _PDV_HEADER.unpack_from(pdu, pos)
            if length < 2 or pos + 4 + length > end:
                raise ProtocolError("a presentation data value has a wrong length")
            fragment = pdu[pos + 6 : pos + 4 + length]
            pos += 4 + length
            context = self.peer.contexts.get(context_id)
            if not context:
                raise ProtocolError(f"presentation context {context_id} was not accepted")
            if not fragment and not control & 2:
                self.empty += 1
                if self.empty > self.EMPTY:
                    raise ProtocolError("fragments without end carry nothing")
            if control & 1:
                self._command_fragment(context, fragment, bool(control & 2))
            else:
                self._data_fragment(context, fragment, bool(control & 2))

    def _command_fragment(self, context: AcceptedContext, fragment: bytes, last: bool) -> None:
        if self.request:
            raise ProtocolError("a command comes before the data set of the one before")
        self.command += fragment
        if len(self.command) > self.limits.maximum_command_length:
            raise ProtocolError("a command set is past the limit")
        if last:
            fields = decode_command(bytes(self.command))
            self.command.clear()
            request = Request(context, fields, None)
            if fields["CommandDataSetType"] == NO_DATA_SET:
                self._complete(request)
            else:
                self.request = request

    def _data_fragment(self, context: AcceptedContext, fragment: bytes, last: bool) -> None:
        request = self.request
        if not request or request.context.id != context.id:
            raise ProtocolError("a data set comes without its command")
        self.received += len(fragment)
        if not request.too_large:
            self.data += fragment
            self.server.receiving += len(fragment)
            if (
                self.received > self.limits.maximum_dataset_length
                or self.server.receiving > AssociationServer.RECEIVING
            ):
                request.too_large = True
                self._drop_data()
        if self.received > self.limits.maximum_drained_length:
            raise ProtocolError(f"a data set of {self.received} bytes and more")
        if last:
            request.data = None if request.too_large else bytes(self.data)
            self._forget_data()
            self._complete(request)

    def _drop_data(self) -> None:
        self.server.receiving -= len(self.data)
        self.data = bytearray()

    def _forget_data(self) -> None:
        self._drop_data()
        self.request, self.received = None, 0

    def _complete(self, request: Request) -> None:
        """A message is whole: a C-CANCEL acts at once, others wait for their turn."""
        if request.command["CommandField"] == C_CANCEL_RQ:
            wanted = request.command.get("MessageIDBeingRespondedTo")
            for one in (self.current, *self.waiting):
                if one and one.message_id == wanted:
                    one.cancelled = True
            return
        if request.command["CommandField"] & 0x8000:
            command = request.command
            right = (command["CommandField"], command.get("MessageIDBeingRespondedTo")) == (
                0x8000 | 0x0100, Association.ASKED_ID
            )  # fmt: skip
            if not right or not self.asked or self.asked.done():
                raise ProtocolError("a response came to nothing that was asked")
            self.asked.set_result(command.get("Status"))
            return
        self.waiting.append(request)
        if not self.task:
            self.task = self.loop.create_task(self._serve())
        elif len(self.waiting) >= self.QUEUE and not self.paused:
            self.paused = True
            self.transport.pause_reading()
            self._stop_pdu_timer()

    async def _serve(self) -> None:
        """Answer what waits, one after the other; a release that came meanwhile is answered last."""
        try:
            while self.waiting and self.state in ("Sta6", "Sta7", "Sta8"):
                self.current = self.waiting.popleft()
                await self.server.dispatch(self, self.current)
                self.active = self.loop.time()
                if self.paused and len(self.waiting) < self.QUEUE:
                    self._resume_reading()
        except Exception:
            log.exception("%s: a message could not be served", self)
            self.happens("abort")
        finally:
            self.task = self.current = None
        if self.state == "Sta8":
            self.happens("released")

    def _resume_reading(self) -> None:
        self.paused = False
        if not self.transport.is_closing():
            self.transport.resume_reading()
        self._time_pdu()

    async def ask(
        self, context: AcceptedContext, command: bytes, data: bytes, timeout: float = 10.0
    ) -> int | None:
        """Send the peer an N-EVENT-REPORT, one at a time: its status, None where it gives none."""
        if self.asked or self.state != "Sta6":
            return None
        self.asked = self.loop.create_future()
        try:
            async with asyncio.timeout(timeout):
                while self.task:  # what it waits for itself comes first
                    await asyncio.sleep(0.005)
                if not await self.send((context, command, data)):
                    return None
                return await asyncio.shield(self.asked)
        except TimeoutError:
            return None
        finally:
            if self.asked.done():
                self.asked = None  # else what comes late is no answer to what follows

    async def send(self, *messages: tuple[AcceptedContext, bytes, bytes | None]) -> bool:
        """Write messages in one go and wait while the peer does not read; whether it is there."""
        self.happens("send data", b"".join(self._pdus(*message) for message in messages))
        await self.writable.wait()
        return self.state in ("Sta6", "Sta8")

    async def send_answers(
        self, context: AcceptedContext, command: bytes, answers: Iterable[bytes]
    ) -> bool:
        """Write many messages with the same command set, 64 KiB and more at a time."""
        pdus, size = [], 0
        prefix = _PDV_HEADER.pack(len(command) + 2, context.id, 3) + command
        extra, longest = len(prefix) + 6, self.peer.maximum_length or self.limits.maximum_pdu_length
        for data in answers:
            length = extra + len(data)
            if length <= longest and self.combined:
                pdus.append(
                    b"%b%b%b%b"
                    % (
                        _PDU_HEADER.pack(P_DATA_TF, 0, length),
                        prefix,
                        _PDV_HEADER.pack(len(data) + 2, context.id, 2),
                        data,
                    )
                )
            else:
                pdus.append(self._pdus(context, command, data))
            size += length
            if size > 65536:
                self.happens("send data", b"".join(pdus))
                pdus, size = [], 0
                await self.writable.wait()
                if self.state not in ("Sta6", "Sta8"):
                    return False
        if pdus:
            self.happens("send data", b"".join(pdus))
            await self.writable.wait()
        return self.state in ("Sta6", "Sta8")

    def _pdus(self, context: AcceptedContext, command: bytes, data: bytes | None) -> bytes:
        longest = self.peer.maximum_length or self.limits.maximum_pdu_length
        return message_pdus(context, command, data, longest, self.combined)

    def __str__(self) -> str:
        name = f"{self.peer.calling}@" if self.peer else ""
        return f"{name}{self.address}"


class AssociationServer:
    """All associations that others open to us.

    limits      the settings of [dicom]
    access      gives the AccessRules of the moment
    negotiator  decides on presentation contexts
    dispatch    coroutine function (association, request) that answers a message
    """

    RECEIVING = 64 << 20  # bytes of data sets that are coming in, over all associations

    def __init__(
        self,
        limits: types.SimpleNamespace,
        access: Callable[[], AccessRules],
        negotiator: Negotiator,
        dispatch: Callable[[Association, Request], Any],
    ) -> None:
        self.limits, self.access = limits, access
        self.negotiator, self.dispatch = negotiator, dispatch
        self.loop = asyncio.get_running_loop()
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self.associations: set[Association] = set()
        self.complaints: dict[str, tuple[float, int]] = {}
        self.rejected: collections.OrderedDict[tuple[str, str], tuple[float, str]] = (
            collections.OrderedDict()
        )
        self.called: collections.OrderedDict[str, Call] = collections.OrderedDict()
        self.receiving = self.accepted = self.turned_away = 0
        self.servers: list[asyncio.Server] = []

    async def listen(self, host: str, port: int, tls: Any = None) -> int:
        """Open a port: its number."""
        server = await self.loop.create_server(
            lambda: Association(self),
            host or None,
            port,
            backlog=512,
            ssl=tls,
            ssl_handshake_timeout=5 if tls else None,
        )
        self.servers.append(server)
        return server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and abort what is open."""
        for server in self.servers:
            server.close()
        for association in list(self.associations):
            association.happens("abort")
        await asyncio.sleep(0)
        for association in list(self.associations):
            association.transport.abort()
        await asyncio.sleep(0)

    def enter(self, association: Association, kind: str) -> str:
        """Count a connection as `pending` or `associated`; why it is one too many, or nothing."""
        limits, address = self.limits, association.address
        most, most_of_one = {
            "pending": (limits.maximum_pending, limits.maximum_pending_per_address),
            "associated": (
                limits.maximum_associations,
                limits.maximum_associations_per_address,
            ),
        }[kind]
        count, of_one = self.counts[kind, ""], self.counts[kind, address]
        self.associations.add(association)
        if count >= most or of_one >= most_of_one:
            return f"{of_one} of {count} {kind} are its own"
        self.leave(association)
        self.associations.add(association)
        association.counted = kind
        self.counts[kind, ""] += 1
        self.counts[kind, address] += 1
        return ""

    def leave(self, association: Association) -> None:
        """Count a connection no longer."""
        self.associations.discard(association)
        if kind := association.counted:
            association.counted = ""
            for key in ((kind, ""), (kind, association.address)):
                self.counts[key] -= 1
                if not self.counts[key]:
                    del self.counts[key]

    def note_accepted(self, association: Association) -> None:
        """Remember the last call of each AE title, for the doctor of devices."""
        peer = association.peer
        classes = tuple(sorted({one.abstract_syntax for one in peer.contexts.values()}))
        self.called[peer.calling] = Call(time.time(), association.address, classes)
        self.called.move_to_end(peer.calling)
        if len(self.called) > 500:
            self.called.popitem(last=False)

    def note_rejected(self, address: str, pdu: bytes, words: str) -> None:
        """Remember whom we turned away, for the page of devices."""
        self.turned_away += 1
        calling = calling_ae_title(pdu)
        if not calling.isprintable():
            return
        self.rejected[calling, address] = time.time(), words
        self.rejected.move_to_end((calling, address))
        if len(self.rejected) > 100:
            self.rejected.popitem(last=False)

    def complain(self, address: str, words: str, *values: object) -> None:
        """Log what a peer did wrong: one line for each address and minute, and how many more."""
        now = self.loop.time()
        since, more = self.complaints.get(address, (-60.0, 0))
        if now - since < 60:
            self.complaints[address] = since, more + 1
            return
        if more:
            log.warning("%s: %d more complaints in the minute before", address, more)
        if len(self.complaints) > 1000:
            self.complaints.clear()
        self.complaints[address] = now, 0
        log.warning(words, *values)


# Abstract syntaxes that we propose, with the (SCU, SCP) roles, None for the default.
Proposed = tuple[tuple[str, tuple[bool, bool] | None], ...]


@functools.lru_cache(maxsize=512)
def associate_request(ours: str, theirs: str, proposed: Proposed) -> bytes:
    """The PDU of an A-ASSOCIATE-RQ for abstract syntaxes with the (SCU, SCP) roles proposed."""
    from pynetdicom import pdu as pdus
    from pynetdicom import pdu_primitives as items
    from pynetdicom.presentation import build_context

    primitive = items.A_ASSOCIATE()
    primitive.application_context_name = APPLICATION_CONTEXT
    primitive.calling_ae_title, primitive.called_ae_title = ours, theirs
    contexts, information = [], [items.MaximumLengthNotification()]
    information[0].maximum_length_received = Caller.LONGEST
    implementation = items.ImplementationClassUIDNotification()
    implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    information.append(implementation)
    for number, (uid, roles) in enumerate(proposed):
        context = build_context(uid, [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN])
        context.context_id = 2 * number + 1
        contexts.append(context)
        if roles:
            item = items.SCP_SCU_RoleSelectionNegotiation()
            item.sop_class_uid = uid
            item.scu_role, item.scp_role = roles
            information.append(item)
    primitive.presentation_context_definition_list = contexts
    primitive.user_information = information
    pdu = pdus.A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return pdu.encode()


class Accepted(NamedTuple):
    """What a peer has accepted: its longest PDU, contexts and (SCU, SCP) roles by abstract syntax."""

    maximum_length: int
    contexts: Mapping[str, AcceptedContext]
    roles: Mapping[str, tuple[bool, bool]]


@functools.lru_cache(maxsize=128)
def associate_answer(pdu: bytes, proposed: Proposed) -> Accepted:
    """Read an A-ASSOCIATE-AC. Raises whatever pynetdicom says of bytes that are not in order"""
    from pynetdicom import pdu as pdus
    from pynetdicom import pdu_primitives as items

    answer = pdus.A_ASSOCIATE_AC()
    answer.decode(pdu)
    primitive = answer.to_primitive()
    longest, roles, contexts = 16384, {}, {}
    for item in primitive.user_information:
        if isinstance(item, items.MaximumLengthNotification):
            longest = item.maximum_length_received or 1 << 20
        elif isinstance(item, items.SCP_SCU_RoleSelectionNegotiation):
            roles[str(item.sop_class_uid)] = bool(item.scu_role), bool(item.scp_role)
    for context in primitive.presentation_context_definition_results_list:
        if context.result == 0:
            uid, _ = proposed[(context.context_id - 1) // 2]
            explicit = str(context.transfer_syntax[0]) == EXPLICIT_VR_LITTLE_ENDIAN
            contexts[uid] = AcceptedContext(context.context_id, uid, explicit)
    return Accepted(max(longest, 64), contexts, roles)


def response_to(command: bytes) -> tuple[int, int | None]:
    """Command Field and Message ID Being Responded To of what answers a request (PS3.7 9.3, 10.3)."""
    asked = decode_command(command)
    return asked["CommandField"] | 0x8000, asked.get("MessageID")


class Caller:
    """The requestor's half: an association that we open, in the same event loop.

    Used where many receivers are told at once; rare calls are made by pynetdicom. Every failure
    is a DeliveryError, and closes the connection.
    """

    LONGEST = 65536  # of a PDU, as we announce
    LONGEST_COMMAND = 16384
    LONGEST_DATA = 4 << 20
    MOST_ANSWERS, LONGEST_ANSWERS = 200_000, 64 << 20  # of a C-FIND, and their bytes

    def __init__(self, timeout: float = 10.0) -> None:
        self.timeout = timeout
        self.command, self.data = bytearray(), bytearray()
        self.fields: dict[str, Any] | None = None  # of a message whose data set is not whole
        self.messages: collections.deque[tuple[dict[str, Any], bytes]] = collections.deque()
        self.accepted = Accepted(16384, {}, {})
        self.writer: asyncio.StreamWriter | None = None

    async def open(
        self, address: tuple[str, int], ours: str, theirs: str, proposed: Proposed
    ) -> None:
        """Associate; `accepted` is then what the peer takes.

        ours, theirs  calling and called AE title
        """
        request = associate_request(ours, theirs, proposed)
        kind, pdu = await self._bounded(self._associate(address, request), "not reached")
        if kind != A_ASSOCIATE_AC:
            self.close()
            rejected = kind == A_ASSOCIATE_RJ
            raise DeliveryError("it rejects our association" if rejected else "it aborts")
        try:
            self.accepted = associate_answer(pdu, proposed)
        except Exception as error:
            self.close()
            raise DeliveryError(f"its answer cannot be decoded: {error}") from None

    async def _associate(self, address: tuple[str, int], request: bytes) -> tuple[int, bytes]:
        self.reader, self.writer = await asyncio.open_connection(*address)
        self.writer.write(request)
        return await self._pdu()

    async def _bounded(self, work: Any, words: str) -> Any:
        try:
            async with asyncio.timeout(self.timeout):
                return await work
        except (OSError, EOFError, UnicodeError, ProtocolError, struct.error) as error:
            self.close()
            number = getattr(error, "errno", None)
            reason = os.strerror(number).lower() if number and number > 0 else str(error)
            late = isinstance(error, TimeoutError) and not number
            raise DeliveryError(f"{words}: {'no answer' if late else reason}") from None
        except BaseException:
            self.close()
            raise

    async def _pdu(self) -> tuple[int, bytes]:
        header = await self.reader.readexactly(6)
        kind, _, length = _PDU_HEADER.unpack(header)
        if length > self.LONGEST:
            raise ProtocolError("it sent a PDU past the limit")
        return kind, header + await self.reader.readexactly(length)

    async def ask(
        self, context: AcceptedContext, command: bytes, data: bytes | None, combined: bool = True
    ) -> dict[str, Any]:
        """Send one message and wait for its response: the command set, with a status."""
        pdus = message_pdus(context, command, data, self.accepted.maximum_length, combined)
        return await self._bounded(self._ask(pdus, response_to(command)), "no response")

    async def _ask(self, pdus: bytes, wanted: tuple[int, int | None]) -> dict[str, Any]:
        self.writer.write(pdus)
        await self.writer.drain()
        fields, _ = await self._answer(wanted)
        return {"Status": Status.PROCESSING_FAILURE, **fields}

    async def find(self, context: AcceptedContext, sop_class: str, keys: bytes) -> list[bytes]:
        """The answers of a C-FIND, as they come; DeliveryError for any other end than success."""
        command = encode_command(AffectedSOPClassUID=sop_class, CommandField=0x0020, MessageID=1,
                                 Priority=0, CommandDataSetType=1)  # fmt: skip
        pdus = message_pdus(context, command, keys, self.accepted.maximum_length, True)
        self.writer.write(pdus)
        found: list[bytes] = []
        size, wanted = 0, response_to(command)
        while True:
            fields, data = await self._bounded(self._answer(wanted), "no response")
            status = fields.get("Status", Status.PROCESSING_FAILURE)
            if status == Status.SUCCESS:
                return found
            if status not in (Status.PENDING, Status.PENDING_OPTIONAL_KEYS_UNSUPPORTED):
                raise DeliveryError(f"it answers {status:04X} to our query")
            found.append(data)
            size += len(data)
            if len(found) > self.MOST_ANSWERS or size > self.LONGEST_ANSWERS:
                self.close()
                raise DeliveryError("it answers more than we take")

    async def _answer(self, wanted: tuple[int, int | None]) -> tuple[dict[str, Any], bytes]:
        """The next message of the peer, which must be a response to what was asked."""
        fields, data = await self._message()
        if (fields["CommandField"], fields.get("MessageIDBeingRespondedTo")) != wanted:
            raise ProtocolError("it answers what was not asked")
        return fields, data

    async def _message(self) -> tuple[dict[str, Any], bytes]:
        """The next message of the peer: command set and data set."""
        while not self.messages:
            kind, pdu = await self._pdu()
            if kind != P_DATA_TF:
                raise ProtocolError("it ended the association")
            self._take(pdu)
        return self.messages.popleft()

    def _take(self, pdu: bytes) -> None:
        """Gather the fragments of a P-DATA-TF; whole messages go to `messages`."""
        pos = 6
        while pos + 6 <= len(pdu):
            length, _, control = _PDV_HEADER.unpack_from(pdu, pos)
            part = self.command if control & 1 else self.data
            part += pdu[pos + 6 : pos + 4 + length]
            pos += 4 + max(length, 2)
            if len(self.command) > self.LONGEST_COMMAND or len(self.data) > self.LONGEST_DATA:
                raise ProtocolError("its response is past the limit")
            if control & 3 == 3:
                self.fields = decode_command(bytes(self.command))
                if not self.fields["CommandField"] & 0x8000:
                    raise ProtocolError("it asks where it is to answer")
                self.command.clear()
            whole = self.fields and (
                control == 2 or self.fields.get("CommandDataSetType") == NO_DATA_SET
            )
            if whole:
                self.messages.append((self.fields, bytes(self.data)))
                self.data.clear()
                self.fields = None

    @property
    def is_open(self) -> bool:
        """Whether the peer has not closed, as far as is known."""
        return bool(self.writer) and not self.writer.is_closing() and not self.reader.at_eof()

    async def release(self) -> None:
        """Release and close; never raises."""
        self.timeout = 2.0
        with contextlib.suppress(DeliveryError):
            await self._bounded(self._release(), "no release")
        self.close()

    async def _release(self) -> None:
        self.writer.write(RELEASE_RQ_PDU)
        await self._pdu()

    def close(self) -> None:
        """Close the connection; what the peer has not read is not kept for it."""
        if self.writer:
            self.writer.transport.abort()


# 17. DIMSE ------------------------------------------------------------------------------------
#
# Door 1: each message of each SOP class calls one core function. Source: PS3.7 chapters 9, 10.
# For others: SERVICES, Dimse.

Core = Callable[..., Any]


class Service(NamedTuple):
    """An operation of a SOP class: which core function it calls, and how.

    access  `none`, `find` (a generator of answers), `read` or `write` (in the store thread)
    read    turns a request into the arguments of the core function behind ctx
    answer  turns its result into further fields of the response
    """

    sop_class: str
    operation: str
    core: Core | None
    access: str
    read: Callable[[Request], tuple[Any, ...]]
    answer: Callable[[Any], dict[str, Any]]
    clause: str


def _affected(request: Request) -> tuple[str, bytes, bytes | None]:
    uid = request.command.get("AffectedSOPInstanceUID", "")
    return uid, bytes(request.index), request.raw


def _requested(request: Request) -> tuple[str, bytes, bytes | None]:
    uid = request.command.get("RequestedSOPInstanceUID", "")
    return uid, bytes(request.index), request.raw


def _wanted(request: Request) -> tuple[str, list[int]]:
    command = request.command
    return command.get("RequestedSOPInstanceUID", ""), command.get("AttributeIdentifierList", [])


def _action(request: Request) -> tuple[str, int, ElementIndex]:
    """UID, action type, action information."""
    command = request.command
    kind = command.get("ActionTypeID", 0)
    index = request.index if request.data else EMPTY
    return command.get("RequestedSOPInstanceUID", ""), kind, index


def ups_action(ctx: Context, uid: str, kind: int, index: ElementIndex) -> Status:
    """An N-ACTION on a workitem, by its type. Refuses as the core function, 0120, 0121, 0115."""
    name = UPS_ACTIONS[kind][0]
    if name == "change state":
        state = index.text(UPS_STATE) if UPS_STATE in index else None
        return change_state(ctx, uid, state, index.text(TRANSACTION_UID))
    if name == "request cancel":
        return request_cancel(ctx, uid, bytes(index))
    receiver = _required(index, "ReceivingAE")
    if name == "suspend":
        suspend_global_subscription(ctx, uid, receiver)
        return Status.SUCCESS
    if name == "unsubscribe":
        unsubscribe(ctx, uid, receiver)
        return Status.SUCCESS
    lock = _required(index, "DeletionLock")
    if lock not in ("TRUE", "FALSE"):
        words = Message("{value} is neither TRUE nor FALSE", value=lock[:64])
        problem = Problem(tag_of("DeletionLock"), words)
        raise Refusal(Status.INVALID_ARGUMENT_VALUE, problems=[problem])
    keys = index.without(map(tag_of, ("ReceivingAE", "DeletionLock", "SpecificCharacterSet")))
    return subscribe(ctx, uid, receiver, lock == "TRUE", keys)


def commitment_action(ctx: Context, uid: str, kind: int, index: ElementIndex) -> None:
    """An N-ACTION of storage commitment. Refuses 0112 for another instance; 0120, 0121."""
    if uid != STORAGE_COMMITMENT_INSTANCE:
        words = Message("{uid} is not known", uid=uid)
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, words)
    request_commitment(ctx, _required(index, "TransactionUID"), bytes(index))


def commitment_report(ctx: Context, uid: str, kind: int, index: ElementIndex) -> None:
    """An N-EVENT-REPORT of storage commitment. Refuses 0112 for another instance, 0113; 0115 …"""
    if uid != STORAGE_COMMITMENT_INSTANCE:
        words = Message("{uid} is not known", uid=uid)
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, words)
    if kind not in COMMITMENT_EVENTS.values():
        raise Refusal(Status.NO_SUCH_EVENT_TYPE, f"There is no event type {kind}")
    take_commitment_report(ctx, _required(index, "TransactionUID"), kind, bytes(index))


def _event(request: Request) -> tuple[str, int, ElementIndex]:
    """UID, event type, event information."""
    command = request.command
    index = request.index if request.data else EMPTY
    return command.get("AffectedSOPInstanceUID", ""), command.get("EventTypeID", 0), index


def _required(index: ElementIndex, keyword: str) -> str:
    """The value of an argument that must be there. Refuses 0120, 0121 (PS3.4 5.4.2.1)."""
    tag = tag_of(keyword)
    if tag not in index:
        raise Refusal(Status.MISSING_ATTRIBUTE, problems=[Problem(tag, Message("is missing"))])
    if not index.text(tag):
        problem = Problem(tag, Message("has no value"))
        raise Refusal(Status.MISSING_ATTRIBUTE_VALUE, problems=[problem])
    return index.text(tag)


def _created_mpps(uid: str) -> dict[str, Any]:
    return {"AffectedSOPInstanceUID": uid}


def _created_workitem(made: tuple[str, Status]) -> dict[str, Any]:
    return {"AffectedSOPInstanceUID": made[0], "Status": made[1]}


def _found(found: tuple[Status, bytes]) -> dict[str, Any]:
    return {"Status": found[0], "data": found[1]}


def _status(status: Status | None) -> dict[str, Any]:
    return {} if status is None else {"Status": status}


def _nothing(result: Any) -> Any:
    return {}


def _no_arguments(request: Request) -> tuple[()]:
    return ()


def _affected_workitem(request: Request) -> tuple[str, bytes]:
    return _affected(request)[:2]


def _requested_workitem(request: Request) -> tuple[str, bytes]:
    return _requested(request)[:2]


SERVICES = (
    Service(VERIFICATION, "C-ECHO", None, "none", _no_arguments, _nothing, "PS3.4 A"),
    Service(
        MODALITY_WORKLIST, "C-FIND", find_worklist, "find", _no_arguments, _nothing, "PS3.4 K.4.1"
    ),
    Service(MPPS, "N-CREATE", create_mpps, "write", _affected, _created_mpps, "PS3.4 F.7.2.1"),
    Service(MPPS, "N-SET", set_mpps, "write", _requested, _status, "PS3.4 F.7.2.2"),
    Service(MPPS_RETRIEVE, "N-GET", get_mpps, "read", _wanted, _found, "PS3.4 F.8.2.1"),
    Service(
        UPS_PUSH, "N-CREATE", create_workitem, "write", _affected_workitem, _created_workitem,
        "PS3.4 CC.2.5"
    ),
    Service(UPS_PUSH, "N-ACTION", ups_action, "write", _action, _status, "PS3.4 CC.2.2"),
    Service(UPS_PUSH, "N-GET", get_workitem, "read", _wanted, _found, "PS3.4 CC.2.7"),
    Service(UPS_PULL, "C-FIND", find_workitems, "find", _no_arguments, _nothing, "PS3.4 CC.2.8"),
    Service(UPS_PULL, "N-GET", get_workitem, "read", _wanted, _found, "PS3.4 CC.2.7"),
    Service(UPS_PULL, "N-SET", update_workitem, "write", _requested_workitem, _status, "PS3.4 CC.2.6"),
    Service(UPS_PULL, "N-ACTION", ups_action, "write", _action, _status, "PS3.4 CC.2.1"),
    Service(UPS_WATCH, "C-FIND", find_workitems, "find", _no_arguments, _nothing, "PS3.4 CC.2.8"),
    Service(UPS_WATCH, "N-GET", get_workitem, "read", _wanted, _found, "PS3.4 CC.2.7"),
    Service(UPS_WATCH, "N-ACTION", ups_action, "write", _action, _status, "PS3.4 CC.2.2, CC.2.3"),
    Service(UPS_QUERY, "C-FIND", find_workitems, "find", _no_arguments, _nothing, "PS3.4 CC.2.8"),
    Service(STORAGE_COMMITMENT, "N-ACTION", commitment_action, "write", _action, _status,
            "PS3.4 J.3.2"),
    Service(STORAGE_COMMITMENT, "N-EVENT-REPORT", commitment_report, "write", _event, _status,
            "PS3.4 J.3.3"),
    Service(INSTANCE_AVAILABILITY, "N-CREATE", notify_availability, "write", _affected_workitem,
            _created_mpps, "PS3.4 R.3.2"),
)  # fmt: skip
ACTIONS = {ups_action: UPS_ACTIONS, commitment_action: COMMITMENT_ACTIONS}
SEARCHED = {find_worklist: MWL_ATTRIBUTES, find_workitems: UPS_ATTRIBUTES}

# Whose changes somebody is to be told of, or something is to follow.
WATCHED_CLASSES = UPS_CLASSES | {MPPS, STORAGE_COMMITMENT, INSTANCE_AVAILABILITY}

# Abstract syntaxes, with the (SCU, SCP) roles we take where they are proposed; None: the default.
PRESENTATION_CONTEXTS: dict[str, tuple[bool, bool] | None] = {
    VERIFICATION: None,
    MODALITY_WORKLIST: None,
    MPPS: (True, False),
    MPPS_RETRIEVE: (True, False),
    UPS_PUSH: (True, False),
    UPS_WATCH: (True, False),
    UPS_PULL: (True, False),
    UPS_EVENT: (True, False),
    UPS_QUERY: (True, False),
    STORAGE_COMMITMENT: (True, True),
    INSTANCE_AVAILABILITY: (True, False),
}
# PS3.4 K.5.1: reserved, reserved, fuzzy matching, timezone adjustment
EXTENDED_NEGOTIATION = {
    MODALITY_WORKLIST: b"\1\1\0\0",
    UPS_PULL: b"\1\1\0\0",
    UPS_WATCH: b"\1\1\0\0",
    UPS_QUERY: b"\1\1\0\0",
}


def address_of(device: Device | None, ae_title: str) -> tuple[str, int]:
    """Where an AE is called. Raises DeliveryError where that is not known"""
    if not device or not device.host:
        raise DeliveryError(f"{ae_title} is not registered with an address")
    return device.host, device.port


def takes_from_us(caller: Caller, device: Device, sop_class: str, as_scp: bool) -> bool:
    """Whether a device has accepted a SOP class, and us in the role that it has there."""
    _, scp = caller.accepted.roles.get(sop_class, (False, False))
    accepted = sop_class in caller.accepted.contexts
    return accepted and (scp or not as_scp or device.events_without_role)


async def open_as_scp(device: Device, ours: str, theirs: str, sop_class: str, words: str) -> Caller:
    """An association to a device on which we report as SCP (PS3.7 D.3.3.4). Raises DeliveryError

    ours, theirs  calling and called AE title; words: what the class is called where it is refused
    """
    caller = Caller()
    await caller.open((device.host, device.port), ours, theirs, ((sop_class, (False, True)),))
    if takes_from_us(caller, device, sop_class, True):
        return caller
    await caller.release()
    raise DeliveryError(f"it does not take {words} with us as SCP")


# PS3.7 10.3: Command Field of a request, and whether it names a class and instance as requested.
REQUESTS = {
    "N-EVENT-REPORT": (0x0100, "Affected"),
    "N-SET": (0x0120, "Requested"),
    "N-ACTION": (0x0130, "Requested"),
    "N-CREATE": (0x0140, "Affected"),
}


def request_command(
    operation: str, sop_class: str, uid: str, has_data: bool, **fields: Any
) -> bytes:
    """The command set of a request of ours (PS3.7 10.3)."""
    number, named = REQUESTS[operation]
    fields[f"{named}SOPClassUID"], fields[f"{named}SOPInstanceUID"] = sop_class, uid
    kind = 1 if has_data else NO_DATA_SET
    return encode_command(CommandField=number, CommandDataSetType=kind, **fields)


async def send_request(
    caller: Caller,
    context: AcceptedContext,
    device: Device,
    data: bytes,
    *named: str,
    **fields: Any,
) -> dict[str, Any]:
    """Send a request without answers beside its own, and wait for it. Raises DeliveryError

    data    its data set, stored form; named: operation, SOP class and instance; fields: further
            ones of the command set
    """
    written = written_for(device, data, context.explicit)
    command = request_command(*named, bool(written), **fields)
    return await caller.ask(context, command, written, device.combined_pdvs)


def answer_words(fields: Mapping[str, Any]) -> str:
    """A response's status with its comment, as it is kept; not for the log: it may name a patient."""
    comment = "".join(c if c.isprintable() else "?" for c in fields.get("ErrorComment", ""))
    return f"{fields['Status']:04X}{' ' if comment else ''}{comment}"


class EventSender:
    """Sends N-EVENT-REPORT on associations of our own, as SCP (PS3.4 CC.2.4, PS3.7 D.3.3.4).

    An association stays open for a while, for what follows in a burst.
    """

    KEEP = 3.0  # seconds

    def __init__(self, config: Config, access: Callable[[], AccessRules]) -> None:
        self.config, self.access = config, access
        self.kept: dict[str, Caller] = {}
        self.timers: dict[str, asyncio.TimerHandle] = {}
        self.tasks: set[asyncio.Task] = set()

    async def __call__(
        self, receiver: str, events: list[Event], heard: Callable[[Event, str], None]
    ) -> None:
        """Tell one receiver events in order. Raises DeliveryError."""
        device = self.access().device(receiver)
        address_of(device, receiver)
        caller = self.kept.pop(receiver, None)
        if timer := self.timers.pop(receiver, None):
            timer.cancel()
        was_kept = bool(caller and caller.is_open)
        if not was_kept:
            if caller:
                caller.close()
            caller = await self._open(device, receiver)
        try:
            for event in events:
                try:
                    answer = await self._report(caller, device, event)
                except DeliveryError:
                    if not was_kept or caller.is_open:
                        raise
                    caller = await self._open(device, receiver)  # it has closed a kept one
                    answer = await self._report(caller, device, event)
                was_kept = True  # it has served
                heard(event, answer)
        finally:
            if caller.is_open:
                self._keep(receiver, caller)

    async def _open(self, device: Device, receiver: str) -> Caller:
        ours = self.config.dicom.ae_title
        return await open_as_scp(device, ours, receiver, UPS_EVENT, "the UPS Event SOP class")

    def _keep(self, receiver: str, caller: Caller) -> None:
        """Leave an association open for a while."""
        self.kept[receiver] = caller
        loop = asyncio.get_running_loop()
        self.timers[receiver] = loop.call_later(self.KEEP, self._let_go, receiver)

    def _let_go(self, receiver: str) -> None:
        self.timers.pop(receiver).cancel()
        task = asyncio.get_running_loop().create_task(self.kept.pop(receiver).release())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        """Release what is kept."""
        for receiver in list(self.kept):
            self._let_go(receiver)
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _report(self, caller: Caller, device: Device, event: Event) -> str:
        """Send one event: its answer."""
        context = caller.accepted.contexts[UPS_EVENT]
        fields = await send_request(
            caller, context, device, event.data, "N-EVENT-REPORT", UPS_PUSH, event.uid,
            MessageID=event.message_id, EventTypeID=event.event_type,
        )  # fmt: skip
        if fields["Status"] != Status.SUCCESS:  # PS3.4 CC.2.4.4: of no effect here
            code = f"{fields['Status']:04X}"
            log.warning("event %d of %s: answered %s", event.event_type, event.uid, code)
        return answer_words(fields)


# Failures that may pass: whoever answers them is sent the same again.
PASSING_FAILURES = frozenset(
    {Status.PROCESSING_FAILURE, Status.RESOURCE_LIMITATION, Status.UNRECOGNIZED_OPERATION}
)


class PassingOnSender(EventSender):
    """Sends what is passed on: N-CREATE and N-SET as SCU, MPPS Notification as SCP (PS3.4 F.9)."""

    async def _open(self, device: Device, receiver: str) -> Caller:
        wanted = [PASSED_ON[kind] for kind in sorted(device.passed_on)]
        proposed = tuple((uid, (False, True) if scp else None) for uid, scp in wanted)
        if not proposed:
            raise DeliveryError("it is passed on nothing any more")
        caller = Caller()
        address = device.host, device.port
        await caller.open(address, self.config.dicom.ae_title, receiver, proposed)
        return caller

    async def _report(self, caller: Caller, device: Device, event: Event) -> str:
        taken = {uid for uid, scp in PASSED_ON.values() if takes_from_us(caller, device, uid, scp)}
        if event.sop_class not in taken:
            words = f"it does not take {UID(event.sop_class).name}"
            if not taken:
                raise DeliveryError(words)
            log.warning("%s: %s", device.name, words)
            return words  # what it takes is not to wait for that
        context = caller.accepted.contexts[event.sop_class]
        try:
            fields = await send_request(
                caller, context, device, event.data, event.operation, event.sop_class, event.uid,
                MessageID=event.message_id, EventTypeID=event.event_type or None,
            )  # fmt: skip
        except DeliveryError as error:
            raise Answered(event.outbox_id, str(error), MOST_ABORTS) from None
        status, answer = fields["Status"], answer_words(fields)
        if fields.get("ErrorID") == MAY_NO_LONGER_BE_UPDATED:
            return f"{MAY_NO_LONGER_BE_UPDATED:04X} it has ended there already"
        if status in PASSING_FAILURES:
            raise Answered(event.outbox_id, answer, MOST_REFUSALS)
        repeated = event.operation == "N-CREATE" and status == Status.DUPLICATE_SOP_INSTANCE
        if status != Status.SUCCESS and not repeated:
            log.warning("%s of %s: answered %04X", event.operation, event.uid, status)
        return answer


class ArchiveSearch:
    """Looks for instances in an archive by C-FIND (PS3.4 C, Study Root).

    Within their study and series where these are known; else by instance UIDs alone, where the
    archive's device allows relational queries
    """

    AT_ONCE = 100  # UIDs in one query
    LONGEST = 300.0  # seconds for one request

    def __init__(self, config: Config) -> None:
        self.config = config

    async def __call__(self, archive: Device, references: list[Reference]) -> Evidence:
        """Raises DeliveryError where it is not reached or refuses a query"""
        address_of(archive, archive.ae_title)
        within = [one for one in references if one.study_instance_uid]
        alone = [one for one in references if not one.study_instance_uid]
        unchecked = frozenset(
            () if archive.relational_queries else (one.sop_instance_uid for one in alone)
        )
        found: dict[str, tuple[str, ...]] = {}
        if within or (alone and archive.relational_queries):
            async with self._asking(archive) as caller:
                await self._within_studies(caller, within, found)
                if archive.relational_queries:
                    await self._alone(caller, [one.sop_instance_uid for one in alone], found)
        wanted = frozenset(one.sop_instance_uid for one in references)
        seen = {uid: (found[uid][0], archive.ae_title) for uid in wanted & found.keys()}
        places = {uid: found[uid][1:] for uid in seen if all(found[uid][:3])}
        return Evidence(seen, wanted - seen.keys() - unchecked, unchecked, places=places)

    async def count(self, archive: Device, studies: list[str]) -> dict[str, int]:
        """How many images the archive has of each of some studies, 1 where it does not say."""
        counts: dict[str, int] = {}
        async with self._asking(archive) as caller:
            for start in range(0, len(studies), self.AT_ONCE):
                some = "\\".join(studies[start : start + self.AT_ONCE])
                answers = await self._ask(caller, "STUDY", StudyInstanceUID=some,
                                          NumberOfStudyRelatedInstances="")  # fmt: skip
                for one in answers:
                    text = one.get("NumberOfStudyRelatedInstances").strip()
                    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else 1
                    counts[one.get("StudyInstanceUID")] = number
        return {study: counts[study] for study in studies if study in counts}

    @contextlib.asynccontextmanager
    async def _asking(self, archive: Device) -> AsyncIterator[Caller]:
        """An association for queries. Raises DeliveryError"""
        caller, address = Caller(30.0), address_of(archive, archive.ae_title)
        ours = self.config.dicom.ae_title
        await caller.open(address, ours, archive.ae_title, ((STUDY_ROOT_FIND, None),))
        try:
            if STUDY_ROOT_FIND not in caller.accepted.contexts:
                raise DeliveryError("the archive takes no queries (Study Root FIND)")
            async with asyncio.timeout(self.LONGEST):
                yield caller
        except TimeoutError:
            raise DeliveryError("its answers have no end") from None
        finally:
            await caller.release()

    async def _within_studies(
        self, caller: Caller, references: list[Reference], found: dict[str, tuple[str, ...]]
    ) -> None:
        wanted: dict[str, dict[str, set[str]]] = {}
        for one in references:
            of_study = wanted.setdefault(one.study_instance_uid, {})
            of_study.setdefault(one.series_instance_uid, set()).add(one.sop_instance_uid)
        for study, series in wanted.items():
            if "" in series:  # not known of all
                answers = await self._ask(caller, "SERIES", StudyInstanceUID=study,
                                          SeriesInstanceUID="")  # fmt: skip
                series = {one.get("SeriesInstanceUID"): set() for one in answers}
            for uid, images in sorted(series.items()):
                place = {"StudyInstanceUID": study, "SeriesInstanceUID": uid}
                if 0 < len(images) <= self.AT_ONCE:  # a few of a series that may be long
                    found |= await self._images(caller, "\\".join(sorted(images)), **place)
                if not images or images - found.keys():
                    found |= await self._images(caller, "", **place)

    async def _alone(
        self, caller: Caller, uids: list[str], found: dict[str, tuple[str, ...]]
    ) -> None:
        for start in range(0, len(uids), self.AT_ONCE):
            found |= await self._images(caller, "\\".join(uids[start : start + self.AT_ONCE]))

    async def _images(self, caller: Caller, uids: str, **keys: str) -> dict[str, tuple[str, ...]]:
        """Class, study, series and availability of each of some images that are found."""
        places = {"StudyInstanceUID": "", "SeriesInstanceUID": ""}
        asked = places | keys
        answers = await self._ask(caller, "IMAGE", SOPInstanceUID=uids, SOPClassUID="",
                                  RetrieveAETitle="", InstanceAvailability="", **asked)  # fmt: skip
        return {
            one.get("SOPInstanceUID"): (
                one.get("SOPClassUID"), *(one.get(key) or asked[key] for key in places),
                one.get("InstanceAvailability") or "ONLINE",
            )
            for one in answers
            # an answer names a class or who has it (PS3.4 C.4.1.1.3.2); else it is our own question
            if (one.get("SOPClassUID") or one.get("RetrieveAETitle"))
            and one.get("InstanceAvailability") in ("", *RETRIEVABLE)
        }  # fmt: skip

    @staticmethod
    async def _ask(caller: Caller, level: str, **keys: str) -> list[ElementIndex]:
        context = caller.accepted.contexts[STUDY_ROOT_FIND]
        keys["QueryRetrieveLevel"] = level
        elements = {tag_of(keyword): encode_text(keyword, text) for keyword, text in keys.items()}
        data = to_syntax(b"".join(_by_tag(elements)), context.explicit)
        answers = await caller.find(context, STUDY_ROOT_FIND, data)

        def decode() -> list[ElementIndex]:
            return [ElementIndex(recode(one, context.explicit, UTF_8)) for one in answers]

        try:
            return await asyncio.to_thread(decode)  # thousands would hold up the loop
        except Malformed as error:
            raise DeliveryError(f"its answer cannot be read: {error}") from None


class CommitmentRequester:
    """Passes a request for storage commitment on to the archive, as SCU (PS3.4 J.3.2)."""

    def __init__(self, config: Config) -> None:
        self.config = config

    async def __call__(self, archive: Device, uid: str, references: list[Reference]) -> None:
        """N-ACTION under a Transaction UID; the archive calls us with its report. DeliveryError"""
        address = address_of(archive, archive.ae_title)
        items = [
            bytes(text_elements(ReferencedSOPClassUID=one.sop_class_uid,
                                ReferencedSOPInstanceUID=one.sop_instance_uid))
            for one in references
        ]  # fmt: skip
        data = text_elements(TransactionUID=uid).merged(
            ElementIndex(encode_items(REFERENCED_SOP, items))
        )
        caller, ours = Caller(30.0), self.config.dicom.ae_title
        await caller.open(address, ours, archive.ae_title, ((STORAGE_COMMITMENT, None),))
        try:
            context = caller.accepted.contexts.get(STORAGE_COMMITMENT)
            if not context:
                raise DeliveryError("the archive takes no requests for storage commitment")
            fields = await send_request(
                caller, context, archive, data, "N-ACTION", STORAGE_COMMITMENT,
                STORAGE_COMMITMENT_INSTANCE, MessageID=1, ActionTypeID=1,
            )  # fmt: skip
            if (status := fields["Status"]) != Status.SUCCESS:
                words = f"the archive answers {status:04X} to our request for commitment"
                raise DeliveryError(words)
        finally:
            await caller.release()


class CommitmentSender:
    """Tells the result of a storage commitment by N-EVENT-REPORT, as SCP (PS3.4 J.3.3).

    associations  gives those that are open to us
    """

    def __init__(
        self, access: Callable[[], AccessRules], associations: Callable[[], Iterable[Association]]
    ) -> None:
        self.access, self.associations = access, associations

    async def __call__(self, commitment: Any, result: Result) -> None:
        """On an association of ours, from the AE title that was called. Raises DeliveryError

        On the requester's own one first, where its device wants that
        """
        device = self.access().device(commitment.requester)
        address_of(device, commitment.requester)
        told = text_elements(
            TransactionUID=commitment.transaction_uid, RetrieveAETitle=result.archive
        )
        if device.report_on_same_association and await self._on_same(
            commitment, device, ElementIndex(result.data).merged(told), result
        ):
            return
        ours, theirs = commitment.called, commitment.requester
        caller = await open_as_scp(device, ours, theirs, STORAGE_COMMITMENT, "storage commitment")
        try:
            fields = await send_request(
                caller,
                caller.accepted.contexts[STORAGE_COMMITMENT],
                device,
                ElementIndex(result.data).merged(told),
                "N-EVENT-REPORT",
                STORAGE_COMMITMENT,
                STORAGE_COMMITMENT_INSTANCE,
                MessageID=1,
                EventTypeID=COMMITMENT_EVENTS[result.all_good],
            )
            status = fields["Status"]
            if status in PASSING_FAILURES:
                raise DeliveryError(f"it answers {status:04X}")
            if status != Status.SUCCESS:  # it has heard, and knows nothing of it
                log.warning("commitment %s: answered %04X", commitment.transaction_uid, status)
        finally:
            await caller.release()

    async def _on_same(self, commitment: Any, device: Device, data: bytes, result: Result) -> bool:
        """Whether the requester took it on an association that it has open (PS3.4 J.3.3.1.2)."""
        for association in self.associations():
            peer = association.peer
            if not peer or (peer.calling, peer.called) != (commitment.requester, commitment.called):
                continue
            of_class = [context for context in peer.contexts.values()
                        if context.abstract_syntax == STORAGE_COMMITMENT]  # fmt: skip
            if not of_class or STORAGE_COMMITMENT in peer.of_providers:
                continue  # there it is we who are the SCU (PS3.7 D.3.3.4)
            written = written_for(device, data, of_class[0].explicit)
            command = request_command(
                "N-EVENT-REPORT", STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, True,
                MessageID=Association.ASKED_ID, EventTypeID=COMMITMENT_EVENTS[result.all_good],
            )  # fmt: skip
            status = await association.ask(of_class[0], command, written)
            return status is not None and status not in PASSING_FAILURES
        return False


class KeptAnswers(NamedTuple):
    """A small result as it was at a commit, on a day."""

    commits: int
    day: str
    status: Status
    answers: list[bytes]
    keys: bytes


def error_comment(refusal: Refusal) -> str:
    """Error Comment (0000,0902): printable ASCII, at most 64 characters, a tag for its name."""
    words = refusal.detail
    if refusal.problems and words == str(refusal.problems[0]) and refusal.problems[0].tag:
        tag, words = refusal.problems[0]
        words = f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {words}"
    return re.sub(r"[^ -\[\]-~]", "?", words)[:64]


class Dimse:
    """Door 1: answers the messages of associations.

    context  gives a Context for an Actor
    access   gives the AccessRules of the moment
    writer   the store's one writer
    readers  threads that search
    """

    RECENT = 128

    def __init__(
        self,
        context: Callable[[Actor], Context],
        access: Callable[[], AccessRules],
        writer: Writer,
        readers: concurrent.futures.Executor,
    ) -> None:
        self.context, self.access = context, access
        self.writer, self.readers = writer, readers
        self.cache = AnswerCache()
        self.recent: collections.OrderedDict[object, KeptAnswers] = collections.OrderedDict()
        self.queries = QueryLog()
        self.counts: collections.Counter[str] = collections.Counter()
        self.on_events: Callable[[], None] = lambda: None
        self.on_caller: Callable[[str], None] = lambda ae_title: None
        self.services = {(s.sop_class, s.operation): s for s in SERVICES}
        self.classes = {s.sop_class for s in SERVICES}

    async def dispatch(self, association: Association, request: Request) -> None:
        """Answer one message; every failure is a status, never silence."""
        peer = association.peer
        actor = Actor(peer.calling, association.address, called=peer.called)
        ctx = self.context(actor)
        self.counts[request.operation] += 1
        self.on_caller(actor.name)
        changed = False
        try:
            service = self._service(request)
            if request.too_large:
                find = request.operation == "C-FIND"
                status = Status.OUT_OF_RESOURCES if find else Status.RESOURCE_LIMITATION
                raise Refusal(status, "The data set is larger than this system takes")
            if service.access == "find":
                await self._find(ctx, association, request, service.core)
                return
            fields, data = await self._call(ctx, service, request)
            changed = service.access == "write" and service.sop_class in WATCHED_CLASSES
        except Refusal as refusal:
            fields, data = self._refused(request, refusal)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception:
            log.exception("%s from %s failed", request.operation, association)
            fields, data = self._refused(
                request, Refusal(Status.PROCESSING_FAILURE, "Internal error, see the log")
            )
        await association.send((request.context, self._response(request, data, **fields), data))
        if changed:  # once it is answered
            self.on_events()

    def _service(self, request: Request) -> Service:
        """What a message calls. Refuses 0118, 0211, 0123 (PS3.7 10.1; PS3.4 CC.3.1.1)."""
        command, syntax = request.command, request.context.abstract_syntax
        named = command.get("AffectedSOPClassUID") or command.get("RequestedSOPClassUID")
        c_service = request.operation.startswith("C-")
        # PS3.4 CC.3.1.1: the Push UID in any of them; C-FIND names the class of its context
        any_ups = syntax in UPS_CLASSES and named in UPS_CLASSES and not c_service
        if named != syntax and not any_ups:  # PS3.7 9.1: for C-services it is 0122
            raise Refusal(
                Status.SOP_CLASS_NOT_SUPPORTED if c_service else Status.NO_SUCH_SOP_CLASS,
                f"{named or 'nothing'} is not the SOP class of its context",
            )
        service = self.services.get((syntax, request.operation))
        if service and (actions := ACTIONS.get(service.core)):
            kind = command.get("ActionTypeID", 0)
            if kind not in actions:
                raise Refusal(Status.NO_SUCH_ACTION, f"There is no action type {kind}")
            if syntax not in actions[kind][1]:
                service = None
        if not service:
            raise Refusal(
                Status.UNRECOGNIZED_OPERATION,
                f"{request.operation} is not part of this SOP class",
            )
        return service

    async def _call(
        self, ctx: Context, service: Service, request: Request
    ) -> tuple[dict[str, Any], bytes | None]:
        if not service.core:
            return {"Status": Status.SUCCESS}, None
        if len(request.data or b"") > 65536:
            await asyncio.get_running_loop().run_in_executor(
                self.readers, self.decode, ctx, request
            )
        if service.access == "read":
            run = asyncio.get_running_loop().run_in_executor
            result = await run(self.readers, self._read, service, request)
        else:
            future = self.writer.submit(self._run, ctx, service, request)
            result = await asyncio.wrap_future(future)
        fields = {"Status": Status.SUCCESS, **service.answer(result)}
        data = fields.pop("data", None)
        device = self.access().device(ctx.actor.name)
        return fields, written_for(device, data, request.context.explicit) if data else None

    @staticmethod
    def _read(service: Service, request: Request) -> Any:
        with reading():
            return service.core(*service.read(request))

    def _run(self, ctx: Context, service: Service, request: Request) -> Any:
        if request.index is None:
            self.decode(ctx, request)
        return service.core(ctx, *service.read(request))

    def decode(self, ctx: Context, request: Request) -> None:
        """Read a request's data set into the stored form. Refuses 0110 for one that is none."""
        limits = ctx.config.dicom
        device = self.access().device(ctx.actor.name)
        charset = character_set(device.character_set) if device else ASCII
        try:
            recoded = recode_noting(
                request.data or b"",
                request.context.explicit,
                charset,
                Limits(limits.maximum_nesting, limits.maximum_elements),
            )
        except Malformed as error:
            many = isinstance(error, TooManyElements)
            status = Status.RESOURCE_LIMITATION if many else Status.PROCESSING_FAILURE
            raise Refusal(status, f"The data set cannot be read: {error}") from None
        if recoded.recovered or recoded.damaged:
            self._note_texts(ctx, request, recoded)
        request.asked = recoded.asked
        request.index = ElementIndex(recoded.data)

    @staticmethod
    def _note_texts(ctx: Context, request: Request, recoded: Recoded) -> None:
        """Log texts that contradict their set. Refuses 0106 where keeping them would harm.

        A set that is not known, and bytes that are not UTF-8: what an N-service stored would be
        wrong for good (PS3.5 6.1.2.3). A query is answered as far as it is understood.
        """
        words = ", ".join(map(attribute_name, (*recoded.recovered, *recoded.damaged)))
        how = "guessed at" if recoded.damaged else "recovered"
        log.warning("%s from %s: %s, %s", request.operation, ctx.actor, words, how)
        unknown = recoded.asked and character_set(recoded.asked) is None
        if recoded.damaged and unknown and request.operation != "C-FIND":
            words = Message("is in a character set that is not known here")
            problems = [Problem(SPECIFIC_CHARACTER_SET, words)]
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
        if request.operation != "C-FIND":
            request.raw = request.data

    def _refused(self, request: Request, refusal: Refusal) -> tuple[dict[str, Any], bytes | None]:
        """The fields of a failure, and the attributes to blame where the status has them."""
        fields: dict[str, Any] = {
            "Status": refusal.status,
            "ErrorComment": error_comment(refusal),
            "ErrorID": refusal.error_id,
        }
        data = None
        if request.operation == "C-FIND":
            fields["OffendingElement"] = refusal.tags or None
        elif refusal.status in (Status.NO_SUCH_ATTRIBUTE, Status.MISSING_ATTRIBUTE):
            fields["AttributeIdentifierList"] = refusal.tags or None
        elif request.index and refusal.status in (
            Status.INVALID_ATTRIBUTE_VALUE,
            Status.MISSING_ATTRIBUTE_VALUE,
        ):
            tags = (tag for tag in refusal.tags if tag != TRANSACTION_UID)  # told to nobody
            data = to_syntax(request.index.only(tags), request.context.explicit) or None
        return fields, data

    @staticmethod
    def _response(request: Request, data: bytes | None, **fields: Any) -> bytes:
        """The command set of a response (PS3.7 9.3, 10.3)."""
        command = request.command
        if request.operation == "N-ACTION":
            fields.setdefault("ActionTypeID", command.get("ActionTypeID"))
        if request.operation == "N-EVENT-REPORT":
            fields.setdefault("EventTypeID", command.get("EventTypeID"))
        uid = command.get("AffectedSOPInstanceUID") or command.get("RequestedSOPInstanceUID")
        if request.operation.startswith("N-"):
            fields.setdefault("AffectedSOPInstanceUID", uid or None)
        return encode_command(
            AffectedSOPClassUID=command.get("AffectedSOPClassUID")
            or command.get("RequestedSOPClassUID"),
            CommandField=command["CommandField"] | 0x8000,
            MessageIDBeingRespondedTo=request.message_id,
            CommandDataSetType=1 if data else NO_DATA_SET,
            **fields,
        )

    async def _find(
        self, ctx: Context, association: Association, request: Request, core: Core
    ) -> None:
        """Answer a C-FIND, from what was kept or slice by slice, and note it in the query log."""
        key = core, request.data, request.context.explicit, ctx.actor, self.access().version
        commits, day = self.writer.commits, f"{ctx.local_now():%Y%m%d%z}"
        kept = self.recent.get(key)
        if kept and kept.commits == commits and kept.day == day:
            await self._send_slice(association, request, kept.status, kept.answers)
            if core is find_worklist:
                self.queries.note(ctx, kept.keys, request.data, len(kept.answers), Status.SUCCESS)
            await self._end_find(association, request, Status.SUCCESS)
            return
        slices = self._slices(ctx, request, core)
        count, last, status = 0, None, Status.UNABLE_TO_PROCESS
        run = asyncio.get_running_loop().run_in_executor
        try:
            while found := await run(self.readers, self._next, slices):
                if request.cancelled:
                    status = Status.CANCEL
                    break
                last, count = found, count + len(found[1])
                if not await self._send_slice(association, request, *found):
                    return
            else:
                status = Status.SUCCESS
        except Refusal as refusal:
            status = refusal.status
            raise
        finally:
            # closed in a reader's thread, where it never runs at the same time
            self.readers.submit(slices.close)
            if request.index and core is find_worklist:
                self.queries.note(ctx, bytes(request.index), request.data, count, status)
        if last and count == len(last[1]) and count < SLICE and status is Status.SUCCESS:
            self._remember(key, KeptAnswers(commits, day, *last, bytes(request.index)))
        await self._end_find(association, request, status)

    async def _send_slice(
        self, association: Association, request: Request, status: Status, answers: list[bytes]
    ) -> bool:
        if not answers:
            return True
        pending = self._response(request, b"-", Status=status)
        return await association.send_answers(request.context, pending, answers)

    async def _end_find(self, association: Association, request: Request, status: Status) -> None:
        final = self._response(request, None, Status=status)
        await association.send((request.context, final, None))

    def _remember(self, key: object, found: "KeptAnswers") -> None:
        """Keep a small result whole: it holds until the next commit, or the next day."""
        self.recent[key] = found
        self.recent.move_to_end(key)
        if len(self.recent) > self.RECENT:
            self.recent.popitem(last=False)

    @staticmethod
    def _next(
        slices: Iterator[tuple[Status, list[bytes]]],
    ) -> tuple[Status, list[bytes]] | None:
        with reading():  # any of the threads may come next, each has its own connection
            return next(slices, None)

    def _slices(
        self, ctx: Context, request: Request, core: Core
    ) -> Iterator[tuple[Status, list[bytes]]]:
        """The status of all answers with each slice of them; in a reader's thread."""
        rules = self.access()
        device = rules.device(ctx.actor.name)
        search = self.search(ctx, request, SEARCHED[core])
        zone = f"{ctx.local_now():%z}"
        key = core, request.data, search.explicit, device and device.name, rules.version, zone
        view = WorklistView.of(ctx, device) if core is find_worklist else WorklistView()
        for answers in core(ctx, search, self.cache, key, view):
            yield search.status, answers

    def search(self, ctx: Context, request: Request, table: AttributeTable) -> Search:
        """Compile the identifier of a C-FIND. Refuses A900."""
        device = self.access().device(ctx.actor.name)
        if not request.data:
            raise Refusal(Status.IDENTIFIER_DOES_NOT_MATCH, "There is no identifier")
        try:
            self.decode(ctx, request)
        except Refusal as refusal:
            raise Refusal(Status.IDENTIFIER_DOES_NOT_MATCH, refusal.detail) from None
        explicit, index = request.context.explicit, request.index
        style = style_of(device, self._answer_set(ctx, device, request.asked))
        if request.asked is not None:
            asked = ElementIndex(encode_element(SPECIFIC_CHARACTER_SET, b"CS", b""))
            index = ElementIndex(asked.merged(index))
        extra = {0x00080201: self._timezone(ctx, explicit)}
        return Search(index, table, explicit, style._replace(zone=ctx.config.zone), extra)

    @staticmethod
    def _answer_set(
        ctx: Context, device: Device | None, asked: tuple[str, ...] | None
    ) -> CharacterSet:
        """The set of an answer: the device's, else the request's, else the default (UTF-8)."""
        if device and device.character_set:
            return character_set(device.character_set)
        if asked and (known := character_set(asked)):
            return known
        return character_set(ctx.config.dicom.character_set or ("ISO_IR 192",))

    @staticmethod
    def _timezone(ctx: Context, explicit: bool) -> bytes:
        value = f"{ctx.local_now():%z}".encode()[:5]
        return to_syntax(encode_element(0x00080201, b"SH", value), explicit)


# 18. DICOMWEB ---------------------------------------------------------------------------------
#
# Door 2: DICOMweb, the JSON API, and the web server that it shares with the pages: uvicorn's HTTP protocol in
# our own event loop, bottle's routes behind it in threads, the page's event stream beside them.
# Source: PS3.18 8 and annex F.
# For others: ROUTES, DICOM_ROUTES, Web, WebServer, Changes.


class Route(NamedTuple):
    """A path of the API: who may call it and what it answers with."""

    method: str
    path: str
    function: Callable[..., Any]
    role: str
    success: int
    meaning: str


class Web:
    """What the routes and pages work with.

    context  gives a Context for an Actor
    access   gives the AccessRules of the moment
    writer   the store's one writer
    box      the appliance: health(), metrics(), notices(), reload_access(), control (the secret of
             commands beside it), associations, dimse, wake_delivery()
    """

    def __init__(
        self,
        config: Config,
        context: Callable[[Actor], Context],
        access: Callable[[], AccessRules],
        writer: Writer,
        box: Any,
    ) -> None:
        self.config, self.context, self.access = config, context, access
        self.writer, self.box = writer, box
        self.static = find_static()

    def write(self, core: Core, ctx: Context, *arguments: Any) -> Any:
        """Call a core function in the store thread and wait for its commit."""
        try:
            return self.writer.submit(core, ctx, *arguments).result(60)
        finally:
            self.box.wake_delivery()

    @staticmethod
    def read(core: Core, *arguments: Any) -> Any:
        """Call a core function that only reads."""
        with reading():
            return core(*arguments)


def find_static() -> Path | None:
    """The folder of style, script and catalogues, beside this file; None for a lone minris.py."""
    here = Path(__file__).resolve().parent
    return next((d for d in (here / "static", here / "minris_static") if d.is_dir()), None)


def client_address(request: Any) -> str:
    """Where a request comes from: the peer of the connection, never a header."""
    return request.environ.get("REMOTE_ADDR", "")


FORWARDING_HEADERS = frozenset(
    "forwarded via x-real-ip x-forwarded-for x-forwarded-host x-forwarded-proto".split()
)


def find_login(web: Web, request: Any) -> Login | None:
    """Who a request comes from: a bearer token, a session, or loopback where that is allowed."""
    kind, _, secret = request.get_header("Authorization", "").partition(" ")
    ctx = web.context(Actor("web"))
    if kind.lower() == "bearer" and secret:
        if holds_control(web, request):
            return Login("console", "admin")
        return web.read(find_token, secret.strip())
    if cookie := request.get_cookie("minris"):
        return web.read(find_session, ctx, cookie)
    if web.config.web.anonymous_loopback and not web.config.web.public_url:
        forwarded = FORWARDING_HEADERS.intersection(name.lower() for name in request.headers)
        host = urllib.parse.urlsplit(f"//{request.get_header('Host', '')}").hostname
        check_origin(web, request)
        path = request.path.startswith(("/api/", "/dicom-web/"))
        ours = {client_address(request), host} <= {"127.0.0.1", "::1", "localhost"}
        if path and not forwarded and ours:
            return Login("loopback", "admin")
    return None


def check_origin(web: Web, request: Any) -> None:
    """Refuse (0124) a request that another site had a browser send."""
    origin = request.get_header("Origin")
    if origin and origin != "null":
        host = urllib.parse.urlsplit(origin).netloc
        ours = {request.get_header("Host"), urllib.parse.urlsplit(web.config.web.public_url).netloc}
        if host in ours:
            return
    elif not origin and request.get_header("Sec-Fetch-Site", "none") in ("none", "same-origin"):
        return
    raise Refusal(Status.NOT_AUTHORIZED, Message("The request comes from another site"))


def check_csrf(login: Login, request: Any) -> None:
    """Refuse (0124) a change without the token of its session."""
    given = request.get_header("X-CSRF-Token") or request.forms.getunicode("csrf") or ""
    if login.csrf and not hmac.compare_digest(given.encode(), login.csrf.encode()):
        raise Refusal(Status.NOT_AUTHORIZED, Message("The form is too old: load the page anew"))


def enter(web: Web, request: Any, least: str) -> tuple[Login, Context]:
    """The login of a request that may do what `least` may. Refuses 0124; 401 where there is none."""
    login = find_login(web, request)
    if not login:
        raise HttpRefusal(401, Message("Log in first"), Status.NOT_AUTHORIZED)
    if not permit(login.role, least):
        raise Refusal(Status.NOT_AUTHORIZED, Message("Your role may not do this"))
    if request.method not in ("GET", "HEAD") and login.csrf:
        check_origin(web, request)
        check_csrf(login, request)
    return login, web.context(Actor(login.name, client_address(request), login.role))


def check_speaker(login: Login, ae_title: str) -> None:
    """Refuse (0124) to let a login subscribe an AE, or hear of it, that it does not speak for."""
    if not login.speaks_for(ae_title):
        words = Message("This login does not speak for {ae}", ae=ae_title)
        raise Refusal(Status.NOT_AUTHORIZED, words)


def body_of(request: Any) -> bytes:
    """The whole body without its Content-Encoding; bounded. Refuses 400, 413, 415."""
    body: bytes = request.body.read()
    request.body.seek(0)
    encoding = request.get_header("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise HttpRefusal(415, "Of content encodings, gzip is taken")
    unzip, most = zlib.decompressobj(zlib.MAX_WBITS | 16), request.environ["minris.maximum_body"]
    try:
        found = unzip.decompress(body, most + 1)
    except zlib.error:
        raise HttpRefusal(400, "The body is not gzip") from None
    if len(found) > most:
        raise HttpRefusal(413, "Larger than this system takes")
    if not unzip.eof or unzip.unused_data:
        raise HttpRefusal(400, "The body is gzip that breaks off, or more than that")
    return found


def check_json_type(request: Any) -> None:
    """Refuse (0212, HTTP 415) a body that does not say it is DICOM JSON."""
    kind = (request.content_type or "").partition(";")[0].strip().lower()
    if kind not in ("application/dicom+json", "application/json"):
        raise Refusal(Status.MISTYPED_ARGUMENT, f"{kind or 'no content type'} is not DICOM JSON")


def as_json(*data: bytes) -> list[dict[str, Any]]:
    """Stored data sets as DICOM JSON."""
    return [to_json(ElementIndex(one)) for one in data]


def api_schedule(web: Web, request: Any, ctx: Context) -> list[dict[str, Any]]:
    """POST /api/worklist: one item or an array, all or none."""
    check_json_type(request)
    same_id = request.query.get("patient", "refuse")
    if same_id not in ("refuse", "update", "separate"):
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, "patient is not refuse, update or separate")
    items = items_from_json(body_of(request))

    def schedule_all(ctx: Context) -> list[bytes]:
        stored: list[bytes] = []
        for number, item in enumerate(items, 1):
            try:
                stored += schedule(ctx, item, same_id)
            except Refusal as refusal:
                raise (numbered(refusal, number) if len(items) > 1 else refusal) from None
        return stored

    return as_json(*web.write(schedule_all, ctx))


def api_list(web: Web, request: Any, ctx: Context) -> list[dict[str, Any]]:
    """GET /api/worklist?date=YYYYMMDD: the steps of a day, in every state."""
    date = request.query.get("date") or ctx.today()
    if words := value_problem("DA", date):
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words)
    return as_json(*web.read(data_of_day, date))


def api_get(web: Web, request: Any, ctx: Context, study: str, step: str) -> list[dict[str, Any]]:
    """GET /api/worklist/…: one step."""
    return as_json(web.read(step_data, study, step))


def api_put(web: Web, request: Any, ctx: Context, study: str, step: str) -> list[dict[str, Any]]:
    """PUT /api/worklist/…: change what is given."""
    check_json_type(request)
    items = items_from_json(body_of(request))
    if len(items) != 1:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, "One data set is expected")
    return as_json(web.write(reschedule, ctx, study, step, items[0]))


def api_delete(web: Web, request: Any, ctx: Context, study: str, step: str) -> list[dict[str, Any]]:
    """DELETE /api/worklist/…: cancel; nothing is erased."""
    reason = request.query.getunicode("reason") or ""
    return as_json(web.write(cancel_step, ctx, study, step, reason))


STEP_PATH = "/api/worklist/<study:re:[0-9.]+>/<step:path>"
ROUTES = (
    Route("POST", "/api/worklist", api_schedule, "desk", 201, "schedule items"),
    Route("GET", "/api/worklist", api_list, "desk", 200, "the steps of a day"),
    Route("GET", STEP_PATH, api_get, "desk", 200, "one step"),
    Route("PUT", STEP_PATH, api_put, "desk", 200, "change a step"),
    Route("DELETE", STEP_PATH, api_delete, "desk", 200, "cancel a step"),
)


def problem_json(refusal: Refusal) -> dict[str, Any]:
    """A refusal as the API tells it."""
    return {
        "status": f"{refusal.status:04X}",
        "error": refusal.detail,
        "problems": [
            {"attribute": f"{p.tag:08X}", "name": attribute_name(p.tag), "text": str(p.words)}
            for p in refusal.problems
            if p.tag
        ],
    }


class HttpRefusal(Refusal):
    """A refusal that DIMSE has no status of its own for."""

    def __init__(
        self, http: int, detail: str, status: Status = Status.INVALID_ARGUMENT_VALUE
    ) -> None:
        super().__init__(status, detail)
        self.http = http


def http_status(operation: str, refusal: Refusal) -> int:
    """The HTTP code of a refusal."""
    if isinstance(refusal, HttpRefusal):
        return refusal.http
    return outcome(operation, refusal.status).http


def add_api(app: Any, web: Web) -> None:
    """Put the routes of the API and /healthz into a bottle application."""
    import bottle

    def answer(route: Route) -> Callable[..., str]:
        @functools.wraps(route.function)
        def view(**arguments: str) -> str:
            response = bottle.response
            response.content_type = "application/dicom+json; charset=UTF-8"
            try:
                _, ctx = enter(web, bottle.request, route.role)
                result = route.function(web, bottle.request, ctx, **arguments)
                response.status = route.success
                return json.dumps(result, ensure_ascii=False)
            except Refusal as refusal:
                operation = route.function.__name__.removeprefix("api_")
                response.status = http_status(operation, refusal)
                response.content_type = "application/json"
                if response.status_code == 401:
                    response.set_header("WWW-Authenticate", 'Bearer realm="minris"')
                text = outcome(operation, refusal.status).text
                response.set_header("Warning", f'299 minris: "{text}"')
                return json.dumps(problem_json(refusal), ensure_ascii=False)

        return view

    for route in ROUTES:
        app.route(route.path, route.method, answer(route), name=None)

    @app.get("/healthz")
    def healthz() -> str:
        checks = web.box.health()
        good = not any(checks.values())
        bottle.response.status = 200 if good else 503
        bottle.response.content_type = "application/json"
        shown = {name: problem or "ok" for name, problem in checks.items()}
        return json.dumps({"status": "ok" if good else "failing", **shown})

    @app.get("/metrics")
    def metrics() -> str:
        bottle.response.content_type = "text/plain; version=0.0.4; charset=utf-8"
        return "".join(f"{name} {value!r}\n" for name, value in web.box.metrics().items())


# DICOMweb: workitems (PS3.18 11), scheduled and performed procedure steps (14, 15).

BASE = "/dicom-web"
DICOM_JSON, DICOM_XML = "application/dicom+json", "application/dicom+xml"
MEDIA_TYPES = {  # what is accepted, and how it is answered: form, whether in parts
    DICOM_JSON: (DICOM_JSON, False),
    "application/json": (DICOM_JSON, False),
    DICOM_XML: (DICOM_XML, False),
    f"multipart/related; {DICOM_JSON}": (DICOM_JSON, True),
    f"multipart/related; {DICOM_XML}": (DICOM_XML, True),
}
DEFAULT_MEDIA_TYPE = MEDIA_TYPES[DICOM_JSON]


class WebAnswer(NamedTuple):
    """What a transaction is answered with: the code, data sets in the stored form, headers."""

    http: int
    data: tuple[bytes, ...] | None = None
    headers: tuple[tuple[str, str], ...] = ()


def media_type(text: str) -> str:
    """A media type as a key of MEDIA_TYPES: in lower case, of its parameters the type of parts."""
    kind, *parameters = (part.strip() for part in text.split(";"))
    found = dict(p.lower().replace('"', "").partition("=")[::2] for p in parameters)
    if kind.lower() == "multipart/related":
        return f"multipart/related; {found.get('type', DICOM_JSON).strip()}"
    return kind.lower()


def accepted_form(header: str, parameter: str) -> tuple[str, bool]:
    """The form of an answer. Refuses 406; local: no Accept header is any (PS3.18 8.7.4, 8.7.7)."""
    if parameter:
        parameter = parameter.replace("dicom ", "dicom+")  # of a + that was not escaped
        wanted = [MEDIA_TYPES.get(media_type(one)) for one in split_list(parameter)]
        return next(filter(None, wanted), DEFAULT_MEDIA_TYPE)
    ranked = []
    for place, one in enumerate(split_list(header or "*/*")):
        quality = re.search(r";\s*q=([0-9.]+)", one)
        try:
            weight = float(quality[1]) if quality else 1.0
        except ValueError:
            weight = 0.0
        any_type = media_type(one) in ("*/*", "application/*")
        form = DEFAULT_MEDIA_TYPE if any_type else MEDIA_TYPES.get(media_type(one))
        if form and weight > 0:
            ranked.append((-weight, place, form))
    if not ranked:
        raise HttpRefusal(406, f"None of {header[:100]} is answered; {DICOM_JSON} is")
    return min(ranked)[2]


def split_list(text: str) -> list[str]:
    """The members of a comma-separated list, commas within quotes left alone."""
    return [one.strip() for one in re.findall(r'(?:[^,"]|"[^"]*")+', text) if one.strip()]


def rendered(data: tuple[bytes, ...], form: str, in_parts: bool) -> tuple[str, bytes]:
    """Content type and body of data sets."""
    values = [to_json(ElementIndex(one)) for one in data]
    if form == DICOM_XML:
        bodies = [to_xml(value) for value in values]
        in_parts = in_parts or len(bodies) != 1
    else:
        bodies = [json.dumps(values, ensure_ascii=False).encode()]
    if not in_parts:
        return f"{form}{'' if form == DICOM_XML else '; charset=UTF-8'}", bodies[0]
    boundary = secrets.token_hex(16)
    parts = [
        f"--{boundary}\r\nContent-Type: {form}\r\n\r\n".encode() + body + b"\r\n" for body in bodies
    ]
    head = f'multipart/related; type="{form}"; boundary={boundary}'
    return head, b"".join(parts) + f"--{boundary}--\r\n".encode()


def payload(request: Any) -> list[bytes]:
    """The data sets of a request's body, stored form. Refuses 415 and, with words, 400."""
    header = request.content_type or ""
    kind, content = media_type(header), body_of(request)
    if kind not in MEDIA_TYPES:
        raise Refusal(
            Status.MISTYPED_ARGUMENT,
            f"{kind[:80] or 'A body without content type'} is not taken; {DICOM_JSON} is",
        )
    form, in_parts = MEDIA_TYPES[kind]
    charset = re.search(r';\s*charset="?([^";]+)', header, re.IGNORECASE)
    if charset and charset[1].strip().lower() not in ("utf-8", "utf8", "us-ascii"):
        raise Refusal(Status.MISTYPED_ARGUMENT, f"charset {charset[1][:40]} is not taken; UTF-8 is")
    if not in_parts:
        return data_sets_of(content, form)
    import email.parser

    head = f"Content-Type: {header}\r\n\r\n".encode("latin-1", "replace")
    message = email.parser.BytesParser().parsebytes(head + content)
    if not message.is_multipart():
        raise HttpRefusal(400, "The body has no parts")
    bodies = (part.get_payload(decode=True) or b"" for part in message.get_payload())
    return [data for body in bodies for data in data_sets_of(body, form)]


def data_sets_of(content: bytes, form: str) -> list[bytes]:
    """The data sets of one part. Refuses 0106."""
    if form == DICOM_XML:
        return [from_json(from_xml(content))]
    return items_from_json(content)


def one_data_set(request: Any) -> bytes:
    """The one data set of a request's body. Refuses 0106 where there are none or several."""
    data = payload(request)
    if len(data) != 1:
        raise HttpRefusal(400, f"One data set is expected, not {len(data)}")
    return data[0]


# The Native DICOM Model of PS3.19 A.1, by way of the JSON model.

NAME_PARTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")


def to_xml(value: Mapping[str, Any]) -> bytes:
    """An object of the DICOM JSON Model as a document of the Native DICOM Model."""
    from xml.etree import ElementTree

    root = ElementTree.Element("NativeDicomModel", {"xml:space": "preserve"})
    _xml_data_set(root, value)
    # a parser reads CR LF, and CR alone, as LF unless it is written as a reference (XML 1.0 2.11)
    return ElementTree.tostring(root, "utf-8", xml_declaration=True).replace(b"\r", b"&#13;")


def _xml_text(text: str) -> str:
    """A text less the characters that XML does not have (XML 1.0 2.2)."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def is_creator(key: str) -> bool:
    """Whether a tag is where a block of a private group is reserved (PS3.5 7.8.1)."""
    return re.fullmatch(r"[0-9A-F]{3}[13579BDF]00[1-9A-F][0-9A-F]", key) is not None


def _private_creators(value: Mapping[str, Any]) -> dict[str, str]:
    """Who has which block, by the tag that reserves it; less those with several blocks of a group."""
    found: dict[tuple[str, str], list[str]] = {}
    for key in filter(is_creator, value):
        for name in value[key].get("Value", [])[:1]:
            if isinstance(name, str):
                found.setdefault((key[:4], _xml_text(name)), []).append(key)
    return {keys[0]: name for (_, name), keys in found.items() if len(keys) == 1}


def _xml_names(key: str, creators: Mapping[str, str]) -> dict[str, str]:
    """How an attribute is named: a private one gggg00ee, with its creator (PS3.19 A.1.5)."""
    tag = int(key, 16)
    if datadict.dictionary_has_tag(tag):
        return {"tag": key, "keyword": datadict.dictionary_keyword(tag)}
    creator = creators.get(f"{key[:4]}00{key[4:6]}")
    return {"tag": f"{key[:4]}00{key[6:]}", "privateCreator": creator} if creator else {"tag": key}


def _xml_data_set(parent: Any, value: Mapping[str, Any]) -> None:
    from xml.etree.ElementTree import SubElement

    creators = _private_creators(value)
    for key, member in value.items():
        names = _xml_names(key, creators) | {"vr": member["vr"]}
        element = SubElement(parent, "DicomAttribute", names)
        if "InlineBinary" in member:
            SubElement(element, "InlineBinary").text = member["InlineBinary"]
        for number, one in enumerate(member.get("Value", []), 1):
            if member["vr"] == "SQ":
                _xml_data_set(SubElement(element, "Item", number=str(number)), one or {})
            elif member["vr"] == "PN":
                _xml_name(SubElement(element, "PersonName", number=str(number)), one or {})
            else:
                text = "" if one is None else _xml_text(str(one))
                SubElement(element, "Value", number=str(number)).text = text


def _xml_name(element: Any, groups: Mapping[str, str]) -> None:
    from xml.etree.ElementTree import SubElement

    for group in NAME_GROUPS:
        if text := groups.get(group):
            parent = SubElement(element, group)
            for name, part in zip(NAME_PARTS, text.split("^", 4), strict=False):
                if part:
                    SubElement(parent, name).text = _xml_text(part)


def from_xml(content: bytes) -> dict[str, Any]:
    """A document of the Native DICOM Model as an object of the JSON Model. Refuses 400 with the line."""
    import xml.parsers.expat
    from xml.etree.ElementTree import TreeBuilder

    builder, depth = TreeBuilder(), 0
    parser = xml.parsers.expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise HttpRefusal(400, f"line {parser.CurrentLineNumber}: a document type is not taken")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > 64:
            raise HttpRefusal(400, f"line {parser.CurrentLineNumber}: nested too deep")
        builder.start(tag.rpartition(":")[2], attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag.rpartition(":")[2])

    parser.StartDoctypeDeclHandler = refuse  # no entities, whatever they are for
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
        root = builder.close()
    except xml.parsers.expat.ExpatError as error:
        raise HttpRefusal(400, f"line {error.lineno}: not well-formed XML") from None
    except (ValueError, LookupError):  # of the encoding that its first line declares
        raise HttpRefusal(400, "line 1: its encoding is not taken") from None
    if root.tag != "NativeDicomModel":
        raise HttpRefusal(400, f"line 1: {root.tag[:40]} is not NativeDicomModel")
    return _xml_members(root)


def _xml_children(parent: Any, *names: str) -> list[Any]:
    """The elements in another. Refuses 400 for other ones, and for text beside them."""
    tag = parent.get("tag") or parent.tag
    for child in parent:
        if child.tag not in names:
            raise HttpRefusal(400, f"{tag[:40]}: {child.tag[:40]} is not expected")
    if "".join([parent.text or "", *(child.tail or "" for child in parent)]).strip():
        raise HttpRefusal(400, f"{tag[:40]}: there is text outside of a value")
    return list(parent)


def _xml_members(parent: Any) -> dict[str, Any]:
    elements = _xml_children(parent, "DicomAttribute")
    blocks = _Blocks(elements)
    found: dict[str, Any] = {}
    for element in elements:
        key = element.get("tag") or element.get("keyword") or "?"
        key = blocks.tag(key, element.get("privateCreator"))
        if key in found:
            raise HttpRefusal(400, f"{key[:40]} is there twice")
        found[key] = _xml_member(element, key)
    return found | blocks.made


def _xml_member(element: Any, key: str) -> dict[str, Any]:
    member: dict[str, Any] = {"vr": element.get("vr")}
    for one in _xml_children(element, "Value", "Item", "PersonName", "InlineBinary", "BulkData"):
        if one.tag in ("InlineBinary", "BulkData"):
            name = "InlineBinary" if one.tag == "InlineBinary" else "BulkDataURI"
            if name in member:
                raise HttpRefusal(400, f"{key[:40]} has {one.tag} twice")
            member[name] = "".join((one.text or "").split()) or one.get("uri", "")
            continue
        values = member.setdefault("Value", [])
        number = one.get("number", str(len(values) + 1))
        if number != str(len(values) + 1):
            raise HttpRefusal(
                400, f"{key[:40]}: {one.tag} {number[:20]!r} is to be {len(values) + 1}"
            )
        values.append(_xml_value(one))
    return member


class _Blocks:
    """The blocks that private creators have in a data set (PS3.5 7.8.1, PS3.19 A.1.5).

    made    what reserves those that it did not have
    """

    def __init__(self, elements: list[Any]) -> None:
        self.made: dict[str, Any] = {}
        self.owners: dict[str, str] = {}
        self.blocks: dict[tuple[str, str], str] = {}
        for element in elements:
            key = (element.get("tag") or "").upper()
            if is_creator(key) and not element.get("privateCreator"):
                self._reserve(key, (element.findtext("Value") or "").strip())

    def _reserve(self, key: str, creator: str) -> None:
        self.owners[key] = creator
        self.blocks.setdefault((key[:4], creator), key[6:])

    def tag(self, key: str, creator: str | None) -> str:
        """The tag of an element, in the block of its creator. Refuses 400 where none is free."""
        creator = (creator or "").strip()
        if not creator or not re.fullmatch(r"[0-9A-Fa-f]{3}[13579BDFbdf][0-9A-Fa-f]{4}", key):
            return key
        key = key.upper()
        group, block = key[:4], key[4:6]
        if block == "00":
            free = (
                f"{n:02X}" for n in range(0x10, 0x100) if f"{group}00{n:02X}" not in self.owners
            )
            block = self.blocks.get((group, creator)) or next(free, "")
        owner = f"{group}00{block}"
        if not is_creator(owner) or self.owners.get(owner, creator) != creator:
            raise HttpRefusal(400, f"{key}: there is no block for {creator[:64]!r}")
        if owner not in self.owners:
            self._reserve(owner, creator)
            self.made[owner] = {"vr": "LO", "Value": [creator]}
        return f"{group}{block}{key[6:]}"


def _xml_value(element: Any) -> Any:
    if element.tag == "Item":
        return _xml_members(element)
    if element.tag == "Value":
        if len(element):
            raise HttpRefusal(400, f"Value: {element[0].tag[:40]} is not expected")
        return element.text or ""
    groups = {}
    for group in _xml_children(element, *NAME_GROUPS):
        parts = {part.tag: part.text or "" for part in _xml_children(group, *NAME_PARTS)}
        groups[group.tag] = "^".join(parts.get(name, "") for name in NAME_PARTS).rstrip("^")
    return groups


# What a search asks for (PS3.18 8.3.4).

FLAGS = ("fuzzymatching", "emptyvaluematching", "multiplevaluematching")
LITERAL_ONLY = (
    "The fuzzymatching parameter is not supported. Only literal matching has been performed.",
    "The emptyvaluematching parameter is not supported."
    " Empty Value Matching has not been performed.",
    "The multiplevaluematching parameter is not supported."
    " Multiple Value Matching has not been performed.",
)


def query_parameters(request: Any) -> list[tuple[str, str]]:
    """Names and raw values of the query, split before they are decoded."""
    parts = (part.partition("=") for part in request.query_string.split("&") if part)
    return [(urllib.parse.unquote(name), value) for name, _, value in parts]


def parameter(request: Any, name: str) -> str:
    """The decoded value of a parameter, empty where it is not given. Refuses 400 for two."""
    found = [value for key, value in query_parameters(request) if key == name]
    if len(found) > 1:
        raise HttpRefusal(400, f"{name} is given twice")
    return urllib.parse.unquote_plus(found[-1]) if found else ""


def flag(request: Any, name: str) -> bool:
    """A parameter that is true or false. Refuses 400."""
    text = parameter(request, name) or "false"
    if text not in ("true", "false"):
        raise HttpRefusal(400, f"{name} is true or false")
    return text == "true"


def number(request: Any, name: str) -> int | None:
    """A parameter that is a whole number. Refuses 400."""
    text = parameter(request, name)
    if text and not re.fullmatch(r"[0-9]{1,9}", text):
        raise HttpRefusal(400, f"{name} is a whole number")
    return int(text) if text else None


@functools.lru_cache(maxsize=1)
def known_keywords() -> frozenset[str]:
    """Every keyword of the dictionary in lower case, to tell a slip from what is to be ignored."""
    return frozenset(entry[4].lower() for entry in datadict.DicomDictionary.values() if entry[4])


def attribute_path(name: str) -> tuple[int, ...] | None:
    """The tags of a name such as `ReferencedRequestSequence.AccessionNumber`, None for another word.

    Refuses 400 for what looks like an attribute and is none, or has another case than its keyword
    """
    first = name.partition(".")[0]
    looks = re.fullmatch(r"[A-Z]\w*|[0-9A-Fa-f]{8}", first) or first.lower() in known_keywords()
    if not looks:
        return None
    tags = []
    for one in name.split("."):
        tag = (
            int(one, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", one) else datadict.tag_for_keyword(one)
        )
        if tag is None or not tag >> 16:
            raise HttpRefusal(400, f"{name[:80]} is not an attribute")
        tags.append(tag)
    return tuple(tags)


def match_keys(parameters: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The keys of a search as an object of the JSON Model. Refuses 400."""
    keys: dict[str, Any] = {}
    for name, raw in parameters:
        path = attribute_path(name)
        if path is None:
            continue
        level = keys
        for tag in path[:-1]:
            if vr_of(tag) != "SQ":
                raise HttpRefusal(400, f"{name[:80]} leads through what is no sequence")
            member = level.setdefault(f"{tag:08X}", {"vr": "SQ", "Value": [{}]})
            level = member["Value"][0]
        key, vr = f"{path[-1]:08X}", vr_of(path[-1])
        if key in level:
            raise HttpRefusal(400, f"{name[:80]} is given twice")
        signed = vr == "DT" or path[-1] == TIMEZONE_OFFSET  # +0800
        decode = urllib.parse.unquote if signed else urllib.parse.unquote_plus
        texts = re.split(r"[,\\]", decode(raw)) if vr == "UI" else [decode(raw)]
        level[key] = {"vr": vr, "Value": [text for text in texts if text]}
    return keys


def returned_keys(request: Any, table: AttributeTable, keys: Mapping[str, Any]) -> dict[str, Any]:
    """What a search gives of each match: return types 1 and 2, what was matched, includefield."""
    wanted = [one for name, one in query_parameters(request) if name == "includefield"]
    names = [name for one in wanted for name in split_list(urllib.parse.unquote_plus(one))]
    if "all" in names and len(names) > 1:
        raise HttpRefusal(400, "includefield is all, or attributes")
    kinds = ("1", "1C", "2", "2C", "3") if names == ["all"] else ("1", "1C", "2", "2C")
    tags = {one.tag for one in table.children() if one.cells["return"] in kinds}
    tags |= {int(key, 16) for key in keys}
    for name in names if names != ["all"] else []:
        path = attribute_path(name)
        if path is None:
            raise HttpRefusal(400, f"{name[:80]} is not an attribute")
        tags.add(path[0])
    return {f"{tag:08X}": {"vr": vr_of(tag)} for tag in sorted(tags)}


def search_web(
    web: Web,
    request: Any,
    ctx: Context,
    table: AttributeTable,
    page: Callable[..., tuple[list[bytes], int]],
) -> WebAnswer:
    """The matches of a search, a page of them (PS3.18 8.3.4.4)."""
    keys = match_keys(query_parameters(request))
    style = AnswerStyle(zone=ctx.config.zone)
    asked = ElementIndex(from_json(keys))
    search = Search(in_own_zone(asked), table, True, style)
    returned = from_json(returned_keys(request, table, keys))
    shape = Search(ElementIndex(returned), table, True, style)
    offset, limit = number(request, "offset") or 0, number(request, "limit")
    most = ctx.config.dicom.answer_limit
    limit = most if limit is None else min(limit, most)
    warnings = [text for name, text in zip(FLAGS, LITERAL_ONLY, strict=True) if flag(request, name)]
    if search.unmatched:
        names = ", ".join(datadict.keyword_for_tag(tag) or f"{tag:08X}" for tag in search.unmatched)
        warnings.append(f"Not supported for matching: {names}")
    zone = asked.text(TIMEZONE_OFFSET)
    if table is MWL_ATTRIBUTES and zone and zone != f"{ctx.local_now():%z}":
        warnings.append(
            "TimezoneOffsetFromUTC does not apply to dates and times without an offset."
        )

    found, count = web.read(page, ctx, search, shape, offset, limit)
    if (left := count - offset - len(found)) > 0:
        warnings.append(f"There are {left} additional results that can be requested")
    headers = tuple(warning(web, request, text) for text in warnings)
    return WebAnswer(200 if found else 204, tuple(found) if found else None, headers)


def service_url(web: Web, request: Any) -> str:
    """The base of the service as the caller sees it; `[web] public_url` behind a proxy."""
    public = web.config.web.public_url.rstrip("/")
    parts = request.urlparts
    return f"{public or f'{parts.scheme}://{parts.netloc}'}{BASE}"


def is_told_by_dimse_alone(web: Web, ae_title: str) -> bool:
    """Whether the device of an AE title says that it is not told by WebSocket."""
    device = web.access().device(ae_title)
    return bool(device) and device.events == EVENT_CHANNELS[0]


def socket_url(web: Web, request: Any, ae_title: str) -> str:
    """Where the events of an AE are to be had (PS3.18 11.10.3.2): ws or wss, as http or https."""
    base = "ws" + service_url(web, request).removeprefix("http")
    return f"{base}/subscribers/{urllib.parse.quote(ae_title, safe='')}"


def warning(web: Web, request: Any, text: str) -> tuple[str, str]:
    """A Warning header (PS3.18 11.4.3 and others)."""
    return "Warning", f"299 {service_url(web, request)}: {text}"


def warned(web: Web, request: Any, http: int, status: Status) -> WebAnswer:
    """Success, with its warning where there is one."""
    text = WARNINGS.get(status)
    return WebAnswer(http, None, (warning(web, request, text),) if text else ())


# The transactions.


def is_uid(name: str) -> bool:
    """Whether the name of a parameter is a UID that stands alone."""
    return re.fullmatch(r"[0-9]+(\.[0-9]+)+", name) is not None


LOCK_PARAMETERS = {"transaction-uid", "transaction", "transactionuid", "00081195"}


def web_create(web: Web, request: Any, ctx: Context) -> WebAnswer:
    """POST /workitems: UID as ?workitem=, as the bare query, or in the data set (PS3.18 11.4)."""
    data = one_data_set(request)
    names = ("workitem", "AffectedSOPInstanceUID")
    given = {parameter(request, name) for name in names}
    given |= {name for name, _ in query_parameters(request) if is_uid(name)}
    given = (given | {ElementIndex(data).get("SOPInstanceUID")}) - {""}
    if len(given) > 1:
        raise HttpRefusal(400, "Two different UIDs are given")
    uid, _ = web.write(create_workitem, ctx, "".join(given), data)
    return WebAnswer(201, None, (("Location", f"{service_url(web, request)}/workitems/{uid}"),))


def web_retrieve(web: Web, request: Any, ctx: Context, uid: str) -> WebAnswer:
    """GET /workitems/…: without its Transaction UID (PS3.18 11.5)."""
    return WebAnswer(200, (web.read(get_workitem, uid)[1],))


def web_update(web: Web, request: Any, ctx: Context, uid: str) -> WebAnswer:
    """POST /workitems/…: the lock as a parameter in any of its spellings, or inside (PS3.18 11.6)."""
    index = ElementIndex(one_data_set(request))
    given = {urllib.parse.unquote(value) for name, value in query_parameters(request)
             if name.lower() in LOCK_PARAMETERS}  # fmt: skip
    given |= {name for name, _ in query_parameters(request) if is_uid(name)}
    given = (given | {index.text(TRANSACTION_UID)}) - {""}
    if len(given) > 1:
        raise HttpRefusal(400, "Two different Transaction UIDs are given")
    lock = text_elements(TransactionUID="".join(given)) if given else EMPTY
    merged = ElementIndex(index.without([TRANSACTION_UID])).merged(lock)
    return warned(web, request, 200, web.write(update_workitem, ctx, uid, merged))


def web_change_state(
    web: Web, request: Any, ctx: Context, uid: str, requester: str = ""
) -> WebAnswer:
    """PUT /workitems/…/state: state and lock in the body (PS3.18 11.7)."""
    index = ElementIndex(one_data_set(request))
    state = index.text(UPS_STATE) if UPS_STATE in index else None
    lock = index.text(TRANSACTION_UID)
    ctx = asked_by(request, ctx, requester)
    return warned(web, request, 200, web.write(change_state, ctx, uid, state, lock))


def web_cancel(web: Web, request: Any, ctx: Context, uid: str, requester: str = "") -> WebAnswer:
    """POST /workitems/…/cancelrequest: reason and contact in the body, if any (PS3.18 11.8)."""
    data = one_data_set(request) if body_of(request).strip() else b""
    ctx = asked_by(request, ctx, requester)
    return warned(web, request, 202, web.write(request_cancel, ctx, uid, data))


def asked_by(request: Any, ctx: Context, path: str) -> Context:
    """The context of the AE that asks: ?requester= or a part of the path. Refuses 400."""
    title = (path or parameter(request, "requester")).strip()
    if value_problem("AE", title):
        raise HttpRefusal(400, "requester is not an AE title")
    return ctx.by(ctx.actor._replace(name=title)) if title else ctx


def web_search(web: Web, request: Any, ctx: Context) -> WebAnswer:
    """GET /workitems: search (PS3.18 11.9)."""
    return search_web(web, request, ctx, UPS_ATTRIBUTES, page_of_workitems)


def web_subscribe(web: Web, request: Any, ctx: Context, uid: str, ae_title: str) -> WebAnswer:
    """POST /workitems/…/subscribers/…: with ?deletionlock=, ?filter= (PS3.18 11.10)."""
    keys = b""
    if uid == UPS_FILTERED_SUBSCRIPTION:
        text = parameter(request, "filter")
        pairs = (one.partition("=") for one in split_list(text))
        found = match_keys([(name.strip(), value) for name, _, value in pairs] if text
                           else query_parameters(request))  # fmt: skip
        keys = from_json(found)
    lock = flag(request, "deletionlock")
    status = web.write(subscribe, ctx, uid, ae_title, lock, keys, "websocket")
    answer = warned(web, request, 201, status)
    if is_told_by_dimse_alone(web, ae_title):
        return answer
    socket = socket_url(web, request, ae_title)
    found = (
        ("Content-Location", socket),
        ("Location", socket),
    )  # the latter as dcm4chee-arc has it
    return answer._replace(headers=(*answer.headers, *found))


def web_unsubscribe(web: Web, request: Any, ctx: Context, uid: str, ae_title: str) -> WebAnswer:
    """DELETE /workitems/…/subscribers/…; 404 where there is none (PS3.18 11.11)."""

    def end(ctx: Context) -> None:
        known_subscription(uid, ae_title)
        unsubscribe(ctx, uid, ae_title)

    web.write(end, ctx)
    return WebAnswer(200)


def web_suspend(web: Web, request: Any, ctx: Context, uid: str, ae_title: str) -> WebAnswer:
    """POST /workitems/…/subscribers/…/suspend; 404 where there is none (PS3.18 11.12)."""

    def end(ctx: Context) -> None:
        if uid in WELL_KNOWN_UPS:
            known_subscription(uid, ae_title, single=False)
        suspend_global_subscription(ctx, uid, ae_title)

    web.write(end, ctx)
    return WebAnswer(200)


def web_worklist(web: Web, request: Any, ctx: Context) -> WebAnswer:
    """GET /modality-scheduled-procedure-steps: search, as the worklist's C-FIND (PS3.18 14.4)."""
    return search_web(web, request, ctx, MWL_ATTRIBUTES, page_of_worklist)


def web_mpps(web: Web, request: Any, ctx: Context, uid: str) -> WebAnswer:
    """POST /modality-performed-procedure-steps/…: create, or with ?update change (PS3.18 15.4, 15.5)."""
    data = one_data_set(request)
    if parameter(request, "update"):
        raise HttpRefusal(400, "update has no value")  # PS3.18 15.5.1.2
    if any(name == "update" for name, _ in query_parameters(request)):
        web.write(set_mpps, ctx, uid, data)
        return WebAnswer(200)
    web.write(create_mpps, ctx, uid, data)
    return WebAnswer(201, None, (("Location", f"{service_url(web, request)}{MPPS_PATH}/{uid}"),))


def web_get_mpps(web: Web, request: Any, ctx: Context, uid: str) -> WebAnswer:
    """GET /modality-performed-procedure-steps/… (PS3.18 15.6)."""
    return WebAnswer(200, (web.read(get_mpps, uid)[1],))


class DicomRoute(NamedTuple):
    """A transaction: `operation` is that of OUTCOMES; {…} in the path are its parts.

    success  the codes of success
    body     `one` data set, or `optional`
    query    its parameters beside accept and charset: keys of WEB_PARAMETERS
    """

    method: str
    path: str
    function: Callable[..., WebAnswer]
    operation: str
    role: str
    clause: str
    success: tuple[int, ...] = (200,)
    body: str = ""
    query: tuple[str, ...] = ()


def web_commit(web: Web, request: Any, ctx: Context, uid: str) -> WebAnswer:
    """POST /commitment-requests/…: the references; the result is asked for (PS3.18 13.4)."""
    data = one_data_set(request)
    if TRANSACTION_UID in ElementIndex(data):
        raise HttpRefusal(400, "The transaction UID is in the path alone")
    web.write(request_commitment, ctx, uid, data, "web")
    return WebAnswer(202, None, RETRY_SOON)


def web_commitment(web: Web, request: Any, ctx: Context, uid: str) -> WebAnswer:
    """GET /commitment-requests/…: the result, or 202 while there is none (PS3.18 13.5)."""
    commitment = web.read(commitment_by_uid, uid)
    if commitment.state == "dropped":
        raise HttpRefusal(410, "Its result has been dropped")
    if commitment.state == "asked":
        return WebAnswer(202, None, RETRY_SOON)
    return WebAnswer(200, (web.read(commitment_result, commitment).data,))


RETRY_SOON = (("Retry-After", "5"),)
MPPS_PATH = "/modality-performed-procedure-steps"
SLASH = "%2F"  # a slash of an AE title, which is none of the path
SEARCH_PARAMETERS = ("limit", "offset", "includefield", *FLAGS)
DICOM_ROUTES = (
    DicomRoute("POST", "/workitems", web_create, "create", "desk", "PS3.18 11.4",
               (201,), "one", ("workitem",)),
    DicomRoute("GET", "/workitems", web_search, "search", "desk", "PS3.18 11.9",
               (200, 204), "", SEARCH_PARAMETERS),
    DicomRoute("GET", "/workitems/{uid}", web_retrieve, "retrieve", "desk", "PS3.18 11.5"),
    DicomRoute("POST", "/workitems/{uid}", web_update, "update", "technologist", "PS3.18 11.6",
               (200,), "one", ("transaction-uid",)),
    DicomRoute("PUT", "/workitems/{uid}/state", web_change_state, "change state", "technologist",
               "PS3.18 11.7", (200,), "one", ("requester",)),
    DicomRoute("PUT", "/workitems/{uid}/state/{requester}", web_change_state, "change state",
               "technologist", "PS3.18 11.7", (200,), "one"),
    DicomRoute("POST", "/workitems/{uid}/cancelrequest", web_cancel, "request cancel", "desk",
               "PS3.18 11.8", (202,), "optional", ("requester",)),
    DicomRoute("POST", "/workitems/{uid}/cancelrequest/{requester}", web_cancel, "request cancel",
               "desk", "PS3.18 11.8", (202,), "optional"),
    DicomRoute("POST", "/workitems/{uid}/subscribers/{ae_title}", web_subscribe, "subscribe",
               "desk", "PS3.18 11.10", (201,), "", ("deletionlock", "filter")),
    DicomRoute("DELETE", "/workitems/{uid}/subscribers/{ae_title}", web_unsubscribe, "unsubscribe",
               "desk", "PS3.18 11.11"),
    DicomRoute("POST", "/workitems/{uid}/subscribers/{ae_title}/suspend", web_suspend, "suspend",
               "desk", "PS3.18 11.12"),
    DicomRoute("GET", "/modality-scheduled-procedure-steps", web_worklist, "search", "desk",
               "PS3.18 14.4", (200, 204), "", SEARCH_PARAMETERS),
    DicomRoute("POST", MPPS_PATH + "/{uid}", web_mpps, "update mpps", "technologist",
               "PS3.18 15.4, 15.5", (200, 201), "one", ("update",)),
    DicomRoute("GET", MPPS_PATH + "/{uid}", web_get_mpps, "retrieve mpps", "desk", "PS3.18 15.6"),
    DicomRoute("POST", "/commitment-requests/{uid}", web_commit, "request commitment",
               "technologist", "PS3.18 13.4", (202,), "one"),
    DicomRoute("GET", "/commitment-requests/{uid}", web_commitment, "commitment result", "desk",
               "PS3.18 13.5", (200, 202)),
)  # fmt: skip

WEB_PARAMETERS = {
    name: (kind, meaning)
    for name, kind, meaning in body_rows("""
    name                  | type    | meaning
    accept                | string  | media types of the answer, before the Accept header
    charset               | string  | character sets of the answer, of which UTF-8 must be one
    workitem              | string  | UID of the new workitem; one is made where none is given
    transaction-uid       | string  | the lock of who has claimed the workitem
    requester             | string  | AE title of who asks
    deletionlock          | boolean | whether the workitem is to be kept until the lock is released
    filter                | string  | of a filtered subscription: attribute=value, separated by commas
    update                | flag    | the performed procedure step is changed, not created
    limit                 | integer | most matches to answer with
    offset                | integer | matches to leave out before the first
    includefield          | string  | attributes to answer with beside the usual ones, or all
    fuzzymatching         | boolean | not supported: a Warning says so
    emptyvaluematching    | boolean | not supported: a Warning says so
    multiplevaluematching | boolean | not supported: a Warning says so
    """)
}
MEDIA_TYPES_TOLD = (DICOM_JSON, DICOM_XML, "multipart/related")


def openapi(server: str) -> dict[str, Any]:
    """An OpenAPI 3.1 description of DICOM_ROUTES."""
    paths: dict[str, Any] = {}
    for route in DICOM_ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = described_route(route)
    value = {"type": "object", "required": ["vr"], "properties": {
        "vr": {"type": "string"}, "Value": {"type": "array"},
        "InlineBinary": {"type": "string"}, "BulkDataURI": {"type": "string"}}}  # fmt: skip
    schemas = {
        "DataSets": {"type": "array", "items": {"$ref": "#/components/schemas/DataSet"}},
        "OneDataSet": {"anyOf": [
            {"type": "array", "minItems": 1, "maxItems": 1,
             "items": {"$ref": "#/components/schemas/DataSet"}},
            {"$ref": "#/components/schemas/DataSet"}]},
        "DataSet": {"type": "object", "additionalProperties": False,
                    "patternProperties": {"^[0-9A-F]{8}$": value}},
        "Refusal": {"type": "object", "required": ["status", "error", "problems"], "properties": {
            "status": {"type": "string", "pattern": "^[0-9A-F]{4}$"},
            "error": {"type": "string"}, "problems": {"type": "array"}}},
    }  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "minris", "version": __version__},
        "servers": [{"url": server}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def described_route(route: DicomRoute) -> dict[str, Any]:
    """A transaction as an operation of OpenAPI."""
    search = route.operation == "search"
    kinds = {"flag": {"type": "string", "maxLength": 0}}
    parameters = [{"name": one, "in": "path", "required": True, "schema": {"type": "string"}}
                  for one in re.findall(r"{(\w+)}", route.path)]  # fmt: skip
    for name in ("accept", "charset", *route.query):
        kind, meaning = WEB_PARAMETERS[name]
        schema = kinds.get(kind, {"type": kind} | ({"minimum": 0} if kind == "integer" else {}))
        parameters.append({"name": name, "in": "query", "schema": schema, "description": meaning})
    if search:
        attribute = {"name": "attribute", "in": "query", "style": "form", "explode": True}
        schema = {"type": "object", "additionalProperties": {"type": "string"}}
        words = "keywords or tags, joined by . within sequences, with what they are to match"
        parameters.append({**attribute, "schema": schema, "description": words})
    responses: dict[str, Any] = {str(code): {"description": "done"} for code in route.success}
    if route.method == "GET":
        responses["200"]["content"] = content_of("DataSets")
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    for code, words in refusals_of(route).items():
        responses[str(code)] = {"description": words, "content": refused}
    described: dict[str, Any] = {
        "operationId": route.function.__name__ + ("_by" if "{requester}" in route.path else ""),
        "summary": (route.function.__doc__ or "").splitlines()[0],
        "description": f"{route.clause}; role {route.role}",
        "parameters": parameters,
        "responses": responses,
    }
    if route.body:
        needed = route.body == "one"
        described["requestBody"] = {"content": content_of("OneDataSet"), "required": needed}
    return described


def content_of(schema: str) -> dict[str, Any]:
    """Data sets in each media type, with the schema where it is JSON."""
    found = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {kind: found if kind == DICOM_JSON else {} for kind in MEDIA_TYPES_TOLD}


def refusals_of(route: DicomRoute) -> dict[int, str]:
    """The HTTP codes by which a transaction may be refused, each with its texts."""
    found: dict[int, list[str]] = {
        400: ["The request cannot be read."], 401: ["A token is needed."], 403: [],
        406: ["None of the media types that are asked for is answered."],
        410: ["It was there, and has been deleted."] if "{uid}" in route.path else [],
        429: ["Too many requests."],
    }  # fmt: skip
    for operation, status in OUTCOMES:
        if operation == route.operation or (
            operation == "*" and (route.operation, status) not in OUTCOMES
        ):
            code, text = outcome(operation, status)
            found.setdefault(code, []).append(text)
    return {code: " ".join(dict.fromkeys(texts)) for code, texts in sorted(found.items()) if texts}


class DicomView:
    """Answers the requests of one route."""

    def __init__(self, web: Web, route: DicomRoute, request: Any, response: Any) -> None:
        self.web, self.route, self.request, self.response = web, route, request, response

    def __call__(self, **arguments: str) -> bytes:
        request, response = self.request, self.response
        for name in {"ae_title", "requester"} & arguments.keys():
            arguments[name] = arguments[name].replace(SLASH, "/").strip(" ")
        try:
            ctx = self._context(arguments)
            check_charset(request)
            form = accepted_form(request.get_header("Accept", ""), parameter(request, "accept"))
            found = self.route.function(self.web, request, ctx, **arguments)
        except Refusal as refusal:
            return self._refused(refusal, arguments.get("uid", ""))
        response.status = found.http
        for name, value in found.headers:
            response.add_header(name, value)
        if found.data is None:
            response.content_type = DICOM_JSON
            return b""
        response.content_type, body = rendered(found.data, *form)
        return body

    def _context(self, arguments: Mapping[str, str]) -> Context:
        """Who asks: the AE title that a token speaks for, else ours. Refuses 0124, 401."""
        login, ctx = enter(self.web, self.request, self.route.role)
        if "ae_title" in arguments:
            check_speaker(login, arguments["ae_title"])
        asked = (arguments.get("requester") or parameter(self.request, "requester")).strip()
        if asked and asked != ctx.config.dicom.ae_title:
            check_speaker(login, asked)
        title = login.ae_titles[0] if login.ae_titles else ctx.config.dicom.ae_title
        return ctx.by(Actor(title, f"{client_address(self.request)} {login.name}"))

    def _refused(self, refusal: Refusal, uid: str) -> bytes:
        response, operation = self.response, self.route.operation
        code = http_status(operation, refusal)
        if code == 404 and uid and self.web.read(is_purged, uid):
            code = 410
        response.status, response.content_type = code, "application/json"
        if code == 401:
            response.set_header("WWW-Authenticate", 'Bearer realm="minris"')
        text = outcome(operation, refusal.status).text
        if operation == "change state" and "incorrect" in text and self._has_no_lock():
            text = "The Transaction UID is missing."
        response.set_header(*warning(self.web, self.request, text))
        return json.dumps(problem_json(refusal), ensure_ascii=False).encode()

    def _has_no_lock(self) -> bool:
        with contextlib.suppress(Refusal):
            return not ElementIndex(one_data_set(self.request)).has_value(TRANSACTION_UID)
        return False


def check_charset(request: Any) -> None:
    """Refuse (400) a charset parameter without UTF-8, the one there is (PS3.18 8.3.3.2).

    Local: an Accept-Charset header is not looked at, as HTTP has given it up (RFC 9110 12.5.2)
    """
    wanted = [
        one.partition(";")[0].strip('" ') for one in split_list(parameter(request, "charset"))
    ]
    if wanted and not {"utf-8", "iso_ir 192"} & {one.lower() for one in wanted}:
        raise HttpRefusal(400, f"charset: none of {', '.join(wanted)[:80]} is answered; UTF-8 is")


def add_dicomweb(app: Any, web: Web) -> None:
    """Put DICOM_ROUTES into a bottle application, and what describes them."""
    import bottle

    def describe() -> str:
        bottle.response.content_type = "application/json"
        return json.dumps(openapi(service_url(web, bottle.request)))

    def upgrade_needed(ae_title: str) -> str:
        bottle.response.status, bottle.response.content_type = 426, "application/json"
        bottle.response.set_header("Upgrade", "websocket")
        return json.dumps(problem_json(HttpRefusal(426, "Events are told by WebSocket")))

    for route in DICOM_ROUTES:
        path = re.sub(r"{(\w+)}", r"<\1>", route.path)
        app.route(BASE + path, route.method, DicomView(web, route, bottle.request, bottle.response))
    for path in ("/subscribers/<ae_title>", "/ws/subscribers/<ae_title>"):
        app.route(BASE + path, "GET", upgrade_needed)
    for path in (BASE, BASE + "/"):
        app.route(path, "OPTIONS", describe)
    app.route(BASE + "/openapi.json", "GET", describe)


def holds_control(web: Web, request: Any) -> bool:
    """Whether a request bears the secret of this run, which is in a file of our user's alone."""
    kind, _, secret = request.get_header("Authorization", "").partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(
        secret.encode(), web.box.control.encode()
    )


def add_control(app: Any, web: Web, commands: Mapping[str, Core]) -> None:
    """Let commands beside a running appliance have their work done by it."""
    import bottle

    @app.post("/control/<command>")
    def control(command: str) -> str:
        bottle.response.content_type = "application/json"
        if not holds_control(web, bottle.request) or command not in commands:
            bottle.response.status = 403
            return json.dumps({"error": "not for you"})
        arguments = json.loads(body_of(bottle.request))
        if "content" in arguments:
            arguments["content"] = base64.b64decode(arguments["content"])
        ctx = web.context(Actor("console", role="admin"))

        def run(ctx: Context) -> str:
            return commands[command](ctx, **arguments)

        try:
            return json.dumps({"done": web.writer.submit(run, ctx).result()})
        except Refusal as refusal:
            return json.dumps({"refused": refusal.detail})


class Changes:
    """Tells open pages that something has changed; `bump` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.number = loop, 0
        self.waiting: set[asyncio.Event] = set()
        self.pending = False

    def bump(self) -> None:
        """Something has been committed."""
        if not self.pending:
            self.pending = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self.loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self.pending = False
        self.number += 1
        for event in self.waiting:
            event.set()


class RateLimit:
    """How often an address may ask: `rate` times a second, and two seconds' worth at once.

    rate  0 for no limit
    """

    BURST = 2.0  # seconds

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.due: dict[str, float] = {}  # when an address would have asked that often

    def allows(self, address: str, now: float) -> bool:
        """Whether it may ask now; if so that is counted."""
        if not self.rate:
            return True
        due = max(self.due.get(address, 0.0), now)
        if due - now > self.BURST:
            return False
        self.due[address] = due + 1 / self.rate
        if len(self.due) > 4096:
            self.due = {one: at for one, at in self.due.items() if at > now}
        return True


SOCKET_PATH = re.compile(r"(?:/ws)?/subscribers/([^/]+)")  # /ws as dcm4chee-arc has it


@functools.lru_cache(maxsize=64)
def event_members(uid: str, event_type: int, data: bytes) -> str:
    """The members of an event's JSON after its Message ID, the same for every receiver."""
    told = {
        "00001000": {"vr": "UI", "Value": [uid]},
        "00001002": {"vr": "US", "Value": [event_type]},
        **to_json(ElementIndex(data)),
    }
    return json.dumps(told, ensure_ascii=False)[1:]


def event_text(event: Event) -> str:
    """An event as one object of DICOM JSON with its command attributes (PS3.18 8.10.5)."""
    members = event_members(event.uid, event.event_type, event.data)
    sop_class = f'"00000002": {{"vr": "UI", "Value": ["{UPS_PUSH}"]}}'
    return f'{{{sop_class}, "00000110": {{"vr": "US", "Value": [{event.message_id}]}}, {members}'


class EventSocket(asyncio.Protocol):
    """A WebSocket of events; uvicorn's HTTP protocol hands it the connection (PS3.18 8.10.4).

    Its own, on wsproto, since ASGI knows neither pings nor pongs nor how much waits to be sent.
    """

    MOST_UNHEARD = 1000  # events without a pong
    PONG_WITHIN, CLOSE_WITHIN = 15.0, 1.0  # seconds

    def __init__(self, server: "WebServer", **_: Any) -> None:
        from wsproto import ConnectionType, WSConnection

        self.server, self.delivery = server, server.web.box.socket_delivery
        self.connection = WSConnection(ConnectionType.SERVER)
        self.ae_title, self.ctx = "", None
        self.began, self.position, self.owed = math.inf, 0, math.inf
        self.told = 0  # events, in the order in which they were told
        self._unheard: collections.deque[tuple[int, int]] = collections.deque()
        self.is_open, self.writable = False, True
        self.pinged = 0  # of the events told, the number in the last ping
        self.waits_since: float | None = None  # for a pong

    # What SocketDelivery asks of a socket.

    @property
    def ready(self) -> bool:
        """Whether it takes more events."""
        return self.is_open and self.writable and len(self._unheard) < self.MOST_UNHEARD

    @property
    def unheard(self) -> list[int]:
        """The outbox rows without a pong."""
        return [outbox_id for _, outbox_id in self._unheard]

    def tell(self, event: Event) -> None:
        """Send an event."""
        from wsproto.events import TextMessage

        self.position = event.outbox_id
        try:
            text = event_text(event)
        except Exception:
            log.exception("an event of %s cannot be told", event.uid)
            return
        self.told += 1
        self._unheard.append((self.told, event.outbox_id))
        self._send(TextMessage(data=text))

    def ping(self) -> None:
        """Ask whether all has arrived that was told."""
        from wsproto.events import Ping

        self.pinged = self.told
        if self.waits_since is None:
            self.waits_since = time.monotonic()
        self._send(Ping(payload=str(self.told).encode()))

    def is_alive(self) -> bool:
        """Whether pings are answered; a socket that is silent is cut off."""
        waits = self.waits_since is not None and time.monotonic() - self.waits_since
        if waits and waits > self.PONG_WITHIN:
            log.info("WebSocket of %s: no pong", self.ae_title)
            self.transport.abort()
            return False
        return True

    def is_allowed(self) -> bool:
        """Whether its login still may hear what the AE is told."""
        with contextlib.suppress(Refusal):
            speak_for(self.server.web, self.request, self.ae_title)
            return True
        return False

    def close(self, code: int) -> None:
        """End it in order: the client has a second to answer, with pongs of what it has heard."""
        from wsproto.events import CloseConnection

        self._send(CloseConnection(code=code))
        self.is_open = False
        asyncio.get_running_loop().call_later(self.CLOSE_WITHIN, self.transport.abort)

    # What asyncio calls.

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self.ae_title:
            self.delivery.closed(self)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.delivery.resume(self)

    def data_received(self, data: bytes) -> None:
        from wsproto.events import RejectConnection
        from wsproto.utilities import ProtocolError

        try:
            self.connection.receive_data(data)
            for event in self.connection.events():
                self._take(event)
        except (ProtocolError, UnicodeError) as error:  # the latter of headers beyond ASCII
            answer = None if self.ae_title else RejectConnection()
            self._wrong(getattr(error, "event_hint", answer))

    def _take(self, event: Any) -> None:
        from wsproto.events import CloseConnection, Ping, Pong, Request

        if isinstance(event, Request):
            self.transport.pause_reading()
            self.opening = asyncio.get_running_loop().create_task(self._open(event))
        elif isinstance(event, Ping):
            if self.writable:  # RFC 6455 5.5.3: the last of several need be answered alone
                self._send(event.response())
        elif isinstance(event, Pong):
            self._heard(bytes(event.payload))
        elif isinstance(event, CloseConnection):
            if self.is_open:
                self._send(event.response())
            self.transport.close()

    def _wrong(self, answer: Any) -> None:
        """Answer what is no WebSocket: a handshake with an HTTP code, a frame with a close."""
        if answer is not None:
            with contextlib.suppress(Exception):
                self.transport.write(self.connection.send(answer))
        self.is_open = False
        self.transport.close()

    def _send(self, event: Any) -> None:
        if self.is_open and not self.transport.is_closing():
            self.transport.write(self.connection.send(event))

    def _heard(self, payload: bytes) -> None:
        """A pong: all that was told before its ping has arrived."""
        number = int(payload) if re.fullmatch(rb"[0-9]{1,18}", payload) else -1
        if not 0 <= number <= self.pinged:
            return  # of no ping of ours
        self.waits_since = time.monotonic() if number < self.pinged else None
        heard = []
        while self._unheard and self._unheard[0][0] <= number:
            heard.append(self._unheard.popleft()[1])
        if heard:
            self.delivery.has_heard(self, heard)
            self.delivery.resume(self)

    # The handshake.

    async def _open(self, asked: Any) -> None:
        from wsproto.events import AcceptConnection

        peer = self.transport.get_extra_info("peername") or ("", 0)
        try:
            if not self.server.rate.allows(peer[0], time.monotonic()):
                raise HttpRefusal(429, "Too many requests")
            run = asyncio.get_running_loop().run_in_executor
            title, login = await run(self.server.workers, self._enter, asked, peer[0])
        except Refusal as refusal:
            self._refuse(refusal)
            return
        except Exception:  # the store, or we: nobody waits for ever
            log.exception("WebSocket handshake failed")
            self._refuse(HttpRefusal(500, "Something is wrong here"))
            return
        if self.transport.is_closing():
            return
        offered = [one for one in asked.subprotocols if not one.startswith(BEARER)]
        accept = AcceptConnection(subprotocol=offered[0] if offered else None)
        self.transport.write(self.connection.send(accept))
        self.ae_title, self.is_open = title, True
        self.ctx = self.server.web.context(Actor(login.name, peer[0], login.role))
        self.delivery.open(self)
        self.transport.resume_reading()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer a handshake with an HTTP code."""
        from wsproto.events import RejectConnection, RejectData

        code = http_status("subscribe", refusal)
        headers = [(b"content-type", b"application/json"), *SECURITY_HEADERS]
        headers += [(b"www-authenticate", b'Bearer realm="minris"')] if code == 401 else []
        reject = RejectConnection(status_code=code, headers=headers, has_body=True)
        text = json.dumps(problem_json(refusal), ensure_ascii=False).encode()
        self.transport.write(self.connection.send(reject))
        self.transport.write(self.connection.send(RejectData(data=text)))
        self.transport.close()

    def _enter(self, asked: Any, address: str) -> tuple[str, Login]:
        """The AE title and login of a handshake. Refuses 400, 401, 403, 404, 429, 503."""
        web, server = self.server.web, self.server
        path, _, query = asked.target.partition("?")
        found = SOCKET_PATH.fullmatch(path.removeprefix(BASE)) if path.startswith(BASE) else None
        if not found:
            raise HttpRefusal(404, "There is no WebSocket here")
        if len(self.delivery) >= server.limits.maximum_websockets:
            raise HttpRefusal(503, "There are too many WebSockets")
        title = urllib.parse.unquote(found[1]).strip()
        if not is_ae_title(title):
            raise HttpRefusal(400, "That is no AE title")
        self.request = handshake_request(asked, path, query, address)
        login = speak_for(web, self.request, title)
        if is_told_by_dimse_alone(web, title):
            raise HttpRefusal(403, "This AE is told by DIMSE alone, as its device says")
        return title, login


def handshake_request(asked: Any, path: str, query: str, address: str) -> Any:
    """A handshake as the request that find_login reads."""
    import bottle

    try:
        host = asked.host.encode("idna").decode()
    except UnicodeError:
        raise HttpRefusal(400, "That is no host") from None
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": query, "REMOTE_ADDR": address,
        "HTTP_HOST": host, "wsgi.input": io.BytesIO(),
    }  # fmt: skip
    check_headers(asked.extra_headers)
    for name, value in asked.extra_headers:
        environ[f"HTTP_{name.decode().upper().replace('-', '_')}"] = value.decode("latin-1")
    for one in asked.subprotocols:  # a browser can send no other header of its own
        if one.startswith(BEARER):
            environ["HTTP_AUTHORIZATION"] = f"Bearer {one.removeprefix(BEARER)}"
    return bottle.BaseRequest(environ)


BEARER = "bearer."


def speak_for(web: "Web", request: Any, ae_title: str) -> Login:
    """The login of a request for an AE. Refuses 0124; 401 where there is none."""
    login, _ = enter(web, request, "desk")
    if login.csrf:
        check_origin(web, request)  # of a browser, which sends its cookie for any site
    check_speaker(login, ae_title)
    return login


class WebServer:
    """The ASGI application: bounds a request, then hands it to bottle or to the event stream."""

    KEEP_ALIVE = 15.0
    CALM = 0.25  # seconds between two events of one stream

    def __init__(self, web: Web, app: Any, changes: Changes, workers: int = 8) -> None:
        self.web, self.app, self.changes = web, app, changes
        self.limits = web.config.web
        self.workers = concurrent.futures.ThreadPoolExecutor(workers, "web")
        self.rate = RateLimit(self.limits.requests_per_second)
        self.readers = concurrent.futures.ThreadPoolExecutor(2, "stream")
        self.addresses: collections.Counter[str] = collections.Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not self.rate.allows((scope["client"] or ("",))[0], time.monotonic()):
            await self._refuse(scope, send, 429, "too many requests", (b"retry-after", b"1"))
            return
        if scope["path"] == "/events":
            await self._events(scope, receive, send)
            return
        body = await self._body(scope, receive, send)
        if body is None:
            return
        if (preflight := self._preflight(scope)) is not None:
            await send(preflight)
            await send({"type": "http.response.body"})
            return
        run = asyncio.get_running_loop().run_in_executor
        start, content = await run(self.workers, self._answer, scope, body)
        await send(start)
        await send({"type": "http.response.body", "body": content})

    def _answer(self, scope: Any, body: bytes) -> tuple[dict[str, Any], bytes]:
        """Have bottle answer, in a thread: head and content at once, as both are bounded.

        a2wsgi's own middleware comes back to the loop for each piece, at twice the cost
        """
        from a2wsgi.wsgi import build_environ

        head: dict[str, Any] = {}

        def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> None:
            pairs = ((n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in headers)
            head["status"], head["headers"] = int(status[:3]), list(pairs)

        try:
            check_headers(scope["headers"])
        except HttpRefusal as refusal:
            headers = [(b"content-type", b"application/json")]
            content = json.dumps(problem_json(refusal)).encode()
            return self._start(scope, refusal.http, headers), content
        environ = build_environ(scope, io.BytesIO(body))
        path = scope["raw_path"].decode("ascii", "replace")
        if scope["path"].startswith(BASE) and SLASH in path.upper():  # within an AE title
            environ["PATH_INFO"] = urllib.parse.unquote(
                re.sub("%2f", "%252F", path, flags=re.IGNORECASE), "latin-1"
            )
        environ.pop("HTTP_TRANSFER_ENCODING", None)  # undone
        environ["CONTENT_LENGTH"] = str(len(body))
        environ["minris.maximum_body"] = self.limits.maximum_body
        pieces = self.app(environ, start_response)
        with contextlib.closing(pieces) if hasattr(pieces, "close") else contextlib.nullcontext():
            content = b"".join(pieces)
        headers, content = compressed(scope, head["status"], head["headers"], content)
        return self._start(scope, head["status"], headers), content

    def _start(
        self, scope: Any, status: int, headers: Iterable[tuple[bytes, bytes]]
    ) -> dict[str, Any]:
        """The head of an answer, with what every answer has, and for pages of other origins."""
        found = [*headers, *SECURITY_HEADERS, *self._cors(scope)]
        return {"type": "http.response.start", "status": status, "headers": found}

    def _cors(self, scope: Any) -> list[tuple[bytes, bytes]]:
        """What lets a page of a configured origin read an answer."""
        origin = header_of(scope, b"origin").decode("latin-1")
        if origin not in self.limits.cors_origins or not scope["path"].startswith(OPEN_TO_ORIGINS):
            return []
        return [(b"access-control-allow-origin", origin.encode()), (b"vary", b"Origin"),
                (b"access-control-expose-headers",
                 b"Warning, Location, Content-Location, Retry-After")]  # fmt: skip

    def _preflight(self, scope: Any) -> dict[str, Any] | None:
        """The answer to a browser that asks whether a page of another origin may call us."""
        asks = header_of(scope, b"access-control-request-method")
        cors = self._cors(scope)
        if scope["method"] != "OPTIONS" or not asks or not cors:
            return None
        allowed = [(b"access-control-allow-methods", b"GET, HEAD, POST, PUT, DELETE"),
                   (b"access-control-allow-headers", b"Authorization, Content-Type, Content-Encoding, Accept"),
                   (b"access-control-max-age", b"600")]  # fmt: skip
        return self._start(scope, 204, allowed)

    async def _body(self, scope: Any, receive: Any, send: Any) -> bytes | None:
        """The whole body; None where it was too large or too slow, and that was answered."""
        headers = dict(scope["headers"])
        most, parts, size = self.limits.maximum_body, [], 0
        if int(headers.get(b"content-length") or 0) > most:
            await self._refuse(scope, send, 413, "larger than this system takes")
            return None
        try:
            async with asyncio.timeout(self.limits.request_timeout + most / 1e6):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        await self._refuse(scope, send, 413, "larger than this system takes")
                        return None
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            await self._refuse(scope, send, 408, "too slow")
            return None

    async def _refuse(
        self, scope: Any, send: Any, status: int, text: str, *headers: tuple[bytes, bytes]
    ) -> None:
        """Refuse a request that bottle does not see."""
        usual = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send(self._start(scope, status, [*usual, *headers]))
        body = json.dumps(problem_json(HttpRefusal(status, text))).encode()
        await send({"type": "http.response.body", "body": body})

    async def _events(self, scope: Any, receive: Any, send: Any) -> None:
        """The page's event stream: the number of each change, calmly; a remark keeps it open."""
        cookie = cookie_of(scope, "minris")
        ctx = self.web.context(Actor("web"))
        run = asyncio.get_running_loop().run_in_executor
        if not cookie or not await run(self.readers, self.web.read, find_session, ctx, cookie):
            await self._refuse(scope, send, 401, "log in first")
            return
        headers = [(b"content-type", b"text/event-stream"), *SECURITY_HEADERS]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        event = asyncio.Event()
        self.changes.waiting.add(event)
        gone = asyncio.ensure_future(self._until_gone(receive, event))
        try:
            text = f"retry: 2000\ndata: {self.changes.number}\n\n"
            while not gone.done():
                chunk = {"type": "http.response.body", "body": text.encode(), "more_body": True}
                await send(chunk)
                await asyncio.sleep(self.CALM)
                try:
                    async with asyncio.timeout(self.KEEP_ALIVE):
                        await event.wait()
                    event.clear()
                    text = f"data: {self.changes.number}\n\n"
                except TimeoutError:
                    text = ": still here\n\n"
        except asyncio.CancelledError:
            pass  # we are stopping; the page will look for us again
        finally:
            gone.cancel()
            self.changes.waiting.discard(event)

    @staticmethod
    async def _until_gone(receive: Any, event: asyncio.Event) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        event.set()

    async def listen(self, host: str, port: int, tls: Any = None) -> int:
        """Open the web port: its number."""
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol
        from uvicorn.server import ServerState

        config = uvicorn.Config(
            self,
            lifespan="off",
            http="h11",
            ws=functools.partial(EventSocket, self),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=10,
            h11_max_incomplete_event_size=32768,
        )
        config.load()
        self.state = ServerState()
        protocol = bounded_protocol(H11Protocol, self)
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(
            lambda: protocol(config=config, server_state=self.state, app_state={}),
            host or None,
            port,
            ssl=tls,
            ssl_handshake_timeout=5 if tls else None,
        )
        return self.server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and end what is open."""
        self.server.close()
        for connection in list(self.state.connections):
            connection.transport.abort()
        if tasks := list(self.state.tasks):
            await asyncio.wait(tasks, timeout=2)
        self.workers.shutdown(wait=False)
        self.readers.shutdown(wait=False)


def bounded_protocol(base: type, server: WebServer) -> type:
    """uvicorn's HTTP protocol with a time for each request to begin, and a bound for each address."""

    class BoundedProtocol(base):
        counted, timer, upgraded = "", None, False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            address = (transport.get_extra_info("peername") or ("", 0))[0]
            server.addresses[address] += 1
            self.counted = address
            if server.addresses[address] > server.limits.maximum_connections_per_address:
                log.warning("web: too many connections from %s", address)
                transport.write(
                    b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                )
                transport.close()
            else:
                self._time_request()

        def connection_lost(self, error: Exception | None) -> None:
            self._let_go()
            super().connection_lost(error)

        def _let_go(self) -> None:
            if self.timer:
                self.timer.cancel()
            server.addresses[self.counted] -= 1
            if not server.addresses[self.counted]:
                del server.addresses[self.counted]

        def handle_websocket_upgrade(self, event: Any) -> None:
            self.upgraded = True  # EventSocket takes over
            self._let_go()
            super().handle_websocket_upgrade(event)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.upgraded:
                return
            if self.cycle is None or self.cycle.response_complete:
                self._time_request()
            elif self.timer:
                self.timer.cancel()
                self.timer = None

        def _time_request(self) -> None:
            if not self.timer:
                seconds = server.limits.request_timeout
                self.timer = self.loop.call_later(seconds, self._too_slow)

        def _too_slow(self) -> None:
            self.timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return BoundedProtocol


OPEN_TO_ORIGINS = (BASE, "/api/")  # what [web] cors_origins may call


def header_of(scope: Any, name: bytes) -> bytes:
    """A header of an ASGI scope, or nothing."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def check_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse (400) headers that bottle could not read."""
    try:
        b"\n".join(value for _, value in headers).decode()
    except UnicodeDecodeError:
        raise HttpRefusal(400, "A header is not UTF-8") from None


def compressed(
    scope: Any, status: int, headers: list[tuple[bytes, bytes]], content: bytes
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """An answer as gzip where that is asked for and worth it; pages are not, for their secrets."""
    wanted = re.search(
        rb"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", header_of(scope, b"accept-encoding").lower()
    )
    worth = status == 200 and len(content) >= 1024
    if not (wanted and worth and scope["path"].startswith((*OPEN_TO_ORIGINS, "/static/"))):
        return headers, content
    content = gzip.compress(content, 5, mtime=0)
    kept = [(name, value) for name, value in headers if name != b"content-length"]
    added = [(b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding"),
             (b"content-length", str(len(content)).encode())]  # fmt: skip
    return [*kept, *added], content


def cookie_of(scope: Any, name: str) -> str:
    """The value of a cookie in an ASGI scope, or nothing."""
    for part in header_of(scope, b"cookie").decode("latin-1").split(";"):
        found, _, secret = part.strip().partition("=")
        if found == name:
            return secret.strip('"')
    return ""


SECURITY_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


# 19. PAGES ------------------------------------------------------------------------------------
#
# The browser's side: the board, registration, login. Every form works without script; static/
# makes it handsome and live. For others: add_pages, Translator.


class Translator:
    """Gives a sentence in a language; English itself is the key of the catalogue."""

    def __init__(self, language: str, catalogue: Mapping[str, str]) -> None:
        self.language, self.catalogue = language, catalogue

    def __call__(self, text: str, **values: object) -> str:
        if isinstance(text, Message):
            text, values = text.key, dict(text.values)
        found = self.catalogue.get(text, text)
        if not values:
            return found
        return found.format_map(
            {k: self(v) if isinstance(v, Message) else v for k, v in values.items()}
        )


def load_catalogues(static: Path | None) -> dict[str, Mapping[str, str]]:
    """The catalogues of static/i18n by language."""
    found: dict[str, Mapping[str, str]] = {"en": {}}
    for path in sorted((static / "i18n").glob("*.json")) if static else ():
        found[path.stem] = json.loads(path.read_text("utf-8"))
    return found


def choose_language(languages: Iterable[str], wanted: str, accepted: str, default: str) -> str:
    """The language of a page: the one chosen, else the browser's, else the setting."""
    known = list(languages)
    if wanted in known:
        return wanted
    for part in accepted.split(","):
        tag = part.partition(";")[0].strip().lower()
        for language in known:
            if tag and language.lower().startswith(tag.partition("-")[0]):
                return language
    return default if default in known else "en"


LAYOUT = """<!DOCTYPE html>
<html lang="{{t.language}}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}} - {{clinic}}</title>
% if refresh and not static:
<meta http-equiv="refresh" content="15">
% end
% if static:
<link rel="stylesheet" href="/static/minris.css">
<script src="/static/minris.js" defer></script>
% end
% if refresh and static:
<noscript><meta http-equiv="refresh" content="15"></noscript>
% end
</head>
<body>
<header>
<strong>{{clinic}}</strong>
% if login:
<nav aria-label="{{t('Pages')}}">
% for path, words in navigation:
<a href="{{path}}"{{!' aria-current="page"' if path == here else ''}}>{{words}}</a>
% end
</nav>
<form method="post" action="/logout" class="logout"><input type="hidden" name="csrf" value="{{login.csrf}}">
<span>{{login.name}}</span> <button>{{t('Log out')}}</button></form>
% end
<form method="get" action="/language" class="language"><input type="hidden" name="back" value="{{here}}">
% for language, name in languages:
% if language != t.language:
<button name="language" value="{{language}}" lang="{{language}}">{{name}}</button>
% end
% end
</form>
</header>
<main>
% for words in notices:
<p role="alert" class="problem">{{words}}</p>
% end
<h1>{{title}}</h1>
{{!base}}
</main>
</body>
</html>
"""

LOGIN_PAGE = """
% if problem:
<p role="alert" class="problem">{{t(problem)}}</p>
% end
<form method="post" action="/login" class="login">
<input type="hidden" name="next" value="{{next}}">
<label>{{t('User name')}} <input name="name" value="{{name}}" required autocomplete="username" autofocus></label>
<label>{{t('Password')}} <input name="password" type="password" required autocomplete="current-password"></label>
<button>{{t('Log in')}}</button>
</form>
"""

ERROR_PAGE = """
<p role="alert" class="problem">{{words}}</p>
<p><a href="/">{{t('To the board')}}</a></p>
"""

BOARD_PAGE = """
<form method="get" action="/" class="day">
<label>{{t('Day')}} <input type="date" name="date" value="{{day}}"></label> <button>{{t('Show')}}</button>
<a href="/print?date={{day}}">{{t('Print')}}</a> <a href="/waiting">{{t('Waiting room')}}</a>
</form>
<p id="offline" class="problem" hidden>{{t('No connection to the server. What is shown may be old.')}}</p>
<div id="board" data-part="{{part}}">
{{!board}}
</div>
"""

BOARD_PART = """
<p class="summary" role="status" aria-live="polite">{{t('{count} exams', count=count)}}:
% for state, number in totals:
<span class="state" data-state="{{state}}">{{t(state)}} {{number}}</span>
% end
</p>
% for device, steps in devices:
<section>
<h2>{{device}}</h2>
<table>
<thead><tr><th scope="col">{{t('Time')}}</th><th scope="col">{{t('Patient')}}</th><th scope="col">{{t('Patient ID')}}</th>
<th scope="col">{{t('Exam')}}</th><th scope="col">{{t('Accession number')}}</th><th scope="col">{{t('State')}}</th>
<th scope="col">{{t('Since')}}</th><th scope="col"><span class="hidden">{{t('Actions')}}</span></th></tr></thead>
<tbody>
% for step in steps:
<tr data-state="{{step['state']}}">
<td>{{step['time']}}</td>
<th scope="row"><a href="{{step['path']}}">{{step['name']}}</a>
% if step['priority']:
<strong class="urgent">{{step['priority']}}</strong>
% end
</th>
<td>{{step['patient_id']}}</td><td>{{step['exam']}}</td><td>{{step['accession']}}</td>
<td><span class="state" data-state="{{step['state']}}">{{t(step['state'])}}</span></td>
<td>{{step['since']}}</td>
<td class="actions">
% for event, words in step['actions']:
<form method="post" action="{{step['path']}}"><input type="hidden" name="csrf" value="{{csrf}}">
<button name="event" value="{{event}}">{{words}}</button></form>
% end
</td>
</tr>
% end
</tbody>
</table>
</section>
% end
% if not devices:
<p>{{t('No exams on this day.')}} <a href="/register">{{t('Register a patient')}}</a></p>
% end
"""

WORKITEM_PAGE = """
% if told:
<p role="status" class="told">{{told}}</p>
% end
% for words in warnings:
<p class="warning">{{words}}</p>
% end
% for heading, facts in modules:
<section><h2>{{heading}}</h2>
% if facts:
<dl>
% for words, value in facts:
<dt>{{words}}</dt><dd>{{value}}</dd>
% end
</dl>
% else:
<p>{{t('Nothing yet.')}}</p>
% end
</section>
% end
% if forms:
<section><h2>{{t('What to do')}}</h2>
% for event, words, fields in forms:
% if fields:
<details class="deed"><summary>{{words}}</summary>
% end
<form method="post" action="{{here}}" class="deed"><input type="hidden" name="csrf" value="{{csrf}}">
% for f in fields:
% if f.choices:
<label>{{f.label}} <select name="{{f.name}}">
% for value, meaning in f.choices:
<option value="{{value}}">{{meaning}}</option>
% end
</select></label>
% else:
<label>{{f.label}} <input name="{{f.name}}" type="{{f.kind}}" value="{{f.value}}" autocomplete="off"></label>
% end
% end
<button name="event" value="{{event}}">{{words}}</button></form>
% if fields:
</details>
% end
% end
</section>
% end
<section><h2>{{t('Watched by')}}</h2>
% if watched:
<ul>
% for ae_title, lock in watched:
<li>{{ae_title}}{{', ' + t('with deletion lock') if lock else ''}}</li>
% end
</ul>
% else:
<p>{{t('Nobody.')}}</p>
% end
</section>
<section><h2>{{t('Time line')}}</h2>
<ol class="timeline">
% for at, who, words, heard in events:
<li><time>{{at}}</time> {{words}} <span class="who">{{who}}</span>{{' · ' + heard if heard else ''}}</li>
% end
</ol></section>
<nav class="links" aria-label="{{t('Further')}}"><a href="/workitems">{{t('Workitems')}}</a>
% if patient_id:
<a href="/patients?q={{patient_id}}">{{t('Patient')}}</a>
% end
<a href="/">{{t('To the board')}}</a></nav>
"""
FORM_PAGE = """
% if problems:
<div role="alert" class="problem"><p>{{t('Nothing was saved. Please correct:')}}</p><ul>
% for words in problems:
<li>{{words}}</li>
% end
</ul></div>
% end
<form method="post" action="{{action}}" class="fields">
<input type="hidden" name="csrf" value="{{csrf}}">
% for name, value in hidden:
<input type="hidden" name="{{name}}" value="{{value}}">
% end
% loop_first = True
% for legend, fields in groups:
<fieldset><legend>{{legend}}</legend>
% for f in fields:
<div class="field">
<label for="{{f.name}}">{{f.label}}{{' *' if f.required else ''}}</label>
% described = ' aria-invalid="true" aria-describedby="' + f.name + '-problem"' if f.problem else ''
% if f.kind == 'select':
<select id="{{f.name}}" name="{{f.name}}"{{!described}}>
% for value, words in f.choices:
<option value="{{value}}"{{!' selected' if value == f.value else ''}}>{{words}}</option>
% end
</select>
% elif f.kind == 'area':
<textarea id="{{f.name}}" name="{{f.name}}" rows="2"{{!described}}>{{f.value}}</textarea>
% else:
<input id="{{f.name}}" name="{{f.name}}" type="{{f.kind}}" value="{{f.value}}" autocomplete="off"{{!described}}
 {{!'list="' + f.name + '-list"' if f.choices else ''}}>
% if f.choices:
<datalist id="{{f.name}}-list">
% for value, words in f.choices:
<option value="{{value}}">{{words}}</option>
% end
</datalist>
% end
% end
% if f.problem:
<p class="problem" id="{{f.name}}-problem">{{f.problem}}</p>
% end
</div>
% end
</fieldset>
% if loop_first and get('finding'):
<div id="found" data-find="{{finding}}" aria-live="polite"></div>
% end
% loop_first = False
% end
<div class="actions">
% if submit:
<button class="main">{{submit}}</button>
% end
% for event, words in get('extra', []):
<button name="event" value="{{event}}">{{words}}</button>
% end
</div>
</form>
% if get('after'):
<ul class="after">
% for path, words in after:
<li><a href="{{path}}">{{words}}</a></li>
% end
</ul>
% end
"""

STEP_PAGE = """
% if told:
<p role="status" class="told">{{told}}</p>
% end
<dl>
% for words, value in facts:
<dt>{{words}}</dt><dd>{{value}}</dd>
% end
</dl>
% for words in warnings:
<p class="warning">{{words}}</p>
% end
<div class="actions">
% for event, words in actions:
<form method="post" action="{{path}}"><input type="hidden" name="csrf" value="{{csrf}}">
% if event in ('cancel', 'stop'):
<label>{{t('Reason')}} <input name="remark"></label>
% end
<button name="event" value="{{event}}">{{words}}</button></form>
% end
</div>
% if visit:
<h2>{{t('Time line')}}</h2>
<ol class="timeline">
% for at, what, about in visit:
<li><time>{{at}}</time> {{what}}{{' · ' + about if about else ''}}</li>
% end
</ol>
% end
% for heading, number, facts in performed:
<h2>{{heading}}</h2>
<dl>
% for words, value in facts:
<dt>{{words}}</dt><dd>{{value}}</dd>
% end
</dl>
<form method="post" action="/unmatch"><input type="hidden" name="csrf" value="{{csrf}}">
<input type="hidden" name="performed" value="{{number}}">
<input type="hidden" name="step" value="{{row_id}}">
<button>{{t('This was another exam')}}</button></form>
% end
<nav class="links" aria-label="{{t('Further')}}">
% for path, words in links:
% if path:
<a href="{{path}}">{{words}}</a>
% end
% end
<a href="/register">{{t('Register another patient')}}</a> <a href="/">{{t('To the board')}}</a>
</nav>
"""

LIST_PAGE = """
% if told:
<p role="status" class="told">{{told}}</p>
% end
% if intro:
<p>{{intro}}</p>
% end
% if search is not None:
<form method="get" action="{{here}}" class="day" role="search">
<label>{{search}} <input name="q" value="{{query}}" autofocus></label> <button>{{t('Search')}}</button>
</form>
% end
% if filters:
<nav class="links" aria-label="{{t('Filter')}}">
% for path, words, current in filters:
<a href="{{path}}"{{!' aria-current="true"' if current else ''}}>{{words}}</a>
% end
</nav>
% end
% for part in parts:
<section>
% if part.heading:
<h2>{{part.heading}}</h2>
% end
% if part.rows:
<div class="wide"><table>
<thead><tr>
% for words in part.columns:
<th scope="col">{{words}}</th>
% end
<th scope="col"><span class="hidden">{{t('Actions')}}</span></th></tr></thead>
<tbody>
% for row in part.rows:
<tr>
% for number, cell in enumerate(row.cells):
% if number == 0 and row.link:
<th scope="row"><a href="{{row.link}}">{{cell}}</a></th>
% else:
<td>{{cell}}</td>
% end
% end
<td class="actions">
% for action in row.actions:
<form method="{{'get' if action.get else 'post'}}" action="{{action.path}}">
% if not action.get:
<input type="hidden" name="csrf" value="{{csrf}}">
% end
% for name, value in action.fields:
<input type="hidden" name="{{name}}" value="{{value}}">
% end
% if action.choices:
<label class="inline"><span class="hidden">{{action.label}}</span><select name="{{action.name}}">
% for value, words in action.choices:
<option value="{{value}}">{{words}}</option>
% end
</select></label>
% elif action.name:
<label class="inline"><span class="hidden">{{action.label}}</span><input name="{{action.name}}" placeholder="{{action.label}}"></label>
% end
<button>{{action.words}}</button></form>
% end
</td></tr>
% end
</tbody></table></div>
% elif part.empty:
<p>{{part.empty}}</p>
% end
</section>
% end
% for path, words in links:
<p><a href="{{path}}">{{words}}</a></p>
% end
"""

FIGURES_PAGE = """
<form method="get" action="/figures" class="day">
<label>{{t('From day')}} <input type="date" name="first" value="{{first}}"></label>
<label>{{t('To day')}} <input type="date" name="last" value="{{last}}"></label> <button>{{t('Show')}}</button>
<a href="/figures.csv?first={{first}}&amp;last={{last}}">CSV</a>
</form>
<p><img src="/figures.svg?first={{first}}&amp;last={{last}}" alt="{{t('Exams by day')}}" class="chart"></p>
<div class="wide"><table><thead><tr>
% for words in columns:
<th scope="col">{{words}}</th>
% end
</tr></thead><tbody>
% for row in rows:
<tr>
% for cell in row:
<td>{{cell}}</td>
% end
</tr>
% end
</tbody></table></div>
"""

CHART = """<svg xmlns="http://www.w3.org/2000/svg" width="{{width}}" height="180" viewBox="0 0 {{width}} 180" font-family="sans-serif" font-size="11">
% for number, (label, count, height) in enumerate(bars):
<rect x="{{20 + number * 26}}" y="{{150 - height}}" width="18" height="{{height}}" fill="#0b57b3"><title>{{label}}: {{count}}</title></rect>
<text x="{{29 + number * 26}}" y="{{145 - height}}" text-anchor="middle" fill="#5b6875">{{count}}</text>
<text x="{{29 + number * 26}}" y="166" text-anchor="middle" fill="#5b6875">{{label}}</text>
% end
<line x1="16" y1="150" x2="{{width - 4}}" y2="150" stroke="#5b6875"/></svg>
"""

FOUND_PART = """
<div data-born="{{born}}" data-sex="{{sex}}">
% if people:
<p>{{t('Already known?')}}</p>
<ul>
% for row_id, name, patient_id, birth_date in people:
<li><a href="/register?patient={{row_id}}">{{name}} · {{patient_id}} · {{birth_date}}</a></li>
% end
</ul>
% end
</div>
"""

WAITING_PAGE = """
<div id="board" data-part="/waiting?part=board">
{{!board}}
</div>
<p id="offline" class="problem" hidden>{{t('No connection to the server. What is shown may be old.')}}</p>
"""

WAITING_PART = """
% if not people:
<p>{{t('Nobody is waiting.')}}</p>
% end
<ul class="waiting">
% for name, number, device, state in people:
<li data-state="{{state}}"><strong>{{name}}</strong> <span>{{number}}</span> <span>{{device}}</span>
<span class="state" data-state="{{state}}">{{t(state)}}</span></li>
% end
</ul>
"""

SLIP_PAGE = """
<article class="slip">
<h2>{{name}}</h2>
<dl>
% for label, text in facts:
<dt>{{label}}</dt><dd>{{text}}</dd>
% end
</dl>
<p><img src="/step/{{row_id}}/code128.svg" alt="{{t('Accession number')}} {{accession}}" height="60">
<img src="/step/{{row_id}}/qr.svg" alt="{{t('Patient ID')}} {{patient_id}}" height="90"></p>
<p class="noprint"><a href="/step/{{row_id}}">{{t('Back')}}</a></p>
</article>
"""

PRINT_PAGE = """
<p class="noprint"><a href="/?date={{date}}">{{t('Back')}}</a></p>
% for device, steps in devices:
<section><h2>{{device}}</h2>
<table><thead><tr><th scope="col">{{t('Time')}}</th><th scope="col">{{t('Patient')}}</th>
<th scope="col">{{t('Patient ID')}}</th><th scope="col">{{t('Exam')}}</th>
<th scope="col">{{t('Accession number')}}</th><th scope="col">{{t('State')}}</th></tr></thead><tbody>
% for step in steps:
<tr><td>{{step['time']}}</td><th scope="row">{{step['name']}}</th><td>{{step['patient_id']}}</td>
<td>{{step['exam']}}</td><td>{{step['accession']}}</td><td>{{t(step['state'])}}</td></tr>
% end
</tbody></table></section>
% end
"""

LEFTOVERS_PAGE = """
<p>{{t('Exams of days before that have neither ended nor been taken off the list.')}}</p>
% if not steps:
<p>{{t('There are none.')}}</p>
% else:
<form method="post" action="/leftovers"><input type="hidden" name="csrf" value="{{csrf}}">
<div class="wide"><table>
<thead><tr><th scope="col"><span class="hidden">{{t('Chosen')}}</span></th><th scope="col">{{t('Patient')}}</th>
<th scope="col">{{t('Patient ID')}}</th><th scope="col">{{t('Exam')}}</th><th scope="col">{{t('Date')}}</th>
<th scope="col">{{t('State')}}</th></tr></thead>
<tbody>
% for row_id, name, patient_id, exam, date, state in steps:
<tr><td><input type="checkbox" name="row" value="{{row_id}}" id="row{{row_id}}"{{' checked' if state != 'STARTED' else ''}}></td>
<th scope="row"><label for="row{{row_id}}">{{name}}</label></th><td>{{patient_id}}</td><td>{{exam}}</td><td>{{date}}</td>
<td><span class="state" data-state="{{state}}">{{t(state)}}</span></td></tr>
% end
</tbody></table></div>
<div class="actions"><button name="event" value="no show">{{t('Did not come')}}</button>
<button name="event" value="finish">{{t('Exam is done')}}</button>
<button name="event" value="today">{{t('Move to today')}}</button>
<button name="event" value="cancel">{{t('Cancel exam')}}</button></div>
</form>
% end
"""

IMPORT_PAGE = """
% if told:
<p role="status" class="told">{{told}}</p>
% end
% if problems:
<div role="alert" class="problem"><p>{{t('Nothing was imported:')}}</p><ul>
% for words in problems:
<li>{{words}}</li>
% end
</ul></div>
% end
% if lines:
<h2>{{t('Preview of {file}', file=file)}}</h2>
<div class="wide"><table><thead><tr>
% for cell in lines[0]:
<th scope="col">{{cell}}</th>
% end
</tr></thead><tbody>
% for line in lines[1:51]:
<tr>
% for cell in line:
<td>{{cell}}</td>
% end
</tr>
% end
</tbody></table></div>
<p>{{t('{count} rows', count=len(lines) - 1)}}</p>
% end
% if content:
<form method="post" action="/import"><input type="hidden" name="csrf" value="{{csrf}}">
<input type="hidden" name="content" value="{{content}}"><input type="hidden" name="file" value="{{file}}">
<button class="main" name="confirmed" value="yes">{{t('Import them all')}}</button></form>
% end
<form method="post" action="/import" enctype="multipart/form-data" class="login">
<input type="hidden" name="csrf" value="{{csrf}}">
<label>{{t('File: CSV, DICOM JSON or a DICOM worklist file')}} <input type="file" name="upload" required></label>
<button>{{t('Look at it first')}}</button>
</form>
"""


class Part(NamedTuple):
    """A table of a list page."""

    heading: str
    columns: tuple[str, ...]
    rows: list["Row"]
    empty: str = ""


class Row(NamedTuple):
    """A line of such a table: cells, where the first one leads, what can be done."""

    cells: tuple[str, ...]
    link: str = ""
    actions: tuple["Action", ...] = ()


class Action(NamedTuple):
    """A small form of one button, perhaps with a choice or a text."""

    path: str
    words: str
    fields: tuple[tuple[str, str], ...] = ()
    name: str = ""
    label: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    get: bool = False  # it only shows something


LANGUAGES = {"en": "English", "zh-CN": "简体中文"}

# What a person reads for a state; the keys are the states themselves.
PERSON_EVENTS = {
    "arrive": Message("Arrived"),
    "cancel": Message("Cancel exam"),
    "no show": Message("Did not come"),
    "reschedule": Message("Back on the list"),
    "finish": Message("Exam is done"),
    "stop": Message("Exam was given up"),
}
EVENTS_OF_STATE = {
    "SCHEDULED": ("arrive", "no show", "cancel"),
    "ARRIVED": ("finish", "cancel"),
    "READY": ("finish", "cancel"),
    "STARTED": ("finish", "stop"),
    "DEPARTED": ("arrive", "cancel"),
    "CANCELED": ("reschedule",),
    "NO SHOW": ("arrive", "reschedule"),
    "DISCONTINUED": ("reschedule",),
}


def with_choice(choices: tuple[tuple[str, str], ...], value: str) -> tuple[tuple[str, str], ...]:
    """The choices of a field, and what it holds, though that is not among them."""
    if not choices or any(one == value for one, _ in choices):
        return choices
    return (*choices, (value, value))


class Field(NamedTuple):
    """One field of a form, ready to show."""

    name: str
    label: str
    kind: str
    value: str
    required: bool
    problem: str
    choices: tuple[tuple[str, str], ...] = ()


# The registration form: its fields, what they fill, and how they are shown.
REGISTER_FIELDS = body_rows("""
    name           | group   | keyword                             | kind   | label
    family_name    | patient | PatientName                         | text   | Family name (Latin letters)
    given_name     | patient | PatientName                         | text   | Given name (Latin letters)
    chinese_name   | patient | PatientName                         | text   | Chinese name
    patient_id     | patient | PatientID                           | text   | Patient ID (made if empty)
    birth_date     | patient | PatientBirthDate                    | date   | Birth date
    sex            | patient | PatientSex                          | select | Sex
    phone          | patient | PatientTelephoneNumbers             | tel    | Phone
    weight         | patient | PatientWeight                       | text   | Weight (kg)
    height         | patient | PatientSize                         | text   | Height (cm)
    allergies      | patient | Allergies                           | text   | Allergies
    alerts         | patient | MedicalAlerts                       | text   | Medical alerts
    pregnancy      | patient | PregnancyStatus                     | select | Pregnancy
    device         | exam    | ScheduledStationAETitle             | select | Device
    modality       | exam    | Modality                            | select | Modality (that of the device if empty)
    procedure      | exam    | RequestedProcedureDescription       | text   | Exam
    date           | exam    | ScheduledProcedureStepStartDate     | date   | Date
    time           | exam    | ScheduledProcedureStepStartTime     | time   | Time
    priority       | exam    | RequestedProcedurePriority          | select | Priority
    physician      | exam    | ReferringPhysicianName              | text   | Referring physician
    accession      | exam    | AccessionNumber                     | text   | Accession number (made if empty)
    comment        | exam    | RequestedProcedureComments          | area   | Comment
    """)
REQUIRED_FIELDS = frozenset({"device", "procedure", "date"})


def shown_time(value: str) -> str:
    """A TM value as 09:30."""
    return f"{value[:2]}:{value[2:4]}" if len(value) >= 4 else value


def item_from_form(form: Mapping[str, str]) -> tuple[bytes, list[Problem]]:
    """A worklist item from the registration form, and what can be said against it already."""
    problems: list[Problem] = []
    texts = {
        "PatientName": person_name(form["family_name"], form["given_name"], form["chinese_name"]),
        "PatientBirthDate": form["birth_date"].replace("-", ""),
        "ReferringPhysicianName": form["physician"].strip().replace(" ", "^", 1)
        if form["physician"].isascii() or not re.search("[\u3400-\u9fff]", form["physician"])
        else person_name("", "", form["physician"]),
    }
    step = {
        "ScheduledStationAETitle": form["device"],
        "Modality": form["modality"],
        "ScheduledProcedureStepStartDate": form["date"].replace("-", ""),
        "ScheduledProcedureStepStartTime": form["time"].replace(":", ""),
    }
    for name, _, keyword, _, _ in REGISTER_FIELDS:
        if keyword not in texts and keyword not in step and keyword != "PregnancyStatus":
            texts[keyword] = form[name].strip()
    if height := texts["PatientSize"]:
        try:
            texts["PatientSize"] = f"{float(height.replace(',', '.')) / 100:g}"
        except ValueError:
            words = Message("{value} is not a number", value=height)
            problems.append(Problem(tag_of("PatientSize"), words))
            texts["PatientSize"] = ""
    texts["PatientWeight"] = texts["PatientWeight"].replace(",", ".")
    if resident := resident_number(texts["PatientID"]):
        for keyword, said in zip(("PatientBirthDate", "PatientSex"), resident, strict=True):
            if texts[keyword] not in ("", said):
                words = Message("is not that of the identity number")
                problems.append(Problem(tag_of(keyword), words))
            texts[keyword] = said
    texts["StudyInstanceUID"] = form.get("study", "")
    if not any(form[name].strip() for name in ("family_name", "given_name", "chinese_name")):
        texts["PatientName"] = ""
    for name, _, keyword, kind, _ in REGISTER_FIELDS:
        if name in REQUIRED_FIELDS and not form[name].strip():
            problems.append(Problem(tag_of(keyword), Message("is missing")))
        if kind in ("text", "tel") and set(form[name]) & set(
            "\\=" if vr_of(tag_of(keyword)) == "PN" else "\\"
        ):
            problems.append(Problem(tag_of(keyword), Message("may not have \\ or =")))
    born = texts["PatientBirthDate"]
    if is_date(born) and not "1850" <= born <= f"{datetime.date.today():%Y%m%d}":
        words = Message("{value} is not a birth date", value=form["birth_date"])
        problems.append(Problem(tag_of("PatientBirthDate"), words))
    parts = [text_elements(**texts)]
    if form["pregnancy"] in map(str, PREGNANCY_STATUS):
        value = int(form["pregnancy"]).to_bytes(2, "little")
        parts.append(ElementIndex(encode_element(tag_of("PregnancyStatus"), b"US", value)))
    sequence = encode_items(STEP_SEQUENCE, [bytes(text_elements(**step))])
    return EMPTY.merged(*parts, ElementIndex(sequence)), problems


def shown_at(device: Device | None, data: bytes) -> str:
    """The patient's name as a device will be shown it; nothing where that is all of it."""
    if not device:
        return ""
    query = ElementIndex(encode_element(tag_of("PatientName"), b"PN", b""))
    charset = character_set(device.character_set or ("ISO_IR 192",))
    search = Search(query, MWL_ATTRIBUTES, True, style_of(device, charset))
    answer = ElementIndex(recode(search.select(ElementIndex(data))))
    name = ElementIndex(data).get("PatientName")
    other = device.character_set and not charset_carries(device, answer.get("PatientName"))
    return answer.get("PatientName") if answer.get("PatientName") != name or other else ""


def charset_carries(device: Device, text: str) -> bool:
    """Whether a device's own set can carry a name."""
    try:
        character_set(device.character_set).encode(text, b"PN")
    except UnicodeEncodeError:
        return False
    return True


def elapsed(ctx: Context, t: Translator, stamp: str) -> str:
    """How long ago a time of the store was, in minutes or hours."""
    if not stamp:
        return ""
    then = datetime.datetime.fromisoformat(stamp)
    minutes = max(0, int((ctx.now() - then).total_seconds() // 60))
    if minutes < 120:
        return t("{minutes} min", minutes=minutes)
    return t("{hours} h {minutes} min", hours=minutes // 60, minutes=minutes % 60)


def person_events(
    ctx: Context, state: str, stations: Iterable[str], reporting: set[str]
) -> list[str]:
    """What a person may do with an exam; of a machine that does not report, say that it is done."""
    events = list(EVENTS_OF_STATE.get(state, ()))
    if state == "SCHEDULED" and not does_report(ctx, stations, reporting):
        events.insert(1, "finish")
    return events


def board_step(
    ctx: Context, t: Translator, row: tuple[Any, ...], reporting: set[str]
) -> dict[str, Any]:
    """One row of the board."""
    step_id, state, start_time, data, arrived_at, started_at, ended_at, _ = row
    index = ElementIndex(bytes(data))
    item = index.item("ScheduledProcedureStepSequence")
    since = ended_at or (started_at if state == "STARTED" else arrived_at)
    priority = index.get("RequestedProcedurePriority")
    events = person_events(ctx, state, filter(None, [row[7]]), reporting)
    return {
        "path": f"/step/{step_id}",
        "state": state,
        "time": shown_time(start_time),
        "name": shown_name(index.get("PatientName")),
        "patient_id": index.get("PatientID"),
        "exam": item.get("ScheduledProcedureStepDescription")
        or index.get("RequestedProcedureDescription"),
        "accession": index.get("AccessionNumber"),
        "priority": t(priority) if priority in ("STAT", "HIGH") else "",
        "since": elapsed(ctx, t, since),
        "actions": [(event, t(PERSON_EVENTS[event])) for event in events],
    }


def device_names(web: Web) -> dict[str, str]:
    """The name of its device by AE title."""
    return {title: d.name for d in web.access().devices for title in d.ae_titles}


def exams_by_device(
    web: Web, ctx: Context, t: Translator, date: str, found: list[Any] | None = None
) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of a day's exams, as the board has them, by device."""
    names = device_names(web)
    reporting = web.read(reporting_stations)
    by_device: dict[str, list[dict[str, Any]]] = {}
    for row in web.read(steps_of_day, date) if found is None else found:
        device = f"{names[row[7]]} ({row[7]})" if row[7] in names else row[7] or "?"
        by_device.setdefault(device, []).append(board_step(ctx, t, row, reporting))
    return sorted(by_device.items())


def render_board(web: Web, ctx: Context, t: Translator, csrf: str, date: str) -> str:
    """The board of a day, by device."""
    import bottle

    found = web.read(steps_of_day, date)
    devices = exams_by_device(web, ctx, t, date, found)
    counted = collections.Counter(row[1] for row in found)
    return bottle.template(
        BOARD_PART,
        t=t,
        csrf=csrf,
        count=len(found),
        totals=[(state, counted[state]) for state in STEP_STATES if counted[state]],
        devices=devices,
    )


def code_128(text: str) -> bytes:
    """A text of ASCII as a Code 128 barcode, SVG; nothing for what it cannot carry."""
    import barcode
    from barcode.writer import SVGWriter

    if not text or not text.isascii() or not text.isprintable():
        return b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    stream = io.BytesIO()
    barcode.get("code128", text, writer=SVGWriter()).write(stream, {"write_text": False})
    return stream.getvalue()


def qr_code(text: str) -> bytes:
    """A text as a QR code, SVG."""
    import segno

    stream = io.BytesIO()
    segno.make(text or " ", micro=False).save(stream, kind="svg", scale=4)
    return stream.getvalue()


STEP_FACTS = body_rows("""
    label                | keyword
    Patient              | PatientName
    Patient ID           | PatientID
    Birth date           | PatientBirthDate
    Sex                  | PatientSex
    Weight (kg)          | PatientWeight
    Allergies            | Allergies
    Medical alerts       | MedicalAlerts
    Exam                 | RequestedProcedureDescription
    Referring physician  | ReferringPhysicianName
    Priority             | RequestedProcedurePriority
    Comment              | RequestedProcedureComments
    Accession number     | AccessionNumber
    Requested procedure ID | RequestedProcedureID
    Study Instance UID   | StudyInstanceUID
    """)
STEP_ITEM_FACTS = body_rows("""
    label                | keyword
    Step ID              | ScheduledProcedureStepID
    Device               | ScheduledStationAETitle
    Modality             | Modality
    Date                 | ScheduledProcedureStepStartDate
    Time                 | ScheduledProcedureStepStartTime
    State                | ScheduledProcedureStepStatus
    """)


def shown_value(index: ElementIndex, keyword: str, t: Translator) -> str:
    """A value as people read it."""
    text, vr = index.get(keyword), vr_of(tag_of(keyword))
    readers = {"PN": shown_name, "DA": shown_date, "TM": shown_time}
    return readers.get(vr, lambda text: text.replace("\\", ", "))(text) if vr != "CS" else t(text)


def facts_of(
    index: ElementIndex, table: Iterable[list[str]], t: Translator
) -> list[tuple[str, str]]:
    """Label and value of what a data set has of a table's rows."""
    found = [(t(label), shown_value(index, keyword, t)) for label, keyword in table]
    return [(label, value) for label, value in found if value]


PERFORMED_FACTS = body_rows("""
    label       | keyword
    Device      | PerformedStationAETitle
    Step ID     | PerformedProcedureStepID
    State       | PerformedProcedureStepStatus
    Exam        | PerformedProcedureStepDescription
    Date        | PerformedProcedureStepStartDate
    Begin       | PerformedProcedureStepStartTime
    End         | PerformedProcedureStepEndTime
    """)


DOSE_FACTS = body_rows("""
    label                                   | keyword
    Exposures                               | TotalNumberOfExposures
    Fluoroscopy (s)                         | TotalTimeOfFluoroscopy
    Dose area product (dGy·cm²)             | ImageAndFluoroscopyAreaDoseProduct
    Entrance dose (dGy)                     | EntranceDose
    Entrance dose (mGy)                     | EntranceDoseInmGy
    Distance source to detector (mm)        | DistanceSourceToDetector
    Remark on dose                          | CommentsOnRadiationDose
    """)
EXPOSURE_FACTS = body_rows("""
    label             | keyword
    Radiation mode    | RadiationMode
    KVP               | KVP
    Tube current (µA) | XRayTubeCurrentInuA
    Exposure time (ms) | ExposureTime
    """)


def performed_facts(
    data: bytes, remark: str, found_by: str, t: Translator
) -> list[tuple[str, str]]:
    """What a performed step's page part says."""
    index = ElementIndex(data)
    facts = facts_of(index, PERFORMED_FACTS, t)
    reason = index.item("PerformedProcedureStepDiscontinuationReasonCodeSequence")
    if reason.found:
        code = reason.get("CodeValue")
        words = DISCONTINUATION_REASONS.get(code, reason.get("CodeMeaning"))
        facts.append((t("Reason"), f"{t(words)} ({code})"))
    for number, item in enumerate(index.items(SERIES), 1):
        images = len(item.items(tag_of("ReferencedImageSequence")))
        others = len(item.items(tag_of("ReferencedNonImageCompositeSOPInstanceSequence")))
        words = (item.get("ProtocolName"), item.get("SeriesDescription"),
                 shown_name(item.get("OperatorsName")))  # fmt: skip
        counts = t("{images} images, {others} others", images=images, others=others)
        told = ", ".join(filter(None, (*words, counts)))
        facts.append((t("Series {number}", number=number), told))
    facts += facts_of(index, DOSE_FACTS, t)
    for exposure in index.items(tag_of("ExposureDoseSequence")):
        words = ", ".join(map(" ".join, facts_of(exposure, EXPOSURE_FACTS, t)))
        facts.append((t("Exposure"), words))
    if remark:
        facts.append((t("Left out by the device"), remark))
    if found_by != "study":  # to be doubted
        facts.append((t("Matched by"), t(found_by)))
    return facts


def register_once(ctx: Context, item: bytes, same_id: str, ask: bool) -> None:
    """Schedule an item unless its study is known: the same form twice, by a double click.

    ask  refuse, so that it is asked, where somebody of this name and birth date is known
    """
    index = ElementIndex(item)
    if step_known(index.get("StudyInstanceUID")):
        return
    problems = [
        Problem(tag_of("PatientName"), Message(SAME_PERSON, value=patient.patient_id))
        for patient in (similar_patients(index) if ask else ())
    ]
    if problems:
        raise Refusal(Status.DUPLICATE_SOP_INSTANCE, problems=problems)
    schedule(ctx, item, same_id)


NAVIGATION = body_rows("""
    path         | words                 | role
    /            | Board                 | desk
    /register    | Register              | desk
    /patients    | Patients              | desk
    /workitems   | Workitems             | desk
    /leftovers   | Leftovers             | desk
    /unscheduled | Unscheduled           | desk
    /why         | Why not there?        | desk
    /import      | Import                | desk
    /catalogue   | Catalogue             | technologist
    /watchers    | Watchers              | technologist
    /passed-on   | Passed on             | technologist
    /commitments | Are they safe?        | technologist
    /orphans     | Stuck                 | technologist
    /devices     | Devices               | technologist
    /figures     | Figures               | technologist
    /box         | The box               | admin
    """)


PASSED_ON_WORDS = {
    (MPPS, "N-CREATE"): Message("Exam has begun"),
    (MPPS, "N-SET"): Message("Exam has changed or ended"),
    (MPPS_NOTIFICATION, "N-EVENT-REPORT"): Message("Notification of an exam"),
    (INSTANCE_AVAILABILITY, "N-CREATE"): Message("Images are in the archive"),
}
LIGHTS = {"good": "\N{BLACK CIRCLE}", "warning": "\N{BLACK UP-POINTING TRIANGLE}",
          "bad": "\N{BLACK SQUARE}"}  # fmt: skip
# What each role may do, in words; the pages and routes themselves say the same with `enter`.
RIGHTS = body_rows("""
    what                                                        | least
    See the board, register, correct and find patients          | desk
    Arrived, did not come, cancel, exam is done                 | desk
    Make, claim and end workitems                               | desk
    Match what came without an order; why not there; import     | desk
    Devices, catalogue, watchers, what is passed on, are they safe | technologist
    End what is stuck, end subscriptions of others              | admin
    Users, tokens, audit log, settings, backup                  | admin
    """)
USER_DEEDS = {"end": end_sessions, "delete": delete_user, "delete token": delete_token}
COMMITMENT_STATES = {
    "asked": Message("being judged"),
    "judged": Message("to be told"),
    "told": Message("told"),
    "given up": Message("could not be told"),
    "dropped": Message("dropped"),
}


def verdict_words(t: Translator, commitment: Any, good: int, bad: int, open_: int) -> str:
    """What a judgement means for whoever stands at the machine."""
    if commitment.state == "dropped":
        return ""
    words = []
    if good:
        words.append(t("{count} images are safe: the machine may delete them", count=good))
    if bad:
        words.append(t("{count} images are not safe: do not delete them", count=bad))
    if open_:
        words.append(t("{count} images are not judged yet: do not delete them", count=open_))
    return "; ".join(words)


# What a person may do with a workitem: in which states, who, and what is asked for.
WORKITEM_ACTIONS = body_rows("""
    event     | states                | who    | role         | asks              | words
    claim     | SCHEDULED             | anyone | desk         |                   | Claim it
    complete  | IN PROGRESS           | holder | desk         | remark            | It is done
    give up   | IN PROGRESS           | holder | desk         | code reason       | Give it up
    decline   | IN PROGRESS           | asked  | desk         | reason            | Do not cancel it
    cancel    | SCHEDULED | anyone | desk         | code reason uri contact | Cancel it
    cancel    | IN PROGRESS | anyone | desk         | code reason uri contact | Request cancellation
    assign    | SCHEDULED             | anyone | desk         | station performer | Assign it
    readiness | SCHEDULED             | anyone | desk         | readiness         | Set its inputs
    subscribe | any                   | anyone | technologist | receiver lock     | Subscribe a device
    unsubscribe | any                 | anyone | admin        | watcher reason    | End a subscription
    release   | any                   | anyone | admin        | watcher reason    | Release a deletion lock
    end       | SCHEDULED, IN PROGRESS | anyone | admin        | code reason       | End it, whoever has it
    """)
WORKITEM_QUESTIONS = {
    "remark": Message("Remark"),
    "reason": Message("Reason"),
    "code": Message("Kind of reason"),
    "uri": Message("Contact (telephone or e-mail)"),
    "contact": Message("Contact's name"),
    "station": Message("Station"),
    "performer": Message("Person"),
    "readiness": Message("Inputs"),
    "receiver": Message("Device"),
    "watcher": Message("Device"),
    "lock": Message("Deletion lock"),
}
CHANNEL_WORDS = {"dimse": "DICOM", "websocket": "WebSocket"}
ORPHAN_WORDS = {
    "lock": Message("Deletion lock on what has ended"),
    "silent": Message("In progress without news"),
    "expired": Message("Past its expiration"),
    "events": Message("Events not delivered"),
    "passed on": Message("Not passed on"),
    "exam": Message("Exam has begun, and no news since"),
}
ORPHAN_ACTIONS = {
    "lock": Message("Release the lock"),
    "silent": Message("End it"),
    "expired": Message("End it"),
    "events": Message("Give them up"),
    "passed on": Message("Give them up"),
    "exam": Message("Exam is done"),
}
ORPHAN_PAGES = {"events": "/watchers", "passed on": "/passed-on"}  # of who is not told
WORKITEM_FIELDS = body_rows("""
    name       | keyword                             | kind   | label
    label      | ProcedureStepLabel                  | text   | What is to be done
    code       | ScheduledWorkitemCodeSequence       | select | Kind of work
    worklist   | WorklistLabel                       | text   | Worklist
    priority   | ScheduledProcedureStepPriority      | select | Priority
    readiness  | InputReadinessState                 | select | Inputs
    date       | ScheduledProcedureStepStartDateTime | date   | Date
    time       | ScheduledProcedureStepStartDateTime | time   | Time
    expires    | ScheduledProcedureStepExpirationDateTime | date | Expires after
    patient    | PatientName                         | text   | Patient's name
    patient_id | PatientID                           | text   | Patient ID
    comment    | CommentsOnTheScheduledProcedureStep | area   | Comment
    """)
# The four modules of PS3.3 C.30; the first item where a path leads through a sequence.
WORKITEM_FACTS = body_rows("""
    module       | label               | path
    Scheduled    | What is to be done  | ProcedureStepLabel
    Scheduled    | Kind of work        | ScheduledWorkitemCodeSequence
    Scheduled    | Worklist            | WorklistLabel
    Scheduled    | Priority            | ScheduledProcedureStepPriority
    Scheduled    | Inputs              | InputReadinessState
    Scheduled    | Begin               | ScheduledProcedureStepStartDateTime
    Scheduled    | Expected end        | ExpectedCompletionDateTime
    Scheduled    | Expires after       | ScheduledProcedureStepExpirationDateTime
    Scheduled    | Station             | ScheduledStationNameCodeSequence
    Scheduled    | Kind of station     | ScheduledStationClassCodeSequence
    Scheduled    | Place               | ScheduledStationGeographicLocationCodeSequence
    Scheduled    | Person              | ScheduledHumanPerformersSequence > HumanPerformerName
    Scheduled    | Input sets          | InputInformationSequence
    Scheduled    | Comment             | CommentsOnTheScheduledProcedureStep
    Relationship | Patient             | PatientName
    Relationship | Patient ID          | PatientID
    Relationship | Birth date          | PatientBirthDate
    Relationship | Sex                 | PatientSex
    Relationship | Accession number    | ReferencedRequestSequence > AccessionNumber
    Relationship | Exam                | ReferencedRequestSequence > RequestedProcedureDescription
    Relationship | Requested procedure ID | ReferencedRequestSequence > RequestedProcedureID
    Relationship | Study Instance UID  | StudyInstanceUID
    Progress     | State               | ProcedureStepState
    Progress     | Progress (%)        | ProcedureStepProgressInformationSequence > ProcedureStepProgress
    Progress     | Progress            | ProcedureStepProgressInformationSequence > ProcedureStepProgressDescription
    Progress     | Contact             | ProcedureStepProgressInformationSequence > ProcedureStepCommunicationsURISequence > ContactURI
    Progress     | Contact's name      | ProcedureStepProgressInformationSequence > ProcedureStepCommunicationsURISequence > ContactDisplayName
    Progress     | Canceled            | ProcedureStepProgressInformationSequence > ProcedureStepCancellationDateTime
    Progress     | Kind of reason      | ProcedureStepProgressInformationSequence > ProcedureStepDiscontinuationReasonCodeSequence
    Progress     | Reason              | ProcedureStepProgressInformationSequence > ReasonForCancellation
    Performed    | Station             | UnifiedProcedureStepPerformedProcedureSequence > PerformedStationNameCodeSequence
    Performed    | Person              | UnifiedProcedureStepPerformedProcedureSequence > ActualHumanPerformersSequence > HumanPerformerName
    Performed    | Begin               | UnifiedProcedureStepPerformedProcedureSequence > PerformedProcedureStepStartDateTime
    Performed    | End                 | UnifiedProcedureStepPerformedProcedureSequence > PerformedProcedureStepEndDateTime
    Performed    | Kind of work        | UnifiedProcedureStepPerformedProcedureSequence > PerformedWorkitemCodeSequence
    Performed    | Output sets         | UnifiedProcedureStepPerformedProcedureSequence > OutputInformationSequence
    Performed    | Comment             | UnifiedProcedureStepPerformedProcedureSequence > CommentsOnThePerformedProcedureStep
    """)
# What the time line says of an event of each type, beside its name.
HAPPENING_PATHS = {
    0: ("ReasonForCancellation",),
    1: ("ProcedureStepState", "InputReadinessState", "ReasonForCancellation"),
    2: ("RequestingAE", "ReasonForCancellation", "ProcedureStepDiscontinuationReasonCodeSequence",
        "ContactDisplayName", "ContactURI"),
    3: ("ProcedureStepProgressInformationSequence > ProcedureStepProgress",
        "ProcedureStepProgressInformationSequence > ProcedureStepProgressDescription"),
    5: ("ScheduledStationNameCodeSequence", "HumanPerformerCodeSequence"),
}  # fmt: skip


def fact(index: ElementIndex, path: str, t: Translator, zone: datetime.tzinfo | None) -> str:
    """What a data set says at a path of keywords, as people read it; codes by their meaning."""
    *outer, keyword = path.split(" > ")
    for sequence in outer:
        index = index.item(sequence)
    tag = tag_of(keyword)
    if vr_of(tag) == "SQ":
        items = index.items(tag)
        meanings = [item.get("CodeMeaning") for item in items if item.get("CodeMeaning")]
        return ", ".join(map(t, meanings)) or (str(len(items)) if items else "")
    if vr_of(tag) == "DT" and index.get(keyword):
        try:
            at, _ = datetime_bounds(index.get(keyword), zone)
        except (ValueError, OverflowError):
            return index.get(keyword)
        return f"{at.astimezone(zone):%Y-%m-%d %H:%M}"
    return shown_value(index, keyword, t)


def happening_words(happening: Happening, t: Translator, zone: datetime.tzinfo | None) -> str:
    """An event of the time line in words."""
    name = next(name for name, number in EVENT_TYPES.items() if number == happening.event_type)
    index = ElementIndex(happening.data)
    said = [fact(index, path, t, zone) for path in HAPPENING_PATHS.get(happening.event_type, ())]
    return f"{t(name)}: {', '.join(filter(None, said))}"


def workitem_from_form(form: Mapping[str, str], step: bytes = b"") -> bytes:
    """A workitem from the form. Refuses 0106.

    step  the scheduled procedure step that it is for, whose patient and request it has
    """
    if form["code"] not in WORKITEM_CODES:
        problem = Problem(tag_of("ScheduledWorkitemCodeSequence"), Message("is not a kind of work"))
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[problem])
    codes = encode_items(tag_of("ScheduledWorkitemCodeSequence"), [workitem_code(form["code"])])
    day, clock = form["date"].replace("-", ""), form["time"].replace(":", "")
    texts = text_elements(
        ProcedureStepState="SCHEDULED",
        ProcedureStepLabel=form["label"],
        WorklistLabel=form["worklist"],
        ScheduledProcedureStepPriority=form["priority"],
        InputReadinessState=form["readiness"],
        ScheduledProcedureStepStartDateTime=day and day + clock,
        ScheduledProcedureStepExpirationDateTime=form["expires"].replace("-", ""),
        PatientName=typed_name(form["patient"]),
        PatientID=form["patient_id"],
        CommentsOnTheScheduledProcedureStep=form["comment"],
    )
    relationship = ElementIndex(relationship_of_step(step) if step else b"")
    made = texts.merged(ElementIndex(codes), relationship)
    if form["expires"] and form["date"] > form["expires"]:
        tag = tag_of("ScheduledProcedureStepExpirationDateTime")
        problem = Problem(tag, Message("is before its begin"))
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[problem])
    return with_empty(well_formed(made), UPS_ATTRIBUTES, "create")


def workitems_path(state: str, label: str) -> str:
    """Where workitems of a state and a worklist label are listed."""
    return f"/workitems?{urllib.parse.urlencode({'state': state, 'label': label})}"


def shown_instant(stamp: str, zone: datetime.tzinfo | None) -> str:
    """A time of the store as the clinic's clock shows it."""
    if not stamp:
        return ""
    return f"{datetime.datetime.fromisoformat(stamp).astimezone(zone):%Y-%m-%d %H:%M:%S}"


class Pages:
    """The pages, as methods that bottle calls; `add_pages` binds them to their paths."""

    def __init__(self, web: Web) -> None:
        import bottle

        self.web, self.bottle = web, bottle
        self.catalogues = load_catalogues(web.static)

    # What all pages share

    @property
    def request(self) -> Any:
        """The request being served."""
        return self.bottle.request

    def translator(self) -> Translator:
        """The language of the one who asks."""
        request = self.request
        language = choose_language(
            self.catalogues,
            request.get_cookie("language") or "",
            request.get_header("Accept-Language", ""),
            self.web.config.clinic.language,
        )
        return Translator(language, self.catalogues[language])

    def page(self, template: str, title: str, login: Login | None = None, **values: Any) -> str:
        """A whole page around a template."""
        t = self.translator()
        here = self.request.path
        role = login.role if login else ""
        navigation = [(path, t(words)) for path, words, least in NAVIGATION if permit(role, least)]
        notices = [t(notice) for notice in self.web.box.notices()] if login else []
        shared = {"t": t, "here": here, "login": login, "static": self.web.static}
        return self.bottle.template(
            LAYOUT,
            **shared,
            base=self.bottle.template(template, **shared, **values),
            title=t(title),
            clinic=self.web.config.clinic.name,
            refresh=values.get("refresh", False),
            navigation=navigation,
            notices=notices,
            languages=[(code, LANGUAGES.get(code, code)) for code in self.catalogues],
        )

    def form(self, name: str) -> str:
        """A field of the form that was sent, as text."""
        return self.request.forms.getunicode(name) or ""

    def redirect(self, path: str) -> str:
        """Answer with 303, so that the back button repeats nothing."""
        response = self.bottle.response
        response.status = 303
        response.set_header("Location", path)
        return ""

    def set_cookie(self, name: str, value: str, **options: Any) -> None:
        """A cookie that scripts cannot read, for this site alone."""
        secure = self.request.urlparts.scheme == "https" or (
            self.web.config.web.public_url.startswith("https")
        )
        self.bottle.response.set_cookie(
            name, value, path="/", httponly=True, samesite="lax", secure=secure, **options
        )

    # Login

    def login_page(self, problem: str = "") -> str:
        """GET /login."""
        following = safe_path(self.request.query.getunicode("next") or self.form("next"))
        return self.page(
            LOGIN_PAGE, "Log in", problem=problem, next=following, name=self.form("name")
        )

    def log_in(self) -> str:
        """POST /login."""
        web, name = self.web, self.form("name").strip()
        ctx = web.context(Actor(name[:64] or "nobody", client_address(self.request)))
        try:
            check_origin(web, self.request)
            user_id = web.read(authenticate, ctx, name, self.form("password"))
        except Refusal as refusal:
            if refusal.status is Status.NOT_AUTHORIZED:
                web.write(note_login_failure, ctx, name)
            self.bottle.response.status = (
                429 if refusal.status is Status.RESOURCE_LIMITATION else 403
            )
            return self.login_page(refusal.detail)
        secret = web.write(open_session, ctx, user_id)
        self.set_cookie("minris", secret, max_age=web.config.web.session_hours * 3600)
        return self.redirect(safe_path(self.form("next")))

    def log_out(self) -> str:
        """POST /logout."""
        _, ctx = enter(self.web, self.request, "desk")
        if cookie := self.request.get_cookie("minris"):
            self.web.write(end_session, ctx, cookie)
        self.bottle.response.delete_cookie("minris", path="/")
        return self.redirect("/login")

    def language(self) -> str:
        """GET /language: remember the language chosen."""
        wanted = self.request.query.getunicode("language") or ""
        if wanted in self.catalogues:
            self.set_cookie("language", wanted, max_age=365 * 86400)
        return self.redirect(safe_path(self.request.query.getunicode("back")))

    # The board and a step

    def board(self) -> str:
        """GET /: the day by device; with ?part=board the board alone."""
        login, ctx = enter(self.web, self.request, "desk")
        date = (self.request.query.getunicode("date") or "").replace("-", "")
        day = date if is_date(date) else ctx.today()
        board = render_board(self.web, ctx, self.translator(), login.csrf, day)
        if self.request.query.get("part") == "board":
            return board
        part = "/?part=board" + (f"&date={day}" if is_date(date) else "")
        return self.page(
            BOARD_PAGE,
            "Board",
            login,
            refresh=True,
            board=board,
            part=part,
            day=shown_date(day),
        )

    def step(self, row_id: int) -> str:
        """GET /step/…: all that is known of one step."""
        login, ctx = enter(self.web, self.request, "desk")
        t = self.translator()
        row = self.web.read(step_row, row_id)
        data = bytes(row.data)
        index = ElementIndex(data)
        item = index.item("ScheduledProcedureStepSequence")
        facts = facts_of(index, STEP_FACTS, t) + facts_of(item, STEP_ITEM_FACTS, t)
        if row.remark:
            facts.append((t("Remark"), row.remark))
        if row.told_by:
            facts.append((t("Told by"), t(TOLD_BY.get(row.told_by, row.told_by))))
        told = self.request.query.get("registered")
        stations = [title for title in item.get("ScheduledStationAETitle").split("\\") if title]
        device = self.web.access().device(stations[0]) if stations else None
        events = person_events(ctx, row.status, stations, self.web.read(reporting_stations))
        shown, warnings = shown_at(device, data), []
        if shown:
            warnings.append(
                t("{device} will show the name as {name}", device=device.name, name=shown)
            )
        return self.page(
            STEP_PAGE,
            "Exam",
            login,
            told=t("Registered. The device finds the patient on its worklist.") if told else "",
            facts=facts,
            warnings=warnings,
            actions=[(e, t(PERSON_EVENTS[e])) for e in events]
            + ([("take back", t("Take back"))] if can_take_back(ctx, row) else []),
            links=self._step_links(t, row_id, index, row.status),
            visit=[
                (shown_instant(one.at, ctx.config.zone), t(one.what), t(one.about))
                for one in self.web.read(visit_of, row_id)
            ],
            performed=[
                (
                    t("Performed step {number}", number=number),
                    performed,
                    performed_facts(*row, t)
                    + self._arrival_facts(performed, t)
                    + self._passing_facts(performed, t),
                )
                for number, (performed, *row) in enumerate(self.web.read(performed_of, row_id), 1)
            ],
            path=f"/step/{row_id}",
            row_id=row_id,
            csrf=login.csrf,
        )

    def _step_links(
        self, t: Translator, row_id: int, index: ElementIndex, state: str
    ) -> list[tuple[str, str]]:
        """Where one goes from the page of an exam."""
        return [
            (f"/step/{row_id}/edit", t("Change exam"))
            if isinstance(STEP_TRANSITIONS["reschedule", state], str)
            else ("", ""),
            (f"/step/{row_id}/slip", t("Slip")),
            (f"/register?order={row_id}", t("Another exam in this order")),
            (f"/workitems/new?step={row_id}", t("New workitem")),
            *(
                (f"/workitem/{uid}", f"{label}: {t(state_)}")
                for uid, label, state_ in self.web.read(
                    workitems_of_request, index.get("AccessionNumber")
                )
            ),
            (f"/patients?q={urllib.parse.quote(index.get('PatientID'))}", t("Patient")),
            (f"/why?q={urllib.parse.quote(index.get('AccessionNumber'))}", t("Why not there?")),
        ]

    def _arrival_facts(self, performed_id: int, t: Translator) -> list[tuple[str, str]]:
        """How many of the images that a performed step names have come to an archive."""
        arrival = self.web.read(performed_arrival, performed_id)
        if not arrival.references:
            return []
        count = len(arrival.references)
        words = t("{number} of {count} images", number=count - len(arrival.missing), count=count)
        return [(t("In the archive"), words)]

    def _passing_facts(self, performed_id: int, t: Translator) -> list[tuple[str, str]]:
        """To whom a performed step was passed on, and what came of it."""
        words: dict[str, list[str]] = collections.defaultdict(list)
        for receiver, operation, *how in self.web.read(passed_on_of, performed_id):
            words[receiver].append(f"{operation}: {self._passing_words(t, *how)}")
        return [
            (t("Passed on to {device}", device=ae), "; ".join(told)) for ae, told in words.items()
        ]

    def step_event(self, row_id: int) -> str:
        """POST /step/…: arrived, cancelled, did not come, back on the list."""
        _, ctx = enter(self.web, self.request, "desk")
        event = self.form("event")
        if event == "take back":
            self.web.write(take_back, ctx, row_id)
            return self.redirect(safe_path(self.request.get_header("Referer"), "/"))
        if event not in PERSON_EVENTS:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
        index = ElementIndex(self.web.read(get_step, row_id)[0])
        item = index.item("ScheduledProcedureStepSequence")
        self.web.write(
            change_step,
            ctx,
            event,
            index.get("StudyInstanceUID"),
            item.get("ScheduledProcedureStepID"),
            self.form("remark"),
        )
        return self.redirect(safe_path(self.request.get_header("Referer"), "/"))

    def waiting(self) -> str:
        """GET /waiting: who has come and is under way, names masked, for a screen in the waiting room."""
        login, ctx = enter(self.web, self.request, "desk")
        t = self.translator()
        names = device_names(self.web)
        people = []
        for _, state, _, data, _, _, _, station in self.web.read(steps_of_day, ctx.today()):
            if state in ("ARRIVED", "READY", "STARTED"):
                index = ElementIndex(bytes(data))
                number = index.get("AccessionNumber")[-4:]
                name = masked_name(index.get("PatientName"))
                people.append((name, number, names.get(station, station or ""), state))
        board = self.bottle.template(WAITING_PART, t=t, people=people)
        if self.request.query.get("part") == "board":
            return board
        return self.page(WAITING_PAGE, "Waiting room", login, refresh=True, board=board)

    def print_day(self) -> str:
        """GET /print: the exams of a day on paper."""
        login, ctx = enter(self.web, self.request, "desk")
        t = self.translator()
        asked = (self.request.query.getunicode("date") or "").replace("-", "")
        date = asked if is_date(asked) else ctx.today()
        devices = exams_by_device(self.web, ctx, t, date)
        day = t("Exams of {date}", date=shown_date(date))
        return self.page(PRINT_PAGE, day, login, devices=devices, date=shown_date(date))

    def _span(self, ctx: Context) -> tuple[str, str]:
        """The first and the last day that are asked for, DA; else the last four weeks."""
        asked = [(self.request.query.getunicode(name) or "").replace("-", "")
                 for name in ("first", "last")]  # fmt: skip
        month = f"{ctx.local_now() - datetime.timedelta(days=27):%Y%m%d}"
        first, last = (one if is_date(one) else other
                       for one, other in zip(asked, (month, ctx.today()), strict=True))  # fmt: skip
        return first, last

    def _figures(self, ctx: Context, t: Translator) -> tuple[tuple[str, ...], list[list[str]]]:
        """The table of figures: a row for each week and station."""
        weeks: dict[tuple[str, str], list[Day]] = {}
        for day in self.web.read(days_between, *self._span(ctx)):
            year, week, _ = datetime.date.fromisoformat(shown_date(day.date)).isocalendar()
            weeks.setdefault((f"{year}-W{week:02}", day.station), []).append(day)
        names = device_names(self.web)
        columns = (t("Week"), t("Device"), t("Exams"), t("Done"), t("Given up"), t("Did not come"),
                   t("Waiting, minutes (median)"), t("In the room, minutes (median)"))  # fmt: skip
        rows_ = []
        for (week, station), days in sorted(weeks.items()):
            counts = [sum(getattr(day, key) for day in days)
                      for key in ("exams", "completed", "discontinued", "no_show")]  # fmt: skip
            medians = []
            for key in ("waiting", "room"):
                minutes = list(itertools.chain.from_iterable(getattr(day, key) for day in days))
                medians.append(f"{statistics.median(minutes):.0f}" if minutes else "")
            name = names.get(station, station)
            rows_.append([week, name, *map(str, counts), *medians])
        return columns, rows_

    def figures(self) -> str:
        """GET /figures: exams by week and device, how long people waited, how long exams took."""
        login, ctx = enter(self.web, self.request, "technologist")
        columns, rows_ = self._figures(ctx, self.translator())
        first, last = map(shown_date, self._span(ctx))
        return self.page(
            FIGURES_PAGE, "Figures", login, columns=columns, rows=rows_, first=first, last=last
        )

    def figures_csv(self) -> bytes:
        """GET /figures.csv: the same, for a spreadsheet."""
        _, ctx = enter(self.web, self.request, "technologist")
        columns, rows_ = self._figures(ctx, self.translator())
        stream = io.StringIO()
        csv.writer(stream).writerows(
            [columns, *([no_formula(cell) for cell in row] for row in rows_)]
        )
        response = self.bottle.response
        response.content_type = "text/csv; charset=utf-8"
        response.set_header("Content-Disposition", 'attachment; filename="figures.csv"')
        return b"\xef\xbb\xbf" + stream.getvalue().encode()

    def figures_svg(self) -> str:
        """GET /figures.svg: exams by day, as bars."""
        _, ctx = enter(self.web, self.request, "technologist")
        counts: collections.Counter[str] = collections.Counter()
        for day in self.web.read(days_between, *self._span(ctx)):
            counts[day.date] += day.exams
        most = max(counts.values(), default=1)
        bars = [(f"{date[6:8]}.{date[4:6]}.", count, round(120 * count / most))
                for date, count in sorted(counts.items())[-60:]]  # fmt: skip
        self.bottle.response.content_type = "image/svg+xml"
        return self.bottle.template(CHART, bars=bars, width=40 + 26 * max(1, len(bars)))

    def slip(self, row_id: int) -> str:
        """GET /step/…/slip: what the patient is handed, with codes that a scanner reads."""
        login, _ = enter(self.web, self.request, "desk")
        t = self.translator()
        index = ElementIndex(self.web.read(get_step, row_id)[0])
        item = index.item("ScheduledProcedureStepSequence")
        device = self.web.access().device(item.get("ScheduledStationAETitle").split("\\")[0])
        facts = [
            (t("Patient ID"), index.get("PatientID")),
            (t("Birth date"), shown_date(index.get("PatientBirthDate"))),
            (t("Exam"), index.get("RequestedProcedureDescription")),
            (t("Date"), shown_date(item.get("ScheduledProcedureStepStartDate"))),
            (t("Time"), shown_time(item.get("ScheduledProcedureStepStartTime"))),
            (t("Device"), device.name if device else item.get("ScheduledStationAETitle")),
            (t("Accession number"), index.get("AccessionNumber")),
        ]
        return self.page(
            SLIP_PAGE, "Slip", login, name=shown_name(index.get("PatientName")), facts=facts,
            row_id=row_id, accession=index.get("AccessionNumber"),
            patient_id=index.get("PatientID"),
        )  # fmt: skip

    def accession_svg(self, row_id: int) -> bytes:
        """GET /step/…/code128.svg: the accession number as bars."""
        return code_128(self._for_code(row_id).get("AccessionNumber"))

    def patient_svg(self, row_id: int) -> bytes:
        """GET /step/…/qr.svg: the Patient ID as a QR code."""
        return qr_code(self._for_code(row_id).get("PatientID"))

    def _for_code(self, row_id: int) -> ElementIndex:
        enter(self.web, self.request, "desk")
        index = ElementIndex(self.web.read(get_step, row_id)[0])
        self.bottle.response.content_type = "image/svg+xml"
        return index

    # Registration

    def prefilled(self, ctx: Context) -> dict[str, str]:
        """The form as it is first shown: for nobody yet, a known patient, or a known order."""
        now, query = ctx.local_now(), self.request.query
        form = {"date": f"{now:%Y-%m-%d}", "time": f"{now:%H:%M}", "study": ctx.new_uid()}
        if query.get("emergency"):
            form |= {"family_name": "Unknown", "given_name": f"Emergency {now:%d.%m. %H:%M}",
                     "priority": "STAT"}  # fmt: skip
        row_id = query.get("order") or query.get("patient") or ""
        if not re.fullmatch("[0-9]{1,18}", row_id):
            return form
        if query.get("order"):
            index = ElementIndex(self.web.read(get_step, int(row_id))[0])
            form |= {
                "accession": index.get("AccessionNumber"),
                "physician": index.get("ReferringPhysicianName").replace("^", " "),
            }
        else:
            index = ElementIndex(self.web.read(get_patient, int(row_id)))
        return form | form_of_patient(index)

    def register_page(
        self, form: Mapping[str, str] | None = None, problems: Iterable[Problem] = ()
    ) -> str:
        """GET /register, and the form again with words beside each field that is wrong."""
        login, ctx = enter(self.web, self.request, "desk")
        t = self.translator()
        form = form or self.prefilled(ctx)
        by_tag = collections.defaultdict(list)
        for problem in problems:
            by_tag[problem.tag].append(t(problem.words))
        shown: set[int] = set()
        groups: dict[str, list[Field]] = {t("Patient"): [], t("Exam"): []}
        for name, group, keyword, kind, label in REGISTER_FIELDS:
            tag = tag_of(keyword)
            words = "; ".join(by_tag[tag]) if tag not in shown else ""
            shown.add(tag)
            required = name in REQUIRED_FIELDS
            choices = self.choices(name, t)
            field = Field(name, t(label), kind, form.get(name, ""), required, words, choices)
            groups[t(group.capitalize())].append(field)
        others = [t(p.words) for p in problems if p.tag not in shown]
        if any(p.words.key == SAME_ID for p in problems) or form.get("same_id"):
            groups[t("Patient")].insert(4, self._same_id_field(t, form))
        if similar := [p for p in problems if p.words.key == SAME_PERSON]:
            groups[t("Patient")].insert(4, self._same_person_field(t, similar))
        listed = [
            f"{f.label}: {f.problem}" for fields in groups.values() for f in fields if f.problem
        ]
        return self.page(
            FORM_PAGE,
            "Register",
            login,
            action="/register",
            after=[("/register?emergency=1", t("Unknown emergency patient"))],
            submit=t("Register"),
            csrf=login.csrf,
            hidden=[("study", form.get("study", ""))],
            groups=list(groups.items()),
            problems=listed + others,
            finding="/find",
        )

    @staticmethod
    def _same_id_field(t: Translator, form: Mapping[str, str]) -> Field:
        """Shown when the Patient ID belongs to another name: who is right must be said."""
        choices = (
            ("", t("Please choose")),
            ("update", t("The same patient: correct the name")),
            ("new", t("Another patient: make a new ID")),
        )
        label = t("This Patient ID is known with another name")
        return Field("same_id", label, "select", form.get("same_id", ""), True, "", choices)

    @staticmethod
    def _same_person_field(t: Translator, similar: list[Problem]) -> Field:
        """Shown when someone of this name and birth date has another Patient ID."""
        known = [str(problem.words.values["value"]) for problem in similar]
        choices = (
            ("", t("Please choose")),
            *((i, t("The same patient: use the ID {value}", value=i)) for i in known),
            ("another", t("Another patient of the same name")),
        )
        label = t("This name and birth date are known")
        return Field("same_person", label, "select", "", True, "", choices)

    def choices(self, name: str, t: Translator) -> tuple[tuple[str, str], ...]:
        """What may be chosen in a field of the registration form."""
        devices = [d for d in self.web.access().devices if d.role == "modality"]
        return {
            "sex": (("", ""), ("F", t("Female")), ("M", t("Male")), ("O", t("Other"))),
            "pregnancy": (
                ("", ""),
                *((str(value), t(words)) for value, words in PREGNANCY_STATUS.items()),
            ),
            "device": (("", ""), *((d.ae_title, f"{d.name} ({d.ae_title})") for d in devices)),
            "modality": (("", ""), *((m, m) for m in MODALITIES)),
            "priority": (("", ""), *((p, t(p)) for p in ("ROUTINE", "HIGH", "STAT"))),
            "procedure": tuple((row.meaning, row.code) for row in self.web.read(procedures_in_use)),
        }.get(name, ())

    def register(self) -> str:
        """POST /register: the step's page, or the form again with nothing saved."""
        _, ctx = enter(self.web, self.request, "desk")
        form = {row[0]: self.form(row[0]) for row in REGISTER_FIELDS}
        form |= {name: self.form(name) for name in ("study", "same_id", "same_person")}
        if value_problem("UI", form["study"]) or not form["study"]:
            form["study"] = ctx.new_uid()
        if not self.same_form(form):  # the form of another patient, by the back button
            form["study"] = ctx.new_uid()
        if form["same_id"] == "new":
            form |= {"patient_id": "", "same_id": ""}
        if form["same_person"] not in ("", "another"):
            form["patient_id"] = form["same_person"]
        item, problems = item_from_form(form)
        item = self.web.read(apply_procedure, item)
        same_id = "update" if form["same_id"] == "update" else "refuse"
        try:
            if problems:
                self._add_problems(ctx, item, problems)
            ask = not form["same_person"]
            self.web.write(register_once, ctx, item, same_id, ask)
        except Refusal as refusal:
            self.bottle.response.status = 422
            return self.register_page(form, refusal.problems)
        return self.redirect(f"/step/{self.web.read(step_known, form['study'])}?registered=1")

    def same_form(self, form: Mapping[str, str]) -> bool:
        """Whether the study of a form is new, or that of this very form, sent a second time."""
        known = self.web.read(step_known, form["study"])
        if not known:
            return True
        index = ElementIndex(self.web.read(get_step, known)[0])
        stored = form_of_patient(index) | form_of_step(index)
        typed = ElementIndex(item_from_form(form)[0]).get("PatientName")
        told = ("device", "procedure", "date", "time")
        return typed == index.get("PatientName") and all(
            form[name].strip() in ("", stored[name]) for name in told
        )

    @staticmethod
    def _add_problems(ctx: Context, item: bytes, problems: list[Problem]) -> None:
        """Refuse with what the form found and what the item itself shows, each once."""
        index = ElementIndex(item)
        _, procedure, steps = split_item(index)
        steps = [step_with_defaults(ctx, step, ElementIndex(procedure)) for step in steps]
        found = {problem.tag: problem for problem in item_problems(index, steps)}
        found |= {problem.tag: problem for problem in problems}
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=found.values())

    # Patients

    def listing(self, title: str, login: Login, parts: list[Part], **values: Any) -> str:
        """A list page."""
        settings = {"told": "", "intro": "", "search": None, "query": "", "links": [],
                    "filters": []} | values  # fmt: skip
        settings["told"] = settings["told"] or self.told()
        return self.page(LIST_PAGE, title, login, parts=parts, csrf=login.csrf, **settings)

    def told(self) -> str:
        """What the action before this page says of itself, once, from a cookie."""
        text = self.request.get_cookie("told")
        if not text:
            return ""
        self.bottle.response.delete_cookie("told", path="/")
        return urllib.parse.unquote(text)

    def tell(self, path: str, text: str) -> str:
        """Go to a page that says what has been done."""
        self.set_cookie("told", urllib.parse.quote(text[:1000]), max_age=60)
        return self.redirect(path)

    def find(self) -> str:
        """GET /find: patients while the form is typed, a part of a page for its script."""
        enter(self.web, self.request, "desk")
        t, text = self.translator(), (self.request.query.getunicode("q") or "").strip()
        found = self.web.read(find_patients, text, 6) if len(text) >= 2 else []
        people = [
            (p.id, shown_name(p.patient_name), p.patient_id, shown_date(p.patient_birth_date))
            for p in found
        ]
        born, sex = resident_number(text) or ("", "")
        return self.bottle.template(FOUND_PART, t=t, people=people, born=shown_date(born), sex=sex)

    def merge(self, row_id: int) -> str:
        """POST /patient/…/merge: this patient is another one."""
        _, ctx = enter(self.web, self.request, "desk")
        into = self.web.write(merge_patients, ctx, row_id, self.form("into"), self.form("reason"))
        return self.tell(f"/patient/{into}", self.translator()("Saved. Open exams follow."))

    def merge_page(self, row_id: int) -> str:
        """GET /patient/…/merge: which other one this patient is."""
        login, _ = enter(self.web, self.request, "desk")
        t = self.translator()
        index = ElementIndex(self.web.read(get_patient, row_id))
        who = f"{shown_name(index.get('PatientName'))} {index.get('PatientID')}"
        fields = [
            Field("into", t("Patient ID of the one who stays"), "text", "", True, "", ()),
            Field("reason", t("Reason"), "text", "", True, "", ()),
        ]
        return self.page(
            FORM_PAGE, "The same person", login, action=f"/patient/{row_id}/merge",
            submit=t("Merge"), csrf=login.csrf, hidden=[], problems=[],
            groups=[(t("{who} is the same person as", who=who), fields)],
            after=[(f"/patient/{row_id}", t("Back"))],
        )  # fmt: skip

    def patients(self) -> str:
        """GET /patients: find a patient."""
        login, _ = enter(self.web, self.request, "desk")
        t, query = self.translator(), self.request.query.getunicode("q") or ""
        found = self.web.read(find_patients, query) if query.strip() else []
        found_rows = [
            Row(
                (shown_name(p.patient_name), p.patient_id, shown_date(p.patient_birth_date)),
                f"/patient/{p.id}",
            )
            for p in found
        ]
        columns = (t("Patient"), t("Patient ID"), t("Birth date"))
        empty = t("Nobody was found.") if query else ""
        label = t("Name, ID or birth date")
        part = Part("", columns, found_rows, empty)
        return self.listing("Patients", login, [part], search=label, query=query)

    def patient(self, row_id: int, form: Mapping[str, str] | None = None,
                problems: Iterable[Problem] = ()) -> str:  # fmt: skip
        """GET /patient/…: what is known of a patient, to correct, and the exams."""
        login, _ = enter(self.web, self.request, "desk")
        t = self.translator()
        index = ElementIndex(self.web.read(get_patient, row_id))
        form = form or form_of_patient(index)
        by_tag = {problem.tag: t(problem.words) for problem in problems}
        fields = []
        for name, group, keyword, kind, label in REGISTER_FIELDS:
            if group == "patient" and name != "pregnancy":
                words = by_tag.pop(tag_of(keyword), "")
                field = Field(name, t(label), kind, form.get(name, ""), False, words,
                              self.choices(name, t))  # fmt: skip
                fields.append(field)
        shown = self.page(
            FORM_PAGE,
            "Patient",
            login,
            action=f"/patient/{row_id}",
            submit=t("Save"),
            csrf=login.csrf,
            hidden=[],
            groups=[(t("Patient"), fields)],
            problems=[f"{f.label}: {f.problem}" for f in fields if f.problem]
            + list(by_tag.values()),
            after=self.steps_of_patient(row_id, t),
        )
        return shown

    def steps_of_patient(self, row_id: int, t: Translator) -> list[tuple[str, str]]:
        """A link to each exam of a patient, and to a new one."""
        links = [(f"/register?patient={row_id}", t("New exam for this patient")),
                 (f"/patient/{row_id}/merge", t("The same person as another one"))]  # fmt: skip
        for step in self.web.read(steps_of, row_id):
            item = step_item(step)
            words = (shown_date(step.start_date), shown_time(step.start_time),
                     item.get("ScheduledProcedureStepDescription"), t(step.status))  # fmt: skip
            links.append((f"/step/{step.id}", " ".join(words)))
        return links

    def correct(self, row_id: int) -> str:
        """POST /patient/…: correct a patient."""
        _, ctx = enter(self.web, self.request, "desk")
        form = {row[0]: self.form(row[0]) for row in REGISTER_FIELDS}
        shown = form_of_patient(ElementIndex(self.web.read(get_patient, row_id)))
        given, problems = patient_from_form(form, shown)
        try:
            if problems:
                raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=problems)
            known = ElementIndex(self.web.read(get_patient, row_id))
            before = form_of_patient(known)
            if all(form[n] == before[n] for n in ("family_name", "given_name", "chinese_name")):
                # the form shows less of a name than there is: middle names, a phonetic group
                name = ElementIndex(known.only([tag_of("PatientName")]))
                given = ElementIndex(given).merged(name)
            self.web.write(correct_patient, ctx, row_id, given)
        except Refusal as refusal:
            if refusal.status is Status.NO_SUCH_SOP_INSTANCE:
                raise
            self.bottle.response.status = 422
            return self.patient(row_id, form, refusal.problems)
        t = self.translator()
        where = f"/patients?q={urllib.parse.quote(form['patient_id'].strip())}"
        return self.tell(where, t("Saved. Open exams follow."))

    def edit_step(self, row_id: int, form: Mapping[str, str] | None = None,
                  problems: Iterable[Problem] = ()) -> str:  # fmt: skip
        """GET /step/…/edit: another date, device, exam."""
        login, _ = enter(self.web, self.request, "desk")
        t = self.translator()
        index = ElementIndex(self.web.read(get_step, row_id)[0])
        form = form or form_of_step(index)
        by_tag = {problem.tag: t(problem.words) for problem in problems}
        fields = [
            Field(name, t(label), kind, form.get(name, ""), name in REQUIRED_FIELDS,
                  by_tag.pop(tag_of(keyword), ""), with_choice(self.choices(name, t), form.get(name, "")))
            for name, group, keyword, kind, label in REGISTER_FIELDS
            if group == "exam"
        ]  # fmt: skip
        return self.page(
            FORM_PAGE,
            "Change exam",
            login,
            action=f"/step/{row_id}/edit",
            submit=t("Save"),
            csrf=login.csrf,
            hidden=[],
            groups=[(shown_name(index.get("PatientName")), fields)],
            problems=[f"{f.label}: {f.problem}" for f in fields if f.problem]
            + list(by_tag.values()),
            after=[(f"/step/{row_id}", t("Back"))],
        )

    def change(self, row_id: int) -> str:
        """POST /step/…/edit: reschedule, move to another device."""
        _, ctx = enter(self.web, self.request, "desk")
        form = {row[0]: self.form(row[0]) for row in REGISTER_FIELDS if row[1] == "exam"}
        shown = form_of_step(ElementIndex(self.web.read(get_step, row_id)[0]))
        data = exam_from_form(form, shown, self.web.access().device(form["device"]))
        if form["procedure"].strip() != shown["procedure"]:
            data = self.web.read(apply_procedure, data)
        try:
            study, step_id = self.web.read(step_key, row_id)
            self.web.write(reschedule, ctx, study, step_id, data)
        except Refusal as refusal:
            if refusal.status is Status.NO_SUCH_SOP_INSTANCE:
                raise
            self.bottle.response.status = 422
            problems = refusal.problems or [Problem(0, Message(refusal.detail))]
            return self.edit_step(row_id, form, problems)
        return self.redirect(f"/step/{row_id}")

    # The days before, and what came without an order

    def leftovers_page(self) -> str:
        """GET /leftovers: what is still open from days before."""
        login, ctx = enter(self.web, self.request, "desk")
        steps = [
            (
                step.id,
                shown_name(ElementIndex(bytes(step.data)).get("PatientName")),
                step.patient_id,
                step_item(step).get("ScheduledProcedureStepDescription"),
                shown_date(step.start_date),
                step.status,
            )
            for step in self.web.read(leftovers, ctx.today())
        ]
        return self.page(LEFTOVERS_PAGE, "Leftovers", login, steps=steps, csrf=login.csrf)

    def end_leftovers(self) -> str:
        """POST /leftovers: did not come, done, cancelled, or moved to today; all or none."""
        _, ctx = enter(self.web, self.request, "desk")
        event = self.form("event")
        if event not in ("no show", "finish", "cancel", "today"):
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
        chosen = [int(row) for row in self.request.forms.getall("row") if row.isdigit()]
        self.web.write(change_rows, ctx, event, chosen)
        return self.redirect("/leftovers")

    def unscheduled(self) -> str:
        """GET /unscheduled: performed steps without an order, to be matched by a person."""
        login, ctx = enter(self.web, self.request, "desk")
        t = self.translator()
        choices_of = functools.cache(self.choices_of_day)
        found_rows = []
        for row in self.web.read(unscheduled_steps):
            index, fields = ElementIndex(bytes(row.data)), (("performed", str(row.id)),)
            cells = (
                shown_name(index.get("PatientName")) or "?",
                index.get("PatientID"),
                row.performed_station_ae_title,
                shown_date(index.get("PerformedProcedureStepStartDate"))
                + " "
                + shown_time(index.get("PerformedProcedureStepStartTime")),
                index.get("PerformedProcedureStepDescription"),
                t(row.status),
            )
            days = {index.get("PerformedProcedureStepStartDate"), ctx.today()} - {""}
            choices = [choice for day in sorted(days) for choice in choices_of(day)]
            near = similar_first(choices, index)
            match = Action("/unscheduled/match", t("Match"), fields, "step", t("Exam"), near)
            leave = Action("/unscheduled/settle", t("No order"), fields, "reason", t("Reason"))
            found_rows.append(Row(cells, "", (match, leave) if near else (leave,)))
        columns = (t("Patient"), t("Patient ID"), t("Device"), t("Begin"), t("Exam"), t("State"))
        intro = t("Devices reported these exams, and no order of ours was found for them.")
        part = Part("", columns, found_rows, t("There are none."))
        return self.listing("Unscheduled", login, [part], intro=intro)

    def choices_of_day(self, day: str) -> list[tuple[str, str]]:
        """The exams of a day to choose from: row and words."""
        return [
            (str(row[0]), f"{shown_date(day)} {shown_time(row[2])}"
             f" {shown_name(index.get('PatientName'))} {index.get('AccessionNumber')}")
            for row in self.web.read(steps_of_day, day)
            for index in [ElementIndex(bytes(row[3]))]
        ]  # fmt: skip

    def match(self) -> str:
        """POST /unscheduled/match."""
        _, ctx = enter(self.web, self.request, "desk")
        performed, step = self.number("performed"), self.number("step")
        self.web.write(link_by_hand, ctx, performed, step)
        return self.tell("/unscheduled", self.translator()("Matched."))

    def settle(self) -> str:
        """POST /unscheduled/settle."""
        _, ctx = enter(self.web, self.request, "desk")
        self.web.write(settle_unscheduled, ctx, self.number("performed"), self.form("reason"))
        return self.tell("/unscheduled", self.translator()("Saved."))

    def unmatch(self) -> str:
        """POST /unmatch: undo a match."""
        _, ctx = enter(self.web, self.request, "desk")
        step = self.number("step")
        self.web.write(unlink_step, ctx, self.number("performed"), step)
        return self.redirect(f"/step/{step}")

    def number(self, name: str) -> int:
        """A field that holds the number of a row. Refuses 0106."""
        if not self.form(name).isdigit():
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("Nothing was chosen"))
        return int(self.form(name))

    # Why is my patient not on the machine?

    def why(self) -> str:
        """GET /why: which device asked when, and the first key that kept each exam from it."""
        login, ctx = enter(self.web, self.request, "desk")
        t, query = self.translator(), self.request.query.getunicode("q") or ""
        self.web.write(save_queries, ctx, self.web.box.dimse.queries.take())
        since = ctx.stamp(days=-self.web.config.housekeeping.keep_queries_days)
        queries = self.web.read(recent_queries, since)
        parts = []
        if query.strip():
            steps = self.web.read(find_steps, query)[:10]
            parts = [self.explained(ctx, t, step, queries) for step in steps]
            if not steps:
                parts = [Part("", (), [], t("Nobody was found."))]
        columns = (t("Device"), t("Last"), t("Times in the hour"), t("Answers"), t("Asked for"))
        asked = [
            Row(
                (
                    f"{q.ae_title} {q.address}",
                    f"{datetime.datetime.fromisoformat(q.last_at).astimezone(ctx.config.zone):%d.%m. %H:%M:%S}",
                    str(q.count),
                    str(q.answers) if q.status in (0, Status.CANCEL) else f"{q.status:04X}",
                    asked_for(t, ElementIndex(bytes(q.keys))),
                )
            )
            for q in queries[:50]
        ]
        parts.append(Part(t("Queries of the devices"), columns, asked, t("There are none.")))
        label = t("Patient: name, ID or accession number")
        intro = t("Why is my patient not on the machine?")
        return self.listing("Why not there?", login, parts, search=label, query=query, intro=intro)

    def explained(self, ctx: Context, t: Translator, step: Any, queries: list[Any]) -> Part:
        """For one exam, each device's last different queries and what kept it from them."""
        data, found_rows = bytes(step.data), []
        for query in latest_by_device(queries):
            device = self.web.access().device(query.ae_title)
            try:
                search = Search(ElementIndex(bytes(query.keys)), MWL_ATTRIBUTES)
            except Refusal as refusal:
                found_rows.append(
                    Row((query.ae_title, t("The query was refused: {words}", words=refusal.detail)))
                )
                continue
            seen = Context(
                ctx.config, ctx.actor, lambda q=query: datetime.datetime.fromisoformat(q.last_at)
            )
            why = exclusion(ctx.config, search, WorklistView.of(seen, device), data)
            others = search.mismatches(ElementIndex(data))
            sentence, actions = reason_of(t, why, step, others)
            when = datetime.datetime.fromisoformat(query.last_at).astimezone(ctx.config.zone)
            found_rows.append(Row((query.ae_title, f"{when:%d.%m. %H:%M}", sentence), "", actions))
        index = ElementIndex(data)
        heading = f"{shown_name(index.get('PatientName'))}, {shown_date(step.start_date)} {step.accession_number}"
        columns = (t("Device"), t("Asked"), t("What came of it"))
        return Part(heading, columns, found_rows, t("No device has asked for a worklist."))

    def mend(self) -> str:
        """POST /why/mend: give the exam what the device asked for."""
        _, ctx = enter(self.web, self.request, "desk")
        row_id, forms = self.number("step"), self.request.forms
        given = dict(zip(forms.getall("keyword"), forms.getall("value"), strict=False))
        if "ScheduledProcedureStepStatus" in given:
            study, step_id = self.web.read(step_key, row_id)
            self.web.write(reschedule, ctx, study, step_id, b"")
        elif given and MENDABLE.issuperset(given):
            self.web.write(mend_step, ctx, row_id, given)
        else:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
        t = self.translator()
        following = safe_path(self.request.get_header("Referer"), "/why")
        return self.tell(following, t("Mended: the next query of the device finds the exam."))

    # Workitems

    def workitems(self) -> str:
        """GET /workitems: what comes after, by state and worklist label."""
        login, _ = enter(self.web, self.request, "desk")
        t, query = self.translator(), self.request.query
        state = query.getunicode("state") or ""
        label = query.getunicode("label") or ""
        found, count = self.web.read(workitems_of, state, label)
        found_rows = [
            Row(
                (
                    w.label,
                    shown_name(ElementIndex(bytes(w.data)).get("PatientName")),
                    w.patient_id,
                    w.worklist_label,
                    t(w.state),
                    t(w.priority),
                    shown_instant(w.start_at, self.web.config.zone),
                    w.performer,
                ),
                f"/workitem/{w.sop_instance_uid}",
            )
            for w in found
        ]
        columns = (t("Workitem"), t("Patient"), t("Patient ID"), t("Worklist"), t("State"),
                   t("Priority"), t("Begin"), t("Performer"))  # fmt: skip
        part = Part("", columns, found_rows, t("There are none."))
        labels = self.web.read(worklist_labels)
        intro = (
            t(
                "The first {shown} of {count}. Choose a state or a worklist.",
                shown=len(found),
                count=count,
            )
            if count > len(found)
            else ""
        )
        filters = [(workitems_path("", label), t("Open"), not state)]
        filters += [(workitems_path(one, label), t(one), one == state) for one in UPS_STATES]
        if len(labels) > 1:
            filters.append((workitems_path(state, ""), t("All worklists"), not label))
            filters += [(workitems_path(state, one), one, one == label) for one in labels]
        links = [("/workitems/new", t("New workitem"))]
        return self.listing("Workitems", login, [part], links=links, filters=filters, intro=intro)

    def workitem(self, uid: str) -> str:
        """GET /workitem/…: its four modules, its time line, who watches it, what can be done."""
        login, _ = enter(self.web, self.request, "desk")
        t, zone = self.translator(), self.web.config.zone
        workitem = self.web.read(stored_workitem, uid)
        happenings = self.web.read(history_of, uid)
        if not workitem and not happenings:
            raise Refusal(Status.NO_SUCH_UPS, Message("There is no such workitem"))
        index = ElementIndex(bytes(workitem.data) if workitem else b"")
        modules: dict[str, list[tuple[str, str]]] = {}
        for module, label, path in WORKITEM_FACTS:
            facts = modules.setdefault(module, [])
            if value := fact(index, path, t, zone):
                facts.append((t(label), value))
        if workitem and workitem.performer:
            modules["Progress"].append((t("Performer"), workitem.performer))
        events = [
            (
                shown_instant(one.at, zone),
                one.who,
                happening_words(one, t, zone),
                t("told: {heard} of {all}", heard=one.heard, all=one.receivers)
                if one.receivers
                else "",
            )
            for one in happenings
        ]
        asked = any(one.event_type == EVENT_TYPES["UPS Cancel Requested"] for one in happenings)
        warnings = [] if workitem else [t("It has been purged; its history remains.")]
        if asked and workitem and workitem.state == "IN PROGRESS":
            warnings.append(
                t("The cancellation was declined: {reason}", reason=workitem.declined)
                if workitem.declined
                else t("Somebody wants it to be canceled; see the time line.")
            )
        return self.page(
            WORKITEM_PAGE,
            "Workitem",
            login,
            told=self.told(),
            warnings=warnings,
            modules=[(t(module), facts) for module, facts in modules.items()],
            forms=self._workitem_forms(login, workitem, asked, t) if workitem else [],
            watched=self.web.read(watchers_of, uid),
            patient_id=index.get("PatientID"),
            events=events,
            csrf=login.csrf,
        )

    def _workitem_forms(
        self, login: Login, workitem: Any, asked_to_cancel: bool, t: Translator
    ) -> list[tuple[str, str, list[Field]]]:
        """What this person may do with a workitem now."""
        holder = workitem.by_person and workitem.performer == login.name
        who_may = {
            "anyone": True,
            "holder": holder,
            "asked": holder and asked_to_cancel and not workitem.declined,
        }
        choices = self._workitem_choices(workitem, t)
        forms = []
        for event, states, who, role, asks, words in WORKITEM_ACTIONS:
            in_state = states == "any" or workitem.state in states.split(", ")
            fields = [
                Field(
                    name, t(WORKITEM_QUESTIONS[name]), "text", "", False, "", choices.get(name, ())
                )
                for name in asks.split()
            ]
            askable = all(choices.get(name, True) for name in asks.split())
            if in_state and askable and who_may[who] and permit(login.role, role):
                forms.append((event, t(words), fields))
        return forms

    def _workitem_choices(self, workitem: Any, t: Translator) -> dict[str, Any]:
        """What the questions about a workitem are answered from."""
        callable_ = [d for d in self.web.access().devices if d.host]
        return {
            "code": tuple(
                (code, t(words))
                for code, words in sorted(
                    UPS_CANCELLATION_REASONS.items(), key=lambda one: one[0] != "110513"
                )
            ),
            "station": (("", "-"), *((d.ae_title, d.name) for d in self.web.access().devices)),
            "readiness": tuple(
                (r, t(r))
                for r in sorted(
                    UPS_ENUMERATIONS["InputReadinessState"], key=lambda r: r != workitem.readiness
                )
            ),
            "receiver": tuple((one, one) for d in callable_ for one in d.ae_titles),
            "watcher": tuple(
                (ae, ae) for ae, _ in self.web.read(watchers_of, workitem.sop_instance_uid)
            ),
            "lock": (("FALSE", t("no")), ("TRUE", t("yes"))),
        }

    def workitem_event(self, uid: str) -> str:
        """POST /workitem/…: what a person does with it."""
        event = self.form("event")
        least = next((row[3] for row in WORKITEM_ACTIONS if row[0] == event), "admin")
        _, ctx = enter(self.web, self.request, least)
        self._do_with_workitem(ctx, uid, event)
        return self.tell(f"/workitem/{uid}", self.translator()("Saved."))

    def _do_with_workitem(self, ctx: Context, uid: str, event: str) -> None:
        asked, write = self.form, self.web.write
        if event in ("give up", "end", "release", "decline", "unsubscribe"):
            needs_reason(asked("reason"))
        calls: dict[str, Callable[[], Any]] = {
            "claim": lambda: write(claim_by_person, ctx, uid),
            "complete": lambda: write(finish_by_person, ctx, uid, asked("remark")),
            "give up": lambda: write(give_up_by_person, ctx, uid, asked("reason"), asked("code")),
            "decline": lambda: write(decline_cancellation, ctx, uid, asked("reason")),
            "cancel": lambda: write(request_cancel, ctx, uid, self._cancel_request()),
            "assign": lambda: write(
                assign_workitem, ctx, uid, asked("station"), asked("performer")
            ),
            "readiness": lambda: write(
                update_workitem,
                ctx,
                uid,
                bytes(text_elements(InputReadinessState=asked("readiness"))),
            ),
            "subscribe": lambda: write(
                subscribe, ctx, uid, asked("receiver"), asked("lock") == "TRUE"
            ),
            "unsubscribe": lambda: write(unsubscribe, ctx, uid, asked("watcher"), asked("reason")),
            "release": lambda: write(release_lock, ctx, uid, asked("watcher"), asked("reason")),
            "end": lambda: write(end_workitem, ctx, uid, asked("reason"), asked("code")),
        }
        if event not in calls:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
        calls[event]()

    def _cancel_request(self) -> bytes:
        """The information of a request to cancel, from the form."""
        contact = text_elements(
            ContactURI=self.form("uri"), ContactDisplayName=self.form("contact")
        )
        asked = cancellation_reason(self.form("reason"), self.form("code") or "110513")
        return asked.merged(contact)

    def new_workitem(
        self, form: Mapping[str, str] | None = None, problems: Iterable[Problem] = ()
    ) -> str:
        """GET /workitems/new: a form for a workitem, empty or for the exam of ?step=."""
        login, ctx = enter(self.web, self.request, "desk")
        t, now = self.translator(), ctx.local_now()
        form = form or {
            "step": self.request.query.getunicode("step") or "",
            "date": f"{now:%Y-%m-%d}",
            "time": f"{now:%H:%M}",
            "priority": "MEDIUM",
            "readiness": "READY",
        }
        step = ElementIndex(self._step_data(form.get("step", "")))
        fixed = {
            "patient": shown_name(step.get("PatientName")), "patient_id": step.get("PatientID")
        } if step.found else {}  # fmt: skip
        choices = {
            "code": tuple((code, t(meaning)) for code, (_, meaning) in WORKITEM_CODES.items()),
            "worklist": tuple((label, label) for label in self.web.read(worklist_labels)),
            "priority": tuple(
                (p, t(p)) for p in UPS_ENUMERATIONS["ScheduledProcedureStepPriority"]
            ),
            "readiness": tuple((r, t(r)) for r in UPS_ENUMERATIONS["InputReadinessState"]),
        }
        by_tag = {problem.tag: t(problem.words) for problem in problems}
        fields = [
            Field(name, t(label), kind, form.get(name, ""), name == "label",
                  by_tag.pop(tag_of(keyword), ""), choices.get(name, ()))
            for name, keyword, kind, label in WORKITEM_FIELDS
            if name not in fixed
        ]  # fmt: skip
        words = " · ".join(filter(None, fixed.values()))
        return self.page(
            FORM_PAGE,
            "New workitem",
            login,
            action="/workitems/new",
            submit=t("Create"),
            csrf=login.csrf,
            hidden=[("step", form.get("step", "")), ("uid", form.get("uid") or ctx.new_uid())],
            groups=[(words or t("Workitem"), fields)],
            problems=[f"{f.label}: {f.problem}" for f in fields if f.problem]
            + list(by_tag.values()),
        )

    def _step_data(self, row_id: str) -> bytes:
        """The data set of a step by the number in a form, nothing where there is none. Refuses 0112."""
        return (
            self.web.read(get_step, int(row_id))[0] if re.fullmatch(r"[0-9]{1,18}", row_id) else b""
        )

    def create_workitem(self) -> str:
        """POST /workitems/new."""
        _, ctx = enter(self.web, self.request, "desk")
        form = {row[0]: self.form(row[0]).strip() for row in WORKITEM_FIELDS}
        form |= {"step": self.form("step"), "uid": self.form("uid")}
        step = self._step_data(form["step"])
        try:
            uid, _ = self.web.write(
                create_workitem, ctx, form["uid"], workitem_from_form(form, step)
            )
        except Refusal as refusal:
            if refusal.status is Status.DUPLICATE_SOP_INSTANCE:  # a form sent twice
                return self.redirect(f"/workitem/{form['uid']}")
            self.bottle.response.status = 422
            return self.new_workitem(form, refusal.problems)
        return self.tell(f"/workitem/{uid}", self.translator()("Saved."))

    def watchers_page(self) -> str:
        """GET /watchers: who hears of workitems, and how it goes with telling them."""
        login, _ = enter(self.web, self.request, "technologist")
        t, zone = self.translator(), self.web.config.zone
        kinds = {
            UPS_GLOBAL_SUBSCRIPTION: t("all workitems"),
            UPS_FILTERED_SUBSCRIPTION: t("workitems that match its filter"),
        }
        found_rows = []
        for one in self.web.read(watchers):
            fields = (("receiver", one.ae_title), ("uid", one.uid))
            actions = []
            if permit(login.role, "admin") and (one.uid or one.single):
                actions.append(
                    Action(
                        "/watchers",
                        t("End its subscriptions"),
                        (*fields, ("do", "end")),
                        "reason",
                        t("Reason"),
                    )
                )
            if one.waiting:
                actions.append(Action("/watchers", t("Try again now"), (*fields, ("do", "retry"))))
            cells = (
                one.ae_title,
                kinds.get(one.uid, ""),
                str(one.single),
                t("yes") if one.deletion_lock else t("no"),
                ", ".join(CHANNEL_WORDS[channel] for channel in one.channels.split()),
                str(one.waiting),
                shown_instant(one.heard_at, zone),
                one.problem,
            )
            found_rows.append(Row(cells, "", tuple(actions)))
        columns = (t("Device"), t("Hears of"), t("Workitems"), t("Deletion lock"), t("Told by"),
                   t("To be told"), t("Last heard"), t("Problem"))  # fmt: skip
        part = Part("", columns, found_rows, t("Nobody is subscribed."))
        new = tuple((one, one) for d in self.web.access().devices if d.host for one in d.ae_titles)
        add = Action("/watchers", t("Subscribe to all workitems"), (("do", "subscribe"),),
                     "receiver", t("Device"), new)  # fmt: skip
        adding = Part("", (t("New subscription"),), [Row(("",), "", (add,))] if new else [])
        return self.listing("Watchers", login, [part, adding])

    def change_watcher(self) -> str:
        """POST /watchers: subscribe a device, end its subscriptions, try again."""
        receiver, deed = self.form("receiver"), self.form("do")
        least = "admin" if deed == "end" else "technologist"
        _, ctx = enter(self.web, self.request, least)
        if deed == "subscribe":
            self.web.write(subscribe, ctx, UPS_GLOBAL_SUBSCRIPTION, receiver, False)
        elif deed == "end":
            why = self.form("reason")
            needs_reason(why)
            self.web.write(unsubscribe, ctx, UPS_GLOBAL_SUBSCRIPTION, receiver, why)
        elif deed == "retry":
            self.web.write(retry_events, ctx, receiver)
        else:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
        return self.tell("/watchers", self.translator()("Saved."))

    def passed_on(self) -> str:
        """GET /passed-on: what other systems are sent, and what they answered."""
        login, ctx = enter(self.web, self.request, "technologist")
        t, zone = self.translator(), ctx.config.zone
        to_whom = [
            Row(
                (ae, str(waiting), shown_instant(since, zone), shown_instant(heard, zone), problem),
                "",
                (Action("/passed-on", t("Try again now"), (("receiver", ae),)),) if waiting else (),
            )
            for ae, waiting, since, heard, problem in self.web.read(destinations)
        ]
        what = [
            Row((shown_instant(one.created_at, zone), one.receiver,
                 t(PASSED_ON_WORDS[one.sop_class_uid, one.operation]), one.sop_instance_uid,
                 self._passing_words(t, one.answer, one.sent_at, one.given_up_at)))
            for one in self.web.read(recent_passed_on)
        ]  # fmt: skip
        parts = [
            Part("", (t("Device"), t("To be told"), t("Since when"), t("Last heard"), t("Problem")),
                 to_whom, t("Nothing is passed on: set passed_on at a device.")),
            Part(t("The newest"), (t("Time"), t("Device"), t("What"), t("About"), t("Answer")), what),
        ]  # fmt: skip
        return self.listing("Passed on", login, parts)

    @staticmethod
    def _passing_words(t: Translator, answer: str, sent_at: str, given_up_at: str) -> str:
        """What came of passing something on."""
        if given_up_at:
            return t("given up, {answer}", answer=answer) if answer else t("given up")
        if not sent_at:
            return t("waits")
        taken = answer.startswith(TAKEN_ANSWERS)
        return (
            t("taken, {answer}", answer=answer) if taken else t("refused, {answer}", answer=answer)
        )

    def retry_passing_on(self) -> str:
        """POST /passed-on: try a receiver now."""
        _, ctx = enter(self.web, self.request, "technologist")
        self.web.write(retry_events, ctx, self.form("receiver"), PASSED_ON_OUTBOX)
        return self.tell("/passed-on", self.translator()("It is tried again now."))

    def commitments(self) -> str:
        """GET /commitments: which images machines have asked about, and what they were told."""
        login, ctx = enter(self.web, self.request, "technologist")
        t, found_rows = self.translator(), []
        for one, *counts in self.web.read(recent_commitments):
            cells = (one.transaction_uid, one.requester, shown_instant(one.created_at, ctx.config.zone),
                     verdict_words(t, one, *counts), t(COMMITMENT_STATES[one.state]), one.problem)  # fmt: skip
            link = "" if one.repeats else f"/commitment/{one.transaction_uid}"
            found_rows.append(Row(cells, link, self._commitment_actions(t, one)))
        columns = (t("Transaction UID"), t("Asked by"), t("Asked"), t("Judgement"), t("State"),
                   t("Problem"))  # fmt: skip
        part = Part("", columns, found_rows, t("No machine has asked whether its images are safe."))
        parts, intro = [part, self._missing_images(t, ctx)], self._archive_words(t, ctx)
        return self.listing("Are they safe?", login, parts, intro=intro)

    def _missing_images(self, t: Translator, ctx: Context) -> Part:
        """Exams of the last days whose images are not all known to be in the archive."""
        found_rows = [
            Row((shown_instant(one.ended_at, ctx.config.zone),
                 shown_name(one.performed.get("PatientName")), one.performed.get("PatientID"),
                 one.performed.get("PerformedProcedureStepDescription"),
                 one.performed.get("PerformedStationAETitle"),
                 t("{number} of {count} images", number=len(one.references) - len(one.missing),
                   count=len(one.references))),
                f"/step/{one.step_id}" if one.step_id else "/unscheduled")
            for one in self.web.read(incomplete_arrivals, ctx)
        ]  # fmt: skip
        columns = (t("Ended"), t("Patient"), t("Patient ID"), t("Exam"), t("Device"),
                   t("In the archive"))  # fmt: skip
        heading = t("Exams of the last two days whose images are not all in the archive")
        return Part(heading, columns, found_rows, t("There are none."))

    def _archive_words(self, t: Translator, ctx: Context) -> str:
        """Which archive is asked, and how it was the last time."""
        archive = archive_of(ctx)
        if not archive and any(device.role == "archive" for device in ctx.devices):
            return t("There are several archives: nothing can be called safe until [commitment] archive"
                     " names one.")  # fmt: skip
        if not archive:
            return t("No archive is set: nothing can be called safe. Register it as a device with the"
                     " role archive.")  # fmt: skip
        words, desk = (
            [t("Asked is the archive {ae}.", ae=archive.ae_title)],
            self.web.box.commitments,
        )
        if desk.archive_at:
            at = datetime.datetime.fromtimestamp(desk.archive_at, ctx.config.zone)
            when = {"at": f"{at:%d.%m. %H:%M:%S}", "problem": desk.archive_problem}
            words.append(t("At {at} it failed: {problem}.", **when) if desk.archive_problem
                         else t("At {at} it answered.", **when))  # fmt: skip
        return " ".join(words)

    @staticmethod
    def _commitment_actions(t: Translator, commitment: Any) -> tuple[Action, ...]:
        waits = commitment.state == "asked" or (
            commitment.door == "dimse" and commitment.state in ("judged", "given up")
        )
        fields = (("uid", commitment.transaction_uid),)
        again = waits and not commitment.repeats
        return (Action("/commitments", t("Try again now"), fields),) if again else ()

    def commitment(self, uid: str) -> str:
        """GET /commitment/…: the judgement of each image, in words."""
        login, _ = enter(self.web, self.request, "technologist")
        t, one = self.translator(), self.web.read(commitment_by_uid, uid)
        words = {"": t("is not judged yet"), COMMITTED: t("is safe")}
        words |= {verdict: t(reason) for verdict, reason in FAILURE_REASONS.items()}
        rows_ = [
            Row((each.sop_instance_uid, words[each.verdict], each.evidence))
            for each in self.web.read(judged_instances, one.id)
        ]
        columns = (t("Image"), t("Judgement"), t("Says"))
        counts = self.web.read(commitment_counts, [one.id])[one.id]
        links = [("/commitments", t("All requests"))]
        part, intro = Part("", columns, rows_), verdict_words(t, one, *counts)
        return self.listing("Are they safe?", login, [part], intro=intro, links=links)

    def try_commitment(self) -> str:
        """POST /commitments: ask the archive or tell the machine now."""
        _, ctx = enter(self.web, self.request, "technologist")
        self.web.write(try_commitment_again, ctx, self.form("uid"))
        return self.tell("/commitments", self.translator()("It is tried again now."))

    def stuck(self) -> str:
        """GET /orphans: what is stuck, with what is known, to be ended with a reason."""
        login, ctx = enter(self.web, self.request, "technologist")
        t, zone = self.translator(), self.web.config.zone
        found_rows = []
        for orphan in self.web.read(orphans, ctx):
            fields = (("kind", orphan.kind), ("uid", orphan.uid), ("about", orphan.about))
            words = t(ORPHAN_ACTIONS[orphan.kind])
            action = Action("/orphans", words, fields, "reason", t("Reason"))
            known = orphan.known
            if orphan.kind == "lock":
                heard = shown_instant(orphan.known, zone) or t("never")
                known = t("last told: {at}", at=heard)
            elif known == "websocket":
                known = t("nobody opens its WebSocket")
            page = ORPHAN_PAGES.get(orphan.kind, "")
            about = f"{orphan.uid}: {orphan.about}" if page else orphan.about
            page = f"/step/{orphan.uid}" if orphan.kind == "exam" else page
            cells = (t(ORPHAN_WORDS[orphan.kind]), about, shown_instant(orphan.since, zone), known)
            actions = (action,) if permit(login.role, "admin") else ()
            found_rows.append(Row(cells, page or f"/workitem/{orphan.uid}", actions))
        columns = (t("What"), t("About"), t("Since when"), t("Known"))
        part = Part("", columns, found_rows, t("Nothing is stuck."))
        links = [("/watchers", t("Watchers"))]
        intro = "" if permit(login.role, "admin") else t("An administrator can end these.")
        return self.listing("Stuck", login, [part], links=links, intro=intro)

    def end_stuck(self) -> str:
        """POST /orphans: release a lock, end a workitem, give up events; with a reason."""
        _, ctx = enter(self.web, self.request, "admin")
        kind, uid, why = self.form("kind"), self.form("uid"), self.form("reason")
        if kind == "lock":
            self.web.write(release_lock, ctx, uid, self.form("about"), why)
        elif kind == "expired":
            self.web.write(end_workitem, ctx, uid, why, "110533", "SCHEDULED")
        elif kind == "silent":
            old = ctx.stamp(hours=-ctx.config.housekeeping.stuck_workitem_hours)
            self.web.write(end_workitem, ctx, uid, why, "110513", "IN PROGRESS", old)
        elif kind == "exam" and re.fullmatch("[0-9]{1,18}", uid):
            self.web.write(end_silent_exam, ctx, int(uid), why)
        elif kind in ORPHAN_PAGES:
            outbox = EVENTS_OUTBOX if kind == "events" else PASSED_ON_OUTBOX
            self.web.write(give_up_events, ctx, uid, why, outbox)
        else:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
        return self.tell("/orphans", self.translator()("Saved."))

    # The box: health, users, audit log, settings

    def box_page(self) -> str:
        """GET /box: a light for each thing that may fail, and where the rest of it is."""
        login, _ = enter(self.web, self.request, "admin")
        t, lights = self.translator(), self.web.box.lights()
        words = {"good": t("in order"), "warning": t("look at it"), "bad": t("does not work")}
        rows_ = [
            Row((f"{LIGHTS[light]} {words[light]}", t(what), t(said)))
            for what, light, said in lights
        ]
        part = Part("", (t("Light"), t("What"), t("What is known")), rows_)
        links = [("/users", t("Users")), ("/audit", t("Audit log")), ("/settings", t("Settings"))]
        backup = Action("/box", t("Back up now"), (("do", "backup"),))
        doing = Part("", (t("What"),), [Row((t("Backup"),), "", (backup,))])
        return self.listing("The box", login, [part, doing], links=links)

    def box_action(self) -> str:
        """POST /box: make a backup."""
        enter(self.web, self.request, "admin")
        self.web.box.back_up()
        problem = self.web.box.backup_problem
        t = self.translator()
        words = t("The last backup failed: {problem}", problem=problem) if problem else t("Saved.")
        return self.tell("/box", words)

    def users(self, new_token: str = "") -> str:
        """GET /users: who may log in, which programs may call, and what each role may do."""
        login, ctx = enter(self.web, self.request, "admin")
        t, zone = self.translator(), ctx.config.zone
        people = [
            Row((name, t(role), str(count), shown_instant(at, zone)), "", (
                Action("/users", t("End sessions"), (("do", "end"), ("name", name))),
                Action("/users", t("Delete"), (("do", "delete"), ("name", name))),
            ))
            for name, role, count, at in self.web.read(logins_of, ctx)
        ]  # fmt: skip
        programs = [
            Row((name, t(role), titles.replace("\\", ", "), shown_instant(at, zone)), "", (
                Action("/users", t("Delete"), (("do", "delete token"), ("name", name))),
            ))
            for name, role, titles, at in self.web.read(tokens_of)
        ]  # fmt: skip
        rights = [
            Row((t(words), *(t("yes") if permit(role, least) else "" for role in ROLES)))
            for words, least in RIGHTS
        ]
        parts = [
            Part(t("Persons"), (t("Name"), t("Role"), t("Sessions"), t("Last login")), people),
            Part(t("Programs (API tokens)"), (t("Name"), t("Role"), t("AE titles"), t("Made")),
                 programs, t("There are none.")),
            Part(t("What each role may do"), (t("What"), *(t(role) for role in ROLES)), rights),
        ]  # fmt: skip
        links = [("/users/new", t("New user or token")), ("/box", t("The box"))]
        shown = t("The token, shown this once: {secret}", secret=new_token) if new_token else ""
        return self.listing("Users", login, parts, told=shown, links=links)

    def new_user(self, problems: Iterable[Problem] = ()) -> str:
        """GET /users/new: a form for a person or a token; a known name is changed."""
        login, _ = enter(self.web, self.request, "admin")
        t = self.translator()
        roles = tuple((role, t(role)) for role in ROLES)
        fields = [
            Field("name", t("Name"), "text", self.form("name"), True, "", ()),
            Field("role", t("Role"), "select", self.form("role") or "desk", True, "", roles),
            Field("password", t("Password (of a person; none makes a token)"), "password", "", False,
                  "", ()),
            Field("ae_titles", t("AE titles (of a token)"), "text", self.form("ae_titles"), False, "",
                  ()),
        ]  # fmt: skip
        return self.page(
            FORM_PAGE, "Users", login, action="/users", submit=t("Save"), csrf=login.csrf,
            hidden=[("do", "save")], groups=[(t("New, or changed"), fields)],
            problems=[t(problem.words) for problem in problems], after=[("/users", t("Users"))],
        )  # fmt: skip

    def change_user(self) -> str:
        """POST /users: set a user or make a token, end sessions, delete."""
        _, ctx = enter(self.web, self.request, "admin")
        name, deed = self.form("name").strip(), self.form("do")
        try:
            if deed == "save" and self.form("password"):
                self.web.write(make_user, ctx, name, self.form("role"), self.form("password"))
            elif deed == "save":
                titles = [one for one in self.form("ae_titles").split(",") if one.strip()]
                made = self.web.write(make_token, ctx, name, self.form("role"), titles)
                return self.users(new_token=made)
            elif deed in USER_DEEDS:
                self.web.write(USER_DEEDS[deed], ctx, name)
            else:
                raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
        except Refusal as refusal:
            self.bottle.response.status = 422
            return self.new_user(refusal.problems or [Problem(0, Message(refusal.detail))])
        return self.tell("/users", self.translator()("Saved."))

    def audit_page(self) -> str:
        """GET /audit: who did what, searched by any text; whether the log is as it was written."""
        login, ctx = enter(self.web, self.request, "admin")
        t, zone = self.translator(), ctx.config.zone
        text, before = (
            self.request.query.getunicode("q") or "",
            self.request.query.get("before", ""),
        )
        found = self.web.read(audit_lines, text, int(before) if before.isdecimal() else 0)
        rows_ = [Row((shown_instant(one.at, zone), one.who, one.what, one.about, one.detail))
                 for one in found]  # fmt: skip
        columns = (t("Time"), t("Who"), t("What"), t("About"), t("Detail"))
        links = [("/box", t("The box"))]
        if len(found) == 200:
            older = urllib.parse.urlencode({"q": text, "before": found[-1].id})
            links.insert(0, (f"/audit?{older}", t("Older")))
        chain = self.web.read(check_audit)
        words = t("{count} lines, unbroken; the last digest is {digest}.", count=chain.count,
                  digest=chain.digest[:16])  # fmt: skip
        if chain.broken:
            words = t("The log was changed behind our back: the line of {at} does not follow from the"
                      " one before it.", at=shown_instant(chain.broken[1], zone))  # fmt: skip
        part = Part("", columns, rows_, t("Nothing found."))
        return self.listing("Audit log", login, [part], intro=words, links=links,
                            search=t("Text"), query=text)  # fmt: skip

    def settings_page(self) -> str:
        """GET /settings: each setting, its value and where it comes from."""
        login, ctx = enter(self.web, self.request, "admin")
        t, config = self.translator(), ctx.config
        parts = []
        for section, of_section in itertools.groupby(SETTINGS, key=lambda s: s.section):
            rows_ = [
                Row((one.key, setting_text(config, one),
                     config.sources.get((section, one.key), t("default")), t(one.meaning)))
                for one in of_section
            ]  # fmt: skip
            columns = (t("Setting"), t("Value"), t("From"), t("Meaning"))
            parts.append(Part(f"[{section}]", columns, rows_))
        where = str(config.path) if config.path else t("no file: defaults")
        intro = t(
            "Settings are changed in the file, and taken at the next start: {path}", path=where
        )
        return self.listing("Settings", login, parts, intro=intro, links=[("/box", t("The box"))])

    # Catalogue, import

    def catalogue(
        self, form: Mapping[str, str] | None = None, problems: Iterable[Problem] = ()
    ) -> str:
        """GET /catalogue: the procedures, and a form for one."""
        login, _ = enter(self.web, self.request, "technologist")
        t = self.translator()
        listed = self.web.read(all_procedures)
        code = self.request.query.getunicode("code") or ""
        form = form or next(
            ({k: str(getattr(p, k)) for k in PROCEDURE_COLUMNS} for p in listed if p.code == code),
            PROCEDURE_COLUMNS,
        )
        labels = (t("Code"), t("Coding scheme"), t("Exam"), t("Modality"), t("Device"), t("Minutes"),
                  t("Protocol code"), t("Protocol"))  # fmt: skip
        fields = [
            Field(key, label, "text", form.get(key, ""), key in ("code", "meaning"), "", ())
            for key, label in zip(PROCEDURE_COLUMNS, labels, strict=True)
        ]
        after = [
            (
                f"/catalogue?code={urllib.parse.quote(p.code)}",
                f"{p.code} {p.meaning}{' · ' + t('retired') if p.retired else ''}",
            )
            for p in listed
        ]
        return self.page(
            FORM_PAGE,
            "Catalogue",
            login,
            action="/catalogue",
            submit=t("Save"),
            csrf=login.csrf,
            hidden=[],
            groups=[(t("Procedure"), fields)],
            problems=[t(problem.words) for problem in problems],
            after=after,
            extra=[("retire", t("Retire")), ("delete", t("Delete"))] if code else [],
        )

    def save_catalogue(self) -> str:
        """POST /catalogue: save, retire or delete a procedure."""
        _, ctx = enter(self.web, self.request, "technologist")
        form = {key: self.form(key) for key in PROCEDURE_COLUMNS}
        try:
            if (event := self.form("event")) in ("retire", "delete"):
                self.web.write(retire_procedure, ctx, form["code"], event == "delete")
            else:
                self.web.write(save_procedure, ctx, form)
        except Refusal as refusal:
            self.bottle.response.status = 422
            problems = refusal.problems or [Problem(0, Message(refusal.detail))]
            return self.catalogue(form, problems)
        return self.redirect("/catalogue")

    def import_page(self, **values: Any) -> str:
        """GET /import."""
        login, _ = enter(self.web, self.request, "desk")
        settings: dict[str, Any] = {"told": self.told(), "problems": [], "lines": [], "content": "",
                                    "file": ""}  # fmt: skip
        return self.page(IMPORT_PAGE, "Import", login, csrf=login.csrf, **settings | values)

    def import_file(self) -> str:
        """POST /import: show what a file holds; with `confirmed`, import all of it or nothing."""
        _, ctx = enter(self.web, self.request, "desk")
        t = self.translator()
        if self.form("confirmed"):
            name, content = self.form("file"), decoded(self.form("content"))
        else:
            upload = self.request.files.get("upload")
            if not upload:
                return self.import_page(problems=[t("Nothing was chosen")])
            name, content = upload.raw_filename or "file", upload.file.read()
        try:
            if self.form("confirmed"):
                done = self.web.write(import_file, ctx, name, content)
                return self.tell("/import", t("{count} imported", count=done))
            lines, problems = self.web.write(preview_file, ctx, name, content)
        except Refusal as refusal:
            self.bottle.response.status = 422
            return self.import_page(problems=t(refusal.detail).split("\n"), file=name)
        kept = "" if problems else base64.b64encode(content).decode()
        listed = t(problems).split("\n") if problems else []
        return self.import_page(lines=lines, problems=listed, content=kept, file=name)

    # Devices

    def devices(self) -> str:
        """GET /devices: who may call, who has tried, with C-ECHO and registration in one click."""
        login, _ = enter(self.web, self.request, "technologist")
        t = self.translator()
        known = [
            Row(
                (
                    device.name,
                    ", ".join(device.ae_titles),
                    device.modality,
                    f"{device.host}:{device.port}" if device.host else "",
                    "\\".join(device.character_set) or t("as asked"),
                    t("config.ini") if device.from_file else "",
                ),
                f"/devices/edit?name={urllib.parse.quote(device.name)}",
                (
                    Action("/devices/echo", "C-ECHO", (("name", device.name),)),
                    Action("/devices/doctor", t("Doctor"), (("name", device.name),), get=True),
                ),
            )
            for device in self.web.access().devices
        ]
        columns = (t("Device"), t("AE titles"), t("Modality"), t("Address"), t("Character set"), "")
        tried = [
            Row(
                (
                    calling or "?",
                    address,
                    t(words),
                    f"{datetime.datetime.fromtimestamp(at, self.web.config.zone):%d.%m. %H:%M}",
                ),
                "",
                (
                    Action(
                        "/devices/save",
                        t("Register"),
                        (("name", calling), ("ae_title", calling), ("host", address)),
                    ),
                )
                if calling and not self.web.access().device(calling)
                else (),
            )
            for (calling, address), (at, words) in reversed(
                self.web.box.associations.rejected.copy().items()
            )
        ]
        parts = [
            Part("", columns, known, t("There are none.")),
            Part(t("Turned away since the start"),
                 (t("AE title"), t("Address"), t("Why"), t("Last")), tried, t("There are none.")),
        ]  # fmt: skip
        links = [("/devices/edit", t("New device"))]
        return self.listing("Devices", login, parts, links=links)

    def edit_device(
        self, form: Mapping[str, str] | None = None, problems: Iterable[Problem] = ()
    ) -> str:
        """GET /devices/edit: the settings of a device, those of the file to look at."""
        login, _ = enter(self.web, self.request, "technologist")
        t = self.translator()
        name = self.request.query.getunicode("name") or ""
        device = next((d for d in self.web.access().devices if d.name == name), None)
        profile = self.request.query.getunicode("profile") or ""
        form = form or {
            "name": name,
            "old_name": name if device else "",
            **(settings_of(device) if device else {}),
            **profile_settings(profile),
        }
        fields = [Field("name", t("Name"), "text", form.get("name", ""), True, "", ())]
        for setting in DEVICE_SETTINGS:
            choices = setting_choices(setting, t)
            kind = "select" if choices else "text"
            value = form.get(setting.key) or (setting.default if choices else "")
            label = f"{setting.key}: {t(setting.meaning)}"
            fields.append(
                Field(setting.key, label, kind, value, setting.key == "ae_title", "", choices)
            )
        editable = not (device and device.from_file)
        known = urllib.parse.quote(name)
        after = [
            (
                f"/devices/edit?name={known}&profile={urllib.parse.quote(p)}",
                t("Use: {profile}", profile=p),
            )
            for p in DEVICE_PROFILES
        ]
        return self.page(
            FORM_PAGE,
            "Device",
            login,
            action="/devices/save",
            submit=t("Save") if editable else "",
            csrf=login.csrf,
            hidden=[("old_name", form.get("old_name", ""))],
            groups=[
                (t("Device") if editable else t("From config.ini, to be changed there"), fields)
            ],
            problems=[t(problem.words) for problem in problems],
            after=after if editable else [("/devices", t("Back"))],
            extra=[("delete", t("Delete"))] if device and editable else [],
        )

    def save_device_form(self) -> str:
        """POST /devices/save: make, change or delete a device; the next call is judged by it."""
        _, ctx = enter(self.web, self.request, "technologist")
        form = {setting.key: self.form(setting.key).strip() for setting in DEVICE_SETTINGS}
        name, old_name = self.form("name").strip(), self.form("old_name")
        try:
            if self.form("event") == "delete":
                self.web.write(delete_device, ctx, old_name)
            else:
                self.web.write(save_device, ctx, name, form, old_name)
        except Refusal as refusal:
            self.bottle.response.status = 422
            problems = refusal.problems or [Problem(0, Message(refusal.detail))]
            return self.edit_device({"name": name, "old_name": old_name, **form}, problems)
        self.web.box.reload_access()
        return self.tell("/devices", self.translator()("Saved."))

    def doctor(self) -> str:
        """GET /devices/doctor: what is known of a device, and the one thing to do next."""
        login, ctx = enter(self.web, self.request, "technologist")
        t, device = self.translator(), self._device(self.request.query.getunicode("name") or "")
        server = self.web.box.associations
        outcome = echo_outcome(self.web.config.dicom.ae_title, device)
        called = Called(server.called.copy(), server.rejected.copy())  # the loop goes on with them
        found = self.web.read(examine, ctx, device, called, outcome)
        rows_ = [Row((LIGHTS[one.light], t(one.words)), "", self._mending(t, device, one))
                 for one in found]  # fmt: skip
        first = found[0]
        verdict = t("All is well with {name}.", name=device.name)
        if first.light != "good":
            mend = f" {t(first.mend)}." if first.mend else ""
            verdict = f"{t(first.words)}.{mend}"
        links = [(one.path, t(one.mend)) for one in found[:1] if one.path and one.mend]
        links.append(("/devices", t("Devices")))
        part = Part(device.name, (t("Light"), t("What is known")), rows_)
        return self.listing("Doctor", login, [part], intro=verdict, links=links)

    @staticmethod
    def _mending(t: Translator, device: Device, finding: Finding) -> tuple[Action, ...]:
        """The button that takes another AE title of a device."""
        if not finding.do or device.from_file:
            return ()
        fields = (("name", device.name), ("ae_title", finding.do))
        return (Action("/devices/adopt", t(finding.mend), fields),)

    def adopt(self) -> str:
        """POST /devices/adopt: take another AE title of a device."""
        _, ctx = enter(self.web, self.request, "technologist")
        name = self.form("name")
        self.web.write(adopt_title, ctx, name, self.form("ae_title"))
        self.web.box.reload_access()
        path = f"/devices/doctor?name={urllib.parse.quote(name)}"
        return self.tell(path, self.translator()("Saved."))

    def _device(self, name: str) -> Device:
        """A device by its name. Refuses 0112."""
        device = next((one for one in self.web.access().devices if one.name == name), None)
        if not device:
            raise Refusal(
                Status.NO_SUCH_SOP_INSTANCE, Message("There is no device {name}", name=name)
            )
        return device

    def echo_device(self) -> str:
        """POST /devices/echo: C-ECHO to a device."""
        enter(self.web, self.request, "technologist")
        device = self._device(self.form("name"))
        words = echo(self.web.config.dicom.ae_title, device)
        return self.tell("/devices", self.translator()(words))


def setting_text(config: Config, setting: Setting) -> str:
    """The value of a setting as a person reads it."""
    value = getattr(getattr(config, setting.section), setting.key)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple) and setting.kind == "clock":
        return f"{value[0]:02}:{value[1]:02}"
    if isinstance(value, (tuple, frozenset)):
        return ", ".join(map(str, sorted(value) if isinstance(value, frozenset) else value))
    return "" if value is None else str(value)


def setting_choices(setting: Setting, t: Translator) -> tuple[tuple[str, str], ...]:
    """What may be chosen for a setting of few words."""
    kind, *words = setting.kind.split(" ")
    if kind == "bool":
        return (("yes", t("yes")), ("no", t("no")))
    return tuple((word, t(word)) for word in words) if kind == "choice" else ()


def settings_of(device: Device) -> dict[str, str]:
    """A device's settings as texts, as a form or config.ini has them."""
    given: dict[str, str] = {"ae_title": ", ".join(device.ae_titles)}
    for setting in DEVICE_SETTINGS[1:]:
        value = getattr(device, setting.key)
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, tuple):
            value = "\\".join(value)
        elif isinstance(value, frozenset):
            value = ", ".join(sorted(value))
        given[setting.key] = "" if value is None else str(value)
    return given


MENDABLE = frozenset({"ScheduledStationAETitle", "Modality", "ScheduledProcedureStepStartDate"})


def mend_step(ctx: Context, row_id: int, given: Mapping[str, str]) -> bytes:
    """Give a step what a query asked for: its station, modality or day, by keyword."""
    return move_step(ctx, row_id, **given)


def reason_of(
    t: Translator, why: Exclusion | None, step: Any, others: list[tuple[int, str, str]]
) -> tuple[str, tuple[Action, ...]]:
    """Why a query did not find an exam, in a sentence, and the click that mends it.

    others  every key that the exam does not satisfy
    """
    if why is None:
        return t("It is found."), ()
    again = isinstance(STEP_TRANSITIONS["reschedule", step.status], str)
    fields = [("step", str(step.id))]
    if why.tag == STEP_STATUS and not why.asked:
        sentence = t("The exam is {state}; that is not shown to devices.", state=t(why.has))
        fields += [("keyword", "ScheduledProcedureStepStatus"), ("value", "")]
        words = t("Back on the list")
        return sentence, (Action("/why/mend", words, tuple(fields)),) if again else ()
    values = {"name": t(why.name), "asked": why.asked, "has": why.has or t("nothing")}
    sentence = t("It asked for {name} {asked}; the exam has {has}.", **values)
    given = []
    for tag, asked, _ in [why[:3], *others]:
        keyword = datadict.keyword_for_tag(tag)
        wild = set("*?\\") | (set("-") if tag == START_DATE else set())
        if (
            keyword in MENDABLE
            and asked
            and not wild & set(asked)
            and (keyword, asked) not in given
        ):
            given.append((keyword, asked))
    if not given or not again:
        return sentence, ()
    for keyword, asked in given:
        fields += [("keyword", keyword), ("value", asked)]
    words = t("Give the exam {asked}", asked=", ".join(asked for _, asked in given))
    return sentence, (Action("/why/mend", words, tuple(fields)),)


def asked_for(t: Translator, index: ElementIndex) -> str:
    """The keys of a query that are not universal, in words."""
    words = []
    for tag in index:
        if index.vr(tag) == b"SQ":
            words += [asked_for(t, item) for item in index.items(tag)]
        elif index.text(tag).strip("*"):
            words.append(f"{t(description_of(tag))} {index.text(tag)}")
    return ", ".join(filter(None, words))


def similar_first(
    choices: list[tuple[str, str]], index: ElementIndex
) -> tuple[tuple[str, str], ...]:
    """Exams to choose from, those of the same patient by name or accession number before others."""
    wanted = {shown_name(index.get("PatientName")), *(
        item.get("AccessionNumber") for item in index.items(STEP_ATTRIBUTES))} - {""}  # fmt: skip
    return tuple(sorted(choices, key=lambda choice: not any(w in choice[1] for w in wanted)))


def form_of_patient(index: ElementIndex) -> dict[str, str]:
    """The patient's fields of the registration form from a data set."""
    latin, _, rest = index.get("PatientName").partition("=")
    family, _, given = latin.partition("^")
    size = index.get("PatientSize")
    return {
        "family_name": family,
        "given_name": given.replace("^", " ").strip(),
        "chinese_name": rest.partition("=")[0].replace("^", " "),
        "patient_id": index.get("PatientID"),
        "birth_date": shown_date(index.get("PatientBirthDate")),
        "sex": index.get("PatientSex"),
        "weight": index.get("PatientWeight"),
        "height": f"{float(size) * 100:g}" if re.fullmatch(r"[\d.]+", size) else "",
        "allergies": index.get("Allergies"),
        "alerts": index.get("MedicalAlerts"),
    }


def form_of_step(index: ElementIndex) -> dict[str, str]:
    """The exam's fields of the registration form from a step's data set."""
    item = index.item("ScheduledProcedureStepSequence")
    return {
        "device": item.get("ScheduledStationAETitle").partition("\\")[0],
        "modality": item.get("Modality"),
        "procedure": index.get("RequestedProcedureDescription"),
        "date": shown_date(item.text(START_DATE)),
        "time": shown_time(item.text(START_TIME)),
        "priority": index.get("RequestedProcedurePriority"),
        "physician": index.get("ReferringPhysicianName").replace("^", " "),
        "accession": index.get("AccessionNumber"),
        "comment": index.get("RequestedProcedureComments"),
    }


def changed_keywords(form: Mapping[str, str], shown: Mapping[str, str], group: str) -> set[str]:
    """What the fields of a group fill that are not as they were shown; the rest stays as it is."""
    return {
        keyword
        for name, of, keyword, _, _ in REGISTER_FIELDS
        if of == group and name in form and form[name].strip() != shown.get(name, "").strip()
    }


def patient_from_form(
    form: Mapping[str, str], shown: Mapping[str, str]
) -> tuple[bytes, list[Problem]]:
    """The patient's attributes that were changed in a form, empty ones too."""
    whole = dict.fromkeys((row[0] for row in REGISTER_FIELDS), "") | dict(form)
    item, problems = item_from_form(whole)
    changed = changed_keywords(form, shown, "patient") - {"PregnancyStatus"}
    required = {tag_of(row[2]) for row in REGISTER_FIELDS if row[1] == "exam"}
    index = ElementIndex(split_item(ElementIndex(item))[0])
    empty = ElementIndex(b"".join(_by_tag({tag_of(k): encode_text(k, "") for k in changed})))
    told = ElementIndex(index.only(map(tag_of, changed)))
    return empty.merged(told), [problem for problem in problems if problem.tag not in required]


def exam_from_form(
    form: Mapping[str, str], shown: Mapping[str, str], device: Device | None
) -> bytes:
    """The exam's attributes that were changed in a form, empty ones too.

    Another device brings its modality, name and place; another procedure loses the codes of the
    one before.
    """
    changed = changed_keywords(form, shown, "exam")
    physician = form["physician"].strip()
    texts = {
        "RequestedProcedureDescription": form["procedure"],
        "RequestedProcedurePriority": form["priority"],
        "ReferringPhysicianName": physician.replace(" ", "^", 1)
        if physician.isascii()
        else person_name("", "", physician),
        "AccessionNumber": form["accession"].strip(),
        "RequestedProcedureComments": form["comment"],
        "ScheduledStationAETitle": form["device"],
        "Modality": form["modality"] or (device.modality if device else ""),
        "ScheduledProcedureStepStartDate": form["date"].replace("-", ""),
        "ScheduledProcedureStepStartTime": form["time"].replace(":", ""),
    }
    texts = {keyword: text for keyword, text in texts.items() if keyword in changed}
    if "ScheduledStationAETitle" in changed and device:
        texts.setdefault("Modality", device.modality)
        texts["ScheduledStationName"] = device.station_name
        texts["ScheduledProcedureStepLocation"] = device.location
    if "RequestedProcedureDescription" in changed:
        texts["ScheduledProcedureStepDescription"] = form["procedure"]
    outer = {tag_of(k): encode_text(k, v) for k, v in texts.items() if k not in STEP_KEYWORDS}
    inner = {tag_of(k): encode_text(k, v) for k, v in texts.items() if k in STEP_KEYWORDS}
    if "RequestedProcedureDescription" in changed:
        for keyword, where in (
            ("RequestedProcedureCodeSequence", outer),
            ("ScheduledProtocolCodeSequence", inner),
        ):
            where[tag_of(keyword)] = encode_items(tag_of(keyword), [])
    outer[STEP_SEQUENCE] = encode_items(STEP_SEQUENCE, [b"".join(_by_tag(inner))])
    return b"".join(_by_tag(outer))


def decoded(text: str) -> bytes:
    """The bytes of a hidden field. Refuses 0106."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise Refusal(
            Status.INVALID_ATTRIBUTE_VALUE, Message("The form is too old: load the page anew")
        ) from None


def safe_path(path: str | None, default: str = "/") -> str:
    """A path of this site to go back to; never another site."""
    parts = urllib.parse.urlsplit(path or "")
    if not parts.path.startswith("/") or parts.path.startswith(("//", "/\\")):
        return default
    return parts.path + (f"?{parts.query}" if parts.query else "")


def add_pages(app: Any, web: Web) -> None:
    """Put the pages into a bottle application."""
    import bottle

    pages = Pages(web)
    bindings = (
        ("GET", "/", pages.board),
        ("GET", "/login", pages.login_page),
        ("POST", "/login", pages.log_in),
        ("POST", "/logout", pages.log_out),
        ("GET", "/language", pages.language),
        ("GET", "/register", pages.register_page),
        ("POST", "/register", pages.register),
        ("GET", "/step/<row_id:int>", pages.step),
        ("POST", "/step/<row_id:int>", pages.step_event),
        ("GET", "/step/<row_id:int>/edit", pages.edit_step),
        ("POST", "/step/<row_id:int>/edit", pages.change),
        ("GET", "/step/<row_id:int>/slip", pages.slip),
        ("GET", "/step/<row_id:int>/code128.svg", pages.accession_svg),
        ("GET", "/step/<row_id:int>/qr.svg", pages.patient_svg),
        ("GET", "/figures", pages.figures),
        ("GET", "/figures.csv", pages.figures_csv),
        ("GET", "/figures.svg", pages.figures_svg),
        ("GET", "/waiting", pages.waiting),
        ("GET", "/print", pages.print_day),
        ("POST", "/unmatch", pages.unmatch),
        ("GET", "/patients", pages.patients),
        ("GET", "/patient/<row_id:int>", pages.patient),
        ("POST", "/patient/<row_id:int>", pages.correct),
        ("GET", "/patient/<row_id:int>/merge", pages.merge_page),
        ("POST", "/patient/<row_id:int>/merge", pages.merge),
        ("GET", "/find", pages.find),
        ("GET", "/workitems", pages.workitems),
        ("GET", "/workitems/new", pages.new_workitem),
        ("POST", "/workitems/new", pages.create_workitem),
        ("GET", "/workitem/<uid:re:[0-9.]+>", pages.workitem),
        ("POST", "/workitem/<uid:re:[0-9.]+>", pages.workitem_event),
        ("GET", "/watchers", pages.watchers_page),
        ("POST", "/watchers", pages.change_watcher),
        ("GET", "/passed-on", pages.passed_on),
        ("POST", "/passed-on", pages.retry_passing_on),
        ("GET", "/commitments", pages.commitments),
        ("POST", "/commitments", pages.try_commitment),
        ("GET", "/commitment/<uid>", pages.commitment),
        ("GET", "/orphans", pages.stuck),
        ("POST", "/orphans", pages.end_stuck),
        ("GET", "/leftovers", pages.leftovers_page),
        ("POST", "/leftovers", pages.end_leftovers),
        ("GET", "/unscheduled", pages.unscheduled),
        ("POST", "/unscheduled/match", pages.match),
        ("POST", "/unscheduled/settle", pages.settle),
        ("GET", "/why", pages.why),
        ("POST", "/why/mend", pages.mend),
        ("GET", "/catalogue", pages.catalogue),
        ("POST", "/catalogue", pages.save_catalogue),
        ("GET", "/import", pages.import_page),
        ("POST", "/import", pages.import_file),
        ("GET", "/box", pages.box_page),
        ("POST", "/box", pages.box_action),
        ("GET", "/users", pages.users),
        ("POST", "/users", pages.change_user),
        ("GET", "/users/new", pages.new_user),
        ("GET", "/audit", pages.audit_page),
        ("GET", "/settings", pages.settings_page),
        ("GET", "/devices", pages.devices),
        ("GET", "/devices/edit", pages.edit_device),
        ("POST", "/devices/save", pages.save_device_form),
        ("POST", "/devices/echo", pages.echo_device),
        ("GET", "/devices/doctor", pages.doctor),
        ("POST", "/devices/adopt", pages.adopt),
    )

    def guarded(function: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(function)
        def view(**arguments: Any) -> str:
            try:
                return function(**arguments)
            except Refusal as refusal:
                login = find_login(web, bottle.request)
                if refusal.status is Status.NOT_AUTHORIZED and not login:
                    asked = bottle.request.path + "?" + bottle.request.query_string
                    following = urllib.parse.quote(asked.rstrip("?"))
                    return pages.redirect(f"/login?next={following}")
                bottle.response.status = http_status("page", refusal)
                t = pages.translator()
                return pages.page(ERROR_PAGE, "That did not work", login, words=t(refusal.detail))

        return view

    for method, path, function in bindings:
        app.route(path, method, guarded(function))

    @app.get("/static/<name:path>")
    def static_file(name: str) -> Any:
        if not web.static:
            return bottle.HTTPError(404)
        return bottle.static_file(name, root=str(web.static))

    def failed(error: Any) -> str:
        if error.status_code >= 500:
            asked = f"{bottle.request.method} {bottle.request.path}"
            log.error("web: %s failed", asked, exc_info=error.exception)
        t = pages.translator()
        words = {404: t("There is no such page."), 405: t("This cannot be done here.")}
        text = words.get(error.status_code, t("Something went wrong. It is in the log."))
        if bottle.request.path.startswith(("/api", "/dicom-web")):
            bottle.response.content_type = "application/json"
            return json.dumps(problem_json(Refusal(Status.PROCESSING_FAILURE, text)))
        return pages.page(ERROR_PAGE, "That did not work", words=text)

    app.default_error_handler = failed


def build_app(web: Web) -> Any:
    """The bottle application of both."""
    import bottle

    bottle.BaseRequest.MEMFILE_MAX = web.config.web.maximum_body
    app = bottle.Bottle()
    add_api(app, web)
    add_dicomweb(app, web)
    add_pages(app, web)
    return app


# 20. CONFORMANCE ------------------------------------------------------------------------------
#
# The conformance statement, printed from the tables that the program runs by, in the order of
# PS3.2 annex N. For others: conformance_statement.


class Block(NamedTuple):
    """A piece of a document: a heading of a level, a paragraph, or a table with its head."""

    kind: str
    text: str = ""
    rows: tuple[tuple[str, ...], ...] = ()
    level: int = 0


def table_block(*lines: Iterable[object]) -> Block:
    """A table; the first line is its head."""
    return Block("table", rows=tuple(tuple(str(cell) for cell in line) for line in lines))


def statement_overview(config: Config) -> list[Block]:
    """What is supported, in a table of yes and no."""
    services: dict[str, list[str]] = collections.defaultdict(list)
    for service in SERVICES:
        services[service.sop_class].append(service.operation)
    for uid in (UPS_EVENT, MPPS_NOTIFICATION):
        services[uid].append("N-EVENT-REPORT, on associations of ours")
    as_user = {uid: "Yes, passed on" for uid, scp in PASSED_ON.values() if not scp}
    as_user[STORAGE_COMMITMENT] = "Yes, passed on to the archive"
    lines = [
        (UID(uid).name, uid, "Yes", as_user.get(uid, "No"), ", ".join(operations))
        for uid, operations in services.items()
    ]
    head = ("SOP class", "UID", "Provider (SCP)", "User (SCU)", "Operations")
    lines.append(
        (UID(VERIFICATION).name, VERIFICATION, "", "Yes, from the page of devices", "C-ECHO")
    )
    lines.append((UID(STUDY_ROOT_FIND).name, STUDY_ROOT_FIND, "", "Yes, in the archive", "C-FIND"))
    return [
        Block("heading", "1 Conformance statement overview", level=2),
        Block(
            "paragraph",
            "minris registers patients and exams, offers them to modalities as a modality worklist,"
            " and takes the performed procedure steps that modalities report. It manages the"
            " workitems (unified procedure steps) of what comes after, and tells subscribers what"
            " becomes of them. It stores no images.",
        ),
        table_block(head, *lines),
    ]


def statement_introduction(config: Config) -> list[Block]:
    """What the document is of."""
    return [
        Block("heading", "3 Introduction", level=2),
        table_block(
            ("Item", "Value"),
            ("Product", f"minris {__version__}"),
            ("Implementation class UID", IMPLEMENTATION_CLASS_UID),
            ("Implementation version name", IMPLEMENTATION_VERSION_NAME),
            ("AE title", config.dicom.ae_title),
        ),
    ]


def statement_model(config: Config) -> list[Block]:
    """What the application entity does and when."""
    return [
        Block("heading", "4 Implementation model", level=2),
        Block(
            "paragraph",
            f"One application entity, {config.dicom.ae_title}, waits for associations. A worklist"
            " query is answered from what was registered on the page, by the JSON API or by"
            " import. A performed procedure step changes the state of the scheduled steps that it"
            " names; the answer follows the commit to disk.",
        ),
        Block("heading", "4.1 What a performed step does to a scheduled one", level=3),
        table_block(
            ("Performed step", "Scheduled step"),
            *STEP_STATUS_AFTER,
            (
                f"DISCONTINUED, reason {INCORRECT_WORKLIST_ENTRY} (DCM)",
                "as it was before the performed step began",
            ),
        ),
        Block(
            "paragraph",
            "A scheduled step is found by: "
            + "; else by ".join(
                f"{how} ({', '.join(column.replace('_', ' ') for column in columns)})"
                for how, *columns in STEP_ATTEMPTS
            )
            + ". Of several that fit none is taken, and a person decides.",
        ),
    ]


def statement_worklist(config: Config) -> list[Block]:
    """The worklist's keys and rules."""
    lines = [
        (
            ">" * (len(path) - 1) + attribute.keyword,
            f"({attribute.tag >> 16:04X},{attribute.tag & 0xFFFF:04X})",
            attribute.vr,
            matching_kinds(attribute),
            attribute.cells["return"],
        )
        for path, attribute in MWL_ATTRIBUTES.items()
    ]
    hidden = ", ".join(sorted(config.dicom.hide_steps)) or "none"
    rules = (
        "Names match in any case and without accents; a name with an ideographic group is also found"
        " in any spelling of its Latin group: spaces, carets, tones, ü as lü, lv or lyu.",
        "Other texts match exactly, with * and ? as wildcards. Wildcards in names stand for any"
        " characters of a component group, carets included. There is no fuzzy matching.",
        "A start date range and a start time range of the same form are one continuous interval.",
        "The end of a time range covers its whole unit: 1000-1800 includes 18:00:59.",
        "Several values in a key that is not a UID, an invalid date or range, and two items in a"
        " sequence key are refused with A900.",
        f"Steps in these states are not shown, whatever the status key says: {hidden}.",
        f"More than {config.dicom.answer_limit} matches end with A700 after as many answers; a"
        " device may have a lower limit.",
        "An attribute asked for that is not in the table above makes all answers FF01.",
        "Query/Retrieve Level (0008,0052) in a query is ignored. Priority (0000,0700) is ignored. Timezone Offset From UTC (0008,0201) in a query is not"
        " used; asked for, it is answered as that of the clinic.",
        "Extended negotiation is answered: neither fuzzy matching nor timezone adjustment.",
    )
    return [
        Block("heading", "5.1 Modality worklist (PS3.4 annex K)", level=3),
        table_block(("Attribute", "Tag", "VR", "Matching", "Return type"), *lines),
        *(Block("paragraph", rule) for rule in rules),
    ]


def matching_kinds(attribute: Attribute) -> str:
    """How a key is matched, in words."""
    if attribute.cells["match"] == "-":
        return "not matched"
    vr = attribute.vr.encode()
    kinds = {b"SQ": "sequence", b"UI": "list of UIDs", b"DA": "single value, range",
             b"TM": "single value, range"}  # fmt: skip
    required = "required" if attribute.cells["match"] == "R" else "optional"
    kind = kinds.get(vr, "single value, wildcard" if vr in _WILDCARD_VRS else "single value")
    return f"{required}: {kind}"


def statement_mpps(config: Config) -> list[Block]:
    """The attributes and rules of performed steps."""
    lines = [
        (
            ">" * (len(path) - 1) + attribute.keyword,
            f"({attribute.tag >> 16:04X},{attribute.tag & 0xFFFF:04X})",
            *attribute.cells.values(),
        )
        for path, attribute in MPPS_ATTRIBUTES.items()
    ]
    head = ("Attribute", "Tag", "N-CREATE", "N-SET", "Final", "N-GET")
    absent = "refused with 0120" if config.dicom.strict_mpps else "taken as empty and noted"
    discontinued = "refused" if config.dicom.strict_mpps else "taken and noted"
    rules = (
        f"An absent type 2 attribute is {absent}. DISCONTINUED without end or series is"
        f" {discontinued}.",
        "Attributes beyond the table are stored.",
        "An attribute that may not be set is refused with 0105 where it differs from what is"
        " stored, and ignored where it does not.",
        "N-SET after the end is refused with 0110 and Error ID A710.",
        "An N-CREATE without SOP Instance UID is given one.",
        "All texts are stored in Unicode, whatever set each message came in.",
    )
    return [
        Block("heading", "5.2 Modality performed procedure step (PS3.4 F.7, F.8)", level=3),
        table_block(head, *lines),
        *(Block("paragraph", rule) for rule in rules),
        *statement_passing_on(config),
        Block("heading", "5.2.1 States", level=4),
        table_block(
            ("Event", "State", "Outcome"),
            *(
                (event, state, f"{outcome:04X}" if isinstance(outcome, Status) else outcome)
                for (event, state), outcome in MPPS_TRANSITIONS.items()
            ),
        ),
    ]


def statement_passing_on(config: Config) -> list[Block]:
    """MPPS Notification, and what is passed on."""
    hours = config.housekeeping.give_up_events_hours
    rules = (
        "Devices whose setting passed_on names them are passed on: mpps, each N-CREATE and N-SET as it"
        " was taken, with the same SOP Instance UID, as SCU; availability, each availability"
        " notification that was taken, as SCU; mpps_notification, MPPS Notification (PS3.4 F.9) as SCP"
        " by role selection. Who sent it is not sent it. An N-SET that changes nothing is not.",
        "Messages of one receiver are sent in order, one at a time. One that is not reached is tried"
        f" again after {', '.join(map(str, RETRY_AFTER))} seconds, the last over and over, for"
        f" {hours} hours and over restarts; after a crash it may be sent twice, with the same Message ID."
        f" 0110, 0211 and 0213 are tried {MOST_REFUSALS} times, a message in whose middle the receiver ends"
        f" the association {MOST_ABORTS} times; 0111 of an N-CREATE, and 0110 with Error ID A710, are taken"
        " as success; any other answer is kept, and the next message follows. Of a receiver that takes"
        " some of what it is passed on, the rest is kept as refused.",
        "Events of MPPS Notification (Table F.9.2-1): "
        + ", ".join(
            f"{number} ({state or 'other change'})" for state, number in MPPS_EVENTS.items()
        )
        + ". None has a data set.",
    )
    return [
        Block("heading", "5.2.2 Passing on, and MPPS Notification (PS3.4 F.9)", level=4),
        *(Block("paragraph", rule) for rule in rules),
    ]


def statement_workitems(config: Config) -> list[Block]:
    """Workitems: attributes, states, what PS3.4 CC.4.2.1 wants to be documented."""
    ups, keep = config.ups, config.housekeeping
    head = ("Attribute", "Tag", "N-CREATE", "N-SET", "Final", "N-GET", "Matching", "Return type")
    absent = "refused with 0120" if ups.strict else "taken as empty and noted"
    rules = (
        f"An absent type 2 attribute is {absent}; an empty Worklist Label becomes"
        f" {ups.worklist_label}. Nothing else is changed at creation. Attributes beyond the table are"
        " stored. The Modification DateTime is ours, whatever was sent.",
        "The Transaction UID is the lock: it is compared alone, whoever brings it, is kept after the"
        " end, and is neither returned nor matched nor logged. A Transaction UID given at creation is"
        " refused with 0106; one in an N-SET of a SCHEDULED workitem with C310.",
        "N-SET of the state is refused with C303 (SCHEDULED) or 0105; of an attribute that may not"
        " be set with 0105 where it differs from what is stored.",
        "A canceled workitem gets the time and, where there is none, the reason 110513 (DCM):"
        " a cancellation never fails for want of them.",
        "A request to cancel a SCHEDULED workitem is carried out at once: event 2, then IN PROGRESS,"
        " then CANCELED. In progress, its subscribers are told; C312 where there are none and no"
        " person at this system has claimed it, C313 where that person has declined.",
        "Persons may create, claim, finish, assign and end workitems on the page; the same rules and"
        " events apply, and the lock of a person's workitem stays in this system.",
        "C-FIND without a state key finds all states. Names match as in the worklist; codes by value"
        " and scheme, never by meaning. Times with an offset are compared as instants, without one"
        " as the clinic's. Priority (0000,0700) is ignored; neither fuzzy matching nor timezone"
        " adjustment is negotiated.",
        "N-GET and event reports are in the device's character set, else in ISO_IR 192.",
    )
    return [
        Block("heading", "5.3 Unified procedure step (PS3.4 annex CC)", level=3),
        table_block(head, *((
            ">" * (len(path) - 1) + attribute.keyword,
            f"({attribute.tag >> 16:04X},{attribute.tag & 0xFFFF:04X})",
            *attribute.cells.values(),
        ) for path, attribute in UPS_ATTRIBUTES.items())),
        *(Block("paragraph", rule) for rule in rules),
        Block("paragraph", "Final: R with a value in each final state, RC if known, P for COMPLETED,"
              " P2 the same though it may be empty, X for CANCELED, O never."),
        table_block(
            ("Action type", "Action", "In the contexts of"),
            *((kind, name, ", ".join(sorted(classes)))
              for kind, (name, classes) in UPS_ACTIONS.items()),
        ),
        table_block(("Event type", "Event"), *((n, name) for name, n in EVENT_TYPES.items() if n)),
        Block("paragraph", f"Requests carry {UPS_PUSH} in any of the contexts. Subscriptions to all"
              f" workitems are to {UPS_GLOBAL_SUBSCRIPTION}, filtered ones to"
              f" {UPS_FILTERED_SUBSCRIPTION}, the keys beside Receiving AE and Deletion Lock."),
        *_workitem_tables(),
        *(Block("paragraph", rule) for rule in _subscription_rules(config)),
        Block("heading", "5.3.3 Retention and orphans", level=4),
        *(Block("paragraph", rule) for rule in _retention_rules(keep)),
    ]  # fmt: skip


def _workitem_tables() -> list[Block]:
    """The transition tables of workitems and subscriptions."""
    return [
        Block("heading", "5.3.1 States", level=4),
        Block("paragraph", "Of a SCHEDULED workitem any well-formed Transaction UID is the right one."),
        table_block(
            ("Event", "State", "Outcome"),
            *(
                (event, state, f"{outcome:04X}" if isinstance(outcome, Status) else outcome)
                for (event, state), outcome in UPS_TRANSITIONS.items()
            ),
        ),
        Block("heading", "5.3.2 Subscriptions", level=4),
        table_block(
            ("Request", "State", "New state", "State report"),
            *((request, state, new, "yes" if report else "no")
              for (request, state), (new, report) in SUBSCRIPTION_TRANSITIONS.items()),
        ),
    ]  # fmt: skip


def _subscription_rules(config: Config) -> tuple[str, ...]:
    ups = config.ups
    told = ", ".join(ups.restart_receivers) or "nobody else"
    creator = "is" if ups.auto_subscribe_creator else "is not"
    return (
        f"Deletion locks are {'granted' if ups.grant_locks else 'not granted (B301)'}. Whoever"
        f" creates a workitem {creator} subscribed to it. A Receiving AE must be registered with an"
        " address, or be told by WebSocket (else C308); it need not be the caller. Filtered global subscription is supported;"
        " the filter is applied to what there is and to what is created, not again to what changes."
        " Unsubscribe on either well-known UID ends all subscriptions of the AE, suspend the one of"
        " that UID.",
        "Events are written in the transaction that caused them, and sent after its commit and its"
        " response, as N-EVENT-REPORT on an association of ours that proposes the UPS Event SOP"
        " class with the SCP role. Where the role is not accepted nothing is sent, unless the"
        " device's switch events_without_role is on. Events of a receiver are sent in order, at"
        " least once, with a Message ID that a repeat keeps; whatever status it answers counts as"
        " heard.",
        f"A receiver that is not reached is tried again after {', '.join(map(str, RETRY_AFTER))}"
        " seconds, the last over and over; after"
        f" {config.housekeeping.give_up_events_hours} hours of failing its events are given up. A call"
        " of the receiver's ends its wait."
        " Subscriptions and locks stay as they are.",
        "UPS Assigned is sent once for each performer. SCP Status Change is sent once to each AE,"
        " with the UID of the global subscription: RESTARTED at every start, with COLD START where"
        " the store is new or was restored, else WARM START"
        f"{'; GOING DOWN when stopped' if ups.tell_going_down else ''}. Beside the subscribers it is"
        f" sent to {told}.",
    )


def _retention_rules(keep: types.SimpleNamespace) -> tuple[str, ...]:
    locks = (
        f"after {keep.release_locks_days} days" if keep.release_locks_days else "never of itself"
    )
    silent = keep.cancel_silent_workitems_hours
    return (
        f"A workitem that has ended stays {keep.keep_workitems_days} days at least, as long as any"
        " deletion lock on it, and as long as an event of it is to be delivered; then it is deleted."
        " Its UID is not taken again, and its events stay as history"
        f" {f'for {keep.keep_workitem_history_days} days' if keep.keep_workitem_history_days else 'for good'}.",
        f"A deletion lock is listed as stuck {keep.stuck_lock_hours} hours after the end, and"
        f" released {locks}. A workitem in progress is listed after {keep.stuck_workitem_hours} hours"
        f" without news, and canceled {f'after {silent} hours' if silent else 'never of itself'}. A"
        " SCHEDULED one past its expiration is listed, and"
        f" {'canceled' if keep.cancel_expired_workitems else 'never canceled of itself'}. Events are"
        f" listed after {keep.stuck_events_minutes} minutes. An administrator may release a lock, end a"
        " workitem and give up events, with a reason that is kept in the audit log.",
        "Until ten minutes after a start or a leap of the clock, six hours where it was by more than a"
        " week, nothing is deleted, released or canceled of itself.",
    )


def statement_dicomweb(config: Config) -> list[Block]:
    """DICOMweb: its transactions and choices."""
    lines = [(r.method, BASE + r.path, r.clause, r.role) for r in DICOM_ROUTES]
    rules = (
        f"Media types: {', '.join(MEDIA_TYPES)}. Without an Accept header {DICOM_JSON} is answered."
        " A document type in XML is refused.",
        "A workitem's UID is taken from ?workitem=, ?AffectedSOPInstanceUID=, a bare ?UID or the data"
        " set; without any, one is made. The Transaction UID of an update is taken from"
        f" ?{', ?'.join(sorted(LOCK_PARAMETERS))} in any case, a bare ?UID or the data set.",
        "Requesting AE is ?requester= or the last part of the path, else the AE title that the token"
        " speaks for, else that of this system. A token subscribes, opens WebSockets and asks in the"
        " name of the AE titles it is made for alone (403); an administrator's for any.",
        "A parameter that looks like an attribute and is none is refused with 400; others are"
        " ignored. Neither fuzzy, empty value nor multiple value matching is offered. Matches come in"
        " the order of their start; a page ends after limit, or after"
        f" {config.dicom.answer_limit} matches.",
        "TimezoneOffsetFromUTC applies to keys of VR DT; to dates and times it does not, with a Warning"
        " where it is another offset than ours. A charset parameter without UTF-8 is refused with 400;"
        " Accept-Charset is not looked at. Content-Encoding is gzip in both directions, where asked.",
        "Limits: 429 after"
        f" {config.web.requests_per_second or 'any number of'} requests a second from one address, 413"
        f" after {config.web.maximum_body} bytes (unpacked, too), 16 levels of sequences.",
    )
    events = (
        f"Content-Location (and Location) of a subscription name the WebSocket of the AE's events,"
        f" {BASE}/subscribers/{{AE title}}; {BASE}/ws/subscribers/{{AE title}} is the same. It may be"
        " opened before or after the subscription, by a token in the Authorization header or in a"
        f" subprotocol {BEARER}TOKEN, or by a session's cookie from our own pages. The first other"
        " subprotocol is taken. Refusals: 400, 401, 403, 404, 426 without upgrade, 429, 503 past"
        f" {config.web.maximum_websockets} WebSockets.",
        "An AE is told by WebSocket from its first subscription over HTTP or its first WebSocket on,"
        " by DIMSE from its first subscription over DIMSE on, or as the setting events of its device"
        " says. Each event is one text with one object, with the UPS Push SOP class.",
        "An event has been heard when a pong has followed it on one of the AE's WebSockets; until"
        " then it is told again on the next one, with the same Message ID. The first WebSocket of an"
        " AE is told first what came while there was none, another one what comes later. What nobody"
        f" has fetched after {config.housekeeping.give_up_events_hours} hours is given up.",
        f"Every {SocketDelivery.KEEP_ALIVE:.0f} s there is a ping; without a pong for"
        f" {EventSocket.PONG_WITHIN:.0f} s the connection is cut. It is closed with 1008 when its login"
        " ends, with 1001 when the appliance stops. After"
        f" {EventSocket.MOST_UNHEARD} events without a pong it is told no more until one comes. What a"
        " client sends is ignored.",
    )
    return [
        Block("heading", "5.4 DICOMweb (PS3.18 chapters 11, 14, 15)", level=3),
        table_block(("Method", "Path", "Source", "Least role"), *lines),
        *(Block("paragraph", rule) for rule in rules),
        Block("heading", "5.4.1 Notification channel (PS3.18 8.10, 11.13)", level=4),
        *(Block("paragraph", rule) for rule in events),
    ]


def statement_web(config: Config) -> list[Block]:
    """The JSON API."""
    lines = [(r.method, r.path, r.meaning, r.role, r.success) for r in ROUTES]
    return [
        Block("heading", "5.5 Web interface (not DICOMweb: the product's own)", level=3),
        table_block(("Method", "Path", "Meaning", "Least role", "Success"), *lines),
        Block("heading", "5.6 Statuses", level=3),
        table_block(
            ("Operation", "Status", "HTTP", "Text"),
            *((o, f"{s:04X}", c.http, c.text) for (o, s), c in OUTCOMES.items()),
        ),
    ]


def statement_commitment(config: Config) -> list[Block]:
    """Storage commitment: what success rests on, times, limits."""
    keep, retry = config.commitment, ", ".join(map(str, RETRY_AFTER))
    rules = (
        "This system keeps no images. An instance is committed when it was seen, under the SOP class"
        f" that is asked for, in the archive; evidence in this order: {', '.join(keep.evidence)}."
        f" The archive is {keep.archive or 'the one device whose role is archive'}.",
        "archive: C-FIND (Study Root) at IMAGE level within study and series, known from the request,"
        " a performed procedure step or an availability notification; else by SOP Instance UIDs"
        " alone, where the device of the archive has relational_queries; else it could not be"
        " checked, which is failure 0110. commitment: the request for what is not proved is passed on to"
        " the archive's own storage commitment, as SCU, under a Transaction UID of ours; its report is"
        " taken on an association that the archive opens, as SCP by role selection, from the archive's AE"
        " titles alone (else 0115), and passed back under the original UID, with its failure reasons 0112,"
        f" 0119, 0122 and 0213, any other as 0110. Without a report in {keep.answer_minutes} minutes it is"
        " asked anew. availability: a notification by the archive itself that the"
        " instance is ONLINE or NEARLINE there.",
        f"An instance that is not there is looked for again for {keep.missing_minutes} minutes, then"
        " fails with 0112. An archive that is not reached is asked again after"
        f" {retry} seconds, the last over and over, for {keep.give_up_hours} hours; then what is not"
        " judged fails with 0110. Never is success told without evidence.",
        "The result is told on an association of this system's, with the AE title that was called, as"
        " SCP by role selection (or without it, where the device has events_without_role); first on the"
        " requester's own, where its device has report_on_same_association and that is still open. 0110,"
        " 0211 and 0213 are taken as not heard, any other status as heard. A requester that is not reached is tried again in the same way for"
        f" {keep.report_hours} hours, over restarts; after a crash it may be told twice.",
        "A requester must be registered with an address (else 0124). An identical request while the"
        " first is judged is the same; another one under a Transaction UID that is known is"
        f" answered with event 2, all 0131 (over HTTP 409). More than {keep.maximum_instances} instances"
        " are refused with 0213, an instance named twice with 0115.",
        f"Results are kept {keep.keep_days} days, their Transaction UIDs for good (404 for an unknown,"
        " 410 for a dropped one). Duration, retrieval and capacity of the storage are the archive's.",
        "Retrieve AE Title is given at the top level, where all that is committed was seen in one"
        " archive. Storage media are not looked at.",
    )
    classes = [(reason, str(words)) for reason, words in FAILURE_REASONS.items()]
    return [
        Block("heading", "5.7 Storage commitment (PS3.4 J; PS3.18 13)", level=3),
        *(Block("paragraph", rule) for rule in rules),
        table_block(("Failure Reason", "Meaning"), *classes),
    ]


def statement_availability(config: Config) -> list[Block]:
    """Instance availability: what is made of it."""
    keep = config.commitment
    seen = (
        "Of an instance and a Retrieve AE Title, the newest notification counts. Attributes beyond"
        " the table are stored. A second notification under a UID is refused with 0111. Both are"
        f" kept {keep.keep_days} days. Those of others are passed on as 5.2.2 says; of instances that were"
        " found by C-FIND we make one, for each study.",
        f"Every {keep.look_minutes} minutes (0: never) the archive is asked by C-FIND for the instances that"
        " performed steps of the last two days name and that are not known to be there (those that ended"
        " more than two hours ago, each hour), and by Study Instance UID for exams of today and yesterday"
        " of machines that do not report.",
        "A machine reports performed steps if its device says so, or where that says auto, if it ever has."
        " An exam of another one has begun when an instance of its study is notified or found; it has"
        f" ended when none more has come for {keep.quiet_minutes} minutes (as the archive said when it was"
        " asked thereafter), if its study has no other step, when the machine has asked for"
        " storage commitment of instances that were found in its study, or when a person says so. Which of"
        " these told is kept with it.",
        "The Input Readiness State of a SCHEDULED workitem becomes READY, and its subscribers are told, when"
        " each instance of its Input Information Sequence is known to be ONLINE or NEARLINE (at one of the"
        " AE titles that it names, if any). For an item that lists no instances, and for a list that is"
        " INCOMPLETE, all performed steps of the study must have ended and all their instances be known.",
    )
    lines = [
        (">" * (len(path) - 1) + one.keyword, one.cells["create"])
        for path, one in AVAILABILITY_ATTRIBUTES.items()
    ]
    return [
        Block("heading", "5.8 Instance availability notification (PS3.4 R)", level=3),
        *(Block("paragraph", rule) for rule in seen),
        table_block(("Attribute", "N-CREATE"), *lines),
    ]


def statement_configuration(config: Config) -> list[Block]:
    """The settings, and the devices of the file."""
    return [
        Block("heading", "6 Configuration", level=2),
        table_block(
            ("Setting", "Default", "Meaning"),
            *(
                (f"[{s.section}] {s.key}", s.default, s.meaning)
                for s in (*SETTINGS, *DEVICE_SETTINGS)
            ),
        ),
    ]


def statement_network(config: Config) -> list[Block]:
    """Contexts, syntaxes, limits."""
    dicom = config.dicom
    contexts = [
        (
            uid,
            f"{EXPLICIT_VR_LITTLE_ENDIAN}, {IMPLICIT_VR_LITTLE_ENDIAN}",
            "SCP",
            "answered" if roles else "not answered: default roles",
            EXTENDED_NEGOTIATION.get(uid, b"").hex() or "none",
        )
        for uid, roles in PRESENTATION_CONTEXTS.items()
    ]
    head = (
        "Abstract syntax",
        "Transfer syntaxes",
        "Role",
        "Role selection",
        "Extended negotiation",
    )
    limits = [
        (s.key, getattr(dicom, s.key), s.meaning)
        for s in SETTINGS
        if s.section == "dicom"
        and s.key.startswith(("maximum_", "answer_limit")) | s.key.endswith("_timeout")
    ]
    sets = sorted({*CharacterSet.ALONE, *(f"ISO_IR {n}" for n in REPERTOIRES if n not in
                   ("87", "159", "149", "58")), *(f"ISO 2022 IR {n}" for n in REPERTOIRES)})  # fmt: skip
    return [
        Block("heading", "7 Network communication details", level=2),
        Block("heading", "7.1 Association acceptance", level=3),
        table_block(head, *contexts),
        Block(
            "paragraph",
            f"Application context {APPLICATION_CONTEXT}. One operation at a time; requests that come"
            " before an answer wait. Explicit VR is chosen where both are proposed.",
        ),
        table_block(("Limit", "Value", "Meaning"), *limits),
        Block(
            "paragraph",
            "Associations are opened for events, one for each receiver, kept for"
            f" {EventSender.KEEP:.0f} s after the last of a burst, with the context {UPS_EVENT} in both"
            f" transfer syntaxes, role SCP, calling AE title {dicom.ae_title}; likewise for what is"
            " passed on; for results of storage commitment; for queries of the archive; and for C-ECHO.",
        ),
        Block("heading", "7.2 Character sets", level=3),
        Block("paragraph", ", ".join(sets)),
        Block(
            "paragraph",
            "Answers are in the device's set, else in that of the request, else in ISO_IR 192. Of a"
            " name, groups that a set cannot carry are left out if the alphabetic one remains; else"
            " the answer is in the device's fallback set. Bytes that contradict the declared set"
            " are read as UTF-8 or GB18030 where that is certain, and logged.",
        ),
    ]


def statement_security(config: Config) -> list[Block]:
    """Who may associate, TLS."""
    unknown = "accepted" if config.dicom.accept_unknown_devices else "rejected (1, 1, 3)"
    tls = f"on port {config.dicom.tls_port}" if config.dicom.tls_port else "off"
    return [
        Block("heading", "8 Security", level=2),
        table_block(
            ("Item", "Value"),
            ("Calling AE titles that are not registered", unknown),
            ("Another called AE title", "rejected (1, 1, 7)" if config.dicom.check_called_ae_title
             else "accepted"),
            ("TLS", f"{tls}; 1.2 and later, PS3.15 B.9 and B.10"),
            ("Client certificates", "required" if config.dicom.tls_client_ca else "not asked for"),
            ("User identity negotiation", "accepted, not verified, no answer"),
            ("Audit log", "kept in the store, never changed; each line has the SHA-256 digest of itself"
             " and the digest before it"),
        ),
    ]  # fmt: skip


STATEMENT = (
    statement_overview,
    lambda config: [Block("contents")],
    statement_introduction,
    statement_model,
    lambda config: [Block("heading", "5 Service and interoperability description", level=2)],
    statement_worklist,
    statement_mpps,
    statement_workitems,
    statement_dicomweb,
    statement_web,
    statement_commitment,
    statement_availability,
    statement_configuration,
    statement_network,
    statement_security,
)


def conformance_statement(config: Config, form: str = "md") -> str:
    """The DICOM conformance statement of a configuration, as `md`, `html` or `json`."""
    blocks = [Block("heading", f"DICOM conformance statement of minris {__version__}", level=1)]
    for part in STATEMENT:
        blocks += part(config)
    blocks = [block for one in blocks for block in _contents(one, blocks)]
    if form == "json":
        return json.dumps([block._asdict() for block in blocks], indent=1) + "\n"
    if form == "md":
        return "".join(map(_markdown, blocks))
    title = html.escape(blocks[0].text)
    head = f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
    return f"{head}<body>\n{''.join(map(_html, blocks))}</body></html>\n"


def _contents(block: Block, blocks: list[Block]) -> list[Block]:
    if block.kind != "contents":
        return [block]
    headings = [(b.text,) for b in blocks if b.kind == "heading" and b.level in (2, 3)]
    return [Block("heading", "2 Contents", level=2), table_block(("Section",), *headings)]


def _markdown(block: Block) -> str:
    if block.kind == "heading":
        return f"{'#' * block.level} {block.text}\n\n"
    if block.kind == "paragraph":
        return f"{block.text}\n\n"
    lines = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in block.rows
    ]
    lines.insert(1, "|" + " --- |" * len(block.rows[0]))
    return "\n".join(lines) + "\n\n"


def _html(block: Block) -> str:
    if block.kind == "heading":
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>\n"
    if block.kind == "paragraph":
        return f"<p>{html.escape(block.text)}</p>\n"
    head, *body = block.rows
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in body]
    trs = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"<table><thead><tr>{cells}</tr></thead>\n<tbody>\n{trs}</tbody></table>\n"


# 21. SIMULATOR --------------------------------------------------------------------------------
#
# Peers to try the box with: they know nothing but DICOM, like the real ones. pynetdicom is their
# stack. For others: Modality, Scanner, SimulatedArchive, Workstation, SCENARIOS, play_day.


# What the simulated modality asks for, and what it leaves empty in its reports.
QUERY_KEYWORDS = (
    "PatientName PatientID PatientBirthDate PatientSex AccessionNumber RequestedProcedureID"
    " RequestedProcedureDescription StudyInstanceUID"
).split()
QUERY_STEP_KEYWORDS = (
    "ScheduledProcedureStepStartTime ScheduledProcedureStepID ScheduledProcedureStepDescription"
).split()
EMPTY_MPPS_TEXTS = (
    "PerformedStationName PerformedLocation PerformedProcedureTypeDescription"
    " PerformedProcedureStepEndDate PerformedProcedureStepEndTime StudyID"
).split()
EMPTY_MPPS_SEQUENCES = (
    "ReferencedPatientSequence ProcedureCodeSequence PerformedSeriesSequence"
    " PerformedProtocolCodeSequence PerformedProcedureStepDiscontinuationReasonCodeSequence"
).split()


CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


class SimulationError(Exception):
    """A scenario could not be played to its end."""


class Peer:
    """Somebody who associates with the box.

    host, port, called  where it is
    say                 takes each line of the conversation
    """

    CLASSES: tuple[str, ...] = ()

    def __init__(
        self,
        ae_title: str,
        host: str,
        port: int,
        called: str,
        say: Callable[[str], None] = print,
    ) -> None:
        from pynetdicom import AE

        self.ae_title, self.say = ae_title, say
        self.address, self.called = (host, port), called
        self.ae = AE(ae_title=ae_title)
        for uid in self.CLASSES:
            self.ae.add_requested_context(
                uid, [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN]
            )

    @contextlib.contextmanager
    def association(self) -> Iterator[Any]:
        """An association to the box; SimulationError where there is none."""
        association = self.ae.associate(*self.address, ae_title=self.called)
        if association.is_rejected:
            why = association.acceptor.primitive.reason_str
            raise SimulationError(f"{self.ae_title} was not let in by {self.called}: {why}")
        if not association.is_established:
            host, port = self.address
            raise SimulationError(f"{self.called} is not reached at {host}, port {port}")
        try:
            yield association
        finally:
            association.release()


class Modality(Peer):
    """A machine that finds its patients on the worklist and reports what it does.

    ae_title, modality  what it is
    """

    CLASSES = (VERIFICATION, MODALITY_WORKLIST, MPPS)

    def __init__(self, ae_title: str, modality: str, *address: Any) -> None:
        super().__init__(ae_title, *address)
        self.modality = modality

    def echo(self) -> None:
        """C-ECHO."""
        with self.association() as association:
            status = association.send_c_echo()
        self.say(f"{self.ae_title} -> {self.called}  C-ECHO: {status.Status:04X}")

    def worklist(self, date: str = "") -> list[Any]:
        """The steps scheduled for this machine, as data sets; of a day, or of any."""
        from pydicom.dataset import Dataset

        query, step = Dataset(), Dataset()
        query.SpecificCharacterSet = "ISO_IR 192"
        for keyword in QUERY_KEYWORDS:
            setattr(query, keyword, "")
        step.ScheduledStationAETitle, step.Modality = self.ae_title, self.modality
        step.ScheduledProcedureStepStartDate = date
        for keyword in QUERY_STEP_KEYWORDS:
            setattr(step, keyword, "")
        query.ScheduledProcedureStepSequence = [step]
        found = []
        with self.association() as association:
            for status, identifier in association.send_c_find(query, MODALITY_WORKLIST):
                if not status or status.Status not in (0x0000, 0xFF00, 0xFF01):
                    raise SimulationError(f"C-FIND: {status}")
                if identifier:
                    found.append(identifier)
        names = ", ".join(shown_name(str(ds.PatientName)) for ds in found) or "nobody"
        self.say(f"{self.ae_title} -> {self.called}  C-FIND worklist: {names}")
        return found

    def start(self, item: Any, uid: str) -> None:
        """N-CREATE of a performed procedure step for a worklist item."""
        from pydicom.dataset import Dataset

        now, step = datetime.datetime.now(), item.ScheduledProcedureStepSequence[0]
        scheduled, ds = Dataset(), Dataset()
        for keyword in ("StudyInstanceUID", "AccessionNumber", "RequestedProcedureID",
                        "RequestedProcedureDescription"):  # fmt: skip
            setattr(scheduled, keyword, item.get(keyword, ""))
        scheduled.ScheduledProcedureStepID = step.ScheduledProcedureStepID
        scheduled.ScheduledProcedureStepDescription = step.get(
            "ScheduledProcedureStepDescription", ""
        )
        scheduled.ScheduledProtocolCodeSequence, scheduled.ReferencedStudySequence = [], []
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.ScheduledStepAttributesSequence = [scheduled]
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):
            setattr(ds, keyword, item.get(keyword, ""))
        ds.PerformedProcedureStepID = f"P{now:%H%M%S}"
        ds.PerformedStationAETitle, ds.Modality = self.ae_title, self.modality
        ds.PerformedProcedureStepStartDate = f"{now:%Y%m%d}"
        ds.PerformedProcedureStepStartTime = f"{now:%H%M%S}"
        ds.PerformedProcedureStepStatus = "IN PROGRESS"
        ds.PerformedProcedureStepDescription = scheduled.ScheduledProcedureStepDescription
        for keyword in EMPTY_MPPS_TEXTS:
            setattr(ds, keyword, "")
        for keyword in EMPTY_MPPS_SEQUENCES:
            setattr(ds, keyword, [])
        with self.association() as association:
            status, _ = association.send_n_create(ds, MPPS, uid)
        self._report("N-CREATE", "IN PROGRESS", item, status)

    def end(self, item: Any, uid: str, images: int = 4, reason: str = "") -> Any:
        """N-SET to COMPLETED with a series, which is returned, or to DISCONTINUED (DCM code)."""
        from pydicom.dataset import Dataset

        now, ds, series = datetime.datetime.now(), Dataset(), Dataset()
        ds.PerformedProcedureStepStatus = "DISCONTINUED" if reason else "COMPLETED"
        ds.PerformedProcedureStepEndDate = f"{now:%Y%m%d}"
        ds.PerformedProcedureStepEndTime = f"{now:%H%M%S}"
        series.PerformingPhysicianName = series.OperatorsName = ""
        series.ProtocolName, series.SeriesInstanceUID = "Standard", new_uid()
        series.SeriesDescription = series.RetrieveAETitle = ""
        series.ReferencedImageSequence = [self._image() for _ in range(0 if reason else images)]
        series.ReferencedNonImageCompositeSOPInstanceSequence = []
        ds.PerformedSeriesSequence = [series]
        if reason:
            code = Dataset()
            code.CodeValue, code.CodingSchemeDesignator = reason, "DCM"
            code.CodeMeaning = DISCONTINUATION_REASONS[reason]
            ds.PerformedProcedureStepDiscontinuationReasonCodeSequence = [code]
        with self.association() as association:
            status, _ = association.send_n_set(ds, MPPS, uid)
        words = ds.PerformedProcedureStepStatus
        self._report(
            "N-SET",
            f"{words} ({DISCONTINUATION_REASONS[reason]})" if reason else words,
            item,
            status,
        )
        return series

    @staticmethod
    def _image() -> Any:
        from pydicom.dataset import Dataset

        image = Dataset()
        image.ReferencedSOPClassUID = CT_IMAGE_STORAGE
        image.ReferencedSOPInstanceUID = new_uid()
        return image

    def _report(self, operation: str, words: str, item: Any, status: Any) -> None:
        code = f"{status.Status:04X}" if status else "no answer"
        name = shown_name(str(item.PatientName))
        self.say(f"{self.ae_title} -> {self.called}  {operation} {words}, {name}: {code}")
        if code != "0000":
            comment = status.get("ErrorComment", "") if status else ""
            raise SimulationError(f"{operation} was answered {code} {comment}")


@contextlib.contextmanager
def served(ae: Any, port: int, *handlers: tuple[Any, Callable[..., Any]]) -> Iterator[None]:
    """A simulated AE that listens. SimulationError where the port is taken."""
    try:
        server = ae.start_server(("", port), block=False, evt_handlers=list(handlers))
    except OSError as error:
        raise SimulationError(f"port {port}: {error}") from None
    try:
        yield
    finally:
        server.shutdown()


class Scanner(Modality):
    """A modality that stores its images in an archive, and asks the box whether they are safe.

    listen   the port where it hears the result; it must be registered at the box with it
    archive  AE title, host and port of where it stores; None: it does not
    """

    CLASSES = (*Modality.CLASSES, STORAGE_COMMITMENT)
    PATIENCE = 900.0  # what is missing is looked for again for [commitment] missing_minutes

    def __init__(
        self,
        ae_title: str,
        modality: str,
        *address: Any,
        listen: int = 0,
        archive: tuple[str, str, int] | None = None,
    ) -> None:
        super().__init__(ae_title, modality, *address)
        self.listen, self.archive = listen, archive
        self.results: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def store(self, item: Any, series: Any) -> None:
        """C-STORE of the images of a series, one grey pixel each."""
        from pynetdicom import AE

        if not self.archive:
            return
        title, host, port = self.archive
        ae = AE(ae_title=self.ae_title)
        ae.add_requested_context(CT_IMAGE_STORAGE, EXPLICIT_VR_LITTLE_ENDIAN)
        association = ae.associate(host, port, ae_title=title)
        if not association.is_established:
            raise SimulationError(f"{title} is not reached at {host}, port {port}")
        for number, image in enumerate(series.ReferencedImageSequence, 1):
            ds = self._pixel(item, series, image.ReferencedSOPInstanceUID, number)
            status = association.send_c_store(ds)
            if not status or status.Status != Status.SUCCESS:
                raise SimulationError(f"C-STORE: {status}")
        association.release()
        self.say(f"{self.ae_title} -> {title}  C-STORE {number} images: 0000")

    def _pixel(self, item: Any, series: Any, uid: str, number: int) -> Any:
        from pydicom.dataset import Dataset, FileMetaDataset

        ds, meta = Dataset(), FileMetaDataset()
        meta.TransferSyntaxUID = EXPLICIT_VR_LITTLE_ENDIAN
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CT_IMAGE_STORAGE, uid
        ds.file_meta = meta
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SOPClassUID, ds.SOPInstanceUID, ds.InstanceNumber = CT_IMAGE_STORAGE, uid, number
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex",
                        "AccessionNumber", "StudyInstanceUID"):  # fmt: skip
            setattr(ds, keyword, item.get(keyword, ""))
        ds.SeriesInstanceUID, ds.Modality = series.SeriesInstanceUID, self.modality
        ds.StudyDate, ds.StudyTime, ds.StudyID = f"{datetime.date.today():%Y%m%d}", "", ""
        ds.Rows = ds.Columns = ds.SamplesPerPixel = 1
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit, ds.PixelRepresentation = 7, 0
        ds.PhotometricInterpretation, ds.PixelData = "MONOCHROME2", b"\x80\0"
        return ds

    def commit(self, series: Any) -> None:
        """N-ACTION for the images of a series, and the N-EVENT-REPORT that follows."""
        from pydicom.dataset import Dataset
        from pynetdicom import AE, evt

        if not self.listen:
            raise SimulationError("the result would be told to nobody: give --listen PORT")
        ae = AE(ae_title=self.ae_title)
        ae.add_supported_context(STORAGE_COMMITMENT, scu_role=True, scp_role=True)
        ds = Dataset()
        ds.TransactionUID = new_uid()
        ds.ReferencedSOPSequence = series.ReferencedImageSequence
        with served(ae, self.listen, (evt.EVT_N_EVENT_REPORT, self._hear)):
            with self.association() as association:
                status, _ = association.send_n_action(
                    ds, 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
                )
            code = f"{status.Status:04X}" if status else "no answer"
            count = len(series.ReferencedImageSequence)
            words = f"N-ACTION are {count} images safe?"
            self.say(f"{self.ae_title} -> {self.called}  {words}: {code}")
            if code != "0000":
                comment = status.get("ErrorComment", "") if status else ""
                raise SimulationError(f"N-ACTION was answered {code} {comment}")
            self._say_result(ds.TransactionUID)

    def _hear(self, event: Any) -> tuple[int, None]:
        self.results.put((event.request.EventTypeID, event.event_information))
        return 0x0000, None

    def _say_result(self, uid: str) -> None:
        until = time.monotonic() + self.PATIENCE
        while True:
            try:
                kind, ds = self.results.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise SimulationError(f"{self.ae_title} has not heard the result") from None
            if ds.TransactionUID == uid:
                break
        good, bad = ds.get("ReferencedSOPSequence", []), ds.get("FailedSOPSequence", [])
        told = [f"{len(good)} images are safe and may be deleted"] if good else []
        reasons = collections.Counter(f"{one.FailureReason:04X}" for one in bad)
        for reason, count in sorted(reasons.items()):
            words = FAILURE_REASONS.get(reason, "for another reason")
            told.append(f"{count} images are not to be deleted: {reason}, {words}")
        self.say(f"{self.called} -> {self.ae_title}  N-EVENT-REPORT {kind}: {'; '.join(told)}")


class SimulatedArchive(Peer):
    """An archive: it stores, answers queries, commits, takes what is passed on, and notifies the box.

    Of images it keeps the UIDs alone. It is C-STORE, C-FIND (Study Root), storage commitment, MPPS
    and MPPS Notification provider, and sends Instance Availability Notifications
    """

    CLASSES = (VERIFICATION, INSTANCE_AVAILABILITY)
    LEVELS = (
        ("STUDY", "StudyInstanceUID"),
        ("SERIES", "SeriesInstanceUID"),
        ("IMAGE", "SOPInstanceUID"),
    )

    def __init__(self, ae_title: str, *address: Any, listen: int = 0) -> None:
        super().__init__(ae_title, *address)
        self.listen = listen
        self.images: dict[str, tuple[str, str, str]] = {}  # study, series and class by UID
        self.new: dict[Any, list[str]] = collections.defaultdict(list)  # by association
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Be there. SimulationError without a port, or where it is taken."""
        from pynetdicom import AE, AllStoragePresentationContexts, evt

        if not self.listen:
            raise SimulationError("an archive must be reached: give --listen PORT")
        ae = AE(ae_title=self.ae_title)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax)
        for uid in (VERIFICATION, STUDY_ROOT_FIND, MPPS, INSTANCE_AVAILABILITY):
            ae.add_supported_context(uid)
        for uid in (STORAGE_COMMITMENT, MPPS_NOTIFICATION):
            ae.add_supported_context(uid, scu_role=True, scp_role=True)
        handlers = (
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_N_ACTION, self._commit),
            (evt.EVT_N_CREATE, self._take),
            (evt.EVT_N_SET, self._take),
            (evt.EVT_N_EVENT_REPORT, self._take),
            (evt.EVT_RELEASED, self._released),
        )
        with served(ae, self.listen, *handlers):
            yield

    def _store(self, event: Any) -> int:
        ds = event.dataset
        with self.lock:
            self.images[ds.SOPInstanceUID] = (
                ds.StudyInstanceUID,
                ds.SeriesInstanceUID,
                ds.SOPClassUID,
            )
            self.new[event.assoc].append(ds.SOPInstanceUID)
        return 0x0000

    def _released(self, event: Any) -> None:
        """Tell the box what has been stored, from a thread of its own."""
        with self.lock:
            uids = self.new.pop(event.assoc, [])
        if uids:
            who = event.assoc.requestor.ae_title
            self.say(f"{who} -> {self.ae_title}  C-STORE {len(uids)} images: 0000")
            threading.Thread(target=self._guarded, args=(self.notify, uids), daemon=True).start()

    def _guarded(self, step: Callable[..., None], *arguments: Any) -> None:
        """What fails is said."""
        try:
            step(*arguments)
        except SimulationError as error:
            self.say(str(error))

    def notify(self, uids: Iterable[str]) -> None:
        """N-CREATE of an Instance Availability Notification for each study."""
        rows_ = [
            (uid, self.ae_title, of_class, study, series, "ONLINE")
            for uid in uids
            for study, series, of_class in [self.images[uid]]
        ]
        rows_.sort(key=lambda row: row[3:5])
        for study, of_study in itertools.groupby(rows_, key=lambda row: row[3]):
            data = availability_data(study, list(of_study), [])
            with self.association() as association:
                status, _ = association.send_n_create(
                    _dataset(ElementIndex(data)), INSTANCE_AVAILABILITY, new_uid()
                )
            code = f"{status.Status:04X}" if status else "no answer"
            self.say(f"{self.ae_title} -> {self.called}  N-CREATE availability: {code}")

    def _find(self, event: Any) -> Iterator[tuple[int, Any]]:
        from pydicom.dataset import Dataset

        query = event.identifier
        depth = [level for level, _ in self.LEVELS].index(query.QueryRetrieveLevel) + 1
        with self.lock:
            images = [(study, series, uid, of_class)
                      for uid, (study, series, of_class) in self.images.items()]  # fmt: skip
        found: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
        for *place, of_class in images:
            keys = [query.get(keyword, "") or "" for _, keyword in self.LEVELS]
            wanted = [[key] if isinstance(key, str) else list(key) for key in keys]
            if all(not any(some) or uid in some for uid, some in zip(place, wanted, strict=True)):
                found[tuple(place[:depth])].append(of_class)
        for place, classes in found.items():
            answer = Dataset()
            answer.QueryRetrieveLevel, answer.RetrieveAETitle = (
                query.QueryRetrieveLevel,
                self.ae_title,
            )
            for uid, (_, keyword) in zip(place, self.LEVELS, strict=False):
                setattr(answer, keyword, uid)
            if depth == len(self.LEVELS):
                answer.SOPClassUID = classes[0]
            else:
                answer.NumberOfStudyRelatedInstances = len(classes)
            yield 0xFF00, answer
        self.say(f"{event.assoc.requestor.ae_title} -> {self.ae_title}  C-FIND: {len(found)} found")

    def _commit(self, event: Any) -> tuple[int, None]:
        ds, who = event.action_information, event.assoc.requestor.ae_title
        self.say(f"{who} -> {self.ae_title}  N-ACTION commitment: 0000")
        threading.Thread(target=self._guarded, args=(self.report, ds, who), daemon=True).start()
        return 0x0000, None

    def report(self, asked: Any, who: str) -> None:
        """N-EVENT-REPORT of what is here, on an association of its own, to the box."""
        from pydicom.dataset import Dataset
        from pynetdicom import AE, build_role

        ds = Dataset()
        ds.TransactionUID, ds.RetrieveAETitle = asked.TransactionUID, self.ae_title
        good, bad = [], []
        for one in asked.ReferencedSOPSequence:
            item = Dataset()
            item.ReferencedSOPClassUID = one.ReferencedSOPClassUID
            item.ReferencedSOPInstanceUID = one.ReferencedSOPInstanceUID
            _, _, of_class = self.images.get(one.ReferencedSOPInstanceUID, ("", "", ""))
            if of_class == one.ReferencedSOPClassUID:
                good.append(item)
            else:
                item.FailureReason = int(OF_ANOTHER_CLASS if of_class else NOT_THERE, 16)
                bad.append(item)
        for keyword, items in (("ReferencedSOPSequence", good), ("FailedSOPSequence", bad)):
            if items:
                setattr(ds, keyword, items)
        ae = AE(ae_title=self.ae_title)
        ae.add_requested_context(STORAGE_COMMITMENT)
        role = build_role(STORAGE_COMMITMENT, scp_role=True)
        association = ae.associate(*self.address, ae_title=who, ext_neg=[role])
        if not association.is_established:
            raise SimulationError(f"{who} is not reached for the result of its request")
        kind = COMMITMENT_EVENTS[not bad]
        status, _ = association.send_n_event_report(
            ds, kind, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
        )
        association.release()
        code = f"{status.Status:04X}" if status else "no answer"
        words = f"N-EVENT-REPORT {kind}, {len(good)} committed, {len(bad)} not: {code}"
        self.say(f"{self.ae_title} -> {who}  {words}")

    def _take(self, event: Any) -> tuple[int, Any]:
        """What is passed on: said, and answered with success."""
        from pydicom.dataset import Dataset

        request = event.request
        name = type(request).__name__.replace("_", "-")
        kind = getattr(request, "EventTypeID", None)
        words = f"{name} {kind}" if kind else name
        self.say(f"{event.assoc.requestor.ae_title} -> {self.ae_title}  {words}: 0000")
        return 0x0000, None if kind else Dataset()


class Workstation(Peer):
    """A system that creates, performs and watches workitems.

    listen  the port where it hears of events; it must be registered at the box with it
    label   worklist label of the workitems it makes and looks for
    """

    CLASSES = (UPS_PUSH, UPS_PULL, UPS_WATCH)
    PATIENCE = 20.0

    def __init__(self, ae_title: str, *address: Any, listen: int = 0) -> None:
        super().__init__(ae_title, *address)
        self.listen, self.label = listen, f"SIM {secrets.token_hex(4)}"
        self.events: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()
        self.made: dict[str, str] = {}

    # What it says

    def create(self, words: str, code: str, source: str = "", station: str = "") -> str:
        """N-CREATE of a workitem: its UID.

        source   UID of the workitem whose outputs are its inputs
        station  for which it is
        """
        now = datetime.datetime.now().astimezone()
        codes = encode_items(tag_of("ScheduledWorkitemCodeSequence"), [workitem_code(code)])
        texts = text_elements(
            ProcedureStepState="SCHEDULED",
            ProcedureStepLabel=words,
            WorklistLabel=self.label,
            ScheduledProcedureStepPriority="MEDIUM",
            InputReadinessState="READY",
            ScheduledProcedureStepStartDateTime=f"{now:%Y%m%d%H%M%S%z}",
            CommentsOnTheScheduledProcedureStep=f"made of {source}" if source else "",
        )
        data = with_empty(texts.merged(ElementIndex(codes)), UPS_ATTRIBUTES, "create")
        ds = _dataset(ElementIndex(data))
        if station:
            code_ds = _dataset(ElementIndex(code_item(station, station, LOCAL_SCHEME)))
            ds.ScheduledStationNameCodeSequence = [code_ds]
        uid = new_uid()
        with self.association() as association:
            status, _ = association.send_n_create(ds, UPS_PUSH, uid)
        self._said(f"N-CREATE          {words}", status)
        self.made[uid] = words
        return uid

    def find(self, state: str = "SCHEDULED") -> list[str]:
        """C-FIND of the workitems of its label in a state: their UIDs."""
        from pydicom.dataset import Dataset

        query = Dataset()
        query.SOPInstanceUID = query.ProcedureStepLabel = ""
        query.ProcedureStepState, query.WorklistLabel = state, self.label
        with self.association() as association:
            answers = list(association.send_c_find(query, UPS_PULL))
        found = [ds for _, ds in answers if ds]
        words = ", ".join(ds.ProcedureStepLabel for ds in found) or "nothing"
        self._said(f"C-FIND            {state}: {words}", answers[-1][0])
        return [ds.SOPInstanceUID for ds in found]

    def get(self, uid: str) -> Any:
        """N-GET of a workitem: its data set."""
        with self.association() as association:
            status, ds = association.send_n_get([], UPS_PUSH, uid, meta_uid=UPS_WATCH)
        self._said(f"N-GET             {ds.ProcedureStepState if ds else ''}", status)
        return ds

    def claim(self, uid: str) -> str:
        """N-ACTION to IN PROGRESS: the lock, a Transaction UID of its own."""
        lock = new_uid()
        self.change_state(uid, "IN PROGRESS", lock)
        return lock

    def change_state(self, uid: str, state: str, lock: str) -> None:
        """N-ACTION of type 1."""
        action = text_elements(ProcedureStepState=state, TransactionUID=lock)
        self._act(f"change state      {state}", 1, uid, action, UPS_PULL)

    def progress(self, uid: str, lock: str, percent: int, words: str) -> None:
        """N-SET of how far it is."""
        item = text_elements(
            ProcedureStepProgress=str(percent), ProcedureStepProgressDescription=words
        )
        sequence = encode_items(PROGRESS_INFORMATION, [bytes(item)])
        self._set(uid, lock, sequence, f"{percent} %, {words}")

    def complete(self, uid: str, lock: str, code: str) -> None:
        """N-SET of what was performed, and N-ACTION to COMPLETED."""
        now = f"{datetime.datetime.now().astimezone():%Y%m%d%H%M%S%z}"
        times = text_elements(
            PerformedProcedureStepStartDateTime=now, PerformedProcedureStepEndDateTime=now
        )
        station = code_item(self.ae_title, self.ae_title, LOCAL_SCHEME)
        item = times.merged(
            *(
                ElementIndex(encode_items(tag_of(keyword), items))
                for keyword, items in (
                    ("PerformedWorkitemCodeSequence", [workitem_code(code)]),
                    ("PerformedStationNameCodeSequence", [station]),
                    ("OutputInformationSequence", []),
                )
            )
        )
        self._set(uid, lock, encode_items(PERFORMED_PROCEDURE, [item]), "what was performed")
        self.change_state(uid, "COMPLETED", lock)

    def request_cancel(self, uid: str, words: str) -> None:
        """N-ACTION of type 2 with a reason and a contact."""
        contact = text_elements(ContactDisplayName=self.ae_title, ContactURI="tel:+1-555-0100")
        asked = cancellation_reason(words, "110513").merged(contact)
        self._act(f"request cancel    {words}", 2, uid, ElementIndex(asked), UPS_WATCH)

    def subscribe(self, uid: str, lock: bool = False, only_own: bool = False) -> None:
        """N-ACTION of type 3; `only_own`: the filter of a filtered subscription is its label."""
        action = text_elements(
            ReceivingAE=self.ae_title,
            DeletionLock="TRUE" if lock else "FALSE",
            WorklistLabel=self.label if only_own else "",
        )
        what = "with deletion lock" if lock else "without deletion lock"
        self._act(f"subscribe         {what}", 3, uid, action, UPS_WATCH)

    def end_subscriptions(self) -> None:
        """N-ACTION of types 5 and 4: it hears of nothing more, and holds no lock."""
        action = text_elements(ReceivingAE=self.ae_title)
        self._act("suspend", 5, UPS_FILTERED_SUBSCRIPTION, action, UPS_WATCH)
        for uid in self.made:
            self._act("unsubscribe", 4, uid, action, UPS_WATCH)

    def _set(self, uid: str, lock: str, data: bytes, words: str) -> None:
        ds = _dataset(ElementIndex(text_elements(TransactionUID=lock).merged(ElementIndex(data))))
        with self.association() as association:
            status, _ = association.send_n_set(ds, UPS_PUSH, uid, meta_uid=UPS_PULL)
        self._said(f"N-SET             {words}", status)

    def _act(
        self, words: str, kind: int, uid: str, information: ElementIndex, sop_class: str
    ) -> None:
        with self.association() as association:
            status, _ = association.send_n_action(
                _dataset(information), kind, UPS_PUSH, uid, meta_uid=sop_class
            )
        self._said(f"N-ACTION          {words}", status)

    def _said(self, words: str, status: Any) -> None:
        code = f"{status.Status:04X}" if status else "no answer"
        self.say(f"{self.ae_title:<12} -> {self.called:<12} {words}: {code}")
        if code != "0000":
            comment = status.get("ErrorComment", "") if status else ""
            hint = f"; register it with an address and port {self.listen}" if code == "C308" else ""
            raise SimulationError(f"{words.split('  ')[0]} was answered {code} {comment}{hint}")

    # What it hears

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Be there for events; nothing where it has no port."""
        if not self.listen:
            yield
            return
        from pynetdicom import AE, evt

        ae = AE(ae_title=self.ae_title)
        ae.add_supported_context(UPS_EVENT, scu_role=True, scp_role=True)
        with served(ae, self.listen, (evt.EVT_N_EVENT_REPORT, self._hear)):
            yield

    def _hear(self, event: Any) -> tuple[int, None]:
        request = event.request
        uid = str(request.AffectedSOPInstanceUID)
        self.events.put((uid, request.EventTypeID, event.event_information))
        return 0x0000, None

    def hear(self, uid: str, words: str) -> None:
        """Wait for an event of a workitem that has these words in it; say what comes."""
        if not self.listen:
            return
        until = time.monotonic() + self.PATIENCE
        names = {number: name for name, number in EVENT_TYPES.items()}
        while True:
            try:
                left = max(0.0, until - time.monotonic())
                found, kind, ds = self.events.get(timeout=left)
            except queue.Empty:
                raise SimulationError(f"{self.ae_title} has not heard: {words}") from None
            if found not in self.made:
                continue
            told = f"{names[kind]}: {_event_words(ds)}"
            self.say(
                f"{self.called:<12} -> {self.ae_title:<12} N-EVENT-REPORT    {told}"
                f"  ({self.made[found]})"
            )
            if found == uid and words in told:
                return


def _dataset(index: ElementIndex) -> Any:
    """A stored data set as pydicom's."""
    from pydicom.filereader import read_dataset

    ds = read_dataset(io.BytesIO(bytes(index)), is_implicit_VR=False, is_little_endian=True)
    ds.SpecificCharacterSet = "ISO_IR 192"
    return ds


def _event_words(ds: Any) -> str:
    """What an event says, in a line."""
    if "ProcedureStepProgressInformationSequence" in ds:
        item = ds.ProcedureStepProgressInformationSequence[0]
        return f"{item.get('ProcedureStepProgress', '')} %, " + item.get(
            "ProcedureStepProgressDescription", ""
        )
    texts = ("RequestingAE", "ProcedureStepState", "InputReadinessState", "ReasonForCancellation",
             "ContactDisplayName", "ContactURI")  # fmt: skip
    codes = ("ScheduledStationNameCodeSequence", "ProcedureStepDiscontinuationReasonCodeSequence")
    said = [str(ds.get(keyword, "")) for keyword in texts]
    said += [item.CodeMeaning for keyword in codes for item in ds.get(keyword, [])]
    return ", ".join(filter(None, said))


def scenario_echo(machine: Modality) -> None:
    """C-ECHO."""
    machine.echo()


def scenario_modality(machine: Modality) -> None:
    """Find the worklist, perform its first step, report start and end."""
    found = machine.worklist()
    if not found:
        raise SimulationError("the worklist is empty for this AE title and modality")
    uid = new_uid()
    machine.start(found[0], uid)
    machine.end(found[0], uid)


def scenario_discontinue(machine: Modality) -> None:
    """Begin the first step of the worklist and give it up."""
    found = machine.worklist()
    if not found:
        raise SimulationError("the worklist is empty for this AE title and modality")
    uid = new_uid()
    machine.start(found[0], uid)
    machine.end(found[0], uid, reason="110513")


@contextlib.contextmanager
def watching(station: Workstation, lock: bool = False) -> Iterator[None]:
    """Let a workstation hear of the workitems of its label, and leave nothing behind."""
    with station.listening():
        if station.listen:
            station.subscribe(UPS_FILTERED_SUBSCRIPTION, lock, only_own=True)
        try:
            yield
        except SimulationError:
            if station.listen:
                with contextlib.suppress(SimulationError):
                    station.end_subscriptions()
            raise
        if station.listen:
            station.end_subscriptions()


def scenario_pull(station: Workstation) -> None:
    """PS3.17 GGG.3.1, pull: a performer finds a workitem, claims it, reports, completes it."""
    with watching(station):
        uid = station.create("3D views", "3D")
        station.hear(uid, "SCHEDULED")
        [found] = station.find()
        lock = station.claim(found)
        station.hear(uid, "IN PROGRESS")
        station.get(uid)
        station.progress(uid, lock, 50, "half of the views")
        station.hear(uid, "50 %")
        station.complete(uid, lock, "3D")
        station.hear(uid, "COMPLETED")
        station.get(uid)


def scenario_push(station: Workstation) -> None:
    """PS3.17 GGG.3.2, push: a workitem is made for a station, which hears of it and does it."""
    with watching(station):
        uid = station.create("CAD", "110004", station=station.ae_title)
        station.hear(uid, "UPS Assigned")
        lock = station.claim(uid)
        station.complete(uid, lock, "110004")
        station.hear(uid, "COMPLETED")
        station.get(uid)


def scenario_watch(station: Workstation) -> None:
    """PS3.17 GGG.3.4, watch: who hears that one thing has ended makes the next of it."""
    if not station.listen:
        raise SimulationError("a watcher must be reached: give --listen PORT")
    with watching(station):
        first = station.create("CAD", "110004")
        lock = station.claim(first)
        station.complete(first, lock, "110004")
        station.hear(first, "COMPLETED")
        station.get(first)
        second = station.create("Reading", "110005", source=first)
        station.hear(second, "SCHEDULED")
        lock = station.claim(second)
        station.complete(second, lock, "110005")
        station.hear(second, "COMPLETED")


def scenario_cancel(station: Workstation) -> None:
    """A request to cancel in its three endings: direct, honoured, declined."""
    if not station.listen:
        raise SimulationError("nobody would hear of the request: give --listen PORT")
    with watching(station):
        station.say("Nobody has begun: it is canceled at once.")
        uid = station.create("Prefetch", "FETCH")
        station.request_cancel(uid, "not needed any more")
        station.hear(uid, "UPS Cancel Requested")
        station.hear(uid, "CANCELED")
        station.say("The performer hears of the request, and cancels.")
        uid = station.create("3D views", "3D")
        lock = station.claim(uid)
        station.request_cancel(uid, "wrong series")
        station.hear(uid, "UPS Cancel Requested")
        station.change_state(uid, "CANCELED", lock)
        station.hear(uid, "CANCELED")
        station.say("The performer hears of the request, and completes all the same.")
        uid = station.create("Write a CD", "CD")
        lock = station.claim(uid)
        station.request_cancel(uid, "patient has left")
        station.hear(uid, "UPS Cancel Requested")
        station.complete(uid, lock, "CD")
        station.hear(uid, "COMPLETED")


def scenario_reliable_watcher(station: Workstation) -> None:
    """PS3.17 GGG.1: a watcher with deletion locks goes away, comes back, and has missed nothing."""
    if not station.listen:
        raise SimulationError("a watcher must be reached: give --listen PORT")
    with station.listening():
        station.subscribe(UPS_FILTERED_SUBSCRIPTION, lock=True, only_own=True)
    station.say(f"{station.ae_title} goes away.")
    uids = [station.create(f"Reading {number}", "110005") for number in (1, 2, 3)]
    for uid in uids:
        station.complete(uid, station.claim(uid), "110005")
    station.say(f"{station.ae_title} is back, and hears of all of it as soon as it is tried again.")
    with station.listening():
        for uid in uids:
            station.hear(uid, "COMPLETED")
        for uid in uids:
            station.get(uid)
        station.end_subscriptions()


def scenario_commitment(machine: Scanner) -> None:
    """Perform the first step of the worklist, store its images, ask whether they are safe."""
    found = machine.worklist()
    if not found:
        raise SimulationError("the worklist is empty for this AE title and modality")
    uid = new_uid()
    machine.start(found[0], uid)
    series = machine.end(found[0], uid)
    machine.store(found[0], series)
    machine.commit(series)


def scenario_archive(archive: SimulatedArchive) -> None:
    """Be an archive, until it is ended by Ctrl-C."""
    with archive.listening(), contextlib.suppress(KeyboardInterrupt):
        archive.say(f"{archive.ae_title} listens at port {archive.listen}; Ctrl-C ends it.")
        threading.Event().wait()


ARCHIVE_SCENARIOS: dict[str, Callable[[Any], None]] = {
    "archive": scenario_archive,
    "commitment": scenario_commitment,
}
MODALITY_SCENARIOS: dict[str, Callable[[Modality], None]] = {
    "echo": scenario_echo,
    "modality": scenario_modality,
    "discontinue": scenario_discontinue,
}
WORKSTATION_SCENARIOS: dict[str, Callable[[Workstation], None]] = {
    "pull": scenario_pull,
    "push": scenario_push,
    "watch": scenario_watch,
    "cancel": scenario_cancel,
    "reliable-watcher": scenario_reliable_watcher,
}
SCENARIOS = (*MODALITY_SCENARIOS, *WORKSTATION_SCENARIOS, *ARCHIVE_SCENARIOS)

DEMO_CONFIG = """
[clinic]
name = Lakeside Clinic (invented)
[device CT room]
ae_title = CT1
modality = CT
[device X-ray room]
ae_title = DX1
modality = DX
[device Ultrasound]
ae_title = US1
modality = US
character_set = GB18030
[device 3D workstation]
ae_title = WS1
role = workstation
host = 127.0.0.1
port = {listen}
"""

DEMO_DAY = body_rows("""
    name                            | birth    | sex | device | modality | exam              | minutes
    Wang^XiaoDong=王^小东           | 19780312 | M   | CT1    | CT       | CT chest          | 10
    Li^Na=李^娜                     | 19900721 | F   | US1    | US       | Abdomen           | 15
    Miller^Anna                     | 19651102 | F   | DX1    | DX       | Chest PA, lateral | 20
    Zhang^Wei=张^伟                 | 19550918 | M   | DX1    | DX       | Left hand         | 30
    Garcia^Luis                     | 20010105 | M   | CT1    | CT       | CT abdomen        | 45
    Ouyang^Jing=欧阳^静             | 19830627 | F   | US1    | US       | Thyroid           | 60
    """)


def demo_items(now: datetime.datetime) -> list[dict[str, Any]]:
    """The patients of the invented day as DICOM JSON."""
    items = []
    for name, birth, sex, device, modality, exam, minutes in DEMO_DAY:
        at = now + datetime.timedelta(minutes=int(minutes))
        step = text_elements(
            ScheduledStationAETitle=device,
            Modality=modality,
            ScheduledProcedureStepStartDate=f"{at:%Y%m%d}",
            ScheduledProcedureStepStartTime=f"{at:%H%M}00",
        )
        patient = text_elements(
            PatientName=name,
            PatientBirthDate=birth,
            PatientSex=sex,
            RequestedProcedureDescription=exam,
        )
        sequence = ElementIndex(encode_items(STEP_SEQUENCE, [bytes(step)]))
        items.append(to_json(ElementIndex(patient.merged(sequence))))
    return items


def play_day(
    web_url: str,
    token: str,
    host: str,
    port: int,
    called: str,
    say: Callable[[str], None],
    pause: float,
    listen: int = 0,
) -> None:
    """Play a department's day: reception over the JSON API, the machines over DICOM."""

    def wait() -> None:
        time.sleep(pause)

    now = datetime.datetime.now()
    say("08:00  Reception registers six patients.")
    body = json.dumps(demo_items(now)).encode()
    request = urllib.request.Request(
        f"{web_url}/api/worklist",
        body,
        {"Content-Type": "application/dicom+json", "Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        for item in json.load(response):
            index = ElementIndex(from_json(item))
            say(f"       {shown_name(index.get('PatientName'))}: ID {index.get('PatientID')},"
                f" accession number {index.get('AccessionNumber')}")  # fmt: skip
    wait()
    machines = {
        title: Modality(title, modality, host, port, called, lambda line: say(f"       {line}"))
        for title, modality in (("CT1", "CT"), ("DX1", "DX"), ("US1", "US"))
    }
    say("08:10  Each machine proves that it reaches us.")
    for machine in machines.values():
        machine.echo()
    wait()
    say("08:15  Each machine asks for its worklist, and no name is typed there.")
    lists = {title: machine.worklist() for title, machine in machines.items()}
    wait()
    ct, dx, us = (machines[title] for title in ("CT1", "DX1", "US1"))
    say("08:20  The CT and the ultrasound begin.")
    uids = {title: new_uid() for title in machines}
    ct.start(lists["CT1"][0], uids["CT1"])
    us.start(lists["US1"][0], uids["US1"])
    wait()
    say("08:30  The CT is done. The X-ray operator picks the wrong line, and takes it back:")
    ct.end(lists["CT1"][0], uids["CT1"], images=12)
    dx.start(lists["DX1"][1], uids["DX1"])
    dx.end(lists["DX1"][1], uids["DX1"], reason=INCORRECT_WORKLIST_ENTRY)
    say("       that patient is on the worklist again:")
    dx.worklist()
    wait()
    say("08:35  Now the right one. The ultrasound patient cannot go on.")
    uid = new_uid()
    dx.start(lists["DX1"][0], uid)
    us.end(lists["US1"][0], uids["US1"], reason="110515")
    wait()
    dx.end(lists["DX1"][0], uid, images=2)
    say("08:45  What is left on the worklists:")
    for machine in machines.values():
        machine.worklist()
    wait()
    say("08:50  The 3D workstation finds its workitem, claims it, and hears of what it does.")
    scenario_pull(
        Workstation("WS1", host, port, called, lambda line: say(f"       {line}"), listen=listen)
    )


# 22. APPLIANCE --------------------------------------------------------------------------------
#
# Start, stop, command line. For others: Appliance, main.


class JsonFormatter(logging.Formatter):
    """A log line as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(config: Config) -> None:
    """Log as [log] says; other libraries only what is a warning."""
    settings = config.log
    if settings.file:
        path = config.directory / settings.file
        handler: logging.Handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=10_000_000, backupCount=5, encoding="utf-8"
        )
    else:
        handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    handler.setFormatter(JsonFormatter() if settings.format == "json" else text)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    log.setLevel(settings.level)


class Certificate:
    """A TLS server context that follows its files: a renewed certificate needs no restart."""

    def __init__(self, certificate: Path, key: Path | None, client_ca: Path | None = None) -> None:
        self.files = (certificate, key, client_ca)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        if client_ca:
            self.context.verify_mode = ssl.CERT_REQUIRED
        self.read_at: tuple[float, ...] = ()
        self.renew()

    def renew(self) -> bool:
        """Read the files where they have changed; whether they had. ssl.SSLError, OSError"""
        changed = tuple(path.stat().st_mtime for path in self.files if path)
        if changed == self.read_at:
            return False
        certificate, key, client_ca = self.files
        decoded = ssl._ssl._test_decode_cert(str(certificate))  # the one reader in the library
        seconds = ssl.cert_time_to_seconds(decoded["notAfter"])
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for context in (trial, self.context):  # what fails half-way must not be in use
            context.load_cert_chain(certificate, key)
            if client_ca:
                context.load_verify_locations(client_ca)
        self.end = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        self.read_at = changed
        return True

    def notice(self, now: datetime.datetime) -> Message | None:
        """What people must know of it: that it has expired, or will within two weeks."""
        end = self.end
        if end > now + datetime.timedelta(days=14):
            return None
        where = {"file": self.files[0].name, "day": f"{end:%Y-%m-%d}"}
        if end <= now:
            return Message("The certificate {file} has expired on {day}", **where)
        return Message("The certificate {file} expires on {day}", **where)


def open_certificate(config: Config, section: types.SimpleNamespace) -> Certificate | None:
    """The certificate of a door, None where it has none. ConfigError where it cannot be read."""
    if not section.tls_certificate:
        return None
    names = (section.tls_certificate, section.tls_key, getattr(section, "tls_client_ca", ""))
    paths = [config.directory / name if name else None for name in names]
    try:
        return Certificate(*paths)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError([f"tls_certificate: {paths[0]}: {error}"]) from None


class Job(NamedTuple):
    """Something the appliance does by the clock: an APScheduler trigger, and what."""

    name: str
    trigger: str
    when: Mapping[str, Any]
    function: Callable[["Appliance"], None]


def notify_systemd(text: str) -> None:
    """Tell systemd something (sd_notify), where it has started us and listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        if address.startswith("@"):
            address = "\0" + address[1:]
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
            contextlib.suppress(OSError),
        ):
            channel.sendto(text.encode(), address)


def job_watchdog(appliance: "Appliance") -> None:
    """Tell systemd that all is well, while it is."""
    if not any(appliance.health().values()):
        notify_systemd("WATCHDOG=1")


def job_save_queries(appliance: "Appliance") -> None:
    """Keep the worklist queries that have gathered."""
    if queries := appliance.dimse.queries.take():
        appliance.writer.submit(save_queries, appliance.context(), queries).result(60)


def job_purge(appliance: "Appliance") -> None:
    """Erase what [housekeeping] lets go."""
    appliance.writer.submit(purge, appliance.context()).result(600)
    appliance.wake_delivery()  # MPPS Notification tells what is deleted


def job_workitems(appliance: "Appliance") -> None:
    """Say what is newly stuck; purge workitems, and end what [housekeeping] ends of itself."""
    ctx, writer = appliance.context(), appliance.writer
    with reading():
        found, due = orphans(ctx), due_to_end(ctx)
    told = ("events", "passed on")  # about how many, which changes
    stuck = {(o.kind, o.uid, "" if o.kind in told else o.about) for o in found}
    for kind, uid, about in sorted(stuck - appliance.stuck):
        log.warning("stuck: %s", ", ".join(filter(None, (kind, uid, about))))
    appliance.stuck = stuck
    if not appliance.clock.steady:
        return
    for core, arguments in due:
        try:
            writer.submit(core, ctx, *arguments).result(60)
        except Refusal as refusal:  # it has ended meanwhile
            log.info("%s: %s", arguments[0], refusal)
    writer.submit(give_up_unfetched, ctx).result(60)
    while writer.submit(purge_workitems, ctx).result(60):
        pass  # in slices: others write between them
    appliance.wake_delivery()


def job_clock(appliance: "Appliance") -> None:
    """Remember what time it is, for the next start; not while the clock is in doubt."""
    if not appliance.clock.steady:
        return
    appliance.writer.submit(set_mark, "clock", f"{time.time():.0f}").result(60)


def job_daily(appliance: "Appliance") -> None:
    """Do what is due today and has not been done."""
    if not appliance.clock.steady:
        return
    for daily in DAILY:
        ctx = appliance.context()
        with reading():
            due = daily_due(ctx, daily)
        if due:
            try:
                daily.function(appliance)
            except Exception:
                log.exception("%s failed", daily.name)
            appliance.writer.submit(set_mark, f"daily {daily.name}", ctx.today()).result(60)


def job_renew(appliance: "Appliance") -> None:
    """Read renewed certificates; say which are about to expire."""
    for certificate in appliance.certificates:
        try:
            if certificate.renew():
                log.info("certificate %s is read anew", certificate.files[0])
        except (ssl.SSLError, OSError) as error:
            log.error("certificate %s cannot be read: %s", certificate.files[0], error)


def job_backup(appliance: "Appliance") -> None:
    """Copy the store into the folder of backups, and drop the oldest there."""
    config = appliance.config
    folder, now = config.backup_folder, appliance.context().local_now()
    try:
        backup_store(config.store_path, folder / f"minris-{now:%Y%m%d-%H%M%S}.db")
    except (StoreError, OSError) as error:
        log.error("backup: %s", error)
        appliance.backup_problem = str(error)
        return
    appliance.backup_problem = ""
    kept = sorted(folder.glob("minris-????????-??????.db"))
    for old in kept[: -config.housekeeping.backups_kept]:
        old.unlink()
    log.info("backup: %d kept in %s", min(len(kept), config.housekeeping.backups_kept), folder)


class Daily(NamedTuple):
    """Something done once a day, from a time of the clinic's clock on."""

    name: str
    at: Callable[[Config], tuple[int, int] | None]
    function: Callable[["Appliance"], None]


def job_leftovers(appliance: "Appliance") -> None:
    """Say how many exams of days before are still open; the page Leftovers shows them."""
    with reading():
        appliance.leftovers = len(leftovers(appliance.context().today()))
    if appliance.leftovers:
        log.warning("%d exams of days before have not ended", appliance.leftovers)


def job_audit(appliance: "Appliance") -> None:
    """Say whether the audit log is as it was written, and by what another copy is compared with it."""
    with reading():
        chain = check_audit()
    if chain.broken:
        log.error("the audit log was changed: its line %d does not follow", chain.broken[0])
    log.info("audit log: %d lines, the last digest is %s", chain.count, chain.digest)


DAILY = (
    Daily("audit", lambda config: (0, 10), job_audit),
    Daily("leftovers", lambda config: (0, 5), job_leftovers),
    Daily("backup", lambda config: config.housekeeping.backup_time, job_backup),
    Daily("purge", lambda config: (3, 10), job_purge),
)


def daily_due(ctx: Context, daily: Daily) -> bool:
    """Whether its time has come and it was not done today; a box off at night does it when on.

    A day done that lies a little ahead is of a clock that has been set back.
    """
    at, now = daily.at(ctx.config), ctx.local_now()
    done = get_mark(f"daily {daily.name}")
    if not at or not done:
        return False
    days = (datetime.date.fromisoformat(done) - now.date()).days
    return (now.hour, now.minute) >= at and not 0 <= days <= 2


class ClockWatch:
    """Whether the clock of this machine runs evenly; while it does not, nothing is destroyed.

    A board without a clock of its own starts in the past and leaps when it reaches a time server.

    last_seen  what a clock that was believed last showed, in seconds since 1970; None for never
    """

    LEAP, FAR = 60.0, 7 * 86400.0
    CALM, LONG = 600.0, 6 * 3600.0  # seconds without a leap until the clock is believed

    def __init__(
        self,
        last_seen: float | None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.wall, self.monotonic, self.last_seen = wall, monotonic, last_seen
        self.began = self.seen = wall(), monotonic()
        self.believed_from = monotonic() + self._wait(wall())

    def _wait(self, now: float) -> float:
        """How long a clock is watched that shows this: longer where it is far from the last run."""
        away = now - self.last_seen if self.last_seen else 0.0
        return self.CALM if -self.LEAP <= away <= self.FAR else self.LONG

    def leap(self) -> float:
        """The seconds by which the clock has leapt since it was looked at, 0 for none."""
        wall, monotonic = self.seen
        leap = (self.wall() - wall) - (self.monotonic() - monotonic)
        return leap if abs(leap) > self.LEAP else 0.0

    def check(self) -> float:
        """Look at the clock: the seconds by which it has leapt since the last time, 0 for none."""
        leap = self.leap()
        self.seen = self.wall(), self.monotonic()
        if leap:
            wait = self.CALM if abs(leap) <= self.FAR else self._wait(self.seen[0])
            until = self.seen[1] + wait
            back = self.last_seen and self._wait(self.seen[0]) == self.CALM  # it is right again
            self.believed_from = until if back else max(self.believed_from, until)
        return leap

    @property
    def steady(self) -> bool:
        """Whether the clock is believed."""
        return self.monotonic() >= self.believed_from and not self.leap()


JOBS = (
    Job("queries", "interval", {"seconds": 10}, job_save_queries),
    Job("watchdog", "interval", {"seconds": 20}, job_watchdog),
    Job("clock", "interval", {"hours": 1}, job_clock),
    Job("certificates", "interval", {"minutes": 1}, job_renew),
    Job("daily", "interval", {"minutes": 1}, job_daily),
    Job("workitems", "interval", {"minutes": 5}, job_workitems),
)


LIGHT_WORDS = {
    "store": Message("Store"),
    "writer": Message("Writing to the store"),
    "dicom": Message("DICOM door"),
    "disk": Message("Disk"),
}


def raise_file_limit(wanted: int = 8192) -> None:
    """Let this process have so many open files, as far as the system allows: each caller is one."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, wanted)), hard))


class Appliance:
    """The whole box: store, writer, both doors.

    config  the settings; `say` takes the lines for whoever started it
    """

    def __init__(self, config: Config, say: Callable[[str], None] = print) -> None:
        self.config, self.say = config, say
        self.dicom_tls = open_certificate(config, config.dicom)
        self.web_tls = open_certificate(config, config.web)
        self.certificates = [one for one in (self.dicom_tls, self.web_tls) if one]
        self.backup_problem = ""
        self.lock = StoreLock(config.store_path)
        try:
            open_store(config.store_path)
            self.access_rules = AccessRules(config)
            self.reload_access()
        except BaseException:
            self.lock.release()
            raise
        with reading():
            last_seen = get_mark("clock")
        self.clock = ClockWatch(float(last_seen) if last_seen else None)
        self.stuck: set[tuple[str, str, str]] = set()
        self.leftovers = 0
        self.writer: Writer | None = None
        self.scheduler: Any = None
        self.control = secrets.token_urlsafe(32)
        self.started = threading.Event()
        self.dicom_port = self.dicom_tls_port = self.web_port = 0
        self.start_time = time.time()

    def context(self, actor: Actor = Actor("minris")) -> Context:
        """The circumstances of a request."""
        return Context(self.config, actor, devices=self.access_rules.devices)

    def access(self) -> AccessRules:
        """The access rules of the moment."""
        return self.access_rules

    def reload_access(self) -> None:
        """Take the devices of the page anew; called when one has been changed."""
        with reading():
            stored = stored_devices()
        self.access_rules = AccessRules(self.config, stored, self.access_rules.version + 1)

    def notices(self) -> list[Message]:
        """What every page says on top: certificates that expire, a backup that failed."""
        now = utc_now()
        found = [notice for one in self.certificates if (notice := one.notice(now))]
        if self.backup_problem:
            found.append(Message("The last backup failed: {problem}", problem=self.backup_problem))
        return found

    async def start(self) -> None:
        """Open both doors; OSError where a port is taken."""
        raise_file_limit()
        config, loop = self.config, asyncio.get_running_loop()
        self.loop = loop
        self.changes = Changes(loop)
        self.writer = Writer(self.changes.bump)
        self.readers = concurrent.futures.ThreadPoolExecutor(2, "reader")
        self.dimse = Dimse(self.context, self.access, self.writer, self.readers)
        negotiator = Negotiator(
            PRESENTATION_CONTEXTS, EXTENDED_NEGOTIATION, config.dicom.maximum_pdu_length
        )
        self.associations = AssociationServer(
            config.dicom, self.access, negotiator, self.dimse.dispatch
        )
        self.dicom_port = await self.associations.listen(config.dicom.host, config.dicom.port)
        if self.dicom_tls and config.dicom.tls_port:
            self.dicom_tls_port = await self.associations.listen(
                config.dicom.host, config.dicom.tls_port, self.dicom_tls.context
            )
        self._start_deliveries()
        self.dimse.on_events = self._wake_delivery
        self.dimse.on_caller = self._heard_from
        self.clock_task = loop.create_task(self._watch_clock())
        web = Web(config, self.context, self.access, self.writer, self)
        app = build_app(web)
        add_control(app, web, STORE_COMMANDS)
        self.web_server = WebServer(web, app, self.changes)
        tls = self.web_tls.context if self.web_tls else None
        self.web_port = await self.web_server.listen(config.web.host, config.web.port, tls)
        self.write_control_file()
        await asyncio.wrap_future(self.writer.submit(self.first_start))
        await self.write_async(self.begin_marks)
        await self.write_async(self.tell_of_restart)
        self._wake_delivery()
        for notice in self.notices():
            log.warning("%s", notice)
        self.start_jobs()
        self.started.set()

    def _start_deliveries(self) -> None:
        """Start what calls others: each a task of its own."""
        # of its own: a hundred deliveries would keep queries waiting
        self.delivery_reader = concurrent.futures.ThreadPoolExecutor(1, "delivery")
        self.event_sender = EventSender(self.config, self.access)
        self.delivery = Delivery(self.context, self.event_sender, self.read_async, self.write_async)
        self.delivery_task = self.loop.create_task(self.delivery.run())
        self.passing_on_sender = PassingOnSender(self.config, self.access)
        self.passing_on = Delivery(
            self.context,
            self.passing_on_sender,
            self.read_async,
            self.write_async,
            PASSED_ON_OUTBOX,
        )
        self.passing_on_task = self.loop.create_task(self.passing_on.run())
        self.socket_delivery = SocketDelivery(self.context, self.read_async, self.write_async)
        self.socket_task = self.loop.create_task(self.socket_delivery.run())
        search = ArchiveSearch(self.config)
        self.archive_watch = ArchiveWatch(
            self.context, search, search.count, self.read_async, self.write_async
        )
        self.archive_watch.on_change = self._wake_delivery
        self.watch_task = self.loop.create_task(self.archive_watch.run())
        self.commitments = CommitmentDesk(
            self.context, search, CommitmentRequester(self.config),
            CommitmentSender(self.access, lambda: list(self.associations.associations)),
            self.read_async, self.write_async,
        )  # fmt: skip
        self.commitment_task = self.loop.create_task(self.commitments.run())

    async def read_async(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function that reads in a reader's thread."""

        def read() -> Any:
            with reading():
                return function(*arguments)

        return await asyncio.get_running_loop().run_in_executor(self.delivery_reader, read)

    async def write_async(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a core function in the store thread."""
        return await asyncio.wrap_future(self.writer.submit(function, *arguments))

    async def _watch_clock(self) -> None:
        """See the clock leap: in the loop, which goes by another clock."""
        while True:
            await asyncio.sleep(15)
            began = self.clock.began[0]
            if leap := self.clock.check():
                log.warning("the clock has leapt by %+.0f s", leap)
                self.reschedule()
                self.clock.began = self.clock.seen
                if leap > 0:
                    await self.write_async(correct_stamps, began, leap)

    def _heard_from(self, ae_title: str) -> None:
        """An AE has called: it may be there again for what it could not be told."""
        self.delivery.heard_from(ae_title)
        self.passing_on.heard_from(ae_title)
        self.commitments.heard_from(ae_title)

    def _wake_delivery(self) -> None:
        """Something may be to be told; called in the loop."""
        self.delivery.wake()
        self.passing_on.wake()
        self.socket_delivery.wake()
        self.commitments.wake()
        self.archive_watch.wake()

    def wake_delivery(self) -> None:
        """Something may be to be told; called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self._wake_delivery)

    def begin_marks(self) -> None:
        """A new store has done all of today: its first night is the next."""
        for daily in DAILY:
            if not get_mark(f"daily {daily.name}"):
                set_mark(f"daily {daily.name}", self.context().today())

    def tell_of_restart(self) -> None:
        """Event 4 to all subscribers; COLD START where the store is new or was put back."""
        ctx = self.context()
        for title in ctx.config.ups.restart_receivers:
            if not can_be_told(ctx, title):
                log.warning("[ups] restart_receivers: %s is not registered with an address", title)
        for outbox in (EVENTS_OUTBOX, PASSED_ON_OUTBOX):
            database.execute_sql(f"UPDATE {outbox.receivers} SET try_at = ''")
        database.execute_sql("UPDATE commitment SET try_at = '' WHERE state IN ('asked', 'judged')")
        announce(ctx, "RESTARTED", get_mark("started") in ("", "restored"))
        set_mark("started", ctx.stamp())

    async def _tell_of_going_down(self) -> None:
        """Event 4 to all subscribers, as far as they hear it within two seconds."""
        if not self.config.ups.tell_going_down:
            return
        with contextlib.suppress(TimeoutError, StoreError, peewee.DatabaseError):
            async with asyncio.timeout(2):
                if await self.write_async(announce, self.context(), "GOING DOWN"):
                    await self.delivery.deliver_due(wait=True)

    def start_jobs(self) -> None:
        """Start what is done by the clock; a job that missed its time is done once."""
        from apscheduler.schedulers.background import BackgroundScheduler

        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        defaults = {"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
        zone = self.config.zone or datetime.datetime.now().astimezone().tzinfo
        self.scheduler = BackgroundScheduler(job_defaults=defaults, timezone=zone)
        for job in JOBS:
            self.scheduler.add_job(self.run_job, job.trigger, args=[job], id=job.name, **job.when)
        self.scheduler.start()

    def reschedule(self) -> None:
        """Begin all intervals anew: APScheduler counts them by the clock, which has leapt."""
        if not self.scheduler:
            return
        now = datetime.datetime.now(self.scheduler.timezone)
        for job in self.scheduler.get_jobs():
            job.modify(next_run_time=now)

    def run_job(self, job: Job) -> None:
        """Run a job; what goes wrong is logged whole, and the next time comes."""
        try:
            job.function(self)
        except Exception:
            log.exception("job %s failed", job.name)

    def metrics(self) -> dict[str, float]:
        """Figures for /metrics, by name; none of them is about a patient."""
        with reading():
            today = self.context().today()
            states = database.execute_sql(
                "SELECT status, count(*) FROM scheduled_procedure_step WHERE start_date = ?"
                " GROUP BY status",
                (today,),
            ).fetchall()
            (unscheduled,) = database.execute_sql(
                "SELECT count(*) FROM performed_procedure_step p WHERE settled = '' AND NOT EXISTS"
                " (SELECT 1 FROM performed_scheduled_step l WHERE l.performed_id = p.id)"
            ).fetchone()
            waiting, to_pass_on = (
                database.execute_sql(
                    f"SELECT count(*) FROM {outbox.table} WHERE sent_at = '' AND given_up_at = ''"
                ).fetchone()[0]
                for outbox in (EVENTS_OUTBOX, PASSED_ON_OUTBOX)
            )
            workitems = database.execute_sql(
                "SELECT state, count(*) FROM workitem GROUP BY state"
            ).fetchall()
        counts = self.associations.counts
        figures = {
            "minris_associations": counts["associated", ""],
            "minris_connections_pending": counts["pending", ""],
            "minris_associations_total": self.associations.accepted,
            "minris_rejections_total": self.associations.turned_away,
            "minris_commits_total": self.writer.commits,
            "minris_event_streams": len(self.changes.waiting),
            "minris_websockets": len(self.socket_delivery),
            "minris_unscheduled_performed_steps": unscheduled,
            "minris_events_waiting": waiting,
            "minris_passed_on_waiting": to_pass_on,
            "minris_stuck": len(self.stuck),
            "minris_leftovers": self.leftovers,
            "minris_store_bytes": self.config.store_path.stat().st_size,
            "minris_start_time_seconds": self.start_time,
        }
        figures |= {
            f'minris_requests_total{{operation="{operation}"}}': count
            for operation, count in sorted(self.dimse.counts.items())
        }
        figures |= {f'minris_steps_today{{state="{state}"}}': count for state, count in states}
        figures |= {f'minris_workitems{{state="{state}"}}': count for state, count in workitems}
        return figures

    @property
    def web_url(self) -> str:
        """Where a browser on this machine finds the pages."""
        host = self.config.web.host
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if self.web_tls else 'http'}://{host}:{self.web_port}"

    @property
    def control_file(self) -> Path:
        """Where commands beside a running appliance find it."""
        return self.config.store_path.with_name(self.config.store_path.name + ".control")

    def write_control_file(self) -> None:
        """Tell commands beside us where we are and the secret of this run; for our user alone."""
        write_private(self.control_file, json.dumps({"url": self.web_url, "secret": self.control}))

    def first_start(self) -> None:
        """Make the administrator where there is no user yet, with a random password."""
        if User.select().exists():
            return
        password = secrets.token_urlsafe(9)
        make_user(self.context(), "admin", "admin", password)
        if sys.stdout.isatty():
            self.say(f"First start: log in as admin with the password {password}")
        else:
            path = self.config.store_path.with_name("minris-admin-password.txt")
            write_private(path, password + "\n")
            self.say(f"First start: the password of admin is in {path}")

    def health(self) -> dict[str, str]:
        """Each check, and what is wrong with it or nothing."""
        checks = {"store": "", "writer": "", "dicom": "", "disk": ""}
        try:
            with reading():
                database.execute_sql("SELECT 1 FROM counter LIMIT 1").fetchone()
        except Exception as error:
            checks["store"] = str(error)
        if not self.writer or not self.writer.thread.is_alive():
            checks["writer"] = "not running"
        if not all(server.is_serving() for server in self.associations.servers):
            checks["dicom"] = "not listening"
        if shutil.disk_usage(self.config.store_path.parent).free < 64 << 20:
            checks["disk"] = "less than 64 MiB free"
        return checks

    def lights(self) -> list[tuple[Message, str, Message]]:
        """What may fail, `good`, `warning` or `bad`, and what is known of it; for people."""
        in_order = Message("in order")
        found = [
            (
                LIGHT_WORDS[name],
                "bad" if said else "good",
                Message(said) if said else in_order,
            )
            for name, said in self.health().items()
        ]
        backups = sorted(self.config.backup_folder.glob("minris-????????-??????.db"))
        last = (
            Message("the last is {name}", name=backups[-1].name) if backups else Message("none yet")
        )
        if self.backup_problem:
            last = Message("The last backup failed: {problem}", problem=self.backup_problem)
        light = "bad" if self.backup_problem else "good" if backups else "warning"
        found.append((Message("Backup"), light, last))
        if not self.clock.steady:
            words = Message("the clock has leapt: nothing is erased until it runs evenly")
            found.append((Message("Clock"), "warning", words))
        for what, count, page in (
            (Message("Stuck"), len(self.stuck), "/orphans"),
            (Message("Leftovers"), self.leftovers, "/leftovers"),
        ):
            words = Message("{count}, see {page}", count=count, page=page) if count else in_order
            found.append((what, "warning" if count else "good", words))
        now = utc_now()
        for certificate in self.certificates:
            notice = certificate.notice(now)
            found.append(
                (Message("Certificate"), "warning" if notice else "good", notice or in_order)
            )
        return found

    def back_up(self) -> None:
        """Make a backup now; `backup_problem` says what went wrong, or is empty."""
        job_backup(self)

    async def stop(self) -> None:
        """Close both doors, finish what has been promised, let go of the store."""
        if self.scheduler:
            self.scheduler.shutdown(wait=False)
        await self._tell_of_going_down()
        self.clock_task.cancel()
        self.delivery_task.cancel()
        self.socket_task.cancel()
        self.commitment_task.cancel()
        self.watch_task.cancel()
        await self.archive_watch.close()
        self.passing_on_task.cancel()
        await self.commitments.close()
        await self.delivery.close()
        await self.passing_on.close()
        await self.socket_delivery.close()
        await self.event_sender.close()
        await self.passing_on_sender.close()
        await self.associations.close()
        await self.web_server.close()
        await asyncio.get_running_loop().run_in_executor(None, self.writer.close)
        self.readers.shutdown(wait=False, cancel_futures=True)
        self.delivery_reader.shutdown(wait=False, cancel_futures=True)
        self.control_file.unlink(missing_ok=True)
        self.lock.release()

    async def serve(self, until: asyncio.Event) -> None:
        """Run from start to stop."""
        config = self.config
        try:
            await self.start()
        except OSError as error:
            self.lock.release()
            raise SystemExit(f"minris: cannot listen: {error}") from None
        self.say(
            f"minris {__version__}: DICOM {config.dicom.ae_title} at {config.dicom.host}:"
            f"{self.dicom_port}{f', TLS {self.dicom_tls_port}' if self.dicom_tls_port else ''},"
            f" pages at {self.web_url}, store {config.store_path},"
            f" configuration {config.path or 'defaults'}"
        )
        notify_systemd(f"READY=1\nMAINPID={os.getpid()}")
        try:
            await until.wait()
        finally:
            notify_systemd("STOPPING=1")
            await self.stop()


def write_private(path: Path, text: str) -> None:
    """Write a file that only our user may read."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        file.write(text)


async def _serve_until_signal(appliance: Appliance) -> None:
    until, loop = asyncio.Event(), asyncio.get_running_loop()

    def stop(*_: object) -> None:
        loop.call_soon_threadsafe(until.set)

    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    await appliance.serve(until)


# Commands that change the store. Beside a running appliance they go through it.


# What SQLite says of a value that has no place in a column.
NOT_STORABLE = (
    peewee.IntegrityError, peewee.InterfaceError, peewee.ProgrammingError,
    sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError,
    OverflowError, RecursionError,
)  # fmt: skip


def run_import(ctx: Context, name: str, content: bytes) -> str:
    """Import one file, all of it or nothing: what was done."""
    if name.lower().endswith(".json") and b'"minris"' in content[:100]:
        try:
            return f"{name}: {import_export(ctx, json.loads(content))}"
        except Refusal as refusal:
            if refusal.status is Status.DUPLICATE_SOP_INSTANCE:
                raise
            raise Refusal(
                Status.INVALID_ATTRIBUTE_VALUE, refusal.detail, refusal.problems
            ) from None
        except (ValueError, LookupError, TypeError, AttributeError, *NOT_STORABLE) as error:
            words = Message("The export is damaged: {problem}", problem=repr(error))
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words) from None
    word = "row" if name.lower().endswith(".csv") else "item"
    count = import_items(ctx, read_items(name, content), word=word)
    return f"{name}: {count} imported"


def run_user(ctx: Context, name: str, role: str, password: str, delete: bool) -> str:
    """Make, change or delete a login."""
    if delete:
        delete_user(ctx, name)
        return f"user {name} is deleted"
    make_user(ctx, name, role, password)
    return f"user {name} is set, role {role}"


def run_token(
    ctx: Context, name: str, role: str, delete: bool, ae_titles: Iterable[str] = ()
) -> str:
    """Make or delete a token; the token itself is shown this once."""
    if delete:
        delete_token(ctx, name)
        return f"token {name} is deleted"
    return make_token(ctx, name, role, ae_titles)


STORE_COMMANDS: dict[str, Callable[..., str]] = {
    "import": run_import,
    "user": run_user,
    "token": run_token,
}


class CommandError(Exception):
    """A command could not do what it was asked: exit status 1."""


def run_store_command(config: Config, command: str, **arguments: Any) -> str:
    """Run a command on the store, by the running appliance where there is one."""
    try:
        lock = StoreLock(config.store_path)
    except StoreError:
        return ask_running(config, command, arguments)
    with lock:
        open_store(config.store_path)
        devices = AccessRules(config).devices
        ctx = Context(config, Actor("console", role="admin"), devices=devices)
        with database.connection_context(), database.atomic():
            try:
                return STORE_COMMANDS[command](ctx, **arguments)
            except Refusal as refusal:
                raise CommandError(refusal.detail) from None


def ask_running(config: Config, command: str, arguments: dict[str, Any]) -> str:
    """Have the running appliance run a command."""
    path = config.store_path.with_name(config.store_path.name + ".control")
    try:
        where = json.loads(path.read_text())
    except (OSError, ValueError):
        raise CommandError(f"{config.store_path} is in use by another minris") from None
    if "content" in arguments:
        arguments["content"] = base64.b64encode(arguments["content"]).decode()
    request = urllib.request.Request(
        f"{where['url']}/control/{command}",
        json.dumps(arguments).encode(),
        {"Authorization": f"Bearer {where['secret']}", "Content-Type": "application/json"},
    )
    here = ssl.create_default_context()
    here.check_hostname, here.verify_mode = False, ssl.CERT_NONE  # the file says it is ours
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=here)
    )
    try:
        with opener.open(request, timeout=3600) as response:
            answer = json.load(response)
    except (OSError, ValueError) as error:
        raise CommandError(f"the running minris does not answer: {error}") from None
    if "refused" in answer:
        raise CommandError(answer["refused"])
    return answer["done"]


def command_serve(config: Config, arguments: argparse.Namespace) -> None:
    """Run the appliance until SIGTERM, SIGINT or Ctrl-Break."""
    set_up_logging(config)
    asyncio.run(_serve_until_signal(Appliance(config, say=lambda line: print(line, flush=True))))


def command_settings(config: Config, arguments: argparse.Namespace) -> None:
    """Print config.ini with every setting, its default and meaning."""
    print(settings_reference(), end="")


def command_import(config: Config, arguments: argparse.Namespace) -> None:
    """Load worklist items: DICOM files (.wl, .dcm) or DICOM JSON; all of a file or nothing."""
    failed = 0
    for name in arguments.files:
        try:
            content = Path(name).read_bytes()
            print(run_store_command(config, "import", name=Path(name).name, content=content))
        except (OSError, CommandError) as error:
            failed += 1
            print(f"{name}: nothing imported: {error}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def command_export(config: Config, arguments: argparse.Namespace) -> None:
    """Write everything in open form: JSON, which import reads back, or the steps as CSV."""
    open_store_to_read(config)
    with database.connection_context(), database.atomic("DEFERRED"):
        if arguments.format == "csv":
            text = "\ufeff" + export_csv()
        else:
            text = json.dumps(export_store(), ensure_ascii=False, indent=1) + "\n"
    if arguments.file:
        write_private(Path(arguments.file), text)
    else:
        sys.stdout.write(text)


def open_store_to_read(config: Config) -> None:
    """Open the store beside a running appliance or without one. CommandError where none is."""
    if not config.store_path.exists():
        raise CommandError(f"there is no store {config.store_path}")
    open_store(config.store_path)


def command_backup(config: Config, arguments: argparse.Namespace) -> None:
    """Make a consistent copy of the store, running or not."""
    name = f"minris-{datetime.datetime.now():%Y%m%d-%H%M%S}.db"
    to = Path(arguments.file) if arguments.file else config.backup_folder / name
    if not config.store_path.exists():
        raise CommandError(f"there is no store {config.store_path}")
    backup_store(config.store_path, to)
    print(f"{to}: {to.stat().st_size} bytes, in order")


def command_restore(config: Config, arguments: argparse.Namespace) -> None:
    """Put a backup back after checking it; refused while the appliance runs."""
    with StoreLock(config.store_path):
        kept = restore_store(config.store_path, Path(arguments.file))
        open_store(config.store_path)
    print(f"{arguments.file} is restored" + (f"; the store before is {kept}" if kept else ""))


def command_conformance(config: Config, arguments: argparse.Namespace) -> None:
    """Print the DICOM conformance statement of this configuration."""
    print(conformance_statement(config, arguments.format), end="")


def command_user(config: Config, arguments: argparse.Namespace) -> None:
    """Make or change a login."""
    password = ""
    if not arguments.delete:
        if arguments.password_stdin:
            password = sys.stdin.readline().rstrip("\r\n")
        else:
            try:
                password = getpass.getpass(f"Password of {arguments.name}: ")
            except EOFError:
                raise CommandError("there is no terminal: use --password-stdin") from None
    print(
        run_store_command(
            config,
            "user",
            name=arguments.name,
            role=arguments.role,
            password=password,
            delete=arguments.delete,
        )
    )


def command_token(config: Config, arguments: argparse.Namespace) -> None:
    """Make an API token; it is printed this once."""
    print(
        run_store_command(
            config,
            "token",
            name=arguments.name,
            role=arguments.role,
            delete=arguments.delete,
            ae_titles=arguments.ae,
        )
    )


def command_simulate(config: Config, arguments: argparse.Namespace) -> None:
    """Play scenarios against a running appliance, or any other worklist."""
    calling = arguments.calling
    if not calling.strip() or value_problem("AE", calling) or not calling.isascii():
        raise CommandError(f"--calling: {calling} is not an AE title (1 to 16 ASCII characters)")
    for name in ("port", "listen"):
        if not 0 <= getattr(arguments, name) <= 65535:
            raise CommandError(f"--{name}: {getattr(arguments, name)} is not a port (1 to 65535)")
    address = (
        arguments.host,
        arguments.port or config.dicom.port,
        arguments.called or config.dicom.ae_title,
        print,
    )
    machine = Modality(calling, arguments.modality, *address)
    device = AccessRules(config).device(calling)
    listen = arguments.listen or (device.port if device and device.host else 0)
    station = Workstation(calling, *address, listen=listen)
    where = read_destination(arguments.archive)
    scanner = Scanner(calling, arguments.modality, *address, listen=listen, archive=where)
    played = dict.fromkeys(MODALITY_SCENARIOS, machine) | dict.fromkeys(
        WORKSTATION_SCENARIOS, station
    )
    played |= {"commitment": scanner, "archive": SimulatedArchive(calling, *address, listen=listen)}
    for name in arguments.scenarios:
        if name not in SCENARIOS:
            raise CommandError(f"{name}: not one of {', '.join(SCENARIOS)}")
        try:
            (MODALITY_SCENARIOS | WORKSTATION_SCENARIOS | ARCHIVE_SCENARIOS)[name](played[name])
        except SimulationError as error:
            raise CommandError(str(error)) from None


def read_destination(text: str) -> tuple[str, str, int] | None:
    """AE@HOST:PORT, or nothing. CommandError for anything else"""
    found = re.fullmatch(r"([^@]{1,16})@(.+):(\d{1,5})", text)
    if text and not (found and is_ae_title(found[1]) and 0 < int(found[3]) < 65536):
        raise CommandError(f"--archive: {text} is not AE@HOST:PORT")
    return (found[1], found[2].strip("[]"), int(found[3])) if found else None


def command_check(config: Config, arguments: argparse.Namespace) -> None:
    """Check configuration, ports, store, disk and devices, one line each."""
    problems = 0
    for what, problem in check_lines(config):
        problems += bool(problem)
        print(f"{what}: {problem or 'ok'}")
    if problems:
        raise SystemExit(1)


def check_lines(config: Config) -> Iterator[tuple[str, str]]:
    """What is checked, and what is wrong with it or nothing."""
    yield f"configuration {config.path or 'defaults'}", ""
    running = ""
    try:
        with StoreLock(config.store_path):
            yield from check_store_lines(config)
    except StoreError as error:
        running = str(error)
        yield f"store {config.store_path} (in use by a running minris)", ""
    for name, section in (("dicom", config.dicom), ("web", config.web)):
        problem = "" if running else port_problem(section.host, section.port)
        yield f"[{name}] port {section.port}" + (" (running)" if running else ""), problem
    folder = config.store_path.parent
    free = shutil.disk_usage(folder).free >> 20 if folder.exists() else 0
    yield f"disk: {free} MiB free", "" if free > 256 else "less than 256 MiB"
    year = datetime.datetime.now().year
    yield f"clock: {datetime.datetime.now():%Y-%m-%d %H:%M}", "" if year >= 2026 else "wrong year"
    for name, device in config.devices.items():
        if device.host:
            yield f"device {name} at {device.host}:{device.port}", reach(device.host, device.port)


def check_store_lines(config: Config) -> Iterator[tuple[str, str]]:
    """The checks of a store that no appliance holds."""
    if not config.store_path.exists():
        yield f"store {config.store_path} (is made at the first start)", ""
        return
    try:
        open_store(config.store_path)
        with database.connection_context():
            (answer,) = database.execute_sql("PRAGMA quick_check").fetchone()
        yield f"store {config.store_path}", "" if answer == "ok" else answer
    except (StoreError, peewee.DatabaseError) as error:
        yield f"store {config.store_path}", str(error)


def port_problem(host: str, port: int) -> str:
    """Why a port cannot be listened on, or nothing."""
    try:
        with socket.create_server((host, port)):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def reach(host: str, port: int) -> str:
    """Why a TCP connection cannot be made, or nothing."""
    try:
        with socket.create_connection((host, port), 3):
            return ""
    except OSError as error:
        return f"not reached: {error.strerror or error}"


def command_demo(config: Config, arguments: argparse.Namespace) -> None:
    """Play an invented department's day over real DICOM, then stay up for a look at the page."""
    with tempfile.TemporaryDirectory(prefix="minris-demo-") as folder:
        path = Path(folder, "config.ini")
        web_port = 8080 if not port_problem("127.0.0.1", 8080) else 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            listen = free.getsockname()[1]
        path.write_text(
            f"{DEMO_CONFIG.format(listen=listen)}[dicom]\nhost = 127.0.0.1\nport = 0\n"
            f"[web]\nhost = 127.0.0.1\nport = {web_port}\n[log]\nlevel = WARNING\n",
            "utf-8",
        )
        demo_config = load_config(path)
        set_up_logging(demo_config)
        logging.getLogger("pynetdicom").setLevel(logging.ERROR)
        try:
            asyncio.run(_demo(demo_config, arguments.once, listen))
        except KeyboardInterrupt:
            print()


async def _demo(config: Config, once: bool, listen: int) -> None:
    lines: list[str] = []
    appliance = Appliance(config, lines.append)
    await appliance.start()

    def say(line: str) -> None:
        print(line, flush=True)

    password, token = "demo-admin", ""

    def logins() -> str:
        ctx = appliance.context()
        make_user(ctx, "admin", "admin", password)
        return make_token(ctx, "demo", "desk")

    try:
        token = await asyncio.wrap_future(appliance.writer.submit(logins))
        say(f"minris {__version__}: a department's day, invented, over real DICOM on loopback.")
        say(f"DICOM {config.dicom.ae_title} at 127.0.0.1:{appliance.dicom_port},"
            f" pages at {appliance.web_url}\n")  # fmt: skip
        await asyncio.get_running_loop().run_in_executor(
            None,
            play_day,
            appliance.web_url,
            token,
            "127.0.0.1",
            appliance.dicom_port,
            config.dicom.ae_title,
            say,
            0.2 if once else 1.5,
            listen,
        )
        say("\nThe day has been played.")
        if not once:
            say(f"Look at the board: {appliance.web_url}  user admin, password {password}")
            say("It stays up until Ctrl-C; then all of it is gone.")
            until = asyncio.Event()
            for name in ("SIGTERM", "SIGINT"):
                signal.signal(
                    getattr(signal, name),
                    lambda *_: appliance.changes.loop.call_soon_threadsafe(until.set),
                )
            await until.wait()
    finally:
        await appliance.stop()


def find_config(given: str | None) -> Path | None:
    """The config.ini to use: the one given, else in the working directory, else by the program."""
    if given:
        return Path(given)
    beside = Path(sys.argv[0]).absolute().parent / "config.ini"
    return next((path for path in (Path.cwd() / "config.ini", beside) if path.is_file()), None)


COMMANDS: dict[str, Callable[[Config, argparse.Namespace], None]] = {
    "serve": command_serve,
    "demo": command_demo,
    "simulate": command_simulate,
    "import": command_import,
    "export": command_export,
    "backup": command_backup,
    "restore": command_restore,
    "conformance": command_conformance,
    "check": command_check,
    "user": command_user,
    "token": command_token,
    "settings": command_settings,
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS)
    parser = argparse.ArgumentParser(
        "minris",
        description="Worklist, MPPS and workitems (UPS) for a small clinic.",
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"minris {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    found = {
        name: commands.add_parser(name, help=function.__doc__, parents=[common])
        for name, function in COMMANDS.items()
    }
    found["demo"].add_argument("--once", action="store_true", help="end when the day is played")
    found["import"].add_argument("files", nargs="+", metavar="FILE")
    found["export"].add_argument("--format", choices=("json", "csv"), default="json")
    found["conformance"].add_argument("--format", choices=("md", "html", "json"), default="md")
    for name in ("export", "backup"):
        found[name].add_argument("file", nargs="?", metavar="FILE")
    found["restore"].add_argument("file", metavar="FILE")
    for name in ("user", "token"):
        found[name].add_argument("name", metavar="NAME")
        found[name].add_argument("--role", choices=ROLES, default="desk")
        found[name].add_argument("--delete", action="store_true")
    found["user"].add_argument("--password-stdin", action="store_true")
    found["token"].add_argument(
        "--ae", action="append", default=[], metavar="TITLE",
        help="an AE title that it may subscribe and hear of; may be given again",
    )  # fmt: skip
    simulate = found["simulate"]
    simulate.add_argument(
        "scenarios", nargs="+", metavar="SCENARIO", choices=SCENARIOS, help=", ".join(SCENARIOS)
    )
    simulate.add_argument("--host", default="127.0.0.1")
    simulate.add_argument("--port", type=int, default=0)
    simulate.add_argument("--called", default="")
    simulate.add_argument("--calling", default="CT1")
    simulate.add_argument("--modality", default="CT")
    simulate.add_argument(
        "--listen", type=int, default=0, metavar="PORT", help="where it hears of events"
    )
    simulate.add_argument(
        "--archive", default="", metavar="AE@HOST:PORT", help="where commitment stores its images"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line: exit status 0 done, 1 could not, 2 wrong usage or configuration."""
    for stream in (sys.stdout, sys.stderr):  # names are written in UTF-8 in any locale
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    arguments = build_parser().parse_args(argv)
    try:
        config = load_config(find_config(getattr(arguments, "config", None)), os.environ)
        COMMANDS[arguments.command or "serve"](config, arguments)
    except ConfigError as error:
        for problem in error.problems:
            print(f"minris: {problem}", file=sys.stderr)
        return 2
    except (StoreError, CommandError, OSError) as error:
        print(f"minris: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
