"""Callbacks in a forked child process, where threads, locks and claims still belong to the parent."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_callbacks: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = weakref.WeakKeyDictionary()


def call_in_child(owner: T, callback: Callable[[T], object]) -> None:
    """Call ``callback(owner)`` in each process that is forked from this one while ``owner`` is alive.

    An owner has one callback, which must not refer to it: that would keep it alive.
    """
    _callbacks[owner] = callback


def _call_all() -> None:
    for owner, callback in list(_callbacks.items()):
        callback(owner)


os.register_at_fork(after_in_child=_call_all)
