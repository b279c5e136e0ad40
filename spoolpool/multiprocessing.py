"""``Pool``: the interface of ``multiprocessing.Pool`` over worker groups.

::

    from spoolpool import Pool

    with Pool(4) as pool:  # groups on this host
        pool.map(function, values)

    with Pool(spool="/shared/project/spool") as pool:  # groups that serve this spool
        emcee.EnsembleSampler(walkers, dimensions, log_probability, pool=pool)

So a library that takes a pool (emcee, schwimmbad, pymoo, dynesty, scipy's ``workers=pool.map``) runs in worker groups.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import multiprocessing
import queue
import threading
import time
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from spoolpool.client.futures import wait
from spoolpool.client.map import ChunkSize, take_apart
from spoolpool.errors import BadRequest
from spoolpool.executor import Executor
from spoolpool.protocol import workers
from spoolpool.protocol.spool import Spool
from spoolpool.system.quantities import read_count
from spoolpool.wire import run_chunk, run_initialized, run_initializer

log = logging.getLogger(__name__)

Function = Callable[..., Any]
Callback = Callable[[Any], object]

_SHARES = 4
"""Least number of tasks for each group in one ``map``, so that groups with shorter calls take more of them."""
_WORTH = 0.001
"""Seconds of calls that share a task even if fewer groups have some: a task costs about half of that."""
_AHEAD = 256
"""Least number of calls that ``imap`` submits ahead of the value being waited for."""


class Pool:
    """Pool of worker groups with the methods of ``multiprocessing.Pool``.

    Args:
        processes: Worker groups on this host; as ``max_workers`` of :class:`spoolpool.Executor`.
        initializer: Function that each group calls once, before its first call of this pool.
        initargs: Arguments of the initializer.
        maxtasksperchild: Accepted for compatibility. The state of a group is restored after each task, and a group is
            replaced if that is not possible.
        executor: Executor to use in place of a new one. It is not shut down with the pool.
        options: The other arguments of :class:`spoolpool.Executor`, such as ``spool``.

    Without ``chunksize``, ``map`` and ``starmap`` choose it by the measured times of the function: the first calls have
    tasks of their own, and later ones share tasks of about a tenth of a second. Raises the errors of the executor, and
    :class:`~spoolpool.errors.BadRequest` for groups of several ranks.
    """

    __module__ = "spoolpool"

    def __init__(
        self,
        processes: int | None = None,
        initializer: Function | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        *,
        executor: Executor | None = None,
        **options: Any,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if executor is not None and (processes is not None or initializer is not None or options):
            raise BadRequest("Pool takes an executor or the options of a new one, not both.")
        if initializer is not None:
            if "init_function" in options:
                raise BadRequest("Pool takes an initializer or an init_function, not both.")
            options["init_function"] = functools.partial(run_initializer, initializer, tuple(initargs))
        self._initialized = initializer is not None
        self._own = executor is None
        self._executor = Executor(processes, **options) if executor is None else executor
        if self._executor.info["cores"] > 1:
            if self._own:
                self._executor.shutdown()
            raise BadRequest(
                "A pool has groups of one rank, since its functions return one value. "
                "Use spoolpool.Executor(cores_per_worker=...) for functions on several ranks."
            )
        self._open = True
        self._pending: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self._iterators: weakref.WeakSet[ValueIterator] = weakref.WeakSet()
        self._sizes: weakref.WeakKeyDictionary[Any, ChunkSize] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        """Return the state and the executor."""
        return f"<spoolpool.Pool {'open' if self._open else 'closed'}, {self._executor!r}>"

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    # -- calls

    def apply(self, func: Function, args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None) -> Any:
        """Return the value of one call."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Function,
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """Submit one call. One of the callbacks is called with its value or its exception, in another thread.

        The result is ready once the callback has returned.
        """
        self._require_open()
        future = self._submit(func, *args, **(kwds or {}))
        if callback is None and error_callback is None:
            return AsyncResult(future)
        answer = self._new_answer()
        future.add_done_callback(lambda done: _answer(answer, done.result, callback, error_callback))
        return AsyncResult(answer)

    def _new_answer(self) -> Future[Any]:
        """Return a future that this pool sets, and that is not cancelled."""
        answer: Future[Any] = Future()
        answer.set_running_or_notify_cancel()
        self._pending.add(answer)
        return answer

    def map(self, func: Function, iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """Return the values of a function of one argument, in order."""
        return self._values(func, ((each,) for each in iterable), chunksize)

    def starmap(self, func: Function, iterable: Iterable[Iterable[Any]], chunksize: int | None = None) -> list[Any]:
        """Return the values of a function whose arguments are the items of the iterable, in order."""
        return self._values(func, (tuple(each) for each in iterable), chunksize)

    def map_async(
        self,
        func: Function,
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """Do as :meth:`map` in another thread, which calls one of the callbacks at the end."""
        return self._later(func, ((each,) for each in iterable), chunksize, callback, error_callback)

    def starmap_async(
        self,
        func: Function,
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """Do as :meth:`starmap` in another thread, which calls one of the callbacks at the end."""
        return self._later(func, (tuple(each) for each in iterable), chunksize, callback, error_callback)

    def imap(self, func: Function, iterable: Iterable[Any], chunksize: int = 1) -> ValueIterator:
        """Return an iterator over the values of a function of one argument, in order.

        The iterable is read while values are taken, some hundred calls ahead. With a ``chunksize`` above 1, that many
        calls share a task, and an exception ends the iterator.
        """
        return self._iterator(func, iterable, chunksize, ordered=True)

    def imap_unordered(self, func: Function, iterable: Iterable[Any], chunksize: int = 1) -> ValueIterator:
        """Do as :meth:`imap`, with values in the order in which tasks end."""
        return self._iterator(func, iterable, chunksize, ordered=False)

    def _iterator(self, func: Function, iterable: Iterable[Any], chunksize: int, *, ordered: bool) -> ValueIterator:
        self._require_open()
        size = read_count("chunksize", chunksize, 1)
        calls = ((each,) for each in iterable)
        ahead = max(_SHARES * self._groups(), -(-_AHEAD // size))
        iterator = ValueIterator(_Chunks(self._submit, func, calls, ChunkSize(size)), ahead, ordered=ordered)
        self._iterators.add(iterator)
        return iterator

    def _values(self, func: Function, calls: Iterator[tuple[Any, ...]], chunksize: int | None) -> list[Any]:
        self._require_open()
        return self._begin(func, [*calls], chunksize).rest()

    def _begin(self, func: Function, calls: list[tuple[Any, ...]], chunksize: int | None) -> ValueIterator:
        """Submit calls of ``map``, or the first of them."""
        size, ahead = self._plan(func, len(calls), chunksize)
        return ValueIterator(_Chunks(self._submit, func, iter(calls), size), ahead, ordered=True)

    def _plan(self, func: Function, count: int, chunksize: int | None) -> tuple[ChunkSize, int]:
        """Return the size of the chunks of one ``map`` over so many values, and the number of chunks to submit ahead.

        While a function is not measured, chunks grow with the measurements, so that few are submitted ahead.
        """
        if chunksize is not None:
            return ChunkSize(read_count("chunksize", chunksize, 1)), max(1, count)
        shares = _SHARES * self._groups()
        most = max(1, math.ceil(count / shares))
        try:
            known = self._sizes.setdefault(_key(func), ChunkSize(None))
        except TypeError:  # of a class without weak references
            known = ChunkSize(None)
        return known.limited(max(most, known.within(_WORTH))), max(1, count) if known.is_measured else shares

    def _later(
        self,
        func: Function,
        calls: Iterator[tuple[Any, ...]],
        chunksize: int | None,
        callback: Callback | None,
        error_callback: Callback | None,
    ) -> AsyncResult:
        self._require_open()
        read = [*calls]  # an error of the iterable is the caller's
        answer = self._new_answer()

        def work() -> None:
            _answer(answer, lambda: self._begin(func, read, chunksize).rest(), callback, error_callback)

        threading.Thread(target=work, name="spoolpool-map", daemon=True).start()
        return AsyncResult(answer)

    def _submit(self, func: Function, /, *args: Any, **kwds: Any) -> Future[Any]:
        if self._initialized:
            function = args[0] if func is run_chunk else func
            future = self._executor.submit(run_initialized, func, function, args, kwds)
        else:
            future = self._executor.submit(func, *args, **kwds)
        self._pending.add(future)
        return future

    @property
    def _processes(self) -> int:
        """Number of groups, by the name under which libraries look it up in the original."""
        return self._groups()

    def _groups(self) -> int:
        info = self._executor.info
        return max(1, info["max_workers"] or len(workers.read_workers(Spool(info["spool"]))))

    # -- end

    def _require_open(self) -> None:
        if not self._open:
            raise ValueError("Pool not running")

    def close(self) -> None:
        """Accept no more calls; the pending ones go on, and :meth:`join` waits for them."""
        self._open = False

    def terminate(self) -> None:
        """Cancel the calls that are not running, and accept no more."""
        self._open = False
        for iterator in list(self._iterators):
            iterator.cancel()
        for future in list(self._pending):
            future.cancel()
        if self._own:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait for the end of all calls, after :meth:`close` or :meth:`terminate`."""
        if self._open:
            raise ValueError("Pool is still running")
        for iterator in list(self._iterators):
            iterator.submit_all()
        wait(list(self._pending))
        if self._own:
            self._executor.shutdown()

    def __enter__(self) -> Pool:  # noqa: PYI034  Self needs Python 3.11
        """Return the pool."""
        self._require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Terminate the pool, as the original does."""
        self.terminate()
        if self._own:
            self._executor.shutdown()


class AsyncResult:
    """Result of an asynchronous call."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the value and return it, or raise the exception of the call.

        Raises ``multiprocessing.TimeoutError`` after ``timeout`` seconds.
        """
        if not self._wait(timeout):
            raise multiprocessing.TimeoutError
        return self._future.result()

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end of the call, at most ``timeout`` seconds."""
        self._wait(timeout)

    def _wait(self, timeout: float | None) -> bool:
        return bool(wait([self._future], timeout).done)

    def ready(self) -> bool:
        """Return whether the call has ended."""
        return self._future.done()

    def successful(self) -> bool:
        """Return whether the call has ended without an exception. Raises ``ValueError`` if it has not ended."""
        if not self._future.done():
            raise ValueError(f"{self!r} not ready")
        return not self._future.cancelled() and self._future.exception() is None


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Submitted task with its calls."""

    future: Future[Any]
    calls: list[tuple[Any, ...]]

    def values(self) -> tuple[list[Any], list[tuple[Any, ...]], BaseException | None]:
        """Return the values, the calls that have to run again, and the exception of a call, if one raised."""
        try:
            value = self.future.result()
        except Exception as error:  # noqa: BLE001  of the call
            before, rest = take_apart(error, self.calls if len(self.calls) > 1 else [])
            return before, rest, None if rest else error
        return (value if len(self.calls) > 1 else [value]), [], None


class _Chunks:
    """Calls of a function, submitted in chunks."""

    def __init__(
        self,
        submit: Callable[..., Future[Any]],
        function: Function,
        calls: Iterator[tuple[Any, ...]],
        size: ChunkSize,
    ) -> None:
        self._submit = submit
        self._function = function
        self._calls = calls
        self._size = size
        self._lock = threading.Lock()

    def next(self) -> _Chunk | None:
        """Submit the next chunk; returns None if there are no more calls."""
        with self._lock:  # join() submits the rest while another thread takes values
            calls = list(itertools.islice(self._calls, self._size.next()))
        return self.submit(calls) if calls else None

    def drop(self) -> None:
        """Forget the calls that are not submitted."""
        self._calls = iter(())

    def submit(self, calls: list[tuple[Any, ...]]) -> _Chunk:
        """Submit some calls as one task."""
        if len(calls) == 1:
            future = self._submit(self._function, *calls[0])
        else:
            future = self._submit(run_chunk, self._function, calls)
        self._size.measure(future, len(calls))
        return _Chunk(future, calls)


class ValueIterator:
    """Iterator over the values of ``imap``, also with a time limit. Values are taken by one thread at a time."""

    def __init__(self, chunks: _Chunks, ahead: int, *, ordered: bool) -> None:
        self._chunks = chunks
        self._ordered = ordered
        self._pending: deque[_Chunk] = deque()
        """Submitted chunks in order."""
        self._done: queue.SimpleQueue[_Chunk] = queue.SimpleQueue()
        """Chunks in the order of their ends, unless they are ordered."""
        self._values: deque[Any] = deque()
        self._error: BaseException | None = None
        for _ in range(ahead):
            if not self._submit_next():
                break

    def _submit_next(self) -> bool:
        chunk = self._chunks.next()
        if chunk is not None:
            self._add(chunk)
        return chunk is not None

    def _add(self, chunk: _Chunk, *, first: bool = False) -> None:
        if first:
            self._pending.appendleft(chunk)
        else:
            self._pending.append(chunk)
        if not self._ordered:
            done = self._done
            chunk.future.add_done_callback(lambda _: done.put(chunk))

    def submit_all(self) -> None:
        """Submit all calls."""
        while self._submit_next():
            pass

    def cancel(self) -> None:
        """Submit no more calls, and cancel those that are not running."""
        self._chunks.drop()
        for chunk in list(self._pending):
            chunk.future.cancel()

    def rest(self) -> list[Any]:
        """Return all values. The first exception cancels the other calls."""
        try:
            return list(self)
        finally:
            self.cancel()

    def __iter__(self) -> ValueIterator:
        """Return the iterator."""
        return self

    def __next__(self) -> Any:
        """Return the next value, or raise the exception of its call."""
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """Return the next value. Raises ``multiprocessing.TimeoutError`` after ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._values:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if not self._pending:
                raise StopIteration
            self._take(self._await(end))
        return self._values.popleft()

    def _await(self, end: float | None) -> _Chunk:
        """Wait for a chunk and remove it."""
        left = None if end is None else max(0.0, end - time.monotonic())
        if self._ordered:
            if not wait([self._pending[0].future], left).done:
                raise multiprocessing.TimeoutError
            return self._pending.popleft()
        try:
            chunk = self._done.get(timeout=left)
        except queue.Empty:
            raise multiprocessing.TimeoutError from None
        self._pending.remove(chunk)
        return chunk

    def _take(self, chunk: _Chunk) -> None:
        values, rest, self._error = chunk.values()
        self._values.extend(values)
        if self._error is not None and len(chunk.calls) > 1:  # as in the original: it is the end
            self.cancel()
            self._pending.clear()
            return
        for call in reversed(rest):  # one of them was fatal to all
            self._add(self._chunks.submit([call]), first=True)
        self._submit_next()


def _key(func: Function) -> Any:
    """Return the object that identifies a function whose wrapper may be made anew for each call of ``map``."""
    while isinstance(func, functools.partial):
        func = func.func
    if isinstance(func, types.MethodType):
        return func.__func__
    return func if isinstance(func, (types.FunctionType, types.BuiltinFunctionType)) else type(func)


def _answer(
    answer: Future[Any], value: Callable[[], Any], callback: Callback | None, error_callback: Callback | None
) -> None:
    """Call a callback with a value or its exception, then set the answer. An error of the callback is logged."""
    result = error = None
    try:
        result = value()
    except BaseException as raised:  # noqa: BLE001  of the call, for the caller
        error = raised
    chosen, argument = (callback, result) if error is None else (error_callback, error)
    if chosen is not None:
        try:
            chosen(argument)
        except Exception:
            log.exception("The callback %r of a pool raised an exception.", chosen)
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
