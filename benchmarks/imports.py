"""Imports of a program, as ``python -X importtime`` reports them."""

from __future__ import annotations

from benchmarks.contender import Samples

VARIABLE = "PYTHONPROFILEIMPORTTIME"
"""Variable of the environment of an interpreter, and of those that it starts, to report the imports."""

_LINE = "import time:"


def read_imports(errors: str) -> Samples:
    """Return the number of modules, and the seconds of their own code, by the report on standard error."""
    lines = [line.removeprefix(_LINE) for line in errors.splitlines() if line.startswith(_LINE)]
    own = [int(text) for text, *_ in (line.split("|") for line in lines) if text.strip().isdigit()]  # not the header
    return {"modules": [float(len(own))], "import": [sum(own) / 1e6]}
