"""Settings of a spool, equal for all its users: the file ``spool.json``."""

from __future__ import annotations

import errno
import os
from typing import Annotated

import msgspec
from msgspec import Meta

from spoolpool import settings
from spoolpool.errors import NotASpool, SpoolDenied, SpoolVersion
from spoolpool.format.layout import Layout
from spoolpool.format.names import FORMAT
from spoolpool.security import permissions
from spoolpool.security.permissions import Mode
from spoolpool.system import files, records
from spoolpool.system.bounds import Bytes, Positive, Seconds
from spoolpool.system.records import BadRecord

LONGEST = 1e8
"""Limit of a lease, and of the time for which caches last, in seconds: three years."""


class RetentionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds for which ``spool gc`` keeps data that no process asks for."""

    results: Seconds = 30 * 86400.0
    """Outcomes that were not collected."""
    sessions: Seconds = 86400.0
    """Outcomes of a session with a provably dead submitter, and the session itself."""
    unfinished: Seconds = 86400.0
    """Files in ``tmp/``, left by writers that died."""
    journals: Seconds = 365 * 86400.0
    """Journals."""
    logs: Seconds = 30 * 86400.0
    """Captured output."""
    cache: Seconds = 30 * 86400.0
    """Cached results, since their last use."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``spool.json``; written once, when the spool is made."""

    format: Positive
    """Version of the tree."""
    id: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
    """Random; distinguishes the spool from another one that is mounted in its place."""
    mode: Mode = "private"
    """Accounts that may use the spool."""
    durability: files.Durability = "data"
    """Failures that a task survives."""
    lease: Annotated[float, Meta(gt=0, le=LONGEST)] = settings.LEASE
    """Seconds that a claim outlives the last heartbeat of its worker."""
    max_attempts: Annotated[int, Meta(ge=1, le=99)] = settings.MAX_ATTEMPTS
    """Attempts of a task that does not set them itself."""
    caches: Annotated[float, Meta(ge=0, le=LONGEST)] = settings.CACHE_SECONDS
    """Seconds for which a client of the filesystem may see an outdated state."""
    output: Bytes = settings.OUTPUT
    """Limit in bytes of the captured output of one rank of a task; with 0 it goes to the worker's own streams."""
    journal: Annotated[int, Meta(ge=settings.LEAST_JOURNAL, le=2**63 - 1)] = settings.JOURNAL
    """Limit in bytes of all journals; the oldest events beyond it are replaced by their counts."""
    keep: RetentionPolicy = RetentionPolicy()
    """Data that ``spool gc`` keeps."""
    temporary: bool = False
    """Whether the spool belongs to one executor and is removed with it."""
    overflow: str = ""
    """Directory for the large files of a temporary spool in memory; empty: they lie in the spool."""
    max_waiting: Positive | None = None
    """Limit of the queued tasks of one user; None: no limit."""
    signed: bool = False
    """Whether every file that may be unpickled has a signature. A process with a key does not depend on this field."""


class _Version(msgspec.Struct):
    format: int


_version_decoder = msgspec.json.Decoder(_Version)
_decoder = msgspec.json.Decoder(Config)


class _Id(msgspec.Struct):
    id: str


_id_decoder = msgspec.json.Decoder(_Id)


def read_id(path: str) -> str | None:
    """Return the id in the ``spool.json`` at a path; None if the file certainly does not exist, else ``OSError``."""
    try:
        return records.load(path, _id_decoder).id
    except (FileNotFoundError, NotADirectoryError):
        return None
    except BadRecord as error:
        raise OSError(errno.EBADMSG, error.reason, path) from error


def read_config(where: Layout, path: str) -> tuple[Config, os.stat_result]:
    """Return the config of a spool and the status of its file; ``path`` is that of the spool in messages.

    Raises :class:`NotASpool`, :class:`SpoolVersion` or :class:`SpoolDenied`.
    """
    status: list[os.stat_result] = []

    def check(fd: int, name: str) -> os.stat_result:
        status.append(files.regular_status(fd, name))
        return status[0]

    try:
        data = records.load_bytes(where.config, check=check)
        version = records.decode(_version_decoder, data, where.config).format
        if version > FORMAT:
            raise SpoolVersion(
                f"The spool {path} has format {version}; this version of spoolpool reads formats up to {FORMAT}. "
                "Install a newer spoolpool here, or use another spool."
            )
        return records.decode(_decoder, data, where.config), status[0]
    except BadRecord as error:
        raise NotASpool(
            f"{path} is not a spool: {path}/spool.json was not written by 'spool init' ({error.reason})."
        ) from error
    except OSError as error:
        if error.errno in files.DENIED:
            raise SpoolDenied(
                f"Cannot open the spool {path}: {error.strerror}. {permissions.describe_access(path)}"
            ) from error
        raise NotASpool(
            f"{path} is not a spool: {path}/spool.json cannot be read ({error.strerror}). {_remedy(where, path)}"
        ) from error


def _remedy(where: Layout, path: str) -> str:
    """Return the advice for a spool without a readable ``spool.json``."""
    if os.path.isdir(where.claimed) or os.path.isdir(where.ready):
        return (
            "It has the directories of a spool, so that a purge of old files may have removed that file. A process of "
            "the spool's owner that still uses it makes the file again within a minute; if there is none, restore it "
            "from a backup."
        )
    return f"Make one with 'spool init {path}', or check that the filesystem is mounted on {os.uname().nodename}."
