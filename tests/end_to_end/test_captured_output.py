"""Check that the console blocks of docs/cli.md show the output that the commands print.

The ``console`` blocks of the page are run in their order: each line after ``$`` is a command of the shell, the lines
below it are its output. Ids, times, hosts and the like vary and are masked. To write the present output into the page:
``pytest tests/end_to_end/test_captured_output.py --update-pages``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spoolpool import settings
from spoolpool.format.headers import Failure
from spoolpool.format.names import new_task_id
from spoolpool.protocol import workers
from spoolpool.protocol.spool import Spool
from spoolpool.system.accounts import account_name
from spoolpool.system.processes import hostname
from tests.conftest import Workers
from tests.end_to_end.test_docs import DOCS, SPOOL
from tests.support.fake_worker import LANE, announce, unknown_process
from tests.support.task_files import put
from tests.support.waiting import LIMIT, wait_until

PAGE = DOCS / "cli.md"
STAGED = "## spool status"
"""Heading from which on the spool has prepared tasks; before it, it is empty and has a worker group."""

_BLOCK = re.compile(r"(?<=^```console\n)(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)

_VARIES = (
    (r"\d{3}-[0-9a-f]{14}-[0-9a-f]{10}", "TASK"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE"),
    (r"\b[0-9a-f]{16}\b", "WORKER"),
    (r"\b[0-9a-f]{8,10}\b", "ID"),
    (r"\b\d+ (?:s|min|h|d)\b", "AGE"),
    (r"\b\d+ tasks/(?:s|min|h)", "RATE"),
    (r"py3\.\d+", "PYTHON"),
    (r" +", " "),
)


def masked(text: str) -> str:
    for pattern, word in _VARIES:
        text = re.sub(pattern, word, text)
    return text


TRACEBACK = """Traceback (most recent call last):
  File "fit.py", line 12, in fit
    raise ValueError("no convergence after 200 steps")
ValueError: no convergence after 200 steps
"""


def stage(spool: Spool) -> None:
    """Prepare tasks, groups and journals of three nodes."""
    now = time.time()
    for entry in os.listdir(spool.layout.journal):
        os.unlink(f"{spool.layout.journal}/{entry}")
    nodes = {
        name: announce(
            spool, msgspec.structs.replace(unknown_process(), host=name), ranks=ranks, job=job, queues=queues
        )
        for name, ranks, job, queues in (
            ("node1", 4, "4711", ("default",)),
            ("node2", 4, "4711", ("default", "night")),
            ("node3", 1, "4712", ("default",)),
        )
    }
    wide = LANE.replace(".r1", ".r4")
    for lane, count, name in ((wide, 3, "model.relax"), (LANE.replace(".r1", ".r8"), 2, "md.run"), (LANE, 1, "fit")):
        for number in range(count):
            about = {"arguments": "7"} if name == "fit" else {"label": f"{'Al' if number else 'Cu'} fcc"}
            put(spool, "waiting", lane=lane, name=name, ago=600 + number, session="sweep-42", **about)
    relax: Any = {"lane": wide, "name": "model.relax", "session": "sweep-42"}
    put(spool, "running", ago=620, end="00c3d2a1f7", worker=nodes["node1"], **relax)
    put(spool, "done", ago=640, worker=nodes["node2"], **relax)
    why = Failure(type="ValueError", message="no convergence after 200 steps", traceback=TRACEBACK, host="node3")
    mine: Any = {"worker": nodes["node3"], "session": "fits", "failure": why}
    fit = put(spool, "raised", name="fit", arguments="4.05, steps=200", ago=660, end="0047b1e0d9", **mine)
    put(spool, "failed", lane=wide, name="md.run", ago=5000, end="00aa15c0b2", worker=nodes["node2"], session="md")
    lines: list[dict[str, Any]] = [
        {"event": "task", "t": now - 250 + 12 * number, "task": new_task_id(), "lane": wide} for number in range(20)
    ]
    lines += [
        {"event": "raised", "t": now - 12, "task": fit, "attempt": 1, "type": "ValueError"},
        {"event": "task", "t": now, "started": now - 8, "ended": now, "task": fit, "attempt": 2, "kind": "error"},
    ]
    who = {"by": nodes["node3"], "host": "node3", "type": "ValueError"}
    text = "".join(json.dumps({**who, **line}) + "\n" for line in lines)
    Path(spool.layout.journal, f"{nodes['node3']}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture
def pages(tmp_path: Path, worker: Workers) -> tuple[str, str]:
    """Return the page as it is, and with the present output of its commands."""
    path = tmp_path / "spool"
    spool = Spool.create(path, durability="none", lease=3600.0)
    serving = worker(spool)
    staged = False
    text = PAGE.read_text(encoding="utf-8")

    def now(block: re.Match[str]) -> str:
        nonlocal staged
        if not staged and block.start() > text.index(f"\n{STAGED}\n"):
            serving.terminate()
            serving.wait(LIMIT)
            wait_until(lambda: not workers.read_workers(spool), "the group has removed its entry")
            stage(spool)
            staged = True
        return "".join(_run(line[2:], path) for line in block[1].splitlines() if line.startswith("$ "))

    return text, _BLOCK.sub(now, text)


def test_commands_of_the_page_name_tasks_by_all_ten_digits() -> None:
    """The ids of other tasks are random, and may end in the same few digits."""
    commands = [line for block in _BLOCK.findall(PAGE.read_text(encoding="utf-8")) for line in block.splitlines()]
    abbreviated = re.compile(r"(?<!\S)[0-9a-f]{2,9}(?!\S)")
    assert [line for line in commands if line.startswith("$ ") and abbreviated.search(line)] == []


def _run(command: str, path: Path) -> str:
    """Run a command of the page; return it with its output, with the directories of the page."""
    environment = {name: value for name, value in os.environ.items() if name not in (settings.ENV_SPOOL, "NO_COLOR")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command.replace(SPOOL, shlex.quote(str(path)))],
        cwd=path.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    output = done.stdout.replace(str(path), SPOOL).replace(str(path.parent), "/home/ada")
    return f"$ {command}\n" + output.replace(f"{os.path.dirname(sys.executable)}/", "/shared/project/venv/bin/")


def matches(page: str, output: str) -> bool:
    """Compare a block of the page with the output of this machine, whose names may be words of the page as well."""
    user, home = account_name(os.geteuid()), "/home/ada"
    names = {"ada": f"(?:{re.escape(user)}|{re.escape(user[:8])})", home: home}
    names["login1"] = f"(?:{re.escape(hostname())}|login1)"  # the submitter of the prepared tasks
    parts = re.split(rf"({home}|\bada\b|login1)", masked(page))
    return re.fullmatch("".join(names.get(part) or re.escape(part) for part in parts), masked(output)) is not None


def test_page_shows_the_output_of_the_commands(pages: tuple[str, str], request: pytest.FixtureRequest) -> None:
    before, now = pages
    if request.config.getoption("--update-pages"):
        now = re.sub(rf"\b{re.escape(account_name(os.geteuid()))}\b", "ada", now.replace(hostname(), "login1"))
        PAGE.write_text(now, encoding="utf-8")
        return
    for old, new in zip(_BLOCK.findall(before), _BLOCK.findall(now), strict=True):
        assert matches(old, new), f"{masked(new)}is not what the page shows:\n{masked(old)}"
    assert len(_BLOCK.findall(before)) > 8
