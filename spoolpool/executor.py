"""The executor: the interface of ``concurrent.futures`` over a spool.

::

    submit(fn, *args)                                       future.result()
         |                                                        ^
    pickle -> SubmitterSession.submit -> ready/ ... worker ... results/ -> collector

An *embedded* executor has its own spool in a temporary directory, and worker groups that work for it alone. An
*attached* executor puts its tasks into a spool that worker groups elsewhere serve.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from spoolpool.calls.pickling import ObjectRef
from spoolpool.client import at_exit  # noqa: F401  registers its function before those of the script
from spoolpool.client.futures import DeferredFuture, TaskFuture
from spoolpool.errors import BadRequest
from spoolpool.options import Session, Submission, backend_of
from spoolpool.resources import Resources
from spoolpool.system import fork
from spoolpool.system.quantities import read_count
from spoolpool.system.user_code import describe_value

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

    from spoolpool.backends import Backend
    from spoolpool.client.executor_runtime import ExecutorRuntime
    from spoolpool.client.packing import Packer
    from spoolpool.client.session import SubmitterSession
    from spoolpool.monitor import graph


T = TypeVar("T")


class Executor(futures.Executor):
    """Executor of functions in worker groups: serial, threaded, with GPUs, or on MPI ranks.

    Args:
        max_workers: Worker groups on this host, or in each batch job. By default an embedded executor fills the cores
            that this process may use, an attached one starts none, and a batch job is filled.
        cores_per_worker: MPI ranks of a group. A function on N > 1 ranks returns the list of the ranks' values in rank
            order; on one rank, its value.
        threads_per_core: Threads per rank.
        gpus_per_worker: GPUs per rank.
        oversubscribe: Let mpiexec and srun start more ranks than there are cores.
        init_function: Function called once per group, on each rank; returns a dict from parameter names to values,
            for calls that do not pass these parameters.
        cwd: Working directory of the calls; created if missing.
        backend: Way to start worker groups: a name, or an object with options. ``"local"`` starts groups of one rank,
            ``"mpiexec"`` (:class:`~spoolpool.Mpiexec`) groups on this host, or on all nodes of a job of PBS, LSF or
            Grid Engine, ``"srun"`` (:class:`~spoolpool.Srun`) steps
            of the surrounding Slurm job, ``"flux"`` (:class:`~spoolpool.Flux`) jobs of the surrounding Flux instance.
            ``"auto"``, the default unless ``spool config`` shows another, is Flux, else srun, else jsrun (in a job
            of LSF), else mpiexec, else local.
            ``"sbatch"`` (:class:`~spoolpool.Sbatch`), ``"flux-batch"`` (:class:`~spoolpool.FluxBatch`), ``"pbs"``
            (:class:`~spoolpool.PbsBatch`), ``"sge"`` (:class:`~spoolpool.SgeBatch`), ``"lsf"``
            (:class:`~spoolpool.LsfBatch`), and ``"qsub"`` for that of the two whose command it is, submit batch jobs of
            groups, which end with the executor.
        max_cores: Cores of all worker groups together, on this host or in each batch job: there are as many groups as
            they hold, and at most ``max_workers``.
        spool: Directory of the spool to attach to. Without it, the executor is embedded.
        resource_dict: Defaults for every ``submit``: see :class:`spoolpool.resources.Resources`.
        trust: Accounts (names or numbers), besides one's own, whose results are unpickled. A pickle is a program: it
            runs as you. The owner of a dropbox is trusted as well.
        session: Name of the session that receives the results, or a :class:`~spoolpool.Session`. In a named session
            results stay after their delivery, and a later executor of this name has them: see :meth:`futures`. Needs
            ``spool``. By default the session has a random name and ends with the executor.
        cache: Keep the results of calls, and return them at once if the same call is made again: in the spool's cache
            (in ``~/.cache/spoolpool`` for an embedded executor), or in the cache below a directory, or of a spool.
        stream_output: Print the output of the tasks as it comes, each line with the name of its task. By default the
            output of an embedded executor's groups goes to this process's own output, and that of an attached one's
            is kept in the spool: see ``spool logs``.
        submission: Rules by which calls become tasks, among them the queue: a :class:`~spoolpool.Submission`.

    Raises :class:`spoolpool.errors.SpoolpoolError` with the cause and the remedy.
    """

    __module__ = "spoolpool"

    default_backend = "auto"
    """Name of the backend if none is given."""

    def __init__(
        self,
        max_workers: int | None = None,
        cores_per_worker: int = 1,
        threads_per_core: int = 1,
        gpus_per_worker: int = 0,
        oversubscribe: bool = False,
        init_function: Callable[[], dict[str, Any]] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        backend: str | Backend | None = None,
        *,
        max_cores: int | None = None,
        spool: str | os.PathLike[str] | None = None,
        resource_dict: Mapping[str, Any] | None = None,
        trust: Iterable[str | int] = (),
        session: str | Session | None = None,
        cache: bool | str | os.PathLike[str] = False,
        stream_output: bool = False,
        submission: Submission = Submission(),  # noqa: B008  frozen
    ) -> None:
        # what the session, its threads and its worker groups need is imported by the first executor
        from spoolpool.client.options import ExecutorOptions
        from spoolpool.launch.allocation import usable_cores
        from spoolpool.protocol.spool import Spool
        from spoolpool.security.trust import Trust

        given = {"cores": cores_per_worker, "threads_per_core": threads_per_core, "gpus_per_core": gpus_per_worker}
        if cwd is not None:
            given["cwd"] = os.fspath(cwd)  # type: ignore[assignment]
        trusted = tuple(trust)
        if backend is None:
            backend = self.default_backend
            if backend == "auto" and (spool is None or max_workers is not None or max_cores is not None):
                from spoolpool.launch.selection import default_launcher

                name = default_launcher()
                backend = "auto" if name == "jsrun" else name  # it has no backend; auto chooses it in a job of LSF
        self._options = options = ExecutorOptions(
            defaults=Resources().updated({**given, **(resource_dict or {})}),
            backend=backend_of(backend),
            spool=None if spool is None else Spool(spool, trust=Trust(trusted)),
            max_workers=max_workers,
            max_cores=max_cores,
            oversubscribe=oversubscribe,
            session=Session(session) if isinstance(session, str) else session,
            submission=submission,
            trust=trusted,
            init_function=init_function,
            stream_output=stream_output,
            cache=cache,
        )
        self._max_workers = options.max_workers or max(1, usable_cores() // options.shape.cores)
        self._lock = threading.RLock()
        self._shut = False
        self._end_command = "" if options.session is None else options.session.on_end
        self._runtime: ExecutorRuntime | None = None
        self._open()
        fork.call_in_child(self, Executor.after_fork)

    def _open(self) -> None:
        from spoolpool.client.call_submission import CallSubmission
        from spoolpool.client.executor_runtime import ExecutorRuntime

        self._pid = os.getpid()
        self._runtime = runtime = ExecutorRuntime.open(self._options, self._max_workers)
        self._max_workers = runtime.groups
        self._submission = CallSubmission(self._options, runtime, self._lock)
        # the groups of an executor without references end once its tasks are done
        self._finalizer = weakref.finalize(self, runtime.close)
        self._finalizer.atexit = False

    # -- the interface of concurrent.futures

    def submit(  # type: ignore[override]
        self, fn: Callable[..., T], /, *args: Any, resource_dict: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Future[T]:
        """Put a call into the spool and return its future.

        The call waits for futures anywhere among its arguments and gets their values; if one of them fails or is
        cancelled, so does the call, without being run. ``resource_dict`` overrides the executor's defaults for this
        call; an unknown key is an error that lists the known ones. The task is in the spool when ``submit`` returns; a
        call with an unfinished future of another spool, or not of ``submit``, waits in this process until that is done.
        Raises :class:`~spoolpool.errors.NotPicklable` (naming the argument), :class:`~spoolpool.errors.BadRequest`,
        :class:`~spoolpool.errors.SpoolFull`, :class:`~spoolpool.errors.TooManyWaiting`,
        :class:`~spoolpool.errors.BrokenSpool` if no worker group of the shape can be started, and ``RuntimeError``
        after :meth:`shutdown`.
        """
        defaults = self._options.defaults
        resources = defaults.updated(resource_dict) if resource_dict else defaults
        with self._lock:
            self._require_runtime()
            submission = self._submission
        return submission.submit(fn, args, kwargs, resources)

    def asubmit(
        self, fn: Callable[..., T], /, *args: Any, resource_dict: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> asyncio.Future[T]:
        """Do as :meth:`submit`, for coroutines: ``value = await executor.asubmit(fn, x)``.

        The task is in the spool when this returns, awaited or not. Cancelling the awaiting coroutine cancels the
        task. A ``StopIteration`` or ``CancelledError`` of the function is the cause of a ``RuntimeError``, since it
        would end the coroutine. Raises the errors of :meth:`submit`, and ``RuntimeError`` if no event loop runs.
        """
        import asyncio

        from spoolpool.client.awaitable import awaitable

        loop = asyncio.get_running_loop()
        return awaitable(self.submit(fn, *args, resource_dict=resource_dict, **kwargs), loop)

    def put(self, value: object) -> ObjectRef:
        """Store a value in the spool once; returns a reference that stands for the value as an argument.

        Worker groups map it into memory and share it on each node; NumPy arrays of 32 KiB or more are read-only
        there. Equal content is stored once. It stays until this session ends and no task needs it. Raises
        :class:`~spoolpool.errors.NotPicklable`, :class:`~spoolpool.errors.SpoolFull`, and ``RuntimeError`` after
        :meth:`shutdown`.
        """
        with self._lock:
            runtime = self._require_runtime()
        return runtime.put(value)

    def cancel(self, future: Future[Any], *, running: bool = False) -> bool:
        """Cancel a task as ``future.cancel()`` does; with ``running`` also if it already runs.

        The function of a running task is interrupted on all ranks within some seconds, as by Ctrl-C
        (:class:`~spoolpool.errors.TaskCancelled`), and its group is replaced; then the future is cancelled. Returns
        False if the task is over, or runs and ``running`` is not set.
        """
        if future.cancel():
            return True
        if isinstance(future, DeferredFuture) and future.task_future is not None:
            future = future.task_future
        if running and self._packer is not None and self._packer.interrupt(future):
            return True
        if not running or future.done() or not isinstance(future, TaskFuture):
            return False
        self._require_runtime().session.pending.request_cancel(future.task)
        return True

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = 1,
        buffersize: int | None = None,
        progress: bool = False,
        label: str | Callable[..., str] = "",
    ) -> Iterator[T]:
        """Return the values of ``fn`` over the iterables, in order, as in ``concurrent.futures``.

        ``chunksize`` calls share a task, which pays off for calls of less than a few milliseconds. With ``"auto"`` it
        is adapted to the measured times, so that a task of short calls takes about a tenth of a second; then only the
        first few calls are submitted at once, and the others while the values are fetched. ``buffersize`` is the
        largest number of tasks submitted ahead of the value being waited for. With ``progress`` a bar shows the number
        of finished tasks. ``label`` is the label of each call (see ``label`` of
        :class:`~spoolpool.resources.Resources`), or a function of the arguments of a call that returns its label.
        """
        if chunksize != "auto":
            chunksize = read_count("chunksize", chunksize, 1, note=", or 'auto'")
        if buffersize is not None:
            buffersize = read_count("buffersize", buffersize, 1, note=", or None")
        if not isinstance(label, str) and not callable(label):
            raise BadRequest(f"label must be a text or a function, not {describe_value(label)}.")
        if timeout is not None and math.isnan(timeout):
            raise BadRequest("timeout is not a number; it must be a number of seconds, or None.")
        from spoolpool.client.map import iterate_values

        return iterate_values(
            self.submit,
            fn,
            zip(*iterables, strict=False),
            chunksize=chunksize,
            buffersize=buffersize,
            ranks=self._options.shape.ranks,
            end=None if timeout is None else time.monotonic() + timeout,
            progress=progress,
            label=label,
            may_share=self._last_runtime().may_run_again(self._options.defaults),
        )

    def batched(self, futures: Iterable[Future[T]], n: int) -> list[Future[list[T]]]:
        """Return futures of lists of ``n`` values each, in the order in which the given futures are done.

        See :func:`spoolpool.client.batched.batched`.
        """
        from spoolpool.client.batched import batched

        return batched(futures, n)

    def futures(self) -> list[Future[Any]]:
        """Return futures of all tasks of the session, in the order of submission, also of earlier processes.

        Finished tasks have delivered their outcomes again, the others do when they finish. A task that a worker had to
        set aside has :class:`~spoolpool.errors.BadTaskFile`. Raises :class:`BadRequest` for an unnamed session.
        """
        if self._options.session is None:
            raise BadRequest("futures() requires a named session of an existing spool: pass spool= and session=.")
        with self._lock:
            runtime = self._require_runtime()
        futures: list[Future[Any]] = [*runtime.session.futures()]
        if runtime.stream is not None:
            runtime.stream.submitted()
        return futures

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, detach: bool | None = None) -> None:
        """Accept no more calls, and ``wait`` for the pending ones or cancel those that are not running.

        Without ``wait``, an embedded executor's groups end once its tasks are done; in a named session of a spool
        whose groups run elsewhere, the tasks are left there when the process ends. ``detach`` leaves them there at
        once (None: as the :class:`~spoolpool.Session` says). In a callback of a future this never waits, since the
        thread that runs the callback is one of those it would wait for.
        """
        options = self._options
        if detach:
            options.check_detachable()
        with self._lock:
            self._shut = True
            runtime = self._runtime
        if runtime is None or os.getpid() != self._pid:
            return
        runtime.flush()
        if cancel_futures:
            pending = runtime.session.pending
            for future in (*pending.deferred(), *pending.futures()):
                future.cancel()
        if detach or (detach is None and options.session is not None and options.session.detach):
            runtime.session.detach()
        elif not wait and options.session is not None and runtime.pool is None and runtime.jobs is None:
            runtime.session.may_be_left = True
        runtime.close()
        if not wait:
            return
        try:
            runtime.join()
        except KeyboardInterrupt as error:
            from spoolpool.client.ctrl_c import end_interrupted, is_ctrl_c

            if is_ctrl_c(error):
                end_interrupted(runtime)
            raise
        if self._end_command and not runtime.session.pending and not runtime.session.detached:
            self._run_end_command(runtime.session)

    def _run_end_command(self, session: SubmitterSession) -> None:
        """Run the command for the end of the calls at the first request: ``shutdown`` may be called several times."""
        from spoolpool.client.end_command import run_end_command

        with self._lock:
            command, self._end_command = self._end_command, ""
        if command:
            ends = {end: count for end, count in self.counts().items() if end != "pending"}
            run_end_command(command, ends, spool=session.spool.path, session=session.name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do as ``shutdown()``. After Ctrl-C waiting calls are taken back and running ones interrupted.

        Those of a named session stay in it.
        """
        from spoolpool.client.ctrl_c import end_interrupted, is_ctrl_c

        runtime = self._runtime
        if runtime is None or self._shut or os.getpid() != self._pid or not is_ctrl_c(error):
            self.shutdown(wait=True)
            return
        with self._lock:
            self._shut = True
        end_interrupted(runtime)

    def detach(self) -> None:
        """Accept no more calls and wait for none: the tasks go on, and their results stay in the session.

        Only for an attached executor without groups of its own (else :class:`BadRequest`). Its pending futures get no
        outcome; :meth:`futures` of a later executor of the same session returns new ones.
        """
        self.shutdown(detach=True)

    # -- the graph

    def plot_dependency_graph(self, filename: str | os.PathLike[str] | None = None) -> str:
        """Return the dependency graph of the tasks as text for Graphviz, and write it to a file if one is named.

        The suffix of the file name is the form: ``.dot`` (the same text), ``.mmd`` (Mermaid), or a picture such as
        ``.svg``, for which Graphviz must be installed (``dot`` on ``PATH``; else :class:`BadRequest`). The graph has
        the unfinished tasks, and the finished ones that have dependencies or dependents.
        """
        from spoolpool.monitor import graph

        nodes = self._nodes()
        if filename is not None:
            graph.draw(nodes, filename)
        return graph.dot(nodes)

    def export_workflow(self, filename: str | os.PathLike[str]) -> None:
        """Write the same graph as JSON; ``docs/workflows.md`` describes the format."""
        from spoolpool.monitor import graph

        graph.export(self._nodes(), filename)

    def _nodes(self) -> list[graph.Node]:
        return self._last_runtime().session.pending.nodes()

    # -- the interface of pympipool

    @property
    def max_workers(self) -> int:
        """Number of worker groups of this executor; assign to it to add or end groups while it runs."""
        return self._max_workers

    @max_workers.setter
    def max_workers(self, count: int) -> None:
        count = read_count("max_workers", count, 1)
        with self._lock:
            runtime = self._require_runtime()
            if runtime.pool is None:
                raise BadRequest(
                    "Cannot change max_workers: this executor started no worker groups on this host. Start groups with "
                    "spool-worker, or create the executor with max_workers= (or, for batch jobs, Sbatch(max_jobs=))."
                )
            self._max_workers = count
            shape = self._options.shape
            runtime.cores = count * shape.cores
            runtime.pool.resize(shape, count)
        runtime.flush()  # gathered calls are for new groups, too

    @property
    def info(self) -> dict[str, Any]:
        """Sizes, spool, session and backend of this executor."""
        runtime, options = self._last_runtime(), self._options
        return {
            "max_workers": self._max_workers if runtime.pool is not None else None,
            "cores": options.shape.ranks,
            "threads_per_core": options.shape.threads,
            "gpus_per_core": options.shape.gpus,
            "backend": options.backend.name,
            "spool": runtime.spool.path,
            "session": runtime.session.name,
            "queue": options.submission.queue,
        }

    def counts(self) -> dict[str, int]:
        """Return the number of tasks of this executor that are ``pending``, and of the others by their ends.

        The ends are those of ``spool status`` and ``spool report``: ``done``, ``raised``, ``lost``, ``cancelled``,
        ``failed`` and ``vanished``. Of tasks that ``map`` makes of several calls, each counts once. Reads no file.
        """
        from spoolpool.monitor.states import ENDS

        pending = self._last_runtime().session.pending
        gathered = self._packer.count_open() if self._packer is not None else 0
        with pending.lock:
            count = pending.count_calls() + gathered
            return {"pending": count, **{end: pending.ends[end] for end in ENDS if end != "removed"}}

    def __repr__(self) -> str:
        """Return spool, session and number of pending calls. Asks no file."""
        runtime = self._runtime
        if runtime is None or self._shut:
            return f"<{type(self).__name__}, ended>"
        if os.getpid() != self._pid:  # counts() would open a session of this process
            return f"<{type(self).__name__} of the parent process>"
        session = runtime.session
        pending = f"{self.counts()['pending']} pending"
        overflow = session.spool.overflow
        where = session.spool.path if overflow is None else f"{session.spool.path} (large values: {overflow.path})"
        return f"<{type(self).__name__} of {where}, session {session.name}, {pending}>"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows: :attr:`info` and :meth:`counts`. Asks no file."""
        import html

        from spoolpool.monitor.states import describe_counts

        runtime = self._runtime
        rows: dict[str, object] = {"": type(self).__name__ + ", ended" * (self._shut or runtime is None)}
        if runtime is not None and not self._shut and os.getpid() != self._pid:
            rows = {"": f"{type(self).__name__} of the parent process"}
        elif runtime is not None:
            counts = self.counts()
            rows |= {**self.info, "tasks": describe_counts(counts, ("pending", "done"))}
        lines = (
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items()
        )
        return f"<table>{''.join(lines)}</table>"

    def __len__(self) -> int:
        """Number of tasks of this executor that no worker has claimed yet."""
        return (
            self._runtime.session.pending.count_unclaimed() + (self._packer.count_open() if self._packer else 0)
            if self._runtime is not None and os.getpid() == self._pid
            else 0
        )

    def __bool__(self) -> bool:
        return True

    def after_fork(self) -> None:
        """Fail the pending futures in a forked child: they, the threads and the groups are the parent's.

        The next ``submit`` opens a session and groups of the child's own.
        """
        self._lock = threading.RLock()
        if self._runtime is not None:
            self._runtime.session.after_fork()

    # -- inside

    def _require_runtime(self) -> ExecutorRuntime:
        """Return the runtime of this process. Raises ``RuntimeError`` after :meth:`shutdown`."""
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if os.getpid() != self._pid:  # in a forked child the runtime is the parent's
            self._finalizer.detach()
            self._open()
        assert self._runtime is not None
        return self._runtime

    @property
    def _packer(self) -> Packer | None:
        """Packer of the calls, once there is one."""
        return self._submission.packer

    def _last_runtime(self) -> ExecutorRuntime:
        """Return the runtime, also after :meth:`shutdown`."""
        return self._runtime if self._shut and self._runtime is not None else self._require_runtime()


class MPIExecutor(Executor):
    """Executor with worker groups started by mpiexec; takes the arguments of :class:`Executor`."""

    __module__ = "spoolpool"

    default_backend = "mpiexec"


class SlurmExecutor(Executor):
    """Executor with worker groups as steps of the surrounding Slurm job; takes the arguments of :class:`Executor`."""

    __module__ = "spoolpool"

    default_backend = "srun"


class FluxExecutor(Executor):
    """Executor with worker groups as jobs of a surrounding Flux instance; takes the arguments of :class:`Executor`."""

    __module__ = "spoolpool"

    default_backend = "flux"
