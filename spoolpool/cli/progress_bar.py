"""Progress bars of commands that may take long, on a terminal only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

_SLOW = 1.0  # seconds without a bar


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to be called with the steps that are done, and with about how many there are.

    The bar appears on standard error, if that is a terminal and a second has passed, and is removed at the end.
    """
    bar: Any = None
    began = time.monotonic()

    def show(done: int, of: int) -> None:
        nonlocal bar
        if bar is None:
            if time.monotonic() - began < _SLOW or not sys.stderr.isatty():
                return
            bar = click.progressbar(length=max(of, done), label=label, file=sys.stderr)
        bar.length = max(of, done)  # tasks come and go
        bar.update(done - bar.pos)

    try:
        yield show
    finally:
        if bar is not None:
            sys.stderr.write("\r\x1b[K")
            bar.render_finish()
