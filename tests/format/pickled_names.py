"""The names of functions, classes and modules that the files of a spool contain, without unpickling anything."""

from __future__ import annotations

import json
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import spoolpool
from spoolpool import errors, wire
from spoolpool.format import envelope

PICKLES = (b"\x80\x04", b"\x80\x05")
"""Beginnings of a pickle, also of one inside another."""


class Name(NamedTuple):
    """A global of a pickle; a module that is imported by its name has no ``name``."""

    module: str
    name: str


SUBIMPORT = Name("cloudpickle.cloudpickle", "subimport")
"""Function by which cloudpickle imports a module whose name is its argument."""


def names_in_pickle(data: bytes) -> Iterator[Name]:
    """Yield the names in a pickle and in the pickles that it contains."""
    memo: list[Any] = []
    pushed: list[Any] = [None, None]  # what the last opcodes pushed: a text, a Name, or None for anything else
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "MEMOIZE":
            memo.append(pushed[-1])
            continue
        value: Any = None
        if opcode.name in ("BINGET", "LONG_BINGET"):
            value = memo[argument]
        elif opcode.name == "STACK_GLOBAL":
            value = Name(*pushed[-2:])
            yield value
        elif opcode.name in ("GLOBAL", "INST", "PUT", "BINPUT", "LONG_BINPUT"):
            raise ValueError(f"{opcode.name} is not of protocol 4 or 5")
        elif isinstance(argument, str):
            value = argument
            if pushed[-1] == SUBIMPORT:
                yield Name(argument, "")
        elif isinstance(argument, (bytes, bytearray)) and argument.startswith(PICKLES):
            yield from names_in_pickle(bytes(argument))
        pushed.append(value)


def types_in_json(value: Any) -> Iterator[Name]:
    """Yield the classes that the fields called ``type`` name."""
    if isinstance(value, dict):
        if "." in (kind := str(value.get("type", ""))):
            yield Name(*kind.rsplit(".", 1))
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from types_in_json(each)


def names_in_file(path: Path) -> Iterator[Name]:
    """Yield the names in a task, outcome, object or cached result, or in a file of records."""
    data = path.read_bytes()
    while (start := data.find(envelope.MAGIC)) >= 0:  # after the signature of the record before, if there is one
        data = data[start:]
        size = int.from_bytes(data[24:32], "little")
        content = envelope.parse(memoryview(data)[:size], str(path))
        yield from types_in_json(json.loads(content.header))
        for part in (content.payload, *content.buffers):
            if bytes(part).startswith(PICKLES):
                yield from names_in_pickle(bytes(part))
        data = data[size:]


def names_in_spool(directory: Path) -> dict[Name, set[str]]:
    """Return the names in all files of a spool, each with the paths of its files."""
    found: dict[Name, set[str]] = {}
    for path in directory.rglob("*"):
        if path.is_file() and path.read_bytes()[:8] == envelope.MAGIC:
            for name in names_in_file(path):
                found.setdefault(name, set()).add(str(path.relative_to(directory)))
    return found


def is_allowed(name: Name) -> bool:
    """Return whether the format has a name: not one of spoolpool's own, a public one, an error, or one of wire."""
    if name.module.partition(".")[0] != "spoolpool":
        return True
    if not name.name:
        return name.module in ("spoolpool", "spoolpool.errors", "spoolpool.wire")
    if name.module == "spoolpool.errors":
        value = getattr(errors, name.name, None)
        return isinstance(value, type) and issubclass(value, BaseException) and not name.name.startswith("_")
    public = {"spoolpool": spoolpool.__all__, "spoolpool.wire": wire.__all__}.get(name.module, [])
    return name.name.partition(".")[0] in public
