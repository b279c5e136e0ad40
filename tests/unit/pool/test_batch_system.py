"""Batch scripts: those that are written, and those that the documentation shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from spoolpool.cli.worker import main
from spoolpool.errors import LauncherError
from spoolpool.pool.batch_system import Job

SHOWN = sorted((Path(__file__).parents[3] / "docs" / "batch").glob("*.sh"))


def parses(script: str) -> bool:
    return subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def worker_options(script: str) -> list[str]:
    """What the script gives to spool-worker."""
    text = script.replace("\\\n", " ")
    line = next(line for line in text.splitlines() if re.search(r"(spool-worker|spoolpool\.cli\.worker) /", line))
    words = shlex.split(line)
    start = next(i for i, word in enumerate(words) if word.endswith(("spool-worker", "spoolpool.cli.worker")))
    return words[start + 1 :]


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.name)
def test_a_script_that_the_documentation_shows_is_bash_and_its_options_exist(path: Path):
    script = path.read_text(encoding="utf-8")
    assert parses(script)
    main.make_context("spool-worker", worker_options(script))  # raises for an option that does not exist


@pytest.mark.parametrize(("system", "mark"), [("slurm", "#SBATCH"), ("flux", "# flux:")])
def test_a_script_asks_for_what_was_wished_and_hands_the_rest_to_the_worker(system, mark):
    job = Job(
        system=system,
        spool="/shared/a spool",
        nodes=3,
        time="2:00:00",
        directives=("--queue=long",),
        arguments=("--ranks", "8"),
    )
    script = job.script("spool-worker-1", "/shared/a spool/jobs/%1.out")
    assert parses(script)
    assert f"{mark} --nodes=3" in script
    assert f"{mark} --queue=long" in script
    assert "2:00:00" in script
    command = f"exec env SPOOLPOOL_JOB=spool-worker-1 {sys.executable} -m spoolpool.cli.worker '/shared/a spool'"
    assert script.splitlines()[-1].startswith(command)
    output = "%%1.out" if system == "slurm" else "%1.out"  # Slurm would put a number there
    assert f"{mark} --output='/shared/a spool/jobs/{output}'" in script
    assert worker_options(script.replace("'/shared/a spool'", "/s"))[1:] == ["--ranks", "8"]


def test_a_template_of_the_site_is_filled_in_and_its_mistakes_are_told():
    job = Job(system="slurm", spool="/s", template="#!/bin/sh\n# $nodes $$HOME\n$worker\n")
    assert job.script("n", "/o").startswith("#!/bin/sh\n# 1 $HOME\n")
    with pytest.raises(LauncherError, match="nonsense"):
        Job(system="slurm", spool="/s", template="$nonsense").script("n", "/o")


def test_a_batch_system_that_is_not_there_or_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LauncherError, match="Cannot submit a batch job with sbatch"):
        Job(system="slurm", spool="/s").submit("n", "/o")
    fake = tmp_path / "sbatch"
    fake.write_text("#!/bin/sh\necho 'no such partition' >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(LauncherError, match="no such partition"):
        Job(system="slurm", spool="/s").submit("n", "/o")
