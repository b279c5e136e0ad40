"""Executors within steps, tasks and ranks of a Slurm job: none waits for what its own step holds."""

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


def said(site: Site, command: str) -> list[str]:
    """What a command prints in a batch job of one node with four cores."""
    root = Path(__file__).parents[2]
    # where groups start slowly, somebody is told on standard error that his task still waits
    line = f"export PYTHONPATH={root} SPOOLPOOL_DIR={site.directory}\n{command} 2>errors\necho ended with $?"
    job = site.sbatch(line, "--nodes=1", "--ntasks-per-node=4")
    wait_until(lambda: site.ended(job), "the job ended", 3 * PATIENCE)
    lines = site.log().splitlines()
    return lines if lines[-1:] == ["ended with 0"] else [*lines, (site.directory / "errors").read_text()]


def test_in_a_task_of_a_group_that_is_a_step(site: Site) -> None:
    assert said(site, f"{NESTING} task") == ["2 8 mpiexec in srun", "2 8 mpiexec in a group of 2", "ended with 0"]


def test_in_a_step(site: Site) -> None:
    assert said(site, f"srun -n1 {NESTING} plain") == ["2 8 mpiexec", "ended with 0"]


def test_on_a_rank_that_mpiexec_started_in_the_batch_script(site: Site) -> None:
    assert said(site, f"{find_mpiexec()} -n 2 {NESTING} rank") == ["2 8 mpiexec", "ended with 0"]


def test_groups_of_mpiexec_in_the_batch_script(site: Site) -> None:
    lines = said(site, f"{NESTING} task mpiexec")
    assert lines == ["2 8 srun in mpiexec", "2 8 mpiexec in a group of 2", "ended with 0"]
