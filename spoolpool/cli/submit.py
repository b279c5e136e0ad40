"""``spool submit`` and ``spool run``: submit Python functions and commands."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import click

from spoolpool import settings
from spoolpool.cli.output import echo_stderr, report_errors
from spoolpool.cli.result import display
from spoolpool.errors import BadRequest
from spoolpool.executor import Executor
from spoolpool.options import Submission
from spoolpool.system.user_code import describe_error, is_interrupt
from spoolpool.wire import Command

_KEYWORD = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


def _submit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add options for the resources and the session of a task, and for waiting; submit the call."""

    @report_errors
    @functools.wraps(function)
    def run(
        directory: str | None,
        ranks: int,
        threads: int,
        gpus: int,
        priority: int,
        queue: str,
        cwd: str,
        resources: tuple[str, ...],
        session: str,
        wait: bool,
        **options: Any,
    ) -> None:
        resource_dict = {
            "cores": ranks,
            "threads_per_core": threads,
            "gpus_per_core": gpus,
            "priority": priority,
            "cwd": os.path.abspath(cwd),
            **_pairs(resources, "--resource"),
        }
        call = function(**options)
        _submit(directory, *call, resource_dict=resource_dict, queue=queue, session=session, wait=wait)

    for option in (
        click.option(
            "-w", "--wait", is_flag=True, help="Wait for the result and print it; remove it without --session."
        ),
        click.option("--session", metavar="NAME", help="Session that gets the result.  [default: cli- and your uid]"),
        click.option(
            "--resource",
            "resources",
            multiple=True,
            metavar="KEY=JSON",
            help="Key of resource_dict (repeat for more).",
        ),
        click.option("--cwd", default=".", metavar="DIR", help="Working directory.  [default: the current one]"),
        click.option("--queue", default="default", show_default=True, metavar="NAME", help="Queue."),
        click.option("--priority", type=int, default=0, show_default=True, help="-499 to 499; higher runs earlier."),
        click.option("--gpus", type=click.IntRange(0), default=0, show_default=True, help="GPUs per rank."),
        click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads per rank."),
        click.option("--ranks", type=click.IntRange(1), default=1, show_default=True, help="MPI ranks."),
        click.option(
            "--spool",
            "directory",
            metavar="SPOOL",
            envvar=settings.ENV_SPOOL,
            help="Spool directory.  [default: $SPOOLPOOL_DIR]",
        ),
    ):
        run = option(run)
    return run


@click.command()
@_submit_options
@click.option(
    "--arg", "arguments", multiple=True, metavar="[NAME=]VALUE", help="Argument: JSON, else text (repeat for more)."
)
@click.argument("function", metavar="MODULE:FUNCTION")
def submit(function: str, arguments: tuple[str, ...]) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Submit a call of a Python function, and print the id of the task.

    \b
      spool submit --spool SPOOL math:hypot --arg 3 --arg 4 --wait
      spool submit --spool SPOOL model:relax --arg '{"a": 4.05}' --arg steps=200 --ranks 8

    The module is imported on this host, also from the current directory; the workers need not have it.
    """
    module, _, name = function.partition(":")
    if not (module and name):
        raise BadRequest(f"{function!r} is not of the form MODULE:FUNCTION. Example: math:hypot.")
    sys.path.insert(0, os.getcwd())
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise BadRequest(f"Cannot import {function!r}: {error}. Check the names and PYTHONPATH.") from error
    except BaseException as error:  # a module may raise anything, and call sys.exit
        if is_interrupt(error):
            raise
        raise BadRequest(f"Cannot import {function!r}: it raises {describe_error(error)}.") from error
    if not callable(found):
        raise BadRequest(f"{function!r} is a {type(found).__name__}, which is not callable. Name a function.")
    matches = [_KEYWORD.fullmatch(each) for each in arguments]
    args = tuple(_value(each) for each, match in zip(arguments, matches, strict=True) if match is None)
    return found, args, {match[1]: _value(match[2]) for match in matches if match}


@click.command(context_settings={"allow_interspersed_args": False})
@_submit_options
@click.option(
    "-e",
    "--env",
    "variables",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Environment variable of the command (repeat for more).",
)
@click.argument("words", metavar="[--] COMMAND [ARGUMENT]...", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    words: tuple[str, ...], variables: tuple[str, ...]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Submit a command, and print the id of the task. The result is the exit code and the output.

    \b
      spool run --spool SPOOL -- ./relax.sh Al
      spool run --spool SPOOL --wait --threads 4 -- sh -c 'make -j4 2>&1 | tail'
      spool run --spool SPOOL --ranks 4 -- ./part.sh       (each rank has its own $SPOOLPOOL_RANK)

    With --wait, print the output of the command and exit with its exit code. A task with another code than 0 fails.
    """
    split = [each.partition("=") for each in variables]
    missing = [name for name, given, _ in split if not given and name not in os.environ]
    if missing:
        raise BadRequest(f"The environment has no variable {', '.join(missing)}: set it, or write {missing[0]}=VALUE.")
    return Command(words, {name: value if given else os.environ[name] for name, given, value in split}), (), {}


def _submit(
    directory: str | None,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    resource_dict: dict[str, Any],
    queue: str,
    session: str | None,
    wait: bool,
) -> None:
    if not directory:
        raise click.UsageError("Missing option '--spool', and SPOOLPOOL_DIR is not set.")
    name = session or (None if wait else f"cli-{os.geteuid()}")
    executor = Executor(spool=directory, resource_dict=resource_dict, session=name, submission=Submission(queue=queue))
    try:
        future = executor.submit(function, *args, **kwargs)
        if not wait:
            click.echo(future.task)  # type: ignore[attr-defined]
            return
        echo_stderr(f"Waiting for task {future.task}.")  # type: ignore[attr-defined]
        code = display(future.result)
    except KeyboardInterrupt:
        echo_stderr("Interrupted: the task continues. 'spool cancel' cancels it, 'spool result' prints its result.")
        raise
    finally:
        executor.detach()
    sys.exit(code)


def _value(text: str) -> Any:
    try:
        return json.loads(text)  # noqa: TID251  an argument of the command
    except ValueError:
        return text


def _pairs(texts: tuple[str, ...], option: str) -> dict[str, Any]:
    found = {}
    for text in texts:
        match = _KEYWORD.fullmatch(text)
        if match is None:
            raise BadRequest(f"{option} {text}: the form is {option} KEY=VALUE, with VALUE in JSON.")
        found[match[1]] = _value(match[2])
    return found
