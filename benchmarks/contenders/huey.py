"""huey with its file storage: a consumer process per worker, which polls every 10 ms."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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


CONTENDER = Contender(
    name="huey, files",
    module=__name__,
    measures=of_executor(executor),
    environment=Environment(name="huey", requires=("huey",)),
)

if __name__ == "__main__":
    CONTENDER.main()
