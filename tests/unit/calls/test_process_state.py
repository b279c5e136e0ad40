"""State of the process that one task changes and the next one must not see."""

import asyncio
import contextlib
import decimal
import faulthandler
import gc
import io
import locale
import logging
import logging.config
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import tracemalloc
import warnings

import pytest

from spoolpool.calls.process_state import ProcessState
from tests.support.processes import in_fork


class _Hook:
    def find_spec(self, name, path=None, target=None):
        return None


def _removed_directory():
    directory = tempfile.mkdtemp()
    os.chdir(directory)
    shutil.rmtree(directory)


def _raising_alarm():
    def ring(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)


def _directory():
    try:
        return os.getcwd()
    except OSError:
        return None


def _open_event_loop():
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.add_signal_handler(signal.SIGUSR2, print)


SPOILERS = {
    "cwd": (lambda: os.chdir("/usr"), _directory),
    "removed cwd": (_removed_directory, _directory),
    "umask": (lambda: os.umask(0o777), lambda: (mask := os.umask(0o77), os.umask(mask))[0]),
    "new variable": (lambda: os.environ.update(WARM_X="1"), lambda: dict(os.environ)),
    "removed variable": (lambda: os.environ.pop("PATH"), lambda: os.environ.get("PATH")),
    "cleared environment": (os.environ.clear, lambda: dict(os.environ)),
    "other environment": (lambda: setattr(os, "environ", {}), lambda: id(os.environ)),
    "time zone": (lambda: (os.environ.update(TZ="Asia/Tokyo"), time.tzset()), lambda: time.tzname),
    "sys.path": (lambda: sys.path.insert(0, "/nowhere"), lambda: list(sys.path)),
    "new sys.path": (lambda: setattr(sys, "path", []), lambda: id(sys.path)),
    "sys.meta_path": (lambda: sys.meta_path.insert(0, _Hook()), lambda: list(sys.meta_path)),
    "sys.path_hooks": (sys.path_hooks.clear, lambda: list(sys.path_hooks)),
    "sys.argv": (lambda: sys.argv.append("x"), lambda: list(sys.argv)),
    "warnings filters": (lambda: warnings.simplefilter("error"), lambda: list(warnings.filters)),
    "captured warnings": (lambda: logging.captureWarnings(True), lambda: warnings.showwarning),
    "gc": (gc.disable, gc.isenabled),
    "gc threshold": (lambda: gc.set_threshold(1, 2, 3), gc.get_threshold),
    "recursion limit": (lambda: sys.setrecursionlimit(5000), sys.getrecursionlimit),
    "switch interval": (lambda: sys.setswitchinterval(1.0), sys.getswitchinterval),
    "locale": (lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8"), lambda: locale.setlocale(locale.LC_ALL)),
    "profile": (lambda: sys.setprofile(lambda *_: None), sys.getprofile),
    "trace of threads": (lambda: threading.settrace(lambda *_: None), threading.gettrace),
    "excepthook": (lambda: setattr(sys, "excepthook", print), lambda: sys.excepthook),
    "threading.excepthook": (lambda: setattr(threading, "excepthook", print), lambda: threading.excepthook),
    "unraisablehook": (lambda: setattr(sys, "unraisablehook", print), lambda: sys.unraisablehook),
    "displayhook": (lambda: setattr(sys, "displayhook", print), lambda: sys.displayhook),
    "no bytecode": (
        lambda: setattr(sys, "dont_write_bytecode", not sys.dont_write_bytecode),
        lambda: sys.dont_write_bytecode,
    ),
    "format of warnings": (lambda: setattr(warnings, "formatwarning", print), lambda: warnings.formatwarning),
    "flags of gc": (lambda: gc.set_debug(gc.DEBUG_UNCOLLECTABLE), gc.get_debug),
    "profile of threads": (lambda: threading.setprofile(lambda *_: None), threading.getprofile),
    "stack size of threads": (lambda: threading.stack_size(1 << 20), threading.stack_size),
    "flags of dlopen": (lambda: sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL), sys.getdlopenflags),
    "stdin": (lambda: setattr(sys, "stdin", io.StringIO()), lambda: id(sys.stdin)),
    "size of files": (
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.getrlimit(resource.RLIMIT_FSIZE)[1])),
        lambda: resource.getrlimit(resource.RLIMIT_FSIZE),
    ),
    "record factory": (lambda: logging.setLogRecordFactory(print), logging.getLogRecordFactory),
    "own level": (lambda: logging.getLogger("spoolpool").setLevel(1), lambda: logging.getLogger("spoolpool").level),
    "root handlers": (lambda: logging.getLogger().addHandler(logging.NullHandler()), lambda: logging.root.handlers[:]),
    "root level": (lambda: logging.getLogger().setLevel(1), lambda: logging.root.level),
    "disabled logging": (lambda: logging.disable(logging.CRITICAL), lambda: logging.root.manager.disable),
    "disabled loggers": (
        lambda: logging.config.dictConfig({"version": 1}),
        lambda: logging.getLogger("spoolpool.calls.run").disabled,
    ),
    "socket timeout": (lambda: socket.setdefaulttimeout(0.1), socket.getdefaulttimeout),
    "tempdir": (lambda: setattr(tempfile, "tempdir", "/nowhere"), tempfile.gettempdir),
    "SIGTERM": (lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN), lambda: signal.getsignal(signal.SIGTERM)),
    "SIGUSR2": (lambda: signal.signal(signal.SIGUSR2, print), lambda: signal.getsignal(signal.SIGUSR2)),
    "mask": (
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2}),
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    ),
    "alarm": (lambda: signal.alarm(100), lambda: signal.getitimer(signal.ITIMER_REAL)),
    "profiling timer": (
        lambda: signal.setitimer(signal.ITIMER_PROF, 100),
        lambda: signal.getitimer(signal.ITIMER_PROF),
    ),
    "raising alarm": (_raising_alarm, lambda: signal.getitimer(signal.ITIMER_REAL)),
    "stdout": (lambda: setattr(sys, "stdout", io.StringIO()), lambda: id(sys.stdout)),
    "no stderr": (lambda: setattr(sys, "stderr", None), lambda: id(sys.stderr)),
    "limit": (
        lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1])),
        lambda: resource.getrlimit(resource.RLIMIT_CORE),
    ),
    "processor time": (
        lambda: resource.setrlimit(resource.RLIMIT_CPU, (1000, resource.getrlimit(resource.RLIMIT_CPU)[1])),
        lambda: resource.getrlimit(resource.RLIMIT_CPU),
    ),
    "event loop": (_open_event_loop, lambda: (signal.set_wakeup_fd(-1), signal.getsignal(signal.SIGUSR2))),
    "policy of asyncio": (lambda: asyncio.run(asyncio.sleep(0)), lambda: asyncio.events._event_loop_policy),
    "tracing of memory": (tracemalloc.start, tracemalloc.is_tracing),
    "callbacks of gc": (lambda: gc.callbacks.append(lambda *_: None), lambda: list(gc.callbacks)),
    "dumps of stacks": (
        lambda: faulthandler.register(signal.SIGUSR2),
        lambda: faulthandler.unregister(signal.SIGUSR2),
    ),
    "CPUs": (lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}), lambda: os.sched_getaffinity(0)),
}


@pytest.fixture(autouse=True)
def _kept():
    before = os.getcwd(), list(logging.root.handlers)
    timer = signal.setitimer(signal.ITIMER_REAL, 0)  # of the test runner: a worker has none
    yield
    signal.setitimer(signal.ITIMER_REAL, *timer)
    os.chdir(before[0])
    logging.root.handlers[:] = before[1]


@pytest.mark.parametrize("spoiler", SPOILERS.values(), ids=SPOILERS.keys())
def test_change_is_undone(spoiler):
    change, look = spoiler
    state, before = ProcessState(), look()
    try:
        with contextlib.suppress(TimeoutError):
            change()
    finally:
        state.restore(slow=True)
    assert look() == before
    assert state.restore(slow=True) == []


@pytest.mark.parametrize("name", ["limit", "processor time", "dumps of stacks", "CPUs", "profiling timer", "umask"])
def test_slow_parts_are_restored_alone_or_with_the_others(name):
    change, look = SPOILERS[name]
    state, before = ProcessState(), look()
    change()
    state.restore()
    state.restore_slow_parts()
    assert look() == before


def _lower_a_hard_limit():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _lead_a_session():
    os.setsid()


@pytest.mark.parametrize(
    ("spoil", "part"), [(_lower_a_hard_limit, "other limits of resources"), (_lead_a_session, "process session")]
)
def test_state_that_cannot_be_restored_is_named(spoil, part):
    def in_child():
        if os.geteuid() == 0:  # it may raise hard limits, as no other account may
            os.setresuid(65534, 65534, 65534)
        state = ProcessState()
        spoil()
        state.restore(slow=True)
        return list(state.unrestorable)

    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if spoil is _lower_a_hard_limit and hard == 0:
        pytest.skip("the hard limit of this process is 0 already")
    assert in_fork(in_child) == [part]


@pytest.mark.parametrize("end", ["close", "detach"])
def test_closed_stream_is_replaced_by_an_open_one(end, monkeypatch):
    monkeypatch.setattr(sys, "stdout", open(1, "w", closefd=False))  # noqa: SIM115
    monkeypatch.setattr(sys, "__stdout__", sys.stdout)
    state = ProcessState()
    getattr(sys.stdout, end)()
    state.restore()
    print("text")
    sys.stdout.flush()


def test_directory_that_is_gone_is_replaced_by_the_next_one_above_it(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    os.chdir(inner)
    state = ProcessState()
    shutil.rmtree(tmp_path / "a")
    state.restore()
    assert os.getcwd() == str(tmp_path)


def test_import_hook_of_an_installed_package_stays():
    hook = type("Hook", (_Hook,), {"__module__": "pytest"})()
    state = ProcessState()
    sys.meta_path.append(hook)
    try:
        state.restore()
        assert hook in sys.meta_path
        assert state.restore() == []
        sys.meta_path.insert(0, _Hook())
        state.restore()
        assert sys.meta_path[-1] is hook
        assert not any(type(each) is _Hook for each in sys.meta_path)
    finally:
        sys.meta_path.remove(hook)


def test_blocked_signal_is_delivered_to_the_restored_handler():
    got = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: got.append(number))
    try:
        state = ProcessState()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)  # a thread of another test does not block it
        state.restore()
        assert got == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_changes_of_an_initializer_can_be_made_again():
    base = ProcessState()
    os.environ["WARM_Y"] = "1"
    decimal.getcontext().prec = 7
    changes = base.changes()
    base.restore()
    assert "WARM_Y" not in os.environ
    changes.apply()
    assert os.environ["WARM_Y"] == "1"
    base.restore()
    decimal.getcontext().prec = 28
    assert [part.name for part, _ in changes.parts] == ["environment"]
