"""Devices: which may associate, how answers to each are encoded, changes on the page."""

import functools
import json
import re
import socket
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from minris import log
from minris.access.context import Context, audit, device_titled
from minris.config.ini import Config, Device, read_section
from minris.config.settings import DEVICE_SETTINGS
from minris.dataset.elements import ElementIndex, text_elements
from minris.dataset.recode import recode
from minris.dataset.search import AnswerStyle, encode_whole
from minris.dataset.text import UTF_8, CharacterSet, character_set
from minris.standard.dictionary import tag_of
from minris.standard.status import Message, Problem, Refusal, Status
from minris.standard.tables import table
from minris.store.models import DeviceRecord, database


class AccessRules:
    """A snapshot of who may associate; `version` tells snapshots apart."""

    def __init__(self, config: Config, stored: Iterable[Device] = (), version: int = 1) -> None:
        self.version = version
        self.accept_unknown = config.dicom.accept_unknown_devices
        self.called = config.dicom.ae_title if config.dicom.check_called_ae_title else None
        of_file = [Device.from_settings(n, d) for n, d in config.devices.items()]
        self.devices = (*of_file, *stored)
        titles = {title for device in self.devices for title in device.ae_titles}
        self.by_title = {title: device_titled(self.devices, title) for title in titles}

    def device(self, calling: str) -> Device | None:
        """The device with an AE title, None if it is not registered."""
        return self.by_title.get(calling)

    def host_to_look_up(self, calling: str, address: str) -> str:
        """The host whose addresses `refusal` needs to know for a caller, or empty."""
        device = self.by_title.get(calling)
        host = device.host if device and device.check_address else ""
        return "" if host == plain_address(address) else host

    def refusal(
        self, called: str, calling: str, address: str, addresses: Collection[str] = ()
    ) -> tuple[int, str] | None:
        """Why to reject an association: the reason in A-ASSOCIATE-RJ, and words; None to accept.

        addresses  those of host_to_look_up: nothing is looked up here, in the event loop
        Source: PS3.8 Table 9-21 (service user: 3 calling, 7 called AE title not recognized)
        """
        if self.called and called != self.called:
            return 7, Message(
                "it called {called}, but our AE title is {ours}",
                called=repr(called),
                ours=repr(self.called),
            )
        device = self.by_title.get(calling)
        if not device and not self.accept_unknown:
            return 3, Message("{calling} is not a registered device", calling=repr(calling))
        own = (device.host, *addresses) if device else ()
        if device and device.check_address and plain_address(address) not in own:
            return 3, Message(
                "{calling} is registered for {host}", calling=repr(calling), host=device.host
            )
        return None


def conflict_of(device: Device, others: Iterable[Device]) -> Message | None:
    """What a device shares with another one, its name or AE titles; None if nothing."""
    for other in others:
        taken = set(other.ae_titles) & set(device.ae_titles)
        if taken or other.name == device.name:
            value = ", ".join(sorted(taken)) or device.name
            return Message("{value} already belongs to {name}", value=value, name=other.name)
    return None


def device_conflicts(devices: Sequence[Device]) -> list[tuple[Device, Message]]:
    """Each device that shares its name or an AE title with one before it, which prevails."""
    found = ((one, conflict_of(one, devices[:at])) for at, one in enumerate(devices))
    return [(device, words) for device, words in found if words]


def style_of(device: Device | None, charset: CharacterSet) -> AnswerStyle:
    """The style of answers to a device, in a character set that is decided already."""
    if not device:
        return AnswerStyle(charset)
    fallback = character_set(device.fallback_character_set) or UTF_8
    return AnswerStyle(charset, fallback, device.name_groups, device.empty_sequences)


def written_for(device: Device | None, data: bytes, explicit: bool) -> bytes:
    """A whole stored data set, encoded for a device."""
    named = device.character_set if device else ()
    charset = (character_set(named) if named else None) or UTF_8
    return encode_whole(data, explicit, style_of(device, charset))


def stored_devices() -> list[Device]:
    """The devices from the page; an invalid one is left out and logged."""
    found = []
    for name, text in database.execute_sql(
        "SELECT name, settings FROM device_record ORDER BY name"
    ):
        problems: list[Message] = []
        section = read_section(f"device {name}", DEVICE_SETTINGS, json.loads(text), problems)
        if problems:
            log.error("%s", "; ".join(problems))
        else:
            found.append(Device.from_settings(name, section, from_file=False))
    return found


SAMPLE_NAMES = (
    "Wang^XiaoDong=王^小东",
    "Müller^Jörg",
    "Иванов^Пётр",
    "Yamada^Tarou=山田^太郎=やまだ^たろう",
)


def name_as_sent(device: Device, name: str) -> tuple[str, bytes]:
    """A person's name as sent to a device: the text, and its bytes."""
    sent = written_for(device, bytes(text_elements(PatientName=name)), True)
    return ElementIndex(recode(sent)).get("PatientName"), ElementIndex(sent).value(
        tag_of("PatientName")
    )


def _unknown(name: str) -> Message:
    return Message("There is no device {name}", name=name)


def _wrong(key: str, value: str, words: Message) -> Message:
    return Message("{key}: {value} {words}", key=key, value=repr(value or "nothing"), words=words)


def save_device(ctx: Context, name: str, settings: Mapping[str, str], old_name: str = "") -> None:
    """Add or change a device from the page.

    settings  texts by key of DEVICE_SETTINGS; empty ones have their defaults
    old_name  of the device to change; empty for a new one
    Refuses   0106 with a line for each invalid setting, 0111 for a name or AE title of another
              device, 0112 for one that was deleted meanwhile
    """
    given = {key: text for key, text in settings.items() if text}
    wrong: list[Message] = []
    section = read_section(f"device {name}", DEVICE_SETTINGS, given, wrong)
    words = [Message("{key}: {value} {words}", **message.values) for message in wrong]
    if any(device.from_file and device.name == old_name for device in ctx.devices):
        words.append(Message("It is set in config.ini and can only be changed there"))
    if not re.fullmatch(r"[^\[\]\n]{1,64}", name.strip()):
        words.append(_wrong("name", name, Message("is not a name of 1 to 64 characters")))
    for key in ("check_address", "passed_on"):
        if section.__dict__.get(key) and not section.__dict__.get("host"):
            words.append(_wrong("host", "", Message("is needed for {key}", key=key)))
    if words:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(0, w) for w in words])
    # those of this moment, not of the request: another may have been saved since
    others = [one for one in AccessRules(ctx.config, stored_devices()).devices
              if one.name != old_name]  # fmt: skip
    saved = Device.from_settings(name, section, from_file=False)
    if why := conflict_of(saved, others):
        raise Refusal(Status.DUPLICATE_SOP_INSTANCE, why, [Problem(0, why)])
    text, now = json.dumps(given, ensure_ascii=False), ctx.stamp()
    record = DeviceRecord.get_or_none(DeviceRecord.name == (old_name or name))
    if old_name and not record:  # somebody has deleted it
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, _unknown(old_name))
    record = record or DeviceRecord(created_at=now)
    record.name, record.settings, record.updated_at = name, text, now
    record.save()
    audit(ctx, "device saved", name, text)


def device_of_texts(name: str, settings: Mapping[str, str]) -> Device | None:
    """The device of some settings, texts by key of DEVICE_SETTINGS; None if one is invalid."""
    problems: list[Message] = []
    given = {key: text for key, text in settings.items() if text}
    section = read_section(f"device {name}", DEVICE_SETTINGS, given, problems)
    return None if problems else Device.from_settings(name, section, from_file=False)


def delete_device(ctx: Context, name: str) -> None:
    """Delete a device from the page. Refuses 0112 for an unknown one."""
    if not DeviceRecord.delete().where(DeviceRecord.name == name).execute():
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, _unknown(name))
    audit(ctx, "device deleted", name)


def adopt_title(ctx: Context, name: str, ae_title: str) -> None:
    """Add an AE title to a device from the page. Refuses as save_device."""
    record = DeviceRecord.get_or_none(DeviceRecord.name == name)
    if not record:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE,
                      Message("It is set in config.ini and can only be changed there"))  # fmt: skip
    settings = json.loads(record.settings)
    settings["ae_title"] = f"{settings['ae_title']}, {ae_title}"
    save_device(ctx, name, settings, name)


# Profiles: initial settings for a new device.
DEVICE_PROFILES: dict[str, dict[str, str]] = {
    row.name: dict(pair.split(": ", 1) for pair in row.settings.split("; "))
    for row in table("""
    name                        | settings
    Modern, UTF-8               | character_set: ISO_IR 192
    Chinese, GB18030            | character_set: GB18030
    Chinese, GBK                | character_set: GBK
    Chinese, ISO 2022 IR 58     | character_set: \\ISO 2022 IR 58
    Chinese screen, one name    | character_set: GB18030; name_groups: ideographic
    Western Europe, ISO_IR 100  | character_set: ISO_IR 100; fallback_character_set: ISO_IR 100; name_groups: alphabetic
    Cyrillic, ISO_IR 144        | character_set: ISO_IR 144
    Japanese, ISO 2022 IR 87    | character_set: \\ISO 2022 IR 87
    Korean, ISO 2022 IR 149     | character_set: \\ISO 2022 IR 149
    Old: ASCII, plain answers   | character_set: ISO_IR 6; fallback_character_set: ISO_IR 6; name_groups: alphabetic; empty_sequences: no; combined_pdvs: no
    """)
}


def this_minute() -> int:
    """The current minute on a monotonic clock, as a key of caches."""
    return int(time.monotonic() // 60)


def profile_settings(name: str) -> dict[str, str]:
    """The settings of a profile, with the defaults of those that only other profiles set."""
    if name not in DEVICE_PROFILES:
        return {}
    named = {key for profile in DEVICE_PROFILES.values() for key in profile}
    return {s.key: s.default for s in DEVICE_SETTINGS if s.key in named} | DEVICE_PROFILES[name]


@functools.lru_cache(256)
def host_addresses(host: str, minute: int) -> frozenset[str]:
    """The addresses of a host, looked up once per minute."""
    try:
        return frozenset(str(info[4][0]) for info in socket.getaddrinfo(host, None))
    except (OSError, ValueError):  # ValueError, UnicodeError: not a valid name
        return frozenset()


def plain_address(address: str) -> str:
    """An address of IPv4 without the prefix that it has at a door for IPv6."""
    return address.removeprefix("::ffff:")


def same_host(host: str, address: str) -> bool:
    """Whether a host has an address."""
    address = plain_address(address)
    return address == host or address in host_addresses(host, this_minute())
