"""The operating system: logging, TLS certificates, the clock, systemd, files."""

import contextlib
import datetime
import logging
import logging.handlers
import os
import re
import socket
import ssl
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minris import log
from minris.appliance.lines import JsonLines, OneOfAKind, TextLines
from minris.config.ini import Config, ConfigError
from minris.standard.status import Message
from minris.store.condition import StoreTrouble
from minris.upper_layer.tls import tls_context


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line of the log tells more than the store does itself, once a minute."""
    failures = [record.exc_info and record.exc_info[1], *(record.args or ())]
    return not any(isinstance(one, StoreTrouble) for one in failures)


def open_standard_streams() -> None:
    """Give a process that has no standard streams (pythonw, `>&-`) some that lead nowhere.

    Else the next file or connection gets the number of one, and what is written to it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "w" if number else "r", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)
            with contextlib.suppress(OSError):
                if stream.fileno() > 2 and os.name == "posix":
                    os.dup2(stream.fileno(), number)


STOP_IN = 4.8  # seconds from the signal to the end, whatever still runs


def end_process(status: int = 0) -> None:
    """End this process now. Threads that still read or wait for a name server end with it."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def end_process_soon() -> None:
    """End this process in STOP_IN seconds if it has not ended by then."""
    timer = threading.Timer(STOP_IN, end_process)
    timer.daemon = True
    timer.start()


def say(line: str) -> None:
    """Print a line at once; nobody has to read it."""
    with contextlib.suppress(OSError):  # a pipe whose reader has gone, a full disk
        print(line, flush=True)


def set_up_logging(config: Config) -> None:
    """Set up logging by [log]; of other libraries only warnings are logged."""
    settings = config.log
    handler: logging.Handler = logging.StreamHandler()
    if settings.file:
        path = config.directory / settings.file
        with contextlib.suppress(OSError):  # a disk that takes nothing stops no start
            handler = logging.handlers.RotatingFileHandler(
                path, maxBytes=10_000_000, backupCount=5, encoding="utf-8"
            )
    handler.addFilter(is_news)
    handler.setFormatter(JsonLines() if settings.format == "json" else TextLines())
    handler.addFilter(OneOfAKind())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    log.setLevel(settings.level)


class RenewableContext(ssl.SSLContext):
    """A TLS server context: each connection is made by the context that is current then."""

    current: ssl.SSLContext

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        return self.current.wrap_bio(*arguments, **named)


class Certificate:
    """A TLS server context that is made anew with its files; a renewal needs no restart."""

    def __init__(self, certificate: Path, key: Path | None, client_ca: Path | None = None) -> None:
        self.files = (certificate, key, client_ca)
        self.context = RenewableContext(ssl.PROTOCOL_TLS_SERVER)
        self.read_at: tuple[float, ...] = ()
        self.renew()

    def renew(self) -> bool:
        """Reload changed files; whether there were any. Raises ssl.SSLError, OSError."""
        changed = tuple(path.stat().st_mtime for path in self.files if path)
        if changed == self.read_at:
            return False
        certificate, key, client_ca = self.files
        decoded = ssl._ssl._test_decode_cert(str(certificate))  # the only parser in the library
        seconds = ssl.cert_time_to_seconds(decoded["notAfter"])
        # a context of its own: what another one has loaded, it trusts for ever
        renewed = tls_context(ssl.PROTOCOL_TLS_SERVER, certificate, key)
        if client_ca:
            renewed.verify_mode = ssl.CERT_REQUIRED
            renewed.load_verify_locations(client_ca)
        self.context.current = renewed
        self.end = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        self.read_at = changed
        return True

    def notice(self, now: datetime.datetime) -> Message | None:
        """Return a notice if it has expired or expires within two weeks."""
        end = self.end
        if end > now + datetime.timedelta(days=14):
            return None
        where = {"file": self.files[0].name, "day": f"{end:%Y-%m-%d}"}
        if end <= now:
            return Message("The certificate {file} has expired on {day}", **where)
        return Message("The certificate {file} expires on {day}", **where)


def open_certificate(config: Config, section: types.SimpleNamespace) -> Certificate | None:
    """Return the certificate of a section, None if not set. ConfigError if it cannot be read."""
    if not section.tls_certificate:
        return None
    names = (section.tls_certificate, section.tls_key, getattr(section, "tls_client_ca", ""))
    paths = [config.directory / name if name else None for name in names]
    try:
        return Certificate(*paths)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError([f"tls_certificate: {paths[0]}: {error}"]) from None


def notify_systemd(text: str) -> None:
    """Send a notification to systemd (sd_notify) if it has started us."""
    address = re.sub("^@", "\0", os.environ.get("NOTIFY_SOCKET", ""))
    if address:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with channel, contextlib.suppress(OSError):
            channel.sendto(text.encode(), address)


class ClockWatch:
    """Detects jumps of the system clock; nothing is deleted while the clock is doubtful.

    A board without a battery-backed clock starts in the past and jumps at its first time sync.

    last_seen  the last trusted time of the previous run, in seconds since 1970; None: first run
    """

    LEAP, FAR = 60.0, 7 * 86400.0
    CALM, LONG = 600.0, 6 * 3600.0  # seconds without a jump until the clock is trusted

    def __init__(
        self,
        last_seen: float | None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.wall, self.monotonic, self.last_seen = wall, monotonic, last_seen
        self.began = self.seen = wall(), monotonic()
        wait = self._wait(wall())
        self.believed_from, self.doubtful = monotonic() + wait, wait != self.CALM

    def _wait(self, now: float) -> float:
        """Return the seconds to watch a clock with this time, more if far from the last run."""
        away = now - self.last_seen if self.last_seen else 0.0
        return self.CALM if -self.LEAP <= away <= self.FAR else self.LONG

    def leap(self) -> float:
        """Return the jump of the clock since the last check in seconds, 0 for none."""
        wall, monotonic = self.seen
        leap = (self.wall() - wall) - (self.monotonic() - monotonic)
        return leap if abs(leap) > self.LEAP else 0.0

    def check(self) -> float:
        """Check the clock; return its jump since the last check in seconds, 0 for none."""
        leap = self.leap()
        self.seen = self.wall(), self.monotonic()
        if leap:
            wait = self.CALM if abs(leap) <= self.FAR else self._wait(self.seen[0])
            until = self.seen[1] + wait
            back = self.last_seen and self._wait(self.seen[0]) == self.CALM  # right again
            self.believed_from = until if back else max(self.believed_from, until)
            self.doubtful = True
        return leap

    @property
    def steady(self) -> bool:
        """Whether the clock is trusted."""
        return self.monotonic() >= self.believed_from and not self.leap()


def raise_file_limit(wanted: int = 8192) -> None:
    """Raise the limit of open files, one per connection, as far as the system allows."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, wanted)), hard))
