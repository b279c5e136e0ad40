"""A spool that is removed, moved or replaced while it is in use, and directories that a purge has removed."""

from __future__ import annotations

import errno
import grp
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from spoolpool import Sbatch
from spoolpool.errors import BrokenSpool, NotASpool
from spoolpool.format.layout import Layout
from spoolpool.monitor.query import Query
from spoolpool.monitor.selection import select
from spoolpool.monitor.status import StatusCollector
from spoolpool.monitor.wait import Waiter
from spoolpool.pool.autoscaler import Autoscaler
from spoolpool.pool.batch_system import Job
from spoolpool.pool.scaling_policy import ScalingPolicy
from spoolpool.protocol import cancel, presence
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.presence import GRACE, Presence
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.processes import ProcessId
from spoolpool.worker import housekeeping
from tests.support.fake_worker import (
    Clock,
    Inbox,
    SilentRegistration,
    Stage,
    info_of,
    leave_trace,
    leave_trace_and_raise_at_first,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.installed(monkeypatch)


@pytest.fixture
def stage(tmp_path: Path, clock: Clock) -> Stage:
    return Stage(tmp_path / "stage", clock)


@pytest.fixture
def spool(stage: Stage) -> Spool:
    return stage.spool


def names(spool: Spool) -> set[str]:
    return set(os.listdir(spool.path))


def replace(spool: Spool) -> Spool:
    """Put another spool in the place of this one, which is moved."""
    os.rename(spool.path, f"{spool.path}.former")
    return Spool.create(spool.path, durability="none")


def fail_after_grace(checked: Presence, clock: Clock) -> str:
    """Check until the time of grace is over; return the error."""
    assert not checked.check()
    clock.sleep(GRACE)
    with pytest.raises(BrokenSpool) as raised:
        checked.check()
    return str(raised.value)


def test_spool_that_is_in_place_is_present(spool: Spool) -> None:
    before = names(spool)
    assert Presence(spool).check()
    assert names(spool) == before


def test_error_for_a_replaced_spool_names_both_ids_and_the_place_of_the_former_one(spool: Spool) -> None:
    checked = Presence(spool)
    other = replace(spool)
    with pytest.raises(BrokenSpool) as raised:
        checked.check()
    for word in (spool.path, spool.config.id, other.config.id, f"{spool.path}.former"):
        assert word in str(raised.value)


def test_error_for_a_moved_spool_names_the_new_path(spool: Spool, clock: Clock, tmp_path: Path) -> None:
    checked = Presence(spool)
    os.rename(spool.path, tmp_path / "elsewhere")
    assert f"moved to {tmp_path}/elsewhere" in fail_after_grace(checked, clock)


def test_error_for_a_removed_spool_says_how_to_go_on(spool: Spool, clock: Clock) -> None:
    checked = Presence(spool)
    files.remove_tree(spool.path)
    text = fail_after_grace(checked, clock)
    assert "no longer exists" in text
    assert f"spool init {spool.path}" in text


def test_spool_that_comes_back_within_the_time_of_grace_is_present(spool: Spool, clock: Clock) -> None:
    checked = Presence(spool)
    for _ in range(3):
        os.rename(spool.path, f"{spool.path}.away")
        assert not checked.check()
        clock.sleep(GRACE / 2)
        assert not checked.check()
        os.rename(f"{spool.path}.away", spool.path)
        assert checked.check()


def test_rest_of_a_removed_spool_is_no_spool(spool: Spool, clock: Clock) -> None:
    checked = Presence(spool)
    for name in ("spool.json", *Layout.DIRECTORIES[:9]):
        files.remove_tree(f"{spool.path}/{name}") if name != "spool.json" else os.unlink(f"{spool.path}/{name}")
    fail_after_grace(checked, clock)
    assert "spool.json" not in names(spool)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_nothing_is_concluded_while_the_server_does_not_answer(
    spool: Spool, clock: Clock, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    checked = Presence(spool)

    def fail(path: str, **_: object) -> int:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(files, "open_file", fail)
    for _ in range(3):
        assert not checked.check()
        clock.sleep(GRACE)


def test_damaged_config_proves_nothing(spool: Spool, clock: Clock) -> None:
    checked = Presence(spool)
    Path(spool.layout.config).write_text("{")
    assert not checked.check()
    clock.sleep(2 * GRACE)
    assert not checked.check()


# ------------------------------------------------------------------------------- purges


@pytest.mark.parametrize("mode", ["private", "group"])
def test_missing_directories_are_made_again_with_their_permissions(tmp_path: Path, mode: str) -> None:
    group = grp.getgrgid(os.getegid()).gr_name if mode == "group" else None
    spool = Spool.create(tmp_path / mode, mode=mode, group=group, durability="none")  # type: ignore[arg-type]

    def permissions() -> dict[str, tuple[int, int, int]]:
        found = {name: os.stat(f"{spool.path}/{name}") for name in names(spool) if name != "spool.json"}
        return {name: (stat.S_IMODE(each.st_mode), each.st_uid, each.st_gid) for name, each in found.items()}

    before = permissions()
    checked = Presence(spool)
    for name in before:
        os.rmdir(f"{spool.path}/{name}")
    assert checked.check()
    assert permissions() == before
    assert Spool(spool.path).config == spool.config


def test_purged_config_is_made_again(spool: Spool, clock: Clock) -> None:
    before = os.stat(spool.layout.config)
    content = Path(spool.layout.config).read_bytes()
    checked = Presence(spool)
    os.unlink(spool.layout.config)
    assert not checked.check()
    clock.sleep(GRACE)
    assert checked.check()
    assert Path(spool.layout.config).read_bytes() == content
    assert os.stat(spool.layout.config).st_mode == before.st_mode
    assert Spool(spool.path).config == spool.config
    assert not os.listdir(spool.layout.tmp)


def test_error_for_a_spool_without_its_config_names_the_purge(spool: Spool) -> None:
    os.unlink(spool.layout.config)
    with pytest.raises(NotASpool, match="a purge of old files may have removed"):
        Spool(spool.path)


def test_config_of_a_spool_in_use_never_looks_old(spool: Spool, clock: Clock) -> None:
    os.utime(spool.layout.config, (0, 0))
    checked = Presence(spool)
    assert checked.check()
    assert os.stat(spool.layout.config).st_mtime > 0


def test_account_that_does_not_own_the_spool_is_told_what_is_missing(
    spool: Spool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    spool.owner += 1
    checked = Presence(spool)
    os.rmdir(spool.layout.claimed)
    with caplog.at_level(logging.WARNING):
        assert checked.check()
        assert checked.check()
    [text] = caplog.messages
    assert spool.layout.claimed in text
    assert "claimed" not in names(spool)
    os.unlink(spool.layout.config)
    assert not checked.check()
    clock.sleep(GRACE)
    assert checked.check(), "its processes know the config and go on"
    assert "spool.json" not in names(spool)


def test_views_make_nothing_again(spool: Spool) -> None:
    os.rmdir(spool.layout.cancel)
    assert Presence(spool, restore=False).check()
    assert "cancel" not in names(spool)


@pytest.mark.parametrize("directory", Layout.DIRECTORIES)
@pytest.mark.parametrize("delayed", [False, True])
def test_tasks_pass_through_directories_that_are_made_when_they_are_needed(
    stage: Stage, directory: str, *, delayed: bool
) -> None:
    inbox = stage.inbox()

    def purge() -> None:
        if not any(files for _, _, files in os.walk(f"{stage.spool.path}/{directory}")):
            files.remove_tree(f"{stage.spool.path}/{directory}")

    if delayed:
        first = inbox.put(leave_trace_and_raise_at_first, str(stage.effects), retries=1, retry_delay=0.0)
    else:
        first = inbox.put(leave_trace, str(stage.effects))
    future = inbox.put(leave_trace, str(stage.effects), first)
    for _ in range(4):
        purge()
        stage.work(tasks=1)
        stage.clock.sleep(5.0)
        inbox.look(rounds=10)
    assert (first.result(0), future.result(0)) == ("value", "value")


def test_steps_of_a_submitter_make_the_directories_that_they_need(stage: Stage) -> None:
    for name in Layout.DIRECTORIES:
        files.remove_tree(f"{stage.spool.path}/{name}")
    inbox = stage.inbox()
    for name in ("tmp", "objects", "ready", "cancel"):
        files.remove_tree(f"{stage.spool.path}/{name}")
    assert inbox.put_object([1, 2])
    files.remove_tree(stage.spool.layout.tmp)
    assert inbox.put(leave_trace, str(stage.effects)).task in stage.places()
    cancel.request(stage.spool, inbox.put(leave_trace, str(stage.effects)).task)
    files.remove_tree(stage.spool.layout.tmp)
    inbox.put(leave_trace, str(stage.effects), not_before=3600.0)
    assert {"tmp", "objects", "ready", "cancel", "sessions"} <= names(stage.spool)


# ------------------------------------------------------------------------------- processes


def test_submission_to_a_replaced_spool_raises_and_leaves_nothing_there(stage: Stage) -> None:
    inbox = stage.inbox()
    pending = inbox.put(leave_trace, str(stage.effects))
    other = replace(stage.spool)
    with pytest.raises(BrokenSpool, match=other.config.id):
        inbox.put(leave_trace, str(stage.effects))
    with pytest.raises(BrokenSpool, match=other.config.id):
        inbox.put(leave_trace, str(stage.effects))
    assert isinstance(pending.exception(0), BrokenSpool)
    assert not [path for path in Path(other.path).rglob("*") if path.is_file() and path.name != "spool.json"]


@pytest.mark.parametrize("change", ["replaced", "moved", "removed"])
def test_pending_futures_of_a_spool_that_is_gone_get_the_error(stage: Stage, change: str) -> None:
    inbox = stage.inbox()
    inbox.collector._presence = Presence(stage.spool)  # an inbox of the tests has closed its own
    pending = inbox.put(leave_trace, str(stage.effects))
    if change == "replaced":
        replace(stage.spool)
    elif change == "moved":
        os.rename(stage.spool.path, f"{stage.spool.path}.former")
    else:
        files.remove_tree(stage.spool.path)
    inbox.look(rounds=60)
    error = pending.exception(0)
    assert isinstance(error, BrokenSpool)
    assert {"replaced": "was replaced", "moved": "was moved to", "removed": "was removed"}[change] in str(error)


def test_worker_of_a_replaced_spool_leaves_the_tasks_of_the_new_one_alone(stage: Stage, clock: Clock) -> None:
    claimer = Claimer(stage.spool, info_of(ProcessId.of(os.getpid())).worker, lambda _: True, Trust())
    other = replace(stage.spool)
    inbox = Inbox(other, clock)
    future = inbox.put(leave_trace, str(stage.effects))
    with pytest.raises(BrokenSpool, match=other.config.id):
        claimer.next()
    [path] = stage.places()[future.task]
    assert path.startswith("ready/")
    inbox.pending.close()


def keeper(spool: Spool) -> housekeeping.Housekeeping:
    """Return the periodic duties of a registered worker."""
    info = info_of(ProcessId.of(os.getpid()))
    registration = SilentRegistration(spool, info)
    return housekeeping.Housekeeping(spool, info, registration, None, Journal(spool, info.worker), None)  # type: ignore[arg-type]


def test_worker_waits_for_a_spool_that_is_away_for_a_moment(spool: Spool, clock: Clock) -> None:
    duties = keeper(spool)
    os.rename(spool.path, f"{spool.path}.away")
    for _ in range(3):
        assert duties.should_continue()
        assert duties.run_due()
        clock.sleep(1.0)
    os.rename(f"{spool.path}.away", spool.path)
    assert duties.should_continue()
    clock.sleep(spool.config.lease)
    assert duties.run_due()


def test_worker_ends_if_its_entry_is_removed(spool: Spool) -> None:
    duties = keeper(spool)
    files.remove_tree(spool.layout.workers)
    assert not duties.should_continue()


@pytest.mark.parametrize("act", ["should_continue", "run_due"])
def test_worker_of_a_replaced_spool_ends_with_the_error(spool: Spool, act: str) -> None:
    duties = keeper(spool)
    other = replace(spool)
    with pytest.raises(BrokenSpool, match=other.config.id):
        getattr(duties, act)()


def waiter(spool: Spool) -> Callable[[], object]:
    waiting = Waiter(spool, list(select(spool, Query())))
    assert waiting.pending
    return waiting.poll


def status(spool: Spool) -> Callable[[], object]:
    collector = StatusCollector(spool)
    return lambda: collector.collect() and None


def scaler(spool: Spool) -> Callable[[], object]:
    return Autoscaler(spool, Job(backend=Sbatch(), spool=spool.path), ScalingPolicy(max_jobs=1)).round


@pytest.mark.parametrize("observe", [waiter, scaler, status])
def test_observers_of_a_spool_that_is_gone_end_with_the_error(
    stage: Stage, observe: Callable[[Spool], Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_INTERVAL", 0.0)
    stage.submit()
    look = observe(stage.spool)
    os.rename(stage.spool.path, f"{stage.spool.path}.former")
    assert look() in (0, [], None), "nothing is concluded yet"
    stage.clock.sleep(GRACE)
    with pytest.raises(BrokenSpool, match="was moved to"):
        look()


def test_directory_without_a_spool_is_not_filled(spool: Spool) -> None:
    os.unlink(spool.layout.config)
    with pytest.raises(NotASpool):
        spool.make_directories(spool.layout.claimed)
