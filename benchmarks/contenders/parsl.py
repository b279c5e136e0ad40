"""Parsl's high-throughput executor: an interchange and a pool of processes behind ZeroMQ sockets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.contender import Contender, Environment, Job
from benchmarks.measures import Submits, of_executor


@contextmanager
def executor(job: Job) -> Iterator[Submits]:
    """One block on this host."""
    from parsl.concurrent import ParslPoolExecutor
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    workers = HighThroughputExecutor(
        label="workers",
        address="127.0.0.1",
        max_workers_per_node=job.workers,
        cores_per_worker=0.01,
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
    )
    config = Config(executors=[workers], run_dir=f"{job.directory}/runinfo", usage_tracking=0)
    with ParslPoolExecutor(config=config) as pool:
        yield pool


CONTENDER = Contender(
    name="Parsl HTEX",
    module=__name__,
    measures=of_executor(executor),
    environment=Environment(name="parsl", requires=("parsl",)),
)

if __name__ == "__main__":
    CONTENDER.main()
