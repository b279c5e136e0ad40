"""``wait`` and ``as_completed`` of ``concurrent.futures`` with a progress bar, drawn by tqdm."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future
from typing import Any, TypeVar

from spoolpool.client.safe_future import SafeFuture
from spoolpool.errors import BadRequest

T = TypeVar("T")
_LABEL = 30  # characters of a label behind a bar

Some = TypeVar("Some", bound=Collection[Future[Any]])


def bar(total: int | None) -> Any:
    """Return a tqdm bar for a terminal or a notebook; it draws nothing elsewhere.

    ``total`` is None for an unknown number of steps. Raises :class:`BadRequest` if tqdm is not installed.
    """
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise BadRequest(
            "progress=True draws with tqdm, which is not installed: pip install 'spoolpool[progress]'."
        ) from None
    return tqdm(total=total, disable=None)  # None: only on a terminal, or in a notebook


def as_completed(
    fs: Iterable[Future[T]], timeout: float | None = None, *, progress: bool = False
) -> Iterator[Future[T]]:
    """Yield futures as they complete, as in ``concurrent.futures``; with ``progress`` a bar counts them.

    A task that waits for tasks of its own also executes them if no other group does.
    """
    from spoolpool.client import futures  # deferred: reading the version must not import the client

    if not progress:
        return futures.as_completed(fs, timeout)
    given = set(fs)
    return _with_bar(futures.as_completed(given, timeout), len(given))


def _with_bar(values: Iterable[T], total: int) -> Iterator[T]:
    with bar(total) as drawn:
        for value in values:
            _advance(drawn, value)
            yield value


def wait(
    fs: Iterable[Future[T]],
    timeout: float | None = None,
    return_when: str = futures.ALL_COMPLETED,
    *,
    progress: bool = False,
) -> futures._base.DoneAndNotDoneFutures[T]:
    """Wait for futures as in ``concurrent.futures``; with ``progress`` a bar counts the completed ones.

    A task that waits for tasks of its own also executes them if no other group does.
    """
    from spoolpool.client import futures

    given = set(fs)
    if not progress:
        return futures.wait(given, timeout, return_when)
    with bar(len(given)) as drawn:
        count(drawn, given)
        return futures.wait(given, timeout, return_when)


def count(drawn: Any, fs: Some) -> Some:
    """Advance a bar (if there is one) whenever one of the futures is done; returns the futures."""

    def advance(done: Future[Any]) -> None:
        with drawn.get_lock():  # callbacks run in several threads
            _advance(drawn, done)

    if drawn is not None:
        for future in fs:
            future.add_done_callback(advance)
    return fs


def _advance(drawn: Any, done: object) -> None:
    """Advance a bar by one future, and show its label behind the bar."""
    if isinstance(done, SafeFuture) and (label := done.label_text()):
        drawn.set_postfix_str(label[:_LABEL], refresh=False)
    drawn.update()


wait.__module__ = "spoolpool"
as_completed.__module__ = "spoolpool"
