"""Spool on a cluster, and the batch jobs that a test submits there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from spoolpool import Spool
from spoolpool.protocol import workers
from tests.servers import Slurm
from tests.support.waiting import wait_until

PATIENCE = 120.0
"""Seconds for the start of several jobs on a loaded machine; not a limit of speed."""
WORKER = f"{sys.executable} -m spoolpool.cli.worker"


class Site:
    """Spool on the cluster, and batch scripts for it."""

    def __init__(self, slurm: Slurm, directory: Path) -> None:
        self.slurm = slurm
        self.directory = directory
        self.spool = Spool.create(directory / "spool", durability="none", lease=3, caches=1)
        self.jobs: list[str] = []

    def sbatch(self, line: str, *options: str) -> str:
        script = self.directory / f"job-{len(self.jobs)}.sh"
        script.write_text(f"#!/bin/bash\n{line}\n")
        script.chmod(0o755)
        log = self.directory / f"job-{len(self.jobs)}.log"
        command = ["sbatch", "--parsable", f"--output={log}", "--open-mode=append", *options, str(script)]
        job = self.slurm.run(command, cwd=str(self.directory)).strip()
        self.jobs.append(job)
        return job

    def log(self, number: int = -1) -> str:
        number = number % len(self.jobs)
        path = self.directory / f"job-{number}.log"
        return path.read_text() if path.exists() else ""

    def state(self, job: str) -> str:
        return self.slurm.run(["squeue", "-h", "-t", "all", "-j", job, "-o", "%T"]).strip()

    def ended(self, job: str) -> bool:
        return self.state(job) in ("", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")

    def await_groups(self, count: int) -> list[Any]:
        def enough() -> list[Any]:
            found = workers.read_workers(self.spool)
            return found if len(found) >= count else []

        try:
            return wait_until(enough, f"{count} groups are there", PATIENCE)
        except AssertionError as error:
            groups = [f"{info.worker} {info.ranks} on {info.process.host}" for info in workers.read_workers(self.spool)]
            queue = self.slurm.run(["squeue", "-t", "all"]) + self.slurm.run(["sinfo", "-N", "-l"])
            raise AssertionError(f"{error}\ngroups: {groups}\n{queue}\noutput of the job:\n{self.log()}") from None

    def end(self) -> None:
        for job in self.jobs:
            self.slurm.run(["scancel", job])
        for job in self.jobs:
            wait_until(lambda job=job: self.ended(job), f"job {job} ended", PATIENCE)
