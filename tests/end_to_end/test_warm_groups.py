"""A warm group is as good as new: what one task leaves in its processes does not reach the next one."""

import contextlib
import decimal
import gc
import locale
import logging
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from spoolpool import Executor, current_task
from spoolpool.launch.mpiexec import find_mpiexec
from tests.support.waiting import LIMIT

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
        assert found["cwd"] == os.getcwd()
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
