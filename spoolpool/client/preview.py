"""Short previews of the arguments of calls, by which people tell tasks apart. No code of a user is called for them.

A preview has the values of numbers, of short texts and of a few other types of the standard library, the shapes of
arrays, the first items of small containers, and the names of all other types. An argument for a parameter such as
``password`` is hidden, unless it is a number, and so is the text of a URL with a password.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spoolpool.calls import pickling
from spoolpool.system.patterns import lazy_pattern
from spoolpool.system.user_code import is_interrupt, printable

LIMIT = 60
"""Characters of a preview, at most."""

LABEL_LIMIT = 200
"""Characters of a label, at most."""

_TEXT = 24  # characters of a text in it
_ITEMS = 3  # of a container
_MOST = 1 << 64  # an int beyond it is not written out
_WRAPPERS = 8  # of a function, that are looked into
_HIDDEN = "***"
_SECRET = lazy_pattern(r"(?i)pass(w(or)?d|phrase|code)?$|passw|secret|token|credential|(api|access|private).?key|auth$")


def describe(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], with_arguments: bool
) -> tuple[str, str]:
    """Return the name of a function, and a preview of its arguments if it is wanted; of a chunk those of its calls."""
    wire = sys.modules.get("spoolpool.wire")
    if wire is not None and function is wire.run_chunk:
        function, calls = args
        name = f"{pickling.label(function)} x{len(calls)}"
        ends = [preview(function, call, {}) for call in (calls[0], calls[-1])] if with_arguments else [""]
        return name, summary(ends, LIMIT)
    return pickling.label(function), preview(function, args, kwargs) if with_arguments else ""


def preview(function: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return a preview of arguments in at most :data:`LIMIT` characters; empty for a call without arguments."""
    try:
        parts = []
        room = LIMIT
        for number, value in enumerate(args):
            kind = type(value)
            part = _INSTANT[kind](value) if kind in _INSTANT else _describe(value)
            if kind not in _NUMBERS and _is_secret(_parameter(function, number)):
                part = _HIDDEN
            parts.append(part)
            room -= len(part) + 2
            if room < 0:
                return _cut(", ".join(parts))
        for name, value in kwargs.items():
            hidden = type(value) not in _NUMBERS and _is_secret(name)
            part = f"{name}={_HIDDEN if hidden else _describe(value)}"
            parts.append(part)
            room -= len(part) + 2
            if room < 0:
                break
        return _cut(", ".join(parts))
    except BaseException as error:  # a metaclass or a subclass of a module may raise anything
        if is_interrupt(error):
            raise
        return ""


def summary(texts: Sequence[str], limit: int) -> str:
    """Return one text for those of several calls: the common one, else the first and the last one."""
    first, last = texts[0], texts[-1]
    if all(each == first for each in texts):
        return first
    half = limit // 2 - 3
    return f"{_cut(first, half)} ... {_cut(last, half)}"


def cut_label(text: str) -> str:
    """Return a label in at most :data:`LABEL_LIMIT` characters that can be encoded as UTF-8."""
    return _cut(printable(text), LABEL_LIMIT)


def _cut(text: str, limit: int = LIMIT) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _int(value: int) -> str:
    return int.__repr__(value) if -_MOST < value < _MOST else f"int of {value.bit_length()} bits"


def _text(value: str) -> str:
    if "@" in value and "://" in value:
        return _HIDDEN
    if len(value) <= _TEXT:
        return printable(str.__repr__(value))
    half = _TEXT // 2 - 1
    return printable(f"{str.__repr__(value[:half])[:-1]}...{str.__repr__(value[-half:])[1:]}")


def _bytes(value: bytes) -> str:
    return bytes.__repr__(value) if len(value) <= _TEXT // 2 else f"{len(value)} bytes"


def _path(value: object) -> str:
    text = str(value)
    return printable(text if len(text) <= _TEXT else f"...{text[3 - _TEXT :]}")


def _name(value: Any) -> str:
    name = value.__name__
    return name if type(name) is str else "function"


def _items(value: Any, open_: str, close: str) -> str:
    shown = [_describe_item(each) for each in value[:_ITEMS]]
    more = f", ... {len(value)} items" if len(value) > _ITEMS else ""
    return f"{open_}{', '.join(shown)}{more}{close}"


def _describe_item(value: Any) -> str:
    """Return an item of a container; a container in it by its type alone."""
    kind = type(value)
    return f"{kind.__name__}" if kind in _CONTAINERS else _describe(value)


def _describe(value: Any) -> str:
    kind = type(value)
    found = _KNOWN.get(kind)
    if found is not None:
        return found(value)
    module, name = kind.__module__, kind.__name__
    if type(name) is not str:
        return "object"
    late = _LATE.get(module) if type(module) is str else None
    # the module itself has the class, so that the class is no other one that claims to be from there
    if late is not None and vars(sys.modules[module]).get(name) is kind:
        return late(value)
    enum = sys.modules.get("enum")
    member = vars(value).get("_name_") if enum is not None and type(kind) is enum.EnumMeta else None
    return printable(f"{name}.{member}" if type(member) is str else name)


def _numpy(value: Any) -> str:
    numpy = sys.modules["numpy"]
    if not isinstance(value, (numpy.ndarray, numpy.generic)):
        return type(value).__name__
    if value.ndim:
        return f"array {'x'.join(map(str, value.shape))} {value.dtype.name}"[:_TEXT]
    return f"{value}" if value.dtype.kind in "biufcM" else str(value.dtype.name)[:_TEXT]


def _dict(value: dict[Any, Any]) -> str:
    items = []
    for number, (key, item) in enumerate(value.items()):
        if number == _ITEMS:
            items.append(f"... {len(value)} items")
            break
        hidden = type(item) not in _NUMBERS and type(key) is str and _is_secret(key)
        items.append(f"{_describe_item(key)}: {_HIDDEN if hidden else _describe_item(item)}")
    return f"{{{', '.join(items)}}}"


@functools.lru_cache(1024)
def _is_secret(name: str) -> bool:
    return _SECRET.search(name) is not None


def _parameter(function: Any, number: int) -> str:
    """Return the name of a positional parameter of a Python function; empty if it is not known.

    That of a class, of a method, of a partial and of a decorated function is the one of the function behind it.
    """
    for _ in range(_WRAPPERS):
        kind = type(function)
        if kind is types.FunctionType:
            code: types.CodeType = function.__code__
            if number < code.co_argcount:
                return code.co_varnames[number]
            function = vars(function).get("__wrapped__")
        elif kind is types.MethodType:
            function, number = function.__func__, number + 1
        elif kind is type:
            function, number = vars(function).get("__init__"), number + 1
        elif kind is functools.partial:
            function, number = function.func, number + len(function.args)
        else:
            break
    return ""


def _date(value: Any) -> str:
    """Return a date or time; the name of its time zone may come from code of a user."""
    return str(value.replace(tzinfo=None) if getattr(value, "tzinfo", None) is not None else value)


_INSTANT: dict[type, Callable[[Any], str]] = {
    int: _int,
    float: float.__repr__,
    bool: bool.__repr__,
    str: _text,
    type(None): lambda _: "None",
}
_NUMBERS = frozenset((int, float, bool, complex, type(None)))
_CONTAINERS: dict[type, Callable[[Any], str]] = {
    list: lambda value: _items(value, "[", "]"),
    tuple: lambda value: _items(value, "(", ",)" if len(value) == 1 else ")"),
    dict: _dict,
    set: lambda value: f"set of {len(value)}",
    frozenset: lambda value: f"frozenset of {len(value)}",
}
_KNOWN: dict[type, Callable[[Any], str]] = {
    **_INSTANT,
    **_CONTAINERS,
    bytes: _bytes,
    bytearray: lambda value: f"{len(value)} bytes",
    complex: complex.__repr__,
    range: range.__repr__,
    types.FunctionType: _name,
    types.BuiltinFunctionType: _name,
    type: _name,
}
_LATE: dict[str, Callable[[Any], str]] = {"numpy": _numpy, "pathlib": _path, "pathlib._local": _path, "datetime": _date}
"""Functions for the classes of modules that are not imported here."""
