"""Types of options for durations, times and sizes; :mod:`spoolpool.system.quantities` reads them."""

from __future__ import annotations

import contextlib
import math
import time
from datetime import datetime

import click

from spoolpool.errors import BadRequest
from spoolpool.system.quantities import DAY, LONGEST, read_memory, read_number, read_seconds
from spoolpool.system.walltime import read_walltime


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in newer versions of click alone
    """Duration in seconds: a number of seconds, a number with a unit (90s, 10m, 2h, 7d), or 1:30:00 or 2-00:00:00."""

    name = "time"
    unit = 1.0

    def __init__(self, least: float = 0.0, most: float = LONGEST, *, checks_range: bool = True) -> None:
        """Without ``checks_range`` a plain number is left to the caller to check."""
        self._least = least
        self._most = most
        self._checks_range = checks_range

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return a duration in seconds."""
        name = f"The value of {param.opts[-1]}" if param is not None else "The time"
        if isinstance(value, float):  # a default, or converted already
            return value
        if not self._checks_range:
            with contextlib.suppress(ValueError):  # a number with a unit
                return float(str(value))
        try:
            seconds = read_seconds(name, value, most=self._most, unit=self.unit, needs_unit=False)
        except BadRequest as error:
            self.fail(str(error), param, ctx)
        if seconds < self._least:
            self.fail(f"{name} is {value}; it must be {self._least:g} s or more.", param, ctx)
        return seconds


class Days(Duration):
    """Duration in seconds, from a number of days, or a number with a unit."""

    name = "days"
    unit = DAY


class Walltime(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Walltime in whole seconds, from a text of :func:`spoolpool.system.walltime.read_walltime`."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return a number of seconds."""
        try:
            return value if isinstance(value, int) else read_walltime("The walltime", value)
        except BadRequest as error:
            self.fail(str(error), param, ctx)


class Mebibytes(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Size in bytes, from a number of MiB, or a text with a unit (500M, 4G)."""

    name = "MiB"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return a number of bytes."""
        text = str(value)
        try:
            if text[-1:].isalpha():
                return read_memory(text, "The size")
            try:
                number = float(text)
            except ValueError:
                number = math.nan
            size = int(read_number("The size", number, "a number of MiB, or a text such as '8M'") * (1 << 20))
            if size > 1 << 40:
                self.fail(f"{text} MiB are more than a terabyte; for bytes, divide by 1048576.", param, ctx)
        except BadRequest as error:
            self.fail(str(error), param, ctx)
        return size


class Moment(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in newer versions of click alone
    """Time: a date, a date with a time, or a duration before now."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds since the epoch; a date is in the local time zone."""
        try:
            return datetime.fromisoformat(str(value)).astimezone().timestamp()
        except ValueError:
            return time.time() - Duration().convert(value, param, ctx)
