"""Guard of groups: ends the commands of a process that was killed, and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from spoolpool.launch import orphan_guard, orphan_guard_program
from spoolpool.launch.orphan_guard import OrphanGuard
from spoolpool.launch.orphan_guard_program import Groups, start_time
from tests.support.processes import is_running
from tests.support.waiting import LIMIT, wait_until

OWNER = """
import os, signal, subprocess, sys
from spoolpool.launch import orphan_guard
from spoolpool.system.stop_request import FORWARDED, HURRY, STOP_SIGNALS

orphan_guard._WAIT_SECONDS = 0.0
guard = orphan_guard.OrphanGuard()


def add():
    # a process group of two, of which the leader is added
    words = ["/bin/sh", "-c", "sleep 1000 & wait"]
    command = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    guard.add_command(command.pid)
    print(command.pid)


add()
if sys.argv[1] == "killed":
    guard._process.kill()
    guard._process.wait()
    add()
elif sys.argv[1] == "signalled":
    for number in (*STOP_SIGNALS, FORWARDED, HURRY):
        os.kill(guard._process.pid, number)
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def members(group: int) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getpgid(int(name)) == group and is_running(int(name)):
                found.append(int(name))
        except ProcessLookupError:  # it has ended meanwhile
            pass
    return found


@pytest.fixture
def start() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start of processes that lead a process group each, and end with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen(["sleep", "1000"], start_new_session=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait(LIMIT)


@pytest.mark.parametrize("guard", ["alone", "killed", "signalled"])
def test_process_groups_of_a_killed_owner_are_ended(guard: str) -> None:
    done = subprocess.run([sys.executable, "-c", OWNER, guard], stdout=subprocess.PIPE, timeout=LIMIT, check=False)
    assert done.returncode == -signal.SIGKILL
    pids = [int(line) for line in done.stdout.split()]
    assert len(pids) == (2 if guard == "killed" else 1)
    try:
        wait_until(lambda: not any(map(members, pids)), "the process groups have ended")
    finally:
        for pid in filter(members, pids):
            os.killpg(pid, signal.SIGKILL)


def test_process_that_got_the_pid_of_an_ended_command_is_left_alone(
    start: Callable[[], subprocess.Popen[bytes]],
) -> None:
    other, command = start(), start()
    groups = Groups()
    groups.add(f"command {other.pid} 1".encode())  # the one that was added with this pid started at another time
    groups.add(f"command {command.pid} {start_time(command.pid)}".encode())
    assert groups.running() == [command.pid]
    groups.end()
    assert command.wait(LIMIT) == -signal.SIGTERM
    assert is_running(other.pid)


def test_next_guard_gets_the_commands_and_jobs_that_have_not_ended(
    start: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(OrphanGuard, "_start", lambda _, sent: lines.extend(sent))
    guard = OrphanGuard()
    ended, running, new = start(), start(), start()
    guard.add_command(ended.pid)
    guard.add_command(running.pid)
    guard.add_job("f1")
    guard.add_job("f2")
    guard.remove_job("f1")
    ended.kill()
    ended.wait(LIMIT)
    lines.clear()
    guard.add_command(new.pid)
    assert lines == [*(f"command {each.pid} {start_time(each.pid)}" for each in (running, new)), "job f2"]


def test_commands_that_have_ended_are_forgotten_on_both_sides(
    start: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (orphan_guard, orphan_guard_program):
        monkeypatch.setattr(module, "_FEW", 2)
    monkeypatch.setattr(OrphanGuard, "_send", lambda *_: None)
    running = start()
    guard, groups = OrphanGuard(), Groups()
    guard.add_command(running.pid)
    groups.add(f"command {running.pid} {start_time(running.pid)}".encode())
    for _ in range(10):
        command = start()
        guard.add_command(command.pid)
        groups.add(f"command {command.pid} {start_time(command.pid)}".encode())
        command.kill()
        command.wait(LIMIT)
    for commands in (guard._commands, groups.commands):
        assert running.pid in commands
        assert len(commands) <= 4
