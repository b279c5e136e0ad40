"""Awaitable futures: the future of an event loop that follows the future of a task."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent import futures
from concurrent.futures import Future
from typing import Any

from spoolpool.system.user_code import describe_error


def awaitable(source: Future[Any], loop: asyncio.AbstractEventLoop) -> asyncio.Future[Any]:
    """Return a future of an event loop that gets the outcome of ``source``; cancelling it cancels ``source``.

    ``asyncio.wrap_future`` does the same, except for exceptions that mean something else to an event loop: see
    :func:`raisable`. It gives a ``StopIteration`` to no one, and the coroutine waits for ever.
    """
    awaited: asyncio.Future[Any] = loop.create_future()

    def cancel(awaited: asyncio.Future[Any]) -> None:
        if awaited.cancelled():
            source.cancel()

    def copy() -> None:
        if awaited.done():  # cancelled
            return
        if source.cancelled():
            awaited.cancel()
        elif (error := source.exception()) is not None:
            awaited.set_exception(raisable(error))
        else:
            awaited.set_result(source.result())

    def deliver(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing awaits the outcome any more
            loop.call_soon_threadsafe(copy)

    awaited.add_done_callback(cancel)
    source.add_done_callback(deliver)
    return awaited


def raisable(error: BaseException) -> BaseException:
    """Return the exception to be raised in a coroutine that awaits a task that raised ``error``.

    A ``StopIteration`` would be the coroutine's return value, and a ``CancelledError`` its cancellation, which ends a
    coroutine without a word. So both become the cause of a ``RuntimeError``, as a generator does with the first.
    """
    if not isinstance(error, (StopIteration, futures.CancelledError, asyncio.CancelledError)):
        return error
    changed = RuntimeError(f"The task raised {describe_error(error)}")
    changed.__cause__ = error
    return changed
