"""Option objects of :class:`spoolpool.Executor`: sessions and the submission of calls; and backends by their names.

They are frozen, so that several executors may share one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spoolpool import settings
from spoolpool.calls.pickling import OUT_OF_BAND
from spoolpool.errors import BadRequest
from spoolpool.format.names import check_queue, check_session
from spoolpool.system.quantities import keep_count

if TYPE_CHECKING:
    from spoolpool.backends import Backend


def backend_of(backend: str | Backend) -> Backend:
    """Return a backend, or the one of this name with its defaults.

    Raises :class:`BadRequest`, and :class:`LauncherError` if the command of the name is not there.
    """
    from spoolpool import backends

    if isinstance(backend, backends.Backend):
        return backend
    if backend in backends.BACKENDS:
        return backends.BACKENDS[backend]()
    from spoolpool import batch_backends  # few programs submit batch jobs

    if backend in batch_backends.COMMANDS:
        return batch_backends.batch_backend(backend)()
    batch = {each.name: each for each in batch_backends.BATCH_BACKENDS}
    if backend not in batch:
        names = ", ".join((*backends.BACKENDS, *batch, *batch_backends.COMMANDS))
        raise BadRequest(
            f"There is no backend {backend!r}: give one of the names {names}, or an object such as "
            "spoolpool.Sbatch(nodes=2)."
        )
    return batch[backend]()


@dataclass(frozen=True, kw_only=True)
class Session:
    """Named session of a spool: results stay in it after their delivery, for a later executor of this name.

    ``session="a name"`` is the session of this name with the defaults.
    """

    __module__ = "spoolpool"

    name: str = field(kw_only=False)
    """Name of the session."""
    resume: bool = False
    """Give a call that the session has had before, with the same function, arguments and resources, the future of that
    task instead of a new task. A call that failed is made again."""
    detach: bool = False
    """Leave the tasks to the spool when the executor is shut down or the process ends: see
    :meth:`spoolpool.Executor.detach`. Requires that the worker groups run elsewhere."""
    on_end: str = ""
    """Command of ``sh`` that runs when ``shutdown`` has waited until all calls of the executor have ended; variables
    tell it their numbers: ``SPOOLPOOL_DONE``, ``SPOOLPOOL_RAISED`` and so on, as for ``spool wait --on-end``."""

    def __post_init__(self) -> None:
        check_session(self.name)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Rules by which calls become tasks."""

    __module__ = "spoolpool"

    queue: str = "default"
    """Queue of the spool to which tasks go."""
    pack: bool | None = None
    """Let short calls share a task while more of them wait than groups can take; each call keeps a future of its own.
    In a shared spool it is appended to a file there before ``submit`` returns. None: in an embedded executor with
    groups on this host or in this job, whose spool ends with it."""
    share_from: int | None = settings.SHARE_FROM
    """Size in bytes from which a function, an argument or an array in one is stored once, as by
    :meth:`spoolpool.Executor.put`, when it is sent for the second time, and from 16 MiB on at once; None: never."""
    wait_for_room: bool = False
    """In a spool with a limit of waiting tasks per user, let ``submit`` wait for room instead of raising
    :class:`~spoolpool.errors.TooManyWaiting`. ``shutdown`` ends the waiting."""
    preview: bool | None = None
    """Show calls without a label by a short preview of their arguments, which is written into the headers of their
    tasks. None: as ``preview`` of ``spool config`` says, by default yes."""
    raise_cause: bool = False
    """Let a call that was not run because a dependency failed raise the exception of the dependency, as executorlib
    does, instead of a :class:`~spoolpool.errors.DependencyFailed` with that exception as its cause."""

    def __post_init__(self) -> None:
        check_queue(self.queue)
        if self.share_from is not None:
            keep_count(self, "share_from", OUT_OF_BAND, note=" (bytes), or None")

    @property
    def least_shared(self) -> int:
        """``share_from`` as a number."""
        return sys.maxsize if self.share_from is None else self.share_from
