"""An archive that does not answer is said wherever somebody looks, and so is that it does again."""

import asyncio
import contextlib
import time

import httpx
import peers
import pytest
from pynetdicom import AE, evt
from test_arrivals import settings
from test_pages import employ, visiting, words_of

from minris.access.context import archive_of
from minris.config.ini import Device
from minris.delivery.archive import ArchiveLine, ArchiveWatch
from minris.standard.uids import STUDY_ROOT_FIND
from minris.upper_layer.caller import DeliveryError


@pytest.fixture
def hurried(monkeypatch):
    """An archive is asked at once and again."""
    monkeypatch.setattr(ArchiveWatch, "PAUSE", 0.1)
    monkeypatch.setattr(ArchiveWatch, "CALM", 0.05)
    monkeypatch.setattr(ArchiveWatch, "AGAIN", 0.1)


def eventually(holds):
    """Wait for what another thread brings about."""
    until = time.monotonic() + peers.PATIENCE_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def light(running):
    found = {str(what): (light, str(said)) for what, light, said in running.appliance.lights()}
    return found["Archive"]


def healthz(running):
    return httpx.get(f"{running.url}/healthz", trust_env=False)


def archive_at(port):
    """An archive that has nothing."""
    ae = AE("ARCHIVE")
    ae.add_supported_context(STUDY_ROOT_FIND)
    handlers = [(evt.EVT_C_FIND, lambda event: iter(()))]
    return ae.start_server((peers.HOST, port), block=False, evt_handlers=handlers)


def test_an_archive_that_is_not_reached_is_a_red_light_and_recovers_by_itself(
    run_appliance, hurried
):
    """Nothing is asked of it, and yet it is known after the first round."""
    port = peers.free_port()
    running = run_appliance(settings(port))
    eventually(lambda: light(running)[0] == "bad")
    assert "has not answered since" in light(running)[1]
    with visiting(running) as client:
        employ(running, client, "admin")
        box = words_of(client.get("/box"))
        assert "Failed Archive ARCHIVE has not answered since" in box
        safe = words_of(client.get("/commitments"))
        assert "No answer since" in safe
        assert "No further images can be confirmed" in safe
        answer = healthz(running)
        assert answer.status_code == 200  # a restart of ours would not mend it
        assert "ARCHIVE since " in answer.json()["archive"]
        metrics = httpx.get(f"{running.url}/metrics", trust_env=False).text
        assert 'minris_neighbour_answers{name="archive"} 0' in metrics
        server = archive_at(port)
        try:
            eventually(lambda: light(running)[0] == "good")
            assert "ARCHIVE answered at" in words_of(client.get("/box"))
            assert healthz(running).json()["archive"] == "ok"
            assert "At " in words_of(client.get("/commitments"))
        finally:
            server.shutdown()


def test_since_when_it_fails_is_the_first_of_the_failures(ctx, monkeypatch, caplog):
    line, now = ArchiveLine(), [1000.0]
    monkeypatch.setattr("minris.delivery.archive.time.time", lambda: now[0])
    archive = Device("Archive", ("ARCHIVE",), host="10.0.0.9", port=104)

    async def asked(problem):
        if problem:
            raise DeliveryError(problem)

    def ask(problem=""):
        with contextlib.suppress(DeliveryError):
            asyncio.run(line.watched(archive, asked(problem)))
        now[0] += 60
        return line.of(archive)

    with caplog.at_level("INFO"):
        assert ask() == ("ARCHIVE 10.0.0.9:104", "", 1000.0, 1000.0)
        for _ in range(3):
            last = ask("not reached")
        assert (last.problem, last.since, last.at) == ("not reached", 1060.0, 1180.0)
        assert ask().problem == ""
    said = [one.message for one in caplog.records if "archive" in one.message]
    assert said == ["archive ARCHIVE: not reached", "archive ARCHIVE answers again"]


def test_what_is_known_of_an_archive_is_not_said_of_another(run_appliance, hurried):
    running = run_appliance(settings(peers.free_port()))
    eventually(lambda: light(running)[0] == "bad")
    line = running.appliance.commitments.line
    archive = archive_of(running.context())
    assert line.of(archive).problem
    assert not line.of(None).problem
    assert not ArchiveLine().of(archive).problem
