"""A report as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def value(number: float, unit: str) -> str:
    """A figure with three digits and its unit."""
    if unit == "s":
        scale, name = next(((s, n) for s, n in _TIMES if abs(number) >= s), _TIMES[-1])
        return f"{_digits(number / scale)} {name}"
    if unit == "/s":
        return f"{_digits(number)} /s"
    return _digits(number) + (" %" if unit == "%" else "x" if unit == "x" else "")


def _digits(number: float) -> str:
    if number == 0:
        return "0"
    if abs(number) >= 100:
        return f"{number:,.0f}".replace(",", " ")
    if abs(number) < 1:
        return f"{number:.2g}" if abs(number) < 0.1 else f"{number:.2f}"
    return f"{number:.2f}" if abs(number) < 10 else f"{number:.1f}"


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The whole report, line by line."""
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
    yield "sizes: " + ", ".join(f"{name} {number:g}" for name, number in report["sizes"].items())
    for row in report["rows"]:
        yield ""
        yield row["title"]
        if row["wide"]:
            yield from _wide(row)
        else:
            for quantity in row["quantities"]:
                yield from _long(row, quantity)
        yield from _facts(row)
        for entry in row["entries"]:
            if entry["missing"] is not None:
                yield f"  no figures of {_who(entry)}: {entry['missing']}"


def _facts(row: Mapping[str, Any]) -> Iterator[str]:
    """What entries told besides: the usual value, and who had another."""
    told: dict[str, dict[str, float]] = {}
    for entry in row["entries"]:
        for name, number in entry["facts"].items():
            told.setdefault(name, {})[_who(entry)] = number
    for name, values in told.items():
        usual = max(values.values())
        others = [f"{who} {number:g}" for who, number in values.items() if number != usual]
        yield ""
        yield f"  {name}: {usual:g}" + (f"; but {', '.join(others)}" if others else "")


def _who(entry: Mapping[str, Any]) -> str:
    return f"{entry['contender']}, {entry['case']}" if entry["case"] else str(entry["contender"])


def _long(row: Mapping[str, Any], quantity: Mapping[str, Any]) -> Iterator[str]:
    """One table per quantity, with spreads and ratios."""
    unit = quantity["unit"]
    cells = [[quantity["title"], "median", "lowest..highest round", "x ours", "x floor", "to reach"]]
    for entry in row["entries"]:
        figure = entry["figures"].get(quantity["name"])
        if figure is None:
            continue
        spread = f"{value(figure['low'], unit)} .. {value(figure['high'], unit)}"
        ratios = ["" if figure[of] is None else _digits(figure[of]) for of in ("cost", "floor")]
        cells.append([_who(entry), value(figure["median"], unit), spread, *ratios, _goal(figure, quantity)])
    if len(cells) > 1:
        yield ""
        yield from aligned(cells)


def _goal(figure: Mapping[str, Any], quantity: Mapping[str, Any]) -> str:
    return "; ".join(_one_goal(goal, quantity["unit"]) for goal in figure["goals"] if goal["reached"] is not None)


def _one_goal(goal: Mapping[str, Any], unit: str) -> str:
    reached = goal["reached"] >= goal["limit"] if goal["at_least"] else goal["reached"] <= goal["limit"]
    limit = value(goal["limit"], unit if goal["of"] == "value" else "x")
    of = {"value": "", "floor": " the floor", "ours": " ours", "peers": f" ahead of {goal['who']}"}[goal["of"]]
    told = "" if goal["of"] == "value" else f" ({_digits(goal['reached'])})"
    return f"{'≥' if goal['at_least'] else '≤'} {limit}{of}: {'yes' if reached else 'no'}{told}"


def _wide(row: Mapping[str, Any]) -> Iterator[str]:
    """One table per group of quantities, with a column for each."""
    measured = {name for entry in row["entries"] for name in entry["figures"]}
    shown = [quantity for quantity in row["quantities"] if quantity["name"] in measured]
    for group in dict.fromkeys(quantity["group"] for quantity in shown):
        columns = [quantity for quantity in shown if quantity["group"] == group]
        cells = [[group, *(quantity["title"] for quantity in columns)]]
        for entry in row["entries"]:
            if entry["figures"]:
                found = [entry["figures"].get(quantity["name"]) for quantity in columns]
                cells.append([_who(entry), *(_digits(figure["median"]) if figure else "" for figure in found)])
        yield ""
        yield from aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        first, *rest = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield ("  " + "  ".join([first, *rest])).rstrip()
