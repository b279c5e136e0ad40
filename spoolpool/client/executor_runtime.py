"""Background resources of an executor: session, worker groups and threads; they outlive it until its tasks are done."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING

from spoolpool import settings
from spoolpool.calls import pickling
from spoolpool.calls.pickling import ObjectRef
from spoolpool.client.at_exit import close_at_exit
from spoolpool.client.options import ExecutorOptions
from spoolpool.errors import BadRequest, BrokenSpool
from spoolpool.format.names import new_task_id, parse_lane, submitter_of
from spoolpool.launch.allocation import plan
from spoolpool.launch.launcher import HostLauncher, LaunchOptions
from spoolpool.launch.selection import select_launcher
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Resources, Shape
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.backoff import Backoff
from spoolpool.system.defaults import find_leniently

if TYPE_CHECKING:
    from spoolpool.client.futures import TaskFuture
    from spoolpool.client.memoize import Memoizer
    from spoolpool.client.output_stream import OutputStream
    from spoolpool.client.prepared_call import PreparedCall
    from spoolpool.client.references import CallReferences
    from spoolpool.client.resume import SessionReplay
    from spoolpool.launch.launcher import Launcher
    from spoolpool.launch.output_relay import Relay
    from spoolpool.pool.batch_pool import BatchPool
    from spoolpool.pool.group_pool import GroupPool
    from spoolpool.protocol.open_packs import OpenPack

_COUNT_SECONDS = 1.0  # between two counts of the groups of a shared spool
_UNKNOWN = 1 << 30
_SPARE_SECONDS = 30.0  # idle time after which a group ends whose shape was requested by one call only


class ExecutorRuntime:
    """Session, worker groups and the thread that supervises them, until the last task is done.

    It does not refer to the executor, so that an executor without references is garbage-collected.
    """

    def __init__(self, options: ExecutorOptions, spool: Spool, host_groups: _HostGroups, groups: int) -> None:
        """Use :meth:`open`."""
        # late: the groups of an embedded executor, which have begun, import their modules at the same time
        from spoolpool.client.deferred import DeferredCalls
        from spoolpool.client.session import SubmitterSession

        session = options.session
        name = os.urandom(8).hex() if session is None else session.name
        # a dropbox's tasks are run, and their results written, by its owner
        owners = (spool.owner,) if spool.config.mode == "dropbox" else ()
        self.options = options
        self.spool = spool
        self.accept = Trust((*options.trust, *owners))
        self.groups = groups
        """Worker groups that were requested first."""
        self.cores = groups * options.shape.cores
        self._host_groups = host_groups
        self.pool = host_groups.pool
        self.jobs: BatchPool | None = None
        self.init = ""
        """Object id of the ``init_function``."""
        preview = options.submission.preview
        self.previews = find_leniently("preview").value if preview is None else preview
        """Whether headers of tasks without a label get a preview of the arguments."""
        self.stream: OutputStream | None = None
        self.memo: Memoizer | None = None
        self.replay: SessionReplay | None = None
        self.flush: Callable[[], None] = _nothing
        self._groups = 0
        self._groups_due = 0.0
        """Submits the calls that are gathered but not yet in the spool."""
        self.session = SubmitterSession(
            spool,
            name,
            accept=self.accept,
            submitter="" if session is None else submitter_of(name),
            wait_for_room=options.submission.wait_for_room,
            keeps=session is not None,
            raises_cause=options.submission.raise_cause,
        )
        self.deferred = DeferredCalls(self.session, self.submit)
        if options.backend.in_jobs:
            from spoolpool.batch_backends import BatchBackend
            from spoolpool.pool.batch_pool import BatchPool

            assert isinstance(options.backend, BatchBackend)
            self.jobs = BatchPool(
                spool,
                self.session.entry,
                options.backend,
                home=options.lane(options.defaults),
                groups=options.max_workers,
                memory=options.defaults.memory,
            )
        self._pid = os.getpid()
        self._closed = False
        self._awake: SimpleQueue[None] = SimpleQueue()  # unlike a Queue's, its put may run in a garbage collection
        self._thread: threading.Thread | None = None
        close_at_exit(self.session)
        if options.stream_output:
            from spoolpool.client.output_stream import OutputStream

            self.stream = OutputStream(self.session, self.accept)
            close_at_exit(self)
        if self.pool is not None or self.jobs is not None:
            self._thread = threading.Thread(target=self._watch, name=f"spoolpool-pool-{name}", daemon=True)
            close_at_exit(self)
            self._thread.start()

    @classmethod
    def open(cls, options: ExecutorOptions, groups: int) -> ExecutorRuntime:
        """Open the session and start this many worker groups; a failure leaves nothing behind."""
        launcher = select_launcher(options.backend.name) if options.runs_groups else None
        if launcher is not None and options.max_workers is None:
            groups = _limit_groups(launcher, options, groups)
        spool = options.spool
        if spool is None:
            from spoolpool.client.temporary_spool import create_temporary_spool

            one_host = isinstance(launcher, HostLauncher)
            output = settings.OUTPUT if options.stream_output else 0
            # options of the user may lead mpiexec to other hosts, which see the temporary directory at most
            in_memory = not getattr(options.backend, "extra", ())
            spool = create_temporary_spool(one_host=one_host, output=output, in_memory=in_memory)
        runtime: ExecutorRuntime | None = None
        host_groups = _HostGroups()
        try:
            if launcher is not None:
                host_groups.prepare(options, spool, launcher)
            if options.spool is None:
                host_groups.start(options.shape, groups)
            runtime = cls(options, spool, host_groups, groups)
            runtime._start(groups)
        except BaseException:
            if runtime is not None:
                runtime.close()
                runtime.join()
            else:
                host_groups.stop()
                if options.spool is None:
                    spool.remove()
            raise
        return runtime

    def _start(self, groups: int) -> None:
        options = self.options
        if options.init_function is not None:
            self.init = self.put(options.init_function).name.partition("@")[0]
        if options.cache:
            self.memo = self._memoizer()
            self.session.collector.delivery.on_result = self.memo.keep
        if options.session is not None:
            self.session.may_be_left = options.session.detach
            if options.session.resume:
                from spoolpool.client.resume import SessionReplay

                self.replay = SessionReplay(self.session, options.init_function)
        if options.spool is not None:  # first the session: without a right or a key that it needs, no group starts
            self._host_groups.start(options.shape, groups)
        if self.jobs is not None:
            self.jobs.start()

    def _memoizer(self) -> Memoizer:
        from spoolpool.client.memoize import Memoizer
        from spoolpool.client.result_cache import cache_of, open_cache

        options = self.options
        if options.cache is True and options.spool is not None:
            cache = cache_of(self.spool, self.accept)
        else:
            cache = open_cache(None if options.cache is True else options.cache or None, self.accept)
        return Memoizer(cache, self.spool, self.accept, options.init_function)

    def _watch(self) -> None:
        """Supervise the worker groups until the executor is closed and its tasks are done."""
        backoff = Backoff(0.01, 0.5)
        try:
            if self.options.spool is None:
                from spoolpool.client.temporary_spool import remove_abandoned_spools

                remove_abandoned_spools()
            while not (self._closed and self.session.pending.wait(0)):
                if self._supervise():
                    backoff.reset()
                if self._closed:
                    self.session.pending.wait(backoff.next())
                else:
                    with contextlib.suppress(queue.Empty):
                        self._awake.get(timeout=backoff.next())
        except BaseException as error:  # noqa: BLE001  after any error the futures must fail instead of waiting forever
            self.session.fail(BrokenSpool(f"The thread that supervises the worker groups ended: {error}"))
        finally:
            self._host_groups.stop()
            if self.jobs is not None:
                self.jobs.stop()
            self.session.join()
            if self.stream is not None:
                self.stream.close()
                self.stream.join()
            if self.options.spool is None:
                self.spool.remove()

    def _supervise(self) -> bool:
        """Check the groups and batch jobs once; returns whether a group's state changed."""
        # a task that must not start yet needs no group: one that is alive at that time claims it
        lanes = self.session.pending.lanes(time.time())
        if self.jobs is not None:
            self.jobs.step(lanes)
            if self.jobs.broken and lanes:
                self.session.fail(BrokenSpool(self.jobs.broken))
        if self.pool is None:
            return False
        changed = self.pool.step()
        for lane in lanes:
            shape = _shape(lane)
            if reason := self.pool.broken.get(shape):
                self._fail_lane(lane, reason)
            else:  # race: a group may have ended as idle at the moment the task came
                self._start_spare_groups(shape)
        return changed

    def _fail_lane(self, lane: str, reason: str) -> None:
        """Fail the tasks of a lane whose groups cannot run; all tasks if the reason is that the spool was replaced."""
        try:
            with contextlib.suppress(OSError):
                self.spool.check_id()
        except BrokenSpool as error:
            self.session.fail(error)
        else:
            self.session.fail(BrokenSpool(reason), lane)

    def put(self, value: object) -> ObjectRef:
        """Store a value as an object, leased by the session."""
        payload, buffers = pickling.dumps(value, _refuse_reference)
        name = self.session.objects.put(payload, buffers)
        self.session.start_renewal()
        return ObjectRef(self.spool.config.id, name, len(payload) + sum(map(len, buffers)))

    def new_references(self, resources: Resources) -> CallReferences:
        """Return the references of a new call, with the id of its task."""
        from spoolpool.client.references import CallReferences

        return CallReferences(self.spool, new_task_id(resources.priority), self.session.objects.acquire)

    def submit(self, call: PreparedCall) -> TaskFuture:
        """Put a call into the spool, with its large buffers as objects."""
        buffers, objects = self.session.objects.share(call.buffers, self.options.submission.least_shared)
        if objects:
            future = self._submit_sharing(call._replace(buffers=buffers, objects=objects))
        else:
            future = self.session.submit(call)
        if self.stream is not None:
            self.stream.submitted()
        return future

    def open_pack(self, call: PreparedCall) -> tuple[TaskFuture, OpenPack]:
        """Open a pack in the spool, to which calls are appended."""
        opened = self.session.open_pack(call)
        if self.stream is not None:
            self.stream.submitted()
        return opened

    def _submit_sharing(self, call: PreparedCall) -> TaskFuture:
        shared, names = self.session.objects, tuple(call.objects)
        try:
            future = self.session.submit(call)
        except BaseException:
            shared.end_uses(names)
            raise
        future.add_done_callback(lambda _: shared.end_uses(names))
        return future

    def prepare(self, shape: Shape) -> None:
        """Start groups for a call if none has its shape. Raises :class:`BrokenSpool` if none can be started."""
        if self.jobs is not None and self.jobs.broken:
            raise BrokenSpool(f"Cannot submit: {self.jobs.broken}")
        if self.pool is not None:
            if reason := self.pool.broken.get(shape):
                raise BrokenSpool(f"Cannot submit: {reason}")
            self._start_spare_groups(shape)

    def _start_spare_groups(self, shape: Shape) -> None:
        """Start groups of a shape requested by a call, as many as the executor's cores hold; they end when idle."""
        if self.pool is not None and self.pool.count(shape) == 0:
            arguments = ["--idle-timeout", str(_SPARE_SECONDS)]
            self.pool.resize(shape, max(1, self.cores // shape.cores), arguments=arguments)

    @property
    def may_pack(self) -> bool:
        """Whether calls may share a task.

        Not with a limit of waiting tasks, since gathered calls might find no room; nor in a named session, whose tasks
        are also for other processes, which know nothing of packs. By default they do in a temporary spool: nothing is
        lost that would not be lost with the process anyway. Not if the number of groups is unknown there, as with
        batch jobs, nor if the printed output names the calls.
        """
        pack = self.options.submission.pack
        if pack is None:
            pack = self.spool.temporary and self.pool is not None and not self.options.stream_output
        return pack and self.spool.config.max_waiting is None and self.options.session is None

    def count_groups(self, shape: Shape) -> int:
        """Return the number of groups that could run calls of a shape: of this executor, or any in a shared spool."""
        own = 0 if self.pool is None else self.pool.count(shape)
        return own if self.spool.temporary else max(own, self._count_all_groups())

    def _count_all_groups(self) -> int:
        """Return the number of groups of the spool, as of a second ago."""
        now = time.monotonic()
        if now >= self._groups_due:
            self._groups_due = now + _COUNT_SECONDS
            try:
                self._groups = len(files.list_names(self.spool.layout.workers))
            except OSError:  # unknown: nothing is gathered
                self._groups = _UNKNOWN
        return self._groups

    def may_run_again(self, resources: Resources) -> bool:
        """Return whether a call may be run more than once, so that it may share a task.

        A shared task whose worker dies is run again, also for the calls that did not cause it.
        """
        return (resources.max_attempts or self.spool.config.max_attempts) > 1

    def flush_with(self, flush: Callable[[], None]) -> None:
        """Set the function that submits gathered calls; it is called before the session is closed."""
        self.flush = flush
        close_at_exit(self)

    def close(self) -> None:
        """End all resources once nothing is pending. May be repeated; does nothing in a forked child."""
        if os.getpid() == self._pid:
            self.flush()
            self.session.close()  # first: earlier submissions are awaited, and none follows
            self._closed = True
            self._awake.put(None)
            if self.stream is not None:
                self.stream.close()

    def kill_groups(self) -> None:
        """Kill the groups on this host, and start none any more."""
        if self.pool is not None:
            self.pool.kill()

    def join(self) -> None:
        """Wait for the end of the threads, after :meth:`close`; returns at once in one of them, as in a callback."""
        if self.session.collector.runs_here() or self._thread is threading.current_thread():
            return
        self.session.join()
        if self.stream is not None:
            self.stream.join()
        if self._thread is not None:
            self._thread.join()
        if self.memo is not None:
            self.memo.close()


class _HostGroups:
    """Worker groups that an executor starts itself, if any, and the process that forwards their output."""

    pool: GroupPool | None = None
    _relay: Relay | None = None

    def prepare(self, options: ExecutorOptions, spool: Spool, launcher: Launcher) -> None:
        """Make the pool of the groups."""
        from spoolpool.launch.output_relay import Relay
        from spoolpool.pool.group_pool import GroupPool

        self._relay = Relay(labels=False)
        arguments = ["--queue", options.submission.queue, *(f"--tag={tag}" for tag in options.defaults.tags)]
        launch = replace(_launch_options(options), relay=self._relay)
        self.pool = GroupPool(spool, launcher, arguments=arguments, options=launch)

    def start(self, shape: Shape, count: int) -> None:
        """Start groups of a shape."""
        if self.pool is not None:
            self.pool.resize(shape, count)

    def stop(self) -> None:
        """End the groups after their tasks, and forward the rest of their output."""
        if self.pool is not None:
            self.pool.stop()
        if self._relay is not None:
            self._relay.close()


def _refuse_reference(reference: object) -> object:
    kind = "a reference" if isinstance(reference, ObjectRef) else "a future"
    raise BadRequest(f"put() was given a value that contains {kind}: pass that to the call as a separate argument.")


def _shape(lane: str) -> Shape:
    wanted = parse_lane(lane)
    assert wanted is not None  # this process composed the name
    return Shape(ranks=wanted.ranks, threads=wanted.threads, gpus=wanted.gpus)


def _launch_options(options: ExecutorOptions) -> LaunchOptions:
    return LaunchOptions(oversubscribe=options.oversubscribe, memory=options.defaults.memory, **vars(options.backend))


def _limit_groups(launcher: Launcher, options: ExecutorOptions, groups: int) -> int:
    """Return the number of groups that fit into the job around this process.

    srun gives whole cores, and counts memory. Jobs of PBS, LSF and Grid Engine have the cores that they were granted,
    on all their nodes. Elsewhere that is ``groups``.
    """
    if launcher.name == "flux" or options.oversubscribe:
        return groups
    allocation = launcher.allocation(_launch_options(options))
    counted = allocation.system in ("pbs", "lsf", "sge")
    if launcher.name != "srun" and not counted:
        return groups
    ((_, room),), _ = plan(allocation, [(options.shape, None)])
    return room if counted else min(groups, room)


def _nothing() -> None:
    """Flush nothing."""
