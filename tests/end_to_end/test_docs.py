"""The pages match the code: their programs run with the stated output, their tables equal the code.

A page is one Python program: its ``python`` blocks in order, in one namespace. Each line that prints has a
comment with its output. A block with more words at its fence is used in another way:

    python notest   does not run (with a reason in the page)
    sh run          runs, and must succeed, before the blocks that follow
    sh background   is started, and ended with the page

A page that uses the spool :data:`SPOOL` finds it served by a group of one rank and one of two, unless it makes
that spool itself.
"""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from spoolpool import errors, settings
from spoolpool.cli.spool import main as spool_command
from spoolpool.cli.worker import main as worker_command
from spoolpool.format.layout import Layout
from spoolpool.protocol.spool import Spool

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))[1:]
SPOOL = "/shared/project/spool"
LIMIT = 300.0  # seconds, which end a page that hangs

_FENCE = re.compile(r"^( *)```(\w*) ?(.*)$")

_SHELL = """\
import atexit, shlex, subprocess, sys

def put_path(text):
    # a piece of Python has the path already, the text of a shell needs it quoted
    return text.replace({spool!r}, shlex.quote({path!r}))

def run(text):
    text = put_path(text)
    done = subprocess.run(["bash", "-euc", text], stdin=subprocess.DEVNULL, stdout=sys.stderr)
    assert done.returncode == 0, f"{{text.strip()!r}} ended with {{done.returncode}}"

def background(text):
    text = put_path(text)
    process = subprocess.Popen(["bash", "-euc", "exec " + text.strip()], stdin=subprocess.DEVNULL, stdout=sys.stderr)

    def stop():
        process.terminate()
        assert process.wait(60) == 0, f"{{text.strip()!r}} ended with {{process.returncode}}"

    atexit.register(stop)
"""


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int
    """Line of its text in the page, from 1."""
    language: str
    mark: str
    text: str


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    opened: re.Match[str] | None = None
    first = 0
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if fence and opened is None:
            opened, first = fence, number + 1
        elif fence and opened is not None and not fence[2]:
            text = textwrap.dedent("\n".join(lines[first - 1 : number - 1]))
            found.append(Block(first, opened[2], opened[3], text))
            opened = None
    assert opened is None, f"{page}:{first}: this block has no end"
    return found


def program(page: Path) -> str:
    """Return the page as one program with the same line numbers as in the page."""
    lines: list[str] = []

    def put(number: int, text: str) -> None:
        lines.extend([""] * (number - 1 - len(lines)))
        lines.extend(text.splitlines())

    for block in blocks(page):
        if block.language == "python" and not block.mark and not block.text.startswith("--8<--"):
            put(block.line, block.text)
        elif block.language == "sh" and block.mark in ("run", "background"):
            put(block.line, f"import page_shell; page_shell.{block.mark}({block.text!r})")
    return "\n".join(lines) + "\n" if lines else ""


def expected_output(text: str) -> list[str]:
    """Return the output that the comments of a program state, in order; ``...`` stands for any text."""
    expected = []
    task_files = list(tokenize.generate_tokens(io.StringIO(text).readline))
    comments = {task_file.start[0]: task_file.string for task_file in task_files if task_file.type == tokenize.COMMENT}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert node.end_lineno is not None
            assert node.end_lineno in comments, f"line {node.end_lineno} prints, and no comment says what"
            expected.append((node.lineno, comments[node.end_lineno].removeprefix("#").strip()))
    return [comment for _, comment in sorted(expected)]


RUNNABLE = [page for page in PAGES if program(page)]


def _mark(page: Path) -> tuple[pytest.MarkDecorator, ...]:
    return (pytest.mark.mpi,) if re.search(r"mpiexec|mpi4py|cores_per_worker", program(page)) else ()


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=str(page.relative_to(ROOT)), marks=_mark(page)) for page in RUNNABLE]
)
def test_code_of_a_page_runs_and_prints_the_stated_output(page: Path, tmp_path: Path, worker: Callable) -> None:
    text = program(page)
    expected = expected_output(text)
    served = tmp_path / "spool"
    if SPOOL in text and f"spool init {SPOOL}" not in text:
        Spool.create(served, durability="none")
        worker(served, "--launcher", "local")
        worker(served, mpi_ranks=2)
    shell = _SHELL.format(spool=SPOOL, path=str(served))
    (tmp_path / "page_shell.py").write_text(shell, encoding="utf-8")
    script = tmp_path / f"{page.stem}.py"
    lines = (
        line if line.startswith("import page_shell;") else line.replace(SPOOL, str(served))
        for line in text.splitlines()
    )
    script.write_text("\n".join(lines), encoding="utf-8")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    said = f"\n{done.stdout}{done.stderr}".replace(str(script), str(page))
    assert done.returncode == 0, said
    assert "Exception ignored" not in done.stderr, said
    printed = done.stdout.splitlines()
    wanted = [mine if want == "..." else want for want, mine in zip(expected, printed, strict=False)]
    assert printed == wanted, said
    assert len(printed) == len(expected), said
    assert list(temporary.glob("spoolpool-*")) == [], "a temporary spool was left behind"


def test_every_mark_of_a_block_is_known() -> None:
    known = {("python", "notest"), ("sh", "run"), ("sh", "background")}
    wrong = [
        f"{page}:{block.line}: {block.language} {block.mark}"
        for page in PAGES
        for block in blocks(page)
        if block.mark and (block.language, block.mark) not in known
    ]
    assert wrong == []


def test_every_example_is_run_by_a_page() -> None:
    shown = "".join(program(page) for page in PAGES)
    assert [path.name for path in (DOCS / "examples").glob("*.py") if f"docs/examples/{path.name}" not in shown] == []


def test_links_of_the_readme_have_targets() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


# -- tables


def section(page: str, heading: str) -> str:
    """Return the text below a heading, up to the next heading of the same or a higher level."""
    text = (DOCS / page).read_text(encoding="utf-8")
    level = heading.partition(" ")[0]
    found = re.search(rf"^{re.escape(heading)}$(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no heading {heading!r}"
    return found[1]


def table(text: str) -> list[list[str]]:
    """Return the rows of all tables in a text, without their heads."""
    rows: list[list[str]] = []
    head = True
    for line in text.splitlines():
        if not line.startswith("|"):
            head = True
        elif re.fullmatch(r"[|\s:-]+", line):
            head = False
        elif not head:
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def all_errors() -> dict[str, type[errors.SpoolpoolError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.SpoolpoolError)
    }


def commands() -> dict[str, click.Command]:
    """Return all commands by their headings."""
    found: dict[str, click.Command] = {"spool-worker": worker_command}
    groups: list[tuple[str, click.Command]] = [("spool", spool_command)]
    while groups:
        name, command = groups.pop()
        found[name] = command
        if isinstance(command, click.Group):
            context = click.Context(command)
            inside = {each: command.get_command(context, each) for each in command.list_commands(context)}
            groups += [(f"{name} {each}", found_inside) for each, found_inside in inside.items() if found_inside]
    return found


@pytest.mark.parametrize("name", commands())
def test_page_of_the_commands_lists_exactly_the_options(name: str) -> None:
    options = [each for each in commands()[name].params if isinstance(each, click.Option) and not each.hidden]
    text = section("cli.md", f"## {name}")
    rows = table(text) + (table(section("cli.md", "## Which tasks")) if "(#which-tasks)" in text else [])
    named = {code.partition(" ")[0] for row in rows for code in codes(row[0]) if code.startswith("-")}
    assert named == {text for option in options for text in (*option.opts, *option.secondary_opts)}


def test_page_of_the_commands_lists_only_existing_commands() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## (spool(?:-worker)?(?: \S+)*)$", text, re.MULTILINE)) == set(commands())


def test_the_table_of_exit_codes_equals_the_errors() -> None:
    rows = {int(row[0]): row[1] for row in table(section("cli.md", "## Exit codes"))}
    told = {code: codes(what)[0] for code, what in rows.items() if codes(what) and codes(what)[0] in all_errors()}
    assert told == {error.exit_code: name for name, error in all_errors().items()}
    assert {settings.EXIT_UNEXPECTED, settings.EXIT_RENEW, settings.EXIT_START} <= rows.keys()


def test_the_table_of_variables_equals_the_settings() -> None:
    named = {codes(row[0])[0] for row in table(section("cli.md", "## Environment"))}
    assert named == {value for name, value in vars(settings).items() if name.startswith("ENV_")}


def test_protocol_page_has_the_meaning_of_each_error() -> None:
    named = {codes(row[0])[0] for row in table(section("protocol.md", "## Errors"))}
    assert named == set(all_errors())


def test_the_format_names_every_directory() -> None:
    tree = section("format.md", "## The tree")
    assert [name for name in Layout.DIRECTORIES if f"\n  {name}/" not in tree] == []


@pytest.mark.parametrize(
    ("page", "heading"), [("failure-modes.md", "# Failure modes"), ("security.md", "## What was tried")]
)
def test_every_row_of_the_failure_modes_and_of_the_attacks_names_tests_that_exist(page: str, heading: str) -> None:
    wrong = []
    rows = table(section(page, heading))
    assert len(rows) > 10
    for row in rows:
        named = [code for code in codes(row[-1]) if code.startswith("tests/")]
        if not named:
            wrong.append(f"{row[0]}: no test is named")
        for code in named:
            path, _, name = code.partition("::")
            file = ROOT / path
            text = file.read_text(encoding="utf-8") if file.exists() else ""
            defined = re.findall(r"^ *def (test_\w+)", text, re.MULTILINE)
            if not text or (name and name not in defined):
                wrong.append(code)
    assert wrong == []


def test_table_of_the_attacks_names_all_tests_of_attacks() -> None:
    named = set(codes(section("security.md", "## What was tried")))
    text = (ROOT / "tests" / "multiuser" / "test_attacks.py").read_text(encoding="utf-8")
    tests = re.findall(r"^def (test_\w+)", text, re.MULTILINE)
    left_out = [name for name in tests if f"tests/multiuser/test_attacks.py::{name}" not in named]
    assert left_out == []


def test_every_decision_is_listed_dated_and_has_a_number_of_its_own() -> None:
    listed = [row[0] for row in table((DOCS / "decisions" / "README.md").read_text(encoding="utf-8"))]
    assert listed == [f"[{page.stem[:4]}]({page.name})" for page in DECISIONS]
    assert len({page.stem[:4] for page in DECISIONS}) == len(DECISIONS)
    for page in DECISIONS:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {page.stem[:4]}: ")
        assert re.search(r"^- Date: \d{4}-\d\d-\d\d\n- Status: \w+", text, re.MULTILINE), page
