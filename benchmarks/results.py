"""Figures from samples, as JSON: medians, spreads, ratios."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.environments import Made
from benchmarks.harness import Outcome, Run
from benchmarks.row import Goal, Key, Quantity, Row, Sizes

FORMAT = 3
"""Version of the JSON; it is increased at each change that readers must handle."""


def report(run: Run, sizes: Sizes, machine: Mapping[str, Any], command: str = "") -> dict[str, Any]:
    """Return the report of a run that was started by a command.

    ``rows`` is a list of ``{name, title, wide, once, quantities, entries}``. An entry has ``contender``, ``case``,
    ``role``, ``environment``, ``missing`` (why it has no figures, or null), ``ours`` and ``floor`` (the entries that it
    is compared with, or null), ``figures`` by quantity, and ``facts`` (medians of its other values).
    A figure has the ``median`` of the rounds' medians, the least and the largest of these (``low``, ``high``), the
    tenth and ninetieth percentile of all samples (``p10``, ``p90``), the samples by round, and in seconds, per
    cent, counts or times:

    - ``cost``: ratio to the own entry that it is compared with (of a rate: ratio of the times), null for that
      entry itself; the median over the rounds of the ratio within a round.
    - ``floor``: likewise, compared with the operating system alone.
    - ``goals``: a list of ``{limit, at_least, of, who, reached}``, as :class:`~benchmarks.row.Goal` has them; for
      ``peers``, ``reached`` is the least cost among them. It is null if there was no entry to compare with.
    """
    return {
        "format": FORMAT,
        "command": command,
        "machine": dict(machine),
        "sizes": asdict(sizes),
        "environments": {
            name: {"versions": made.versions} if isinstance(made, Made) else {"missing": made}
            for name, made in run.environments.items()
        },
        "rows": [_row(row, outcomes) for row, outcomes in run.rows],
    }


def read(path: str) -> dict[str, Any]:
    """Read a report from a file. Raises :class:`SystemExit` if it has another format."""
    with open(path, encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    if found["format"] != FORMAT:
        raise SystemExit(f"{path} has format {found['format']}; this reads {FORMAT}: measure again")
    return found


def compact(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report with the median of each round in place of its samples, and numbers of five digits."""

    def shortened(value: Any, name: str = "") -> Any:
        if name == "rounds" and isinstance(value, list):
            value = [[statistics.median(samples)] if samples else [] for samples in value]
        if isinstance(value, Mapping):
            return {key: shortened(inner, key) for key, inner in value.items()}
        if isinstance(value, list):
            return [shortened(inner) for inner in value]
        return float(f"{value:.5g}") if isinstance(value, float) else value

    compacted: dict[str, Any] = shortened(report)
    return compacted


def _row(row: Row, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    by_key = {outcome.entry.key: outcome for outcome in outcomes}
    return {
        "name": row.name,
        "title": row.title,
        "wide": row.wide,
        "once": row.once,
        "quantities": [asdict(quantity) for quantity in row.quantities],
        "entries": [_entry(row, outcome, by_key) for outcome in outcomes],
    }


def _entry(row: Row, outcome: Outcome, by_key: Mapping[Key, Outcome]) -> dict[str, Any]:
    entry = outcome.entry
    measured = {quantity.name for quantity in row.quantities}
    told = {name for samples in outcome.rounds for name in samples} - measured
    figures = {
        quantity.name: figure
        for quantity in row.quantities
        if (figure := _figure(quantity, outcome, by_key)) is not None
    }
    return {
        "contender": entry.key.contender,
        "case": entry.key.case,
        "role": entry.role,
        "environment": entry.environment.name,
        "missing": outcome.missing,
        "ours": None if entry.ours is None else str(entry.ours),
        "floor": None if entry.floor is None else str(entry.floor),
        "figures": figures,
        "facts": {name: statistics.median(_all(outcome, name)) for name in sorted(told)},
    }


def _all(outcome: Outcome, name: str) -> list[float]:
    return [value for samples in outcome.rounds for value in samples.get(name, [])]


def _medians(outcome: Outcome | None, name: str) -> list[float]:
    if outcome is None:
        return []
    return [statistics.median(samples[name]) for samples in outcome.rounds if samples.get(name)]


def _figure(quantity: Quantity, outcome: Outcome, by_key: Mapping[Key, Outcome]) -> dict[str, Any] | None:
    medians = _medians(outcome, quantity.name)
    if not medians:
        return None
    values = sorted(_all(outcome, quantity.name))
    figure: dict[str, Any] = {
        "median": statistics.median(medians),
        "low": min(medians),
        "high": max(medians),
        "p10": values[len(values) // 10],
        "p90": values[-1 - len(values) // 10],
        "rounds": [samples.get(quantity.name, []) for samples in outcome.rounds],
        "cost": _ratio(quantity, medians, outcome.entry.ours, by_key),
        "floor": _ratio(quantity, medians, outcome.entry.floor, by_key),
    }
    given = outcome.entry.goals.get(quantity.name, ())
    goals = given if isinstance(given, tuple) else (given,)
    return {**figure, "goals": [_goal(goal, quantity, figure, by_key) for goal in goals]}


def _goal(
    goal: Goal, quantity: Quantity, figure: Mapping[str, Any], by_key: Mapping[Key, Outcome]
) -> dict[str, float | str | bool | None]:
    costs = [
        _ratio(quantity, _medians(by_key.get(key), quantity.name), by_key[key].entry.ours, by_key)
        for key in goal.peers
        if key in by_key
    ]
    reached = {
        "value": figure["median"],
        "floor": figure["floor"],
        "ours": figure["cost"],
        "peers": min((cost for cost in costs if cost is not None), default=None),
    }
    return {
        "limit": goal.limit,
        "at_least": goal.of == "peers" or (goal.of == "value" and quantity.more_is_better),
        "of": goal.of,
        "who": goal.who,
        "reached": reached[goal.of],
    }


def _ratio(
    quantity: Quantity, medians: Sequence[float], other: Key | None, by_key: Mapping[Key, Outcome]
) -> float | None:
    if other is None:
        return None
    pairs = list(zip(medians, _medians(by_key.get(other), quantity.name), strict=False))
    if not pairs or any(value <= 0 for pair in pairs for value in pair):
        return None
    return statistics.median(theirs / mine if quantity.more_is_better else mine / theirs for mine, theirs in pairs)
