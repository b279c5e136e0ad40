"""Measures of the queue under an executor: claims among many queued tasks, by one or by many processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Protocol

from benchmarks.contender import Job, Measure, Samples

BATCH = 50
"""Claims per sample, which is their mean: so each sample has its share of the listings."""


class Taker(Protocol):
    """Process that claims queued tasks."""

    @property
    def wasted(self) -> int:
        """Failed claims so far: another process was first."""

    def take(self, seconds: float) -> bool:
        """Claim a task, keep it for so many seconds, and finish it; return False if none is queued."""


Fill = Callable[[str, int, int], None]
"""Function that queues so many tasks in a directory; at least so many of them (third argument) will be claimed."""

Opens = Callable[[str], Taker]
"""Function that opens a directory for claims."""


def of_claims(fill: Fill, opens: Opens) -> dict[str, Measure]:
    """Return both measures."""
    return {"backlog": lambda job: backlog(job, fill, opens), "crowd": lambda job: crowd(job, fill, opens)}


def backlog(job: Job, fill: Fill, opens: Opens) -> Samples:
    """Measure seconds per claim among ``tasks`` queued ones; the first batch with its first listing does not count."""
    most = min(job.tasks, 40 * BATCH)
    fill(job.directory, job.tasks, most)
    taker = opens(job.directory)
    found: list[float] = []
    end = time.perf_counter() + job.seconds
    while len(found) * BATCH < most - BATCH and (len(found) < 2 or time.perf_counter() < end):
        before = time.perf_counter()
        for _ in range(BATCH):
            assert taker.take(0.0)
        found.append((time.perf_counter() - before) / BATCH)
    return {"claim": found[1:]}


def crowd(job: Job, fill: Fill, opens: Opens) -> Samples:
    """Let ``workers`` processes claim all queued tasks and keep each for ``variant`` seconds.

    Each claims one task before, which loads code and includes the first listing; it does not count.
    """
    count = job.tasks + job.workers
    fill(job.directory, count, count)
    wait, start = os.pipe()
    results = [_claimant(job, opens, wait, start) for _ in range(job.workers)]
    os.close(wait)
    assert all(os.read(fd, 1) for fd in results), "a process ended before it took anything"
    before = time.perf_counter()
    os.close(start)  # the start signal: they wait for its end of file
    told = [json.loads(os.read(fd, 65536)) for fd in results]  # written in one piece, at the end
    took = time.perf_counter() - before
    for _ in results:
        os.wait()
    taken = sum(each["taken"] for each in told)
    assert taken == job.tasks, f"{taken} of {job.tasks} were taken"
    return {"rate": [taken / took], "wasted": [sum(each["wasted"] for each in told) / taken]}


def _claimant(job: Job, opens: Opens, wait: int, start: int) -> int:
    """Start a process; return the descriptor from which its report can be read at its end."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        return reading
    status = 1
    try:
        os.close(reading)
        os.close(start)
        taker = opens(job.directory)
        while not taker.take(0.0):  # a worker leaves a bucket in which it meets others to them for a second
            time.sleep(0.01)
        before = taker.wasted
        os.write(writing, b".")
        os.read(wait, 1)
        taken = 0
        while taker.take(float(job.variant or 0)):
            taken += 1
        os.write(writing, json.dumps({"taken": taken, "wasted": taker.wasted - before}).encode())
        status = 0
    finally:
        os._exit(status)
