"""Bindings of inotify(7): three functions of the C library.

Raises ``AttributeError`` or ``OSError`` at its import where the C library has none of them.
"""

from __future__ import annotations

import ctypes
import os

_NEW_NAMES = 0x100 | 0x80  # IN_CREATE, IN_MOVED_TO

_library = ctypes.CDLL(None)
_init, _add, _remove = _library.inotify_init1, _library.inotify_add_watch, _library.inotify_rm_watch
_add.argtypes = ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32


def open_queue() -> int:
    """Return the descriptor of a new queue of events, which does not block; -1 at the user's limit of queues."""
    return int(_init(os.O_NONBLOCK | os.O_CLOEXEC))


def add_watch(queue: int, directory: str) -> int:
    """Watch a directory for new names; return the number of the watch, or -1 if it cannot be watched."""
    return int(_add(queue, os.fsencode(directory), _NEW_NAMES))


def remove_watch(queue: int, watch: int) -> None:
    """End a watch; harmless if its directory is gone."""
    _remove(queue, watch)
