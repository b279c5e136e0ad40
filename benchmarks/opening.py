"""Opening of the page of the benchmarks: five sentences for a user and one plot, from a report.

A sentence whose figures are not in the report is left out, and so is the plot.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks import plot
from benchmarks.table import value

OURS = "spoolpool"


class _Figures:
    """Medians of a report, by row, contender, case and quantity; a missing one is a KeyError."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self.sizes = report["sizes"]
        self.rows = {row["name"]: row for row in report["rows"]}

    def median(self, row: str, quantity: str, case: str, contender: str = OURS) -> float:
        """Return a median in the unit of its quantity."""
        for entry in self.rows[row]["entries"]:
            if (entry["contender"], entry["case"]) == (contender, case):
                return float(entry["figures"][quantity]["median"])
        raise KeyError(case)

    def text(self, row: str, quantity: str, case: str, contender: str = OURS) -> str:
        """Return a median with its unit."""
        (unit,) = (each["unit"] for each in self.rows[row]["quantities"] if each["name"] == quantity)
        return value(self.median(row, quantity, case, contender), unit).replace(" ", "\N{NO-BREAK SPACE}")


def _one_call(figures: _Figures) -> str:
    peers = {"ProcessPoolExecutor": "`ProcessPoolExecutor`", "dask distributed": "dask", "Parsl HTEX": "Parsl"}
    beside = [f"{name} {figures.text('latency', 'at once', '', peer)}" for peer, name in peers.items()]
    return (
        f"**One call** takes {figures.text('latency', 'at once', '1 rank')} from `submit` to its result in a warm "
        f"group; {', '.join(beside)}."
    )


def _many_calls(figures: _Figures) -> str:
    rates = [figures.median("throughput", name, "1 worker") for name in ("rate", "chunks")]
    alone, chunks = (f"{rate:,.0f}".replace(",", "\N{NO-BREAK SPACE}") for rate in rates)
    return (
        f"**Short calls**: one worker runs {alone} per second with a task for each, and {chunks} per second by `map` "
        "with many calls per task."
    )


def _long_queue(figures: _Figures) -> str:
    counts = [f"{number:,}".replace(",", " ") for number in (1000, figures.sizes["waiting"])]
    few, many = (figures.text("backlog", "claim", f"{count} wait") for count in counts)
    return f"**A long queue**: a claim takes {many} with {counts[1]} waiting tasks, and {few} with {counts[0]}."


def _large_array(figures: _Figures) -> str:
    case = f"argument, {figures.sizes['mib']} MiB"
    mine, file = (figures.text("arrays", "time", case, who) for who in (OURS, "plain file"))
    other = figures.text("arrays", "time", case, "ProcessPoolExecutor")
    return (
        f"**A large array** of {figures.sizes['mib']} MiB is summed on a worker after {mine}; a plain file takes "
        f"{file}, and `ProcessPoolExecutor` {other}."
    )


def _no_work(figures: _Figures) -> str:
    mine = figures.text("idle", "workers", "1 group of 4 ranks")
    other = figures.text("idle", "workers", "4 workers", "mpi4py.futures")
    return f"**A group without work**, of four ranks, uses {mine} of a core; four workers of mpi4py.futures {other}."


SENTENCES: tuple[Callable[[_Figures], str], ...] = (_one_call, _many_calls, _long_queue, _large_array, _no_work)


def sentences(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sentences."""
    figures = _Figures(report)
    for sentence in SENTENCES:
        with contextlib.suppress(KeyError):
            yield sentence(figures)


def picture(report: Mapping[str, Any]) -> plot.Plot | None:
    """Return the plot of the time of one call: this project with one rank, and the quickest case of each other one."""
    row = _Figures(report).rows.get("latency")
    if row is None:
        return None
    quickest: dict[str, Mapping[str, Any]] = {}
    for entry in row["entries"]:
        figure = entry["figures"].get("at once")
        if figure is None or entry["role"] == "floor" or "2 ranks" in entry["case"] or "attached" in entry["case"]:
            continue
        shown = {**entry, "floor": None, "figures": {"at once": {**figure, "goals": []}}}
        before = quickest.get(entry["contender"])
        if before is None or figure["median"] < before["figures"]["at once"]["median"]:
            quickest[entry["contender"]] = shown
    entries = sorted(quickest.values(), key=lambda entry: entry["figures"]["at once"]["median"])
    quantities = [
        {**each, "title": "from submit to the result, each at once after the last"}
        for each in row["quantities"]
        if each["name"] == "at once"
    ]
    (made,) = plot.plots({**row, "title": "Time of one call", "quantities": quantities, "entries": entries})
    return made
