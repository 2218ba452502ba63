"""Section 19: the pages, asked by httpx as a browser without script would, and by Chromium."""

import concurrent.futures
import contextlib
import datetime
import html
import os
import re
import threading

import httpx
import peers
import pytest
from conftest import ROOT, Running, item
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import sync_playwright

from minris.access.context import Actor, Context
from minris.access.users import (
    authenticate,
    delete_user,
    hash_password,
    make_token,
    make_user,
    note_login_failure,
    open_session,
    permit,
)
from minris.config.values import ROLES
from minris.dataset.elements import ElementIndex
from minris.orders.steps import EVENTS_OF_STATE
from minris.pages.forms import FIELD_KINDS, field_table
from minris.pages.language import choose_language
from minris.pages.reception import REGISTER_FIELDS
from minris.pages.site import PAGES
from minris.pages.static import load_catalogues
from minris.standard.status import Refusal
from minris.standard.worklist import STEP_STATUS, STEP_TRANSITIONS
from minris.store.models import Patient, ScheduledProcedureStep, Session, User

ARTEFACTS = ROOT / "artefacts"
MENU = [page for page in PAGES if page.words]


# Without a browser: forms as they are sent.


@contextlib.contextmanager
def visiting(appliance, address="127.0.0.1", url="", **how):
    """An HTTP client that keeps cookies and follows nothing by itself."""
    transport = httpx.HTTPTransport(verify=False, local_address=address)
    base = url or appliance.url
    with httpx.Client(base_url=base, transport=transport, trust_env=False, **how) as client:
        yield client


def admin_password(appliance):
    """What the first start wrote down."""
    path = appliance.config.store_path.with_name("minris-admin-password.txt")
    return path.read_text().strip()


def log_in(client, name, password, **fields):
    """Send the login form."""
    return client.post("/login", data={"name": name, "password": password, **fields})


@pytest.fixture
def guest(appliance):
    """Somebody who has not logged in."""
    with visiting(appliance) as client:
        yield client


PASSWORD = "blue-kettle-9"
HASHED = hash_password(PASSWORD)


def employ(appliance, client, role="desk"):
    """Make Anna a user, and log her in without the time that a password takes."""

    def logged_in():
        context = appliance.context()
        user = User.create(name="anna", role=role, password=HASHED, created_at=context.stamp())
        return open_session(context, user.id)

    client.cookies.set(appliance.cookie, appliance.write(logged_in), domain="127.0.0.1", path="/")
    return client


@pytest.fixture
def desk(appliance, guest):
    """Reception, logged in."""
    return employ(appliance, guest)


def csrf_of(text):
    """The token in the forms of a page."""
    return re.search(r'name="csrf" value="([^"]+)"', text)[1]


def words_of(answer):
    """What a person reads on a page, in one line."""
    text = re.sub(r"<(script|style).*?</\1>", " ", answer.text, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def hidden_fields(text):
    """What a form carries without showing it."""
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', text))


def filled(client, **texts):
    """The registration form as it is shown, filled in for Wang XiaoDong at the CT."""
    page = client.get("/register").text
    form = {row.name: "" for row in REGISTER_FIELDS}
    form |= {
        "family_name": "Wang",
        "given_name": "XiaoDong",
        "chinese_name": "王小东",
        "device": "CT1",
        "procedure": "CT chest",
        "date": "2026-07-05",
        "time": "09:30",
        "same_person": "another",
        "event": "anyway",  # without birth date and sex
    }
    shown = page[page.index('action="/register"') :]
    return form | hidden_fields(shown) | texts


def register(client, **texts):
    """Send the registration form."""
    return client.post("/register", data=filled(client, **texts))


def stored_steps(appliance):
    """The data sets of all steps, in order."""
    found = appliance.read(lambda: [bytes(step.data) for step in ScheduledProcedureStep.select()])
    return [ElementIndex(data) for data in found]


def problem_at(text, name):
    """The words beside a field of a form, None where there are none."""
    found = re.search(rf'<p class="problem" id="{name}-problem">(.*?)</p>', text, re.S)
    return found and html.unescape(found[1])


def value_of(text, name):
    """What stands in an input of a form."""
    found = re.search(rf'<input id="{name}" name="{name}"[^>]*value="([^"]*)"', text)
    return found and html.unescape(found[1])


# Logging in.

OPEN = (
    "/login",
    "/language",
    "/screen",  # asks for its own token
    "/healthz",
    "/metrics",
    "/static/",
    "/api/",
    "/control/",
    "/dicom-web",
)


def page_routes(appliance, method):
    """The paths of all pages that the application has, with 1 for each number."""
    rules = {r.rule for r in appliance.appliance.web_server.app.routes if r.method == method}
    return sorted(re.sub(r"<[^>]*>", "1", rule) for rule in rules if not rule.startswith(OPEN))


def test_no_page_is_shown_without_a_login(appliance, guest):
    appliance.schedule(item())
    routes = page_routes(appliance, "GET")
    assert {"/", "/register", "/step/1"} <= set(routes)
    answers = {path: guest.get(path) for path in routes}
    assert {p: a.headers.get("Location") for p, a in answers.items()} == {
        path: f"/login?next={path}" for path in routes
    }
    assert not any("Wang" in answer.text for answer in answers.values())


def test_no_form_is_taken_without_a_login(appliance, guest):
    [stored] = appliance.schedule(item())
    routes = page_routes(appliance, "POST")
    assert {"/register", "/step/1", "/logout"} <= set(routes)
    codes = {path: guest.post(path, data={"event": "cancel"}).status_code for path in routes}
    assert set(codes.values()) == {401}, "each asks for the login, and keeps what was typed"
    assert [bytes(step) for step in stored_steps(appliance)] == [bytes(stored)]


def test_no_form_is_taken_without_the_token_of_its_login(appliance, guest):
    employ(appliance, guest, "admin")
    [stored] = appliance.schedule(item())
    routes = page_routes(appliance, "POST")
    codes = {path: guest.post(path, data={"event": "cancel"}).status_code for path in routes}
    assert codes == dict.fromkeys(routes, 403)
    assert [bytes(step) for step in stored_steps(appliance)] == [bytes(stored)]


def test_a_login_leads_to_the_page_that_was_asked_for(appliance, guest):
    asked = guest.get("/register", follow_redirects=True)
    fields = hidden_fields(asked.text[asked.text.index('action="/login"') :])
    answer = log_in(guest, "admin", admin_password(appliance), **fields)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/register")


def test_a_login_leads_to_the_day_that_was_asked_for(appliance, guest):
    asked = guest.get("/?date=2026-07-06", follow_redirects=True)
    fields = hidden_fields(asked.text[asked.text.index('action="/login"') :])
    answer = log_in(guest, "admin", admin_password(appliance), **fields)
    assert answer.headers["Location"] == "/?date=2026-07-06"


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "\\\\evil.example",
        "///evil.example",
        "////evil.example",
        "/\t/evil.example",
        "\t//evil.example",
        " //evil.example",
        "http:evil.example",
        "https:/\\evil.example",
        "javascript:alert(1)",
        "/\r\nSet-Cookie: minris=1",
        "",
    ],
)
def test_a_login_leads_to_no_other_site(appliance, guest, target):
    answer = log_in(guest, "admin", admin_password(appliance), next=target)
    location = answer.headers["Location"]
    assert answer.status_code == 303
    assert httpx.URL("http://127.0.0.1/").join(location).host == "127.0.0.1"
    assert re.match(r"/(?![/\\])", location)


def cookie_flags(answer):
    """The flags of the login's cookie, in lower case."""
    return {flag.strip().lower() for flag in answer.headers["Set-Cookie"].split(";")[1:]}


def test_the_cookie_of_a_login_is_kept_from_scripts_and_other_sites(appliance, guest):
    flags = cookie_flags(log_in(guest, "admin", admin_password(appliance)))
    assert {"httponly", "samesite=lax", "path=/"} <= flags
    assert f"max-age={12 * 3600}" in flags


def test_the_cookie_of_a_login_is_secure_behind_https(run_appliance):
    appliance = run_appliance("[web]\npublic_url = https://ris.clinic.example")
    with visiting(appliance) as client:
        assert "secure" in cookie_flags(log_in(client, "admin", admin_password(appliance)))


def test_each_login_has_a_secret_of_its_own(appliance):
    secrets = set()
    for _ in range(2):
        with visiting(appliance) as client:
            log_in(client, "admin", admin_password(appliance))
            secrets.add(client.cookies[appliance.cookie])
    assert len(secrets) == 2
    assert all(len(secret) >= 32 for secret in secrets)


@pytest.mark.parametrize("name", ["admin", "nobody"])
def test_a_wrong_password_and_a_wrong_name_are_refused_in_the_same_words(guest, name):
    answer = log_in(guest, name, "letmein")
    assert answer.status_code == 403
    assert "The name or the password is wrong" in words_of(answer)
    assert "Set-Cookie" not in answer.headers
    assert guest.get("/").status_code == 303


def test_after_a_wrong_password_the_name_need_not_be_typed_again(guest):
    assert 'value="anna"' in log_in(guest, "anna", "letmein").text


def test_ten_wrong_passwords_slow_the_eleventh(appliance, guest):
    for _ in range(10):
        assert log_in(guest, "admin", "letmein").status_code == 403
    answer = log_in(guest, "admin", admin_password(appliance))
    assert answer.status_code == 429
    assert "Try again in 15 minutes" in words_of(answer)
    assert appliance.cookie not in guest.cookies


def test_nine_wrong_passwords_are_forgiven(appliance, guest):
    for _ in range(9):
        log_in(guest, "admin", "letmein")
    assert log_in(guest, "admin", admin_password(appliance)).status_code == 303


def test_wrong_passwords_of_one_do_not_keep_another_out(appliance, guest):
    appliance.write(make_user, appliance.context(), "anna", "desk", "blue-kettle-9")
    for _ in range(10):
        log_in(guest, "admin", "letmein")
    with visiting(appliance, "127.0.0.2") as elsewhere:
        assert log_in(elsewhere, "anna", "blue-kettle-9").status_code == 303


def test_one_address_is_slowed_whatever_names_it_tries(guest):
    for number in range(10):
        log_in(guest, f"user{number}", "letmein")
    assert log_in(guest, "user10", "letmein").status_code == 429


def test_one_user_is_protected_wherever_it_is_tried_from(appliance):
    for number in range(10):
        with visiting(appliance, f"127.0.0.{number + 2}") as client:
            log_in(client, "Admin" if number % 2 else "admin", "letmein")
    with visiting(appliance, "127.0.0.99") as client:
        assert log_in(client, "admin", "letmein").status_code == 429


def test_a_slowed_login_is_not_slowed_for_ever(ctx):
    address = ctx.by(Actor("admin", "192.0.2.7"))
    make_user(ctx, "admin", "admin", "green-lamp-4")
    for _ in range(10):
        note_login_failure(address, "admin")
    with pytest.raises(Refusal):
        authenticate(address, "admin", "green-lamp-4")
    later = datetime.timedelta(minutes=15, seconds=1)
    then = Context(ctx.config, address.actor, now=lambda: ctx.now() + later)
    assert authenticate(then, "admin", "green-lamp-4")


def test_logging_out_ends_the_login_itself(appliance, desk):
    secret = desk.cookies[appliance.cookie]
    answer = desk.post("/logout", data={"csrf": csrf_of(desk.get("/").text)})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/login")
    with visiting(appliance) as thief:
        thief.cookies.set(appliance.cookie, secret)
        assert thief.get("/").status_code == 303


def test_a_login_ends_after_its_hours(appliance, desk):
    def age():
        Session.update(expires_at=appliance.context().stamp(seconds=-1)).execute()

    appliance.write(age)
    assert desk.get("/").headers["Location"] == "/login?next=/"


def test_a_new_password_ends_the_logins_with_the_old(appliance, desk):
    appliance.write(make_user, appliance.context(), "anna", "desk", "red-bicycle-3")
    assert desk.get("/").status_code == 303


def test_a_deleted_user_is_out(appliance, desk):
    appliance.write(delete_user, appliance.context(), "anna")
    assert desk.get("/").status_code == 303


@pytest.mark.parametrize("role", ROLES)
def test_a_role_sees_the_pages_of_its_row_and_no_others(appliance, guest, role):
    employ(appliance, guest, role)
    seen = {page.path: guest.get(page.path).status_code for page in MENU}
    allowed = {page.path: permit(role, page.role) for page in MENU}
    assert seen == {path: 200 if may else 403 for path, may in allowed.items()}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_offered_what_it_may_see(appliance, guest, role):
    employ(appliance, guest, role)
    for page in MENU:
        offered = guest.get(page.group if page.group.startswith("/") else "/").text
        if page.group != "Needs attention":  # only if something does
            assert (f'<a href="{page.path}"' in offered) == permit(
                role, page.menu_role or page.role
            )


@pytest.mark.parametrize("least", ROLES)
@pytest.mark.parametrize("role", [*ROLES, "", "root"])
def test_a_role_may_do_what_those_before_it_may(role, least):
    order = ["desk", "technologist", "admin"]
    expected = role in order and order.index(role) >= order.index(least)
    assert permit(role, least) == expected


# Requests that a page of ours did not send.


@pytest.mark.parametrize("token", [None, "", "guessed", "another's"])
@pytest.mark.parametrize("path", ["/register", "/step/1", "/logout"])
def test_a_form_without_the_token_of_its_login_changes_nothing(appliance, desk, path, token):
    [stored] = appliance.schedule(item("Li^Na=李^娜"))
    form = filled(desk) | {"event": "cancel"}
    form.pop("csrf")
    if token == "another's":
        with visiting(appliance) as other:
            log_in(other, "admin", admin_password(appliance))
            token = csrf_of(other.get("/").text)
    if token is not None:
        form["csrf"] = token
    answer = desk.post(path, data=form)
    assert answer.status_code == 403
    assert [bytes(step) for step in stored_steps(appliance)] == [bytes(stored)]
    assert desk.get("/").status_code == 200


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("path", ["/register", "/step/1", "/logout"])
def test_a_form_that_another_site_sent_changes_nothing(appliance, desk, path, headers):
    [stored] = appliance.schedule(item("Li^Na=李^娜"))
    answer = desk.post(path, data=filled(desk) | {"event": "cancel"}, headers=headers)
    assert answer.status_code == 403
    assert [bytes(step) for step in stored_steps(appliance)] == [bytes(stored)]
    assert desk.get("/").status_code == 200


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_another_site_logs_nobody_in(appliance, guest, headers):
    form = {"name": "admin", "password": admin_password(appliance)}
    answer = guest.post("/login", data=form, headers=headers)
    assert answer.status_code == 403
    assert appliance.cookie not in guest.cookies


def test_a_form_of_ours_is_taken_with_its_origin(appliance, desk):
    headers = {"Origin": appliance.url, "Sec-Fetch-Site": "same-origin"}
    answer = desk.post("/register", data=filled(desk), headers=headers)
    assert answer.status_code == 303


def test_a_form_of_ours_is_taken_behind_a_proxy(run_appliance):
    appliance = run_appliance("[web]\npublic_url = https://ris.clinic.example")
    with visiting(appliance) as client:
        headers = {"Origin": "https://ris.clinic.example", "Sec-Fetch-Site": "same-origin"}
        form = {"name": "admin", "password": admin_password(appliance)}
        assert client.post("/login", data=form, headers=headers).status_code == 303


# Registering.


def test_a_registered_patient_is_on_the_worklist(appliance, desk):
    answer = register(desk)
    page = desk.get(answer.headers["Location"])
    assert answer.status_code == 303
    assert "Registered" in words_of(page)
    assert "王小东" in page.text
    [found] = peers.run_findscu(appliance.port, "MINRIS", "CT1", peers.WORKLIST_KEYS).datasets
    assert found.PatientName == "Wang^XiaoDong=王^小东"
    assert found.PatientID and found.AccessionNumber and found.StudyInstanceUID


@pytest.mark.parametrize(
    ("title", "asked", "answered", "name"),
    [
        ("CT1", "", "ISO_IR 192", "Wang^XiaoDong=王^小东"),
        ("CT1", "GB18030", "GB18030", "Wang^XiaoDong=王^小东"),
        ("US1", "ISO_IR 192", "GB18030", "Wang^XiaoDong=王^小东"),
        ("DX1", "ISO_IR 192", "ISO_IR 100", "Wang^XiaoDong"),
    ],
)
def test_each_device_finds_the_name_in_its_own_set(appliance, desk, title, asked, answered, name):
    """T-MWL-23."""
    register(desk, device=title)
    found = peers.run_findscu(
        appliance.port, "MINRIS", title, ["PatientName"], character_set=asked or None
    ).datasets
    assert [(ds.SpecificCharacterSet, str(ds.PatientName)) for ds in found] == [(answered, name)]


# What is typed, and what the machine is told.
TYPED = (
    ({"family_name": " Miller ", "given_name": "Anna", "chinese_name": ""}, "PatientName", "Miller^Anna"),
    ({"family_name": "Miller", "given_name": "", "chinese_name": ""}, "PatientName", "Miller"),
    ({"family_name": "García López", "given_name": "José", "chinese_name": ""}, "PatientName", "García López^José"),
    ({"family_name": "", "given_name": "", "chinese_name": "王 小东"}, "PatientName", None),
    ({"chinese_name": "欧阳静", "family_name": "Ouyang", "given_name": "Jing"}, "PatientName", "Ouyang^Jing=欧阳^静"),
    ({"birth_date": "1978-03-12"}, "PatientBirthDate", "19780312"),
    ({"weight": "71,5"}, "PatientWeight", "71.5"),
    ({"height": "172"}, "PatientSize", "1.72"),
    ({"sex": "M"}, "PatientSex", "M"),
    ({"pregnancy": "4"}, "PregnancyStatus", "4"),
    ({"allergies": "青霉素"}, "Allergies", "青霉素"),
    ({"alerts": "Pacemaker"}, "MedicalAlerts", "Pacemaker"),
    ({"priority": "STAT"}, "RequestedProcedurePriority", "STAT"),
    ({"physician": "Zhao Min"}, "ReferringPhysicianName", "Zhao^Min"),
    ({"accession": "A-2026-0001"}, "AccessionNumber", "A-2026-0001"),
    ({"patient_id": "K100023"}, "PatientID", "K100023"),
    ({"comment": "Metal in the left eye?\r\nAsk first."}, "RequestedProcedureComments", None),
    ({"procedure": "头颅平扫"}, "RequestedProcedureDescription", "头颅平扫"),
)  # fmt: skip


@pytest.mark.parametrize(("typed", "keyword", "told"), TYPED, ids=lambda x: str(x)[:40])
def test_what_is_typed_is_what_the_machine_is_told(appliance, desk, typed, keyword, told):
    answer = register(desk, **typed)
    assert answer.status_code == 303, words_of(answer)
    [stored] = stored_steps(appliance)
    if told is None:
        assert stored.get(keyword)
    else:
        assert stored.get(keyword) == told


def test_a_chinese_name_alone_is_enough(appliance, desk):
    register(desk, family_name="", given_name="", chinese_name="王小东")
    [stored] = stored_steps(appliance)
    assert stored.get("PatientName").split("=")[1] == "王^小东"


def test_a_physician_with_a_chinese_name_is_in_the_ideographic_group(appliance, desk):
    """PS3.5 6.2.1.1: else a machine without Chinese is sent all of it in another set."""
    register(desk, physician="赵敏", device="DX1")
    [stored] = stored_steps(appliance)
    assert stored.get("ReferringPhysicianName").split("=")[1] == "赵^敏"


def test_an_empty_time_is_now(appliance, desk):
    register(desk, time="")
    [stored] = stored_steps(appliance)
    step = stored.item("ScheduledProcedureStepSequence")
    assert step.get("ScheduledProcedureStepStartTime")


def test_the_form_begins_with_today_and_now(appliance, desk):
    page = desk.get("/register").text
    now = appliance.context().local_now()
    assert value_of(page, "date") in (f"{now:%Y-%m-%d}",)
    assert re.fullmatch(r"\d\d:\d\d", value_of(page, "time"))


def test_every_field_has_a_label(desk):
    page = desk.get("/register").text
    for row in REGISTER_FIELDS:
        assert f'<label for="{row.name}">' in page


@pytest.mark.parametrize(
    "row", ["name | NoSuchKeyword | text | Name", "name | PatientID | nothing | Name"]
)
def test_a_table_of_fields_refuses_what_it_does_not_know(row):
    with pytest.raises(KeyError):
        field_table(f"name | keyword | kind | label\n{row}")


@pytest.mark.parametrize(
    ("kind", "typed", "kept", "shown"),
    [
        ("date", "2026-07-05", "20260705", "2026-07-05"),
        ("time", "09:30", "0930", "09:30"),
        ("weight", " 70,5", "70.5", "70.5"),
        ("height", "178,5", "1.785", "178.5"),
        ("physician", "House Gregory", "House^Gregory", "House Gregory"),
        ("phones", "123", "123", "123"),
    ],
)
def test_a_field_shows_what_was_kept_of_it(kind, typed, kept, shown):
    assert FIELD_KINDS[kind].read(typed) == kept
    assert FIELD_KINDS[kind].show(kept) == shown


# What the desk may get wrong. The form comes again, with words beside the field; nothing is saved.
WRONG = (
    (
        {"family_name": "", "given_name": "", "chinese_name": ""},
        "family_name",
        "Enter the family name",
    ),
    (
        {"family_name": " ", "given_name": "^", "chinese_name": "　"},
        "family_name",
        "Enter the family name",
    ),
    ({"family_name": "W" * 65}, "family_name", "longer than 64"),
    ({"birth_date": "1980-02-31"}, "birth_date", "is not a date"),
    ({"birth_date": "31.02.1980"}, "birth_date", "is not a date"),
    ({"accession": "A2026070500000017"}, "accession", "longer than 16"),
    ({"patient_id": "P" * 65}, "patient_id", "longer than 64"),
    ({"procedure": ""}, "procedure", "Enter the exam"),
    ({"procedure": "x" * 65}, "procedure", "longer than 64"),
    ({"device": ""}, "device", "Choose a device"),
    ({"date": ""}, "date", "Enter the date"),
    ({"date": "2026-06-31"}, "date", "is not a date"),
    ({"time": "25:00"}, "time", "is not a time"),
    ({"weight": "heavy"}, "weight", "is not a number"),
    ({"height": "tall"}, "height", "is not a number"),
    ({"height": "nan"}, "height", "is not a number"),
    ({"physician": "Z" * 65}, "physician", "longer than 64"),
)


@pytest.mark.parametrize(("typed", "field", "words"), WRONG, ids=lambda x: str(x)[:40])
def test_what_is_wrong_is_said_beside_its_field_and_nothing_is_saved(
    appliance, desk, typed, field, words
):
    answer = register(desk, allergies="Penicillin", **typed)
    assert answer.status_code == 422
    assert words in (problem_at(answer.text, field) or "")
    assert "Not saved" in words_of(answer)
    assert stored_steps(appliance) == []
    assert appliance.read(lambda: Patient.select().count()) == 0


@pytest.mark.parametrize("birth_date", ["0231-12-08", "1799-12-31", "2099-01-01"])
def test_a_birth_date_that_nobody_has_is_not_taken(appliance, desk, birth_date):
    """A year typed short in a date field is one of the first centuries."""
    answer = register(desk, birth_date=birth_date)
    assert answer.status_code == 422
    assert problem_at(answer.text, "birth_date")
    assert stored_steps(appliance) == []


def test_what_was_typed_still_stands_in_the_form(desk):
    answer = register(desk, birth_date="1980-02-31", allergies='"latex" & more', weight="71,5")
    assert value_of(answer.text, "family_name") == "Wang"
    assert value_of(answer.text, "chinese_name") == "王小东"
    assert value_of(answer.text, "allergies") == '"latex" & more'
    assert value_of(answer.text, "weight") == "71,5"
    assert '<option value="CT1" selected>' in answer.text


def test_a_corrected_form_is_saved(appliance, desk):
    again = register(desk, birth_date="1980-02-31").text
    form = filled(desk, birth_date="1980-02-28")
    form |= hidden_fields(again[again.index('action="/register"') :])
    assert desk.post("/register", data=form).status_code == 303
    assert len(stored_steps(appliance)) == 1


def test_everything_wrong_is_said_at_once(desk):
    answer = register(desk, birth_date="1980-02-31", accession="A" * 17, procedure="", height="x")
    fields = ("birth_date", "accession", "procedure", "height")
    assert all(problem_at(answer.text, field) for field in fields)


def test_a_wrong_field_is_named_to_those_who_do_not_see_it(desk):
    answer = register(desk, birth_date="1980-02-31")
    field = re.search(r'<input id="birth_date"[^>]*>', answer.text)[0]
    assert 'aria-invalid="true"' in field
    assert 'aria-describedby="birth_date-problem ' in field


@pytest.mark.parametrize("field", ["procedure", "allergies", "alerts", "family_name", "physician"])
def test_a_backslash_does_not_make_two_values(appliance, desk, field):
    """On a Chinese keyboard it lies where 、 is; in DICOM it separates values."""
    answer = register(desk, **{field: "chest\\abdomen"})
    if answer.status_code == 303:
        [stored] = stored_steps(appliance)
        assert not any(b"chest\\" in stored.value(tag) for tag in stored)
    else:
        assert problem_at(answer.text, field)


def test_an_equals_sign_in_a_name_does_not_make_a_group(appliance, desk):
    answer = register(desk, family_name="Wang=Li", chinese_name="")
    if answer.status_code == 303:
        [stored] = stored_steps(appliance)
        assert "Li" not in stored.get("PatientName").partition("=")[2]
    else:
        assert problem_at(answer.text, "family_name")


@pytest.mark.parametrize(
    "sent",
    [
        {"pregnancy": "99999999"},
        {"pregnancy": "²"},
        {"device": "NOT A DEVICE BUT A LONG NAME"},
        {"modality": "ct"},
        {"sex": "X" * 40},
        {"study": "not a uid"},
        {"same_id": "merge"},
        {"family_name": "Wa\0ng"},
        {"priority": "x" * 100},
    ],
    ids=str,
)
def test_a_form_that_was_tampered_with_is_no_mistake_of_ours(desk, sent):
    assert register(desk, **sent).status_code in (303, 422)


# Names a device cannot show.


def soon():
    """A day that has not passed, so that nothing is said of it."""
    return f"{datetime.date.today() + datetime.timedelta(days=2)}"


@pytest.mark.parametrize(
    "typed",
    [
        {},
        {"family_name": "", "given_name": "", "chinese_name": "王小东"},
        {"family_name": "Wałęsa", "given_name": "Lech", "chinese_name": ""},
    ],
    ids=["both", "Chinese alone", "Polish"],
)
def test_a_name_the_device_cannot_show_is_saved_with_words_on_what_it_will(appliance, desk, typed):
    """DX1 takes ISO_IR 100, which has neither Chinese nor ł."""
    answer = register(desk, device="DX1", date=soon(), **typed)
    assert answer.status_code == 303
    page = desk.get(answer.headers["Location"])
    [words] = re.findall(r'<p class="warning">(.*?)</p>', page.text)
    assert "X-ray" in words
    assert len(stored_steps(appliance)) == 1


def test_a_name_without_chinese_is_what_the_device_will_show(appliance, desk):
    page = desk.get(register(desk, device="DX1", date=soon()).headers["Location"])
    [words] = re.findall(r'<p class="warning">(.*?)</p>', page.text)
    [shown] = peers.run_findscu(appliance.port, "MINRIS", "DX1", ["PatientName"]).datasets
    assert all(part in words for part in str(shown.PatientName).split("^"))
    assert "王" not in words


@pytest.mark.parametrize("title", ["CT1", "US1"])
def test_a_name_the_device_can_show_needs_no_words(desk, title):
    page = desk.get(register(desk, device=title, date=soon()).headers["Location"])
    assert 'class="warning"' not in page.text


# The same form twice, and the same patient ID.


def test_a_form_sent_twice_registers_once(appliance, desk):
    form = filled(desk)
    answers = [desk.post("/register", data=form) for _ in range(2)]
    assert {answer.headers["Location"] for answer in answers} == {
        answers[0].headers["Location"],
    }
    assert len(stored_steps(appliance)) == 1


@pytest.mark.parametrize("patient_id", ["", "P7"])
def test_a_double_click_registers_once(appliance, desk, patient_id):
    """Both requests are under way before either is answered."""
    forms = [filled(desk, patient_id=patient_id) for _ in range(6)]
    barrier = threading.Barrier(2)

    def send(form):
        with visiting(appliance, cookies=desk.cookies) as client:
            client.get("/healthz")
            barrier.wait(10)
            return client.post("/register", data=form).status_code

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for form in forms:
            codes = list(pool.map(send, [form, form]))
            assert codes == [303, 303]
    assert len(stored_steps(appliance)) == len(forms)


def test_another_patient_in_a_form_that_was_sent_is_not_lost(appliance, desk):
    """Back in the browser, the next patient typed over the last: the form has its old number."""
    form = filled(desk)
    desk.post("/register", data=form)
    answer = desk.post(
        "/register",
        data=form | {"family_name": "Miller", "given_name": "Anna", "chinese_name": ""},
        follow_redirects=True,
    )
    registered = [stored.get("PatientName") for stored in stored_steps(appliance)]
    assert "Miller^Anna" in registered or answer.status_code >= 400


def test_a_known_patient_id_with_another_name_asks_who_is_right(appliance, desk):
    register(desk, patient_id="P7", birth_date="1978-03-12")
    answer = register(
        desk, patient_id="P7", family_name="Miller", given_name="Anna", chinese_name=""
    )
    assert answer.status_code == 422
    assert "P7 belongs to" in problem_at(answer.text, "patient_id")
    assert '<select id="same_id"' in answer.text
    assert len(stored_steps(appliance)) == 1


def test_a_known_patient_is_named_as_people_read_it(desk):
    register(desk, patient_id="P7", birth_date="1978-03-12")
    answer = register(
        desk, patient_id="P7", family_name="Miller", given_name="Anna", chinese_name=""
    )
    words = problem_at(answer.text, "patient_id")
    assert "^" not in words
    assert "=" not in words
    assert "12 Mar 1978" in words


def ask_again(client, choice):
    """Wang has P7; Miller is registered with P7 and the desk chooses."""
    register(client, patient_id="P7")
    texts = {"family_name": "Miller", "given_name": "Anna", "chinese_name": "", "patient_id": "P7"}
    again = register(client, **texts)
    form = filled(client, **texts) | hidden_fields(
        again.text[again.text.index('action="/register"') :]
    )
    return client.post("/register", data=form | {"same_id": choice})


def test_the_name_of_a_known_patient_is_corrected_on_demand(appliance, desk):
    assert ask_again(desk, "update").status_code == 303
    names = {stored.get("PatientName") for stored in stored_steps(appliance)}
    assert names == {"Miller^Anna"}


def test_another_patient_gets_another_id_on_demand(appliance, desk):
    assert ask_again(desk, "new").status_code == 303
    wang, miller = stored_steps(appliance)
    assert (wang.get("PatientID"), wang.get("PatientName")) == ("P7", "Wang^XiaoDong=王^小东")
    assert miller.get("PatientName") == "Miller^Anna"
    assert miller.get("PatientID") not in ("", "P7")


def test_nothing_is_saved_before_the_desk_has_chosen(appliance, desk):
    assert ask_again(desk, "").status_code == 422
    assert len(stored_steps(appliance)) == 1


def test_a_known_patient_comes_again(appliance, desk):
    for procedure in ("CT chest", "CT abdomen"):
        assert register(desk, patient_id="P7", procedure=procedure).status_code == 303
    assert appliance.read(lambda: Patient.select().count()) == 1


def test_a_patient_id_that_is_too_long_is_not_a_known_one(desk):
    answer = register(desk, patient_id="P" * 65)
    assert "known with another name" not in words_of(answer)


# The board, and what is done on it.


def test_the_board_shows_the_day_by_device_and_time(appliance, desk):
    today = appliance.context().today()
    for name, title, modality, time_of_day in (
        ("Li^Na=李^娜", "US1", "US", "1015"),
        ("Miller^Anna", "CT1", "CT", "0930"),
        ("Zhang^Wei=张^伟", "CT1", "CT", "0815"),
    ):
        appliance.schedule(
            item(
                name,
                ScheduledStationAETitle=title,
                Modality=modality,
                ScheduledProcedureStepStartDate=today,
                ScheduledProcedureStepStartTime=time_of_day,
            )
        )
    words = words_of(desk.get("/"))
    shown = [
        "CT room (CT1)",
        "08:15",
        "张伟",
        "09:30",
        "Miller",
        "Ultrasound (US1)",
        "10:15",
        "李娜",
    ]
    places = [words.index(one) for one in shown]
    assert places == sorted(places)
    assert "All 3" in words


def test_another_day_is_shown_on_demand(appliance, desk):
    appliance.schedule(item(ScheduledProcedureStepStartDate="20300101"))
    assert "王小东" not in desk.get("/").text
    assert "王小东" in desk.get("/?date=2030-01-01").text


@pytest.mark.parametrize("date", ["2026-02-31", "tomorrow", "<script>", "99999999"])
def test_a_day_that_is_none_is_refused(desk, date):
    answer = desk.get("/", params={"date": date})
    assert answer.status_code == 422
    assert "<script>" not in answer.text


def test_no_day_is_today(desk):
    assert desk.get("/", params={"date": ""}).status_code == 200


def test_an_urgent_exam_is_marked(appliance, desk):
    register(desk, priority="STAT", date=f"{appliance.context().local_now():%Y-%m-%d}")
    assert "STAT" in words_of(desk.get("/"))


def test_what_has_ended_stays_on_the_board(appliance, desk):
    appliance.schedule(item(ScheduledProcedureStepStatus="COMPLETED"))
    page = desk.get("/?date=2026-07-05")
    assert 'data-state="COMPLETED"' in page.text
    assert "王小东" in page.text


def test_an_empty_day_leads_to_the_form(desk):
    assert 'href="/register"' in desk.get("/?date=2031-01-01").text


def test_an_exam_at_an_unknown_device_is_shown(appliance, desk):
    appliance.schedule(item(ScheduledStationAETitle="OLD_CT"))
    assert "OLD_CT" in desk.get("/?date=2026-07-05").text


EVENTS = [(state, event) for state, events in EVENTS_OF_STATE.items() for event in events]


@pytest.mark.parametrize(("state", "event"), EVENTS)
def test_a_button_moves_an_exam_as_the_table_says(appliance, desk, state, event):
    appliance.schedule(item(ScheduledProcedureStepStatus=state))
    page = desk.get("/step/1").text
    assert f'name="event" value="{event}"' in page
    answer = desk.post("/step/1", data={"csrf": csrf_of(page), "event": event})
    assert answer.status_code == 303
    [stored] = stored_steps(appliance)
    step = stored.item("ScheduledProcedureStepSequence")
    assert step.text(STEP_STATUS) == STEP_TRANSITIONS[event, state]


def test_a_button_leads_back_to_where_it_was_pressed(appliance, desk):
    appliance.schedule(item())
    token = csrf_of(desk.get("/register").text)
    for path in ("/?date=2026-07-05", "/step/1"):
        answer = desk.post(
            "/step/1",
            data={"csrf": token, "event": "arrive"},
            headers={"Referer": f"{appliance.url}{path}"},
        )
        assert answer.headers["Location"] == path


def test_what_has_begun_is_not_cancelled(appliance, desk):
    appliance.schedule(item(ScheduledProcedureStepStatus="STARTED"))
    token = csrf_of(desk.get("/register").text)
    answer = desk.post("/step/1", data={"csrf": token, "event": "cancel"})
    assert answer.status_code == 409
    assert "STARTED" in words_of(answer) or "in progress" in words_of(answer).lower()


@pytest.mark.parametrize("event", ["", "explode", "STARTED"])
def test_an_action_that_is_none_is_400(appliance, desk, event):
    appliance.schedule(item())
    token = csrf_of(desk.get("/register").text)
    assert desk.post("/step/1", data={"csrf": token, "event": event}).status_code == 422


def test_the_reason_of_a_cancelled_exam_is_kept(appliance, desk):
    appliance.schedule(item())
    token = csrf_of(desk.get("/register").text)
    desk.post("/step/1", data={"csrf": token, "event": "cancel", "remark": "Patient has flu"})
    assert "Patient has flu" in words_of(desk.get("/step/1"))


# Texts are texts.

SCRIPT = "<script>alert('王')</script>"


@pytest.mark.parametrize(
    "field", ["family_name", "procedure", "allergies", "comment", "patient_id"]
)
def test_markup_in_a_field_is_shown_as_text(desk, field):
    answer = register(desk, date="2026-07-05", **{field: SCRIPT})
    for page in (desk.get(answer.headers["Location"]), desk.get("/?date=2026-07-05")):
        assert "<script>alert" not in page.text
    assert html.escape(SCRIPT, quote=True).partition("(")[0] in desk.get("/step/1").text


def test_markup_in_a_form_that_comes_again_is_shown_as_text(desk):
    answer = register(desk, family_name=f'"{SCRIPT}', birth_date=SCRIPT)
    assert answer.status_code == 422
    assert "<script>alert" not in answer.text


def test_markup_from_a_modality_is_shown_as_text(appliance, desk):
    appliance.schedule(item(f"Evil^{SCRIPT}", RequestedProcedureComments=SCRIPT))
    for path in ("/step/1", "/?date=2026-07-05"):
        assert "<script>alert" not in desk.get(path).text


# Pages that are not there, and languages.


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/step/999", 404),
        ("GET", "/step/one", 404),
        ("GET", "/static/nothing.css", 404),
        ("GET", "/static/../minris.py", 404),
        ("GET", "/static/%2e%2e/minris.py", 404),
        ("DELETE", "/", 405),
        ("POST", "/", 405),
    ],
)
def test_what_is_not_there_is_said_on_a_page_with_a_way_back(desk, method, path, status):
    answer = desk.request(method, path)
    assert answer.status_code in (status, 403)
    assert answer.headers["Content-Type"].startswith("text/html")
    assert 'href="/"' in answer.text


def test_style_and_script_are_not_sent_again_to_who_has_them(desk):
    first = desk.get("/static/minris.css")
    again = desk.get("/static/minris.css", headers={"If-None-Match": first.headers["ETag"]})
    assert (first.status_code, first.headers["Content-Type"]) == (200, "text/css; charset=utf-8")
    assert (again.status_code, again.content) == (304, b"")


def test_the_board_loads_itself_anew_without_script(desk):
    assert re.search(r'<noscript>\s*<meta http-equiv="refresh"', desk.get("/").text)
    assert 'http-equiv="refresh"' not in desk.get("/register").text


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"),
        ("zh", "zh-CN"),
        ("fr", "en"),
        ("fr,zh-CN;q=0.8", "zh-CN"),
        ("*", "en"),
        ("e", "en"),
        (";;,,", "en"),
    ],
)
def test_the_language_is_the_browsers(accepted, language):
    assert choose_language(["en", "zh-CN"], "", accepted, "en") == language


def test_a_form_is_refused_in_the_readers_language(appliance, guest):
    employ(appliance, guest, "admin")
    guest.headers["Accept-Language"] = "zh-CN"
    form = {"csrf": csrf_of(guest.get("/register").text), "do": "end", "name": "nobody"}
    answer = guest.post("/users", data=form)
    assert answer.status_code == 422
    assert "没有用户nobody" in words_of(answer).replace(" ", "")


def test_the_language_chosen_goes_before_the_browsers():
    assert choose_language(["en", "zh-CN"], "zh-CN", "en-US", "en") == "zh-CN"


def test_every_language_is_offered_by_its_own_name(guest):
    page = guest.get("/login").text
    offered = dict(re.findall(r'name="language" value="([^"]+)" lang="[^"]+">([^<]+)<', page))
    known = {language: found["English"] for language, found in load_catalogues().items()}
    assert offered == {language: name for language, name in known.items() if language != "en"}
    assert '<html lang="en" dir="ltr">' in page


def test_the_pages_are_there_in_chinese(desk):
    desk.get("/language", params={"language": "zh-CN", "back": "/register"})
    page = desk.get("/register").text
    assert '<html lang="zh-CN" dir="ltr">' in page
    assert "Family name" not in page


def test_changing_the_language_leads_to_no_other_site(desk):
    answer = desk.get("/language", params={"language": "en", "back": "//evil.example/"})
    assert answer.headers["Location"] == "/"
    assert {"httponly", "samesite=lax"} <= cookie_flags(answer)


# In Chromium.

SWITCHES = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def chromium():
    """A browser, started once."""
    path = peers.chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=SWITCHES)
        yield browser
        browser.close()


class Desk:
    """A browser window at reception; notes what the browser complains of."""

    def __init__(self, chromium, appliance, **how):
        self.appliance, self.complaints, self.hosts = appliance, [], set()
        how = {"locale": "en-GB", "base_url": appliance.url, **how}
        self.context = chromium.new_context(**how)
        self.context.set_default_timeout(30_000)
        self.page = self.new_page()

    def new_page(self):
        """Another tab."""
        page = self.context.new_page()
        page.on("console", self.heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.hosts.add(httpx.URL(request.url).host))
        return page

    def heard(self, message):
        """A line of the browser's console."""
        source = message.location.get("url", "")
        if message.type in ("error", "warning") and not source.endswith("/favicon.ico"):
            self.complaints.append(message.text)

    def log_in(self, name="admin", password=""):
        """Fill in the login form."""
        if not self.page.url.endswith("/login"):
            self.page.goto("/login")
        self.page.locator("[name=name]").fill(name)
        self.page.locator("[name=password]").fill(password or admin_password(self.appliance))
        self.page.locator("form.login button").click()

    def enter(self):
        """See the board as the administrator, whose login is made without the form."""
        secret = self.appliance.write(open_session, self.appliance.context(), 1)
        cookie = {"name": self.appliance.cookie, "value": secret, "url": self.appliance.url}
        self.context.add_cookies([cookie])
        self.page.goto("/")

    def hearing(self):
        """A block at whose end the page that it opens hears of changes."""
        return self.page.expect_response("**/events")

    def fill_in(self, page=None, **texts):
        """Fill in the registration form for Wang XiaoDong at the CT, today."""
        page = page or self.page
        page.goto("/register")
        for more in page.locator("details.row > summary").all():
            more.click()
        texts = {
            "family_name": "Wang",
            "given_name": "XiaoDong",
            "chinese_name": "王小东",
            "birth_date": "1978-03-12",
            "procedure": "CT chest",
        } | texts
        for name, text in texts.items():
            page.locator(f"#{name}").fill(text)
        page.locator("#sex").select_option("M")
        page.locator("#device").select_option("CT1")

    def send(self, page=None):
        """Press the form's button."""
        (page or self.page).locator("form.fields button.main").click()

    def picture(self, name):
        """Take a picture of the whole page for a person to look at, where one asks for pictures."""
        if os.environ.get("MINRIS_PICTURES"):
            self.page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)


@pytest.fixture
def window(chromium, run_appliance):
    """Gives a function that opens a window: window(java_script_enabled=False)."""
    appliance = run_appliance(f"[web]\nport = {peers.free_port()}")  # it may come back there
    with contextlib.ExitStack() as stack:

        def open_window(**how):
            desk = Desk(chromium, appliance, **how)
            stack.callback(desk.context.close)
            return desk

        yield open_window


def report_of(found, status, **more):
    """What a CT says of a worklist answer by MPPS."""
    step = found.ScheduledProcedureStepSequence[0]
    scheduled = {
        "StudyInstanceUID": str(found.StudyInstanceUID),
        "ReferencedStudySequence": [],
        "AccessionNumber": found.AccessionNumber,
        "RequestedProcedureID": found.RequestedProcedureID,
        "ScheduledProcedureStepID": step.ScheduledProcedureStepID,
    }
    return {
        "ScheduledStepAttributesSequence": [scheduled],
        "PatientName": str(found.PatientName),
        "PatientID": found.PatientID,
        "PerformedProcedureStepID": "PPS1",
        "PerformedStationAETitle": "CT1",
        "PerformedProcedureStepStartDate": step.ScheduledProcedureStepStartDate,
        "PerformedProcedureStepStartTime": "093500",
        "PerformedProcedureStepStatus": status,
        "Modality": "CT",
    } | more


def begin(port, found, uid):
    """The CT begins."""
    started = report_of(found, "IN PROGRESS")
    ask = {"op": "n-create", "instance": uid, "charset": "ISO_IR 192", "dataset": started}
    [answer] = peers.run_dimse(port, [ask], "CT1", "MINRIS")
    assert answer["status"] == 0x0000


def complete(port, uid):
    """The CT is done."""
    series = {
        "PerformingPhysicianName": "",
        "ProtocolName": "Thorax",
        "OperatorsName": "",
        "SeriesInstanceUID": "2.25.700",
        "SeriesDescription": "",
        "RetrieveAETitle": "",
        "ReferencedImageSequence": [
            {
                "ReferencedSOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
                "ReferencedSOPInstanceUID": "2.25.701",
            }
        ],
        "ReferencedNonImageCompositeSOPInstanceSequence": [],
    }
    ended = {
        "PerformedProcedureStepStatus": "COMPLETED",
        "PerformedProcedureStepEndDate": "20260705",
        "PerformedProcedureStepEndTime": "094500",
        "PerformedSeriesSequence": [series],
    }
    ask = {"op": "n-set", "instance": uid, "charset": "ISO_IR 192", "dataset": ended}
    [answer] = peers.run_dimse(port, [ask], "CT1", "MINRIS")
    assert answer["status"] == 0x0000


def row_in(page, state):
    """The row of 王小东 in a state on the board."""
    return page.locator(f'#board tr[data-state="{state}"]', has_text="王小东")


def register_by_hand(desk):
    """Reception logs in and registers 王小东; the CT finds one answer."""
    desk.log_in()
    desk.fill_in()
    desk.send()
    desk.page.get_by_role("status").filter(has_text="Registered").wait_for()
    answers = peers.run_findscu(desk.appliance.port, "MINRIS", "CT1", peers.WORKLIST_KEYS)
    [found] = answers.datasets
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert found.PatientName == "Wang^XiaoDong=王^小东"
    assert found.PatientBirthDate == "19780312"
    return found


SOONER_THAN_RELOADED_MS = 20_000  # the page asks anew every 30 s, whatever it has heard


def test_a_patient_registered_on_the_page_is_worked_by_a_modality(window):
    """The board stays open and is never loaded anew."""
    desk = window(viewport={"width": 1280, "height": 800})
    desk.page.goto("/")
    desk.picture("login")
    found = register_by_hand(desk)
    desk.picture("registered")
    with desk.hearing():
        desk.page.goto("/")
    row_in(desk.page, "SCHEDULED").wait_for()
    desk.picture("board-scheduled")
    desk.page.evaluate("window.loadedOnce = true")
    begin(desk.appliance.port, found, "2.25.77")
    row_in(desk.page, "STARTED").wait_for(timeout=SOONER_THAN_RELOADED_MS)
    desk.picture("board-in-progress")
    complete(desk.appliance.port, "2.25.77")
    row_in(desk.page, "COMPLETED").wait_for(timeout=SOONER_THAN_RELOADED_MS)
    desk.picture("board-done")
    assert desk.page.evaluate("window.loadedOnce")
    desk.page.get_by_role("link", name="王小东").click()
    desk.page.get_by_text("Thorax").wait_for()
    desk.picture("step-done")
    assert desk.complaints == []
    assert desk.hosts == {"127.0.0.1"}


def test_the_same_without_script(window):
    desk = window(java_script_enabled=False)
    found = register_by_hand(desk)
    for report, state in (
        (None, "SCHEDULED"),
        (lambda: begin(desk.appliance.port, found, "2.25.77"), "STARTED"),
        (lambda: complete(desk.appliance.port, "2.25.77"), "COMPLETED"),
    ):
        if report:
            report()
        desk.page.goto("/")
        assert row_in(desk.page, state).count() == 1


def test_reception_works_with_the_keyboard_alone(window):
    """The name field of the login is ready to type in, and Enter sends a form."""
    desk = window()
    desk.page.goto("/")
    desk.page.locator("input:focus").wait_for()
    keyboard = desk.page.keyboard
    for text in ("admin", admin_password(desk.appliance)):
        keyboard.type(text)
        keyboard.press("Tab")
    keyboard.press("Enter")
    desk.page.locator("#board").wait_for()


def test_a_wrong_password_is_said_in_the_browser(window):
    desk = window()
    desk.log_in(password="letmein")
    alert = desk.page.get_by_role("alert")
    alert.wait_for()
    assert "wrong" in alert.inner_text()
    desk.picture("login-wrong")


def test_a_double_click_in_the_browser_registers_once(window):
    desk = window()
    desk.enter()
    desk.fill_in()
    desk.page.locator("form.fields button.main").dblclick()
    desk.page.get_by_role("status").filter(has_text="Registered").wait_for()
    assert len(stored_steps(desk.appliance)) == 1


def test_a_birth_date_that_is_none_is_not_lost_on_the_way(window):
    """Chromium sends a date field that it cannot read as an empty one."""
    desk = window()
    desk.enter()
    desk.fill_in(birth_date="")
    desk.page.locator("#birth_date").press_sequentially("02311980")
    desk.page.locator("#family_name").focus()
    answered = desk.page.expect_event("requestfinished", lambda r: r.method == "POST", timeout=1000)
    with contextlib.suppress(PlaywrightTimeout), answered:  # or the browser refuses to send it
        desk.send()
    assert stored_steps(desk.appliance) == []


def test_what_is_wrong_is_shown_beside_its_field_in_the_browser(window):
    desk = window()
    desk.enter()
    desk.fill_in(family_name="", given_name="", chinese_name="", accession="A2026070500000017")
    desk.send()
    desk.page.locator("#accession-problem").wait_for()
    desk.picture("register-wrong")
    assert desk.page.locator("#family_name-problem").is_visible()
    assert desk.page.locator("#procedure").input_value() == "CT chest"


def test_a_button_of_the_board_works_without_leaving_it(window):
    desk = window()
    desk.appliance.schedule(item(ScheduledProcedureStepStartDate=desk.appliance.context().today()))
    desk.enter()
    row_in(desk.page, "SCHEDULED").get_by_role("button", name="Check in").click()
    row_in(desk.page, "ARRIVED").wait_for()
    assert httpx.URL(desk.page.url).path == "/"
    toast = desk.page.locator(".toast .told")
    assert "Wang XiaoDong" in toast.inner_text()
    toast.get_by_role("button").click()
    row_in(desk.page, "SCHEDULED").wait_for()


def test_the_board_says_when_the_server_has_gone(window):
    desk = window()
    desk.enter()
    desk.page.locator("#board").wait_for()
    assert not desk.page.locator("#offline").is_visible()
    desk.appliance.stop()
    desk.page.locator("#offline").wait_for(state="visible")
    desk.picture("board-offline")


def test_the_board_recovers_when_the_server_is_back(window):
    desk = window()
    desk.enter()
    desk.page.locator("#board").wait_for()
    desk.page.goto("/?by=device")  # not the list of the first day
    desk.appliance.stop()
    desk.page.locator("#offline").wait_for(state="visible")
    again = Running(desk.appliance.config)
    try:
        again.schedule(item(ScheduledProcedureStepStartDate=again.context().today()))
        row_in(desk.page, "SCHEDULED").wait_for()
        desk.page.locator("#offline").wait_for(state="hidden")
    finally:
        again.stop()


def test_a_board_whose_login_has_ended_asks_for_it(window):
    desk = window()
    with desk.hearing():
        desk.log_in()
    desk.appliance.write(lambda: Session.delete().execute())
    desk.appliance.schedule(item())
    desk.page.get_by_label("Password").wait_for()


HIDE = """
for (const [name, value] of [["hidden", true], ["visibilityState", "hidden"]])
  Object.defineProperty(document, name, { value, configurable: true });
document.dispatchEvent(new Event("visibilitychange"));
"""
SHOW = HIDE.replace("true", "false", 1).replace(
    '"visibilityState", "hidden"', '"visibilityState", "visible"'
)


def test_a_seventh_tab_of_one_browser_still_opens(window):
    """A browser opens six connections to one server; each live board keeps one of them.

    Chromium without a screen calls every tab visible, so each one is told that it is not.
    """
    desk = window()
    desk.enter()
    desk.page.evaluate(HIDE)
    for _ in range(6):
        tab = desk.new_page()
        tab.goto("/", timeout=5000)
        tab.evaluate(HIDE)


def test_a_board_that_was_hidden_is_right_when_it_is_seen_again(window):
    desk = window()
    desk.enter()
    desk.page.locator("#board").wait_for()
    desk.page.goto("/?by=device")  # not the list of the first day
    desk.page.evaluate(HIDE)
    today = desk.appliance.context().today()
    desk.appliance.schedule(item(ScheduledProcedureStepStartDate=today))
    desk.page.evaluate(SHOW)
    row_in(desk.page, "SCHEDULED").wait_for()


PICTURED = [
    *(page.path for page in MENU),
    *("/?by=state", "/step/1", "/step/1/edit", "/step/1/slip", "/step/1/label", "/patient/1"),
    *("/patient/1/merge", "/patient/1/erase", "/patients?q=wang", "/print", "/why?q=wang"),
    *("/calendar?device=CT1", "/devices/edit?profile=Modern%2C+UTF-8", "/users/new", "/login"),
    *("/catalogue/import", "/workitems/new", "/devices/doctor?name=CT%20room", "/nothing"),
    *("/devices/sheet?name=CT%20room", "/blocked?device=CT1", "/step/4/move", "/patient/1/views"),
    *("/search?q=wang", "/password", "/screen"),
]


@pytest.fixture
def busy(window):
    """A window at a department with a few exams in several states."""

    def open_busy(**how):
        desk = window(**how)
        today = desk.appliance.context().today()
        day = (
            ("Wang^XiaoDong=王^小东", "CT1", "CT", "0830", "COMPLETED", "头颅平扫"),
            ("Miller^Anna", "CT1", "CT", "0915", "STARTED", "CT abdomen and pelvis with contrast"),
            ("Garcia^Luis", "CT1", "CT", "0930", "ARRIVED", "CT chest"),
            ("Zhang^Wei=张^伟", "DX1", "DX", "0945", "SCHEDULED", "Left hand"),
            ("Li^Na=李^娜", "US1", "US", "1000", "CANCELED", "Abdomen"),
            ("Ouyang^Jing=欧阳^静", "US1", "US", "1030", "NO SHOW", "Thyroid"),
        )
        for name, title, modality, at, state, exam in day:
            desk.appliance.schedule(
                item(
                    name,
                    ScheduledStationAETitle=title,
                    Modality=modality,
                    ScheduledProcedureStepStartDate=today,
                    ScheduledProcedureStepStartTime=at,
                    ScheduledProcedureStepStatus=state,
                    RequestedProcedureDescription=exam,
                    RequestedProcedurePriority="STAT" if "Miller" in name else "ROUTINE",
                    PatientBirthDate="19780312",
                    Allergies="Penicillin",
                )
            )
        desk.enter()
        context = desk.appliance.context()
        desk.page.goto(
            f"/screen?token={desk.appliance.write(make_token, context, 'kiosk', 'kiosk')}"
        )
        desk.page.goto("/")
        desk.page.locator("#board").wait_for()
        return desk

    return open_busy


def shown(desk, path):
    """Show a page of the busy department."""
    desk.page.goto(path)
    return desk.page


def name_of(path):
    """What a picture of a page is called."""
    return re.sub(r"\W+", "-", path).strip("-") or "board"


WIDTHS = (375, 390, 1920)  # a telephone, another, a screen; else 1280
RULES = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"],
    "resultTypes": ["violations"],  # of what is in order it need not tell
}
TOO_WIDE = "document.documentElement.scrollWidth > window.innerWidth"


@pytest.mark.parametrize(("locale", "scheme"), [("en-GB", "light"), ("zh-CN", "dark")])
def test_nothing_bars_anyone_from_a_page(busy, locale, scheme):
    """axe-core, WCAG 2.1 A and AA: contrast, labels, order, names; and no page is too wide.

    Each page is loaded once: neither does the browser complain of one, nor go to another host.
    """
    source = peers.axe_core()
    desk = busy(locale=locale, color_scheme=scheme, has_touch=True)
    found = {}
    for path in PICTURED:
        page = shown(desk, path)
        desk.picture(f"{locale}-{scheme}-{name_of(path)}")
        page.evaluate(source)
        result = page.evaluate("rules => axe.run(document, rules)", RULES)
        for violation in result["violations"]:
            where = ", ".join(node["html"][:80] for node in violation["nodes"][:3])
            found.setdefault(path, []).append(f"{violation['id']}: {where}")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 700})
            if page.evaluate(TOO_WIDE):
                found.setdefault(path, []).append(f"is wider than {width}")
            if width == WIDTHS[0]:
                desk.picture(f"phone-{locale}-{name_of(path)}")
        page.set_viewport_size({"width": 1280, "height": 720})
    assert found == {}
    assert [text for text in desk.complaints if "404" not in text] == []
    assert desk.hosts == {"127.0.0.1"}
