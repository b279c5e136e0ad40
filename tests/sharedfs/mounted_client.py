"""Program that acts for a test on a client of a shared filesystem: only there the filesystem is visible.

``python -m tests.sharedfs.mounted_client DIRECTORY`` takes orders from a test. Each order on standard input is the
pickled name of a method of :class:`Actor` with its arguments. Each answer on standard output has its success,
and the value or the exception.
"""

from __future__ import annotations

import itertools
import os
import pickle
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, BinaryIO

from spoolpool import Executor, Spool
from spoolpool.maintenance.check import check
from spoolpool.maintenance.repair import repair
from spoolpool.monitor.scan import scan
from spoolpool.protocol import workers
from spoolpool.system import files
from spoolpool.system.backoff import Backoff
from tests.sharedfs import tasks

PENDING = 12  # tasks that a submitter of a chaos run has in the spool at a time


class Actor:
    """Submitter and observer. ``directory`` is the shared directory as this client sees it; the spools are in it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._executors: dict[str, Executor] = {}
        self._futures: dict[int, tuple[str, Future[Any]]] = {}
        self._numbers = itertools.count()

    def path(self, name: str) -> str:
        return f"{self._directory}/{name}"

    def make_spool(self, name: str, **settings: Any) -> None:
        Spool.create(self.path(name), **settings)

    def submit(self, spool: str, function: Callable[..., Any], *arguments: Any, **wishes: Any) -> int:
        """Submit a call; return the number of its future."""
        if spool not in self._executors:
            self._executors[spool] = Executor(spool=self.path(spool))
        number = next(self._numbers)
        self._futures[number] = (spool, self._executors[spool].submit(function, *arguments, resource_dict=wishes))
        return number

    def cancel(self, number: int) -> bool:
        return self._futures[number][1].cancel()

    def result(self, number: int, seconds: float) -> Any:
        return self._futures[number][1].result(seconds)

    def wait(self, number: int, seconds: float) -> None:
        """Wait until a task has any outcome."""
        assert wait([self._futures[number][1]], seconds).done, f"task {number} is not over"

    def close(self, spool: str) -> None:
        """Close the executor of a spool, once all its tasks have finished."""
        self._executors.pop(spool).shutdown()
        # a mapped array keeps its removed file on the disk
        self._futures = {number: each for number, each in self._futures.items() if each[0] != spool}

    def make_directory(self, name: str) -> None:
        Path(self.path(name)).mkdir()

    def list(self, directory: str) -> list[str]:
        return sorted(files.list_names(self.path(directory)))

    def workers(self, spool: str) -> list[str]:
        """Return the hosts of the groups registered in a spool."""
        return sorted(info.process.host for info in workers.read_workers(Spool(self.path(spool))))

    def left_over(self, spool: str) -> list[str]:
        """Return the tasks and outcomes in a spool, and the names in it that do not belong to a spool."""
        seen = scan(Spool(self.path(spool)))
        found = [*seen.ready, *seen.claimed, *seen.results, *seen.outgoing, *seen.failed, *seen.unknown]
        return [*found, *(f"tmp/{name}" for name in files.list_names(self.path(f"{spool}/tmp")))]

    def repair(self, spool: str) -> list[str]:
        opened = Spool(self.path(spool))
        return repair(opened, check(opened))

    def flow(self, spool: str, effects: str, name: str, seed: int) -> dict[str, tuple[int, int, str]]:
        """Keep tasks in a spool until the mark "NAME-end" exists, then wait for all of them.

        Return for each task the number of outcomes of its future, the attempt of it (0: an error), and the error.
        """
        chance = random.Random(seed)
        told: Counter[str] = Counter()
        backoff = Backoff(0.01, 0.1)
        with Executor(spool=self.path(spool)) as executor:
            futures: dict[str, Future[Any]] = {}
            while not tasks.marks(effects, f"{name}-end"):
                if sum(not future.done() for future in futures.values()) >= PENDING:
                    backoff.sleep()
                    continue
                backoff.reset()
                uid = f"{name}-{len(futures)}"
                size = chance.choice([0, 1000, 100_000])
                future = executor.submit(tasks.work, effects, uid, chance.choice([0, 0.02, 0.3]), bytes(size))
                future.add_done_callback(lambda _, uid=uid: told.update([uid]))
                futures[uid] = future
        found = {}
        for uid, future in futures.items():
            error = future.exception(0)
            found[uid] = (told[uid], 0, repr(error)) if error else (told[uid], future.result()[0], "")
        return found

    def sees(self, directory: str, name: str, seconds: float) -> bool:
        """List a directory repeatedly, without a pause, until it has a name; return whether it appeared in time."""
        end = time.monotonic() + seconds
        while name not in files.list_names(self.path(directory)):
            if time.monotonic() > end:
                return False
        return True

    def replace(self, directory: str, name: str) -> None:
        """Create a name in the way that hides it from clients of NFS 3: by renaming a temporary file beside it."""
        temporary, path = self.path(f"{directory}/temporary"), self.path(f"{directory}/{name}")
        files.create(temporary, [])
        files.move(temporary, path)

    def refresh(self, directory: str) -> None:
        files.refresh(self.path(directory))


def obey(orders: BinaryIO, answers: BinaryIO, actor: Actor) -> None:
    """Execute orders until the input ends."""
    while True:
        try:
            name, arguments, options = pickle.load(orders)
        except EOFError:
            return
        try:
            answer = (True, getattr(actor, name)(*arguments, **options))
        except Exception as error:  # noqa: BLE001  it is for the test to judge
            answer = (False, error)
        pickle.dump(answer, answers)
        answers.flush()


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keep printed text out of the answers
    obey(sys.stdin.buffer, answers, Actor(str(Path(sys.argv[1]))))
    os._exit(0)  # without waiting: after a failed test, some futures never finish


if __name__ == "__main__":
    main()
