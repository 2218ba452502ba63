"""A full, read-only or failing disk: the worklist is served, and every door says what it cannot do."""

import contextlib
import errno
import re
import shutil
import signal
import sqlite3
import subprocess
import time

import httpx
import peers
import pytest
from conftest import item, write_config
from faults import Disk
from test_appliance import Served, command_line
from test_mpps import creation, modality

from minris.store.condition import TROUBLES

FAULTS = {"full": errno.ENOSPC, "failing": errno.EIO}
OPEN = "[web]\nanonymous_loopback = yes\n"
ROOM_S = 5.0  # it goes on by itself after so long at most


def post(client, name):
    """Put a patient on the worklist."""
    kind = {"Content-Type": "application/dicom+json"}
    return client.post("/api/worklist", json=item(name), headers=kind)


class Box:
    """A box with one exam on its worklist, and a receptionist who is logged in."""

    def __init__(self, served):
        self.served = served
        self.api = httpx.Client(base_url=served.url, trust_env=False)
        self.desk = httpx.Client(base_url=served.url, trust_env=False)
        assert self.log_in(self.desk).status_code == 303
        assert self.register("Wang^Fang").status_code == 201

    def log_in(self, client):
        return client.post("/login", data={"name": "admin", "password": self.served.password})

    def register(self, name):
        return post(self.api, name)

    def found(self):
        keys = ["PatientName"]
        return peers.run_findscu(self.served.port, "MINRIS", "CT1", keys)

    def health(self):
        answer = self.api.get("/healthz")
        return answer.status_code, answer.json()["store"]

    def becomes(self, status, within=ROOM_S):
        """Wait for a status of /healthz: how long it took."""
        began = time.monotonic()
        while self.health()[0] != status:
            assert time.monotonic() < began + peers.PATIENCE_S
            time.sleep(0.05)
        return time.monotonic() - began


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "box").mkdir()
    return Disk(tmp_path / "box" / "minris.db", tmp_path / "fault")


@pytest.fixture
def box(disk, tmp_path):
    served = Served(tmp_path / "box", config=OPEN, **disk.environ)
    yield Box(served)
    served.kill()


def words_of(page):
    return re.sub(r"<[^>]*>|\s+", " ", page)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_disk_that_takes_nothing_is_told_by_every_door_and_the_worklist_served(box, disk, kind):
    disk.fails(FAULTS[kind])
    words = TROUBLES[kind]
    refused = box.register("Li^Na")
    assert (refused.status_code, refused.json()["error"]) == (507, words)
    assert refused.headers["Warning"] == f'299 minris: "{words}"'
    assert box.health() == (503, words)
    with modality(box.served) as call:
        answer = call.create(creation())
        assert answer.status == 0x0213
        assert answer.command.ErrorComment == words[:64].rstrip()  # a space at its end is padding
    assert [str(one.PatientName) for one in box.found().datasets] == ["Wang^Fang"]
    for path in ("/", "/login", "/waiting?bare=1", "/nothing", "/devices"):
        assert words in words_of(box.desk.get(path).text), path
    with httpx.Client(base_url=box.served.url, trust_env=False) as other:
        assert box.log_in(other).status_code == 303  # a session that is not kept
        assert "Wang" in other.get("/?date=2026-07-05").text
        other.get("/logout")
        wrong = other.post("/login", data={"name": "admin", "password": "wrong"})
        assert wrong.status_code == 403
    disk.works()
    assert box.becomes(200) < ROOM_S
    assert words not in words_of(box.desk.get("/").text)
    assert box.register("Zhao^Lei").status_code == 201
    assert len(box.found().datasets) == 2
    assert box.served.stop() == 0
    assert box.served.log.count(f"store: {words}") == 1
    assert "Traceback" not in box.served.log


def test_a_form_that_cannot_be_saved_keeps_what_was_typed(box, disk):
    form = box.desk.get("/register").text
    token = re.search(r'name="csrf" value="([^"]+)"', form)[1]
    disk.fails(errno.ENOSPC)
    typed = {"csrf": token, "family_name": "Sun", "given_name": "Yue", "device": "CT1"}
    answer = box.desk.post("/register", data=typed)
    assert answer.status_code in (422, 507)
    assert 'value="Sun"' in answer.text


def test_passwords_are_not_tried_without_limit_on_a_full_disk(box, disk):
    disk.fails(errno.ENOSPC)
    with httpx.Client(base_url=box.served.url, trust_env=False) as other:
        wrong = {"name": "admin", "password": "wrong"}
        codes = [other.post("/login", data=wrong).status_code for _ in range(12)]
        assert codes[0] == 403 and codes[-1] == 429
        assert box.log_in(other).status_code == 429


def test_a_disk_that_cannot_be_read_is_told_by_every_door(box, disk):
    disk.fails(errno.EIO, errno.EIO)
    # what SQLite has in its memory needs no disk: a new connection has nothing
    with sqlite3.connect(box.served.folder / "minris.db") as other:
        other.execute("UPDATE patient SET updated_at = updated_at")
    other.close()
    answers = [box.found() for _ in range(3)]
    assert {one.status for one in answers} <= {0xA700, 0x0000}
    assert box.api.get("/api/worklist").status_code in (200, 507)
    assert box.desk.get("/patients").status_code in (200, 507)
    assert box.health()[0] == 503


def test_nothing_is_acknowledged_that_was_not_kept(box, disk):
    """The disk fails and works by turns, and the power goes in the middle of it."""
    acknowledged = set()
    for number in range(60):
        if number % 7 == 3:
            disk.fails((errno.ENOSPC, errno.EIO, errno.EROFS)[number % 3])
        if number % 7 == 6:
            disk.works()
        if box.register(f"Turn^{number}").status_code == 201:
            acknowledged.add(f"Turn^{number}")
    assert acknowledged
    box.served.kill()
    with contextlib.closing(sqlite3.connect(box.served.folder / "minris.db")) as connection:
        kept = {
            name.split("=")[0] for (name,) in connection.execute("SELECT patient_name FROM patient")
        }
    assert acknowledged <= kept


# Real ones, at the start


@pytest.fixture
def small(tmp_path):
    """A folder on a disk of 6 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount")
    # Its input ends with this process, however that ends.
    words = ["sh", "-c", 'read -r _; exec umount -l "$1"', "sh", str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True) as keeper:
        yield folder
    assert keeper.returncode == 0


def fill(folder):
    with (folder / "film.mp4").open("wb", 0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def goes_on(served, began):
    """Wait until it says that its store is in order: how long it took."""
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{served.url}/healthz", trust_env=False).json()["store"] == "ok":
                return time.monotonic() - began
        assert time.monotonic() < began + peers.PATIENCE_S, served.log
        time.sleep(0.05)


def a_day(folder):
    """A store with an exam in a folder, as a run leaves it."""
    ports = [peers.free_port() for _ in range(2)]
    write_config(folder, f"[dicom]\nport = {ports[0]}\n{OPEN}port = {ports[1]}\n")
    served = Served(folder)
    Box(served)
    return served


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_start_on_a_full_disk_serves_and_goes_on_by_itself(small, end):
    first = a_day(small)
    password = first.password
    first.stop(end)
    fill(small)
    served = Served(small)
    try:
        assert "Traceback" not in "".join(served.errors)
        found = peers.run_findscu(served.port, "MINRIS", "CT1", ["PatientName"])
        assert [str(one.PatientName) for one in found.datasets] == ["Wang^Fang"]
        with httpx.Client(base_url=served.url, trust_env=False) as client:
            while post(client, "Zhao^Lei").status_code == 201:
                pass  # the write-ahead log that the killed one left has room
            assert client.get("/healthz").json()["store"] == TROUBLES["full"]
            assert TROUBLES["full"] in words_of(client.get("/login").text)
            sent = {"name": "admin", "password": password}
            assert client.post("/login", data=sent).status_code == 303
            assert "Wang" in client.get("/?date=2026-07-05").text
            (small / "film.mp4").unlink()
            began = time.monotonic()
        goes_on(served, began)
        assert served.run("user", "anna", "--password-stdin", stdin="a good one\n").returncode == 0
    finally:
        served.kill()


def test_a_first_start_on_a_full_disk_says_so(small):
    write_config(small)
    fill(small)
    done = subprocess.run(
        command_line("serve"), cwd=small, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"there is no room for {small}/minris.db" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_start_on_a_read_only_disk_serves_and_goes_on_by_itself(small, end):
    first = a_day(small)
    first.stop(end)
    before = {each.name: each.read_bytes() for each in small.iterdir()}
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    served = Served(small)
    try:
        found = peers.run_findscu(served.port, "MINRIS", "CT1", ["PatientName"])
        assert [str(one.PatientName) for one in found.datasets] == ["Wang^Fang"]
        with modality(served) as call:
            assert call.create(creation()).status == 0x0213
        with httpx.Client(base_url=served.url, trust_env=False) as client:
            assert client.get("/healthz").json()["store"] == TROUBLES["read-only"]
            assert TROUBLES["read-only"] in words_of(client.get("/login").text)
        assert {each.name: each.read_bytes() for each in small.iterdir()} == before
        subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
        goes_on(served, time.monotonic())
    finally:
        served.kill()
