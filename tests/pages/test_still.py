"""The live board keeps still under the pointer: a click hits the patient whom it was meant for."""

import re

import pytest
from conftest import item
from test_pages import ARTEFACTS, chromium, window  # noqa: F401

from minris.access.context import Actor
from minris.orders.lookup import step_key, step_row
from minris.orders.steps import change_step


@pytest.fixture
def board(window):  # noqa: F811
    """Five patients of one device; the page that shows them, and what a colleague does."""
    desk = window(viewport={"width": 1700, "height": 900})  # its rows are of one height
    today = desk.appliance.context().today()
    for number, name in enumerate(("Brown^Emma", "Li^Na", "Smith^John", "Garcia^Luis", "Liu^Jing")):
        desk.appliance.schedule(item(
            PatientID=f"P{number}", PatientName=name, ScheduledProcedureStepStartDate=today,
            ScheduledProcedureStepStartTime=f"1{number}00"))  # fmt: skip
    desk.enter()

    def mary(event, row_id):
        ctx = desk.appliance.context().by(Actor("mary", role="desk"))
        desk.appliance.write(change_step, ctx, event, *desk.appliance.read(step_key, row_id))

    desk.mary = mary
    return desk


def show(desk, by):
    with desk.hearing():
        desk.page.goto(f"/?by={by}&device=CT1")
    desk.page.mouse.move(0, 0)


def state(desk, row_id):
    return desk.appliance.read(step_row, row_id).status


def at_row(desk, row_id, words):
    """Point at a button, as a hand does that is about to press it."""
    row = desk.page.locator(f"[data-step='{row_id}']")
    if words != "Check in":
        row.locator(".more summary").click()
    button = row.get_by_role("button", name=words)
    button.hover()
    box = button.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_the_click_hits_the_patient_who_was_aimed_at(board):
    show(board, "state")
    place = at_row(board, 4, "Mark as no-show")
    board.mary("arrive", 1)
    news = board.page.locator("#news")
    news.wait_for(state="visible")
    assert news.inner_text() == "Show changes (1)"
    board.page.mouse.click(*place)
    board.page.locator(".told").wait_for()
    assert [state(board, row) for row in (4, 5)] == ["NO SHOW", "SCHEDULED"]
    assert re.match("Garcia Luis, .*: No-show", board.page.locator(".told").inner_text())
    board.picture("board-told")
    board.page.get_by_role("button", name="Undo: No-show").click()
    board.page.get_by_text("Undone.").wait_for()
    assert state(board, 4) == "SCHEDULED"


def test_rows_are_compact_in_the_browser_that_was_told_so(board):
    show(board, "device")
    row = board.page.locator("#board tr[data-step]").first
    height = row.bounding_box()["height"]
    board.page.locator("header .me summary").first.click()
    board.page.locator("#compact").click()
    assert row.bounding_box()["height"] <= 40 < height
    board.page.reload()
    row.wait_for()
    assert row.bounding_box()["height"] <= 40


def test_what_moves_nothing_is_shown_at_once(board):
    show(board, "device")
    at_row(board, 4, "Mark as no-show")
    board.mary("arrive", 1)
    board.page.locator("tr[data-state=ARRIVED]").wait_for()
    assert not board.page.locator("#news").is_visible()


def test_no_button_becomes_another_one_under_the_pointer(board):
    show(board, "device")
    place = at_row(board, 4, "Mark as no-show")
    board.mary("cancel", 4)
    board.page.locator("#news").wait_for(state="visible")
    board.page.screenshot(path=ARTEFACTS / "board-news.png")  # a whole page moves the pointer
    board.page.mouse.click(*place)
    board.page.get_by_text("Cancelled, by mary").wait_for()
    board.picture("board-asked")
    assert state(board, 4) == "CANCELED"


@pytest.mark.parametrize("how", ["leaving", "the badge"])
def test_what_waited_is_shown_when_the_pointer_leaves_or_when_asked_for(board, how):
    show(board, "state")
    at_row(board, 4, "Check in")
    if how == "the badge":
        board.page.locator("[data-step='4']").get_by_role("button", name="Check in").focus()
    board.mary("arrive", 1)
    news = board.page.locator("#news")
    news.wait_for(state="visible")
    assert board.page.locator("tr[data-state=ARRIVED]").count() == 0
    if how == "leaving":
        board.page.mouse.move(0, 0)
    else:
        news.click()
    board.page.locator("tr[data-state=ARRIVED]").wait_for()
    news.wait_for(state="hidden")


def test_the_list_stays_still_while_the_focus_is_in_it(board):
    show(board, "state")
    board.page.locator("[data-step='4']").get_by_role("button", name="Check in").focus()
    board.mary("arrive", 1)
    board.page.locator("#news").wait_for(state="visible")
    board.page.keyboard.press("Enter")
    board.page.locator(".told").wait_for()
    assert [state(board, row) for row in (4, 5)] == ["ARRIVED", "SCHEDULED"]
