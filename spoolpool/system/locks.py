"""File locks as evidence: the holder of a lock is alive. The safety of the protocol never depends on them."""

from __future__ import annotations

import errno
import functools
from enum import Enum
from types import ModuleType

UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF})
"""Errors of mounts without locks: NFS without lockd (ENOLCK), Lustre without ``flock`` (ENOSYS). NFS answers EBADF for
a descriptor that is only open for reading."""


class Lock(Enum):
    """Result of an attempt to lock a descriptor."""

    TAKEN = "taken"
    """This process holds the lock until the descriptor is closed."""
    BUSY = "busy"
    """A live process, on this or another host, holds the lock."""
    NONE = "none"
    """The filesystem has no locks here: the lease alone decides."""


@functools.cache
def _library() -> ModuleType:
    import filelock  # takes 30 ms, and a submitter does not need it

    return filelock


def try_lock(fd: int) -> Lock:
    """Try to take the exclusive lock of a whole file, without waiting.

    On NFS, ``fd`` must be open for writing. A forked child inherits the lock with the descriptor and must close it.
    """
    try:
        return Lock.TAKEN if _library().lock_descriptor(fd, blocking=False) else Lock.BUSY
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return Lock.NONE
        raise
