"""Groups that mpiexec starts on several nodes of a Grid Engine end with their mpiexec, supervisor, rank 0 or node."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Literal, get_args

import pytest

from spoolpool import Executor
from tests.gridengine.site import PATIENCE, WORKER, Site
from tests.servers import gridengine as server
from tests.support.long_call import KINDS, Kind, LongCall
from tests.support.processes import find_process, pid_namespace, processes_of, processes_of_group, read_proc
from tests.support.waiting import wait_until

reason = server.missing()
pytestmark = [pytest.mark.gridengine, pytest.mark.mpi, pytest.mark.skipif(bool(reason), reason=reason or "")]

Cause = Literal["mpiexec", "supervisor", "supervisor and mpiexec", "rank 0", "node"]


class SpanningGroup:
    """Group of five ranks on two nodes in a job that outlives its supervisor, as Grid Engine ends all with the job."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.start()
        (self.info,) = site.await_groups(1)
        nodes = {pid_namespace(pid) for pid in self.processes()}
        assert nodes == {pid_namespace(site.grid.nodes[name].pid) for name in ("n1", "n2")}, "each node has a rank"

    def start(self) -> None:
        """Start a job with a supervisor."""
        command = f"{WORKER} {self._site.spool.path} --ranks 5 --groups 1 --grace 0.5"
        self._site.submit(f"{command}\nexec sleep infinity", "-pe", "mpi", "5")

    def processes(self) -> list[int]:
        """Return all processes of the group on all nodes."""
        return processes_of_group(self._site.spool.path, self.info.worker)

    def end(self, cause: Cause) -> None:
        """Kill what is to end the group."""
        host = self.info.process.host
        if cause == "node":
            self._site.grid.kill(host)
            return
        if cause == "rank 0":
            pids = [find_process(self.processes(), self.info.process.pid, self._site.grid.nodes[host].pid)]
        else:
            commands = {pid: read_proc(pid, "cmdline") for pid in processes_of(self._site.spool.path)}
            mpiexec = [pid for pid, line in commands.items() if line.split(b"\0")[0].endswith(b"/mpiexec")]
            supervisor = [pid for pid, line in commands.items() if b"\0--groups\0" in line]
            assert len(mpiexec) == len(supervisor) == 1
            pids = {"mpiexec": mpiexec, "supervisor": supervisor}.get(cause, supervisor + mpiexec)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                os.kill(pid, number)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cause", get_args(Cause))
def test_no_rank_on_any_node_outlives_its_group(site: Site, tmp_path: Path, cause: Cause, kind: Kind) -> None:
    group = SpanningGroup(site)
    with Executor(spool=site.spool.path, resource_dict={"cores": 5}) as executor:
        call = LongCall(tmp_path, executor, 5, kind, attempts=3)
        call.await_start(PATIENCE)
        group.end(cause)
        wait_until(lambda: not group.processes(), "all processes of the group have ended", PATIENCE)
        call.finish()
        if cause not in ("mpiexec", "rank 0"):  # else the supervisor has started another group
            if cause == "node":
                site.grid.boot(group.info.process.host)
            site.end()
            group.start()
        assert call.future.result(PATIENCE) == [None] * 5
