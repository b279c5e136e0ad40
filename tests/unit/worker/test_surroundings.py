"""Surroundings of calls: what they find out after a call must not cost its outcome."""

import threading

import pytest

from spoolpool.calls.leftovers import Baseline, Severity
from spoolpool.calls.run import RankResult
from spoolpool.format.names import TaskFile, new_task_id
from spoolpool.worker.capture import Capture
from spoolpool.worker.surroundings import Surroundings
from tests.support.waiting import LIMIT


@pytest.fixture
def surroundings():
    made = Surroundings(Capture(None))
    yield made
    made.close()


def _run(surroundings, function):
    def call():
        function()
        return RankResult(b"result", (), None)

    return surroundings.run(call, TaskFile(new_task_id(), 1, 1), "name", None)


@pytest.mark.parametrize("method", ["is_suspicious", "find"])
def test_comparison_that_raises_costs_nothing(surroundings, monkeypatch, method):
    def fail(_):
        raise LookupError

    monkeypatch.setattr(Baseline, method, fail)
    assert _run(surroundings, lambda: None).payload == b"result"
    assert surroundings.look() is Severity.NONE


def test_thread_is_told_once_for_each_function(surroundings, caplog):
    event = threading.Event()

    def leave():
        threading.Thread(target=event.wait, args=(LIMIT,), daemon=True).start()

    try:
        for _ in range(3):
            _run(surroundings, leave)
            assert surroundings.look() is Severity.LEFTOVER
        assert [record.message.count("(name) has left thread") for record in caplog.records] == [1]
    finally:
        event.set()


def test_nothing_is_left_once_the_thread_has_ended(surroundings):
    event = threading.Event()
    thread = threading.Thread(target=event.wait, args=(LIMIT,))
    _run(surroundings, thread.start)
    assert surroundings.look() is Severity.LEFTOVER
    event.set()
    thread.join()
    _run(surroundings, lambda: None)
    assert surroundings.look() is Severity.NONE
