"""Signal handlers that request a stop: they must not wait for a lock that the interrupted code holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import run_script

# Calls a function again and again, and raises a signal at another of its bytecode instructions each time.
INTERRUPTED = """
import faulthandler, os, queue, signal, sys, threading, types
from spoolpool.system.stop_request import StopRequest
from spoolpool.system.watch import DirectoryWatcher
from spoolpool.worker.loop import Worker

faulthandler.dump_traceback_later(30, exit=True)  # the interrupted function does not end


def trace_instructions(function, at):
    def trace(frame, event, _):
        frame.f_trace_opcodes = True
        if event == "opcode":
            at(frame.f_code.co_name)
        return trace

    sys.settrace(trace)
    try:
        return function()
    finally:
        sys.settrace(None)


def interrupt(function, number):
    left = number

    def at(_):
        nonlocal left
        left -= 1
        if left == 0:
            signal.raise_signal(signal.SIGUSR1)

    return trace_instructions(function, at)


def count(function, end=None):
    # the number of instructions, up to the call of a function of this name
    names = []
    trace_instructions(function, names.append)
    return names.index(end) if end in names else len(names)


def block(timeout):
    raise queue.Empty


def wait_for_request():
    request = StopRequest()
    request._queue = types.SimpleNamespace(get=block)
    for number in range(1, count(lambda: request.wait(0), "block") + 1):
        request = StopRequest()
        signal.signal(signal.SIGUSR1, lambda *_: request.set())
        assert interrupt(lambda: request.wait(1000), number)


def wait_for_late_request():
    request = StopRequest()
    signal.signal(signal.SIGALRM, lambda *_: request.set())
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    assert request.wait(1000)


def start_threads():
    worker = Worker.__new__(Worker)
    worker._watch = DirectoryWatcher()
    signal.signal(signal.SIGUSR1, lambda *_: worker.stop(1000))

    def start():
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

    for number in range(1, count(start) + 1):
        worker._stopping = False
        interrupt(start, number)
        assert worker._stopping or number > 50  # the number of instructions varies: the new thread may be quicker


globals()[sys.argv[1]]()
os._exit(0)  # past the threads that wait for their time
"""


@pytest.mark.parametrize("interrupted", ["wait_for_request", "wait_for_late_request", "start_threads"])
def test_a_signal_handler_requests_a_stop_at_any_instruction(tmp_path: Path, interrupted: str) -> None:
    done = run_script(tmp_path / "interrupted.py", INTERRUPTED, interrupted)
    assert done.returncode == 0, done.stderr


AT_SHUTDOWN = """
import sys
from spoolpool.system.stop_request import FORWARDED, HURRY, STOP_SIGNALS, stop_on_signals
from tests.support.tasks import send_signals_at_shutdown

stop_on_signals(lambda: None)
send_signals_at_shutdown((FORWARDED, HURRY, *STOP_SIGNALS), sys.argv[1])
"""


def test_request_during_the_shutdown_of_the_interpreter_is_ignored(tmp_path: Path) -> None:
    done = run_script(tmp_path / "script.py", AT_SHUTDOWN, tmp_path / "sent")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("sent-*"))) == 1
