"""Ctrl-C on the terminal of a script or of a notebook's shell, whose tasks never end by themselves."""

from __future__ import annotations

import importlib.util
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spoolpool import Executor
from spoolpool.launch.mpiexec import find_mpiexec
from spoolpool.protocol.spool import Spool
from tests.conftest import Workers
from tests.support.processes import is_running, processes_of
from tests.support.waiting import LIMIT, wait_until

pytestmark = pytest.mark.timeout(180)

CTRL_C = "\x03"


class Terminal:
    """Program in the foreground of a terminal of its own, which sends Ctrl-C to its whole process group."""

    def __init__(self, *words: str, **variables: str) -> None:
        self._parent, child = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", **variables}
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *words], stdin=child, stdout=child, stderr=child, env=environment
        )
        os.close(child)
        self.output = ""

    def write(self, keys: str) -> None:
        os.write(self._parent, keys.encode())

    def read_until(self, text: str) -> None:
        """Read until a text is on the terminal."""
        end = time.monotonic() + LIMIT
        while text not in self.output:
            assert time.monotonic() < end, f"no {text!r} in {self.output}"
            if not self._read():
                assert text in self.output, self.output

    def wait(self) -> int:
        """Read to the end of the program; return its exit status."""
        end = time.monotonic() + LIMIT
        while self._read():
            assert time.monotonic() < end, f"it goes on: {self.output}"
        return self.process.wait(LIMIT)

    def _read(self) -> bool:
        if not select.select([self._parent], [], [], 0.1)[0]:
            return True
        try:
            data = os.read(self._parent, 65536)
        except OSError:  # EIO: the other end is closed
            return False
        self.output += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._parent)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened = []

    def start(*words: str, **variables: str) -> Terminal:
        (tmp_path / "temporary").mkdir(exist_ok=True)
        opened.append(Terminal(*words, TMPDIR=str(tmp_path / "temporary"), **variables))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def assert_nothing_is_left(temporary: Path) -> None:
    assert list(temporary.iterdir()) == []
    wait_until(lambda: not processes_of(temporary), "its groups ended")


SCRIPT = """
import asyncio, os, sys, threading
from spoolpool import Executor
from spoolpool.system.backoff import Backoff
from tests.support import tasks

how, ranks, started = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def run(path):
    return tasks.mark_and_wait(path, path + ".never")

def stubborn(path):
    tasks.mark(path)
    while True:
        try:
            tasks.wait_for(path + ".never")
        except BaseException:
            pass

def child(path):
    import subprocess
    tasks.mark(path)
    subprocess.run(["tail", "-f", path], stdout=subprocess.DEVNULL)

function = {"stubborn": stubborn, "child": child}.get(how, run)

def submit(executor):
    futures = [executor.submit(function, started)] + [executor.submit(tasks.mark, started + ".next") for _ in range(3)]
    tasks.wait_for(started)
    if how == "at exit":  # a signal before the executor waits there ends another callback of the interpreter
        threading.Thread(target=announce_exit, args=(threading.main_thread().ident,), daemon=True).start()
    else:
        print("ready", flush=True)
    return futures

def announce_exit(main):
    backoff = Backoff(0.01, 0.1)
    while True:
        frame = sys._current_frames()[main]
        while frame is not None and frame.f_code.co_name != "_at_exit":
            frame = frame.f_back
        if frame is not None:
            break
        backoff.sleep()
    print("ready", flush=True)

async def main():
    with Executor(max_workers=1, cores_per_worker=ranks) as executor:
        futures = submit(executor)
        await asyncio.wrap_future(futures[0])

if how == "coroutine":
    asyncio.run(main())
elif how in ("result", "at exit"):
    executor = Executor(max_workers=1, cores_per_worker=ranks)
    futures = submit(executor)
    if how == "result":
        futures[0].result()
elif how == "shutdown":
    executor = Executor(max_workers=1, cores_per_worker=ranks)
    futures = submit(executor)
    executor.shutdown()
else:
    with Executor(max_workers=1, cores_per_worker=ranks) as executor:
        submit(executor)[0].result()
"""

WAYS = ["with", "result", "at exit", "shutdown", "coroutine", "child"]


def _start(terminal: Callable[..., Terminal], tmp_path: Path, how: str, ranks: int) -> Terminal:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    opened = terminal(sys.executable, str(tmp_path / "script.py"), how, str(ranks), str(tmp_path / "started"))
    opened.read_until("ready")
    return opened


def _ranks() -> list[int]:
    return [1, 2] if find_mpiexec() else [1]


@pytest.mark.parametrize(("how", "ranks"), [*((how, 1) for how in WAYS), *(("with", ranks) for ranks in _ranks()[1:])])
def test_first_takes_back_what_waits_and_interrupts_what_runs(
    terminal: Callable[..., Terminal], tmp_path: Path, how: str, ranks: int
) -> None:
    script = _start(terminal, tmp_path, how, ranks)
    script.write(CTRL_C)
    script.read_until("Another Ctrl-C ends at once")
    script.read_until("Running: ")
    script.wait()
    assert f"Running: {'child' if how == 'child' else 'run'} (" in script.output
    assert "4 unfinished call(s)" in script.output
    assert "ending at once" not in script.output
    assert not (tmp_path / "started.next").exists()
    assert_nothing_is_left(tmp_path / "temporary")


@pytest.mark.parametrize(("how", "ranks"), [("stubborn", ranks) for ranks in _ranks()] + [("at exit", 1), ("child", 1)])
def test_second_ends_at_once_and_leaves_nothing(
    terminal: Callable[..., Terminal], tmp_path: Path, how: str, ranks: int
) -> None:
    script = _start(terminal, tmp_path, how, ranks)
    worker = int((tmp_path / "started").read_text().split()[0])
    script.write(CTRL_C)
    script.read_until("Running: ")
    script.write(CTRL_C)
    script.read_until("ending at once")
    script.wait()
    wait_until(lambda: not is_running(worker), "the group has ended")
    assert_nothing_is_left(tmp_path / "temporary")
    assert not processes_of(tmp_path / "started")


ATTACHED = """
import sys
from spoolpool import Executor

with Executor(spool=sys.argv[1], session=sys.argv[2] or None) as executor:
    futures = [executor.submit(pow, 2, number) for number in range(3)]
    print("ready", flush=True)
    futures[0].result()
"""


@pytest.mark.parametrize("session", ["", "kept"])
def test_attached_executor_takes_back_what_waits_unless_its_session_has_a_name(
    terminal: Callable[..., Terminal], tmp_path: Path, spool: Spool, worker: Workers, session: str
) -> None:
    (tmp_path / "script.py").write_text(ATTACHED, encoding="utf-8")
    script = terminal(sys.executable, str(tmp_path / "script.py"), spool.path, session)
    script.read_until("ready")
    script.write(CTRL_C)
    script.wait()
    assert "3 unfinished call(s)" in script.output
    ready = [path for path in Path(spool.layout.ready).rglob("*") if path.is_file()]
    assert len(ready) == (3 if session else 0)
    if session:
        assert "stay in session kept" in script.output
        worker(spool)
        with Executor(spool=spool.path, session=session) as later:
            assert [each.result(LIMIT) for each in later.futures()] == [1, 2, 4]


@pytest.mark.skipif(importlib.util.find_spec("IPython") is None, reason="IPython is not installed")
def test_executor_of_a_notebook_stays_usable_after_an_interrupted_cell(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    started = str(tmp_path / "started")
    shell = terminal(
        sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--colors=nocolor", IPYTHONDIR=str(tmp_path)
    )
    shell.read_until("In [1]")
    lines = [
        "from spoolpool import Executor; from tests.support import tasks",
        "kept = Executor(max_workers=1)",
        f"kept.submit(tasks.mark_and_wait, {started!r}, {started + '.end'!r}).result()",
    ]
    for number, line in enumerate(lines, 2):
        shell.write(f"{line}\n")
        if number < 4:
            shell.read_until(f"In [{number}]")
    wait_until(Path(started).exists, "the task runs")
    shell.write(CTRL_C)
    shell.read_until("In [4]")
    Path(f"{started}.end").touch()
    shell.write("print('value', kept.submit(pow, 2, 5).result())\n")
    shell.read_until("value 32")
    shell.read_until("In [5]")
    left = f"with Executor(max_workers=1) as e: e.submit(tasks.mark_and_wait, {started + '2'!r}, '/never').result()"
    shell.write(f"{left}\n\n")
    wait_until(Path(f"{started}2").exists, "the task of the block runs")
    shell.write(CTRL_C)
    shell.read_until("Running: ")
    shell.read_until("In [6]")
    shell.write("print('again', kept.submit(pow, 2, 6).result())\n")
    shell.read_until("again 64")
    shell.write("exit()\n")
    shell.wait()
    assert_nothing_is_left(tmp_path / "temporary")
