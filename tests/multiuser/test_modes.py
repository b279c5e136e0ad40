"""Several accounts on one spool: each mode grants exactly its rights, with any umask."""

from __future__ import annotations

import os
import stat
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spoolpool import Executor, Session
from spoolpool.calls import pickling
from spoolpool.client.result_cache import Entry, cache_of
from spoolpool.errors import BadRequest, NotTrusted, SpoolDenied
from spoolpool.format.layout import Layout
from spoolpool.monitor.status import StatusCollector
from spoolpool.protocol.objects import put_object, read_object
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.worker_registration import Registration
from spoolpool.security.permissions import RIGHTS
from spoolpool.security.trust import Trust
from spoolpool.system.processes import ProcessId
from spoolpool.worker import loop
from spoolpool.worker.loop import Worker, WorkerOptions
from spoolpool.worker.serial_group import SerialGroup
from tests.multiuser.accounts import People, Scene, fail_at_first, in_account, messages
from tests.support.fake_worker import Inbox, SilentRegistration, dead_process, info_of
from tests.support.waiting import LIMIT

pytestmark = pytest.mark.multiuser


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_task_and_result_pass_between_accounts_with_any_umasks(scene: Scene, umask: int) -> None:
    with scene.alice.acting(umask=umask):
        futures = [scene.put(scene.inbox, fail_at_first, str(scene.traces / f"{umask}"), retries=1, retry_delay=0.0)]
        futures += [scene.put(scene.inbox, pow, 2, exponent, priority=exponent) for exponent in (1, 2)]
    made = [path for path in scene.path.rglob("*") if path.parent != scene.path]
    rights = RIGHTS[scene.mode]
    for path in made:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (rights.made if path.is_dir() else rights.file), path
        assert path.stat().st_gid == scene.path.stat().st_gid
    scene.work(umask=umask)
    scene.collect(rounds=5)
    assert [future.result(timeout=0) for future in futures] == ["at last", 2, 4]
    assert not scene.left("failed") and not scene.left("claimed")
    with scene.alice.acting(umask=umask):
        scene.inbox.close()
    assert not scene.left("results") and not scene.left("outgoing")


def test_executor_and_worker_of_different_accounts_work_together(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # real processes need the real clock

    def serve() -> int:
        monkeypatch.setattr(loop, "Registration", SilentRegistration)
        trust = scene.trust()
        info = info_of(
            ProcessId.of(os.getpid()),
            trust_users=tuple(trust.uids),
            trust_groups=trust.groups,
            trust_all=trust.everybody,
        )
        options = WorkerOptions(trust=trust, idle_timeout=LIMIT, max_tasks=5)
        return Worker(Spool(scene.path), SerialGroup(), info, options).run()

    def submit() -> list[object]:
        trusted = [] if scene.mode == "dropbox" else [scene.worker.uid]
        with Executor(spool=scene.path, trust=trusted, init_function=initial) as executor:
            first = executor.submit(pow, 2, 5)
            second = executor.submit(pow, first, 2)  # depends on the first
            values = [second.result(LIMIT), executor.submit(increased, 1).result(LIMIT), *executor.map(abs, [-1, 2])]
            late = executor.submit(pow, 2, 2)
            return [*values, late.cancel()]

    with ThreadPoolExecutor() as threads:
        working = threads.submit(in_account, scene.worker, serve, umask=0o077)
        assert in_account(scene.alice, submit, umask=0o077) == [1024, 43, 1, 2, True]
        assert working.result(LIMIT) == 0
    left = {name: scene.left(name) for name in ("waiting", "claimed", "failed", "tmp", "needs")}
    assert not any(left.values()), left
    assert [scene.left(name) for name in ("results", "outgoing", "sessions")] == [
        ["alices"],
        ["alices"],
        ["alices.json"],
    ]


def initial() -> dict[str, int]:
    """Return the preset arguments of a session."""
    return {"more": 42}


def increased(value: int, more: int) -> int:
    """Task with a preset argument."""
    return value + more


def test_queued_task_can_be_cancelled_by_its_submitter(scene: Scene) -> None:
    future = scene.submit()
    with scene.alice.acting():
        assert future.cancel()
    scene.work()
    assert not scene.runs()


def test_task_of_a_dead_worker_runs_again(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    future = scene.submit()
    with scene.worker.acting():
        claimer, name = scene.claimer()
        claimed = claimer.next()
        assert claimed is not None
        claimed.close()
    scene.clock.sleep(10)
    scene.work()
    scene.clock.sleep(10)
    scene.work()
    scene.collect()
    assert future.result(timeout=0) == "alice's own"
    assert f"worker {name} died" in messages(caplog)


def test_accounts_store_equal_objects_separately(scene: Scene) -> None:
    spools = {}
    for person in (scene.alice, scene.mallory):
        with person.acting(umask=0o077):
            spools[person] = Spool(scene.path)
            name = put_object(spools[person], b"the same", [], "writer")
    with scene.worker.acting():
        spool = Spool(scene.path)
        trust = scene.trust()
        assert bytes(read_object(spool, name, trust, scene.alice.uid).payload) == b"the same"
    forged = Path(spool.layout.object(name, scene.alice.uid))
    os.chown(forged, scene.mallory.uid, -1)
    with scene.worker.acting(), pytest.raises(NotTrusted, match=scene.mallory.name):
        read_object(spool, name, scene.trust(scene.mallory), scene.alice.uid)


def test_cached_results_are_shared_in_a_group_and_read_from_trusted_accounts_only(scene: Scene) -> None:
    key = "ab" * 32
    for person in (scene.alice, scene.mallory):
        with person.acting(umask=0o077):
            cache = cache_of(Spool(scene.path), Trust())
            assert cache.find(key) is None
            cache.keep(Entry(key=key), pickling.dumps(f"of {person.name}")[0], [])
            found = cache.find(key)
            assert found is not None and found[1] == f"of {person.name}"
    with scene.worker.acting():  # in a dropbox no account reads results of another
        of_alice = cache_of(Spool(scene.path), Trust([scene.alice.uid])).find(key)
        assert (of_alice is not None and of_alice[1] == f"of {scene.alice.name}") == (scene.mode == "group")
        assert cache_of(Spool(scene.path), Trust()).find(key) is None


def test_session_can_be_reopened_by_its_account_only(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    def back(resume: bool = False) -> Executor:
        trusted = [scene.worker.uid]
        return Executor(spool=scene.path, session=Session("sweep", detach=True, resume=resume), trust=trusted)

    with scene.alice.acting(), back() as exe:
        first = exe.submit(pow, 2, 3)
    scene.work()
    with scene.alice.acting(), back() as exe:
        second = exe.submit(pow, 2, 4)
        found = exe.futures()
        assert found[0].result(LIMIT) == 8
        seen = (
            [first, second] if scene.mode == "group" else [first]
        )  # in a dropbox only the owner can list queued tasks
        assert [each.task for each in found] == [each.task for each in seen]  # type: ignore[attr-defined]
        assert ("Cannot list tasks" in messages(caplog)) == (scene.mode == "dropbox")
    if scene.mode == "dropbox":
        with scene.alice.acting(), pytest.raises(SpoolDenied, match="Cannot resume"):
            back(resume=True)
    else:
        with scene.alice.acting(), back(resume=True) as exe:
            assert len(exe.futures()) == 2
    with scene.mallory.acting(), pytest.raises((NotTrusted, SpoolDenied), match="sweep"):
        back()


def test_tasks_of_an_untrusted_account_stay_and_are_counted_as_blocked(group: Scene) -> None:
    with group.people.bob.acting():
        trusting = SilentRegistration(
            Spool(group.path), info_of(ProcessId.of(os.getpid()), trust_users=(group.alice.uid,))
        )
    try:
        with group.mallory.acting():
            group.put(Inbox(Spool(group.path), group.clock, "mallorys"), os.mkdir, str(group.canary))
        group.work()
        assert not group.runs()
        with group.alice.acting():
            found = StatusCollector(Spool(group.path)).collect()
        [blocked] = found.blocked
        assert blocked.what.endswith(f"@{group.mallory.uid}") and blocked.count == 1
        assert f"no group trusts {group.mallory.name}" in blocked.why
    finally:
        with group.people.bob.acting():
            trusting.close()


def test_claims_are_shared_equally_by_users_not_by_submitters(scene: Scene) -> None:
    for person, submitters in ((scene.alice, 4), (scene.mallory, 1)):
        with person.acting():
            for number in range(submitters):
                inbox = Inbox(Spool(scene.path), scene.clock, f"of-{person.name}-{number}")
                for _ in range(10):
                    scene.put(inbox, pow, 2, 2)
    with scene.worker.acting():
        claimer, _ = scene.claimer(scene.mallory)
        claims = [claimer.next() for _ in range(20)]
        assert Counter(claim.owner for claim in claims if claim) == {scene.alice.uid: 10, scene.mallory.uid: 10}
        rest = [claimer.next() for _ in range(12)]
        assert set(Counter(claim.header.session for claim in rest if claim).values()) == {3}
        for claim in (*claims, *rest):
            assert claim is not None
            claim.close()


def test_trusting_a_group_trusts_its_members(group: Scene) -> None:
    future = group.submit()
    with group.worker.acting():
        assert Trust(groups=[group.people.project]).covers(group.alice.uid)
        assert not Trust(groups=[group.people.project]).covers(group.people.outsider.uid)
    group.work()
    group.collect()
    assert future.result(timeout=0) == "alice's own"


# ------------------------------------------------------------------------------- opening and creating


@pytest.mark.parametrize("name", [".", "ready", "results", "tmp"])
@pytest.mark.parametrize("change", ["mode", "owner", "link"])
def test_spool_with_directories_that_do_not_match_its_mode_is_not_opened(scene: Scene, name: str, change: str) -> None:
    path = scene.path / name
    if change == "mode":
        path.chmod(0o777)
    elif change == "owner":
        os.chown(path, scene.mallory.uid, -1)
    elif name != ".":
        path.rename(scene.public / "moved")
        path.symlink_to(scene.public / "moved")
    else:
        (path / "spool.json").chmod(0o666)
        path /= "spool.json"
    with scene.alice.acting(), pytest.raises(NotTrusted, match=f"do not match its mode \\({scene.mode}\\): {path}"):
        Spool(scene.path)


def test_permissions_of_a_new_spool_do_not_depend_on_the_umask(people: People, public: Path) -> None:
    os.chown(public, people.service.uid, people.service.gid)
    for umask in (0o000, 0o077):
        with people.service.acting(umask=umask):
            for mode in RIGHTS:
                path = public / f"{mode}-{umask}"
                group = None if mode == "private" else people.service.name
                Spool.create(path, mode=mode, group=group)
                assert stat.S_IMODE(path.stat().st_mode) == RIGHTS[mode].root
                for name in Layout.DIRECTORIES:
                    assert stat.S_IMODE((path / name).stat().st_mode) == RIGHTS[mode].of(name)


def test_mode_without_a_suitable_group_is_refused(people: People, public: Path) -> None:
    os.chown(public, people.service.uid, people.service.gid)
    with people.service.acting():
        for mode, name, words in (
            ("group", None, "needs a group"),
            ("dropbox", None, "needs a group"),
            ("dropbox", people.project, "has other members"),
            ("private", people.project, "has no group"),
            ("group", "no-such-group", "no group 'no-such-group'"),
        ):
            with pytest.raises(BadRequest, match=words):
                Spool.create(public / "spool", mode=mode, group=name)  # type: ignore[arg-type]
        with pytest.raises(SpoolDenied):  # the account is not in this group
            Spool.create(public / "spool", mode="group", group=people.project)
    with pytest.raises(BadRequest, match="Root cannot own"):
        Spool.create(public / "spool", mode="dropbox", group=people.service.name)


def test_workers_of_a_dropbox_must_run_as_its_owner(dropbox: Scene) -> None:
    with dropbox.alice.acting(), pytest.raises(SpoolDenied, match=f"run as its owner, {dropbox.owner.name}"):
        Registration(Spool(dropbox.path), info_of(dead_process()))
