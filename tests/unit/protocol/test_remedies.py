"""Commands that start a group for tasks that no group can run."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path

import msgspec
import pytest

from spoolpool import settings
from spoolpool.client.starvation import StarvationMonitor
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import Lane
from spoolpool.monitor.query import Query
from spoolpool.monitor.selection import select
from spoolpool.monitor.status import StatusCollector
from spoolpool.monitor.wait import Waiter
from spoolpool.protocol import workers
from spoolpool.protocol.remedies import start_group
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.worker_registration import request_stop
from spoolpool.system.processes import ProcessId
from tests.support.fake_worker import LANE, announce
from tests.support.task_files import put

OTHER = "3.99"
WORKER = Path(sys.executable).with_name("spool-worker")


def lane(*, ranks: int = 1, python: str = settings.PYTHON, tags: tuple[str, ...] = (), queue: str = "default") -> str:
    return Lane(queue, ranks, 1, 0, python, tags).name


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (lane(), "Start a group: WORKER '/a spool'"),
        (lane(ranks=8), "Start a group: WORKER '/a spool' --ranks 8"),
        (Lane("night", 2, 3, 1, settings.PYTHON).name, "--ranks 2 --threads 3 --gpus 1 --queue night"),
        (lane(tags=("bigmem", "ssd")), "WORKER '/a spool' --tag bigmem --tag ssd"),
        (lane(tags=("numpy==2.1",)), "Start a group with numpy==2.1 installed: WORKER '/a spool'"),
        (lane(python=OTHER), f"Start a group with Python {OTHER}: python{OTHER} -m spoolpool.cli.worker '/a spool'"),
        ("no lane", ""),
    ],
)
def test_command_has_path_shape_queue_tags_and_python(wanted: str, sentence: str) -> None:
    found = start_group("/a spool", wanted)
    assert sentence.replace("WORKER", shlex.quote(str(WORKER))) in found and bool(found) == bool(sentence)


def test_command_names_the_time_that_the_job_must_have() -> None:
    assert "Start a group in a job with at least 90 s left: " in start_group("/spool", lane(), 90)


def test_entry_of_a_group_has_its_version_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    process = ProcessId.of(os.getpid())
    monkeypatch.setattr(settings, "PYTHON", OTHER)  # of the group, which another version reads
    entry = msgspec.json.encode(workers.WorkerInfo(worker="0" * 16, process=process, user="ada"))
    monkeypatch.undo()
    read = msgspec.json.decode(entry, type=workers.WorkerInfo)
    assert read.python == OTHER
    assert workers.why_unserved(LANE, [read]) is not None


def test_each_view_of_tasks_that_no_group_can_run_tells_the_command(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    announce(spool, ProcessId.of(os.getpid()), python=OTHER)
    task = put(spool, "waiting")
    remedy = start_group(spool.path, LANE)
    (blocked,) = StatusCollector(spool).collect().blocked
    assert f"Python {settings.PYTHON} wanted, groups run {OTHER}" in blocked.why and blocked.remedy == remedy
    header = TaskHeader(task=task, session="inbox", lane=LANE, bucket="bucket")
    with caplog.at_level(logging.WARNING, "spoolpool.session"):
        StarvationMonitor(spool).check([header])
    assert remedy in caplog.text
    assert any(remedy in text for text in Waiter(spool, select(spool, Query())).warnings())


def test_groups_that_were_asked_to_end_serve_nothing_more(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    ending, other = (announce(spool, ProcessId.of(os.getpid())) for _ in range(2))
    header = TaskHeader(task=put(spool, "waiting"), session="inbox", lane=LANE, bucket="bucket")
    monitor = StarvationMonitor(spool)
    request_stop(spool, ending)
    assert StatusCollector(spool).collect().blocked == ()
    with caplog.at_level(logging.WARNING, "spoolpool.session"):
        monitor.check([header])
        assert not caplog.text
        request_stop(spool, other)  # after the look that found it
        monitor._looked.clear()  # a minute later
        monitor.check([header])
    (blocked,) = StatusCollector(spool).collect().blocked
    for text in (blocked.why, caplog.text, *Waiter(spool, select(spool, Query())).warnings()):
        assert "were asked to end (spool workers drain)" in text
    assert blocked.remedy in caplog.text
