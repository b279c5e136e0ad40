"""Callbacks in a forked child."""

from __future__ import annotations

import gc
import weakref

from spoolpool.system import fork
from tests.support.processes import in_fork


class Owner:
    """Object that records in which process its callback ran."""

    def __init__(self) -> None:
        self.forked = False

    def after_fork(self) -> None:
        self.forked = True


def test_the_callback_of_a_living_owner_runs_in_the_child_alone() -> None:
    owner = Owner()
    fork.call_in_child(owner, Owner.after_fork)
    assert in_fork(lambda: owner.forked) is True
    assert not owner.forked


def test_a_registered_owner_can_be_garbage_collected() -> None:
    owner = Owner()
    fork.call_in_child(owner, Owner.after_fork)
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None
    assert in_fork(lambda: "forked") == "forked"
