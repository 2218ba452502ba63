"""Sections 6, 7 and 19: the audit log and its chain, users and tokens, settings, lights of the box."""

import contextlib
import re
import sqlite3

import peewee
import pytest
from conftest import item
from test_dimse import wait_until
from test_mpps import creation_for, stored_form
from test_pages import csrf_of, employ, visiting, words_of

from minris.access.context import AuditChain, audit, audit_lines, check_audit, purge_audit
from minris.access.users import authenticate, delete_user, make_user
from minris.config.ini import load_config
from minris.config.settings import SETTINGS
from minris.config.values import ROLES
from minris.mpps.performed import create_mpps
from minris.pages.machines.device_form import setting_text
from minris.standard.status import Refusal, Status
from minris.store.models import database


@pytest.fixture
def audited(ctx):
    """A store with three audit lines."""
    for about in ("2.25.1", "2.25.2", "2.25.3"):
        audit(ctx, "scheduled", about, "26070500001")
    return ctx


@contextlib.contextmanager
def behind_our_back(ctx):
    """Somebody opens the store with other tools, and drops what guards the log."""
    with contextlib.closing(sqlite3.connect(ctx.config.store_path)) as connection, connection:
        for name in ("audit_not_changed", "audit_not_erased"):
            connection.execute(f"DROP TRIGGER {name}")
        yield connection


# The chain.


def test_a_log_that_nobody_has_touched_is_unbroken(audited):
    chain = check_audit()
    assert (chain.count, chain.broken) == (3, None)
    assert re.fullmatch("[0-9a-f]{64}", chain.digest)


def test_an_empty_log_is_unbroken(ctx):
    assert check_audit() == AuditChain(0, "", None)


@pytest.mark.parametrize("sql", ["UPDATE audit SET who = 'nobody'", "DELETE FROM audit"])
def test_the_log_is_neither_changed_nor_erased(audited, sql):
    with pytest.raises(peewee.IntegrityError, match="audit log is never"):
        database.execute_sql(sql)
    assert check_audit().count == 3


@pytest.mark.parametrize("column", ["at", "who", "what", "about", "detail", "digest"])
def test_a_line_that_was_changed_is_found(audited, column):
    with behind_our_back(audited) as connection:
        connection.execute(f"UPDATE audit SET {column} = 'x' WHERE id = 2")
    broken = check_audit().broken
    assert broken[0] == 2


def test_a_line_that_was_taken_out_is_found(audited):
    with behind_our_back(audited) as connection:
        connection.execute("DELETE FROM audit WHERE id = 2")
    assert check_audit().broken[0] == 3


def test_a_line_that_was_put_in_is_found(audited):
    with behind_our_back(audited) as connection:
        line = "SELECT at, who, what, about, detail, digest FROM audit WHERE id = 1"
        connection.execute(f"INSERT INTO audit (at, who, what, about, detail, digest) {line}")
    assert check_audit().broken[0] == 4


def test_lines_taken_from_the_end_show_in_the_digest(audited):
    before = check_audit().digest
    with behind_our_back(audited) as connection:
        connection.execute("DELETE FROM audit WHERE id = 3")
    found = check_audit()
    assert (found.broken, found.digest == before) == (None, False)


def test_what_the_purge_erases_breaks_nothing(audited):
    purge_audit("9999")
    audit(audited, "scheduled", "2.25.4")
    audit(audited, "scheduled", "2.25.5")
    assert (check_audit().count, check_audit().broken) == (2, None)
    with pytest.raises(peewee.IntegrityError):
        database.execute_sql("DELETE FROM audit")


def test_a_log_of_before_there_was_a_chain_goes_on_in_one(audited):
    with behind_our_back(audited) as connection:
        connection.execute("UPDATE audit SET digest = ''")
    audit(audited, "scheduled", "2.25.4")
    audit(audited, "scheduled", "2.25.5")
    assert check_audit().broken is None
    with contextlib.closing(sqlite3.connect(audited.config.store_path)) as connection, connection:
        connection.execute("UPDATE audit SET who = 'x' WHERE id = 4")
    assert check_audit().broken[0] == 4


def test_a_refused_operation_leaves_the_chain_whole(appliance):
    appliance.schedule(item())

    def fail(ctx):
        with database.atomic():
            audit(ctx, "scheduled", "2.25.9")
            raise Refusal(Status.PROCESSING_FAILURE, "no")

    with pytest.raises(Refusal):
        appliance.write(fail, appliance.context())
    appliance.schedule(item())
    assert appliance.read(check_audit).broken is None


def test_lines_are_found_by_any_text(audited):
    audit(audited, "device saved", "CT room 1", "Überweisung")
    assert [line.about for line in audit_lines("ct ROOM")] == ["CT room 1"]
    assert [line.about for line in audit_lines("Überweisung")] == ["CT room 1"]
    assert len(audit_lines("")) == 4
    assert [line.about for line in audit_lines("2.25.", before=3)] == ["2.25.2", "2.25.1"]
    assert audit_lines("100%") == []


# The pages.

PAGES = ("/box", "/users", "/users/new", "/audit", "/settings", "/restored")


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("role", ROLES)
def test_the_box_is_for_administrators(appliance, path, role):
    with visiting(appliance) as client:
        answer = employ(appliance, client, role).get(path)
    assert answer.status_code == (200 if role == "admin" else 403)


@pytest.fixture
def admin(appliance):
    """Anna, administrator."""
    with visiting(appliance) as client:
        yield employ(appliance, client, "admin")


def send(client, path, **fields):
    """Send a form of a page."""
    csrf = csrf_of(client.get(path).text)
    return client.post(path.removesuffix("/new"), data=fields | {"csrf": csrf})


def test_the_box_shows_a_light_for_each_thing(appliance, admin):
    shown = words_of(admin.get("/box"))
    for words in (
        "Database",
        "Database writes",
        "DICOM service",
        "Disk",
        "Backup",
        "No backup yet",
    ):
        assert words in shown


def test_a_backup_is_made_at_once(appliance, admin):
    assert send(admin, "/box", do="backup").status_code == 303
    wait_until(lambda: not appliance.appliance.backup_since)
    [path] = appliance.config.backup_folder.glob("minris-*.db")
    assert f"Last: {path.name}" in words_of(admin.get("/box"))


def test_a_backup_that_fails_is_a_red_light(appliance, admin):
    appliance.config.backup_folder.write_text("a file where the folder should be")
    send(admin, "/box", do="backup")
    wait_until(lambda: not appliance.appliance.backup_since)
    assert "Failed Backup The last backup failed" in words_of(admin.get("/box"))


def test_a_user_is_made_and_logs_in(appliance, admin):
    answer = send(
        admin, "/users/new", do="save", name="bob", role="technologist", password="secret-enough"
    )
    assert answer.status_code == 303
    assert "bob technologist" in words_of(admin.get("/users"))
    with visiting(appliance) as client:
        login = {"name": "bob", "password": "secret-enough", "next": "/"}
        assert client.post("/login", data=login).status_code == 303


def test_a_short_password_is_refused_and_the_name_kept(admin):
    answer = send(admin, "/users/new", do="save", name="bob", role="desk", password="tiny-1")
    assert answer.status_code == 422
    assert "A password has at least 8 characters" in words_of(answer)
    assert 'value="bob"' in answer.text
    assert "tiny-1" not in answer.text


def test_sessions_are_ended(appliance, admin):
    appliance.write(make_user, appliance.context(), "bob", "desk", "secret-enough")
    with visiting(appliance) as client:
        client.post("/login", data={"name": "bob", "password": "secret-enough", "next": "/"})
        assert client.get("/").status_code == 200
        send(admin, "/users", do="end", name="bob")
        assert client.get("/").status_code == 303


def test_a_token_is_shown_once(appliance, admin):
    answer = send(admin, "/users/new", do="save", name="ris", role="desk", kind="token",
                  ae_titles="WS1, WS2")  # fmt: skip
    secret = re.search(r"shown this once: ([\w-]+)", words_of(answer))[1]
    with visiting(appliance) as client:
        bearer = {"Authorization": f"Bearer {secret}"}
        assert client.get("/api/worklist", headers=bearer).status_code == 200
        shown = words_of(admin.get("/users"))
        assert secret not in shown
        assert "ris desk WS1, WS2" in shown
        send(admin, "/users", do="delete token", name="ris", sure="yes")
        assert client.get("/api/worklist", headers=bearer).status_code == 401


def test_a_person_without_a_password_is_no_token(admin):
    answer = send(admin, "/users/new", do="save", name="anna2", role="desk", kind="person")
    assert answer.status_code == 422
    assert "shown this once" not in answer.text
    assert "anna2" not in words_of(admin.get("/users"))


def test_anybody_changes_the_own_password(appliance, admin):
    send(admin, "/users/new", do="save", name="bob", role="desk", kind="person",
         password="first-words")  # fmt: skip
    with visiting(appliance) as client, visiting(appliance) as other:
        for one in (client, other):
            one.post("/login", data={"name": "bob", "password": "first-words"})
        wrong = send(client, "/password", password="no", new_password="second-words")
        assert (wrong.status_code, "is wrong" in wrong.text) == (422, True)
        short = send(client, "/password", password="first-words", new_password="x")
        assert (short.status_code, "at least 8" in short.text) == (422, True)
        done = send(client, "/password", password="first-words", new_password="second-words")
        assert done.status_code == 303
        assert client.get("/").status_code == 200, "who has changed it stays in"
        assert other.get("/").status_code == 303, "other sessions have ended"
        login = other.post("/login", data={"name": "bob", "password": "second-words"})
        assert login.status_code == 303
    assert admin.get("/users").text.count("bob") >= 1


ORIGINS_OF_NOWHERE = [
    "file://",
    "x",
    "http://",
    "https://:443",
    "http://[",
    "about:blank",
    "//",
    "?",
]


@pytest.mark.parametrize("origin", ORIGINS_OF_NOWHERE)
def test_an_origin_without_a_host_is_another_site(appliance, admin, origin):
    csrf = csrf_of(admin.get("/users").text)
    fields = {"csrf": csrf, "do": "end", "name": "anna"}
    answer = admin.post("/users", data=fields, headers={"Origin": origin})
    assert (answer.status_code, "another site" in answer.text) == (403, True)
    fields = {"name": "anna", "password": "no"}
    with visiting(appliance) as guest:
        answer = guest.post("/login", data=fields, headers={"Origin": origin})
    assert (answer.status_code, "another site" in answer.text) == (403, True)
    here = admin.post("/users", data={"csrf": csrf, "do": "end", "name": "anna"},
                      headers={"Origin": appliance.url})  # fmt: skip
    assert here.status_code == 303


@pytest.mark.parametrize("header", ["Origin", "Host", "Referer"])
def test_an_address_that_none_can_be_is_no_error_of_ours(run_appliance, header):
    appliance = run_appliance("[web]\nanonymous_loopback = yes\n")
    with visiting(appliance, headers={header: "http://["}) as client:
        for path in ("/", "/api/worklist", "/login"):
            assert client.get(path).status_code < 500
            assert client.post(path, data={"name": "x"}).status_code < 500


def first_password(folder):
    return folder / "minris-admin-password.txt"


@pytest.mark.parametrize("how", ["by admin", "by another", "deleted"])
def test_the_file_of_the_first_password_goes_with_that_password(appliance, admin, tmp_path, how):
    file = first_password(tmp_path)
    password = file.read_text().strip()
    with visiting(appliance) as client:
        client.post("/login", data={"name": "admin", "password": password})
        assert file.exists(), "who has logged in may still need it"
        if how == "by admin":
            send(client, "/password", password=password, new_password="second-words")
        elif how == "by another":
            send(admin, "/users/new", do="save", name="admin", role="admin", kind="person",
                 password="second-words")  # fmt: skip
        else:
            send(admin, "/users", do="delete", name="admin", sure="yes")
    assert not file.exists()


def test_the_file_of_the_first_password_stays_while_others_change_theirs(
    appliance, admin, tmp_path
):
    send(admin, "/users/new", do="save", name="bob", role="desk", kind="person",
         password="first-words")  # fmt: skip
    assert first_password(tmp_path).exists()


@pytest.mark.parametrize("path", ["/password", "/login"])
def test_a_user_deleted_while_the_password_is_checked_stays_deleted(
    appliance, admin, monkeypatch, path
):
    appliance.write(make_user, appliance.context(), "bob", "admin", "first-words")

    def then_deleted(ctx, name, password):
        proof = authenticate(ctx, name, password)
        appliance.write(delete_user, appliance.context(), "bob")
        return proof

    with visiting(appliance) as client:
        client.post("/login", data={"name": "bob", "password": "first-words"})
        token = csrf_of(client.get("/password").text)
        monkeypatch.setattr("minris.pages.login.authenticate", then_deleted)
        fields = {"name": "bob", "password": "first-words", "new_password": "second-words"}
        answer = client.post(path, data={"csrf": token, **fields})
        assert answer.status_code in (401, 403)
        assert client.get("/").status_code == 303
    assert "bob" not in words_of(admin.get("/users"))


def test_the_last_administrator_stays(appliance, admin):
    send(admin, "/users", do="delete", name="admin", sure="yes")
    answer = send(admin, "/users", do="delete", name="anna", sure="yes")
    assert answer.status_code == 422
    assert "last administrator" in words_of(answer)


def test_what_each_role_may_do_is_a_table(admin):
    shown = words_of(admin.get("/users"))
    assert "Users, tokens, audit log, settings, backup yes" in shown


def test_an_unknown_deed_is_refused(admin):
    assert send(admin, "/users", do="promote", name="anna").status_code == 422


def test_the_audit_page_says_who_did_what(appliance, admin):
    appliance.schedule(item())
    shown = words_of(admin.get("/audit?q=scheduled"))
    assert "chain intact; last hash" in shown
    assert "scheduled" in shown
    assert "user set" not in shown


def test_the_audit_page_says_when_the_log_was_changed(appliance, admin):
    appliance.schedule(item())
    with contextlib.closing(sqlite3.connect(appliance.config.store_path)) as connection, connection:
        connection.execute("DROP TRIGGER audit_not_changed")
        connection.execute("UPDATE audit SET who = 'nobody' WHERE id = 2")
    assert "The audit log has been tampered with" in words_of(admin.get("/audit"))


def test_older_lines_are_a_page_further(appliance, admin):
    def many(ctx):
        for number in range(250):
            audit(ctx, "test", f"line {number}")

    appliance.write(many, appliance.context())
    first = admin.get("/audit?q=line")
    assert "line 249" in first.text
    assert "line 49<" not in first.text
    older = re.search(r'href="(/audit\?q=line&amp;before=\d+)"', first.text)[1]
    assert "line 49<" in admin.get(older.replace("&amp;", "&")).text


def test_a_script_in_an_audit_line_is_text(appliance, admin):
    appliance.write(audit, appliance.context(), "x", "<script>alert(1)</script>")
    assert "<script>alert" not in admin.get("/audit").text


def test_the_settings_say_where_they_come_from(run_appliance):
    appliance = run_appliance("[clinic]\nname = Lakeside Clinic")
    with visiting(appliance) as client:
        shown = words_of(employ(appliance, client, "admin").get("/settings"))
    assert "Name of the clinic Set in config.ini, and changed there." in shown
    assert "maximum_associations 256 default" in shown
    assert "backup_time 02:30 default" in shown


def test_a_setting_of_the_environment_says_so(tmp_path):
    config = load_config(None, {"MINRIS_DICOM_AE_TITLE": "CLINIC"})
    assert config.sources == {("dicom", "ae_title"): "MINRIS_DICOM_AE_TITLE"}


def test_every_setting_can_be_shown(config):
    for setting in SETTINGS:
        assert isinstance(setting_text(config, setting), str)


def test_an_exam_reported_for_another_patient_is_an_amber_light(appliance, admin):
    [step] = appliance.schedule(item())
    assert "Exams reported for another patient OK" in words_of(admin.get("/box"))
    report = creation_for(step, PatientName="Bloggs^Joe", PatientID="P9")
    appliance.write(create_mpps, appliance.context("CT1"), "2.25.9", stored_form(report))
    told = words_of(admin.get("/box"))
    assert "Exams reported for another patient 1 to look at" in told
