"""What mkdocs does not do by itself: it calls these functions by their names."""

import re

_MARK = re.compile(r"^( *```\w+) (?:notest|run|background)$", re.MULTILINE)
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?(?:[\w.]*\.)?(\w+)</code>")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Take out what a block's first line says to the tests (see tests/test_docs.py)."""
    return _MARK.sub(r"\1", markdown)


def on_page_content(html: str, **_: object) -> str:
    """Show the cross-references of docstrings as the names that they are."""
    return _ROLE.sub(r"<code>\1</code>", html)
