"""Tags, by which a call selects groups beyond its shape; and queues on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from spoolpool import Executor, settings
from spoolpool.cli.worker_options import read_weights
from spoolpool.errors import BadRequest
from spoolpool.format.names import Lane
from spoolpool.protocol import workers
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.system import files
from spoolpool.system.processes import ProcessId
from tests.conftest import Workers
from tests.support import tasks
from tests.support.waiting import LIMIT


def test_call_runs_on_a_group_with_all_its_tags(spool: Spool, worker: Workers) -> None:
    plain = worker(spool)
    tagged = worker(spool, "--tag", "bigmem", "--tag=a100", "--tag", "unused")
    with Executor(spool=spool.path, resource_dict={"tags": ["bigmem", "a100"]}) as executor:
        futures = [executor.submit(tasks.pid) for _ in range(8)]
        assert {future.header.lane for future in futures} == {f"default.r1t1g0.py{settings.PYTHON}+a100+bigmem"}
        assert {future.result(LIMIT) for future in futures} == {tagged.pid}
        plain.terminate()
        plain.wait(LIMIT)
        untagged = executor.submit(tasks.pid, resource_dict={"tags": []})
        assert untagged.result(LIMIT) == tagged.pid, "a tagged group also runs calls without tags"


def test_groups_started_by_an_executor_have_the_tags_of_its_calls() -> None:
    with Executor(max_workers=1, resource_dict={"tags": {"here"}}) as executor:
        assert executor.submit(pow, 2, 3).result(LIMIT) == 8


@pytest.mark.parametrize(
    ("wanted", "has", "reason"),
    [
        ((), ("a",), None),
        (("a",), ("a", "b"), None),
        (("a", "b"), ("b",), "tag a wanted, groups are tagged b"),
        (("a", "b"), (), "tag a, b wanted, groups have no tags"),
    ],
)
def test_reason_names_the_missing_tag(wanted: tuple[str, ...], has: tuple[str, ...], reason: str | None) -> None:
    info = WorkerInfo(worker="0" * 16, process=ProcessId.of(1), user="me", tags=has)
    lane = Lane("default", 1, 1, 0, settings.PYTHON, wanted)
    assert info.why_not(lane) == reason
    assert (workers.why_unserved(lane.name, [info]) is None) == (reason is None)


@pytest.mark.parametrize(
    "wrong", ["a100", [1], None, ["a/b"], [""], ["a+b"], ["x" * 65], [f"{number}{'t' * 60}" for number in range(4)]]
)
def test_invalid_or_too_many_tags_are_refused(spool: Spool, wrong: Any) -> None:
    with Executor(spool=spool.path) as executor, pytest.raises(BadRequest, match="tag"):
        executor.submit(pow, 2, 3, resource_dict={"tags": wrong})
    assert not files.list_names(spool.layout.ready)


def test_queue_option_accepts_a_weight() -> None:
    assert read_weights(["fast=3", "slow", "other=1000"]) == {"fast": 3, "slow": 1, "other": 1000}


@pytest.mark.parametrize("wrong", ["fast=", "fast=0", "fast=1001", "fast=-1", "fast=1.5", "fast=x", "=3", "fa/st=3"])
def test_invalid_weight_is_refused(wrong: str) -> None:
    with pytest.raises(BadRequest, match="queue"):
        read_weights([wrong])


def test_worker_entry_has_queues_and_weights(spool: Spool, worker: Workers) -> None:
    worker(spool, "--launcher", "local", "--queue", "fast=3", "--queue", "slow", "--tag", "b", "--tag", "a")
    (info,) = workers.read_workers(spool)
    assert (info.queues, info.weights, info.tags) == (("fast", "slow"), {"fast": 3}, ("a", "b"))
