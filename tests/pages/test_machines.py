"""Sections 16 and 19: who has called and how it ended, what statuses mean, names as sent, the
catalogue as CSV, the board rendered once for all."""

import base64
import concurrent.futures
import datetime
import gzip
import json
import re
import socket
import struct
import threading
import time

import peers
import pytest
from conftest import item
from pynetdicom import AE
from test_devices import form_of
from test_mpps import change as set_mpps
from test_mpps import create, creation, creation_for, ending, series, unscheduled_item
from test_pages import (
    admin_password,
    csrf_of,
    employ,
    filled,
    hidden_fields,
    visiting,
    words_of,
)

from minris.access.devices import device_of_texts, name_as_sent, stored_devices
from minris.access.users import end_sessions, permit
from minris.cli import run_store_command
from minris.config.values import ROLES
from minris.dataset.elements import text_elements
from minris.interchange.csv_tables import no_formula, of_formula
from minris.orders.catalogue import all_procedures, retire_procedure, save_procedure
from minris.orders.patients import find_patients
from minris.pages.box import RIGHTS, roles_of_rights
from minris.pages.day.board import render_board
from minris.pages.frame import page_above
from minris.pages.site import PAGES, build_app
from minris.standard.status import STATUS_WORDS, Status, is_failure
from minris.standard.uids import VERIFICATION, new_uid
from minris.store.models import database
from minris.upper_layer.caller import associate_request
from minris.ups.workitems import create_workitem
from minris.web.request import Web, cookie_name


@pytest.fixture
def technologist(appliance):
    with visiting(appliance) as client:
        yield employ(appliance, client, "technologist")


# Devices.


def save(client, **fields):
    """Send the form of a device."""
    csrf = csrf_of(client.get("/devices/edit").text)
    return client.post("/devices/save", data={"csrf": csrf, **fields})


def test_a_device_is_known_whatever_is_saved_at_the_same_time(appliance, technologist, monkeypatch):
    """Who looked first came last, with a picture that lacked the other one's device."""
    slow = threading.Event()

    def looked_up():
        found = stored_devices()
        if not slow.is_set():
            slow.set()
            time.sleep(0.5)
        return found

    csrf = csrf_of(technologist.get("/devices/edit").text)
    monkeypatch.setattr("minris.appliance.appliance.stored_devices", looked_up)

    def saved(number):
        if number:
            slow.wait(peers.PATIENCE_S)
        fields = {"csrf": csrf, "name": f"MR {number}", "ae_title": f"MR{number}"}
        return technologist.post("/devices/save", data=fields).status_code

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(saved, range(4))) == [303] * 4
    rules = appliance.appliance.access()
    assert [number for number in range(4) if not rules.device(f"MR{number}")] == []


def test_a_device_that_an_import_brings_is_known_at_once(appliance, tmp_path):
    content = json.dumps(
        {"minris": 1, "devices": [{"name": "MR", "settings": {"ae_title": "MR1"}}]}
    )
    run_store_command(appliance.config, "import", name="all.json", content=content.encode())
    assert appliance.appliance.access().device("MR1")


# Associations.


def settled(appliance, count):
    """The associations that are over, once so many are."""
    for _ in range(500):
        found = list(appliance.appliance.associations.ended)
        if len(found) >= count:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{len(found)} associations have ended")


def test_an_association_is_told_by_what_was_done_and_how_it_ended(appliance, technologist):
    appliance.schedule(item())
    peers.run_echoscu(appliance.port, "MINRIS", "CT1")
    peers.run_findscu(appliance.port, "MINRIS", "CT1", ["PatientName"])
    echo, find = settled(appliance, 2)
    assert (echo.calling, echo.address, echo.ending) == ("CT1", "127.0.0.1", "released")
    assert dict(echo.done) == {("C-ECHO", 0): 1}
    assert dict(find.done) == {("C-FIND", 0): 1}
    words = words_of(technologist.get("/associations"))
    assert "C-FIND × 1" in words
    assert "completed" in words


def test_a_class_that_is_not_served_is_named(appliance, technologist):
    ae = AE("CT1")
    for uid in (VERIFICATION, "1.2.840.10008.5.1.4.1.1.2"):
        ae.add_requested_context(uid)
    ae.associate("127.0.0.1", appliance.port, ae_title="MINRIS").release()
    settled(appliance, 1)
    assert "nothing; not provided here: CT Image Storage" in words_of(
        technologist.get("/associations")
    )
    doctor = words_of(technologist.get("/devices/doctor?name=CT%20room"))
    assert "It requested services that are not provided here: CT Image Storage" in doctor


def test_a_failure_is_told_with_its_meaning(appliance, technologist):
    key = "ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartDate=20260230"
    peers.run_findscu(appliance.port, "MINRIS", "CT1", [key])
    settled(appliance, 1)
    page = technologist.get("/associations")
    assert "C-FIND × 1 A900 The question does not fit the service" in words_of(page)
    assert 'data-light="warning"' in page.text


def test_who_is_turned_away_is_listed_with_the_reason_and_registered_with_one_click(
    appliance, technologist
):
    peers.run_echoscu(appliance.port, "MINRIS", "MG1")
    settled(appliance, 1)
    page = technologist.get("/associations")
    assert "rejected: 'MG1' is not a registered device" in words_of(page)
    form = form_of(page.text, "/devices/save")
    assert (form["ae_title"], form["host"]) == ("MG1", "127.0.0.1")
    assert technologist.post("/devices/save", data=form).status_code == 303
    assert any("MG1" in one.ae_titles for one in appliance.appliance.access().devices)


def test_an_abort_and_a_lost_connection_are_told_apart(appliance):
    for end in ("abort", "lose"):
        ae = AE("CT1")
        ae.add_requested_context(VERIFICATION)
        association = ae.associate(peers.HOST, appliance.port, ae_title="MINRIS")
        if end == "abort":
            association.abort()
        else:
            association.dul.socket.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            association.dul.socket.socket.close()
            association.kill()
    assert {one.ending for one in settled(appliance, 2)} == {"aborted", "lost"}


def test_a_protocol_error_is_told_in_words(appliance, technologist):
    with socket.create_connection((peers.HOST, appliance.port)) as wire:
        ae = AE("CT1")
        ae.add_requested_context(VERIFICATION)
        wire.sendall(associate_request("CT1", "MINRIS", ((VERIFICATION, None),)))
        head = wire.recv(6)
        wire.recv(int.from_bytes(head[2:], "big"))
        wire.sendall(b"\x63\x00\x00\x00\x00\x00")
        while wire.recv(4096):
            pass
    [one] = settled(appliance, 1)
    assert one.ending == "refused"
    assert "PDU type 63 is not known" in words_of(technologist.get("/associations"))


def test_a_machine_that_asks_all_day_does_not_push_others_out(appliance):
    peers.run_echoscu(appliance.port, "MINRIS", "MG1")
    for _ in range(5):
        peers.run_echoscu(appliance.port, "MINRIS", "CT1")
    settled(appliance, 2)
    time.sleep(0.2)
    found = list(appliance.appliance.associations.ended)
    assert [one.calling for one in found] == ["MG1", "CT1"]


def test_a_name_that_is_a_script_is_text(appliance, technologist):
    peers.run_echoscu(appliance.port, "MINRIS", "<b>x</b>")
    settled(appliance, 1)
    page = technologist.get("/associations").text
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page


def test_associations_are_searched_by_device_and_address(appliance, technologist):
    for calling in ("CT1", "MG1"):
        peers.run_echoscu(appliance.port, "MINRIS", calling)
    settled(appliance, 2)
    words = words_of(technologist.get("/associations?q=mg1"))
    assert ("MG1" in words, "C-ECHO" in words) == (True, False)


def test_reception_sees_no_associations(appliance):
    with visiting(appliance) as client:
        assert employ(appliance, client).get("/associations").status_code == 403


# Statuses.


def test_every_status_that_is_answered_has_its_meaning_and_mend():
    answered = {int(status) for status in Status} - {Status.PENDING, 0xFF01}
    assert answered - STATUS_WORDS.keys() == set()
    assert all(meaning and mend for meaning, mend in STATUS_WORDS.values())


@pytest.mark.parametrize("asked", ["0110", "0x0110", "110"])
def test_a_status_is_looked_up_as_the_machine_shows_it(technologist, asked):
    words = words_of(technologist.get("/statuses", params={"q": asked}))
    assert "0110 It could not be done" in words
    assert "A900" not in words


@pytest.mark.parametrize(
    ("status", "fails"),
    [(0, False), (0x0001, False), (0xB304, False), (0xFE00, False), (0x0110, True), (0xC301, True)],
)
def test_what_a_failure_is(status, fails):
    assert is_failure(status) == fails


# Names as a device is sent them.


@pytest.mark.parametrize(
    ("settings", "name", "text", "sent"),
    [
        ({"character_set": "GB18030"}, "=王^小东", "=王^小东", "=王^小东".encode("gb18030")),
        ({"character_set": "ISO_IR 192"}, "=王^小东", "=王^小东", "=王^小东".encode()),
        ({"character_set": "GB18030", "name_groups": "ideographic"}, "Wang^XiaoDong=王^小东",
         "王^小东", "王^小东".encode("gb18030")),
        ({"character_set": "ISO_IR 100", "fallback_character_set": "ISO_IR 100",
          "name_groups": "alphabetic"}, "Müller^Jörg", "Müller^Jörg", "Müller^Jörg".encode("latin-1")),
    ],
)  # fmt: skip
def test_a_name_is_sent_in_the_bytes_that_are_shown(settings, name, text, sent):
    device = device_of_texts("Any", {"ae_title": "ANY", **settings})
    shown, content = name_as_sent(device, name)
    assert (shown, content.rstrip(b" ")) == (text, sent)


def test_wrong_settings_make_no_device():
    assert device_of_texts("Any", {"ae_title": "ANY", "character_set": "KLINGON"}) is None


def test_the_bytes_are_shown_before_anything_is_saved(appliance, technologist):
    page = technologist.get("/devices/edit?profile=Chinese%2C+GB18030")
    assert "CD F5" in page.text, "王 in GB18030"
    form = {"csrf": csrf_of(page.text), "name": "New CT", "ae_title": "CT7", "event": "preview",
            "character_set": "ISO_IR 192"}  # fmt: skip
    shown = technologist.post("/devices/save", data=form)
    assert shown.status_code == 200
    assert "E7 8E 8B" in shown.text, "王 in UTF-8"
    assert 'value="CT7"' in shown.text
    assert not any("CT7" in one.ae_titles for one in appliance.appliance.access().devices)


# The catalogue as CSV.


def upload(client, content):
    token = csrf_of(client.get("/catalogue/import").text)
    files = {"upload": ("catalogue.csv", content)}
    return client.post("/catalogue/import", data={"csrf": token}, files=files)


def test_the_catalogue_comes_back_as_it_left(appliance, technologist):
    row = {"code": "CTC", "meaning": "CT chest", "minutes": "40", "protocol_code": "P1",
           "protocol_meaning": "Low dose", "modality": "CT"}  # fmt: skip
    appliance.write(save_procedure, appliance.context(), row)
    row = {"code": "OLD", "meaning": "胸部 X 线"}
    appliance.write(save_procedure, appliance.context(), row)
    appliance.write(retire_procedure, appliance.context(), "OLD")
    content = technologist.get("/catalogue.csv").content
    before = [dict(vars(one)) for one in appliance.read(all_procedures)]
    appliance.write(database.execute_sql, "DELETE FROM procedure")
    assert upload(technologist, content).status_code == 303
    after = [dict(vars(one)) for one in appliance.read(all_procedures)]
    for row in (*before, *after):
        row.pop("id")
    assert after == before
    assert "Imported: 2" in words_of(technologist.get("/catalogue"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"code;meaning\nA;B\n;C\n", "Row 3"),
        (b"code,meaning,minutes\nA,B,long\n", "is not a number of minutes"),
        (b"name\nA\n", "Unknown column code"),
        (b"", "no rows"),
        (b"code,meaning\nA,\xff\xfe\xfd\n", "it is not UTF-8"),
    ],
)
def test_a_catalogue_that_is_wrong_in_a_row_is_refused_whole(
    appliance, technologist, content, words
):
    answer = upload(technologist, content)
    assert answer.status_code == 422
    assert words in words_of(answer)
    assert appliance.read(all_procedures) == []


def test_what_a_catalogue_has_no_column_for_stays(appliance, technologist):
    whole = "code,meaning,modality,minutes,ae_title\nCTX,'Quick' CT,CT,45,CT1\nOLD,Old,CT,10,\n"
    assert upload(technologist, whole.encode()).status_code == 303
    appliance.write(retire_procedure, appliance.context(), "OLD")
    assert upload(technologist, b"code,meaning\nCTX,CT x new\nOLD,Older\n").status_code == 303
    found = {one.code: one for one in appliance.read(all_procedures)}
    ctx_ = found["CTX"]
    assert (ctx_.meaning, ctx_.modality, ctx_.minutes, ctx_.ae_title) == (
        "CT x new",
        "CT",
        45,
        "CT1",
    )
    assert (found["OLD"].meaning, found["OLD"].retired) == ("Older", 1)


@pytest.mark.parametrize("cell", ["=1+1", "'Quick' CT", "-", "plain", "'"])
def test_a_cell_comes_back_as_it_left(cell):
    assert of_formula(no_formula(cell)) == cell


def test_no_file_no_import(technologist):
    token = csrf_of(technologist.get("/catalogue/import").text)
    answer = technologist.post("/catalogue/import", data={"csrf": token}, files={"x": b""})
    assert "Nothing was chosen" in words_of(answer)


# The board, rendered once.


@pytest.fixture
def desk(appliance):
    with visiting(appliance) as client:
        yield employ(appliance, client)


@pytest.fixture
def renderings(monkeypatch):
    """Each time that a board is rendered."""
    seen, render = [], render_board
    monkeypatch.setattr(
        "minris.pages.day.board.render_board",
        lambda *how: seen.append(how[2].language) or render(*how),
    )
    return seen


def part(client, have="", **query):
    return client.get("/", params={"part": "board", "have": have, **query})


def test_a_board_is_rendered_once_for_each_language_and_change(appliance, desk, renderings):
    for _ in range(5):
        part(desk)
    assert renderings == ["en"]
    desk.cookies.set(cookie_name(appliance.appliance.web_server.web, "http", "language"), "zh-CN")
    part(desk)
    appliance.schedule(item())
    part(desk)
    part(desk)
    assert renderings == ["en", "zh-CN", "zh-CN"]


def test_who_has_the_board_is_not_sent_it_again(appliance, desk):
    first = part(desk)
    assert part(desk, first.headers["X-Mark"]).status_code == 204
    appliance.schedule(item(ScheduledProcedureStepStartDate=appliance.context().today()))
    again = part(desk, first.headers["X-Mark"])
    assert (again.status_code, "王小东" in again.text) == (200, True)


def test_a_board_says_nothing_of_who_looks_at_it(appliance, desk):
    appliance.schedule(item(ScheduledProcedureStepStartDate=appliance.context().today()))
    answer = part(desk)
    assert "csrf" not in answer.text
    assert 'form="act"' in answer.text
    assert 'id="act"' in desk.get("/").text


def test_a_board_is_sent_as_gzip_to_who_takes_it(appliance, desk):
    appliance.schedule(item(ScheduledProcedureStepStartDate=appliance.context().today()))
    with desk.stream("GET", "/?part=board", headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
        assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw).decode() == part(desk).text
    for accepted in ("identity", "gzip;q=0"):
        plain = desk.get("/?part=board", headers={"Accept-Encoding": accepted})
        assert "content-encoding" not in plain.headers
        assert plain.headers["vary"] == "Accept-Encoding"


def test_a_page_that_repeats_what_was_asked_is_not_compressed(desk):
    paths = {"/patients": True, "/patients?q=wang": False, "/patients?%71=w": False,
             "/register?date=x": False, "/?device=x": False, "/": True}  # fmt: skip
    for path, zipped in paths.items():
        answer = desk.get(path, headers={"Accept-Encoding": "gzip"})
        assert ("content-encoding" in answer.headers) == zipped, path


def test_each_form_has_a_token_of_its_own_and_all_of_them_are_taken(desk):
    tokens = [csrf_of(desk.get("/register").text) for _ in range(3)]
    assert len(set(tokens)) == 3
    for token in tokens:
        assert desk.post("/unmatch", data={"csrf": token}).status_code == 422  # nothing chosen


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t[::-1], lambda t: t[:16], str.upper,
                                    lambda t: "王" * 48, lambda t: ""])  # fmt: skip
def test_a_token_that_was_changed_is_refused(desk, change):
    token = csrf_of(desk.get("/register").text)
    assert desk.post("/unmatch", data={"csrf": change(token)}).status_code == 403


def test_the_board_by_state_and_of_one_device(appliance, desk):
    today = appliance.context().today()
    appliance.schedule(
        item(ScheduledProcedureStepStartDate=today),
        item(name="Li^Na", PatientID="P2", ScheduledProcedureStepStartDate=today,
             ScheduledStationAETitle="US9", Modality="US"),
    )  # fmt: skip
    by_state = part(desk, by="state").text
    assert re.findall("<h2>(.*?)</h2>", by_state) == ["Scheduled"]
    assert "US9" in by_state
    of_ct = part(desk, device="CT1").text
    assert ("Li Na" in of_ct, "王小东" in of_ct) == (False, True)
    assert "All 1" in words_of(part(desk, device="US9"))


@pytest.mark.parametrize("path", ["/step/{}/label", "/patient/{}", "/patient/{}/erase", "/step/{}"])
def test_a_number_past_all_rows_is_not_there(appliance, path):
    with visiting(appliance) as client:
        answer = employ(appliance, client, "admin").get(path.format("9" * 23))
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("by=nonsense", 200),
        ("device=<script>", 200),
        ("date=9999-12-31", 200),
        ("date=0001-01-01", 200),
        ("date=２０２６０７０５", 422),
        ("date=x", 422),
    ],
)
def test_any_query_gives_a_board_but_a_day_that_is_none(desk, query, status):
    answer = desk.get(f"/?{query}")
    assert answer.status_code == status
    assert "<script>" not in answer.text


def workitem_named(ctx, label):
    """A workitem with a label that a program chose."""
    texts = text_elements(
        ProcedureStepState="SCHEDULED", ProcedureStepLabel=label, WorklistLabel=label,
        ScheduledProcedureStepPriority="MEDIUM", InputReadinessState="READY",
        ScheduledProcedureStepStartDateTime="20260705", PatientName=label,
    )  # fmt: skip
    create_workitem(ctx, "2.25.71", bytes(texts))


EVIL = "<script>alert(1)</script>"
CLICK = "\"><img src=x onerror=alert(1)>'{{1+1}}"


def test_a_script_in_what_machines_send_is_text_on_every_page(appliance):
    """In names, exams and codes that come by MPPS, in an order, in a query, in a title."""
    today = appliance.context().today()
    texts = {"RequestedProcedureDescription": CLICK, "ScheduledProcedureStepStartDate": today,
             "Allergies": EVIL, "PatientID": EVIL[:60]}  # fmt: skip
    [step] = appliance.schedule(item(f"{EVIL}^{CLICK}", **texts))
    yesterday = texts | {"ScheduledProcedureStepStartDate": "20260704"}
    appliance.schedule(item(EVIL, **yesterday))
    machine = appliance.context("CT1")
    sent = {"PerformedProcedureStepDescription": CLICK, "PatientName": EVIL, "PatientID": EVIL[:60]}
    appliance.write(create, machine, creation_for(step, **sent))
    report = ending(PerformedSeriesSequence=[series(ProtocolName=CLICK, OperatorsName=EVIL)])
    appliance.write(set_mpps, machine, report)
    appliance.write(create, machine, creation(unscheduled_item(), **sent), new_uid())
    appliance.write(workitem_named, appliance.context(), EVIL)
    peers.run_findscu(appliance.port, "MINRIS", "CT1", [f"PatientName={EVIL}"])
    found, escaped = {}, set()
    with visiting(appliance) as client:
        employ(appliance, client, "admin")
        for method, rule in page_rules(appliance):
            for query in ("", f"?q={EVIL}&state={EVIL}&label={EVIL}&date={EVIL}&device={EVIL}"):
                if method == "GET" and not rule.endswith(".ics"):  # which no browser renders
                    path = rule.replace("/workitem/*", "/workitem/2.25.71").replace("*", "1")
                    text = client.get(path + query).text
                    if "<script>alert" in text or "<img src=x" in text or "'2" in text:
                        found[rule] = text
                    if method == "GET" and "&lt;script&gt;alert" in text:
                        escaped.add(rule)
    assert list(found) == []
    shown = {"/", "/step/*", "/step/*/slip", "/patient/*", "/patients", "/leftovers", "/unscheduled",
             "/calendar", "/print", "/why", "/workitems", "/workitem/*"}  # fmt: skip
    assert shown - escaped == set()


@pytest.mark.parametrize("path", ["/catalogue.csv", "/figures.csv"])
def test_no_cell_of_a_csv_is_a_formula(appliance, path):
    row = {"code": "=1+1", "meaning": "@SUM(A1)", "ae_title": "+CT"}
    appliance.write(save_procedure, appliance.context(), row)
    today = appliance.context().today()
    station = {"ScheduledStationAETitle": "=HYPER", "ScheduledProcedureStepStartDate": today}
    appliance.schedule(item(**station))
    with visiting(appliance) as client:
        text = employ(appliance, client, "admin").get(path).text
    cells = [cell.strip('"') for line in text.splitlines() for cell in line.split(",")]
    assert len(cells) > 10
    assert [cell for cell in cells if cell[:1] in ("=", "+", "-", "@")] == []


def test_what_was_typed_outlives_the_session(appliance):
    """The form is sent after the login with one click, by who typed it, and by nobody else."""
    with visiting(appliance) as client:
        employ(appliance, client)
        form = filled(client) | {"chinese_name": "李娜", "family_name": "Li", "given_name": "Na"}
        appliance.write(end_sessions, appliance.context(), "anna")
        answer = client.post("/register", data=form)
        assert (answer.status_code, "was saved yet" in answer.text) == (401, True)
        kept = re.search('name="kept" value="([^"]+)"', answer.text)[1]
        admin = {"name": "admin", "password": admin_password(appliance), "kept": kept}
        page = client.post("/login", data=admin)
        assert "李娜" in page.text
        again = hidden_fields(page.text)
        assert again["csrf"] != form["csrf"]
        assert client.post("/register", data=again).status_code == 303
    assert appliance.read(find_patients, "李娜", datetime.date(2026, 7, 5))


def test_a_form_of_another_site_is_not_kept(appliance):
    with visiting(appliance) as client:
        answer = client.post(
            "/register", data={"x": "1"}, headers={"Origin": "https://evil.example"}
        )
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


@pytest.mark.parametrize("kept", ["!", "e30=", "WyJodHRwczovL2V2aWwiLCBbXV0="])
def test_what_was_kept_and_tampered_with_does_no_harm(appliance, kept):
    with visiting(appliance) as client:
        form = {"name": "admin", "password": admin_password(appliance), "kept": kept}
        answer = client.post("/login", data=form)
    assert answer.status_code in (200, 303, 422)
    assert "evil" not in answer.text


def test_passwords_are_not_kept(appliance):
    with visiting(appliance) as client:
        answer = client.post("/users", data={"name": "x", "password": "secret-words"})
        kept = re.search('name="kept" value="([^"]*)"', answer.text)[1]
    assert b"secret" not in base64.b64decode(kept)


OPEN_PAGES = {"/login", "/language", "/screen", "/static/*"}


def page_rules(appliance):
    """Method and rule of each page, with * for a part of the path."""
    routes = build_app(Web(appliance.config, appliance.appliance.context,
                                         appliance.appliance.access, appliance.appliance.writer,
                                         appliance.appliance)).routes  # fmt: skip
    rules = {(one.method, re.sub(r"<[^>]*>", "*", one.rule)) for one in routes}
    others = ("/api", "/dicom-web", "/healthz", "/metrics")
    return sorted(one for one in rules if not one[1].startswith(others)
                  and one[1] not in OPEN_PAGES)  # fmt: skip


def least_of(rule):
    """The role that RIGHTS shows for a page: that of the longest path that leads to it."""
    found = []
    for (_, pages), (_, least) in zip(RIGHTS, roles_of_rights(PAGES), strict=True):
        for page in pages.split():
            below = page != "/" and f"{rule}/".startswith(f"{page}/")
            if rule == page or below:
                found.append((len(page), least))
    return max(found)[1]


@pytest.mark.parametrize("role", ROLES)
def test_what_a_role_may_do_is_what_the_table_says(appliance, role):
    """Each page is asked for by each role: refused is who may not, and nobody else."""
    appliance.schedule(item())
    wrong = []
    with visiting(appliance) as client:
        employ(appliance, client, role)
        token = csrf_of(client.get("/register").text)
        for method, rule in page_rules(appliance):
            if rule == "/logout":
                continue
            path = rule.replace("*", "1")
            answer = client.request(
                method, path, data={"csrf": token} if method == "POST" else None
            )
            refused = answer.status_code == 403
            by_deed = method == "POST" and rule in ("/orphans", "/watchers", "/workitem/*")
            if refused == permit(role, least_of(rule)) and not (by_deed and refused):
                wrong.append((method, rule, answer.status_code))
    assert wrong == []


def test_every_page_is_in_the_table_of_rights(appliance):
    assert len(page_rules(appliance)) > 60
    assert all(least_of(rule) in ROLES for _, rule in page_rules(appliance))


@pytest.mark.parametrize("page", [page for page in PAGES if page.role], ids=lambda page: page.path)
def test_the_role_that_is_shown_for_a_page_is_the_one_it_asks_for(page):
    assert least_of(page.rule) == page.role


def test_nobody_need_be_logged_in_to_log_in_or_choose_a_language():
    assert {page.path for page in PAGES if not page.role} == {"/login", "/language", "/screen"}


@pytest.mark.parametrize(
    ("path", "above"),
    [("/", "/"), ("/step/1", "/"), ("/patient/3/merge", "/patients"), ("/devices/edit", "/devices"),
     ("/workitem/1.2", "/workitems"), ("/users/new", "/users"), ("/commitment/1.2", "/commitments"),
     ("/catalogue/import", "/catalogue")],
)  # fmt: skip
def test_each_page_belongs_to_one_of_the_menu(path, above):
    assert page_above([page for page in PAGES if page.words], path).path == above


def test_a_page_of_no_menu_belongs_to_none():
    assert page_above([page for page in PAGES if page.words], "/register") is None


def test_the_worst_light_is_at_the_top_of_an_administrators_pages(appliance):
    with visiting(appliance) as client:
        page = employ(appliance, client, "admin").get("/").text
        assert re.search('class="light" data-light="(good|warning)"', page)
    with visiting(appliance) as client:
        assert 'class="light"' not in client.get("/login").text
