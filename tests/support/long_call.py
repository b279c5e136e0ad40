"""Call on all ranks of a group that runs until the test lets it end."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

from spoolpool import Executor
from tests.support import mpi_tasks
from tests.support.waiting import LIMIT, wait_until

Kind = Literal["waits", "holds the global lock"]
KINDS: tuple[Kind, ...] = ("waits", "holds the global lock")


class LongCall:
    """Call that waits on all ranks for a file, or for ever in compiled code that holds the global lock.

    Without further ``attempts`` it may lose none.
    """

    def __init__(self, directory: Path, executor: Executor, ranks: int, kind: Kind, attempts: int = 1) -> None:
        self._directory = directory
        self._ranks = ranks
        self.future: Future[Any] = executor.submit(
            mpi_tasks.wait_on_each_rank,
            directory,
            directory / "end",
            hold_gil=kind != "waits",
            resource_dict={"cores": ranks, "max_attempts": attempts},
        )

    def await_start(self, timeout: float = LIMIT) -> None:
        """Wait until the call runs on all ranks."""
        marks = [self._directory / f"started-{rank}" for rank in range(self._ranks)]
        wait_until(lambda: all(mark.exists() for mark in marks), "the call runs on all ranks", timeout)
        for mark in marks:
            mark.unlink()

    def finish(self) -> None:
        """Let the call end on all ranks; one that holds the global lock ends only where it runs again."""
        (self._directory / "end").touch()
