"""Section 18, WEB: bodies are bounded over all callers, and who sends a large one is known first."""

import contextlib
import gzip
import json
import socket
import urllib.parse

import httpx
import peers
import pytest
from conftest import item

from minris.access.users import make_user, open_session
from minris.store.models import Session
from minris.web.bodies import FORM, MOST_FIELDS

MIB = 1 << 20


def connected(appliance):
    """A bare connection to the web port."""
    return socket.create_connection((peers.HOST, appliance.appliance.web_port), peers.PATIENCE_S)


def head(path, size, *lines):
    """The head of a POST with a body of so many bytes."""
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {size}", *lines)
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def code_of(connection):
    """The status code of the next answer."""
    return int(connection.recv(65536).split(b" ", 2)[1])


def intake_of(appliance):
    return appliance.appliance.web_server.intake


@pytest.fixture
def session(appliance):
    """A browser of somebody who has logged in."""
    user = appliance.write(make_user, appliance.context(), "li.na", "admin", "very secret")
    secret = appliance.write(open_session, appliance.context(), user.id)
    with httpx.Client(base_url=appliance.url, trust_env=False) as browser:
        browser.cookies.set(appliance.cookie, secret)
        yield browser


# Forms.


def test_a_login_form_of_16_mb_is_refused_at_once(appliance):
    """From its head alone; nothing of it is read."""
    with connected(appliance) as connection:
        connection.sendall(head("/login", 16 * MIB))
        assert code_of(connection) == 413


def test_who_sends_too_much_reads_that_it_is_too_much(appliance):
    """The rest of the body is dropped first: a reset would take our answer with it."""
    form = b"&".join([b"a=b"] * (4 * MIB))
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    with httpx.Client(base_url=appliance.url, trust_env=False) as browser:
        answer = browser.post("/login", content=form, headers=kind)
    assert (answer.status_code, answer.json()["error"]) == (413, "The body is too large")
    assert not intake_of(appliance).held[""]


@pytest.mark.parametrize("path", ["/login", "/register", "/step/1", "/users", "/import"])
def test_a_form_has_64_kib(session, path):
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    codes = [session.post(path, content=b"a".ljust(size, b"a"), headers=kind).status_code
             for size in (FORM, FORM + 1)]  # fmt: skip
    assert codes[0] != 413
    assert codes[1] == 413


def test_a_form_with_files_has_few_fields(session):
    """Each costs much more memory than its bytes."""
    for count, refused in ((MOST_FIELDS // 2, False), (20 * MOST_FIELDS, True)):
        answer = session.post("/import", files=[("f", (None, b"")) for _ in range(count)])
        assert (answer.status_code == 413) is refused
    assert answer.json()["error"] == "The form has too many fields"


def test_a_large_file_is_taken_from_the_page(session):
    csv = "patient_name,scheduled_station\n" + "".join(
        f"Wang^Number{number},CT1\n" for number in range(10_000)
    )
    answer = session.post("/import", files={"upload": ("day.csv", csv.encode())})
    assert len(csv) > 3 * FORM
    assert answer.status_code != 413


def test_a_file_of_nobody_is_not_read(appliance):
    with connected(appliance) as connection:
        kind = "Content-Type: multipart/form-data; boundary=x"
        connection.sendall(head("/import", 10 * MIB, kind))
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 303")
    assert b"/login" in answer


# Who it is.


@pytest.mark.parametrize(
    ("path", "code"),
    [("/dicom-web/workitems", 401), ("/api/worklist", 401), ("/control/import", 403)],
)
@pytest.mark.parametrize("how", ["none", "wrong"])
@pytest.mark.parametrize("size", [100, 10 * MIB])
def test_without_a_token_no_body_is_read(appliance, path, code, how, size):
    lines = () if how == "none" else ("Authorization: Bearer wrong",)
    with connected(appliance) as connection:
        connection.sendall(head(path, size, "Content-Type: application/dicom+json", *lines))
        answer = connection.recv(65536)
    assert int(answer.split(b" ", 2)[1]) == code
    assert b"connection: close" in answer


def test_a_body_of_nobody_that_does_not_say_its_size_is_not_read(appliance):
    lines = ("POST /api/worklist HTTP/1.1", "Host: 127.0.0.1", "Transfer-Encoding: chunked", "", "")
    with connected(appliance) as connection:
        connection.sendall("\r\n".join(lines).encode())
        assert code_of(connection) == 401


# All together.


def test_sixty_half_sent_bodies_leave_room_for_others(appliance):
    """60 of 10 MB from one address: what is held stays within its half, and the desk goes on."""
    token, intake = appliance.token(), intake_of(appliance)
    with contextlib.ExitStack() as stack:
        refused = 0
        for _ in range(60):
            connection = stack.enter_context(connected(appliance))
            lines = f"Authorization: Bearer {token}", "Content-Type: application/json"
            connection.sendall(head("/api/worklist", 10 * MIB, *lines) + b" " * MIB)
            connection.settimeout(0.01)
            with contextlib.suppress(TimeoutError):
                refused += code_of(connection) == 503
        assert intake.held[""] <= intake.most / 2
        with httpx.Client(base_url=appliance.url, trust_env=False) as desk:
            form = {"name": "li.na", "password": "wrong"}
            assert desk.post("/login", data=form).status_code == 403
            desk.headers["Authorization"] = f"Bearer {token}"
            small = desk.post("/api/worklist", json=[item()],
                              headers={"Content-Type": "application/dicom+json"})  # fmt: skip
            large = desk.post("/api/worklist", content=b" " * (10 * MIB))
    assert small.status_code == 201
    assert (large.status_code, large.headers["Retry-After"]) == (503, "1")
    assert large.json()["error"] == "Too many large requests at once: try again"


def test_what_is_given_back_is_there_again(appliance):
    token = appliance.token()
    body = json.dumps([item()]).encode().ljust(10 * MIB)
    with httpx.Client(base_url=appliance.url, trust_env=False) as client:
        client.headers.update({"Authorization": f"Bearer {token}",
                               "Content-Type": "application/dicom+json"})  # fmt: skip
        codes = [client.post("/api/worklist", content=body).status_code for _ in range(8)]
    assert codes == [201] * 8
    assert not intake_of(appliance).held[""]


def test_what_is_unpacked_counts(appliance, monkeypatch):
    monkeypatch.setattr(intake_of(appliance), "most", 2 * MIB)
    body = gzip.compress(json.dumps([item()]).encode().ljust(3 * MIB))
    headers = {"Authorization": f"Bearer {appliance.token()}", "Content-Encoding": "gzip",
               "Content-Type": "application/dicom+json"}  # fmt: skip
    answer = httpx.post(f"{appliance.url}/api/worklist", content=body, headers=headers,
                        trust_env=False)  # fmt: skip
    assert answer.status_code == 503
    assert not intake_of(appliance).held[""]


def test_a_session_that_ended_keeps_what_was_typed(appliance):
    """A form within its bounds is read also when its login has expired; a file is not."""
    user = appliance.write(make_user, appliance.context(), "li.na", "desk", "very secret")
    secret = appliance.write(open_session, appliance.context(), user.id)
    ended = appliance.context().stamp(seconds=-1)
    appliance.write(lambda: Session.update(expires_at=ended).execute())
    cookie = f"{appliance.cookie}={secret}"
    form = urllib.parse.urlencode({"patient_name": "王小东", "remark": "x" * 30_000})
    answer = httpx.post(f"{appliance.url}/register", content=form, trust_env=False,
                        headers={"Content-Type": "application/x-www-form-urlencoded",
                                 "Cookie": cookie})  # fmt: skip
    assert answer.status_code == 401
    assert "what you typed is kept" in answer.text


@pytest.mark.parametrize("cookie", ["none", "made up"])
def test_of_nobody_who_was_ever_logged_in_no_form_is_read(appliance, cookie):
    """The answer comes while the form is still to come, and the connection closes."""
    lines = () if cookie == "none" else (f"Cookie: {appliance.cookie}=made-up",)
    with connected(appliance) as connection:
        kind = "Content-Type: application/x-www-form-urlencoded"
        connection.sendall(head("/register", 200, kind, *lines))
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in answer
    assert b"what you typed is kept" not in answer
