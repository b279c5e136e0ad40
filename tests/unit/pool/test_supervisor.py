"""The supervisor on this host: shapes, what groups print, groups that die, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from spoolpool import Executor
from spoolpool.errors import BadNode, LauncherError, WorkerLost
from spoolpool.launch.output_relay import Relay
from spoolpool.protocol import workers
from spoolpool.protocol.spool import Spool
from tests.conftest import Workers
from tests.support import tasks
from tests.support.processes import deadly, processes_of
from tests.support.waiting import LIMIT, wait_until

HOST = os.uname().nodename


def say(text: str, count: int = 1) -> int:
    """Print through Python and past it."""
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
def bare(tmp_path: Path) -> Spool:
    """A spool that does not keep what tasks print: it goes where the worker's own output goes."""
    return Spool.create(tmp_path / "bare", durability="none", output=0)


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
        (["--shape", "1", "--ranks", "2"], "--shape says it all"),
        (["--shape", "1=2", "--shape", "1=3"], "given twice"),
        (["--shape", "none"], "RANKS"),
        (["--shape", "1+1gpu=3", "--launcher", "local"], r"3 group.*cannot be placed in this host.*2 GPU"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(spool: Spool, worker: Workers, options: list[str], reason: str) -> None:
    process = worker(spool, *options, await_groups=0, CUDA_VISIBLE_DEVICES="0,1")
    worker.may_die(process)
    assert process.wait(LIMIT) in (9, LauncherError.exit_code)
    assert re.search(reason, worker.said(process))
    assert not workers.read_workers(spool)


# ---------------------------------------------------------------------------- what groups print


def test_each_line_that_groups_print_is_whole_and_says_whose_it_is(bare: Spool, worker: Workers) -> None:
    supervisor = worker(bare, "--launcher", "local", "--groups", 3, await_groups=3)
    with Executor(spool=bare.path) as executor:
        texts = [f"text-{number}-{'x' * 300}" for number in range(9)]
        pids = set(executor.map(say, texts, [50] * 9, timeout=LIMIT))
    groups = {info.process.pid: info.worker for info in workers.read_workers(bare)}
    supervisor.terminate()
    assert supervisor.wait(LIMIT) == 0
    lines = [line for line in worker.said(supervisor).splitlines() if "text-" in line]
    marks = {f"[{groups[pid][:8]} {HOST}]" for pid in pids}
    assert {line[: line.index("]") + 1] for line in lines} == marks
    assert Counter(line[line.index("]") + 2 :] for line in lines) == {
        f"{text} {number}": 2 for text in texts for number in range(50)
    }


@pytest.mark.mpi
def test_the_lines_of_ranks_say_which_rank_it_was(bare: Spool, worker: Workers) -> None:
    supervisor = worker(bare, "--launcher", "mpiexec", "--ranks", 2)
    with Executor(spool=bare.path) as executor:
        executor.submit(say, "hello", 20, resource_dict={"cores": 2}).result(LIMIT)
    (info,) = workers.read_workers(bare)
    supervisor.terminate()
    assert supervisor.wait(LIMIT) == 0
    lines = Counter(line for line in worker.said(supervisor).splitlines() if "hello" in line)
    assert lines == {f"[{info.worker[:8]} {HOST} {rank}] hello {n}": 2 for rank in range(2) for n in range(20)}


def test_a_task_whose_supervisor_was_killed_may_go_on_printing(bare: Spool, worker: Workers, tmp_path: Path) -> None:
    supervisor = worker(bare, "--launcher", "local", "--groups", 1)
    worker.may_die(supervisor)
    with Executor(spool=bare.path) as executor:
        future = executor.submit(print_around, tmp_path / "started", tmp_path / "go")
        wait_until((tmp_path / "started").exists, "the task runs")
        supervisor.kill()
        supervisor.wait()
        (tmp_path / "go").touch()
        assert future.result(LIMIT) == "done"
    wait_until(lambda: worker.said(supervisor).count("] after\n") == 1000, "all of it was forwarded")
    wait_until(lambda: not processes_of(bare.path), "the group has ended")


RELAYED = """\
import os, sys
from spoolpool.launch.output_relay import Relay

relay = Relay(as_json=bool(int(sys.argv.pop(1))))
out, err = relay.pipes("0123456789abcdef", ["a", "b"], r"(\\d+): ")
for text in sys.argv[1:]:
    os.write(out, text.encode().decode("unicode_escape").encode())
os.write(err, b"1: to the other\\n")
os.close(out), os.close(err)
relay.close()
"""


def relayed(*texts: str, as_json: bool = False) -> tuple[str, str]:
    command = [sys.executable, "-c", RELAYED, str(int(as_json)), *texts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_output_and_errors_stay_apart_and_ranks_are_named_with_their_nodes() -> None:
    out, err = relayed("0: one\\n1: two\\nno rank\\n7: too many\\n")
    assert out.splitlines() == [
        "[01234567 a 0] one",
        "[01234567 b 1] two",
        "[01234567] no rank",
        "[01234567 7] too many",
    ]
    assert err == "[01234567 b 1] to the other\n"


def test_lines_become_json_where_the_log_is_json() -> None:
    out, _ = relayed('0: {\\"level\\": \\"INFO\\"}\\nplain \\xff\\n', as_json=True)
    assert [json.loads(line) for line in out.splitlines()] == [
        {"group": "01234567", "node": "a", "rank": 0, "level": "INFO"},
        {"group": "01234567", "node": None, "rank": None, "text": "plain \u00ff"},
    ]


def test_a_line_in_pieces_becomes_whole_and_one_without_an_end_gets_one() -> None:
    assert relayed("0: be", "gin and ", "end\\n0: rest")[0] == "[01234567 a 0] begin and end\n[01234567 a 0] rest\n"


def test_a_line_without_end_is_broken_so_that_nothing_grows_without_bounds() -> None:
    lines = relayed(*["x" * 10_000] * 5)[0].splitlines()
    assert "".join(line.removeprefix("[01234567] ") for line in lines) == "x" * 50_000
    assert max(map(len, lines)) < 17_000


def test_a_relay_that_was_killed_is_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    relay = Relay()
    os.kill(relay._process.pid, signal.SIGKILL)
    wait_until(lambda: relay._process.poll() is not None, "it is dead")
    pipes = relay.pipes("0123456789abcdef", ["a"])
    os.write(pipes[0], b"still here\n")
    for pipe in pipes:
        os.close(pipe)
    relay.close()
    assert capfd.readouterr().out == "[01234567 a] still here\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_relay_survives_the_signals_of_a_job_also_while_it_starts(
    capfd: pytest.CaptureFixture[str], name: str
) -> None:
    relay = Relay()
    os.kill(relay._process.pid, getattr(signal, name))
    pipes = relay.pipes("0123456789abcdef", ["a"])
    os.write(pipes[0], b"forwarded\n")
    for pipe in pipes:
        os.close(pipe)
    relay.close()
    assert relay._process.poll() == 0
    assert capfd.readouterr().out == "[01234567 a] forwarded\n"
    assert getattr(signal, name) not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# ------------------------------------------------------------------------------ groups that die


def test_a_host_on_which_every_group_dies_is_given_up_with_an_exit_code_of_its_own(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    variables = deadly(tmp_path / "site", HOST, f"{spool.path}/workers/{{}}/info.json")
    supervisor = worker(spool, "--launcher", "local", "--groups", 1, await_groups=0, **variables)
    worker.may_die(supervisor)
    assert supervisor.wait(LIMIT) == BadNode.exit_code
    said = worker.said(supervisor)
    assert re.search(rf"Node {HOST} is given up: .*dies \(signal SIGKILL\). It had 1 of them", said)
    assert re.search(rf"these nodes were given up: {HOST} \(signal SIGKILL\)", said)


def test_groups_that_never_start_end_the_supervisor_with_the_reason(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    supervisor = worker(spool, "--launcher", "local", "--groups", 2, await_groups=0, **deadly(tmp_path / "site", HOST))
    worker.may_die(supervisor)
    assert supervisor.wait(LIMIT) == LauncherError.exit_code
    assert "cannot be started through local: signal SIGKILL" in worker.said(supervisor)


def test_tasks_that_kill_their_workers_cost_nobody_the_host(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    worker(spool, "--launcher", "local", "--groups", 1)
    with Executor(spool=spool.path) as executor:
        bad = [
            executor.submit(tasks.die, "SIGKILL", tmp_path / "trace", resource_dict={"max_attempts": 1})
            for _ in range(8)
        ]
        assert {type(future.exception(LIMIT)) for future in bad} == {WorkerLost}
        assert executor.submit(pow, 2, 3).result(LIMIT) == 8


# ------------------------------------------------------------------------------------- its end


@pytest.mark.parametrize("option", [("--idle-timeout", 0.1), ("--max-tasks", 1)])
def test_a_supervisor_whose_groups_ended_by_themselves_ends_with_success(
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
def test_a_signal_lets_the_task_that_runs_come_to_its_end(
    spool: Spool, worker: Workers, tmp_path: Path, name: str
) -> None:
    supervisor = worker(spool, "--launcher", "local", "--groups", 1)
    with Executor(spool=spool.path) as executor:
        running = executor.submit(tasks.mark_and_wait, tmp_path / "started", tmp_path / "go", "done")
        wait_until((tmp_path / "started").exists, "the task runs")
        waiting = executor.submit(pow, 2, 3)
        supervisor.send_signal(getattr(signal, name))
        (info,) = workers.read_workers(spool)
        wait_until(lambda: os.path.exists(f"{spool.layout.worker(info.worker)}/stop"), "the group was told")
        (tmp_path / "go").touch()
        assert running.result(LIMIT) == "done"
        assert supervisor.wait(LIMIT) == 0
        assert waiting.cancel(), "nothing was begun after the signal"
