"""The system: how it is at a glance, backups, what a restore left out."""

from minris.access.audit_end import confirm_cut_off, words_of_cut_off
from minris.housekeeping.restoring import confirm_gaps, gaps, still_back, words_of_gap
from minris.pages.frame import LIGHTS, Action, PageRequest, Row
from minris.pages.template import template

SYSTEM_PAGE = template("system.html")


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
        SYSTEM_PAGE, "System", tiles=tiles, signs={one: LIGHTS[one][0] for one in LIGHTS},
        checks=p.listed("Status | Component | Details", checks), technical=technical,
    )  # fmt: skip


def post_box(p: PageRequest) -> str:
    """POST /box: back up now."""
    p.web.box.back_up()
    if problem := p.web.box.backup_problem:
        return p.tell("/box", p.t("The last backup failed: {problem}", problem=problem))
    return p.tell("/box", p.t("Backed up."))


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
    if cut_off := p.read(words_of_cut_off):
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
