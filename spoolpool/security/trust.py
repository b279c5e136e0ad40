"""Trust in accounts: a pickle is a program, so the owner of a file decides whether it is unpickled.

The owner is that of the *opened* descriptor (``fstat``), never of a path, which could be swapped between two system
calls. A file that is not trusted is not read, not unpickled and not removed, but reported.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from spoolpool.errors import BadTaskFile, NotTrusted
from spoolpool.system.accounts import account_name, group_id, in_group, user_id


class Trust:
    """Accounts with files that may be unpickled: this account, and the named ones.

    ``groups`` names groups of trusted accounts; the group database is asked when a file is checked. ``everybody`` is
    for a service that runs the tasks of all accounts.
    """

    def __init__(self, users: Iterable[str | int] = (), groups: Iterable[str] = (), *, everybody: bool = False) -> None:
        self.uids = frozenset({os.geteuid(), *(user_id(user) for user in users)})
        self.groups = tuple(groups)
        self.everybody = everybody
        for group in self.groups:
            group_id(group)

    def covers(self, uid: int) -> bool:
        """Return whether files of an account may be unpickled."""
        return self.everybody or uid in self.uids or in_group(uid, self.groups)

    def check(self, fd: int, path: str) -> os.stat_result:
        """Return the status of an opened file that may be read.

        Raises :class:`NotTrusted` for a file of an account that is not trusted. Raises :class:`BadTaskFile` for a file
        that is not regular or has a second name: a hard link gives a file of another account a new name.
        """
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BadTaskFile(f"{path} is not a regular file; refusing to read it.")
        if not self.covers(status.st_uid):
            raise NotTrusted(
                f"{path} belongs to {account_name(status.st_uid)}, which is not trusted here; refusing to read it. If "
                "that account may run code as you, name it (trust=, --trust-user, --trust-group)."
            )
        if status.st_nlink > 1:
            raise BadTaskFile(f"{path} has {status.st_nlink} hard links; refusing to read it.")
        return status
