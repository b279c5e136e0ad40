"""Readers of files: every record goes through spoolpool.system.records."""

from __future__ import annotations

import ast
from pathlib import Path

import spoolpool

PACKAGE = Path(spoolpool.__file__).parent


def _calls(tree: ast.AST) -> set[str]:
    """Return the names of the called attributes, with the last name before them."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            before = node.func.value
            name = (
                before.attr if isinstance(before, ast.Attribute) else before.id if isinstance(before, ast.Name) else ""
            )
            found.add(f"{name}.{node.func.attr}")
    return found


def test_only_the_reader_of_records_decodes_them() -> None:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        calls = _calls(ast.parse(path.read_text(encoding="utf-8")))
        bad = {each for each in calls if each.endswith("decoder.decode") or each in ("json.decode", "msgpack.decode")}
        if bad:
            found[str(path.relative_to(PACKAGE))] = bad
    assert found == {"system/records.py": {"decoder.decode"}}
