"""Objects in spools that several accounts use: whose are read, and what a stranger can do about them."""

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
from tests.multiuser.accounts import Canary, Scene, who
from tests.support.fake_worker import Inbox

pytestmark = pytest.mark.multiuser


def tell(text: str, trace: str) -> str:
    """A task: returns what it was given."""
    who(trace)
    return text


def given(scene: Scene, value: object) -> ObjectRef:
    """Let alice put something."""
    with scene.alice.acting():
        return scene.inbox.put_object(value)


def trace(scene: Scene) -> str:
    return str(scene.traces / os.urandom(3).hex())


def test_an_object_goes_round_whatever_the_umask_is_and_goes_with_its_session(scene: Scene) -> None:
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
    if scene.mode == "dropbox":  # where alice cannot see who else holds it, its owner collects it
        with scene.owner.acting():
            spool = Spool(scene.path)
            remove(spool, find_garbage(spool, RetentionPolicy(unfinished=-1.0)))
    assert not scene.left("objects") and not scene.left("tmp")


def test_a_forged_object_in_the_place_of_ones_own_is_not_unpickled(scene: Scene) -> None:
    ref = given(scene, "alice's own")
    path = scene.path / "objects" / ref.name
    payload, _ = pickling.dumps(Canary(scene.canary))
    path.unlink()
    with scene.mallory.acting(umask=0):
        path.write_bytes(b"".join(bytes(part) for part in envelope.pack(b"{}", payload)))
        path.chmod(0o644)
    future = scene.submit(tell, ref, trace(scene))
    scene.work(scene.mallory)  # although the worker trusts her
    scene.collect()
    error = future.exception(timeout=0)
    assert isinstance(error, NotTrusted) and scene.mallory.name in str(error)
    with scene.alice.acting(), pytest.raises(NotTrusted, match=scene.mallory.name):
        scene.inbox.put_object("alice's own")
    path.unlink()
    scene.is_well()


def test_an_object_that_is_swapped_for_another_one_of_the_same_account_is_not_unpickled(group: Scene) -> None:
    ref, other = given(group, "wanted"), given(group, "another")
    future = group.submit(tell, ref, trace(group))
    with group.mallory.acting():  # a member may rename what others have put
        wanted = group.path / "objects" / ref.name
        wanted.unlink()
        (group.path / "objects" / other.name).rename(wanted)
    group.work()
    group.collect()
    assert "does not match its name" in str(future.exception(timeout=0))
    assert not group.runs()


def test_an_object_of_another_account_is_read_if_the_worker_trusts_that_account(group: Scene) -> None:
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


def test_whoever_makes_an_object_under_the_name_of_anothers_content_makes_his_own(scene: Scene) -> None:
    content = pickling.dumps("the same")
    with scene.mallory.acting():
        put_object(Spool(scene.path), *content, "writer")
    ref = given(scene, "the same")
    assert sorted(scene.left("objects")) == sorted(
        f"{object_id(*content)}@{uid}" for uid in (scene.alice.uid, scene.mallory.uid)
    )
    with scene.mallory.acting(), pytest.raises((NotTrusted, PermissionError)):
        Trust().check(os.open(Path(scene.path, "objects", ref.name), os.O_RDONLY), ref.name)


def test_a_member_who_removes_an_object_makes_a_call_fail_and_nothing_worse(group: Scene) -> None:
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
