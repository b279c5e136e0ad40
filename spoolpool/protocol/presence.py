"""Periodic check that the path of a spool still leads to it, and that nothing of its tree is missing.

A spool may be removed, moved, unmounted, or replaced by another one while processes use it. A purge of a scratch
filesystem removes empty directories and old files, among which may be ``spool.json``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time

from spoolpool.errors import BrokenSpool, NotASpool
from spoolpool.format.layout import Layout
from spoolpool.protocol.spool import Spool
from spoolpool.system import files, open_directory
from spoolpool.system.accounts import account_name

log = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds for which a spool may be missing: it is moved for a moment, or mounted again."""
_NO_WAY = "no task passes through it before the owner of the spool runs 'spool check --repair' or a worker"
_INTERVAL = 5.0  # seconds between two checks of a caller that asks more often
_FRESH = 6 * 3600.0  # seconds after which the time of spool.json is set anew, so that no purge takes it for unused


class Presence:
    """Observer of one spool. Not for use from several threads at once.

    With ``restore`` it makes missing directories and a missing ``spool.json`` again, which only the owner of the spool
    can do. Processes of other accounts log a warning instead.
    """

    def __init__(self, spool: Spool, *, restore: bool = True) -> None:
        self._spool = spool
        self._restores = restore
        self._missing_since: float | None = None
        self._due = 0.0
        self._refresh_due = time.monotonic()
        self._warned: set[str] = set()
        self.last = True
        """Last answer of :meth:`check`."""
        self._root: open_directory.Directory | None = None
        with contextlib.suppress(OSError):  # in a dropbox only its owner can list it
            self._root = open_directory.Directory(
                os.path.realpath(spool.path)
            )  # leads to the directory wherever it is moved

    def close(self) -> None:
        """Release the open directory. May be repeated; a later check cannot tell a moved spool from a removed one."""
        self._root = None

    def check_if_due(self) -> bool:
        """As :meth:`check`, but at most every few seconds; in between, the last answer."""
        if time.monotonic() >= self._due:
            self.check()
        return self.last

    def check(self) -> bool:
        """Return whether the spool is where it was; False while that is unknown, or within the time of grace.

        Nothing may be concluded from missing files while it returns False. Raises :class:`BrokenSpool` if the spool was
        removed, moved or replaced.
        """
        self._due = time.monotonic() + _INTERVAL
        self.last = False
        try:
            self.last = self._check_id()
            if self.last:
                self._missing_since = None
                self._restore_tree()
            else:
                self._check_missing()
        except OSError as error:  # the server is away, or the account has lost its permission: nothing is known
            log.info("Cannot check the spool %s now: %s", self._spool.path, error)
        return self.last

    def _check_id(self) -> bool:
        try:
            return self._spool.check_id()
        except BrokenSpool as error:
            if moved := self._moved_to():
                raise BrokenSpool(f"{error} The former one is {moved} now.") from None
            raise

    def _moved_to(self) -> str:
        """Return the path to which the directory of the spool was moved; empty if it was not, or that is unknown."""
        if self._root is None or self._root.removed():
            return ""
        path = os.path.realpath(str(self._root))
        return "" if path == os.path.realpath(self._spool.path) or files.is_missing(f"{path}/spool.json") else path

    def _check_missing(self) -> None:
        """Raise :class:`BrokenSpool` if the spool has been missing for long, unless only its ``spool.json`` is."""
        now = time.monotonic()
        if self._missing_since is None:
            self._missing_since = now
            log.warning("The spool %s is not there; waiting %.0f s for it.", self._spool.path, GRACE)
        if now - self._missing_since < GRACE:
            return
        if not self._is_in_place():
            raise BrokenSpool(self._describe_absence())
        # most of its directories are there: a purge of old files removed spool.json, which all running processes know
        self.last = True
        self._restore_config()

    def _is_in_place(self) -> bool:
        """Return whether the directory of the spool is the same as before, with most of its directories."""
        if self._root is None or self._root.removed():
            return False
        names = files.list_names(self._spool.path)
        found = set(names).intersection(Layout.DIRECTORIES)
        return 2 * len(found) > len(Layout.DIRECTORIES) and os.path.samefile(str(self._root), self._spool.path)

    def _describe_absence(self) -> str:
        path = self._spool.path
        if moved := self._moved_to():
            return (
                f"The spool {path} no longer exists: it was moved to {moved} while it was in use. Its tasks are there: "
                "start new processes for that path, or move it back. A new Executor with a named session gets the "
                "futures of its tasks."
            )
        return (
            f"The spool {path} no longer exists: it was removed, moved or unmounted while it was in use. Mount it "
            f"again or move it back, or make a new one with 'spool init {path}', and start new processes."
        )

    def _restore_config(self) -> None:
        where = self._spool.layout
        consequence = "running processes go on, but none can be started before a process of its owner makes it again"
        if not self._may_restore(f"{self._spool.path}/spool.json", consequence):
            return
        source = f"{where.tmp}/spool.json"
        with contextlib.suppress(FileExistsError):  # another process does the same
            self._spool.write_config(source)
            files.move(source, where.config)
            log.warning("Made %s/spool.json again: it was missing, after a purge of old files.", self._spool.path)

    def _restore_tree(self) -> None:
        """Make missing directories again, and keep ``spool.json`` from looking unused."""
        if not self._restores:
            return
        spool = self._spool
        try:
            names = set(files.list_names(spool.layout.root))
        except PermissionError:  # another account's dropbox
            return
        always = (*Layout.DIRECTORIES, *(Layout.ON_DEMAND if spool.shared else ()))
        for name in always:
            if name not in names and self._may_restore(f"{spool.path}/{name}", _NO_WAY):
                with contextlib.suppress(NotASpool):  # it was removed just now
                    spool.make_directories(f"{spool.layout.root}/{name}")
                    log.warning("Made the directory %s/%s again: it was missing.", spool.path, name)
        now = time.monotonic()
        if os.geteuid() == spool.owner and now >= self._refresh_due:
            self._refresh_due = now + _FRESH
            files.refresh(spool.layout.config)

    def _may_restore(self, path: str, consequence: str) -> bool:
        """Return whether this process can make a missing part of the spool again; else log a warning once."""
        if self._restores and os.geteuid() == self._spool.owner:
            return True
        if path not in self._warned:
            self._warned.add(path)
            owner = account_name(self._spool.owner)
            log.warning(
                "%s is missing (a purge of old files and empty directories?): %s (%s).", path, consequence, owner
            )
        return False
