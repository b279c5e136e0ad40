"""Child processes: a wait for the end of one of several."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from spoolpool.system import children

HOURS = 3600.0 * 24


@pytest.fixture
def sleeping() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Child processes that run until they are killed."""
    with ExitStack() as stack:
        found = [stack.enter_context(subprocess.Popen(["sleep", "inf"])) for _ in range(2)]
        yield found
        for process in found:
            process.kill()


@pytest.mark.timeout(60)
def test_the_end_of_one_child_ends_the_wait(sleeping: list[subprocess.Popen[bytes]]) -> None:
    sleeping[1].kill()
    children.wait_for_one([process.pid for process in sleeping], HOURS)
    assert sleeping[1].wait() < 0
    assert sleeping[0].poll() is None


@pytest.mark.timeout(60)
def test_without_an_end_the_wait_is_limited(sleeping: list[subprocess.Popen[bytes]]) -> None:
    children.wait_for_one([process.pid for process in sleeping], 0.001)
    children.wait_for_one([], 0.001)
    assert [process.poll() for process in sleeping] == [None, None]


@pytest.mark.timeout(60)
def test_the_wait_is_limited_with_a_python_that_cannot_open_processes(
    sleeping: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    children.wait_for_one([process.pid for process in sleeping], 0.001)
    assert [process.poll() for process in sleeping] == [None, None]


@pytest.mark.timeout(60)
def test_a_child_that_was_waited_for_is_no_error(sleeping: list[subprocess.Popen[bytes]]) -> None:
    sleeping[0].kill()
    sleeping[0].wait()
    children.wait_for_one([sleeping[0].pid], 0.001)
