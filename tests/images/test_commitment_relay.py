# ruff: noqa: F401, F811 (fixtures of test_commitment.py)
"""Section 12, AVAILABILITY: requests for commitment that are passed on to the archive; reports on
the requester's own association.

Orthanc is the archive that commits, or pynetdicom where it is to misbehave.
"""

import asyncio
import contextlib
import dataclasses
import io
import json
import queue
import re
import socket
import sqlite3
import threading
import time

import peers
import pytest
from archive import AE_TITLE, series
from conftest import write_config
from pynetdicom import AE, build_role, evt
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from test_association import (
    EXPLICIT,
    IMPLICIT,
    Peer,
    associate_rq,
    context,
    in_pdus,
    p_data,
    read_messages,
    role,
    value,
    word,
)
from test_commitment import (
    ACCEPTED,
    MISSING,
    MR_IMAGE,
    answer_of,
    archive,
    ask,
    asking,
    at,
    console,
    door_of,
    flat,
    get,
    hasty,
    heard,
    modality,
    n_action,
    noon,
    once,
    once_failed,
    once_in,
    once_said_why,
    own_archive,
    post,
    put,
    read,
    request,
    request_row,
    settings,
    silent,
    state_in,
    status_of,
    technologist_of,
    tell_results,
    uids,
    verdicts,
    verdicts_of,
)
from test_commitment import notify as notify_of
from test_delivery import PATIENCE_S
from test_delivery import impatient as silence_is_failure
from test_mpps import dataset, serving, stored_form
from test_order_life import refused
from test_pages import words_of

from minris.access.context import Actor
from minris.dataset.elements import ElementIndex
from minris.dataset.recode import recode
from minris.delivery.archive import CommitmentDesk
from minris.delivery.receivers import Delivery
from minris.dimse.encoding import request_command
from minris.housekeeping.retention import purge
from minris.images.commitment import (
    Evidence,
    commitment_result,
    pass_request_on,
    take_commitment_report,
)
from minris.outbox import REQUEST_LANE
from minris.standard.commitment import REFERENCED_SOP
from minris.standard.dictionary import tag_of
from minris.standard.status import Refusal, Status
from minris.standard.uids import (
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    VERIFICATION,
    new_uid,
)
from minris.store.models import CommitmentInstance, Outbox
from minris.store.rows import fetch_rows
from minris.upper_layer.association import Association
from minris.upper_layer.caller import Caller, DeliveryError
from minris.upper_layer.pdus import NO_DATA_SET, encode_command

BY_COMMITMENT = "missing_minutes = 0\nevidence = commitment"


# What an archive reports.


def result(uid, good=(), bad=(), **changes):
    """Event information: images that are committed, and (image, reason) of those that are not."""
    ds = dataset(TransactionUID=uid)
    references = [
        dataset(ReferencedSOPClassUID=one.sop_class, ReferencedSOPInstanceUID=one.uid)
        for one in good
    ]
    failed = [
        dataset(
            ReferencedSOPClassUID=one.sop_class,
            ReferencedSOPInstanceUID=one.uid,
            FailureReason=reason,
        )
        for one, reason in bad
    ]
    if references:
        ds.ReferencedSOPSequence = references
    if failed:
        ds.FailedSOPSequence = failed
    ds.update(dataset(**changes))
    return ds


class Committer:
    """An archive in pynetdicom that is asked for its commitment, and reports when it is told to.

    answer   its status for a request, or a function of the event that gives it; after: is called
             when the response was sent
    asked    (Transaction UID, UIDs of the images, association) of each request
    """

    def __init__(self, port=0, answer=ACCEPTED, after=None):
        self.port, self.answer, self.after = port or peers.free_port(), answer, after
        self.asked = queue.Queue()
        self.listen()

    def listen(self, **how):
        self.ae = AE(AE_TITLE)
        self.ae.add_supported_context(STORAGE_COMMITMENT)
        for name, setting in how.items():
            setattr(self.ae, name, setting)
        handlers = [(evt.EVT_N_ACTION, self._asked), (evt.EVT_PDU_SENT, self._sent)]
        self.ae.start_server((peers.HOST, self.port), block=False, evt_handlers=handlers)

    def _asked(self, event):
        ds = event.action_information
        found = [one.ReferencedSOPInstanceUID for one in ds.ReferencedSOPSequence]
        assert event.action_type == 1
        assert event.request.RequestedSOPInstanceUID == STORAGE_COMMITMENT_INSTANCE
        self.asked.put((str(ds.TransactionUID), found, event.assoc))
        return self.answer(event) if callable(self.answer) else self.answer, None

    def _sent(self, event):
        if self.after and type(event.pdu).__name__ == "P_DATA_TF":
            self.after(event)

    def next(self, timeout_s=PATIENCE_S):
        """The next request: its Transaction UID, and the UIDs of the images."""
        return self.asked.get(timeout=timeout_s)[:2]

    def stop(self):
        self.ae.shutdown()


@pytest.fixture
def committer():
    """Gives a function that starts a Committer."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, **how):
            one = Committer(*arguments, **how)
            stack.callback(one.stop)
            return one

        yield start


def report(port, ds, kind=None, calling=AE_TITLE, takes_role=True, **changes):
    """Report on an association of the archive's own, as SCP: the status."""
    ae = AE(calling)
    ae.add_requested_context(STORAGE_COMMITMENT)
    roles = [build_role(STORAGE_COMMITMENT, scp_role=True)]
    association = ae.associate(peers.HOST, port, ae_title="MINRIS", ext_neg=roles)
    assert association.is_established
    kind = kind or (2 if "FailedSOPSequence" in ds else 1)
    instance = changes.get("instance", STORAGE_COMMITMENT_INSTANCE)
    answer, _ = association.send_n_event_report(ds, kind, STORAGE_COMMITMENT, instance)
    association.release()
    return answer.Status


def event_request(ds, kind=1):
    """An N-EVENT-REPORT of pynetdicom, to be sent where nobody waits for its response."""
    primitive = N_EVENT_REPORT()
    primitive.MessageID, primitive.EventTypeID = 7, kind
    primitive.AffectedSOPClassUID = STORAGE_COMMITMENT
    primitive.AffectedSOPInstanceUID = STORAGE_COMMITMENT_INSTANCE
    primitive.EventInformation = io.BytesIO(encode(ds, True, True))
    return primitive


@pytest.fixture
def passing(run_appliance, modality, committer):
    """An appliance whose archive is a Committer: both."""
    one = committer()
    return run_appliance(settings(modality.port, one.port, commitment=BY_COMMITMENT)), one


# Orthanc's own commitment.


def known_to(archive, running):
    """Orthanc knows the appliance, and commits for it."""
    entry = {"AET": "MINRIS", "Host": peers.HOST, "Port": running.port}
    entry["AllowStorageCommitment"] = True
    archive.http.put("/modalities/minris", json=entry).raise_for_status()


@pytest.fixture
def relay_box(run_appliance, modality, archive):
    """An appliance that passes requests on to Orthanc."""
    running = run_appliance(settings(modality.port, archive.port, commitment=BY_COMMITMENT))
    known_to(archive, running)
    return running


def test_what_orthanc_commits_is_safe(relay_box, modality, archive, tmp_path):
    """Type 1 under the original Transaction UID, by the title that was called, each once."""
    images, uid = series(4), new_uid()
    archive.receive(tmp_path, *images)
    assert modality.ask(relay_box.port, uid, images) == ACCEPTED
    event = modality.event(uid)
    assert heard(event) == (1, uids(images), {})
    assert "FailedSOPSequence" not in event["dataset"]
    assert (event["calling"], event["called"]) == ("MINRIS", "CT1")
    assert event["dataset"]["RetrieveAETitle"] == AE_TITLE
    assert once_in(relay_box, uid, "told").told_at


def test_what_orthanc_does_not_commit_is_not_safe(relay_box, modality, archive):
    """Type 2 with exactly the one that it does not have."""
    images, uid = series(4), new_uid()
    archive.store(*images[:3])
    assert modality.ask(relay_box.port, uid, images) == ACCEPTED
    assert modality.result(uid) == (2, uids(images[:3]), {images[3].uid: MISSING})


def test_orthanc_stopped_commits_nothing_and_started_all(run_appliance, modality, own_archive):
    """No report while it is down; success by itself."""
    images, uid = series(3), new_uid()
    own_archive.store(*images)
    own_archive.stop()
    text = settings(modality.port, own_archive.port, commitment=BY_COMMITMENT)
    running = run_appliance(text)
    assert modality.ask(running.port, uid, images) == ACCEPTED
    row = once_said_why(running, uid, times=3)
    assert (row.state, row.problem) == ("asked", "cannot connect: connection refused")
    assert not modality.has_heard(uid)
    known = json.loads(own_archive.settings.read_text(encoding="utf-8"))
    entry = {"AET": "MINRIS", "Host": peers.HOST, "Port": running.port}
    known["DicomModalities"] = {"minris": entry | {"AllowStorageCommitment": True}}
    own_archive.settings.write_text(json.dumps(known), encoding="utf-8")
    own_archive.start()
    assert modality.result(uid) == (1, uids(images), {})


# Killed at any moment.


def an_hour_passes(path):
    """For what was passed on, in a store whose appliance is stopped."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        count = connection.execute(
            "UPDATE outbox SET sent_at = '2026-07-05T11:00:00.000000Z' WHERE lane = ?",
            (REQUEST_LANE,),
        ).rowcount
    assert count == 1


def once_taken(folder):
    """Wait until it is kept that the archive has taken what was passed on."""
    deadline = time.monotonic() + PATIENCE_S
    [path] = folder.glob("*.db")
    while time.monotonic() < deadline:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            if connection.execute("SELECT max(sent_at) FROM outbox").fetchone()[0]:
                return
        time.sleep(0.01)
    raise TimeoutError("the archive has not taken it")


def killed_after_passing_on(tmp_path, text, modality, archive, uid, images):
    """Serve until the archive was asked; kill -9: the Transaction UID there, and the dead port."""
    with serving(write_config(tmp_path, text)) as (process, port):
        assert modality.ask(port, uid, images) == ACCEPTED
        passed = archive.next()
        once_taken(tmp_path)
        process.kill()
        process.wait(10)
    return passed[0], port


def test_killed_before_the_report_it_is_asked_anew(tmp_path, run_appliance, modality, committer):
    """The archive's report is refused connection and given up; after answer_minutes anew."""
    archive, images, uid = committer(), series(3), new_uid()
    text = settings(modality.port, archive.port, commitment=BY_COMMITMENT)
    lost, port = killed_after_passing_on(tmp_path, text, modality, archive, uid, images)
    with contextlib.closing(socket.socket()) as probe:
        assert probe.connect_ex((peers.HOST, port)) != 0, "its report is refused connection"
    an_hour_passes(tmp_path / "minris.db")
    running = run_appliance(text)
    anew, asked = archive.next()
    assert (anew != lost, asked) == (True, uids(images))
    assert not modality.has_heard(uid)
    assert report(running.port, result(anew, images)) == ACCEPTED
    assert modality.result(uid) == (1, uids(images), {})


def test_killed_before_the_report_the_archive_tries_again(
    tmp_path, run_appliance, modality, committer
):
    """Its report comes after the next start: it is not asked anew."""
    archive, images, uid = committer(), series(3), new_uid()
    text = settings(modality.port, archive.port, commitment=BY_COMMITMENT)
    passed, _ = killed_after_passing_on(tmp_path, text, modality, archive, uid, images)
    running = run_appliance(text)
    assert report(running.port, result(passed, images[:2], [(images[2], MISSING)])) == ACCEPTED
    assert modality.result(uid) == (2, uids(images[:2]), {images[2].uid: MISSING})
    assert archive.asked.empty()


def test_killed_before_the_archive_has_taken_it_it_is_asked_after_the_next_start(
    tmp_path, run_appliance, modality, committer, silent
):
    """kill -9 while it is being passed on: nobody was asked, so nobody is waited for."""
    archive, images, uid = committer(), series(3), new_uid()
    text = settings(modality.port, silent.port, commitment=BY_COMMITMENT)
    with serving(write_config(tmp_path, text)) as (process, port):
        assert modality.ask(port, uid, images) == ACCEPTED
        assert silent.called.wait(PATIENCE_S)
        process.kill()
        process.wait(10)
    running = run_appliance(settings(modality.port, archive.port, commitment=BY_COMMITMENT))
    passed, _ = archive.next(8)
    assert report(running.port, result(passed, images)) == ACCEPTED
    assert modality.result(uid) == (1, uids(images), {})


def test_killed_between_the_archives_report_and_ours_it_is_told(
    tmp_path, run_appliance, modality, committer, silent
):
    """kill -9 while the CT is being told."""
    archive, images, uid = committer(), series(3), new_uid()
    text = settings(silent.port, archive.port, commitment=BY_COMMITMENT)
    with serving(write_config(tmp_path, text)) as (process, port):
        assert modality.ask(port, uid, images) == ACCEPTED
        assert report(port, result(archive.next()[0], images)) == ACCEPTED
        assert silent.called.wait(PATIENCE_S)
        assert state_in(tmp_path / "minris.db", uid) == "judged"
        process.kill()
        process.wait(10)
    run_appliance(settings(modality.port, archive.port, commitment=BY_COMMITMENT))
    assert modality.result(uid) == (1, uids(images), {})
    assert archive.asked.empty()


# Who reports, and what.


def passed_on(passing, images, uid):
    """A request that was passed on: its Transaction UID at the archive."""
    running, archive = passing
    put(running, uid, images)
    passed, asked = archive.next()
    assert (asked, passed != uid) == (uids(images), True)
    return passed


def test_the_report_is_passed_back_under_the_original_uid(passing, modality):
    """And not before it came."""
    images, uid = series(2), new_uid()
    passed = passed_on(passing, images, uid)
    row = once_failed(passing[0], uid)
    assert (row.state, modality.has_heard(uid)) == ("asked", False)
    assert report(passing[0].port, result(passed, images)) == ACCEPTED
    assert modality.result(uid) == (1, uids(images), {})


def test_a_stranger_does_not_commit(passing, modality):
    """0115 for the CT itself, which knows the UID; nothing changes, the archive is heard."""
    images, uid = series(2), new_uid()
    passed = passed_on(passing, images, uid)
    running = passing[0]
    for ds in (result(passed, images), result(passed, bad=[(one, MISSING) for one in images])):
        assert report(running.port, ds, calling="CT1") == 0x0115
    row = running.read(request_row, uid)
    assert (row.state, running.read(verdicts, row.id)) == ("asked", ["", ""])
    assert report(running.port, result(passed, images)) == ACCEPTED
    assert modality.result(uid) == (1, uids(images), {})


def test_a_report_on_nothing_that_was_passed_on_is_refused(passing):
    """0115 for an unknown Transaction UID, and for that of the CT; nothing changes."""
    images, uid = series(2), new_uid()
    passed_on(passing, images, uid)
    for unknown in (new_uid(), uid):
        assert report(passing[0].port, result(unknown, images)) == 0x0115
    row = passing[0].read(request_row, uid)
    assert (row.state, passing[0].read(verdicts, row.id)) == ("asked", ["", ""])


def test_the_same_report_twice_is_one_report(passing, modality):
    """0000 to each, also where the second contradicts the first; the CT is told once."""
    images, uid = series(2), new_uid()
    passed = passed_on(passing, images, uid)
    assert report(passing[0].port, result(passed, images)) == ACCEPTED
    assert modality.result(uid) == (1, uids(images), {})
    once_in(passing[0], uid, "told")
    for ds in (result(passed, images), result(passed, bad=[(one, MISSING) for one in images])):
        assert report(passing[0].port, ds) == ACCEPTED
    row = passing[0].read(request_row, uid)
    assert (row.state, passing[0].read(verdicts, row.id)) == ("told", ["0000", "0000"])
    assert not modality.has_heard(uid)


def test_a_report_that_is_none_is_refused(passing, modality):
    """0113 for event type 3, 0112 for another instance; the true one is taken after it."""
    images, uid = series(1), new_uid()
    passed = passed_on(passing, images, uid)
    ds, port = result(passed, images), passing[0].port
    assert report(port, ds, 3) == 0x0113
    assert report(port, ds, instance="1.2.840.10008.1.20.1.2") == 0x0112
    nameless = result(passed, images)
    del nameless.TransactionUID
    assert report(port, nameless) == 0x0120
    reasonless = result(passed, bad=[(images[0], MISSING)])
    del reasonless.FailedSOPSequence[0].FailureReason
    assert report(port, reasonless) == 0x0120
    row = passing[0].read(request_row, uid)
    assert passing[0].read(verdicts, row.id) == [""]
    assert report(port, ds) == ACCEPTED
    assert modality.result(uid) == (1, uids(images), {})


@pytest.mark.parametrize("user", [(), (role(STORAGE_COMMITMENT, 0, 1),)], ids=["none", "scp"])
def test_the_response_to_a_report_names_what_it_answers(passing, user):
    """PS3.7 10.3.1.2; also for an archive without role selection."""
    images, uid = series(1), new_uid()
    passed = passed_on(passing, images, uid)
    peer, _ = asking(passing[0].port, user=user, calling=AE_TITLE)
    set_ = request_command(
        "N-EVENT-REPORT", STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, True, 9, 1
    )
    with peer:
        peer.send(in_pdus(1, set_, encode(result(passed, images), True, True)))
        [(fields, data)] = read_messages([peer.receive(PATIENCE_S)])
    assert (word(fields, 0x0100), word(fields, 0x0120), word(fields, 0x0900)) == (0x8100, 9, 0)
    assert (word(fields, 0x1002), data) == (1, None)
    assert fields[0x1000].rstrip(b"\0").decode() == STORAGE_COMMITMENT_INSTANCE


def reporting_on_ours(images):
    """Report on the association that the request came by, and wait for no response."""
    asked = []

    def send(event):
        if event.event.name == "EVT_N_ACTION":
            uid = event.action_information.TransactionUID
        elif asked:  # once
            uid = asked.pop()
        else:
            return ACCEPTED
        where = event.assoc.accepted_contexts[0].context_id
        event.assoc.dimse.send_msg(event_request(result(uid, images)), where)
        return ACCEPTED

    def remember(event):
        asked[:] = [event.action_information.TransactionUID]
        return ACCEPTED

    return send, remember


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_archive_that_reports_on_our_own_association_first(
    run_appliance, modality, committer, when
):
    """PS3.4 J.3.3.1.2: it may try there, before or after its response; then on one of its own."""
    images, uid = series(2), new_uid()
    send, remember = reporting_on_ours(images)
    how = {"before": {"answer": send}, "after": {"answer": remember, "after": send}}
    archive = committer(**how[when])
    running = run_appliance(settings(modality.port, archive.port, commitment=BY_COMMITMENT))
    put(running, uid, images)
    passed, _ = archive.next()
    once_failed(running, uid)
    assert report(running.port, result(passed, images)) == ACCEPTED
    assert modality.result(uid) == (1, uids(images), {})


# What counts in a report: in the core.


@pytest.fixture
def passed_at_noon(noon):
    """Gives a function that asks for images, passes them on, and takes a report after five minutes.

    It gives the state of the request, and its verdicts in the order of the images.
    """
    noon.config.commitment.evidence = ("commitment",)

    def play(images, *reports, kind=None, minutes=5, calling=AE_TITLE):
        one = ask(noon, images)
        uid = pass_request_on(noon, one, AE_TITLE)
        late = at(noon, minutes=minutes)
        late = dataclasses.replace(late, actor=Actor(calling, peers.HOST))
        for tell in reports:
            ds = tell(uid)
            number = kind or (2 if "FailedSOPSequence" in ds else 1)
            take_commitment_report(late, uid, number, stored_form(ds))
        sql = "commitment_id = ? ORDER BY id"
        found = fetch_rows(CommitmentInstance, sql, one)
        return request_row("2.25.900").state, [row.verdict for row in found]

    return play


@pytest.mark.parametrize(
    ("reason", "verdict"),
    [
        (0x0110, "0110"),
        (0x0112, "0112"),
        (0x0119, "0119"),
        (0x0122, "0122"),
        (0x0213, "0213"),
        (0x0131, "0110"),  # of our UID there: it says nothing of that of the CT
        (0x0000, "0110"),
        (9999, "0110"),
    ],
)
def test_the_archives_reason_is_passed_back(passed_at_noon, reason, verdict):
    """PS3.3 C.14.1.1; any other is 0110."""
    images = series(2)
    told = passed_at_noon(images, lambda uid: result(uid, images[:1], [(images[1], reason)]))
    assert told == ("judged", ["0000", verdict])


def test_what_the_archive_has_judged_meanwhile_is_not_passed_on_again(noon):
    """Its report may come between a round's look at the images and its question."""
    noon.config.commitment.evidence = ("commitment",)
    images = series(1)
    one = ask(noon, images)
    uid = pass_request_on(noon, one, AE_TITLE)
    archive_speaks = dataclasses.replace(noon, actor=Actor(AE_TITLE, peers.HOST))
    take_commitment_report(archive_speaks, uid, 1, stored_form(result(uid, images)))
    assert pass_request_on(noon, one, AE_TITLE) == ""
    [only] = fetch_rows(Outbox, "lane = ?", REQUEST_LANE)
    assert only.sop_instance_uid == uid


def test_what_a_report_leaves_out_is_not_judged(passed_at_noon):
    images = series(3)
    told = passed_at_noon(images, lambda uid: result(uid, images[:1], [(images[1], MISSING)]))
    assert told == ("asked", ["0000", "0112", ""])


def test_what_a_report_names_beside_is_nothing(passed_at_noon):
    """Neither a verdict, nor an image more in our report."""
    images, strangers = series(1), series(2)
    told = passed_at_noon(
        images, lambda uid: result(uid, [*images, strangers[0]], [(strangers[1], MISSING)])
    )
    assert told == ("judged", ["0000"])
    data = ElementIndex(commitment_result(request_row("2.25.900")).data)
    assert len(data.items(REFERENCED_SOP)) == 1
    assert tag_of("FailedSOPSequence") not in data


@pytest.mark.parametrize("kind", [1, 2])
def test_what_is_both_committed_and_failed_is_not_safe(passed_at_noon, kind):
    images = series(2)
    told = passed_at_noon(
        images, lambda uid: result(uid, images, [(images[0], MISSING)]), kind=kind
    )
    assert told == ("judged", ["0112", "0000"])


def test_what_is_committed_as_another_class_is_a_conflict(passed_at_noon):
    images = series(2)
    other = images[1]._replace(sop_class=MR_IMAGE)
    told = passed_at_noon(images, lambda uid: result(uid, [images[0], other]))
    assert told == ("judged", ["0000", "0119"])


def test_what_is_committed_as_two_classes_is_not_safe(passed_at_noon):
    """In whatever order."""
    [image] = series(1)
    other = image._replace(sop_class=MR_IMAGE)
    told = passed_at_noon([image], lambda uid: result(uid, [other, image]))
    assert told[1] != ["0000"]


def test_a_report_of_failures_that_names_none_is_no_success(passed_at_noon):
    """PS3.4 Table J.3-2: (0008,1198) is type 1 in an event of type 2."""
    images = series(1)
    with contextlib.suppress(Refusal):
        passed_at_noon(images, lambda uid: result(uid, images), kind=2)
    assert [row.verdict for row in fetch_rows(CommitmentInstance, "1 = 1")] == [""]


def test_a_report_on_nothing_is_refused(passed_at_noon):
    """PS3.4 Table J.3-2: (0008,1199) is type 1 in an event of type 1; the true one may follow."""
    images = series(1)
    with refused(Status.MISSING_ATTRIBUTE):
        passed_at_noon(images, result)


def test_what_the_archive_does_not_commit_may_be_on_its_way(passed_at_noon):
    """Before missing_minutes it is asked anew, not failed."""
    images = series(2)
    told = passed_at_noon(
        images, lambda uid: result(uid, images[:1], [(images[1], MISSING)]), minutes=4
    )
    assert told == ("asked", ["0000", ""])


def test_another_title_of_the_archive_may_report(noon, passed_at_noon):
    """An archive may report under another of its AE titles."""
    archive = dataclasses.replace(noon.devices[1], ae_titles=(AE_TITLE, "ARCHIVE2"))
    noon.devices[1] = archive
    images = series(1)
    told = passed_at_noon(images, lambda uid: result(uid, images), calling="ARCHIVE2")
    assert told == ("judged", ["0000"])


def test_where_to_retrieve_is_as_the_archive_says(noon, passed_at_noon):
    """Retrieve AE Title of the report; without one, the archive itself."""
    images = series(1)
    passed_at_noon(images, lambda uid: result(uid, images, RetrieveAETitle="STORE"))
    assert commitment_result(request_row("2.25.900")).archive == "STORE"


def test_what_was_passed_on_is_dropped_with_its_request(noon, passed_at_noon):
    """keep_days: nothing is left of it; a report on it is on nothing known."""
    images = series(1)
    assert passed_at_noon(images, lambda uid: result(uid, images))[0] == "judged"
    assert tell_results(noon) == ["2.25.900"]
    purge(at(noon, days=91))
    assert fetch_rows(Outbox, "1 = 1") == []


# An archive that does not answer, by a clock of our own.


class Desk:
    """A desk whose clock we set.

    passed     (Transaction UID there, UIDs of the images) of what was passed on
    told       results that the requester was told
    evidence   what C-FIND finds; problem: why the archive takes nothing
    """

    def __init__(self, ctx, evidence="commitment", found=(), unchecked=()):
        ctx.config.commitment.evidence = tuple(evidence.split(", "))
        self.ctx, self.passed, self.told, self.problem = ctx, [], [], ""
        self.found, self.unchecked = seen_of(found), frozenset(uids(unchecked))

    def look(self, **later):
        """All that is due then is done."""

        async def call(function, *arguments):
            return function(*arguments)

        async def play():
            now = at(self.ctx, **later)
            desk = CommitmentDesk(self._ask, lambda: now, call, call)
            delivery = Delivery(desk.lanes(self._send), lambda: now, call, call)
            await desk.work(wait=True)
            await delivery.work(wait=True)

        asyncio.run(play())

    def report(self, ds, **later):
        late = at(self.ctx, **later)
        late = dataclasses.replace(late, actor=Actor(AE_TITLE, peers.HOST))
        kind = 2 if "FailedSOPSequence" in ds else 1
        take_commitment_report(late, ds.TransactionUID, kind, stored_form(ds))

    async def _ask(self, archive, references):
        asked = {one.sop_instance_uid for one in references}
        unchecked = self.unchecked & asked
        found = {uid: seen for uid, seen in self.found.items() if uid in asked}
        return Evidence(found, frozenset(asked - found.keys() - unchecked), unchecked)

    async def _send(self, receiver, events, heard):
        [event] = events
        data = ElementIndex(event.data)
        uid = data.get("TransactionUID")
        if event.kind == "commitment result":
            self.told.append((uid, event.event_type == 1))
        else:
            asked = [one.get("ReferencedSOPInstanceUID") for one in data.items(REFERENCED_SOP)]
            self.passed.append((uid, asked))
            if self.problem:
                raise DeliveryError(self.problem)
        heard(event)


def seen_of(images):
    return {one.uid: (one.sop_class, AE_TITLE) for one in images}


def test_an_archive_that_does_not_report_is_asked_anew(noon):
    """After answer_minutes, not before, under a Transaction UID of its own."""
    images, desk = series(2), Desk(noon)
    one = ask(noon, images)
    for minutes in (0, 1, 30, 59):
        desk.look(minutes=minutes)
    assert [asked for _, asked in desk.passed] == [uids(images)]
    desk.look(minutes=60)
    [(first, _), (second, asked)] = desk.passed
    assert (first != second, asked) == (True, uids(images))
    desk.look(minutes=119)
    assert (len(desk.passed), desk.told, verdicts(one)) == (2, [], ["", ""])


@pytest.mark.parametrize("which", [0, 1])
def test_a_report_that_comes_late_counts(noon, which):
    """On the first request, though it was asked anew meanwhile; or on the second."""
    images, desk = series(2), Desk(noon)
    ask(noon, images)
    desk.look()
    desk.look(minutes=60)
    desk.report(result(desk.passed[which][0], images), minutes=61)
    desk.look(minutes=62)
    assert desk.told == [("2.25.900", True)]
    desk.report(result(desk.passed[1 - which][0], bad=[(images[0], MISSING)]), minutes=63)
    desk.look(minutes=64)
    assert desk.told == [("2.25.900", True)]


def test_what_a_report_left_out_alone_is_asked_anew(noon):
    """Without waiting for what was answered already."""
    images, desk = series(3), Desk(noon)
    ask(noon, images)
    desk.look()
    desk.report(result(desk.passed[0][0], images[:2]), minutes=1)
    desk.look(minutes=2)
    assert [asked for _, asked in desk.passed] == [uids(images), uids(images[2:])]
    desk.report(result(desk.passed[1][0], images[2:]), minutes=3)
    desk.look(minutes=4)
    assert desk.told == [("2.25.900", True)]


@pytest.mark.parametrize("problem", ["", "cannot connect: connection refused"])
def test_without_a_report_to_the_end_of_its_time_it_is_0110(noon, problem):
    """give_up_hours: not a minute before; what was committed meanwhile stays so."""
    images, desk = series(2), Desk(noon)
    desk.problem = problem
    one = ask(noon, images)
    desk.look()
    if not problem:
        desk.report(result(desk.passed[0][0], images[:1]), minutes=1)
    for hours in range(1, 24):
        desk.look(hours=hours)
    desk.look(hours=23, minutes=59)
    assert (request_row("2.25.900").state, desk.told) == ("asked", [])
    desk.look(hours=24)
    assert desk.told == [("2.25.900", False)]
    assert verdicts(one) == (["0110", "0110"] if problem else ["0110", "0000"])


def test_a_report_after_the_end_changes_nothing(noon):
    """What the CT was told is final."""
    images, desk = series(1), Desk(noon)
    one = ask(noon, images)
    desk.look()
    desk.look(hours=24)
    desk.report(result(desk.passed[0][0], images), hours=25)
    desk.look(hours=26)
    assert (verdicts(one), desk.told) == (["0110"], [("2.25.900", False)])


def test_the_web_is_answered_when_the_archive_has_reported(passing):
    """202 until then."""
    running, archive = passing
    images, uid = series(2), new_uid()
    with door_of(running) as door:
        assert post(door, uid, flat(images)).status_code == 202
        passed, asked = archive.next()
        assert (asked, get(door, uid).status_code) == (uids(images), 202)
        ds = result(passed, images[:1], [(images[1], 0x0213)])
        assert report(running.port, ds) == ACCEPTED
        found = verdicts_of(read(answer_of(door, uid)))
    assert (found.good, found.bad) == ([images[0].uid], {images[1].uid: 0x0213})


# Several kinds of evidence.


def test_only_what_could_not_be_checked_is_passed_on(noon):
    """archive, commitment: one is found, one is not there, one could not be looked for."""
    images = series(3)
    desk = Desk(noon, "archive, commitment", found=images[:1], unchecked=images[2:])
    one = ask(noon, images)
    desk.look()
    assert [asked for _, asked in desk.passed] == [uids(images[2:])]
    desk.report(result(desk.passed[0][0], images[2:]), minutes=1)
    desk.look(minutes=5)
    assert desk.told == [("2.25.900", False)]
    assert sorted(verdicts(one)) == ["0000", "0000", "0112"]


def test_what_the_archive_does_not_have_stays_missing_though_it_does_not_report(noon):
    """0112 for what C-FIND looked for in vain, 0110 for what nobody could look for."""
    images = series(2)
    desk = Desk(noon, "archive, commitment", unchecked=images[1:])
    one = ask(noon, images)
    for hours in (0, 1, 24):
        desk.look(hours=hours)
    assert desk.told == [("2.25.900", False)]
    assert sorted(verdicts(one)) == ["0110", "0112"]


def test_nothing_is_passed_on_where_all_was_checked(noon):
    images = series(2)
    desk = Desk(noon, "archive, commitment", found=images[:1])
    one = ask(noon, images)
    for minutes in (0, 5):
        desk.look(minutes=minutes)
    assert (desk.passed, verdicts(one)) == ([], ["0112", "0000"])


def test_what_is_found_needs_no_report(noon):
    """commitment, archive: all is passed on; what C-FIND finds does not wait for the report."""
    images = series(2)
    desk = Desk(noon, "commitment, archive", found=images[:1])
    one = ask(noon, images)
    desk.look()
    assert [asked for _, asked in desk.passed] == [uids(images)]
    assert verdicts(one) == ["", "0000"]
    desk.look(minutes=30)
    assert verdicts(one) == ["", "0000"], "the archive may commit it yet"
    desk.report(result(desk.passed[0][0], images), minutes=31)
    desk.look(minutes=32)
    assert desk.told == [("2.25.900", True)]


def test_a_notice_beside_what_was_passed_on(noon):
    """availability, commitment: only what was not notified is passed on."""
    images = series(2)
    notify_of(noon, images[:1])
    desk = Desk(noon, "availability, commitment")
    one = ask(noon, images)
    desk.look()
    assert [asked for _, asked in desk.passed] == [uids(images[1:])]
    assert verdicts(one) == ["", "0000"]


def test_a_notice_that_comes_while_the_archive_is_waited_for(noon):
    """commitment, availability: at once."""
    images = series(2)
    desk = Desk(noon, "commitment, availability")
    ask(noon, images)
    desk.look()
    notify_of(at(noon, minutes=1), images)
    desk.look(minutes=1)
    assert desk.told == [("2.25.900", True)]


def test_what_could_not_be_checked_and_was_not_notified_is_0110(noon):
    """archive, availability: nobody has looked for it, so nobody says that it is not there."""
    images = series(3)
    notify_of(noon, images[1:2])
    desk = Desk(noon, "archive, availability", unchecked=images[:2])
    one = ask(noon, images)
    desk.look(minutes=5)
    assert desk.told == [("2.25.900", False)]
    rows = fetch_rows(CommitmentInstance, "commitment_id = ? ORDER BY id", one)
    assert [row.verdict for row in rows] == ["0110", "0000", "0112"]


# An archive that does not take it.


def says(status):
    return lambda archive: setattr(archive, "answer", status)


def rejects(archive):
    archive.stop()
    archive.listen(require_calling_aet=["NOBODY"])


def aborts(archive):
    archive.answer = lambda event: event.assoc.abort() or ACCEPTED


UNWILLING = {
    "0110": (says(0x0110), "0110"),
    "0112": (says(0x0112), "0112"),
    "0213": (says(0x0213), "0213"),
    "rejects": (rejects, "rejects"),
    "aborts": (aborts, "ended the association"),
    "down": (lambda archive: archive.stop(), "connection refused"),
}


@pytest.mark.parametrize("name", UNWILLING)
def test_an_archive_that_does_not_take_it_is_asked_again(passing, modality, name):
    """Never success; the page says why; when it takes it, success by itself."""
    running, archive = passing
    unwilling, words = UNWILLING[name]
    images, uid = series(2), new_uid()
    unwilling(archive)
    put(running, uid, images)
    row = once_said_why(running, uid, times=2)
    assert words in row.problem
    assert not modality.has_heard(uid)
    archive.stop()
    archive.answer = ACCEPTED
    with archive.asked.mutex:
        archive.asked.queue.clear()
    archive.listen()
    passed, _ = archive.next()
    assert report(running.port, result(passed, images)) == ACCEPTED
    assert modality.result(uid) == (1, uids(images), {})


def test_an_archive_that_takes_no_requests_is_no_evidence(run_appliance, modality):
    """It takes C-ECHO alone."""
    ae = AE(AE_TITLE)
    ae.add_supported_context(VERIFICATION)
    server = ae.start_server((peers.HOST, 0), block=False)
    try:
        port = server.socket.getsockname()[1]
        running = run_appliance(settings(modality.port, port, commitment=BY_COMMITMENT))
        uid = new_uid()
        put(running, uid, series(1))
        row = once_said_why(running, uid)
        assert row.problem == "the archive takes no requests for storage commitment"
        assert not modality.has_heard(uid)
    finally:
        ae.shutdown()


@pytest.fixture
def impatient(monkeypatch):
    """Nobody is waited for."""
    silence_is_failure(monkeypatch)
    assert Association.ask.__defaults__ == (10.0,)
    monkeypatch.setattr(Association.ask, "__defaults__", (0.5,))


def test_an_archive_that_does_not_answer_but_reports(run_appliance, modality, committer, impatient):
    """Its response is lost, or late; what it reports on that request is true all the same."""
    ended = threading.Event()
    archive = committer(answer=lambda event: ended.wait(PATIENCE_S) and ACCEPTED)
    try:
        running = run_appliance(settings(modality.port, archive.port, commitment=BY_COMMITMENT))
        images, uid = series(2), new_uid()
        put(running, uid, images)
        passed, _ = archive.next()
        assert "no answer" in once_said_why(running, uid).problem
        assert not modality.has_heard(uid)
        assert report(running.port, result(passed, images)) == ACCEPTED
        assert modality.result(uid) == (1, uids(images), {})
    finally:
        ended.set()


# On the requester's own association.


def at_once(text):
    """Settings with report_on_same_association for the CT."""
    return text.replace("[device Archive]", "report_on_same_association = yes\n[device Archive]", 1)


class Scanner:
    """A CT in pynetdicom that keeps its association open.

    answer  its status for a report there, or a function of the event that gives it
    """

    def __init__(self, port, answer=ACCEPTED):
        self.answer, self.events = answer, queue.Queue()
        ae = AE("CT1")
        ae.add_requested_context(STORAGE_COMMITMENT)
        ae.add_requested_context(VERIFICATION)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._told)]
        self.association = ae.associate(peers.HOST, port, ae_title="MINRIS", evt_handlers=handlers)
        assert self.association.is_established

    def _told(self, event):
        ds = event.event_information
        self.events.put((ds.TransactionUID, verdicts_of(ds)._replace(kind=event.event_type)))
        return self.answer(event) if callable(self.answer) else self.answer, None

    def ask(self, uid, images):
        status, _ = self.association.send_n_action(
            request(uid, images), 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
        )
        assert status.Status == ACCEPTED

    def next(self):
        return self.events.get(timeout=PATIENCE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.association.is_established:
            self.association.release()


@pytest.fixture
def listening(console):
    """The CT, where it is called."""
    return console()


@pytest.fixture
def same(run_appliance, listening, committer):
    """An appliance that tells the CT on its own association, and its archive: both."""
    one = committer()
    text = at_once(settings(listening.port, one.port, commitment=BY_COMMITMENT))
    return run_appliance(text), one


def commit(same, images):
    """The archive commits what it was asked for last."""
    running, archive = same
    assert report(running.port, result(archive.next()[0], images)) == ACCEPTED


def test_the_result_is_told_on_the_requesters_association(same, listening):
    """Twice, on one association that stays open; it is not called."""
    with Scanner(same[0].port) as ct:
        for count in (2, 1):
            images, uid = series(count), new_uid()
            ct.ask(uid, images)
            commit(same, images)
            assert ct.next() == (uid, (1, uids(images), {}))
            once_in(same[0], uid, "told")
        assert ct.association.send_c_echo().Status == ACCEPTED
    assert (listening.requests, ct.events.empty()) == ([], True)


def test_a_requester_that_has_released_is_called(same, listening):
    images, uid = series(2), new_uid()
    with Scanner(same[0].port) as ct:
        ct.ask(uid, images)
    commit(same, images)
    assert listening.next() == (uid, (1, uids(images), {}))
    assert ct.events.empty()


def test_without_the_setting_it_is_called_though_it_is_there(run_appliance, listening, committer):
    archive = committer()
    running = run_appliance(settings(listening.port, archive.port, commitment=BY_COMMITMENT))
    images, uid = series(1), new_uid()
    with Scanner(running.port) as ct:
        ct.ask(uid, images)
        commit((running, archive), images)
        assert listening.next()[0] == uid
        once_in(running, uid, "told")
        assert ct.events.empty()


@pytest.mark.parametrize("status", [0x0110, 0x0213, 0x0211])
def test_a_requester_that_fails_there_is_called(same, listening, status):
    """Once here, once there."""
    images, uid = series(2), new_uid()
    with Scanner(same[0].port, answer=status) as ct:
        ct.ask(uid, images)
        commit(same, images)
        assert listening.next() == (uid, (1, uids(images), {}))
        once_in(same[0], uid, "told")
        assert ct.next()[0] == uid
        assert (ct.events.empty(), listening.events.empty()) == (True, True)


@pytest.mark.parametrize("status", [0x0112, 0x0115])
def test_a_requester_that_knows_nothing_of_it_there_is_called_once_at_most(same, listening, status):
    images, uid = series(2), new_uid()
    with Scanner(same[0].port, answer=status) as ct:
        ct.ask(uid, images)
        commit(same, images)
        once_in(same[0], uid, "told")
        assert ct.next()[0] == uid
        assert ct.events.empty()
    assert listening.events.qsize() <= 1


def test_a_requester_that_aborts_there_is_called(same, listening):
    images, uid = series(2), new_uid()
    with Scanner(same[0].port, answer=lambda event: event.assoc.abort() or ACCEPTED) as ct:
        ct.ask(uid, images)
        commit(same, images)
        assert listening.next() == (uid, (1, uids(images), {}))
        once_in(same[0], uid, "told")
        assert ct.events.qsize() == 1


def asked_over(same, images, uid, *contexts, number=1):
    """A CT on bare sockets whose request was committed by the archive: it, and what it is told."""
    peer = Peer(same[0].port)
    peer.associate(associate_rq(*contexts))
    peer.send(n_action(uid, images, number))
    assert status_of(peer) == (ACCEPTED, "")
    commit(same, images)
    return peer, peer.receive(PATIENCE_S)


COMMITTING = context(1, STORAGE_COMMITMENT, IMPLICIT)
ECHOING = context(3, VERIFICATION, IMPLICIT)


def response_to_report(number, status=0x0000, message_id=1):
    set_ = encode_command(
        AffectedSOPClassUID=STORAGE_COMMITMENT,
        CommandField=0x8100,
        MessageIDBeingRespondedTo=message_id,
        CommandDataSetType=NO_DATA_SET,
        Status=status,
        AffectedSOPInstanceUID=STORAGE_COMMITMENT_INSTANCE,
        EventTypeID=1,
    )
    return p_data(value(number, 3, set_))


def echo_on(number):
    set_ = encode_command(
        AffectedSOPClassUID=VERIFICATION,
        CommandField=0x0030,
        MessageID=2,
        CommandDataSetType=NO_DATA_SET,
    )
    return p_data(value(number, 3, set_))


@pytest.mark.parametrize(("number", "syntax"), [(1, EXPLICIT), (2, IMPLICIT), (254, IMPLICIT)])
def test_the_report_comes_on_the_context_of_the_request(same, listening, number, syntax):
    """Also with an even ID, as dcm4che's client sends; in its transfer syntax."""
    images, uid = series(1), new_uid()
    peer = Peer(same[0].port)
    with peer:
        peer.associate(associate_rq(context(number, STORAGE_COMMITMENT, syntax)))
        peer.send(n_action(uid, images, number, explicit=syntax == EXPLICIT))
        assert status_of(peer) == (ACCEPTED, "")
        commit(same, images)
        pdu = peer.receive(PATIENCE_S)
        assert pdu[1][4] == number
        [(fields, data)] = read_messages([pdu])
        assert (word(fields, 0x0100), word(fields, 0x1002)) == (0x0100, 1)
        told = ElementIndex(recode(data, syntax == EXPLICIT))
        assert told.get("TransactionUID") == uid
        assert [one.get("ReferencedSOPInstanceUID") for one in told.items(REFERENCED_SOP)]
        peer.send(response_to_report(number, message_id=word(fields, 0x0110)))
        once_in(same[0], uid, "told")
    assert listening.requests == []


def test_a_requester_that_does_not_answer_there_is_called(same, listening, impatient):
    """Told once here, once there; what it answers late harms nothing."""
    images, uid = series(1), new_uid()
    peer, _ = asked_over(same, images, uid, COMMITTING, ECHOING)
    with peer:
        assert listening.next() == (uid, (1, uids(images), {}))
        once_in(same[0], uid, "told")
        peer.send(response_to_report(1), echo_on(3))
        [(fields, _)] = read_messages([peer.receive(PATIENCE_S)])
        assert (word(fields, 0x0100), word(fields, 0x0900)) == (0x8030, 0x0000)
    assert listening.events.empty()


def test_a_requester_that_proposed_the_class_twice_is_told_once_there(same, listening):
    """Once for each transfer syntax, as many do: it has heard, whichever it is told on."""
    images, uid = series(1), new_uid()
    contexts = COMMITTING, context(3, STORAGE_COMMITMENT, EXPLICIT)
    peer, _ = asked_over(same, images, uid, *contexts)
    with peer:
        peer.send(response_to_report(1, 0x0110))
        assert listening.next()[0] == uid
        once_in(same[0], uid, "told")
        peer.socket.settimeout(0.2)
        assert peer.buffer == b""
        with pytest.raises(TimeoutError):
            peer.socket.recv(1)


def test_a_response_to_another_message_is_none(same, listening, impatient):
    """Message ID Being Responded To (0000,0120) names another: it was not heard."""
    images, uid = series(1), new_uid()
    peer, _ = asked_over(same, images, uid, COMMITTING)
    with peer:
        peer.send(response_to_report(1, message_id=77))
        assert listening.next()[0] == uid


def test_a_response_of_another_kind_is_none(same, listening, impatient):
    """A C-ECHO response is no answer to a report."""
    images, uid = series(1), new_uid()
    peer, _ = asked_over(same, images, uid, COMMITTING, ECHOING)
    set_ = encode_command(
        AffectedSOPClassUID=VERIFICATION,
        CommandField=0x8030,
        MessageIDBeingRespondedTo=1,
        CommandDataSetType=NO_DATA_SET,
        Status=0x0000,
    )
    with peer:
        peer.send(p_data(value(3, 3, set_)))
        assert listening.next()[0] == uid


def test_of_two_associations_one_is_told(same, listening):
    images, uid = series(1), new_uid()
    with Scanner(same[0].port) as first, Scanner(same[0].port) as second:
        second.ask(uid, images)
        commit(same, images)
        once_in(same[0], uid, "told")
        assert first.events.qsize() + second.events.qsize() == 1
    assert listening.requests == []


def test_an_association_on_which_the_ct_is_scp_is_not_for_reports(same, listening, impatient):
    """PS3.7 D.3.3.4: proposed with SCU 0, SCP 1 and taken so, we are SCU there, and report nothing."""
    images, uid = series(1), new_uid()
    scp, negotiated = asking(same[0].port, user=(role(STORAGE_COMMITMENT, 0, 1),))
    with scp:
        assert negotiated.roles == {STORAGE_COMMITMENT: (0, 1)}
        put(same[0], uid, images)
        commit(same, images)
        assert listening.next()[0] == uid
        assert scp.release() == [], "nothing was told there"


# A requester that was away.


@pytest.fixture
def patient(monkeypatch):
    """What has failed is tried again after ten minutes."""
    monkeypatch.setattr("minris.conformance.services.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.delivery.archive.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.delivery.receivers.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.delivery.sockets.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.images.commitment.RETRY_AFTER", (600,))
    monkeypatch.setattr("minris.outbox.RETRY_AFTER", (600,))


def told_to_nobody(run_appliance, archive, ct, images, uid):
    """An appliance that could not tell the CT."""
    archive.store(*images)
    ct.stop()
    running = run_appliance(settings(ct.port, archive.port))
    put(running, uid, images)
    once(running, uid, lambda row: row.state == "judged" and row.failures, "it was told")
    return running


def echoes(running, calling="CT1"):
    [answer] = peers.run_dimse(running.port, [{"op": "echo"}], calling)
    assert answer["status"] == 0x0000


def test_a_machine_that_calls_is_told_at_once(run_appliance, listening, archive, patient):
    """It is on again, and verifies: not after ten minutes."""
    images, uid = series(2), new_uid()
    running = told_to_nobody(run_appliance, archive, listening, images, uid)
    listening.listen()
    echoes(running)
    assert listening.next() == (uid, (1, uids(images), {}))
    once_in(running, uid, "told")


def test_the_call_of_another_machine_is_not_that_of_the_ct(
    run_appliance, listening, archive, patient
):
    images, uid = series(2), new_uid()
    running = told_to_nobody(run_appliance, archive, listening, images, uid)
    listening.listen()
    echoes(running, "US1")
    row = running.read(request_row, uid)
    assert (row.state, row.failures, listening.events.empty()) == ("judged", 1, True)


def test_a_machine_that_calls_after_our_restart_is_told_at_once(
    run_appliance, listening, archive, patient
):
    """What failed before the restart is as well known after it."""
    images, uid = series(2), new_uid()
    running = told_to_nobody(run_appliance, archive, listening, images, uid)
    running.stop()
    running = run_appliance(settings(listening.port, archive.port))
    listening.listen()
    echoes(running)
    assert listening.next() == (uid, (1, uids(images), {}))


@pytest.mark.parametrize("status", [0x0110, 0x0213, 0x0211])
def test_a_report_that_fails_is_told_again(run_appliance, console, archive, status):
    """It was not heard: until it is."""
    ct = console(answer=status)
    running = run_appliance(settings(ct.port, archive.port))
    images, uid = series(1), new_uid()
    archive.store(*images)
    put(running, uid, images)
    row = once(running, uid, lambda row: row.failures >= 2, "it is not told again")
    assert (row.state, f"{status:04X}" in row.problem) == ("judged", True)
    ct.answer = ACCEPTED
    once_in(running, uid, "told")
    told = [ct.next() for _ in range(ct.events.qsize())]
    assert len(told) >= 3
    assert told == [(uid, (1, uids(images), {}))] * len(told)


# The page.


NOT_ANSWERED = re.compile(
    r"No answer since \d+ \w+ \d{4} [:0-9]+: cannot connect: connection refused\."
)


def page_of(running):
    with technologist_of(running) as anna:
        return words_of(anna.get("/commitments"))


def test_the_page_says_that_the_archive_takes_requests(passing):
    passed_on(passing, series(2), uid := new_uid())
    desk = passing[0].appliance.commitments
    once(passing[0], uid, lambda row: desk.line.reached.at, "the archive did not answer")
    words = page_of(passing[0])
    assert f"Archive checked: {AE_TITLE}." in words
    assert " it answered." in words
    assert "2 images not checked yet: keep them on the machine" in words


def test_the_page_says_that_the_archive_is_down(passing):
    running, archive = passing
    archive.stop()
    put(running, uid := new_uid(), series(1))
    once_said_why(running, uid)
    assert NOT_ANSWERED.search(page_of(running))


def test_an_archive_that_is_waited_for_has_not_answered(run_appliance, modality, committer):
    """Nobody has asked it since: when it answered last does not change."""
    archive = committer()
    commitment = f"{BY_COMMITMENT}\nlook_minutes = 0"  # nor does the archive watch ask
    running = run_appliance(settings(modality.port, archive.port, commitment=commitment))
    passed_on((running, archive), series(1), uid := new_uid())
    desk = running.appliance.commitments
    failures = once(
        running, uid, lambda row: row.failures and desk.line.reached.at, "no answer"
    ).failures
    last = desk.line.reached.at
    archive.stop()
    once(running, uid, lambda row: row.failures >= failures + 3, "it is not looked at again")
    assert running.appliance.commitments.line.reached.at == last


def test_an_archive_that_is_down_has_not_answered(run_appliance, modality, committer):
    """archive, commitment: it took the request, then it failed; C-FIND does not reach it."""
    archive, images, uid = committer(), series(1), new_uid()
    commitment = "missing_minutes = 0\nevidence = archive, commitment"
    running = run_appliance(settings(modality.port, archive.port, commitment=commitment))
    put(running, uid, images)
    assert once_said_why(running, uid).problem == "the archive accepts no queries (Study Root FIND)"
    assert archive.next()[1] == uids(images)
    archive.stop()
    once(running, uid, lambda row: "refused" in row.problem, "it is not asked again")
    assert NOT_ANSWERED.search(page_of(running))
