"""Steps of the build that mkdocs does not do by itself: it calls these functions by their names."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads this file by its path
import _messages

ROOT = Path(__file__).resolve().parents[1]

_MARK = re.compile(r"^( *```\w+) (?:notest|run|background)$", re.MULTILINE)
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?(?:[\w.]*\.)?(\w+)</code>")
_INCLUDE = re.compile(r"^<!-- include (\S+) -->$", re.MULTILINE)
_ERRORS = "<!-- errors -->"
_CELL = re.compile(r"<td[ >].*?</td>", re.DOTALL)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Insert included files and the errors, and remove the marks of blocks for tests/end_to_end/test_docs.py."""
    if _ERRORS in markdown:
        markdown = markdown.replace(_ERRORS, _messages.page())
    return _MARK.sub(r"\1", _INCLUDE.sub(_included, markdown))


def on_page_content(html: str, **_: object) -> str:
    """Show cross-references of docstrings as names, and remove the backslash of escaped pipes in tables.

    Markdown needs ``\\|`` in a cell of a table. The renderer keeps the backslash in code, and a pasted command would
    have it too.
    """
    html = _CELL.sub(lambda cell: cell[0].replace("\\|", "|"), html)
    return _ROLE.sub(r"<code>\1</code>", html)


def _included(found: re.Match[str]) -> str:
    """Return a file of the repository with its links as seen from the pages."""
    return (ROOT / found[1]).read_text(encoding="utf-8").replace("](docs/", "](")
