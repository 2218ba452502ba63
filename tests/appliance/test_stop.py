"""A stop: within five seconds whatever is slow, and nobody is left without the true answer."""

import concurrent.futures
import contextlib
import socket
import sys
import threading
import time

import httpx
import peers
import pytest
from conftest import ROOT, item
from test_appliance import Served, association_of, run
from test_association import associate_rq
from test_mpps import creation, modality
from test_store import Gate
from test_websocket import Bare

STOP_S = 5.0

# The program, with something in it that does not end in 60 seconds.
SLOW = """
import sys, time
sys.path.insert(0, {root!r})
import minris
def wait(*_): time.sleep(60)
{slow}
sys.exit(minris.main(["serve"]))
"""
PAGE = "minris.Appliance.health = wait"
NAME_SERVER = "minris.host_addresses = wait"
WRITE = "minris.schedule = wait"
JOB = "minris.JOBS = (minris.Job('slow', 0.01, wait),)"


@pytest.fixture
def serve_slowly(tmp_path):
    """Gives a function that starts the program with something slow in it."""
    with contextlib.ExitStack() as stack:

        def start(slow="", config=""):
            words = [sys.executable, "-c", SLOW.format(root=str(ROOT), slow=slow)]
            served = Served(tmp_path, words=words, config=config)
            stack.callback(served.kill)
            served.web_port = httpx.URL(served.url).port
            return served

        yield start


def stop_seconds(served):
    """How long it takes to stop."""
    began = time.monotonic()
    assert served.stop(timeout_s=30) == 0
    assert "Traceback" not in served.log
    return time.monotonic() - began


def connect(port, data=b""):
    """A connection on which some bytes were sent."""
    one = socket.create_connection(("127.0.0.1", port), 5)
    one.sendall(data)
    return one


def until_taken():
    """Nothing tells when a request has been taken by a thread that waits."""
    time.sleep(0.5)


def test_a_page_that_never_ends_delays_no_stop(serve_slowly):
    served = serve_slowly(PAGE)
    ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(connect(served.web_port, ask))
        until_taken()
        assert stop_seconds(served) < STOP_S


def test_a_name_server_that_never_answers_delays_no_stop(serve_slowly):
    served = serve_slowly(NAME_SERVER, "[device MR]\nae_title = MR1\nhost = mr.example\nport = 104")
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(connect(served.port, associate_rq(calling="MR1")))
        until_taken()
        assert stop_seconds(served) < STOP_S


def test_a_job_that_never_ends_delays_no_stop(serve_slowly):
    served = serve_slowly(JOB)
    until_taken()
    assert stop_seconds(served) < STOP_S


def test_a_write_that_never_ends_is_not_saved_and_said_so(serve_slowly, tmp_path):
    served = serve_slowly(WRITE)
    headers = {"Authorization": f"Bearer {served.run('token', 'ris').stdout.strip()}"}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answer = pool.submit(
            httpx.post, f"{served.url}/api/worklist", json=item(), headers=headers, trust_env=False,
            timeout=60,
        )  # fmt: skip
        until_taken()
        assert stop_seconds(served) < STOP_S
        assert answer.result().status_code == 503
        assert "not saved" in answer.result().json()["error"]
    assert "Wang" not in run("export", folder=tmp_path).stdout


def test_whoever_hangs_delays_no_stop(serve_slowly):
    """Boards, associations and requests that were begun and not ended."""
    served = serve_slowly()
    bodies = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nname="
    with (
        association_of(served.port),
        connect(served.port),
        connect(served.port, associate_rq()[:40]),
        connect(served.web_port),
        connect(served.web_port, bodies),
        httpx.Client(base_url=served.url, trust_env=False) as client,
    ):
        client.post("/login", data={"name": "admin", "password": served.password})
        with client.stream("GET", "/events") as stream:
            assert next(stream.iter_lines())
            assert stop_seconds(served) < STOP_S


def test_websockets_that_do_not_answer_delay_no_stop(run_appliance):
    appliance = run_appliance()
    token = {"Authorization": f"Bearer {appliance.token()}"}
    sockets = [Bare(appliance, "/dicom-web/subscribers/CT1", token) for _ in range(3)]
    assert all(one.answer()[0] == 101 for one in sockets)
    began = time.monotonic()
    appliance.stop()
    assert time.monotonic() - began < STOP_S
    for one in sockets:
        one.close()


def test_what_is_committed_during_a_stop_is_answered_before_its_end(run_appliance):
    """A form and a machine's message wait for the store when the signal comes."""
    appliance = run_appliance()
    headers = {"Authorization": f"Bearer {appliance.token()}"}
    gate = Gate(appliance.appliance.writer)
    with concurrent.futures.ThreadPoolExecutor() as pool, modality(appliance) as call:
        answer = pool.submit(
            httpx.post, f"{appliance.url}/api/worklist", json=item(), headers=headers,
            trust_env=False, timeout=60,
        )  # fmt: skip
        created = pool.submit(call.create, creation())
        until_taken()
        stopping = threading.Thread(target=appliance.stop)
        stopping.start()
        time.sleep(0.5)
        gate.open()
        assert answer.result().status_code == 201
        assert created.result().status == 0x0000
        stopping.join(peers.PATIENCE_S)
