"""Subscriptions to workitems; forwarding to other systems."""

from minris.access.context import needs_reason
from minris.outbox import PASSED_ON_LANE, destinations, recent_passed_on, retry_events
from minris.pages.frame import Action, PageRequest, Row, no_such_action
from minris.pages.language import PASSED_ON_WORDS, passing_words
from minris.standard.uids import UPS_FILTERED_SUBSCRIPTION, UPS_GLOBAL_SUBSCRIPTION
from minris.ups.people import watchers
from minris.ups.subscriptions import subscribe, unsubscribe

CHANNEL_WORDS = {"dimse": "DICOM", "websocket": "WebSocket"}


def watchers_page(p: PageRequest) -> str:
    """GET /watchers: the list of subscribers, and the state of their notifications."""
    t = p.t
    kinds = {
        UPS_GLOBAL_SUBSCRIPTION: t("all workitems"),
        UPS_FILTERED_SUBSCRIPTION: t("workitems that match its filter"),
    }
    end, retry = t("End its subscriptions"), t("Try again now")
    subscribed = []
    for one in p.read(watchers):
        fields, actions = (("receiver", one.ae_title), ("uid", one.uid)), []
        if p.may("admin") and (one.uid or one.single):
            ending = (*fields, ("do", "end"))
            actions.append(Action("/watchers", end, ending, "reason", t("Reason")))
        if one.waiting:
            actions.append(Action("/watchers", retry, (*fields, ("do", "retry"))))
        cells = (one.ae_title, kinds.get(one.uid, ""), str(one.single),
                 t("yes") if one.deletion_lock else t("no"),
                 ", ".join(CHANNEL_WORDS[channel] for channel in one.channels.split()),
                 str(one.waiting), p.at(one.heard_at), t.said(one.problem))  # fmt: skip
        subscribed.append(Row(cells, "", tuple(actions)))
    part = p.listed(
        "Device | Receives | Workitems | Deletion lock | Notified by | Pending | Last delivered | Problem",
        subscribed, "No subscriptions.",
    )  # fmt: skip
    new = tuple((one, one) for device in p.devices if device.host for one in device.ae_titles)
    add = Action("/watchers", t("Subscribe to all workitems"), (("do", "subscribe"),),
                 "receiver", t("Device"), new)  # fmt: skip
    adding = p.listed("New subscription", [Row(("",), "", (add,))] if new else [])
    return p.listing("Subscriptions", [part, adding])


def post_watchers(p: PageRequest) -> str:
    """POST /watchers: subscribe a device, end its subscriptions, or retry."""
    receiver, deed = p.form("receiver"), p.form("do")
    if deed == "subscribe":
        p.write(subscribe, UPS_GLOBAL_SUBSCRIPTION, receiver, False)
    elif deed == "end":
        p.need("admin")
        why = p.form("reason")
        needs_reason(why)
        p.write(unsubscribe, UPS_GLOBAL_SUBSCRIPTION, receiver, why)
    elif deed == "retry":
        p.write(retry_events, receiver)
    else:
        raise no_such_action()
    return p.tell("/watchers", p.t("Saved."))


def passed_on_page(p: PageRequest) -> str:
    """GET /passed-on: messages that were forwarded to other systems, and their answers."""
    t = p.t
    to_whom = [
        Row((ae, str(waiting), p.at(since), p.at(heard), t.said(problem)), "",
            (Action("/passed-on", t("Try again now"), (("receiver", ae),)),) if waiting else ())
        for ae, waiting, since, heard, problem in p.read(destinations)
    ]  # fmt: skip
    what = [
        Row((p.at(one.created_at), one.receiver,
             t(PASSED_ON_WORDS[one.kind, one.operation]), one.sop_instance_uid,
             passing_words(t, one.answer, one.sent_at, one.given_up_at)))
        for one in p.read(recent_passed_on)
    ]  # fmt: skip
    receivers = p.listed("Device | Pending | Since when | Last delivered | Problem", to_whom,
                         "Nothing is forwarded. Choose what to forward on a device's page.")  # fmt: skip
    newest = p.listed("Time | Device | What | About | Answer", what, "", t("Latest"))
    return p.listing("Forwarding", [receivers, newest])


def post_passed_on(p: PageRequest) -> str:
    """POST /passed-on: retry a receiver now."""
    p.write(retry_events, p.form("receiver"), PASSED_ON_LANE)
    return p.tell("/passed-on", p.t("Retrying now."))
