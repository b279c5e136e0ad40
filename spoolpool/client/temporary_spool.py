"""Temporary spool of an embedded executor, removed together with the executor."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from spoolpool import settings
from spoolpool.errors import BadRequest, SpoolpoolError
from spoolpool.format.temporary_names import new_temporary_name
from spoolpool.protocol.spool import Spool
from spoolpool.system import files, logind, memory, mounts

if TYPE_CHECKING:
    from spoolpool.protocol.abandoned_spools import Abandoned

log = logging.getLogger(__name__)

_NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm")
"""Directories that each node has for itself."""

_IN_MEMORY = ("tmpfs", "ramfs")
_LEAST_ROOM = 1 << 25
"""Bytes of room without which a spool does not lie in memory."""
_LEAST_MEMORY = 1 << 28
"""The same of the memory that this process may use, its control group included."""
_LEAST_FILES = 10_000
"""Files that must fit."""


def create_temporary_spool(*, one_host: bool, output: int, in_memory: bool = True) -> Spool:
    """Create a spool in memory or below the directory for temporary files, or for several hosts in a shared directory.

    A spool for ``one_host`` that keeps no ``output`` lies in memory if there is room (:func:`memory_directories`); its
    large values are below the directory for temporary files all the same. Unless ``in_memory``, it does not.
    The shared directory is ``SPOOLPOOL_DIR`` (if that is a spool, its parent), or else the current directory. Raises
    :class:`BadRequest` if the current directory is local to each node.
    """
    if in_memory and one_host and not output:
        for parent in memory_directories():
            try:
                return _create(parent, overflow_in=tempfile.gettempdir())
            except (OSError, SpoolpoolError) as error:  # it is full, or read-only; or other accounts can replace it
                log.info("The temporary spool is not made in %s: %s", parent, error)
    return _create(tempfile.gettempdir() if one_host else _shared_directory(), one_host=one_host, output=output)


def _create(parent: str, *, one_host: bool = True, output: int = 0, overflow_in: str | None = None) -> Spool:
    ident = os.urandom(8).hex()
    # groups on other hosts may use it after the death of this process
    path = f"{os.path.abspath(parent)}/{new_temporary_name('spool', ident, owned=one_host)}"
    os.mkdir(path, 0o700)
    try:
        # the defaults of the site are for its shared filesystems
        lease, caches = (settings.LEASE, 1.0) if one_host else (None, None)
        overflow_in = overflow_in and os.path.abspath(overflow_in)
        return Spool.create(
            path,
            durability="none",
            lease=lease,
            caches=caches,
            output=output,
            temporary=True,
            overflow_in=overflow_in,
            ident=ident,
        )
    except BaseException:
        files.remove_tree(path)
        raise


def memory_directories(given: Iterable[str] | None = None) -> Iterator[str]:
    """Iterate over those of some directories that lie in memory and have room for a spool.

    By default the candidates are /dev/shm and the runtime directory of this account.

    There are none if the temporary directory is on a shared filesystem: groups on other hosts may use it. By default
    there are none either if systemd may remove them at a logout: a program in tmux or of nohup goes on.
    """
    named = os.environ.get(settings.ENV_SHM)
    if given is None and named is None and logind.removes_files(os.geteuid()):
        return
    found = given or (("/dev/shm", os.environ.get("XDG_RUNTIME_DIR")) if named is None else (named,))
    usable = memory.usable()
    if (usable is not None and usable.available < _LEAST_MEMORY) or not mounts.is_local(tempfile.gettempdir()):
        return
    for directory in map(os.path.abspath, filter(None, found)):
        try:
            room = os.statvfs(directory)
        except OSError:  # missing
            continue
        free = room.f_bavail * room.f_frsize
        many = not room.f_files or room.f_favail >= _LEAST_FILES  # 0: without a limit
        writable = os.access(directory, os.W_OK | os.X_OK)
        if free >= _LEAST_ROOM and many and writable and mounts.mount_of(directory)[1] in _IN_MEMORY:
            yield directory


def abandoned_spools() -> list[Abandoned]:
    """Return the temporary spools on this host whose processes were killed together with their groups."""
    from spoolpool.protocol.abandoned_spools import find_abandoned

    named = ("/dev/shm", os.environ.get(settings.ENV_SHM), os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir())
    return find_abandoned(filter(None, named))


def remove_abandoned_spools() -> None:
    """Remove them in a thread, without a wait for it: what is left by the end of this process, the next one removes."""
    found = abandoned_spools()
    if found:
        from spoolpool.protocol.abandoned_spools import remove

        with contextlib.suppress(RuntimeError):  # no more threads: the next executor removes them
            threading.Thread(target=remove, args=(found,), name="spoolpool-abandoned", daemon=True).start()


def _shared_directory() -> str:
    named = os.environ.get(settings.ENV_SPOOL)
    if named:
        named = os.path.abspath(named)
        return os.path.dirname(named) if os.path.lexists(f"{named}/spool.json") else named
    here = os.path.realpath(os.getcwd())
    for directory in (*_NODE_LOCAL, tempfile.gettempdir()):
        if os.path.commonpath([here, os.path.realpath(directory)]) == os.path.realpath(directory):
            raise BadRequest(
                f"Cannot create the executor's spool in {here}: all nodes must see it, but each node has its own "
                f"{directory}. Start in a shared directory, set {settings.ENV_SPOOL} to one, or pass spool=."
            )
    return here
