"""Submission of the calls of an executor: pickled, then put into the spool, into a pack, or deferred."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from spoolpool.calls import pickling
from spoolpool.client.prepared_call import PreparedCall
from spoolpool.client.preview import cut_label, describe
from spoolpool.system.environment import working_directory

if TYPE_CHECKING:
    import threading

    from spoolpool.client.executor_runtime import ExecutorRuntime
    from spoolpool.client.options import ExecutorOptions
    from spoolpool.client.packing import Packer
    from spoolpool.resources import Resources


class CallSubmission:
    """Way of the calls of an executor into the spool of one runtime. May be used from several threads.

    A call has a task of its own, shares one with others in a pack, or waits in this process for its arguments.
    """

    def __init__(self, options: ExecutorOptions, runtime: ExecutorRuntime, lock: threading.RLock) -> None:
        """``lock`` is that of the executor, which also starts and ends groups."""
        self._options = options
        self._runtime = runtime
        self._lock = lock
        self.packer: Packer | None = None
        """Packer of the calls, once there is one."""
        if options.submission.pack:
            self.find_packer()

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], resources: Resources
    ) -> Future[Any]:
        """Submit a call and return its future, or that of an earlier equal call; see ``Executor.submit``."""
        options, runtime = self._options, self._runtime
        key = ""
        if runtime.replay is not None:
            key = runtime.replay.key(function, args, kwargs, resources)
            if (earlier := runtime.replay.next_future(key)) is not None:
                return earlier
        cache_key, cached = "", None
        if runtime.memo is not None:
            cache_key, cached = runtime.memo.find(function, args, kwargs, resources, runtime.session)
        if cached is not None:
            return cached
        references = runtime.new_references(resources)
        try:
            name, arguments = describe(function, args, kwargs, runtime.previews and not resources.label)
            call = PreparedCall(
                function,
                name,
                options.lane(resources).name,
                *pickling.dumps_call(function, args, kwargs, references.refer, options.submission.least_shared),
                resources,
                references,
                init=runtime.init,
                key=key,
                cache=cache_key,
                directory="" if resources.cwd else working_directory(),
                label=cut_label(resources.label) if resources.label else "",
                arguments=arguments,
            )
            if references.awaited:
                with self._lock:
                    runtime.prepare(resources.shape)
                replay = runtime.replay
                find = None if replay is None else replay.finder(function, args, kwargs, resources, references.awaited)
                return runtime.deferred.defer(call, find)
            return self._gather_or_submit(call)
        except BaseException:
            references.release()
            raise

    def _gather_or_submit(self, call: PreparedCall) -> Future[Any]:
        """Gather a call for a pack, or submit it as a task of its own."""
        runtime = self._runtime
        packer = None if call.cache or self._is_lone() else self.packer or self.find_packer()
        packed = None if packer is None else packer.gather(call)
        if packed is not None:
            return packed
        with self._lock:
            runtime.prepare(call.resources.shape)
        future = runtime.submit(call)
        if packer is not None:
            packer.count_unpacked(call, future)
        return future

    def _is_lone(self) -> bool:
        """Return whether a call is submitted while no other one is pending: it needs no packer, and no callback."""
        if self._runtime.session.pending or self._options.submission.pack:
            return False
        return self.packer is None or not self.packer.count_open()

    def find_packer(self) -> Packer | None:
        """Return the packer, which is made at the first request; None if the calls are not packed."""
        with self._lock:
            if self.packer is None and self._runtime.may_pack:
                from spoolpool.client.packing import Packer

                self.packer = Packer(self._runtime)
            return self.packer
