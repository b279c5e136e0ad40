"""Record of an executor's arguments: checked once, and opened anew in a forked child."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spoolpool import settings
from spoolpool.errors import BadRequest
from spoolpool.format.names import Lane, check_lane, check_tags
from spoolpool.options import Session, Submission
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Resources, Shape
from spoolpool.system.quantities import read_count

if TYPE_CHECKING:
    from spoolpool.backends import Backend


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Arguments of :class:`spoolpool.Executor`. Raises :class:`BadRequest` for contradictory ones."""

    defaults: Resources
    """Resources of a call that asks for none; their shape is that of the executor's worker groups."""
    backend: Backend
    """Way to start worker groups."""
    spool: Spool | None
    """Spool to attach to; None for an embedded executor."""
    max_workers: int | None
    """Worker groups on this host, or in each batch job; None: as many as fit, and none for an attached executor."""
    max_cores: int | None = None
    """Limit of the cores of these groups together; it becomes the limit of their number."""
    oversubscribe: bool
    """Whether mpiexec and srun may start more ranks than there are cores."""
    session: Session | None
    """Named session; None for a session that ends with the executor."""
    submission: Submission
    """Rules by which calls become tasks."""
    trust: tuple[str | int, ...]
    """Accounts whose results are unpickled, besides one's own."""
    init_function: Callable[[], dict[str, Any]] | None
    """Function called once per worker group, on each rank."""
    stream_output: bool
    """Whether the output of tasks is printed in this process."""
    cache: bool | str | os.PathLike[str]
    """Whether results are cached, or the cache's directory."""

    def __post_init__(self) -> None:
        check_tags(self.defaults.lane_tags)
        if self.max_workers is not None:
            object.__setattr__(self, "max_workers", read_count("max_workers", self.max_workers, 1))
        if self.max_cores is not None:
            fit = read_count("max_cores", self.max_cores, 1) // self.shape.cores
            if not fit:
                needed = self.shape.cores
                raise BadRequest(f"max_cores={self.max_cores} has no room for one worker group of {needed} cores.")
            object.__setattr__(self, "max_workers", fit if self.max_workers is None else min(fit, self.max_workers))
        if self.stream_output and self.spool is not None and not self.spool.config.output:
            raise BadRequest(f"stream_output: the spool {self.spool.path} keeps no output that could be printed.")
        if self.session is not None and self.spool is None:
            raise BadRequest(
                f"The session {self.session.name!r} would end with the executor's own spool: give spool= as well."
            )
        if self.session is not None and self.session.detach:
            self.check_detachable()

    @property
    def shape(self) -> Shape:
        """Shape of the executor's worker groups."""
        return self.defaults.shape

    @property
    def runs_groups(self) -> bool:
        """Whether the executor starts worker groups itself, not in batch jobs."""
        return not self.backend.in_jobs and (self.spool is None or self.max_workers is not None)

    def check_detachable(self) -> None:
        """Raise :class:`BadRequest` if the executor's tasks could not go on without it."""
        if self.spool is None or self.runs_groups or self.backend.in_jobs:
            raise BadRequest(
                "Only an executor that is attached to a spool and starts no worker groups can leave its tasks to the "
                "spool: give spool=, and neither max_workers= nor a backend of batch jobs."
            )

    def lane(self, resources: Resources) -> Lane:
        """Return the lane of a task with these resources."""
        shape = resources.shape
        user = None if self.spool is None else self.spool.account
        queue, tags = self.submission.queue, resources.lane_tags
        return check_lane(Lane(queue, shape.ranks, shape.threads, shape.gpus, settings.PYTHON, tags, user))
