"""Cancel requests, as the worker that claims the task treats them."""

from __future__ import annotations

from pathlib import Path

import pytest

from spoolpool.protocol import cancel
from spoolpool.system import files
from tests.support.fake_worker import Clock, Stage


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path / "stage", Clock.installed(monkeypatch))


def test_request_is_removed_with_the_commit_of_its_task(stage: Stage) -> None:
    """Not only at the collection: nobody may ever collect it."""
    inbox = stage.inbox()
    future = inbox.put(pow, 2, 3)
    cancel.request(stage.spool, future.task)
    stage.work()
    assert files.list_names(stage.spool.layout.cancel) == []
    inbox.look()
    assert future.cancelled()
