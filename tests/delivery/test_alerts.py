"""Alerts by webhook and e-mail: when a light turns, when it is well again, and never of a patient."""

import contextlib
import http.server
import json
import queue
import socketserver
import threading
import time

import peers
import pytest
from conftest import item
from test_pages import csrf_of, employ, visiting, words_of

from minris.appliance.alerting import job_alerts
from minris.appliance.jobs import nightly_backup
from minris.delivery.alerts import LightWatch, Turn
from minris.standard.status import Message
from minris.store.condition import StoreTrouble

GOOD, BAD = Turn("Archive", "good", "OK"), Turn("Archive", "bad", "ARCHIVE does not answer")


def told(watch, *looks, steady=300):
    """What is told of the archive, by the second of each look."""
    found = []
    for second, light in looks:
        turns = watch.look([light, Turn("Disk", "good", "OK")], second, steady)
        watch.note(turns)
        found += [(second, one.light) for one in turns]
    return found


def test_a_light_is_told_once_it_is_steady_and_once(monkeypatch):
    looks = [(0, BAD), (299, BAD), (300, BAD), (320, BAD), (10_000, BAD)]
    assert told(LightWatch({}), *looks) == [(300, "bad")]


def test_a_light_that_flickers_is_not_told():
    looks = [(20 * n, BAD if n % 3 else GOOD) for n in range(100)]
    assert told(LightWatch({}), *looks) == []


def test_that_it_is_well_again_is_told_and_no_more_kept():
    watch = LightWatch({"Archive": "bad"})
    assert told(watch, (0, GOOD), (400, GOOD), (800, GOOD)) == [(400, "good")]
    assert watch.told == {}


def test_what_was_told_before_a_start_is_not_told_again():
    assert told(LightWatch({"Archive": "bad"}), (0, BAD), (900, BAD)) == []


def test_several_lights_of_one_component_are_one():
    watch = LightWatch({})
    lights = [Turn("Devices", "warning", "CT: off"), Turn("Devices", "good", "OK"),
              Turn("Devices", "warning", "MR: off")]  # fmt: skip
    assert watch.look(lights, 0, 0) == [Turn("Devices", "warning", "CT: off; MR: off")]


@pytest.fixture
def hook():
    """A web server that answers with the codes of `answers`, and keeps what was posted."""
    posted, answers = queue.Queue(), queue.Queue()

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            code = 200 if answers.empty() else answers.get()
            self.send_response(code)
            self.end_headers()
            posted.put((code, json.loads(body)))

        def log_message(self, *_):
            pass

    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)) as server:
        server.posted, server.answers = posted, answers
        server.url = f"http://127.0.0.1:{server.server_port}/minris"
        yield server


@contextlib.contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def mailbox():
    """A mail server that takes everything: (receivers, text) of each mail."""
    mails = queue.Queue()

    class Mail(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"220 mail\r\n")
            receivers = []
            for line in self.rfile:
                word = line[:4].upper()
                if word == b"RCPT":
                    receivers.append(line.decode().partition("<")[2].partition(">")[0])
                if word == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    text = b"".join(iter(self.rfile.readline, b".\r\n"))
                    mails.put((receivers, text.decode()))
                self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 fine\r\n")
                if word == b"QUIT":
                    return

    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)) as server:
        server.mails = mails
        yield server


def alerting(run_appliance, **settings):
    lines = "\n".join(f"{key} = {value}" for key, value in settings.items())
    return run_appliance(f"[alert]\nsteady_minutes = 0\n{lines}\n")


def test_a_webhook_hears_of_a_red_light_and_that_it_is_well(run_appliance, hook):
    running = alerting(run_appliance, url=hook.url)
    running.schedule(item("Ouyang^Na=欧阳^娜", PatientID="P4711"))
    box = running.appliance
    nightly_backup(box)
    box.backup_problem = "no room"
    job_alerts(box)
    _, message = hook.posted.get(timeout=peers.PATIENCE_S)
    assert (message["clinic"], message["light"]) == ("Lakeside Clinic", "bad")
    assert message["subject"] == "Lakeside Clinic: minris, Backup: Failed"
    assert {"what": "Backup", "light": "bad", "words": "The last backup failed: no room"} in (
        message["lights"]
    )
    assert not {"Ouyang", "欧阳", "P4711"} & set(json.dumps(message, ensure_ascii=False).split())
    box.backup_problem = ""
    job_alerts(box)
    job_alerts(box)
    _, message = hook.posted.get(timeout=peers.PATIENCE_S)
    assert message["light"] == "good"
    assert hook.posted.empty()


def test_an_alert_that_is_not_taken_is_sent_again(run_appliance, hook, monkeypatch):
    monkeypatch.setattr("minris.outbox.RETRY_AFTER", (0,))
    for code in (500, 503):
        hook.answers.put(code)
    running = alerting(run_appliance, url=hook.url)
    running.appliance.backup_problem = "no room"
    job_alerts(running.appliance)
    found = [hook.posted.get(timeout=peers.PATIENCE_S) for _ in range(3)]
    assert [code for code, _ in found] == [500, 503, 200]
    assert len({json.dumps(message) for _, message in found}) == 1


def test_a_mail_is_sent_to_all_receivers(run_appliance, mailbox):
    running = alerting(
        run_appliance, smtp_host="127.0.0.1", smtp_port=mailbox.server_address[1],
        smtp_security="none", sender="minris@clinic.example",
        receivers="it@clinic.example, boss@clinic.example",
    )  # fmt: skip
    with visiting(running) as client:
        page = employ(running, client, "admin").get("/box").text
        assert "Send a test alert" in page
        client.post("/box", data={"do": "test alert", "csrf": csrf_of(page)})
        receivers, text = mailbox.mails.get(timeout=peers.PATIENCE_S)
        assert receivers == ["it@clinic.example", "boss@clinic.example"]
        assert "Subject: Lakeside Clinic: minris, Test alert: OK" in text
        assert "This is a test. Nothing is wrong." in text


def test_what_a_receiver_of_alerts_answers_is_on_the_page_of_the_system(run_appliance):
    running = alerting(run_appliance, url=f"http://127.0.0.1:{peers.free_port()}/")
    with visiting(running) as client:
        page = employ(running, client, "admin").get("/box").text
        client.post("/box", data={"do": "test alert", "csrf": csrf_of(page)})

        until = time.monotonic() + peers.PATIENCE_S
        while "refused" not in words_of(client.get("/box")):
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_store_that_takes_nothing_is_told_of_all_the_same(run_appliance, hook, monkeypatch):
    running = alerting(run_appliance, url=hook.url)
    box = running.appliance

    def refuse(*_):
        raise StoreTrouble(Message("the disk is full"))

    box.backup_problem = "no room"
    monkeypatch.setattr(box.writer, "call", refuse)
    job_alerts(box)
    assert hook.posted.get(timeout=peers.PATIENCE_S)[1]["light"] == "bad"
    job_alerts(box)
    assert hook.posted.empty()


def test_without_a_receiver_there_is_no_button(appliance):
    with visiting(appliance) as client:
        assert "test alert" not in employ(appliance, client, "admin").get("/box").text


def test_the_password_of_the_mail_server_is_on_no_page(run_appliance):
    running = alerting(run_appliance, smtp_password="open-sesame")
    with visiting(running) as client:
        page = employ(running, client, "admin").get("/settings").text
    assert "smtp_password" in page
    assert "open-sesame" not in page
