"""Groups whose ranks lie on several nodes end with their srun, their supervisor, their rank 0 or their time."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Literal, get_args

import pytest

from spoolpool import Executor, settings
from spoolpool.errors import WorkerLost
from spoolpool.format.names import parse_task_file
from tests.servers import slurm as server
from tests.slurm.site import PATIENCE, WORKER, Site
from tests.slurm.test_srun import where
from tests.support.long_call import KINDS, LongCall
from tests.support.processes import processes_of
from tests.support.waiting import wait_until

reason = server.missing()
pytestmark = [pytest.mark.slurm, pytest.mark.mpi, pytest.mark.skipif(bool(reason), reason=reason or "")]

Cause = Literal["srun", "supervisor", "rank 0", "time"]


def read(pid: int, name: str) -> bytes:
    """Return a file of a process in /proc; nothing if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def node_of(pid: int) -> str:
    """Return the namespace of pids in which a process runs, which each node has of its own; empty after its end."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


class SpanningGroup:
    """Group of two ranks on two nodes in a job that outlives its supervisor, as Slurm ends all ranks with the job."""

    def __init__(self, site: Site, *options: str) -> None:
        self._site = site
        self._supervised = f"{WORKER} {site.spool.path} --ranks 2 --groups 1 --grace 0.5"
        self.job = self.start(*options)
        (self.info,) = site.await_groups(1)
        found = self.processes()
        nodes = {node_of(pid) for pid in found if not read(pid, "cmdline").startswith(b"srun\0")}
        assert nodes == {node_of(site.slurm.nodes[name].pid) for name in ("n1", "n2")}, "each node has a rank"

    def start(self, *options: str) -> str:
        """Start a job with a supervisor; return its id."""
        line = f"{' '.join([self._supervised, *options])}\necho has ended\nexec sleep infinity"
        return self._site.sbatch(line, "--nodes=2", "--ntasks-per-node=1")

    def processes(self) -> list[int]:
        """Return all processes of the group on all nodes, with its srun."""
        worker = self.info.worker.encode()
        variable = settings.ENV_WORKER.encode() + b"=" + worker
        found = processes_of(self._site.spool.path)
        return [pid for pid in found if worker in read(pid, "cmdline") or variable in read(pid, "environ").split(b"\0")]

    def end(self, cause: Cause) -> None:
        """Kill what is to end the group, or wait until its time is up."""
        if cause == "srun":
            sruns = [pid for pid in self.processes() if read(pid, "cmdline").startswith(b"srun\0")]
            (pid,) = [pid for pid in sruns if int(read(pid, "stat").rpartition(b")")[2].split()[1]) not in sruns]
            os.kill(pid, signal.SIGKILL)  # its child then kills the ranks
        elif cause == "supervisor":
            found = processes_of(self._site.spool.path)
            (pid,) = [pid for pid in found if b"\0--groups\0" in read(pid, "cmdline")]
            os.kill(pid, signal.SIGKILL)
        elif cause == "rank 0":
            os.kill(self._rank_0(), signal.SIGKILL)
        else:
            wait_until(lambda: "The time is up" in self._site.log(), "the time of the group is up", PATIENCE)

    def _rank_0(self) -> int:
        """Return the pid of rank 0 as this process sees it."""
        host = node_of(self._site.slurm.nodes[self.info.process.host].pid)
        for pid in self.processes():
            status = read(pid, "status").decode()
            inner = status.partition("\nNSpid:")[2].partition("\n")[0].split()
            if node_of(pid) == host and inner[-1:] == [str(self.info.process.pid)]:
                return pid
        raise AssertionError("rank 0 has ended")


@pytest.mark.parametrize("kind", ["idle", *KINDS])
@pytest.mark.parametrize("cause", get_args(Cause))
def test_no_rank_on_any_node_outlives_its_group(site: Site, tmp_path: Path, cause: Cause, kind: str) -> None:
    limits = ["--max-time", "20", "--drain", "1"] if cause == "time" else []
    group = SpanningGroup(site, *limits)
    with Executor(spool=site.spool.path, resource_dict={"cores": 2}) as executor:
        if kind == "idle":
            group.end(cause)
        else:
            call = LongCall(tmp_path, executor, 2, kind, attempts=2 if cause == "time" else 1)
            call.await_start(PATIENCE)
            group.end(cause)
        wait_until(lambda: not group.processes(), "all processes of the group have ended", PATIENCE)
        if kind != "idle":
            call.finish()
        if cause in ("supervisor", "time"):
            wait_until(lambda: "has ended" in site.log(), "the supervisor has ended", PATIENCE)
            if kind != "idle":
                (found,) = map(parse_task_file, (path.name for path in Path(site.spool.layout.ready).glob("*/*/*")))
                assert found is not None
                assert found.attempt == 1, "no attempt was lost"
            group.start()
        if kind != "idle":
            error = call.future.exception(PATIENCE)
            assert isinstance(error, WorkerLost) if cause in ("srun", "rank 0") else error is None
        assert [rank[1:3] for rank in executor.submit(where, 1).result(PATIENCE)] == [(2, 0), (2, 1)]


def test_idle_ranks_end_after_a_kill_of_their_srun_and_its_child(site: Site) -> None:
    """Slurm keeps them running: only the supervisor notices the death."""
    group = SpanningGroup(site)
    for pid in group.processes():
        if read(pid, "cmdline").startswith(b"srun\0"):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not group.processes(), "all processes of the group have ended", PATIENCE)
    with Executor(spool=site.spool.path, resource_dict={"cores": 2}) as executor:
        assert [rank[1:3] for rank in executor.submit(where, 1).result(PATIENCE)] == [(2, 0), (2, 1)]
