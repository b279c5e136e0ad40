"""``spool submit``, and the options that it shares with ``spool run``."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from spoolpool.cli.output import echo_stderr, report_errors
from spoolpool.cli.result import display
from spoolpool.cli.spool_argument import split_words, takes_spool
from spoolpool.client.end_command import end_of, run_end_command
from spoolpool.errors import BadRequest
from spoolpool.executor import Executor
from spoolpool.options import Session, Submission
from spoolpool.system.user_code import describe_error, is_interrupt

_KEYWORD = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Request:
    """Place and requirements of the tasks that a command submits."""

    directory: str
    """Directory of the spool."""
    resource_dict: Mapping[str, Any]
    queue: str
    session: str | None
    """Name of the session that gets the results, if one was given."""

    def executor(self, default: str | None, *, resume: bool = False) -> Executor:
        """Return an executor of the session, with the ``default`` name; anonymous if that is None as well."""
        name = self.session or default
        return Executor(
            spool=self.directory,
            resource_dict=self.resource_dict,
            session=None if name is None else Session(name, resume=resume),
            submission=Submission(queue=self.queue),
        )

    def run_end_command(self, command: str, counts: Mapping[str, int]) -> None:
        """Run a command that the user has given for the end of the tasks."""
        run_end_command(command, counts, spool=os.path.abspath(self.directory), session=self.session or "")

    def submit(
        self,
        call: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        wait: bool,
        on_end: str | None = None,
    ) -> None:
        """Submit one call, and print the id of its task; or wait, print its result, and exit with its exit code."""
        executor = self.executor(None if wait else f"cli-{os.geteuid()}")
        try:
            future = executor.submit(call, *args, **kwargs)
            if not wait:
                click.echo(future.task)  # type: ignore[attr-defined]
                return
            echo_stderr(f"Waiting for task {future.task}.")  # type: ignore[attr-defined]
            code = display(future.result)
            if on_end:
                self.run_end_command(on_end, {end_of(future): 1})
        except KeyboardInterrupt:
            echo_stderr("Interrupted: the task continues. 'spool cancel' cancels it, 'spool result' prints its result.")
            raise
        finally:
            executor.detach()
        sys.exit(code)


def submission_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a :class:`Request` to a command, and report its errors."""

    @report_errors
    @functools.wraps(function)
    def run(
        ranks: int,
        threads: int,
        gpus: int,
        priority: int,
        queue: str,
        cwd: str | None,
        resources: tuple[str, ...],
        session: str | None,
        label: str,
        directory: str = "",
        given_spool: str | None = None,
        **options: Any,
    ) -> None:
        resource_dict = {
            "cores": ranks,
            "threads_per_core": threads,
            "gpus_per_core": gpus,
            "priority": priority,
            **({} if cwd is None else {"cwd": cwd}),
            **({"label": label} if label else {}),
            **_pairs(resources, "--resource"),
        }
        directory = directory or split_words((), given_spool)[0]
        function(request=Request(directory, resource_dict, queue, session), **options)

    for option in (
        click.option("--label", default="", metavar="TEXT", help="Text by which people tell the task from others."),
        click.option("--session", metavar="NAME", help="Session that gets the result.  [default: cli- and your uid]"),
        click.option(
            "--resource",
            "resources",
            multiple=True,
            metavar="KEY=JSON",
            help="Key of resource_dict (repeat for more).",
        ),
        click.option("--cwd", metavar="DIR", help="Working directory, created if missing.  [default: the current one]"),
        click.option("--queue", default="default", show_default=True, metavar="NAME", help="Queue."),
        click.option("--priority", type=int, default=0, show_default=True, help="-499 to 499; higher runs earlier."),
        click.option("--gpus", type=click.IntRange(0), default=0, show_default=True, help="GPUs per rank."),
        click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads per rank."),
        click.option("--ranks", type=click.IntRange(1), default=1, show_default=True, help="MPI ranks."),
    ):
        run = option(run)
    return run


@click.command()
@takes_spool("function:MODULE:FUNCTION")
@submission_options
@click.option("-w", "--wait", is_flag=True, help="Wait for the result and print it; remove it without --session.")
@click.option(
    "--arg", "arguments", multiple=True, metavar="[NAME=]VALUE", help="Argument: JSON, else text (repeat for more)."
)
def submit(request: Request, function: str, arguments: tuple[str, ...], wait: bool) -> None:
    """Submit a call of a Python function, and print the id of the task.

    \b
      spool submit SPOOL math:hypot --arg 3 --arg 4 --wait
      spool submit SPOOL model:relax --arg '{"a": 4.05}' --arg steps=200 --ranks 8

    The module is imported on this host, also from the current directory; the workers need not have it.
    """
    args, kwargs = _arguments(arguments)
    request.submit(_find(function), args, kwargs, wait=wait)


def _find(function: str) -> Callable[..., Any]:
    """Import a function, also from the current directory."""
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
    return found


def _arguments(texts: tuple[str, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    matches = [_KEYWORD.fullmatch(each) for each in texts]
    args = tuple(_value(each) for each, match in zip(texts, matches, strict=True) if match is None)
    return args, {match[1]: _value(match[2]) for match in matches if match}


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
