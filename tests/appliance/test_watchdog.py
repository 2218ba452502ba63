"""The watchdog of systemd: fed exactly when both doors answer."""

import asyncio
import shutil
import socket
import time
from types import SimpleNamespace

import pytest
from peers import PATIENCE_S
from test_appliance import association_of
from test_tls import WEB_TLS, clinic, secured, server  # noqa: F401

from minris.appliance.watchdog import feed_watchdog
from minris.store.models import QueryTrace


@pytest.fixture
def fed(tmp_path, monkeypatch):
    """A function: whether an appliance feeds the watchdog within some seconds."""
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)

        def is_fed(appliance, seconds=PATIENCE_S):
            box, until = appliance.appliance, time.monotonic() + seconds
            task = asyncio.run_coroutine_threadsafe(feed_watchdog(box, 0.5), box.loop)
            try:
                while (left := until - time.monotonic()) > 0:
                    systemd.settimeout(left)
                    if systemd.recv(4096) == b"WATCHDOG=1":
                        return True
            except TimeoutError:
                return False
            finally:
                task.cancel()

        yield is_fed


def test_it_is_fed_while_both_doors_answer(run_appliance, fed):
    assert fed(run_appliance())


def test_a_full_disk_does_not_starve_it(run_appliance, fed, monkeypatch):
    appliance = run_appliance()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0, total=1, used=1))
    assert appliance.appliance.health()["disk"]
    assert fed(appliance)


def test_a_store_that_cannot_be_read_does_not_starve_it(run_appliance, fed, monkeypatch):
    """A restart mends neither; the pages say what is wrong."""
    appliance = run_appliance()

    def fail(*_):
        raise OSError("disk I/O error")

    monkeypatch.setattr("minris.dimse.find.reading", fail)
    assert fed(appliance)


def close_dicom(box):
    for listener in box.associations.servers:
        listener.close()


def close_web(box):
    box.web_server.server.close()


def block_readers(box):
    """No query comes to its end any more."""
    for _ in range(2):
        box.readers.submit(time.sleep, 8)


@pytest.mark.parametrize("harm", [close_dicom, close_web, block_readers])
def test_a_door_that_does_not_answer_starves_it(run_appliance, fed, harm, caplog):
    appliance = run_appliance()
    appliance.appliance.loop.call_soon_threadsafe(harm, appliance.appliance)
    assert not fed(appliance, 2.0)
    assert "we do not answer ourselves" in caplog.text


def test_no_limit_and_no_rule_for_callers_starves_it(run_appliance, fed):
    appliance = run_appliance("[dicom]\nmaximum_associations = 1\nmaximum_pending = 1\n")
    with association_of(appliance.port):
        assert fed(appliance)


def test_it_leaves_no_trace_among_the_callers(run_appliance, fed):
    appliance = run_appliance(
        "[dicom]\nae_title = OWN\n[device Own]\nae_title = OWN\nhost = x.invalid\ncheck_address = yes\n"
    )
    box = appliance.appliance
    assert fed(appliance)
    assert box.associations.accepted == box.associations.turned_away == 0
    assert not box.associations.called and not box.associations.ended
    assert not box.dimse.counts and not box.dimse.queries.take()
    assert not appliance.read(QueryTrace.select().count)


def test_pages_by_https_are_asked_too(secured, fed):  # noqa: F811
    assert fed(secured(WEB_TLS))
