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
import logging
import math
import multiprocessing
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from spoolpool.client.futures import wait
from spoolpool.client.map import ChunkSize
from spoolpool.client.value_iterator import Chunks, ValueIterator
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
        self._lock = threading.RLock()  # of the two sets: map_async() submits in a thread while join() lists them
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
        with self._lock:
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
        iterator = ValueIterator(Chunks(self._submit, func, calls, ChunkSize(size)), ahead, ordered=ordered)
        with self._lock:
            self._iterators.add(iterator)
        return iterator

    def _values(self, func: Function, calls: Iterator[tuple[Any, ...]], chunksize: int | None) -> list[Any]:
        self._require_open()
        return self._begin(func, [*calls], chunksize).rest()

    def _begin(self, func: Function, calls: list[tuple[Any, ...]], chunksize: int | None) -> ValueIterator:
        """Submit calls of ``map``, or the first of them."""
        size, ahead = self._plan(func, len(calls), chunksize)
        return ValueIterator(Chunks(self._submit, func, iter(calls), size), ahead, ordered=True)

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
        with self._lock:
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
        iterators, pending = self._unfinished()
        for iterator in iterators:
            iterator.cancel()
        for future in pending:
            future.cancel()
        if self._own:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait for the end of all calls, after :meth:`close` or :meth:`terminate`."""
        if self._open:
            raise ValueError("Pool is still running")
        for iterator in self._unfinished()[0]:
            iterator.submit_all()
        wait(self._unfinished()[1])
        if self._own:
            self._executor.shutdown()

    def _unfinished(self) -> tuple[list[ValueIterator], list[Future[Any]]]:
        """Return the iterators and the futures of this pool that are still referred to."""
        with self._lock:
            return list(self._iterators), list(self._pending)

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
