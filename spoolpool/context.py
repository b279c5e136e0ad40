"""Task context of a running function: :func:`current_task`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from spoolpool.errors import LostAttempt, SpoolpoolError
from spoolpool.system.environment import without_mpi

if TYPE_CHECKING:
    from spoolpool.protocol.progress import Progress


@dataclass(frozen=True, kw_only=True)
class CurrentTask:
    """The running task. It is valid only while the task runs, and cannot be pickled."""

    __module__ = "spoolpool"

    id: str
    """Task id."""
    attempt: int
    """Number of the attempt, from 1."""
    spool: str = ""
    """Directory of the task's spool: ``Executor(spool=current_task().spool)`` submits to it."""
    worker: str
    """Id of the worker group."""
    rank: int = 0
    """Rank of this process in the group."""
    size: int = 1
    """Number of ranks of the group."""
    comm: Any = None
    """Communicator of the group (``mpi4py.MPI.Comm``); None in a group of one rank without MPI."""
    ends: float | None = None
    """End of the group's job in seconds since the epoch, if known."""
    attempts: int = 1
    """Limit of the attempts."""
    _shared: str = ""
    _scratch: list[str] = field(default_factory=list)
    _progress: Progress | None = None
    _lost_attempts: Callable[[str], Sequence[LostAttempt]] | None = None

    def part(self, call: str = "") -> CurrentTask:
        """Return the task of one of the calls that share this one, with the id of the call if it has one.

        Its progress is that of the shared task.
        """
        shared = self._shared or self.id
        return replace(
            self,
            id=call or self.id,
            _shared=shared,
            _scratch=[],
            _lost_attempts=lambda _: self.lost_attempts(),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a CurrentTask is valid only while its task runs: send its fields")

    def remaining(self) -> float | None:
        """Return the seconds until the end of the group's job; None if it has no end or the end is unknown."""
        import time

        return None if self.ends is None else max(0.0, self.ends - time.time())

    def progress(self, fraction: float | None, text: str = "") -> None:
        """Report the progress of the task for display: ``fraction`` from 0 to 1, or None if unknown.

        It may be called at any rate; about two reports per second are written. Only rank 0 reports.
        """
        if self._progress is not None:
            self._progress.report(self.worker, self._shared or self.id, fraction, text)

    def lost_attempts(self) -> Sequence[LostAttempt]:
        """Return how the earlier attempts ended whose worker died, as far as there are records of them in the spool."""
        if self._lost_attempts is None or self.attempt == 1:
            return ()
        return [each for each in self._lost_attempts(self.id) if each.attempt < self.attempt]

    def clean_environment(self) -> dict[str, str]:
        """Return the environment of this process without the variables that the MPI of its group has set.

        A program with an MPI of its own needs it, whether it is started by its own ``mpiexec`` or alone: otherwise it
        takes itself for a rank of the group.
        """
        return without_mpi(os.environ)

    @property
    def scratch(self) -> str:
        """Private directory of this rank below ``TMPDIR``; it is removed when the task ends."""
        if not self._scratch:
            import tempfile

            self._scratch.append(tempfile.mkdtemp(prefix=f"spoolpool-{self.id[-10:]}-"))
        return self._scratch[0]

    def clean(self) -> None:
        """Remove the scratch directory and finish the progress; called when the task ends."""
        if self._progress is not None:
            self._progress.finish()
        while self._scratch:
            import shutil

            shutil.rmtree(self._scratch.pop(), ignore_errors=True)


_current: ContextVar[CurrentTask | None] = ContextVar("spoolpool_current_task", default=None)


def task_or_none() -> CurrentTask | None:
    """Return the task of the calling function; None outside of a task."""
    return _current.get()


def current_task() -> CurrentTask:
    """Return the task of the calling function; raise :class:`SpoolpoolError` outside of a task."""
    task = _current.get()
    if task is None:
        raise SpoolpoolError(
            "current_task() was called outside of a task: only a function that a worker runs has a task. "
            "Start its threads with contextvars.copy_context() to give them the task."
        )
    return task


Assist = Callable[[str], bool]
"""Function that runs one ready task of a submitter in this thread; it returns whether there was a task."""

_assist: ContextVar[tuple[str, Assist] | None] = ContextVar("spoolpool_assist", default=None)


class assisting:  # noqa: N801  named like contextlib's; a generator would take three times as long, for each task
    """Context in which a function that waits for tasks of its own spool runs ready tasks meanwhile."""

    def __init__(self, spool: str, assist: Assist) -> None:
        self._given = spool, assist

    def __enter__(self) -> None:
        self._before = _assist.set(self._given)

    def __exit__(self, *_: object) -> None:
        _assist.reset(self._before)


def assisted_spool() -> str:
    """Return the id of the spool whose ready tasks :func:`assistance` can run here; empty if there is none."""
    found = _assist.get()
    return "" if found is None else found[0]


def assistance(spool: str) -> Assist | None:
    """Return the function that runs ready tasks of a spool in this thread.

    None outside of a task, and in a group that cannot run tasks inside a task.
    """
    found = _assist.get()
    return found[1] if found is not None and found[0] == spool else None


class running:  # noqa: N801  as above
    """Context in which ``task`` is the current task; its scratch directory is removed at the end."""

    def __init__(self, task: CurrentTask) -> None:
        self._task = task

    def __enter__(self) -> None:
        self._before = _current.set(self._task)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._before)
        self._task.clean()


current_task.__module__ = "spoolpool"
