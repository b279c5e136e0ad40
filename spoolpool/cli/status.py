"""``spool status`` and ``spool top``."""

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

from spoolpool.cli.output import report_errors
from spoolpool.cli.quantities import Duration
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.cli.status_screen import as_json as to_json
from spoolpool.cli.status_screen import lines
from spoolpool.errors import BadRequest
from spoolpool.monitor.status import StatusCollector
from spoolpool.pool.job_failures import FailureWatch
from spoolpool.protocol.spool import Spool
from spoolpool.system.backoff import Backoff

_argument = takes_spool()
_interval = click.option(
    "--interval", type=Duration(0.1), default=2.0, show_default=True, help="Seconds between updates."
)


@click.command()
@_argument
@click.option("-w", "--watch", is_flag=True, help="Update continuously, like 'spool top'.")
@_interval
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --watch one per line.")
@report_errors
def status(directory: str, watch: bool, interval: float, as_json: bool) -> None:
    """Show blocked, queued and running tasks of SPOOL, its worker groups, and the expected end of the work.

    \b
      spool status SPOOL           once
      spool status SPOOL --watch   continuously, until q or Ctrl-C
      spool status SPOOL --json    for programs

    It lists names and reads a few headers; the cost does not depend on the size of the tasks.
    """
    spool = Spool(directory, read_only=True)
    collector, failures = StatusCollector(spool), FailureWatch(spool)
    if as_json:
        backoff = Backoff(interval, interval)
        click.echo(json.dumps(to_json(collector.collect(), failures.look()), indent=None if watch else 1))
        while watch:
            backoff.sleep()
            click.echo(json.dumps(to_json(collector.collect(), failures.look())))
    elif watch:
        _watch(collector, failures, interval)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in lines(collector.collect(), width=width, failures=failures.look()):
            click.echo(line)


@click.command()
@_argument
@_interval
@report_errors
def top(directory: str, interval: float) -> None:
    """Show the status of SPOOL continuously, until q or Ctrl-C.

    \b
      spool top SPOOL --interval 5
    """
    spool = Spool(directory, read_only=True)
    _watch(StatusCollector(spool), FailureWatch(spool), interval)


def _watch(collector: StatusCollector, failures: FailureWatch, interval: float) -> None:
    """Show the status until a key ends it. Each update overwrites the screen, without clearing it: no flicker."""
    if not sys.stdout.isatty():
        raise BadRequest("Standard output is not a terminal: use 'spool status' without --watch, or --json.")
    plain = click.unstyle if click.get_current_context().color is False else str
    with _keys() as pressed:
        while True:
            size = shutil.get_terminal_size()
            shown = lines(collector.collect(), width=size.columns, groups=size.lines, failures=failures.look())
            page = [plain(line) for line in shown]
            if len(page) > size.lines - 1:
                page = [*page[: size.lines - 2], "..."]
            # cursor home; after each line clear the rest of it, after the last one the rest of the screen
            _draw("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in page) + "\x1b[J")
            if pressed(interval) in ("q", "\x03", "\x1b"):
                return


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Use the alternate screen; yield a function that waits some seconds for a key, "" if none was pressed."""

    def pressed(seconds: float) -> str:
        ready = select.select([sys.stdin] if terminal else [], [], [], seconds)[0]
        return os.read(sys.stdin.fileno(), 64).decode(errors="replace")[:1] if ready else ""

    terminal = sys.stdin.isatty()
    saved = termios.tcgetattr(sys.stdin) if terminal else []
    _draw("\x1b[?1049h\x1b[?25l")  # alternate screen, no cursor
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
