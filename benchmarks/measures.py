"""Measures of any object with a ``submit``: the same code for all contenders."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from benchmarks import processes, tasks
from benchmarks.contender import Job, Measure, Samples

APART = 0.05
"""Seconds between calls to a pool that has become idle."""

CHUNK = 10
"""Chunk size while operations are counted, for contenders with chunks."""

LARGE_CHUNK = 1000
"""Chunk size while the rate is measured."""

SETTLE = 0.5
"""Seconds after a result in which the work that follows it is done, also under strace."""

_LEAST = 5

_SENT = 256 << 20  # bytes of all arrays of one turn, unless a single array is larger


class Pending(Protocol):
    """Interface of a future used here."""

    def result(self) -> Any:
        """Wait for the value and return it."""


class Submits(Protocol):
    """Interface of an executor used here."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        """Call the function in a worker."""


Opens = Callable[[Job], AbstractContextManager[Submits]]
"""Function that creates the executor of a contender for a job."""


def of_executor(opens: Opens, *, chunks: bool = False) -> dict[str, Measure]:
    """Return all measures of an executor, which each opens anew; ``chunks``: its ``map`` supports a chunksize."""

    def measure(of: Callable[[Submits, Job], Samples]) -> Measure:
        def opened(job: Job) -> Samples:
            with opens(job) as executor:
                return of(executor, job)

        return opened

    return {
        "latency": measure(latency),
        "throughput": measure(partial(throughput, chunks=chunks)),
        "durability": measure(durability),
        "argument": measure(argument),
        "result": measure(result),
        "reused": measure(reused),
        "idle": measure(idle),
        "marked": measure(partial(marked, chunks=chunks)),
    }


def latency(executor: Submits, job: Job) -> Samples:
    """Measure seconds from ``submit`` to the result, one call at a time: at once after the last, and after a pause."""
    _await_workers(executor, job)
    _warm_up(executor, job)
    cpu = _cpu(job)
    at_once = _calls(executor, job, 0.0)
    busy = (_cpu(job) - cpu) / len(at_once)
    return {"at once": at_once, "after a pause": _calls(executor, job, APART), "CPU": [busy]}


def _warm_up(executor: Submits, job: Job) -> None:
    end = time.perf_counter() + job.seconds
    for _ in range(job.warm):
        executor.submit(pow, 2, 3).result()
        if time.perf_counter() > end:
            break


def _calls(executor: Submits, job: Job, pause: float) -> list[float]:
    found: list[float] = []
    end = time.perf_counter() + job.seconds
    while len(found) < job.tasks and (len(found) < _LEAST or time.perf_counter() < end):
        if pause:
            time.sleep(pause)
        before = time.perf_counter()
        value = executor.submit(pow, 2, 3).result()
        found.append(time.perf_counter() - before)
        assert value in (8, [8] * job.ranks), value
    return found


def durability(executor: Submits, job: Job) -> Samples:
    """Measure seconds of one call at a time, and calls per second of the same number submitted one by one."""
    _await_workers(executor, job)
    _warm_up(executor, job)
    at_once = _calls(executor, job, 0.0)
    took, _ = _timed(_ways(executor)["batch"], job, len(at_once))
    return {"at once": at_once, "rate": [len(at_once) / took]}


def throughput(executor: Submits, job: Job, *, chunks: bool = False) -> Samples:
    """Measure calls per second until the last result, and CPU seconds per call.

    ``rate`` and ``CPU``: all are submitted one by one before the first result is awaited. ``map`` and ``chunks``
    (ten times as many calls, :data:`LARGE_CHUNK` to a task): for contenders that have them.
    """
    _await_workers(executor, job)
    ways = _ways(executor, LARGE_CHUNK if chunks else 0)
    rate, busy, count = _rate(ways["batch"], job, job.tasks, 100)
    found: Samples = {"rate": [rate], "CPU": [busy], "calls": [count]}
    if "map" in ways:
        found["map"] = [_rate(ways["map"], job, job.tasks, 100)[0]]
    if "chunks" in ways:
        found["chunks"] = [_rate(ways["chunks"], job, 10 * job.tasks, LARGE_CHUNK * job.workers)[0]]
    return found


def _ways(executor: Submits, chunk: int = 0) -> dict[str, Callable[[int], object]]:
    """Return functions that make so many calls and wait for the last result: by submit, map, and map with chunks."""

    def batch(count: int) -> None:
        for future in [executor.submit(pow, 2, 3) for _ in range(count)]:
            future.result()

    ways: dict[str, Callable[[int], object]] = {"batch": batch}
    mapped: Any = getattr(executor, "map", None)
    if mapped is not None:
        ways["map"] = lambda count: list(mapped(pow, [2] * count, [3] * count))
    if chunk:
        ways["chunks"] = lambda count: list(mapped(pow, [2] * count, [3] * count, chunksize=chunk))
    return ways


def _rate(way: Callable[[int], object], job: Job, most: int, pilot: int) -> tuple[float, float, int]:
    """Measure calls per second and CPU seconds per call; a pilot run sets the number of calls, at most ``most``."""
    count = min(most, pilot)
    took, busy = _timed(way, job, count)
    enough = min(most, int(count / took * job.seconds))
    if enough > count:
        count = enough
        took, busy = _timed(way, job, count)
    return count / took, busy / count, count


def _timed(way: Callable[[int], object], job: Job, count: int) -> tuple[float, float]:
    cpu = _cpu(job)
    before = time.perf_counter()
    way(count)
    took = time.perf_counter() - before
    return took, _cpu(job) - cpu


def _cpu(job: Job) -> float:
    """Return the CPU seconds of the contender and of all its processes so far."""
    return sum(map(processes.cpu, processes.family(job.harness)))


def argument(executor: Submits, job: Job) -> Samples:
    """Measure seconds until the sum of an array argument is returned; all arrays differ."""
    import numpy as np

    executor.submit(tasks.total, np.ones(8)).result()
    worker = executor.submit(tasks.linger, 0.0).result()
    count = job.bytes // 8
    taken = []
    for number in range(1, 1 + repeats(job.bytes)):
        array = np.full(count, float(number))
        before = time.perf_counter()
        value = executor.submit(tasks.total, array).result()
        taken.append(time.perf_counter() - before)
        assert value == number * count, value
        del array  # before the next one is created
    return {"time": taken, **_peaks(executor, job, worker)}


def result(executor: Submits, job: Job) -> Samples:
    """Measure seconds until the sum of a result is known here; the worker has the arrays already."""
    executor.submit(tasks.prepare, 8, 0.0).result()
    executor.submit(tasks.prepared, 8, 0.0).result()
    worker = executor.submit(tasks.linger, 0.0).result()
    count = job.bytes // 8
    taken = []
    for number in range(1, 1 + repeats(job.bytes)):
        executor.submit(tasks.prepare, count, float(number)).result()
        before = time.perf_counter()
        array = executor.submit(tasks.prepared, count, float(number)).result()
        value = tasks.total(array)
        taken.append(time.perf_counter() - before)
        assert value == number * count, value
        del array
    return {"time": taken, **_peaks(executor, job, worker)}


def reused(executor: Submits, job: Job) -> Samples:
    """Measure seconds per call of many calls with one array argument, one at a time, stored before if supported."""
    import numpy as np

    executor.submit(tasks.total, np.ones(8)).result()
    array = np.ones(job.bytes // 8)
    before = time.perf_counter()
    put = getattr(executor, "put", None)
    sent = array if put is None else put(array)
    count = 0
    while count < job.tasks and (count < _LEAST or time.perf_counter() - before < job.seconds):
        value = executor.submit(tasks.total, sent).result()
        assert value == len(array), value
        count += 1
    return {"time": [(time.perf_counter() - before) / count], "calls": [count]}


def repeats(size: int) -> int:
    """Return the number of arrays of this size in one turn: fewer of large ones."""
    return max(1, min(10, _SENT // size))


def _peaks(executor: Submits, job: Job, worker: int) -> Samples:
    peaks = {"submitter": [tasks.peak() / job.bytes]}
    if executor.submit(tasks.linger, 0.0).result() == worker:  # otherwise each call has its own process
        peaks["worker"] = [executor.submit(tasks.peak).result() / job.bytes]
    return peaks


def idle(executor: Submits, job: Job) -> Samples:
    """Measure the load of an idle pool, in per cent of one core."""
    executor.submit(pow, 2, 3).result()
    time.sleep(min(3.0, job.seconds))  # until each backoff has its longest interval
    family = processes.family(job.harness)
    workers = [process for process in family if processes.is_python(process) and process.pid != os.getpid()]
    launchers = [process for process in family if not processes.is_python(process)]
    here = [process for process in family if process.pid == os.getpid()]
    kinds = {"workers": workers, "launcher": launchers, "submitter": here}
    before = {kind: sum(map(processes.cpu, found)) for kind, found in kinds.items()}
    since = time.perf_counter()
    time.sleep(job.seconds)
    took = time.perf_counter() - since
    used = {kind: [(sum(map(processes.cpu, found)) - before[kind]) / took * 100] for kind, found in kinds.items()}
    return {**used, "processes": [len(workers)]}


def marked(executor: Submits, job: Job, *, chunks: bool = False) -> Samples:
    """Make calls between marks in a trace of the system calls; see :mod:`benchmarks.trace`.

    Each work is done ``tasks`` and then three times as often: the operations of its start and end cancel in the
    difference. The last mark of a pair comes after the work that follows a result.
    """

    def awaited(count: int) -> None:
        for _ in range(count):
            executor.submit(pow, 2, 3).result()

    works: dict[str, Callable[[int], object]] = {"awaited": awaited, **_ways(executor, CHUNK if chunks else 0)}
    for name, work in works.items():
        work(job.warm)
        time.sleep(SETTLE)
        for times in (1, 3):
            mark(job, f"{name}.{times}.begin")
            work(times * job.tasks)
            time.sleep(SETTLE)
            mark(job, f"{name}.{times}.end")
    time.sleep(min(3.0, job.seconds))
    mark(job, "idle.1.begin")
    time.sleep(job.seconds)
    mark(job, "idle.1.end")
    return {}


def mark(job: Job, name: str) -> None:
    """Leave a mark in the trace: an access to a file that does not exist."""
    os.access(f"{job.directory}/mark.{name}", os.F_OK)


def _await_workers(executor: Submits, job: Job) -> None:
    """Wait until each worker has run a call, at most half a minute."""
    seen: set[int] = set()
    end = time.perf_counter() + 30
    while len(seen) < job.workers * job.ranks and time.perf_counter() < end:
        pending = [executor.submit(tasks.linger, 0.05) for _ in range(job.workers)]
        for future in pending:
            value = future.result()
            seen.update(value if isinstance(value, list) else [value])
