"""Made identifiers are looked up in the archive: what it has is not given; it holds nobody up."""

import asyncio
import io
import socket
import time

import httpx
import peers
import pytest
from archive import AE_TITLE, archive_in, series
from conftest import item
from pydicom import dcmread

from minris.access.context import Context
from minris.access.devices import AccessRules
from minris.config.ini import load_config
from minris.config.values import format_identifier
from minris.dataset.dicom_json import from_json
from minris.dataset.elements import ElementIndex
from minris.delivery.numbers import NumberWatch, wildcards
from minris.orders.scheduling import schedule
from minris.upper_layer.caller import DeliveryError

DEVICE = """
[device archive]
ae_title = {title}
role = archive
host = 127.0.0.1
port = {port}
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    with archive_in(tmp_path_factory.mktemp("orthanc")) as one:
        yield one


def keep(archive, patient_id, accession=""):
    """Store an image of somebody of whom our store knows nothing."""
    [image] = series(1)
    ds = dcmread(io.BytesIO(image.file()))
    ds.PatientID, ds.AccessionNumber = patient_id, accession
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    archive.http.post("/instances", content=buffer.getvalue()).raise_for_status()


def made(client, name="Wang^XiaoDong"):
    """Identifiers of a patient who is registered by the API, and how long it took."""
    begun = time.monotonic()
    answer = client.post(
        "/api/worklist", json=[item(name)], headers={"Content-Type": "application/dicom+json"}
    )
    answer.raise_for_status()
    [data] = answer.json()
    found = [data[tag]["Value"][0] for tag in ("00100020", "00080050")]
    return *found, time.monotonic() - begun


def at_work(run_appliance, port):
    appliance = run_appliance(DEVICE.format(title=AE_TITLE, port=port))
    headers = {"Authorization": f"Bearer {appliance.token()}"}
    return appliance, httpx.Client(base_url=appliance.url, headers=headers, trust_env=False)


def test_a_number_that_is_in_the_archive_is_not_given(run_appliance, archive, tmp_path):
    archive.empty()
    config = load_config()
    today = Context(config).local_now()
    keep(archive, "P000001")
    keep(archive, "P000003", format_identifier(config.clinic.accession_number_format, today, 1))
    _, client = at_work(run_appliance, archive.port)
    with client:
        patient_id, accession, _ = made(client)
    assert patient_id == "P000004"
    assert accession.endswith("0002")


def test_an_archive_that_is_away_holds_nobody_up(run_appliance):
    """A port where nobody answers: it is asked once, then left in peace."""
    with socket.create_server((peers.HOST, 0)) as silent:
        _, client = at_work(run_appliance, silent.getsockname()[1])
        with client:
            times = [made(client, f"Wang^{number}")[2] for number in range(3)]
    assert max(times) < NumberWatch.WAIT_S + 3
    assert min(times[1:]) < NumberWatch.WAIT_S / 2


# How it looks ahead


class Asked:
    """An archive by its numbers; counts the queries."""

    def __init__(self, numbers, away=False):
        self.numbers, self.away, self.queries = {f"P{n:06}" for n in numbers}, away, 0

    async def __call__(self, archive, keyword, patterns):
        self.queries += 1
        if self.away:
            raise DeliveryError("no answer")
        if keyword != "PatientID":
            return set()
        same = lambda one, p: len(one) == len(p) and all(b in ("?", a) for a, b in zip(one, p))  # noqa: E731, B905
        return {one for one in self.numbers for p in patterns if same(one, p)}


@pytest.fixture
def ours(ctx, tmp_path):
    """A context that knows an archive."""
    path = tmp_path / "with.ini"
    path.write_text((tmp_path / "config.ini").read_text() + DEVICE.format(title="PACS", port=104))
    config = load_config(path)
    return Context(config, ctx.actor, ctx.now, ctx.new_uid, AccessRules(config).devices)


def watching(ctx, asked):
    async def here(function, *arguments):
        return function(*arguments)

    return NumberWatch(asked, lambda: ctx, here, here)


def next_id(ctx):
    [data] = schedule(ctx, from_json(item("Li^Na")), "separate")
    return ElementIndex(data).get("PatientID")


@pytest.mark.parametrize(
    ("there", "first"),
    [
        ((), "P000001"),
        ((1,), "P000002"),
        ((1, 2, 5), "P000006"),
        ((150,), "P000001"),
        (range(1, 100), "P000100"),
        (range(1, 151), "P000151"),
    ],
)
def test_the_first_number_is_after_those_of_the_archive(ours, there, first):
    asyncio.run(watching(ours, Asked(there)).clear(1))
    assert next_id(ours) == first


def test_an_archive_of_years_is_passed_in_few_queries(ours):
    asked = Asked(range(1, 50_001))
    asyncio.run(watching(ours, asked).clear(1))
    assert int(next_id(ours)[1:]) > 50_000
    assert asked.queries < 20


def test_many_numbers_at_once_are_all_free(ours):
    asyncio.run(watching(ours, Asked((70, 230))).clear(300))
    given = {next_id(ours) for _ in range(300)}
    assert not given & {"P000070", "P000230"}


def test_what_was_looked_up_is_not_asked_again(ours):
    asked = Asked(())
    watch = watching(ours, asked)

    async def often():
        for _ in range(50):
            await watch.clear(1)
            next_id(ours)

    asyncio.run(often())
    assert asked.queries == 2


def test_an_archive_that_fails_is_left_in_peace(ours):
    asked = Asked((), away=True)
    watch = watching(ours, asked)

    async def twice():
        await watch.clear(1)
        await watch.clear(1)

    asyncio.run(twice())
    assert asked.queries == 1
    assert next_id(ours) == "P000001"


def test_patterns_match_every_number_of_a_block():
    assert wildcards(f"P{n:06}" for n in range(100)) == ["P0000??"]
    assert wildcards(f"X{n}-7" for n in range(100)) == ["X?-7", "X??-7"]
    assert wildcards(["A7"]) == ["A7"]
