"""Ray: worker processes behind sockets, with a shared-memory store for values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.contender import Contender, Environment, Job
from benchmarks.measures import Pending, Submits, of_executor


class _Reference:
    """Reference to a value, read as a future."""

    def __init__(self, reference: Any, get: Callable[[Any], Any]) -> None:
        self._reference = reference
        self._get = get

    def result(self) -> Any:
        return self._get(self._reference)


class _Functions:
    """Remote functions, which each are exported once."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._remote: dict[Callable[..., Any], Any] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        remote = self._remote.get(fn)
        if remote is None:  # a builtin function cannot be remote itself
            remote = self._remote[fn] = self._ray.remote(lambda *given: fn(*given))  # noqa: PLW0108  a plain function
        return _Reference(remote.remote(*args), self._ray.get)


@contextmanager
def executor(job: Job) -> Iterator[Submits]:
    """A cluster of one node with as many workers, without a dashboard."""
    import ray

    ray.init(num_cpus=job.workers, include_dashboard=False, log_to_driver=False, _temp_dir=job.directory)
    try:
        yield _Functions(ray)
    finally:
        ray.shutdown()


CONTENDER = Contender(
    name="Ray",
    module=__name__,
    measures=of_executor(executor),
    environment=Environment(name="ray", requires=("ray", "numpy")),
)

if __name__ == "__main__":
    CONTENDER.main()
