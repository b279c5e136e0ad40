"""Commands of LSF."""

from __future__ import annotations

import os
import re
import shlex
from typing import Literal

from spoolpool.batch_backends import BatchBackend, LsfBatch
from spoolpool.errors import LauncherError
from spoolpool.pool.systems.base import ActiveJob, BatchSystem, EndedJob, common_cores, run, without_given
from spoolpool.system.accounts import account_name

_PENDING = frozenset({"PEND", "PSUSP", "WAIT", "PROV"})
_ENDED = frozenset({"DONE", "EXIT"})
_SUBMITTED = re.compile(r"Job <(\d+)> is submitted")
_NO_JOB = 255  # status of bjobs, at some sites, if there is no job
_UP = re.compile(r"ok|closed(?:_(?:Full|Excl|Busy|cu_Excl))?")
_LOST = "-"  # value of a field without one
_KINDS: dict[str, Literal["timeout", "lost", "cancelled"]] = {
    "TERM_RUNLIMIT": "timeout",
    "TERM_DEADLINE": "timeout",
    "TERM_OWNER": "cancelled",
    "TERM_ADMIN": "cancelled",
    "TERM_FORCE_OWNER": "cancelled",
    "TERM_FORCE_ADMIN": "cancelled",
    "TERM_PREEMPT": "lost",
    "TERM_REMOVE_HUNG_JOB": "lost",
}
"""Ends of a job that are no failure of its script, by the reason of LSF."""


class LSF(BatchSystem):
    """LSF, through ``bsub``, ``bjobs``, ``bhosts``, ``lsid`` and ``bkill``."""

    mark = "#BSUB"
    submit_command = ("bsub",)
    name_option = ("-J",)
    default_options = (("queue", ("-q",)), ("account", ("-P",)))

    def resources(self, backend: BatchBackend, time: str) -> list[str]:
        """Return the options for whole nodes and a walltime."""
        assert isinstance(backend, LsfBatch)
        given = backend.directives
        if not without_given(["-n"], given) or not without_given(["-nnodes"], given):
            return without_given([f"-W {time}"], given)
        cores = backend.cores or self._cores_of_a_node()
        size = [f"-n {backend.nodes * cores}", f'-R "span[ptile={cores}]"']
        return [*size, *without_given([f"-W {time}"], given)]

    def _cores_of_a_node(self) -> int:
        rows = [line.split() for line in run(["bhosts", "-w"], "ask for the cores of a node").splitlines()[1:]]
        slots = [row[3] for row in rows if len(row) >= 4 and _UP.fullmatch(row[1])]
        return common_cores((int(number) for number in slots if number.isdigit()), "bhosts")

    def output_options(self, path: str) -> list[str]:
        """Return the options for one output file, to which ``-o`` appends.

        Raises :class:`LauncherError` for a path with a percent sign: LSF replaces ``%J`` and ``%I``, which cannot be
        quoted.
        """
        if "%" in path:
            raise LauncherError(f"LSF takes no output file with a % in its path: {path}. Use a spool without one.")
        return [f"-o {shlex.quote(path)}"]

    def job_id(self, answer: str) -> str:
        """Return the id of a submitted job."""
        match = _SUBMITTED.search(answer)
        if match is None:
            raise LauncherError(f"Cannot submit a batch job: bsub says: {answer}")
        return match[1]

    def active_jobs(self) -> dict[str, ActiveJob]:
        """Return the pending and running jobs by name."""
        rows = self._ask("jobid jobindex stat job_name", [])
        return {
            name: ActiveJob(_with_index(job, index), "pending" if state in _PENDING else "running")
            for job, index, state, name in rows
            if state not in _ENDED
        }

    def ended_job(self, name: str) -> EndedJob | None:
        """Return the end of a job; None if it is unknown. LSF keeps ended jobs for an hour (CLEAN_PERIOD)."""
        for job, state, code, reason, output in self._ask(
            "jobid stat exit_code exit_reason output_file", ["-a", "-J", name]
        ):
            status = int(code) if code.isdigit() else None
            path = "" if output == _LOST else output
            if state == "DONE":
                return EndedJob(job, "done", 0, output=path)
            if state == "EXIT":
                status = 128 - status if status is not None and status > 128 else status
                told = "" if reason == _LOST else reason
                return EndedJob(job, _KINDS.get(told.partition(":")[0], "failed"), status, told, path)
        return None

    @staticmethod
    def _ask(fields: str, options: list[str]) -> list[list[str]]:
        """Return the fields of jobs of this account."""
        command = ["bjobs", "-noheader", "-u", account_name(os.geteuid()), *options]
        answer = run([*command, "-o", f"{fields} delimiter='|'"], "list the batch jobs", accepted=(0, _NO_JOB))
        width = len(fields.split())
        rows = [line.strip().split("|", width - 1) for line in answer.splitlines()]
        return [[value.strip() for value in row] for row in rows if len(row) == width]

    def cancel(self, job: str, name: str) -> None:
        """Cancel the job of this name: ids begin again at 1 after some time. Job 0 stands for all jobs of this name."""
        run(["bkill", "-J", name, "0"], "cancel a batch job")

    def cluster(self) -> str:
        """Return the name of the cluster."""
        match = re.search(r"My cluster name is (\S+)", run(["lsid"], "ask for the name of the cluster"))
        return match[1] if match else ""


def _with_index(job: str, index: str) -> str:
    return f"{job}[{index}]" if index.isdigit() and index != "0" else job
