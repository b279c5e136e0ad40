"""Stacks that Python's faulthandler writes when a process crashes (SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL)."""

from __future__ import annotations

import re

from spoolpool.system.patterns import lazy_pattern

STACK_LIMIT = 1 << 13
"""Characters of a stack."""

_BEGIN = lazy_pattern(rb"^(?:Fatal Python error: |Timeout \()", re.MULTILINE)
_OURS = lazy_pattern(r" in (?:run_call|run_pickled)$")


def crash_stack(data: bytes) -> str:
    """Return the last stack in a text, without control characters; empty without one.

    Of several threads it is that of the one that crashed, down to the function of the task.
    """
    begin = -1
    for match in _BEGIN.finditer(data):
        begin = match.start()
    if begin < 0:
        return ""
    title, _, rest = data[begin:].decode(errors="replace").partition("\n")
    threads = rest.split("\n\n")
    current = [each for each in threads if each.lstrip().startswith("Current thread")]
    lines = "\n".join(current or threads).strip("\n").splitlines()
    ours = [number for number, line in enumerate(lines) if current and _OURS.search(line)]
    return printable("\n".join([title, *lines[: ours[0] if ours else None]]))[:STACK_LIMIT].strip()


def printable(text: str) -> str:
    """Return a text with a question mark in place of each control character but the ends of its lines."""
    return "".join(each if each.isprintable() or each == "\n" else "?" for each in text)
