"""Pool on top of a queue: workers and results for peers that are only a queue."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.contender import Job
from benchmarks.measures import Pending, Submits

POLL = 0.001
"""Seconds between two reads of an empty queue."""


class Queue(Protocol):
    """Queue of a peer, opened by one process."""

    def put(self, item: Any) -> None:
        """Add an object that can be pickled."""

    def taken(self) -> Iterator[Any]:
        """Remove and yield all present elements."""


@dataclass(frozen=True, kw_only=True)
class Queues:
    """Pool on queues: one for calls and one for values, or one pair of them per worker."""

    module: str
    """Module that has this object as ``QUEUES``."""
    opens: Callable[[str], Queue]
    """Function that opens the queue in a directory, and creates it if it does not exist."""
    shared: bool = True
    """Whether several processes may read from one queue."""

    @contextmanager
    def executor(self, job: Job) -> Iterator[Submits]:
        """Executor with workers that poll, as this process does."""
        pairs = [f"{job.directory}/{number}" for number in range(1 if self.shared else job.workers)]
        submitter = _Submitter(self, pairs)
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", f"from {self.module} import QUEUES; QUEUES.work({pair!r})"],
                stdin=subprocess.PIPE,
            )
            for pair in (pairs * job.workers)[: job.workers]
        ]
        try:
            yield submitter
        finally:
            for worker in workers:
                worker.communicate(timeout=30)

    def work(self, pair: str) -> None:
        """Run calls until the standard input ends."""
        calls, values = self.opens(f"{pair}/calls"), self.opens(f"{pair}/values")
        pause = 0.0
        while not select.select([sys.stdin], [], [], pause)[0]:
            pause = POLL
            for number, fn, args in calls.taken():
                values.put((number, fn(*args)))
                pause = 0.0


class _Future:
    def __init__(self, submitter: _Submitter, number: int) -> None:
        self._submitter, self._number = submitter, number

    def result(self) -> Any:
        return self._submitter.value(self._number)


class _Submitter:
    def __init__(self, queues: Queues, pairs: list[str]) -> None:
        for pair in pairs:
            os.mkdir(pair)
        self._calls = [queues.opens(f"{pair}/calls") for pair in pairs]
        self._values = [queues.opens(f"{pair}/values") for pair in pairs]
        self._count = 0
        self._found: dict[int, Any] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        self._count += 1
        self._calls[self._count % len(self._calls)].put((self._count, fn, args))
        return _Future(self, self._count)

    def value(self, number: int) -> Any:
        while number not in self._found:
            some = False
            for values in self._values:
                for taken, value in values.taken():
                    self._found[taken] = value
                    some = True
            if not some:
                time.sleep(POLL)
        return self._found.pop(number)
