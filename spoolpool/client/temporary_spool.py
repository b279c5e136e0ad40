"""Temporary spool of an embedded executor, removed together with the executor."""

from __future__ import annotations

import os
import tempfile

from spoolpool import settings
from spoolpool.errors import BadRequest
from spoolpool.protocol.spool import Spool
from spoolpool.system import files

_NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm")
"""Directories that each node has for itself."""


def create_temporary_spool(*, one_host: bool, output: int) -> Spool:
    """Create a spool below the directory for temporary files, or, for groups on several hosts, in a shared directory.

    The shared directory is ``SPOOLPOOL_DIR`` (if that is a spool, its parent), or else the current directory. Raises
    :class:`BadRequest` if the current directory is local to each node.
    """
    path = os.path.abspath(tempfile.mkdtemp(prefix="spoolpool-", dir=None if one_host else _shared_directory()))
    try:
        # the defaults of the site are for its shared filesystems
        lease, caches = (settings.LEASE, 1.0) if one_host else (None, None)
        return Spool.create(path, durability="none", lease=lease, caches=caches, output=output, temporary=True)
    except BaseException:
        files.remove_tree(path)
        raise


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
