"""A warm group is as good as new: what one task leaves in its processes does not reach the next one."""

import builtins
import contextlib
import decimal
import functools
import gc
import locale
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spoolpool import Executor, current_task
from spoolpool.launch.mpiexec import find_mpiexec
from tests.support.processes import is_running, processes_of
from tests.support.waiting import LIMIT, wait_until

pytestmark = pytest.mark.timeout(120)

_mpi = pytest.mark.mpi, pytest.mark.skipif(find_mpiexec() is None, reason="there is no mpiexec")


@pytest.fixture(scope="module", params=[pytest.param(1, id="serial"), pytest.param(2, id="mpi", marks=_mpi)])
def group(request):
    with Executor(max_workers=1, resource_dict={"cores": request.param}) as executor:
        yield executor


def _state():
    mask = os.umask(0o77)
    os.umask(mask)
    return {
        "cwd": os.getcwd(),
        "umask": mask,
        "environment": dict(os.environ),
        "warnings": [each[:3:2] for each in warnings.filters],
        "gc": (gc.isenabled(), gc.get_threshold()),
        "limits": (sys.getrecursionlimit(), sys.getswitchinterval()),
        "decimal": decimal.getcontext().prec,
        "locale": locale.setlocale(locale.LC_ALL),
        "path": list(sys.path),
        "hooks": (len(sys.meta_path), len(sys.path_hooks)),
        "trace": (type(sys.gettrace()).__name__, type(sys.getprofile()).__name__),
        "excepthook": sys.excepthook is sys.__excepthook__,
        "logging": (len(logging.getLogger().handlers), logging.getLogger().level),
        "signals": [str(signal.getsignal(each))[:20] for each in (signal.SIGTERM, signal.SIGALRM, signal.SIGUSR2)],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "streams": (sys.stdin.closed, sys.stdout.closed, sys.stderr.closed),
        "descriptors": [os.fstat(fd).st_mode for fd in range(3)],
        "pid": os.getpid(),
    }


def _spoil():
    os.chdir(tempfile.gettempdir())
    os.umask(0o777)
    os.environ.clear()
    warnings.simplefilter("error")
    gc.disable()
    gc.set_threshold(7)
    sys.setrecursionlimit(300)
    sys.setswitchinterval(1.0)
    decimal.getcontext().prec = 3
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    sys.path.clear()
    sys.meta_path[:0] = [object()]
    sys.path_hooks.clear()
    sys.setprofile(lambda *_: None)
    sys.excepthook = print
    logging.basicConfig(level=logging.DEBUG, force=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.alarm(100)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
    sys.stdout.close()
    sys.stderr = None
    os.close(0)
    os.close(1)


def _spoil_and_raise():
    _spoil()
    raise LookupError


def _leave_a_removed_directory():
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)


@pytest.mark.parametrize("spoiler", [_spoil, _spoil_and_raise, _leave_a_removed_directory])
def test_next_task_finds_the_state_of_a_new_group(group, spoiler):
    before = group.submit(_state).result(LIMIT)
    with contextlib.suppress(LookupError):
        group.submit(spoiler).result(LIMIT)
    assert group.submit(_state).result(LIMIT) == before


def test_output_is_captured_after_a_task_has_closed_its_streams(group):
    group.submit(_spoil).result(LIMIT)
    future = group.submit(print, "still here")
    future.result(LIMIT)


def _armed():
    signal.setitimer(signal.ITIMER_REAL, 0.3)


def _wait_for_an_alarm():
    return signal.sigtimedwait({signal.SIGUSR2}, 1.0)


def test_alarm_of_one_task_does_not_kill_the_next_one(group):
    group.submit(_armed).result(LIMIT)
    result = group.submit(_wait_for_an_alarm, resource_dict={"max_attempts": 1}).result(LIMIT)
    assert result in (None, [None, None])


def _log_to(directory):
    path = f"{directory}/log-{os.getpid()}"
    logging.basicConfig(filename=path, level=logging.INFO)
    logging.getLogger("user").info("hello")
    return Path(path).read_text()


def test_function_configures_the_root_logger(group, tmp_path):
    for _ in range(2):
        result = group.submit(_log_to, tmp_path).result(LIMIT)
        assert "hello" in (result if isinstance(result, str) else result[1])


def _prepare():
    os.environ["WARM_INIT"] = "1"
    decimal.getcontext().prec = 9
    return {}


def test_changes_of_an_init_function_stay_for_its_session_alone():
    with Executor(max_workers=1, init_function=_prepare) as executor:
        for _ in range(3):
            state = executor.submit(_state).result(LIMIT)
            assert (state["environment"].get("WARM_INIT"), state["decimal"]) == ("1", 9)
            executor.submit(_leave_a_removed_directory).result(LIMIT)


def _wait_inside():
    os.chdir(tempfile.gettempdir())
    os.environ["WARM_OUTER"] = "1"
    with Executor(spool=current_task().spool) as inner:
        found = inner.submit(_state).result(LIMIT)
    return found, os.getcwd(), os.environ.get("WARM_OUTER")


def test_subtask_finds_a_new_state_and_its_task_the_own_one():
    with Executor(max_workers=1) as executor:
        found, directory, variable = executor.submit(_wait_inside).result(LIMIT)
        assert "WARM_OUTER" not in found["environment"]
        assert found["cwd"] == os.path.realpath(tempfile.gettempdir())
        assert (directory, variable) == (os.path.realpath(tempfile.gettempdir()), "1")


def _fork(end):
    pid = os.fork()
    if pid == 0:
        if end == "raise":
            raise OSError("in the child")
        if end == "exit":
            sys.exit(7)
        return "child"
    _, status = os.waitpid(pid, 0)
    return "parent", os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize(("end", "code"), [("raise", 1), ("exit", 7), ("return", 0)])
def test_forked_child_does_not_answer_for_its_task(group, end, code):
    pid = group.submit(os.getpid).result(LIMIT)
    result = group.submit(_fork, end).result(LIMIT)
    assert result in (("parent", code), [("parent", code)] * 2)
    assert list(group.map(_fork, [end] * 3, chunksize=3)) in ([("parent", code)] * 3, [[("parent", code)] * 2] * 3)
    assert group.submit(os.getpid).result(LIMIT) == pid


def _fork_and_end_the_child():
    ready, begun = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(begun, b".")
        signal.sigtimedwait({signal.SIGUSR2}, LIMIT)
        os._exit(0)
    os.read(ready, 1)  # a signal directly after the fork is dropped by the interpreter
    os.close(ready)
    os.close(begun)
    os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_signal_ends_a_forked_child(group):
    assert group.submit(_fork_and_end_the_child).result(LIMIT) in (-signal.SIGTERM, [-signal.SIGTERM] * 2)


# -- what cannot be restored


def _who():
    mine = [each for each in threading.enumerate() if each.name == "left by a task"]
    return os.getpid(), len(mine), current_task().attempt


def _leave_a_thread(*, daemon=True, target=time.sleep):
    threading.Thread(target=target, args=(LIMIT,), daemon=daemon, name="left by a task").start()


def _leave_a_timer():
    threading.Timer(LIMIT, print).start()


def _leave_a_program():
    subprocess.Popen(["sleep", str(LIMIT)])


def _leave_a_child():
    if os.fork() == 0:
        time.sleep(LIMIT)


def _leave_a_process():
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(LIMIT,)).start()


def _leave_a_busy_pool():
    builtins.left_by_a_task = ThreadPoolExecutor(1)
    builtins.left_by_a_task.submit(time.sleep, LIMIT)


def _leave_no_descriptor():
    kept = builtins.__dict__.setdefault("left_by_a_task", [])
    with contextlib.suppress(OSError):
        while True:
            kept.append(os.open(os.devnull, os.O_RDONLY))
    return "done"


def _close_all_descriptors():
    os.closerange(3, 1 << 16)


def _lead_a_session():
    with contextlib.suppress(PermissionError):
        os.setsid()


@pytest.fixture
def few_descriptors():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[0]), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


LEFTOVERS = {
    "thread": (_leave_a_thread, "thread 'left by a task', a daemon, in sleep"),
    "thread that is no daemon": (functools.partial(_leave_a_thread, daemon=False), "thread 'left by a task', in sleep"),
    "timer": (_leave_a_timer, "thread"),
    "program": (_leave_a_program, f"(sleep {LIMIT})"),
    "child": (_leave_a_child, "process"),
    "process": (_leave_a_process, "process"),
    "busy pool": (_leave_a_busy_pool, "thread 'ThreadPool"),
    "descriptors": (_leave_no_descriptor, "open descriptors"),
    "closed descriptors": (_close_all_descriptors, "descriptors of the worker closed"),
}

_ranks = pytest.mark.parametrize("ranks", [pytest.param(1, id="serial"), pytest.param(2, id="mpi", marks=_mpi)])


def _of_rank_0(result):
    return result[0] if isinstance(result, list) else result


@_ranks
@pytest.mark.parametrize("leftover", LEFTOVERS.values(), ids=LEFTOVERS.keys())
def test_group_in_which_a_task_has_left_something_is_replaced(ranks, leftover, few_descriptors, capfd):
    leave, text = leftover
    with Executor(max_workers=1, resource_dict={"cores": ranks, "max_attempts": 1}) as executor:
        pid, _, _ = _of_rank_0(executor.submit(_who).result(LIMIT))
        executor.submit(leave).result(LIMIT)
        found = [_of_rank_0(executor.submit(_who).result(LIMIT)) for _ in range(3)]
    assert {each[1:] for each in found} == {(0, 1)}
    assert pid not in {each[0] for each in found}
    lines = [line for line in capfd.readouterr().err.splitlines() if " has left " in line]
    assert len(lines) == ranks
    assert all(text in line for line in lines)


@pytest.mark.mpi
@pytest.mark.skipif(find_mpiexec() is None, reason="there is no mpiexec")
def test_group_whose_process_leads_a_session_is_replaced():
    with Executor(max_workers=1, resource_dict={"cores": 2, "max_attempts": 1}) as executor:
        pid = executor.submit(_who).result(LIMIT)[0][0]
        executor.submit(_lead_a_session).result(LIMIT)
        assert executor.submit(_who).result(LIMIT)[0][0] != pid


@_ranks
def test_processes_of_a_replaced_group_are_ended(ranks):
    with Executor(max_workers=1, resource_dict={"cores": ranks}) as executor:
        pids = executor.submit(lambda: subprocess.Popen(["sleep", str(LIMIT)]).pid).result(LIMIT)
        executor.submit(_who).result(LIMIT)
        for pid in pids if isinstance(pids, list) else [pids]:
            wait_until(lambda pid=pid: not is_running(pid), "the process has ended")


def _start_a_thread_and_a_program():
    _leave_a_thread()
    subprocess.Popen(["sleep", str(LIMIT)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return {}


@_ranks
def test_threads_and_processes_of_an_init_function_stay(ranks):
    started = _start_a_thread_and_a_program
    with Executor(max_workers=1, init_function=started, resource_dict={"cores": ranks}) as executor:
        found = {_of_rank_0(executor.submit(_who).result(LIMIT)) for _ in range(5)}
    assert len(found) == 1
    assert found.pop()[1:] == (1, 1)


def test_second_replacement_waits_and_the_thread_is_told_once(capfd):
    with Executor(max_workers=1) as executor:
        pids = [executor.submit(_who).result(LIMIT)[0]]
        for _ in range(4):
            executor.submit(_leave_a_thread).result(LIMIT)
            pids.append(executor.submit(_who).result(LIMIT)[0])
    assert len(set(pids)) == 2
    assert capfd.readouterr().err.count(" has left ") == 2  # by each of the two groups


def test_worker_of_one_rank_without_a_supervisor_starts_again_in_its_process(spool, worker):
    process = worker(spool, "--max-tasks", 4)
    with Executor(spool=spool.path, resource_dict={"max_attempts": 1}) as executor:
        pid, _, _ = executor.submit(_who).result(LIMIT)
        executor.submit(_leave_a_thread).result(LIMIT)
        assert executor.submit(_who).result(LIMIT) == (pid, 0, 1)
        assert executor.submit(_leave_no_descriptor).result(LIMIT) == "done"
    assert process.wait(LIMIT) == 0


_SLOW_START = """
import os, pathlib, time
here = pathlib.Path(__file__).parent
if "SPOOLPOOL_LIMITS" in os.environ:
    (here / "starts").touch()
    while not (here / "go").exists():
        time.sleep(0.05)
"""


def _worker_processes(spool):
    """Return the processes of the worker of a spool, without those of its heartbeat."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_of(spool.path)}
    return {pid for pid, command in commands.items() if b"heartbeat_program" not in command}


def test_worker_in_a_step_starts_again_in_its_guard(spool, worker, few_descriptors):
    process = worker(spool, "--max-tasks", 5, "--max-time", "1h", PMI_RANK="0")
    command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    with Executor(spool=spool.path, resource_dict={"max_attempts": 1}) as executor:
        before = executor.submit(os.getpid).result(LIMIT)
        for _ in range(2):
            executor.submit(_leave_no_descriptor).result(LIMIT)
            pid = executor.submit(os.getpid).result(LIMIT)
            assert pid != before
            assert _worker_processes(spool) == {process.pid, pid}
            assert Path(f"/proc/{pid}/cmdline").read_bytes() == command
            before = pid
    assert process.wait(LIMIT) == 0


@pytest.mark.parametrize("rank", ["", "0"], ids=["by hand", "in a step"])
def test_stop_signal_reaches_a_worker_that_starts_again(spool, worker, tmp_path, few_descriptors, rank):
    (tmp_path / "sitecustomize.py").write_text(_SLOW_START)
    process = worker(spool, PYTHONPATH=str(tmp_path), PMI_RANK=rank)
    with Executor(spool=spool.path, resource_dict={"max_attempts": 1}) as executor:
        executor.submit(_leave_no_descriptor).result(LIMIT)
        wait_until((tmp_path / "starts").exists, "the worker starts again")
        process.terminate()
        (tmp_path / "go").touch()
        assert process.wait(LIMIT) == 0


@pytest.mark.mpi
@pytest.mark.skipif(find_mpiexec() is None, reason="there is no mpiexec")
def test_worker_of_several_ranks_without_a_supervisor_goes_on(spool, worker):
    worker(spool, mpi_ranks=2)
    with Executor(spool=spool.path, resource_dict={"cores": 2, "max_attempts": 1}) as executor:
        before = executor.submit(os.getpid).result(LIMIT)
        executor.submit(_leave_a_thread).result(LIMIT)
        assert executor.submit(os.getpid).result(LIMIT) == before


# -- MPI


def _leave_no_communicator():
    from mpi4py import MPI

    kept = []
    with contextlib.suppress(MPI.Exception):
        for _ in range(3000):
            kept.append(MPI.COMM_WORLD.Dup())  # noqa: PERF401  those before the error
    return len(kept)


def _make_communicators():
    from mpi4py import MPI

    made = [MPI.COMM_WORLD.Dup() for _ in range(200)]
    for comm in made:
        comm.Free()
    return MPI.COMM_WORLD.allreduce(1)


def _change_error_handlers():
    from mpi4py import MPI

    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_ARE_FATAL)
    MPI.COMM_SELF.Set_errhandler(MPI.ERRORS_ARE_FATAL)


def _fail_in_mpi():
    from mpi4py import MPI

    errors = []
    for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
        try:
            comm.Send([b"", MPI.BYTE], 99)
        except MPI.Exception as error:
            errors.append(error.Get_error_class() == MPI.ERR_RANK)
    return errors


def _finalize():
    from mpi4py import MPI

    MPI.Finalize()


def _free_the_world():
    from mpi4py import MPI

    try:
        MPI.COMM_WORLD.Free()
    except MPI.Exception as error:
        return error.Get_error_class() == MPI.ERR_COMM


def _replace_the_world():
    from mpi4py import MPI

    MPI.COMM_WORLD = None


def _all_ranks(value, ranks):
    return [value] * ranks if ranks > 1 else value


@pytest.mark.mpi
@_ranks
@pytest.mark.parametrize("spoil", [_leave_no_communicator, _change_error_handlers, _finalize, _free_the_world])
def test_mpi_works_after_a_task_has_spoiled_it(ranks, spoil):
    pytest.importorskip("mpi4py")
    with Executor(max_workers=1, resource_dict={"cores": ranks, "max_attempts": 1}) as executor:
        executor.submit(spoil).result(LIMIT)
        assert executor.submit(_make_communicators).result(LIMIT) == _all_ranks(ranks, ranks)
        assert executor.submit(_fail_in_mpi).result(LIMIT) == _all_ranks([True, True], ranks)


@pytest.mark.mpi
@pytest.mark.skipif(find_mpiexec() is None, reason="there is no mpiexec")
def test_world_that_a_task_has_replaced_is_the_group_again():
    with Executor(max_workers=1, resource_dict={"cores": 2}) as executor:
        executor.submit(_replace_the_world).result(LIMIT)
        assert executor.submit(_make_communicators).result(LIMIT) == [2, 2]


@pytest.mark.mpi
def test_world_cannot_be_freed(group):
    pytest.importorskip("mpi4py")
    assert _of_rank_0(group.submit(_free_the_world).result(LIMIT))
