"""Resources used by tasks, from the worker to the views."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from spoolpool import Executor
from spoolpool.format.headers import Usage
from spoolpool.monitor.report.page import page
from spoolpool.monitor.report.summary import summarize
from spoolpool.protocol import journal
from spoolpool.protocol.spool import Spool
from tests.conftest import Workers
from tests.end_to_end.test_cli_tasks import run
from tests.support.task_files import put
from tests.support.waiting import LIMIT

MIB = 1 << 20


def fill(size: int) -> int:
    """Use memory."""
    return len(bytearray(size))


def usage_of(future: Any) -> Usage:
    future.result(LIMIT)
    assert isinstance(future.usage, Usage)
    return future.usage


def test_future_has_what_its_task_used() -> None:
    with Executor(max_workers=1, backend="local") as executor:
        large = usage_of(executor.submit(fill, 150 * MIB))
        small = usage_of(executor.submit(fill, MIB))
    assert large.memory > 150 * MIB and large.cpu > 0 and large.wall > 0
    if not small.of_process:
        assert small.memory < large.memory - 100 * MIB


@pytest.mark.mpi
def test_usage_is_summed_over_the_ranks() -> None:
    with Executor(max_workers=1, cores_per_worker=2) as executor:
        found = usage_of(executor.submit(fill, 100 * MIB))
    assert found.memory > 100 * MIB and found.memory_sum > 200 * MIB
    assert 0 < found.cpu_max <= found.cpu


def test_usage_of_a_command_is_that_of_its_process(spool: Spool, worker: Workers) -> None:
    worker(spool)
    for size in (200, 100):  # the second is not the largest child of the worker
        words = ["--", sys.executable, "-c", f"x = bytearray({size} << 20)"]
        assert run("run", spool.path, "--session", "s", "--resource", 'memory="1G"', "--wait", *words).exit_code == 0
    listed = run("ls", spool.path, "--json", "--columns", "memory,cpu,ran", "--sort", "memory").stdout.splitlines()
    small, large = map(json.loads, listed)
    assert 100 * MIB < small["memory"] < 200 * MIB < large["memory"] < 300 * MIB
    assert small["cpu"] > 0 and small["ran"] > 0
    used = [line for line in run("show", spool.path, "--session", "s").stdout.splitlines() if line.startswith("Used")]
    assert len(used) == 2 and all("on 1 core(s) (" in line and "of 1 GiB (" in line for line in used)


def test_report_compares_with_what_was_asked_for(spool: Spool, worker: Workers) -> None:
    group = worker(spool)
    with Executor(spool=spool.path) as executor:
        executor.submit(fill, 100 * MIB, resource_dict={"memory": "1G"}).result(LIMIT)
        executor.submit(pow, 2, 3).result(LIMIT)
    group.terminate()
    group.wait(LIMIT)  # then its journal is complete
    ended = {each.event.name.rpartition(".")[2]: each.event for each in journal.lines(spool) if each.event.cores}
    assert ended["fill"].memory > 100 * MIB and ended["fill"].asked == 1 << 30 and ended["fill"].cores == 1
    summary = summarize(spool)
    uses = {summary.names[name].rpartition(".")[2]: use for name, use in summary.resources.items()}
    assert uses["fill"].memory_share == ended["fill"].memory / (1 << 30)
    assert uses["pow"].memory_share is None and uses["pow"].calls == 1
    assert "Resources used" in "".join(page(summary))
    assert ",cpu," in run("export", spool.path, "--journal", "--format", "csv").stdout.splitlines()[0]


def test_tasks_without_a_measurement_are_listed(spool: Spool) -> None:
    put(spool, "done")
    put(spool, "waiting")
    lines = run("ls", spool.path, "--columns", "task,cpu,memory", "--sort", "memory", "--no-header").stdout.splitlines()
    assert [line.split()[1:] for line in lines] == [["-", "-"]] * 2
