"""Batch jobs of workers on a real Grid Engine: placement, walltime, signals, ends and backends."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from spoolpool import Executor, SgeBatch
from spoolpool.batch_backends import batch_backend
from spoolpool.errors import LauncherError
from spoolpool.pool import batch_jobs, batch_system
from spoolpool.pool.batch_system import Job
from spoolpool.protocol import workers
from tests.gridengine.site import PATIENCE, WORKER, Site
from tests.servers import gridengine as server
from tests.support import tasks
from tests.support.waiting import wait_until

reason = server.missing()
pytestmark = [pytest.mark.gridengine, pytest.mark.skipif(bool(reason), reason=reason or "")]


def where() -> tuple[str, int, int]:
    from mpi4py import MPI

    return os.uname().nodename, MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank()


def test_groups_fill_the_nodes_of_a_job_and_end_in_order(site: Site) -> None:
    job = site.start("--nodes=2", "--time=10", "--", "--shape", "6=1", "--shape", "2")
    assert sorted(info.ranks for info in site.await_groups(2)) == [2, 6]
    assert {info.job for info in workers.read_workers(site.spool)} == {job}
    with Executor(spool=site.spool.path) as executor:
        wide = executor.submit(where, resource_dict={"cores": 6}).result(PATIENCE)
        narrow = executor.submit(where, resource_dict={"cores": 2}).result(PATIENCE)
    assert [rank[1:] for rank in wide] == [(6, rank) for rank in range(6)]
    assert Counter(rank[0] for rank in [*wide, *narrow]) == {"n1": 4, "n2": 4}
    assert f"{job}  running  2 node(s) for 0:10:00" in site.command("workers", "ls", site.spool.path)
    [record] = batch_jobs.read_records(site.spool)
    site.command("workers", "stop", site.spool.path, "--all")
    assert workers.read_workers(site.spool) == []
    assert site.end_of(record.name)[:3] == (job, "done", 0)


def test_job_is_filled_with_groups_on_all_its_nodes(site: Site) -> None:
    site.start("--nodes=2", "--time=10", "--", "--ranks", "2")
    infos = site.await_groups(4)
    assert Counter(info.process.host for info in infos) == {"n1": 2, "n2": 2}


def test_job_is_drained_before_its_walltime_ends(site: Site) -> None:
    site.start("--time=70s", "--", "--groups", "1", "--drain", "50")
    [record] = batch_jobs.read_records(site.spool)
    assert site.end_of(record.name).state == "done"
    assert "The time is up" in site.output()
    assert workers.read_workers(site.spool) == []


def test_deleted_job_releases_its_task_without_losing_an_attempt(site: Site, tmp_path: Path) -> None:
    first = site.start("--time=10", "--cores-per-node=1", "--", "--drain", "1")
    with Executor(spool=site.spool.path) as executor:
        may_end = tmp_path / "may_end"
        future = executor.submit(
            tasks.mark_and_wait, tmp_path / "started", may_end, "done", resource_dict={"max_attempts": 1}
        )
        wait_until((tmp_path / "started").exists, "the task runs", PATIENCE)
        site.grid.run(["qdel", first])
        wait_until(lambda: len(executor) == 1, "the task waits again", PATIENCE)
        may_end.touch()
        site.start("--time=10", "--cores-per-node=1")
        assert future.result(PATIENCE) == "done"


def test_element_of_an_array_has_its_own_id(site: Site) -> None:
    job = site.submit(f"exec {WORKER} {site.spool.path}", "-t", "1-2", "-notify")
    infos = site.await_groups(2)
    assert {info.job for info in infos} == {f"{job}.1", f"{job}.2"}


def test_ends_of_jobs_have_a_status_and_a_reason(site: Site) -> None:
    site.submit("exit 3", "-N", "three")
    assert site.end_of("three")[1:3] == ("failed", 3)
    site.submit("exit 0", "-N", "zero")
    assert site.end_of("zero")[1:3] == ("done", 0)
    site.submit("kill -SEGV $$", "-N", "crashed")
    assert site.end_of("crashed")[1:3] == ("failed", -11)
    assert batch_system.ended_job("sge", "never-submitted") is None


def test_job_that_cannot_be_started_is_cancelled_with_its_reason(site: Site) -> None:
    words = ("--sge", "--max-jobs=1", "--once", "--cores-per-node=1", "--option=-o /nowhere/output")
    with Executor(spool=site.spool.path) as executor:
        future = executor.submit(where)
        assert "was submitted" in site.command("autoscale", site.spool.path, *words)
        [record] = batch_jobs.read_records(site.spool)

        def problem() -> str:
            return batch_system.active_jobs("sge")[record.name].problem

        wait_until(problem, "the job is in an error state", PATIENCE)
        assert "/nowhere/output" in problem()
        assert "cannot start: " in site.command("workers", "ls", site.spool.path)
        output = site.command("autoscale", site.spool.path, *words)
        assert f"for {record.lane} was cancelled: it cannot start: " in output
        assert "/nowhere/output" in site.command("workers", "ls", site.spool.path)
        future.cancel()
    wait_until(lambda: not site.jobs(), "the job is gone", PATIENCE)


def test_executor_has_jobs_of_the_batch_system_of_qsub(site: Site) -> None:
    assert batch_backend("qsub") is SgeBatch
    with Executor(spool=site.spool.path, max_workers=1, backend="qsub", resource_dict={"cores": 2}) as executor:
        assert executor.submit(where).result(PATIENCE)[0][1:] == (2, 0)
        assert "spool-work" in site.jobs()
    assert site.jobs() == ""


def test_autoscaler_submits_a_job_for_waiting_tasks(site: Site) -> None:
    with Executor(spool=site.spool.path) as executor:
        future = executor.submit(where)
        words = ("--sge", "--max-jobs=1", "--once", "--idle-timeout=1", "--time=10")
        assert "was submitted" in site.command("autoscale", site.spool.path, *words)
        assert future.result(PATIENCE)[1:] == (1, 0)
    wait_until(lambda: not site.jobs(), "the job has ended as idle", PATIENCE)


INSIDE = """\
import sys
from spoolpool import Executor
from tests.gridengine.test_jobs import where

with Executor(resource_dict={"cores": 3}) as executor:
    seen = set()
    while len(seen) < 2:
        seen |= {future.result()[0][0] for future in [executor.submit(where) for _ in range(4)]}
    print(sorted(seen), executor.max_workers)
"""


def test_executor_in_a_batch_script_places_its_groups_on_all_nodes(site: Site) -> None:
    script = site.directory / "inside.py"
    script.write_text(INSIDE)
    root = Path(__file__).parents[2]
    site.submit(f"PYTHONPATH={root} exec {sys.executable} {script}", "-N", "inside", "-pe", "mpi", "8")
    assert site.end_of("inside").state == "done"
    [output] = site.directory.glob("inside.o*")
    assert "['n1', 'n2'] 2" in output.read_text()


def test_nodes_of_different_sizes_and_paths_with_special_characters_are_errors(site: Site) -> None:
    with pytest.raises(LauncherError, match="no output file with a : in its path"):
        Job(backend=SgeBatch(cores=1), spool="/s").script("n", "/a:b")
    site.grid.run(["qconf", "-rattr", "queue", "slots", "2,[n1=4]", "all.q"])
    try:
        with pytest.raises(LauncherError, match=r"1 with 2, 1 with 4.*--cores-per-node"):
            Job(backend=SgeBatch(), spool="/s").script("n", "/o")
    finally:
        site.grid.run(["qconf", "-rattr", "queue", "slots", "4", "all.q"])
