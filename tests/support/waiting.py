"""Waiting in tests: for a condition, with what was waited for in words; never for seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from spoolpool.system.backoff import Backoff

T = TypeVar("T")

LIMIT = 60.0
"""Seconds after which a test gives up. Far more than anything takes: it ends a hang, and judges no speed."""


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
