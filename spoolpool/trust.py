"""Whose files may be read: a pickle is a program, so its owner decides.

The owner is that of the *opened* descriptor (``fstat``), never of a path, which could be swapped
between two looks. Design rule: not trusted means not read, not unpickled, not removed, but reported.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from spoolpool.errors import BadRequest, BadTaskFile, NotTrusted


def account(uid: int) -> str:
    """An account's name, or its number where it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _uid(user: str | int) -> int:
    import pwd

    if isinstance(user, int):
        return user
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise BadRequest(
            f"There is no account {user!r} on this host: name an existing account, or its number."
        ) from None


class Trust:
    """The accounts whose files may be unpickled: one's own, and those that were named."""

    def __init__(self, users: Iterable[str | int] = ()) -> None:
        self.uids = frozenset({os.geteuid(), *(_uid(user) for user in users)})

    def check(self, fd: int, path: str) -> int:
        """Return the size of an opened file that may be read.

        Raises :class:`NotTrusted` for another account's, and :class:`BadTaskFile` for what is no
        regular file or has a second name (a hard link lets somebody lend another's file a new name).
        """
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BadTaskFile(f"{path} is not a regular file. It was left alone.")
        if status.st_uid not in self.uids:
            raise NotTrusted(
                f"{path} belongs to {account(status.st_uid)}, who is not trusted here. It was not "
                "read; if that account may run code as you, name it (trust=, --trust-user)."
            )
        if status.st_nlink > 1:
            raise BadTaskFile(f"{path} has {status.st_nlink} names (hard links). It was left alone.")
        return status.st_size
