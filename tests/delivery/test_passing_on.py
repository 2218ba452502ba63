"""Sections 8, 10, 15, 17: what other systems are passed on; pynetdicom, dcmjs-dimse and DCMTK.

T-MPPS-22, T-MPPS-23.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import io
import json
import queue
import re
import signal
import sqlite3
import threading
from typing import NamedTuple

import httpx
import peers
import pytest
from conftest import item, write_config
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.dsutils import decode
from test_commitment import notice, series
from test_delivery import (
    PATIENCE_S,
    Silent,
    answering,
    once,
    soon_let_go,  # noqa: F401, a fixture
    woken_alone,  # noqa: F401, a fixture
)
from test_dicomweb_workitems import JSON
from test_events import later
from test_housekeeping import keeping, keys_of, metrics, perform, schedule
from test_mpps import (
    UID,
    creation,
    creation_for,
    dataset,
    discontinuation,
    ending,
    modality,
    serving,
    stored,
    stored_form,
)
from test_mpps import read as read_stored
from test_pages import csrf_of, employ, visiting, words_of

from minris.access.context import Actor
from minris.access.devices import save_device, stored_devices
from minris.appliance.jobs import job_purge, job_workitems
from minris.config.ini import ConfigError, Device, load_config
from minris.dataset.elements import EMPTY
from minris.delivery.receivers import Answered, Delivery, Lane
from minris.dimse.senders import DimseSender
from minris.housekeeping.retention import purge
from minris.images.availability import notify_availability
from minris.mpps.performed import create_mpps, set_mpps
from minris.orders.lookup import step_known
from minris.outbox import (
    MOST_ABORTS,
    PASSED_ON_LANE,
    RETRY_AFTER,
    due_events,
    due_receivers,
    give_up_events,
    note_failed,
    note_refused,
    note_sent,
    retry_events,
)
from minris.pages.machines.device_form import settings_of
from minris.standard.status import Refusal
from minris.standard.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    INSTANCE_AVAILABILITY,
    MPPS,
    MPPS_NOTIFICATION,
)
from minris.store.models import Outbox, database
from minris.store.rows import erase, fetch_rows, update_row
from minris.upper_layer.caller import Caller
from minris.ups.events import record_event

OTHER, THIRD = "2.25.31", "2.25.32"
CREATE, SET, TOLD = "N-CREATE", "N-SET", "N-EVENT-REPORT"
BEGUN, COMPLETED, DISCONTINUED, UPDATED, DELETED = 1, 2, 3, 4, 5  # PS3.4 Table F.9.2-1
NAME = "Wang^XiaoDong=王^小东"


# Receivers.


class Heard(NamedTuple):
    """A message as a receiver hears it; `data` is its data set as it came."""

    operation: str
    uid: str
    data: bytes
    explicit: bool
    command: Dataset

    @property
    def dataset(self):
        return decode(io.BytesIO(self.data), not self.explicit, True)


class Receiver:
    """pynetdicom as an archive that performed steps, notifications and availabilities come to.

    classes   the SOP classes that it takes
    answer    gives the status of a message: a number, or a data set with it
    gate      a message is answered when this is set
    """

    def __init__(
        self,
        answer=lambda heard: 0x0000,
        title="PACS",
        port=0,
        classes=(MPPS, MPPS_NOTIFICATION, INSTANCE_AVAILABILITY),
        role=True,
        syntax=EXPLICIT_VR_LITTLE_ENDIAN,
    ):
        self.answer, self.title, self.port = answer, title, port or peers.free_port()
        self.classes, self.role, self.syntax = classes, role, syntax
        self.messages, self.released = queue.Queue(), queue.Queue()
        self.requests, self.associations = [], []
        self.gate = threading.Event()
        self.gate.set()
        self.listen()

    def listen(self):
        self.ae = AE(self.title)
        for uid in self.classes:
            as_user = uid == MPPS_NOTIFICATION and self.role
            roles = {"scu_role": False, "scp_role": True} if as_user else {}
            self.ae.add_supported_context(uid, self.syntax, **roles)
        handlers = [
            (evt.EVT_REQUESTED, lambda e: self.requests.append(e.assoc.requestor.primitive)),
            (evt.EVT_ESTABLISHED, lambda e: self.associations.append(e.assoc)),
            (evt.EVT_RELEASED, lambda e: self.released.put("released")),
            (evt.EVT_N_CREATE, self._heard, [CREATE]),
            (evt.EVT_N_SET, self._heard, [SET]),
            (evt.EVT_N_EVENT_REPORT, self._heard, [TOLD]),
        ]
        self.ae.start_server((peers.HOST, self.port), block=False, evt_handlers=handlers)

    def _heard(self, event, operation):
        request = event.request
        keyword = {CREATE: "AttributeList", SET: "ModificationList", TOLD: "EventInformation"}
        data = getattr(request, keyword[operation])
        uid = getattr(request, "AffectedSOPInstanceUID", None) or request.RequestedSOPInstanceUID
        explicit = not event.context.transfer_syntax.is_implicit_VR
        command = event.message.command_set if hasattr(event, "message") else command_of(request)
        bytes_ = data.getvalue() if data else b""
        heard = Heard(operation, str(uid), bytes_, explicit, command)
        self.messages.put(heard)
        self.gate.wait(PATIENCE_S)
        return self.answer(heard), None

    def next(self, timeout_s=PATIENCE_S):
        """The next message."""
        return self.messages.get(timeout=timeout_s)

    def next_ones(self, count):
        """[(operation, UID)] of as many messages."""
        return [(one.operation, one.uid) for one in (self.next() for _ in range(count))]

    def next_events(self, count):
        """[(event type, UID)] of as many notifications."""
        return [(one.command.EventTypeID, one.uid) for one in (self.next() for _ in range(count))]

    def open_associations(self):
        return [one for one in self.associations if one.is_alive()]

    def stop(self):
        """End it, as if its plug were pulled."""
        self.gate.set()
        threading.Thread(target=self.ae.shutdown, daemon=True).start()  # waits for half a second


def command_of(request):
    """The fields of a request as a data set."""
    ds = Dataset()
    for keyword in (
        "MessageID EventTypeID AffectedSOPClassUID RequestedSOPClassUID AffectedSOPInstanceUID"
    ).split():
        if getattr(request, keyword, None) is not None:
            setattr(ds, keyword, getattr(request, keyword))
    return ds


@pytest.fixture
def receiver():
    """Gives a function that starts a Receiver."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, **how):
            one = Receiver(*arguments, **how)
            stack.callback(one.stop)
            return one

        yield start


@pytest.fixture
def impatient(monkeypatch):
    """Half a second of silence is a failure, not ten."""
    monkeypatch.setattr(Caller.__init__, "__defaults__", (0.5,))


@pytest.fixture
def at_once(monkeypatch):
    """What has failed is tried again without a wait."""
    monkeypatch.setattr("minris.conformance.services.RETRY_AFTER", (0,) * len(RETRY_AFTER))
    monkeypatch.setattr("minris.delivery.archive.RETRY_AFTER", (0,) * len(RETRY_AFTER))
    monkeypatch.setattr("minris.delivery.receivers.RETRY_AFTER", (0,) * len(RETRY_AFTER))
    monkeypatch.setattr("minris.delivery.sockets.RETRY_AFTER", (0,) * len(RETRY_AFTER))
    monkeypatch.setattr("minris.images.commitment.RETRY_AFTER", (0,) * len(RETRY_AFTER))
    monkeypatch.setattr("minris.outbox.RETRY_AFTER", (0,) * len(RETRY_AFTER))


def passed_on(kinds="mpps", more="", **ports):
    """Device sections: passed_on("mpps", PACS=11113)."""
    return "".join(
        f"[device {title} room]\nae_title = {title}\nhost = 127.0.0.1\nport = {port}\n"
        f"passed_on = {kinds}\n{more}\n"
        for title, port in ports.items()
    )


def report(appliance, *uids, end=ending, calling="CT1"):
    """A CT begins and ends exams: the statuses it is answered."""
    statuses = []
    with modality(appliance, calling) as call:
        for uid in uids:
            statuses += [call.create(creation(), uid).status, call.set(end(), uid).status]
    return statuses


def exam(*uids):
    """What is passed on of exams from begin to end."""
    return [(operation, uid) for uid in uids for operation in (CREATE, SET)]


def answers_of(title="PACS"):
    """(operation, answer, "sent", "given up" or "waits") of all that a receiver is passed on."""
    return [
        (row.operation, row.answer, "given up" if row.given_up_at else "sent" if row.sent_at else "waits")
        for row in fetch_rows(Outbox, "receiver = ? ORDER BY id", title)
    ]  # fmt: skip


def waits_for(title="PACS"):
    """What a receiver has still to hear."""
    return due_events(title, 1000, PASSED_ON_LANE)


def once_done(appliance, title="PACS"):
    """Wait until nothing waits for a receiver: what it has answered."""
    once(appliance, lambda: not waits_for(title), f"something waits for {title}")
    return appliance.read(answers_of, title)


def problem_of(title="PACS"):
    """What the last call of a receiver failed of."""
    row = database.execute_sql(
        "SELECT problem FROM receiver WHERE lane = 'passed on' AND ae_title = ?", (title,)
    )
    return (row.fetchone() or ("",))[0]


def once_failed(appliance, title="PACS"):
    """Wait for a failure to be noted: its words."""
    once(appliance, lambda: problem_of(title), f"{title} was not tried")
    return appliance.read(problem_of, title)


def try_again(appliance, title="PACS"):
    """What a technologist does when a receiver is back."""
    appliance.write(retry_events, appliance.context(), title, PASSED_ON_LANE)
    appliance.appliance.wake_delivery()


# Performed steps.


@pytest.mark.usefixtures("woken_alone")
@pytest.mark.parametrize("syntax", [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN])
def test_an_exam_is_passed_on_as_it_was_taken(run_appliance, receiver, syntax):
    archive = receiver(syntax=syntax)
    appliance = run_appliance(passed_on(PACS=archive.port))
    begin, end = creation(), ending()
    with modality(appliance) as call:
        call.create(begin)
        call.set(end)
    for sent, operation in ((begin, CREATE), (end, SET)):
        heard = archive.next()
        assert (heard.operation, heard.uid, heard.dataset) == (operation, UID, sent)
    assert once_done(appliance) == [(CREATE, "0000", "sent"), (SET, "0000", "sent")]


def test_what_a_receiver_has_taken_is_what_we_keep(run_appliance, receiver):
    archive = receiver()
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID)
    taken = archive.next().dataset
    taken.update(archive.next().dataset)
    del taken.SpecificCharacterSet
    assert taken == appliance.read(stored)


def test_exams_come_in_order_on_one_association(run_appliance, receiver):
    archive = receiver()
    appliance = run_appliance(passed_on(PACS=archive.port))
    uids = [f"2.25.4{number}" for number in range(60)]
    assert report(appliance, *uids) == [0x0000] * 120
    assert archive.next_ones(120) == exam(*uids)
    assert len(archive.associations) == 1


def test_a_receiver_by_its_own_name_is_called_by_it(run_appliance, receiver):
    archive = receiver()
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID)
    archive.next_ones(2)
    [asked] = archive.requests
    assert (asked.calling_ae_title, asked.called_ae_title) == ("MINRIS", "PACS")


def test_an_exam_without_a_uid_is_passed_on_with_the_one_that_was_made(run_appliance, receiver):
    archive = receiver()
    appliance = run_appliance(passed_on(PACS=archive.port))
    with modality(appliance) as call:
        made = call.create(creation(), uid=None).command.AffectedSOPInstanceUID
    assert archive.next_ones(1) == [(CREATE, made)]


@pytest.mark.usefixtures("woken_alone")
def test_an_exam_told_by_http_is_passed_on(run_appliance, receiver):
    archive = receiver()
    appliance = run_appliance(passed_on(PACS=archive.port))
    where = f"{appliance.url}/dicom-web/modality-performed-procedure-steps/{UID}"
    headers = {"Authorization": f"Bearer {appliance.token()}", **JSON}
    with httpx.Client(headers=headers, trust_env=False) as client:
        for ds, query, status in ((creation(), "", 201), (ending(), "?update", 200)):
            content = json.dumps([ds.to_json_dict()])
            answer = client.post(where + query, content=content)
            assert answer.status_code == status, answer.text
    assert archive.next_ones(2) == exam(UID)


@pytest.mark.parametrize("charset", ["GB18030", "ISO_IR 192", "ISO 2022 IR 6\\ISO 2022 IR 58"])
def test_an_archive_is_sent_its_own_character_set(run_appliance, receiver, charset):
    archive = receiver()
    more = f"character_set = {charset}"
    appliance = run_appliance(passed_on(more=more, PACS=archive.port))
    with modality(appliance, "US1") as call:
        call.create(creation())
        call.set(ending())
    heard = archive.next(), archive.next()
    found = [one.dataset for one in heard]
    peers.strip_escape_sequence(found[0], found[0]["PatientName"])
    assert found[0].PatientName == NAME
    encoding = {"GB18030": "gb18030", "ISO_IR 192": "utf-8"}.get(charset, "gb2312")
    assert "小东".encode(encoding) in heard[0].data
    assert "李".encode(encoding) in heard[1].data  # Operators' Name, within a sequence
    declared = [one.SpecificCharacterSet for one in found]
    assert ["\\".join([one] if isinstance(one, str) else one) for one in declared] in (
        [charset] * 2,
        ["\\ISO 2022 IR 58"] * 2,
    )


def test_what_was_refused_is_not_passed_on(ctx_with_pacs):
    ctx = ctx_with_pacs
    for ds in (creation(PerformedProcedureStepStatus="COMPLETED"), dataset()):
        with pytest.raises(Refusal):
            create_mpps(ctx, UID, stored_form(ds))
    with pytest.raises(Refusal):
        set_mpps(ctx, UID, stored_form(ending()))
    create_mpps(ctx, UID, stored_form(creation()))
    for ds in (dataset(PatientID="OTHER"), dataset(PerformedProcedureStepStatus="FOO")):
        with pytest.raises(Refusal):
            set_mpps(ctx, UID, stored_form(ds))
    with pytest.raises(Refusal):
        create_mpps(ctx, UID, stored_form(creation()))
    assert messages() == [(CREATE, UID, 0)]


def test_attributes_that_may_not_be_set_are_not_passed_on(ctx_with_pacs):
    """A receiver that is strict would refuse the whole with 0105."""
    ctx = ctx_with_pacs
    create_mpps(ctx, UID, stored_form(creation()))
    set_mpps(ctx, UID, stored_form(ending(PatientID=creation().PatientID)))
    [_, change] = waits_for()
    assert "PatientID" not in read_stored(change.data)
    assert "PerformedSeriesSequence" in read_stored(change.data)


@pytest.fixture
def ctx_with_pacs(ctx):
    """A Context of a clinic with an archive that is passed on all there is."""
    return with_pacs(ctx)


def with_pacs(ctx, kinds="mpps", **more):
    device = Device(
        name="PACS room",
        ae_titles=("PACS", "PACS2"),
        host="127.0.0.1",
        port=9,
        passed_on=frozenset(kinds.split()),
        **more,
    )
    return dataclasses.replace(ctx, devices=[*ctx.devices, device])


def messages(title="PACS"):
    """(operation, UID, event type) of what waits for a receiver."""
    return [(one.operation, one.uid, one.event_type) for one in waits_for(title)]


# Who sent it is not sent it.


@pytest.mark.parametrize("kinds", ["mpps", "mpps_notification", "availability"])
@pytest.mark.parametrize(("sender", "count"), [("PACS", 0), ("PACS2", 0), ("CT1", 1)])
def test_who_has_told_us_is_not_told_by_us(ctx, kinds, sender, count):
    """By none of its AE titles."""
    ctx = with_pacs(ctx, kinds).by(Actor(sender))
    create_mpps(ctx, UID, stored_form(creation()))
    notify_availability(ctx, OTHER, stored_form(notice(series(1))))
    assert len(messages()) == count


@pytest.mark.parametrize(
    "again",
    [
        dataset(PerformedProcedureStepDescription="CT chest"),
        dataset(PerformedProcedureStepStatus="IN PROGRESS"),
        dataset(PerformedProcedureStepStatus=""),
        dataset(PatientID="P000042"),
        dataset(),
    ],
    ids=lambda ds: " ".join(element.keyword for element in ds) or "nothing",
)
def test_a_change_that_changes_nothing_goes_nowhere(ctx_with_pacs, again):
    ctx = ctx_with_pacs
    create_mpps(ctx, UID, stored_form(creation()))
    set_mpps(ctx, UID, stored_form(again))
    assert messages() == [(CREATE, UID, 0)]


def test_a_name_sent_again_with_empty_components_goes_nowhere(ctx_with_pacs):
    ctx = ctx_with_pacs
    create_mpps(ctx, UID, stored_form(creation()))
    again = dataset(SpecificCharacterSet="ISO_IR 192", PatientName="Wang^XiaoDong^^^=王^小东^^")
    set_mpps(ctx, UID, stored_form(again))
    assert messages() == [(CREATE, UID, 0)]


class Ring:
    """Three appliances, processes of their own, each of which passes on to the next."""

    TITLES = ("RIS1", "RIS2", "RIS3")

    def __init__(self, folder):
        self.stack = contextlib.ExitStack()
        self.ports = {title: peers.free_port() for title in self.TITLES}
        self.folders = {title: folder / title for title in self.TITLES}
        for title, path in self.folders.items():
            path.mkdir()
            write_config(path, self.settings(title))

    def settings(self, title):
        at = self.TITLES.index(title)
        after, before = self.TITLES[(at + 1) % 3], self.TITLES[(at + 2) % 3]
        return (
            f"[dicom]\nae_title = {title}\nport = {self.ports[title]}\n"
            + passed_on(**{after: self.ports[after]})
            + f"[device before]\nae_title = {before}\n"
        )

    def start(self, *titles):
        for title in titles:
            self.stack.enter_context(serving(self.folders[title] / "config.ini"))

    def rows(self, title):
        """(operation, answer) of what one has to pass on; the answer is empty where it waits."""
        path = self.folders[title] / "minris.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return connection.execute(
                "SELECT operation, substr(answer, 1, 4) FROM outbox ORDER BY id"
            ).fetchall()

    def once_quiet(self, *counts):
        """Wait until each has passed on as much as it is to: what, in order."""
        deadline = datetime.datetime.now() + datetime.timedelta(seconds=PATIENCE_S)
        pause = threading.Event()
        while True:
            found = [self.rows(title) for title in self.TITLES]
            done = all(answer for rows in found for _, answer in rows)
            more = any(len(rows) > count for rows, count in zip(found, counts, strict=True))
            if more or (done and [len(rows) for rows in found] == list(counts)):
                return found
            assert datetime.datetime.now() < deadline, found
            pause.wait(0.05)


class Reached(NamedTuple):
    """Stands for an appliance of its own."""

    port: int


@pytest.fixture
def ring(tmp_path):
    one = Ring(tmp_path)
    with one.stack:
        yield one


def in_ring(ring):
    """An association of CT1 to the first of a ring."""
    ae = AE("CT1")
    ae.add_requested_context(MPPS)
    association = ae.associate(peers.HOST, ring.ports["RIS1"], ae_title="RIS1")
    assert association.is_established
    return association


@pytest.mark.long
def test_a_ring_of_three_ends(ring):
    """Each hears each message once; what comes back changes nothing."""
    ring.start(*ring.TITLES)
    ct = in_ring(ring)
    ct.send_n_create(creation(), MPPS, UID)
    ring.once_quiet(1, 1, 1)
    ct.send_n_set(dataset(PerformedProcedureStepDescription="CT chest and neck"), MPPS, UID)
    ring.once_quiet(2, 2, 2)
    ct.send_n_set(ending(), MPPS, UID)
    found = ring.once_quiet(3, 3, 3)
    ct.release()
    assert found[2] == [(CREATE, "0111"), (SET, "0000"), (SET, "A710")]


@pytest.mark.long
def test_a_ring_of_three_ends_with_two_changes_under_way(ring):
    """The older one comes back after the newer, and is news again to each."""
    ring.start("RIS1", "RIS2")
    ct = in_ring(ring)
    ct.send_n_create(creation(), MPPS, UID)
    for words in ("CT chest and neck", "CT chest and head"):
        ct.send_n_set(dataset(PerformedProcedureStepDescription=words), MPPS, UID)
    ct.release()
    ring.start("RIS3")
    threading.Event().wait(8)  # the second has waited for the third
    assert [len(rows) for rows in map(ring.rows, ring.TITLES)] == [3, 3, 3]


# Notifications.


LIVES = {
    "created": ([], [BEGUN]),
    "updated": ([dataset(PerformedProcedureStepDescription="CT neck")], [BEGUN, UPDATED]),
    "in progress again": ([dataset(PerformedProcedureStepStatus="IN PROGRESS")], [BEGUN, UPDATED]),
    "completed": ([ending()], [BEGUN, COMPLETED]),
    "discontinued": ([discontinuation("110513")], [BEGUN, DISCONTINUED]),
    "updated, then completed": (
        [dataset(PerformedProcedureStepDescription="CT neck"), ending()],
        [BEGUN, UPDATED, COMPLETED],
    ),
}


@pytest.mark.parametrize(("sets", "events"), LIVES.values(), ids=LIVES)
def test_each_step_of_an_exam_is_one_event(run_appliance, receiver, sets, events):
    """T-MPPS-22: a status change is no update as well."""
    archive = receiver()
    appliance = run_appliance(passed_on("mpps_notification", PACS=archive.port))
    with modality(appliance) as call:
        call.create(creation())
        for ds in sets:
            assert call.set(ds).status == 0x0000
    assert archive.next_events(len(events)) == [(event, UID) for event in events]
    assert len(once_done(appliance)) == len(events)


def test_a_notification_is_of_its_class_and_has_no_data_set(run_appliance, receiver):
    """T-MPPS-22."""
    archive = receiver()
    appliance = run_appliance(passed_on("mpps_notification", PACS=archive.port))
    report(appliance, UID)
    for _ in range(2):
        heard = archive.next()
        assert heard.command.AffectedSOPClassUID == "1.2.840.10008.3.1.2.3.5"
        assert (heard.operation, heard.uid, heard.data) == (TOLD, UID, b"")


def test_a_notification_is_proposed_with_us_as_scp(run_appliance, receiver):
    """PS3.4 F.2.1: role selection, and no extended negotiation. As SCU of the rest: the default."""
    archive = receiver()
    kinds = "mpps, mpps_notification, availability"
    appliance = run_appliance(passed_on(kinds, PACS=archive.port))
    report(appliance, UID)
    archive.next()
    [asked] = archive.requests
    roles = {
        str(one.sop_class_uid): (one.scu_role, one.scp_role)
        for one in asked.user_information
        if hasattr(one, "scp_role")
    }
    assert roles == {MPPS_NOTIFICATION: (False, True)}
    names = {type(one).__name__ for one in asked.user_information}
    assert "SOPClassExtendedNegotiation" not in names
    proposed = {one.abstract_syntax for one in asked.presentation_context_definition_list}
    assert proposed == {MPPS, MPPS_NOTIFICATION, INSTANCE_AVAILABILITY}


def test_dcmjs_dimse_hears_what_becomes_of_an_exam(run_appliance):
    """T-MPPS-22."""
    with peers.listening_dimse("RIS") as listener:
        appliance = run_appliance(passed_on("mpps_notification", RIS=listener.port))
        with modality(appliance) as call:
            call.create(creation())
            call.set(dataset(PerformedProcedureStepDescription="CT neck"))
            call.set(ending())
        events = [listener.next_event() for _ in range(3)]
        once_done(appliance, "RIS")
    assert [event["event"] for event in events] == [BEGUN, UPDATED, COMPLETED]
    for event in events:
        assert (event["sopClass"], event["sopInstance"]) == (MPPS_NOTIFICATION, UID)
        assert not event.get("dataset")
        assert (event["calling"], event["called"]) == ("MINRIS", "RIS")


def test_what_is_erased_is_told_as_deleted(run_appliance, receiver):
    """PS3.4 Table F.9.2-1, event 5."""
    archive = receiver()
    text = "[housekeeping]\nkeep_steps_days = 30\n"
    appliance = run_appliance(text + passed_on("mpps_notification", PACS=archive.port))
    [step] = appliance.schedule(item())
    with modality(appliance) as call:
        call.create(creation_for(step))
        call.set(ending())
    assert archive.next_events(2) == [(BEGUN, UID), (COMPLETED, UID)]
    appliance.write(in_the_past, appliance.context().stamp(days=-31))
    job_purge(appliance.appliance)
    appliance.appliance.wake_delivery()
    assert archive.next_events(1) == [(DELETED, UID)]


def in_the_past(stamp):
    """All that was done was done then."""
    database.execute_sql("UPDATE scheduled_procedure_step SET ended_at = ?", (stamp,))
    database.execute_sql("UPDATE performed_procedure_step SET updated_at = ?", (stamp,))


def test_an_archive_is_told_of_the_steps_that_were_erased_alone(ctx):
    ctx = with_pacs(ctx, "mpps_notification")
    old = dataclasses.replace(ctx, now=lambda: ctx.now() - datetime.timedelta(days=40))
    perform(old, schedule(old), UID, ending())
    perform(ctx, schedule(ctx), OTHER, ending())
    before = messages()
    purge(keeping(ctx, steps=30))
    assert messages() == [*before, (TOLD, UID, DELETED)]


def test_a_receiver_without_our_role_is_told_nothing(run_appliance, receiver):
    """PS3.7 D.3.3.4."""
    archive = receiver(role=False)
    appliance = run_appliance(passed_on("mpps_notification", PACS=archive.port))
    report(appliance, UID)
    assert "Notification" in once_failed(appliance)
    assert archive.messages.empty()
    assert appliance.read(messages) == [(TOLD, UID, BEGUN), (TOLD, UID, COMPLETED)]


def test_a_receiver_without_our_role_is_told_where_the_settings_say_so(run_appliance, receiver):
    archive = receiver(role=False)
    more = "events_without_role = yes"
    appliance = run_appliance(passed_on("mpps_notification", more, PACS=archive.port))
    report(appliance, UID)
    assert archive.next_events(2) == [(BEGUN, UID), (COMPLETED, UID)]
    once_done(appliance)


# Availability.


def test_availability_is_passed_on(run_appliance, receiver):
    """As the archive has said it; the archive is not told."""
    ris, archive = receiver(title="RIS"), receiver()
    appliance = run_appliance(passed_on("availability", RIS=ris.port, PACS=archive.port))
    said = notice(series(3), title="PACS")
    appliance.write(notify_availability, appliance.context("PACS"), OTHER, stored_form(said))
    appliance.appliance.wake_delivery()
    heard = ris.next()
    assert (heard.operation, heard.uid) == (CREATE, OTHER)
    assert heard.command.AffectedSOPClassUID == INSTANCE_AVAILABILITY
    found = heard.dataset
    found.pop("SpecificCharacterSet", None)
    assert found == said
    assert once_done(appliance, "RIS") == [(CREATE, "0000", "sent")]
    assert appliance.read(answers_of, "PACS") == []


@pytest.mark.usefixtures("woken_alone")
def test_dcmjs_notifies_and_pynetdicom_is_notified(run_appliance, receiver):
    ris = receiver(title="RIS")
    appliance = run_appliance(
        passed_on("availability", RIS=ris.port) + "[device archive]\nae_title = PACS\n"
    )
    ds = json.loads(notice(series(2), title="PACS").to_json())
    operation = {"op": "n-create", "sopClass": INSTANCE_AVAILABILITY, "instance": OTHER}
    [answer] = peers.run_dimse(appliance.port, [{**operation, "dataset": ds}], "PACS")
    assert answer["status"] == 0x0000
    assert ris.next_ones(1) == [(CREATE, OTHER)]


def test_the_same_availability_again_goes_nowhere(ctx):
    ctx = with_pacs(ctx, "availability")
    data = stored_form(notice(series(1)))
    notify_availability(ctx, OTHER, data)
    with pytest.raises(Refusal):
        notify_availability(ctx, OTHER, data)
    assert messages() == [(CREATE, OTHER, 0)]


def test_each_receiver_is_passed_on_what_its_settings_say(ctx):
    for kinds, operations in (
        ("mpps", [CREATE, SET]),
        ("mpps_notification", [TOLD, TOLD]),
        ("availability", [CREATE]),
        ("", []),
        ("mpps mpps_notification availability", [CREATE, TOLD, SET, TOLD, CREATE]),
    ):
        erase("outbox")
        erase("performed_procedure_step")
        erase("availability_notice")
        of_kinds = with_pacs(ctx, kinds)
        create_mpps(of_kinds, UID, stored_form(creation()))
        set_mpps(of_kinds, UID, stored_form(ending()))
        notify_availability(of_kinds, OTHER, stored_form(notice(series(1))))
        assert [operation for operation, _, _ in messages()] == operations


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("passed_on = mpps", "passed_on: needs host"),
        ("host = 127.0.0.1\npassed_on = mpps, ups", "is not some of mpps"),
    ],
)
def test_a_device_that_cannot_be_passed_on_is_not_in_order(tmp_path, text, words):
    path = write_config(tmp_path, f"[device PACS]\nae_title = PACS\n{text}\n")
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_what_a_device_is_passed_on_is_set_on_the_page(ctx):
    settings = {
        "ae_title": "PACS",
        "host": "127.0.0.1",
        "port": "11112",
        "passed_on": "mpps, availability",
    }
    save_device(ctx, "PACS room", settings)
    [device] = stored_devices()
    assert device.passed_on == {"mpps", "availability"}
    assert settings_of(device)["passed_on"] == "availability, mpps"
    with pytest.raises(Refusal):
        save_device(ctx, "RIS", {"ae_title": "RIS", "passed_on": "mpps"})


# Receivers that are not there, or not well.


@contextlib.contextmanager
def nobody():
    """A port that nobody listens on."""
    yield peers.free_port()


@contextlib.contextmanager
def hanging():
    """Takes connections and is silent."""
    one = Silent()
    try:
        yield one.port
    finally:
        one.close()


def rejecting():
    return answering(bytes.fromhex("0300 00000004 00010103"))


def aborting():
    return answering(bytes.fromhex("0700 00000004 00000000"))


@pytest.mark.parametrize("how", [nobody, hanging, rejecting, aborting])
def test_a_ct_is_answered_whatever_becomes_of_what_is_passed_on(
    run_appliance, receiver, impatient, how
):
    """T-MPPS-23: and others hear of it."""
    other = receiver(title="RIS")
    with how() as port:
        appliance = run_appliance(
            passed_on("mpps, mpps_notification", PACS=port) + passed_on(RIS=other.port)
        )
        assert report(appliance, UID) == [0x0000, 0x0000]
        assert other.next_ones(2) == exam(UID)
        assert once_failed(appliance).startswith(("cannot connect", "it rejects", "it aborts"))
        assert len(appliance.read(messages)) == 4


def test_a_ct_is_answered_while_a_receiver_thinks(run_appliance, receiver):
    """T-MPPS-23."""
    archive = receiver()
    archive.gate.clear()
    appliance = run_appliance(passed_on(PACS=archive.port))
    assert report(appliance, UID, OTHER) == [0x0000] * 4
    assert archive.next_ones(1) == [(CREATE, UID)]
    assert archive.messages.empty()  # one at a time
    archive.gate.set()
    assert archive.next_ones(3) == exam(UID, OTHER)[1:]


def test_a_receiver_that_is_back_hears_all_in_order(run_appliance, receiver):
    port = peers.free_port()
    appliance = run_appliance(passed_on(PACS=port))
    report(appliance, UID, OTHER)
    once_failed(appliance)
    archive = receiver(port=port)
    try_again(appliance)
    assert archive.next_ones(4) == exam(UID, OTHER)
    once_done(appliance)
    assert appliance.read(problem_of) == ""


@pytest.mark.usefixtures("woken_alone")
def test_a_receiver_that_calls_is_tried_at_once(run_appliance, receiver):
    port = peers.free_port()
    appliance = run_appliance(passed_on(PACS=port))
    report(appliance, UID)
    once_failed(appliance)
    archive = receiver(port=port)
    peers.run_echoscu(appliance.port, "MINRIS", "PACS")
    assert archive.next_ones(2) == exam(UID)


def test_a_receiver_that_falls_silent_hears_the_same_again(
    run_appliance, receiver, impatient, at_once
):
    """With the same Message ID, so that a repeat can be known."""
    archive = receiver()
    archive.gate.clear()
    appliance = run_appliance(passed_on(PACS=archive.port))
    with modality(appliance) as call:
        call.create(creation())
    first = archive.next()
    again = archive.next()
    archive.gate.set()
    assert again.uid == first.uid
    assert again.command.MessageID == first.command.MessageID
    once_done(appliance)


def test_a_receiver_that_aborts_in_the_middle_hears_the_rest_later(
    run_appliance, receiver, at_once
):
    aborted = threading.Event()

    def abort_once(heard):
        if heard.operation == SET and not aborted.is_set():
            aborted.set()
            archive.associations[-1].abort()
        return 0x0000

    archive = receiver(abort_once)
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID, OTHER)
    assert archive.next_ones(5) == [(CREATE, UID), (SET, UID), (SET, UID), *exam(OTHER)]


def test_a_store_of_images_takes_no_performed_steps(run_appliance):
    """DCMTK's storescp refuses the abstract syntax."""
    port = peers.free_port()
    with peers.process([peers.dcmtk("storescp"), str(port)]):
        peers.wait_for_port(port)
        appliance = run_appliance(passed_on(PACS=port))
        assert report(appliance, UID) == [0x0000, 0x0000]
        words = once_failed(appliance)
    assert words == "it does not take Modality Performed Procedure Step SOP Class"
    assert len(appliance.read(messages)) == 2


def test_a_worklist_server_turns_us_away(run_appliance, tmp_path):
    """DCMTK's wlmscpfs rejects who proposes nothing that it takes."""
    (tmp_path / "worklist" / "PACS").mkdir(parents=True)
    (tmp_path / "worklist" / "PACS" / "lockfile").touch()
    with peers.serving_worklist(tmp_path / "worklist") as port:
        appliance = run_appliance(passed_on(PACS=port))
        assert report(appliance, UID) == [0x0000, 0x0000]
        assert once_failed(appliance) == "it rejects our association"


def test_a_class_that_a_receiver_does_not_take_keeps_no_other_from_it(
    run_appliance, receiver, at_once
):
    """It takes performed steps, and no notifications of them: these are lost, not those."""
    archive = receiver(classes=(MPPS,))
    appliance = run_appliance(passed_on("mpps, mpps_notification", PACS=archive.port))
    report(appliance, UID)
    assert archive.next_ones(1) == [(CREATE, UID)]
    assert archive.next(5)[:2] == (SET, UID)


@pytest.mark.usefixtures("soon_let_go", "woken_alone")
def test_an_association_without_the_class_that_is_wanted_is_released(
    run_appliance,
    receiver,
):
    """Else an archive has one more open with each try, until it takes none any more."""
    archive = receiver(role=False)
    appliance = run_appliance(passed_on("mpps_notification", PACS=archive.port))
    report(appliance, UID)
    once_failed(appliance)
    assert archive.released.get(timeout=5) == "released"


def test_an_association_opened_anew_is_released_after_a_refusal(
    run_appliance, receiver, monkeypatch, at_once
):
    """It aborted the one that was kept, and is full on the next."""
    monkeypatch.setattr(DimseSender, "KEEP", 0.2)

    def take(heard):
        if heard.operation == SET and len(archive.associations) == 1:
            archive.associations[0].abort()
        return 0x0000 if heard.operation == CREATE else 0x0213

    archive = receiver(take)
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID)
    once_done(appliance)
    opened = len(archive.associations) - 1  # but the one that was aborted
    for _ in range(opened):
        archive.released.get(timeout=5)


# Killed.


def test_what_was_answered_before_a_kill_is_passed_on_after_the_restart(
    run_appliance, receiver, tmp_path
):
    port = peers.free_port()
    path = write_config(tmp_path, passed_on("mpps, mpps_notification", PACS=port))
    with serving(path) as (process, dicom_port):
        assert report(Reached(dicom_port), UID, OTHER) == [0x0000] * 4
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    archive = receiver(port=port)
    with serving(path):
        heard = archive.next_ones(8)
    expected = [(operation, uid) for uid in (UID, OTHER) for operation in (CREATE, TOLD, SET, TOLD)]
    assert heard == expected


def test_what_a_receiver_had_not_answered_before_a_kill_comes_again(receiver, tmp_path):
    """It knows the step already: 0111 is as good as taken, and the end follows."""
    known = set()

    def take(heard):
        if heard.operation == CREATE and heard.uid in known:
            return 0x0111
        known.add(heard.uid)
        return 0x0000

    archive = receiver(take)
    archive.gate.clear()
    path = write_config(tmp_path, passed_on(PACS=archive.port))
    with serving(path) as (process, dicom_port):
        assert report(Reached(dicom_port), UID) == [0x0000] * 2
        first = archive.next()
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    archive.gate.set()
    with serving(path):
        again = archive.next()
        assert (again.operation, again.uid) == (CREATE, UID)
        assert again.command.MessageID == first.command.MessageID
        assert archive.next_ones(1) == [(SET, UID)]


def test_an_end_whose_answer_was_lost_counts_as_taken(run_appliance, receiver, at_once):
    """It comes again, and the receiver knows it: 0110 with A710 is no refusal then."""
    ended = set()

    def take(heard):
        if heard.operation == SET and heard.uid in ended:
            return status(0x0110, "may no longer be updated", 0xA710)
        if heard.operation == SET:
            ended.add(heard.uid)
            archive.associations[-1].abort()
        return 0x0000

    archive = receiver(take)
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID)
    once_done(appliance)
    assert "refused" not in page(appliance, "/passed-on")


def test_a_message_that_makes_a_receiver_abort_keeps_the_rest_only_for_a_while(
    run_appliance, receiver, at_once
):
    """Some archives abort on what they cannot read; that is no reason to hold up the others."""

    def choke(heard):
        if heard[:2] == (CREATE, UID):
            archive.associations[-1].abort()
        return 0x0000

    archive = receiver(choke)
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID, OTHER)
    tried = archive.next_ones(MOST_ABORTS + 3)
    assert tried == [(CREATE, UID)] * MOST_ABORTS + [(SET, UID), *exam(OTHER)]


# What receivers answer.


def status(number, comment="", error_id=None):
    """The status of a response, with its fields."""
    ds = dataset(Status=number)
    if comment:
        ds.ErrorComment = comment
    if error_id is not None:
        ds.ErrorID = error_id
    return ds


ANSWERS = {
    "success": (CREATE, 0x0000, "taken"),
    "known already": (CREATE, status(0x0111, "exists already"), "taken"),
    "attribute list error": (CREATE, 0x0107, "taken"),
    "value out of range": (SET, 0x0116, "taken"),
    "optional attributes unsupported": (SET, 0x0001, "taken"),
    "a warning of a class": (SET, 0xB000, "taken"),
    "no such instance": (SET, status(0x0112, "is not known"), "refused"),
    "wrong class": (CREATE, 0x0119, "refused"),
    "class not supported": (CREATE, 0x0122, "refused"),
    "not authorized": (CREATE, 0x0124, "refused"),
    "wrong value": (CREATE, 0x0106, "refused"),
    "missing attribute": (CREATE, 0x0120, "refused"),
    "nobody's number": (SET, 0x1234, "refused"),
}


@pytest.mark.parametrize(("operation", "answer", "word"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_kept_and_shown_and_the_next_follows(
    run_appliance, receiver, operation, answer, word
):
    archive = receiver(lambda heard: answer if heard[:2] == (operation, UID) else 0x0000)
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID, OTHER)
    assert archive.next_ones(4) == exam(UID, OTHER)
    kept = once_done(appliance)
    assert archive.messages.empty()
    number = answer if isinstance(answer, int) else answer.Status
    words = "" if isinstance(answer, int) else f" {answer.ErrorComment}"
    at = 0 if operation == CREATE else 1
    expected = [(one, "0000", "sent") for one in (CREATE, SET) * 2]
    expected[at] = (operation, f"{number:04X}{words}", "sent")
    assert kept == expected
    with visiting(appliance) as client:
        shown = words_of(employ(appliance, client, "technologist").get("/passed-on"))
    assert f"{word}, {number:04X}{words}" in shown


def test_an_end_there_already_counts_as_taken(run_appliance, receiver):
    """0110 with Error ID A710: the receiver has the end from somebody else."""
    ended = status(0x0110, "may no longer be updated", 0xA710)
    archive = receiver(lambda heard: ended if heard[:2] == (SET, UID) else 0x0000)
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID)
    assert once_done(appliance)[1] == (SET, "A710 it has ended there already", "sent")
    assert "taken, A710" in page(appliance, "/passed-on")


def test_a_success_in_words_is_one(run_appliance, receiver):
    archive = receiver(lambda heard: status(0x0000, "Thank you"))
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID)
    assert once_done(appliance)[0] == (CREATE, "0000 Thank you", "sent")
    assert "taken, 0000 Thank you" in page(appliance, "/passed-on")


PASSING = [0x0110, 0x0211, 0x0213]


@pytest.mark.parametrize("number", PASSING)
def test_a_failure_that_lasts_keeps_the_rest_only_for_a_while(
    run_appliance, receiver, at_once, number
):
    archive = receiver(lambda heard: number if heard[:2] == (CREATE, UID) else 0x0000)
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID, OTHER)
    assert archive.next_ones(8) == [(CREATE, UID)] * 5 + [(SET, UID), *exam(OTHER)]
    assert once_done(appliance) == [
        (CREATE, f"{number:04X}", "given up"),
        *[(one, "0000", "sent") for one in (SET, CREATE, SET)],
    ]


@pytest.mark.parametrize("number", PASSING)
def test_a_failure_that_passes_changes_no_order(run_appliance, receiver, at_once, number):
    failures = [number] * 4
    archive = receiver(lambda heard: failures.pop() if failures else 0x0000)
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID)
    assert archive.next_ones(6) == [(CREATE, UID)] * 5 + [(SET, UID)]
    assert once_done(appliance) == [(CREATE, "0000", "sent"), (SET, "0000", "sent")]


def test_each_message_has_tries_of_its_own(run_appliance, receiver, at_once):
    archive = receiver(lambda heard: 0x0110)
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID)
    assert archive.next_ones(10) == [(CREATE, UID)] * 5 + [(SET, UID)] * 5
    assert {how for _, _, how in once_done(appliance)} == {"given up"}


def test_a_failure_that_may_pass_is_waited_for(ctx_with_pacs):
    ctx = ctx_with_pacs
    create_mpps(ctx, UID, stored_form(creation()))
    [message] = waits_for()
    waits = [note_refused(ctx, "PACS", message.outbox_id, "0213") for _ in range(5)]
    assert waits == [*RETRY_AFTER[:4], 0]
    assert answers_of() == [(CREATE, "0213", "given up")]


def test_what_was_refused_for_good_is_in_the_audit_log(ctx_with_pacs):
    ctx = ctx_with_pacs
    create_mpps(ctx, UID, stored_form(creation()))
    [message] = waits_for()
    for _ in range(5):
        note_refused(ctx, "PACS", message.outbox_id, "0213 disk is full")
    cursor = database.execute_sql("SELECT what, about, detail FROM audit ORDER BY id DESC LIMIT 1")
    assert cursor.fetchone() == ("not forwarded", UID, "PACS: 0213 disk is full")


def test_what_a_person_gave_up_meanwhile_stays_given_up(ctx_with_pacs):
    """The receiver was just answering."""
    ctx = ctx_with_pacs
    create_mpps(ctx, UID, stored_form(creation()))
    [message] = waits_for()
    give_up_events(ctx, "PACS", "The archive is gone", PASSED_ON_LANE)
    note_refused(ctx, "PACS", message.outbox_id, "0213")
    assert waits_for() == []


def test_what_is_not_taken_is_given_up_after_days(ctx_with_pacs):
    ctx = ctx_with_pacs
    create_mpps(ctx, UID, stored_form(creation()))
    waited, hours = 0, ctx.config.housekeeping.give_up_events_hours
    while waited < hours * 3600:
        at = later(ctx, seconds=waited)
        waited += note_failed(at, "PACS", "not reached", PASSED_ON_LANE)
    assert messages() == [(CREATE, UID, 0)]
    young = later(ctx, seconds=waited)
    set_mpps(young, UID, stored_form(ending()))
    note_failed(young, "PACS", "not reached", PASSED_ON_LANE)
    assert messages() == [(SET, UID, 0)]


def test_failures_to_pass_on_and_to_tell_of_workitems_are_counted_apart(ctx_with_pacs):
    ctx = ctx_with_pacs
    create_mpps(ctx, UID, stored_form(creation()))
    record_event(ctx, "UPS State Report", UID, EMPTY, ["PACS"])
    note_failed(ctx, "PACS", "not reached", PASSED_ON_LANE)
    assert due_receivers(ctx, PASSED_ON_LANE) == []
    assert due_receivers(ctx) == ["PACS"]
    retry_events(ctx, "PACS", PASSED_ON_LANE)
    assert due_receivers(ctx, PASSED_ON_LANE) == ["PACS"]


# Kept for a while.


def test_what_was_passed_on_is_forgotten_and_what_waits_is_not(ctx_with_pacs):
    ctx = ctx_with_pacs
    for uid in (UID, OTHER, THIRD):
        create_mpps(ctx, uid, stored_form(creation()))
    [first, second, _] = waits_for()
    note_sent(ctx, "PACS", {first.outbox_id: "0000"}, PASSED_ON_LANE)
    update_row(Outbox, second.outbox_id, given_up_at=ctx.stamp())
    purge(keeping(later(ctx, days=29), deliveries=30))
    assert len(answers_of()) == 3
    purge(keeping(later(ctx, days=31), deliveries=30))
    assert [row.sop_instance_uid for row in fetch_rows(Outbox, "1 = 1")] == [THIRD]


def test_metrics_count_what_waits_to_be_passed_on(run_appliance):
    appliance = run_appliance(passed_on("mpps, mpps_notification", PACS=peers.free_port()))
    assert metrics(appliance)["minris_passed_on_waiting"] == 0
    report(appliance, UID)
    assert metrics(appliance)["minris_passed_on_waiting"] == 4


# The log.


def test_no_patient_is_in_the_log(run_appliance, receiver, caplog, at_once):
    caplog.set_level("INFO")
    archive = receiver(lambda heard: 0x0112 if heard.operation == SET else 0x0213)
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID)
    archive.next_ones(6)
    once_done(appliance)
    ours = [record.getMessage() for record in caplog.records if record.name == "minris"]
    assert any("0112" in line for line in ours)
    for told in ("Wang", "XiaoDong", "王", "P000042", "19780312"):
        assert not [line for line in ours if told in line]


@pytest.mark.parametrize("number", [0x0106, 0x0213])
def test_a_comment_cannot_write_lines_of_its_own_into_the_log(
    run_appliance, receiver, caplog, number
):
    words = "no\n2026-07-05 12:00:00 ERROR all is lost\x1b[31m"
    archive = receiver(lambda heard: status(number, words))
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID)
    once(appliance, lambda: answers_of()[0][1], "no answer was kept")
    appliance.stop()
    ours = [record.getMessage() for record in caplog.records if record.name == "minris"]
    assert all(line.isprintable() for line in ours)


def test_a_comment_may_be_long(run_appliance, receiver):
    """LO has 64 characters; there are systems that send a stack trace."""
    archive = receiver(lambda heard: status(0x0106, "x" * 2000))
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID)
    [(_, answer, _), _] = once_done(appliance)
    assert answer.startswith("0106 xxx") and len(answer) <= 200


# On the page.


def page(appliance, path, role="technologist"):
    """A page as a person reads it, in one line."""
    with visiting(appliance) as client:
        return words_of(employ(appliance, client, role).get(path))


def test_the_page_says_what_waits(run_appliance):
    appliance = run_appliance(passed_on("mpps, mpps_notification", PACS=peers.free_port()))
    report(appliance, UID)
    once_failed(appliance)
    text = page(appliance, "/passed-on")
    assert re.search(r"PACS 4 \d+ \w+ \d{4} \d\d:\d\d .*cannot connect", text)
    assert text.count("waits") == 4
    for words in ("Exam has started", "Exam has changed or ended", "Notification of an exam", UID):
        assert words in text
    assert "Wang" not in text


def test_the_page_says_what_was_given_up(run_appliance, receiver, at_once):
    archive = receiver(lambda heard: 0x0110 if heard.operation == CREATE else 0x0000)
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID)
    once_done(appliance)
    text = page(appliance, "/passed-on")
    assert "given up, 0110" in text and "taken, 0000" in text


def test_the_page_tells_of_no_problem_when_nothing_waits(run_appliance, receiver, at_once):
    """The last message was given up, nothing is wrong with the archive any more."""
    archive = receiver(lambda heard: 0x0110 if heard.operation == SET else 0x0000)
    appliance = run_appliance(passed_on(PACS=archive.port))
    report(appliance, UID)
    assert once_done(appliance)[1] == (SET, "0110", "given up")
    text = page(appliance, "/passed-on")
    assert "it answers 0110" not in text


def test_the_page_says_that_nothing_is_passed_on(appliance):
    assert "Choose what to forward on a device's page" in page(appliance, "/passed-on")


@pytest.mark.usefixtures("woken_alone")
def test_a_technologist_tries_a_receiver_now(run_appliance, receiver):
    port = peers.free_port()
    appliance = run_appliance(passed_on(PACS=port))
    report(appliance, UID)
    once_failed(appliance)
    archive = receiver(port=port)
    with visiting(appliance) as client:
        employ(appliance, client, "technologist")
        csrf = csrf_of(client.get("/passed-on").text)
        answer = client.post("/passed-on", data={"receiver": "PACS", "csrf": csrf})
        assert answer.status_code == 303
    assert archive.next_ones(2) == exam(UID)


def test_an_exam_says_to_whom_it_was_passed_on(run_appliance, receiver):
    archive = receiver(lambda heard: 0x0106 if heard.operation == SET else 0x0000)
    appliance = run_appliance(passed_on(PACS=archive.port) + passed_on(RIS=peers.free_port()))
    [step] = appliance.schedule(item())
    with modality(appliance) as call:
        call.create(creation_for(step))
        call.set(ending())
    once_done(appliance)
    row = appliance.read(step_known, keys_of(step)[0])
    text = page(appliance, f"/step/{row}")
    assert "Forwarded to PACS N-CREATE: taken, 0000; N-SET: refused, 0106" in text
    assert "Forwarded to RIS N-CREATE: waits; N-SET: waits" in text


def stuck(run_appliance):
    """An appliance with an exam that an archive has not been passed on for an hour."""
    appliance = run_appliance(passed_on(PACS=peers.free_port()))
    report(appliance, UID)
    once_failed(appliance)
    an_hour_ago = appliance.context().stamp(hours=-1)
    sql = "UPDATE outbox SET created_at = ?"
    appliance.write(database.execute_sql, sql, (an_hour_ago,))
    return appliance


def test_what_is_not_passed_on_is_stuck(run_appliance, caplog):
    appliance = stuck(run_appliance)
    assert "Not forwarded PACS: 2" in page(appliance, "/orphans")
    job_workitems(appliance.appliance)
    assert "stuck: passed on, PACS" in caplog.messages


@pytest.mark.parametrize(
    ("role", "reason", "left"),
    [("admin", "The archive is gone", 0), ("admin", " ", 2), ("technologist", "It is gone", 2)],
)
def test_an_administrator_gives_up_with_a_reason(run_appliance, role, reason, left):
    appliance = stuck(run_appliance)
    with visiting(appliance) as client:
        employ(appliance, client, role)
        csrf = csrf_of(client.get("/orphans").text)
        form = {"kind": "passed on", "uid": "PACS", "reason": reason, "csrf": csrf}
        client.post("/orphans", data=form)
    assert len(appliance.read(messages)) == left


def test_why_it_was_given_up_is_kept(run_appliance):
    appliance = stuck(run_appliance)
    why = "The archive is gone"
    appliance.write(give_up_events, appliance.context(), "PACS", why, PASSED_ON_LANE)
    rows = appliance.read(lambda: fetch_rows(Outbox, "1 = 1"))
    assert [row.problem for row in rows] == [why, why]
    assert "given up" in page(appliance, "/passed-on")


# Delivery, with a sender of the test.


def test_what_was_passed_on_before_a_refusal_is_not_sent_again(ctx_with_pacs):
    ctx = ctx_with_pacs
    for uid in (UID, OTHER, THIRD):
        create_mpps(ctx, uid, stored_form(creation()))
    sent = []

    async def send(receiver, events, heard):
        for event in events:
            sent.append(event.uid)
            if event.uid == OTHER:
                raise Answered(event.outbox_id, "0213")
            heard(event, "0000")

    deliver(ctx, send)
    assert sent == [UID, OTHER]
    assert [uid for _, uid, _ in messages()] == [OTHER, THIRD]


def deliver(ctx, send):
    """One round of what is passed on in this thread."""

    async def call(function, *arguments):
        return function(*arguments)

    async def one_round():
        delivery = Delivery({PASSED_ON_LANE: Lane(send)}, lambda: ctx, call, call)
        await delivery.work(wait=True)

    asyncio.run(one_round())
