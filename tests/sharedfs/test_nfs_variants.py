"""A spool on NFS with mount options and rights that other sites use, under failures of nodes and server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sharedfs.chaos import MUST_BE_ZERO, Chaos
from tests.sharedfs.mounts import NFS_VARIANTS, Kind, Place, placed

pytestmark = [pytest.mark.sharedfs, pytest.mark.slow]


@pytest.fixture(params=NFS_VARIANTS, ids=lambda kind: kind.name)
def variant(request: pytest.FixtureRequest) -> Iterator[Place]:
    kind: Kind = request.param
    with placed(kind) as place:
        yield place
        place.end_groups()


def test_each_task_has_one_outcome_under_failures_of_nodes_and_server(variant: Place) -> None:
    """Clients are killed, cut off and stopped, and the server is restarted and stopped."""
    counts = Chaos(variant, seed=2).run(seconds=0)
    print(counts)
    assert {name: counts[name] for name in MUST_BE_ZERO} == dict.fromkeys(MUST_BE_ZERO, 0)
    assert counts["tasks"] > 0
    assert counts["stopped nodes"] and counts["stopped servers"]
