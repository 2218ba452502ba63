"""Every sentence a person may read is in the catalogue of every language."""

import ast
import functools
import json
import re
import string

import pytest
from conftest import MADE, every_name, made_tree

from minris.config.settings import DEVICE_SETTINGS, SETTINGS
from minris.config.values import ROLES
from minris.dataset.names import shown_name
from minris.dataset.times import shown_date
from minris.pages.after_exam.workitems import WORKITEM_ACTIONS, WORKITEM_FACTS, WORKITEM_FIELDS
from minris.pages.box import RIGHTS
from minris.pages.day.exam import (
    DOSE_FACTS,
    EXPOSURE_FACTS,
    PERFORMED_FACTS,
    STEP_FACTS,
)
from minris.pages.language import Translator
from minris.pages.machines.stuck import ORPHAN_ROWS
from minris.pages.reception import REGISTER_FIELDS
from minris.pages.site import PAGES
from minris.standard.dictionary import VALUE_PATTERNS
from minris.standard.encodings import ENCODINGS
from minris.standard.mpps import DISCONTINUATION_REASONS, MPPS_ATTRIBUTES, MPPS_STATES
from minris.standard.status import STATUS_WORDS, Message, description_of
from minris.standard.ups import (
    EVENT_TYPES,
    UPS_ATTRIBUTES,
    UPS_CANCELLATION_REASONS,
    UPS_ENUMERATIONS,
    UPS_STATES,
    WORKITEM_CODES,
)
from minris.standard.worklist import MWL_ATTRIBUTES, PREGNANCY_STATUS, STEP_STATES

SOURCE = MADE
CATALOGUES = sorted((SOURCE.parent / "static" / "i18n").glob("*.json"))
NAMES = every_name()
TEMPLATES = [value for name, value in NAMES.items() if name.endswith(("_PAGE", "_PART", "LAYOUT"))]


def constant_texts(node):
    """The texts an expression may be: a literal, or either side of a choice."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    if isinstance(node, ast.IfExp):
        return constant_texts(node.body) | constant_texts(node.orelse)
    if isinstance(node, ast.Name):
        value = NAMES.get(node.id)
        return {value} if isinstance(value, str) else set()
    return set()


def texts_in_code():
    """First arguments of Message(), t(), joined() and the titles of pages."""
    found = set()
    for node in ast.walk(made_tree()):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        function = node.func.func if isinstance(node.func, ast.Call) else node.func
        name = getattr(function, "id", getattr(function, "attr", ""))
        if name in ("Message", "t"):
            found |= constant_texts(node.args[0])
        elif name in ("show", "show_form") and len(node.args) > 1:
            found |= constant_texts(node.args[1])
        elif name == "listed":
            texts = [text for part in node.args[1:3] for text in constant_texts(part)]
            texts += [head for text in constant_texts(node.args[0]) for head in text.split(" | ")]
            found |= set(texts) - {""}
        elif name == "listing":
            found |= constant_texts(node.args[0])
        elif (name == "audit" and len(node.args) > 1) or name == "key_refusal":
            found |= constant_texts(node.args[1])
    return found


def texts_in_templates():
    """Arguments of t() in templates."""
    return {text for template in TEMPLATES for text in re.findall(r"\bt\('([^']+)'", template)}


def texts_in_tables():
    """Labels, states, reasons and names that pages take from tables."""
    found = {cell for page in PAGES for cell in (page.words, page.group) if cell[:1] != "/"} - {""}
    found |= {words for pair in STATUS_WORDS.values() for words in pair}
    found |= {cell for row in ORPHAN_ROWS for cell in row[1:3]}
    found |= {row.label for row in REGISTER_FIELDS} | {"Patient", "Exam"}
    for table in (STEP_FACTS, PERFORMED_FACTS, DOSE_FACTS, EXPOSURE_FACTS):
        found |= {row[0] for row in table}
    found |= {cell for row in WORKITEM_FACTS for cell in row[:2]}
    found |= {row.label for row in WORKITEM_FIELDS} | {row[5] for row in WORKITEM_ACTIONS}
    found |= {meaning for _, meaning in WORKITEM_CODES.values()} | set(EVENT_TYPES)
    found |= set(UPS_CANCELLATION_REASONS.values()) | set(UPS_STATES)
    found |= {value for values in UPS_ENUMERATIONS.values() for value in values}
    found |= set(STEP_STATES) | set(MPPS_STATES) | {"F", "M", "O"}
    found |= {"item", "row", "Unknown attribute"}  # words of numbered(), description_of()
    found |= {"ROUTINE", "HIGH", "STAT", "MEDIUM", "LOW", "yes", "no"}
    found |= set(DISCONTINUATION_REASONS.values()) | set(PREGNANCY_STATUS.values())
    found |= {setting.meaning for setting in (*SETTINGS, *DEVICE_SETTINGS)}
    found |= {row[0] for row in RIGHTS} | set(ROLES) | {one.use for one in ENCODINGS.values()}
    for setting in DEVICE_SETTINGS:
        kind, *words = setting.kind.split(" ")
        found |= set(words) if kind == "choice" else set()
    found |= {words for _, words in VALUE_PATTERNS.values() if words}
    tables = (MWL_ATTRIBUTES, MPPS_ATTRIBUTES, UPS_ATTRIBUTES)
    found |= {description_of(a.tag) for table in tables for a in table.values()}
    return found


@functools.cache
def wanted():
    """All of them, without those that are nothing but places for values."""
    patterns = {words for _, words in VALUE_PATTERNS.values()}
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
    t = Translator("zh-CN", {"{a} is bad": "{a}不对", "name": "姓名"})
    assert t(Message("{a} is bad", a=Message("name"))) == "姓名不对"


@pytest.mark.parametrize(
    ("language", "name", "date"),
    [
        ("en", "Wang XiaoDong 王小东", "5 Jul 2026"),
        ("zh-CN", "王小东 Wang XiaoDong", "2026年7月5日"),
        ("de", "Wang XiaoDong 王小东", "5 Jul 2026"),
    ],
)
def test_names_and_dates_are_written_as_a_language_has_them(language, name, date):
    t = Translator(language, {})
    assert (t.name("Wang^XiaoDong=王^小东"), t.date("20260705")) == (name, date)


@pytest.mark.parametrize("value", ["", "2026", "20260230", "<b>"])
def test_what_is_no_date_is_shown_as_it_stands(value):
    assert Translator("en", {}).date(value) == shown_date(value)


@pytest.mark.parametrize("name", ["", "=王^小东", "Miller^Anna", "^^", "Wang^X=="])
def test_half_a_name_is_shown_once(name):
    shown = Translator("en", {}).name(name)
    assert shown == shown_name(name)
