"""Code of users that raises an exception of any kind costs one call its outcome, and no worker and no thread."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click.testing
import pytest

from spoolpool import Executor, Submission, wire
from spoolpool.calls import pickling
from spoolpool.calls.fingerprint import fingerprint
from spoolpool.cli.spool import main
from spoolpool.errors import (
    BadRequest,
    DependencyFailed,
    NotPicklable,
    NotUnpicklable,
    SpoolpoolError,
    TaskTimeout,
)
from spoolpool.launch.mpiexec import find_mpiexec
from spoolpool.protocol.spool import Spool
from spoolpool.system.user_code import describe_error, describe_value
from tests.support import tasks
from tests.support.tasks import RaisesAtItsEnd, RaisesInUse, RaisesPickled, RaisesUnpickled
from tests.support.waiting import LIMIT, wait_until

pytestmark = pytest.mark.timeout(120)

KINDS = [
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    MemoryError,
    RecursionError,
    TaskTimeout,
    tasks.AbruptError,
]
any_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@pytest.fixture(scope="module")
def shared() -> Iterator[Executor]:
    with Executor(max_workers=1) as executor:
        yield executor


@pytest.fixture
def group(shared: Executor) -> Iterator[int]:
    """Pid of the only group, which still serves at the end of the test."""
    pid = shared.submit(tasks.pid).result(LIMIT)
    yield pid
    assert shared.submit(tasks.pid).result(LIMIT) == pid


@any_kind
def test_a_result_whose_pickling_raises_is_the_error_of_its_task(
    shared: Executor, group: int, kind: type[BaseException]
) -> None:
    error = shared.submit(tasks.return_new, RaisesPickled, kind).exception(LIMIT)
    assert type(error) is NotPicklable
    assert "RaisesPickled" in str(error)


@any_kind
def test_a_result_whose_unpickling_raises_is_the_error_of_its_future(
    shared: Executor, group: int, kind: type[BaseException]
) -> None:
    error = shared.submit(tasks.return_new, RaisesUnpickled, kind).exception(LIMIT)
    assert isinstance(error, (NotUnpicklable, kind))


@any_kind
@pytest.mark.parametrize("make", [RaisesPickled, RaisesUnpickled])
def test_an_exception_that_cannot_be_sent_is_described(
    shared: Executor, group: int, make: type, kind: type[BaseException]
) -> None:
    error = shared.submit(tasks.fail_new, make, kind).exception(LIMIT)
    assert type(error) is tasks.OwnError  # without that argument
    assert make.__name__ in str(error)


@any_kind
def test_an_exception_whose_text_raises_is_delivered(shared: Executor, group: int, kind: type[BaseException]) -> None:
    error = shared.submit(tasks.fail_new, RaisesInUse, kind).exception(LIMIT)
    assert type(error) is RaisesInUse


@any_kind
def test_a_result_whose_methods_raise_is_delivered(
    shared: Executor, group: int, kind: type[BaseException], tmp_path: Path
) -> None:
    assert type(shared.submit(tasks.return_new, RaisesInUse, kind).result(LIMIT)) is RaisesInUse
    logged = {"error_log_file": tmp_path / "errors"}
    value = RaisesInUse(kind)
    error = shared.submit(tasks.raise_new, tasks.OwnError, unused=value, resource_dict=logged).exception(LIMIT)
    assert type(error) is tasks.OwnError
    assert "RaisesInUse" in (tmp_path / "errors").read_text()


@any_kind
def test_an_argument_whose_unpickling_raises_is_the_error_of_its_task(
    shared: Executor, group: int, kind: type[BaseException]
) -> None:
    error = shared.submit(tasks.keywords, value=RaisesUnpickled(kind)).exception(LIMIT)
    assert isinstance(error, (NotUnpicklable, kind))


@any_kind
def test_an_argument_whose_pickling_raises_is_an_error_of_submit(
    shared: Executor, group: int, kind: type[BaseException], tmp_path: Path
) -> None:
    interrupts = issubclass(kind, KeyboardInterrupt)  # passed on in the main thread
    with pytest.raises(kind if interrupts else NotPicklable):
        shared.submit(tasks.keywords, value=RaisesPickled(kind))
    raised: Future[Any] = Future()
    # a callback of a future that is done runs at once, in the main thread
    gate = shared.submit(tasks.wait_for, tmp_path / "go")
    gate.add_done_callback(lambda _: raised.set_result(_error_of_submit(shared, kind)))
    (tmp_path / "go").touch()
    assert type(raised.result(LIMIT)) is NotPicklable


def _error_of_submit(executor: Executor, kind: type[BaseException]) -> BaseException | None:
    try:
        executor.submit(tasks.keywords, value=RaisesPickled(kind))
    except BaseException as error:  # noqa: BLE001  it is the result
        return error
    return None


@any_kind
def test_a_callback_that_raises_stops_neither_other_callbacks_nor_the_executor(
    shared: Executor, group: int, kind: type[BaseException], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    called: list[Future[Any]] = []
    future = shared.submit(tasks.wait_for, tmp_path / "end", [7])
    future.add_done_callback(lambda _: tasks.raise_new(kind, "in a callback"))
    future.add_done_callback(called.append)
    part = future[0]  # type: ignore[index]
    part.add_done_callback(lambda _: tasks.raise_new(kind, "in a callback of a part"))
    part.add_done_callback(called.append)
    (tmp_path / "end").touch()
    assert part.result(LIMIT) == 7
    wait_until(lambda: called in ([part, future], [future, part]), "the other callbacks were called")
    assert kind.__name__ in caplog.text


@any_kind
def test_a_part_that_raises_is_the_error_of_its_future(shared: Executor, group: int, kind: type[BaseException]) -> None:
    whole = shared.submit(tasks.return_new, RaisesInUse, kind)
    assert type(whole[0].exception(LIMIT)) is kind  # type: ignore[index]
    error = shared.submit(tasks.keywords, value=whole[0]).exception(LIMIT)  # type: ignore[index]
    assert isinstance(error, (DependencyFailed, NotUnpicklable, kind))


@any_kind
def test_a_dependency_whose_exception_cannot_be_used_fails_its_dependents(
    shared: Executor, group: int, kind: type[BaseException]
) -> None:
    for make in (RaisesPickled, RaisesUnpickled, RaisesInUse):
        failing = shared.submit(tasks.fail_new, make, kind)
        assert type(shared.submit(tasks.keywords, value=failing).exception(LIMIT)) is DependencyFailed
        assert failing.exception(LIMIT) is not None
        late = shared.submit(tasks.keywords, value=failing).exception(LIMIT)  # its outcome is removed by now
        assert type(late) is DependencyFailed


@any_kind
def test_a_finalizer_that_raises_does_not_change_the_outcome(
    shared: Executor, group: int, kind: type[BaseException]
) -> None:
    assert shared.submit(tasks.make_and_drop, RaisesAtItsEnd, kind).result(LIMIT) is None


@any_kind
@pytest.mark.parametrize("chunksize", [1, 3])
def test_a_chunk_of_a_map_whose_result_cannot_be_sent_fails(
    shared: Executor, group: int, chunksize: int, kind: type[BaseException]
) -> None:
    with pytest.raises(NotPicklable):
        list(shared.map(functools.partial(tasks.return_new, RaisesPickled), [kind] * 4, chunksize=chunksize))


@any_kind
def test_an_init_function_that_raises_is_the_error_of_each_call(kind: type[BaseException]) -> None:
    with Executor(max_workers=1, init_function=functools.partial(tasks.raise_new, kind)) as executor:
        assert [type(executor.submit(abs, -1).exception(LIMIT)) for _ in range(2)] == [kind] * 2


@any_kind
def test_each_call_of_a_pack_has_an_error_of_its_own(kind: type[BaseException]) -> None:
    def packed(function: Any, *args: Any) -> tuple[bytes, list[bytes]]:
        return bytes(pickling.dumps((function, args, {}))[0]), []

    calls = [
        packed(pow, 2, 2),
        packed(tasks.return_new, RaisesPickled, kind),
        packed(tasks.fail_new, RaisesPickled, kind),
        packed(tasks.keywords, RaisesUnpickled(kind)),
        packed(pow, 2, 3),
    ]
    with ThreadPoolExecutor(1) as thread:  # the main thread of this process, unlike a worker's, may be interrupted
        results = thread.submit(wire.run_pack, calls).result(LIMIT)
    assert (results[0], results[4]) == (4, 8)
    for number in (1, 2, 3):
        with pytest.raises((SpoolpoolError, tasks.OwnError, kind)):
            results[number]


@any_kind
def test_a_call_without_a_fingerprint_is_refused(kind: type[BaseException]) -> None:
    passed_on = issubclass(kind, (KeyboardInterrupt, TaskTimeout))
    for value in (RaisesPickled(kind), frozenset([_Keyed(kind)])):
        with pytest.raises((kind, BadRequest) if passed_on else BadRequest):
            fingerprint(tasks.keywords, (value,), {})


class _Keyed:
    """Value with a state that cannot be iterated."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return _Keyed, (), None, map(tasks.raise_new, [self.kind])


@any_kind
def test_a_callable_that_cannot_be_compared_is_packed(served: Spool, kind: type[BaseException]) -> None:
    if issubclass(kind, KeyboardInterrupt):
        pytest.skip("passed on in the main thread")
    with Executor(spool=served.path, submission=Submission(pack=True)) as executor:
        assert [each.result(LIMIT) for each in [executor.submit(_Uncomparable(kind)) for _ in range(20)]] == [5] * 20


class _Uncomparable:
    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __hash__(self) -> int:
        return tasks.raise_new(self.kind)

    def __eq__(self, other: object) -> bool:
        return tasks.raise_new(self.kind)

    def __call__(self) -> int:
        return 5


@any_kind
def test_texts_of_values_and_errors_never_raise(kind: type[BaseException]) -> None:
    value = RaisesInUse(kind)
    assert describe_value(value) == "<RaisesInUse>"
    assert describe_error(value) == "RaisesInUse: (its __str__ failed)"
    assert describe_error(ValueError("name \udcff")) == "ValueError: name \\udcff"


def test_an_exception_with_undecodable_bytes_in_its_text_is_delivered(shared: Executor, group: int) -> None:
    error = shared.submit(tasks.fail, ValueError("name \udcff")).exception(LIMIT)
    assert type(error) is ValueError
    assert error.args == ("name \udcff",)


def test_ctrl_c_during_the_pickling_of_an_argument_ends_submit(shared: Executor, group: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        shared.submit(tasks.keywords, value=_Interrupted())


class _Interrupted:
    def __reduce__(self) -> tuple[Any, ...]:
        os.kill(os.getpid(), signal.SIGINT)
        return _Interrupted, ()


def test_a_time_limit_ends_a_call_that_pickles(shared: Executor) -> None:
    error = shared.submit(tasks.pickle_for_ever, resource_dict={"time_limit": 0.2}).exception(LIMIT)
    assert type(error) is TaskTimeout


@pytest.mark.mpi
@pytest.mark.skipif(not find_mpiexec(), reason="there is no mpiexec")
@any_kind
def test_a_rank_whose_result_cannot_be_sent_fails_its_call(kind: type[BaseException]) -> None:
    with Executor(max_workers=1, cores_per_worker=2, backend="mpiexec") as executor:
        assert type(executor.submit(tasks.return_new, RaisesPickled, kind).exception(LIMIT)) is NotPicklable
        assert type(executor.submit(tasks.fail_new, RaisesUnpickled, kind).exception(LIMIT)) is tasks.OwnError
        assert executor.submit(pow, 2, 2).result(LIMIT) == [4, 4]


@any_kind
def test_a_value_without_a_text_is_printed_by_its_class(served: Spool, kind: type[BaseException]) -> None:
    session = f"shown-{kind.__name__}"
    with Executor(spool=served.path, session=session, cache=True) as executor:
        shown = executor.submit(tasks.return_first, RaisesInUse(kind))  # the cache describes its arguments
        assert shown.exception(LIMIT) is None
    for words in (["session", "results", served.path, session], ["result", served.path, "--session", session]):
        for options in ([], ["--json"]):
            result = click.testing.CliRunner().invoke(main, [*words, *options])
            assert (result.exit_code, result.exception) == (0, None)
            assert "RaisesInUse" in result.stdout


@any_kind
def test_a_result_that_cannot_be_loaded_is_an_error_of_the_command(served: Spool, kind: type[BaseException]) -> None:
    if issubclass(kind, KeyboardInterrupt):
        pytest.skip("passed on in the main thread")
    session = f"lost-{kind.__name__}"
    with Executor(spool=served.path, session=session) as executor:
        executor.submit(tasks.return_new, RaisesUnpickled, kind).exception(LIMIT)
        executor.submit(tasks.raise_new, kind).exception(LIMIT)
    for words in (["session", "results", served.path, session], ["result", served.path, "--session", session]):
        result = click.testing.CliRunner().invoke(main, words)
        assert result.exit_code not in (0, 3) or words[0] == "session"
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert result.output


@any_kind
def test_a_module_that_raises_is_an_error_of_the_command(
    served: Spool, kind: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        pytest.skip("passed on in the main thread")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"raises_{kind.__name__}"
    (tmp_path / f"{name}.py").write_text(
        "import builtins, spoolpool.errors, tests.support.tasks as t\n"
        f"raise getattr(t, {kind.__name__!r}, getattr(spoolpool.errors, {kind.__name__!r}, None)\n"
        f"              or getattr(builtins, {kind.__name__!r}, None))('imported')\n"
    )
    result = click.testing.CliRunner().invoke(main, ["submit", "--spool", served.path, f"{name}:function"])
    assert result.exit_code == BadRequest.exit_code
    assert f"it raises {kind.__name__}" in result.stderr
