"""dirq: only a queue of files, so :mod:`.queues` adds workers and results."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.claims import of_claims
from benchmarks.contender import Contender, Environment
from benchmarks.contenders.queues import Queues
from benchmarks.measures import of_executor


class _Queue:
    def __init__(self, directory: str) -> None:
        from dirq.QueueSimple import QueueSimple

        self._queue = QueueSimple(directory)

    def put(self, item: Any) -> None:
        self._queue.add(pickle.dumps(item))

    def taken(self) -> Iterator[Any]:
        for name in self._queue:
            if self._queue.lock(name):
                content = self._queue.get(name)
                self._queue.remove(name)
                yield pickle.loads(content)


QUEUES = Queues(module="benchmarks.contenders.dirq", opens=_Queue)


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
    module=QUEUES.module,
    measures={**of_executor(QUEUES.executor), **of_claims(_fill, _Taker)},
    environment=Environment(name="dirq", requires=("dirq",)),
)

if __name__ == "__main__":
    CONTENDER.main()
