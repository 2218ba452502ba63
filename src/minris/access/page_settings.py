"""Settings that an administrator changes on a page: kept in the store, below config.ini."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minris.access.context import Context, audit
from minris.config.ini import read_section
from minris.config.settings import PAGE_SETTINGS
from minris.standard.status import Message, Problem, Refusal, Status
from minris.store.models import database
from minris.store.rows import erase, set_mark

SETTING_MARK = "setting "  # and section and key: the mark in the store


def stored_settings(execute: Callable[..., Any] | None = None) -> dict[tuple[str, str], str]:
    """The texts of the settings that were changed on the page, by section and key.

    execute  of another connection than that of the bound store
    """
    names = {f"{SETTING_MARK}{s.section} {s.key}": (s.section, s.key) for s in PAGE_SETTINGS}
    rows = (execute or database.execute_sql)(
        "SELECT name, value FROM mark WHERE name >= ? AND name < ?", (SETTING_MARK, "setting!")
    )
    return {names[name]: value for name, value in rows if name in names}


def save_settings(ctx: Context, texts: Mapping[tuple[str, str], str]) -> None:
    """Keep settings of the page, by section and key; an empty text gives the default back.

    What config.ini names is left alone: it wins there. The caller has them taken (Config.take).
    Refuses 0106 with a problem for each that is not valid; its words name section and key
    """
    wrong: list[Message] = []
    now, changes = stored_settings(), []
    for setting in PAGE_SETTINGS:
        name = setting.section, setting.key
        text = texts.get(name, now.get(name, "")).strip()
        if ctx.config.is_of_file(setting) or text == now.get(name, ""):
            continue
        read_section(setting.section, [setting], {setting.key: text} if text else {}, wrong)
        changes.append((setting, text))
        if setting.key == "second_backup_folder" and text:
            folder = Path(ctx.config.directory, text)
            if not (folder.is_dir() and os.access(folder, os.W_OK)):
                where = {"section": setting.section, "key": setting.key, "value": repr(text)}
                words = Message("is no folder of this computer that can be written to")
                wrong.append(Message("[{section}] {key}: {value} {words}", **where, words=words))
    if wrong:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(0, one) for one in wrong])
    for setting, text in changes:
        mark = f"{SETTING_MARK}{setting.section} {setting.key}"
        if text:
            set_mark(mark, text)
        else:
            erase("mark WHERE name = ?", mark)
        before = now.get((setting.section, setting.key), "")
        audit(ctx, "setting changed", SETTING_MARK.strip(), f"{setting.key}: {before} -> {text}")
