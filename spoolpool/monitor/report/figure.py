"""Report as one picture, for papers; drawn by matplotlib."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from spoolpool.errors import BadRequest
from spoolpool.monitor.report.series import Distribution, Level
from spoolpool.monitor.report.summary import Summary
from spoolpool.system.text import duration_unit

_BAR, _FAILED, _WAIT = "#3b78b8", "#c8402f", "#d08a1d"
_FUNCTIONS = 12


def save(summary: Summary, path: str, kind: str) -> None:
    """Write a picture (``png`` or ``svg``). Raises :class:`BadRequest` if matplotlib is not installed."""
    try:
        figures: Any = import_module("matplotlib.figure")
    except ImportError:
        raise BadRequest(
            f"Cannot draw {path}: matplotlib is not installed. Install it with: pip install 'spoolpool[report]'."
        ) from None
    figure = figures.Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplot_mosaic([["groups", "groups"], ["levels", "levels"], ["functions", "waits"]])
    begin = summary.begin
    unit, scale = duration_unit(max(summary.end - begin, 1.0))
    _groups(panels["groups"], summary, begin, scale)
    _level(panels["levels"], summary.running, "running", _BAR, begin, scale)
    _level(panels["levels"].twinx(), summary.waiting, "waiting", _WAIT, begin, scale)
    for name in ("groups", "levels"):
        panels[name].set_xlim(0, max((summary.end - begin) / scale, 1e-9))
        panels[name].set_xlabel(f"time ({unit})")
    _functions(panels["functions"], summary)
    _classes(panels["waits"], summary.waits, "waiting time (s)")
    figure.savefig(path, format=kind, dpi=150, metadata=None if kind == "png" else {"Date": None})


def _groups(panel: Any, summary: Summary, begin: float, scale: float) -> None:
    collections: Any = import_module("matplotlib.collections")
    groups = sorted(summary.groups.items(), key=lambda item: (item[1].host, item[1].begin))
    for wrong, colour in ((False, _BAR), (True, _FAILED)):
        boxes = [
            [((bar.begin - begin) / scale, row), ((bar.end - begin) / scale, row)]
            for row, (worker, _) in enumerate(groups)
            for bar in summary.bars.rows.get(worker, ())
            if bool(bar.failed) == wrong
        ]
        wide = max(0.5, min(8.0, 120.0 / max(len(groups), 1)))
        # rasterized: an SVG would have a path for each of many thousand bars
        panel.add_collection(
            collections.LineCollection(boxes, colors=colour, linewidths=wide, capstyle="butt", rasterized=True)
        )
    panel.set_ylim(len(groups) - 0.5, -0.5)
    panel.set_ylabel("group")
    panel.set_yticks([])


def _level(panel: Any, level: Level, name: str, colour: str, begin: float, scale: float) -> None:
    first, values = level.values()
    edges = [(first + at * level.step - begin) / scale for at in range(len(values) + 1)]
    if values:
        panel.stairs(values, edges, color=colour)
    panel.set_ylim(bottom=0)
    panel.set_ylabel(name, color=colour)


def _functions(panel: Any, summary: Summary) -> None:
    most = sorted(summary.durations.items(), key=lambda item: -item[1].total)[:_FUNCTIONS]
    names = [summary.names[name].rpartition(".")[2] or "?" for name, _ in most]
    panel.barh(range(len(most)), [each.total for _, each in most], color=_BAR)
    panel.set_yticks(range(len(most)), [name.replace("$", r"\$") for name in names])
    panel.invert_yaxis()
    panel.set_xlabel("time in calls (s)")


def _classes(panel: Any, distribution: Distribution, label: str) -> None:
    classes = distribution.classes()
    if classes:
        starts = [start for start, _ in classes]
        edges = [*starts, starts[-1] * 2**0.25]
        panel.stairs([count for _, count in classes], edges, fill=True, color=_WAIT)
        panel.set_xscale("log")
    panel.set_xlabel(label)
    panel.set_ylabel("tasks")
