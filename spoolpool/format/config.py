"""Settings of a spool, equal for all its users: the file ``spool.json``."""

from __future__ import annotations

import os

import msgspec

from spoolpool import settings
from spoolpool.errors import NotASpool, SpoolDenied, SpoolVersion
from spoolpool.format.layout import Layout
from spoolpool.format.names import FORMAT
from spoolpool.security import permissions
from spoolpool.security.permissions import Mode
from spoolpool.system import files

_LIMIT = 1 << 20


class RetentionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds for which ``spool gc`` keeps data that no process asks for."""

    results: float = 30 * 86400.0
    """Outcomes that were not collected."""
    sessions: float = 86400.0
    """Outcomes of a session with a provably dead submitter, and the session itself."""
    unfinished: float = 86400.0
    """Files in ``tmp/``, left by writers that died."""
    journals: float = 365 * 86400.0
    """Journals."""
    logs: float = 30 * 86400.0
    """Captured output."""
    cache: float = 30 * 86400.0
    """Cached results, since their last use."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``spool.json``; written once, when the spool is made."""

    format: int
    """Version of the tree."""
    id: str
    """Random; distinguishes the spool from another one that is mounted in its place."""
    mode: Mode = "private"
    """Accounts that may use the spool."""
    durability: files.Durability = "data"
    """Failures that a task survives."""
    lease: float = settings.LEASE
    """Seconds that a claim outlives the last heartbeat of its worker."""
    max_attempts: int = settings.MAX_ATTEMPTS
    """Attempts of a task that does not set them itself."""
    caches: float = settings.CACHE_SECONDS
    """Seconds for which a client of the filesystem may see an outdated state."""
    output: int = settings.OUTPUT
    """Limit in bytes of the captured output of one rank of a task; with 0 it goes to the worker's own streams."""
    keep: RetentionPolicy = RetentionPolicy()
    """Data that ``spool gc`` keeps."""
    temporary: bool = False
    """Whether the spool belongs to one executor and is removed with it."""
    max_waiting: int | None = None
    """Limit of the queued tasks of one user; None: no limit."""
    signed: bool = False
    """Whether every file that may be unpickled has a signature."""


def read_config(where: Layout) -> tuple[Config, os.stat_result]:
    """Return the config of a spool and the status of its file.

    Raises :class:`NotASpool`, :class:`SpoolVersion` or :class:`SpoolDenied`.
    """
    try:
        with files.reading(where.config) as (fd, status):
            data = os.read(fd, _LIMIT)
    except ValueError as error:
        raise NotASpool(f"{where.root} is not a spool: {error}.") from error
    except OSError as error:
        if error.errno in files.DENIED:
            raise SpoolDenied(
                f"Cannot open the spool {where.root}: {error.strerror}. {permissions.describe_access(where.root)}"
            ) from error
        raise NotASpool(
            f"{where.root} is not a spool: {where.config} cannot be read ({error.strerror}). Make one with "
            f"'spool init {where.root}', or check that the filesystem is mounted on {os.uname().nodename}."
        ) from error
    try:
        version = msgspec.json.decode(data, type=dict).get("format")
        if isinstance(version, int) and version > FORMAT:
            raise SpoolVersion(
                f"The spool {where.root} has format {version}; this version of spoolpool reads formats up to {FORMAT}. "
                "Install a newer spoolpool here, or use another spool."
            )
        return msgspec.json.decode(data, type=Config), status
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise NotASpool(
            f"{where.root} is not a spool: {where.config} was not written by 'spool init' ({error})."
        ) from error
