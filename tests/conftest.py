"""What all tests share: a store, a clock that stands still, a running appliance, real clients."""

import ast
import asyncio
import compileall
import contextlib
import datetime
import functools
import hashlib
import importlib
import itertools
import logging
import os
import pkgutil
import shutil
import subprocess
import threading
from pathlib import Path

import httpx
import pytest
from forked import PROGRAM, Program  # noqa: F401 (PROGRAM is for the tests)
from peers import PATIENCE_S

import minris
from minris.access.context import Actor, Context
from minris.access.devices import AccessRules
from minris.access.users import make_token
from minris.appliance.appliance import Appliance
from minris.config.ini import load_config
from minris.dataset.dicom_json import from_json
from minris.dataset.elements import ElementIndex
from minris.orders import scheduling as orders_scheduling
from minris.standard.dictionary import tag_of, vr_of
from minris.standard.worklist import MWL_ATTRIBUTES, STEP_SEQUENCE
from minris.store.models import database
from minris.store.sqlite import open_store, reading
from minris.web.request import cookie_name

ROOT = Path(__file__).resolve().parent.parent
MADE = ROOT / "minris.py"  # the one file, as it is copied to a box
subprocess.Popen = Program  # not every process loads a megabyte anew


@functools.cache
def made_tree():
    """Its syntax tree: a megabyte is parsed once."""
    return ast.parse(MADE.read_text("utf-8"))


NOON = datetime.datetime(2026, 7, 5, 12, 0, tzinfo=datetime.UTC)


TMPFS = Path("/dev/shm")
ROOM = 1 << 30  # bytes that a whole run may need there


def pytest_configure(config):
    """Folders of tests lie in memory where there is room: thousands of commits wait for no disk.

    Both forms of the package are compiled once, even where Python is told to keep no compiled
    form: else each of the hundreds of processes that tests start compiles a megabyte anew.
    """
    if os.access(TMPFS, os.W_OK) and shutil.disk_usage(TMPFS).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(TMPFS))
    if not hasattr(config, "workerinput"):  # once, not by each of the workers
        compileall.compile_file(MADE, quiet=1)
        compileall.compile_dir(ROOT / "src", quiet=1)


REAL_SCRYPT = hashlib.scrypt


def cheap_scrypt(password, *, salt, n, r, p):
    """scrypt that costs nothing: hundreds of passwords are made and tried."""
    return REAL_SCRYPT(password, salt=salt, n=2, r=r, p=p)


hashlib.scrypt = cheap_scrypt


# A request has five seconds by httpx; a loaded machine is slow, not wrong.
for phase in ("connect", "read", "write", "pool"):
    setattr(httpx.Client.__init__.__kwdefaults__["timeout"], phase, PATIENCE_S)


@pytest.fixture
def real_scrypt(monkeypatch):
    """Passwords cost what they cost on a box."""
    monkeypatch.setattr(hashlib, "scrypt", REAL_SCRYPT)


def every_name():
    """Every name at the top of a module of the package, and what it is."""
    found = {}
    for module in pkgutil.walk_packages(minris.__path__, "minris."):
        if not module.name.endswith("__main__"):
            found |= vars(importlib.import_module(module.name))
    return found


CONFIG = """
[dicom]
host = 127.0.0.1
port = 0
[web]
host = 127.0.0.1
port = 0
[clinic]
name = Lakeside Clinic
timezone = UTC
[device CT room]
ae_title = CT1
modality = CT
[device Ultrasound]
ae_title = US1
modality = US
character_set = GB18030
[device X-ray]
ae_title = DX1
modality = DX
character_set = ISO_IR 100
"""


def write_config(folder: Path, text: str = "") -> Path:
    """A config.ini in a folder; sections given again in `text` are merged into the usual ones."""
    import configparser

    parser = configparser.ConfigParser(interpolation=None, default_section="")
    parser.read_string(CONFIG)
    parser.read_string(text)
    path = folder / "config.ini"
    with path.open("w", encoding="utf-8") as file:
        parser.write(file)
    return path


@pytest.fixture
def config(tmp_path):
    """The settings of a test, in a folder of its own."""
    return load_config(write_config(tmp_path))


@pytest.fixture(scope="session")
def ready_store(tmp_path_factory):
    """Gives a function that lays a new store where there is none: a copy, sooner than made."""
    ready = tmp_path_factory.mktemp("ready") / "minris.db"
    open_store(ready)

    def lay(path):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ready, path)
            path.chmod(0o600)

    return lay


@pytest.fixture
def ctx(config, ready_store):
    """A Context on a new store, with a clock that stands at noon and UIDs that count."""
    ready_store(config.store_path)
    open_store(config.store_path)
    numbers = itertools.count(1)
    devices = AccessRules(config).devices
    with database.connection_context():
        yield Context(
            config,
            Actor("CT1", "127.0.0.1"),
            now=lambda: NOON,
            new_uid=lambda: f"2.25.1000{next(numbers)}",
            devices=devices,
        )


class Running:
    """An appliance that runs in a thread of this process."""

    def __init__(self, config):
        self.config = config
        self.lines = []
        self.until = None
        self.appliance = Appliance(config, self.lines.append)
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.thread.start()
        assert self.appliance.started.wait(PATIENCE_S), "the appliance did not start"

    async def _serve(self):
        self.until = asyncio.Event()
        await self.appliance.serve(self.until)

    @property
    def port(self):
        """The DICOM port."""
        return self.appliance.dicom_port

    @property
    def url(self):
        """The web address."""
        return self.appliance.web_url

    @property
    def cookie(self):
        """The name of the cookie of a login."""
        scheme = self.url.partition(":")[0]
        return cookie_name(self.appliance.web_server.web, scheme, "minris")

    def write(self, function, *arguments):
        """Run a core function in the store thread."""
        return self.appliance.writer.submit(function, *arguments).result(PATIENCE_S)

    def context(self, name="desk"):
        """A Context of this appliance."""
        return self.appliance.context(Actor(name, "127.0.0.1", "admin"))

    def read(self, function, *arguments):
        """Run a function that reads the store, in a connection of its own."""
        with reading():
            return function(*arguments)

    def schedule(self, *items, same_id="separate"):
        """Put DICOM JSON items on the worklist: the stored data sets."""
        stored = []
        for item in items:
            stored += self.write(
                orders_scheduling.schedule, self.context(), from_json(item), same_id
            )
        return [ElementIndex(data) for data in stored]

    def token(self, role="admin"):
        """A new API token."""
        return self.write(make_token, self.context(), f"test {role}", role)

    def stop(self):
        """Stop it, and wait for its end."""
        if self.thread.is_alive():
            self.appliance.changes.loop.call_soon_threadsafe(self.until.set)
            self.thread.join(PATIENCE_S)
            assert not self.thread.is_alive(), "the appliance did not stop"


@pytest.fixture
def run_appliance(tmp_path, ready_store):
    """Gives a function that starts an appliance: run_appliance("[dicom]\\nstrict_mpps = yes")."""
    with contextlib.ExitStack() as stack:

        def run(text="", folder=tmp_path):
            folder.mkdir(exist_ok=True)
            config = load_config(write_config(folder, text))
            ready_store(config.store_path)
            running = Running(config)
            stack.callback(running.stop)
            return running

        yield run


@pytest.fixture(autouse=True)
def logs_of_this_test_alone():
    """A command run within a test logs to a stream that is closed when the test ends."""
    before = list(logging.root.handlers)
    yield
    for handler in logging.root.handlers[:]:
        if handler not in before and type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)


@pytest.fixture
def appliance(run_appliance):
    """A running appliance with the usual devices."""
    return run_appliance()


@pytest.fixture
def web(appliance):
    """An HTTP client of the running appliance with an administrator's token."""
    headers = {"Authorization": f"Bearer {appliance.token()}"}
    with httpx.Client(base_url=appliance.url, headers=headers, trust_env=False) as client:
        yield client


def item(name="Wang^XiaoDong=王^小东", **texts):
    """A worklist item as DICOM JSON by keywords; a step attribute goes into the sequence."""
    step = {
        "ScheduledStationAETitle": "CT1",
        "Modality": "CT",
        "ScheduledProcedureStepStartDate": "20260705",
        "ScheduledProcedureStepStartTime": "0930",
    }
    step_keywords = {
        attribute.keyword
        for path, attribute in MWL_ATTRIBUTES.items()
        if len(path) == 2 and path[0] == STEP_SEQUENCE
    }
    outer = {"PatientName": name, "RequestedProcedureDescription": "CT chest"}
    for keyword, value in texts.items():
        (step if keyword in step_keywords else outer)[keyword] = value
    found = {k: {"vr": vr(k), "Value": values(k, v)} for k, v in outer.items()}
    inner = {k: {"vr": vr(k), "Value": values(k, v)} for k, v in step.items() if v is not None}
    found["ScheduledProcedureStepSequence"] = {"vr": "SQ", "Value": [inner]}
    return found


def vr(keyword):
    """The VR of a keyword."""
    return vr_of(tag_of(keyword))


def values(keyword, value):
    """A value, or several separated by backslashes, as DICOM JSON has them."""
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        return [value]
    names = ("Alphabetic", "Ideographic", "Phonetic")
    parts = value.split("\\")
    if vr(keyword) == "PN":
        return [{n: g for n, g in zip(names, part.split("="), strict=False) if g} for part in parts]
    return parts
