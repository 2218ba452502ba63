"""When a light of the system turns, the receivers of alerts are told."""

import contextlib
import json
import time
from typing import Any

from minris import log
from minris.access.context import Context
from minris.appliance.health import Parts, lights
from minris.delivery.alerts import AlertSender, LightWatch, Turn, alert_receivers
from minris.outbox import enter_alert
from minris.pages.frame import LIGHTS
from minris.pages.language import Translator
from minris.pages.static import load_catalogues
from minris.store.condition import StoreTrouble
from minris.store.rows import get_mark, set_mark
from minris.store.sqlite import reading
from minris.upper_layer.caller import DeliveryError

TOLD_MARK = "lights told"


def translator(ctx: Context) -> Translator:
    """Return the translator of the clinic's language: whoever gets an alert has chosen none."""
    known, language = load_catalogues(), ctx.config.clinic.language
    return Translator(language, known.get(language, {}))


def alert_message(ctx: Context, t: Translator, turns: list[Turn]) -> dict[str, Any]:
    """Return an alert as JSON has it: for a program by codes, for people in sentences."""
    lines = [f"{LIGHTS[one.light][0]} {one.what}: {one.words}" for one in turns]
    worst = max((one.light for one in turns), key=list(LIGHTS).index)
    subject = t("{clinic}: minris, {words}", clinic=ctx.config.clinic.name,
                words=", ".join(f"{one.what}: {t(LIGHTS[one.light][1])}" for one in turns))  # fmt: skip
    return {
        "clinic": ctx.config.clinic.name, "at": ctx.local_now().isoformat(timespec="seconds"),
        "light": worst, "subject": subject[:200], "lines": lines,
        "lights": [one._asdict() for one in turns],
    }  # fmt: skip


def job_alerts(appliance: Parts) -> None:
    """Tell of the lights that have turned and stayed so for [alert] steady_minutes."""
    ctx, receivers = appliance.context(), alert_receivers(appliance.config)
    if not receivers:
        return
    watch = appliance.light_watch
    if watch is None:
        with contextlib.suppress(StoreTrouble), reading():
            watch = LightWatch(json.loads(get_mark(TOLD_MARK) or "{}"))
        watch = appliance.light_watch = watch or LightWatch({})
    t = translator(ctx)
    found = [Turn(t(what), light, t(words)) for what, light, words in lights(appliance)]
    turns = watch.look(found, time.monotonic(), 60 * ctx.config.alert.steady_minutes)
    if turns:
        tell(appliance, ctx, alert_message(ctx, t, turns), json.dumps(watch.note(turns)))


def tell(appliance: Parts, ctx: Context, message: dict[str, Any], told: str = "") -> None:
    """Let the receivers of alerts be told; at once and without a trace if nothing can be written."""

    def enter(ctx: Context) -> None:
        enter_alert(ctx, alert_receivers(ctx.config), json.dumps(message).encode())
        if told:
            set_mark(TOLD_MARK, told)

    try:
        appliance.writer.call(enter, ctx)
        appliance.wake_delivery()
    except StoreTrouble:
        for receiver in alert_receivers(ctx.config):
            try:
                AlertSender(ctx.config).send(receiver, message)
            except DeliveryError as error:
                log.warning("alert to %s not delivered: %s", receiver, error)


def try_alert(appliance: Parts) -> None:
    """Send a test alert to all receivers."""
    ctx = appliance.context()
    t = translator(ctx)
    words = t("This is a test. Nothing is wrong.")
    tell(appliance, ctx, alert_message(ctx, t, [Turn(t("Test alert"), "good", words)]))
