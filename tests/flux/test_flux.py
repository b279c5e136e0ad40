"""Worker groups as jobs of a real Flux instance; skipped without ``flux`` on PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spoolpool import settings
from spoolpool.protocol.spool import Spool
from tests.support.waiting import wait_until

FLUX = shutil.which("flux")
pytestmark = [pytest.mark.flux, pytest.mark.skipif(FLUX is None, reason="flux is not on PATH")]

PATIENCE = 120.0

SCRIPT = """\
import os, sys
from spoolpool import {executor}

def where(number):
    from mpi4py import MPI
    return number, MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank(), os.environ["OMP_NUM_THREADS"]

def dies():
    os.kill(os.getpid(), 9)

def gpus():
    return os.environ.get("CUDA_VISIBLE_DEVICES")

if __name__ == "__main__":
    {body}
"""


def run(flux: dict[str, str], directory: Path, body: str, executor: str = "Executor") -> str:
    script = directory / "script.py"
    script.write_text(SCRIPT.format(executor=executor, body=body.replace("\n", "\n    ")))
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**flux, settings.ENV_SPOOL: str(directory)},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert not list(directory.glob("spoolpool-*")), "the spool of the executor was removed"
    return done.stdout.strip()


def test_executor_in_an_instance_runs_groups_as_jobs_whose_ranks_find_each_other(flux, tmp_path):
    body = """with Executor(max_workers=2, cores_per_worker=2, threads_per_core=2) as exe:
    print([future.result() for future in [exe.submit(where, n) for n in range(3)]], exe._runtime.pool._launcher.name)"""
    expected = [[(n, 2, 0, "2"), (n, 2, 1, "2")] for n in range(3)]
    assert run(flux, tmp_path, body) == f"{expected} flux"


def test_flux_executor_takes_the_arguments_of_every_executor(flux, tmp_path):
    body = """with FluxExecutor(max_workers=1) as exe:
    print(exe.submit(pow, 2, 3).result())"""
    assert run(flux, tmp_path, body, "FluxExecutor") == "8"


def test_group_whose_rank_is_killed_is_replaced(flux, tmp_path):
    body = """with Executor(max_workers=1, cores_per_worker=2, resource_dict={"max_attempts": 1}) as exe:
    print(type(exe.submit(dies).exception()).__name__, exe.submit(where, 5).result()[1][:3])"""
    assert run(flux, tmp_path, body) == "WorkerLost (5, 2, 1)"


def test_groups_get_different_gpus(flux, tmp_path):
    body = """with Executor(max_workers=2, gpus_per_worker=1) as exe:
    seen = set()
    while len(seen) < 2:
        seen |= {future.result() for future in [exe.submit(gpus) for _ in range(8)]}
    print(sorted(len(devices.split(",")) for devices in seen))"""
    assert run(flux, tmp_path, body) == "[1, 1]"


def test_group_larger_than_the_instance_is_an_error(flux, tmp_path):
    body = """try:
    Executor(max_workers=1, cores_per_worker=99)
except Exception as error:
    print(type(error).__name__, "does not fit" in str(error))"""
    assert run(flux, tmp_path, body) == "LauncherError True"


def test_supervisor_fills_the_instance_and_drains_after_a_signal(flux, tmp_path):
    spool = Spool.create(tmp_path / "spool", durability="none", lease=3, caches=1)
    command = [sys.executable, "-m", "spoolpool.cli.worker", spool.path, "--ranks", "2", "--threads", "2"]
    with subprocess.Popen(command, env=flux, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as supervisor:
        wait_until(lambda: len(os.listdir(spool.layout.workers)) == 2, "two groups have announced themselves", PATIENCE)
        supervisor.terminate()
        assert supervisor.wait(PATIENCE) == 0
        assert supervisor.stderr is not None
        assert "Starting 2 worker group(s) of 2 rank(s) with 2 thread(s) each through flux" in supervisor.stderr.read()
    wait_until(lambda: not os.listdir(spool.layout.workers), "the groups have removed their entries", PATIENCE)
