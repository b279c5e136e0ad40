"""Text for people."""

from __future__ import annotations

import math

_UNITS = (
    ("µs", 1e-6, 1e-3),
    ("ms", 1e-3, 1.0),
    ("s", 1.0, 100.0),
    ("min", 60.0, 6000.0),
    ("h", 3600.0, 172800.0),
    ("d", 86400.0, math.inf),
)
"""Units of time, their lengths in seconds, and the duration from which the next unit is used."""


def escape_line(text: str) -> str:
    """Return a text as one line for a terminal, with its unprintable characters escaped.

    Names and texts of other accounts may contain terminal controls.
    """
    if text.isprintable():  # true of nearly all texts, and a hundred times as fast
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def format_bytes(size: int) -> str:
    """Return a number of bytes in KiB, MiB, GiB or TiB, with three significant digits."""
    number, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1000 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return f"{number:.0f} {units[0]}" if number >= 100 or units[0] == "B" else f"{number:.3g} {units[0]}"


def duration_unit(seconds: float) -> tuple[str, float]:
    """Return the unit in which a duration is written, and its length in seconds."""
    return next((unit, length) for unit, length, limit in _UNITS if seconds < limit)


def format_duration(seconds: float, *, precise: bool = False) -> str:
    """Return a duration in whole seconds, minutes, hours or days: six characters below 10 000 days.

    ``precise`` gives three significant digits, in milliseconds or microseconds too.
    """
    seconds = max(seconds, 0.0)
    unit, length = duration_unit(seconds if precise else max(seconds, 1.0))
    number = seconds / length
    if not precise:
        return f"{math.floor(number)} {unit}"
    return f"{number:.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
