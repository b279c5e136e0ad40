"""What every command shares: errors in one sentence with the exit code of their class, and what is said where."""

from __future__ import annotations

import errno
import functools
import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from spoolpool import settings
from spoolpool.errors import SpoolpoolError
from spoolpool.system import files

_VERBOSE, _JSON, _DEBUG = "spoolpool.verbose", "spoolpool.json", "spoolpool.debug"  # of a click context's meta

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def echo_stderr(text: str) -> None:
    """Tell a person what happens; on standard error, so that standard output stays for results."""
    click.echo(text, err=True)


def escape_for_terminal(text: str) -> str:
    """The text with everything escaped that would do something to a terminal: names on disk hold what they like."""
    if text.isprintable():  # by far the most are, and this takes a hundredth of the time
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def echo_escaped(text: str, *, err: bool = False) -> None:
    """Print one line of which :func:`escape_for_terminal` has escaped the text; ``err``: to standard error."""
    click.echo(escape_for_terminal(text), err=err)


def escape_lines(text: str) -> str:
    """The same of a text of several lines."""
    return "\n".join(map(escape_for_terminal, text.splitlines()))


def when(seconds: float) -> str:
    """A moment for people, in the local time zone; empty for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def report_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an error into one line, with what to do, and an exit code; ``--debug``: into a traceback."""

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
            text, code = _in_words(error, context)
            echo_escaped(f"{context.command_path}: {text}", err=True)
            sys.exit(code)

    return run


def _in_words(error: Exception, context: click.Context) -> tuple[str, int]:
    """What went wrong and what to do, in one line, and the exit code."""
    if isinstance(error, SpoolpoolError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}. {_advice(error.errno)}", SpoolpoolError.exit_code
    program = context.find_root().info_name
    return (
        f"{type(error).__name__}: {error}. This should not have happened: '{program} --debug' with the same words "
        "shows where it did. Please report that."
    ), settings.EXIT_UNEXPECTED


def _advice(number: int | None) -> str:
    if number in files.DENIED:
        return "Ask the owner for the right to do that."
    if number in files.FULL:
        return "Free space, inodes or quota there, and try again."
    if number in files.GONE:
        return "Look whether it was removed, or is not mounted here."
    return "Look whether the filesystem is well, and try again."


def set_up(verbose: int, as_json: bool) -> None:
    """Let the log speak on standard error: warnings, with -v what is done, with -vv everything."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s")
    handler.setFormatter(_JsonLines() if as_json else plain)
    logging.basicConfig(level=level, handlers=[handler], force=True)


class _JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The keys are documented in docs/cli.md."""
        said = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)


def _common(key: str, *names: str, **attributes: Any) -> click.Option:
    def note(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value:
            context.meta[key] = context.meta.get(key, 0) + value
        set_up(context.meta.get(_VERBOSE, 0), bool(context.meta.get(_JSON)))

    return click.Option(names, expose_value=False, callback=note, **attributes)


def with_common(found: click.Command, *, hidden: bool = False) -> click.Command:
    """Give a command the options that all have; ``hidden`` where the help of the command above has them already.

    They may stand before and behind a subcommand's name. Harmless when repeated.
    """
    if isinstance(found, click.Group):
        for each in found.commands.values():
            with_common(each, hidden=True)
    if any(each.name == "log_json" for each in found.params):
        return found

    for option in (
        _common(_VERBOSE, "-v", "--verbose", count=True, hidden=hidden, help="Say more; twice: everything."),
        _common(_JSON, "--log-json", is_flag=True, hidden=hidden, help="Log as JSON, one object per line."),
        _common(_DEBUG, "--debug", is_flag=True, hidden=hidden, help="Show the traceback of an error."),
    ):
        found.params.append(option)
    return found


def common_arguments() -> list[str]:
    """The common options that this process was given, for those that it starts."""
    meta = click.get_current_context().meta
    return ["-v"] * meta.get(_VERBOSE, 0) + ["--log-json"] * bool(meta.get(_JSON))


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of its own, with the options that all have."""

    def wrap(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(**kwargs: Any) -> Any:
            return report_errors(function)(**kwargs)

        return with_common(click.command(name, context_settings=CONTEXT)(run))

    return wrap
