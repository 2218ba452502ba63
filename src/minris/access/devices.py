"""Which machines may call, and how each is written to."""

import functools
import json
import re
import socket
import time
from collections.abc import Iterable, Mapping

from minris import log
from minris.access.context import Context, audit
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
    """A frozen picture of who may associate; `version` tells two pictures apart."""

    def __init__(self, config: Config, stored: Iterable[Device] = (), version: int = 1) -> None:
        self.version = version
        self.accept_unknown = config.dicom.accept_unknown_devices
        self.called = config.dicom.ae_title if config.dicom.check_called_ae_title else None
        of_file = [Device.from_settings(n, d) for n, d in config.devices.items()]
        self.devices = (*of_file, *stored)
        self.by_title = {title: d for d in self.devices for title in d.ae_titles}

    def device(self, calling: str) -> Device | None:
        """The device of an AE title, None where it is not registered."""
        return self.by_title.get(calling)

    def host_to_look_up(self, calling: str) -> str:
        """The name of a host that must be known before `refusal` is asked, or nothing."""
        device = self.by_title.get(calling)
        if not device or not device.check_address:
            return ""
        return (
            "" if re.fullmatch(r"[\d.]+|[\da-fA-F:]*:[\da-fA-F:.]*", device.host) else device.host
        )

    def refusal(self, called: str, calling: str, address: str) -> tuple[int, str] | None:
        """Why an association is not for us: the reason of A-ASSOCIATE-RJ and words; or None.

        Source: PS3.8 Table 9-21 (service user: 3 calling, 7 called AE title not recognized)
        """
        if self.called and called != self.called:
            return 7, Message(
                "it called {called}, our AE title is {ours}",
                called=repr(called),
                ours=repr(self.called),
            )
        device = self.by_title.get(calling)
        if not device and not self.accept_unknown:
            return 3, Message("{calling} is not registered as a device", calling=repr(calling))
        if device and device.check_address and not same_host(device.host, address):
            return 3, Message(
                "{calling} is registered for {host}", calling=repr(calling), host=device.host
            )
        return None


def style_of(device: Device | None, charset: CharacterSet) -> AnswerStyle:
    """How answers to a device are written, `charset` being decided already."""
    if not device:
        return AnswerStyle(charset)
    fallback = character_set(device.fallback_character_set) or UTF_8
    return AnswerStyle(charset, fallback, device.name_groups, device.empty_sequences)


def written_for(device: Device | None, data: bytes, explicit: bool) -> bytes:
    """A whole stored data set as a device reads it."""
    named = device.character_set if device else ()
    charset = (character_set(named) if named else None) or UTF_8
    return encode_whole(data, explicit, style_of(device, charset))


def stored_devices() -> list[Device]:
    """The devices made on the page; one that is no longer in order is left out and logged."""
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
    """A person's name as a device is sent it: the text, and its very bytes."""
    sent = written_for(device, bytes(text_elements(PatientName=name)), True)
    return ElementIndex(recode(sent)).get("PatientName"), ElementIndex(sent).value(
        tag_of("PatientName")
    )


def save_device(ctx: Context, name: str, settings: Mapping[str, str], old_name: str = "") -> None:
    """Make or change a device of the page.

    settings  texts by key of DEVICE_SETTINGS; what is empty has its default
    Refuses   0106 with a line for each setting that is wrong, 0111 for a name or AE title of
              another device
    """
    given = {key: text for key, text in settings.items() if text}
    wrong: list[Message] = []
    section = read_section(f"device {name}", DEVICE_SETTINGS, given, wrong)
    words = [Message("{key}: {value} {words}", **message.values) for message in wrong]
    if any(device.from_file and device.name == old_name for device in ctx.devices):
        words.append(Message("It is of config.ini, and is changed there"))
    if not re.fullmatch(r"[^\[\]\n]{1,64}", name.strip()):
        words.append(Message("A name has 1 to 64 characters"))
    for key in ("check_address", "passed_on"):
        if section.__dict__.get(key) and not section.__dict__.get("host"):
            words.append(Message("{key} needs host", key=key))
    if words:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problems=[Problem(0, w) for w in words])
    for other in ctx.devices:
        taken = set(other.ae_titles) & set(section.ae_title)
        if other.name != old_name and (other.name == name or taken):
            why = Message(
                "{value} belongs to {name} already",
                value=", ".join(sorted(taken)) or name,
                name=other.name,
            )
            raise Refusal(Status.DUPLICATE_SOP_INSTANCE, why, [Problem(0, why)])
    text, now = json.dumps(given, ensure_ascii=False), ctx.stamp()
    record = DeviceRecord.get_or_none(DeviceRecord.name == (old_name or name))
    if record:
        DeviceRecord.update(name=name, settings=text, updated_at=now).where(
            DeviceRecord.id == record.id
        ).execute()
    else:
        DeviceRecord.create(name=name, settings=text, created_at=now, updated_at=now)
    audit(ctx, "device saved", name, text)


def device_of_texts(name: str, settings: Mapping[str, str]) -> Device | None:
    """The device that texts by key of DEVICE_SETTINGS would make; None where one is wrong."""
    problems: list[Message] = []
    given = {key: text for key, text in settings.items() if text}
    section = read_section(f"device {name}", DEVICE_SETTINGS, given, problems)
    return None if problems else Device.from_settings(name, section, from_file=False)


def delete_device(ctx: Context, name: str) -> None:
    """Forget a device of the page. Refuses 0112 for one that is not."""
    if not DeviceRecord.delete().where(DeviceRecord.name == name).execute():
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no device {name}", name=name))
    audit(ctx, "device deleted", name)


def adopt_title(ctx: Context, name: str, ae_title: str) -> None:
    """Let a device of the page have another AE title, by which it calls. Refuses as save_device."""
    record = DeviceRecord.get_or_none(DeviceRecord.name == name)
    if not record:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE,
                      Message("It is of config.ini, and is changed there"))  # fmt: skip
    settings = json.loads(record.settings)
    settings["ae_title"] = f"{settings['ae_title']}, {ae_title}"
    save_device(ctx, name, settings, name)


# Ready settings for a new device, to start from.
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
    """A number that is another one each minute, on a clock that is not set."""
    return int(time.monotonic() // 60)


def profile_settings(name: str) -> dict[str, str]:
    """The settings of a ready profile, with the defaults of those that only others name."""
    if name not in DEVICE_PROFILES:
        return {}
    named = {key for profile in DEVICE_PROFILES.values() for key in profile}
    return {s.key: s.default for s in DEVICE_SETTINGS if s.key in named} | DEVICE_PROFILES[name]


@functools.lru_cache(256)
def host_addresses(host: str, minute: int) -> frozenset[str]:
    """The addresses of a host, looked up once a minute."""
    try:
        return frozenset(str(info[4][0]) for info in socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):  # a name that is none
        return frozenset()


def same_host(host: str, address: str) -> bool:
    """Whether an address is one of a host's."""
    address = address.removeprefix("::ffff:")
    return address == host or address in host_addresses(host, this_minute())
