"""The spool of one executor that was given none: where it is made. It goes with its executor."""

from __future__ import annotations

import os
import tempfile

from spoolpool import settings
from spoolpool.errors import BadRequest
from spoolpool.protocol.spool import Spool
from spoolpool.system import files

_NODES_OWN = ("/tmp", "/var/tmp", "/dev/shm")


def create_temporary_spool(*, one_host: bool, output: int) -> Spool:
    """Make it: below the directory for temporary files if ``one_host`` has all groups, else where all nodes see it.

    That is below ``SPOOLPOOL_DIR`` (beside it, if it is a spool), or below the current directory; raises
    :class:`BadRequest` where this is a directory that each node has for itself.
    """
    path = os.path.abspath(tempfile.mkdtemp(prefix="spoolpool-", dir=None if one_host else _shared()))
    try:
        caches = 1.0 if one_host else settings.CACHE_SECONDS
        return Spool.create(path, durability="none", caches=caches, output=output, temporary=True)
    except BaseException:
        files.remove_tree(path)
        raise


def _shared() -> str:
    named = os.environ.get(settings.ENV_SPOOL)
    if named:
        named = os.path.abspath(named)
        return os.path.dirname(named) if os.path.lexists(f"{named}/spool.json") else named
    here = os.path.realpath(os.getcwd())
    for directory in (*_NODES_OWN, tempfile.gettempdir()):
        if os.path.commonpath([here, os.path.realpath(directory)]) == os.path.realpath(directory):
            raise BadRequest(
                f"This executor needs a spool that all nodes see, and {here} is below {directory}, of which each node "
                f"has its own. Start in a shared directory, set {settings.ENV_SPOOL} to one, or give spool=."
            )
    return here
