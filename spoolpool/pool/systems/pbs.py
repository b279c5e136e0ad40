"""Commands of PBS Professional and OpenPBS."""

from __future__ import annotations

import os
import re
import shlex

from spoolpool.batch_backends import BatchBackend, PbsBatch
from spoolpool.launch.pbs import parse_records
from spoolpool.pool.systems.base import ActiveJob, BatchSystem, EndedJob, common_cores, run, without_given
from spoolpool.system.accounts import account_name

_PENDING = frozenset("QHWTM")
"""States of a job that has not begun: queued, held, waiting, in transit or moved. Others: R, E (ending), S, U, B."""
_UNKNOWN = 153  # status of qstat and qdel for a job that is not known any more
_FINISHED = 35  # status of qstat and qdel for a job that has ended
_GONE = (0, _UNKNOWN, _FINISHED)
_DELETED = "91"
"""``substate`` of a job that was deleted, whatever its script did then."""
_OVERTIME = "exceeded resource walltime"
_SIGNALLED = 256
"""``Exit_status`` of a script that was ended by signal N is 256 + N; below 0, the script was not run."""
_NEVER = re.compile(r"can never run|too many failed attempts|hold applied", re.IGNORECASE)


def _user() -> str:
    return account_name(os.geteuid())


class PBS(BatchSystem):
    """PBS, through ``qsub``, ``qselect``, ``qstat``, ``pbsnodes`` and ``qdel``."""

    mark = "#PBS"
    submit_command = ("qsub",)
    name_option = ("-N",)
    default_options = (("queue", ("-q",)), ("account", ("-A",)))
    setup = 'cd "$PBS_O_WORKDIR" || exit\n'  # PBS starts a job in the home directory

    def resources(self, backend: BatchBackend, time: str) -> list[str]:
        """Return the options for whole nodes and a walltime."""
        assert isinstance(backend, PbsBatch)
        given = backend.directives
        options = without_given(["-V", "-l place=scatter:excl", f"-l walltime={time}", "-j oe", "-k oed"], given)
        if without_given(["-l select"], given):
            cores = backend.cores or self._cores_of_a_node()
            options.insert(0, f"-l select={backend.nodes}:ncpus={cores}:mpiprocs={cores}")
        return options

    def _cores_of_a_node(self) -> int:
        nodes = parse_records(run(["pbsnodes", "-a"], "ask for the cores of a node"), start=re.compile(r"(\S+)$"))
        cores: dict[str, int] = {}  # a host may have several vnodes
        for name, node in nodes.items():
            number = node.get("resources_available.ncpus", "")
            if number.isdigit() and not re.search("down|offline|unknown", node.get("state", "")):
                host = node.get("resources_available.host", name)
                cores[host] = cores.get(host, 0) + int(number)
        return common_cores(filter(None, cores.values()), "pbsnodes")

    def output_options(self, path: str) -> list[str]:
        """Return the options for one output file."""
        return [f"-o {shlex.quote(path)}"]

    def job_id(self, answer: str) -> str:
        """Return the id of a submitted job."""
        return answer

    def active_jobs(self) -> dict[str, ActiveJob]:
        """Return the pending and running jobs by name."""
        return {
            job.get("Job_Name", ""): ActiveJob(
                number,
                "pending" if job.get("job_state") in _PENDING else "running",
                comment if _NEVER.search(comment := job.get("comment", "")) else "",
            )
            for number, job in self._ask(["qselect", "-u", _user()], []).items()
            if job.get("job_state") not in ("F", "X")
        }

    def ended_job(self, name: str) -> EndedJob | None:
        """Return the end of a job; None if it is unknown. The server keeps ends only with ``job_history_enable``."""
        found = self._ask(["qselect", "-x", "-u", _user(), "-N", name], ["-x"])
        for number, job in reversed(found.items()):
            if job.get("job_state") not in ("F", "X"):
                continue
            output = job.get("Output_Path", "").partition(":")[2]
            status = int(text) if (text := job.get("Exit_status", "")).lstrip("-").isdigit() else None
            if job.get("substate") == _DELETED:
                return EndedJob(number, "cancelled", None, job.get("comment", ""), output)
            if status == 0:
                return EndedJob(number, "done", 0, output=output)
            comment = job.get("comment", "")
            if _OVERTIME in comment:
                return EndedJob(number, "timeout", None, comment, output)
            if status is not None and status < 0:
                return EndedJob(number, "failed", None, f"{comment} (PBS status {status})", output)
            status = _SIGNALLED - status if status is not None and status > _SIGNALLED else status
            return EndedJob(number, "failed", status, comment, output)
        return None

    @staticmethod
    def _ask(select: list[str], options: list[str]) -> dict[str, dict[str, str]]:
        """Return the jobs that a qselect finds. A job may end between the two commands."""
        jobs = run(select, "list the batch jobs").split()
        if not jobs:
            return {}
        return parse_records(run(["qstat", "-f", *options, *jobs], "list the batch jobs", accepted=_GONE))

    def cancel(self, job: str, name: str) -> None:
        """Cancel a job."""
        run(["qdel", job], "cancel a batch job")

    def cluster(self) -> str:
        """Return the name of the cluster."""
        servers = parse_records(
            run(["qstat", "-B", "-f"], "ask for the name of the server"), re.compile(r"Server: (\S+)")
        )
        return next(iter(servers), "")
