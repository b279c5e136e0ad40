"""What a spool is set to, once for all who use it: the file ``spool.json``."""

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


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """For how many seconds ``spool gc`` keeps what nobody asked for."""

    results: float = 30 * 86400.0
    """Outcomes that were not collected."""
    sessions: float = 86400.0
    """The same, and the session itself, once its submitter is provably dead."""
    unfinished: float = 86400.0
    """Files in ``tmp/``: what a submitter had not finished when it died."""
    journals: float = 365 * 86400.0
    """Journals."""
    logs: float = 30 * 86400.0
    """Captured output."""
    cache: float = 30 * 86400.0
    """Results in the cache, since they were last used."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What ``spool.json`` says; written once, when the spool is made."""

    format: int
    """Version of the tree."""
    id: str
    """Random; tells a spool from another that is mounted in its place."""
    mode: Mode = "private"
    """Who may use it: its owner, a group, or everybody who may drop tasks."""
    durability: files.Durability = "data"
    """What a task survives."""
    lease: float = settings.LEASE
    """Seconds that a claim outlives the last sign of life of its worker."""
    max_attempts: int = settings.MAX_ATTEMPTS
    """Attempts of a task that does not say itself."""
    caches: float = settings.CACHE_SECONDS
    """Seconds for which a client of the filesystem may go on seeing what is no longer so."""
    output: int = settings.OUTPUT
    """Bytes that are kept of what one rank of a task prints; 0: it goes where the worker's own words go."""
    keep: Keep = Keep()
    """What ``spool gc`` leaves."""
    temporary: bool = False
    """Belongs to one executor, and goes with it."""
    max_waiting: int | None = None
    """Tasks of one user that may wait at a time; no bound if None."""
    signed: bool = False
    """Whether every file that may be unpickled carries a signature."""


def read_config(where: Layout) -> tuple[Config, os.stat_result]:
    """What the file says, with its owner and rights.

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
            f"'spool init {where.root}', or look whether the filesystem is mounted on {os.uname().nodename}."
        ) from error
    try:
        version = msgspec.json.decode(data, type=dict).get("format")
        if isinstance(version, int) and version > FORMAT:
            raise SpoolVersion(
                f"The spool {where.root} has format {version}; this spoolpool knows formats up to "
                f"{FORMAT}. Install a newer spoolpool here, or use another spool."
            )
        return msgspec.json.decode(data, type=Config), status
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise NotASpool(
            f"{where.root} is not a spool: {where.config} is not what 'spool init' writes ({error})."
        ) from error
