"""Plot of a row of a report: a panel per quantity, in which each entry has a dot and a whisker.

The SVG is written here without a library, so that a report gives the same plot everywhere. It has colours for light
and dark background, chosen by the system of the reader, and its own background.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

from benchmarks.table import scaled, value, who

_WIDTH = 720.0
_LINE = 19.0
_GAP = 7.0  # before an own entry at the start of a group
_MARGIN = 12.0
_LETTER, _BOLD = 6.8, 7.4  # approximate width of a letter
_EDGE = 20.0  # at the right, for half of the text of a tick
_LOG_FROM = 15.0  # ratio of the largest to the least value, from which on the axis is logarithmic
_ROOM = 330.0  # wider names leave room for only one panel

_STYLE = """\
svg { --ground: #ffffff; --text: #24292f; --soft: #6e7781; --grid: #dfe3e8; --ours: #1a63d0; --peer: #7b858f;
  --floor: #b35c00; --goal: #1a7f37 }
@media (prefers-color-scheme: dark) { svg { --ground: #1e2229; --text: #dfe3e8; --soft: #9aa4af; --grid: #3a414b;
  --ours: #6cb0ff; --peer: #8f99a5; --floor: #e69a3c; --goal: #4ac26b } }
.ground { fill: var(--ground) }
text { font: 12px system-ui, "Helvetica Neue", Arial, sans-serif; fill: var(--text) }
.title { font-weight: 600 } .ours { font-weight: 600; fill: var(--ours) } .floor { fill: var(--floor) }
.tick, .key { font-size: 11px; fill: var(--soft) }
.value { font-size: 11px; paint-order: stroke; stroke: var(--ground); stroke-width: 3px }
.grid, .guide { stroke: var(--grid) } .guide { stroke-dasharray: 1 3 }
.dot-ours, .whisker-ours { fill: var(--ours); stroke: var(--ours) }
.dot-peer, .whisker-peer { fill: var(--peer); stroke: var(--peer) }
.dot-floor, .whisker-floor { fill: var(--floor); stroke: var(--floor) }
.least { stroke: var(--floor); stroke-dasharray: 4 3 } .goal { stroke: var(--goal); stroke-width: 2.5 }
"""


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Scale of a panel."""

    left: float
    width: float
    low: float
    high: float
    log: bool
    unit: str

    def at(self, number: float) -> float:
        """Return the position of a value in the panel. A count below zero, from a difference, is at the edge."""
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            part = (math.log10(max(number, self.low)) - low) / (high - low)
        else:
            part = number / self.high
        return self.left + min(1.0, max(0.0, part)) * self.width

    def ticks(self) -> list[float]:
        """Return the values of the ticks: as many round ones as have room for their texts."""
        *candidates, fewest = list(self._decades() if self.log else self._steps())
        return next((found for found in candidates if len(found) > 1 and self._fits(found)), fewest)

    def _fits(self, ticks: Sequence[float]) -> bool:
        rooms = [len(self.text(tick)) * _LETTER + 8 for tick in ticks]
        places = [self.at(tick) for tick in ticks]
        return all(b - a > (rooms[n] + rooms[n + 1]) / 2 for n, (a, b) in enumerate(itertools.pairwise(places)))

    def _decades(self) -> Iterator[list[float]]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for every, among in ((1, (1, 2, 5)), (1, (1, 3)), (1, (1,)), (2, (1,)), (3, (1,))):
            found = [float(f"{n}e{power}") for power in range(first, last + 1, every) for n in among]
            yield [number for number in found if self.low <= number <= self.high]

    def _steps(self) -> Iterator[list[float]]:
        power = 10.0 ** math.floor(math.log10(self.high))
        for step in (power / 5, power / 2, power, 2 * power, 5 * power):
            yield [step * number for number in range(int(self.high / step) + 1)]

    def text(self, number: float) -> str:
        """Return the text of a tick."""
        number, unit = scaled(number, "" if self.unit == "/s" or not number else self.unit)
        return (f"{number:,g}" if number < 1e6 else f"{number:,.0f}").replace(",", " ") + unit


class Plot(NamedTuple):
    """Plot of some quantities of a row."""

    panels: int
    """Number of its panels; it belongs to as many tables (:func:`benchmarks.table.tables`)."""
    title: str
    svg: str


def plots(row: Mapping[str, Any]) -> Iterator[Plot]:
    """Return the plots of a row, of one or two quantities each; together they have a panel per table of the row."""
    quantities = _quantities(row)
    entries = [entry for entry in row["entries"] if entry["figures"]]
    label = max((_width(entry) for entry in entries), default=0) + _MARGIN
    beside = 2 if label < _ROOM else 1
    for start in range(0, len(quantities), beside):
        tier = quantities[start : start + beside]
        shown = [entry for entry in entries if any(quantity["name"] in entry["figures"] for quantity in tier)]
        shapes: list[str] = []
        bottom = _tier(shapes, row, shown, tier, label) + _MARGIN
        shapes += _key(shown, tier, bottom)
        title = f"{row['title']}: {'; '.join(_name(row, quantity) for quantity in tier)}"
        yield Plot(len(tier), title, _framed(shapes, title, bottom + 14 + _MARGIN))


def _width(entry: Mapping[str, Any]) -> float:
    return len(who(entry)) * (_BOLD if entry["role"] == "ours" else _LETTER)


def _framed(shapes: Sequence[str], title: str, height: float) -> str:
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height:g}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{_STYLE}</style>",
        f'<rect class="ground" width="{_WIDTH:g}" height="{height:g}" rx="6"/>',
    ]
    return "\n".join([*head, *shapes, "</svg>\n"])


def _quantities(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the quantities with panels: all measured ones; of a wide row the first of each group."""
    measured = {name for entry in row["entries"] for name in entry["figures"]}
    found = [quantity for quantity in row["quantities"] if quantity["name"] in measured]
    if not row["wide"]:
        return found
    return list({quantity["group"]: quantity for quantity in reversed(found)}.values())[::-1]


def _tier(
    shapes: list[str],
    row: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    tier: Sequence[Mapping[str, Any]],
    label: float,
) -> float:
    """Draw panels beside each other with the names of the lines; return their lower end."""
    between = 2 * _MARGIN
    width = (_WIDTH - label - _MARGIN - _EDGE - between * (len(tier) - 1)) / len(tier)
    titles = [_title(row, quantity, int(width / _BOLD)) for quantity in tier]
    top = _MARGIN + 15 * max(map(len, titles)) + 4
    compared = {entry["ours"] for entry in entries}
    lines: list[float] = []
    bottom, before = top, "ours"
    for entry in entries:
        if lines and entry["role"] == "ours" and (before != "ours" or who(entry) in compared):
            bottom += _GAP
        lines.append(bottom + _LINE / 2)
        bottom, before = bottom + _LINE, entry["role"]
    for entry, y in zip(entries, lines, strict=True):
        shapes.append(_text(label, y + 4, who(entry), entry["role"], "end"))
    for number, (quantity, title) in enumerate(zip(tier, titles, strict=True)):
        left = label + _MARGIN + number * (width + between)
        for line, text in enumerate(reversed(title)):
            shapes.append(_text(left, top - 6 - 15 * line, text, "title"))
        axis = _axis(quantity, entries, left, width)
        for tick in axis.ticks():
            x = axis.at(tick)
            shapes.append(_segment("grid", x, top, x, bottom))
            shapes.append(_text(x, bottom + 13, axis.text(tick), "tick", "middle"))
        for entry, y in zip(entries, lines, strict=True):
            shapes += _entry(entry, entries, quantity, axis, y)
    return bottom + 18


def _title(row: Mapping[str, Any], quantity: Mapping[str, Any], letters: int) -> list[str]:
    better = "more" if quantity["unit"] == "/s" else "less"
    return textwrap.wrap(f"{_name(row, quantity)} ({better} is better)", letters)


def _name(row: Mapping[str, Any], quantity: Mapping[str, Any]) -> str:
    return str(quantity["group"] if row["wide"] else quantity["title"])


def _axis(quantity: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], left: float, width: float) -> _Axis:
    """Return the least and the largest shown value."""
    figures = [figure for entry in entries if (figure := entry["figures"].get(quantity["name"]))]
    numbers = [figure[name] for figure in figures for name in ("low", "median", "high")]
    numbers += [limit for entry in entries for limit in _limits(entry, entries, quantity)]
    least = min((number for number in numbers if number > 0), default=1.0)
    most = max(*numbers, least)
    log = most / least > _LOG_FROM
    return _Axis(
        left=left,
        width=width,
        low=least * 0.8 if log else 0.0,
        high=most * (1.25 if log else 1.05),
        log=log,
        unit=quantity["unit"],
    )


def _entry(
    entry: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    quantity: Mapping[str, Any],
    axis: _Axis,
    y: float,
) -> Iterator[str]:
    """Draw the dot of the median, the whisker from the lowest to the highest round, the floor, and the goals."""
    figure = entry["figures"].get(quantity["name"])
    if figure is None:
        return
    yield _segment("guide", axis.left, y, axis.left + axis.width, y)
    floor = _floor(entry, entries, quantity)
    if floor is not None:
        x = axis.at(floor["median"])
        yield _segment("least", x, y - _LINE / 2, x, y + _LINE / 2)
    low, x, high = (axis.at(figure[name]) for name in ("low", "median", "high"))
    text = value(figure["median"], quantity["unit"])
    left, right, room = min(x - 4, low) - 4, max(x + 4, high) + 4, len(text) * _LETTER
    for at in map(axis.at, _limits(entry, entries, quantity)):
        yield _segment("goal", at, y - 7, at, y + 7)
        left = at - 4 if left - room < at < left + 4 else left
        right = at + 4 if right - 4 < at < right + room else right
    yield _segment(f"whisker-{entry['role']}", low, y, high, y)
    yield f'<circle class="dot-{entry["role"]}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
    if right + room < axis.left + axis.width + _MARGIN:
        yield _text(right, y + 4, text, "value")
    else:
        yield _text(left, y + 4, text, "value", "end")


def _floor(
    entry: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], quantity: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    return next((other["figures"].get(quantity["name"]) for other in entries if who(other) == entry["floor"]), None)


def _limits(
    entry: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], quantity: Mapping[str, Any]
) -> Iterator[float]:
    """Return the goals as values: the ones given as a value or as a ratio to the floor."""
    floor = _floor(entry, entries, quantity)
    for goal in entry["figures"].get(quantity["name"], {}).get("goals", ()):
        if goal["of"] == "value":
            yield goal["limit"]
        elif goal["of"] == "floor" and floor is not None:
            yield floor["median"] / goal["limit"] if quantity["unit"] == "/s" else floor["median"] * goal["limit"]


def _key(entries: Sequence[Mapping[str, Any]], tier: Sequence[Mapping[str, Any]], top: float) -> Iterator[str]:
    """Draw the legend."""
    names = {"ours": "spoolpool", "peer": "others", "floor": "floor: the operating system alone"}
    roles = {entry["role"] for entry in entries}
    x = _MARGIN + 4
    for role, name in names.items():
        if role in roles:
            yield f'<circle class="dot-{role}" cx="{x:g}" cy="{top + 6:g}" r="3.5"/>'
            yield _text(x + 9, top + 10, name, "key")
            x += len(name) * _LETTER + 26
    if any(list(_limits(entry, entries, quantity)) for entry in entries for quantity in tier):
        yield _segment("goal", x, top, x, top + 12)
        yield _text(x + 8, top + 10, "to reach", "key")


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
