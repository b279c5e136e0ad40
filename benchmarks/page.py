"""Page of the documentation from a report, with the plots beside it.

Texts come from the present rows, all figures from the report: the page can be generated again without measuring.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, opening, plot, results, table
from benchmarks.row import Row

NAME = "benchmarks"
"""Name of the page, and of the directory beside it for its report and plots."""

_FOLDED = 20  # lines; a longer table is folded

_INTRODUCTION = """\
# Benchmarks

This project beside others, measured in one run on one machine.
"""

_SOURCE = """\
The sections below have all figures, and explain the work of each contender. All figures are made from
[one report](benchmarks/report.json) by `scripts/bench --from docs/benchmarks/report.json --page docs`;
[How it was measured](#how-it-was-measured) has the command for the report. The project's own goals stand under
[Targets](#targets).
"""

_READING = """\
## How to read it

In each round each contender has a turn: in new processes and a new directory, while no other contender works.
So a disturbance of the machine affects all contenders.

- The **median** is the median of the rounds' medians. The column "rounds" has the lowest and the highest of them; in
  the plots they are the ends of the whiskers.
- **x ours** is the time, memory or CPU time of a contender, divided by that of spoolpool. For a rate it is the ratio of
  the times per call. Above 1, spoolpool is ahead.
- **x floor** is the ratio to the bare system calls for the same work. The floor is no queue: it is the limit for each
  queue that works in this way.
- A ratio is computed within each round, and the table has the median of these ratios. It may differ from the quotient
  of the medians in the table.
- **To reach** is a goal of this project, written down before the run.
- The axis of a plot is logarithmic if its values are far apart: each step is a factor.
"""


def write(report: Mapping[str, Any], docs: Path, rows: Mapping[str, Row]) -> None:
    """Write the page, its plots and its report into a directory of pages; remove plots of other rows."""
    made = files(report, rows)
    beside = docs / NAME
    beside.mkdir(exist_ok=True)
    for path in beside.glob("*.svg"):
        if f"{NAME}/{path.name}" not in made:
            path.unlink()
    for name, text in made.items():
        (docs / name).write_text(text, encoding="utf-8")


def files(report: Mapping[str, Any], rows: Mapping[str, Row]) -> dict[str, str]:
    """Return the files of :func:`write` by name. The report among them gives the same files again."""
    report = results.compact(report)
    made = {f"{NAME}/report.json": _json(report)}
    lines = [_INTRODUCTION]
    lines += [f"- {sentence}" for sentence in opening.sentences(report)]
    picture = opening.picture(report)
    if picture is not None:
        made[f"{NAME}/opening.svg"] = picture.svg
        lines.append(f"\n![{_text(picture.title)}]({NAME}/opening.svg)\n")
    lines += [_SOURCE, *_run(report), _READING]
    for row in report["rows"]:
        plots = {f"{NAME}/{row['name']}-{number}.svg": each for number, each in enumerate(plot.plots(row), 1)}
        made |= {name: each.svg for name, each in plots.items()}
        lines += _row(row, rows.get(row["name"]), plots)
    lines += _targets(report, rows)
    return {f"{NAME}.md": "\n".join(lines), **made}


def _json(report: Mapping[str, Any]) -> str:
    """Return the report as JSON with a line per entry, for comparisons of two reports."""
    text = json.dumps(report, ensure_ascii=False, separators=(",", ":"))
    return text.replace('{"contender":', '\n{"contender":') + "\n"


def _targets(report: Mapping[str, Any], rows: Mapping[str, Row]) -> Iterator[str]:
    cells = [["row", "of what", "to reach", "reached", ""]]
    for target in table.targets(report):
        name = target.row["name"]
        row = rows.get(name)
        met = {True: "yes", False: "**no**", None: "not measured"}[target.met]
        if target.met is False and row is not None and row.decision:
            met += f": [what was tried](decisions/{row.decision})"
        cells.append([f"[{name}](#{name})", *map(_text, (target.what, target.wanted, target.reached)), met])
    if len(cells) > 1:
        known = [target.met for target in table.targets(report) if target.met is not None]
        yield f"## Targets\n\nOf {len(known)} that can be told, {sum(known)} are reached.\n"
        yield from _table(cells, "llrrl")


def _run(report: Mapping[str, Any]) -> Iterator[str]:
    here = report["machine"]
    yield "## How it was measured\n"
    yield f"```sh\n{report['command']}\n```\n"
    yield (
        f"On {_text(here['date'])}, of commit {_text(here['commit'] or 'unknown')}, on {_text(here['processor'])} "
        f"({here['cores']} cores, {here['memory']}), {_text(here['system'])}, Python {here['python']}, with the files "
        f"on {_text(here['filesystem'])}. The load was {here['load']} before the run."
    )
    if machine.busy(here):
        yield "**Others were at work on this machine, so the figures are noisy.**"
    if here["commit"].endswith("+"):
        yield "The plus says that files differed from the commit."
    yield ""
    yield "Sizes: " + ", ".join(f"{name} {number}" for name, number in report["sizes"].items())
    yield "(`scripts/bench --help` says what they are).\n"
    cells = [["environment", "what is in it"]]
    for name, made in report["environments"].items():
        versions = ", ".join(f"{package} {version}" for package, version in made.get("versions", {}).items())
        cells.append([_text(name), _text(made.get("missing") or versions)])
    yield from _table(cells, "ll")


def _row(row: Mapping[str, Any], written: Row | None, plots: Mapping[str, plot.Plot]) -> Iterator[str]:
    yield f"## {row['name'].capitalize()}\n"
    yield f"**{_text(row['title'])}.**"
    if written is not None:
        yield written.about
    roles = {table.who(entry): entry["role"] for entry in row["entries"]}
    tables = table.tables(row, short=True)
    for name, each in plots.items():
        yield f"![{_text(each.title)}]({name})\n"
        below = list(itertools.islice(tables, each.panels))
        shown = " open" if max(map(len, below)) <= _FOLDED else ""
        yield f'<details markdown="1"{shown}>\n<summary>In figures</summary>\n'
        for cells in below:
            yield from _figures(cells, roles)
        yield "</details>\n"
    for fact in table.facts(row):
        yield f"{_text(fact)}\n"
    reasons: dict[str, list[str]] = {}
    for name, reason in table.missing(row):
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        yield f"No figures of {_text('; '.join(names))}: {_text(reason)}\n"


def _figures(cells: Sequence[Sequence[str]], roles: Mapping[str, str]) -> Iterator[str]:
    marks = {"ours": "**", "floor": "*", "peer": ""}
    lines = []
    for name, *values in cells:
        mark = marks[roles.get(name, "peer")]  # the header line has no role
        lines.append([f"{mark}{_text(name)}{mark}", *(_text(_unbroken(value)) for value in values)])
    yield from _table(lines, "l" + "r" * (len(lines[0]) - 1))


def _unbroken(value: str) -> str:
    """Return a cell with line breaks only between goals."""
    return value.replace(" ", "\N{NO-BREAK SPACE}").replace(";\N{NO-BREAK SPACE}", "; ")


def _table(cells: Sequence[Sequence[str]], sides: str) -> Iterator[str]:
    """Return a table without empty columns; each column is aligned to the left or to the right."""
    rule = ["---:" if side == "r" else "---" for side in sides]
    used = [any(column) for column in zip(*cells[1:], strict=True)]
    for line in (cells[0], rule, *cells[1:]):
        yield f"| {' | '.join(itertools.compress(line, used))} |"
    yield ""


def _text(text: str) -> str:
    """Escape a text for Markdown and HTML."""
    escaped = re.sub(r"([\\`*_{}\[\]|#])", r"\\\1", str(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")
