"""CONFIG: what config.ini says, and every mistake in it at once."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MADE, made_tree

from minris.cli import main
from minris.config.ini import (
    Config,
    ConfigError,
    Device,
    load_config,
    read_setting,
    settings_reference,
)
from minris.config.settings import DEVICE_SETTINGS, PAGE_SETTINGS, SETTINGS, Setting
from minris.standard.dictionary import tag_of, value_problem, vr_of

ALL_SETTINGS = [*SETTINGS, *DEVICE_SETTINGS]
TREE = list(ast.walk(made_tree()))
NAMES_IN_SOURCE = {node.attr for node in TREE if isinstance(node, ast.Attribute)} | {
    node.value for node in TREE if isinstance(node, ast.Constant) and isinstance(node.value, str)
}

GOOD_VALUES = {
    "bool": [("yes", True), ("No", False), ("on", True), ("0", False)],
    "int 0 65535": [("0", 0), ("104", 104), ("65535", 65535)],
    "seconds 0.1 600": [("0.5", 0.5), ("30", 30.0)],
    "ae": [("MINRIS", "MINRIS"), ("CT room 1", "CT room 1"), ("A" * 16, "A" * 16)],
    "aes 8": [("CT1, CT2", ("CT1", "CT2")), ("US1", ("US1",))],
    "zone": [("Asia/Shanghai", "Asia/Shanghai"), ("UTC", "UTC"), ("", "")],
    "language": [("ZH-cn", "zh-CN"), ("pt-br", "pt-BR"), ("de", "de")],
    "states": [("completed, NO SHOW", {"COMPLETED", "NO SHOW"}), ("", frozenset())],
    "charset": [
        ("", ()),
        ("GB18030", ("GB18030",)),
        ("ISO_IR 192", ("ISO_IR 192",)),
        ("ISO_IR 100", ("ISO_IR 100",)),
    ],
    "store": [("sqlite:///minris.db", "sqlite:///minris.db")],
    "url": [("", ""), ("https://ris.clinic.example/", "https://ris.clinic.example")],
    "id 16": [("{yy}{month}{day}{number:04}", "{yy}{month}{day}{number:04}")],
}
BAD_VALUES = {
    "bool": ["maybe", "", "2"],
    "int 0 65535": ["", "-1", "65536", "1e4", "eleven", "104.0", "0x68", "1 1"],
    "seconds 0.1 600": ["", "0", "601", "nan", "inf", "soon"],
    "ae": ["", " ", "A" * 17, "CT\\1", "放射科", "CT\t1", "CT1, CT2"],
    "aes 8": ["", ",", "CT1, " + "A" * 17, ", ".join(f"CT{n}" for n in range(9))],
    "zone": ["Shanghai", "Asia", "../../etc/passwd", "UTC+8", "Asia/Shanghai\0"],
    "language": ["", "e", "English", "zh_CN"],
    "states": ["FINISHED", "COMPLETED; CANCELED"],
    "charset": ["UTF-8", "ISO_IR 192\\GB18030", "latin1", "ISO_IR 999"],
    "store": ["", "minris.db", "sqlite:///", "postgresql://localhost/minris"],
    "url": ["ris.clinic.example", "ftp://ris.clinic.example", "https://", "http://[::1"],
    "id 16": [
        "",
        "A0001",
        "{number:017}",
        "A{number} {day}",
        "检{number}",
        "{num}",
        "{}",
        "{number",
        "{number:q}",
        "{number.x}",
        "{number[0]}",
        "A\\{number}",
    ],
}


def setting(kind: str) -> Setting:
    return Setting("dicom", "key", "", kind, "")


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.ini"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def problems_of(folder: Path, text: str | bytes, environ=None) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(write(folder, text), environ or {})
    assert str(error.value) == "\n".join(error.value.problems)
    return error.value.problems


# Kinds


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(kind, *one) for kind, values in GOOD_VALUES.items() for one in values],
)
def test_a_value_is_read(kind, text, value):
    assert read_setting(setting(kind), text) == value


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in BAD_VALUES.items() for text in texts]
)
def test_a_value_is_refused(kind, text):
    with pytest.raises(ValueError):
        read_setting(setting(kind), text)


def test_too_many_ae_titles_are_not_called_too_few():
    with pytest.raises(ValueError) as error:
        read_setting(setting("aes 2"), "CT1, CT2, CT3")
    assert "no AE title" not in str(error.value)


def test_an_identifier_that_grows_past_its_vr_is_refused():
    """Accession Number (0008,0050) has 16 characters, on the tenth exam of the day too."""
    with pytest.raises(ValueError):
        read_setting(setting("id 16"), "LAKESID{year}{month}{day}{number}")


# The table


@pytest.mark.parametrize("one", ALL_SETTINGS, ids=lambda one: f"{one.section} {one.key}")
def test_a_default_is_in_order(one):
    if one.key == "ae_title" and one.section == "device":
        with pytest.raises(ValueError, match="AE title"):
            read_setting(one, one.default)
    else:
        read_setting(one, one.default)


@pytest.mark.parametrize("one", ALL_SETTINGS, ids=lambda one: f"{one.section} {one.key}")
def test_a_setting_says_what_it_is_for_in_one_line(one):
    assert 5 < len(one.meaning) < 110
    assert not one.meaning.endswith(".")


@pytest.mark.parametrize("one", ALL_SETTINGS, ids=lambda one: f"{one.section} {one.key}")
def test_a_setting_is_looked_at_somewhere(one):
    assert one.key in NAMES_IN_SOURCE


def test_a_setting_stands_once():
    assert len({(one.section, one.key) for one in ALL_SETTINGS}) == len(ALL_SETTINGS)


def test_a_section_stands_together():
    order = [one.section for one in SETTINGS]
    assert order == sorted(order, key=list(dict.fromkeys(order)).index)


# Defaults and the reference


def values_of(config: Config) -> dict[str, dict]:
    names = dict.fromkeys(one.section for one in SETTINGS)
    return {name: vars(getattr(config, name)) for name in names}


def test_without_a_file_all_is_as_the_table_has_it():
    values = values_of(load_config())
    assert values == {
        name: {one.key: read_setting(one, one.default) for one in SETTINGS if one.section == name}
        for name in values
    }


def test_the_printed_reference_changes_nothing(tmp_path):
    assert values_of(load_config(write(tmp_path, settings_reference()))) == values_of(load_config())


def test_the_printed_reference_without_its_hashes_says_the_defaults(tmp_path):
    said = re.sub(r"^#(?=\w+ =|\[)", "", settings_reference(), flags=re.M)
    said = said.replace("\nae_title =\n", "\nae_title = CT1\n")
    config = load_config(write(tmp_path, said))
    assert values_of(config) == values_of(load_config())
    device = Device.from_settings("CT room 1", config.devices["CT room 1"])
    assert device == Device("CT room 1", ("CT1",))


@pytest.mark.parametrize("one", ALL_SETTINGS, ids=lambda one: f"{one.section} {one.key}")
def test_the_printed_reference_has_every_setting_with_its_meaning(one):
    page = " (page)" if one in PAGE_SETTINGS else ""
    line = f"# {one.meaning}{page}\n#{one.key} = {one.default}".rstrip()
    assert f"\n{line}\n" in settings_reference()


# Reading


@pytest.mark.parametrize("one", SETTINGS, ids=lambda one: f"{one.section} {one.key}")
def test_every_setting_of_a_file_is_checked(one, tmp_path):
    wrong = {"text": None, "secret": None}.get(one.kind, "\\?!")
    if wrong is None:
        config = load_config(write(tmp_path, f"[{one.section}]\n{one.key} =\n"))
        assert getattr(getattr(config, one.section), one.key) == ""
    else:
        (problem,) = problems_of(tmp_path, f"[{one.section}]\n{one.key} = {wrong}\n")
        assert problem.startswith(f"[{one.section}] {one.key}: '\\\\?!' ")


def test_a_file_is_read(tmp_path):
    text = "[dicom]\nae_title = LAKESIDE\nport = 104\n[clinic]\nname = 湖畔诊所\n"
    config = load_config(write(tmp_path, text))
    assert (config.dicom.ae_title, config.dicom.port) == ("LAKESIDE", 104)
    assert config.clinic.name == "湖畔诊所"
    assert config.web.port == 8080


def test_a_file_of_notepad_is_read(tmp_path):
    """It puts a byte order mark in front and ends lines with CR and LF."""
    text = b"\xef\xbb\xbf[dicom]\r\nport = 104\r\n"
    assert load_config(write(tmp_path, text)).dicom.port == 104


def test_percent_signs_and_dollars_are_plain(tmp_path):
    text = "[clinic]\nname = 100% ${care} %(here)s\n"
    assert load_config(write(tmp_path, text)).clinic.name == "100% ${care} %(here)s"


def test_an_empty_value_of_a_text_is_empty(tmp_path):
    assert load_config(write(tmp_path, "[dicom]\nhost =\n")).dicom.host == ""


def test_a_relative_store_counts_from_the_file(tmp_path):
    config = load_config(write(tmp_path, "[store]\nurl = sqlite:///data/ris.db\n"))
    assert config.store_path == tmp_path / "data" / "ris.db"


def test_an_absolute_store_is_where_it_says(tmp_path):
    config = load_config(write(tmp_path, "[store]\nurl = sqlite:////var/lib/minris/minris.db\n"))
    assert config.store_path == Path("/var/lib/minris/minris.db")


def test_the_zone_is_that_of_the_clinic_or_of_the_machine(tmp_path):
    assert load_config().zone is None
    config = load_config(write(tmp_path, "[clinic]\ntimezone = Asia/Shanghai\n"))
    assert str(config.zone) == "Asia/Shanghai"


# The environment


@pytest.mark.parametrize("one", SETTINGS, ids=lambda one: f"{one.section} {one.key}")
def test_every_setting_may_come_from_the_environment(one):
    variable = f"MINRIS_{one.section}_{one.key}".upper()
    config = load_config(None, {variable: f" {one.default} "})
    assert values_of(config) == values_of(load_config())
    if one.kind not in ("text", "secret"):
        with pytest.raises(ConfigError, match=re.escape(f"[{one.section}] {one.key}: ")):
            load_config(None, {variable: "\\?!"})


def test_the_environment_goes_before_the_file(tmp_path):
    path = write(tmp_path, "[dicom]\nport = 104\nae_title = FILE\n")
    config = load_config(path, {"MINRIS_DICOM_PORT": "11113", "PATH": "/usr/bin"})
    assert (config.dicom.port, config.dicom.ae_title) == (11113, "FILE")


def test_a_wrong_value_of_the_file_is_mended_by_the_environment(tmp_path):
    path = write(tmp_path, "[dicom]\nport = many\n")
    assert load_config(path, {"MINRIS_DICOM_PORT": "104"}).dicom.port == 104


# Devices


DEVICES = """
[device CT room]
ae_title = CT1, CT1_DOSE
modality = CT
host = 192.0.2.11
check_address = yes
[device Ultrasound]
ae_title = US1
character_set = GB18030
"""


def test_devices_are_read(tmp_path):
    config = load_config(write(tmp_path, DEVICES))
    assert list(config.devices) == ["CT room", "Ultrasound"]
    ct, us = (Device.from_settings(n, d) for n, d in config.devices.items())
    assert (ct.name, ct.ae_title, ct.ae_titles) == ("CT room", "CT1", ("CT1", "CT1_DOSE"))
    assert (ct.host, ct.port, ct.check_address, ct.role) == ("192.0.2.11", 104, True, "modality")
    assert us.character_set == ("GB18030",)
    assert us.fallback_character_set == ("ISO_IR 192",)


@pytest.mark.parametrize("one", DEVICE_SETTINGS, ids=lambda one: one.key)
def test_every_setting_of_a_device_is_checked(one, tmp_path):
    if one.kind == "text":
        text = f"[device CT room]\nae_title = CT1\n{one.key} = A value\n"
        config = load_config(write(tmp_path, text))
        assert getattr(config.devices["CT room"], one.key) == "A value"
    else:
        title = "" if one.key == "ae_title" else "ae_title = CT1\n"
        text = f"[device CT room]\n{title}{one.key} = \\?!\n"
        (problem,) = problems_of(tmp_path, text)
        assert problem.startswith(f"[device CT room] {one.key}: '")


@pytest.mark.parametrize(
    ("line", "keyword"),
    [
        ("location = Radiology department, first floor", "ScheduledProcedureStepLocation"),
        ("station_name = Computed tomography room 1", "ScheduledStationName"),
        ("modality = ct", "Modality"),
    ],
    ids=["location", "station_name", "modality"],
)
def test_what_a_device_gives_its_steps_fits_their_attributes(line, keyword, tmp_path):
    """SH has 16 characters, CS has capitals: PS3.5 Table 6.2-1."""
    vr = vr_of(tag_of(keyword))
    key, _, value = line.partition(" = ")
    assert value_problem(vr, value)
    (problem,) = problems_of(tmp_path, f"[device CT room]\nae_title = CT1\n{line}\n")
    assert problem.startswith(f"[device CT room] {key}: ")


DEVICES_ARE_WRONG = {
    "an AE title of another device": (
        "[device A]\nae_title = CT1\n[device B]\nae_title = CT2, CT1\n",
        "[device B] ae_title: 'CT1' belongs to [device A] already",
    ),
    "no AE title": (
        "[device A]\nmodality = CT\n",
        "[device A] ae_title: 'nothing' is not an AE title (1 to 16 ASCII characters)",
    ),
    "an address to be checked that is not given": (
        "[device A]\nae_title = CT1\ncheck_address = yes\n",
        "[device A] check_address: needs host",
    ),
    "a setting there is not": (
        "[device A]\nae_title = CT1\naddress = 192.0.2.11\n",
        "[device A] address: there is no such setting",
    ),
}


@pytest.mark.parametrize("what", DEVICES_ARE_WRONG)
def test_a_device_is_refused_for(what, tmp_path):
    text, problem = DEVICES_ARE_WRONG[what]
    assert problems_of(tmp_path, text) == [problem]


def test_ae_titles_that_differ_in_case_are_two(tmp_path):
    """T-GEN-09."""
    text = "[device A]\nae_title = CT1\n[device B]\nae_title = ct1\n"
    assert len(load_config(write(tmp_path, text)).devices) == 2


# Mistakes


def test_all_mistakes_are_told_at_once_with_section_and_key(tmp_path):
    text = """
    [dicom]
    port = eleven
    prot = 104
    [web]
    session_hours = 0
    [clinic]
    timezone = Mars/Olympus
    [clinik]
    name = Lakeside
    [device CT]
    ae_title = A_TITLE_THAT_IS_TOO_LONG
    port = 0
    [device MR]
    ae_title = MR1
    check_address = yes
    """
    problems = problems_of(tmp_path, re.sub(r"^ +", "", text, flags=re.M))
    assert sorted(line.split(": ")[0] for line in problems) == [
        "[clinic] timezone",
        "[clinik]",
        "[device CT] ae_title",
        "[device CT] port",
        "[device MR] check_address",
        "[dicom] port",
        "[dicom] prot",
        "[web] session_hours",
    ]


def test_a_missing_file_is_told_with_the_other_mistakes(tmp_path):
    problems = problems_of(tmp_path, "[web]\nport = many\ntls_certificate = none.pem\n")
    assert sorted(line.split(": ")[0] for line in problems) == [
        "[web] port",
        "[web] tls_certificate",
    ]


def test_a_mistake_quotes_what_was_written(tmp_path):
    (problem,) = problems_of(tmp_path, "[dicom]\nport = 70000\n")
    assert problem == "[dicom] port: '70000' is not a whole number from 0 to 65535"


def test_settings_there_are_not_are_told_in_the_order_of_the_file(tmp_path):
    keys = [f"key_{letter}" for letter in "zyxwvutsrq"]
    text = "[dicom]\n" + "".join(f"{key} = 1\n" for key in keys)
    assert problems_of(tmp_path, text) == [
        f"[dicom] {key}: there is no such setting" for key in keys
    ]


@pytest.mark.parametrize(
    "text",
    [
        b"port = 104\n",
        b"[dicom]\nport = 104\nport = 105\n",
        b"[dicom]\n[dicom]\n",
        b"[dicom]\nport\n",
        "[clinic]\nname = 湖畔\n".encode("gb18030"),
        "[dicom]\nport = 104\n".encode("utf-16"),
    ],
    ids=["no section", "a key twice", "a section twice", "no value", "GB18030", "UTF-16"],
)
def test_what_is_no_ini_file_is_one_line_with_its_path(text, tmp_path):
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith(f"{tmp_path / 'config.ini'}: ")
    assert "\n" not in problem


@pytest.mark.parametrize("name", ["missing.ini", "."], ids=["no file", "a folder"])
def test_what_cannot_be_read_is_one_line_with_its_path(name, tmp_path):
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / name)
    assert len(error.value.problems) == 1
    assert str(tmp_path / name) in str(error.value)


# The program

WATCH = """
import sys
sys.modules["requests"] = None  # a test tool brings it, and pydicom would import it
def hook(event, arguments):
    if event in ("socket.bind", "socket.connect", "sqlite3.connect", "os.mkdir"):
        print("OPENED", event, flush=True)
sys.addaudithook(hook)
import minris
sys.exit(minris.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", [["serve"], [], ["check"]], ids=" ".join)
def test_three_wrong_values_are_three_lines_and_exit_status_2(command, tmp_path):
    text = "[dicom]\nport = 99999\n[web]\nlogin_attempts = 1\n[clinic]\nlanguage = french\n"
    path = write(tmp_path, text)
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCH, "--config", str(path), *command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(MADE.parent), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "minris: [dicom] port: '99999' is not a whole number from 0 to 65535",
        "minris: [web] login_attempts: '1' is not a whole number from 3 to 1000",
        "minris: [clinic] language: 'french' is not a language such as en or zh-CN",
    ]
    assert done.stdout == ""
    assert [file.name for file in tmp_path.iterdir()] == ["config.ini"]


def test_settings_prints_the_reference(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "minris")])
    assert main(["settings"]) == 0
    assert capsys.readouterr().out == settings_reference()
