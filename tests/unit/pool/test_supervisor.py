"""Supervisor on this host: shapes, output of groups, death of groups, and its end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from spoolpool import Executor
from spoolpool.errors import BadNode, LauncherError, WorkerLost
from spoolpool.protocol import workers
from spoolpool.protocol.spool import Spool
from tests.conftest import Workers
from tests.support import tasks
from tests.support.processes import deadly, processes_of
from tests.support.waiting import LIMIT, wait_until

HOST = os.uname().nodename


def say(text: str, count: int = 1) -> int:
    """Print through Python and by a system call."""
    for number in range(count):
        print(f"{text} {number}")
        os.write(2, f"{text} {number}\n".encode())
    return os.getpid()


def print_around(started: Path, go_on: Path) -> str:
    print("before", flush=True)
    started.touch()
    tasks.wait_for(go_on)
    for _ in range(1000):
        print("after", flush=True)
    return "done"


@pytest.fixture
def uncaptured(tmp_path: Path) -> Spool:
    """Spool that does not keep the output of tasks: it goes to the output of the worker."""
    return Spool.create(tmp_path / "uncaptured", durability="none", output=0)


# ------------------------------------------------------------------------------------ shapes


@pytest.mark.mpi
def test_groups_of_several_shapes_serve_the_tasks_of_each(spool: Spool, worker: Workers) -> None:
    worker(spool, "--launcher", "mpiexec", "--shape", "2=1", "--shape", "1x3=2", await_groups=3)
    found = Counter((info.ranks, info.threads) for info in workers.read_workers(spool))
    assert found == {(2, 1): 1, (1, 3): 2}
    with Executor(spool=spool.path) as executor:
        wide = executor.submit(tasks.rank_and_size, resource_dict={"cores": 2})
        threaded = executor.submit(tasks.variable, "OMP_NUM_THREADS", resource_dict={"threads_per_core": 3})
        assert wide.result(LIMIT) == [(0, 2), (1, 2)]
        assert threaded.result(LIMIT) == "3"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--shape", "1", "--ranks", "2"], "--shape takes the place of"),
        (["--shape", "1=2", "--shape", "1=3"], "occurs twice"),
        (["--shape", "none"], "RANKS"),
        (["--shape", "1+1gpu=3", "--launcher", "local"], r"3 group.*cannot be placed in this host.*2 GPU"),
    ],
)
def test_invalid_shapes_are_rejected(spool: Spool, worker: Workers, options: list[str], reason: str) -> None:
    process = worker(spool, *options, await_groups=0, CUDA_VISIBLE_DEVICES="0,1")
    worker.may_die(process)
    assert process.wait(LIMIT) in (9, LauncherError.exit_code)
    assert re.search(reason, worker.said(process))
    assert not workers.read_workers(spool)


# ---------------------------------------------------------------------------- output of groups


def test_each_line_of_groups_is_whole_and_labelled_with_group_and_node(uncaptured: Spool, worker: Workers) -> None:
    supervisor = worker(uncaptured, "--launcher", "local", "--groups", 3, await_groups=3)
    with Executor(spool=uncaptured.path) as executor:
        texts = [f"text-{number}-{'x' * 300}" for number in range(9)]
        pids = set(executor.map(say, texts, [50] * 9, timeout=LIMIT))
    groups = {info.process.pid: info.worker for info in workers.read_workers(uncaptured)}
    supervisor.terminate()
    assert supervisor.wait(LIMIT) == 0
    count = 2 * 50 * len(texts)
    wait_until(lambda: worker.said(supervisor).count("text-") >= count, "the relay, which ends later, wrote all of it")
    lines = [line for line in worker.said(supervisor).splitlines() if "text-" in line]
    labels = {f"[{groups[pid][:8]} {HOST}]" for pid in pids}
    assert {line[: line.index("]") + 1] for line in lines} == labels
    assert Counter(line[line.index("]") + 2 :] for line in lines) == {
        f"{text} {number}": 2 for text in texts for number in range(50)
    }


@pytest.mark.mpi
def test_lines_of_ranks_are_labelled_with_the_rank(uncaptured: Spool, worker: Workers) -> None:
    supervisor = worker(uncaptured, "--launcher", "mpiexec", "--ranks", 2)
    with Executor(spool=uncaptured.path) as executor:
        executor.submit(say, "hello", 20, resource_dict={"cores": 2}).result(LIMIT)
    (info,) = workers.read_workers(uncaptured)
    supervisor.terminate()
    assert supervisor.wait(LIMIT) == 0
    wait_until(lambda: worker.said(supervisor).count("hello") >= 80, "the relay, which ends later, wrote all of it")
    lines = Counter(line for line in worker.said(supervisor).splitlines() if "hello" in line)
    assert lines == {f"[{info.worker[:8]} {HOST} {rank}] hello {n}": 2 for rank in range(2) for n in range(20)}


def test_task_of_a_killed_supervisor_keeps_its_output(uncaptured: Spool, worker: Workers, tmp_path: Path) -> None:
    supervisor = worker(uncaptured, "--launcher", "local", "--groups", 1)
    worker.may_die(supervisor)
    with Executor(spool=uncaptured.path) as executor:
        future = executor.submit(print_around, tmp_path / "started", tmp_path / "go")
        wait_until((tmp_path / "started").exists, "the task runs")
        supervisor.kill()
        supervisor.wait()
        (tmp_path / "go").touch()
        assert future.result(LIMIT) == "done"
    wait_until(lambda: worker.said(supervisor).count("] after\n") == 1000, "all output was forwarded")
    wait_until(lambda: not processes_of(uncaptured.path), "the group has ended")


# ------------------------------------------------------------------------------- death of groups


def test_host_on_which_every_group_dies_ends_the_supervisor_with_the_exit_code_of_bad_nodes(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    variables = deadly(tmp_path / "site", HOST, f"{spool.path}/workers/{{}}/info.json")
    supervisor = worker(spool, "--launcher", "local", "--groups", 1, await_groups=0, **variables)
    worker.may_die(supervisor)
    assert supervisor.wait(LIMIT) == BadNode.exit_code
    output = worker.said(supervisor)
    assert re.search(rf"Node {HOST} is given up: .*dies \(killed by SIGKILL.*\). It had 1 of them", output)
    assert re.search(rf"these nodes were given up: {HOST} \(killed by SIGKILL", output)


def test_groups_that_cannot_start_end_the_supervisor_with_the_reason(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    supervisor = worker(spool, "--launcher", "local", "--groups", 2, await_groups=0, **deadly(tmp_path / "site", HOST))
    worker.may_die(supervisor)
    assert supervisor.wait(LIMIT) == LauncherError.exit_code
    assert "cannot be started through local: killed by SIGKILL" in worker.said(supervisor)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ModuleNotFoundError(\"No module named 'mpi4py'\")", "No module named 'mpi4py'"),
        ("class rc: pass\nraise RuntimeError('cannot load MPI library')", "cannot load MPI library"),
    ],
)
def test_group_without_mpi4py_says_once_what_to_install(
    spool: Spool, worker: Workers, tmp_path: Path, text: str, reason: str
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/mpi4py.py").write_text(text)
    supervisor = worker(spool, "--launcher", "mpiexec", "--ranks", 2, await_groups=0, PYTHONPATH=str(tmp_path / "site"))
    worker.may_die(supervisor)
    assert supervisor.wait(LIMIT) == LauncherError.exit_code
    output = worker.said(supervisor)
    assert "Traceback" not in output
    assert output.count(reason) == 3, output  # each rank and the supervisor
    last = output.splitlines()[-1]
    assert reason in last and "pip install 'spoolpool[mpi]'" in last and "exit status" not in last


@pytest.mark.mpi
def test_launcher_that_cannot_start_ranks_is_told_with_its_last_lines(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    (tmp_path / "mpiexec").write_text("#!/bin/sh\necho 'mpiexec: error: no license' >&2\nexit 7\n")
    (tmp_path / "mpiexec").chmod(0o755)
    supervisor = worker(
        spool, "--launcher", "mpiexec", "--ranks", 2, await_groups=0, SPOOLPOOL_MPIEXEC=str(tmp_path / "mpiexec")
    )
    worker.may_die(supervisor)
    assert supervisor.wait(LIMIT) == LauncherError.exit_code
    assert "through mpiexec: exit status 7: mpiexec: error: no license." in worker.said(supervisor)


def test_tasks_that_kill_their_workers_do_not_exclude_the_host(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    worker(spool, "--launcher", "local", "--groups", 1)
    with Executor(spool=spool.path) as executor:
        bad = [
            executor.submit(tasks.die, "SIGKILL", tmp_path / "trace", resource_dict={"max_attempts": 1})
            for _ in range(8)
        ]
        assert {type(future.exception(LIMIT)) for future in bad} == {WorkerLost}
        assert executor.submit(pow, 2, 3).result(LIMIT) == 8


# ----------------------------------------------------------------------- end of the supervisor


@pytest.mark.parametrize("option", [("--idle-timeout", 0.1), ("--max-tasks", 1)])
def test_supervisor_ends_with_success_after_its_groups_reached_their_limits(
    spool: Spool, worker: Workers, option: tuple[str, object]
) -> None:
    supervisor = worker(spool, "--launcher", "local", "--groups", 2, *option, await_groups=0)
    with Executor(spool=spool.path) as executor, contextlib.suppress(TimeoutError):
        futures = [executor.submit(pow, number, 2) for number in range(2)]
        if option[0] == "--max-tasks":
            assert [future.result(LIMIT) for future in futures] == [0, 1]
        for future in futures:
            future.cancel()
    assert supervisor.wait(LIMIT) == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_signal_lets_the_running_task_finish_and_starts_no_other(
    spool: Spool, worker: Workers, tmp_path: Path, name: str
) -> None:
    supervisor = worker(spool, "--launcher", "local", "--groups", 1)
    with Executor(spool=spool.path) as executor:
        running = executor.submit(tasks.mark_and_wait, tmp_path / "started", tmp_path / "go", "done")
        wait_until((tmp_path / "started").exists, "the task runs")
        waiting = executor.submit(pow, 2, 3)
        supervisor.send_signal(getattr(signal, name))
        (info,) = workers.read_workers(spool)
        wait_until(lambda: os.path.exists(f"{spool.layout.worker(info.worker)}/stop"), "the group was asked to end")
        (tmp_path / "go").touch()
        assert running.result(LIMIT) == "done"
        assert supervisor.wait(LIMIT) == 0
        assert waiting.cancel(), "no task was started after the signal"
