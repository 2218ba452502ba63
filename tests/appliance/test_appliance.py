"""Section 22: the command line, run as a technician runs it, in processes of their own."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import peers
import pytest
from conftest import MADE, PROGRAM, item, write_config
from pynetdicom import AE
from test_peers import WORKLIST_ENTRY

import minris
from minris.access.context import Context
from minris.access.devices import save_device
from minris.cli import COMMANDS, main
from minris.config.ini import load_config
from minris.config.values import ROLES
from minris.dataset.dicom_json import from_json
from minris.dataset.elements import ElementIndex
from minris.standard.uids import VERIFICATION
from minris.store.models import database
from minris.store.sqlite import open_store

ENVIRON = {k: v for k, v in os.environ.items() if not k.startswith("MINRIS_")}


def command_line(*arguments):
    """minris with arguments, by this Python."""
    return [*PROGRAM, *map(str, arguments)]


def run(*arguments, folder, stdin="", timeout_s=60, **environ):
    """Run a command to its end."""
    return subprocess.run(
        command_line(*arguments),
        cwd=folder,
        env=ENVIRON | environ,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.fixture
def here(folder, monkeypatch, capsys):
    """Gives a function that runs a command in this process: status, output, errors."""
    monkeypatch.chdir(folder)

    def command(*arguments):
        try:
            status = main(list(map(str, arguments)))
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return command


class Served:
    """`minris serve` in a process of its own, up when this is made.

    words  the command instead, as a list
    """

    def __init__(self, folder, *arguments, config="", words=(), **environ):
        self.folder = folder
        if not (folder / "config.ini").exists():
            write_config(folder, config)
        self.process = subprocess.Popen(
            words or command_line(*(arguments or ("serve",))),
            cwd=folder,
            env=ENVIRON | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors, self.lines = [], []
        self.reader = threading.Thread(target=self._read_errors, daemon=True)
        self.reader.start()
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if "pages at" in line:
                break
        else:
            self.stop()
            raise AssertionError("".join(self.errors))
        self.port = int(re.search(r"DICOM MINRIS at 127\.0\.0\.1:(\d+)", self.start_line)[1])
        self.url = re.search(r"pages at (http://127\.0\.0\.1:\d+)", self.start_line)[1]

    def _read_errors(self):
        self.errors.extend(self.process.stderr)

    @property
    def start_line(self):
        """The line that names addresses and paths."""
        return self.lines[-1]

    @property
    def log(self):
        """All that was written to standard error; complete when it has stopped."""
        return "".join(self.errors)

    @property
    def password(self):
        """The administrator's first password."""
        return (self.folder / "minris-admin-password.txt").read_text().strip()

    def run(self, *arguments, **how):
        """Run another command beside it."""
        return run(*arguments, folder=self.folder, **how)

    def stop(self, number=signal.SIGTERM, timeout_s=peers.PATIENCE_S):
        """Send it a signal: its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(timeout_s)
        self.reader.join(peers.PATIENCE_S)
        self.process.stdout.close()
        self.process.stderr.close()
        return status

    def kill(self):
        """End it for good, whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture
def serve(tmp_path):
    """Gives a function that starts `minris serve` in the test's folder."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, folder=tmp_path, **how):
            served = Served(folder, *arguments, **how)
            stack.callback(served.kill)
            return served

        yield start


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One appliance for all tests of commands beside it."""
    one = Served(tmp_path_factory.mktemp("served"))
    yield one
    one.kill()


@pytest.fixture(scope="module")
def port_8080():
    """Nobody gets port 8080 while two demonstrations run, so that neither takes it from the other."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # somebody has it already
            stack.enter_context(socket.create_server(("127.0.0.1", 8080)))
        yield


@pytest.fixture(scope="module", autouse=True)
def demonstration(port_8080, tmp_path_factory):
    """`minris demo`, which takes its time to be read: begun with the first test, seen by the last."""
    with subprocess.Popen(
        command_line("demo"), cwd=tmp_path_factory.mktemp("demo"), env=ENVIRON, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield process
        process.kill()


@pytest.fixture
def folder(tmp_path):
    """A folder with a config.ini, where nothing runs."""
    write_config(tmp_path)
    return tmp_path


def log_in(url, name, password):
    """The status of a login, and the client."""
    with httpx.Client(base_url=url, trust_env=False, verify=False) as client:
        return client.post("/login", data={"name": name, "password": password}).status_code


def asks(url, token):
    """The status of a call of the API with a token."""
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=url, trust_env=False, verify=False, headers=headers) as client:
        return client.get("/api/worklist").status_code


# Starting.


def test_the_start_line_names_addresses_and_paths(served):
    assert str(served.folder / "minris.db") in served.start_line
    assert str(served.folder / "config.ini") in served.start_line
    assert minris.__version__ in served.start_line
    assert peers.run_echoscu(served.port, "MINRIS", "CT1").exit_code == 0
    assert httpx.get(f"{served.url}/healthz", trust_env=False).json()["status"] == "ok"


def test_without_a_command_it_serves(serve, tmp_path):
    write_config(tmp_path)
    assert serve("--config", tmp_path / "config.ini").stop() == 0


def test_the_first_password_is_in_a_file_for_the_owner_alone_once(serve, tmp_path):
    first, path = serve(), tmp_path / "minris-admin-password.txt"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert any(str(path) in line for line in first.lines)
    assert log_in(first.url, "admin", first.password) == 303
    assert not any(first.password in line for line in (*first.lines, first.log))
    first.stop()
    path.unlink()
    second = serve()
    assert not path.exists()
    assert len(second.lines) == 1


def test_the_first_password_goes_to_the_terminal_where_there_is_one(folder):
    ours, theirs = os.openpty()
    with subprocess.Popen(
        command_line("serve"), cwd=folder, env=ENVIRON, stdout=theirs, stderr=subprocess.DEVNULL
    ) as process:
        os.close(theirs)
        said = b""
        while b"pages at" not in said:
            said += os.read(ours, 4096)
        process.terminate()
    os.close(ours)
    assert re.search(rb"password \S{8,}", said)
    assert not (folder / "minris-admin-password.txt").exists()


def test_the_store_is_for_the_owner_alone(served):
    assert stat.S_IMODE((served.folder / "minris.db").stat().st_mode) == 0o600
    assert stat.S_IMODE((served.folder / "minris.db.control").stat().st_mode) == 0o600


def check_in(where, program):
    """`check` by a copy of the one file, which is compiled: copying keeps its time."""
    shutil.copy2(MADE, program)
    compiled = importlib.util.cache_from_source(program / MADE.name)
    Path(compiled).parent.mkdir(exist_ok=True)
    shutil.copy2(importlib.util.cache_from_source(MADE), compiled)
    return subprocess.run(
        [sys.executable, "-m", MADE.stem, "check"], cwd=where,
        env=ENVIRON | {"PYTHONPATH": str(program), "MINRIS_DICOM_PORT": "0", "MINRIS_WEB_PORT": "0"},
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip


def test_config_ini_is_looked_for_in_the_working_directory_first(folder, tmp_path):
    beside = tmp_path / "program"
    beside.mkdir()
    write_config(beside)
    for where in (folder, beside):
        assert f"configuration: {where / 'config.ini'}: ok" in check_in(where, beside)


def test_config_ini_is_looked_for_beside_the_program_then(tmp_path):
    beside, elsewhere = tmp_path / "program", tmp_path / "elsewhere"
    beside.mkdir()
    elsewhere.mkdir()
    shutil.copy(MADE, beside)
    write_config(beside)
    done = subprocess.run(
        [sys.executable, str(beside / MADE.name), "check"],
        cwd=elsewhere, env=ENVIRON, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f"configuration: {beside / 'config.ini'}: ok" in done.stdout
    assert f"store {beside / 'minris.db'}" in done.stdout


def test_without_config_ini_the_store_lies_in_the_working_directory(tmp_path):
    program, elsewhere = tmp_path / "program", tmp_path / "elsewhere"
    program.mkdir()
    elsewhere.mkdir()
    said = check_in(elsewhere, program)
    assert "configuration: none, using defaults: ok" in said
    assert f"store {elsewhere / 'minris.db'}" in said


def test_the_environment_goes_before_the_file(serve):
    port = peers.free_port()
    line = serve(MINRIS_WEB_PORT=str(port), MINRIS_CLINIC_NAME="Hillside Clinic")
    assert line.url.endswith(f":{port}")
    assert "Hillside Clinic" in httpx.get(f"{line.url}/login", trust_env=False).text


# Not starting.


def test_three_wrong_values_are_three_lines_before_anything_is_opened(tmp_path):
    port = peers.free_port()
    write_config(
        tmp_path,
        f"[dicom]\nport = {port}\nae_title = A TITLE THAT IS TOO LONG\n"
        "[web]\nport = eighty\n[clinic]\nlanguage = klingon",
    )
    done = run("serve", folder=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 3
    for line, where in zip(
        sorted(lines), ("[clinic] language", "[dicom] ae_title", "[web] port"), strict=True
    ):
        assert where in line
    assert not (tmp_path / "minris.db").exists()


def test_a_configuration_that_is_not_there_is_said(tmp_path):
    done = run("serve", "--config", "nowhere.ini", folder=tmp_path)
    assert done.returncode == 2
    assert "nowhere.ini" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_one_says_that_the_store_is_in_use(served):
    done = served.run("serve")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("is in use. Stop the running minris first")
    assert str(served.folder / "minris.db") in done.stderr
    assert httpx.get(f"{served.url}/healthz", trust_env=False).status_code == 200


@pytest.mark.parametrize("door", ["dicom", "web"])
def test_a_port_that_is_taken_is_said(tmp_path, door):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        write_config(tmp_path, f"[{door}]\nport = {port}")
        done = run("serve", folder=tmp_path)
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


def foreign_store(path):
    """An SQLite file of somebody else."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
        connection.commit()


@pytest.mark.parametrize(
    "make",
    [Path.touch, foreign_store, lambda path: path.write_text("patients of 2025")],
    ids=["empty", "of another program", "a text"],
)
@pytest.mark.parametrize("command", ["serve", "check", "token"])
def test_a_file_that_is_no_store_is_refused_and_left_alone(folder, here, make, command):
    path = folder / "minris.db"
    make(path)
    before = path.read_bytes()
    status, said, errors = here(*{"token": ("token", "ris")}.get(command, (command,)))
    assert status == 1
    assert "not a minris database" in said + errors
    assert path.read_bytes() == before


# Stopping.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(serve, tmp_path, number):
    line = serve()
    assert line.stop(number) == 0
    assert "Traceback" not in line.log
    assert not (tmp_path / "minris.db.control").exists()
    assert run("token", "ris", folder=tmp_path).returncode == 0


def test_a_signal_stops_it_though_others_are_connected(serve):
    """A board that is open, a machine that is associated, a caller that says nothing."""
    line = serve()
    with (
        association_of(line.port),
        httpx.Client(base_url=line.url, trust_env=False, verify=False) as client,
        socket.create_connection(("127.0.0.1", line.port), 5),
        socket.create_connection(("127.0.0.1", httpx.URL(line.url).port), 5),
    ):
        client.post("/login", data={"name": "admin", "password": line.password})
        with client.stream("GET", "/events") as stream:
            assert next(stream.iter_lines())
            assert line.stop() == 0
    assert "Traceback" not in line.log


@contextlib.contextmanager
def association_of(port):
    """A machine that has associated and says nothing more."""
    ae = AE("CT1")
    ae.add_requested_context(VERIFICATION)
    association = ae.associate("127.0.0.1", port, ae_title="MINRIS")
    assert association.is_established
    try:
        yield association
    finally:
        association.abort()


def test_after_a_power_cut_it_starts_again(serve, tmp_path):
    first = serve()
    token = first.run("token", "ris").stdout.strip()
    first.kill()
    assert (tmp_path / "minris.db.control").exists()
    assert run("token", "other", folder=tmp_path).returncode == 0
    second = serve()
    assert asks(second.url, token) == 200


# Importing.


def list_of(folder, *items, name="list.json"):
    """A file of worklist items."""
    path = folder / name
    path.write_text(json.dumps(items), "utf-8")
    return path


def names_on(served, patient_id):
    """The names that a CT finds under a patient ID."""
    keys = ["PatientName", f"PatientID={patient_id}"]
    found = peers.run_findscu(served.port, "MINRIS", "CT1", keys).datasets
    return [str(one.PatientName) for one in found]


def test_a_file_is_imported_beside_a_running_appliance(served, tmp_path):
    path = list_of(tmp_path, item("Wang^XiaoDong=王^小东", PatientID="I1"))
    done = served.run("import", path)
    assert (done.returncode, done.stdout) == (
        0,
        "list.json: Imported: 1; Without birth date or sex: 1\n",
    )
    assert names_on(served, "I1") == ["Wang^XiaoDong=王^小东"]


def test_a_file_is_imported_where_nothing_runs(serve, folder):
    path = list_of(folder, item("Li^Na=李^娜", PatientID="I2"), item("Miller^Anna"))
    done = run("import", path, folder=folder)
    assert (done.returncode, done.stdout) == (
        0,
        "list.json: Imported: 2; Without birth date or sex: 2\n",
    )
    assert names_on(serve(), "I2") == ["Li^Na=李^娜"]


@pytest.mark.parametrize("running", [True, False], ids=["beside", "alone"])
def test_a_wrong_item_is_said_and_nothing_is_imported(served, folder, running):
    good = [item(f"Patient{number}^Test", PatientID="I3") for number in range(200)]
    good[36]["PatientBirthDate"] = {"vr": "DA", "Value": ["19800231"]}
    path = list_of(folder, *good)
    done = served.run("import", path) if running else run("import", path, folder=folder)
    assert done.returncode == 1
    words = "item 37: Patient's Birth Date (0010,0030) 19800231 is not a date"
    assert words in done.stderr
    assert "nothing imported" in done.stderr
    assert done.stdout == ""
    assert names_on(served, "I3") == []


def test_one_wrong_file_of_several_keeps_no_other_out(served, tmp_path):
    good = list_of(tmp_path, item("Li^Na", PatientID="I4"), name="good.json")
    wrong = tmp_path / "wrong.wl"
    wrong.write_bytes(b"no worklist file")
    done = served.run("import", wrong, good, tmp_path / "missing.wl")
    assert done.returncode == 1
    assert done.stdout == "good.json: Imported: 1; Without birth date or sex: 1\n"
    _, *refused = done.stderr.strip().splitlines()  # the first line names the store
    assert [Path(line.partition(": ")[0]).name for line in refused] == ["wrong.wl", "missing.wl"]
    assert names_on(served, "I4") == ["Li^Na"]


def test_a_worklist_file_of_dcmtk_is_imported(served, tmp_path):
    dump, path = tmp_path / "entry.dump", tmp_path / "entry.wl"
    dump.write_text(WORKLIST_ENTRY, "utf-8")
    assert peers.run_tool([peers.dump2dcm(), dump, path]).exit_code == 0
    assert served.run("import", path).returncode == 0
    assert names_on(served, "K100023") == ["Wang^Xiaohong=王^小红"]


# Users and tokens.


@pytest.mark.parametrize("role", ROLES)
def test_a_user_made_beside_a_running_appliance_logs_in_at_once(served, role):
    done = served.run("user", f"anna-{role}", "--role", role, "--password-stdin",
                      stdin="blue-kettle-9\n")  # fmt: skip
    assert (done.returncode, "blue-kettle-9" in done.stdout) == (0, False)
    assert log_in(served.url, f"anna-{role}", "blue-kettle-9") == 303


def test_a_user_made_where_nothing_runs_logs_in_later(serve, folder):
    open_store(folder / "minris.db")
    run("user", "chief", "--role", "admin", "--password-stdin", folder=folder, stdin="green-lamp-4")
    line = serve()
    assert log_in(line.url, "chief", "green-lamp-4") == 303
    assert not (folder / "minris-admin-password.txt").exists()


def test_a_deleted_user_logs_in_no_more(served):
    served.run("user", "temp", "--password-stdin", stdin="blue-kettle-9\n")
    assert served.run("user", "temp", "--delete").returncode == 0
    assert log_in(served.url, "temp", "blue-kettle-9") == 403


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (("anna", "--password-stdin"), "short\n", "at least 8 characters"),
        (("anna", "--password-stdin"), "", "at least 8 characters"),
        (("anna smith", "--password-stdin"), "blue-kettle-9\n", "user name"),
        (("nobody", "--delete"), "", "no user nobody"),
    ],
)
def test_a_user_that_cannot_be_is_refused_in_words(served, arguments, stdin, words):
    done = served.run("user", *arguments, stdin=stdin)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def chief(here, folder, monkeypatch):
    """The one administrator of a store at which nothing runs."""
    open_store(folder / "minris.db")
    monkeypatch.setattr("sys.stdin", io.StringIO("green-lamp-4\n" * 2))
    assert here("user", "chief", "--role", "admin", "--password-stdin")[0] == 0


def test_the_last_administrator_is_not_deleted(here, chief):
    status, _, errors = here("user", "chief", "--delete")
    assert status == 1
    assert "last administrator" in errors


def test_the_last_administrator_does_not_become_less(here, chief, folder):
    """`minris user chief` without --role is meant for the password."""
    here("user", "chief", "--password-stdin")
    with contextlib.closing(sqlite3.connect(folder / "minris.db")) as store:
        roles = store.execute("SELECT role FROM user WHERE name = 'chief'").fetchall()
    assert roles == [("admin",)]


def test_a_password_that_was_lost_is_set_anew(serve):
    """README: on the box, `minris user admin --role admin`."""
    line = serve()
    first = line.password
    line.run("user", "admin", "--role", "admin", "--password-stdin", stdin="green-lamp-4\n")
    assert log_in(line.url, "admin", "green-lamp-4") == 303
    assert log_in(line.url, "admin", first) == 403
    assert not (line.folder / "minris-admin-password.txt").exists()


def test_a_token_works_at_once_and_is_shown_alone(served):
    done = served.run("token", "his", "--role", "desk")
    assert re.fullmatch(r"[\w-]{32,}\n", done.stdout)
    assert asks(served.url, done.stdout.strip()) == 200


def test_a_deleted_token_works_no_more(served):
    token = served.run("token", "old").stdout.strip()
    assert served.run("token", "old", "--delete").returncode == 0
    assert asks(served.url, token) == 401
    assert served.run("token", "old", "--delete").returncode == 1


def test_nobody_else_gives_commands_to_a_running_appliance(served):
    for headers in ({}, {"Authorization": "Bearer guessed"}):
        answer = httpx.post(
            f"{served.url}/control/token", json={"name": "x", "role": "admin", "delete": False},
            headers=headers, trust_env=False,
        )  # fmt: skip
        assert answer.status_code == 403


# Checking, printing, simulating.


def test_check_says_one_line_each_where_nothing_runs(here):
    status, said, _ = here("check")
    assert status == 0, said
    lines = said.strip().splitlines()
    assert all(line.endswith(": ok") for line in lines)
    for what in ("configuration", "store", "[dicom] port", "[web] port", "disk", "clock"):
        assert sum(line.startswith(what) for line in lines) == 1


def test_check_makes_no_store(here, folder):
    here("check")
    assert not (folder / "minris.db").exists()


def test_check_beside_a_running_appliance_is_all_well(served):
    done = served.run("check")
    assert done.returncode == 0
    assert "running" in done.stdout


def test_check_finds_a_device_that_is_not_reached(here, folder):
    port = peers.free_port()
    write_config(
        folder, f"[device MR]\nae_title = MR1\nhost = 127.0.0.1\nport = {port}\nmodality = MR"
    )
    status, said, _ = here("check")
    assert status == 1
    [line] = [line for line in said.splitlines() if "device MR" in line]
    assert "cannot connect" in line


def test_check_finds_an_ae_title_that_two_devices_have(here, folder):
    """One of the page, and later one of config.ini."""
    config = load_config(folder / "config.ini")
    open_store(config.store_path)
    with database.connection_context():
        save_device(Context(config), "Spare", {"ae_title": "MR7"})
    write_config(folder, "[device MR]\nae_title = MR7")
    status, said, _ = here("check")
    assert status == 1
    [line] = [line for line in said.splitlines() if "Spare" in line]
    assert "MR7 already belongs to MR" in line


def test_check_finds_a_port_that_is_taken(here, folder):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        write_config(folder, f"[dicom]\nport = {port}")
        status, said, _ = here("check")
    assert status == 1
    assert f"[dicom] port {port}: Address already in use" in said


def test_check_finds_a_store_that_is_damaged(here, chief, folder):
    path = folder / "minris.db"
    path.with_name("minris.db-wal").unlink(missing_ok=True)
    content = bytearray(path.read_bytes())
    content[8192:16384] = bytes(8192)
    path.write_bytes(content)
    status, said, _ = here("check")
    assert status == 1
    [line] = [line for line in said.splitlines() if line.startswith("store")]
    assert not line.endswith(": ok")


def test_settings_can_be_used_as_they_are_printed(here, folder):
    (folder / "config.ini").write_text(here("settings")[1], "utf-8")
    assert load_config(folder / "config.ini").dicom.ae_title == "MINRIS"


def test_simulate_plays_against_a_running_appliance(serve, folder):
    line = serve()
    line.run("import", list_of(folder, item("Wang^XiaoDong=王^小东", PatientID="P7")))
    named = "--patient", "P7", "--port", str(line.port)
    done = line.run("simulate", "echo", "modality", *named)
    assert done.returncode == 0
    assert [part in done.stdout for part in ("C-ECHO: 0000", "COMPLETED", "王小东")] == [True] * 3


def exported(line):
    """Names of patients, states of exams and number of reports in the store."""
    found = json.loads(line.run("export").stdout)
    steps = [ElementIndex(from_json(one["data"])) for one in found["worklist"]]
    names = [ElementIndex(from_json(one["data"])).get("PatientName") for one in found["patients"]]
    states = [step.item("ScheduledProcedureStepSequence").get("ScheduledProcedureStepStatus")
              for step in steps]  # fmt: skip
    return names, states, len(found["performed"])


@pytest.mark.parametrize("scenario", ["modality", "discontinue", "commitment"])
def test_simulate_touches_no_patient_but_its_own_and_takes_it_away(serve, folder, scenario):
    line = serve()
    line.run("import", list_of(folder, item("Wang^XiaoDong")))
    done = line.run("simulate", scenario, "--port", str(line.port))
    if scenario != "commitment":  # it lacks --listen: the patient goes all the same
        assert done.returncode == 0, done.stderr
    assert "NOT A PATIENT" in done.stdout
    assert "Wang" not in done.stdout
    assert exported(line) == (["Wang^XiaoDong"], ["SCHEDULED"], 0)


def test_a_server_elsewhere_is_asked_for_no_patient_but_one_that_is_named(served):
    done = served.run("simulate", "modality", "--host", "192.0.2.1", "--port", "11112")
    assert done.returncode == 1
    assert "--patient ID" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("echo", "--calling", "STRANGER"), "rejected"),
        (("modality", "--patient", "P404"), "P404 is not on the worklist"),
        (("modality", "--modality", "CT\\MR"), "has more than one value"),
        (("echo", "--calling", "A" * 17), "is not an AE title"),
        (("echo", "--calling", "工作站"), "is not an AE title"),
        (("watch", "--listen", "99999"), "is not a port"),
        (("watch", "--calling", "CT1"), "--listen PORT"),
        (("echo", "--called", "WRONG"), "Called AE title not recognised"),
        (("echo", "--host", "127.0.0.9"), "cannot reach"),
    ],
)
def test_simulate_says_what_did_not_work(served, arguments, words):
    done = served.run("simulate", *arguments, "--port", str(served.port))
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("fly",),
        ("import",),
        ("user",),
        ("user", "anna", "--role", "chief"),
        ("token", "his", "--role", "chief"),
        ("simulate",),
        ("simulate", "fly"),
        ("simulate", "echo", "--port", "many"),
        ("serve", "--fast"),
        ("serve", "now"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_status_2(here, arguments):
    status, _, errors = here(*arguments)
    assert status == 2
    assert errors


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(here, command):
    status, said, _ = here(command, "--help")
    assert status == 0
    assert said.startswith(f"usage: minris {command}")
    assert len(said.splitlines()) > 3


def test_the_version_is_printed(here):
    assert here("--version") == (0, f"minris {minris.__version__}\n", "")


# The demonstration.


def test_the_day_is_played_once_and_leaves_nothing(tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = run("demo", "--once", folder=tmp_path, TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert "The department is at work." in done.stdout
    assert "王小东 Wang XiaoDong" in done.stdout
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == [temporary]


def test_the_demonstration_takes_no_configuration(here):
    status, _, told = here("demo", "--config", "config.ini")
    assert (status, "it takes no --config" in told) == (1, True)


def test_the_demonstration_stays_up_with_a_login_that_works(demonstration):
    said = ""
    for line in demonstration.stdout:
        said += line
        if "Ctrl-C" in line:
            break
    url, user, password = re.search(r"board: (http\S+) +user (\S+), password (\S+)", said).groups()
    assert log_in(url, user, password) == 303
    demonstration.terminate()
    assert demonstration.wait(peers.PATIENCE_S) == 0
    assert "Traceback" not in demonstration.stderr.read()


# The log.


def played(serve, folder, config):
    """The log of an appliance at which a patient was registered, worked and looked at."""
    line = serve(config=config)
    line.run("import", list_of(folder, item("Wang^XiaoDong=王^小东", PatientID="P7")))
    line.run("simulate", "modality", "--port", str(line.port), "--patient", "P7")
    with httpx.Client(base_url=line.url, trust_env=False, verify=False) as client:
        client.post("/login", data={"name": "admin", "password": line.password})
        client.get("/")
    assert line.stop() == 0
    return line


def test_the_log_tells_of_orders_and_never_of_a_name(serve, tmp_path):
    log = played(serve, tmp_path, "[log]\nlevel = DEBUG").log
    assert "IN PROGRESS" in log
    assert "COMPLETED" in log
    for name in ("Wang", "王", "XiaoDong"):
        assert name not in log


def test_the_log_may_be_a_file_of_json_lines(serve, tmp_path):
    line = played(serve, tmp_path, "[log]\nformat = json\nfile = minris.log")
    lines = (tmp_path / "minris.log").read_text("utf-8").splitlines()
    assert any("COMPLETED" in line for line in lines)
    assert all({"time", "level", "message"} <= set(json.loads(line)) for line in lines)
    assert line.log == ""
