"""``spool-worker`` as the script of a real Slurm job: placement, output and end."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from spoolpool import Executor, Spool, current_task
from spoolpool.errors import BadNode, LauncherError, WorkerLost
from spoolpool.protocol import worker_registration, workers
from tests.servers import slurm as server
from tests.slurm.site import PATIENCE, WORKER, Site
from tests.slurm.test_srun import slow, where
from tests.support import tasks
from tests.support.processes import deadly
from tests.support.waiting import wait_until

reason = server.missing()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(reason), reason=reason or "")]

FLUX = shutil.which("flux")


def see(text: str) -> tuple[str, str | None]:
    """Print a line in two pieces; return the host and the GPUs of this rank."""
    os.write(1, text.encode())
    os.write(1, b" printed\n")
    return os.uname().nodename, os.environ.get("CUDA_VISIBLE_DEVICES")


def surroundings() -> tuple[int, str, str | None]:
    return where(0)[1], tasks.get_cwd_of_parent(), os.environ.get("EXTRA")


def exit_code(site: Site, job: str) -> str:
    return site.slurm.run(["scontrol", "show", "job", job]).partition("ExitCode=")[2].split(":")[0]


def test_shapes_share_a_job_with_different_gpus_and_labelled_lines_for_each_rank(site: Site, tmp_path: Path):
    spool = Spool.create(tmp_path / "uncaptured", durability="none", lease=3, caches=1, output=0)
    site.spool = spool
    line = f"exec {WORKER} {spool.path} --shape 1 --shape 2+1gpu=2"
    job = site.sbatch(line, "--nodes=2", "--ntasks-per-node=4", "--gres=gpu:2")
    groups = site.await_groups(6)
    assert Counter((info.ranks, info.gpus) for info in groups) == {(2, 1): 2, (1, 0): 4}
    assert Counter(info.process.host for info in groups if info.gpus == 0)["n1"] in (0, 2, 4)
    seen: set[tuple[str, str]] = set()
    with Executor(spool=spool.path) as executor:
        assert executor.submit(see, "alone").result(PATIENCE)[1] in (None, "", "NoDevFiles")

        def all_four() -> bool:
            resources = {"cores": 2, "gpus_per_core": 1}
            futures = [executor.submit(see, "two", resource_dict=resources) for _ in range(8)]
            seen.update(rank for future in futures for rank in future.result(PATIENCE))
            return len(seen) == 4

        wait_until(all_four, "both groups with GPUs ran a task", PATIENCE)
    assert seen == {(node, device) for node in ("n1", "n2") for device in ("0", "1")}
    site.slurm.run(["scancel", "--signal=USR1", "--batch", job])
    wait_until(lambda: site.ended(job), "the job ended", PATIENCE)
    assert site.state(job) in ("", "COMPLETED")
    hosts = {info.worker[:8]: info.process.host for info in groups}
    lines = [line for line in site.log().splitlines() if "printed" in line]
    assert Counter(line.partition("] ")[2] for line in lines).keys() == {"alone printed", "two printed"}
    for line in lines:
        group, node, *rank = line[1 : line.index("]")].split()
        assert hosts[group] == node
        assert rank in ([], ["0"], ["1"])


def test_group_that_spans_nodes_leaves_their_rest_to_others(site: Site):
    site.sbatch(f"exec {WORKER} {site.spool.path} --shape 6=1 --shape 2", "--nodes=2", "--ntasks-per-node=4")
    assert sorted(info.ranks for info in site.await_groups(2)) == [2, 6]
    with Executor(spool=site.spool.path) as executor:
        wide = executor.submit(where, 1, resource_dict={"cores": 6}).result(PATIENCE)
        narrow = executor.submit(where, 1, resource_dict={"cores": 2}).result(PATIENCE)
    assert Counter(rank[3] for rank in [*wide, *narrow]) == {"n1": 4, "n2": 4}


def crash(rank: int, how: str) -> None:
    """End one rank, while the others wait."""
    task = current_task()
    if task.rank == rank:
        os._exit(3) if how == "_exit" else os.kill(os.getpid(), getattr(signal, how))
    tasks.work(60.0)


def test_error_of_a_lost_task_names_status_rank_and_host(site: Site):
    site.sbatch(f"exec {WORKER} {site.spool.path} --shape 2=1 --shape 1=1", "--nodes=2", "--ntasks-per-node=2")
    site.await_groups(2)
    with Executor(spool=site.spool.path) as executor:
        for ranks, rank, how in ((2, 1, "SIGKILL"), (2, 0, "_exit"), (1, 0, "SIGSEGV")):
            lost = executor.submit(crash, rank, how, resource_dict={"cores": ranks, "max_attempts": 1})
            error = lost.exception(PATIENCE)
            assert isinstance(error, WorkerLost)
            assert (error.last.rank, error.last.launcher) == (rank, "")
            assert error.last.exit_status == 3 if how == "_exit" else error.last.signal == how
            assert error.last.host.startswith("n")
            assert ("in crash" in error.last.stack) == (how == "SIGSEGV")


def test_node_on_which_all_groups_die_is_excluded_and_the_other_goes_on(site: Site, tmp_path: Path):
    variables = shlex.join(f"{name}={value}" for name, value in deadly(tmp_path / "site", "n2").items())
    job = site.sbatch(f"exec env {variables} {WORKER} {site.spool.path}", "--nodes=2", "--ntasks-per-node=1")
    wait_until(lambda: "Node n2 is given up" in site.log(), "the node was given up", PATIENCE)
    (info,) = site.await_groups(1)
    assert info.process.host == "n1"
    with Executor(spool=site.spool.path) as executor:
        assert executor.submit(pow, 2, 3).result(PATIENCE) == 8
    worker_registration.request_stop(site.spool, info.worker)
    wait_until(lambda: site.ended(job), "the job ended with the last group", PATIENCE)
    assert exit_code(site, job) == str(BadNode.exit_code)
    assert "these nodes were given up: n2" in site.log()


def test_oversubscribed_groups_get_working_directory_and_launcher_options(site: Site, tmp_path: Path):
    directory = tmp_path / "work"
    directory.mkdir()
    line = f"exec {WORKER} {site.spool.path} --ranks 2 --groups 3 --oversubscribe --max-tasks 2 --cwd {directory}"
    line += " --launcher-option=--export=ALL,EXTRA=given"
    job = site.sbatch(line, "--nodes=1", "--ntasks-per-node=4")
    site.await_groups(3)
    with Executor(spool=site.spool.path, resource_dict={"cores": 2}) as executor:
        futures = [executor.submit(surroundings) for _ in range(6)]
        for future in futures:
            assert future.result(PATIENCE) == [(2, str(directory), "given")] * 2
    wait_until(lambda: site.ended(job), "the job ended once all groups had done their tasks", PATIENCE)
    assert site.state(job) in ("", "COMPLETED")


def test_ranks_that_do_not_find_each_other_end_the_job_with_advice(site: Site):
    line = f"exec env SPOOLPOOL_SRUN_MPI=none {WORKER} {site.spool.path} --ranks 2"
    job = site.sbatch(line, "--nodes=1", "--ntasks-per-node=2")
    wait_until(lambda: site.ended(job), "the job ended", PATIENCE)
    assert exit_code(site, job) == str(LauncherError.exit_code)
    assert "SPOOLPOOL_SRUN_MPI" in site.log()
    assert not workers.read_workers(site.spool)


def test_job_is_drained_before_its_walltime_ends(site: Site):
    # the shortest walltime of Slurm is one minute
    job = site.sbatch(f"exec {WORKER} {site.spool.path} --drain 50", "--nodes=1", "--ntasks=1", "--time=1")
    wait_until(lambda: site.ended(job), "the job ended by itself", PATIENCE)
    assert "The time is up" in site.log()
    assert site.state(job) in ("", "COMPLETED")
    assert not workers.read_workers(site.spool)


def test_signalled_job_finishes_its_running_task(site: Site, tmp_path: Path):
    job = site.sbatch(f"exec {WORKER} {site.spool.path} --drain 600", "--nodes=1", "--ntasks=1")
    with Executor(spool=site.spool.path) as executor:
        running = executor.submit(tasks.mark_and_wait, tmp_path / "started", tmp_path / "go", "done")
        wait_until((tmp_path / "started").exists, "the task runs", PATIENCE)
        (info,) = workers.read_workers(site.spool)
        site.slurm.run(["scancel", "--signal=USR1", "--batch", job])
        wait_until(lambda: os.path.exists(f"{site.spool.layout.worker(info.worker)}/stop"), "the group was asked")
        (tmp_path / "go").touch()
        assert running.result(PATIENCE) == "done"
    wait_until(lambda: site.ended(job), "the job ended", PATIENCE)
    assert site.state(job) in ("", "COMPLETED")


@pytest.mark.parametrize("options", [["--signal=B:USR1@10"], []], ids=["script", "ranks"])
def test_preempted_job_releases_its_task_without_losing_an_attempt(site: Site, tmp_path: Path, options: list[str]):
    started, may_end, attempts = (str(tmp_path / name) for name in ("started", "may_end", "attempts"))
    site.slurm.run(["scontrol", "update", "PartitionName=main", "GraceTime=20"])
    site.slurm.run(["scontrol", "create", "PartitionName=urgent", "Nodes=ALL", "PriorityTier=10", "PreemptMode=OFF"])
    worker = f"exec {WORKER} {site.spool.path} --drain 1"
    try:
        # the cluster has preempt_send_user_signal; without --signal only the ranks get the signal
        job = site.sbatch(worker, "--nodes=2", "--ntasks=2", *options)
        executor = Executor(spool=site.spool.path)
        future = executor.submit(slow, started, may_end, attempts)
        wait_until(lambda: os.path.exists(started), "the task runs", PATIENCE)
        urgent = site.sbatch("true", "--partition=urgent", "--nodes=2", "--exclusive")
        wait_until(lambda: len(executor) == 1, "the task waits again", PATIENCE)
        wait_until(lambda: site.ended(job) and site.ended(urgent), "the urgent job ran", PATIENCE)
        Path(may_end).touch()
        site.sbatch(worker, "--nodes=1", "--ntasks=1")
        assert future.result(PATIENCE) == "done"
        executor.shutdown()
        assert Path(attempts).read_text().split() == ["1", "1"]
    finally:
        site.end()
        site.slurm.run(["scontrol", "delete", "PartitionName=urgent"])


@pytest.mark.flux
@pytest.mark.skipif(FLUX is None, reason="flux is not on PATH")
def test_flux_instance_inside_a_job_runs_groups_on_all_its_nodes(site: Site):
    bindings = subprocess.run([FLUX, "env", "printenv", "PYTHONPATH"], capture_output=True, text=True).stdout.strip()
    worker = f"{WORKER} {site.spool.path} --launcher flux --ranks 2"
    line = f"export PYTHONPATH={bindings}:$PYTHONPATH\nexec srun --nodes=2 --ntasks=2 --mpi=pmi2 flux start {worker}"
    job = site.sbatch(line, "--nodes=2", "--ntasks-per-node=4")
    groups = site.await_groups(2)
    assert {info.process.host for info in groups} == {"n1", "n2"}
    with Executor(spool=site.spool.path) as executor:
        ranks = executor.submit(where, 1, resource_dict={"cores": 2}).result(PATIENCE)
    assert [rank[1:3] for rank in ranks] == [(2, 0), (2, 1)]
    for info in groups:
        worker_registration.request_stop(site.spool, info.worker)
    wait_until(lambda: site.ended(job), "the job ended with its last group", PATIENCE)
    assert site.state(job) in ("", "COMPLETED"), site.log()
