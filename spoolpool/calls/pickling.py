"""Pickling of calls and results: cloudpickle, protocol 5, large buffers out of band.

Functions of ``__main__``, of a notebook or of a module that is not installed are pickled by value, because the worker
could not import them. Installed modules are pickled by reference.
"""

from __future__ import annotations

import functools
import glob
import importlib
import io
import os
import pickle
import sys
import sysconfig
import types
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from spoolpool.calls.exceptions import Reason, reduce_exception
from spoolpool.errors import BadRequest, NotPicklable, NotUnpicklable, SpoolpoolError
from spoolpool.format.envelope import Buffer
from spoolpool.system.user_code import describe_error, describe_value, is_interrupt, printable

OUT_OF_BAND = 32768
"""Size in bytes from which a buffer is written beside the pickle, page-aligned, instead of into it."""

_SET_BY_IMPORT = frozenset({"__builtins__", "__cached__", "__loader__", "__spec__"})

_PLAIN = frozenset({int, float, bool, str, bytes, type(None), complex})
_PLAIN_CONTAINERS = frozenset({tuple, list, dict})


@functools.cache
def _import_wire() -> None:
    """Import the module of the functions that a pickle names; cloudpickle refers to imported modules only."""
    importlib.import_module("spoolpool.wire")


class Reference(NamedTuple):
    """Pickled stand-in for a future: session, task id, and the keys that select a part of its result."""

    session: str
    task: str
    keys: tuple[object, ...] = ()


@dataclass(frozen=True)
class ObjectRef:
    """Reference to an object, from :meth:`spoolpool.Executor.put`; as an argument of a call it becomes the value.

    It can be pickled. Other sessions of the same spool can use it as long as an open session has a lease on the object.
    """

    spool: str
    """Id of the spool."""
    name: str
    """Name of the object's file in the spool's ``objects/``."""
    size: int
    """Bytes of the pickled value."""

    __module__ = "spoolpool"

    def __reduce__(self) -> tuple[Any, ...]:
        _import_wire()
        return stored_object, (self.spool, self.name, self.size)


Refer = Callable[["Future[Any] | ObjectRef"], "Reference | ObjectRef | object"]
"""Function that returns the replacement of a future: a reference, or its value. It is called for objects too."""

Find = Callable[["Reference | ObjectRef"], object]
"""Function that returns the value of a reference."""

_find: ContextVar[Find | None] = ContextVar("spoolpool_find", default=None)


def _resolve(reference: Reference | ObjectRef) -> object:
    find = _find.get()
    return reference if find is None else find(reference)


def task_result(session: str, task: str, keys: tuple[object, ...] = ()) -> object:
    """Return the value of a reference to a task's result; outside of a call, the reference itself."""
    return _resolve(Reference(session, task, keys))


def stored_object(spool: str, name: str, size: int) -> object:
    """Return the value of a stored object; outside of a call, its reference."""
    return _resolve(ObjectRef(spool, name, size))


def substitute(value: object) -> object:
    """Return the value that replaced a future in a pickle."""
    return value


def _is_plain(value: object, depth: int = 4) -> bool:
    """Return whether a value is small and consists of builtins alone, so that no part of it needs a module."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is types.BuiltinFunctionType:
        return getattr(value, "__module__", None) == "builtins"
    if not depth or kind not in _PLAIN_CONTAINERS or len(value) >= 100:  # type: ignore[arg-type]
        return False
    if isinstance(value, dict):
        if not all(type(key) is str for key in value):
            return False
        value = value.values()
    for item in value:  # type: ignore[attr-defined]  # noqa: SIM110  three times as fast as all(), for every call
        if type(item) not in _PLAIN and not _is_plain(item, depth - 1):
            return False
    return True


def dumps(
    value: object, refer: Refer | None = None, *, leave_out: bool = False, linked: bool = True
) -> tuple[Buffer, list[Buffer]]:
    """Return the pickle of a value and its out-of-band buffers, which are views, not copies.

    ``refer`` is called for each future and each object anywhere in the value. ``leave_out`` leaves out parts of
    exceptions that cannot be pickled; ``linked`` is false to leave out their causes and contexts. Raises
    :class:`NotPicklable` with the message of cloudpickle, and the :class:`BadRequest` of ``refer``.
    """
    buffers: list[Buffer] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if len(raw) < OUT_OF_BAND:
            return True
        buffers.append(raw)
        return False

    try:
        if _is_plain(value):  # without a check of modules it takes a third of the time
            return pickle.dumps(value, protocol=5), buffers
        _register_local_modules()
        stream = io.BytesIO()
        pickler = _pickler()(stream, protocol=5, buffer_callback=keep)
        pickler.refer = refer
        pickler.reason = _why_not_picklable if leave_out else None
        pickler.linked = linked
        pickler.dump(value)
    except BadRequest:
        raise
    except BaseException as error:  # a __reduce__ may raise anything
        if is_interrupt(error):
            raise
        if isinstance(error.__cause__ or error, RecursionError):  # cloudpickle raises it as a cause
            raise NotPicklable(f"{describe_value(value)} cannot be pickled: it is nested too deeply.") from None
        raise NotPicklable(f"{describe_value(value)} cannot be pickled: {describe_error(error)}") from error
    return stream.getvalue(), buffers  # no copy: BytesIO returns the bytes that it filled


def _why_not_picklable(value: object) -> str | None:
    """Return the reason why a value cannot be pickled or unpickled; None if it can."""
    try:
        payload, buffers = dumps(value, leave_out=True)
        loads(bytes(payload), buffers)
    except SpoolpoolError as error:
        reason = error.__cause__ or error
        return describe_error(reason)[:200]
    return None


@functools.cache
def _pickler() -> Callable[..., Any]:
    """Return a subclass of cloudpickle's pickler. It supports futures, objects, and local modules that form a cycle."""
    import cloudpickle

    _import_wire()

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
        refer: Refer | None = None
        reason: Reason | None = None
        linked = True

        def reducer_override(self, value: object) -> Any:
            if isinstance(value, Future):
                return self._replacement_of(value)
            if isinstance(value, ObjectRef) and self.refer is not None:
                self.refer(value)
            if isinstance(value, BaseException):
                reduced = reduce_exception(value, self.reason, self.linked)
                return reduced if reduced is not NotImplemented else super().reducer_override(value)
            if not isinstance(value, types.ModuleType):
                return super().reducer_override(value)
            if value.__name__.startswith("spoolpool."):
                return import_optional, (value.__name__,)
            if value.__name__ not in _local:
                return super().reducer_override(value)
            # cloudpickle makes and fills a module in one step, which for a cycle of modules is an endless recursion
            state = {key: each for key, each in vars(value).items() if key not in _SET_BY_IMPORT}
            return types.ModuleType, (value.__name__,), state, None, None, fill_module

        def _replacement_of(self, future: Future[Any]) -> Any:
            if self.refer is None:
                raise NotPicklable("a future can only be an argument of submit(): send its result() instead.")
            found = self.refer(future)
            return (task_result, tuple(found)) if isinstance(found, Reference) else (substitute, (found,))

    return Pickler


def fill_module(module: types.ModuleType, state: dict[str, object]) -> None:
    """Set the attributes of a module that was pickled by value."""
    vars(module).update(state)


def import_optional(name: str) -> types.ModuleType | None:
    """Import a module of spoolpool that a pickle names; None where this version has none of that name.

    cloudpickle records each imported submodule whose name occurs in a function's code. So ``"{}".format(...)`` in a
    function that uses ``spoolpool`` records ``spoolpool.format``, which need not exist in a later version.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


class _Apart:
    """Large part of a call that was pickled on its own, so that its bytes are the same in every call."""

    def __init__(self, payload: Buffer, buffers: list[Buffer]) -> None:
        self._buffers = [pickle.PickleBuffer(each) for each in (payload, *buffers)]

    def __reduce__(self) -> tuple[Any, ...]:
        return join_parts, tuple(self._buffers)


def join_parts(payload: Buffer, *buffers: Buffer) -> object:
    """Return a part of a call that was pickled on its own."""
    return pickle.loads(payload, buffers=buffers)


for _function in (task_result, stored_object, substitute, fill_module, import_optional, join_parts):
    _function.__module__ = "spoolpool.wire"  # files contain these names; spoolpool.wire lists them


def dumps_call(
    fn: object,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    refer: Refer | None = None,
    apart: int = sys.maxsize,
) -> tuple[Buffer, list[Buffer]]:
    """Pickle a call; raise a :class:`NotPicklable` that names the argument that cannot be pickled.

    A function or argument with a pickle of ``apart`` bytes or more becomes a separate buffer.
    """
    try:
        whole = dumps((fn, args, kwargs), refer)
        if len(whole[0]) < apart:
            return whole
        parts: dict[int, object] = {}
        for value in (fn, *args, *kwargs.values()):
            payload, buffers = dumps(value, refer)
            parts[id(value)] = value if len(payload) < apart else _Apart(payload, buffers)
        split = parts[id(fn)], [parts[id(value)] for value in args], {key: parts[id(kwargs[key])] for key in kwargs}
        return dumps(split, refer)
    except NotPicklable as whole:
        named: list[tuple[str, object]] = [("The function", fn)]
        named += [(f"Argument {i}", arg) for i, arg in enumerate(args)]
        named += [(f"Argument {key!r}", arg) for key, arg in kwargs.items()]
        for what, part in named:
            try:
                dumps(part, refer)
            except NotPicklable as error:
                raise NotPicklable(
                    f"{what} of the call to {label(fn)} cannot be sent to a worker. {error} Create it inside the "
                    "function instead, or pass the values from which it is created."
                ) from whole
        raise


def loads(payload: Buffer, buffers: Sequence[Buffer] = (), find: Find | None = None) -> Any:
    """Unpickle; raise :class:`NotUnpicklable` otherwise, with the name of a package that is missing here.

    ``find`` returns the values of references; its exceptions are passed on.
    """
    before = _find.set(find)
    try:
        return pickle.loads(payload, buffers=buffers)
    except SpoolpoolError:
        raise
    except ModuleNotFoundError as error:
        raise NotUnpicklable(
            f"The package {error.name!r} is needed to unpickle a call or result and is not installed in {sys.prefix} "
            f"on {os.uname().nodename}. Install it there, or define the function in the script that submits it."
        ) from error
    except BaseException as error:  # a constructor may raise anything
        if is_interrupt(error):
            raise
        raise NotUnpicklable(
            f"A call or result cannot be unpickled on {os.uname().nodename}: {describe_error(error)}"
        ) from error
    finally:
        _find.reset(before)


def label(fn: object) -> str:
    """Return the name of a function for display, at most 80 characters."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    try:
        name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
        module = getattr(fn, "__module__", None) or ""
        text = printable(name if module in ("", "__main__", "builtins") else f"{module}.{name}")
    except BaseException as error:  # a __getattr__ may raise anything
        if is_interrupt(error):
            raise
        text = type(fn).__name__
    return text if len(text) <= 80 else text[:77] + "..."


@functools.cache
def _site_roots() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the directories from which a fresh interpreter imports: libraries, and directories in ``.pth`` files.

    The latter are projects that were installed in place (``pip install --editable``).
    """
    libraries = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    libraries |= {path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")}
    projects = set()
    for root in libraries:
        for pth in glob.glob(os.path.join(glob.escape(root), "*.pth")):
            try:
                with open(pth, encoding="utf-8") as file:
                    lines = [line.strip() for line in file]
            except (OSError, UnicodeDecodeError):  # its modules are pickled by value
                continue
            projects |= {line for line in lines if os.path.isdir(line)}
    return tuple(map(os.path.realpath, libraries)), tuple(map(os.path.realpath, projects))


def _is_installed(name: str, file: str) -> bool:
    """Return whether a fresh interpreter of this installation finds a module.

    Modules of a library may have other names than their files (``os.path``, vendored packages): importing the library
    defines these names. The directory of a project also contains modules that are not installed, for instance scripts.
    """
    if name.partition(".")[0] == "spoolpool" or _in_a_library(file):
        return True
    path = os.path.realpath(file)
    inside = name.replace(".", os.sep)
    return any(path.startswith(os.path.join(root, inside) + end) for root in _site_roots()[1] for end in (".", os.sep))


@functools.lru_cache(maxsize=4096)
def _in_a_library(file: str) -> bool:
    path = os.path.realpath(file)
    return any(path.startswith(os.path.join(root, "")) for root in _site_roots()[0])


def is_library(name: str) -> bool:
    """Return whether an imported module belongs to the standard library, ``site-packages`` or spoolpool.

    A project that is installed in place (``pip install --editable``) is no library: it changes between two calls.
    """
    top = name.partition(".")[0]
    file = getattr(sys.modules.get(name), "__file__", None)
    if top == "spoolpool":
        return True
    if isinstance(file, str):
        return top not in ("__main__", "__mp_main__") and _in_a_library(file)
    return top in sys.stdlib_module_names


_seen: set[str] = set()
"""Modules that were checked; it mirrors cloudpickle's registry, which also exists once per process."""

_local: set[str] = set()
"""Modules among them that are not installed, by their ``__name__``."""


def _register_local_modules() -> None:
    """Register the imported modules that are not installed with cloudpickle, each once."""
    new = sys.modules.keys() - _seen
    if not new:
        return
    import cloudpickle

    _seen.update(new)
    for name in new:
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if name in ("__main__", "__mp_main__") or not isinstance(file, str) or not isinstance(module, types.ModuleType):
            continue
        if module.__name__ in sys.modules and not _is_installed(module.__name__, file):
            cloudpickle.register_pickle_by_value(module)
            _local.add(module.__name__)
