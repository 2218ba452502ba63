"""Starts and stops minris, the servers it is compared with and those that it calls."""

import collections
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import entries
import load
import web as load_web
import wire

HERE = Path(__file__).resolve().parent
WLMSCPFS = "/usr/bin/wlmscpfs"  # in full: pynetdicom installs apps named like DCMTK's tools
ORTHANC = "/usr/sbin/Orthanc"
START_LIMIT_S, STOP_LIMIT_S, IMPORT_LIMIT_S = 60, 15, 3600
CONFIG = """\
[dicom]
ae_title = BENCH
host = 127.0.0.1
port = {dicom}
accept_unknown_devices = yes
[web]
host = 127.0.0.1
port = {web}
[store]
url = sqlite:///bench.db
"""


def free_port():
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((wire.HOST, 0))
        return probe.getsockname()[1]


def detached(log):
    """How programs are started: no terminal to ask on, no settings from the environment."""
    return {
        "env": {key: value for key, value in os.environ.items() if not key.startswith("MINRIS_")},
        "stdin": subprocess.DEVNULL,
        "stdout": log,
        "stderr": subprocess.STDOUT,
        "start_new_session": True,
    }


class Server:
    """A program that answers C-ECHO on a port; its output goes to a log."""

    def __init__(self, command, port, log):
        self.command, self.port, self.log = [*map(str, command)], port, log
        self.process = None

    def start(self):
        """Start it; the seconds until the first C-ECHO was answered."""
        begin = time.perf_counter()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, **detached(log))
        while time.perf_counter() - begin < START_LIMIT_S and self.process.poll() is None:
            with contextlib.suppress(OSError, wire.PeerError):
                load.echo(self.port)
                return time.perf_counter() - begin
            time.sleep(0.002)
        self.stop()
        raise RuntimeError(f"{self.command} did not start: {self.log.read_text()[-800:]}")

    def stop(self):
        """End it, politely first."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def restart(self):
        """Stop and start; the seconds until the first C-ECHO."""
        self.stop()
        return self.start()


class Box:
    """A folder with a config.ini, and the minris that runs by it.

    command  what starts it, without its subcommand
    devices  further sections of config.ini
    """

    def __init__(self, folder, command, name, devices=""):
        self.command, self.web_port, port = command, free_port(), free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
        self.config = ["--config", self.folder / "config.ini"]
        self.config[1].write_text(CONFIG.format(dicom=port, web=self.web_port) + devices)
        self.minris = Server([*command, "serve", *self.config], port, self.folder / "minris.log")

    def call(self, command):
        """Run a program on the folder to its end; the seconds."""
        begin = time.perf_counter()
        with self.minris.log.open("ab") as log:
            command = [*map(str, command)]
            code = subprocess.call(command, timeout=IMPORT_LIMIT_S, **detached(log))
        if code:
            raise RuntimeError(f"{command}: status {code}: {self.minris.log.read_text()[-800:]}")
        return time.perf_counter() - begin

    def token(self):
        """A new token of an administrator's."""
        command = [*map(str, [*self.command, "token", "bench", "--role", "admin", *self.config])]
        settings = detached(subprocess.PIPE) | {"stdout": subprocess.PIPE}
        done = subprocess.run(command, timeout=60, check=True, text=True, **settings)
        return done.stdout.strip().splitlines()[-1]

    def password(self):
        """That of the administrator of the first start, once there is one."""
        file = self.folder / "minris-admin-password.txt"
        begin = time.perf_counter()
        while not file.exists() and time.perf_counter() < begin + START_LIMIT_S:
            time.sleep(0.01)
        return file.read_text().strip()

    def fill(self, number, planted):
        """Write so many workitems into its store, `planted` of them by the standard query."""
        *python, path = self.command
        python = python or [path.with_name("python")]
        file = path if path.suffix == ".py" else "installed"
        return self.call([*python, HERE / "fill.py", file, self.config[1], number, planted])


class Site(Box):
    """A folder with so many entries, and minris and wlmscpfs with them loaded."""

    def __init__(self, folder, command, number, today, devices=""):
        super().__init__(folder, command, number, devices)
        self.number, peer_port = number, free_port()
        self.entries = list(entries.entries(number, today))
        self.import_s = self.load([*command, "import"])
        entries.write_worklist_files(self.folder / "wl", self.entries)
        peer = [WLMSCPFS, "-q", "-dhl", "-dfp", self.folder / "wl", "--max-associations", 200]
        self.wlmscpfs = Server([*peer, peer_port], peer_port, self.folder / "wlmscpfs.log")

    def load(self, command):
        """Import the entries into the store of minris; the seconds."""
        file = self.folder / "entries.json"
        entries.write_json(file, self.entries)
        return self.call([*command, file, *self.config])

    def in_turn(self, turn):
        """The servers' names and ports, each round in the other order."""
        pair = [("minris", self.minris.port), ("wlmscpfs", self.wlmscpfs.port)]
        return pair[:: -1 if turn % 2 else 1]

    def check(self, request, step_ids):
        """Insist that both servers answer the query with these entries and no others."""
        for name, port in self.in_turn(0):
            datasets = load.answers(port, request)
            right = sum(any(step_id in dataset for step_id in step_ids) for dataset in datasets)
            if not right == len(datasets) == len(step_ids):
                raise RuntimeError(f"{name}: {len(datasets)} answers, {right} of them right")

    def resident_mib(self, server):
        """Memory of a minris on this store once both doors have answered."""
        with contextlib.closing(http.client.HTTPConnection(wire.HOST, self.web_port, 10)) as web:
            web.request("GET", "/healthz")
            web.getresponse().read()
        return load.resident_mib(server.process.pid)


def stock_server(folder):
    """The pynetdicom server on a new database."""
    port = free_port()
    command = [sys.executable, HERE / "stock_scp.py", port, folder / "stock.db"]
    return Server(command, port, folder / "stock.log")


class Watchers(Server):
    """A program that plays so many watchers on one port, and writes down what each is told."""

    def __init__(self, folder, number):
        port = free_port()
        command = [sys.executable, HERE / "watchers.py", port]
        super().__init__(command, port, folder / "watchers.log")
        self.titles = [f"W{index:03}" for index in range(1, number + 1)]
        self.read = 0  # bytes of the log
        self.counts = collections.Counter()  # reports by AE title and workitem
        self.told = collections.defaultdict(dict)  # (n, workitem): when each had its n-th report

    def devices(self):
        """Their sections of config.ini."""
        return "".join(
            f"[device {title}]\nae_title = {title}\nhost = {wire.HOST}\nport = {self.port}\n"
            for title in self.titles
        )

    def last_told(self, uid, reports, patience_s=60):
        """When the last watcher had so many reports of a workitem, by time.perf_counter()."""
        begin = time.perf_counter()
        while len(told := self.told[reports, uid]) < len(self.titles):
            if time.perf_counter() > begin + patience_s:
                raise RuntimeError(f"only {len(told)} of the watchers were told")
            time.sleep(0.01)
            self.follow()
        return max(told.values())

    def follow(self):
        """Read what has been written down since."""
        with self.log.open("rb") as log:
            log.seek(self.read)
            new = log.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.read += len(whole)
        for title, uid, at in map(str.split, whole.decode().splitlines()):
            self.counts[title, uid] += 1
            self.told[self.counts[title, uid], uid][title] = float(at)


class SocketWatchers(Watchers):
    """A program that has so many WebSockets open, of an AE title each."""

    def __init__(self, folder, box, number):
        super().__init__(folder, number)
        self.log, self.box = folder / f"sockets-{number}.log", box
        self.command = [*map(str, [sys.executable, HERE / "web.py", box.web_port, number])]

    def start(self):
        """Subscribe them all, and open their WebSockets."""
        token = self.box.token()
        load_web.subscribe(self.box.web_port, token, self.titles)
        with self.log.open("wb") as log:
            settings = detached(log) | {"stdin": subprocess.PIPE}
            self.process = subprocess.Popen(self.command, **settings)
        self.process.stdin.write(f"{token}\n".encode())
        self.process.stdin.flush()
        begin = time.perf_counter()
        while not self.counts["open", str(len(self.titles))]:
            if self.process.poll() is not None or time.perf_counter() > begin + START_LIMIT_S:
                raise RuntimeError(f"WebSockets are not open: {self.log.read_text()[-800:]}")
            time.sleep(0.05)
            self.follow()


class Boards(Server):
    """A program that keeps so many boards open, and writes down when each was sent anew."""

    def __init__(self, folder, port, number, cookie):
        super().__init__(
            [sys.executable, HERE / "boards.py", port, number], port, folder / "boards"
        )
        self.number, self.cookie, self.seen = number, cookie, 0

    def start(self):
        """Open them all, and wait for the first board of each."""
        with self.log.open("wb") as log:
            settings = detached(log) | {"stdin": subprocess.PIPE}
            self.process = subprocess.Popen([*map(str, self.command)], **settings)
        self.process.stdin.write(f"{self.cookie}\n".encode())
        self.process.stdin.flush()
        self.last_sent()

    def last_sent(self, patience_s=60):
        """When the last board was sent anew that all boards were sent."""
        begin = time.perf_counter()
        self.seen += self.number
        while len(sent := self.log.read_text().splitlines()) < self.seen:
            if time.perf_counter() > begin + patience_s or self.process.poll() is not None:
                raise RuntimeError(f"{len(sent)} of {self.seen} boards: {sent[-3:]}")
            time.sleep(0.01)
        return float(sent[self.seen - 1])


class Archive(Server):
    """Orthanc, with its images in a folder."""

    def __init__(self, folder):
        port, self.http_port = free_port(), free_port()
        images = str(folder / "archive")
        settings = {
            "StorageDirectory": images, "IndexDirectory": images, "DicomAet": "ARCHIVE",
            "DicomPort": port, "DicomAlwaysAllowFind": True, "DicomCheckCalledAet": False,
            "HttpPort": self.http_port, "AuthenticationEnabled": False, "Plugins": [],
        }  # fmt: skip
        path = folder / "archive.json"
        path.write_text(json.dumps(settings))
        super().__init__([ORTHANC, path], port, folder / "archive.log")

    def devices(self, listen):
        """The sections of config.ini of it and of the scanner that stores in it."""
        sections = (("ARCHIVE", "archive", self.port), ("CT_1", "modality", listen))
        return "".join(
            f"[device {title}]\nae_title = {title}\nrole = {role}\nhost = {wire.HOST}\nport = {port}\n"
            for title, role, port in sections
        )


class EmptyWeb(Server):
    """The bottle application that does nothing."""

    def __init__(self, folder):
        port = free_port()
        super().__init__([sys.executable, HERE / "empty_web.py", port], port, folder / "empty.log")

    def start(self):
        """Start it, and wait for its first answer."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, **detached(log))
        begin = time.perf_counter()
        while time.perf_counter() < begin + START_LIMIT_S:
            with contextlib.suppress(OSError):
                load_web.repeat(self.port, "/", 1, 1)
                return
            time.sleep(0.05)
        raise RuntimeError(f"it did not start: {self.log.read_text()[-800:]}")
