"""State of the interpreter and of its process, which a task may change, and which the next task must not find changed.

A snapshot is taken before the first task and compared after each one. The comparison takes a few microseconds if the
task has left nothing; only what differs is restored. Values of ``contextvars`` (the decimal context, and numpy's error
state and print options since numpy 2) need no snapshot: each task runs in a copy of the context.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # its functions make no enums
import contextlib
import faulthandler
import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from typing import Any, NamedTuple

from spoolpool.calls import interpreter_parts, process_parts
from spoolpool.calls.process_parts import Part

log = logging.getLogger(__name__)

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
SLOW_INTERVAL = 0.001
"""Seconds between restorations of the parts of the state that take longer to compare."""
_ATTEMPTS = 5  # a signal handler that a task has left may raise in the middle of a restoration


class Changes(NamedTuple):
    """Changes of the state by the ``init_function`` of a session, which all tasks of the session are to find."""

    parts: list[tuple[Part, Any]]
    context: Context

    def apply(self) -> None:
        """Make the changes again."""
        for part, value in self.parts:
            try:
                part.put(value)
            except Exception as error:  # noqa: BLE001  the other parts are to be changed all the same
                log.warning("The %s of the init_function cannot be set again: %s", part.name, error)


class ProcessState:
    """Snapshot of the state of this process. The thread that takes it is the one that restores it."""

    def __init__(self) -> None:
        self._parts = process_parts.parts() + interpreter_parts.parts()
        if threading.current_thread() is threading.main_thread():
            self._parts += process_parts.signal_parts()
            self._timers: dict[int, tuple[float, float]] = {timer: signal.getitimer(timer) for timer in _TIMERS}
        else:
            self._timers = {}
        self._unused_timers = [timer for timer, (left, _) in self._timers.items() if not left]
        self._taken = time.monotonic()
        self._saved = [self._keep(part) for part in self._parts]
        self._comparisons = self._compared_now()
        self._slow_parts = process_parts.slow_parts()
        self._slow_saved = [self._keep(part) for part in self._slow_parts]
        self.unrestorable: dict[str, str] = {}
        """Parts that the last restoration could not restore, with the reasons."""
        self.context = copy_context()
        """Values of ``contextvars`` at the time of the snapshot."""

    @staticmethod
    def _keep(part: Part) -> Any:
        value = part.get()
        return value if part.keep is None else part.keep(value)

    def _compared_now(self) -> list[Callable[[], bool]]:
        """Return functions that return whether all parts but the slow ones are as now."""
        found = [process_parts.comparison(), interpreter_parts.comparison()]
        return [*found, process_parts.signal_comparison()] if self._timers else found

    def restore(self, *, slow: bool = False) -> list[str]:
        """Restore the state; return the names of the parts that were different. It never raises.

        ``slow`` restores also the parts that take longer to compare.
        """
        for _ in range(_ATTEMPTS):
            try:
                self._stop_timers(self._unused_timers if slow else self._unused_timers[:1])
                faulthandler.cancel_dump_traceback_later()
                if not self._is_same(slow=slow):
                    return self._restore_differences(slow=slow)
                if self.unrestorable:
                    self.unrestorable = {}
                return []
            except BaseException:  # noqa: BLE001  a getter of a replaced object, or a signal handler that the task left
                with contextlib.suppress(BaseException):
                    return self._restore_differences(slow=slow)
        log.warning("The state of the process cannot be restored after a task.")
        return []

    def _is_same(self, *, slow: bool) -> bool:
        """Return whether nothing differs from the snapshot."""
        for compare in self._comparisons:
            if not compare():
                return False
        return not slow or self._are_slow_parts_same()

    def restore_slow_parts(self) -> None:
        """Do as :meth:`restore` with ``slow``, for a caller that has restored the other parts since the last task."""
        with contextlib.suppress(BaseException):  # as above
            self._stop_timers(self._unused_timers[1:])
            if not self.unrestorable and self._are_slow_parts_same():
                return
        self.restore(slow=True)

    def _are_slow_parts_same(self) -> bool:
        return [part.get() for part in self._slow_parts] == self._slow_saved

    @staticmethod
    def _stop_timers(timers: Sequence[int]) -> None:
        # without a look, which would be another system call; an alarm alone rings while a task only waits
        if any([_signal.setitimer(timer, 0)[0] for timer in timers]):  # noqa: C419  all of them
            log.info("A task left an alarm armed. It was stopped.")

    def resume(self) -> None:
        """Restore the state in the middle of a task, after another one has run inside it; its timers go on."""
        self.restore()
        passed = time.monotonic() - self._taken
        for timer, (left, interval) in self._timers.items():
            if left:
                signal.setitimer(timer, max(1e-6, left - passed), interval)

    def changes(self) -> Changes:
        """Return what has changed since the snapshot."""
        return Changes([(part, self._keep(part)) for part, _ in self.differences(slow=True)], copy_context())

    def _restore_differences(self, *, slow: bool) -> list[str]:
        changed = []
        self.unrestorable = {}
        for part, saved in self.differences(slow=slow):
            changed.append(part.name)
            try:
                part.put(saved)
                if part.accepts:  # else it would differ after each task from now on
                    self._saved[self._parts.index(part)] = part.get()
            except Exception as error:  # noqa: BLE001  the other parts are to be restored all the same
                self.unrestorable[part.name] = str(error)
        if changed:
            if not self.differences():  # what libraries have added belongs to the snapshot
                self._comparisons = self._compared_now()
            log.debug("Restored after a task: %s", ", ".join(changed))
        return changed

    def differences(self, *, slow: bool = False) -> list[tuple[Part, Any]]:
        """Return the parts that differ from the snapshot, with their values in the snapshot."""
        found = []
        pairs = [*zip(self._parts, self._saved, strict=True)]
        if slow:
            pairs += zip(self._slow_parts, self._slow_saved, strict=True)
        for part, saved in pairs:
            try:
                present = part.get()
                same = present is saved or bool(present == saved)
            except Exception:  # noqa: BLE001  an object that a task has put there may raise anything
                same = False
            if not same:
                found.append((part, saved))
        return found
