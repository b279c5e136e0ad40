"""``spool report``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from spoolpool.cli.output import echo_stderr, replacing, report_errors
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.errors import BadRequest
from spoolpool.monitor.report import figure
from spoolpool.monitor.report.page import page
from spoolpool.monitor.report.summary import summarize
from spoolpool.monitor.states import describe_counts
from spoolpool.protocol.spool import Spool

_FILE = click.Path(dir_okay=False)


@click.command()
@takes_spool()
@click.option("-o", "--output", type=_FILE, help="Write an HTML page to this file.")
@click.option("--png", type=_FILE, help="Write a PNG picture to this file.")
@click.option("--svg", type=_FILE, help="Write an SVG picture to this file.")
@report_errors
def report(directory: str, output: str | None, png: str | None, svg: str | None) -> None:
    """Write a report of SPOOL: groups and tasks over time, durations, failures, recoveries.

    \b
      spool report SPOOL -o report.html    self-contained page
      spool report SPOOL --svg figure.svg  figure for a paper; needs matplotlib

    The data are the journals, which 'spool gc' keeps for a year.
    """
    if not (output or png or svg):
        raise BadRequest("Name an output file: -o report.html, --png FILE or --svg FILE.")
    summary = summarize(Spool(directory, read_only=True))
    if output:
        with replacing(output) as new:
            Path(new).write_text(page(summary), encoding="utf-8")
    for path, kind in ((png, "png"), (svg, "svg")):
        if path:
            with replacing(path) as new:
                figure.save(summary, new, kind)
    written = ", ".join(filter(None, (output, png, svg)))
    counts = describe_counts(summary.ends + Counter(summary.pending), ("done",))
    unknown = f", {summary.unknown} without a recorded end" if summary.unknown else ""
    echo_stderr(f"Wrote {written}: {counts}{unknown}; {len(summary.groups)} group(s).")
