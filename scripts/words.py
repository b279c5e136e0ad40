#!/usr/bin/env python3
"""Check the words of docstrings: scripts/words.py [-v] FOLDER...

Two figures are limited: the share of docstrings that open with a question word, and the number of indefinite pronouns
per 1000 words. A figure above its limit is an error. The places are listed after an error, and with -v.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MOST_OPENINGS = 1.0
"""Percent of docstrings."""
MOST_PRONOUNS = 4.0
"""Per 1000 words."""

OPENING = re.compile(r"(?:(?:by|of|in|to|from) )?(?:what|which|who(?:se|ever|m)?|where|how|why)\b", re.IGNORECASE)
PRONOUN = re.compile(
    r"\b(?:what|who(?:se|ever|m)?|(?:some|no|every|any)body|one that|those (?:that|who)|such)\b", re.IGNORECASE
)


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def main(arguments: list[str]) -> int:
    verbose = "-v" in arguments
    places, count, words, openings, pronouns = [], 0, 0, 0, 0
    for folder in (each for each in arguments if each != "-v"):
        for path in sorted(Path(folder).rglob("*.py")):
            for line, text in docstrings(path):
                opens, found = OPENING.match(text), PRONOUN.findall(text)
                count, words = count + 1, words + len(text.split())
                openings, pronouns = openings + bool(opens), pronouns + len(found)
                if opens or found:
                    said = [f"opens with {opens[0]!r}"] if opens else []
                    said += [f"has {each!r}" for each in found]
                    places.append(f"{path}:{line}: {', '.join(said)}: {text.splitlines()[0]}")
    share, rate = 100 * openings / max(1, count), 1000 * pronouns / max(1, words)
    good = share <= MOST_OPENINGS and rate <= MOST_PRONOUNS
    if verbose or not good:
        print(*places, sep="\n")
    print(
        f"{count} docstrings: {share:.1f} % open with a question word (at most {MOST_OPENINGS:g}), "
        f"{rate:.1f} indefinite pronouns per 1000 words (at most {MOST_PRONOUNS:g})"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
