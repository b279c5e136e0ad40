"""Batch jobs of workers on a real Slurm: submitted, listed, scaled and ended from a login node."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor, Sbatch, settings
from spoolpool.monitor.scan import scan
from spoolpool.pool import batch_jobs, job_ends
from spoolpool.pool.batch_system import Job
from spoolpool.protocol import sessions, workers
from spoolpool.system.backoff import Backoff
from tests.servers import Slurm
from tests.servers import slurm as server
from tests.slurm.site import PATIENCE, Site
from tests.support.accounts import unused_id
from tests.support.processes import processes_of
from tests.support.waiting import wait_until

reason = server.missing()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(reason), reason=reason or "")]

SPOOL = [sys.executable, "-m", "spoolpool.cli.spool"]


def where() -> str:
    return os.uname().nodename


def until(started: str, may_end: str) -> str:
    """Run until the test creates a file."""
    Path(started).touch()
    backoff = Backoff(0.05, 0.1)
    while not os.path.exists(may_end):
        backoff.sleep()
    return "done"


@pytest.fixture
def login(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Environment of a login node of the cluster in this process; its jobs end with the test."""
    for name, value in site.slurm.env.items():
        monkeypatch.setenv(name, value)
    yield site
    list(batch_jobs.end_jobs(site.spool, lambda job: True, 0.0))


def spool(site: Site, *arguments: object) -> str:
    """Return the output of a command of ``spool``."""
    return site.slurm.run([*SPOOL, *map(str, arguments)], cwd=str(site.directory))


def start(site: Site, *arguments: object, count: int = 1) -> list[str]:
    return spool(site, "workers", "start", site.spool.path, "--time=10", f"--jobs={count}", *arguments).split()


def states(site: Site) -> dict[str, str]:
    """Return the states of all jobs of the cluster by their ids."""
    lines = site.slurm.run(["squeue", "-h", "-o", "%i %T"]).splitlines()
    return {line.split()[0]: line.split()[1] for line in lines}


def test_stop_ends_the_jobs_of_its_spool_in_order_and_no_other(login: Site) -> None:
    other = login.sbatch("sleep 600", "--nodes=1", "--exclusive", "--job-name=spool-worker-0123456789abcdef")
    first, second, third = start(login, count=3)
    wait_until(lambda: len(workers.read_workers(login.spool)) == 4, "the first job has its groups", PATIENCE)
    listed = spool(login, "workers", "ls", login.spool.path)
    assert f"{first}  running  1 node(s) for 0:10:00  submitted manually" in listed
    assert all(f"{job}  pending" in listed for job in (second, third))
    assert other not in [line.split()[0] for line in listed.splitlines()]
    spool(login, "workers", "stop", login.spool.path, third)
    assert states(login).keys() == {other, first, second}
    with pytest.raises(Exception, match=f"'{other}' is no batch job of this spool"):
        spool(login, "workers", "stop", login.spool.path, other)
    spool(login, "workers", "stop", login.spool.path, "--all")
    assert states(login) == {other: "RUNNING"}
    assert login.state(first) == "COMPLETED"
    assert workers.read_workers(login.spool) == []


def test_job_that_does_not_end_in_time_is_cancelled_and_its_task_is_released(login: Site, tmp_path: Path) -> None:
    [job] = start(login, "--", "--groups", "1", "--drain", "1")
    with Executor(spool=login.spool.path) as executor:
        future = executor.submit(until, str(tmp_path / "started"), str(tmp_path / "may_end"))
        wait_until((tmp_path / "started").exists, "the task runs", PATIENCE)
        spool(login, "workers", "stop", login.spool.path, job, "--wait=1")
        assert login.state(job) == "CANCELLED"
        wait_until(lambda: scan(login.spool).ready, "the task waits again", PATIENCE)
        (tmp_path / "may_end").touch()
        start(login, "--", "--groups", "1")
        assert future.result(PATIENCE) == "done"


def test_job_is_found_by_its_name_without_its_id(login: Site) -> None:
    [job] = start(login)
    [seen] = batch_jobs.find_jobs(login.spool)
    assert seen.id == job
    assert seen.state in ("pending", "running")
    assert job not in Path(login.spool.layout.jobs, f"{seen.record.name}.json").read_text().replace(
        seen.record.name, ""
    )


def test_records_of_other_accounts_and_clusters_are_ignored(login: Site) -> None:
    start(login)
    [seen] = batch_jobs.find_jobs(login.spool)
    path = Path(login.spool.layout.jobs, f"{seen.record.name}.json")
    text = path.read_text()
    path.write_text(text.replace('"virtual"', '"elsewhere"'))
    assert batch_jobs.find_jobs(login.spool) == []
    path.write_text(text)
    os.chown(path, unused_id(), -1)
    assert batch_jobs.find_jobs(login.spool) == []
    os.chown(path, os.geteuid(), -1)
    assert len(batch_jobs.find_jobs(login.spool)) == 1


def limits(site: Site) -> list[str]:
    """Return the time limits of all jobs of the cluster."""
    return site.slurm.run(["squeue", "-h", "-o", "%l"]).split()


@pytest.mark.parametrize(
    ("time", "limit"),
    [
        ("", "1:00:00"),
        ("1:30:00", "1:30:00"),
        ("2-00:00:00", "2-00:00:00"),
        ("90m", "1:30:00"),
        ("1.5h", "1:30:00"),
        ("90", "1:30:00"),
        ("61s", "2:00"),
    ],
)
def test_every_spelling_of_a_walltime_is_understood(login: Site, time: str, limit: str) -> None:
    spool(login, "workers", "start", login.spool.path, *([f"--time={time}"] if time else []))
    assert limits(login) == [limit]
    spool(login, "workers", "stop", login.spool.path, "--all", "--wait=0")


def test_jobs_of_the_autoscaler_and_of_an_executor_have_the_default_walltime(
    login: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "spoolpool")
    with Executor(spool=login.spool.path) as executor:
        executor.submit(where)
        options = ["--max-jobs=1", "--once", "--idle-timeout=1"]
        assert "was submitted" in spool(login, "autoscale", login.spool.path, *options)
        assert limits(login) == ["1:00:00"]
        executor.shutdown(cancel_futures=True)
    wait_until(lambda: not states(login), "the job has ended as idle", PATIENCE)
    with Executor(spool=login.spool.path, backend="sbatch", max_workers=1) as executor:
        assert executor.submit(where).result(PATIENCE) in ("n1", "n2")
        assert limits(login) == ["1:00:00"]
    assert "walltime of each batch job: 1:00:00 (60 minutes)" in caplog.text


def test_defaults_of_a_site_reach_the_job_and_its_supervisor(
    login: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_file = tmp_path / "site.toml"
    monkeypatch.setenv(settings.ENV_CONFIG, str(site_file))
    monkeypatch.setitem(login.slurm.env, settings.ENV_CONFIG, str(site_file))
    site_file.write_text('partition = "nowhere"\n')
    with pytest.raises(Exception, match=f"sbatch.*--partition=nowhere from {site_file}"):
        start(login)
    assert states(login) == {}
    start(login, "--option=--partition=main", "--", "--groups=1")
    list(batch_jobs.end_jobs(login.spool, lambda job: True, 0.0))
    site_file.write_text('partition = "main"\nlauncher = "local"\n')
    start(login)
    [info] = wait_until(lambda: workers.read_workers(login.spool), "the job has a group", PATIENCE)
    [job] = batch_jobs.find_jobs(login.spool)[-1:]
    output = Path(job_ends.output_path(login.spool, job.record.name)).read_text()
    assert "1 rank(s) with 1 thread(s) each through local" in output
    assert info.batch == job.record.name


# -- executors


def test_batch_jobs_of_an_executor_end_with_it_and_leave_nothing(login: Site, monkeypatch: Any) -> None:
    monkeypatch.setenv(settings.ENV_SPOOL, str(login.directory))
    with Executor(max_workers=1, backend=Sbatch(min_jobs=2, max_jobs=3, time="10")) as executor:
        path = Path(executor.info["spool"])
        assert path.parent == login.directory
        seen: set[str] = set()

        def both() -> bool:
            seen.update(future.result(PATIENCE) for future in [executor.submit(where) for _ in range(4)])
            return seen == {"n1", "n2"}

        wait_until(both, "both jobs have run a task", PATIENCE)
        [first, _] = sorted(states(login))
        login.slurm.run(["scancel", first])
        wait_until(lambda: len(states(login).keys() - {first}) == 2, "the job was replaced", PATIENCE)
        assert executor.submit(where).result(PATIENCE) in seen
    assert not path.exists()
    assert states(login) == {}


def test_without_min_jobs_the_first_task_of_each_shape_causes_a_job(login: Site) -> None:
    jobs = Sbatch(min_jobs=0, max_jobs=2, time="10")
    with Executor(spool=login.spool.path, max_workers=1, backend=jobs) as executor:
        assert states(login) == {}
        assert executor.submit(where).result(PATIENCE) in ("n1", "n2")
        assert len(states(login)) == 1
        assert executor.submit(where, resource_dict={"cores": 2}).result(PATIENCE)[0] in ("n1", "n2")
        assert len(states(login)) == 2
    assert states(login) == {}
    assert workers.read_workers(login.spool) == []


KILLED = """\
import os, sys, time
from spoolpool import Executor, Sbatch
from tests.slurm.test_jobs import until

jobs = Sbatch(min_jobs=3, time="10")
with Executor(max_workers=1, backend=jobs, spool=(sys.argv[3:] or [None])[0]) as executor:
    print(executor.info["spool"], flush=True)
    executor.submit(until, sys.argv[1], sys.argv[2]).result()
    time.sleep(600)
"""


def start_executor(site: Site, may_end: str, *arguments: str) -> tuple[subprocess.Popen[str], Path]:
    """Start an executor with a running job on each node, a pending one, and a running task."""
    script = site.directory / "killed.py"
    script.write_text(KILLED)
    started = site.directory / "started"
    process = subprocess.Popen(
        [sys.executable, str(script), str(started), may_end, *arguments],
        cwd=site.directory,
        env={**site.slurm.env, "PYTHONPATH": str(Path(__file__).parents[2]), settings.ENV_SPOOL: str(site.directory)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    wait_until(lambda: started.exists() and len(states(site)) == 3, "its jobs exist, and its task has begun", PATIENCE)
    return process, path


def test_killed_executor_leaves_neither_jobs_nor_its_spool(login: Site) -> None:
    process, path = start_executor(login, "/nowhere")
    process.kill()
    process.communicate()
    wait_until(lambda: not states(login), "its jobs are gone", PATIENCE)
    wait_until(lambda: not path.exists(), "its spool is gone", PATIENCE)
    wait_until(lambda: not processes_of(path), "its processes have ended", PATIENCE)


def test_jobs_of_an_executor_that_died_with_its_host_end_by_themselves(login: Site) -> None:
    process, path = start_executor(login, "/", login.spool.path)
    beating = set(processes_of(f"{path}/sessions/")) - {process.pid}
    assert len(beating) == 2
    for pid in beating:  # before they notice the death of the executor and end the jobs
        os.kill(pid, signal.SIGKILL)
    process.kill()
    process.communicate()
    wait_until(lambda: not states(login), "its jobs are gone, also the one that waited", PATIENCE)
    assert path.exists(), "a spool that was there before stays"
    outputs = [each.read_text() for each in (path / "jobs").glob("*.out")]
    assert len(outputs) == 3
    assert all("The executor for which this job runs has ended." in text for text in outputs)


def test_rejected_job_is_an_error_at_once(login: Site, monkeypatch: Any) -> None:
    monkeypatch.setenv(settings.ENV_SPOOL, str(login.directory))
    with pytest.raises(Exception, match="invalid partition"):
        Executor(backend=Sbatch(directives=["--partition=nonsense"]))
    assert list(login.directory.glob("spoolpool-*")) == []
    assert batch_jobs.read_records(login.spool) == []


UNSEEN = """\
import sys
from spoolpool import Executor, Sbatch
from spoolpool.pool import batch_pool

batch_pool._COOLDOWN = 0.1
backend = Sbatch(time="10") if sys.argv[1] == "sbatch" else sys.argv[1]
with Executor(max_workers=1, backend=backend) as executor:
    try:
        executor.submit(print).result()
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("backend", ["sbatch", "srun"])
def test_spool_that_groups_do_not_see_is_an_error_with_advice(login: Site, backend: str) -> None:
    private = tempfile.mkdtemp(dir="/dev/shm")  # private to each node
    try:
        (login.directory / "unseen.py").write_text(UNSEEN)
        command = [
            "env",
            f"{settings.ENV_SPOOL}={private}",
            sys.executable,
            str(login.directory / "unseen.py"),
            backend,
        ]
        output = login.slurm.run(["salloc", "--nodes=1", *command] if backend == "srun" else command)
        if backend == "sbatch":
            assert output.startswith("BrokenSpool 3 batch jobs in a row ended like this")
            assert f"Do the nodes see {private}/spoolpool-" in output
        else:
            assert output.startswith("BrokenSpool")
            assert "it does not see its spool" in output
        assert os.listdir(private) == []
    finally:
        shutil.rmtree(private)


# -- autoscale


def autoscale(site: Site, *arguments: object) -> str:
    options = ["--max-jobs=2", "--patience=0", "--time=10", "--idle-timeout=1"]
    return spool(site, "autoscale", site.spool.path, *options, *arguments)


def test_autoscale_submits_jobs_for_lanes_with_tasks_and_cancels_superfluous_ones(login: Site) -> None:
    blocker = login.sbatch("sleep 600", "--nodes=1", "--exclusive")
    with Executor(spool=login.spool.path) as executor:
        assert autoscale(login, "--once") == ""
        pair = executor.submit(where, resource_dict={"cores": 2})
        single = executor.submit(where)
        output = autoscale(login, "--once", "--", "--groups", "1")
        assert output.count(" was submitted for default.r") == 2
        assert ": 1 task(s) wait, 0 job(s) serve them." in output
        assert autoscale(login, "--once") == "", "those are enough"
        wait_until(lambda: pair.done() or single.done(), "one of them ran", PATIENCE)
        assert single.cancel() or pair.cancel(), "the other one waits for the end of the blocker or of the first job"
        output = ""

        def cancelled() -> bool:
            nonlocal output
            output += autoscale(login, "--once")
            return states(login).keys() == {blocker}

        wait_until(cancelled, "one job has ended as idle, the other was cancelled", PATIENCE)
    journal = Path(login.spool.layout.journal, "autoscale.jsonl").read_text()
    assert journal.count("was submitted") == 2
    assert output.count("was cancelled: ") == journal.count("was cancelled")


def test_autoscale_excludes_other_processes_until_it_is_terminated(login: Site) -> None:
    command = [*SPOOL, "autoscale", login.spool.path, "--max-jobs=1", "--every=1", "--time=10", "--idle-timeout=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=login.slurm.env, text=True) as scaler:
        lock = Path(login.spool.layout.jobs, "autoscale.lock")
        wait_until(lock.exists, "it has taken the lock", PATIENCE)

        def busy() -> bool:
            done = subprocess.run([*command, "--once"], env=login.slurm.env, capture_output=True, text=True)
            return done.returncode == 1 and "Another process scales" in done.stderr

        wait_until(busy, "a second one is refused", PATIENCE)
        with Executor(spool=login.spool.path) as executor:
            assert executor.submit(where).result(PATIENCE) in ("n1", "n2")
            wait_until(lambda: not states(login), "the job has ended as idle", PATIENCE)
            assert executor.submit(where, resource_dict={"cores": 2}).result(PATIENCE)[0] in ("n1", "n2")
        scaler.terminate()
        assert scaler.wait(PATIENCE) == 0
        assert scaler.stdout is not None
        assert scaler.stdout.read().count("was submitted") == 2


def raise_at_first(trace: str) -> str:
    if not os.path.exists(trace):
        Path(trace).touch()
        raise ValueError("not yet")
    return "done"


def test_autoscale_submits_jobs_for_delayed_tasks_without_a_worker(login: Site) -> None:
    output = ""
    with Executor(spool=login.spool.path) as executor:
        later = executor.submit(where, resource_dict={"not_before": 1})
        again = executor.submit(
            raise_at_first, str(login.directory / "trace"), resource_dict={"retries": 1, "retry_delay": 20}
        )

        def both_done() -> bool:
            nonlocal output
            output += autoscale(login, "--once", "--", "--max-tasks", "1")
            return later.done() and again.done()

        wait_until(both_done, "jobs were submitted for both", PATIENCE)
        assert again.result() == "done"
    assert "delayed task(s) were made ready" in output
    assert output.count("was submitted") >= 2


def test_failing_job_is_not_submitted_repeatedly(login: Site) -> None:
    template = login.directory / "broken.sh"
    template.write_text("#!/bin/sh\n#SBATCH --time=$time\n$directives\nexit 1 # $worker\n")
    with Executor(spool=login.spool.path) as executor:
        future = executor.submit(where)
        output = [autoscale(login, "--once", f"--template={template}", "--cooldown=30")]
        wait_until(lambda: not states(login), "the job has failed", PATIENCE)
        output.append(autoscale(login, "--once", f"--template={template}", "--cooldown=30"))
        future.cancel()
    assert "was submitted" in output[0]
    assert "1 job(s) for it ended within the last hour: the next one follows after 30 s" in output[1]


def test_pending_job_of_a_dead_executor_is_cancelled_by_the_autoscaler(login: Site) -> None:
    login.sbatch("sleep 600", "--nodes=2", "--exclusive")
    sessions.register(login.spool, "gone", "tester")
    path = Path(login.spool.layout.session("gone"))
    job = Job(backend=Sbatch(), spool=login.spool.path)
    _, number = batch_jobs.submit(login.spool, job, lane="default.r1t1g0.py3.11", session="gone")
    assert autoscale(login, "--once") == ""
    path.write_text(path.read_text().replace(f'"pid":{os.getpid()}', '"pid":1'))
    assert f"Job {number} was cancelled: its executor has died." in autoscale(login, "--once")


@pytest.fixture(autouse=True)
def _no_job_is_left(slurm: Slurm) -> Iterator[None]:
    yield

    def queue_is_empty() -> bool:
        # A job whose processes have ended is listed as COMPLETING until every node has reported that.
        return not slurm.run(["squeue", "-h", "-o", "%i %j %T"])

    wait_until(queue_is_empty, "no job is left in the queue", PATIENCE)
