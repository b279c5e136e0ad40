"""One contender in a process of its own: what it is asked (a job), and how it answers."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Samples = dict[str, list[float]]
"""What was measured: quantity to values. What is no quantity of the row is reported as a fact beside it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work for one contender."""

    measure: str
    """Which of its measures."""
    directory: str
    """An empty directory of its own, on the filesystem that is measured."""
    answer: str
    """File for the figures."""
    elsewhere: str = ""
    """The same directory by another mount, where those who work have one of their own."""
    harness: int
    """Process id of who asks."""
    variant: str = ""
    """Which of its ways of working, where it has several."""
    workers: int = 1
    """Processes, or groups of ranks, that work."""
    ranks: int = 1
    """MPI ranks of a group."""
    tasks: int = 100
    """Calls to make."""
    warm: int = 20
    """Calls before them that are not measured."""
    seconds: float = 10.0
    """After which a slow contender makes fewer calls; or how long to watch an idle one."""
    bytes: int = 0
    """Size of an array."""


Measure = Callable[[Job], Samples]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a library lies: a virtual environment of its own, or (requiring nothing) that of this project."""

    name: str
    """Folder in the cache; the same for all contenders that share it."""
    requires: tuple[str, ...] = ()
    """Requirements, as pip takes them."""


OURS = Environment(name="spoolpool")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Who is measured."""

    name: str
    """For people."""
    module: str
    """To be run by ``python -m``."""
    measures: Mapping[str, Measure]
    """What it can do."""
    environment: Environment = OURS
    """Where its library is."""
    launch: Callable[[str, Job], list[str]] | None = None
    """The command in place of ``python``, for that Python and job; it ends before ``-m``."""

    def command(self, python: str, job: Job) -> list[str]:
        """How the job is started."""
        first = self.launch(python, job) if self.launch else [python]
        return [*first, "-m", self.module, json.dumps(dataclasses.asdict(job))]

    def main(self) -> None:
        """Do the job that the command line names; for the process that :meth:`command` starts."""
        job = Job(**json.loads(sys.argv[1]))
        samples = self.measures[job.measure](job)
        with open(f"{job.answer}.part", "w", encoding="utf-8") as file:
            json.dump(samples, file)
        os.rename(f"{job.answer}.part", job.answer)
