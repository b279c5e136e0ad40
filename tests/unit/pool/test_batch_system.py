"""Batch scripts of jobs and of the documentation."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from spoolpool import FluxBatch, Sbatch
from spoolpool.cli.worker import main
from spoolpool.errors import LauncherError
from spoolpool.pool.batch_system import Job
from spoolpool.system.environment import python_module

SCRIPTS = sorted((Path(__file__).parents[3] / "docs" / "batch").glob("*.sh"))


def is_bash(script: str) -> bool:
    return subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def worker_options(script: str) -> list[str]:
    """Return the arguments of spool-worker in a script."""
    text = script.replace("\\\n", " ")
    line = next(line for line in text.splitlines() if re.search(r"(spool-worker|spoolpool\.cli\.worker) /", line))
    words = shlex.split(line)
    start = next(i for i, word in enumerate(words) if word.endswith(("spool-worker", "spoolpool.cli.worker")))
    return words[start + 1 :]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_documented_script_is_bash_with_existing_options(path: Path):
    script = path.read_text(encoding="utf-8")
    assert is_bash(script)
    main.make_context("spool-worker", worker_options(script))  # raises for an option that does not exist


@pytest.mark.parametrize(
    ("kind", "mark", "time"),
    [(Sbatch, "#SBATCH", "--time=2:00:00"), (FluxBatch, "# flux:", "--time-limit=120m")],
)
def test_script_requests_the_resources_of_the_job_and_runs_the_worker_with_its_options(kind, mark, time):
    backend = kind(nodes=3, time="2:00:00", directives=["--queue=long"])
    job = Job(backend=backend, spool="/shared/a spool", arguments=("--ranks", "8"))
    script = job.script("spool-worker-1", "/shared/a spool/jobs/%1.out")
    assert is_bash(script)
    assert f"{mark} --nodes=3" in script
    assert f"{mark} --queue=long" in script
    assert f"{mark} {time}\n" in script
    worker = shlex.join([*python_module("spoolpool.cli.worker"), "/shared/a spool"])
    command = f"exec env SPOOLPOOL_JOB=spool-worker-1 {worker}"
    assert script.splitlines()[-1].startswith(command)
    output = "%%1.out" if kind is Sbatch else "%1.out"  # Slurm would replace %1 by a number
    assert f"{mark} --output='/shared/a spool/jobs/{output}'" in script
    assert worker_options(script.replace("'/shared/a spool'", "/s"))[1:] == ["--ranks", "8"]


def test_template_of_the_site_is_filled_in_and_an_unknown_variable_is_an_error():
    job = Job(backend=Sbatch(), spool="/s", template="#!/bin/sh\n# $nodes $$HOME\n$worker\n")
    assert job.script("n", "/o").startswith("#!/bin/sh\n# 1 $HOME\n")
    with pytest.raises(LauncherError, match="nonsense"):
        Job(backend=Sbatch(), spool="/s", template="$nonsense").script("n", "/o")


def test_missing_batch_system_and_rejected_job_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LauncherError, match="Cannot submit a batch job with sbatch"):
        Job(backend=Sbatch(), spool="/s").submit("n", "/o")
    fake = tmp_path / "sbatch"
    fake.write_text("#!/bin/sh\necho 'no such partition' >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(LauncherError, match="no such partition"):
        Job(backend=Sbatch(), spool="/s").submit("n", "/o")
