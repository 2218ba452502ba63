"""Nonsense in addresses and forms: numbers of twenty digits, superscripts, days of no calendar.

Each page, each parameter and field that the package reads, found in its source. What cannot be is
404 or 422 (400 where DICOMweb and the API say so), never 500; a refusal is in the user's language.
"""

import ast
import functools
import html
import inspect
import re
import urllib.parse

import pytest
from conftest import Running, item, load_config, made_tree, vr, write_config
from test_architecture import MODULES
from test_mpps import create, creation_for
from test_other_patient import JOHN
from test_pages import visiting

from minris.dicomweb.routes import DICOM_ROUTES, WEB_PARAMETERS
from minris.pages.site import PAGES
from minris.web.api import ROUTES

NONSENSE = (
    "9" * 20, "9" * 200, "\N{SUPERSCRIPT TWO}", "1\N{SUPERSCRIPT TWO}", "\N{FULLWIDTH DIGIT THREE}",
    "\N{ARABIC-INDIC DIGIT THREE}", "-1", "0", "1e5", "0x1", "1.5", "+1", " 1 ", "\0", "1\n",
    "2026-02-30", "20260230", "0000-00-00", "00000101", "00010101", "0001-01-01", "9999-12-31",
    "99991231", "10000-01-01", "2026-07-0\N{SUPERSCRIPT FIVE}", "２０２６０７０５", "25:61", "24:00",
    "\N{SUPERSCRIPT NINE}\N{SUPERSCRIPT NINE}:00", "none", "'; --", "\N{PILE OF POO}", "%", "\\", "^", "=",
)  # fmt: skip


QUICK = {"9" * 20, "\N{SUPERSCRIPT TWO}", "2026-02-30"}
each_nonsense = pytest.mark.parametrize("value", [
    pytest.param(one, id=ascii(one)[:24], marks=() if one in QUICK else pytest.mark.long)
    for one in NONSENSE
])  # fmt: skip


@functools.cache
def names_read():
    """The names of parameters and fields that pages read: first arguments of p.query, p.form, …"""
    found = {"row", "csrf"}
    for node in ast.walk(made_tree()):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            name = node.args[0]
            reads = node.func.attr in (
                "query",
                "form",
                "number",
                "day",
                "get",
                "getunicode",
                "getall",
            )
            if reads and isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.add(name.value)
    return sorted(found)


def paths_with(part):
    """Each page's path with this text for what varies in it."""
    quoted = urllib.parse.quote(part, safe="")
    return {page: re.sub("<[^>]*>", quoted, page.path) for page in PAGES}


@pytest.fixture(scope="module")
def department(tmp_path_factory, ready_store):
    """An appliance with one of everything, and an administrator in Chinese who is asked for no token."""
    folder = tmp_path_factory.mktemp("department")
    config = load_config(write_config(folder))
    ready_store(config.store_path)
    running = Running(config)
    today = running.context().today()
    [step] = running.schedule(
        item("Doe^John", PatientID="P7", ScheduledProcedureStepStartDate=today)
    )
    running.write(create, running.context(), creation_for(step, **{**JOHN, "PatientID": "P9"}))
    yield running
    running.stop()


@pytest.fixture
def admin(department):
    headers = {"Accept-Language": "zh-CN", "Authorization": f"Bearer {department.token()}"}
    with visiting(department, headers=headers, timeout=60) as client:
        yield client


KEPT = {"/logout", "/box", "/login"}  # they end the session, make a backup, lock out
ASKS = {"/screen": 401}  # for a token of its own


@each_nonsense
def test_no_address_of_a_page_ends_in_an_error(admin, value):
    for page, path in paths_with(value).items():
        if page.get and "<" in page.path:
            answer = admin.get(path)
            assert answer.status_code in (200, 303, 404, 422), (path, answer.status_code)


@each_nonsense
def test_no_parameter_of_a_page_ends_in_an_error(admin, value):
    names = names_read()
    for page, path in paths_with("1").items():
        if page.get and page.path not in KEPT:
            answers = {"": admin.get(path, params=dict.fromkeys(names, value))}
            answers |= {name: admin.get(path, params={name: value}) for name in names
                        if f'"{name}"' in source_of(page.get)}  # fmt: skip
            for name, answer in answers.items():
                expected = (200, 204, 303, 404, 422, ASKS.get(path))
                assert answer.status_code in expected, (
                    path,
                    name,
                    answer.status_code,
                )


@functools.cache
def source_of(function):
    """The source of the module of a page."""
    return inspect.getsource(inspect.getmodule(function))


VERBS = ("event", "do", "kind")  # the fields that say what a form is to do


@functools.cache
def verbs_of(page):
    """What the forms of a page can do: the words in its function, and the keys of tables it uses."""
    source = inspect.getsource(page.post)
    if not any(f'"{name}"' in source for name in VERBS):
        return [""]
    tables = (
        getattr(inspect.getmodule(page.post), name, ()) for name in re.findall("[A-Z_]{4,}", source)
    )
    keys = {
        key for table in tables if isinstance(table, dict) for key in table if isinstance(key, str)
    }
    return sorted({"", *keys, *re.findall('"([a-z][a-z ]{1,20})"', source)})


def sent(admin, page, part, value, verb):
    """The answer to a form with this in each of its fields."""
    fields = dict.fromkeys(names_read(), value) | dict.fromkeys(VERBS, verb)
    return admin.post(re.sub("<[^>]*>", part, page.path), data=fields)


POSTED = [page for page in PAGES if page.post and page.path not in KEPT]


@each_nonsense
def test_no_form_ends_in_an_error(admin, value):
    for page in POSTED:
        for verb in verbs_of(page):
            answer = sent(admin, page, "1", value, verb)
            assert answer.status_code in (200, 303, 403, 404, 409, 422), (page.path, verb, answer)


SHOWN_FORMS = (
    "/register",
    "/step/1/edit",
    "/patient/1",
    "/workitems/new",
    "/devices/edit?name=",
    "/blocked?device=CT1",
    "/settings",
)


@each_nonsense
def test_no_field_of_a_form_that_is_filled_in_ends_in_an_error(admin, value):
    """The others stay as they are shown, so that it is the one field that is read."""
    for shown in SHOWN_FORMS:
        text = admin.get(shown).text
        found = re.search(
            r'<form [^>]*action="([^"]+)"[^>]*class="fields"[^>]*>(.*?)</form>', text, re.S
        )
        path, form = html.unescape(found[1]), found[2]
        fields = dict(re.findall(r'<input[^>]* name="(\w+)"[^>]* value="([^"]*)"', form))
        fields |= dict.fromkeys(re.findall(r'<(?:select|textarea) [^>]*name="(\w+)"', form), "")
        fields |= (
            {"family_name": "Doe", "device": "CT1", "procedure": "CT"}
            if "register" in shown
            else {}
        )
        for name in fields:
            answer = admin.post(path, data=fields | {name: value, "study": ""})
            assert answer.status_code in (200, 303, 404, 409, 422), (path, name, answer)


WEB_ANSWERS = {200, 201, 202, 204, 400, 403, 404, 405, 406, 409, 410, 415, 422, 426}
KEYS = ("PatientBirthDate", "00100030", "ScheduledProcedureStepSequence.ScheduledProcedureStepStartDate",
        "ScheduledProcedureStepSequence.ScheduledProcedureStepStartTime", "ProcedureStepState",
        "ScheduledProcedureStepStartDateTime", "PatientSize", "NumberOfStudyRelatedInstances")  # fmt: skip


@each_nonsense
def test_no_address_of_a_program_ends_in_an_error(admin, value):
    quoted = urllib.parse.quote(value, safe="")
    for route in (*DICOM_ROUTES, *ROUTES):
        path = re.sub("<[^>]*>|{[^}]*}", quoted, route.path)
        path = path if path.startswith("/api") else f"/dicom-web{path}"
        for names in (
            (),
            tuple(WEB_PARAMETERS),
            *((one,) for one in (*route.query, *KEYS, "date", "patient")),
        ):
            answer = admin.request(route.method, path, params=dict.fromkeys(names, value))
            assert answer.status_code in WEB_ANSWERS, (route.method, path, names, answer)


@each_nonsense
def test_no_value_of_an_item_ends_in_an_error(admin, value):
    shown = item("Doe^John")
    inner = shown["ScheduledProcedureStepSequence"]["Value"][0]
    for holder, keyword in (
        *(
            (shown, one)
            for one in ("PatientBirthDate", "PatientSize", "PatientAge", "PregnancyStatus")
        ),
        *(
            (inner, one)
            for one in ("ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime")
        ),
        (shown, "NumberOfStudyRelatedInstances"),
        (shown, "DateTime"),
    ):
        for sent in (
            value,
            int(value) if value.isdecimal() else -1,
            [value],
            {"Alphabetic": value},
        ):
            holder[keyword] = {"vr": vr(keyword), "Value": [sent]}
            answer = admin.post("/api/worklist?patient=separate", json=[shown])
            assert answer.status_code in WEB_ANSWERS, (keyword, sent, answer)
        del holder[keyword]
        holder |= {k: v for k, v in item("Doe^John")["ScheduledProcedureStepSequence"]["Value"][0].items()
                   if holder is inner}  # fmt: skip


ENGLISH = re.compile(r"\b[A-Za-z][a-z']+ [a-z]{2,}\b")  # two words in a row


def complaints_of(answer):
    """What a page says is wrong."""
    found = re.findall(r'class="problem"[^>]*>(.*?)</(?:p|div)>', answer.text, re.S)
    return [" ".join(html.unescape(re.sub(r"<[^>]*>", " ", one)).split()) for one in found]


@pytest.mark.parametrize("value", ["", "nobody", "2.25.1"], ids=lambda value: value[:8])
def test_no_form_refuses_in_another_language(admin, value):
    heard = {
        (page.path, part, verb, words)
        for page in POSTED
        for part in ({"1", "404"} if "<" in page.path else {"1"})
        for verb in verbs_of(page)
        for words in complaints_of(sent(admin, page, part, value, verb))
    }
    assert len(heard) > 20
    assert [one for one in sorted(heard) if ENGLISH.search(one[-1])] == []


DOORS = {"dicomweb", "dimse", "web", "simulator"}  # what programs are told is English


def plain_refusals(module):
    """The refusals and rejections of a module whose sentence is no Message."""
    for function in ast.walk(module.tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        plain = {
            one.targets[0].id for one in ast.walk(function)
            if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name) and is_plain(one.value)
        }  # fmt: skip
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in (
                "Refusal",
                "Rejection",
            ):
                for one in (*call.args, *(k.value for k in call.keywords if k.arg == "detail")):
                    if is_plain(one) or (isinstance(one, ast.Name) and one.id in plain):
                        yield module.name, ast.unparse(call)


def is_plain(node):
    """Whether an expression is a text that no catalogue knows."""
    text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return text or isinstance(node, ast.JoinedStr) or getattr(node, "attr", "") == "text"


def test_every_refusal_that_a_page_may_show_can_be_translated():
    rooms = [one for one in MODULES if not {*one.name.split(".")} & DOORS]
    assert len(rooms) > 50
    assert [one for module in rooms for one in plain_refusals(module)] == []
