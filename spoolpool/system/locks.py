"""Locks as witnesses: who holds one lives. The safety of the protocol never depends on them."""

from __future__ import annotations

import errno
import functools
from enum import Enum
from types import ModuleType

UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF})
"""Mounts without locks: NFS without lockd (ENOLCK), Lustre without ``flock`` (ENOSYS); EBADF is
NFS's answer for a descriptor that is open for reading alone."""


class Lock(Enum):
    """What a try to lock a descriptor found."""

    TAKEN = "taken"
    """It is ours until the descriptor is closed."""
    BUSY = "busy"
    """A process that lives, on this host or another, holds it."""
    NONE = "none"
    """This filesystem has no locks here: the lease alone decides."""


@functools.cache
def _library() -> ModuleType:
    import filelock  # 30 ms of imports that a submitter does not need

    return filelock


def try_lock(fd: int) -> Lock:
    """Try to take the exclusive lock of a whole file, without waiting.

    ``fd`` must be open for writing on NFS. Forked children inherit the lock with the descriptor:
    they must close it.
    """
    try:
        return Lock.TAKEN if _library().lock_descriptor(fd, blocking=False) else Lock.BUSY
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return Lock.NONE
        raise
