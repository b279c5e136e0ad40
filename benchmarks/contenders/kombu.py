"""kombu's filesystem transport: only a queue of files, so :mod:`.queues` adds workers and results.

Each queue has its own directory, because kombu lists all names of a directory. It writes a message under its final
name, so that a concurrent reader would take it half written and lose it. Therefore this module locks the queue while a
message is written or taken.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.contender import Contender, Environment
from benchmarks.contenders.queues import Queues
from benchmarks.measures import of_executor


class _Queue:
    def __init__(self, directory: str) -> None:
        from kombu import Connection

        messages = f"{directory}/messages"
        os.makedirs(messages, exist_ok=True)
        options = {"data_folder_in": messages, "data_folder_out": messages, "control_folder": f"{directory}/control"}
        self._connection = Connection("filesystem://", transport_options=options)
        name = os.path.basename(
            directory
        )  # unique: kombu takes queues of the same name in one process for the same queue
        self._queue = self._connection.SimpleQueue(name, serializer="pickle", accept=["pickle"])
        self._lock = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def put(self, item: Any) -> None:
        with self._alone():
            self._queue.put(item)

    def taken(self) -> Iterator[Any]:
        while True:
            try:
                with self._alone():
                    message = self._queue.get_nowait()
            except self._queue.Empty:
                return
            message.ack()
            yield message.payload


QUEUES = Queues(module="benchmarks.contenders.kombu", opens=_Queue)

CONTENDER = Contender(
    name="kombu, files",
    module=QUEUES.module,
    measures=of_executor(QUEUES.executor),
    environment=Environment(name="kombu", requires=("kombu",)),
)

if __name__ == "__main__":
    CONTENDER.main()
