"""The status of a spool as text and as JSON."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Any

import click

from spoolpool.monitor.states import STATES, UNREAD, describe_counts
from spoolpool.monitor.status import Blocked, GroupStatus, LaneCounts, Status
from spoolpool.pool.job_failures import JobFailure, choose
from spoolpool.protocol.progress import TaskProgress
from spoolpool.system.text import escape_line, format_duration

_PAGE = 80  # columns without a terminal
_MOST_LINES = 50  # of one kind: other accounts can make any number of lanes
_MOST_REMEDIES = 10  # commands that start groups
_OUTPUT_LINES = 5  # of a failed job
_LEFT = 9  # columns of the first word of a line
_LEAST_LANE = 12  # columns of the name of a lane
_STATES = (*STATES, UNREAD)
_ALWAYS = frozenset(("waiting", "running", "done"))  # columns that are shown also if they are empty


def lines(
    status: Status, *, width: int | None = None, groups: int = 20, failures: Sequence[JobFailure] = ()
) -> Iterator[str]:
    """Yield the lines of a status, blocked tasks first; list at most ``groups`` groups, busy ones before idle ones.

    Without a width, tables have 80 columns, and texts are not wrapped.
    """
    most = [id(each) for each in sorted(status.blocked, key=lambda each: -each.count)[:_MOST_LINES]]
    told = set(itertools.islice(most, _MOST_REMEDIES))  # the commands of the largest ones
    for each in status.blocked:
        if id(each) in most:
            yield from _wrapped("BLOCKED", _why(each, status), width, fg="red", bold=True)
            if each.remedy and id(each) in told:  # not wrapped, since it is to be copied
                yield escape_line(f"{'':<{_LEFT}}{each.remedy}")
    if left := len(status.blocked) - len(most):
        yield from _wrapped("BLOCKED", f"tasks of {left} more lanes; 'spool status --json' lists all.", width, fg="red")
    for directory, reason in itertools.islice(status.unseen.items(), _MOST_LINES):
        yield from _wrapped("UNSEEN", f"{directory} cannot be listed ({reason}).", width, fg="yellow")
    yield from _failures(failures, width)
    yield from _wrapped("Spool", status.spool, width)
    yield from _wrapped("Tasks", describe_counts(status.totals(), STATES), width)
    yield from _wrapped("Groups", _summary(status), width)
    for text, count in itertools.islice(status.missing.items(), _MOST_LINES):
        yield from _wrapped("Missing", f"{count} times: {text}" if count > 1 else text, width, fg="yellow")
    if status.rate is not None:
        yield from _wrapped("Rate", _rate(status), width)
    if status.counts:
        yield ""
        yield from _counts(status, width or _PAGE)
    if status.groups:
        yield ""
        yield from _groups(status, width or _PAGE, groups)


def _failures(failures: Sequence[JobFailure], width: int | None) -> Iterator[str]:
    chosen, left = choose(list(failures))
    for each in chosen:
        yield from _wrapped("FAILED", f"{each.text} {each.consequence}".rstrip(), width, fg="red", bold=True)
        for line in each.output[-_OUTPUT_LINES:]:
            yield escape_line(_cut(f"{'':<{_LEFT}}| {line}", width or len(line) + 2 * _LEFT))
    if left:
        yield from _wrapped("FAILED", f"{left} more jobs; 'spool workers ls --json' lists all.", width, fg="red")


def as_json(status: Status, failures: Sequence[JobFailure] = ()) -> dict[str, Any]:
    """Return a status as JSON. Its keys are documented in docs/cli.md and stable."""
    return {
        "spool": status.spool,
        "time": status.time,
        "blocked": [
            {"what": each.what, "count": each.count, "why": each.why, "remedy": each.remedy} for each in status.blocked
        ],
        "tasks": dict(status.totals()),
        "counts": [
            {"lane": row.lane, "user": row.user, **{state: row.states[state] for state in _STATES}}
            for row in status.counts
        ],
        "groups": [
            {
                "worker": each.info.worker,
                "host": each.info.process.host,
                "job": each.info.job,
                "user": each.info.user,
                "ranks": each.info.ranks,
                "threads": each.info.threads,
                "gpus": each.info.gpus,
                "queues": list(each.info.queues),
                "tags": list(each.info.tags),
                "python": each.info.python,
                "started": each.info.started,
                "ends": each.info.ends,
                "task": each.task,
                "name": each.name,
                "label": each.label,
                "seconds": each.seconds,
                "fraction": each.progress.fraction if each.progress else None,
                "text": each.progress.text if each.progress else "",
                "state": each.life.state,
                "silence": each.life.silence,
            }
            for each in status.groups
        ],
        "failed_jobs": [each.as_json() for each in failures],
        "last_seen": status.last_seen,
        "rate": status.rate,
        "seconds_left": status.seconds_left,
        "unseen": status.unseen,
        "missing": [{"why": text, "count": count} for text, count in status.missing.items()],
    }


def _why(each: Blocked, status: Status) -> str:
    tasks = f"{each.count} task{'s' * (each.count != 1)}"
    seen = "" if status.last_seen is None else f" (none has been seen for {format_duration(status.last_seen)})"
    return f"{tasks} {'' if ' ' in each.what else 'of '}{each.what}: {each.why}{seen}."


def _summary(status: Status) -> str:
    alive = [each for each in status.groups if each.life.state == "alive"]
    silent = [each.life for each in status.groups if each.life.state == "silent"]
    told = ""
    if silent:
        longest = max(silent, key=lambda life: life.silence or 0.0)
        told = f"; {len(silent)} silent: {longest.text}"
    if not alive:
        return f"none alive{told}"
    hosts = {each.info.process.host for each in alive}
    jobs = {each.info.job for each in alive} - {""}
    busy = sum(bool(each.task) for each in alive)
    inside = f" in {len(jobs)} job{'s' * (len(jobs) != 1)}" if jobs else ""
    where = f"on {len(hosts)} host{'s' * (len(hosts) != 1)}{inside}"
    return f"{len(alive)} alive {where}: {busy} busy, {len(alive) - busy} idle{told}"


def _rate(status: Status) -> str:
    assert status.rate is not None
    per = next(
        ((status.rate * length, unit) for unit, length in (("s", 1), ("min", 60)) if status.rate * length >= 2),
        (status.rate * 3600, "h"),
    )
    left = "" if status.seconds_left is None else f"; done in about {format_duration(status.seconds_left)}"
    return f"{per[0]:.0f} tasks/{per[1]}{left}"


def _counts(status: Status, width: int) -> Iterator[str]:
    totals = status.totals()
    shown = [state for state in _STATES if totals[state] or state in _ALWAYS]
    columns = {state: max(len(state), len(str(totals[state]))) for state in shown}
    lane = max(_LEAST_LANE, width - 9 - sum(each + 1 for each in columns.values()))
    lane = min(lane, max([_LEAST_LANE, *(len(row.lane) for row in status.counts)]))
    head = "".join(f" {state.upper():>{columns[state]}}" for state in shown)
    yield click.style(f"{'LANE':<{lane}} {'USER':<8}{head}", bold=True)
    ranked = sorted(status.counts, key=lambda row: -row.states.total())
    most = set(map(id, ranked[:_MOST_LINES]))
    for row in (row for row in status.counts if id(row) in most):
        yield escape_line(_count_row(row, lane, columns))
    if left := len(status.counts) - len(most):
        yield f"... and {left} more lanes; 'spool status --json' lists all"


def _count_row(row: LaneCounts, lane: int, columns: dict[str, int]) -> str:
    numbers = "".join(f" {row.states[state] or '-':>{wide}}" for state, wide in columns.items())
    return f"{_cut(row.lane or '(not read)', lane):<{lane}} {_cut(row.user, 8):<8}{numbers}"


def _groups(status: Status, width: int, most: int) -> Iterator[str]:
    name = max(12, width - 57)
    yield click.style(
        f"{'GROUP':<8} {'HOST':<12} {'JOB':<10} {'SHAPE':<10} {'RUNS':<{name}} {'TASK':<5} {'FOR':>6}", bold=True
    )
    chosen = sorted(status.groups, key=lambda each: not each.task)[:most]
    for each in status.groups:
        if each in chosen:
            yield escape_line(_group(each, name))
            if each.life.state == "silent":
                yield f"         {each.life.text}"
            if each.progress is not None:
                yield escape_line(_cut(f"         {describe_progress(each.progress)}", width))
    if len(status.groups) > len(chosen):
        yield f"... and {len(status.groups) - len(chosen)} more; 'spool workers ls' lists all"


def _group(each: GroupStatus, name: int) -> str:
    info = each.info
    shape = f"{info.ranks}x{info.threads}" + (f" {info.gpus} GPU" if info.gpus else "")
    runs = f"{each.name} {each.label}".rstrip() if each.task else "(idle)"
    since = format_duration(each.seconds) if each.task else ""
    host = _cut(info.process.host.partition(".")[0], 12)
    left = f"{info.worker[:8]} {host:<12} {_cut(info.job, 10):<10} {_cut(shape, 10):<10}"
    return f"{left} {_cut(runs, name):<{name}} {each.task[-5:]:<5} {since:>6}".rstrip()


def describe_progress(report: TaskProgress) -> str:
    """Return the reported progress of a task as text."""
    return " ".join(filter(None, ("" if report.fraction is None else f"{report.fraction:.0%}", report.text)))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _wrapped(word: str, text: str, width: int | None, **style: Any) -> Iterator[str]:
    text = escape_line(text)
    rows = [text] if width is None else wrap(text, max(20, width - _LEFT), break_on_hyphens=False)
    for number, line in enumerate(rows):
        yield click.style(f"{word if number == 0 else '':<{_LEFT}}", **style) + line
