"""``spool show``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import click

from spoolpool.cli.ls import record
from spoolpool.cli.output import shown, when
from spoolpool.cli.status_screen import progress
from spoolpool.cli.task_selection import Selection, selects
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import CANCELLED
from spoolpool.monitor.query import Attempt, TaskView
from spoolpool.protocol.progress import progress_of
from spoolpool.system import files
from spoolpool.system.text import format_duration


@click.command()
@selects()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per task and line.")
def show(selection: Selection, as_json: bool) -> None:
    """Show all that is known of tasks: what they ask for, where they stand, their attempts. Nothing is unpickled.

    \b
      spool show SPOOL e7819e56d5
      spool show SPOOL --state running --name relax
    """
    for number, sight in enumerate(selection.chosen()):
        history = sight.attempts()
        if as_json:
            click.echo(json.dumps({**record(sight), "attempts": [each._asdict() for each in history]}))
            continue
        if number:
            click.echo()
        for word, text in (*_lines(sight), *_said(sight), *_history(history)):
            click.echo(shown(f"{word:<10} {text}"))


def _lines(sight: TaskView) -> Iterator[tuple[str, str]]:
    task_file, header, outcome = sight.location.task_file, sight.header, sight.outcome
    since = f", since {when(sight.since)}" if sight.since else ""
    yield "Task", sight.id
    yield "State", f"{sight.state}{since}{', to be cancelled' if _is_marked(sight) else ''}"
    if header is None:
        yield "Problem", sight.problem
    else:
        yield "Name", header.name
        yield "Lane", header.lane
        yield "Session", header.session
        ago = format_duration(time.time() - header.submitted)
        yield "Submitted", f"{when(header.submitted)} ({ago} ago) on {header.host} by {sight.owner}"
        yield from _asked(header)
        limits = f"{header.retries} retries, {header.max_attempts} attempts that may end with a worker's death"
        yield "Attempt", f"{task_file.attempt} (claim {task_file.claim}); {limits}"
    yield "File", f"{sight.spool.path}/{sight.location.path}"
    if outcome is not None:
        yield "Outcome", sight.spool.layout.outcome(sight.session, task_file)
        if failure := outcome.failure:
            yield "Failure", f"{failure.type}: {failure.message} (rank {failure.rank} on {failure.host})"
            yield "", f"'spool traceback {sight.spool.path} {sight.id}' shows more"


def _is_marked(sight: TaskView) -> bool:

    return sight.location.place in ("held", "waiting", "running") and files.exists(
        f"{sight.spool.layout.cancel}/{sight.id}"
    )


def _asked(header: TaskHeader) -> Iterator[tuple[str, str]]:
    """What it asks for besides its lane."""
    if header.cwd:
        yield "Directory", header.cwd
    if header.not_before:
        yield "Not before", when(header.not_before)
    if header.memory:
        yield "Memory", f"{header.memory / (1 << 20):.6g} MiB per rank"
    for name in header.objects:
        yield "Object", f"objects/{name}"
    for name, value in header.env.items():
        yield "Variable", f"{name}={value}"
    if header.error_log_file:
        yield "Error log", header.error_log_file


def _said(sight: TaskView) -> Iterator[tuple[str, str]]:
    """How far a task says it is, and where to read what it printed."""
    worker = sight.location.task_file.worker
    told = progress_of(sight.spool, worker) if sight.location.place == "running" else None
    if told is not None and told.task == sight.id:
        yield "Progress", f"{progress(told)} ({when(told.told)})"
    if worker and worker != CANCELLED:
        yield "Output", f"'spool logs {sight.spool.path} {sight.id}' shows what was printed and is kept"


def _history(history: list[Attempt]) -> Iterator[tuple[str, str]]:
    for number, each in enumerate(history):
        attempt = f"attempt {each.attempt}, " if each.attempt else ""
        times = " to ".join(filter(None, (when(each.started), when(each.ended))))
        yield "" if number else "History", f"{times}  {attempt}worker {each.worker} on {each.host}: {each.what}"
