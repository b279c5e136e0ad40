"""Batch jobs of workers in a real Flux instance, and executors within its jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolpool import Executor, FluxBatch, settings
from spoolpool.launch.mpiexec import find_mpiexec
from spoolpool.pool import batch_jobs
from spoolpool.protocol import worker_registration, workers
from spoolpool.protocol.spool import Spool
from tests.support import notebook
from tests.support.waiting import wait_until

FLUX = shutil.which("flux")
pytestmark = [pytest.mark.flux, pytest.mark.skipif(FLUX is None, reason="flux is not on PATH")]

PATIENCE = 120.0
NESTING = [sys.executable, "-m", "tests.support.nesting"]


@pytest.fixture
def instance(flux: dict[str, str], spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spool]:
    """Spool, with the environment of the instance in this process; its jobs end with the test."""
    for name, value in flux.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(settings.ENV_SPOOL, os.path.dirname(spool.path))
    yield spool
    list(batch_jobs.end_jobs(spool, lambda job: True, 0.0))


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def command(*arguments: object) -> str:
    return run(sys.executable, "-m", "spoolpool.cli.spool", *arguments)


def states() -> dict[str, str]:
    """Return the states of all active jobs of the instance by their ids."""
    return dict(line.split() for line in run(FLUX, "jobs", "-n", "-o", "{id.f58plain} {status_abbrev}").splitlines())


def where() -> str:
    return os.environ["FLUX_URI"]


def test_batch_jobs_of_a_spool_are_started_listed_and_stopped(instance: Spool) -> None:
    other = run(FLUX, "submit", "--urgency=31", "sleep", "600")
    started = command("workers", "start", instance.path, "--flux", "--time=10m", "--jobs=2", "--", "--ranks=2")
    first, second = started.split()
    assert states()[first] == "S", "it needs the whole node"
    run(FLUX, "cancel", other)
    groups = wait_until(lambda: workers.read_workers(instance), "the first job has a group", PATIENCE)
    listed = command("workers", "ls", instance.path)
    assert f"{first}  running  1 node(s) for 10m" in listed
    assert f"{second}  pending" in listed
    assert f"job {groups[0].batch}" in listed
    command("workers", "stop", instance.path, "--all")
    assert states() == {}
    assert workers.read_workers(instance) == []


def limits() -> list[str]:
    """Return the time limits of all active jobs of the instance, in seconds."""
    return run(FLUX, "jobs", "-n", "-o", "{duration}").split()


def test_batch_jobs_without_a_time_have_a_walltime_of_an_hour(instance: Spool) -> None:
    [job] = command("workers", "start", instance.path, "--flux").split()
    assert limits() == ["3600.0"]
    assert f"{job}  " in (listed := command("workers", "ls", instance.path))
    assert "1 node(s) for 60m" in listed
    command("workers", "stop", instance.path, "--all", "--wait=0")
    with Executor(spool=instance.path) as executor:
        future = executor.submit(where)
        scaled = command("autoscale", instance.path, "--flux", "--max-jobs=1", "--once", "--idle-timeout=1")
        assert "was submitted" in scaled
        assert limits() == ["3600.0"]
        assert future.result(PATIENCE) != os.environ["FLUX_URI"]
    wait_until(lambda: not states(), "the job has ended as idle", PATIENCE)
    with Executor(spool=instance.path, backend="flux-batch", max_workers=1) as executor:
        assert executor.submit(where).result(PATIENCE) != os.environ["FLUX_URI"]
        assert limits() == ["3600.0"]
    assert states() == {}


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("1:30:00", 5400), ("2-00:00:00", 172_800), ("90m", 5400), ("1.5h", 5400), ("90", 5400), ("61s", 61)],
)
def test_every_spelling_of_a_walltime_is_understood(instance: Spool, time: str, seconds: int) -> None:
    command("workers", "start", instance.path, "--flux", "--time", time)
    assert limits() == [f"{seconds}.0"]
    command("workers", "stop", instance.path, "--all", "--wait=0")


def test_batch_jobs_of_an_executor_end_with_it(instance: Spool) -> None:
    with Executor(spool=instance.path, backend=FluxBatch(time="10m"), max_workers=1) as executor:
        assert executor.submit(where).result(PATIENCE) != os.environ["FLUX_URI"], "the job is an instance itself"
        assert len(states()) == 1
    assert states() == {}


def test_rejected_job_is_an_error(instance: Spool) -> None:
    with pytest.raises(Exception, match="Cannot submit a batch job: flux batch says"):
        Executor(spool=instance.path, backend=FluxBatch(directives=["--nonsense"]))
    assert states() == {}


@pytest.mark.mpi
def test_executor_within_a_task_or_a_job_does_not_wait_for_resources_of_its_own_job(instance: Spool, tmp_path) -> None:
    assert run(*NESTING, "task", cwd=tmp_path).splitlines() == ["2 8 mpiexec in flux", "2 8 mpiexec in a group of 2"]
    assert run(FLUX, "run", "-n1", "-c8", *NESTING, "plain", cwd=tmp_path) == "2 8 mpiexec"


@pytest.mark.mpi
def test_mpiexec_within_a_job_starts_ranks_that_find_each_other(instance: Spool, tmp_path) -> None:
    assert run(FLUX, "run", "-n1", "-c2", find_mpiexec(), "-n", "2", *NESTING, "rank", cwd=tmp_path) == "2 8 mpiexec"
    assert run(FLUX, "run", "-n2", *NESTING, "rank", cwd=tmp_path) == "2 8 mpiexec"


@pytest.mark.mpi
def test_documented_script_fills_its_job_with_groups(instance: Spool, tmp_path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "batch" / "flux.sh").read_text(encoding="utf-8")
    worker = f"{sys.executable} -m spoolpool.cli.worker {instance.path} --ranks 2"
    text = text.replace("--nodes=4", "--nodes=1")
    text = text.replace("spool-worker /shared/project/spool --ranks 8 --threads 2", worker)
    script = tmp_path / "flux.sh"
    script.write_text(text)
    job = run(FLUX, "batch", script, cwd=tmp_path)
    wait_until(lambda: len(workers.read_workers(instance)) == 4, "as many groups as fit are there", PATIENCE)
    for info in workers.read_workers(instance):
        worker_registration.request_stop(instance, info.worker)
    assert run(FLUX, "job", "wait-event", job, "clean")
    assert states() == {}


def test_documented_line_starts_one_notebook_whose_executor_has_both_nodes(
    two_nodes: dict[str, str], tmp_path: Path
) -> None:
    environment = {**two_nodes, settings.ENV_SPOOL: str(tmp_path)}
    output = notebook.start_line(notebook.documented_line("Flux alone"), tmp_path, environment, groups=4)
    found = notebook.notebooks(tmp_path)
    assert len(found) == 1, output
    assert len(found[0].get("hosts", ())) == 2, output
