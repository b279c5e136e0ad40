"""What an executor was asked for, checked, and the core that is made from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spoolpool import settings
from spoolpool.client import temporary_spool
from spoolpool.client.packing import Packer
from spoolpool.client.resume import SessionReplay
from spoolpool.client.runtime import ExecutorRuntime
from spoolpool.errors import BadRequest
from spoolpool.format.names import Lane, check_lane, check_queue, check_session, check_tags, submitter_of
from spoolpool.launch.choice import Launcher, Options, choose
from spoolpool.pool.batch_pool import BACKENDS, BatchOptions, BatchPool
from spoolpool.pool.pool import GroupPool
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Resources, Shape
from spoolpool.security.trust import Trust
from spoolpool.system import files

if TYPE_CHECKING:
    from spoolpool.client.memoize import Memoizer


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """The arguments of :class:`~spoolpool.executor.Executor`, as far as they outlive it: a forked child opens anew.

    Raises :class:`BadRequest` for what does not go together.
    """

    defaults: Resources
    queue: str
    backend: str
    attached: Spool | None
    """The spool that was named; an executor without one has its own."""
    max_workers: int | None
    oversubscribe: bool
    batch: BatchOptions
    session: str | None
    resume: bool
    detach: bool
    trust: tuple[str | int, ...]
    init_function: Callable[[], dict[str, Any]] | None
    stream: bool
    cache: bool | str | os.PathLike[str]
    pack: bool
    wait_for_room: bool

    def __post_init__(self) -> None:
        check_queue(self.queue)
        check_tags(self.defaults.lane_tags)
        if self.session is not None:
            check_session(self.session)
        if self.max_workers is not None and self.max_workers < 1:
            raise BadRequest(f"max_workers is {self.max_workers}; an executor needs at least 1 worker group.")
        if self.stream and self.attached is not None and not self.attached.config.output:
            raise BadRequest(f"The spool {self.attached.path} keeps no output: there is nothing to stream.")
        if self.resume and not self.keeps:
            raise BadRequest("Only a session with a name, in a spool, can be resumed: give spool= and session=.")
        if self.detach:
            self.check_detachable()

    @property
    def shape(self) -> Shape:
        """Of the groups that the executor has from the beginning."""
        return self.defaults.shape

    @property
    def keeps(self) -> bool:
        """Whether what comes of its tasks stays in the spool."""
        return self.session is not None and self.attached is not None

    @property
    def runs_groups(self) -> bool:
        """Whether it starts groups itself, and not in batch jobs."""
        return self.backend not in BACKENDS and (self.attached is None or self.max_workers is not None)

    def check_detachable(self) -> None:
        """Raise :class:`BadRequest` where its tasks could not go on without it."""
        if self.attached is None or self.runs_groups or self.backend in BACKENDS:
            raise BadRequest(
                "Only an executor that is attached to a spool, and runs no groups, can leave its tasks to it."
            )

    def lane(self, wishes: Resources) -> Lane:
        """Where tasks with these wishes wait."""
        shape = wishes.shape
        user = None if self.attached is None else self.attached.account
        return check_lane(
            Lane(self.queue, shape.ranks, shape.threads, shape.gpus, settings.PYTHON, wishes.lane_tags, user)
        )

    def open(self, groups: int) -> ExecutorRuntime:
        """The session in its spool, with so many groups at work; nothing is left where one of it cannot be had."""
        launcher = choose(self.backend) if self.runs_groups else None
        spool = self.attached
        if spool is None:
            here = launcher is not None and launcher.name in ("mpiexec", "local")
            spool = temporary_spool.create_temporary_spool(one_host=here, output=settings.OUTPUT if self.stream else 0)
        core: ExecutorRuntime | None = None
        try:
            core = self._core(spool, launcher, groups)
            if self.init_function is not None:
                core.init = core.put(self.init_function).name.partition("@")[0]
            if self.cache:
                core.remember(self._memo(core))
            core.session.may_be_left = self.detach
            if self.resume:
                core.resumption = SessionReplay(core.session, self.init_function)
            if core.pool is not None:
                core.pool.resize(self.shape, groups)
            if core.jobs is not None:
                core.jobs.start()
        except BaseException:
            if core is not None:
                core.close()
                core.join()
            elif self.attached is None:
                files.remove_tree(spool.path)
            raise
        return core

    def packer(self, core: ExecutorRuntime) -> Packer | None:
        """What lets calls share a task, if they may.

        Not where the number of waiting tasks is bounded, since what is put off might find no room; nor in a session
        with a name, whose tasks are for other processes too, which know nothing of packs.
        """
        if not self.pack or core.spool.config.max_waiting is not None or self.session is not None:
            return None
        packer = Packer(core)
        core.put_off(packer.flush)
        return packer

    def _core(self, spool: Spool, launcher: Launcher | None, groups: int) -> ExecutorRuntime:
        name = self.session or os.urandom(8).hex()
        pool = None
        if launcher is not None:
            arguments = ["--queue", self.queue] if self.attached is not None else []
            arguments += [f"--tag={tag}" for tag in self.defaults.tags]
            options = Options(oversubscribe=self.oversubscribe, memory=self.defaults.memory)
            pool = GroupPool(spool, launcher, arguments=arguments, options=options)
        jobs = None
        if self.backend in BACKENDS:
            jobs = BatchPool(spool, name, BACKENDS[self.backend], self.batch, home=self.lane(self.defaults))
        # what is dropped for a service to run, that service answers
        served_by = (spool.owner,) if spool.config.mode == "dropbox" else ()
        return ExecutorRuntime(
            spool,
            name,
            Trust((*self.trust, *served_by)),
            pool,
            jobs,
            cores=groups * self.shape.cores,
            temporary=self.attached is None,
            stream=self.stream,
            submitter=submitter_of(name) if self.session else "",
            wait_for_room=self.wait_for_room,
            keeps=self.keeps,
        )

    def _memo(self, core: ExecutorRuntime) -> Memoizer:
        from spoolpool.client.memoize import Memoizer
        from spoolpool.client.result_cache import cache_of, open_cache

        if self.cache is True and self.attached is not None:
            cache = cache_of(core.spool, core.accept)
        else:
            cache = open_cache(None if self.cache is True else self.cache or None, core.accept)
        return Memoizer(cache, core.spool, core.accept, self.init_function)
