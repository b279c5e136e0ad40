"""A short run of scripts/chaos; long ones are for a person to start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_task_has_exactly_one_outcome_while_processes_are_killed_and_stopped():
    command = [sys.executable, "-m", "tests.faults.chaos", "--seconds", "12", "--seed", "1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Every task had exactly one outcome." in run.stdout
