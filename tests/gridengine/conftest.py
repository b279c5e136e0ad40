"""One Grid Engine for all tests of this folder, and a spool on it for each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolpool import Spool
from spoolpool.pool import batch_jobs
from tests.gridengine.site import Site
from tests.servers import GridEngine


@pytest.fixture(scope="package")
def grid() -> Iterator[GridEngine]:
    directory = tempfile.mkdtemp(prefix="spoolpool-grid-")
    with GridEngine(f"{directory}/g", nodes=2, slots=4) as cluster:
        yield cluster
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def site(grid: GridEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Environment of a submit host in this process; its jobs end with the test."""
    for name, value in grid.env.items():
        monkeypatch.setenv(name, value)
    made = Site(grid, tmp_path, Spool.create(tmp_path / "spool", durability="none", lease=3, caches=1))
    yield made
    list(batch_jobs.end_jobs(made.spool, lambda job: True, 0.0))
    made.end()
