"""Resources that a call requests (the keys of ``resource_dict``), and the shape of the worker group that runs it."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any

from spoolpool import settings
from spoolpool.errors import BadRequest
from spoolpool.system.packages import requirements
from spoolpool.system.patterns import lazy_pattern
from spoolpool.system.quantities import LONGEST, read_count, read_memory, read_seconds, read_start
from spoolpool.system.user_code import describe_value


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of a worker group."""

    ranks: int = 1
    """MPI ranks; one rank needs no MPI."""
    threads: int = 1
    """Threads per rank."""
    gpus: int = 0
    """GPUs per rank."""

    @property
    def cores(self) -> int:
        """Number of cores that the group occupies."""
        return self.ranks * self.threads

    def burden(self) -> tuple[int, int]:
        """Return a sort key; the shape that is hardest to place comes first."""
        return -self.ranks * self.gpus, -self.cores

    def __str__(self) -> str:
        gpus = f" and {self.gpus} GPU(s)" if self.gpus else ""
        return f"{self.ranks} rank(s) with {self.threads} thread(s){gpus} each"


_SHAPE = lazy_pattern(r"(\d{1,7})(?:x(\d{1,4}))?(?:\+(\d{1,3})gpu)?(?:=(\d{1,7}))?", re.ASCII)


def read_shape(text: str) -> tuple[Shape, int | None]:
    """Parse a shape and a number of groups from a text like ``8x2+1gpu=4``: ranks, threads and GPUs per rank, groups.

    Only the ranks are required; the number of groups is None by default. Raises :class:`BadRequest`.
    """
    match = _SHAPE.fullmatch(text)
    given = match.groups() if match else ("0", None, None, None)
    ranks, threads, gpus, count = (None if part is None else int(part) for part in given)
    if not ranks or threads == 0 or count == 0:
        raise BadRequest(
            f"{text!r} is no shape of groups: write RANKS[xTHREADS][+GPUSgpu][=GROUPS], as in '8', '1=16' or "
            "'8x2+1gpu=4'."
        )
    return Shape(ranks=ranks, threads=threads or 1, gpus=gpus or 0), count


def per_core(memory: int, threads: int) -> str:
    """Convert bytes per rank to Slurm's memory per core: whole megabytes, rounded up."""
    return f"{-(-memory // (threads << 20))}M"


_BOUNDS = {
    "cores": (1, 9_999_999),
    "threads_per_core": (1, 9999),
    "gpus_per_core": (0, 999),
    "max_attempts": (1, 99),
    "retries": (0, 90),
    "priority": (-499, 499),
}
_NOTES = {"priority": ", and tasks of a greater one run earlier"}
_MOST_SECONDS = {"retry_delay": 300.0}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources and rules of one call. Every field is a key of ``resource_dict``."""

    cores: int = 1
    """MPI ranks that run the function together."""
    threads_per_core: int = 1
    """Threads per rank."""
    gpus_per_core: int = 0
    """GPUs per rank."""
    cwd: str = ""
    """Working directory of the call, created if missing. If empty, that of the submitter at the ``submit``, which must
    exist on the worker's host. A relative path starts there too."""
    max_attempts: int | None = None
    """Number of attempts: the task is lost when so many workers have died with it; the spool's default if None."""
    retries: int = 0
    """Number of further tries after the call raised; the exception of the last one is its outcome."""
    retry_delay: float = 1.0
    """Time before the first retry; doubled before each further one, up to five minutes."""
    time_limit: float = 0.0
    """Time after which :class:`~spoolpool.errors.TaskTimeout` is raised in the call; no limit if 0. A time is a number
    of seconds, a ``timedelta``, or a text: ``90s``, ``10m``, ``2h``, ``7d``, ``1:30:00``; at most ten years."""
    priority: int = settings.PRIORITY
    """Priority from -499 to 499; tasks of a greater one run earlier."""
    tags: tuple[str, ...] = ()
    """Tags (``spool-worker --tag``) that a group must have, all of them, to run the call."""
    packages: tuple[str, ...] = ()
    """Packages that a group must have, in the version installed here or in a named one (``numpy==2.1``)."""
    not_before: float | datetime = 0.0
    """Earliest start: a ``datetime`` (in this host's time zone unless it names one), also as a text in ISO 8601; or a
    time after the ``submit``, as a number of seconds, a ``timedelta``, or a text such as ``2h``. A number is no time
    since 1970. Measured by the clock of the spool's filesystem."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the function, on all ranks."""
    memory: int = 0
    """Memory per rank in bytes, or a text like ``4G``: an option of srun and sbatch when an executor starts groups. It
    does not select among running groups; ``tags`` do."""
    error_log_file: str = ""
    """File to which each rank appends function, arguments and traceback if the function raises there. A relative path
    starts at the submitter's working directory."""
    label: str = field(default="", compare=False)
    """Text by which people tell this call from others: ``spool ls``, ``show``, ``top`` and the report show it. The
    first 200 characters are kept."""
    cache: bool | str = True
    """Whether the executor's cache, if it has one, is used for this call; with ``"resources"``, all resources of the
    call are part of its key, not only the number of ranks."""
    cache_key: str = ""
    """Key of the call in the cache, instead of the one derived from function and arguments."""

    def updated(self, resource_dict: Mapping[str, Any]) -> Resources:
        """Return a copy with these keys set. Raises :class:`BadRequest` for an unknown key or an invalid value."""
        known = [each.name for each in fields(self)]
        given = {}
        for key, value in resource_dict.items():
            if key not in known:
                raise BadRequest(f"resource_dict has no key {key!r}. It knows: {', '.join(known)}.")
            given[key] = _checked(key, value)
        return replace(self, **given)

    @functools.cached_property
    def shape(self) -> Shape:
        """Shape of the worker groups that run the call."""
        return Shape(ranks=self.cores, threads=self.threads_per_core, gpus=self.gpus_per_core)

    @functools.cached_property
    def lane_tags(self) -> tuple[str, ...]:
        """Tags of the lane: the requested tags and packages."""
        return tuple(sorted({*self.tags, *self.packages})) if self.packages else self.tags

    @functools.cached_property
    def _non_default(self) -> dict[str, Any]:
        return {name: value for name in _IN_HEADERS if (value := getattr(self, name)) != _DEFAULTS[name]}

    def header_fields(self, now: Callable[[], float]) -> dict[str, Any]:
        """Return the fields of the task's header that differ from their defaults; ``now`` is called only if needed."""
        if not self._non_default:
            return {}
        found = dict(self._non_default)
        start = found.get("not_before")
        if isinstance(start, datetime):
            found["not_before"] = start.timestamp()
        elif start:
            found["not_before"] = start + now()
        return found

    def decisive(self) -> list[Any]:
        """Return the values that may change the result of a call; the others say when and how often it runs."""
        return [getattr(self, name) for name in _DECISIVE]


_DECISIVE = ("cores", "threads_per_core", "gpus_per_core", "cwd", "tags", "packages", "env")
_IN_HEADERS = ("retries", "retry_delay", "time_limit", "cwd", "not_before", "env", "memory", "error_log_file")
_DEFAULTS = {name: getattr(Resources(), name) for name in _IN_HEADERS}


def _checked(key: str, value: Any) -> Any:
    """Return the value of a key as the field has it. Raises :class:`BadRequest`."""
    if key in _CHECKS:
        return _CHECKS[key](key, value)
    if value is None and key == "max_attempts":
        return value
    return read_count(f"resource_dict: {key}", value, *_BOUNDS[key], note=_NOTES.get(key, ""))


def _check_path(key: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise BadRequest(f"resource_dict: {key} must be a path, not {describe_value(value)}.")
    path = os.fspath(value)
    return os.path.abspath(path) if path else ""


def _check_names(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(each, str) for each in value):
        raise BadRequest(f"resource_dict: {key} must be a list of names, not {describe_value(value)}.")
    return requirements(value) if key == "packages" else tuple(sorted(set(value)))


def _check_seconds(key: str, value: Any) -> float:
    return read_seconds(f"resource_dict: {key}", value, most=_MOST_SECONDS.get(key, LONGEST))


def _check_start(key: str, value: Any) -> float | datetime:
    return read_start(f"resource_dict: {key}", value)


def _check_variables(key: str, value: Any) -> dict[str, str]:
    good = isinstance(value, Mapping) and all(
        isinstance(name, str) and name and "=" not in name and isinstance(text, str) and "\0" not in name + text
        for name, text in value.items()
    )
    if not good:
        raise BadRequest(
            f"resource_dict: {key} must be a dict from names of variables to texts, not {describe_value(value)}."
        )
    return dict(value)


def _check_cache_use(key: str, value: Any) -> bool | str:
    if value is not True and value is not False and value != "resources":
        raise BadRequest(f"resource_dict: {key} must be True, False or 'resources', not {describe_value(value)}.")
    return value  # type: ignore[no-any-return]


def _check_text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"resource_dict: {key} must be a text, not {describe_value(value)}.")
    return str.__str__(value)  # without the methods of a subclass


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "cwd": _check_path,
    "tags": _check_names,
    "packages": _check_names,
    "retry_delay": _check_seconds,
    "time_limit": _check_seconds,
    "not_before": _check_start,
    "env": _check_variables,
    "memory": lambda key, value: read_memory(value, f"resource_dict: {key}"),
    "error_log_file": _check_path,
    "cache": _check_cache_use,
    "cache_key": _check_text,
    "label": _check_text,
}
