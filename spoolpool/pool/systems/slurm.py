"""Commands of Slurm."""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Literal

from spoolpool.errors import LauncherError
from spoolpool.pool.systems.base import ActiveJob, BatchSystem, EndedJob, JobPart, run
from spoolpool.system.job_ids import base_id, without_limit

if TYPE_CHECKING:
    from spoolpool.batch_backends import BatchBackend

_PENDING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
"""States of a job that has not begun. Slurm also lists jobs that run or are about to end."""
_STATES: dict[str, Literal["timeout", "lost", "cancelled"]] = {
    "TIMEOUT": "timeout",
    "CANCELLED": "cancelled",
    "DEADLINE": "cancelled",
    "NODE_FAIL": "lost",
    "BOOT_FAIL": "lost",
    "PREEMPTED": "lost",
    "REVOKED": "lost",
}
"""Ends of a job that are no failure of its script."""
_WORST = ("failed", "timeout", "lost", "done", "cancelled")  # the first of these that a part has counts for the job
_FIELD = re.compile(r"(?:^| )(\w+)=(\S*)")


class Slurm(BatchSystem):
    """Slurm, through ``sbatch``, ``squeue``, ``scontrol``, ``sacct`` and ``scancel``."""

    mark = "#SBATCH"
    submit_command = ("sbatch", "--parsable")
    name_option = ("--job-name=",)
    default_options = (("partition", ("--partition", "-p")), ("account", ("--account", "-A")))

    def resources(self, backend: BatchBackend, time: str) -> list[str]:
        """Return the options for whole nodes and a walltime."""
        return [f"--nodes={backend.nodes}", "--exclusive", f"--time={time}"]

    def output_options(self, path: str) -> list[str]:
        """Return the options for one output file."""
        return ["--open-mode=append", f"--output={shlex.quote(path.replace('%', '%%'))}"]

    def job_id(self, answer: str) -> str:
        """Return the id of a submitted job."""
        return answer.partition(";")[0]

    def active_jobs(self) -> dict[str, ActiveJob]:
        """Return the pending and running jobs by name."""
        command = ["squeue", "--noheader", f"--user={os.geteuid()}", "--format=%i|%T|%j"]
        rows = [line.strip().split("|", 2) for line in run(command, "list the batch jobs").splitlines()]
        found: dict[str, list[JobPart]] = {}
        for job, state, name in (row for row in rows if len(row) == 3):
            found.setdefault(name, []).append(JobPart(job, "pending" if state in _PENDING else "running"))
        return {name: _join(parts) for name, parts in found.items()}

    def listed_ids(self, job: str) -> frozenset[str]:
        """Return the ids under which squeue lists a job; none if it is unknown or Slurm does not answer.

        Each element of an array has a further id, which is ``SLURM_JOB_ID`` in it.
        """
        if not job.isdecimal():
            return frozenset()
        try:
            return frozenset(run(["squeue", "--noheader", f"--jobs={job}", "--format=%i"], "look for a job").split())
        except LauncherError:  # it is unknown, or Slurm is away
            return frozenset()

    def ended_job(self, name: str) -> EndedJob | None:
        """Return the end of a job; None if it has not ended, or is unknown.

        The controller knows an ended job for some minutes (MinJobAge), the accounting for longer.
        """
        command = ["squeue", "--noheader", "--states=all", f"--user={os.geteuid()}", f"--name={name}", "--format=%i"]
        if jobs := run(command, "ask for a batch job").split():
            shown = run(["scontrol", "--oneliner", "show", "job", base_id(jobs[-1])], "ask for a batch job")
            ends = [_ended_part(dict(_FIELD.findall(line))) for line in shown.splitlines() if line.strip()]
            known = [end for end in ends if end is not None]
            return min(known, key=lambda end: _WORST.index(end.state)) if len(known) == len(ends) > 0 else None
        since = "--starttime=now-7days"
        command = ["sacct", "--allocations", "--noheader", "--parsable2", since, f"--name={name}"]
        try:
            lines = run([*command, "--format=JobID,State,ExitCode"], "ask for a batch job").splitlines()
        except LauncherError:  # this Slurm keeps no accounts
            return None
        row = lines[-1].split("|") if lines else []
        return _ended(*row[:3]) if len(row) >= 3 else None

    def cancel(self, job: str, name: str) -> None:
        """Cancel a job if it has this name, since the id may have been given to another job meanwhile.

        The name of a part is not checked: with a name, scancel would cancel all pending elements of an array beside the
        given one.
        """
        names = [] if base_id(job) != job else [f"--jobname={name}"]
        run(["scancel", "--quiet", *names, without_limit(job)], "cancel a batch job")

    def cluster(self) -> str:
        """Return the name of the cluster."""
        for line in run(["scontrol", "show", "config"], "ask for the name of the cluster").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "ClusterName":
                return value.strip()
        return ""


def _ended(job: str, state: str, code: str, reason: str = "", output: str = "") -> EndedJob | None:
    """Return an end from a state such as ``CANCELLED by 0`` and a code such as ``1:0``, exit status and signal."""
    word = state.partition(" ")[0]
    if word in _PENDING or word in ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", ""):
        return None
    status, _, signal = code.partition(":")
    exit_status = int(status) if status.isdigit() else None
    if signal.isdigit() and int(signal):
        exit_status = -int(signal)
    if word == "COMPLETED":
        return EndedJob(job, "done", exit_status, output=output)
    told = f"{word} ({reason})" if reason not in ("", "None", word, "NonZeroExitCode") else word
    return EndedJob(job, _STATES.get(word, "failed"), exit_status, told, output)


def _ended_part(found: dict[str, str]) -> EndedJob | None:
    """Return the end of a job, an element of an array or a component of a heterogeneous job."""
    job = found.get("JobId", "")
    if "ArrayTaskId" in found:
        element = found["ArrayTaskId"]
        job = f"{found.get('ArrayJobId', job)}_{element if element.isdecimal() else f'[{element}]'}"
    elif "HetJobOffset" in found:
        job = f"{found.get('HetJobId', job)}+{found['HetJobOffset']}"
    state, code, reason = found.get("JobState", ""), found.get("ExitCode", ""), found.get("Reason", "")
    return _ended(job, state, code, reason, found.get("StdOut", ""))


def _join(parts: list[JobPart]) -> ActiveJob:
    """Return the job of parts that have the same name."""
    running = any(part.state == "running" for part in parts)
    job = parts[0].id if len(parts) == 1 else base_id(parts[0].id)
    return ActiveJob(job, "running" if running else "pending", parts=tuple(parts))
