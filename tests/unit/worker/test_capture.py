"""Capture of the output of tasks and their child processes: order, limits, faults and reading."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolpool.errors import BadTaskFile, NotTrusted
from spoolpool.format.names import OutputFile, TaskFile, new_task_id, new_worker_id, parse_output_file
from spoolpool.format.output_log import HEADER_SIZE, NOTE_SIZE
from spoolpool.monitor.logs import Lines, OutputFollower, for_terminal, outputs, read, tasks_like
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.worker import capture as capture_module
from spoolpool.worker.capture import Capture
from tests.support.processes import in_fork

WORKER = "0123456789abcdef"
LIMIT = 1 << 16


def new_task_file(claim: int = 1) -> TaskFile:
    return TaskFile(new_task_id(), claim, 1, WORKER)


def printed(spool: Spool, task: str) -> bytes:
    """Return the kept output of a task."""
    return b"".join(piece for output in outputs(spool, task, Trust()) for piece in read(spool, output, Trust()))


def log_of(spool: Spool, part: int = 0) -> Path:
    return Path(spool.layout.log(OutputFile(WORKER, 0, part)))


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.create(tmp_path / "spool", durability="none", output=LIMIT)


@pytest.fixture
def capture(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Capture]:
    """Capture of a rank; its outputs are cut only when the test calls the check."""
    monkeypatch.setattr(capture_module._LengthWatcher, "begin", lambda self: None)
    made = Capture(spool.path)
    yield made
    made.close()


# ------------------------------------------------------------------------------------ kept output


def test_output_of_python_compiled_code_and_children_is_kept_in_order(
    spool: Spool, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, fd in (("stdout", 1), ("stderr", 2)):  # the streams of pytest do not write to the descriptors
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.FileIO(fd, "w", closefd=False)))
    first, second = new_task_file(), new_task_file()
    with capture.of(first):
        print("from Python")
        os.write(1, b"to the descriptor\n")
        ctypes.CDLL(None).puts(b"from C")
        subprocess.run(["sh", "-c", "echo from a child; echo its complaint >&2"])
        print("no end of line", end="")
    with capture.of(second):
        ctypes.CDLL(None).printf(b"in C's buffer")
        print("complaint", file=sys.stderr)
    assert printed(spool, first.task) == (
        b"from Python\nto the descriptor\nfrom C\nfrom a child\nits complaint\nno end of line"
    )
    assert sorted(printed(spool, second.task)) == sorted(b"complaint\nin C's buffer")


def test_descriptors_are_restored_between_tasks(capture: Capture) -> None:
    before = [os.fstat(fd) for fd in (1, 2)]
    with capture.of(new_task_file()):
        assert not os.path.samestat(os.fstat(1), before[0])
        assert os.path.samestat(os.fstat(1), os.fstat(2))
    assert [os.path.samestat(os.fstat(fd), status) for fd, status in zip((1, 2), before, strict=True)] == [True, True]


def test_silent_tasks_leave_no_log(spool: Spool, capture: Capture) -> None:
    for _ in range(100):
        with capture.of(new_task_file()):
            pass
    assert log_of(spool).stat().st_size == HEADER_SIZE
    capture.close()
    assert files.list_names(spool.layout.logs) == []


def test_header_of_a_silent_task_does_not_affect_other_outputs(spool: Spool, capture: Capture) -> None:
    task_files = [new_task_file() for _ in range(4)]
    for task_file, text in zip(task_files, (b"", b"one\n", b"", b"two\n"), strict=True):
        with capture.of(task_file):
            os.write(1, text)
    assert [printed(spool, task_file.task) for task_file in task_files] == [b"", b"one\n", b"", b"two\n"]


def test_log_with_output_outlives_its_worker(spool: Spool, capture: Capture) -> None:
    task_file = new_task_file()
    with capture.of(task_file):
        os.write(1, b"last words\n")
    capture.close()
    assert printed(spool, task_file.task) == b"last words\n"


def test_only_its_owner_can_read_a_log(spool: Spool, capture: Capture) -> None:
    with capture.of(new_task_file()):
        assert log_of(spool).stat().st_mode & 0o777 == 0o600


def test_output_of_each_claim_of_a_task_is_kept(spool: Spool, capture: Capture) -> None:
    task_file = new_task_file()
    for claim in (1, 2):
        with capture.of(task_file._replace(claim=claim)):
            os.write(1, f"claim {claim}\n".encode())
    assert [output.header.task_file.claim for output in outputs(spool, task_file.task, Trust())] == [1, 2]
    assert printed(spool, task_file.task) == b"claim 1\nclaim 2\n"


def test_subtask_in_the_same_process_has_its_own_output(spool: Spool, capture: Capture) -> None:
    outer, inner, innermost = (new_task_file() for _ in range(3))
    watching, late = OutputFollower(spool, Trust()), OutputFollower(spool, Trust())
    watching.add(outer)
    seen = b""
    with capture.of(outer):
        os.write(1, b"outer\n")
        seen += follow(watching)
        with capture.of(inner):
            os.write(1, b"inner\n")
            with capture.of(innermost):
                seen += follow(watching)
        os.write(1, b"outer again\n")
        seen += follow(watching)
        with capture.of(innermost._replace(claim=2)):
            pass
        os.write(1, b"and again\n")
    for task_file in (outer, inner):
        late.add(task_file)
        late.finish(task_file)
    watching.finish(outer)
    assert seen + follow(watching) == printed(spool, outer.task) == b"outer\nouter again\nand again\n"
    assert printed(spool, inner.task) == b"inner\n"
    assert sorted({(each.task_file, each.data) for each in late.poll() if each.data}) == sorted(
        [(outer, b"outer\n"), (outer, b"outer again\n"), (outer, b"and again\n"), (inner, b"inner\n")]
    )


def test_copy_of_a_log_in_an_output_is_not_parsed(spool: Spool, capture: Capture) -> None:
    first, second, third = new_task_file(), new_task_file(), new_task_file()
    with capture.of(first):
        os.write(1, b"x" * 1000)
    copy = log_of(spool).read_bytes()
    with capture.of(second):
        os.write(1, copy)
    with capture.of(third):
        os.write(1, b"third")
    assert printed(spool, first.task) == b"x" * 1000
    assert printed(spool, second.task) == copy
    assert printed(spool, third.task) == b"third"


def test_output_of_a_background_process_does_not_affect_other_outputs(spool: Spool, capture: Capture) -> None:
    first, second, third = new_task_file(), new_task_file(), new_task_file()
    with capture.of(first):
        os.write(1, b"first\n")
        left = os.dup(1)
    os.write(left, b"late\n")
    with capture.of(second):
        pass
    os.write(left, b"later\n")
    with capture.of(third):
        os.write(1, b"third\n")
    os.close(left)
    assert printed(spool, first.task) == b"first\n"
    assert printed(spool, third.task) == b"third\n"
    assert b"late\n" in log_of(spool).read_bytes()
    assert b"later\n" in log_of(spool).read_bytes()


# ------------------------------------------------------------------------------------------ limits


def long_output(lines: int) -> bytes:
    return b"".join(b"line %06d\n" % number for number in range(lines))


def check_first_and_last(whole: bytes, kept: bytes) -> None:
    """Check that ``kept`` is the first part of ``whole``, a note with the missing bytes, and the last part."""
    match = re.search(rb"\n\[\.\.\. (\d{15}) bytes were cut out here \.\.\.\]\n", kept)
    assert match
    first, last = kept[: match.start()], kept[match.end() :]
    assert whole.startswith(first)
    assert whole.endswith(last)
    assert len(first) == LIMIT // 2
    assert len(last) >= LIMIT // 4
    assert len(first) + int(match[1]) + len(last) == len(whole)
    assert len(kept) <= LIMIT + NOTE_SIZE


@pytest.mark.parametrize("bursts", [1, 2, 7])
def test_first_and_last_part_of_a_long_output_are_kept(spool: Spool, capture: Capture, bursts: int) -> None:
    whole = long_output(20_000 * bursts)
    task_file, following = new_task_file(), new_task_file()
    with capture.of(task_file):
        for burst in range(bursts):
            os.write(1, whole[len(whole) * burst // bursts : len(whole) * (burst + 1) // bursts])
            capture._check()
            assert log_of(spool).stat().st_size <= HEADER_SIZE + LIMIT + NOTE_SIZE
    with capture.of(following):
        os.write(1, b"the next task's")
    check_first_and_last(whole, printed(spool, task_file.task))
    assert printed(spool, following.task) == b"the next task's"


def test_long_output_is_cut_while_the_task_runs(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.waiting import wait_until

    monkeypatch.setattr(capture_module, "_CHECK_INTERVAL", 0.01)
    capture = Capture(spool.path)
    with capture.of(new_task_file()):
        os.write(1, b"x" * (4 * LIMIT))
        wait_until(lambda: log_of(spool).stat().st_size <= HEADER_SIZE + LIMIT, "the log was cut")
    capture.close()


def test_last_files_of_a_rank_are_kept(spool: Spool, capture: Capture) -> None:
    task_files = [new_task_file() for _ in range(20)]
    for task_file in task_files:
        with capture.of(task_file):
            os.write(1, b"x" * LIMIT)
    paths = sorted(filter(None, map(parse_output_file, files.list_names(spool.layout.logs))))
    assert len(paths) == 2
    assert paths[-1].part == paths[0].part + 1 > 1
    assert sum(Path(spool.layout.log(each)).stat().st_size for each in paths) < 12 * LIMIT
    assert printed(spool, task_files[-1].task) == b"x" * LIMIT
    assert printed(spool, task_files[0].task) == b""


def test_descriptors_are_unchanged_if_the_spool_keeps_no_output(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "another", output=0)
    capture = Capture(spool.path)
    before = os.fstat(1)
    with capture.of(new_task_file()):
        assert os.path.samestat(os.fstat(1), before)
    assert files.list_names(spool.layout.logs) == []


# ------------------------------------------------------------------------------------------ faults


def test_task_runs_with_a_warning_if_its_log_cannot_be_created(
    spool: Spool, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    os.rmdir(spool.layout.logs)
    before = os.fstat(1)
    for _ in range(2):
        with capture.of(new_task_file()):
            assert os.path.samestat(os.fstat(1), before)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "The output of tasks is not captured for 60 s"
    ]


def test_symbolic_link_in_place_of_a_log_is_not_followed(spool: Spool, capture: Capture, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    log_of(spool).symlink_to(victim)
    with capture.of(new_task_file()):
        os.write(1, b"")
    assert victim.read_text() == "precious"


def open_descriptors() -> set[int]:
    """Return the open descriptors, without that of their listing: another file would get its number."""
    listed = os.listdir("/proc/self/fd")
    return {int(name) for name in listed if os.path.lexists(f"/proc/self/fd/{name}")}


def test_task_that_closes_all_descriptors_and_the_next_one_complete(spool: Spool) -> None:
    def close_all() -> list[bytes]:
        gc.collect()  # a capture that is collected later would give its numbers to this one
        others = open_descriptors()
        capture = Capture(spool.path)
        for _ in range(2):
            with capture.of(new_task_file()):
                os.write(1, b"before\n")
                for fd in open_descriptors() - others:
                    os.close(fd)
        return [log_of(spool).read_bytes()[HEADER_SIZE:]]

    # the saved descriptors are closed too: later output follows that of the first task
    assert in_fork(close_all) == [b"before\nbefore\n"]


# ----------------------------------------------------------------------------------------- reading


def follow(following: OutputFollower) -> bytes:
    return b"".join(each.data for each in following.poll())


def test_follower_reads_output_while_it_is_written(spool: Spool, capture: Capture) -> None:
    task_file, following = new_task_file(), OutputFollower(spool, Trust())
    following.add(task_file)
    assert follow(following) == b""
    with capture.of(task_file):
        for text in (b"one\n", b"two\nhalf a", b" line\n"):
            os.write(1, text)
            assert follow(following) == text
            assert follow(following) == b""
        os.write(1, b"last")
    following.finish(task_file)
    assert [(each.task_file, each.rank, each.data) for each in following.poll()] == [
        (task_file, 0, b"last"),
        (task_file, 0, b""),
    ]
    assert len(following) == 0


def test_follower_reads_all_output_of_its_tasks_and_no_other(spool: Spool, capture: Capture) -> None:
    following = OutputFollower(spool, Trust())
    task_files = [new_task_file() for _ in range(30)]
    for number, task_file in enumerate(task_files):
        with capture.of(task_file):
            if number % 3:
                os.write(1, task_file.task.encode())
        if number % 5 == 4:
            for each in task_files[number - 4 : number + 1]:
                if number % 2:
                    following.add(each)
                    following.finish(each)
            found = {each.task_file: each.data for each in following.poll() if each.data}
            asked = task_files[number - 4 : number + 1] if number % 2 else []
            assert found == {each: each.task.encode() for each in asked if task_files.index(each) % 3}


@pytest.mark.parametrize("seen", [0, 1000, LIMIT // 2 + 1000, LIMIT, 3 * LIMIT])
def test_follower_continues_after_a_cut(spool: Spool, capture: Capture, seen: int) -> None:
    whole = long_output(30_000)
    assert len(whole) > 4 * LIMIT
    task_file, following = new_task_file(), OutputFollower(spool, Trust())
    following.add(task_file)
    with capture.of(task_file):
        os.write(1, whole[:seen])
        found = follow(following)
        assert found == whole[:seen]
        capture._check()
        found += follow(following)
        os.write(1, whole[seen:])
        capture._check()
        found += follow(following)
    following.finish(task_file)
    found += follow(following)
    *parts, after = re.split(rb"\n\[\.\.\. \d{15} bytes were cut out here \.\.\.\]\n", found)
    before = b"".join(parts)
    assert whole.startswith(before)
    assert len(before) >= max(seen, LIMIT // 2)
    assert whole.endswith(after)
    assert len(before) + len(after) < len(whole)


def test_follower_continues_in_the_next_file(spool: Spool, capture: Capture) -> None:
    following = OutputFollower(spool, Trust())
    for _ in range(12):
        task_file = new_task_file()
        with capture.of(task_file):
            os.write(1, b"y" * LIMIT)
        following.add(task_file)
        following.finish(task_file)
        assert follow(following) == b"y" * LIMIT
    assert max(filter(None, map(parse_output_file, files.list_names(spool.layout.logs)))).part > 1


def test_log_of_another_account_is_not_read(spool: Spool, capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    task_file = new_task_file()
    with capture.of(task_file):
        os.write(1, b"secret")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(NotTrusted):
        outputs(spool, task_file.task, Trust())


def test_log_with_a_second_hard_link_is_not_read(spool: Spool, capture: Capture, tmp_path: Path) -> None:
    task_file = new_task_file()
    with capture.of(task_file):
        os.write(1, b"text")
    os.link(log_of(spool), tmp_path / "lent")
    with pytest.raises(BadTaskFile):
        outputs(spool, task_file.task, Trust())


def test_tasks_are_found_in_logs_by_a_part_of_their_id(spool: Spool, capture: Capture) -> None:
    task_file, other = new_task_file(), new_task_file()
    for each in (task_file, other):
        with capture.of(each):
            os.write(1, b"text")
    assert tasks_like(spool, task_file.task[-10:], Trust()) == {task_file.task}
    assert tasks_like(spool, "499-", Trust()) == {task_file.task, other.task}
    assert tasks_like(spool, new_worker_id(), Trust()) == set()


def test_lines_are_complete_and_the_last_one_comes_at_the_end() -> None:
    lines = Lines()
    assert lines.feed(b"one\ntwo") == [b"one"]
    assert lines.feed(b" and a half\n\nthree") == [b"two and a half", b""]
    assert lines.feed(b"") == [b"three"]
    assert lines.feed(b"") == []


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"plain \xc3\xa4\ttab", "plain \u00e4\ttab"),
        (b"10%\r50%\r100%\r", "100%"),
        (b"\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
        (b"\x1b[2J\x1b]0;title\x07\x08", "\\x1b[2J\\x1b]0;title\\x07\\x08"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("\u202egpj.exe".encode(), "\\u202egpj.exe"),
    ],
)
def test_only_colours_are_sent_to_a_terminal(line: bytes, text: str) -> None:
    assert for_terminal(line) == text
