"""Measurements that are one job of a contender, in a process of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.contender import Contender, Job, Samples
from benchmarks.row import Place, Take


def job_of(contender: Contender, measure: str, **options: Any) -> Take:
    """An entry's measurement: have the contender do this."""
    return lambda place: run_job(contender, place, measure, options)


def run_job(
    contender: Contender, place: Place, measure: str, options: Mapping[str, Any], prefix: Sequence[str] = ()
) -> Samples:
    """Have a contender do a job, behind the command ``prefix``; what it found.

    In a directory of the place, unless ``options`` name another one as ``directory``. Raises
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
