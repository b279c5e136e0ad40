"""The executor keeps the guarantees of the standard library for executors and futures, also after failures."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import logging
import os
import pickle
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor
from spoolpool.calls.results import remote_traceback
from spoolpool.client.futures import TaskFuture
from spoolpool.client.temporary_spool import memory_directories
from spoolpool.errors import (
    BadRequest,
    BrokenSpool,
    LauncherError,
    NotPicklable,
    NotUnpicklable,
    RemoteTraceback,
    SpoolpoolError,
    WorkerLost,
)
from spoolpool.launch import launcher
from spoolpool.protocol import cancel
from spoolpool.system import files
from tests.support import tasks
from tests.support.processes import in_fork, kill_processes_of, processes_of, run_script, start_script
from tests.support.waiting import LIMIT, wait_until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def shared() -> Iterator[Executor]:
    """Executor of two groups for tests that do not change it."""
    with Executor(max_workers=2) as executor:
        yield executor


@pytest.fixture
def single() -> Iterator[Executor]:
    """Executor of one group, in which a second task waits for the first."""
    with Executor(max_workers=1) as executor:
        yield executor


class Gate:
    """Task that has started, and ends when the test opens the gate."""

    def __init__(self, executor: Executor, directory: Path, value: Any = None) -> None:
        self._started, self._end = directory / f"started-{id(self)}", directory / f"end-{id(self)}"
        self.future = executor.submit(tasks.mark_and_wait, self._started, self._end, value)
        wait_until(self._started.exists, "the task that occupies the group has started")

    def open(self) -> None:
        self._end.touch()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Callable[..., Gate]]:
    """Factory of gates, which are opened at the end of the test."""
    gates = []

    def make(executor: Executor, value: Any = None) -> Gate:
        gates.append(Gate(executor, tmp_path, value))
        return gates[-1]

    yield make
    for each in gates:
        each.open()


def directory_of(executor: Executor) -> Path:
    """Return the temporary directory of an embedded executor."""
    return Path(executor.info["spool"])


# ------------------------------------------------------------------------------------- submit


def test_submit_returns_a_standard_library_future(shared: Executor) -> None:
    future = shared.submit(pow, 2, 10)
    assert isinstance(future, Future)
    assert isinstance(shared, concurrent.futures.Executor)
    assert future.result() == 1024
    assert future.done() and not future.running() and not future.cancelled()
    assert future.exception() is None


def test_arguments_of_any_name_arrive_unchanged(shared: Executor) -> None:
    given = {"fn": 1, "self": 2, "args": (3,), "timeout": None}
    assert shared.submit(tasks.keywords, **given).result() == given
    assert shared.submit(divmod, 7, 2).result() == (3, 1)


def test_an_invalid_call_fails_in_its_future_like_the_call_itself(shared: Executor) -> None:
    assert isinstance(shared.submit(pow).exception(), TypeError)
    assert isinstance(shared.submit(42).exception(), TypeError)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        shared.submit()  # type: ignore[call-arg]


def test_tasks_run_in_other_processes_and_in_all_groups(shared: Executor, gate: Callable[..., Gate]) -> None:
    first = gate(shared)
    second = gate(shared)  # starts although the first is not done
    first.open()
    second.open()
    assert os.getpid() not in {shared.submit(tasks.pid).result() for _ in range(4)}


# ---------------------------------------------------------------------------------------- map


def test_map_returns_values_in_the_order_of_its_arguments(shared: Executor) -> None:
    assert list(shared.map(pow, range(30), [2] * 30)) == [i**2 for i in range(30)]


def test_map_ends_with_its_shortest_iterable(shared: Executor) -> None:
    assert list(shared.map(pow, [2, 3, 4], itertools.repeat(2))) == [4, 9, 16]
    assert list(shared.map(pow, [], [2])) == []
    assert list(shared.map(pow)) == []


def test_map_submits_all_calls_before_the_first_value_is_requested(single: Executor, tmp_path: Path) -> None:
    single.map(tasks.mark, [tmp_path / "ran"])
    wait_until((tmp_path / "ran").exists, "a task ran although its value was not requested")


def test_map_raises_a_failure_at_its_position(shared: Executor) -> None:
    values = shared.map(divmod, [6, 6], [3, 0])
    assert next(values) == (2, 0)
    with pytest.raises(ZeroDivisionError):
        next(values)
    assert list(values) == []


def test_map_after_a_timeout_cancels_waiting_tasks(single: Executor, gate: Callable[..., Gate], tmp_path: Path) -> None:
    held = gate(single)
    values = single.map(tasks.mark, [tmp_path / "first", tmp_path / "second"], timeout=0.05)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(values)
    held.open()
    assert single.submit(pow, 2, 2).result() == 4
    assert not (tmp_path / "first").exists() and not (tmp_path / "second").exists()


def test_map_within_its_timeout_returns_all_values(shared: Executor) -> None:
    assert list(shared.map(abs, [-1, -2], timeout=LIMIT)) == [1, 2]


@pytest.mark.parametrize("chunksize", [1, 2, 3, 7, 100])
def test_map_returns_the_same_values_for_every_chunksize(shared: Executor, chunksize: int) -> None:
    assert list(shared.map(pow, range(7), [3] * 7, chunksize=chunksize)) == [i**3 for i in range(7)]


def test_map_packs_a_chunk_into_one_task(single: Executor, gate: Callable[..., Gate]) -> None:
    held = gate(single)
    values = single.map(abs, range(10), chunksize=4)
    assert len(single) == 3
    held.open()
    assert list(values) == list(range(10))


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_consumes_at_most_its_buffersize_ahead(shared: Executor, chunksize: int) -> None:
    drawn = 0

    def numbers() -> Iterator[int]:
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    values = shared.map(abs, numbers(), buffersize=2, chunksize=chunksize)
    assert drawn == 2 * chunksize
    assert list(itertools.islice(values, 5)) == [1, 2, 3, 4, 5]
    assert drawn <= (5 + 2) * chunksize


def test_map_that_is_abandoned_cancels_waiting_tasks(
    single: Executor, gate: Callable[..., Gate], tmp_path: Path
) -> None:
    values = single.map(tasks.wait_for, [tmp_path, tmp_path / "end", tmp_path / "end"])
    next(values)
    values.close()  # type: ignore[attr-defined]  # a generator's
    (tmp_path / "end").touch()
    wait_until(lambda: len(single) == 0, "no task waits")


@pytest.mark.parametrize("wrong", [{"chunksize": 0}, {"chunksize": -1}, {"buffersize": 0}])
def test_map_rejects_invalid_sizes(shared: Executor, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        shared.map(abs, [1], **wrong)  # type: ignore[arg-type]


# --------------------------------------------------------------------- waiting for futures


def test_result_and_exception_after_a_timeout_are_still_available(single: Executor, gate: Callable[..., Gate]) -> None:
    held = gate(single, "late")
    with pytest.raises(concurrent.futures.TimeoutError):
        held.future.result(timeout=0.01)
    with pytest.raises(concurrent.futures.TimeoutError):
        held.future.exception(timeout=0)
    held.open()
    assert held.future.result() == "late"


def test_as_completed_yields_finished_futures_first(shared: Executor, gate: Callable[..., Gate]) -> None:
    held = gate(shared, "slow")
    quick = shared.submit(pow, 2, 2)
    order = as_completed([held.future, quick])
    assert next(order) is quick
    held.open()
    assert next(order) is held.future
    assert list(order) == []


def test_as_completed_times_out(single: Executor, gate: Callable[..., Gate]) -> None:
    held = gate(single)
    with pytest.raises(concurrent.futures.TimeoutError, match="1 \\(of 1\\) futures unfinished"):
        list(as_completed([held.future], timeout=0.01))


def test_wait_returns_at_the_first_of_several(shared: Executor, gate: Callable[..., Gate]) -> None:
    held = gate(shared)
    quick = shared.submit(pow, 2, 2)
    done, not_done = wait([held.future, quick], return_when=concurrent.futures.FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {held.future})


def test_wait_returns_at_the_first_exception(shared: Executor, gate: Callable[..., Gate]) -> None:
    held = gate(shared)
    bad = shared.submit(divmod, 1, 0)
    done, not_done = wait([held.future, bad], return_when=concurrent.futures.FIRST_EXCEPTION)
    assert (done, not_done) == ({bad}, {held.future})


def test_wait_returns_when_all_are_done_or_after_its_timeout(shared: Executor, gate: Callable[..., Gate]) -> None:
    held = gate(shared)
    quick = shared.submit(pow, 2, 2)
    quick.result()
    assert wait([held.future, quick], timeout=0.01) == ({quick}, {held.future})
    held.open()
    assert wait([held.future, quick]) == ({quick, held.future}, set())


# ---------------------------------------------------------------------------------- callbacks


def test_a_callback_is_called_once_with_its_future(shared: Executor, gate: Callable[..., Gate]) -> None:
    held = gate(shared)
    called: list[Future[Any]] = []
    held.future.add_done_callback(called.append)
    held.future.add_done_callback(called.append)
    assert called == []
    held.open()
    held.future.result()
    wait_until(lambda: len(called) == 2, "both callbacks were called")
    held.future.add_done_callback(called.append)  # already done: called at once
    assert called == [held.future] * 3


def test_a_raising_callback_is_logged_and_does_not_affect_others(
    shared: Executor, gate: Callable[..., Gate], caplog: pytest.LogCaptureFixture
) -> None:
    held = gate(shared)
    called: list[str] = []
    held.future.add_done_callback(lambda _: called.append("first"))
    held.future.add_done_callback(lambda _: divmod(1, 0))
    held.future.add_done_callback(lambda _: called.append("third"))
    held.open()
    wait_until(lambda: called == ["first", "third"], "the other callbacks were called")
    assert "ZeroDivisionError" in caplog.text
    assert shared.submit(pow, 2, 2).result() == 4


def test_a_callback_may_submit(shared: Executor) -> None:
    further: Future[Any] = Future()

    def go_on(done: Future[int]) -> None:
        shared.submit(pow, done.result(), 2).add_done_callback(lambda last: further.set_result(last.result()))

    shared.submit(pow, 2, 3).add_done_callback(go_on)
    assert further.result(LIMIT) == 64


def test_a_callback_may_shut_down_its_executor() -> None:
    executor = Executor(max_workers=1)
    over = threading.Event()

    def end(_: Future[int]) -> None:
        executor.shutdown()
        over.set()

    executor.submit(pow, 2, 3).add_done_callback(end)
    assert over.wait(LIMIT)
    executor.shutdown()


# --------------------------------------------------------------------------- cancel and running


def test_a_waiting_task_can_be_cancelled_and_never_runs(
    single: Executor, gate: Callable[..., Gate], tmp_path: Path
) -> None:
    held = gate(single)
    called: list[Future[Any]] = []
    taken_back, stays = (single.submit(tasks.mark, tmp_path / name) for name in ("never", "ran"))
    taken_back.add_done_callback(called.append)
    assert len(single) == 2
    assert not taken_back.running()
    assert taken_back.cancel()
    assert taken_back.cancel()  # repeated: the same answer
    assert taken_back.cancelled() and taken_back.done() and not taken_back.running()
    assert called == [taken_back]
    assert len(single) == 1
    with pytest.raises(CancelledError):
        taken_back.result()
    with pytest.raises(CancelledError):
        taken_back.exception()
    assert wait([taken_back]).done == {taken_back}
    assert list(as_completed([taken_back])) == [taken_back]
    held.open()
    stays.result()
    assert (tmp_path / "ran").exists() and not (tmp_path / "never").exists()


def test_a_running_or_finished_task_cannot_be_cancelled(single: Executor, gate: Callable[..., Gate]) -> None:
    held = gate(single, "value")
    assert not held.future.cancel()
    held.open()
    assert held.future.result() == "value"
    assert not held.future.cancel() and not held.future.cancelled()


def test_running_is_true_from_the_claim_to_the_end(single: Executor, gate: Callable[..., Gate]) -> None:
    held = gate(single)
    second = single.submit(pow, 2, 2)
    assert held.future.running() and not held.future.done()
    assert not second.running() and not second.done()
    held.open()
    wait([held.future, second], LIMIT)  # one look may find both outcomes, in any order
    assert not held.future.running() and held.future.done()
    assert not second.running() and second.done()


def test_waiting_for_a_cancelled_task_raises_cancelled_error(single: Executor, gate: Callable[..., Gate]) -> None:
    gate(single)
    waiting = single.submit(pow, 2, 2)
    seen: list[BaseException] = []
    thread = threading.Thread(target=lambda: seen.append(_raised_by(waiting.result)))
    thread.start()
    assert waiting.cancel()
    thread.join(LIMIT)
    assert [type(each) for each in seen] == [CancelledError]


def _raised_by(call: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011  CancelledError is expected
        call()
    return caught.value


def test_cancel_has_no_race_with_running_tasks(shared: Executor, caplog: pytest.LogCaptureFixture) -> None:
    """Each future is either cancelled or has its value, and the collecting thread survives."""

    def ask(futures: list[Future[int]]) -> None:
        for future in futures:
            assert future.cancel() == future.cancelled()
            future.running()

    for _ in range(20):
        futures = [shared.submit(pow, i, 2) for i in range(10)]
        threads = [threading.Thread(target=ask, args=(futures[::step],)) for step in (1, 2, -1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        for i, future in enumerate(futures):
            if not future.cancelled():
                assert future.result(LIMIT) == i**2
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert shared.submit(pow, 2, 2).result() == 4


def test_an_outcome_is_delivered_while_running_is_called(shared: Executor) -> None:
    """``running()`` lists the spool; it must not block the collecting thread."""
    for _ in range(100):
        future = shared.submit(pow, 2, 2)
        while not future.done():
            future.running()
        assert future.result(LIMIT) == 4


def test_a_task_cancelled_from_outside_after_a_call_of_running_is_still_finished(
    single: Executor, gate: Callable[..., Gate]
) -> None:
    held = gate(single)
    future = single.submit(pow, 2, 2)
    assert isinstance(future, TaskFuture)
    assert future.set_running_or_notify_cancel()  # as running() does if it lists the spool during the rename
    session = future.session
    assert cancel.cancel_task(session.spool, future.header, future.task_file)
    with pytest.raises(CancelledError):
        future.result(LIMIT)
    held.open()
    assert single.submit(pow, 2, 2).result() == 4


# ----------------------------------------------------------------------------------- shutdown


def test_leaving_the_context_waits_for_all_tasks(tmp_path: Path) -> None:
    with Executor(max_workers=1) as executor:
        where = directory_of(executor)
        futures = [executor.submit(pow, i, 2) for i in range(20)]
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [i**2 for i in range(20)]
    assert not where.exists()
    assert processes_of(where) == []


def test_an_exception_in_the_context_is_raised_after_the_tasks_are_done() -> None:
    futures = []

    def use() -> None:
        with Executor(max_workers=1) as executor:
            futures.append(executor.submit(pow, 2, 2))
            raise tasks.OwnError("from within")

    with pytest.raises(tasks.OwnError, match="from within"):
        use()
    assert futures[0].done()


def test_submit_after_shutdown_raises() -> None:
    executor = Executor(max_workers=1)
    executor.shutdown()
    for use in (
        lambda: executor.submit(pow, 2, 2),
        lambda: executor.map(abs, [1]),
        lambda: setattr(executor, "max_workers", 2),
    ):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            use()
    assert len(executor) == 0
    executor.shutdown()
    executor.shutdown(wait=False, cancel_futures=True)


def test_shutdown_without_waiting_returns_while_tasks_run_and_loses_none(
    gate: Callable[..., Gate], tmp_path: Path
) -> None:
    executor = Executor(max_workers=1)
    where = directory_of(executor)
    held = gate(executor, "first")
    second = executor.submit(tasks.mark, tmp_path / "second", "second")
    executor.shutdown(wait=False)
    assert not held.future.done() and not second.done()
    with pytest.raises(RuntimeError):
        executor.submit(pow, 2, 2)
    held.open()
    assert [held.future.result(), second.result()] == ["first", "second"]
    wait_until(lambda: not where.exists(), "the temporary spool was removed")
    assert processes_of(where) == []


def test_shutdown_may_cancel_waiting_tasks(gate: Callable[..., Gate], tmp_path: Path) -> None:
    executor = Executor(max_workers=1)
    held = gate(executor, "ran")
    waiting = [executor.submit(tasks.mark, tmp_path / "never") for _ in range(3)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    held.open()
    executor.shutdown(wait=True)
    assert held.future.result(0) == "ran"
    assert not (tmp_path / "never").exists()


def test_an_unused_executor_leaves_no_files(tmp_path: Path) -> None:
    executor = Executor(max_workers=2)
    where = directory_of(executor)
    assert stat.S_IMODE(where.stat().st_mode) == 0o700
    executor.shutdown()
    assert not where.exists()
    assert processes_of(where) == []


def test_an_unreferenced_executor_finishes_its_tasks_and_is_removed(gate: Callable[..., Gate], tmp_path: Path) -> None:
    executor = Executor(max_workers=1)
    where = directory_of(executor)
    held = gate(executor, 1)
    second = executor.submit(tasks.mark, tmp_path / "ran", 2)
    del executor
    gc.collect()
    held.open()
    assert [held.future.result(), second.result()] == [1, 2]
    wait_until(lambda: not where.exists(), "the temporary spool was removed")
    assert processes_of(where) == []


def test_an_unreferenced_idle_executor_is_removed() -> None:
    executor = Executor(max_workers=1)
    where = directory_of(executor)
    assert executor.submit(pow, 2, 2).result() == 4
    del executor
    gc.collect()
    wait_until(lambda: not where.exists(), "the temporary spool was removed")
    assert processes_of(where) == []


def test_an_executor_in_a_reference_cycle_can_be_collected_by_any_thread() -> None:
    """Garbage collection may run in a thread that holds a lock of the same session."""
    executor = Executor(max_workers=1)
    where = directory_of(executor)
    executor.submit(pow, 2, 2).result()
    runtime = executor._runtime
    assert runtime is not None
    executor.me = executor  # type: ignore[attr-defined]
    del executor
    with runtime.session.pending.lock:
        gc.collect()
    wait_until(lambda: not where.exists(), "the temporary spool was removed")


# ------------------------------------------------------------------------------ several threads


def test_several_threads_may_submit_at_once(shared: Executor) -> None:
    results: dict[int, list[int]] = {}

    def use(who: int) -> None:
        futures = [shared.submit(pow, who, i) for i in range(25)]
        results[who] = [future.result() for future in futures]

    threads = [threading.Thread(target=use, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert results == {who: [who**i for i in range(25)] for who in range(8)}


def test_tasks_submitted_before_a_shutdown_by_another_thread_are_done() -> None:
    executor = Executor(max_workers=1)
    accepted: list[Future[int]] = []
    refused: list[str] = []

    def submit_on() -> None:
        try:
            while True:
                accepted.append(executor.submit(pow, 2, 2))
        except RuntimeError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=submit_on) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(accepted) > 20, "tasks were submitted")
    executor.shutdown()
    for thread in threads:
        thread.join(LIMIT)
    assert refused == ["cannot schedule new futures after shutdown"] * 3
    assert [future.result(0) for future in accepted] == [4] * len(accepted)


def test_an_event_loop_may_await_a_future(shared: Executor) -> None:
    async def use() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(shared, pow, i, 2) for i in range(5)))

    assert asyncio.run(use()) == [0, 1, 4, 9, 16]


# ---------------------------------------------------------------------------------------- fork


def test_a_forked_child_can_submit(shared: Executor) -> None:
    shared.submit(pow, 2, 2).result()
    parents = shared.info["spool"]

    def child() -> object:
        first = shared.submit(pow, 3, 3).result(LIMIT)
        there = shared.info["spool"]
        values = list(shared.map(abs, [-1, -2]))
        shared.shutdown()
        return first, values, there != parents, os.path.exists(there)

    assert in_fork(child) == (27, [1, 2], True, False)
    assert shared.submit(pow, 2, 2).result() == 4


def test_repr_in_a_forked_child_opens_no_session(shared: Executor) -> None:
    shared.submit(pow, 2, 2).result()
    parents = shared._runtime

    def child() -> object:
        return repr(shared), shared._repr_html_(), shared._runtime is parents

    text, table, same = in_fork(child)  # type: ignore[misc]
    assert text == "<Executor of the parent process>"
    assert "of the parent process" in table
    assert same


def test_a_forked_child_that_exits_does_not_affect_the_executor_of_its_parent(shared: Executor) -> None:
    def child() -> object:
        shared.shutdown()
        return len(shared)

    assert in_fork(child) == 0
    assert shared.submit(pow, 2, 2).result() == 4


def test_inherited_futures_fail_with_a_reference_to_the_parent(single: Executor, gate: Callable[..., Gate]) -> None:
    held = gate(single, "parent's")
    done = single.submit(pow, 2, 2)
    called: list[int] = []
    held.future.add_done_callback(lambda _: called.append(os.getpid()))

    def child() -> object:
        return held.future.exception(LIMIT), held.future.running(), held.future.cancel(), called

    error, running, cancelled, callbacks = in_fork(child)  # type: ignore[misc]
    assert isinstance(error, BrokenSpool)
    assert "parent process" in str(error)
    assert not running and not cancelled
    assert callbacks == []  # the parent calls its callbacks
    held.open()
    assert [held.future.result(), done.result()] == ["parent's", 4]
    wait_until(lambda: called == [os.getpid()], "the parent called its callback")


def test_a_child_forked_while_other_threads_submit_does_not_deadlock(shared: Executor) -> None:
    over = threading.Event()

    def submit_on() -> None:
        while not over.is_set():
            shared.submit(pow, 2, 2).result(LIMIT)

    threads = [threading.Thread(target=submit_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert in_fork(lambda: [len(shared), shared.shutdown()]) == [0, None]
    finally:
        over.set()
        for thread in threads:
            thread.join(LIMIT)


# ------------------------------------------------------------------------- interpreter exit

LEAVE = """
import sys
from spoolpool import Executor

def work(path):
    from spoolpool.system.backoff import Backoff
    for _ in range(5):
        Backoff(0.02, 0.02).sleep()
    with open(path, "a") as file:
        file.write("done\\n")

out, how = sys.argv[1:]
if how == "held":
    executor = Executor(max_workers=2)
    futures = [executor.submit(work, out) for _ in range(4)]
elif how == "without waiting":
    executor = Executor(max_workers=2)
    futures = [executor.submit(work, out) for _ in range(4)]
    executor.shutdown(wait=False)
elif how == "dropped":
    for _ in range(4):
        Executor(max_workers=1).submit(work, out)
elif how == "idle":
    executor = Executor(max_workers=2)
    with open(out, "a") as file:
        file.write("done\\n" * 4)
elif how == "raises":
    executor = Executor(max_workers=2)
    futures = [executor.submit(work, out) for _ in range(4)]
    raise RuntimeError("the script's own")
elif how == "in a thread":
    import threading
    def run():
        executor = Executor(max_workers=2)
        for _ in range(4):
            executor.submit(work, out)
    threading.Thread(target=run).start()
"""


@pytest.mark.parametrize("how", ["held", "without waiting", "dropped", "idle", "raises", "in a thread"])
def test_a_script_without_shutdown_completes_its_tasks_and_leaves_no_files(tmp_path: Path, how: str) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    ended = run_script(tmp_path / "script.py", LEAVE, tmp_path / "out", how, TMPDIR=temporary)
    assert (ended.returncode, "the script's own" in ended.stderr) == ((1, True) if how == "raises" else (0, False))
    assert how == "raises" or not ended.stderr
    assert (tmp_path / "out").read_text() == "done\n" * 4
    assert list(temporary.iterdir()) == []
    assert processes_of(temporary) == []


KILLED = """
import os, sys
from spoolpool import Executor
from tests.support import tasks

executor = Executor(max_workers=2)
pids = {executor.submit(tasks.pid).result()}
if sys.argv[1] == "busy":
    for _ in range(2):
        executor.submit(tasks.mark_and_wait, sys.argv[2] + "/started", sys.argv[2] + "/end")
    futures = [executor.submit(tasks.mark, sys.argv[2] + "/further") for _ in range(1000)]
print(executor.info["spool"], flush=True)
tasks.wait_for(sys.argv[2] + "/never")
"""


@pytest.mark.parametrize("place", ["on disk", "in memory"])
@pytest.mark.parametrize("how", ["idle", "busy"])
def test_groups_of_a_killed_submitter_end_and_its_temporary_spool_is_removed(
    tmp_path: Path, how: str, place: str
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    if place == "in memory" and not list(memory_directories(["/dev/shm"])):
        pytest.skip("there is no /dev/shm with room")
    shm = "/dev/shm" if place == "in memory" else ""
    script = start_script(tmp_path / "script.py", KILLED, how, tmp_path, TMPDIR=temporary, SPOOLPOOL_SHM=shm)
    assert script.stdout is not None
    spool = Path(script.stdout.readline().strip())
    assert spool.parent == (temporary if place == "on disk" else Path("/dev/shm"))
    assert [each.name.startswith("spoolpool-values-") for each in temporary.iterdir()] == [place == "in memory"]
    if how == "busy":
        wait_until(lambda: _lines(tmp_path / "started") == 2, "both groups have a task")
    script.kill()
    script.wait()
    (tmp_path / "end").touch()
    wait_until(lambda: not processes_of(spool), "its groups ended")
    wait_until(lambda: not list(temporary.iterdir()) and not spool.exists(), "its temporary spool was removed")
    assert _lines(tmp_path / "further") < 1000  # most tasks did not run


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


# ------------------------------------------------------------------------------------ dead pools


@pytest.fixture
def dead_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that end as soon as they are started."""
    monkeypatch.setattr(launcher, "WORKER_MODULE", "spoolpool.that_is_not_there")


def test_groups_that_cannot_start_break_the_executor_without_a_hang(dead_workers: None) -> None:
    with Executor(max_workers=2) as executor:
        where = directory_of(executor)
        future = executor.submit(pow, 2, 2)
        error = future.exception(LIMIT)
        assert isinstance(error, concurrent.futures.BrokenExecutor)
        assert not isinstance(error, BrokenProcessPool)
        assert "exit status 1" in str(error)
        with pytest.raises(concurrent.futures.BrokenExecutor, match="exit status 1"):
            executor.submit(pow, 2, 2)
    assert not where.exists()


def test_groups_that_cannot_start_end_a_map_and_a_wait(dead_workers: None) -> None:
    executor = Executor(max_workers=1)
    with pytest.raises(BrokenSpool):
        list(executor.map(abs, [1, 2, 3]))
    executor.shutdown()


def test_a_missing_launcher_is_an_error_that_leaves_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threads = threading.active_count()
    with pytest.raises(LauncherError, match="2 ranks"):
        Executor(cores_per_worker=2, backend="local")
    monkeypatch.setenv("SPOOLPOOL_MPIEXEC", "/nowhere/mpiexec")
    with pytest.raises(LauncherError, match="mpiexec"):
        Executor(cores_per_worker=2, backend="mpiexec")
    with pytest.raises(BadRequest, match="no backend 'carrier pigeon'"):
        Executor(backend="carrier pigeon")
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: threading.active_count() <= threads, "their threads have ended")


@pytest.mark.mpi
def test_ranks_in_separate_mpi_worlds_break_the_executor_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = tmp_path / "mpiexec"
    wrong.write_text('#!/bin/sh\nshift 2\n"$@" & "$@"\nstatus=$?\nwait\nexit $status\n')
    wrong.chmod(0o755)
    monkeypatch.setenv("SPOOLPOOL_MPIEXEC", str(wrong))
    with Executor(max_workers=1, cores_per_worker=2) as executor:
        error = executor.submit(tasks.communicator).exception(LIMIT)
    assert isinstance(error, BrokenSpool)
    assert "MPI sees 1 ranks where 2 were started" in str(error)


def test_a_shape_that_cannot_start_does_not_affect_other_shapes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = tmp_path / "mpiexec"
    wrong.write_text("#!/bin/sh\nexit 9\n")
    wrong.chmod(0o755)
    monkeypatch.setenv("SPOOLPOOL_MPIEXEC", str(wrong))
    with Executor(max_workers=1) as executor:
        bad = executor.submit(tasks.rank_and_size, resource_dict={"cores": 2})
        error = bad.exception(LIMIT)
        assert isinstance(error, BrokenSpool)
        assert "groups of 2 rank(s) cannot be started" in str(error)
        assert executor.submit(pow, 2, 2).result() == 4
        with pytest.raises(BrokenSpool, match="cannot be started"):
            executor.submit(tasks.rank_and_size, resource_dict={"cores": 2})


def test_removal_of_the_spool_fails_its_futures(gate: Callable[..., Gate], soon: None) -> None:
    executor = Executor(max_workers=1)
    held = gate(executor)
    files.remove_tree(str(directory_of(executor)))
    assert isinstance(held.future.exception(LIMIT), BrokenSpool)
    held.open()
    executor.shutdown()


def test_a_finished_task_is_freed_without_garbage_collection(single: Executor) -> None:
    single.submit(tasks.pid).result()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        urgent = {"priority": 1}  # in a bucket of its own, which does not exist yet
        assert single.submit(tasks.keywords, value=[1], resource_dict=urgent).result() == {"value": [1]}
        assert isinstance(single.submit(tasks.leave, 3).exception(), SystemExit)
        gc.collect()
        kept = [each for each in gc.garbage if isinstance(each, (memoryview, TaskFuture, BaseException))]
        assert kept == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


# ------------------------------------------------------------------------------------ exceptions


def test_exception_is_raised_with_its_own_cause_and_the_remote_traceback(shared: Executor) -> None:
    error = shared.submit(tasks.fail_deeper, "what was missing").exception()
    assert type(error) is tasks.OwnError
    assert error.args == ("what was missing",)
    assert isinstance(error.__cause__, KeyError)
    assert isinstance(error.__cause__.__cause__, RemoteTraceback)
    story = str(error.__cause__.__cause__)
    assert "KeyError: 'what was missing'" in story
    assert "in fail_deeper" in story
    assert "rank 0" in story and os.uname().nodename in story
    assert "spoolpool/calls/" not in story
    with pytest.raises(tasks.OwnError) as caught:
        shared.submit(tasks.fail_deeper, "again").result()
    assert "fail_deeper" in str(remote_traceback(caught.value))


@pytest.mark.parametrize(
    "error",
    [
        KeyError("key"),
        OSError(2, "No such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "wrong"),
        KeyboardInterrupt(),
        GeneratorExit("generator"),
        StopIteration(3),
        MemoryError(),
        TimeoutError("the task's own"),
        CancelledError(),
        SpoolpoolError("even ours"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_kind_of_exception_is_raised_unchanged(shared: Executor, error: BaseException) -> None:
    back = shared.submit(tasks.fail, error).exception(LIMIT)
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)


def test_an_exception_survives_a_process_pool_of_the_user(shared: Executor) -> None:
    error = shared.submit(tasks.fail, tasks.OwnError("x")).exception()
    assert type(pickle.loads(pickle.dumps(error))) is tasks.OwnError


@pytest.mark.parametrize("code", [0, 3, "a message", None])
def test_sys_exit_in_a_task_ends_only_the_task(shared: Executor, code: object) -> None:
    error = shared.submit(tasks.leave, code).exception()
    assert type(error) is SystemExit
    assert error.code == code
    assert shared.submit(pow, 2, 2).result() == 4


def test_exception_whose_constructor_needs_more_arguments_keeps_its_type(shared: Executor) -> None:
    with pytest.raises(tasks.PickyError, match=r"no such thing \(code 7\)") as caught:
        shared.submit(tasks.fail_picky).result()
    assert "in fail_picky" in str(caught.value.__cause__)


def test_exception_with_a_lock_keeps_its_type_and_names_the_lock(shared: Executor) -> None:
    with pytest.raises(tasks.OwnError) as caught:
        shared.submit(tasks.fail_with_lock).result()
    assert "argument 0 (TypeError: cannot pickle '_thread.lock' object)" in caught.value.__notes__[0]
    assert "in fail_with_lock" in str(caught.value.__cause__)


def test_submit_names_an_unpicklable_argument(shared: Executor) -> None:
    before = len(shared)
    with pytest.raises(NotPicklable, match=r"Argument 1 .*lock"):
        shared.submit(pow, 2, threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(pickle.PicklingError, match="Argument 'exp' "):
        shared.submit(pow, 2, exp=threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(NotPicklable, match="The function "):
        shared.submit(threading.Lock().acquire)
    assert len(shared) == before
    assert shared.submit(pow, 2, 2).result() == 4


def test_an_unpicklable_result_is_the_error_of_its_task(shared: Executor) -> None:
    with pytest.raises(NotPicklable, match="result of the task"):
        shared.submit(tasks.lock).result()
    assert shared.submit(pow, 2, 2).result() == 4


def test_a_failing_unpickle_is_the_error_of_its_task(shared: Executor) -> None:
    with pytest.raises(NotUnpicklable, match="goes off"):
        shared.submit(tasks.bomb).result()
    with pytest.raises(NotUnpicklable, match="goes off"):
        shared.submit(abs, tasks.bomb()).result()
    assert shared.submit(pow, 2, 2).result() == 4


# ----------------------------------------------------------------------------------- lost workers


def test_a_task_that_ends_its_process_is_lost_and_the_executor_continues(single: Executor, tmp_path: Path) -> None:
    single.submit(pow, 2, 2).result()
    for how in ("_exit", "SIGSEGV", "SIGKILL"):
        trace = tmp_path / how
        bad = single.submit(tasks.die, how, trace, resource_dict={"max_attempts": 1})
        good = single.submit(pow, 2, 3)
        error = bad.exception(LIMIT)
        assert isinstance(error, WorkerLost), how
        assert "died in attempt 1" in str(error) and os.uname().nodename in str(error)
        assert error.last.exit_status == 3 if how == "_exit" else error.last.signal == how
        assert ("in die" in error.last.stack) == ("in die" in str(error)) == (how == "SIGSEGV")
        assert good.result(LIMIT) == 8
        assert _lines(trace) == 1


@pytest.mark.parametrize("status", [0, 3, 75, 78])
def test_exit_status_of_a_function_is_only_that(single: Executor, status: int) -> None:
    lost = single.submit(tasks.exit_at_once, status, resource_dict={"max_attempts": 2})
    error = lost.exception(LIMIT)
    assert isinstance(error, WorkerLost)
    assert [(each.attempt, each.exit_status) for each in error.attempts] == [(1, status), (2, status)]
    assert len({each.worker for each in error.attempts}) == 2
    assert "spool" not in str(error).replace("spool retry", "")
    assert single.submit(pow, 2, 3).result(LIMIT) == 8


def test_a_lost_task_has_used_max_attempts(single: Executor, tmp_path: Path) -> None:
    lost = single.submit(tasks.die, "SIGKILL", tmp_path / "trace", resource_dict={"max_attempts": 2})
    assert isinstance(lost.exception(LIMIT), WorkerLost)
    assert _lines(tmp_path / "trace") == 2


def test_tasks_that_end_their_processes_do_not_delay_later_tasks_more_and_more(
    single: Executor, tmp_path: Path
) -> None:
    for _ in range(5):
        single.submit(tasks.die, "SIGKILL", tmp_path / "trace", resource_dict={"max_attempts": 1}).exception(LIMIT)
    assert single._runtime is not None and single._runtime.pool is not None
    (slot,) = single._runtime.pool._slots
    assert slot.backoff._next <= slot.backoff.first * slot.backoff.factor


def test_a_task_whose_worker_was_killed_runs_again(single: Executor, gate: Callable[..., Gate]) -> None:
    held = gate(single, "value")
    others = kill_processes_of(directory_of(single))
    held.open()
    assert held.future.result(LIMIT) == "value"
    assert not set(others) & set(processes_of(directory_of(single)))


@pytest.mark.mpi
def test_the_ranks_of_a_killed_group_are_replaced(tmp_path: Path) -> None:
    with Executor(max_workers=1, cores_per_worker=2) as executor:
        lost = executor.submit(tasks.die, "SIGKILL", tmp_path / "trace", resource_dict={"max_attempts": 1})
        assert isinstance(lost.exception(LIMIT), WorkerLost)
        assert executor.submit(tasks.communicator).result(LIMIT) == [(0, 2), (1, 2)]


def test_worker_groups_share_no_state_of_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    drawn = [tasks.draw()]
    for number in range(2):  # two groups of each executor, both at once
        with Executor(max_workers=2, backend="local") as executor:
            started, end = tmp_path / f"{number}.started", tmp_path / f"{number}.end"
            calls = [executor.submit(tasks.mark_and_draw, started, end) for _ in range(2)]
            wait_until(lambda path=started: path.exists() and len(path.read_text().split()) == 2, "both groups work")
            end.touch()
            drawn += [call.result(LIMIT) for call in calls]
    for source, values in {name: [each[name] for each in drawn] for name in drawn[0]}.items():
        assert len(set(values)) == len(drawn), f"{source}: {values}"


@pytest.mark.mpi
def test_the_ranks_of_a_group_share_no_state_of_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with Executor(max_workers=1, cores_per_worker=2) as executor:
        first, second = executor.submit(tasks.draw).result(LIMIT)
    assert [name for name in first if first[name] == second[name]] == []
