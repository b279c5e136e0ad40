"""A contender in its own process: its job and its answer."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Samples = dict[str, list[float]]
"""Measured values by quantity. A name that is no quantity of the row is reported as a fact beside it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work for one contender."""

    measure: str
    """Name of the measure."""
    directory: str
    """Empty directory of the job, on the measured filesystem."""
    answer: str
    """File for the figures."""
    elsewhere: str = ""
    """The same directory through the mount of the workers, if they have their own."""
    harness: int
    """Process id of the harness."""
    variant: str = ""
    """Mode of the contender, if it has several."""
    workers: int = 1
    """Number of worker processes, or of groups of ranks."""
    ranks: int = 1
    """MPI ranks of a group."""
    tasks: int = 100
    """Number of measured calls."""
    warm: int = 20
    """Number of calls before them, not measured."""
    seconds: float = 10.0
    """Time after which a slow contender makes fewer calls; or time to observe an idle one."""
    bytes: int = 0
    """Size of an array."""


Measure = Callable[[Job], Samples]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Environment of a library: its own virtual environment, or, without requirements, that of this project."""

    name: str
    """Directory in the cache; contenders with the same name share it."""
    requires: tuple[str, ...] = ()
    """Requirements in the syntax of pip."""


OURS = Environment(name="spoolpool")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Measured program."""

    name: str
    """Name in reports."""
    module: str
    """Module for ``python -m``."""
    measures: Mapping[str, Measure]
    """Its measures by name."""
    environment: Environment = OURS
    """Environment of its library."""
    launch: Callable[[str, Job], list[str]] | None = None
    """Function that returns the command line in place of ``python``, for an interpreter and a job, without ``-m``."""

    def command(self, python: str, job: Job) -> list[str]:
        """Return the command line of the job."""
        first = self.launch(python, job) if self.launch else [python]
        return [*first, "-m", self.module, json.dumps(dataclasses.asdict(job))]

    def main(self) -> None:
        """Do the job of the command line, in the process that :meth:`command` starts."""
        job = Job(**json.loads(sys.argv[1]))
        samples = self.measures[job.measure](job)
        with open(f"{job.answer}.part", "w", encoding="utf-8") as file:
            json.dump(samples, file)
        os.rename(f"{job.answer}.part", job.answer)
