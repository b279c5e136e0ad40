"""``spool result``."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from spoolpool.calls.results import remote_traceback, value_of
from spoolpool.cli.output import echo_stderr, escape_lines
from spoolpool.cli.task_selection import Selection, selects
from spoolpool.errors import BadRequest, SpoolpoolError, TaskFailed
from spoolpool.monitor.calls import CallView
from spoolpool.monitor.query import TaskView
from spoolpool.protocol.outcomes import read_outcome
from spoolpool.security.trust import Trust
from spoolpool.system.text import escape_line
from spoolpool.system.user_code import describe_value, is_interrupt


@click.command()
@selects("done", "raised", "lost", "cancelled")
@click.option(
    "--trust-user", "trusted", multiple=True, metavar="NAME", help="Also read results of workers of this account."
)
@click.option("--json", "as_json", is_flag=True, help="Print the value as JSON.")
def result(selection: Selection, trusted: tuple[str, ...], as_json: bool) -> None:
    """Print the return value of a task, or the output of a command; exit with the exit code of the command.

    \b
      spool result SPOOL e7819e56d5
      spool result SPOOL --session sweep --json

    Unpickling a value can run code: only results from workers of your account and of --trust-user are read. They
    stay in the spool; 'spool rm' removes them.
    """
    chosen = selection.explicit_tasks()
    if not chosen:
        raise BadRequest(
            f"No matching task of {selection.spool.path} has a result: see 'spool ls {selection.spool.path}'."
        )
    codes = [display(lambda view=view: read_value(view, trusted), as_json=as_json) for view in chosen]  # type: ignore[misc]
    sys.exit(max(codes))


def read_value(view: TaskView, trusted: tuple[str, ...]) -> Any:
    """Return the result of a task or raise its exception; unpickled only if the owner of the file is trusted."""
    if view.state == "cancelled":
        raise TaskFailed(f"Task {view.id} was cancelled: it has no result.")
    if isinstance(view, CallView):
        outcome, content = view.read_outcome(Trust(trusted))
    else:
        outcome, content = read_outcome(view.spool, view.session, view.location.task_file, Trust(trusted))
    return value_of(outcome, content, lambda: escape_line(f"{view.id} {view.title}"))


def display(call: Callable[[], Any], *, as_json: bool = False) -> int:
    """Print the return value or the exception of a call; return the exit code."""
    try:
        value = call()
    except subprocess.CalledProcessError as failed:
        _write_streams(failed.stdout, failed.stderr)
        return failed.returncode
    except SpoolpoolError:
        raise
    except BaseException as error:  # the task may have raised anything
        if is_interrupt(error) and remote_traceback(error) is None:  # else it comes from the task
            raise
        text = "".join(traceback.format_exception_only(type(error), error)) + str(remote_traceback(error) or "")
        echo_stderr(escape_lines(text))
        return TaskFailed.exit_code
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, subprocess.CompletedProcess):
            _write_streams(each.stdout, each.stderr)
    if not _is_command_result(value):
        click.echo(
            json.dumps(value, default=_represent)
            if as_json
            else escape_lines(value if isinstance(value, str) else _represent(value))
        )
    return 0


def _represent(value: Any) -> str:
    return describe_value(value, sys.maxsize)


def _is_command_result(value: Any) -> bool:
    values = value if isinstance(value, list) and value else [value]
    return all(isinstance(each, subprocess.CompletedProcess) for each in values)


def _write_streams(output: bytes | None, errors: bytes | None) -> None:
    """Write the captured streams of a command, unchanged."""
    click.echo(output or b"", nl=False)
    click.echo(errors or b"", nl=False, err=True)
