"""Groups whose ranks lie on several nodes end with their srun, their supervisor, their rank 0 or their time."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Literal, get_args

import pytest

from spoolpool import Executor
from spoolpool.errors import WorkerLost
from spoolpool.format.names import parse_task_file
from tests.servers import slurm as server
from tests.slurm.site import PATIENCE, WORKER, Site
from tests.slurm.test_srun import where
from tests.support.long_call import KINDS, Kind, LongCall
from tests.support.processes import find_process, pid_namespace, processes_of, processes_of_group, read_proc
from tests.support.waiting import wait_until

reason = server.missing()
pytestmark = [pytest.mark.slurm, pytest.mark.mpi, pytest.mark.skipif(bool(reason), reason=reason or "")]

Cause = Literal["srun", "supervisor", "rank 0", "time"]


class SpanningGroup:
    """Group of two ranks on two nodes in a job that outlives its supervisor, as Slurm ends all ranks with the job."""

    def __init__(self, site: Site, *options: str) -> None:
        self._site = site
        self._supervised = f"{WORKER} {site.spool.path} --ranks 2 --groups 1 --grace 0.5"
        self.job = self.start(*options)
        (self.info,) = site.await_groups(1)
        found = self.processes()
        nodes = {pid_namespace(pid) for pid in found if not read_proc(pid, "cmdline").startswith(b"srun\0")}
        assert nodes == {pid_namespace(site.slurm.nodes[name].pid) for name in ("n1", "n2")}, "each node has a rank"

    def start(self, *options: str) -> str:
        """Start a job with a supervisor; return its id."""
        line = f"{' '.join([self._supervised, *options])}\necho has ended\nexec sleep infinity"
        return self._site.sbatch(line, "--nodes=2", "--ntasks-per-node=1")

    def processes(self) -> list[int]:
        """Return all processes of the group on all nodes, with its srun."""
        return processes_of_group(self._site.spool.path, self.info.worker)

    def end(self, cause: Cause) -> None:
        """Kill what is to end the group, or wait until its time is up."""
        if cause == "srun":
            sruns = [pid for pid in self.processes() if read_proc(pid, "cmdline").startswith(b"srun\0")]
            (pid,) = [pid for pid in sruns if int(read_proc(pid, "stat").rpartition(b")")[2].split()[1]) not in sruns]
            os.kill(pid, signal.SIGKILL)  # its child then kills the ranks
        elif cause == "supervisor":
            found = processes_of(self._site.spool.path)
            (pid,) = [pid for pid in found if b"\0--groups\0" in read_proc(pid, "cmdline")]
            os.kill(pid, signal.SIGKILL)
        elif cause == "rank 0":
            os.kill(self._rank_0(), signal.SIGKILL)
        else:
            wait_until(lambda: "The time is up" in self._site.log(), "the time of the group is up", PATIENCE)

    def _rank_0(self) -> int:
        """Return the pid of rank 0 as this process sees it."""
        return find_process(self.processes(), self.info.process.pid, self._site.slurm.nodes[self.info.process.host].pid)


@pytest.mark.parametrize("kind", ["idle", *KINDS])
@pytest.mark.parametrize("cause", get_args(Cause))
def test_no_rank_on_any_node_outlives_its_group(site: Site, tmp_path: Path, cause: Cause, kind: str) -> None:
    limits = ["--max-time", "35", "--drain", "1"] if cause == "time" else []
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


@pytest.mark.parametrize("kind", ["idle", *KINDS])
@pytest.mark.parametrize("with_supervisor", [False, True], ids=["srun alone", "with its supervisor"])
def test_ranks_that_outlive_their_srun_and_its_child_end(
    site: Site, tmp_path: Path, kind: str, with_supervisor: bool
) -> None:
    """Slurm keeps them running: the supervisor tells them of the death, or they see that it has ended as well."""
    group = SpanningGroup(site)
    with Executor(spool=site.spool.path, resource_dict={"cores": 2}) as executor:
        if kind != "idle":
            # a recoverer that is quicker than the guard of a killed rank 0 counts its death
            call = LongCall(tmp_path, executor, 2, kind, attempts=1 if kind == "waits" else 2)
            call.await_start(PATIENCE)
        victims = [pid for pid in group.processes() if read_proc(pid, "cmdline").startswith(b"srun\0")]
        if with_supervisor:
            victims += [pid for pid in processes_of(site.spool.path) if b"\0--groups\0" in read_proc(pid, "cmdline")]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # the child that runs after its parent ends the ranks
            for pid in victims:
                os.kill(pid, number)
        wait_until(lambda: not group.processes(), "all processes of the group have ended", PATIENCE)
        if with_supervisor:
            group.start()
        if kind != "idle":
            call.finish()
            assert call.future.result(PATIENCE) == [None, None]
        assert [rank[1:3] for rank in executor.submit(where, 1).result(PATIENCE)] == [(2, 0), (2, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_group_on_another_node_ends_after_the_death_of_its_owners_node(site: Site, tmp_path: Path, kind: Kind) -> None:
    """The supervisor has a group on each of two nodes, and dies with one, which Slurm gives up only minutes later."""
    line = f"exec {WORKER} {site.spool.path} --groups 2 --grace 0.5"
    site.sbatch(line, "--nodes=2", "--ntasks-per-node=1")
    site.await_groups(2)
    with Executor(spool=site.spool.path) as executor:
        calls = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            calls.append(LongCall(tmp_path / name, executor, 1, kind))
        for call in calls:
            call.await_start(PATIENCE)
        (supervisor,) = [pid for pid in processes_of(site.spool.path) if b"\0--groups\0" in read_proc(pid, "cmdline")]
        name = next(
            name for name in ("n1", "n2") if pid_namespace(site.slurm.nodes[name].pid) == pid_namespace(supervisor)
        )
        site.slurm.kill(name)
        try:
            wait_until(lambda: not processes_of(site.spool.path), "all processes of the groups have ended", PATIENCE)
        finally:
            site.slurm.boot(name)
            site.end()
        for call in calls:
            call.finish()
        site.sbatch(line, "--nodes=2", "--ntasks-per-node=1")
        errors = [call.future.exception(PATIENCE) for call in calls]
        assert sorted(type(error).__name__ for error in errors) == ["NoneType", "WorkerLost"]


def test_rank_ends_after_the_death_of_the_node_of_rank_0(site: Site, tmp_path: Path) -> None:
    group = SpanningGroup(site)
    with Executor(spool=site.spool.path, resource_dict={"cores": 2}) as executor:
        call = LongCall(tmp_path, executor, 2, "holds the global lock", attempts=2)
        call.await_start(PATIENCE)
        site.slurm.kill(group.info.process.host)
        try:
            wait_until(lambda: not group.processes(), "all processes of the group have ended", PATIENCE)
        finally:
            site.slurm.boot(group.info.process.host)
            site.end()
        call.finish()
        group.start()
        assert call.future.result(PATIENCE) == [None, None]
