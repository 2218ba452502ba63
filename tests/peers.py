"""Programs of others that the tests talk to: DCMTK, dcmjs-dimse, nginx, Chromium.

Each function that names one gives its full path, or leaves the test out (with CI set: fails it).
`python3 tests/run.py` installs them.
"""

import contextlib
import functools
import itertools
import json
import os
import queue
import random
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pydicom
import pydicom.charset
import pytest
import run as fetcher
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import PersonName

HOST = "127.0.0.1"
PATIENCE_S = 60  # for what comes within a second on a machine that does nothing else
DIMSE_MJS = fetcher.PEERS / "dimse.mjs"
TO_GB2312 = "\x1b$)A"  # PS3.3 C.12.1.1.2: designates ISO-IR 58 as G1

# What a CT asks of its worklist (IHE RAD TF-2 4.5), for findscu -k.
WORKLIST_KEYS = (
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
    "ScheduledProcedureStepSequence[0].Modality",
    "ScheduledProcedureStepSequence[0].ScheduledStationAETitle",
    "ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartDate",
    "ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartTime",
    "ScheduledProcedureStepSequence[0].ScheduledProcedureStepDescription",
    "ScheduledProcedureStepSequence[0].ScheduledProcedureStepID",
)


# Where they are.


def missing(peer: str, how: str = "run python3 tests/run.py") -> NoReturn:
    """Leave this test out for want of `peer`, or fail it where CI is set."""
    reason = f"needs {peer}: {how}"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def dcmtk(tool: str) -> str:
    """The full path of DCMTK's own `tool`."""
    return cached(fetcher.find_dcmtk_tool, tool) or missing("dcmtk", f"no {tool} of DCMTK found")


def findscu() -> str:
    return dcmtk("findscu")


def echoscu() -> str:
    return dcmtk("echoscu")


def dump2dcm() -> str:
    return dcmtk("dump2dcm")


def wlmscpfs() -> str:
    return dcmtk("wlmscpfs")


def chromium() -> str:
    """A browser for Playwright's `executable_path`."""
    return cached(fetcher.find_chromium) or missing("chromium", "neither Chromium nor Chrome found")


def faketime() -> str:
    """A library to preload, which gives a process another clock."""
    return cached(fetcher.find_faketime) or missing("faketime", "libfaketime not found")


def nginx() -> str:
    return cached(fetcher.find_nginx) or missing("nginx", "no nginx found")


def zbarimg() -> str:
    return cached(fetcher.find_zbarimg) or missing("zbarimg", "no zbarimg found")


def pdftoppm() -> str:
    return cached(fetcher.find_pdftoppm) or missing("pdftoppm", "no pdftoppm found")


def openssl() -> str:
    return cached(fetcher.find_openssl) or missing("openssl", "not on PATH")


def node() -> str:
    """node, with dcmjs-dimse in tests/peers/node_modules."""
    path = cached(fetcher.find_node) or missing("node", "not on PATH")
    if not fetcher.find_node_module("dcmjs-dimse"):
        missing("dcmjs-dimse", "not in tests/peers/node_modules, npm ci there")
    return path


def axe_core() -> str:
    """The text of axe-core, to be run in a page."""
    folder = fetcher.find_node_module("axe-core")
    if not folder:
        missing("axe-core", "not in tests/peers/node_modules, npm ci there")
    return Path(folder, "axe.min.js").read_text(encoding="utf-8")


@functools.cache
def cached(find: Any, *arguments: str) -> str | None:
    return find(*arguments)


class Ports:
    """A block of ports for this process alone, counted up.

    Whoever holds the first port of a block has the others. So the workers of one run share
    nothing, nor do two runs on one machine; the system frees the block when the process ends. No
    block lies where the system looks for a port for whoever asks for any.
    """

    BLOCKS = range(20_000, 32_600, 200)
    ANY_PORT = Path("/proc/sys/net/ipv4/ip_local_port_range")  # elsewhere from 49152: RFC 6335

    def __init__(self) -> None:
        first, last = 49_152, 65_535
        if self.ANY_PORT.is_file():
            first, last = map(int, self.ANY_PORT.read_text().split())
        blocks = [range(at, at + self.BLOCKS.step) for at in self.BLOCKS]
        outside = [block for block in blocks if block[-1] < first or last < block[0]]
        random.shuffle(outside)
        self.first, block = next(
            (held, block) for block in outside if (held := bound("127.0.0.1", block[0]))
        )
        self.ports = itertools.cycle(block[1:])

    def next(self) -> int:
        """The next port of the block that nobody has."""
        while True:
            port = next(self.ports)
            if found := bound("", port):
                found.close()
                return port


def bound(host: str, port: int) -> socket.socket | None:
    """A socket that has this port, None if it is taken."""
    found = socket.socket()
    try:
        found.bind((host, port))
    except OSError:
        found.close()
        return None
    return found


@functools.cache
def ports() -> Ports:
    return Ports()


def free_port() -> int:
    """A TCP port that nobody listens on, nor will, but who is told of it: see Ports."""
    return ports().next()


# DCMTK.


@dataclass(frozen=True)
class Findings:
    """What findscu was told.

    datasets   the answers, in order
    status     of the last response, None if none came (no association, peer fell silent)
    statuses   of all responses, FF00 and FF01 among them
    exit_code  findscu's own
    log        what findscu printed at its debug level
    """

    datasets: list[Dataset]
    status: int | None
    statuses: list[int]
    exit_code: int
    log: str


def run_findscu(
    port: int,
    called: str,
    calling: str,
    keys: Sequence[str] | Dataset,
    *,
    character_set: str | None = None,
    options: Sequence[str] = (),
    host: str = HOST,
    timeout_s: float = PATIENCE_S,
) -> Findings:
    """Query a worklist with findscu -W.

    keys           as for -k: "PatientID", "PatientName=Wang*", "(0008,0060)=CT"; or a data set
    character_set  Specific Character Set of the query (0008,0005), in which keys are encoded;
                   a data set says its own
    options        further ones of findscu: ["-xi"], ["--cancel", "2"], ["+tls", key, certificate]
    """
    with tempfile.TemporaryDirectory(prefix="findscu-") as folder:
        answers = Path(folder, "answers")
        answers.mkdir()
        query = query_arguments(keys, character_set, Path(folder, "query.dcm"))
        switches = ["-W", "-d", "-X", "-od", answers, "-aet", calling, "-aec", called, *options]
        command = [findscu(), *switches, host, str(port), *query]
        done = run_tool(command, timeout_s)
        files = sorted(answers.iterdir(), key=lambda path: int(re.sub(r"\D", "", path.name)))
        datasets = [whole(path) for path in files]
    statuses = [int(code, 16) for code in re.findall(r"DIMSE Status +: 0x([0-9a-f]{4})", done.log)]
    status = statuses[-1] if statuses else None
    return Findings(datasets, status, statuses, done.exit_code, done.log)


def query_arguments(
    keys: Sequence[str] | Dataset, character_set: str | None, path: Path
) -> list[bytes | Path]:
    """`keys` as findscu wants them: options in the bytes of their character set, or a file."""
    if isinstance(keys, Dataset):
        pydicom.dcmwrite(path, keys, little_endian=True, implicit_vr=False)
        return [path]
    arguments: list[bytes | Path] = []
    if character_set:
        arguments += [b"-k", f"SpecificCharacterSet={character_set}".encode()]
    for key in keys:
        arguments += [b"-k", encoded(key, character_set)]
    return arguments


def encoded(key: str, character_set: str | None) -> bytes:
    """`key` in the bytes of Specific Character Set `character_set`."""
    encodings = pydicom.charset.convert_encodings((character_set or "").split("\\"))
    text = pydicom.charset.encode_string(key, encodings)
    if "ISO 2022 IR 58" not in (character_set or ""):
        return text
    # pydicom 3.0.2 leaves out the escape sequence, wanted anew after each delimiter: PS3.5 K.2
    parts = re.split(rb"([\\^=])", text)
    return b"".join(part if part.isascii() else TO_GB2312.encode() + part for part in parts)


def whole(path: Path) -> Dataset:
    """The data set in `path`, read to its end: the file is gone afterwards."""
    ds = pydicom.dcmread(path, force=True)
    ds.walk(strip_escape_sequence)
    return ds


def strip_escape_sequence(_ds: Dataset, element: DataElement) -> None:
    """pydicom 3.0.2 leaves the escape sequence of ISO 2022 IR 58 in what it has decoded."""
    if isinstance(element.value, str | PersonName) and TO_GB2312 in str(element.value):
        element.value = str(element.value).replace(TO_GB2312, "")


@dataclass(frozen=True)
class Done:
    """How a command line tool ended, and what it printed."""

    exit_code: int
    log: str


def run_echoscu(
    port: int,
    called: str,
    calling: str,
    *,
    options: Sequence[str] = (),
    host: str = HOST,
    timeout_s: float = PATIENCE_S,
) -> Done:
    """Verify with echoscu; exit code 0 if the peer took the association and answered."""
    command = [echoscu(), "-d", "-aet", calling, "-aec", called, *options, host, str(port)]
    return run_tool(command, timeout_s)


def run_tool(command: Sequence[str | bytes | Path], timeout_s: float = PATIENCE_S) -> Done:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout_s,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(errors="replace"))


@contextlib.contextmanager
def serving_worklist(folder: Path) -> Iterator[int]:
    """wlmscpfs on the worklist files in `folder`/AETITLE/*.wl; gives its port."""
    port = free_port()
    options = ["--single-process", "-dhl", "--keep-char-set", "-dfp", str(folder)]
    with process([wlmscpfs(), *options, str(port)]):
        wait_for_port(port)
        yield port


@contextlib.contextmanager
def process(command: Sequence[str], **how: Any) -> Iterator[subprocess.Popen]:
    """`command` in the background, ended when the test leaves."""
    how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **how}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **how) as running:
        try:
            yield running
        finally:
            running.terminate()


def wait_for_port(port: int, timeout_s: float = PATIENCE_S) -> None:
    """Return when something listens on `port` of 127.0.0.1."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection((HOST, port), timeout=timeout_s).close()
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on port {port} after {timeout_s} s")
        time.sleep(0.05)


# nginx.

NGINX_CONFIG = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    {temporary}
    server {{ listen 127.0.0.1:{port}; {server} }}
}}
"""


@contextlib.contextmanager
def serving_nginx(folder: Path, server: str) -> Iterator[str]:
    """nginx with a server block, all else as it is by default; gives its address."""
    port = free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    path = folder / "nginx.conf"
    values = {"folder": folder, "port": port, "server": server, "temporary": temporary}
    path.write_text(NGINX_CONFIG.format(**values))
    with process([nginx(), "-p", str(folder), "-e", f"{folder}/error.log", "-c", str(path)]):
        wait_for_port(port)
        yield f"http://{HOST}:{port}"


# pynetdicom.


def leave_answers(association: Any) -> None:
    """Let an association of pynetdicom, which asks alone, take nothing but what it waits for.

    pynetdicom 3.0.4: its reactor, woken at the wrong moment, takes a response and aborts.
    """
    take = association.dimse.get_msg
    association.dimse.get_msg = lambda block=False: take(block) if block else (None, None)


# dcmjs-dimse.


def run_dimse(
    port: int,
    operations: Sequence[dict[str, Any]] | Sequence[Sequence[dict[str, Any]]],
    calling: str = "DIMSEJS",
    called: str = "MINRIS",
    *,
    host: str = HOST,
    timeout_s: float = PATIENCE_S,
) -> list[dict[str, Any]]:
    """Play `operations` with dcmjs-dimse; its responses in order, as tests/peers/dimse.mjs says.

    operations  a list for one association, or a list of lists for one association each:
                {"op": "n-set", "instance": uid, "charset": "GB18030", "dataset": {…}}
    """
    done = subprocess.run(
        [node(), DIMSE_MJS, host, str(port), calling, called],
        input=json.dumps(operations).encode(),
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace"))
    return [json.loads(line) for line in done.stdout.splitlines()]


class EventListener:
    """A modality that waits for N-EVENT-REPORT; `port` is where."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self.port: int = json.loads(next(lines))["listening"]
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(lines,), daemon=True)
        self._reader.start()

    def _read(self, lines: Iterator[bytes]) -> None:
        for line in lines:
            self._events.put(json.loads(line))

    def wait_for_end(self, timeout_s: float = PATIENCE_S) -> None:
        """Return when the modality has ended and its last line is read."""
        self._reader.join(timeout_s)

    def next_event(self, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """The next event: event, sopClass, sopInstance, dataset, calling, called."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no event within {timeout_s} s") from None


@contextlib.contextmanager
def listening_dimse(ae_title: str = "DIMSEJS") -> Iterator[EventListener]:
    """dcmjs-dimse as SCP on a free port; takes any association, C-ECHO and N-EVENT-REPORT."""
    command = [node(), str(DIMSE_MJS), "listen", "0", ae_title]
    with process(command, stdout=subprocess.PIPE) as running:
        listener = EventListener(iter(running.stdout))
        try:
            yield listener
        finally:
            running.terminate()
            listener.wait_for_end()
