"""Workers and submitters that share a spool and know only its directory."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor, Spool, Submission, settings
from spoolpool.client import starvation
from spoolpool.errors import BadRequest, BadTaskFile, BrokenSpool, NotASpool, SpoolDenied, SpoolFull, SpoolVersion
from spoolpool.format.names import Lane, parse_task_file
from spoolpool.protocol import workers
from spoolpool.security import permissions
from tests.conftest import Workers
from tests.support import tasks
from tests.support.accounts import as_another, as_root, public_directory, unused_id
from tests.support.processes import in_fork, processes_of, run_script, start_script
from tests.support.waiting import LIMIT, wait_until

pytestmark = pytest.mark.timeout(120)

BIN = Path(sys.executable).parent


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command of the package."""
    name, *rest = map(str, arguments)
    return subprocess.run([BIN / name, *rest], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT)


def task_files(spool: Spool, directory: str) -> list[str]:
    """Return the names of the task files below a directory of a spool."""
    found = Path(spool.path, directory).rglob("*")
    return sorted(path.name for path in found if parse_task_file(path.name))


def files(spool: Spool) -> set[str]:
    """Return all files of a spool without those about workers, sessions, logs and journals."""
    about = ("workers", "journal", "sessions", "logs")
    every = (path.relative_to(spool.path) for path in Path(spool.path).rglob("*") if not path.is_dir())
    return {str(path) for path in every if path.parts[0] not in about}


# ------------------------------------------------------------------------------------ commands

SUBMIT = """
import sys
from spoolpool import Executor

def cube(x):
    return x ** 3

with Executor(spool=sys.argv[1]) as executor:
    start, count = map(int, sys.argv[2:])
    print(list(executor.map(cube, range(start, start + count))))
"""


def test_commands_serve_a_script(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    made = command("spool", "init", path)
    assert made.returncode == 0 and str(path) in made.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    serving = subprocess.Popen([BIN / "spool-worker", path], stderr=subprocess.PIPE, text=True)
    try:
        ended = run_script(tmp_path / "script.py", SUBMIT, path, 0, 10)
        assert (ended.stdout, ended.stderr) == (f"{[i**3 for i in range(10)]}\n", "")
    finally:
        serving.terminate()
    _, said = serving.communicate(timeout=LIMIT)
    assert serving.returncode == 0
    assert "serve" in said
    assert files(Spool(path)) == {"spool.json"}
    assert workers.read_workers(Spool(path)) == []


@pytest.mark.mpi
def test_ranks_started_by_mpiexec_form_a_group(spool: Spool, worker: Workers) -> None:
    worker(spool, mpi_ranks=2)
    with Executor(spool=spool.path, cores_per_worker=2) as executor:
        assert executor.submit(tasks.communicator).result(LIMIT) == [(0, 2), (1, 2)]


@pytest.mark.mpi
def test_supervisor_starts_groups_and_replaces_them(spool: Spool, worker: Workers) -> None:
    worker(spool, "--launcher", "mpiexec", "--ranks", 2, "--groups", 2, await_groups=2)
    with Executor(spool=spool.path, cores_per_worker=2) as executor:
        assert executor.submit(tasks.communicator).result(LIMIT) == [(0, 2), (1, 2)]
        killed = executor.submit(tasks.leave, 3)
        assert isinstance(killed.exception(LIMIT), SystemExit)
        assert executor.submit(tasks.communicator).result(LIMIT) == [(0, 2), (1, 2)]


def test_tasks_wait_for_workers_and_workers_wait_for_tasks(spool: Spool, worker: Workers) -> None:
    with Executor(spool=spool.path) as executor:
        early = [executor.submit(pow, i, 2) for i in range(5)]
        assert len(executor) == 5
        worker(spool)
        assert [future.result(LIMIT) for future in early] == [0, 1, 4, 9, 16]
        assert executor.submit(pow, 3, 2).result(LIMIT) == 9


def test_tasks_in_several_buckets_are_run(spool: Spool, worker: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "BUCKET_SIZE", 7)
    with Executor(spool=spool.path) as executor:
        futures = [executor.submit(pow, i, 2) for i in range(50)]
        assert len(executor) == 50
        worker(spool)
        worker(spool)
        assert [future.result(LIMIT) for future in futures] == [i**2 for i in range(50)]
    assert files(spool) == {"spool.json"}


def test_attached_executor_may_start_groups(spool: Spool) -> None:
    with Executor(max_workers=1, spool=spool.path) as executor:
        assert executor.submit(pow, 2, 3).result(LIMIT) == 8
        assert len(workers.read_workers(spool)) == 1
    assert workers.read_workers(spool) == []
    assert processes_of(spool.path) == []
    assert Spool(spool.path).config == spool.config  # the spool does not belong to the executor


def test_groups_of_a_killed_submitter_end_and_the_spool_stays(spool: Spool, tmp_path: Path) -> None:
    text = """
        import sys
        from spoolpool import Executor
        from tests.support import tasks
        executor = Executor(max_workers=1, spool=sys.argv[1])
        executor.submit(pow, 2, 2).result()
        print("ready", flush=True)
        tasks.wait_for("/nowhere")
    """
    script = start_script(tmp_path / "s.py", textwrap.dedent(text), spool.path)
    assert script.stdout is not None
    assert script.stdout.readline() == "ready\n"
    script.kill()
    script.wait()
    wait_until(lambda: not processes_of(spool.path), "the groups ended")
    assert workers.read_workers(spool) == []
    assert Spool(spool.path).config == spool.config


def test_worker_finishes_its_task_after_sigterm(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    serving = worker(spool)
    with Executor(spool=spool.path) as executor:
        running = executor.submit(tasks.mark_and_wait, tmp_path / "started", tmp_path / "end", "done")
        wait_until((tmp_path / "started").exists, "the task runs")
        waiting = executor.submit(pow, 2, 2)
        serving.send_signal(signal.SIGTERM)
        (tmp_path / "end").touch()
        assert running.result(LIMIT) == "done"
        assert serving.wait(LIMIT) == 0
        assert not waiting.done()
        worker(spool)
        assert waiting.result(LIMIT) == 4


# ------------------------------------------------------------------------- several submitters


def test_concurrent_submitters_get_their_own_results(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    worker(spool)
    worker(spool)
    scripts = [start_script(tmp_path / f"{start}.py", SUBMIT, spool.path, start, 200) for start in (0, 1000)]
    said = [script.communicate(timeout=LIMIT) for script in scripts]
    assert said == [(f"{[i**3 for i in range(start, start + 200)]}\n", "") for start in (0, 1000)]
    assert files(spool) == {"spool.json"}


def test_results_of_another_session_are_not_changed(spool: Spool, worker: Workers) -> None:
    worker(spool)
    other = start_session_that_collects_nothing(spool)
    wait_until(lambda: task_files(spool, f"results/{other}"), "the other session has a result")
    before = files(spool)
    with Executor(spool=spool.path) as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
    assert files(spool) == before
    assert before > {"spool.json"}


def start_session_that_collects_nothing(spool: Spool) -> str:
    """Run a submitter that ends before it collects its result; return the name of its session."""

    def submit() -> str:
        executor = Executor(spool=spool.path)
        core = executor._runtime
        assert core is not None
        core.session.collector.start = lambda: False  # type: ignore[method-assign]
        executor.submit(pow, 2, 2)
        name: str = executor.info["session"]
        return name

    return str(in_fork(submit))


def test_forked_child_has_its_own_session(spool: Spool, worker: Workers) -> None:
    worker(spool)
    with Executor(spool=spool.path) as executor:
        parents = executor.info["session"]
        waiting = executor.submit(pow, 2, 2)

        def child() -> object:
            value = executor.submit(pow, 3, 2).result(LIMIT)
            sessions = executor.info["session"], parents
            executor.shutdown()
            return value, sessions[0] != sessions[1], type(waiting.exception(LIMIT))

        assert in_fork(child) in [(9, True, BrokenSpool), (9, True, type(None))]
        assert waiting.result(LIMIT) == 4


def test_tasks_of_a_script_that_ends_without_shutdown_are_run(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    worker(spool)
    text = """
        import sys
        from spoolpool import Executor
        def use():
            executor = Executor(spool=sys.argv[1])
            future = executor.submit(pow, 2, 5)
            future.add_done_callback(lambda done: print(done.result(), flush=True))
        use()
    """
    ended = run_script(tmp_path / "script.py", textwrap.dedent(text), spool.path)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("32\n", "", 0)


# ----------------------------------------------------------------------------- no worker


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_submitter_is_warned_once_if_no_worker_is_alive(
    spool: Spool, worker: Workers, soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    with Executor(spool=spool.path) as executor:
        future = executor.submit(pow, 2, 2)
        wait_until(lambda: warnings(caplog), "the submitter was warned")
        assert re.search("1 task.* wait .*no worker group is alive.*spool-worker", warnings(caplog)[0])
        assert spool.path in warnings(caplog)[0]
        status = command("spool", "status", spool.path)
        assert re.search("BLOCKED +1 .*no worker group is alive", status.stdout)
        worker(spool)
        assert future.result(LIMIT) == 4
    assert len(warnings(caplog)) == 1


def test_submitter_touches_the_directories_of_a_waiting_task(
    spool: Spool, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starvation, "_FIRST_REFRESH", 0.01)
    with Executor(spool=spool.path) as executor:
        future = executor.submit(pow, 2, 2)
        (bucket,) = {path.parent for path in Path(spool.layout.ready).rglob(future.task + ".*")}
        inbox = next(Path(spool.layout.results).iterdir())
        passed = [spool.layout.ready, bucket.parent, bucket, spool.layout.waiting, spool.layout.claimed, inbox]
        for directory in passed:
            os.utime(directory, (0, 0))
        wait_until(lambda: all(os.stat(directory).st_mtime for directory in passed), "all directories were touched")
        assert future.cancel()


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"resource_dict": {"cores": 64}}, "64 ranks wanted, the largest group has 1"),
        ({"resource_dict": {"threads_per_core": 3}}, "3 threads per rank wanted, groups have 1"),
        ({"resource_dict": {"gpus_per_core": 1}}, "1 GPUs per rank wanted, groups have 0"),
        ({"resource_dict": {"tags": ["b", "a"]}}, "tag a, b wanted, groups have no tags"),
        ({"submission": Submission(queue="night")}, "queue 'night' wanted, groups serve 'default'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_submitter_is_warned_of_requirements_that_no_group_meets(
    spool: Spool,
    worker: Workers,
    soon: None,
    caplog: pytest.LogCaptureFixture,
    asked: dict[str, Any],
    reason: str,
) -> None:
    worker(spool)
    with Executor(spool=spool.path, **asked) as executor:
        future = executor.submit(pow, 2, 2)
        wait_until(lambda: warnings(caplog), "the submitter was warned")
        assert reason in warnings(caplog)[0]
        assert reason in command("spool", "status", spool.path).stdout
        assert future.cancel()


def test_task_with_zero_cores_is_rejected(spool: Spool) -> None:
    with Executor(spool=spool.path) as executor, pytest.raises(BadRequest, match="cores is 0"):
        executor.submit(pow, 2, 2, resource_dict={"cores": 0})
    assert files(spool) == {"spool.json"}


def test_tasks_fail_if_their_spool_is_removed(spool: Spool, soon: None, tmp_path: Path) -> None:
    with Executor(spool=spool.path) as executor:
        future = executor.submit(pow, 2, 2)
        os.rename(spool.path, tmp_path / "away")  # at once: a removal would race with the submitter's own directories
        with pytest.raises(BrokenSpool, match="no longer exists"):
            future.result(LIMIT)
        with pytest.raises(BrokenSpool):
            executor.submit(pow, 2, 2)


# ------------------------------------------------------------------------------- no spool


def commands_of(path: object) -> list[Callable[[], subprocess.CompletedProcess[str]]]:
    """Return runs of the commands that open a spool."""
    return [lambda: command("spool", "status", path), lambda: command("spool-worker", path)]


def test_error_for_a_missing_spool_says_how_to_create_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "spool.json").write_text('{"format": 1, "id')
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "spool.json").write_text("[1, 2]")
    for name in ("missing", "empty", "file", "torn", "foreign"):
        with pytest.raises(NotASpool, match=f"{tmp_path / name} is not a spool"):
            Executor(spool=tmp_path / name)
    for run in commands_of(tmp_path / "missing"):
        ended = run()
        assert ended.returncode == NotASpool.exit_code == 3
        assert f"spool init {tmp_path / 'missing'}" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_spool_of_a_newer_version_is_rejected(spool: Spool) -> None:
    config = Path(spool.layout.config)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"format": 99, "something": "new"}))
    with pytest.raises(SpoolVersion, match="format 99"):
        Executor(spool=spool.path)
    for run in commands_of(spool.path):
        ended = run()
        assert ended.returncode == SpoolVersion.exit_code == 4
        assert "newer" in ended.stderr and "Traceback" not in ended.stderr


def test_spool_is_not_created_in_a_directory_with_other_files(spool: Spool, tmp_path: Path) -> None:
    again = command("spool", "init", spool.path)
    assert again.returncode == BadRequest.exit_code
    assert "is a spool already" in again.stderr
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").touch()
    assert "thesis.tex" in command("spool", "init", tmp_path / "used").stderr
    assert os.listdir(tmp_path / "used") == ["thesis.tex"]


# ----------------------------------------------------------------------------- no permission


@pytest.fixture
def public() -> Iterator[Path]:
    """Directory that each account can enter."""
    with public_directory() as path:
        yield path


@as_root
@pytest.mark.multiuser
def test_spool_without_search_permission_is_an_error(public: Path) -> None:
    spool = Spool.create(public / "spool")
    error = as_another(lambda: Executor(spool=spool.path))
    assert isinstance(error, SpoolDenied)
    assert spool.path in str(error) and "owner" in str(error)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the check of permissions, as if they were changed after the spool was opened."""
    monkeypatch.setattr(permissions, "check_tree", lambda *_: None)


@as_root
@pytest.mark.multiuser
def test_spool_without_write_permission_is_an_error_and_unchanged(public: Path, unchecked: None) -> None:
    spool = Spool.create(public / "spool")
    for path in (public / "spool").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (public / "spool").chmod(0o755)
    error = as_another(lambda: Executor(spool=spool.path))
    assert isinstance(error, SpoolDenied)
    assert "Permission denied" in str(error)
    assert files(spool) == {"spool.json"}


@as_root
@pytest.mark.multiuser
def test_submission_without_permission_is_an_error_and_leaves_no_file(public: Path, unchecked: None) -> None:
    spool = Spool.create(public / "spool")
    (public / "spool").chmod(0o755)
    (public / "spool" / "spool.json").chmod(0o644)
    for name in ("results", "outgoing", "sessions", "tmp"):
        (public / "spool" / name).chmod(0o777)

    def submit() -> object:
        with Executor(spool=spool.path) as executor:
            executor.submit(pow, 2, 2)
        return None

    error = as_another(submit)
    assert isinstance(error, SpoolDenied)
    assert "submit a task" in str(error)
    assert files(spool) == {"spool.json"}


# ---------------------------------------------------------------------------------- disk full


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Filesystem of one MiB and 120 files."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=120", "tmpfs", path], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small filesystem: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill(path: Path) -> Path:
    """Fill a filesystem; return the file to remove."""
    with (path / "filling").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path / "filling"


def test_task_larger_than_the_disk_is_an_error_and_leaves_no_file(small: Path, worker: Workers) -> None:
    spool = Spool.create(small / "spool", durability="none")
    worker(spool)
    with Executor(spool=spool.path) as executor:
        with pytest.raises(SpoolFull, match="No space left"):
            executor.submit(len, bytes(2_000_000))
        assert files(spool) == {"spool.json"}
        assert len(executor) == 0
        assert executor.submit(len, bytes(1000)).result(LIMIT) == 1000  # a smaller one fits


def test_full_disk_is_an_error_and_submission_works_again_afterwards(small: Path, worker: Workers) -> None:
    spool = Spool.create(small / "spool", durability="none")
    with Executor(spool=spool.path) as executor:
        filling = fill(small)
        for _ in range(3):
            with pytest.raises(SpoolFull, match=re.escape(spool.path)):
                executor.submit(len, bytes(10_000))
        assert task_files(spool, "ready") == [] and os.listdir(spool.layout.tmp) == []
        filling.unlink()
        worker(spool)
        assert executor.submit(len, bytes(10_000)).result(LIMIT) == 10_000


@pytest.mark.parametrize("left", [0, 1, 2])
def test_lack_of_inodes_at_any_step_of_a_submission_is_an_error(small: Path, left: int) -> None:
    """Exhaust the inodes for the task file, the directory of the lane, or the directory of the bucket."""
    spool = Spool.create(small / "spool", durability="none")
    with Executor(spool=spool.path) as executor:
        others = []
        with contextlib.suppress(OSError):
            for number in range(1000):
                (small / f"{number}").touch()
                others.append(small / f"{number}")
        for path in others[:left]:
            path.unlink()
        with pytest.raises(SpoolFull, match="No space left"):
            executor.submit(pow, 2, 2)
        assert task_files(spool, "") == [] and os.listdir(spool.layout.tmp) == []
        for path in others[left:]:
            path.unlink()
        assert executor.submit(pow, 2, 2).cancel()


def test_opening_a_spool_on_a_full_disk_is_an_error(small: Path) -> None:
    spool = Spool.create(small / "spool", durability="none")
    with contextlib.suppress(OSError):
        for number in range(1000):
            (small / f"{number}").touch()
    with pytest.raises(SpoolFull, match="No space left"):
        Executor(spool=spool.path)
    with pytest.raises(SpoolFull, match="No space left"):
        Spool.create(small / "other")


def make_big_result(started: Path, end: Path) -> bytes:
    tasks.mark_and_wait(started, end)
    return bytes(100_000)


def test_result_is_published_once_the_disk_has_space(small: Path, worker: Workers, tmp_path: Path) -> None:
    spool = Spool.create(small / "spool", durability="none")
    serving = worker(spool)
    with Executor(spool=spool.path) as executor:
        future = executor.submit(make_big_result, tmp_path / "started", tmp_path / "end")
        wait_until((tmp_path / "started").exists, "the task runs")
        filling = fill(small)
        (tmp_path / "end").touch()
        wait_until(lambda: "Cannot write the outcome" in worker.said(serving), "the worker met the full disk")
        assert len(task_files(spool, "claimed")) == 1 and not future.done()
        filling.unlink()
        assert future.result(LIMIT) == bytes(100_000)
    assert (tmp_path / "started").read_text().count("\n") == 1  # it ran once
    assert files(spool) == {"spool.json"}


def test_result_larger_than_the_disk_becomes_an_error_of_its_task(small: Path, worker: Workers) -> None:
    spool = Spool.create(small / "spool", durability="none", lease=1.0)
    worker(spool)
    with Executor(spool=spool.path) as executor:
        with pytest.raises(SpoolFull, match="could not be stored"):
            executor.submit(bytes, 2_000_000).result(LIMIT)
        assert executor.submit(pow, 2, 2).result(LIMIT) == 4


def test_worker_that_ends_while_the_disk_is_full_releases_its_claim(
    small: Path, worker: Workers, tmp_path: Path
) -> None:
    spool = Spool.create(small / "spool", durability="none")
    serving = worker(spool)
    worker.may_die(serving)
    with Executor(spool=spool.path) as executor:
        future = executor.submit(make_big_result, tmp_path / "started", tmp_path / "end")
        wait_until((tmp_path / "started").exists, "the task runs")
        filling = fill(small)
        (tmp_path / "end").touch()
        wait_until(lambda: "Cannot write the outcome" in worker.said(serving), "the worker met the full disk")
        serving.send_signal(signal.SIGTERM)
        serving.wait(LIMIT)
        (waiting,) = task_files(spool, "ready")
        task_file = parse_task_file(waiting)
        assert task_file is not None and (task_file.claim, task_file.attempt) == (2, 1)  # it cost no attempt
        filling.unlink()
        worker(spool)
        assert future.result(LIMIT) == bytes(100_000)


# ------------------------------------------------------------------- foreign and torn files


def test_unreadable_task_is_set_aside_and_reported_and_others_run(spool: Spool, worker: Workers, soon: None) -> None:
    with Executor(spool=spool.path) as executor:
        futures = [executor.submit(pow, i, 2) for i in range(5)]
        names = task_files(spool, "ready")
        (bucket,) = {path.parent for path in Path(spool.layout.ready).rglob(names[0])}
        os.truncate(bucket / names[0], 100)
        data = (bucket / names[1]).read_bytes()
        (bucket / names[1]).write_bytes(data[:-20] + bytes(20))  # as after a loss of power
        data = (bucket / names[2]).read_bytes()
        (bucket / names[2]).write_bytes(data[:8] + b"\x63\0" + data[10:])  # of a later version
        serving = worker(spool)
        assert [future.result(LIMIT) for future in futures[3:]] == [9, 16]
        wait_until(lambda: len(task_files(spool, "failed")) == 3, "the worker has found all three")
        for future, name in zip(futures[:3], names[:3], strict=True):
            error = future.exception(LIMIT)
            assert isinstance(error, BadTaskFile)
            assert "failed/" in str(error) and name.partition(".")[0] in str(error)
    # a file is moved before the worker says so
    wait_until(lambda: worker.said(serving).count("It is kept as") >= 3, "the worker told of all three")
    assert worker.said(serving).count("It is kept as") == 3
    assert worker.said(serving).count("has format 99") == 1


def test_foreign_files_in_ready_are_reported_once_and_stop_no_task(spool: Spool, worker: Workers) -> None:
    lane = Lane("default", 1, 1, 0, settings.PYTHON).name
    bucket = Path(spool.layout.bucket(lane, f"499-{0:014x}-{0:08x}"))
    bucket.mkdir(parents=True)

    def name(number: int) -> Path:
        return bucket / f"000-{number:014x}-{0:010x}.000001.01"  # more urgent than the tasks of the test

    name(1).write_text("hello\n")
    name(2).touch()
    name(3).mkdir()
    name(4).symlink_to("/etc/passwd")
    os.mkfifo(name(5))
    (bucket / "README").write_text("not a task")
    (bucket / ".nfs0001").touch()
    (Path(spool.layout.ready) / "lost+found").mkdir()
    (Path(spool.layout.ready) / lane / "notes.txt").touch()
    serving = worker(spool)
    with Executor(spool=spool.path) as executor:
        assert list(executor.map(abs, range(20))) == list(range(20))
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(LIMIT) == 0
    assert (
        sorted(parse_task_file(each).task for each in task_files(spool, "failed"))
        == [  # type: ignore[union-attr]
            name(1).name[:29],
            name(2).name[:29],
        ]
    )
    assert sorted(os.listdir(bucket)) == sorted([name(3).name, name(4).name, name(5).name, "README", ".nfs0001"])
    for number in range(1, 6):
        assert worker.said(serving).count(f"{name(number).name[:29]}") in (
            1,
            2,
        )  # once, and once more with the path where it is kept
    assert Path("/etc/passwd").exists()


@as_root
@pytest.mark.multiuser
def test_task_of_an_untrusted_account_is_not_run(spool: Spool, worker: Workers) -> None:
    stranger = unused_id()
    with Executor(spool=spool.path) as executor:
        foreign, own = (executor.submit(pow, i, 2) for i in (2, 3))
        names = task_files(spool, "ready")
        (path,) = Path(spool.layout.ready).rglob(names[0])
        os.chown(path, stranger, stranger)
        serving = worker(spool)
        assert own.result(LIMIT) == 9
        wait_until(lambda: "is not trusted" in worker.said(serving), "it was reported")
        assert path.exists() and not foreign.done()
        os.chown(path, os.geteuid(), os.getegid())
        worker(spool)
        assert foreign.result(LIMIT) == 4


def test_foreign_file_among_results_stops_no_collection(spool: Spool, worker: Workers) -> None:
    worker(spool)
    with Executor(spool=spool.path) as executor:
        inbox = Path(spool.layout.results, executor.info["session"])
        (inbox / "README").write_text("not a result")
        (inbox / f"499-{0:014x}-{0:010x}.000001.01.{0:016x}").write_text("result without a task")
        assert list(executor.map(abs, range(5))) == list(range(5))
    assert len(os.listdir(inbox)) == 2


def test_stopped_idle_group_holds_up_no_call(spool: Spool, worker: Workers) -> None:
    """The group that reacts to new tasks is stopped, and the others are in reserve."""
    groups = 3
    for _ in range(groups):
        worker(spool)
    with Executor(spool=spool.path, submission=Submission(pack=False)) as exe:
        for _ in range(groups):
            for _ in range(20):  # the others lose these tasks to one of them
                last = exe.submit(os.getpid).result(LIMIT)
            os.kill(last, signal.SIGSTOP)
            try:
                assert exe.submit(os.getpid).result(LIMIT) != last
            finally:
                os.kill(last, signal.SIGCONT)
