"""One cluster for all tests of this folder, and a spool on it for each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Slurm
from tests.slurm.site import Site


@pytest.fixture(scope="package")
def slurm() -> Iterator[Slurm]:
    directory = tempfile.mkdtemp(prefix="spoolpool-slurm-")
    preemption = {
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "SlurmctldParameters": "preempt_send_user_signal",
    }
    with Slurm(f"{directory}/s", nodes=2, cpus=4, gpus=2, options=preemption) as cluster:
        yield cluster
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def site(slurm: Slurm, tmp_path: Path) -> Iterator[Site]:
    made = Site(slurm, tmp_path)
    yield made
    made.end()
