"""What is written for people, held against the program."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest

from minris.cli import build_parser
from minris.config.ini import ConfigError, load_config, settings_reference
from minris.config.settings import SETTINGS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


# config.ini.


def test_config_ini_is_what_settings_prints():
    assert (ROOT / "config.ini").read_text("utf-8") == settings_reference()


def test_config_ini_changes_nothing(tmp_path):
    """Every setting stands there as a remark, with its default."""
    shipped, defaults = load_config(ROOT / "config.ini"), load_config()
    for section in {setting.section for setting in SETTINGS}:
        assert getattr(shipped, section) == getattr(defaults, section)
    assert shipped.devices == {}


def test_config_ini_with_every_remark_taken_away_is_good(tmp_path):
    """Whoever takes the # from a line has a setting that is accepted."""
    text = (ROOT / "config.ini").read_text("utf-8")
    text = re.sub(r"(?m)^#(\[|\w+ =)", r"\1", text).replace("ae_title =\n", "ae_title = CT1\n")
    (tmp_path / "config.ini").write_text(text, "utf-8")
    try:
        load_config(tmp_path / "config.ini")
    except ConfigError as error:
        pytest.fail(str(error))


# The README.


def shell_commands():
    """Each command of the README, in code blocks and in running text, as its words."""
    blocks = re.findall(r"^[ \t]*```(?:sh|bash|console)\n(.*?)^[ \t]*```", README, re.S | re.M)
    inline = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"```.*?```", "", README, flags=re.S))
    for text in (*blocks, *inline):
        for line in text.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|;|\|", line.partition(" # ")[0]):
                try:
                    yield shlex.split(command)
                except ValueError:
                    continue  # a remark with an apostrophe


def own_commands():
    """The arguments of each call of minris in the README."""
    found = []
    for words in shell_commands():
        for at, word in enumerate(words):
            called = re.fullmatch(r"(\S*/)?minris(\.py|\.pyz)?", word)
            if called and words[at - 1] not in ("-c", "-o"):  # made by shiv, not run
                arguments = words[at + 1 :]
                if ">" in arguments:
                    arguments = arguments[: arguments.index(">")]
                found.append(tuple(word.rstrip("…") for word in arguments))
                break
    return sorted(set(found))


def test_the_readme_has_commands():
    """Else the tests below would hold for nothing."""
    assert ("demo",) in own_commands()
    assert len(own_commands()) >= 5


@pytest.mark.parametrize("arguments", own_commands(), ids=" ".join)
def test_a_command_of_the_readme_is_understood(arguments):
    build_parser().parse_args(list(arguments))


def test_the_scripts_of_the_readme_are_there():
    named = {word for words in shell_commands() for word in words if word.startswith("tests/")}
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_libraries_of_the_readme_are_enough():
    [line] = re.findall(r"pip install ([a-z0-9 -]*pynetdicom[a-z0-9 -]*)", README)
    needed = {
        re.match(r"[\w-]+", one)[0]
        for one in project()["dependencies"]
        if "sys_platform" not in one
    }
    brought_along = {"pydicom", "h11"}  # by pynetdicom and uvicorn
    assert needed - brought_along <= set(line.split())


@pytest.mark.parametrize(
    "block", re.findall(r"^[ \t]*```ini\n(.*?)^[ \t]*```", README, re.S | re.M)
)
def test_a_configuration_of_the_readme_is_good(tmp_path, block):
    path = tmp_path / "config.ini"
    path.write_text(re.sub(r"(?m)^ +", "", block), "utf-8")
    config = load_config(path)
    assert config.devices


@pytest.mark.parametrize("section", sorted(set(re.findall(r"`\[(\w+)\] (\w+)`", README))), ids=str)
def test_a_setting_of_the_readme_is_there(section):
    assert section in {(setting.section, setting.key) for setting in SETTINGS}


def test_the_addresses_of_the_readme_are_there(appliance):
    paths = set(re.findall(r"[ `0-9](/(?:api|register|login|healthz|metrics)\b[^\s`\"?]*)", README))
    assert "/register" in paths
    with httpx.Client(base_url=appliance.url, trust_env=False) as client:
        codes = {
            path: client.get(path.replace("{study_instance_uid}", "2.25.1")).status_code
            for path in paths
        }
    assert [path for path, code in codes.items() if code in (404, 405)] == []


def test_the_readme_has_nothing_left_to_fill_in():
    assert re.findall(r"(?m)^[A-Z]{6,}$|TODO|FIXME|XXX", README) == []


def project():
    """The table [project] of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_the_header_of_the_file_asks_for_what_the_package_asks_for():
    """PEP 723, for `uv run minris.py`."""
    block = re.search(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", (ROOT / "minris.py").read_text())
    header = tomllib.loads("".join(line[2:] + "\n" for line in block[1].splitlines()))
    assert sorted(header["dependencies"]) == sorted(project()["dependencies"])
    assert header["requires-python"] == project()["requires-python"]


def dicomweb_commands():
    """The commands of the README's chapter on DICOMweb."""
    chapter = README.partition("\n## DICOMweb\n")[2].partition("\n## ")[0]
    return "".join(re.findall(r"^```sh\n(.*?)^```", chapter, re.S | re.M))


def test_the_lines_with_curl_work_as_printed(appliance, tmp_path):
    commands = dicomweb_commands().replace("http://127.0.0.1:8080", appliance.url)
    assert commands.count("curl ") == 11
    assert appliance.url in commands
    folder = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=tmp_path,
        env={"PATH": f"{folder}:/usr/bin:/bin", "NO_PROXY": "*", "LANG": "C.UTF-8"},
        capture_output=True,
        timeout=60,
    )
    told = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, done.stderr
    assert told.count("HTTP/1.1 201 Created") == 2, told
    assert (
        f"content-location: {appliance.url.replace('http', 'ws')}/dicom-web/subscribers/WS1" in told
    )
    assert '"Ideographic": "王^小东"' in told
    assert 'keyword="ProcedureStepState"' in told
    assert '"There is no such performed procedure step"' in told or '"status": "0112"' in told
    assert told.count('"status"') == 1  # nothing else was refused
    events = re.findall(r'"00001002": {"vr": "US", "Value": \[(\d)\]}', told)
    assert events == ["1", "1", "3", "1"]
    assert '"00741000": {"vr": "CS", "Value": ["COMPLETED"]}' in told
