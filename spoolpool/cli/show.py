"""``spool show``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import click

from spoolpool.cli.ls import record
from spoolpool.cli.output import echo_escaped, when
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
    for number, view in enumerate(selection.chosen()):
        history = view.attempts()
        if as_json:
            click.echo(json.dumps({**record(view), "attempts": [each._asdict() for each in history]}))
            continue
        if number:
            click.echo()
        for word, text in (*_lines(view), *_said(view), *_history(history)):
            echo_escaped(f"{word:<10} {text}")


def _lines(view: TaskView) -> Iterator[tuple[str, str]]:
    task_file, header, outcome = view.location.task_file, view.header, view.outcome
    since = f", since {when(view.since)}" if view.since else ""
    yield "Task", view.id
    yield "State", f"{view.state}{since}{', to be cancelled' if _is_marked(view) else ''}"
    if header is None:
        yield "Problem", view.problem
    else:
        yield "Name", header.name
        yield "Lane", header.lane
        yield "Session", header.session
        ago = format_duration(time.time() - header.submitted)
        yield "Submitted", f"{when(header.submitted)} ({ago} ago) on {header.host} by {view.owner}"
        yield from _asked(header)
        limits = f"{header.retries} retries, {header.max_attempts} attempts that may end with a worker's death"
        yield "Attempt", f"{task_file.attempt} (claim {task_file.claim}); {limits}"
    yield "File", f"{view.spool.path}/{view.location.path}"
    if outcome is not None:
        yield "Outcome", view.spool.layout.outcome(view.session, task_file)
        if failure := outcome.failure:
            yield "Failure", f"{failure.type}: {failure.message} (rank {failure.rank} on {failure.host})"
            yield "", f"'spool traceback {view.spool.path} {view.id}' shows more"


def _is_marked(view: TaskView) -> bool:
    return view.location.place in ("held", "waiting", "running") and files.exists(
        f"{view.spool.layout.cancel}/{view.id}"
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


def _said(view: TaskView) -> Iterator[tuple[str, str]]:
    """How far a task says it is, and where to read what it printed."""
    worker = view.location.task_file.worker
    told = progress_of(view.spool, worker) if view.location.place == "running" else None
    if told is not None and told.task == view.id:
        yield "Progress", f"{progress(told)} ({when(told.told)})"
    if worker and worker != CANCELLED:
        yield "Output", f"'spool logs {view.spool.path} {view.id}' shows what was printed and is kept"


def _history(history: list[Attempt]) -> Iterator[tuple[str, str]]:
    for number, each in enumerate(history):
        attempt = f"attempt {each.attempt}, " if each.attempt else ""
        times = " to ".join(filter(None, (when(each.started), when(each.ended))))
        yield "" if number else "History", f"{times}  {attempt}worker {each.worker} on {each.host}: {each.what}"
