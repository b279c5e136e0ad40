"""Calls that share a task, run in a child process: for a task with which a worker has died.

One of the calls may be the cause. In a child it cannot end the worker again::

    worker                                       child process
    for each call:  the pickled call      ->     run it
                    its pickled result    <-
                    (the child died)             that call is run again in a new child,
                                                 and lost when the attempts of the task are used up

The other calls get their results from this attempt, and the task ends with the results of all.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import IO, TYPE_CHECKING, Any

from spoolpool.calls import forks, pickling, run
from spoolpool.calls.definitions import become_worker
from spoolpool.calls.process_state import SLOW_INTERVAL, ProcessState
from spoolpool.calls.run import RankResult, failure_report, hint_at_environment, value_report, worker_id
from spoolpool.context import CurrentTask, assistance, assisted_spool, assisting, running
from spoolpool.errors import LostAttempt, WorkerLost
from spoolpool.format.envelope import Buffer
from spoolpool.system.crash import crash_stack
from spoolpool.system.environment import without_mpi
from spoolpool.system.parent import die_with_parent
from spoolpool.system.processes import describe_status, hostname
from spoolpool.system.user_code import is_interrupt

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PickledCall = tuple[bytes, list[bytes]] | tuple[bytes, list[bytes], str]
"""Pickle of ``(function, args, kwargs)``, its buffers, and the id of the call if it has one."""

Watch = Callable[[], AbstractContextManager[None]]
"""Function that returns the context in which the next call runs, and in which a signal may interrupt it."""

_START = """\
import sys
sys.path[:] = eval(sys.argv[1])  # before any import: files in the working directory may have the names of modules
from spoolpool.calls.isolation import serve
serve(*map(int, sys.argv[2:]))
"""


def load(payload: Buffer, buffers: Iterable[Buffer]) -> Any:
    """Unpickle a call or a result with buffers of its own."""
    return pickling.loads(payload, [memoryview(bytearray(each)) for each in buffers])


def run_apart(
    calls: Iterable[PickledCall], task: CurrentTask | None, watch: Watch | None = None
) -> Iterator[RankResult]:
    """Run the calls of a task one after the other in this process; each finds the state that the first one has found.

    With a task, each has the context of a task of its own. With ``watch``, an interruption ends one call; without it,
    it is raised here.
    """
    state = ProcessState()
    slow_due = time.monotonic() + SLOW_INTERVAL
    for payload, buffers, *ids in calls:
        context = state.context.copy()
        try:
            with watch() if watch is not None else nullcontext():
                if task is None:
                    result = context.run(run_pickled, payload, buffers, "")
                else:
                    result = context.run(_run_in_task, task.part(*ids), payload, buffers)
        except BaseException as error:  # noqa: BLE001  raised again unless it is an interruption
            result = _interrupted(error, watch)
        slow = time.monotonic() >= slow_due
        state.restore(slow=slow)
        yield result
        if slow:
            slow_due = time.monotonic() + SLOW_INTERVAL


def _interrupted(error: BaseException, watch: Watch | None) -> RankResult:
    """Return the result of a watched call that a signal has interrupted; raise any other exception again."""
    if watch is None or not is_interrupt(error):
        raise error
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return failure_report(error.with_traceback(frames), 0)


def _run_in_task(task: CurrentTask, payload: bytes, buffers: Sequence[bytes]) -> RankResult:
    with running(task):
        return run_pickled(payload, buffers, task.worker)


def run_pickled(payload: bytes, buffers: Sequence[bytes], worker: str) -> RankResult:
    """Run a pickled call; return its value or its exception."""
    try:
        function, args, kwargs = load(payload, buffers)
        if worker:
            kwargs.update(worker_id(function, args, kwargs, worker))
        value = forks.call(function, args, kwargs)
    except BaseException as error:  # of this call alone, but for an interruption of the whole task
        if is_interrupt(error):
            raise
        hint_at_environment(error)
        frames = error.__traceback__
        return failure_report(BaseException.with_traceback(error, frames and frames.tb_next), 0)
    return value_report(value, 0)


def needs_isolation(task: CurrentTask) -> bool:
    """Return whether a worker may have died with a call of this task before.

    In a group of several ranks its calls cannot be isolated: a child process is no rank of it.
    """
    return task.attempt > 1 and task.size == 1


def run_calls(
    calls: Iterable[PickledCall], task: CurrentTask, attempt: int | None = None, watch: Watch | None = None
) -> Iterator[RankResult]:
    """Run the calls of a task one after the other in child processes.

    ``attempt`` is the number of the attempt of the first call; that of the others is 1. Without it, the attempt of each
    is that of the task. ``watch`` is that of :func:`run_apart`.
    """
    child: _Child | None = None
    first = task.attempt if attempt is None else attempt
    try:
        for call in calls:
            lost: list[LostAttempt] = []
            result: RankResult | None = None
            while result is None and first + len(lost) <= max(first, task.attempts):
                child = child or _Child(task)
                try:
                    with watch() if watch is not None else nullcontext():
                        result = child.run(call)
                except BaseException as error:  # noqa: BLE001  raised again unless it is an interruption
                    result = _interrupted(error, watch)
                    child.close()
                    child = None
                    break
                if result is None:
                    lost.append(child.attempt(task, first + len(lost)))
                    child.close()
                    child = None
            yield result or _lost_report(task, lost)
            first = task.attempt if attempt is None else 1
    finally:
        if child is not None:
            child.close()


def _lost_report(task: CurrentTask, lost: list[LostAttempt]) -> RankResult:
    """Return the result of a call with which each child died."""
    last = lost[-1]
    text = (
        f"The worker of task {task.id} died, and so did each process in which this call of it was run alone, the last "
        f"one in attempt {last.attempt}: {describe_status(last.status or 0)}, host {last.host}, pid {last.pid}."
    )
    if last.stack:
        text += "\nThe stack at its end:" + "".join(f"\n  {line}" for line in last.stack.split("\n"))
    earlier = [each for each in task.lost_attempts() if each.attempt < lost[0].attempt]
    return failure_report(WorkerLost(text, [*earlier, *lost]), 0)


def _connections(send: int, receive: int) -> tuple[Connection, Connection]:
    """Return connections over two pipes; a worker loads their module only when it needs one."""
    from multiprocessing.connection import Connection

    return Connection(send, readable=False), Connection(receive, writable=False)


class _Child:
    """Child process that runs calls for a task."""

    def __init__(self, task: CurrentTask) -> None:
        import tempfile

        self._stack: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed with the child
        calls, own_end = os.pipe()
        other_end, results = os.pipe()
        self._send, self._receive = _connections(own_end, other_end)
        fds = (calls, results, self._stack.fileno())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, repr(sys.path), *map(str, fds), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                env=without_mpi(os.environ),
                pass_fds=fds,
                start_new_session=True,  # a signal to the process group asks the worker to end after its task
            )
        finally:
            os.close(calls)
            os.close(results)
        fields = {name: getattr(task, name) for name in ("id", "attempt", "attempts", "spool", "worker", "ends")}
        with contextlib.suppress(OSError):  # it has died already: its first call will tell
            self._send.send((fields, task.lost_attempts(), assisted_spool(), run.worker_number))

    def run(self, call: PickledCall) -> RankResult | None:
        """Run a call; return None if the child died."""
        try:
            self._send.send(call)
            while isinstance(answer := self._receive.recv(), str):  # a call waits for tasks of its own
                assist = assistance(assisted_spool())
                self._send.send(assist is not None and assist(answer))
        except (EOFError, OSError):
            return None
        payload, buffers, failure = answer
        return RankResult(payload, buffers, failure)

    def attempt(self, task: CurrentTask, number: int) -> LostAttempt:
        """Return how the child died, in the attempt of this number of a call."""
        status = self._process.wait()
        self._stack.seek(0)
        stack = self._stack.read()
        with contextlib.suppress(OSError):
            os.write(2, stack)  # where a crash of the worker itself would have written it
        return LostAttempt(
            attempt=number,
            worker=task.worker,
            host=hostname(),
            pid=self._process.pid,
            rank=0,
            status=status,
            stack=crash_stack(stack),
        )

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.wait()
        self._send.close()
        self._receive.close()
        self._stack.close()


def serve(calls: int, results: int, stack: int, parent: int) -> None:
    """Run the calls that come through a pipe, in the child process; the arguments are descriptors and a pid."""
    die_with_parent(parent)
    become_worker()
    faulthandler.enable(stack)
    send, receive = _connections(results, calls)
    fields, lost, assisted, run.worker_number = receive.recv()

    def assist(submitter: str) -> bool:
        send.send(submitter)
        return bool(receive.recv())

    def received() -> Iterator[PickledCall]:
        while True:
            try:
                yield receive.recv()
            except EOFError:
                return

    task = CurrentTask(**fields, _lost_attempts=lambda _: lost)
    with running(task), assisting(assisted, assist) if assisted else nullcontext():
        for result in run_apart(received(), task):
            answer = bytes(result.payload), [bytes(each) for each in result.buffers], result.failure
            send.send_bytes(pickle.dumps(answer, protocol=5))
