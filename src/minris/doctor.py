"""Device checks: what is known of a device, and what to do next."""

import asyncio
import contextlib
import datetime
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydicom.uid import UID

from minris.access.context import Context
from minris.access.devices import same_host
from minris.config.ini import Config, Device
from minris.dataset.elements import ElementIndex
from minris.dataset.times import datetime_bounds
from minris.orders.trace import last_query
from minris.standard.status import Message, Status
from minris.standard.uids import MODALITY_WORKLIST, VERIFICATION
from minris.store.models import PerformedProcedureStep
from minris.store.rows import first_row
from minris.upper_layer.caller import AssociationRejected, Caller, DeliveryError, NotSecured
from minris.upper_layer.pdus import NO_DATA_SET, encode_command
from minris.upper_layer.server import Call
from minris.upper_layer.tls import way_to


def echo_words(our_ae_title: str, device: Device, outcome: str) -> Message:
    """The outcome of a C-ECHO, as echo_outcome gives it, as a sentence."""
    kind, _, why = outcome.partition(": ")
    where = {"name": device.name, "host": device.host, "port": device.port, "ae": our_ae_title}
    return Message(ECHO_WORDS[kind].key, **where, why=why)


ECHO_WORDS = {
    "no address": Message("{name} has no address here"),
    "unreached": Message("Cannot reach {name} at {host}:{port}"),
    "insecure": Message("{name} and this system do not agree on TLS: {why}"),
    "rejected": Message("{name} rejected the connection. Is {ae} configured there?"),
    "no answer": Message("{name} was reached, but did not answer C-ECHO"),
    "answers": Message("{name} answers"),
}


def echo_outcome(config: Config, device: Device) -> str:
    """Send C-ECHO to a device; return a key of ECHO_WORDS, of `insecure` with the reason."""
    return asyncio.run(_ask_echo(config, device)) if device.host else "no address"


async def _ask_echo(config: Config, device: Device) -> str:
    caller, status = Caller(5.0), None
    command = encode_command(AffectedSOPClassUID=VERIFICATION, CommandField=0x0030, MessageID=1,
                             CommandDataSetType=NO_DATA_SET)  # fmt: skip
    names = {"ours": config.dicom.ae_title, "theirs": device.ae_title}
    proposed = ((VERIFICATION, None),)
    try:
        await caller.open(**names, proposed=proposed, **way_to(config, device))
    except AssociationRejected:
        return "rejected"
    except NotSecured as error:
        return f"insecure: {error}"
    except DeliveryError:
        return "unreached"
    if context := caller.accepted.contexts.get(VERIFICATION):
        with contextlib.suppress(DeliveryError):
            status = (await caller.ask(context, command, None))["Status"]
    await caller.release()
    return "answers" if status == Status.SUCCESS else "no answer"


class Finding(NamedTuple):
    """One finding: `good`, `warning` or `bad`, a sentence, and a remedy.

    path  page for the remedy
    mend  words of its link or button
    do    value of the button's form, for a remedy on the page itself
    """

    light: str
    words: Message
    path: str = ""
    mend: Message | None = None
    do: str = ""


class Called(NamedTuple):
    """The calls that the association server saw: accepted by AE title; rejected with the reason."""

    accepted: Mapping[str, Call]
    rejected: Mapping[tuple[str, str], tuple[float, str]]


def examine(ctx: Context, device: Device, called: Called, outcome: str) -> list[Finding]:
    """The findings about a device, worst first.

    outcome  of the C-ECHO, as echo_outcome gives it
    """
    found = [
        *_reached(ctx, device, outcome),
        *_turned_away(device, called),
        *_has_called(ctx, device, called),
        *_has_asked(ctx, device),
        *_has_reported(ctx, device),
    ]
    order = ("bad", "warning", "good")
    return sorted(found, key=lambda one: order.index(one.light))


def _edit(device: Device) -> str:
    return f"/devices/edit?name={urllib.parse.quote(device.name)}"


def _reached(ctx: Context, device: Device, outcome: str) -> Iterator[Finding]:
    """Whether we can reach it, as results, events and forwarding require."""
    words = echo_words(ctx.config.dicom.ae_title, device, outcome)
    if outcome == "answers":
        yield Finding("good", words)
        return
    mend = Message("Check its address, or switch it on")
    if outcome == "no address":
        mend = Message("Enter its address")
    if outcome.startswith("insecure"):
        mend = Message("See its certificate, and tls_ca and tls_certificate of [dicom]")
    yield Finding("warning" if device.role == "modality" else "bad", words, _edit(device), mend)


def _turned_away(device: Device, called: Called) -> Iterator[Finding]:
    """Its rejected calls, also those from its address under another AE title."""
    for (calling, address), (at, why) in called.rejected.items():
        last = max((called.accepted[title].at for title in device.ae_titles
                    if title in called.accepted), default=0.0)  # fmt: skip
        if calling in device.ae_titles and at > last:
            words = Message("It was rejected: {why}", why=why)
            yield Finding("bad", words, _edit(device), Message("Change it here or on the machine"))
        elif device.host and same_host(device.host, address) and calling not in device.ae_titles:
            words = Message("It uses the AE title {calling} but is registered as {ae}",
                            calling=calling, ae=device.ae_title)  # fmt: skip
            if calling not in called.accepted:
                mend = Message("Also accept {calling}", calling=calling)
                yield Finding("bad", words, "", mend, calling)


def _has_called(ctx: Context, device: Device, called: Called) -> Iterator[Finding]:
    """Its last association: address and SOP classes."""
    calls = [called.accepted[title] for title in device.ae_titles if title in called.accepted]
    if not calls:
        yield Finding("warning", Message("No contact since minris was started"), "",
                      Message("Query the worklist on the machine"))  # fmt: skip
        return
    last = max(calls, key=lambda call: call.at)
    at = datetime.datetime.fromtimestamp(last.at, ctx.config.zone)
    classes = ", ".join(UID(uid).name for uid in last.classes)
    words = Message("Last call {at} from {address}, for {classes}",
                    at=at, address=last.address, classes=classes)  # fmt: skip
    yield Finding("good", words)
    if device.host and not same_host(device.host, last.address):
        words = Message("It called from {address} but is registered for {host}",
                        address=last.address, host=device.host)  # fmt: skip
        yield Finding("warning", words, _edit(device), Message("Correct its address"))
    if last.not_served:
        words = Message("It requested services that are not provided here: {names}",
                        names=", ".join(last.not_served))  # fmt: skip
        mend = Message("Switch that off on the machine, or point it to the system that provides it")
        yield Finding("warning", words, "", mend)
    if device.role == "modality" and MODALITY_WORKLIST not in last.classes:
        words = Message("On its last call it did not request the worklist service")
        yield Finding("warning", words, "", Message("Set up the worklist on the machine"))


def _has_asked(ctx: Context, device: Device) -> Iterator[Finding]:
    """Its last worklist query and the outcome."""
    if device.role != "modality":
        return
    query = last_query(device.ae_titles)
    if not query:
        words = Message("No recent worklist query")
        yield Finding("warning", words, "", Message("Query the worklist on the machine"))
        return
    why, mend = "/why", Message("Not on the machine?")
    at = _local(ctx, query.last_at)
    if query.status != Status.SUCCESS:
        yield Finding("bad", Message("Its last query failed at {at}", at=at), why, mend)
    elif query.answers:
        words = Message("Last worklist query {at}: {count} exams returned",
                        at=at, count=query.answers)  # fmt: skip
        yield Finding("good", words)
    else:
        words = Message("Last worklist query {at}: no patients returned", at=at)
        yield Finding("warning", words, why, mend)


def _local(ctx: Context, stamp: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(stamp).astimezone(ctx.config.zone)


MOST_SKEW_S = 300


def _has_reported(ctx: Context, device: Device) -> Iterator[Finding]:
    """Whether it reports performed steps, and whether its clock is right."""
    if device.role != "modality":
        return
    performed = last_report(device)
    if not performed:
        light = "bad" if device.mpps == "yes" else "good"
        words = Message("Sends no MPPS; its exams are closed by incoming images or by hand")
        yield Finding(light, words)
        return
    at = _local(ctx, performed.created_at)
    yield Finding("good", Message("Sends MPPS, the last one at {at}", at=at))
    if words := clock_words_of(ctx, performed):
        yield Finding("bad", words, "", Message("Correct its clock, or this one"))


def last_report(device: Device) -> Any:
    """The newest performed step that a device has reported, None if there is none."""
    titles = ", ".join("?" * len(device.ae_titles))
    where = f"performed_station_ae_title IN ({titles}) ORDER BY id DESC LIMIT 1"
    return first_row(PerformedProcedureStep, where, *device.ae_titles)


def clock_words_of(ctx: Context, performed: Any) -> Message | None:
    """What is wrong with the clock of the device that reported a step, None if nothing is."""
    index = ElementIndex(performed.data)
    date, time = (index.get(f"PerformedProcedureStepStart{part}") for part in ("Date", "Time"))
    try:
        said = datetime_bounds(f"{date}{time}".partition(".")[0], ctx.config.zone)[0]
    except (ValueError, OverflowError):
        return None
    skew = (said - datetime.datetime.fromisoformat(performed.created_at)).total_seconds()
    if abs(skew) <= MOST_SKEW_S:
        return None
    minutes = round(abs(skew) / 60)
    hours = round(minutes / 60)
    is_zone = abs(minutes - 60 * hours) <= MOST_SKEW_S // 60  # of machines set to another one
    words = CLOCK_WORDS[is_zone, skew > 0]
    return Message(words.key, count=hours if is_zone else minutes)


CLOCK_WORDS = {  # by: whole hours, fast
    (True, True): Message("Its clock is {count} h fast: check its time zone"),
    (True, False): Message("Its clock is {count} h slow: check its time zone"),
    (False, True): Message("Its clock is {count} min fast"),
    (False, False): Message("Its clock is {count} min slow"),
}
