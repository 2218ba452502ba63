"""The first day: a list that leads to the first patient on a machine."""

import datetime
import urllib.parse
from typing import Any

from minris.access.context import modalities_of
from minris.access.users import logins_of
from minris.config.ini import Device
from minris.config.settings import SETTINGS
from minris.housekeeping.first_day import (
    SimulatedPatient,
    first_day,
    list_leads,
    put_list_away,
    simulated_patients,
    take_test_patient_away,
)
from minris.housekeeping.simulated import make_simulated
from minris.orders.trace import last_query
from minris.pages.day.board import board_page
from minris.pages.frame import PageRequest
from minris.pages.machines.device_form import device_fields, setting_text
from minris.pages.machines.devices import device_named, ways_to_us
from minris.pages.settings import SETTINGS_THING, setting_fields
from minris.pages.template import template

WELCOME_PAGE = template("welcome.html")
WELCOME_PART = template("welcome_part.html")
SHOWN = ("clinic", "housekeeping")  # the sections of the settings that the list tells
CLINIC_KEYS = ("name", "timezone", "opens", "closes", "closed_days")


def home_page(p: PageRequest) -> str | bytes:
    """GET /: the board; for an administrator the list of the first day, as long as that leads."""
    if p.request.query_string or not p.may("admin") or not p.read(list_leads, p.ctx):
        return board_page(p)
    return welcome_page(p)


def welcome_page(p: PageRequest) -> str:
    """GET /welcome: what is to be done on the first day, and what is done; ?part=board: the live part."""
    t, config = p.t, p.web.config
    done, machines = p.read(first_day, p.ctx), modalities_of(p.devices)
    lines = machine_lines(p, machines)
    wanted = not lines or not all(good for good, _ in lines)
    board = p.part(WELCOME_PART, done=done.machine or any(good for good, _ in lines), lines=lines,
                   callers=unknown_callers(p) if wanted else [])  # fmt: skip
    if p.query("part") == "board":
        return board
    shown = {one.key: setting_text(config, one) for one in SETTINGS if one.section in SHOWN}
    hours = f"{shown['opens']}–{shown['closes']}"
    trying: list[SimulatedPatient] = p.read(simulated_patients)
    people, second = len(p.read(logins_of, p.ctx)), config.second_backup_folder
    nightly = shown["backup_time"]
    typed = {key: p.query(key) for key in ("name", "ae_title", "modality")}
    return p.show(
        WELCOME_PAGE, "Welcome to minris", sheet="welcome", script="board", done=done, board=board, mark=p.mark(SETTINGS_THING),
        clinic_words=p.t.dotted((shown["name"], shown["timezone"], hours)),
        clinic_fields=setting_fields(p, CLINIC_KEYS, {}, {}),
        people_words=t("{count} people can log in.", count=people) if done.people
        else t("A login for reception, one for the technologists."),
        backup_words=t("Every night at {time}, and copied to {folder}.", time=nightly, folder=second)
        if second else t("Every night at {time}. Choose a second place: a USB stick or a network folder.", time=nightly),
        backup_fields=setting_fields(p, ["second_backup_folder"], {}, {}),
        machines=[one.name for one in machines], typed=any(typed.values()), host=p.query("host"),
        machine_fields=device_fields(p, typed, {}, ("name", "ae_title", "modality")),
        ours=ways_to_us(p), trying=trying,
        sheets=[(f"/devices/sheet?name={urllib.parse.quote(one.name)}", one.name) for one in machines],
    )  # fmt: skip


def machine_lines(p: PageRequest, machines: list[Device]) -> list[tuple[bool, str]]:
    """Return for each machine whether it has called, and a sentence about that."""
    t, called, found = p.t, p.web.box.associations.called, []
    for device in machines:
        calls = [call for title in device.ae_titles if (call := called.get(title))]
        query = p.read(last_query, device.ae_titles)
        if not calls and not query:
            words = t(
                "Waiting for {ae} to call … press “Echo” or “Verify” at the machine.",
                ae=device.ae_title,
            )
            found.append((False, words))
            continue
        words = t("{name} has called.", name=device.name)
        if calls:
            last = max(calls, key=lambda call: call.at)
            at = datetime.datetime.fromtimestamp(last.at, p.ctx.config.zone)
            words = t("{name} called at {at} from {address}.", name=device.name,
                      at=f"{at:%H:%M}", address=last.address)  # fmt: skip
        if query:
            words = t.text(words, t("Last worklist query: {count} exams.", count=query.answers))
        found.append((True, words))
    return found


def unknown_callers(p: PageRequest) -> list[dict[str, Any]]:
    """Return who was rejected since the start, the newest first, and what fills the form for each."""
    t, found = p.t, []
    for (calling, address), (_, words) in reversed(p.web.box.associations.rejected.copy().items()):
        new = calling and not p.device(calling)
        fields = {"ae_title": calling, "name": calling, "host": address}
        found.append({
            "words": t("{ae} called from {address}: {words}.", ae=calling or "?", address=address, words=words),
            "fill": urllib.parse.urlencode(fields) if new else "", "ae": calling,
        })  # fmt: skip
    return found[:5]


def post_welcome(p: PageRequest) -> str:
    """POST /welcome: put a test patient on a machine's worklist or take it away; put the list away."""
    event = p.form("event")
    if event == "put away":
        p.write(put_list_away)
        return p.redirect("/")
    if event == "end":
        p.write(take_test_patient_away, p.form("patient_id"))
        return p.tell("/welcome", p.t("The test patient was erased."))
    device = device_named(p, p.form("name"))
    p.write(make_simulated, device.ae_title, device.modality or "OT")
    return p.redirect("/welcome")
