"""No English on a Chinese page, no code of a state on an English one: all pages of a played day."""

import html
import re

import peers
import pytest
from conftest import Running
from test_pages import employ, visiting

from minris.config.ini import load_config
from minris.pages.static import load_catalogues
from minris.simulator.demo import DEMO_CONFIG, DEMO_DAY, play_day
from minris.standard.ups import UPS_STATES
from minris.standard.worklist import MODALITIES, STEP_STATES

# What the clinic has named or typed, and the test's own.
DATA = (
    *(part for row in DEMO_DAY for part in (*re.split("[=^]", row.name), row.exam)),
    "Lakeside Clinic (invented)", "CT room", "X-ray room", "X-ray", "Ultrasound", "3D workstation", "Standard",
    "anna", "test desk", "admin", "Rossi Marco", "MAIN", "SIM",
    *(catalogue["English"] for catalogue in load_catalogues().values()),  # each language's own name
)  # fmt: skip
# Terms that Chinese departments write in Latin letters, and names of files and programs.
TERMS = (
    "DICOM", "AE", "UID", "SOP", "MPPS", "C-ECHO", "C-FIND", "N-ACTION", "N-GET", "N-SET", "N-CREATE",
    "N-EVENT-REPORT", "API", "CSV", "JSON", "MB", "GB", "kB", "kV", "kg", "cm", "minris", "config.ini",
    "UTF-8", "UTF-16", "TLS", "PEM", "URL", "PDF", "QR", "Excel", "Word", "ZPL", "ID", "PACS", "UPS",
    "WebSocket", "DIMSE", "IP", "CD", "DVD", "USB", "mm", "Esc", "Enter", "Ctrl", "SCP", "SCU", "Port",
    "http", "https", "MINRIS", "UTC", "Echo",
)  # fmt: skip
# Of the technical pages: values and keys of settings, character sets, texts sent to a device.
TECHNICAL = re.compile("/(settings|devices/edit|devices/doctor|catalogue/import|import)")


LOOPBACK = "[dicom]\nhost = 127.0.0.1\nport = 0\n[web]\nhost = 127.0.0.1\nport = 0\n"


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """An administrator of a box on which the day of the demonstration was played."""
    path = tmp_path_factory.mktemp("day") / "config.ini"
    path.write_text(DEMO_CONFIG.format(listen=peers.free_port(), zone="UTC") + LOOPBACK, "utf-8")
    running = Running(load_config(path))
    token = running.token("desk")
    play_day(running.url, token, "127.0.0.1", running.port, "MINRIS", lambda line: None, 0)
    with visiting(running) as client:
        yield employ(running, client, "admin")
    running.stop()


def texts_of(page):
    """What a page shows: its texts, and attributes that are read out."""
    page = re.sub(r"<(script|style|option)\b[^>]*>.*?</\1>", "", page, flags=re.S)
    page = re.sub(r"<button\b[^>]* lang=[^>]*>[^<]*", "", page)  # languages, by their own names
    said = re.findall(r'\b(?:placeholder|title|aria-label|alt|data-words)="([^"]*)"', page)
    return [html.unescape(text).strip() for text in (*re.split("<[^>]*>", page), *said)]


def walked(client, language):
    """The texts of all pages that links lead to, one of each kind, by address."""
    client.headers["Accept-Language"] = language
    waiting, seen = ["/", "/restored", "/users/new", "/nothing"], {}
    while waiting:
        path = waiting.pop(0)
        kind = re.sub(r"=[^&]*", "=", re.sub(r"/[0-9][0-9.]*", "/1", path))
        if kind in seen:
            continue
        answer = client.get(path)
        seen[kind] = []
        if "html" in answer.headers.get("Content-Type", ""):
            seen[kind] = texts_of(answer.text)
            links = map(html.unescape, re.findall(r'href="(/[^"#]*)"', answer.text))
            waiting += [one for one in links if not one.startswith(("/static", "/language"))]
    assert len(seen) > 40
    return seen


def without(words, text):
    """A text without these words."""
    for one in sorted(words, key=len, reverse=True):
        text = re.sub(rf"(?<![A-Za-z]){re.escape(one)}(?![A-Za-z])", " ", text)
    return text


def latin_in(text):
    """The runs of Latin letters that are neither data nor terms."""
    text = without(DATA, text)
    text = re.sub(
        r"[^\s（(]*[/@=_\\][^\s）)]*|\{count\}|\[[a-z]+\]|\b[0-9a-f]{16}\b", " ", text
    )  # paths, sections of settings, hashes
    text = without((*TERMS, *MODALITIES), text)
    text = re.sub(r"\b[0-9A-F]+\b|[A-Z]*-?\d[\w.:-]*", " ", text)  # identifiers, numbers
    return re.findall(r"[A-Za-z]{2,}", text)


def test_no_page_has_english_among_chinese(day):
    found = {
        (path, text)
        for path, texts in walked(day, "zh-CN").items()
        for text in texts
        if not TECHNICAL.match(path) and latin_in(text)
    }
    assert sorted(found) == []


def test_no_page_shows_the_code_of_a_state(day):
    codes = re.compile("|".join(rf"\b{code}\b" for code in {*STEP_STATES, *UPS_STATES}))
    found = {
        (path, text)
        for path, texts in walked(day, "en").items()
        for text in texts
        if not TECHNICAL.match(path) and codes.search(text)
    }
    assert sorted(found) == []


def test_chinese_sentences_have_chinese_punctuation(day):
    found = {
        (path, text)
        for path, texts in walked(day, "zh-CN").items()
        for text in texts
        if re.search("[\u4e00-\u9fff）][.,:;?](?: |$)|[。，：；？] (?!-)", text)
    }
    assert sorted(found) == []
