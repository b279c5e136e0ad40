"""``spool show``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import click

from spoolpool.cli.output import echo_escaped, format_time
from spoolpool.cli.status_screen import describe_progress
from spoolpool.cli.task_columns import record
from spoolpool.cli.task_selection import Selection, selects
from spoolpool.format.cancel_requests import request_name
from spoolpool.format.headers import OutcomeHeader, TaskHeader
from spoolpool.format.names import CANCELLED, is_worker_id, parse_lane
from spoolpool.monitor.calls import CallView
from spoolpool.monitor.query import Attempt, TaskView
from spoolpool.protocol.progress import progress_of
from spoolpool.system import files, open_directory
from spoolpool.system.text import format_bytes, format_duration

_TOOLS = ("spool", "supervisor", "autoscale")  # authors of events besides workers and sessions


@click.command()
@selects()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per task and line.")
def show(selection: Selection, as_json: bool) -> None:
    """Show tasks: resources, state, location and attempts. Nothing is unpickled.

    \b
      spool show SPOOL e7819e56d5
      spool show SPOOL --state running --name relax
    """
    for number, view in enumerate(selection.explicit_tasks()):
        history = view.attempts()
        if as_json:
            click.echo(json.dumps({**record(view), "attempts": [each._asdict() for each in history]}))
            continue
        if number:
            click.echo()
        for word, text in (*_lines(view), *_progress_and_output(view), *_history(history)):
            echo_escaped(f"{word:<10} {text}")


def _lines(view: TaskView) -> Iterator[tuple[str, str]]:
    task_file, header, outcome = view.location.task_file, view.header, view.outcome
    since = f", since {format_time(view.since)}" if view.since else ""
    yield "Task", view.id
    yield "State", f"{view.state}{since}{', cancellation requested' if _has_cancel_request(view) else ''}"
    if header is None:
        yield "Problem", view.problem
    else:
        yield "Name", header.name
        if header.label:
            yield "Label", header.label
        if header.arguments:
            yield "Arguments", header.arguments
        yield "Lane", header.lane
        yield "Session", header.session
        ago = format_duration(time.time() - header.submitted)
        yield "Submitted", f"{format_time(header.submitted)} ({ago} ago){_on(header.host)} by {view.owner}"
        yield from _resources(header)
        limits = f"{header.retries} retries, {header.max_attempts} attempts that may end with the worker's death"
        yield "Attempt", f"{task_file.attempt} (claim {task_file.claim}); {limits}"
    if isinstance(view, CallView):
        yield "Pack", f"{task_file.task}: this is call {view.number} of its {view.pack.calls}, counted from 0"
    yield "File", f"{view.spool.path}/{view.location.path}"
    if outcome is not None and view.location.place == "done":
        yield "Outcome", open_directory.display_path(view.spool.layout.outcome(view.session, task_file))
    if outcome is not None and outcome.usage is not None:
        yield "Used", _usage(outcome, header)
    if outcome is not None and (failure := outcome.failure):
        yield "Failure", f"{failure.type}: {failure.message} (rank {failure.rank}{_on(failure.host)})"
        yield "", f"'spool traceback {view.spool.path} {view.id}' shows the traceback"


def _on(host: str) -> str:
    """Return the place of an event; empty for an unknown host."""
    return f" on {host}" if host else ""


def _usage(outcome: OutcomeHeader, header: TaskHeader | None) -> str:
    """Return what a task has used, of what it had or asked for."""
    used = outcome.usage
    assert used is not None
    lane = parse_lane(header.lane) if header is not None else None
    cores = lane.ranks * lane.threads if lane is not None else 1
    time_of_cores = used.wall * cores
    share = f" ({100 * used.cpu / time_of_cores:.0f} %)" if time_of_cores else ""
    text = f"CPU {format_duration(used.cpu, precise=True)} of {format_duration(time_of_cores, precise=True)}"
    text += f" on {cores} core(s){share}, peak memory {format_bytes(used.memory)}"
    if header is not None and header.memory:
        text += f" of {format_bytes(header.memory)} ({100 * used.memory / header.memory:.0f} %)"
    if used.memory_sum:
        text += f" of a rank, {format_bytes(used.memory_sum)} of all"
    return f"{text}, since the start of the worker" if used.of_process else text


def _has_cancel_request(view: TaskView) -> bool:
    task, number = view.location.task_file.task, view.number if isinstance(view, CallView) else None
    names = {request_name(task), request_name(task, number)}
    return view.state in ("held", "waiting", "running") and any(
        files.exists(f"{view.spool.layout.cancel}/{name}") for name in names
    )


def _resources(header: TaskHeader) -> Iterator[tuple[str, str]]:
    """Yield the requirements that the name of the lane does not contain."""
    if header.cwd or header.directory:
        yield "Directory", header.cwd or header.directory
    if header.not_before:
        yield "Not before", format_time(header.not_before)
    if header.memory:
        yield "Memory", f"{header.memory / (1 << 20):.6g} MiB per rank"
    for name in header.objects:
        yield "Object", f"objects/{name}"
    for name, value in header.env.items():
        yield "Variable", f"{name}={value}"
    if header.error_log_file:
        yield "Error log", header.error_log_file


def _progress_and_output(view: TaskView) -> Iterator[tuple[str, str]]:
    """Yield the progress of a running task, and the command that shows its output."""
    worker = view.location.task_file.worker
    report = progress_of(view.spool, worker) if view.location.place == "running" else None
    if report is not None and report.task == view.location.task_file.task and view.state == "running":
        yield "Progress", f"{describe_progress(report)} ({format_time(report.told)})"
    if worker and worker != CANCELLED and view.state not in ("held", "waiting"):
        yield "Output", f"'spool logs {view.spool.path} {view.id}' shows its captured output"


def _history(history: list[Attempt]) -> Iterator[tuple[str, str]]:
    for number, each in enumerate(history):
        attempt = f"attempt {each.attempt}, " if each.attempt else ""
        times = " to ".join(filter(None, (format_time(each.started), format_time(each.ended))))
        kind = "worker " if is_worker_id(each.worker) else "" if each.worker in _TOOLS else "session "
        author = f"{kind}{each.worker}"
        yield "" if number else "History", f"{times}  {attempt}{author}{_on(each.host)}: {each.what}"
