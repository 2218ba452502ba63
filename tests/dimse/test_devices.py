"""Devices: what each setting of a profile does to the machine that has it, and the page of devices."""

import asyncio
import contextlib
import dataclasses
import datetime
import html
import itertools
import re
import socket
import struct
import threading
import types

import httpx
import peers
import pytest
from bench import wire
from conftest import item
from playwright.sync_api import sync_playwright
from pynetdicom import AE, evt

from minris import doctor
from minris.access.devices import DEVICE_PROFILES, save_device, stored_devices
from minris.access.users import make_user, open_session
from minris.config.settings import DEVICE_SETTINGS
from minris.dataset.elements import ElementIndex, text_elements
from minris.dataset.recode import recode
from minris.dimse.archive import ArchiveSearch
from minris.dimse.senders import DimseSender
from minris.images.references import Reference
from minris.mpps.linking import does_report
from minris.orders.diary import hours_of
from minris.outbox import PASSED_ON_LANE, Event, due_receivers, pass_on
from minris.pages.machines.device_form import settings_of
from minris.standard.dictionary import tag_of
from minris.standard.status import Refusal
from minris.standard.uids import (
    MODALITY_WORKLIST,
    STORAGE_COMMITMENT,
    UPS_EVENT,
    UPS_GLOBAL_SUBSCRIPTION,
    VERIFICATION,
)
from minris.standard.worklist import STEP_SEQUENCE
from minris.store.models import database
from minris.upper_layer.caller import DeliveryError
from minris.upper_layer.negotiation import Negotiated
from minris.upper_layer.pdus import AcceptedContext
from minris.ups.events import ways_to_tell
from minris.ups.subscriptions import subscribe

SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700
WANG = "Wang^XiaoDong=王^小东"
TODAY = datetime.datetime.now(datetime.UTC).date()


# A machine, and what it is told.


def calls(appliance, calling, address="127.0.0.1", called="MINRIS"):
    """An association of a machine: whether it is accepted, or the reason why not."""
    ae = AE(calling)
    ae.add_requested_context(VERIFICATION)
    told = []
    handlers = [(evt.EVT_PDU_RECV, lambda event: told.append(event.pdu))]
    one = ae.associate(
        peers.HOST,
        appliance.port,
        ae_title=called,
        bind_address=(address, 0),
        evt_handlers=handlers,
    )
    if one.is_established:
        one.release()
        return True
    return told[0].reason_diagnostic


def element(keyword, value=b""):
    """An element in Implicit VR."""
    return wire.element(tag_of(keyword), value)


def query(*keywords, step=None):
    """A query for keywords, and for keys of the step: {keyword: value}."""
    parts = {tag_of(keyword): element(keyword) for keyword in keywords}
    if step is not None:
        keys = sorted((tag_of(keyword), value) for keyword, value in step.items())
        inner = b"".join(wire.element(tag, value) for tag, value in keys)
        parts[STEP_SEQUENCE] = wire.element(STEP_SEQUENCE, wire.element(0xFFFEE000, inner))
    return b"".join(parts[tag] for tag in sorted(parts))


def greeting(calling):
    """An A-ASSOCIATE-RQ for the worklist, as the benchmarks make it, to the title MINRIS."""
    pdu = wire.associate(wire.MODALITY_WORKLIST, calling=calling)
    return pdu.replace(wire.CALLED.ljust(16).encode(), b"MINRIS".ljust(16))


def ask(appliance, calling, identifier):
    """The answers to a query, as they are sent, and the last status."""
    answers = []
    with wire.Association(appliance.port, greeting(calling), datasets=answers) as association:
        _, status = association.ask(wire.c_find(identifier))
    return answers, status


def shown(appliance, calling, *keywords, step=None):
    """The answers to a query, as stored data sets are read."""
    answers, _ = ask(appliance, calling, query(*keywords, step=step))
    return [ElementIndex(recode(answer, False)) for answer in answers]


def shown_names(appliance, calling, **step):
    found = shown(appliance, calling, "PatientName", step=step or None)
    return [answer.get("PatientName") for answer in found]


def values_in_pdus(appliance, calling, identifier):
    """For each P-DATA-TF of the answers to a query: the kinds of its values, 1 for a command."""
    last = wire.STATUS + struct.pack("<H", SUCCESS)
    found, value = [], b""
    with socket.create_connection((peers.HOST, appliance.port), 10) as peer:
        file = peer.makefile("rb")
        peer.sendall(greeting(calling))
        read_pdu(file)
        peer.sendall(b"".join(wire.c_find(identifier)))
        while last not in value:
            kinds, at, body = [], 0, read_pdu(file)
            while at < len(body):
                length, _, control = struct.unpack_from(">IBB", body, at)
                value = body[at + 6 : at + 4 + length] if control & 1 else b""
                kinds.append(control & 1)
                at += 4 + length
            found.append(kinds)
        peer.sendall(wire.RELEASE)
        read_pdu(file)
    return found


def read_pdu(file):
    """The body of the next PDU."""
    return file.read(wire.PDU_HEADER.unpack(file.read(6))[1])


def day(days):
    """The day so many days from today, as a DA value."""
    return f"{TODAY + datetime.timedelta(days=days):%Y%m%d}"


# Programs that a device could be.


@contextlib.contextmanager
def listening(ae_title="MG1", abstract_syntax=VERIFICATION, only=()):
    """A machine that can be called; gives its port. `only`: the AE titles it takes calls from."""
    ae = AE(ae_title)
    ae.add_supported_context(abstract_syntax)
    ae.require_calling_aet = list(only)
    server = ae.start_server((peers.HOST, 0), block=False)
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


# Every setting has its effect. A device "Mammography", MG1, is made on the page with the settings
# it needs for that; then the setting is changed, and the difference is seen.


def set_device(appliance, **settings):
    """Make or change the device."""
    known = any(device.name == "Mammography" for device in appliance.context().devices)
    given = {"ae_title": "MG1"} | settings
    old_name = "Mammography" if known else ""
    appliance.write(save_device, appliance.context(), "Mammography", given, old_name)
    appliance.appliance.reload_access()


def stored_step(appliance, keyword):
    """What a new step of the device has in an attribute nobody gave."""
    texts = {"Modality": "MG"} if keyword != "Modality" else {"Modality": None}
    try:
        [stored] = appliance.schedule(item(ScheduledStationAETitle="MG1", **texts))
    except Refusal as refusal:
        return str(refusal.problems[0].words)
    return stored.item("ScheduledProcedureStepSequence").get(keyword)


def echoed(appliance):
    """What a C-ECHO to the device comes to, less its name."""
    [device] = [d for d in appliance.context().devices if d.name == "Mammography"]
    words = doctor.echo_words("MINRIS", device, doctor.echo_outcome(appliance.config, device))
    return str(words).partition(" ")[2]


def names_of(*names):
    """What is observed: the names shown, after these are put on the worklist."""

    def observe(appliance):
        if not shown_names(appliance, "US1"):
            appliance.schedule(*(item(name, ScheduledStationAETitle="MG1") for name in names))
        return shown_names(appliance, "MG1")

    return observe


def sets_of(name):
    """What is observed: the character set of an answer with this name."""

    def observe(appliance):
        if not shown_names(appliance, "US1"):
            appliance.schedule(item(name))
        [answer], _ = ask(appliance, "MG1", query("PatientName"))
        assert answer[:4] == b"\x08\0\5\0"
        return answer[8 : 8 + answer[4]].decode().strip()

    return observe


def days_seen(appliance):
    """The days of the steps shown, as days from today."""
    if not shown_names(appliance, "US1"):
        around = range(-2, 3)
        days = (item(f"Day^{d}", ScheduledProcedureStepStartDate=day(d)) for d in around)
        appliance.schedule(*days)
    return [int(name.partition("^")[2]) for name in shown_names(appliance, "MG1")]


def stations_seen(appliance):
    if not shown_names(appliance, "US1"):
        stations = ("MG1", "CT1")
        appliance.schedule(*(item(f"At^{s}", ScheduledStationAETitle=s) for s in stations))
    return sorted(shown_names(appliance, "MG1"))


def answers_and_status(appliance):
    if not shown_names(appliance, "US1"):
        appliance.schedule(*(item(f"Patient^{n}") for n in "ABC"))
    answers, status = ask(appliance, "MG1", query("PatientName"))
    return len(answers), status


def empty_sequence(appliance):
    if not shown_names(appliance, "US1"):
        appliance.schedule(item())
    [answer] = shown(appliance, "MG1", "PatientName", "ReferencedStudySequence")
    return tag_of("ReferencedStudySequence") in answer


def pdu_of_an_answer(appliance):
    if not shown_names(appliance, "US1"):
        appliance.schedule(item())
    return values_in_pdus(appliance, "MG1", query("PatientName"))[:-1]


def told_of_an_event(appliance):
    """The types of the events that a watcher hears of which does not negotiate roles."""
    heard = []

    def take(event):
        heard.append(event.request.EventTypeID)
        return 0x0000, None

    ae = AE()
    ae.add_supported_context(UPS_EVENT)  # without roles: ours is not answered
    server = ae.start_server(
        (peers.HOST, 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, take)]
    )
    try:
        device = appliance.appliance.access().device("MG1")
        reached = dataclasses.replace(device, host=peers.HOST, port=server.server_address[1])
        rules = types.SimpleNamespace(device=lambda title: reached)
        sender = DimseSender(appliance.config, lambda: rules)
        event = Event(1, "2.25.1", 1, bytes(text_elements(ProcedureStepState="SCHEDULED")))
        with contextlib.suppress(DeliveryError):
            asyncio.run(sender("MG1", [event], lambda event, answer: None))
    finally:
        server.shutdown()
    return heard


def told_on_its_own_association(appliance):
    """How often a result goes to an association that the device has open."""
    told = []

    class Open:
        contexts = {1: AcceptedContext(1, STORAGE_COMMITMENT, False)}
        peer = Negotiated(b"", contexts, 0, "MINRIS", "MG1")

        async def ask(self, *message):
            told.append(message)
            return 0x0000

    device = appliance.appliance.access().device("MG1")
    reached = dataclasses.replace(device, host=peers.HOST, port=peers.free_port())
    rules = types.SimpleNamespace(device=lambda title: reached)
    sender = DimseSender(appliance.config, lambda: rules, lambda: [Open()])
    result = Event(1, "2.25.1", 2, b"", "commitment result", ours="MINRIS")
    with contextlib.suppress(DeliveryError):
        asyncio.run(sender("MG1", [result], lambda event, answer: None))
    return len(told)


def receivers_of_a_performed_step(appliance):
    appliance.write(pass_on, appliance.context(), "mpps", "N-CREATE", "2.25.1")
    ctx = appliance.context()
    return appliance.read(due_receivers, ctx, PASSED_ON_LANE)


def ways_it_is_told(appliance):
    """The channels by which a device is told that has subscribed over DIMSE."""
    uid = UPS_GLOBAL_SUBSCRIPTION
    appliance.write(subscribe, appliance.context(), uid, "MG1", False)
    return [way for _, way in appliance.read(ways_to_tell, appliance.context(), ["MG1"])]


def allowed_to_ask_by_image(appliance):
    """Whether an image of an unknown study can be looked for (archive: MG1)."""
    device = dataclasses.replace(appliance.appliance.access().device("MG1"), host="")
    search = ArchiveSearch(appliance.config)
    wanted = [Reference("1.2.840.10008.5.1.4.1.1.2", "2.25.9")]
    reached = dataclasses.replace(device, host=peers.HOST, port=peers.free_port())
    try:
        evidence = asyncio.run(search(reached, wanted))
    except DeliveryError:
        return [True]  # it would have asked
    return [not evidence.unchecked]


def offered(appliance):
    """The devices that the registration page offers."""
    page = browser(appliance, "desk").get("/register").text
    return [title for title in re.findall(r'<option value="(\w+)"', page) if title == "MG1"]


@contextlib.contextmanager
def nothing():
    yield 0


# setting: its value, other settings beside it, what is observed, and that before and after
EFFECTS = {
    "ae_title": ("MG1, MG1_DOSE", {}, lambda a: calls(a, "MG1_DOSE"), 3, True),
    "host": (peers.HOST, {"port": "PORT"}, echoed, "has no address here", "answers"),
    "port": ("PORT", {"host": peers.HOST}, echoed, "reach Mammography at 127.0.0.1:104", "answers"),
    "tls": ("yes", {"host": peers.HOST, "port": "PORT"}, lambda a: echoed(a) == "answers", True, False),
    "check_address": ("yes", {"host": "127.0.0.2"}, lambda a: calls(a, "MG1"), True, 3),
    "modality": ("MG", {}, lambda a: stored_step(a, "Modality"), "is missing", "MG"),
    "station_name": ("MAMMO 1", {}, lambda a: stored_step(a, "ScheduledStationName"), "", "MAMMO 1"),
    "location": ("Ground floor", {}, lambda a: stored_step(a, "ScheduledProcedureStepLocation"), "", "Ground floor"),
    "character_set": ("GB18030", {}, sets_of(WANG), "ISO_IR 192", "GB18030"),
    "fallback_character_set": ("GB18030", {"character_set": "ISO_IR 100"}, sets_of("王^小东"), "ISO_IR 192", "GB18030"),
    "role": ("workstation", {}, offered, ["MG1"], []),
    "hours": ("10:00-12:00", {}, lambda a: hours_of(a.context(), "MG1"), [(480, 1080)], [(600, 720)]),
    "own_steps_only": ("yes", {}, stations_seen, ["At^CT1", "At^MG1"], ["At^MG1"]),
    "days_back": ("1", {}, days_seen, [-2, -1, 0, 1, 2], [-1, 0, 1, 2]),
    "days_ahead": ("0", {}, days_seen, [-2, -1, 0, 1, 2], [-2, -1, 0]),
    "answer_limit": ("2", {}, answers_and_status, (3, SUCCESS), (2, OUT_OF_RESOURCES)),
    "empty_sequences": ("no", {}, empty_sequence, True, False),
    "name_groups": ("ideographic", {}, names_of(WANG), [WANG], ["王^小东"]),
    "relational_queries": ("yes", {}, allowed_to_ask_by_image, [False], [True]),
    "mpps": ("no", {}, lambda a: does_report(a.context(), ["MG1"], {"MG1"}), True, False),
    "report_on_same_association": ("yes", {}, told_on_its_own_association, 0, 1),
    "passed_on": ("mpps", {"host": peers.HOST}, receivers_of_a_performed_step, [], ["MG1"]),
    "events": (
        "both",
        {"host": peers.HOST},
        ways_it_is_told,
        ["dimse"],
        ["dimse", "websocket"],
    ),
    "events_without_role": ("yes", {}, told_of_an_event, [], [1]),
    "combined_pdvs": ("no", {}, pdu_of_an_answer, [[1, 0]], [[1], [0]]),
}  # fmt: skip


@pytest.mark.parametrize("key", [setting.key for setting in DEVICE_SETTINGS])
def test_each_setting_of_a_device_has_its_effect(appliance, key):
    value, beside, observe, before, after = EFFECTS[key]
    needed = value == "PORT" or "PORT" in beside.values()
    with listening() if needed else nothing() as port:

        def ready(text):
            return str(port) if text == "PORT" else text

        given = {k: ready(text) for k, text in beside.items()}
        set_device(appliance, **given)
        assert observe(appliance) == before
        set_device(appliance, **given, **{key: ready(value)})
        assert observe(appliance) == after


def test_a_device_of_the_file_has_its_settings_too(run_appliance):
    appliance = run_appliance("[device X-ray]\nname_groups = alphabetic\nanswer_limit = 1\n")
    appliance.schedule(item(WANG), item("Li^Na=李^娜"))
    answers, status = ask(appliance, "DX1", query("PatientName"))
    assert status == OUT_OF_RESOURCES
    assert shown_names(appliance, "DX1") == ["Wang^XiaoDong"]
    assert len(answers) == 1


# Several AE titles.


def test_a_machine_with_two_titles_asks_by_one_and_reports_by_the_other(run_appliance):
    appliance = run_appliance("[device CT room]\nae_title = CT1, CT1_MPPS\n")
    appliance.schedule(item())
    assert shown_names(appliance, "CT1") == [WANG]
    echo = [{"op": "echo"}]
    assert peers.run_dimse(appliance.port, echo, "CT1_MPPS")[0]["status"] == SUCCESS


def test_each_title_of_a_machine_is_shown_the_steps_of_all_its_titles(run_appliance):
    appliance = run_appliance("[device CT room]\nae_title = CT1, CT2\nown_steps_only = yes\n")
    stations = ("CT1", "CT2", "US1")
    appliance.schedule(*(item(f"At^{s}", ScheduledStationAETitle=s) for s in stations))
    assert sorted(shown_names(appliance, "CT1")) == ["At^CT1", "At^CT2"]
    assert sorted(shown_names(appliance, "CT2")) == ["At^CT1", "At^CT2"]


@pytest.mark.parametrize("asked", [b"US1", b"*", b"", b"US*"])
def test_own_steps_only_holds_whatever_is_asked_for(run_appliance, asked):
    appliance = run_appliance("[device CT room]\nown_steps_only = yes\n")
    appliance.schedule(item("At^US1", ScheduledStationAETitle="US1"))
    asked += b" " * (len(asked) & 1)
    assert shown_names(appliance, "CT1", ScheduledStationAETitle=asked) == []


def test_a_step_for_two_stations_is_among_the_own_steps_of_both(run_appliance):
    appliance = run_appliance(
        "[device CT room]\nown_steps_only = yes\n[device Ultrasound]\nown_steps_only = yes\n"
    )
    appliance.schedule(item("Both^Of", ScheduledStationAETitle=r"CT1\US1"))
    assert shown_names(appliance, "CT1") == shown_names(appliance, "US1") == ["Both^Of"]


# The address.

FROM_2 = "[device CT room]\nhost = 127.0.0.2\ncheck_address = yes\n"


@pytest.mark.parametrize(("address", "answer"), [("127.0.0.2", True), ("127.0.0.1", 3)])
def test_a_machine_is_taken_from_its_own_address_alone(run_appliance, address, answer):
    """PS3.8 Table 9-21, reason 3."""
    assert calls(run_appliance(FROM_2), "CT1", address) == answer


def test_another_machine_is_not_held_to_that_address(run_appliance):
    assert calls(run_appliance(FROM_2), "US1") is True


def test_echoscu_from_another_address_is_told_why_it_is_rejected(run_appliance):
    done = peers.run_echoscu(run_appliance(FROM_2).port, "MINRIS", "CT1")
    assert done.exit_code != 0
    assert "Calling AE Title Not Recognized" in done.log


# The window of days.


@pytest.mark.parametrize(
    ("window", "seen"),
    [
        ("days_back = 0\ndays_ahead = 0", [0]),
        ("days_back = 1\ndays_ahead = 1", [-1, 0, 1]),
        ("days_ahead = 1", [-2, -1, 0, 1]),
    ],
)
@pytest.mark.parametrize("asked", [b"", f"{day(-9)}-{day(9)} ".encode()], ids=["all", "a range"])
def test_a_machine_is_shown_its_window_of_days_whatever_it_asks_for(
    run_appliance, window, seen, asked
):
    appliance = run_appliance(f"[device CT room]\n{window}\n")
    around = range(-2, 3)
    appliance.schedule(*(item(f"Day^{d}", ScheduledProcedureStepStartDate=day(d)) for d in around))
    names = shown_names(appliance, "CT1", ScheduledProcedureStepStartDate=asked)
    assert names == [f"Day^{d}" for d in seen]


# The limit of answers.


@pytest.mark.parametrize(("limit", "status"), [(2, OUT_OF_RESOURCES), (3, SUCCESS), (4, SUCCESS)])
def test_past_its_limit_a_machine_is_told_a700(run_appliance, limit, status):
    """T-MWL-21."""
    appliance = run_appliance(f"[device CT room]\nanswer_limit = {limit}\n")
    appliance.schedule(*(item(f"Patient^{n}") for n in "ABC"))
    answers, last = ask(appliance, "CT1", query("PatientName"))
    assert (len(answers), last) == (min(limit, 3), status)


def test_the_limit_of_one_machine_is_not_that_of_another(run_appliance):
    """T-MWL-21."""
    appliance = run_appliance("[device CT room]\nanswer_limit = 1\n")
    appliance.schedule(item(), item("Li^Na=李^娜"))
    assert ask(appliance, "US1", query("PatientName"))[1] == SUCCESS


def test_findscu_is_told_that_there_is_more(run_appliance):
    """T-MWL-21."""
    appliance = run_appliance("[device CT room]\nanswer_limit = 1\n")
    appliance.schedule(item(), item("Li^Na=李^娜"))
    found = peers.run_findscu(appliance.port, "MINRIS", "CT1", ["PatientName"])
    assert found.statuses == [0xFF00, OUT_OF_RESOURCES]


# Sequences without items.


@pytest.mark.parametrize(("setting", "there"), [("yes", True), ("no", False)])
@pytest.mark.parametrize("syntax", ["-xi", "-xe"], ids=["implicit", "explicit"])
def test_a_machine_is_spared_sequences_without_items(run_appliance, setting, there, syntax):
    appliance = run_appliance(f"[device CT room]\nempty_sequences = {setting}\n")
    appliance.schedule(item())
    keywords = ("ReferencedStudySequence", "ReferencedPatientSequence")
    found = peers.run_findscu(
        appliance.port, "MINRIS", "CT1", ["PatientName", *keywords], options=[syntax]
    )
    assert [keyword in found.datasets[0] for keyword in keywords] == [there, there]


def test_a_sequence_with_items_is_sent_to_it(run_appliance):
    appliance = run_appliance("[device CT room]\nempty_sequences = no\n")
    appliance.schedule(item())
    [answer] = shown(appliance, "CT1", "PatientName", step={"Modality": b""})
    assert answer.item("ScheduledProcedureStepSequence").get("Modality") == "CT"


# One group of a name.


@pytest.mark.parametrize(
    ("groups", "name", "sent"),
    [
        ("all", "Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("alphabetic", "Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada^Tarou"),
        ("ideographic", "Yamada^Tarou=山田^太郎=やまだ^たろう", "山田^太郎"),
        ("alphabetic", "Smith^John", "Smith^John"),
        ("ideographic", "Smith^John", "Smith^John"),
        ("alphabetic", "=王^小东", "王^小东"),
        ("ideographic", "=王^小东", "王^小东"),
        ("alphabetic", r"Wang^XiaoDong=王^小东\Smith^John", r"Wang^XiaoDong\Smith^John"),
    ],
)
def test_a_machine_is_sent_one_group_of_a_name(run_appliance, groups, name, sent):
    appliance = run_appliance(f"[device CT room]\nname_groups = {groups}\n")
    keyword = "OtherPatientNames" if "\\" in name else "PatientName"
    appliance.schedule(
        item(**{"name": "Li^Na"} | {{"PatientName": "name"}.get(keyword, keyword): name})
    )
    [answer] = shown(appliance, "CT1", keyword)
    assert answer.get(keyword) == sent


@pytest.mark.parametrize("whole", [True, False], ids=["whole item", "by key"])
def test_the_names_in_a_step_are_of_one_group_too(run_appliance, whole):
    appliance = run_appliance("[device CT room]\nname_groups = alphabetic\n")
    appliance.schedule(item(ScheduledPerformingPhysicianName="Zhao^Min=赵^敏"))
    keys = {} if whole else {"ScheduledPerformingPhysicianName": b""}
    [answer] = shown(appliance, "CT1", step=keys)
    inner = answer.item("ScheduledProcedureStepSequence")
    assert inner.get("ScheduledPerformingPhysicianName") == "Zhao^Min"


@pytest.mark.parametrize("key", ["Wang*", "=王*", "王*"])
def test_a_name_of_which_one_group_is_sent_is_found_by_each(run_appliance, key):
    appliance = run_appliance("[device CT room]\nname_groups = alphabetic\n")
    appliance.schedule(item(WANG))
    found = peers.run_findscu(
        appliance.port, "MINRIS", "CT1", [f"PatientName={key}"], character_set="ISO_IR 192"
    )
    assert [str(ds.PatientName) for ds in found.datasets] == ["Wang^XiaoDong"]


# Command and data set in one PDU, or in two.


def test_command_and_data_set_share_a_pdu(appliance):
    appliance.schedule(item(), item("Li^Na=李^娜"))
    *answers, last = values_in_pdus(appliance, "CT1", query("PatientName"))
    assert (list(itertools.chain(*answers)), last) == ([1, 0, 1, 0], [1])
    assert all(kinds[:2] == [1, 0] for kinds in answers)


def test_command_and_data_set_have_a_pdu_each_for_an_old_machine(run_appliance):
    appliance = run_appliance("[device CT room]\ncombined_pdvs = no\n")
    appliance.schedule(item(), item("Li^Na=李^娜"))
    pdus = values_in_pdus(appliance, "CT1", query("PatientName"))
    assert pdus == [[1], [0], [1], [0], [1]]


# Ready profiles.


@pytest.mark.parametrize("profile", DEVICE_PROFILES)
def test_a_ready_profile_is_in_order_and_its_device_is_answered(appliance, profile):
    set_device(appliance, **DEVICE_PROFILES[profile])
    appliance.schedule(item("Wang^XiaoDong=王^小明"))
    [name] = shown_names(appliance, "MG1")
    assert "Wang^XiaoDong" in name or name == "王^小明"


@pytest.mark.parametrize("profile", DEVICE_PROFILES)
def test_a_ready_profile_fills_in_the_form(technologist, profile):
    typed = {"name": "PET", "ae_title": "PET1", "host": "10.0.0.9", "profile": profile}
    page = save(technologist, **typed, event="profile")
    form = form_of(page.text, "/devices/save")
    assert {key: form[key] for key in DEVICE_PROFILES[profile]} == DEVICE_PROFILES[profile]
    assert {key: form[key] for key in typed} == typed, "what was typed stays"


def test_a_profile_is_filled_in_when_it_is_only_chosen_and_saved(appliance, technologist):
    sent(technologist, save(technologist, **MG, profile="Chinese, GBK"))
    assert made(appliance)["Mammography"]["character_set"] == "GBK"
    page = technologist.get("/devices/edit", params={"name": "Mammography"}).text
    assert form_of(page, "/devices/save")["profile"] == "Chinese, GBK"
    sent(technologist, save(technologist, "Mammography", character_set="GB18030"))
    assert made(appliance)["Mammography"]["character_set"] == "GB18030", "typed, not of the profile"


def test_a_ready_profile_leaves_what_is_known_of_the_device(appliance, technologist):
    set_device(appliance, host="127.0.0.2", modality="MG")
    page = technologist.get(
        "/devices/edit", params={"name": "Mammography", "profile": "Chinese, GBK"}
    )
    form = form_of(page.text, "/devices/save")
    assert (form["ae_title"], form["host"], form["modality"]) == ("MG1", "127.0.0.2", "MG")
    assert (form["old_name"], form["character_set"]) == ("Mammography", "GBK")


def test_a_ready_profile_leaves_nothing_of_the_one_before(appliance, technologist):
    """Who takes the modern one for an old machine's wants no more one name, no more ASCII."""
    set_device(appliance, **DEVICE_PROFILES["Old: ASCII, plain answers"])
    page = technologist.get(
        "/devices/edit", params={"name": "Mammography", "profile": "Modern, UTF-8"}
    )
    form = form_of(page.text, "/devices/save")
    defaults = {s.key: s.default for s in DEVICE_SETTINGS}
    keys = ("fallback_character_set", "name_groups", "empty_sequences", "combined_pdvs")
    assert {key: form[key] for key in keys} == {key: defaults[key] for key in keys}


# The page.


def browser(appliance, role, language="en"):
    """A browser in which somebody of a role has logged in."""

    def logged_in():
        context = appliance.context()
        name = f"anna-{role}"
        user = make_user(context, name, role, "blue-kettle-9")
        return open_session(context, user.id)

    cookies = {appliance.cookie: appliance.write(logged_in)} if role else {}
    headers = {"Accept-Language": language}
    return httpx.Client(base_url=appliance.url, cookies=cookies, headers=headers, trust_env=False)


@pytest.fixture
def technologist(appliance):
    with browser(appliance, "technologist") as client:
        yield client


def forms_of(text, action):
    """The forms of a page that go to a path: what they would send."""
    found = []
    for form in re.findall(rf'<form method="post" action="{action}".*?</form>', text, re.S):
        fields = {}
        for tag in re.findall(r"<input[^>]*>", form):
            name, value = (re.search(rf'{a}="([^"]*)"', tag) for a in ("name", "value"))
            text, is_box = html.unescape(value[1]) if value else "", 'type="checkbox"' in tag
            if is_box and " checked" in tag:
                fields[name[1]] = ", ".join(filter(None, (fields[name[1]], text)))
            elif not is_box:
                fields[name[1]] = text
        for name, options in re.findall(r'<select[^>]* name="(\w+)".*?>(.*?)</select>', form, re.S):
            values = re.findall(r'<option value="([^"]*)"( selected)?', options)
            fields[name] = next((v for v, chosen in values if chosen), values[0][0])
        found.append(fields)
    return found


def form_of(text, action):
    [form] = forms_of(text, action)
    return form


def words_of(text):
    """What a person reads on a page, in one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def save(client, of="", **settings):
    """Fill in the form of a device, or of a new one, and send it."""
    page = client.get("/devices/edit", params={"name": of} if of else {}).text
    return client.post("/devices/save", data=form_of(page, "/devices/save") | settings)


def sent(client, answer):
    """The page that a form leads to."""
    assert answer.status_code == 303, words_of(answer.text)
    return client.get(answer.headers["Location"]).text


def made(appliance):
    """The devices of the page: their settings by name."""
    found = appliance.read(lambda: {d.name: d for d in stored_devices()})
    return {name: settings_of(device) for name, device in found.items()}


MG = {"name": "Mammography", "ae_title": "MG1", "modality": "MG"}


def test_a_device_made_on_the_page_is_accepted_at_once(appliance, technologist):
    assert calls(appliance, "MG1") == 3
    page = sent(technologist, save(technologist, **MG))
    assert "Mammography" in page
    assert calls(appliance, "MG1") is True


def test_every_setting_of_a_device_can_be_seen_and_set_on_the_page(appliance, technologist):
    given = {
        "ae_title": "MG1, MG1_DOSE",
        "host": "127.0.0.2",
        "port": "11113",
        "tls": "any_name",
        "check_address": "yes",
        "modality": "MG",
        "station_name": "MAMMO 1",
        "location": "Ground floor",
        "character_set": r"\ISO 2022 IR 58",
        "fallback_character_set": "GB18030",
        "role": "workstation",
        "own_steps_only": "yes",
        "days_back": "1",
        "days_ahead": "7",
        "answer_limit": "200",
        "empty_sequences": "no",
        "name_groups": "ideographic",
        "relational_queries": "yes",
        "mpps": "no",
        "report_on_same_association": "yes",
        "passed_on": "availability, mpps",
        "events": "both",
        "events_without_role": "yes",
        "combined_pdvs": "no",
        "hours": "",
    }
    assert set(given) == {setting.key for setting in DEVICE_SETTINGS}
    sent(technologist, save(technologist, **given, name="Mammography"))
    assert made(appliance) == {"Mammography": given}
    page = technologist.get("/devices/edit", params={"name": "Mammography"}).text
    form = form_of(page, "/devices/save")
    assert {key: form[key] for key in given} == given


def test_each_setting_is_explained_on_the_page(technologist):
    text = words_of(technologist.get("/devices/edit").text)
    assert all(setting.meaning in text for setting in DEVICE_SETTINGS)


def test_a_device_that_is_changed_is_judged_anew(appliance, technologist):
    sent(technologist, save(technologist, **MG))
    sent(technologist, save(technologist, "Mammography", ae_title="MG2"))
    assert (calls(appliance, "MG1"), calls(appliance, "MG2")) == (3, True)


def test_a_device_is_given_another_name(appliance, technologist):
    sent(technologist, save(technologist, **MG))
    page = technologist.get("/devices/edit", params={"name": "Mammography"}).text
    form = form_of(page, "/devices/save") | {"name": "乳腺摄影 1"}
    sent(technologist, technologist.post("/devices/save", data=form))
    assert list(made(appliance)) == ["乳腺摄影 1"]
    assert (
        form_of(
            technologist.get("/devices/edit", params={"name": "乳腺摄影 1"}).text, "/devices/save"
        )["ae_title"]
        == "MG1"
    )


def test_a_deleted_device_is_refused_again(appliance, technologist):
    sent(technologist, save(technologist, **MG))
    page = technologist.get("/devices/edit", params={"name": "Mammography"}).text
    assert '<button name="event" value="delete"' in page
    page = sent(technologist, save(technologist, "Mammography", event="delete", sure="yes"))
    assert made(appliance) == {}
    assert calls(appliance, "MG1") == 3


def test_a_device_of_the_file_is_shown_with_its_settings(technologist):
    assert "X-ray" in words_of(technologist.get("/devices").text)
    page = technologist.get("/devices/edit", params={"name": "X-ray"}).text
    assert form_of(page, "/devices/save")["character_set"] == "ISO_IR 100"
    assert "Set in config.ini; change it there" in words_of(page)


def test_a_device_of_the_file_has_nothing_to_change_it_by(technologist):
    page = technologist.get("/devices/edit", params={"name": "X-ray"}).text
    shown = page[page.index('action="/devices/save"') :]
    form = shown[: shown.index("</form>")]
    assert "<button" not in form
    fields = re.findall('<(?:input(?! type="hidden")|select)[^>]*>', form)
    assert len(fields) > 20
    assert all(" disabled" in field for field in fields)


def test_a_wrong_device_is_told_at_its_field_which_has_focus_and_is_unfolded(technologist):
    page = save(technologist, **MG, port="eleven").text
    assert re.search('<input id="port"[^>]* aria-invalid="true"[^>]* autofocus', page)
    assert page.count("&#039;eleven&#039; is not a whole number") == 2, "above and at the field"
    assert re.search(r"<details[^>]* open><summary>If minris calls the machine", page)


@pytest.mark.parametrize(
    "change",
    [{"port": "4242"}, {"event": "delete", "sure": "yes"}, {"name": "Other", "ae_title": "OTHER"}],
    ids=["changed", "deleted", "renamed"],
)
def test_a_device_of_the_file_is_not_changed_by_a_form_that_was_tampered_with(
    appliance, technologist, change
):
    before = appliance.context().devices
    assert save(technologist, "X-ray", **change).status_code in (403, 404, 422)
    assert appliance.context().devices == before
    assert made(appliance) == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ae_title": "CT1"}, "CT1 already belongs to CT room"),
        ({"ae_title": "MG1, US1"}, "US1 already belongs to Ultrasound"),
        ({"name": "X-ray", "old_name": ""}, "Name: X-ray already belongs to X-ray"),
        ({"ae_title": ""}, "AE title at the machine: Please fill this in."),
        ({"ae_title": "A_TITLE_THAT_IS_TOO_LONG"}, "machine: 'A_TITLE_THAT_IS_TOO_LONG' is not an AE title"),
        ({"port": "eleven"}, "Port: 'eleven' is not a whole number from 1 to 65535"),
        ({"character_set": "GB2312"}, "'GB2312' is not a character set known here"),
        ({"character_set": r"GB18030\ISO 2022 IR 58"}, "GB18030 stands alone"),
        ({"check_address": "yes", "host": ""}, "Address: Please fill this in."),
        ({"days_back": "-1"}, "Days back: '-1' is not a whole number"),
        ({"answer_limit": "0"}, "Most answers: '0' is not a whole number"),
        ({"name": ""}, "Name: Please fill this in."),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_wrong_device_is_refused_in_words_with_what_was_typed(
    appliance, technologist, given, words
):
    typed = MG | {"location": "Ground floor"} | given
    answer = technologist.post(
        "/devices/save",
        data=form_of(technologist.get("/devices/edit").text, "/devices/save") | typed,
    )
    assert answer.status_code == 422
    assert words in words_of(answer.text)
    assert 'value="Ground floor"' in answer.text
    assert made(appliance) == {}


def test_everything_that_is_wrong_with_a_device_is_said_at_once(technologist):
    words = words_of(save(technologist, **MG | {"port": "x", "days_ahead": "soon"}).text)
    assert "Port: 'x'" in words and "Days ahead: 'soon'" in words


def test_an_ae_title_that_was_given_up_may_be_another_device_s(appliance, technologist):
    sent(technologist, save(technologist, **MG))
    sent(technologist, save(technologist, "Mammography", ae_title="MG2"))
    sent(technologist, save(technologist, **MG | {"name": "Mammography 2"}))
    assert set(made(appliance)) == {"Mammography", "Mammography 2"}


def test_a_refused_change_leaves_the_device_as_it_was(appliance, technologist):
    sent(technologist, save(technologist, **MG))
    before = made(appliance)
    assert save(technologist, "Mammography", ae_title="CT1").status_code == 422
    assert made(appliance) == before
    assert calls(appliance, "MG1") is True


# Those who tried.


def turned_away(client):
    """The rows of those who were turned away: their cells."""
    page = client.get("/devices").text
    rows = re.findall(r"<tr>(.*?)</tr>", page[page.index("Rejected since start-up") :], re.S)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in rows[1:]]
    return [[words_of(cell) for cell in row] for row in cells]


def test_a_device_that_tried_is_listed_with_address_and_reason(appliance, technologist):
    peers.run_echoscu(appliance.port, "MINRIS", "MG1")
    [row] = turned_away(technologist)
    assert row[:2] == ["MG1", "127.0.0.1"]
    assert "'MG1' is not a registered device" in row[2]


def test_a_device_that_tried_is_registered_by_one_click_and_accepted(appliance, technologist):
    calls(appliance, "MG1", "127.0.0.3")
    [form] = [
        form
        for form in forms_of(technologist.get("/devices").text, "/devices/save")
        if form.get("ae_title") == "MG1"
    ]
    sent(technologist, technologist.post("/devices/save", data=form))
    assert calls(appliance, "MG1", "127.0.0.3") is True
    assert made(appliance)["MG1"]["host"] == "127.0.0.3"


def test_a_device_that_is_registered_has_no_button_to_register_it(appliance, technologist):
    calls(appliance, "MG1")
    sent(technologist, save(technologist, **MG))
    titles = [
        form.get("ae_title")
        for form in forms_of(technologist.get("/devices").text, "/devices/save")
    ]
    assert "MG1" not in titles


def test_a_known_device_that_calls_us_by_another_title_is_listed_with_what_to_set(
    appliance, technologist
):
    calls(appliance, "CT1", called="WORKLIST")
    [row] = turned_away(technologist)
    assert row[0] == "CT1"
    assert "'WORKLIST'" in row[2] and "'MINRIS'" in row[2]
    assert row[-1] == ""


def test_a_device_that_calls_from_another_address_is_listed_with_it(run_appliance):
    appliance = run_appliance(FROM_2)
    calls(appliance, "CT1")
    with browser(appliance, "technologist") as client:
        [row] = turned_away(client)
    assert row[:2] == ["CT1", "127.0.0.1"]
    assert "registered for 127.0.0.2" in row[2]


def test_who_tried_several_times_is_listed_once(appliance, technologist):
    for _ in range(3):
        calls(appliance, "MG1")
    assert len(turned_away(technologist)) == 1


def test_who_tried_last_stands_first(appliance, technologist):
    for title in ("MG1", "MR1", "MG1"):
        calls(appliance, title)
    assert [row[0] for row in turned_away(technologist)] == ["MG1", "MR1"]


def test_the_time_of_a_try_is_that_of_the_clinic(run_appliance):
    appliance = run_appliance(
        "[clinic]\ntimezone = Pacific/Kiritimati\n"
    )  # UTC+14, nobody's machine
    calls(appliance, "MG1")
    [(at, _)] = appliance.appliance.associations.rejected.values()
    local = datetime.datetime.fromtimestamp(at, appliance.config.zone)
    with browser(appliance, "technologist") as client:
        [row] = turned_away(client)
    assert f"{local:%H:%M}" in row[3]


def test_an_ae_title_cannot_bring_markup_into_the_page(appliance, technologist):
    calls(appliance, "<b>MG</b>")
    page = technologist.get("/devices").text
    assert "<b>MG</b>" not in page
    assert "&lt;b&gt;MG&lt;/b&gt;" in page


def test_the_reason_is_told_in_the_language_of_the_page(appliance):
    calls(appliance, "MG1")
    with browser(appliance, "technologist", "zh-CN") as client:
        page = client.get("/devices").text
    assert "is not registered" not in page


# C-ECHO from the page.


def echo(appliance, client, name="Mammography", **settings):
    """Press C-ECHO beside a device: what the page says then."""
    if settings:
        set_device(appliance, **settings)
    forms = forms_of(client.get("/devices").text, "/devices/echo")
    [form] = [form for form in forms if form["name"] == name]
    page = sent(client, client.post("/devices/echo", data=form))
    return words_of(
        re.search(r'<div class="(?:told|problem)" role="\w+"><p>(.*?)</p>', page, re.S)[1]
    )


def test_a_device_that_answers_is_said_to(appliance, technologist):
    with listening() as port:
        told = echo(appliance, technologist, host=peers.HOST, port=str(port))
    assert told == "Mammography answers"


def test_dcmjs_answers_our_c_echo(appliance, technologist):
    with peers.listening_dimse("MG1") as device:
        told = echo(appliance, technologist, host=peers.HOST, port=str(device.port))
    assert told == "Mammography answers"


def test_a_device_is_called_by_its_title_with_ours(appliance, technologist):
    asked = []
    ae = AE("MG1")
    ae.add_supported_context(VERIFICATION)
    note = (evt.EVT_REQUESTED, lambda event: asked.append(event.assoc.requestor.primitive))
    server = ae.start_server((peers.HOST, 0), block=False, evt_handlers=[note])
    try:
        port = str(server.server_address[1])
        echo(appliance, technologist, ae_title="MG1, MG1_DOSE", host=peers.HOST, port=port)
    finally:
        server.shutdown()
    assert [(p.calling_ae_title, p.called_ae_title) for p in asked] == [("MINRIS", "MG1")]


def test_a_closed_port_is_said_with_host_and_port(appliance, technologist):
    port = peers.free_port()
    told = echo(appliance, technologist, host=peers.HOST, port=str(port))
    assert told == f"Cannot reach Mammography at 127.0.0.1:{port}"


def test_a_device_that_does_not_know_us_is_said_to_reject_us(appliance, technologist):
    with listening(only=["SOMEONE"]) as port:
        told = echo(appliance, technologist, host=peers.HOST, port=str(port))
    assert told == "Mammography rejected the connection. Is MINRIS configured there?"


def test_a_device_that_takes_no_c_echo_is_not_said_to_be_out_of_reach(appliance, technologist):
    with listening(abstract_syntax=MODALITY_WORKLIST) as port:
        told = echo(appliance, technologist, host=peers.HOST, port=str(port))
    assert "Cannot reach" not in told
    assert "C-ECHO" in told


def test_a_device_without_an_address_is_said_to_have_none(appliance, technologist):
    assert echo(appliance, technologist, "X-ray") == "X-ray has no address here"


@pytest.mark.parametrize(
    "error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label empty")]
)
def test_a_host_without_an_address_is_said_not_to_be_reached(
    appliance, technologist, monkeypatch, error
):
    """As `mg.local`, or `mg..local`, would have it."""
    look_up = socket.getaddrinfo

    def fails(host, *arguments, **how):
        if host == "mg.local":
            raise error
        return look_up(host, *arguments, **how)

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    told = echo(appliance, technologist, host="mg.local", port="104")
    assert told == "Cannot reach Mammography at mg.local:104"


def test_while_we_wait_for_a_device_others_are_served(appliance, technologist):
    """A device that is switched on but hangs: it takes the connection and says nothing."""
    with socket.create_server((peers.HOST, 0)) as silent:
        set_device(appliance, host=peers.HOST, port=str(silent.getsockname()[1]))
        asking = threading.Thread(target=echo, args=(appliance, technologist), daemon=True)
        asking.start()
        with silent.accept()[0], browser(appliance, "desk") as other:
            assert calls(appliance, "CT1") is True
            assert other.get("/healthz").status_code == 200
            assert asking.is_alive()
        asking.join(10)
    assert not asking.is_alive()


def test_an_echo_to_a_device_that_is_not_there_is_404(technologist):
    token = form_of(technologist.get("/devices/edit").text, "/devices/save")["csrf"]
    answer = technologist.post("/devices/echo", data={"csrf": token, "name": "MR room"})
    assert answer.status_code == 404


# Who may.


@pytest.mark.parametrize("role", ["technologist", "admin"])
def test_who_works_with_the_machines_sees_the_devices(appliance, role):
    with browser(appliance, role) as client:
        assert client.get("/devices").status_code == 200


@pytest.mark.parametrize("path", ["/devices", "/devices/edit"])
def test_the_desk_does_not_see_the_devices(appliance, path):
    with browser(appliance, "desk") as client:
        assert client.get(path).status_code == 403


def test_the_desk_has_no_link_to_the_devices(appliance):
    with browser(appliance, "desk") as client:
        assert 'href="/devices"' not in client.get("/").text


@pytest.mark.parametrize("event", ["", "delete"])
def test_the_desk_neither_makes_nor_deletes_a_device(appliance, event):
    set_device(appliance)
    before = made(appliance)
    with browser(appliance, "desk") as client:
        token = re.search(r'name="csrf" value="([^"]+)"', client.get("/register").text)[1]
        form = {"csrf": token, "name": "MR room", "ae_title": "MR1"}
        form |= {"event": event, "old_name": "Mammography"} if event else {}
        assert client.post("/devices/save", data=form).status_code == 403
    assert made(appliance) == before


def test_the_desk_calls_no_device(appliance):
    with browser(appliance, "desk") as client:
        token = re.search(r'name="csrf" value="([^"]+)"', client.get("/register").text)[1]
        form = {"csrf": token, "name": "X-ray"}
        assert client.post("/devices/echo", data=form).status_code == 403


@pytest.mark.parametrize("path", ["/devices/save", "/devices/echo"])
def test_a_form_from_elsewhere_does_nothing(appliance, technologist, path):
    answer = technologist.post(path, data=MG)
    assert answer.status_code == 403
    assert made(appliance) == {}


def test_a_guest_is_led_to_the_login(appliance):
    with browser(appliance, "") as client:
        answer = client.get("/devices")
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith("/login")


def test_who_changed_a_device_is_kept(appliance, technologist):
    sent(technologist, save(technologist, **MG))
    rows = appliance.read(
        lambda: database.execute_sql(
            "SELECT who, about FROM audit WHERE what = 'device saved'"
        ).fetchall()
    )
    [(who, about)] = rows
    assert who.startswith("anna-technologist") and about == "Mammography"


# In a browser.


def test_one_click_in_a_browser_registers_who_tried(appliance):
    peers.run_echoscu(appliance.port, "MINRIS", "MG1")
    with browser(appliance, "technologist") as client, sync_playwright() as playwright:
        cookie = {
            "name": appliance.cookie,
            "value": client.cookies[appliance.cookie],
            "url": appliance.url,
        }
        chromium = playwright.chromium.launch(
            executable_path=peers.chromium(), args=["--no-sandbox"]
        )
        context = chromium.new_context(base_url=appliance.url, locale="en-GB")
        context.add_cookies([cookie])
        page = context.new_page()
        page.goto("/devices")
        page.get_by_role("row", name="MG1").get_by_role("button", name="Register").click()
        page.get_by_role("link", name="MG1").wait_for()
        chromium.close()
    assert peers.run_echoscu(appliance.port, "MINRIS", "MG1").exit_code == 0
