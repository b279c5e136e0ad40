"""Names of journals: each writer has pieces of a bounded size, one after another. No I/O."""

from __future__ import annotations

import re
from typing import NamedTuple

from spoolpool.system.patterns import lazy_pattern

_NAME = lazy_pattern(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,63})(?:~([1-9]\d{0,8}))?\.jsonl", re.ASCII)


class JournalName(NamedTuple):
    """Name of a piece of a journal."""

    writer: str
    """Worker; or account, kernel and month of submitters; or session of an autoscaler."""
    part: int = 0
    """Rises when the piece before grew too large; a number is not used again."""

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{self.writer}~{self.part}.jsonl" if self.part else f"{self.writer}.jsonl"


def parse_journal_name(name: str) -> JournalName | None:
    """Parse :attr:`JournalName.name`; None for any other name."""
    match = _NAME.fullmatch(name)
    return match and JournalName(match[1], int(match[2] or 0))


def writer_of(name: str) -> str | None:
    """Return the writer of a piece of a journal; None for any other name."""
    found = parse_journal_name(name)
    return found and found.writer
