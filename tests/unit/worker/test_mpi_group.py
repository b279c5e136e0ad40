"""Worker groups of real MPI ranks, more than there are cores."""

from __future__ import annotations

import functools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor, settings
from spoolpool.client import executor_runtime
from spoolpool.errors import BrokenSpool, LauncherError, NotPicklable, WorkerLost
from spoolpool.launch.launcher import LaunchOptions, python_worker
from spoolpool.launch.mpiexec import MpiexecLauncher, find_mpiexec
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Shape
from spoolpool.worker.housekeeping import CHECK_INTERVAL
from tests.conftest import Workers
from tests.support import mpi_tasks, tasks
from tests.support.processes import processes_of
from tests.support.tasks import PickyError
from tests.support.waiting import LIMIT, wait_until

pytest.importorskip("mpi4py", reason="mpi4py is not installed")
MPIEXEC = find_mpiexec() or ""
pytestmark = [pytest.mark.mpi, pytest.mark.skipif(not MPIEXEC, reason="there is no mpiexec")]

Submit = Callable[..., Future[Any]]
"""Function that submits a call for a number of ranks: ``submit(ranks, function, *arguments, **resources)``."""


@pytest.fixture
def submit(spool: Spool) -> Iterator[Submit]:
    with Executor(spool=spool.path) as attached:

        def submit(ranks: int, function: Callable[..., Any], *arguments: Any, **resources: Any) -> Future[Any]:
            return attached.submit(function, *arguments, resource_dict={"cores": ranks, **resources})

        yield submit


@pytest.fixture(params=["supervised", "by hand"])
def start(request: pytest.FixtureRequest, spool: Spool, worker: Workers) -> Callable[..., subprocess.Popen[bytes]]:
    """Function that starts one group with a number of ranks, in both ways."""

    def start(ranks: int, *options: object) -> subprocess.Popen[bytes]:
        if request.param == "by hand":
            return worker(spool, *options, mpi_ranks=ranks)
        return worker(spool, "--launcher", "mpiexec", "--ranks", ranks, *options)

    return start


def no_process_is_left(spool: Spool) -> None:
    wait_until(lambda: not processes_of(spool.path), f"no process of {spool.path} is left")


def tasks_in(spool: Spool, where: str) -> int:
    return sum(1 for path in (Path(spool.path) / where).rglob("*") if path.is_file())


# -- results


@pytest.mark.parametrize("ranks", [2, 4])
def test_result_is_the_list_of_values_in_rank_order(ranks, start, submit):
    start(ranks)
    total = sum(range(ranks))
    assert submit(ranks, mpi_tasks.where).result(LIMIT) == [(rank, ranks, total) for rank in range(ranks)]
    assert [len(values) for values in (submit(ranks, tasks.pid).result(LIMIT) for _ in range(20))] == [ranks] * 20


def test_one_rank_without_mpi_returns_the_plain_value(spool, worker, submit):
    worker(spool)
    assert submit(1, tasks.rank_and_size).result(LIMIT) == (0, 1)


def test_one_rank_of_a_split_world_returns_the_plain_value(spool, worker, submit):
    worker(spool, "--ranks", 1, mpi_ranks=2, await_groups=2)
    assert {submit(1, mpi_tasks.where).result(LIMIT) for _ in range(4)} == {(0, 1, 0)}


def test_comm_world_is_the_group(start, submit):
    start(2)
    values = submit(2, mpi_tasks.where_in_the_group).result(LIMIT)
    pids = sum(submit(2, tasks.pid).result(LIMIT))
    assert values == [(0, 2, pids, True), (1, 2, pids, True)]


def test_world_is_split_into_groups_that_run_concurrently(spool, worker, submit, tmp_path):
    worker(spool, "--ranks", 2, mpi_ranks=4, await_groups=2)
    a, b = tmp_path / "a", tmp_path / "b"
    one, other = submit(2, mpi_tasks.meet, a, b), submit(2, mpi_tasks.meet, b, a)
    (size, pids), again = one.result(LIMIT)
    (_, others), _ = other.result(LIMIT)
    assert size == 2 and again == (size, pids) and len({*pids, *others}) == 4
    assert submit(2, mpi_tasks.where).result(LIMIT) == [(0, 2, 1), (1, 2, 1)]


def test_arrays_pass_through_a_group_and_are_writable(start, submit):
    numpy = pytest.importorskip("numpy")
    start(2)
    array, small = numpy.arange(300_000, dtype=float), numpy.ones(3)
    values = submit(2, mpi_tasks.scaled, array, [small, "word"]).result(LIMIT)
    for rank, value in enumerate(values):
        assert numpy.array_equal(value["array"], array + rank)
        assert numpy.array_equal(value["keep"][0], small) and value["keep"][1] == "word"


def test_rank_can_start_groups(spool, worker, submit):
    worker(spool, mpi_ranks=2)
    inner = [(0, 2, 1), (1, 2, 1)]
    assert submit(2, mpi_tasks.nested).result(LIMIT) == [inner, inner]


def test_program_with_an_mpi_of_its_own_runs_in_a_clean_environment(start, submit):
    start(2)
    first, second = submit(2, mpi_tasks.run_own_mpi, MPIEXEC).result(LIMIT)
    assert (first, second) == (["0 2", "1 2", "0 1"], [])


# -- exceptions


def on(*ways: tuple[str, Any]) -> pytest.MarkDecorator:
    """Parametrize a test by the way to start the group and the ranks that misbehave."""
    return pytest.mark.parametrize(("start", "failing"), ways, indirect=["start"], ids=[f"{a}: {b}" for a, b in ways])


@on(
    ("by hand", (0,)),
    ("by hand", (3,)),
    ("by hand", (1, 2)),
    ("by hand", (0, 1, 2, 3)),
    ("supervised", (0,)),
    ("supervised", (3,)),
)
def test_exception_has_rank_host_and_traceback_and_the_next_task_runs(failing, start, submit):
    start(4)
    error = submit(4, mpi_tasks.raises_on, failing).exception(LIMIT)
    assert type(error).__name__ == "OwnError" and str(error) == f"from rank {failing[0]}"
    assert f"On rank {failing[0]}, host {socket.gethostname()}" in str(error.__cause__)
    assert "in raises_on" in str(error.__cause__)
    assert submit(4, mpi_tasks.exchange, "fresh").result(LIMIT) == mpi_tasks.exchanged("fresh", 4)


def test_group_is_kept_after_the_same_exception_on_all_ranks(start, submit):
    start(2)
    before = submit(2, tasks.pid).result(LIMIT)
    assert type(submit(2, mpi_tasks.raises_on, (0, 1)).exception(LIMIT)).__name__ == "OwnError"
    assert submit(2, tasks.pid).result(LIMIT) == before


@on(("by hand", 0), ("by hand", 1), ("supervised", 1))
def test_unpicklable_result_on_one_rank_is_an_error_of_that_task_only(failing, start, submit):
    start(2)
    error = submit(2, mpi_tasks.lock_on, (failing,)).exception(LIMIT)
    assert isinstance(error, NotPicklable) and f"from rank {failing} on {socket.gethostname()}" in str(error)
    assert submit(2, mpi_tasks.exchange, "fresh").result(LIMIT) == mpi_tasks.exchanged("fresh", 2)


@on(("by hand", (0,)), ("by hand", (1,)), ("supervised", (0, 1)))
def test_exception_with_a_constructor_of_its_own_keeps_its_type(failing, start, submit):
    start(2)
    error = submit(2, mpi_tasks.raises_on, failing, "picky").exception(LIMIT)
    assert isinstance(error, PickyError) and str(error) == f"on {failing[0]} (code 7)"
    assert "in raises_on" in str(error.__cause__)
    assert submit(2, mpi_tasks.exchange, "fresh").result(LIMIT) == mpi_tasks.exchanged("fresh", 2)


@pytest.mark.parametrize("failing", [0, 3])
def test_exception_of_a_rank_is_the_outcome_while_others_wait_for_it(failing, spool, worker, submit, tmp_path):
    worker(spool, "--launcher", "mpiexec", "--ranks", 4, "--grace", 0.5)
    error = submit(4, mpi_tasks.raises_while_others_wait, failing, tmp_path / "trace").exception(LIMIT)
    assert type(error).__name__ == "OwnError" and str(error) == f"from rank {failing}"
    assert f"On rank {failing}, host {socket.gethostname()}" in str(error.__cause__)
    assert "in raises_while_others_wait" in str(error.__cause__)
    assert submit(4, mpi_tasks.exchange, "fresh").result(LIMIT) == mpi_tasks.exchanged("fresh", 4)
    assert len((tmp_path / "trace").read_text().split()) == 4  # once on each rank


def test_two_ranks_that_raise_while_another_waits_have_one_outcome(spool, worker, submit, tmp_path):
    worker(spool, "--launcher", "mpiexec", "--ranks", 3, "--grace", 0.5)
    error = submit(3, mpi_tasks.only_rank_0_waits, tmp_path / "trace").exception(LIMIT)
    assert re.fullmatch("from rank [12]", str(error))
    assert submit(3, mpi_tasks.exchange, "fresh").result(LIMIT) == mpi_tasks.exchanged("fresh", 3)
    assert len((tmp_path / "trace").read_text().split()) == 3


# -- messages left behind

LEFT = ["gather raise", "gather", "bcast", "isend", "isend raise", "large isend", "send to itself", "receive"]


@pytest.mark.parametrize(("start", "ranks"), [("supervised", 2), ("by hand", 4)], indirect=["start"])
@pytest.mark.parametrize("kind", LEFT)
def test_message_left_by_a_task_does_not_reach_the_next_one(kind, ranks, start, submit):
    # the loss of a last message to an open receive is detected after the grace period
    process = start(ranks, *(("--grace", 0.5) if kind == "receive" else ()))
    ended = submit(ranks, mpi_tasks.leaves_behind, kind)
    if "raise" in kind:
        assert type(ended.exception(LIMIT)).__name__ == "OwnError"
    else:
        assert ended.result(LIMIT) == ["left"] * ranks
    for value in ("fresh", "fresher"):
        assert submit(ranks, mpi_tasks.exchange, value).result(LIMIT) == mpi_tasks.exchanged(value, ranks)
    process.terminate()
    assert process.wait(LIMIT) == 0  # no message that was left prevents the end of MPI


def test_each_result_belongs_to_its_task_after_any_end_of_a_task(spool, worker, submit):
    worker(spool, mpi_ranks=2)
    dice = random.Random(2)
    expected: list[tuple[str, Future[Any]]] = []
    for number in range(40):
        how = dice.choice(["", "", *LEFT[:-1], "raise"])
        if how == "raise":
            future = submit(2, mpi_tasks.raises_on, dice.choice([(0,), (1,), (0, 1)]))
        elif how:
            future = submit(2, mpi_tasks.leaves_behind, how)
        else:
            future = submit(2, mpi_tasks.exchange, number)
        expected.append((how or str(number), future))
    for how, future in expected:
        if "raise" in how:
            assert type(future.exception(LIMIT)).__name__ == "OwnError"
        elif how in LEFT:
            assert future.result(LIMIT) == ["left", "left"]
        else:
            assert future.result(LIMIT) == mpi_tasks.exchanged(int(how), 2)


# -- the death of ranks


@pytest.mark.parametrize(("how", "failing"), [("os._exit", 0), ("SIGSEGV", 1), ("SIGKILL", 0), ("SIGKILL", 1)])
def test_death_of_a_rank_does_not_affect_the_supervisor_and_other_groups(how, failing, spool, worker, submit, tmp_path):
    supervisor = worker(spool, "--launcher", "mpiexec", "--ranks", 2, "--groups", 2, await_groups=2)
    gate, trace = tmp_path / "gate", tmp_path / "trace"
    long = submit(2, tasks.wait_for, gate, "long")
    wait_until(lambda: not tasks_in(spool, "ready"), "the long task was claimed")
    deadly = submit(2, mpi_tasks.ends, how, failing, trace, max_attempts=2)
    error = deadly.exception(LIMIT)
    assert isinstance(error, WorkerLost) and "attempt 2" in str(error)
    for attempt in error.attempts:  # the other rank was killed afterwards
        assert (attempt.rank, attempt.launcher, attempt.host) == (failing, "", os.uname().nodename)
        assert attempt.exit_status == 3 if how == "os._exit" else attempt.signal == how
        assert ("in ends" in attempt.stack) == (how == "SIGSEGV")
    assert [attempt.attempt for attempt in error.attempts] == [1, 2]
    assert len(trace.read_text().split()) == 2  # one retry
    assert not long.done()
    gate.touch()
    assert long.result(LIMIT) == ["long", "long"]
    assert submit(2, mpi_tasks.where).result(LIMIT) == [(0, 2, 1), (1, 2, 1)]
    assert supervisor.poll() is None


@pytest.mark.parametrize("failing", [0, 1])
def test_sys_exit_on_one_rank_is_an_exception_of_the_task(failing, spool, worker, submit, tmp_path):
    worker(spool, "--launcher", "mpiexec", "--ranks", 2, "--grace", 0.5)
    error = submit(2, mpi_tasks.ends, "sys.exit", failing, tmp_path / "trace").exception(LIMIT)
    assert isinstance(error, SystemExit) and error.code == 3
    assert submit(2, mpi_tasks.where).result(LIMIT) == [(0, 2, 1), (1, 2, 1)]


def test_group_of_a_killed_mpiexec_is_replaced_and_its_task_runs_again(spool, worker, submit, tmp_path):
    worker(spool, "--launcher", "mpiexec", "--ranks", 2)
    gate, trace = tmp_path / "gate", tmp_path / "trace"
    future = submit(2, tasks.mark_and_wait, trace, gate, "done")
    wait_until(lambda: trace.exists() and len(trace.read_text().split()) == 2, "both ranks run the task")
    before = set(processes_of(spool.path))
    launcher = next(pid for pid in before if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(os.fsencode(MPIEXEC)))
    os.kill(launcher, signal.SIGKILL)
    wait_until(lambda: len(trace.read_text().split()) == 4, "the task runs again")
    gate.touch()
    assert future.result(LIMIT) == ["done", "done"]


def test_groups_end_after_their_supervisor_was_killed(spool, worker, submit, tmp_path):
    supervisor = worker(spool, "--launcher", "mpiexec", "--ranks", 2)
    gate, trace = tmp_path / "gate", tmp_path / "trace"
    future = submit(2, tasks.mark_and_wait, trace, gate, "done")
    wait_until(trace.exists, "the task runs")
    worker.may_die(supervisor)
    supervisor.kill()
    gate.touch()
    assert future.result(LIMIT) == ["done", "done"]
    no_process_is_left(spool)


# -- start and end


def test_init_function_is_called_once_on_each_rank_of_a_group(spool, worker, tmp_path):
    worker(spool, mpi_ranks=2)
    trace = str(tmp_path / "init")
    init = functools.partial(mpi_tasks.preset, trace)
    with Executor(spool=spool.path, cores_per_worker=2, init_function=init) as attached:
        futures = [attached.submit(mpi_tasks.use_preset) for _ in range(5)]
        assert [future.result(LIMIT) for future in futures] == [[100, 101]] * 5
        assert attached.submit(mpi_tasks.use_preset, 7).result(LIMIT) == [7, 7]
    assert [len(Path(f"{trace}-{rank}").read_text().split()) for rank in range(2)] == [1, 1]


@pytest.mark.parametrize("failing", [0, 1])
def test_init_function_that_failed_on_one_rank_is_called_again(failing, spool, worker, tmp_path):
    worker(spool, mpi_ranks=2)
    init = functools.partial(mpi_tasks.preset_that_fails_first, str(tmp_path / "init"), failing)
    with Executor(spool=spool.path, cores_per_worker=2, init_function=init) as attached:
        assert str(attached.submit(mpi_tasks.use_preset).exception(LIMIT)) == "no seed yet"
        assert attached.submit(mpi_tasks.use_preset).result(LIMIT) == [100, 101]


def run_worker(spool: Spool, *options: object, ranks: int = 0) -> subprocess.CompletedProcess[str]:
    command = [MPIEXEC, "-n", str(ranks)] if ranks else []
    command += python_worker([spool.path, *map(str, options)])
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL)


def test_world_of_an_unexpected_size_is_an_error_with_advice(spool):
    two_of_three = run_worker(spool, "--group-of", 3, ranks=2)
    assert two_of_three.returncode == LauncherError.exit_code
    assert "MPI sees 2 ranks where 3 were started" in two_of_three.stderr
    assert settings.ENV_MPIEXEC in two_of_three.stderr and "--mpi=" in two_of_three.stderr
    singleton = run_worker(spool, "--group-of", 2)
    assert "MPI sees 1 ranks where 2 were started" in singleton.stderr


class TooFew(MpiexecLauncher):
    """Launcher that starts fewer ranks than were requested."""

    def command(self, shape: Shape, arguments: Any, options: LaunchOptions) -> list[str]:
        return [MPIEXEC, "-n", "2", *python_worker(arguments)]


def test_mismatched_launcher_breaks_the_executor_immediately(monkeypatch):
    monkeypatch.setattr(executor_runtime, "select_launcher", lambda name: TooFew(MPIEXEC))
    with Executor(max_workers=1, cores_per_worker=3) as embedded:
        error = embedded.submit(mpi_tasks.where).exception(LIMIT)
        assert isinstance(error, BrokenSpool) and "MPI sees 2 ranks where 3 were started" in str(error)
        with pytest.raises(BrokenSpool, match="2 ranks where 3"):
            embedded.submit(mpi_tasks.where)


def test_ranks_not_divisible_into_groups_are_an_error(spool):
    run = run_worker(spool, "--ranks", 2, ranks=3)
    assert run.returncode == LauncherError.exit_code
    assert "3 ranks cannot be split into groups of 2" in run.stderr


def test_one_process_as_a_group_of_two_is_an_error(spool):
    run = run_worker(spool, "--ranks", 2)
    assert run.returncode != 0 and "mpiexec -n 2" in run.stderr


def test_sigterm_ends_a_group_after_the_running_task(start, spool, submit, tmp_path):
    process = start(2)
    gate, trace, signalled = tmp_path / "gate", tmp_path / "trace", tmp_path / "signalled"
    running = submit(2, mpi_tasks.mark_and_wait_for_stop, trace, signalled, gate)
    waiting = submit(2, tasks.mark, tmp_path / "never")
    wait_until(trace.exists, "the task runs")
    process.terminate()
    wait_until(
        lambda: signalled.exists() or list(Path(spool.path, "workers").glob("*/stop")),
        "the group received the request, as a signal or as a file from the supervisor",
    )
    requested = time.monotonic()
    wait_until(lambda: time.monotonic() > requested + 2 * CHECK_INTERVAL, "the check for the stop file is due")
    gate.touch()
    assert running.result(LIMIT) == ["done", "done"]
    assert process.wait(LIMIT) == 0
    no_process_is_left(spool)
    assert not (tmp_path / "never").exists() and waiting.cancel()


def test_group_ends_after_max_tasks(spool, worker, submit):
    process = worker(spool, "--max-tasks", 2, mpi_ranks=2)
    futures = [submit(2, tasks.pid) for _ in range(3)]
    assert [len(future.result(LIMIT)) for future in futures[:2]] == [2, 2]
    assert process.wait(LIMIT) == 0
    assert futures[2].cancel()
    no_process_is_left(spool)


def test_supervisor_ends_after_its_groups_end_at_max_tasks(spool, worker, submit):
    process = worker(spool, "--launcher", "mpiexec", "--ranks", 2, "--max-tasks", 1)
    assert len(submit(2, tasks.pid).result(LIMIT)) == 2
    assert process.wait(LIMIT) == 0
    no_process_is_left(spool)


def test_idle_group_ends_after_its_timeout(start, spool):
    process = start(2, "--idle-timeout", 0.3)
    assert process.wait(LIMIT) == 0
    no_process_is_left(spool)


def cpu_seconds(pid: int) -> float:
    # not of schedstat, which a kernel may be built without
    user, system = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_idle_ranks_do_not_spin(spool, worker, submit):
    worker(spool, mpi_ranks=4)
    pids = submit(4, tasks.pid).result(LIMIT)
    before, start = [cpu_seconds(pid) for pid in pids], time.monotonic()
    wait_until(lambda: time.monotonic() - start > 3, "the group was idle for a while")
    share = sum(map(cpu_seconds, pids)) - sum(before)
    # a rank that waits in MPI uses a whole core: two of them would use all of this machine
    assert share < 0.2 * (time.monotonic() - start)


def test_temporary_directory_is_empty_after_the_end(spool, worker, submit, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    worker(spool, mpi_ranks=2, TMPDIR=str(temporary))
    assert submit(2, mpi_tasks.where).result(LIMIT) == [(0, 2, 1), (1, 2, 1)]
    assert not [path for path in temporary.iterdir() if path.name.startswith("spoolpool")]


# -- the group alone, without a spool

PROGRAM = """
import pickle, sys
from mpi4py import MPI
from spoolpool.calls import pickling
from spoolpool.calls.results import value_of
from spoolpool.format.envelope import Envelope
from spoolpool.format.headers import OutcomeHeader, TaskHeader
from spoolpool.format.names import TaskFile, new_task_id, new_worker_id
from spoolpool.worker import mpi_group, mpi_messages, mpi_world
from spoolpool.worker.group import TaskCall
from tests.support import mpi_tasks

world = MPI.COMM_WORLD
{patch}
mine = mpi_group.MPIGroup(world, lambda *_: True, supervised={supervised}, grace=5)

def ask(function, *arguments):
    task_file = TaskFile(new_task_id(0), 1, 1).claimed_by(new_worker_id())
    header = TaskHeader(task=task_file.task, session="s", lane="l", bucket="b")
    report, ranks = mine.run(TaskCall(task_file, header, pickling.dumps((function, arguments, {{}}))))
    outcome = OutcomeHeader(task=task_file.task, kind="error" if report.failure else "result", worker="w", ranks=ranks,
                            failure=report.failure)
    return value_of(outcome, Envelope(b"", report.payload, report.buffers))

if mine.rank:
    mine.serve()
else:
{body}
    mine.stop()
    print("held")
"""


def run_program(tmp_path: Path, ranks: int, body: str, patch: str = "", supervised: bool = False) -> str:
    """Run a group with ``body`` on its rank 0; return the output."""
    program = tmp_path / "program.py"
    body = "".join(f"    {line}\n" for line in body.splitlines())
    program.write_text(PROGRAM.format(patch=patch, body=body, supervised=supervised), encoding="utf-8")
    root = Path(__file__).parents[3]
    run = subprocess.run(
        [MPIEXEC, "-n", str(ranks), sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert run.returncode == 0 and "held" in run.stdout, run.stdout + run.stderr
    return run.stdout + run.stderr


SIZES = """
for length in (0, 1, 3000, *range(3600, 4100, 7), 70_001, 300_000):
    value = bytes(length)
    assert ask(mpi_tasks.echo, value) == [(value, rank) for rank in range(mine.size)], length
"""


@pytest.mark.parametrize("piece", [1 << 30, 1000])
def test_values_of_any_size_are_transferred(piece, tmp_path):
    run_program(tmp_path, 3, SIZES, patch=f"mpi_messages.PIECE = {piece}")


def test_out_of_band_arrays_are_transferred_in_pieces(tmp_path):
    pytest.importorskip("numpy")
    body = """
import numpy
arrays = [numpy.arange(n, dtype=float) for n in (5000, 1, 20_000)] * 300
for rank, value in enumerate(ask(mpi_tasks.scaled, arrays[0].copy(), arrays)):
    assert numpy.array_equal(value["array"], arrays[0] + rank)
    assert all(numpy.array_equal(a, b) for a, b in zip(value["keep"], arrays, strict=True))
"""
    run_program(tmp_path, 2, body, patch="mpi_messages.PIECE = 1000")


ALONE = "mpi_world.on_this_host = lambda comm: MPI.COMM_SELF.Dup()"
TWO_HOSTS = "mpi_world.on_this_host = lambda comm: comm.Split(comm.rank // 2, comm.rank)"
NO_FIFO = "import os, errno\ndef mkfifo(*_): raise OSError(errno.EPERM, 'no')\nos.mkfifo = mkfifo"


@pytest.mark.parametrize("hosts", [ALONE, TWO_HOSTS, NO_FIFO], ids=["four hosts", "two hosts", "no fifos"])
def test_ranks_without_wake_up_poll(hosts, tmp_path):
    body = """
for number in range(20):
    assert ask(mpi_tasks.exchange, number) == mpi_tasks.exchanged(number, 4)
    try:
        ask(mpi_tasks.raises_on, (number % 4,))
        raise SystemExit("no exception")
    except Exception as error:
        assert str(error) == f"from rank {number % 4}"
"""
    run_program(tmp_path, 4, body, patch=hosts)


def test_group_continues_after_its_fifos_were_closed(tmp_path):
    body = """
assert ask(mpi_tasks.close_fifos) == [None, None]
for number in range(20):
    assert ask(mpi_tasks.exchange, number) == mpi_tasks.exchanged(number, 2)
"""
    run_program(tmp_path, 2, body)


def test_unsupervised_group_is_tainted_once_mpi_has_no_more_communicators(tmp_path):
    body = """
for number in range(3):
    assert not mine.tainted
    try:
        ask(mpi_tasks.raises_on, (1,))
    except Exception:
        pass
assert mine.tainted
"""
    run_program(tmp_path, 2, body, patch="mpi_group._RENEWALS = 2")
