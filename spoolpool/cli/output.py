"""What every command shares: errors in one sentence with the exit code of their class, and what is said where."""

from __future__ import annotations

import errno
import functools
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from spoolpool.errors import SpoolpoolError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def say(text: str) -> None:
    """Tell a person what happens; on standard error, so that standard output stays for results."""
    click.echo(text, err=True)


def shown(text: str) -> str:
    """The text with everything escaped that would do something to a terminal: names on disk hold what they like."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def shown_lines(text: str) -> str:
    """The same of a text of several lines."""
    return "\n".join(map(shown, text.splitlines()))


def age(seconds: float) -> str:
    """A length of time for people, in at most five characters."""
    for unit, length, until in (("s", 1, 100), ("min", 60, 6000), ("h", 3600, 172800)):
        if seconds < until:
            return f"{max(0, seconds) // length:.0f} {unit}"
    return f"{seconds // 86400:.0f} d"


def when(seconds: float) -> str:
    """A moment for people, in the local time zone; empty for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def explained(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an error that people can do something about into its message and exit code; ``--debug``: a traceback."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SpoolpoolError as error:
            context = click.get_current_context()
            if context.find_root().params.get("debug"):
                raise
            click.echo(f"{context.command_path}: {error}", err=True)
            sys.exit(error.exit_code)
        except OSError as error:
            context = click.get_current_context()
            if error.errno == errno.EPIPE or context.find_root().params.get("debug"):
                raise
            where = f": {error.filename}" if error.filename else ""
            click.echo(f"{context.command_path}: {error.strerror or error}{where}", err=True)
            sys.exit(SpoolpoolError.exit_code)

    return run


def set_up(verbose: int) -> None:
    """Let the log speak: warnings, with -v what is done, with -vv everything."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(level=level, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of its own, with the options that all have."""

    def wrap(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(verbose: int, debug: bool, **kwargs: Any) -> Any:
            set_up(verbose)
            return explained(function)(**kwargs)

        run = click.option("-v", "--verbose", count=True, help="Say more; twice: everything.")(run)
        run = click.option("--debug", is_flag=True, help="Show the traceback of an error.")(run)
        return click.command(name, context_settings=CONTEXT)(run)

    return wrap
