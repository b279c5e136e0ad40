"""Calls that are gathered in a shared spool are in it when ``submit`` returns: submitters are killed and stopped."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolpool.monitor.scan import scan
from spoolpool.protocol.spool import Spool
from tests.conftest import Workers
from tests.support.processes import start_script
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]

# it submits calls that mark their numbers, and writes down each one for which submit has returned
PREPARE = """
import os, signal, sys
from spoolpool import Executor, Submission
from spoolpool.client.map import ChunkSize
from spoolpool.client.packing import BUSY
from spoolpool.system import file_content
from tests.support import tasks

path, directory, name = sys.argv[1:]
exe = Executor(spool=path, submission=Submission(pack=True))
exe._packer.functions.of(tasks.mark).size = ChunkSize(40)
exe.submit(tasks.mark_and_wait, f"{directory}/{name}-started", f"{directory}/end")
returned = os.open(f"{directory}/{name}-returned", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
alone = [exe.submit(tasks.mark, f"{directory}/{name}-alone") for _ in range(BUSY)]

def submit(number):
    future = exe.submit(tasks.mark, f"{directory}/{name}-{number}", number)
    os.write(returned, f"{number}\\n".encode())
    return future
"""
KILLED = f"""{PREPARE}
for number in range(1_000_000):
    submit(number)
"""
STOPPED = (
    PREPARE
    + """
real, stopped = file_content.write_all, []

def stop(fd, parts):
    if len(parts) < 2 or stopped:  # not a record
        return real(fd, parts)
    stopped.append(fd)
    if "WHERE" == "before":
        os.kill(os.getpid(), signal.SIGSTOP)
    real(fd, parts)
    if "WHERE" == "after":
        os.kill(os.getpid(), signal.SIGSTOP)

futures = [submit(0), submit(1)]
assert all(each.pack.file is not None for each in futures)
file_content.write_all = stop
futures += [submit(number) for number in range(2, 6)]
open(f"{directory}/end", "w").close()
print([each.result() for each in futures])
exe.shutdown()
"""
)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """A spool with a short lease that one group serves."""
    spool = Spool.create(tmp_path / "spool", durability="none", lease=2)
    workers = Workers(tmp_path)
    workers(spool, PYTHONPATH=str(ROOT))
    yield spool
    workers.stop()


def returned(directory: Path, name: str) -> list[int]:
    path = directory / f"{name}-returned"
    return [*map(int, path.read_text().splitlines())] if path.exists() else []


def runs(directory: Path, name: str) -> Counter[int]:
    found: Counter[int] = Counter()
    for path in directory.glob(f"{name}-*"):
        number = path.name.rpartition("-")[2]
        if number.isdigit():
            found[int(number)] = len(path.read_text().splitlines())
    return found


def test_calls_of_killed_submitters_run_once(spool: Spool, tmp_path: Path) -> None:
    directory = tmp_path / "marks"
    directory.mkdir()
    names = {"one": 3, "two": 45, "three": 130}
    for name, count in names.items():
        process = start_script(tmp_path / "script.py", KILLED, spool.path, directory, name, PYTHONPATH=ROOT)
        wait_until(lambda name=name, count=count: len(returned(directory, name)) >= count, "calls were submitted")
        process.kill()
        process.communicate()
    (directory / "end").touch()
    for name in names:
        wanted = set(returned(directory, name))
        wait_until(lambda name=name, wanted=wanted: wanted <= runs(directory, name).keys(), "each call has run")
    wait_until(lambda: not scan(spool).ready and not scan(spool).claimed, "nothing waits any more")
    for name in names:
        assert set(runs(directory, name).values()) == {1}


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("where", ["before", "after"])
def test_submitter_that_is_stopped_while_it_appends_loses_and_doubles_no_call(
    spool: Spool, tmp_path: Path, where: str
) -> None:
    directory = tmp_path / "marks"
    directory.mkdir()
    text = STOPPED.replace("WHERE", where)
    process = start_script(tmp_path / "script.py", text, spool.path, directory, "one", PYTHONPATH=ROOT)
    try:
        wait_until(lambda: process.poll() is not None or is_stopped(process.pid), "the submitter stopped")
        assert process.poll() is None, process.communicate()
        (directory / "end").touch()  # an idle group recovers
        wait_until(lambda: not any(each.is_open for each in scan(spool).ready.values()), "its pack was sealed")
        process.send_signal(signal.SIGCONT)
        output, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
    assert output == "[0, 1, 2, 3, 4, 5]\n", errors
    assert runs(directory, "one") == Counter(range(6))
