"""Packages that a task wants in the same version where it runs, as tags of its lane: ``numpy==2.1.0``.

So it is known before anything is unpickled whether a group can run it, and a group that cannot says what it has.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from spoolpool.errors import BadRequest

_SEPARATORS = re.compile(r"[-_.]+")


def requirements(wanted: Iterable[str]) -> tuple[str, ...]:
    """Tags for packages by name (then in the version that is installed here), or as ``NAME==VERSION``.

    Raises :class:`BadRequest` for a package that is not installed here and named without a version.
    """
    return tuple(sorted({_tag(each) for each in wanted}))


def _tag(wanted: str) -> str:
    name, _, version = wanted.partition("==")
    if not version:
        found = _installed(name)
        if found is None:
            raise BadRequest(
                f"resource_dict: packages names {name!r}, which is not installed here: name the version that the "
                f"workers should have, as in '{name}==1.0'."
            )
        version = found
    # as the index of packages compares names; a '+' of a local version parts tags from each other
    return f"{_SEPARATORS.sub('-', name.strip()).lower()}=={version.strip().replace('+', '_')}"


def is_requirement(tag: str) -> bool:
    """Whether a tag asks for a package, and not for something that a group was tagged with."""
    return "==" in tag


@functools.cache
def lacks(tag: str) -> str | None:
    """None where the package of such a tag is installed in this version, else what is here in its place."""
    name, _, version = tag.partition("==")
    found = _installed(name)
    if found is None:
        return f"{name} is not installed"
    return None if found.replace("+", "_") == version else f"{name} {found} is installed"


def _installed(name: str) -> str | None:
    from importlib import metadata  # a tenth of what a group imports, for the few tasks that name packages

    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: the name is empty
        return None
