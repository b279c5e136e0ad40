"""Futures as arguments: the call waits for them, even after its submitter has ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path

import pytest

from spoolpool import Executor, Spool, as_completed, get_item_from_future, split_future, wait
from spoolpool.calls.results import remote_traceback
from spoolpool.client.references import CallReferences
from spoolpool.errors import BadRequest, BadTaskFile, DependencyFailed, NotPicklable, WorkerLost
from spoolpool.format.names import new_task_id
from spoolpool.protocol.delayed_tasks import DelayedTasks
from spoolpool.system import files
from tests.conftest import Workers
from tests.support import tasks
from tests.support.fake_worker import LANE, Clock, Stage, announce, dead_process, prepare_call
from tests.support.processes import run_script
from tests.support.waiting import wait_until


def add(*values: int) -> int:
    return sum(values)


def same(*values: object, **more: object) -> tuple[object, ...]:
    return (*values, *more.values())


def parts() -> dict[str, object]:
    return {"a": [10, 20], "b": "text"}


class Box:
    """An object of a user's class."""

    def __init__(self, inside: object) -> None:
        self.inside = inside


def unbox(box: Box) -> object:
    return box.inside


def left(spool: Spool | str) -> list[str]:
    """Return the files of tasks that are still in a spool."""
    root = Path(spool if isinstance(spool, str) else spool.path)
    ours = ("tmp", "ready", "waiting", "needs", "claimed", "outgoing", "results", "failed", "cancel")
    return sorted(str(path.relative_to(root)) for name in ours for path in (root / name).rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def one() -> Iterator[Executor]:
    """An executor with a single group."""
    with Executor(max_workers=1) as executor:
        yield executor


@pytest.fixture
def nothing_left(one: Executor) -> Iterator[None]:
    yield
    wait_until(lambda: not left(one.info["spool"]), "no file of a task is left")


@pytest.mark.usefixtures("nothing_left")
class TestOneGroup:
    """With a single group, a call cannot wait inside for another."""

    def test_call_gets_the_values_of_futures_at_any_depth(self, one: Executor) -> None:
        two, three = one.submit(add, 1, 1), one.submit(add, 1, 2)
        assert one.submit(add, two, three).result() == 5
        nested = one.submit(same, [two, {"key": (three, 4)}], more={"x": [two]})
        assert nested.result() == ([2, {"key": (3, 4)}], {"x": [2]})
        assert one.submit(unbox, Box([two])).result() == [2]
        assert one.submit(lambda: two + 1 if isinstance(two, int) else None).result() == 3

    def test_future_used_twice_is_one_object(self, one: Executor) -> None:
        held = one.submit(tasks.work, 0.05)
        made = one.submit(list, one.submit(same, held))
        assert one.submit(lambda a, b: a is b[0], made, [made]).result()

    def test_chain_and_diamond_complete(self, one: Executor) -> None:
        last = one.submit(add, 0)
        for _ in range(100):
            last = one.submit(add, last, 1)
        middle = [one.submit(add, last, number) for number in range(50)]
        assert one.submit(add, *middle).result() == 50 * 100 + sum(range(50))

    def test_failure_fails_dependents_with_its_cause_unrun(self, one: Executor, tmp_path: Path) -> None:
        gate = one.submit(tasks.wait_for, tmp_path / "go")
        failing = one.submit(tasks.fail_deeper, one.submit(same, "text", gate)[0])
        dependent = one.submit(tasks.mark, tmp_path / "ran", failing)
        last = one.submit(tasks.mark, tmp_path / "ran", [dependent, gate])
        (tmp_path / "go").touch()
        for future in (dependent, last):
            error = future.exception()
            assert isinstance(error, DependencyFailed)
            assert f"task {failing.task} failed: OwnError: text" in str(error)
            assert type(error.__cause__) is tasks.OwnError
            assert isinstance(error.__cause__.__cause__, KeyError)
            assert "KeyError" in str(remote_traceback(error))
        assert not (tmp_path / "ran").exists()
        late = one.submit(tasks.mark, tmp_path / "ran", failing).exception()
        assert isinstance(late, DependencyFailed)
        assert type(late.__cause__) is tasks.OwnError

    def test_exception_that_cannot_be_pickled_fails_dependents(self, one: Executor, tmp_path: Path) -> None:
        gate = one.submit(tasks.wait_for, tmp_path / "go")
        failing = one.submit(lambda _: tasks.fail_picky(), gate)
        dependent = one.submit(same, failing)
        (tmp_path / "go").touch()
        assert "PickyError" in str(dependent.exception())

    def test_cancel_cancels_dependents(self, one: Executor, tmp_path: Path) -> None:
        gate = one.submit(tasks.wait_for, tmp_path / "go")
        wait_until(gate.running, "the group is busy")
        first = one.submit(same, 1)
        ladder = [[first, first]]
        for _ in range(30):  # each needs both results of the step before: 2**30 paths
            ladder.append([one.submit(same, *ladder[-1]) for _ in range(2)])
        other = one.submit(same, gate)
        assert first.cancel()
        assert all(future.cancelled() for step in ladder for future in step)
        late = one.submit(same, first)
        assert late.cancelled()
        with pytest.raises(CancelledError):
            late.result()
        (tmp_path / "go").touch()
        assert other.result() == (None,)

    def test_done_future_is_sent_by_value_kept_one_by_reference(self, one: Executor, tmp_path: Path) -> None:
        core = one._runtime
        assert core is not None
        done = one.submit(same, "x" * 1000)
        done.result()
        wait_until(lambda: not left(core.spool), "its outcome is gone")
        plain = CallReferences(core.spool, new_task_id())
        assert plain.refer(done) == done.result()
        assert plain.by_session() == {}
        gate = one.submit(tasks.wait_for, tmp_path / "go")
        again = one.submit(same, "y" * 1000)
        holding = one.submit(same, again, gate)
        (tmp_path / "go").touch()
        more = one.submit(same, again)
        assert holding.result()[0] == more.result()[0] == ("y" * 1000,)

    def test_parts_of_a_result_are_futures_and_arguments(self, one: Executor, tmp_path: Path) -> None:
        gate = one.submit(tasks.wait_for, tmp_path / "go")
        whole = one.submit(lambda _: parts(), gate)
        ten, twenty = split_future(whole["a"], 2)
        text = get_item_from_future(whole, "b")
        missing = whole["a"]["c"]
        sums = one.submit(add, ten, whole["a"][1])
        bad = one.submit(add, missing)
        assert not ten.done()
        (tmp_path / "go").touch()
        assert (ten.result(), twenty.result(), text.result(), sums.result()) == (10, 20, "text", 30)
        assert {future.result() for future in as_completed([ten, twenty])} == {10, 20}
        assert isinstance(missing.exception(), TypeError)
        assert isinstance(bad.exception(), DependencyFailed)
        assert "has no part ['c']" in str(bad.exception())
        assert one.submit(add, ten, twenty).result() == 30
        with pytest.raises(TypeError, match="not iterable"):
            list(whole)

    def test_part_of_a_foreign_future_is_a_future(self) -> None:
        other: Future[list[int]] = Future()
        part = get_item_from_future(other, 1)
        assert not part.running()
        other.set_result([1, 2])
        assert (part.result(), part[0].exception().__class__) == (2, TypeError)

    def test_part_is_cancelled_with_its_whole(self, one: Executor, tmp_path: Path) -> None:
        gate = one.submit(tasks.wait_for, tmp_path / "go")
        whole = one.submit(same, gate)
        part = whole[0]
        assert part.cancel() and part.cancelled() and whole.cancelled()
        assert wait([part]).done == {part}
        (tmp_path / "go").touch()

    def test_value_of_a_done_foreign_future_is_sent(self, one: Executor) -> None:
        other: Future[int] = Future()
        other.set_result(41)
        assert one.submit(add, 1, other).result() == 42

    def test_future_as_result_is_a_clear_error(self, one: Executor) -> None:
        error = one.submit(Future).exception()
        assert isinstance(error, NotPicklable)
        assert "send its result()" in str(error)

    def test_argument_that_cannot_be_pickled_keeps_nothing(self, one: Executor, tmp_path: Path) -> None:
        gate = one.submit(tasks.wait_for, tmp_path / "go")
        with pytest.raises(NotPicklable, match="Argument 1"):
            one.submit(same, gate, tasks.lock())
        (tmp_path / "go").touch()
        gate.result()

    def test_dependent_task_is_not_running_and_is_counted(self, one: Executor, tmp_path: Path) -> None:
        gate = one.submit(tasks.wait_for, tmp_path / "go")
        dependent = one.submit(same, gate)
        wait_until(gate.running, "the group is busy")
        assert not dependent.running()
        assert len(one) == 1
        (tmp_path / "go").touch()
        dependent.result()


# -- on disk, step by step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.installed(monkeypatch)


@pytest.fixture
def stage(tmp_path: Path, clock: Clock) -> Stage:
    return Stage(tmp_path / "stage", clock)


def test_outcome_stays_until_the_last_dependent_has_ended(stage: Stage) -> None:
    inbox = stage.inbox()
    first = inbox.put(pow, 2, 3)
    second = inbox.put(add, first, 1)
    third = inbox.put(add, second, first)
    name = stage.spool.layout
    assert len(os.listdir(f"{name.needs}/inbox")) == 3
    assert sorted(os.listdir(name.waiting)) == sorted([second.task_file.name, third.task_file.name])
    stage.work(tasks=1)
    inbox.look()
    assert first.result(timeout=0) == 8
    assert left(stage.spool).count(f"results/inbox/{_claimed(stage, first.task)}") == 1
    stage.work(tasks=1)
    inbox.look()
    assert second.result(timeout=0) == 9
    assert len(os.listdir(f"{name.needs}/inbox")) == 2
    stage.work()
    inbox.look()
    assert third.result(timeout=0) == 17
    assert left(stage.spool) == []
    inbox.close()
    assert files.list_names(name.needs) == []


def _claimed(stage: Stage, task: str) -> str:
    [name] = [task_file.name for task_file in stage.seen().results.values() if task_file.task == task]
    return name


def test_dependents_run_without_their_submitter(stage: Stage) -> None:
    inbox = stage.inbox()
    last = inbox.put(pow, 2, 3)
    for _ in range(5):
        last = inbox.put(add, last, 1)
    stage.work()
    assert stage.seen().ready == {}
    later = stage.inbox()
    future = later.expect(last.header)
    later.look()
    assert future.result(timeout=0) == 13


def test_task_whose_links_are_hidden_waits_for_the_dependencies_in_its_header(stage: Stage) -> None:
    inbox = stage.inbox()
    first, second = inbox.put(tasks.pid), inbox.put(tasks.pid)
    last = inbox.put(same, [first, second])
    os.unlink(f"{stage.spool.layout.needs}/{stage.session}/{second.task}.{last.task}")
    stage.work(tasks=1)
    assert DelayedTasks(stage.spool).round() == 0
    assert files.list_names(stage.spool.layout.waiting) == [last.task_file.name]
    stage.work()
    inbox.look()
    assert last.result(timeout=0) == ([first.result(timeout=0), second.result(timeout=0)],)


def test_reopened_session_keeps_needed_outcomes(stage: Stage) -> None:
    inbox = stage.inbox()
    first = inbox.put(pow, 2, 3)
    second = inbox.put(add, first, 1)
    stage.work(tasks=1)
    later = stage.inbox()
    delivered = later.expect(first.header)
    later.look()
    assert delivered.result(timeout=0) == 8
    assert len(stage.seen().results) == 1
    stage.work()
    last = later.expect(second.header)
    later.look(rounds=8)
    assert last.result(timeout=0) == 9
    stage.clock.sleep(1)  # until caches have expired
    waiting = later.put(pow, 2, 2)
    later.look(rounds=8)
    assert left(stage.spool) == [f"ready/{LANE}/{waiting.header.bucket}/{waiting.task_file.name}"]


def test_lost_task_keeps_its_dependencies_for_a_retry(stage: Stage) -> None:
    from spoolpool.protocol.failed_tasks import retry_task

    inbox = stage.inbox()
    first = inbox.put(pow, 2, 3)
    second = inbox.put(add, first, 1, max_attempts=1)
    third = inbox.put(add, second, 1)
    stage.work(tasks=1)
    inbox.look()
    [name] = os.listdir(stage.spool.layout.bucket(LANE, second.header.bucket))
    worker = announce(stage.spool, dead_process())
    source = f"{stage.spool.layout.bucket(LANE, second.header.bucket)}/{name}"
    os.rename(source, f"{stage.spool.layout.claimed}/{name}.{worker}")
    stage.recover(rounds=2)
    inbox.look()
    assert isinstance(second.exception(timeout=0), WorkerLost)
    stage.work()
    inbox.look()
    error = third.exception(timeout=0)
    assert isinstance(error, DependencyFailed)
    assert isinstance(error.__cause__, WorkerLost)
    [kept] = os.listdir(stage.spool.layout.failed)
    assert [edge.split(".") for edge in os.listdir(f"{stage.spool.layout.needs}/inbox")] == [[first.task, second.task]]
    retry_task(stage.spool, kept)
    stage.work()
    later = stage.inbox()
    again = later.expect(second.header)
    later.look()
    assert again.result(timeout=0) == 9


def test_task_delayed_after_an_error_still_gets_its_dependencies(stage: Stage) -> None:
    from tests.support.fake_worker import leave_trace_and_raise_at_first

    inbox = stage.inbox()
    path = inbox.put(str, str(stage.effects))
    needing = inbox.put(leave_trace_and_raise_at_first, path, retries=1, retry_delay=0.0)
    stage.work()
    inbox.look()
    assert needing.result(timeout=0) == "value"
    assert left(stage.spool) == []


def test_removed_outcome_fails_dependents_after_a_while(stage: Stage) -> None:
    inbox = stage.inbox()
    first = inbox.put(pow, 2, 3)
    second = inbox.put(add, first, 1)
    stage.work(tasks=1)
    inbox.look()
    for path in (path for path in left(stage.spool) if path.startswith(("results", "outgoing"))):
        os.unlink(f"{stage.spool.path}/{path}")
    before = stage.clock.now
    stage.work()
    assert stage.clock.now - before > 0.5  # as long as caches may hide it
    inbox.look()
    error = second.exception(timeout=0)
    assert isinstance(error, DependencyFailed)
    assert f"the outcome of task {first.task} is not in" in str(error) or "No such file" in str(error)


def test_torn_outcome_fails_dependents(stage: Stage) -> None:
    inbox = stage.inbox()
    first = inbox.put(pow, 2, 3)
    second = inbox.put(add, first, 1)
    stage.work(tasks=1)
    [outcome] = [path for path in left(stage.spool) if path.startswith("outgoing")]
    os.truncate(f"{stage.spool.path}/{outcome}", 50)
    stage.work()
    inbox.forget(first.task)
    inbox.look()
    assert isinstance(second.exception(timeout=0), DependencyFailed)
    assert "torn" in str(second.exception(timeout=0))


def test_outcome_of_an_untrusted_account_is_not_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = stage.inbox()
    first = inbox.put(pow, 2, 3)
    second = inbox.put(add, first, 1)
    stage.work(tasks=1)
    [outcome] = [path for path in left(stage.spool) if path.startswith("outgoing")]
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(f"{stage.spool.path}/{outcome}", 4321, -1)
    stage.work()
    inbox.forget(first.task)
    inbox.look()
    error = second.exception(timeout=0)
    assert isinstance(error, DependencyFailed)
    assert "which is not trusted here" in str(error)


def test_task_that_was_set_aside_fails_dependents(stage: Stage) -> None:
    inbox = stage.inbox()
    first = inbox.put(pow, 2, 3)
    second = inbox.put(add, first, 1)
    third = inbox.put(add, second, 1)
    os.truncate(f"{stage.spool.layout.bucket(LANE, first.header.bucket)}/{first.task_file.name}", 100)
    stage.work()
    inbox.look(rounds=20)
    assert isinstance(first.exception(timeout=0), BadTaskFile)
    assert isinstance(second.exception(timeout=0), DependencyFailed)
    assert isinstance(third.exception(timeout=0), DependencyFailed)
    assert isinstance(second.exception(timeout=0).__cause__, BadTaskFile)
    inbox.look()
    assert [path for path in left(stage.spool) if not path.startswith("failed")] == []


def test_invalid_names_of_needed_tasks_are_refused(stage: Stage) -> None:
    from spoolpool.format import headers as records

    inbox = stage.inbox()
    header = inbox.put(pow, 2, 3).header
    for session, name in (("../x", header.task), ("inbox", "../../x")):
        import msgspec

        bad = records.encode(msgspec.structs.replace(header, needs={session: (name,)}))
        with pytest.raises(BadTaskFile, match="needs"):
            records.decode_task(bad, "path")


def test_too_many_dependencies_are_refused_and_leave_nothing(stage: Stage) -> None:
    inbox = stage.inbox()
    needs = CallReferences(stage.spool, new_task_id())
    first = inbox.put(pow, 2, 3)
    needs.refer(first)
    for _ in range(33_000):
        needs._dependencies["inbox", new_task_id()] = first
    with pytest.raises(BadRequest, match="30 000 futures"):
        inbox.submit(prepare_call(inbox, pow, 2, 3, references=needs))
    assert files.list_names(stage.spool.layout.needs) == []
    assert [future.task for future in inbox.pending.futures()] == [first.task]


def test_task_without_dependencies_costs_no_extra_operation(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.faults.disk import Disk

    inbox = stage.inbox()
    inbox.put(pow, 2, 3)  # it makes the bucket
    disk = Disk()
    with disk.installed():
        inbox.put(pow, 2, 3)
    assert disk.names == ["create", "writev", "close", "rename"]


# -- several executors and ranks


SCRIPT = """
import os, sys
from spoolpool import Executor
from tests.support import tasks

exe = Executor(spool=sys.argv[1])
last = exe.submit(tasks.wait_for, sys.argv[2], 0)
for _ in range(20):
    last = exe.submit(abs, last)
exe.submit(tasks.mark, sys.argv[3], last)
os.kill(os.getpid(), 9)
"""


def test_chain_completes_after_its_submitter_was_killed(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    gate, end = tmp_path / "gate", tmp_path / "end"
    worker(spool)
    worker(spool)
    done = run_script(tmp_path / "script.py", SCRIPT, spool.path, gate, end)
    assert done.returncode == -9, done.stderr
    gate.touch()
    wait_until(end.exists, "the last task ran")


def test_executors_of_one_spool_depend_on_each_other(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    with Executor(spool=spool.path) as other, Executor(spool=spool.path) as exe:
        first = other.submit(add, 1, 2)
        second = exe.submit(add, first, 3)
        third = other.submit(add, second, first)
        worker(spool)
        assert third.result() == 9
        wait_until(lambda: not left(spool), "no file of a task is left")


@pytest.mark.mpi
def test_values_of_several_ranks_are_an_argument_of_several_ranks(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    from tests.support import mpi_tasks

    big = 40_000  # too large for the first message of a call
    with Executor(spool=spool.path) as exe:
        ranks = exe.submit(mpi_tasks.rank, resource_dict={"cores": 2})
        data = exe.submit(bytes, big)
        both = exe.submit(same, ranks, ranks[1], data, resource_dict={"cores": 2})
        total = exe.submit(sum, ranks)
        lengths = exe.submit(lambda values: [len(value[2]) for value in values], both)
        worker(spool)
        worker(spool, mpi_ranks=2)
        assert both.result() == [([0, 1], 1, bytes(big))] * 2
        assert total.result() == 1
        assert lengths.result() == [big, big]
        failing = exe.submit(mpi_tasks.raises_on, (1,), resource_dict={"cores": 2})
        assert isinstance(exe.submit(same, failing, resource_dict={"cores": 2}).exception(), DependencyFailed)
