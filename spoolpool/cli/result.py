"""``spool result``."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from spoolpool.calls.results import value_of
from spoolpool.cli.output import echo_stderr, escape_lines
from spoolpool.cli.task_selection import Selection, selects
from spoolpool.errors import BadRequest, SpoolpoolError, TaskFailed
from spoolpool.monitor.query import TaskView
from spoolpool.protocol.outcomes import read_outcome
from spoolpool.security.trust import Trust


@click.command()
@selects("done", "raised", "lost", "cancelled")
@click.option(
    "--trust-user", "trusted", multiple=True, metavar="NAME", help="Also read results of this account's workers."
)
@click.option("--json", "as_json", is_flag=True, help="The value as JSON.")
def result(selection: Selection, trusted: tuple[str, ...], as_json: bool) -> None:
    """Print the value that a task returned, or what a command printed; exit as the command did.

    \b
      spool result SPOOL e7819e56d5
      spool result SPOOL --session sweep --json

    Reading a value can run code: so results are read of your own account's workers alone, and of those that you name.
    They stay where they are; 'spool rm' removes them.
    """
    chosen = selection.chosen()
    if not chosen:
        raise BadRequest(
            f"No task in {selection.spool.path} that fits has a result: see 'spool ls {selection.spool.path}'."
        )
    codes = [display(lambda view=view: read_value(view, trusted), as_json=as_json) for view in chosen]  # type: ignore[misc]
    sys.exit(max(codes))


def read_value(view: TaskView, trusted: tuple[str, ...]) -> Any:
    """The value, or the exception raised; unpickled only if the file's owner is trusted."""
    if view.state == "cancelled":
        raise TaskFailed(f"Task {view.id} was cancelled: it has no value.")
    return value_of(*read_outcome(view.spool, view.session, view.location.task_file, Trust(trusted)))


def display(call: Callable[[], Any], *, as_json: bool = False) -> int:
    """Print what a call returns or raises as a person wants it; returns the exit code."""
    try:
        value = call()
    except subprocess.CalledProcessError as failed:
        _streams(failed.stdout, failed.stderr)
        return failed.returncode
    except SpoolpoolError:
        raise
    except Exception as error:  # noqa: BLE001  it is the task's own
        echo_stderr(
            escape_lines("".join(traceback.format_exception_only(type(error), error)) + str(error.__cause__ or ""))
        )
        return TaskFailed.exit_code
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, subprocess.CompletedProcess):
            _streams(each.stdout, each.stderr)
    if not _is_command(value):
        click.echo(
            json.dumps(value, default=repr)
            if as_json
            else escape_lines(value if isinstance(value, str) else repr(value))
        )
    return 0


def _is_command(value: Any) -> bool:
    values = value if isinstance(value, list) and value else [value]
    return all(isinstance(each, subprocess.CompletedProcess) for each in values)


def _streams(output: bytes | None, errors: bytes | None) -> None:
    """What a command printed, as it printed it."""
    click.echo(output or b"", nl=False)
    click.echo(errors or b"", nl=False, err=True)
