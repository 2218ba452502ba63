"""Which store a command uses: it is found, it is named, and none is made by the way."""

import json
import re

import pytest
from test_appliance import folder, here  # noqa: F401
from test_housekeeping import stored
from test_store import state_of

from minris.cli import main
from minris.config.ini import find_config, load_config

NEEDING_A_STORE = (
    ("user", "anna", "--password-stdin"),
    ("user", "anna", "--delete"),
    ("token", "ris"),
    ("backup",),
    ("backup", "copy.db"),
    ("export",),
    ("export", "all.json"),
    ("check",),
)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A folder where nobody has ever served."""
    path = tmp_path / "elsewhere"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.mark.parametrize("command", NEEDING_A_STORE, ids=" ".join)
def test_a_command_in_the_wrong_folder_says_so_and_makes_nothing(empty, capsys, command):
    try:
        status = main(list(command))
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr()
    assert status == 1
    assert str(empty / "minris.db") in said.out + said.err
    assert state_of(empty) == {}


@pytest.fixture
def clinic(folder):  # noqa: F811
    """A store with an order."""
    config = load_config(folder / "config.ini")
    stored(config, "A1")
    return config


@pytest.mark.parametrize(
    "command",
    [("token", "ris"), ("user", "ris", "--delete"), ("export",), ("backup", "copy.db")],
    ids=" ".join,
)
def test_a_command_names_its_store_beside_what_it_prints(clinic, here, command):  # noqa: F811
    _, said, errors = here(*command)
    assert f"store {clinic.store_path}, configuration {clinic.path}" in errors.splitlines()
    assert str(clinic.store_path) not in said


def test_what_is_piped_is_what_was_asked_for_alone(clinic, here):  # noqa: F811
    assert re.fullmatch(r"[\w-]{43}\n", here("token", "ris")[1])
    assert json.loads(here("export")[1])["patients"]


def test_a_backup_tells_what_is_in_it(clinic, here, folder):  # noqa: F811
    _, said, _ = here("backup", "copy.db")
    day = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.search(rf"patients: 1, exams: 1, newest change: {day}$", said.strip())


def test_import_makes_a_store_where_there_is_none(folder, here):  # noqa: F811
    (folder / "list.json").write_text("[]")
    here("import", "list.json")
    assert (folder / "minris.db").exists()


# How the configuration is found


def test_the_configuration_is_that_of_the_environment(empty, clinic, capsys, monkeypatch):
    monkeypatch.setenv("MINRIS_CONFIG", str(clinic.path))
    assert main(["token", "ris"]) == 0
    assert f"store {clinic.store_path}" in capsys.readouterr().err


def test_a_configuration_that_is_named_and_not_there_is_an_error(empty, monkeypatch):
    monkeypatch.setenv("MINRIS_CONFIG", "nowhere.ini")
    assert main(["token", "ris"]) == 2


def test_the_configuration_is_found_where_the_service_has_it(empty, clinic, monkeypatch):
    monkeypatch.setattr("minris.config.ini.USUAL_PLACES", (empty / "no", clinic.directory))
    assert find_config(None, {}, empty) == (clinic.path, clinic.directory)
    assert main(["token", "ris"]) == 0
    clinic.path.unlink()
    assert find_config(None, {}, empty) == (None, clinic.directory)
    assert main(["token", "ris"]) == 0


def test_the_configuration_is_found_beside_the_store(empty, clinic):
    environ = {"MINRIS_STORE_URL": f"sqlite:///{clinic.store_path}"}
    assert find_config(None, environ, empty) == (clinic.path, clinic.directory)


def test_what_lies_here_goes_before_what_lies_elsewhere(empty, clinic, monkeypatch):
    monkeypatch.setattr("minris.config.ini.USUAL_PLACES", (clinic.directory,))
    (empty / "minris.db").touch()
    assert find_config(None, {}, empty) == (None, empty)
