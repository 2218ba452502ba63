"""Core, DIMSE and HTTP: each scenario has the same outcomes and leaves the same, by every door."""

import contextlib
import copy
import functools
import json
import re
import urllib.parse
from typing import NamedTuple

import httpx
import peers
import pytest
from conftest import Running, item, write_config
from test_dicomweb_workitems import JSON, warning_of
from test_mpps import creation as begun
from test_mpps import dataset, discontinuation, ending, read, series, stored_form
from test_ups import (
    CLASSES,
    LOCK,
    OTHER_LOCK,
    cancellation,
    code,
    creation,
    done,
    modification,
    performed,
)
from test_ups import calling as calling_ups

from minris.access.context import Actor, purge_audit
from minris.access.users import make_token
from minris.config.ini import load_config
from minris.dataset.elements import ElementIndex
from minris.dataset.search import AnswerStyle, Search
from minris.dicomweb.routes import DICOM_ROUTES
from minris.dicomweb.transactions import MPPS_PATH
from minris.mpps import performed as mpps_performed
from minris.mpps.performed import get_mpps, set_mpps
from minris.standard import status as standard_status
from minris.standard.dictionary import tag_of
from minris.standard.status import OUTCOMES, WARNINGS, Refusal, Status, read_status
from minris.standard.tables import table
from minris.standard.uids import (
    MPPS,
    MPPS_RETRIEVE,
    UPS_FILTERED_SUBSCRIPTION,
    UPS_GLOBAL_SUBSCRIPTION,
    UPS_WATCH,
)
from minris.standard.ups import UPS_ATTRIBUTES
from minris.store.models import MODELS, Audit, Mark, Token, database
from minris.ups import subscriptions as ups_subscriptions
from minris.ups import workitems as ups_workitems
from minris.ups.people import claim_by_person, decline_cancellation
from minris.ups.search import find_workitems
from minris.ups.subscriptions import suspend_global_subscription
from minris.ups.workitems import create_workitem, get_workitem, purge_workitems, update_workitem

# pydicom warns of what some scenarios send on purpose
pytestmark = [
    pytest.mark.filterwarnings("ignore:The value length"),
    pytest.mark.filterwarnings("ignore:Invalid value for VR UI"),
]

SETTINGS = f"""
[dicom]
answer_limit = 2
[device CT room]
host = 127.0.0.1
port = {peers.free_port()}
[device Watcher]
ae_title = WATCHER
host = 127.0.0.1
port = {peers.free_port()}
[device Mute]
ae_title = MUTE
events = dimse
"""
UIDS = {
    "chest": "2.25.215063401487712901325523387610957311121",
    "heart": "2.25.215063401487712901325523387610957311122",
    "brain": "2.25.215063401487712901325523387610957311123",
    "unknown": "2.25.215063401487712901325523387610957311124",
    "wrong UID": "1.02.3",
    "all": UPS_GLOBAL_SUBSCRIPTION,
    "filtered": UPS_FILTERED_SUBSCRIPTION,
    "exam": "2.25.164853397526153207231186904478612417151",
}
LOCKS = {"lock": LOCK, "other lock": OTHER_LOCK, "no lock": "", "bad lock": "1.02.3"}
STATES = {"no state": None, "empty state": ""}

STUDY = "2.25.31415926535"
CONTACT = dataset(ContactDisplayName="3D desk")


def lacking(ds, keyword):
    """A data set without an attribute."""
    del ds[keyword]
    return ds


def scheduled(**values):
    """The item of Scheduled Step Attributes of the exam on the worklist."""
    return dataset(
        StudyInstanceUID=STUDY,
        ReferencedStudySequence=[],
        AccessionNumber="",
        RequestedProcedureID="",
        RequestedProcedureDescription="CT chest",
        ScheduledProcedureStepID="",
        ScheduledProcedureStepDescription="CT chest, plain",
        ScheduledProtocolCodeSequence=[],
        **values,
    )


def progress(**values):
    """A modification list of a performer at work."""
    return modification(ProcedureStepProgressInformationSequence=[dataset(**values)])


DATA = {
    # workitems as they are asked for
    "chest": creation(),
    "heart": creation(PatientID="P000043", ProcedureStepLabel="3D of the heart", WorklistLabel=""),
    "with a station": creation(
        ScheduledStationNameCodeSequence=[code("WS1", "99LAKESIDE", "3D workstation")]
    ),
    "without a label": lacking(creation(), "ProcedureStepLabel"),
    "with an empty label": creation(ProcedureStepLabel=""),
    "without a worklist": lacking(creation(), "WorklistLabel"),
    "already begun": creation(ProcedureStepState="IN PROGRESS"),
    "already locked": creation(TransactionUID=LOCK),
    "on 30 February": creation(ScheduledProcedureStepStartDateTime="20260230110000"),
    "of another UID": creation(SOPInstanceUID=UIDS["unknown"]),
    # changes of workitems
    "not ready": modification(InputReadinessState="INCOMPLETE"),
    "maybe ready": modification(InputReadinessState="MAYBE"),
    "40 %": progress(ProcedureStepProgress="40"),
    "a contact": progress(
        ProcedureStepCommunicationsURISequence=[dataset(ContactURI="tel:+86-10-5555-0142")]
    ),
    "a contact without URI": progress(ProcedureStepCommunicationsURISequence=[CONTACT]),
    "a station": modification(
        ScheduledStationNameCodeSequence=[code("WS2", "99LAKESIDE", "3D workstation 2")]
    ),
    "another patient": modification(PatientID="P000043"),
    "another UID": modification(SOPInstanceUID=UIDS["unknown"]),
    "the same patient": modification(PatientID="P000042"),
    "no label": modification(ProcedureStepLabel=""),
    "done": done(),
    "done, but where": modification(
        UnifiedProcedureStepPerformedProcedureSequence=[
            performed(PerformedStationNameCodeSequence=[])
        ]
    ),
    "begun": modification(ProcedureStepState="IN PROGRESS"),
    "scheduled again": modification(ProcedureStepState="SCHEDULED"),
    "patient went home": cancellation(),
    "-": None,
    # performed procedure steps
    "a CT begins": begun(scheduled()),
    "a CT of nobody's order": begun(),
    "a CT without a station": lacking(begun(), "PerformedStationAETitle"),
    "a CT of an empty station": begun(PerformedStationAETitle=""),
    "a CT without a study ID": lacking(begun(), "StudyID"),
    "a CT that is over": begun(PerformedProcedureStepStatus="COMPLETED"),
    "a CT of another UID": begun(SOPInstanceUID=UIDS["unknown"]),
    "a series": dataset(SpecificCharacterSet="ISO_IR 192", PerformedSeriesSequence=[series()]),
    "a series without a protocol": dataset(
        SpecificCharacterSet="ISO_IR 192",
        PerformedSeriesSequence=[lacking(series(), "ProtocolName")],
    ),
    "the CT ends": ending(),
    "the CT ends at no time": lacking(ending(), "PerformedProcedureStepEndTime"),
    "the CT ends at an empty time": ending(PerformedProcedureStepEndTime=""),
    "the CT is given up": discontinuation("110501"),
    "the wrong entry": discontinuation("110514"),
    "the CT pauses": ending("PAUSED"),
    "the CT of another UID": ending(SOPInstanceUID=UIDS["unknown"]),
    "the CT of another patient": ending(PatientID="P000043"),
}


# Scenarios. A line alone is the name of one, with a setting behind it if it needs one; then follow
# its steps: what is asked, of which of UIDS (of a search: what is found), with which of DATA and
# LOCKS, the DIMSE status with its Error ID. What is in brackets is done at the box itself.
# The web answers as OUTCOMES says for the status, unless there is one cell more:
#   C307     what OUTCOMES says for this one
#   404 …    this code and this text of the Warning header
#   -        it cannot be asked over the web

SCENARIOS = """
a workitem is created and retrieved
    create         | chest        | chest                      | 0000
    retrieve       | chest        | -                          | 0000
    retrieve       | chest        | PatientID, WorklistLabel   | 0000 | -
    retrieve       | chest        | PatientID, TransactionUID  | 0001 | -
a workitem is done
    create         | chest        | chest                      | 0000
    subscribe      | chest        | WATCHER                    | 0000
    change state   | chest        | IN PROGRESS, lock          | 0000
    update         | chest        | 40 %, lock                 | 0000
    update         | chest        | a contact, lock            | 0000
    update         | chest        | done, lock                 | 0000
    change state   | chest        | COMPLETED, lock            | 0000
    change state   | chest        | COMPLETED, lock            | B306
    retrieve       | chest        | -                          | 0000
a workitem is given up by its performer
    create         | chest        | chest                      | 0000
    subscribe      | chest        | WATCHER                    | 0000
    change state   | chest        | IN PROGRESS, lock          | 0000
    change state   | chest        | CANCELED, lock             | 0000
    change state   | chest        | CANCELED, lock             | B304
a workitem is changed before anybody begins
    create         | chest        | chest                      | 0000
    subscribe      | chest        | WATCHER                    | 0000
    update         | chest        | not ready                  | 0000
    update         | chest        | a station                  | 0000
    update         | chest        | the same patient           | 0000
a workitem for a station is announced to those who watch all
    subscribe      | all          | WATCHER                    | 0000
    create         | chest        | with a station             | 0000
    create         | heart        | heart                      | 0000
a workitem may lack what can be empty
    create         | chest        | without a worklist         | 0000
a workitem may not lack what can be empty where that is asked for; ups.strict = True
    create         | chest        | without a worklist         | 0120
a workitem is not created wrong
    create         | chest        | without a label            | 0120
    create         | chest        | with an empty label        | 0121
    create         | chest        | already locked             | 0106
    create         | chest        | on 30 February             | 0106
    create         | chest        | already begun              | C309
    create         | wrong UID    | chest                      | 0117
    retrieve       | chest        | -                          | C307
a workitem is not created of another UID than its command says
    create         | chest        | of another UID             | 0106 | 400 An argument has an invalid value.
    retrieve       | unknown      | -                          | C307
a UID is taken once
    create         | chest        | chest                      | 0000
    create         | chest        | heart                      | 0111
what is not known cannot be used
    retrieve       | unknown      | -                          | C307
    update         | unknown      | not ready                  | C307
    update         | unknown      | done, lock                 | C307
    change state   | unknown      | IN PROGRESS, lock          | C307
    change state   | unknown      | no state, lock             | C307
    request cancel | unknown      | -                          | C307
    subscribe      | unknown      | WATCHER                    | C307
    unsubscribe    | unknown      | WATCHER                    | C307
    suspend        | unknown      | WATCHER                    | C307
the subscription to all is no workitem
    retrieve       | all          | -                          | C307
    update         | all          | not ready                  | C307
the subscription to all is neither done nor canceled
    change state   | all          | IN PROGRESS, lock          | C314
    request cancel | all          | -                          | C314
a change before the claim
    create         | chest        | chest                      | 0000
    update         | chest        | not ready, lock            | C310
    update         | chest        | maybe ready                | 0106
    update         | chest        | another patient            | 0105
    update         | chest        | another UID                | 0105
    update         | chest        | begun                      | 0105
    update         | chest        | scheduled again            | C303
    update         | chest        | no label                   | 0121
    update         | chest        | a contact without URI      | 0120
a change after the claim
    create         | chest        | chest                      | 0000
    change state   | chest        | IN PROGRESS, lock          | 0000
    update         | chest        | 40 %                       | C301
    update         | chest        | 40 %, other lock           | C301
    update         | chest        | another patient, lock      | 0105
    update         | chest        | begun, lock                | 0105
    update         | chest        | scheduled again, lock      | C303
    update         | chest        | maybe ready, lock          | 0106
a change after the end
    create         | chest        | chest                      | 0000
    change state   | chest        | IN PROGRESS, lock          | 0000
    update         | chest        | done, lock                 | 0000
    change state   | chest        | COMPLETED, lock            | 0000
    update         | chest        | 40 %, lock                 | C300
    update         | chest        | 40 %, other lock           | C300
    update         | chest        | not ready                  | C300
a claim without a lock that is one
    create         | chest        | chest                      | 0000
    change state   | chest        | IN PROGRESS, no lock       | C301 | 400 The Transaction UID is missing.
    change state   | chest        | IN PROGRESS, bad lock      | C301
    change state   | chest        | no state, no lock          | C301 | 400 The Transaction UID is missing.
a claim that is none
    create         | chest        | chest                      | 0000
    change state   | chest        | no state, lock             | 0120
    change state   | chest        | empty state, lock          | 0121
    change state   | chest        | ASLEEP, lock               | 0115
    change state   | chest        | SCHEDULED, lock            | C303
    change state   | chest        | COMPLETED, lock            | C310
    change state   | chest        | CANCELED, lock             | C310
a second claim
    create         | chest        | chest                      | 0000
    change state   | chest        | IN PROGRESS, lock          | 0000
    change state   | chest        | IN PROGRESS, lock          | C302
    change state   | chest        | IN PROGRESS, other lock    | C301
    change state   | chest        | COMPLETED, other lock      | C301
    change state   | chest        | CANCELED, no lock          | C301 | 400 The Transaction UID is missing.
    change state   | chest        | SCHEDULED, lock            | C303
    change state   | chest        | ASLEEP, other lock         | C301
an end before its time
    create         | chest        | chest                      | 0000
    change state   | chest        | IN PROGRESS, lock          | 0000
    change state   | chest        | COMPLETED, lock            | C304
    update         | chest        | done, but where, lock      | 0000
    change state   | chest        | COMPLETED, lock            | C304
    update         | chest        | done, lock                 | 0000
    change state   | chest        | COMPLETED, lock            | 0000
no state follows COMPLETED
    create         | chest        | chest                      | 0000
    change state   | chest        | IN PROGRESS, lock          | 0000
    update         | chest        | done, lock                 | 0000
    change state   | chest        | COMPLETED, lock            | 0000
    change state   | chest        | IN PROGRESS, lock          | C300
    change state   | chest        | CANCELED, lock             | C300
    change state   | chest        | SCHEDULED, lock            | C303
    change state   | chest        | COMPLETED, other lock      | C301
    request cancel | chest        | -                          | C311
no state follows CANCELED
    create         | chest        | chest                      | 0000
    change state   | chest        | IN PROGRESS, lock          | 0000
    change state   | chest        | CANCELED, lock             | 0000
    change state   | chest        | IN PROGRESS, lock          | C300
    change state   | chest        | COMPLETED, lock            | C300
    change state   | chest        | CANCELED, other lock       | C301
    request cancel | chest        | -                          | B304
a workitem is canceled before anybody begins
    create         | chest        | chest                      | 0000
    subscribe      | chest        | WATCHER                    | 0000
    request cancel | chest        | patient went home          | 0000
    request cancel | chest        | patient went home          | B304
a performer that watches is asked to cancel
    create         | chest        | chest                      | 0000
    change state   | chest        | IN PROGRESS, lock          | 0000
    subscribe      | chest        | WATCHER                    | 0000
    request cancel | chest        | patient went home          | 0000
    request cancel | chest        | -                          | 0000
    change state   | chest        | CANCELED, lock             | 0000
a performer that does not watch cannot be asked
    create         | chest        | chest                      | 0000
    change state   | chest        | IN PROGRESS, lock          | 0000
    request cancel | chest        | patient went home          | C312
a person goes on with what is to be canceled
    create         | chest        | chest                      | 0000
    (claim)        | chest        | -                          | 0000
    request cancel | chest        | patient went home          | 0000
    (decline)      | chest        | -                          | 0000
    request cancel | chest        | patient went home          | C313
a workitem that has been deleted
    create         | chest        | chest                      | 0000
    request cancel | chest        | -                          | 0000
    (purge)        | chest        | -                          | 0000
    retrieve       | chest        | -                          | C307 | 410 The Target Workitem was not found.
    create         | chest        | chest                      | 0111
a subscription with a lock, and its end
    create         | chest        | chest                      | 0000
    subscribe      | chest        | WATCHER, lock              | 0000
    subscribe      | chest        | WATCHER                    | 0000
    subscribe      | chest        | WATCHER, lock              | 0000
    change state   | chest        | IN PROGRESS, lock          | 0000
    unsubscribe    | chest        | WATCHER                    | 0000
    change state   | chest        | CANCELED, lock             | 0000
a lock is not granted where there are none; ups.grant_locks = False
    create         | chest        | chest                      | 0000
    subscribe      | chest        | WATCHER, lock              | B301
    subscribe      | all          | WATCHER, lock              | B301
    create         | heart        | heart                      | 0000
a subscription that cannot be
    create         | chest        | chest                      | 0000
    subscribe      | chest        | MUTE                       | C308
    subscribe      | all          | MUTE                       | C308
    subscribe      | chest        | A TITLE TOO LONG!          | 0115
    subscribe      | filtered     | WATCHER, PatientBirthDate=20260230 | 0115
    unsubscribe    | chest        | A TITLE TOO LONG!          | 0115 | C307
    suspend        | all          | A TITLE TOO LONG!          | 0115 | C307
    suspend        | chest        | WATCHER                    | C314
a subscription that is none has no end over the web
    create         | chest        | chest                      | 0000
    unsubscribe    | chest        | WATCHER                    | 0000 | C307
    unsubscribe    | all          | WATCHER                    | 0000 | C307
    suspend        | all          | WATCHER                    | 0000 | C307
    suspend        | filtered     | WATCHER                    | 0000 | C307
a filtered subscription without a filter
    subscribe      | filtered     | WATCHER                    | 0120
a subscription to all begins, is suspended and ends
    create         | chest        | chest                      | 0000
    subscribe      | all          | WATCHER, lock              | 0000
    create         | heart        | heart                      | 0000
    suspend        | all          | WATCHER                    | 0000
    create         | brain        | heart                      | 0000
    update         | heart        | not ready                  | 0000
    subscribe      | all          | WATCHER                    | 0000
    unsubscribe    | all          | WATCHER                    | 0000
    update         | chest        | not ready                  | 0000
a subscription to some
    create         | chest        | chest                      | 0000
    create         | heart        | heart                      | 0000
    subscribe      | filtered     | WATCHER, PatientID=P000042 | 0000
    create         | brain        | chest                      | 0000
    update         | heart        | not ready                  | 0000
    update         | chest        | not ready                  | 0000
    suspend        | filtered     | WATCHER                    | 0000
    subscribe      | filtered     | WATCHER, PatientID=P000043, lock | 0000
    unsubscribe    | filtered     | WATCHER                    | 0000
workitems are searched
    create         | chest        | chest                      | 0000
    create         | heart        | heart                      | 0000
    search         | chest, heart | -                          | 0000
    search         | heart        | PatientID=P000043          | 0000
    search         | chest, heart | PatientName=王*             | 0000
    search         | chest        | WorklistLabel=3D           | 0000
    search         | chest, heart | ScheduledProcedureStepStartDateTime=20260705-20260705 | 0000
    search         | -            | PatientID=P000044          | 0000
    search         | -            | ScheduledProcedureStepStartDateTime=20260230 | A900
more workitems are found than an answer takes
    create         | chest        | chest                      | 0000
    create         | heart        | heart                      | 0000
    create         | brain        | heart                      | 0000
    search         | chest, heart | ProcedureStepState=SCHEDULED | A700 | 200 There are 1 additional results that can be requested
a lock cannot be searched for
    create         | chest        | chest                      | 0000
    change state   | chest        | IN PROGRESS, lock          | 0000
    search         | chest        | TransactionUID=lock        | 0000 | 200 Not supported for matching: TransactionUID
    search         | chest        | TransactionUID=other lock  | 0000 | 200 Not supported for matching: TransactionUID
who creates a workitem hears of it where that is asked for; ups.auto_subscribe_creator = True
    create         | chest        | chest                      | 0000
    update         | chest        | not ready                  | 0000
an exam is done
    (schedule)     | -            | -                          | 0000
    create mpps    | exam         | a CT begins                | 0000
    retrieve mpps  | exam         | -                          | 0000
    update mpps    | exam         | a series                   | 0000
    update mpps    | exam         | the CT ends                | 0000
    retrieve mpps  | exam         | -                          | 0000
    retrieve mpps  | exam         | PatientID, Modality        | 0000 | -
    retrieve mpps  | exam         | PatientID, ProcedureStepLabel | 0001 | -
an exam is given up
    (schedule)     | -            | -                          | 0000
    create mpps    | exam         | a CT begins                | 0000
    update mpps    | exam         | the CT is given up         | 0000
an exam of the wrong entry
    (schedule)     | -            | -                          | 0000
    create mpps    | exam         | a CT begins                | 0000
    update mpps    | exam         | the wrong entry            | 0000
an exam without an order
    create mpps    | exam         | a CT of nobody's order     | 0000
    update mpps    | exam         | the CT ends                | 0000
an exam may lack what can be empty
    create mpps    | exam         | a CT without a study ID    | 0000
    update mpps    | exam         | a series without a protocol | 0120
an exam may not lack what can be empty where that is asked for; dicom.strict_mpps = True
    create mpps    | exam         | a CT without a study ID    | 0120
an exam is not begun wrong
    create mpps    | exam         | a CT without a station     | 0120
    create mpps    | exam         | a CT of an empty station   | 0121
    create mpps    | exam         | a CT that is over          | 0106
    create mpps    | exam         | a CT of another UID        | 0106
    create mpps    | wrong UID    | a CT begins                | 0117
    retrieve mpps  | exam         | -                          | 0112
an exam begins once
    create mpps    | exam         | a CT begins                | 0000
    create mpps    | exam         | a CT of nobody's order     | 0111
an exam is not ended wrong
    create mpps    | exam         | a CT begins                | 0000
    update mpps    | exam         | the CT pauses              | 0106
    update mpps    | exam         | the CT of another patient  | 0105
    update mpps    | exam         | the CT of another UID      | 0106
    update mpps    | exam         | the CT ends at no time     | 0121
    update mpps    | exam         | the CT ends at an empty time | 0121
    update mpps    | unknown      | the CT ends                | 0112
an exam ends once
    create mpps    | exam         | a CT begins                | 0000
    update mpps    | exam         | the CT ends                | 0000
    update mpps    | exam         | the CT ends                | 0110/A710
    update mpps    | exam         | a series                   | 0110/A710
    update mpps    | exam         | the CT of another patient  | 0110/A710
    create mpps    | exam         | a CT begins                | 0111
"""

# Rows of OUTCOMES that no scenario reaches.
UNREACHED = """
operation | status | because
*         | 0105   | update and update mpps have rows of their own
*         | 0110   | a data set of DIMSE that is none, or an error of ours; update mpps has its own
*         | 0113   | an archive's report on what was passed on to it: of DIMSE alone
*         | 0118   | a class that is not of its context: of DIMSE alone
*         | 0122   | a class that is not of its context: of DIMSE alone
*         | 0123   | the web has no action types
*         | 0124   | what a login may not do: of the web alone
*         | 0211   | an operation that is not of its class: of DIMSE alone, 405 before any operation
*         | 0212   | a content type: of the web alone
*         | 0213   | a size: each door has its own limit, before any operation
*         | C000   | an error of ours
*         | A700   | the web gives a page of what it finds
update       | 0115 | two locks or not one data set: of the web alone
update       | 0124 | what a login may not do: of the web alone
update       | 0212 | a content type: of the web alone
update       | 0213 | a size: each door has its own limit, before any operation
change state | 0106 | what is no DICOM JSON: of the web alone
change state | 0124 | what a login may not do: of the web alone
change state | 0212 | a content type: of the web alone
change state | 0213 | a size: each door has its own limit, before any operation
page         | 0105 | what a form sends: of the pages alone
page         | 0106 | what a form sends: of the pages alone
page         | 0115 | what a form sends: of the pages alone
page         | 0120 | what a form sends: of the pages alone
page         | 0121 | what a form sends: of the pages alone
"""

SUCCESS = {  # PS3.18 11.4 to 11.12, 15.4 to 15.6
    "create": 201,
    "request cancel": 202,
    "subscribe": 201,
    "create mpps": 201,
}


class Step(NamedTuple):
    """A row of SCENARIOS; `status` is that of DIMSE, `web` what is otherwise there."""

    operation: str
    of: str
    words: tuple[str, ...]
    status: str
    web: str = ""

    @property
    def uid(self):
        return UIDS.get(self.of, "")

    @property
    def data(self):
        """The data set named by the first words."""
        found = DATA[self.name]
        return found and copy.deepcopy(found)

    @property
    def name(self):
        """The words but for the lock."""
        return ", ".join(word for word in self.words if word not in LOCKS)

    @property
    def lock(self):
        return next((LOCKS[word] for word in self.words if word in LOCKS), "")

    @property
    def state(self):
        return STATES.get(self.words[0], self.words[0])

    @property
    def keywords(self):
        return [word for word in self.words if word != "-"]

    @property
    def keys(self):
        pairs = (word.split("=") for word in self.words if "=" in word)
        return {keyword: LOCKS.get(value, value) for keyword, value in pairs}

    @property
    def found(self):
        """What a search finds, in its order."""
        return [UIDS[one] for one in self.of.split(", ") if one != "-"]

    @property
    def on_the_web(self):
        return self.web != "-"


class Scenario(NamedTuple):
    """Steps, with a setting where they need one."""

    name: str
    setting: str
    steps: list[Step]

    @property
    def searches(self):
        return [step for step in self.steps if step.operation == "search"]


def read_scenarios():
    """The scenarios by name."""
    found = {}
    for line in filter(None, map(str.strip, SCENARIOS.splitlines())):
        cells = [cell.strip() for cell in line.split("  # ")[0].split("|")]
        if len(cells) == 1:
            name, _, setting = cells[0].partition("; ")
            assert name not in found
            found[name] = Scenario(name, setting, [])
            continue
        operation, of, words, *outcome = cells
        step = Step(operation, of, tuple(words.split(", ")), *outcome)
        found[name].steps.append(step)
    return found


ALL = read_scenarios()
STEPS = [step for scenario in ALL.values() for step in scenario.steps]
REFUSED_ON_THE_WEB = {  # what is done by the others
    name
    for name, scenario in ALL.items()
    if any(step.status == "0000" and step.web == "C307" for step in scenario.steps)
}


# What the web answers for a status.


def on_the_web(step):
    """The code and the text of the Warning header that a step has on the web."""
    code, _, text = step.web.partition(" ")
    if len(code) == 3:
        return int(code), text
    status = Status(int(code or step.status[:4], 16))
    if status in WARNINGS or status == Status.SUCCESS:
        return SUCCESS.get(step.operation, 200), WARNINGS.get(status, "")
    return tuple(standard_status.outcome(step.operation, status))


# Doors: each answers a step, and gives what it knows of an object.


class Door:
    """What the doors have in common.

    last   the data set that was read last, None where there was none
    seen   the UIDs that each search has found
    texts  all that has been answered, to look for what is to be told to nobody
    """

    def __init__(self, box):
        self.box, self.last, self.seen, self.texts = box, None, [], []

    def answer(self, step):
        """Do a step: its status with its Error ID."""
        if step.operation.startswith("("):
            AT_THE_BOX[step.operation](self.box, step.uid)
            return "0000"
        return getattr(self, step.operation.replace(" ", "_"))(step)


class Core(Door):
    """The functions of the core, called as the doors call them."""

    @classmethod
    @contextlib.contextmanager
    def opened(cls, box):
        yield cls(box)

    def answer(self, step):
        try:
            answer = super().answer(step)
        except Refusal as refusal:
            error = f"/{refusal.error_id:04X}" if refusal.error_id else ""
            return f"{refusal.status:04X}{error}"
        return answer if isinstance(answer, str) else f"{answer or 0:04X}"

    def write(self, function, *arguments):
        ctx = self.box.appliance.context(Actor("CT1", peers.HOST))
        return self.box.write(function, ctx, *arguments)

    def create(self, step):
        return self.write(create_workitem, step.uid, stored_form(step.data))[1]

    def update(self, step):
        data = stored_form(with_lock(step))
        return self.write(update_workitem, step.uid, data)

    def change_state(self, step):
        return self.write(ups_workitems.change_state, step.uid, step.state, step.lock)

    def request_cancel(self, step):
        data = stored_form(step.data) if step.data else b""
        return self.write(ups_workitems.request_cancel, step.uid, data)

    def subscribe(self, step):
        keys = stored_form(dataset(**step.keys))
        lock = "lock" in step.words
        return self.write(ups_subscriptions.subscribe, step.uid, step.words[0], lock, keys)

    def unsubscribe(self, step):
        return self.write(ups_subscriptions.unsubscribe, step.uid, step.words[0])

    def suspend(self, step):
        return self.write(suspend_global_subscription, step.uid, step.words[0])

    def search(self, step):
        ctx = self.box.appliance.context(Actor("CT1", peers.HOST))
        keys = ElementIndex(stored_form(query(step)))
        style, found = AnswerStyle(zone=ctx.config.zone), []
        self.seen.append(found)

        def find():
            search = Search(keys, UPS_ATTRIBUTES, True, style)
            for answers in find_workitems(ctx, search):
                self.texts.append(repr(answers))
                found.extend(str(read(one).SOPInstanceUID) for one in answers)

        self.box.read(find)
        return Status.SUCCESS

    def retrieve(self, step):
        return self.got(get_workitem, step)

    def create_mpps(self, step):
        self.write(mpps_performed.create_mpps, step.uid, stored_form(step.data))

    def update_mpps(self, step):
        self.write(set_mpps, step.uid, stored_form(step.data))

    def retrieve_mpps(self, step):
        return self.got(get_mpps, step)

    def got(self, get, step):
        tags = map(tag_of, step.keywords)
        status, data = self.box.read(get, step.uid, tags)
        self.texts.append(repr(data))
        self.last = plain(read(data).to_json_dict())
        return status


class Dimse(Door):
    """An association of CT1 by pynetdicom."""

    def __init__(self, box, call):
        super().__init__(box)
        self.call = call

    @classmethod
    @contextlib.contextmanager
    def opened(cls, box):
        classes = (*CLASSES, MPPS, MPPS_RETRIEVE)
        with calling_ups(box, classes=classes) as call:
            yield cls(box, call)

    def told(self, answer):
        """The status of an answer, with its Error ID."""
        self.texts += [repr(answer.command), repr(answer.data)]
        error = answer.command.get("ErrorID")
        return f"{answer.status:04X}{f'/{error:04X}' if error else ''}"

    def create(self, step):
        return self.told(self.call.create(step.data, step.uid))

    def update(self, step):
        return self.told(self.call.set(with_lock(step), step.uid))

    def change_state(self, step):
        return self.told(self.call.change(step.state, step.lock, step.uid))

    def request_cancel(self, step):
        return self.told(self.call.cancel(step.data, step.uid))

    def subscribe(self, step):
        information = dataset(
            ReceivingAE=step.words[0],
            DeletionLock="TRUE" if "lock" in step.words else "FALSE",
            **step.keys,
        )
        return self.told(self.call.act(3, information, step.uid, UPS_WATCH))

    def unsubscribe(self, step):
        information = dataset(ReceivingAE=step.words[0])
        return self.told(self.call.act(4, information, step.uid, UPS_WATCH))

    def suspend(self, step):
        information = dataset(ReceivingAE=step.words[0])
        return self.told(self.call.act(5, information, step.uid, UPS_WATCH))

    def search(self, step):
        *found, last = self.call.find(query(step))
        self.texts += [repr(one.data) for one in found]
        self.seen.append([str(one.dataset.SOPInstanceUID) for one in found])
        return self.told(last)

    def retrieve(self, step):
        return self.got(self.call.get(list(map(tag_of, step.keywords)), step.uid))

    def create_mpps(self, step):
        self.call.association.send_n_create(step.data, MPPS, step.uid)
        return self.told(self.call.answer())

    def update_mpps(self, step):
        self.call.association.send_n_set(step.data, MPPS, step.uid)
        return self.told(self.call.answer())

    def retrieve_mpps(self, step):
        tags = list(map(tag_of, step.keywords))
        self.call.association.send_n_get(tags, MPPS_RETRIEVE, step.uid)
        return self.got(self.call.answer())

    def got(self, answer):
        self.last = answer.dataset and plain(answer.dataset.to_json_dict())
        return self.told(answer)


class Http(Door):
    """An HTTP client with the token of CT1."""

    def __init__(self, box, client):
        super().__init__(box)
        self.client = client

    @classmethod
    @contextlib.contextmanager
    def opened(cls, box):
        secret = box.write(make_token, box.context(), "doors", "admin", ["CT1"])
        headers = {"Authorization": f"Bearer {secret}"}
        base = f"{box.url}/dicom-web"
        with httpx.Client(base_url=base, headers=headers, trust_env=False) as client:
            yield cls(box, client)

    def ask(self, method, path, ds=None):
        """A request: the code and the text of the Warning header."""
        body = {"json": [ds.to_json_dict()], "headers": JSON} if ds is not None else {}
        self.heard = self.client.request(method, path, **body)
        self.texts += [self.heard.text, repr(self.heard.headers)]
        warned = "Warning" in self.heard.headers
        return self.heard.status_code, warning_of(self.heard) if warned else ""

    def answer(self, step):
        if step.operation.startswith("("):
            super().answer(step)
            return 200, ""
        return super().answer(step) if step.on_the_web else None

    def create(self, step):
        return self.ask("POST", f"/workitems?workitem={step.uid}", step.data)

    def update(self, step):
        query = f"?transaction-uid={step.lock}" if step.lock else ""
        return self.ask("POST", f"/workitems/{step.uid}{query}", step.data)

    def change_state(self, step):
        given = {"ProcedureStepState": step.state, "TransactionUID": step.lock}
        ds = dataset(**{k: v for k, v in given.items() if v is not None})
        return self.ask("PUT", f"/workitems/{step.uid}/state", ds)

    def request_cancel(self, step):
        return self.ask("POST", f"/workitems/{step.uid}/cancelrequest", step.data)

    def subscribe(self, step):
        keys = ",".join(f"{keyword}={value}" for keyword, value in step.keys.items())
        given = {"filter": keys, "deletionlock": "true" if "lock" in step.words else ""}
        query = urllib.parse.urlencode({k: v for k, v in given.items() if v})
        return self.ask("POST", f"{self.subscriber(step)}?{query}")

    def unsubscribe(self, step):
        return self.ask("DELETE", self.subscriber(step))

    def suspend(self, step):
        return self.ask("POST", f"{self.subscriber(step)}/suspend")

    @staticmethod
    def subscriber(step):
        return f"/workitems/{step.uid}/subscribers/{urllib.parse.quote(step.words[0])}"

    def search(self, step):
        keys = step.keys
        if "TransactionUID" not in keys:
            keys["includefield"] = "TransactionUID"
        answer = self.ask("GET", f"/workitems?{urllib.parse.urlencode(keys)}")
        found = self.heard.json() if answer[0] == 200 else []
        self.seen.append([one["00080018"]["Value"][0] for one in found])
        return answer

    def retrieve(self, step):
        return self.got(self.ask("GET", f"/workitems/{step.uid}"))

    def create_mpps(self, step):
        return self.ask("POST", f"{MPPS_PATH}/{step.uid}", step.data)

    def update_mpps(self, step):
        return self.ask("POST", f"{MPPS_PATH}/{step.uid}?update", step.data)

    def retrieve_mpps(self, step):
        return self.got(self.ask("GET", f"{MPPS_PATH}/{step.uid}"))

    def got(self, answer):
        self.last = plain(self.heard.json()[0]) if answer[0] == 200 else None
        return answer


DOORS = {"core": Core, "DIMSE": Dimse, "HTTP": Http}
OTHERS = [name for name in DOORS if name != "core"]


def query(step):
    """The identifier of a search; what is told to nobody is asked for too."""
    keys = {"SOPInstanceUID": "", "TransactionUID": "", **step.keys}
    return dataset(SpecificCharacterSet="ISO_IR 192", **keys)


def with_lock(step):
    """The modification list of a step with its lock in it."""
    ds = step.data
    if step.lock:
        ds.TransactionUID = step.lock
    return ds


# What is done at the box itself.


def claim(box, uid):
    box.write(claim_by_person, box.context("li.na"), uid)


def decline(box, uid):
    words = "The surgeon is waiting"
    box.write(decline_cancellation, box.context("li.na"), uid, words)


def purge(box, uid):
    sql = "UPDATE workitem SET ended_at = '2026-01-01T00:00:00.000000Z'"
    box.write(database.execute_sql, sql)
    assert box.write(purge_workitems, box.context()) == 1


def schedule(box, uid):
    box.schedule(item(StudyInstanceUID=STUDY, PatientID="P000042"))


AT_THE_BOX = {"(claim)": claim, "(decline)": decline, "(purge)": purge, "(schedule)": schedule}


# What is left behind.

TIMES = {  # by the clock, so never the same
    f"{tag_of(keyword):08X}"
    for keyword in (
        "ScheduledProcedureStepModificationDateTime",
        "ProcedureStepCancellationDateTime",
        "SpecificCharacterSet",  # each door's own
    )
}


def plain(data):
    """DICOM JSON without what differs from door to door."""
    if isinstance(data, list):
        return [plain(one) for one in data]
    if isinstance(data, dict):
        empty = {"Value": []}
        return {
            key: plain(value)
            for key, value in sorted(data.items())
            if key not in TIMES and {key: value} != empty
        }
    return data


def as_told(data):
    """Stored bytes as DICOM JSON by pydicom."""
    return plain(read(bytes(data)).to_json_dict())


def select(sql):
    return database.execute_sql(sql).fetchall()


def what_is_stored():
    """Workitems, subscriptions, performed and scheduled steps; not when."""
    return {
        "workitems": [
            (*columns, bool(lock), as_told(data))
            for data, lock, *columns in select(
                "SELECT data, transaction_uid, sop_instance_uid, state, performer, by_person,"
                " declined, ended_at <> '' FROM workitem ORDER BY id"
            )
        ],
        "subscriptions": select(
            "SELECT w.sop_instance_uid, s.ae_title, s.deletion_lock FROM subscription s"
            " JOIN workitem w ON w.id = s.workitem_id ORDER BY 1, 2"
        ),
        "global subscriptions": [
            (*columns, as_told(keys))
            for keys, *columns in select(
                "SELECT keys, ae_title, uid, deletion_lock FROM global_subscription ORDER BY 2, 3"
            )
        ],
        "performed steps": [
            (*columns, as_told(data))
            for data, *columns in select(
                "SELECT data, sop_instance_uid, status, remark FROM performed_procedure_step"
            )
        ],
        "scheduled steps": select("SELECT status FROM scheduled_procedure_step"),
        "purged": select("SELECT sop_instance_uid FROM purged_workitem"),
    }


def what_is_in_the_audit():
    return select("SELECT what, about, detail FROM audit WHERE what <> 'token made' ORDER BY id")


def what_has_happened():
    """The events in their order: of what, type, information, whether initial, who is told."""
    return [
        (uid, kind, as_told(data), initial, who)
        for data, uid, kind, initial, who in select(
            "SELECT e.data, e.sop_instance_uid, e.event_type, e.initial,"
            " (SELECT group_concat(o.receiver) FROM outbox o WHERE o.event_id = e.id)"
            " FROM workitem_event e ORDER BY e.id"
        )
    ]


def locks_kept():
    return [lock for (lock,) in select("SELECT transaction_uid FROM workitem") if lock]


class Run(NamedTuple):
    """What came of a scenario by one door.

    answers  of each step
    stored   what_is_stored
    events   what_has_happened
    audit    what_is_in_the_audit
    read     each object as the door gives it
    found    what each search found
    texts    all that the door has answered
    locks    the Transaction UIDs that are kept
    """

    answers: list
    stored: dict
    events: list
    audit: list
    read: dict
    found: list
    texts: list
    locks: list


def clear():
    """Forget all that a scenario has left."""
    for model in reversed(MODELS):
        if model not in (Token, Mark, Audit):
            model.delete().execute()
    purge_audit("9999")


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """A running appliance for all of the scenarios."""
    running = Running(load_config(write_config(tmp_path_factory.mktemp("box"), SETTINGS)))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def run(box):
    """Gives a function that runs a scenario by a door, once."""

    @functools.cache
    def run(name, door):
        scenario = ALL[name]
        box.write(clear)
        with pytest.MonkeyPatch.context() as patch, DOORS[door].opened(box) as opened:
            if scenario.setting:
                section, key, value = re.fullmatch(
                    r"(\w+)\.(\w+) = (\w+)", scenario.setting
                ).groups()
                patch.setattr(getattr(box.config, section), key, value == "True")
            answers = [opened.answer(step) for step in scenario.steps]
            found, knows = opened.seen, {}
            for of in UIDS:
                mpps = " mpps" if of == "exam" else ""
                opened.last = None
                opened.answer(Step(f"retrieve{mpps}", of, ("-",), ""))
                knows[of] = opened.last
            return Run(
                answers,
                box.read(what_is_stored),
                box.read(what_has_happened),
                box.read(what_is_in_the_audit),
                knows,
                found,
                opened.texts,
                box.read(locks_kept),
            )

    return run


# The tests.


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("scenario", ALL)
def test_each_step_has_its_outcome(run, scenario, door):
    steps = ALL[scenario].steps
    told = dict(enumerate(zip(steps, run(scenario, door).answers, strict=True)))
    if door == "HTTP":
        told = {n: pair for n, pair in told.items() if pair[0].on_the_web}
        expected = {n: on_the_web(step) for n, (step, _) in told.items()}
    else:
        expected = {n: step.status for n, (step, _) in told.items()}
    got = {n: answer for n, (_, answer) in told.items()}
    assert got == expected


@pytest.mark.parametrize("door", OTHERS)
@pytest.mark.parametrize("scenario", ALL)
def test_what_is_stored_is_the_same_by_each_door(run, scenario, door):
    assert run(scenario, door).stored == run(scenario, "core").stored


@pytest.mark.parametrize("door", OTHERS)
@pytest.mark.parametrize("scenario", ALL)
def test_what_has_happened_is_the_same_by_each_door(run, scenario, door):
    assert run(scenario, door).events == run(scenario, "core").events


@pytest.mark.parametrize("door", OTHERS)
@pytest.mark.parametrize("scenario", [name for name in ALL if name not in REFUSED_ON_THE_WEB])
def test_the_audit_is_the_same_by_each_door(run, scenario, door):
    assert run(scenario, door).audit == run(scenario, "core").audit


@pytest.mark.parametrize("door", OTHERS)
@pytest.mark.parametrize("scenario", ALL)
def test_what_is_read_is_the_same_by_each_door(run, scenario, door):
    """The data sets of N-GET and of the web's retrieve are equal."""
    assert run(scenario, door).read == run(scenario, "core").read


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("scenario", [name for name, one in ALL.items() if one.searches])
def test_each_search_finds_the_same_by_each_door(run, scenario, door):
    """T-WEB-12: C-FIND and the search of the web."""
    assert run(scenario, door).found == [step.found for step in ALL[scenario].searches]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("scenario", ALL)
def test_no_door_tells_a_lock(run, scenario, door):
    """Neither in an answer nor in the words of a refusal; T-WEB-03."""
    found = run(scenario, door)
    told = "\n".join(found.texts) + json.dumps([found.read, found.found])
    assert [lock for lock in {*found.locks, LOCK, OTHER_LOCK} if lock in told] == []
    assert not any("00081195" in (one or {}) for one in found.read.values())


# What each door has of its own.


def test_an_ae_that_we_could_not_call_is_subscribed_over_the_web_alone(box):
    """It is told by WebSocket (PS3.18 11.10); over DIMSE it is C308 (PS3.4 CC.2.3.3)."""
    box.write(clear)
    step = Step("subscribe", "all", ("NOBODY",), "C308")
    told = {}
    for name, door in DOORS.items():
        with door.opened(box) as opened:
            told[name] = opened.answer(step)
    assert told == {"core": "C308", "DIMSE": "C308", "HTTP": (201, "")}


STATE_TEXT = "The submitted request is inconsistent with the state of the UPS Instance."
UPDATE_TEXT = "The submitted request is inconsistent with the current state of the Workitem."


@pytest.mark.parametrize(
    ("method", "path", "body", "text"),
    [
        ("POST", "?transaction-uid=2.25.1&transaction=2.25.2", "[{}]", UPDATE_TEXT),
        ("POST", "", "[]", UPDATE_TEXT),
        ("POST", "", "[{}, {}]", UPDATE_TEXT),
        ("POST", "", "[", UPDATE_TEXT),
        ("PUT", "/state", "[]", STATE_TEXT),
        ("PUT", "/state", "[", STATE_TEXT),
        ("PUT", "/state", '[{"00741000": {"vr": "CS", "Value": [{}]}}]', STATE_TEXT),
    ],
)
def test_a_change_that_cannot_be_read_is_refused_in_the_words_of_the_standard(
    box, method, path, body, text
):
    """T-WEB-20."""
    box.write(clear)
    with Http.opened(box) as web:
        web.answer(Step("create", "chest", ("chest",), "0000"))
        url = f"/workitems/{UIDS['chest']}{path}"
        answer = web.client.request(method, url, content=body, headers=JSON)
        assert (answer.status_code, warning_of(answer)) == (400, text)


# The table is whole.


def rows_of(operation, status):
    """The row of OUTCOMES that the web answers with."""
    return (operation if (operation, status) in OUTCOMES else "*"), status


REACHED = {
    rows_of(step.operation, Status(int(step.status[:4], 16))) for step in STEPS if not step.web
}
REASONS = {(row.operation, row.status): row.because for row in table(UNREACHED, status=read_status)}


@pytest.mark.parametrize("row", OUTCOMES, ids=lambda row: f"{row[0]} {row[1]:04X}")
def test_every_outcome_is_reached_by_a_scenario_or_there_is_a_reason(row):
    assert (row in REACHED) != (row in REASONS)


@pytest.mark.parametrize("status", WARNINGS, ids=lambda status: f"{status:04X}")
def test_every_warning_is_reached_by_a_scenario(status):
    assert f"{status:04X}" in {step.status for step in STEPS if not step.web}


def test_every_reason_is_of_an_outcome():
    assert REASONS.keys() <= OUTCOMES.keys()


def test_every_operation_of_workitems_and_performed_steps_is_in_a_scenario():
    wanted = {
        route.operation
        for route in DICOM_ROUTES
        if "scheduled-procedure" not in route.path and "commitment" not in route.path
    }
    assert wanted | {"create mpps"} == {s.operation for s in STEPS if s.operation not in AT_THE_BOX}


def test_every_data_set_is_used_in_a_scenario():
    assert DATA.keys() - {step.name for step in STEPS} == set()
