"""Reader of small records: JSON and text that another account may have written.

All small files that a process parses go through this module, and so does each line of a journal. A record is bounded in
size and depth, no link is followed, and no FIFO is waited for. Whatever is wrong with a record, the caller gets
:class:`BadRecord` or None, never another error: one file must not end a thread or a command.

The types of the fields bound the values (:mod:`spoolpool.system.bounds`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from spoolpool.errors import SpoolpoolError
from spoolpool.system import file_content, files, open_directory
from spoolpool.system.limited_log import LimitedLog
from spoolpool.system.patterns import lazy_pattern
from spoolpool.system.text import escape_line

LIMIT = 1 << 16
"""Bytes of a record."""
DEPTH = 32
"""Objects and arrays inside each other, in a record."""

Check = Callable[[int, str], os.stat_result]
"""Function that returns the status of an opened file that may be read, and raises for any other file."""

T = TypeVar("T")

_STRING = lazy_pattern(rb'"(?:[^"\\]+|\\(?:.|\Z))*(?:"|\Z)', re.DOTALL)  # never fails after a quote: no backtracking
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
_EMPTY = "it is empty"
_REASON = 300  # characters of a reason: it may quote the record

_reported = LimitedLog(logging.getLogger(__name__))


class BadRecord(ValueError):
    """A record cannot be used. The text names its path and the reason, escaped for a terminal."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{open_directory.display_path(path)}: {reason}")
        self.reason = reason


def decode(decoder: msgspec.json.Decoder[T], data: bytes, path: str) -> T:
    """Return a record that was read from ``path``; raise :class:`BadRecord` if it cannot be decoded."""
    try:
        _check_depth(data, path)
        return decoder.decode(data)
    except BadRecord:
        raise
    except Exception as error:  # noqa: BLE001  RecursionError, MemoryError and others: nothing may get out of here
        raise BadRecord(path, _reason(error)) from None


def _check_depth(data: bytes, path: str) -> None:
    """Bound the depth: the decoder's own limit is the interpreter's, which a program may raise beyond its stack."""
    if data.count(b"{") + data.count(b"[") > DEPTH and _is_deep(data):
        raise BadRecord(path, f"it has more than {DEPTH} objects or arrays inside each other, or unclosed ones")


def _is_deep(data: bytes) -> bool:
    """Return whether objects and arrays are inside each other more than :data:`DEPTH` times, or are not closed."""
    brackets = _STRING.sub(b"", data).translate(_ONE_KIND, _OTHERS)
    for _ in range(DEPTH):  # each time the innermost ones; a loop over the bytes would take a hundred times as long
        brackets = brackets.replace(b"[]", b"")
    return b"[" in brackets


def _reason(error: Exception) -> str:
    """Return an error as one line of bounded length: its text may quote the record."""
    text = str(error)[:_REASON]
    return escape_line(text if isinstance(error, msgspec.MsgspecError) else f"{type(error).__name__} {text}".rstrip())


def load_bytes(path: str, *, check: Check = files.regular_status, limit: int = LIMIT) -> bytes:
    """Return the content of a small file. Raises ``OSError`` as open(2), and :class:`BadRecord` for any other file.

    ``check`` tells whether its owner may have written it.
    """
    try:
        with files.reading(path, check) as (fd, status):
            data = file_content.read_at(fd, limit + 1, 0) if status.st_size <= limit else b""
    except OSError:
        raise
    except (SpoolpoolError, ValueError) as error:  # those of the check, which name the path
        raise BadRecord(path, escape_line(str(error))) from None
    except Exception as error:  # noqa: BLE001  as in decode
        raise BadRecord(path, _reason(error)) from None
    if max(status.st_size, len(data)) > limit:
        raise BadRecord(path, f"it has more than {limit} bytes")
    if not data:
        raise BadRecord(path, _EMPTY)
    return data


def load(path: str, decoder: msgspec.json.Decoder[T], *, check: Check = files.regular_status, limit: int = LIMIT) -> T:
    """Return the record in a file. Raises as :func:`load_bytes`, and :class:`BadRecord` if it cannot be decoded."""
    return decode(decoder, load_bytes(path, check=check, limit=limit), path)


def read(
    path: str, decoder: msgspec.json.Decoder[T], *, check: Check = files.regular_status, limit: int = LIMIT
) -> T | None:
    """Return the record in a file; None if it is missing, or cannot be used, which is reported once."""
    try:
        return load(path, decoder, check=check, limit=limit)
    except (OSError, BadRecord) as error:
        report(path, error)
        return None


def read_text(path: str, limit: int, *, check: Check = files.regular_status) -> str | None:
    """Return the text of a small file, each line escaped for a terminal; None as for :func:`read`."""
    try:
        text = load_bytes(path, check=check, limit=limit).decode(errors="replace")
    except (OSError, BadRecord) as error:
        report(path, error)
        return None
    return "\n".join(map(escape_line, text.splitlines()))


def report(path: str, error: OSError | BadRecord) -> None:
    """Log once that a record is ignored; not for a missing or an empty one, since records come and go."""
    problem = problem_of(error)
    if problem not in (None, _EMPTY):  # race: a file that was created in place is empty for a moment
        _reported.warning(path, f"Ignoring {open_directory.display_path(path)}: {problem}.")


def problem_of(error: OSError | BadRecord) -> str | None:
    """Return the reason why a record cannot be used; None if it is missing."""
    if isinstance(error, BadRecord):
        return error.reason.rstrip(".")
    if error.errno in files.GONE:
        return None
    return f"it cannot be opened ({error.strerror or error})"
