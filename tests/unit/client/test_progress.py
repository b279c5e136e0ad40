"""Progress bars over futures, progress reports of tasks, and the table of an executor in a notebook."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor, as_completed, current_task, wait
from spoolpool.errors import BadRequest
from spoolpool.protocol import progress, workers
from spoolpool.protocol.progress import Progress, progress_of
from spoolpool.protocol.spool import Spool
from spoolpool.system import file_content
from spoolpool.system.processes import ProcessId
from tests.conftest import Workers
from tests.support import tasks
from tests.support.fake_worker import announce, dead_process
from tests.support.waiting import LIMIT, wait_until

TASK = "499-0660e5f20d1a76-e7819e56d5"


def finished(*values: object) -> list[Future[Any]]:
    found: list[Future[Any]] = [Future() for _ in values]
    for future, value in zip(found, values, strict=True):
        future.set_result(value)
    return found


class Drawn:
    """Bar that only counts."""

    def __init__(self, *, total: int | None, disable: bool | None) -> None:
        assert disable is None, "nothing is drawn into a pipe"
        self.total = total
        self.done = 0
        self.labels: set[str] = set()
        self.closed = False
        DRAWN.append(self)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def get_lock(self) -> threading.Lock:
        return threading.Lock()

    def set_postfix_str(self, text: str, *, refresh: bool) -> None:
        assert not refresh
        self.labels.add(text)

    def update(self) -> None:
        self.done += 1


DRAWN: list[Drawn] = []


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Drawn]:
    DRAWN.clear()
    monkeypatch.setattr("tqdm.auto.tqdm", Drawn)
    return DRAWN


# ------------------------------------------------------------------------------------------- bars


def test_a_bar_counts_what_completes(drawn: list[Drawn]) -> None:
    futures = finished(1, 2, 3)
    assert sum(future.result() for future in as_completed(iter(futures), progress=True)) == 6
    [shown] = drawn
    assert (shown.total, shown.done, shown.closed) == (3, 3, True)


def test_a_bar_of_a_wait_counts_while_it_waits(drawn: list[Drawn]) -> None:
    pending: Future[int] = Future()
    futures = [*finished(1, 2), pending]

    def finish_once_two_are_counted() -> None:
        wait_until(lambda: drawn and drawn[0].done == 2, "two were counted")
        pending.set_result(3)

    thread = threading.Thread(target=finish_once_two_are_counted)
    thread.start()
    done, not_done = wait(futures, progress=True)
    thread.join()
    assert (done, not_done) == (set(futures), set())
    assert (drawn[0].total, drawn[0].done, drawn[0].closed) == (3, 3, True)


def test_without_a_bar_both_are_the_standard_librarys() -> None:
    pending: Future[int] = Future()
    futures = [*finished(1), pending]
    done, not_done = wait(iter(futures), 0, FIRST_COMPLETED)
    assert (done, not_done) == ({futures[0]}, {pending})
    assert next(as_completed(futures)) is futures[0]
    with pytest.raises(TimeoutError):
        list(as_completed(futures, 0))
    assert wait(futures, 0, return_when=ALL_COMPLETED).not_done == {pending}


@pytest.mark.parametrize(("options", "total"), [({}, 6), ({"chunksize": 2}, 3), ({"buffersize": 2}, None)])
def test_a_map_draws_how_many_tasks_are_done(drawn: list[Drawn], options: dict[str, int], total: int | None) -> None:
    with Executor(max_workers=1, backend="local") as exe:
        assert list(exe.map(abs, range(-6, 0), progress=True, **options)) == [6, 5, 4, 3, 2, 1]
    [shown] = drawn
    assert (shown.total, shown.done, shown.closed) == (total, total or 6, True)
    assert "(-1)" in shown.labels or "(-2 ... -1)" in shown.labels


def test_a_terminal_shows_the_bar_and_a_pipe_does_not(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from concurrent.futures import Future\n"
        "from spoolpool import as_completed, wait\n"
        "futures = [Future() for _ in range(3)]\n"
        "for future in futures: future.set_result(1)\n"
        "print(sum(future.result() for future in as_completed(futures, progress=True)))\n",
        encoding="ascii",
    )
    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # a new one has no columns
    env = {**os.environ, "TERM": "xterm"}
    on_terminal = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, stderr=far, env=env, timeout=LIMIT)
    os.close(far)
    shown = b""
    try:
        while piece := os.read(near, 65536):
            shown += piece
    except OSError:  # EIO: the far end is closed and everything was read
        pass
    os.close(near)
    assert on_terminal.stdout == b"3\n"
    assert b"3/3" in shown
    piped = subprocess.run([sys.executable, script], capture_output=True, timeout=LIMIT)
    assert (piped.stdout, piped.stderr) == (b"3\n", b"")


def test_without_tqdm_the_error_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(BadRequest, match=r"spoolpool\[progress\]"):
        list(as_completed(finished(1), progress=True))


def test_tqdm_of_the_user_draws_over_futures_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    import tqdm

    with Executor(max_workers=1, backend="local") as exe:
        futures = [exe.submit(abs, number) for number in (-1, -2, -3)]
        assert sum(future.result() for future in tqdm.tqdm(as_completed(futures), total=len(futures))) == 6
        assert sum(tqdm.tqdm(exe.map(abs, [-4, -5]), total=2)) == 9
    assert "3/3" in capsys.readouterr().err


# --------------------------------------------------------------------------- what a task tells


def told(spool: Spool, worker: str) -> tuple[str, float | None, str]:
    found = progress_of(spool, worker)
    assert found is not None
    return found.task, found.fraction, found.text


def test_a_running_task_tells_how_far_it_is(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    worker(spool)
    [info] = workers.read_workers(spool)
    with Executor(spool=spool.path) as exe:
        assert progress_of(spool, info.worker) is None
        future = exe.submit(tasks.tell_and_wait, str(tmp_path / "end"))
        found = wait_until(lambda: progress_of(spool, info.worker), "the task told")
        assert (found.task, found.fraction, found.text) == (future.task, 0.4, "SCF step 12")
        (tmp_path / "end").touch()
    assert future.result() is None


def test_of_what_is_told_in_a_hurry_the_last_is_seen_and_little_is_written(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = announce(spool, ProcessId.of(os.getpid()))
    monkeypatch.setattr(progress, "_EVERY", 0.2)
    written: list[bytes] = []
    monkeypatch.setattr(
        progress.file_content, "write_at", lambda fd, data, offset, write=file_content.write_at: (
            written.append(data), write(fd, data, offset)
        )
    )  # fmt: skip
    telling = Progress(spool.path)
    for step in range(10_000):
        telling.report(worker, TASK, step / 9_999, f"step {step}")
    wait_until(lambda: told(spool, worker) == (TASK, 1.0, "step 9999"), "the last was written")
    assert len(written) < 1000
    assert {len(each) for each in written} == {1024}


@pytest.mark.parametrize(
    ("fraction", "text", "seen"),
    [
        (-1, "", (0.0, "")),
        (2, "", (1.0, "")),
        (float("nan"), "?", (None, "?")),
        (None, "x" * 1000, (None, "x" * 120)),
        (0.5, "\udc80\x1b" * 60, (0.5, "?\x1b" * 60)),
    ],
)
def test_whatever_is_told_is_read_again(
    spool: Spool, fraction: float | None, text: str, seen: tuple[float | None, str]
) -> None:
    worker = announce(spool, ProcessId.of(os.getpid()))
    Progress(spool.path).report(worker, TASK, fraction, text)
    assert told(spool, worker)[1:] == seen


@pytest.mark.parametrize("given", [50, "50%", float("nan"), None, 0.5, 1.0000001])
def test_a_percentage_in_place_of_a_fraction_is_logged_once(
    spool: Spool, given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    worker = announce(spool, ProcessId.of(os.getpid()))
    telling = Progress(spool.path)
    for _ in range(3):
        telling.report(worker, TASK, given, "")
    wrong = given not in (None, 0.5, 1.0000001)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * wrong
    assert wrong == ("50 % is 0.5" in caplog.text)


def test_a_shorter_text_leaves_nothing_of_a_longer_one(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = announce(spool, ProcessId.of(os.getpid()))
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    telling = Progress(spool.path)
    for text in ("a long text " * 8, "short"):
        telling.report(worker, TASK, 0.5, text)
        assert told(spool, worker)[2] == text


def test_the_progress_goes_with_its_workers_entry(spool: Spool) -> None:
    worker = announce(spool, dead_process())
    Progress(spool.path).report(worker, TASK, 0.5, "")
    assert progress_of(spool, worker) is not None
    workers.remove_worker(spool, worker)
    assert not os.path.exists(spool.layout.worker(worker))


def test_what_is_no_progress_is_none(spool: Spool) -> None:
    worker = announce(spool, ProcessId.of(os.getpid()))
    for content in (b"", b"{", b'{"task": 1}', b"\x00" * 1024):
        Path(spool.layout.worker(worker), "progress").write_bytes(content)
        assert progress_of(spool, worker) is None


@pytest.mark.mpi
def test_ranks_other_than_the_first_tell_nothing(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    worker(spool, mpi_ranks=2)
    [info] = workers.read_workers(spool)
    with Executor(spool=spool.path, cores_per_worker=2) as exe:
        future = exe.submit(tasks.tell_rank_and_wait, str(tmp_path / "end"))
        found = wait_until(lambda: progress_of(spool, info.worker), "the task told")
        assert found.text == "rank 0"
        (tmp_path / "end").touch()
        assert future.result() == [None, None]


def test_outside_of_a_worker_telling_is_nothing_to_fail_for() -> None:
    from spoolpool.context import CurrentTask, running

    with running(CurrentTask(id=TASK, attempt=1, worker="0" * 16)):
        current_task().progress(0.5, "alone")


# ---------------------------------------------------------------------------------------- notebooks


def test_a_notebook_shows_what_an_executor_is(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "<spool> & more")
    with Executor(spool=spool.path) as exe:
        future = exe.submit(abs, 1)
        shown = exe._repr_html_()
        assert "1 pending, 0 done" in " ".join(shown.split("<td>")) or "0 done, 1 pending" in shown
        assert "&lt;spool&gt; &amp; more" in shown
        assert not re.search(r"<(?!/?(table|tr|th|td)>)|https?:", shown)
        assert repr(exe) == f"<Executor of {spool.path}, session {exe.info['session']}, 1 pending>"
        assert future.cancel()
    assert "Executor, ended" in exe._repr_html_()
    assert repr(exe) == "<Executor, ended>"


def test_futures_are_shown_with_task_and_function(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "spool")
    with Executor(spool=spool.path) as exe:
        future = exe.submit(abs, 1)
        assert repr(future) == f"<TaskFuture {future.task} abs (1) pending>"  # type: ignore[attr-defined]
        shown = future._repr_html_()  # type: ignore[attr-defined]
        assert all(f"<td>{text}</td>" in shown for text in (future.task, "abs", "pending"))  # type: ignore[attr-defined]
        future.cancel()
    assert repr(future).endswith(" abs (1) cancelled>")
