"""``spool report``."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections import Counter
from pathlib import Path

import click

from spoolpool.cli.output import echo_stderr, replacing, report_errors
from spoolpool.cli.quantities import Duration
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.errors import BadRequest, SpoolpoolError
from spoolpool.monitor.report import figure
from spoolpool.monitor.report.page import Rewriting, page
from spoolpool.monitor.report.summary import Summary, summarize
from spoolpool.monitor.states import describe_counts
from spoolpool.protocol.presence import Presence
from spoolpool.protocol.spool import Spool
from spoolpool.system.backoff import Backoff

log = logging.getLogger(__name__)

_FILE = click.Path(dir_okay=False)
_EVERY = 5.0  # seconds, by default


class _Command(click.Command):
    """Command of which ``--watch`` needs no value: a word after it that is no time is the spool."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        found = []
        for number, word in enumerate(args):
            following = args[number + 1][:1] if number + 1 < len(args) else ""
            found.append(f"--watch={_EVERY:g}" if word == "--watch" and not following.isdigit() else word)
        return super().parse_args(ctx, found)


@click.command(cls=_Command)
@takes_spool()
@click.option("-o", "--output", type=_FILE, help="Write an HTML page to this file.")
@click.option("--png", type=_FILE, help="Write a PNG picture to this file.")
@click.option("--svg", type=_FILE, help="Write an SVG picture to this file.")
@click.option(
    "--watch", type=Duration(0.1), metavar="[SECONDS]", help="Rewrite the page every few seconds (5), until Ctrl-C."
)
@report_errors
def report(directory: str, output: str | None, png: str | None, svg: str | None, watch: float | None) -> None:
    """Write a report of SPOOL: groups and tasks over time, durations, failures, recoveries.

    \b
      spool report SPOOL -o report.html            self-contained page
      spool report SPOOL -o report.html --watch    page that is rewritten, and reloads itself
      spool report SPOOL --svg figure.svg          figure for a paper; needs matplotlib

    The data are the journals, which 'spool gc' keeps for a year.
    """
    if not (output or png or svg):
        raise BadRequest("Name an output file: -o report.html, --png FILE or --svg FILE.")
    spool = Spool(directory, read_only=True)
    if watch is not None:
        if png or svg or not output:
            raise BadRequest("--watch rewrites an HTML page: name it with -o report.html, without --png and --svg.")
        summary = _watch(spool, output, watch)
    else:
        summary = summarize(spool)
        if output:
            _write(page(summary), output)
    for path, kind in ((png, "png"), (svg, "svg")):
        if path:
            with replacing(path) as new:
                figure.save(summary, new, kind)
    written = ", ".join(filter(None, (output, png, svg)))
    counts = describe_counts(summary.ends + Counter(summary.pending), ("done",))
    unknown = f", {summary.unknown} without a recorded end" if summary.unknown else ""
    echo_stderr(f"Wrote {written}: {counts}{unknown}; {len(summary.groups)} group(s).")


def _write(text: str, path: str) -> None:
    with replacing(path) as new:
        Path(new).write_text(text, encoding="utf-8")


def _watch(spool: Spool, path: str, seconds: float) -> Summary:
    """Rewrite a page until Ctrl-C or SIGTERM; then write the last one, which does not reload itself.

    At least half of the time is left to other work, however long the journals are.
    """
    presence = Presence(spool, restore=False)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    summary = None
    try:
        while True:
            began = time.monotonic()
            every = seconds
            if presence.check():  # else the file server does not answer
                new = summarize(spool)
                every = max(seconds, math.ceil(time.monotonic() - began))
                try:
                    _write(page(new, Rewriting(every)), path)
                except SpoolpoolError as error:
                    if summary is None:  # a wrong path; later the disk is full, say, and the page tells its age
                        raise
                    log.warning("%s", error)
                else:
                    if summary is None:
                        echo_stderr(f"Rewriting {path} every {every:g} s. Open it in a browser; Ctrl-C ends this.")
                    summary = new
            Backoff(every, every).sleep()
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt):  # a second one: the journals are long, and the last data are kept
            summary = summarize(spool)
        if summary is None:
            raise
        _write(page(summary, Rewriting(0.0)), path)
        return summary
    finally:
        signal.signal(signal.SIGTERM, previous)
