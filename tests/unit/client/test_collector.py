"""Collector thread of a session between two calls."""

import pytest

from spoolpool import Executor
from spoolpool.client import collector
from spoolpool.system.watch import DirectoryWatcher
from tests.support.waiting import LIMIT


@pytest.mark.parametrize("is_local", [True, False])
def test_outcomes_come_without_events_of_the_filesystem(is_local, monkeypatch):
    monkeypatch.setattr(collector.mounts, "is_local", lambda _: is_local)
    monkeypatch.setattr(DirectoryWatcher, "_begin", lambda _: None)  # as at the limit of inotify instances
    with Executor(max_workers=1) as executor:
        # the next call finds the thread in the pause after an outcome, or in its long wait
        assert [executor.submit(abs, -n).result(LIMIT) for n in range(10)] == list(range(10))
        executor.submit(abs, 1).add_done_callback(lambda _: None)
