"""Walltimes of batch jobs: read in one way, and written as each batch system reads them."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Any, Literal

from spoolpool.errors import BadRequest
from spoolpool.system.patterns import lazy_pattern
from spoolpool.system.quantities import DAY, MINUTE, read_seconds
from spoolpool.system.user_code import describe_value

_CLOCK = lazy_pattern(r"(?:(?:(?:(\d+)-)?(\d+):)?(\d*):)?(\d+)", re.ASCII)

TimeFormat = Literal["slurm", "pbs", "sge", "lsf", "flux"]
"""Batch systems by their way to write times."""


def read_walltime(name: str, value: Any) -> int:
    """Return a walltime in whole seconds, rounded up.

    ``value`` is a ``timedelta`` or a text: a number of minutes, a number with a unit, or hours, minutes and seconds,
    also with days. Raises :class:`BadRequest`, also for a number that is no text: it could mean seconds.
    """
    if not isinstance(value, (str, timedelta)) and type(value).__name__ != "timedelta64":
        raise BadRequest(
            f"{name} is {describe_value(value)}; it must be a timedelta or a text such as '1:30:00', '2-00:00:00', "
            "'90m' or '1.5h'. A number could mean minutes, as for sbatch and flux batch, or seconds, as elsewhere here."
        )
    seconds = read_seconds(name, value, unit=MINUTE, needs_unit=False)
    if not seconds:
        raise BadRequest(f"{name} is {describe_value(value)}; a job needs a walltime greater than 0.")
    return math.ceil(seconds)


def parse_clock(text: str) -> float | None:
    """Return the seconds of a time that Slurm, PBS or Grid Engine prints, ``[[[D-]H:]M:]S``.

    None for another text, such as UNLIMITED, NOT_SET or INFINITY.
    """
    match = _CLOCK.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


def format_walltime(seconds: int, system: TimeFormat) -> str:
    """Return a walltime as a batch system reads it.

    That is ``H:MM:SS`` for Slurm, PBS and Grid Engine, ``H:MM`` (rounded up) for LSF, and ``90m`` or ``5401s`` for
    Flux.
    """
    if system == "flux":
        return f"{seconds}s" if seconds % 60 else f"{seconds // 60}m"
    if system == "lsf":
        hours, minutes = divmod(math.ceil(seconds / 60), 60)
        return f"{hours}:{minutes:02}"
    return format_clock(seconds)


def format_clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds, such as ``1:30:00``; :func:`read_walltime` reads it."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def describe_walltime(seconds: float) -> str:
    """Return a duration in two ways, such as ``1:30:00 (90 minutes)``, so that a reader sees how it was understood."""
    days, rest = divmod(math.ceil(seconds), int(DAY))
    clock = f"{days}-{format_clock(rest).zfill(8)}" if days else format_clock(rest)
    minutes = f"{math.ceil(seconds) / 60:.2f}".rstrip("0").rstrip(".")
    return f"{clock} ({minutes} minute{'s' * (minutes != '1')})"
