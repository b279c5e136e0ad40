"""The base class of the futures has the semantics of the standard library's class, and takes little memory."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError

import pytest

from spoolpool import Executor, wait
from spoolpool.client.batched import batched
from spoolpool.client.ended_futures import EndedFutures
from spoolpool.client.safe_future import FutureLock, SafeFuture
from spoolpool.protocol.spool import Spool
from tests.support.waiting import LIMIT, wait_until

MOST_BYTES = 1000
MOST_TRACKED = 3  # objects for the garbage collector to visit


def in_thread(function: Callable[[], object]) -> Future[object]:
    """Call a function in a new thread."""
    called: Future[object] = Future()

    def call() -> None:
        try:
            called.set_result(function())
        except BaseException as error:  # noqa: BLE001
            called.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return called


def has_waiting_thread(future: SafeFuture) -> bool:
    """Return whether a thread waits for this future alone."""
    return bool(future._condition._waited and future._condition._waited._waiters)


def test_attributes_of_the_base_class_are_those_that_the_slots_replace() -> None:
    assert vars(Future()).keys() == {
        "_condition",
        "_done_callbacks",
        "_exception",
        "_result",
        "_state",
        "_waiters",
    }
    assert vars(SafeFuture()) == {}


def test_pending_future_takes_less_than_a_kilobyte(spool: Spool) -> None:
    with Executor(spool=spool.path) as executor:
        kept = [executor.submit(pow, 2, 3) for _ in range(1000)]
        gc.collect()
        tracemalloc.start()
        try:
            tracked = len(gc.get_objects())
            before, _ = tracemalloc.get_traced_memory()
            kept += [executor.submit(pow, 2, 3) for _ in range(3000)]
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        tracked = len(gc.get_objects()) - tracked
        for future in kept:
            future.cancel()
    assert (after - before) / 3000 < MOST_BYTES
    assert tracked / 3000 < MOST_TRACKED + 0.5


@pytest.mark.parametrize("ended", ["result", "exception", "cancelled"])
def test_waiting_threads_get_the_end_of_a_future(ended: str) -> None:
    future = SafeFuture()
    waiting = [in_thread(future.exception), in_thread(future.exception)]
    wait_until(lambda: has_waiting_thread(future), "no thread waits for the future")
    if ended == "result":
        future.set_result(7)
    elif ended == "exception":
        future.set_exception(KeyError("own"))
    else:
        assert future.cancel()
    for each in waiting:
        if ended == "cancelled":
            with pytest.raises(CancelledError):
                each.result(LIMIT)
        else:
            assert repr(each.result(LIMIT)) == ("None" if ended == "result" else "KeyError('own')")


def test_wait_for_a_pending_future_ends_at_the_timeout() -> None:
    future = SafeFuture()
    for call in (future.result, future.exception):
        with pytest.raises(concurrent.futures.TimeoutError):
            call(0.001)
    assert not future.done() and not future.running()
    future.set_result(1)
    assert future.result(0) == 1


@pytest.mark.parametrize("kind", [SafeFuture, Future])
def test_functions_of_the_standard_library_take_both_kinds_of_futures_together(kind: type[Future[object]]) -> None:
    ours, other = SafeFuture(), kind()
    assert concurrent.futures.wait([ours, other], timeout=0).not_done == {ours, other}
    each = concurrent.futures.as_completed([ours, other], timeout=LIMIT)
    other.set_result(1)
    assert next(each) is other
    first = in_thread(lambda: next(each))
    wait_until(lambda: bool(ours._waiters), "the thread does not wait")
    ours.set_exception(ValueError())
    assert first.result(LIMIT) is ours
    assert next(each, None) is None
    assert concurrent.futures.wait([ours, other]).done == {ours, other}
    assert concurrent.futures.wait([ours, other], return_when="FIRST_EXCEPTION").done == {ours, other}


def test_cancelled_future_ends_a_wait_once_it_is_notified() -> None:
    future, other = SafeFuture(), SafeFuture()
    waiting = in_thread(lambda: concurrent.futures.wait([future, other], LIMIT, "FIRST_COMPLETED"))
    wait_until(lambda: bool(future._waiters), "the thread does not wait")
    assert future.cancel() and future.cancelled() and future.done()
    assert not future.set_running_or_notify_cancel()
    assert waiting.result(LIMIT).done == {future}  # type: ignore[attr-defined]


def test_callbacks_are_called_once_in_their_order_also_after_the_end() -> None:
    future, called = SafeFuture(), []
    for number in range(3):
        future.add_done_callback(lambda done, number=number: called.append((number, done is future)))
    assert future.set_running_or_notify_cancel() and future.running()
    assert not future.cancel()
    future.set_result(None)
    future.add_done_callback(lambda _: called.append((3, True)))
    assert called == [(number, True) for number in range(4)]
    with pytest.raises(InvalidStateError):
        future.set_result(None)


def test_future_has_weak_references_and_further_attributes() -> None:
    future = SafeFuture()
    future.tag = "own"  # type: ignore[attr-defined]
    reference = weakref.ref(future)
    assert reference() is future and isinstance(future, Future) and "pending" in repr(future)
    del future
    gc.collect()
    assert reference() is None


def test_lock_of_a_future_is_exclusive_and_reentrant() -> None:
    lock = FutureLock()
    with lock, lock:
        assert not in_thread(lambda: lock.acquire(blocking=False)).result(LIMIT)
        lock.notify_all()  # without a waiting thread
    assert in_thread(lambda: lock.acquire(blocking=False)).result(LIMIT)
    with pytest.raises(RuntimeError):
        lock.wait(0)  # of another thread


def test_lists_of_many_futures_refer_to_them_once() -> None:
    given = [SafeFuture() for _ in range(100)]
    lists = batched(given, 10)
    assert len({id(each.sources) for each in lists}) == 1  # type: ignore[attr-defined]
    for number, future in enumerate(given):
        future.set_result(number)
    assert sorted(itertools.chain(*(each.result(LIMIT) for each in lists))) == list(range(100))


def test_wait_for_lists_looks_at_each_future_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [SafeFuture() for _ in range(50)]
    lists = batched(given, 1)
    looked = 0

    class Counting(tuple[Future[object], ...]):
        __slots__ = ()

        def __iter__(self):  # type: ignore[no-untyped-def]
            nonlocal looked
            looked += len(self)
            return super().__iter__()

    counting = Counting(given)
    for each in lists:
        each.sources = counting  # type: ignore[attr-defined]
    assert wait(lists, timeout=0).not_done == set(lists)
    assert looked == len(given)


class Assistant:
    """Stand-in for a session whose tasks the waiting task can execute: each call ends the next future."""

    def __init__(self, given: list[SafeFuture], *, ended_by: Callable[[SafeFuture], object]) -> None:
        self.given = given
        self.left = list(given)
        self.ended_by = ended_by

    def __call__(self) -> bool:
        if not self.left:
            return False
        self.ended_by(self.left.pop())
        return True


@pytest.mark.parametrize("end", ["result", "exception", "cancelled"])
def test_assisting_wait_gets_each_future_once_in_the_order_of_the_ends(end: str) -> None:
    def finish(future: SafeFuture) -> None:
        if end == "cancelled":
            future.cancel()
            future.set_running_or_notify_cancel()
        elif end == "exception":
            future.set_exception(ValueError())
        else:
            future.set_result(None)

    given = [SafeFuture() for _ in range(20)]
    finish(given[0])
    with EndedFutures(given, Assistant(given[1:], ended_by=finish)) as ends:
        assert [ends.next(None) for _ in given] == [given[0], *reversed(given[1:])]
        assert ends.next(time.monotonic()) is None
        assert list(ends.rest()) == []
    assert not any(future._waiters for future in given)


def test_assisting_wait_leaves_nothing_in_pending_futures() -> None:
    given: list[Future[object]] = [SafeFuture(), Future()]
    with EndedFutures(given, lambda: False) as ends:
        assert ends.next(time.monotonic()) is None
        assert all(future._waiters for future in given)
    assert not any(future._waiters for future in given)


def test_assisting_wait_reads_the_state_of_each_future_once() -> None:
    reads = 0

    class Counting(SafeFuture):
        __slots__ = ()

        @property
        def _waiters(self) -> list[object]:  # type: ignore[override]
            nonlocal reads
            reads += 1
            return super()._waiters

    given: list[SafeFuture] = [Counting() for _ in range(50)]
    with EndedFutures(given, Assistant(given, ended_by=lambda future: future.set_result(None))) as ends:
        before = reads
        assert len({ends.next(None) for _ in given}) == 50
    assert before == 50
    assert reads <= 50 * 4  # set_result reads it too, and the end of the block at most twice


def test_repr_tells_state_and_types_and_not_the_values() -> None:
    class Secret(str):
        __slots__ = ()

        def __repr__(self) -> str:
            raise AssertionError

    future = SafeFuture()
    assert repr(future) == "<SafeFuture pending>"
    future.set_running_or_notify_cancel()
    assert repr(future) == "<SafeFuture running>"
    future.set_result(Secret("x"))
    assert repr(future) == "<SafeFuture returned Secret>"
    failed, cancelled = SafeFuture(), SafeFuture()
    failed.set_exception(ValueError("x"))
    cancelled.cancel()
    assert (repr(failed), repr(cancelled)) == ("<SafeFuture raised ValueError>", "<SafeFuture cancelled>")
