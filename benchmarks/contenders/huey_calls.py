"""Module for huey's consumer: the queue, and a task that makes any call."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from huey import FileHuey

queue = FileHuey("benchmark", path=os.environ["BENCHMARK_HUEY"])


@queue.task()  # type: ignore[untyped-decorator]  # huey has no types
def call(fn: Callable[..., Any], *args: Any) -> Any:
    """Make a call in the consumer."""
    return fn(*args)
