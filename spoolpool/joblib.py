"""Backend for joblib's ``Parallel`` that runs in worker groups.

::

    import spoolpool.joblib  # registers the backend

    with joblib.parallel_config("spoolpool", spool="/shared/project/spool"):
        joblib.Parallel()(joblib.delayed(function)(x) for x in xs)

The arguments after the backend's name are those of :class:`spoolpool.Executor`. joblib packs short calls into batches
by itself; each batch is one task here.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, register_parallel_backend

from spoolpool.executor import Executor
from spoolpool.protocol import workers
from spoolpool.protocol.spool import Spool


class Backend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """Backend with one executor, created for the first batch and kept for all calls within one ``parallel_config``."""

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any):
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        if inner_max_num_threads is not None:
            options.setdefault("threads_per_core", inner_max_num_threads)
        self._options = options
        self._executor: Executor | None = None
        self._futures: weakref.WeakSet[Future[Any]] = weakref.WeakSet()

    def _get_executor(self) -> Executor:
        if self._executor is None:
            self._executor = Executor(**self._options)
        return self._executor

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of batches that run at the same time: as requested, else the number of groups.

        The default is at least 2, since joblib runs everything in the calling process if it is 1.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is not None and n_jobs > 0:
            return n_jobs
        info = self._get_executor().info
        return max(2, info["max_workers"] or len(workers.read_workers(Spool(info["spool"]))))

    def configure(
        self, n_jobs: int = 1, parallel: Any = None, prefer: Any = None, require: Any = None, **options: Any
    ) -> int:
        """Prepare for a call of ``Parallel``."""
        self.parallel = parallel
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Future[Any]:
        """Submit one batch."""
        future = self._get_executor().submit(func)
        self._futures.add(future)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return the values of a batch."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel the batches that no worker has claimed, after one batch failed."""
        for future in list(self._futures):
            future.cancel()

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Wrap the wait for results in nothing."""
        yield


register_parallel_backend("spoolpool", Backend)
