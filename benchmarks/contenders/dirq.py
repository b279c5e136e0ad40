"""dirq: a queue of files and nothing more, so its workers and its results are a few lines here."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.claims import of_claims
from benchmarks.contender import Contender, Environment, Job
from benchmarks.measures import Pending, Submits, of_executor

POLL = 0.001


def _taken(queue: Any) -> Iterator[bytes]:
    """What is in a queue now, each element locked, read and removed."""
    for name in queue:
        if queue.lock(name):
            content = queue.get(name)
            queue.remove(name)
            yield content


def work(directory: str) -> None:
    """Run what comes, until a file says that it is over."""
    from dirq.QueueSimple import QueueSimple

    calls, values = QueueSimple(f"{directory}/calls"), QueueSimple(f"{directory}/values")
    while not os.path.exists(f"{directory}/over"):
        some = False
        for content in _taken(calls):
            number, fn, args = pickle.loads(content)
            values.add(pickle.dumps((number, fn(*args))))
            some = True
        if not some:
            time.sleep(POLL)


class _Future:
    def __init__(self, queues: _Queues, number: int) -> None:
        self._queues, self._number = queues, number

    def result(self) -> Any:
        return self._queues.value(self._number)


class _Queues:
    def __init__(self, directory: str) -> None:
        from dirq.QueueSimple import QueueSimple

        self._calls, self._values = QueueSimple(f"{directory}/calls"), QueueSimple(f"{directory}/values")
        self._count = 0
        self._found: dict[int, Any] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        self._count += 1
        self._calls.add(pickle.dumps((self._count, fn, args)))
        return _Future(self, self._count)

    def value(self, number: int) -> Any:
        while number not in self._found:
            found = [pickle.loads(content) for content in _taken(self._values)]
            self._found.update(found)
            if not found:
                time.sleep(POLL)
        return self._found.pop(number)


@contextmanager
def executor(job: Job) -> Iterator[Submits]:
    """Workers that poll every millisecond, as this process does."""
    queues = _Queues(job.directory)
    command = [sys.executable, "-c", f"from {CONTENDER.module} import work; work({job.directory!r})"]
    workers = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for _ in range(job.workers)]
    try:
        yield queues
    finally:
        with open(f"{job.directory}/over", "w", encoding="ascii"):
            pass
        for worker in workers:
            worker.wait(30)


def _fill(directory: str, count: int, _taken: int) -> None:
    from dirq.QueueSimple import QueueSimple

    queue = QueueSimple(f"{directory}/calls")
    for _ in range(count):
        queue.add(b"call")


class _Taker:
    def __init__(self, directory: str) -> None:
        from dirq.QueueSimple import QueueSimple

        self._queue = QueueSimple(f"{directory}/calls")
        self._name = self._queue.first()
        self.wasted = 0

    def take(self, seconds: float) -> bool:
        for _ in range(2):  # once more from the beginning
            while self._name:
                name, self._name = self._name, self._queue.next()
                if self._queue.lock(name):
                    self._queue.get(name)
                    if seconds:
                        time.sleep(seconds)
                    self._queue.remove(name)
                    return True
                self.wasted += 1
            self._name = self._queue.first()
        return False


CONTENDER = Contender(
    name="dirq",
    module="benchmarks.contenders.dirq",
    measures={**of_executor(executor), **of_claims(_fill, _Taker)},
    environment=Environment(name="dirq", requires=("dirq",)),
)

if __name__ == "__main__":
    CONTENDER.main()
