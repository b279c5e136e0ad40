"""Commands of Grid Engine."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from xml.etree import ElementTree as ET

from spoolpool.batch_backends import BatchBackend, SgeBatch
from spoolpool.errors import LauncherError
from spoolpool.pool.systems.base import ActiveJob, BatchSystem, EndedJob, common_cores, run, without_given
from spoolpool.system.accounts import account_name

_SPECIAL = re.compile(r"[:,$]")
"""Characters of the path of an output file with a meaning for qsub, which cannot be quoted."""
_KILLED = 128  # exit status of a script that was ended by signal N is 128 + N


class GridEngine(BatchSystem):
    """Grid Engine, through ``qsub``, ``qstat``, ``qacct``, ``qconf`` and ``qdel``."""

    mark = "#$"
    submit_command = ("qsub", "-terse")
    name_option = ("-N",)
    default_options = (("queue", ("-q",)), ("account", ("-P",)))

    def resources(self, backend: BatchBackend, time: str) -> list[str]:
        """Return the options for whole nodes and a walltime.

        ``-notify`` sends SIGUSR2 some time before SIGKILL; without ``-S`` the queue's shell reads the script.
        """
        assert isinstance(backend, SgeBatch)
        given = backend.directives
        options = without_given(["-S /bin/bash", "-V", "-cwd", "-notify", "-j y", f"-l h_rt={time}"], given)
        if without_given(["-pe"], given):
            cores = backend.cores or self._cores_of_a_node()
            if backend.nodes * cores > 1:
                name = backend.parallel_environment or self._parallel_environment(backend.nodes, cores)
                options.append(f"-pe {shlex.quote(name)} {backend.nodes * cores}")
        return options

    def _cores_of_a_node(self) -> int:
        """Return the slots of a host; of several queues on it, those of the queue with the most."""
        slots: dict[str, int] = {}
        for queue in _parse(run(["qstat", "-f", "-xml"], "ask for the slots of a node")).iter("Queue-List"):
            host = queue.findtext("name", "").partition("@")[2]
            number = int(queue.findtext("slots_total") or 0)
            if number and not re.search("[aduE]", queue.findtext("state", "")):
                slots[host] = max(slots.get(host, 0), number)
        return common_cores(slots.values(), "qstat -f")

    @staticmethod
    def _parallel_environment(nodes: int, cores: int) -> str:
        """Return the first parallel environment that fills nodes, so that a job gets whole ones."""
        rules = {str(cores), "$fill_up"} if nodes > 1 else {str(cores), "$pe_slots", "$fill_up"}
        names = run(["qconf", "-spl"], "ask for the parallel environments").split()
        for name in names:
            shown = run(["qconf", "-sp", name], "ask for a parallel environment")
            rule = re.search(r"^allocation_rule\s+(\S+)", shown, re.MULTILINE)
            if rule and rule[1] in rules:
                return name
        raise LauncherError(
            f"No parallel environment of Grid Engine gives {cores} slots on each of {nodes} node(s): there are "
            f"{', '.join(names) or 'none'}. Name one by --pe (parallel_environment= of the backend)."
        )

    def output_options(self, path: str) -> list[str]:
        """Return the options for one output file."""
        if found := _SPECIAL.search(path):
            raise LauncherError(
                f"Grid Engine takes no output file with a {found[0]} in its path: {path}. Use a spool without one."
            )
        return [f"-o {shlex.quote(path)}"]

    def job_id(self, answer: str) -> str:
        """Return the id of a submitted job."""
        return answer.splitlines()[-1].partition(".")[0]

    def active_jobs(self) -> dict[str, ActiveJob]:
        """Return the pending and running jobs by name."""
        jobs = {}
        answer = run(["qstat", "-xml", "-u", account_name(os.geteuid())], "list the batch jobs")
        for each in _parse(answer).iter("job_list"):
            job, state = each.findtext("JB_job_number", ""), each.findtext("state", "")
            waits = each.get("state") == "pending" or "q" in state
            problem = self._error(job) if "E" in state else ""
            jobs[each.findtext("JB_name", "")] = ActiveJob(job, "pending" if waits else "running", problem)
        return jobs

    @staticmethod
    def _error(job: str) -> str:
        """Return why Grid Engine could not start a job, which it keeps in an error state."""
        match = re.search(
            r"^error reason\s+\d+:\s+(.*)$", run(["qstat", "-j", job], "ask for a batch job"), re.MULTILINE
        )
        return match[1] if match else "it is in an error state"

    def ended_job(self, name: str) -> EndedJob | None:
        """Return the end of a job, from the accounting file; None if it is unknown.

        That file may be missing on this host, and lacks jobs that never ran.
        """
        try:
            answer = run(["qacct", "-j", name], "ask for a batch job")
        except LauncherError:
            return None
        found = list(parse_accounts(answer))
        if not found:
            return None
        fields = found[-1]
        failed, code = fields.get("failed", "0"), fields.get("exit_status", "").partition(" ")[0]
        status = int(code) if code.isdigit() else None
        job = fields.get("jobnumber", "")
        if failed.partition(" ")[0] == "0" and status == 0:
            return EndedJob(job, "done", 0)
        if status is not None:  # 0 of a failed job: the script did not run
            status = (_KILLED - status if status > _KILLED else status) or None
        reason = failed.partition(":")[2].strip() or ("" if failed == "0" else f"failed {failed}")
        return EndedJob(job, "timeout" if "h_rt" in reason else "failed", status, reason)

    def cancel(self, job: str, name: str) -> None:
        """Cancel the job of this name: ids begin again at 1 after some time."""
        run(["qdel", name], "cancel a batch job")

    def cluster(self) -> str:
        """Return the host of the scheduler: a cell has no name that all its hosts know."""
        return run(["qconf", "-sss"], "ask for the name of the master")


def parse_accounts(text: str) -> Iterator[dict[str, str]]:
    """Yield the fields of each job of ``qacct -j``."""
    for block in re.split(r"^=+$", text, flags=re.MULTILINE):
        rows = (line.split(None, 1) for line in block.splitlines())
        if fields := {row[0]: row[1].strip() for row in rows if len(row) == 2}:
            yield fields


def _parse(text: str) -> ET.Element:
    try:
        return ET.fromstring(text)  # noqa: S314  the answer of the site's own command
    except ET.ParseError as error:
        raise LauncherError(f"Grid Engine's answer is no XML ({error}): {text[:200]!r}") from error
