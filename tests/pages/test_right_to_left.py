"""The pages in Arabic, in Chromium: from right to left, and no wider than a telephone."""

import pytest
from conftest import item
from test_pages import chromium, window  # noqa: F401 (fixtures)

from minris.pages.language import Translator
from minris.pages.static import load_catalogues

PAGES = ("/", "/register", "/step/1", "/calendar", "/box", "/devices")


@pytest.fixture
def desk(window):  # noqa: F811
    """A window in Arabic, with an exam of this morning."""
    one = window(locale="ar", viewport={"width": 1440, "height": 900})
    today = one.appliance.context().today()
    one.appliance.schedule(item(
        PatientID="P1", PatientName="Brown^Emma", ScheduledProcedureStepStartDate=today,
        ScheduledProcedureStepStartTime="1000"))  # fmt: skip
    one.enter()
    return one


def box(desk, selector):
    return desk.page.locator(selector).first.bounding_box()


def test_pages_begin_at_the_right(desk):
    for path in PAGES:
        desk.page.goto(path)
        assert desk.page.locator("html").get_attribute("dir") == "rtl"
        rail = box(desk, ".rail")
        assert rail["x"] + rail["width"] == pytest.approx(1440, abs=20)  # a scroll bar at most
        assert box(desk, "main")["x"] < rail["x"]
        assert wider(desk) <= 0, path
    desk.page.goto("/")
    time, patient, actions = (box(desk, f"tr[data-step] > :nth-child({n})") for n in (1, 2, 5))
    assert time["x"] > patient["x"] > actions["x"]
    before, after = box(desk, "[rel=prev]"), box(desk, "[rel=next]")
    assert before["x"] > after["x"]
    desk.page.goto("/calendar")
    time, name = box(desk, ".block > span"), box(desk, ".block > b")
    assert time["x"] >= name["x"] + name["width"]


def wider(desk):
    """How much can be scrolled sideways."""
    return desk.page.evaluate("document.documentElement.scrollWidth - innerWidth")


def test_nothing_is_wider_than_a_telephone(desk):
    desk.page.set_viewport_size({"width": 390, "height": 844})
    for path in PAGES:
        desk.page.goto(path)
        assert wider(desk) <= 0, path
    desk.page.goto("/")
    time, patient = (box(desk, f"tr[data-step] > :nth-child({n})") for n in (1, 2))
    assert time["x"] > patient["x"] + patient["width"]


def test_latin_words_keep_their_order_among_arabic_ones():
    t = Translator("ar", load_catalogues()["ar"])
    assert "\u2066Brown, E. (+49)\u2069" in t("More for {name}", name="Brown, E. (+49)")
    assert "\u2066" not in t("{count} exams", count=12)
    assert "\u2066" not in t(
        "Open {url} and log in there: over http this browser keeps no login",
        url="https://ris.example/",
    )
    assert "\u2067MPPS من" in t.listed(("MPPS من الجهاز", "CT1"))
    english = Translator("en", {})
    assert english("More for {name}", name="Brown, E.") == "More for Brown, E."
