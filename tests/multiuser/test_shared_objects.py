"""Stored objects in spools of several accounts: trust in their owners, forgery and removal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spoolpool.calls import pickling
from spoolpool.calls.pickling import ObjectRef
from spoolpool.errors import DependencyFailed, NotTrusted
from spoolpool.format import envelope
from spoolpool.format.config import RetentionPolicy
from spoolpool.maintenance.garbage import find_garbage, remove
from spoolpool.protocol.objects import object_id, put_object
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from tests.multiuser.accounts import Canary, Scene, leave_trace
from tests.support.fake_worker import Inbox

pytestmark = pytest.mark.multiuser


def tell(text: str, trace: str) -> str:
    """Task that leaves a trace and returns its argument."""
    leave_trace(trace)
    return text


def given(scene: Scene, value: object) -> ObjectRef:
    """Store a value as alice."""
    with scene.alice.acting():
        return scene.inbox.put_object(value)


def trace(scene: Scene) -> str:
    return str(scene.traces / os.urandom(3).hex())


def test_object_is_readable_with_any_umask_and_removed_with_its_session(scene: Scene) -> None:
    with scene.alice.acting(umask=0o077):
        ref = scene.inbox.put_object("alice's object")
    assert ref.name.endswith(f"@{scene.alice.uid}")
    future = scene.submit(tell, ref, trace(scene))
    scene.work(umask=0o077)
    scene.collect()
    assert future.result(timeout=0) == "alice's object"
    with scene.alice.acting():
        scene.inbox._end()
    assert not scene.left("needs")
    if scene.mode == "dropbox":  # alice cannot list the leases of others, so the owner collects it
        with scene.owner.acting():
            spool = Spool(scene.path)
            remove(spool, find_garbage(spool, RetentionPolicy(unfinished=-1.0)))
    assert not scene.left("objects") and not scene.left("tmp")


def test_object_that_its_account_put_aside_is_found_by_the_worker_of_another(scene: Scene) -> None:
    ref = given(scene, "aside")
    future = scene.submit(tell, ref, trace(scene))
    path = scene.path / "objects" / ref.name
    with scene.alice.acting():
        path.rename(path.with_name(f"{ref.name}.0123abcd"))
    scene.work()
    scene.collect()
    assert future.result(timeout=0) == "aside"
    assert path.stat().st_uid == scene.alice.uid


def test_task_of_another_account_that_cannot_be_read_keeps_all_objects(scene: Scene) -> None:
    ref = given(scene, "needed")
    scene.submit(tell, ref, trace(scene))
    with scene.alice.acting():
        scene.inbox.detach()
    [path] = [each for each in (scene.path / "ready").rglob("*") if each.is_file()]
    path.chmod(0)
    with scene.owner.acting():
        spool = Spool(scene.path)
        found = find_garbage(spool, RetentionPolicy(unfinished=-1.0))
        assert not [each for each in found if each.path.startswith(("objects/", "needs/"))]


def test_forged_object_is_not_unpickled(scene: Scene) -> None:
    ref = given(scene, "alice's own")
    path = scene.path / "objects" / ref.name
    payload, _ = pickling.dumps(Canary(scene.canary))
    path.unlink()
    with scene.mallory.acting(umask=0):
        path.write_bytes(b"".join(bytes(part) for part in envelope.pack(b"{}", payload)))
        path.chmod(0o644)
    future = scene.submit(tell, ref, trace(scene))
    scene.work(scene.mallory)  # even if the worker trusts mallory
    scene.collect()
    error = future.exception(timeout=0)
    assert isinstance(error, NotTrusted) and scene.mallory.name in str(error)
    with scene.alice.acting(), pytest.raises(NotTrusted, match=scene.mallory.name):
        scene.inbox.put_object("alice's own")
    path.unlink()
    scene.is_well()


def test_object_swapped_for_another_of_the_same_account_is_not_unpickled(group: Scene) -> None:
    ref, other = given(group, "wanted"), given(group, "another")
    future = group.submit(tell, ref, trace(group))
    with group.mallory.acting():  # a member may rename objects of other members
        wanted = group.path / "objects" / ref.name
        wanted.unlink()
        (group.path / "objects" / other.name).rename(wanted)
    group.work()
    group.collect()
    assert "does not match its name" in str(future.exception(timeout=0))
    assert not group.runs()


def test_object_of_another_account_is_read_only_if_the_worker_trusts_that_account(group: Scene) -> None:
    with group.mallory.acting():
        inbox = Inbox(Spool(group.path), group.clock, "mallorys")
        ref = inbox.put_object("mallory's")
    futures = []
    for trusted in ((), (group.mallory,)):
        futures.append(group.submit(tell, ref, trace(group)))
        group.work(*trusted)
    group.collect()
    refused, read = futures
    assert isinstance(refused.exception(timeout=0), NotTrusted)
    assert read.result(timeout=0) == "mallory's"


def test_object_stored_by_another_account_first_does_not_replace_ones_own(scene: Scene) -> None:
    content = pickling.dumps("the same")
    with scene.mallory.acting():
        put_object(Spool(scene.path), *content, "writer")
    ref = given(scene, "the same")
    assert sorted(scene.left("objects")) == sorted(
        f"{object_id(*content)}@{uid}" for uid in (scene.alice.uid, scene.mallory.uid)
    )
    with scene.mallory.acting(), pytest.raises((NotTrusted, PermissionError)):
        Trust().check(os.open(Path(scene.path, "objects", ref.name), os.O_RDONLY), ref.name)


def test_object_removed_by_a_member_fails_the_call_and_nothing_else(group: Scene) -> None:
    ref = given(group, "alice's")
    future = group.submit(tell, ref, trace(group))
    with group.mallory.acting():
        for path in (group.path / "needs" / "alices").iterdir():
            path.unlink()
        (group.path / "objects" / ref.name).unlink()
    group.work()
    group.collect()
    assert isinstance(future.exception(timeout=0), DependencyFailed)
    group.is_well()
