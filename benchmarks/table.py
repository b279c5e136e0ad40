"""Text of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.row import Key

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def value(number: float, unit: str) -> str:
    """Format a figure with three digits and its unit."""
    number, name = scaled(number, unit)
    return _digits(number) + name


def scaled(number: float, unit: str) -> tuple[float, str]:
    """Convert a number to a suitable unit; return it with the text of the unit."""
    if unit != "s":
        return number, unit if unit in {"", "x"} else f" {unit}"
    scale, name = next(((s, n) for s, n in _TIMES if abs(number) >= s), _TIMES[-1])
    return number / scale, f" {name}"


def _digits(number: float) -> str:
    if number == 0:
        return "0"
    if abs(number) >= 100:
        return f"{number:,.0f}".replace(",", " ")
    if abs(number) < 1:
        return f"{number:.2g}" if abs(number) < 0.1 else f"{number:.2f}"
    return f"{number:.2f}" if abs(number) < 10 else f"{number:.1f}"


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the whole report."""
    machine = report["machine"]
    yield (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory']}; {machine['system']}, "
        f"Python {machine['python']}, {machine['filesystem']}; {machine['date']}, "
        f"commit {machine['commit'] or 'unknown'}, load {machine['load']} before"
    )
    for name, made in report["environments"].items():
        if "missing" in made:
            yield f"{name}: {made['missing']}"
        else:
            yield f"{name}: " + ", ".join(f"{package} {version}" for package, version in made["versions"].items())
    yield "sizes: " + ", ".join(f"{name} {number}" for name, number in report["sizes"].items())
    for row in report["rows"]:
        yield ""
        yield row["title"]
        for cells in tables(row):
            yield ""
            yield from aligned(cells)
        for fact in facts(row):
            yield ""
            yield f"  {fact}"
        for name, reason in missing(row):
            yield f"  no figures of {name}: {reason}"


def who(entry: Mapping[str, Any]) -> str:
    """Return the name of an entry."""
    return str(Key(entry["contender"], entry["case"]))


def tables(row: Mapping[str, Any], *, short: bool = False) -> Iterator[list[list[str]]]:
    """Yield the tables of a row: the head, then the lines, each with the name of its entry first.

    One per quantity, with spreads, ratios and goals (``short``: without their references); for a wide row one
    per group of quantities, with a column for the first quantity and for each other that has figures except zero.
    """
    if row["wide"]:
        yield from _wide(row)
        return
    for quantity in row["quantities"]:
        cells = list(_long(row, quantity, short))
        if len(cells) > 1:
            yield cells


def facts(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the facts of entries: the largest value, and the entries with another."""
    told: dict[str, dict[str, float]] = {}
    for entry in row["entries"]:
        for name, number in entry["facts"].items():
            told.setdefault(name, {})[who(entry)] = number
    for name, values in told.items():
        usual = max(values.values())
        others = [f"{each} {number:g}" for each, number in values.items() if number != usual]
        yield f"{name}: {usual:g}" + (f"; but {', '.join(others)}" if others else "")


def missing(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the entries without figures, or without those of all rounds, with the reasons."""
    return [(who(entry), entry["missing"]) for entry in row["entries"] if entry["missing"] is not None]


class Target(NamedTuple):
    """Goal of a figure of this project."""

    row: Mapping[str, Any]
    entry: Mapping[str, Any]
    quantity: Mapping[str, Any]
    goal: Mapping[str, Any]

    @property
    def what(self) -> str:
        """Return the entry and the quantity of the goal."""
        return ": ".join(filter(None, (who(self.entry), self.quantity["group"], self.quantity["title"])))

    @property
    def limit(self) -> str:
        """Return the limit without its reference."""
        return f"{'≥' if self.goal['at_least'] else '≤'} {self._text('limit')}"

    @property
    def wanted(self) -> str:
        """Return the limit."""
        of = {
            "value": "",
            "floor": " the floor",
            "ours": f" that of {self.entry['ours']}",
            "peers": f" ahead of {self.goal['who']}",
        }
        return f"{self.limit}{of[self.goal['of']]}"

    @property
    def reached(self) -> str:
        """Return the reached value; empty if there was no entry to compare with."""
        return "" if self.goal["reached"] is None else self._text("reached")

    @property
    def met(self) -> bool | None:
        """Return whether the goal is reached."""
        limit, reached = self.goal["limit"], self.goal["reached"]
        if reached is None:
            return None
        return bool(reached >= limit if self.goal["at_least"] else reached <= limit)

    def _text(self, name: str) -> str:
        return value(self.goal[name], self.quantity["unit"] if self.goal["of"] == "value" else "x")


def targets(report: Mapping[str, Any]) -> Iterator[Target]:
    """Yield the goals of all measured figures, in the order of the rows."""
    for row in report["rows"]:
        for entry in row["entries"]:
            for quantity in row["quantities"]:
                yield from _targets(row, entry, quantity)


def _targets(row: Mapping[str, Any], entry: Mapping[str, Any], quantity: Mapping[str, Any]) -> Iterator[Target]:
    figure = entry["figures"].get(quantity["name"])
    for goal in figure["goals"] if figure else ():
        yield Target(row, entry, quantity, goal)


def _answer(target: Target, short: bool) -> str:
    met = "yes" if target.met else "no"
    if short:
        return f"{target.limit}: {met}"
    return f"{target.wanted}: {met}" + ("" if target.goal["of"] == "value" else f" ({target.reached})")


def _long(row: Mapping[str, Any], quantity: Mapping[str, Any], short: bool) -> Iterator[list[str]]:
    unit = quantity["unit"]
    yield [quantity["title"], "median", "rounds", "x ours", "x floor", "to reach"]
    for entry in row["entries"]:
        figure = entry["figures"].get(quantity["name"])
        if figure is None:
            continue
        ratios = ["" if figure[of] is None else _digits(figure[of]) for of in ("cost", "floor")]
        answers = [_answer(target, short) for target in _targets(row, entry, quantity) if target.met is not None]
        yield [who(entry), value(figure["median"], unit), _spread(figure, unit), *ratios, "; ".join(answers)]


def _spread(figure: Mapping[str, Any], unit: str) -> str:
    (low, first), (high, last) = scaled(figure["low"], unit), scaled(figure["high"], unit)
    return f"{_digits(low)}{'' if first == last else first} .. {_digits(high)}{last}"


def _wide(row: Mapping[str, Any]) -> Iterator[list[list[str]]]:
    measured = {name for entry in row["entries"] for name in entry["figures"]}
    some = {name for entry in row["entries"] for name, figure in entry["figures"].items() if figure["median"]}
    shown = [quantity for quantity in row["quantities"] if quantity["name"] in measured]
    for group in dict.fromkeys(quantity["group"] for quantity in shown):
        first, *others = (quantity for quantity in shown if quantity["group"] == group)
        columns = [first, *(quantity for quantity in others if quantity["name"] in some)]
        cells = [[group, *(quantity["title"] for quantity in columns)]]
        for entry in row["entries"]:
            found = [entry["figures"].get(quantity["name"]) for quantity in columns]
            if any(found):
                cells.append([who(entry), *(_digits(figure["median"]) if figure else "" for figure in found)])
        yield cells


def aligned(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table: the first column aligned to the left, the others to the right."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        first, *rest = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield ("  " + "  ".join([first, *rest])).rstrip()
