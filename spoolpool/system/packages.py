"""Package versions that a task requires on its worker, as tags of its lane: ``numpy==2.1.0``.

So a group decides before it unpickles anything whether it can run the task; if not, it reports its own version.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from spoolpool.errors import BadRequest
from spoolpool.system.patterns import lazy_pattern

_SEPARATORS = lazy_pattern(r"[-_.]+")


def requirements(wanted: Iterable[str]) -> tuple[str, ...]:
    """Return the tags of packages. A package is ``NAME==VERSION``, or a name that means the version installed here.

    Raises :class:`BadRequest` for a package without a version that is not installed here.
    """
    return tuple(sorted({_tag(each) for each in wanted}))


def _tag(wanted: str) -> str:
    name, _, version = wanted.partition("==")
    if not version:
        found = _installed(name)
        if found is None:
            raise BadRequest(
                f"resource_dict: packages names {name!r}, which is not installed here: add the version that the "
                f"workers should have, as in '{name}==1.0'."
            )
        version = found
    # names as the package index compares them; a '+' in a version would separate two tags of a lane
    return f"{_SEPARATORS.sub('-', name.strip()).lower()}=={version.strip().replace('+', '_')}"


def is_requirement(tag: str) -> bool:
    """Return whether a tag requires a package; other tags are set by the user."""
    return "==" in tag


@functools.lru_cache(maxsize=4096)  # other accounts may ask for any number of packages
def lacks(tag: str) -> str | None:
    """Return None where the package of a tag is installed in the required version, else a text about this host's."""
    name, _, version = tag.partition("==")
    found = _installed(name)
    if found is None:
        return f"{name} is not installed"
    return None if found.replace("+", "_") == version else f"{name} {found} is installed"


def _installed(name: str) -> str | None:
    from importlib import metadata  # a tenth of a group's import time, and few tasks name packages

    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: the name is empty
        return None
