"""Batch job around this process, as the variables of its batch system tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, NamedTuple


class BatchJob(NamedTuple):
    """Batch job of a system other than Flux, whose instances are known by their own variables."""

    system: Literal["slurm", "pbs", "lsf", "sge"]
    id: str
    """Id, as the commands of the system take it: ``7[2].server`` for an element of an array of PBS, ``7[2]`` of LSF,
    ``7.2`` of Grid Engine."""


def find_batch_job(environment: Mapping[str, str] = os.environ) -> BatchJob | None:
    """Return the batch job around this process, or None."""
    if job := environment.get("SLURM_JOB_ID"):
        return BatchJob("slurm", job)
    if job := environment.get("PBS_JOBID"):
        return BatchJob("pbs", job)
    if job := environment.get("LSB_JOBID"):
        index = environment.get("LSB_JOBINDEX", "0")
        return BatchJob("lsf", job if index in ("", "0") else f"{job}[{index}]")
    # JOB_ID alone may be a variable of anything
    if (job := environment.get("JOB_ID")) and (task := environment.get("SGE_TASK_ID")):
        return BatchJob("sge", job if task == "undefined" else f"{job}.{task}")
    return None
