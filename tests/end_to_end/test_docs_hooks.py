"""Steps of the documentation's build. mkdocs is not needed: the steps change texts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spoolpool_docs_hooks", ROOT / "docs" / "_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_commands_in_cells_of_tables_have_no_backslash_before_a_pipe(hooks: ModuleType) -> None:
    html = r"<td><code>find . \| sort</code></td><p>a \| b</p><td align='left'>x \| <code>c \| d</code></td>"
    assert hooks.on_page_content(html) == (
        r"<td><code>find . | sort</code></td><p>a \| b</p><td align='left'>x | <code>c | d</code></td>"
    )


def test_marks_for_the_tests_are_not_shown(hooks: ModuleType) -> None:
    assert hooks.on_page_markdown("```sh run\nls\n```\n\n  ```python notest\n") == "```sh\nls\n```\n\n  ```python\n"


def test_included_files_link_to_pages_and_not_to_files(hooks: ModuleType) -> None:
    made = hooks.on_page_markdown((ROOT / "docs" / "contributing.md").read_text(encoding="utf-8"))
    assert made.startswith("# Contributing")
    assert "](benchmarks.md)" in made
    assert "](docs/" not in made
