"""Items of garbage, and reports on data that stays."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

Report = Callable[[str, str], None]
"""Called with the path of an item that stays, relative to the spool's directory, and the reason."""


def log_kept(path: str, reason: str) -> None:
    """Log that an item stays: the default of a :data:`Report`."""
    log.info("%s stays: %s.", path, reason)


def _always() -> bool:
    return True


def _nothing() -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class GarbageItem:
    """One file or directory that may be removed."""

    path: str
    """Relative to the spool's directory."""
    reason: str
    after: tuple[str, ...] = ()
    """Paths that must be gone before it."""
    move_to: str = ""
    """New path of a file that is moved instead of removed."""
    mtime_ns: int | None = None
    """Expected modification time of an object; the object stays if it has another one."""
    is_garbage: Callable[[], bool] = field(default=_always, repr=False, compare=False)
    """Examines the item again; called directly before its removal, in place of which it may also raise ``OSError``."""
    record: Callable[[], None] = field(default=_nothing, repr=False, compare=False)
    """Writes down what is lost with the item; called directly before its removal."""


def reason_of(error: Exception) -> str:
    """Return the text of an error for a report."""
    text = error.strerror if isinstance(error, OSError) else ""
    return text or str(error).rstrip(".")
