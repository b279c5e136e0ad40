"""``spool wait``."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from spoolpool.cli.output import echo_escaped, echo_stderr, on_end_option
from spoolpool.cli.quantities import Duration
from spoolpool.cli.task_selection import Selection, selects
from spoolpool.client.end_command import run_end_command
from spoolpool.errors import TaskTimeout
from spoolpool.monitor.states import describe_counts
from spoolpool.monitor.wait import Waiter
from spoolpool.system.backoff import Backoff

log = logging.getLogger(__name__)

_GOOD = ("done", "collected")


@click.command()
@selects()
@click.option("--timeout", type=Duration(), metavar="TIME", help="Maximum time to wait: 90s, 10m, 2h, 7d.")
@on_end_option
def wait(selection: Selection, timeout: float | None, on_end: str | None) -> None:
    """Wait until tasks have finished: all present tasks, named tasks, or tasks that match the filters.

    \b
      spool wait SPOOL --session sweep && ./next-step
      spool wait SPOOL e7819e56d5 --timeout 2h

    The exit code is 0 if all tasks returned, 1 if one raised, was lost or cancelled, and 17 after a timeout.
    """
    waiter = Waiter(selection.spool, list(selection.tasks()))
    log.info("Waiting for %d of %d task(s)", len(waiter.pending), waiter.total)
    backoff = Backoff(0.01, 2.0)
    end = None if timeout is None else time.monotonic() + timeout
    with _bar(waiter.total) as bar:
        while True:
            if finished := waiter.poll():
                if bar is not None:
                    bar.update(finished)
                backoff.reset()
            if not waiter.pending:
                break
            if end is not None and time.monotonic() > end:
                raise TaskTimeout(
                    f"{len(waiter.pending)} of {waiter.total} tasks in {selection.spool.path} have not finished within "
                    f"{timeout:g} s. Wait again, or see 'spool status {selection.spool.path}'."
                )
            for text in waiter.warnings():
                echo_escaped(text, err=True)
            backoff.sleep()
    ends = waiter.ends()
    counts = Counter(ends.values())
    echo_stderr(describe_counts(counts) or "Nothing to wait for.")
    if on_end:
        run_end_command(on_end, counts, spool=selection.spool.path)
    sys.exit(int(any(state not in _GOOD for state in ends.values())))


def _bar(total: int) -> AbstractContextManager[Any]:
    """Return a progress bar on a terminal, else nothing."""
    if not sys.stderr.isatty():
        return nullcontext()
    return click.progressbar(length=total, label="Waiting", file=sys.stderr)
