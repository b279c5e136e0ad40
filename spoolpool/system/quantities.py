"""Numbers from users: durations, points in time, sizes and counts. All options and resources are read here.

A number that is probably meant in another unit is refused, and the message names both readings: seconds since the
epoch in the place of a duration, seconds in the place of days, megabytes in the place of bytes.
"""

from __future__ import annotations

import math
import numbers
import operator
import re
from datetime import datetime, timedelta, timezone
from typing import Any

from spoolpool.errors import BadRequest
from spoolpool.system.patterns import lazy_pattern
from spoolpool.system.text import format_duration
from spoolpool.system.user_code import describe_value

MINUTE = 60.0
"""Seconds of a minute."""

DAY = 86400.0
"""Seconds of a day."""

LONGEST = 3653 * DAY
"""Longest duration in seconds, ten years; a greater number has another meaning."""

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": DAY, "w": 7 * DAY}
_DURATION = lazy_pattern(r"\s*(\d{1,12}(?:\.\d{0,9})?)\s*(s|m|min|h|d|w|)\s*", re.ASCII)
_CLOCK = lazy_pattern(r"(?:(\d{1,4})-)?(\d{1,5}):(\d\d):(\d\d)", re.ASCII)
_DAYS_AND_HOURS = lazy_pattern(r"(\d{1,4})-(\d\d?)(?::(\d\d))?()", re.ASCII)  # as Slurm reads them
_SIZE = lazy_pattern(r"(\d{1,16})([KMGT]?)", re.ASCII)
_EXAMPLES = "'90s', '10m', '1.5h', '7d', '1:30:00' or '2-00:00:00'"
_PLAIN_UNITS = {1.0: "seconds", MINUTE: "minutes", DAY: "days"}
_LEAST_MEMORY, _MOST_MEMORY = 1 << 20, 1 << 50


def read_number(name: str, value: Any, wanted: str) -> float:
    """Return a finite number that is 0 or more, of any numeric type but ``bool``.

    ``name`` and ``wanted`` describe the option and its values for the message of :class:`BadRequest`.
    """
    kind: object = type(value)
    if isinstance(value, numbers.Number) and kind is not bool:
        try:
            number = float(value)  # type: ignore[arg-type]  # of a complex number it is an error
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if 0 <= number < math.inf:
            return number
    raise BadRequest(f"{name} is {describe_value(value)}; it must be {wanted}.")


def read_seconds(name: str, value: Any, *, most: float = LONGEST, unit: float = 1.0, needs_unit: bool = True) -> float:
    """Return a duration in seconds.

    ``value`` is a number of units of ``unit`` seconds, a ``timedelta``, or a text: a number, with a unit if
    ``needs_unit``, or hours, minutes and seconds. Raises :class:`BadRequest`, also for more than ``most`` seconds.
    """
    wanted = f"a number of {_PLAIN_UNITS[unit]}, a timedelta, or a text such as {_EXAMPLES}"
    if (kind := type(value)).__module__ == "numpy" and kind.__name__ == "timedelta64":
        value = value.astype("timedelta64[us]").item()  # it is an integer for the numeric tower, of any unit
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
        if seconds < 0:
            raise BadRequest(f"{name} is {value}, which is negative; it must be {wanted}.")
    elif isinstance(value, str):
        seconds = _seconds_of(name, value, None if needs_unit else unit, wanted)
    else:
        seconds = unit * read_number(name, value, wanted)
    if seconds > most:
        has_unit = isinstance(value, (timedelta, str)) and not str(value).strip().isdecimal()
        why = "too long" if has_unit else _readings(seconds / unit, unit, most)
        longest = f"The longest time here is {format_duration(most)} ({most:g} s)."
        raise BadRequest(f"{name} is {describe_value(value)}: {why}. {longest}")
    return seconds


def _seconds_of(name: str, text: str, unit: float | None, wanted: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is not None and (factor := _UNITS.get(match[2], unit)) is not None:
        return float(match[1]) * factor
    text = text.strip()
    if match := _CLOCK.fullmatch(text) or _DAYS_AND_HOURS.fullmatch(text):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        if minutes < 60 and seconds < 60:
            return days * DAY + hours * 3600.0 + minutes * 60.0 + seconds
    if re.fullmatch(r"\d+:\d\d", text):
        raise BadRequest(
            f"{name} is {text!r}, which can mean hours and minutes, or minutes and seconds: write '{text}:00' or "
            f"'0:{text.zfill(5)}'."
        )
    raise BadRequest(f"{name} is {describe_value(text)}; it must be {wanted}.")


def _readings(number: float, unit: float, most: float) -> str:
    """Return the meanings of a number of units that is too great for a duration."""
    if unit != 1.0:
        years = f"{number * unit / DAY / 365.25:.3g} years"
        return f"as {_PLAIN_UNITS[unit]} that is {years}; seconds are written as '{number:.0f}s'"
    if most < LONGEST:
        return f"as seconds that is {format_duration(number)}; milliseconds are written as '{number / 1000:g}s'"
    years = f"as a number of seconds that is {number / 365.25 / DAY:.3g} years"
    for divisor, kind in ((1.0, "seconds"), (1e3, "milliseconds"), (1e6, "microseconds"), (1e9, "nanoseconds")):
        if number / divisor < 1e10:
            moment = datetime.fromtimestamp(number / divisor, timezone.utc)
            return (
                f"{years}; as {kind} since 1970 it is {moment:%Y-%m-%d %H:%M:%S} UTC, which is given as a "
                "datetime where a point in time is wanted"
            )
    return years


def read_start(name: str, value: Any) -> float | datetime:
    """Return a point in time with a time zone, or a number of seconds from now.

    ``value`` is a ``datetime`` or a text in ISO 8601, in this host's time zone unless it names one, or a duration of
    :func:`read_seconds`; as a text with its unit. Raises :class:`BadRequest`.
    """
    if isinstance(value, str):
        text = value.strip()
        if (match := _DURATION.fullmatch(text)) and match[2]:
            return read_seconds(name, text)
        try:
            value = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
        except ValueError as error:
            raise BadRequest(
                f"{name} is {describe_value(value)}, which is neither a time in ISO 8601 ({error}), such as "
                "'2026-11-28T18:30+01:00', nor a time from now with its unit, such as '2h'."
            ) from None
    if isinstance(value, datetime):
        try:
            return value.astimezone()  # a time without a zone is in this host's
        except (OverflowError, ValueError, OSError) as error:
            raise BadRequest(f"{name} is {value}, which is no possible time: {error}.") from None
    if isinstance(value, (numbers.Number, timedelta)):
        return read_seconds(name, value)
    raise BadRequest(
        f"{name} is {describe_value(value)}; it must be a datetime, a text in ISO 8601, or a number of seconds or a "
        "timedelta from now."
    )


def read_count(name: str, value: Any, least: int, most: float = math.inf, *, note: str = "") -> int:
    """Return a whole number of any integral type but ``bool``. Raises :class:`BadRequest`, with a ``note``."""
    kind: object = type(value)
    if isinstance(value, numbers.Integral) and kind is not bool and "timedelta64" not in repr(kind):
        number = operator.index(value)
        if least <= number <= most:
            return number
    limits = f"a whole number from {least} to {most}" if most < math.inf else f"at least {least}, a whole number"
    raise BadRequest(f"{name} is {describe_value(value)}; it must be {limits}{note}.")


def read_memory(size: Any, name: str = "memory") -> int:
    """Return a number of bytes, given as such or as a text like ``4G`` (K, M, G and T are powers of 1024); 0 for none.

    Raises :class:`BadRequest`, also for sizes that no process can have.
    """
    wanted = "a number of bytes, or a text like '4G' or '500M' (powers of 1024; without 'B')"
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        if match is None:
            raise BadRequest(f"{name} is {describe_value(size)}; it must be {wanted}.")
        count = int(match[1]) << 10 * " KMGT".index(match[2] or " ")
    else:
        number = read_number(name, size, wanted)
        if not number.is_integer():
            raise BadRequest(f"{name} is {describe_value(size)}; it must be {wanted}.")
        count = int(size)
    if 0 < count < _LEAST_MEMORY:
        raise BadRequest(
            f"{name} is {describe_value(size)}: as bytes that is less than any process needs. Write '{count}M' if "
            f"megabytes are meant, and '{count}G' if gigabytes are."
        )
    if count > _MOST_MEMORY:
        raise BadRequest(f"{name} is {describe_value(size)}: that is more than 1024 terabytes per rank. Give {wanted}.")
    return count


def keep_count(options: object, name: str, least: int, most: float = math.inf, *, note: str = "") -> None:
    """Freeze a whole number. Raises :class:`BadRequest`."""
    given = getattr(options, name)
    object.__setattr__(options, name, read_count(f"{type(options).__name__}: {name}", given, least, most, note=note))
