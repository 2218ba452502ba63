"""The doctor of devices: what is known of one, in sentences, and the one thing to do next."""

import dataclasses
import datetime

import peers
import pytest
from conftest import item
from pynetdicom import AE
from test_mpps import creation, stored_form
from test_pages import csrf_of, employ, visiting, words_of

from minris.access.devices import save_device
from minris.appliance.jobs import JOBS
from minris.config.ini import Device
from minris.doctor import Called, examine
from minris.mpps.performed import create_mpps
from minris.simulator.modality import Modality
from minris.standard.status import Message
from minris.standard.uids import MODALITY_WORKLIST, MPPS, VERIFICATION
from minris.store.models import QueryTrace
from minris.store.rows import insert_row
from minris.upper_layer.server import Call

CT = Device("CT room", ("CT1",), host="127.0.0.1", port=104, from_file=False)
NOBODY = Called({}, {})


def call(minutes=0, address="127.0.0.1", classes=(MODALITY_WORKLIST, MPPS)):
    at = datetime.datetime(2026, 7, 5, 12, tzinfo=datetime.UTC).timestamp() + 60 * minutes
    return Call(at, address, classes)


def words(ctx, device=CT, called=NOBODY, outcome="answers"):
    return {str(one.words): one.light for one in examine(ctx, device, called, outcome)}


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        ("answers", "CT room answers"),
        ("unreached", "Cannot reach CT room at 127.0.0.1:104"),
        ("rejected", "CT room rejected the connection. Is MINRIS configured there?"),
        ("no answer", "CT room was reached, but did not answer C-ECHO"),
        ("no address", "CT room has no address here"),
    ],
)
def test_whether_it_is_reached_is_said(ctx, outcome, sentence):
    found = words(ctx, outcome=outcome)
    assert found[sentence] == ("good" if outcome == "answers" else "warning")


def test_an_archive_that_is_not_reached_is_worse_than_a_machine(ctx):
    archive = dataclasses.replace(CT, role="archive")
    assert (
        words(ctx, archive, outcome="unreached")["Cannot reach CT room at 127.0.0.1:104"] == "bad"
    )


def test_a_machine_that_never_called_is_asked_to(ctx):
    first = examine(ctx, CT, NOBODY, "answers")[0]
    assert str(first.words) == "No contact since minris was started"
    assert str(first.mend) == "Query the worklist on the machine"


def test_its_last_call_is_told(ctx):
    called = Called({"CT1": call()}, {})
    sentence = next(one for one in words(ctx, called=called) if one.startswith("Last call"))
    assert "from 127.0.0.1" in sentence
    assert "Modality Worklist" in sentence


def test_what_it_proposes_in_vain_is_told(ctx):
    called = Called({"CT1": call()._replace(not_served=("CT Image Storage",))}, {})
    sentence = "It requested services that are not provided here: CT Image Storage"
    assert words(ctx, called=called)[sentence] == "warning"


def test_another_address_than_registered_is_told(ctx):
    called = Called({"CT1": call(address="192.0.2.9")}, {})
    assert (
        words(ctx, called=called)["It called from 192.0.2.9 but is registered for 127.0.0.1"]
        == "warning"
    )


def test_a_machine_that_does_not_offer_the_worklist_is_told(ctx):
    called = Called({"CT1": call(classes=(VERIFICATION,))}, {})
    assert (
        words(ctx, called=called)["On its last call it did not request the worklist service"]
        == "warning"
    )


def test_a_call_that_was_turned_away_is_the_first_thing(ctx):
    rejected = {("CT1", "127.0.0.1"): (call(5).at, Message("it called 'RIS'"))}
    first = examine(ctx, CT, Called({"CT1": call()}, rejected), "answers")[0]
    assert (first.light, str(first.words)) == ("bad", "It was rejected: it called 'RIS'")


def test_what_was_turned_away_before_it_was_let_in_is_forgotten(ctx):
    rejected = {("CT1", "127.0.0.1"): (call(-5).at, Message("it called 'RIS'"))}
    found = words(ctx, called=Called({"CT1": call()}, rejected))
    assert not [one for one in found if "turned away" in one]


def test_a_wrong_ae_title_from_its_address_is_recognised(ctx):
    rejected = {("CT_1", "127.0.0.1"): (call().at, Message("not registered"))}
    first = examine(ctx, CT, Called({}, rejected), "answers")[0]
    assert (str(first.words), first.do) == (
        "It uses the AE title CT_1 but is registered as CT1", "CT_1"
    )  # fmt: skip


def test_its_query_is_found_behind_many_of_others(ctx):
    at = "2026-07-05T{:02}:{:02}:00.000000Z"
    queries = [("CT1", at.format(8, 0)), *(("MR1", at.format(9, n % 60)) for n in range(1200))]
    for number, (title, last) in enumerate(queries):
        insert_row(
            QueryTrace, hour=str(number), ae_title=title, address="127.0.0.1", keys=b"",
            raw=b"", count=1, answers=3, status=0, last_at=last,
        )  # fmt: skip
    assert "Last worklist query 2026-07-05 08:00: 3 exams returned" in words(ctx)


@pytest.mark.parametrize(
    ("time", "sentence"),
    [
        ("1130", "Its clock is 30 min slow"),
        ("1213", "Its clock is 13 min fast"),
        ("0402", "Its clock is 8 h slow: check its time zone"),
        ("2000", "Its clock is 8 h fast: check its time zone"),
        ("1204", ""),
    ],
)
def test_a_clock_that_is_off_is_told(ctx, time, sentence):
    create_mpps(ctx, "2.25.1", stored_form(creation(
        PerformedStationAETitle="CT1", PerformedProcedureStepStartDate="20260705",
        PerformedProcedureStepStartTime=time,
    )))  # fmt: skip
    found = {one: light for one, light in words(ctx).items() if one.startswith("Its clock is")}
    assert found == ({sentence: "bad"} if sentence else {}), "it goes before what is missing"


# On the page, with a real machine.


@pytest.fixture
def ready(run_appliance):
    """A device made on the page."""
    appliance = run_appliance()
    port = peers.free_port()
    settings = {"ae_title": "XR9", "host": "127.0.0.1", "port": str(port), "modality": "DX"}
    appliance.write(save_device, appliance.context(), "X-ray 9", settings)
    appliance.appliance.reload_access()
    with visiting(appliance) as client:
        yield appliance, employ(appliance, client, "technologist"), port


def associate(appliance, title):
    ae = AE(title)
    ae.add_requested_context(MODALITY_WORKLIST)
    association = ae.associate("127.0.0.1", appliance.port, ae_title="MINRIS")
    if association.is_established:
        association.release()
    return association


def test_a_wrong_ae_title_is_found_and_mended_with_one_click(ready):
    appliance, client, _ = ready
    assert associate(appliance, "XRAY_1").is_rejected
    page = client.get("/devices/doctor?name=X-ray 9")
    assert "It uses the AE title XRAY_1 but is registered as XR9. Also accept XRAY_1." in words_of(
        page
    )
    form = {"csrf": csrf_of(page.text), "name": "X-ray 9", "ae_title": "XRAY_1"}
    assert client.post("/devices/adopt", data=form).status_code == 303
    assert not associate(appliance, "XRAY_1").is_rejected
    assert "It uses the AE title" not in words_of(client.get("/devices/doctor?name=X-ray 9"))


def test_all_is_well_at_last(ready):
    appliance, client, port = ready
    ae = AE("XR9")
    ae.add_supported_context(VERIFICATION)
    server = ae.start_server(("127.0.0.1", port), block=False)
    try:
        machine = Modality("XR9", "DX", "127.0.0.1", appliance.port, "MINRIS", print)
        appliance.schedule(item(ScheduledStationAETitle="XR9", Modality="DX"))
        machine.worklist()
        appliance.appliance.run_job(next(j for j in JOBS if j.name == "queries"))
        shown = words_of(client.get("/devices/doctor?name=X-ray 9"))
    finally:
        server.shutdown()
    assert "X-ray 9 answers" in shown
    assert ": 1 exam returned" in shown
    assert "X-ray 9 works." in shown


def test_an_unknown_device_has_no_doctor(ready):
    _, client, _ = ready
    assert client.get("/devices/doctor?name=nobody").status_code == 404
