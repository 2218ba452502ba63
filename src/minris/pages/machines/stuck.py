"""What is stuck."""

import re
from typing import Any

from minris.access.users import permit
from minris.housekeeping.stuck import Orphan, end_leftover, end_silent_exam, orphans
from minris.images.arrivals import settle_study
from minris.images.commitment import drop_commitment
from minris.mpps.linking import settle_unscheduled
from minris.outbox import EVENTS_OUTBOX, PASSED_ON_OUTBOX, give_up_events
from minris.pages.frame import Action, Frame, Part, Row
from minris.pages.language import Translator, shown_instant
from minris.standard.status import Message, Refusal, Status
from minris.standard.tables import body_rows
from minris.ups.people import end_workitem, release_lock
from minris.web.request import enter

# What is stuck: in words, what is done about it, the page of it, and who may do it.
ORPHAN_ROWS = body_rows("""
    kind        | words                               | action           | page         | role
    lock        | Deletion lock on what has ended     | Release the lock | /workitem/   | admin
    silent      | In progress without news            | End it           | /workitem/   | admin
    expired     | Past its expiration                 | End it           | /workitem/   | admin
    exam        | Exam has begun, and no news since   | Exam is done     | /step/       | admin
    leftover    | Exam of a day before, not begun     | Did not come     | /step/       | technologist
    unscheduled | Performed without an order          | No order         | /unscheduled | technologist
    images      | Images without an order             | No order         |              | technologist
    commitment  | A machine was not told about its images | Drop it      | /commitment/ | admin
    events      | Events not delivered                | Give them up     | /watchers    | admin
    passed on   | Not passed on                       | Give them up     | /passed-on   | admin
    """)
ORPHANS = {row[0]: row for row in ORPHAN_ROWS}


class StuckPages(Frame):
    """What is stuck."""

    def stuck(self) -> str:
        """GET /orphans: what is stuck in any service, to be ended with a reason."""
        login, ctx = enter(self.web, self.request, "technologist")
        t, zone = self.translator(), self.web.config.zone
        found_rows = []
        for orphan in self.web.read(orphans, ctx):
            _, words, deed, page, least = ORPHANS[orphan.kind]
            fields = (("kind", orphan.kind), ("uid", orphan.uid), ("about", orphan.about))
            action = Action("/orphans", t(deed), fields, "reason", t("Reason"))
            link = page + orphan.uid if page.endswith("/") else page
            about = orphan.about if page.endswith("/") else f"{orphan.uid}: {orphan.about}"
            cells = (t(words), about, shown_instant(orphan.since, zone), self._known(t, orphan))
            found_rows.append(Row(cells, link, (action,) if permit(login.role, least) else ()))
        columns = (t("What"), t("About"), t("Since when"), t("Known"))
        part = Part("", columns, found_rows, t("Nothing is stuck."))
        links = [("/watchers", t("Watchers"))]
        intro = "" if permit(login.role, "admin") else t("An administrator can end the others.")
        return self.listing("Stuck", login, [part], links=links, intro=intro)

    def _known(self, t: Translator, orphan: Orphan) -> str:
        """What is known of something that is stuck, in words."""
        if orphan.kind == "lock":
            at = shown_instant(orphan.known, self.web.config.zone) or t("never")
            return t("last told: {at}", at=at)
        if orphan.kind == "leftover":
            return f"{t.date(orphan.known[:8])}{orphan.known[8:]}"
        if orphan.kind == "images":
            return t("{count} images", count=orphan.known)
        return t("nobody opens its WebSocket") if orphan.known == "websocket" else t(orphan.known)

    def end_stuck(self) -> str:
        """POST /orphans: release a lock, end a workitem, give up events, …; with a reason."""
        kind, uid, why = self.form("kind"), self.form("uid"), self.form("reason")
        least = ORPHANS[kind][4] if kind in ORPHANS else "admin"
        _, ctx = enter(self.web, self.request, least)
        old = ctx.stamp(hours=-ctx.config.housekeeping.stuck_workitem_hours)
        deeds: dict[str, tuple[Any, ...]] = {
            "lock": (release_lock, uid, self.form("about"), why),
            "expired": (end_workitem, uid, why, "110533", "SCHEDULED"),
            "silent": (end_workitem, uid, why, "110513", "IN PROGRESS", old),
            "exam": (end_silent_exam, uid, why),
            "leftover": (end_leftover, uid, why),
            "unscheduled": (settle_unscheduled, uid, why),
            "images": (settle_study, uid, why),
            "commitment": (drop_commitment, uid, why),
            "events": (give_up_events, uid, why, EVENTS_OUTBOX),
            "passed on": (give_up_events, uid, why, PASSED_ON_OUTBOX),
        }
        by_row = ("exam", "leftover", "unscheduled")
        if kind not in deeds or (kind in by_row and not re.fullmatch("[0-9]{1,18}", uid)):
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
        core, _, *more = deeds[kind]
        self.web.write(core, ctx, int(uid) if kind in by_row else uid, *more)
        return self.tell("/orphans", self.translator()("Saved."))
