"""HyperQueue: a server and workers behind TCP sockets, and a new interpreter for each Python function.

It returns no values, so each function leaves its own in a file.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import tasks
from benchmarks.contender import Contender, Environment, Job
from benchmarks.measures import Pending, Submits, of_executor


class _Future:
    def __init__(self, client: Any, job: Any, path: str) -> None:
        self._client, self._job, self._path = client, job, path

    def result(self) -> Any:
        self._client.wait_for_jobs([self._job])
        return _read(self._path)


class _Client:
    def __init__(self, client: Any, directory: str) -> None:
        self._client, self._directory = client, directory
        self._count = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        job, (path,) = self._job(fn, [args])
        return _Future(self._client, self._client.submit(job), path)

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        job, paths = self._job(fn, zip(*iterables, strict=False))
        self._client.wait_for_jobs([self._client.submit(job)])
        return [_read(path) for path in paths]

    def _job(self, fn: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> tuple[Any, list[str]]:
        from hyperqueue import Job as Calls

        job, paths = Calls(default_workdir=self._directory), []
        for args in calls:
            self._count += 1
            paths.append(f"{self._directory}/value.{self._count}")
            job.function(tasks.into_file, args=(paths[-1], fn, args), stdout=None, stderr=None)
        return job, paths


def _read(path: str) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)


@contextmanager
def executor(job: Job) -> Iterator[Submits]:
    """Workers of one core on this host."""
    os.environ["TQDM_DISABLE"] = "1"
    from hyperqueue import LocalCluster
    from hyperqueue.cluster import WorkerConfig
    from hyperqueue.task.function import PythonEnv

    with LocalCluster(f"{job.directory}/server") as cluster:
        for _ in range(job.workers):
            cluster.start_worker(WorkerConfig(cores=1))
        yield _Client(cluster.client(python_env=PythonEnv(python_bin=sys.executable)), job.directory)


CONTENDER = Contender(
    name="HyperQueue",
    module=__name__,
    measures=of_executor(executor),
    environment=Environment(name="hyperqueue", requires=("hyperqueue",)),
)

if __name__ == "__main__":
    CONTENDER.main()
