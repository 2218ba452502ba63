"""Alerts: told by webhook and e-mail when a light of the system turns. No patient data."""

import asyncio
import email.message
import json
import smtplib
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from minris.config.ini import Config
from minris.outbox import Event
from minris.upper_layer.caller import DeliveryError

TIMEOUT_S = 20.0
WEBHOOK, MAIL = "webhook", "e-mail"


def alert_receivers(config: Config) -> list[str]:
    """Return the kinds of receivers that are set: webhook, e-mail."""
    alert = config.alert
    found = [WEBHOOK] if alert.url else []
    return found + [MAIL] * bool(alert.smtp_host and alert.sender and alert.receivers)


class Turn(NamedTuple):
    """A light that has turned: component, `good`, `warning` or `bad`, and its details."""

    what: str
    light: str
    words: str


class LightWatch:
    """Finds the lights that have turned, and stayed so for a while.

    told  the lights as they were last told, by component
    """

    def __init__(self, told: Mapping[str, str]) -> None:
        self.told = dict(told)
        self.since: dict[str, tuple[str, float]] = {}

    def look(self, lights: Iterable[Turn], now: float, steady_s: float) -> list[Turn]:
        """Return the turns to tell; a light never told of before is good.

        now  unit: seconds, by a monotonic clock
        """
        found = []
        for one in _worst_of_each(lights):
            known, since = self.since.get(one.what, ("", now))
            if known != one.light:
                since = now
            self.since[one.what] = one.light, since
            if one.light != self.told.get(one.what, "good") and now - since >= steady_s:
                found.append(one)
        return found

    def note(self, turns: Iterable[Turn]) -> dict[str, str]:
        """Remember what was told; return all that is not good, to be kept."""
        self.told |= {one.what: one.light for one in turns}
        self.told = {what: light for what, light in self.told.items() if light != "good"}
        return self.told


def _worst_of_each(lights: Iterable[Turn]) -> list[Turn]:
    """One light for each component: the worst, with the words of all that are so."""
    order, found = ("good", "warning", "bad"), dict[str, Turn]()
    for one in lights:
        known = found.setdefault(one.what, one)
        if order.index(one.light) > order.index(known.light):
            found[one.what] = one
        elif one.light == known.light and one.words != known.words:
            found[one.what] = known._replace(words=f"{known.words}; {one.words}")
    return list(found.values())


class AlertSender:
    """Sends alerts; an instance is the `send` of their lane."""

    def __init__(self, config: Config) -> None:
        self.config = config

    async def __call__(
        self, receiver: str, events: Iterable[Event], heard: Callable[..., None]
    ) -> None:
        """Send each alert. Raises DeliveryError."""
        for event in events:
            await asyncio.to_thread(self.send, receiver, json.loads(event.data))
            heard(event, "")

    def send(self, receiver: str, message: dict[str, Any]) -> None:
        """Send an alert now, in this thread. Raises DeliveryError."""
        if receiver not in alert_receivers(self.config):
            return  # it was taken out of the settings: nobody waits for it
        try:
            (self._post if receiver == WEBHOOK else self._mail)(message)
        except (OSError, smtplib.SMTPException, ValueError) as error:
            raise DeliveryError(str(error) or type(error).__name__) from None

    def _post(self, message: dict[str, Any]) -> None:
        body = json.dumps(message, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "minris"}
        request = urllib.request.Request(self.config.alert.url, body, headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            pass

    def _mail(self, message: dict[str, Any]) -> None:
        alert, mail = self.config.alert, email.message.EmailMessage()
        mail["Subject"], mail["From"] = " ".join(message["subject"].split()), alert.sender
        mail["To"] = alert.receivers
        mail.set_content("\n".join([*message["lines"], "", message["at"]]))
        tls = ssl.create_default_context()
        secured = alert.smtp_security == "tls"
        kind: Any = smtplib.SMTP_SSL if secured else smtplib.SMTP
        more = {"context": tls} if secured else {}
        with kind(alert.smtp_host, alert.smtp_port, timeout=TIMEOUT_S, **more) as server:
            if alert.smtp_security == "starttls":
                server.starttls(context=tls)
            if alert.smtp_user:
                server.login(alert.smtp_user, alert.smtp_password)
            server.send_message(mail)
