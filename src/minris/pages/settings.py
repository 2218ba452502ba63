"""The settings: those that a page may change, and all others as they are."""

import itertools
import zoneinfo
from collections.abc import Iterable, Mapping

from minris.access.page_settings import SETTING_MARK, save_settings
from minris.config.settings import PAGE_SETTINGS, SETTINGS, Setting
from minris.config.values import WEEKDAYS
from minris.pages.day.paper import sizes_of
from minris.pages.forms import Field, setting_problems, show_form
from minris.pages.frame import PageRequest, Row, safe_path
from minris.pages.language import WEEKDAY_WORDS
from minris.pages.machines.device_form import setting_text
from minris.seen import ChangedMeanwhile, as_seen
from minris.standard.status import Message, Problem, Refusal

# Kind of field, label and help of each of PAGE_SETTINGS.
SETTING_FIELDS = {
    "name": ("text", Message("Name of the clinic"), Message("It is on every page and on paper.")),
    "address": ("text", Message("Address"), Message("Printed on appointment slips.")),
    "phone": ("text", Message("Phone"), Message("Printed on appointment slips.")),
    "label_size": ("select", Message("Size of labels"), Message("In mm; another one can be chosen when printing.")),
    "slip_size": ("select", Message("Paper of slips"), Message("Another one can be chosen when printing.")),
    "timezone": ("text", Message("Time zone"), Message("Such as Asia/Shanghai; empty: that of this computer.")),
    "opens": ("time", Message("Opens at"), Message("The calendar offers times from here on.")),
    "closes": ("time", Message("Closes at"), Message("The calendar offers times until here.")),
    "closed_days": ("checks", Message("Closed on"), Message("Days of the week without exams.")),
    "language": ("select", Message("Language"), Message("Of the pages, for whoever has chosen none.")),
    "ae_title": ("text", Message("Our AE title"), Message("Enter it at every machine; one that calls another title is rejected.")),
    "second_backup_folder": ("text", Message("Second place for backups"), Message("A folder on a USB stick or a share, such as /media/stick. Each backup is copied there.")),
}  # fmt: skip
SETTINGS_THING = ("settings", SETTING_MARK.strip())


def field_name(setting: Setting) -> str:
    """Return the name of the field of a setting."""
    return f"{setting.section}_{setting.key}"


def setting_fields(
    p: PageRequest, keys: Iterable[str], form: Mapping[str, str], wrong: Mapping[str, str]
) -> list[Field]:
    """Return the fields of some settings, by key; those that config.ini names are locked and say so.

    form   what was typed, by name of the field
    wrong  what is wrong with a setting, by key
    """
    t, config, fields = p.t, p.web.config, []
    choices = {
        "timezone": tuple((one, one) for one in sorted(zoneinfo.available_timezones())),
        "closed_days": tuple(zip(WEEKDAYS, map(t, WEEKDAY_WORDS), strict=True)),
        "language": p.site.languages,
        "label_size": sizes_of("label_size"),
        "slip_size": sizes_of("slip_size"),
    }
    for setting in PAGE_SETTINGS:
        if setting.key not in keys:
            continue
        kind, label, help_words = SETTING_FIELDS[setting.key]
        name, locked = field_name(setting), config.is_of_file(setting)
        if locked:
            where = config.sources[setting.section, setting.key]
            help_words = Message("Set in {where}, and changed there.", where=where)
        value = setting_text(config, setting) if locked else form.get(name)
        fields.append(Field(
            name, t(label), kind, setting_text(config, setting) if value is None else value, False,
            wrong.get(setting.key, ""), choices.get(setting.key, ()), t(help_words), locked,
        ))  # fmt: skip
    return fields


def settings_page(
    p: PageRequest, form: Mapping[str, str] | None = None, problems: Iterable[Problem] = ()
) -> str:
    """GET /settings: a form for what a page may change; each other setting with value and source."""
    t, config = p.t, p.web.config
    wrong, others = setting_problems(p, problems)
    parts = []
    rest = [one for one in SETTINGS if one not in PAGE_SETTINGS]
    for section, of_section in itertools.groupby(rest, key=lambda s: s.section):
        lines = [
            Row((one.key, setting_text(config, one),
                 t(config.sources.get((section, one.key), Message("default"))), t(one.meaning)))
            for one in of_section
        ]  # fmt: skip
        parts.append(p.listed("Setting | Value | From | Meaning", lines, "", f"[{section}]"))
    where = str(config.path) if config.path else t("no file: defaults")
    intro = t("Changes made here apply at once. For all other settings edit this file and restart:"
              " {path}", path=where)  # fmt: skip
    fields = setting_fields(p, SETTING_FIELDS, form or {}, wrong)
    return show_form(
        p, "Settings", [(t("The clinic and this system"), fields)], others, submit=t("Save"),
        hidden=[p.mark(SETTINGS_THING), ("next", p.form("next"))], intro=intro, below=parts,
    )  # fmt: skip


def post_settings(p: PageRequest) -> str:
    """POST /settings: keep what was changed, and take it at once."""
    sent = p.request.forms.decode()
    form = {  # of boxes those that are ticked
        name: ", ".join(filter(None, map(str.strip, sent.getall(name))))
        for name in map(field_name, PAGE_SETTINGS)
        if name in sent
    }
    texts = {
        (one.section, one.key): form[field_name(one)] for one in PAGE_SETTINGS
        if form.get(field_name(one), setting_text(p.web.config, one)) != setting_text(p.web.config, one)
    }  # fmt: skip
    try:
        p.write(as_seen, [(SETTINGS_THING, p.seen("settings"), "")], save_settings, texts)
    except ChangedMeanwhile:
        raise
    except Refusal as refusal:
        return settings_page(p, form, p.again(refusal))
    finally:  # even if that took too long: it may be done all the same
        p.web.box.reload_access()
    return p.tell(safe_path(p.form("next"), "/settings"), p.t("Saved."))
