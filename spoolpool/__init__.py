"""spoolpool: a queue that consists of files, and worker groups that run Python functions from it.

Submit on a login node, run on the ranks of running MPI groups inside batch jobs, get real futures; the shared
filesystem is the only transport. **A pickle is a program**: everyone who can put a task into a spool runs code as
its workers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from spoolpool.client.progress_bar import as_completed, wait
from spoolpool.context import CurrentTask, current_task

if TYPE_CHECKING:
    from spoolpool.backends import Flux, Mpiexec, Srun
    from spoolpool.batch_backends import FluxBatch, LsfBatch, PbsBatch, Sbatch, SgeBatch
    from spoolpool.calls.pickling import ObjectRef
    from spoolpool.client.futures import get_item_from_future, split_future
    from spoolpool.client.result_cache import get_cache_data
    from spoolpool.executor import Executor, FluxExecutor, MPIExecutor, SlurmExecutor
    from spoolpool.multiprocessing import Pool
    from spoolpool.options import Session, Submission
    from spoolpool.programs import ShellExecutor, SubprocessExecutor
    from spoolpool.protocol.spool import Spool

__version__ = "0.1.0"

_WHERE = {
    "Executor": "spoolpool.executor",
    "Flux": "spoolpool.backends",
    "FluxBatch": "spoolpool.batch_backends",
    "FluxExecutor": "spoolpool.executor",
    "LsfBatch": "spoolpool.batch_backends",
    "MPIExecutor": "spoolpool.executor",
    "Mpiexec": "spoolpool.backends",
    "ObjectRef": "spoolpool.calls.pickling",
    "PbsBatch": "spoolpool.batch_backends",
    "Pool": "spoolpool.multiprocessing",
    "Sbatch": "spoolpool.batch_backends",
    "Session": "spoolpool.options",
    "SgeBatch": "spoolpool.batch_backends",
    "ShellExecutor": "spoolpool.programs",
    "SlurmExecutor": "spoolpool.executor",
    "Spool": "spoolpool.protocol.spool",
    "Srun": "spoolpool.backends",
    "Submission": "spoolpool.options",
    "SubprocessExecutor": "spoolpool.programs",
    "get_cache_data": "spoolpool.client.result_cache",
    "get_item_from_future": "spoolpool.client.futures",
    "split_future": "spoolpool.client.futures",
}

__all__ = [
    "CurrentTask",
    "Executor",
    "Flux",
    "FluxBatch",
    "FluxExecutor",
    "LsfBatch",
    "MPIExecutor",
    "Mpiexec",
    "ObjectRef",
    "PbsBatch",
    "Pool",
    "Sbatch",
    "Session",
    "SgeBatch",
    "ShellExecutor",
    "SlurmExecutor",
    "Spool",
    "Srun",
    "Submission",
    "SubprocessExecutor",
    "as_completed",
    "current_task",
    "get_cache_data",
    "get_item_from_future",
    "split_future",
    "wait",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is used first: a worker needs no executor, and the version needs no import."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'spoolpool' has no attribute {name!r}")
