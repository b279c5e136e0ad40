"""Pool of worker groups with simulated processes."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest

from spoolpool import settings
from spoolpool.cli import status_screen
from spoolpool.errors import NotASpool
from spoolpool.launch.allocation import Allocation
from spoolpool.launch.launcher import LaunchOptions
from spoolpool.launch.output_relay import Relay
from spoolpool.monitor.status import StatusCollector
from spoolpool.pool import ending_groups, group_pool, slot
from spoolpool.pool.group_pool import GroupPool
from spoolpool.protocol import worker_registration, workers
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Shape
from tests.support import fake_worker
from tests.support.fake_worker import Clock, dead_process
from tests.support.task_files import put
from tests.support.waiting import wait_until

ONE = Shape(ranks=1)


@dataclass(kw_only=True)
class Group:
    """Simulated process of a group; ``code`` returns its exit status, or None while it runs."""

    worker: str
    owner_entry: str = ""
    code: Callable[[], int | None] = lambda: None
    ignores_requests: bool = False
    ends: list[str] = field(default_factory=list)
    end_seconds = 5.0

    def poll(self) -> int | None:
        has_ended = "kill" in self.ends or (self.ends and not self.ignores_requests)
        return -15 if has_ended else self.code()

    def end(self, *, kill: bool = False) -> None:
        self.ends.append("kill" if kill else "ask")


@dataclass
class Groups:
    """Launcher that starts no process; ``begin`` is called with each group."""

    begin: Callable[[Group], None] = lambda _: None
    started: list[Group] = field(default_factory=list)
    name: str = "nothing"
    reaches_other_nodes: bool = False
    refuses: bool = False
    """Whether groups have no resources to begin."""

    def command(self, shape: Shape, arguments: Sequence[str], options: LaunchOptions) -> list[str]:
        return []

    def start(
        self, shape: Shape, arguments: Sequence[str], options: LaunchOptions, variables: Mapping[str, str]
    ) -> Group:
        group = Group(worker=variables[settings.ENV_WORKER], owner_entry=variables.get(settings.ENV_OWNER_ENTRY, ""))
        self.started.append(group)
        self.begin(group)
        return group

    def starts_ranks_itself(self, shape: Shape) -> bool:
        return True

    def never_began(self, errors: Sequence[str]) -> bool:
        return self.refuses

    def allocation(self, options: LaunchOptions) -> Allocation:
        raise AssertionError("not needed")

    def seconds_left(self) -> float | None:
        return None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock.installed(monkeypatch)
    for module in (ending_groups, group_pool, slot):
        monkeypatch.setattr(module, "time", clock)
    return clock


def announce(spool: Spool, group: Group) -> None:
    """Create the entry of a group; its content is not read here."""
    directory = spool.layout.worker(group.worker)
    os.mkdir(directory)
    with open(f"{directory}/info.json", "x", encoding="ascii"):
        pass


def end(pool: GroupPool, groups: Groups) -> None:
    """End a pool whose groups end by themselves."""
    for group in groups.started:
        group.code = lambda: 0
    pool.stop()


def journals(spool: Spool) -> list[str]:
    """Return the journals of a spool that this process has open."""
    opened = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    return [path for path in opened if path.startswith(f"{os.path.realpath(spool.layout.journal)}/")]


def is_asked_to_stop(spool: Spool, group: Group) -> bool:
    return os.path.exists(f"{spool.layout.worker(group.worker)}/stop")


def test_stop_waits_for_working_groups_and_ends_groups_that_hang_in_start_or_exit(spool: Spool, clock: Clock) -> None:
    groups = Groups()
    pool = GroupPool(spool, groups, options=LaunchOptions())
    pool.resize(ONE, 4)
    works, starts, _hangs_in_start, hangs_in_exit = groups.started
    begun = clock.now
    announce(spool, works)
    announce(spool, hangs_in_exit)

    def leave_and_hang() -> None:
        if clock.now > begun + 500 and os.path.exists(spool.layout.worker(hangs_in_exit.worker)):
            shutil.rmtree(spool.layout.worker(hangs_in_exit.worker))

    hangs_in_exit.code = leave_and_hang
    works.code = lambda: 0 if is_asked_to_stop(spool, works) and clock.now > begun + 1000 else None

    def start_late() -> int | None:
        if clock.now > begun + 30 and not os.path.exists(spool.layout.worker(starts.worker)):
            announce(spool, starts)
        return 0 if is_asked_to_stop(spool, starts) and clock.now > begun + 500 else None

    starts.code = start_late
    assert pool.stop(None) == []
    assert [group.ends for group in groups.started] == [[], [], ["ask"], ["ask"]]
    assert clock.now > begun + 1000


@pytest.mark.parametrize("elsewhere", [False, True])
def test_groups_that_may_run_on_other_nodes_know_an_entry_with_a_heartbeat(tmp_path: Path, elsewhere: bool) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none", lease=0.6, caches=0)
    groups = Groups(reaches_other_nodes=elsewhere)
    pool = GroupPool(spool, groups, options=LaunchOptions())
    pool.resize(ONE, 2)
    first, second = groups.started
    assert first.owner_entry == second.owner_entry
    assert os.listdir(spool.layout.workers) == ([first.owner_entry] if elsewhere else [])
    if elsewhere:
        assert os.listdir(spool.layout.worker(first.owner_entry)) == ["beat"]
        shutil.rmtree(spool.layout.worker(first.owner_entry))  # a recoverer took this process for dead

        def is_back() -> bool:
            pool.step()
            return os.path.exists(f"{spool.layout.worker(first.owner_entry)}/beat")

        wait_until(is_back, "the entry is there again")
    for group in groups.started:
        group.code = lambda: 0
    pool.stop(None)
    assert os.listdir(spool.layout.workers) == []


def test_stop_ends_late_groups_all_at_once_and_kills_those_that_do_not_end(spool: Spool, clock: Clock) -> None:
    groups = Groups()
    pool = GroupPool(spool, groups, options=LaunchOptions())
    pool.resize(ONE, 30)
    for group in groups.started[10:]:
        group.ignores_requests = True
    begun = clock.now
    assert pool.stop(1.0) == []
    assert [group.ends for group in groups.started] == [["ask"]] * 10 + [["ask", "kill"]] * 20
    assert clock.now < begun + 1.0 + Group.end_seconds + 1.0


def test_group_that_dies_after_its_check_is_judged_before_its_task_is_recovered(spool: Spool, clock: Clock) -> None:
    groups = Groups()
    pool = GroupPool(spool, groups, options=LaunchOptions())
    pool.resize(ONE, 2)
    first, second = groups.started
    first.code = lambda: -9
    pool.step()  # the death of a group begins the rounds of recovery
    fake_worker.announce(spool, dead_process(), worker_id=second.worker)
    put(spool, "running", worker=second.worker)
    pool.step()
    second.code = lambda: -9
    pool.step()
    (judged,) = (each for each in pool._slots if each.worker == second.worker)
    assert (judged.deaths_by_task, judged.deaths, judged.failed_starts) == (1, 0, 0)
    assert not os.listdir(spool.layout.claimed) and not os.path.exists(spool.layout.worker(second.worker))
    assert journals(spool)
    end(pool, groups)
    assert not journals(spool)


@pytest.mark.parametrize(
    ("announces", "deaths"),
    [
        ("no", 3),
        ("yes", 6),
        ("every second time", 6),
    ],
)
def test_shape_is_given_up_after_six_deaths_in_a_row_or_three_before_the_announcement(
    spool: Spool, clock: Clock, announces: str, deaths: int
) -> None:
    def begin(group: Group) -> None:
        if announces == "yes" or (announces != "no" and len(groups.started) % 2 == 0):
            announce(spool, group)
        group.code = lambda: -9

    groups = Groups(begin)
    pool = GroupPool(spool, groups, options=LaunchOptions())
    pool.resize(ONE, 1)
    while pool.count():
        pool.step()
        clock.now += 1.0
    assert len(groups.started) == deaths
    assert "killed by SIGKILL" in pool.broken[ONE]
    assert bool(pool.announced) == (announces != "no")


STATUSES = [*range(256), *(-number for number in signal.valid_signals())]


@pytest.mark.parametrize("announced", [True, False])
def test_group_that_ends_with_any_status_is_replaced_unless_it_has_recorded_its_end(
    spool: Spool, clock: Clock, announced: bool
) -> None:
    for status in STATUSES:
        groups = Groups()
        pool = GroupPool(spool, groups, options=LaunchOptions())
        pool.resize(ONE, 1)
        (first,) = groups.started
        if announced:
            fake_worker.announce(spool, dead_process(), worker_id=first.worker)
            put(spool, "running", worker=first.worker)
        first.code = lambda status=status: status
        pool.step()
        clock.now += 1.0
        pool.step()
        assert len(groups.started) == 2 and pool.count() == 1, status
        (slot_,) = pool._slots
        assert (slot_.failed_starts, slot_.deaths_by_task) == ((0, 1) if announced else (1, 0))
        end(pool, groups)
    assert not journals(spool)


@pytest.mark.parametrize("status", [0, 1, 3, 75, 78, -9])
def test_group_that_has_recorded_its_end_ended_so_with_any_status(spool: Spool, clock: Clock, status: int) -> None:
    for end, started in (("done", 1), ("renew", 2)):
        groups = Groups()
        pool = GroupPool(spool, groups, options=LaunchOptions())
        pool.resize(ONE, 1)
        (first,) = groups.started
        registration = fake_worker.register(spool, dead_process(), worker_id=first.worker)
        registration.close(end=end)
        first.code = lambda: status
        pool.step()
        assert len(groups.started) == started and pool.count() == started - 1
        assert not os.path.exists(spool.layout.worker(first.worker))


def test_status_of_a_group_that_does_not_see_its_spool_is_explained_only_before_it_can_run_a_task(
    spool: Spool, clock: Clock
) -> None:
    def announce_and_die(group: Group) -> None:
        if announces:
            announce(spool, group)
        group.code = lambda: NotASpool.exit_code

    for announces in (False, True):
        pool = GroupPool(spool, Groups(announce_and_die), options=LaunchOptions())
        pool.resize(ONE, 1)
        while pool.count():
            pool.step()
            clock.now += 1.0
        assert ("does not see its spool" in pool.broken[ONE]) is not announces
        assert "exit status 3" in pool.broken[ONE]


def test_end_recorded_by_another_account_is_not_believed(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = fake_worker.announce(spool, dead_process())
    worker_registration.report_end(spool, worker, "done")
    monkeypatch.setattr(os, "geteuid", lambda: -5)
    assert worker_registration.take_end(spool, worker) is None


BUSY = "srun: error: Unable to create step for job 7: Requested nodes are busy"


class Said(Relay):
    """Relay that knows the last errors of all groups."""

    def __init__(self, *lines: str) -> None:
        super().__init__(labels=False)
        self.lines = list(lines)

    def last_errors(self, group: str) -> list[str]:
        return self.lines


def missing(spool: Spool) -> list[str]:
    return [*workers.read_start_errors(spool, ()).values()]


def test_groups_without_resources_are_taken_off_the_plan_and_the_others_stay(
    spool: Spool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    groups = Groups(refuses=True)
    pool = GroupPool(spool, groups, options=LaunchOptions(relay=Said("0: warning", BUSY)))
    pool.resize(ONE, 3)
    announce(spool, groups.started[0])
    for group in groups.started[1:]:
        group.code = lambda: 1
    pool.step()
    assert pool.count() == 1 and len(groups.started) == 3 and not pool.broken
    assert caplog.text.count(BUSY) == 2 and "1 group(s) of this shape are left" in caplog.text
    pool.step()
    text = f"A group of {ONE} did not begin: {BUSY}."
    assert missing(spool) == [text, text]
    for name in os.listdir(spool.layout.workers):
        if name != groups.started[0].worker:
            shutil.rmtree(spool.layout.worker(name))  # as a recoverer does after a lease
    clock.now += spool.config.lease
    pool.step()
    assert missing(spool) == [text, text]
    shown = click.unstyle("\n".join(status_screen.lines(StatusCollector(spool).collect())))
    assert f"Missing  2 times: {text}" in shown
    groups.started[0].code = lambda: 0
    pool.stop()
    assert missing(spool) == []


def test_pool_without_a_group_survives_the_removal_of_its_spool(spool: Spool, clock: Clock) -> None:
    pool = GroupPool(
        spool,
        Groups(lambda group: setattr(group, "code", lambda: 1), refuses=True),
        options=LaunchOptions(relay=Said(BUSY)),
    )
    pool.resize(ONE, 1)
    shutil.rmtree(spool.path)
    pool.step()
    pool.stop()
    assert BUSY in pool.broken[ONE]


def test_shape_without_any_resources_is_broken(spool: Spool, clock: Clock) -> None:
    groups = Groups(lambda group: setattr(group, "code", lambda: 1), refuses=True)
    pool = GroupPool(spool, groups, options=LaunchOptions(relay=Said(BUSY)))
    pool.resize(ONE, 2)
    pool.step()
    assert pool.count() == 0 and len(groups.started) == 2
    assert pool.broken[ONE].endswith(f"cannot be started through nothing: {BUSY}.")


def test_slot_in_which_a_group_has_run_waits_for_its_resources(spool: Spool, clock: Clock) -> None:
    groups = Groups()
    pool = GroupPool(spool, groups, options=LaunchOptions(relay=Said(BUSY)))
    pool.resize(ONE, 1)
    announce(spool, groups.started[0])
    groups.started[0].code = lambda: -9
    groups.refuses = True
    for number in range(20):
        pool.step()
        clock.now += 60.0
        if number > 1:
            groups.started[-1].code = lambda: 1
    assert pool.count() == 1 and len(groups.started) > 5 and not pool.broken


def test_group_that_waits_too_long_in_its_launcher_is_ended(spool: Spool, clock: Clock) -> None:
    groups = Groups()
    pool = GroupPool(spool, groups, options=LaunchOptions(relay=Said(BUSY)))
    pool.resize(ONE, 2)
    waits, starts = groups.started
    announce(spool, starts)
    clock.now += 1000.0
    pool.step()
    assert pool.count() == 2  # its launcher does not say that it waits: Python may take long to start
    groups.refuses = True
    clock.now += 1000.0
    pool.step()
    assert pool.count() == 1 and waits.ends == ["ask"] and starts.ends == []


def test_reason_of_a_failed_start_has_the_last_lines_of_the_launcher(spool: Spool, clock: Clock) -> None:
    groups = Groups(lambda group: setattr(group, "code", lambda: 1))
    pool = GroupPool(spool, groups, options=LaunchOptions(relay=Said("Traceback (most recent call last):", "Lost: x")))
    pool.resize(ONE, 1)
    while pool.count():
        pool.step()
        clock.now += 1.0
    assert pool.broken[ONE].endswith("cannot be started through nothing: exit status 1: Lost: x.")
    assert len(groups.started) == 3


def test_group_whose_options_the_launcher_rejects_is_not_started_again(spool: Spool, clock: Clock) -> None:
    groups = Groups(lambda group: setattr(group, "code", lambda: 1))
    rejected = "srun: error: Invalid MPI type 'tea', --mpi=list for acceptable types"
    pool = GroupPool(spool, groups, options=LaunchOptions(relay=Said(rejected)))
    pool.resize(ONE, 2)
    pool.step()
    assert pool.count() == 0 and len(groups.started) == 2
    assert rejected in pool.broken[ONE] and settings.ENV_SRUN_MPI in pool.broken[ONE]
