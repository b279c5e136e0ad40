"""persist-queue: only a queue in an SQLite file, so :mod:`.queues` adds workers and results.

Its queue of plain files keeps its state in memory and serves only one process. Its SQLite queue reads the file each
time, but may return an element to two concurrent readers: so each worker has its own pair of queues.
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
