"""Result cache: a repeated call has its result at once, and a fault of the cache costs a run but no result."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import pty
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click.testing
import numpy as np
import pytest

from spoolpool import Executor, get_cache_data, settings
from spoolpool.cli.spool import main
from spoolpool.client.result_cache import Cache, Entry, cache_of, key_of_user_key, open_cache
from spoolpool.errors import BadRequest
from spoolpool.format.config import RetentionPolicy
from spoolpool.maintenance import garbage
from spoolpool.monitor.scan import scan
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import make_key
from spoolpool.security.trust import Trust
from spoolpool.system import files
from tests.conftest import Workers
from tests.multiuser.accounts import Canary
from tests.support import tasks
from tests.support.accounts import as_root, unused_id
from tests.support.processes import in_fork, run_script

KEY = "ab" * 32
OTHER = "ab" * 31 + "cd"


@pytest.fixture
def executor(served: Spool, tmp_path: Path) -> Iterator[Executor]:
    """Executor with a cache of its own for each test."""
    with Executor(spool=served.path, cache=tmp_path / "cache") as attached:
        yield attached


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(str(tmp_path / "cache"), Trust())


def keep(cache: Cache, value: Any, key: str = KEY, **more: Any) -> str:
    cache.keep(Entry(key=key, **more), pickle.dumps(value), [])
    return next(cached.path for cached in cache.entries() if cached.entry.key == key)


def is_cached(future: Any) -> bool:
    """Return whether a call got its result without a task."""
    return not future.header.bucket and future.done()


def runs(mark: Path) -> int:
    return len(mark.read_text().splitlines()) if mark.exists() else 0


# -------------------------------------------------------------------------------------------- calls


def test_repeated_call_has_its_result_at_once_without_a_task(executor: Executor, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert executor.submit(tasks.mark, mark, [1, {"a": 2}]).result() == [1, {"a": 2}]
    again = executor.submit(tasks.mark, mark, [1, {"a": 2}])
    assert is_cached(again) and not again.cancelled() and not again.running() and not again.cancel()
    assert again.result() == [1, {"a": 2}]
    assert again[1]["a"].result() == 2
    assert runs(mark) == 1
    assert executor.submit(tasks.mark, mark, [1, {"a": 3}]).result() == [1, {"a": 3}]
    assert runs(mark) == 2


def test_cached_result_of_another_session_needs_no_worker(spool: Spool, worker: Workers) -> None:
    process = worker(spool)
    with Executor(spool=spool.path, cache=True) as first:
        assert first.submit(tasks.keywords, a=1).result() == {"a": 1}
    process.terminate()
    process.wait()
    with Executor(spool=spool.path, cache=True) as second:
        assert is_cached(second.submit(tasks.keywords, a=1))
        waiting = second.submit(tasks.keywords, a=2)
        assert not waiting.done() and waiting.cancel()
        assert list(scan(spool).ready) == []
    assert [row["function"] for row in get_cache_data(spool.path)] == ["tests.support.tasks.keywords"]


PROGRAM = """\
import sys
from spoolpool import Executor

def scale(x):
    return x * FACTOR

FACTOR = {factor}

if __name__ == "__main__":
    with Executor(spool=sys.argv[1], cache=sys.argv[2]) as executor:
        future = executor.submit(scale, 3)
        print(not future.header.bucket, future.result())
"""


def test_changed_function_runs_again_in_the_next_process(served: Spool, tmp_path: Path) -> None:
    outputs = [
        run_script(tmp_path / f"{number}.py", PROGRAM.format(factor=factor), served.path, tmp_path / "cache").stdout
        for number, factor in enumerate((2, 2, 5))
    ]
    assert outputs == ["False 6\n", "True 6\n", "False 15\n"]


def test_failed_and_cancelled_calls_are_not_cached(executor: Executor, tmp_path: Path) -> None:
    for _ in range(2):
        future = executor.submit(tasks.fail, tasks.OwnError("no"))
        assert not is_cached(future)
        assert isinstance(future.exception(), tasks.OwnError)
    blocked = executor.submit(tasks.mark_and_wait, tmp_path / "started", tmp_path / "end")
    waiting = executor.submit(tasks.keywords, b=1)
    assert waiting.cancel()
    (tmp_path / "end").touch()
    blocked.result()
    assert executor.submit(tasks.keywords, b=1).result() == {"b": 1}
    executor.shutdown()
    assert {row["function"] for row in get_cache_data(tmp_path / "cache")} == {
        "tests.support.tasks.mark_and_wait",
        "tests.support.tasks.keywords",
    }


def test_call_whose_arguments_have_no_fingerprint_is_refused(executor: Executor) -> None:
    with pytest.raises(BadRequest, match=r"Argument 'a' of the call .* \(cache_key\)"):
        executor.submit(tasks.keywords, a=[threading.Lock()])


def test_user_key_replaces_function_and_arguments(executor: Executor, tmp_path: Path) -> None:
    resources = {"cache_key": "relax/ü 1"}
    assert executor.submit(tasks.keywords, a=1, resource_dict=resources).result() == {"a": 1}
    assert executor.submit(tasks.keywords, a=2, resource_dict=resources).result() == {"a": 1}
    (row,) = get_cache_data(tmp_path / "cache")
    assert row["cache_key"] == "relax/ü 1" and row["arguments"] == "a=1"


def test_cache_can_be_disabled_for_a_call(executor: Executor, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for _ in range(2):
        executor.submit(tasks.mark, mark, resource_dict={"cache": False}).result()
    assert runs(mark) == 2
    for wrong in ({"cache": 2}, {"cache_key": 2}):
        with pytest.raises(BadRequest, match="must be"):
            executor.submit(tasks.mark, mark, resource_dict=wrong)


def test_resources_are_part_of_the_key_on_request(executor: Executor, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for cwd in (tmp_path / "a", tmp_path / "b"):
        executor.submit(tasks.mark, mark, resource_dict={"cwd": cwd}).result()
    assert runs(mark) == 1
    for cwd in (tmp_path / "a", tmp_path / "b", tmp_path / "a"):
        executor.submit(tasks.mark, mark, resource_dict={"cwd": cwd, "cache": "resources"}).result()
    assert runs(mark) == 3


def test_preset_arguments_are_part_of_the_key(served: Spool, tmp_path: Path) -> None:
    found = []
    for number in (1, 2, 1):

        def presets(number: int = number) -> dict[str, Any]:
            return {"preset": number}

        with Executor(spool=served.path, cache=tmp_path / "cache", init_function=presets) as executor:
            future = executor.submit(tasks.take_preset, 7)
            found.append((is_cached(future), future.result()[1]))
    assert found == [(False, 1), (False, 2), (True, 1)]


@pytest.mark.mpi
def test_values_of_several_ranks_are_cached_as_a_list(tmp_path: Path) -> None:
    with Executor(max_workers=1, cores_per_worker=2, cache=tmp_path / "cache") as executor:
        both = executor.submit(tasks.rank_and_size)
        assert both.result() == [(0, 2), (1, 2)]
        again = executor.submit(tasks.rank_and_size)
        assert is_cached(again) and again.result() == [(0, 2), (1, 2)]
        alone = executor.submit(tasks.rank_and_size, resource_dict={"cores": 1})
        assert alone.result() == (0, 1)


def test_dependent_calls_are_cached(executor: Executor, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for again in (False, True):
        first = executor.submit(tasks.mark, mark, {"part": [4, 5]})
        second = executor.submit(tasks.mark, mark, [first["part"][1]])
        assert is_cached(second) is again
        assert second.result() == [5]
        other = executor.submit(tasks.mark, mark, [first["part"][0]])
        assert other.result() == [4]
    assert runs(mark) == 3


def test_call_with_an_uncached_dependency_is_not_cached(executor: Executor, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    first = executor.submit(tasks.keywords, x=1, resource_dict={"cache": False})
    for _ in range(2):
        assert executor.submit(tasks.mark, mark, first).result() == {"x": 1}
    assert runs(mark) == 2


def test_concurrent_equal_calls_both_run_and_one_result_is_cached(executor: Executor, tmp_path: Path) -> None:
    call = tasks.mark_and_wait, tmp_path / "started", tmp_path / "end", 7
    first, second = executor.submit(*call), executor.submit(*call)
    assert not first.done() and not second.done()
    (tmp_path / "end").touch()
    assert first.result() == second.result() == executor.submit(*call).result() == 7
    assert runs(tmp_path / "started") == 2
    assert len(get_cache_data(tmp_path / "cache")) == 1


@pytest.mark.parametrize("count", [6, 300_000])
def test_changing_a_result_does_not_change_the_cached_one(executor: Executor, count: int) -> None:
    for _ in range(2):
        value = executor.submit(np.arange, count).result()
        assert value[:3].tolist() == [0, 1, 2] and len(value) == count
        value[:] = 0  # it may be a view of the file being copied into the cache
    with Executor(spool=executor.info["spool"], cache=executor._options.cache) as other:
        assert other.submit(np.arange, count).result()[:3].tolist() == [0, 1, 2]


def test_embedded_executor_has_a_cache_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for again in (False, True):
        with Executor(max_workers=1, cache=True) as executor:
            future = executor.submit(tasks.keywords, home=1)
            assert is_cached(future) is again and future.result() == {"home": 1}
    assert len(get_cache_data()) == 1
    assert (tmp_path / "spoolpool").stat().st_mode & 0o777 == 0o700


# ------------------------------------------------------------------------------------------- faults


def test_result_is_delivered_if_the_cache_is_full(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create = files.create

    def full(path: str, *rest: Any, **more: Any) -> None:
        if path.startswith(str(tmp_path / "cache")):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        create(path, *rest, **more)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "spoolpool.client.memoize"):
        patch.setattr(files, "create", full)
        for value in (1, 2):
            assert executor.submit(tasks.keywords, full=value).result() == {"full": value}
            executor.submit(tasks.keywords, full=value).result()
        executor.shutdown()  # waits for the writer thread
    logged = [each for each in caplog.records if "Cannot keep a result" in each.message]
    assert [each.levelno for each in logged].count(logging.WARNING) == 1
    assert "No space left" in logged[0].message
    assert get_cache_data(tmp_path / "cache") == []


def test_death_during_a_write_leaves_only_an_unfinished_file(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(spool, Trust())
    keep(cache, 0, OTHER)
    monkeypatch.setattr(files, "move", lambda *_, **__: os._exit(9))
    with pytest.raises(EOFError):
        in_fork(lambda: keep(cache, 1))
    monkeypatch.undo()
    assert cache.find(KEY) is None
    (item,) = garbage.find_garbage(spool, RetentionPolicy(unfinished=-1))
    assert item.path.startswith(f"cache/{os.geteuid()}/tmp/{KEY}.")
    assert garbage.remove(spool, [item]) == 1
    keep(cache, 2)
    assert cache.find(KEY) == (Entry(key=KEY), 2)


@pytest.mark.parametrize("damage", ["cut", "zeros", "renamed", "nothing"])
def test_damaged_result_is_ignored_and_replaced(cache: Cache, damage: str) -> None:
    path = Path(keep(cache, "old", OTHER if damage == "renamed" else KEY))
    data = path.read_bytes()
    if damage == "renamed":
        path.rename(path.with_name(KEY))
    else:
        path.write_bytes({"cut": data[:-9], "zeros": bytes(len(data)), "nothing": b""}[damage])
    assert cache.find(KEY) is None
    keep(cache, "new")
    found = cache.find(KEY)
    assert found is not None and found[1] == "new"


def test_result_that_cannot_be_unpickled_is_ignored(cache: Cache) -> None:
    keep(cache, 1)
    cache.keep(Entry(key=OTHER), b"cnowhere_to_be_found\nx\n.", [])
    assert cache.find(OTHER) is None


@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "directory"])
def test_only_a_regular_file_is_a_result(cache: Cache, tmp_path: Path, kind: str) -> None:
    path = Path(keep(cache, 1))
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "hard link":
        path.hardlink_to(elsewhere)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert cache.find(KEY) is None


def test_existing_result_is_not_overwritten(cache: Cache) -> None:
    keep(cache, "first")
    keep(cache, "second")
    found = cache.find(KEY)
    assert found is not None and found[1] == "first"
    assert files.list_names(f"{cache.directory}/{os.geteuid()}/tmp") == []


def test_error_of_a_repeated_rename_is_tolerated(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    move = files.move

    def repeated(source: str, target: str, **more: Any) -> NoReturn:
        move(source, target, **more)
        raise FileNotFoundError(errno.ENOENT, "No such file", source)

    monkeypatch.setattr(files, "move", repeated)
    keep(cache, 3)
    found = cache.find(KEY)
    assert found is not None and found[1] == 3


# -------------------------------------------------------------------------------------------- trust

STRANGER = unused_id()


@as_root
@pytest.mark.multiuser
def test_result_of_another_account_is_unpickled_only_if_trusted(cache: Cache, tmp_path: Path) -> None:
    path = Path(keep(cache, Canary(tmp_path / "canary")))
    theirs = Path(cache.directory) / str(STRANGER) / KEY[:2] / KEY
    theirs.parent.mkdir(parents=True)
    path.rename(theirs)
    os.chown(theirs, STRANGER, -1)
    assert cache.find(KEY) is None
    assert not (tmp_path / "canary").exists()
    assert Cache(cache.directory, Trust([STRANGER])).find(KEY) is not None
    assert (tmp_path / "canary").exists()
    (row,) = get_cache_data(cache.directory, results=True)
    assert "result" not in row
    (row,) = get_cache_data(cache.directory, results=True, trust=[STRANGER])
    assert "result" in row


@as_root
@pytest.mark.multiuser
def test_file_of_another_account_among_own_results_is_not_unpickled(cache: Cache, tmp_path: Path) -> None:
    path = keep(cache, Canary(tmp_path / "canary"))
    os.chown(path, STRANGER, -1)
    for trust in (Trust(), Trust([STRANGER])):  # results of a trusted account are read from its own directory only
        assert Cache(cache.directory, trust).find(KEY) is None
    assert not (tmp_path / "canary").exists()
    assert os.path.exists(path)


@as_root
@pytest.mark.multiuser
def test_nothing_is_written_into_a_directory_of_another_account(cache: Cache) -> None:
    path = Path(cache.directory) / str(os.geteuid())
    path.mkdir(parents=True)
    os.chown(path, STRANGER, -1)
    with pytest.raises(PermissionError):
        cache.keep(Entry(key=KEY), pickle.dumps(1), [])
    assert [each for each in path.rglob("*") if each.is_file()] == []


@pytest.mark.parametrize(
    ("mode", "made", "file"), [(0o700, 0o700, 0o600), (0o2770, 0o2750, 0o640), (0o755, 0o755, 0o644)]
)
def test_results_are_readable_for_accounts_that_may_list_the_cache(
    cache: Cache, mode: int, made: int, file: int
) -> None:
    Path(cache.directory).mkdir()
    Path(cache.directory).chmod(mode)
    path = Path(keep(cache, 1))
    assert path.stat().st_mode & 0o7777 == file
    assert {each.stat().st_mode & 0o7777 for each in (path.parent, path.parents[1], path.parents[1] / "tmp")} == {made}


def test_signed_spool_ignores_unsigned_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.ENV_KEY, str(tmp_path / "key"))
    make_key(str(tmp_path / "key"))
    spool = Spool.create(tmp_path / "spool", durability="none", signed=True)
    cache = cache_of(spool, Trust())
    path = Path(keep(cache, "signed"))
    assert cache.find(KEY) is not None
    moved = path.with_name(OTHER)
    moved.write_bytes(path.read_bytes())
    assert cache.find(OTHER) is None  # under another name
    moved.unlink()
    Cache(cache.directory, Trust()).keep(Entry(key=OTHER), pickle.dumps(Canary(tmp_path / "canary")), [])
    assert cache.find(OTHER) is None
    assert not (tmp_path / "canary").exists()
    assert [row["key"] for row in get_cache_data(spool.path)] == [KEY]


# --------------------------------------------------------------------------------- listing, removing


def run(*arguments: object, **options: Any) -> click.testing.Result:
    words = [str(each) for each in arguments]
    return click.testing.CliRunner().invoke(main, words, prog_name="spool", env={settings.ENV_SPOOL: None}, **options)


def test_table_has_the_header_and_the_result_on_request(cache: Cache) -> None:
    path = keep(cache, [1, 2], name="f", arguments="1, b=2", created=5.0, seconds=1.5, given="mine")
    (row,) = get_cache_data(cache.directory, results=True)
    assert row.pop("size") == os.path.getsize(path)
    assert abs(row.pop("used") - time.time()) < 3600
    assert row == {
        "function": "f",
        "arguments": "1, b=2",
        "cache_key": "mine",
        "key": KEY,
        "user": Path(path).owner(),
        "created": 5.0,
        "seconds": 1.5,
        "path": path,
        "result": [1, 2],
    }
    assert "result" not in get_cache_data(cache.directory)[0]


def test_commands_list_results_and_remove_them_after_confirmation(cache: Cache) -> None:
    keep(cache, 1, name="relax", arguments="'\x1b[31m'")
    keep(cache, 2, OTHER, name="load", given="mine")
    assert [line.split()[-1] for line in run("cache", "ls", cache.directory).stdout.splitlines()] == ["relax", "[mine]"]
    assert "\x1b" not in run("cache", "ls", cache.directory, "--long").stdout
    listed = [json.loads(line) for line in run("cache", "ls", cache.directory, "--json").stdout.splitlines()]
    assert listed == get_cache_data(cache.directory)
    for words, found in (
        (("--name", "rel*"), [KEY]),
        (("--key", "mine"), [OTHER]),
        (("--key", KEY[:63]), [KEY]),
        (("--key", KEY[:63], "--key", "mine"), [KEY, OTHER]),
        (("--unused", "1h"), []),
        (("--unused", "0"), [KEY, OTHER]),
        (("--user", "nobody-of-that-name"), []),
    ):
        lines = run("cache", "ls", cache.directory, "--json", *words).stdout.splitlines()
        assert [json.loads(line)["key"] for line in lines] == found
    assert run("cache", "rm", cache.directory).exit_code == BadRequest.exit_code
    assert run("cache", "rm", cache.directory, "--all").exit_code == BadRequest.exit_code  # not a terminal
    assert run("cache", "rm", cache.directory, "--key", KEY[:63], "--yes").stdout == "Removed 1 cached result(s).\n"
    assert [cached.entry.key for cached in cache.entries()] == [OTHER]
    assert run("cache", "rm", cache.directory, "--all", "--yes").exit_code == 0
    assert list(cache.entries()) == []


def test_removal_asks_at_a_terminal(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(cache, 1, name="relax")
    parent, child = pty.openpty()
    with os.fdopen(child, "r") as terminal, os.fdopen(parent, "wb"):
        monkeypatch.setattr("sys.stdin", terminal)
        from spoolpool.cli import cache as command

        for answer, left in ((b"n\n", 1), (b"y\n", 0)):
            os.write(parent, answer)
            try:
                command.rm.main([cache.directory, "--all"], standalone_mode=False)
            except click.Abort:
                assert left
            assert len(list(cache.entries())) == left


def test_gc_removes_results_unused_for_long(spool: Spool) -> None:
    cache = cache_of(spool, Trust())
    old, new = keep(cache, 1), keep(cache, 2, OTHER)
    os.utime(old, (0, 0))
    assert [each.path for each in garbage.find_garbage(spool)] == [os.path.relpath(old, spool.path)]
    assert cache.find(KEY) is not None  # counts as a use
    assert garbage.find_garbage(spool) == []
    os.utime(old, (0, 0))
    assert run("gc", spool.path, "--cache", "1").stdout == "Removed 1 file(s) and directories.\n"
    assert not os.path.exists(old) and os.path.exists(new)
    assert not scan(spool).unknown


def test_different_user_keys_have_different_hashes() -> None:
    assert len({key_of_user_key(text) for text in ("", "a", "b", "a\0", "\udce4")}) == 5


def test_open_cache_distinguishes_a_directory_from_a_spool(spool: Spool, tmp_path: Path) -> None:
    assert open_cache(spool.path, Trust()).directory == f"{spool.path}/cache"
    assert open_cache(tmp_path / "some", Trust()).directory == f"{tmp_path}/some"
