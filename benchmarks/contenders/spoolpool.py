"""spoolpool itself: embedded, or attached to a spool with one group started by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.claims import of_claims
from benchmarks.contender import Contender, Job, Samples
from benchmarks.imports import VARIABLE, read_imports
from benchmarks.measures import Submits, of_executor

DURABILITIES: tuple[Any, ...] = ("none", "data", "full")
"""Variants of the attached executor; without a variant it is embedded, which is durability none."""

SERVED = "served"
"""Variant: attached to the spool of this name in the job's directory, which a group serves already."""

ON_DISK = "disk"
"""Variant: embedded, with its temporary spool in the job's directory even if there is room in memory."""

PACKED = "packed"
"""Variant: embedded, where calls may share a task."""


@contextmanager
def executor(job: Job) -> Iterator[Submits]:
    """Executor in the way of a user."""
    from spoolpool import Executor, Submission, settings

    if job.variant == ON_DISK:
        os.environ[settings.ENV_SHM] = ""
        tempfile.tempdir = job.directory
    if job.variant == SERVED:
        with Executor(cores_per_worker=job.ranks, spool=f"{job.directory}/{SERVED}") as submitter:
            yield submitter
    elif job.variant == PACKED:
        with Executor(max_workers=job.workers, submission=Submission(pack=True)) as packing:
            yield packing
    elif job.variant in DURABILITIES:
        with _attached(job) as attached:
            yield attached
    else:
        with Executor(max_workers=job.workers, cores_per_worker=job.ranks, oversubscribe=job.ranks > 1) as embedded:
            yield embedded


@contextmanager
def _attached(job: Job) -> Iterator[Submits]:
    from spoolpool import Executor, Spool

    path = f"{job.directory}/spool"
    Spool.create(path, durability=DURABILITIES[DURABILITIES.index(job.variant)])
    command = [sys.executable, "-m", "spoolpool.cli.worker", path]
    if job.workers > 1 or job.ranks > 1:
        command += ["--groups", str(job.workers), "--ranks", str(job.ranks)]
        command += ["--launcher", "mpiexec", "--oversubscribe"] if job.ranks > 1 else ["--launcher", "local"]
    worker = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        with Executor(cores_per_worker=job.ranks, spool=path) as attached:
            yield attached
    finally:
        worker.terminate()
        worker.wait(30)


def _fill(directory: str, count: int, taken: int) -> None:
    """Submit the tasks that will be claimed; behind them are names without content."""
    from spoolpool import settings
    from spoolpool.format import envelope, headers
    from spoolpool.format.names import Lane, TaskFile
    from spoolpool.protocol.spool import Spool
    from spoolpool.protocol.submit import Submitter

    spool = Spool.create(f"{directory}/spool", durability="none")
    lane = Lane("default", 1, 1, 0, settings.PYTHON).name
    submitter = Submitter(spool)
    for start in range(0, count, settings.BUCKET_SIZE):
        bucket = f"499-{start:014x}-{submitter.id}"
        os.makedirs(spool.layout.bucket(lane, bucket))
        for number in range(start, min(count, start + settings.BUCKET_SIZE)):
            name = f"499-{number:014x}-{os.urandom(5).hex()}"
            if number < taken:
                header = headers.TaskHeader(task=name, session="inbox", lane=lane, bucket=bucket)
                submitter.submit(header, envelope.pack(headers.encode(header), b""))
            else:
                os.mknod(f"{spool.layout.bucket(lane, bucket)}/{TaskFile(name, 1, 1).name}", 0o600)


class _Taker:
    """Claimer that removes the task file after the claim, without a run and an outcome."""

    def __init__(self, directory: str) -> None:
        from spoolpool.format.names import new_worker_id
        from spoolpool.protocol.claimer import Claimer
        from spoolpool.protocol.spool import Spool
        from spoolpool.security.trust import Trust
        from spoolpool.system import files

        self._spool = Spool(f"{directory}/spool")
        self._claimer = Claimer(self._spool, new_worker_id(), lambda _: True, Trust())
        self._remove = files.remove
        self._tried = self._taken = 0
        for name in ("open_file", "move"):
            setattr(files, name, self._counted(getattr(files, name)))

    def _counted(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self._tried += 1
            return operation(*args, **options)

        return counted

    @property
    def wasted(self) -> int:
        return self._tried - 2 * self._taken

    def take(self, seconds: float) -> bool:
        claim = self._claimer.next()
        if claim is None:
            return False
        self._taken += 1
        if seconds:
            time.sleep(seconds)
        self._remove(self._spool.layout.claimed_task(claim.task_file))
        claim.close()
        return True


def fill(job: Job) -> Samples:
    """Create a spool with ``tasks`` queued tasks."""
    _fill(job.directory, job.tasks, min(job.tasks, 100))
    return {}


def start(job: Job) -> Samples:
    """Measure seconds from the start of a group until the start of a waiting call on its last rank.

    Variant ``supervised``: from the start of the supervisor that starts the group.
    """
    from spoolpool import Executor, Spool

    path = f"{job.directory}/spool"
    Spool.create(path, durability="none")
    command = [sys.executable, "-m", "spoolpool.cli.worker", path, "--max-tasks", "1"]
    if job.variant == "supervised":
        command += ["--launcher", "mpiexec", "--ranks", str(job.ranks)]
    elif job.ranks > 1:
        command = ["mpiexec", "-n", str(job.ranks), *command]
    taken = []
    with Executor(cores_per_worker=job.ranks, spool=path) as attached:
        for _ in range(1 + job.tasks):  # the first start fills caches
            call = attached.submit(time.time)
            before = time.time()
            group = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            begun: Any = call.result()
            taken.append(max(begun if job.ranks > 1 else [begun]) - before)
            group.wait(30)
        if job.ranks > 1:  # the reports of several ranks would be mixed
            return {"time": taken[1:]}
        call = attached.submit(time.time)
        variables = {**os.environ, VARIABLE: "1"}
        errors = subprocess.run(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=variables, check=True
        ).stderr
        call.result()
    return {"time": taken[1:], **read_imports(errors.decode())}


CONTENDER = Contender(
    name="spoolpool",
    module=__name__,
    measures={**of_executor(executor, chunks=True), **of_claims(_fill, _Taker), "fill": fill, "start": start},
)

if __name__ == "__main__":
    CONTENDER.main()
