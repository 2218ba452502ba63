"""Section 18, DICOMWEB: what is negotiated and bounded: charset, gzip, rate, other origins, tokens."""

import gzip
import json
import zlib

import httpx
import pytest
from conftest import item
from test_dicomweb_workitems import JSON, UID, create, door, state_of, workitem  # noqa: F401

from minris.access.users import make_token, make_user, open_session
from minris.config.ini import ConfigError, load_config
from minris.dataset.elements import ElementIndex
from minris.dicomweb.transactions import MPPS_PATH
from minris.standard.status import Refusal
from minris.standard.uids import UPS_GLOBAL_SUBSCRIPTION
from minris.standard.ups import EVENT_TYPES
from minris.store.models import Token
from minris.ups.events import ways_to_tell
from minris.ups.people import history_of, watchers_of
from minris.web.request import RateLimit

STEPS = "/modality-scheduled-procedure-steps"
VIEWER = "https://viewer.example"
BROKEN = "The gzip body is truncated or followed by other data"


def client(appliance, token="", **headers):
    """An HTTP client of the web door, with a token or without."""
    if token:
        headers["Authorization"] = f"Bearer {token}"
    base = f"{appliance.url}/dicom-web"
    return httpx.Client(base_url=base, headers=headers, trust_env=False)


# Character sets


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "gb18030,utf-8;q=0.5", '"ISO_IR%20192"'])
def test_utf_8_is_answered_where_it_is_asked_for(door, appliance, charset):  # noqa: F811
    appliance.schedule(item("Wang^XiaoDong=王^小东"))
    answer = door.get(f"{STEPS}?charset={charset}")
    assert answer.headers["Content-Type"] == "application/dicom+json; charset=UTF-8"
    assert "王^小东" in answer.content.decode("utf-8")


def test_a_charset_that_is_not_answered_is_refused(door):  # noqa: F811
    """PS3.18 8.3.3.2."""
    answer = door.get(f"{STEPS}?charset=gb18030,iso-8859-1")
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "charset gb18030, iso-8859-1 is not supported; use UTF-8",
    )


def test_an_accept_charset_header_is_not_looked_at(door):  # noqa: F811
    assert door.get(STEPS, headers={"Accept-Charset": "gb18030"}).status_code == 204


@pytest.mark.parametrize(
    ("charset", "code"), [("utf-8", 201), ('"UTF-8"', 201), ("gb18030", 415), ("utf-16", 415)]
)
def test_a_body_is_in_utf_8(door, charset, code):  # noqa: F811
    header = {"Content-Type": f"application/dicom+json; charset={charset}"}
    answer = door.post(f"/workitems?workitem={UID}", json=[workitem()], headers=header)
    assert answer.status_code == code


# Times of another zone


@pytest.mark.parametrize(
    ("zone", "key", "count"),
    [
        ("+0800", "20260705173000-20260705174000", 1),
        ("-0500", "20260705043000-20260705044000", 1),
        ("+0800", "20260705093000", 0),
        ("+0800", "202607050930%2B0000", 1),  # what has an offset keeps it
        ("+0000", "20260705093000", 1),
    ],
)
def test_times_asked_for_are_of_the_zone_that_is_named(door, zone, key, count):  # noqa: F811
    create(door, ScheduledProcedureStepStartDateTime="20260705093000+0000")
    query = f"ScheduledProcedureStepStartDateTime={key}&TimezoneOffsetFromUTC={zone}"
    assert len(door.get(f"/workitems?{query}").json()) == count


def test_a_wrong_zone_is_refused(door):  # noqa: F811
    assert door.get("/workitems?TimezoneOffsetFromUTC=Shanghai").status_code == 400


def test_it_is_said_that_a_zone_does_not_apply_to_dates(door, appliance):  # noqa: F811
    appliance.schedule(item())
    answer = door.get(f"{STEPS}?TimezoneOffsetFromUTC=+0800")
    assert answer.headers["Warning"].endswith(
        "TimezoneOffsetFromUTC does not apply to dates and times without an offset."
    )
    assert "Warning" not in door.get(f"{STEPS}?TimezoneOffsetFromUTC=+0000").headers


# gzip


def test_a_long_answer_is_compressed_where_that_is_asked_for(door, appliance):  # noqa: F811
    appliance.schedule(*[item(f"Li^Na{number}") for number in range(5)])
    with door.stream("GET", STEPS, headers={"Accept-Encoding": "br, gzip;q=0.8"}) as answer:
        raw = b"".join(answer.iter_raw())
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.headers["Vary"] == "Accept-Encoding"
        assert int(answer.headers["Content-Length"]) == len(raw)
    plain = door.get(STEPS, headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert gzip.decompress(raw) == plain.content
    assert len(raw) < len(plain.content) / 3


@pytest.mark.parametrize("wanted", ["identity", "gzip;q=0", "gzip; q=0.0", "br"])
def test_an_answer_is_plain_where_gzip_is_not_wanted(door, appliance, wanted):  # noqa: F811
    appliance.schedule(*[item(f"Li^Na{number}") for number in range(5)])
    assert "Content-Encoding" not in door.get(STEPS, headers={"Accept-Encoding": wanted}).headers


@pytest.mark.parametrize(("query", "packed"), [("", True), ("?next=/register", False)])
def test_a_page_with_a_query_is_not_compressed(appliance, query, packed):
    """By the length of an answer with words of another's choice, its secrets could be guessed."""
    with client(appliance) as browser:
        answer = browser.get(f"{appliance.url}/login{query}", headers={"Accept-Encoding": "gzip"})
    assert answer.status_code == 200
    assert ("Content-Encoding" in answer.headers) == packed


@pytest.mark.parametrize(
    ("encoding", "pack", "code", "words"),
    [
        ("gzip", gzip.compress, 201, ""),
        ("x-gzip", gzip.compress, 201, ""),
        ("identity", bytes, 201, ""),
        ("gzip", bytes, 400, "The body is not gzip"),
        ("gzip", lambda body: gzip.compress(body)[:-9], 400, BROKEN),
        ("gzip", lambda body: gzip.compress(body) + b"more", 400, BROKEN),
        ("deflate", zlib.compress, 415, "The only Content-Encoding accepted is gzip"),
    ],
)
def test_a_body_may_be_gzip(door, encoding, pack, code, words):  # noqa: F811
    headers = {**JSON, "Content-Encoding": encoding}
    content = pack(json.dumps([workitem()]).encode())
    answer = door.post(f"/workitems?workitem={UID}", content=content, headers=headers)
    assert answer.status_code == code
    assert not words or answer.json()["error"] == words


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_body_may_come_in_chunks(door, pack):  # noqa: F811
    content = pack(json.dumps([workitem()]).encode())
    headers = {**JSON} | ({"Content-Encoding": "gzip"} if pack is not bytes else {})
    chunks = (content[start : start + 100] for start in range(0, len(content), 100))
    answer = door.post(f"/workitems?workitem={UID}", content=chunks, headers=headers)
    assert answer.status_code == 201
    assert state_of(door) == "SCHEDULED"


def test_a_small_body_that_is_large_when_unpacked_is_refused(run_appliance):
    appliance = run_appliance("[web]\nmaximum_body = 65536\n")
    with client(appliance, appliance.token()) as door:  # noqa: F811
        content = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
        assert len(content) < 65536
        headers = {**JSON, "Content-Encoding": "gzip"}
        answer = door.post("/workitems", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (
            413,
            "The body is too large",
        )


# Rate


def test_who_asks_too_often_is_told_to_wait(run_appliance):
    appliance = run_appliance("[web]\nrequests_per_second = 5\n")
    with client(appliance, appliance.token()) as door:  # noqa: F811
        codes = [door.get("/workitems").status_code for _ in range(40)]
        refused = door.get("/workitems")
    assert codes[:10] == [200] * 10
    assert 429 in codes
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")


def test_a_page_of_a_configured_origin_reads_that_it_is_to_wait(run_appliance):
    appliance = run_appliance(f"[web]\nrequests_per_second = 1\ncors_origins = {VIEWER}\n")
    with client(appliance) as door:  # noqa: F811
        for _ in range(10):
            refused = door.get("/workitems", headers={"Origin": VIEWER})
    assert refused.status_code == 429
    assert refused.headers["Access-Control-Allow-Origin"] == VIEWER
    assert refused.json() == {"status": "0115", "error": "Too many requests", "problems": []}


def test_a_bucket_fills_again_and_is_an_addresss_own():
    rate = RateLimit(10)
    assert sum(rate.allows("192.0.2.1", 100.0) for _ in range(50)) == 21
    assert rate.allows("192.0.2.2", 100.0)
    assert sum(rate.allows("192.0.2.1", 101.0) for _ in range(50)) == 10


def test_addresses_that_have_gone_are_forgotten():
    rate = RateLimit(100)
    for number in range(10_000):
        assert rate.allows(f"address {number}", float(number))
    assert len(rate.due) <= 4097


def test_there_may_be_no_limit():
    rate = RateLimit(0)
    assert all(rate.allows("192.0.2.1", 1.0) for _ in range(10_000))


# Other origins


@pytest.fixture
def open_appliance(run_appliance):
    """An appliance that pages of one other origin may call."""
    return run_appliance(f"[web]\ncors_origins = {VIEWER}, http://127.0.0.1:3000\n")


def preflight(door, origin, path="/workitems", method="POST"):  # noqa: F811
    headers = {"Origin": origin, "Access-Control-Request-Method": method}
    return door.options(path, headers=headers)


def test_a_page_of_a_configured_origin_may_call(open_appliance):
    with client(open_appliance, open_appliance.token()) as door:  # noqa: F811
        asked = preflight(door, VIEWER)
        answer = door.get("/workitems", headers={"Origin": VIEWER})
    assert asked.status_code == 204
    assert asked.headers["Access-Control-Allow-Origin"] == VIEWER
    assert "Authorization" in asked.headers["Access-Control-Allow-Headers"]
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == VIEWER
    assert "Content-Location" in answer.headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["https://other.example", f"{VIEWER}.evil.example", "null"])
def test_a_page_of_another_origin_may_not(open_appliance, origin):
    with client(open_appliance, open_appliance.token()) as door:  # noqa: F811
        answers = [preflight(door, origin), door.get("/workitems", headers={"Origin": origin})]
    assert not any("Access-Control-Allow-Origin" in answer.headers for answer in answers)


def test_nobody_is_let_in_from_elsewhere_unasked(door):  # noqa: F811
    assert "Access-Control-Allow-Origin" not in preflight(door, VIEWER).headers


def test_pages_are_of_no_use_to_another_origin(open_appliance):
    with client(open_appliance) as door:  # noqa: F811
        answer = door.get(f"{open_appliance.url}/login", headers={"Origin": VIEWER})
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_session_is_of_no_use_to_another_origin(open_appliance):
    """A cookie alone lets nobody change anything from elsewhere, nor without the form's token."""
    user = open_appliance.write(
        make_user, open_appliance.context(), "li.na", "admin", "very secret"
    )
    secret = open_appliance.write(open_session, open_appliance.context(), user.id)
    with client(open_appliance) as door:  # noqa: F811
        door.cookies.set(open_appliance.cookie, secret)
        answer = door.post("/workitems", json=[workitem()], headers={**JSON, "Origin": VIEWER})
        assert answer.status_code == 403
        assert door.get("/workitems").json() == []


ORIGINS = ["viewer.example", "ftp://viewer.example", f"{VIEWER}/app", "*", "https://Viewer.example",
           f"{VIEWER}:443", "https://a@viewer.example", "https://müller.example", "https://:8443", "https://["]  # fmt: skip


@pytest.mark.parametrize("origin", ORIGINS)
def test_an_origin_that_is_none_is_a_mistake_in_the_settings(tmp_path, origin):
    path = tmp_path / "config.ini"
    path.write_text(f"[web]\ncors_origins = {origin}\n")
    with pytest.raises(ConfigError, match="cors_origins"):
        load_config(path)


# Searches


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("ProcedureStepProgressInformationSequence.ProcedureStepProgress=50",
         "ProcedureStepProgress"),
        ("TransactionUID=2.25.1", "TransactionUID"),
        ("PatientBirthName=Li&WorklistLabel=*", "PatientBirthName"),
    ],
)  # fmt: skip
def test_it_is_said_what_is_not_matched(door, query, names):  # noqa: F811
    create(door)
    answer = door.get(f"/workitems?{query}")
    assert answer.status_code == 200
    assert answer.headers["Warning"].endswith(f": Not supported for matching: {names}")


def test_no_match_is_wanted_and_it_is_said_how_many_there_are(door):  # noqa: F811
    create(door)
    answer = door.get("/workitems?limit=0")
    assert (answer.status_code, answer.json()) == (200, [])
    assert answer.headers["Warning"].endswith(
        "There are 1 additional results that can be requested"
    )


@pytest.mark.parametrize("accept", ["application/dicom+xml", "application/dicom%2Bxml"])
def test_a_media_type_is_taken_with_its_plus_as_it_stands(door, accept):  # noqa: F811
    create(door)
    answer = door.get(f"/workitems/{UID}?accept={accept}")
    assert answer.headers["Content-Type"] == "application/dicom+xml"


# Tokens


def token_of(appliance, role, *ae_titles):
    return appliance.write(make_token, appliance.context(), f"{role} {ae_titles}", role, ae_titles)


@pytest.mark.parametrize(
    ("role", "titles", "ae_title", "code"),
    [
        ("desk", ["WS1", "WS2"], "WS2", 201),
        ("desk", ["WS1"], "WS2", 403),
        ("technologist", [], "WS1", 403),
        ("admin", [], "WS1", 201),
    ],
)
def test_a_token_subscribes_the_aes_that_it_speaks_for(appliance, role, titles, ae_title, code):
    with client(appliance, token_of(appliance, role, *titles)) as door:  # noqa: F811
        path = f"/workitems/{UPS_GLOBAL_SUBSCRIPTION}/subscribers/{ae_title}"
        answers = [door.post(path), door.post(path + "/suspend"), door.delete(path)]
    expected = [201, 200, 404] if code == 201 else [403, 403, 403]
    assert [answer.status_code for answer in answers] == expected


def test_a_token_asks_in_the_name_of_its_own_ae(appliance):
    with client(appliance, appliance.token()) as admin:
        create(admin)
        create(admin, uid="2.25.702")
    with client(appliance, token_of(appliance, "technologist", "WS1")) as door:  # noqa: F811
        path = "cancelrequest?requester=RISVIEW"
        assert door.post(f"/workitems/{UID}/{path}").status_code == 403
        assert door.post(f"/workitems/{UID}/cancelrequest/RISVIEW").status_code == 403
        assert state_of(door) == "SCHEDULED"
        assert door.post(f"/workitems/{UID}/cancelrequest?requester=WS1").status_code == 202
        assert door.post("/workitems/2.25.702/cancelrequest").status_code == 202
    told = appliance.read(history_of, "2.25.702")
    asked = [h for h in told if h.event_type == EVENT_TYPES["UPS Cancel Requested"]]
    assert [ElementIndex(h.data).get("RequestingAE") for h in asked] == ["WS1"]


@pytest.mark.parametrize("role", ["desk", "technologist"])
def test_a_token_without_aes_asks_in_the_name_of_none(appliance, role):
    with client(appliance, appliance.token()) as admin:
        create(admin)
    with client(appliance, token_of(appliance, role)) as door:  # noqa: F811
        path = f"/workitems/{UID}/cancelrequest"
        assert door.post(f"{path}?requester=WS1").status_code == 403
        assert door.post(f"{path}/WS1").status_code == 403
        assert door.post(f"{path}?requester=MINRIS").status_code == 202


def test_an_ae_title_with_a_slash_asks_too(appliance):
    with client(appliance, appliance.token()) as admin:
        create(admin)
    with client(appliance, token_of(appliance, "desk", "A/B")) as door:  # noqa: F811
        assert door.post(f"/workitems/{UID}/cancelrequest/A%2FB").status_code == 202


def test_who_has_suspended_ends_what_is_left(appliance):
    with client(appliance, appliance.token()) as door:  # noqa: F811
        create(door)
        path = f"/workitems/{UPS_GLOBAL_SUBSCRIPTION}/subscribers/WS1"
        door.post(path + "?deletionlock=true")
        assert door.post(path + "/suspend").status_code == 200
        assert appliance.read(watchers_of, UID) == [("WS1", 1)]
        assert [door.delete(path).status_code, door.delete(path).status_code] == [200, 404]
    assert appliance.read(watchers_of, UID) == []


def test_a_setting_of_a_device_holds_for_what_was_subscribed_before(run_appliance):
    text = "[device Workstation]\nae_title = WS1\nhost = 127.0.0.1\nport = 11113\n"
    before = run_appliance(text)
    with client(before, before.token()) as door:  # noqa: F811
        door.post(f"/workitems/{UPS_GLOBAL_SUBSCRIPTION}/subscribers/WS1")
    ways = before.read(ways_to_tell, before.context(), ["WS1"])
    before.stop()
    after = run_appliance(text + "events = dimse\n")
    assert ways == [("WS1", "websocket")]
    assert after.read(ways_to_tell, after.context(), ["WS1"]) == [("WS1", "dimse")]


def test_what_a_technologist_reports_a_receptionist_does_not(appliance):
    with client(appliance, appliance.token()) as admin:
        create(admin)
    with client(appliance, token_of(appliance, "desk")) as door:  # noqa: F811
        assert door.get(f"/workitems/{UID}").status_code == 200
        for method, path in (
            ("POST", f"/workitems/{UID}"),
            ("PUT", f"/workitems/{UID}/state"),
            ("POST", f"{MPPS_PATH}/{UID}"),
        ):
            assert door.request(method, path, json=[{}], headers=JSON).status_code == 403


@pytest.mark.parametrize("title", ["", "WS1\\WS2", "A" * 17, "工作站"])
def test_a_token_of_what_is_no_ae_title_is_refused(ctx, title):
    with pytest.raises(Refusal, match="is not an AE title"):
        make_token(ctx, "viewer", "desk", [title])
    assert Token.select().count() == 0
