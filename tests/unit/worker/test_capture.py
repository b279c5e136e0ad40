"""What tasks print is kept, whoever prints it and however their rank ends, within bounds; silence leaves nothing."""

from __future__ import annotations

import ctypes
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
from spoolpool.format.output import HEADER_SIZE, NOTE_SIZE
from spoolpool.monitor.logs import Lines, OutputFollower, for_terminal, outputs, read, tasks_like
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.worker import capture as capturing
from spoolpool.worker.capture import Capture
from tests.support.processes import in_fork

WORKER = "0123456789abcdef"
LIMIT = 1 << 16


def new_token(claim: int = 1) -> TaskFile:
    return TaskFile(new_task_id(), claim, 1, WORKER)


def printed(spool: Spool, task: str) -> bytes:
    """All that is kept of what a task printed."""
    return b"".join(piece for output in outputs(spool, task, Trust()) for piece in read(spool, output, Trust()))


def log_of(spool: Spool, part: int = 0) -> Path:
    return Path(spool.layout.log(OutputFile(WORKER, 0, part)))


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.create(tmp_path / "spool", durability="none", output=LIMIT)


@pytest.fixture
def captured(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Capture]:
    """What a rank has; nobody but the test looks how much was printed."""
    monkeypatch.setattr(capturing._LengthWatcher, "begin", lambda self: None)
    found = Capture(spool.path)
    yield found
    found.close()


# ------------------------------------------------------------------------------------ what is kept


def test_what_python_compiled_code_and_child_processes_print_is_kept_in_its_order(
    spool: Spool, captured: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, fd in (("stdout", 1), ("stderr", 2)):  # pytest's own are no streams on the descriptors
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.FileIO(fd, "w", closefd=False)))
    first, second = new_token(), new_token()
    with captured.of(first):
        print("from Python")
        os.write(1, b"to the descriptor\n")
        ctypes.CDLL(None).puts(b"from C")
        subprocess.run(["sh", "-c", "echo from a child; echo its complaint >&2"])
        print("no end of line", end="")
    with captured.of(second):
        ctypes.CDLL(None).printf(b"in C's buffer")
        print("complaint", file=sys.stderr)
    assert printed(spool, first.task) == (
        b"from Python\nto the descriptor\nfrom C\nfrom a child\nits complaint\nno end of line"
    )
    assert sorted(printed(spool, second.task)) == sorted(b"complaint\nin C's buffer")


def test_the_descriptors_are_what_they_were_between_tasks(captured: Capture) -> None:
    before = [os.fstat(fd) for fd in (1, 2)]
    with captured.of(new_token()):
        assert not os.path.samestat(os.fstat(1), before[0])
        assert os.path.samestat(os.fstat(1), os.fstat(2))
    assert [os.path.samestat(os.fstat(fd), status) for fd, status in zip((1, 2), before, strict=True)] == [True, True]


def test_silent_tasks_leave_nothing(spool: Spool, captured: Capture) -> None:
    for _ in range(100):
        with captured.of(new_token()):
            pass
    assert log_of(spool).stat().st_size == HEADER_SIZE
    captured.close()
    assert files.list_names(spool.layout.logs) == []


def test_the_mark_of_a_silent_task_is_not_taken_for_the_next_ones(spool: Spool, captured: Capture) -> None:
    task_files = [new_token() for _ in range(4)]
    for task_file, text in zip(task_files, (b"", b"one\n", b"", b"two\n"), strict=True):
        with captured.of(task_file):
            os.write(1, text)
    assert [printed(spool, task_file.task) for task_file in task_files] == [b"", b"one\n", b"", b"two\n"]


def test_a_log_with_something_in_it_outlives_its_worker(spool: Spool, captured: Capture) -> None:
    task_file = new_token()
    with captured.of(task_file):
        os.write(1, b"last words\n")
    captured.close()
    assert printed(spool, task_file.task) == b"last words\n"


def test_only_the_owner_can_read_a_log(spool: Spool, captured: Capture) -> None:
    with captured.of(new_token()):
        assert log_of(spool).stat().st_mode & 0o777 == 0o600


def test_every_claim_of_a_task_is_kept(spool: Spool, captured: Capture) -> None:
    task_file = new_token()
    for claim in (1, 2):
        with captured.of(task_file._replace(claim=claim)):
            os.write(1, f"claim {claim}\n".encode())
    assert [output.header.task_file.claim for output in outputs(spool, task_file.task, Trust())] == [1, 2]
    assert printed(spool, task_file.task) == b"claim 1\nclaim 2\n"


def test_a_task_that_another_one_waits_for_in_its_process_has_an_output_of_its_own(
    spool: Spool, captured: Capture
) -> None:
    outer, inner, innermost = (new_token() for _ in range(3))
    watching, late = OutputFollower(spool, Trust()), OutputFollower(spool, Trust())
    watching.add(outer)
    seen = b""
    with captured.of(outer):
        os.write(1, b"outer\n")
        seen += follow(watching)
        with captured.of(inner):
            os.write(1, b"inner\n")
            with captured.of(innermost):
                seen += follow(watching)
        os.write(1, b"outer again\n")
        seen += follow(watching)
        with captured.of(innermost._replace(claim=2)):
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


def test_a_copy_of_a_log_in_a_tasks_output_is_its_output(spool: Spool, captured: Capture) -> None:
    first, second, third = new_token(), new_token(), new_token()
    with captured.of(first):
        os.write(1, b"x" * 1000)
    copy = log_of(spool).read_bytes()
    with captured.of(second):
        os.write(1, copy)
    with captured.of(third):
        os.write(1, b"third")
    assert printed(spool, first.task) == b"x" * 1000
    assert printed(spool, second.task) == copy
    assert printed(spool, third.task) == b"third"


def test_what_a_process_prints_that_a_task_left_behind_spoils_no_other_output(spool: Spool, captured: Capture) -> None:
    first, second, third = new_token(), new_token(), new_token()
    with captured.of(first):
        os.write(1, b"first\n")
        left = os.dup(1)
    os.write(left, b"late\n")
    with captured.of(second):
        pass
    os.write(left, b"later\n")
    with captured.of(third):
        os.write(1, b"third\n")
    os.close(left)
    assert printed(spool, first.task) == b"first\n"
    assert printed(spool, third.task) == b"third\n"
    assert b"late\n" in log_of(spool).read_bytes()
    assert b"later\n" in log_of(spool).read_bytes()


# ------------------------------------------------------------------------------------------ bounds


def long_output(lines: int) -> bytes:
    return b"".join(b"line %06d\n" % number for number in range(lines))


def first_and_last(whole: bytes, kept: bytes) -> None:
    """What is kept is a first part, a note of how much is missing, and a last part."""
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
def test_of_a_long_output_the_first_and_the_last_part_are_kept(spool: Spool, captured: Capture, bursts: int) -> None:
    whole = long_output(20_000 * bursts)
    task_file, following = new_token(), new_token()
    with captured.of(task_file):
        for burst in range(bursts):
            os.write(1, whole[len(whole) * burst // bursts : len(whole) * (burst + 1) // bursts])
            captured._check()
            assert log_of(spool).stat().st_size <= HEADER_SIZE + LIMIT + NOTE_SIZE
    with captured.of(following):
        os.write(1, b"the next task's")
    first_and_last(whole, printed(spool, task_file.task))
    assert printed(spool, following.task) == b"the next task's"


def test_a_long_output_is_cut_while_the_task_runs(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.waiting import wait_until

    monkeypatch.setattr(capturing, "_CHECK_INTERVAL", 0.01)
    captured = Capture(spool.path)
    with captured.of(new_token()):
        os.write(1, b"x" * (4 * LIMIT))
        wait_until(lambda: log_of(spool).stat().st_size <= HEADER_SIZE + LIMIT, "the log was cut")
    captured.close()


def test_a_rank_keeps_its_last_files(spool: Spool, captured: Capture) -> None:
    task_files = [new_token() for _ in range(20)]
    for task_file in task_files:
        with captured.of(task_file):
            os.write(1, b"x" * LIMIT)
    paths = sorted(filter(None, map(parse_output_file, files.list_names(spool.layout.logs))))
    assert len(paths) == 2
    assert paths[-1].part == paths[0].part + 1 > 1
    assert sum(Path(spool.layout.log(each)).stat().st_size for each in paths) < 12 * LIMIT
    assert printed(spool, task_files[-1].task) == b"x" * LIMIT
    assert printed(spool, task_files[0].task) == b""


def test_a_spool_that_keeps_no_output_leaves_the_descriptors_alone(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "another", output=0)
    captured = Capture(spool.path)
    before = os.fstat(1)
    with captured.of(new_token()):
        assert os.path.samestat(os.fstat(1), before)
    assert files.list_names(spool.layout.logs) == []


# ------------------------------------------------------------------------------------------ faults


def test_a_log_that_cannot_be_made_is_told_of_and_the_task_runs_all_the_same(
    spool: Spool, captured: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    os.rmdir(spool.layout.logs)
    before = os.fstat(1)
    for _ in range(2):
        with captured.of(new_token()):
            assert os.path.samestat(os.fstat(1), before)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "The output of tasks is not captured for 60 s"
    ]


def test_a_link_in_the_place_of_a_log_is_not_followed(spool: Spool, captured: Capture, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    log_of(spool).symlink_to(victim)
    with captured.of(new_token()):
        os.write(1, b"")
    assert victim.read_text() == "precious"


def test_a_task_that_closes_all_descriptors_ends_neither_itself_nor_the_next_one(spool: Spool) -> None:
    def close_all() -> list[bytes]:
        captured = Capture(spool.path)
        for _ in range(2):
            with captured.of(new_token()):
                os.write(1, b"before\n")
                os.closerange(100, 400)
        return [log_of(spool).read_bytes()[HEADER_SIZE:]]

    # the descriptors as they were are lost too: what is printed from then on comes after the first task's
    assert in_fork(close_all) == [b"before\nbefore\n"]


# ----------------------------------------------------------------------------------------- reading


def follow(following: OutputFollower) -> bytes:
    return b"".join(each.data for each in following.poll())


def test_an_output_is_read_as_it_comes(spool: Spool, captured: Capture) -> None:
    task_file, following = new_token(), OutputFollower(spool, Trust())
    following.add(task_file)
    assert follow(following) == b""
    with captured.of(task_file):
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


def test_a_follower_misses_nothing_of_many_short_tasks_and_takes_nothing_of_others(
    spool: Spool, captured: Capture
) -> None:
    following = OutputFollower(spool, Trust())
    task_files = [new_token() for _ in range(30)]
    for number, task_file in enumerate(task_files):
        with captured.of(task_file):
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
def test_a_follower_reads_on_behind_what_was_cut_out(spool: Spool, captured: Capture, seen: int) -> None:
    whole = long_output(30_000)
    assert len(whole) > 4 * LIMIT
    task_file, following = new_token(), OutputFollower(spool, Trust())
    following.add(task_file)
    with captured.of(task_file):
        os.write(1, whole[:seen])
        found = follow(following)
        assert found == whole[:seen]
        captured._check()
        found += follow(following)
        os.write(1, whole[seen:])
        captured._check()
        found += follow(following)
    following.finish(task_file)
    found += follow(following)
    *parts, after = re.split(rb"\n\[\.\.\. \d{15} bytes were cut out here \.\.\.\]\n", found)
    before = b"".join(parts)
    assert whole.startswith(before)
    assert len(before) >= max(seen, LIMIT // 2)
    assert whole.endswith(after)
    assert len(before) + len(after) < len(whole)


def test_a_follower_goes_on_in_the_next_file(spool: Spool, captured: Capture) -> None:
    following = OutputFollower(spool, Trust())
    for _ in range(12):
        task_file = new_token()
        with captured.of(task_file):
            os.write(1, b"y" * LIMIT)
        following.add(task_file)
        following.finish(task_file)
        assert follow(following) == b"y" * LIMIT
    assert max(filter(None, map(parse_output_file, files.list_names(spool.layout.logs)))).part > 1


def test_a_log_of_another_account_is_not_read(spool: Spool, captured: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    task_file = new_token()
    with captured.of(task_file):
        os.write(1, b"secret")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(NotTrusted):
        outputs(spool, task_file.task, Trust())


def test_a_log_with_a_second_name_is_not_read(spool: Spool, captured: Capture, tmp_path: Path) -> None:
    task_file = new_token()
    with captured.of(task_file):
        os.write(1, b"text")
    os.link(log_of(spool), tmp_path / "lent")
    with pytest.raises(BadTaskFile):
        outputs(spool, task_file.task, Trust())


def test_tasks_are_found_by_a_part_of_their_id_in_the_logs_alone(spool: Spool, captured: Capture) -> None:
    task_file, other = new_token(), new_token()
    for each in (task_file, other):
        with captured.of(each):
            os.write(1, b"text")
    assert tasks_like(spool, task_file.task[-10:], Trust()) == {task_file.task}
    assert tasks_like(spool, "499-", Trust()) == {task_file.task, other.task}
    assert tasks_like(spool, new_worker_id(), Trust()) == set()


def test_lines_come_whole_and_the_last_one_in_the_end() -> None:
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
def test_a_terminal_gets_nothing_that_does_more_than_colour_text(line: bytes, text: str) -> None:
    assert for_terminal(line) == text
