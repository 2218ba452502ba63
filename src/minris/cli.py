"""The command line."""

import argparse
import asyncio
import contextlib
import datetime
import getpass
import io
import json
import logging
import os
import re
import secrets
import signal
import sqlite3
import ssl
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minris import __version__
from minris.access.context import Actor, Context, clinic_time, utc_now
from minris.access.devices import AccessRules
from minris.access.page_settings import stored_settings
from minris.access.users import make_token, make_user
from minris.appliance.appliance import Appliance
from minris.appliance.backups import give_back, held_files, hold_files
from minris.appliance.health import UNREADABLE, check_lines, port_problem
from minris.appliance.machine import (
    end_process,
    end_process_soon,
    open_standard_streams,
    say,
    set_up_logging,
)
from minris.appliance.store_commands import STORE_COMMANDS, control_file
from minris.config.ini import Config, ConfigError, find_config, load_config, settings_reference
from minris.config.values import ROLES, TOKEN_ROLES
from minris.conformance.statement import conformance_statement
from minris.housekeeping.restoring import restore, words_of_gap
from minris.interchange.csv_tables import export_csv
from minris.interchange.whole_store import export_store
from minris.simulator.archive import SimulatedArchive
from minris.simulator.demo import DEMO_CONFIG, play_day, zone_at_ten
from minris.simulator.modality import Modality, Scanner
from minris.simulator.peer import SimulationError
from minris.simulator.scenarios import (
    ARCHIVE_SCENARIOS,
    MODALITY_SCENARIOS,
    SCENARIOS,
    WORKSTATION_SCENARIOS,
)
from minris.simulator.workstation import Workstation
from minris.standard.dictionary import is_ae_title, value_problem
from minris.standard.encodings import read_encoding
from minris.standard.status import Refusal
from minris.store.checking import check_after_sudden_end
from minris.store.files import (
    TO_IMPORT,
    beside,
    in_words,
    is_there,
    open_private,
    write_private,
)
from minris.store.models import StoreError, StoreInUse, database
from minris.store.sqlite import (
    StoreLock,
    backup_store,
    kept_files,
    open_store,
    read_store,
    source_of,
    store_facts,
)
from minris.upper_layer.caller import NotSecured
from minris.upper_layer.tls import calling_context, tls_context, tls_files


def _until_signal(then: Callable[[], None] = lambda: None) -> asyncio.Event:
    """Return an event that SIGTERM, SIGINT or Ctrl-Break sets; `then` is called with it."""
    until, loop = asyncio.Event(), asyncio.get_running_loop()

    def stop(*_: object) -> None:
        loop.call_soon_threadsafe(until.set)
        then()

    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    return until


class CommandError(Exception):
    """A command failed: exit status 1."""


def run_store_command(config: Config, command: str, **arguments: Any) -> str:
    """Run a command on the store, by the running appliance if there is one."""
    try:
        lock = StoreLock(config.store_path)
    except StoreInUse:
        return ask_running(config, command, arguments)
    with lock:
        open_store(config.store_path, migrate=False)
        if control_file(config).exists():
            check_after_sudden_end(config.store_path)
        if trouble := database.condition.trouble:
            raise CommandError(f"{config.store_path}: {trouble.words}")
        devices = AccessRules(config).devices
        ctx = Context(config, Actor("console", role="admin"), devices=devices)
        with in_words(config.store_path), database.connection_context(), database.atomic():
            try:
                return STORE_COMMANDS[command](ctx, **arguments)
            except Refusal as refusal:
                raise CommandError(refusal.detail) from None


def ask_running(config: Config, command: str, arguments: dict[str, Any]) -> str:
    """Let the running appliance run a command."""
    try:
        where = json.loads(control_file(config).read_text())
    except (OSError, ValueError):
        raise CommandError(
            f"{config.store_path} is in use. Stop the running minris first"
        ) from None
    if "content" in arguments:  # by a file that it can read, beside the store
        arguments["path"] = lay_beside(config.store_path, arguments.pop("content"))
    try:
        answer = post_control(where, command, arguments)
    finally:  # it takes the file away itself, if it answers
        if "path" in arguments:
            Path(arguments["path"]).unlink(missing_ok=True)
    while "number" in answer:  # it goes on, in slices
        told = {"name": arguments["name"], "number": answer["number"]}
        answer = post_control(where, command, told)
    if "refused" in answer:
        raise CommandError(f"{config.store_path}: " * answer["of_store"] + answer["refused"])
    return str(answer["done"])


def lay_beside(store: Path, content: bytes) -> str:
    """Lay a file beside the store, for its owner alone; return its path."""
    path = beside(store, f"{TO_IMPORT}{secrets.token_hex(8)}").absolute()
    with os.fdopen(open_private(path, store), "wb") as file:
        file.write(content)
    return str(path)


def post_control(where: dict[str, str], command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Let the running appliance do something; return its answer."""
    request = urllib.request.Request(
        f"{where['url']}/control/{urllib.parse.quote(command)}",
        json.dumps(arguments).encode(),
        {"Authorization": f"Bearer {where['secret']}", "Content-Type": "application/json"},
    )
    here = ssl.create_default_context()
    here.check_hostname, here.verify_mode = False, ssl.CERT_NONE  # the address is of our own file
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=here)
    )
    try:
        with opener.open(request, timeout=600) as response:
            return dict(json.load(response))
    except (OSError, ValueError) as error:
        raise CommandError(f"the running minris does not answer: {error}") from None


def command_serve(config: Config, arguments: argparse.Namespace) -> None:
    """Run the appliance until SIGTERM, SIGINT or Ctrl-Break."""
    set_up_logging(config)

    async def serve() -> None:
        if await Appliance(config, say).serve(_until_signal(end_process_soon)):
            # the store is to be opened anew: nothing of this process stays
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        end_process()

    asyncio.run(serve())


def command_settings(config: Config, arguments: argparse.Namespace) -> None:
    """Print config.ini with every setting, its default and meaning."""
    print(settings_reference(), end="")


def command_import(config: Config, arguments: argparse.Namespace) -> None:
    """Import worklist items from DICOM (.wl, .dcm), JSON or CSV files; each file all or nothing."""
    failed = 0
    try:
        encoding = read_encoding(arguments.encoding)
    except ValueError as error:
        raise CommandError(f"--encoding: {arguments.encoding} {error}") from None
    for name in arguments.files:
        try:
            content = Path(name).read_bytes()
            named = {"name": Path(name).name, "content": content, "encoding": encoding,
                     "leave_out": arguments.leave_out, "again": arguments.again}  # fmt: skip
            print(run_store_command(config, "import", **named))
        except (OSError, CommandError) as error:
            failed += 1
            print(f"{name}: nothing imported: {error}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def command_export(config: Config, arguments: argparse.Namespace) -> None:
    """Export everything as JSON, which import reads back, or the scheduled steps as CSV."""
    read_store(config.store_path)
    with in_words(config.store_path), database.connection_context(), database.atomic("DEFERRED"):
        if arguments.format == "csv":
            text = "\ufeff" + export_csv()
        else:
            text = json.dumps(export_store(), ensure_ascii=False, indent=1) + "\n"
    if arguments.file:
        write_private(Path(arguments.file), text)
    else:
        sys.stdout.write(text)


def tell_store(config: Config, make: bool) -> None:
    """Say on standard error which store a command uses. CommandError if there is none to use.

    make  whether the command may make one
    """
    by = f"configuration {config.path or 'defaults'}"
    if not make and not is_there(config.store_path):
        raise CommandError(
            f"there is no store {config.store_path} ({by}). Go to its folder, or name its"
            " configuration: --config FILE, or the variable MINRIS_CONFIG"
        )
    print(f"store {config.store_path}, {by}", file=sys.stderr)


def command_backup(config: Config, arguments: argparse.Namespace) -> None:
    """Make a consistent copy of the store; the appliance may be running."""
    name = f"minris-{datetime.datetime.now():%Y%m%d-%H%M%S}.db"
    to = Path(arguments.file) if arguments.file else config.backup_folder / name
    backup_store(config.store_path, to, None, hold_files(config))
    held, newest = store_facts(to), "none"
    if held.newest:
        newest = f"{clinic_time(Context(config), held.newest):%Y-%m-%d %H:%M}"
    print(f"{to}: {to.stat().st_size} bytes, checked; patients: {held.patients},"
          f" exams: {held.exams}, newest change: {newest}")  # fmt: skip


def command_restore(config: Config, arguments: argparse.Namespace) -> None:
    """Restore a backup after checking it; refused while the appliance runs."""
    held, given = held_files(Path(arguments.file)), []
    named = [one.name for one in held if one.kind == "configuration"]
    if named and not config.path:  # on a new computer: it says where the store is
        given = give_back(config, held)
        config = load_config(config.directory / named[0], os.environ)
    ctx = Context(config, Actor("console", role="admin"))
    with StoreLock(config.store_path):
        kept, gap = restore(ctx, config.store_path, Path(arguments.file))
    files = [str(each) for each in kept_files(kept)] if kept else []
    saved = f"; the previous database is kept as {' and '.join(files)}" if files else ""
    print(f"restored {arguments.file}{saved}")
    for words in (*given, *give_back(config, held), *words_of_gap(ctx, gap)):
        print(words)
    print("Once it is confirmed on the page /restored, the pages say so no more.")


def command_conformance(config: Config, arguments: argparse.Namespace) -> None:
    """Print the DICOM conformance statement of this configuration."""
    print(conformance_statement(config, arguments.format), end="")


def command_user(config: Config, arguments: argparse.Namespace) -> None:
    """Create, change or delete a user."""
    password = ""
    if not arguments.delete:
        if arguments.password_stdin:
            password = sys.stdin.readline().rstrip("\r\n")
        else:
            try:
                password = getpass.getpass(f"Password of {arguments.name}: ")
            except EOFError:
                raise CommandError("no terminal: use --password-stdin") from None
    named = {"name": arguments.name, "role": arguments.role, "delete": arguments.delete}
    print(run_store_command(config, "user", password=password, **named))


def command_token(config: Config, arguments: argparse.Namespace) -> None:
    """Create or delete an API token; the token is printed only once."""
    named = {"name": arguments.name, "role": arguments.role, "delete": arguments.delete}
    print(run_store_command(config, "token", ae_titles=arguments.ae, **named))


def command_simulate(config: Config, arguments: argparse.Namespace) -> None:
    """Simulate devices against a running appliance or another server."""
    calling = arguments.calling
    if not calling.strip() or value_problem("AE", calling) or not calling.isascii():
        raise CommandError(f"--calling: {calling} is not an AE title (1 to 16 ASCII characters)")
    for name in ("port", "listen"):
        if not 0 <= getattr(arguments, name) <= 65535:
            raise CommandError(f"--{name}: {getattr(arguments, name)} is not a port (1 to 65535)")
    secured = arguments.tls or (config.dicom.port == "off" and not arguments.port)
    port = arguments.port or (config.dicom.tls_port if secured else config.dicom.port)
    called = arguments.called or config.dicom.ae_title
    address, modality = (arguments.host, port, called, print), arguments.modality
    device = AccessRules(config).device(calling)
    listen = arguments.listen or (device.port if device and device.host else 0)
    where = read_destination(arguments.archive)
    players: dict[str, Any] = {
        **dict.fromkeys(MODALITY_SCENARIOS, Modality(calling, modality, *address)),
        **dict.fromkeys(WORKSTATION_SCENARIOS, Workstation(calling, *address, listen=listen)),
        "commitment": Scanner(calling, modality, *address, listen=listen, archive=where),
        "archive": SimulatedArchive(calling, *address, listen=listen),
    }
    archive = AccessRules(config).device(where[0]) if where else None
    for player in players.values():
        player.zone = config.zone
        player.calling_tls = simulated_tls(config) if secured else None
        player.archive_tls = simulated_tls(config) if archive and archive.tls != "no" else None
        if device and device.tls != "no":
            player.listening_tls = simulated_tls(config, listening=True)
    scenarios = MODALITY_SCENARIOS | WORKSTATION_SCENARIOS | ARCHIVE_SCENARIOS
    for name in arguments.scenarios:
        try:
            if name in EXAMINING:
                with simulated_patient(config, arguments) as players[name].patient_id:
                    scenarios[name](players[name])
            else:
                scenarios[name](players[name])
        except SimulationError as error:
            raise CommandError(str(error)) from None


EXAMINING = ("modality", "discontinue", "commitment")  # the scenarios that need a patient
THIS_BOX = ("127.0.0.1", "::1", "localhost")


@contextlib.contextmanager
def simulated_patient(config: Config, arguments: argparse.Namespace) -> Iterator[str]:
    """Give the ID of the patient named, else of one made by the running appliance and then erased."""
    if arguments.patient:
        yield arguments.patient
        return
    if arguments.host not in (*THIS_BOX, config.dicom.host) or not control_file(config).exists():
        raise CommandError(
            f"no patient can be made for the simulation: no minris with {config.store_path} runs at"
            f" {arguments.host}. Name a test patient of its worklist: --patient ID"
        )
    station = {"ae_title": arguments.calling, "modality": arguments.modality}
    made = ask_running(config, "make simulated", station)
    try:
        yield made
    finally:
        ask_running(config, "erase simulated", {"patient_id": made})


def simulated_tls(config: Config, listening: bool = False) -> ssl.SSLContext:
    """Return the context of a simulated device, with our own certificate. CommandError without."""
    certificate, key, _ = tls_files(config)
    try:
        if listening:
            if not certificate:
                raise CommandError("[dicom] tls_certificate is needed to listen with TLS")
            return tls_context(ssl.PROTOCOL_TLS_SERVER, certificate, key)
        context = calling_context(config, named=False)
        if certificate:  # this system shows it
            context.load_verify_locations(certificate)
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context
    except (OSError, NotSecured) as error:
        raise CommandError(f"TLS: {error}") from None


def read_destination(text: str) -> tuple[str, str, int] | None:
    """Return AE title, host and port of AE@HOST:PORT, None for an empty text. CommandError."""
    found = re.fullmatch(r"([^@]{1,16})@(.+):(\d{1,5})", text)
    if text and not (found and is_ae_title(found[1]) and 0 < int(found[3]) < 65536):
        raise CommandError(f"--archive: {text} is not AE@HOST:PORT")
    return (found[1], found[2].strip("[]"), int(found[3])) if found else None


def command_check(config: Config, arguments: argparse.Namespace) -> None:
    """Check configuration, ports, store, disk, clock and devices; print one line each."""
    problems = 0
    for what, problem in check_lines(config):
        problems += bool(problem)
        print(f"{what}: {problem or 'ok'}")
    if problems:
        raise SystemExit(1)


def command_demo(config: Config, arguments: argparse.Namespace) -> None:
    """Play a day of an invented department over real DICOM, then keep running for a look."""
    if hasattr(arguments, "config"):
        raise CommandError("demo has a configuration and a store of its own: it takes no --config")
    with tempfile.TemporaryDirectory(prefix="minris-demo-") as folder:
        path = Path(folder, "config.ini")
        web_port = 8080 if not port_problem("127.0.0.1", 8080) else 0
        # not one that the system gives out: another program could get it before it is used
        free = (port for port in range(11113, 12113) if not port_problem("127.0.0.1", port))
        listen = next(free)
        path.write_text(
            f"{DEMO_CONFIG.format(listen=listen, zone=zone_at_ten(utc_now()))}[dicom]\nhost = 127.0.0.1\nport = 0\n"
            f"[web]\nhost = 127.0.0.1\nport = {web_port}\n[log]\nlevel = WARNING\n",
            "utf-8",
        )
        demo_config = load_config(path)
        set_up_logging(demo_config)
        logging.getLogger("pynetdicom").setLevel(logging.ERROR)
        try:
            asyncio.run(_demo(demo_config, arguments.once, listen))
        except KeyboardInterrupt:
            print()


async def _demo(config: Config, once: bool, listen: int) -> None:
    appliance = Appliance(config, lambda line: None)
    await appliance.start()
    password = "demo-admin"

    def logins() -> str:
        ctx = appliance.context()
        make_user(ctx, "admin", "admin", password)
        return make_token(ctx, "demo", "desk")

    try:
        token = await asyncio.wrap_future(appliance.writer.submit(logins))
        say(f"minris {__version__}: a day of an invented department, over real DICOM on loopback.")
        say(f"DICOM {config.dicom.ae_title} at 127.0.0.1:{appliance.dicom_port},"
            f" pages at {appliance.web_url}\n")  # fmt: skip
        where = "127.0.0.1", appliance.dicom_port, config.dicom.ae_title
        pause_s = 0.2 if once else 1.5
        await asyncio.to_thread(
            play_day, appliance.web_url, token, *where, say, pause_s, listen, config.zone
        )
        say("\nThe department is at work.")
        if not once:
            say(f"Look at the board: {appliance.web_url}  user admin, password {password}")
            say("Press Ctrl-C to stop; all data is deleted then.")
            await _until_signal().wait()
    finally:
        await appliance.stop()


def take_stored(config: Config) -> None:
    """Take the settings of the page Settings, where there is a store that can be read."""
    if is_there(config.store_path):
        with contextlib.suppress(*UNREADABLE):
            # not bound to `database`, which the command may bind otherwise
            source = source_of(config.store_path)
            with contextlib.closing(sqlite3.connect(source, uri=True)) as found:
                config.take(stored_settings(found.execute))


# What these print is of one store; those that make one where there is none, besides serve and demo.
USING_A_STORE = {"import", "export", "backup", "restore", "user", "token"}
MAKING_A_STORE = {"import", "restore"}
BY_THE_SETTINGS = {"simulate", "conformance", "check"}  # others that go by those of the page
COMMANDS: dict[str, Callable[[Config, argparse.Namespace], None]] = {
    "serve": command_serve,
    "demo": command_demo,
    "simulate": command_simulate,
    "import": command_import,
    "export": command_export,
    "backup": command_backup,
    "restore": command_restore,
    "conformance": command_conformance,
    "check": command_check,
    "user": command_user,
    "token": command_token,
    "settings": command_settings,
}


OPTIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("demo", "--once", {"action": "store_true", "help": "stop when the day is over"}),
    ("import", "files", {"nargs": "+", "metavar": "FILE"}),
    ("import", "--encoding", {"default": "", "metavar": "NAME",
                              "help": "encoding of texts that are not UTF-8, such as windows-1252"}),
    ("import", "--leave-out", {"action": "store_true",
                               "help": "leave out columns that are not known"}),
    ("import", "--again", {"action": "store_true",
                           "help": "import a file although it was imported before"}),
    ("export", "--format", {"choices": ("json", "csv"), "default": "json"}),
    ("conformance", "--format", {"choices": ("md", "html", "json"), "default": "md"}),
    ("export backup", "file", {"nargs": "?", "metavar": "FILE"}),
    ("restore", "file", {"metavar": "FILE"}),
    ("user token", "name", {"metavar": "NAME"}),
    ("user", "--role", {"choices": ROLES, "default": "desk"}),
    ("token", "--role", {"choices": TOKEN_ROLES, "default": "desk"}),
    ("user token", "--delete", {"action": "store_true"}),
    ("user", "--password-stdin", {"action": "store_true"}),
    ("token", "--ae", {"action": "append", "default": [], "metavar": "TITLE",
                       "help": "an AE title that the token may act for; repeat for more"}),
    ("simulate", "scenarios", {"nargs": "+", "metavar": "SCENARIO", "choices": SCENARIOS, "help": "%(choices)s"}),
    ("simulate", "--host", {"default": "127.0.0.1"}),
    ("simulate", "--port", {"type": int, "default": 0}),
    ("simulate", "--tls", {"action": "store_true", "help": "call over TLS, with the certificate of [dicom]"}),
    ("simulate", "--called", {"default": ""}),
    ("simulate", "--calling", {"default": "CT1"}),
    ("simulate", "--modality", {"default": "CT"}),
    ("simulate", "--patient", {"default": "", "metavar": "ID",
                               "help": "a test patient of the worklist; else one is made, and erased"}),
    ("simulate", "--listen", {"type": int, "default": 0, "metavar": "PORT",
                              "help": "port for incoming events"}),
    ("simulate", "--archive", {"default": "", "metavar": "AE@HOST:PORT",
                               "help": "archive for images of commitment"}),
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS)
    words = "Worklist, MPPS and workitems (UPS) for a small clinic."
    parser = argparse.ArgumentParser("minris", description=words, parents=[common])
    parser.add_argument("--version", action="version", version=f"minris {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, function in COMMANDS.items():
        command = commands.add_parser(name, help=function.__doc__, parents=[common])
        for names, option, settings in OPTIONS:
            if name in names.split():
                command.add_argument(option, **settings)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; exit status 0 success, 1 failure, 2 wrong usage or configuration."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):  # UTF-8 in any locale
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    os.environ.setdefault("PYPINYIN_NO_PHRASES", "true")  # names need no phrases, which take 44 MiB
    arguments = build_parser().parse_args(argv)
    try:
        program = Path(sys.argv[0]).absolute().parent
        path, folder = find_config(getattr(arguments, "config", None), os.environ, program)
        config, command = load_config(path, os.environ, folder), arguments.command or "serve"
        if command in USING_A_STORE:
            tell_store(config, make=command in MAKING_A_STORE)
        if command in USING_A_STORE | BY_THE_SETTINGS:
            take_stored(config)
        COMMANDS[command](config, arguments)
    except ConfigError as error:
        for problem in error.problems:
            print(f"minris: {problem}", file=sys.stderr)
        return 2
    except (StoreError, CommandError, OSError) as error:
        print(f"minris: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1
    return 0
