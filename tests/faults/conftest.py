"""Fixtures of the tests with faults: a directory in memory, a clock that the test moves, and reproducible runs."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolpool.calls.usage import UsageMeter
from spoolpool.protocol import open_packs
from spoolpool.system.processes import ProcessId
from tests.faults.scenarios import NOW, Runner
from tests.support.fake_worker import Clock


@pytest.fixture(scope="session")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Directory in which thousands of spools are made and removed: in memory, where possible."""
    where = Path("/dev/shm")
    if not os.access(where, os.W_OK):
        yield tmp_path_factory.mktemp("faults")
        return
    with tempfile.TemporaryDirectory(prefix="spoolpool-test-", dir=where) as directory:
        yield Path(directory)


@pytest.fixture(autouse=True)
def _unmeasured_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no usage: each run would use another amount, and leave other files."""
    monkeypatch.setattr(UsageMeter, "measure", lambda _, call: call())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Monotonic clock of this process, in which waiting takes no time."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(open_packs, "_now", clock.monotonic)
    return clock


@pytest.fixture(scope="session")
def checked() -> set[object]:
    """States of the files that were checked in this session."""
    return set()


@pytest.fixture
def runner(memory: Path, checked: set[object], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Runner of scenarios. Ids and dates depend on the scenario alone: equal histories leave equal files."""
    runner = Runner(memory, clock, checked)
    monkeypatch.setattr(os, "urandom", runner.random.randbytes)
    monkeypatch.setattr(time, "time_ns", runner.ticks)
    monkeypatch.setattr(time, "time", lambda: NOW)
    monkeypatch.setattr(ProcessId, "of", functools.cache(ProcessId.of))  # reading /proc takes a tenth of the time
    return runner
