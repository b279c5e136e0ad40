"""Whose files may be read: a pickle is a program, so its owner decides.

The owner is that of the *opened* descriptor (``fstat``), never of a path, which could be swapped
between two looks. Design rule: not trusted means not read, not unpickled, not removed, but reported.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from spoolpool.errors import BadTaskFile, NotTrusted
from spoolpool.system.accounts import account_name, group_id, in_group, user_id


class Trust:
    """The accounts whose files may be unpickled: one's own, and those that were named.

    ``groups`` names groups whose members are trusted, as the group database has them when a file is looked at;
    ``everybody`` is for a service that runs what anybody drops.
    """

    def __init__(self, users: Iterable[str | int] = (), groups: Iterable[str] = (), *, everybody: bool = False) -> None:
        self.uids = frozenset({os.geteuid(), *(user_id(user) for user in users)})
        self.groups = tuple(groups)
        self.everybody = everybody
        for group in self.groups:
            group_id(group)

    def covers(self, uid: int) -> bool:
        """Whether files of this account may be unpickled."""
        return self.everybody or uid in self.uids or in_group(uid, self.groups)

    def check(self, fd: int, path: str) -> os.stat_result:
        """Return the status of an opened file that may be read.

        Raises :class:`NotTrusted` for another account's, and :class:`BadTaskFile` for what is no
        regular file or has a second name (a hard link lets somebody lend another's file a new name).
        """
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BadTaskFile(f"{path} is not a regular file. It was left alone.")
        if not self.covers(status.st_uid):
            raise NotTrusted(
                f"{path} belongs to {account_name(status.st_uid)}, who is not trusted here. It was not "
                "read; if that account may run code as you, name it (trust=, --trust-user, --trust-group)."
            )
        if status.st_nlink > 1:
            raise BadTaskFile(f"{path} has {status.st_nlink} names (hard links). It was left alone.")
        return status
