"""Executors within steps, tasks and ranks of a Slurm job do not wait for resources of their own step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spoolpool.launch.mpiexec import find_mpiexec
from tests.servers import slurm as server
from tests.slurm.site import PATIENCE, Site
from tests.support.waiting import wait_until

reason = server.missing()
pytestmark = [pytest.mark.slurm, pytest.mark.mpi, pytest.mark.skipif(bool(reason), reason=reason or "")]

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
