"""Shared filesystems of each kind, started once for all tests, with a submitter on client A."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sharedfs.mounts import KINDS, Place, placed


@pytest.fixture(scope="package", params=KINDS, ids=lambda kind: kind.name)
def filesystem(request: pytest.FixtureRequest) -> Iterator[Place]:
    with placed(request.param) as place:
        yield place


@pytest.fixture
def place(filesystem: Place) -> Iterator[Place]:
    """Started filesystem. Groups that a test starts end with the test."""
    yield filesystem
    filesystem.end_groups()
