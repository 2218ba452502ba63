"""Every sentence a person may read is in the catalogue of every language."""

import ast
import functools
import json
import re
import string

import pytest
from conftest import MADE, every_name, made_tree

from minris.config.settings import DEVICE_SETTINGS, SETTINGS
from minris.config.values import TOKEN_ROLES
from minris.dataset.names import shown_name
from minris.dataset.times import MONTHS, shown_date
from minris.pages.after_exam.workitems import WORKITEM_ACTIONS, WORKITEM_FACTS, WORKITEM_FIELDS
from minris.pages.box import RIGHTS
from minris.pages.day.exam import (
    DOSE_FACTS,
    EXAM_FACTS,
    EXPOSURE_FACTS,
    PERFORMED_FACTS,
    TECHNICAL_FACTS,
)
from minris.pages.language import COMMA, DATE, DAY, DAY_AND_MONTH, LABELLED, SENTENCE, Translator
from minris.pages.machines.stuck import ORPHAN_ROWS
from minris.pages.reception import REGISTER_FIELDS
from minris.pages.site import PAGES
from minris.pages.static import load_catalogues
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
FOLDER = SOURCE.parent / "static" / "i18n"
ENGLISH = json.loads((FOLDER / "en.json").read_text("utf-8"))  # words of codes, and plurals
CATALOGUES = [path for path in sorted(FOLDER.glob("*.json")) if path.stem != "en"]
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
        if name in (
            "Message",
            "t",
            "ProtocolError",
            "DeliveryError",
            "AssociationRejected",
            "_bounded",
        ):
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
    for table in (EXAM_FACTS, TECHNICAL_FACTS, PERFORMED_FACTS, DOSE_FACTS, EXPOSURE_FACTS):
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
    found |= {row[0] for row in RIGHTS} | set(TOKEN_ROLES) | {one.use for one in ENCODINGS.values()}
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
    } | {
        "English",
        DATE,
        DAY,
        DAY_AND_MONTH,
        LABELLED,
        SENTENCE,
        COMMA,
        *MONTHS,
    }  # its own name, and forms


def texts_of(found):
    """The texts of an entry: one, or those of a plural."""
    return [found] if isinstance(found, str) else list(found.values())


def places(text):
    """The names in braces of a text."""
    return {place for _, place, _, _ in string.Formatter().parse(text) if place}


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.stem)
def test_the_catalogue_has_every_text_and_no_other(path):
    catalogue = json.loads(path.read_text("utf-8"))
    assert sorted(wanted() - catalogue.keys()) == []
    assert sorted(catalogue.keys() - wanted()) == []


def test_the_english_catalogue_has_no_other_text():
    assert sorted(ENGLISH.keys() - wanted()) == []


def test_a_number_and_its_noun_agree():
    """A sentence that counts things has a text for one of them."""
    form = re.compile(r"\{count\} (?!are)(?:[a-z]+ )?(?:[a-z]+s|people)\b")
    counting = filter(form.search, wanted())
    assert [text for text in counting if not isinstance(ENGLISH.get(text), dict)] == []
    assert [text for text in wanted() if re.match("1 [a-z]", text)] == []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_translations_have_the_places_of_the_original(path):
    for key, found in json.loads(path.read_text("utf-8")).items():
        may, must = places(key), places(key)
        if key in (DATE, DAY_AND_MONTH):
            may, must = {"day", "month", "number", *must}, must - {"month"}
        for text in texts_of(found):
            missing = must - places(text)
            one = isinstance(found, dict) and text in (found.get(n) for n in ("zero", "one", "two"))
            assert missing <= ({"count"} if one else set()), (key, text)
            assert places(text) <= may, (key, text)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_plural_has_the_categories_of_its_language(path):
    plural = Translator(path.stem, {}).plural
    categories = {plural(count) for count in range(1000)}
    for key, found in json.loads(path.read_text("utf-8")).items():
        if isinstance(ENGLISH.get(key), dict):
            assert isinstance(found, dict) or categories == {"other"}, key
        if isinstance(found, dict):
            assert "count" in places(key), key
            assert found.keys() == categories, key


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.stem)
def test_a_translation_has_neither_an_empty_text_nor_a_dash_for_one(path):
    for key, found in json.loads(path.read_text("utf-8")).items():
        assert all(text.strip(" -") for text in texts_of(found)), key


@pytest.mark.parametrize(
    ("language", "categories"),
    [
        ("en", {"one": "1", "other": "0 2 5 11 21"}),
        ("de", {"one": "1", "other": "0 2 5 11 21"}),
        ("fr", {"one": "0 1", "other": "2 5 11 21"}),
        ("pt-BR", {"one": "0 1", "other": "2 5 11 21"}),
        ("ru", {"one": "1 21 101", "few": "2 3 4 22", "many": "0 5 11 12 14 111"}),
        ("ar", {"zero": "0", "one": "1", "two": "2", "few": "3 10 103", "many": "11 99",
                "other": "100 102"}),
        ("zh-CN", {"other": "0 1 2 5"}),
    ],
)  # fmt: skip
def test_plural_categories_are_those_of_unicode(language, categories):
    plural = Translator(language, {}).plural
    for category, counts in categories.items():
        assert [plural(int(count)) for count in counts.split()] == [category] * len(counts.split())


def test_a_plural_takes_the_text_of_its_count():
    t = Translator("ru", {"{count} rows": {"one": "{count} строка", "few": "{count} строки",
                                           "many": "{count} строк"}})  # fmt: skip
    assert [t("{count} rows", count=n) for n in (1, 3, 5)] == ["1 строка", "3 строки", "5 строк"]


def test_right_to_left_and_the_decimal_comma_are_of_the_language():
    assert [Translator(one, {}).direction for one in ("ar", "de")] == ["rtl", "ltr"]
    assert [Translator(one, {}).number(2.5) for one in ("en", "de")] == ["2.5", "2,5"]


def test_the_style_turns_with_the_direction_of_writing():
    """It says start and end; left and right stand for what is the same in every language."""
    style = (FOLDER.parent / "minris.css").read_text("utf-8")
    fixed = re.sub(r"left: 50%|@bottom-right", "", style)
    assert re.findall(r"(?<![\w-])(?:[\w-]+-)?(?:left|right)(?: *:|\b(?=;))", fixed) == []


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
        ("ja", "王小东 Wang XiaoDong", "5 Jul 2026"),
        ("mt", "Wang XiaoDong 王小东", "5 Jul 2026"),
    ],
)
def test_names_and_dates_are_written_as_a_language_has_them(language, name, date):
    t = Translator(language, load_catalogues().get(language, {}))
    assert (t.name("Wang^XiaoDong=王^小东"), t.date("20260705")) == (name, date)


@pytest.mark.parametrize("value", ["", "2026", "20260230", "<b>"])
def test_what_is_no_date_is_shown_as_it_stands(value):
    assert Translator("en", {}).date(value) == shown_date(value)


@pytest.mark.parametrize("name", ["", "=王^小东", "Miller^Anna", "^^", "Wang^X=="])
def test_half_a_name_is_shown_once(name):
    shown = Translator("en", {}).name(name)
    assert shown == shown_name(name)
