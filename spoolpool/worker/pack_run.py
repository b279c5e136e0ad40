"""Run of the calls of a pack: each has its outcome in the log of the claim before the next one begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from spoolpool.calls.isolation import PickledCall, run_apart, run_calls
from spoolpool.calls.run import RankResult
from spoolpool.context import CurrentTask, current_task
from spoolpool.protocol.outcome_log import OutcomeLog
from spoolpool.protocol.packs import PackedCall
from spoolpool.system.user_code import is_interrupt


class PackRun:
    """Run of the calls of a pack from the first one without an outcome, as the call of its task.

    ``attempt`` is that of this first call. From its second attempt on, it and the calls after it run in a child
    process: one of them may have ended a worker (:mod:`spoolpool.calls.isolation`). ``append`` writes an outcome that
    was begun at a time. After each call ``may_go_on`` does the duties of the worker, given the monotonic time at which
    the call began, and tells whether another one may begin. ``on_call`` is called before each call.
    """

    def __init__(
        self,
        outcomes: OutcomeLog,
        calls: Sequence[PackedCall],
        attempt: int,
        *,
        append: Callable[[RankResult, float], None],
        may_go_on: Callable[[float], bool],
        on_call: Callable[[], None],
    ) -> None:
        self._outcomes = outcomes
        self._calls = calls
        self._attempt = attempt
        self._append = append
        self._may_go_on = may_go_on
        self._on_call = on_call
        self.error: BaseException | None = None
        """Error of the spool that ended the run; it is not one of a call."""

    @property
    def is_done(self) -> bool:
        """Whether each call has its outcome."""
        return self._outcomes.done >= len(self._calls)

    def __call__(self) -> None:
        """Run the calls, until the end, a reason to stop, or an error."""
        try:
            self._run()
        except BaseException as error:
            if is_interrupt(error):
                raise
            self.error = error

    def _run(self) -> None:
        self._on_call()
        started, begun = time.time(), time.monotonic()
        for result in self._results(current_task()):
            self._append(result, started)
            if self._attempt > 1:
                self._outcomes.sync_always()
            if self.is_done or not self._may_go_on(begun):
                return
            self._on_call()
            started, begun = time.time(), time.monotonic()

    def _results(self, task: CurrentTask) -> Iterator[RankResult]:
        calls = self._pickled()
        return run_calls(calls, task, self._attempt) if self._attempt > 1 else run_apart(calls, task)

    def _pickled(self) -> Iterator[PickledCall]:
        for payload, buffers, task in self._calls[self._outcomes.done :]:
            parts = bytes(payload), [bytes(each) for each in buffers]
            yield (*parts, task) if task else parts
