"""Heartbeats of real workers whose heartbeat processes, or whose whole group, are killed or stopped."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from spoolpool import settings
from spoolpool.format.names import Lane, TaskFile, parse_task_file
from spoolpool.launch.mpiexec import find_mpiexec
from spoolpool.maintenance.check import check
from spoolpool.monitor.status import StatusCollector
from spoolpool.protocol import recovery, sessions, worker_registration, workers
from spoolpool.protocol.heartbeat import Liveness
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.worker_registration import Registration
from spoolpool.system.locks import Lock
from spoolpool.system.processes import ProcessId
from spoolpool.system.stop_request import FORWARDED, STOP_SIGNALS
from tests.conftest import Workers
from tests.support import mpi_tasks, tasks
from tests.support.fake_worker import Clock, Inbox, announce, info_of, unknown_process
from tests.support.processes import is_running, processes_of
from tests.support.waiting import LIMIT, wait_until

LEASE = 1.2


class Gate:
    """File with a lock that is held until the gate is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def open(self) -> None:
        """Release the lock; harmless when repeated."""
        self._file.close()


class Beating:
    """Heartbeat file, and the processes that touch it."""

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        self._command = f"heartbeat_program.py\0{path}"

    def processes(self) -> tuple[int, int] | None:
        """Return the beater and its watcher; None while they are not these two."""
        pids = processes_of(self._command)
        parents = {pid: _status(pid)[1] for pid in pids}
        pairs = [(parent, pid) for pid, parent in parents.items() if parent in parents]
        return pairs[0] if len(pids) == 2 and pairs else None

    def pair(self) -> tuple[int, int]:
        """Wait for the beater and its watcher."""
        return wait_until(self.processes, "two processes send the heartbeat")

    def all(self) -> list[int]:
        """Return the pids of all heartbeat processes that have not ended."""
        return [pid for pid in processes_of(self._command) if is_running(pid)]

    def continues(self, times: int = 3) -> None:
        """Wait until the file was touched so many times from now on."""
        for number in range(times):
            before = os.stat(self._path).st_mtime_ns
            wait_until(lambda before=before: os.stat(self._path).st_mtime_ns != before, f"heartbeat {number + 1}")


def _status(pid: int) -> tuple[str, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[1])


def is_stopped(pid: int) -> bool:
    return _status(pid)[0] == "T"


def send(number: signal.Signals, *pids: int) -> None:
    """Send a signal; return when it has had its effect."""
    for pid in pids:
        os.kill(pid, number)
    has_effect = is_stopped if number is signal.SIGSTOP else lambda pid: not is_running(pid)
    wait_until(lambda: all(has_effect(pid) or not is_running(pid) for pid in pids), f"{number.name} has its effect")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.create(tmp_path / "spool", durability="none", lease=LEASE)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@pytest.fixture
def observers(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Clock of the observers in this process; the test itself waits by the real clock."""
    return Clock.installed(monkeypatch, observers=True)


def submitted(spool: Spool, clock: Clock, function: object, *args: object, **options: object) -> Inbox:
    inbox = Inbox(spool, clock)
    inbox.put(function, *map(str, args), **options)
    return inbox


def claim_of(spool: Spool) -> TaskFile:
    [name] = wait_until(lambda: os.listdir(spool.layout.claimed), "the task is claimed")
    task_file = parse_task_file(name)
    assert task_file is not None
    return task_file


def beating(spool: Spool) -> Beating:
    return Beating(f"{spool.layout.worker(claim_of(spool).worker)}/beat")


def result_of(inbox: Inbox) -> object:
    """Wait for the commit of the only task; return its value."""
    wait_until(lambda: os.listdir(f"{inbox.spool.layout.results}/{inbox.name}"), "the task is committed")
    inbox.look()
    [future] = inbox.given.values()
    return future.result(timeout=0)


def observe(spool: Spool, clock: Clock, leases: float) -> list[str]:
    """Make four rounds a lease, for a number of leases; return the recovered tasks."""
    observer = Recovery(spool)
    done = []
    for _ in range(round(leases * 4)):
        done += observer.round()
        clock.sleep(spool.config.lease / 4)
    return done


def moved_elsewhere(spool: Spool, worker: str) -> None:
    """Let a worker appear to be on another host, where nothing can be proven about it."""
    info = workers.read_worker(spool, worker)
    assert info is not None
    elsewhere = msgspec.structs.replace(info, process=msgspec.structs.replace(info.process, boot="another"))
    Path(spool.layout.worker(worker), "info.json").write_bytes(msgspec.json.encode(elsewhere))


def test_heartbeat_continues_while_c_code_holds_the_gil(
    tmp_path: Path, spool: Spool, worker: Workers, gate: Gate, observers: Clock
) -> None:
    worker(spool)
    inbox = submitted(spool, observers, tasks.hold_gil, tmp_path / "started", gate.path)
    wait_until((tmp_path / "started").exists, "the function runs")
    task_file = claim_of(spool)
    liveness = Liveness(spool)
    for number in range(2 * settings.BEATS_PER_LEASE):  # for two leases
        liveness.seconds_since_change(task_file.worker)
        observers.sleep(0.1)
        wait_until(lambda: liveness.seconds_since_change(task_file.worker) == 0, f"heartbeat {number + 1}")
    assert claim_of(spool) == task_file
    gate.open()
    assert result_of(inbox) is None


def test_worker_sends_six_heartbeats_a_lease(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, float]] = []
    monkeypatch.setattr(worker_registration, "Heartbeat", lambda *arguments: started.append(arguments))
    info = info_of(unknown_process())
    Registration(spool, info)
    [(path, interval)] = started
    assert path == f"{spool.layout.worker(info.worker)}/beat"
    assert interval == pytest.approx(spool.config.lease / settings.BEATS_PER_LEASE)


# -- one of the two processes


@pytest.mark.parametrize("victim", [0, 1], ids=["beater", "watcher"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_killed_or_stopped_heartbeat_process_is_replaced_while_c_code_holds_the_gil(
    tmp_path: Path, spool: Spool, worker: Workers, gate: Gate, observers: Clock, number: signal.Signals, victim: int
) -> None:
    worker(spool)
    inbox = submitted(spool, observers, tasks.hold_gil, tmp_path / "started", gate.path)
    wait_until((tmp_path / "started").exists, "the function runs")
    beats = beating(spool)
    hit = beats.pair()[victim]
    os.kill(hit, number)
    wait_until(lambda: hit not in (beats.processes() or (hit,)), "the process is replaced")
    beats.continues()
    assert not is_running(hit)
    gate.open()
    assert result_of(inbox) is None


@pytest.mark.mpi
@pytest.mark.skipif(find_mpiexec() is None, reason="there is no mpiexec")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_heartbeat_of_an_mpi_group_is_replaced_while_c_code_holds_the_gil_on_each_rank(
    tmp_path: Path, spool: Spool, worker: Workers, gate: Gate, observers: Clock, number: signal.Signals
) -> None:
    worker(spool, mpi_ranks=2)
    inbox = submitted(
        spool, observers, mpi_tasks.hold_gil, tmp_path, gate.path, lane=Lane("default", 2, 1, 0, settings.PYTHON).name
    )
    wait_until(lambda: len(list(tmp_path.glob("started-*"))) == 2, "the function runs on both ranks")
    beats = beating(spool)
    hit, _ = beats.pair()
    os.kill(hit, number)
    wait_until(lambda: hit not in (beats.processes() or (hit,)), "the process is replaced")
    beats.continues()
    gate.open()
    assert result_of(inbox) == [None, None]


# -- both processes


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_worker_sends_its_heartbeat_itself_without_heartbeat_processes(
    tmp_path: Path, spool: Spool, worker: Workers, observers: Clock, number: signal.Signals
) -> None:
    worker(spool)
    inbox = submitted(spool, observers, tasks.mark_and_wait, tmp_path / "started", tmp_path / "end", "value")
    beats = beating(spool)
    both = beats.pair()
    send(number, *both)
    beats.continues()
    assert observe(spool, observers, 3) == []
    (tmp_path / "end").touch()
    assert result_of(inbox) == "value"
    wait_until(
        lambda: not any(map(is_stopped, beats.processes() or both)), "two processes send the heartbeat of the worker"
    )


@pytest.mark.parametrize("locks", [Lock.TAKEN, Lock.NONE], ids=lambda lock: f"lock {lock.value}")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_live_worker_is_never_taken_on_its_host_whatever_its_heartbeat(
    tmp_path: Path,
    spool: Spool,
    worker: Workers,
    gate: Gate,
    observers: Clock,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    locks: Lock,
) -> None:
    """Neither after ten leases nor without a lock."""
    monkeypatch.setattr(recovery, "try_lock", lambda fd: locks)
    process = worker(spool)
    inbox = submitted(spool, observers, tasks.hold_gil, tmp_path / "started", gate.path)
    wait_until((tmp_path / "started").exists, "the function runs")
    task_file = claim_of(spool)
    beats = beating(spool)
    send(number, *beats.pair())
    assert observe(spool, observers, 12) == []
    assert claim_of(spool) == task_file
    gate.open()
    assert result_of(inbox) is None
    process.terminate()
    assert process.wait(LIMIT) == 0
    wait_until(lambda: not beats.all(), "the heartbeat ends with its worker, stopped or not")


def test_lock_keeps_the_claim_of_a_worker_on_another_host_without_a_heartbeat(
    tmp_path: Path, spool: Spool, worker: Workers, gate: Gate, observers: Clock
) -> None:
    worker(spool)
    inbox = submitted(spool, observers, tasks.hold_gil, tmp_path / "started", gate.path)
    wait_until((tmp_path / "started").exists, "the function runs")
    task_file = claim_of(spool)
    send(signal.SIGKILL, *beating(spool).pair())
    moved_elsewhere(spool, task_file.worker)
    assert observe(spool, observers, settings.GONE_LEASES - 1) == []
    assert claim_of(spool) == task_file
    gate.open()
    assert result_of(inbox) is None


# -- worker and heartbeat


@pytest.mark.parametrize("number", [*STOP_SIGNALS, FORWARDED])
def test_signal_that_ends_a_group_after_its_task_does_not_end_its_heartbeat(
    tmp_path: Path, spool: Spool, worker: Workers, observers: Clock, number: int
) -> None:
    process = worker(spool)
    inbox = submitted(spool, observers, tasks.mark_and_wait, tmp_path / "started", tmp_path / "end", "value")
    beats = beating(spool)
    both = beats.pair()
    os.killpg(process.pid, number)
    beats.continues()
    assert beats.pair() == both
    (tmp_path / "end").touch()
    assert result_of(inbox) == "value"
    assert process.wait(LIMIT) == 0
    wait_until(lambda: not beats.all(), "the heartbeat ends with its worker")


@pytest.mark.parametrize(
    "stopped", [slice(0), slice(1), slice(1, 2), slice(2)], ids=["none", "beater", "watcher", "both"]
)
def test_killed_worker_is_dead_at_once_on_its_host_whatever_its_heartbeat(
    tmp_path: Path, spool: Spool, worker: Workers, observers: Clock, stopped: slice
) -> None:
    process = worker(spool)
    submitted(spool, observers, tasks.mark_and_wait, tmp_path / "started", tmp_path / "end")
    beats = beating(spool)
    hit = beats.pair()[stopped]
    for pid in hit:
        os.kill(pid, signal.SIGSTOP)
    worker.may_die(process)
    process.kill()
    process.wait()
    assert len(Recovery(spool).round()) == 1
    if len(hit) == 2:
        for pid in filter(is_running, hit):
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not beats.all(), "the heartbeat ends with its worker")
    assert not os.listdir(spool.layout.claimed)


def test_stopped_group_is_taken_on_another_host_and_its_late_outcome_is_dropped(
    tmp_path: Path, spool: Spool, worker: Workers, observers: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = worker(spool)
    inbox = submitted(spool, observers, tasks.mark_and_return_pid, tmp_path / "started", tmp_path / "end")
    wait_until((tmp_path / "started").exists, "the function runs")
    task_file = claim_of(spool)
    beats = beating(spool)
    os.killpg(stopped.pid, signal.SIGSTOP)
    wait_until(lambda: all(map(is_stopped, [stopped.pid, *beats.pair()])), "the group is stopped")
    assert observe(spool, observers, 12) == []
    moved_elsewhere(spool, task_file.worker)
    monkeypatch.setattr(recovery, "try_lock", lambda fd: Lock.NONE)
    assert observe(spool, observers, 0.75) == []
    assert len(observe(spool, observers, 1.5)) == 1
    other = worker(spool)
    wait_until(lambda: len((tmp_path / "started").read_text().split()) == 2, "it runs elsewhere")
    (tmp_path / "end").touch()
    assert result_of(inbox) == other.pid
    wait_until(lambda: not os.listdir(f"{spool.layout.results}/{inbox.name}"), "it is collected")
    os.killpg(stopped.pid, signal.SIGCONT)
    wait_until(lambda: "was taken from this worker" in worker.said(stopped), "the late outcome is dropped")
    wait_until(lambda: stopped.poll() is not None, "a worker without its entry ends")
    assert os.listdir(f"{spool.layout.outgoing}/{inbox.name}") == []
    assert os.listdir(f"{spool.layout.results}/{inbox.name}") == []


def test_function_has_no_child_and_gets_no_signal_when_a_heartbeat_process_ends(
    tmp_path: Path, spool: Spool, worker: Workers, observers: Clock
) -> None:
    worker(spool)
    inbox = submitted(spool, observers, tasks.watch_children, tmp_path / "started", tmp_path / "end")
    wait_until((tmp_path / "started").exists, "the function runs")
    beats = beating(spool)
    first = beats.pair()
    send(signal.SIGKILL, first[0])
    wait_until(lambda: first[0] not in (beats.processes() or first), "the process is replaced")
    send(signal.SIGKILL, *beats.pair())
    beats.continues()
    (tmp_path / "end").touch()
    assert result_of(inbox) == ["no child"]


# -- heartbeat of a session

SUBMITTER = """
import sys
from spoolpool.protocol.heartbeat import Heartbeat
command = ["/bin/sh", "-c", 'grep SigIgn: /proc/$$/status >"$0"', sys.argv[2]]
heartbeat = Heartbeat(sys.argv[1], 0.05, command)
print("started", flush=True)
if sys.stdin.readline() == "close\\n":
    heartbeat.close()
    heartbeat.close()
"""


@pytest.fixture
def submitter(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Process with a heartbeat, which writes the signals that it ignores to the file ``then`` after its death."""
    (tmp_path / "session").touch()
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", SUBMITTER, tmp_path / "session", tmp_path / "then"], stdin=pipe, stdout=pipe, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("victim", [None, 0, 1], ids=["no process", "beater", "watcher"])
def test_command_runs_after_the_death_of_a_submitter(
    tmp_path: Path, submitter: subprocess.Popen[str], victim: int | None
) -> None:
    beats = Beating(tmp_path / "session")
    if victim is not None:
        hit = beats.pair()[victim]
        send(signal.SIGKILL, hit)
        wait_until(lambda: hit not in (beats.processes() or (hit,)), "the process is replaced")
    assert not (tmp_path / "then").exists()
    submitter.kill()
    submitter.wait()
    text = wait_until(lambda: (tmp_path / "then").exists() and (tmp_path / "then").read_text(), "the command runs")
    ignored = int(text.split()[1], 16)
    assert not any(ignored >> number - 1 & 1 for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    wait_until(lambda: not beats.all(), "the heartbeat ends")


def test_command_does_not_run_after_an_orderly_end(tmp_path: Path, submitter: subprocess.Popen[str]) -> None:
    beats = Beating(tmp_path / "session")
    beats.pair()
    submitter.communicate("close\n")
    wait_until(lambda: not beats.all(), "the heartbeat ends")
    assert not (tmp_path / "then").exists()


def test_heartbeat_ends_without_the_command_once_its_file_is_removed(
    tmp_path: Path, submitter: subprocess.Popen[str]
) -> None:
    beats = Beating(tmp_path / "session")
    beats.pair()
    (tmp_path / "session").unlink()
    wait_until(lambda: not beats.all(), "the heartbeat ends")
    assert not (tmp_path / "then").exists()


# -- observers


def test_session_of_a_live_process_is_alive_on_its_host_without_a_heartbeat(spool: Spool, observers: Clock) -> None:
    inbox = Inbox(spool, observers)
    liveness = Liveness(spool)
    entry = Path(spool.layout.session(inbox.name))
    for _ in range(8):
        assert liveness.is_session_alive(inbox.name)
        observers.sleep(spool.config.lease / 3)
    info = sessions.read_session(spool, inbox.name)
    assert info is not None
    elsewhere = msgspec.structs.replace(info.process, boot="another")
    entry.write_bytes(msgspec.json.encode(msgspec.structs.replace(info, process=elsewhere)))
    seen = []
    for _ in range(8):
        seen.append(liveness.is_session_alive(inbox.name))
        observers.sleep(spool.config.lease / 3)
    assert seen[0] and not seen[-1]
    inbox.pending.close()


def test_live_worker_of_this_host_is_shown_as_alive_without_a_heartbeat(spool: Spool, observers: Clock) -> None:
    here = announce(spool, ProcessId.of(os.getpid()))
    there = announce(spool, unknown_process())
    for worker in (here, there):
        os.utime(f"{spool.layout.worker(worker)}/beat", (0, 0))
    liveness = Liveness(spool)
    for _ in range(8):
        alive = {info.worker for info in workers.read_workers(spool) if liveness.is_alive(info)}
        observers.sleep(spool.config.lease / 3)
    assert alive == {here}
    assert {finding.path for finding in check(spool)} == {f"workers/{there}"}
    groups = StatusCollector(spool).collect().groups
    assert {group.info.worker: group.life.state for group in groups} == {here: "alive", there: "silent"}
