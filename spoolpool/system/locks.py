"""File locks as evidence: the holder of a lock is alive. The safety of the protocol never depends on them."""

from __future__ import annotations

import errno
import fcntl
from enum import Enum

UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF})
"""Errors of mounts without locks: NFS without lockd (ENOLCK), Lustre without ``flock`` (ENOSYS). NFS answers EBADF for
a descriptor that is only open for reading."""

_CONTENTION = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})
# EACCES: flock(2) on NFS is a lock by fcntl(2), which may answer so for the lock of another process.


class Lock(Enum):
    """Result of an attempt to lock a descriptor."""

    TAKEN = "taken"
    """This process holds the lock until the descriptor is closed."""
    BUSY = "busy"
    """A live process, on this or another host, holds the lock."""
    NONE = "none"
    """The filesystem has no locks here: the lease alone decides."""


def try_lock(fd: int) -> Lock:
    """Try to take the exclusive lock of a whole file, without waiting.

    On NFS, ``fd`` must be open for writing. A forked child inherits the lock with the descriptor and must close it.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _CONTENTION:
            return Lock.BUSY
        if error.errno in UNSUPPORTED:
            return Lock.NONE
        raise
    return Lock.TAKEN
