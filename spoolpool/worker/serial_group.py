"""One process as a worker group, without MPI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spoolpool.calls import run
from spoolpool.calls.interruption import Interrupter
from spoolpool.calls.results import DependencyValue
from spoolpool.calls.run import InitializerCache, RankResult
from spoolpool.context import CurrentTask
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile
from spoolpool.worker.capture import Capture
from spoolpool.worker.mpi_messages import Content

if TYPE_CHECKING:
    from spoolpool.protocol.objects import ObjectCache
    from spoolpool.protocol.progress import Progress


class SerialGroup:
    """One process, without MPI."""

    size = 1

    def __init__(
        self,
        ends: float | None = None,
        spool: str = "",
        *,
        supervised: bool = False,
        interrupter: Interrupter | None = None,
        capture: Capture | None = None,
        progress: Progress | None = None,
        objects: ObjectCache | None = None,
    ) -> None:
        self._objects = objects
        self._ends = ends
        self._spool = spool
        self._supervised = supervised
        self._interrupter = interrupter or Interrupter(None, None, 0.0)
        self._capture = capture or Capture(None)
        self._progress = progress
        self._presets = InitializerCache()

    @property
    def tainted(self) -> bool:
        """Whether a call was interrupted, and may have left something behind; then a supervisor replaces the group."""
        return self._supervised and self._interrupter.interrupted

    def knows(self, init: str) -> bool:
        """Whether this ``init_function`` was called here."""
        return self._presets.knows(init)

    def run(
        self,
        task_file: TaskFile,
        header: TaskHeader,
        content: Content,
        init: Content | None,
        needed: Sequence[DependencyValue] = (),
    ) -> tuple[RankResult, int]:
        """Run a call in this process; a call that waits for tasks of its own may be in the middle of it."""
        task = CurrentTask(
            id=task_file.task,
            attempt=task_file.attempt,
            worker=task_file.worker,
            spool=self._spool,
            ends=self._ends,
            _progress=self._progress,
        )
        with self._capture.of(task_file):
            report = run.run_call(
                task,
                *content,
                header=header,
                init_content=init,
                presets=self._presets,
                needed=needed,
                objects=self._objects,
                guard=self._interrupter.watch(task_file, header),
            )
        return report, 1

    def settle(self, *, idle: bool) -> None:
        """Nothing to be done between tasks."""

    def stop(self) -> None:
        """Nobody else to end."""
        self._capture.close()
