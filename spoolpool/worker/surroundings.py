"""Surroundings of the calls on one rank: captured output, and a process in the same state before each call."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Context, copy_context

from spoolpool.calls.leftovers import Baseline, Leftover, Severity
from spoolpool.calls.process_state import SLOW_INTERVAL, Changes, ProcessState
from spoolpool.calls.run import RankResult
from spoolpool.format.names import TaskFile
from spoolpool.system.descriptors import StandardDescriptors
from spoolpool.worker.capture import Capture
from spoolpool.worker.mpi_world import CommunicatorSupply

log = logging.getLogger(__name__)

_MPI = "mpi4py.MPI"
_LISTED = ("threads", "processes")


class Surroundings:
    """Runs calls in the state that this process has when it is made, and restores that state after each call."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._state = ProcessState()
        self._descriptors = StandardDescriptors()
        self._baseline = Baseline()
        self._communicators = CommunicatorSupply()
        self._changed: list[str] = []
        self._context: Context | None = None  # while a call runs: the one around it
        self._about = ("", "")  # the last call: its task, and its function
        self._calls = 0  # since the last exact comparison
        self._looked = True  # whether there was a look since the last call
        self._slow_due = 0.0
        self._usable = True
        self._told: set[tuple[str, str]] = set()
        self._standing: list[Leftover] = []  # found by the last exact comparison
        self.suspicious = False
        """Whether the last call may have left something that cannot be restored."""
        self.severity = Severity.NONE
        """Need to replace the group, as the last :meth:`look` has found."""

    def run(
        self, call: Callable[[], RankResult], task_file: TaskFile, name: str, changes: Changes | None
    ) -> RankResult:
        """Run a call, perhaps inside a call that waits for it.

        ``name`` is that of the function. ``changes`` are those that the ``init_function`` of its session has made.
        """
        if self._context is not None:
            return self._run_inside(call, task_file, changes)
        self._context = copy_context()
        if _MPI in sys.modules:
            self._communicators.prepare()
        if not self._looked and time.monotonic() >= self._slow_due:  # after a pause in a quick succession of calls
            self._restore_slow_parts()
        try:
            return self._run(call, task_file, changes, self._context.copy())
        finally:
            self._context = None
            self._usable = self._descriptors.restore(output=not self._capture.active)
            if self._changed:  # again: a stream whose descriptor was closed could not be opened before
                self._state.restore()
            self._capture.enable_stacks()
            self._about = task_file.task, name
            self._calls += 1
            self._looked = False
            self.suspicious = self._is_suspicious()
            if changes is not None and changes.parts:  # perhaps other parts, for this session alone
                self._slow_due = 0.0

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

    def accepting(self) -> AbstractContextManager[None]:
        """Return a context; what it leaves, such as an ``init_function``, belongs to this process."""
        return self._baseline.accepting()

    def look(self) -> Severity:
        """Restore the other parts of the state, and find what the last call has left. Harmless when repeated.

        It is called after the outcome was published, which need not wait for it.
        """
        if self._looked:
            return self.severity
        self._looked = True
        if time.monotonic() >= self._slow_due:
            self._restore_slow_parts()
        if self.suspicious or self._state.unrestorable or self._baseline.has_other_threads():
            self.suspicious = False
            found = self._find()
            self._tell(found)
            self._calls = 0
            self.severity = max((each.severity for each in found), default=Severity.NONE)
        return self.severity

    def _is_suspicious(self) -> bool:
        try:
            return (
                self._baseline.is_suspicious()
                or (_MPI in sys.modules and self._communicators.is_suspicious())
                or not self._usable
                or bool(self._state.unrestorable)
            )
        except Exception:  # noqa: BLE001  a function may have replaced anything
            return True

    def _restore_slow_parts(self) -> None:
        self._slow_due = time.monotonic() + SLOW_INTERVAL
        self._state.restore_slow_parts()

    def _find(self) -> list[Leftover]:
        try:
            found = self._baseline.find() + self._communicators.find()
        except Exception as error:  # noqa: BLE001  an object of a function may raise anything
            found = []
            log.warning("It cannot be found out what a task has left: %r", error)
        if not self._usable:
            found.append(Leftover("closed descriptors", "descriptors of the worker closed", Severity.URGENT))
        if self._state.unrestorable:
            reasons = ", ".join(f"{name} ({reason})" for name, reason in self._state.unrestorable.items())
            found.append(Leftover("state", f"a state that cannot be restored: {reasons}"))
        return found

    def _tell(self, found: list[Leftover]) -> None:
        """Log what was found, once for each kind and function."""
        task, name = self._about
        texts = {each.text for each in self._standing if each.kind in _LISTED}
        kinds = {each.kind for each in self._standing if each.kind not in _LISTED}
        new = [
            each
            for each in found
            if each.kind not in kinds and each.text not in texts and (each.kind, name) not in self._told
        ]
        self._standing = found
        if new:
            self._told.update((each.kind, name) for each in new)
            others = ", or a task shortly before it," if self._calls > 1 else ""
            log.warning("Task %s (%s)%s has left %s.", task, name, others, "; ".join(each.text for each in new))

    def end_leftovers(self, seconds: float) -> bool:
        """End what calls have left; return whether something is left that could hold up the end of this process.

        Threads and processes get some seconds to end by themselves.
        """
        return self._baseline.end(seconds)

    def close(self) -> None:
        """Free the descriptors after the last call."""
        self._descriptors.close()


def _own_decimal_context() -> None:
    """Replace the decimal context by a copy: functions change the object, which copies of a context share."""
    decimal = sys.modules.get("decimal")
    if decimal is not None:
        decimal.setcontext(decimal.getcontext().copy())
