"""Objects: stored once, mapped by every group, removed after the last session and task that use them."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import pickle
import signal
import time
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from spoolpool import Executor, Spool, Submission
from spoolpool.calls import pickling
from spoolpool.calls.pickling import ObjectRef
from spoolpool.client import object_store
from spoolpool.client import session as session_module
from spoolpool.client.object_store import SessionObjects
from spoolpool.client.references import CallReferences
from spoolpool.errors import (
    BadRequest,
    BadTaskFile,
    BrokenSpool,
    DependencyFailed,
    NotTrusted,
    SpoolFull,
    SpoolpoolError,
)
from spoolpool.format.config import RetentionPolicy
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import (
    ObjectLease,
    TaskFile,
    is_object_id,
    new_task_id,
    new_worker_id,
    parse_lease,
    parse_task_file,
)
from spoolpool.launch.mpiexec import find_mpiexec
from spoolpool.maintenance import garbage
from spoolpool.maintenance.check import check
from spoolpool.maintenance.garbage import find_garbage, remove
from spoolpool.protocol import object_cache, object_leases, object_references, object_removal, objects
from spoolpool.protocol.claim import Claim
from spoolpool.protocol.failed_tasks import retry_task
from spoolpool.protocol.object_cache import ObjectCache
from spoolpool.protocol.object_leases import acquire
from spoolpool.protocol.object_removal import remove_object
from spoolpool.protocol.objects import object_id, put_object, read_object
from spoolpool.protocol.sessions import SessionInfo
from spoolpool.security.signing import key_path, make_key
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.processes import ProcessId
from tests.conftest import Workers
from tests.faults.disk import CRASHED, SPACE, Disk, Fault, at, in_child
from tests.support.fake_worker import (
    Clock,
    Inbox,
    Stage,
    announce,
    dead_process,
    leave_trace,
    prepare_call,
    unknown_process,
)
from tests.support.processes import start_script
from tests.support.waiting import LIMIT, wait_until

DAY = 86400.0
SIZE = 1 << 18
"""Numbers in an array of 2 MiB: large enough to be mapped, and to be shared without being asked."""


def paths(spool: Spool | str, *directories: str) -> list[str]:
    root = Path(spool if isinstance(spool, str) else spool.path)
    return sorted(
        str(path.relative_to(root)) for each in directories for path in (root / each).rglob("*") if path.is_file()
    )


def total(array: np.ndarray[Any, Any], more: float = 0) -> float:
    return float(array.sum()) + more


def write_into(array: np.ndarray[Any, Any]) -> float:
    array += 1
    return float(array[0])


def look(value: object) -> tuple[bool, bool]:
    """Return whether an array is writable, and whether two arguments with one reference are one object."""
    one, (two,), three = value["one"], value["list"], value["box"].inside  # type: ignore[index]
    return one.flags.writeable, one is two is three


def mapped(array: np.ndarray[Any, Any]) -> tuple[int, list[str]]:
    """Return the process id, and the mapping of an object in it: rights, device and inode."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ours = [words for words in lines if is_object_id(words[-1].rpartition("/objects/")[2])]
    return os.getpid(), sorted({f"{rights} {device} {inode}" for _, rights, _, device, inode, *_ in ours})


def change(value: dict[str, list[int]]) -> list[int]:
    value["list"].append(len(value["list"]))
    return value["list"]


def look_inside(value: dict[str, list[Any]], pair: tuple[int, Any]) -> tuple[float, float]:
    return float(value["list"][0].sum()), float(pair[1].sum())


def change_columns(table: dict[str, Any]) -> list[float]:
    for column in table.values():
        np.add(column, 1, out=column)
    return [float(column[0]) for column in table.values()]


def raise_full(*_: object) -> None:
    raise SpoolFull("no room")


class Box:
    def __init__(self, inside: object) -> None:
        self.inside = inside


@pytest.fixture
def ones() -> np.ndarray[Any, Any]:
    return np.ones(SIZE)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spool]:
    """A spool with two groups."""
    directory = tmp_path_factory.mktemp("served")
    spool = Spool.create(directory / "spool", durability="none")
    workers = Workers(directory)
    workers(spool)
    workers(spool)
    yield spool
    workers.stop()


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the objects that executors of this process store."""
    names: list[str] = []

    def put(spool: Spool, payload: Any, buffers: Any, writer: str, name: str = "") -> str:
        names.append(name)
        return put_object(spool, payload, buffers, writer, name)

    monkeypatch.setattr(object_store, "put_object", put)
    return names


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path / "stage", Clock.installed(monkeypatch))


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that lets days pass on the clock that dates the spool's files."""
    real = Spool.server_time

    def pass_by(days: float) -> None:
        monkeypatch.setattr(Spool, "server_time", lambda spool: real(spool) + days * DAY)

    return pass_by


def collect_garbage(spool: Spool) -> list[str]:
    found = find_garbage(spool)
    remove(spool, found)
    return [each.path for each in found]


# -- put


def test_hundred_tasks_use_an_array_written_once(served: Spool, ones: np.ndarray[Any, Any]) -> None:
    with Executor(spool=served.path) as executor:
        ref = executor.put(ones)
        assert executor.put(ones.copy()) == ref, "the same content is the same object"
        futures = [executor.submit(total, ref, number) for number in range(100)]
        assert paths(served, "objects") == [f"objects/{ref.name}"]
        assert [future.result(LIMIT) for future in futures] == [SIZE + number for number in range(100)]
    assert not paths(served, "objects", "needs", "tmp")


def test_processes_of_a_node_map_the_same_read_only_memory(served: Spool, ones: np.ndarray[Any, Any]) -> None:
    with Executor(spool=served.path) as executor:
        ref = executor.put(ones * 3)
        seen: dict[int, list[str]] = {}

        def both() -> bool:
            seen.update([executor.submit(mapped, ref).result(LIMIT)])
            return len(seen) == 2

        wait_until(both, "both groups ran one")
        one, two = seen.values()
        assert one == two and len(one) == 1 and one[0].startswith("r--p ")
        failed = executor.submit(write_into, ref).exception(LIMIT)
        assert isinstance(failed, ValueError) and "read-only" in str(failed)


def test_reference_works_at_any_depth_and_is_one_value_per_call(served: Spool, ones: np.ndarray[Any, Any]) -> None:
    with Executor(spool=served.path) as executor:
        ref = executor.put(ones)
        value = {"one": ref, "list": [ref], "box": Box(ref)}
        assert executor.submit(look, value).result(LIMIT) == (False, True)
        assert executor.submit(total, array=ref, more=executor.submit(total, ref)).result(LIMIT) == 2 * SIZE


@pytest.mark.mpi
@pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec")
def test_all_ranks_of_a_group_map_an_object(ones: np.ndarray[Any, Any]) -> None:
    with Executor(max_workers=1, cores_per_worker=2) as executor:
        ref = executor.put(ones)
        (one, here), (two, there) = executor.submit(mapped, ref).result(LIMIT)  # type: ignore[misc]
        assert one != two and here == there and len(here) == 1 and here[0].startswith("r--p ")
        assert executor.submit(total, ref, 1).result(LIMIT) == [SIZE + 1] * 2  # type: ignore[comparison-overlap]
        for _ in range(3):
            assert executor.submit(write_into, ones).result(LIMIT) == [2.0, 2.0]  # type: ignore[comparison-overlap]


def test_call_does_not_see_changes_of_another_call_to_a_list(served: Spool) -> None:
    with Executor(spool=served.path) as executor:
        ref = executor.put({"list": [0]})
        assert [executor.submit(change, ref).result(LIMIT) for _ in range(4)] == [[0, 1]] * 4


def test_other_session_uses_a_reference_and_keeps_the_object(served: Spool, ones: np.ndarray[Any, Any]) -> None:
    second = Executor(spool=served.path)
    with Executor(spool=served.path) as first:
        ref = first.put(ones)
        copy = pickle.loads(pickle.dumps(ref))
        assert copy == ref
        held = second.submit(total, copy)
    assert held.result(LIMIT) == SIZE
    assert second.submit(total, copy).result(LIMIT) == SIZE, "the first one has ended"
    second.shutdown()
    assert not paths(served, "objects", "needs")


def test_unusable_reference_is_refused_by_submit(served: Spool, ones: np.ndarray[Any, Any]) -> None:
    with Executor(spool=served.path) as executor, Executor(max_workers=1) as other:
        ref = executor.put(ones)
        with pytest.raises(BadRequest, match="another spool"):
            other.submit(total, ref)
        gone = ObjectRef(ref.spool, "0" * 32, 1)
        with pytest.raises(BadRequest, match=r"was removed from"):
            executor.submit(total, gone)
        with pytest.raises(BadRequest, match="contains a reference"):
            executor.put([ref])
        with pytest.raises(BadRequest, match="contains a future"):
            executor.put([executor.submit(total, ref)])
        assert len(paths(served, "needs")) == 1


def test_put_does_not_copy_an_array(spool: Spool) -> None:
    array = np.ones(4 << 20)
    text = "x" * (16 << 20)
    with Executor(spool=spool.path) as executor:
        executor.put(np.ones(10))  # imports
        # a text is pickled, which takes its bytes and some growth of the buffer; nothing is copied after that
        for value, most in ((array, 0.1 * array.nbytes), (text, 1.6 * len(text))):
            tracemalloc.start()
            executor.put(value)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < most


# -- objects that a rank keeps open


def test_rank_opens_an_object_once(spool: Spool, monkeypatch: pytest.MonkeyPatch, ones: np.ndarray[Any, Any]) -> None:
    names = [put_object(spool, *pickling.dumps(ones + number), "writer") for number in range(3)]
    opened: Counter[str] = Counter()
    real = files.open_file

    def count(path: str, *, write: bool = False) -> int:
        opened[os.path.basename(path)] += 1
        return real(path, write=write)

    monkeypatch.setattr(files, "open_file", count)
    monkeypatch.setattr(object_cache, "_KEPT", 2)
    cache = ObjectCache(spool, Trust())
    gc.collect()  # a collection later would close descriptors that earlier tests have left
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        found = pickling.loads(*cache.content(names[0])[1:])
        assert found[0] == 1 and not found.flags.writeable
    assert opened == {names[0]: 1}
    for name in names[1:]:
        cache.content(name)
    assert cache.content(names[2]) and opened[names[2]] == 1
    assert len(os.listdir("/proc/self/fd")) == before + 2 * 2 + 1, "one is still mapped, because it is in use"
    cache.content(names[0])
    assert opened[names[0]] == 2, "the least recently used one is closed first"
    assert found.sum() == SIZE, "the array of a running call stays valid"


def test_object_hidden_by_a_cache_is_waited_for(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, ones: np.ndarray[Any, Any]
) -> None:
    clock = Clock.installed(monkeypatch)
    monkeypatch.setattr(object_cache, "time", clock)
    name = put_object(spool, *pickling.dumps(ones), "writer")
    path = Path(spool.layout.objects, name)
    hidden = path.rename(path.with_name("hidden"))
    monkeypatch.setattr(files, "refresh", lambda directory: hidden.rename(path))
    assert ObjectCache(spool, Trust()).content(name)
    monkeypatch.setattr(files, "refresh", lambda directory: None)
    began = clock.now
    with pytest.raises(DependencyFailed, match="Put it again"):
        ObjectCache(spool, Trust()).content("0" * 32)
    assert clock.now - began > spool.config.caches


def test_call_fails_with_the_name_of_its_missing_object(stage: Stage) -> None:
    inbox = stage.inbox()
    ref = inbox.put_object("needed")
    header = stage.submit(inbox, leave_trace, ref)
    Path(stage.spool.layout.objects, ref.name).unlink()
    stage.work()
    stage.may_come = (DependencyFailed,)
    stage.collect(inbox, [header])
    stage.check()
    assert not stage.runs() and stage.notes("delivered") == {header.task: 1}


# -- automatic sharing


def test_array_sent_twice_is_stored_once_and_writable_for_each_call(served: Spool, ones: np.ndarray[Any, Any]) -> None:
    with Executor(spool=served.path) as executor:
        futures = [executor.submit(write_into, ones) for _ in range(4)]
        assert [future.result(LIMIT) for future in futures] == [2.0] * 4
        headers = [future.header.objects for future in futures]  # type: ignore[attr-defined]
        (name,) = headers[1]
        assert headers == [{}, *[{name: (0,)}] * 3]
        assert paths(served, "objects") == [f"objects/{name}"]
        ones[0] = 7  # the content decides, not the object
        assert executor.submit(write_into, ones).result(LIMIT) == 8.0
    assert not paths(served, "objects", "needs")


def test_functions_and_other_arguments_are_shared_too(served: Spool) -> None:
    table = {str(number): number for number in range(100_000)}

    def with_table(key: str) -> int:
        return table[key]

    with Executor(spool=served.path) as executor:
        by_closure = [executor.submit(with_table, str(number)) for number in range(3)]
        as_argument = [executor.submit(dict.get, table, "7") for _ in range(3)]
        in_chunks = executor.map(with_table, map(str, range(6)), chunksize=2)
        assert [future.result(LIMIT) for future in by_closure] == [0, 1, 2]
        assert [future.result(LIMIT) for future in as_argument] == [7, 7, 7]
        assert list(in_chunks) == list(range(6))
        assert len(paths(served, "objects")) == 2, "the function and the table"


def test_sharing_has_a_threshold_and_can_be_switched_off(served: Spool, ones: np.ndarray[Any, Any]) -> None:
    for least, shared in ((None, 0), (ones.nbytes + 1, 0), (ones.nbytes, 1)):
        with Executor(spool=served.path, submission=Submission(share_from=least)) as executor:
            futures = [executor.submit(total, ones, more=1) for _ in range(3)]
            assert [future.result(LIMIT) for future in futures] == [SIZE + 1] * 3
            assert len(paths(served, "objects")) == shared
    with pytest.raises(BadRequest, match="share_from"):
        Submission(share_from=1)


def test_buffers_of_one_call_are_put_in_their_places(served: Spool) -> None:
    arrays = [np.full(SIZE, number) for number in range(4)]
    with Executor(spool=served.path) as executor:
        executor.submit(sum, arrays[1:3]).result(LIMIT)
        future = executor.submit(np.concatenate, [arrays[0], arrays[1], np.arange(SIZE), arrays[2], arrays[1]])
        assert sorted(future.header.objects.values()) == [(1,), (3,)] or sorted(  # type: ignore[attr-defined]
            future.header.objects.values()  # type: ignore[attr-defined]
        ) == [(1, 4), (3,)]
        expected = np.concatenate([arrays[0], arrays[1], np.arange(SIZE), arrays[2], arrays[1]])
        assert (future.result(LIMIT) == expected).all()


def test_large_array_of_many_calls_is_written_once(
    served: Spool, ones: np.ndarray[Any, Any], written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_AT_ONCE", ones.nbytes)
    with Executor(spool=served.path) as executor:
        futures = [executor.submit(write_into, ones) for _ in range(5)]
        nested = executor.submit(look_inside, {"list": [ones]}, (1, ones[:10]))
        mapped_calls = executor.map(total, [ones] * 5)
        assert [future.result(LIMIT) for future in futures] == [2.0] * 5
        assert nested.result(LIMIT) == (float(SIZE), 10.0)
        assert list(mapped_calls) == [float(SIZE)] * 5
        assert executor.submit(write_into, ones).result(LIMIT) == 2.0, "one after another"
        (name,) = set(written)
        assert len(written) == 1 and paths(served, "objects") == [f"objects/{name}"]
        assert all(future.header.objects == {name: (0,)} for future in futures)  # type: ignore[attr-defined]
    assert not paths(served, "objects", "needs")


def test_executor_keeps_no_reference_to_a_shared_array(served: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_AT_ONCE", 1 << 20)
    with Executor(spool=served.path) as executor:
        array = np.ones(SIZE)
        reference = weakref.ref(array)
        future = executor.submit(total, array)
        del array
        gc.collect()
        assert reference() is None
        assert future.result(LIMIT) == SIZE


@pytest.mark.parametrize("at_once", [1 << 20, 1 << 30])
def test_array_that_is_changed_between_two_calls_is_sent_as_it_is(
    served: Spool, ones: np.ndarray[Any, Any], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_AT_ONCE", at_once)
    with Executor(spool=served.path) as executor:
        futures = []
        for number in (0, 1, 2, 0, 1, 2, 3):
            ones[-1] = number
            futures.append(executor.submit(look_inside, {"list": [ones]}, (1, ones[-1:])))
        expected = [(SIZE - 1.0 + number, float(number)) for number in (0, 1, 2, 0, 1, 2, 3)]
        assert [future.result(LIMIT) for future in futures] == expected


def test_small_arrays_of_one_argument_are_shared_together(served: Spool, written: list[str]) -> None:
    table = {name: np.full(8000, float(number)) for number, name in enumerate("abcdefghijklmnopqrstuvwxyz")}
    with Executor(spool=served.path) as executor:
        futures = [executor.submit(change_columns, table) for _ in range(4)]
        assert [future.result(LIMIT) for future in futures] == [[number + 1.0 for number in range(26)]] * 4
        assert len(written) == 1
        assert futures[3].header.objects == {written[0]: tuple(range(26))}  # type: ignore[attr-defined]
        table["c"][0] = -7
        assert executor.submit(change_columns, table).result(LIMIT)[2] == -6


def test_arrays_with_the_same_bytes_and_other_lengths_are_not_taken_for_each_other(served: Spool) -> None:
    splits = [(100_000, 60_000), (60_000, 100_000), (80_000, 80_000)]
    with Executor(spool=served.path, submission=Submission(share_from=1_000_000)) as executor:
        futures = [executor.submit(list, [np.ones(length) for length in split]) for split in splits * 3]
        assert [tuple(map(len, future.result(LIMIT))) for future in futures] == splits * 3
        assert all(future.header.objects for future in futures[3:])  # type: ignore[attr-defined]


def test_shared_objects_without_a_task_are_removed_but_the_last_one(
    spool: Spool, ones: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_AT_ONCE", 1 << 20)
    monkeypatch.setattr(object_store, "_UNUSED", 2 * ones.nbytes)
    kept: set[str] = set()
    store = SessionObjects(spool, "inbox", needed=kept)

    def share(number: float) -> str:
        remaining, positions = store.share([memoryview(ones + number).cast("B")], 1 << 20)
        assert not remaining
        (name,) = positions
        store.remove_unused()
        return name

    first = [share(number) for number in range(4)]
    assert len(paths(spool, "objects")) == 4, "tasks need them"
    store.end_uses(first)
    store.remove_unused()
    assert paths(spool, "objects") == [f"objects/{first[3]}"] and len(paths(spool, "needs")) == 1
    assert share(3) == first[3] and share(0) == first[0], "it is stored again"
    kept.add(first[0])
    assert share(1) and store.put(b"", [memoryview(ones + 1).cast("B")]) == first[1]
    store.end_uses([first[0], first[1], first[3]])
    others = [share(number) for number in range(10, 14)]
    store.end_uses(others)
    store.remove_unused()
    left = {os.path.basename(path) for path in paths(spool, "objects")}
    assert left == {first[0], first[1], others[3]}, "of a task that may be retried, put by the user, and the last one"
    store.close()
    assert paths(spool, "objects") == [f"objects/{first[0]}"]


def test_call_that_could_not_be_submitted_uses_no_object(
    served: Spool, ones: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_AT_ONCE", 1 << 20)
    with Executor(spool=served.path) as executor:
        session = executor._require_runtime().session
        with monkeypatch.context() as patch:
            patch.setattr(type(session), "submit", raise_full)
            with pytest.raises(SpoolFull):
                executor.submit(total, ones)
        executor.submit(total, ones).result(LIMIT)
        session.objects.remove_unused()
        assert not session.objects._uses


@pytest.mark.parametrize("mode", ["keeps", "dropbox"])
def test_first_use_is_not_shared_where_the_object_could_not_be_removed(
    spool: Spool, ones: np.ndarray[Any, Any], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_AT_ONCE", 1 << 20)
    monkeypatch.setattr(spool, "sees_all", mode != "dropbox")
    store = SessionObjects(spool, "inbox", keeps=mode == "keeps")
    buffers: list[Any] = [memoryview(ones).cast("B")]
    assert store.share(buffers, 1 << 20) == (buffers, {})
    remaining, positions = store.share(buffers, 1 << 20)
    assert not remaining and len(positions) == 1


def test_rank_closes_removed_objects_and_reads_a_checked_one_without_a_check(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = [np.full(SIZE * 4, float(number)) for number in range(3)]
    names = [put_object(spool, b"", [memoryview(array).cast("B")], "writer") for array in arrays]
    cache = ObjectCache(spool, Trust())
    gc.collect()  # a collection later would close descriptors that earlier tests have left
    before = len(os.listdir("/proc/self/fd"))

    def first(name: str) -> float:
        (buffer,) = cache.fill({name: (0,)}, [])
        array = np.frombuffer(buffer)
        array[0] += 10
        return float(array[0])

    assert first(names[0]) == 10
    with monkeypatch.context() as patch:
        patch.setattr(objects, "object_id", raise_full)
        assert first(names[0]) == 10, "writable for each call, and checked before"
        with pytest.raises(SpoolFull):
            first(names[1])
    for name in names[:2]:
        Path(spool.layout.objects, name).unlink()
    assert first(names[2]) == 12
    assert len(os.listdir("/proc/self/fd")) == before + 1


# -- removal


def test_killed_submitter_leaves_objects_until_its_tasks_are_done_then_gc_removes_them(
    tmp_path: Path, worker: Workers, after: Callable[[float], None]
) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none")
    script = """
import signal
import sys
import numpy as np
from spoolpool import Executor
executor = Executor(spool=sys.argv[1], session="killed", init_function=dict)
ref = executor.put(np.ones(1000_000))
unused = executor.put("unused")
for number in range(3):
    executor.submit(np.sum, ref)
print("there", flush=True)
signal.pause()
"""
    process = start_script(tmp_path / "script.py", script, spool.path)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    assert len(paths(spool, "objects")) == len(paths(spool, "needs")) == 3
    after(40)
    assert not [path for path in collect_garbage(spool) if path.startswith(("objects", "needs"))], "it is leased"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    gone = collect_garbage(spool)
    assert len([path for path in gone if path.startswith("objects/")]) == 1, "only the unused one"
    assert len(paths(spool, "objects")) == 2
    after(0)
    assert worker(spool, "--max-tasks", 3).wait(LIMIT) == 0
    assert len(paths(spool, "results")) == 3
    after(40)
    collect_garbage(spool)
    collect_garbage(spool)
    assert not paths(spool, "objects", "needs", "results", "outgoing", "tmp", "ready")


def test_object_of_a_lost_task_stays_for_its_retry(stage: Stage, after: Callable[[float], None]) -> None:
    inbox = stage.inbox()
    ref = inbox.put_object("needed")
    header = stage.submit(inbox, leave_trace, ref)
    [ready] = paths(stage.spool, "ready")
    task_file = parse_task_file(os.path.basename(ready))
    assert task_file is not None
    mine = task_file.claimed_by(new_worker_id())
    Path(stage.spool.path, ready).rename(stage.spool.layout.claimed_task(mine))
    Claim(stage.spool, header, mine).report_lost("its workers died")
    stage.collect(inbox, [header])
    inbox._end()
    assert paths(stage.spool, "failed") and paths(stage.spool, "objects") == [f"objects/{ref.name}"]
    after(400)
    collect_garbage(stage.spool)
    assert paths(stage.spool, "objects")
    after(0)
    [failed] = paths(stage.spool, "failed")
    retry_task(stage.spool, os.path.basename(failed))
    stage.work()
    assert stage.runs() == {header.task: 1}
    later = stage.inbox()
    stage.collect(later, [header])
    later._end()
    after(2)
    collect_garbage(stage.spool)
    assert not paths(stage.spool, "objects", "needs", "results")


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("retried", [False, True])
def test_object_of_a_lost_task_outlives_its_session_in_any_place(stage: Stage, retried: bool, keeps: bool) -> None:
    inbox = stage.inbox(keeps=keeps)
    header = stage.submit(inbox, leave_trace, inbox.put_object("needed"), max_attempts=1)
    unneeded = inbox.put_object("unneeded")
    mine = lose(stage, header)
    stage.collect(inbox, [header])
    if retried:
        retry_task(stage.spool, mine.name, stage.session if keeps else "")
    inbox.close()
    [name] = header.objects
    assert paths(stage.spool, "objects") == [f"objects/{name}"] and name != unneeded.name
    if not retried:
        retry_task(stage.spool, mine.name, stage.session if keeps else "")
    stage.work()
    assert stage.runs() == {header.task: 1}


def lose(stage: Stage, header: TaskHeader) -> TaskFile:
    """Report a waiting task as lost with its worker; return the name of its file."""
    mine = TaskFile(header.task, 1, 1).claimed_by(new_worker_id())
    [ready] = [path for path in stage.seen().ready if header.task in path]
    Path(stage.spool.path, ready).rename(stage.spool.layout.claimed_task(mine))
    Claim(stage.spool, header, mine).report_lost("its workers died")
    return mine


def test_object_of_a_task_that_still_runs_outlives_the_failure_of_its_lane(stage: Stage) -> None:
    inbox = stage.inbox()
    header = stage.submit(inbox, leave_trace, inbox.put_object("needed"))
    mine = TaskFile(header.task, 1, 1).claimed_by(announce(stage.spool, unknown_process()))
    [ready] = stage.seen().ready
    Path(stage.spool.path, ready).rename(stage.spool.layout.claimed_task(mine))
    inbox.fail(BrokenSpool("no groups"), header.lane)
    inbox.close()
    stage.recover()
    stage.work()
    assert stage.runs() == {header.task: 1}


def test_object_of_an_unreadable_outcome_outlives_its_session(stage: Stage) -> None:
    inbox = stage.inbox()
    header = stage.submit(inbox, leave_trace, inbox.put_object("needed"))
    stage.work()
    [outcome] = stage.seen().outgoing
    Path(stage.spool.path, outcome).unlink()  # 'spool check --repair' makes the task ready again
    inbox.look(rounds=20)
    assert isinstance(inbox.given[header.task].exception(0), SpoolpoolError)
    inbox.close()
    assert paths(stage.spool, "objects")


def test_task_without_its_object_is_not_retried(stage: Stage) -> None:
    inbox = stage.inbox()
    ref = inbox.put_object("needed")
    header = stage.submit(inbox, leave_trace, ref, max_attempts=1)
    mine = lose(stage, header)
    stage.collect(inbox, [header])
    Path(stage.spool.layout.objects, ref.name).unlink()
    with pytest.raises(BadTaskFile, match=r"needs the object .* Put the value again"):
        retry_task(stage.spool, mine.name)
    assert len(stage.seen().failed) == 1, "it can be retried later"
    inbox.put_object("needed")
    retry_task(stage.spool, mine.name)
    stage.work()
    assert stage.runs() == {header.task: 1}


# -- renewal


def test_lease_that_was_not_renewed_for_long_is_no_proof_of_the_object(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = stage.inbox()
    ref = inbox.put_object("needed")
    array = memoryview(bytes(1 << 20))
    for _ in range(2):
        _, shared = inbox.objects.share([array], 1 << 20)
    assert len(shared) == 1 and len(paths(stage.spool, "objects", "needs")) == 4
    for path in paths(stage.spool, "objects", "needs"):
        Path(stage.spool.path, path).unlink()  # as 'spool gc' of another host, to which this process seemed dead
    passed = time.time() + 2 * DAY
    monkeypatch.setattr(object_store.time, "time", lambda: passed)
    with pytest.raises(BadRequest, match="put the value again"):
        stage.submit(inbox, leave_trace, ref)
    _, again = inbox.objects.share([array], 1 << 20)
    assert again == shared and paths(stage.spool, "objects") == [f"objects/{name}" for name in shared]


def test_process_that_only_stored_an_object_renews_its_lease_and_entry(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "RENEWAL", 0.0)
    with Executor(spool=spool.path, session="inbox") as executor:
        executor.put("needed")
        kept = [Path(spool.path, path) for path in paths(spool, "needs", "sessions")]
        assert len(kept) == 2
        for path in kept:
            os.utime(path, (0, 0))
        executor.submit(len, "")  # ends the thread's wait
        wait_until(lambda: all(path.stat().st_mtime > 0 for path in kept), "both are renewed")
        kept[1].unlink()  # as a site that removes old files
        executor.submit(len, "")
        wait_until(kept[1].exists, "the entry is made again")
        executor.shutdown(wait=False, cancel_futures=True)


@pytest.mark.parametrize("state", ["alive", "dead", "unknown", "ended"])
def test_lease_expires_when_all_processes_of_its_session_have_ended(
    spool: Spool, state: str, after: Callable[[float], None]
) -> None:
    gone = SessionObjects(spool, "inbox")
    gone.put(*pickling.dumps("needed"))
    process = {"alive": ProcessId.of(os.getpid()), "dead": dead_process(), "unknown": unknown_process()}
    if state in process:
        info = SessionInfo(process=process[state], user="tester", keeps=True)
        Path(spool.layout.session("inbox~0123abcd")).write_bytes(msgspec.json.encode(info))
    for days, removed in (
        (0.9, ()),
        (2, ("dead", "ended")),
        (29, ("dead", "ended")),
        (31, ("dead", "ended", "unknown")),
    ):
        after(days)
        found = [each.path for each in find_garbage(spool) if each.path.startswith(("objects/", "needs/inbox/"))]
        assert bool(found) == (state in removed), days
    after(2)
    found = find_garbage(spool, RetentionPolicy(results=0, sessions=0, unfinished=0))
    assert bool([each for each in found if each.path.startswith("objects/")]) == (state != "alive")


def test_lease_that_is_renewed_after_it_was_found_stays_with_its_object(
    spool: Spool, after: Callable[[float], None]
) -> None:
    holdings = SessionObjects(spool, "inbox")
    holdings.put(*pickling.dumps("needed"))
    after(2)
    found = [each for each in find_garbage(spool) if each.path.startswith(("objects/", "needs/inbox/"))]
    assert [each.path.partition("/")[0] for each in found] == ["objects", "needs"], "the object first"
    holdings.renew()
    assert remove(spool, found) == 0
    assert len(paths(spool, "objects", "needs")) == 2


# -- references that cannot be read


@pytest.mark.parametrize("place", ["waiting", "ready", "claimed", "results", "failed"])
@pytest.mark.parametrize(
    "fault", ["EIO", "EACCES", "ESTALE", "listing EIO", "listing ESTALE", "newer version", "truncated", "a directory"]
)
def test_task_that_cannot_be_read_may_need_any_object(
    stage: Stage, place: str, fault: str, after: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    inbox = stage.inbox()
    header = stage.submit(inbox, leave_trace, inbox.put_object("needed"))
    inbox.detach()
    path = move_task(stage, header, place)
    content = path.read_bytes()
    if fault == "newer version":
        path.write_bytes(content[:8] + b"\xff\xff" + content[10:])
    elif fault == "truncated":
        path.write_bytes(content[:-1])
    elif fault == "a directory":
        path.unlink()
        path.mkdir()
    after(40)
    error = getattr(errno, fault.rpartition(" ")[2], 0) if fault.isupper() or "listing" in fault else 0
    disk = FaultyPath(str(path.parent if "listing" in fault else path), error)
    with disk.installed(), caplog.at_level("INFO"):
        found = [each.path for each in find_garbage(stage.spool)]
        assert not [each for each in found if each.startswith(("objects/", "needs/"))]
    assert "no object is removed" in caplog.text and path.parent.name in caplog.text
    if fault == "a directory":
        path.rmdir()
    path.write_bytes(content)
    assert not [each for each in collect_garbage(stage.spool) if each.startswith("objects/")]
    path.unlink()
    collect_garbage(stage.spool)
    collect_garbage(stage.spool)
    assert not paths(stage.spool, "objects", "needs"), "a person removed the task"


def test_task_that_is_about_to_be_submitted_needs_its_objects(stage: Stage) -> None:
    inbox = stage.inbox()
    ref = inbox.put_object("needed")
    path = move_task(stage, stage.submit(inbox, leave_trace, ref), "tmp")
    assert object_references.read_references(stage.spool) == ({ref.name}, {})
    path.write_bytes(path.read_bytes()[:-1])
    assert object_references.read_references(stage.spool) == (set(), {}), "its writer has a lease"


def move_task(stage: Stage, header: TaskHeader, place: str) -> Path:
    """Move the only waiting task to another place; return its path."""
    where, mine = stage.spool.layout, TaskFile(header.task, 1, 1).claimed_by(new_worker_id())
    [ready] = stage.seen().ready
    source = Path(stage.spool.path, ready)
    targets = {
        "waiting": f"{where.waiting}/{source.name}",
        "ready": str(source),
        "claimed": where.claimed_task(mine),
        "results": f"{where.results}/{stage.session}/{mine.name}",
        "failed": f"{where.failed}/{mine.name}",
        "tmp": f"{where.tmp}/{header.task}",
    }
    return source.rename(targets[place])


class FaultyPath(Disk):
    """Disk on which one file cannot be opened, or one directory not be listed."""

    def __init__(self, path: str, error: int) -> None:
        super().__init__()
        self._path = path
        self._error = error

    def do(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._error and name in ("open", "listdir") and args[0] == self._path:
            raise OSError(self._error, os.strerror(self._error), self._path)
        return super().do(name, call, *args, **kwargs)


def test_object_stays_if_its_task_becomes_unreadable_or_moves_after_the_first_look(
    stage: Stage, after: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = stage.inbox()
    header = stage.submit(inbox, leave_trace, inbox.put_object("needed"))
    inbox.detach()
    path = move_task(stage, header, "failed")
    hidden = path.rename(stage.directory / "hidden")
    after(40)
    found = find_garbage(stage.spool)
    hidden.rename(path)
    for error in (errno.EIO, 0):
        with FaultyPath(str(path), error).installed():
            remove(stage.spool, found)
        assert len(paths(stage.spool, "objects", "needs")) == 2
    looks = itertools.count()
    real = garbage.read_references

    def moves_back_during_the_first_look(spool: Spool) -> Any:
        seen = real(spool)
        if next(looks) == 0:
            return seen._replace(objects=set())
        return seen

    monkeypatch.setattr(garbage, "read_references", moves_back_during_the_first_look)
    remove(stage.spool, found)
    assert next(looks) == 2 and len(paths(stage.spool, "objects", "needs")) == 2


# -- objects that were put aside


def put_aside(spool: Spool, name: str) -> Path:
    """Put an object aside, as a process that died before it decided."""
    path = Path(spool.layout.objects, name)
    return path.rename(path.with_name(f"{name}.0123abcd"))


def test_object_that_was_put_aside_is_found_by_all_who_need_it(stage: Stage) -> None:
    inbox = stage.inbox()
    ref = inbox.put_object("needed")
    header = stage.submit(inbox, leave_trace, ref)
    put_aside(stage.spool, ref.name)
    stage.work()
    assert stage.runs() == {header.task: 1}
    put_aside(stage.spool, ref.name)
    other = Inbox(stage.spool, stage.clock, "other")
    stage.submit(other, leave_trace, ref)
    assert paths(stage.spool, "objects") == [f"objects/{ref.name}"]
    put_aside(stage.spool, ref.name)
    inbox.put_object("needed")
    assert f"objects/{ref.name}" in paths(stage.spool, "objects")


def test_gc_puts_an_object_back_and_removes_it_when_it_is_not_needed(
    spool: Spool, after: Callable[[float], None]
) -> None:
    name = put_object(spool, *pickling.dumps("aside"), "writer")
    aside = put_aside(spool, name)
    assert not check(spool, deep=True)
    collect_garbage(spool)
    assert aside.exists(), "its process may be alive"
    after(2)
    collect_garbage(spool)
    assert paths(spool, "objects") == [f"objects/{name}"]
    collect_garbage(spool)
    assert not paths(spool, "objects")
    put_object(spool, *pickling.dumps("aside"), "writer")
    put_aside(spool, name)
    put_object(spool, *pickling.dumps("aside"), "writer")
    found = [each for each in find_garbage(spool) if each.path.endswith(aside.name)]
    assert [each.move_to for each in found] == [""], "the object was stored again: this one is not put back"
    collect_garbage(spool)
    assert not paths(spool, "objects")


def test_object_of_a_removed_task_is_removed(stage: Stage, after: Callable[[float], None]) -> None:
    inbox = stage.inbox()
    stage.submit(inbox, leave_trace, inbox.put_object("needed"))
    inbox._detached = True
    inbox._end()
    after(40)
    assert not [path for path in collect_garbage(stage.spool) if path.startswith("objects")]
    [ready] = paths(stage.spool, "ready")
    Path(stage.spool.path, ready).unlink()  # as 'spool rm' does
    collect_garbage(stage.spool)
    assert not paths(stage.spool, "objects", "needs")


def test_object_put_again_during_removal_stays(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, after: Callable[[float], None]
) -> None:
    content = pickling.dumps("again")
    put_object(spool, *content, "writer")
    after(2)
    [found] = [each for each in find_garbage(spool) if each.path.startswith("objects/")]
    holdings = SessionObjects(spool, "inbox")
    name = holdings.put(*content)
    assert name == os.path.basename(found.path)
    assert remove(spool, [found]) == 0
    assert paths(spool, "objects") == [found.path] and not paths(spool, "tmp")
    holdings.close()
    assert not paths(spool, "objects", "needs")


def test_object_put_again_after_the_listing_stays_despite_a_hidden_lease(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, after: Callable[[float], None]
) -> None:
    content = pickling.dumps("again")
    name = put_object(spool, *content, "writer")
    after(2)
    found = [each for each in find_garbage(spool) if each.path == f"objects/{name}"]
    SessionObjects(spool, "inbox").put(*content)
    monkeypatch.setattr(object_removal, "leases", lambda *_, **__: {})
    assert remove(spool, found) == 0
    assert paths(spool, "objects") == [f"objects/{name}"] and not paths(spool, "tmp")


def test_gc_leaves_links_directories_and_fifos_with_the_name_of_an_object(
    spool: Spool, tmp_path: Path, after: Callable[[float], None]
) -> None:
    where = Path(spool.layout.objects)
    (where / ("0" * 32)).symlink_to(tmp_path)
    (where / ("1" * 32)).mkdir()
    os.mkfifo(where / ("2" * 32))
    after(40)
    assert not [path for path in collect_garbage(spool) if path.startswith("objects/")]
    assert len(list(where.iterdir())) == 3


class Between(Disk):
    """Disk that calls a function of another process before one of its operations."""

    def __init__(self, number: int, body: Callable[[], object]) -> None:
        super().__init__()
        self._number = number
        self._body: Callable[[], object] | None = body

    def do(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.count + 1 == self._number and self._body is not None:
            body, self._body = self._body, None
            body()
        return super().do(name, call, *args, **kwargs)

    @property
    def came(self) -> bool:
        return self._body is None


@pytest.mark.parametrize("first", ["put", "remove"])
def test_leased_object_exists_for_any_interleaving_of_put_and_remove(tmp_path: Path, first: str) -> None:
    content = pickling.dumps("again")
    for number in itertools.count(1):
        spool = Spool.create(tmp_path / f"spool-{number}", durability="none")
        holdings = SessionObjects(spool, "inbox")
        name = put_object(spool, *content, "writer")
        both = {"put": lambda: holdings.put(*content), "remove": lambda: remove_object(spool, name)}  # noqa: B023
        outer = both.pop(first)
        (inner,) = both.values()
        disk = Between(number, inner)
        with disk.installed():
            outer()
        if not disk.came:
            break
        assert read_object(spool, name, Trust()), number
        assert list(object_leases.leases(spool)) == [name] and not paths(spool, "tmp")
    assert number > 3


def test_processes_of_one_session_keep_each_others_leases(spool: Spool) -> None:
    one, two = SessionObjects(spool, "same"), SessionObjects(spool, "same")
    name = one.put(*pickling.dumps("same"))
    assert two.put(*pickling.dumps("same")) == name
    one.close()
    assert paths(spool, "objects") == [f"objects/{name}"]
    two.close()
    assert not paths(spool, "objects", "needs")


def test_check_accepts_a_spool_with_objects(stage: Stage) -> None:
    inbox = stage.inbox()
    stage.submit(inbox, leave_trace, inbox.put_object("needed"))
    assert not check(stage.spool, deep=True)


def test_signed_spool_accepts_only_signed_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ones: np.ndarray[Any, Any]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    spool = Spool.create(tmp_path / "spool", durability="none", signed=True)
    make_key(key_path(spool.config.id))
    with Executor(max_workers=1, spool=spool.path, backend="local") as executor:
        refs = [executor.put("small"), executor.put(ones)]
        assert executor.submit(len, refs[0]).result(LIMIT) == 5
        assert executor.submit(total, refs[1]).result(LIMIT) == SIZE
        assert isinstance(executor.submit(write_into, refs[1]).exception(LIMIT), ValueError), (
            "it is read, and read-only"
        )
        assert [executor.submit(write_into, ones).result(LIMIT) for _ in range(3)] == [2.0] * 3
        other = executor.put("other")
        path = Path(spool.layout.objects, other.name)
        path.write_bytes(path.read_bytes()[:-40])  # without its signature
        refused = executor.submit(len, other).exception(LIMIT)
        assert isinstance(refused, NotTrusted) and "not signed" in str(refused)


# -- crashes and full disks


def test_submitter_that_dies_at_any_operation_leaves_nothing_that_gc_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: Callable[[float], None]
) -> None:
    clock = Clock.installed(monkeypatch)
    ran = 0
    for number in itertools.count(1):
        stage = Stage(tmp_path / f"stage-{number}", clock)

        def submit(stage: Stage = stage) -> None:
            inbox = stage.inbox()
            stage.submit(inbox, leave_trace, inbox.put_object(np.ones(SIZE)))

        ended = in_child(Disk(at(number, Fault("before"))), submit)
        after(0.5)
        collect_garbage(stage.spool)
        stage.work()
        assert stage.runs().keys() >= stage.notes("submitted").keys(), "an object that a task needs was removed"
        ran += len(stage.runs())
        after(40)
        collect_garbage(stage.spool)
        collect_garbage(stage.spool)
        assert not paths(stage.spool, "objects", "needs", "tmp", "results", "outgoing", "ready"), stage.story()
        if ended != CRASHED:
            assert ended == 0 and ran and number > 20
            break


def test_full_disk_leaves_no_part_of_an_object(tmp_path: Path) -> None:
    content = pickling.dumps(np.ones(SIZE))
    for number in itertools.count(1):
        spool = Spool.create(tmp_path / f"spool-{number}", durability="none")
        holdings = SessionObjects(spool, "inbox")
        disk = Disk(at(number, Fault("before", errno.ENOSPC)), only=SPACE - {"fsync"})
        with disk.installed(), contextlib.suppress(SpoolFull):
            holdings.put(*content)
        if not disk.struck:
            break
        assert not paths(spool, "objects", "needs", "tmp"), disk.struck
        assert paths(spool, "objects") == [] and holdings.put(*content), "there is room again"
    assert number > 3 and len(paths(spool, "objects")) == 1


def test_object_that_was_removed_and_put_again_is_opened_again(spool: Spool, ones: np.ndarray[Any, Any]) -> None:
    cache = ObjectCache(spool, Trust())
    name = put_object(spool, *pickling.dumps(ones), "writer")
    before = cache.content(name)
    assert cache.content(name) is before
    Path(spool.layout.objects, name).unlink()
    put_object(spool, *pickling.dumps(ones), "writer")
    assert cache.content(name) is not before


# -- trust


def test_object_with_mismatched_content_is_not_unpickled(spool: Spool) -> None:
    good = put_object(spool, *pickling.dumps("good"), "writer")
    bad = put_object(spool, *pickling.dumps("bad"), "writer")
    Path(spool.layout.objects, bad).rename(Path(spool.layout.objects, good))
    with pytest.raises(BadTaskFile, match="does not match its name"):
        read_object(spool, good, Trust())
    with pytest.raises(BadTaskFile, match="does not match its name"):
        ObjectCache(spool, Trust()).content(good)


def test_truncated_object_is_replaced(spool: Spool) -> None:
    content = pickling.dumps("whole")
    name = put_object(spool, *content, "writer")
    path = Path(spool.layout.objects, name)
    path.write_bytes(path.read_bytes()[:-1])
    assert put_object(spool, *content, "writer") == name
    assert pickling.loads(*read_object(spool, name, Trust())[1:]) == "whole"


def test_link_or_foreign_file_in_place_of_an_object_is_refused(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pickling.dumps("mine")
    name = object_id(*content)
    path = Path(spool.layout.objects, name)
    os.link(Path(spool.layout.objects, put_object(spool, *pickling.dumps("else"), "writer")), path)
    with pytest.raises(BadTaskFile, match="hard links"):
        put_object(spool, *content, "writer")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SpoolpoolError, match="put an object"):
        put_object(spool, *content, "writer")
    path.unlink()
    put_object(spool, *content, "writer")
    monkeypatch.setattr(Trust, "covers", lambda self, uid: False)
    with pytest.raises(NotTrusted):
        put_object(spool, *content, "writer")
    with pytest.raises(NotTrusted):
        ObjectCache(spool, Trust()).content(name)


def test_call_gets_no_object_that_its_header_does_not_name(stage: Stage) -> None:
    inbox = stage.inbox()
    named, secret = inbox.put_object("named"), inbox.put_object("secret")
    call = prepare_call(inbox, leave_trace, str(stage.effects), secret)
    forged = CallReferences(stage.spool, new_task_id())
    future = inbox.submit(call._replace(references=forged, objects={named.name: ()}))
    stage.work()
    inbox.look()
    assert isinstance(future.exception(0), BadTaskFile) and "does not name" in str(future.exception(0))


@pytest.mark.parametrize("name", ["../../etc/passwd", "0" * 31, f"{'0' * 32}@", f"{'0' * 32}/x"])
def test_header_with_an_invalid_object_name_is_refused(name: str) -> None:
    from spoolpool.format import headers as records
    from tests.unit.maintenance.test_garbage import new_header

    data = records.encode(new_header("inbox"))[:-1] + f',"objects":{{"{name}":[]}}}}'.encode()
    with pytest.raises(BadTaskFile, match="objects"):
        records.decode_task(data, "path")


def test_expired_lease_is_created_again(spool: Spool) -> None:
    mine = ObjectLease("0" * 32, "0" * 8)
    acquire(spool, "inbox", mine)
    path = Path(spool.layout.needs, "inbox", mine.name)
    os.utime(path, (0, 0))
    acquire(spool, "inbox", mine)
    assert path.stat().st_mtime > 0
    assert parse_lease(mine.name) == mine and parse_lease(mine.object) is None
    assert not remove_object(spool, mine.object)
