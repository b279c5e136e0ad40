"""Attacks by an account with access to the spool. In each, no foreign code runs and no task of another user is lost.

The attacker ``mallory`` is an untrusted member of the group; a dropbox accepts tasks from mallory, as from any account.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from spoolpool.client.futures import TaskFuture
from spoolpool.errors import NotTrusted, SpoolDenied
from spoolpool.format import envelope
from spoolpool.format.config import RetentionPolicy
from spoolpool.format.envelope import Buffer
from spoolpool.format.headers import TaskHeader
from spoolpool.format.layout import Layout
from spoolpool.format.names import (
    CANCELLED,
    TaskFile,
    bucket_name,
    new_submitter_id,
    new_task_id,
    new_worker_id,
    parse_lane,
)
from spoolpool.maintenance import check, garbage, repair
from spoolpool.protocol.claim import Claim
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.locks import try_lock
from tests.multiuser.accounts import Canary, People, Scene, messages
from tests.support.fake_worker import Inbox, outcome_of

pytestmark = pytest.mark.multiuser

Log = pytest.LogCaptureFixture

denied = pytest.raises(PermissionError)


def inbox_of(scene: Scene, name: str = "mallorys") -> Inbox:
    """Return a session of mallory."""
    with scene.mallory.acting():
        return Inbox(Spool(scene.path), scene.clock, name)


def drop(scene: Scene, content: object, **changes: object) -> Path:
    """Write a task file of mallory with a forged header, past the submitter code; return its path."""
    with scene.mallory.acting():
        spool = Spool(scene.path)
        spool.open_session("mallorys")
        name = new_task_id()
        lane = parse_lane(scene.lane)
        assert lane is not None
        header = TaskHeader(
            task=name,
            session="mallorys",
            lane=lane._replace(user=scene.mallory.uid).name,
            bucket=bucket_name(name, new_submitter_id()),
            spool=spool.config.id,
        )
        spool.make_directories(spool.layout.bucket(header.lane, header.bucket))
        path = scene.path / "ready" / header.lane / header.bucket / TaskFile(name, 1, 1).name
        said = msgspec.structs.replace(header, **changes)
        made = scene.path / "tmp" / name  # its group, set there, lets the service read it
        files.create(str(made), [content] if isinstance(content, bytes) else scene.forge(said, content), mode=0o640)
        made.rename(path)
    return path


def other_task_path(path: Path) -> Path:
    """Return the path of another task in the bucket of a queued task, sorted before it."""
    return path.with_name(TaskFile("000" + new_task_id()[3:], 1, 1).name)


# ------------------------------------------------------------------------------------- forged tasks


def test_task_of_an_untrusted_account_is_not_run(group: Scene) -> None:
    path = drop(group, Canary(group.canary))
    group.is_well()
    assert path.exists()


def test_task_forged_in_the_bucket_of_another_account_is_not_run(group: Scene, caplog: Log) -> None:
    future = group.submit()
    waiting = group.file_of(future)
    with group.mallory.acting():
        forged = other_task_path(waiting)
        header = msgspec.structs.replace(future.header, task=forged.name[:29])
        files.create(str(forged), group.forge(header, Canary(group.canary)), mode=0o640)
    group.work(group.mallory)
    group.collect()
    assert future.result(timeout=0) == "alice's own"
    assert f"belongs to {group.mallory.name}, and its lane to {group.alice.name}" in messages(caplog)
    assert forged.exists() and not group.canary.exists()


def test_tasks_in_a_dropbox_are_inaccessible_to_other_submitters(dropbox: Scene) -> None:
    path = dropbox.file_of(dropbox.submit())
    attempts: list[Callable[[], object]] = [
        path.read_bytes,
        path.unlink,
        lambda: path.write_bytes(b""),
        lambda: path.rename(path.with_name("moved")),
        lambda: path.parent.parent.rename(dropbox.path / "ready" / "moved"),
        lambda: os.listdir(path.parent.parent),
        lambda: (dropbox.path / "results" / "alices").rename(dropbox.path / "results" / "moved"),
        (dropbox.path / "outgoing" / "alices").rmdir,
        lambda: os.listdir(dropbox.path / "outgoing" / "alices"),
        (dropbox.path / "spool.json").unlink,
    ]
    closed = [name for name in (*Layout.DIRECTORIES, *Layout.ON_DEMAND) if name != "workers"]
    attempts += [lambda name=name: os.listdir(dropbox.path / name) for name in closed]  # type: ignore[misc]
    with dropbox.mallory.acting():
        for attempt in attempts:
            with denied:
                attempt()
    dropbox.is_well()


def test_lane_created_by_another_account_is_refused_by_worker_and_submitter(scene: Scene, caplog: Log) -> None:
    with scene.mallory.acting(umask=0):
        bucket = scene.path / "ready" / scene.lane / bucket_name(new_task_id(), "00000000")
        bucket.mkdir(parents=True)
        name = new_task_id()
        header = TaskHeader(task=name, session="alices", lane=scene.lane, bucket=bucket.name)
        files.create(str(bucket / TaskFile(name, 1, 1).name), scene.forge(header, Canary(scene.canary)), mode=0o644)
    scene.work(scene.mallory)
    assert not scene.canary.exists()
    words = f"{scene.lane} belongs to {scene.mallory.name} and should belong to {scene.alice.name}"
    assert words in messages(caplog)
    with pytest.raises(NotTrusted, match=words):
        scene.submit()
    assert not scene.left("tmp")


# ----------------------------------------------------------------------------------- forged results


def plant_result(scene: Scene, future: TaskFuture) -> str:
    """Forge an outcome for a task of alice as mallory, in outgoing/ and results/; return the name of both files."""
    task_file = future.task_file.claimed_by(new_worker_id())
    with scene.mallory.acting():
        content = scene.forge(future.header, Canary(scene.canary))
        files.create(str(scene.path / "outgoing" / "alices" / task_file.name), content, mode=0o644)
        files.create(str(scene.path / "results" / "alices" / task_file.name), content, mode=0o644)
    return task_file.name


def test_forged_result_is_not_unpickled_and_the_error_names_its_account(group: Scene) -> None:
    future = group.submit()
    name = plant_result(group, future)
    group.collect()
    error = future.exception(timeout=0)
    assert isinstance(error, NotTrusted) and f"belongs to {group.mallory.name}" in str(error)
    assert not group.canary.exists()
    assert name in group.left("results/alices") and name in group.left("outgoing/alices")


def test_only_the_service_can_write_results_in_a_dropbox(dropbox: Scene) -> None:
    future = dropbox.submit()
    with denied:
        plant_result(dropbox, future)
    dropbox.is_well()


def test_forged_outcome_of_a_dead_worker_is_not_committed(group: Scene, caplog: Log) -> None:
    future = group.submit()
    with group.worker.acting():
        claimer, _ = group.claimer()
        taken = claimer.next()
        assert taken is not None
        taken.close()
    with group.mallory.acting():
        content = outcome_of(taken.header, taken.task_file)
        files.create(str(group.path / "outgoing" / "alices" / taken.task_file.name), content, mode=0o644)
    group.work()
    group.collect()
    assert future.result(timeout=0) == "alice's own"
    assert f"{taken.task_file.name} is not of the worker" in messages(caplog)


def test_worker_replaces_a_foreign_file_at_the_path_of_its_outcome(
    group: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    future = group.submit()
    real = Claim.write_outcome
    planted = []

    def with_forgery(claim: Claim, parts: list[Buffer]) -> None:
        if not planted:
            with group.mallory.acting():
                planted.append(claim.task_file.name)
                content = group.forge(future.header, Canary(group.canary))
                files.create(
                    str(group.path / "outgoing" / claim.header.session / claim.task_file.name), content, mode=0o644
                )
        real(claim, parts)

    monkeypatch.setattr(Claim, "write_outcome", with_forgery)
    group.work()
    group.collect()
    assert planted and future.result(timeout=0) == "alice's own"
    assert not group.canary.exists()


def test_cancelled_task_file_counts_only_if_the_submitter_owns_it(group: Scene, caplog: Log) -> None:
    future = group.submit()
    with group.mallory.acting():
        (group.path / "results" / "alices" / future.task_file.claimed_by(CANCELLED).name).touch()
    group.collect()
    assert not future.done()
    assert f"marks the task as cancelled: it belongs to {group.mallory.name}" in messages(caplog)


@pytest.mark.parametrize("requester", ["mallory", "alice"])
def test_cancel_request_counts_only_if_the_submitter_owns_it(scene: Scene, requester: str, caplog: Log) -> None:
    future = scene.submit()
    with getattr(scene, requester).acting():
        (scene.path / "cancel" / future.task).touch()
    scene.work()
    scene.collect()
    assert future.cancelled() is (requester == "alice")
    if requester == "mallory":
        assert future.result(timeout=0) == "alice's own"
        assert f"{scene.mallory.name} asks to cancel a task of {scene.alice.name}" in messages(caplog)


# ------------------------------------------------------------------------------------------- replay


def test_replayed_task_of_an_ended_session_is_not_run(group: Scene, caplog: Log) -> None:
    kept = group.public / "kept"
    kept.mkdir()
    os.chown(kept, group.mallory.uid, -1)
    first, second = group.submit(), group.submit()
    path = group.file_of(second)
    with group.mallory.acting():
        path.rename(kept / path.name)
    with group.worker.acting():
        claimer, _ = group.claimer()
        taken = claimer.next()  # from now on this worker keeps the directories of the session open
        assert taken is not None and taken.header.task == first.task
        taken.write_outcome(outcome_of(taken.header, taken.task_file))
        taken.commit()
        taken.close()
    group.collect()
    with group.alice.acting():
        group.inbox.close()
    assert not group.left("results")
    with group.mallory.acting(umask=0):
        path.parent.mkdir(exist_ok=True)
        (kept / path.name).rename(path)
    with group.worker.acting():
        assert claimer.next() is None
    assert "for the session alices" in messages(caplog) and "is not open (any more)" in messages(caplog)
    assert [name for name in group.left("failed") if name.startswith(second.task)], "it is kept"
    assert not group.runs()


def test_task_of_another_spool_is_not_run(group: Scene, caplog: Log) -> None:
    other = group.make("other")
    path = group.file_of(group.submit())
    with group.alice.acting():
        spool = Spool(other)
        Inbox(spool, group.clock, "alices")
        spool.make_directories(spool.layout.bucket(group.lane, path.parent.name))
    with group.mallory.acting():
        path.rename(other / path.relative_to(group.path))
    group.path = other
    group.work()
    assert f"was made for the spool '{group.inbox.spool.config.id}'" in messages(caplog)
    assert not group.runs()


def test_copy_of_a_task_belongs_to_the_copying_account_and_is_not_run(group: Scene, caplog: Log) -> None:
    future = group.submit()
    path = group.file_of(future)
    with group.mallory.acting():
        copy = other_task_path(path)
        copy.write_bytes(path.read_bytes())
    group.work()
    assert f"{copy.name} belongs to {group.mallory.name}" in messages(caplog)
    assert len(list(group.traces.iterdir())) == 1


# -------------------------------------------------------------- files swapped between open and read


def test_task_swapped_after_it_was_opened_is_not_run(group: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    future = group.submit()
    path = group.file_of(future)
    forged = group.path / "tmp" / new_task_id()
    with group.mallory.acting():
        files.create(str(forged), group.forge(future.header, Canary(group.canary)), mode=0o640)

    def swap(fd: int) -> object:
        if forged.exists():
            with group.mallory.acting():
                forged.rename(path)
        return try_lock(fd)

    monkeypatch.setattr("spoolpool.protocol.claimer.try_lock", swap)
    group.work()
    assert not forged.exists() and not group.canary.exists()
    group.collect()
    assert future.result(timeout=0) == "alice's own"


def test_result_swapped_after_it_was_opened_is_not_unpickled(group: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    future = group.submit()
    group.work()
    swapped = []
    real = Trust.check

    def swap(self: Trust, fd: int, path: str) -> os.stat_result:
        found = real(self, fd, path)
        with group.mallory.acting():
            os.unlink(path)
            files.create(path, group.forge(future.header, Canary(group.canary)), mode=0o644)
        swapped.append(path)
        return found

    monkeypatch.setattr(Trust, "check", swap)
    group.collect(rounds=1)
    assert swapped and future.result(timeout=0) == "alice's own"
    assert not group.canary.exists()


# --------------------------------------------------------------------------------------------- links


def precious(scene: Scene, names: list[str]) -> dict[Path, bytes]:
    """Create files of the worker and of alice, with names that also occur in a spool; return their content."""
    found = {}
    for person in (scene.worker, scene.alice):
        home = scene.public / f"home-{person.name}"
        home.mkdir(exist_ok=True)
        for name in (*names, "precious"):
            (home / name).write_text(person.name)
            os.chown(home / name, person.uid, person.gid)
            found[home / name] = (home / name).read_bytes()
        os.chown(home, person.uid, person.gid)
    return found


def links(future: TaskFuture) -> dict[str, str]:
    """Return paths in the spool for planted links, each with the kind of its target: file or directory."""
    task_file, worker, bucket = future.task_file, new_worker_id(), future.header.bucket
    another = task_file._replace(task="000" + task_file.task[3:])
    lane = future.header.lane
    return {
        f"tmp/{another.task}": "file",
        f"ready/q.{lane.partition('.')[2]}": "directory",
        f"ready/{lane}/000{bucket[3:]}": "directory",
        f"ready/{lane}/{bucket}/{another.name}": "file",
        f"waiting/{another.name}": "file",
        f"claimed/{another.claimed_by(worker).name}": "file",
        "outgoing/other": "directory",
        f"outgoing/alices/{another.claimed_by(worker).name}": "file",
        "results/other": "directory",
        f"results/alices/{another.claimed_by(worker).name}": "file",
        f"failed/{another.claimed_by(worker).name}": "file",
        f"cancel/{another.task}": "file",
        f"objects/{'0' * 32}": "file",
        "sessions/other.json": "file",
        f"workers/{worker}": "directory",
        f"journal/{worker}.jsonl": "file",
        f"logs/{another.task}.0": "file",
        f"jobs/{worker}.json": "file",
    }


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_links_in_every_directory_are_not_followed(scene: Scene, kind: str) -> None:
    future = scene.submit()
    planted = links(future)
    task_file = future.task_file.claimed_by(new_worker_id()).name
    safe = precious(scene, ["info.json", "beat", "stop", "error", task_file, future.task_file.name])
    for number, (name, what) in enumerate(planted.items()):
        home = scene.public / f"home-{(scene.alice, scene.worker)[number % 2].name}"
        with scene.mallory.acting():
            at = scene.path / name
            # as root: most systems forbid hard links to files of other accounts (protected_hardlinks), some allow them
            with contextlib.suppress(PermissionError), contextlib.ExitStack() as stack:
                if kind == "hard":
                    may = os.access(at.parent, os.W_OK | os.X_OK, effective_ids=True)
                    os.seteuid(0)
                    stack.callback(os.seteuid, scene.mallory.uid)
                    if may and what == "file":
                        os.link(home / "precious", at)
                else:
                    at.symlink_to(home / "precious" if what == "file" else home)
    scene.work()
    scene.collect()
    assert future.result(timeout=0) == "alice's own"
    with scene.owner.acting():
        spool = Spool(scene.path)
        repair.repair(spool, check.check(spool), seconds=0.0)
        now = RetentionPolicy(results=0.0, sessions=0.0, unfinished=0.0, journals=0.0, logs=0.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Spool, "server_time", lambda _: 9e9)
            garbage.remove(spool, garbage.find_garbage(spool, now))
    with scene.worker.acting():
        recovery = Recovery(Spool(scene.path))
        for _ in range(4):
            recovery.round()
            scene.clock.sleep(1.0)
    assert {path: path.read_bytes() for path in safe} == safe
    assert {path for home in {each.parent for each in safe} for path in home.iterdir()} == set(safe)
    with scene.alice.acting():
        # a submitter does this every few seconds; it creates directories again that were removed as garbage
        scene.inbox.collector.check_spool()
    scene.is_well()


@pytest.mark.parametrize("directory", ["results", "outgoing"])
def test_nothing_is_written_through_a_session_directory_replaced_by_a_link(
    group: Scene, directory: str, caplog: Log
) -> None:
    future = group.submit()
    homes = [group.public / person.name for person in (group.worker, group.alice)]
    for home, person in zip(homes, (group.worker, group.alice), strict=True):
        home.mkdir()
        os.chown(home, person.uid, person.gid)
    path = group.path / directory / "alices"
    for home in homes:
        with group.mallory.acting():
            path.rename(group.path / directory / f"gone-{home.name}")
            path.symlink_to(home)
        group.work()
        assert f"{path} is a symbolic link" in messages(caplog)
        assert not any(os.listdir(each) for each in homes)
    assert [name for name in group.left("failed") if name.startswith(future.task)], "it is kept"
    with group.alice.acting(), pytest.raises(NotTrusted, match="is a symbolic link"):
        group.inbox.collector.check_spool()
    assert not any(os.listdir(each) for each in homes)


def test_task_cannot_write_its_result_into_the_inbox_of_another_account(dropbox: Scene, caplog: Log) -> None:
    drop(dropbox, (os.getuid, (), {}), session="alices")
    dropbox.work()
    assert f"alices belongs to {dropbox.alice.name} and should belong to {dropbox.mallory.name}" in messages(caplog)
    assert not dropbox.left("results/alices") and not dropbox.left("outgoing/alices")
    dropbox.is_well()


# ------------------------------------------------------------------------------- FIFOs and devices


def test_fifos_and_devices_block_no_process(group: Scene) -> None:
    future = group.submit()
    waiting = group.file_of(future)
    fifos = [
        other_task_path(waiting),
        group.path / "claimed" / future.task_file._replace(claim=2).claimed_by(new_worker_id()).name,
        group.path / "waiting" / future.task_file._replace(claim=2).name,
        group.path / "failed" / future.task_file._replace(claim=3).claimed_by(new_worker_id()).name,
        group.path / "sessions" / "other.json",
        group.path / "journal" / "other.jsonl",
        group.path / "workers" / new_worker_id() / "info.json",
        group.path / "ready" / "q.r1t1g0.py3.11@0",
    ]
    device = other_task_path(waiting)
    with group.mallory.acting():
        fifos[-2].parent.mkdir()
        for each in fifos:
            os.mkfifo(each)
    with contextlib.suppress(PermissionError):  # some containers forbid device files
        os.mknod(device, 0o660 | stat.S_IFCHR, os.makedev(1, 5))
        os.chown(device, group.mallory.uid, -1)
    group.work(group.mallory)
    group.collect()
    assert future.result(timeout=0) == "alice's own"
    with group.owner.acting():
        check.check(Spool(group.path))
    group.is_well()


# ------------------------------------------------------------------------------- hostile contents


def test_paths_in_a_header_are_refused_as_names(dropbox: Scene, caplog: Log) -> None:
    for field in ("session", "lane", "bucket", "init", "task"):
        for name in ("../../x", "/etc/passwd", "..", "a/b", "x\n"):
            drop(dropbox, Canary(dropbox.canary), **{field: name})
            dropbox.work()
            assert f"has the invalid name {field} {name!r}" in messages(caplog)
    assert not dropbox.canary.exists()
    assert len(dropbox.left("failed")) == 25
    dropbox.is_well()


PREFIX = struct.Struct("<8sHHIQQ")


@pytest.mark.parametrize(
    "lengths",
    [
        (0, 1 << 31, 0, None),
        (0, 10, 1 << 62, None),
        (65535, 10, 10, None),
        (0, 10, 10, 1 << 62),
        (2, 10, 10, None, (1 << 63) - 1, (1 << 63) + 5),
    ],
    ids=["header", "pickle", "buffers", "whole", "overflow"],
)
def test_lengths_beyond_the_end_of_a_file_are_refused(
    dropbox: Scene, lengths: tuple[int | None, ...], caplog: Log
) -> None:
    count, header, payload, total, *buffers = lengths
    content = PREFIX.pack(envelope.MAGIC, 1, count, header, payload, 4096 if total is None else total)
    content += struct.pack(f"<{len(buffers)}Q", *buffers)
    drop(dropbox, content.ljust(4096, b"\0"))
    dropbox.work()
    assert len(dropbox.left("failed")) == 1
    assert any(words in messages(caplog) for words in ("should have", "The checksum of"))
    dropbox.is_well()


def test_sparse_file_of_ten_gibibytes_is_not_read(scene: Scene, caplog: Log) -> None:
    path = drop(scene, PREFIX.pack(envelope.MAGIC, 1, 0, 10, 10, 100))
    os.truncate(path, 10 << 30)
    future = scene.submit()
    if scene.mode == "group":  # also a result
        name = plant_result(scene, future)
        os.truncate(scene.path / "outgoing" / "alices" / name, 10 << 30)
        scene.collect()
        assert isinstance(future.exception(timeout=0), NotTrusted)
    scene.work(scene.mallory)
    assert "should have 100 bytes and has 10737418240" in messages(caplog)
    scene.is_well()


# --------------------------------------------------------------------------------------------- junk


def test_junk_of_one_account_does_not_block_tasks_of_others(dropbox: Scene) -> None:
    path = drop(dropbox, b"junk")
    with dropbox.mallory.acting():
        for number in range(600):
            path.with_name(TaskFile(f"000-{number:014x}-0000000000", 1, 1).name).touch()
            path.with_name(f"core.{number}").touch()
        for number in range(100):
            (dropbox.path / "ready" / f"junk-{number}").mkdir()
            (dropbox.path / "tmp" / f"junk-{number}").touch()
            (dropbox.path / "cancel" / f"junk-{number}").touch()
    future = dropbox.submit()
    dropbox.work(tasks=1)
    dropbox.collect()
    assert future.result(timeout=0) == "alice's own"
    assert sum(name.endswith(".000001.01") for name in os.listdir(path.parent)) > 400, "most of it was not looked at"


def test_bucket_without_claimable_tasks_does_not_block_tasks_of_others(group: Scene, caplog: Log) -> None:
    path = drop(group, Canary(group.canary))
    path.parent.chmod(0o2750)
    future = group.submit()
    group.work(group.mallory)
    group.collect()
    assert future.result(timeout=0) == "alice's own"
    assert f"{path} cannot be claimed" in messages(caplog)


def test_junk_in_a_bucket_does_not_block_its_tasks(group: Scene) -> None:
    future = group.submit()
    waiting = group.file_of(future)
    with group.mallory.acting():
        for number in range(1000):
            waiting.with_name(TaskFile(f"000-{number:014x}-0000000000", 1, 1).name).touch()
    group.work(seconds=5.0)
    group.collect()
    assert future.result(timeout=0) == "alice's own"


# ---------------------------------------------------------------------------------- missing rights


def test_error_for_an_outsider_names_the_required_group(group: Scene) -> None:
    with group.people.outsider.acting(), pytest.raises(SpoolDenied, match=f"group {group.people.project}") as error:
        Spool(group.path)
    assert group.people.outsider.name in str(error.value)


def test_error_for_a_member_says_that_its_process_lacks_the_group(group: Scene) -> None:
    future = group.submit()
    bob = group.people.bob
    lost = type(bob)(bob.name, bob.uid, bob.gid)
    with pytest.raises(SpoolDenied, match="this node does not know it, or the launcher") as error:
        group.work(by=lost)
    assert group.people.project in str(error.value)
    group.work()
    group.collect()
    assert future.result(timeout=0) == "alice's own"


def test_spool_is_not_created_where_files_of_root_belong_to_another_account(people: People, public: Path) -> None:
    squashed = public / "squashed"
    squashed.mkdir()
    os.chown(squashed, 65534, 65534)
    with pytest.raises(NotTrusted, match=r"belongs to nobody.* runs as root.*root squash"):
        Spool.create(squashed)


def test_task_files_of_the_account_nobody_are_not_run(group: Scene, caplog: Log) -> None:
    path = drop(group, Canary(group.canary))
    os.chown(path, 65534, -1)
    group.work(group.mallory)
    assert "belongs to nobody" in messages(caplog)
    assert path.exists() and not group.canary.exists()


def test_result_of_an_untrusted_account_is_an_error_that_names_it(group: Scene) -> None:
    with group.alice.acting():
        group.inbox.collector.delivery._accept = Trust()
    future = group.submit()
    group.work()
    group.collect()
    error = future.exception(timeout=0)
    assert isinstance(error, NotTrusted) and f"belongs to {group.worker.name}" in str(error)
