# ruff: noqa: SLF001  cloudpickle has no public reductions
"""Pickling of functions, classes and modules by value, and of those of a local module by reference.

A worker cannot import ``__main__``, a notebook or a local module. Their definitions are therefore pickled by value, by
the reductions of cloudpickle, whose registry of modules stays unchanged: other libraries in the process use it too. A
local module whose definitions cannot be pickled by value, as one with a lock, is imported by the worker from its file.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from spoolpool.calls import modules
from spoolpool.calls.sources import Origin, finder, sources, text_of
from spoolpool.errors import NotUnpicklable

if TYPE_CHECKING:
    import cloudpickle

_SET_BY_IMPORT = frozenset({"__builtins__", "__cached__", "__loader__", "__spec__"})
_FILE_OF_CLOUDPICKLE = "<dynamic-code>"
"""Name of the file that cloudpickle 3.1.3 gives to all code; earlier versions keep that of the file."""

by_reference: set[str] = set()
"""Local modules that workers import, because their definitions cannot be pickled by value."""


class Definitions:
    """Reductions of definitions for one pickle.

    ``local`` has the local modules that the pickle contains by value, in their order. ``imported`` are local modules
    that workers import, besides :data:`by_reference`.
    """

    def __init__(self, imported: Iterable[str] = ()) -> None:
        self._imported = by_reference.union(imported)
        self._path: tuple[str, ...] | None = None
        self.local: dict[str, None] = {}

    def reduce(self, value: Any, pickler: cloudpickle.Pickler) -> Any:
        """Return the reduction of a definition; ``NotImplemented`` where that of cloudpickle is right."""
        kind = type(value)
        if kind is types.FunctionType:
            return self._function(value, pickler)
        if issubclass(kind, type):
            return self._class(value)
        if issubclass(kind, types.ModuleType):
            return self._module(value)
        reduce = self._others.get(kind)
        return NotImplemented if reduce is None else reduce(self, value)

    def _function(self, function: types.FunctionType, pickler: cloudpickle.Pickler) -> Any:
        if (reference := self._reference(function)) is not None:
            return reference
        if not self._is_by_value(function):
            return NotImplemented
        make, args, *rest = pickler._dynamic_function_reduce(function)
        module = function.__module__
        if module in self._imported and modules.is_local(module):  # a function in a function
            args = (args[0], _Scope(module, self._search_path(module)), *args[2:])
            rest[0][1]["__globals__"] = {}
        origin = Origin(self._search_path(module), *text_of(function))
        return load_function, (make, args, tuple(origin)), *rest

    def _class(self, kind: type) -> Any:
        import cloudpickle.cloudpickle as base

        if kind in base._BUILTIN_TYPE_NAMES:
            return NotImplemented
        if (reference := self._reference(kind)) is not None:
            return reference
        if not self._is_by_value(kind):
            return NotImplemented
        make, args, state, _, _, fill = base._dynamic_class_reduce(kind)
        return load_class, (make, args, kind.__module__, kind.__qualname__), (fill, state), None, None, fill_class

    def _module(self, module: types.ModuleType) -> Any:
        name = module.__name__
        if not self._is_local(name):
            return NotImplemented
        if name in self._imported:
            return import_local, (name, "", self._search_path(name))
        # cloudpickle makes and fills a module in one step, which for a cycle of modules is an endless recursion
        state = {key: each for key, each in modules.attributes(module).items() if key not in _SET_BY_IMPORT}
        return types.ModuleType, (name,), state, None, None, fill_module

    def _cached(self, function: Any) -> Any:
        """Reduce a function with a cache, which Python pickles by the name of its module."""
        if (reference := self._reference(function)) is not None:
            return reference
        if not self._is_by_value(function):
            return NotImplemented
        state = {name: each for name, each in vars(function).items() if name != "__wrapped__"}
        parameters = function.cache_parameters()
        return make_cached, (function.__wrapped__, parameters["maxsize"], parameters["typed"]), state

    def _type_variable(self, variable: Any) -> Any:
        import cloudpickle.cloudpickle as base

        if (reference := self._reference(variable)) is not None:
            return reference
        if variable.__module__ not in modules.MAIN and not self._is_local(variable.__module__):
            return NotImplemented
        return base._make_typevar, base._decompose_typevar(variable)

    _others: typing.ClassVar[dict[type, Callable[[Definitions, Any], Any]]] = {
        types.CodeType: lambda _, code: _reduce_code(code),
        type(functools.lru_cache(len)): _cached,
        functools.cached_property: lambda _, found: (make_cached_property, (found.func, found.attrname)),
        typing.TypeVar: _type_variable,
        # singledispatch has a cache of this kind
        weakref.WeakKeyDictionary: lambda _, found: (weakref.WeakKeyDictionary, (dict(found),)),
    }

    def _is_local(self, name: str) -> bool:
        """Return whether a module is local, and remember it unless workers import it."""
        if not modules.is_local(name):
            return False
        if name not in self._imported:
            self.local[name] = None
        return True

    def _is_by_value(self, value: Any) -> bool:
        import cloudpickle.cloudpickle as base

        module = getattr(value, "__module__", None)
        if module in modules.MAIN or (isinstance(module, str) and self._is_local(module)):
            return True
        if isinstance(value, types.FunctionType | type):
            return not base._should_pickle_by_reference(value)
        return _lookup(module or "", getattr(value, "__qualname__", "")) is not value

    def _reference(self, value: Any) -> Any:
        """Return the reduction of a definition that workers import from its file; None for another one."""
        module = getattr(value, "__module__", None)
        if module not in self._imported or not modules.is_local(module):
            return None
        name = getattr(value, "__qualname__", None) or value.__name__
        found = _lookup(module, name)
        return (import_local, (module, name, self._search_path(module))) if found is value else None

    def _search_path(self, module: str | None) -> tuple[str, ...]:
        if self._path is None:
            self._path = modules.search_path()
        root = modules.root_of(module) if module else None
        return self._path if root is None or root in self._path else (*self._path, root)


class _Scope:
    """Global variables of a module that workers import."""

    def __init__(self, module: str, path: tuple[str, ...]) -> None:
        self._args = module, path

    def __reduce__(self) -> tuple[Any, ...]:
        return scope_of_local, self._args


def _reduce_code(code: types.CodeType) -> Any:
    """Reduce code with the name of its file, for its traceback."""
    import cloudpickle.cloudpickle as base

    make, args = base._code_reduce(code)
    file = code.co_filename
    return make, tuple(file if type(each) is str and each == _FILE_OF_CLOUDPICKLE else each for each in args)


def load_function(make: Callable[..., Any], args: tuple[Any, ...], origin: tuple[Any, ...]) -> Any:
    """Return a function that was pickled by value, and make its source text and its imports available."""
    path, line, text = Origin(*origin)
    if _worker:
        finder.use(path)
        if text:
            sources.add(args[0].co_filename, line, text)
    return make(*args)


def load_class(make: Callable[..., Any], args: tuple[Any, ...], module: str, name: str) -> Any:
    """Return a class that was pickled by value: that of the running script or local module, if it has one of the name.

    cloudpickle knows the classes that it has pickled in this process. A result from an earlier run of a script names a
    class that this process has not pickled.
    """
    import cloudpickle.cloudpickle as base

    *_, tracker, _ = args
    if tracker in base._DYNAMIC_CLASS_TRACKER_BY_ID or _worker:
        return make(*args)
    own = _lookup(module, name)
    if isinstance(own, type):
        return own
    made = make(*args)
    _unfilled.append(made)
    return made


def fill_class(kind: type, state: tuple[Callable[..., Any], Any]) -> None:
    """Set the attributes of a class that was pickled by value.

    In the process of a submitter the attributes of its own classes stay as they are.
    """
    fill, content = state
    new = [each for each in _unfilled if each is kind]
    if _worker or new:
        _unfilled[:] = [each for each in _unfilled if each is not kind]
        fill(kind, content)


_unfilled: list[type] = []
"""Classes that were made from a pickle and have no attributes yet. A list: a metaclass may define ``__eq__``."""

_worker: list[bool] = []


def become_worker() -> None:
    """Let this process take search path, source text and attributes of classes from the calls that it loads.

    It runs the calls of others, and has no script of its own.
    """
    _worker.append(True)
    finder.install()


def is_worker() -> bool:
    """Return whether this process runs the calls of others."""
    return bool(_worker)


def fill_module(module: types.ModuleType, state: dict[str, object]) -> None:
    """Set the attributes of a module that was pickled by value."""
    vars(module).update(state)


def make_cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    """Return a function with an empty :func:`functools.lru_cache`."""
    return functools.lru_cache(maxsize, typed)(function)


def make_cached_property(function: Callable[[Any], Any], name: str | None) -> Any:
    """Return a :class:`functools.cached_property`; before Python 3.12 it has a lock."""
    made = functools.cached_property(function)
    made.attrname = name
    return made


def import_local(module: str, name: str, path: tuple[str, ...]) -> Any:
    """Import a local module, and return its definition of a name; without a name, the module."""
    if _worker:
        finder.use(path)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split(".") if name else ():
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise NotUnpicklable(
            f"The module {module!r} of a call cannot be imported here ({type(error).__name__}: {error}). It is sent as "
            f"a name because its content cannot be pickled. Make it visible in one of {', '.join(path) or 'no paths'}, "
            "or create its locks and files inside its functions."
        ) from error
    return found


def scope_of_local(module: str, path: tuple[str, ...]) -> dict[str, Any]:
    """Import a local module, and return its global variables."""
    scope: dict[str, Any] = vars(import_local(module, "", path))
    return scope


def _lookup(module: str, name: str) -> Any:
    """Return a definition of an imported module by its qualified name; None if there is none."""
    found: Any = sys.modules.get(module)
    scope: Mapping[str, Any] = modules.attributes(found)
    for part in name.split("."):
        if part not in scope:
            return None
        found = scope[part]
        scope = vars(found) if isinstance(found, type) else {}
    return found


for _function in (
    load_function,
    load_class,
    fill_class,
    fill_module,
    make_cached,
    make_cached_property,
    import_local,
    scope_of_local,
):
    _function.__module__ = "spoolpool.wire"  # files contain these names; spoolpool.wire lists them
