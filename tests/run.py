"""Run the tests: `python3 tests/run.py [--fresh] [pytest arguments]`.

Creates the virtual environment .venv-test, installs the project with its extra `test`, installs
the external programs of the tests if possible (apt-get on Debian and derivatives, npm), prints
which are available, runs pytest on all cores and exits with its status.
`--fresh` recreates the environment, `-n 0` uses one process. Requires only Python 3.11 or later.

Tests that need a missing program are skipped; with CI set they fail.
"""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv-test"
PEERS = ROOT / "tests" / "peers"
NODE_MODULES = PEERS / "node_modules"
DCMTK_TOOLS = ("findscu", "echoscu", "storescp", "dump2dcm", "wlmscpfs")
USUAL_PLACES = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/opt/homebrew/bin")
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ON_ALL_CORES = ("-n", "auto", "--dist", "worksteal")  # no core waits for the longest file
CHROME_ON_MACOS = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"


# Finding the external programs. Each function returns a full path, or None.


def find_dcmtk_tool(tool: str) -> str | None:
    """DCMTK's own `tool`; pynetdicom installs apps of the same names into the environment."""
    return next((path for path in places(tool) if "dcmtk" in version_of(path)), None)


def find_dcmtk() -> str | None:
    """The folder of DCMTK's tools if all the tests need are installed."""
    found = [find_dcmtk_tool(tool) for tool in DCMTK_TOOLS]
    return str(Path(found[0]).parent) if all(found) else None


def find_chromium() -> str | None:
    """Chromium or Chrome that starts (Ubuntu's package may only be a wrapper for snap)."""
    candidates = (path for name in CHROMIUM_NAMES for path in places(name))
    return next(
        (path for path in (*candidates, CHROME_ON_MACOS) if "Chrom" in version_of(path)), None
    )


def find_openssl() -> str | None:
    return shutil.which("openssl")


def find_node() -> str | None:
    return shutil.which("node")


def find_orthanc() -> str | None:
    """Orthanc, the archive of the tests."""
    return next((path for path in places("Orthanc") if "Orthanc" in version_of(path)), None)


def find_curl() -> str | None:
    """curl, for the examples of the README."""
    return next(places("curl"), None)


def find_nginx() -> str | None:
    """nginx, as the proxy before the pages."""
    return next(places("nginx"), None)


def find_zbarimg() -> str | None:
    """zbarimg, which reads codes on labels."""
    return next(places("zbarimg"), None)


def find_pdftoppm() -> str | None:
    """pdftoppm, which makes dots of a label as a printer does."""
    return next(places("pdftoppm"), None)


def find_faketime() -> str | None:
    """The library that gives a process another clock."""
    return next(map(str, Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


def find_node_module(name: str) -> str | None:
    """The folder of an npm module in tests/peers."""
    folder = NODE_MODULES / name
    return str(folder) if (folder / "package.json").is_file() else None


def find_chinese_font() -> str | None:
    """A font with Chinese characters for screenshots."""
    if not shutil.which("fc-list"):
        return None
    fonts = output_of(["fc-list", ":lang=zh-cn", "file"]).splitlines()
    return fonts[0].rstrip(": ") if fonts else None


def places(program: str) -> Iterator[str]:
    """Yield the paths of `program`: the usual places first, as an environment may change PATH."""
    for folder in (*USUAL_PLACES, *os.get_exec_path()):
        path = shutil.which(program, path=folder)
        if path:
            yield path


def version_of(path: str) -> str:
    """The output of `path --version`; empty if it is missing or does not start."""
    return output_of([path, "--version"])


def output_of(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


# Installing them.


@dataclass(frozen=True)
class Peer:
    """An external program of the tests, and its Debian packages."""

    name: str
    find: Callable[[], str | None]
    packages: tuple[str, ...] = ()


SYSTEM_PEERS = (
    Peer("dcmtk", find_dcmtk, ("dcmtk",)),
    Peer("chromium", find_chromium, ("chromium",)),
    Peer("openssl", find_openssl, ("openssl",)),
    Peer("curl", find_curl, ("curl",)),
    Peer("orthanc", find_orthanc, ("orthanc",)),
    Peer("nginx", find_nginx, ("nginx-light",)),
    Peer("zbarimg", find_zbarimg, ("zbar-tools",)),
    Peer("pdftoppm", find_pdftoppm, ("poppler-utils",)),
    Peer("faketime", find_faketime, ("faketime",)),
    Peer("node", find_node, ("nodejs", "npm")),
    Peer("fonts-noto-cjk", find_chinese_font, ("fontconfig", "fonts-noto-cjk")),
)
NODE_PEERS = (
    Peer("dcmjs-dimse", functools.partial(find_node_module, "dcmjs-dimse")),
    Peer("axe-core", functools.partial(find_node_module, "axe-core")),
)


def fetch_peers() -> None:
    """Install missing peers if possible, and print which are available."""
    reasons = fetch_system_peers([peer for peer in SYSTEM_PEERS if not peer.find()])
    for peer in SYSTEM_PEERS:
        report(peer, reasons.get(peer.name))
    reason = fetch_node_modules()
    for peer in NODE_PEERS:
        report(peer, reason)


def report(peer: Peer, reason: str | None) -> None:
    where = peer.find()
    if where:
        say(f"peer {peer.name}: {where}")
    else:
        fate = "will fail" if os.environ.get("CI") else "skipped"
        say(f"{fate}: tests that need {peer.name}: {reason or 'not found'}")


def fetch_system_peers(missing: Sequence[Peer]) -> dict[str, str]:
    """Install the packages of missing peers; return the reasons of failures by name."""
    if not missing:
        return {}
    reason = why_not_apt_get() or apt_get("update")
    if reason:
        return {peer.name: reason for peer in missing}
    return {peer.name: apt_get("install", *peer.packages) for peer in missing}


def why_not_apt_get() -> str:
    """Why system packages cannot be installed; empty if they can."""
    if not shutil.which("apt-get"):
        return "apt-get is not available"
    if os.geteuid() != 0 and not may_sudo():
        return "apt-get needs root, or sudo without a password"
    return ""


def may_sudo() -> bool:
    return bool(shutil.which("sudo")) and run_quietly(["sudo", "-n", "true"]) == ""


def apt_get(command: str, *packages: str) -> str:
    """Run apt-get non-interactively; return the reason of a failure, empty for success."""
    say(" ".join(["apt-get", command, *packages, "…"]))
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    options = ["--yes", "--no-install-recommends"] if command == "install" else []
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", command]
    return run_quietly([*sudo, *quiet, *options, *packages])


def fetch_node_modules() -> str:
    """Install tests/peers/package.json unless up to date; return why it failed, or nothing."""
    lock = PEERS / "package-lock.json"
    stamp = Stamp(NODE_MODULES / ".installed", PEERS / "package.json", lock)
    if stamp.is_current():
        return ""
    npm = shutil.which("npm")
    if not npm or not find_node():
        return "node and npm are not available"
    command = "ci" if lock.is_file() else "install"
    say(f"npm {command} in tests/peers …")
    reason = run_quietly([npm, command, "--no-audit", "--no-fund", "--ignore-scripts"], cwd=PEERS)
    if not reason:
        stamp.set()
    return reason


def run_quietly(command: Sequence[str], cwd: Path = ROOT) -> str:
    """Run `command`; return exit status and last line if it failed, empty for success."""
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode == 0:
        return ""
    lines = done.stdout.decode(errors="replace").split("\n")
    last_words = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"exit status {done.returncode}, {last_words}"


# The virtual environment.


def python_of_environment() -> Path:
    folder, name = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return ENVIRONMENT / folder / name


def make_environment(fresh: bool) -> None:
    """Create .venv-test unless it has this Python version, and install the project into it."""
    if fresh or not is_this_python(python_of_environment()):
        create_environment()
    stamp = Stamp(ENVIRONMENT / ".installed", ROOT / "pyproject.toml")
    if stamp.is_current():
        return
    say("pip install --editable .[test] …")
    pip = [python_of_environment(), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if subprocess.call([*pip, "install", "--editable", ".[test]"], cwd=ROOT):
        sys.exit("tests/run.py: pip could not install the project and its extra `test`")
    stamp.set()


def is_this_python(python: Path) -> bool:
    say_version = "import platform; print(platform.python_version())"
    return output_of([str(python), "-c", say_version]).strip() == platform.python_version()


def create_environment() -> None:
    say(f"virtual environment {ENVIRONMENT.name}, Python {platform.python_version()} …")
    command = [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)]
    if not run_quietly(command):
        return
    # Debian's python3 needs this package to create an environment
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    if not (why_not_apt_get() or apt_get("update")):
        apt_get("install", package)
    reason = run_quietly(command)
    if reason:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        sys.exit(f"tests/run.py: no virtual environment (is {package} installed?): {reason}")


class Stamp:
    """A file with the digest of the `sources` of an installation."""

    def __init__(self, path: Path, *sources: Path) -> None:
        self.path = path
        content = [source.read_bytes() for source in sources if source.is_file()]
        self.digest = hashlib.sha256(b"\0".join(content)).hexdigest()

    def is_current(self) -> bool:
        return self.path.is_file() and self.path.read_text() == self.digest

    def set(self) -> None:
        self.path.write_text(self.digest)


def say(line: str) -> None:
    print(line, flush=True)  # in order with the output of pip, npm and pytest


def main(arguments: Sequence[str]) -> int:
    fresh = "--fresh" in arguments
    make_environment(fresh)
    fetch_peers()
    pytest = [python_of_environment(), "-m", "pytest", *ON_ALL_CORES]
    return subprocess.call([*pytest, *(a for a in arguments if a != "--fresh")], cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
