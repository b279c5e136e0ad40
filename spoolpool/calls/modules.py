"""Local modules: modules that are imported here and that a fresh interpreter of this installation does not find."""

from __future__ import annotations

import functools
import os
import sys
import types
from typing import Any

MAIN = ("__main__", "__mp_main__")
"""Names of the module of the running script."""

_PATHS = 16  # directories of a search path that are sent with a call


def is_local(name: str) -> bool:
    """Return whether the imported module of a name is not installed, so that a worker could not import it."""
    place = _place(name)
    return place is not None and name not in MAIN and not _is_installed(name, place)


def is_library(name: str) -> bool:
    """Return whether an imported module belongs to the standard library, ``site-packages`` or spoolpool.

    A project that is installed in place (``pip install --editable``) is no library: it changes between two calls.
    """
    top = name.partition(".")[0]
    if top == "spoolpool":
        return True
    place = _place(name)
    return top in sys.stdlib_module_names if place is None else top not in MAIN and in_a_library(place)


def attributes(module: object) -> dict[str, Any]:
    """Return the attributes of a module that exist; empty for another object.

    It calls no ``__getattr__``: that of a lazily loaded module may raise any exception, or import a large package.
    """
    return object.__getattribute__(module, "__dict__") if issubclass(type(module), types.ModuleType) else {}


def root_of(name: str) -> str | None:
    """Return the directory from which a local module can be imported; None if its file is no file of its name."""
    place = _place(name)
    return None if place is None else _root_of(name, place)


@functools.lru_cache(maxsize=1024)
def _root_of(name: str, place: str) -> str | None:
    if not place.endswith(".py") or not os.path.isfile(place):
        return None
    path = os.path.abspath(place.removesuffix("/__init__.py").removesuffix(".py"))
    tail = os.sep + name.replace(".", os.sep)
    return path.removesuffix(tail) or os.sep if path.endswith(tail) else None


def search_path() -> tuple[str, ...]:
    """Return the directories of ``sys.path`` that are not those of the installation, at most 16."""
    try:
        directory = os.getcwd()
    except OSError:  # it was removed
        directory = ""
    return _absolute_paths(tuple(sys.path), directory)


@functools.lru_cache(maxsize=16)
def _absolute_paths(paths: tuple[str, ...], directory: str) -> tuple[str, ...]:
    found = [os.path.normpath(os.path.join(directory, path)) for path in paths if not _belongs_to_installation(path)]
    return tuple(dict.fromkeys(found))[:_PATHS]


@functools.lru_cache(maxsize=1024)
def _belongs_to_installation(path: str) -> bool:
    if not path:
        return False
    roots = (*_site_roots()[0], os.path.realpath(sys.base_prefix), os.path.realpath(sys.prefix))
    real = os.path.realpath(path)
    return real in _site_roots()[1] or any(real == root or real.startswith(root + os.sep) for root in roots)


def _place(name: str) -> str | None:
    """Return the file of an imported module, or the first directory of a package without ``__init__.py``."""
    found = attributes(sys.modules.get(name))
    file = found.get("__file__")
    if isinstance(file, str):
        return file
    try:
        paths = list(found.get("__path__") or ())
    except Exception:  # noqa: BLE001  a package may define a path of its own
        return None
    return paths[0] if paths and isinstance(paths[0], str) else None


@functools.cache
def _site_roots() -> tuple[tuple[str, ...], tuple[str, ...], frozenset[str]]:
    """Return what a fresh interpreter imports from.

    These are the directories of libraries, the directories in ``.pth`` files, and the modules that ``.pth`` files
    import at the start. The last two belong to projects that were installed in place (``pip install --editable``), by a
    path or by an import hook.
    """
    import glob
    import site

    # as sysconfig knows them; it reads the variables of the interpreter's build, which takes 10 ms
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    libraries = {os.path.dirname(os.__file__), os.path.join(sys.base_exec_prefix, sys.platlibdir, version)}
    libraries |= set(site.getsitepackages())
    libraries |= {path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")}
    projects, hooks = set(), set()
    for root in libraries:
        for pth in glob.glob(os.path.join(glob.escape(root), "*.pth")):
            try:
                with open(pth, encoding="utf-8") as file:
                    lines = [line.strip() for line in file]
            except (OSError, UnicodeDecodeError):  # its modules are pickled by value
                continue
            projects |= {line for line in lines if os.path.isdir(line)}
            for line in lines:
                if line.startswith(("import ", "import\t")):
                    hooks |= {part.strip() for part in line[7:].partition(";")[0].split(",")}
    return tuple(map(os.path.realpath, libraries)), tuple(map(os.path.realpath, projects)), frozenset(hooks)


@functools.lru_cache(maxsize=4096)
def _is_installed(name: str, place: str) -> bool:
    """Return whether a fresh interpreter of this installation finds a module.

    Modules of a library may have other names than their files (``os.path``, vendored packages): importing the library
    defines these names. The directory of a project also contains modules that are not installed, for instance scripts.
    """
    if name.partition(".")[0] == "spoolpool" or in_a_library(place):
        return True
    path = os.path.realpath(place)
    inside = name.replace(".", os.sep)
    if any(path.startswith(os.path.join(root, inside) + end) for root in _site_roots()[1] for end in (".", os.sep)):
        return True
    return _is_found_by_hook(name, path)


def _is_found_by_hook(name: str, path: str) -> bool:
    """Return whether an import hook of a project that was installed in place finds the package of a module."""
    top = name.partition(".")[0]
    for finder in sys.meta_path:
        module = getattr(finder, "__module__", "")  # of a class, or of its instance
        if module not in _site_roots()[2]:
            continue
        try:
            spec = finder.find_spec(top, None)
        except Exception:  # noqa: BLE001, S112  a hook of another project
            continue
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        for place in map(os.path.realpath, filter(None, places)):
            if path == place or path.startswith((place + os.sep, os.path.dirname(place) + os.sep)):
                return True
    return False


@functools.lru_cache(maxsize=4096)
def in_a_library(place: str) -> bool:
    """Return whether a file belongs to the standard library or to ``site-packages``."""
    places = os.path.abspath(place), os.path.realpath(place)  # Debian's sitecustomize is a link to /etc
    return any(path.startswith(os.path.join(root, "")) for root in _site_roots()[0] for path in places)
