"""Run of the calls of a pack: each has its outcome in the log of the claim before the next one begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from spoolpool.calls.interruption import PartOfPack
from spoolpool.calls.isolation import PickledCall, run_apart, run_calls
from spoolpool.calls.run import RankResult, failure_report
from spoolpool.context import CurrentTask, current_task
from spoolpool.errors import TaskCancelled
from spoolpool.protocol.outcome_log import OutcomeLog
from spoolpool.protocol.packs import PackedCall
from spoolpool.system.user_code import is_interrupt
from spoolpool.worker.group import WatchPart


class PackRun:
    """Run of the calls of a pack from the first one without an outcome, as the call of its task.

    ``attempt`` is that of this first call. From its second attempt on, it and the calls after it run in a child
    process: one of them may have ended a worker (:mod:`spoolpool.calls.isolation`). ``append`` writes an outcome that
    was begun at a time, or returns False if the pack was cancelled. After each call ``may_go_on`` does the duties of
    the worker, given the monotonic time at which the call began, and tells whether another one may begin. ``on_call``
    is called before each call. ``is_cancelled`` tells whether the call with a number is not to be run; without one, the
    whole pack.
    """

    def __init__(
        self,
        outcomes: OutcomeLog,
        calls: Sequence[PackedCall],
        attempt: int,
        *,
        append: Callable[[RankResult, float], bool],
        may_go_on: Callable[[float], bool],
        on_call: Callable[[], None],
        is_cancelled: Callable[[int | None], bool],
    ) -> None:
        self._outcomes = outcomes
        self._calls = calls
        self._attempt = attempt
        self._append = append
        self._may_go_on = may_go_on
        self._on_call = on_call
        self._is_cancelled = is_cancelled
        self.error: BaseException | None = None
        """Error of the spool that ended the run; it is not one of a call."""
        self._started = self._begun = 0.0  # of the call that runs: by the host's clock, and by the monotonic one
        self.is_cancelled = False
        """Whether the run ended because the whole pack was cancelled."""

    @property
    def is_done(self) -> bool:
        """Whether each call has its outcome."""
        return self._outcomes.done >= len(self._calls)

    def __call__(self, watch: WatchPart) -> None:
        """Run the calls, until the end, a reason to stop, or an error. A signal interrupts a call, not the run."""
        try:
            self._run(watch)
        except BaseException as error:
            if is_interrupt(error):
                raise
            self.error = error

    def _run(self, watch: WatchPart) -> None:
        before = self._outcomes.done
        self._skip_cancelled()
        first = self._attempt if self._outcomes.done == before else 1
        for result in self._results(current_task(), first, watch):
            if not self._append(result, self._started):
                self.is_cancelled = True
                return
            if self._attempt > 1:
                self._outcomes.sync_always()
            if not self.is_done and not self._may_go_on(self._begun):
                return

    def _results(self, task: CurrentTask, first: int, watch: WatchPart) -> Iterator[RankResult]:
        """Return the results of the calls; ``first`` is the attempt of the first one."""

        def watch_next() -> AbstractContextManager[None]:
            number = self._outcomes.done
            return watch(PartOfPack(number, self._calls[number].task))

        calls = self._pickled()
        return run_calls(calls, task, first, watch_next) if self._attempt > 1 else run_apart(calls, task, watch_next)

    def _pickled(self) -> Iterator[PickledCall]:
        """Yield the calls that are to be run; each is asked for when the one before has its outcome."""
        while True:
            self._skip_cancelled()
            if self.is_done or self.is_cancelled:
                return
            call = self._calls[self._outcomes.done]
            self._on_call()
            self._started, self._begun = time.time(), time.monotonic()
            parts = bytes(call.payload), [bytes(each) for each in call.buffers]
            yield (*parts, call.task) if call.task else parts

    def _skip_cancelled(self) -> None:
        """Write the outcomes of the next calls that were cancelled before they began."""
        self.is_cancelled = self.is_cancelled or self._is_cancelled(None)
        while not (self.is_done or self.is_cancelled):
            if not self._is_cancelled(self._outcomes.done):
                return
            cancelled = failure_report(TaskCancelled("The call was cancelled before it began."), 0)
            self.is_cancelled = not self._append(cancelled, time.time())
