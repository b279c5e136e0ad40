"""Steps of the documentation's build. mkdocs is not needed: the steps change texts."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import spoolpool
from spoolpool import errors
from spoolpool.protocol.spool import Spool

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


# -- errors


@pytest.fixture(scope="module")
def messages(hooks: ModuleType) -> ModuleType:
    return hooks._messages


@pytest.fixture(scope="module")
def errors_page(hooks: ModuleType) -> dict[str, str]:
    """Return the sections of the page by the names of the errors."""
    made = hooks.on_page_markdown((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    _, *parts = re.split(r"^### (\w+)$", made, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def public_errors() -> list[type[BaseException]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == errors.__name__
    ]


@pytest.mark.parametrize("error", public_errors(), ids=lambda error: error.__name__)
def test_each_public_error_has_its_meaning_remedy_and_exit_code_on_the_page(
    error: type[BaseException], errors_page: dict[str, str]
) -> None:
    section = errors_page[error.__name__]
    assert re.search(r"\*\*Remedy:\*\* [A-Z].{20,}", section)
    code = vars(error).get("exit_code")
    assert code is None or f"xit code {code}." in section


@pytest.mark.parametrize("error", [each for each in public_errors() if hasattr(each, "exit_code")])
def test_each_error_with_an_exit_code_has_a_message_on_the_page(
    error: type[BaseException], errors_page: dict[str, str]
) -> None:
    assert re.search(r"^ *- `.*[a-z]{3}.*`$", errors_page[error.__name__], re.MULTILINE)


def _open_nothing(path: Path) -> object:
    return spoolpool.Executor(spool=str(path / "nowhere"))


def _ask_for_an_unknown_key(path: Path) -> object:
    with spoolpool.Executor(spool=Spool.create(path / "spool", durability="none").path) as exe:
        return exe.submit(abs, 1, resource_dict={"core": 2})


def _ask_outside_of_a_task(_: Path) -> object:
    return spoolpool.current_task()


@pytest.mark.parametrize("fail", [_open_nothing, _ask_for_an_unknown_key, _ask_outside_of_a_task])
def test_text_of_a_raised_error_is_found_on_the_page(
    fail: Callable[[Path], object], messages: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(errors.SpoolpoolError) as caught:
        fail(tmp_path)
    (problem,) = (each for each in messages.problems() if each.name == caught.typename)
    found = [each for each in problem.messages if messages.pattern(each).fullmatch(str(caught.value))]
    assert found, str(caught.value)
