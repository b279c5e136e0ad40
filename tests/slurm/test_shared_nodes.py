"""Groups on nodes of a real Slurm whose cores have two hardware threads, and whose memory is shared out."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolpool.protocol import workers
from tests.servers import Slurm
from tests.servers import slurm as server
from tests.slurm.site import PATIENCE, WORKER, Site
from tests.support.waiting import wait_until

reason = server.missing()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(reason), reason=reason or "")]


@pytest.fixture(scope="module")
def hyperthreaded() -> Iterator[Slurm]:
    """Cluster of two nodes, each with four cores of two hardware threads."""
    directory = tempfile.mkdtemp(prefix="spoolpool-threads-")
    options = {"SelectTypeParameters": "CR_Core_Memory"}
    with Slurm(f"{directory}/s", nodes=2, cpus=8, threads=2, gpus=2, options=options) as cluster:
        yield cluster
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def shared(hyperthreaded: Slurm, tmp_path: Path) -> Iterator[Site]:
    made = Site(hyperthreaded, tmp_path)
    yield made
    made.end()


def groups(site: Site) -> dict[tuple[int, int, int], int]:
    """Return the number of groups by ranks, threads and GPUs."""
    return Counter((info.ranks, info.threads, info.gpus) for info in workers.read_workers(site.spool))


@pytest.mark.parametrize(
    ("options", "arguments", "expected"),
    [
        (["--ntasks-per-node=8"], [], {(1, 1, 0): 8}),
        (["--ntasks-per-node=8"], ["--ranks=2"], {(2, 1, 0): 8}),
        (["--ntasks-per-node=4", "--hint=nomultithread"], [], {(1, 1, 0): 8}),
        (["--ntasks-per-node=4", "--threads-per-core=1"], ["--threads=2"], {(1, 2, 0): 4}),
        (["--ntasks-per-node=8"], ["--launcher-option=--hint=nomultithread", "--ranks=2"], {(2, 1, 0): 4}),
        (
            ["--ntasks-per-node=8", "--gpus-per-node=2"],
            ["--shape=1=3", "--shape=2x2+1gpu=2", "--shape=1x2"],
            {(1, 1, 0): 3, (2, 2, 1): 2, (1, 2, 0): 1},
        ),
        (["--ntasks-per-node=8", "--mem=1000"], ["--memory=400M"], {(1, 1, 0): 4}),
        (["--ntasks-per-node=8", "--mem-per-cpu=100M"], ["--memory=400M", "--threads=2"], {(1, 2, 0): 4}),
        (["--ntasks-per-node=8", "--mem=1000"], ["--launcher-option=--mem-per-cpu=250M", "--ranks=2"], {(2, 1, 0): 4}),
        (["--ntasks-per-node=8", "--mem=1000"], ["--launcher-option=--mem=500"], {(1, 1, 0): 4}),
        (["--ntasks=8", "--gpus=3"], ["--gpus=1"], {(1, 1, 1): 3}),
    ],
)
def test_as_many_groups_are_planned_as_srun_begins(
    shared: Site, options: list[str], arguments: list[str], expected: dict[tuple[int, int, int], int]
) -> None:
    shared.sbatch(f"exec {WORKER} {shared.spool.path} {' '.join(arguments)}", "--nodes=2", *options)
    shared.await_groups(sum(expected.values()))
    assert groups(shared) == expected
    log = shared.log()
    for (ranks, threads, _), count in expected.items():
        assert f"Starting {count} worker group(s) of {ranks} rank(s) with {threads} thread(s)" in log
    assert "Required nodelist includes more nodes" not in log


def test_error_of_groups_that_do_not_fit_names_cores_hardware_threads_and_memory(shared: Site) -> None:
    line = f"exec {WORKER} {shared.spool.path} --groups 5"
    job = shared.sbatch(line, "--nodes=1", "--ntasks-per-node=8", "--mem=500")
    wait_until(lambda: shared.ended(job), "the job ended", PATIENCE)
    assert "in this job, which has 4 core(s) of 2 hardware threads, 500 MiB of memory" in shared.log()
