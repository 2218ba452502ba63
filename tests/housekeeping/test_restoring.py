"""What a restore does not forget: identifiers, audit lines, what was withdrawn and erased."""

import contextlib
import re
import shutil
import sqlite3

import pytest
from conftest import NOON, item
from kills import cut_restores
from test_housekeeping import run_here
from test_pages import csrf_of, employ, visiting, words_of

from minris.access.context import Actor, Context, audit, check_audit, purge_audit
from minris.access.devices import AccessRules
from minris.access.users import (
    authenticate,
    delete_token,
    find_token,
    make_token,
    make_user,
)
from minris.config.ini import load_config
from minris.dataset.dicom_json import from_json
from minris.dataset.elements import ElementIndex
from minris.housekeeping.erasing import erase_patient
from minris.housekeeping.restoring import LEAP_OF_A_DAY, gaps, restore
from minris.orders.patients import correct_patient, find_patients
from minris.orders.scheduling import schedule
from minris.standard.status import Refusal
from minris.store.models import Patient, StoreError, database
from minris.store.sqlite import StoreLock, backup_store, open_store, store_facts


def register(ctx, name, **texts):
    """Patient ID and accession number of a new exam."""
    [data] = schedule(ctx, from_json(item(name, **texts)), "refuse")
    index = ElementIndex(data)
    return index.get("PatientID"), index.get("AccessionNumber")


class Box:
    """A box without its appliance: its store, and what is done on it."""

    def __init__(self, config):
        self.config, self.path = config, config.store_path
        self.ctx = Context(config, Actor("anna", role="admin"), devices=AccessRules(config).devices)
        self.night = config.store_path.with_name("night.db")

    @contextlib.contextmanager
    def at_work(self):
        """The store is open, and a day goes on."""
        with StoreLock(self.path):
            open_store(self.path)
            with database.connection_context():
                yield self.ctx

    def register(self, *names, **texts):
        """Identifiers of patients who come on a day."""
        with self.at_work() as ctx:
            return [register(ctx, name, **texts) for name in names]

    def back_up(self):
        backup_store(self.path, self.night)

    def restore(self):
        with StoreLock(self.path):
            _, gap = restore(self.ctx, self.path, self.night)
        return gap


@pytest.fixture
def box(config):
    """Two patients, a user and two tokens, a backup of the night, and the morning after it."""
    one = Box(config)
    one.register("Wang^XiaoDong", "Li^Na")
    with one.at_work() as ctx:
        make_user(ctx, "berta", "admin", "password of yesterday")
        one.withdrawn, one.kept = make_token(ctx, "old", "desk"), make_token(ctx, "both", "desk")
    one.back_up()
    return one


# Identifiers


def test_no_identifier_of_the_replaced_store_is_given_again(box):
    morning = box.register("Zhao^Min", "Qian^Yi", "Sun^Er")
    box.restore()
    afternoon = box.register("Zhou^San", "Wu^Si", "Zheng^Wu")
    assert not {one for pair in morning for one in pair} & {
        one for pair in afternoon for one in pair
    }


def test_they_go_on_where_the_replaced_store_had_ended(box):
    [(last, _)] = box.register("Zhao^Min")
    gap = box.restore()
    [(first, _)] = box.register("Zhou^San")
    assert (last, first, gap.leap) == ("P000003", "P000004", 0)


def test_an_identifier_that_was_typed_in_the_replaced_store_is_not_made_after_it(box):
    """As an import or another system gives them: no counter knows it."""
    box.register("Zhao^Min", PatientID="P000004", AccessionNumber="A1")
    box.restore()
    made = box.register("Zhou^San", "Wu^Si")
    assert [patient_id for patient_id, _ in made] == ["P000003", "P000005"]


def test_nor_after_a_second_restore(box):
    box.register("Zhao^Min", PatientID="P000004")
    box.restore()
    box.restore()
    made = box.register("Zhou^San", "Wu^Si")
    assert "P000004" not in {patient_id for patient_id, _ in made}


def lost(path):
    path.unlink()


def damaged(path):
    path.write_bytes(b"\0" * path.stat().st_size)


def counters_gone(path):
    """A page that holds the counters is zeroed."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = 'counter'"
        ((page,),) = connection.execute(sql)
        ((size,),) = connection.execute("PRAGMA page_size")
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\0" * size)


def another(path):
    """Somebody had started a new store in its place, and registered there."""
    path.unlink()
    Box(load_config(path.with_name("config.ini"))).register("Emergency^One")


@pytest.mark.parametrize("spoil", [lost, damaged, counters_gone, another])
def test_without_a_store_that_tells_them_the_counters_leap(box, spoil):
    """Past all of the morning: of the day's numbers too, which the backup has not begun."""
    morning = box.register(*(f"Morning^{number}" for number in range(20)))
    with contextlib.closing(sqlite3.connect(box.night)) as connection, connection:
        connection.execute("DELETE FROM counter WHERE name LIKE '{yy}%'")  # a backup of yesterday
    spoil(box.path)
    gap = box.restore()
    afternoon = box.register(*(f"Afternoon^{number}" for number in range(20)))
    assert gap.leap >= LEAP_OF_A_DAY
    assert not {one for pair in morning for one in pair} & {
        one for pair in afternoon for one in pair
    }


def test_the_gap_is_measured(box):
    box.register("Zhao^Min", AccessionNumber="A1")
    gap = box.restore()
    assert (gap.patients, gap.exams) == (1, 1)
    assert (gap.patient_ids, gap.accession_numbers) == (["P000003"], ["A1"])
    assert gap.since == store_facts(box.night).newest < gap.until
    with database.connection_context():
        assert gaps() == [gap]


def test_a_restore_that_leaves_nothing_out_leaves_no_gap(box):
    gap = box.restore()
    assert (gap.patients, gap.exams, gap.leap, gap.revived) == (0, 0, 0, False)
    with database.connection_context():
        assert gaps() == []


# The audit log


def audited(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM audit ORDER BY id").fetchall()


def test_the_audit_lines_of_the_replaced_store_are_kept_as_they_are(box):
    box.register("Zhao^Min")
    before = audited(box.path)
    box.restore()
    after = audited(box.path)
    assert after[: len(before)] == before
    assert [line[3] for line in after[len(before) :]] == ["backup restored"]
    with database.connection_context():
        assert check_audit().broken is None


def test_audit_lines_are_kept_where_those_of_the_backup_were_purged_meanwhile(box):
    with box.at_work():
        purge_audit("9999")
    with box.at_work() as ctx:
        audit(ctx, "purged", "store")  # ids go on only where one is left
    box.register("Zhao^Min")
    with contextlib.closing(sqlite3.connect(box.path)) as connection, connection:
        connection.execute("DROP TRIGGER audit_not_changed")
        connection.execute("UPDATE audit SET id = id + 100")
    before = audited(box.path)
    box.restore()
    assert audited(box.path)[:-1] == before
    with database.connection_context():
        assert check_audit().broken is None


def test_audit_lines_of_another_chain_are_kept_in_that_of_the_backup(box):
    another(box.path)
    theirs = [line[1:6] for line in audited(box.path)]
    ours = audited(box.night)
    box.restore()
    after = audited(box.path)
    assert after[: len(ours)] == ours
    assert [line[1:6] for line in after[len(ours) : -1]] == theirs
    with database.connection_context():
        assert check_audit().broken is None


# What was withdrawn, and erased


def test_what_was_withdrawn_stays_withdrawn(box):
    with box.at_work() as ctx:
        delete_token(ctx, "old")
        make_token(ctx, "new", "desk")
        make_user(ctx, "berta", "admin", "password of today")
    gap = box.restore()
    with database.connection_context():
        assert find_token(box.withdrawn) is None
        assert find_token(box.kept).name == "both"
        authenticate(box.ctx, "berta", "password of today")
        with pytest.raises(Refusal):
            authenticate(box.ctx, "berta", "password of yesterday")
    assert not gap.revived


def test_where_nothing_tells_what_was_withdrawn_this_is_said(box):
    lost(box.path)
    gap = box.restore()
    assert gap.revived
    with database.connection_context():
        assert find_token(box.withdrawn).name == "old"


def test_who_was_erased_and_is_back_is_named(box):
    with box.at_work() as ctx:
        [patient] = find_patients("P000001", NOON.date())
        correct_patient(ctx, patient.id, from_json({"00100020": {"vr": "LO", "Value": ["K7"]}}))
        erase_patient(ctx, patient.id, "at her wish")
    gap = box.restore()
    with database.connection_context():
        back = Patient.get(Patient.patient_id == "P000001")
    assert gap.erased == [(back.id, "P000001")]


# In words


def test_restore_says_what_is_missing(box):
    box.register("Zhao^Min", AccessionNumber="A1")
    with box.at_work() as ctx:
        erase_patient(ctx, find_patients("P000002", NOON.date())[0].id, "at her wish")
    done = run_here(box.config, "restore", box.night)
    assert done.exit_code == 0, done.err
    for words in (
        "patients: 1, exams: 1",
        "Missing Patient IDs: P000003.",
        "Missing accession numbers: A1.",
        "Erased after the backup and now back: P000002.",
        "New identifiers continue after",
    ):
        assert words in done.out


def test_restore_says_that_there_was_no_store_to_ask(box):
    lost(box.path)
    done = run_here(box.config, "restore", box.night)
    assert "New identifiers skip 1000 numbers" in done.out
    assert "any revoked since then are valid again" in done.out


def test_the_gap_is_on_every_page_and_in_the_log_until_it_is_confirmed(run_appliance, box, caplog):
    box.register("Zhao^Min", AccessionNumber="A1")
    with box.at_work() as ctx:
        erase_patient(ctx, find_patients("P000002", NOON.date())[0].id, "at her wish")
    box.restore()
    told = "was restored: everything entered after it is missing"
    with caplog.at_level("WARNING"):
        appliance = run_appliance()
    [line] = [one.getMessage() for one in caplog.records if told in one.getMessage()]
    assert "P00" not in line
    with visiting(appliance) as client:
        employ(appliance, client, "admin")
        assert told in words_of(client.get("/"))
        page = client.get("/restored")
        assert "Missing accession numbers: A1." in words_of(page)
        [erasing] = re.findall("/patient/[0-9]+/erase", page.text)
        assert "P000002" in client.get(erasing).text
        csrf = csrf_of(page.text)
        assert client.post("/restored", data={"csrf": csrf}).status_code == 303
        assert told not in words_of(client.get("/"))
    assert appliance.read(check_audit).broken is None


def test_a_restore_that_fails_while_it_carries_over_leaves_the_store_as_it_was(box, monkeypatch):
    box.register("Zhao^Min")
    before = box.path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minris.housekeeping.restoring._note_lost", fail)
    with pytest.raises((OSError, StoreError)):
        box.restore()
    assert box.path.read_bytes() == before
    assert not list(box.path.parent.glob("*.restored*"))


def test_a_restore_that_is_killed_at_any_step_is_whole_or_has_not_begun(box, tmp_path):
    """A restored store without what was carried over would give identifiers again."""
    box.register("Zhao^Min")
    state = tmp_path / "state"
    state.mkdir()
    shutil.copy(box.path, state)
    folders = cut_restores(state, box.night, tmp_path / "cut", "whole")
    assert len(folders) > 10
    done = []
    for folder in folders:
        with StoreLock(folder / "minris.db"):
            open_store(folder / "minris.db")
        with database.connection_context():
            patients = {one.patient_id for one in Patient.select()}
            assert check_audit().broken is None
            done.append("P000003" not in patients)
            assert len(gaps()) == done[-1]
            assert register(box.ctx, "Zhou^San")[0] == "P000004"
        assert not list(folder.glob("*.restored*"))
    assert done[-1]
    assert done == sorted(done)
