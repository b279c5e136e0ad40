"""Commands of Flux."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Literal

from spoolpool.pool.systems.base import ActiveJob, BatchSystem, EndedJob, run

if TYPE_CHECKING:
    from spoolpool.batch_backends import BatchBackend

_PENDING = frozenset({"DEPEND", "PRIORITY", "SCHED"})
_STATES: dict[str, Literal["timeout", "cancelled"]] = {"TIMEOUT": "timeout", "CANCELED": "cancelled"}
_LOST = frozenset({"node-failure", "preempt"})  # exceptions that say nothing about the job
_JOBS = ("flux", "jobs", "--no-header", "--count=0")


class Flux(BatchSystem):
    """Flux, through ``flux batch``, ``flux jobs`` and ``flux cancel``."""

    mark = "# flux:"
    submit_command = ("flux", "batch")
    name_option = ("--job-name=",)
    default_options = (("queue", ("--queue", "-q")), ("account", ("--bank", "-B")))

    def resources(self, backend: BatchBackend, time: str) -> list[str]:
        """Return the options for whole nodes and a walltime."""
        return [f"--nodes={backend.nodes}", "--exclusive", f"--time-limit={time}"]

    def output_options(self, path: str) -> list[str]:
        """Return the options for one output file."""
        return [f"--output={shlex.quote(path)}"]

    def job_id(self, answer: str) -> str:
        """Return the id of a submitted job."""
        return answer.replace("\N{LATIN SMALL LETTER F WITH HOOK}", "f")  # as Flux lists it in ASCII

    def active_jobs(self) -> dict[str, ActiveJob]:
        """Return the pending and running jobs by name."""
        command = [*_JOBS, "--filter=active", "--format={id.f58plain}|{state}|{name}"]
        rows = [line.strip().split("|", 2) for line in run(command, "list the batch jobs").splitlines()]
        return {
            name: ActiveJob(job, "pending" if state in _PENDING else "running")
            for job, state, name in (row for row in rows if len(row) == 3)
        }

    def ended_job(self, name: str) -> EndedJob | None:
        """Return the end of a job."""
        form = "--format={id.f58plain}|{result}|{returncode}|{exception.type}|{exception.note}"
        lines = run([*_JOBS, "--filter=inactive", f"--name={name}", form], "ask for a batch job").splitlines()
        if not lines:
            return None
        job, result, code, kind, note = (lines[0].split("|", 4) + [""] * 5)[:5]
        status = int(code) if code.lstrip("-").isdigit() else None
        if status is not None and status > 128:
            status = 128 - status  # the shell of the job reports a signal like this
        if result == "COMPLETED":
            return EndedJob(job, "done", status)
        words = [word for word in (result, kind, note) if word]
        told = ": ".join(words)
        return EndedJob(job, "lost" if kind in _LOST else _STATES.get(result, "failed"), status, told)

    def cancel(self, job: str, name: str) -> None:
        """Cancel a job."""
        run(["flux", "cancel", "--quiet", job], "cancel a batch job")

    def cluster(self) -> str:
        """Return the hosts of the instance, which has no name."""
        return run(["flux", "getattr", "hostlist"], "ask for the name of the Flux instance")
