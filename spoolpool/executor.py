"""The executor: ``concurrent.futures``' interface over a spool.

::

    submit(fn, *args)                                       future.result()
         |                                                        ^
    pickle -> Session.submit -> ready/ ... worker ... results/ -> collecting thread

An *embedded* executor has a spool of its own, in a temporary directory, and worker groups on this host that
work for it alone. An *attached* one puts its tasks into a spool whose groups run elsewhere.
"""

from __future__ import annotations

import contextlib
import html
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from spoolpool import settings
from spoolpool.calls import pickling
from spoolpool.calls.pickling import ObjectRef
from spoolpool.client.batched import batched
from spoolpool.client.futures import TaskFuture
from spoolpool.client.map import iterate_values
from spoolpool.client.options import ExecutorOptions
from spoolpool.client.packing import PackKey
from spoolpool.client.references import CallReferences
from spoolpool.client.runtime import ExecutorRuntime
from spoolpool.errors import BadRequest
from spoolpool.format.envelope import Buffer
from spoolpool.format.names import new_task_id
from spoolpool.monitor import graph
from spoolpool.pool.batch_pool import BatchOptions
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Resources

if TYPE_CHECKING:
    import asyncio


T = TypeVar("T")


class Executor(futures.Executor):
    """Runs functions in worker groups: serial, threaded, with GPUs, or on the ranks of MPI.

    Args:
        max_workers: Worker groups to run on this host. Without it, an embedded executor fills the cores that
            this process may use, and an attached one starts none.
        cores_per_worker: MPI ranks of a group. A function that runs on N > 1 ranks returns the list of their
            values in rank order; on one rank, its value.
        threads_per_core: Threads per rank.
        gpus_per_worker: GPUs per rank.
        oversubscribe: Let mpiexec start more ranks than there are cores.
        init_function: Called once per group (on each rank); returns a dict of values for parameters by name,
            which calls that do not give them get.
        cwd: Working directory of the calls; made if missing.
        backend: How groups are started: ``"mpiexec"``, ``"local"`` (groups of one rank only), ``"srun"`` (steps of
            the Slurm job around), ``"flux"`` (jobs of the Flux instance around), or ``"auto"``, the default: Flux,
            else srun, else mpiexec, else local. ``"sbatch"`` and ``"flux-batch"`` submit batch jobs of groups, which
            end with the executor; ``max_workers`` then is the number of groups in each.
        spool: Directory of a spool to attach to. Without it, the executor is embedded.
        resource_dict: Defaults for every ``submit``: see :class:`spoolpool.resources.Resources`.
        trust: Accounts (names or numbers) besides one's own whose results are unpickled. A pickle is a
            program: it runs as you. In a dropbox its owner's are as well.
        queue: Queue of the spool to which tasks go.
        session: Name of the session into which the results come. In a spool to which it is attached they stay there,
            after they were delivered too, and a later executor of this name has them: see :meth:`futures`. Without
            it, a name that nobody else has.
        resume: Where the session has had a call before, with the same function, arguments and resources, give the
            future of that task instead of a new one. A call that failed is made again.
        detach: Leave the tasks to the spool when the executor is shut down, or the process ends: see :meth:`detach`.
        stream_output: Print what the tasks print, as it comes, each line with the name of its task. Else what
            is printed in an embedded executor's groups goes where this process's own output goes, and what is
            printed in a spool's is kept there: see ``spool logs``.
        nodes: Whole nodes of a batch job.
        time: Its walltime, as the batch system writes it.
        directives: Further options of the batch system, such as ``"--partition=long"``.
        min_jobs: Batch jobs to submit at once, and again when they end; with 0 the first task brings the first job.
        max_jobs: Batch jobs that may wait or run at once, where many tasks wait or such of other shapes;
            ``min_jobs`` (or 1) unless given.
        pack: Let calls share a task while more of them wait than groups can take, if they are short; each has its own
            future all the same. A call then may be not in the spool yet when ``submit`` returns.
        cache: Keep the results of calls, and give them at once where the same call is made again: in the spool's cache
            (an embedded executor's: in ``~/.cache/spoolpool``), or in the one below a directory, or of a spool.
        wait_for_room: Where the spool bounds how many tasks of one user may wait, let ``submit`` wait until another
            one may, instead of raising :class:`~spoolpool.errors.TooManyWaiting`. ``shutdown`` ends the waiting.
        share_from: Bytes from which a function, an argument or an array in one is stored once, like what is
            :meth:`put`, when it is sent for the second time; None: never.

    Raises :class:`spoolpool.errors.SpoolpoolError` with what was found and what to do.
    """

    __module__ = "spoolpool"

    default_backend = "auto"
    """What ``backend`` is if nobody says."""

    def __init__(
        self,
        max_workers: int | None = None,
        cores_per_worker: int = 1,
        threads_per_core: int = 1,
        gpus_per_worker: int = 0,
        oversubscribe: bool = False,
        init_function: Callable[[], dict[str, Any]] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        backend: str | None = None,
        *,
        spool: str | os.PathLike[str] | None = None,
        resource_dict: Mapping[str, Any] | None = None,
        trust: Iterable[str | int] = (),
        queue: str = "default",
        session: str | None = None,
        resume: bool = False,
        detach: bool = False,
        stream_output: bool = False,
        nodes: int = 1,
        time: str = "1:00:00",
        directives: Iterable[str] = (),
        min_jobs: int = 1,
        max_jobs: int | None = None,
        wait_for_room: bool = False,
        cache: bool | str | os.PathLike[str] = False,
        pack: bool = False,
        share_from: int | None = settings.SHARE_FROM,
    ) -> None:
        given = {"cores": cores_per_worker, "threads_per_core": threads_per_core, "gpus_per_core": gpus_per_worker}
        if cwd is not None:
            given["cwd"] = os.fspath(cwd)  # type: ignore[assignment]
        self._defaults = Resources().updated({**given, **(resource_dict or {})})
        if share_from is not None and share_from < pickling.OUT_OF_BAND:
            raise BadRequest(f"share_from is {share_from}; it must be {pickling.OUT_OF_BAND} or more, or None.")
        self._share_from = share_from or sys.maxsize
        self._blueprint = ExecutorOptions(
            defaults=self._defaults,
            queue=queue,
            backend=backend or self.default_backend,
            attached=None if spool is None else Spool(spool),
            max_workers=max_workers,
            oversubscribe=oversubscribe,
            batch=BatchOptions(
                nodes=nodes,
                time=time,
                directives=tuple(directives),
                min_jobs=min_jobs,
                max_jobs=max(1, min_jobs) if max_jobs is None else max_jobs,
                arguments=() if max_workers is None else ("--groups", str(max_workers)),
                memory=self._defaults.memory,
            ),
            session=session,
            resume=resume,
            detach=detach,
            trust=tuple(trust),
            init_function=init_function,
            stream=stream_output,
            cache=cache,
            pack=pack,
            wait_for_room=wait_for_room,
        )
        self._shape = self._blueprint.shape
        self._max_workers = max_workers or max(1, _usable_cores() // self._shape.cores)
        self._lock = threading.RLock()
        self._shut = False
        self._core: ExecutorRuntime | None = None
        self._open()
        _live.add(self)

    def _open(self) -> None:
        self._pid = os.getpid()
        self._core = core = self._blueprint.open(self._max_workers)
        self._packer = self._blueprint.packer(core)
        # an executor that nobody refers to any more lets its groups end once its tasks are done
        self._finalizer = weakref.finalize(self, core.close)
        self._finalizer.atexit = False

    # -- the interface of concurrent.futures

    def submit(  # type: ignore[override]
        self, fn: Callable[..., T], /, *args: Any, resource_dict: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Future[T]:
        """Put a call into the spool and return its future.

        Futures anywhere among the arguments are waited for, and the call gets their values; if one fails or is
        cancelled, this one does too, without a run. ``resource_dict`` says what this call needs, over the executor's
        defaults; an unknown key is an error that lists the known ones. When this returns, the task is in the spool.
        Raises :class:`~spoolpool.errors.NotPicklable` (naming the argument), :class:`~spoolpool.errors.BadRequest`,
        :class:`~spoolpool.errors.SpoolFull`, :class:`~spoolpool.errors.TooManyWaiting`,
        :class:`~spoolpool.errors.BrokenSpool` where no group of the shape can
        be started, and ``RuntimeError`` after :meth:`shutdown`.
        """
        wishes = self._defaults if not resource_dict else self._defaults.updated(resource_dict)
        with self._lock:
            core = self._usable()
        key = ""
        if core.resumption is not None:
            key = core.resumption.key(fn, args, kwargs, wishes)
            if (earlier := core.resumption.take_up(key)) is not None:
                return earlier
        cached, kept = ("", None) if core.memo is None else core.memo.look(fn, args, kwargs, wishes, core.session)
        if kept is not None:
            return kept
        needs = CallReferences(core.spool, new_task_id(wishes.priority), core.session.holdings.take)
        try:
            payload, buffers = pickling.dumps_call(fn, args, kwargs, needs.refer, self._share_from)
            keys = {"cache": cached, "key": key}
            if self._packer is None or cached:
                return self._submit(core, needs, fn, payload, buffers, wishes, keys)
            shape = PackKey(self._blueprint.lane(wishes).name, pickling.label(fn), wishes)
            packed = self._packer.take(fn, payload, buffers, needs, shape)
            if packed is None:
                alone = self._submit(core, needs, fn, payload, buffers, wishes, keys)
                self._packer.sent(fn, alone)
            return packed or alone
        except BaseException:
            needs.drop()
            raise

    def _submit(
        self,
        core: ExecutorRuntime,
        needs: CallReferences,
        fn: Callable[..., T],
        payload: Buffer,
        buffers: list[Buffer],
        wishes: Resources,
        keys: dict[str, Any],
    ) -> Future[T]:
        shape = wishes.shape
        with self._lock:
            core.prepare(shape)
        buffers, shared = core.session.holdings.share(buffers, self._share_from)
        lane = self._blueprint.lane(wishes)
        future = core.session.submit(
            payload,
            buffers,
            lane=lane.name,
            name=pickling.label(fn),
            max_attempts=wishes.max_attempts,
            init=core.init,
            needs=needs,
            objects={**needs.objects, **shared},
            **keys,
            **wishes.of_header(core.spool.server_time),
        )
        if core.stream is not None:
            core.stream.submitted()
        return future

    def asubmit(
        self, fn: Callable[..., T], /, *args: Any, resource_dict: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> asyncio.Future[T]:
        """:meth:`submit` for coroutines: ``value = await executor.asubmit(fn, x)``.

        The task is in the spool when this returns, awaited or not. To cancel the awaiting coroutine is to cancel the
        task. Raises what :meth:`submit` does, and ``RuntimeError`` where no event loop runs.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        return asyncio.wrap_future(self.submit(fn, *args, resource_dict=resource_dict, **kwargs), loop=loop)

    def put(self, value: object) -> ObjectRef:
        """Store a value in the spool, once; returns a reference, which is an argument like the value itself.

        Groups map it and share its memory on each node; NumPy arrays of 32 KiB or more are read-only there. The same
        content is stored once. It stays until this session ends, and no task needs it. Raises
        :class:`~spoolpool.errors.NotPicklable`, :class:`~spoolpool.errors.SpoolFull`, and ``RuntimeError`` after
        :meth:`shutdown`.
        """
        with self._lock:
            core = self._usable()
        return core.put(value)

    def cancel(self, future: Future[Any], *, running: bool = False) -> bool:
        """Take a task back, as ``future.cancel()`` does; one that runs already only if ``running`` says so.

        Then its function is interrupted on all ranks within some seconds, as by Ctrl-C
        (:class:`~spoolpool.errors.TaskCancelled`), and its group is replaced; the future is cancelled when that was
        done. False where the task is over, or runs and may go on.
        """
        if future.cancel():
            return True
        if not running or future.done() or not isinstance(future, TaskFuture):
            return False
        self._usable().session.interrupt(future)
        return True

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = 1,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> Iterator[T]:
        """The values of ``fn`` over the iterables, in order, as ``concurrent.futures`` has it.

        ``chunksize`` calls are packed into one task: worth it for calls of less than a few milliseconds. With
        ``"auto"`` it follows the times that tasks take, so that one of short calls takes about a tenth of a second;
        then only the first few calls are submitted at once, and the others while values are asked for.
        ``buffersize`` bounds how many tasks are submitted ahead of the one whose value is awaited. With
        ``progress`` a bar shows how many tasks are done.
        """
        if chunksize != "auto" and chunksize < 1:
            raise BadRequest(f"chunksize is {chunksize!r}; it must be at least 1, or 'auto'.")
        if buffersize is not None and buffersize < 1:
            raise BadRequest(f"buffersize is {buffersize}; it must be at least 1, or None.")
        return iterate_values(
            self.submit,
            fn,
            zip(*iterables, strict=False),
            chunksize=chunksize,
            buffersize=buffersize,
            ranks=self._shape.ranks,
            end=None if timeout is None else time.monotonic() + timeout,
            progress=progress,
        )

    def batched(self, futures: Iterable[Future[T]], n: int) -> list[Future[list[T]]]:
        """Futures of lists of ``n`` values each, in the order in which these futures are done.

        See :func:`spoolpool.client.batched.batched`.
        """
        return batched(futures, n)

    def futures(self) -> list[Future[Any]]:
        """Futures of all tasks of the session, in the order of submission: also of processes that have ended or died.

        Those that are done get their outcomes again, the others when they have them. What a worker had to set aside
        has :class:`~spoolpool.errors.BadTaskFile`. For a session with a name in a spool (:class:`BadRequest`).
        """
        if not self._blueprint.keeps:
            raise BadRequest("Only a session with a name, in a spool, has futures to come back to: give session=.")
        with self._lock:
            core = self._usable()
        futures: list[Future[Any]] = [*core.session.futures()]
        if core.stream is not None:
            core.stream.submitted()
        return futures

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, detach: bool | None = None) -> None:
        """Take no more calls; ``wait`` until the pending ones are done, or take back those that wait.

        Without ``wait``, an embedded executor's groups go on until its tasks are done and end then; tasks of a session
        with a name, in a spool whose groups run elsewhere, are left there when the process ends. ``detach`` leaves
        them there at once (None: as the executor was made). In a callback of a future it never waits: the thread
        that calls it is among those it would wait for.
        """
        leave = self._blueprint.detach if detach is None else detach
        if detach:
            self._blueprint.check_detachable()
        with self._lock:
            self._shut = True
            core = self._core
        if core is None or os.getpid() != self._pid:
            return
        if core.before_end is not None:
            core.before_end()
        if cancel_futures:
            for future in core.session.pending():
                future.cancel()
        if leave:
            core.session.detach()
        elif not wait and self._blueprint.keeps and core.pool is None and core.jobs is None:
            core.session.may_be_left = True
        core.close()
        if wait:
            core.join()

    def detach(self) -> None:
        """Take no more calls and wait for none: they go on, and their results stay in the session.

        For an attached executor whose groups run elsewhere (:class:`BadRequest`). Its pending futures get no outcome
        any more; :meth:`futures` of a later executor of the same session gives new ones.
        """
        self.shutdown(detach=True)

    # -- the graph

    def plot_dependency_graph(self, filename: str | os.PathLike[str] | None = None) -> str:
        """Return the dependency graph of the tasks as text for Graphviz, and write it to a file if one is named.

        The suffix of the file name is the form: ``.dot`` (the same text), ``.mmd`` (Mermaid), or a picture such as
        ``.svg``, for which Graphviz must be installed (``dot`` on ``PATH``; else :class:`BadRequest`). The graph has
        the unfinished tasks, and the finished ones that have dependencies or dependents.
        """
        nodes = self._nodes()
        if filename is not None:
            graph.draw(nodes, filename)
        return graph.dot(nodes)

    def export_workflow(self, filename: str | os.PathLike[str]) -> None:
        """Write the same graph as JSON; ``docs/workflows.md`` describes the format."""
        graph.export(self._nodes(), filename)

    def _nodes(self) -> list[graph.Node]:
        core = self._core if self._shut and self._core is not None else self._usable()
        return core.session.nodes()

    # -- the surface of pympipool

    @property
    def max_workers(self) -> int:
        """Worker groups of this executor; set it to grow or shrink while it runs."""
        return self._max_workers

    @max_workers.setter
    def max_workers(self, count: int) -> None:
        if count < 1:
            raise BadRequest(f"max_workers is {count}; an executor needs at least 1 worker group.")
        with self._lock:
            core = self._usable()
            if core.pool is None:
                raise BadRequest(
                    "This executor has no worker groups of its own on this host: start more with spool-worker, or give "
                    "max_workers (or max_jobs, for batch jobs) when it is made."
                )
            self._max_workers = count
            core.cores = count * self._shape.cores
            core.pool.resize(self._shape, count)

    @property
    def info(self) -> dict[str, Any]:
        """What this executor is: sizes, spool, session, launcher."""
        core = self._core if self._shut and self._core is not None else self._usable()
        return {
            "max_workers": self._max_workers if core.pool is not None else None,
            "cores": self._shape.ranks,
            "threads_per_core": self._shape.threads,
            "gpus_per_core": self._shape.gpus,
            "backend": self._blueprint.backend,
            "spool": core.spool.path,
            "session": core.session.name,
            "queue": self._blueprint.queue,
        }

    def _repr_html_(self) -> str:
        """How a notebook shows it: what it is, and how many tasks have no outcome yet. Asks nothing of the spool."""
        core = self._core
        state = "ended" if self._shut or core is None else f"{len(core.session.pending())} tasks pending"
        rows = {"": f"{type(self).__name__}, {state}", **(self.info if core is not None else {})}
        lines = (
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items()
        )
        return f"<table>{''.join(lines)}</table>"

    def __len__(self) -> int:
        """Tasks of this executor that no worker has claimed yet."""
        return self._core.session.waiting() if self._core is not None and os.getpid() == self._pid else 0

    def __bool__(self) -> bool:
        return True

    def after_fork(self) -> None:
        """In a forked child: the threads, groups and pending futures are the parent's. ``submit`` makes new ones."""
        self._lock = threading.RLock()
        if self._core is not None:
            self._core.session.after_fork()

    # -- inside

    def _usable(self) -> ExecutorRuntime:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if os.getpid() != self._pid:  # a forked child: the threads and groups are the parent's
            self._finalizer.detach()
            self._open()
        assert self._core is not None
        return self._core


class MPIExecutor(Executor):
    """An executor whose groups are started by mpiexec; takes the arguments of :class:`Executor`."""

    __module__ = "spoolpool"

    default_backend = "mpiexec"


class SlurmExecutor(Executor):
    """An executor whose groups are steps of the Slurm job around; takes the arguments of :class:`Executor`."""

    __module__ = "spoolpool"

    default_backend = "srun"


class FluxExecutor(Executor):
    """An executor whose groups are jobs of the Flux instance around; takes the arguments of :class:`Executor`."""

    __module__ = "spoolpool"

    default_backend = "flux"


def _usable_cores() -> int:
    with contextlib.suppress(AttributeError):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_live: weakref.WeakSet[Executor] = weakref.WeakSet()
"""Executors of this process: a forked child must reach all of them."""


def _after_fork() -> None:
    for executor in list(_live):
        executor.after_fork()


os.register_at_fork(after_in_child=_after_fork)
