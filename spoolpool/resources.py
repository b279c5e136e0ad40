"""What a call may ask for (the keys of ``resource_dict``), and the shape of the group that can run it."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any

from spoolpool import settings
from spoolpool.errors import BadRequest
from spoolpool.system.packages import requirements


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


_MEMORY = re.compile(r"(\d{1,12})([KMGT]?)", re.ASCII)


def read_memory(wish: Any) -> int:
    """Bytes, out of a number of them or a text like ``4G`` (K, M, G and T are powers of 1024).

    Raises :class:`BadRequest`.
    """
    match = _MEMORY.fullmatch(wish) if isinstance(wish, str) else None
    if match:
        return int(match[1]) << 10 * " KMGT".index(match[2] or " ")
    if not isinstance(wish, int) or isinstance(wish, bool) or wish < 0:
        raise BadRequest(f"memory is {wish!r}; it must be a number of bytes, or a text like '4G' or '500M'.")
    return wish


def per_core(memory: int, threads: int) -> str:
    """Bytes per rank as Slurm takes them for each of its cores: whole megabytes, rounded up."""
    return f"{-(-memory // (threads << 20))}M"


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
    not_before: float | datetime = 0.0
    """When it may start at the earliest: a ``datetime`` (of this host's time zone if it names none), also as a text in
    ISO 8601; or seconds from the ``submit``, also as a ``timedelta``. The clock of the spool's filesystem counts."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables that the function finds in its environment, on all ranks."""
    memory: int = 0
    """Bytes of memory per rank, or a text like ``4G``: what an executor tells srun and sbatch about the groups that it
    starts. It does not choose among groups that run already; ``tags`` do."""
    error_log_file: str = ""
    """File to which each rank on which the function raises appends function, arguments and traceback; a relative path
    is one of the submitter's."""
    cache: bool | str = True
    """Where the executor has a cache: whether it is used for this call; ``"resources"``: and what the call gets beside
    its ranks counts for its key."""
    cache_key: str = ""
    """Key of the call in the cache, in the place of the one that is made from function and arguments."""

    def updated(self, wishes: Mapping[str, Any]) -> Resources:
        """These with some keys set; raises :class:`BadRequest` for an unknown key or a senseless value."""
        known = [each.name for each in fields(self)]
        given = {}
        for key, value in wishes.items():
            if key not in known:
                raise BadRequest(f"resource_dict has no key {key!r}. It knows: {', '.join(known)}.")
            given[key] = _checked(key, value)
        return replace(self, **given)

    @functools.cached_property
    def shape(self) -> Shape:
        """The group that can run it."""
        return Shape(ranks=self.cores, threads=self.threads_per_core, gpus=self.gpus_per_core)

    @functools.cached_property
    def lane_tags(self) -> tuple[str, ...]:
        """All that is asked for besides the shape, as a lane has it."""
        return tuple(sorted({*self.tags, *self.packages})) if self.packages else self.tags

    @functools.cached_property
    def _unusual(self) -> dict[str, Any]:
        return {name: value for name in _IN_HEADERS if (value := getattr(self, name)) != _USUAL[name]}

    def of_header(self, now: Callable[[], float]) -> dict[str, Any]:
        """What a task's header says of them: what is not as usual. ``now`` is asked for the time if it matters."""
        if not self._unusual:
            return {}
        said = dict(self._unusual)
        start = said.get("not_before")
        if isinstance(start, datetime):
            said["not_before"] = start.timestamp()
        elif start:
            said["not_before"] = start + now()
        return said

    def decisive(self) -> list[Any]:
        """What decides what comes of a call; the others say when and how often it is run."""
        return [getattr(self, name) for name in _DECISIVE]


_DECISIVE = ("cores", "threads_per_core", "gpus_per_core", "cwd", "tags", "packages", "env")
_IN_HEADERS = ("retries", "retry_delay", "time_limit", "cwd", "not_before", "env", "memory", "error_log_file")
_USUAL = {name: getattr(Resources(), name) for name in _IN_HEADERS}


def _checked(key: str, value: Any) -> Any:
    """The value of a key as the field holds it."""
    if key in _CHECKS:
        return _CHECKS[key](key, value)
    if value is None and key == "max_attempts":
        return value
    least, most = _BOUNDS[key]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadRequest(f"resource_dict: {key} is {value!r}; it must be a whole number from {least} to {most}.")
    return value


def _path(key: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise BadRequest(f"resource_dict: {key} must be a path, not {value!r}.")
    return os.fspath(value)


def _file(key: str, value: Any) -> str:
    path = _path(key, value)
    return os.path.abspath(path) if path else ""


def _names(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(each, str) for each in value):
        raise BadRequest(f"resource_dict: {key} must be a list of names, not {value!r}.")
    return requirements(value) if key == "packages" else tuple(sorted(set(value)))


def _seconds(key: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise BadRequest(f"resource_dict: {key} must be a number of seconds, not {value!r}.")
    return value


def _start(key: str, value: Any) -> float | datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise BadRequest(f"resource_dict: {key} is {value!r}, no time as ISO 8601 writes it: {error}.") from None
    if isinstance(value, datetime):
        return value.astimezone()  # a time without a zone is one of this host's
    return _seconds(key, value.total_seconds() if isinstance(value, timedelta) else value)


def _variables(key: str, value: Any) -> dict[str, str]:
    good = isinstance(value, Mapping) and all(
        isinstance(name, str) and name and "=" not in name and isinstance(text, str) and "\0" not in name + text
        for name, text in value.items()
    )
    if not good:
        raise BadRequest(f"resource_dict: {key} must be a dict from names of variables to texts, not {value!r}.")
    return dict(value)


def _use_of_cache(key: str, value: Any) -> bool | str:
    if value is not True and value is not False and value != "resources":
        raise BadRequest(f"resource_dict: {key} must be True, False or 'resources', not {value!r}.")
    return value  # type: ignore[no-any-return]


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"resource_dict: {key} must be a text, not {value!r}.")
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "cwd": _path,
    "tags": _names,
    "packages": _names,
    "retry_delay": _seconds,
    "time_limit": _seconds,
    "not_before": _start,
    "env": _variables,
    "memory": lambda _, value: read_memory(value),
    "error_log_file": _file,
    "cache": _use_of_cache,
    "cache_key": _text,
}
