"""Base of worker groups: the call of a task, and its execution on one rank."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from spoolpool.calls.interruption import Interrupter, PartOfPack
from spoolpool.calls.leftovers import Severity
from spoolpool.calls.results import DependencyValue
from spoolpool.calls.run import InitializerCache, RankResult, run_call
from spoolpool.calls.usage import UsageMeter
from spoolpool.context import CurrentTask
from spoolpool.errors import LostAttempt
from spoolpool.format import headers
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile
from spoolpool.worker.capture import Capture
from spoolpool.worker.mpi_messages import Content
from spoolpool.worker.surroundings import Surroundings

if TYPE_CHECKING:
    from spoolpool.protocol.object_cache import ObjectCache
    from spoolpool.protocol.progress import Progress
    from spoolpool.worker.rank_guard import RankGuard


WatchPart = Callable[[PartOfPack], AbstractContextManager[None]]
"""Function that returns the context in which one call of a pack is watched."""


class TaskCall(NamedTuple):
    """Call of a claimed task, with everything that the ranks need to run it."""

    task_file: TaskFile
    header: TaskHeader
    content: Content
    """Pickled function and arguments."""
    init: Content | None = None
    """Pickled ``init_function`` of the session; None if there is none, or if the group has called it already."""
    dependencies: Sequence[DependencyValue] = ()
    """Results to which the arguments refer."""
    pack: Callable[[WatchPart], None] | None = None
    """Function that runs the calls of a pack, in a group of one rank; None for a task with one call."""


@dataclass(frozen=True, kw_only=True)
class RankEnvironment:
    """Surroundings of the calls on one rank."""

    spool: str = ""
    """Directory of the spool."""
    ends: float | None = None
    """End of the worker in seconds since the epoch, by this host's clock; for functions that ask."""
    interrupter: Interrupter = field(default_factory=lambda: Interrupter(None, None, 0.0))
    capture: Capture = field(default_factory=lambda: Capture(None))
    guard: RankGuard | None = None
    """Guard of this rank; None for a rank without a launcher."""
    progress: Progress | None = None
    """Progress of the tasks, reported by rank 0."""
    objects: ObjectCache | None = None
    lost_attempts: Callable[[str], Sequence[LostAttempt]] | None = None
    """Function that reads how the attempts of a task ended whose worker died."""

    def share_host(self, node: Any) -> None:
        """Divide duties among the ranks of a host. All of them call this, with their communicator."""
        self.interrupter.share(node)
        if self.guard is not None:
            self.guard.share(node)


class Group(ABC):
    """Ranks that run one call at a time together, as seen from one of them."""

    size = 1
    rank = 0

    def __init__(self, environment: RankEnvironment | None = None, *, supervised: bool = False) -> None:
        self._environment = environment or RankEnvironment()
        self._supervised = supervised
        self._surroundings: Surroundings | None = None
        self._initializers = self._new_initializers()
        self._meter = UsageMeter()
        self.severity = Severity.NONE
        """Need to replace the group, because of what tasks have left on any rank."""

    @property
    def tainted(self) -> bool:
        """Whether an interrupted call may have left something behind; then a supervisor replaces the group."""
        return self._supervised and self._environment.interrupter.interrupted

    def _new_initializers(self) -> InitializerCache:
        return InitializerCache(lambda: nullcontext() if self._surroundings is None else self._surroundings.accepting())

    def is_initialized(self, init: str) -> bool:
        """Return whether this ``init_function`` was called in the group."""
        return self._initializers.knows(init)

    def watch_long_calls(self, action: Callable[[str], None]) -> None:
        """Call ``action`` from a thread, with the id of the task, while a call on this rank lasts long."""
        self._environment.interrupter.on_long_call = action

    @abstractmethod
    def run(self, call: TaskCall) -> tuple[RankResult, int]:
        """Run a call on all ranks; return the result and the number of ranks that ran it."""

    @abstractmethod
    def settle(self, *, idle: bool) -> None:
        """Prepare for the next task, after the outcome was published, which need not wait for this.

        Unless ``idle``, only let the other ranks prepare meanwhile: the next task may be there already.
        """

    def stop(self) -> None:
        """End the group after its last task."""
        self._environment.capture.close()
        if self._surroundings is not None:
            self._surroundings.close()

    def end_leftovers(self, seconds: float) -> bool:
        """End what tasks have left on this rank; return whether something may hold up the end of this process."""
        return self._surroundings is not None and self._surroundings.end_leftovers(seconds)

    @property
    def _is_suspicious(self) -> bool:
        """Whether the last task may have left something on this rank that cannot be restored."""
        return self._surroundings is not None and self._surroundings.suspicious

    def _look_here(self) -> Severity:
        """Find what the last task has left on this rank."""
        return Severity.NONE if self._surroundings is None else self._surroundings.look()

    def _run_here(self, call: TaskCall, comm: Any = None) -> RankResult:
        """Run a call on this rank. It may be called again inside a call that waits for subtasks."""
        task_file, environment = call.task_file, self._environment
        task = CurrentTask(
            id=task_file.task,
            attempt=task_file.attempt,
            attempts=headers.attempts(call.header),
            worker=task_file.worker,
            rank=self.rank,
            size=self.size,
            comm=comm,
            spool=environment.spool,
            ends=environment.ends,
            _progress=None if self.rank else environment.progress,
            _lost_attempts=environment.lost_attempts,
        )
        if self._surroundings is None:  # not before the first task: by now signal handlers and MPI are set up
            self._surroundings = Surroundings(environment.capture)
        watch = functools.partial(environment.interrupter.watch, task_file, call.header)
        run = functools.partial(
            run_call,
            task,
            *call.content,
            header=call.header,
            init_content=call.init,
            initializers=self._initializers,
            dependencies=call.dependencies,
            objects=environment.objects,
            guard=watch() if call.pack is None else None,
            pack=call.pack and functools.partial(call.pack, watch),
        )
        changes = self._initializers.changes(call.header.init)
        measured = functools.partial(self._meter.measure, run)
        return self._surroundings.run(measured, task_file, call.header.name, changes)
