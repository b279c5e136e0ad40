"""Pickling of exceptions: type, arguments, attributes, notes, cause and context, without a call of the constructor.

The protocol of :class:`BaseException` calls the class with ``args``. This fails for a constructor with other parameters
than those that it passed on, and loses cause and context.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from typing import Any, NamedTuple

Reason = Callable[[object], "str | None"]
"""Function that returns the reason why a value cannot be pickled; None if it can."""


class ExceptionState(NamedTuple):
    """Content of an exception besides its class and its arguments."""

    attributes: Any
    """``__dict__`` and slots; the state that ``__reduce__`` of the class returned, if the class defines it."""
    cause: BaseException | None
    context: BaseException | None
    suppress: bool
    """Value of ``__suppress_context__``."""
    raw: bool
    """Whether ``attributes`` are set one by one, without the ``__setstate__`` of the class."""


def reduce_exception(error: BaseException, reason: Reason | None = None, linked: bool = True) -> Any:
    """Return the reduction of an exception for a pickler; ``NotImplemented`` if that of its class loses nothing.

    With ``reason``, parts that cannot be pickled are left out, and a note of the exception names them. ``linked`` is
    false to leave out cause and context.
    """
    kind = type(error)
    cause, context = (error.__cause__, error.__context__) if linked else (None, None)
    if reason is not None:
        cause, context = (
            each if each is not None and reason(type(each)) is None else None for each in (cause, context)
        )
    if reason is None and _defines_reduction(kind):
        reduced = error.__reduce_ex__(5)
        if not isinstance(reduced, tuple) or len(reduced) > 3 or (cause is None and context is None):
            return NotImplemented
        attributes = reduced[2] if len(reduced) == 3 else None
        state = ExceptionState(attributes, cause, context, error.__suppress_context__, False)
        return make_exception, (reduced[0], tuple(reduced[1]), False), tuple(state), None, None, fill_exception
    base = _builtin_base(kind)
    native = kind.__init__ is base.__init__ and kind.__new__ is base.__new__
    if native and cause is None and context is None and reason is None:
        return NotImplemented
    # builtin classes keep more than ``args`` here, as the file of an OSError
    args = tuple(error.__reduce_ex__(5)[1])
    attributes = _attributes(error)
    if reason is not None:
        args, attributes = _picklable_parts(error, args, attributes, reason)
    state = ExceptionState(attributes, cause, context, error.__suppress_context__, True)
    return make_exception, (kind, args, True), tuple(state), None, None, fill_exception


def make_exception(make: Callable[..., BaseException], args: tuple[Any, ...], raw: bool) -> BaseException:
    """Return an exception without its state.

    ``raw``: ``make`` is a class, of which only the builtin base is initialised. Otherwise ``make(*args)`` is called,
    from the reduction that the class defines.
    """
    if not raw:
        return make(*args)
    base: Any = _builtin_base(make)  # type: ignore[arg-type]  # a class
    try:
        error: BaseException = base.__new__(make, *args)
    except TypeError:  # a group without its exceptions, of a class with a __new__ of its own
        return make(*args)
    try:
        base.__init__(error, *args)
    except (TypeError, ValueError):  # other arguments than those of the builtin base, whose fields stay empty
        error.args = args
    return error


def fill_exception(error: BaseException, state: tuple[Any, ...]) -> None:
    """Set attributes, notes, cause and context of an exception that :func:`make_exception` returned."""
    attributes, cause, context, suppress, raw = ExceptionState(*state)
    if raw:
        for name, value in attributes.items():
            try:
                object.__setattr__(error, name, value)  # a frozen dataclass refuses setattr
            except (AttributeError, TypeError):  # a property without a setter has the name of an attribute
                vars(error)[name] = value
    elif attributes is not None:
        error.__setstate__(attributes)
    for name, linked in (("__cause__", cause), ("__context__", context), ("__suppress_context__", suppress)):
        object.__setattr__(error, name, linked)


for _function in (make_exception, fill_exception):
    _function.__module__ = "spoolpool.wire"  # files contain these names; spoolpool.wire lists them


def _builtin_base(kind: type[BaseException]) -> type[BaseException]:
    return next(base for base in kind.__mro__ if base.__module__ == "builtins" and issubclass(base, BaseException))


def _defines_reduction(kind: type[BaseException]) -> bool:
    """Return whether a class, and not its builtin base, determines how it is pickled."""
    for base in kind.__mro__:
        if base.__module__ == "builtins" and issubclass(base, BaseException):
            return False
        if not vars(base).keys().isdisjoint(("__reduce__", "__reduce_ex__", "__setstate__", "__getnewargs__")):
            return True
        if not base.__flags__ & _HEAP_TYPE:  # of an extension: it has a layout of its own
            return True
    return False


_HEAP_TYPE = 1 << 9
"""Flag of classes that were defined by a ``class`` statement, among others (Py_TPFLAGS_HEAPTYPE)."""


def _attributes(error: BaseException) -> dict[str, Any]:
    """Return the attributes of an exception by name, with those in slots and the fields of its builtin base."""
    reduced = error.__reduce_ex__(5)
    found: dict[str, Any] = dict(reduced[2]) if len(reduced) > 2 and isinstance(reduced[2], dict) else {}
    found.update(vars(error))
    members = (item for kind in type(error).__mro__ for item in vars(kind).items() if kind.__flags__ & _HEAP_TYPE)
    for name, member in members:
        if isinstance(member, types.MemberDescriptorType):  # a slot
            with contextlib.suppress(AttributeError):  # an empty slot
                found[name] = getattr(error, name)
    return found


def _picklable_parts(
    error: BaseException, args: tuple[Any, ...], attributes: dict[str, Any], reason: Reason
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments and attributes that can be pickled, with a note on the others."""
    lost: list[str] = []
    kept_args = []
    for number, value in enumerate(args):
        if (why := reason(value)) is not None:
            lost.append(f"argument {number} ({why})")
        kept_args.append(value if why is None else f"<{type(value).__name__}>")
    kept = {}
    for name, value in attributes.items():
        if (why := reason(value)) is None:
            kept[name] = value
        else:
            lost.append(f"attribute {name!r} ({why})")
    for name in ("__cause__", "__context__"):
        linked = getattr(error, name)
        if linked is not None and (why := reason(type(linked))) is not None:
            lost.append(f"{name} ({why})")
    if lost:
        note = f"Not sent back, since it cannot be pickled: {'; '.join(lost)}."
        notes = kept.get("__notes__")
        kept["__notes__"] = [*(notes if isinstance(notes, list) else ()), note]
    return tuple(kept_args), kept
