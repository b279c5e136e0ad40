"""Fingerprints of calls: strong hashes of a function's code and its arguments, equal on every host.

Two calls with the same fingerprint compute the same result, as far as this is known without running them. In case of
doubt their fingerprints differ: a miss costs a run, a wrong hit costs a result.

Of a function, these count: its bytecode and that of its inner functions, constants, defaults, closure and attributes,
and the globals that it names. Functions and classes among these globals are followed in the same way, also as
attributes of modules. These do not count: its position, comments and annotations. A module that it imports in its body
counts by its name alone. Functions and classes of the standard library, of ``site-packages`` and of spoolpool count by
their names and the version of their package. The called function itself, and functions among the arguments, also count
by their code if they come from a library.

Of a value, type and content count: lists and dicts in their order, sets and the attributes of objects regardless of
order, NumPy arrays by dtype, shape and bytes, all other objects by their own pickling method and the methods of their
class. Stored objects count by the hash in their name. It also counts if one object occurs in two places, because a
function can detect that.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import struct
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, ClassVar

from spoolpool import settings
from spoolpool.calls import modules, pickling
from spoolpool.errors import BadRequest, SpoolpoolError
from spoolpool.system.user_code import describe_error, is_interrupt

_ALGORITHM = "spoolpool-1"
"""Part of every fingerprint, so that another algorithm has other fingerprints."""

Stands = Callable[["Future[Any]"], object]
"""Function that returns the replacement of a future, for instance the fingerprint of its call; None if it has none."""

_NOT_OF_A_CLASS = frozenset(
    {
        *("__dict__", "__weakref__", "__module__", "__annotations__", "__annotate__", "__annotate_func__"),
        *("__annotations_cache__", "__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl"),
    }
)
"""Attributes that the interpreter sets in a class; the order of ``__static_attributes__`` is undefined."""


class _Unstable(Exception):
    """A value cannot be recognized in another process; the text is the reason."""


def fingerprint(
    function: Callable[..., object],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    *,
    resources: object = None,
    stands_for: Stands | None = None,
) -> str:
    """Return the fingerprint of a call, 64 hexadecimal digits; ``resources`` count if they are given.

    ``stands_for`` is called for each future among the arguments, so that the call of the future counts instead of its
    value. Raises :class:`BadRequest`, with the name of the argument, for an argument without a stable fingerprint: a
    value that cannot be pickled, or a future without a fingerprint.
    """
    walk = _Walk(stands_for)
    walk.text(_ALGORITHM, settings.PYTHON)
    parts: list[tuple[str, object]] = [("The function", function)]
    parts += [(f"Argument {i}", arg) for i, arg in enumerate(args)]
    parts += [(f"Argument {key!r}", kwargs[key]) for key in sorted(kwargs)]
    parts.append(("The resource_dict", resources))
    for what, part in parts:
        walk.text(what)  # so the texts above are part of every fingerprint
        try:
            walk.value(part)
        except SpoolpoolError:  # of a future among the arguments
            raise
        except BaseException as error:  # a hash, a comparison or an iteration may raise anything
            if is_interrupt(error):
                raise
            why = str(error) if isinstance(error, _Unstable) else describe_error(error)
            if isinstance(error, RecursionError):
                why = "it is nested too deeply"
            raise BadRequest(
                f"{what} of the call to {pickling.label(function)} has no fingerprint by which the call could be found "
                f"again: {why}. Give the call your own key (cache_key), or pass the values from which it is created."
            ) from None
    return walk.digest().hex()


class _Walk:
    """Traversal of values in an order that depends on the values alone; it hashes each value that it visits.

    Each tag is followed by a length or a count, so that different values give different bytes. Objects with an identity
    are numbered at their first visit. At further visits, in a cycle too, this number counts.
    """

    def __init__(self, stands_for: Stands | None, inside: frozenset[int] = frozenset()) -> None:
        self._hash = hashlib.sha256()
        self._stands_for = stands_for
        self._inside = inside  # ids of the sets whose elements are being hashed
        self._met: dict[int, tuple[int, object]] = {}  # keep a reference, otherwise id() could be reused
        self._modules: set[tuple[int, frozenset[str] | None]] = set()

    def digest(self) -> bytes:
        return self._hash.digest()

    def text(self, *words: str) -> None:
        for word in words:
            self._leaf(b"w", word.encode("utf-8", "surrogatepass"))

    def value(self, value: Any) -> None:
        kind = type(value)
        if kind in _LEAVES:
            tag, encode = _LEAVES[kind]
            self._leaf(tag, encode(value))
        elif kind is tuple:
            self._count(b"(", value)
            for item in value:
                self.value(item)
        elif kind in (set, frozenset):
            self._set(value)
        elif kind is types.CodeType:
            self._hash.update(b"k" + _digest_of_code(value))
        elif id(value) in self._met:
            self._leaf(b"@", str(self._met[id(value)][0]).encode())
        else:
            self._met[id(value)] = (len(self._met), value)
            self._object(value, kind)

    def _leaf(self, tag: bytes, data: bytes | memoryview) -> None:
        self._hash.update(b"%b%d:" % (tag, len(data)))
        self._hash.update(data)

    def _count(self, tag: bytes, sized: Any) -> None:
        self._hash.update(b"%b%d;" % (tag, len(sized)))

    def _set(self, elements: set[Any] | frozenset[Any]) -> None:
        if id(elements) in self._inside:
            self._hash.update(b"o")
            return
        digests = []
        for element in elements:
            walk = _Walk(self._stands_for, self._inside | {id(elements)})
            walk.value(element)
            digests.append(walk.digest())
        self._count(b"{" if isinstance(elements, set) else b"<", digests)
        for digest in sorted(digests):
            self._hash.update(digest)

    def _object(self, value: Any, kind: type) -> None:
        if kind in self._BY_KIND:
            self._BY_KIND[kind](self, value)
        elif issubclass(kind, type):
            self._class(value)
        elif isinstance(value, Future):
            self._future(value)
        elif kind is pickling.ObjectRef:  # in any spool, of any account
            self.text("object", value.name.partition("@")[0], str(value.size))
        elif not self._array(value, kind):
            self._reduced(value, kind)

    def _list(self, value: list[Any]) -> None:
        self._count(b"[", value)
        for item in value:
            self.value(item)

    def _dict(self, value: Mapping[Any, Any]) -> None:
        self.text(type(value).__name__)
        self._pairs(value.items())

    def _pairs(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        listed = list(pairs)
        self._count(b"d", listed)
        for key, value in listed:
            self.value(key)
            self.value(value)

    # -- code

    def _function(self, function: types.FunctionType) -> None:
        self.text("function", function.__qualname__)
        self.value(function.__code__)
        self.value((function.__defaults__, dict(sorted((function.__kwdefaults__ or {}).items()))))
        self.value(function.__closure__)
        self._pairs(sorted(vars(function).items()))
        home = function.__globals__.get("__name__", "")
        if (version := _library_version(home)) is not None:
            self.text("library", home, version)
            return
        names = _globals_of(function.__code__)
        for name in sorted(names.keys() & function.__globals__.keys()):
            self.text("global", name)
            self._referred(function.__globals__[name], names[name])

    def _referred(self, value: Any, names: frozenset[str] | None = None) -> None:
        """Hash a value that code names; a value of a library counts by its name and version."""
        try:
            self._followed(value, names)
        except _Unstable:  # a lock or an open file: the worker has its own
            self.text("unstable", type(value).__qualname__)

    def _followed(self, value: Any, names: frozenset[str] | None) -> None:
        if type(value) is types.ModuleType:
            self._module(value, names)
            return
        if isinstance(value, types.FunctionType):
            home = value.__globals__.get("__name__", "")
            # a decorator's closure has a user's function
            version = None if value.__closure__ else _library_version(home)
            if version is not None:
                self.text("library", home, value.__qualname__, version)
                return
        self.value(value)

    def _module(self, module: types.ModuleType, names: frozenset[str] | None = None) -> None:
        """Hash a module. Of a module that is no library, the names that the code uses count; all of them if None."""
        version = _library_version(module.__name__)
        self.text("module", module.__name__, version or "")
        if version is not None or (id(module), names) in self._modules:
            return
        self._modules.add((id(module), names))
        for name in sorted(vars(module)):
            if (names is None and not name.startswith("__")) or (names is not None and name in names):
                value = vars(module)[name]
                self.text("name", name)
                self._referred(value, names)

    def _class(self, kind: type) -> None:
        version = _library_version(kind.__module__)
        self.text("class", kind.__module__ if version is not None else "", kind.__qualname__, version or "")
        if version is not None:
            return
        self.value((kind.__bases__, type(kind)))
        for name, value in sorted(vars(kind).items()):
            if name not in _NOT_OF_A_CLASS:
                self.text("attribute", name)
                self._referred(value)

    def _method(self, method: staticmethod[..., Any] | classmethod[Any, ..., Any]) -> None:
        self.text(type(method).__name__)
        self.value(method.__func__)

    def _property(self, value: property) -> None:
        self.text("property")
        self.value((value.fget, value.fset, value.fdel))

    def _cached(self, function: Any) -> None:
        self.text("cached")
        self.value(function.__wrapped__)

    def _descriptor(self, value: types.MemberDescriptorType) -> None:
        self.text("descriptor", value.__name__)

    def _cell(self, cell: types.CellType) -> None:
        try:
            content = cell.cell_contents
        except ValueError:
            self.text("empty cell")
        else:
            self.text("cell")
            self.value(content)

    # -- values

    def _future(self, future: Future[Any]) -> None:
        found = self._stands_for(future) if self._stands_for is not None else None
        if found is None:
            raise _Unstable("it is or contains a future of a call without a fingerprint")
        self.text("future")
        self.value(found)

    def _array(self, value: Any, kind: type) -> bool:
        numpy = sys.modules.get("numpy")
        if numpy is None or kind not in (numpy.ndarray, numpy.memmap):
            return False
        self.text("array", str(value.shape))
        self.value(value.dtype.str if value.dtype.names is None else value.dtype)
        if value.dtype.hasobject:
            self.value(value.ravel().tolist())
        elif value.nbytes:
            self._leaf(b"a", memoryview(numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8)))
        return True

    def _reduced(self, value: Any, kind: type) -> None:
        """Hash an object by its own pickling method."""
        try:
            reduce = copyreg.dispatch_table.get(kind)
            reduced = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        except BaseException as error:  # a __reduce__ may raise anything
            if is_interrupt(error):
                raise
            raise _Unstable(f"a {kind.__qualname__} cannot be pickled ({describe_error(error)})") from None
        if isinstance(reduced, str):
            home = getattr(value, "__module__", None) or ""
            self.text("named", home, reduced, _library_version(home) or "")
            return
        maker, args, state, items, pairs = (*reduced, None, None, None, None)[:5]
        self.text("made")
        self.value(maker)
        self.value(args)
        if type(state) is dict and all(type(key) is str for key in state):
            self._pairs(sorted(state.items()))
        else:
            self.value(state)
        self.value(None if items is None else tuple(items))
        self.value(None if pairs is None else tuple(pairs))

    _BY_KIND: ClassVar[dict[type, Callable[[_Walk, Any], None]]] = {
        list: _list,
        dict: _dict,
        types.MappingProxyType: _dict,
        types.FunctionType: _function,
        types.ModuleType: _module,
        types.CellType: _cell,
        staticmethod: _method,
        classmethod: _method,
        property: _property,
        type(functools.cache(len)): _cached,
        types.MemberDescriptorType: _descriptor,
        types.GetSetDescriptorType: _descriptor,
        types.WrapperDescriptorType: _descriptor,
    }


_LEAVES: dict[type, tuple[bytes, Callable[[Any], bytes]]] = {
    type(None): (b"n", lambda _: b""),
    type(...): (b"e", lambda _: b""),
    type(NotImplemented): (b"N", lambda _: b""),
    bool: (b"b", lambda value: b"1" if value else b"0"),
    int: (b"i", lambda value: b"%x" % value),
    float: (b"f", struct.Struct("<d").pack),
    complex: (b"c", lambda value: struct.pack("<dd", value.real, value.imag)),
    str: (b"s", lambda value: value.encode("utf-8", "surrogatepass")),
    bytes: (b"y", bytes),
    bytearray: (b"Y", bytes),
    memoryview: (b"v", bytes),
}


@functools.lru_cache(maxsize=4096)
def _digest_of_code(code: types.CodeType) -> bytes:
    """Return a hash of the operations of a code object, regardless of its position."""
    walk = _Walk(None)
    walk.text(code.co_name)
    numbers = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    walk.value((numbers, names, code.co_code, code.co_consts, getattr(code, "co_exceptiontable", b"")))
    return walk.digest()


@functools.lru_cache(maxsize=4096)
def _globals_of(code: types.CodeType) -> dict[str, frozenset[str]]:
    """Return the globals that a code object and its inner functions name, each with the names in the same code."""
    import dis

    found: dict[str, frozenset[str]] = {}
    codes = [code]
    while codes:
        each = codes.pop()
        names = {step.argval for step in dis.get_instructions(each) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        for name in names:
            found[name] = found.get(name, frozenset()) | frozenset(each.co_names)
        codes += [const for const in each.co_consts if isinstance(const, types.CodeType)]
    return found


def _library_version(name: str) -> str | None:
    """Return the version of a module's library, possibly empty; None for a module that belongs to no library."""
    top = name.partition(".")[0]
    if not modules.is_library(name):
        return None
    version = getattr(sys.modules.get(top), "__version__", "")
    return version if isinstance(version, str) else ""
