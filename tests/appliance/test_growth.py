"""Nothing grows: memory over tens of thousands of data sets and half a year. pytest -m long"""

import os
import random

import pytest
from pydicom.dataset import Dataset
from pynetdicom.dsutils import encode
from test_association import running_alone
from test_dimse import Wire, create_request, creation, ending, find_request, query, set_request

pytestmark = pytest.mark.long

CASES = int(os.environ.get("FUZZ_CASES", "30000"))
DAYS = int(os.environ.get("DAYS", "130"))
MEBIBYTE = 1 << 20

# The process lives in days that the test counts in a file, and erases every two seconds.
DAYS_OF_A_FILE = """
import datetime, functools, pathlib
from minris.appliance import appliance, jobs
from minris.access.context import Context, utc_now
day = pathlib.Path("day.txt")
def now():
    return utc_now() + datetime.timedelta(days=int(day.read_text() or 0))
appliance.Context = functools.partial(Context, now=now)
appliance.JOBS = tuple(job._replace(seconds=2) for job in jobs.JOBS) + (
    jobs.Job("purge", 2, jobs.job_purge),)
"""


@pytest.fixture
def alone(tmp_path):
    (tmp_path / "day.txt").write_text("0")
    with running_alone(tmp_path, "", DAYS_OF_A_FILE) as one:
        one.folder = tmp_path
        yield one


def mutated(data, chance):
    """A data set with some of its bytes changed, cut out, or said twice."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data))
        deed = chance.randrange(4)
        if deed == 0:
            data[at] = chance.randrange(256)
        elif deed == 1:
            del data[at : at + chance.randrange(1, 9)]
        elif deed == 2:
            data[at:at] = data[at : at + chance.randrange(1, 40)]
        else:
            data[at : at + 2] = chance.choice((b"\xff\xff", b"\0\0", b"SQ", b"UN", b"\x1b$"))
        if not data:
            return b"\0"
    return bytes(data)


def test_tens_of_thousands_of_mutated_data_sets_leave_the_memory_flat(alone):
    chance, asked = random.Random(20260705), query()
    begun, memory = creation(), 0
    with Wire(alone.port) as wire:
        for number in range(CASES):
            kind = number % 3
            if kind == 0:
                wire.find(find_request(mutated(asked, chance)))
            elif kind == 1:
                wire.ask(create_request(f"2.25.{number}", mutated(begun, chance)))
            else:
                wire.ask(set_request(f"2.25.{number - 1}", mutated(ending(), chance)))
            if number == CASES // 10:
                memory = alone.memory()
        assert wire.echo() == 0x0000
    grown = (alone.memory() - memory) / MEBIBYTE
    print(f"\n{CASES} data sets: {alone.memory() / MEBIBYTE:.1f} MiB, grown by {grown:.1f}")
    assert grown < 10
    assert "Traceback" not in alone.words()


def question(day, number):
    """One of 201 different questions of a day."""
    keys, step = Dataset(), Dataset()
    keys.SpecificCharacterSet = "ISO_IR 192"
    keys.PatientName, keys.PatientID = f"N{number}*", ""
    step.ScheduledProcedureStepStartDate = f"2026{day // 28 % 12 + 1:02}{day % 28 + 1:02}"
    step.Modality = ("CT", "")[number % 2]
    keys.ScheduledProcedureStepSequence = [step]
    return encode(keys, True, True)


def test_half_a_year_of_different_questions_leaves_the_memory_flat(alone):
    sizes = []
    for day in range(DAYS):
        (alone.folder / "day.txt").write_text(str(day))
        with Wire(alone.port) as wire:
            for number in range(201):
                assert wire.find(find_request(question(day, number)))[1].Status == 0x0000
            uid = f"2.25.1{day:03}"  # and an exam that is reported
            assert wire.ask(create_request(uid)).Status == 0x0000
            assert wire.ask(set_request(uid)).Status == 0x0000
        sizes.append(alone.memory() / MEBIBYTE)
    # the caches fill until the middle: each connection keeps at most 2 MiB of a growing store
    first, middle = sizes[DAYS // 10], sizes[DAYS // 2]
    store = sum(path.stat().st_size for path in alone.folder.glob("minris.db*")) / MEBIBYTE
    print(f"\n{DAYS} days: {sizes[0]:.1f}, {first:.1f}, {middle:.1f}, {sizes[-1]:.1f} MiB;"
          f" store {store:.1f} MiB")  # fmt: skip
    assert max(sizes[DAYS // 2 :]) - middle < 10
    assert max(sizes) - sizes[0] < 24
    assert "Traceback" not in alone.words()
