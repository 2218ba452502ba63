"""Every sentence a person may read is in the catalogue of every language."""

import ast
import json
import re
import string
from pathlib import Path

import pytest

import minris

SOURCE = Path(minris.__file__)
CATALOGUES = sorted((SOURCE.parent / "static" / "i18n").glob("*.json"))
TEMPLATES = [
    value for name, value in vars(minris).items() if name.endswith(("_PAGE", "_PART", "LAYOUT"))
]


def constant_texts(node):
    """The texts an expression may be: a literal, or either side of a choice."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    if isinstance(node, ast.IfExp):
        return constant_texts(node.body) | constant_texts(node.orelse)
    if isinstance(node, ast.Name):
        value = getattr(minris, node.id, None)
        return {value} if isinstance(value, str) else set()
    return set()


def texts_in_code():
    """First arguments of Message(), t(), joined() and the titles of pages."""
    found = set()
    for node in ast.walk(ast.parse(SOURCE.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        function = node.func.func if isinstance(node.func, ast.Call) else node.func
        name = getattr(function, "id", getattr(function, "attr", ""))
        if name in ("Message", "t", "translator"):
            found |= constant_texts(node.args[0])
        elif name == "page" and len(node.args) > 1:
            found |= constant_texts(node.args[1])
        elif name == "listing":
            found |= constant_texts(node.args[0])
        elif (name == "audit" and len(node.args) > 1) or name == "_refuse_key":
            found |= constant_texts(node.args[1])
    return found


def texts_in_templates():
    """Arguments of t() in templates."""
    return {text for template in TEMPLATES for text in re.findall(r"\bt\('([^']+)'", template)}


def texts_in_tables():
    """Labels, states, reasons and names that pages take from tables."""
    found = {cell for row in minris.NAVIGATION for cell in (row[1], row[3])}
    found |= {words for pair in minris.STATUS_WORDS.values() for words in pair}
    found |= {cell for row in minris.ORPHAN_ROWS for cell in row[1:3]}
    found |= {row[4] for row in minris.REGISTER_FIELDS} | {"Patient", "Exam"}
    for table in (
        minris.STEP_FACTS,
        minris.STEP_ITEM_FACTS,
        minris.PERFORMED_FACTS,
        minris.DOSE_FACTS,
        minris.EXPOSURE_FACTS,
    ):
        found |= {row[0] for row in table}
    found |= {cell for row in minris.WORKITEM_FACTS for cell in row[:2]}
    found |= {row[3] for row in minris.WORKITEM_FIELDS} | {
        row[5] for row in minris.WORKITEM_ACTIONS
    }
    found |= {meaning for _, meaning in minris.WORKITEM_CODES.values()} | set(minris.EVENT_TYPES)
    found |= set(minris.UPS_CANCELLATION_REASONS.values()) | set(minris.UPS_STATES)
    found |= {value for values in minris.UPS_ENUMERATIONS.values() for value in values}
    found |= set(minris.STEP_STATES) | set(minris.MPPS_STATES) | set(minris.SEXES)
    found |= {"item", "row", "Unknown attribute"}  # words of numbered(), description_of()
    found |= {"ROUTINE", "HIGH", "STAT", "MEDIUM", "LOW", "yes", "no"}
    found |= set(minris.DISCONTINUATION_REASONS.values()) | set(minris.PREGNANCY_STATUS.values())
    found |= {setting.meaning for setting in (*minris.SETTINGS, *minris.DEVICE_SETTINGS)}
    found |= {row[0] for row in minris.RIGHTS} | set(minris.ROLES)
    for setting in minris.DEVICE_SETTINGS:
        kind, *words = setting.kind.split(" ")
        found |= set(words) if kind == "choice" else set()
    found |= {words for _, words in minris.VALUE_PATTERNS.values() if words}
    tables = (minris.MWL_ATTRIBUTES, minris.MPPS_ATTRIBUTES, minris.UPS_ATTRIBUTES)
    found |= {minris.description_of(a.tag) for table in tables for a in table.values()}
    return found


def wanted():
    """All of them, without those that are nothing but places for values."""
    patterns = {words for _, words in minris.VALUE_PATTERNS.values()}
    tables = texts_in_tables() - patterns | {"{value} " + words for words in patterns}
    found = texts_in_code() | texts_in_templates() | tables
    return {
        text
        for text in found
        if any(part.strip(" .,:;()\n") for part, *_ in string.Formatter().parse(text))
        and text != "{value} "
    }


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.stem)
def test_the_catalogue_has_every_text_and_no_other(path):
    catalogue = json.loads(path.read_text("utf-8"))
    assert sorted(wanted() - catalogue.keys()) == []
    assert sorted(catalogue.keys() - wanted()) == []


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.stem)
def test_translations_have_the_places_of_the_original(path):
    for key, text in json.loads(path.read_text("utf-8")).items():
        places = [{p for _, p, _, _ in string.Formatter().parse(s) if p} for s in (key, text)]
        assert places[0] == places[1], key


def test_there_is_a_chinese_catalogue():
    assert "zh-CN" in [path.stem for path in CATALOGUES]


def test_a_nested_message_is_translated_throughout():
    t = minris.Translator("zh-CN", {"{a} is bad": "{a}不对", "name": "姓名"})
    assert t(minris.Message("{a} is bad", a=minris.Message("name"))) == "姓名不对"


@pytest.mark.parametrize(
    ("language", "name", "date"),
    [
        ("en", "Wang XiaoDong 王小东", "5 Jul 2026"),
        ("zh-CN", "王小东 Wang XiaoDong", "2026年7月5日"),
        ("de", "Wang XiaoDong 王小东", "5 Jul 2026"),
    ],
)
def test_names_and_dates_are_written_as_a_language_has_them(language, name, date):
    t = minris.Translator(language, {})
    assert (t.name("Wang^XiaoDong=王^小东"), t.date("20260705")) == (name, date)


@pytest.mark.parametrize("value", ["", "2026", "20260230", "<b>"])
def test_what_is_no_date_is_shown_as_it_stands(value):
    assert minris.Translator("en", {}).date(value) == minris.shown_date(value)


@pytest.mark.parametrize("name", ["", "=王^小东", "Miller^Anna", "^^", "Wang^X=="])
def test_half_a_name_is_shown_once(name):
    shown = minris.Translator("en", {}).name(name)
    assert shown == minris.shown_name(name)
