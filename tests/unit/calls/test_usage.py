"""Resources used by a call, on one rank and on several."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spoolpool.calls import usage
from spoolpool.calls.run import RankResult
from spoolpool.calls.usage import UsageMeter
from spoolpool.format.headers import Usage

MIB = 1 << 20


def used(meter: UsageMeter, call: object) -> Usage:
    def run() -> RankResult:
        call()  # type: ignore[operator]
        return RankResult(b"value", (), None)

    result = meter.measure(run)
    assert (result.payload, result.failure) == (b"value", None)
    assert result.usage is not None
    return result.usage


def fill(size: int) -> None:
    assert bytearray(size)


def compute(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.fixture
def meter() -> UsageMeter:
    meter = UsageMeter()
    if used(meter, int).of_process:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    return meter


def test_memory_is_that_of_the_call_and_not_of_earlier_ones(meter: UsageMeter) -> None:
    small = used(meter, lambda: fill(MIB))
    large = used(meter, lambda: fill(200 * MIB))
    assert large.memory > small.memory + 150 * MIB
    assert used(meter, lambda: fill(MIB)).memory < small.memory + 50 * MIB


def test_memory_of_a_call_excludes_that_of_the_process_that_started_the_worker(meter: UsageMeter) -> None:
    measure = (
        "from spoolpool.calls.run import RankResult\n"
        "from spoolpool.calls.usage import UsageMeter\n"
        "meter = UsageMeter()\n"
        "for size in (1 << 20, 64 << 20):\n"
        "    print(meter.measure(lambda: RankResult(b'%d' % len(bytearray(size)), (), None)).usage.memory)\n"
    )
    start = (
        "import subprocess, sys\n"
        "held = bytearray(400 << 20)\n"
        "print(subprocess.run([sys.executable, '-c', sys.argv[1]], check=True, capture_output=True, text=True).stdout)"
    )
    printed = subprocess.run([sys.executable, "-c", start, measure], check=True, capture_output=True, text=True).stdout
    small, large = map(int, printed.split())
    assert small + 50 * MIB < large < 300 * MIB


def test_memory_of_a_call_includes_that_of_its_subtasks(meter: UsageMeter) -> None:
    inner: list[Usage] = []

    def outer() -> None:
        fill(150 * MIB)
        inner.append(used(meter, lambda: fill(MIB)))

    whole = used(meter, outer)
    assert whole.memory > inner[0].memory + 100 * MIB
    whole = used(meter, lambda: inner.append(used(meter, lambda: fill(150 * MIB))))
    assert whole.memory >= inner[1].memory


def test_time_of_the_call_and_of_its_children_counts(meter: UsageMeter) -> None:
    busy = used(meter, lambda: compute(0.05))
    assert busy.cpu >= 0.05 and busy.wall >= 0.05
    code = "import time\nwhile time.process_time() < 0.1: pass"
    assert used(meter, lambda: subprocess.run([sys.executable, "-c", code], check=True)).cpu >= 0.1


def test_memory_of_a_noted_child_counts_for_its_call_alone(meter: UsageMeter) -> None:
    child = resource.struct_rusage((0.0, 0.0, 900 * 1024, *[0] * 13))
    assert used(meter, lambda: usage.note_child(child)).memory == 900 * MIB
    assert used(meter, int).memory < 900 * MIB
    assert used(meter, lambda: used(meter, lambda: usage.note_child(child))).memory == 900 * MIB


def test_file_under_the_number_of_the_closed_descriptor_is_not_written(meter: UsageMeter, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    fd = os.open(tmp_path / "mine", os.O_RDWR)
    os.dup2(fd, meter._fd)
    try:
        found = used(meter, int)
        assert found.of_process and found.memory > 0
        assert (tmp_path / "mine").read_text() == "mine"
    finally:
        os.close(meter._fd)
        os.close(fd)
    assert used(meter, int).of_process


def test_measurement_survives_an_exception(meter: UsageMeter) -> None:
    with pytest.raises(ZeroDivisionError):
        used(meter, lambda: 1 / 0)
    assert used(meter, int).memory > 0 and not meter._open


def test_ranks_are_joined_by_greatest_values_and_sums() -> None:
    ranks = [Usage(cpu=1.0, wall=2.0, memory=10), Usage(cpu=3.0, wall=1.5, memory=7, of_process=True)]
    joined = Usage(cpu=4.0, cpu_max=3.0, wall=2.0, memory=10, memory_sum=17, of_process=True)
    assert usage.join(ranks) == joined
    assert usage.join(ranks[:1]) == ranks[0]
