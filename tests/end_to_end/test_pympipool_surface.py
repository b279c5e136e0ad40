"""Interface known from pympipool: sizes, presets, working directories, and resources of a call."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor, Spool, Submission
from spoolpool.client.futures import TaskFuture
from spoolpool.errors import BadRequest, LauncherError, NotPicklable
from spoolpool.format.names import parse_lane
from spoolpool.protocol import listing, workers
from tests.support import tasks
from tests.support.processes import processes_of
from tests.support.waiting import LIMIT, wait_until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def single() -> Iterator[Executor]:
    """Executor of one group for tests that do not change it."""
    with Executor(max_workers=1) as executor:
        yield executor


def groups(executor: Executor) -> list[workers.WorkerInfo]:
    """Return the registered groups of an executor."""
    return workers.read_workers(Spool(executor.info["spool"]))


def hold(executor: Executor, directory: Path, name: str, **options: Any) -> Callable[[], None]:
    """Occupy one group; returns a function that ends its task."""
    end = directory / f"{name}-end"
    executor.submit(tasks.mark_and_wait, directory / f"{name}-started", end, **options)
    wait_until((directory / f"{name}-started").exists, f"the task {name} has started")
    return end.touch


# -------------------------------------------------------------------------------------- sizes


def test_max_workers_groups_run_at_the_same_time(tmp_path: Path) -> None:
    with Executor(max_workers=3) as executor:
        for release in [hold(executor, tmp_path, name) for name in "abc"]:
            release()
        assert len(groups(executor)) == 3
        assert executor.max_workers == 3


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of usable cores, as the package sees it: a test must not start hundreds of processes on a large node."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    return 3


def test_default_max_workers_fill_the_usable_cores(cores: int) -> None:
    with Executor() as executor:
        assert executor.max_workers == cores
    with Executor(threads_per_core=2 * cores) as executor:
        assert executor.max_workers == 1


def test_info_describes_the_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with Executor(max_workers=2, threads_per_core=2, gpus_per_worker=1, backend="local") as executor:
        info = executor.info
    assert executor.info == info  # also after shutdown
    where, session = info.pop("spool"), info.pop("session")
    assert where.startswith(tempfile.gettempdir()) and session
    assert info == {
        "max_workers": 2,
        "cores": 1,
        "threads_per_core": 2,
        "gpus_per_core": 1,
        "backend": "local",
        "queue": "default",
    }
    Spool.create(tmp_path / "spool")
    with Executor(spool=tmp_path / "spool", submission=Submission(queue="gpu")) as attached:
        assert attached.info["max_workers"] is None
        assert attached.info["spool"] == str(tmp_path / "spool")
        assert attached.info["queue"] == "gpu"


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_workers": 0},
        {"max_workers": -1},
        {"cores_per_worker": 0},
        {"threads_per_core": 0},
        {"gpus_per_worker": -1},
        {"resource_dict": {"cores": 1.5}},
        {"resource_dict": {"colour": "red"}},
        {"cwd": 3},
    ],
    ids=str,
)
def test_invalid_sizes_are_rejected_before_any_file_is_created(
    wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises((BadRequest, TypeError)):
        Executor(**wrong)
    assert list(tmp_path.iterdir()) == []


def test_len_counts_waiting_tasks(single: Executor, tmp_path: Path) -> None:
    assert len(single) == 0
    assert single  # true also without tasks
    release = hold(single, tmp_path, "first")
    futures = [single.submit(pow, 2, 2) for _ in range(5)]
    assert len(single) == 5
    futures.pop().cancel()
    assert len(single) == 4
    release()
    assert [future.result() for future in futures] == [4] * 4
    assert len(single) == 0


def test_threads_per_core_are_set_for_the_libraries_of_the_worker() -> None:
    with Executor(max_workers=1, threads_per_core=3) as executor:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        assert list(executor.map(tasks.variable, names)) == ["3"] * 3
        assert [info.threads for info in groups(executor)] == [3]


def test_groups_register_gpus_per_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with Executor(max_workers=1, gpus_per_worker=2) as executor:
        future = executor.submit(pow, 2, 2)
        assert future.result() == 4
        assert [info.gpus for info in groups(executor)] == [2]


@pytest.mark.mpi
def test_cores_per_worker_are_ranks_of_one_world_and_return_a_list() -> None:
    with Executor(max_workers=2, cores_per_worker=2) as executor:
        assert executor.submit(tasks.communicator).result() == [(0, 2), (1, 2)]
        assert executor.submit(tasks.rank_and_size).result() == [(0, 2), (1, 2)]
        assert list(executor.map(pow, [2, 3], [2, 2])) == [[4, 4], [9, 9]]
        assert list(executor.map(pow, [2, 3, 4], [2, 2, 2], chunksize=2)) == [[4, 4], [9, 9], [16, 16]]


@pytest.mark.mpi
def test_oversubscribe_allows_more_ranks_than_cores(cores: int) -> None:
    ranks = cores + 2
    with Executor(max_workers=1, cores_per_worker=ranks, oversubscribe=True) as executor:
        assert executor.submit(tasks.rank_and_size).result() == [(rank, ranks) for rank in range(ranks)]


# ------------------------------------------------------------------------- growing, shrinking


def test_an_executor_grows_while_it_runs(tmp_path: Path) -> None:
    with Executor(max_workers=1) as executor:
        first = hold(executor, tmp_path, "first")
        executor.max_workers = 2
        second = hold(executor, tmp_path, "second")  # starts although the first is not done
        assert executor.max_workers == executor.info["max_workers"] == 2
        first()
        second()


def test_an_executor_shrinks_after_running_and_before_waiting_tasks() -> None:
    with Executor(max_workers=3) as executor:
        futures = [executor.submit(tasks.work, 0.02) for _ in range(2000)]
        wait_until(lambda: len(groups(executor)) == 3, "all groups have registered")
        executor.max_workers = 1
        wait_until(lambda: len(groups(executor)) == 1, "the surplus groups have ended")
        assert len(executor) > 0
        executor.shutdown(cancel_futures=True)
    assert [future.exception() for future in futures if not future.cancelled()].count(None) > 0
    assert all(future.cancelled() or future.exception() is None for future in futures)


def test_an_executor_shrinks_while_it_is_idle_and_grows_again(tmp_path: Path) -> None:
    with Executor(max_workers=2) as executor:
        wait_until(lambda: len(groups(executor)) == 2, "both groups have registered")
        executor.max_workers = 1
        wait_until(lambda: len(groups(executor)) == 1, "one has ended")
        executor.max_workers = 2
        for release in [hold(executor, tmp_path, name) for name in "ab"]:
            release()


def test_groups_that_are_still_starting_shrink_too() -> None:
    with Executor(max_workers=3) as executor:
        executor.max_workers = 1
        assert executor.submit(pow, 2, 2).result() == 4
        wait_until(
            lambda: len(processes_of(executor.info["spool"])) == 4,
            "one worker, its guard and its heartbeat processes are left",
        )
        assert executor.submit(pow, 2, 2).result() == 4


def test_max_workers_must_be_positive_and_of_own_groups(single: Executor, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="at least 1"):
        single.max_workers = 0
    Spool.create(tmp_path / "spool")
    with Executor(spool=tmp_path / "spool") as attached, pytest.raises(BadRequest, match="spool-worker"):
        attached.max_workers = 2


# --------------------------------------------------------------------------------- presets, cwd


def test_init_function_presets_arguments_by_name_once_per_group() -> None:
    with Executor(max_workers=1, init_function=tasks.make_presets) as executor:
        first, second = (executor.submit(tasks.take_preset, given).result() for given in (1, 2))
        assert (first[0], second[0]) == (1, 2)
        assert first[1] == second[1] and first[1][0] == executor.submit(tasks.pid).result()
        assert executor.submit(tasks.take_preset, 1, 2).result() == (1, 2, None)
        assert executor.submit(tasks.take_preset, 1, preset=2).result() == (1, 2, None)
        assert executor.submit(tasks.take_preset, given=1, keyword=3).result() == (1, first[1], 3)
        assert executor.submit(pow, 2, 2).result() == 4  # takes no preset


@pytest.mark.mpi
def test_init_function_is_called_on_each_rank() -> None:
    with Executor(max_workers=1, cores_per_worker=2, init_function=tasks.make_presets) as executor:
        first = executor.submit(tasks.take_preset, 1).result()
        assert len({bytes(preset[1]) for _, preset, _ in first}) == 2
        assert executor.submit(tasks.take_preset, 1).result() == first


def test_each_executor_has_its_own_presets(tmp_path: Path) -> None:
    Spool.create(tmp_path / "spool")
    with (
        Executor(spool=tmp_path / "spool", max_workers=1, init_function=lambda: {"preset": "one"}) as one,
        Executor(spool=tmp_path / "spool", init_function=lambda: {"preset": "other"}) as other,
        Executor(spool=tmp_path / "spool") as none,
    ):
        asked = [executor.submit(tasks.take_preset, 0) for executor in (one, other, none)]
        assert [future.result()[1] for future in asked] == ["one", "other", None]


def test_a_failing_init_function_fails_the_calls() -> None:
    with Executor(max_workers=1, init_function=tasks.make_failing_presets) as executor:
        for _ in range(2):
            with pytest.raises(tasks.OwnError, match="no licence"):
                executor.submit(pow, 2, 2).result()


def test_an_init_function_must_return_a_dict() -> None:
    with Executor(max_workers=1, init_function=tasks.get_cwd) as executor:  # type: ignore[arg-type]
        error = executor.submit(pow, 2, 2).exception()
    assert isinstance(error, BadRequest)
    assert "must return a dict" in str(error)


def test_an_unpicklable_init_function_is_an_error_of_the_constructor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lock = tasks.lock()
    with pytest.raises(NotPicklable):
        Executor(max_workers=1, init_function=lambda: {"lock": lock})
    assert list(tmp_path.iterdir()) == []


def test_calls_run_in_cwd_which_is_created(tmp_path: Path) -> None:
    where = tmp_path / "not" / "made yet"
    with Executor(max_workers=1, cwd=where) as executor:
        assert executor.submit(tasks.get_cwd).result() == str(where)
        other = tmp_path / "other"
        assert executor.submit(tasks.get_cwd, resource_dict={"cwd": other}).result() == str(other)
        assert executor.submit(tasks.get_cwd).result() == str(where)


def test_a_cwd_that_cannot_be_created_is_an_error_of_the_future(single: Executor, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadRequest, match="working directory"):
        single.submit(tasks.get_cwd, resource_dict={"cwd": str(tmp_path / "file" / "below")}).result()
    assert single.submit(pow, 2, 2).result() == 4


# -------------------------------------------------------------------------------------- backend


def test_backend_local_needs_no_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOOLPOOL_MPIEXEC", "/nowhere/mpiexec")
    with Executor(max_workers=1, backend="local") as executor:
        assert executor.submit(pow, 2, 2).result() == 4
    with Executor(max_workers=1) as executor:  # auto: without mpiexec it is local
        assert executor.submit(pow, 2, 2).result() == 4
        with pytest.raises(LauncherError, match="MPI"):
            executor.submit(pow, 2, 2, resource_dict={"cores": 2})
        assert executor.submit(pow, 2, 2).result() == 4


@pytest.mark.mpi
def test_backend_mpiexec_starts_ranks() -> None:
    with Executor(max_workers=1, cores_per_worker=2, backend="mpiexec") as executor:
        assert executor.submit(tasks.communicator).result() == [(0, 2), (1, 2)]


# ---------------------------------------------------------------------- resources of a single call


def header_of(future: Future[Any]) -> Any:
    assert isinstance(future, TaskFuture)
    return future.header


def test_defaults_of_the_executor_apply_unless_a_call_overrides_them(tmp_path: Path) -> None:
    defaults = {"threads_per_core": 2, "max_attempts": 2, "cwd": str(tmp_path)}
    with Executor(max_workers=1, resource_dict=defaults) as executor:
        header = header_of(executor.submit(pow, 2, 2))
        lane = parse_lane(header.lane)
        assert lane is not None
        assert (lane.ranks, lane.threads, lane.gpus) == (1, 2, 0)
        assert (header.max_attempts, header.cwd) == (2, str(tmp_path))
        other = header_of(executor.submit(pow, 2, 2, resource_dict={"max_attempts": 7}))
        assert (other.max_attempts, other.cwd, other.lane) == (7, str(tmp_path), header.lane)
        assert executor.submit(tasks.variable, "OMP_NUM_THREADS").result() == "2"


def test_an_unknown_key_is_an_error_that_lists_the_known_ones(single: Executor) -> None:
    with pytest.raises(BadRequest, match="no key 'core'") as caught:
        single.submit(pow, 2, 2, resource_dict={"core": 2})
    for known in ("cores", "threads_per_core", "gpus_per_core", "cwd", "max_attempts", "priority"):
        assert known in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cores": 0},
        {"cores": -2},
        {"cores": "2"},
        {"cores": True},
        {"threads_per_core": 0},
        {"gpus_per_core": -1},
        {"priority": 500},
        {"priority": 1.5},
        {"max_attempts": 0},
        {"cwd": 3},
        {"cores": None},
    ],
    ids=str,
)
def test_an_invalid_value_is_an_error_that_names_it(single: Executor, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=next(iter(wrong))):
        single.submit(pow, 2, 2, resource_dict=wrong)
    assert len(single) == 0


def test_tasks_of_higher_priority_run_first(single: Executor, tmp_path: Path) -> None:
    release = hold(single, tmp_path, "first")
    order = tmp_path / "order"
    futures = [
        single.submit(write, order, priority, resource_dict={"priority": priority})
        for priority in (-5, 0, 499, 7, -499)
    ]
    listed = time.monotonic() + 2 * listing._RELIST
    wait_until(lambda: time.monotonic() > listed, "the group lists more than the bucket of its last task")
    release()
    for future in futures:
        future.result()
    assert [int(line) for line in order.read_text().split()] == [499, 7, 0, -5, -499]


def write(path: Path, number: int) -> None:
    with path.open("a") as file:
        file.write(f"{number}\n")


def test_tasks_run_in_the_order_of_submission(single: Executor, tmp_path: Path) -> None:
    release = hold(single, tmp_path, "first")
    order = tmp_path / "order"
    futures = [single.submit(write, order, number) for number in range(20)]
    release()
    for future in futures:
        future.result()
    assert [int(line) for line in order.read_text().split()] == list(range(20))


def test_a_call_may_request_another_shape(single: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    asked = {"threads_per_core": 2, "gpus_per_core": 1}
    assert single.submit(tasks.variable, "OMP_NUM_THREADS", resource_dict=asked).result() == "2"
    assert single.submit(pow, 2, 2).result() == 4  # in any group: a larger one may run it too
    assert sorted((info.threads, info.gpus) for info in groups(single)) == [(1, 0), (2, 1)]


@pytest.mark.mpi
def test_calls_with_different_numbers_of_ranks_share_an_executor() -> None:
    with Executor(max_workers=2) as executor:
        futures = [executor.submit(tasks.rank_and_size, resource_dict={"cores": cores}) for cores in (1, 2, 1, 2, 3)]
        expected: list[Any] = [[(rank, cores) for rank in range(cores)] for cores in (1, 2, 1, 2, 3)]
        expected[0] = expected[2] = (0, 1)
        assert [future.result(LIMIT) for future in futures] == expected
        where = executor.info["spool"]
    assert processes_of(where) == []
