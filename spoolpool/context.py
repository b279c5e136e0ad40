"""What a running function can ask about its task: :func:`current_task`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spoolpool.errors import SpoolpoolError

if TYPE_CHECKING:
    from spoolpool.protocol.progress import Progress


@dataclass(frozen=True, kw_only=True)
class CurrentTask:
    """The task that runs."""

    __module__ = "spoolpool"

    id: str
    """Task id."""
    attempt: int
    """Which attempt this is, from 1."""
    spool: str = ""
    """Directory of the spool that it came from: ``Executor(spool=current_task().spool)`` submits to it."""
    worker: str
    """Id of the worker group."""
    rank: int = 0
    """This process's rank in the group."""
    size: int = 1
    """Ranks of the group."""
    comm: Any = None
    """The group's communicator (``mpi4py.MPI.Comm``); None in a group of one rank without MPI."""
    ends: float | None = None
    """End of the group's job in seconds since the epoch, if it is known."""
    _scratch: list[str] = field(default_factory=list)
    _progress: Progress | None = None

    def remaining(self) -> float | None:
        """Seconds until the group's job ends; None if there is no end or it is not known."""
        import time

        return None if self.ends is None else max(0.0, self.ends - time.time())

    def progress(self, fraction: float | None, text: str = "") -> None:
        """Say how far the task is, for people who look: ``fraction`` from 0 to 1, or None if it is not known.

        Call it as often as you like: it is written down about twice a second. What ranks other than 0 say is not.
        """
        if self._progress is not None:
            self._progress.report(self.worker, self.id, fraction, text)

    @property
    def scratch(self) -> str:
        """A directory of this rank's own, below ``TMPDIR``, that is removed when the task ends."""
        if not self._scratch:
            self._scratch.append(tempfile.mkdtemp(prefix=f"spoolpool-{self.id[-10:]}-"))
        return self._scratch[0]

    def clean(self) -> None:
        """Remove the scratch directory and forget the progress; done when the task ends."""
        if self._progress is not None:
            self._progress.finish()
        while self._scratch:
            shutil.rmtree(self._scratch.pop(), ignore_errors=True)


_current: ContextVar[CurrentTask | None] = ContextVar("spoolpool_current_task", default=None)


def current_task() -> CurrentTask:
    """The task whose function calls this. Raises :class:`SpoolpoolError` outside of a task."""
    task = _current.get()
    if task is None:
        raise SpoolpoolError(
            "current_task() was called outside of a task: only a function that a worker runs has one. "
            "Threads that it starts get it by contextvars.copy_context()."
        )
    return task


Assist = Callable[[str], bool]
"""Runs one waiting task of a submitter in this thread; whether there was one."""

_assist: ContextVar[tuple[str, Assist] | None] = ContextVar("spoolpool_assist", default=None)


class assisting:  # noqa: N801  a context, as contextlib's; a generator would cost three times as much at each task
    """Let a function that waits for tasks of its own spool run them meanwhile."""

    def __init__(self, spool: str, assist: Assist) -> None:
        self._given = spool, assist

    def __enter__(self) -> None:
        self._before = _assist.set(self._given)

    def __exit__(self, *_: object) -> None:
        _assist.reset(self._before)


def assistance(spool: str) -> Assist | None:
    """What runs tasks of a spool while a task waits for them; None outside of a task, and where the group cannot."""
    found = _assist.get()
    return found[1] if found is not None and found[0] == spool else None


class running:  # noqa: N801  as above
    """Make ``task`` the current one, and remove its scratch directory afterwards."""

    def __init__(self, task: CurrentTask) -> None:
        self._task = task

    def __enter__(self) -> None:
        self._before = _current.set(self._task)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._before)
        self._task.clean()


current_task.__module__ = "spoolpool"
