"""Worker group of one process, without MPI."""

from __future__ import annotations

from spoolpool.calls.run import RankResult
from spoolpool.worker.group import Group, TaskCall


class SerialGroup(Group):
    """Worker group of this process alone, without MPI."""

    def run(self, call: TaskCall) -> tuple[RankResult, int]:
        """Run a call in this process, perhaps inside a call that waits for subtasks."""
        return self._run_here(call), self.size

    def settle(self, *, idle: bool) -> None:
        """Find what the task has left."""
        self.severity = self._look_here()
