"""ACCESS: which devices may call, and who may log in."""

import dataclasses
import datetime
import hashlib
import socket
import time

import pytest
from conftest import NOON, write_config

from minris.access.context import Actor, Context, device_of
from minris.access.devices import (
    DEVICE_PROFILES,
    AccessRules,
    delete_device,
    device_conflicts,
    host_addresses,
    save_device,
    stored_devices,
    this_minute,
)
from minris.access.users import (
    Login,
    authenticate,
    change_password,
    check_password,
    delete_token,
    delete_user,
    end_session,
    end_sessions,
    find_session,
    find_token,
    hash_password,
    make_token,
    make_user,
    note_login_failure,
    open_session,
    permit,
)
from minris.config.ini import load_config
from minris.config.values import ROLES
from minris.standard.status import Refusal, Status
from minris.store.models import MODELS, Audit, LoginFailure, Session, User, database
from minris.store.sqlite import open_store

PASSWORD = "lakeside-2026"
DEVICES = """
[dicom]
ae_title = LAKESIDE
[device CT room]
ae_title = CT1, CT1_DOSE
host = 192.0.2.11
check_address = yes
[device Mobile]
ae_title = DX9
host = mobile.clinic.example
check_address = yes
[device Local]
ae_title = SIM1
host = localhost
check_address = yes
"""


def later(ctx: Context, **much: float) -> Context:
    """The same circumstances after some time."""
    moment = NOON + datetime.timedelta(**much)
    return dataclasses.replace(ctx, now=lambda: moment)


def at(ctx: Context, address: str) -> Context:
    return ctx.by(Actor("desk", address))


def refused(function, *arguments) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        function(*arguments)
    return refusal.value


def everything_stored() -> str:
    """All that the store holds, as text."""
    found = []
    for model in MODELS:
        found += database.execute_sql(f"SELECT * FROM {model._meta.table_name}").fetchall()
    return repr(found)


@pytest.fixture
def rules(tmp_path):
    """Rules with devices whose addresses are checked; mobile.clinic.example is 192.0.2.40."""
    return AccessRules(load_config(write_config(tmp_path, DEVICES)))


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """The names of this test's network."""

    def look_up(host, port, *arguments):
        known = {"mobile.clinic.example": "192.0.2.40", "localhost": "127.0.0.1"}
        if ".." in host:
            raise UnicodeError("label empty or too long")
        if host not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known[host], 0))]

    host_addresses.cache_clear()
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield
    host_addresses.cache_clear()


@pytest.fixture
def anna(ctx):
    """A login of the desk."""
    return make_user(ctx, "anna", "desk", PASSWORD)


# Devices


def refusal(rules, called, calling, address):
    """What the DICOM door asks: the addresses of a host, if it must know them, then the rules."""
    host = rules.host_to_look_up(calling, address)
    addresses = host_addresses(host, this_minute()) if host else ()
    return rules.refusal(called, calling, address, addresses)


def test_rules_look_nothing_up_themselves(rules, monkeypatch):
    """They are asked in the event loop."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a: pytest.fail("looked up"))
    assert rules.refusal("LAKESIDE", "DX9", "192.0.2.40", ["192.0.2.40"]) is None
    assert rules.refusal("LAKESIDE", "DX9", "192.0.2.40", ["192.0.2.41"])[0] == 3
    assert rules.refusal("LAKESIDE", "DX9", "192.0.2.40")[0] == 3


@pytest.mark.parametrize(
    ("calling", "address", "host"),
    [
        ("DX9", "192.0.2.40", "mobile.clinic.example"),
        ("CT1", "192.0.2.11", ""),
        ("CT1", "::ffff:192.0.2.11", ""),
        ("CT1", "192.0.2.66", "192.0.2.11"),
        ("MR7", "192.0.2.11", ""),
    ],
)
def test_a_host_is_looked_up_where_it_is_not_the_address(rules, calling, address, host):
    assert rules.host_to_look_up(calling, address) == host


def test_a_registered_device_may_call(rules):
    assert rules.refusal("LAKESIDE", "CT1", "192.0.2.11") is None


def test_every_title_of_a_device_may_call(rules):
    assert rules.refusal("LAKESIDE", "CT1_DOSE", "192.0.2.11") is None
    assert rules.device("CT1_DOSE").name == "CT room"


def test_a_call_to_another_title_is_refused_with_reason_7(rules):
    """T-GEN-02."""
    reason, words = rules.refusal("ORTHANC", "CT1", "192.0.2.11")
    assert reason == 7
    assert words == "it called 'ORTHANC', but our AE title is 'LAKESIDE'"


def test_a_call_to_another_title_is_taken_where_that_is_not_checked(tmp_path):
    text = DEVICES.replace("[dicom]", "[dicom]\ncheck_called_ae_title = no")
    rules = AccessRules(load_config(write_config(tmp_path, text)))
    assert rules.refusal("ANY-SCP", "CT1", "192.0.2.11") is None


def test_a_device_that_is_not_registered_is_refused_with_reason_3(rules):
    assert rules.refusal("LAKESIDE", "MR7", "192.0.2.12") == (
        3,
        "'MR7' is not a registered device",
    )


def test_a_title_in_another_case_is_another_title(rules):
    """T-GEN-09."""
    assert rules.refusal("LAKESIDE", "ct1", "192.0.2.11")[0] == 3
    assert rules.refusal("Lakeside", "CT1", "192.0.2.11")[0] == 7


def test_a_device_that_is_not_registered_is_served_where_that_is_wanted(tmp_path):
    text = DEVICES.replace("[dicom]", "[dicom]\naccept_unknown_devices = yes")
    rules = AccessRules(load_config(write_config(tmp_path, text)))
    assert rules.refusal("LAKESIDE", "MR7", "192.0.2.12") is None
    assert rules.device("MR7") is None


def test_a_registered_title_from_another_address_is_refused(rules):
    assert rules.refusal("LAKESIDE", "CT1", "192.0.2.66") == (
        3,
        "'CT1' is registered for 192.0.2.11",
    )


def test_a_registered_title_from_another_address_is_refused_though_unknown_ones_are_served(
    tmp_path,
):
    text = DEVICES.replace("[dicom]", "[dicom]\naccept_unknown_devices = yes")
    rules = AccessRules(load_config(write_config(tmp_path, text)))
    assert rules.refusal("LAKESIDE", "CT1", "192.0.2.66")[0] == 3


def test_an_address_is_not_checked_unless_asked_for(tmp_path):
    rules = AccessRules(load_config(write_config(tmp_path)))
    assert rules.refusal("MINRIS", "CT1", "203.0.113.7") is None


@pytest.mark.parametrize(
    ("calling", "address"),
    [
        ("DX9", "192.0.2.40"),
        ("SIM1", "127.0.0.1"),
        ("CT1", "::ffff:192.0.2.11"),
        ("DX9", "::ffff:192.0.2.40"),
    ],
)
def test_an_address_is_compared_as_an_address(rules, calling, address):
    assert refusal(rules, "LAKESIDE", calling, address) is None


@pytest.mark.parametrize("host", ["gone.clinic.example", "ct..local"])
def test_a_host_that_has_no_address_is_refused(host, tmp_path):
    text = f"[device CT room]\nae_title = CT1\nhost = {host}\ncheck_address = yes\n"
    rules = AccessRules(load_config(write_config(tmp_path, text)))
    assert refusal(rules, "MINRIS", "CT1", "192.0.2.11")[0] == 3


def test_a_host_is_not_looked_up_for_every_call(rules, monkeypatch):
    asked = []
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a: asked.append(a) or look_up(*a))
    monkeypatch.setattr(time, "monotonic", lambda: 600.0)
    for _ in range(50):
        refusal(rules, "LAKESIDE", "DX9", "192.0.2.40")
    assert len(asked) == 1


# Devices made on the page


def test_a_device_made_on_the_page_is_a_device(ctx):
    save_device(ctx, "MR room", {"ae_title": "MR1", "modality": "MR"})
    (device,) = stored_devices()
    assert (device.name, device.ae_titles, device.modality) == ("MR room", ("MR1",), "MR")
    assert not device.from_file
    rules = AccessRules(ctx.config, stored_devices())
    assert rules.refusal("MINRIS", "MR1", "192.0.2.12") is None


def test_a_device_changed_on_the_page_is_one_device(ctx):
    save_device(ctx, "MR room", {"ae_title": "MR1"})
    save_device(ctx, "MR room 2", {"ae_title": "MR2"}, old_name="MR room")
    (device,) = stored_devices()
    assert (device.name, device.ae_titles) == ("MR room 2", ("MR2",))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("MR room", {"ae_title": ""}, "ae_title"),
        ("MR room", {"ae_title": "A_TITLE_THAT_IS_TOO_LONG"}, "ae_title"),
        ("MR room", {"ae_title": "MR1", "port": "99999"}, "port"),
        ("MR room", {"ae_title": "MR1", "check_address": "yes"}, "check_address"),
        ("MR room", {"ae_title": "MR1", "adress": "192.0.2.12"}, "adress"),
        ("", {"ae_title": "MR1"}, "name"),
        ("MR]room", {"ae_title": "MR1"}, "name"),
    ],
)
def test_a_wrong_device_is_refused_with_words_for_its_setting(ctx, name, settings, words):
    refusal = refused(save_device, ctx, name, settings)
    assert refusal.status is Status.INVALID_ATTRIBUTE_VALUE
    assert words in " ".join(str(problem.words) for problem in refusal.problems)
    assert stored_devices() == []


def test_every_wrong_setting_of_a_device_is_told(ctx):
    settings = {"ae_title": "", "port": "0", "role": "doorbell"}
    assert len(refused(save_device, ctx, "MR room", settings).problems) == 3


@pytest.mark.parametrize(
    ("name", "title"), [("CT room", "CT9"), ("MR room", "CT1")], ids=["its name", "its AE title"]
)
def test_a_device_of_the_file_is_not_taken_over_by(ctx, name, title):
    refusal = refused(save_device, ctx, name, {"ae_title": title})
    assert refusal.status is Status.DUPLICATE_SOP_INSTANCE


def test_a_device_of_the_file_is_not_changed_on_the_page(ctx):
    refused(save_device, ctx, "CT room", {"ae_title": "CT1", "port": "4242"}, "CT room")
    assert stored_devices() == []


def test_a_device_of_the_page_is_forgotten(ctx):
    save_device(ctx, "MR room", {"ae_title": "MR1"})
    delete_device(ctx, "MR room")
    assert stored_devices() == []
    refusal = refused(delete_device, ctx, "MR room")
    assert refusal.status is Status.NO_SUCH_SOP_INSTANCE


def test_a_device_deleted_meanwhile_is_not_brought_back_by_a_form(ctx):
    save_device(ctx, "MR room", {"ae_title": "MR1"})
    delete_device(ctx, "MR room")
    refusal = refused(save_device, ctx, "MR room", {"ae_title": "MR1"}, "MR room")
    assert refusal.status is Status.NO_SUCH_SOP_INSTANCE
    assert stored_devices() == []


def test_of_two_saved_at_once_with_one_ae_title_the_second_is_refused(ctx):
    """Both requests know the devices as they were before."""
    save_device(ctx, "MR room", {"ae_title": "MR1"})
    refusal = refused(save_device, ctx, "Spare MR", {"ae_title": "MR2, MR1"})
    assert refusal.status is Status.DUPLICATE_SOP_INSTANCE
    assert refusal.detail == "MR1 already belongs to MR room"
    assert [device.name for device in stored_devices()] == ["MR room"]


@pytest.fixture
def twice(ctx):
    """The rules of a page and a config.ini that both have the AE title CT1, one in each place."""
    database.execute_sql(
        "INSERT INTO device_record (name, settings, created_at, updated_at)"
        """ VALUES ('Old CT', '{"ae_title": "CT1", "role": "archive"}', '', '')"""
    )
    return AccessRules(ctx.config, stored_devices())


def test_of_two_devices_of_one_ae_title_all_parts_obey_that_of_the_file(ctx, twice):
    ctx = dataclasses.replace(ctx, devices=twice.devices)
    assert device_of(ctx, "CT1").name == "CT room"
    assert twice.device("CT1") is device_of(ctx, "CT1")


def test_two_devices_of_one_ae_title_are_told(twice):
    [(device, words)] = device_conflicts(twice.devices)
    assert (device.name, words) == ("Old CT", "CT1 already belongs to CT room")


@pytest.mark.parametrize("name", DEVICE_PROFILES)
def test_a_ready_profile_makes_a_device(ctx, name):
    settings = {"ae_title": "MR1", **DEVICE_PROFILES[name]}
    save_device(ctx, "MR room", settings)
    assert len(stored_devices()) == 1


# Passwords


def test_a_password_is_known_again(real_scrypt):
    stored = hash_password(PASSWORD)
    assert check_password(PASSWORD, stored)
    assert not check_password(PASSWORD + " ", stored)


def test_a_password_in_chinese_is_known_again(real_scrypt):
    assert check_password("湖畔诊所二〇二六", hash_password("湖畔诊所二〇二六"))


def test_the_same_password_is_hashed_with_another_salt_each_time(real_scrypt):
    assert hash_password(PASSWORD) != hash_password(PASSWORD)


def test_a_password_is_hashed_by_scrypt_that_costs_16_mib(real_scrypt):
    name, n, r, p, salt, digest = hash_password(PASSWORD).split("$")
    assert (name, int(n), int(r), int(p)) == ("scrypt", 14, 8, 1)
    assert len(bytes.fromhex(salt)) >= 16
    assert len(bytes.fromhex(digest)) >= 32


# Users


def test_a_user_logs_in(ctx, anna):
    assert authenticate(ctx, "anna", PASSWORD).user_id == anna.id


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("anna", "lakeside-2025"),
        ("anna", ""),
        ("bert", PASSWORD),
        ("", PASSWORD),
        ("Anna", PASSWORD),
    ],
)
def test_a_wrong_name_or_password_is_refused_in_the_same_words(ctx, anna, name, password):
    refusal = refused(authenticate, ctx, name, password)
    assert refusal.status is Status.NOT_AUTHORIZED
    assert refusal.detail == "The name or the password is wrong"


def test_somebody_unknown_costs_as_much_to_refuse_as_somebody_known(ctx, anna, monkeypatch):
    costs, scrypt = [], hashlib.scrypt
    monkeypatch.setattr(hashlib, "scrypt", lambda *a, **k: costs.append(k) or scrypt(*a, **k))
    for name in ("anna", "bert"):
        refused(authenticate, ctx, name, "a wrong password")
    known, unknown = [{key: cost[key] for key in "nrp"} for cost in costs]
    assert known == unknown


def test_no_password_is_kept_and_none_is_audited(ctx, anna):
    assert PASSWORD not in everything_stored()


USERS_ARE_WRONG = {
    "an empty name": ("", "desk", PASSWORD),
    "a name with a space": ("anna k", "desk", PASSWORD),
    "a name past 64 characters": ("a" * 65, "desk", PASSWORD),
    "a role there is not": ("anna", "root", PASSWORD),
    "a short password": ("anna", "desk", "1234567"),
}


@pytest.mark.parametrize("what", USERS_ARE_WRONG)
def test_a_user_is_refused_for(what, ctx):
    refusal = refused(make_user, ctx, *USERS_ARE_WRONG[what])
    assert refusal.status is Status.INVALID_ATTRIBUTE_VALUE
    assert refusal.problems
    assert User.select().count() == 0


def test_a_new_password_ends_the_logins_with_the_old_one(ctx, anna):
    secret = open_session(ctx, anna.id)
    make_user(ctx, "anna", "technologist", "lakeside-2027")
    assert find_session(ctx, secret) is None
    assert authenticate(ctx, "anna", "lakeside-2027").user_id == anna.id
    refused(authenticate, ctx, "anna", PASSWORD)


def test_a_user_is_ended_with_the_logins(ctx, anna):
    secret = open_session(ctx, anna.id)
    delete_user(ctx, "anna")
    assert find_session(ctx, secret) is None
    refused(authenticate, ctx, "anna", PASSWORD)


def test_a_user_who_is_not_there_cannot_be_ended(ctx):
    refusal = refused(delete_user, ctx, "bert")
    assert refusal.status is Status.NO_SUCH_SOP_INSTANCE


def test_the_last_administrator_stays(ctx, anna):
    make_user(ctx, "admin", "admin", PASSWORD)
    refusal = refused(delete_user, ctx, "admin")
    assert refusal.status is Status.PROCESSING_FAILURE


def test_the_last_administrator_stays_an_administrator(ctx, anna):
    make_user(ctx, "admin", "admin", PASSWORD)
    refusal = refused(make_user, ctx, "admin", "desk", PASSWORD)
    assert refusal.status is Status.PROCESSING_FAILURE


def test_an_administrator_beside_another_may_go(ctx):
    make_user(ctx, "admin", "admin", PASSWORD)
    make_user(ctx, "chief", "admin", PASSWORD)
    delete_user(ctx, "admin")
    assert [user.name for user in User.select()] == ["chief"]


# A password that is changed or used while somebody else changes the user

MEANWHILE = {
    "deleted": lambda ctx: delete_user(ctx, "anna"),
    "demoted": lambda ctx: make_user(ctx, "anna", "desk", "lakeside-2028"),
    "made anew": lambda ctx: (delete_user(ctx, "anna"), make_user(ctx, "anna", "desk", PASSWORD)),
    "sent away": lambda ctx: end_sessions(ctx, "anna"),
    "logged out": lambda ctx: Session.delete().execute(),
}


@pytest.fixture
def chief(ctx):
    """Anna, an administrator beside another one."""
    make_user(ctx, "admin", "admin", PASSWORD)
    return make_user(ctx, "anna", "admin", PASSWORD)


def users_stored() -> list[tuple[str, str, str]]:
    return list(database.execute_sql("SELECT name, role, password FROM user ORDER BY name"))


def test_who_changes_the_password_changes_nothing_else(ctx, chief):
    here, there = (open_session(ctx, chief.id) for _ in range(2))
    renewed = change_password(ctx, here, authenticate(ctx, "anna", PASSWORD), "lakeside-2027")
    assert authenticate(ctx, "anna", "lakeside-2027").user_id == chief.id
    assert [row[:2] for row in users_stored()] == [("admin", "admin"), ("anna", "admin")]
    assert find_session(ctx, renewed).role == "admin"
    assert (find_session(ctx, here), find_session(ctx, there)) == (None, None)


@pytest.mark.parametrize("how", MEANWHILE)
def test_a_change_of_password_brings_nobody_back(ctx, chief, how):
    secret, proof = open_session(ctx, chief.id), authenticate(ctx, "anna", PASSWORD)
    MEANWHILE[how](ctx)
    before = users_stored()
    refusal = refused(change_password, ctx, secret, proof, "lakeside-2027")
    assert refusal.status is Status.NOT_AUTHORIZED
    assert users_stored() == before


@pytest.mark.parametrize("how", ["deleted", "demoted", "made anew"])
def test_a_login_with_a_password_that_is_right_no_longer_is_refused(ctx, chief, how):
    proof = authenticate(ctx, "anna", PASSWORD)
    MEANWHILE[how](ctx)
    assert refused(open_session, ctx, *proof).status is Status.NOT_AUTHORIZED
    assert Session.select().count() == 0


def test_a_session_changes_the_password_of_its_own_user_alone(ctx, anna):
    admin = make_user(ctx, "admin", "admin", "blue-kettle-9")
    secret = open_session(ctx, anna.id)
    proof = authenticate(ctx, "admin", "blue-kettle-9")
    assert proof.user_id == admin.id
    refusal = refused(change_password, ctx, secret, proof, "lakeside-2027")
    assert refusal.status is Status.NOT_AUTHORIZED


# The throttle


def fail(ctx: Context, name: str, times: int) -> None:
    for _ in range(times):
        note_login_failure(ctx, name)


def test_a_few_wrong_passwords_are_forgiven(ctx, anna):
    fail(ctx, "anna", ctx.config.web.login_attempts - 1)
    assert authenticate(ctx, "anna", PASSWORD).user_id == anna.id


def test_too_many_wrong_passwords_of_a_user_must_wait_from_any_address(ctx, anna):
    fail(at(ctx, "192.0.2.66"), "anna", ctx.config.web.login_attempts)
    refusal = refused(authenticate, at(ctx, "192.0.2.30"), "anna", PASSWORD)
    assert refusal.status is Status.RESOURCE_LIMITATION


def test_too_many_wrong_passwords_from_an_address_must_wait_for_any_user(ctx, anna):
    for number in range(ctx.config.web.login_attempts):
        fail(at(ctx, "192.0.2.66"), f"user{number}", 1)
    refusal = refused(authenticate, at(ctx, "192.0.2.66"), "anna", PASSWORD)
    assert refusal.status is Status.RESOURCE_LIMITATION
    assert authenticate(at(ctx, "192.0.2.30"), "anna", PASSWORD).user_id == anna.id


def test_a_name_in_another_case_does_not_get_round_the_throttle(ctx, anna):
    fail(at(ctx, "192.0.2.66"), "ANNA", ctx.config.web.login_attempts)
    refusal = refused(authenticate, at(ctx, "192.0.2.30"), "anna", PASSWORD)
    assert refusal.status is Status.RESOURCE_LIMITATION


def test_after_fifteen_minutes_it_may_be_tried_again(ctx, anna):
    fail(ctx, "anna", ctx.config.web.login_attempts)
    refused(authenticate, later(ctx, minutes=14, seconds=59), "anna", PASSWORD)
    assert authenticate(later(ctx, minutes=15), "anna", PASSWORD).user_id == anna.id


def test_a_throttled_guess_costs_no_hash(ctx, anna, monkeypatch):
    fail(ctx, "anna", ctx.config.web.login_attempts)
    monkeypatch.setattr(hashlib, "scrypt", None)
    refused(authenticate, ctx, "anna", PASSWORD)


def test_wrong_passwords_of_long_ago_are_forgotten(ctx):
    fail(ctx, "anna", 5)
    fail(later(ctx, hours=1), "anna", 1)
    assert LoginFailure.select().count() == 2


def test_a_wrong_password_is_audited(ctx):
    fail(ctx, "anna", 1)
    (line,) = Audit.select()
    assert (line.what, line.about, line.who) == ("login failed", "anna", "CT1@127.0.0.1")


# Sessions


def test_a_login_is_known_by_its_secret(ctx, anna):
    secret = open_session(ctx, anna.id)
    login = find_session(ctx, secret)
    assert (login.name, login.role) == ("anna", "desk")
    assert len(login.csrf) >= 32


def test_every_login_has_secrets_of_its_own(ctx, anna):
    secrets = [open_session(ctx, anna.id) for _ in range(2)]
    tokens = [find_session(ctx, secret).csrf for secret in secrets]
    assert len({*secrets, *tokens}) == 4
    assert all(len(secret) >= 43 for secret in secrets)


def test_the_secret_of_a_login_is_not_kept(ctx, anna):
    assert open_session(ctx, anna.id) not in everything_stored()


@pytest.mark.parametrize("secret", ["", "guess", "0" * 64])
def test_no_login_is_known_by_another_secret(ctx, anna, secret):
    open_session(ctx, anna.id)
    assert find_session(ctx, secret) is None


def test_the_digest_of_a_login_is_no_secret_of_it(ctx, anna):
    open_session(ctx, anna.id)
    assert find_session(ctx, Session.get().digest) is None


def test_a_login_ends_after_its_hours(ctx, anna):
    secret = open_session(ctx, anna.id)
    hours = ctx.config.web.session_hours
    assert find_session(later(ctx, hours=hours, seconds=-1), secret)
    assert find_session(later(ctx, hours=hours), secret) is None


def test_a_login_that_has_ended_is_cleared_away(ctx, anna):
    open_session(ctx, anna.id)
    open_session(later(ctx, hours=13 + 24), anna.id)
    assert Session.select().count() == 1


def test_who_logs_out_is_out_and_alone(ctx, anna):
    here, there = (open_session(ctx, anna.id) for _ in range(2))
    end_session(ctx.by(Actor("anna", "192.0.2.30")), here)
    assert find_session(ctx, here) is None
    assert find_session(ctx, there)


def test_a_login_outlives_a_restart(config):
    ctx = Context(config, Actor("desk", "192.0.2.30"))
    open_store(config.store_path)
    with database.connection_context():
        user = make_user(ctx, "anna", "desk", PASSWORD)
        secret = open_session(ctx, user.id)
    open_store(config.store_path)
    with database.connection_context():
        assert find_session(ctx, secret).name == "anna"


# Tokens


def test_a_token_is_known(ctx):
    token = make_token(ctx, "booking system", "desk")
    assert find_token(token) == Login("booking system", "desk")


def test_a_token_is_not_kept(ctx):
    assert make_token(ctx, "booking system", "desk") not in everything_stored()


def test_a_new_token_of_the_same_name_ends_the_old_one(ctx):
    old = make_token(ctx, "booking system", "admin")
    new = make_token(ctx, "booking system", "desk")
    assert find_token(old) is None
    assert find_token(new).role == "desk"


def test_a_deleted_token_is_none(ctx):
    token = make_token(ctx, "booking system", "desk")
    delete_token(ctx, "booking system")
    assert find_token(token) is None
    refusal = refused(delete_token, ctx, "booking system")
    assert refusal.status is Status.NO_SUCH_SOP_INSTANCE


@pytest.mark.parametrize(("name", "role"), [("", "desk"), ("booking system", "root")])
def test_a_token_needs_a_name_and_a_role(ctx, name, role):
    refusal = refused(make_token, ctx, name, role)
    assert refusal.status is Status.INVALID_ATTRIBUTE_VALUE


@pytest.mark.parametrize("token", ["", "guess"])
def test_nobody_is_known_by_another_token(ctx, token):
    make_token(ctx, "booking system", "desk")
    assert find_token(token) is None


# Roles

MAY = {
    ("desk", "desk"): True,
    ("desk", "technologist"): False,
    ("desk", "admin"): False,
    ("technologist", "desk"): True,
    ("technologist", "technologist"): True,
    ("technologist", "admin"): False,
    ("admin", "desk"): True,
    ("admin", "technologist"): True,
    ("admin", "admin"): True,
}


def test_every_pair_of_roles_is_decided():
    assert set(MAY) == {(role, least) for role in ROLES for least in ROLES}


@pytest.mark.parametrize(("role", "least"), MAY)
def test_a_role_may_do_what_those_before_it_may(role, least):
    assert permit(role, least) is MAY[role, least]


@pytest.mark.parametrize("role", ["", "root", "Admin"])
def test_nobody_without_a_role_may_do_anything(role):
    assert not permit(role, "desk")


# Audit


def test_who_makes_and_ends_logins_and_tokens_is_kept(ctx, anna):
    ctx = ctx.by(Actor("admin", "192.0.2.30"))
    end_session(ctx, open_session(ctx, anna.id))
    make_token(ctx, "booking system", "desk")
    delete_token(ctx, "booking system")
    delete_user(ctx, "anna")
    whats = [line.what for line in Audit.select().order_by(Audit.id)]
    assert whats == ["user set", "login", "logout", "token made", "token deleted", "user deleted"]
