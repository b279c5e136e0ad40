"""Spool on a Grid Engine, and the commands of a test there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from spoolpool import Spool
from spoolpool.pool import batch_jobs, batch_system, job_ends
from spoolpool.pool.systems.base import EndedJob
from spoolpool.protocol import workers
from tests.servers import GridEngine
from tests.support.waiting import wait_until

PATIENCE = 120.0
"""Seconds for the start of several jobs on a loaded machine; not a limit of speed."""
SPOOL = [sys.executable, "-m", "spoolpool.cli.spool"]
WORKER = f"{sys.executable} -m spoolpool.cli.worker"


class Site:
    """Spool of one test."""

    def __init__(self, grid: GridEngine, directory: Path, spool: Spool) -> None:
        self.grid = grid
        self.directory = directory
        self.spool = spool
        self._jobs: list[str] = []

    def command(self, *arguments: object) -> str:
        """Return the output of a command of ``spool``."""
        return self.grid.run([*SPOOL, *map(str, arguments)], cwd=str(self.directory))

    def start(self, *arguments: object) -> str:
        """Submit a job of workers; return its id."""
        return self.command("workers", "start", self.spool.path, "--qsub", *arguments).strip()

    def submit(self, line: str, *options: str) -> str:
        """Submit a script of one line; return the id of its job."""
        script = self.directory / "script.sh"
        script.write_text(f"#!/bin/bash\n{line}\n")
        words = ["qsub", "-terse", "-S", "/bin/bash", "-V", "-j", "y", "-o", str(self.directory), *options]
        job = self.grid.run([*words, str(script)], cwd=str(self.directory)).strip().partition(".")[0]
        self._jobs.append(job)
        return job

    def jobs(self) -> str:
        """Return the list of all jobs that have not ended."""
        return self.grid.run(["qstat"])

    def output(self) -> str:
        """Return the output of the only job of workers."""
        [record] = batch_jobs.read_records(self.spool)
        return Path(job_ends.output_path(self.spool, record.name)).read_text()

    def end_of(self, name: str) -> EndedJob:
        """Return how a job ended, once Grid Engine has accounted for it."""
        found = wait_until(lambda: batch_system.ended_job("sge", name), f"{name} has ended", PATIENCE)
        assert isinstance(found, EndedJob)
        return found

    def await_groups(self, count: int) -> list[Any]:
        def enough() -> list[Any]:
            found = workers.read_workers(self.spool)
            return found if len(found) >= count else []

        return wait_until(enough, f"{count} groups are there", PATIENCE)

    def end(self) -> None:
        """End what a test has left."""
        if self._jobs:
            self.grid.run(["sh", "-c", 'qdel "$@" || true', "sh", *self._jobs])
        wait_until(lambda: not self.jobs(), "no job is left", PATIENCE)
