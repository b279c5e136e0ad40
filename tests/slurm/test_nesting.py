"""Executors within steps, tasks and ranks of a Slurm job do not wait for resources of their own step."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spoolpool import Executor
from spoolpool.launch.mpiexec import find_mpiexec
from tests.conftest import Workers
from tests.servers import slurm as server
from tests.slurm.site import PATIENCE, WORKER, Site
from tests.support.long_call import Kind, LongCall
from tests.support.processes import find_process, pid_namespace, processes_of, processes_of_group, read_proc
from tests.support.waiting import wait_until

reason = server.missing()
pytestmark = [pytest.mark.slurm, pytest.mark.mpi, pytest.mark.skipif(bool(reason), reason=reason or "")]

FLUX = shutil.which("flux")
NESTING = f"{sys.executable} -m tests.support.nesting"


def output_in_job(site: Site, command: str) -> list[str]:
    """Return the output of a command in a batch job of one node with four cores."""
    root = Path(__file__).parents[2]
    # while groups start slowly, a warning about the waiting task goes to standard error
    line = f"export PYTHONPATH={root} SPOOLPOOL_DIR={site.directory}\n{command} 2>errors\necho ended with $?"
    job = site.sbatch(line, "--nodes=1", "--ntasks-per-node=4")
    wait_until(lambda: site.ended(job), "the job ended", 3 * PATIENCE)
    lines = site.log().splitlines()
    return lines if lines[-1:] == ["ended with 0"] else [*lines, (site.directory / "errors").read_text()]


def test_executor_in_a_task_of_a_group_that_is_a_step(site: Site) -> None:
    lines = output_in_job(site, f"{NESTING} task")
    assert lines == ["2 8 mpiexec in srun", "2 8 mpiexec in a group of 2", "ended with 0"]


def test_executor_in_a_step(site: Site) -> None:
    assert output_in_job(site, f"srun -n1 {NESTING} plain") == ["2 8 mpiexec", "ended with 0"]


def test_executor_on_a_rank_of_mpiexec_in_the_batch_script(site: Site) -> None:
    assert output_in_job(site, f"{find_mpiexec()} -n 2 {NESTING} rank") == ["2 8 mpiexec", "ended with 0"]


def test_executor_in_a_task_of_a_group_of_mpiexec_in_the_batch_script(site: Site) -> None:
    lines = output_in_job(site, f"{NESTING} task mpiexec")
    assert lines == ["2 8 srun in mpiexec", "2 8 mpiexec in a group of 2", "ended with 0"]


def in_flux(*prefix: str) -> str:
    """Return the beginning of a command that runs in a Flux instance on two nodes."""
    bindings = subprocess.run([str(FLUX), "env", "printenv", "PYTHONPATH"], capture_output=True, text=True).stdout
    root, libraries = Path(__file__).parents[2], os.environ.get("LD_LIBRARY_PATH", "")
    variables = f"env PYTHONPATH={bindings.strip()}:{root} LD_LIBRARY_PATH={libraries}"
    return " ".join((variables, "srun --nodes=2 --ntasks=2 --mpi=pmi2", *prefix, str(FLUX), "start"))


@pytest.mark.flux
@pytest.mark.skipif(FLUX is None, reason="flux is not on PATH")
def test_cancelled_jobs_with_a_flux_instance_release_their_task(site: Site, worker: Workers, tmp_path: Path) -> None:
    line = f"exec {in_flux()} {WORKER} {site.spool.path} --ranks 2 --groups 1"
    with Executor(spool=site.spool.path) as executor:
        call = LongCall(tmp_path, executor, 2, "waits")
        for _ in range(3):
            job = site.sbatch(line, "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=4", "--time=10")
            call.await_start(PATIENCE)
            site.slurm.run(["scancel", job])
            wait_until(lambda job=job: site.ended(job), "the job ended", PATIENCE)  # type: ignore[misc]
        call.finish()
        worker(site.spool, mpi_ranks=2)
        assert call.future.result(PATIENCE) == [None, None], site.log()


@pytest.mark.flux
@pytest.mark.skipif(FLUX is None, reason="flux is not on PATH")
@pytest.mark.parametrize(
    ("cause", "kind"),
    [("supervisor", "waits"), ("rank 0", "holds the global lock"), ("node", "holds the global lock")],
)
def test_no_rank_of_a_flux_instance_on_two_nodes_outlives_its_group(
    site: Site, tmp_path: Path, cause: str, kind: Kind
) -> None:
    options = "--nodes=2", "--ntasks-per-node=1", "--time=10"
    line = f"{in_flux('taskset --cpu-list 0')} {WORKER} {site.spool.path} --ranks 2 --groups 1 --grace 0.5"
    site.sbatch(f"{line}\nexec sleep infinity", *options)
    (info,) = site.await_groups(1)
    nodes = {name: site.slurm.nodes[name].pid for name in ("n1", "n2")}
    with Executor(spool=site.spool.path, resource_dict={"cores": 2}) as executor:
        call = LongCall(tmp_path, executor, 2, kind, attempts=3)
        call.await_start(PATIENCE)
        found = processes_of_group(site.spool.path, info.worker)
        assert {*map(pid_namespace, found)} == {*map(pid_namespace, nodes.values())}, "each node has a rank"
        if cause == "rank 0":
            os.kill(find_process(found, info.process.pid, nodes[info.process.host]), signal.SIGKILL)
        else:
            commands = {pid: read_proc(pid, "cmdline") for pid in processes_of(site.spool.path)}
            (supervisor,) = [
                pid for pid, words in commands.items() if b"--groups\0" in words and words.split(b"\0")[1] == b"-m"
            ]
            if cause == "node":
                host = next(name for name, pid in nodes.items() if pid_namespace(pid) == pid_namespace(supervisor))
                site.slurm.kill(host)
            else:
                os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda: not processes_of_group(site.spool.path, info.worker), "all of the group has ended", PATIENCE)
        call.finish()
        if cause != "rank 0":  # else the supervisor has started another group
            if cause == "node":
                site.slurm.boot(host)
            site.end()
            site.sbatch(line, *options)
        assert call.future.result(PATIENCE) == [None, None], site.log()
