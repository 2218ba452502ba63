"""Work that is stuck, and how to end it."""

from typing import Any

from minris.housekeeping.stuck import Orphan, end_leftover, end_silent_exam, orphans
from minris.images.arrivals import settle_study
from minris.images.commitment import drop_commitment
from minris.mpps.linking import settle_unscheduled
from minris.outbox import PASSED_ON_LANE, give_up_events
from minris.pages.frame import Action, PageRequest, Row, no_such_action, row_number
from minris.standard.tables import body_rows
from minris.ups.people import end_workitem, release_lock

# Kinds of stuck work: words, action, page, and minimum role for the action.
ORPHAN_ROWS = body_rows("""
    kind        | words                               | action           | page         | role
    lock        | Deletion lock on what has ended     | Release the lock | /workitem/   | admin
    silent      | In progress without news            | End it           | /workitem/   | admin
    expired     | Past its expiration                 | End it           | /workitem/   | admin
    exam        | Exam has started, no news since     | Mark as done     | /step/       | admin
    leftover    | Exam of an earlier day, not started | Mark as no-show  | /step/       | technologist
    unscheduled | Performed without an order          | Accept without order | /unscheduled | technologist
    images      | Images without an order             | Accept without order |              | technologist
    commitment  | A machine was not notified about its images | Discard      | /commitment/ | admin
    events      | Events not delivered                | Stop retrying    | /watchers    | admin
    passed on   | Not forwarded                       | Stop retrying    | /passed-on   | admin
    """)
ORPHANS = {row[0]: row for row in ORPHAN_ROWS}


def stuck_page(p: PageRequest) -> str:
    """GET /orphans: the list of stuck work of all services, each with an action."""
    t, found = p.t, []
    for orphan in p.read(orphans, p.ctx):
        _, words, deed, page, least = ORPHANS[orphan.kind]
        fields = (("kind", orphan.kind), ("uid", orphan.uid), ("about", orphan.about))
        action = Action("/orphans", t(deed), fields, "reason", t("Reason"))
        link = page + orphan.uid if page.endswith("/") else page
        about = orphan.about if page.endswith("/") else f"{orphan.uid}: {orphan.about}"
        cells = (t(words), about, p.at(orphan.since), known_of_orphan(p, orphan))
        found.append(Row(cells, link, (action,) if p.may(least) else ()))
    part = p.listed("What | About | Since when | Details", found, "Nothing needs attention.")
    intro = "" if p.may("admin") else t("An administrator can close the others.")
    return p.listing(
        "Other problems", [part], links=[("/watchers", t("Subscriptions"))], intro=intro
    )


def known_of_orphan(p: PageRequest, orphan: Orphan) -> str:
    """Return the details of stuck work in words."""
    t = p.t
    if orphan.kind == "lock":
        return t("last notified: {at}", at=p.at(orphan.known) or t("never"))
    if orphan.kind == "leftover":
        return f"{t.date(orphan.known[:8])}{orphan.known[8:]}"
    if orphan.kind == "images":
        return t("{count} images", count=orphan.known)
    return t("nobody opens its WebSocket") if orphan.known == "websocket" else t(orphan.known)


def post_orphans(p: PageRequest) -> str:
    """POST /orphans: release a lock, end a workitem, give up events, …; needs a reason."""
    kind, uid, why = p.form("kind"), p.form("uid"), p.form("reason")
    p.need(ORPHANS[kind][4] if kind in ORPHANS else "admin")
    old = p.ctx.stamp(hours=-p.ctx.config.housekeeping.stuck_workitem_hours)
    deeds: dict[str, tuple[Any, ...]] = {
        "lock": (release_lock, p.form("about"), why),
        "expired": (end_workitem, why, "110533", "SCHEDULED"),
        "silent": (end_workitem, why, "110513", "IN PROGRESS", old),
        "exam": (end_silent_exam, why),
        "leftover": (end_leftover, why),
        "unscheduled": (settle_unscheduled, why),
        "images": (settle_study, why),
        "commitment": (drop_commitment, why),
        "events": (give_up_events, why),
        "passed on": (give_up_events, why, PASSED_ON_LANE),
    }
    by_row = kind in ("exam", "leftover", "unscheduled")
    if kind not in deeds:
        raise no_such_action()
    core, *more = deeds[kind]
    p.write(core, row_number(uid) if by_row else uid, *more)
    return p.tell("/orphans", p.t("Saved."))
