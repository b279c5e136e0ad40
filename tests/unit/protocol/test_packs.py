"""Packs: the calls of one task, and the log of their outcomes."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from spoolpool.calls import pickling
from spoolpool.calls.results import value_of
from spoolpool.calls.run import RankResult, failure_report
from spoolpool.errors import NotTrusted, TaskCancelled, TaskTimeout, WorkerLost
from spoolpool.format import envelope, headers
from spoolpool.format.envelope import Envelope
from spoolpool.format.headers import OutcomeHeader, TaskHeader
from spoolpool.format.names import TaskFile, new_task_id
from spoolpool.maintenance.check import check
from spoolpool.monitor.inventory import count_session_tasks
from spoolpool.monitor.scan import SpoolScanner
from spoolpool.monitor.states import UNREAD
from spoolpool.protocol import cancel, packs
from spoolpool.protocol.claim import Claim, GiveBack
from spoolpool.protocol.outcome_log import OutcomeLog, find_log
from spoolpool.protocol.outcomes import read_outcome
from spoolpool.protocol.recovery import Recovery
from spoolpool.security.trust import Trust
from spoolpool.system import file_content, files
from spoolpool.worker.publish import EmergencyPublisher, outcome_parts
from tests.support.fake_worker import Clock, Stage, announce, dead_process, unknown_process


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path / "stage", Clock.installed(monkeypatch))


class Sink:
    """Receiver of the outcomes of the calls of a pack."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}

    def take(self, number: int, header: OutcomeHeader, content: Envelope) -> None:
        self.values.setdefault(number, value_of(header, content))

    def __getitem__(self, number: int) -> Any:
        return self.values[number]


def claim(stage: Stage, header: TaskHeader, *, dead: bool = False, last: TaskFile | None = None) -> TaskFile:
    """Claim a ready pack in the name of a new worker."""
    worker = announce(stage.spool, dead_process() if dead else unknown_process())
    ready = last or header.first_file()
    mine = ready.claimed_by(worker)
    os.rename(
        f"{stage.spool.layout.bucket(header.lane, header.bucket)}/{ready.name}", stage.spool.layout.claimed_task(mine)
    )
    return mine


def append(stage: Stage, header: TaskHeader, mine: TaskFile, values: Sequence[object], first: int = 0) -> None:
    """Append outcomes to the log of a claim, beginning with the call ``first``."""
    log = OutcomeLog(stage.spool, stage.session, mine, None)
    with log:
        assert log.resume() == (first > 0)
        for number, value in enumerate(values, first):
            result = RankResult(*pickling.dumps(value), None)
            log.append(outcome_parts(header, mine, result, 1, 0.0, call=number))


def found(stage: Stage, task_file: TaskFile) -> list[Any]:
    """Return the values that the next worker of a pack would adopt."""
    log = find_log(stage.spool, stage.session, task_file, Trust().check)
    return [value_of(*each) for each in log.outcomes]


def test_outcomes_are_delivered_while_the_pack_runs_and_only_while_its_claim_stands(stage: Stage) -> None:
    inbox, sink = stage.inbox(), Sink()
    header = stage.submit_pack(inbox, calls=3)
    future = inbox.given[header.task]
    future.pack = sink
    inbox.pending.packs[header.task] = future
    mine = claim(stage, header)
    append(stage, header, mine, ["a"])
    inbox.look()
    assert sink.values == {0: "a"}
    append(stage, header, mine, ["b"], first=1)
    Claim(stage.spool, header, mine).requeue()  # its worker was taken for dead
    append(stage, header, mine, ["c"], first=2)
    inbox.look()
    assert sink.values == {0: "a"} and not future.done()
    stage.work()
    inbox.look(6)
    assert sink.values == {0: "a", 1: "b", 2: "c"} and future.done()
    assert not stage.seen().outgoing  # also the log of the first claim


def test_recoverer_charges_the_call_that_ran(stage: Stage) -> None:
    header = stage.submit_pack(calls=3)
    mine = claim(stage, header, dead=True)
    append(stage, header, mine, ["a"])
    stage.recover(rounds=1)
    [ready] = stage.seen().ready.values()
    assert (ready.claim, ready.attempt, ready.first, ready.calls) == (2, 2, 1, 3)
    claim(stage, header, dead=True, last=ready)
    stage.recover(rounds=1)
    [ready] = stage.seen().ready.values()
    assert (ready.claim, ready.attempt, ready.first) == (3, 3, 1)
    stage.work()  # its attempts are used up
    [done] = stage.seen().results.values()
    outcome, content = read_outcome(stage.spool, stage.session, done, Trust())
    values = value_of(outcome, content)
    assert outcome.kind == "result" and values[0] == "a" and values[2] == "value"
    with pytest.raises(WorkerLost) as lost:
        values[1]
    assert [each.attempt for each in lost.value.attempts] == [1, 2]
    assert stage.runs() == {f"{header.task}+2": 1}


def test_further_outcome_than_the_name_says_begins_the_first_attempt_of_the_next_call(stage: Stage) -> None:
    header = stage.submit_pack(calls=2)
    mine = claim(stage, header, dead=True)
    ready = mine.requeued()._replace(attempt=9)
    bucket = stage.spool.layout.bucket(header.lane, header.bucket)
    os.rename(stage.spool.layout.claimed_task(mine), f"{bucket}/{ready.name}")
    append(stage, header, mine, ["late"])  # of a worker that was taken for dead
    stage.work()
    [done] = stage.seen().results.values()
    values = value_of(*read_outcome(stage.spool, stage.session, done, Trust()))
    assert (values[0], values[1]) == ("late", "value")


def test_latest_log_with_an_outcome_of_its_own_is_adopted(stage: Stage) -> None:
    header = stage.submit_pack(calls=4)
    logs = [header.first_file(number).claimed_by(f"{number:016x}") for number in (1, 2, 3)]
    append(stage, header, logs[0], ["a", "b"])
    log = OutcomeLog(stage.spool, stage.session, logs[1], None)
    with log:
        log.adopt(find_log(stage.spool, stage.session, logs[1], Trust().check, before=True))
    append(stage, header, logs[1], [])  # has adopted two, and none of its own
    append(stage, header, logs[0], ["fenced"], first=2)
    assert found(stage, logs[2]) == ["a", "b", "fenced"]
    append_own = OutcomeLog(stage.spool, stage.session, logs[1], None)
    with append_own:
        append_own.adopt(find_log(stage.spool, stage.session, logs[1], Trust().check, before=True))
        result = RankResult(*pickling.dumps("d"), None)
        append_own.append(outcome_parts(header, logs[1], result, 1, 0.0, call=3))
    append(stage, header, logs[2], [])
    assert found(stage, logs[2]) == ["a", "b", "fenced", "d"]


def test_log_of_an_account_that_is_not_trusted_is_not_adopted(stage: Stage) -> None:
    header = stage.submit_pack()
    mine = header.first_file().claimed_by("0" * 16)
    append(stage, header, mine, ["a"])

    def check_owner(_fd: int, path: str) -> os.stat_result:
        raise NotTrusted(f"{path} belongs to another account.")

    assert find_log(stage.spool, stage.session, mine, check_owner).outcomes == []
    assert found(stage, mine) == ["a"]


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_torn_outcome_counts_as_not_written_and_is_replaced(stage: Stage, cut: int) -> None:
    header = stage.submit_pack(calls=3)
    mine = header.first_file().claimed_by("0" * 16)
    append(stage, header, mine, ["a", "b"])
    path = stage.spool.layout.outcome(stage.session, mine)
    os.truncate(path, os.path.getsize(path) - cut)
    assert found(stage, mine) == ["a"]
    append(stage, header, mine, ["again", "c"], first=1)
    assert found(stage, mine) == ["a", "again", "c"]


def test_outcome_that_could_not_be_written_leaves_nothing_behind(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    header = stage.submit_pack()
    mine = header.first_file().claimed_by("0" * 16)
    parts = [outcome_parts(header, mine, RankResult(*pickling.dumps(n), None), 1, 0.0, call=n) for n in (0, 1)]
    log = OutcomeLog(stage.spool, stage.session, mine, None)
    with log:
        log.append(parts[0])

        def half(fd: int, data: Sequence[bytes]) -> None:
            whole = b"".join(data)
            os.write(fd, whole[: len(whole) // 2])
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patch:
            patch.setattr(file_content, "write_all", half)
            with pytest.raises(OSError, match="full"):
                log.append(parts[1])
        log.append(parts[1])
    assert found(stage, mine) == [0, 1]


def test_torn_pack_is_set_aside(stage: Stage) -> None:
    inbox = stage.inbox()
    header = stage.submit_pack(inbox, calls=3)
    [path] = stage.seen().ready
    whole = f"{stage.spool.path}/{path}"
    os.truncate(whole, os.path.getsize(whole) - 10)
    assert any(each.kind == "unreadable" and each.path == path for each in check(stage.spool))
    stage.work()
    [left] = stage.seen().failed.values()
    assert left.task == header.task


def test_pack_that_is_too_large_is_set_aside_unread(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    header = stage.submit_pack(stage.inbox(), calls=3)
    [path] = stage.seen().ready
    os.truncate(f"{stage.spool.path}/{path}", 1 << 20)
    monkeypatch.setattr(packs, "_MOST_BYTES", (1 << 20) - 1)
    stage.work()
    [left] = stage.seen().failed.values()
    assert left.task == header.task


def test_pack_is_given_back_with_the_calls_that_have_outcomes(stage: Stage) -> None:
    header = stage.submit_pack(calls=3)
    mine = claim(stage, header)
    append(stage, header, mine, ["a", "b"])
    assert Claim(stage.spool, header, mine).give_back(GiveBack(reason="tested", ran=99.0, at_walltime=True), None)
    [ready] = stage.seen().ready.values()
    assert (ready.claim, ready.attempt, ready.first, ready.seconds) == (2, 1, 2, 0)
    stage.work()
    assert stage.runs() == {f"{header.task}+2": 1}


def test_outcomes_of_a_group_that_its_supervisor_ends_do_not_count(stage: Stage) -> None:
    header = stage.submit_pack(calls=2)
    mine = claim(stage, header, dead=True)
    append(stage, header, mine, ["a"])
    supervisor = Recovery(stage.spool)
    taken = supervisor.take_over(mine.worker, "tested")
    append(stage, header, mine, ["ended by the signal"], first=1)
    assert supervisor.release(taken) == [header.task]
    assert found(stage, mine) == ["a"]
    [ready] = stage.seen().ready.values()
    assert (ready.attempt, ready.first) == (1, 1)


def test_log_of_a_pack_that_waits_is_not_discarded(stage: Stage) -> None:
    header = stage.submit_pack(calls=2)
    mine = claim(stage, header, dead=True)
    append(stage, header, mine, ["a"])
    observer = Recovery(stage.spool)
    stage.recover(observer)
    for _ in range(3):
        stage.clock.sleep(10.0)
        observer.sweep(stage.session)
        observer.round()
    assert found(stage, mine) == ["a"]
    assert [each for each in check(stage.spool) if each.kind == "orphan outcome"] == []


def test_counts_are_those_of_calls(stage: Stage) -> None:
    inbox = stage.inbox()
    header = stage.submit_pack(inbox, calls=3)
    stage.submit(inbox)
    counts = count_session_tasks(stage.spool, SpoolScanner(stage.spool.layout.root))[stage.session]
    assert counts.states == {"waiting": 4}
    mine = claim(stage, header, dead=True)
    append(stage, header, mine, ["a"])
    stage.recover(rounds=1)
    counts = count_session_tasks(stage.spool, SpoolScanner(stage.spool.layout.root))[stage.session]
    assert counts.states == {"waiting": 3, UNREAD: 1}


def test_pack_that_is_cancelled_while_it_runs_keeps_the_outcomes_before(stage: Stage) -> None:
    inbox, sink = stage.inbox(), Sink()
    header = stage.submit_pack(inbox, calls=3)
    future = inbox.given[header.task]
    future.pack = sink
    mine = claim(stage, header)
    append(stage, header, mine, ["a"])
    cancelled = OutcomeHeader(task=header.task, kind="cancelled", worker=mine.worker)
    Claim(stage.spool, header, mine).write_outcome(envelope.pack(headers.encode(cancelled), b""))
    assert Claim(stage.spool, header, mine).has_outcome()
    Claim(stage.spool, header, mine).commit()
    inbox.look()
    assert future.cancelled() and sink.values == {0: "a"}


def test_call_that_is_cancelled_before_it_begins_is_skipped(stage: Stage) -> None:
    inbox, sink = stage.inbox(), Sink()
    ids = [new_task_id() for _ in range(3)]
    header = stage.submit_pack(inbox, ids=ids)
    inbox.given[header.task].pack = sink
    cancel.request(stage.spool, header.task, 0)
    cancel.request(stage.spool, header.task, 2)
    stage.work()
    assert stage.runs() == {f"{ids[1]}+1": 1}
    [done] = stage.seen().results.values()
    outcomes = find_log(stage.spool, stage.session, done, Trust().check).outcomes
    assert [each.header.kind for each in outcomes] == ["cancelled", "result", "cancelled"]
    assert read_outcome(stage.spool, stage.session, done, Trust())[0].kind == "result"
    assert files.list_names(stage.spool.layout.cancel) == []


def test_cancelled_first_call_leaves_its_attempt_to_no_other_call(stage: Stage) -> None:
    ids = [new_task_id() for _ in range(2)]
    header = stage.submit_pack(ids=ids)
    claim(stage, header, dead=True)
    stage.recover(rounds=1)
    [ready] = stage.seen().ready.values()
    assert (ready.attempt, ready.first) == (2, 0)
    cancel.request(stage.spool, header.task, 0)
    stage.work()
    assert stage.runs() == {f"{ids[1]}+1": 1}


def test_call_that_does_not_end_has_its_outcome_and_the_others_are_given_back(stage: Stage) -> None:
    header = stage.submit_pack(calls=3)
    mine = claim(stage, header)
    append(stage, header, mine, ["a"])
    publish = EmergencyPublisher(stage.spool)
    assert publish(header, mine, failure_report(TaskTimeout("too long"), 0), 1)
    [ready] = stage.seen().ready.values()
    assert (ready.claim, ready.attempt, ready.first) == (2, 1, 2)
    stage.work()
    assert stage.runs() == {f"{header.task}+2": 1}
    [done] = stage.seen().results.values()
    values = value_of(*read_outcome(stage.spool, stage.session, done, Trust()))
    assert (values[0], values[2]) == ("a", "value")
    with pytest.raises(TaskTimeout):
        values[1]


def test_last_call_that_does_not_end_completes_its_pack(stage: Stage) -> None:
    header = stage.submit_pack(calls=2)
    mine = claim(stage, header)
    append(stage, header, mine, ["a"])
    publish = EmergencyPublisher(stage.spool)
    assert not publish(header, mine, failure_report(TaskCancelled(), 0), 0), "that call has its outcome"
    assert publish(header, mine, failure_report(TaskCancelled(), 0), 1)
    [done] = stage.seen().results.values()
    assert done == mine
