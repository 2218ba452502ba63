"""The waiting room: on a page for the desk, and on a screen with a token of its own."""

from minris.access.users import is_screen
from minris.dataset.elements import ElementIndex
from minris.dataset.names import masked_name
from minris.orders.lookup import steps_of_day
from minris.orders.waiting import IN_WAITING_ROOM, Waits, waiting_on
from minris.pages.frame import PageRequest
from minris.pages.language import device_names
from minris.pages.template import template
from minris.standard.status import HttpRefusal, Message, Status

WAITING_PAGE = template("day/waiting.html")
WAITING_PART = template("day/waiting_part.html")
A_YEAR_S = 365 * 86400


def waiting_part(p: PageRequest) -> str:
    """Render who waits or is in an exam, names masked: the called first, the last of them on top."""
    names, day = device_names(p.web), p.ctx.today()
    numbers, people = p.read(waiting_on, day), []
    for step_id, state, _, data, arrived_at, _, _, station, _ in p.read(steps_of_day, day):
        if state in (*IN_WAITING_ROOM, "STARTED"):
            number, called_at = numbers.get(step_id, Waits(0, ""))
            called = called_at if state in IN_WAITING_ROOM else ""
            name = masked_name(ElementIndex(bytes(data)).get("PatientName"))
            place = names.get(station, station or "")
            people.append((called, arrived_at, (number, name, place, state, called)))
    people.sort(key=lambda one: one[1])
    people.sort(key=lambda one: one[0], reverse=True)
    return p.part(WAITING_PART, people=[shown for *_, shown in people])


def waiting_page(p: PageRequest) -> str:
    """GET /waiting: the waiting room, as the screen there shows it."""
    board = waiting_part(p)
    if p.query("part") == "board":
        return board
    bare = bool(p.query("bare"))
    return p.show(WAITING_PAGE, "Waiting room", sheet="waiting", script="board", refresh=True, bare=bare, public=True, board=board,
                  part="/waiting?part=board")  # fmt: skip


def screen_page(p: PageRequest) -> str:
    """GET /screen: the waiting room for a screen whose token is in its address once, then a cookie.

    It sees this page alone, and as long as the token is there. Refuses 401.
    """
    secret = p.query("token") or p.cookie("screen")
    if not p.read(is_screen, secret):
        words = Message("This screen has no valid token: an administrator makes one in Users")
        raise HttpRefusal(401, words, Status.PROCESSING_FAILURE)
    board = waiting_part(p)
    if p.query("part") == "board":
        return board
    p.set_cookie("screen", secret, max_age=A_YEAR_S)
    if p.query("token"):
        return p.redirect("/screen")
    return p.show(WAITING_PAGE, "Waiting room", sheet="waiting", script="board", refresh=True, bare=True, public=True, board=board,
                  part="/screen?part=board")  # fmt: skip
