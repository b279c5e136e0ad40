"""Common parts of the commands: error reports, output, logging, and common options."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from spoolpool import settings
from spoolpool.errors import SpoolpoolError
from spoolpool.system import files
from spoolpool.system.text import escape_line

_VERBOSE, _JSON, _DEBUG = "spoolpool.verbose", "spoolpool.json", "spoolpool.debug"  # keys of a click context's meta

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Group(click.Group):
    """Group that suggests commands with names like one that it does not have."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; the error names similar ones."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            if similar := difflib.get_close_matches(args[0], self.list_commands(ctx)):
                text = f"{error.message} Did you mean {' or '.join(map(repr, similar))}?"
                raise click.UsageError(text, ctx) from None
            raise


on_end_option = click.option(
    "--on-end", metavar="COMMAND", help="Command of sh to run at the end; it finds $SPOOLPOOL_RAISED and the like."
)
"""Option of commands that wait for tasks."""


def echo_stderr(text: str) -> None:
    """Print a message on standard error; standard output is for results."""
    click.echo(text, err=True)


def echo_escaped(text: str, *, err: bool = False) -> None:
    """Print one line, escaped for a terminal; ``err``: on standard error."""
    click.echo(escape_line(text), err=err)


def escape_lines(text: str) -> str:
    """Return a text of several lines, each escaped for a terminal."""
    return "\n".join(map(escape_line, text.splitlines()))


def format_time(seconds: float) -> str:
    """Return a time of the local time zone as text; empty for 0."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def report_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Report the errors of a command as one line and an exit code; with ``--debug`` as a traceback."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            context = click.get_current_context()
            if context.meta.get(_DEBUG) or getattr(error, "errno", 0) == errno.EPIPE:
                raise
            text, code = _describe_error(error, context)
            echo_escaped(f"{context.command_path}: {text}", err=True)
            sys.exit(code)

    return run


def _describe_error(error: Exception, context: click.Context) -> tuple[str, int]:
    """Return the message of an error, with its remedy, and the exit code."""
    if isinstance(error, SpoolpoolError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}. {_advice(error.errno)}", SpoolpoolError.exit_code
    program = context.find_root().info_name
    return (
        f"{type(error).__name__}: {error}. This is a bug: please report it with the traceback, which "
        f"'{program} --debug' with the same arguments shows."
    ), settings.EXIT_UNEXPECTED


def _advice(number: int | None) -> str:
    if number in files.DENIED:
        return "Ask the owner for permission."
    if number in files.FULL:
        return "Free space, inodes or quota on that filesystem, and try again."
    if number in files.GONE:
        return "Check whether it was removed, or is not mounted on this host."
    return "Check the state of the filesystem, and try again."


def set_up_logging(verbose: int, as_json: bool) -> None:
    """Log to standard error: warnings; with -v also actions, with -vv also debug messages."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    handler = logging.StreamHandler()
    text = _EscapedLines("%(asctime)s %(levelname).1s %(name)s: %(message)s")
    handler.setFormatter(_JsonLines() if as_json else text)
    ours = logging.getLogger("spoolpool")  # not the root logger, which belongs to the functions of a worker
    ours.handlers[:] = [handler]
    ours.setLevel(level)
    ours.propagate = False


class _EscapedLines(logging.Formatter):
    """Text escaped for a terminal: messages may quote names and headers of other accounts."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as lines."""
        return escape_lines(super().format(record))


class _JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON; docs/cli.md documents the keys."""
        entry = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _common(key: str, *names: str, **attributes: Any) -> click.Option:
    def apply(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value:
            context.meta[key] = context.meta.get(key, 0) + value
        set_up_logging(context.meta.get(_VERBOSE, 0), bool(context.meta.get(_JSON)))

    return click.Option(names, expose_value=False, callback=apply, **attributes)


def add_common_options(found: click.Command, *, hidden: bool = False) -> click.Command:
    """Add the common options to a command and its subcommands; ``hidden`` if the help of its group shows them.

    So they can be given before and after the name of a subcommand. Does nothing if a command has them already.
    """
    if isinstance(found, click.Group):
        for each in found.commands.values():
            add_common_options(each, hidden=True)
    if any(each.name == "log_json" for each in found.params):
        return found

    for option in (
        _common(_VERBOSE, "-v", "--verbose", count=True, hidden=hidden, help="Print more messages; twice: all."),
        _common(_JSON, "--log-json", is_flag=True, hidden=hidden, help="Log in JSON, one object per line."),
        _common(_DEBUG, "--debug", is_flag=True, hidden=hidden, help="Print the traceback of an error."),
    ):
        found.params.append(option)
    return found


def common_arguments() -> list[str]:
    """Return the common options of this process, to pass them to the processes that it starts."""
    meta = click.get_current_context().meta
    return ["-v"] * meta.get(_VERBOSE, 0) + ["--log-json"] * bool(meta.get(_JSON))


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator for a top-level command: with the common options, and reported errors."""

    def wrap(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(**kwargs: Any) -> Any:
            return report_errors(function)(**kwargs)

        return add_common_options(click.command(name, context_settings=CONTEXT)(run))

    return wrap


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Yield the path of a new file that replaces another one at once when this context ends without an error.

    The new file has the mode of the other one. A link to a file stays. A device or pipe is written to instead.
    """
    with files.translate_errors(f"write {path}"):
        mode = os.stat(path).st_mode if os.path.exists(path) else None
        if mode is not None and not stat.S_ISREG(mode):
            yield path
            return
        path = os.path.realpath(path)
        directory, name = os.path.split(path)
        fd, new = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
        os.close(fd)
        try:
            yield new
            if mode is None:
                mask = os.umask(0)
                os.umask(mask)
                mode = 0o666 & ~mask
            os.chmod(new, stat.S_IMODE(mode))
            os.replace(new, path)  # noqa: TID251  a file of the user, outside of spools
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)  # noqa: TID251  as above
            raise
