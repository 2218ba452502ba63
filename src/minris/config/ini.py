"""Reading and checking of config.ini."""

import configparser
import dataclasses
import datetime
import os
import types
import zoneinfo
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from minris.config.settings import DEVICE_SETTINGS, PAGE_SETTINGS, SETTINGS, Setting
from minris.config.values import SETTING_KINDS
from minris.standard.status import Message

OF_PAGE = Message("the page Settings")  # the source of a setting that is kept in the store
TLS_FILES = ("tls_certificate", "tls_key", "tls_client_ca", "tls_ca")


class ConfigError(Exception):
    """The errors of a configuration: one line each, with section and key."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclasses.dataclass(frozen=True)
class Config:
    """The checked settings: config.dicom.port, and one mapping of settings for each device.

    sources  by section and key: where a setting comes from, unless it is the default
    """

    dicom: types.SimpleNamespace
    ups: types.SimpleNamespace
    commitment: types.SimpleNamespace
    web: types.SimpleNamespace
    store: types.SimpleNamespace
    clinic: types.SimpleNamespace
    housekeeping: types.SimpleNamespace
    alert: types.SimpleNamespace
    log: types.SimpleNamespace
    devices: Mapping[str, types.SimpleNamespace]
    path: Path | None = None
    directory: Path = Path()
    sources: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)

    def take(self, stored: Mapping[tuple[str, str], str]) -> list[Message]:
        """Take what the page Settings has stored, at once; a line for each that is not valid.

        What config.ini or a variable names stays as it is there.
        """
        problems: list[Message] = []
        for setting in PAGE_SETTINGS:
            name = setting.section, setting.key
            if self.is_of_file(setting) or not (name in stored or name in self.sources):
                continue
            given = {setting.key: stored[name]} if name in stored else {}
            found = read_section(setting.section, [setting], given, problems)
            if hasattr(found, setting.key):
                setattr(getattr(self, setting.section), *vars(found).popitem())
                self.sources.pop(name, "")
                self.sources.update({name: OF_PAGE} if given else {})
        return problems

    def is_of_file(self, setting: Setting) -> bool:
        """Whether config.ini or a variable names a setting: the page cannot change it then."""
        return self.sources.get((setting.section, setting.key), OF_PAGE) != OF_PAGE

    @property
    def zone(self) -> datetime.tzinfo | None:
        """The time zone of the clinic, None for that of the machine."""
        return zoneinfo.ZoneInfo(self.clinic.timezone) if self.clinic.timezone else None

    @property
    def backup_folder(self) -> Path:
        """The absolute path of the folder for nightly backups."""
        return Path(self.directory, self.housekeeping.backup_folder).absolute()

    @property
    def second_backup_folder(self) -> Path | None:
        """The absolute path of the second folder for backups, None if there is none."""
        text = self.housekeeping.second_backup_folder
        return Path(self.directory, text).absolute() if text else None

    def tls_files(self) -> Iterator[tuple[str, Path]]:
        """The files of certificates and keys, as they are set, with their paths."""
        for section in (self.dicom, self.web):
            for key in TLS_FILES:
                if text := getattr(section, key, ""):
                    yield text, self.directory / text

    @property
    def store_path(self) -> Path:
        """The absolute path of the database."""
        return Path(self.directory, self.store.url.removeprefix("sqlite:///")).absolute()


@dataclasses.dataclass(frozen=True)
class Device:
    """A machine that connects to this system, or that this system connects to."""

    name: str
    ae_titles: tuple[str, ...]
    host: str = ""
    port: int = 104
    tls: str = "no"
    check_address: bool = False
    modality: str = ""
    station_name: str = ""
    location: str = ""
    character_set: tuple[str, ...] = ()
    fallback_character_set: tuple[str, ...] = ("ISO_IR 192",)
    role: str = "modality"
    hours: tuple[str, ...] = ()
    own_steps_only: bool = False
    days_back: int | None = None
    days_ahead: int | None = None
    answer_limit: int | None = None
    empty_sequences: bool = True
    name_groups: str = "all"
    combined_pdvs: bool = True
    relational_queries: bool = False
    events: str = "as_subscribed"
    events_without_role: bool = False
    mpps: str = "auto"
    report_on_same_association: bool = False
    passed_on: frozenset[str] = frozenset()
    from_file: bool = True

    @property
    def ae_title(self) -> str:
        """The AE title that its steps are scheduled for."""
        return self.ae_titles[0]

    @classmethod
    def from_settings(
        cls, name: str, settings: types.SimpleNamespace, from_file: bool = True
    ) -> "Device":
        """The device of these settings, from config.ini or from the page of devices."""
        given = dict(vars(settings))
        titles = given.pop("ae_title")
        return cls(name=name, ae_titles=titles, from_file=from_file, **given)


def read_setting(setting: Setting, text: str) -> Any:
    """The value of a setting. Raises ValueError with the reason."""
    name, *arguments = setting.kind.split(" ")
    return SETTING_KINDS[name](text, *arguments)


def read_section(
    name: str, table: Iterable[Setting], given: Mapping[str, str], problems: list[Message]
) -> types.SimpleNamespace:
    """The values of one section; appends a line to `problems` for each error."""
    section, known = types.SimpleNamespace(), set()
    for setting in table:
        text = given.get(setting.key, setting.default).strip()
        known.add(setting.key)
        try:
            setattr(section, setting.key, read_setting(setting, text))
        except ValueError as error:
            where = {"section": name, "key": setting.key, "value": repr(text or "nothing")}
            problems.append(
                Message("[{section}] {key}: {value} {words}", **where, words=error.args[0])
            )
    for key in given:
        if key not in known:
            where = {"section": name, "key": key, "value": repr(given[key])}
            words = Message("there is no such setting")
            problems.append(Message("[{section}] {key}: {words}", **where, words=words))
    return section


def read_ini(path: Path) -> configparser.ConfigParser:
    """The parsed file. Raises ConfigError if it is not an ini file in UTF-8."""
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text("utf-8-sig"), str(path))
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        raise ConfigError([f"{path}: {' '.join(str(error).split())}"]) from None
    return parser


def check_files(sections: Mapping[str, types.SimpleNamespace], directory: Path) -> Iterator[str]:
    """A line for each TLS file that does not exist, or that is needed but not set."""
    for name in ("dicom", "web"):
        section = sections[name]
        for key in TLS_FILES:
            if (text := getattr(section, key, "")) and not (directory / text).is_file():
                yield f"[{name}] {key}: there is no file {directory / text}"
        for key in ("tls_key", "tls_port"):
            if getattr(section, key, "") and not getattr(section, "tls_certificate", ""):
                yield f"[{name}] tls_certificate: is needed with {key}"
    if getattr(sections["dicom"], "port", 0) == "off" and not getattr(
        sections["dicom"], "tls_port", 0
    ):
        yield "[dicom] tls_port: is needed where port is off"


def check_proxies(web: types.SimpleNamespace) -> Iterator[str]:
    """A line if whoever calls from this computer is trusted, and a proxy may be among them."""
    for key in ("public_url", "trusted_proxies"):
        if getattr(web, "anonymous_loopback", False) and getattr(web, key, ""):
            yield f"[web] anonymous_loopback: cannot be used with {key}"


def check_devices(devices: Mapping[str, types.SimpleNamespace]) -> Iterator[str]:
    """A line for each AE title of two devices, and for each setting that needs a host."""
    owners: dict[str, str] = {}
    for name, device in devices.items():
        for title in getattr(device, "ae_title", ()):
            other = owners.setdefault(title, name)
            if other != name:
                yield f"[device {name}] ae_title: {title!r} belongs to [device {other}] already"
        for key in ("check_address", "passed_on"):
            if getattr(device, key, False) and not getattr(device, "host", ""):
                yield f"[device {name}] {key}: needs host"


STORE_NAME = "minris.db"  # that of [store] url
# Where the service of this computer has its configuration and its store.
USUAL_PLACES = tuple(Path(place) for place in ("/var/lib/minris", "/etc/minris"))


def find_config(
    given: str | None, environ: Mapping[str, str], program: Path
) -> tuple[Path | None, Path]:
    """The configuration file, None for the defaults, and the folder of relative paths.

    The first that there is: the file given, that of MINRIS_CONFIG, then a config.ini or a store in
    the working directory, beside the store of MINRIS_STORE_URL, beside the program, in the usual
    places.
    """
    if named := given or environ.get("MINRIS_CONFIG"):
        return Path(named), Path(named).absolute().parent
    store = environ.get("MINRIS_STORE_URL", "").removeprefix("sqlite:///")
    places = (Path.cwd(), *([Path(store).absolute().parent] if store else []), program)
    for place in (*places, *USUAL_PLACES):
        if os.path.isfile(place / "config.ini"):  # False also where we may not look
            return place / "config.ini", place
        if os.path.isfile(place / STORE_NAME):
            return None, place
    return None, Path.cwd()


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] = types.MappingProxyType({}),
    folder: Path | None = None,
) -> Config:
    """The configuration of a file, or the defaults. Raises ConfigError with all errors at once.

    path     the file, None for the defaults
    environ  variables MINRIS_SECTION_KEY, which override the file
    folder   that of relative paths without a file; None: the working directory
    """
    parser = read_ini(path) if path else configparser.ConfigParser(default_section="")
    wrong: list[Message] = []
    given = {name: dict(parser[name]) for name in parser.sections()}
    sources = {(name, key): "config.ini" for name in given for key in given[name]}
    for setting in SETTINGS:
        variable = f"MINRIS_{setting.section}_{setting.key}".upper()
        if variable in environ:
            given.setdefault(setting.section, {})[setting.key] = environ[variable]
            sources[setting.section, setting.key] = variable
    sections: dict[str, types.SimpleNamespace] = {}
    for name in dict.fromkeys(setting.section for setting in SETTINGS):
        table = [setting for setting in SETTINGS if setting.section == name]
        sections[name] = read_section(name, table, given.pop(name, {}), wrong)
    devices = {}
    for name in [name for name in given if name.startswith("device ")]:
        title = name.removeprefix("device ").strip()
        devices[title] = read_section(name, DEVICE_SETTINGS, given.pop(name), wrong)
    directory = path.absolute().parent if path else folder or Path.cwd()
    problems = [
        *wrong,
        *(f"[{name}]: there is no such section" for name in given if name),
        *check_devices(devices),
        *check_files(sections, directory),
        *check_proxies(sections["web"]),
    ]
    if problems:
        raise ConfigError(problems)
    return Config(**sections, devices=devices, path=path, directory=directory, sources=sources)


def settings_reference() -> str:
    """A config.ini with every setting, its meaning, and its default as a comment."""
    lines = [
        "# minris: every setting with its default. Lines starting with # are comments.",
        "# Remove the # to set a value. File encoding: UTF-8.",
        "# Those marked (page) are changed on the page Settings too; what is set here wins there.",
    ]
    section = ""
    for setting in (*SETTINGS, *DEVICE_SETTINGS):
        if setting.section != section:
            section = setting.section
            lines += ["", f"[{section}]" if section != "device" else "#[device CT room 1]"]
        page = " (page)" if setting in PAGE_SETTINGS else ""
        lines += [f"# {setting.meaning}{page}", f"#{setting.key} = {setting.default}".rstrip()]
    return "\n".join(lines) + "\n"
