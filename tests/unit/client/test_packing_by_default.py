"""Packing in the temporary spool of an embedded executor, where users did not ask for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor, Submission, current_task
from spoolpool.client import packing
from spoolpool.client.map import ChunkSize
from spoolpool.client.packing import BUSY
from spoolpool.client.packs import PackedFuture
from spoolpool.errors import BrokenSpool, DependencyFailed, WorkerLost
from tests.support import tasks
from tests.support.processes import in_fork
from tests.support.waiting import LIMIT, wait_until


def act(value: Any = None, error: BaseException | None = None) -> Any:
    """Return a value, or raise an error: the call to be packed."""
    if error is not None:
        raise error
    return value


def measured_as_short(executor: Executor, function: Callable[..., Any], size: int) -> None:
    """Set the number of calls of a function that share a task, as if its calls had been short so far."""
    assert executor._runtime is not None
    packer = executor._submission.find_packer()
    assert packer is not None
    stats = packer.functions.of(function)
    stats.size = ChunkSize(None)
    stats.size.add(size, 0.09)
    assert stats.size.next() >= size


class Busy:
    """Embedded executor whose groups all wait for a file, with ``BUSY`` ready calls of a function."""

    def __init__(
        self, executor: Executor, groups: int, end: Path, function: Callable[..., Any] = act, *args: Any
    ) -> None:
        self.executor = executor
        self.end = end
        for number in range(groups):
            executor.submit(tasks.mark_and_wait, f"{end}-{number}", end)
            wait_until(lambda number=number: os.path.exists(f"{end}-{number}"), "the group is busy")
        measured_as_short(executor, function, 8)
        self.alone = [executor.submit(function, *args) for _ in range(max(BUSY, 2 * groups))]
        assert not any(isinstance(each, PackedFuture) for each in self.alone)

    def release(self) -> None:
        self.end.touch()


@pytest.fixture
def executor() -> Iterator[Executor]:
    with Executor(max_workers=1, backend="local") as embedded:
        yield embedded


@pytest.fixture
def busy(executor: Executor, tmp_path: Path) -> Iterator[Busy]:
    found = Busy(executor, 1, tmp_path / "end")
    yield found
    found.release()


def packed(calls: list[futures.Future[Any]]) -> list[PackedFuture]:
    found = [each for each in calls if isinstance(each, PackedFuture)]
    assert len(found) == len(calls)
    return found


def test_short_calls_of_an_embedded_executor_are_packed_and_all_counted(busy: Busy) -> None:
    submit = busy.executor.submit
    calls = packed([submit(act, value=1), submit(act, error=tasks.OwnError("mine")), submit(act, value=3)])
    assert len(busy.executor) == len(busy.alone) + 3
    assert busy.executor.counts()["pending"] == len(busy.alone) + 4
    assert submit(act, value=4).cancel()
    busy.release()
    assert calls[0].result() == 1 and calls[2].result() == 3
    assert isinstance(calls[1].exception(), tasks.OwnError)
    assert calls[0].seconds is not None
    busy.executor.shutdown()
    counts = busy.executor.counts()
    assert (counts["done"], counts["raised"], counts["cancelled"]) == (len(busy.alone) + 3, 1, 1)


def test_calls_are_not_packed_if_the_submission_says_so_or_the_output_names_them() -> None:
    with Executor(max_workers=1, backend="local", submission=Submission(pack=False)) as executor:
        assert executor._runtime is not None and executor._submission.find_packer() is None
    with Executor(max_workers=1, backend="local", stream_output=True) as executor:
        assert executor._runtime is not None and executor._submission.find_packer() is None


def test_no_call_is_gathered_while_fewer_tasks_wait_than_groups(tmp_path: Path) -> None:
    groups = 4
    with Executor(max_workers=groups, backend="local") as executor:
        measured_as_short(executor, tasks.mark_and_wait, 8)
        calls = [
            executor.submit(tasks.mark_and_wait, tmp_path / str(number), tmp_path / "end") for number in range(groups)
        ]
        # every group runs one of them, also the last one that became idle
        wait_until(lambda: all((tmp_path / str(number)).exists() for number in range(groups)), "all run at once")
        (tmp_path / "end").touch()
        for each in calls:
            each.result()


def test_delayed_calls_are_no_reason_to_gather_others(executor: Executor, tmp_path: Path) -> None:
    first = executor.submit(tasks.mark_and_wait, tmp_path / "started", tmp_path / "end")
    measured_as_short(executor, act, 8)
    delayed = [executor.submit(act, value=first) for _ in range(BUSY)]
    delayed += [executor.submit(act, resource_dict={"not_before": 3600}) for _ in range(BUSY)]
    call = executor.submit(act, value=1)
    assert not isinstance(call, PackedFuture)
    (tmp_path / "end").touch()
    assert call.result() == 1
    for each in delayed:
        each.cancel()


def test_new_groups_get_the_gathered_calls(busy: Busy) -> None:
    call = busy.executor.submit(act, value=1)
    assert isinstance(call, PackedFuture) and call.pack.task is None
    busy.executor.max_workers = 2
    assert not futures.wait([call], LIMIT).not_done  # the first group is busy still
    assert call.result() == 1


def leave(_: int) -> tuple[str, str | None, int, str]:
    """Return the state of the process, and leave another one."""
    found = os.getcwd(), os.environ.get("SPOOLPOOL_TEST"), len(os.listdir(current_task().scratch)), current_task().id
    os.chdir("/")
    os.environ["SPOOLPOOL_TEST"] = "left"
    Path(current_task().scratch, "file").touch()
    return found


def test_each_packed_call_has_the_surroundings_of_a_task_of_its_own(executor: Executor, tmp_path: Path) -> None:
    busy = Busy(executor, 1, tmp_path / "end")
    measured_as_short(executor, leave, 100)
    alone = [executor.submit(leave, number) for number in range(BUSY)]
    calls = packed([executor.submit(leave, number) for number in range(20)])
    busy.release()
    states = [each.result() for each in (*alone, *calls)]
    assert {each[:3] for each in states} == {(os.getcwd(), None, 0)}
    assert [each[3] for each in states[BUSY:]] == [each.task for each in calls]
    assert len({each[3] for each in states}) == len(states)


def own_worker(_: int, spoolpool_worker_id: str, executorlib_worker_id: int) -> tuple[str, int]:
    return spoolpool_worker_id, executorlib_worker_id


def test_packed_calls_get_the_id_of_their_worker(executor: Executor, tmp_path: Path) -> None:
    busy = Busy(executor, 1, tmp_path / "end")
    measured_as_short(executor, own_worker, 100)
    alone = [executor.submit(own_worker, number) for number in range(BUSY)]
    calls = packed([executor.submit(own_worker, number) for number in range(3)])
    busy.release()
    assert len({each.result() for each in (*alone, *calls)}) == 1


def test_calls_that_become_long_are_shared_among_the_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_SECONDS", 0.1)
    with Executor(max_workers=2, backend="local") as executor:
        busy = Busy(executor, 2, tmp_path / "end", long_first)
        names = [tmp_path / str(number) for number in range(3)]
        calls = packed([executor.submit(long_first, name, tmp_path / "end-of-others") for name in names])
        busy.release()
        wait_until(lambda: all(name.exists() for name in names), "two calls run at once, though none of them ends")
        (tmp_path / "end-of-others").touch()
        for each in calls:
            each.result()


def long_first(mark: Path | None = None, end: Path | None = None) -> None:
    """Work for longer than the share of a pack in the first call, and wait for a file in the others."""
    if mark is not None and end is not None:
        tasks.mark(mark)
        if mark.name == "0":
            tasks.work(0.2)
        else:
            tasks.wait_for(end)


def test_a_pack_with_large_results_ends_early(executor: Executor, tmp_path: Path) -> None:
    busy = Busy(executor, 1, tmp_path / "end", bytes)
    calls = packed([executor.submit(bytes, 3_000_000) for _ in range(8)])
    sent: list[int] = []
    assert executor._runtime is not None
    submit = executor._runtime.session.submit
    executor._runtime.session.submit = lambda call: (sent.append(call.packed), submit(call))[1]  # type: ignore[method-assign]
    busy.release()
    assert [len(each.result()) for each in calls] == [3_000_000] * 8
    assert sent  # the rest was submitted again
    executor.shutdown()
    assert executor.counts()["done"] == len(busy.alone) + 9


def test_packed_calls_can_be_arguments_and_parts_of_arguments(busy: Busy) -> None:
    submit = busy.executor.submit
    one, bad, parts = submit(act, value=1), submit(act, error=tasks.OwnError("bad")), submit(act, value={"a": [5]})
    packed([one, bad, parts])
    sums, fails = submit(tasks.keywords, x=[one], y=parts["a"][0]), submit(tasks.keywords, x=bad)
    busy.release()
    assert sums.result() == {"x": [1], "y": 5}
    error = fails.exception()
    assert isinstance(error, DependencyFailed) and isinstance(error.__cause__, tasks.OwnError)
    assert submit(tasks.keywords, x=one, y=parts["a"]).result() == {"x": 1, "y": [5]}


def hang_or_return(mark: str, end: str | None) -> str:
    """Wait for a file that is never made, or return at once."""
    with open(mark, "a") as file:
        file.write("x\n")
    if end is not None:
        tasks.wait_for(end)
    return mark


def test_a_running_packed_call_can_be_cancelled_alone(executor: Executor, tmp_path: Path) -> None:
    busy = Busy(executor, 1, tmp_path / "end")
    measured_as_short(executor, hang_or_return, 100)
    alone = [executor.submit(hang_or_return, str(tmp_path / "alone"), None) for _ in range(BUSY)]
    names = [str(tmp_path / str(number)) for number in range(3)]
    calls = packed(
        [executor.submit(hang_or_return, name, str(tmp_path / "never") if name is names[1] else None) for name in names]
    )
    busy.release()
    wait_until(lambda: os.path.exists(names[1]), "the call runs")
    assert not calls[1].cancel()
    assert executor.cancel(calls[1], running=True)
    assert calls[0].result() == names[0] and calls[2].result() == names[2]
    wait_until(calls[1].done, "the call was cancelled")
    assert calls[1].cancelled()
    assert all(each.done() for each in alone)


def test_unfinished_packed_calls_fail_in_a_forked_child(busy: Busy) -> None:
    call = busy.executor.submit(act, value=1)
    assert isinstance(call, PackedFuture)
    # the wait function of the standard library asks nothing of the future
    assert in_fork(lambda: [type(each.exception()) for each in futures.wait([call], LIMIT).done]) == [BrokenSpool]
    busy.release()
    assert call.result() == 1


def test_gathered_calls_are_run_whichever_way_they_are_awaited(busy: Busy) -> None:
    calls = packed([busy.executor.submit(act, value=number) for number in range(3)])
    seen: list[Any] = []
    calls[0].add_done_callback(lambda future: seen.append(future.result()))

    async def wait_for_all() -> list[Any]:
        more = busy.executor.asubmit(act, value=4)
        busy.release()
        return await asyncio.gather(*map(asyncio.wrap_future, calls), more)

    assert asyncio.run(asyncio.wait_for(wait_for_all(), LIMIT)) == [0, 1, 2, 4]
    wait_until(lambda: seen == [0], "the callback was called")


def test_gathered_calls_survive_their_executor(tmp_path: Path) -> None:
    executor = Executor(max_workers=1, backend="local")
    busy = Busy(executor, 1, tmp_path / "end")
    call = executor.submit(act, value=1)
    assert isinstance(call, PackedFuture)
    busy.release()
    del executor, busy
    assert call.result(LIMIT) == 1


def end_process(wanted: bool) -> None:
    if wanted:
        os._exit(3)


def test_a_call_that_ends_its_process_is_lost_alone(executor: Executor, tmp_path: Path) -> None:
    busy = Busy(executor, 1, tmp_path / "end")
    measured_as_short(executor, end_process, 8)
    alone = [executor.submit(end_process, False) for _ in range(BUSY)]
    calls = packed([executor.submit(end_process, number == 1) for number in range(3)])
    busy.release()
    assert isinstance(calls[1].exception(), WorkerLost)
    assert calls[0].exception() is None and calls[2].exception() is None
    executor.shutdown()
    assert executor.counts()["lost"] == 1 and executor.counts()["done"] == len(busy.alone) + len(alone) + 3
