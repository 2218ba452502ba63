"""The forms in which minris comes to a box: wheel, one lone file, one file with all libraries."""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import peers
import pytest

import minris
from minris.config.ini import load_config, settings_reference
from minris.conformance.statement import conformance_statement
from minris.intake import Intake
from minris.pages.reception import REGISTER_FIELDS
from minris.pages.site import PAGES
from minris.web.server import WebServer

ROOT = Path(__file__).parent.parent
SOURCES = ("minris.py", "src", "pyproject.toml", "README.md", "LICENSE", "config.ini", "static")


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """What a wheel is made of, in a folder of its own."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def wheel(source, tmp_path_factory):
    """The wheel, made by pip."""
    folder = tmp_path_factory.mktemp("wheel")
    here = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", *here, "-w", folder, source], check=True)
    [path] = folder.glob("minris-*.whl")
    return path


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# The wheel


def test_the_wheel_is_for_every_platform_and_of_this_version(wheel):
    assert wheel.name == f"minris-{minris.__version__}-py3-none-any.whl"


def test_the_wheel_has_the_program_the_static_files_and_config_ini(wheel):
    static = {f"minris/static/{name}" for name in files_of(ROOT / "static")}
    package = {f"minris/{name}" for name in files_of(ROOT / "src" / "minris")}
    package = {name for name in package if "__pycache__" not in name}
    assert {"minris/config.ini", *package, *static} <= names_in(wheel)


def test_the_wheel_has_nothing_else(wheel):
    others = {
        name
        for name in names_in(wheel)
        if not name.startswith(("minris/", f"minris-{minris.__version__}.dist-info/"))
    }
    assert others == set()


def test_the_wheel_brings_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        assert "minris = minris.cli:main" in archive.read(name).decode()


def test_the_config_ini_of_the_wheel_is_what_settings_prints(wheel):
    with zipfile.ZipFile(wheel) as archive:
        shipped = archive.read("minris/config.ini").decode()
    assert shipped == settings_reference()


@pytest.fixture
def unpacked(wheel, tmp_path):
    """The wheel as pip lays it into site-packages."""
    folder = tmp_path / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_an_installed_minris_finds_its_static_files(unpacked, tmp_path):
    script = "from minris.pages.static import FOLDER, static_folder; print(FOLDER, static_folder())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(unpacked / "minris"), str(unpacked / "minris" / "static")]


# As a program of its own, told all by the environment.

SETTINGS = {
    "MINRIS_DICOM_HOST": "127.0.0.1",
    "MINRIS_DICOM_PORT": "0",
    "MINRIS_DICOM_ACCEPT_UNKNOWN_DEVICES": "yes",
    "MINRIS_WEB_HOST": "127.0.0.1",
    "MINRIS_WEB_PORT": "0",
    "MINRIS_CLINIC_TIMEZONE": "UTC",
}


class Program:
    """A minris that runs by itself in a folder; `port` and `url` are where."""

    def __init__(self, line, folder, pid):
        self.port = int(re.search(r"DICOM \S+ at 127\.0\.0\.1:(\d+)", line)[1])
        self.url = re.search(r"pages at (\S+),", line)[1]
        self.folder, self.pid = folder, pid

    @contextlib.contextmanager
    def browser(self, **headers):
        """Somebody who has logged in as the first administrator."""
        password = (self.folder / "minris-admin-password.txt").read_text().strip()
        with httpx.Client(base_url=self.url, headers=headers, trust_env=False) as client:
            answer = client.post("/login", data={"name": "admin", "password": password})
            assert answer.status_code == 303
            yield client

    def register(self, client, **texts):
        """Send the form of reception as it is shown, filled in."""
        page = client.get("/register").text
        form = dict(re.findall(r'name="(\w+)"[^>]*value="([^"]*)"', page))
        form |= {row.name: form.get(row.name, "") for row in REGISTER_FIELDS} | texts
        form |= {"event": "anyway"}  # without birth date and sex
        return client.post("/register", data=form)

    def on_worklist(self, calling="CT1"):
        """The names that a machine finds."""
        found = peers.run_findscu(self.port, "MINRIS", calling, ["PatientName"])
        return [str(ds.PatientName) for ds in found.datasets]


@contextlib.contextmanager
def serving(command, folder, **environment):
    """Run `minris serve` in a folder until the end of the block."""
    with subprocess.Popen(
        [*command, "serve"],
        cwd=folder,
        env={**environment, **SETTINGS},
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as running:
        try:
            line = next((line for line in running.stdout if "pages at" in line), "")
            assert line, "it did not start"
            yield Program(line, folder, running.pid)
        finally:
            running.send_signal(signal.SIGTERM)
            assert running.wait(20) == 0


@pytest.fixture(scope="module")
def lone(tmp_path_factory):
    """minris.py copied alone into an empty folder, where the libraries are, and started there."""
    folder = tmp_path_factory.mktemp("lone")
    shutil.copy2(ROOT / "minris.py", folder)
    with serving([sys.executable, folder / "minris.py"], folder, **os.environ) as program:
        yield program


FORM = {"family_name": "Wang", "chinese_name": "王小东", "device": "CT1", "modality": "CT",
        "procedure": "CT chest"}  # fmt: skip


def test_a_lone_minris_py_registers_the_first_patient(lone):
    """Issue: a lone `minris.py` does everything too, plainly."""
    with lone.browser() as client:
        answer = lone.register(client, **FORM | {"given_name": "XiaoDong", "device": "CT1"})
    assert answer.status_code == 303
    assert lone.on_worklist() == ["Wang^XiaoDong=王^小东"]


@pytest.mark.parametrize("path", [page.path for page in PAGES if page.words])
def test_a_lone_minris_py_has_every_page_with_style_and_script(lone, path):
    with lone.browser() as client:
        answer = client.get(path)
    assert answer.status_code == 200
    assert 'href="/static/minris.css"' in answer.text
    assert "<h1>" in answer.text


@pytest.mark.parametrize(("language", "words"), [("en", "Register"), ("zh-CN", "登记")])
def test_a_lone_minris_py_speaks_the_language_of_the_browser(lone, language, words):
    with lone.browser(**{"Accept-Language": language}) as client:
        text = client.get("/").text
    assert f'<html lang="{language}" ' in text
    assert words in text


@pytest.mark.parametrize(
    "name",
    [
        "minris.css",
        "calendar.css",
        "paper.css",
        "waiting.css",
        "welcome.css",
        "minris.js",
        "board.js",
        "forms.js",
    ],
)
def test_a_lone_minris_py_gives_its_style_and_script(lone, name):
    given = httpx.get(f"{lone.url}/static/{name}", trust_env=False)
    assert given.text == (ROOT / "static" / name).read_text("utf-8")


def test_a_lone_minris_py_gives_nothing_else_of_its_folder(lone):
    for name in ("minris.py", "../minris.db", "i18n/zh-CN.json", "no.css"):
        assert httpx.get(f"{lone.url}/static/{name}", trust_env=False).status_code == 404


def test_a_language_that_lies_beside_a_lone_minris_py_is_offered(tmp_path):
    shutil.copy2(ROOT / "minris.py", tmp_path)
    folder = tmp_path / "static" / "i18n"
    folder.mkdir(parents=True)
    (folder / "eo.json").write_text('{"Log in": "Ensaluti"}')
    with serving([sys.executable, tmp_path / "minris.py"], tmp_path, **os.environ) as program:
        url = f"{program.url}/login"
        page = httpx.get(url, headers={"Accept-Language": "eo"}, trust_env=False).text
    assert '<html lang="eo" ' in page
    assert "Ensaluti" in page


def memory_of(pid):
    """The resident memory of a process, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: looks into /proc")
def test_a_lone_minris_py_that_serves_does_not_keep_its_syntax_tree(tmp_path):
    """It replaces itself by itself as a module; the process stays the same, as systemd wants it."""
    shutil.copy2(ROOT / "minris.py", tmp_path)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, tmp_path / "minris.py"]
    with serving(command, tmp_path, **environment) as program:
        status = httpx.get(f"{program.url}/healthz", trust_env=False).status_code
        assert (status, memory_of(program.pid) < 75) == (200, True)


# What it says where it cannot run.


def test_too_old_a_python_is_told_what_is_needed():
    pretend = "import sys; sys.version_info = (3, 9, 1, 'final', 0); sys.version = '3.9.1 (old)'"
    run = f"exec(open({str(ROOT / 'minris.py')!r}, encoding='utf-8').read(), {{'__name__': '__main__'}})"
    done = subprocess.run(
        [sys.executable, "-c", f"{pretend}\n{run}"], capture_output=True, text=True, check=False
    )
    assert done.stderr == "minris needs Python 3.11 or later, and this is Python 3.9.1\n"
    assert done.returncode == 1


@pytest.mark.parametrize("command", ["serve", "--version", "check"])
def test_missing_libraries_are_named_in_one_sentence(command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-S", ROOT / "minris.py", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    [line] = done.stderr.splitlines()
    assert line.startswith("minris: libraries are missing. Install them: ")
    assert " -m pip install pynetdicom pydicom peewee bottle " in line
    assert done.returncode == 1


def test_a_lone_minris_py_keeps_its_store_where_it_was_started(lone):
    assert (lone.folder / "minris.db").is_file()


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--version"], lambda: f"minris {minris.__version__}\n"),
        (["settings"], settings_reference),
        (["conformance"], lambda: conformance_statement(load_config(None))),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_lone_minris_py_prints(tmp_path, arguments, printed):
    shutil.copy2(ROOT / "minris.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "minris.py", *arguments],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == printed()


# One file with all libraries


def shiv(folder):
    """The command of shiv: of this environment, else installed into a folder."""
    if importlib.util.find_spec("shiv"):
        return [sys.executable, "-m", "shiv"], dict(os.environ)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--target", folder, "shiv"], check=True)
    return [sys.executable, "-m", "shiv"], {**os.environ, "PYTHONPATH": str(folder)}


@pytest.fixture(scope="session")
def pyz(source, tmp_path_factory):
    """minris.pyz, made by the documented command."""
    folder = tmp_path_factory.mktemp("pyz")
    command, environment = shiv(folder / "shiv")
    options = ["-c", "minris", "-o", folder / "minris.pyz", "--compile-pyc", "."]
    subprocess.run([*command, *options], cwd=source, env=environment, check=True)
    return folder / "minris.pyz"


@pytest.fixture
def box(pyz, tmp_path):
    """An empty folder of a fresh machine with nothing but minris.pyz: command and environment."""
    folder = tmp_path / "box"
    folder.mkdir()
    shutil.copy2(pyz, folder)
    python = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    return [python, "-I", "minris.pyz"], folder, {"HOME": str(folder)}


def run_pyz(box, *arguments):
    command, folder, environment = box
    done = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.long
def test_minris_pyz_plays_the_demo_in_an_empty_folder(box):
    """Issue: one file with minris.py, static/ and every library, that runs offline."""
    told = run_pyz(box, "demo", "--once")
    assert "The department is at work." in told


@pytest.mark.long
def test_minris_pyz_prints_its_settings(box):
    assert run_pyz(box, "settings") == settings_reference()


@pytest.mark.long
def test_minris_pyz_brings_the_first_patient_on_the_worklist(box):
    """Issue: copied alone into an empty folder without network: first patient on the worklist."""
    command, folder, environment = box
    with (
        serving(command, folder, **environment) as program,
        program.browser(**{"Accept-Language": "zh-CN"}) as client,
    ):
        assert program.register(client, **FORM | {"given_name": "XiaoDong"}).status_code == 303
        assert program.on_worklist() == ["Wang^XiaoDong=王^小东"]
        text = client.get("/").text
        assert "/static/minris.css" in text
        assert '<html lang="zh-CN" dir="ltr">' in text
        assert client.get("/static/minris.css").status_code == 200


def test_minris_pyz_is_made_as_the_readme_says():
    assert "-c minris -o minris.pyz --compile-pyc" in (ROOT / "README.md").read_text("utf-8")


def test_the_unit_bounds_the_memory_above_what_the_doors_let_in():
    """A body takes thirty times its bytes while it is worked at, and one of those is at a time."""
    unit = (ROOT / "systemd" / "minris.service").read_text("utf-8")
    most = int(re.search(r"^MemoryMax=(\d+)M$", unit, re.MULTILINE)[1])
    largest = load_config().web.maximum_body
    held = Intake().most + WebServer.BODIES
    assert most << 20 > (60 << 20) + held + 30 * largest
