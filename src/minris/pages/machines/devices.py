"""Devices and their troubleshooting; associations; status codes."""

import datetime
import urllib.parse
from typing import NamedTuple

from minris.access.devices import adopt_title
from minris.config.ini import Device
from minris.doctor import Called, Finding, echo_outcome, echo_words, examine
from minris.pages.day.paper import qr_code
from minris.pages.frame import BAD, LIGHTS, Action, PageRequest, Row
from minris.pages.language import Translator, device_names
from minris.pages.machines.device_form import change_devices
from minris.pages.template import template
from minris.standard.status import STATUS_WORDS, Message, Refusal, Status, is_failure
from minris.upper_layer.server import ENDINGS, Ended
from minris.web.addresses import own_addresses

SHEET_PAGE = template("machines/sheet.html")


class WaysToUs(NamedTuple):
    """What is entered at a machine: our AE title, the addresses that it may use, the port."""

    ae_title: str
    addresses: list[str]
    port: int


def ways_to_us(p: PageRequest) -> WaysToUs:
    """Return what is entered at a machine; the port of TLS where there is no other."""
    box, dicom = p.web.box, p.web.config.dicom
    return WaysToUs(dicom.ae_title, own_addresses(dicom.host), box.dicom_port or box.dicom_tls_port)


def devices_page(p: PageRequest) -> str:
    """GET /devices: the list of devices, and of rejected callers, with C-ECHO and registration."""
    t = p.t
    known = [
        Row((device.name, ", ".join(device.ae_titles), device.modality,
             f"{device.host}:{device.port}" if device.host else "",
             "\\".join(device.character_set) or t("as asked"),
             t("config.ini") if device.from_file else ""),
            f"/devices/edit?name={urllib.parse.quote(device.name)}",
            (Action("/devices/echo", "C-ECHO", (("name", device.name),)),
             Action("/devices/doctor", t("Troubleshoot"), (("name", device.name),), get=True)))
        for device in p.devices
    ]  # fmt: skip
    tried = []
    for (calling, address), (at, words) in reversed(p.web.box.associations.rejected.copy().items()):
        when = t.moment(datetime.datetime.fromtimestamp(at, p.web.config.zone))
        new = calling and not p.device(calling)
        actions = (register_action(t, calling, address),) if new else ()
        tried.append(Row((calling or "?", address, t.said(words), when), "", actions))
    parts = [
        p.listed("Device | AE titles | Modality | Address | Character set | ", known,
                 "No devices yet. Add the first one."),
        p.listed("AE title | Address | Why | Last", tried, "No rejected calls.",
                 t("Rejected since start-up")),
    ]  # fmt: skip
    return p.listing("Devices", parts, links=[("/devices/edit", t("New device"))])


def device_named(p: PageRequest, name: str) -> Device:
    """Return a device by its name. Refuses 0112."""
    device = next((one for one in p.devices if one.name == name), None)
    if not device:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no device {name}", name=name))
    return device


def told_at_machine(p: PageRequest) -> list[tuple[str, str]]:
    """Return label and value of each thing that is entered at a machine."""
    t, ours = p.t, ways_to_us(p)
    addresses = [(t("Address"), one) for one in ours.addresses]
    return [(t("AE title"), ours.ae_title), *addresses, (t("Port"), str(ours.port))]


def sheet_page(p: PageRequest) -> str:
    """GET /devices/sheet: what the engineer enters at a machine, to be printed."""
    device, facts = device_named(p, p.query("name")), told_at_machine(p)
    return p.show(
        SHEET_PAGE, "Setup sheet", sheet="welcome", name=device.name, facts=facts,
        theirs=device.ae_title, entered=", ".join(value for _, value in facts),
    )  # fmt: skip


def sheet_svg(p: PageRequest) -> str | bytes:
    """GET /devices/sheet.svg: the same as a QR code."""
    return p.svg(qr_code("\n".join(f"{label}: {value}" for label, value in told_at_machine(p))))


def doctor_page(p: PageRequest) -> str:
    """GET /devices/doctor: the findings about a device, and what to do next."""
    t, device, server = p.t, device_named(p, p.query("name")), p.web.box.associations
    outcome = echo_outcome(p.web.config, device)
    called = Called(server.called.copy(), server.rejected.copy())  # the event loop changes them
    found = p.read(examine, p.ctx, device, called, outcome)
    findings = [Row((LIGHTS[one.light][0], t(one.words)), "", mending(t, device, one), one.light)
                for one in found]  # fmt: skip
    first = found[0]
    verdict = t("{name} works.", name=device.name)
    if first.light != "good":
        verdict = t.sentences(first.words, first.mend)
    links = [(one.path, t(one.mend)) for one in found[:1] if one.path and one.mend]
    links.append(("/devices", t("Devices")))
    part = p.listed("Status | Details", findings, "", device.name)
    return p.listing("Troubleshoot", [part], intro=verdict, links=links)


def mending(t: Translator, device: Device, finding: Finding) -> tuple[Action, ...]:
    """Return the button that adds the AE title of a finding to the device."""
    if not finding.do or device.from_file:
        return ()
    fields = (("name", device.name), ("ae_title", finding.do))
    return (Action("/devices/adopt", t(finding.mend), fields),)


def post_adopt(p: PageRequest) -> str:
    """POST /devices/adopt: add an AE title to a device."""
    name = p.form("name")
    change_devices(p, adopt_title, name, p.form("ae_title"))
    return p.tell(f"/devices/doctor?name={urllib.parse.quote(name)}", p.t("Saved."))


def post_echo(p: PageRequest) -> str:
    """POST /devices/echo: send a C-ECHO to a device."""
    device = device_named(p, p.form("name"))
    outcome = echo_outcome(p.web.config, device)
    words = p.t(echo_words(p.web.config.dicom.ae_title, device, outcome))
    return p.tell("/devices", words, "" if outcome == "answers" else BAD)


def associations_page(p: PageRequest) -> str:
    """GET /associations: open and past associations, with operations and outcome."""
    t, server, names = p.t, p.web.box.associations, device_names(p.web)
    wanted = p.query("q").strip().casefold()
    ended = []
    for one in reversed(server.ended.copy()):
        name = names.get(one.calling, "")
        if wanted and wanted not in f"{name} {one.calling} {one.address}".casefold():
            continue
        failed = one.ending not in ("released", "aborted") or any(
            is_failure(status) for (_, status), _ in one.done
        )
        when = datetime.datetime.fromtimestamp(one.at, p.ctx.config.zone)
        cells = (t.moment(when, seconds=True), name or t("unknown"), one.calling, one.address,
                 what_was_done(t, one),
                 t(ENDINGS[one.ending].key, words=one.words))  # fmt: skip
        link = f"/devices/doctor?name={urllib.parse.quote(name)}" if name else ""
        actions = () if name else (register_action(t, one.calling, one.address),)
        ended.append(Row(cells, link, actions, "warning" if failed else "good"))
    now = [
        Row((names.get(one.calling, t("unknown")), one.calling, one.address))
        for one in server.associations.copy()
        if one.calling
    ]
    parts = [
        p.listed("Device | AE title | Address", now, "No open connections.", t("Open now")),
        p.listed("Started | Device | AE title | Address | What was done | How it ended", ended,
                 "No connections since start-up.", t("Since start-up, newest first")),
    ]  # fmt: skip
    intro = t("Repeated calls are shown once, with the latest time.")
    return p.listing("Connections", parts, intro=intro, search=t("Device or address"),
                     query=wanted, links=[("/statuses", t("DICOM status codes"))])  # fmt: skip


def statuses_page(p: PageRequest) -> str:
    """GET /statuses: the list of DICOM status codes, with meaning and remedy."""
    t, wanted = p.t, p.query("q").strip().upper().removeprefix("0X")
    found = [
        Row((f"{status:04X}", t(meaning), t(mend)))
        for status, (meaning, mend) in STATUS_WORDS.items()
        if wanted in f"{status:04X}"
    ]
    part = p.listed("Status code | Meaning | What to do", found, "Nothing found.")
    intro = t("What devices show, and what is in the log.")
    return p.listing(
        "DICOM status codes", [part], intro=intro, search=t("Status code"), query=wanted
    )


def register_action(t: Translator, calling: str, address: str) -> Action:
    """Return the button that registers a caller as a device."""
    fields = (("name", calling), ("ae_title", calling), ("host", address))
    return Action("/devices/save", t("Register"), fields)


def what_was_done(t: Translator, one: Ended) -> str:
    """Return the operations of an association, and the classes it proposed in vain."""
    words = [done_words(t, *each) for each in one.done] or [t("nothing")]
    if one.not_served:
        words.append(t("not provided here: {names}", names=t.listed(one.not_served)))
    return "; ".join(words)


def done_words(t: Translator, message: tuple[str, int], count: int) -> str:
    """Return an operation with its count, and its status if that is not success."""
    operation, status = message
    known = status in STATUS_WORDS and status
    said = f" {status:04X} {t(STATUS_WORDS[status][0])}" if known else ""
    return f"{operation} × {count}{said}"
