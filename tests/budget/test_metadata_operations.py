"""Budget of metadata operations of each step. A step with one more operation fails a test here."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import costs, trace
from benchmarks.contender import Job
from benchmarks.contenders import spoolpool as contender
from benchmarks.costs import Costs
from spoolpool import settings
from spoolpool.client import collector
from spoolpool.client.starvation import Refresher, StarvationMonitor
from spoolpool.format.names import TaskFile, new_worker_id, series_of
from spoolpool.protocol import journal
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.failure_detector import MAX_OBSERVERS, MIN_SAMPLE
from spoolpool.protocol.presence import Presence
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.worker_registration import request_stop
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.processes import ProcessId
from spoolpool.worker import loop
from spoolpool.worker.loop import Worker, WorkerOptions
from spoolpool.worker.serial_group import SerialGroup
from tests.faults.disk import Disk
from tests.support.fake_worker import (
    LANE,
    Clock,
    Inbox,
    SilentRegistration,
    SilentWatch,
    announce,
    info_of,
    unknown_process,
)

KINDS = {
    "rename": "rename",
    "unlink": "unlink",
    "mkdir": "directory",
    "rmdir": "directory",
    "stat": "stat",
    "lstat": "stat",
    "listdir": "list",
    "utime": "set",
    "chmod": "set",
}


class Tally(Disk):
    """Counter of the disk operations of this process: those on metadata by kind, all others by name."""

    def __init__(self) -> None:
        super().__init__()
        self.metadata: Counter[str] = Counter()
        self.others: Counter[str] = Counter()

    def do(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kind = KINDS.get(name, "")
        if name == "open":
            kind = "create" if args[1] & os.O_CREAT else "list" if args[1] & os.O_DIRECTORY else "open"
        if kind:
            self.metadata[kind] += 1
        else:
            self.others[name] += 1
        return super().do(name, call, *args, **kwargs)


def counted(body: Callable[[], object]) -> Tally:
    tally = Tally()
    gc.collect()  # objects of earlier tests may close their descriptors now, and not meanwhile
    gc.disable()
    try:
        with tally.installed():
            body()
    finally:
        gc.enable()
    return tally


def each(once: Tally, more: Tally, times: int) -> tuple[Counter[str], Counter[str]]:
    """Return the cost of each of the ``times`` further repetitions; fail unless all cost the same."""
    found = []
    for before, after in ((once.metadata, more.metadata), (once.others, more.others)):
        rest = Counter({kind: after[kind] - before[kind] for kind in before | after})
        assert not any(count % times for count in rest.values()), rest
        found.append(Counter({kind: count // times for kind, count in rest.items() if count}))
    return found[0], found[1]


def total(*steps: Costs) -> Counter[str]:
    return sum(map(Counter, steps), Counter())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    # a journal that is a second old is written: on a busy machine that adds an operation to any step
    still = types.SimpleNamespace(**{**vars(time), "monotonic": lambda: 0.0})
    monkeypatch.setattr(journal, "time", still)
    return Clock.installed(monkeypatch)


@pytest.fixture
def inbox(spool: Spool, clock: Clock) -> Inbox:
    inbox = Inbox(spool, clock)
    inbox.put(pow, 2, 3).cancel()  # the first task creates the bucket
    inbox.look()  # the first poll also lists the outcomes of earlier runs
    return inbox


def work(spool: Spool, watch: SilentWatch, **options: Any) -> Tally:
    """Run a worker until the watch or its options end it; return its operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Registration", SilentRegistration)
        patch.setattr(loop, "DirectoryWatcher", lambda: watch)
        return counted(Worker(spool, SerialGroup(), info_of(ProcessId.of(os.getpid())), WorkerOptions(**options)).run)


# -- a plain task


def test_plain_task_costs_nine_metadata_operations() -> None:
    assert total(*costs.TASK) == {"create": 2, "rename": 3, "open": 2, "unlink": 2}
    assert costs.operations(*costs.TASK) == 9


def test_submitting_a_task_creates_and_renames_a_file(inbox: Inbox) -> None:
    few, many = (counted(lambda n=n: [inbox.put(pow, 2, 3) for _ in range(n)]) for n in (3, 13))
    metadata, others = each(few, many, 10)
    assert metadata == costs.SUBMIT
    assert others == {"writev": 1, "close": 1}


def test_running_a_task_opens_and_renames_it_and_creates_and_renames_its_outcome(inbox: Inbox, clock: Clock) -> None:
    tallies = []
    for count in (3, 13):
        for _ in range(count):
            inbox.put(pow, 2, 3)
        tallies.append(work(inbox.spool, SilentWatch(clock, 100), max_tasks=count))
    metadata, others = each(*tallies, 10)
    assert metadata == total(costs.CLAIM, costs.PUBLISH)
    assert others == {"fstat": 1, "pread": 1, "writev": 1, "close": 2}


@pytest.mark.parametrize("keeps", [False, True])
def test_collecting_an_outcome_opens_it_and_removes_both_files_unless_the_session_keeps_them(
    spool: Spool, clock: Clock, keeps: bool
) -> None:
    inbox = Inbox(spool, clock, keeps=keeps)
    inbox.put(pow, 2, 3).cancel()
    inbox.look()  # the first poll also lists the outcomes of earlier runs
    tallies = []
    for count in (3, 13):
        futures = [inbox.put(pow, 2, 3) for _ in range(count)]
        work(inbox.spool, SilentWatch(clock, 100), max_tasks=count)
        tallies.append(counted(inbox.look))
        assert [future.result(0) for future in futures] == [8] * count
    metadata, others = each(*tallies, 10)
    assert metadata == ({"open": 1} if keeps else costs.COLLECT)
    assert others == {"fstat": 1, "pread": 1, "close": 1}


class BusyWatch(SilentWatch):
    """Directory watcher of a busy worker: a task is submitted during each wait."""

    def __init__(self, clock: Clock, inbox: Inbox, tasks: int) -> None:
        super().__init__(clock, 1000)
        self._inbox = inbox
        self._tasks = tasks

    def wait(self, seconds: float) -> bool:
        if not self._tasks:
            return super().wait(seconds)
        self._tasks -= 1
        self._inbox.put(pow, 2, 3)
        return True


def test_task_after_a_wait_costs_one_listing_and_one_empty_scan(inbox: Inbox, clock: Clock) -> None:
    few, many = (work(inbox.spool, BusyWatch(clock, inbox, n), max_tasks=n) for n in (3, 13))
    metadata, _ = each(few, many, 10)
    assert metadata == total(costs.SUBMIT, costs.CLAIM, costs.PUBLISH, costs.AGAIN, costs.LOOK)


class PromptWatch(BusyWatch):
    """Directory watcher of a busy worker: a task is submitted during the pause after the previous one."""

    def pause(self, seconds: float) -> bool:
        return bool(seconds and self._tasks and self.wait(seconds))


def test_task_right_after_the_previous_one_costs_one_listing(inbox: Inbox, clock: Clock) -> None:
    few, many = (work(inbox.spool, PromptWatch(clock, inbox, n), max_tasks=n) for n in (3, 13))
    metadata, _ = each(few, many, 10)
    assert metadata == total(costs.SUBMIT, costs.CLAIM, costs.PUBLISH, costs.AGAIN)


class LastWatch(PromptWatch):
    """:class:`PromptWatch` that requests a stop of the worker during the pause after the last task."""

    def __init__(self, clock: Clock, inbox: Inbox, tasks: int) -> None:
        super().__init__(clock, inbox, tasks)
        self._spool = inbox.spool

    def pause(self, seconds: float) -> bool:
        if self._tasks or not seconds:
            return super().pause(seconds)
        [name] = files.list_names(self._spool.layout.workers)
        request_stop(self._spool, name)
        return True

    def wait(self, seconds: float) -> bool:
        assert self._tasks, "the worker still waits after a stop request"
        return super().wait(seconds)


def test_stop_request_during_the_pause_after_a_task_ends_the_worker(inbox: Inbox, clock: Clock) -> None:
    work(inbox.spool, LastWatch(clock, inbox, 3))


# -- nothing to do


class IdleWatch(SilentWatch):
    """Directory watcher that sees no change: each wait takes this number of seconds."""

    def __init__(self, clock: Clock, waits: int, seconds: float = 1.0) -> None:
        super().__init__(clock, waits)
        self._seconds = seconds

    def wait(self, seconds: float) -> bool:
        self._clock.sleep(self._seconds)
        self._left -= 1
        return False


def idle(spool: Spool, clock: Clock, waits: int, seconds: float = 1.0) -> Tally:
    """Run an idle group that waits this number of times; return its operations."""
    return work(spool, IdleWatch(clock, waits, seconds), max_time=(waits - 0.5) * seconds)


def with_lease(spool: Spool, seconds: float) -> Spool:
    """Set the lease of a spool for all users of this object."""
    spool.config = msgspec.structs.replace(spool.config, lease=seconds)
    return spool


NO_ROUND, NO_DEATH = 1e6, 1e3
"""Leases in seconds: the first is too long for a round of recovery, the second for a presumed death."""


@pytest.mark.parametrize("submitters", [1, 4])
def test_scan_of_an_idle_group_lists_lanes_buckets_and_its_own_entry(
    spool: Spool, clock: Clock, submitters: int
) -> None:
    for number in range(submitters):
        Inbox(spool, clock, f"inbox-{number}").put(pow, 2, 3).cancel()
    with_lease(spool, NO_ROUND)
    metadata, others = each(*(idle(spool, clock, waits) for waits in (4, 14)), 10)
    assert metadata == total(costs.LOOK, costs.WANTED, *[costs.BUCKET] * (submitters - 1))
    assert not others


def test_poll_without_outcomes_costs_one_listing(inbox: Inbox) -> None:
    metadata, others = each(*(counted(lambda n=n: inbox.look(n)) for n in (3, 13)), 10)
    assert metadata == costs.POLL
    assert not others


def test_check_without_outcomes_looks_at_the_spool_and_at_a_serving_group(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_lease(inbox.spool, NO_ROUND)
    announce(inbox.spool, unknown_process())
    inbox.put(pow, 2, 3)
    monkeypatch.setattr(collector, "_CHECK_SECONDS", -1.0)  # in each poll
    monkeypatch.setattr(Refresher, "refresh_if_due", lambda *_: None)  # less and less often
    inbox.look(3)
    metadata, _ = each(*(counted(lambda n=n: inbox.look(n)) for n in (3, 13)), 10)
    assert metadata == total(costs.POLL, costs.CHECK)


@pytest.mark.parametrize("groups", [0, 5])
def test_recovery_round_of_an_idle_group_costs_fixed_listings_and_one_check_per_group(
    inbox: Inbox, clock: Clock, groups: int
) -> None:
    spool = with_lease(inbox.spool, NO_DEATH)
    for _ in range(groups):
        announce(spool, unknown_process())
    twice, thrice = (idle(spool, clock, waits, NO_DEATH / 3) for waits in (2, 3))
    look = total(costs.LOOK, costs.WANTED)
    watched = groups + 1  # also itself
    metadata, _ = each(twice, thrice, 1)
    assert metadata - look == total(costs.CLAIMS_AND_GROUPS, costs.SELF_CHECK, costs.HELD, *[costs.WATCHED] * watched)
    first = counted(Recovery(spool).round).metadata
    assert first == total(costs.CLAIMS_AND_GROUPS, *[costs.WATCHED, costs.MET] * groups)


def test_check_that_a_spool_is_present_reads_its_config_and_lists_its_directory(spool: Spool) -> None:
    assert counted(Presence(spool, restore=False).check).metadata == {"open": 1}
    assert counted(Presence(spool).check).metadata == total(costs.PRESENCE, {"set": 1})  # once in six hours
    checked = Presence(spool)
    checked.check()
    assert counted(checked.check).metadata == costs.PRESENCE


@pytest.mark.parametrize("groups", [MIN_SAMPLE, 10 * MIN_SAMPLE])
def test_recovery_round_checks_all_of_few_groups_and_a_bounded_sample_of_many(
    spool: Spool, clock: Clock, groups: int
) -> None:
    with_lease(spool, NO_DEATH)
    beats = [Path(spool.layout.worker(announce(spool, unknown_process())), "beat") for _ in range(groups)]
    observer = Recovery(spool)
    looks = []
    for turn in range(90):
        for beat in beats:
            os.utime(beat, (turn, turn))
        if turn < 50:  # it sees groups for the first time
            observer.round()
        else:
            looks.append(counted(observer.round).metadata["open"])
    assert max(looks) <= 2 * MIN_SAMPLE  # its sample, and the last groups that it sees for the first time
    assert min(looks[-20:]) >= MIN_SAMPLE or groups > MAX_OBSERVERS  # 0 in a round that is left to other observers


def test_idle_groups_scan_less_often_with_thousands_of_groups(
    memory: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = with_lease(Spool.create(memory / "spool", durability="none"), NO_DEATH)
    waits: list[float] = []
    monkeypatch.setattr(IdleWatch, "wait", lambda _self, seconds: waits.append(seconds) or clock.sleep(seconds))
    for more, slowest in ((500, 2.0), (4500, 5.0)):
        for _ in range(more):
            os.mkdir(spool.layout.worker(new_worker_id()))
        work(spool, IdleWatch(clock, 0), max_time=100.0)
        assert slowest * 0.75 <= max(waits) <= slowest * 1.01  # it is one of the groups itself
        waits.clear()


def test_submitter_without_outcomes_checks_one_serving_group_and_another_after_its_death(
    inbox: Inbox, clock: Clock
) -> None:
    spool = inbox.spool
    groups = [announce(spool, unknown_process()) for _ in range(7)]
    header = inbox.put(pow, 2, 3).header
    service = StarvationMonitor(spool)
    assert counted(lambda: service.check([header])).metadata["open"] >= len(groups)
    assert counted(lambda: service.check([header])).metadata == costs.WATCHED
    [serving] = service._serves.values()
    for _ in range(5):  # its heartbeat stops
        clock.sleep(spool.config.lease / 3)
        for number, group in enumerate(groups):
            if group != serving.worker:
                os.utime(f"{spool.layout.worker(group)}/beat", (clock.now + number, clock.now))
        service.check([header])
    [other] = service._serves.values()
    assert other != serving
    assert counted(lambda: service.check([header])).metadata == costs.WATCHED


# -- many queued tasks


def test_claim_costs_the_same_with_a_thousand_and_a_hundred_thousand_queued_tasks(memory: Path, clock: Clock) -> None:
    for waiting in (10**3, 10**5):
        spool = Spool.create(memory / str(waiting), durability="none")
        inbox = Inbox(spool, clock)
        for _ in range(50):
            inbox.put(pow, 2, 3)
        fill(spool, waiting - 50)
        claimer = Claimer(spool, new_worker_id(), lambda lane: lane.name == LANE, Trust())

        def claim(count: int, pause: float = 0.0, claimer: Claimer = claimer) -> None:
            for _ in range(count):
                clock.sleep(pause)
                claimed = claimer.next()
                assert claimed is not None
                claimed.close()

        claim(1)
        at_once, _ = each(counted(lambda: claim(2)), counted(lambda: claim(12)), 10)
        assert at_once == costs.CLAIM
        a_listing_each, _ = each(counted(lambda: claim(2, 1.1)), counted(lambda: claim(12, 1.1)), 10)
        assert a_listing_each == total(costs.CLAIM, costs.LOOK)


def fill(spool: Spool, count: int) -> None:
    """Queue this number of further tasks of the submitter: names without content, sorted after the submitted ones."""
    [bucket] = files.list_names(spool.layout.lane(LANE))
    _, submitter = series_of(bucket)
    for start in range(0, count, settings.BUCKET_SIZE):
        directory = spool.layout.bucket(LANE, f"499-{1 << 54 | start:014x}-{submitter}")
        os.mkdir(directory)
        for number in range(start, min(count, start + settings.BUCKET_SIZE)):
            name = TaskFile(f"499-{1 << 54 | number:014x}-{number:010x}", 1, 1).name
            os.close(os.open(f"{directory}/{name}", os.O_CREAT | os.O_WRONLY))


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """Directory in memory, which creates a hundred thousand files within seconds; a temporary one if there is none."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="spoolpool-test-", dir=shm) as path:
        yield Path(path)


# -- a whole pool of real processes


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace here")
@pytest.mark.parametrize("variant", ["", "data"], ids=["embedded", "attached"])
def test_processes_of_a_pool_make_no_other_system_calls_on_the_spool(memory: Path, variant: str) -> None:
    place, traces = memory / "d", memory / "traces"
    place.mkdir()
    traces.mkdir()
    calls = 20
    job = Job(
        measure="marked",
        variant=variant,
        directory=str(place),
        answer=str(memory / "answer"),
        harness=os.getpid(),
        tasks=calls,
        warm=5,
        seconds=0.1,
    )
    command = [*trace.strace(f"{traces}/thread"), *contender.CONTENDER.command(sys.executable, job)]
    root = Path(__file__).resolve().parents[2]
    variables = {**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=variables, cwd=place, capture_output=True, text=True, timeout=300)
    assert (memory / "answer").exists(), done.stderr
    found = trace.between_marks(str(traces), str(place))
    for work in ("awaited", "batch", "map"):
        counts = trace.per_call(found, work, calls)
        # the number of listings depends on the speed of the machine, and a round of recovery may add some
        seen = {kind: round(counts[kind]) for kind in trace.KINDS if kind != "list"}
        expected = {kind: total(*costs.TASK)[kind] for kind in seen}
        if work == "awaited" or variant:
            assert seen == expected, work
        else:  # calls of a temporary spool that are submitted together may share tasks
            assert all(seen[kind] <= expected[kind] for kind in seen), work
