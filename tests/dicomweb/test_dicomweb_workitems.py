"""Section 18, DICOMweb: workitems, scheduled and performed procedure steps over HTTP."""

import json
import re
import urllib.parse

import httpx
import pytest
from conftest import item
from test_mpps import creation, ending
from test_ups import creation as new_workitem

from minris.dataset.elements import ElementIndex, text_elements
from minris.dicomweb.parameters import LITERAL_ONLY
from minris.dicomweb.routes import DICOM_ROUTES
from minris.standard.dictionary import tag_of, vr_of
from minris.standard.status import Status
from minris.standard.uids import UPS_FILTERED_SUBSCRIPTION, UPS_GLOBAL_SUBSCRIPTION
from minris.standard.ups import PERFORMED_PROCEDURE
from minris.store.models import database
from minris.ups.people import history_of
from minris.ups.workitems import purge_workitems, update_workitem

JSON = {"Content-Type": "application/dicom+json"}
XML = {"Content-Type": "application/dicom+xml"}
XML_PARTS = 'multipart/related; type="application/dicom+xml"'
UID, LOCK, OTHER = "2.25.700", "2.25.701", "2.25.702"
INCONSISTENT = "The submitted request is inconsistent with the state of the UPS Instance."
UNCLAIMED = "The target URI did not reference a claimed Workitem."
STALE = "The submitted request is inconsistent with the current state of the Workitem."


@pytest.fixture
def door(appliance, web):
    """The web door, as an HTTP client of its base."""
    base = f"{appliance.url}/dicom-web"
    with httpx.Client(base_url=base, headers=dict(web.headers), trust_env=False) as client:
        yield client


def workitem(**changes):
    """A new workitem as DICOM JSON."""
    return json.loads(new_workitem(**changes).to_json())


def texts(**values):
    """Some attributes as DICOM JSON, by keyword."""
    found = {}
    for keyword, value in values.items():
        tag = tag_of(keyword)
        found[f"{tag:08X}"] = {"vr": vr_of(tag)} | ({"Value": [value]} if value else {})
    return found


def create(door, uid=UID, **changes):
    answer = door.post(f"/workitems?workitem={uid}", json=[workitem(**changes)], headers=JSON)
    assert answer.status_code == 201, answer.text
    return answer


def enter(door, state, lock=LOCK, uid=UID, query=""):
    body = [texts(ProcedureStepState=state, TransactionUID=lock)]
    return door.put(f"/workitems/{uid}/state{query}", json=body, headers=JSON)


def state_of(door, uid=UID):
    [found] = door.get(f"/workitems/{uid}").json()
    return found["00741000"]["Value"][0]


def warning_of(answer):
    """The text of the one Warning header."""
    agent, _, text = answer.headers["Warning"].partition(": ")
    assert re.fullmatch(r"299 http://127\.0\.0\.1:\d+/dicom-web", agent)
    return text


def performed(door, uid=UID, lock=LOCK):
    """Report what COMPLETED needs."""
    item_ = texts(
        PerformedProcedureStepStartDateTime="20260705093000",
        PerformedProcedureStepEndDateTime="20260705094500",
    )
    for keyword in ("PerformedStationNameCodeSequence", "PerformedWorkitemCodeSequence"):
        code = texts(
            CodeValue="110001", CodingSchemeDesignator="DCM", CodeMeaning="Image Processing"
        )
        item_[f"{tag_of(keyword):08X}"] = {"vr": "SQ", "Value": [code]}
    item_[f"{tag_of('OutputInformationSequence'):08X}"] = {"vr": "SQ"}
    data = {f"{PERFORMED_PROCEDURE:08X}": {"vr": "SQ", "Value": [item_]}}
    return door.post(f"/workitems/{uid}?transaction-uid={lock}", json=[data], headers=JSON)


def ended(door, state, uid=UID):
    """A workitem in a final state."""
    create(door, uid)
    enter(door, "IN PROGRESS", uid=uid)
    performed(door, uid)
    assert enter(door, state, uid=uid).status_code == 200


# Create


@pytest.mark.parametrize(
    ("query", "inside"),
    [(f"?workitem={UID}", ""), (f"?{UID}", ""), ("", UID), (f"?workitem={UID}", UID),
     (f"?AffectedSOPInstanceUID={UID}", "")],
)  # fmt: skip
def test_a_workitem_is_created_with_its_uid(door, query, inside):
    """T-WEB-01, T-WEB-19."""
    data = workitem() | (texts(SOPInstanceUID=inside) if inside else {})
    answer = door.post(f"/workitems{query}", json=[data], headers=JSON)
    assert (answer.status_code, answer.content) == (201, b"")
    assert answer.headers["Location"] == f"{door.base_url}workitems/{UID}"
    assert door.get(answer.headers["Location"]).status_code == 200


def test_a_workitem_without_a_uid_is_given_one(door):
    """T-WEB-19."""
    answer = door.post("/workitems", json=workitem(), headers=JSON)
    assert answer.status_code == 201
    assert state_of(door, answer.headers["Location"].rpartition("/")[2]) == "SCHEDULED"


@pytest.mark.parametrize(
    ("query", "data", "code"),
    [
        (f"?workitem={UID}", [workitem() | texts(SOPInstanceUID=OTHER)], 400),
        (f"?workitem={UID}", [workitem() | {"00001000": {"vr": "UI", "Value": [UID]}}], 400),
        (f"?workitem={UID}", [workitem(), workitem()], 400),
        (f"?workitem={UID}", [], 400),
        (f"?workitem={UID}", [workitem() | texts(ProcedureStepState="IN PROGRESS")], 400),
        (f"?workitem={UID}", [workitem() | texts(InputReadinessState="")], 400),
        ("?workitem=1.02.3", [workitem()], 400),
    ],
)
def test_a_workitem_that_is_not_in_order_is_refused(door, query, data, code):
    """T-WEB-02, T-WEB-19."""
    answer = door.post(f"/workitems{query}", json=data, headers=JSON)
    assert answer.status_code == code
    assert answer.json()["error"]
    assert door.get("/workitems").json() == []


def test_a_uid_is_taken_once(door):
    """T-WEB-02."""
    create(door)
    answer = door.post(f"/workitems?workitem={UID}", json=[workitem()], headers=JSON)
    assert answer.status_code == 409


# Retrieve


def test_a_workitem_is_retrieved_without_its_lock(door):
    """T-WEB-03."""
    create(door)
    enter(door, "IN PROGRESS")
    answer = door.get(f"/workitems/{UID}")
    [found] = answer.json()
    assert answer.headers["Content-Type"].startswith("application/dicom+json")
    assert "00081195" not in found
    assert LOCK not in answer.text


def test_what_is_not_known_and_what_was_deleted(door, appliance):
    """T-WEB-03, T-WEB-29."""
    assert door.get(f"/workitems/{UID}").status_code == 404
    ended(door, "COMPLETED")
    sql = "UPDATE workitem SET ended_at = '2026-01-01T00:00:00.000000Z'"
    appliance.write(database.execute_sql, sql)
    appliance.write(purge_workitems, appliance.context())
    assert door.get(f"/workitems/{UID}").status_code == 410
    assert enter(door, "IN PROGRESS").status_code == 410


# Media types


def parts_of(answer):
    """The bodies of a multipart answer."""
    boundary = re.search(r"boundary=(\w+)", answer.headers["Content-Type"])[1]
    parts = answer.text.split(f"--{boundary}")[1:-1]
    return [part.split("\r\n\r\n", 1)[1] for part in parts]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/dicom+json", "application/dicom+json"),
        ("application/json", "application/dicom+json"),
        ("*/*", "application/dicom+json"),
        ("application/dicom+xml", "application/dicom+xml"),
        (XML_PARTS, "multipart/related"),
        ('multipart/related; type="application/dicom+json"', "multipart/related"),
        ("image/png, application/dicom+xml;q=0.5", "application/dicom+xml"),
        ("application/dicom+xml;q=0.2, application/dicom+json;q=0.9", "application/dicom+json"),
    ],
)
def test_an_answer_is_in_the_media_type_that_is_accepted(door, accept, kind):
    """T-WEB-03, T-WEB-32."""
    create(door)
    answer = door.get(f"/workitems/{UID}", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].partition(";")[0] == kind
    if kind.startswith("multipart"):
        assert len(parts_of(answer)) == 1


@pytest.mark.parametrize("accept", ["image/png", "text/html", "application/dicom+json;q=0"])
def test_what_is_not_acceptable_is_refused_before_anything_is_done(door, accept):
    """T-WEB-14, T-WEB-32."""
    answer = door.post(
        f"/workitems?workitem={UID}", json=[workitem()], headers=JSON | {"Accept": accept}
    )
    assert answer.status_code == 406
    assert door.get(f"/workitems/{UID}").status_code == 404


def test_the_accept_parameter_goes_before_the_header(door):
    """T-WEB-32."""
    create(door)
    answer = door.get(f"/workitems/{UID}?accept=application/dicom%2Bxml")
    assert answer.headers["Content-Type"] == "application/dicom+xml"
    answer = door.get(f"/workitems/{UID}?accept=image/png")
    assert answer.headers["Content-Type"].startswith("application/dicom+json")


@pytest.mark.parametrize("kind", ["text/plain", "", "application/xml", "multipart/form-data"])
def test_a_body_of_another_type_is_refused(door, kind):
    """T-WEB-14."""
    content = json.dumps([workitem()])
    answer = door.post("/workitems", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 415


def test_a_method_that_is_not_offered_is_refused(door):
    """T-WEB-14."""
    answer = door.patch(f"/workitems/{UID}")
    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(",")) == {"GET", "POST"}


WANG = {"Alphabetic": "Wang^XiaoDong", "Ideographic": "王^小东", "Phonetic": "wang^xiaodong"}


@pytest.mark.parametrize("accept", ["application/dicom+xml", XML_PARTS])
def test_a_workitem_comes_back_from_xml_as_it_went(door, accept):
    """T-WEB-13."""
    data = workitem() | {
        "00100010": {"vr": "PN", "Value": [WANG]},
        "00101040": {"vr": "LO", "Value": ["a & b <c>"]},
        "00102110": {"vr": "LO", "Value": ["Penicillin", None, "Nuts"]},
        "00404018": {"vr": "SQ", "Value": [{}]},
        "00281050": {"vr": "DS", "Value": [40]},
        "001021C0": {"vr": "US", "Value": [4]},
        "00091001": {"vr": "UN", "InlineBinary": "AAEC/w=="},
    }
    assert door.post(f"/workitems?{UID}", json=[data], headers=JSON).status_code == 201
    answer = door.get(f"/workitems/{UID}", headers={"Accept": accept})
    headers = {"Content-Type": answer.headers["Content-Type"]}
    copied = door.post(f"/workitems?{OTHER}", content=answer.content, headers=headers)
    assert copied.status_code == 201, copied.text
    [old], [new] = (door.get(f"/workitems/{uid}").json() for uid in (UID, OTHER))
    old.pop("00404010"), new.pop("00404010")
    assert new == old
    assert old["00100010"]["Value"] == [WANG]
    assert old["00091001"] == data["00091001"]


@pytest.mark.parametrize(
    ("content", "headers", "words"),
    [
        (b"{", JSON, "is not JSON"),
        (b"[1]", JSON, "is not an object"),
        (b"\xff\xfe", JSON, "is not JSON"),
        (b'{"00741204": 3}', JSON, "vr and Value"),
        (b"<NativeDicomModel>", XML, "line 1"),
        (b"<a/>", XML, "NativeDicomModel"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]>\n<NativeDicomModel/>', XML, "line 1: a document type"),
        (b"<NativeDicomModel>\n<DicomAttribute tag='zz'/></NativeDicomModel>", XML, "zz"),
        (b"<NativeDicomModel>" + b"<a>" * 100, XML, "nested too deep"),
        (b'<?xml version="1.0" encoding="shift_jis"?><NativeDicomModel/>', XML, "line 1"),
        (b'<?xml version="1.0" encoding="nonsense"?><NativeDicomModel/>', XML, "line 1"),
        (b"no parts", {"Content-Type": XML_PARTS}, "no parts"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_with_the_place(door, content, headers, words):
    answer = door.post("/workitems", content=content, headers=headers)
    assert answer.status_code == 400
    told = answer.json()
    assert words in told["error"] + json.dumps(told["problems"])


# Update


@pytest.mark.parametrize(
    "query",
    ["transaction-uid={}", "Transaction-uid={}", "transaction={}", "00081195={}",
     "TransactionUID={}", "{}"],
)  # fmt: skip
def test_the_lock_is_taken_in_any_spelling(door, query):
    """T-WEB-04, T-WEB-18."""
    create(door)
    enter(door, "IN PROGRESS")
    change = [texts(InputReadinessState="INCOMPLETE")]
    answer = door.post(f"/workitems/{UID}?{query.format(LOCK)}", json=change, headers=JSON)
    assert (answer.status_code, answer.content) == (200, b"")
    [found] = door.get(f"/workitems/{UID}").json()
    assert found["00404041"]["Value"] == ["INCOMPLETE"]


def test_the_lock_is_taken_from_the_data_set(door):
    """T-WEB-04."""
    create(door)
    enter(door, "IN PROGRESS")
    change = [texts(InputReadinessState="INCOMPLETE", TransactionUID=LOCK)]
    assert door.post(f"/workitems/{UID}", json=change, headers=JSON).status_code == 200
    change = [texts(InputReadinessState="READY", TransactionUID=OTHER)]
    answer = door.post(f"/workitems/{UID}?transaction={LOCK}", json=change, headers=JSON)
    assert answer.status_code == 400


@pytest.mark.parametrize("query", ["", f"?transaction-uid={OTHER}"])
def test_a_change_without_the_lock_is_refused(door, query):
    """T-WEB-04, T-WEB-20."""
    create(door)
    enter(door, "IN PROGRESS")
    change = [texts(InputReadinessState="INCOMPLETE")]
    answer = door.post(f"/workitems/{UID}{query}", json=change, headers=JSON)
    assert (answer.status_code, warning_of(answer)) == (400, UNCLAIMED)


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELED"])
def test_a_change_after_the_end_is_refused(door, state):
    """T-WEB-04."""
    ended(door, state)
    change = [texts(InputReadinessState="INCOMPLETE")]
    answer = door.post(f"/workitems/{UID}?transaction-uid={LOCK}", json=change, headers=JSON)
    assert (answer.status_code, warning_of(answer)) == (400, STALE)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"ProcedureStepState": "SCHEDULED"}, 409),
        ({"ProcedureStepState": "COMPLETED"}, 400),
        ({"PatientID": "another"}, 400),
        ({"InputReadinessState": "MAYBE"}, 400),
        ({"ProcedureStepLabel": ""}, 400),
    ],
)
def test_a_change_of_what_may_not_be_set_is_refused(door, change, code):
    """T-WEB-20."""
    create(door)
    answer = door.post(f"/workitems/{UID}", json=[texts(**change)], headers=JSON)
    assert (answer.status_code, warning_of(answer)) == (code, STALE)
    assert state_of(door) == "SCHEDULED"


# State


def test_a_workitem_is_claimed_reported_on_and_completed(door):
    """T-WEB-05."""
    create(door)
    answer = enter(door, "IN PROGRESS")
    assert (answer.status_code, answer.content) == (200, b"")
    assert performed(door).status_code == 200
    assert enter(door, "COMPLETED").status_code == 200
    assert state_of(door) == "COMPLETED"


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELED"])
def test_a_state_that_is_there_already_is_a_warning(door, state):
    """T-WEB-05."""
    ended(door, state)
    answer = enter(door, state)
    text = f"The UPS is already in the requested state of {state}."
    assert (answer.status_code, warning_of(answer)) == (200, text)


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ({"ProcedureStepState": "IN PROGRESS"}, 400, "The Transaction UID is missing."),
        ({"ProcedureStepState": "COMPLETED", "TransactionUID": OTHER}, 400,
         "The Transaction UID is incorrect."),
        ({"ProcedureStepState": "IN PROGRESS", "TransactionUID": LOCK}, 409, INCONSISTENT),
        ({"ProcedureStepState": "COMPLETED", "TransactionUID": LOCK}, 409, INCONSISTENT),
        ({"ProcedureStepState": "SCHEDULED", "TransactionUID": LOCK}, 409, INCONSISTENT),
        ({"ProcedureStepState": "ASLEEP", "TransactionUID": LOCK}, 400, INCONSISTENT),
        ({"TransactionUID": LOCK}, 400, INCONSISTENT),
    ],
)  # fmt: skip
def test_a_change_of_state_that_cannot_be_is_refused(door, body, code, text):
    """T-WEB-05, T-WEB-20."""
    create(door)
    enter(door, "IN PROGRESS")
    answer = door.put(f"/workitems/{UID}/state", json=[texts(**body)], headers=JSON)
    assert (answer.status_code, warning_of(answer)) == (code, text)
    assert state_of(door) == "IN PROGRESS"


# Cancel


def test_a_cancellation_is_asked_for(door):
    """T-WEB-06, T-WEB-21."""
    create(door)
    assert door.post(f"/workitems/{UID}/cancelrequest").status_code == 202
    assert state_of(door) == "CANCELED"
    again = door.post(f"/workitems/{UID}/cancelrequest")
    text = "The UPS is already in the requested state of CANCELED."
    assert (again.status_code, warning_of(again)) == (202, text)


def test_a_cancellation_comes_too_late(door):
    """T-WEB-06."""
    ended(door, "COMPLETED")
    answer = door.post(f"/workitems/{UID}/cancelrequest")
    assert (answer.status_code, warning_of(answer)) == (409, "The UPS is already COMPLETED.")


def test_a_performer_that_nobody_can_tell(door):
    """T-WEB-21."""
    create(door)
    enter(door, "IN PROGRESS")
    answer = door.post(f"/workitems/{UID}/cancelrequest")
    assert (answer.status_code, warning_of(answer)) == (409, "The performer cannot be contacted.")


@pytest.mark.parametrize(
    ("path", "who"),
    [("?requester=RISVIEW", "RISVIEW"), ("/RISVIEW", "RISVIEW"), ("", "MINRIS")],
)
def test_who_asks_is_told(door, appliance, path, who):
    """T-WEB-17."""
    create(door)
    reason = [texts(ReasonForCancellation="patient left")]
    answer = door.post(f"/workitems/{UID}/cancelrequest{path}", json=reason, headers=JSON)
    assert answer.status_code == 202
    [asked] = [one for one in appliance.read(history_of, UID) if one.event_type == 2]
    index = ElementIndex(asked.data)
    assert (index.get("RequestingAE"), index.get("ReasonForCancellation")) == (who, "patient left")


def test_a_requester_that_is_no_ae_title_is_refused(door):
    create(door)
    long = "A" * 17
    assert door.post(f"/workitems/{UID}/cancelrequest?requester={long}").status_code == 400
    assert state_of(door) == "SCHEDULED"


# Search


@pytest.fixture
def four(door):
    """Four workitems of four hours."""
    for number in range(4):
        create(
            door,
            f"2.25.80{number}",
            PatientID=f"P{number}",
            PatientName="Wang^XiaoDong=王^小东" if number else "Miller^Anna",
            ScheduledProcedureStepStartDateTime=f"202607051{number}0000",
        )


def uids(answer):
    return [one["00080018"]["Value"][0] for one in answer.json()]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("PatientID=P1", "1"),
        ("00100020=P1", "1"),
        ("PatientName=mill*", "0"),
        ("PatientName=%E7%8E%8B*", "123"),
        ("SOPInstanceUID=2.25.800,2.25.803", "03"),
        ("ScheduledProcedureStepStartDateTime=20260705110000-20260705120000", "12"),
        ("ProcedureStepState=SCHEDULED&PatientID=P2", "2"),
        ("ReferencedRequestSequence.AccessionNumber=none", ""),
        ("foo=1&PatientID=P3", "3"),
        ("", "0123"),
    ],
)
def test_workitems_are_searched(door, four, query, found):
    """T-WEB-07, T-WEB-31."""
    answer = door.get(f"/workitems?{query}")
    assert answer.status_code == 200
    assert uids(answer) == [f"2.25.80{number}" for number in found]


def test_a_search_without_a_match_is_an_empty_list(door):
    """PS3.18 11.9.3.1 since 2026a; it was 204."""
    answer = door.get("/workitems?PatientID=nobody")
    assert (answer.status_code, answer.content) == (200, b"[]")
    assert answer.headers["Content-Type"].startswith("application/dicom+json")
    answer = door.get("/workitems", headers={"Accept": "application/dicom+xml"})
    assert answer.status_code == 200
    assert re.fullmatch(rb"--\w+--\r\n", answer.content)


def test_a_worklist_without_a_match_has_no_content(door):
    """PS3.18 14.4.3.1, where it is 204 as ever."""
    answer = door.get("/modality-scheduled-procedure-steps?PatientID=nobody")
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize(
    "query",
    ["Foo=1", "0010ZZZZ=1&PatientId=2", "patientid=1", "PatientID=1&00100020=2", "limit=-1",
     "offset=x", "fuzzymatching=yes", "PatientID.CodeValue=1", "includefield=all,PatientID",
     "ScheduledProcedureStepStartDateTime=tomorrow"],
)  # fmt: skip
def test_a_search_that_is_not_in_order_is_refused(door, four, query):
    """T-WEB-07, T-WEB-31."""
    answer = door.get(f"/workitems?{query}")
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]


def test_a_search_is_paged_and_says_how_many_are_left(door, four):
    """T-WEB-08, T-WEB-22."""
    first = door.get("/workitems?limit=3")
    assert uids(first) == ["2.25.800", "2.25.801", "2.25.802"]
    assert warning_of(first) == "There are 1 additional results that can be requested"
    second = door.get("/workitems?limit=3&offset=3")
    assert uids(second) == ["2.25.803"]
    assert "Warning" not in second.headers
    assert door.get("/workitems?offset=4").json() == []
    assert door.get("/workitems?limit=0").json() == []


def test_what_is_not_offered_in_matching_is_a_warning(door, four):
    """T-WEB-09, T-WEB-23."""
    answer = door.get("/workitems?fuzzymatching=true&PatientID=P1")
    assert uids(answer) == ["2.25.801"]
    assert warning_of(answer) == LITERAL_ONLY[0]
    query = "emptyvaluematching=true&multiplevaluematching=true&PatientID=nobody"
    answer = door.get(f"/workitems?{query}")
    assert (answer.status_code, answer.json()) == (200, [])
    assert all(text in answer.headers["Warning"] for text in LITERAL_ONLY[1:])


def test_a_match_has_what_the_table_returns_and_what_is_asked_for(door):
    create(door, CommentsOnTheScheduledProcedureStep="soon", PatientSize="1.8")
    [plain] = door.get("/workitems").json()
    assert {"00080016", "00080018", "00741000", "00404018"} <= plain.keys()
    assert not {"00081195", "00400400", "00101020"} & plain.keys()
    query = "includefield=CommentsOnTheScheduledProcedureStep,00101020"
    [asked] = door.get(f"/workitems?{query}").json()
    assert asked["00400400"]["Value"] == ["soon"]
    assert asked["00101020"]["Value"] == [1.8]
    [everything] = door.get("/workitems?includefield=all").json()
    assert everything["00400400"]["Value"] == ["soon"]


# Subscribe

GLOBAL, FILTERED = UPS_GLOBAL_SUBSCRIPTION, UPS_FILTERED_SUBSCRIPTION


@pytest.fixture
def watched(run_appliance):
    """The door of an appliance that knows a watcher."""
    appliance = run_appliance("[device RIS]\nae_title = RIS\nhost = 127.0.0.1\nport = 9\n")
    headers = {"Authorization": f"Bearer {appliance.token()}"}
    base = f"{appliance.url}/dicom-web"
    with httpx.Client(base_url=base, headers=headers, trust_env=False) as client:
        yield client


@pytest.mark.parametrize("target", [UID, GLOBAL, FILTERED])
def test_a_subscription_is_made_and_ended(watched, target):
    """T-WEB-10, T-WEB-26."""
    create(watched)
    filter_ = "?filter=" + urllib.parse.quote("WorklistLabel=CT post-processing,PatientID=P1")
    query = filter_ if target == FILTERED else ""
    path = f"/workitems/{target}/subscribers/RIS"
    assert watched.post(path + query).status_code == 201
    assert watched.delete(path).status_code == 200
    assert watched.delete(path).status_code == 404


@pytest.mark.parametrize("target", [GLOBAL, FILTERED])
def test_a_global_subscription_is_suspended_once(watched, target):
    """T-WEB-26."""
    path = f"/workitems/{target}/subscribers/RIS"
    watched.post(path + "?filter=PatientID%3DP1")
    assert watched.post(path + "/suspend").status_code == 200
    assert watched.post(path + "/suspend").status_code == 404


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"{UID}/subscribers/RIS?deletionlock=maybe", 400),
        (f"{OTHER}/subscribers/RIS", 404),
        (f"{FILTERED}/subscribers/RIS", 400),
        (f"{FILTERED}/subscribers/RIS?filter=Foo%3D1", 400),
        (f"{UID}/subscribers/RIS/suspend", 404),
    ],
)
def test_a_subscription_that_cannot_be_is_refused(watched, path, code):
    """T-WEB-10, T-WEB-25, T-WEB-26, T-WEB-31."""
    create(watched)
    assert watched.post(f"/workitems/{path}").status_code == code


# Steps


def test_the_worklist_is_searched(door, appliance):
    """T-WEB-24."""
    appliance.schedule(item(), item("Li^Na=李^娜", ScheduledProcedureStepStartTime="1400"))
    sequence = "ScheduledProcedureStepSequence"
    query = (
        f"{sequence}.ScheduledProcedureStepStartDate=20260704-20260705"
        f"&{sequence}.ScheduledProcedureStepStartTime=2000-1000"
    )
    [found] = door.get(f"/modality-scheduled-procedure-steps?{query}").json()
    assert found["00100010"]["Value"][0]["Alphabetic"] == "Wang^XiaoDong"
    [step] = found["00400100"]["Value"]
    assert step["00400001"]["Value"] == ["CT1"]


def test_a_performed_step_is_created_changed_and_retrieved(door):
    """T-WEB-16, T-WEB-30."""
    path = f"/modality-performed-procedure-steps/{UID}"
    begun, done = (json.loads(ds.to_json()) for ds in (creation(), ending()))
    assert door.get(path).status_code == 404
    assert door.post(f"{path}?update", json=[done], headers=JSON).status_code == 404
    assert door.post(path, json=[begun], headers=JSON).status_code == 201
    assert door.post(path, json=[begun], headers=JSON).status_code == 409
    identity = [texts(PatientID="another")]
    assert door.post(f"{path}?update", json=identity, headers=JSON).status_code == 409
    assert door.post(f"{path}?update", json=[done], headers=JSON).status_code == 200
    assert door.post(f"{path}?update", json=[done], headers=JSON).status_code == 409
    [found] = door.get(path).json()
    assert found["00400252"]["Value"] == ["COMPLETED"]


# Access, capabilities


@pytest.mark.parametrize("route", DICOM_ROUTES, ids=lambda r: f"{r.method} {r.path}")
def test_nobody_gets_in_without_a_token(appliance, route):
    path = route.path.format(uid=UID, requester="RIS", ae_title="RIS")
    answer = httpx.request(route.method, f"{appliance.url}/dicom-web{path}", trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_subscription_for_another_is_not_for_the_desk(appliance):
    headers = {"Authorization": f"Bearer {appliance.token('desk')}"}
    url = f"{appliance.url}/dicom-web/workitems/{GLOBAL}/subscribers/RIS"
    assert httpx.post(url, headers=headers, trust_env=False).status_code == 403


@pytest.mark.parametrize(
    ("method", "path"), [("OPTIONS", ""), ("OPTIONS", "/"), ("GET", "/openapi.json")]
)
def test_the_door_describes_itself(door, method, path):
    """T-WEB-15."""
    answer = door.request(method, path)
    assert answer.status_code == 200
    described = answer.json()
    assert described["openapi"].startswith("3.1")
    told = {(m.upper(), p) for p, methods in described["paths"].items() for m in methods}
    assert told == {(route.method, route.path) for route in DICOM_ROUTES}


# Both doors


def test_what_is_done_over_http_is_seen_over_dimse(door, appliance):
    """T-WEB-12: claimed over HTTP, its lock holds over DIMSE."""
    create(door)
    enter(door, "IN PROGRESS")
    ctx = appliance.context()
    change = bytes(text_elements(InputReadinessState="INCOMPLETE", TransactionUID=LOCK))
    assert appliance.write(update_workitem, ctx, UID, change) is Status.SUCCESS
    [found] = door.get(f"/workitems/{UID}").json()
    assert found["00404041"]["Value"] == ["INCOMPLETE"]
