"""Defaults of a site and of a user: TOML files, and an environment variable for each key.

The order is: option of a command or argument of a function, environment variable, the user's file, the file that
``SPOOLPOOL_CONFIG`` names, ``/etc/spoolpool.toml``, built-in value. An empty variable stands for the built-in value. A
file is used as a whole or not at all. A key that an option or variable decides needs no file, so that a file with a
mistake can be circumvented.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spoolpool import settings
from spoolpool.errors import BadRequest
from spoolpool.system.accounts import account_name, is_private_group, system_accounts
from spoolpool.system.environment import config_directory
from spoolpool.system.patterns import lazy_pattern
from spoolpool.system.quantities import read_seconds
from spoolpool.system.user_code import describe_value

log = logging.getLogger(__name__)

SITE_FILE = "/etc/spoolpool.toml"
"""File of the site; the one that ``SPOOLPOOL_CONFIG`` names is used before it."""

BUILT_IN = "built in"
"""Source of a value that no file and no variable gives."""

_LIMIT = 1 << 16  # bytes of a file
_WORD = lazy_pattern(r"[A-Za-z0-9_][\w.,:@+/=-]{0,199}", re.ASCII)
_logged: set[str] = set()


def _read_launcher(label: str, value: Any) -> str:
    if value not in settings.LAUNCHERS:
        raise BadRequest(f"{label} is {describe_value(value)}; it must be one of {', '.join(settings.LAUNCHERS)}.")
    return str(value)


def _read_word(label: str, value: Any) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        wanted = "a text of letters, digits and _.,:@+/=- that does not begin with a sign"
        raise BadRequest(f"{label} is {describe_value(value)}; it must be {wanted}.")
    return value


def _read_lease(label: str, value: Any) -> float:
    seconds = _read_caches(label, value)
    if not seconds:
        raise BadRequest(f"{label} is {describe_value(value)}; it must be more than 0 s.")
    return seconds


def _read_caches(label: str, value: Any) -> float:
    return read_seconds(label, value, most=settings.LONGEST_LEASE, needs_unit=False)


def _read_parents(label: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) and os.path.isabs(each) for each in value):
        raise BadRequest(f'{label} is {describe_value(value)}; it must be a list of absolute paths, as ["/project"].')
    return tuple(value)


def _read_switch(label: str, value: Any) -> bool:
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
    if not isinstance(value, bool):
        raise BadRequest(f"{label} is {describe_value(value)}; it must be true or false.")
    return value


class Key(NamedTuple):
    """Key of the files."""

    variable: str
    """Environment variable with the same meaning."""
    read: Callable[[str, Any], Any]
    """Function that returns a checked value; it is called with a label for the message of :class:`BadRequest`."""
    built_in: Any
    """Value without files and variables."""


KEYS: Mapping[str, Key] = {
    "launcher": Key(settings.ENV_LAUNCHER, _read_launcher, "auto"),
    "mpi": Key(settings.ENV_SRUN_MPI, _read_word, None),
    "partition": Key(settings.ENV_PARTITION, _read_word, None),
    "account": Key(settings.ENV_ACCOUNT, _read_word, None),
    "queue": Key(settings.ENV_QUEUE, _read_word, None),
    "lease": Key(settings.ENV_LEASE, _read_lease, settings.LEASE),
    "caches": Key(settings.ENV_CACHES, _read_caches, settings.CACHE_SECONDS),
    "preview": Key(settings.ENV_PREVIEW, _read_switch, True),
    "parents": Key(settings.ENV_PARENTS, _read_parents, ()),
}
"""All keys."""


class Default(NamedTuple):
    """Value of a key."""

    value: Any
    """Value; None if there is none."""
    source: str
    """Path of a file, name of an environment variable, or :data:`BUILT_IN`."""


@dataclass(frozen=True, kw_only=True)
class DefaultsFile:
    """File with defaults."""

    path: str
    exists: bool = True
    values: Mapping[str, Any] = field(default_factory=dict)
    """Checked values; none in a file with a mistake."""
    problem: str = ""
    """Reason why the file is not used, with its path; empty if it is used or does not exist."""


def files() -> list[DefaultsFile]:
    """Return the files that are looked for, in the order of their use."""
    found = [_load(os.path.join(config_directory(), "config.toml"), site=False)]
    if named := os.environ.get(settings.ENV_CONFIG):
        found.append(_load(named))
        if not os.path.isabs(named):
            problem = f"{settings.ENV_CONFIG} is {named!r}; it must be an absolute path, since jobs use it as well."
            found[-1] = DefaultsFile(path=named, problem=problem)
        elif not found[-1].exists:
            problem = f"{named} does not exist, and {settings.ENV_CONFIG} names it."
            found[-1] = DefaultsFile(path=named, exists=False, problem=problem)
    return [*found, _load(SITE_FILE)]


def find(key: str) -> Default:
    """Return the default of a key. Raises :class:`BadRequest` if a variable or file that is needed has a mistake."""
    default = _from_environment(key)
    if default is not None:
        return default
    for each in files():
        if each.problem:
            variable = KEYS[key].variable
            raise BadRequest(
                f"{each.problem} So the default of {key} is unknown. Correct the file, or ask the user support of this "
                f"site to do so; until then, give {key} as an option, or in {variable}. 'spool config' shows all files."
            )
        if key in each.values:
            return Default(each.values[key], each.path)
    return Default(KEYS[key].built_in, BUILT_IN)


def find_leniently(key: str) -> Default:
    """Return the default of a key; a variable or file with a mistake counts as missing, and is logged once."""
    try:
        return find(key)
    except BadRequest as error:
        if str(error) not in _logged:
            _logged.add(str(error))
            log.warning("%s", error)
        return Default(KEYS[key].built_in, BUILT_IN)


def survey() -> tuple[dict[str, Default], list[DefaultsFile], list[str]]:
    """Return the defaults of all keys, the files, and the mistakes; what has a mistake counts as missing."""
    found = files()
    problems = [each.problem for each in found if each.problem]
    defaults: dict[str, Default] = {}
    for key in KEYS:
        try:
            default = _from_environment(key)
        except BadRequest as error:
            problems.append(str(error))
            default = None
        layers = [Default(each.values[key], each.path) for each in found if key in each.values]
        defaults[key] = default or next(iter(layers), Default(KEYS[key].built_in, BUILT_IN))
    return defaults, found, problems


def _from_environment(key: str) -> Default | None:
    variable, read, built_in = KEYS[key]
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text:
        return Default(built_in, variable)
    if key == "parents":
        return Default(tuple(path for path in text.split(":") if path), variable)
    return Default(read(f"{variable} in the environment", text), variable)


def _load(path: str, *, site: bool = True) -> DefaultsFile:
    """Return a file, checked as a whole. That of a user is missing where its directory cannot be entered."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # not blocked by a FIFO
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        if missing or (isinstance(error, PermissionError) and not site):
            return DefaultsFile(path=path, exists=False)
        return DefaultsFile(path=path, problem=f"{path} cannot be read: {error.strerror}.")
    try:
        with open(fd, "rb") as file:
            _check_owner(path, os.fstat(fd))
            data = file.read(_LIMIT + 1)
        return DefaultsFile(path=path, values=_parse(path, data))
    except BadRequest as error:
        return DefaultsFile(path=path, problem=str(error))
    except OSError as error:
        return DefaultsFile(path=path, problem=f"{path} cannot be read: {error.strerror}.")


def _check_owner(path: str, status: os.stat_result) -> None:
    """Raise :class:`BadRequest` for a file that accounts other than root and this one can write to."""
    if not stat.S_ISREG(status.st_mode):
        raise BadRequest(f"{path} is not a regular file.")
    if status.st_uid not in {*system_accounts(), os.geteuid()}:
        raise BadRequest(f"{path} belongs to {account_name(status.st_uid)}; it must belong to root or to you.")
    others = stat.S_IWOTH
    if not is_private_group(status.st_gid, status.st_uid):
        others |= stat.S_IWGRP
    if status.st_mode & others:
        mode = stat.S_IMODE(status.st_mode)
        raise BadRequest(f"{path} has mode {mode:04o}: other accounts can write to it. Remove that right (chmod go-w).")


def _parse(path: str, data: bytes) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    if len(data) > _LIMIT:
        raise BadRequest(f"{path} has more than {_LIMIT} bytes; it is no file of defaults.")
    try:
        given = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{path} is not TOML: {error}.") from None
    values = {}
    for key, value in given.items():
        if key not in KEYS:
            raise BadRequest(f"{path} has the unknown key {key!r}; the keys are {', '.join(KEYS)}.")
        values[key] = KEYS[key].read(f"{path}: {key}", value)
    return values
