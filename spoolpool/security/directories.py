"""Directories of a spool that are held open, because others could put something else in their place.

In a spool that several accounts use, others may rename a lane or the directory of a session and leave a link to
somebody's home under its name. So such a directory is opened once, without following links, its owner is looked at,
and all that is done in it is done through that descriptor.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict

from spoolpool.errors import NotTrusted
from spoolpool.system import files
from spoolpool.system.accounts import account_name

_MOST = 128


class DirectoryHandles:
    """The directories below one spool that this process holds open; may be used from several threads."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._held: OrderedDict[str, files.Directory] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, path: str, owner: int | None = None) -> files.Directory:
        """Open a directory two or three levels below the spool, or use what was opened before.

        Raises :class:`NotTrusted` for a link or what is no directory, and where it does not belong to ``owner``;
        ``OSError`` as open(2). A directory that was removed, and made again, is still the old one until it is
        :meth:`close`. Keep the object for as long as a path through it is used.
        """
        with self._lock:
            found = self._held.get(path)
        if found is None:
            found = self._open(path)
        if owner is not None and found.owner != owner:
            self.close(path)
            raise NotTrusted(
                f"{path} belongs to {account_name(found.owner)} and should be {account_name(owner)}'s: nothing "
                f"in it was read, "
                "and nothing was written there. Ask the spool's owner to look at it."
            )
        return found

    def _open(self, path: str) -> files.Directory:
        parent, _, name = path.rpartition("/")
        # nobody but the owner makes names in the spool's own directory: what stands there is not swapped
        above: files.Place = parent if os.path.dirname(parent) == self._root else self.open(parent)
        try:
            found = files.Directory(f"{above}/{name}")
        except OSError as error:
            if error.errno != errno.ENOTDIR:
                raise
            what = "a symbolic link" if os.path.islink(path) else "no directory"
            raise NotTrusted(
                f"{path} is {what}. Somebody put it there: it was left alone, and nothing behind it was read or "
                "written."
            ) from None
        with self._lock:
            self._held[path] = found
            if len(self._held) > _MOST:
                self._held.popitem(last=False)  # whoever uses it just now still has it
        return found

    def close_all(self) -> None:
        """Hold nothing any more."""
        with self._lock:
            self._held.clear()

    def close(self, path: str) -> None:
        """Open this one anew when it is needed next."""
        with self._lock:
            self._held.pop(path, None)
