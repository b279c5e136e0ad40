"""Batch jobs that fail on a real Slurm: their reasons are shown, and their lanes are left alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor
from spoolpool.pool import batch_jobs
from spoolpool.protocol import workers
from tests.servers import ServerError
from tests.servers import slurm as server
from tests.slurm.site import PATIENCE, WORKER, Site
from tests.support.waiting import wait_until

reason = server.missing()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(reason), reason=reason or "")]

SPOOL = [sys.executable, "-m", "spoolpool.cli.spool"]
BROKEN = "#!/bin/bash\n#SBATCH --time=$time\n$directives\nprintf 'loading \\033[31mmpich\\n'\nexit 3  # $worker\n"
SILENT = "#!/bin/bash\n#SBATCH --time=$time\n$directives\nexit 0  # $worker\n"


@pytest.fixture
def login(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Environment of a login node of the cluster in this process; its jobs end with the test."""
    for name, value in site.slurm.env.items():
        monkeypatch.setenv(name, value)
    yield site
    list(batch_jobs.end_jobs(site.spool, lambda job: True, 0.0))


@pytest.fixture
def executor(login: Site) -> Iterator[Executor]:
    """Executor whose tasks are cancelled at the end of the test."""
    executor = Executor(spool=login.spool.path)
    yield executor
    executor.shutdown(cancel_futures=True)


def spool(site: Site, *arguments: object) -> str:
    """Return the output of a command of ``spool``."""
    return site.slurm.run([*SPOOL, *map(str, arguments)], cwd=str(site.directory))


def autoscale(site: Site, *arguments: object) -> str:
    return spool(site, "autoscale", site.spool.path, "--once", "--time=10", "--cooldown=0", *arguments)


def listed(site: Site) -> list[dict[str, Any]]:
    """Return the jobs that ``spool workers ls --json`` prints."""
    lines = spool(site, "workers", "ls", site.spool.path, "--json").splitlines()
    return [each for each in map(json.loads, lines) if "parts" in each]


def template(site: Site, text: str) -> str:
    path = site.directory / "template.sh"
    path.write_text(text)
    return str(path)


def queue_is_empty(site: Site) -> bool:
    return not site.slurm.run(["squeue", "-h", "-o", "%i"])


def scale_and_await_the_end(site: Site, *arguments: object) -> str:
    output = autoscale(site, *arguments)
    wait_until(lambda: queue_is_empty(site), "the jobs have ended", PATIENCE)
    return output


def where() -> str:
    return os.uname().nodename


@pytest.mark.parametrize("script", [BROKEN, SILENT], ids=["failing", "successful without a group"])
def test_lane_whose_jobs_fail_twice_is_left_alone_until_they_are_forgotten(
    login: Site, executor: Executor, script: str
) -> None:
    broken = f"--template={template(login, script)}"
    single = executor.submit(where)
    executor.submit(where, resource_dict={"cores": 2})
    for _ in range(2):
        output = scale_and_await_the_end(login, "--max-jobs=4", broken)
        assert output.count(" was submitted for default.r") == 2
    output = autoscale(login, "--max-jobs=4", broken)
    assert "was submitted" not in output
    assert output.count("2 jobs in a row failed, so that it gets no other one for 59 min") == 2
    status = spool(login, "status", login.spool.path)
    for text in (spool(login, "workers", "ls", login.spool.path), status):
        assert text.count("it ended before one of its worker groups had started (") == 2
        assert text.count("'spool autoscale' submits no other one for 59 min") == 2
        if script == BROKEN:
            assert text.count("| loading \\x1b[31mmpich") == 2
            assert "FAILED, exit code 3" in text
        else:
            assert text.count("it printed nothing to ") == 2
    failed = json.loads(spool(login, "status", login.spool.path, "--json"))["failed_jobs"]
    assert [each["failures"] for each in failed].count(2) == 2
    lane = next(each["lane"] for each in failed if ".r1t" in each["lane"])
    assert spool(login, "workers", "forget", login.spool.path, lane) == "2 ended job(s) were forgotten.\n"
    output = autoscale(login, "--max-jobs=4")
    assert output.count(" was submitted for default.r1t1g0") == 1
    assert output.count(" was submitted for ") == 1
    assert single.result(PATIENCE) in ("n1", "n2")


def test_group_of_a_job_that_a_person_has_started_ends_the_pause_of_its_lane(login: Site, executor: Executor) -> None:
    broken = f"--template={template(login, BROKEN)}"
    first = executor.submit(where)
    for _ in range(2):
        scale_and_await_the_end(login, "--max-jobs=1", broken)
    assert "2 jobs in a row failed" in autoscale(login, "--max-jobs=1")
    spool(login, "workers", "start", login.spool.path, "--time=10", "--", "--groups", "1", "--max-tasks", "2")
    assert first.result(PATIENCE) in ("n1", "n2")
    assert autoscale(login, "--max-jobs=1").count("is forgotten: a newer group serves that lane") == 2
    executor.submit(where).result(PATIENCE)
    wait_until(lambda: queue_is_empty(login), "the job has ended after its second task", PATIENCE)
    last = executor.submit(where)
    assert "was submitted for" in autoscale(login, "--max-jobs=1", "--idle-timeout=1")
    assert last.result(PATIENCE) in ("n1", "n2")


def test_jobs_that_were_cancelled_are_no_failures(login: Site, executor: Executor) -> None:
    blocker = login.sbatch("sleep 600", "--nodes=2", "--exclusive")
    wait_until(lambda: login.state(blocker) == "RUNNING", "the nodes are in use", PATIENCE)
    executor.submit(where)
    for _ in range(3):
        output = autoscale(login, "--max-jobs=1")
        job = output.partition("Job ")[2].split()[0]
        assert f"Job {job} was submitted" in output
        login.slurm.run(["scancel", job])
        wait_until(lambda job=job: login.ended(job), "it is gone", PATIENCE)
    assert {each["end"] for each in listed(login) if each["state"] == "over"} <= {"cancelled", None}
    assert "failed" not in spool(login, "workers", "ls", login.spool.path)


def test_job_whose_groups_have_worked_is_no_failure_whatever_ends_it(login: Site) -> None:
    start = ["workers", "start", login.spool.path, "--time=10"]
    job = spool(login, *start, "--", "--groups", "1").strip()
    login.await_groups(1)
    login.slurm.run(["scontrol", "update", f"job={job}", "EndTime=now+1"])
    wait_until(lambda: login.ended(job), "its walltime has ended", PATIENCE)
    [seen] = listed(login)
    assert (seen["end"], seen["failure"]) == ("done", None)
    login.slurm.run(["scancel", "--quiet", job])
    second = spool(login, *start, "--", "--groups", "1", "--idle-timeout", "1").strip()
    wait_until(lambda: login.state(second) == "COMPLETED", "it has ended as idle", PATIENCE)
    assert {each["end"] for each in listed(login)} == {"done"}
    assert "FAILED" not in spool(login, "status", login.spool.path)


def test_job_that_was_started_by_hand_and_failed_is_shown_with_its_reason(login: Site) -> None:
    start = ["workers", "start", login.spool.path, "--time=10"]
    first = spool(login, *start, f"--template={template(login, BROKEN)}").strip()
    elsewhere = login.directory / "elsewhere.out"
    second = spool(login, *start, f"--option=--output={elsewhere}", "--", "--ranks", "99").strip()
    wait_until(lambda: queue_is_empty(login), "both have ended", PATIENCE)
    for text in (spool(login, "workers", "ls", login.spool.path), spool(login, "status", login.spool.path)):
        assert f"Job {first} failed" in text
        assert "| loading \\x1b[31mmpich" in text
        assert f"Job {second} failed" in text
        assert "of 99 rank(s) with 1 thread(s) each cannot be placed in this job" in text
    with pytest.raises(ServerError, match=f"'{first}' has ended already"):
        spool(login, "workers", "stop", login.spool.path, first)
    assert spool(login, "workers", "forget", login.spool.path, "--all") == "2 ended job(s) were forgotten.\n"
    assert "failed" not in spool(login, "workers", "ls", login.spool.path)
    assert [name for name in os.listdir(login.spool.layout.jobs) if name.startswith("spool-worker")] == []


def test_script_for_sbatch_that_failed_is_shown_with_the_last_lines_of_its_output(login: Site) -> None:
    job = login.sbatch(f"echo before\nexec {WORKER} {login.spool.path} --ranks 99", "--nodes=1", "--exclusive")
    wait_until(lambda: login.ended(job), "it has failed", PATIENCE)
    for text in (spool(login, "workers", "ls", login.spool.path), spool(login, "status", login.spool.path)):
        assert f"Job {job} failed" in text
        assert "| before" in text
        assert "cannot be placed in this job" in text


def test_dry_run_prints_the_decisions_and_changes_nothing(login: Site, executor: Executor) -> None:
    assert "Nothing would be submitted or cancelled." in autoscale(login, "--max-jobs=2", "--dry-run")
    executor.submit(where)
    executor.submit(where, resource_dict={"not_before": 3600})
    before = tree(login)
    output = autoscale(login, "--max-jobs=2", "--dry-run")
    assert "A job would be submitted for default.r1t1g0" in output
    assert "Not counted are 1 task(s) that are held back" in output
    assert tree(login) == before
    assert queue_is_empty(login)
    output = scale_and_await_the_end(login, "--max-jobs=2", f"--template={template(login, BROKEN)}")
    assert "was submitted for" in output
    before = tree(login)
    assert "A job would be submitted" in autoscale(login, "--max-jobs=2", "--dry-run")
    assert tree(login) == before, "not even the end of the job is recorded"


def tree(site: Site) -> list[str]:
    """Return the files that an autoscaler may change, with their sizes; the executor of the test changes others."""
    root = Path(site.spool.path)
    paths = [path for name in ("jobs", "ready", "waiting", "claimed", "workers") for path in (root / name).rglob("*")]
    return sorted(f"{path} {path.stat().st_size}" for path in [*paths, *root.glob("journal/autoscale.jsonl")])


def test_every_lane_gets_its_first_job_before_any_gets_its_second(login: Site, executor: Executor) -> None:
    login.sbatch("sleep 600", "--nodes=2", "--exclusive")
    for _ in range(30):
        executor.submit(where)
    for ranks in (2, 3):
        executor.submit(where, resource_dict={"cores": ranks})
    output = autoscale(login, "--max-jobs=4", "--tasks-per-job=1")
    assert output.count(" was submitted for default.r1t") == 2
    assert output.count(" was submitted for default.r2t") == 1
    assert output.count(" was submitted for default.r3t") == 1
    assert workers.read_workers(login.spool) == []
