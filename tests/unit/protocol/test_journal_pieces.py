"""Pieces of journals: their size is bounded, and no number of an end is lost."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from spoolpool.cli.spool import main
from spoolpool.errors import BadRequest
from spoolpool.format.journal_names import JournalName, parse_journal_name, writer_of
from spoolpool.format.names import new_task_id, new_worker_id
from spoolpool.maintenance.check import check
from spoolpool.maintenance.garbage import find_garbage, remove
from spoolpool.monitor.ends import EndCounter
from spoolpool.monitor.report.summary import summarize
from spoolpool.protocol import journal, journal_pieces
from spoolpool.protocol.journal import DROPPED, Journal, lines, submitters_journal
from spoolpool.protocol.spool import Spool
from spoolpool.system.processes import ProcessId
from tests.support.fake_worker import announce
from tests.support.waiting import wait_until

BOUND = 1 << 20
PIECE = BOUND // 16


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.create(tmp_path / "spool", durability="none", journal=BOUND)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let complete pieces go at once."""
    monkeypatch.setattr(journal_pieces, "_SETTLED", -1.0)


def write_ends(target: Journal, number: int, kind: str = "result") -> list[str]:
    """Write the ends of so many tasks, one line of about 500 bytes each."""
    written = []
    for _ in range(number):
        written.append(new_task_id())
        target.write("task", task=written[-1], kind=kind, name="f" * 300, published=True)
        target.flush()
    return written


def names(spool: Spool) -> list[JournalName]:
    return sorted(filter(None, map(parse_journal_name, os.listdir(spool.layout.journal))))


def size(spool: Spool) -> int:
    return sum(path.stat().st_size for path in Path(spool.layout.journal).iterdir())


def counts(spool: Spool) -> Counter[str]:
    counter = EndCounter()
    for line in lines(spool):
        counter.read(line.event)
    counter.compare(spool)
    return Counter(counter.counts())


@pytest.mark.parametrize("writer", ["0123456789abcdef", "0-abc-202611", "run.1", "x" * 64])
def test_names_of_pieces_are_parsed(writer: str) -> None:
    for part in (0, 1, 12345):
        name = JournalName(writer, part)
        assert parse_journal_name(name.name) == name
        assert writer_of(name.name) == writer


@pytest.mark.parametrize(
    "name", ["x~0.jsonl", "x~01.jsonl", "x~.jsonl", "x~1", "~1.jsonl", "x~1~2.jsonl", "x~1.jsonl\n"]
)
def test_other_names_are_no_pieces(name: str) -> None:
    assert parse_journal_name(name) is None


def test_full_piece_is_followed_by_another_one(spool: Spool) -> None:
    worker = new_worker_id()
    mine = Journal(spool, worker)
    written = write_ends(mine, 400)
    mine.close()
    found = names(spool)
    assert [name.part for name in found] == list(range(len(found))) and len(found) >= 3
    sizes = [Path(spool.layout.journal, name.name).stat().st_size for name in found]
    assert all(PIECE <= each < PIECE + 1000 for each in sizes[:-1])
    assert [line.event.task for line in lines(spool)] == written
    assert counts(spool) == {"done": 400}
    assert [event.task for event in journal.about(spool, written[:1])] == written[:1]
    assert check(spool) == []


def test_last_events_are_found_in_the_latest_pieces(spool: Spool) -> None:
    worker = new_worker_id()
    mine = Journal(spool, worker)
    assert journal.recent(spool, worker) == ([], 0.0)
    written: list[str] = []
    for _ in range(3 * PIECE // 400):
        written += write_ends(mine, 1)
        events, modified = journal.recent(spool, worker, 4000)
        assert events[-1].task == written[-1]
        assert len(events) >= min(len(written), 5)
        assert modified > 0
    assert names(spool)[-1].part >= 2


def test_journals_stay_within_their_bound_and_keep_all_numbers(spool: Spool, settled: None) -> None:
    mine = Journal(spool, new_worker_id())
    total = 0
    for kind, number in (("result", 2500), ("error", 1500), ("lost", 400), ("result", 1500)):
        write_ends(mine, number, kind)
        total += number
        assert size(spool) <= BOUND + 3 * PIECE
    mine.close()
    assert names(spool)[0].part > 0, "the oldest pieces are gone"
    assert counts(spool) == {"done": 4000, "raised": 1500, "lost": 400}
    assert summarize(spool).tasks == total


def test_journals_of_a_shared_spool_stay_within_their_bound(tmp_path: Path, settled: None) -> None:
    spool = Spool.create(tmp_path / "shared", mode="group", group=str(os.getegid()), durability="none", journal=BOUND)
    target = Journal(spool, submitters_journal(), "one")
    write_ends(target, 4000)
    target.close()
    assert size(spool) < BOUND + 2 * PIECE
    assert counts(spool) == {"done": 4000}


def test_pieces_that_were_written_a_moment_ago_stay(spool: Spool) -> None:
    mine = Journal(spool, new_worker_id())
    write_ends(mine, 2500)
    assert size(spool) > BOUND
    assert names(spool)[0].part == 0


def test_several_writers_share_the_pieces_of_their_account(spool: Spool) -> None:
    def write() -> None:
        mine = Journal(spool, submitters_journal(), "session")
        write_ends(mine, 300)
        mine.close()

    threads = [threading.Thread(target=write) for _ in range(3)]
    for each in threads:
        each.start()
    wait_until(lambda: len(names(spool)) > 2, "there is a third piece")
    assert all(line.event.event == "task" for line in lines(spool)), "a reader in between"
    for each in threads:
        each.join()
    found = Counter(line.event.task for line in lines(spool))
    assert len(found) == 900 and set(found.values()) == {1}


def test_writer_goes_on_with_the_latest_piece(spool: Spool, settled: None) -> None:
    first = Journal(spool, submitters_journal(), "one")
    write_ends(first, 200)
    first.close()
    for name in names(spool)[:-1]:
        os.unlink(f"{spool.layout.journal}/{name.name}")
    before = names(spool)
    second = Journal(spool, submitters_journal(), "two")
    write_ends(second, 1)
    second.close()
    assert names(spool) == before, "no number of a piece is used again"


def test_writer_passes_names_that_are_taken_in_a_shared_spool(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "shared", mode="group", group=str(os.getegid()), durability="none", journal=BOUND)
    writer = submitters_journal()
    for part in (0, 2, 999_999_999):
        os.mkfifo(f"{spool.layout.journal}/{JournalName(writer, part).name}")
    target = Journal(spool, writer, "one")
    tasks = write_ends(target, 200)
    target.close()
    assert not target.flush(), "no line is left"
    assert [line.event.task for line in lines(spool)] == tasks
    assert [name.part for name in names(spool)] == [0, 1, 2, 3, 999_999_999]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_made_up_pieces_of_another_account_complete_no_piece(tmp_path: Path, settled: None) -> None:
    spool = Spool.create(tmp_path / "shared", mode="group", group=str(os.getegid()), durability="none", journal=BOUND)
    target = Journal(spool, submitters_journal(), "one")
    write_ends(target, 1)
    made_up = Path(spool.layout.journal, target._name._replace(part=9).name)
    made_up.write_bytes(b" " * 2 * BOUND)
    os.chown(made_up, 12345, -1)
    assert journal_pieces.excess(spool, spool.server_time()) == []
    target.close()


def test_idle_process_sees_that_its_piece_is_full(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_LOOK", 0.0)
    idle, busy = (Journal(spool, submitters_journal(), name) for name in ("idle", "busy"))
    write_ends(idle, 1)
    write_ends(busy, 300)
    before = {name: Path(spool.layout.journal, name.name).stat().st_size for name in names(spool)}
    write_ends(idle, 1)
    after = {name: Path(spool.layout.journal, name.name).stat().st_size for name in names(spool)}
    assert [name for name in before if before[name] != after[name]] == names(spool)[-1:]


def test_numbers_are_right_if_a_process_dies_before_it_removes_a_piece(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Journal(spool, new_worker_id())
    write_ends(mine, 2400)
    mine.close()
    monkeypatch.setattr(journal_pieces, "_SETTLED", -1.0)
    other = Journal(spool, submitters_journal(), "spool")
    for _ in range(2):  # two processes die
        event, fields = next(journal.drop_excess(spool))
        other.write(event, **fields)
        other.flush()
    assert counts(spool) == {"done": 2400}
    for event, fields in journal.drop_excess(spool):
        other.write(event, **fields)
        other.flush()
    assert size(spool) <= BOUND + PIECE
    assert counts(spool) == {"done": 2400}


def test_numbers_in_a_dropped_piece_are_kept(spool: Spool, settled: None) -> None:
    mine = Journal(spool, new_worker_id())
    for _ in range(5):
        write_ends(mine, 2100)
    mine.close()
    assert counts(spool) == {"done": 10_500}
    dropped = [line.event for line in lines(spool) if line.event.event == DROPPED]
    assert 0 < len(dropped) < 40, "numbers of several pieces are added up"


def test_lines_for_a_dropped_piece_are_few_whatever_its_writer_made_up(spool: Spool, settled: None) -> None:
    theirs = Journal(spool, new_worker_id())
    for number in range(60):
        theirs.write("task", task=new_task_id(), kind=f"kind {number}", published=True)
        theirs.write(DROPPED, name=theirs._name.name, type="task", kind="k" * number, calls=1, ended=1.0)
        theirs.write(DROPPED, name=theirs._name.name, type=f"type {number}", kind="result", calls=1, ended=1.0)
        theirs.write(DROPPED, name=f"no journal {number}", type="task", kind="result", calls=1, ended=1.0)
    write_ends(theirs, 3)
    theirs.close()
    (piece,) = journal_pieces.list_pieces(spool)
    fields = [fields for _, fields in journal.dropped_lines(spool, piece)]
    assert len(fields) < 10
    assert {each["kind"]: each["calls"] for each in fields}["result"] == 3


def test_numbers_are_right_in_a_piece_of_any_size(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_MOST_TASKS", 10)
    target = Journal(spool, new_worker_id())
    for kind in ("result", "error") * 15:
        write_ends(target, 1, kind)
    target.close()
    found = journal.count_ends(f"{spool.layout.journal}/{names(spool)[0].name}")
    assert found == {("task", "result"): 15, ("task", "error"): 15}


def test_tasks_of_dropped_pieces_are_neither_unknown_nor_counted_twice(spool: Spool, settled: None) -> None:
    submitter, worker = Journal(spool, submitters_journal(), "session"), Journal(spool, new_worker_id())
    tasks = write_ends(worker, 300)
    for task in tasks:
        submitter.write("submitted", task=task)
        submitter.write("collected", task=task, kind="result")
    submitter.flush()
    write_ends(worker, 2500)
    worker.close()
    submitter.close()
    summary = summarize(spool)
    assert (summary.unknown, summary.ends) == (0, {"done": 2800})


def test_gc_replaces_pieces_beyond_the_bound(spool: Spool, settled: None) -> None:
    dead, alive = new_worker_id(), announce(spool, ProcessId.of(os.getpid()))
    for worker in (dead, alive):
        path = Path(spool.layout.journal, JournalName(worker).name)
        mine = Journal(spool, worker)
        write_ends(mine, 100)
        mine.close()
        line = path.read_bytes().splitlines(keepends=True)[0]
        with path.open("ab") as file:
            file.write(line * (BOUND // len(line)))
        os.utime(path, (1e9, 1e9))
    items = [each for each in find_garbage(spool) if each.path.startswith("journal/")]
    assert [each.path for each in items] == [f"journal/{dead}.jsonl"], "a live worker still writes its own"
    os.utime(Path(spool.layout.journal, f"{dead}.jsonl"))
    result = CliRunner().invoke(main, ["gc", spool.path, "--dry-run"])
    assert f"journal/{dead}.jsonl  (the journals have more than 1 MiB; their numbers are kept)" in result.output
    items = [each for each in find_garbage(spool) if each.path.startswith("journal/")]
    assert remove(spool, items) == 1
    assert counts(spool) == {"done": 200}


@pytest.mark.parametrize("number", [0, BOUND - 1])
def test_too_small_a_bound_is_refused(tmp_path: Path, number: int) -> None:
    with pytest.raises(BadRequest, match="journal"):
        Spool.create(tmp_path / "other", journal=number)


def test_bound_is_an_option_of_init(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["init", str(tmp_path / "other"), "--journal", "64"])
    assert result.exit_code == 0, result.output
    assert Spool(tmp_path / "other").config.journal == 64 << 20
