"""Measures of what lies under an executor: taking the next of many that wait, alone or in a crowd."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Protocol

from benchmarks.contender import Job, Measure, Samples

BATCH = 50
"""Claims of which the mean is one sample, so that listings count in each."""


class Taker(Protocol):
    """One who takes what waits."""

    @property
    def wasted(self) -> int:
        """Operations so far that came to nothing, because another one was first."""

    def take(self, seconds: float) -> bool:
        """Take one, keep it for so long, and be done with it; False if nothing waits."""


Fill = Callable[[str, int, int], None]
"""Lets so many wait in a directory; of which at least so many (the third) are going to be taken."""

Opens = Callable[[str], Taker]
"""A taker of what waits in a directory."""


def of_claims(fill: Fill, opens: Opens) -> dict[str, Measure]:
    """Both measures."""
    return {"backlog": lambda job: backlog(job, fill, opens), "crowd": lambda job: crowd(job, fill, opens)}


def backlog(job: Job, fill: Fill, opens: Opens) -> Samples:
    """Seconds per claim while ``tasks`` wait; the first batch, which lists for the first time, is not counted."""
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
    """``workers`` processes take all that waits, each of which they keep for ``variant`` seconds.

    Each takes one before that, which loads code and lists for the first time, and is not counted.
    """
    count = job.tasks + job.workers
    fill(job.directory, count, count)
    wait, start = os.pipe()
    results = [_claimant(job, opens, wait, start) for _ in range(job.workers)]
    os.close(wait)
    assert all(os.read(fd, 1) for fd in results), "a process ended before it took anything"
    before = time.perf_counter()
    os.close(start)  # which is what they wait for
    told = [json.loads(os.read(fd, 65536)) for fd in results]  # written in one piece, at the end
    took = time.perf_counter() - before
    for _ in results:
        os.wait()
    taken = sum(each["taken"] for each in told)
    assert taken == job.tasks, f"{taken} of {job.tasks} were taken"
    return {"rate": [taken / took], "wasted": [sum(each["wasted"] for each in told) / taken]}


def _claimant(job: Job, opens: Opens, wait: int, start: int) -> int:
    """Start one; returns where it tells in the end what it did."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        return reading
    status = 1
    try:
        os.close(reading)
        os.close(start)
        taker = opens(job.directory)
        assert taker.take(0.0)
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
