"""Pieces of journals beyond the bound of their size: they are replaced by the numbers of the ends in them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from spoolpool.maintenance.garbage_item import GarbageItem
from spoolpool.protocol import journal_pieces
from spoolpool.protocol.journal import Journal, dropped_lines, submitters_journal
from spoolpool.protocol.journal_pieces import Piece
from spoolpool.protocol.spool import Spool


def excess_journals(spool: Spool, now: float) -> Iterator[GarbageItem]:
    """Yield the oldest pieces beyond the bound; ``now`` is the time of the file server.

    Writers drop them as well, but only when they begin a piece of their own.
    """
    reason = f"the journals have more than {journal_pieces.bound(spool.config) >> 20} MiB; their numbers are kept"
    for piece in journal_pieces.excess(spool, now):
        yield GarbageItem(path=f"journal/{piece.name.name}", reason=reason, record=partial(_record, spool, piece))


def _record(spool: Spool, piece: Piece) -> None:
    writer = Journal(spool, submitters_journal(), "spool")
    for event, fields in dropped_lines(spool, piece):
        writer.write(event, **fields)
    writer.close()
