"""Threads, processes, descriptors and memory that tasks leave in their process."""

import _thread
import contextlib
import functools
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from spoolpool.calls import leftovers
from spoolpool.calls.leftovers import Baseline, Severity
from spoolpool.system import children, memory
from spoolpool.system.memory import Memory
from tests.support.processes import in_fork, is_running
from tests.support.waiting import LIMIT, wait_until


@pytest.fixture
def baseline(monkeypatch):
    monkeypatch.setattr(leftovers, "_INTERVAL", 1e6)  # the tests, not the time, decide on exact comparisons
    monkeypatch.setattr(leftovers, "_PATIENCE", 0.0)
    made = Baseline()
    made.find()
    return made


@pytest.fixture
def end():
    """Event that ends the threads of a test."""
    event = threading.Event()
    yield event
    event.set()


def _kinds(baseline):
    return [each.kind for each in baseline.find()]


def test_nothing_is_left_by_nothing(monkeypatch):
    monkeypatch.setattr(leftovers, "_INTERVAL", 1e6)

    def in_child():
        baseline = Baseline()
        baseline.find()
        return baseline.is_suspicious(), baseline.find()

    assert _in_new_process(in_child) == (False, [])


# -- threads


def _work(event):
    event.wait(LIMIT)


def _start_timer(event):
    timer = threading.Timer(LIMIT, print)
    timer.start()
    threading.Thread(target=lambda: (event.wait(LIMIT), timer.cancel()), daemon=True).start()


def _start_raw(event):
    _thread.start_new_thread(_work, (event,))


def _start_pool(event):
    pool = ThreadPoolExecutor(1)
    pool.submit(event.wait, LIMIT)
    pool.shutdown(wait=False)


class _Worker(threading.Thread):
    def __init__(self, event):
        super().__init__(daemon=True)
        self._event = event

    def run(self):
        _work(self._event)


THREADS = {
    "function": lambda event: threading.Thread(target=_work, args=(event,)).start(),
    "daemon": lambda event: threading.Thread(target=_work, args=(event,), daemon=True).start(),
    "partial": lambda event: threading.Thread(target=functools.partial(_work, event)).start(),
    "builtin": lambda _: threading.Thread(target=time.sleep, args=(5.0,)).start(),
    "standard library": lambda event: threading.Thread(target=event.wait, args=(LIMIT,)).start(),
    "subclass": lambda event: _Worker(event).start(),
    "timer": _start_timer,
    "without an object": _start_raw,
    "pool": _start_pool,
}


@pytest.mark.parametrize("start", THREADS.values(), ids=THREADS.keys())
def test_running_thread_is_found_and_named(baseline, end, start):
    before = threading.enumerate()
    start(end)
    # the number of threads says nothing if one of an earlier test has ended meanwhile
    wait_until(lambda: baseline.is_suspicious() or not all(each.is_alive() for each in before), "the thread has begun")
    (found,) = wait_until(baseline.find, "the thread is in its function")
    assert (found.kind, found.severity) == ("threads", Severity.LEFTOVER)
    assert "thread" in found.text
    end.set()
    for thread in set(threading.enumerate()) - set(before):  # else its end would disturb the next test
        thread.join()


def test_idle_threads_of_pools_and_threads_of_libraries_may_stay(baseline):
    with ThreadPoolExecutor(2) as pool:
        pool.submit(int).result()
        queue = multiprocessing.get_context("spawn").Queue()
        queue.put(1)  # starts a thread of the standard library
        assert baseline.find() == []
        queue.close()
        queue.join_thread()


def test_many_idle_threads_are_too_many(baseline, monkeypatch):
    monkeypatch.setattr(leftovers, "THREADS", 1)
    with ThreadPoolExecutor(2) as pool:
        barrier = threading.Barrier(2)
        list(pool.map(lambda _: barrier.wait(LIMIT), range(2)))
        wait_until(lambda: _kinds(baseline) == ["idle threads"], "the threads are idle")


def test_thread_that_is_about_to_end_is_waited_for(baseline, monkeypatch, end):
    monkeypatch.setattr(leftovers, "_PATIENCE", LIMIT)
    threading.Thread(target=_work, args=(end,)).start()
    threading.Timer(0.02, end.set).start()
    assert baseline.find() == []


def test_threads_and_processes_of_an_initializer_belong_to_the_process(monkeypatch):
    monkeypatch.setattr(leftovers, "_INTERVAL", 1e6)

    def in_child():
        baseline, end = Baseline(), threading.Event()
        baseline.find()
        with baseline.accepting():
            threading.Thread(target=_work, args=(end,)).start()
            program = subprocess.Popen(["sleep", str(LIMIT)])
        found = baseline.is_suspicious(), baseline.find()
        program.kill()
        program.wait()
        end.set()
        return found

    assert _in_new_process(in_child) == (False, [])


# -- processes


def _fork():
    pid = os.fork()
    if pid == 0:
        time.sleep(LIMIT)
        os._exit(0)
    return pid


def _start_multiprocessing(method):
    process = multiprocessing.get_context(method).Process(target=time.sleep, args=(LIMIT,), daemon=True)
    process.start()
    return process.pid


PROCESSES = {
    "Popen": lambda: subprocess.Popen(["sleep", str(LIMIT)]).pid,
    "shell": lambda: subprocess.Popen(f"sleep {LIMIT}", shell=True).pid,
    "fork": _fork,
    "multiprocessing": lambda: _start_multiprocessing("fork"),
    "spawn": lambda: _start_multiprocessing("spawn"),
    "fork server": lambda: _start_multiprocessing("forkserver"),
}


def _in_new_process(function):
    """Call a function in a process without other threads and children."""
    found = in_fork(function)
    if isinstance(found, BaseException):
        raise found
    return found


@pytest.mark.parametrize("start", PROCESSES.values(), ids=PROCESSES.keys())
def test_running_process_is_found_and_ended(start):
    def in_child():
        baseline = Baseline()
        baseline.find()
        pid = start()
        found = [(each.kind, str(pid) in each.text) for each in baseline.find()]
        return pid, baseline.is_suspicious(), found, baseline.end(0.0)

    pid, _, found, held_up = _in_new_process(in_child)
    assert found == [("processes", True)]
    assert held_up
    wait_until(lambda: not is_running(pid), "the process has ended")


def test_process_is_suspicious_at_once(monkeypatch):
    monkeypatch.setattr(leftovers, "_INTERVAL", 1e6)

    def in_child():
        baseline = Baseline()
        baseline.find()
        before = baseline.is_suspicious()
        program = subprocess.Popen(["sleep", str(LIMIT)])
        found = before, baseline.is_suspicious()
        program.kill()
        program.wait()
        return found, baseline.is_suspicious()

    assert _in_new_process(in_child) == ((False, True), False)


def test_process_in_a_session_of_its_own_is_not_ended():
    def in_child():
        baseline = Baseline()
        pid = subprocess.Popen(["sleep", str(LIMIT)], start_new_session=True).pid
        return pid, [each.kind for each in baseline.find()], baseline.end(0.0)

    pid, found, _ = _in_new_process(in_child)
    assert found == ["processes"]
    assert is_running(pid)
    os.kill(pid, signal.SIGKILL)


def test_exit_code_of_an_ended_program_is_left_to_its_object():
    def in_child():
        baseline = Baseline()
        program = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
        wait_until(lambda: children.has_ended(program.pid), "the program has ended")
        return baseline.find(), program.wait()

    assert _in_new_process(in_child) == ([], 7)


def test_ended_child_without_an_object_is_waited_for():
    def in_child():
        baseline = Baseline()
        pid = os.fork()
        if pid == 0:
            os._exit(3)
        wait_until(lambda: children.has_ended(pid), "the child has ended")
        return baseline.find(), children.any_exist()

    assert _in_new_process(in_child) == ([], False)


def test_kept_process_is_no_leftover():
    def in_child():
        baseline = Baseline()
        program = subprocess.Popen(["sleep", str(LIMIT)])
        leftovers.keep_process(program.pid)
        found = baseline.find()
        program.kill()
        program.wait()
        return found

    assert _in_new_process(in_child) == []


# -- bounds


@pytest.fixture
def opened():
    """Descriptors that are closed after the test."""
    found = []
    yield found
    for fd in found:
        with contextlib.suppress(OSError):
            os.close(fd)


def test_some_open_descriptors_may_stay(monkeypatch):
    monkeypatch.setattr(leftovers, "_INTERVAL", 1e6)

    def in_child():
        # all free numbers below the greatest one: with gaps among them, fewer new ones are suspicious
        most = max(map(int, os.listdir("/proc/self/fd")))
        while os.open(os.devnull, os.O_RDONLY) <= most:
            pass
        baseline = Baseline()
        baseline.find()
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
        return len(opened), baseline.is_suspicious(), baseline.find()

    assert _in_new_process(in_child) == (20, False, [])


def test_many_open_descriptors_are_found_with_examples(baseline, opened):
    opened += [os.open(os.devnull, os.O_RDONLY) for _ in range(leftovers.DESCRIPTORS + 200)]
    assert baseline.is_suspicious()
    (found,) = baseline.find()
    assert (found.kind, found.severity) == ("descriptors", Severity.LEFTOVER)
    assert os.devnull in found.text


@pytest.mark.parametrize("left", [0, 1, 4])
def test_lack_of_descriptors_is_urgent_and_frees_a_reserve(left):
    def in_child():
        most = max(map(int, os.listdir("/proc/self/fd"))) + 256  # the process of the tests may have many
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        baseline = Baseline()
        opened = []
        with contextlib.suppress(OSError):
            while True:
                opened.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(left):
            os.close(opened.pop(0))  # as of a file that was opened first
        suspicious = baseline.is_suspicious()
        free = 0
        with contextlib.suppress(OSError):
            while True:
                os.open(os.devnull, os.O_RDONLY)
                free += 1
        return suspicious, free >= 16, [(each.kind, each.severity) for each in baseline.find()]

    assert _in_new_process(in_child) == (True, True, [("descriptors", Severity.URGENT)])


@pytest.mark.parametrize(
    ("usable", "found"),
    [
        (Memory(1 << 40, 1 << 39), []),
        (Memory(1 << 29, 1 << 28), ["memory"]),  # more than half of it
        (Memory(1 << 40, 1 << 35), ["memory"]),  # little is left
    ],
)
def test_memory_counts_if_it_is_short(baseline, monkeypatch, usable, found):
    before = memory.private()
    monkeypatch.setattr(memory, "private", lambda: before + (300 << 20))
    monkeypatch.setattr(memory, "usable", lambda: usable)
    assert _kinds(baseline) == found


def test_memory_below_the_bound_may_stay(baseline, monkeypatch):
    before = memory.private()
    monkeypatch.setattr(memory, "private", lambda: before + (200 << 20))
    monkeypatch.setattr(memory, "usable", lambda: Memory(1 << 28, 0))
    assert baseline.find() == []
