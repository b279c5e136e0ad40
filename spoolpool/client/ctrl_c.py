"""End of an executor that is left because of Ctrl-C.

::

    first Ctrl-C ---> waiting calls are taken back ---> a few seconds ---> running calls are interrupted ---> the end
                           |                                |                         |
    second Ctrl-C ---------+--------------------------------+-------------------------+---> groups are killed

In a session with a name the tasks stay in the spool instead, for a later process of the session.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from spoolpool.calls.results import remote_traceback
from spoolpool.client.futures import TaskFuture
from spoolpool.client.pending import PendingTasks
from spoolpool.client.session import SubmitterSession
from spoolpool.errors import BrokenSpool, SpoolpoolError, TaskCancelled

if TYPE_CHECKING:
    from spoolpool.client.executor_runtime import ExecutorRuntime

log = logging.getLogger(__name__)

_GRACE = 3.0  # seconds in which running calls may end by themselves
_TICK = 0.5  # seconds between two attempts to take back calls, since that of a dead worker waits again
_NAMED = 5  # running calls that the message names


def is_ctrl_c(error: BaseException | None) -> bool:
    """Return whether an exception is Ctrl-C of the user of this process, and not the outcome of a task."""
    if error is None or threading.current_thread() is not threading.main_thread():
        return False
    if not isinstance(error, KeyboardInterrupt):
        return type(error).__name__ == "CancelledError" and _has_interrupted_coroutine()
    return not isinstance(error, TaskCancelled) and remote_traceback(error) is None


def _has_interrupted_coroutine() -> bool:
    """Return whether ``asyncio.run`` has answered a Ctrl-C by a cancellation of the main coroutine."""
    handler = signal.getsignal(signal.SIGINT)
    runner = getattr(getattr(handler, "func", None), "__self__", None)
    return bool(getattr(runner, "_interrupt_count", 0))  # a private name: without it only the message is late


def ended_by_ctrl_c() -> bool:
    """Return whether the interpreter ends because of a Ctrl-C that nothing caught."""
    last = getattr(sys, "last_type", None)
    interactive = hasattr(sys, "ps1")  # there it was an earlier command that was interrupted
    return isinstance(last, type) and issubclass(last, KeyboardInterrupt) and not interactive


def end_interrupted(ended: ExecutorRuntime | SubmitterSession) -> None:
    """End an executor after Ctrl-C; returns when its groups have ended. Another Ctrl-C, which is passed on, kills them.

    Standard error says what waits, what runs, and what another Ctrl-C does.
    """
    session = _session(ended)
    try:
        count = session.pending.count_calls()
        if session.keeps:
            if count:
                _say(f"Interrupted: {count} unfinished call(s) stay in session {session.name} of {session.spool.path}.")
            session.detach()
            ended.close()
        else:
            if count:
                _say(
                    f"Interrupted: {count} unfinished call(s). Those that wait are taken back, those that run are "
                    f"interrupted in {_GRACE:g} s. Another Ctrl-C ends at once."
                )
            ended.close()
            _end_calls(session.pending)
        ended.join()
    except KeyboardInterrupt:
        _say("Interrupted again: ending at once.")
        kill(ended)
        raise


def kill(ended: ExecutorRuntime | SubmitterSession) -> None:
    """End an executor at once: pending futures fail, groups on this host are killed, a temporary spool is removed."""
    # first: no group is started for the calls any more
    _session(ended).fail(BrokenSpool("The executor was ended by a second Ctrl-C."))
    if not isinstance(ended, SubmitterSession):
        ended.kill_groups()
    ended.close()
    ended.join()


def _session(ended: ExecutorRuntime | SubmitterSession) -> SubmitterSession:
    return ended if isinstance(ended, SubmitterSession) else ended.session


def _end_calls(pending: PendingTasks) -> None:
    for call in pending.deferred():
        call.cancel()
    running = _take_back(pending.futures())
    if running:
        _say(f"Running: {_describe(running)}.")
    due = time.monotonic() + _GRACE
    requested: set[str] = set()
    while running and not pending.wait(_TICK):
        running = _take_back(pending.futures())
        for future in running if time.monotonic() >= due else ():
            if future.task not in requested:
                with contextlib.suppress(OSError, SpoolpoolError):  # the next round does it
                    pending.request_cancel(future.task)
                    requested.add(future.task)


def _take_back(futures: Sequence[TaskFuture]) -> list[TaskFuture]:
    """Cancel the calls that no worker has claimed; return the others."""
    return [future for future in futures if not _cancel(future)]


def _cancel(future: Future[object]) -> bool:
    try:
        return future.cancel()
    except (OSError, SpoolpoolError) as error:
        log.info("A call cannot be taken back now: %s", error)
        return False


def _describe(futures: Sequence[TaskFuture]) -> str:
    names = [f"{future.header.name} ({future.task})" for future in futures[:_NAMED]]
    return ", ".join(names) + (f" and {len(futures) - _NAMED} more" if len(futures) > _NAMED else "")


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # standard error is closed
        sys.stderr.write(f"spoolpool: {text}\n")
        sys.stderr.flush()
