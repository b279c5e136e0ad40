"""Options of ``spool-worker``, as they were given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spoolpool.cli.output import common_arguments
from spoolpool.errors import BadRequest
from spoolpool.format.names import check_queue
from spoolpool.launch.launcher import LaunchOptions
from spoolpool.resources import Shape, read_shape


@dataclass(frozen=True, kw_only=True)
class WorkerCommandOptions:
    """Options of the command line, one in each field."""

    directory: str
    ranks: int | None
    threads: int
    gpus: int
    groups: int | None
    given_shapes: tuple[str, ...]
    launcher: str | None
    launch: LaunchOptions
    queues: dict[str, int]
    """Weights by the names of queues."""
    tags: tuple[str, ...]
    trusted: tuple[str, ...]
    trusted_groups: tuple[str, ...]
    idle_timeout: float | None
    max_tasks: int | None
    grace: float
    max_time: float | None
    drain: float
    notice: float | None
    group_of: int | None

    def shapes(self, *, single: bool) -> list[tuple[Shape, int | None]]:
        """Return the shapes of groups with their numbers, None for as many as fit.

        A shape without a number has one group if ``single``.
        """
        if not self.given_shapes:
            shape = Shape(ranks=self.ranks or 1, threads=self.threads, gpus=self.gpus)
            return [(shape, self.groups or (1 if single else None))]
        if self.groups or self.ranks or self.threads != 1 or self.gpus:
            raise BadRequest("--shape takes the place of --groups, --ranks, --threads and --gpus: leave those out.")
        requests = [read_shape(text) for text in self.given_shapes]
        if len({shape for shape, _ in requests}) < len(requests):
            raise BadRequest(f"One shape occurs twice in the options --shape: {' '.join(self.given_shapes)}.")
        return requests

    def group_arguments(self) -> list[str]:
        """Return the arguments that a supervisor passes to each group."""
        limits = {"--idle-timeout": self.idle_timeout, "--max-tasks": self.max_tasks}
        return [
            *common_arguments(),
            f"--grace={self.grace}",
            f"--drain={self.drain}",
            *(f"--queue={queue}={weight}" for queue, weight in self.queues.items()),
            *(f"--tag={tag}" for tag in self.tags),
            *(f"--trust-user={user}" for user in self.trusted),
            *(f"--trust-group={group}" for group in self.trusted_groups),
            *(f"{name}={value}" for name, value in limits.items() if value is not None),
        ]


def read_weights(queues: Iterable[str]) -> dict[str, int]:
    """Return the weights of queues by their names, read from texts such as ``fast=3``; 1 if a text has no weight."""
    weights = {}
    for text in queues:
        name, given, weight = text.partition("=")
        if given and not (weight.isdecimal() and 1 <= int(weight) <= 1000):
            raise BadRequest(f"The weight of queue {name!r} is {weight!r}; it must be a whole number from 1 to 1000.")
        weights[check_queue(name)] = int(weight or 1)
    return weights
