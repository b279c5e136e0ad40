"""Worker groups in jobs of a real Slurm with virtual nodes, CPUs and GPUs."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest

from spoolpool import Executor
from spoolpool.monitor.scan import scan
from spoolpool.protocol import workers
from spoolpool.system.backoff import Backoff
from tests.servers import slurm as server
from tests.slurm.site import PATIENCE, WORKER, Site
from tests.support.waiting import wait_until

reason = server.missing()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(reason), reason=reason or "")]


def where(number: int) -> tuple[int, int, int, str, str]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    return number, world.Get_size(), world.Get_rank(), os.uname().nodename, os.environ.get("OMP_NUM_THREADS", "")


def gpus() -> tuple[str, str]:
    return os.uname().nodename, os.environ.get("CUDA_VISIBLE_DEVICES", "")


def slow(started: str, may_end: str, attempts: str) -> str:
    """Run until the test creates a file; record the attempt."""
    from spoolpool import current_task

    with open(attempts, "a") as file:
        file.write(f"{current_task().attempt}\n")
    Path(started).touch()
    backoff = Backoff(0.05, 0.1)
    while not os.path.exists(may_end):
        backoff.sleep()
    return "done"


def test_batch_script_fills_its_job_with_groups_whose_ranks_find_each_other(site: Site):
    site.sbatch(f"exec {WORKER} {site.spool.path} --ranks 2 --threads 2", "--nodes=2", "--ntasks-per-node=4")
    groups = site.await_groups(2)
    assert sorted(info.process.host for info in groups) == ["n1", "n2"]
    assert {info.job for info in groups} == set(site.jobs)
    with Executor(spool=site.spool.path, resource_dict={"cores": 2, "threads_per_core": 2}) as executor:
        for number, ranks in enumerate(executor.map(where, range(8))):
            assert [(rank[0], rank[1], rank[2], rank[4]) for rank in ranks] == [
                (number, 2, 0, "2"),
                (number, 2, 1, "2"),
            ]
            assert len({rank[3] for rank in ranks}) == 1


def test_group_larger_than_a_node_spans_nodes(site: Site):
    site.sbatch(f"exec {WORKER} {site.spool.path} --ranks 6", "--nodes=2", "--ntasks-per-node=4")
    site.await_groups(1)
    with Executor(spool=site.spool.path) as executor:
        ranks = executor.submit(where, 1, resource_dict={"cores": 6}).result(PATIENCE)
    assert [rank[1:3] for rank in ranks] == [(6, rank) for rank in range(6)]
    assert {rank[3] for rank in ranks} == {"n1", "n2"}


def sruns(started: str, may_end: str) -> list[list[str]]:
    """Return the command lines of all srun on this node: its memory is not accounted, so the test reads the options."""
    slow(started, may_end, os.devnull)
    commands = []
    for path in Path("/proc").glob("[1-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            commands.append(path.read_bytes().decode(errors="replace").split("\0"))
    return [words for words in commands if words[0] == "srun"]


def test_groups_request_their_memory_and_run_side_by_side(site: Site, tmp_path: Path):
    worker = f"exec {WORKER} {site.spool.path} --threads 2 --groups 2 --memory 1000M"
    site.sbatch(worker, "--nodes=1", "--ntasks-per-node=4", "--mem=2500")
    site.await_groups(2)
    with Executor(spool=site.spool.path, resource_dict={"threads_per_core": 2}) as executor:
        marks = [tmp_path / f"started-{number}" for number in range(2)]
        futures = [executor.submit(sruns, str(mark), str(tmp_path / "end")) for mark in marks]
        wait_until(lambda: all(mark.exists() for mark in marks), "both groups run a call", PATIENCE)
        (tmp_path / "end").touch()
        for future in futures:
            commands = future.result(PATIENCE)
            assert commands and all("--mem-per-cpu=500M" in words for words in commands)


def test_ranks_started_by_srun_form_groups(site: Site):
    line = f"srun --mpi=pmi2 -n 4 {WORKER} {site.spool.path} --ranks 2"
    site.sbatch(line, "--nodes=1", "--ntasks-per-node=4")
    site.await_groups(2)
    with Executor(spool=site.spool.path) as executor:
        futures = [executor.submit(where, number, resource_dict={"cores": 2}) for number in range(4)]
        assert [[rank[1:3] for rank in future.result(PATIENCE)] for future in futures] == [[(2, 0), (2, 1)]] * 4


def test_groups_on_one_node_get_different_gpus(site: Site):
    site.sbatch(f"exec {WORKER} {site.spool.path} --gpus 1", "--nodes=1", "--ntasks-per-node=4", "--gres=gpu:2")
    groups = site.await_groups(2)
    assert len(groups) == 2
    seen: set[tuple[str, str]] = set()
    with Executor(spool=site.spool.path, resource_dict={"gpus_per_core": 1}) as executor:

        def both() -> bool:
            seen.update(future.result(PATIENCE) for future in [executor.submit(gpus) for _ in range(8)])
            return len(seen) == 2

        wait_until(both, "both groups ran a task", PATIENCE)
    assert {devices for _, devices in seen} == {"0", "1"}


def test_error_of_a_group_that_does_not_fit_names_the_resources_of_the_job(site: Site):
    job = site.sbatch(f"exec {WORKER} {site.spool.path} --ranks 9", "--nodes=2", "--ntasks-per-node=4")
    wait_until(lambda: site.ended(job), "the job ended", PATIENCE)
    assert "cannot be placed in this job, which has 8 core(s)" in site.log()
    assert site.state(job) in ("", "FAILED")


def test_cancelled_job_releases_its_running_task_without_losing_an_attempt(site: Site, tmp_path: Path):
    started, may_end, attempts = (str(tmp_path / name) for name in ("started", "may_end", "attempts"))
    command = f"exec {WORKER} {site.spool.path} --drain 1"
    first = site.sbatch(command, "--nodes=1", "--ntasks=1")
    with Executor(spool=site.spool.path) as executor:
        future = executor.submit(slow, started, may_end, attempts)
        wait_until(lambda: os.path.exists(started), "the task runs", PATIENCE)
        site.slurm.run(["scancel", "--signal=TERM", "--batch", first])
        wait_until(lambda: site.ended(first), "the job ended", PATIENCE)
        seen = scan(site.spool)
        assert [task_file.attempt for task_file in seen.ready.values()] == [1]
        Path(may_end).touch()
        site.sbatch(command, "--nodes=1", "--ntasks=1")
        assert future.result(PATIENCE) == "done"
    assert Path(attempts).read_text().split() == ["1", "1"]


def test_requeued_job_loses_nothing(site: Site, tmp_path: Path):
    started, may_end, attempts = (str(tmp_path / name) for name in ("started", "may_end", "attempts"))
    job = site.sbatch(f"exec {WORKER} {site.spool.path} --drain 1", "--nodes=1", "--ntasks=1", "--requeue")
    with Executor(spool=site.spool.path) as executor:
        future = executor.submit(slow, started, may_end, attempts)
        wait_until(lambda: os.path.exists(started), "the task runs", PATIENCE)
        Path(may_end).touch()
        site.slurm.run(["scontrol", "requeue", job])
        assert future.result(PATIENCE) == "done"
        assert executor.submit(pow, 2, 3).result(PATIENCE) == 8  # the job runs again


def test_worker_starts_no_task_after_max_time_and_ends(site: Site):
    seconds = 5
    with Executor(spool=site.spool.path) as executor:
        first = executor.submit(pow, 2, 3)
        while not first.done():  # under load the time may be up before the group looks for a task
            seconds *= 2
            command = f"exec {WORKER} {site.spool.path} --max-time {seconds} --drain 2"
            job = site.sbatch(command, "--nodes=1", "--ntasks=1")
            wait_until(lambda job=job: first.done() or site.ended(job), "the job ran a task, or ended", PATIENCE)
        assert first.result() == 8
        wait_until(lambda: site.ended(job), "the job ended by itself", PATIENCE)
        assert "The time is up" in site.log()
        late = executor.submit(pow, 2, 4)
        assert late.cancel()


def test_resources_and_walltime_of_the_job_are_determined(site: Site):
    program = "from spoolpool.launch.allocation import *; found = find_allocation(); print(found, seconds_left())"
    line = f'{sys.executable} -c "{program}"'
    job = site.sbatch(line, "--nodes=2", "--ntasks-per-node=3", "--time=10", "--gres=gpu:1")
    wait_until(lambda: site.ended(job), "the job ended", PATIENCE)
    output = site.log()
    assert "cores=(3, 3), gpus=(1, 1)" in output
    assert 0 < float(output.split()[-1]) <= 600


def test_workers_are_started_listed_and_drained_from_the_login_node(site: Site):
    spool = [sys.executable, "-m", "spoolpool.cli.spool", "workers"]
    log = f"--option=--output={site.directory}/login.log"
    command = [
        *spool,
        "start",
        site.spool.path,
        "--nodes",
        "2",
        "--time",
        "10",
        log,
        "--",
        "--ranks",
        "2",
        "--threads",
        "2",
    ]
    job = site.slurm.run(command, cwd=str(site.directory)).strip()
    site.jobs.append(job)
    groups = site.await_groups(2)
    listed = site.slurm.run([*spool, "ls", site.spool.path])
    assert all(f"{info.worker}  alive  {info.process.host}  job {job}" in listed for info in groups)
    output = site.slurm.run([*spool, "drain", site.spool.path, "n1"])
    assert output.count("was asked to end") == 1
    wait_until(lambda: len(workers.read_workers(site.spool)) == 1, "the group on n1 has ended, and was not replaced")
    site.slurm.run([*spool, "drain", site.spool.path, "--all"])
    wait_until(lambda: site.ended(job), "the job ended with its last group", PATIENCE)
    assert site.state(job) in ("", "COMPLETED")
