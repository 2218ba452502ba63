"""Section 16 by the tens of thousands and for minutes: fuzz, floods, soak. pytest -m long"""

import concurrent.futures
import contextlib
import os
import random
import time

import conftest
import pytest
import test_association as wire
from test_association import ELSEWHERE, HOST, Peer, associate_rq, associated, pdu

pytestmark = pytest.mark.long

CASES = int(os.environ.get("FUZZ_CASES", "30000"))
SOAK_S = float(os.environ.get("SOAK_S", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
MEBIBYTE = 1 << 20


def test_tens_of_thousands_of_mutated_conversations_leave_the_server_as_it_was(tmp_path):
    with wire.serving(tmp_path, wire.TOLERANT) as inside:
        wire.fuzz_in_parallel(inside.port, CASES, SEED)
        inside.settle()
        wire.echo_beside(inside.port)


TOLERANT = wire.TOLERANT.removeprefix("\n[dicom]\n")


def test_tens_of_thousands_of_mutated_conversations_leave_the_appliance_as_it_was(tmp_path):
    with wire.running_alone(tmp_path, TOLERANT) as alone:
        wire.fuzz_in_parallel(alone.port, CASES // 10, SEED)
        memory, files, threads = alone.memory(), alone.files(), alone.threads()
        wire.fuzz_in_parallel(alone.port, CASES // 3, SEED + 100)
        wire.echo_beside(alone.port)
        assert wire.work(alone.port, 1) == [0, 0]
        assert alone.memory() - memory < 8 * MEBIBYTE
        assert alone.files() <= files + 8
        assert alone.threads() < threads + 10  # pools grow as they are needed
        assert "Traceback" not in alone.words()


@pytest.fixture
def many_files():
    """Room for some thousand sockets of our own."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


FLOODS = {
    "silence": b"",
    "a byte": b"\1",
    "requests": associate_rq(),
    "requests of an unknown device": associate_rq(calling="MRI9"),
}
AS_USUAL = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_from_one_address_takes_no_file_descriptor_from_the_others(
    tmp_path, many_files, name
):
    """Where a process may open 1024 files, as is usual."""
    with (
        wire.running_alone(tmp_path, before=AS_USUAL) as alone,
        contextlib.ExitStack() as stack,
    ):
        alone.come_to_rest()
        for _ in range(2500):
            peer = stack.enter_context(Peer(alone.port, source=ELSEWHERE))
            with contextlib.suppress(ConnectionError):
                peer.send(FLOODS[name])
        wire.echo_beside(alone.port)
        assert "Traceback" not in alone.words()


def test_a_thousand_slow_peers_hold_up_no_good_one(tmp_path, many_files):
    """Each sends its request byte by byte, as far as it gets."""
    settings = "maximum_pending = 2000\nmaximum_pending_per_address = 1500\npdu_timeout = 2"
    rng = random.Random(SEED)
    with (
        wire.running_alone(tmp_path, settings) as alone,
        contextlib.ExitStack() as stack,
    ):
        slow = [stack.enter_context(Peer(alone.port, source=ELSEWHERE)) for _ in range(1000)]
        for at in range(10):
            for peer in rng.sample(slow, 300):
                with contextlib.suppress(ConnectionError):
                    peer.send(associate_rq()[at : at + 1])
            wire.echo_beside(alone.port)


def test_a_day_of_good_and_bad_peers_leaves_the_appliance_as_it_was(tmp_path):
    """T-GEN-07, for as long as SOAK_S says."""
    with wire.running_alone(tmp_path, "associate_timeout = 1\npdu_timeout = 1") as alone:
        soak(alone, 5)
        memory, files, threads = alone.memory(), alone.files(), alone.threads()
        soak(alone, SOAK_S)
        wire.echo_beside(alone.port)
        assert alone.memory() - memory < 16 * MEBIBYTE
        assert alone.files() <= files + 8
        assert alone.threads() < threads + 10  # pools grow as they are needed
        assert "Traceback" not in alone.words()


def soak(alone, seconds):
    """Good peers that ask and report, bad ones from elsewhere, an echo all the time."""
    end = time.monotonic() + seconds
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        runs = [pool.submit(repeat, end, lambda n: wire.ask(alone.port)) for _ in range(3)]
        runs += [pool.submit(repeat, end, lambda n: report(alone.port)) for _ in range(3)]
        runs += [pool.submit(repeat, end, lambda n: misbehave(alone.port, n)) for _ in range(4)]
        runs += [pool.submit(repeat, end, lambda n: wire.echo_beside(alone.port, HOST))]
        for run in runs:
            run.result()


def repeat(end, do):
    number = 0
    while time.monotonic() < end:
        do(number)
        number += 1


def report(port):
    assert wire.work(port, random.getrandbits(60)) == [0, 0]


def misbehave(port, number):
    """A peer that says half of what it has to say, and goes away in some way."""
    rng = random.Random(number)
    peer = Peer(port, source=ELSEWHERE, receive_buffer=rng.choice([None, 4096]))
    with peer, contextlib.suppress(ConnectionError, TimeoutError):
        sent = wire.mutated(rng)
        peer.send(sent[: rng.randint(1, len(sent))])
        peer.receive(rng.choice([0.001, 0.05]))
        if rng.random() < 0.3:
            wire.close_by_reset(peer)
        elif rng.random() < 0.5:
            peer.send(pdu(rng.randrange(9)))
            peer.rest(0.1)


def test_ten_thousand_queries_that_are_cut_short_leave_nothing(run_appliance):
    running = run_appliance()
    running.schedule(*(conftest.item(f"Wang^Patient{n}") for n in range(500)))
    box = wire.inside_of(running)
    asked = wire.find(wire.encode(wire.query(), explicit=True))

    def cut(count, seed):
        rng = random.Random(seed)
        for _ in range(count):
            with associated(box.port, receive_buffer=rng.choice([None, 4096])) as peer:
                peer.send(asked)
                for _ in range(rng.randrange(3)):
                    peer.receive()
                if rng.random() < 0.5:
                    peer.send(rng.choice([pdu(wire.RELEASE_RQ), pdu(wire.ABORT), wire.cancel()]))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for run in [pool.submit(cut, 1250, seed) for seed in range(8)]:
            run.result()
    box.settle(10)
    wire.echo_beside(box.port)
