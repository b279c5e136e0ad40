"""Surroundings of the calls on one rank: captured output, and a process in the same state before each call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import Context, copy_context

from spoolpool.calls.process_state import Changes, ProcessState
from spoolpool.calls.run import RankResult
from spoolpool.format.names import TaskFile
from spoolpool.system.descriptors import StandardDescriptors
from spoolpool.worker.capture import Capture


class Surroundings:
    """Runs calls in the state that this process has when it is made, and restores that state after each call."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._state = ProcessState()
        self._descriptors = StandardDescriptors()
        self._changed: list[str] = []
        self._context: Context | None = None  # while a call runs: the one around it

    def run(self, call: Callable[[], RankResult], task_file: TaskFile, changes: Changes | None) -> RankResult:
        """Run a call, perhaps inside a call that waits for it.

        ``changes`` are those that the ``init_function`` of its session has made.
        """
        if self._context is not None:
            return self._run_inside(call, task_file, changes)
        self._context = copy_context()
        try:
            return self._run(call, task_file, changes, self._context.copy())
        finally:
            self._context = None
            self._descriptors.restore(output=not self._capture.active)
            if self._changed:  # again: a stream whose descriptor was closed could not be opened before
                self._state.restore()

    def _run_inside(self, call: Callable[[], RankResult], task_file: TaskFile, changes: Changes | None) -> RankResult:
        assert self._context is not None
        outer = ProcessState()
        self._state.restore()
        try:
            return self._run(call, task_file, changes, self._context.copy())
        finally:
            outer.resume()

    def _run(
        self, call: Callable[[], RankResult], task_file: TaskFile, changes: Changes | None, context: Context
    ) -> RankResult:
        with self._capture.of(task_file):
            if changes is not None:
                changes.apply()
                context = changes.context.copy()
                context.run(_own_decimal_context)
            try:
                return context.run(call)
            finally:
                self._changed = self._state.restore()

    def close(self) -> None:
        """Free the descriptors after the last call."""
        self._descriptors.close()


def _own_decimal_context() -> None:
    """Replace the decimal context by a copy: functions change the object, which copies of a context share."""
    decimal = sys.modules.get("decimal")
    if decimal is not None:
        decimal.setcontext(decimal.getcontext().copy())
