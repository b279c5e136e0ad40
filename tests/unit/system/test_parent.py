"""The parent process that reports how its only child ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import is_running
from tests.support.waiting import LIMIT, wait_until

SCRIPT = """
import os, signal, sys, time
from spoolpool.system.parent import continue_in_child
from spoolpool.system.stop_request import StopRequest, stop_on_signals

directory, end = sys.argv[1], sys.argv[2]

def write(name, text):
    with open(f"{directory}/{name}.new", "w") as file:
        file.write(str(text))
    os.rename(f"{directory}/{name}.new", f"{directory}/{name}")

continue_in_child(lambda status: write("status", status))
if end.startswith("SIG"):
    os.kill(os.getpid(), getattr(signal, end))
elif end != "stop":
    os._exit(int(end))
requested = StopRequest()
stop_on_signals(requested.set)
write("child", os.getpid())
requested.wait(60)
time.sleep(0.5)  # further signals of the same request arrive meanwhile
os._exit(7)
"""

Start = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Function that starts the script in a process group of its own, with the way in which its child ends."""
    started: list[subprocess.Popen[bytes]] = []

    def start(end: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", SCRIPT, tmp_path, end]
        started.append(subprocess.Popen(command, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def child_of(directory: Path) -> int:
    """Return the pid of the child, which waits for signals."""
    wait_until((directory / "child").exists, "the child waits")
    return int((directory / "child").read_text())


@pytest.mark.parametrize(
    ("end", "status"), [("0", 0), ("3", 3), ("255", 255), ("SIGKILL", -9), ("SIGSEGV", -11), ("SIGTERM", -15)]
)
def test_parent_reports_the_status_of_its_child_and_ends_in_the_same_way(
    start: Start, tmp_path: Path, end: str, status: int
) -> None:
    assert start(end).wait(LIMIT) == status
    assert int((tmp_path / "status").read_text()) == status


@pytest.mark.parametrize("whom", ["parent", "child", "both"])
def test_request_to_stop_reaches_the_child_once(start: Start, tmp_path: Path, whom: str) -> None:
    process = start("stop")
    child = child_of(tmp_path)
    if whom != "child":
        os.kill(process.pid, signal.SIGTERM)
    if whom != "parent":
        os.kill(child, signal.SIGTERM)
    assert process.wait(LIMIT) == 7


def test_child_dies_with_its_parent(start: Start, tmp_path: Path) -> None:
    process = start("stop")
    child = child_of(tmp_path)
    process.kill()
    wait_until(lambda: not is_running(child), "the child is dead")
    assert not (tmp_path / "status").exists()
