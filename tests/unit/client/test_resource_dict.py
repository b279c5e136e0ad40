"""Resources of a call besides its shape: start time, variables, memory, error log; and the id of its worker."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click.testing
import pytest

from spoolpool import Executor, FluxBatch, Sbatch, Spool
from spoolpool.cli.spool import main
from spoolpool.client.starvation import StarvationMonitor
from spoolpool.errors import BadRequest
from spoolpool.format import headers as records
from spoolpool.format.names import Lane, is_worker_id, parse_task_file
from spoolpool.launch.allocation import Allocation
from spoolpool.launch.launcher import LaunchOptions
from spoolpool.launch.mpiexec import find_mpiexec
from spoolpool.launch.srun import SrunLauncher
from spoolpool.pool.batch_pool import BatchPool
from spoolpool.protocol import delayed_tasks
from spoolpool.protocol.delayed_tasks import DelayedTasks
from spoolpool.resources import Resources, Shape
from spoolpool.system import files
from tests.support import tasks
from tests.support.fake_worker import LANE, Clock, Stage
from tests.support.waiting import LIMIT, wait_until


def variables(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


def change_variable(name: str) -> str:
    before = os.environ[name]
    os.environ[name] = "changed by the function"
    return before


def give_id(number: int, /, spoolpool_worker_id: str = "") -> tuple[int, str, str]:
    from spoolpool import current_task

    return number, spoolpool_worker_id, current_task().worker


def give_other_id(*, executorlib_worker_id: int) -> int:
    return executorlib_worker_id


def fail(*values: object, **more: object) -> None:
    raise ValueError("as it must")


def preset_id(spoolpool_worker_id: str) -> dict[str, Any]:
    return {"preset": spoolpool_worker_id}


def use_preset(preset: str, spoolpool_worker_id: str) -> bool:
    return preset == spoolpool_worker_id


class Method:
    def call(self, spoolpool_worker_id: str) -> str:
        return spoolpool_worker_id


@pytest.fixture(
    scope="module",
    params=[1, pytest.param(2, marks=[pytest.mark.mpi, pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec")])],
)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Executor of one group, of one rank and of two."""
    with Executor(max_workers=1, cores_per_worker=request.param, init_function=preset_id) as executor:
        yield executor


def each(executor: Executor, value: object) -> object:
    """Return the result of a call that returns ``value`` on each rank."""
    ranks = executor.info["cores"]
    return value if ranks == 1 else [value] * ranks


# -- env


def test_env_is_set_on_all_ranks_for_its_call_only(executor: Executor) -> None:
    home = os.environ["HOME"]
    asked = {"env": {"SPOOLPOOL_TESTED": "a=b\nc", "HOME": "/elsewhere"}}
    with_them = executor.submit(variables, "SPOOLPOOL_TESTED", "HOME", resource_dict=asked)
    assert with_them.result(LIMIT) == each(executor, ["a=b\nc", "/elsewhere"])
    assert executor.submit(variables, "SPOOLPOOL_TESTED", "HOME").result(LIMIT) == each(executor, [None, home])


def test_variables_are_restored_even_if_the_function_changed_them_or_raised(executor: Executor) -> None:
    asked = {"env": {"SPOOLPOOL_TESTED": "1"}}
    changed = executor.submit(change_variable, "SPOOLPOOL_TESTED", resource_dict=asked)
    assert changed.result(LIMIT) == each(executor, "1")
    assert isinstance(executor.submit(fail, resource_dict=asked).exception(LIMIT), ValueError)
    assert executor.submit(variables, "SPOOLPOOL_TESTED").result(LIMIT) == each(executor, [None])


# -- the id of the worker


def test_a_worker_id_parameter_receives_the_id_of_the_worker(executor: Executor) -> None:
    given = executor.submit(give_id, 7).result(LIMIT)
    number, worker, told = given if executor.info["cores"] == 1 else given[1]  # type: ignore[misc]
    assert number == 7 and worker == told and is_worker_id(worker)
    assert executor.submit(give_other_id).result(LIMIT) == each(executor, 0)
    assert executor.submit(functools.partial(give_id, 8)).result(LIMIT) == each(executor, (8, worker, worker))
    assert executor.submit(Method().call).result(LIMIT) == each(executor, worker)


def test_an_explicit_worker_id_argument_is_kept(executor: Executor) -> None:
    by_name = executor.submit(give_id, 1, spoolpool_worker_id="mine").result(LIMIT)
    in_order = executor.submit(give_id, 1, "mine").result(LIMIT)
    bound = executor.submit(functools.partial(give_id, spoolpool_worker_id="mine"), 1).result(LIMIT)
    for found in (by_name, in_order, bound):
        assert (found if executor.info["cores"] == 1 else found[0])[1] == "mine"  # type: ignore[index]


def test_an_init_function_receives_the_worker_id_too(executor: Executor) -> None:
    assert executor.submit(use_preset).result(LIMIT) == each(executor, True)


# -- error_log_file


def test_each_rank_that_raises_appends_function_arguments_and_traceback(executor: Executor, tmp_path: Path) -> None:
    log = tmp_path / "errors"
    asked = {"error_log_file": log}
    for number in (1, 2):
        failed = executor.submit(fail, number, "x" * 5000, key=[number], resource_dict=asked)
        assert isinstance(failed.exception(LIMIT), ValueError)
    assert executor.submit(pow, 2, 3, resource_dict=asked).result(LIMIT) == each(executor, 8)
    ranks = executor.info["cores"]
    text = log.read_text()
    assert text.count("function: ") == text.count("ValueError: as it must") == 2 * ranks
    assert text.count("argument 0: 1\n") == text.count("argument 0: 2\n") == text.count("argument key: [2]\n") == ranks
    assert all(len(line) < 1100 for line in text.splitlines()), "a large argument is cut"
    for rank in range(ranks):
        assert f"attempt 1, rank {rank} on " in text


def test_an_unwritable_error_log_file_does_not_affect_the_task(executor: Executor, tmp_path: Path) -> None:
    failed = executor.submit(fail, resource_dict={"error_log_file": tmp_path / "missing" / "errors"})
    assert isinstance(failed.exception(LIMIT), ValueError)


def test_a_call_that_cannot_be_unpickled_is_logged_by_its_name(executor: Executor, tmp_path: Path) -> None:
    log = tmp_path / "errors"
    failed = executor.submit(print, tasks.bomb(), resource_dict={"error_log_file": log})
    assert failed.exception(LIMIT) is not None
    assert "function: print (not unpickled)\n" in log.read_text()


def test_a_relative_error_log_file_is_below_the_directory_of_the_submitter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Resources().updated({"error_log_file": "errors"}).error_log_file == str(tmp_path / "errors")


# -- not_before


def test_not_before_is_measured_by_the_clock_of_the_filesystem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path / "stage", Clock.installed(monkeypatch))
    ticking = Clock()
    monkeypatch.setattr(delayed_tasks, "time", ticking)
    server = [5000.0]
    monkeypatch.setattr(Spool, "server_time", lambda self: server[0])
    header = stage.submit(not_before=100.0)
    releaser = DelayedTasks(stage.spool)
    assert releaser.round() == 0 and stage.places() == {header.task: [f"waiting/{header.task}.000001.01"]}
    assert releaser.due == ticking.now + 100
    ticking.now += 100  # this host's clock is fast, so the filesystem's clock is read again
    server[0] += 90
    assert releaser.round() == 0 and releaser.due == ticking.now + 10
    stage.work()
    assert stage.runs() == {}
    server[0], ticking.now = 5100.0, ticking.now + 10
    assert releaser.round() == 1
    stage.work()
    assert stage.runs() == {header.task: 1}
    stage.check()


def test_a_task_waits_for_its_dependencies_and_its_start_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path / "stage", Clock.installed(monkeypatch))
    server = [5000.0]
    monkeypatch.setattr(Spool, "server_time", lambda self: server[0])
    inbox = stage.inbox()
    first = stage.submit(inbox)
    second = stage.submit(inbox, tasks.mark, inbox.given[first.task], not_before=100.0)
    stage.work()
    stage.collect(inbox, [first])
    assert stage.places()[second.task][0].startswith("waiting/")
    server[0] = 5200.0
    stage.work()
    assert stage.places()[second.task][0].startswith("results/")


def test_a_task_starts_at_its_time_and_can_be_cancelled_before(executor: Executor) -> None:
    soon = executor.submit(
        time.time, resource_dict={"not_before": timedelta(seconds=1), "cores": executor.info["cores"]}
    )
    never = executor.submit(pow, 2, 3, resource_dict={"not_before": datetime.now(timezone.utc) + timedelta(days=1)})
    spool = Spool(executor.info["spool"])
    assert any(name.startswith(never.task) for name in files.list_names(spool.layout.waiting))  # type: ignore[attr-defined]
    assert not soon.running() and len(executor) >= 1
    assert never.cancel()
    started = soon.result(LIMIT)
    earliest = started if isinstance(started, float) else min(started)  # type: ignore[type-var]
    assert earliest >= soon.header.not_before - 0.1  # type: ignore[attr-defined, operator]


def test_no_group_is_reported_missing_for_a_task_before_its_start_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path / "stage", Clock.installed(monkeypatch))
    inbox = stage.inbox()
    StarvationMonitor(stage.spool).check([stage.submit(inbox, not_before=1000.0)])
    assert not caplog.messages
    StarvationMonitor(stage.spool).check([stage.submit(inbox, not_before=datetime.fromtimestamp(1.0, timezone.utc))])
    assert "no worker group is alive" in caplog.text


def test_no_groups_are_started_for_a_call_before_its_start_time() -> None:
    with Executor(max_workers=1) as executor:
        asked = {"threads_per_core": 2, "not_before": 1000}
        later = executor.submit(pow, 2, 3, resource_dict=asked)
        runtime = executor._runtime
        assert runtime is not None and runtime.pool is not None
        runtime.pool.resize(Shape(threads=2), 0)
        made: list[Shape] = []
        runtime._start_spare_groups = made.append  # type: ignore[method-assign]
        runtime._supervise()
        assert made == []
        assert later.cancel()


def test_not_before_accepts_seconds_timedelta_datetime_and_text() -> None:
    assert Resources().header_fields(lambda: pytest.fail("the clock was read")) == {}
    for seconds in (60, 60.0, timedelta(minutes=1)):
        assert Resources().updated({"not_before": seconds}).header_fields(lambda: 1000.0)["not_before"] == 1060.0
    moment = datetime(2030, 1, 2, 3, 4, tzinfo=timezone.utc)
    for start in (moment, moment.isoformat(), moment.astimezone().replace(tzinfo=None)):
        assert Resources().updated({"not_before": start}).header_fields(time.time)["not_before"] == moment.timestamp()


# -- memory


@pytest.mark.parametrize(
    ("memory", "size"), [(0, 0), (1 << 20, 1 << 20), ("5000000", 5000000), ("500M", 500 << 20), ("4G", 4 << 30)]
)
def test_memory_accepts_a_number_of_bytes_or_a_text(memory: Any, size: int) -> None:
    assert Resources().updated({"memory": memory}).memory == size


def test_memory_is_an_option_of_srun_and_sbatch(monkeypatch: pytest.MonkeyPatch, spool: Spool) -> None:
    monkeypatch.setattr("spoolpool.launch.srun.shutil.which", lambda _: "/usr/bin/srun")
    launcher = SrunLauncher(Allocation(system="slurm", nodes=("n1",), cores=(8,), gpus=(0,)))
    shape = Shape(ranks=1, threads=4)
    assert "--mem-per-cpu=1025M" in launcher.command(shape, [], LaunchOptions(memory=(4 << 30) + 1, nodes=("n1",)))
    assert "--mem=0" in launcher.command(shape, [], LaunchOptions(nodes=("n1",)))
    home = Lane("default", 1, 4, 0, "3.11")
    wanted: dict[str, Any] = {"home": home, "groups": None, "memory": 4 << 30}
    script = BatchPool(spool, "session", Sbatch(directives=["--partition=long"]), **wanted).job.script("name", "out")
    assert script.index("#SBATCH --mem-per-cpu=1024M\n") < script.index("#SBATCH --partition=long\n")
    assert f"--memory={4 << 30}" in script
    script = BatchPool(spool, "session", FluxBatch(), **wanted).job.script("name", "out")
    assert "mem-per-cpu" not in script


# -- all keys


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("not_before", "tomorrow"),
        ("not_before", -1),
        ("not_before", timedelta(seconds=-1)),
        ("not_before", float("nan")),
        ("env", ["A=1"]),
        ("env", {"A": 1}),
        ("env", {"A=B": "1"}),
        ("env", {"": "1"}),
        ("env", {"A": "\0"}),
        ("memory", "much"),
        ("memory", "4GB"),
        ("memory", -1),
        ("memory", 1.5),
        ("memory", True),
        ("error_log_file", 3),
    ],
)
def test_an_invalid_resource_is_rejected_by_name(key: str, wrong: Any) -> None:
    with pytest.raises(BadRequest, match=key):
        Resources().updated({key: wrong})


def test_the_header_of_a_plain_task_has_only_required_fields(spool: Spool) -> None:
    with Executor(spool=spool.path) as executor:
        future = executor.submit(pow, 2, 3)
        said = json.loads(records.encode(future.header))  # type: ignore[attr-defined]
        future.cancel()
    assert not {"not_before", "env", "memory", "error_log_file", "needs", "time_limit"} & said.keys()


def test_show_prints_the_resources_of_a_task(spool: Spool) -> None:
    asked = {"memory": "4G", "env": {"A": "\x1b[2J"}, "error_log_file": "/e", "not_before": 3600}
    with Executor(spool=spool.path, resource_dict=asked) as executor:
        future = executor.submit(pow, 2, 3)
        assert future.header.lane == LANE, "memory is no part of the lane"  # type: ignore[attr-defined]
        shown = click.testing.CliRunner().invoke(main, ["show", spool.path, future.task]).stdout  # type: ignore[attr-defined]
        future.cancel()
    for words in ("Memory     4096 MiB per rank", "Variable   A=\\x1b[2J", "Error log  /e", "Not before 20", "held"):
        assert words in shown


def test_spool_submit_accepts_resources(spool: Spool) -> None:
    words = ["submit", "--spool", spool.path, "math:sqrt", "--arg", "4", "--session", "s"]
    words += ["--resource", "not_before=2099-01-01T12:00", "--resource", 'env={"A": "1"}', "--resource", "memory=2G"]
    assert click.testing.CliRunner().invoke(main, words).exit_code == 0
    (name,) = wait_until(lambda: files.list_names(spool.layout.waiting), "the task is delayed")
    task_file = parse_task_file(name)
    assert task_file is not None
    header = delayed_tasks.read_task(spool, f"{spool.layout.waiting}/{name}", task_file)
    assert (header.env, header.memory) == ({"A": "1"}, 2 << 30)
    assert header.not_before == datetime(2099, 1, 1, 12).astimezone().timestamp()


def give_number(started: str, end: str, executorlib_worker_id: int) -> int:
    tasks.mark_and_wait(started, end)
    return executorlib_worker_id


def test_each_live_group_has_a_number_of_its_own(tmp_path: Path) -> None:
    with Executor(max_workers=3, backend="local") as executor:
        ran = [executor.submit(give_number, f"{tmp_path}/{n}", f"{tmp_path}/end") for n in range(3)]
        wait_until(lambda: all((tmp_path / str(n)).exists() for n in range(3)), "each group runs a call")
        (tmp_path / "end").touch()
        assert sorted(each.result(LIMIT) for each in ran) == [0, 1, 2]
