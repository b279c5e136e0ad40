"""Bars that count futures as they are done, drawn by rich in a terminal and by the browser in a notebook."""

from __future__ import annotations

import contextlib
import html
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future
from importlib import import_module
from typing import Any, TypeAlias, TypeVar

from spoolpool.errors import BadRequest

T = TypeVar("T")
Some = TypeVar("Some", bound=Collection[Future[Any]])

ProgressBar: TypeAlias = "_TerminalBar | _NotebookBar"
"""Bar that any thread may advance."""

_EVERY = 0.1  # seconds between two drawings in a notebook


@contextlib.contextmanager
def bar(total: int | None, label: str = "") -> Iterator[ProgressBar]:
    """A bar where this program runs: nothing is drawn where there is neither a terminal nor a notebook.

    ``total`` None: nobody knows how many there will be. Raises :class:`BadRequest` where rich is missing.
    """
    drawn: ProgressBar = _NotebookBar(total, label) if _in_notebook() else _TerminalBar(total, label)
    try:
        yield drawn
    finally:
        drawn.close()


def as_completed(
    fs: Iterable[Future[T]], timeout: float | None = None, *, progress: bool = False
) -> Iterator[Future[T]]:
    """That of ``concurrent.futures``; with ``progress`` a bar shows how many are done.

    In a task that waits for tasks of its own it also runs those, if nobody else does.
    """
    from spoolpool.client import futures  # whoever only asks for the version needs no spool

    if not progress:
        return futures.as_completed(fs, timeout)
    given = set(fs)
    return _drawn(futures.as_completed(given, timeout), len(given))


def _drawn(values: Iterable[T], total: int) -> Iterator[T]:
    with bar(total) as drawn:
        for value in values:
            drawn.step()
            yield value


def wait(
    fs: Iterable[Future[T]],
    timeout: float | None = None,
    return_when: str = futures.ALL_COMPLETED,
    *,
    progress: bool = False,
) -> futures._base.DoneAndNotDoneFutures[T]:
    """That of ``concurrent.futures``; with ``progress`` a bar shows how many are done.

    In a task that waits for tasks of its own it also runs those, if nobody else does.
    """
    from spoolpool.client import futures

    given = set(fs)
    if not progress:
        return futures.wait(given, timeout, return_when)
    with bar(len(given)) as drawn:
        count(drawn, given)
        return futures.wait(given, timeout, return_when)


def count(drawn: ProgressBar | None, fs: Some) -> Some:
    """Have a bar go on whenever one of these futures is done; returns them."""
    if drawn is not None:
        for future in fs:
            future.add_done_callback(lambda _: drawn.step())
    return fs


class _TerminalBar:
    def __init__(self, total: int | None, label: str) -> None:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError:
            raise BadRequest(
                "progress=True draws with rich, which is not installed: pip install 'spoolpool[progress]'."
            ) from None
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(label, total=total)
        self._progress.start()

    def step(self, count: int = 1) -> None:
        self._progress.advance(self._task, count)

    def close(self) -> None:
        self._progress.stop()


class _NotebookBar:
    def __init__(self, total: int | None, label: str) -> None:
        notebook: Any = import_module("IPython.display")  # without types
        self._html = notebook.HTML
        self._total = total
        self._label = label
        self._done = 0
        self._drawn = time.monotonic()
        self._lock = threading.Lock()
        self._shown = notebook.display(self._html(self._text()), display_id=True)

    def _text(self) -> str:
        size = "" if self._total is None else f' value="{self._done}" max="{max(1, self._total)}"'
        many = f"{self._done}" if self._total is None else f"{self._done}/{self._total}"
        return f"{html.escape(self._label)} <progress{size}></progress> {many}"

    def step(self, count: int = 1) -> None:
        with self._lock:
            self._done += count
            if time.monotonic() - self._drawn < _EVERY:
                return
            self._drawn = time.monotonic()
        self._shown.update(self._html(self._text()))

    def close(self) -> None:
        self._shown.update(self._html(self._text()))


def _in_notebook() -> bool:
    """Whether this program is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and shell.has_trait("kernel")


wait.__module__ = "spoolpool"
as_completed.__module__ = "spoolpool"
