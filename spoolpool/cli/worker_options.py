"""The options of ``spool-worker``, as they were given."""

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
    """The options of the command line; each field is one."""

    directory: str
    ranks: int | None
    threads: int
    gpus: int
    groups: int | None
    given_shapes: tuple[str, ...]
    launcher: str | None
    launch: LaunchOptions
    queues: dict[str, int]
    """Their weights by their names."""
    tags: tuple[str, ...]
    trusted: tuple[str, ...]
    trusted_groups: tuple[str, ...]
    idle_timeout: float | None
    max_tasks: int | None
    grace: float
    max_time: float | None
    drain: float
    group_of: int | None

    def shapes(self, *, alone: bool) -> list[tuple[Shape, int | None]]:
        """Shapes of groups and their numbers; ``alone``: of a shape without a number there is one."""
        if not self.given_shapes:
            shape = Shape(ranks=self.ranks or 1, threads=self.threads, gpus=self.gpus)
            return [(shape, self.groups or (1 if alone else None))]
        if self.groups or self.ranks or self.threads != 1 or self.gpus:
            raise BadRequest("--shape says it all: leave out --groups, --ranks, --threads and --gpus.")
        found = [read_shape(text) for text in self.given_shapes]
        if len({shape for shape, _ in found}) < len(found):
            raise BadRequest(f"One shape was given twice in {' '.join(self.given_shapes)}.")
        return found

    def for_groups(self) -> list[str]:
        """The options that a supervisor hands on to its groups."""
        arguments = [*common_arguments(), "--grace", str(self.grace), "--drain", str(self.drain)]
        arguments += [f"--queue={queue}={weight}" for queue, weight in self.queues.items()]
        arguments += [f"--tag={tag}" for tag in self.tags]
        for user in self.trusted:
            arguments += ["--trust-user", user]
        for group in self.trusted_groups:
            arguments += ["--trust-group", group]
        if self.idle_timeout is not None:
            arguments += ["--idle-timeout", str(self.idle_timeout)]
        if self.max_tasks is not None:
            arguments += ["--max-tasks", str(self.max_tasks)]
        return arguments


def weights_of(queues: Iterable[str]) -> dict[str, int]:
    """Weights by the names of queues, out of texts like ``fast=3``; 1 where none is given."""
    weights = {}
    for text in queues:
        name, given, weight = text.partition("=")
        if given and not (weight.isdecimal() and 1 <= int(weight) <= 1000):
            raise BadRequest(f"The weight of queue {name!r} is {weight!r}; it must be a whole number from 1 to 1000.")
        weights[check_queue(name)] = int(weight or 1)
    return weights
