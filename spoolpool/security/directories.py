"""Cache of open directories of a spool, so that another user cannot swap a directory for a symlink.

In a spool that several accounts use, one of them may rename a lane or the directory of a session and leave a link to
another user's home under its name. So these directories are opened once, without following links, and their owner is
checked. All operations in them then go through the open descriptor.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict

from spoolpool.errors import NotTrusted
from spoolpool.system import open_directory
from spoolpool.system.accounts import account_name

_LIMIT = 128  # open directories


class DirectoryHandles:
    """Open directories below one spool. May be used from several threads."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._directories: OrderedDict[str, open_directory.Directory] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, path: str, owner: int | None = None) -> open_directory.Directory:
        """Return a directory two or three levels below the spool, opened now or before.

        Raises :class:`NotTrusted` if it is a link or no directory, or does not belong to ``owner``; ``OSError`` as
        open(2). A directory that was removed and made again stays the old one until :meth:`close`. Keep the returned
        object as long as a path through it is used.
        """
        with self._lock:
            found = self._directories.get(path)
        if found is None:
            found = self._open(path)
        if owner is not None and found.owner != owner:
            self.close(path)
            raise NotTrusted(
                f"{path} belongs to {account_name(found.owner)} and should belong to {account_name(owner)}: nothing in "
                "it was read or written. Ask the owner of the spool to examine it."
            )
        return found

    def _open(self, path: str) -> open_directory.Directory:
        parent, _, name = path.rpartition("/")
        # only the owner makes names in the spool's own directory, so nothing in it is swapped
        above: open_directory.Place = parent if os.path.dirname(parent) == self._root else self.open(parent)
        try:
            found = open_directory.Directory(f"{above}/{name}")
        except OSError as error:
            if error.errno != errno.ENOTDIR:
                raise
            what = "a symbolic link" if os.path.islink(path) else "no directory"
            raise NotTrusted(
                f"{path} is {what}, put there by another account: nothing behind it was read or written. Ask the "
                "owner of the spool to examine it."
            ) from None
        with self._lock:
            self._directories[path] = found
            if len(self._directories) > _LIMIT:
                self._directories.popitem(last=False)  # its present users keep the object
        return found

    def close_all(self) -> None:
        """Forget all directories."""
        with self._lock:
            self._directories.clear()

    def close(self, path: str) -> None:
        """Forget a directory, so that it is opened anew when it is needed next."""
        with self._lock:
            self._directories.pop(path, None)
