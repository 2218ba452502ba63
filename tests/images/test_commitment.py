"""Section 12, AVAILABILITY: are my images safe? Orthanc is the archive, dcmjs-dimse the CT.

T-SC-01 to T-SC-10, T-SCWEB-01 to T-SCWEB-12, T-IAN-01 to T-IAN-03.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import datetime
import json
import queue
import socket
import sqlite3
import threading
import time
import warnings

import httpx
import peers
import pytest
from archive import AE_TITLE, CT_IMAGE, Image, archive_in, series
from conftest import NOON, write_config
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from test_association import (
    IMPLICIT,
    Peer,
    associate_rq,
    context,
    echo,
    in_pdus,
    read_messages,
    role,
    word,
)
from test_delivery import PATIENCE_S, BareWatcher, Silent
from test_delivery import impatient as silence_is_failure
from test_dicomweb_workitems import JSON, XML_PARTS
from test_mpps import creation, dataset, ending, serving, stored_form, unscheduled_item
from test_mpps import read as read_stored
from test_mpps import series as performed_series
from test_order_life import refused
from test_pages import csrf_of, employ, visiting, words_of

from minris.access.context import Actor, utc_now
from minris.access.users import make_token
from minris.config.ini import ConfigError, Device, load_config
from minris.dataset.dicom_json import from_json
from minris.dataset.dicom_xml import from_xml, to_xml
from minris.dataset.elements import ElementIndex, encode_items, text_elements
from minris.dataset.search import to_syntax
from minris.delivery.archive import CommitmentDesk
from minris.delivery.receivers import Delivery, Rounds, due_in_lanes
from minris.dimse.archive import ArchiveSearch
from minris.housekeeping.retention import purge
from minris.images.availability import notify_availability
from minris.images.commitment import (
    Evidence,
    commitment_counts,
    commitment_result,
    due_commitments,
    judged_instances,
    recent_commitments,
    record_evidence,
    request_commitment,
    try_commitment_again,
)
from minris.images.references import Reference, notified_instances
from minris.interchange.whole_store import export_store
from minris.mpps.performed import create_mpps, set_mpps
from minris.outbox import RESULT_LANE, due_receivers
from minris.standard.dictionary import tag_of
from minris.standard.status import Status
from minris.standard.uids import (
    INSTANCE_AVAILABILITY,
    MPPS,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    STUDY_ROOT_FIND,
    VERIFICATION,
    new_uid,
)
from minris.store.models import Commitment, database
from minris.store.rows import erase, fetch_rows
from minris.store.sqlite import backup_store
from minris.upper_layer.caller import Caller, DeliveryError
from minris.upper_layer.pdus import NO_DATA_SET, AcceptedContext, encode_command, message_pdus

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
MISSING, CONFLICT, NO_IMAGE, UNCHECKED, IN_USE = 0x0112, 0x0119, 0x0122, 0x0110, 0x0131
ACCEPTED = 0x0000
REFERENCES = tag_of("ReferencedSOPSequence")


# What is asked, and what comes back.


def flat(images):
    """Referenced SOP Sequence of images."""
    items = [
        dataset(ReferencedSOPClassUID=one.sop_class, ReferencedSOPInstanceUID=one.uid)
        for one in images
    ]
    return dataset(ReferencedSOPSequence=items)


def request(uid, images):
    """Action information of a request."""
    ds = flat(images)
    ds.TransactionUID = uid
    return ds


def by_study(images):
    """Referenced Study Sequence of images of one series (PS3.18 Table J.1-1)."""
    instances = [dataset(ReferencedSOPInstanceUID=one.uid) for one in images]
    of_class = dataset(
        ReferencedSOPClassUID=images[0].sop_class, ReferencedInstanceSequence=instances
    )
    of_series = dataset(
        SeriesInstanceUID=images[0].series, ReferencedInstancesBySOPClassSequence=[of_class]
    )
    study = dataset(StudyInstanceUID=images[0].study, ReferencedSeriesSequence=[of_series])
    return dataset(ReferencedStudySequence=[study])


def notice(images, availability="ONLINE", title=AE_TITLE, **changes):
    """An Instance Availability Notification of images of one series."""
    items = [
        dataset(
            ReferencedSOPClassUID=one.sop_class,
            ReferencedSOPInstanceUID=one.uid,
            InstanceAvailability=availability,
            RetrieveAETitle=title,
        )
        for one in images
    ]
    ds = dataset(
        ReferencedPerformedProcedureStepSequence=[],
        StudyInstanceUID=images[0].study,
        ReferencedSeriesSequence=[
            dataset(SeriesInstanceUID=images[0].series, ReferencedSOPSequence=items)
        ],
    )
    ds.update(dataset(**changes))
    return ds


def as_json(ds):
    return json.loads(ds.to_json())


def uids(images):
    return [one.uid for one in images]


class Verdicts(collections.namedtuple("Verdicts", "kind good bad")):
    """A result: event type (None on the web), UIDs that are safe, the others with their reasons."""


def heard(event):
    """The verdicts of an N-EVENT-REPORT as dcmjs-dimse has it; each image is there once."""
    data = event["dataset"]
    good = [one["ReferencedSOPInstanceUID"] for one in data.get("ReferencedSOPSequence", [])]
    failed = data.get("FailedSOPSequence", [])
    bad = {one["ReferencedSOPInstanceUID"]: one["FailureReason"] for one in failed}
    assert len({*good, *bad}) == len(good) + len(failed)
    return Verdicts(event["event"], good, bad)


def read(answer):
    """The data set of a web answer in JSON."""
    [found] = answer.json()
    return Dataset.from_json(found)


def verdicts_of(ds):
    """The verdicts of a flat result; each image is there once."""
    good = [one.ReferencedSOPInstanceUID for one in ds.get("ReferencedSOPSequence", [])]
    failed = ds.get("FailedSOPSequence", [])
    bad = {one.ReferencedSOPInstanceUID: one.FailureReason for one in failed}
    assert len({*good, *bad}) == len(good) + len(failed)
    return Verdicts(None, good, bad)


def instances_of(studies):
    """The instances in a sequence of studies, each with its study, series and class."""
    return [
        (study.StudyInstanceUID, one.SeriesInstanceUID, kind.ReferencedSOPClassUID, instance)
        for study in studies
        for one in study.ReferencedSeriesSequence
        for kind in one.ReferencedInstancesBySOPClassSequence
        for instance in kind.ReferencedInstanceSequence
    ]


# Who asks, who answers.


class Modality:
    """The CT: dcmjs-dimse, which asks, and hears results, in whatever order they come."""

    def __init__(self, listener):
        self.listener, self.port, self.results = listener, listener.port, {}

    def act(self, port, ds, called="MINRIS", calling="CT1"):
        """N-ACTION on an association of its own: the response."""
        [response] = peers.run_dimse(port, [action(ds)], calling, called)
        return response

    def ask(self, port, uid, images, called="MINRIS"):
        """Ask for commitment: the status."""
        return self.act(port, request(uid, images), called)["status"]

    def event(self, uid, timeout_s=PATIENCE_S):
        """The next result of a request, as it came."""
        while uid not in self.results:
            self._take(timeout_s)
        return self.results.pop(uid)

    def _take(self, timeout_s):
        event = self.listener.next_event(timeout_s)
        if "error" not in event:  # an appliance was stopped while it told us
            self.results[event["dataset"]["TransactionUID"]] = event

    def result(self, uid):
        return heard(self.event(uid))

    def has_heard(self, uid):
        """Whether a result of a request came, among those that are there."""
        with contextlib.suppress(TimeoutError):
            while True:
                self._take(0)
        return uid in self.results


@pytest.fixture(scope="module")
def modality():
    with peers.listening_dimse("CT1") as listener:
        yield Modality(listener)


class Console:
    """A CT's console in pynetdicom, which hears results: for what dcmjs-dimse does not show.

    answer  what it says to a result
    """

    def __init__(self, port=0, answer=0x0000, takes_role=True):
        self.port = port or peers.free_port()
        self.answer, self.takes_role = answer, takes_role
        self.events, self.requests = queue.Queue(), []
        self.listen()

    def listen(self):
        self.ae = ae = AE("CT1")
        roles = {"scu_role": False, "scp_role": True} if self.takes_role else {}
        ae.add_supported_context(STORAGE_COMMITMENT, **roles)
        handlers = [(evt.EVT_REQUESTED, self._requested), (evt.EVT_N_EVENT_REPORT, self._told)]
        ae.start_server((peers.HOST, self.port), block=False, evt_handlers=handlers)

    def _requested(self, event):
        self.requests.append(event.assoc.requestor.primitive)

    def _told(self, event):
        self.events.put((event.event_type, event.event_information))
        return self.answer, None

    def next(self, timeout_s=PATIENCE_S):
        """The next result: its Transaction UID, and its verdicts."""
        kind, ds = self.events.get(timeout=timeout_s)
        return ds.TransactionUID, verdicts_of(ds)._replace(kind=kind)

    def stop(self):
        self.ae.shutdown()


@pytest.fixture
def console():
    """Gives a function that starts a Console."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, **how):
            one = Console(*arguments, **how)
            stack.callback(one.stop)
            return one

        yield start


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Orthanc, for all tests that do not stop it."""
    with archive_in(tmp_path_factory.mktemp("orthanc")) as one:
        yield one


@pytest.fixture
def own_archive(tmp_path):
    """An Orthanc that the test may stop."""
    folder = tmp_path / "orthanc"
    folder.mkdir()
    with archive_in(folder) as one:
        yield one


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Failures are tried again after a moment."""
    monkeypatch.setattr("minris.conformance.services.RETRY_AFTER", (0.1,))
    monkeypatch.setattr("minris.delivery.archive.RETRY_AFTER", (0.1,))
    monkeypatch.setattr("minris.delivery.receivers.RETRY_AFTER", (0.1,))
    monkeypatch.setattr("minris.delivery.sockets.RETRY_AFTER", (0.1,))
    monkeypatch.setattr("minris.images.commitment.RETRY_AFTER", (0.1,))
    monkeypatch.setattr("minris.outbox.RETRY_AFTER", (0.1,))
    monkeypatch.setattr(Rounds, "PAUSE", 0.05)


def settings(ct_port, archive_port, more="", commitment="missing_minutes = 0", relational="yes"):
    """A config.ini with the CT and the archive."""
    return (
        f"[device CT room]\nhost = {peers.HOST}\nport = {ct_port}\n"
        f"[device Archive]\nae_title = {AE_TITLE}\nhost = {peers.HOST}\nport = {archive_port}\n"
        f"role = archive\nrelational_queries = {relational}\n[commitment]\n{commitment}\n{more}"
    )


@pytest.fixture
def box(run_appliance, modality, archive):
    """An appliance with the CT and the archive, which finds images by their UIDs alone."""
    return run_appliance(settings(modality.port, archive.port))


@pytest.fixture
def strict_box(run_appliance, modality, archive):
    """An appliance whose archive does not find images by their UIDs alone."""
    return run_appliance(settings(modality.port, archive.port, relational="no"))


@contextlib.contextmanager
def door_of(running, role="technologist", name=""):
    """An HTTP client of the base of DICOMweb."""
    name = name or new_uid()
    token = running.write(make_token, running.context(), name, role)
    headers = {"Authorization": f"Bearer {token}"}
    base = f"{running.url}/dicom-web"
    with httpx.Client(base_url=base, headers=headers, trust_env=False) as client:
        yield client


@pytest.fixture
def door(box):
    with door_of(box) as client:
        yield client


def put(running, uid, images, who="CT1"):
    """Ask in the core, as a machine does."""
    running.write(request_commitment, running.context(who), uid, stored_form(flat(images)))
    running.appliance.wake_delivery()


def post(door, uid, ds):
    """Ask for commitment over the web."""
    return door.post(f"/commitment-requests/{uid}", json=[as_json(ds)], headers=JSON)


def get(door, uid, **headers):
    return door.get(f"/commitment-requests/{uid}", headers=headers)


def answer_of(door, uid):
    """The answer with the result, when it is there."""
    deadline = time.monotonic() + PATIENCE_S
    while (answer := get(door, uid)).status_code == 202:
        assert time.monotonic() < deadline, "there is no result"
        time.sleep(0.02)
    assert answer.status_code == 200, answer.text
    return answer


def judged(door, ds):
    """Ask over the web, and wait for the result: its data set."""
    uid = new_uid()
    assert post(door, uid, ds).status_code == 202
    return read(answer_of(door, uid))


def request_row(uid):
    """A request as it is stored."""
    found = fetch_rows(Commitment, "transaction_uid = ? AND repeats = 0", uid)
    return found[0] if found else None


def once(running, uid, condition, words, timeout_s=PATIENCE_S):
    """Wait for something of a request: its row."""
    deadline = time.monotonic() + timeout_s
    while True:
        row = running.read(request_row, uid)
        if row and condition(row):
            return row
        assert time.monotonic() < deadline, f"{words}: {row and vars(row)}"
        time.sleep(0.02)


def once_failed(running, uid, times=1, timeout_s=PATIENCE_S):
    """Wait until it could not be judged, or told, so many times."""
    return once(running, uid, lambda row: row.failures >= times, "it did not fail", timeout_s)


def once_said_why(running, uid, times=1):
    """Wait until it could not be judged so many times, and it is known why."""
    return once(
        running, uid, lambda row: row.failures >= times and row.problem, "it is not said why"
    )


def once_looked_at(running, uid):
    return once(
        running, uid, lambda row: row.failures or row.state != "asked", "it is not looked at"
    )


def once_in(running, uid, state):
    return once(running, uid, lambda row: row.state == state, f"it is not {state}")


# Over DIMSE.


def test_all_that_the_archive_has_is_safe(box, modality, archive, tmp_path):
    """T-SC-01, T-SC-02, T-SC-10: type 1, each once; the CT had long released its association."""
    images, uid = series(4), new_uid()
    archive.receive(tmp_path, *images)
    response = modality.act(box.port, request(uid, images))
    assert response["status"] == ACCEPTED
    assert response["command"]["ActionTypeID"] == 1
    event = modality.event(uid)
    data = event["dataset"]
    assert heard(event) == (1, uids(images), {})
    assert "FailedSOPSequence" not in data
    assert {one["ReferencedSOPClassUID"] for one in data["ReferencedSOPSequence"]} == {CT_IMAGE}
    assert data["RetrieveAETitle"] == AE_TITLE
    assert not any("RetrieveAETitle" in one for one in data["ReferencedSOPSequence"])
    assert (event["sopClass"], event["sopInstance"]) == (
        STORAGE_COMMITMENT,
        STORAGE_COMMITMENT_INSTANCE,
    )
    assert (event["calling"], event["called"]) == ("MINRIS", "CT1")
    assert once_in(box, uid, "told").told_at


def test_three_of_four_are_safe(box, modality, archive):
    """T-SC-03, T-SC-10: type 2 with exactly the fourth failed."""
    images, uid = series(4), new_uid()
    archive.store(*images[:3])
    assert modality.ask(box.port, uid, images) == ACCEPTED
    event = modality.event(uid)
    assert heard(event) == (2, uids(images[:3]), {images[3].uid: MISSING})
    items = event["dataset"]["ReferencedSOPSequence"] + event["dataset"]["FailedSOPSequence"]
    assert not any("RetrieveAETitle" in one for one in items)


def test_none_is_safe(box, modality):
    """T-SC-04: type 2 without (0008,1199), and nowhere to retrieve from."""
    images, uid = series(2), new_uid()
    assert modality.ask(box.port, uid, images) == ACCEPTED
    event = modality.event(uid)
    assert heard(event) == (2, [], dict.fromkeys(uids(images), MISSING))
    assert "ReferencedSOPSequence" not in event["dataset"]
    assert not event["dataset"].get("RetrieveAETitle")


def test_an_image_of_another_class_is_a_conflict(box, modality, archive):
    """T-SC-05."""
    [image], [right] = series(1), series(1)
    archive.store(image, right)
    uid = new_uid()
    assert modality.ask(box.port, uid, [image._replace(sop_class=MR_IMAGE), right]) == ACCEPTED
    assert modality.result(uid) == (2, [right.uid], {image.uid: CONFLICT})


@pytest.mark.parametrize(
    "sop_class",
    [
        VERIFICATION,
        STORAGE_COMMITMENT,
        MPPS,
        "1.2.840.10008.5.1.1.4",
        STUDY_ROOT_FIND,
    ],
)
def test_what_is_no_object_of_storage_is_not_supported(door, archive, sop_class):
    """T-SC-05: 0122 for a class that nobody stores."""
    [image], [other] = series(1), series(1)
    archive.store(image)
    found = verdicts_of(judged(door, flat([image, other._replace(sop_class=sop_class)])))
    assert found == (None, [image.uid], {other.uid: NO_IMAGE})


@pytest.mark.parametrize("sop_class", ["1.2.840.10008.1.20.2", STORAGE_COMMITMENT_INSTANCE])
def test_a_service_that_has_storage_in_its_name_is_no_object(door, sop_class):
    """Storage Commitment Pull Model is no class of stored objects either."""
    [image] = series(1, sop_class)
    assert verdicts_of(judged(door, flat([image]))).bad == {image.uid: NO_IMAGE}


def test_a_class_that_nobody_knows_may_be_stored(door):
    """A private class, or one newer than our dictionary: it is looked for."""
    [private], [new] = series(1, "1.3.12.2.1107.5.9.1"), series(1, "1.2.840.10008.5.1.4.1.1.999.1")
    found = verdicts_of(judged(door, flat([private, new])))
    assert found.bad == dict.fromkeys([private.uid, new.uid], MISSING)


def action(ds, **changes):
    """An N-ACTION for dcmjs-dimse."""
    return {
        "op": "n-action",
        "sopClass": STORAGE_COMMITMENT,
        "instance": STORAGE_COMMITMENT_INSTANCE,
        "type": 1,
        "dataset": as_json(ds),
    } | changes


def with_references(*items):
    """A request with these items."""
    return dataset(TransactionUID=new_uid(), ReferencedSOPSequence=list(items))


def usual(uid=None):
    return request(new_uid() if uid is None else uid, series(1))


def of(uid):
    """An item that refers to an image."""
    return dataset(ReferencedSOPClassUID=CT_IMAGE, ReferencedSOPInstanceUID=uid)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_request_that_is_refused_is_dead(box, modality):
    """T-SC-07: a failure, nothing is kept, no event, and its Transaction UID is not in use."""
    without_references = usual()
    del without_references["ReferencedSOPSequence"]
    refusals = {
        "another instance": (action(usual(), instance=new_uid()), 0x0112),
        "another action": (action(usual(), type=2), 0x0123),
        "no references": (action(without_references), 0x0120),
        "empty references": (action(with_references()), 0x0121),
        "no class": (action(with_references(dataset(ReferencedSOPInstanceUID="2.25.1"))), 0x0120),
        "an instance twice": (action(with_references(of("2.25.1"), of("2.25.1"))), 0x0115),
        "no UID": (action(with_references(of("1.02.3"))), 0x0115),
        "an empty transaction": (action(usual("")), 0x0121),
        "no transaction": (action(flat(series(1))), 0x0120),
    }
    operations = [operation for operation, _ in refusals.values()]
    responses = peers.run_dimse(box.port, operations, "CT1")
    statuses = {name: one["status"] for name, one in zip(refusals, responses, strict=True)}
    assert statuses == {name: status for name, (_, status) in refusals.items()}
    assert box.read(recent_commitments) == []
    uid = operations[0]["dataset"]["00081195"]["Value"][0]
    assert modality.ask(box.port, uid, series(1)) == ACCEPTED
    assert modality.result(uid).kind == 2
    assert len(modality.results) == 0


def test_the_form_of_the_web_is_none_of_dimse(box):
    """PS3.4 Table J.3-1 has Referenced SOP Sequence alone, and the report has no other form."""
    ds = by_study(series(1))
    ds.TransactionUID = new_uid()
    assert peers.run_dimse(box.port, [action(ds)], "CT1")[0]["status"] == 0x0120


@pytest.mark.parametrize("title", ["US1", "STRANGER"])
def test_who_could_not_be_told_is_refused(run_appliance, modality, archive, title):
    """0124 at the request: a device without an address, or one that is not registered."""
    more = "[dicom]\naccept_unknown_devices = yes\n"
    running = run_appliance(settings(modality.port, archive.port, more))
    response = modality.act(running.port, request(new_uid(), series(1)), calling=title)
    assert response["status"] == 0x0124
    assert response["errorComment"] == f"{title} is not registered with an address"


def n_action(uid, images, number=1, explicit=False):
    """An N-ACTION request in bytes."""
    set_ = encode_command(
        CommandField=0x0130,
        MessageID=1,
        RequestedSOPClassUID=STORAGE_COMMITMENT,
        RequestedSOPInstanceUID=STORAGE_COMMITMENT_INSTANCE,
        ActionTypeID=1,
        CommandDataSetType=1,
    )
    items = [
        text_elements(ReferencedSOPClassUID=one.sop_class, ReferencedSOPInstanceUID=one.uid)
        for one in images
    ]
    sequence = encode_items(REFERENCES, map(bytes, items))
    data = bytes(text_elements(TransactionUID=uid)) + sequence
    return in_pdus(number, set_, to_syntax(data, explicit))


def status_of(peer):
    """The status of the next response, and the words beside it."""
    [(fields, _)] = read_messages([peer.receive(PATIENCE_S)])
    return word(fields, 0x0900), fields.get(0x0902, b"").decode().strip()


def asking(port, number=1, user=(), **how):
    """A CT on bare sockets with a presentation context for storage commitment."""
    proposed = context(number, STORAGE_COMMITMENT, IMPLICIT)
    peer = Peer(port)
    negotiated = peer.associate(associate_rq(proposed, user=user, **how))
    assert negotiated.contexts[number] == (0, IMPLICIT)
    return peer, negotiated


@pytest.mark.parametrize("count", [pytest.param(20_001, marks=pytest.mark.long), 100_000])
def test_too_many_references_are_refused_in_words(box, modality, count):
    """0213: nothing is kept of it; the next request on the same association is served."""
    image = series(1)[0]
    many = [image._replace(uid=f"{image.uid[:50]}.{number}") for number in range(count)]
    peer, _ = asking(box.port)
    uid = new_uid()
    with peer:
        peer.send(n_action(uid, many))
        status, words = status_of(peer)
        assert status == 0x0213
        assert len(words) > 20
        assert box.read(request_row, uid) is None
        peer.send(n_action(uid, [image]))
        assert status_of(peer) == (ACCEPTED, "")
        peer.release()
    assert modality.result(uid).bad == {image.uid: MISSING}


def test_how_many_are_too_many_is_a_setting(run_appliance, modality, archive):
    """The web says 413 with the same words."""
    limit = "missing_minutes = 0\nmaximum_instances = 3"
    running = run_appliance(settings(modality.port, archive.port, commitment=limit))
    words = "4 images are more than the 3 of one request"
    response = modality.act(running.port, request(new_uid(), series(4)))
    assert (response["status"], response["errorComment"]) == (0x0213, words)
    with door_of(running) as door:
        for form in (flat, by_study):
            answer = post(door, new_uid(), form(series(4)))
            assert (answer.status_code, words in answer.text) == (413, True), answer.text
        assert post(door, new_uid(), flat(series(3))).status_code == 202


def test_an_even_presentation_context_id_is_served(box, modality, archive):
    """dcm4che's client numbers from 2 (PS3.8 9.3.2.2 has odd ones)."""
    images, uid = series(1), new_uid()
    archive.store(*images)
    peer, _ = asking(box.port, number=2)
    with peer:
        peer.send(n_action(uid, images, number=2))
        assert status_of(peer) == (ACCEPTED, "")
        peer.release()
    assert modality.result(uid) == (1, uids(images), {})


@pytest.mark.parametrize("proposed", [(1, 0), (0, 1), (1, 1)])
def test_the_requesters_role_selection_is_answered(box, modality, archive, proposed):
    """PS3.4 J.3.3.1.2, J.2.1: SCU, SCP, or both, as proposed; whoever is SCU is served."""
    images, uid = series(1), new_uid()
    archive.store(*images)
    peer, negotiated = asking(box.port, user=(role(STORAGE_COMMITMENT, *proposed),))
    with peer:
        assert negotiated.roles == {STORAGE_COMMITMENT: proposed}
        if proposed[0]:
            peer.send(n_action(uid, images))
            assert status_of(peer) == (ACCEPTED, "")
        peer.release()
    if proposed[0]:
        assert modality.result(uid).kind == 1


def test_the_report_comes_from_the_very_title_that_was_called(run_appliance, modality, archive):
    """PS3.4 J.3.3: whatever we are called by, where that is not checked."""
    more = "[dicom]\ncheck_called_ae_title = no\n"
    running = run_appliance(settings(modality.port, archive.port, more))
    for title in ("STORECOMMIT", "minris"):
        images, uid = series(1), new_uid()
        assert modality.ask(running.port, uid, images, called=title) == ACCEPTED
        assert modality.event(uid)["calling"] == title


def test_the_report_proposes_that_we_are_scp(run_appliance, console, archive):
    """T-SC-01: role selection SCU 0, SCP 1, for the Push Model alone, on a new association."""
    ct = console()
    running = run_appliance(settings(ct.port, archive.port))
    images, uid = series(1), new_uid()
    archive.store(*images)
    peer, _ = asking(running.port)
    with peer:  # which stays open
        peer.send(n_action(uid, images))
        assert status_of(peer) == (ACCEPTED, "")
        assert ct.next() == (uid, (1, uids(images), {}))
    [primitive] = ct.requests
    roles = [item for item in primitive.user_information if hasattr(item, "scp_role")]
    assert [(one.sop_class_uid, one.scu_role, one.scp_role) for one in roles] == [
        (STORAGE_COMMITMENT, False, True)
    ]
    proposed = {one.abstract_syntax for one in primitive.presentation_context_definition_list}
    assert proposed == {STORAGE_COMMITMENT}


def test_a_requester_that_does_not_take_us_as_scp_is_not_told(run_appliance, console, archive):
    """It is told when it does; the page says why it was not."""
    ct = console(takes_role=False)
    running = run_appliance(settings(ct.port, archive.port))
    images, uid = series(1), new_uid()
    peer, _ = asking(running.port)
    with peer:
        peer.send(n_action(uid, images))
        assert status_of(peer) == (ACCEPTED, "")
    row = once(running, uid, lambda row: row.problem, "it was told")
    assert row.problem.startswith("it does not take storage commitment with us as SCP")
    assert "events_without_role" in row.problem
    ct.stop()
    ct.takes_role = True
    ct.listen()
    assert ct.next()[0] == uid


# One name, one request.


def test_a_second_list_under_a_name_in_use_fails_whole(run_appliance, modality, own_archive):
    """T-SC-06: 0131 for all of it, at once; the first is judged as if nothing had been."""
    first, second, uid = series(2), series(2), new_uid()
    own_archive.store(*first, *second)
    running = run_appliance(settings(modality.port, own_archive.port))
    own_archive.stop()
    assert modality.ask(running.port, uid, first) == ACCEPTED
    once_failed(running, uid)
    assert modality.ask(running.port, uid, second) == ACCEPTED
    assert modality.result(uid) == (2, [], dict.fromkeys(uids(second), IN_USE))
    assert not modality.has_heard(uid)
    own_archive.start()
    assert modality.result(uid) == (1, uids(first), {})


def test_the_same_request_again_is_one_request(run_appliance, modality, own_archive):
    """T-SC-06: the CT lost our answer; it is told once."""
    images, uid, last = series(2), new_uid(), new_uid()
    own_archive.store(*images)
    running = run_appliance(settings(modality.port, own_archive.port))
    own_archive.stop()
    for _ in range(2):
        assert modality.ask(running.port, uid, images) == ACCEPTED
    own_archive.start()
    assert modality.result(uid) == (1, uids(images), {})
    assert modality.ask(running.port, last, images) == ACCEPTED
    assert modality.result(last) == (1, uids(images), {})
    assert not modality.has_heard(uid)


def test_the_same_request_again_before_its_result_was_told_is_one_request(
    run_appliance, console, archive
):
    """T-SC-06: judged, but not told yet, it is pending all the same; 0131 would belie its result."""
    ct = console()
    ct.stop()
    running = run_appliance(settings(ct.port, archive.port))
    images, uid = series(2), new_uid()
    archive.store(*images)
    peer, _ = asking(running.port)
    with peer:
        peer.send(n_action(uid, images))
        assert status_of(peer) == (ACCEPTED, "")
        once_in(running, uid, "judged")
        peer.send(n_action(uid, images))
        assert status_of(peer) == (ACCEPTED, "")
    ct.listen()
    assert ct.next() == (uid, (1, uids(images), {}))
    once_in(running, uid, "told")
    assert running.read(lambda: len(fetch_rows(Commitment, "1 = 1"))) == 1


def test_a_name_that_is_used_up_is_in_use(box, modality, archive):
    """T-SC-06: after its result was told, too: never a second success under one name."""
    images, uid = series(2), new_uid()
    archive.store(*images)
    assert modality.ask(box.port, uid, images) == ACCEPTED
    assert modality.result(uid).kind == 1
    once_in(box, uid, "told")
    assert modality.ask(box.port, uid, images) == ACCEPTED
    assert modality.result(uid) == (2, [], dict.fromkeys(uids(images), IN_USE))


# Evidence.


def perform(ctx, images):
    """The CT reports a performed step that made the images."""
    references = list(flat(images).ReferencedSOPSequence)
    made = performed_series(SeriesInstanceUID=images[0].series, ReferencedImageSequence=references)
    uid, step = new_uid(), unscheduled_item(StudyInstanceUID=images[0].study)
    create_mpps(ctx, uid, stored_form(creation(step)))
    set_mpps(ctx, uid, stored_form(ending(PerformedSeriesSequence=[made])))


def notify(ctx, images, availability="ONLINE", who=AE_TITLE, title=AE_TITLE):
    """An archive notifies availability."""
    data = stored_form(notice(images, availability, title))
    notify_availability(ctx.by(Actor(who)), new_uid(), data)


def told_of(running, tell, images, *how):
    """Somebody tells an appliance of images."""
    running.write(tell, running.context("CT1"), images, *how)


def test_an_image_of_an_unknown_study_cannot_be_checked(strict_box, modality, archive):
    """0110: the archive has it, and must not be asked for it by its UID alone."""
    images, uid = series(2), new_uid()
    archive.store(*images)
    put(strict_box, uid, images)
    assert modality.result(uid) == (2, [], dict.fromkeys(uids(images), UNCHECKED))


@pytest.mark.parametrize("tell", [perform, notify])
def test_the_study_is_known_by_what_was_reported(strict_box, modality, archive, tell):
    """A performed step of the CT, or a notice of the archive, says where to look."""
    images, uid = series(4), new_uid()
    archive.store(*images[:3])
    told_of(strict_box, tell, images)
    put(strict_box, uid, images)
    assert modality.result(uid) == (2, uids(images[:3]), {images[3].uid: MISSING})


def test_the_study_is_known_by_the_request(strict_box, archive):
    """The web's study form says itself where to look; the flat form of the same does not."""
    images = series(3)
    archive.store(*images[:2])
    with door_of(strict_box) as door:
        assert verdicts_of(judged(door, flat(images))).bad == dict.fromkeys(uids(images), UNCHECKED)
        found = judged(door, by_study(images))
    [failed] = instances_of(found.FailedStudySequence)
    assert (failed[3].ReferencedSOPInstanceUID, failed[3].FailureReason) == (images[2].uid, MISSING)


def test_a_request_of_several_studies_is_judged_study_by_study(strict_box, modality, archive):
    """Two are known, a third is not."""
    known, absent, unknown, uid = series(3), series(2), series(1), new_uid()
    archive.store(*known, *unknown)
    told_of(strict_box, perform, known)
    told_of(strict_box, notify, absent)
    put(strict_box, uid, [*absent, *unknown, *known])
    bad = dict.fromkeys(uids(absent), MISSING) | {unknown[0].uid: UNCHECKED}
    assert modality.result(uid) == (2, uids(known), bad)


def test_a_uid_that_begins_another_is_not_mistaken_for_it(strict_box, archive):
    """2.25.7 is looked up in the step that made it, not in a newer one that made 2.25.70."""
    [short], [long_] = series(1), series(1)
    short = short._replace(uid=short.uid[:40])
    long_ = long_._replace(uid=f"{short.uid}1")
    archive.store(short, long_)
    told_of(strict_box, perform, [short])
    told_of(strict_box, perform, [long_])
    with door_of(strict_box) as door:
        assert verdicts_of(judged(door, flat([short]))).good == [short.uid]


def test_an_image_that_comes_late_is_safe_all_the_same(run_appliance, modality, own_archive):
    """Within missing_minutes it is looked for again."""
    images, uid = series(4), new_uid()
    own_archive.store(*images[:3])
    text = settings(modality.port, own_archive.port, commitment="missing_minutes = 5")
    running = run_appliance(text)
    put(running, uid, images)
    once_failed(running, uid, times=3)
    assert not modality.has_heard(uid)
    own_archive.store(images[3])
    assert modality.result(uid) == (1, uids(images), {})


def test_a_study_that_is_reported_after_the_request(run_appliance, archive, modality):
    """Many a CT asks first and completes its performed step then: within missing_minutes."""
    images, uid = series(2), new_uid()
    archive.store(*images)
    text = settings(modality.port, archive.port, commitment="missing_minutes = 5", relational="no")
    running = run_appliance(text)
    put(running, uid, images)
    once_looked_at(running, uid)
    told_of(running, perform, images)
    assert modality.result(uid) == (1, uids(images), {})


TWO_ARCHIVES = "".join(f"[device {one}]\nae_title = {one}\nrole = archive\n" for one in "AB")


@pytest.mark.parametrize("archives", ["", TWO_ARCHIVES], ids=["none", "two"])
def test_no_archive_no_success(run_appliance, modality, archives):
    """0110 without an archive, and where two devices are archives and none is set."""
    text = f"[device CT room]\nhost = {peers.HOST}\nport = {modality.port}\n"
    running = run_appliance(f"{text}{archives}[commitment]\nmissing_minutes = 0\n")
    images, uid = series(1), new_uid()
    put(running, uid, images)
    assert modality.result(uid) == (2, [], {images[0].uid: UNCHECKED})


def test_the_archive_that_is_set_is_asked(run_appliance, archive, modality):
    """[commitment] archive, though another device has the role."""
    images = series(1)
    archive.store(*images)
    more = f"[device Old archive]\nae_title = OLD\nhost = {peers.HOST}\nport = 9\nrole = archive\n"
    commitment = f"missing_minutes = 0\narchive = {AE_TITLE}"
    running = run_appliance(settings(modality.port, archive.port, more, commitment))
    with door_of(running) as door:
        assert verdicts_of(judged(door, flat(images))).good == uids(images)


# The archive is down.


def test_a_stopped_archive_never_commits_and_success_follows_when_it_is_back(
    run_appliance, modality, own_archive
):
    """T-SC-09: no report while it is down; started again, success by itself."""
    images, uid = series(3), new_uid()
    own_archive.store(*images)
    running = run_appliance(settings(modality.port, own_archive.port))
    own_archive.stop()
    assert modality.ask(running.port, uid, images) == ACCEPTED
    row = once_failed(running, uid, times=4)
    assert (row.state, row.judged_at) == ("asked", "")
    assert row.problem == "cannot connect: connection refused"
    assert not modality.has_heard(uid)
    own_archive.start()
    assert modality.result(uid) == (1, uids(images), {})


def test_an_archive_that_loses_an_image_before_it_is_asked(box, modality, archive):
    """What was there once is no evidence."""
    images, uid = series(2), new_uid()
    archive.store(*images)
    archive.lose(images[0])
    put(box, uid, images)
    assert modality.result(uid) == (2, [images[1].uid], {images[0].uid: MISSING})


# With a clock of our own.


ARCHIVE = Device(
    "Archive", (AE_TITLE,), host=peers.HOST, port=11112, role="archive", relational_queries=True
)
CT = Device("CT room", ("CT1",), host=peers.HOST, port=11113)
NOBODY = Evidence({}, problem="cannot connect: connection refused")


@pytest.fixture
def noon(ctx):
    """At noon the CT has an address."""
    return dataclasses.replace(ctx, devices=[CT, ARCHIVE])


def at(ctx, **later):
    return dataclasses.replace(ctx, now=lambda: NOON + datetime.timedelta(**later))


def ask(ctx, images, uid="2.25.900", **how):
    """A request in the core: its row ID."""
    request_commitment(ctx, uid, stored_form(flat(images)), **how)
    return request_row(uid).id


def seen(*images):
    return {one.uid: (one.sop_class, AE_TITLE) for one in images}


def verdicts(commitment_id):
    return [one.verdict for one in judged_instances(commitment_id)]


def test_without_evidence_to_the_end_of_its_time_it_is_0110(noon):
    """give_up_hours: not a second before, and what was seen meanwhile stays safe."""
    images = series(2)
    one = ask(noon, images)
    record_evidence(noon, one, NOBODY._replace(found=seen(images[0])))
    record_evidence(at(noon, hours=23, minutes=59), one, NOBODY)
    assert (request_row("2.25.900").state, verdicts(one)) == ("asked", ["", "0000"])
    record_evidence(at(noon, hours=24), one, NOBODY)
    assert (request_row("2.25.900").state, verdicts(one)) == ("judged", ["0110", "0000"])
    found = ElementIndex(commitment_result(request_row("2.25.900")).data)
    [failed] = found.items(tag_of("FailedSOPSequence"))
    assert failed.get("FailureReason") == str(UNCHECKED)


def test_a_missing_image_is_missing_after_missing_minutes(noon):
    images = series(2)
    one = ask(noon, images)
    evidence = Evidence(seen(images[0]), frozenset({images[1].uid}))
    record_evidence(at(noon, minutes=4, seconds=59), one, evidence)
    assert verdicts(one) == ["", "0000"]
    record_evidence(at(noon, minutes=5), one, evidence)
    assert verdicts(one) == ["0112", "0000"]


def test_a_verdict_is_for_good(noon):
    """Each instance is judged once: later evidence does not touch it."""
    [image, other] = series(2)
    one = ask(noon, [image, other])
    record_evidence(noon, one, Evidence(seen(image)))
    missing = Evidence({}, frozenset({image.uid, other.uid}))
    record_evidence(at(noon, hours=1), one, missing)
    assert verdicts(one) == ["0112", "0000"]


def test_a_day_of_silence_then_the_clock_goes_back(noon):
    """What was put off is due again though the clock was set back by a day."""
    ask(noon, series(1))
    record_evidence(noon, request_row("2.25.900").id, NOBODY)
    assert due_commitments(noon) == []
    assert len(due_commitments(at(noon, days=-1))) == 1
    assert len(due_commitments(at(noon, seconds=1))) == 1


def test_a_result_that_nobody_takes_is_given_up(noon):
    """report_hours; tried again by a person it has its time anew."""
    one = ask(noon, series(1))
    record_evidence(at(noon, hours=24), one, NOBODY)
    tell_results(at(noon, hours=24 + 71), problem="cannot connect: no answer")
    assert request_row("2.25.900").state == "judged"
    tell_results(at(noon, hours=24 + 72), problem="cannot connect: no answer")
    assert request_row("2.25.900").state == "given up"
    again = at(noon, hours=24 + 100)
    assert due_receivers(again, RESULT_LANE) == []
    try_commitment_again(again, "2.25.900")
    assert due_receivers(again, RESULT_LANE) == ["CT1"]
    assert tell_results(again, problem="cannot connect: no answer") == ["2.25.900"]
    assert request_row("2.25.900").state == "judged"


def test_a_result_that_is_not_told_is_not_dropped(noon):
    """keep_days may be shorter than report_hours: the CT is told all the same."""
    noon.config.commitment.keep_days = 1
    one = ask(noon, series(1))
    record_evidence(noon, one, Evidence(seen(*series(1))))
    record_evidence(at(noon, minutes=5), one, NOBODY._replace(found={}))
    record_evidence(at(noon, hours=24), one, NOBODY)
    assert request_row("2.25.900").state == "judged"
    purge(at(noon, hours=24 + 25))
    assert request_row("2.25.900").state == "judged"


def telling(ctx, send, call):
    """What tells results, with a sender of the test."""
    desk = CommitmentDesk(None, lambda: ctx, call, call)
    return Delivery(desk.lanes(send), lambda: ctx, call, call)


def tell_results(ctx, problem=""):
    """One round of telling results, of which one is taken or none: the UIDs that were tried."""
    tried = []

    async def send(receiver, events, heard):
        tried.append(ElementIndex(events[0].data).get("TransactionUID"))
        if problem:
            raise DeliveryError(problem)
        heard(events[0])

    async def call(function, *arguments):
        return function(*arguments)

    async def play():
        await telling(ctx, send, call).work(wait=True)

    asyncio.run(play())
    return tried


def test_a_result_without_instances_is_no_success(noon):
    """Dropped between two looks, or damaged: nothing is called safe of which nothing is known."""
    one = ask(noon, series(1))
    erase("commitment_instance WHERE commitment_id = ?", one)
    assert not commitment_result(request_row("2.25.900")).all_good


def test_evidence_that_comes_after_the_end_changes_nothing(noon):
    """Two looks at one request: what was told is not to be told again."""
    image = series(1)[0]
    one = ask(noon, [image])
    record_evidence(noon, one, Evidence(seen(image)))
    assert tell_results(noon) == ["2.25.900"]
    record_evidence(noon, one, Evidence(seen(image)))
    assert tell_results(noon) == []
    assert request_row("2.25.900").state == "told"


def test_a_result_is_told_once_though_the_list_of_what_is_due_is_old(noon):
    """It was read before the result was told, and comes when it has been."""
    one, told = ask(noon, series(1)), []
    record_evidence(at(noon, hours=24), one, NOBODY)

    async def play():
        go = asyncio.Event()

        async def send(receiver, events, heard):
            await go.wait()
            told.append(ElementIndex(events[0].data).get("TransactionUID"))
            heard(events[0])

        async def call(function, *arguments):
            return function(*arguments)

        async def call_late(function, *arguments):
            found_ = function(*arguments)
            if function is due_in_lanes:
                go.set()
                while delivery.tasks:
                    await asyncio.sleep(0)
            return found_

        delivery = telling(at(noon, hours=24), send, call)
        await delivery.work()
        delivery.read = call_late
        await delivery.work(wait=True)

    asyncio.run(play())
    assert told == ["2.25.900"]


def test_twenty_thousand_references_are_taken(noon):
    """maximum_instances by default."""
    image = series(1)[0]
    many = [image._replace(uid=f"{image.uid[:50]}.{number}") for number in range(20_000)]
    items = [
        bytes(text_elements(ReferencedSOPClassUID=one.sop_class, ReferencedSOPInstanceUID=one.uid))
        for one in many
    ]
    request_commitment(noon, "2.25.900", encode_items(REFERENCES, items))
    one = request_row("2.25.900").id
    record_evidence(noon, one, Evidence(seen(*many)))
    assert commitment_counts([one])[one] == (20_000, 0, 0)


def test_a_request_of_the_web_does_not_swallow_that_of_a_machine(noon):
    """A login of the CT's name has asked for the same: the CT is to be told all the same."""
    images = series(1)
    ask(noon, images, door="web")
    ask(noon, images)
    rows = fetch_rows(Commitment, "1 = 1 ORDER BY id")
    assert [(one.door, one.repeats) for one in rows] == [("web", 0), ("dimse", 1)]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_uid_in_the_form_of_a_study_is_a_uid(noon):
    """0115: a study that is none is asked for in no archive."""
    for keyword, value in (("study", "1.02.3"), ("series", "*"), ("study", "2.25.1\\2.25.2")):
        images = [series(1)[0]._replace(**{keyword: value})]
        with refused(Status.INVALID_ARGUMENT_VALUE):
            request_commitment(noon, "2.25.900", stored_form(by_study(images)), "web")


# The requester is away; the appliance is killed.


def test_a_requester_that_was_away_is_told_later(run_appliance, console, archive):
    """T-SC-08: offline for two retries."""
    ct = console()
    ct.stop()
    running = run_appliance(settings(ct.port, archive.port))
    images, uid = series(2), new_uid()
    archive.store(images[0])
    peer, _ = asking(running.port)
    with peer:
        peer.send(n_action(uid, images))
        assert status_of(peer) == (ACCEPTED, "")
    row = once(running, uid, lambda row: row.state == "judged" and row.failures >= 2, "no retries")
    assert row.problem == "cannot connect: connection refused"
    ct.listen()
    assert ct.next() == (uid, (2, [images[0].uid], {images[1].uid: MISSING}))
    assert once_in(running, uid, "told").problem == ""


@pytest.mark.parametrize("status", [0x0112, 0x0115, 0x0114])
def test_a_requester_that_knows_nothing_of_it_has_been_told(
    run_appliance, console, archive, status
):
    """PS3.4 J.3.2: its answer changes nothing of the verdicts; it is not told again."""
    ct = console(answer=status)
    running = run_appliance(settings(ct.port, archive.port))
    images, uid = series(1), new_uid()
    peer, _ = asking(running.port)
    with peer:
        peer.send(n_action(uid, images))
        assert status_of(peer) == (ACCEPTED, "")
    assert ct.next()[0] == uid
    once_in(running, uid, "told")
    assert ct.events.empty()


@pytest.fixture
def silent():
    """A machine that takes connections and never answers."""
    one = Silent()
    yield one
    one.close()


def state_in(path, uid):
    """The state of a request in a store that another process writes."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        where = "SELECT state FROM commitment WHERE transaction_uid = ?"
        return (connection.execute(where, (uid,)).fetchone() or ("",))[0]


def test_killed_between_judgement_and_report_the_report_arrives(
    tmp_path, run_appliance, modality, archive, silent
):
    """T-SC-08: kill -9 while the CT is being told; after the next start it is."""
    images, uid = series(3), new_uid()
    archive.store(*images)
    text = settings(silent.port, archive.port)
    with serving(write_config(tmp_path, text)) as (process, port):
        assert modality.ask(port, uid, images) == ACCEPTED
        assert silent.called.wait(PATIENCE_S)
        assert state_in(tmp_path / "minris.db", uid) == "judged"
        process.kill()
        process.wait(10)
    run_appliance(settings(modality.port, archive.port))
    assert modality.result(uid) == (1, uids(images), {})


def test_killed_between_request_and_judgement_it_is_judged_after_the_next_start(
    tmp_path, run_appliance, modality, own_archive
):
    """T-SC-08: what was answered 0000 is kept; killed, with the archive down."""
    images, uid = series(3), new_uid()
    own_archive.store(*images[:2])
    own_archive.stop()
    text = settings(modality.port, own_archive.port)
    with serving(write_config(tmp_path, text)) as (process, port):
        assert modality.ask(port, uid, images) == ACCEPTED
        process.kill()
        process.wait(10)
    own_archive.start()
    run_appliance(text)
    assert modality.result(uid) == (2, uids(images[:2]), {images[2].uid: MISSING})


def test_a_hundred_requests_at_once_lose_none(box, modality, archive):
    """Of a hundred associations at once; the worklist is answered meanwhile."""
    images = series(5)
    archive.store(*images[:4])
    asked = [new_uid() for _ in range(100)]

    def ask_alone(uid):
        peer, _ = asking(box.port)
        with peer:
            peer.send(n_action(uid, images))
            assert status_of(peer) == (ACCEPTED, "")
            peer.release()

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        list(pool.map(ask_alone, asked))
    with Peer(box.port) as beside:
        beside.associate()
        beside.send(echo())
        assert beside.receive(PATIENCE_S)
    expected = (2, uids(images[:4]), {images[4].uid: MISSING})
    assert [modality.result(uid) for uid in asked] == [expected] * 100


def test_a_machine_that_is_away_does_not_hold_up_the_others(
    run_appliance, modality, archive, silent
):
    """Eight results for a machine that never answers; another asks, and is told."""
    more = f"[device Ultrasound]\nhost = {peers.HOST}\nport = {silent.port}\n"
    running = run_appliance(settings(modality.port, archive.port, more))
    images, uid = series(1), new_uid()
    archive.store(*images)
    for _ in range(8):
        put(running, new_uid(), images, "US1")
    assert silent.called.wait(PATIENCE_S)
    put(running, uid, images)
    assert heard(modality.event(uid, 8)) == (1, uids(images), {})


# An archive that does what it likes.


class Liar:
    """An archive in pynetdicom whose answers to C-FIND `answers(identifier, association)` yields."""

    def __init__(self, answers, port=0, model=STUDY_ROOT_FIND):
        self.ae = ae = AE(AE_TITLE)
        ae.add_supported_context(model)
        handlers = [(evt.EVT_C_FIND, lambda event: answers(event.identifier, event.assoc))]
        server = ae.start_server((peers.HOST, port), block=False, evt_handlers=handlers)
        self.port = server.socket.getsockname()[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ae.shutdown()


def found(image, **changes):
    """An answer of an archive to a query for images."""
    ds = dataset(
        QueryRetrieveLevel="IMAGE",
        SOPClassUID=image.sop_class,
        SOPInstanceUID=image.uid,
        RetrieveAETitle=AE_TITLE,
    )
    ds.update(dataset(**changes))
    return ds


WANTED = Image("2.25.801", "2.25.802", "2.25.803")


def honest(identifier, association):
    yield 0xFF00, found(WANTED)


def fails(status):
    def answers(identifier, association):
        yield 0xFF00, found(WANTED)
        yield status, None

    return answers


def aborts(identifier, association):
    yield 0xFF00, found(WANTED)
    association.abort()


def without_end(identifier, association):
    while association.is_established:
        yield 0xFF00, found(WANTED)


LYING = {
    "out of resources": (fails(0xA700), "A700"),
    "unable to process": (fails(0xC001), "C001"),
    "cancelled": (fails(0xFE00), "FE00"),
    "aborts": (aborts, "it ended the association"),
    "too many": (without_end, "more than we accept"),
}


@pytest.fixture
def doubtful(run_appliance, modality, monkeypatch):
    """An appliance whose archive is whoever listens on `archive_port`, for whom it waits little."""
    silence_is_failure(monkeypatch, 0.3)
    monkeypatch.setattr(Caller, "MOST_ANSWERS", 50)
    port = peers.free_port()
    running = run_appliance(settings(modality.port, port))
    running.archive_port = port
    return running


def believes_the_next(running, modality, uid):
    """The archive comes to its senses: the desk is not stuck, success follows by itself."""
    assert running.read(request_row, uid).state == "asked"
    assert not modality.has_heard(uid)
    with BareArchive(response(data=NAMED) + response(0), running.archive_port):
        assert modality.result(uid) == (1, [WANTED.uid], {})
        once_in(running, uid, "told")


@pytest.mark.parametrize("name", LYING)
def test_what_an_archive_says_before_it_fails_is_no_evidence(doubtful, modality, name):
    """It has named the image, and then not ended with success."""
    answers, words = LYING[name]
    uid = new_uid()
    with Liar(answers, doubtful.archive_port):
        put(doubtful, uid, [WANTED])
        once(doubtful, uid, lambda row: words in row.problem, "it does not say why")
    believes_the_next(doubtful, modality, uid)


class BareArchive(BareWatcher):
    """An archive on bare sockets that answers every PDU with the same bytes."""

    def __init__(self, response, port):
        super().__init__(response=response)
        self.where = (peers.HOST, port)

    def __enter__(self):
        self.listener = socket.create_server(self.where)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        return self

    def _answer(self, pdu):
        if pdu[0] != 0x04:
            raise EOFError
        return self.response


class NoArchive(BareArchive):
    """It answers an association with bytes of its own."""

    def _accepted(self, pdu):
        return self.response


def response(status=0xFF00, data=b"", field=0x8020, cut=0):
    """A C-FIND-RSP on the first presentation context."""
    set_ = encode_command(
        AffectedSOPClassUID=STUDY_ROOT_FIND,
        CommandField=field,
        MessageIDBeingRespondedTo=1,
        CommandDataSetType=1 if data else NO_DATA_SET,
        Status=status,
    )
    where = AcceptedContext(1, STUDY_ROOT_FIND, True)
    whole = message_pdus(where, set_, data or None, 16384)
    return whole[: len(whole) - cut]


def pdu(kind, body, length=None):
    size = len(body) if length is None else length
    return bytes((kind, 0)) + size.to_bytes(4, "big") + body


NAMED = stored_form(found(WANTED))
RUBBISH = {
    "rubbish": (BareArchive, b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "a PDU past the limit": (BareArchive, pdu(4, b"", 1 << 30)),
    "an empty PDU": (BareArchive, pdu(4, b"")),
    "a value of no length": (BareArchive, pdu(4, bytes(6))),
    "a command of rubbish": (BareArchive, pdu(4, b"\0\0\0\x0a\1\3" + b"\xff" * 8)),
    "a data set of rubbish": (BareArchive, response(data=b"\xff" * 64) + response(0)),
    "a named image, then a data set of rubbish": (
        BareArchive,
        response(data=NAMED) + response(data=NAMED[:-3]) + response(0),
    ),
    "half an answer": (BareArchive, response(data=NAMED, cut=20)),
    "no status": (BareArchive, response(None)),
    "a named image and nothing more": (BareArchive, response(data=NAMED)),
    "a release": (BareArchive, response(data=NAMED) + pdu(5, bytes(4))),
    "an abort": (BareArchive, response(data=NAMED) + pdu(7, bytes(4))),
    "silence": (BareArchive, b""),
    "no association but rubbish": (NoArchive, b"\xff" * 100),
    "an association of rubbish": (NoArchive, pdu(2, b"\xff" * 100)),
    "an empty association": (NoArchive, pdu(2, b"")),
    "a refusal": (NoArchive, pdu(3, b"\0\1\1\7")),
    "no association at all": (NoArchive, b""),
}


BY_HAND = {"rubbish", "an empty PDU", "a value of no length", "half an answer", "a release",
           "silence", "an empty association", "no association at all", "a command of rubbish",
           "a data set of rubbish", "a refusal"}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[pytest.mark.long] * (one in BY_HAND)) for one in RUBBISH],
)
def test_rubbish_is_no_evidence(doubtful, modality, name):
    """Whatever comes for an answer; the image is named in some of it."""
    kind, said = RUBBISH[name]
    uid = new_uid()
    with kind(response=said, port=doubtful.archive_port):
        put(doubtful, uid, [WANTED])
        once_failed(doubtful, uid)
    believes_the_next(doubtful, modality, uid)


def echoes(identifier, association):
    yield 0xFF00, identifier


def names_others(identifier, association):
    for other in series(20):
        yield 0xFF00, found(other)


def names_all_as_one(identifier, association):
    yield 0xFF00, found(WANTED._replace(uid=f"{WANTED.uid}\\2.25.9"))


def names_the_beginning(identifier, association):
    yield 0xFF00, found(WANTED._replace(uid=WANTED.uid[:-1]))
    yield 0xFF00, found(WANTED._replace(uid=f"{WANTED.uid}1"))


def has_it_offline(identifier, association):
    yield 0xFF00, found(WANTED, InstanceAvailability="OFFLINE")


def has_lost_it(identifier, association):
    yield 0xFF00, found(WANTED, InstanceAvailability="UNAVAILABLE")


@pytest.mark.parametrize(
    "answers",
    [echoes, names_others, names_all_as_one, names_the_beginning, has_it_offline, has_lost_it],
)
def test_an_answer_that_does_not_have_the_image_is_no_evidence(doubtful, modality, answers):
    """What is not plainly that image, to be had there, is not safe."""
    with Liar(answers, doubtful.archive_port), door_of(doubtful) as door:
        found_ = verdicts_of(judged(door, flat([WANTED])))
    assert (found_.good, list(found_.bad)) == ([], [WANTED.uid])


def test_an_archive_without_queries_is_no_evidence(doubtful, modality):
    """It takes Patient Root alone."""
    uid = new_uid()
    with Liar(honest, doubtful.archive_port, model="1.2.840.10008.5.1.4.1.2.1.1"):
        put(doubtful, uid, [WANTED])
        assert "no queries" in once_failed(doubtful, uid).problem
    believes_the_next(doubtful, modality, uid)


def test_an_archive_that_trickles_does_not_hold_the_desk(run_appliance, modality, monkeypatch):
    """An answer now and then, without end: a query has an end, whatever comes."""
    monkeypatch.setattr(ArchiveSearch, "LONGEST", 1.0, raising=False)
    ended = threading.Event()

    def trickles(identifier, association):
        while association.is_established and not ended.wait(0.1):
            yield 0xFF00, found(series(1)[0])

    uid = new_uid()
    with Liar(trickles) as archive:
        running = run_appliance(settings(modality.port, archive.port))
        try:
            put(running, uid, [WANTED])
            once_failed(running, uid, timeout_s=6)
        finally:
            ended.set()


# Over the web.


def test_the_web_answers_when_all_is_safe(door, archive):
    """T-SCWEB-01, T-SCWEB-07: 202 without a body, then 200, the same each time."""
    images, uid = series(3), new_uid()
    archive.store(*images)
    taken = post(door, uid, flat(images))
    assert (taken.status_code, taken.content) == (202, b"")
    assert taken.headers.get("Retry-After", "0").isdigit()
    answer = answer_of(door, uid)
    assert verdicts_of(read(answer)) == (None, uids(images), {})
    assert set(read(answer).dir()) == {"ReferencedSOPSequence"}
    assert get(door, uid).json() == answer.json()


def test_the_web_answers_when_some_are_not_safe(door, archive):
    """T-SCWEB-02: both sequences, each once, 0112."""
    images = series(4)
    archive.store(*images[:3])
    ds = judged(door, flat(images))
    assert verdicts_of(ds) == (None, uids(images[:3]), {images[3].uid: MISSING})
    assert "TransactionUID" not in ds


def test_none_is_safe_over_the_web(door):
    """T-SCWEB-02: no (0008,1199) without items."""
    assert set(judged(door, flat(series(2))).dir()) == {"FailedSOPSequence"}


def test_the_study_form_is_answered_in_the_study_form(door, archive):
    """T-SCWEB-03."""
    images = series(4)
    archive.store(*images[:3])
    ds = judged(door, by_study(images))
    assert set(ds.dir()) == {"ReferencedStudySequence", "FailedStudySequence"}
    good = instances_of(ds.ReferencedStudySequence)
    assert [(*where, one.ReferencedSOPInstanceUID) for *where, one in good] == [
        (one.study, one.series, one.sop_class, one.uid) for one in images[:3]
    ]
    assert not any("FailureReason" in one for *_, one in good)
    [(*where, failed)] = instances_of(ds.FailedStudySequence)
    assert where == [images[3].study, images[3].series, CT_IMAGE]
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (images[3].uid, MISSING)


def both_forms():
    ds = flat(series(1))
    ds.update(by_study(series(1)))
    return ds


WRONG = {
    "both forms": both_forms(),
    "neither form": dataset(StudyInstanceUID="2.25.1"),
    "empty flat": flat([]),
    "empty studies": dataset(ReferencedStudySequence=[]),
    "no instances": dataset(
        ReferencedStudySequence=[dataset(StudyInstanceUID="2.25.1", ReferencedSeriesSequence=[])]
    ),
    "no class": dataset(ReferencedSOPSequence=[dataset(ReferencedSOPInstanceUID="2.25.1")]),
    "the UID inside": request("2.25.4", series(1)),
}


def test_what_is_no_request_is_refused(door):
    """T-SCWEB-04: 400, and nothing is kept of it."""
    asked = {name: new_uid() for name in WRONG}
    answers = {name: post(door, uid, WRONG[name]).status_code for name, uid in asked.items()}
    assert answers == dict.fromkeys(WRONG, 400)
    assert {get(door, uid).status_code for uid in asked.values()} == {404}


def test_what_is_no_uid_is_refused(door):
    """T-SCWEB-04: 400 for a path that ends with no UID."""
    wrong = ["1.02.3", "abc", "1.2.", "1." * 40 + "1", "1.2%5C1.3", "%20"]
    answers = {uid: post(door, uid, flat(series(1))).status_code for uid in wrong}
    assert answers == dict.fromkeys(wrong, 400)


def test_a_uid_is_used_once(run_appliance, modality, own_archive):
    """T-SCWEB-05, T-SCWEB-07: pending or finished, the same or another; the first is unaffected."""
    images, uid = series(2), new_uid()
    own_archive.store(*images)
    own_archive.stop()
    with door_of(run_appliance(settings(modality.port, own_archive.port))) as door:
        assert post(door, uid, flat(images)).status_code == 202
        pending = get(door, uid)
        assert (pending.status_code, pending.content) == (202, b"")
        assert pending.headers.get("Retry-After", "0").isdigit()
        for again in (images, series(1)):
            assert post(door, uid, flat(again)).status_code == 409
        own_archive.start()
        answer = answer_of(door, uid)
        for again in (images, series(1)):
            assert post(door, uid, flat(again)).status_code == 409
        assert verdicts_of(read(answer)) == (None, uids(images), {})
        assert get(door, uid).json() == answer.json()


def test_a_uid_of_a_machine_is_in_use(box, door, modality, archive):
    """T-SCWEB-06, and the other way about: 0131 for all that a machine asks under a UID of the web."""
    images, uid = series(2), new_uid()
    archive.store(*images)
    assert modality.ask(box.port, uid, images) == ACCEPTED
    assert post(door, uid, flat(images)).status_code == 409
    assert modality.result(uid).kind == 1
    assert post(door, uid, flat(images)).status_code == 409
    other = new_uid()
    assert post(door, other, flat(images)).status_code == 202
    assert verdicts_of(read(answer_of(door, other))).good == uids(images)
    assert modality.ask(box.port, other, images) == ACCEPTED
    assert modality.result(other) == (2, [], dict.fromkeys(uids(images), IN_USE))


def test_a_result_that_is_old_is_gone(box, door):
    """T-SCWEB-08: 404 for what never was; 410 for what was dropped, and its UID is used up."""
    images, uid = series(1), new_uid()
    assert get(door, uid).status_code == 404
    assert post(door, uid, flat(images)).status_code == 202
    answer_of(door, uid)
    now = utc_now()
    in_time = dataclasses.replace(box.context(), now=lambda: now + datetime.timedelta(days=89))
    late = dataclasses.replace(box.context(), now=lambda: now + datetime.timedelta(days=91))
    assert box.write(purge, in_time).get("commitments", 0) == 0
    assert get(door, uid).status_code == 200
    assert box.write(purge, late).get("commitments", 0) == 1
    assert get(door, uid).status_code == 410
    assert post(door, uid, flat(images)).status_code == 409
    assert box.write(purge, late).get("commitments", 0) == 0


def test_a_request_of_the_web_outlives_a_restart(tmp_path, run_appliance, modality, own_archive):
    """T-SCWEB-09."""
    images, uid = series(2), new_uid()
    own_archive.store(*images)
    own_archive.stop()
    text = settings(modality.port, own_archive.port)
    running = run_appliance(text)
    with door_of(running) as door:
        assert post(door, uid, flat(images)).status_code == 202
    running.stop()
    own_archive.start()
    with door_of(run_appliance(text)) as door:
        assert verdicts_of(read(answer_of(door, uid))).good == uids(images)


def test_over_the_web_too_a_stopped_archive_never_commits(run_appliance, modality, own_archive):
    """T-SCWEB-10: 202 while it is down, 0110 when the time is over."""
    images, uid = series(2), new_uid()
    own_archive.store(*images)
    own_archive.stop()
    running = run_appliance(settings(modality.port, own_archive.port))
    with door_of(running) as door:
        assert post(door, uid, flat(images)).status_code == 202
        once_failed(running, uid, times=3)
        assert (get(door, uid).status_code, get(door, uid).content) == (202, b"")
        long_ago = "UPDATE commitment SET created_at = '2026-07-04T12:00:00.000000Z'"
        running.write(database.execute_sql, long_ago)
        found_ = verdicts_of(read(answer_of(door, uid)))
        own_archive.start()
        assert found_ == (None, [], dict.fromkeys(uids(images), UNCHECKED))
        assert verdicts_of(read(get(door, uid))) == found_


MEDIA = {
    "application/dicom+json": lambda answer: answer.content,
    "application/dicom+xml": lambda answer: answer.content,
    'multipart/related; type="application/dicom+json"': lambda answer: part_of(answer),
    XML_PARTS: lambda answer: part_of(answer),
}


def part_of(answer):
    """The one part of a multipart answer."""
    boundary = answer.headers["Content-Type"].split("boundary=")[1].split(";")[0].strip('"')
    [part] = answer.content.split(f"--{boundary}".encode())[1:-1]
    return part.split(b"\r\n\r\n", 1)[1]


def in_media(ds, kind):
    """A data set as the body of a request, with its headers."""
    xml = to_xml(as_json(ds))
    body = xml if "xml" in kind else json.dumps([as_json(ds)]).encode()
    if "multipart" not in kind:
        return {"content": body, "headers": {"Content-Type": kind}}
    inner = kind.split('"')[1]
    body = f"--part\r\nContent-Type: {inner}\r\n\r\n".encode() + body + b"\r\n--part--"
    return {"content": body, "headers": {"Content-Type": f"{kind}; boundary=part"}}


@pytest.mark.parametrize("kind", MEDIA)
def test_every_media_type_says_the_same(door, archive, kind):
    """T-SCWEB-11."""
    images, uid = series(2), new_uid()
    archive.store(images[0])
    taken = door.post(f"/commitment-requests/{uid}", **in_media(by_study(images), kind))
    assert taken.status_code == 202, taken.text
    expected = read(answer_of(door, uid)).to_json_dict()
    answer = get(door, uid, Accept=kind)
    assert answer.headers["Content-Type"].startswith(kind.split(";")[0])
    body = MEDIA[kind](answer)
    if "xml" in kind:
        assert read_stored(from_json(from_xml(body))).to_json_dict() == expected
    else:
        [found_] = json.loads(body) if isinstance(json.loads(body), list) else [json.loads(body)]
        assert Dataset.from_json(found_).to_json_dict() == expected


def test_what_media_type_is_unacceptable(door):
    """T-SCWEB-11: 406; without Accept JSON; 415 for a body that is none."""
    uid = new_uid()
    assert post(door, uid, flat(series(1))).status_code == 202
    answer_of(door, uid)
    assert get(door, uid, Accept="image/png").status_code == 406
    without = door.build_request("GET", f"/commitment-requests/{uid}")
    del without.headers["Accept"]
    assert door.send(without).headers["Content-Type"].startswith("application/dicom+json")
    path = f"/commitment-requests/{new_uid()}"
    assert door.post(path, content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415


def test_web_and_dimse_judge_alike(box, door, modality, archive):
    """T-SCWEB-12."""
    good, missing, conflict, other = (series(1)[0] for _ in range(4))
    archive.store(good, conflict)
    asked = [
        other._replace(sop_class=MPPS),
        conflict._replace(sop_class=MR_IMAGE),
        missing,
        good,
    ]
    uid = new_uid()
    assert modality.ask(box.port, uid, asked) == ACCEPTED
    told = modality.result(uid)
    assert told.bad == {other.uid: NO_IMAGE, conflict.uid: CONFLICT, missing.uid: MISSING}
    assert verdicts_of(judged(door, flat(asked))) == told._replace(kind=None)


@pytest.mark.parametrize(("role_", "status"), [("desk", 403), ("technologist", 202)])
def test_who_may_ask_over_the_web(box, role_, status):
    with door_of(box, role_) as door:
        assert post(door, new_uid(), flat(series(1))).status_code == status


def test_a_result_of_the_web_is_told_to_nobody(box, door, modality):
    uid = new_uid()
    assert post(door, uid, flat(series(1))).status_code == 202
    answer_of(door, uid)
    assert box.read(due_receivers, box.context(), RESULT_LANE) == []
    assert not modality.has_heard(uid)


# Instance Availability Notification.


def creation_of(ds, uid=None):
    """An N-CREATE for dcmjs-dimse."""
    return {
        "op": "n-create",
        "sopClass": INSTANCE_AVAILABILITY,
        "instance": uid or new_uid(),
        "dataset": as_json(ds),
    }


def create_notice(running, ds, uid=None):
    """N-CREATE by the archive: the response."""
    [answer] = peers.run_dimse(running.port, [creation_of(ds, uid)], AE_TITLE)
    return answer


def availability_of(uid):
    sql = "SELECT retrieve_ae_title, availability FROM availability WHERE sop_instance_uid = ?"
    return dict(database.execute_sql(sql, (uid,)))


def test_a_notice_is_taken(box):
    """T-IAN-01, T-IAN-02: 0000; no performed step is named."""
    images, uid = series(3), new_uid()
    answer = create_notice(box, notice(images), uid)
    assert (answer["status"], answer["sopInstance"]) == (0x0000, uid)
    for one in images:
        assert box.read(availability_of, one.uid) == {AE_TITLE: "ONLINE"}


def first_item(ds):
    return ds.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]


def less(keyword, level=lambda ds: ds):
    """A notice without an attribute."""
    ds = notice(series(2))
    del level(ds)[keyword]
    return ds


def more(keyword, value, level=lambda ds: ds):
    """A notice with another value."""
    ds = notice(series(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may be wrong on purpose
        setattr(level(ds), keyword, value)
    return ds


def performed_step():
    return dataset(
        ReferencedSOPClassUID=MPPS,
        ReferencedSOPInstanceUID=new_uid(),
        PerformedWorkitemCodeSequence=[],
    )


def twice():
    """A notice that says two things of one instance at one AE."""
    ds = notice(series(2))
    items = ds.ReferencedSeriesSequence[0].ReferencedSOPSequence
    items[1].ReferencedSOPInstanceUID = items[0].ReferencedSOPInstanceUID
    items[1].InstanceAvailability = "UNAVAILABLE"
    return ds


FIRST_SERIES = "ReferencedSeriesSequence"
NOTICES = {
    "no Retrieve AE Title": (less("RetrieveAETitle", first_item), 0x0120),
    "no availability": (less("InstanceAvailability", first_item), 0x0120),
    "no class": (less("ReferencedSOPClassUID", first_item), 0x0120),
    "no study": (less("StudyInstanceUID"), 0x0120),
    "no series": (less(FIRST_SERIES), 0x0120),
    "an empty study": (more("StudyInstanceUID", ""), 0x0121),
    "empty series": (more(FIRST_SERIES, []), 0x0121),
    "an empty Retrieve AE Title": (more("RetrieveAETitle", "", first_item), 0x0121),
    "a word that is no availability": (more("InstanceAvailability", "LATER", first_item), 0x0106),
    "two availabilities": (more("InstanceAvailability", ["ONLINE", "OFFLINE"], first_item), 0x0106),
    "two performed steps": (
        more("ReferencedPerformedProcedureStepSequence", [performed_step(), performed_step()]),
        0x0106,
    ),
    "one performed step": (
        more("ReferencedPerformedProcedureStepSequence", [performed_step()]),
        0x0000,
    ),
    "one instance twice": (twice(), 0x0106),
    "no UID": (more("ReferencedSOPInstanceUID", "1.02.3", first_item), 0x0106),
    "two UIDs": (more("ReferencedSOPInstanceUID", ["2.25.1", "2.25.2"], first_item), 0x0106),
    "a study that is no UID": (more("StudyInstanceUID", "*"), 0x0106),
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("name", NOTICES)
def test_a_notice_is_checked(ctx, name):
    """T-IAN-01, T-IAN-02: whole or not at all."""
    ds, status = NOTICES[name]
    archive_ = ctx.by(Actor(AE_TITLE))
    if status == 0x0000:
        notify_availability(archive_, "2.25.5", stored_form(ds))
        return
    with refused(Status(status)):
        notify_availability(archive_, "2.25.5", stored_form(ds))
    for table in ("availability", "availability_notice"):
        count = database.execute_sql(f"SELECT count(*) FROM {table}").fetchone()
        assert count == (0,)


def test_a_notice_is_refused_by_its_status(box):
    """T-IAN-01, T-IAN-02, T-IAN-03, over DIMSE: 0120, 0106, 0111."""
    uid = new_uid()
    notices = [
        less("RetrieveAETitle", first_item),
        NOTICES["a word that is no availability"][0],
        NOTICES["two performed steps"][0],
        notice(series(1)),
        notice(series(1)),
    ]
    operations = [creation_of(ds, uid) for ds in notices]
    answers = peers.run_dimse(box.port, operations, AE_TITLE)
    assert [one["status"] for one in answers] == [0x0120, 0x0106, 0x0106, 0x0000, 0x0111]


def test_the_newest_notice_counts_at_each_ae(noon):
    """T-IAN-03: UNAVAILABLE after ONLINE for the same AE; another AE is another thing."""
    [image] = series(1)
    for word_, title in (("ONLINE", AE_TITLE), ("ONLINE", "OTHER"), ("UNAVAILABLE", AE_TITLE)):
        notify(noon, [image], word_, title=title)
    assert availability_of(image.uid) == {AE_TITLE: "UNAVAILABLE", "OTHER": "ONLINE"}
    reference = [Reference(image.sop_class, image.uid)]
    assert notified_instances(reference, AE_TITLE) == {}


def test_a_duplicate_notice_changes_nothing(noon):
    """T-IAN-03: 0111."""
    [image] = series(1)
    archive_ = noon.by(Actor(AE_TITLE))
    notify_availability(archive_, "2.25.5", stored_form(notice([image])))
    with refused(Status.DUPLICATE_SOP_INSTANCE):
        data = stored_form(notice([image], "UNAVAILABLE"))
        notify_availability(archive_, "2.25.5", data)
    assert availability_of(image.uid) == {AE_TITLE: "ONLINE"}


BY_NOTICE = "missing_minutes = 0\nevidence = availability"


@pytest.mark.parametrize(
    ("word_", "who", "title", "safe"),
    [
        ("ONLINE", AE_TITLE, AE_TITLE, True),
        ("NEARLINE", AE_TITLE, AE_TITLE, True),
        ("OFFLINE", AE_TITLE, AE_TITLE, False),
        ("UNAVAILABLE", AE_TITLE, AE_TITLE, False),
        ("ONLINE", "CT1", AE_TITLE, False),
        ("ONLINE", AE_TITLE, "CT1", False),
    ],
)
def test_a_notice_of_the_archive_is_evidence(run_appliance, modality, word_, who, title, safe):
    """evidence = availability: nobody is asked; and no machine commits its own images."""
    images = series(2)
    running = run_appliance(settings(modality.port, peers.free_port(), commitment=BY_NOTICE))
    told_of(running, notify, images[:1], word_, who, title)
    with door_of(running) as door:
        found_ = verdicts_of(judged(door, flat(images)))
    assert found_.good == (uids(images[:1]) if safe else [])
    assert found_.bad[images[1].uid] == MISSING


def test_a_notice_names_where_to_retrieve_from(run_appliance, modality):
    """T-SC-10, and T-SC-05: the class that the notice names is held against the request."""
    [image, other], uid = series(2), new_uid()
    running = run_appliance(settings(modality.port, peers.free_port(), commitment=BY_NOTICE))
    told_of(running, notify, [image, other])
    put(running, uid, [image, other._replace(sop_class=MR_IMAGE)])
    event = modality.event(uid)
    assert heard(event) == (2, [image.uid], {other.uid: CONFLICT})
    assert event["dataset"]["RetrieveAETitle"] == AE_TITLE


def test_what_waits_for_a_notice_is_judged_when_it_comes(run_appliance, modality, monkeypatch):
    """At once, however long it would wait else."""
    monkeypatch.setattr("minris.conformance.services.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.delivery.archive.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.delivery.receivers.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.delivery.sockets.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.images.commitment.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.outbox.RETRY_AFTER", (600,))
    images, uid = series(2), new_uid()
    text = settings(modality.port, peers.free_port(), commitment="evidence = availability")
    running = run_appliance(text)
    put(running, uid, images)
    once_failed(running, uid)
    assert create_notice(running, notice(images))["status"] == 0x0000
    assert modality.result(uid) == (1, uids(images), {})


@pytest.mark.parametrize("order", ["availability, archive", "archive, availability"])
def test_the_archive_is_enough_without_a_notice(run_appliance, modality, archive, order):
    """In whatever order: one is in the archive and was not notified, the other is nowhere."""
    kept, neither = series(1)[0], series(1)[0]
    archive.store(kept)
    commitment = f"missing_minutes = 0\nevidence = {order}"
    text = settings(modality.port, archive.port, commitment=commitment, relational="no")
    running = run_appliance(text)
    told_of(running, perform, [kept])
    told_of(running, perform, [neither])
    with door_of(running) as door:
        found_ = verdicts_of(judged(door, flat([kept, neither])))
    assert (found_.good, list(found_.bad)) == ([kept.uid], [neither.uid])


@pytest.mark.parametrize("order", ["availability, archive", "archive, availability"])
def test_a_notice_is_enough_while_the_archive_is_down(run_appliance, modality, order):
    """The one that was not notified waits for the archive."""
    images, uid = series(2), new_uid()
    commitment = f"missing_minutes = 0\nevidence = {order}"
    running = run_appliance(settings(modality.port, peers.free_port(), commitment=commitment))
    told_of(running, notify, images[:1])
    put(running, uid, images)
    once_failed(running, uid, times=2)
    one = running.read(request_row, uid)
    assert running.read(verdicts, one.id) == ["", "0000"]
    assert not modality.has_heard(uid)


def test_a_notice_does_not_outweigh_the_archive_itself(run_appliance, modality, archive):
    """Notified as online, deleted since: the archive, asked first, says that it does not have it."""
    [image] = series(1)
    commitment = "missing_minutes = 0\nevidence = archive, availability"
    running = run_appliance(settings(modality.port, archive.port, commitment=commitment))
    told_of(running, notify, [image])
    with door_of(running) as door:
        assert verdicts_of(judged(door, flat([image]))).bad == {image.uid: MISSING}


@pytest.mark.parametrize("text", ["", "nothing", "archive, archive", "archive; availability"])
def test_evidence_is_a_setting_that_is_checked(tmp_path, text):
    path = write_config(tmp_path, f"[commitment]\nevidence = {text}\n")
    with pytest.raises(ConfigError):
        load_config(path)


# The pages, and what is kept.


@contextlib.contextmanager
def technologist_of(running):
    """Anna, a technologist, logged in."""
    with visiting(running) as client:
        yield employ(running, client, "technologist")


def test_the_page_says_in_words_what_may_be_deleted(box, modality, archive):
    """/commitments and /commitment/UID."""
    images, uid = series(4), new_uid()
    archive.store(*images[:3])
    conflict = series(1)[0]
    archive.store(conflict)
    asked = [*images, conflict._replace(sop_class=MR_IMAGE)]
    put(box, uid, asked)
    modality.result(uid)
    once_in(box, uid, "told")
    with technologist_of(box) as anna:
        listed, shown = words_of(anna.get("/commitments")), words_of(anna.get(f"/commitment/{uid}"))
    safe = "3 images confirmed in the archive: they may be deleted at the machine"
    unsafe = "2 images not confirmed in the archive: keep them on the machine"
    for words in (listed, shown):
        assert f"{safe}; {unsafe}" in words
    assert f"Archive checked: {AE_TITLE}." in listed
    assert uid in listed
    assert "CT1" in listed
    assert f"{images[3].uid} is not in the archive" in shown
    assert f"{conflict.uid} is in the archive as an object of another class" in shown
    for one in images[:3]:
        assert f"{one.uid} is in the archive {AE_TITLE}" in shown


def test_the_page_says_why_nothing_is_judged_and_tries_again(
    run_appliance, modality, own_archive, monkeypatch
):
    """Try again now: not after ten minutes."""
    monkeypatch.setattr("minris.conformance.services.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.delivery.archive.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.delivery.receivers.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.delivery.sockets.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.images.commitment.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.outbox.RETRY_AFTER", (600,))
    images, uid = series(2), new_uid()
    own_archive.store(*images)
    own_archive.stop()
    running = run_appliance(settings(modality.port, own_archive.port))
    put(running, uid, images)
    once_failed(running, uid)
    own_archive.start()
    with technologist_of(running) as anna:
        page = anna.get("/commitments")
        assert "2 images not checked yet: keep them on the machine" in words_of(page)
        assert "cannot connect: connection refused" in words_of(page)
        assert "Try again now" in words_of(page)
        assert "is not checked yet" in words_of(anna.get(f"/commitment/{uid}"))
        answer = anna.post("/commitments", data={"csrf": csrf_of(page.text), "uid": uid})
        assert answer.status_code in (302, 303)
        assert modality.result(uid) == (1, uids(images), {})
        once_in(running, uid, "told")
        assert "Try again now" not in words_of(anna.get("/commitments"))
        again = anna.post("/commitments", data={"csrf": csrf_of(page.text), "uid": uid})
        assert again.status_code == 409, "its Transaction UID is used up"


def test_the_page_tells_the_machine_again(run_appliance, console, archive, monkeypatch):
    """Given up: the CT was away for days."""
    ct = console()
    ct.stop()
    running = run_appliance(settings(ct.port, archive.port))
    images, uid = series(1), new_uid()
    archive.store(*images)
    put(running, uid, images)
    once_in(running, uid, "judged")
    long_ago = "UPDATE outbox SET created_at = '2026-07-04T12:00:00.000000Z'"
    running.write(database.execute_sql, long_ago)
    once_in(running, uid, "given up")
    ct.listen()
    with technologist_of(running) as anna:
        page = anna.get("/commitments")
        assert "could not be notified" in words_of(page)
        anna.post("/commitments", data={"csrf": csrf_of(page.text), "uid": uid})
    assert ct.next() == (uid, (1, uids(images), {}))


def test_the_page_of_what_is_not_there(box):
    with technologist_of(box) as anna:
        assert anna.get(f"/commitment/{new_uid()}").status_code == 404
        assert "No machine has asked" in words_of(anna.get("/commitments"))
        csrf = csrf_of(anna.get("/devices").text)
        for uid in (new_uid(), "", "<script>"):
            assert anna.post("/commitments", data={"csrf": csrf, "uid": uid}).status_code == 404
        assert anna.post("/commitments", data={"uid": new_uid()}).status_code == 403


def test_the_pages_are_for_technologists(box):
    with visiting(box) as client:
        desk = employ(box, client, "desk")
        for path in ("/commitments", f"/commitment/{new_uid()}"):
            assert desk.get(path).status_code == 403


@pytest.mark.parametrize("archives", [0, 2])
def test_the_page_says_that_no_archive_is_asked(run_appliance, archives):
    """None is registered, or two, of which none is set."""
    one = "[device A{0}]\nae_title = A{0}\nrole = archive\n"
    running = run_appliance("".join(one.format(number) for number in range(archives)))
    with technologist_of(running) as anna:
        words = words_of(anna.get("/commitments"))
    assert "no images can be confirmed" in words
    assert ("Register it" in words) == (archives == 0)


def test_export_and_backup_are_as_they_were(box, door, archive, tmp_path):
    """Requests are in a backup, and not in an export of the worklist."""
    before = box.read(export_store)
    images, uid = series(2), new_uid()
    archive.store(*images)
    assert post(door, uid, flat(images)).status_code == 202
    answer_of(door, uid)
    told_of(box, notify, images)
    after = box.read(export_store)
    assert {**after, "exported_at": 0} == {**before, "exported_at": 0}
    copy = tmp_path / "copy.db"
    backup_store(box.config.store_path, copy)
    assert state_in(copy, uid) == "judged"


def test_housekeeping_drops_old_results(noon):
    """Their Transaction UIDs stay known: 0131, 409."""
    one = ask(noon, series(1), door="web")
    record_evidence(at(noon, hours=24), one, NOBODY)
    assert purge(at(noon, days=90)).get("commitments", 0) == 0
    assert purge(at(noon, days=92)).get("commitments") == 1
    assert verdicts(one) == []
    with refused(Status.DUPLICATE_SOP_INSTANCE):
        ask(noon, series(1), door="web")


def test_old_notices_are_dropped(noon):
    """What was notified years ago is not kept for ever."""
    notify(noon, series(1))
    purge(at(noon, days=3650))
    for table in ("availability", "availability_notice"):
        count = database.execute_sql(f"SELECT count(*) FROM {table}").fetchone()
        assert count == (0,), table
