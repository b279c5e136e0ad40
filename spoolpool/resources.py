"""What a call may ask for (the keys of ``resource_dict``), and the shape of the group that can run it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from spoolpool import settings
from spoolpool.errors import BadRequest
from spoolpool.packages import requirements


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a group consists of."""

    ranks: int = 1
    """MPI ranks; one rank needs no MPI."""
    threads: int = 1
    """Threads per rank."""
    gpus: int = 0
    """GPUs per rank."""

    @property
    def cores(self) -> int:
        """Cores that it keeps busy."""
        return self.ranks * self.threads

    def burden(self) -> tuple[int, int]:
        """Sorts first what is hardest to place."""
        return -self.ranks * self.gpus, -self.cores

    def __str__(self) -> str:
        gpus = f" and {self.gpus} GPU(s)" if self.gpus else ""
        return f"{self.ranks} rank(s) with {self.threads} thread(s){gpus} each"


_SHAPE = re.compile(r"(\d{1,7})(?:x(\d{1,4}))?(?:\+(\d{1,3})gpu)?(?:=(\d{1,7}))?", re.ASCII)


def read_shape(text: str) -> tuple[Shape, int | None]:
    """A shape and a number of groups out of a text like ``8x2+1gpu=4``: ranks, threads and GPUs per rank, groups.

    Only the ranks must be there; the number is None where it is not. Raises :class:`BadRequest`.
    """
    match = _SHAPE.fullmatch(text)
    given = match.groups() if match else ("0", None, None, None)
    ranks, threads, gpus, count = (None if part is None else int(part) for part in given)
    if not ranks or threads == 0 or count == 0:
        raise BadRequest(
            f"A shape of groups cannot be {text!r}: it is RANKS[xTHREADS][+GPUSgpu][=GROUPS], as in '8', '1=16' or "
            "'8x2+1gpu=4'."
        )
    return Shape(ranks=ranks, threads=threads or 1, gpus=gpus or 0), count


_BOUNDS = {
    "cores": (1, 9_999_999),
    "threads_per_core": (1, 9999),
    "gpus_per_core": (0, 999),
    "max_attempts": (1, 99),
    "retries": (0, 90),
    "priority": (-499, 499),
}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one call needs. Every field is a key of ``resource_dict``."""

    cores: int = 1
    """MPI ranks that run the function together."""
    threads_per_core: int = 1
    """Threads per rank."""
    gpus_per_core: int = 0
    """GPUs per rank."""
    cwd: str = ""
    """Working directory of the call, made if missing; the worker's own if empty."""
    max_attempts: int | None = None
    """How often the task may be claimed by a worker that then dies; the spool's default if None."""
    retries: int = 0
    """How often the call is tried again after it raised; the last exception is its outcome."""
    retry_delay: float = 1.0
    """Seconds before the first of these; each further one waits twice as long, five minutes at most."""
    time_limit: float = 0.0
    """Seconds after which :class:`~spoolpool.errors.TaskTimeout` is raised in the call; no limit if 0."""
    priority: int = settings.PRIORITY
    """Greater is sooner, from -499 to 499."""
    tags: tuple[str, ...] = ()
    """What a group must be tagged with (``spool-worker --tag``) to be given the call: all of these names."""
    packages: tuple[str, ...] = ()
    """Packages that a group must have in the version that is installed here, or in a named one (``numpy==2.1``)."""

    def updated(self, wishes: Mapping[str, Any]) -> Resources:
        """These with some keys set; raises :class:`BadRequest` for an unknown key or a senseless value."""
        known = [each.name for each in fields(self)]
        given = {}
        for key, value in wishes.items():
            if key not in known:
                raise BadRequest(f"resource_dict has no key {key!r}. It knows: {', '.join(known)}.")
            given[key] = _checked(key, value)
        return replace(self, **given)

    def lane_tags(self) -> tuple[str, ...]:
        """All that is asked for besides the shape, as a lane has it."""
        return tuple(sorted({*self.tags, *self.packages})) if self.packages else self.tags

    def shape(self) -> Shape:
        """The group that can run it."""
        return Shape(ranks=self.cores, threads=self.threads_per_core, gpus=self.gpus_per_core)


def _checked(key: str, value: Any) -> Any:
    """The value of a key as the field holds it."""
    if key == "cwd":
        if not isinstance(value, (str, os.PathLike)):
            raise BadRequest(f"resource_dict: cwd must be a path, not {value!r}.")
        return os.fspath(value)
    if key in ("tags", "packages"):
        if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(each, str) for each in value):
            raise BadRequest(f"resource_dict: {key} must be a list of names, not {value!r}.")
        return requirements(value) if key == "packages" else tuple(sorted(set(value)))
    if value is None and key == "max_attempts":
        return value
    if key in ("retry_delay", "time_limit"):
        if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise BadRequest(f"resource_dict: {key} must be a number of seconds, not {value!r}.")
        return value
    least, most = _BOUNDS[key]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadRequest(f"resource_dict: {key} is {value!r}; it must be a whole number from {least} to {most}.")
    return value
