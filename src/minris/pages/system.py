"""The system: how it is at a glance, backups, what a restore left out."""

import re
from typing import Any

from minris.access.audit_end import confirm_cut_off, words_of_cut_off
from minris.access.context import clinic_time
from minris.delivery.alerts import alert_receivers
from minris.housekeeping.restoring import (
    confirm_gaps,
    gaps,
    note_download,
    note_order,
    outlook,
    still_back,
    words_of_gap,
)
from minris.pages.forms import Field, show_form
from minris.pages.frame import LIGHTS, Action, PageRequest, Row
from minris.pages.template import template
from minris.standard.status import Message, Problem, Refusal, Status
from minris.store.files import sized
from minris.store.models import StoreError

SYSTEM_PAGE = template("system.html")
RESTORING_PAGE = template("restoring.html")


def box_page(p: PageRequest) -> str:
    """GET /box: the system at a glance, and below it the status of each component."""
    t, box = p.t, p.web.box
    checks = [
        Row((" ".join(map(t, LIGHTS[light])), t(what), t(said)), light=light)
        for what, light, said in box.lights()
    ]
    tiles = p.read(box.tiles, sum(p.site.attention(p.ctx).values()))
    technical = [
        (t("Configuration"), str(p.web.config.path or t("no file: defaults"))),
        (t("Database"), str(p.web.config.store_path)),
        (t("Backups"), str(p.web.config.backup_folder)),
        (t("Second backup"), str(p.web.config.second_backup_folder or t("none"))),
    ]
    return p.show(
        SYSTEM_PAGE, "System", alerting=bool(alert_receivers(p.web.config)), tiles=tiles, signs={one: LIGHTS[one][0] for one in LIGHTS},
        checks=p.listed("Status | Component | Details", checks), technical=technical,
        busy=bool(box.backup_since), refresh=bool(box.backup_since),
    )  # fmt: skip


def post_box(p: PageRequest) -> str:
    """POST /box, /backups: begin a backup, whose end the page tells; or send a test alert."""
    if p.form("do") == "test alert":
        p.web.box.try_alert()
        return p.tell("/box", p.t("The test alert is on its way; below stands how it goes."))
    p.web.box.back_up()
    words = p.t("The backup has begun. This page says when it is done.")
    return p.tell(p.request.path, words)


def backups_page(p: PageRequest) -> str:
    """GET /backups: the backups of our folder, with what they hold; how the second place is."""
    t, rows = p.t, []
    for one in p.web.box.backups():
        held = t("{patients} patients, {exams} exams", **one.facts._asdict()) if one.facts else ""
        checked = t(one.problem) if one.problem else t("checked when made")
        actions = (
            Action(f"/backups/{one.path.name}", t("Download"), get=True),
            Action(f"/backups/{one.path.name}/restore", t("Restore"), get=True),
        )
        rows.append(Row((f"{one.at:%Y-%m-%d %H:%M:%S}", sized(one.size), held, checked), "",
                        actions if one.facts else (), "bad" if one.problem else ""))  # fmt: skip
    config = p.web.config
    told = [t("In {folder}", folder=config.backup_folder), t(p.web.box.second_place())]
    if config.second_backup_folder:
        told.append(t("Second place: {folder}", folder=config.second_backup_folder))
    part = p.listed("Made | Size | Content | Checked", rows, "No backup yet")
    told += [t(words) for words in p.web.box.backup_under_way()]
    now = Action("/backups", t("Back up now"), (("do", "backup"),))
    busy = bool(p.web.box.backup_since)
    deeds = [] if busy else [now]
    return p.listing("Backups", [part], intro=". ".join(told), deeds=deeds, refresh=busy)


def backup_named(p: PageRequest, name: str) -> Any:
    """Return a backup of our folder. Refuses 0112."""
    for one in p.web.box.backups():
        if one.path.name == name:
            return one
    raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no such backup"))


def download_backup(p: PageRequest, name: str) -> Any:
    """GET /backups/…: a backup as a file; an audit line says who took it."""
    one = backup_named(p, name)
    p.write(note_download, name)
    p.response.content_type = "application/vnd.sqlite3"
    p.response.set_header("Content-Disposition", f'attachment; filename="{name}"')
    p.response.set_header("Content-Length", str(one.size))
    return one.path.open("rb")


def restore_page(p: PageRequest, name: str, problems: tuple[Problem, ...] = ()) -> str:
    """GET /backups/…/restore: what would come back and be lost, and the form to restore."""
    t, one = p.t, backup_named(p, name)
    ahead = p.read(outlook, one.path)
    warnings = [
        t("The newest change in this backup is of {at}.", at=clinic_time(p.ctx, ahead.since)),
        t(
            "Lost would be {exams} new exams, {patients} new patients, and all changes since"
            " ({changes} entries in the audit log).",
            exams=ahead.exams, patients=ahead.patients, changes=ahead.changes,
        ),
    ]  # fmt: skip
    if ahead.erased:
        warnings.append(t("Erased since, and back: {ids}. Erase them again afterwards.",
                          ids=", ".join(ahead.erased)))  # fmt: skip
    warnings.append(t("minris starts again: everybody must log in anew, machines call again. The"
                      " present database is kept beside it, and the audit log goes on."))  # fmt: skip
    at = f"{one.at:%Y-%m-%d %H:%M}"
    field = Field("sure", t("Type {value} to confirm", value=at), "text", "", True)
    return show_form(
        p, "Restore this backup", [(at, [field])], problems, intro=" ".join(warnings),
        action=f"/backups/{name}/restore", submit=t("Restore"), after=[("/backups", t("Backups"))],
    )  # fmt: skip


def post_restore(p: PageRequest, name: str) -> str:
    """POST /backups/…/restore: restore it by a new start, if its time was typed again."""
    one = backup_named(p, name)
    if re.sub("[^0-9]", "", p.form("sure")) != f"{one.at:%Y%m%d%H%M}":
        p.response.status = 422
        words = Message("Type the date and time of the backup as it stands here")
        return restore_page(p, name, (Problem(0, words),))
    p.write(note_order, name)
    try:
        p.web.box.restore(name, p.ctx.actor.name)
    except (StoreError, OSError) as error:
        p.response.status = 422
        return restore_page(p, name, (Problem(0, Message(str(error))),))
    p.response.set_header("Refresh", f"10; url={p.web.root}/login")
    return p.show(
        RESTORING_PAGE, "The backup is being restored", bare=True,
        words=p.t("minris starts again with it: log in again in a moment."),
    )  # fmt: skip


def restored_page(p: PageRequest) -> str:
    """GET /restored: what the restores left out, until it is confirmed."""
    t, parts = p.t, []
    found = p.read(gaps)
    for gap in found:
        rows = [Row((t(words),)) for words in words_of_gap(p.ctx, gap)]
        for row_id, patient_id in p.read(still_back, gap):
            rows.append(Row((t("Erase the data of {value}", value=patient_id),),
                            f"/patient/{row_id}/erase"))  # fmt: skip
        parts.append(p.listed("Details", rows, "", gap.backup))
    if cut_off := p.read(words_of_cut_off, p.ctx):
        parts.append(p.listed("Details", [Row((t(words),)) for words in cut_off]))
    if parts:
        confirm = Action("/restored", t("Confirm: everybody knows"), (("do", "confirm"),))
        parts.append(p.listed("What", [Row((t("The gap"),), "", (confirm,))]))
    else:
        parts.append(p.listed("What", [], "Nothing is missing since a restore."))
    return p.listing("After a restore", parts, links=[("/box", t("System"))])


def post_restored(p: PageRequest) -> str:
    """POST /restored: confirm that the gap is known."""
    p.write(confirm_gaps)
    p.write(confirm_cut_off)
    return p.tell("/box", p.t("Saved."))
