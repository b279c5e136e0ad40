"""Batch jobs in a real Flux instance: failures are shown, and ids are taken in every spelling."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolpool import Executor, settings
from spoolpool.pool import batch_jobs
from spoolpool.protocol import workers
from spoolpool.protocol.spool import Spool
from tests.support.waiting import wait_until

FLUX = shutil.which("flux")
pytestmark = [pytest.mark.flux, pytest.mark.skipif(FLUX is None, reason="flux is not on PATH")]

PATIENCE = 120.0
BROKEN = "#!/bin/bash\n# flux: -N1\n$directives\necho loading mpich\nexit 3  # $worker\n"


@pytest.fixture
def instance(flux: dict[str, str], spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spool]:
    """Spool, with the environment of the instance in this process; its jobs end with the test."""
    for name, value in flux.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(settings.ENV_SPOOL, os.path.dirname(spool.path))
    yield spool
    list(batch_jobs.end_jobs(spool, lambda job: True, 0.0))


def run(*command: object) -> str:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def command(*arguments: object) -> str:
    return run(sys.executable, "-m", "spoolpool.cli.spool", *arguments)


def active() -> list[str]:
    return run(FLUX, "jobs", "-n", "-o", "{id.f58plain}").split()


def where() -> str:
    return os.environ["FLUX_URI"]


def spelled(job: str, form: str) -> str:
    return run(FLUX, "job", "id", f"--to={form}", job)


FORMS = ("f58", "f58plain", "dec", "hex", "dothex", "kvs", "words", "emoji")


def test_job_is_drained_and_stopped_by_every_spelling_of_its_id(instance: Spool) -> None:
    start = ("workers", "start", instance.path, "--flux", "--time=10m", "--", "--groups", "1")
    job = command(*start)
    [info] = wait_until(lambda: workers.read_workers(instance), "it has its group", PATIENCE)
    assert info.job == job
    assert f"job {job}" in command("workers", "ls", instance.path)
    assert job in command("status", instance.path)
    pending = [command(*start) for _ in range(len(FORMS))]
    other = spelled(run(FLUX, "submit", "--urgency=0", "true"), "dec")
    with pytest.raises(AssertionError, match=f"'{other}' is no batch job of this spool. Your jobs there are: .*{job}"):
        command("workers", "stop", instance.path, other)
    for each, form in zip(pending, FORMS, strict=True):
        command("workers", "stop", instance.path, spelled(each, form))
        assert each not in active(), form
    assert job in active()
    run(FLUX, "cancel", other)
    command("workers", "drain", instance.path, spelled(job, "dec"))
    wait_until(lambda: job not in active(), "the job has ended with its group", PATIENCE)


def test_lane_whose_jobs_fail_twice_is_left_alone(instance: Spool, tmp_path: Path) -> None:
    template = tmp_path / "broken.sh"
    template.write_text(BROKEN)
    scale = ("autoscale", instance.path, "--flux", "--once", "--max-jobs=1", "--cooldown=0", f"--template={template}")
    with Executor(spool=instance.path) as executor:
        executor.submit(where)
        for _ in range(2):
            assert "was submitted for default.r1t1g0" in command(*scale)
            wait_until(lambda: not active(), "the job has failed", PATIENCE)
        assert "2 jobs in a row failed" in command(*scale)
        assert "A job would be submitted" not in command(*scale, "--dry-run")
        for text in (command("workers", "ls", instance.path), command("status", instance.path)):
            assert "it ended before one of its worker groups had started (FAILED, exit code 3)" in text
            assert "| loading mpich" in text
            assert "submits no other one for 59 min" in text
        executor.shutdown(cancel_futures=True)


def test_ends_that_are_no_failures_are_told_apart(instance: Spool) -> None:
    start = ("workers", "start", instance.path, "--flux", "--time=10m")
    with_groups = command(*start, "--", "--groups", "1", "--idle-timeout", "1")
    wait_until(lambda: with_groups not in active(), "it has ended as idle", PATIENCE)
    cancelled = command(*start, "--option=--urgency=0")
    run(FLUX, "cancel", cancelled)
    impossible = command(*start, "--nodes", "99")
    wait_until(lambda: not active(), "all have ended", PATIENCE)
    lines = command("workers", "ls", instance.path, "--json").splitlines()
    found = {each["id"]: each for each in map(json.loads, lines)}
    ends = {job: found[job]["end"] for job in (with_groups, cancelled, impossible)}
    assert ends == {with_groups: "done", cancelled: "cancelled", impossible: "failed"}
    assert "unsatisfiable request" in found[impossible]["failure"]["why"]
