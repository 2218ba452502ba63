"""Who hears of workitems; what is passed on."""

from minris.access.context import needs_reason
from minris.access.users import permit
from minris.outbox import PASSED_ON_OUTBOX, destinations, recent_passed_on, retry_events
from minris.pages.frame import Action, Frame, Part, Row
from minris.pages.language import PASSED_ON_WORDS, shown_instant
from minris.standard.status import Message, Refusal, Status
from minris.standard.uids import UPS_FILTERED_SUBSCRIPTION, UPS_GLOBAL_SUBSCRIPTION
from minris.ups.people import watchers
from minris.ups.subscriptions import subscribe, unsubscribe
from minris.web.request import enter

CHANNEL_WORDS = {"dimse": "DICOM", "websocket": "WebSocket"}


class WatcherPages(Frame):
    """Who hears of workitems; what is passed on."""

    def watchers_page(self) -> str:
        """GET /watchers: who hears of workitems, and how it goes with telling them."""
        login, _ = enter(self.web, self.request, "technologist")
        t, zone = self.translator(), self.web.config.zone
        kinds = {
            UPS_GLOBAL_SUBSCRIPTION: t("all workitems"),
            UPS_FILTERED_SUBSCRIPTION: t("workitems that match its filter"),
        }
        found_rows = []
        for one in self.web.read(watchers):
            fields = (("receiver", one.ae_title), ("uid", one.uid))
            actions = []
            if permit(login.role, "admin") and (one.uid or one.single):
                actions.append(
                    Action(
                        "/watchers",
                        t("End its subscriptions"),
                        (*fields, ("do", "end")),
                        "reason",
                        t("Reason"),
                    )
                )
            if one.waiting:
                actions.append(Action("/watchers", t("Try again now"), (*fields, ("do", "retry"))))
            cells = (
                one.ae_title,
                kinds.get(one.uid, ""),
                str(one.single),
                t("yes") if one.deletion_lock else t("no"),
                ", ".join(CHANNEL_WORDS[channel] for channel in one.channels.split()),
                str(one.waiting),
                shown_instant(one.heard_at, zone),
                one.problem,
            )
            found_rows.append(Row(cells, "", tuple(actions)))
        columns = (t("Device"), t("Hears of"), t("Workitems"), t("Deletion lock"), t("Told by"),
                   t("To be told"), t("Last heard"), t("Problem"))  # fmt: skip
        part = Part("", columns, found_rows, t("Nobody is subscribed."))
        new = tuple((one, one) for d in self.web.access().devices if d.host for one in d.ae_titles)
        add = Action("/watchers", t("Subscribe to all workitems"), (("do", "subscribe"),),
                     "receiver", t("Device"), new)  # fmt: skip
        adding = Part("", (t("New subscription"),), [Row(("",), "", (add,))] if new else [])
        return self.listing("Watchers", login, [part, adding])

    def change_watcher(self) -> str:
        """POST /watchers: subscribe a device, end its subscriptions, try again."""
        receiver, deed = self.form("receiver"), self.form("do")
        least = "admin" if deed == "end" else "technologist"
        _, ctx = enter(self.web, self.request, least)
        if deed == "subscribe":
            self.web.write(subscribe, ctx, UPS_GLOBAL_SUBSCRIPTION, receiver, False)
        elif deed == "end":
            why = self.form("reason")
            needs_reason(why)
            self.web.write(unsubscribe, ctx, UPS_GLOBAL_SUBSCRIPTION, receiver, why)
        elif deed == "retry":
            self.web.write(retry_events, ctx, receiver)
        else:
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such action"))
        return self.tell("/watchers", self.translator()("Saved."))

    def passed_on(self) -> str:
        """GET /passed-on: what other systems are sent, and what they answered."""
        login, ctx = enter(self.web, self.request, "technologist")
        t, zone = self.translator(), ctx.config.zone
        to_whom = [
            Row(
                (ae, str(waiting), shown_instant(since, zone), shown_instant(heard, zone), problem),
                "",
                (Action("/passed-on", t("Try again now"), (("receiver", ae),)),) if waiting else (),
            )
            for ae, waiting, since, heard, problem in self.web.read(destinations)
        ]
        what = [
            Row((shown_instant(one.created_at, zone), one.receiver,
                 t(PASSED_ON_WORDS[one.sop_class_uid, one.operation]), one.sop_instance_uid,
                 self._passing_words(t, one.answer, one.sent_at, one.given_up_at)))
            for one in self.web.read(recent_passed_on)
        ]  # fmt: skip
        parts = [
            Part("", (t("Device"), t("To be told"), t("Since when"), t("Last heard"), t("Problem")),
                 to_whom, t("Nothing is passed on: set passed_on at a device.")),
            Part(t("The newest"), (t("Time"), t("Device"), t("What"), t("About"), t("Answer")), what),
        ]  # fmt: skip
        return self.listing("Passed on", login, parts)

    def retry_passing_on(self) -> str:
        """POST /passed-on: try a receiver now."""
        _, ctx = enter(self.web, self.request, "technologist")
        self.web.write(retry_events, ctx, self.form("receiver"), PASSED_ON_OUTBOX)
        return self.tell("/passed-on", self.translator()("It is tried again now."))
