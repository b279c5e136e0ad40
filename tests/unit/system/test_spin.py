"""Decision whether a wait spins before it sleeps, with a clock that the test moves."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from spoolpool.system import spin
from spoolpool.system.spin import LONGEST, Spin

STEP = 0.00001


class Clock:
    """Clock of the module, which a look for the event moves by a step."""

    def __init__(self) -> None:
        self.now = 100.0
        self.step = STEP
        self.looks = 0

    def __call__(self) -> float:
        return self.now

    def look(self) -> bool:
        self.looks += 1
        self.now += self.step
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(spin, "perf_counter", clock)
    monkeypatch.setattr(spin, "has_free_core", lambda: True)
    return clock


@pytest.fixture
def short(clock: Clock) -> Spin:
    """Return a decision after a short wait."""
    found = Spin()
    found.record(LONGEST / 2)
    return found


def test_the_first_wait_sleeps(clock: Clock) -> None:
    assert Spin().until(clock.look, 1.0) is None
    assert clock.looks == 0


def test_a_wait_after_a_short_one_spins_until_the_event(clock: Clock, short: Spin) -> None:
    for _ in range(3):
        assert short.until(lambda: clock.look() or "found", 1.0) == "found"


@pytest.mark.parametrize("seconds", [LONGEST / 10, 1.0])
def test_a_spin_is_no_longer_than_its_limit_and_than_the_wait(clock: Clock, short: Spin, seconds: float) -> None:
    begun = clock.now
    assert short.until(clock.look, seconds) is None
    assert 0 < clock.now - begun <= min(LONGEST, seconds) + 2 * STEP


def test_an_idle_process_spins_once_and_sleeps_until_a_short_wait(clock: Clock, short: Spin) -> None:
    assert short.until(clock.look, 1.0) is None
    looks = clock.looks
    for seconds in (1.0, LONGEST * 2):
        short.record(seconds)
        assert short.until(clock.look, 1.0) is None
    assert clock.looks == looks
    short.record(LONGEST / 2)
    assert short.until(lambda: "found", 1.0) == "found"


def test_no_wait_spins_for_a_while_after_another_thread_took_the_core(clock: Clock, short: Spin) -> None:
    clock.step = 0.004
    assert short.until(clock.look, 1.0) is None
    assert clock.looks == 1
    short.record(LONGEST / 2)
    assert short.until(lambda: "found", 1.0) is None
    clock.now += 20.0
    assert short.until(lambda: "found", 1.0) == "found"


def test_the_pauses_grow_while_the_core_is_taken_again_and_again(clock: Clock, short: Spin) -> None:
    def pause() -> float:
        clock.step = 0.004
        while short.until(clock.look, 1.0) is None and not short._may:
            begun = clock.now
            clock.step = STEP
            while not short.until(lambda: "found", 1.0):
                short.record(LONGEST / 2)
                clock.now += 0.001
            return clock.now - begun
        raise AssertionError

    pauses = []
    for _ in range(4):
        short.record(LONGEST / 2)
        pauses.append(pause())
    assert pauses == sorted(pauses) and pauses[-1] > 2 * pauses[0]


@pytest.mark.parametrize("free", [True, False])
def test_the_load_decides_and_is_looked_at_again(
    clock: Clock, short: Spin, monkeypatch: pytest.MonkeyPatch, free: bool
) -> None:
    monkeypatch.setattr(spin, "has_free_core", lambda: free)
    assert short.until(lambda: "found", 1.0) == ("found" if free else None)
    monkeypatch.setattr(spin, "has_free_core", lambda: not free)
    clock.now += 1.0
    assert short.until(lambda: "found", 1.0) == (None if free else "found")


def reads(content: str) -> Callable[..., object]:
    import io

    return lambda *_, **__: io.StringIO(content)


@pytest.mark.parametrize(
    ("cores", "usable", "load", "free"),
    [
        (4, 4, "0.1 0.1 0.1 2/300 77\n", True),
        (4, 4, "9.9 9.9 9.9 4/300 77\n", True),
        (4, 4, "0.1 0.1 0.1 5/300 77\n", False),
        (1, 1, "0.1 0.1 0.1 1/300 77\n", False),
        (4, 1, "0.1 0.1 0.1 1/300 77\n", False),
        (4, 4, "", False),
        (4, 4, "? ? ? ? ?", False),
    ],
)
def test_a_core_is_free_if_no_more_threads_run_than_there_are_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, usable: int, load: str, free: bool
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)))
    monkeypatch.setattr(spin, "open", reads(load), raising=False)
    assert spin.has_free_core() is free


def test_without_proc_no_core_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> object:
        raise FileNotFoundError

    monkeypatch.setattr(spin, "open", missing, raising=False)
    assert not spin.has_free_core()
