"""kombu's filesystem transport: a queue of files, so its workers and its results are a few lines of :mod:`.queues`.

Each queue has a folder of its own, because a look goes through all names of a folder. A message is written
under its final name, and who looks meanwhile takes it half written and loses it: so each queue has a lock of
ours, for as long as a message is put or taken.
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
        name = os.path.basename(directory)  # kombu takes what is called alike in one process for the same
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
