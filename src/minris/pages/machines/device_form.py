"""The form of a device: what most need, the rest folded, in words."""

from collections.abc import Iterable, Mapping
from typing import Any

from minris.access.devices import (
    DEVICE_PROFILES,
    SAMPLE_NAMES,
    delete_device,
    device_of_texts,
    name_as_sent,
    profile_settings,
    save_device,
)
from minris.config.ini import Config, Device
from minris.config.settings import DEVICE_SETTINGS, Setting
from minris.pages.asking import ask_if_sure, is_sure
from minris.pages.forms import Field, setting_problems, show_form
from minris.pages.frame import PageRequest, Part, Row, safe_path
from minris.pages.language import Translator
from minris.seen import ChangedMeanwhile, as_seen
from minris.standard.status import Message, Problem, Refusal
from minris.standard.worklist import MODALITIES
from minris.store.writer import Core

LABELS = {
    "name": Message("Name"),
    "ae_title": Message("AE title at the machine"),
    "modality": Message("Modality"),
    "role": Message("Kind"),
    "profile": Message("Names are sent as"),
    "host": Message("Address"),
    "port": Message("Port"),
    "tls": Message("TLS"),
    "check_address": Message("Only from this address"),
    "hours": Message("Hours"),
    "own_steps_only": Message("Its own exams only"),
    "days_back": Message("Days back"),
    "days_ahead": Message("Days ahead"),
    "answer_limit": Message("Most answers"),
    "station_name": Message("Station name"),
    "location": Message("Location"),
    "mpps": Message("Reports its exams (MPPS)"),
    "character_set": Message("Character set"),
    "fallback_character_set": Message("Second character set"),
    "name_groups": Message("Parts of names"),
    "empty_sequences": Message("Empty sequences"),
    "combined_pdvs": Message("Command and data together"),
    "relational_queries": Message("Relational queries"),
    "report_on_same_association": Message("Result on its own association"),
    "passed_on": Message("Forwarded to it"),
    "events": Message("Workitem events"),
    "events_without_role": Message("Events without SCP role"),
}
FIRST_KEYS = ("name", "ae_title", "modality", "role", "profile")
GROUPS = (
    (Message("If minris calls the machine"), ("host", "port", "tls", "check_address")),
    (Message("What it sees on its worklist"),
     ("own_steps_only", "days_back", "days_ahead", "answer_limit")),
    (Message("Its exams"), ("hours", "station_name", "location", "mpps")),
    (Message("Character sets and encoding"),
     ("character_set", "fallback_character_set", "name_groups", "empty_sequences", "combined_pdvs")),
    (Message("Images and forwarding"),
     ("report_on_same_association", "relational_queries", "passed_on", "events", "events_without_role")),
)  # fmt: skip
FORWARDED = {
    "availability": Message("Notices that images are in the archive"),
    "mpps": Message("Performed procedure steps (MPPS)"),
    "mpps_notification": Message("Notices of performed procedure steps"),
}
TAKEN = "{value} already belongs to {name}"
BY_SETTING = {setting.key: setting for setting in DEVICE_SETTINGS}


def device_fields(
    p: PageRequest, form: Mapping[str, str], wrong: Mapping[str, str], keys: Iterable[str],
    locked: bool = False,
) -> list[Field]:  # fmt: skip
    """Return fields of the form of a device, with label and help in words.

    form   texts by key
    wrong  what is wrong with one, by key
    """
    t, fields = p.t, []
    others = {
        "name": ("text", (), Message("As people call it, such as CT room 1.")),
        "modality": ("text", tuple((one, one) for one in MODALITIES), ""),
        "profile": ("choose", (("", t("As it asks, else UTF-8")), *((n, t(n)) for n in DEVICE_PROFILES)),
                    Message("Fills in the character sets below.")),
        "passed_on": ("checks", tuple((key, t(words)) for key, words in FORWARDED.items()), ""),
    }  # fmt: skip
    for key in keys:
        setting = BY_SETTING.get(key)
        choices = setting_choices(setting, t) if setting else ()
        kind, help_words = "select" if choices else "text", setting.meaning if setting else ""
        if key in others:
            kind, choices, said = others[key]
            help_words = said or help_words
        value = form.get(key) or (setting.default if choices and setting else "")
        required = key in ("name", "ae_title")
        fields.append(Field(key, t(LABELS[key]), kind, value, required, wrong.get(key, ""), choices,
                            t(help_words), locked))  # fmt: skip
    return fields


def device_page(
    p: PageRequest, form: Mapping[str, str] | None = None, problems: Iterable[Problem] = (),
    focus: str = "",
) -> str:  # fmt: skip
    """GET /devices/edit: the settings of a device; read-only for a device of config.ini."""
    t, name = p.t, p.query("name")
    mark = p.mark(("device", (form or {}).get("old_name") or name))
    device = next((d for d in p.devices if d.name == name), None)
    if not form:
        known = {"old_name": name, **settings_of(device)} if device else {}
        form = {"name": name, **known, **profile_settings(p.query("profile"))}
        form["profile"] = p.query("profile") or profile_of(form)
    wrong, others = setting_problems(p, problems)
    locked = bool(device and device.from_file)
    groups = [(t("The machine"), device_fields(p, form, wrong, FIRST_KEYS, locked))]
    groups += [(t(words), device_fields(p, form, wrong, keys, locked), True)
               for words, keys in GROUPS]  # fmt: skip
    extra = [("profile", t("Fill in the character sets")), ("preview", t("Preview names"))]
    if form.get("old_name"):
        extra.append(("delete", t("Delete")))
    intro = t("Set in config.ini; change it there")
    return show_form(
        p, form.get("old_name") or "New device", groups, others, action="/devices/save",
        submit="" if locked else t("Save"), extra=[] if locked else extra, focus=focus,
        intro=intro if locked else "", shown=names_as_sent(p, form) if focus or p.query("profile") else [],
        hidden=[("old_name", form.get("old_name", "")), ("filled", form["profile"]),
                ("next", p.form("next")), mark],
        after=[("/devices", t("Back"))],
    )  # fmt: skip


def profile_of(form: Mapping[str, str]) -> str:
    """Return the profile whose settings a form has, "" if there is none such."""
    named = (one for one in DEVICE_PROFILES if profile_settings(one).items() <= form.items())
    return next(named, "")


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
    settings = sent_settings(p)
    name, old_name = p.form("name").strip(), p.form("old_name")
    form = {"name": name, "old_name": old_name, "profile": p.form("profile"), **settings}
    if p.form("event") in ("preview", "profile"):
        return device_page(p, form, focus=p.form("event"))
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
        return device_page(p, form, [at_field(one, name) for one in p.again(refusal)])
    words = (
        p.t("{name} was deleted.", name=old_name)
        if p.form("event") == "delete"
        else p.t("{name} was saved.", name=name)
    )
    return p.tell(safe_path(p.form("next"), "/devices"), words)


def sent_settings(p: PageRequest) -> dict[str, str]:
    """Return the settings of a form, by key; a profile that was chosen and not filled in is."""
    sent, profile = p.request.forms.decode(), p.form("profile")
    texts = {key: ", ".join(filter(None, map(str.strip, sent.getall(key)))) for key in BY_SETTING}
    return texts | (profile_settings(profile) if profile != p.form("filled") else {})


def at_field(problem: Problem, name: str) -> Problem:
    """Return a problem with the key of the field that it stands at: what is taken is a name or a title."""
    words = problem.words
    if words.key != TAKEN:
        return problem
    named = {"key": "name" if words.values["value"] == name else "ae_title", "value": words.values["value"],
             "words": Message("already belongs to {name}", name=words.values["name"])}  # fmt: skip
    return Problem(0, Message("{key}: {value} {words}", **named))


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
    if value and setting.kind == "secret":
        return "\N{BULLET}" * 8
    if value and setting.kind == "clock":
        return f"{value[0]:02}:{value[1]:02}"
    return text_of_value(value)


def setting_choices(setting: Setting, t: Translator) -> tuple[tuple[str, str], ...]:
    """Return the choices for a yes/no or choice setting; () for any other."""
    kind, *words = setting.kind.split(" ")
    if kind == "bool":
        return (("yes", t("yes")), ("no", t("no")))
    return tuple((word, t(word).replace("_", " ")) for word in words) if kind == "choice" else ()


def settings_of(device: Device) -> dict[str, str]:
    """Return a device's settings as texts, as a form or config.ini has them."""
    given = {s.key: text_of_value(getattr(device, s.key), "\\") for s in DEVICE_SETTINGS[1:]}
    return {"ae_title": ", ".join(device.ae_titles), **given}
