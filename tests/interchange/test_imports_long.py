"""A large import beside machines that work: nobody waits for it, and a kill doubles and loses nothing."""

import os
import threading
import time

import pytest
from test_appliance import serve  # noqa: F401
from test_mpps import creation, modality

ROWS = int(os.environ.get("ROWS", 50_000))


def csv_of(rows, first=0):
    """A CSV file of so many exams of different people."""
    lines = ["patient_id,name,birth_date,exam,device,date,time,accession"]
    lines += [
        f"P{n:06},Doe {n},1980-01-{n % 28 + 1:02},CT chest,CT1,2026-07-{n % 28 + 1:02},"
        f"{n % 24:02}:{n % 60:02},A{n:06}"
        for n in range(first, first + rows)
    ]
    return "\n".join(lines) + "\n"


class Machine:
    """Creates a performed step all the time; the seconds each answer took."""

    def __init__(self, served):
        self.served, self.seconds, self.ended = served, [], threading.Event()
        self.thread = threading.Thread(target=self._work)
        self.thread.start()

    def _work(self):
        with modality(self.served) as call:
            number = 0
            while not self.ended.is_set():
                number += 1
                began = time.monotonic()
                assert call.create(creation(), f"2.25.77{number:08}").status == 0x0000
                self.seconds.append(time.monotonic() - began)
                self.ended.wait(0.02)

    def end(self):
        self.ended.set()
        self.thread.join()
        return max(self.seconds)


@pytest.mark.long
def test_no_machine_waits_a_second_beside_a_large_import(serve, tmp_path):  # noqa: F811
    served = serve()
    (tmp_path / "all.csv").write_text(csv_of(ROWS), "utf-8")
    machine = Machine(served)
    began = time.monotonic()
    done = served.run("import", "all.csv", timeout_s=1800)
    seconds = time.monotonic() - began
    slowest = machine.end()
    assert done.returncode == 0, done.stderr
    assert f"Imported: {ROWS}" in done.stdout
    print(
        f"{ROWS} rows in {seconds:.0f} s; of {len(machine.seconds)} answers the slowest took {slowest:.2f} s"
    )
    assert slowest < 1
