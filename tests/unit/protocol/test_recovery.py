"""Recovery: the time at which a worker is taken for dead, and the end of its claims.

The test moves the observer's clock, and does by hand the file operations of the other processes.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spoolpool import current_task, settings
from spoolpool.errors import WorkerLost
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile, new_task_id, new_worker_id, parse_task_file
from spoolpool.protocol import recovery, workers
from spoolpool.protocol.claim import Claim
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.failed_tasks import retry_task
from spoolpool.protocol.heartbeat import Liveness
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.locks import Lock, try_lock
from spoolpool.system.processes import ProcessId
from tests.conftest import Workers
from tests.faults.disk import Disk, in_child
from tests.support import tasks
from tests.support.fake_worker import (
    Clock,
    Inbox,
    Stage,
    announce,
    dead_process,
    leave_trace,
    outcome_of,
    unknown_process,
)
from tests.support.processes import is_running, processes_of
from tests.support.waiting import wait_until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.installed(monkeypatch)


@pytest.fixture
def stage(tmp_path: Path, clock: Clock) -> Stage:
    return Stage(tmp_path / "stage", clock)


def claimed(stage: Stage, process: ProcessId, **options: Any) -> tuple[TaskHeader, TaskFile]:
    """Submit a task, and claim it for a worker without a lock."""
    header = stage.submit(**options)
    task_file = TaskFile(header.task, 1, 1).claimed_by(announce(stage.spool, process, job="4711"))
    os.rename(
        f"{stage.spool.layout.bucket(header.lane, header.bucket)}/{header.task}.000001.01",
        stage.spool.layout.claimed_task(task_file),
    )
    return header, task_file


def beat(spool: Spool, worker: str, date: float) -> None:
    os.utime(f"{spool.layout.worker(worker)}/beat", (date, date))


def watch(stage: Stage, observer: Recovery, leases: float) -> None:
    """Make four rounds a lease, for a number of leases."""
    for _ in range(round(leases * 4)):
        observer.round()
        stage.clock.sleep(stage.spool.config.lease / 4)


# -- which workers are dead


def test_provably_dead_worker_is_recovered_in_the_first_round(stage: Stage) -> None:
    header, _ = claimed(stage, dead_process())
    [line] = Recovery(stage.spool).round()
    assert header.task in line and "attempt 2 of 2" in line
    assert list(stage.seen().ready.values()) == [TaskFile(header.task, 2, 2)]


@pytest.mark.parametrize("elsewhere", [{"boot": "another"}, {"namespace": "pid:[1]"}], ids=str)
def test_missing_pid_proves_nothing_about_another_boot_or_namespace(stage: Stage, elsewhere: dict[str, str]) -> None:
    claimed(stage, msgspec.structs.replace(dead_process(), **elsewhere))
    observer = Recovery(stage.spool)
    assert observer.round() == []
    assert stage.seen().claimed
    watch(stage, observer, 1.5)
    assert stage.seen().ready


def test_silent_worker_is_dead_after_a_lease(stage: Stage) -> None:
    claimed(stage, unknown_process())
    observer = Recovery(stage.spool)
    watch(stage, observer, 0.75)
    observer.round()
    assert stage.seen().claimed
    watch(stage, observer, 1)
    assert stage.seen().ready


def test_worker_with_a_heartbeat_is_never_dead(stage: Stage) -> None:
    _, task_file = claimed(stage, unknown_process())
    observer = Recovery(stage.spool)
    for number in range(40):
        beat(stage.spool, task_file.worker, number)
        watch(stage, observer, 0.75)
    assert list(stage.seen().claimed.values()) == [task_file]
    assert workers.read_worker(stage.spool, task_file.worker) is not None


@pytest.mark.parametrize("date", [0, 4_000_000_000])
def test_date_of_a_heartbeat_proves_nothing(stage: Stage, date: float) -> None:
    _, task_file = claimed(stage, unknown_process())
    beat(stage.spool, task_file.worker, date)
    observer = Recovery(stage.spool)
    watch(stage, observer, 0.75)
    beat(stage.spool, task_file.worker, date + 1)  # a change backwards counts too
    watch(stage, observer, 0.75)
    beat(stage.spool, task_file.worker, date)
    watch(stage, observer, 0.75)
    assert stage.seen().claimed
    watch(stage, observer, 1)
    assert stage.seen().ready


def test_time_without_checks_hardly_counts(stage: Stage) -> None:
    claimed(stage, unknown_process())
    observer = Recovery(stage.spool)
    observer.round()
    stage.clock.sleep(1000 * stage.spool.config.lease)  # this host slept, or the server was away
    assert observer.round() == []
    assert stage.seen().claimed
    stage.clock.sleep(1000 * stage.spool.config.lease)
    assert observer.round() == []
    assert stage.seen().claimed


def test_unreadable_heartbeat_is_no_proof_of_death_at_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    _, task_file = claimed(stage, unknown_process())
    liveness = Liveness(stage.spool)
    assert liveness.seconds_since_change(task_file.worker) == 0

    def refuse(path: str) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files, "mtime_ns", refuse)
        stage.clock.sleep(100)
        assert liveness.seconds_since_change(task_file.worker) == 0
    beat(stage.spool, task_file.worker, 7)
    stage.clock.sleep(100)
    assert liveness.seconds_since_change(task_file.worker) == 0


def test_claim_of_a_worker_without_entry_is_recovered_after_a_lease(stage: Stage) -> None:
    _, task_file = claimed(stage, unknown_process())
    workers.remove_worker(stage.spool, task_file.worker)
    observer = Recovery(stage.spool)
    watch(stage, observer, 0.75)
    assert stage.seen().claimed
    watch(stage, observer, 1)
    assert stage.seen().ready


def test_entry_of_a_dead_worker_is_removed_that_of_a_live_one_stays(stage: Stage) -> None:
    announce(stage.spool, dead_process())
    silent = announce(stage.spool, unknown_process())
    alive = announce(stage.spool, ProcessId.of(os.getpid()))
    observer = Recovery(stage.spool)
    observer.round()
    assert set(os.listdir(stage.spool.layout.workers)) == {silent, alive}
    for number in range(8):
        beat(stage.spool, alive, number)
        watch(stage, observer, 0.25)
    assert os.listdir(stage.spool.layout.workers) == [alive]


# -- locks


@pytest.fixture
def paused(stage: Stage) -> Iterator[TaskFile]:
    """Claim of a worker that holds its lock, and has no heartbeat."""
    stage.submit()
    claim = Claimer(stage.spool, announce(stage.spool, unknown_process()), lambda _: True, Trust()).next()
    assert claim is not None
    yield claim.task_file
    claim.close()


def test_paused_worker_with_its_lock_keeps_its_claim(stage: Stage, paused: TaskFile) -> None:
    observer = Recovery(stage.spool)
    watch(stage, observer, settings.GONE_LEASES - 1)
    assert list(stage.seen().claimed.values()) == [paused]
    assert workers.read_worker(stage.spool, paused.worker) is not None


def test_lock_expires_after_many_leases_of_silence(stage: Stage, paused: TaskFile) -> None:
    observer = Recovery(stage.spool)
    watch(stage, observer, settings.GONE_LEASES + 1)
    assert list(stage.seen().ready.values()) == [paused.requeued()]


def test_requeued_task_is_claimed_within_a_lease_despite_the_lock_of_its_dead_worker(
    stage: Stage, paused: TaskFile
) -> None:
    """As on NFS 3, where the lock of a host without power stays for ever."""
    watch(stage, Recovery(stage.spool), settings.GONE_LEASES + 1)
    [task_file] = stage.seen().ready.values()
    requeued = stage.clock.now
    claimer = Claimer(stage.spool, announce(stage.spool, ProcessId.of(os.getpid())), lambda _: True, Trust())
    assert claimer.next() is None  # it may be another claimer's, for a moment
    while (claim := claimer.next()) is None:
        stage.clock.sleep(stage.spool.config.lease / 30)
    assert stage.clock.now - requeued < stage.spool.config.lease / 2
    assert claim.task_file.task == task_file.task
    claim.close()


def test_lock_of_a_provably_dead_worker_does_not_count(stage: Stage, paused: TaskFile) -> None:
    workers.remove_worker(stage.spool, paused.worker)
    announce(stage.spool, dead_process(), worker_id=paused.worker)
    assert Recovery(stage.spool).round()
    assert stage.seen().ready


def test_without_locks_the_lease_decides(stage: Stage, paused: TaskFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "try_lock", lambda fd: Lock.NONE)
    observer = Recovery(stage.spool)
    watch(stage, observer, 0.75)
    assert stage.seen().claimed
    watch(stage, observer, 1)
    assert stage.seen().ready


# -- the end of their claims


def test_complete_outcome_is_committed_and_its_task_not_run_again(stage: Stage) -> None:
    header, task_file = claimed(stage, dead_process())
    Claim(stage.spool, header, task_file).write_outcome(outcome_of(header, task_file))
    [line] = Recovery(stage.spool).round()
    assert "was committed" in line
    assert list(stage.seen().results.values()) == [task_file]
    stage.settle()
    assert not stage.runs()
    assert stage.notes("delivered") == {header.task: 1}


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_task_with_a_torn_outcome_runs_again(stage: Stage, share: float) -> None:
    header, task_file = claimed(stage, dead_process())
    whole = b"".join(bytes(part) for part in outcome_of(header, task_file))
    claim = Claim(stage.spool, header, task_file)
    claim.write_outcome([whole[: int(share * len(whole))]])
    assert not claim.has_outcome()
    stage.recover()
    assert list(stage.seen().ready.values()) == [task_file.requeued()]
    stage.settle()
    assert stage.runs() == {header.task: 1}


def test_death_costs_an_attempt_and_the_last_one_reports_the_task_as_lost(stage: Stage) -> None:
    inbox = Inbox(stage.spool, stage.clock)
    future = inbox.put(tasks.pid, max_attempts=3)
    task_file = TaskFile(future.task, 1, 1)
    for attempt in (1, 2, 3):
        worker = announce(stage.spool, dead_process(), job="4711")
        beat(stage.spool, worker, 86400 * 365)
        [path] = stage.seen().ready
        task_file = task_file.claimed_by(worker)
        assert task_file.attempt == attempt
        os.rename(f"{stage.spool.path}/{path}", stage.spool.layout.claimed_task(task_file))
        [line] = Recovery(stage.spool).round()
        assert worker in line
        task_file = task_file.requeued()
    inbox.look()
    error = future.exception(timeout=0)
    assert isinstance(error, WorkerLost)
    me = ProcessId.of(os.getpid())
    for word in (worker, me.host, f"pid {me.pid}", "job 4711", "1971-01-01 00:00:00 UTC", "attempt 3", "spool retry"):
        assert word in str(error)


def test_lost_task_is_kept_whole_and_can_be_retried(stage: Stage) -> None:
    header, task_file = claimed(stage, dead_process(), max_attempts=1)
    content = Path(stage.spool.layout.claimed_task(task_file)).read_bytes()
    stage.recover()
    inbox = stage.inbox()
    stage.collect(inbox, [header])
    [path] = stage.seen().failed
    assert Path(stage.spool.path, path).read_bytes() == content
    assert retry_task(stage.spool, os.path.basename(path)) == header.task
    stage.work()
    again = inbox.expect(header)
    inbox.look()
    assert again.result(timeout=0) == "value"
    assert not stage.seen().failed


def test_task_with_more_attempts_than_its_header_allows_is_not_run(stage: Stage) -> None:
    header = stage.submit(max_attempts=1)
    bucket = stage.spool.layout.bucket(header.lane, header.bucket)
    os.rename(f"{bucket}/{header.task}.000001.01", f"{bucket}/{header.task}.000005.03")
    stage.work()
    assert not stage.runs()
    stage.settle()
    assert stage.notes("delivered") == {header.task: 1}


def test_empty_task_file_is_set_aside_and_the_others_are_recovered(stage: Stage) -> None:
    _, torn = claimed(stage, dead_process())
    header, _ = claimed(stage, dead_process())
    os.truncate(stage.spool.layout.claimed_task(torn), 10)
    lines = Recovery(stage.spool).round()
    assert any("set aside" in line for line in lines)
    assert list(stage.seen().failed.values()) == [torn]
    assert [task_file.task for task_file in stage.seen().ready.values()] == [header.task]


def test_error_in_one_recovery_does_not_block_the_others(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed(stage, dead_process())
    claimed(stage, dead_process())
    observer = Recovery(stage.spool)
    failed: list[object] = []

    def once(claim: Claim) -> None:
        if not failed:
            failed.append(claim)
            raise OSError(5, "Input/output error")
        requeue(claim)

    requeue = Claim.requeue
    monkeypatch.setattr(Claim, "requeue", once)
    assert len(observer.round()) == 1
    assert len(stage.seen().claimed) == 1
    assert len(observer.round()) == 1
    assert not os.listdir(stage.spool.layout.workers)


def test_concurrent_recoverers_requeue_each_task_once(stage: Stage) -> None:
    headers = [claimed(stage, dead_process())[0] for _ in range(30)]
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            os._exit(in_child(Disk(), lambda: Recovery(stage.spool).round()))
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    stage.check()
    assert sorted(stage.seen().ready.values()) == sorted(TaskFile(header.task, 2, 2) for header in headers)


def test_recoverer_that_died_after_a_take_over_is_recovered(stage: Stage) -> None:
    header, task_file = claimed(stage, dead_process(), max_attempts=1)
    taken = task_file.reassigned_to(new_worker_id())
    os.rename(stage.spool.layout.claimed_task(task_file), stage.spool.layout.claimed_task(taken))
    stage.settle()
    assert stage.notes("delivered") == {header.task: 1}


def test_commit_by_a_recoverer_during_the_commit_of_its_worker_counts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's rename fails, and the recoverer renames between the two checks that follow."""
    header, task_file = claimed(stage, unknown_process())
    claim = Claim(stage.spool, header, task_file)
    claim.write_outcome(outcome_of(header, task_file))
    move, there, looks = files.move, files.exists, 0

    def fail_once(source: str, target: str, **options: Any) -> None:
        monkeypatch.setattr(files, "move", move)
        raise OSError(5, "Input/output error")

    def look(path: str) -> bool:
        nonlocal looks
        looks += 1
        found = there(path)
        if looks == 1:
            assert Claim(stage.spool, header, task_file).commit()
        return found

    monkeypatch.setattr(files, "move", fail_once)
    monkeypatch.setattr(files, "exists", look)
    assert claim.commit()
    assert list(stage.seen().results.values()) == [task_file]


def test_release_of_an_ended_worker_commits_its_complete_outcome(stage: Stage) -> None:
    header, task_file = claimed(stage, unknown_process())
    Claim(stage.spool, header, task_file).write_outcome(outcome_of(header, task_file))
    other, torn = claimed(stage, unknown_process())
    Claim(stage.spool, other, torn).write_outcome([b"torn"])
    observer = Recovery(stage.spool)
    assert observer.take_over(task_file.worker, "tested") == []
    assert list(stage.seen().results.values()) == [task_file]
    taken = observer.take_over(torn.worker, "tested")
    assert observer.release(taken) == [other.task]
    assert observer.release(taken) == [], "these claims have ended"
    assert list(stage.seen().ready.values()) == [torn.released().released().needing(1)]
    stage.settle()
    assert stage.notes("delivered") == {header.task: 1, other.task: 1}


# -- fenced workers


def test_fenced_worker_does_not_publish_and_its_outcome_is_removed(stage: Stage) -> None:
    header, task_file = claimed(stage, unknown_process())
    observer = Recovery(stage.spool)
    watch(stage, observer, 1.5)
    assert stage.seen().ready
    claim = Claim(stage.spool, header, task_file)
    claim.write_outcome(outcome_of(header, task_file))
    assert claim.commit() is False
    assert not stage.seen().results
    observer.discard(stage.session, task_file)
    watch(stage, observer, 4)
    assert not stage.seen().outgoing
    stage.settle()
    assert stage.notes("delivered") == {header.task: 1}


def lost_claim(stage: Stage) -> Claim:
    """Return a claim with its lock and a complete outcome, whose task file was taken away."""
    stage.submit()
    claim = Claimer(stage.spool, announce(stage.spool, unknown_process()), lambda _: True, Trust()).next()
    assert claim is not None
    claim.write_outcome(outcome_of(claim.header, claim.task_file))
    return claim


@pytest.mark.parametrize("place", ["waiting", "ready", "claimed", "failed", "results"])
def test_lost_outcome_is_removed_at_once_if_its_task_has_a_later_claim(stage: Stage, place: str) -> None:
    where, claim = stage.spool.layout, lost_claim(stage)
    later = claim.task_file.requeued()
    taken = later.claimed_by(new_worker_id())
    target = {
        "waiting": f"{where.waiting}/{later.name}",
        "ready": f"{where.bucket(claim.header.lane, claim.header.bucket)}/{later.name}",
        "claimed": where.claimed_task(taken),
        "failed": f"{where.failed}/{taken.name}",
        "results": where.result(stage.session, taken),
    }[place]
    os.rename(where.claimed_task(claim.task_file), target)
    with claim:
        assert not claim.commit()
        assert claim.discard_outcome()
    assert not stage.seen().outgoing


def test_lost_outcome_is_removed_at_once_if_its_task_was_collected(stage: Stage) -> None:
    claim = lost_claim(stage)
    os.unlink(stage.spool.layout.claimed_task(claim.task_file))
    with claim:
        assert not claim.commit()
        assert claim.discard_outcome()
    assert not stage.seen().outgoing


@pytest.mark.parametrize("place", ["claimed", "results", "hidden"])
def test_outcome_without_a_proof_of_its_loss_stays(stage: Stage, place: str) -> None:
    """The task file may be hidden by a cache, after a commit that answered an error."""
    where, claim = stage.spool.layout, lost_claim(stage)
    source = where.claimed_task(claim.task_file)
    target = {
        "claimed": source,
        "results": where.result(stage.session, claim.task_file),
        "hidden": f"{stage.diary}-hidden",
    }[place]
    os.rename(source, target)
    with claim:
        assert not claim.discard_outcome()
    assert stage.seen().outgoing


def leave_and_take(effects: str, root: str, diary: str) -> str:
    """Task whose claim is taken away while it runs."""
    [claimed] = Path(root, "claimed").glob(f"{current_task().id}.*")
    claimed.rename(f"{diary}-taken")
    return leave_trace(effects)


def test_lost_claim_is_noticed_before_the_outcome_of_a_long_call_is_written(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(0, stage.spool.config.lease * 2)
    monkeypatch.setattr(stage.clock, "time", lambda: float(next(ticks)), raising=False)
    written: list[TaskFile] = []
    monkeypatch.setattr(Claim, "write_outcome", lambda claim, parts: written.append(claim.task_file))
    future = stage.inbox().put(leave_and_take, str(stage.effects), stage.spool.path, str(stage.diary))
    stage.work()
    assert stage.runs() == {future.task: 1}
    assert written == []
    assert not stage.seen().outgoing


def test_outcome_without_a_purpose_is_removed_after_caches_expire(stage: Stage) -> None:
    header, task_file = claimed(stage, dead_process())
    Claim(stage.spool, header, task_file).write_outcome(outcome_of(header, task_file))
    os.unlink(stage.spool.layout.claimed_task(task_file))
    observer = Recovery(stage.spool)
    observer.discard(stage.session, task_file)
    stage.clock.sleep(0.9 * stage.spool.config.caches)
    observer.discard(stage.session, task_file)
    assert stage.seen().outgoing
    stage.clock.sleep(0.2 * stage.spool.config.caches)
    observer.discard(stage.session, task_file)
    assert not stage.seen().outgoing


@pytest.mark.parametrize("place", ["claimed", "results"])
def test_outcome_whose_task_file_is_found_by_the_second_check_stays(stage: Stage, place: str) -> None:
    header, task_file = claimed(stage, unknown_process())
    Claim(stage.spool, header, task_file).write_outcome(outcome_of(header, task_file))
    where = {
        "claimed": stage.spool.layout.claimed_task(task_file),
        "results": stage.spool.layout.result(stage.session, task_file),
    }[place]
    hidden = f"{stage.diary}-hidden"  # as a stale cache hides it
    os.rename(stage.spool.layout.claimed_task(task_file), hidden)
    observer = Recovery(stage.spool)
    observer.discard(stage.session, task_file)
    os.rename(hidden, where)
    stage.clock.sleep(100)
    observer.discard(stage.session, task_file)
    os.rename(where, hidden)
    stage.clock.sleep(100)
    observer.discard(stage.session, task_file)  # a first check again
    assert stage.seen().outgoing


def test_claimed_is_checked_before_results(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    header, task_file = claimed(stage, unknown_process())
    Claim(stage.spool, header, task_file).write_outcome(outcome_of(header, task_file))
    there, looks = files.exists, []

    def look(path: str) -> bool:
        found = there(path)
        looks.append(os.path.relpath(path, stage.spool.path).split("/")[0])
        if len(looks) == 1:  # it is committed between the two checks
            Claim(stage.spool, header, task_file).commit()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(files, "exists", look)
        Recovery(stage.spool).discard(stage.session, task_file)
    assert looks == ["claimed"]
    assert stage.seen().results and stage.seen().outgoing


def test_session_sweeps_outcomes_without_a_purpose(stage: Stage) -> None:
    header, task_file = claimed(stage, ProcessId.of(os.getpid()))  # its worker is alive and does not know of it
    Claim(stage.spool, header, task_file).write_outcome(outcome_of(header, task_file))
    os.rename(stage.spool.layout.claimed_task(task_file), f"{stage.diary}-collected")
    other = TaskFile(new_task_id(), 1, 1, task_file.worker)
    Path(stage.spool.layout.claimed_task(other)).touch()
    Claim(stage.spool, header, other).write_outcome(outcome_of(header, other))
    observer = Recovery(stage.spool)
    for _ in range(3):
        observer.sweep(stage.session)
        stage.clock.sleep(stage.spool.config.caches)
    assert list(stage.seen().outgoing.values()) == [other]


def test_worker_resumes_a_forgotten_claim_in_its_name(stage: Stage) -> None:
    header = stage.submit()
    worker = announce(stage.spool, ProcessId.of(os.getpid()))
    task_file = TaskFile(header.task, 1, 1).claimed_by(worker)
    os.rename(
        f"{stage.spool.layout.bucket(header.lane, header.bucket)}/{header.task}.000001.01",
        stage.spool.layout.claimed_task(task_file),
    )
    found = Claimer(stage.spool, worker, lambda _: True, Trust()).forgotten()
    assert found is not None and found.task_file == task_file
    found.close()


# -- real processes


@pytest.fixture
def observers(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Clock of the observers in this process; the test itself waits by the real clock."""
    return Clock.installed(monkeypatch, observers=True)


def submitted(spool: Spool, clock: Clock, function: object, *args: object) -> Inbox:
    inbox = Inbox(spool, clock)
    inbox.put(function, *map(str, args))
    return inbox


def only_claim(spool: Spool) -> TaskFile:
    [name] = wait_until(lambda: os.listdir(spool.layout.claimed), "the task is claimed")
    task_file = parse_task_file(name)
    assert task_file is not None
    return task_file


def is_over(inbox: Inbox) -> None:
    """Return whether the task is committed with its value."""
    results = f"{inbox.spool.layout.results}/{inbox.name}"
    wait_until(lambda: os.listdir(results), "the task is committed")
    inbox.look()
    [future] = inbox.given.values()
    assert future.exception(timeout=0) is None


def test_forked_child_that_outlives_its_worker_keeps_neither_lock_nor_heartbeat(
    tmp_path: Path, worker: Workers, observers: Clock
) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none", lease=0.6)
    process = worker(spool)
    submitted(spool, observers, tasks.fork_and_wait, tmp_path / "child", tmp_path / "end")
    child = int(wait_until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text(), "it forked"))
    worker_id = only_claim(spool).worker
    beating = processes_of(f"{spool.layout.worker(worker_id)}/beat")
    path = spool.layout.claimed_task(only_claim(spool))
    fd = files.open_file(path, write=True)
    try:
        assert try_lock(fd) is Lock.BUSY
        worker.may_die(process)
        process.kill()
        process.wait()
        assert is_running(child)
        assert try_lock(fd) is Lock.TAKEN
        assert beating
        wait_until(lambda: not any(map(is_running, beating)), "the heartbeat processes ended")
        assert is_running(child)
    finally:
        files.close(fd)
        (tmp_path / "end").touch()
    assert Recovery(spool).round()
    assert not os.listdir(spool.layout.claimed)


def test_fenced_worker_ends_by_itself(tmp_path: Path, worker: Workers) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none", lease=0.3)
    process = worker(spool)
    [name] = os.listdir(spool.layout.workers)
    workers.remove_worker(spool, name)
    wait_until(lambda: process.poll() is not None, "it ends")
    assert process.returncode == 0
    assert "Traceback" not in worker.said(process)


def test_task_of_a_killed_worker_on_another_host_runs_again_after_a_lease(
    tmp_path: Path, worker: Workers, observers: Clock
) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none", lease=0.3)
    lost = worker(spool)
    inbox = submitted(spool, observers, tasks.mark_and_wait, tmp_path / "started", tmp_path / "end", "value")
    wait_until((tmp_path / "started").exists, "the function runs")
    task_file = only_claim(spool)
    info = workers.read_worker(spool, task_file.worker)
    assert info is not None
    elsewhere = msgspec.structs.replace(info, process=msgspec.structs.replace(info.process, boot="another"))
    Path(spool.layout.worker(task_file.worker), "info.json").write_bytes(msgspec.json.encode(elsewhere))
    worker.may_die(lost)
    lost.kill()
    worker(spool)
    wait_until(lambda: len((tmp_path / "started").read_text().splitlines()) == 2, "it runs elsewhere")
    assert only_claim(spool).attempt == 2
    (tmp_path / "end").touch()
    is_over(inbox)
