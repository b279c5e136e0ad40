"""Taking tasks back: a future is cancelled by its user's thread and by the one that collects, whoever is first."""

from __future__ import annotations

import logging
import threading

import pytest

from spoolpool import Executor
from spoolpool.spool import Spool


def test_a_future_that_is_cancelled_while_others_ask_is_cancelled_for_good(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[bool] = []
    with Executor(spool=spool.path) as exe:
        for _ in range(100):
            future = exe.submit(pow, 2, 3)
            future.add_done_callback(lambda done: told.append(done.cancelled()))
            asking = threading.Thread(target=future.running)
            asking.start()
            assert future.cancel()
            assert future.cancelled()
            asking.join()
            assert not future.running()
        assert len(exe) == 0
        assert exe.submit(pow, 2, 3).cancel(), "the thread that collects is still there"
    assert told == [True] * 100
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
