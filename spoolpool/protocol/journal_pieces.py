"""Pieces of journals, and the bound of their size: the oldest ones are replaced by counts.

A piece is written until it has :func:`piece_size` bytes; then its writer begins another one. Nothing is renamed or cut,
so that a reader and several writers need no agreement, and no name is used again. A piece that another piece of its
writer follows is complete.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import NamedTuple

from spoolpool.format.config import Config
from spoolpool.format.journal_names import JournalName, parse_journal_name
from spoolpool.format.names import is_worker_id
from spoolpool.protocol.spool import Spool
from spoolpool.system import files

_LARGEST, _LEAST = 8 << 20, 1 << 16  # bytes of a piece
_PIECES = 16  # of which the bound of the whole consists, at least
_TEMPORARY = 64 << 20  # bytes of the journals of a temporary spool, which may lie in memory
_SETTLED = 120.0  # seconds since its last line after which no process writes a complete piece: see Journal


class Piece(NamedTuple):
    """Piece of a journal, as it was listed."""

    name: JournalName
    size: int
    mtime: float
    owner: int


def bound(config: Config) -> int:
    """Return the limit in bytes of all journals of a spool."""
    return min(config.journal, _TEMPORARY) if config.temporary else config.journal


def piece_size(config: Config) -> int:
    """Return the bytes from which a piece is complete."""
    return max(_LEAST, min(_LARGEST, bound(config) // _PIECES))


def latest_part(spool: Spool, writer: str, *, own: bool = False) -> int:
    """Return the number of the latest piece of a writer; 0 if there is none.

    With ``own``, another account's files with such names are ignored: a writer does not follow them.
    """
    names = filter(None, map(parse_journal_name, files.list_names(spool.layout.journal)))
    found = (name for name in names if name.writer == writer)
    return max((name.part for name in found if not (own and is_foreign(spool, name))), default=0)


def is_foreign(spool: Spool, name: JournalName) -> bool:
    """Return whether another account of a shared spool has taken a name, or whether it is no name of a regular file."""
    if not spool.shared:
        return False
    try:
        status = os.lstat(f"{spool.layout.journal}/{name.name}")
    except OSError:  # there is none
        return False
    return status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode)


def list_pieces(spool: Spool) -> list[Piece]:
    """Return all pieces, the oldest first."""
    found = []
    for name in filter(None, map(parse_journal_name, files.list_names(spool.layout.journal))):
        with contextlib.suppress(OSError):  # removed meanwhile
            status = os.lstat(f"{spool.layout.journal}/{name.name}")
            if stat.S_ISREG(status.st_mode):
                found.append(Piece(name, status.st_size, status.st_mtime, status.st_uid))
    return sorted(found, key=lambda piece: (piece.mtime, piece.name))


def excess(spool: Spool, now: float) -> list[Piece]:
    """Return the oldest pieces that are to go, so that the others are within the bound; ``now`` is the server's time.

    Only complete pieces go, and those of workers without an entry. In a shared spool these are pieces of this account,
    or all if it owns the spool.
    """
    pieces = list_pieces(spool)
    too_much = sum(piece.size for piece in pieces) - bound(spool.config)
    if too_much <= 0:
        return []
    latest: dict[tuple[str, int], int] = {}  # of a writer's own pieces: another account may have made further ones
    for piece in pieces:
        writer = piece.name.writer, piece.owner
        latest[writer] = max(latest.get(writer, 0), piece.name.part)
    alive = set(files.list_names(spool.layout.workers, certain=True))
    found = []
    for piece in pieces:
        name, part = piece.name
        complete = part < latest[name, piece.owner] or (is_worker_id(name) and name not in alive)
        is_own = os.geteuid() in (0, spool.owner, piece.owner)
        if too_much > 0 and complete and is_own and now - piece.mtime > _SETTLED:
            too_much -= piece.size
            found.append(piece)
    return found
