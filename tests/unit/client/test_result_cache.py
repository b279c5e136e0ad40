"""Kept results: a call that was made before gives its result at once; whatever goes wrong costs a run and no result."""

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
    """An executor with a cache of the test's own."""
    with Executor(spool=served.path, cache=tmp_path / "cache") as attached:
        yield attached


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(str(tmp_path / "cache"), Trust())


def keep(cache: Cache, value: Any, key: str = KEY, **more: Any) -> str:
    cache.keep(Entry(key=key, **more), pickle.dumps(value), [])
    return next(kept.path for kept in cache.entries() if kept.entry.key == key)


def was_kept(future: Any) -> bool:
    """Whether no task was made for it."""
    return not future.header.bucket and future.done()


def runs(mark: Path) -> int:
    return len(mark.read_text().splitlines()) if mark.exists() else 0


# -------------------------------------------------------------------------------------------- calls


def test_a_call_that_was_made_before_has_its_result_at_once_and_makes_no_task(
    executor: Executor, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    assert executor.submit(tasks.mark, mark, [1, {"a": 2}]).result() == [1, {"a": 2}]
    again = executor.submit(tasks.mark, mark, [1, {"a": 2}])
    assert was_kept(again) and not again.cancelled() and not again.running() and not again.cancel()
    assert again.result() == [1, {"a": 2}]
    assert again[1]["a"].result() == 2
    assert runs(mark) == 1
    assert executor.submit(tasks.mark, mark, [1, {"a": 3}]).result() == [1, {"a": 3}]
    assert runs(mark) == 2


def test_another_session_finds_the_result_though_nobody_serves_the_spool(spool: Spool, worker: Workers) -> None:
    process = worker(spool)
    with Executor(spool=spool.path, cache=True) as first:
        assert first.submit(tasks.keywords, a=1).result() == {"a": 1}
    process.terminate()
    process.wait()
    with Executor(spool=spool.path, cache=True) as second:
        assert was_kept(second.submit(tasks.keywords, a=1))
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


def test_a_function_that_changed_runs_again_in_the_next_process(served: Spool, tmp_path: Path) -> None:
    said = [
        run_script(tmp_path / f"{number}.py", PROGRAM.format(factor=factor), served.path, tmp_path / "cache").stdout
        for number, factor in enumerate((2, 2, 5))
    ]
    assert said == ["False 6\n", "True 6\n", "False 15\n"]


def test_what_failed_or_was_cancelled_is_not_kept(executor: Executor, tmp_path: Path) -> None:
    for _ in range(2):
        future = executor.submit(tasks.fail, tasks.OwnError("no"))
        assert not was_kept(future)
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


def test_a_call_whose_arguments_have_no_fingerprint_is_refused(executor: Executor) -> None:
    with pytest.raises(BadRequest, match=r"Argument 'a' of the call .* \(cache_key\)"):
        executor.submit(tasks.keywords, a=[threading.Lock()])


def test_a_key_of_ones_own_takes_the_place_of_function_and_arguments(executor: Executor, tmp_path: Path) -> None:
    wish = {"cache_key": "relax/ü 1"}
    assert executor.submit(tasks.keywords, a=1, resource_dict=wish).result() == {"a": 1}
    assert executor.submit(tasks.keywords, a=2, resource_dict=wish).result() == {"a": 1}
    (row,) = get_cache_data(tmp_path / "cache")
    assert row["cache_key"] == "relax/ü 1" and row["arguments"] == "a=1"


def test_a_call_can_do_without_the_cache(executor: Executor, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for _ in range(2):
        executor.submit(tasks.mark, mark, resource_dict={"cache": False}).result()
    assert runs(mark) == 2
    for wrong in ({"cache": 2}, {"cache_key": 2}):
        with pytest.raises(BadRequest, match="must be"):
            executor.submit(tasks.mark, mark, resource_dict=wrong)


def test_resources_count_where_they_are_to(executor: Executor, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for cwd in (tmp_path / "a", tmp_path / "b"):
        executor.submit(tasks.mark, mark, resource_dict={"cwd": cwd}).result()
    assert runs(mark) == 1
    for cwd in (tmp_path / "a", tmp_path / "b", tmp_path / "a"):
        executor.submit(tasks.mark, mark, resource_dict={"cwd": cwd, "cache": "resources"}).result()
    assert runs(mark) == 3


def test_what_init_function_presets_counts(served: Spool, tmp_path: Path) -> None:
    found = []
    for number in (1, 2, 1):

        def presets(number: int = number) -> dict[str, Any]:
            return {"preset": number}

        with Executor(spool=served.path, cache=tmp_path / "cache", init_function=presets) as executor:
            future = executor.submit(tasks.take_preset, 7)
            found.append((was_kept(future), future.result()[1]))
    assert found == [(False, 1), (False, 2), (True, 1)]


@pytest.mark.mpi
def test_the_values_of_several_ranks_are_kept_as_their_list(tmp_path: Path) -> None:
    with Executor(max_workers=1, cores_per_worker=2, cache=tmp_path / "cache") as executor:
        both = executor.submit(tasks.rank_and_size)
        assert both.result() == [(0, 2), (1, 2)]
        again = executor.submit(tasks.rank_and_size)
        assert was_kept(again) and again.result() == [(0, 2), (1, 2)]
        alone = executor.submit(tasks.rank_and_size, resource_dict={"cores": 1})
        assert alone.result() == (0, 1)


def test_a_graph_that_was_computed_before_is_there_at_once(executor: Executor, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for again in (False, True):
        first = executor.submit(tasks.mark, mark, {"part": [4, 5]})
        second = executor.submit(tasks.mark, mark, [first["part"][1]])
        assert was_kept(second) is again
        assert second.result() == [5]
        other = executor.submit(tasks.mark, mark, [first["part"][0]])
        assert other.result() == [4]
    assert runs(mark) == 3


def test_a_call_that_needs_a_future_without_a_key_is_not_kept(executor: Executor, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    first = executor.submit(tasks.keywords, x=1, resource_dict={"cache": False})
    for _ in range(2):
        assert executor.submit(tasks.mark, mark, first).result() == {"x": 1}
    assert runs(mark) == 2


def test_two_that_run_the_same_call_at_a_time_both_get_its_result(executor: Executor, tmp_path: Path) -> None:
    call = tasks.mark_and_wait, tmp_path / "started", tmp_path / "end", 7
    first, second = executor.submit(*call), executor.submit(*call)
    assert not first.done() and not second.done()
    (tmp_path / "end").touch()
    assert first.result() == second.result() == executor.submit(*call).result() == 7
    assert runs(tmp_path / "started") == 2
    assert len(get_cache_data(tmp_path / "cache")) == 1


@pytest.mark.parametrize("count", [6, 300_000])
def test_what_is_done_to_a_result_does_not_change_the_kept_one(executor: Executor, count: int) -> None:
    for _ in range(2):
        value = executor.submit(np.arange, count).result()
        assert value[:3].tolist() == [0, 1, 2] and len(value) == count
        value[:] = 0  # it may be a view of the file that is being copied
    with Executor(spool=executor.info["spool"], cache=executor._options.cache) as other:
        assert other.submit(np.arange, count).result()[:3].tolist() == [0, 1, 2]


def test_an_embedded_executor_has_a_cache_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for again in (False, True):
        with Executor(max_workers=1, cache=True) as executor:
            future = executor.submit(tasks.keywords, home=1)
            assert was_kept(future) is again and future.result() == {"home": 1}
    assert len(get_cache_data()) == 1
    assert (tmp_path / "spoolpool").stat().st_mode & 0o777 == 0o700


# ------------------------------------------------------------------------------------------- faults


def test_without_room_the_result_comes_and_is_not_kept(
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
        executor.shutdown()  # now nothing is being written
    said = [each for each in caplog.records if "Cannot keep a result" in each.message]
    assert [each.levelno for each in said].count(logging.WARNING) == 1
    assert "No space left" in said[0].message
    assert get_cache_data(tmp_path / "cache") == []


def test_who_dies_while_it_is_kept_leaves_an_unfinished_write_alone(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(spool, Trust())
    keep(cache, 0, OTHER)
    monkeypatch.setattr(files, "move", lambda *_, **__: os._exit(9))
    with pytest.raises(EOFError):
        in_fork(lambda: keep(cache, 1))
    monkeypatch.undo()
    assert cache.find(KEY) is None
    (rubbish,) = garbage.find_garbage(spool, RetentionPolicy(unfinished=-1))
    assert rubbish.path.startswith(f"cache/{os.geteuid()}/tmp/{KEY}.")
    assert garbage.remove(spool, [rubbish]) == 1
    keep(cache, 2)
    assert cache.find(KEY) == (Entry(key=KEY), 2)


@pytest.mark.parametrize("damage", ["cut", "zeros", "renamed", "nothing"])
def test_a_damaged_file_is_no_result_and_makes_room_for_a_good_one(cache: Cache, damage: str) -> None:
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


def test_what_cannot_be_unpickled_here_is_no_result(cache: Cache) -> None:
    keep(cache, 1)
    cache.keep(Entry(key=OTHER), b"cnowhere_to_be_found\nx\n.", [])
    assert cache.find(OTHER) is None


@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "directory"])
def test_only_a_plain_file_is_a_result(cache: Cache, tmp_path: Path, kind: str) -> None:
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


def test_a_result_is_written_once(cache: Cache) -> None:
    keep(cache, "first")
    keep(cache, "second")
    found = cache.find(KEY)
    assert found is not None and found[1] == "first"
    assert files.list_names(f"{cache.directory}/{os.geteuid()}/tmp") == []


def test_the_answer_to_a_repeated_request_does_no_harm(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_another_accounts_result_is_used_where_it_is_trusted_and_else_not_unpickled(
    cache: Cache, tmp_path: Path
) -> None:
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
def test_a_result_that_another_account_put_among_ones_own_is_not_unpickled(cache: Cache, tmp_path: Path) -> None:
    path = keep(cache, Canary(tmp_path / "canary"))
    os.chown(path, STRANGER, -1)
    for trust in (Trust(), Trust([STRANGER])):  # a trusted account's results lie in its own directory
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
def test_what_is_kept_is_for_those_who_may_list_the_cache(cache: Cache, mode: int, made: int, file: int) -> None:
    Path(cache.directory).mkdir()
    Path(cache.directory).chmod(mode)
    path = Path(keep(cache, 1))
    assert path.stat().st_mode & 0o7777 == file
    assert {each.stat().st_mode & 0o7777 for each in (path.parent, path.parents[1], path.parents[1] / "tmp")} == {made}


def test_in_a_signed_spool_only_what_is_signed_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_table_has_what_is_known_and_the_result_only_on_request(cache: Cache) -> None:
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


def test_a_result_is_found_by_the_command_line_and_removed_when_one_is_sure(cache: Cache) -> None:
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
    assert run("cache", "rm", cache.directory, "--all").exit_code == BadRequest.exit_code  # nobody can be asked
    assert run("cache", "rm", cache.directory, "--key", KEY[:63], "--yes").stdout == "Removed 1 kept result(s).\n"
    assert [kept.entry.key for kept in cache.entries()] == [OTHER]
    assert run("cache", "rm", cache.directory, "--all", "--yes").exit_code == 0
    assert list(cache.entries()) == []


def test_a_person_is_asked_before_results_go(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_gc_removes_what_nobody_has_used_for_long(spool: Spool) -> None:
    cache = cache_of(spool, Trust())
    old, new = keep(cache, 1), keep(cache, 2, OTHER)
    os.utime(old, (0, 0))
    assert [each.path for each in garbage.find_garbage(spool)] == [os.path.relpath(old, spool.path)]
    assert cache.find(KEY) is not None  # which is a use
    assert garbage.find_garbage(spool) == []
    os.utime(old, (0, 0))
    assert run("gc", spool.path, "--cache", "1").stdout == "Removed 1 file(s) and directories.\n"
    assert not os.path.exists(old) and os.path.exists(new)
    assert not scan(spool).unknown


def test_a_key_of_ones_own_is_never_another_calls() -> None:
    assert len({key_of_user_key(text) for text in ("", "a", "b", "a\0", "\udce4")}) == 5


def test_the_cache_of_a_directory_is_told_from_that_of_a_spool(spool: Spool, tmp_path: Path) -> None:
    assert open_cache(spool.path, Trust()).directory == f"{spool.path}/cache"
    assert open_cache(tmp_path / "some", Trust()).directory == f"{tmp_path}/some"
