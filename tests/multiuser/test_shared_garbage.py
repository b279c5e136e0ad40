"""Garbage collection in spools of several accounts, where only its account can make the directories of a session."""

from __future__ import annotations

import pytest

from spoolpool.format.config import RetentionPolicy
from spoolpool.maintenance.garbage import find_garbage, remove
from spoolpool.protocol import sessions
from spoolpool.protocol.spool import Spool
from tests.multiuser.accounts import Scene

pytestmark = pytest.mark.multiuser

AT_ONCE = RetentionPolicy(results=0.0, sessions=0.0, unfinished=0.0, journals=0.0, logs=0.0, cache=0.0)


def collect_garbage(scene: Scene) -> dict[str, str]:
    """Collect garbage as the owner, long after everything was written; return what stays, with the reasons."""
    stay: dict[str, str] = {}
    with scene.owner.acting(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spool, "server_time", lambda _: 9e9)
        spool = Spool(scene.path)
        remove(spool, find_garbage(spool, AT_ONCE, stay.__setitem__), stay.__setitem__)
    return stay


def test_waiting_task_whose_submitter_has_ended_runs_after_a_collection(scene: Scene) -> None:
    future = scene.submit()
    with scene.alice.acting():
        sessions.unregister(scene.inbox.spool, scene.inbox.entry)
    collect_garbage(scene)
    assert scene.left("results") == scene.left("outgoing") == ["alices"]
    scene.work()
    scene.collect()
    assert future.result(timeout=0) == "alice's own"


def test_outcome_of_a_live_submitter_stays(scene: Scene) -> None:
    future = scene.submit()
    scene.work()
    stay = collect_garbage(scene)
    assert "is alive" in stay["results/alices"]
    scene.collect()
    assert future.result(timeout=0) == "alice's own"


def test_unfinished_write_of_a_live_submitter_stays(scene: Scene) -> None:
    future = scene.submit()
    path = scene.path / "tmp" / future.task
    with scene.alice.acting():
        waiting = scene.file_of(future).rename(path)
    stay = collect_garbage(scene)
    assert waiting.exists() and "is alive" in stay[f"tmp/{future.task}"]
