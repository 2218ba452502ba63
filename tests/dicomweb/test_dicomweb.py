"""Section 18: the JSON API and the web server, asked by httpx and by plain sockets."""

import contextlib
import json
import logging
import shutil
import socket
import threading
import time
from types import SimpleNamespace

import httpx
import peers
import pytest
from conftest import item, write_config

from minris.access.users import delete_token
from minris.config.ini import ConfigError, load_config
from minris.config.values import ROLES
from minris.dataset.dicom_json import from_json, to_json
from minris.dataset.elements import ElementIndex
from minris.interchange.imports import How, enter_file
from minris.standard.dictionary import tag_of, vr_of
from minris.standard.status import OUTCOMES, Refusal, Status
from minris.web.api import ROUTES

JSON = {"Content-Type": "application/dicom+json"}


@contextlib.contextmanager
def calling(appliance, token="", **how):
    """An HTTP client of an appliance that is no browser, with a token or none."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    how = {"base_url": appliance.url, "headers": headers, "trust_env": False, "verify": False} | how
    with httpx.Client(**how) as client:
        yield client


@contextlib.contextmanager
def browsing(appliance):
    """An HTTP client that is logged in as admin by a cookie, as a browser is."""
    password = appliance.config.store_path.with_name("minris-admin-password.txt").read_text()
    with calling(appliance) as client:
        client.post("/login", data={"name": "admin", "password": password.strip()})
        yield client


def csrf_of(client):
    """The token that the forms of this login carry."""
    return client.get("/register").text.partition('name="csrf" value="')[2].partition('"')[0]


def first(answer):
    """The first data set of an answer of the API."""
    return ElementIndex(from_json(answer.json()[0]))


def path_of(stored):
    """Where the API has a stored data set."""
    step = stored.item("ScheduledProcedureStepSequence")
    return f"/api/worklist/{stored.get('StudyInstanceUID')}/{step.get('ScheduledProcedureStepID')}"


@pytest.fixture
def wang(appliance):
    """Wang XiaoDong, on the worklist of the CT: path, the stored data set."""
    [stored] = appliance.schedule(item(PatientID="P7", Allergies="Penicillin"))
    return SimpleNamespace(path=path_of(stored), stored=stored)


def perform(appliance, stored):
    """The CT begins a stored step."""
    step = stored.item("ScheduledProcedureStepSequence")
    performed = {
        "PerformedProcedureStepStatus": "IN PROGRESS",
        "PerformedProcedureStepID": "PPS1",
        "PerformedStationAETitle": "CT1",
        "PerformedProcedureStepStartDate": "20260705",
        "PerformedProcedureStepStartTime": "093500",
        "Modality": "CT",
        "ScheduledStepAttributesSequence": [
            {
                "StudyInstanceUID": stored.get("StudyInstanceUID"),
                "ScheduledProcedureStepID": step.get("ScheduledProcedureStepID"),
                "ReferencedStudySequence": [],
            }
        ],
    }
    ask = {"op": "n-create", "instance": "2.25.77", "charset": "ISO_IR 192", "dataset": performed}
    [answer] = peers.run_dimse(appliance.port, [ask], "CT1", "MINRIS")
    assert answer["status"] == 0x0000


# Who may call.


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.method} {r.path}")
@pytest.mark.parametrize("token", ["", "stolen-and-wrong"])
def test_nobody_calls_the_api_without_a_token(appliance, wang, route, token):
    path = wang.path if "<" in route.path else route.path
    with calling(appliance, token) as client:
        answer = client.request(route.method, path, headers=JSON)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.json()["status"] == "0124"


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.method} {r.path}")
def test_a_route_answers_with_the_success_code_of_its_row(web, wang, appliance, route):
    path = wang.path if "<" in route.path else route.path
    if "<number" in route.path:
        content = json.dumps([item("Li^Na=李^娜")]).encode()
        made = (appliance.context(), "items.json", content, How(), True)
        number = appliance.write(enter_file, *made)
        appliance.appliance.imports.start(number)
        path = f"/api/imports/{number}"
    body = {"POST": json.dumps(item("Li^Na=李^娜")), "PUT": "{}"}.get(route.method)
    answer = web.request(route.method, path, headers=JSON, content=body)
    assert answer.status_code == route.success[0]
    assert answer.headers["Content-Type"].startswith("application/dicom+json")


def test_a_deleted_token_is_refused_at_once(appliance):
    token = appliance.token("desk")
    with calling(appliance, token) as client:
        assert client.get("/api/worklist").status_code == 200
        appliance.write(delete_token, appliance.context(), "test desk")
        assert client.get("/api/worklist").status_code == 401


@pytest.mark.parametrize("role", ROLES)
def test_every_role_may_schedule(appliance, role):
    with calling(appliance, appliance.token(role)) as client:
        assert client.post("/api/worklist", json=item()).status_code == 201


def test_a_browser_changes_nothing_by_the_api_without_its_csrf_token(appliance):
    with browsing(appliance) as client:
        answer = client.post("/api/worklist", json=item())
        assert (answer.status_code, answer.json()["status"]) == (403, "0124")
        assert client.get("/api/worklist", params={"date": "20260705"}).json() == []


def test_a_browser_uses_the_api_with_its_csrf_token(appliance):
    with browsing(appliance) as client:
        answer = client.post(
            "/api/worklist", json=item(), headers={"X-CSRF-Token": csrf_of(client)}
        )
        assert answer.status_code == 201


ANONYMOUS = "[web]\nanonymous_loopback = yes"


def test_loopback_needs_no_token_where_that_is_set(run_appliance):
    with calling(run_appliance(ANONYMOUS)) as client:
        assert client.get("/api/worklist").status_code == 200
        assert client.post("/api/worklist", json=item()).status_code == 201


def test_loopback_needs_a_token_by_default(appliance):
    with calling(appliance) as client:
        assert client.get("/api/worklist").status_code == 401


@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP", "X-Forwarded-Host", "X-Forwarded-Proto"],
)
def test_what_a_proxy_forwards_is_not_loopback(run_appliance, header):
    with calling(run_appliance(ANONYMOUS)) as client:
        answer = client.get("/api/worklist", headers={header: "192.0.2.7"})
        assert answer.status_code == 401


@pytest.mark.parametrize(
    "key", ["public_url = https://ris.clinic.example", "trusted_proxies = ::1"]
)
def test_loopback_is_nobody_where_there_is_a_proxy(tmp_path, key):
    """What a proxy on this computer sends comes from 127.0.0.1 too."""
    with pytest.raises(ConfigError) as error:
        load_config(write_config(tmp_path, f"{ANONYMOUS}\n{key}"))
    name = key.partition(" ")[0]
    assert error.value.problems == [f"[web] anonymous_loopback: cannot be used with {name}"]


def test_what_nginx_forwards_without_a_word_is_not_loopback(run_appliance, tmp_path):
    """By default it sets Host to our address, and tells nothing of the caller."""
    appliance = run_appliance(ANONYMOUS)
    place = f"location / {{ proxy_pass {appliance.url}; }}"
    with peers.serving_nginx(tmp_path, place) as url, httpx.Client(trust_env=False) as client:
        assert client.get(f"{url}/api/worklist").status_code == 401


def test_another_loopback_address_than_ours_needs_a_token(run_appliance):
    transport = httpx.HTTPTransport(verify=False, local_address="127.0.0.2")
    with calling(run_appliance(ANONYMOUS), transport=transport) as client:
        assert client.get("/api/worklist").status_code == 401


@pytest.mark.parametrize("path", ["/", "/register", "/step/1"])
def test_the_pages_need_a_login_even_from_loopback(run_appliance, path):
    with calling(run_appliance(ANONYMOUS)) as client:
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Location"]) == (303, f"/login?next={path}")


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Host": "evil.example:8080"}],
    ids=["a foreign Origin", "a foreign Host, as by DNS rebinding"],
)
def test_another_site_in_a_browser_of_this_machine_is_not_loopback(run_appliance, headers):
    """A page of elsewhere that is open on the box itself comes from 127.0.0.1 as well."""
    with calling(run_appliance(ANONYMOUS)) as client:
        assert client.post("/api/worklist", json=item(), headers=headers).status_code in (401, 403)


# What is stored, and what is answered.


def test_what_was_stored_is_answered_with_the_identifiers_made(web):
    stored = first(web.post("/api/worklist", json=item()))
    step = stored.item("ScheduledProcedureStepSequence")
    made = {
        "PatientID": stored.get("PatientID"),
        "AccessionNumber": stored.get("AccessionNumber"),
        "RequestedProcedureID": stored.get("RequestedProcedureID"),
        "ScheduledProcedureStepID": step.get("ScheduledProcedureStepID"),
    }
    assert all(made.values()), made
    assert stored.get("StudyInstanceUID").startswith("2.25.")


def test_what_was_posted_is_found_by_a_modality(appliance, web):
    """T-WEB-13: names by component group."""
    posted = item("Wang^XiaoDong=王^小东", PatientWeight=71.5, PatientBirthDate="19780312")
    web.post("/api/worklist", json=posted)
    keys = [*peers.WORKLIST_KEYS, "PatientWeight"]
    [answer] = peers.run_findscu(appliance.port, "MINRIS", "CT1", keys).datasets
    assert answer.PatientName == "Wang^XiaoDong=王^小东"
    assert (answer.PatientWeight, answer.PatientBirthDate) == (71.5, "19780312")


def test_two_steps_of_one_procedure_are_two_data_sets_of_one_study(web):
    posted = item()
    posted["ScheduledProcedureStepSequence"]["Value"].append(
        item(ScheduledStationAETitle="US1", Modality="US")["ScheduledProcedureStepSequence"][
            "Value"
        ][0]
    )
    found = web.post("/api/worklist", json=posted).json()
    assert len(found) == 2
    assert found[0]["0020000D"] == found[1]["0020000D"]
    assert [len(one["00400100"]["Value"]) for one in found] == [1, 1]


def test_the_json_keeps_to_the_model(web):
    """T-WEB-13: names, empty elements, an empty member, an empty item; keys ascend."""
    posted = item(
        "Wang^XiaoDong=王^小东",
        PatientWeight=71.5,
        PregnancyStatus=4,
    )
    posted["00081120"] = {"vr": "SQ", "Value": [{}]}
    posted["PatientSex"] = {"vr": "CS"}
    posted["MedicalAlerts"] = {"vr": "LO", "Value": ["Pacemaker", None, "MRSA"]}
    [stored] = web.post("/api/worklist", json=posted).json()
    assert list(stored) == sorted(stored)
    assert stored["00100010"]["Value"] == [
        {"Alphabetic": "Wang^XiaoDong", "Ideographic": "王^小东"}
    ]
    assert stored["00100040"] == {"vr": "CS"}
    assert stored["00102000"]["Value"] == ["Pacemaker", None, "MRSA"]
    assert stored["00081120"]["Value"] == [{}]
    assert stored["001021C0"]["Value"] == [4]
    assert stored["00101030"]["Value"] == [71.5]


def test_keys_in_lower_case_are_taken(web):
    posted = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Li^Na"}]}}
    posted |= {key: value for key, value in item().items() if key != "PatientName"}
    posted["0020000d"] = {"vr": "UI", "Value": ["2.25.4711"]}
    assert first(web.post("/api/worklist", json=posted)).get("StudyInstanceUID") == "2.25.4711"


def test_numbers_are_taken_as_numbers_and_as_text(web):
    for weight in (71.5, "71.5", "71.50"):
        answer = web.post("/api/worklist", json=item(PatientWeight=weight))
        assert float(answer.json()[0]["00101030"]["Value"][0]) == 71.5


def test_an_array_is_answered_in_its_order(web):
    names = ["Li^Na=李^娜", "Miller^Anna", "Zhang^Wei=张^伟"]
    found = web.post("/api/worklist", json=[item(name) for name in names]).json()
    assert [one["00100010"]["Value"][0]["Alphabetic"] for one in found] == [
        "Li^Na",
        "Miller^Anna",
        "Zhang^Wei",
    ]


def test_one_wrong_item_of_an_array_keeps_all_out(web):
    array = [item("Li^Na"), item("Miller^Anna", PatientBirthDate="19800231"), item("Zhang^Wei")]
    answer = web.post("/api/worklist", json=array)
    assert answer.status_code == 400
    assert answer.json()["error"] == (
        "item 2: Patient's Birth Date (0010,0030) 19800231 is not a date"
    )
    assert web.get("/api/worklist", params={"date": "20260705"}).json() == []


def test_an_item_of_an_array_that_is_no_data_set_is_named(web):
    answer = web.post("/api/worklist", json=[item("Li^Na"), "Miller^Anna"])
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("item 2: ")
    assert web.get("/api/worklist", params={"date": "20260705"}).json() == []


def test_the_steps_of_a_day_are_listed_in_order_of_time(web):
    for name, time_of_day in (("Li^Na", "1015"), ("Miller^Anna", "0830"), ("Zhang^Wei", "0930")):
        web.post("/api/worklist", json=item(name, ScheduledProcedureStepStartTime=time_of_day))
    web.post("/api/worklist", json=item("Garcia^Luis", ScheduledProcedureStepStartDate="20260706"))
    found = web.get("/api/worklist", params={"date": "20260705"}).json()
    names = [one["00100010"]["Value"][0]["Alphabetic"] for one in found]
    assert names == ["Miller^Anna", "Zhang^Wei", "Li^Na"]


def test_the_list_without_a_date_is_that_of_today(appliance, web):
    today = appliance.context().today()
    web.post("/api/worklist", json=item("Li^Na", ScheduledProcedureStepStartDate=today))
    web.post("/api/worklist", json=item("Miller^Anna", ScheduledProcedureStepStartDate="20200101"))
    [found] = web.get("/api/worklist").json()
    assert found["00100010"]["Value"][0]["Alphabetic"] == "Li^Na"


def test_one_step_is_read_by_study_and_step_id(web, wang):
    found = web.get(wang.path)
    assert from_json(found.json()[0]) == bytes(wang.stored)


@pytest.mark.parametrize("step_id", ["2026/0031", "头颅 1", "S.1", "50%"])
def test_a_step_is_reached_whatever_its_id(web, step_id):
    """SH has no forbidden characters but the backslash; a RIS before us may have used them."""
    stored = first(web.post("/api/worklist", json=item(ScheduledProcedureStepID=step_id)))
    study = stored.get("StudyInstanceUID")
    path = httpx.URL(web.base_url).copy_with(
        raw_path=f"/api/worklist/{study}/".encode() + quoted(step_id).encode()
    )
    assert web.get(path).status_code == 200


def quoted(text):
    """Text as a segment of a path."""
    return "".join(f"%{byte:02X}" for byte in text.encode())


# Changing, and cancelling.


def change(web, path, **texts):
    """PUT a few attributes by keyword."""
    whole = item(**texts)
    patch = {key: whole[key] for key in texts if key in whole}
    step = whole["ScheduledProcedureStepSequence"]["Value"][0]
    inner = {key: step[key] for key in texts if key in step}
    if inner:
        patch["ScheduledProcedureStepSequence"] = {"vr": "SQ", "Value": [inner]}
    return web.put(path, content=json.dumps(patch), headers=JSON)


def test_put_changes_what_is_given_and_leaves_the_rest(web, wang):
    changed = first(change(web, wang.path, ScheduledProcedureStepStartTime="1115"))
    step = changed.item("ScheduledProcedureStepSequence")
    assert step.get("ScheduledProcedureStepStartTime") == "1115"
    assert step.get("ScheduledStationAETitle") == "CT1"
    assert changed.get("Allergies") == "Penicillin"
    assert changed.get("AccessionNumber") == wang.stored.get("AccessionNumber")


def test_put_moves_a_step_to_another_device(appliance, web, wang):
    change(web, wang.path, ScheduledStationAETitle="US1", Modality="US")
    keys = ["PatientName", "ScheduledProcedureStepSequence[0].ScheduledStationAETitle={}"]
    found = {
        title: len(
            peers.run_findscu(
                appliance.port, "MINRIS", title, [key.format(title) for key in keys]
            ).datasets
        )
        for title in ("CT1", "US1")
    }
    assert found == {"CT1": 0, "US1": 1}


@pytest.mark.parametrize(
    "keyword", ["Allergies", "RequestedProcedureComments", "ScheduledProcedureStepDescription"]
)
def test_put_empties_what_is_given_empty(appliance, web, keyword):
    [stored] = appliance.schedule(item(**{keyword: "Metal in the left eye?"}))
    change(web, path_of(stored), **{keyword: []})
    [found] = web.get(path_of(stored)).json()
    assert "Metal" not in json.dumps(found)


@pytest.mark.parametrize(
    ("keyword", "value", "status"),
    [
        ("PatientBirthDate", "19800231", 400),
        ("ScheduledProcedureStepStartDate", [], 400),
        ("PatientName", [], 400),
        ("StudyInstanceUID", "2.25.99", 400),
        ("ScheduledProcedureStepID", "S99", 400),
        ("PatientID", "P99", 400),
    ],
)
def test_put_of_something_wrong_changes_nothing(web, wang, keyword, value, status):
    answer = change(web, wang.path, Allergies="Latex", **{keyword: value})
    assert answer.status_code == status
    assert answer.json()["problems"][0]["attribute"] == f"{tag_of(keyword):08X}"
    assert from_json(web.get(wang.path).json()[0]) == bytes(wang.stored)


def test_put_of_what_has_begun_is_refused(appliance, web, wang):
    perform(appliance, wang.stored)
    answer = change(web, wang.path, ScheduledProcedureStepStartTime="1115")
    assert (answer.status_code, answer.json()["status"]) == (409, "0110")


def test_put_takes_one_data_set(web, wang):
    answer = web.put(wang.path, content=json.dumps([{}, {}]), headers=JSON)
    assert answer.status_code == 400


def test_delete_cancels_and_keeps(appliance, web, wang):
    cancelled = first(web.delete(wang.path, params={"reason": "Patient called: flu"}))
    step = cancelled.item("ScheduledProcedureStepSequence")
    assert step.get("ScheduledProcedureStepStatus") == "CANCELED"
    assert first(web.get(wang.path)).get("PatientName") == "Wang^XiaoDong=王^小东"
    assert peers.run_findscu(appliance.port, "MINRIS", "CT1", ["PatientID=P7"]).datasets == []


def test_delete_keeps_the_reason(appliance, web, wang):
    web.delete(wang.path, params={"reason": "电话取消"})
    with browsing(appliance) as client:
        assert "电话取消" in client.get("/step/1").text


def test_delete_a_second_time_changes_nothing(web, wang):
    web.delete(wang.path)
    assert web.delete(wang.path).status_code == 200


def test_delete_of_what_has_begun_is_refused(appliance, web, wang):
    perform(appliance, wang.stored)
    answer = web.delete(wang.path)
    assert (answer.status_code, answer.json()["error"]) == (409, "The step is STARTED")


def test_a_cancelled_step_comes_back_by_put(web, wang):
    web.delete(wang.path)
    changed = first(change(web, wang.path, ScheduledProcedureStepStartDate="20260706"))
    step = changed.item("ScheduledProcedureStepSequence")
    assert step.get("ScheduledProcedureStepStatus") == "SCHEDULED"


# Refusals.


@pytest.mark.parametrize(
    ("operation", "status"),
    [
        (operation, status)
        for operation, status in OUTCOMES
        if operation == "*" and status is not Status.MISTYPED_ARGUMENT
    ],
    ids=lambda x: f"{x:04X}" if isinstance(x, int) else x,
)
def test_a_refusal_has_the_code_and_the_words_of_its_outcome(
    web, wang, monkeypatch, operation, status
):
    def refuse(*_):
        raise Refusal(status, "said by the core")

    monkeypatch.setattr("minris.orders.scheduling.step_data", refuse)
    monkeypatch.setattr("minris.web.api.step_data", refuse)
    answer = web.get(wang.path)
    expected = OUTCOMES[operation, status]
    assert answer.status_code == expected.http
    assert answer.headers["Warning"] == f'299 minris: "{expected.text}"'
    assert answer.json() == {"status": f"{status:04X}", "error": "said by the core", "problems": []}


def test_a_problem_names_its_attribute(web):
    posted = item(PatientBirthDate="19800231", ScheduledProcedureStepStartDate="soon")
    answer = web.post("/api/worklist", json=posted)
    assert answer.headers["Content-Type"].startswith("application/json")
    assert {
        "attribute": "00100030",
        "name": "Patient's Birth Date (0010,0030)",
        "text": "19800231 is not a date",
    } in answer.json()["problems"]


def test_all_problems_are_told_at_once(web):
    posted = item("", PatientBirthDate="19800231", AccessionNumber="A2026070500000017")
    problems = web.post("/api/worklist", json=posted).json()["problems"]
    assert {p["attribute"] for p in problems} == {"00100010", "00100030", "00080050"}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/worklist/2.25.404/S1", 404),
        ("/api/worklist/study/S1", 404),
        ("/api/nothing", 404),
        ("/api/worklist?date=20260231", 400),
        ("/api/worklist?date=today", 400),
    ],
)
def test_what_is_not_there_is_said_in_json(web, path, status):
    answer = web.get(path)
    assert answer.status_code == status
    assert answer.json()["error"]


@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE"])
def test_another_method_is_405_with_those_allowed(web, method):
    """T-WEB-14."""
    answer = web.request(method, "/api/worklist")
    assert answer.status_code == 405
    assert {"GET", "POST"} <= {m.strip() for m in answer.headers["Allow"].split(",")}
    assert answer.json()["error"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_called_json_is_415(web, kind):
    """T-WEB-14."""
    headers = {"Content-Type": kind} if kind else {}
    answer = web.post("/api/worklist", content=json.dumps(item()), headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (415, "0212")


@pytest.mark.parametrize("kind", ["application/json", "application/dicom+json; charset=utf-8"])
def test_json_may_be_called_json(web, kind):
    answer = web.post("/api/worklist", content=json.dumps(item()), headers={"Content-Type": kind})
    assert answer.status_code == 201


def posted_with(key, member):
    """A good item but for one member."""
    return json.dumps(item() | {key: member})


@pytest.mark.parametrize(
    "body",
    [
        "",
        "Wang",
        "{",
        "null",
        "3",
        '"Wang"',
        "[[]]",
        "[" * 100_000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        "9" * 5000,
        b"\xff\xfe\x00",
        posted_with("PatientName", "Wang^XiaoDong"),
        posted_with("PatientName", {"vr": "PN", "Value": "Wang^XiaoDong"}),
        posted_with("PatientName", {"vr": "PN", "Value": [{"Alphabetic": 7}]}),
        posted_with("PatientName", {"vr": "PN", "Value": ["\ud800"]}),
        posted_with("PatientName", {"vr": "ZZ", "Value": ["Wang"]}),
        posted_with("PatientNames", {"vr": "PN", "Value": ["Wang"]}),
        posted_with("\ud800", {"vr": "PN", "Value": ["Wang"]}),
        posted_with("00020010", {"vr": "UI", "Value": ["1.2.840.10008.1.2"]}),
        posted_with("PregnancyStatus", {"vr": "US", "Value": [70000]}),
        posted_with("PregnancyStatus", {"vr": "US", "Value": ["four"]}),
        posted_with("PatientWeight", {"vr": "DS", "Value": [float("nan")]}),
        posted_with("PatientComments", {"vr": "LT", "InlineBinary": "not base64!"}),
        posted_with("RequestedProcedureDescription", {"vr": "LO", "Value": ["x" * 70000]}),
        posted_with("ScheduledProcedureStepSequence", {"vr": "SQ", "Value": ["S1"]}),
        posted_with("ScheduledProcedureStepSequence", {"vr": "SQ", "Value": []}),
    ],
)
def test_what_is_no_worklist_item_is_400_and_stored_nowhere(web, body):
    answer = web.post("/api/worklist", content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert web.get("/api/worklist", params={"date": "20260705"}).json() == []


@pytest.mark.parametrize(
    ("key", "member"),
    [
        ("PatientBirthDate", {"vr": "LO", "Value": ["last spring"]}),
        ("StudyInstanceUID", {"vr": "SH", "Value": ["study one"]}),
        ("PatientName", {"vr": "LO", "Value": ["Wang^XiaoDong"]}),
        ("AccessionNumber", {"vr": "OB", "InlineBinary": "AAAA"}),
    ],
)
def test_a_standard_attribute_keeps_its_vr(web, key, member):
    """A modality that reads Explicit VR would be told a VR that the Standard does not give it."""
    answer = web.post("/api/worklist", content=posted_with(key, member), headers=JSON)
    if answer.status_code == 201:
        stored = answer.json()[0][f"{tag_of(key):08X}"]
        assert stored["vr"] == vr_of(tag_of(key))
    else:
        assert answer.status_code == 400


def test_a_known_patient_id_with_another_name_is_refused(web, wang):
    answer = web.post("/api/worklist", json=item("Miller^Anna", PatientID="P7"))
    assert (answer.status_code, answer.json()["status"]) == (409, "0111")
    assert answer.json()["problems"][0]["attribute"] == "00100020"
    assert len(web.get("/api/worklist", params={"date": "20260705"}).json()) == 1


def test_a_known_patient_is_corrected_on_demand(web, wang):
    posted = item("Wang^XiaoDong=王^晓东", PatientID="P7", PatientBirthDate="19780312")
    posted["PatientName"]["Value"] = [{"Alphabetic": "Wang^Xiaodong2", "Ideographic": "王^晓东"}]
    web.post("/api/worklist", json=posted, params={"patient": "update"})
    assert first(web.get(wang.path)).get("PatientName") == "Wang^Xiaodong2=王^晓东"


def test_two_patients_of_one_id_are_kept_apart_on_demand(web, wang):
    answer = web.post(
        "/api/worklist", json=item("Miller^Anna", PatientID="P7"), params={"patient": "separate"}
    )
    assert answer.status_code == 201
    assert first(web.get(wang.path)).get("PatientName") == "Wang^XiaoDong=王^小东"


def test_an_unknown_way_to_treat_a_patient_is_400(web):
    answer = web.post("/api/worklist", json=item(), params={"patient": "merge"})
    assert answer.status_code == 400


def test_a_study_of_another_patient_is_refused(web, wang):
    uid = wang.stored.get("StudyInstanceUID")
    answer = web.post("/api/worklist", json=item("Miller^Anna", StudyInstanceUID=uid))
    assert (answer.status_code, answer.json()["status"]) == (409, "0111")


def test_the_same_step_twice_is_refused(web, wang):
    posted = json.dumps(to_json(wang.stored))
    answer = web.post("/api/worklist", content=posted, headers=JSON)
    assert (answer.status_code, answer.json()["status"]) == (409, "0111")


@pytest.mark.parametrize(
    ("path", "kind"), [("/api/worklist", "application/json"), ("/?part=board", "text/html")]
)
def test_a_mistake_of_ours_is_500_without_details_and_in_our_log(
    appliance, monkeypatch, caplog, path, kind
):
    def fail(*_):
        raise RuntimeError("wires crossed in cabinet 4")

    with browsing(appliance) as client, caplog.at_level(logging.ERROR, "minris"):
        monkeypatch.setattr("minris.web.api.data_of_day", fail)
        monkeypatch.setattr("minris.pages.day.board.steps_of_day", fail)
        answer = client.get(path)
    assert answer.status_code == 500
    assert answer.headers["Content-Type"].startswith(kind)
    assert "cabinet" not in answer.text
    assert "wires crossed in cabinet 4" in caplog.text
    assert "Traceback" in caplog.text


# Health.


def test_health_needs_no_login(appliance):
    with calling(appliance) as client:
        answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    assert {"store", "writer", "dicom"} <= set(answer.json())


def test_health_is_503_when_a_check_fails(appliance, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with calling(appliance) as client:
        answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (503, "failing")
    assert answer.json()["store"] == "ok"
    assert answer.json()["disk"] != "ok"


# The server: headers, limits, slow and greedy callers.


@pytest.mark.parametrize(
    "path",
    ["/login", "/", "/api/worklist", "/healthz", "/nothing", "/static/minris.js", "/events"],
)
def test_every_answer_has_the_security_headers(appliance, path):
    with browsing(appliance) as client, client.stream("GET", path) as answer:
        headers = answer.headers
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert "no-store" in headers["Cache-Control"]
    assert "uvicorn" not in headers.get("Server", "").lower()


def test_the_scripts_of_a_page_may_not_stand_in_it(appliance):
    with calling(appliance) as client:
        policy = client.get("/login").headers["Content-Security-Policy"]
    assert "unsafe" not in policy


@contextlib.contextmanager
def connected(appliance, address="127.0.0.1"):
    """A plain connection to the web port."""
    source = (address, 0)
    target = ("127.0.0.1", appliance.appliance.web_port)
    with socket.create_connection(target, 10, source) as connection:
        yield connection


def until_closed(connection):
    """What is received until the other side closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


def status_of(received):
    """The status code of an HTTP response."""
    return int(received.split(b" ", 2)[1])


GET_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def healthy(appliance, address="127.0.0.1"):
    """Whether a well-behaved caller is served within a second."""
    began = time.monotonic()
    with connected(appliance, address) as connection:
        connection.sendall(GET_HEALTH)
        received = connection.recv(65536)
    return bool(received) and status_of(received) == 200 and time.monotonic() - began < 1


SMALL = "[web]\nmaximum_body = 65536\nrequest_timeout = 1\nmaximum_connections_per_address = 4"


@pytest.fixture
def small(run_appliance):
    """An appliance with little patience."""
    return run_appliance(SMALL)


def test_a_body_that_says_it_is_too_large_is_413_at_once(small):
    with connected(small) as connection:
        connection.sendall(
            b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 70000\r\n\r\n"
        )
        assert status_of(until_closed(connection)) == 413


def test_a_body_that_grows_too_large_is_413(small):
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    with connected(small) as connection:
        head = b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + 5 * chunk)
        assert status_of(until_closed(connection)) == 413
    assert healthy(small)


def test_a_body_of_the_largest_size_is_taken(small):
    with calling(small, small.token()) as client:
        body = json.dumps(item()).encode()
        answer = client.post("/api/worklist", content=body.ljust(65536), headers=JSON)
        assert answer.status_code == 201


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nname=adm",
    ],
    ids=["nothing", "half a line", "half a head", "half a body"],
)
def test_a_request_that_does_not_end_is_closed(small, sent):
    began = time.monotonic()
    with connected(small) as connection:
        connection.sendall(sent)
        until_closed(connection)
    assert 0.9 < time.monotonic() - began < 5


def test_a_request_sent_drop_by_drop_is_closed(small):
    with connected(small) as connection:
        connection.settimeout(0.1)
        began = time.monotonic()
        closed = False
        while not closed and time.monotonic() - began < 5:
            try:
                connection.sendall(b"G" if time.monotonic() - began < 0.1 else b"E")
                closed = connection.recv(1024) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                closed = True
        assert closed


def test_a_second_request_that_does_not_end_is_closed(small):
    with connected(small) as connection:
        connection.sendall(GET_HEALTH)
        connection.recv(65536)
        [served] = small.appliance.web_server.state.connections
        assert eventually(lambda: served.cycle.response_complete)
        connection.sendall(b"GET / HT")
        began = time.monotonic()
        until_closed(connection)
        assert time.monotonic() - began < 5


def test_headers_without_end_are_refused(appliance):
    with connected(appliance) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            for number in range(1000):
                connection.sendall(b"X-Header-%d: %s\r\n" % (number, b"x" * 100))
        received = until_closed(connection)
    assert not received or status_of(received) in (400, 431)
    assert healthy(appliance)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"\x01\x00\x00\x00\x00\xcd" + bytes(200),
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["TLS", "DICOM", "negative length", "two lengths", "bad chunk"],
)
def test_what_is_no_http_is_closed_and_harms_nobody(small, sent):
    with connected(small) as connection:
        connection.sendall(sent)
        received = until_closed(connection)
    assert not received or 400 <= status_of(received) < 500
    assert healthy(small)


def test_one_address_has_so_many_connections_and_no_more(small):
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(connected(small)).sendall(GET_HEALTH)
        fifth = stack.enter_context(connected(small))
        assert status_of(until_closed(fifth)) == 503
        assert healthy(small, "127.0.0.2")


def test_a_connection_closed_makes_room_for_another(small):
    for _ in range(10):
        assert healthy(small)


def test_many_silent_callers_hold_up_nobody(appliance):
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connected(appliance)).sendall(
                b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
            )
        assert healthy(appliance, "127.0.0.2")


# The event stream.


@contextlib.contextmanager
def stream_of(client):
    """The lines of an open event stream, as an iterator."""
    with client.stream("GET", "/events", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        yield answer.iter_lines()


def next_data(lines):
    """The number in the next event."""
    return int(next(line for line in lines if line.startswith("data:")).removeprefix("data:"))


def test_the_event_stream_needs_a_login(appliance):
    with calling(appliance) as client:
        assert client.get("/events").status_code == 401
        client.cookies.set(appliance.cookie, "guessed")
        assert client.get("/events").status_code == 401


def test_a_change_is_told_within_a_second(appliance):
    with browsing(appliance) as client, stream_of(client) as lines:
        before = next_data(lines)
        began = time.monotonic()
        appliance.schedule(item())
        assert next_data(lines) > before
        assert time.monotonic() - began < 1


def test_every_open_page_is_told(appliance):
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(browsing(appliance))
        streams = [stack.enter_context(stream_of(client)) for _ in range(40)]
        before = [next_data(lines) for lines in streams]
        appliance.schedule(item())
        assert all(next_data(lines) > n for lines, n in zip(streams, before, strict=True))
        assert healthy(appliance)


def test_a_burst_of_changes_is_told_calmly(appliance):
    with browsing(appliance) as client, stream_of(client) as lines:
        next_data(lines)
        began, told = time.monotonic(), 0
        for number in range(50):
            appliance.schedule(item(PatientID=f"B{number}"))
        last = appliance.appliance.changes.number
        while next_data(lines) < last:
            told += 1
        assert told <= 4 * (time.monotonic() - began) + 1


def test_a_page_that_has_gone_leaves_nothing_behind(appliance):
    waiting = appliance.appliance.changes.waiting
    with browsing(appliance) as client, stream_of(client) as lines:
        next_data(lines)
        assert len(waiting) == 1
    assert eventually(lambda: not waiting)


def test_a_stop_ends_open_streams_at_once(appliance):
    with browsing(appliance) as client, stream_of(client) as lines:
        next_data(lines)
        began = time.monotonic()
        appliance.stop()
        with pytest.raises(httpx.HTTPError):
            next_data(lines)
            raise httpx.ReadError("the stream has ended")
        assert time.monotonic() - began < 5


def test_a_stop_with_open_pages_is_no_error(appliance, caplog):
    with browsing(appliance) as client, stream_of(client) as lines:
        next_data(lines)
        with caplog.at_level(logging.WARNING):
            appliance.stop()
    assert [record.getMessage() for record in caplog.records] == []


def eventually(holds, timeout_s=peers.PATIENCE_S):
    """Whether something comes to hold."""
    done, waiter = time.monotonic() + timeout_s, threading.Event()
    while not holds() and time.monotonic() < done:
        waiter.wait(0.02)
    return holds()
