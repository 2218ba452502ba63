"""A start without standard streams: pythonw, a service, a shell that closed them."""

import shlex
import signal
import subprocess
import time

import httpx
import pytest
from conftest import MADE, write_config
from peers import PATIENCE_S, free_port, run_echoscu
from test_appliance import ENVIRON, command_line

STARTS = [("package", ">&-"), ("package", "<&- >&- 2>&-"), ("package", ">/dev/full 2>/dev/full"),
          ("file", ">&- 2>&-")]  # fmt: skip


def in_shell(folder, words, ending):
    command = f"exec {shlex.join(map(str, words))} {ending}"
    return subprocess.Popen(["sh", "-c", command], cwd=folder, env=ENVIRON)


@pytest.mark.parametrize(("how", "ending"), STARTS)
def test_a_first_start_without_standard_streams_serves(tmp_path, how, ending):
    dicom, web = free_port(), free_port()
    write_config(tmp_path, f"[dicom]\nport = {dicom}\n[web]\nport = {web}")
    words = command_line("serve") if how == "package" else [command_line()[0], MADE, "serve"]
    with in_shell(tmp_path, words, ending) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{web}", trust_env=False) as client:
                form = {"name": "admin", "password": first_password(tmp_path, process)}
                assert client.get("/healthz").json()["status"] == "ok"
                assert client.post("/login", data=form).status_code == 303
            assert run_echoscu(dicom, "MINRIS", "CT1").exit_code == 0
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def first_password(folder, process):
    """The password in the file of the first start, once it is there."""
    path, until = folder / "minris-admin-password.txt", time.monotonic() + PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        if path.exists() and (text := path.read_text()):
            return text.strip()
        time.sleep(0.05)
    raise AssertionError("it did not start")


@pytest.mark.parametrize("command", ["check", "nonsense"])
def test_a_command_without_standard_streams_ends_as_with_them(tmp_path, command):
    write_config(tmp_path)
    shell = ["sh", "-c", f"exec {shlex.join(map(str, command_line(command)))} >&- 2>&-"]
    done = subprocess.run(shell, cwd=tmp_path, env=ENVIRON, timeout=60, check=False)
    assert done.returncode in (0, 2)
