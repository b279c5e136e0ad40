"""Measurements by one job of a contender, in its own process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.contender import Contender, Job, Samples
from benchmarks.row import Place, Take


def job_of(contender: Contender, measure: str, **options: Any) -> Take:
    """Return the measurement of an entry: this job of the contender."""
    return lambda place: run_job(contender, place, measure, options)


def run_job(
    contender: Contender, place: Place, measure: str, options: Mapping[str, Any], prefix: Sequence[str] = ()
) -> Samples:
    """Run a job of a contender, behind the command ``prefix``; return its samples.

    The job has a directory of the place, unless ``options`` has a ``directory``. Raises
    :class:`~benchmarks.row.Failed`.
    """
    answer = f"{place.directory}/answer.json"
    directory = f"{place.directory}/d"
    os.mkdir(directory)
    given = {"measure": measure, "directory": directory, "answer": answer, "harness": os.getpid()}
    job = Job(**{**given, **options})
    place.run([*prefix, *contender.command(place.python, job)], answer)
    with open(answer, encoding="utf-8") as file:
        samples: Samples = json.load(file)
    return samples
