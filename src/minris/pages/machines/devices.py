"""Devices and the doctor of one; who has called; what each status means."""

import datetime
import urllib.parse
from collections.abc import Iterable, Mapping

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
from minris.doctor import Called, Finding, echo, echo_outcome, examine
from minris.pages.forms import FORM_PAGE, Field
from minris.pages.frame import LIGHTS, Action, Frame, Part, Row
from minris.pages.language import Translator, device_names
from minris.standard.status import STATUS_WORDS, Message, Problem, Refusal, Status
from minris.upper_layer.server import ENDINGS
from minris.web.request import enter


class DevicePages(Frame):
    """Devices and the doctor of one; who has called; what each status means."""

    def devices(self) -> str:
        """GET /devices: who may call, who has tried, with C-ECHO and registration in one click."""
        login, _ = enter(self.web, self.request, "technologist")
        t = self.translator()
        known = [
            Row(
                (
                    device.name,
                    ", ".join(device.ae_titles),
                    device.modality,
                    f"{device.host}:{device.port}" if device.host else "",
                    "\\".join(device.character_set) or t("as asked"),
                    t("config.ini") if device.from_file else "",
                ),
                f"/devices/edit?name={urllib.parse.quote(device.name)}",
                (
                    Action("/devices/echo", "C-ECHO", (("name", device.name),)),
                    Action("/devices/doctor", t("Doctor"), (("name", device.name),), get=True),
                ),
            )
            for device in self.web.access().devices
        ]
        columns = (t("Device"), t("AE titles"), t("Modality"), t("Address"), t("Character set"), "")
        tried = [
            Row(
                (
                    calling or "?",
                    address,
                    t(words),
                    f"{datetime.datetime.fromtimestamp(at, self.web.config.zone):%d.%m. %H:%M}",
                ),
                "",
                (register_action(t, calling, address),)
                if calling and not self.web.access().device(calling)
                else (),
            )
            for (calling, address), (at, words) in reversed(
                self.web.box.associations.rejected.copy().items()
            )
        ]
        parts = [
            Part("", columns, known, t("There are none.")),
            Part(t("Turned away since the start"),
                 (t("AE title"), t("Address"), t("Why"), t("Last")), tried, t("There are none.")),
        ]  # fmt: skip
        links = [("/devices/edit", t("New device"))]
        return self.listing("Devices", login, parts, links=links)

    def edit_device(
        self, form: Mapping[str, str] | None = None, problems: Iterable[Problem] = ()
    ) -> str:
        """GET /devices/edit: the settings of a device, those of the file to look at."""
        login, _ = enter(self.web, self.request, "technologist")
        t = self.translator()
        name = self.request.query.getunicode("name") or ""
        device = next((d for d in self.web.access().devices if d.name == name), None)
        profile = self.request.query.getunicode("profile") or ""
        form = form or {
            "name": name,
            "old_name": name if device else "",
            **(settings_of(device) if device else {}),
            **profile_settings(profile),
        }
        fields = [Field("name", t("Name"), "text", form.get("name", ""), True, "", ())]
        for setting in DEVICE_SETTINGS:
            choices = setting_choices(setting, t)
            kind = "select" if choices else "text"
            value = form.get(setting.key) or (setting.default if choices else "")
            label = f"{setting.key}: {t(setting.meaning)}"
            fields.append(
                Field(setting.key, label, kind, value, setting.key == "ae_title", "", choices)
            )
        editable = not (device and device.from_file)
        known = urllib.parse.quote(name)
        after = [
            (
                f"/devices/edit?name={known}&profile={urllib.parse.quote(p)}",
                t("Use: {profile}", profile=p),
            )
            for p in DEVICE_PROFILES
        ]
        return self.page(
            FORM_PAGE,
            "Device",
            login,
            action="/devices/save",
            submit=t("Save") if editable else "",
            csrf=login.form_token,
            hidden=[("old_name", form.get("old_name", ""))],
            groups=[
                (t("Device") if editable else t("From config.ini, to be changed there"), fields)
            ],
            problems=[t(problem.words) for problem in problems],
            after=after if editable else [("/devices", t("Back"))],
            shown=self._names_as_sent(t, form),
            extra=[("preview", t("Show names as sent"))] * editable
            + [("delete", t("Delete"))] * bool(form.get("old_name") and editable),
        )

    @staticmethod
    def _names_as_sent(t: Translator, form: Mapping[str, str]) -> list[Part]:
        """What a device with these settings is sent of some names, to the byte."""
        settings = {setting.key: form.get(setting.key, "") for setting in DEVICE_SETTINGS}
        made = device_of_texts(form.get("name", ""), {"ae_title": "ANY"} | {
            key: text for key, text in settings.items() if text})  # fmt: skip
        if not made:
            return []
        rows_ = []
        for name in SAMPLE_NAMES:
            text, sent = name_as_sent(made, name)
            rows_.append(Row((name, text, sent.hex(" ").upper())))
        columns = (t("Name"), t("The device gets"), t("Bytes"))
        return [Part(t("Names as this device is sent them"), columns, rows_)]

    def save_device_form(self) -> str:
        """POST /devices/save: make, change or delete a device; the next call is judged by it."""
        _, ctx = enter(self.web, self.request, "technologist")
        form = {setting.key: self.form(setting.key).strip() for setting in DEVICE_SETTINGS}
        name, old_name = self.form("name").strip(), self.form("old_name")
        try:
            if self.form("event") == "preview":
                return self.edit_device({"name": name, "old_name": old_name, **form})
            if self.form("event") == "delete":
                self.web.write(delete_device, ctx, old_name)
            else:
                self.web.write(save_device, ctx, name, form, old_name)
        except Refusal as refusal:
            self.bottle.response.status = 422
            problems = refusal.problems or [Problem(0, Message(refusal.detail))]
            return self.edit_device({"name": name, "old_name": old_name, **form}, problems)
        self.web.box.reload_access()
        return self.tell("/devices", self.translator()("Saved."))

    def doctor(self) -> str:
        """GET /devices/doctor: what is known of a device, and the one thing to do next."""
        login, ctx = enter(self.web, self.request, "technologist")
        t, device = self.translator(), self._device(self.request.query.getunicode("name") or "")
        server = self.web.box.associations
        outcome = echo_outcome(self.web.config.dicom.ae_title, device)
        called = Called(server.called.copy(), server.rejected.copy())  # the loop goes on with them
        found = self.web.read(examine, ctx, device, called, outcome)
        rows_ = [Row((LIGHTS[one.light], t(one.words)), "", self._mending(t, device, one), one.light)
                 for one in found]  # fmt: skip
        first = found[0]
        verdict = t("All is well with {name}.", name=device.name)
        if first.light != "good":
            mend = f" {t(first.mend)}." if first.mend else ""
            verdict = f"{t(first.words)}.{mend}"
        links = [(one.path, t(one.mend)) for one in found[:1] if one.path and one.mend]
        links.append(("/devices", t("Devices")))
        part = Part(device.name, (t("Light"), t("What is known")), rows_)
        return self.listing("Doctor", login, [part], intro=verdict, links=links)

    def associations(self) -> str:
        """GET /associations: who is calling now and who has called, what was done, how it ended."""
        login, ctx = enter(self.web, self.request, "technologist")
        t, server = self.translator(), self.web.box.associations
        wanted = (self.request.query.getunicode("q") or "").strip().casefold()
        names = device_names(self.web)
        found_rows = []
        for one in reversed(server.ended.copy()):
            name = names.get(one.calling, "")
            if wanted and wanted not in f"{name} {one.calling} {one.address}".casefold():
                continue
            failed = one.ending not in ("released", "aborted") or any(
                is_failure(status) for (_, status), _ in one.done
            )
            when = datetime.datetime.fromtimestamp(one.at, ctx.config.zone)
            cells = (f"{when:%d.%m. %H:%M:%S}", name or t("unknown"), one.calling, one.address,
                     "; ".join(done_words(t, *each) for each in one.done) or t("nothing"),
                     t(ENDINGS[one.ending].key, words=one.words))  # fmt: skip
            link = f"/devices/doctor?name={urllib.parse.quote(name)}" if name else ""
            actions = () if name else (register_action(t, one.calling, one.address),)
            found_rows.append(Row(cells, link, actions, "warning" if failed else "good"))
        now = [
            Row((names.get(one.calling, t("unknown")), one.calling, one.address))
            for one in server.associations.copy()
            if one.calling
        ]
        columns = (t("Begun"), t("Device"), t("AE title"), t("Address"), t("What was done"),
                   t("How it ended"))  # fmt: skip
        parts = [
            Part(t("Open now"), (t("Device"), t("AE title"), t("Address")), now, t("None.")),
            Part(t("Since the start, the newest first"), columns, found_rows, t("None.")),
        ]
        intro = t("Of what a device repeats, the last time is shown.")
        return self.listing("Associations", login, parts, intro=intro, search=t("Device or address"),
                            query=wanted, links=[("/statuses", t("Statuses"))])  # fmt: skip

    def statuses(self) -> str:
        """GET /statuses: what each status means, and what mends it."""
        login, _ = enter(self.web, self.request, "technologist")
        t = self.translator()
        wanted = (self.request.query.getunicode("q") or "").strip().upper().removeprefix("0X")
        rows_ = [
            Row((f"{status:04X}", t(meaning), t(mend)))
            for status, (meaning, mend) in STATUS_WORDS.items()
            if wanted in f"{status:04X}"
        ]
        columns = (t("Status"), t("Meaning"), t("What to do"))
        part = Part("", columns, rows_, t("Nothing found."))
        intro = t("What devices show, and what is in the log.")
        return self.listing(
            "Statuses", login, [part], intro=intro, search=t("Status"), query=wanted
        )

    @staticmethod
    def _mending(t: Translator, device: Device, finding: Finding) -> tuple[Action, ...]:
        """The button that takes another AE title of a device."""
        if not finding.do or device.from_file:
            return ()
        fields = (("name", device.name), ("ae_title", finding.do))
        return (Action("/devices/adopt", t(finding.mend), fields),)

    def adopt(self) -> str:
        """POST /devices/adopt: take another AE title of a device."""
        _, ctx = enter(self.web, self.request, "technologist")
        name = self.form("name")
        self.web.write(adopt_title, ctx, name, self.form("ae_title"))
        self.web.box.reload_access()
        path = f"/devices/doctor?name={urllib.parse.quote(name)}"
        return self.tell(path, self.translator()("Saved."))

    def echo_device(self) -> str:
        """POST /devices/echo: C-ECHO to a device."""
        enter(self.web, self.request, "technologist")
        device = self._device(self.form("name"))
        words = echo(self.web.config.dicom.ae_title, device)
        return self.tell("/devices", self.translator()(words))


def register_action(t: Translator, calling: str, address: str) -> Action:
    """The button that registers who has called as a device."""
    fields = (("name", calling), ("ae_title", calling), ("host", address))
    return Action("/devices/save", t("Register"), fields)


def is_failure(status: int) -> bool:
    """Whether a status says that something was not done."""
    return bool(status) and status >> 12 != 0xB and status not in (1, 0x0107, Status.CANCEL)


def done_words(t: Translator, message: tuple[str, int], count: int) -> str:
    """How often an operation was done, and with what status if not with success."""
    operation, status = message
    said = (
        f" {status:04X} {t(STATUS_WORDS[status][0])}" if status in STATUS_WORDS and status else ""
    )
    return f"{operation} × {count}{said}"


def setting_text(config: Config, setting: Setting) -> str:
    """The value of a setting as a person reads it."""
    value = getattr(getattr(config, setting.section), setting.key)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple) and setting.kind == "clock":
        return f"{value[0]:02}:{value[1]:02}"
    if isinstance(value, (tuple, frozenset)):
        return ", ".join(map(str, sorted(value) if isinstance(value, frozenset) else value))
    return "" if value is None else str(value)


def setting_choices(setting: Setting, t: Translator) -> tuple[tuple[str, str], ...]:
    """What may be chosen for a setting of few words."""
    kind, *words = setting.kind.split(" ")
    if kind == "bool":
        return (("yes", t("yes")), ("no", t("no")))
    return tuple((word, t(word)) for word in words) if kind == "choice" else ()


def settings_of(device: Device) -> dict[str, str]:
    """A device's settings as texts, as a form or config.ini has them."""
    given: dict[str, str] = {"ae_title": ", ".join(device.ae_titles)}
    for setting in DEVICE_SETTINGS[1:]:
        value = getattr(device, setting.key)
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, tuple):
            value = "\\".join(value)
        elif isinstance(value, frozenset):
            value = ", ".join(sorted(value))
        given[setting.key] = "" if value is None else str(value)
    return given
