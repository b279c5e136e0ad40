"""Groups on nodes of a real Slurm whose cores have two hardware threads, and whose memory is shared out."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolpool import Executor, settings
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


@pytest.mark.parametrize(
    ("held", "options", "arguments", "shape"),
    [
        ("--cpus-per-task=4 --gres=none", [], [], "1 rank(s) with 1 thread(s) each"),
        (
            "--gres=gpu:1",
            ["--gres=gpu:2"],
            ["--shape=1+1gpu=2", "--shape=2=1"],
            "1 rank(s) with 1 thread(s) and 1 GPU(s)",
        ),
        (
            "--gres=none",
            ["--gres=gpu:2"],
            ["--groups=2", "--launcher-option=--gres=gpu:2"],
            "1 rank(s) with 1 thread(s)",
        ),
    ],
)
def test_group_whose_step_does_not_begin_is_told_and_the_others_serve(
    shared: Site, held: str, options: list[str], arguments: list[str], shape: str
) -> None:
    hold = f"srun --nodes=1 --ntasks=1 --exact --mem=0 --mpi=none {held} sleep 600 &"
    started = "until [[ $(squeue -h -s -j $SLURM_JOB_ID) == *sleep* ]]; do sleep 0.2; done"
    worker = f"exec {WORKER} {shared.spool.path} --launcher-option=--immediate=5 {' '.join(arguments)}"
    shared.sbatch(f"{hold}\n{started}\n{worker}", "--nodes=1", "--ntasks-per-node=8", *options)

    def missing() -> list[str]:
        return [*workers.read_start_errors(shared.spool, ()).values()]

    wait_until(missing, "a group is missing", PATIENCE)
    (group, *_) = shared.await_groups(1)
    busy = "srun: error: Unable to create step for job"
    assert all(f"did not begin: {busy}" in text and shape in text for text in missing())
    assert "is taken off the plan" in shared.log() and busy in shared.log()
    status = shared.slurm.run([sys.executable, "-m", "spoolpool.cli.spool", "status", shared.spool.path])
    assert "Missing" in status and busy in status
    listed = shared.slurm.run([sys.executable, "-m", "spoolpool.cli.spool", "workers", "ls", shared.spool.path])
    assert "missing  A group of" in listed
    resources = {"cores": group.ranks, "threads_per_core": group.threads, "gpus_per_core": group.gpus}
    with Executor(spool=shared.spool.path, resource_dict=resources) as executor:
        assert executor.submit(pow, 2, 3).result(PATIENCE) is not None


def test_type_of_mpi_that_srun_does_not_know_is_told_with_its_line(shared: Site) -> None:
    line = f"exec env {settings.ENV_SRUN_MPI}=tea {WORKER} {shared.spool.path} --ranks 2"
    job = shared.sbatch(line, "--nodes=1", "--ntasks-per-node=8")
    wait_until(lambda: shared.ended(job), "the job ended", PATIENCE)
    last = shared.log().splitlines()[-1]
    assert "cannot be started through srun: " in last and "Invalid MPI type 'tea'" in last
    assert settings.ENV_SRUN_MPI in last
    assert shared.log().count("] srun: error: Invalid MPI type") == 4, "each group was started once"


EMBEDDED = """\
import sys
from spoolpool import Executor
with Executor(spool=sys.argv[1], max_workers=1, cores_per_worker=2) as executor:
    print(repr(executor.submit(pow, 2, 3).exception()))
"""


def test_exception_of_an_executor_has_the_line_of_srun(shared: Site) -> None:
    script = shared.directory / "embedded.py"
    script.write_text(EMBEDDED)
    line = f"exec env {settings.ENV_SRUN_MPI}=tea {sys.executable} {script} {shared.spool.path}"
    job = shared.sbatch(line, "--nodes=1", "--ntasks-per-node=8")
    wait_until(lambda: shared.ended(job), "the job ended", PATIENCE)
    assert "BrokenSpool" in shared.log().splitlines()[-1]
    assert "Invalid MPI type 'tea'" in shared.log().splitlines()[-1]


WHOLE_CORES = """\
import os, sys
from spoolpool import Executor
from spoolpool.launch import allocation
allocation.usable_cores = lambda: 8  # Slurm binds no process here
os.chdir(sys.argv[1])
with Executor(backend="srun") as executor:
    assert sum(executor.map(int, range(8))) == 28
    print("groups:", executor.max_workers)
"""


def test_executor_starts_as_many_groups_as_srun_begins(shared: Site) -> None:
    script = shared.directory / "embedded.py"
    script.write_text(WHOLE_CORES)
    line = f"exec env SPOOLPOOL_DIR={shared.spool.path} {sys.executable} {script} {shared.directory}"
    job = shared.sbatch(line, "--nodes=1", "--ntasks-per-node=8")
    wait_until(lambda: shared.ended(job), "the job ended", PATIENCE)
    assert shared.log().splitlines()[-1] == "groups: 4"


@pytest.mark.mpi
@pytest.mark.skipif(shutil.which("mpiexec.openmpi") is None, reason="Open MPI is not installed (openmpi-bin)")
def test_group_of_open_mpi_on_one_host_starts_nothing_on_the_other_nodes_of_a_job(shared: Site) -> None:
    # plm=rsh: as if it was not built for Slurm
    variables = f"{settings.ENV_MPIEXEC}=mpiexec.openmpi MPI4PY_MPIABI=openmpi OMPI_MCA_plm=rsh"
    variables += " OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
    line = f"exec env {variables} {WORKER} {shared.spool.path} --launcher mpiexec --ranks 2"
    shared.sbatch(line, "--nodes=2", "--ntasks-per-node=8")
    (group,) = shared.await_groups(1)
    assert (group.process.host, group.ranks) == ("n1", 2)
    assert "ssh" not in shared.log()
