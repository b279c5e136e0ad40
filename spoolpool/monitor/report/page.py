"""Report as one self-contained HTML page: it needs no network and no other file."""

from __future__ import annotations

import html
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple

from spoolpool.monitor.report.series import Distribution, Level
from spoolpool.monitor.report.summary import Summary
from spoolpool.monitor.states import ENDS
from spoolpool.protocol.journal import Event
from spoolpool.system.text import format_bytes, format_duration

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
{refresh}<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{data}</script>
<script>
{script}</script>
</body>
</html>
"""

_FUNCTIONS = 40  # rows of the table
_ALWAYS = frozenset(("done", "raised", "lost", "cancelled"))  # ends with a figure even if no task had them

_seconds = partial(format_duration, precise=True)


class Rewriting(NamedTuple):
    """Plan by which a page is rewritten."""

    every: float
    """Seconds until it is rewritten; the page reloads itself as often. 0 for the last page."""


def page(summary: Summary, rewriting: Rewriting | None = None) -> str:
    """Return the page. All text from the spool is escaped."""
    here = files("spoolpool.monitor.report")
    every = rewriting.every if rewriting is not None else 0.0
    # for a browser without scripts
    refresh = f'<noscript><meta http-equiv="refresh" content="{math.ceil(every)}"></noscript>\n' if every else ""
    return _PAGE.format(
        title=f"Report of {html.escape(summary.spool)}",
        refresh=refresh,
        style=here.joinpath("page.css").read_text(encoding="utf-8"),
        body="\n".join(_body(summary, rewriting)),
        data=json.dumps(_data(summary, every), separators=(",", ":")).replace("<", "\\u003c"),
        script=here.joinpath("page.js").read_text(encoding="utf-8"),
    )


# -- data for the script


def _data(summary: Summary, every: float) -> dict[str, Any]:
    begin = summary.begin or summary.created
    whole = Distribution()
    for each in summary.durations.values():
        whole.update(each)

    def ms(moment: float) -> float:
        return round((moment - begin) * 1000, 1)

    rows = []
    for worker, group in sorted(summary.groups.items(), key=lambda item: (item[1].host, item[1].begin)):
        job = f", job {group.job}" if group.job else ""
        bars = [
            [
                ms(bar.begin),
                round((bar.end - bar.begin) * 1000, 1),
                bar.name,
                bar.count,
                round(bar.busy * 1000, 1),
                bar.failed,
                bar.task,
            ]
            for bar in summary.bars.rows.get(worker, ())
        ]
        rows.append(
            {
                "label": f"{group.host} {worker[:4]}",
                "about": f"{worker} on {group.host}{job}, {group.ranks} rank(s), {group.tasks} task(s)",
                "from": ms(group.begin),
                "to": ms(group.end),
                "bars": bars,
            }
        )
    return {
        "begin": begin * 1000,
        "end": max(summary.end, begin) * 1000,
        "written": round(summary.created * 1000),
        "every": every,
        "names": summary.names,
        "rows": rows,
        "levels": {"waiting": _level(summary.waiting, begin), "running": _level(summary.running, begin)},
        "durations": whole.classes(),
        "waits": summary.waits.classes(),
    }


def _level(level: Level, begin: float) -> dict[str, Any]:
    first, values = level.values()
    return {"begin": round((first - begin) * 1000, 1), "step": level.step * 1000, "values": values}


# -- visible text


_BUTTONS = (
    ("in", "+", "zoom in"),
    ("out", "\u2212", "zoom out"),
    ("earlier", "\u2190", "earlier"),
    ("later", "\u2192", "later"),
    ("up", "\u2191", "earlier groups"),
    ("down", "\u2193", "later groups"),
    ("all", "all", "show all"),
)


def _body(summary: Summary, rewriting: Rewriting | None) -> Iterable[str]:
    yield f"<h1>{html.escape(summary.spool)}</h1>"
    yield f"<p>{_span(summary)}</p>"
    if rewriting is not None:
        written = _time(summary.created)
        last = f"Last page, written {written}: it is not rewritten any more."
        yield f'<p id="written"><span>{f"Written {written}." if rewriting.every else last}</span></p>'
    yield _figures(summary)
    yield "<h2>Groups</h2>"
    yield (
        '<p class="key"><i style="background:var(--bar)"></i>task <i class="low"></i>failed task '
        '<i style="background:var(--idle);outline:1px solid var(--edge)"></i>idle</p>'
    )
    buttons = (
        f'<button id="b-{name}" data-action="{name}" title="{title}" aria-label="{title}">{text}</button>'
        for name, text, title in _BUTTONS
    )
    yield f'<p class="bar">{"".join(buttons)}</p>'
    yield _canvas("rows", "hint", "Tasks of each group over time. Arrow keys select a task, + and - zoom.")
    yield "<h2>Waiting and running tasks</h2>"
    yield _canvas("levels", "levels-hint", "Numbers of waiting and of running tasks over time.")
    yield '<div class="pair"><section><h2>Durations of tasks</h2>'
    yield _canvas("durations", "durations-hint", "Number of tasks by duration. Arrow keys select a class.")
    yield "</section><section><h2>Waiting times of tasks</h2>"
    yield _canvas("waits", "waits-hint", "Number of tasks by waiting time. Arrow keys select a class.")
    yield "</section></div>"
    yield _section("functions", "Functions", _functions(summary))
    if summary.resources:
        yield _section("resources", "Resources used", _resources(summary))
    yield _section("hosts", "Hosts", _hosts(summary))
    yield _section("overhead", "Overhead per task", _overhead(summary))
    if summary.failures:
        yield _section("failures", "Failures", "\n".join(_failures(summary)))
    if summary.recoveries:
        found = ((_time(event.t), event.by, event.text, event.reason) for event in reversed(summary.last_recoveries))
        table = _table(("time", "by", "action", "reason"), found)
        yield _section("recoveries", f"Recoveries: {summary.recoveries}", table)


def _canvas(name: str, hint: str, label: str) -> str:
    """Return a chart that can have the focus, with a line below it for the part under the pointer."""
    return (
        f'<canvas id="{name}" tabindex="0" role="img" aria-label="{label}" aria-describedby="{hint}"></canvas>'
        f'<p id="{hint}" class="hint" aria-live="polite"></p>'
    )


def _section(name: str, title: str, content: str) -> str:
    return f'<details id="{name}" open><summary>{title}</summary>\n{content}</details>'


def _span(summary: Summary) -> str:
    created = f"report of {_time(summary.created)}"
    if not summary.begin:
        return f"No events yet; {created}."
    return f"{_time(summary.begin)} to {_time(summary.end)} ({_seconds(summary.end - summary.begin)}); {created}."


def _figures(summary: Summary) -> str:
    busy = sum(busy for _, _, busy, _ in summary.hosts().values())
    lifetime = sum(lifetime for *_, lifetime in summary.hosts().values())
    ended: dict[str, object] = {"ended": summary.tasks}
    ended |= {end: summary.ends[end] for end in ENDS if summary.ends[end] or end in _ALWAYS}
    if summary.unknown:
        ended["end not recorded"] = summary.unknown
    now = {state: summary.pending[state] for state in ("held", "waiting", "running")}
    others = {
        "attempts that raised and were retried": summary.retried,
        "attempts recovered from dead groups": summary.recoveries,
        "outcomes dropped": summary.dropped,
    }
    groups = {
        "groups": len(summary.groups),
        "of their time with a task": f"{min(100.0, 100 * busy / lifetime):.0f} %" if lifetime else "0 %",
    }
    left = (
        f"<p>{summary.unknown} submitted task(s) are not in the spool any more, and no journal has their ends: their "
        "worker was killed within a second, or their files were removed by hand.</p>"
        if summary.unknown
        else ""
    )
    if summary.horizon:
        left += (
            f"<p>Journals until {_time(summary.horizon)} were dropped, since they were larger than the spool keeps: "
            "tasks of that time are in the numbers of ends, and not in the charts and tables.</p>"
        )
    rows = (
        ("Tasks that ended", ended),
        ("Tasks in the spool", now),
        ("Attempts", {name: value for name, value in others.items() if value}),
        ("Groups", groups),
    )
    boxes = "".join(_boxes(title, figures) for title, figures in rows if figures)
    return f'<div class="figures">{boxes}</div>{left}'


def _boxes(title: str, figures: Mapping[str, object]) -> str:
    boxes = "".join(f"<div><b>{value}</b>{name}</div>" for name, value in figures.items())
    return f"<section><h2>{title}</h2>{boxes}</section>"


def _functions(summary: Summary) -> str:
    most = sorted(summary.durations.items(), key=lambda item: -item[1].total)
    rows = [
        (
            summary.names[name],
            each.count,
            *map(_seconds, (each.total, each.mean, each.quantile(0.5), each.quantile(0.95), each.longest)),
        )
        for name, each in most[:_FUNCTIONS]
    ]
    left = f"<p>and {len(most) - _FUNCTIONS} more</p>" if len(most) > _FUNCTIONS else ""
    if summary.untimed:
        left += (
            f"<p>{summary.untimed} more task(s) have no times: their workers were killed within a second, and their "
            "outcomes are not in the spool any more.</p>"
        )
    return _table(("function", "attempts", "total", "mean", "median", "95 %", "longest"), rows, figures=True) + left


def _resources(summary: Summary) -> str:
    most = sorted(summary.resources.items(), key=lambda item: -item[1].core_seconds)
    rows = []
    for name, each in most[:_FUNCTIONS]:
        share = each.memory_share
        rows.append(
            (
                summary.names[name],
                each.calls,
                _seconds(each.cpu),
                _seconds(each.core_seconds),
                _share(each.cpu_share),
                format_bytes(each.memory),
                format_bytes(each.asked) if each.asked else "-",
                "-" if share is None else _share(share),
            )
        )
    heads = ("function", "calls", "CPU time", "core time", "used", "peak memory of a rank", "asked for", "used")
    note = "<p>A peak is that of the largest process of a rank; <code>spool show</code> has those of one task.</p>"
    return _table(heads, rows, figures=True) + note


def _share(share: float) -> _Markup:
    return _Markup(f'<meter value="{min(1.0, share):.3f}"></meter> {100 * share:.0f} %')


def _hosts(summary: Summary) -> str:
    rows = []
    for host, (groups, tasks, busy, lifetime) in summary.hosts().items():
        share = min(1.0, busy / lifetime) if lifetime else 0.0
        meter = _Markup(f'<meter value="{share:.3f}"></meter> {100 * share:.0f} %')
        rows.append((host, groups, tasks, _seconds(busy), _seconds(lifetime), meter))
    return _table(("host", "groups", "attempts", "running tasks", "alive", "busy"), rows, figures=True)


def _overhead(summary: Summary) -> str:
    rows = [
        (what, each.count, _seconds(each.mean), _seconds(each.quantile(0.5)), _seconds(each.quantile(0.95)))
        for what, each in (
            ("around the call: reading, distribution to the ranks, publication", summary.overhead),
            ("between two tasks, if the second was already waiting", summary.pauses),
        )
    ]
    return _table(("part", "tasks", "mean", "median", "95 %"), rows, figures=True)


def _failures(summary: Summary) -> Iterable[str]:
    often = summary.failures.most_common(_FUNCTIONS)
    yield _table(("function", "exception", "count"), [(summary.names[name], kind, n) for (name, kind), n in often])
    yield "<p>The latest; see <code>spool traceback</code> and <code>spool logs</code> for details.</p>"
    yield _table(
        ("time", "task", "function", "exception", "host"),
        [
            (_time(each.t), each.task, f"{each.name} {each.label}".rstrip(), _failure(each), each.host)
            for each in reversed(summary.last_failures)
        ],
    )


def _failure(event: Event) -> str:
    return f"lost: {event.reason}" if event.event in ("recovered", "given back") else event.type or event.kind


class _Markup(str):
    """Text that is HTML and not escaped again."""

    __slots__ = ()


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, figures: bool = False) -> str:
    """Return a table; with ``figures`` all columns but the first are numbers."""

    def line(tag: str, row: Sequence[object]) -> str:
        texts = (each if isinstance(each, _Markup) else html.escape(str(each)) for each in row)
        return f"<tr>{''.join(f'<{tag}>{text}</{tag}>' for text in texts)}</tr>"

    kind = ' class="numbers"' if figures else ""
    body = "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table{kind}><thead>{line("th", heads)}</thead><tbody>{body}</tbody></table></div>'


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
