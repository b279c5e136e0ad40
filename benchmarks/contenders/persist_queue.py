"""persist-queue: a queue in an SQLite file, so its workers and its results are a few lines of :mod:`.queues`.

Its queue of plain files keeps what it knows in memory, and serves one process only; its SQLite one reads the
file each time, but hands an element to two who ask at once: so each worker has a pair of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.contender import Contender, Environment
from benchmarks.contenders.queues import Queues
from benchmarks.measures import of_executor


class _Queue:
    def __init__(self, directory: str) -> None:
        from persistqueue import FIFOSQLiteQueue

        self._queue = FIFOSQLiteQueue(directory, auto_commit=True)

    def put(self, item: Any) -> None:
        self._queue.put(item)

    def taken(self) -> Iterator[Any]:
        from persistqueue import Empty

        while True:
            try:
                item = self._queue.get(block=False)
            except Empty:
                return
            yield item


QUEUES = Queues(module="benchmarks.contenders.persist_queue", opens=_Queue, shared=False)

CONTENDER = Contender(
    name="persist-queue",
    module=QUEUES.module,
    measures=of_executor(QUEUES.executor),
    environment=Environment(name="persist-queue", requires=("persist-queue",)),
)

if __name__ == "__main__":
    CONTENDER.main()
