"""Ends of Flux jobs: running tasks are released before their ranks go, and lose no attempt."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolpool import Executor
from spoolpool.protocol.spool import Spool
from tests.conftest import Workers
from tests.support.long_call import KINDS, Kind, LongCall
from tests.support.processes import processes_of
from tests.support.waiting import wait_until

FLUX = shutil.which("flux")
pytestmark = [pytest.mark.flux, pytest.mark.mpi, pytest.mark.skipif(FLUX is None, reason="flux is not on PATH")]

PATIENCE = 120.0


@pytest.fixture
def instance(flux: dict[str, str], spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spool]:
    """Spool, with the environment of the instance in this process; no process of the spool's groups is left behind."""
    for name, value in flux.items():
        monkeypatch.setenv(name, value)
    yield spool
    run("cancel", "--all", "--quiet")
    wait_until(lambda: not processes_of(spool.path), "all ranks have ended", PATIENCE)


def run(*command: object) -> str:
    assert FLUX is not None
    done = subprocess.run([FLUX, *map(str, command)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def batch(spool: Spool, directory: Path, *options: object, time: str = "10m") -> str:
    """Submit a job with one group of two ranks; return its id."""
    worker = [sys.executable, "-m", "spoolpool.cli.worker", spool.path, "--ranks", 2, "--groups", 1, *options]
    output = f"--output={directory / 'job.log'}"
    return run("batch", "-n1", "-c4", f"--time-limit={time}", output, "--wrap", *worker)


def await_end(job: str) -> None:
    run("job", "wait-event", job, "clean")


@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_jobs_release_their_task_before_the_ranks_go(
    instance: Spool, worker: Workers, tmp_path: Path, kind: Kind
) -> None:
    with Executor(spool=instance.path) as executor:
        call = LongCall(tmp_path, executor, 2, kind)
        for _ in range(3):
            job = batch(instance, tmp_path)
            call.await_start(PATIENCE)
            run("cancel", job)
            await_end(job)
        call.finish()
        worker(instance, mpi_ranks=2)
        assert call.future.result(PATIENCE) == [None, None]


@pytest.mark.parametrize("kind", KINDS)
def test_task_of_a_cancelled_group_loses_no_attempt(
    instance: Spool, worker: Workers, tmp_path: Path, kind: Kind
) -> None:
    process = worker(instance, "--ranks", 2, "--groups", 1)
    with Executor(spool=instance.path) as executor:
        call = LongCall(tmp_path, executor, 2, kind)
        call.await_start(PATIENCE)
        run("cancel", "--all", "--quiet")
        call.finish()
        worker(instance, mpi_ranks=2)
        assert call.future.result(PATIENCE) == [None, None]
    process.terminate()


@pytest.mark.parametrize("options", [["--drain", "2"], ["--max-time", "600"]], ids=["in time", "SIGALRM"])
def test_task_is_released_at_the_end_of_the_walltime(
    instance: Spool, worker: Workers, tmp_path: Path, options: list[str]
) -> None:
    with Executor(spool=instance.path) as executor:
        call = LongCall(tmp_path, executor, 2, "waits", attempts=2)
        job = batch(instance, tmp_path, *options, time="25s")
        call.await_start(PATIENCE)
        await_end(job)
        log = (tmp_path / "job.log").read_text()
        assert ("The time is up" in log) == (options[0] == "--drain")
        call.finish()
        worker(instance, mpi_ranks=2)
        assert call.future.result(PATIENCE) == [None, None]
