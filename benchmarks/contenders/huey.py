"""huey with its file storage: a consumer process per worker, which polls every 10 ms."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.claims import of_claims
from benchmarks.contender import Contender, Environment, Job
from benchmarks.measures import Pending, Submits, of_executor

POLL = 0.01


class _Future:
    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def result(self) -> Any:
        return self._handle.get(blocking=True, backoff=1.0, max_delay=POLL, timeout=60)


class _Queue:
    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        from benchmarks.contenders.huey_calls import call

        return _Future(call(fn, *args))


@contextmanager
def executor(job: Job) -> Iterator[Submits]:
    """A consumer beside this process."""
    os.environ["BENCHMARK_HUEY"] = f"{job.directory}/huey"
    consumer = [
        os.path.join(os.path.dirname(sys.executable), "huey_consumer"),
        "benchmarks.contenders.huey_calls.queue",
    ]
    options = ["-w", str(job.workers), "-k", "process", "-d", str(POLL), "-m", str(POLL), "-n", "-q"]
    process = subprocess.Popen([*consumer, *options], stdin=subprocess.DEVNULL)
    try:
        yield _Queue()
    finally:
        process.terminate()
        process.wait(30)


def _storage(directory: str) -> Any:
    from huey import FileHuey

    return FileHuey("benchmark", path=f"{directory}/huey").storage


def _fill(directory: str, count: int, _: int) -> None:
    storage = _storage(directory)
    for _ in range(count):
        storage.enqueue(b"call")


class _Taker:
    wasted = 0  # no failed claims: it locks the whole queue, and waits for the lock

    def __init__(self, directory: str) -> None:
        self._storage = _storage(directory)

    def take(self, seconds: float) -> bool:
        if self._storage.dequeue() is None:
            return False
        time.sleep(seconds)
        return True


CONTENDER = Contender(
    name="huey, files",
    module=__name__,
    measures={**of_executor(executor), **of_claims(_fill, _Taker)},
    environment=Environment(name="huey", requires=("huey",)),
)

if __name__ == "__main__":
    CONTENDER.main()
