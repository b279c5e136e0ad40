"""Page of the errors, made from the docstrings of ``spoolpool/errors.py`` and from the messages in the source.

The source is parsed, not imported: the page is complete without an installed package, and cannot become outdated.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1] / "spoolpool"

_SHOWN = 4  # messages of an error; further ones are folded
_LEAST = 12  # letters of a message that is worth a line: shorter ones are parts of others
_GAP = "…"
_NAMES = {
    "account_name": "ACCOUNT",
    "describe_error": "REASON",
    "describe_value": "VALUE",
    "error": "REASON",
    "hostname": "HOST",
    "printable": "VALUE",
    "root": "PATH",
    "strerror": "REASON",
}
_RETURNED = {
    "NobodyServes": ("protocol/workers.py", "why_unserved"),
    "WorkerLost": ("protocol/lost_attempts.py", "message"),
}
"""Functions that return the text of a class."""
_PLAIN = re.compile(
    "account|command|count|directory|file|function|group|host|job|key|lane|mode|name|option|owner|path|queue|session|"
    "spool|task|user|value|version|worker"
)
"""Names of values that are shown in capitals; other values are gaps."""


class Problem(NamedTuple):
    """A public class of ``errors.py`` with its meaning, its remedy and the messages in the source."""

    name: str
    bases: tuple[str, ...]
    meaning: str
    remedy: str
    exit_code: int | None
    messages: tuple[str, ...]


def problems() -> list[Problem]:
    """Return the public exceptions in the order of ``errors.py``."""
    found = _messages()
    made = []
    for node in ast.parse((PACKAGE / "errors.py").read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        bases = tuple(base.id for base in node.bases if isinstance(base, ast.Name))
        if "NamedTuple" in bases:
            continue
        meaning, _, remedy = (ast.get_docstring(node) or "").partition("Remedy: ")
        made.append(
            Problem(node.name, bases, _prose(meaning), _prose(remedy), _exit_code(node), found.get(node.name, ()))
        )
    return made


def page() -> str:
    """Return the sections of all errors in Markdown."""
    return "\n".join(line for problem in problems() for line in _section(problem))


def pattern(message: str) -> re.Pattern[str]:
    """Return a pattern for the texts of a message on the page, with any text in its gaps."""
    return re.compile(".+".join(map(re.escape, re.split(rf"{_GAP}|\b[A-Z]{{3,}}\b", message))), re.DOTALL)


def _section(problem: Problem) -> Iterator[str]:
    yield f"### {problem.name}\n"
    yield f"{problem.meaning}\n"
    yield f"**Remedy:** {problem.remedy[:1].upper()}{problem.remedy[1:]}\n"
    facts = [f"also a `{base}`" for base in problem.bases if base not in ("Exception", "SpoolpoolError")]
    if problem.exit_code is not None:
        facts.append(f"exit code {problem.exit_code}")
    if facts:
        text = ", ".join(facts)
        yield f"{text[:1].upper()}{text[1:]}.\n"
    shown, folded = problem.messages[:_SHOWN], problem.messages[_SHOWN:]
    if len(folded) == 1:
        shown, folded = problem.messages, ()
    yield from (f"- {_code(each)}" for each in shown)
    yield ""
    if folded:
        yield f'??? note "{len(folded)} more messages"\n'
        yield from (f"    - {_code(each)}" for each in folded)
        yield ""


def _code(message: str) -> str:
    """Return a message as code that may contain backticks."""
    return f"`` {message} ``" if "`" in message else f"`{message}`"


def _prose(text: str) -> str:
    """Return a docstring as Markdown: one paragraph a line, literals with single backticks."""
    paragraphs = (" ".join(each.split()) for each in text.strip().split("\n\n"))
    return "\n\n".join(paragraphs).replace("``", "`")


def _exit_code(node: ast.ClassDef) -> int | None:
    for each in node.body:
        if isinstance(each, ast.Assign | ast.AnnAssign) and each.value is not None:
            (target,) = each.targets if isinstance(each, ast.Assign) else (each.target,)
            if _last_name(target) == "exit_code":
                return int(ast.literal_eval(each.value))
    return None


# -- messages


def _messages() -> dict[str, tuple[str, ...]]:
    """Return the messages of each class, in the order of the modules, each once."""
    found: dict[str, dict[str, None]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for scope in ast.walk(tree):
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
                for name, message in _messages_of(scope):
                    found.setdefault(name, {})[message] = None
            if isinstance(scope, ast.FunctionDef):
                for name, place in _RETURNED.items():
                    if place == (str(path.relative_to(PACKAGE)), scope.name):
                        found.setdefault(name, {}).update(dict.fromkeys(_long_texts(scope)))
    return {name: tuple(messages) for name, messages in found.items()}


def _long_texts(function: ast.AST) -> Iterator[str]:
    """Yield the texts with values in a function."""
    for node in ast.walk(function):
        if isinstance(node, ast.JoinedStr):
            message = _text(node, {}).strip()
            if _letters(message) >= _LEAST:
                yield message


def _messages_of(function: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield class and text of each exception that a function makes with a text: ``Name("...")``."""
    texts: dict[str, ast.expr] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            texts.setdefault(node.targets[0].id, node.value)
    for node in ast.walk(function):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = _last_name(node.func)
        message = " ".join(_text(node.args[0], texts).split())
        if name[:1].isupper() and _letters(message) >= _LEAST:
            yield name, message


def _letters(message: str) -> int:
    """Return the number of letters outside of gaps and names in capitals."""
    return len(re.sub(rf"{_GAP}|\b[A-Z]{{3,}}\b|\W", "", message))


def _text(node: ast.expr, texts: dict[str, ast.expr]) -> str:
    """Return the text of an expression, with names in capitals or gaps in the place of values."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else _GAP
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, texts) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        made = _text(node.value, texts)
        return f"'{made}'" if node.conversion == ord("r") else made
    if isinstance(node, ast.Name) and isinstance(texts.get(node.id), ast.JoinedStr):
        return _text(texts[node.id], {})
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, texts) + _text(node.right, texts)
    name = _last_name(node.func if isinstance(node, ast.Call) else node)
    return _NAMES.get(name, name.upper() if _PLAIN.fullmatch(name) else _GAP)


def _last_name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
