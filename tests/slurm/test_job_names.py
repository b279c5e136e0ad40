"""Names of batch jobs on a real Slurm: elements of arrays and components of heterogeneous jobs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from spoolpool.pool import batch_jobs
from spoolpool.pool.job_ends import output_path
from spoolpool.protocol import workers
from tests.servers import ServerError
from tests.servers import slurm as server
from tests.slurm.site import PATIENCE, WORKER, Site
from tests.support.waiting import wait_until

reason = server.missing()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(reason), reason=reason or "")]

SPOOL = [sys.executable, "-m", "spoolpool.cli.spool"]


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


def queue(site: Site) -> dict[str, str]:
    """Return the states of the jobs, elements and components that squeue lists."""
    lines = site.slurm.run(["squeue", "-h", "-r", "-o", "%i %T"]).splitlines()
    return {line.split()[0]: line.split()[1] for line in lines}


def running(site: Site, *ids: str) -> bool:
    return {job for job, state in queue(site).items() if state == "RUNNING"} == set(ids)


def test_elements_of_an_array_are_listed_and_stopped_by_their_ids(login: Site) -> None:
    path = login.spool.path
    start = ["workers", "start", path, "--time=10", "--option=--array=0-5", "--", "--groups", "1"]
    array = spool(login, *start).strip()
    login.await_groups(2)
    assert {info.job for info in workers.read_workers(login.spool)} == {f"{array}_0", f"{array}_1"}
    listed = spool(login, "workers", "ls", path)
    for text in (f"{array}_0  running", f"{array}_1  running", f"{array}_[2-5]  pending", f"job {array}_1"):
        assert text in listed
    assert f"{array}_1" in spool(login, "status", path)
    # a pending element out of the list, and a running one by the id that it has itself
    spool(login, "workers", "stop", path, f"{array}_4")
    raw = login.slurm.run(["squeue", "-h", "-j", f"{array}_0", "-o", "%A"]).strip()
    assert raw != array
    spool(login, "workers", "stop", path, raw)
    assert {f"{array}_0", f"{array}_4"}.isdisjoint(queue(login))
    assert {f"{array}_{number}" for number in (1, 2, 3, 5)} == set(queue(login))
    with pytest.raises(ServerError) as error:
        spool(login, "workers", "stop", path, f"{array}_9")
    assert f"'{array}_9' is no batch job of this spool. Your jobs there are: " in str(error.value)
    assert f"{array}_1 (running)" in str(error.value)
    wait_until(lambda: running(login, f"{array}_1", f"{array}_2"), "the next element runs", PATIENCE)
    wait_until(lambda: len(workers.read_workers(login.spool)) == 2, "it has a group", PATIENCE)
    spool(login, "workers", "drain", path, f"{array}_2")
    wait_until(lambda: f"{array}_2" not in queue(login), "the element has ended with its group", PATIENCE)
    spool(login, "workers", "stop", path, f"{array}_[3,5]")
    assert set(queue(login)) == {f"{array}_1"}
    spool(login, "workers", "stop", path, array)
    assert queue(login) == {}


def test_heterogeneous_job_is_used_in_one_component_and_stopped_as_a_whole(login: Site) -> None:
    path = login.spool.path
    template = login.directory / "het.sh"
    template.write_text(
        "#!/bin/bash\n#SBATCH -N1 --time=$time\n$directives\n#SBATCH hetjob\n#SBATCH -N1\nexec $worker\n"
    )
    start = ["workers", "start", path, "--time=10", f"--template={template}", "--", "--groups", "1"]
    job = spool(login, *start).strip()
    [info] = login.await_groups(1)
    assert (info.job, info.process.host) == (job, "n1")
    [record] = batch_jobs.read_records(login.spool)
    output = output_path(login.spool, record.name)
    with open(output, encoding="utf-8") as file:
        assert (
            f"Job {job} is heterogeneous. Groups are started in its first component alone, and not on n2" in file.read()
        )
    listed = spool(login, "workers", "ls", path)
    for component in (0, 1):
        assert f"{job}+{component}  running" in listed
    with pytest.raises(ServerError, match="is no group, job or host"):
        spool(login, "workers", "drain", path, "99+1")
    spool(login, "workers", "stop", path, f"{job}+1")
    assert queue(login) == {}
    assert workers.read_workers(login.spool) == []
    ended = [json.loads(line) for line in spool(login, "workers", "ls", path, "--json").splitlines()]
    assert [each["failure"] for each in ended] == [None]


def test_pending_heterogeneous_job_is_cancelled_by_the_name_of_a_component(login: Site) -> None:
    login.sbatch("sleep 600", "--nodes=2", "--exclusive")
    template = login.directory / "het.sh"
    template.write_text(
        "#!/bin/bash\n#SBATCH -N1 --time=$time\n$directives\n#SBATCH hetjob\n#SBATCH -N1\nexec $worker\n"
    )
    job = spool(login, "workers", "start", login.spool.path, "--time=10", f"--template={template}").strip()
    assert f"{job}+1  pending" in spool(login, "workers", "ls", login.spool.path)
    spool(login, "workers", "stop", login.spool.path, f"{job}+1")
    assert f"{job}+0" not in queue(login)


def test_job_of_a_script_is_drained_by_the_names_that_people_type(login: Site) -> None:
    job = login.sbatch(f"exec {WORKER} {login.spool.path} --groups 1", "--nodes=1", "--exclusive", "--array=3,7")
    login.await_groups(2)
    with pytest.raises(ServerError, match=f"'{job}_3' was not submitted by 'spool workers start'"):
        spool(login, "workers", "stop", login.spool.path, f"{job}_3")
    spool(login, "workers", "drain", login.spool.path, f"{job}_3")
    wait_until(lambda: running(login, f"{job}_7"), "one element has ended", PATIENCE)
    with pytest.raises(ServerError, match=f"'{job}_4' is no group, job or host of this spool, which has .*{job}_7"):
        spool(login, "workers", "drain", login.spool.path, f"{job}_4")
    spool(login, "workers", "drain", login.spool.path, job)
    wait_until(lambda: not queue(login), "the other one has ended too", PATIENCE)
    login.jobs.remove(job)
