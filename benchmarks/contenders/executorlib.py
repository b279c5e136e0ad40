"""executorlib: warm workers behind ZeroMQ sockets, and one process per call with files between."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.contender import Contender, Environment, Job
from benchmarks.contenders.mpi4py_futures import MPI
from benchmarks.measures import Pending, Submits, of_executor


class _Files:
    """Its executor, with a key per call: by itself it takes equal calls for one, or hangs."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self._numbers = itertools.count()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        resources = {"cache_key": f"call{next(self._numbers)}"}
        future: Pending = self._executor.submit(fn, *args, resource_dict=resources)
        return future


@contextmanager
def executor(job: Job) -> Iterator[Submits]:
    """Variants: ``interactive``; ``plain``, which is the same without its thread for dependencies; ``file``."""
    from executorlib import SingleNodeExecutor
    from executorlib.api import TestClusterExecutor

    resources = {"cores": job.ranks}
    if job.variant == "file":
        if job.elsewhere:
            work_elsewhere(job)
        with TestClusterExecutor(cache_directory=f"{job.directory}/cache", resource_dict=resources) as files:
            yield _Files(files)
    else:
        with SingleNodeExecutor(
            max_workers=job.workers,
            resource_dict=resources,
            block_allocation=True,
            disable_dependencies=job.variant == "plain",
        ) as interactive:
            yield interactive


def work_elsewhere(job: Job) -> None:
    """Let the process of each call, PYTHON SCRIPT FILE, find the file by the other mount of the same directory."""
    python = f"{tempfile.gettempdir()}/python"
    with open(python, "w", encoding="ascii") as script:
        script.write(f'#!/bin/sh\nexec {sys.executable} "$1" "{job.elsewhere}${{2#{job.directory}}}"\n')
    os.chmod(python, 0o700)
    sys.executable = python


CONTENDER = Contender(
    name="executorlib",
    module=__name__,
    measures=of_executor(executor),
    environment=Environment(name="executorlib", requires=("executorlib", "h5py", "numpy", *MPI)),
)

if __name__ == "__main__":
    CONTENDER.main()
