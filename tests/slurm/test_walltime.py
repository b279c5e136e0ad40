"""Tasks and the walltime of jobs of a real Slurm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spoolpool import Executor
from spoolpool.errors import WalltimeTooShort
from spoolpool.format.names import TaskFile, parse_task_file
from spoolpool.monitor.status import StatusCollector
from spoolpool.protocol import journal
from tests.servers import slurm as server
from tests.slurm.site import PATIENCE, WORKER, Site
from tests.slurm.test_srun import slow
from tests.support.waiting import wait_until

reason = server.missing()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(reason), reason=reason or "")]


def ready(site: Site) -> list[TaskFile]:
    names = (path.name for path in Path(site.spool.layout.ready).rglob("*"))
    return [task_file for task_file in map(parse_task_file, names) if task_file is not None]


def blocked(site: Site) -> str:
    return "; ".join(each.why for each in StatusCollector(site.spool).collect().blocked)


def test_job_begins_only_tasks_that_fit_into_its_walltime(site: Site):
    site.sbatch(f"exec {WORKER} {site.spool.path} --drain 2", "--nodes=1", "--ntasks=1", "--time=1")
    with Executor(spool=site.spool.path) as executor:
        long = executor.submit(pow, 2, 3, resource_dict={"time_limit": 90})
        assert executor.submit(pow, 2, 4, resource_dict={"time_limit": 5}).result(PATIENCE) == 16
        assert "needs 90 s, the longest group has " in blocked(site)
        assert ready(site) == [TaskFile(long.task, 1, 1, seconds=90)]
        site.sbatch(f"exec {WORKER} {site.spool.path}", "--nodes=1", "--ntasks=1", "--time=4")
        assert long.result(PATIENCE) == 8


def test_ranks_without_a_supervisor_know_the_walltime_of_their_job(site: Site):
    line = f"srun -n 1 --export=ALL {WORKER} {site.spool.path} </dev/null"
    site.sbatch(line, "--nodes=1", "--ntasks=1", "--time=1")
    [info] = site.await_groups(1)
    assert info.ends is not None
    assert 0 < info.ends - site.spool.server_time() <= 60
    with Executor(spool=site.spool.path) as executor:
        long = executor.submit(pow, 2, 3, resource_dict={"time_limit": 90})
        assert executor.submit(pow, 2, 4).result(PATIENCE) == 16
        assert "needs 90 s, the longest group has " in blocked(site)
        assert long.cancel()


def test_task_that_jobs_of_one_walltime_cannot_end_is_not_begun_by_each_of_them(site: Site, tmp_path: Path):
    started, may_end, attempts = (str(tmp_path / name) for name in ("started", "may_end", "attempts"))
    command = f"exec {WORKER} {site.spool.path} --drain 1 --max-time"
    with Executor(spool=site.spool.path) as executor:
        future = executor.submit(slow, started, may_end, attempts, resource_dict={"max_attempts": 2})
        seconds = 6
        while not os.path.exists(started):  # under load the time may be up before the group looks for a task
            seconds *= 2
            job = site.sbatch(f"{command} {seconds}", "--nodes=1", "--ntasks=1")
            wait_until(lambda job=job: os.path.exists(started) or site.ended(job), "the task runs", PATIENCE)
        wait_until(lambda: site.ended(job), "the job ended by itself", PATIENCE)
        [waits] = ready(site)
        assert (waits.attempt, waits.releases) == (1, 1)
        job = site.sbatch(f"{command} {waits.seconds + 5}", "--nodes=1", "--ntasks=1")
        wait_until(lambda: "the longest group has" in blocked(site), "status tells of the shortage", PATIENCE)
        wait_until(lambda: site.ended(job), "the job ended by itself", PATIENCE)
        assert ready(site) == [waits]
        site.sbatch(f"{command} {waits.seconds + 16}", "--nodes=1", "--ntasks=1")
        error = future.exception(PATIENCE)
        assert isinstance(error, WalltimeTooShort)
        assert "2 time(s)" in str(error)
    assert Path(attempts).read_text().split() == ["1", "1"]
    given_back = [line.event for line in journal.lines(site.spool) if line.event.event == "given back"]
    assert [each.reason for each in given_back] == ["the walltime of its group ended"] * 2  # by worker or supervisor
