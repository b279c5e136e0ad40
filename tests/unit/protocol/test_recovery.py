"""Recovery: the time at which a worker is taken for dead, and the end of its claims.

The test moves the observer's clock, and does by hand the file operations of the other processes.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spoolpool import settings
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
from tests.support.fake_worker import Clock, Inbox, Stage, announce, dead_process, outcome_of, unknown_process
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


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


class Gate:
    """File with a lock that is held until the gate is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def open(self) -> None:
        """Release the lock; harmless when repeated."""
        self._file.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


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


def test_heartbeat_continues_while_c_code_holds_the_gil(
    tmp_path: Path, worker: Workers, gate: Gate, observers: Clock
) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none", lease=0.3)
    worker(spool)
    inbox = submitted(spool, observers, tasks.hold_gil, tmp_path / "started", gate.path)
    wait_until((tmp_path / "started").exists, "the function runs")
    task_file = only_claim(spool)
    liveness = Liveness(spool)
    for number in range(2 * settings.BEATS_PER_LEASE):  # for two leases
        liveness.seconds_since_change(task_file.worker)
        observers.sleep(0.1)
        wait_until(lambda: liveness.seconds_since_change(task_file.worker) == 0, f"heartbeat {number + 1}")
    assert only_claim(spool) == task_file
    gate.open()
    is_over(inbox)


def test_lock_keeps_the_claim_of_a_worker_in_c_code_without_a_heartbeat(
    tmp_path: Path, worker: Workers, gate: Gate, observers: Clock
) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none", lease=60.0)
    process = worker(spool)
    inbox = submitted(spool, observers, tasks.hold_gil, tmp_path / "started", gate.path)
    wait_until((tmp_path / "started").exists, "the function runs")
    task_file = only_claim(spool)
    for pid in children_of(process.pid):
        os.kill(pid, signal.SIGKILL)
    observer, liveness = Recovery(spool), Liveness(spool)
    for _ in range(12):
        observer.round()
        still = liveness.seconds_since_change(task_file.worker)
        observers.sleep(spool.config.lease / 3)
    assert still > 2 * spool.config.lease
    assert only_claim(spool) == task_file
    gate.open()
    is_over(inbox)


def test_forked_child_that_outlives_its_worker_keeps_neither_lock_nor_heartbeat(
    tmp_path: Path, worker: Workers, observers: Clock
) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none", lease=0.6)
    process = worker(spool)
    submitted(spool, observers, tasks.fork_and_wait, tmp_path / "child", tmp_path / "end")
    child = int(wait_until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text(), "it forked"))
    [beating] = set(children_of(process.pid)) - {child}
    path = spool.layout.claimed_task(only_claim(spool))
    fd = files.open_file(path, write=True)
    try:
        assert try_lock(fd) is Lock.BUSY
        worker.may_die(process)
        process.kill()
        process.wait()
        assert runs(child)
        assert try_lock(fd) is Lock.TAKEN
        wait_until(lambda: not runs(beating), "the heartbeat process ended")
        assert runs(child)
    finally:
        files.close(fd)
        (tmp_path / "end").touch()
    assert Recovery(spool).round()
    assert not os.listdir(spool.layout.claimed)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


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
