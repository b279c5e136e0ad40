"""Pickling of calls and results: cloudpickle, protocol 5, large buffers out of band.

Definitions of ``__main__``, of a notebook or of a module that is not installed are pickled by value, because a worker
could not import them (:mod:`spoolpool.calls.definitions`). Installed modules are pickled by reference.
"""

from __future__ import annotations

import functools
import importlib
import io
import logging
import os
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from spoolpool.calls import modules
from spoolpool.calls.definitions import Definitions, by_reference, is_worker
from spoolpool.calls.exceptions import Reason, reduce_exception
from spoolpool.errors import BadRequest, NotPicklable, NotUnpicklable, SpoolpoolError
from spoolpool.format.envelope import Buffer
from spoolpool.system.user_code import describe_error, describe_value, is_interrupt, printable

log = logging.getLogger(__name__)

OUT_OF_BAND = 32768
"""Size in bytes from which a buffer is written beside the pickle, page-aligned, instead of into it."""

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


class _Place(bytearray):
    """Buffer that stands for a value which is not known yet."""

    later: LaterValue


class LaterValue:
    """Place in a pickled call for a value that is pickled later, by :func:`dumps_alone`: one of its buffers."""

    def __init__(self) -> None:
        self._place = _Place()
        self._place.later = self

    def __reduce__(self) -> tuple[Any, ...]:
        return join_parts, (pickle.PickleBuffer(self._place),)

    @staticmethod
    def of(buffer: Buffer) -> LaterValue | None:
        """Return the value for which a buffer of a pickled call stands; None for any other buffer."""
        owner: object = buffer
        while isinstance(owner, memoryview):
            owner = owner.obj
        return owner.later if isinstance(owner, _Place) else None


Refer = Callable[["Future[Any] | ObjectRef"], "Reference | LaterValue | object"]
"""Function that returns the replacement of a future: a reference, its value, or the place for it. It is called for
objects too."""

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
    try:
        if _is_plain(value):  # without the look at definitions it takes a third of the time
            return pickle.dumps(value, protocol=5), []
        return _dump(value, _Options(refer, _why_not_picklable if leave_out else None, linked))
    except BadRequest:
        raise
    except BaseException as error:  # a __reduce__ may raise anything
        if is_interrupt(error):
            raise
        if isinstance(error.__cause__ or error, RecursionError):  # cloudpickle raises it as a cause
            raise NotPicklable(f"{describe_value(value)} cannot be pickled: it is nested too deeply.") from None
        raise NotPicklable(f"{describe_value(value)} cannot be pickled: {describe_error(error)}") from error


def dumps_alone(value: object, refer: Refer | None = None) -> bytes:
    """Return the pickle of a value with all its buffers, for the place of a :class:`LaterValue`."""
    payload, buffers = dumps(value, refer)
    return pickle.dumps(_Apart(payload, buffers), protocol=5) if buffers else bytes(payload)


class _Options(NamedTuple):
    refer: Refer | None
    reason: Reason | None
    linked: bool


def _dump(value: object, options: _Options) -> tuple[Buffer, list[Buffer]]:
    """Pickle a value. Local modules whose definitions cannot be pickled by value are named instead."""
    buffers: list[Buffer] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if len(raw) < OUT_OF_BAND and (raw or LaterValue.of(raw) is None):
            return True
        buffers.append(raw)
        return False

    stream = io.BytesIO()
    pickler = _pickler()(stream, protocol=5, buffer_callback=keep)
    pickler.options = options
    pickler.definitions = found = Definitions()
    try:
        pickler.dump(value)
    except BadRequest:
        raise
    except BaseException as error:
        if is_interrupt(error) or isinstance(error.__cause__ or error, RecursionError):
            raise
        if not _import_instead(value, options, found.local, error):
            raise
        return _dump(value, options)
    return stream.getvalue(), buffers  # no copy: BytesIO returns the bytes that it filled


def _import_instead(value: object, options: _Options, local: Iterable[str], error: BaseException) -> bool:
    """Let workers import local modules, as few as possible, if the value can be pickled then."""
    # the last one first: pickling failed there
    candidates = [name for name in reversed(list(local)) if modules.root_of(name) is not None]
    chosen = next(([name] for name in candidates if _is_picklable(value, options, [name])), candidates)
    if not chosen or not _is_picklable(value, options, chosen):
        return False
    for name in list(chosen):
        fewer = [each for each in chosen if each != name]
        if fewer and _is_picklable(value, options, fewer):
            chosen = fewer
    by_reference.update(chosen)
    log.log(
        logging.DEBUG if is_worker() else logging.WARNING,  # the submitter has said it
        "Workers import %s from %s, because it cannot be sent as it is here (%s). Changes of its variables in this "
        "process are not sent.",
        ", ".join(chosen),
        ", ".join(sorted({str(modules.root_of(name)) for name in chosen})),
        describe_error(error),
    )
    return True


def _is_picklable(value: object, options: _Options, names: list[str]) -> bool:
    """Return whether a value can be pickled if workers import these local modules."""
    pickler = _pickler()(io.BytesIO(), protocol=5, buffer_callback=lambda _: False)
    pickler.options, pickler.definitions = options, Definitions(names)
    try:
        pickler.dump(value)
    except BaseException as error:
        if is_interrupt(error):
            raise
        return False
    return True


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
    import cloudpickle.cloudpickle as base

    _import_wire()
    wire = importlib.import_module("spoolpool.wire")
    # four of the five functions of a small call by value: the other checks would take half of the time of its pickle
    named = frozenset(
        each
        for module in (base, wire)
        for each in vars(module).values()
        if type(each) is types.FunctionType and each.__module__ == module.__name__
    )

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
        options: _Options
        definitions: Definitions

        def reducer_override(self, value: object) -> Any:
            if type(value) is types.FunctionType and value in named:
                return NotImplemented
            if isinstance(value, Future):
                return self._replacement_of(value)
            if isinstance(value, ObjectRef) and self.options.refer is not None:
                self.options.refer(value)
            reduced: Any = NotImplemented
            asyncio = sys.modules.get("asyncio")
            if asyncio is not None and isinstance(value, asyncio.Future):
                raise NotPicklable(
                    "an asyncio.Future or Task belongs to an event loop: await it and pass its result, or pass the "
                    "future of submit()."
                )
            if isinstance(value, BaseException):
                reduced = reduce_exception(value, self.options.reason, self.options.linked)
            elif isinstance(value, types.ModuleType) and value.__name__.startswith("spoolpool."):
                reduced = import_optional, (value.__name__,)
            else:
                reduced = self.definitions.reduce(value, self)
            return super().reducer_override(value) if reduced is NotImplemented else reduced

        def _replacement_of(self, future: Future[Any]) -> Any:
            if self.options.refer is None:
                raise NotPicklable("a future can only be an argument of submit(): send its result() instead.")
            found = self.options.refer(future)
            return (task_result, tuple(found)) if isinstance(found, Reference) else (substitute, (found,))

    return Pickler


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


for _function in (task_result, stored_object, substitute, import_optional, join_parts):
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
    """Return the name of a function for display, at most 80 characters; the same object for equal names."""
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
    return sys.intern(text if len(text) <= 80 else text[:77] + "...")
