"""Report as one self-contained HTML page: it needs no network and no other file."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

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
<link rel="icon" href="data:,">
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


def page(summary: Summary) -> str:
    """Return the page. All text from the spool is escaped."""
    here = files("spoolpool.monitor.report")
    return _PAGE.format(
        title=f"Report of {html.escape(summary.spool)}",
        style=here.joinpath("page.css").read_text(encoding="utf-8"),
        body="\n".join(_body(summary)),
        data=json.dumps(_data(summary), separators=(",", ":")).replace("<", "\\u003c"),
        script=here.joinpath("page.js").read_text(encoding="utf-8"),
    )


# -- data for the script


def _data(summary: Summary) -> dict[str, Any]:
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


def _body(summary: Summary) -> Iterable[str]:
    yield f"<h1>{html.escape(summary.spool)}</h1>"
    yield f"<p>{_span(summary)}</p>"
    yield _figures(summary)
    yield "<h2>Groups</h2>"
    yield (
        '<p class="key">Wheel: zoom. Drag: move. Double click: show all. '
        '<i style="background:var(--bar)"></i>running a task <i style="background:var(--failed)"></i>failed tasks '
        '<i style="background:var(--idle)"></i>idle</p>'
    )
    yield '<canvas id="rows"></canvas><p id="hint"></p>'
    yield '<h2>Waiting and running</h2><canvas id="levels"></canvas>'
    yield '<div class="pair"><section><h2>Durations</h2><canvas id="durations"></canvas></section>'
    yield '<section><h2>Waiting times</h2><canvas id="waits"></canvas></section></div>'
    yield "<h2>Functions</h2>"
    yield _functions(summary)
    if summary.resources:
        yield "<h2>Resources used</h2>"
        yield _resources(summary)
    yield "<h2>Hosts</h2>"
    yield _hosts(summary)
    yield "<h2>Overhead per task</h2>"
    yield _overhead(summary)
    if summary.failures:
        yield "<h2>Failures</h2>"
        yield from _failures(summary)
    if summary.recoveries:
        yield f"<h2>Recoveries: {summary.recoveries}</h2>"
        found = ((_time(event.t), event.by, event.text, event.reason) for event in reversed(summary.last_recoveries))
        yield _table(("time", "by", "action", "reason"), found)


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
