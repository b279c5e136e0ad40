"""Packing: short calls that were submitted one by one share a task, and behave like single tasks."""

from __future__ import annotations

import errno
import math
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor, Submission, as_completed, current_task, wait
from spoolpool.client.map import TARGET, ChunkSize
from spoolpool.client.packing import BUSY
from spoolpool.client.packs import PackedFuture
from spoolpool.errors import BrokenSpool, DependencyFailed, NotPicklable, RemoteTraceback, SpoolFull
from spoolpool.format.names import open_pack_file
from spoolpool.monitor.inventory import count_session_tasks
from spoolpool.monitor.scan import SpoolScanner, scan
from spoolpool.protocol.open_packs import OpenPack, sealed_file
from spoolpool.protocol.packs import PackedCall
from spoolpool.protocol.spool import Spool
from spoolpool.system import file_content
from tests.support import tasks
from tests.support.processes import in_fork, run_script
from tests.support.waiting import LIMIT, wait_until


@pytest.fixture
def executor(served: Spool) -> Iterator[Executor]:
    with Executor(spool=served.path, submission=Submission(pack=True)) as attached:
        yield attached


def act(path: Path | None = None, value: Any = None, error: BaseException | None = None) -> Any:
    """Mark a file, raise an error, or return a value: the call to be packed."""
    if path is not None:
        tasks.mark(path)
    if error is not None:
        raise error
    if isinstance(value, Path):
        wait_until(value.exists, "the test goes on")
    return tasks.lock() if value == "lock" else value


def set_pack_size(executor: Executor, function: Callable[..., Any], size: int) -> None:
    """Set the number of calls of a function that share a task."""
    assert executor._packer is not None
    executor._packer.functions.of(function).size = ChunkSize(size)


class Blocked:
    """Executor whose only group waits for a file, with so many ready tasks of :func:`act` that its calls are packed."""

    def __init__(self, executor: Executor, end: Path) -> None:
        self.executor = executor
        self.end = end
        set_pack_size(executor, act, 4)
        executor.submit(tasks.mark_and_wait, f"{end}-started", end)
        wait_until(lambda: os.path.exists(f"{end}-started"), "the group is busy")
        self.alone = [executor.submit(act) for _ in range(BUSY)]
        assert not any(isinstance(each, PackedFuture) for each in self.alone)

    def waiting(self) -> int:
        """Return the number of sealed packs."""
        spool = self.executor._options.spool
        return len([each for each in scan(spool).ready.values() if not each.is_open]) - BUSY if spool else 0

    def waiting_calls(self) -> int:
        """Return the number of calls in the spool that wait in packs."""
        spool = self.executor._options.spool
        if spool is None:
            return 0
        counts = count_session_tasks(spool, SpoolScanner(spool.layout.root))
        return sum(each.states["waiting"] for each in counts.values()) - BUSY

    def path_of(self, pack: OpenPack) -> str:
        """Return the path of an open pack."""
        spool = self.executor._options.spool
        assert spool is not None
        return f"{spool.layout.waiting}/{open_pack_file(pack.header.task).name}"

    def bucket_of(self, pack: OpenPack) -> str:
        """Return the directory of a sealed pack."""
        spool = self.executor._options.spool
        assert spool is not None
        return spool.layout.bucket(pack.header.lane, pack.header.bucket)

    def release(self) -> None:
        self.end.touch()


@pytest.fixture
def blocked(executor: Executor, tmp_path: Path) -> Iterator[Blocked]:
    found = Blocked(executor, tmp_path / "end")
    yield found
    found.release()


def test_packed_calls_share_a_task_and_have_their_own_outcomes(blocked: Blocked) -> None:
    submit = blocked.executor.submit
    calls = [
        submit(act, value=1),
        submit(act, error=tasks.OwnError("mine")),
        submit(act, value="lock"),
        submit(act, value=[2]),
    ]
    assert all(isinstance(each, PackedFuture) for each in calls)
    assert blocked.waiting() == 1
    assert not any(each.running() or each.done() for each in calls)
    blocked.release()
    assert calls[0].result() == 1 and calls[3].result() == [2]
    error = calls[1].exception()
    assert isinstance(error, tasks.OwnError) and error.args == ("mine",)
    assert isinstance(error.__cause__, RemoteTraceback) and "in act" in str(error.__cause__)
    assert "spoolpool/wire.py" not in str(error.__cause__) and "spoolpool/calls/" not in str(error.__cause__)
    assert isinstance(calls[2].exception(), NotPicklable)


def test_outcomes_of_a_pack_are_delivered_while_it_runs(blocked: Blocked, tmp_path: Path) -> None:
    end = tmp_path / "second"
    calls = [blocked.executor.submit(act, value=value) for value in (1, end, 3, 4)]
    assert len({each.pack for each in calls if isinstance(each, PackedFuture)}) == 1
    blocked.release()
    assert calls[0].result(LIMIT) == 1
    assert not calls[1].done()
    end.touch()
    assert [call.result(LIMIT) for call in calls] == [1, end, 3, 4]


def test_open_pack_is_submitted_when_a_task_ends(blocked: Blocked) -> None:
    calls = [blocked.executor.submit(act, value=number) for number in range(3)]
    assert blocked.waiting() == 0
    assert blocked.waiting_calls() == 3
    blocked.release()
    # the wait function of the standard library does not submit an open pack, as the one of spoolpool does
    assert not futures.wait(calls, LIMIT).not_done
    assert [each.result() for each in as_completed(calls)] and not wait(calls).not_done


def test_open_pack_is_submitted_when_a_result_is_awaited(blocked: Blocked) -> None:
    call = blocked.executor.submit(act, value=1)
    assert blocked.waiting() == 0
    with pytest.raises(TimeoutError):
        call.result(timeout=0.01)
    assert blocked.waiting() == 1
    blocked.release()
    assert call.result() == 1


@pytest.mark.parametrize("count", [2, 4])
def test_cancelled_call_does_not_run_and_the_others_run_once(blocked: Blocked, tmp_path: Path, count: int) -> None:
    marks = [tmp_path / f"mark-{number}" for number in range(count)]
    calls = [blocked.executor.submit(act, mark, number) for number, mark in enumerate(marks)]
    assert blocked.waiting() == (count == 4)  # the pack is open, or a ready task
    assert calls[1].cancel() and calls[1].cancelled() and calls[1].cancel()
    blocked.release()
    assert [each.result() for each in calls if each is not calls[1]] == [n for n in range(count) if n != 1]
    assert [len(mark.read_text().splitlines()) if mark.exists() else 0 for mark in marks] == [
        int(number != 1) for number in range(count)
    ]
    assert not calls[0].cancel()


def test_all_calls_of_a_pack_can_be_cancelled(blocked: Blocked) -> None:
    for count in (4, 3):
        calls = [blocked.executor.submit(act, value=number) for number in range(count)]
        assert all(each.cancel() for each in calls)
        assert blocked.waiting() == 0
    last = blocked.executor.submit(act, value=7)
    blocked.release()
    assert last.result() == 7


def test_cancelling_the_task_of_a_pack_cancels_its_calls(blocked: Blocked) -> None:
    calls = [blocked.executor.submit(act, value=number) for number in range(4)]
    assert blocked.executor._runtime is not None
    (pack,) = [each for each in blocked.executor._runtime.session.pending.futures() if each.packed == 4]
    pack.cancel()
    assert all(each.cancelled() for each in calls)
    with pytest.raises(Exception, match=r"^$"):
        calls[0].result()


def test_packed_call_can_be_an_argument(blocked: Blocked) -> None:
    submit = blocked.executor.submit
    one, bad, parts = submit(act, value=1), submit(act, error=tasks.OwnError("bad")), submit(act, value={"a": [5]})
    sums, fails = submit(tasks.keywords, x=[one], y=parts["a"][0]), submit(tasks.keywords, x=bad)
    assert not one.cancel()  # it is an argument of another call
    blocked.release()
    assert sums.result() == {"x": [1], "y": 5}
    error = fails.exception()
    assert isinstance(error, DependencyFailed) and isinstance(error.__cause__, tasks.OwnError)
    assert submit(tasks.keywords, x=one).result() == {"x": 1}


def test_calls_with_different_requirements_do_not_share_a_task(blocked: Blocked, tmp_path: Path) -> None:
    submit = blocked.executor.submit
    alone = [
        submit(act, resource_dict={"retries": 1}),
        submit(act, resource_dict={"time_limit": 60}),
        submit(act, value=bytes(100_000)),
        submit(act, value=blocked.alone[0]),
        submit(tasks.keywords),
    ]
    assert not any(isinstance(each, PackedFuture) for each in alone)
    wishes: list[dict[str, Any]] = [{}, {"cwd": tmp_path}, {"priority": 5}]
    # no call is gathered for the sake of calls that ask for something else
    alone = [submit(act, resource_dict=each) for each in wishes[1:] for _ in range(BUSY)]
    assert not any(isinstance(each, PackedFuture) for each in alone)
    here, there, urgent = (submit(act, value=number + 1, resource_dict=each) for number, each in enumerate(wishes))
    packs = {each.pack for each in (here, there, urgent) if isinstance(each, PackedFuture)}
    assert len(packs) == 3
    blocked.release()
    assert [each.result() for each in (here, there, urgent)] == [1, 2, 3]


def test_long_calls_have_a_task_each(executor: Executor) -> None:
    executor.submit(tasks.work, 2 * TARGET).result()
    calls = [executor.submit(tasks.work, 2 * TARGET) for _ in range(BUSY + 2)]
    assert not any(isinstance(each, PackedFuture) for each in calls)


def test_calls_are_not_packed_by_default(served: Spool) -> None:
    with Executor(spool=served.path) as executor:
        assert not any(isinstance(executor.submit(act), PackedFuture) for _ in range(50))


def test_shutdown_submits_open_packs(blocked: Blocked) -> None:
    calls = [blocked.executor.submit(act, value=number) for number in range(3)]
    blocked.executor.shutdown(wait=False)
    assert blocked.waiting() == 1
    blocked.release()
    assert [each.result() for each in calls] == [0, 1, 2]
    with pytest.raises(RuntimeError):
        blocked.executor.submit(act)


def test_shutdown_can_cancel_packed_calls(blocked: Blocked) -> None:
    calls = [blocked.executor.submit(act, value=number) for number in range(7)]
    blocked.executor.shutdown(wait=False, cancel_futures=True)
    blocked.release()
    assert all(each.cancelled() for each in calls)


PROGRAM = """\
import sys
from spoolpool import Executor, Submission
from tests.unit.client.test_packing import act

executor = Executor(spool=sys.argv[1], submission=Submission(pack=True))
executor.submit(act).result()
calls = [executor.submit(act, sys.argv[2]) for _ in range(200)]
"""


def test_exit_of_a_script_submits_open_packs(served: Spool, tmp_path: Path) -> None:
    done = run_script(tmp_path / "script.py", PROGRAM, served.path, tmp_path / "mark")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "mark").read_text().splitlines()) == 200


def test_call_without_space_is_refused_and_the_calls_before_it_run(
    blocked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [blocked.executor.submit(act, value=number) for number in range(3)]

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(file_content, "write_all", full)
    with pytest.raises(SpoolFull):
        blocked.executor.submit(act, value=3)
    monkeypatch.undo()
    assert blocked.waiting() == 1
    blocked.release()
    assert [call.result() for call in calls] == [0, 1, 2]


def test_call_that_cannot_be_synced_gets_a_task_of_its_own(blocked: Blocked, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [blocked.executor.submit(act, value=number) for number in range(2)]

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert isinstance(calls[0], PackedFuture)
    assert calls[0].pack.file is not None
    monkeypatch.setattr(calls[0].pack.file, "_must_sync", True)
    monkeypatch.setattr(file_content, "sync", broken)
    calls.append(blocked.executor.submit(act, value=2))
    monkeypatch.undo()
    assert not isinstance(calls[2], PackedFuture)
    blocked.release()
    assert [call.result() for call in calls] == [0, 1, 2]


def test_call_that_is_cancelled_while_it_gets_its_outcome_does_not_end_the_collector(
    blocked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [blocked.executor.submit(act, value=number) for number in range(4)]
    really, threads = PackedFuture.done, []

    def done_before_a_cancellation(future: PackedFuture) -> bool:
        answer = really(future)
        if future is calls[1] and not threads:
            threads.append(threading.Thread(target=PackedFuture.mark_cancelled, args=(future,)))
            threads[0].start()
            threads[0].join(0.5)  # it may wait for the end of the caller
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(PackedFuture, "done", done_before_a_cancellation)
        blocked.release()
        assert [calls[number].result(LIMIT) for number in (0, 2, 3)] == [0, 2, 3]
    threads[0].join()
    assert calls[1].cancelled() or calls[1].result() == 1


def test_calls_after_a_submission_that_was_interrupted_have_their_own_results(
    blocked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = blocked.executor.submit(act, value=0)
    assert isinstance(first, PackedFuture)
    pack = first.pack.file
    assert pack is not None
    really = pack.append

    def append_and_interrupt(call: PackedCall) -> int:
        really(call)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pack, "append", append_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            blocked.executor.submit(act, value=1)
    calls = [blocked.executor.submit(act, value=number) for number in (2, 3)]
    blocked.release()
    assert [each.result(LIMIT) for each in (first, *calls)] == [0, 2, 3]


def test_call_whose_pack_was_sealed_without_it_is_in_another_one(
    blocked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = blocked.executor.submit(act, value=0)
    assert isinstance(first, PackedFuture)
    pack = first.pack.file
    assert pack is not None
    really = pack.append

    def append_after_a_pause(call: PackedCall) -> int:
        path = blocked.path_of(pack)
        os.rename(path, f"{blocked.bucket_of(pack)}/{sealed_file(pack.header, 1).name}")
        monkeypatch.setattr(pack, "_last_change", -math.inf)
        return really(call)

    monkeypatch.setattr(pack, "append", append_after_a_pause)
    second = blocked.executor.submit(act, value=1)
    assert isinstance(second, PackedFuture)
    assert second.pack.file is not pack
    blocked.release()
    assert [first.result(), second.result()] == [0, 1]


def many(count: int) -> int:
    """Pack calls of this task."""
    with Executor(spool=current_task().spool, submission=Submission(pack=True)) as executor:
        executor.submit(act).result()
        return sum(each.result() for each in [executor.submit(act, value=number) for number in range(count)])


def test_task_packs_its_own_calls_with_a_single_group(executor: Executor) -> None:
    assert executor.submit(many, 100).result() == sum(range(100))


def test_packed_call_of_the_parent_fails_in_a_forked_child(blocked: Blocked) -> None:
    call = blocked.executor.submit(act, value=1)
    assert isinstance(call, PackedFuture)
    assert isinstance(in_fork(call.result), BrokenSpool)
    blocked.release()
    assert call.result() == 1


def test_concurrent_submissions_and_cancellations_run_each_call_at_most_once(
    executor: Executor, tmp_path: Path
) -> None:
    set_pack_size(executor, act, 4)
    chance = random.Random(7)
    plan = [(number, chance.random()) for number in range(400)]
    (tmp_path / "marks").mkdir()

    def one(number: int, luck: float) -> Future[Any]:
        call = executor.submit(act, tmp_path / "marks" / str(number), number)
        if luck < 0.3:
            call.cancel()
        elif luck < 0.4:
            assert call.result(60) == number
        return call

    with ThreadPoolExecutor(6) as threads:
        calls = list(threads.map(lambda each: one(*each), plan))
    executor.shutdown()
    for (number, _), call in zip(plan, calls, strict=True):
        mark = tmp_path / "marks" / str(number)
        ran = len(mark.read_text().splitlines()) if mark.exists() else 0
        assert call.done()
        assert ran == (not call.cancelled()), number
        assert call.cancelled() or call.result() == number
