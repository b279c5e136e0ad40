"""Search path and source text of definitions by value, in the process that loads them.

A function by value belongs to a script or module that this process cannot import. Its traceback and
:func:`inspect.getsource` need the text of its file, and imports in its body need the directories from which the
submitter imports.
"""

from __future__ import annotations

import functools
import importlib
import linecache
import os
import sys
import threading
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import NamedTuple

from spoolpool.calls import modules

TEXT_LIMIT = 4096
"""Bytes of source text that are sent with a function. That of a longer one is read from its file, if it is visible."""

_FILES = 256  # files of which source text is kept


class Origin(NamedTuple):
    """Position of a function in its file, its source text, and the directories from which its imports are found."""

    path: tuple[str, ...]
    line: int
    text: str


def text_of(function: types.FunctionType) -> tuple[int, str]:
    """Return the number of the first line of a function, and its source text; empty if it is unknown or long."""
    code = function.__code__
    return _text_of(code.co_filename, code)  # equal code of two files is equal


@functools.lru_cache(maxsize=1024)
def _text_of(file: str, code: types.CodeType) -> tuple[int, str]:
    if modules.in_a_library(file):
        return code.co_firstlineno, ""
    import inspect  # 5 ms, for functions by value alone

    try:
        lines, first = inspect.getsourcelines(code)
    except Exception:  # noqa: BLE001  OSError, or any error of the tokenizer where the file has changed
        return code.co_firstlineno, ""
    text = "".join(lines)
    return (first, text) if len(text) <= TEXT_LIMIT else (first, "")


class SourceCache:
    """Text of functions by value, by file and line, for the tracebacks of this process."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}
        self._texts: dict[str, dict[int, str]] = {}  # by file and first line: those that its lines contain

    def add(self, file: str, first: int, text: str) -> None:
        """Let :mod:`linecache` return this text for the lines from ``first`` on."""
        lines = self._lines.get(file)
        if lines is not None and self._texts[file].get(first) == text:  # the usual case: the function was called before
            entry = linecache.cache.get(file)
            if entry and len(entry) == 4 and entry[2] is lines:
                return
        new = text.splitlines(keepends=True)
        if lines is None:
            while len(self._lines) >= _FILES:
                linecache.cache.pop(oldest := next(iter(self._lines)), None)
                del self._lines[oldest], self._texts[oldest]
            lines = self._lines[file] = linecache.getlines(file).copy()
            self._texts[file] = {}
        if lines[first - 1 : first - 1 + len(new)] != new:
            lines.extend("\n" for _ in range(first - 1 + len(new) - len(lines)))
            lines[first - 1 : first - 1 + len(new)] = new
            self._texts[file].clear()  # those of the replaced lines
        self._texts[file][first] = text
        # no time of modification: linecache does not compare the text with the file
        linecache.cache[file] = (sum(map(len, lines)), None, lines, file)


class LocalFinder:
    """Import hook for the modules beside the script whose function this process runs.

    It comes after the other ways to import that exist when it is installed. Its modules are removed from
    :data:`sys.modules` when a function of another script is loaded, or one of their files has changed.
    """

    def __init__(self) -> None:
        self._path: tuple[str, ...] = ()
        self._found: dict[str, tuple[str, int]] = {}  # file and time of its modification, by name of module
        self._lock = threading.Lock()

    def install(self) -> None:
        """Install the hook, before the state of the process is saved that each task is to find."""
        if self not in sys.meta_path:
            sys.meta_path.append(self)

    def use(self, path: Sequence[str]) -> None:
        """Search these directories from now on."""
        with self._lock:
            self.install()
            if tuple(path) == self._path and all(_modified(file) == time for file, time in self._found.values()):
                return
            for name in self._found:
                sys.modules.pop(name, None)
            self._found.clear()
            self._path = tuple(path)
            importlib.invalidate_caches()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module in the directories, or in a package that was found there."""
        if path is not None and fullname.rpartition(".")[0] not in self._found:
            return None
        spec = PathFinder.find_spec(fullname, self._path if path is None else path, target)
        if spec is not None:
            file = spec.origin if spec.has_location and spec.origin else ""
            self._found[fullname] = file, _modified(file)
        return spec


def _modified(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns if file else 0
    except OSError:
        return 0


finder = LocalFinder()
sources = SourceCache()
