"""dask distributed: a scheduler and worker processes behind TCP sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.contender import Contender, Environment, Job
from benchmarks.measures import Pending, Submits, of_executor


class _Client:
    def __init__(self, client: Any) -> None:
        self._client = client

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        future: Pending = self._client.submit(fn, *args, pure=False)  # pure: equal calls would run once
        return future

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any]) -> Any:
        return self._client.gather(self._client.map(fn, *iterables, pure=False))


@contextmanager
def executor(job: Job) -> Iterator[Submits]:
    """Worker processes of one thread on this host."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=job.workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=job.directory,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield _Client(client)


CONTENDER = Contender(
    name="dask distributed",
    module=__name__,
    measures=of_executor(executor),
    environment=Environment(name="dask", requires=("distributed",)),
)

if __name__ == "__main__":
    CONTENDER.main()
