"""``spool status``, and ``spool top``."""

from __future__ import annotations

import json
import os
import select
import shutil
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from spoolpool import settings
from spoolpool.cli.output import report_errors
from spoolpool.cli.status_screen import as_json as document
from spoolpool.cli.status_screen import lines
from spoolpool.errors import BadRequest
from spoolpool.monitor.status import StatusCollector
from spoolpool.protocol.spool import Spool
from spoolpool.system.backoff import Backoff

_argument = click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
_interval = click.option(
    "--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds between two looks."
)


@click.command()
@_argument
@click.option("-w", "--watch", is_flag=True, help="Go on looking, as 'spool top' does.")
@_interval
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output; with --watch one per line.")
@report_errors
def status(directory: str, watch: bool, interval: float, as_json: bool) -> None:
    """Show what blocks in SPOOL, what waits and runs, who works on what, and when it may be done.

    \b
      spool status SPOOL           one look
      spool status SPOOL --watch   again and again, until q or Ctrl-C
      spool status SPOOL --json    for programs

    Names are listed and a few headers read; to look costs nothing that grows with what is in the tasks.
    """
    observer = StatusCollector(Spool(directory))
    if as_json:
        backoff = Backoff(interval, interval)
        click.echo(json.dumps(document(observer.collect()), indent=None if watch else 1))
        while watch:
            backoff.sleep()
            click.echo(json.dumps(document(observer.collect())))
    elif watch:
        _watch(observer, interval)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in lines(observer.collect(), width=width):
            click.echo(line)


@click.command()
@_argument
@_interval
@report_errors
def top(directory: str, interval: float) -> None:
    """Show SPOOL as 'spool status' does, again and again, until q or Ctrl-C."""
    _watch(StatusCollector(Spool(directory)), interval)


def _watch(observer: StatusCollector, interval: float) -> None:
    """Repaint the terminal from the top at every look: only what changed is seen to change."""
    if not sys.stdout.isatty():
        raise BadRequest("There is no terminal to show it on: use 'spool status' for one look, or --json.")
    plain = click.unstyle if click.get_current_context().color is False else str
    with _keys() as pressed:
        while True:
            size = shutil.get_terminal_size()
            page = [plain(line) for line in lines(observer.collect(), width=size.columns, groups=size.lines)]
            if len(page) > size.lines - 1:
                page = [*page[: size.lines - 2], "..."]
            # cursor home; each line ends with "clear to its end", the last with "clear below"
            _draw("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in page) + "\x1b[J")
            if pressed(interval) in ("q", "\x03", "\x1b"):
                return


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A screen of its own, and a function that waits so long for a key ("" if none came)."""

    def pressed(seconds: float) -> str:
        ready = select.select([sys.stdin] if terminal else [], [], [], seconds)[0]
        return os.read(sys.stdin.fileno(), 64).decode(errors="replace")[:1] if ready else ""

    terminal = sys.stdin.isatty()
    saved = termios.tcgetattr(sys.stdin) if terminal else []
    _draw("\x1b[?1049h\x1b[?25l")  # the other screen, no cursor
    try:
        if terminal:
            tty.setcbreak(sys.stdin)
        yield pressed
    except KeyboardInterrupt:
        pass
    finally:
        if terminal:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)
        _draw("\x1b[?25h\x1b[?1049l")


def _draw(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
