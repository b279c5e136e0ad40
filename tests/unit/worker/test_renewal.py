"""Rule when a group is replaced because of what its tasks have left."""

import pytest

from spoolpool.calls.leftovers import Severity
from spoolpool.worker import renewal
from spoolpool.worker.renewal import Renewal


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(renewal.time, "monotonic", lambda: now[0])
    return now


def test_pauses_grow_to_a_limit():
    assert [renewal.pause(count) for count in (0, 1, 2, 3, 7, 100)] == [0, 10, 20, 40, 600, 600]


def test_first_replacement_comes_at_once(clock):
    assert Renewal(0, replaced=True).is_due(Severity.LEFTOVER)
    assert not Renewal(0, replaced=True).is_due(Severity.NONE)


def test_replacement_of_a_replacement_waits(clock):
    rule = Renewal(2, replaced=True)
    clock[0] += 19
    assert not rule.is_due(Severity.LEFTOVER)
    clock[0] += 2
    assert rule.is_due(Severity.LEFTOVER)


def test_urgent_replacement_does_not_wait(clock):
    assert Renewal(5, replaced=True).is_due(Severity.URGENT)


def test_group_that_nothing_replaces_ends_only_in_danger(clock):
    rule = Renewal(0, replaced=False)
    assert not rule.is_due(Severity.LEFTOVER)
    assert rule.is_due(Severity.URGENT)
