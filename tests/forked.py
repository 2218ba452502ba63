"""Programs that need not load minris: forked from a process that has it loaded.

Tests start hundreds of programs, minris itself and scripts that use it; to load it takes each
longer than all that it does then. Such a process is a child of ours as any other, with its own
arguments, folder, environment and streams, signals and exit status. What is to meet the start of
Python itself (options such as -B, PYTHON… but for a path) has a process that is started as usual.
"""

import ctypes
import functools
import gc
import importlib
import inspect
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = (
    sys.executable, "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); import minris; sys.exit(minris.main())",
)  # fmt: skip
LATER = ("a2wsgi", "apscheduler.schedulers.background", "apscheduler.triggers.cron", "bottle",
         "h11", "pynetdicom", "pypinyin", "uvicorn.protocols.http.h11_impl", "wsproto")  # fmt: skip
MOST = 1 << 18  # bytes of a request, its environment among them
SUBREAPER = 36  # prctl(2)

Usual = subprocess.Popen
_how = inspect.signature(Usual._execute_child)
_one_by_one = threading.Lock()
_running: list[Usual] = []


class Program(Usual):
    """A process; forked where its command is a script for this Python that uses minris."""

    def _execute_child(self, *how: Any) -> None:
        told = _how.bind(self, *how).arguments
        words, environ = told["args"], dict(os.environ if told["env"] is None else told["env"])
        if not is_forkable(words, environ):
            super()._execute_child(*how)
            return
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        streams = [told["p2cread"], told["c2pwrite"], told["errwrite"]]
        streams = [number if fd == -1 else fd for number, fd in enumerate(streams)]
        request = {"arguments": list(map(str, words)), "environ": environ, "folder": str(told["cwd"] or Path.cwd()),
                   "session": told["start_new_session"]}  # fmt: skip
        try:
            self.pid = fork(request, streams)
            self._child_created = True
        finally:
            self._close_pipe_fds(*(told[end] for end in ends))


def is_forkable(words: Any, environ: dict[str, str]) -> bool:
    """Whether it is a script that uses minris, and asks nothing else of Python's own start."""
    if not sys.platform.startswith("linux") or not isinstance(words, list) or len(words) < 3:
        return False
    is_ours = words[:2] == [sys.executable, "-c"] and "minris" in words[2]
    special = {k for k in environ if k.startswith(("FAKETIME", "LD_", "PYTHON"))} - {"LD_PRELOAD"}
    usual = {k for k in special if environ[k] == os.environ.get(k)}
    if environ.get("PYTHONPATH") in (str(ROOT), str(ROOT / "src")):
        usual.add("PYTHONPATH")
    return is_ours and special == usual


def fork(request: dict[str, Any], streams: list[int]) -> int:
    """A process that runs a script: its id. It is our child: whose parent ends falls to us."""
    prctl = ctypes.CDLL(None).prctl
    with _one_by_one:
        channel = loaded(request["environ"].get("LD_PRELOAD", ""))
        prctl(SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(channel, [json.dumps(request).encode()], streams)
            number, _ = channel.recv(100), channel.recv(100)
        finally:
            prctl(SUBREAPER, 0, 0, 0, 0)
    return int(number)


@functools.cache
def loaded(preload: str) -> socket.socket:
    """The way to the process that has it loaded, after a library; it ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        environ = os.environ | ({"LD_PRELOAD": preload} if preload else {})
        command = [sys.executable, __file__, str(theirs.fileno())]
        _running.append(
            Usual(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environ)
        )
    return ours


# In the process that has it loaded.


def requests(channel: socket.socket) -> Iterator[tuple[dict[str, Any], list[int]]]:
    while True:
        text, streams, *_ = socket.recv_fds(channel, MOST, 3)
        if not text:
            return
        yield json.loads(text), streams


def is_forked(channel: socket.socket) -> bool:
    """Fork twice, and tell the number; whether this is the grandchild, whose parent has ended."""
    parent = os.fork()
    if not parent:
        child = os.fork()
        if child:
            channel.send(str(child).encode())
            os._exit(0)
        return True
    os.waitpid(parent, 0)
    channel.send(b"it has no parent but ours")
    return False


def begin(request: dict[str, Any], streams: list[int], opened: list[int]) -> None:
    """Be as Python is when it has just started."""
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    for fd in opened:
        os.close(fd)
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environ"])
    time.tzset()
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    sys.stderr.reconfigure(errors="backslashreplace", line_buffering=True)
    sys.orig_argv = request["arguments"]
    sys.argv = ["-c", *request["arguments"][3:]]


def main() -> None:
    sys.modules["requests"] = None  # a test tool brings it, and pydicom would import it
    os.environ["PYPINYIN_NO_PHRASES"] = "true"  # as main() of minris has it, before the import
    for name in ("made", *LATER):
        importlib.import_module(name)
    sys.path[0] = ""
    gc.freeze()
    channel = socket.socket(fileno=int(sys.argv[1]))
    for request, streams in requests(channel):
        if is_forked(channel):
            begin(request, streams, [channel.detach(), *streams])
            exec(sys.orig_argv[2], {"__name__": "__main__"})
            return
        for fd in streams:
            os.close(fd)


if __name__ == "__main__":
    main()
