"""Ranks end with their group: rank 0, launcher and owner are killed while the ranks wait or run a call."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spoolpool import Executor, settings
from spoolpool.calls.interruption import ABANDON
from spoolpool.errors import WorkerLost
from spoolpool.format.names import new_worker_id, parse_task_file
from spoolpool.protocol import lost_attempts, workers
from spoolpool.protocol.spool import Spool
from spoolpool.system.locks import Lock, try_lock
from spoolpool.system.processes import ProcessId
from spoolpool.system.stop_request import FORWARDED, HURRY, STOP_SIGNALS
from spoolpool.worker import rank_guard
from spoolpool.worker.rank_guard import HeartbeatObserver, Membership, OwnerObserver
from tests.conftest import Workers
from tests.support import mpi_tasks, task_files, tasks
from tests.support.long_call import KINDS, LongCall
from tests.support.processes import is_running, processes_of
from tests.support.waiting import LIMIT, wait_until

LEASE = 3.0


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.create(tmp_path / "spool", durability="none", lease=LEASE, caches=1)


def parent_of(pid: int) -> int:
    """Return the pid of the parent of a process; 0 if that process has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def ranks_of(spool: Spool) -> list[int]:
    """Return the processes of the ranks: each is the child of a guard, and starts as a copy of it.

    A rank has such copies of its own for a moment, which become its heartbeat processes.
    """
    commands = {pid: command_of(pid) for pid in processes_of(spool.path)}
    commands = {pid: command for pid, command in commands.items() if b"heartbeat_program" not in command}
    parents = {pid: parent_of(pid) for pid in commands}
    copies = {pid for pid, command in commands.items() if commands.get(parents[pid]) == command}
    return [pid for pid in copies if parents[pid] not in copies]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Group:
    """Group of two ranks that mpiexec started, for a supervisor or by hand."""

    def __init__(self, spool: Spool, worker: Workers, *options: object, supervised: bool) -> None:
        options = ("--grace", 0.5, *options)
        if supervised:
            self.starter = worker(spool, "--launcher", "mpiexec", "--ranks", 2, *options)
        else:
            self.starter = worker(spool, *options, mpi_ranks=2)
        worker.may_die(self.starter)
        (info,) = workers.read_workers(spool)
        self.first = info.process.pid
        self.guard = parent_of(self.first)
        self.mpiexec = parent_of(parent_of(self.guard))
        self.ranks = wait_until(lambda: found if len(found := ranks_of(spool)) == 2 else [], "there are two ranks")
        assert b"mpiexec" in command_of(self.mpiexec)

    def has_ended(self) -> bool:
        return not any(map(is_running, self.ranks))


VICTIMS: dict[str, Callable[[Group], int]] = {
    "rank 0": lambda group: group.first,
    "guard of rank 0": lambda group: group.guard,
    "mpiexec": lambda group: group.mpiexec,
    "supervisor": lambda group: group.starter.pid,
}


@pytest.mark.mpi
@pytest.mark.parametrize("kind", ["idle", *KINDS])
@pytest.mark.parametrize("victim", [*VICTIMS, "mpiexec by hand", "rank 0 by hand"])
def test_no_rank_outlives_its_group(spool: Spool, worker: Workers, tmp_path: Path, kind: Any, victim: str) -> None:
    group = Group(spool, worker, supervised="hand" not in victim)
    with Executor(spool=spool.path) as executor:
        if kind != "idle":
            call = LongCall(tmp_path, executor, 2, kind)
            call.await_start()
        os.kill(VICTIMS[victim.removesuffix(" by hand")](group), signal.SIGKILL)
        wait_until(group.has_ended, "all ranks of the group have ended")
        if kind != "idle":
            call.finish()
            if group.starter.poll() is not None:  # else the supervisor has started another group
                worker(spool, mpi_ranks=2)
            assert call.future.exception(LIMIT) is None or isinstance(call.future.exception(), WorkerLost)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
def test_signals_in_the_shutdown_of_a_rank_are_no_error(
    spool: Spool, worker: Workers, tmp_path: Path, ranks: int
) -> None:
    process = worker(spool, "--max-tasks", 1, mpi_ranks=ranks)
    with Executor(spool=spool.path) as executor:
        numbers = (ABANDON, FORWARDED, HURRY, *STOP_SIGNALS)
        executor.submit(
            tasks.send_signals_at_shutdown, numbers, tmp_path / "sent", resource_dict={"cores": ranks}
        ).result(LIMIT)
    assert process.wait(LIMIT) == 0
    assert len(list(tmp_path.glob("sent-*"))) == ranks


@pytest.mark.mpi
def test_interruption_after_the_end_of_rank_0_is_no_outcome(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    group = Group(spool, worker, supervised=False)
    (other,) = {*group.ranks} - {group.first}
    with Executor(spool=spool.path) as executor:
        call = LongCall(tmp_path, executor, 2, "waits")
        call.await_start()
        os.kill(other, ABANDON)
        with pytest.raises(TimeoutError):  # several times the grace period after which a failed rank publishes
            call.future.result(3.0)
        os.kill(group.first, signal.SIGKILL)
        wait_until(group.has_ended, "all ranks of the group have ended")
        worker(spool, mpi_ranks=2)
        assert isinstance(call.future.exception(LIMIT), WorkerLost)


@pytest.mark.mpi
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_end_after_rank_0_has_ended_without_an_error(
    spool: Spool, worker: Workers, tmp_path: Path, kind: Any
) -> None:
    """A launcher takes exit status 0 for the end of a program, and may leave the other ranks running."""
    group = Group(spool, worker, supervised=False)
    with Executor(spool=spool.path) as executor:
        resources = {"cores": 2, "max_attempts": 1}
        call = executor.submit(mpi_tasks.rank_0_exits, hold_gil=kind != "waits", resource_dict=resources)
        wait_until(group.has_ended, "all ranks of the group have ended")
        assert isinstance(call.exception(LIMIT), WorkerLost)


@pytest.mark.mpi
@pytest.mark.parametrize("kind", KINDS)
def test_group_ends_with_its_time_and_releases_its_task(
    spool: Spool, worker: Workers, tmp_path: Path, kind: Any
) -> None:
    seconds = 10.0
    with Executor(spool=spool.path) as executor:
        call = LongCall(tmp_path, executor, 2, kind, attempts=2)
        while True:  # under load the time may be up before the group begins the call
            try:
                group = Group(spool, worker, "--max-time", seconds, "--drain", 0.5, supervised=False)
                call.await_start(seconds)
                break
            except (AssertionError, ValueError):
                seconds *= 2
                assert seconds <= LIMIT
                wait_until(lambda: not ranks_of(spool), "all ranks of the group have ended")
        wait_until(group.has_ended, "all ranks of the group have ended")
        (found,) = map(parse_task_file, (path.name for path in Path(spool.layout.ready).glob("*/*/*")))
        assert found is not None
        assert found.attempt == 1, "no attempt was lost"
        call.finish()
        worker(spool, mpi_ranks=2)
        assert call.future.result(LIMIT) == [None, None]


@pytest.mark.mpi
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL], ids=lambda number: number.name)
def test_crash_after_a_request_to_stop_costs_an_attempt(
    spool: Spool, worker: Workers, tmp_path: Path, number: signal.Signals
) -> None:
    group = Group(spool, worker, supervised=False)
    started, requested = tmp_path / "started", tmp_path / "requested"
    with Executor(spool=spool.path) as executor:
        resources = {"cores": 2, "max_attempts": 1}
        function = mpi_tasks.mark_and_wait_for_stop
        call = executor.submit(function, started, requested, tmp_path / "end", resource_dict=resources)
        wait_until(started.exists, "the call runs")
        os.kill(group.guard, signal.SIGTERM)
        wait_until(requested.exists, "the request has reached rank 0")
        os.kill(group.first, number)
        wait_until(group.has_ended, "all ranks of the group have ended")
        (tmp_path / "end").touch()
        worker(spool, mpi_ranks=2)  # it recovers the task, or would run it
        assert isinstance(call.exception(LIMIT), WorkerLost)


# -- rank 0 on another host


@pytest.fixture
def observer(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Observer:
    return Observer(spool, monkeypatch)


class Observer:
    """Observer of a heartbeat in a spool, with a clock that the test moves."""

    def __init__(self, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(rank_guard.time, "monotonic", lambda: self.now)
        self.worker = new_worker_id()
        self.entry = Path(spool.layout.worker(self.worker))
        self.entry.mkdir()
        self.beat()
        member = Membership(
            rank=1, worker=self.worker, lease=LEASE, entry=str(self.entry), claimed=spool.layout.claimed
        )
        self.observer = HeartbeatObserver(member)

    def beat(self) -> None:
        (self.entry / "beat").touch()
        stamp = 1_000_000_000 * (1 + int(10 * self.now))
        os.utime(self.entry / "beat", ns=(stamp, stamp))

    def watch(self, leases: float, *, beats: bool = False) -> bool:
        """Look several times a lease; return whether rank 0 is taken for dead."""
        end = self.now + leases * LEASE
        while self.now < end:
            self.now += LEASE / 6
            if beats:
                self.beat()
            self.observer.look()
        return self.observer.is_gone


def test_silent_rank_0_is_dead_after_a_lease(observer: Observer) -> None:
    assert not observer.watch(3, beats=True)
    assert not observer.watch(0.8)
    assert observer.watch(0.4)


def test_rank_0_whose_entry_was_removed_is_dead_after_a_lease(observer: Observer) -> None:
    observer.watch(1, beats=True)
    shutil.rmtree(observer.entry)
    assert not observer.watch(0.8)
    assert observer.watch(0.6)


def test_rank_0_of_a_spool_that_is_away_is_not_taken_for_dead(observer: Observer, spool: Spool) -> None:
    observer.watch(1, beats=True)
    away = Path(spool.path).rename(f"{spool.path}-away")
    assert not observer.watch(20)
    away.rename(spool.path)
    assert not observer.watch(0.8)
    assert observer.watch(0.4)


def test_rank_0_of_a_spool_that_cannot_be_read_is_not_taken_for_dead(
    observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> int:
        raise OSError(errno.EIO, "the server is away", path)

    observer.watch(1, beats=True)
    with monkeypatch.context() as patch:
        patch.setattr(rank_guard.files, "mtime_ns", fail)
        assert not observer.watch(20)
    assert not observer.watch(0.8)


def test_silent_rank_0_that_holds_the_lock_of_its_claim_is_dead_after_ten_leases(
    observer: Observer, spool: Spool
) -> None:
    task_files.put(spool, "running", worker=observer.worker)
    (claim,) = Path(spool.layout.claimed).iterdir()
    with claim.open("r+b") as file:
        assert try_lock(file.fileno()) is Lock.TAKEN
        assert not observer.watch(settings.GONE_LEASES - 0.5)
        assert observer.watch(1)


# -- the owner, and the command that started the group


class Owner:
    """Observer of the owner of a group, with a clock that the test moves."""

    def __init__(self, spool: Spool, monkeypatch: pytest.MonkeyPatch, *, is_near: bool) -> None:
        self.now = 0.0
        monkeypatch.setattr(rank_guard.time, "monotonic", lambda: self.now)
        self.entry, self.owner_entry = (Path(spool.layout.worker(new_worker_id())) for _ in range(2))
        for each in (self.entry, self.owner_entry):
            each.mkdir()
            (each / "beat").touch()
        member = Membership(
            rank=0,
            worker=self.entry.name,
            lease=LEASE,
            entry=str(self.entry),
            claimed=spool.layout.claimed,
            owner_entry=str(self.owner_entry),
        )
        process = ProcessId.of(os.getpid())
        if not is_near:
            process = msgspec.structs.replace(process, boot="another")
        self.observer = OwnerObserver(member, process)

    def watch(self, leases: float) -> str:
        """Look several times a lease; return the reason to end the group."""
        end = self.now + leases * LEASE
        while self.now < end:
            self.now += LEASE / 6
            self.observer.look()
        return self.observer.found


def test_silent_owner_on_another_host_has_ended_after_a_lease(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner(spool, monkeypatch, is_near=False)
    assert owner.watch(0.8) == ""
    os.utime(owner.owner_entry / "beat", ns=(1, 1))
    assert owner.watch(0.8) == ""
    assert "supervisor or executor" in owner.watch(0.4)


def test_owner_without_an_entry_has_ended_after_a_lease(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner(spool, monkeypatch, is_near=False)
    shutil.rmtree(owner.owner_entry)
    assert owner.watch(0.8) == ""
    assert "supervisor or executor" in owner.watch(0.6)


def test_owner_on_this_host_needs_no_heartbeat(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Owner(spool, monkeypatch, is_near=True).watch(20) == ""


def test_recorded_end_of_the_launcher_ends_the_group(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner(spool, monkeypatch, is_near=True)
    lost_attempts.record_exit(spool, owner.entry.name, 1, rank=1)  # of a rank: the launcher ends the others
    assert owner.watch(1) == ""
    lost_attempts.record_exit(spool, owner.entry.name, -9, launcher="srun")
    assert "command that started" in owner.watch(0.1)


def test_end_of_the_launcher_that_another_account_recorded_is_ignored(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Owner(spool, monkeypatch, is_near=True)
    lost_attempts.record_exit(spool, owner.entry.name, -9, launcher="srun")
    monkeypatch.setattr(rank_guard.files, "owner", lambda path: 1 if path.endswith("/exit") else 0)
    assert owner.watch(20) == ""


def test_owner_is_alive_while_the_spool_is_away(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner(spool, monkeypatch, is_near=False)
    owner.watch(0.3)
    away = Path(spool.path).rename(f"{spool.path}-away")
    assert owner.watch(20) == ""
    away.rename(spool.path)
    assert owner.watch(0.6) == ""
