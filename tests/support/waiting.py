"""Waiting in tests: for a condition that is described in words; never for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from spoolpool.system.backoff import Backoff

T = TypeVar("T")

LIMIT = 60.0
"""Seconds after which a test fails. Far more than any condition takes: the limit ends a hang, it tests no speed."""


def wait_until(condition: Callable[[], T], message: str, timeout: float = LIMIT) -> T:
    """Return the first true value of ``condition``; fails with the message if there is none in time."""
    backoff = Backoff(0.002, 0.1)
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited {timeout:g} s in vain until {message}"
        backoff.sleep()
