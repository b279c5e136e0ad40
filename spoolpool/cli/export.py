"""``spool export``."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

from spoolpool.cli.output import escape_lines, replacing, report_errors
from spoolpool.cli.quantities import Moment
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.errors import BadRequest
from spoolpool.monitor import export as exports
from spoolpool.monitor.status import StatusCollector
from spoolpool.protocol.journal import lines
from spoolpool.protocol.spool import Spool


@click.command()
@takes_spool()
@click.option(
    "--format",
    "form",
    type=click.Choice(["prometheus", "json", "csv", "parquet"]),
    required=True,
    help="Format of the output.",
)
@click.option("--journal", is_flag=True, help="Export the events of the journals instead of the numbers of tasks.")
@click.option("--since", type=Moment(), metavar="TIME", help="Events not before 2026-11-26T09:30, or 2h, 7d ago.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="File to replace.")
@report_errors
def export(directory: str, form: str, journal: bool, since: float | None, output: str | None) -> None:
    """Print the numbers of tasks by lane, user and state, or the events of the journals.

    \b
      spool export SPOOL --format prometheus -o /var/lib/node_exporter/spool.prom
      spool export SPOOL --format csv --journal --since 7d > events.csv
      spool export SPOOL --format parquet --journal -o events.parquet

    A file is replaced at once, so that readers never see a part of it. Parquet needs pyarrow.
    """
    if journal and form == "prometheus":
        raise BadRequest("Prometheus takes numbers, not events: leave out --journal, or choose another format.")
    if since is not None and not journal:
        raise BadRequest("--since selects events: add --journal.")
    if form == "parquet" and output is None:
        raise BadRequest("A Parquet file cannot be printed: name it with -o FILE.")
    spool = Spool(directory, read_only=True)
    columns = exports.EVENT_COLUMNS if journal else exports.COUNT_COLUMNS
    if form == "prometheus":
        pieces: Iterable[bytes] = [exports.prometheus(StatusCollector(spool).collect())]
    else:
        rows = (
            exports.event_rows(lines(spool, since or 0.0))
            if journal
            else exports.count_rows(StatusCollector(spool).collect())
        )
        if form == "parquet":
            assert output is not None
            with replacing(output) as path:
                exports.write_parquet(rows, columns, path)
            return
        pieces = exports.json_lines(rows) if form == "json" else exports.csv_lines(rows, columns)
    if output is None:
        if sys.stdout.isatty():  # names may be those of other accounts, with controls of the terminal
            pieces = (f"{escape_lines(piece.decode())}\n".encode() for piece in pieces if piece)
        sys.stdout.buffer.writelines(pieces)
        sys.stdout.buffer.flush()
        return
    with replacing(output) as path, open(path, "wb") as file:
        file.writelines(pieces)
