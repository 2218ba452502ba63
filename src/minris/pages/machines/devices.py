"""Devices and their troubleshooting; associations; status codes."""

import datetime
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

from minris.access.devices import (
    DEVICE_PROFILES,
    SAMPLE_NAMES,
    adopt_title,
    delete_device,
    device_of_texts,
    name_as_sent,
    profile_settings,
    save_device,
)
from minris.config.ini import Config, Device
from minris.config.settings import DEVICE_SETTINGS, Setting
from minris.doctor import Called, Finding, echo_outcome, echo_words, examine
from minris.pages.asking import ask_if_sure, is_sure
from minris.pages.forms import Field, show_form
from minris.pages.frame import LIGHTS, Action, PageRequest, Part, Row
from minris.pages.language import Translator, device_names
from minris.seen import ChangedMeanwhile, as_seen
from minris.standard.status import STATUS_WORDS, Message, Problem, Refusal, Status, is_failure
from minris.store.writer import Core
from minris.upper_layer.server import ENDINGS, Ended


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
                 "There are none."),
        p.listed("AE title | Address | Why | Last", tried, "There are none.",
                 t("Rejected since start-up")),
    ]  # fmt: skip
    return p.listing("Devices", parts, links=[("/devices/edit", t("New device"))])


def device_page(
    p: PageRequest, form: Mapping[str, str] | None = None, problems: Iterable[Problem] = ()
) -> str:
    """GET /devices/edit: the settings of a device; read-only for a device of config.ini."""
    t, name = p.t, p.query("name")
    mark = p.mark(("device", (form or {}).get("old_name") or name))
    device = next((d for d in p.devices if d.name == name), None)
    if not form:
        known = {"old_name": name, **settings_of(device)} if device else {}
        form = {"name": name, **known, **profile_settings(p.query("profile"))}
    fields = [Field("name", t("Name"), "text", form.get("name", ""), True)]
    for setting in DEVICE_SETTINGS:
        choices = setting_choices(setting, t)
        kind = "select" if choices else "text"
        value = form.get(setting.key) or (setting.default if choices else "")
        label = f"{setting.key}: {t(setting.meaning)}"
        required = setting.key == "ae_title"
        fields.append(Field(setting.key, label, kind, value, required, "", choices))
    legend, submit, extra = t("Set in config.ini; change it there"), "", []
    after = [("/devices", t("Back"))]
    if not (device and device.from_file):
        legend, submit, extra = t("Device"), t("Save"), [("preview", t("Preview names"))]
        if form.get("old_name"):
            extra.append(("delete", t("Delete")))
        start = f"/devices/edit?name={urllib.parse.quote(name)}&profile="
        after = [(start + urllib.parse.quote(one), t("Profile: {profile}", profile=one))
                 for one in DEVICE_PROFILES]  # fmt: skip
    return show_form(
        p, "Device", [(legend, fields)], problems, action="/devices/save", submit=submit,
        hidden=[("old_name", form.get("old_name", "")), mark], shown=names_as_sent(p, form), extra=extra,
        after=after,
    )  # fmt: skip


def names_as_sent(p: PageRequest, form: Mapping[str, str]) -> list[Part]:
    """Return the list of sample names as a device with these settings gets them, with bytes."""
    given = {s.key: form[s.key] for s in DEVICE_SETTINGS if form.get(s.key)}
    made = device_of_texts(form.get("name", ""), {"ae_title": "ANY"} | given)
    if not made:
        return []
    sent = [(name, *name_as_sent(made, name)) for name in SAMPLE_NAMES]
    names = [Row((name, text, data.hex(" ").upper())) for name, text, data in sent]
    heading = p.t("Names as sent to this device")
    return [p.listed("Patient's name | Sent to the device | Bytes", names, "", heading)]


def change_devices(p: PageRequest, core: Core, *arguments: Any) -> None:
    """Change the devices in the store; what is asked from now on goes by them."""
    try:
        p.write(core, *arguments)
    finally:  # even if that took too long: it may be done all the same
        p.web.box.reload_access()


def post_device(p: PageRequest) -> str:
    """POST /devices/save: save or delete a device, effective at once; or preview names."""
    settings = {setting.key: p.form(setting.key).strip() for setting in DEVICE_SETTINGS}
    name, old_name = p.form("name").strip(), p.form("old_name")
    form = {"name": name, "old_name": old_name, **settings}
    if p.form("event") == "preview":
        return device_page(p, form)
    if p.form("event") == "delete" and not is_sure(p):
        words = p.t("Delete the device {name}? Its calls will be rejected. This cannot be "
                    "undone.", name=old_name)  # fmt: skip
        return ask_if_sure(p, "Delete", words, p.t("Delete"))
    seen = [(("device", old_name), p.seen("device"), "")] if old_name else []
    try:
        if p.form("event") == "delete":
            change_devices(p, as_seen, seen, delete_device, old_name)
        else:
            change_devices(p, as_seen, seen, save_device, name, settings, old_name)
    except ChangedMeanwhile:
        raise
    except Refusal as refusal:
        return device_page(p, form, p.again(refusal))
    return p.tell("/devices", p.t("Saved."))


def device_named(p: PageRequest, name: str) -> Device:
    """Return a device by its name. Refuses 0112."""
    device = next((one for one in p.devices if one.name == name), None)
    if not device:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no device {name}", name=name))
    return device


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
    ours = p.web.config.dicom.ae_title
    return p.tell("/devices", p.t(echo_words(ours, device, echo_outcome(p.web.config, device))))


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
        p.listed("Device | AE title | Address", now, "None.", t("Open now")),
        p.listed("Started | Device | AE title | Address | What was done | How it ended", ended,
                 "None.", t("Since start-up, newest first")),
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


def text_of_value(value: Any, between: str = ", ") -> str:
    """Return a setting's value as config.ini has it; `between` separates ordered values."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, frozenset):
        return ", ".join(sorted(value))
    if isinstance(value, tuple):
        return between.join(map(str, value))
    return "" if value is None else str(value)


def setting_text(config: Config, setting: Setting) -> str:
    """Return the value of a setting of config.ini for display."""
    value = getattr(getattr(config, setting.section), setting.key)
    if value and setting.kind == "clock":
        return f"{value[0]:02}:{value[1]:02}"
    return text_of_value(value)


def setting_choices(setting: Setting, t: Translator) -> tuple[tuple[str, str], ...]:
    """Return the choices for a yes/no or choice setting; () for any other."""
    kind, *words = setting.kind.split(" ")
    if kind == "bool":
        return (("yes", t("yes")), ("no", t("no")))
    return tuple((word, t(word)) for word in words) if kind == "choice" else ()


def settings_of(device: Device) -> dict[str, str]:
    """Return a device's settings as texts, as a form or config.ini has them."""
    given = {s.key: text_of_value(getattr(device, s.key), "\\") for s in DEVICE_SETTINGS[1:]}
    return {"ae_title": ", ".join(device.ae_titles), **given}
