"""Direct collection: a thread that waits for the only pending task takes its result from the spool itself.

So one call at a time needs no hand-over from the collector thread to the waiting thread::

    collector thread    delivers a result, rests ......................... lists again, after a quiet moment
    waiting thread                        submit, result(): watch, read, set the result; submit, ...

One thread at a time uses the directory watcher and the delivery: the collector thread, except while it rests. It rests
after a result for which a thread had waited in ``result()``, while no task is pending. All that needs more than the
result of one task ends the rest: a second task, a callback, a wait for several futures, the end of the session.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from spoolpool.format.names import parse_task_file

if TYPE_CHECKING:
    from spoolpool.client.delivery import Delivery
    from spoolpool.client.futures import TaskFuture
    from spoolpool.client.pending import PendingTasks
    from spoolpool.system.watch import DirectoryWatcher

LINGER = 0.02
"""Seconds without a call after which the collector thread continues; also the longest wait of a waiting thread."""
_LONGEST = 0.5  # seconds of a rest: the collector thread has other duties
_SHORTEST = 0.001  # seconds; the timeouts of poll(2) are not shorter


class DirectCollection:
    """Rest of the collector thread, and collection by the thread that waits for the only pending task.

    ``pending``, ``watch`` and ``delivery`` are those of the collector.
    """

    def __init__(self, pending: PendingTasks, watch: DirectoryWatcher, delivery: Delivery) -> None:
        self._pending = pending
        self._watch = watch
        self._delivery = delivery
        self._gate = threading.Lock()  # released to end a pause of the collector thread
        self._gate.acquire()
        self._resting = False
        self._recalled = False
        self._holder = 0  # thread that collects while the collector thread rests
        self._awaited = False  # whether the last result was awaited by a thread in result()
        self._used_at = 0.0
        self._collected = False

    def after_fork(self) -> None:
        """Forget the threads of the parent."""
        self._resting, self._recalled, self._holder = False, True, 0

    # -- the collector thread

    def rest(self) -> bool:
        """Leave the results to the threads that wait for them; returns whether they have collected any.

        Does nothing unless the last result was awaited by one, and no task is pending. Ends after a quiet moment.
        """
        with self._pending.lock:
            if not self._awaited or self._pending:
                return False
            self._gate.acquire(blocking=False)  # released for an earlier rest
            self._recalled = self._collected = False
            self._resting = True
        self._used_at = time.monotonic()
        end = self._used_at + _LONGEST
        while True:
            self._gate.acquire(timeout=LINGER)
            now = time.monotonic()
            with self._pending.lock:
                over = self._recalled or now >= end or now >= self._used_at + LINGER
                if over and not self._holder:
                    self._resting = False
                    break
                if self._holder and (self._recalled or now >= end):
                    self._recalled = True
                    self._watch.wake()
        self._delivery.discard_delivered()
        return self._collected

    # -- any thread

    def recall(self) -> None:
        """End the rest of the collector thread soon. May be called at any moment, also in a garbage collection."""
        if not self._resting:
            return
        self._recalled = True
        if self._holder == threading.get_ident():  # in a signal handler: the wait that it interrupts goes on after it
            self._holder = 0
        self._open_gate()

    def observe(self) -> None:
        """Note that results are not awaited by a thread in ``result()`` alone: the collector thread is needed."""
        self._awaited = False
        self.recall()

    def collect(self, future: TaskFuture, timeout: float | None) -> float | None:
        """Collect the result of a task if the collector thread rests, and wait for it a moment; return the time left.

        Returns without the result if that takes longer, or if it needs the collector thread, which continues then.
        Raises the exceptions of signal handlers, and that of unpickling the value.
        """
        if not self._resting:
            self._awaited = self._pending.is_alone(future)
            return timeout
        if timeout is not None and timeout < _SHORTEST:
            return timeout
        begun = time.monotonic()
        me, holds = threading.get_ident(), False
        try:
            with self._pending.lock:
                if self._holder == me:  # in a signal handler or a garbage collection
                    self.recall()
                elif not (self._ended() or self._holder) and self._pending.is_alone(future):
                    holds, self._holder = True, me
            if holds:
                self._delivery.discard_delivered()  # of the call before: now the worker has something to do
                self._wait(future, me, begun + (LINGER if timeout is None else min(LINGER, timeout)))
        finally:
            if holds:
                if self._holder == me:
                    self._holder = 0  # at once after the exception of a signal handler: no call comes before
                if future.has_ended:
                    self._used_at = time.monotonic()
                else:
                    self.recall()
        return timeout if timeout is None else max(0.0, timeout - (time.monotonic() - begun))

    def _ended(self) -> bool:
        """Return whether the collector thread collects itself, or is about to; under the lock this is certain."""
        return self._recalled or not self._resting

    def _wait(self, future: TaskFuture, me: int, end: float) -> None:
        while self._holder == me and not self._recalled and not future.has_ended:
            left = end - time.monotonic()
            if left <= 0 or not self._watch.wait(left, spins=True):
                return
            names = self._watch.new_names()
            if names is None:  # woken, or the inbox was replaced
                return
            for name in (name for each in names.values() for name in each):
                task_file = parse_task_file(name)
                if task_file is not None and task_file.task == future.task:
                    if self._delivery.deliver_alone(future, task_file):
                        self._collected = True
                    return

    def _open_gate(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is open
            self._gate.release()
